//! Parquet artifacts: row schemas, provenance, atomic writing, reading; the inspect binary.

mod rows;

use std::{
    collections::BTreeMap,
    marker::PhantomData,
    path::{Path, PathBuf},
};

use arrow::{datatypes::SchemaRef, record_batch::RecordBatch};
pub use rows::{AttackRow, FinetuneRow, ReportRow, SampleRow, TheoryRow, TimingRow};
use serde::{Deserialize, Serialize};

/// A struct that is one row of one kind of artifact.
pub trait Row: Sized + Clone + Send + Sync + 'static {
    /// The kind, as provenance names it: `sample`, `finetune`, `attack`, ...
    const KIND: &'static str;
    /// Columns and their types; every field nullable.
    fn schema() -> SchemaRef;
    /// Rows to a batch of that schema.
    fn encode(rows: &[Self]) -> Result<RecordBatch>;
    /// A batch back to rows; an error names the column that does not fit.
    fn decode(batch: &RecordBatch) -> Result<Vec<Self>>;
}

/// Result of reading or writing an artifact.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a file; the text names the file and the mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Placeholder until the writer lands.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What happened and what to do.
        reason: String,
    },
}

/// Part `index` of `count`: the images whose position in the sample is `index` modulo `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// From 0.
    pub index: u32,
    /// At least 1.
    pub count: u32,
}

/// Where an artifact came from; stored as JSON in the file's key-value metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The row's kind.
    pub kind: String,
    /// The stage that wrote it.
    pub stage: String,
    /// The stage's revision: raised when the same parameters give other numbers.
    pub revision: u32,
    /// The stage's parameters, as given.
    pub parameters: serde_json::Value,
    /// Which part of the whole.
    pub shard: Shard,
    /// SHA-256 of every input by its path.
    pub inputs: BTreeMap<String, String>,
    /// Facts later stages need that are not parameters: class names, image shape, the network.
    pub facts: BTreeMap<String, serde_json::Value>,
    /// What may differ between machines and is no part of equality: git commit, device, versions.
    pub environment: BTreeMap<String, String>,
}

/// Writes one artifact: to a temporary file in the same folder, renamed into place by `finish`.
#[derive(Debug)]
pub struct Writer<R> {
    row: PhantomData<R>,
}

impl<R: Row> Writer<R> {
    /// Opens the temporary file (creating folders).
    pub fn create(_path: &Path, _provenance: Provenance) -> Result<Self> {
        unimplemented!()
    }
    /// The provenance that will be stored; a stage may add facts until `finish`.
    pub fn provenance_mut(&mut self) -> &mut Provenance {
        unimplemented!()
    }
    /// Appends rows.
    pub fn push(&mut self, _rows: &[R]) -> Result<()> {
        unimplemented!()
    }
    /// Completes the file and renames it into place, readable by all.
    pub fn finish(self) -> Result<()> {
        unimplemented!()
    }
}

/// Reads a whole artifact.
pub fn read<R: Row>(_path: &Path) -> Result<(Provenance, Vec<R>)> {
    unimplemented!()
}

/// Reads an artifact's provenance only.
pub fn provenance(_path: &Path) -> Result<Provenance> {
    unimplemented!()
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256(_path: &Path) -> Result<String> {
    unimplemented!()
}

/// Writes a file whole or not at all (temporary file, then rename), readable by all.
pub fn write_atomic(_path: &Path, _bytes: &[u8]) -> Result<()> {
    unimplemented!()
}
