//! Attacks a defended network and records its votes.

use std::process::ExitCode;

fn main() -> ExitCode {
    stage::main::<stage_attack::Attack>()
}
