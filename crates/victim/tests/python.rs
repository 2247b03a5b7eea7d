//! The helper `victim.py`, where there is a Python with torch and numpy (`PYTHON`, else `python3`).

#![expect(clippy::print_stderr, reason = "a test says that it was skipped, and what it has counted")]

mod support;

use std::{path::Path, process::Command, sync::OnceLock};

use candle_core::{DType, Device, Tensor};
use game::{Classifier as _, Key, Phase};
use support::program;
use victim::{Client, Draws, Kind, Network, Options, Reduce};

fn python() -> Option<&'static str> {
    static PYTHON: OnceLock<Option<String>> = OnceLock::new();
    let found = PYTHON.get_or_init(|| {
        let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let torch = Command::new(&python).args(["-c", "import torch, numpy"]).output();
        torch.is_ok_and(|output| output.status.success()).then_some(python)
    });
    if found.is_none() {
        eprintln!("skipped: no Python with torch and numpy (set PYTHON)");
    }
    found.as_deref()
}

fn options() -> Options {
    // A busy machine takes minutes to import torch.
    Options { seconds: 900.0, memory: None, threads: 1, shared_memory: true, data_root: None }
}

fn start(python: &str, what: &str) -> Client {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/python.py");
    Client::start(&program(python.as_ref(), &[script.to_str().unwrap(), what]), &options()).unwrap()
}

fn images(n: usize) -> Tensor {
    let mut pixels = vec![0.0; n * 48];
    Key::root(9).fill_uniform(&mut pixels);
    Tensor::from_vec(pixels, (n, 3, 4, 4), &Device::Cpu).unwrap()
}

fn keys(n: u64) -> Vec<Key> {
    (0..n).map(|i| Key::root(3).phase(Phase::Attack).image(i).at(i / 3)).collect()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn row(x: &Tensor, i: usize) -> Vec<f32> {
    numbers(&x.narrow(0, i, 1).unwrap())
}

#[test]
fn the_helper_draws_what_the_product_draws() {
    let Some(python) = python() else { return };
    let client = start(python, "draws");
    let keys = keys(300);
    let found = client.apply(&images(300), &keys).unwrap();
    for (i, &key) in keys.iter().enumerate() {
        let mut expected = [0.0; 67];
        key.fill_normal(&mut expected[..13]);
        // Every call begins with a block of its own: 13 numbers take four.
        key.fill_uniform_from(4, &mut expected[13..26]);
        key.fill_normal_from(8, &mut expected[26..28]);
        key.at(5).fill_normal(&mut expected[28..41]);
        for (j, integer) in expected[41..54].iter_mut().enumerate() {
            let word = key.block(9 + j as u64 / 4)[j % 4];
            *integer = ((u64::from(word) * 10) >> 32) as f32 - 3.0;
        }
        key.at(1 << 40).fill_uniform(&mut expected[54..]);
        expected[54..].iter_mut().for_each(|u| *u = -1.0 + 2.0 * *u);
        let found = row(&found, i);
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        // Uniform numbers and integers to the bit; normal ones within a rounding, for PyTorch's logarithm is another one.
        for part in [13..26, 41..67] {
            assert_eq!(bits(&found[part.clone()]), bits(&expected[part]), "row {i}");
        }
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= 2.0 * f32::EPSILON * expected.abs().max(0.5),
                "row {i}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn many_normal_numbers_are_ours_within_one_rounding() {
    let Some(python) = python() else { return };
    let client = start(python, "noise");
    // More than a mebibyte: they travel through shared memory.
    let (n, side) = (6, 224);
    let x = Tensor::full(0.5f32, (n, 3, side, side), &Device::Cpu).unwrap();
    let keys = keys(n as u64);
    let found = numbers(&client.apply(&x, &keys).unwrap());
    let mut noise = vec![0.0; 3 * side * side];
    let (mut differ, mut most) = (0, 0f32);
    for (found, key) in found.chunks(noise.len()).zip(&keys) {
        key.fill_normal(&mut noise);
        let gaps = found.iter().zip(&noise).map(|(found, z)| (found - (0.5 + 0.25 * z)).abs());
        most = gaps.clone().fold(most, f32::max);
        differ += gaps.filter(|gap| *gap > 0.0).count();
    }
    eprintln!("{differ} of {} normal numbers differ", found.len());
    // PyTorch's logarithm and cosine round otherwise now and then, by the last bit.
    assert!(differ * 100 < found.len() && most <= 2.0 * f32::EPSILON, "{differ}, by {most}");
    let piped = Options { shared_memory: false, ..options() };
    let piped = Client::start(client.program(), &piped).unwrap();
    assert_eq!(numbers(&piped.apply(&x, &keys).unwrap()), found);
    let above = x.affine(1.0, -0.25).unwrap();
    for client in [client, piped] {
        assert_eq!(numbers(&client.pullback(&x, &keys, &above).unwrap().gradient), numbers(&above));
        assert_eq!(client.restarts(), 0);
    }
}

#[test]
fn what_a_program_says_of_itself_is_there() {
    let Some(python) = python() else { return };
    let client = start(python, "rng");
    let hello = client.hello();
    assert_eq!((hello.shape, hello.classes, hello.draws, hello.random), (Some([3, 4, 4]), Some(10), Draws::Row, true));
    for name in ["python.py", "victim.py"] {
        assert_eq!(hello.digests[name].len(), 64, "{:?}", hello.digests);
    }
    assert!(hello.versions.contains_key("torch"), "{:?}", hello.versions);
    assert_eq!(start(python, "batch").hello().draws, Draws::Batch);
    let module = start(python, "module");
    assert!(!module.hello().random && module.hello().batch == Some(5));
    let logits = module.logits(&images(12), &keys(12)).unwrap();
    for (a, b) in row(&logits, 11)
        .iter()
        .zip(numbers(&module.logits(&images(12).narrow(0, 11, 1).unwrap(), &[Key::root(0)]).unwrap()))
    {
        assert!((a - b).abs() < 1e-6);
    }
}

#[test]
fn a_row_draws_by_its_key_alone_and_a_batch_by_all_of_them() {
    let Some(python) = python() else { return };
    let (x, keys) = (images(6), keys(6));
    for (what, by_row) in [("rng", true), ("row", true), ("batch", false)] {
        let client = start(python, what);
        let all = client.logits(&x, &keys).unwrap();
        assert_eq!(numbers(&client.logits(&x, &keys).unwrap()), numbers(&all), "{what}: the same request");
        let alone = client.logits(&x.narrow(0, 4, 1).unwrap(), &keys[4..5]).unwrap();
        // Products of matrices round as their sizes have it.
        let near = numbers(&alone).iter().zip(row(&all, 4)).all(|(a, b)| (a - b).abs() < 1e-4);
        assert_eq!(near, by_row, "{what}: {alone} {all}");
        let other = client.logits(&x, &keys.iter().map(|key| key.at(0)).collect::<Vec<_>>()).unwrap();
        assert_ne!(numbers(&other), numbers(&all), "{what}");
    }
}

/// A loss that is no plain sum, and its gradient at the logits.
fn loss(logits: &Tensor) -> (f64, Tensor) {
    let value = logits.sqr().unwrap().sum_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap();
    (value, (logits * 2.0).unwrap())
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let Some(python) = python() else { return };
    let (x, keys) = (images(3), keys(6));
    for what in ["rng", "row", "batch"] {
        let client = start(python, what);
        let upstream = &mut |logits: &Tensor| Ok(loss(logits).1);
        let mean = client.gradient(&x, &keys, Reduce::Mean, upstream).unwrap();
        let each = client.gradient(&x, &keys, Reduce::Each, upstream).unwrap();
        let averaged = each.gradient.reshape((3, 2, 3, 4, 4)).unwrap().mean(1).unwrap();
        let most = numbers(&averaged).iter().fold(0f32, |most, x| most.max(x.abs()));
        for (a, b) in numbers(&mean.gradient).iter().zip(numbers(&averaged)) {
            assert!((a - b).abs() < 1e-5 * most, "{what}: {a} {b}");
        }
        let step = |sign: f64| loss(&client.logits(&(&x + sign * 0.01).unwrap(), &keys).unwrap()).0;
        let slope = (step(1.0) - step(-1.0)) / 0.02 / 2.0;
        let sum = f64::from(mean.gradient.sum_all().unwrap().to_scalar::<f32>().unwrap());
        assert!((sum - slope).abs() < 5e-3 * slope.abs() && !mean.cut, "{what}: {sum} {slope}");
    }
}

#[test]
fn what_has_no_derivative_is_passed_as_told() {
    let Some(python) = python() else { return };
    let (x, keys) = (images(2), keys(2));
    let upstream = &mut |logits: &Tensor| logits.ones_like();
    let cut = start(python, "cut").gradient(&x, &keys, Reduce::Each, upstream).unwrap();
    assert!(cut.cut && numbers(&cut.gradient).iter().all(|x| *x == 0.0));
    let client = start(python, "bpda");
    let found = client.gradient(&x, &keys, Reduce::Each, upstream).unwrap();
    assert!(!found.cut);
    // Where both steps stand for functions of slope 1 and 2x, gradients of pixels i are in the ratio of 1 + 2x_i to weights.
    let doubled = client.gradient(&x, &keys, Reduce::Each, &mut |logits| logits.ones_like()? * 2.0).unwrap();
    for (a, b) in numbers(&doubled.gradient).iter().zip(numbers(&found.gradient)) {
        assert!((a - 2.0 * b).abs() <= 1e-5 * b.abs());
    }
    assert!(numbers(&found.gradient).iter().any(|x| *x != 0.0));
}

#[test]
fn a_function_that_is_none_is_told_by_its_own_words() {
    let Some(python) = python() else { return };
    for (what, part) in [("wrong", "it must begin with (2, 10)"), ("error", "KeyError: 'no such key'")] {
        let client = start(python, what);
        let error = client.logits(&images(2), &keys(2)).unwrap_err();
        let text = error.to_string();
        assert!(error.kind == Kind::Refused && text.contains(part) && text.contains("Traceback"), "{text}");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/no-such.py");
    let nowhere = Client::start(&program(python.as_ref(), &[script.to_str().unwrap()]), &options()).unwrap_err();
    assert!(nowhere.to_string().contains("No such file"), "{nowhere}");
    // By hand, without anybody who asks.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/python.py");
    let output =
        Command::new(python).args([script.to_str().unwrap(), "rng"]).env_remove("VICTIM_FDS").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["logits (2, 10)", "the same key draws the same: True", "draws another: True", "model = { name"] {
        assert!(text.contains(part), "{text}");
    }
    let network = Network::new(std::sync::Arc::new(start(python, "rng"))).unwrap();
    assert_eq!(network.classes(), 10);
}
