//! Reading artifacts, and digests.

use std::{
    fs::File,
    io,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::{Error, Provenance, Result, Row, column, write::PROVENANCE};

/// Rows held at a time.
const BATCH: usize = 256;

/// An artifact, read a few hundred rows at a time: an iterator of batches of rows.
#[derive(Debug)]
pub struct Reader<R> {
    path: PathBuf,
    provenance: Provenance,
    rows: u64,
    /// None after an error.
    batches: Option<ParquetRecordBatchReader>,
    row: PhantomData<fn() -> R>,
}

impl<R: Row> Reader<R> {
    /// Opens an artifact and checks its kind and its columns.
    ///
    /// # Errors
    /// If the file is missing, damaged, of another kind, or lacks a column.
    pub fn open(path: &Path) -> Result<Self> {
        let builder = open(path)?;
        let provenance = extract(path, &builder)?;
        if provenance.kind != R::KIND {
            let wanted = R::KIND.to_owned();
            return Err(Error::WrongKind { path: path.to_owned(), found: provenance.kind, wanted });
        }
        for wanted in R::schema().fields() {
            let found = builder.schema().field_with_name(wanted.name()).ok().map(|field| field.data_type());
            if found.is_none() && R::LATER.contains(&wanted.name().as_str()) {
                continue;
            }
            column::check(wanted.name(), found, wanted.data_type())
                .map_err(|source| Error::Columns { path: path.to_owned(), source })?;
        }
        let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
        let batches = guarded(path, || builder.with_batch_size(BATCH).build().map_err(|e| Error::damaged(path, e)))?;
        Ok(Self { path: path.to_owned(), provenance, rows, batches: Some(batches), row: PhantomData })
    }

    /// Where the artifact came from.
    #[must_use]
    pub const fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// The number of rows of the whole file.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.rows
    }
}

impl<R: Row> Iterator for Reader<R> {
    type Item = Result<Vec<R>>;

    fn next(&mut self) -> Option<Self::Item> {
        let (path, batches) = (&self.path, self.batches.as_mut()?);
        let rows = guarded(path, || {
            let Some(batch) = batches.next().transpose().map_err(|error| Error::damaged(path, error))? else {
                return Ok(None);
            };
            R::decode(&batch).map(Some).map_err(|source| Error::Columns { path: path.clone(), source })
        });
        if rows.is_err() {
            self.batches = None;
        }
        rows.transpose()
    }
}

/// Reads a whole artifact.
///
/// # Errors
/// As [`Reader::open`], or if a page is damaged.
pub fn read<R: Row>(path: &Path) -> Result<(Provenance, Vec<R>)> {
    let reader = Reader::<R>::open(path)?;
    let provenance = reader.provenance.clone();
    let mut rows = Vec::new();
    for batch in reader {
        rows.append(&mut batch?);
    }
    Ok((provenance, rows))
}

/// Reads an artifact's provenance only, whatever its kind.
///
/// # Errors
/// If the file is missing, damaged, or not an artifact.
pub fn provenance(path: &Path) -> Result<Provenance> {
    extract(path, &open(path)?)
}

/// Opens a Parquet file and reads its footer.
pub(crate) fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(|error| Error::reading(path, error))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(Error::reading(path, io::ErrorKind::IsADirectory.into()));
    }
    guarded(path, || ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| Error::damaged(path, error)))
}

/// Reads Parquet; its reader panics on some damaged files, which becomes an error like any other damage.
pub(crate) fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(Error::damaged(path, "the Parquet reader gave up")))
}

/// The provenance in an opened file's metadata.
pub(crate) fn extract(path: &Path, file: &ParquetRecordBatchReaderBuilder<File>) -> Result<Provenance> {
    let entries = file.metadata().file_metadata().key_value_metadata();
    let entry = entries.into_iter().flatten().find(|entry| entry.key == PROVENANCE);
    let Some(text) = entry.and_then(|entry| entry.value.as_deref()) else {
        return Err(Error::Foreign { path: path.to_owned() });
    };
    serde_json::from_str(text).map_err(|error| Error::damaged(path, error))
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// If the file is missing or cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    hub::sha256(path).map_err(|error| Error::reading(path, error))
}
