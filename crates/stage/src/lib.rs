//! What every stage shares: parameters, command line, devices, digests, progress, exit codes.
//!
//! A stage binary is `fn main() -> ExitCode { stage::main::<ItsStage>() }`. Tests and other programs run a stage in
//! their own process with [`run`] and a [`Context`] of their own.

pub mod classes;
mod clock;
mod command;
mod context;
mod environment;
mod epoch;
pub mod images;

use artifact::{Row, Writer};
use serde::{Serialize, de::DeserializeOwned};

pub use artifact::Exit;
pub use clock::Stopwatch;
pub use command::{exit, main, run};
pub use context::{Context, Input, Progress, Table};
pub use environment::{commit, cpu};
pub use epoch::Epoch;

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

    /// Writes the rows of this shard; the caller finishes the file.
    ///
    /// # Errors
    /// Any. An [`artifact::Error`] about a file that was read or an [`Unfit`] ends the process with code 3, an
    /// [`Invalid`] with code 4, everything else with code 1.
    fn run(params: &Self::Params, ctx: &Context, out: &mut Writer<Self::Row>) -> anyhow::Result<()>;
}

/// Numbers that cannot be right: NaN weights, a perturbation outside its ball. Ends the process with code 4.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Inputs that do not serve: absent, twice there, incomplete, or not those the parameters need. Ends the process with
/// code 3.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

/// Parameters or arguments that are wrong. Ends the process with code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);
