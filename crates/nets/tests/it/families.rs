//! EfficientNet-Lite, DenseNet, VGG and the CIFAR networks of papers on robustness against timm, torchvision and PyTorch:
//! `tests/golden/families.py`.

use candle_core::{Device, Tensor};
use game::Classifier;
use nets::{AdamW, Network, Trainee, train::Settings, weights};

use crate::{
    difference, images, keys, spec,
    table2::{filled, record, unit},
    vector,
};

/// The script's networks: their names there, specification, and the size of the images.
const NETWORKS: [(&str, &str, [usize; 3]); 18] = [
    ("efficientnet-lite-0", r#"{"name": "efficientnet-lite", "variant": 0, "classes": 10}"#, [2, 64, 75]),
    ("efficientnet-lite-1", r#"{"name": "efficientnet-lite", "variant": 1, "classes": 10}"#, [2, 71, 60]),
    ("efficientnet-lite-2", r#"{"name": "efficientnet-lite", "variant": 2, "classes": 10}"#, [2, 65, 66]),
    ("efficientnet-lite-4", r#"{"name": "efficientnet-lite", "variant": 4, "classes": 10}"#, [2, 33, 64]),
    (
        "efficientnet-lite-0-symmetric",
        r#"{"name": "efficientnet-lite", "variant": 0, "classes": 10, "padding": "symmetric"}"#,
        [2, 64, 75],
    ),
    ("densenet-121", r#"{"name": "densenet", "depth": 121, "classes": 10}"#, [2, 64, 70]),
    ("densenet-161", r#"{"name": "densenet", "depth": 161, "classes": 10}"#, [2, 33, 48]),
    ("vgg11", r#"{"name": "vgg", "depth": 11, "hidden": 20, "classes": 10}"#, [1, 64, 70]),
    ("vgg13_bn", r#"{"name": "vgg", "depth": 13, "batch_norm": true, "hidden": 20, "classes": 10}"#, [1, 32, 75]),
    ("vgg16", r#"{"name": "vgg", "depth": 16, "hidden": 20, "classes": 10}"#, [1, 224, 230]),
    (
        "cifar-vgg-16",
        r#"{"name": "vgg", "depth": 16, "batch_norm": true, "head": "cifar", "classes": 10}"#,
        [2, 32, 32],
    ),
    ("cifar-densenet-40", r#"{"name": "cifar-densenet", "depth": 40}"#, [2, 32, 32]),
    ("wrn-16-2", r#"{"name": "wrn", "depth": 16, "width": 2}"#, [2, 32, 32]),
    (
        "wrn-10-1",
        r#"{"name": "wrn", "depth": 10, "width": 1, "mean": [0.4914, 0.4822, 0.4465], "std": [0.2471, 0.2435, 0.2616]}"#,
        [2, 32, 32],
    ),
    ("preact-rice", r#"{"name": "preact-resnet", "depth": 18}"#, [2, 32, 32]),
    ("preact-kuangliu", r#"{"name": "preact-resnet", "depth": 18, "final_norm": false}"#, [2, 32, 32]),
    ("preact-wong", r#"{"name": "preact-resnet", "depth": 18, "final_norm": false, "shortcut": "input"}"#, [2, 32, 32]),
    ("preact-50", r#"{"name": "preact-resnet", "depth": 50}"#, [2, 32, 32]),
];

#[test]
fn networks_agree_with_published_programs() {
    let golden =
        weights::load(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families.safetensors"));
    let golden = golden.unwrap();
    assert_eq!(golden.len(), 3 * NETWORKS.len());
    for (name, json, [n, h, w]) in NETWORKS {
        let graph = spec(json).graph().unwrap();
        let weights = weights::prepare(&graph, filled(&graph, str::to_owned), name.as_ref()).unwrap();
        let network = Network::new(&graph, &weights, &Device::Cpu).unwrap();
        let x = unit(&format!("{name}.x"), &[n, 3, h, w]);
        let [logits, gradient] = record(name, &x, |x| network.logits(x, &keys(n)));
        let part = |part: &str| &golden[&format!("{name}.{part}")];
        let some: Vec<f64> = vector(&gradient).into_iter().step_by(101).collect();
        let some = Tensor::new(some, &Device::Cpu).unwrap();
        let norms = [gradient.abs().unwrap().sum((1, 2, 3)), gradient.sqr().unwrap().sum((1, 2, 3)).unwrap().sqrt()];
        let norms = Tensor::stack(&norms.map(Result::unwrap), 0).unwrap();
        let gaps = [("out", logits), ("some", some), ("norms", norms)].map(|(of, x)| difference(part(of), &x));
        assert!(gaps.iter().all(|&gap| gap < 1e-9), "{name}: logits, some of the gradient and its norms by {gaps:?}");
    }
}

/// A few steps of the optimiser on one batch lower its loss, whatever the family.
#[test]
fn every_family_trains() {
    for (json, side) in [
        (r#"{"name": "efficientnet-lite", "variant": 0, "classes": 4}"#, 33),
        (r#"{"name": "densenet", "depth": 121, "classes": 4}"#, 33),
        (r#"{"name": "cifar-densenet", "depth": 22, "classes": 4}"#, 16),
        (r#"{"name": "vgg", "depth": 11, "hidden": 20, "classes": 4}"#, 39),
        (r#"{"name": "vgg", "depth": 11, "batch_norm": true, "head": "cifar", "classes": 4}"#, 32),
        (r#"{"name": "wrn", "depth": 10, "width": 2, "classes": 4}"#, 16),
        (r#"{"name": "preact-resnet", "depth": 18, "classes": 4}"#, 16),
        (r#"{"name": "preact-resnet", "depth": 18, "shortcut": "input", "final_norm": false, "classes": 4}"#, 16),
    ] {
        let graph = spec(json).graph().unwrap();
        let start = nets::weights::initialise(&graph, game::Key::root(1)).unwrap();
        let x = images(game::Key::root(2), &[8, 3, side, side], candle_core::DType::F32);
        let labels: Vec<u32> = (0..8).map(|i| i % 4).collect();
        let mut trainee = Trainee::new(&graph, &start, &Device::Cpu).unwrap();
        let mut optimiser = AdamW::new(Settings::default());
        let mut losses = Vec::new();
        for _ in 0..4 {
            let query = trainee.query(&x, &labels).unwrap();
            optimiser.step(&mut trainee, &query.gradients, 1e-4).unwrap();
            losses.push(query.loss);
        }
        assert!(losses[1] < losses[0] && losses[3] < losses[1], "{json}: {losses:?}");
    }
}
