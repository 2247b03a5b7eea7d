//! Parquet artifacts: row schemas, provenance, atomic writing, reading; the inspect binary.
//!
//! An artifact is one Parquet file whose rows are one of the structs of this crate and whose key-value metadata holds
//! a [`Provenance`]. It appears whole or not at all, and equal rows with equal provenance give equal bytes.

mod column;
mod error;
mod exit;
pub mod inspect;
mod manifest;
mod provenance;
mod read;
mod rows;
mod write;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
pub use column::Mismatch;
pub use error::{Error, Result};
pub use exit::{Exit, Panic, caught};
pub use manifest::{Entry, Manifest};
pub use provenance::{Provenance, Shard};
pub use read::{Reader, provenance, read, sha256};
pub use rows::{AttackRow, BenchRow, DetectorRow, FinetuneRow, ReportRow, SampleRow, TheoryRow, TimingRow};
pub use write::{Writer, write_atomic};

/// A struct that is one row of one kind of artifact.
pub trait Row: Sized + Clone + Send + Sync + 'static {
    /// The kind, as provenance names it: `sample`, `finetune`, `attack`, ...
    const KIND: &'static str;

    /// Columns that earlier versions of this program did not write; null where they are missing.
    const LATER: &'static [&'static str] = &[];

    /// Columns and their types; every field nullable, as Hugging Face `datasets` demands.
    fn schema() -> SchemaRef;

    /// Rows to a batch of that schema.
    fn encode(rows: &[Self]) -> RecordBatch;

    /// A batch back to rows.
    ///
    /// # Errors
    /// If a column is missing, has another type, or is null where the row needs a value.
    fn decode(batch: &RecordBatch) -> Result<Vec<Self>, Mismatch>;

    /// About how many bytes the row takes; bounds the row groups.
    fn weight(&self) -> usize;

    /// What Hugging Face `datasets` should know of the columns beyond their types, as its `features` object.
    fn features(_provenance: &Provenance) -> Option<serde_json::Value> {
        None
    }
}
