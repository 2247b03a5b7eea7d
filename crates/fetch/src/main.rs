//! Fetches a file of the Hugging Face hub into its cache: the one program that reaches a network.
//!
//! Pipelines call it where the cache lacks a file; the stages look into the cache alone.

mod download;
mod lock;

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use artifact::{Exit, caught, write_atomic};
use clap::Parser;
use download::Remote;
use hub::{Cache, File, Found};
use serde_json::json;

/// Fetches a file of the Hugging Face hub into its cache, verifies it, and says where it is.
///
/// A file that is there is verified and not fetched again. HF_HUB_CACHE and HF_HOME name the cache, HF_TOKEN opens what is
/// gated, HF_ENDPOINT names another hub; HF_HUB_OFFLINE=1 or OFFLINE=1 forbids to use the network.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Exit codes:
  0  done
  1  failed
  2  the command line is wrong
  3  the file cannot be had, or is not what it should be"
)]
struct Arguments {
    /// The file: hf://owner/name@revision/path, or hf://datasets/owner/name@revision/path.
    #[arg(value_name = "FILE")]
    file: File,
    /// What its SHA-256 must be, in hexadecimal [default: what the hub states].
    #[arg(long, value_name = "HEX", value_parser = digest)]
    sha256: Option<String>,
    /// Where to write a receipt: which file it is, its SHA-256 and its size, as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn digest(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is no SHA-256; write 64 hexadecimal digits");
    hub::is_sha256(text).then(|| text.to_ascii_lowercase()).ok_or_else(wrong)
}

fn main() -> ExitCode {
    let Arguments { file, sha256, out } = Arguments::parse();
    let file = File { sha256, ..file };
    let (exit, error) = match caught(|| run(&file, out.as_deref())) {
        Ok(Ok(())) => return Exit::Done.into(),
        Ok(Err(error)) => (if error.is::<hub::Error>() { Exit::Input } else { Exit::Failed }, error),
        Err(panic) => (Exit::Failed, panic.into()),
    };
    say(&format!("{error:#}"));
    exit.into()
}

fn run(file: &File, receipt: Option<&Path>) -> anyhow::Result<()> {
    let remote = Remote { cache: Cache::from_env(), offline: offline() };
    let found = remote.fetch(file, &say)?;
    if let Some(path) = receipt {
        write_atomic(path, receipt_of(file, &found)?.as_bytes())?;
    }
    let _ = writeln!(io::stdout(), "{}", found.path.display());
    Ok(())
}

fn receipt_of(file: &File, found: &Found) -> io::Result<String> {
    let receipt = json!({
        "kind": file.kind.plural().trim_end_matches('s'),
        "repo": file.repo,
        "revision": file.revision,
        "path": file.path,
        "sha256": found.sha256,
        "size": fs::metadata(&found.path)?.len(),
    });
    Ok(format!("{receipt:#}\n"))
}

/// The variable that forbids to use the network, if one does: those of `huggingface_hub`, and one as short as Make's.
fn offline() -> Option<&'static str> {
    let set = |name: &&str| {
        let value = std::env::var(name).unwrap_or_default().to_ascii_lowercase();
        ["1", "true", "yes", "on"].contains(&value.as_str())
    };
    ["OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(set)
}

fn say(text: &str) {
    let _ = writeln!(io::stderr(), "fetch: {text}");
}
