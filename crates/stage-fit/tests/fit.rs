//! The stage from outside: real files, the real binary.

#[path = "../../stage-finetune/tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};

use artifact::{DetectorRow, SampleRow};
use candle_core::{Device, Tensor};
use game::{Classifier as _, Key, Phase};
use nets::Network;
use serde_json::{Value, json};
use support::{SIDE, done, failed, model, network_weights, rows, run, sample, store};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_fit");
const IMAGES: u32 = 24;
const DRAWS: u64 = 6;

/// A folder with a sample and an untrained network.
struct Bench {
    folder: TempDir,
    sample: PathBuf,
    network: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sample = sample(&folder.path().join("sample/part.parquet"), IMAGES);
        let network = folder.path().join("finetune/part.parquet");
        store(&network, &network_weights(), None);
        Self { folder, sample, network }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).join("part.parquet")
    }

    fn fit(&self, name: &str, params: &Value, arguments: &[&str]) -> Vec<DetectorRow> {
        let out = self.out(name);
        done(&run(BINARY, params, &out, arguments, &[&self.network, &self.sample]));
        rows(&out)
    }
}

fn odds() -> Value {
    json!({"detector": {"name": "odds", "draws": DRAWS, "sigma": "30/255"}, "seed": 4})
}

fn with(mut params: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    params.pointer_mut(parent).unwrap()[name] = value;
    params
}

/// For every image its prediction and the erosion of its margins, on the reference executor.
fn erosions(bench: &Bench, params: &Value) -> Vec<(usize, Vec<f64>)> {
    let spec: nets::Spec = serde_json::from_value(model()).unwrap();
    let inside: Option<nets::Inside> = serde_json::from_value(params["inside"].clone()).unwrap();
    let graph = inside.map_or(spec.graph().unwrap(), |inside| inside.apply(&spec.graph().unwrap()));
    let network = Network::new(&graph, &network_weights(), &Device::Cpu).unwrap();
    let logits = |pixels: &[f32], key: Key| -> Vec<f64> {
        let x = Tensor::from_slice(pixels, (1, 3, SIDE as usize, SIDE as usize), &Device::Cpu).unwrap();
        let logits = network.logits(&x, &[key]).unwrap().to_vec2::<f32>().unwrap().remove(0);
        logits.into_iter().map(f64::from).collect()
    };
    let erosion = |row: &SampleRow| {
        let pixels = stage::images::decode(&row.png).unwrap().pixels;
        let pixels: Vec<f32> = pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect();
        let key = Key::root(4).phase(Phase::Fit).at(row.id.into());
        let clean = logits(&pixels, key.at(DRAWS).at(1));
        let predicted = (0..clean.len()).max_by(|&a, &b| clean[a].total_cmp(&clean[b])).unwrap();
        let mut margins = vec![0.0; clean.len()];
        for draw in 0..DRAWS {
            let mut noise = vec![0.0; pixels.len()];
            key.at(draw).fill_normal(&mut noise);
            let noisy = pixels.iter().zip(&noise).map(|(x, z)| (x + 30.0 / 255.0 * z).clamp(0.0, 1.0));
            let noisy = logits(&noisy.collect::<Vec<f32>>(), key.at(draw).at(1));
            for (class, margin) in margins.iter_mut().enumerate() {
                *margin += (clean[predicted] - clean[class] - noisy[predicted] + noisy[class]) / DRAWS as f64;
            }
        }
        (predicted, margins)
    };
    rows::<SampleRow>(&bench.sample).iter().map(erosion).collect()
}

#[test]
fn rows_hold_the_statistics_of_the_documented_keys() {
    let bench = Bench::new();
    for (name, params) in
        [("plain", odds()), ("inside", with(odds(), "/inside", json!({"name": "activation-pruning", "samples": 3.0})))]
    {
        let (rows, erosions) = (bench.fit(name, &params, &[]), erosions(&bench, &params));
        let pairs: Vec<(u32, u32)> = rows.iter().map(|row| (row.predicted, row.other)).collect();
        assert_eq!(pairs, [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]);
        for row in &rows {
            let of = erosions.iter().filter(|(predicted, _)| *predicted == row.predicted as usize);
            let of: Vec<f64> = of.map(|(_, margins)| margins[row.other as usize]).collect();
            assert_eq!(row.images as usize, of.len());
            if of.is_empty() {
                assert_eq!((row.mean, row.standard_deviation), (None, None));
                continue;
            }
            let mean = of.iter().sum::<f64>() / of.len() as f64;
            let variance = of.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / of.len() as f64;
            assert!((row.mean.unwrap() - mean).abs() < 1e-4, "{row:?} {mean}");
            assert!((row.standard_deviation.unwrap() - variance.sqrt()).abs() < 1e-4, "{row:?} {}", variance.sqrt());
        }
        assert!(rows.iter().any(|row| row.images >= 3 && row.standard_deviation.unwrap() > 1e-3));
        let provenance = artifact::provenance(&bench.out(name)).unwrap();
        assert_eq!(provenance.parameters["detector"], odds()["detector"]);
        assert_eq!(provenance.parameters.get("inside").is_some(), name == "inside");
        let few: Vec<u32> = rows
            .iter()
            .filter(|row| row.images < 3 && row.other == (row.predicted + 1) % 3)
            .map(|row| row.predicted)
            .collect();
        assert_eq!(provenance.facts["untested"], json!(few));
    }
}

#[test]
fn threads_change_no_bit_and_every_choice_that_should_matter_does() {
    let bench = Bench::new();
    let base = bench.fit("base", &odds(), &["--threads", "1"]);
    assert_eq!(bench.fit("again", &odds(), &["--threads", "3"]), base);
    let others = [
        ("/seed", json!(5)),
        ("/detector/draws", json!(7)),
        ("/detector/sigma", json!(0.1)),
        ("/limit", json!(23)),
        ("/inside", json!({"name": "activation-pruning"})),
    ];
    for (i, (pointer, value)) in others.into_iter().enumerate() {
        assert_ne!(bench.fit(&format!("other-{i}"), &with(odds(), pointer, value), &[]), base, "{pointer}");
    }
}

#[test]
fn bad_input_gives_one_line_and_the_right_code() {
    let bench = Bench::new();
    let out = bench.out("a");
    let (network, sample): (&Path, &Path) = (&bench.network, &bench.sample);
    let attempt = |params: &Value, inputs: &[&Path]| run(BINARY, params, &out, &[], inputs);
    let refuse = |pointer: &str, value: Value, words: &[&str]| {
        failed(&attempt(&with(odds(), pointer, value), &[network, sample]), 2, words);
    };
    refuse("/detector/draws", json!(0), &["detector", "draws"]);
    refuse("/detector/sigma", json!("0/255"), &["detector", "sigma"]);
    refuse("/detector/name", json!("odd"), &["detector", "odd", "odds"]);
    refuse("/inside", json!({"name": "activation-pruning", "samples": -1}), &["inside", "samples"]);
    refuse("/limit", json!(0), &["limit"]);
    refuse("/false_positive_rate", json!(0.1), &["false_positive_rate"]);
    failed(&run(BINARY, &odds(), &out, &["--shard", "0/2"], &[network, sample]), 2, &["no parts", "--shard"]);
    failed(&attempt(&odds(), &[sample]), 3, &["finetune", "name one"]);
    failed(&attempt(&odds(), &[network]), 3, &["sample"]);
    failed(&attempt(&with(odds(), "/epoch", json!(4)), &[network, sample]), 3, &["`4`"]);
    let rows = artifact::read::<artifact::SampleRow>(sample).unwrap().1;
    let turned = support::write(
        &bench.folder.path().join("turned/part.parquet"),
        &rows,
        &["blue", "green", "red"],
        support::SIDE,
    );
    failed(&attempt(&odds(), &[network, &turned]), 3, &["class 0 is `blue` in the sample and `red` in the network"]);
    let mut broken = network_weights();
    broken.insert("linear.bias".to_owned(), (broken["linear.bias"].clone() * f64::NAN).unwrap());
    let nan = bench.folder.path().join("nan/part.parquet");
    store(&nan, &broken, None);
    failed(&attempt(&odds(), &[&nan, sample]), 4, &["linear.bias", "NaN"]);
    assert!(!out.exists());
}
