//! Which class an image is: by name, by number, or as stated; and what is refused (golden/parquet/make.py).

use std::{fs, path::Path, process::Command};

use arrow::{
    array::{ArrayRef, BinaryArray, Int64Array, NullArray, RecordBatch, StringArray, StructArray},
    datatypes::{DataType, Field, Schema},
};
use artifact::{SampleRow, Shard};
use parquet::arrow::ArrowWriter;
use std::sync::Arc;

use crate::{error, sample, sources::png};

/// The sample of a golden file, with these further parameters.
fn of(file: &str, more: &str) -> anyhow::Result<Vec<SampleRow>> {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/parquet").join(format!("{file}.parquet"));
    sample(folder.path(), &format!(r#"{{"source": {{"name": "parquet", "files": [{golden:?}]}}{more}}}"#), Shard::WHOLE)
}

fn refused(file: &str, more: &str) -> String {
    format!("{:#}", of(file, more).unwrap_err())
}

fn labels(rows: &[SampleRow]) -> Vec<u32> {
    rows.iter().map(|row| row.label).collect()
}

const NAMED: &str = r#", "classes": ["bird", "cat", "dog"]"#;

#[test]
fn every_writer_of_the_field_is_read() {
    let counted = [
        "polars-zstd",
        "polars-gzip",
        "polars-lz4",
        "polars-brotli",
        "polars-snappy",
        "polars-uncompressed",
        "polars-u8",
        "polars-struct",
        "pandas",
        "pandas-float",
        "pandas-brotli",
        "duckdb-gzip",
        "duckdb-lz4_raw",
        "duckdb-brotli",
        "duckdb-zstd",
        "duckdb-struct",
    ];
    let named = ["datasets", "datasets-turned", "polars-text", "polars-categorical", "pandas-category", "duckdb-enum"];
    let first = of("datasets", "").unwrap();
    for (file, more) in
        counted.map(|file| (file, ", \"classes\": 3")).into_iter().chain(named.map(|file| (file, NAMED)))
    {
        let rows = of(file, more).unwrap_or_else(|fault| panic!("{file}: {fault:#}"));
        assert_eq!(labels(&rows), [0, 1, 2, 0, 1, 2], "{file}");
        assert!(rows.iter().zip(&first).all(|(row, first)| row.png == first.png), "{file}");
    }
    assert_eq!(labels(&of("polars-text", "").unwrap()), [0, 1, 2, 0, 1, 2], "names in their order");
    assert_eq!(labels(&of("datasets-turned", "").unwrap()), [2, 1, 0, 2, 1, 0], "the order the file states");
}

#[test]
fn labels_that_say_nothing_are_refused_with_a_mend() {
    let text = refused("pandas-missing", ", \"classes\": 3");
    assert!(text.contains("row 4: no label: fill it in or remove the row"), "{text}");
    let text = refused("datasets-unlabelled", "");
    assert!(text.contains("row 0: label -1") && text.contains("name a split that has labels"), "{text}");
    let text = refused("polars-zstd", "");
    assert!(text.contains("set `classes`"), "{text}");
    for limit in ["", ", \"limit\": 1"] {
        let text = refused("pandas-from-1", &format!(", \"classes\": 3{limit}"));
        assert!(text.contains("labels run from 1 to 3") && text.contains("set `first_label` to 1"), "{text}");
    }
    assert_eq!(labels(&of("pandas-from-1", ", \"classes\": 3, \"first_label\": 1").unwrap()), [0, 1, 2, 0, 1, 2]);
    assert_eq!(
        labels(&of("pandas-from-1", ", \"classes\": 9").unwrap())[0],
        1,
        "a larger number of classes is no fault"
    );
}

#[test]
fn classes_are_placed_by_name_or_as_stated_and_never_by_chance() {
    let other = r#", "classes": ["bird", "cat", "cow"]"#;
    let text = refused("datasets", other);
    assert!(text.contains("`dog` is not named among them") && text.contains("`cow`"), "{text}");
    let stated = format!(r#"{other}, "labels": {{"dog": "cow"}}"#);
    assert_eq!(labels(&of("datasets", &stated).unwrap()), [0, 1, 2, 0, 1, 2]);
    let cifar = r#", "classes": "cifar10""#;
    assert_eq!(labels(&of("datasets", cifar).unwrap())[..3], [2, 3, 5]);
    assert_eq!(labels(&of("datasets-turned", cifar).unwrap())[..3], [2, 3, 5]);
    let by_number = r#", "classes": "cifar10", "labels": {"0": "bird", "1": "cat", "2": 5}"#;
    assert_eq!(labels(&of("pandas", by_number).unwrap())[..3], [2, 3, 5]);
    let text = refused("pandas", r#", "classes": "cifar10", "labels": {"0": 2}"#);
    assert!(text.contains("label 1") && text.contains("`labels`"), "{text}");
    let text = refused("datasets", r#", "classes": "cifar10", "labels": {"cow": 2}"#);
    assert!(text.contains("`cow`") && text.contains("`bird`"), "{text}");
    let text = refused("datasets", ", \"classes\": 1000");
    assert!(text.contains("3 classes") && text.contains("classes = \"imagenet\""), "{text}");
    let text = refused("datasets", ", \"classes\": \"imagenet1000\"");
    assert!(text.contains("cifar10, imagenet, imagenette"), "{text}");
}

#[test]
fn files_of_one_source_are_joined_by_name() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/parquet");
    let folder = tempfile::tempdir().unwrap();
    let source = |files: [&str; 2]| {
        let files = files.map(|file| golden.join(format!("{file}.parquet")));
        format!(r#"{{"source": {{"name": "parquet", "files": {files:?}}}}}"#)
    };
    let rows = sample(folder.path(), &source(["datasets", "datasets-turned"]), Shard::WHOLE).unwrap();
    assert_eq!(labels(&rows), [0, 1, 2, 0, 1, 2].repeat(2));
    let text = error(folder.path(), &source(["datasets", "pandas"]));
    assert!(text.contains("pandas.parquet: it names no classes"), "{text}");
    let text = error(folder.path(), &source(["pandas", "polars-text"]));
    assert!(text.contains("pandas.parquet: its labels are numbers"), "{text}");
}

/// Makes a folder of one picture each.
fn tree(root: &Path, files: &[&str]) {
    for (index, name) in (0..).zip(files) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, png(index)).unwrap();
    }
}

fn folder(root: &Path, more: &str) -> anyhow::Result<Vec<SampleRow>> {
    sample(root, &format!(r#"{{"source": {{"name": "folder", "path": "set"}}{more}}}"#), Shard::WHOLE)
}

fn told(rows: &[SampleRow]) -> Vec<(u32, &str)> {
    rows.iter().map(|row| (row.label, row.path.as_str())).collect()
}

#[test]
fn folders_named_by_number_are_those_classes() {
    let root = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..12).map(|class| format!("set/{class}/a.png")).collect();
    tree(root.path(), &names.iter().map(String::as_str).collect::<Vec<_>>());
    let rows = folder(root.path(), "").unwrap();
    assert_eq!(labels(&rows), (0..12).collect::<Vec<_>>());
    assert_eq!((rows[10].path.as_str(), rows[2].path.as_str()), ("10/a.png", "2/a.png"));
    assert_eq!(labels(&folder(root.path(), ", \"classes\": \"imagenet\"").unwrap()), (0..12).collect::<Vec<_>>());
    let text = format!("{:#}", folder(root.path(), ", \"classes\": 11").unwrap_err());
    assert!(text.contains("class `11` is a number outside the classes (there are 11)"), "{text}");
    fs::remove_dir_all(root.path().join("set/0")).unwrap();
    let text = format!("{:#}", folder(root.path(), ", \"classes\": 11").unwrap_err());
    assert!(text.contains("set `first_label` to 1"), "{text}");
    let rows = folder(root.path(), ", \"classes\": 11, \"first_label\": 1").unwrap();
    assert_eq!(labels(&rows), (0..11).collect::<Vec<_>>());
    tree(root.path(), &["set/01/a.png"]);
    assert!(format!("{:#}", folder(root.path(), "").unwrap_err()).contains("are the same number"));
}

#[test]
fn folders_are_placed_in_the_networks_classes() {
    let root = tempfile::tempdir().unwrap();
    tree(root.path(), &["set/n03888257/b.png", "set/n01440764/a.png"]);
    assert_eq!(told(&folder(root.path(), "").unwrap()), [(0, "n01440764/a.png"), (1, "n03888257/b.png")]);
    let placed = folder(root.path(), ", \"classes\": \"imagenet\"").unwrap();
    assert_eq!(told(&placed), [(0, "n01440764/a.png"), (701, "n03888257/b.png")]);
    let placed = folder(root.path(), ", \"classes\": \"imagenette\"").unwrap();
    assert_eq!(labels(&placed), [0, 9]);
    assert!(format!("{:#}", folder(root.path(), ", \"classes\": 1000").unwrap_err()).contains("imagenet"));
    tree(root.path(), &["set/zebras/c.png"]);
    let text = format!("{:#}", folder(root.path(), ", \"classes\": \"imagenet\"").unwrap_err());
    assert!(text.contains("`zebras` is not named among them"), "{text}");
    let stated = folder(root.path(), ", \"classes\": \"imagenet\", \"labels\": {\"zebras\": \"zebra\"}").unwrap();
    assert_eq!(labels(&stated), [0, 340, 701]);
    // Classes that are all there may be picked from a folder of more.
    let picked = folder(root.path(), r#", "classes": ["zebras", "n01440764"]"#).unwrap();
    assert_eq!(told(&picked), [(0, "zebras/c.png"), (1, "n01440764/a.png")]);
}

#[test]
fn what_is_no_class_or_no_image_of_a_folder_is_left_out_or_refused() {
    let root = tempfile::tempdir().unwrap();
    let files = [
        "set/cat/a.png",
        "set/dog/b.png",
        "set/.ipynb_checkpoints/a.png",
        "set/cat/._a.png",
        "set/loose.png",
        "set/cat/notes.txt",
        "set/cat/more/c.png",
    ];
    tree(root.path(), &files);
    let params = r#"{"source": {"name": "folder", "path": "set"}}"#;
    fs::write(root.path().join("params.json"), params).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sample"));
    command.args(["--params", "params.json", "--out", "out.parquet", "--data-root", "."]).current_dir(root.path());
    let output = command.env_remove("RUST_LOG").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for counted in ["1 images beside", "2 hidden files or folders", "1 files that are no images"] {
        assert!(text.contains(counted), "{counted}: {text}");
    }
    let rows = artifact::read::<SampleRow>(&root.path().join("out.parquet")).unwrap().1;
    assert_eq!(told(&rows), [(0, "cat/a.png"), (0, "cat/more/c.png"), (1, "dog/b.png")]);
    tree(root.path(), &["set/dog/d.webp"]);
    let text = format!("{:#}", folder(root.path(), "").unwrap_err());
    assert!(text.contains("d.webp") && text.contains("convert"), "{text}");
    fs::remove_file(root.path().join("set/dog/d.webp")).unwrap();
    fs::create_dir(root.path().join("set/ant")).unwrap();
    let text = format!("{:#}", folder(root.path(), "").unwrap_err());
    assert!(text.contains("set/ant: no jpg, jpeg or png file"), "{text}");
    let rows = folder(root.path(), r#", "classes": ["dog", "ant", "cat"]"#).unwrap();
    assert_eq!(labels(&rows), [0, 2, 2], "a class without images keeps its number");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(root.path().join("set/cat"), root.path().join("set/ant/cats")).unwrap();
        let rows = folder(root.path(), "").unwrap();
        assert_eq!(rows[0].path, "ant/cats/a.png", "links to folders are followed");
        std::os::unix::fs::symlink(root.path().join("set"), root.path().join("set/ant/all")).unwrap();
        let text = format!("{:#}", folder(root.path(), "").unwrap_err());
        assert!(text.contains("a link to a folder that it is in"), "{text}");
    }
    let splits = tempfile::tempdir().unwrap();
    tree(splits.path(), &["set/train/cat/a.png", "set/val/cat/b.png"]);
    let text = format!("{:#}", folder(splits.path(), "").unwrap_err());
    assert!(text.contains("folders of splits") && text.contains("set/train"), "{text}");
}

/// Writes the images of a file as `datasets` does that read them from a folder: a path, and null for bytes.
fn outside(file: &Path, paths: &[&str]) {
    let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![None; paths.len()]));
    let labels: ArrayRef = Arc::new(Int64Array::from_iter_values(0..paths.len() as i64));
    let names: ArrayRef = Arc::new(StringArray::from(paths.to_vec()));
    let image: ArrayRef = Arc::new(StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), bytes),
        (Arc::new(Field::new("path", DataType::Utf8, true)), names),
    ]));
    write(file, image, labels);
}

fn write(file: &Path, image: ArrayRef, label: ArrayRef) {
    let fields =
        [("image", &image), ("label", &label)].map(|(name, column)| Field::new(name, column.data_type().clone(), true));
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), vec![image, label]).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(file).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn images_that_a_file_only_names_are_read_where_they_are() {
    let root = tempfile::tempdir().unwrap();
    tree(root.path(), &["a.png", "b.png"]);
    let path = |name: &str| root.path().join(name).display().to_string();
    let json = r#"{"source": {"name": "parquet", "files": ["set.parquet"]}, "classes": 2}"#;
    outside(&root.path().join("set.parquet"), &[&path("a.png"), &path("b.png")]);
    let rows = sample(root.path(), json, Shard::WHOLE).unwrap();
    assert_eq!((rows[0].png.clone(), rows[1].png.clone()), (png(0), png(1)));
    let digests = || {
        let (provenance, _) = artifact::read::<SampleRow>(&root.path().join("part-0-of-1.parquet")).unwrap();
        provenance.inputs
    };
    let before = digests();
    assert_eq!(before.len(), 2, "{before:?}");
    fs::write(root.path().join("b.png"), png(7)).unwrap();
    sample(root.path(), json, Shard::WHOLE).unwrap();
    assert_ne!(before, digests(), "another image at the path is another input");
    fs::remove_file(root.path().join("b.png")).unwrap();
    let text = error(root.path(), json);
    assert!(text.contains("row 1: holds no image, but the path") && text.contains("embed_table_storage"), "{text}");
    outside(&root.path().join("set.parquet"), &["a.png"]);
    let text = error(root.path(), json);
    assert!(text.contains("not below which folder") && text.contains("embed_table_storage"), "{text}");
}

#[test]
fn columns_of_other_kinds_are_named() {
    let root = tempfile::tempdir().unwrap();
    let json = r#"{"source": {"name": "parquet", "files": ["set.parquet"]}, "classes": 2}"#;
    let images: ArrayRef = Arc::new(BinaryArray::from_iter_values([png(0)]));
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a.png"]));
    let half: ArrayRef = Arc::new(arrow::array::Float64Array::from(vec![0.5]));
    let file = root.path().join("set.parquet");
    write(&file, text.clone(), Arc::new(Int64Array::from(vec![0])));
    let fault = error(root.path(), json);
    assert!(fault.contains("column `image` is neither bytes nor a struct with `bytes`, but Utf8"), "{fault}");
    write(&file, images.clone(), half);
    let fault = error(root.path(), json);
    assert!(fault.contains("row 0: label 0.5 is no whole number"), "{fault}");
    write(&file, images.clone(), Arc::new(NullArray::new(1)));
    let fault = error(root.path(), json);
    assert!(fault.contains("column `label` holds no whole numbers or names"), "{fault}");
    write(&file, images, Arc::new(Int64Array::from(vec![2])));
    let params = root.path().join("params.json");
    fs::write(&params, json).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sample"));
    command.args(["--params", "params.json", "--out", "out.parquet", "--data-root", "."]).current_dir(root.path());
    let output = command.output().unwrap();
    let fault = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{fault}");
    assert!(fault.contains("row 0: label 2 is outside the classes (there are 2)"), "{fault}");
}
