//! The stage from outside: real files, the real binary.

mod adversarial;
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use artifact::{FinetuneRow, Provenance};
use nets::weights;
use serde_json::{Value, json};
use support::{CLASSES, command, done, failed, rows, run, sample};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_finetune");

/// A folder with a sample of 60 images.
struct Bench {
    folder: TempDir,
    sample: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sample = sample(&folder.path().join("sample/part.parquet"), 60);
        Self { folder, sample }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).join("part.parquet")
    }

    /// Trains on the sample.
    fn train(&self, name: &str, params: &Value) -> PathBuf {
        let out = self.out(name);
        done(&run(BINARY, params, &out, &[], &[&self.sample]));
        out
    }
}

fn model() -> Value {
    json!({"name": "cifar-resnet", "depth": 8, "width": 4, "classes": 3})
}

fn training(epochs: u32) -> Value {
    json!({
        "model": model(), "init": {"name": "fresh"}, "seed": 3,
        "training": {
            "epochs": epochs, "batch": 8, "learning_rate": 0.01, "weight_decay": 0.01, "validation": 0.2,
            "augment": {"crop_padding": 2, "flip": true}, "keep": "best", "drop_last": true, "adversarial": null,
        },
        "defense": {"name": "gaussian-noise", "sigma": 0.1},
    })
}

/// `params` with the value at a JSON pointer replaced.
fn with(mut params: Value, pointer: &str, value: Value) -> Value {
    *params.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
    params
}

/// The files beside a table, by name.
fn files(table: &Path) -> Vec<String> {
    let entries = fs::read_dir(table.parent().unwrap()).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("epoch") || name == "resume");
    names.sort();
    names
}

/// Everything of a run that must not depend on how it ran.
fn outcome(table: &Path) -> (Vec<FinetuneRow>, Vec<(String, Vec<u8>)>) {
    let folder = table.parent().unwrap();
    let weights = files(table).into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).unwrap()));
    (rows(table), weights.collect())
}

#[test]
fn a_network_learns_and_its_best_and_last_epochs_are_kept() {
    let bench = Bench::new();
    let table = bench.train("a", &training(6));
    let (Provenance { facts, .. }, rows) = artifact::read::<FinetuneRow>(&table).unwrap();
    assert_eq!(facts["model"]["depth"], 8);
    assert_eq!((&facts["classes"], &facts["height"]), (&json!(CLASSES), &json!(16)));
    assert_eq!(rows.iter().map(|row| row.epoch).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(rows.iter().map(|row| row.steps).collect::<Vec<_>>(), [0, 6, 12, 18, 24, 30, 36]);
    assert!(rows[0].learning_rate.is_none() && rows[1].learning_rate == Some(0.01));
    assert!(rows.iter().all(|row| row.validation_images == Some(12)));
    assert!(rows[6].train_loss < rows[1].train_loss && rows[6].train_accuracy.unwrap() > 0.9, "{rows:?}");
    let best = rows.iter().position(|row| row.best).unwrap();
    assert_eq!(rows[best].validation_correct, rows[1..].iter().map(|row| row.validation_correct).max().unwrap());
    let kept: Vec<usize> = (0..rows.len()).filter(|&epoch| rows[epoch].weights.is_some()).collect();
    assert!(kept == [best, 6] || kept == [6], "{kept:?}");
    assert_eq!(files(&table), kept.iter().map(|epoch| format!("epoch-{epoch:03}.safetensors")).collect::<Vec<_>>());
    let file = table.with_file_name(rows[6].weights.clone().unwrap());
    assert_eq!(rows[6].sha256, Some(artifact::sha256(&file).unwrap()));
    assert_eq!(weights::metadata(&file).unwrap()["epoch"], "6");
    let timing = artifact::read::<artifact::TimingRow>(&table.with_extension("timing.parquet")).unwrap().1;
    assert!(timing.iter().any(|row| row.work == "training_images" && row.count == 6 * 48), "{timing:?}");
}

/// Fails unless a run that is killed after some epoch, and resumed, both on other threads, ends with the same bytes as one
/// that was not. Every epoch is kept.
fn killed_and_resumed(bench: &Bench, params: &Value, after: u32) {
    let params = with(params.clone(), "/training/keep", json!("every"));
    let whole = bench.out("whole");
    done(&run(BINARY, &params, &whole, &["--threads", "1"], &[&bench.sample]));
    let killed = bench.out("killed");
    let mut child = command(BINARY, &params, &killed, &["--threads", "3"], &[&bench.sample])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !killed.with_file_name(format!("epoch-{after:03}.safetensors")).exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "no epoch in a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.exists() && files(&killed).contains(&"resume".to_owned()), "killed too late");
    let resumed = run(BINARY, &params, &killed, &["--threads", "3"], &[&bench.sample]);
    done(&resumed);
    assert!(String::from_utf8_lossy(&resumed.stderr).contains("going on after epoch"));
    let epochs = params["training"]["epochs"].as_u64().unwrap();
    assert_eq!(files(&whole).len() as u64, epochs + 1, "every epoch and nothing else");
    assert!(outcome(&killed) == outcome(&whole));
}

#[test]
fn a_killed_run_on_other_threads_ends_with_the_same_bytes() {
    killed_and_resumed(&Bench::new(), &training(30), 3);
}

#[test]
fn a_run_of_other_parameters_does_not_go_on_from_a_killed_one() {
    let bench = Bench::new();
    let out = bench.out("a");
    let diverging = with(training(2), "/training/learning_rate", json!(1e30));
    assert_eq!(run(BINARY, &diverging, &out, &[], &[&bench.sample]).status.code(), Some(4));
    done(&run(BINARY, &training(2), &out, &[], &[&bench.sample]));
    assert_eq!(outcome(&out).0, outcome(&bench.train("b", &training(2))).0);
}

#[test]
fn every_choice_that_should_matter_does() {
    let bench = Bench::new();
    let base = rows::<FinetuneRow>(&bench.train("base", &training(1)));
    assert_eq!(rows::<FinetuneRow>(&bench.train("again", &training(1))), base);
    let others = [
        ("/seed", json!(4)),
        ("/defense", json!({"name": "gaussian-noise", "sigma": 0.2})),
        ("/defense", Value::Null),
        ("/training/augment/flip", json!(false)),
        ("/training/augment/crop_padding", json!(0)),
        ("/training/batch", json!(12)),
        ("/training/drop_last", json!(false)),
        ("/training/learning_rate", json!(0.02)),
        ("/training/weight_decay", json!(0.5)),
        ("/training/validation", json!(0.1)),
    ];
    for (i, (pointer, value)) in others.into_iter().enumerate() {
        // 48 images are 6 whole batches of 8: leaving the last one out matters at 10.
        let base = if pointer == "/training/drop_last" {
            with(training(1), "/training/batch", json!(10))
        } else {
            training(1)
        };
        let before = rows::<FinetuneRow>(&bench.train(&format!("before-{i}"), &base));
        let after = rows::<FinetuneRow>(&bench.train(&format!("after-{i}"), &with(base, pointer, value)));
        assert_ne!(before[1].sha256, after[1].sha256, "{pointer}");
    }
}

#[test]
fn divergence_keeps_the_last_good_epoch_and_ends_with_code_4() {
    let bench = Bench::new();
    let mut params = with(training(3), "/training/learning_rate", json!(1e30));
    params = with(params, "/training/batch", json!(48));
    let out = bench.out("a");
    failed(
        &run(BINARY, &params, &out, &[], &[&bench.sample]),
        4,
        &["epoch 2", "diverged", "weights of epoch 1", "learning_rate"],
    );
    assert!(!out.exists() && out.with_file_name("epoch-001.safetensors").exists());
}

#[test]
fn weights_are_imported_evaluated_and_trained_further() {
    let bench = Bench::new();
    let base = bench.train("base", &training(3));
    let last = base.with_file_name("epoch-003.safetensors");
    let sha256 = artifact::sha256(&last).unwrap();
    let import = json!({"model": model(), "init": {"name": "file", "path": last, "sha256": sha256}});

    let out = bench.out("import");
    done(&run(BINARY, &import, &out, &[], &[]));
    let imported = rows::<FinetuneRow>(&out);
    assert!(imported.len() == 1 && imported[0].epoch == 0 && imported[0].best);
    assert_eq!(imported[0].validation_images, None);
    let read = |path: &Path| {
        let tensors = weights::load(path).unwrap();
        tensors
            .into_iter()
            .map(|(name, t)| (name, t.flatten_all().unwrap().to_vec1::<f32>().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(read(&out.with_file_name("epoch-000.safetensors")), read(&last));
    assert_eq!(artifact::provenance(&out).unwrap().facts["source"]["sha256"], sha256);

    let out = bench.out("evaluated");
    done(&run(BINARY, &import, &out, &[], &[&bench.sample]));
    let evaluated = &rows::<FinetuneRow>(&out)[0];
    assert!(evaluated.validation_images == Some(60) && evaluated.validation_correct > Some(40), "{evaluated:?}");

    let further = with(training(1), "/init", json!({"name": "finetuned", "epoch": "last"}));
    let out = bench.out("further");
    done(&run(BINARY, &further, &out, &[], &[&base, &bench.sample]));
    let (base, further) = (rows::<FinetuneRow>(&base), rows::<FinetuneRow>(&out));
    // The same validation images and the same weights: training goes on where it stood.
    assert_eq!(further[0].validation_correct, base[3].validation_correct);
    assert!(further[1].train_loss < base[1].train_loss);
}

#[test]
fn a_network_for_other_classes_takes_a_fresh_head_if_asked() {
    let bench = Bench::new();
    let wide = json!({"model": with(model(), "/classes", json!(7)), "init": {"name": "fresh"}});
    let base = bench.out("wide");
    done(&run(BINARY, &wide, &base, &[], &[]));
    let init = |new_head: bool| json!({"name": "finetuned", "epoch": 0, "new_head": new_head});
    let inputs: [&Path; 2] = [&base, &bench.sample];
    let narrow = with(training(1), "/init", init(false));
    failed(&run(BINARY, &narrow, &bench.out("narrow"), &[], &inputs), 3, &["linear.weight", "epoch-000"]);
    done(&run(BINARY, &with(narrow, "/init", init(true)), &bench.out("headed"), &[], &inputs));
}

#[test]
fn a_network_may_keep_some_of_its_classes_in_another_order() {
    let bench = Bench::new();
    let wide: nets::Spec = serde_json::from_value(with(model(), "/classes", json!(5))).unwrap();
    let all = weights::initialise(&wide.graph().unwrap(), game::Key::root(8)).unwrap();
    let file = bench.folder.path().join("wide.safetensors");
    weights::save(&file, &all, &Default::default()).unwrap();
    let params = json!({
        "model": model(), "init": {"name": "file", "path": file},
        "classes": ["grey", "blue", "green", "black", "red"], "keep_classes": CLASSES,
    });
    let out = bench.out("kept");
    done(&run(BINARY, &params, &out, &[], &[&bench.sample]));
    let kept = weights::load(&out.with_file_name("epoch-000.safetensors")).unwrap();
    let rows = |weights: &nets::Weights| weights["linear.weight"].to_vec2::<f32>().unwrap();
    assert_eq!(rows(&kept), [4, 2, 1].map(|row| rows(&all)[row].clone()));
    let provenance: Provenance = artifact::provenance(&out).unwrap();
    assert_eq!((&provenance.facts["classes"], &provenance.facts["model"]["classes"]), (&json!(CLASSES), &json!(3)));
    let other = bench.out("other");
    let try_with =
        |pointer: &str, value: Value| run(BINARY, &with(params.clone(), pointer, value), &other, &[], &[&bench.sample]);
    failed(&try_with("/keep_classes", json!(["red", "green"])), 2, &["model.classes", "2 classes", "3"]);
    failed(&try_with("/keep_classes", json!(["red", "green", "pink"])), 2, &["keep_classes", "`pink`"]);
    failed(&try_with("/keep_classes", json!(3)), 2, &["keep_classes", "name them"]);
    failed(
        &try_with("/keep_classes", json!(["green", "red", "blue"])),
        3,
        &["class 0 is `red` in the sample and `green`"],
    );
    failed(&try_with("/classes", json!("imagenette")), 2, &["keep_classes", "`red`"]);
    failed(&try_with("/init", json!({"name": "fresh"})), 2, &["`keep_classes`"]);
}

#[test]
fn a_sample_of_other_classes_than_the_weights_is_refused() {
    let bench = Bench::new();
    let base = bench.train("base", &training(1));
    let rows = artifact::read::<artifact::SampleRow>(&bench.sample).unwrap().1;
    let turned = bench.folder.path().join("turned/part.parquet");
    support::write(&turned, &rows, &["blue", "green", "red"], support::SIDE);
    let init = |new_head: bool| json!({"name": "finetuned", "epoch": 1, "new_head": new_head});
    let further = |new_head: bool| {
        let params = with(training(1), "/init", init(new_head));
        run(BINARY, &params, &bench.out("further"), &[], &[&base, &turned])
    };
    failed(&further(false), 3, &["class 0 is `blue` in the sample and `red` in the network", "new_head"]);
    done(&further(true));
    failed(
        &run(BINARY, &with(training(1), "/model/classes", json!(9)), &bench.out("a"), &[], &[&bench.sample]),
        2,
        &["model.classes", "3", "9"],
    );
}

#[test]
fn bad_input_gives_one_line_and_the_right_code() {
    let bench = Bench::new();
    let out = bench.out("a");
    let try_with = |params: &Value, arguments: &[&str], inputs: &[&Path]| run(BINARY, params, &out, arguments, inputs);
    let sample: &Path = &bench.sample;
    let train = |pointer: &str, value: Value| try_with(&with(training(1), pointer, value), &[], &[sample]);
    failed(&train("/model/depth", json!(9)), 2, &["model", "6 n + 2"]);
    let statistic = |name: &str, value: Value| {
        let mut model = model();
        model[name] = value;
        train("/model", model)
    };
    failed(
        &statistic("mean", json!([123.675, 116.28, 103.53])),
        2,
        &["model", "`mean` is [123.675, 116.28, 103.53]", "\"123.675/255\""],
    );
    for (std, word) in [(json!([58.4, 57.1, 57.4]), "\"58.4/255\""), (json!([0.2, -0.2, 0.2]), "[0, 1]")] {
        failed(&statistic("std", std), 2, &["model", "`std` is", word]);
    }
    failed(&statistic("std", json!([0.2, 0, 0.2])), 2, &["model", "`std`", "above 0"]);
    failed(&statistic("std", json!([0.2, null, 0.2])), 2, &["model", "null"]);
    let adversarial = |attack: Value| {
        let mut params = training(1);
        params["training"]["adversarial"] = attack;
        try_with(&params, &[], &[sample])
    };
    let attack = json!({"name": "pgd", "norm": "l2", "eps": 100, "step_size": 1, "steps": [1]});
    failed(&adversarial(attack), 2, &["training.adversarial: pgd: eps = 100", "27.7"]);
    let attack = json!({"name": "pgd", "eps": 8, "steps": [1]});
    failed(&adversarial(attack), 2, &["training.adversarial: pgd: eps = 8", "\"8/255\""]);
    failed(&train("/training/batch", json!(100)), 2, &["training.batch", "48"]);
    failed(&train("/training/validation", json!(0.0)), 2, &["training.keep", "validation"]);
    failed(&train("/training/augment", json!({"flap": true})), 2, &["training.augment", "flap", "flip"]);
    failed(&train("/training/augment", json!({"random_crop": 99})), 2, &["random_crop", "99", "16x16"]);
    failed(&train("/model/classes", json!(2)), 2, &["model.classes", "3"]);
    failed(&train("/defense", json!({"name": "gaussian-noise", "sigma": -1})), 2, &["defense", "sigma"]);
    failed(&train("/init", json!({"name": "fresh", "path": "x"})), 2, &["init", "path"]);
    failed(&train("/init", json!({"name": "finetuned", "epoch": "last"})), 3, &["finetune", "name one"]);
    failed(&try_with(&training(1), &["--shard", "0/2"], &[sample]), 2, &["--shard"]);
    failed(&try_with(&training(1), &[], &[]), 3, &["sample", "name one"]);

    let import = |path: &Path| json!({"model": model(), "init": {"name": "file", "path": path}});
    failed(&try_with(&import(Path::new("no/such.safetensors")), &[], &[]), 3, &["no/such.safetensors", "DATA_ROOT"]);
    failed(&try_with(&import(sample), &[], &[]), 3, &["part.parquet", "safetensors"]);
    let mut pinned = import(sample);
    pinned["init"]["sha256"] = json!("0".repeat(64));
    failed(&try_with(&pinned, &[], &[]), 3, &["part.parquet", "SHA-256", "000"]);

    let hub = |repo: &str| {
        let init = json!({"name": "hub", "repo": repo, "revision": "main", "file": "model.safetensors"});
        let params = json!({"model": model(), "init": init});
        let mut command = command(BINARY, &params, &out, &[], &[]);
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", bench.folder.path()).output().unwrap()
    };
    failed(&hub("nobody/nothing"), 3, &["nobody/nothing@main", "model.safetensors"]);

    // A finetune table whose weights changed behind its back.
    let base = bench.train("base", &training(1));
    fs::write(base.with_file_name("epoch-001.safetensors"), b"other").unwrap();
    let further = with(training(1), "/init", json!({"name": "finetuned", "epoch": "last"}));
    failed(&try_with(&further, &[], &[&base, sample]), 3, &["epoch-001", "run finetune again"]);
    let elsewhere = with(training(1), "/init", json!({"name": "finetuned", "epoch": 5}));
    failed(&try_with(&elsewhere, &[], &[&base, sample]), 3, &["`5`", "0 to 1"]);
    assert!(!out.exists());

    // Two networks in one file, one of which is chosen.
    let graph = serde_json::from_value::<nets::Spec>(model()).unwrap().graph().unwrap();
    let [one, other] = [1, 2].map(|seed| weights::initialise(&graph, game::Key::root(seed)).unwrap());
    let under = |prefix: &'static str, weights: &nets::Weights| {
        weights.clone().into_iter().map(move |(name, tensor)| (format!("{prefix}.{name}"), tensor))
    };
    let file = bench.folder.path().join("two.safetensors");
    weights::save(&file, &under("student", &one).chain(under("teacher", &other)).collect(), &Default::default())
        .unwrap();
    failed(&try_with(&import(&file), &[], &[]), 3, &["two.safetensors", "`key = \"student\"`", "`key = \"teacher\"`"]);
    let mut chosen = import(&file);
    chosen["init"]["key"] = json!("teacher");
    let teacher = bench.out("teacher");
    done(&run(BINARY, &chosen, &teacher, &[], &[]));
    let stored = weights::load(&teacher.with_file_name("epoch-000.safetensors")).unwrap();
    let bits = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(stored.iter().all(|(name, tensor)| bits(tensor) == bits(&other[name])));

    // NaN weights.
    let network: nets::Spec = serde_json::from_value(model()).unwrap();
    let mut broken = weights::initialise(&network.graph().unwrap(), game::Key::root(0)).unwrap();
    let nan = (broken["linear.bias"].clone() * f64::NAN).unwrap();
    broken.insert("linear.bias".to_owned(), nan);
    let file = bench.folder.path().join("nan.safetensors");
    weights::save(&file, &broken, &Default::default()).unwrap();
    failed(&try_with(&import(&file), &[], &[]), 4, &["linear.bias", "NaN"]);
}
