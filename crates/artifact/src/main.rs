//! Shows an artifact: provenance, columns, first rows; verifies the digests of what it was made from.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use artifact::{Exit, caught, inspect};
use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = inspect::Arguments::parse();
    let (exit, error) = match caught(|| inspect::run(&arguments, &mut io::stdout().lock())) {
        Ok(Ok(exit)) => return exit.into(),
        Ok(Err(error)) => (if error.is_input() { Exit::Input } else { Exit::Failed }, anyhow::Error::new(error)),
        Err(panic) => (Exit::Failed, panic.into()),
    };
    let _ = writeln!(io::stderr(), "inspect: {error:#}");
    exit.into()
}
