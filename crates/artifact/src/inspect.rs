//! Looking into artifacts: what `inspect` shows, extracts and verifies.

mod show;
mod verify;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{Exit, Reader, Result, SampleRow, write_atomic};
pub use verify::{Finding, State, Verifier};

/// What to look at, and how.
#[derive(Debug, clap::Parser)]
#[command(
    name = "inspect",
    version,
    about = "Shows a table: where it came from, its columns, its first rows; or verifies what it was made from.",
    after_help = "\
Exit codes:
  0  done; with --verify: everything is as it was recorded
  1  failed
  2  the command line is wrong
  3  a file is missing, damaged or no artifact; with --verify: a file differs from what was recorded"
)]
pub struct Arguments {
    /// Parquet files written by a stage.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How many of the first rows to show or extract.
    #[arg(long, value_name = "N", default_value_t = 10)]
    rows: usize,
    /// Hash all the files it was made from, and all they were made from, and name those that changed.
    #[arg(long)]
    verify: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Write the first images of a sample table to this folder, as PNG.
    #[arg(long, value_name = "DIR", conflicts_with = "verify")]
    extract: Option<PathBuf>,
}

/// Does what the arguments ask and prints to `out`; a closed pipe ends it in peace.
///
/// # Errors
/// If a file is missing, damaged or no artifact, or an image cannot be written.
pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Exit> {
    if arguments.verify {
        return verify(arguments, out);
    }
    for file in &arguments.files {
        if let Some(folder) = &arguments.extract {
            let images = extract(file, folder, arguments.rows)?;
            print(out, &format!("{}: {images} images in {}\n", file.display(), folder.display()));
        } else {
            let view = show::View::open(file, arguments.rows)?;
            print(out, &if arguments.json { format!("{:#}\n", view.json()) } else { view.text() });
        }
    }
    Ok(Exit::Done)
}

/// Verifies everything the files were made from, each file once.
fn verify(arguments: &Arguments, out: &mut dyn Write) -> Result<Exit> {
    let mut verifier = Verifier::default();
    for file in &arguments.files {
        verifier.artifact(file)?;
    }
    let findings = verifier.findings();
    let faults: Vec<&Finding> = findings.iter().filter(|finding| finding.state != State::Same).collect();
    if arguments.json {
        print(out, &format!("{:#}\n", Value::from_iter(findings.iter().map(Finding::json))));
    } else {
        for fault in &faults {
            print(out, &format!("{fault}\n"));
        }
        print(out, &format!("{} digests verified, {} not as recorded\n", findings.len(), faults.len()));
    }
    Ok(if faults.is_empty() { Exit::Done } else { Exit::Input })
}

/// Writes the first `rows` images of a sample table as `ID-CLASS.png`, and says how many there were.
fn extract(file: &Path, folder: &Path, rows: usize) -> Result<usize> {
    let mut reader = Reader::<SampleRow>::open(file)?;
    let classes = reader.provenance().facts.get("classes").cloned().unwrap_or(json!([]));
    let mut written = 0;
    while let Some(batch) = reader.next().filter(|_| written < rows) {
        for row in batch?.iter().take(rows - written) {
            let class = classes[row.label as usize].as_str().map_or_else(|| row.label.to_string(), plain);
            write_atomic(&folder.join(format!("{:05}-{class}.png", row.id)), &row.png)?;
            written += 1;
        }
    }
    Ok(written)
}

/// A text as part of a file name.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect()
}

/// Prints; that nobody reads any more (`inspect ... | head`) is no error.
fn print(out: &mut dyn Write, text: &str) {
    let _ = out.write_all(text.as_bytes());
}
