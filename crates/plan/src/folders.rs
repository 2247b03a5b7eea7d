//! Folders of images: whether they still hold what samples were made from.
//!
//! Make cannot see into a folder, so the planner looks, at every `make`: names, sizes and times, and the files themselves
//! only where these are new. A sample of other images is then made again.

use std::path::Path;

use stage::Stage as _;
use stage_sample::{Params, Sample};

use crate::Job;

/// Whether a job makes a sample of a folder.
#[must_use]
pub fn reads_one(job: &Job) -> bool {
    job.stage == Sample::NAME && job.params["source"]["name"] == "folder"
}

/// Why the table that a job has made of a folder must be made again, if it must.
#[must_use]
pub fn stale(job: &Job, table: &Path) -> Option<String> {
    if !reads_one(job) || !table.exists() {
        return None;
    }
    let params: Params = serde_json::from_value(job.params.clone()).ok()?;
    stage_sample::stale(&params, job.files.first()?, table, &say)
}

#[expect(clippy::print_stderr, reason = "what takes time is told")]
fn say(text: &str) {
    eprintln!("plan: {text}");
}
