//! Files of a dataset on the Hugging Face hub, as the Parquet reader wants them.

use std::path::PathBuf;

use hub::{Hub, Kind};
use stage::Unfit;

use crate::HubFile;

/// Downloads (or finds in the cache) the files of a dataset: path and name of each.
pub(crate) fn fetch(repo: &str, revision: &str, files: &[HubFile]) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let hub = Hub::from_env();
    let fetched = files.iter().map(|file| {
        let wanted =
            hub::File { kind: Kind::Dataset, repo, revision, path: &file.path, sha256: file.sha256.as_deref() };
        let fetched = hub.fetch(&wanted).map_err(|error| Unfit(error.to_string()))?;
        Ok((fetched.path, wanted.to_string()))
    });
    fetched.collect()
}
