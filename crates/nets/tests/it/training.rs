//! Training as a whole.

use candle_core::{DType, Device};
use game::{Classifier, Key};
use nets::{AdamW, Network, Trainee, train::Settings};

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
    let graph = spec(r#"{"name": "cifar-resnet", "depth": 8, "width": 8, "classes": 4}"#).graph().unwrap();
    let start = nets::weights::initialise(&graph, Key::root(1)).unwrap();
    let mut trainee = Trainee::new(&graph, &start, &Device::Cpu).unwrap();
    let mut optimiser = AdamW::new(Settings::default());
    let x = images(Key::root(2), &[16, 3, 16, 16], DType::F32);
    let labels: Vec<u32> = (0..16).map(|i| i % 4).collect();
    for _ in 0..60 {
        let (loss, _) = trainee.loss(&x, &labels).unwrap();
        optimiser.step(&mut trainee, &loss.backward().unwrap(), 1e-2).unwrap();
    }
    let network = Network::new(&graph, &trainee.weights().unwrap(), &Device::Cpu).unwrap();
    let predicted: Vec<u32> = network.logits(&x, &keys(16)).unwrap().argmax(1).unwrap().to_vec1().unwrap();
    assert_eq!(predicted, labels);
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
        (r#"{"name": "cifar-resnet", "depth": 20}"#, 32, 32),
        (r#"{"name": "resnet", "depth": 18, "classes": 10, "stem": "cifar"}"#, 8, 32),
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
    }
}
