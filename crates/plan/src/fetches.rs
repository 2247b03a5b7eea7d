//! Files of the hub: which jobs need them, and the rules that fetch what this machine's cache lacks.
//!
//! A file that is missing is a receipt below `data/fetch`, an order-only prerequisite of the jobs that read it, made by the
//! program `fetch`. The receipts are secondary to Make: one that is missing is made only where a table above it must be made
//! anyway, and once however many jobs ask for it. Of a file that is in the cache Make hears nothing.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use hub::{Cache, File};
use serde_json::json;
use stage::Stage as _;
use stage_finetune::{Finetune, Init};
use stage_sample::{Sample, Source};

use crate::{
    Job,
    make::{MAKE, SHELL},
};

/// The files of the hub that a job reads, in order.
#[must_use]
pub fn wanted(job: &Job) -> Vec<File> {
    match job.stage {
        Sample::NAME => match serde_json::from_value(job.params["source"].clone()) {
            Ok(Source::Hub { repo, revision, files, .. }) => {
                files.iter().map(|file| file.of(&repo, &revision)).collect()
            }
            _ => Vec::new(),
        },
        Finetune::NAME => {
            let init: Option<Init> = serde_json::from_value(job.params["init"].clone()).ok();
            init.and_then(|init| init.hub_file()).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// Those of them that the cache lacks.
#[must_use]
pub fn missing(job: &Job, cache: &Cache) -> Vec<File> {
    wanted(job).into_iter().filter(|file| cache.locate(file).is_none()).collect()
}

/// Where the receipt of a file goes.
#[must_use]
pub fn receipt(file: &File) -> String {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let slug: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let digest = file.sha256.as_ref().map(|digest| digest.to_ascii_lowercase());
    format!("data/fetch/{slug}--{}.json", hub::short(&json!([file.to_string(), digest]).to_string()))
}

/// The rules of all receipts, and a line for each file that is there.
pub(crate) fn rules(jobs: &[Job], cache: &Cache) -> String {
    let mut text = String::new();
    for file in all(jobs) {
        let receipt = receipt(&file);
        let done = match cache.locate(&file) {
            Some(_) => writeln!(text, "\n# {receipt}: in the cache"),
            None => {
                let command = command(MAKE.bin, &file).replace('$', "$$").replace(['\n', '\r'], " ");
                // The program's folder is a variable of Make.
                let command = command.replacen("$$(BIN)", "$(BIN)", 1);
                writeln!(text, "\n.SECONDARY: {receipt}\n{receipt}: | fetch\n\t{command}")
            }
        };
        done.expect("a string takes all");
    }
    text
}

/// The commands that fetch what these jobs need, for a shell, whether this machine has it or not.
pub(crate) fn commands(jobs: &[&Job]) -> Vec<String> {
    all(jobs.iter().copied()).iter().map(|file| command(SHELL.bin, file)).collect()
}

/// Deletes the receipts of files that have gone from the cache, so that Make fetches them again.
pub fn forget(jobs: &[Job], cache: &Cache) {
    for file in all(jobs).iter().filter(|file| cache.locate(file).is_none()) {
        let _ = fs::remove_file(receipt(file));
    }
}

fn all<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> BTreeSet<File> {
    jobs.into_iter().flat_map(wanted).collect()
}

fn command(bin: &str, file: &File) -> String {
    format!("{bin}fetch --out {} {}", receipt(file), file.arguments())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::Cost;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn job(stage: &'static str, params: Value) -> Job {
        Job {
            stage,
            address: format!("{stage}/x--1"),
            params,
            inputs: vec![],
            files: vec![],
            parts: 1,
            cost: Cost::default(),
            load: None,
        }
    }

    fn jobs() -> [Job; 3] {
        let source = json!({"name": "hub", "repo": "a/b", "revision": COMMIT, "files": [{"path": "x.parquet"}]});
        let init = json!({"name": "hub", "repo": "a/b", "revision": "main", "file": "it's $1.pth"});
        let drawn = json!({"source": {"name": "embedded", "split": "test", "images": 4}});
        [job("sample", json!({"source": source})), job("finetune", json!({"init": init})), job("sample", drawn)]
    }

    #[test]
    fn what_the_cache_lacks_has_a_rule_and_the_rest_a_line() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache { root: root.path().to_owned() };
        let jobs = jobs();
        let files: Vec<File> = jobs.iter().flat_map(wanted).collect();
        let names: Vec<String> = files.iter().map(File::to_string).collect();
        assert_eq!(names, [&format!("hf://datasets/a/b@{COMMIT}/x.parquet"), "hf://a/b@main/it's $1.pth"]);
        let text = rules(&jobs, &cache);
        let receipts: Vec<String> = files.iter().map(receipt).collect();
        for receipt in &receipts {
            assert!(
                text.contains(&format!(".SECONDARY: {receipt}\n{receipt}: | fetch\n\t$(BIN)/fetch --out")),
                "{text}"
            );
        }
        assert!(text.contains(r"'hf://a/b@main/it'\''s $$1.pth'"), "{text}");
        assert!(receipts[1].starts_with("data/fetch/it-s--1-pth--"), "{receipts:?}");
        let place = cache.place(&files[0]).unwrap();
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, "").unwrap();
        let text = rules(&jobs, &cache);
        assert!(text.contains(&format!("# {}: in the cache\n", receipts[0])), "{text}");
        assert!(!text.contains("x.parquet\n") && missing(&jobs[0], &cache).is_empty());
        assert_eq!(commands(&jobs.iter().collect::<Vec<_>>()).len(), 2);
    }

    #[test]
    fn another_digest_is_another_receipt() {
        let file = wanted(&jobs()[0]).remove(0);
        let pinned = File { sha256: Some("A".repeat(64)), ..file.clone() };
        let same = File { sha256: Some("a".repeat(64)), ..file.clone() };
        assert_ne!(receipt(&file), receipt(&pinned));
        assert_eq!(receipt(&same), receipt(&pinned));
    }
}
