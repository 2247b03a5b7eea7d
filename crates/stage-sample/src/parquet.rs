//! Parquet files with encoded images, as the Hugging Face hub keeps them.

use std::{fs::File, path::PathBuf};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Int64Type},
};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection},
};
use serde_json::Value;
use stage::Unfit;

use crate::{Item, Reader};

/// Rows held at a time.
const ROWS: usize = 32;

pub(crate) struct Parquet {
    files: Vec<Table>,
    image: String,
    label: String,
    classes: Option<Vec<String>>,
}

/// One file.
struct Table {
    path: PathBuf,
    name: String,
    rows: usize,
}

impl Table {
    fn unfit(&self, text: impl std::fmt::Display) -> Unfit {
        Unfit(format!("{}: {text}", self.name))
    }

    fn open(&self) -> anyhow::Result<ParquetRecordBatchReaderBuilder<File>> {
        let file = File::open(&self.path).map_err(|e| self.unfit(format!("{e}: check its permissions")))?;
        let damaged = |e| self.unfit(format!("no whole Parquet file: {e}: replace it"));
        Ok(ParquetRecordBatchReaderBuilder::try_new(file).map_err(damaged)?)
    }
}

impl Parquet {
    /// Opens files given by path and name.
    pub(crate) fn open(files: Vec<(PathBuf, String)>, image: &str, label: &str) -> anyhow::Result<Self> {
        let (image, label) = (image.to_owned(), label.to_owned());
        let mut this = Self { files: Vec::new(), image, label, classes: None };
        for (path, name) in files {
            let mut table = Table { path, name, rows: 0 };
            let builder = table.open()?;
            table.rows = builder.metadata().file_metadata().num_rows() as usize;
            for column in [&this.image, &this.label] {
                if builder.schema().index_of(column).is_err() {
                    let names: Vec<_> = builder.schema().fields().iter().map(|field| field.name().as_str()).collect();
                    let text = format!("no column `{column}`: name one of {} in `source`", names.join(", "));
                    return Err(table.unfit(text).into());
                }
            }
            let names = class_names(&builder, &this.label);
            match &this.classes {
                Some(known) if names.as_ref().is_some_and(|names| names != known) => {
                    return Err(table.unfit("other classes than the file before: set `classes`").into());
                }
                Some(_) => {}
                None => this.classes = names,
            }
            this.files.push(table);
        }
        Ok(this)
    }

    /// Hands over all images of a batch, which are the rows `rows` of a table whose first image has id `first`.
    fn hand(
        &self,
        table: &Table,
        batch: &RecordBatch,
        rows: &[usize],
        first: usize,
        each: &mut dyn FnMut(Item) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (bytes, paths) = self.images(table, batch)?;
        let labels = batch.column_by_name(&self.label).map(|labels| (labels.data_type().is_integer(), labels));
        let Some((true, labels)) = labels else {
            return Err(table.unfit(format!("column `{}` holds no integers: name the labels", self.label)).into());
        };
        let labels = cast(labels, &DataType::Int64)?;
        let (bytes, labels) = (bytes.as_binary::<i64>(), labels.as_primitive::<Int64Type>());
        for (i, &row) in rows.iter().enumerate() {
            let place = format!("{}, row {row}", table.name);
            for (column, null) in [(&self.image, bytes.is_null(i)), (&self.label, labels.is_null(i))] {
                if null {
                    return Err(Unfit(format!("{place}: no `{column}`: fill it in or remove the row")).into());
                }
            }
            let path = paths.as_ref().map(|paths| paths.as_string::<i64>()).filter(|paths| paths.is_valid(i));
            let path = path.map(|paths| paths.value(i)).filter(|path| !path.is_empty());
            let path = path.map_or_else(|| place.clone(), str::to_owned);
            each(Item {
                id: (first + row) as u32,
                label: labels.value(i),
                bytes: bytes.value(i).to_vec(),
                path,
                place,
            })?;
        }
        Ok(())
    }

    /// The bytes of a batch's images, and their paths where the file has them.
    fn images(&self, table: &Table, batch: &RecordBatch) -> anyhow::Result<(ArrayRef, Option<ArrayRef>)> {
        let wrong = || table.unfit(format!("column `{}` is neither bytes nor a struct with `bytes`", self.image));
        let column = batch.column_by_name(&self.image).ok_or_else(wrong)?;
        let (bytes, paths) = match column.as_struct_opt() {
            Some(fields) => (fields.column_by_name("bytes").ok_or_else(wrong)?, fields.column_by_name("path")),
            None => (column, None),
        };
        if !matches!(bytes.data_type(), DataType::Binary | DataType::LargeBinary | DataType::BinaryView) {
            return Err(wrong().into());
        }
        let text =
            |paths: &&ArrayRef| matches!(paths.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        let paths = paths.filter(text).map(|paths| cast(paths, &DataType::LargeUtf8)).transpose()?;
        Ok((cast(bytes, &DataType::LargeBinary)?, paths))
    }
}

/// The names that the metadata of Hugging Face's `datasets` gives to the classes of a column.
fn class_names(builder: &ParquetRecordBatchReaderBuilder<File>, label: &str) -> Option<Vec<String>> {
    let metadata: Value = serde_json::from_str(builder.schema().metadata().get("huggingface")?).ok()?;
    serde_json::from_value(metadata["info"]["features"][label]["names"].clone()).ok()
}

impl Reader for Parquet {
    fn len(&self) -> usize {
        self.files.iter().map(|table| table.rows).sum()
    }

    fn classes(&self) -> Option<Vec<String>> {
        self.classes.clone()
    }

    fn inputs(&self, _ids: &[u32]) -> anyhow::Result<Vec<(String, String)>> {
        self.files.iter().map(|table| Ok((table.name.clone(), artifact::sha256(&table.path)?))).collect()
    }

    fn read(&self, ids: &[u32], each: &mut dyn FnMut(Item) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut first = 0;
        for table in &self.files {
            let inside = |&&id: &&u32| (first..first + table.rows).contains(&(id as usize));
            let rows: Vec<usize> = ids.iter().filter(inside).map(|&id| id as usize - first).collect();
            if !rows.is_empty() {
                let builder = table.open()?;
                let columns = [builder.schema().index_of(&self.image)?, builder.schema().index_of(&self.label)?];
                let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
                let ranges = rows.iter().map(|&row| row..row + 1);
                let selection = RowSelection::from_consecutive_ranges(ranges, table.rows);
                let damaged =
                    |e: String, row: usize| table.unfit(format!("damaged after row {row}: {e}: replace the file"));
                let batches = builder.with_projection(mask).with_row_selection(selection).with_batch_size(ROWS);
                let mut left = rows.as_slice();
                for batch in batches.build().map_err(|e| damaged(e.to_string(), 0))? {
                    let batch = batch.map_err(|e| damaged(e.to_string(), left.first().copied().unwrap_or(0)))?;
                    let (now, later) = left.split_at(batch.num_rows());
                    self.hand(table, &batch, now, first, each)?;
                    left = later;
                }
            }
            first += table.rows;
        }
        Ok(())
    }
}
