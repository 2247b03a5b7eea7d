//! Parquet files, and those in the hub's cache.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, BinaryArray, Int32Array, RecordBatch, StringArray, StructArray},
    datatypes::{DataType, Field},
};
use artifact::{SampleRow, Shard};
use parquet::arrow::ArrowWriter;
use sha2::{Digest, Sha256};
use stage_sample::embedded::{Split, draw};

use crate::{error, sample};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The PNG file of image `index` of the embedded set.
pub(crate) fn png(index: u32) -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_raw(32, 32, draw(0, Split::Test, index)).unwrap();
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

/// Writes images of these indices with labels `index % 10`, as plain bytes or as a struct of bytes and path.
fn table(file: &Path, indices: &[u32], with_path: bool) {
    let pngs: Vec<_> = indices.iter().map(|&index| png(index)).collect();
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(pngs));
    let labels: ArrayRef = Arc::new(Int32Array::from_iter_values(indices.iter().map(|&index| (index % 10) as i32)));
    let images: ArrayRef = if with_path {
        let paths: ArrayRef =
            Arc::new(StringArray::from_iter_values(indices.iter().map(|index| format!("{index}.png"))));
        Arc::new(StructArray::from(vec![
            (Arc::new(Field::new("bytes", DataType::Binary, true)), bytes),
            (Arc::new(Field::new("path", DataType::Utf8, true)), paths),
        ]))
    } else {
        bytes
    };
    let batch = RecordBatch::try_from_iter([("label", labels), ("picture", images)]).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(file).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn told(rows: &[SampleRow]) -> Vec<(u32, u32, &str)> {
    rows.iter().map(|row| (row.id, row.label, row.path.as_str())).collect()
}

#[test]
fn ids_run_on_from_file_to_file_of_bytes_or_structs() {
    let folder = tempfile::tempdir().unwrap();
    table(&folder.path().join("one.parquet"), &[0, 1, 2, 3, 4], false);
    table(&folder.path().join("two.parquet"), &[5, 6], true);
    table(&folder.path().join("three.parquet"), &[7, 8, 9], true);
    let files = r#""files": ["one.parquet", "two.parquet", "three.parquet"], "image": "picture""#;
    let json = format!(r#"{{"source": {{"name": "parquet", {files}}}, "classes": 10, "every": 2, "offset": 2}}"#);
    let rows = sample(folder.path(), &json, Shard::WHOLE).unwrap();
    let expected = [(2, 2, "one.parquet, row 2"), (4, 4, "one.parquet, row 4"), (6, 6, "6.png"), (8, 8, "8.png")];
    assert_eq!(told(&rows), expected);
    assert!(rows.iter().all(|row| row.png == png(row.id)));
    let second = sample(folder.path(), &json, Shard { index: 1, count: 2 }).unwrap();
    assert_eq!(second, [rows[1].clone(), rows[3].clone()]);
}

#[test]
fn a_damaged_or_missing_file_and_a_picture_of_another_kind_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.parquet");
    let json = r#"{"source": {"name": "parquet", "files": ["set.parquet"], "image": "picture"}, "classes": 10}"#;
    assert!(error(folder.path(), json).contains("set.parquet"));
    table(&path, &[0, 1], false);
    let text = error(folder.path(), &json.replace("picture", "label"));
    assert!(text.contains("`label` is neither bytes nor a struct"), "{text}");
    let text = error(folder.path(), &json.replace(", \"classes\": 10", ""));
    assert!(text.contains("set `classes`"), "{text}");
    let whole = fs::read(&path).unwrap();
    let mut broken = whole.clone();
    (0..broken.len() - 8).filter(|&at| whole[at..].starts_with(b"\x89PNG")).for_each(|at| broken[at] = b'G');
    fs::write(&path, broken).unwrap();
    let text = error(folder.path(), json);
    assert!(text.contains("set.parquet, row 0: no whole PNG or JPEG") && text.contains("replace the image"), "{text}");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let text = error(folder.path(), json);
    assert!(text.contains("set.parquet: no whole Parquet file"), "{text}");
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs the program on a dataset of the hub, whose cache is in `folder`: the environment is a process's.
fn from_hub(folder: &Path, repo: &str, more: &str) -> (Option<i32>, String) {
    let file = format!(r#""repo": "a/{repo}", "revision": "{COMMIT}", "files": [{{"path": "set.parquet"{more}}}]"#);
    let json = format!(r#"{{"source": {{"name": "hub", {file}, "image": "picture"}}, "classes": 10}}"#);
    fs::write(folder.join("params.json"), json).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sample"));
    command.args(["--params", "params.json", "--out", "part-0-of-1.parquet"]).current_dir(folder);
    let output = command.env("HF_HUB_CACHE", folder.join("cache")).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_revision_that_may_move_needs_digests() {
    let folder = tempfile::tempdir().unwrap();
    let file = r#""repo": "a/b", "revision": "main", "files": [{"path": "set.parquet"}]"#;
    let text = error(folder.path(), &format!(r#"{{"source": {{"name": "hub", {file}}}}}"#));
    assert!(text.contains("`source.revision`: give the commit"), "{text}");
}

#[test]
fn a_dataset_of_the_hub_is_read_from_its_cache() {
    let folder = tempfile::tempdir().unwrap();
    table(&folder.path().join("set.parquet"), &[3, 4], false);
    let file = fs::read(folder.path().join("set.parquet")).unwrap();
    // Copied between machines: files where links were.
    for repo in ["linked", "copied", "alone"] {
        let cached = folder.path().join(format!("cache/datasets--a--{repo}"));
        let (blob, place) =
            (cached.join("blobs").join(digest(&file)), cached.join(format!("snapshots/{COMMIT}/set.parquet")));
        for path in [&blob, &place] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(&blob, &file).unwrap();
        match repo {
            "linked" => std::os::unix::fs::symlink(&blob, &place).unwrap(),
            "copied" => drop(fs::copy(&blob, &place).unwrap()),
            _ => fs::rename(&blob, &place).unwrap(),
        }
        let pin = if repo == "alone" { format!(r#", "sha256": "{}""#, digest(&file)) } else { String::new() };
        let (code, text) = from_hub(folder.path(), repo, &pin);
        assert_eq!(code, Some(0), "{repo}: {text}");
        let (provenance, rows) = artifact::read::<SampleRow>(&folder.path().join("part-0-of-1.parquet")).unwrap();
        let name = format!("hf://datasets/a/{repo}@{COMMIT}/set.parquet");
        let paths = [format!("{name}, row 0"), format!("{name}, row 1")];
        assert_eq!(told(&rows), [(0, 3, paths[0].as_str()), (1, 4, paths[1].as_str())]);
        assert_eq!(provenance.inputs.get(&name), Some(&digest(&file)));
        if repo == "alone" {
            let (code, text) = from_hub(folder.path(), repo, "");
            assert_eq!(code, Some(3), "{text}");
            assert!(text.contains(place.to_str().unwrap()) && text.contains("set `sha256`"), "{text}");
            assert_eq!(fs::read(&place).unwrap(), file, "what is the user's stays");
        }
    }
    let (code, text) = from_hub(folder.path(), "other", "");
    assert_eq!(code, Some(3), "{text}");
    let command = format!("fetch hf://datasets/a/other@{COMMIT}/set.parquet");
    assert!(text.contains("not in the cache") && text.contains("run make") && text.contains(&command), "{text}");
}
