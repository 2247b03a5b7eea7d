//! The networks against other implementations of them.

use std::collections::HashMap;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::resnet;
use game::{Classifier, Key};
use nets::{AdamW, Network, Trainee};

use crate::{difference, gradient, images, keys, spec, trained};

#[test]
fn resnets_agree_with_candle_transformers() {
    for depth in [18, 34, 50] {
        let graph = spec(&format!(r#"{{"name": "resnet", "depth": {depth}, "classes": 10}}"#)).graph().unwrap();
        let weights = trained(&graph, Key::root(depth), DType::F32);
        let network = Network::new(&graph, &weights, &Device::Cpu).unwrap();
        let builder =
            VarBuilder::from_tensors(weights.into_iter().collect::<HashMap<_, _>>(), DType::F32, &Device::Cpu);
        let theirs = match depth {
            18 => resnet::resnet18(10, builder),
            34 => resnet::resnet34(10, builder),
            _ => resnet::resnet50(10, builder),
        };
        let x = images(Key::root(1), &[2, 3, 64, 64], DType::F32);
        let part = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu).unwrap().reshape((1, 3, 1, 1)).unwrap();
        let mean = part([0.485, 0.456, 0.406]);
        let std = part([0.229, 0.224, 0.225]);
        let normalised = x.broadcast_sub(&mean).unwrap().broadcast_div(&std).unwrap();
        let expected = theirs.unwrap().forward(&normalised).unwrap();
        let found = network.logits(&x, &keys(2)).unwrap();
        assert!(difference(&expected, &found) < 1e-4, "depth {depth}: {}", difference(&expected, &found));
    }
}

/// Fixtures made by PyTorch in f64: `tests/golden/make.py`.
fn golden(name: &str) -> nets::Weights {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors"));
    nets::weights::load(&path).unwrap()
}

#[test]
fn logits_and_input_gradients_agree_with_pytorch() {
    for (name, json) in [
        ("cifar-a", r#"{"name": "cifar-resnet", "depth": 8, "width": 3, "classes": 4}"#),
        ("cifar-b", r#"{"name": "cifar-resnet", "depth": 8, "width": 3, "classes": 4, "shortcut": "B"}"#),
    ] {
        let graph = spec(json).graph().unwrap();
        let mut fixture = golden(name);
        let [x, upstream, logits, expected] =
            ["x", "upstream", "logits", "gradient"].map(|part| fixture.remove(&format!("fixture.{part}")).unwrap());
        fixture.retain(|name, _| !name.starts_with("after.") && !name.starts_with("fixture."));
        let weights = nets::weights::prepare(&graph, fixture, name.as_ref()).unwrap();
        let network = Network::new(&graph, &weights, &Device::Cpu).unwrap();
        let found = network.logits(&x, &keys(x.dim(0).unwrap())).unwrap();
        assert!(difference(&logits, &found) < 1e-12, "{name}");
        assert!(difference(&expected, &gradient(&network, &x, &upstream).unwrap()) < 1e-11, "{name}");
    }
}

#[test]
fn training_agrees_with_pytorch() {
    for (name, json) in [
        ("cifar-a", r#"{"name": "cifar-resnet", "depth": 8, "width": 3, "classes": 4}"#),
        ("cifar-b", r#"{"name": "cifar-resnet", "depth": 8, "width": 3, "classes": 4, "shortcut": "B"}"#),
    ] {
        let graph = spec(json).graph().unwrap();
        let fixture = golden(name);
        let labels: Vec<u32> =
            fixture["fixture.labels"].to_vec1::<i64>().unwrap().into_iter().map(|label| label as u32).collect();
        let losses = fixture["fixture.losses"].to_vec1::<f64>().unwrap();
        let mut trainee = Trainee::new(&graph, &fixture, &Device::Cpu).unwrap();
        let mut optimiser = AdamW::new(nets::train::Settings { weight_decay: 0.1, ..Default::default() });
        for (step, expected) in losses.iter().enumerate() {
            let (loss, _) = trainee.loss(&fixture["fixture.x"], &labels).unwrap();
            let found: f64 = loss.to_scalar().unwrap();
            assert!((found / expected - 1.0).abs() < 1e-8, "{name}, step {step}: {found} against {expected}");
            optimiser.step(&mut trainee, &loss.backward().unwrap(), 0.01).unwrap();
        }
        for (name, found) in trainee.weights().unwrap() {
            let error = difference(&fixture[&format!("after.{name}")], &found);
            assert!(error < 1e-6, "{name}: {error}");
        }
    }
}
