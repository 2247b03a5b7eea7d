//! Programs as networks and as defenses of the stage: real files, the real binary.

#[path = "../../victim/tests/support/mod.rs"]
mod programs;
#[path = "../../stage-finetune/tests/support/mod.rs"]
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use artifact::{AttackRow, FinetuneRow, Writer};
use programs::{faulty, plain};
use serde_json::{Value, json};
use support::{CLASSES, SIDE, done, network_weights, provenance, rows, run, sample, store};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_attack");
const IMAGES: u32 = 9;

/// A folder with a sample.
struct Bench {
    folder: TempDir,
    sample: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sample = sample(&folder.path().join("sample/part.parquet"), IMAGES);
        Self { folder, sample }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).join("part.parquet")
    }

    /// The finetune table of a program.
    fn program(&self, name: &str, program: &Path, words: &[&str]) -> PathBuf {
        let table = self.path(name);
        fs::create_dir_all(table.parent().unwrap()).unwrap();
        let command: Vec<&str> = std::iter::once(program.to_str().unwrap()).chain(words.iter().copied()).collect();
        let facts = json!({"model": {"name": "program", "command": command}});
        let row = FinetuneRow {
            epoch: 0,
            steps: 0,
            learning_rate: None,
            train_loss: None,
            train_accuracy: None,
            validation_correct: None,
            validation_images: None,
            weights: None,
            sha256: None,
            best: true,
        };
        let mut writer = Writer::<FinetuneRow>::create(&table, provenance("finetune", facts)).unwrap();
        writer.push(&[row]).unwrap();
        writer.finish().unwrap();
        table
    }

    fn network(&self) -> PathBuf {
        let table = self.path("network");
        store(&table, &network_weights(), None);
        table
    }

    fn run(&self, name: &str, network: &Path, params: &Value, arguments: &[&str]) -> Output {
        run(BINARY, params, &self.path(name), arguments, &[network, &self.sample])
    }

    fn attack(&self, name: &str, network: &Path, params: &Value, arguments: &[&str]) -> Vec<AttackRow> {
        done(&self.run(name, network, params, arguments));
        rows(&self.path(name))
    }
}

fn pgd(defense: Value) -> Value {
    json!({
        "epoch": "last", "seed": 1, "defense": defense, "keep_delta": true, "goal": {"name": "untargeted"},
        "attack": {"name": "pgd", "norm": "linf", "eps": "8/255", "step_size": "2/255", "steps": [1, 8], "eot": {"draws": 3}},
        "votes": {"draws": 15, "stop": "majority"},
    })
}

fn none() -> Value {
    json!({"name": "none"})
}

/// What a failed run says.
#[track_caller]
fn fails(output: &Output, code: i32, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(parts.iter().all(|part| text.contains(part)) && !text.contains("internal error"), "{parts:?}: {text}");
}

#[test]
fn a_program_is_attacked_as_a_network_is_and_parts_change_no_row() {
    let bench = Bench::new();
    let network = bench.program("program", plain(), &["network", "3"]);
    let whole = bench.attack("whole", &network, &pgd(none()), &[]);
    assert_eq!(whole.len(), 2 * IMAGES as usize);
    for row in &whole {
        assert_eq!((row.forward_queries, row.backward_queries), (3 * u64::from(row.step), 3 * u64::from(row.step)));
        assert!(row.linf > 0.0 && row.non_finite == 0 && (8..=15).contains(&row.votes.len()), "{row:?}");
    }
    assert!(
        whole.iter().any(|row| row.votes.iter().any(|class| *class != row.votes[0])),
        "a program that draws is asked anew"
    );
    let parts: Vec<Vec<AttackRow>> = (0..2)
        .map(|i| bench.attack(&format!("part-{i}"), &network, &pgd(none()), &["--shard", &format!("{i}/2")]))
        .collect();
    let joined: Vec<AttackRow> = (0..IMAGES as usize).flat_map(|i| parts[i % 2][i / 2 * 2..][..2].to_vec()).collect();
    assert!(joined == whole);
    let provenance = artifact::provenance(&bench.path("whole")).unwrap();
    let program = &provenance.facts["programs"][0];
    assert_eq!((&program["part"], &program["classes"], &program["draws"]), (&json!("model"), &json!(3), &json!("row")));
    let digest = artifact::sha256(plain()).unwrap();
    assert_eq!(provenance.inputs.get(plain().to_str().unwrap()), Some(&digest), "`make verify` knows it");
}

#[test]
fn a_program_is_a_defense_alone_in_a_stack_and_before_a_program() {
    let bench = Bench::new();
    let transformation = || json!({"name": "program", "command": [plain(), "transformation"]});
    let network = bench.network();
    let alone = bench.attack("alone", &network, &pgd(transformation()), &[]);
    assert!(alone.iter().all(|row| row.linf > 0.0 && row.zero_gradient < Some(0.5)));
    let stack = json!({"name": "stack", "of": [{"name": "rotation", "degrees": 10}, transformation()]});
    let stacked = bench.attack("stacked", &network, &pgd(stack), &[]);
    assert!(stacked.iter().zip(&alone).any(|(a, b)| a.delta != b.delta));
    let mut identity = transformation();
    identity["gradient"] = json!("identity");
    let bpda = bench.attack("bpda", &network, &pgd(identity), &[]);
    assert!(bpda.iter().zip(&alone).any(|(a, b)| a.delta != b.delta), "a slope of 2x is not the identity's");
    let both = bench.program("program", plain(), &["network", "3"]);
    bench.attack("both", &both, &pgd(transformation()), &[]);
    let facts = &artifact::provenance(&bench.path("both")).unwrap().facts["programs"];
    assert_eq!((&facts[0]["part"], &facts[1]["part"]), (&json!("model"), &json!("defense")));
}

#[test]
fn a_program_that_dies_a_hundred_times_leaves_the_rows_of_one_that_does_not() {
    let bench = Bench::new();
    let marker = bench.folder.path().join("deaths");
    let whole = bench.program("whole", plain(), &["network", "3"]);
    let dying = bench.program("dying", faulty(), &["now-and-then", "6", marker.to_str().unwrap(), "network", "3"]);
    let (mut run, mut deaths) = (0, 0);
    while deaths < 100 {
        let mut params = pgd(json!({"name": "gaussian-noise", "sigma": 0.1}));
        params["seed"] = json!(run);
        // Few images at a time make many requests.
        params["attack"]["eot"]["draws"] = json!(40);
        let expected = bench.attack(&format!("whole-{run}"), &whole, &params, &[]);
        let found = bench.attack(&format!("dying-{run}"), &dying, &params, &[]);
        assert!(found == expected, "run {run}");
        deaths = fs::read(&marker).unwrap().len();
        run += 1;
        assert!(run < 20, "only {deaths} deaths in {run} runs");
    }
}

#[test]
fn a_program_that_fails_leaves_no_table_and_says_why() {
    let bench = Bench::new();
    let table = |fault: &str| bench.program(fault, faulty(), &[fault, "1", "-", "network", "3"]);
    let out = |fault: &str| bench.run(&format!("out-{fault}"), &table(fault), &pgd(none()), &[]);
    fails(&out("die"), 3, &["program `", "exit code 3", "failed before it too", "its last words:", "about to die"]);
    fails(&out("nan"), 4, &["a NaN among them", "about to nan"]);
    fails(&out("shape"), 3, &["wrong shape"]);
    fails(&out("version"), 3, &["speaks the protocol `victim` 2.0"]);
    fails(&out("square"), 3, &["images of 3x4x4", &format!("about images of 3x{SIDE}x{SIDE}")]);
    assert!(!bench.path("out-die").exists());
    let few = bench.program("two", plain(), &["network", "2"]);
    fails(&bench.run("out-two", &few, &pgd(none()), &[]), 3, &["network 2", &format!("{} classes", CLASSES.len())]);
    let network = bench.network();
    let wrong = |program: Value| bench.run("wrong", &network, &pgd(program), &[]);
    fails(&wrong(json!({"name": "program", "command": []})), 2, &["defense: program: command = []"]);
    fails(&wrong(json!({"name": "program", "command": [plain(), "network"]})), 3, &["name it as `model`"]);
    let digests = json!({plain().to_str().unwrap(): "0".repeat(64)});
    let changed = json!({"name": "program", "command": [plain(), "transformation"], "digests": digests});
    fails(&wrong(changed), 3, &["has changed", "run make again"]);
    let mut inside = pgd(none());
    inside["inside"] = json!({"name": "activation-pruning", "samples": 0.2});
    let whole = bench.program("whole", plain(), &["network", "3"]);
    fails(&bench.run("inside", &whole, &inside, &[]), 2, &["nothing can be put into a program"]);
}

#[test]
fn draws_that_depend_on_the_batch_are_recorded() {
    let bench = Bench::new();
    let network = bench.program("batch", faulty(), &["batch-draws", "0", "-", "network", "3"]);
    bench.attack("out", &network, &pgd(none()), &[]);
    let provenance = artifact::provenance(&bench.path("out")).unwrap();
    assert_eq!(provenance.facts["programs"][0]["draws"], json!("batch"));
}
