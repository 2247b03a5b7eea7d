//! Plans every pipeline for one scale: parameters and Make rules under `data/plan/<scale>/`.

use std::{error::Error as _, path::PathBuf, process::ExitCode};

use clap::Parser;
use plan::{Error, Options, Plan, Rates, Result, Scale, Sources, check, costs, make};

/// Turns pipeline files into parameters and Make rules under data/plan/<scale>/.
///
/// Exit codes: 0 done, 1 the files cannot be planned, 2 usage.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// The pipeline files; named images and weights are read from the folder `sources` beside the first.
    #[arg(required_unless_present = "gc")]
    pipelines: Vec<PathBuf>,
    /// Which overlay of the pipeline files.
    #[arg(long, value_enum, default_value = "demo")]
    scale: Scale,
    /// Parts per attack.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65535))]
    shards: u32,
    /// The folder that relative paths of local images and weights are below.
    #[arg(long)]
    data_root: Option<PathBuf>,
    /// Print the commands of this pipeline instead, one per line, a blank line between dependency layers.
    #[arg(long, value_name = "PIPELINE", conflicts_with_all = ["cost", "gc"])]
    list: Option<String>,
    /// Print what each pipeline costs instead, before and after what is shared, snapshots and early-stopped votes save.
    #[arg(long, conflicts_with = "gc")]
    cost: bool,
    /// Recorded rates (engine.json, gpu-check.json), which turn costs into hours; of two for the same work the last counts.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "cost")]
    rates: Vec<PathBuf>,
    /// Read all images of this source instead, and print what was understood; a contact sheet goes to data/check/NAME.png.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["list", "cost", "gc"])]
    check_images: Option<String>,
    /// Read these weights instead, and print what was understood; with --check-images, the network is asked about them.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["list", "cost", "gc"])]
    check_weights: Option<String>,
    /// Delete the artifacts under data/ that no written plan names, and print them.
    #[arg(long)]
    gc: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.check_images.is_some() || arguments.check_weights.is_some() {
        return match check(&arguments) {
            Ok(text) => {
                print(&text);
                ExitCode::SUCCESS
            }
            Err(error) => {
                complain(&format!("check-source: {error:#}"));
                stage::exit(&error).into()
            }
        };
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            complain(&format!("plan: {error}{cause}"));
            ExitCode::FAILURE
        }
    }
}

/// What a source holds, as text.
fn check(arguments: &Arguments) -> anyhow::Result<String> {
    let (options, sources) = given(arguments)?;
    let images = arguments.check_images.as_deref();
    match (&arguments.check_weights, images) {
        (Some(name), _) => check::weights::check(&sources, name, images, &options),
        (None, Some(name)) => {
            check::images::check(&sources, name, &options, &PathBuf::from(format!("data/check/{name}.png")))
        }
        (None, None) => Ok(String::new()),
    }
}

fn given(arguments: &Arguments) -> Result<(Options, Sources)> {
    let options = Options { scale: arguments.scale, shards: arguments.shards, data_root: arguments.data_root.clone() };
    let folder = arguments.pipelines[0].parent().map(|folder| folder.join("sources")).unwrap_or_default();
    Ok((options, Sources::read(&folder)?))
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.gc {
        return collect();
    }
    let (options, sources) = given(arguments)?;
    let plan = Plan::new(&arguments.pipelines, &sources, &options)?;
    if let Some(name) = &arguments.list {
        print(&make::list(&plan, name, &options)?);
    } else if arguments.cost {
        print(&costs::tables(&plan, &Rates::read(&arguments.rates)?));
    }
    // Listed commands name parameter files, so these are written in any case.
    for (path, text) in make::files(&plan, &options)? {
        plan::write_if_changed(&path, &text)?;
    }
    Ok(())
}

fn collect() -> Result<()> {
    for path in make::garbage(std::path::Path::new("."))? {
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(|source| Error::Write { path: path.clone(), source })?;
        print(&format!("removed {}\n", path.display()));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what was asked for")]
fn print(text: &str) {
    print!("{text}");
}

#[expect(clippy::print_stderr, reason = "the one message of a failure")]
fn complain(text: &str) {
    eprintln!("{text}");
}
