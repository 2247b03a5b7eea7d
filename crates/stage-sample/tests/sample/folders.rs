//! Folders of images: what is recorded of them, and when a sample of one is stale.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use artifact::{SampleRow, Shard, Writer};
use stage_sample::{Params, stale};

use crate::{EMBEDDED, sample};

const JSON: &str = r#"{"source": {"name": "folder", "path": "set"}}"#;
const TABLE: &str = "part-0-of-1.parquet";

/// A folder `set` of four images in two classes, and the sample of it.
fn made() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let rows = sample(folder.path(), EMBEDDED, Shard::WHOLE).unwrap();
    for (name, row) in ["set/a/1.png", "set/a/2.png", "set/b/1 x.png", "set/b/2.png"].iter().zip(&rows) {
        fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        fs::write(folder.path().join(name), &row.png).unwrap();
    }
    sample(folder.path(), JSON, Shard::WHOLE).unwrap();
    folder
}

fn reason(folder: &Path, json: &str) -> Option<String> {
    let params: Params = serde_json::from_str(json).unwrap();
    stale(&params, &folder.join("set"), &folder.join(TABLE), &|_| ())
}

fn touch(file: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    fs::File::options().append(true).open(file).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_manifest_is_recorded_and_its_digest_is_that_of_sha256sum() {
    let folder = made();
    let provenance = artifact::provenance(&folder.path().join(TABLE)).unwrap();
    let manifest = provenance.folders().remove("set").unwrap();
    let names: Vec<&str> = manifest.entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a/1.png", "a/2.png", "b/1 x.png", "b/2.png"]);
    for entry in &manifest.entries {
        let path = folder.path().join("set").join(&entry.name);
        assert_eq!(entry.sha256, artifact::sha256(&path).unwrap());
        assert_eq!(entry.size, fs::metadata(&path).unwrap().len());
    }
    let sums = std::process::Command::new("sha256sum").args(names).current_dir(folder.path().join("set")).output();
    let lines = folder.path().join("lines");
    fs::write(&lines, sums.unwrap().stdout).unwrap();
    assert_eq!(provenance.inputs, [("set".to_owned(), artifact::sha256(&lines).unwrap())].into());
}

#[test]
fn only_other_content_makes_a_sample_stale() {
    let folder = made();
    let (one, two) = (folder.path().join("set/a/1.png"), folder.path().join("set/b/2.png"));
    assert_eq!(reason(folder.path(), JSON), None);
    // Touched: read again, once, and still the same.
    touch(&one, 4_000_000_000);
    let seen = folder.path().join("part-0-of-1.seen");
    let before = fs::read_to_string(&seen).unwrap();
    assert_eq!(reason(folder.path(), JSON), None);
    let after = fs::read_to_string(&seen).unwrap();
    assert_ne!(before, after);
    // What was seen is believed where the file system says nothing new: else this would not pass for the same.
    let table = folder.path().join(TABLE);
    assert_eq!((reason(folder.path(), JSON), fs::read_to_string(&seen).unwrap()), (None, after));
    // Another image of the same size, put there with an old time.
    let original = fs::read(&two).unwrap();
    let mut other = original.clone();
    *other.last_mut().unwrap() ^= 1;
    let aside = folder.path().join("aside.png");
    fs::write(&aside, &other).unwrap();
    touch(&aside, 1_000_000_000);
    fs::rename(&aside, &two).unwrap();
    assert_eq!(reason(folder.path(), JSON).unwrap(), "set: changed: b/2.png");
    assert_eq!(reason(folder.path(), JSON).unwrap(), "set: changed: b/2.png", "as long as the table is old");
    fs::write(&two, &original).unwrap();
    assert_eq!(reason(folder.path(), JSON), None, "put back");
    // Without what was seen, everything is read.
    fs::remove_file(&seen).unwrap();
    assert_eq!(reason(folder.path(), JSON), None);
    assert!(seen.exists());
    // Others, fewer, and none.
    fs::write(folder.path().join("set/b/3.png"), &original).unwrap();
    fs::remove_file(&one).unwrap();
    assert_eq!(reason(folder.path(), JSON).unwrap(), "set: gone: a/1.png, new: b/3.png");
    fs::remove_file(folder.path().join("set/a/2.png")).unwrap();
    assert!(reason(folder.path(), JSON).unwrap().contains("no jpg, jpeg or png file"));
    fs::remove_dir_all(folder.path().join("set")).unwrap();
    assert!(reason(folder.path(), JSON).unwrap().contains("cannot be listed"));
    assert!(table.exists());
}

#[test]
fn only_the_images_that_were_kept_count() {
    let folder = made();
    let json = r#"{"source": {"name": "folder", "path": "set"}, "limit": 2}"#;
    sample(folder.path(), json, Shard::WHOLE).unwrap();
    fs::write(folder.path().join("set/b/2.png"), "no image").unwrap();
    assert_eq!(reason(folder.path(), json), None);
    fs::write(folder.path().join("set/a/0.png"), "no image").unwrap();
    assert_eq!(reason(folder.path(), json).unwrap(), "set: gone: a/2.png, new: a/0.png");
}

#[test]
fn a_sample_without_a_manifest_is_judged_by_the_folders_digest() {
    let folder = made();
    let table = folder.path().join(TABLE);
    let (mut provenance, rows) = artifact::read::<SampleRow>(&table).unwrap();
    provenance.facts.remove("files").unwrap();
    let mut writer = Writer::<SampleRow>::create(&table, provenance).unwrap();
    writer.push(&rows).unwrap();
    writer.finish().unwrap();
    fs::remove_file(folder.path().join("part-0-of-1.seen")).unwrap();
    assert_eq!(reason(folder.path(), JSON), None);
    fs::write(folder.path().join("set/b/2.png"), "other").unwrap();
    assert_eq!(reason(folder.path(), JSON).unwrap(), "set: its images are not what they were");
}
