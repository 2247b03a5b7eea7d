//! What every stage shares: parameters, command line, devices, digests, progress, exit codes.

pub mod images;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use artifact::{Provenance, Row, Shard, Writer};
use candle_core::Device;
use serde::{Serialize, de::DeserializeOwned};

/// One stage of the pipeline: parameters and inputs to one Parquet table.
pub trait Stage {
    /// The binary's name, and the folder under `data/`.
    const NAME: &'static str;
    /// Raised whenever the same parameters and inputs give other numbers.
    const REVISION: u32;
    /// One sentence for `--help`.
    const ABOUT: &'static str;
    /// Everything that changes numbers, and nothing else.
    type Params: Serialize + DeserializeOwned;
    /// The table's row.
    type Row: Row;

    /// Writes the rows of this shard.
    fn run(params: &Self::Params, ctx: &Context, out: &mut Writer<Self::Row>) -> anyhow::Result<()>;
}

/// An input table: where it is, what wrote it, and its digest.
#[derive(Clone, Debug)]
pub struct Input {
    /// The file.
    pub path: PathBuf,
    /// Its provenance; `provenance.kind` tells what rows it holds.
    pub provenance: Provenance,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

/// What a stage may know besides its parameters; nothing here changes numbers.
#[derive(Debug)]
pub struct Context {
    /// The inputs in the order given.
    pub inputs: Vec<Input>,
    /// The file being written; other files of the artifact go beside it.
    pub out: PathBuf,
    /// Which part of the whole to compute.
    pub shard: Shard,
    /// Where tensors live.
    pub device: Device,
    /// The folder that relative paths of local sources are below.
    pub data_root: Option<PathBuf>,
}

impl Context {
    /// All rows of all inputs of one kind, in the order given (parts of one table in shard order), with their inputs.
    pub fn read<R: Row>(&self) -> anyhow::Result<Vec<(Input, Vec<R>)>> {
        unimplemented!()
    }
    /// Resolves a source's path: absolute, or below the data root.
    pub fn local(&self, _path: &Path) -> anyhow::Result<PathBuf> {
        unimplemented!()
    }
    /// Says on stderr what the work will cost before it starts.
    pub fn announce(&self, _cost: &str) {
        unimplemented!()
    }
    /// A progress bar of `total` steps, hidden when stderr is no terminal.
    pub fn progress(&self, _total: u64, _what: &str) -> Progress {
        unimplemented!()
    }
    /// Adds to the timing table written beside the artifact.
    pub fn time(&self, _work: &str, _count: u64, _seconds: f64) {
        unimplemented!()
    }
}

/// A progress bar.
#[derive(Debug)]
pub struct Progress;

impl Progress {
    /// Advances by `steps`.
    pub fn advance(&self, _steps: u64) {}
}

/// Runs a stage from the command line: the whole of a stage binary's `main`.
pub fn main<S: Stage>() -> ExitCode {
    unimplemented!()
}
