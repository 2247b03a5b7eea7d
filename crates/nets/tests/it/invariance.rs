//! The same bits in any batch and on any number of threads.

use candle_core::{DType, Device, Tensor};
use game::{Classifier, Key};
use nets::{AdamW, Inside, Network, Trainee};

use crate::{images, keys, normal, spec, trained, vector};

const NETWORKS: [&str; 11] = [
    r#"{"name": "cifar-resnet", "depth": 8}"#,
    r#"{"name": "resnet", "depth": 18, "classes": 10, "stem": "cifar"}"#,
    r#"{"name": "resnet", "depth": 50, "classes": 10}"#,
    r#"{"name": "mobilenet-v2", "classes": 1000, "width": 0.25}"#,
    r#"{"name": "wide-resnet", "depth": 14, "width": 2}"#,
    r#"{"name": "wrn", "depth": 10, "width": 2}"#,
    r#"{"name": "preact-resnet", "depth": 18}"#,
    r#"{"name": "cifar-densenet", "depth": 22}"#,
    r#"{"name": "efficientnet-lite", "variant": 0, "classes": 10}"#,
    r#"{"name": "vgg", "depth": 11, "hidden": 20, "classes": 10}"#,
    r#"{"name": "cifar-resnet", "depth": 14, "activation": {"name": "k-winners-take-all", "share": 0.1}}"#,
];

fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn an_image_has_the_same_logits_and_gradient_in_any_batch() {
    let graphs = NETWORKS.map(|json| spec(json).graph().unwrap());
    let pruned = [0, 3, 4].map(|index: usize| Inside::ActivationPruning { samples: 2.0 }.apply(&graphs[index]));
    let inception = spec(r#"{"name": "inception-v3", "classes": 10}"#).graph().unwrap();
    let cases = graphs.into_iter().chain(pruned).map(|graph| (graph, 32)).chain([(inception, 75)]);
    for (number, (graph, size)) in cases.enumerate() {
        let network = Network::new(&graph, &trained(&graph, Key::root(1), DType::F32), &Device::Cpu).unwrap();
        let x = images(Key::root(2), &[5, 3, size, size], DType::F32);
        let upstream = normal(Key::root(3), &[5, graph.classes], DType::F32);
        let keys: Vec<Key> = (0..5).map(|image| Key::root(4).at(image)).collect();
        let run = |range: std::ops::Range<usize>| {
            let part = |tensor: &Tensor| tensor.narrow(0, range.start, range.len()).unwrap();
            let (x, keys) = (part(&x), &keys[range.clone()]);
            let gradient = network.input_gradient(&x, keys, &mut |_| Ok(part(&upstream))).unwrap();
            [vector(&network.logits(&x, keys).unwrap()), vector(&gradient)]
        };
        let whole = on_threads(1, || run(0..5));
        assert_eq!(whole, on_threads(3, || run(0..5)), "network {number}");
        let parts = [run(0..1), run(1..3), run(3..5)];
        for part in 0..2 {
            let joined: Vec<f64> = parts.iter().flat_map(|p| p[part].clone()).collect();
            assert_eq!(whole[part], joined, "network {number}");
        }
    }
}

#[test]
fn training_gives_the_same_bits_on_any_number_of_threads() {
    for json in [
        r#"{"name": "cifar-resnet", "depth": 8, "width": 8}"#,
        r#"{"name": "cifar-resnet", "depth": 8, "width": 8, "activation": {"name": "k-winners-take-all", "share": 0.1}}"#,
        r#"{"name": "wide-resnet", "depth": 8, "width": 1}"#,
    ] {
        let graph = spec(json).graph().unwrap();
        let start = nets::weights::initialise(&graph, Key::root(5)).unwrap();
        let x = images(Key::root(6), &[37, 3, 16, 16], DType::F32);
        let labels: Vec<u32> = (0..37).map(|i| i % 10).collect();
        let train = |compiled: bool| {
            let mut trainee = Trainee::new(&graph, &start, &Device::Cpu).unwrap();
            let mut optimiser = AdamW::new(nets::train::Settings::default());
            for _ in 0..3 {
                let gradients = match compiled {
                    true => trainee.query(&x, &labels).unwrap().gradients,
                    false => trainee.loss(&x, &labels).unwrap().0.backward().unwrap(),
                };
                optimiser.step(&mut trainee, &gradients, 1e-2).unwrap();
            }
            trainee.weights().unwrap().values().map(vector).collect::<Vec<_>>()
        };
        for compiled in [false, true] {
            assert_eq!(on_threads(1, || train(compiled)), on_threads(3, || train(compiled)), "{json}");
        }
    }
}

#[test]
fn a_network_is_the_same_whether_folded_before_or_not() {
    for json in NETWORKS {
        let graph = spec(json).graph().unwrap();
        let weights = trained(&graph, Key::root(7), DType::F64);
        let (folded, folded_weights) = nets::fold(&graph, &weights).unwrap();
        let named: Vec<String> = folded.parameters().into_iter().map(|(name, _)| name).collect();
        assert_eq!(named.len(), folded_weights.len());
        assert!(named.iter().all(|name| folded_weights.contains_key(name)));
        // Only pre-activation networks normalise anything but a convolution.
        assert!(
            ["wide-resnet", "wrn", "preact", "densenet"].iter().any(|name| json.contains(name))
                || named.iter().all(|name| !name.contains("running"))
        );
        let x = images(Key::root(8), &[1, 3, 32, 32], DType::F64);
        let logits = |graph, weights| -> Tensor {
            Network::new(graph, weights, &Device::Cpu).unwrap().logits(&x, &keys(1)).unwrap()
        };
        assert_eq!(vector(&logits(&graph, &weights)), vector(&logits(&folded, &folded_weights)));
    }
}

#[test]
fn images_of_the_wrong_type_or_shape_are_refused() {
    let graph = spec(NETWORKS[0]).graph().unwrap();
    let network = Network::new(&graph, &trained(&graph, Key::root(1), DType::F32), &Device::Cpu).unwrap();
    let wrong = images(Key::root(2), &[1, 3, 8, 8], DType::F64);
    assert!(network.logits(&wrong, &keys(1)).unwrap_err().to_string().contains("convert"));
    let grey = images(Key::root(2), &[1, 1, 8, 8], DType::F32);
    assert!(network.logits(&grey, &keys(1)).is_err());
}
