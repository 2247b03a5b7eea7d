//! Files of the Hugging Face hub: pinned, cached as Python's `huggingface_hub` does, and verified here.
//!
//! hf-hub keeps whatever the server sent, an error page too. So every file's SHA-256 is computed, whether downloaded or
//! from the cache, and compared with the digest asked for or, failing that, with the one the hub itself names. What
//! does not match is deleted from the cache, so that the next run downloads it again.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use hf_hub::{HFClient, HFError};

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Weights.
    Model,
    /// Data.
    Dataset,
}

/// A file asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File<'a> {
    /// What the repository holds.
    pub kind: Kind,
    /// `owner/name`.
    pub repo: &'a str,
    /// A commit, branch or tag.
    pub revision: &'a str,
    /// Path in the repository.
    pub path: &'a str,
    /// What the SHA-256 must be, in hexadecimal; none takes the hub's word.
    pub sha256: Option<&'a str>,
}

impl fmt::Display for File<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let datasets = if self.kind == Kind::Dataset { "datasets/" } else { "" };
        write!(f, "hf://{datasets}{}@{}/{}", self.repo, self.revision, self.path)
    }
}

/// A file found, and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Where it is, in the cache.
    pub path: PathBuf,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// Why there is no file; the text names the file and the mend.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// Where files are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hub {
    /// The server; none takes `HF_ENDPOINT`, else the public hub.
    pub endpoint: Option<String>,
    /// The cache; none takes `HF_HUB_CACHE`, else the folder `hub` below `HF_HOME`, else that of the user.
    pub cache: Option<PathBuf>,
    /// Whether to use the cache alone.
    pub offline: bool,
}

impl Hub {
    /// The hub as the environment names it; `HF_HUB_OFFLINE` (1, true, yes, on) means the cache alone.
    #[must_use]
    pub fn from_env() -> Self {
        let offline = std::env::var("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_lowercase();
        Self { offline: ["1", "true", "yes", "on"].contains(&offline.as_str()), ..Self::default() }
    }

    /// Finds a file in the cache or downloads it, and verifies it.
    ///
    /// # Errors
    /// If there is no network, no access, no such file, or if its digest is another than asked for.
    pub fn fetch(&self, file: &File<'_>) -> Result<Fetched, Error> {
        let path = self.locate(file).map_err(|error| Error(format!("{file}: {}", explain(&error))))?;
        let sha256 = artifact::sha256(&path).map_err(|error| Error(error.to_string()))?;
        let stated = stated(&path);
        let Some(wanted) = file.sha256.map(str::to_ascii_lowercase).or_else(|| stated.clone()) else {
            self.forget(&path);
            return Err(Error(format!(
                "{file}: the hub states no SHA-256 of it: set `sha256` (what came has {sha256})"
            )));
        };
        if sha256 == wanted {
            return Ok(Fetched { path, sha256 });
        }
        if stated.as_ref() == Some(&sha256) {
            return Err(Error(format!("{file}: the hub's file has SHA-256 {sha256}, not {wanted}: correct `sha256`")));
        }
        let size = fs::metadata(&path).map_or(0, |file| file.len());
        let mend = if self.offline { "unset HF_HUB_OFFLINE and" } else { "it was deleted:" };
        self.forget(&path);
        Err(Error(format!(
            "{file}: what came ({size} bytes) has SHA-256 {sha256}, not {wanted}; {mend} run again; if that does not \
             help, check `sha256`, and your access to the repository (HF_TOKEN)"
        )))
    }

    fn locate(&self, file: &File<'_>) -> Result<PathBuf, HFError> {
        let mut client = HFClient::builder();
        if let Some(endpoint) = &self.endpoint {
            client = client.endpoint(endpoint);
        }
        if let Some(cache) = &self.cache {
            client = client.cache_dir(cache);
        }
        let client = client.build_sync()?;
        let (owner, name) = hf_hub::split_id(file.repo);
        macro_rules! download {
            ($repo:expr) => {
                $repo.download_file().filename(file.path).revision(file.revision).local_files_only(self.offline).send()
            };
        }
        match file.kind {
            Kind::Model => download!(client.model(owner, name)),
            Kind::Dataset => download!(client.dataset(owner, name)),
        }
    }

    /// Removes a file from the cache, its blob and the link to it. Offline nothing could replace it, so it stays.
    fn forget(&self, path: &Path) {
        if !self.offline {
            if let Ok(blob) = fs::canonicalize(path) {
                let _ = fs::remove_file(blob);
            }
            let _ = fs::remove_file(path);
        }
    }
}

/// The SHA-256 that the hub states for large files: the name of the blob that the cache links to.
fn stated(path: &Path) -> Option<String> {
    let blob = fs::canonicalize(path).ok()?;
    let name = blob.file_name()?.to_str()?;
    (name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())).then(|| name.to_ascii_lowercase())
}

/// The cause and the mend in words.
fn explain(error: &HFError) -> String {
    match error {
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } => {
            format!("no access: accept the repository's terms on the hub and set HF_TOKEN ({error})")
        }
        HFError::RepoNotFound { .. } => "no such repository: check `repo`, or set HF_TOKEN if it is private".into(),
        HFError::RevisionNotFound { .. } => "no such revision: check `revision`".into(),
        HFError::EntryNotFound { .. } => "no such repository, revision or file: check all three".into(),
        HFError::LocalEntryNotFound { .. } => "not in the cache: unset HF_HUB_OFFLINE, or name a local file".into(),
        HFError::Request { .. } => format!("no answer: check the network and HF_ENDPOINT ({error})"),
        _ => error.to_string(),
    }
}
