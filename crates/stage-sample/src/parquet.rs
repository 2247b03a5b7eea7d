//! Parquet files with encoded images, as the Hugging Face hub keeps them, and as pandas, polars and DuckDB write them.

mod labels;
mod outside;

use std::{fs::File, path::PathBuf};

use arrow_array::{Array, ArrayRef, RecordBatch, cast::AsArray};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection},
};
use stage::Unfit;

use self::labels::Labels;
use crate::{Item, Reader, column};

/// Rows held at a time.
const ROWS: usize = 32;

pub(crate) struct Parquet {
    files: Vec<Table>,
    image: String,
    label: String,
    labels: Labels,
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

    /// Hands over batches of these columns, and how many rows came before each; of these rows alone where any are named.
    fn read(
        &self,
        columns: &[&str],
        rows: Option<&[usize]>,
        each: &mut dyn FnMut(&RecordBatch, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let builder = self.open()?;
        let indices: Vec<usize> =
            columns.iter().map(|column| builder.schema().index_of(column)).collect::<Result<_, _>>()?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), indices);
        let mut builder = builder.with_projection(mask).with_batch_size(ROWS);
        if let Some(rows) = rows {
            let ranges = rows.iter().map(|&row| row..row + 1);
            builder = builder.with_row_selection(RowSelection::from_consecutive_ranges(ranges, self.rows));
        }
        let row = |done: usize| rows.map_or(done, |rows| rows.get(done).copied().unwrap_or(0));
        let damaged =
            |e: String, done: usize| self.unfit(format!("damaged after row {}: {e}: replace the file", row(done)));
        let mut done = 0;
        for batch in builder.build().map_err(|e| damaged(e.to_string(), 0))? {
            let batch = batch.map_err(|e| damaged(e.to_string(), done))?;
            each(&batch, done)?;
            done += batch.num_rows();
        }
        Ok(())
    }
}

impl Parquet {
    /// Opens files given by path and name.
    pub(crate) fn open(files: Vec<(PathBuf, String)>, image: &str, label: &str) -> anyhow::Result<Self> {
        let mut tables = Vec::new();
        for (path, name) in files {
            let mut table = Table { path, name, rows: 0 };
            let builder = table.open()?;
            table.rows = builder.metadata().file_metadata().num_rows() as usize;
            for column in [image, label] {
                if builder.schema().index_of(column).is_err() {
                    let names: Vec<_> = builder.schema().fields().iter().map(|field| field.name().as_str()).collect();
                    let text = format!("no column `{column}`: name one of {} in `source`", names.join(", "));
                    return Err(table.unfit(text).into());
                }
            }
            tables.push(table);
        }
        let labels = Labels::of(&tables, label)?;
        Ok(Self { files: tables, image: image.to_owned(), label: label.to_owned(), labels })
    }

    /// Hands over all images of a batch, which are the rows `rows` of a file whose first image has id `first`.
    fn hand(
        &self,
        (file, first): (usize, usize),
        batch: &RecordBatch,
        rows: &[usize],
        each: &mut dyn FnMut(Item) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let table = &self.files[file];
        let images = Images::of(table, batch, &self.image)?;
        let labels = batch.column_by_name(&self.label).ok_or_else(|| table.unfit("no labels"))?;
        for (i, &row) in rows.iter().enumerate() {
            let place = format!("{}, row {row}", table.name);
            let path = images.path(i);
            let bytes = match images.bytes(i) {
                Some(bytes) => bytes.to_vec(),
                None => outside::bytes(path, &place, &self.image)?,
            };
            let label = self.labels.of_row(file, labels, i).map_err(|fault| Unfit(format!("{place}: {fault}")))?;
            let path = path.map_or_else(|| place.clone(), str::to_owned);
            each(Item { id: (first + row) as u32, label, bytes, path, place })?;
        }
        Ok(())
    }

    /// The rows of each file that these ids, which ascend, are; with the id of its first row.
    fn rows_of(&self, ids: &[u32]) -> Vec<(usize, Vec<usize>)> {
        let mut first = 0;
        let rows = |table: &Table| {
            let inside = |&&id: &&u32| (first..first + table.rows).contains(&(id as usize));
            let rows = ids.iter().filter(inside).map(|&id| id as usize - first).collect();
            first += table.rows;
            (first - table.rows, rows)
        };
        self.files.iter().map(rows).collect()
    }
}

/// The images of a batch.
struct Images<'a> {
    /// The struct, where there is one.
    whole: Option<&'a ArrayRef>,
    bytes: &'a ArrayRef,
    paths: Option<&'a ArrayRef>,
}

impl<'a> Images<'a> {
    fn of(table: &Table, batch: &'a RecordBatch, name: &str) -> Result<Self, Unfit> {
        let wrong = |kind: String| {
            let text = format!("column `{name}` is neither bytes nor a struct with `bytes`, but {kind}");
            table.unfit(format!("{text}: name the column of encoded images in `source.image`"))
        };
        let column = batch.column_by_name(name).ok_or_else(|| wrong("missing".to_owned()))?;
        let kind = || wrong(column.data_type().to_string());
        let (whole, bytes, paths) = match column.as_struct_opt() {
            Some(fields) => {
                (Some(column), fields.column_by_name("bytes").ok_or_else(kind)?, fields.column_by_name("path"))
            }
            None => (None, column, None),
        };
        // A column of which every value is missing has no type of its own.
        if !column::is_bytes(bytes.data_type()) && bytes.null_count() < bytes.len() {
            return Err(kind());
        }
        Ok(Self { whole, bytes, paths })
    }

    fn bytes(&self, row: usize) -> Option<&'a [u8]> {
        let there = self.whole.is_none_or(|whole| whole.is_valid(row));
        there.then(|| column::bytes(self.bytes.as_ref(), row)).flatten()
    }

    fn path(&self, row: usize) -> Option<&'a str> {
        let there = self.whole.is_none_or(|whole| whole.is_valid(row));
        let paths = self.paths.filter(|_| there)?;
        column::text(paths.as_ref(), row).filter(|path| !path.is_empty())
    }
}

impl Reader for Parquet {
    fn len(&self) -> usize {
        self.files.iter().map(|table| table.rows).sum()
    }

    fn classes(&self) -> Option<&[String]> {
        self.labels.names()
    }

    fn range(&self) -> anyhow::Result<Option<(i64, i64)>> {
        labels::range(&self.files, &self.label)
    }

    fn inputs(&self, ids: &[u32]) -> anyhow::Result<Vec<(String, String)>> {
        let mut inputs = Vec::new();
        for (table, (_, rows)) in self.files.iter().zip(self.rows_of(ids)) {
            inputs.push((table.name.clone(), artifact::sha256(&table.path)?));
            inputs.extend(outside::digest(table, &self.image, &rows)?);
        }
        Ok(inputs)
    }

    fn read(&self, ids: &[u32], each: &mut dyn FnMut(Item) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for (file, (first, rows)) in self.rows_of(ids).into_iter().enumerate().filter(|(_, (_, rows))| !rows.is_empty())
        {
            self.files[file].read(&[&self.image, &self.label], Some(&rows), &mut |batch, done| {
                self.hand((file, first), batch, &rows[done..done + batch.num_rows()], each)
            })?;
        }
        Ok(())
    }
}
