//! Files of a dataset on the Hugging Face hub, as the Parquet reader wants them.

use std::path::PathBuf;

use hub::{Cache, Kind};
use stage::Unfit;

use crate::HubFile;

/// Finds the files of a dataset in the hub's cache: path and name of each.
pub(crate) fn find(repo: &str, revision: &str, files: &[HubFile]) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let cache = Cache::from_env();
    let found = files.iter().map(|file| {
        let wanted = file.of(repo, revision);
        let found = cache.find(&wanted).map_err(|error| Unfit(error.to_string()))?;
        Ok((found.path, wanted.to_string()))
    });
    found.collect()
}

impl HubFile {
    /// The file of this dataset at this revision.
    #[must_use]
    pub fn of(&self, repo: &str, revision: &str) -> hub::File {
        let (repo, revision) = (repo.to_owned(), revision.to_owned());
        hub::File { kind: Kind::Dataset, repo, revision, path: self.path.clone(), sha256: self.sha256.clone() }
    }
}
