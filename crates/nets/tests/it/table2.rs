//! The layers of stochastic and sparse networks, and four networks whole, against PyTorch: `tests/golden/table2.py`.

use candle_core::{DType, Device, Result, Tensor, Var};
use game::{Classifier, Key};
use nets::{Graph, Inside, Network, Op, Trainee, Weights, ops, weights};

use crate::{difference, images, keys, normal, spec, trained, vector};

fn golden() -> Weights {
    weights::load(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/table2.safetensors")).unwrap()
}

/// The script's numbers by name, in `[0, 1)`: FNV-1a of the name starts a SplitMix64.
pub(crate) fn unit(name: &str, shape: &[usize]) -> Tensor {
    let start = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let number = |i: u64| {
        let z = start.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let values: Vec<f64> = (0..shape.iter().product::<usize>() as u64).map(number).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn signed(name: &str, shape: &[usize]) -> Tensor {
    unit(name, shape).affine(2.0, -1.0).unwrap()
}

/// The script's weights for a graph, under the script's names.
pub(crate) fn filled(graph: &Graph, theirs: impl Fn(&str) -> String) -> Weights {
    let fill = |(name, shape): (String, Vec<usize>)| {
        let name = theirs(&name);
        let one = shape.len() == 1;
        let tensor = if name.ends_with("running_var") || (one && name.ends_with("weight")) {
            unit(&name, &shape) + 0.5
        } else if one {
            signed(&name, &shape) * 0.3
        } else {
            signed(&name, &shape) * (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt()
        };
        (name, tensor.unwrap())
    };
    graph.parameters().into_iter().map(fill).collect()
}

/// A value and the gradient of its product with the script's fixed numbers.
pub(crate) fn record(name: &str, x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> [Tensor; 2] {
    let x = Var::from_tensor(x).unwrap();
    let out = f(x.as_tensor()).unwrap();
    let upstream = signed(&format!("{name}.upstream"), out.dims());
    let gradients = (&out * upstream).unwrap().sum_all().unwrap().backward().unwrap();
    [out.detach(), gradients.get(&x).unwrap().clone()]
}

fn agree(golden: &Weights, name: &str, x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) {
    for (part, found) in ["out", "gradient"].iter().zip(record(name, x, f)) {
        let error = difference(&golden[&format!("{name}.{part}")], &found);
        assert!(error < 1e-12, "{name}.{part}: {error}");
    }
}

#[test]
fn layers_agree_with_pytorch() {
    let golden = golden();
    let x = (signed("layers.x", &[3, 4, 5, 6]).powf(3.0)).unwrap();
    let keys: Vec<Key> = (0..3).map(|image| Key::root(3).at(image).at(7)).collect();
    agree(&golden, "prune", &x, |x| ops::prune(x, 2.0, &keys));
    agree(&golden, "prune-half", &x, |x| ops::prune(x, 0.5, &keys));
    let ties = vector(&x).into_iter().map(|x| (x * 4.0).round_ties_even() / 4.0).enumerate();
    let ties = ties.map(|(i, x)| if i / 120 == 1 { -x.abs() - 1.0 } else { x }).collect();
    let ties = Tensor::from_vec(ties, x.shape(), &Device::Cpu).unwrap();
    agree(&golden, "winners", &ties, |x| ops::keep_largest(x, 0.2));
    agree(&golden, "standardise", &x, ops::standardise);
    agree(&golden, "standardise-flat", &(&x * 1e-2).unwrap(), ops::standardise);
    agree(&golden, "average-pool", &x, |x| ops::average_pool(x, 3, 1, 1));
    agree(&golden, "average-pool-2", &x, |x| ops::average_pool(x, 2, 2, 0));
    agree(&golden, "leaky-relu", &x, |x| ops::activate(x, ops::Activation::LeakyRelu { slope: 0.1 }));
}

#[test]
fn pruning_keeps_each_value_with_its_probability() {
    let golden = golden();
    let x = (signed("layers.x", &[3, 4, 5, 6]).powf(3.0)).unwrap();
    let (numbers, keep, uniform) = (vector(&x), vector(&golden["prune.keep"]), vector(&golden["prune.uniform"]));
    let draws = 4000;
    let mut kept = vec![0; numbers.len()];
    for draw in 0..draws {
        let keys: Vec<Key> = (0..3).map(|image| Key::root(3).at(image).at(7 + draw)).collect();
        for (i, out) in vector(&ops::prune(&x, 2.0, &keys).unwrap()).into_iter().enumerate() {
            if out != 0.0 {
                kept[i] += 1;
                assert!((numbers[i] / out - 1e-8 - keep[i]).abs() < 1e-12);
            }
            assert!(draw > 0 || (out != 0.0) == (uniform[i] < keep[i]), "value {i} of the first draw");
        }
    }
    // Of 360 values about one is expected beyond three standard deviations, and none beyond five.
    let deviations = kept.iter().zip(&keep).map(|(&kept, keep)| {
        let n = draws as f64;
        (f64::from(kept) - n * keep) / (n * keep * (1.0 - keep)).sqrt().max(1.0)
    });
    let deviations: Vec<f64> = deviations.collect();
    assert!(deviations.iter().all(|z| z.abs() < 5.0), "{deviations:?}");
    assert!(deviations.iter().filter(|z| z.abs() > 3.0).count() < 6);
}

#[test]
fn networks_agree_with_pytorch() {
    let golden = golden();
    let network = |graph: &Graph, theirs: fn(&str) -> String| {
        let weights = weights::prepare(graph, filled(graph, theirs), "made".as_ref()).unwrap();
        Network::new(graph, &weights, &Device::Cpu).unwrap()
    };
    let same: fn(&str) -> String = str::to_owned;
    let keys = [Key::root(5).at(0), Key::root(5).at(1)];
    let wide = spec(r#"{"name": "wide-resnet", "depth": 14, "width": 2}"#).graph().unwrap();
    let x = unit("wide-resnet.x", &[2, 3, 16, 12]);
    agree(&golden, "wide-resnet", &x, |x| network(&wide, same).logits(x, &keys));
    let pruned = Inside::ActivationPruning { samples: 2.0 }.apply(&wide);
    agree(&golden, "pruned", &x, |x| network(&pruned, same).logits(x, &keys));
    let sparse = r#"{"name": "resnet", "depth": 18, "stem": "cifar", "classes": 10, "mean": [0, 0, 0], "std": [1, 1, 1],
                     "activation": {"name": "k-winners-take-all", "share": 0.1}}"#;
    let theirs = |name: &str| name.replace(".downsample.", ".shortcut.").replace("fc.", "linear.");
    let sparse = network(&spec(sparse).graph().unwrap(), theirs);
    agree(&golden, "sparse", &unit("sparse.x", &[2, 3, 16, 16]), |x| sparse.logits(x, &keys));
}

#[test]
fn inception_agrees_with_torchvision() {
    let golden = golden();
    let graph = spec(r#"{"name": "inception-v3", "classes": 10}"#).graph().unwrap();
    let prefixed = filled(&graph, str::to_owned).into_iter().map(|(name, tensor)| (format!("module.{name}"), tensor));
    let mut weights: Weights = prefixed.collect();
    // What published checkpoints hold beside it.
    let extra = Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap();
    for name in ["AuxLogits.conv0.bn.bias", "module.AuxLogits.fc.bias", "Mixed_5b.branch1x1.bn.num_batches_tracked"] {
        weights.insert(name.to_owned(), extra.clone());
    }
    let weights = weights::prepare(&graph, weights, "made".as_ref()).unwrap();
    let network = Network::new(&graph, &weights, &Device::Cpu).unwrap();
    let x = unit("inception.x", &[2, 3, 75, 83]);
    let [logits, gradient] = record("inception", &x, |x| network.logits(x, &keys(2)));
    assert!(difference(&golden["inception.out"], &logits) < 1e-11);
    let some: Vec<f64> = vector(&gradient).into_iter().step_by(101).collect();
    let some = Tensor::new(some, &Device::Cpu).unwrap();
    assert!(difference(&golden["inception.some"], &some) < 1e-9, "{}", difference(&golden["inception.some"], &some));
    let norms = [gradient.abs().unwrap().sum((1, 2, 3)), gradient.sqr().unwrap().sum((1, 2, 3)).unwrap().sqrt()];
    let norms = Tensor::stack(&norms.map(Result::unwrap), 0).unwrap();
    assert!(difference(&golden["inception.norms"], &norms) < 1e-10);
}

#[test]
fn a_stochastic_network_asks_for_its_keys_and_trains_without_randomness() {
    let graph = spec(r#"{"name": "wide-resnet", "depth": 8, "width": 1, "classes": 3}"#).graph().unwrap();
    let pruned = Inside::ActivationPruning { samples: 2.0 }.apply(&graph);
    let weights = trained(&graph, Key::root(1), DType::F32);
    let network = Network::new(&pruned, &weights, &Device::Cpu).unwrap();
    let x = images(Key::root(2), &[2, 3, 8, 8], DType::F32);
    let logits = |keys: &[Key]| network.logits(&x, keys).map(|logits| vector(&logits));
    let (one, other) = (Key::root(3).at(1), Key::root(3).at(2));
    assert!(logits(&[one]).unwrap_err().to_string().contains("1 keys for 2 images"));
    assert_eq!(logits(&[one, other]).unwrap(), logits(&[one, other]).unwrap());
    assert_ne!(logits(&[one, other]).unwrap()[..3], logits(&[other, other]).unwrap()[..3]);
    assert_eq!(logits(&[one, other]).unwrap()[3..], logits(&[other, other]).unwrap()[3..]);
    let mut trainee = Trainee::new(&pruned, &weights, &Device::Cpu).unwrap();
    assert!(trainee.query(&x, &[0, 1]).unwrap_err().to_string().contains("without its randomness"));
    let mut trainee = Trainee::new(&graph, &weights, &Device::Cpu).unwrap();
    trainee.query(&x, &[0, 1]).unwrap();
}

#[test]
fn what_is_zero_or_nan_stays_so() {
    let shape = [1, 1, 2, 2];
    let tensor = |values: [f32; 4]| Tensor::new(&values, &Device::Cpu).unwrap().reshape(&shape).unwrap();
    let (zeros, nan) = (tensor([0.0; 4]), tensor([1.0, f32::NAN, 2.0, -1.0]));
    let keys = keys(1);
    let [out, gradient] = record("zeros", &zeros.to_dtype(DType::F64).unwrap(), |x| ops::prune(x, 2.0, &keys));
    assert!(vector(&out).iter().chain(&vector(&gradient)).all(|&x| x == 0.0));
    assert_eq!(vector(&ops::standardise(&zeros).unwrap()), [0.0; 4]);
    assert_eq!(vector(&ops::keep_largest(&zeros, 0.5).unwrap()), [0.0; 4]);
    for out in [ops::prune(&nan, 2.0, &keys), ops::standardise(&nan), ops::keep_largest(&nan, 0.25)] {
        assert!(vector(&out.unwrap()).iter().any(|x| x.is_nan()));
    }
    // At least one wins, and all may.
    let x = normal(Key::root(1), &[2, 3, 4, 5], DType::F32);
    assert_eq!(vector(&ops::keep_largest(&x, 1.0).unwrap()), vector(&x));
    let least = vector(&ops::keep_largest(&x, 1e-9).unwrap());
    assert_eq!(least.iter().filter(|&&x| x != 0.0).count(), 2);
    for share in [0.0, 1.5, f64::NAN] {
        assert!(ops::keep_largest(&x, share).is_err());
    }
    assert!(ops::standardise(&x.flatten_from(1).unwrap()).is_err());
    assert!(Op::Standardise.parameters().is_empty());
}
