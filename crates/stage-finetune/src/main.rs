//! Trains or imports the weights of a network.

use std::process::ExitCode;

fn main() -> ExitCode {
    stage::main::<stage_finetune::Finetune>()
}
