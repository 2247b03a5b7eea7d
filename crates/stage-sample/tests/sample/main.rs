//! The stage as a whole: rows, shards, errors.

mod classes;
mod folders;
mod jpegs;
mod pictures;
mod sources;

use std::{fs, path::Path};

use artifact::{SampleRow, Shard};
use sha2::{Digest, Sha256};
use stage::{Context, Stage, images};
use stage_sample::{Params, Sample, embedded};

fn context(folder: &Path, shard: Shard) -> Context {
    let mut ctx = Context::new(folder.join(format!("part-{}-of-{}.parquet", shard.index, shard.count)));
    ctx.shard = shard;
    ctx.data_root = Some(folder.into());
    ctx
}

fn sample(folder: &Path, json: &str, shard: Shard) -> anyhow::Result<Vec<SampleRow>> {
    let params: Params = serde_json::from_str(json)?;
    let ctx = context(folder, shard);
    stage::run::<Sample>(&params, &ctx)?;
    Ok(artifact::read(&ctx.out)?.1)
}

fn error(folder: &Path, json: &str) -> String {
    format!("{:#}", sample(folder, json, Shard::WHOLE).unwrap_err())
}

const EMBEDDED: &str = r#"{"source": {"name": "embedded", "split": "test", "images": 50}, "every": 2, "offset": 3}"#;

#[test]
fn numbers_have_not_moved_without_a_new_revision() {
    let mut state = Sha256::new();
    for (split, id) in [(embedded::Split::Train, 0..100), (embedded::Split::Test, 0..100)] {
        id.for_each(|id| state.update(embedded::draw(0, split, id)));
    }
    let digest: String = state.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        (Sample::REVISION, digest.as_str()),
        (2, "853b4d52ca39ae262b4470240e1201fd54f59da971c303f9e524e92199e3a99f")
    );
}

#[test]
fn shards_hold_the_same_rows_and_read_back_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let whole = sample(folder.path(), EMBEDDED, Shard::WHOLE).unwrap();
    assert!(whole.iter().map(|row| row.id).eq((3..50).step_by(2)));
    let mut parts = Vec::new();
    let mut ctx = context(folder.path(), Shard::WHOLE);
    for index in 0..3 {
        let shard = Shard { index, count: 3 };
        parts.extend(sample(folder.path(), EMBEDDED, shard).unwrap());
        ctx.inputs.push(stage::Input::open(&context(folder.path(), shard).out).unwrap());
    }
    let read = images::read(&ctx, Shard::WHOLE, None).unwrap();
    assert!(read.ids.iter().copied().eq(whole.iter().map(|row| row.id)));
    let chunks: Vec<_> = images::chunks(&ctx, Shard::WHOLE, Some(10), 4).unwrap().map(Result::unwrap).collect();
    assert_eq!(chunks.iter().map(images::Images::len).collect::<Vec<_>>(), [4, 4, 2]);
    assert_eq!(chunks[1].image(0), read.image(4));
    parts.sort_by_key(|row| row.id);
    assert_eq!(parts, whole);
}

#[test]
fn a_folder_is_read_in_order_and_its_faults_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let png = sample(folder.path(), EMBEDDED, Shard::WHOLE).unwrap()[0].png.clone();
    for name in ["set/b/2.png", "set/b/1.PNG", "set/a/9.png"] {
        fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        fs::write(folder.path().join(name), &png).unwrap();
    }
    let json = r#"{"source": {"name": "folder", "path": "set"}}"#;
    let rows = sample(folder.path(), json, Shard::WHOLE).unwrap();
    let found: Vec<_> = rows.iter().map(|row| (row.label, row.path.as_str())).collect();
    assert_eq!(found, [(0, "a/9.png"), (1, "b/1.PNG"), (1, "b/2.png")]);
    assert!(rows.iter().all(|row| row.png == png), "8-bit RGB PNGs are kept as they are");
    fs::write(folder.path().join("set/b/2.png"), &png[..png.len() / 2]).unwrap();
    let text = error(folder.path(), json);
    assert!(text.contains("2.png") && text.contains("replace the image"), "{text}");
    let text = error(folder.path(), r#"{"source": {"name": "folder", "path": "none"}}"#);
    assert!(text.contains("DATA_ROOT"), "{text}");
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn real_parquet_is_resized_and_cropped_and_a_wrong_column_named() {
    let root = std::env::var("DATA_ROOT").unwrap_or(format!("{}/../../../shared/data", env!("CARGO_MANIFEST_DIR")));
    let file = Path::new(&root).join("images/cifar10-test-1000.parquet");
    if !file.exists() {
        eprintln!("skipped: no {}", file.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let json = |more: &str| format!(r#"{{"source": {{"name": "parquet", "files": [{file:?}]{more}, "limit": 5}}"#);
    let rows = sample(folder.path(), &json(r#"}, "every": 100, "resize": 40, "crop": 37"#), Shard::WHOLE).unwrap();
    assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [0, 100, 200, 300, 400]);
    let image = images::decode(&rows[0].png).unwrap();
    assert_eq!((image.height, image.width), (37, 37));
    let text = error(folder.path(), &json(r#", "image": "img"}"#));
    assert!(text.contains("no column `img`") && text.contains("label"), "{text}");
    let text = error(folder.path(), &json(r#"}, "classes": ["one"]"#));
    assert!(text.contains("no classes of the sample") && text.contains("`one`"), "{text}");
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn imagenette_is_ten_classes_or_ten_of_a_thousand() {
    let root = std::env::var("DATA_ROOT").unwrap_or(format!("{}/../../../shared/data", env!("CARGO_MANIFEST_DIR")));
    let numbers = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701];
    for (file, each) in [("imagenette-val-785", 100), ("imagenette-train-96", 1000)] {
        let file = Path::new(&root).join(format!("images/{file}.parquet"));
        if !file.exists() {
            eprintln!("skipped: no {}", file.display());
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let labels = |classes: &str| {
            let json = format!(r#"{{"source": {{"name": "parquet", "files": [{file:?}]}}, "every": {each}{classes}}}"#);
            sample(folder.path(), &json, Shard::WHOLE).unwrap().iter().map(|row| row.label).collect::<Vec<_>>()
        };
        let ten = labels("");
        assert!(ten.len() > 7 && ten.iter().max() > Some(&7), "{ten:?}");
        assert_eq!(labels(r#", "classes": "imagenette""#), ten);
        let of_a_thousand: Vec<u32> = ten.iter().map(|&label| numbers[label as usize]).collect();
        assert_eq!(labels(r#", "classes": "imagenet""#), of_a_thousand);
    }
}
