//! Attacks a defended network and records its votes.

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use stage::Exit;
use stage_attack::calibrate;

fn main() -> ExitCode {
    // What `plan` asks for; no stage's command line begins so.
    if env::args_os().nth(1).is_some_and(|first| first == "calibrate") {
        return match calibrate::run(io::stdin().lock(), io::stdout().lock()) {
            Ok(()) => Exit::Done.into(),
            Err(error) => {
                let _ = writeln!(io::stderr(), "attack calibrate: {error:#}");
                Exit::Usage.into()
            }
        };
    }
    stage::main::<stage_attack::Attack>()
}
