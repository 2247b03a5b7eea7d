//! Whether the files an artifact was made from are still what they were.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{Error, FinetuneRow, Manifest, Provenance, Result, Row, SampleRow, provenance, read, sha256};

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
                "{file}: changed since {by} was made from it (sha256 {found}, recorded {}); put the old one back, or make \
                 {by} again",
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
        let folders = provenance.folders();
        for (input, recorded) in &provenance.inputs {
            let from = Origin { input, by: path, recorded };
            if let Some(manifest) = folders.get(input) {
                self.folder(&from, manifest);
            } else if let Ok(file) = input.parse::<hub::File>() {
                self.cached(&from, &file);
            } else if is_source(&provenance, input) {
                self.source(&from);
            } else {
                let table = locate(input, path).unwrap_or_else(|| input.into());
                self.check(&table, path, recorded);
                match self.artifact(&table) {
                    // What cannot be read is found already.
                    Ok(()) | Err(_) => (),
                }
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

    /// The files of a folder, each by itself.
    fn folder(&mut self, from: &Origin<'_>, manifest: &Manifest) {
        let Some(folder) = locate_source(from.input, from.by) else { return self.lost(from, ABSENT) };
        for entry in &manifest.entries {
            self.present(&folder.join(&entry.name), from.by, &entry.sha256);
        }
    }

    /// A file of the hub, where the hub's cache has it.
    fn cached(&mut self, from: &Origin<'_>, file: &hub::File) {
        let cache = hub::Cache::from_env();
        match cache.locate(file) {
            Some(path) => self.check(&path, from.by, from.recorded),
            None => self.lost(
                from,
                &format!("not in the cache {} any more; {} brings it back", cache.root.display(), file.command()),
            ),
        }
    }

    /// A local file of images or weights.
    fn source(&mut self, from: &Origin<'_>) {
        let Some(file) = locate_source(from.input, from.by) else { return self.lost(from, ABSENT) };
        if file.is_dir() {
            let reason = "a folder of which an earlier version recorded no list of files; delete the table, and make it \
                          again to have one";
            return self.lost(from, reason);
        }
        self.present(&file, from.by, from.recorded);
    }

    /// Checks a source that has been found; if it goes at that moment, or is in a folder that has, it is missing.
    fn present(&mut self, file: &Path, by: &Path, recorded: &str) {
        if file.exists() {
            self.check(file, by, recorded);
        } else {
            let input = file.display().to_string();
            self.lost(&Origin { input: &input, by, recorded }, "missing; put it back, or make the table again");
        }
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

    fn lost(&mut self, from: &Origin<'_>, reason: &str) {
        let state = State::Unreadable { reason: format!("{}: {reason}", from.input) };
        let (file, by) = (from.input.into(), from.by.to_owned());
        self.findings.push(Finding { file, by, recorded: from.recorded.to_owned(), state });
    }
}

/// What an artifact says of one input.
struct Origin<'a> {
    input: &'a str,
    by: &'a Path,
    recorded: &'a str,
}

/// What to do about a source that is nowhere.
const ABSENT: &str = "no such file or folder; set DATA_ROOT to what it was below, or put it back";

/// Whether an input is images or weights from outside, and not a table of an earlier stage.
fn is_source(from: &Provenance, input: &str) -> bool {
    from.kind == SampleRow::KIND || (from.kind == FinetuneRow::KIND && !input.ends_with(".parquet"))
}

/// An error and its causes.
fn chain(error: &Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Where a table is: its path as recorded, from the folder above the artifact where the stage ran, or from here.
fn locate(input: &str, artifact: &Path) -> Option<PathBuf> {
    let artifact = artifact.canonicalize().unwrap_or_else(|_| artifact.to_owned());
    let above = artifact.ancestors().skip(1).map(|folder| folder.join(input));
    let found = above.chain([input.into()]).find(|path| path.exists())?;
    // Shown as it was recorded where that is the same file.
    let same = matches!((found.canonicalize(), Path::new(input).canonicalize()), (Ok(a), Ok(b)) if a == b);
    Some(if same { PathBuf::from(input) } else { found })
}

/// Where images or weights from outside are: below the folder that `DATA_ROOT` names, as the stage looked for them, else
/// where a table would be.
fn locate_source(input: &str, artifact: &Path) -> Option<PathBuf> {
    let root = std::env::var_os("DATA_ROOT").filter(|root| !root.is_empty());
    let local = root.map(|root| Path::new(&root).join(input)).filter(|path| path.exists());
    local.or_else(|| locate(input, artifact))
}
