//! The tables on disk: round trips, whole or not at all, equal bytes, what damage looks like, and other readers.

mod damage;
mod inspect;
mod readers;
mod samples;
mod whole;

use artifact::{AttackRow, DetectorRow, FinetuneRow, ReportRow, SampleRow, TheoryRow, TimingRow, Writer, read};
use samples::{Sample, provenance};

/// Rows of every kind come back as they were written, with their provenance.
#[test]
fn every_kind_comes_back() {
    fn check<R: Sample + PartialEq + std::fmt::Debug>() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/part-0-of-1.parquet");
        let mut writer = Writer::<R>::create(&path, provenance()).unwrap();
        writer.provenance_mut().facts.insert("late".into(), 7.into());
        writer.push(&R::rows()).unwrap();
        writer.finish().unwrap();
        let (found, rows) = read::<R>(&path).unwrap();
        assert_eq!(rows, R::rows());
        let mut expected = provenance();
        expected.kind = R::KIND.to_owned();
        expected.facts.insert("late".into(), 7.into());
        assert_eq!(found, expected);
        assert!(R::schema().fields().iter().all(|field| field.is_nullable()));
    }
    check::<SampleRow>();
    check::<FinetuneRow>();
    check::<AttackRow>();
    check::<DetectorRow>();
    check::<TheoryRow>();
    check::<ReportRow>();
    check::<TimingRow>();
}

/// A table without rows is a table.
#[test]
fn no_rows_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.parquet");
    Writer::<AttackRow>::create(&path, provenance()).unwrap().finish().unwrap();
    assert_eq!(read::<AttackRow>(&path).unwrap().1, vec![]);
}

/// Numbers at the ends of their ranges survive, not-a-number included.
#[test]
fn extreme_numbers_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("extreme.parquet");
    let row = |loss, linf| AttackRow {
        id: u32::MAX,
        non_finite: u64::MAX,
        votes: vec![0, u16::MAX],
        delta: Some(vec![f32::MIN_POSITIVE / 2.0, -0.0, f32::MAX]),
        loss,
        linf,
        ..AttackRow::rows().remove(0)
    };
    let rows = [row(Some(f64::INFINITY), f64::from_bits(1)), row(Some(f64::NAN), -0.0)];
    samples::write(&path, &rows);
    let found = read::<AttackRow>(&path).unwrap().1;
    assert_eq!(found[0], rows[0]);
    assert!(found[1].loss.unwrap().is_nan() && found[1].linf.is_sign_negative());
}

/// A digest is that of `sha256sum`.
#[test]
fn digests_are_sha256() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("abc");
    std::fs::write(&path, "abc").unwrap();
    // FIPS 180-2, appendix B.1.
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(artifact::sha256(&path).unwrap(), expected);
}
