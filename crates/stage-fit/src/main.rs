//! Fits a detector to clean images.

use std::process::ExitCode;

fn main() -> ExitCode {
    stage::main::<stage_fit::Fit>()
}
