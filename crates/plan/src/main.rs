//! Plans every pipeline for one scale: parameters and Make rules under `data/plan/<scale>/`.

use std::{
    error::Error as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use plan::{
    Calibration, Error, Estimates, Job, Options, Plan, Rates, Result, Scale, Sources, check, costs,
    estimate::{self, is_cheap},
    fetches, make,
};
use stage_attack::calibrate::Work;

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
    /// Recorded rates (engine.json, gpu-check.json) of other machines; of two for the same work the last counts.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "cost")]
    rates: Vec<PathBuf>,
    /// Print one line about what is missing of these pipelines, and how long it will take.
    #[arg(long, value_name = "PIPELINE", conflicts_with_all = ["cost", "gc", "list"])]
    goals: Vec<String>,
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
        let rates = Rates::read(&arguments.rates)?;
        let calibration = calibration(plan.jobs.all().iter(), |_| true)?;
        let estimates = calibration.as_ref().map(|known| Estimates::new(&plan, known, Path::new("")));
        print(&costs::tables(&plan, &rates, estimates.as_ref()));
    }
    fetches::forget(plan.jobs.all(), &hub::Cache::from_env());
    // Listed commands name parameter files, so these are written in any case.
    let mut is_new = false;
    for (path, text) in make::files(&plan, &options)? {
        let changed = plan::write_if_changed(&path, &text)?;
        is_new |= changed && path == make::fragment_path(&options);
    }
    // Make begins again where its rules are new, and asks again.
    if !is_new && !arguments.goals.is_empty() {
        outlook(&plan, &arguments.goals)?;
    }
    Ok(())
}

/// What is missing of some pipelines; nothing of those that this machine lacks something for, which say so themselves.
fn outlook(plan: &Plan, goals: &[String]) -> Result<()> {
    let inputs: Vec<String> =
        goals.iter().filter_map(|goal| plan.report(goal).ok()).flat_map(|work| work.inputs.clone()).collect();
    let jobs = plan.jobs.closure(&inputs);
    // Asked first without times, which would have to be measured.
    if estimate::missing(goals, &jobs, None, Path::new("")).is_none() {
        return Ok(());
    }
    let calibration = calibration(jobs.iter().copied(), is_cheap).unwrap_or_default();
    let estimates = calibration.as_ref().map(|known| Estimates::new(plan, known, Path::new("")));
    if let Some(line) = estimate::missing(goals, &jobs, estimates.as_ref(), Path::new("")) {
        print(&format!("{line}\n"));
    }
    Ok(())
}

/// How long what these jobs do takes here; none where the stage that measures it is not beside this program, or works that are
/// not cheap were not measured before.
fn calibration<'a>(
    jobs: impl Iterator<Item = &'a Job>,
    is_cheap: impl Fn(&Work) -> bool,
) -> Result<Option<Calibration>> {
    let attack =
        std::env::current_exe().ok().map(|plan| plan.with_file_name(format!("attack{}", std::env::consts::EXE_SUFFIX)));
    match attack.filter(|attack| attack.exists()) {
        Some(attack) => Calibration::of(&estimate::works(jobs), &attack, Path::new("data/cost"), is_cheap),
        None => Ok(None),
    }
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
