//! What `inspect` shows, extracts and verifies.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use artifact::{AttackRow, FinetuneRow, ReportRow, SampleRow, sha256};
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
