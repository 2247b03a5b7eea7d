//! How fast the engine is, alone and beside PyTorch: rounds alternate, so that whatever else the machine does hits both
//! sides alike, and medians over rounds are compared.

mod clock;
mod measure;
mod ours;
mod peak;
mod program;
mod report;
mod stages;
mod torch;
mod work;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use crate::{
    measure::{Alone, Beside, Plan},
    report::Report,
    stages::Stages,
    torch::Torch,
    work::{Kind, Work},
};

/// Measures gradient queries, forward passes, votes and training steps in images per second.
///
/// Exit codes: 0 done, 1 failed, or the two sides do not compute the same, 2 usage.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Measure PyTorch beside it, with this Python.
    #[arg(long, value_name = "PYTHON")]
    torch: Option<String>,
    /// Fewer rounds, the slower of PyTorch's variants left out after the first, nothing compiled by it, one thread only.
    #[arg(long)]
    quick: bool,
    /// Rounds; 5 unless given, or 3 if quick.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Numbers of threads, 0 for all cores; 1,0 unless given, or 1 if quick.
    #[arg(long, value_delimiter = ',')]
    threads: Option<Vec<usize>>,
    /// Leave out torch.compile, which can take minutes a network.
    #[arg(long)]
    no_compile: bool,
    /// The folder of the stages' binaries.
    #[arg(long, default_value = "target/release")]
    bin: PathBuf,
    /// The folder of local images and weights; without it votes are those of an untrained network.
    #[arg(long)]
    data_root: Option<PathBuf>,
    /// Write `engine.parquet`, `.md`, `.json` and `.rounds.json` to this folder.
    #[arg(long, requires = "torch")]
    out: Option<PathBuf>,
    /// Only works whose name (`gradient cifar-resnet-20 32 100 1`: kind, model, side, batch, threads) holds all these.
    words: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let threads = arguments.threads.clone().unwrap_or(if arguments.quick { vec![1] } else { vec![1, 0] });
    let chosen = |work: &Work| arguments.words.iter().all(|word| work.to_string().contains(word.as_str()));
    let works: Vec<Work> = threads.iter().flat_map(|&threads| Work::all(threads)).filter(chosen).collect();
    let compile = match (arguments.quick, arguments.no_compile) {
        (true, _) => Err("left out by --quick"),
        (_, true) => Err("left out by --no-compile"),
        _ => Ok(()),
    };
    let plan = Plan {
        rounds: arguments.rounds.unwrap_or(if arguments.quick { 3 } else { 5 }),
        seconds: if arguments.quick { 0.2 } else { 0.5 },
        quick: arguments.quick,
        compile,
        stages: Stages { bin: &arguments.bin, data_root: arguments.data_root.as_deref(), folder: folder.path() },
        python: arguments.torch.as_deref(),
    };
    let Some(python) = &arguments.torch else {
        // A program is PyTorch's.
        for work in works.into_iter().filter(|work| work.kind != Kind::Program) {
            say(&Alone::measure(&plan, work)?.to_string());
        }
        return Ok(());
    };
    let mut torch = Torch::start(python, folder.path())?;
    let mut report = Report::new(&torch, &threads, &plan)?;
    for work in works {
        let measured = Beside::measure(&plan, work, &mut torch)?;
        say(&measured.to_string());
        report.works.push(measured);
    }
    if arguments.words.is_empty() {
        report.memory = Some(plan.stages.memory(1000)?);
    }
    report.finish();
    let text = report.markdown();
    say(&format!("\n{text}"));
    if let Some(out) = &arguments.out {
        report.write(out, &text)?;
    }
    report.verdict()
}

#[expect(clippy::print_stdout, reason = "what was asked for")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "the one message of a failure")]
fn complain(text: &str) {
    eprintln!("{text}");
}
