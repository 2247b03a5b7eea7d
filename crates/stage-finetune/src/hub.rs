//! Weights from the Hugging Face hub.

use std::path::PathBuf;

use hf_hub::HFClient;
use stage::{Unfit, Usage};

/// The file `file` of the model `repo` (`owner/name`) at `revision`, from the cache or the network.
///
/// `HF_HUB_OFFLINE` (any value but 0) forbids the network. The caller checks the digest: a cache can hold an error page.
pub(crate) fn model(repo: &str, revision: &str, file: &str) -> anyhow::Result<PathBuf> {
    let Some((owner, name)) = repo.split_once('/') else {
        return Err(Usage(format!("init.repo: `{repo}` is no repository; write owner/name")).into());
    };
    let offline = std::env::var_os("HF_HUB_OFFLINE").is_some_and(|value| value != "0" && !value.is_empty());
    let fault = |error: hf_hub::HFError| {
        let mend = if offline { "unset HF_HUB_OFFLINE" } else { "check the name, the revision and the network" };
        Unfit(format!("{repo}@{revision}: {file}: {error}; {mend}"))
    };
    let client = HFClient::builder().build_sync().map_err(fault)?;
    let model = client.model(owner, name);
    let download = model.download_file().filename(file).revision(revision).local_files_only(offline);
    Ok(download.send().map_err(fault)?)
}
