//! A tiny stage, run as a process: exit codes, messages, what is written and what is not.
//!
//! This binary is its own harness: with `TINY` set it is the stage, otherwise it runs the tests below.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
};

use artifact::{Provenance, SampleRow, Shard, TheoryRow, TimingRow, Writer, read};
use serde::{Deserialize, Serialize};
use serde_json::json;
use stage::{Context, Input, Invalid, Stage, Unfit};
use tempfile::TempDir;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    scale: f64,
    #[serde(default)]
    outcome: Outcome,
    #[serde(default)]
    local: Option<PathBuf>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    #[default]
    Done,
    Failed,
    Panic,
    Invalid,
    Unfit,
}

/// One row per image of the shard: its id times `scale`.
struct Tiny;

impl Stage for Tiny {
    const NAME: &'static str = "tiny";
    const REVISION: u32 = 7;
    const ABOUT: &'static str = "Scales the ids of images.";
    type Params = Params;
    type Row = TheoryRow;

    fn run(params: &Params, ctx: &Context, out: &mut Writer<TheoryRow>) -> anyhow::Result<()> {
        let images = ctx.table::<SampleRow>()?;
        if let Some(path) = &params.local {
            ctx.local(path)?;
        }
        ctx.announce("a moment");
        let progress = ctx.progress(images.rows.len() as u64, "images");
        for (position, image) in images.rows.iter().enumerate().filter(|(position, _)| ctx.shard.holds(*position)) {
            let value = params.scale * f64::from(image.id);
            out.push(&[row(value)])?;
            ctx.time("images", 1, 0.5);
            progress.advance(position as u64);
        }
        out.provenance_mut().facts.insert("images".to_owned(), images.rows.len().into());
        match params.outcome {
            Outcome::Done => Ok(()),
            Outcome::Failed => Err(anyhow::anyhow!("the cause").context("the failure")),
            Outcome::Panic => panic!("a table flew away"),
            Outcome::Invalid => {
                Err(anyhow::Error::new(Invalid("epoch 3 has NaN weights".to_owned())).context("epoch 3"))
            }
            Outcome::Unfit => Err(Unfit("the sample has no class 9".to_owned()).into()),
        }
    }
}

fn row(value: f64) -> TheoryRow {
    TheoryRow {
        quantity: "id".to_owned(),
        k: None,
        sigma: 0.0,
        epsilon: 0.0,
        votes: None,
        method: "closed-form".to_owned(),
        value,
        low: None,
        high: None,
        samples: None,
    }
}

/// A folder with a sample table of five images in one part (`whole`) and in three (`parts`), and parameters.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        bench.sample("whole/part-0-of-1.parquet", Shard::WHOLE, 0..5);
        for index in 0..3 {
            bench.sample(&format!("parts/part-{index}-of-3.parquet"), Shard { index, count: 3 }, index..index + 1);
        }
        bench.params(&json!({"scale": 2}));
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn params(&self, params: &serde_json::Value) {
        fs::write(self.path("params.json"), params.to_string()).unwrap();
    }

    fn sample(&self, name: &str, shard: Shard, ids: std::ops::Range<u32>) {
        let provenance = Provenance {
            kind: String::new(),
            stage: "sample".to_owned(),
            revision: 1,
            parameters: json!({}),
            shard,
            inputs: [].into(),
            facts: [].into(),
            environment: [].into(),
        };
        let image = |id| SampleRow { id, png: vec![1], path: String::new(), label: 0 };
        let mut writer = Writer::create(&self.path(name), provenance).unwrap();
        writer.push(&ids.map(image).collect::<Vec<_>>()).unwrap();
        writer.finish().unwrap();
    }

    /// Runs `tiny --params params.json --out out/x.parquet` with more arguments.
    fn tiny(&self, more: &[&str]) -> Output {
        self.command(&[&["--params", "params.json", "--out", "out/x.parquet"], more].concat()).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.current_dir(&self.folder).args(arguments).env("TINY", "1");
        command.env_remove("DATA_ROOT").env_remove("DEVICE").env_remove("RUST_BACKTRACE").env("RUST_LOG", "error");
        command
    }

    /// The exit code and stderr of a run that must leave no output.
    fn fails(&self, more: &[&str]) -> (i32, String) {
        let output = self.tiny(more);
        assert!(!self.path("out/x.parquet").exists());
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn values(&self) -> Vec<f64> {
        read::<TheoryRow>(&self.path("out/x.parquet")).unwrap().1.iter().map(|row| row.value).collect()
    }
}

const WHOLE: &str = "whole/part-0-of-1.parquet";
const PARTS: [&str; 3] = ["parts/part-2-of-3.parquet", "parts/part-0-of-3.parquet", "parts/part-1-of-3.parquet"];

fn a_run_writes_rows_provenance_and_timing() {
    let bench = Bench::new();
    let output = bench.tiny(&["--threads", "3", WHOLE]);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    let path = bench.path("out/x.parquet");
    let (from, rows) = read::<TheoryRow>(&path).unwrap();
    assert_eq!(rows, [0.0, 2.0, 4.0, 6.0, 8.0].map(row));
    assert_eq!((from.kind.as_str(), from.stage.as_str(), from.revision), ("theory", "tiny", 7));
    assert_eq!(from.parameters, json!({"scale": 2.0, "outcome": "done", "local": null}));
    let digest = artifact::sha256(&bench.path(WHOLE)).unwrap();
    assert_eq!(from.inputs, [(WHOLE.to_owned(), digest)].into());
    assert_eq!(from.facts["images"], 5);
    assert_eq!((from.environment["device"].as_str(), from.environment["threads"].as_str()), ("cpu", "3"));
    assert!(from.environment.contains_key("candle-core"));
    let (from, timing) = read::<TimingRow>(&path.with_extension("timing.parquet")).unwrap();
    assert_eq!((from.kind.as_str(), from.stage.as_str()), ("timing", "tiny"));
    assert_eq!(timing[0], TimingRow { work: "images".to_owned(), count: 5, seconds: 2.5 });
    let works: Vec<&str> = timing[1..].iter().map(|row| row.work.as_str()).collect();
    assert_eq!(works, ["total", "processor"]);
    assert!(timing[2].seconds > 0.0, "{timing:?}");
}

fn equal_runs_write_equal_bytes() {
    let bench = Bench::new();
    let bytes = || {
        assert!(bench.tiny(&["--threads", "1", WHOLE]).status.success());
        fs::read(bench.path("out/x.parquet")).unwrap()
    };
    assert_eq!(bytes(), bytes());
}

fn shards_part_the_rows() {
    let bench = Bench::new();
    let mut seen = BTreeSet::new();
    for shard in ["0/2", "1/2"] {
        assert!(bench.tiny(&["--shard", shard, WHOLE]).status.success());
        seen.extend(bench.values().iter().map(|value| *value as u32));
    }
    assert_eq!(seen, BTreeSet::from([0, 2, 4, 6, 8]));
    assert_eq!(bench.values(), [2.0, 6.0]);
}

fn parts_are_read_in_shard_order_and_must_be_complete() {
    let bench = Bench::new();
    let (code, text) = bench.fails(&PARTS[..2]);
    assert_eq!(code, 3);
    assert_eq!(text, "tiny: parts/part-0-of-3.parquet: part 1/3 of its table is missing; name every part once\n");
    let (code, text) = bench.fails(&[&PARTS[..], &PARTS[..1]].concat());
    assert_eq!(code, 3);
    assert!(text.contains("part 2/3 of its table is given twice"), "{text}");
    assert!(bench.tiny(&PARTS).status.success());
    assert_eq!(bench.values(), [0.0, 2.0, 4.0]);
}

fn help_and_version_are_no_errors() {
    let bench = Bench::new();
    let help = bench.command(&["--help"]).output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(help.status.success());
    for part in
        ["Scales the ids of images.", "--shard <I/N>", "DATA_ROOT", "Exit codes:", "auto, cpu, cuda", "Usage: tiny "]
    {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let version = bench.command(&["--version"]).output().unwrap();
    assert!(String::from_utf8(version.stdout).unwrap().contains("(revision 7)"));
}

fn wrong_usage_ends_with_2() {
    let bench = Bench::new();
    assert_eq!(bench.command(&[]).output().unwrap().status.code(), Some(2));
    let (code, text) = bench.fails(&["--shard", "2/2"]);
    assert!(code == 2 && text.contains("write I/N"), "{text}");
    assert_eq!(bench.fails(&["--device", "tpu"]).0, 2);
    assert_eq!(bench.fails(&["--threads", "0"]).0, 2);
    let refused = |params| {
        bench.params(&params);
        let (code, text) = bench.fails(&[WHOLE]);
        assert_eq!(code, 2);
        assert!(text.starts_with("tiny: params.json: ") && text.lines().count() == 1, "{text}");
        text
    };
    assert!(refused(json!({"scale": "two"})).contains("field `scale`: invalid type"));
    assert!(refused(json!({"scale": 1, "outcom": "done"})).contains("unknown field `outcom`, expected one of"));
    assert!(refused(json!({})).contains("missing field `scale`"));
    fs::remove_file(bench.path("params.json")).unwrap();
    assert_eq!(bench.fails(&[WHOLE]).0, 2);
    if !candle_core::utils::cuda_is_available() {
        bench.params(&json!({"scale": 2}));
        let (code, text) = bench.fails(&["--device", "cuda", WHOLE]);
        assert!(code == 2 && text.contains("use --device cpu"), "{text}");
    }
}

fn unfit_inputs_end_with_3() {
    let bench = Bench::new();
    assert_eq!(bench.fails(&[]), (3, "tiny: no `sample` table among the inputs; name one\n".to_owned()));
    let (code, text) = bench.fails(&["no/such.parquet"]);
    assert!(code == 3 && text.starts_with("tiny: no/such.parquet: no such file;"), "{text}");
    let (code, text) = bench.fails(&["params.json"]);
    assert!(code == 3 && text.starts_with("tiny: params.json: not a whole Parquet file"), "{text}");
    let (code, text) = bench.fails(&[&PARTS[..], &[WHOLE]].concat());
    assert!(code == 3 && text.contains("are both `sample` tables; name only one"), "{text}");
    bench.params(&json!({"scale": 1, "outcome": "unfit"}));
    assert_eq!(bench.fails(&[WHOLE]), (3, "tiny: the sample has no class 9\n".to_owned()));
}

fn local_sources_are_below_the_data_root() {
    let bench = Bench::new();
    bench.params(&json!({"scale": 1, "local": "images/a.png"}));
    let (code, text) = bench.fails(&[WHOLE]);
    assert!(code == 3 && text.starts_with("tiny: images/a.png: no such file or folder; set DATA_ROOT"), "{text}");
    let root = bench.path("root");
    fs::create_dir_all(root.join("images")).unwrap();
    fs::write(root.join("images/a.png"), "").unwrap();
    assert!(bench.tiny(&["--data-root", "root", WHOLE]).status.success());
    let arguments = ["--params", "params.json", "--out", "y.parquet", WHOLE];
    assert!(bench.command(&arguments).env("DATA_ROOT", &root).output().unwrap().status.success());
}

fn empty_variables_are_none() {
    let bench = Bench::new();
    let arguments = ["--params", "params.json", "--out", "out/x.parquet", WHOLE];
    let output = bench.command(&arguments).env("DATA_ROOT", "").env("DEVICE", "").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn failures_end_with_their_code_and_one_line() {
    let bench = Bench::new();
    let outcome = |outcome| {
        bench.params(&json!({"scale": 1, "outcome": outcome}));
        bench.fails(&[WHOLE])
    };
    assert_eq!(outcome("failed"), (1, "tiny: the failure: the cause\n".to_owned()));
    assert_eq!(outcome("invalid"), (4, "tiny: epoch 3: epoch 3 has NaN weights\n".to_owned()));
    let (code, text) = outcome("panic");
    assert_eq!((code, text.lines().count()), (1, 1), "{text}");
    assert!(text.contains("internal error at ") && text.contains("a table flew away; this is a bug"), "{text}");
    fs::write(bench.path("out"), "").or_else(|_| fs::remove_dir_all(bench.path("out"))).unwrap();
    fs::write(bench.path("out"), "a file where the folder must be").unwrap();
    bench.params(&json!({"scale": 1}));
    let (code, text) = bench.fails(&[WHOLE]);
    assert!(code == 1 && text.starts_with("tiny: out/x.parquet: cannot be written; "), "{text}");
}

fn a_failure_leaves_the_old_table() {
    let bench = Bench::new();
    assert!(bench.tiny(&[WHOLE]).status.success());
    bench.params(&json!({"scale": 9, "outcome": "failed"}));
    assert_eq!(bench.tiny(&[WHOLE]).status.code(), Some(1));
    assert_eq!(bench.values(), [0.0, 2.0, 4.0, 6.0, 8.0]);
}

fn a_stage_runs_in_process() {
    let bench = Bench::new();
    let mut ctx = Context::new(bench.path("out/x.parquet"));
    ctx.inputs = vec![Input::open(&bench.path(WHOLE)).unwrap()];
    let params = Params { scale: 3.0, outcome: Outcome::Done, local: None };
    stage::run::<Tiny>(&params, &ctx).unwrap();
    assert_eq!(bench.values(), [0.0, 3.0, 6.0, 9.0, 12.0]);
    let read = ctx.read::<SampleRow>().unwrap();
    assert_eq!((read.len(), read[0].1.len()), (1, 5));
    assert_eq!(ctx.table::<SampleRow>().unwrap().folder(), Path::new(&bench.path("whole")));
}

macro_rules! tests {
    ($($test:ident),+ $(,)?) => { [$((stringify!($test), $test as fn())),+] };
}

#[expect(clippy::print_stdout, reason = "a test harness reports")]
fn main() -> ExitCode {
    if std::env::var_os("TINY").is_some() {
        return stage::main::<Tiny>();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let tests = tests![
        a_run_writes_rows_provenance_and_timing,
        equal_runs_write_equal_bytes,
        shards_part_the_rows,
        parts_are_read_in_shard_order_and_must_be_complete,
        help_and_version_are_no_errors,
        wrong_usage_ends_with_2,
        unfit_inputs_end_with_3,
        local_sources_are_below_the_data_root,
        empty_variables_are_none,
        failures_end_with_their_code_and_one_line,
        a_failure_leaves_the_old_table,
        a_stage_runs_in_process,
    ];
    let mut code = ExitCode::SUCCESS;
    for (name, test) in tests.into_iter().filter(|(name, _)| wanted(name)) {
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            code = ExitCode::FAILURE;
        }
    }
    code
}
