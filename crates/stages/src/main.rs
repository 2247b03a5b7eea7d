//! The stages up to the votes in one program, told apart by the name it is called by: `attack` is a link to it.
//!
//! A GPU build of each stage would hold the network code and the kernels once more.

use std::{
    env,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use stage::{Exit, Stage};
use stage_attack::Attack;
use stage_finetune::Finetune;
use stage_fit::Fit;
use stage_sample::Sample;

fn main() -> ExitCode {
    let called = env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_stem().unwrap_or_default().to_string_lossy();
    match &*name {
        Sample::NAME => stage::main::<Sample>(),
        Finetune::NAME => stage::main::<Finetune>(),
        Fit::NAME => stage::main::<Fit>(),
        Attack::NAME => stage::main::<Attack>(),
        "gpu-check" => gpu_check::main(),
        name => {
            let stages = [Sample::NAME, Finetune::NAME, Fit::NAME, Attack::NAME].join(", ");
            let _ = writeln!(io::stderr(), "{name}: call this program by one of these names: {stages}, gpu-check");
            Exit::Usage.into()
        }
    }
}
