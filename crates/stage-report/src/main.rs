//! The stage `report` on the command line, and `report --splice DOCUMENT...`: fresh tables in other documents.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.split_first() {
        Some((flag, documents)) if flag == "--splice" => {
            match documents.iter().try_for_each(|document| stage_report::splice(Path::new(document))) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    let _ = writeln!(io::stderr(), "report: {error:#}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => stage::main::<stage_report::Report>(),
    }
}
