//! Whether the files an artifact was made from are still what they were.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{Error, FinetuneRow, Result, Row, provenance, read, sha256};

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It has the digest that was recorded.
    Same,
    /// It has another digest.
    Differs {
        /// The digest it has.
        found: String,
    },
    /// It cannot be read.
    Unreadable {
        /// Why.
        reason: String,
    },
}

/// A file, and what became of it since another was made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// The artifact that recorded its digest.
    pub by: PathBuf,
    /// The digest that was recorded.
    pub recorded: String,
    /// What became of it.
    pub state: State,
}

impl Finding {
    /// As JSON: `file`, `by`, `recorded`, `state` (`same`, `differs`, `unreadable`) and its detail.
    #[must_use]
    pub fn json(&self) -> Value {
        let (state, detail) = match &self.state {
            State::Same => ("same", Value::Null),
            State::Differs { found } => ("differs", json!(found)),
            State::Unreadable { reason } => ("unreadable", json!(reason)),
        };
        json!({"file": self.file, "by": self.by, "recorded": self.recorded, "state": state, "detail": detail})
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, by) = (self.file.display(), self.by.display());
        match &self.state {
            State::Same => write!(f, "{file}: as recorded by {by}"),
            State::Differs { found } => write!(
                f,
                "{file}: changed since {by} was made from it (sha256 {found}, recorded {}); make {by} again",
                self.recorded
            ),
            State::Unreadable { reason } => write!(f, "{reason} ({by} was made from it)"),
        }
    }
}

/// Walks from artifacts to everything they were made from.
#[derive(Debug, Default)]
pub struct Verifier {
    findings: Vec<Finding>,
    walked: BTreeSet<PathBuf>,
    digests: BTreeMap<PathBuf, Result<String, String>>,
}

impl Verifier {
    /// What was found so far: one finding per file and artifact that recorded it.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Verifies the inputs an artifact names, the weights a `finetune` table names, and in turn all they name.
    ///
    /// # Errors
    /// If the artifact itself cannot be read.
    pub fn artifact(&mut self, path: &Path) -> Result<()> {
        if !self.walked.insert(path.canonicalize().unwrap_or_else(|_| path.to_owned())) {
            return Ok(());
        }
        let provenance = provenance(path)?;
        for (input, recorded) in &provenance.inputs {
            let input = locate(input, path);
            self.check(&input, path, recorded);
            match self.artifact(&input) {
                // What cannot be read is found already; other files (images, weights) end the chain.
                Ok(()) | Err(_) => (),
            }
        }
        if provenance.kind == FinetuneRow::KIND {
            for row in read::<FinetuneRow>(path)?.1 {
                if let (Some(weights), Some(recorded)) = (&row.weights, &row.sha256) {
                    self.check(&path.with_file_name(weights), path, recorded);
                }
            }
        }
        Ok(())
    }

    fn check(&mut self, file: &Path, by: &Path, recorded: &str) {
        let digest = self.digests.entry(file.to_owned());
        let state = match digest.or_insert_with(|| sha256(file).map_err(|error| chain(&error))) {
            Ok(found) if found == recorded => State::Same,
            Ok(found) => State::Differs { found: found.clone() },
            Err(reason) => State::Unreadable { reason: reason.clone() },
        };
        self.findings.push(Finding { file: file.to_owned(), by: by.to_owned(), recorded: recorded.to_owned(), state });
    }
}

/// An error and its causes.
fn chain(error: &Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Where an input is: its path as recorded, from the folder above the artifact where the stage ran, from here, or from
/// the folder of local data that `DATA_ROOT` names.
fn locate(input: &str, artifact: &Path) -> PathBuf {
    let artifact = artifact.canonicalize().unwrap_or_else(|_| artifact.to_owned());
    let above = artifact.ancestors().skip(1).map(|folder| folder.join(input));
    let local = std::env::var_os("DATA_ROOT").filter(|root| !root.is_empty()).map(|root| Path::new(&root).join(input));
    let found = above.chain(local).find(|path| path.exists()).unwrap_or_else(|| PathBuf::from(input));
    // Shown as it was recorded where that is the same file.
    let same = matches!((found.canonicalize(), Path::new(input).canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same { PathBuf::from(input) } else { found }
}
