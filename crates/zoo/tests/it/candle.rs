//! Beside candle's own networks, forward, with the names that candle reads: those of the Hugging Face library and of
//! torchvision find their places.

use std::sync::{Arc, Mutex};

use candle_core::{Module, Shape};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use candle_transformers::models::{convnext, efficientnet, mobilenetv4, vit};
use game::Classifier as _;

use super::*;

/// Makes every tensor that is asked for, but some, and remembers them.
struct Maker {
    made: Arc<Mutex<Weights>>,
    without: &'static str,
}

impl SimpleBackend for Maker {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        if name.contains(self.without) || shape.dims().contains(&0) {
            candle_core::bail!("no tensor `{name}`");
        }
        // A vector that candle calls a weight is a normalisation's, as in timm.
        let tensor = weight(name, shape.dims()).to_dtype(dtype)?;
        self.made.lock().unwrap().insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("no shape of `{name}`")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// The largest difference of logits, relative to the largest logit, between candle's network and ours with its weights.
fn distance<M: Module>(spec: &Spec, without: &'static str, build: impl FnOnce(VarBuilder<'_>) -> Result<M>) -> f64 {
    let made = Arc::<Mutex<Weights>>::default();
    let maker = Box::new(Maker { made: made.clone(), without });
    let theirs = build(VarBuilder::from_backend(maker, DType::F32, Device::Cpu)).unwrap();
    let mut weights = made.lock().unwrap().clone();
    // Candle asks for the normalisation of a depthwise layer first, and then finds that there is no such layer.
    let layers: Vec<String> =
        weights.keys().filter_map(|name| name.strip_suffix("conv.weight").map(str::to_owned)).collect();
    weights.retain(|name, _| name.split_once("bn.").is_none_or(|(layer, _)| layers.iter().any(|other| other == layer)));
    let ours =
        Zoo::new(spec, &zoo::prepare(spec, weights, "candle.safetensors".as_ref()).unwrap(), &Device::Cpu).unwrap();
    let x = images(spec, 2).to_dtype(DType::F32).unwrap();
    let part =
        |values: [f64; 3]| Tensor::new(&values.map(|v| v as f32), &Device::Cpu).unwrap().reshape((1, 3, 1, 1)).unwrap();
    let normalised = x.broadcast_sub(&part(spec.mean)).unwrap().broadcast_div(&part(spec.std)).unwrap();
    let theirs = numbers(&theirs.forward(&normalised).unwrap());
    let ours = numbers(&ours.logits(&x, &[]).unwrap());
    let most = theirs.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    assert!(most > 0.01, "{}: candle's logits are all near zero", spec.architecture);
    ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / most
}

fn spec(name: &str, side: usize) -> Spec {
    Spec { side, classes: 10, ..Spec::of(name).unwrap() }
}

/// Candle's transformer as a module.
struct Transformer(vit::Model);

impl Module for Transformer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}

#[test]
fn a_vit_is_candles() {
    let spec = Spec { width: 0.25, depth: 0.25, ..spec("vit-base-patch16-224", 48) };
    let config = vit::Config {
        hidden_size: 192,
        num_hidden_layers: 3,
        num_attention_heads: 12,
        intermediate_size: 768,
        hidden_act: candle_nn::Activation::Gelu,
        layer_norm_eps: 1e-6,
        image_size: 48,
        patch_size: 16,
        num_channels: 3,
        qkv_bias: true,
    };
    let far = distance(&spec, "nothing", |vb| Ok(Transformer(vit::Model::new(&config, 10, vb)?)));
    assert!(far < 1e-5, "{far:e}");
}

#[test]
fn a_convnext_of_either_version_is_candles() {
    for (name, config, without) in [
        ("convnext-atto", convnext::Config::atto(), "grn"),
        ("convnextv2-atto", convnext::Config::atto(), "gamma"),
        ("convnext-tiny", convnext::Config::tiny(), "grn"),
    ] {
        let far = distance(&spec(name, 64), without, |vb| convnext::convnext(&config, 10, vb));
        assert!(far < 1e-4, "{name}: {far:e}");
    }
}

#[test]
fn an_efficientnet_of_tensorflow_is_candles() {
    let config = efficientnet::MBConvConfig::b1();
    let far =
        distance(&spec("tf-efficientnet-b1", 63), "nothing", |vb| efficientnet::EfficientNet::new(vb, config, 10));
    assert!(far < 1e-4, "{far:e}");
}

#[test]
fn every_mobilenet_is_candles() {
    for (name, config) in [
        ("mobilenetv4-conv-small", mobilenetv4::Config::small()),
        ("mobilenetv4-conv-medium", mobilenetv4::Config::medium()),
        ("mobilenetv4-conv-large", mobilenetv4::Config::large()),
    ] {
        let far = distance(&spec(name, 64), "layer_scale", |vb| mobilenetv4::mobilenetv4(&config, 10, vb));
        assert!(far < 1e-4, "{name}: {far:e}");
    }
}
