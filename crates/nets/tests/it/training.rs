//! Training as a whole.

use candle_core::{DType, Device};
use game::{Classifier, Key};
use nets::{AdamW, Graph, Network, Trainee, train::Settings};

use crate::{images, keys, spec, vector};

#[test]
fn a_run_cut_in_two_gives_the_same_bits_as_a_whole_one() {
    let graph = spec(r#"{"name": "cifar-resnet", "depth": 8, "width": 4, "classes": 3}"#).graph().unwrap();
    let start = nets::weights::initialise(&graph, Key::root(1)).unwrap();
    let x = images(Key::root(2), &[6, 3, 8, 8], DType::F32);
    let go = |trainee: &mut Trainee, optimiser: &mut AdamW, steps: usize| {
        for _ in 0..steps {
            let (loss, _) = trainee.loss(&x, &[0, 1, 2, 0, 1, 2]).unwrap();
            optimiser.step(trainee, &loss.backward().unwrap(), 1e-2).unwrap();
        }
    };
    let (mut whole, mut optimiser) =
        (Trainee::new(&graph, &start, &Device::Cpu).unwrap(), AdamW::new(Settings::default()));
    go(&mut whole, &mut optimiser, 4);

    let (mut first, mut optimiser) =
        (Trainee::new(&graph, &start, &Device::Cpu).unwrap(), AdamW::new(Settings::default()));
    go(&mut first, &mut optimiser, 2);
    let folder = tempfile::tempdir().unwrap();
    let (weights, state) = (folder.path().join("w.safetensors"), folder.path().join("s.safetensors"));
    nets::weights::save(&weights, &first.weights().unwrap(), &Default::default()).unwrap();
    nets::weights::save(&state, &optimiser.state().unwrap(), &Default::default()).unwrap();
    let mut second = Trainee::new(&graph, &nets::weights::load(&weights).unwrap(), &Device::Cpu).unwrap();
    let mut optimiser = AdamW::restore(Settings::default(), &nets::weights::load(&state).unwrap()).unwrap();
    go(&mut second, &mut optimiser, 2);

    let (whole, second) = (whole.weights().unwrap(), second.weights().unwrap());
    assert!(whole.iter().all(|(name, tensor)| vector(tensor) == vector(&second[name])));
    assert!(AdamW::restore(Settings::default(), &whole).is_err());
}

#[test]
fn a_network_learns_a_few_images_by_heart() {
    for json in [
        r#"{"name": "cifar-resnet", "depth": 8, "width": 8, "classes": 4}"#,
        r#"{"name": "wide-resnet", "depth": 8, "width": 1, "classes": 4}"#,
        r#"{"name": "cifar-resnet", "depth": 8, "width": 8, "classes": 4,
            "activation": {"name": "k-winners-take-all", "share": 0.2}}"#,
    ] {
        learns(&spec(json).graph().unwrap());
    }
}

fn learns(graph: &Graph) {
    let start = nets::weights::initialise(graph, Key::root(1)).unwrap();
    let mut trainee = Trainee::new(graph, &start, &Device::Cpu).unwrap();
    let mut optimiser = AdamW::new(Settings::default());
    let x = images(Key::root(2), &[16, 3, 16, 16], DType::F32);
    let labels: Vec<u32> = (0..16).map(|i| i % 4).collect();
    for _ in 0..60 {
        let (loss, _) = trainee.loss(&x, &labels).unwrap();
        optimiser.step(&mut trainee, &loss.backward().unwrap(), 1e-2).unwrap();
    }
    let network = Network::new(graph, &trainee.weights().unwrap(), &Device::Cpu).unwrap();
    let predicted: Vec<u32> = network.logits(&x, &keys(16)).unwrap().argmax(1).unwrap().to_vec1().unwrap();
    assert_eq!(predicted, labels);
}

/// The compiled step in f32 against autograd in f64: sizes that no tile divides, both shortcuts.
#[test]
fn the_compiled_step_agrees_with_autograd() {
    for (json, shape) in [
        (r#"{"name": "cifar-resnet", "depth": 8}"#, [19, 3, 12, 12]),
        (r#"{"name": "cifar-resnet", "depth": 8, "width": 5, "classes": 4}"#, [5, 3, 17, 10]),
        (r#"{"name": "cifar-resnet", "depth": 14, "width": 20, "classes": 4, "shortcut": "B"}"#, [3, 3, 9, 11]),
        (r#"{"name": "resnet", "depth": 18, "classes": 10, "stem": "cifar"}"#, [2, 3, 16, 16]),
        (r#"{"name": "wide-resnet", "depth": 14, "width": 1, "classes": 5}"#, [6, 3, 12, 20]),
        (r#"{"name": "wide-resnet", "depth": 8, "width": 3, "classes": 5}"#, [3, 3, 16, 16]),
        (r#"{"name": "wrn", "depth": 10, "width": 2, "classes": 5}"#, [3, 3, 13, 16]),
        (r#"{"name": "preact-resnet", "depth": 18}"#, [3, 3, 16, 16]),
        (r#"{"name": "preact-resnet", "depth": 18, "shortcut": "input", "final_norm": false}"#, [3, 3, 16, 12]),
        (
            r#"{"name": "cifar-resnet", "depth": 8, "width": 7, "activation": {"name": "k-winners-take-all", "share": 0.3}}"#,
            [7, 3, 9, 13],
        ),
    ] {
        let graph = spec(json).graph().unwrap();
        let weights = crate::trained(&graph, Key::root(21), DType::F32);
        let wide = weights.iter().map(|(name, w)| (name.clone(), w.to_dtype(DType::F64).unwrap())).collect();
        let mut reference = Trainee::new(&graph, &wide, &Device::Cpu).unwrap();
        let x = images(Key::root(22), &shape, DType::F32);
        let labels: Vec<u32> = (0..shape[0] as u32).map(|i| i % 4).collect();
        let (loss, logits) = reference.loss(&x.to_dtype(DType::F64).unwrap(), &labels).unwrap();
        let gradients = loss.backward().unwrap();
        let loss: f64 = loss.to_scalar().unwrap();
        let errors = |trainee: &Trainee, found: &candle_core::backprop::GradStore| -> Vec<(String, f64)> {
            let error = |(name, var): (&String, &candle_core::Var)| {
                let expected = gradients.get(reference.parameters()[name].as_tensor()).unwrap();
                (name.clone(), crate::difference(expected, found.get(var.as_tensor()).unwrap()))
            };
            trainee.parameters().iter().map(error).collect()
        };
        // In f32 a deep network with few pixels is ill-conditioned: ours may err as autograd's f32 does.
        let mut single = Trainee::new(&graph, &weights, &Device::Cpu).unwrap();
        let backward = single.loss(&x, &labels).unwrap().0.backward().unwrap();
        let worst = errors(&single, &backward).into_iter().map(|(_, error)| error).fold(0.0, f64::max);
        let tolerance = (4.0 * worst).max(2e-4);
        assert!(tolerance < 0.01, "{json}: autograd's own error is {worst}");
        for isa in nets::Isa::available() {
            let mut trainee = Trainee::new(&graph, &weights, &Device::Cpu).unwrap().compiled_for(isa);
            // The second is of buffers that hold the first's numbers.
            for _ in 0..2 {
                let found = trainee.query(&x, &labels).unwrap();
                assert!((found.loss / loss - 1.0).abs() < 1e-4, "{json} {isa:?}: {} for {loss}", found.loss);
                assert!(crate::difference(&logits, &found.logits) < 1e-4, "{json} {isa:?}");
                for (name, error) in errors(&trainee, &found.gradients) {
                    assert!(error < tolerance, "{json} {isa:?} {name}: {error}, but autograd's f32 {worst}");
                }
            }
        }
    }
}

#[test]
fn running_statistics_and_smaller_batches_are_those_of_autograd() {
    for json in
        [r#"{"name": "cifar-resnet", "depth": 8, "width": 6}"#, r#"{"name": "wide-resnet", "depth": 8, "width": 1}"#]
    {
        let graph = spec(json).graph().unwrap();
        let start = nets::weights::initialise(&graph, Key::root(31)).unwrap();
        let (mut compiled, mut reference) =
            (Trainee::new(&graph, &start, &Device::Cpu).unwrap(), Trainee::new(&graph, &start, &Device::Cpu).unwrap());
        for n in [9, 4, 20] {
            let x = images(Key::root(n), &[n as usize, 3, 16, 12], DType::F32);
            let labels: Vec<u32> = (0..n as u32).map(|i| i % 10).collect();
            compiled.query(&x, &labels).unwrap();
            reference.loss(&x, &labels).unwrap();
            let (expected, found) = (reference.weights().unwrap(), compiled.weights().unwrap());
            for (name, found) in found.into_iter().filter(|(name, _)| name.contains(".running_")) {
                let error = crate::difference(&expected[&name], &found);
                assert!(error < 1e-5, "{json}: {name} after {n}: {error}");
            }
        }
    }
}

/// Not a test of anything that can fail: prints images per second, for `cargo test -- --ignored --nocapture speed`.
#[test]
#[ignore = "a benchmark"]
fn speed() {
    let time = |what: &str, n: usize, f: &mut dyn FnMut()| {
        f();
        let start = std::time::Instant::now();
        let mut runs = 0;
        while start.elapsed().as_secs_f64() < 2.0 {
            f();
            runs += 1;
        }
        eprintln!("{what}: {:.1} images/s", (runs * n) as f64 / start.elapsed().as_secs_f64());
    };
    for (json, n, size) in [
        (r#"{"name": "cifar-resnet", "depth": 8}"#, 64, 32),
        (r#"{"name": "cifar-resnet", "depth": 20}"#, 128, 32),
        (r#"{"name": "resnet", "depth": 18, "classes": 10, "stem": "cifar"}"#, 8, 32),
        (
            r#"{"name": "cifar-resnet", "depth": 20, "activation": {"name": "k-winners-take-all", "share": 0.1}}"#,
            128,
            32,
        ),
        (
            r#"{"name": "resnet", "depth": 18, "classes": 10, "stem": "cifar",
                "activation": {"name": "k-winners-take-all", "share": 0.1}}"#,
            8,
            32,
        ),
        (r#"{"name": "wide-resnet", "depth": 14, "width": 2}"#, 64, 32),
        (r#"{"name": "wide-resnet", "depth": 32}"#, 8, 32),
        (r#"{"name": "inception-v3"}"#, 2, 299),
        (r#"{"name": "resnet", "depth": 34}"#, 2, 224),
        (r#"{"name": "mobilenet-v2"}"#, 2, 224),
    ] {
        let graph = spec(json).graph().unwrap();
        let weights = crate::trained(&graph, Key::root(1), DType::F32);
        let network = Network::new(&graph, &weights, &Device::Cpu).unwrap();
        let x = images(Key::root(2), &[n, 3, size, size], DType::F32);
        let upstream = crate::normal(Key::root(3), &[n, graph.classes], DType::F32);
        time(&format!("{json} logits"), n, &mut || drop(network.logits(&x, &keys(n)).unwrap()));
        time(&format!("{json} gradient"), n, &mut || drop(crate::gradient(&network, &x, &upstream).unwrap()));
        let mut trainee = Trainee::new(&graph, &weights, &Device::Cpu).unwrap();
        let mut optimiser = AdamW::new(Settings::default());
        let labels: Vec<u32> = (0..n as u32).map(|i| i % 10).collect();
        time(&format!("{json} training"), n, &mut || {
            let (loss, _) = trainee.loss(&x, &labels).unwrap();
            optimiser.step(&mut trainee, &loss.backward().unwrap(), 1e-6).unwrap();
        });
        time(&format!("{json} compiled training"), n, &mut || {
            let query = trainee.query(&x, &labels).unwrap();
            optimiser.step(&mut trainee, &query.gradients, 1e-6).unwrap();
        });
    }
}
