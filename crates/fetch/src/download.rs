//! From the hub into its cache.
//!
//! hf-hub keeps whatever the server sent, an error page too. So what it has downloaded is verified, and deleted where it
//! is not what the hub states. Nothing else is ever deleted.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use hf_hub::{HFClient, HFError};
use hub::{Cache, Error, File, Found, Kind};

use crate::lock::{Lock, unwritable};

/// The hub that `HF_ENDPOINT` names, else the public one, and the cache before it.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where files are put.
    pub cache: Cache,
    /// The variable that forbids to use the network, if one does.
    pub offline: Option<&'static str>,
}

impl Remote {
    /// Finds a file in the cache or downloads it, and verifies it; `say` is told what takes time.
    ///
    /// # Errors
    /// If there is no network, no access, no such file, if the cache cannot be written, or if the file's digest is another
    /// than asked for.
    pub fn fetch(&self, file: &File, say: &dyn Fn(&str)) -> Result<Found, Error> {
        if let Some(outcome) = self.cached(file) {
            return outcome;
        }
        let cache = self.cache.root.display();
        if let Some(variable) = self.offline {
            let (command, folder) = (file.command(), self.cache.folder(file));
            return Err(Error::Unfit(format!(
                "{file}: not in the cache {cache}, and {variable} forbids to use the network: unset it, or run {command} \
                 where there is one and copy {} from there",
                folder.display()
            )));
        }
        let _lock = Lock::take(&self.cache, file, say)?;
        // Whoever held the lock may have brought it.
        if let Some(outcome) = self.cached(file) {
            return outcome;
        }
        say(&format!("{file}: downloading into {cache}"));
        let before = self.blobs(file);
        // Of a link that leads nowhere the hub would be told that the file is here, and send nothing.
        if let Some(link) = self.cache.place(file).filter(|path| path.is_symlink()) {
            let _ = fs::remove_file(link);
        }
        loop {
            match self.download(file) {
                Ok(path) => return self.verify(file, path, &before),
                // Its own lock, which Python's programs take too, gives up after 10 seconds.
                Err(HFError::CacheLockTimeout { path }) => {
                    Lock::wait_for(&path, file, say);
                    if let Some(outcome) = self.cached(file) {
                        return outcome;
                    }
                }
                Err(HFError::Io(error)) => return Err(unwritable(&self.cache, file, &error)),
                Err(error) => return Err(Error::Unfit(format!("{file}: {}", explain(&error)))),
            }
        }
    }

    /// What the cache has of the file, if anything.
    fn cached(&self, file: &File) -> Option<Result<Found, Error>> {
        match self.cache.find(file) {
            Err(Error::Missing { .. }) => None,
            outcome => Some(outcome),
        }
    }

    fn download(&self, file: &File) -> Result<PathBuf, HFError> {
        let client = HFClient::builder().cache_dir(&self.cache.root).build_sync()?;
        let (owner, name) = hf_hub::split_id(&file.repo);
        macro_rules! download {
            ($repo:expr) => {
                $repo.download_file().filename(&file.path).revision(&file.revision).send()
            };
        }
        match file.kind {
            Kind::Model => download!(client.model(owner, name)),
            Kind::Dataset => download!(client.dataset(owner, name)),
        }
    }

    /// The blobs of a file's repository.
    fn blobs(&self, file: &File) -> BTreeSet<OsString> {
        let entries = fs::read_dir(self.cache.folder(file).join("blobs"));
        entries.into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
    }

    /// Verifies what was just downloaded; where it differs, it is deleted unless its blob was there `before`.
    fn verify(&self, file: &File, path: PathBuf, before: &BTreeSet<OsString>) -> Result<Found, Error> {
        let unread = |error| Error::Unfit(format!("{}: {error}: check its permissions", path.display()));
        let sha256 = hub::sha256(&path).map_err(unread)?;
        let stated = self.cache.stated(file, &path, &sha256);
        let Some(wanted) = file.sha256.as_ref().map(|digest| digest.to_ascii_lowercase()).or(stated.clone()) else {
            return Err(Error::Unfit(format!(
                "{file}: the hub states no SHA-256 of it: set `sha256` (what came has {sha256})"
            )));
        };
        if sha256 == wanted {
            return Ok(Found { path, sha256 });
        }
        if stated.as_ref() == Some(&sha256) {
            return Err(Error::Unfit(format!(
                "{file}: the hub's file has SHA-256 {sha256}, not {wanted}: correct `sha256`"
            )));
        }
        let size = fs::metadata(&path).map_or(0, |file| file.len());
        let blob = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        let text = format!("{file}: what came ({size} bytes) has SHA-256 {sha256}, not {wanted}");
        let is_new = blob.file_name().is_some_and(|name| !before.contains(name));
        let mend = if is_new {
            forget(&path, &blob);
            "it was deleted: run again; if that does not help, check `sha256`, and your access to the repository \
             (HF_TOKEN)"
                .to_owned()
        } else {
            format!("it was in the cache before, as {}: move that away and run again", blob.display())
        };
        Err(Error::Unfit(format!("{text}; {mend}")))
    }
}

/// Removes what was just downloaded, and the link to it.
fn forget(path: &Path, blob: &Path) {
    let _ = fs::remove_file(blob);
    let _ = fs::remove_file(path);
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
        HFError::Request { .. } => format!("no answer: check the network and HF_ENDPOINT ({error})"),
        _ => error.to_string(),
    }
}
