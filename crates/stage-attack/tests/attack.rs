//! The stage from outside: real files, the real binary.

#[path = "../../stage-finetune/tests/support/mod.rs"]
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use artifact::AttackRow;
use candle_core::{Device, Tensor};
use game::{Classifier as _, Key, Phase, vote::majority};
use nets::Network;
use serde_json::{Value, json};
use support::{SIDE, done, failed, model, network_weights, rows, run, sample, store};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_attack");
const IMAGES: u32 = 11;

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

    fn attack(&self, name: &str, params: &Value, arguments: &[&str]) -> Vec<AttackRow> {
        let out = self.out(name);
        done(&run(BINARY, params, &out, arguments, &[&self.network, &self.sample]));
        rows(&out)
    }
}

fn pgd(steps: &[u32]) -> Value {
    json!({
        "epoch": "last", "seed": 1,
        "defense": {"name": "gaussian-noise", "sigma": 0.25},
        "attack": {"name": "pgd", "norm": "linf", "eps": "8/255", "step_size": "2/255", "steps": steps, "eot": {"draws": 2}},
        "goal": {"name": "untargeted"},
        "votes": {"draws": 21, "stop": "majority"},
    })
}

/// `params` with the value at a JSON pointer replaced.
fn with(mut params: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    params.pointer_mut(parent).unwrap()[name] = value;
    params
}

/// Fails at the first row that is not the same bit for bit.
#[track_caller]
fn same(a: &[AttackRow], b: &[AttackRow]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        let short = |row: &AttackRow| AttackRow { delta: None, ..row.clone() };
        assert_eq!(short(a), short(b));
        assert!(a == b, "the perturbations of image {} differ at step {}", a.id, a.step);
    }
}

fn none() -> Value {
    with(pgd(&[1]), "/attack", json!({"name": "none"}))
}

#[test]
fn rows_say_what_was_done_to_every_image_at_every_step() {
    let bench = Bench::new();
    let rows = bench.attack("a", &pgd(&[1, 3]), &[]);
    let expected: Vec<(u32, u32)> = (0..IMAGES).flat_map(|i| [(100 + 7 * i, 1), (100 + 7 * i, 3)]).collect();
    assert_eq!(rows.iter().map(|row| (row.id, row.step)).collect::<Vec<_>>(), expected, "by position, then by step");
    for (i, row) in rows.iter().enumerate() {
        assert_eq!((row.label, row.target, row.phase.as_str()), (i as u32 / 2 % 3, None, "after"));
        assert_eq!((row.forward_queries, row.backward_queries), (2 * u64::from(row.step), 2 * u64::from(row.step)));
        let most = f64::from(row.step.min(4)) * 2.0 / 255.0;
        assert!(row.linf > 0.5 * most && row.linf < most + 1e-6, "{row:?}");
        assert!(row.l2 >= row.linf && row.l2 <= row.linf * 768f64.sqrt());
        assert!((11..=21).contains(&row.votes.len()));
        assert!(row.loss.is_some_and(f64::is_finite) && row.zero_gradient.is_some() && row.non_finite == 0);
        assert!(row.mean_logits.is_none() && row.mean_probabilities.is_none() && row.delta.is_none());
        assert!(row.flags.is_none());
    }
    let timing = artifact::read::<artifact::TimingRow>(&bench.out("a").with_extension("timing.parquet")).unwrap().1;
    let count = |work: &str| timing.iter().find(|row| row.work == work).map(|row| row.count);
    assert_eq!(count("attack_queries"), Some(u64::from(IMAGES) * 6));
    assert_eq!(count("votes"), Some(rows.iter().map(|row| row.votes.len() as u64).sum()));
}

#[test]
fn parts_threads_and_snapshots_change_no_bit() {
    let bench = Bench::new();
    let params = with(with(pgd(&[1, 3]), "/keep_delta", json!(true)), "/keep_logits", json!(true));
    let whole = bench.attack("whole", &params, &["--threads", "1"]);
    let parts: Vec<Vec<AttackRow>> = (0..3)
        .map(|i| bench.attack(&format!("part-{i}"), &params, &["--threads", "3", "--shard", &format!("{i}/3")]))
        .collect();
    let joined: Vec<AttackRow> =
        (0..IMAGES as usize).flat_map(|position| parts[position % 3][position / 3 * 2..][..2].to_vec()).collect();
    same(&joined, &whole);
    // A shorter run is the beginning of a longer one.
    let short = bench.attack("short", &with(params, "/attack/steps", json!([1])), &[]);
    same(&short, &whole.into_iter().filter(|row| row.step == 1).collect::<Vec<_>>());
}

#[test]
fn a_shared_order_is_shared_by_images_parts_and_batches_but_not_by_draws() {
    let bench = Bench::new();
    // Whichever comes last decides what the network sees: white or black.
    let all = |noise: &str| json!({"name": "noise-injection", "types": [noise], "amount": 1.0});
    let with_order = |order: &str| {
        let stack = json!({"name": "stack", "of": [all("salt"), all("pepper")], "order": order});
        with(with(none(), "/defense", stack), "/votes/stop", json!("never"))
    };
    let whole = bench.attack("shared", &with_order("shared"), &[]);
    let part = bench.attack("part", &with_order("shared"), &["--shard", "1/3"]);
    for phase in ["before", "after"] {
        let votes = |rows: &[AttackRow]| -> Vec<Vec<u16>> {
            rows.iter().filter(|row| row.phase == phase).map(|row| row.votes.clone()).collect()
        };
        let (whole, part) = (votes(&whole), votes(&part));
        assert!(whole[0].iter().any(|&class| class != whole[0][0]), "{:?}", whole[0]);
        assert!(whole.iter().chain(&part).all(|votes| *votes == whole[0]), "{whole:?} {part:?}");
    }
    let own = bench.attack("random", &with_order("random"), &[]);
    assert!(own.iter().any(|row| row.votes != own[0].votes));
}

#[test]
fn a_vote_that_stops_early_decides_as_the_full_one() {
    let bench = Bench::new();
    let full = bench.attack("full", &with(none(), "/votes/stop", json!("never")), &[]);
    let early = bench.attack("early", &none(), &[]);
    assert!(full.iter().all(|row| row.votes.len() == 21));
    assert!(early.iter().any(|row| row.votes.len() < 21));
    let mut split = 0;
    for (full, early) in full.iter().zip(&early) {
        assert!(full.votes.starts_with(&early.votes));
        assert_eq!(majority(&full.votes), majority(&early.votes));
        split += usize::from(full.votes.iter().any(|&class| class != full.votes[0]));
    }
    assert!(split > 0, "the defense never changed a prediction: the test would pass without votes");
}

#[test]
fn the_control_votes_before_and_after_with_fresh_draws_and_moves_nothing() {
    let bench = Bench::new();
    let rows = bench.attack("a", &with(none(), "/votes/stop", json!("never")), &[]);
    assert_eq!(rows.len(), 2 * IMAGES as usize);
    let mut differ = 0;
    for pair in rows.chunks(2) {
        assert_eq!((pair[0].phase.as_str(), pair[1].phase.as_str()), ("before", "after"));
        assert_eq!((pair[0].id, pair[0].step, pair[1].step), (pair[1].id, 0, 0));
        for row in pair {
            assert_eq!((row.linf, row.l2, row.forward_queries, row.backward_queries), (0.0, 0.0, 0, 0));
            assert!(row.loss.is_none() && row.zero_gradient.is_none());
        }
        differ += usize::from(pair[0].votes != pair[1].votes);
    }
    assert!(differ > 0);
    // Noise in the ball: one row per image, within its budget.
    let noise = with(none(), "/attack", json!({"name": "uniform-noise", "norm": "l2", "eps": 0.5}));
    let noise = bench.attack("noise", &noise, &[]);
    assert!(noise.len() == IMAGES as usize && noise.iter().all(|row| row.l2 > 0.4 && row.l2 < 0.5 + 1e-6));
}

#[test]
fn votes_are_those_of_the_documented_keys_on_an_independent_executor() {
    let params = with(with(none(), "/keep_logits", json!(true)), "/limit", json!(4));
    documented(&params);
    let undefended = with(params, "/defense", json!({"name": "none"}));
    let rows = documented(&with(undefended, "/inside", json!({"name": "activation-pruning", "samples": 0.2})));
    let differ = |row: &AttackRow| row.votes.iter().any(|class| *class != row.votes[0]);
    assert!(rows.iter().any(differ), "pruning is drawn anew for every vote");
}

/// Checks the votes of the attack `none`.
fn documented(params: &Value) -> Vec<AttackRow> {
    let bench = Bench::new();
    let rows = bench.attack("a", params, &[]);
    assert_eq!(rows.len(), 8);
    let spec: nets::Spec = serde_json::from_value(model()).unwrap();
    let inside: Option<nets::Inside> = serde_json::from_value(params["inside"].clone()).unwrap();
    let graph = inside.map_or(spec.graph().unwrap(), |inside| inside.apply(&spec.graph().unwrap()));
    let network = Network::new(&graph, &network_weights(), &Device::Cpu).unwrap();
    let defense: defenses::Spec = serde_json::from_value(params["defense"].clone()).unwrap();
    let pictures: Vec<artifact::SampleRow> = support::rows(&bench.sample);
    for (i, row) in rows.iter().enumerate() {
        let pixels = stage::images::decode(&pictures[i / 2].png).unwrap().pixels;
        let pixels: Vec<f32> = pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect();
        let x = Tensor::from_vec(pixels, (1, 3, SIDE as usize, SIDE as usize), &Device::Cpu).unwrap();
        let image = match row.phase.as_str() {
            "before" => Key::root(1).phase(Phase::Before).at(row.id.into()),
            _ => Key::root(1).phase(Phase::After).at(row.id.into()).at(0),
        };
        let (mut sum, mut probabilities) = ([0.0; 3], [0.0; 3]);
        for (draw, &class) in row.votes.iter().enumerate() {
            let key = image.at(draw as u64);
            let defended = defense.build().apply(&x, &[key.at(0)]).unwrap();
            let logits = network.logits(&defended, &[key.at(1)]).unwrap().to_vec2::<f32>().unwrap().remove(0);
            let most = logits.iter().copied().fold(f32::MIN, f32::max);
            assert!(most - logits[usize::from(class)] < 1e-4, "{logits:?} is class {class}");
            sum.iter_mut().zip(&logits).for_each(|(sum, logit)| *sum += f64::from(*logit));
            let odds = [0, 1, 2].map(|class| f64::from(logits[class]).exp());
            probabilities.iter_mut().zip(odds).for_each(|(sum, odd)| *sum += odd / odds.iter().sum::<f64>());
        }
        assert_eq!(row.votes.len(), 21, "logits are averaged over all draws");
        for (sum, mean) in sum.iter().zip(row.mean_logits.as_ref().unwrap()) {
            assert!((sum / 21.0 - f64::from(*mean)).abs() < 1e-4 * (1.0 + sum.abs()));
        }
        for (sum, mean) in probabilities.iter().zip(row.mean_probabilities.as_ref().unwrap()) {
            assert!((sum / 21.0 - f64::from(*mean)).abs() < 1e-4);
        }
    }
    rows
}

#[test]
fn perturbations_are_kept_if_asked_and_measure_as_recorded() {
    let bench = Bench::new();
    let params = with(with(pgd(&[2]), "/keep_delta", json!(true)), "/goal", json!({"name": "targeted", "class": 2}));
    for row in bench.attack("a", &params, &[]) {
        assert_eq!(row.target, Some(2));
        let delta = row.delta.unwrap();
        assert_eq!(delta.len(), (3 * SIDE * SIDE) as usize);
        let linf = delta.iter().map(|change| f64::from(change.abs())).fold(0.0, f64::max);
        let l2 = delta.iter().map(|&change| f64::from(change).powi(2)).sum::<f64>().sqrt();
        assert!((linf - row.linf).abs() < 1e-6 && (l2 - row.l2).abs() < 1e-4);
    }
}

#[test]
fn every_choice_that_should_matter_does() {
    let bench = Bench::new();
    let base = bench.attack("base", &pgd(&[2]), &[]);
    assert_eq!(bench.attack("again", &pgd(&[2]), &[]), base);
    let others = [
        ("/seed", json!(2)),
        ("/defense/sigma", json!(0.3)),
        ("/attack/eot/draws", json!(3)),
        ("/attack/step_size", json!("1/255")),
        ("/goal", json!({"name": "targeted", "class": 0})),
        ("/votes/draws", json!(31)),
    ];
    for (i, (pointer, value)) in others.into_iter().enumerate() {
        let other = bench.attack(&format!("other-{i}"), &with(pgd(&[2]), pointer, value), &[]);
        assert!(base.iter().zip(&other).any(|(a, b)| a != b), "{pointer}");
    }
}

#[test]
fn an_undefended_vote_is_cast_once_and_recorded_in_full() {
    let bench = Bench::new();
    let undefended = with(none(), "/defense", json!({"name": "none"}));
    let rows = bench.attack("a", &undefended, &[]);
    assert!(rows.iter().all(|row| row.votes.len() == 11 || row.votes.len() == 10), "{rows:?}");
    assert!(rows.iter().all(|row| row.votes.iter().all(|&class| class == row.votes[0])));
    let timing = artifact::read::<artifact::TimingRow>(&bench.out("a").with_extension("timing.parquet")).unwrap().1;
    assert_eq!(timing.iter().find(|row| row.work == "votes").unwrap().count, 2 * u64::from(IMAGES));
}

#[test]
fn budgets_above_1_are_whole_in_l2_and_noise_of_1_is_no_mistake() {
    let bench = Bench::new();
    let mut params = with(with(pgd(&[1]), "/attack/norm", json!("l2")), "/attack/eps", json!(8));
    params = with(params, "/defense/sigma", json!(1));
    assert_eq!(bench.attack("l2", &params, &[]).len(), IMAGES as usize);
    // A plain number and a fraction are one number.
    let written = with(params.clone(), "/defense/sigma", json!("255/255"));
    let votes = |rows: Vec<AttackRow>| rows.into_iter().map(|row| row.votes).collect::<Vec<_>>();
    assert_eq!(votes(bench.attack("plain", &params, &[])), votes(bench.attack("written", &written, &[])));
}

#[test]
fn bad_input_gives_one_line_and_the_right_code() {
    let bench = Bench::new();
    let out = bench.out("a");
    let (network, sample): (&Path, &Path) = (&bench.network, &bench.sample);
    let attempt = |params: &Value, inputs: &[&Path]| run(BINARY, params, &out, &[], inputs);
    let refuse = |pointer: &str, value: Value, words: &[&str]| {
        failed(&attempt(&with(pgd(&[1]), pointer, value), &[network, sample]), 2, words);
    };
    refuse("/votes/draws", json!(0), &["votes.draws"]);
    refuse("/limit", json!(0), &["limit"]);
    refuse("/goal", json!({"name": "targeted", "class": 3}), &["goal.class", "0 to 2"]);
    refuse("/goal", json!({"name": "targetted", "class": 3}), &["goal", "targetted", "targeted"]);
    refuse("/attack", json!({"name": "pdg"}), &["attack", "pdg", "pgd"]);
    refuse("/defense", json!({"name": "gaussian-noise", "sigma": -1}), &["defense", "sigma"]);
    for (pointer, value, words) in [
        ("/attack/eps", json!(8), ["attack: pgd: eps = 8 must be at most 1", "\"8/255\""]),
        ("/attack/step_size", json!(2), ["attack: pgd: step_size = 2 must be at most 1", "\"2/255\""]),
        ("/attack", json!({"name": "uniform-noise", "eps": 16}), ["attack: uniform-noise: eps = 16", "\"16/255\""]),
        ("/defense/sigma", json!(25), ["defense: gaussian-noise: sigma = 25 must be at most 2", "\"25/255\""]),
    ] {
        refuse(pointer, value, &words);
    }
    // In l2 nothing is further away than the diagonal of the images, 16 x 16 pixels of 3 channels.
    let l2 = |eps: f64| with(with(pgd(&[1]), "/attack/norm", json!("l2")), "/attack/eps", json!(eps));
    failed(
        &attempt(&l2(128.0), &[network, sample]),
        2,
        &["attack: pgd: eps = 128 must be at most 27.7", "\"128/255\""],
    );
    refuse("/protocol", json!("paper-text"), &["unknown field `protocol`"]);
    refuse("/vote", json!({}), &["vote"]);
    refuse("/inside", json!({"name": "activation-pruning", "samples": 0}), &["inside", "samples"]);
    refuse("/precision", json!("tf32"), &["precision", "tf32", "make cuda"]);
    refuse("/precision", json!("f16"), &["precision", "f16", "bf16"]);
    refuse("/inside", json!({"name": "pruning"}), &["inside", "activation-pruning"]);
    failed(&attempt(&pgd(&[1]), &[sample]), 3, &["finetune", "name one"]);
    failed(&attempt(&pgd(&[1]), &[network]), 3, &["sample"]);
    failed(&attempt(&pgd(&[1]), &[network, sample, Path::new("no.parquet")]), 3, &["no.parquet"]);
    failed(&attempt(&with(pgd(&[1]), "/epoch", json!(4)), &[network, sample]), 3, &["`4`"]);

    let mut broken = network_weights();
    broken.insert("linear.bias".to_owned(), (broken["linear.bias"].clone() * f64::NAN).unwrap());
    let nan = bench.folder.path().join("nan/part.parquet");
    store(&nan, &broken, None);
    failed(&attempt(&pgd(&[1]), &[&nan, sample]), 4, &["linear.bias", "NaN"]);

    let changed = bench.folder.path().join("changed/part.parquet");
    store(&changed, &network_weights(), Some("0".repeat(64)));
    failed(&attempt(&pgd(&[1]), &[&changed, sample]), 3, &["epoch-000.safetensors", "run finetune again"]);
    fs::remove_file(changed.with_file_name("epoch-000.safetensors")).unwrap();
    failed(&attempt(&pgd(&[1]), &[&changed, sample]), 3, &["epoch-000.safetensors", "no such file"]);
    assert!(!out.exists());
}

/// Fits a detector to a network; the table's path.
fn fitted(bench: &Bench, name: &str, network: &Path, params: Value) -> PathBuf {
    let mut ctx = stage::Context::new(bench.out(name));
    ctx.inputs = [network, &bench.sample].map(|path| stage::Input::open(path).unwrap()).into();
    stage::run::<stage_fit::Fit>(&serde_json::from_value(params).unwrap(), &ctx).unwrap();
    ctx.out
}

fn odds() -> Value {
    json!({"detector": {"name": "odds", "draws": 5, "sigma": "20/255"}, "epoch": "last", "seed": 4})
}

/// Without a defense, judged by a detector in 3 draws.
fn detected(params: Value) -> Value {
    let undefended = with(with(params, "/defense", json!({"name": "none"})), "/votes/draws", json!(3));
    with(undefended, "/detector", json!({"false_positive_rate": 0.2}))
}

#[test]
fn flags_are_those_of_the_documented_keys_on_an_independent_executor() {
    let bench = Bench::new();
    let detector = fitted(&bench, "detector", &bench.network, odds());
    let out = bench.out("a");
    done(&run(BINARY, &detected(none()), &out, &[], &[&detector, &bench.network, &bench.sample]));
    let rows: Vec<AttackRow> = rows(&out);
    let spec: nets::Spec = serde_json::from_value(model()).unwrap();
    let network = Network::new(&spec.graph().unwrap(), &network_weights(), &Device::Cpu).unwrap();
    let known: Vec<artifact::DetectorRow> = support::rows(&detector);
    let pictures: Vec<artifact::SampleRow> = support::rows(&bench.sample);
    // The 80% quantile of the standard normal.
    let threshold = 0.841_621_233_572_914_2;
    let (mut flagged, mut unsteady) = (0, 0);
    for (i, row) in rows.iter().enumerate() {
        let flags = row.flags.as_ref().unwrap();
        assert_eq!((row.votes.len(), flags.len()), (3, 3), "votes are taken in full");
        let pixels = stage::images::decode(&pictures[i / 2].png).unwrap().pixels;
        let pixels: Vec<f32> = pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect();
        let logits = |pixels: &[f32]| {
            let x = Tensor::from_slice(pixels, (1, 3, SIDE as usize, SIDE as usize), &Device::Cpu).unwrap();
            network.logits(&x, &[Key::root(0)]).unwrap().to_vec2::<f32>().unwrap().remove(0)
        };
        let image = match row.phase.as_str() {
            "before" => Key::root(1).phase(Phase::Before).at(row.id.into()),
            _ => Key::root(1).phase(Phase::After).at(row.id.into()).at(0),
        };
        let clean = logits(&pixels);
        for (draw, (&flag, &class)) in flags.iter().zip(&row.votes).enumerate() {
            let mut margins = [0.0; 3];
            for noise_draw in 0..5 {
                let mut noise = vec![0.0; pixels.len()];
                image.at(draw as u64).at(2).at(noise_draw).fill_normal(&mut noise);
                let noisy = pixels.iter().zip(&noise).map(|(x, z)| (x + 20.0 / 255.0 * z).clamp(0.0, 1.0));
                let noisy = logits(&noisy.collect::<Vec<f32>>());
                let margin = |logits: &[f32], other: usize| f64::from(logits[usize::from(class)] - logits[other]);
                for (other, sum) in margins.iter_mut().enumerate() {
                    *sum += (margin(&clean, other) - margin(&noisy, other)) / 5.0;
                }
            }
            let tests = known.iter().filter(|known| known.predicted == u32::from(class) && known.images >= 3);
            let scores = tests
                .map(|known| (margins[known.other as usize] - known.mean.unwrap()) / known.standard_deviation.unwrap());
            let score = scores.fold(f64::NEG_INFINITY, f64::max);
            assert!(flag == (score > threshold) || (score - threshold).abs() < 1e-2, "{score}");
            flagged += usize::from(flag);
        }
        unsteady += usize::from(flags.iter().any(|flag| *flag != flags[0]));
    }
    assert!(flagged > 0 && flagged < 3 * rows.len(), "{flagged}");
    assert!(unsteady > 0, "every draw has its own noise");
    let timing = artifact::read::<artifact::TimingRow>(&out.with_extension("timing.parquet")).unwrap().1;
    let evaluations = timing.iter().find(|row| row.work == "votes").unwrap().count;
    assert_eq!(evaluations, 2 * 3 * (1 + 5) * u64::from(IMAGES), "a vote, and the detector's draws");
}

#[test]
fn a_detector_changes_flags_alone_and_neither_parts_nor_threads_change_them() {
    let bench = Bench::new();
    let detector = fitted(&bench, "detector", &bench.network, odds());
    let inputs: [&Path; 3] = [&detector, &bench.network, &bench.sample];
    let params = with(detected(pgd(&[1, 3])), "/keep_delta", json!(true));
    let attack = |name: &str, arguments: &[&str]| -> Vec<AttackRow> {
        let out = bench.out(name);
        done(&run(BINARY, &params, &out, arguments, &inputs));
        rows(&out)
    };
    let whole = attack("whole", &["--threads", "1"]);
    let parts: Vec<Vec<AttackRow>> =
        (0..2).map(|i| attack(&format!("part-{i}"), &["--threads", "3", "--shard", &format!("{i}/2")])).collect();
    let joined: Vec<AttackRow> =
        whole.chunks(2).enumerate().flat_map(|(i, _)| parts[i % 2][i / 2 * 2..][..2].to_vec()).collect();
    same(&joined, &whole);
    assert!(whole.iter().any(|row| row.flags.as_ref().unwrap().contains(&true)));
    let mut plain = params.clone();
    plain.as_object_mut().unwrap().remove("detector");
    let plain = bench.attack("plain", &with(plain, "/votes/stop", json!("never")), &[]);
    let unflagged: Vec<AttackRow> = whole.into_iter().map(|row| AttackRow { flags: None, ..row }).collect();
    same(&unflagged, &plain);
}

#[test]
fn a_detector_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    let out = bench.out("a");
    let (network, sample): (&Path, &Path) = (&bench.network, &bench.sample);
    let detector = fitted(&bench, "detector", network, odds());
    let refuse = |params: &Value, inputs: &[&Path], code: i32, words: &[&str]| {
        failed(&run(BINARY, params, &out, &[], inputs), code, words);
        assert!(!out.exists());
    };
    let params = detected(none());
    refuse(&params, &[network, sample], 3, &["`detector`", "name one"]);
    let rate = |rate| with(params.clone(), "/detector/false_positive_rate", json!(rate));
    refuse(&rate(0.0), &[network, sample, &detector], 2, &["detector.false_positive_rate", "0"]);
    refuse(&rate(1.0), &[network, sample, &detector], 2, &["detector.false_positive_rate", "1"]);
    let defended = with(params.clone(), "/defense", json!({"name": "rotation"}));
    refuse(&defended, &[network, sample, &detector], 2, &["detector", "rotation", "none"]);

    let other = bench.folder.path().join("other/part.parquet");
    let mut weights = network_weights();
    weights.insert("linear.bias".to_owned(), (weights["linear.bias"].clone() + 0.5).unwrap());
    store(&other, &weights, None);
    refuse(&params, &[&other, sample, &detector], 3, &["detector", "another network", "fit a detector"]);
    let inside = json!({"name": "activation-pruning"});
    let random = with(params.clone(), "/inside", inside.clone());
    refuse(&random, &[network, sample, &detector], 3, &["randomness inside", "fit a detector"]);
    let pruned = fitted(&bench, "pruned", network, with(odds(), "/inside", inside));
    done(&run(BINARY, &with(random, "/limit", json!(1)), &bench.out("random"), &[], &[network, sample, &pruned]));
    refuse(&params, &[network, sample, &detector, &pruned], 3, &["both `detector` tables"]);

    let (provenance, mut rows) = artifact::read::<artifact::DetectorRow>(&detector).unwrap();
    let rewrite = |rows: &[artifact::DetectorRow]| {
        let mut writer = artifact::Writer::create(&detector, provenance.clone()).unwrap();
        writer.push(rows).unwrap();
        writer.finish().unwrap();
    };
    rewrite(&rows[1..]);
    refuse(&params, &[network, sample, &detector], 3, &["5 rows", "has 6", "run fit again"]);
    rewrite(&[&rows[..5], &rows[..1]].concat());
    refuse(&params, &[network, sample, &detector], 3, &["twice", "run fit again"]);
    (rows[2].images, rows[2].mean) = (3, Some(f64::NAN));
    rewrite(&rows);
    refuse(&params, &[network, sample, &detector], 3, &["NaN", "run fit again"]);
    fs::write(&detector, &fs::read(&detector).unwrap()[..100]).unwrap();
    refuse(&params, &[network, sample, &detector], 3, &["detector", "not a whole Parquet file"]);
}

#[test]
fn a_sample_of_other_classes_is_refused() {
    let bench = Bench::new();
    let rows = artifact::read::<artifact::SampleRow>(&bench.sample).unwrap().1;
    let sample = bench.folder.path().join("other/part.parquet");
    let attack = |classes: &[&str]| {
        let small = rows.iter().filter(|row| (row.label as usize) < classes.len()).cloned().collect::<Vec<_>>();
        support::write(&sample, &small, classes, support::SIDE);
        run(BINARY, &with(none(), "/limit", json!(1)), &bench.out("a"), &[], &[&bench.network, &sample])
    };
    failed(&attack(&["red", "green"]), 3, &["the sample has 2 classes and the network 3", "`classes`"]);
    failed(&attack(&["green", "red", "blue"]), 3, &["class 0 is `green` in the sample and `red` in the network"]);
    failed(&attack(&["red", "green", "blue", "grey"]), 3, &["4 classes and the network 3"]);
    done(&attack(&["0", "1", "2"]));
    done(&attack(&["Red", "green", "blue"]));
}

#[test]
fn a_part_without_images_is_an_empty_table() {
    let bench = Bench::new();
    assert!(bench.attack("a", &with(pgd(&[1]), "/limit", json!(2)), &["--shard", "4/5"]).is_empty());
}
