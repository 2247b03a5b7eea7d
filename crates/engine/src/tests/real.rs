//! Published weights on real images, where `DATA_ROOT` (or `shared/data` beside the repository) has them.

use std::path::{Path, PathBuf};

use game::{Key, Phase};
use nets::weights::{load, prepare};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};

use candle_core::{DType, Device, Tensor};
use game::Classifier;
use rayon::prelude::*;

use super::{Case, distance, spec};
use crate::Plan;

#[path = "../../../nets/tests/it/resize.rs"]
mod resize;
use resize::resize;

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

/// A number of a row.
fn number(row: &Row, column: &str) -> Option<usize> {
    match row.get_column_iter().find(|(name, _)| *name == column)?.1 {
        Field::Long(number) => usize::try_from(*number).ok(),
        _ => None,
    }
}

fn rows(table: &Path) -> impl Iterator<Item = Row> {
    let reader = SerializedFileReader::new(std::fs::File::open(table).unwrap()).unwrap();
    let rows: Vec<Row> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    rows.into_iter()
}

/// Pixels `(3, side, side)` in `[0, 1]` of interleaved bytes.
fn planes(bytes: &[u8]) -> impl Iterator<Item = f32> {
    (0..3).flat_map(move |channel| bytes.iter().skip(channel).step_by(3).map(|&byte| f32::from(byte) / 255.0))
}

/// Pixels of every `step`-th image of a table, `(images, 3, side, side)` in `[0, 1]`, cut to the middle.
fn images(table: &Path, step: usize, count: usize, side: usize) -> Vec<f32> {
    let mut pixels = Vec::new();
    for row in rows(table).step_by(step).take(count) {
        let image = image::load_from_memory(&bytes(&row).unwrap()).unwrap().to_rgb8();
        let (left, top) = ((image.width() - side as u32) / 2, (image.height() - side as u32) / 2);
        let image = image::imageops::crop_imm(&image, left, top, side as u32, side as u32).to_image();
        pixels.extend(planes(image.as_raw()));
    }
    pixels
}

/// Pixels of every image of a table, scaled as PIL does, and their labels.
fn scaled(table: &Path, side: usize) -> (Vec<f32>, Vec<usize>) {
    let images: Vec<_> = rows(table).map(|row| (bytes(&row).unwrap(), number(&row, "label").unwrap())).collect();
    let decoded = images.par_iter().map(|(bytes, _)| {
        let image = image::load_from_memory(bytes).unwrap().to_rgb8();
        let from = image.width() as usize;
        let image = if from == side { image.into_raw() } else { resize(image.as_raw(), from, side) };
        planes(&image).collect::<Vec<f32>>()
    });
    let pixels: Vec<Vec<f32>> = decoded.collect();
    (pixels.concat(), images.into_iter().map(|(_, label)| label).collect())
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
    let json = MOBILENET.0;
    let table = "images/nips17-500.parquet";
    check("mobilenet", json, "weights/imagenet-mobilenet-v2.safetensors", table, [250, 2, 224]);
}

/// Specifications and weights.
const MOBILENET: (&str, &str) = (
    r#"{"name": "mobilenet-v2", "padding": "same", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}"#,
    "weights/imagenet-mobilenet-v2.safetensors",
);
const LITE: (&str, &str) =
    (r#"{"name": "efficientnet-lite", "variant": 0}"#, "weights/imagenet-efficientnet-lite0.safetensors");
const PHOTOGRAPHS: &str = "images/nips17-500.parquet";
/// ImageNet's numbers of ImageNette's classes.
const IMAGENETTE: [usize; 10] = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701];

#[test]
fn efficientnet_on_photographs() {
    check("efficientnet", LITE.0, LITE.1, PHOTOGRAPHS, [250, 2, 224]);
}

fn plan((json, weights): (&str, &str)) -> Option<Plan> {
    let path = data(weights)?;
    let graph = spec(json);
    let weights = prepare(&graph, load(&path).unwrap(), &path).unwrap();
    Some(Plan::new(&graph, &weights).unwrap())
}

/// Logits of every image, `classes` an image.
fn logits(plan: &Plan, pixels: &[f32], side: usize) -> Vec<f32> {
    let image = 3 * side * side;
    let batches = pixels.chunks(50 * image).flat_map(|pixels| {
        let x = Tensor::from_slice(pixels, (pixels.len() / image, 3, side, side), &Device::Cpu).unwrap();
        plan.logits(&x, &[]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    });
    batches.collect()
}

/// Which of `among` has the largest logit.
fn best(logits: &[f32], among: impl Iterator<Item = usize>) -> usize {
    among.max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap()
}

#[test]
fn networks_for_imagenet_reach_their_accuracy() {
    let Some(table) = data(PHOTOGRAPHS) else { return };
    let (pixels, labels) = scaled(&table, 224);
    for (net, expected) in [(LITE, 453usize), (MOBILENET, 407)] {
        let Some(plan) = plan(net) else { return };
        let logits = logits(&plan, &pixels, 224);
        let right = logits.chunks(1000).zip(&labels).filter(|(logits, label)| best(logits, 0..1000) == **label).count();
        eprintln!("{}: {right} of {} photographs", net.0, labels.len());
        assert!(labels.len() == 500 && right.abs_diff(expected) <= 2, "{}: {right} of 500, not {expected}", net.0);
    }
}

#[test]
fn efficientnet_knows_imagenette_among_ten_classes_and_among_all() {
    let (Some(table), Some(plan)) = (data("images/imagenette-val-785.parquet"), plan(LITE)) else { return };
    let (pixels, labels) = scaled(&table, 224);
    let logits = logits(&plan, &pixels, 224);
    let right = |among: &[usize]| {
        let images = logits.chunks(1000).zip(&labels);
        images.filter(|(logits, label)| best(logits, among.iter().copied()) == IMAGENETTE[**label]).count()
    };
    let (ten, all) = (right(&IMAGENETTE), right(&Vec::from_iter(0..1000)));
    eprintln!("efficientnet-lite0: {ten} of {} among ten classes, {all} among all", labels.len());
    assert!(labels.len() == 785 && ten.abs_diff(781) <= 1 && all.abs_diff(583) <= 4, "{ten} and {all} of 785");
}

/// What PyTorch answers to the same images: run tests/independent/input_gradients.py, and name its file in
/// `PYTORCH_ANSWERS`.
#[test]
#[ignore = "asks for a file that PyTorch writes"]
fn gradients_beside_pytorch() {
    let path = PathBuf::from(std::env::var_os("PYTORCH_ANSWERS").expect("the file is named in PYTORCH_ANSWERS"));
    let answers = load(&path).unwrap();
    let Some(table) = data(PHOTOGRAPHS) else { return };
    let floats = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (pixels, _) = scaled(&table, 224);
    for (name, net) in [("efficientnet-lite0", LITE), ("mobilenet-v2", MOBILENET)] {
        let Some(plan) = plan(net) else { return };
        let part = |part: &str| floats(&answers[&format!("{name}.{part}")]);
        let (images, upstream) = (part("images"), part("upstream"));
        let (n, image) = (upstream.len() / 1000, 3 * 224 * 224);
        let apart = images.iter().zip(&pixels).filter(|(a, b)| (*a - *b).abs() > 1e-6).count();
        let x = Tensor::from_slice(&images, (n, 3, 224, 224), &Device::Cpu).unwrap();
        let mut seen = Vec::new();
        let found = plan.input_gradient(&x, &[], &mut |logits| {
            seen = floats(&logits.to_dtype(DType::F32)?);
            Tensor::from_slice(&upstream, (n, 1000), &Device::Cpu)
        });
        let (found, theirs, wide) = (floats(&found.unwrap()), part("gradient"), part("gradient64"));
        let wider = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let gaps = |ours: &[f32], theirs: &[f32], of: usize| {
            let mut gaps: Vec<f64> =
                ours.chunks(of).zip(theirs.chunks(of)).map(|(a, b)| distance(a, &wider(b))).collect();
            gaps.sort_by(f64::total_cmp);
            (gaps[gaps.len() / 2], gaps[gaps.len() - 1])
        };
        let signs = |ours: &[f32], theirs: &[f32]| {
            let sign = |x: &f32| x.partial_cmp(&0.0);
            ours.iter().zip(theirs).filter(|(a, b)| sign(a) == sign(b)).count() as f64 / ours.len() as f64
        };
        eprintln!(
            "{name}, {n} images ({apart} of {} pixels differ): logits apart by {:.1e}, gradients by {:.1e} (at worst {:.1e}), \
             {:.4}% of signs agree; f64 from ours {:.1e} (at worst {:.1e}, {:.4}%), from PyTorch's f32 {:.1e} (at worst \
             {:.1e}, {:.4}%)",
            images.len(),
            gaps(&seen, &part("logits"), 1000).1,
            gaps(&found, &theirs, image).0,
            gaps(&found, &theirs, image).1,
            100.0 * signs(&found, &theirs),
            gaps(&found, &wide, image).0,
            gaps(&found, &wide, image).1,
            100.0 * signs(&found, &wide),
            gaps(&theirs, &wide, image).0,
            gaps(&theirs, &wide, image).1,
            100.0 * signs(&theirs, &wide),
        );
        assert_eq!(apart, 0, "{name}: the images are not the same");
        assert!(gaps(&seen, &part("logits"), 1000).1 < 1e-4, "{name}: logits");
        assert!(gaps(&found, &wide, image).0 < 1e-4 && signs(&found, &wide) > 0.999, "{name}: gradients");
    }
}
