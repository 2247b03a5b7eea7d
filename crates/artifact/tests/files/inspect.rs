//! What `inspect` shows, extracts and verifies.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use artifact::{AttackRow, Entry, FinetuneRow, Manifest, ReportRow, SampleRow, sha256};
use serde_json::Value;

use crate::samples::{self, PNG, Sample, provenance};

fn inspect(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_inspect")).current_dir(folder).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A chain below `folder`: sample, weights and finetune, attack, report, each recording the digests of those before.
fn chain(folder: &Path) {
    let inputs = |paths: &[&str]| {
        let digest = |path: &&str| ((*path).to_owned(), sha256(&folder.join(path)).unwrap());
        artifact::Provenance { inputs: paths.iter().map(digest).collect(), ..provenance() }
    };
    samples::write_from(&folder.join("data/sample/a/part-0-of-1.parquet"), &SampleRow::rows(), inputs(&[]));
    let weights = folder.join("data/finetune/b/epoch-012.safetensors");
    fs::create_dir_all(weights.parent().unwrap()).unwrap();
    fs::write(&weights, "weights").unwrap();
    let mut epochs = FinetuneRow::rows();
    epochs[1].sha256 = Some(sha256(&weights).unwrap());
    let from = inputs(&["data/sample/a/part-0-of-1.parquet"]);
    samples::write_from(&folder.join("data/finetune/b/part-0-of-1.parquet"), &epochs, from);
    let from = inputs(&["data/sample/a/part-0-of-1.parquet", "data/finetune/b/part-0-of-1.parquet"]);
    samples::write_from(&folder.join("data/attack/c/part-0-of-1.parquet"), &AttackRow::rows(), from);
    let from = inputs(&["data/attack/c/part-0-of-1.parquet"]);
    samples::write_from(&folder.join("data/report/demo/table1.parquet"), &ReportRow::rows(), from);
}

const REPORT: &str = "data/report/demo/table1.parquet";

#[test]
fn text_and_json_show_provenance_columns_and_rows() {
    let folder = tempfile::tempdir().unwrap();
    chain(folder.path());
    let shown = inspect(folder.path(), &["data/attack/c/part-0-of-1.parquet"]);
    assert_eq!(shown.status.code(), Some(0));
    let text = stdout(&shown);
    for part in ["test, revision 3, part 0/1", "8/255", "List(UInt16)", "3 3 999", "data/finetune/b", "2 in 1 row"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let extreme = AttackRow { loss: Some(f64::NAN), delta: Some(vec![0.1]), ..AttackRow::rows().remove(0) };
    samples::write(&folder.path().join("extreme.parquet"), &[extreme]);
    let shown = inspect(folder.path(), &["--json", "extreme.parquet"]);
    let json: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&json["head"][0]["loss"], &json["head"][0]["delta"][0]), (&"NaN".into(), &0.1.into()));
    let shown = inspect(folder.path(), &["--json", "--rows", "1", REPORT]);
    let json: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(json["rows"], 2);
    assert_eq!(json["head"].as_array().unwrap().len(), 1);
    assert_eq!(json["head"][0]["denominator"], 0);
    assert_eq!(json["columns"]["value"], "Float64");
    assert_eq!(json["provenance"]["kind"], "report");
}

#[test]
fn images_are_extracted_by_id_and_class() {
    let folder = tempfile::tempdir().unwrap();
    samples::write(&folder.path().join("x.parquet"), &SampleRow::rows());
    let shown = inspect(folder.path(), &["--extract", "images", "--rows", "1", "x.parquet"]);
    assert_eq!(shown.status.code(), Some(0));
    assert_eq!(fs::read(folder.path().join("images/00000-tench--a-fish.png")).unwrap(), PNG);
    assert_eq!(fs::read_dir(folder.path().join("images")).unwrap().count(), 1);
}

#[test]
fn an_unchanged_chain_is_verified_from_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    chain(folder.path());
    let shown = inspect(folder.path(), &["--verify", REPORT, REPORT]);
    assert_eq!((shown.status.code(), stdout(&shown).as_str()), (Some(0), "5 digests verified, 0 not as recorded\n"));
    let elsewhere = tempfile::tempdir().unwrap();
    let shown = inspect(elsewhere.path(), &["--verify", folder.path().join(REPORT).to_str().unwrap()]);
    assert_eq!((shown.status.code(), stdout(&shown).as_str()), (Some(0), "5 digests verified, 0 not as recorded\n"));
}

#[test]
fn changed_and_missing_files_are_named_up_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    chain(folder.path());
    fs::write(folder.path().join("data/finetune/b/epoch-012.safetensors"), "other weights").unwrap();
    let shown = inspect(folder.path(), &["--verify", REPORT]);
    let text = stdout(&shown);
    assert_eq!(shown.status.code(), Some(3));
    assert!(text.contains("data/finetune/b/epoch-012.safetensors: changed since data/finetune/b/part-0"), "{text}");
    assert!(text.ends_with("5 digests verified, 1 not as recorded\n"), "{text}");
    fs::remove_file(folder.path().join("data/sample/a/part-0-of-1.parquet")).unwrap();
    let shown = inspect(folder.path(), &["--verify", REPORT]);
    let text = stdout(&shown);
    assert_eq!(shown.status.code(), Some(3));
    assert!(text.contains("data/sample/a/part-0-of-1.parquet: no such file"), "{text}");
    let shown = inspect(folder.path(), &["--verify", "--json", REPORT]);
    let states: Vec<Value> = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(states.iter().filter(|finding| finding["state"] == "unreadable").count(), 2);
    assert_eq!(states.iter().filter(|finding| finding["state"] == "differs").count(), 1);
}

/// Samples of a Parquet file, of a folder and of the hub, and weights from a file, all below `local`.
fn sources(folder: &Path) -> Vec<&'static str> {
    let local = |name: &str| folder.join("local").join(name);
    for (name, text) in [("set.parquet", "images"), ("set/a/1.png", "one"), ("set/b/2.png", "two"), ("net.pth", "net")]
    {
        fs::create_dir_all(local(name).parent().unwrap()).unwrap();
        fs::write(local(name), text).unwrap();
    }
    let name = "hf://datasets/a/b@0123456789abcdef0123456789abcdef01234567/x.parquet";
    let cached = hub(folder);
    fs::create_dir_all(cached.parent().unwrap()).unwrap();
    fs::write(&cached, "cached").unwrap();
    let from = |name: &str, path: &Path| {
        let inputs = [(name.to_owned(), sha256(path).unwrap())].into();
        artifact::Provenance { inputs, kind: String::new(), ..provenance() }
    };
    let entry = |name: &str| Entry {
        name: name.to_owned(),
        size: fs::metadata(local("set").join(name)).unwrap().len(),
        sha256: sha256(&local("set").join(name)).unwrap(),
    };
    let mut set = artifact::Provenance { inputs: [].into(), ..provenance() };
    set.record_folder("set", &Manifest { entries: vec![entry("a/1.png"), entry("b/2.png")] });
    samples::write_from(
        &folder.join("data/file.parquet"),
        &SampleRow::rows(),
        from("set.parquet", &local("set.parquet")),
    );
    samples::write_from(&folder.join("data/folder.parquet"), &SampleRow::rows(), set);
    samples::write_from(&folder.join("data/hub.parquet"), &SampleRow::rows(), from(name, &cached));
    let mut epochs = FinetuneRow::rows();
    epochs.iter_mut().for_each(|row| row.weights = None);
    samples::write_from(&folder.join("data/net.parquet"), &epochs, from("net.pth", &local("net.pth")));
    vec!["data/file.parquet", "data/folder.parquet", "data/hub.parquet", "data/net.parquet"]
}

fn hub(folder: &Path) -> PathBuf {
    folder.join("cache/datasets--a--b/snapshots/0123456789abcdef0123456789abcdef01234567/x.parquet")
}

fn verify(folder: &Path, root: &str, tables: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inspect"));
    command.current_dir(folder).arg("--verify").args(tables).env("DATA_ROOT", root);
    let shown = command.env("HF_HUB_CACHE", folder.join("cache")).output().unwrap();
    (shown.status.code(), stdout(&shown))
}

#[test]
fn images_and_weights_from_outside_are_verified_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (path, tables) = (folder.path(), sources(folder.path()));
    let whole = (Some(0), "5 digests verified, 0 not as recorded\n".to_owned());
    assert_eq!(verify(path, "local", &tables), whole);
    assert_eq!(verify(path, path.join("local").to_str().unwrap(), &tables), whole);
    // Something of the same name elsewhere is not what was read.
    fs::create_dir_all(path.join("set/a")).unwrap();
    fs::write(path.join("net.pth"), "another").unwrap();
    assert_eq!(verify(path, "local", &tables), whole);
    fs::remove_file(path.join("net.pth")).unwrap();
    fs::remove_dir_all(path.join("set")).unwrap();
    let (code, text) = verify(path, "", &tables);
    assert_eq!(code, Some(3));
    for name in ["set.parquet", "set", "net.pth"] {
        assert!(text.contains(&format!("{name}: no such file or folder; set DATA_ROOT")), "{name}: {text}");
    }
    for name in ["local/set.parquet", "local/set/b/2.png", "local/net.pth", hub(path).to_str().unwrap()] {
        let file = path.join(name);
        let before = fs::read(&file).unwrap();
        fs::write(&file, "edited").unwrap();
        let (code, text) = verify(path, "local", &tables);
        assert_eq!(code, Some(3));
        assert!(
            text.contains(&format!("{name}: changed since data/")) && text.contains("5 digests verified, 1 not"),
            "{text}"
        );
        fs::remove_file(&file).unwrap();
        let (code, text) = verify(path, "local", &tables);
        assert_eq!(code, Some(3));
        assert!(text.contains("5 digests verified, 1 not"), "{text}");
        let told = ["no such file or folder", "missing; put it back", "brings it back"];
        assert!(told.iter().any(|told| text.contains(told)), "{text}");
        fs::write(&file, before).unwrap();
    }
    assert_eq!(verify(path, "local", &tables), whole);
}

#[test]
fn a_folder_is_shown_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    sources(folder.path());
    let text = stdout(&inspect(folder.path(), &["data/folder.parquet"]));
    assert!(text.contains("set: 2 files") && !text.contains("a/1.png"), "{text}");
    let json: Value =
        serde_json::from_slice(&inspect(folder.path(), &["--json", "data/folder.parquet"]).stdout).unwrap();
    assert_eq!(json["provenance"]["facts"]["files"]["set"][1][0], "b/2.png");
}

#[test]
fn a_wrong_file_or_argument_has_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let missing = inspect(folder.path(), &["x.parquet"]);
    assert_eq!(missing.status.code(), Some(3));
    let text = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(text, "inspect: x.parquet: no such file; check the path, or let make write it\n");
    assert_eq!(inspect(folder.path(), &[]).status.code(), Some(2));
    assert_eq!(inspect(folder.path(), &["--help"]).status.code(), Some(0));
}
