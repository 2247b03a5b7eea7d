//! The command line of a stage, from arguments to exit code.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use artifact::{Exit, Provenance, Shard, TimingRow, Writer, caught};
use candle_core::Device;
use clap::{
    Args, Command, FromArgMatches, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser as _},
};
use serde::de::DeserializeOwned;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer as Writing},
    registry::LookupSpan,
};

use crate::{Context, Input, Invalid, Stage, Stopwatch, Unfit, Usage, environment};

/// Arguments of every stage: where things are, never what is computed.
#[derive(Debug, Args)]
struct Arguments {
    /// The parameters, a JSON file.
    #[arg(long, value_name = "FILE")]
    params: PathBuf,
    /// The table to write, a Parquet file; its folder is created.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Part I of N, I from 0: the images whose position in the sample is I modulo N.
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    shard: Shard,
    /// Where to compute; `auto` takes a GPU where this build and this machine have one.
    #[arg(long, value_enum, default_value = "auto", env = "DEVICE")]
    device: Choice,
    /// Threads to compute with [default: one per core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// The folder that relative paths of local data and weights are below [default: the current one].
    #[arg(long, value_name = "DIR", env = "DATA_ROOT", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    data_root: Option<PathBuf>,
    /// Tables of earlier stages; told apart by their kind, not by their order.
    #[arg(value_name = "INPUT")]
    inputs: Vec<PathBuf>,
}

/// What `--device` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// Also an empty `DEVICE`, which a Makefile may export.
    #[value(alias = "", help = None)]
    Auto,
    Cpu,
    Cuda,
}

impl Choice {
    fn open(self) -> anyhow::Result<Device> {
        if self == Self::Cpu {
            return Ok(Device::Cpu);
        }
        match (self, gpu::open()) {
            (_, Ok(device)) => Ok(device),
            (Self::Cuda, Err(error)) => Err(Usage(refusal(&error)).into()),
            (_, Err(_)) => {
                if BUILT_WITH_CUDA {
                    tracing::info!("no GPU on this machine: computing on the CPU");
                }
                Ok(Device::Cpu)
            }
        }
    }
}

/// Whether this build can use a GPU at all.
const BUILT_WITH_CUDA: bool = cfg!(feature = "cuda");

/// Why there is no GPU, and what to do.
fn refusal(error: &candle_core::Error) -> String {
    if BUILT_WITH_CUDA {
        let error = error.to_string().lines().next().unwrap_or_default().to_owned();
        format!(
            "--device cuda: no GPU that CUDA 13 can use on this machine ({error}); check nvidia-smi, or use --device cpu"
        )
    } else {
        "--device cuda: this program was built without CUDA; build it with `make cuda`, or use --device cpu".to_owned()
    }
}

const CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line or the parameters are wrong
  3  an input is missing, damaged or of the wrong kind
  4  numbers are invalid: NaN weights, a perturbation outside its ball

RUST_LOG sets how much is logged (error, warn, info, debug).";

/// Runs a stage from the command line: the whole of a stage binary's `main`.
pub fn main<S: Stage>() -> ExitCode {
    let command = Arguments::augment_args(Command::new(S::NAME).bin_name(S::NAME));
    let command = command.about(S::ABOUT).version(version::<S>()).after_help(CODES);
    let arguments = match command.try_get_matches().and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    log();
    let outcome = caught(|| execute::<S>(&arguments)).unwrap_or_else(|panic| Err(panic.into()));
    let Err(error) = outcome else { return Exit::Done.into() };
    let _ = writeln!(io::stderr(), "{}: {error:#}", S::NAME);
    exit(&error).into()
}

fn version<S: Stage>() -> &'static str {
    format!("{} (revision {})", env!("CARGO_PKG_VERSION"), S::REVISION).leak()
}

fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).event_format(Line);
    // A second call in one process finds the first one's log in place.
    let _ = log.try_init();
}

/// A log line: what runs, what it says. Make interleaves the lines of many jobs.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writing<'_>, event: &Event<'_>) -> std::fmt::Result {
        if let Some(fields) = ctx.lookup_current().and_then(|span| {
            let extensions = span.extensions();
            extensions.get::<FormattedFields<N>>().map(|fields| fields.fields.clone())
        }) {
            write!(to, "{}: ", fields.trim_start_matches("line="))?;
        }
        if *event.metadata().level() <= Level::WARN {
            write!(to, "{}: ", event.metadata().level().as_str().to_lowercase())?;
        }
        ctx.field_format().format_fields(to.by_ref(), event)?;
        writeln!(to)
    }
}

/// The exit code of an error: that of the outermost cause that has one.
#[must_use]
pub fn exit(error: &anyhow::Error) -> Exit {
    let code = |cause: &(dyn std::error::Error + 'static)| {
        if let Some(file) = cause.downcast_ref::<artifact::Error>() {
            return Some(if file.is_input() { Exit::Input } else { Exit::Failed });
        }
        let unfit = cause.is::<Unfit>().then_some(Exit::Input);
        unfit
            .or_else(|| cause.is::<Invalid>().then_some(Exit::Numbers))
            .or_else(|| cause.is::<Usage>().then_some(Exit::Usage))
    };
    error.chain().find_map(code).unwrap_or(Exit::Failed)
}

fn execute<S: Stage>(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = arguments.out.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let shard = if arguments.shard == Shard::WHOLE { String::new() } else { format!(" {}", arguments.shard) };
    let _span = tracing::info_span!("stage", line = %format_args!("{} {folder}{shard}", S::NAME)).entered();
    if let Some(threads) = arguments.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global().context("--threads")?;
    }
    let params = parameters::<S::Params>(&arguments.params)?;
    let mut ctx = Context::new(&arguments.out);
    ctx.shard = arguments.shard;
    ctx.data_root = arguments.data_root.clone().filter(|root| !root.as_os_str().is_empty());
    ctx.inputs = arguments.inputs.iter().map(|path| Input::open(path)).collect::<artifact::Result<_>>()?;
    ctx.device = arguments.device.open()?;
    run::<S>(&params, &ctx)
}

/// Reads a JSON file of parameters; errors name the file, the field and the place.
fn parameters<P: DeserializeOwned>(path: &Path) -> anyhow::Result<P> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| Usage(format!("{name}: cannot read parameters: {error}")))?;
    let mut json = serde_json::Deserializer::from_str(&text);
    let params = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." { String::new() } else { format!("field `{field}`: ") };
        Usage(format!("{name}: {field}{}", error.into_inner()))
    })?;
    json.end().map_err(|error| Usage(format!("{name}: {error}")))?;
    Ok(params)
}

/// Runs a stage in this process: writes `ctx.out` and, just before it appears, the timing table beside it.
///
/// # Errors
/// If the stage fails, or a file cannot be written; then `ctx.out` is not there, or is as it was.
pub fn run<S: Stage>(params: &S::Params, ctx: &Context) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    let provenance = Provenance {
        kind: String::new(),
        stage: S::NAME.to_owned(),
        revision: S::REVISION,
        parameters: serde_json::to_value(params).context("the parameters are no JSON")?,
        shard: ctx.shard,
        inputs: ctx.inputs.iter().map(|input| (input.path.display().to_string(), input.sha256.clone())).collect(),
        facts: BTreeMap::new(),
        environment: environment::facts(&ctx.device),
    };
    let mut out = Writer::<S::Row>::create(&ctx.out, provenance.clone())?;
    S::run(params, ctx, &mut out)?;
    ctx.time("total", 1, watch.wall());
    ctx.time("processor", 1, watch.processor());
    let mut timing = Writer::<TimingRow>::create(&ctx.out.with_extension("timing.parquet"), provenance)?;
    timing.push(&ctx.timing())?;
    timing.finish()?;
    out.finish()?;
    tracing::info!("{} in {:.1} s", ctx.out.display(), watch.wall());
    Ok(())
}
