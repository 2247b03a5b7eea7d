//! Files appear whole or not at all, and equal rows give equal bytes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use artifact::{AttackRow, Error, SampleRow, Writer, read, write_atomic};

use crate::samples::{self, PNG, Sample, provenance};

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::<SampleRow>::create(&folder.path().join("x.parquet"), provenance()).unwrap();
    writer.push(&many(1000)).unwrap();
    drop(writer);
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn an_old_file_stays_until_the_new_one_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    samples::write(&path, &many(3));
    let mut writer = Writer::<SampleRow>::create(&path, provenance()).unwrap();
    writer.push(&many(700)).unwrap();
    assert_eq!(read::<SampleRow>(&path).unwrap().1.len(), 3);
    writer.finish().unwrap();
    assert_eq!(read::<SampleRow>(&path).unwrap().1.len(), 700);
    assert_eq!(names(folder.path()), ["x.parquet"]);
}

const CHILD: &str = "ARTIFACT_TEST_CHILD";

/// The other process of the next test: writes until it is killed.
#[test]
fn child_that_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let mut writer = Writer::<SampleRow>::create(Path::new(&path), provenance()).unwrap();
    for round in 0.. {
        writer.push(&many(600)).unwrap();
        if round == 1 {
            // Not println!, which the test harness captures.
            std::io::Write::write_all(&mut std::io::stdout(), b"\nwriting\n").unwrap();
        }
    }
}

#[test]
fn a_killed_process_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "whole::child_that_is_killed", "--nocapture"])
        .env(CHILD, folder.path().join("x.parquet"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("writing")), "the child never wrote");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn equal_rows_give_equal_bytes_however_they_are_pushed() {
    let folder = tempfile::tempdir().unwrap();
    let rows = many(600);
    let bytes = |sizes: &[usize]| {
        let path = folder.path().join("x.parquet");
        let mut writer = Writer::<SampleRow>::create(&path, provenance()).unwrap();
        let mut rest = rows.as_slice();
        for size in sizes.iter().cycle() {
            let (now, later) = rest.split_at((*size).min(rest.len()));
            writer.push(now).unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        writer.finish().unwrap();
        fs::read(path).unwrap()
    };
    let whole = bytes(&[600]);
    assert_eq!(bytes(&[1]), whole);
    assert_eq!(bytes(&[255, 2, 0, 31]), whole);
    let mut other = rows.clone();
    other[599].label = 0;
    let path = folder.path().join("y.parquet");
    samples::write(&path, &other);
    assert_ne!(fs::read(path).unwrap(), whole);
}

/// Memory is bounded by row groups: of 256 rows, fewer when rows are heavy.
#[test]
fn row_groups_are_small() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    samples::write(&path, &many(600));
    assert_eq!(groups(&path), [256, 256, 88]);
    let heavy = AttackRow { delta: Some(vec![0.5; 5 << 20]), ..AttackRow::rows().remove(1) };
    samples::write(&path, &vec![heavy; 3]);
    assert_eq!(groups(&path), [2, 1], "20 MiB each");
}

fn groups(path: &Path) -> Vec<i64> {
    let file = fs::File::open(path).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect()
}

#[cfg(unix)]
#[test]
fn others_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let (table, text) = (folder.path().join("x.parquet"), folder.path().join("deep/x.md"));
    samples::write(&table, &many(1));
    write_atomic(&text, b"# x").unwrap();
    for path in [table, text] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o644);
    }
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Writer::<SampleRow>::create(&file.join("x.parquet"), provenance()).unwrap_err();
    assert!(matches!(error, Error::Write { .. }) && !error.is_input());
    let text = error.to_string();
    assert!(text.contains("x.parquet") && text.contains("a file stands where a folder is needed"), "{text}");
    let error = write_atomic(folder.path(), b"").unwrap_err().to_string();
    assert!(error.contains("a folder stands in its place"), "{error}");
}

pub fn many(count: u32) -> Vec<SampleRow> {
    let row = |id| SampleRow { id, png: [PNG, &id.to_le_bytes()].concat(), path: format!("{id}"), label: id % 2 };
    (0..count).map(row).collect()
}
