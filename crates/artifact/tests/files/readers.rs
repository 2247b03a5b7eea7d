//! Other programs read the tables: pyarrow, pandas, polars, DuckDB and Hugging Face `datasets`.
//!
//! `read.py` beside this file does the reading; it needs those packages (`PYTHON` names the interpreter, `python3`
//! otherwise) and the test is skipped where they are absent.

use std::{path::Path, process::Command};

use artifact::{AttackRow, DetectorRow, FinetuneRow, ReportRow, SampleRow, TheoryRow, TimingRow};
use serde_json::{Map, Value};

use crate::samples::{self, Sample};

#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn everybody_reads_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = Map::new();
    fn add<R: Sample>(folder: &Path, expected: &mut Map<String, Value>) {
        samples::write(&folder.join(format!("{}.parquet", R::KIND)), &R::rows());
        expected.insert(R::KIND.to_owned(), R::expected());
    }
    add::<SampleRow>(folder.path(), &mut expected);
    add::<FinetuneRow>(folder.path(), &mut expected);
    add::<AttackRow>(folder.path(), &mut expected);
    add::<DetectorRow>(folder.path(), &mut expected);
    add::<TheoryRow>(folder.path(), &mut expected);
    add::<ReportRow>(folder.path(), &mut expected);
    add::<TimingRow>(folder.path(), &mut expected);
    std::fs::write(folder.path().join("expected.json"), Value::Object(expected).to_string()).unwrap();
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/read.py");
    let Ok(output) = Command::new(&python).arg(script).arg(folder.path()).output() else {
        eprintln!("skipped: no {python}");
        return;
    };
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(77) {
        eprintln!("skipped: {out}");
        return;
    }
    assert!(output.status.success(), "{out}{err}");
    eprintln!("{out}");
}
