//! What can go wrong with a file.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::Mismatch;

/// Result of reading or writing an artifact.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong with a file; the text names the file and the mend, the source is the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("{path}: no such file; check the path, or let make write it")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The operating system does not let us read it.
    #[error("{path}: cannot be read; check what it is and its permissions")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not Parquet, cut short, or with bytes changed.
    #[error("{path}: not a whole Parquet file; if a stage wrote it, delete it and make it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader stumbled over.
        source: Cause,
    },
    /// Parquet, but not written by a stage.
    #[error("{path}: holds no provenance, so no stage wrote it; name a table below data/")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// An artifact of another kind than asked for.
    #[error("{path}: is a `{found}` table; name a `{wanted}` table instead")]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// Its kind.
        found: String,
        /// The kind asked for.
        wanted: String,
    },
    /// An artifact whose columns are not those of its kind.
    #[error("{path}: written by another version of this program; delete it and make it again")]
    Columns {
        /// The file.
        path: PathBuf,
        /// The first column that does not fit.
        source: Mismatch,
    },
    /// The file cannot be written.
    #[error("{path}: cannot be written; {mend}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What to do.
        mend: &'static str,
        /// Why.
        source: Cause,
    },
}

impl Error {
    /// Whether the fault lies with a file that was to be read.
    #[must_use]
    pub const fn is_input(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }

    /// That a file cannot be read, and why.
    #[must_use]
    pub fn reading(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::NotFound {
            Self::Missing { path }
        } else {
            Self::Unreadable { path, source }
        }
    }

    pub(crate) fn damaged(path: &Path, source: impl Into<Cause>) -> Self {
        Self::Damaged { path: path.to_owned(), source: source.into() }
    }

    pub(crate) fn writing(path: &Path, source: impl Into<Cause>) -> Self {
        let source = source.into();
        let mend = match io_kind(source.as_ref()) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                "the disk is full: free some space and run again"
            }
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                "its folder does not let you write: change its permissions or name another"
            }
            Some(io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists) => {
                "a file stands where a folder is needed: move it away or name another place"
            }
            Some(io::ErrorKind::IsADirectory | io::ErrorKind::DirectoryNotEmpty) => {
                "a folder stands in its place: move it away or name another file"
            }
            _ => "check its folder and run again",
        };
        Self::Write { path: path.to_owned(), mend, source }
    }
}

/// The kind of the first operating system's error in a chain.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return Some(error.kind());
    }
    io_kind(error.source()?)
}
