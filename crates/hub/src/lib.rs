//! Files of the Hugging Face hub: their names, and where the hub's cache on this machine has them.
//!
//! Nothing here reaches a network; the program `fetch` does. The cache is laid out as Python's `huggingface_hub` does it:
//! `<kind>--<owner>--<name>/` holds `refs/<branch>` (a commit), `snapshots/<commit>/<path>` (a link) and
//! `blobs/<digest>` (what it leads to). What is found there is verified before it is used, and never deleted.

mod cache;
mod name;

use std::{
    fmt::Write as _,
    fs::File as Opened,
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

pub use cache::Cache;
pub use name::{File, Kind, NoFile};

/// A file found, and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is, in the cache.
    pub path: PathBuf,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// Why there is no file; the text names the file and the mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The cache does not hold it.
    #[error("{file}: not in the cache {}: run make, which fetches it, or {}", cache.display(), file.command())]
    Missing {
        /// The file.
        file: Box<File>,
        /// The cache's folder.
        cache: PathBuf,
    },
    /// What is there is not what it should be, or cannot be known to be.
    #[error("{0}")]
    Unfit(String),
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256(path: &Path) -> io::Result<String> {
    let mut file = Opened::open(path)?;
    let mut state = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => state.update(&buffer[..n]),
        }
    }
    Ok(hexadecimal(&state.finalize()))
}

/// SHA-256 of a text, in hexadecimal.
#[must_use]
pub fn digest(text: &str) -> String {
    hexadecimal(&Sha256::digest(text))
}

/// The first eight digits of a text's SHA-256: enough to tell the files of a plan apart.
#[must_use]
pub fn short(text: &str) -> String {
    hexadecimal(&Sha256::digest(text)[..4])
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether a text is a SHA-256 in hexadecimal.
#[must_use]
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
