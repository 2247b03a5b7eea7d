//! Writing files whole or not at all.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Seek, Write},
    path::{Path, PathBuf},
};

use arrow_schema::Schema;
use parquet::{
    arrow::{
        ARROW_SCHEMA_META_KEY, ArrowSchemaConverter, ArrowWriter, arrow_writer::ArrowWriterOptions, encode_arrow_schema,
    },
    basic::{Compression, Encoding, LogicalType, Type, ZstdLevel},
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
    },
};
use serde_json::json;

use crate::{Error, Provenance, Result, Row};

/// The metadata key of the provenance.
pub(crate) const PROVENANCE: &str = "provenance";

/// A row group ends after this many rows, or earlier when its rows weigh this many bytes. Both depend on the rows
/// alone, so the file's bytes do not depend on how the rows were pushed.
const GROUP_ROWS: usize = 256;
const GROUP_BYTES: usize = 32 << 20;

/// Writes one artifact: to an unnamed file in the same folder, moved into place by [`Writer::finish`].
///
/// Memory is bounded by one row group (256 rows or 32 MiB). A writer that is dropped unfinished, or whose process
/// dies, leaves nothing behind: the unnamed file has no directory entry.
pub struct Writer<R: Row> {
    path: PathBuf,
    provenance: Provenance,
    waiting: Vec<R>,
    weight: usize,
    /// The unnamed file, also written through `parquet`.
    file: File,
    parquet: ArrowWriter<File>,
}

impl<R: Row> fmt::Debug for Writer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("path", &self.path).field("kind", &R::KIND).finish_non_exhaustive()
    }
}

impl<R: Row> Writer<R> {
    /// Opens the unnamed file, creating folders; the provenance's kind becomes the row's.
    ///
    /// # Errors
    /// If the folder cannot be created or written to.
    pub fn create(path: &Path, provenance: Provenance) -> Result<Self> {
        let file = create_folder(path).and_then(tempfile::tempfile_in).map_err(|error| Error::writing(path, error))?;
        Self::onto(file, path, provenance)
    }

    fn onto(file: File, path: &Path, provenance: Provenance) -> Result<Self> {
        let schema = R::schema();
        let parquet = properties(&schema).and_then(|properties| {
            // The schema's metadata holds facts a stage may add until `finish`, which therefore stores it.
            let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
            ArrowWriter::try_new_with_options(file.try_clone()?, schema, options)
        });
        let parquet = parquet.map_err(|error| Error::writing(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            provenance: Provenance { kind: R::KIND.to_owned(), ..provenance },
            waiting: Vec::new(),
            weight: 0,
            file,
            parquet,
        })
    }

    /// The provenance that will be stored; a stage may add facts until [`Writer::finish`].
    pub const fn provenance_mut(&mut self) -> &mut Provenance {
        &mut self.provenance
    }

    /// Appends rows.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn push(&mut self, rows: &[R]) -> Result<()> {
        for row in rows {
            self.weight += row.weight();
            self.waiting.push(row.clone());
            if self.waiting.len() == GROUP_ROWS || self.weight >= GROUP_BYTES {
                self.flush().map_err(|error| Error::writing(&self.path, error))?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> parquet::errors::Result<()> {
        if !self.waiting.is_empty() {
            self.parquet.write(&R::encode(&self.waiting))?;
            self.parquet.flush()?;
            self.parquet.sync()?;
            self.waiting.clear();
            self.weight = 0;
        }
        Ok(())
    }

    /// Completes the file and moves it into place, readable by all.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn finish(mut self) -> Result<()> {
        let path = std::mem::take(&mut self.path);
        let mut file = self.complete().map_err(|error| Error::writing(&path, error))?;
        persist(&path, |whole| {
            file.rewind()?;
            io::copy(&mut file, whole).map(drop)
        })
    }

    fn complete(mut self) -> parquet::errors::Result<File> {
        self.flush()?;
        let mut schema = Schema::clone(&R::schema());
        let provenance =
            serde_json::to_string(&self.provenance).map_err(|error| ParquetError::External(error.into()))?;
        self.parquet.append_key_value_metadata(KeyValue::new(PROVENANCE.to_owned(), provenance));
        if let Some(features) = R::features(&self.provenance) {
            let info = json!({"info": {"features": features}}).to_string();
            schema.metadata.insert("huggingface".to_owned(), info.clone());
            self.parquet.append_key_value_metadata(KeyValue::new("huggingface".to_owned(), info));
        }
        let schema = encode_arrow_schema(&schema);
        self.parquet.append_key_value_metadata(KeyValue::new(ARROW_SCHEMA_META_KEY.to_owned(), schema));
        self.parquet.finish()?;
        self.parquet.sync()?;
        Ok(self.file)
    }
}

/// Zstandard everywhere; floats split into byte streams; neither dictionary nor statistics on images.
fn properties(schema: &Schema) -> parquet::errors::Result<WriterProperties> {
    let columns = ArrowSchemaConverter::new().convert(schema)?;
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_max_row_group_row_count(Some(GROUP_ROWS));
    for column in columns.columns() {
        let path = column.path().clone();
        properties = match column.physical_type() {
            Type::FLOAT | Type::DOUBLE => properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT),
            Type::BYTE_ARRAY if column.logical_type_ref() != Some(&LogicalType::String) => properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_statistics_enabled(path, EnabledStatistics::None),
            _ => properties,
        };
    }
    Ok(properties.build())
}

/// Writes a file whole or not at all (temporary file, then rename), readable by all; creates its folder.
///
/// # Errors
/// If the folder cannot be written to, or the disk is full or fails.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    persist(path, |file| file.write_all(bytes))
}

/// Fills a temporary file beside `path`, flushes it to disk, and renames it to `path`.
fn persist(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let attempt = || {
        let folder = create_folder(path)?;
        let mut file = tempfile::Builder::new().prefix(".").suffix(".tmp").tempfile_in(folder)?;
        fill(file.as_file_mut())?;
        readable_by_all(file.as_file())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        // The name must survive a power cut as well; file systems that cannot promise it are no reason to fail.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    };
    attempt().map_err(|error: io::Error| Error::writing(path, error))
}

/// The folder of a file, created if need be.
fn create_folder(path: &Path) -> io::Result<&Path> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    Ok(folder)
}

/// Temporary files are private; on a shared machine others must be able to read the result.
fn readable_by_all(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let _ = file;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::{Shard, TimingRow};

    #[test]
    fn a_full_disk_is_named() {
        let provenance = Provenance {
            kind: String::new(),
            stage: "test".to_owned(),
            revision: 0,
            parameters: json!({}),
            shard: Shard::WHOLE,
            inputs: [].into(),
            facts: [].into(),
            environment: [].into(),
        };
        // Every write to this device fails as on a full disk.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let write = |full| {
            let mut writer = Writer::onto(full, Path::new("x.parquet"), provenance)?;
            writer.push(&vec![TimingRow { work: "x".to_owned(), count: 1, seconds: 1.0 }; 1000])?;
            writer.finish()
        };
        let error = write(full).unwrap_err();
        assert_eq!(error.to_string(), "x.parquet: cannot be written; the disk is full: free some space and run again");
    }
}
