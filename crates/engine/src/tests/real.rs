//! Published weights on real images, where `DATA_ROOT` (or `shared/data` beside the repository) has them.

use std::path::{Path, PathBuf};

use game::{Key, Phase};
use nets::weights::{load, prepare};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};

use super::{Case, spec};

fn data(file: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let path = std::env::var_os("DATA_ROOT").map_or_else(beside, PathBuf::from).join(file);
    if !path.exists() {
        eprintln!("skipped: there is no {}", path.display());
        return None;
    }
    Some(path)
}

/// The bytes of a row's image, `image: struct<bytes, path>`.
fn bytes(row: &Row) -> Option<Vec<u8>> {
    let (_, Field::Group(image)) = row.get_column_iter().find(|(name, _)| *name == "image")? else { return None };
    match image.get_column_iter().find(|(name, _)| *name == "bytes")?.1 {
        Field::Bytes(bytes) => Some(bytes.data().to_vec()),
        _ => None,
    }
}

/// Pixels of every `step`-th image of a table, `(images, 3, side, side)` in `[0, 1]`, cut to the middle.
fn images(table: &Path, step: usize, count: usize, side: usize) -> Vec<f32> {
    let reader = SerializedFileReader::new(std::fs::File::open(table).unwrap()).unwrap();
    let mut pixels = Vec::new();
    for row in reader.get_row_iter(None).unwrap().step_by(step).take(count) {
        let image = image::load_from_memory(&bytes(&row.unwrap()).unwrap()).unwrap().to_rgb8();
        let (left, top) = ((image.width() - side as u32) / 2, (image.height() - side as u32) / 2);
        let image = image::imageops::crop_imm(&image, left, top, side as u32, side as u32).to_image();
        for channel in 0..3 {
            pixels.extend(image.pixels().map(|pixel| f32::from(pixel[channel]) / 255.0));
        }
    }
    pixels
}

fn check(name: &str, json: &str, weights: &str, table: &str, [step, count, side]: [usize; 3]) {
    let (Some(path), Some(table)) = (data(weights), data(table)) else { return };
    let graph = spec(json);
    let weights = prepare(&graph, load(&path).unwrap(), &path).unwrap();
    let pixels = images(&table, step, count, side);
    let mut upstream = vec![0.0; count * graph.classes];
    Key::root(9).phase(Phase::Data).fill_normal(&mut upstream);
    Case::of(&graph, &weights, [side, side], pixels, upstream).check(name);
}

#[test]
fn cifar_resnets_on_cifar() {
    let table = "images/cifar10-test-1000.parquet";
    let net = |depth: usize| format!(r#"{{"name": "cifar-resnet", "depth": {depth}}}"#);
    check("resnet-20", &net(20), "weights/cifar10-resnet20.safetensors", table, [16, 60, 32]);
    check("resnet-56", &net(56), "weights/cifar10-resnet56.safetensors", table, [101, 8, 32]);
}

#[test]
fn mobilenet_on_photographs() {
    let json = r#"{"name": "mobilenet-v2", "padding": "same", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}"#;
    let table = "images/nips17-500.parquet";
    check("mobilenet", json, "weights/imagenet-mobilenet-v2.safetensors", table, [250, 2, 224]);
}
