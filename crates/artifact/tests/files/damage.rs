//! Damaged, cut short, foreign, of the wrong kind or not there: one clear error each.

use std::{fs, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array},
    datatypes::{DataType, Field, Schema},
};
use artifact::{AttackRow, Error, Reader, Row as _, SampleRow, TimingRow, provenance, read};
use parquet::{arrow::ArrowWriter, file::metadata::KeyValue};

use crate::samples::{self, Sample};

/// The error's text, which must name the file; and that it blames the input.
fn blame(path: &Path, error: &Error) -> String {
    assert!(error.is_input());
    let text = error.to_string();
    assert!(text.starts_with(&path.display().to_string()), "{text}");
    text
}

#[test]
fn a_file_cut_short_anywhere_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    samples::write(&path, &TimingRow::rows());
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = read::<TimingRow>(&path).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(blame(&path, &error).contains("delete it and make it again"));
    }
}

/// A changed bit is an error or changes a value; it never panics and never hangs.
#[test]
fn a_changed_bit_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    samples::write(&path, &AttackRow::rows());
    let mut bytes = fs::read(&path).unwrap();
    let mut errors = 0;
    for place in 0..bytes.len() {
        let bit = 1 << (place % 8);
        bytes[place] ^= bit;
        fs::write(&path, &bytes).unwrap();
        if let Err(error) = read::<AttackRow>(&path) {
            blame(&path, &error);
            errors += 1;
        }
        bytes[place] ^= bit;
    }
    assert!(errors > bytes.len() / 4, "only {errors} changes were noticed");
}

#[test]
fn a_missing_file_is_missing() {
    let path = Path::new("no/such/part-0-of-1.parquet");
    for error in [read::<TimingRow>(path).unwrap_err(), artifact::sha256(path).unwrap_err()] {
        assert!(matches!(error, Error::Missing { .. }));
        assert_eq!(
            blame(path, &error),
            "no/such/part-0-of-1.parquet: no such file; check the path, or let make write it"
        );
    }
}

#[test]
fn a_folder_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let error = provenance(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }));
    blame(folder.path(), &error);
}

#[test]
fn another_kind_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    samples::write(&path, &TimingRow::rows());
    let error = read::<SampleRow>(&path).unwrap_err();
    assert!(matches!(error, Error::WrongKind { .. }));
    assert!(blame(&path, &error).ends_with("is a `timing` table; name a `sample` table instead"));
}

#[test]
fn parquet_of_others_is_foreign() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    parquet_with(&path, &[("work", Arc::new(StringArray::from(vec!["a"])))], None);
    let error = read::<TimingRow>(&path).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }));
    blame(&path, &error);
}

#[test]
fn a_column_that_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let work: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
    let count: ArrayRef = Arc::new(UInt64Array::from(vec![1, 2]));
    let whole: ArrayRef = Arc::new(UInt64Array::from(vec![1, 2]));
    let hole: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.0), None]));
    let refusal = |columns: &[(&str, ArrayRef)]| {
        parquet_with(&path, columns, Some("timing"));
        let error = Reader::<TimingRow>::open(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>).unwrap_err();
        blame(&path, &error);
        std::error::Error::source(&error).unwrap().to_string()
    };
    let (work, count) = (("work", work), ("count", count));
    assert_eq!(refusal(&[work.clone(), count.clone()]), "column `seconds` is missing");
    assert_eq!(
        refusal(&[work.clone(), count.clone(), ("seconds", whole)]),
        "column `seconds` holds UInt64, not Float64"
    );
    assert_eq!(refusal(&[work, count, ("seconds", hole)]), "column `seconds` is null in row 1");
}

/// Columns that came later may be missing, others may not.
#[test]
fn files_of_earlier_versions_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let batch = AttackRow::encode(&AttackRow::rows());
    let schema = batch.schema();
    let without = |gone: &[&str]| {
        let columns = schema.fields().iter().zip(batch.columns());
        let columns: Vec<(&str, ArrayRef)> =
            columns.map(|(field, column)| (field.name().as_str(), column.clone())).collect();
        let kept: Vec<_> = columns.into_iter().filter(|(name, _)| !gone.contains(name)).collect();
        parquet_with(&path, &kept, Some("attack"));
        read::<AttackRow>(&path)
    };
    let earlier = |row| AttackRow { flags: None, mean_probabilities: None, ..row };
    let expected: Vec<AttackRow> = AttackRow::rows().into_iter().map(earlier).collect();
    assert_eq!(without(&["flags", "mean_probabilities"]).unwrap().1, expected);
    assert!(without(&["delta"]).is_err());
}

/// Writes columns as Parquet, with or without the provenance of a table of this kind.
fn parquet_with(path: &Path, columns: &[(&str, ArrayRef)], kind: Option<&str>) {
    let field = |(name, column): &(&str, ArrayRef)| Field::new(*name, DataType::clone(column.data_type()), true);
    let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(schema.clone(), columns.iter().map(|(_, column)| column.clone()).collect());
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch.unwrap()).unwrap();
    if let Some(kind) = kind {
        let from = artifact::Provenance { kind: kind.to_owned(), ..samples::provenance() };
        let text = serde_json::to_string(&from).unwrap();
        writer.append_key_value_metadata(KeyValue::new("provenance".to_owned(), text));
    }
    writer.close().unwrap();
}
