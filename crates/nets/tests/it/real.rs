//! Published weights on real images, where they are at hand.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use game::Classifier;
use nets::Network;
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
};

use crate::{keys, resize::resize, spec};

/// The folder of real data: `DATA_ROOT`, or `shared/data` beside the repository.
fn data(path: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let path = std::env::var_os("DATA_ROOT").map_or(beside, PathBuf::from).join(path);
    if !path.exists() {
        eprintln!("skipped: no {} (set DATA_ROOT)", path.display());
        return None;
    }
    Some(path)
}

/// Every `every`-th image as RGB bytes with its side, and its label.
fn read(path: &Path, every: usize) -> Vec<(Vec<u8>, usize, u32)> {
    let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    reader.get_row_iter(None).unwrap().step_by(every).map(|row| example(&row.unwrap())).collect()
}

fn example(row: &Row) -> (Vec<u8>, usize, u32) {
    let field = |row: &Row, name: &str| row.get_column_iter().find(|(column, _)| *column == name).unwrap().1.clone();
    let Field::Group(image) = field(row, "image") else { panic!("an image is a struct") };
    let Field::Bytes(bytes) = field(&image, "bytes") else { panic!("bytes are bytes") };
    let Field::Long(label) = field(row, "label") else { panic!("a label is an integer") };
    let image = image::load_from_memory(bytes.data()).unwrap().to_rgb8();
    (image.as_raw().clone(), image.width() as usize, label as u32)
}

/// Interleaved bytes to `(3, side, side)` in `[0, 1]`.
fn tensor(image: &[u8], side: usize) -> Tensor {
    let image = Tensor::from_slice(image, (side, side, 3), &Device::Cpu).unwrap();
    (image.permute((2, 0, 1)).unwrap().to_dtype(DType::F32).unwrap() / 255.0).unwrap()
}

fn network(json: &str, weights: &Path) -> Network {
    let graph = spec(json).graph().unwrap();
    let weights = nets::weights::prepare(&graph, nets::weights::load(weights).unwrap(), weights).unwrap();
    Network::new(&graph, &weights, &Device::Cpu).unwrap()
}

/// Right answers of `network` on images of `side`.
fn right(network: &Network, images: &[(Vec<u8>, usize, u32)], side: usize) -> usize {
    let mut right = 0;
    for batch in images.chunks(50) {
        let tensors = batch.iter().map(|(image, from, _)| {
            if *from == side { tensor(image, side) } else { tensor(&resize(image, *from, side), side) }
        });
        let x = Tensor::stack(&tensors.collect::<Vec<_>>(), 0).unwrap();
        let predicted: Vec<u32> = network.logits(&x, &keys(batch.len())).unwrap().argmax(1).unwrap().to_vec1().unwrap();
        right += predicted.iter().zip(batch).filter(|(p, (_, _, label))| *p == label).count();
    }
    right
}

#[test]
fn cifar_resnets_reach_their_accuracy() {
    let Some(images) = data("images/cifar10-test-1000.parquet") else { return };
    let images = read(&images, 1);
    assert_eq!(images.len(), 1000);
    for (depth, expected) in [(20, 915), (32, 928), (56, 926)] {
        let Some(weights) = data(&format!("weights/cifar10-resnet{depth}.safetensors")) else { return };
        let network = network(&format!(r#"{{"name": "cifar-resnet", "depth": {depth}}}"#), &weights);
        let right = right(&network, &images, 32);
        assert!(right.abs_diff(expected) <= 4, "ResNet-{depth}: {right} of 1000, not {expected}");
    }
}

const MOBILENET: &str =
    r#"{"name": "mobilenet-v2", "padding": "same", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}"#;

fn mobilenet(every: usize) -> Option<(usize, usize)> {
    let (images, weights) = (data("images/nips17-500.parquet")?, data("weights/imagenet-mobilenet-v2.safetensors")?);
    let images = read(&images, every);
    Some((right(&network(MOBILENET, &weights), &images, 224), images.len()))
}

#[test]
fn mobilenet_reaches_its_accuracy() {
    // Every fifth image here; all 500 in the ignored test below.
    let Some((right, images)) = mobilenet(5) else { return };
    assert_eq!(images, 100);
    assert!((74..=90).contains(&right), "{right} of 100");
}

#[test]
#[ignore = "takes a while: the whole of what is checked in part above"]
fn mobilenet_reaches_its_accuracy_on_all_images() {
    let Some((right, images)) = mobilenet(1) else { return };
    eprintln!("{right} of {images}");
    assert!(images == 500 && right.abs_diff(407) <= 2, "{right} of {images}");
}

/// A picture's pixels, its side, and its label.
type Labelled = (Vec<u8>, usize, u32);

/// EfficientNet-Lite0 with other parameters, on the first images.
fn lite(parameters: &str, table: &str, count: usize) -> Option<(Network, Vec<Labelled>)> {
    let (images, weights) = (data(table)?, data("weights/imagenet-efficientnet-lite0.safetensors")?);
    let mut images = read(&images, 1);
    images.truncate(count);
    let json = format!(r#"{{"name": "efficientnet-lite", "variant": 0 {parameters}}}"#);
    Some((network(&json, &weights), images))
}

#[test]
fn efficientnet_reaches_its_accuracy_only_with_its_own_normalisation_and_padding() {
    let imagenet = r#", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]"#;
    for (parameters, expected) in [("", 90usize), (imagenet, 74), (r#", "padding": "symmetric""#, 81)] {
        let Some((network, images)) = lite(parameters, "images/nips17-500.parquet", 100) else { return };
        let right = right(&network, &images, 224);
        assert!(right.abs_diff(expected) <= 1, "{parameters}: {right} of 100, not {expected}");
    }
}
