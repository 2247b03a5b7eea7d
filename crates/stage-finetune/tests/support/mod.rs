//! What the tests of the heavy stages share: a small sample, and runs of the real binaries.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::BTreeMap,
    io::Cursor,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use artifact::{FinetuneRow, Provenance, Row, SampleRow, Shard, Writer};
use game::Key;
use nets::{Weights, weights};
use serde_json::{Value, json};

/// Rows and columns of the test images.
pub const SIDE: u32 = 16;
/// Names of the test classes.
pub const CLASSES: [&str; 3] = ["red", "green", "blue"];

/// Provenance of a made-up table.
pub fn provenance(stage: &str, facts: Value) -> Provenance {
    Provenance {
        kind: stage.to_owned(),
        stage: stage.to_owned(),
        revision: 1,
        parameters: json!({}),
        shard: Shard::WHOLE,
        inputs: BTreeMap::new(),
        facts: serde_json::from_value(facts).unwrap(),
        environment: BTreeMap::new(),
    }
}

/// Writes a sample of noisy images whose class is the strongest colour; ids are not positions.
pub fn sample(path: &Path, images: u32) -> PathBuf {
    let rows: Vec<SampleRow> = (0..images).map(|i| image(100 + 7 * i, i % 3)).collect();
    write(path, &rows, &CLASSES, SIDE)
}

/// Writes a sample of square images.
pub fn write(path: &Path, rows: &[SampleRow], classes: &[&str], side: u32) -> PathBuf {
    let facts = json!({"classes": classes, "height": side, "width": side});
    let mut writer = Writer::<SampleRow>::create(path, provenance("sample", facts)).unwrap();
    writer.push(rows).unwrap();
    writer.finish().unwrap();
    path.to_owned()
}

fn image(id: u32, label: u32) -> SampleRow {
    let mut noise = vec![0.0; (3 * SIDE * SIDE) as usize];
    Key::root(99).at(u64::from(id)).fill_uniform(&mut noise);
    let pixels = noise.iter().enumerate().map(|(i, noise)| {
        let bright = if i as u32 % 3 == label { 60.0 } else { 0.0 };
        (bright + 150.0 * noise) as u8
    });
    row(id, label, pixels.collect(), SIDE)
}

/// A square image of packed 8-bit RGB.
pub fn row(id: u32, label: u32, pixels: Vec<u8>, side: u32) -> SampleRow {
    let image = image::RgbImage::from_vec(side, side, pixels).unwrap();
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    SampleRow { id, png: png.into_inner(), path: format!("{id}"), label }
}

/// A small network for these images.
pub fn model() -> Value {
    json!({"name": "cifar-resnet", "depth": 8, "width": 4, "classes": 3})
}

/// Untrained weights of it.
pub fn network_weights() -> Weights {
    let spec: nets::Spec = serde_json::from_value(model()).unwrap();
    let mut weights = weights::initialise(&spec.graph().unwrap(), Key::root(5)).unwrap();
    // Statistics of its own images, roughly, so that its logits are neither huge nor all the same.
    for (name, tensor) in &mut weights {
        if name.ends_with("running_var") {
            *tensor = (tensor.clone() * 2.0).unwrap();
        }
    }
    weights
}

/// Writes a finetune table of one epoch; the digest it records may be a wrong one.
pub fn store(table: &Path, network: &Weights, sha256: Option<String>) {
    std::fs::create_dir_all(table.parent().unwrap()).unwrap();
    let file = table.with_file_name("epoch-000.safetensors");
    weights::save(&file, network, &Default::default()).unwrap();
    let row = FinetuneRow {
        epoch: 0,
        steps: 0,
        learning_rate: None,
        train_loss: None,
        train_accuracy: None,
        validation_correct: None,
        validation_images: None,
        weights: Some("epoch-000.safetensors".to_owned()),
        sha256: Some(sha256.unwrap_or_else(|| artifact::sha256(&file).unwrap())),
        best: true,
    };
    let facts = json!({"model": model(), "classes": CLASSES, "height": SIDE, "width": SIDE});
    let mut writer = Writer::<FinetuneRow>::create(table, provenance("finetune", facts)).unwrap();
    writer.push(&[row]).unwrap();
    writer.finish().unwrap();
}

/// Runs a stage's binary on the CPU with parameters, the table to write, further arguments and inputs.
pub fn run(binary: &str, params: &Value, out: &Path, arguments: &[&str], inputs: &[&Path]) -> Output {
    command(binary, params, out, arguments, inputs).output().unwrap()
}

/// The command of [`run`].
pub fn command(binary: &str, params: &Value, out: &Path, arguments: &[&str], inputs: &[&Path]) -> Command {
    std::fs::create_dir_all(out.parent().unwrap()).unwrap();
    let file = out.with_extension("json");
    std::fs::write(&file, params.to_string()).unwrap();
    let mut command = Command::new(binary);
    command.arg("--params").arg(file).arg("--out").arg(out).args(["--device", "cpu"]).args(arguments).args(inputs);
    command.env_remove("RUST_LOG").env_remove("DATA_ROOT");
    command
}

/// Fails unless a run ended well.
#[track_caller]
pub fn done(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Fails unless a run ended with this code and a last line that holds all these words.
#[track_caller]
pub fn failed(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let last = text.lines().last().unwrap_or_default();
    assert!(words.iter().all(|word| last.contains(word)), "{words:?} in: {last}");
    assert!(!text.contains("internal error"), "{text}");
}

/// The rows of a table.
#[track_caller]
pub fn rows<R: Row>(path: &Path) -> Vec<R> {
    artifact::read(path).unwrap().1
}
