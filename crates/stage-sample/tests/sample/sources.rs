//! Parquet files and the hub, with a server on the loopback device in its place.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::Arc,
    thread,
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

/// Serves datasets of one file: `a/open`, and two that need a token (`a/gated`) or the terms accepted (`a/closed`).
fn serve(file: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || listener.incoming().for_each(|stream| answer(&mut stream.unwrap(), &file)));
    endpoint
}

fn answer(stream: &mut TcpStream, file: &[u8]) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().and_then(Result::ok).unwrap_or_default();
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let repo = request.split('/').nth(3).unwrap_or_default();
    let (status, body) = match repo {
        "open" => ("200 OK", file),
        "gated" => ("401 Unauthorized", &b"Access to dataset a/gated is restricted."[..]),
        _ => ("403 Forbidden", &b"Access to dataset a/closed is restricted."[..]),
    };
    let headers = format!("ETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close", digest(file));
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n\r\n", body.len());
    if !request.starts_with("HEAD") {
        let _ = stream.write_all(body);
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs the program on a dataset of the hub at `endpoint`, with the cache in `folder`: the environment is a process's.
fn from_hub(folder: &Path, endpoint: &str, repo: &str, offline: bool) -> Output {
    let file = format!(r#""repo": "a/{repo}", "revision": "{COMMIT}", "files": [{{"path": "set.parquet"}}]"#);
    let json = format!(r#"{{"source": {{"name": "hub", {file}, "image": "picture"}}, "classes": 10}}"#);
    fs::write(folder.join("params.json"), json).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sample"));
    command.args(["--params", "params.json", "--out", "part-0-of-1.parquet"]).current_dir(folder);
    command.env("HF_ENDPOINT", endpoint).env("HF_HUB_CACHE", folder.join("cache")).env_remove("HF_TOKEN");
    command.env("HF_HOME", folder.join("home")).env("HF_HUB_OFFLINE", if offline { "1" } else { "" });
    command.output().unwrap()
}

#[test]
fn a_revision_that_may_move_needs_digests() {
    let folder = tempfile::tempdir().unwrap();
    let file = r#""repo": "a/b", "revision": "main", "files": [{"path": "set.parquet"}]"#;
    let text = error(folder.path(), &format!(r#"{{"source": {{"name": "hub", {file}}}}}"#));
    assert!(text.contains("`source.revision`: give the commit"), "{text}");
}

#[test]
fn a_dataset_of_the_hub_is_read_and_its_faults_are_named() {
    let folder = tempfile::tempdir().unwrap();
    table(&folder.path().join("set.parquet"), &[3, 4], false);
    let file = fs::read(folder.path().join("set.parquet")).unwrap();
    let endpoint = serve(file.clone());
    let run = |endpoint: &str, repo: &str, offline: bool| {
        let output = from_hub(folder.path(), endpoint, repo, offline);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (endpoint, offline) in [(endpoint.as_str(), false), ("http://127.0.0.1:9", true)] {
        let (code, text) = run(endpoint, "open", offline);
        assert_eq!(code, Some(0), "{text}");
        let (provenance, rows) = artifact::read::<SampleRow>(&folder.path().join("part-0-of-1.parquet")).unwrap();
        let name = format!("hf://datasets/a/open@{COMMIT}/set.parquet");
        let paths = [format!("{name}, row 0"), format!("{name}, row 1")];
        assert_eq!(told(&rows), [(0, 3, paths[0].as_str()), (1, 4, paths[1].as_str())]);
        assert_eq!(provenance.inputs.get(&name), Some(&digest(&file)));
    }
    for repo in ["gated", "closed"] {
        let (code, text) = run(&endpoint, repo, false);
        assert!(text.contains(&format!("hf://datasets/a/{repo}@{COMMIT}/set.parquet: no access")), "{text}");
        assert!(text.contains("accept the repository's terms on the hub and set HF_TOKEN"), "{text}");
        assert_eq!(code, Some(3), "{text}");
    }
    let (code, text) = run("http://127.0.0.1:9", "other", false);
    assert!(text.contains("no answer: check the network and HF_ENDPOINT"), "{text}");
    assert_eq!(code, Some(3), "{text}");
    let (code, text) = run(&endpoint, "other", true);
    assert!(text.contains("not in the cache: unset HF_HUB_OFFLINE"), "{text}");
    assert_eq!(code, Some(3), "{text}");
}
