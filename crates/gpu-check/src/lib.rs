//! Whether a GPU computes what the CPU does, on every operation, defense and architecture; then how many gradient queries it
//! answers, beside PyTorch and beside what its memory and its matrix units can do.
//!
//! The program is the GPU build's `gpu-check`. Without a GPU it says so and ends with code 3.

mod check;
mod report;
mod speed;
mod torch;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use artifact::{Exit, caught};
use candle_core::Device;
use clap::Parser;

use crate::{
    check::Check,
    report::Report,
    speed::{Ceilings, Rate},
    torch::Theirs,
};

/// Checks a GPU against the CPU, then times gradient queries on it.
///
/// Exit codes: 0 everything agrees, 1 something does not or failed, 2 usage, 3 there is no GPU: nothing was checked.
#[derive(Debug, Parser)]
#[command(name = "gpu-check", version, about)]
struct Arguments {
    /// Time PyTorch too, with this Python.
    #[arg(long, value_name = "PYTHON")]
    torch: Option<String>,
    /// Leave out torch.compile.
    #[arg(long)]
    no_compile: bool,
    /// Time nothing: for a stand-in of a GPU, or a busy one.
    #[arg(long)]
    only_checks: bool,
    /// Where `gpu-check.parquet` and `gpu-check.md` go.
    #[arg(long, value_name = "DIR", default_value = "data/report/gpu-check")]
    out: PathBuf,
}

/// The program's `main`.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = caught(|| match gpu::open() {
        Ok(device) => run(&arguments, &device),
        Err(error) => {
            complain(&no_gpu(&error));
            Ok(Exit::Input)
        }
    });
    match outcome.unwrap_or_else(|panic| Err(panic.into())) {
        Ok(exit) => exit.into(),
        Err(error) => {
            complain(&format!("{error:#}"));
            Exit::Failed.into()
        }
    }
}

fn no_gpu(error: &candle_core::Error) -> String {
    let error = error.to_string().lines().next().unwrap_or_default().to_owned();
    format!("there is no GPU that this program can use ({error}): nothing was checked")
}

fn run(arguments: &Arguments, device: &Device) -> anyhow::Result<Exit> {
    let name = gpu::name(device)?.unwrap_or_else(|| "unknown".to_owned());
    say(&format!("{name}: operations, defenses and architectures against the CPU"));
    let mut checks = Vec::new();
    check::all(device, &mut |check: Check| {
        say(&check.to_string());
        checks.push(check);
    })?;
    let (ceilings, ours, refused) = if arguments.only_checks { (None, vec![], vec![]) } else { rates(device)? };
    let theirs = match &arguments.torch {
        _ if arguments.only_checks => Theirs::absent("no rate was asked for: --only-checks"),
        Some(python) => torch::measure(python, "cuda", !arguments.no_compile, &speed::works()),
        None => Theirs::absent("not asked for: --torch PYTHON"),
    };
    let report = Report { device: name, checks, ceilings, ours, refused, theirs };
    let page = report.markdown();
    say(&page);
    report.write(&arguments.out, &page)?;
    Ok(if report.agrees() { Exit::Done } else { Exit::Failed })
}

/// What the device can do at best, how many queries it answers, and what it could not do.
fn rates(device: &Device) -> anyhow::Result<(Option<Ceilings>, Vec<Rate>, Vec<String>)> {
    let ceilings = Ceilings::measure(device)?;
    let (mut ours, mut refused) = (Vec::new(), Vec::new());
    for work in speed::works() {
        for (settings, rate) in speed::rates(work, device)? {
            let way = format!("{work}, {}", speed::name(settings));
            match rate {
                Ok(rate) => {
                    say(&format!("{way}: {:.1} gradient queries per second", rate.gradient));
                    ours.push(rate);
                }
                Err(error) => refused.push(format!("{way}: {error}")),
            }
        }
    }
    Ok((Some(ceilings), ours, refused))
}

#[expect(clippy::print_stdout, reason = "what was asked for")]
fn say(text: &str) {
    println!("{text}");
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "gpu-check: {text}");
}
