//! A plan as Make rules and as a list of commands; and what no plan needs any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use stage::Stage;
use stage_report::Report as ReportStage;

use crate::{Error, Job, Options, Plan, Result, Work, fetches, folders, jobs::sorted};

/// Characters that Make or a shell would not take literally.
const SPECIAL: &str = " \t\n$#:%\\*?[]~'\"`;&|<>()!=";

/// How the stages are called: Make's variables in the fragment, their defaults in a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    run: &'static str,
    pub(crate) bin: &'static str,
    device: &'static str,
}

pub(crate) const MAKE: Words = Words { run: "$(RUN) ", bin: "$(BIN)/", device: "$(DEVICE)" };
pub(crate) const SHELL: Words = Words { run: "", bin: "${BIN:-target/release}/", device: "${DEVICE:-auto}" };

/// The files of a plan: parameters of every job and report, and the Make fragment, by path.
///
/// # Errors
/// If Make cannot handle a local file's path.
pub fn files(plan: &Plan, options: &Options) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    for job in plan.jobs.all() {
        files.insert(PathBuf::from(parameters(job, options)), pretty(&job.params));
    }
    for report in &plan.reports {
        if let Ok(work) = &report.work {
            let params = serde_json::to_value(&work.params).map_err(|error| Error::Pipeline(error.to_string()))?;
            files.insert(PathBuf::from(report_parameters(&report.name, options)), pretty(&sorted(&params)));
        }
    }
    files.insert(fragment_path(options), fragment(plan, options)?);
    Ok(files)
}

/// Where the Make fragment goes.
#[must_use]
pub fn fragment_path(options: &Options) -> PathBuf {
    PathBuf::from(format!("data/plan/{}/plan.mk", options.scale.name()))
}

/// The Make fragment: one rule per part, one per report, one name per pipeline.
///
/// # Errors
/// If Make cannot handle a local file's path.
pub fn fragment(plan: &Plan, options: &Options) -> Result<String> {
    let mut text = String::from("# Written by plan from pipelines/*.toml: change those instead.\n");
    for report in &plan.reports {
        let name = &report.name;
        writeln!(text, "\n# {}", report.title.replace(['\n', '\\'], " ")).expect("a string takes all");
        match &report.work {
            Ok(work) => text.push_str(&report_rule(plan, name, work, options)),
            Err(reason) => {
                writeln!(text, "{name}:\n\t@echo '{name}: {}' >&2; exit 1", said(reason)).expect("as above");
            }
        }
    }
    for job in plan.jobs.all() {
        text.push('\n');
        text.push_str(&job_rules(plan, job, options)?);
    }
    text.push_str(&fetches::rules(plan.jobs.all(), &hub::Cache::from_env()));
    Ok(text)
}

fn report_rule(plan: &Plan, name: &str, work: &Work, options: &Options) -> String {
    let out = report_path(name, options);
    let inputs = outputs(plan, &work.inputs).join(" ");
    let params = report_parameters(name, options);
    let command = report_command(MAKE, plan, name, work, options);
    format!("{name}: {out}\n{out}: {params} {inputs} | build\n\t{command}\n")
}

/// Parameters are order-only prerequisites: their content is in the address, so their time says nothing.
fn job_rules(plan: &Plan, job: &Job, options: &Options) -> Result<String> {
    let params = parameters(job, options);
    let mut sources = outputs(plan, &job.inputs);
    let is_folder = folders::reads_one(job);
    for file in job.files.iter().filter(|_| !is_folder) {
        sources.push(plain(file)?.to_owned());
    }
    let sources = sources.join(" ");
    let fetched = fetches::missing(job, &hub::Cache::from_env());
    let fetched: String = fetched.iter().map(|file| format!("{} ", fetches::receipt(file))).collect();
    let mut text = String::new();
    for (shard, out) in job.outputs().iter().enumerate() {
        let command = command(MAKE, plan, job, shard, options)?;
        if let Some(reason) = folders::stale(job, Path::new(out)) {
            let reason = said(&reason);
            writeln!(
                text,
                ".PHONY: changed\n{out}: changed | {params} build\n\t@echo '{out}: made again: {reason}'\n\t{command}"
            )
            .expect("a string takes all");
            continue;
        }
        writeln!(text, "{out}: {sources} | {params} {fetched}build\n\t{command}").expect("a string takes all");
    }
    Ok(text)
}

/// The command that makes one part of a job.
fn command(words: Words, plan: &Plan, job: &Job, shard: usize, options: &Options) -> Result<String> {
    let heavy = matches!(job.stage, "finetune" | "fit" | "attack");
    let mut text = if heavy { words.run.to_owned() } else { String::new() };
    write!(text, "{}{} --params {}", words.bin, job.stage, parameters(job, options)).expect("a string takes all");
    if job.parts > 1 {
        write!(text, " --shard {shard}/{}", job.parts).expect("as above");
    }
    if heavy {
        write!(text, " --device {}", words.device).expect("as above");
    }
    if let Some(root) = options.data_root.as_ref().filter(|_| !job.files.is_empty()) {
        write!(text, " --data-root {}", plain(root)?).expect("as above");
    }
    write!(text, " --out {}", job.outputs()[shard]).expect("as above");
    for input in outputs(plan, &job.inputs) {
        write!(text, " {input}").expect("as above");
    }
    Ok(text)
}

fn report_command(words: Words, plan: &Plan, name: &str, work: &Work, options: &Options) -> String {
    let inputs = outputs(plan, &work.inputs).join(" ");
    let (params, out) = (report_parameters(name, options), report_path(name, options));
    format!("{}{} --params {params} --out {out} {inputs}", words.bin, ReportStage::NAME)
}

/// The commands of one pipeline, one per line, those that fetch files of the hub first; a blank line wherever all above must end before any below starts.
///
/// # Errors
/// If there is no such pipeline, or this machine lacks what it needs.
pub fn list(plan: &Plan, name: &str, options: &Options) -> Result<String> {
    let work = plan.report(name)?;
    let mut layers: Vec<Vec<String>> = Vec::new();
    let mut depths: BTreeMap<&str, usize> = BTreeMap::new();
    let jobs = plan.jobs.closure(&work.inputs);
    let fetches = fetches::commands(&jobs);
    for job in jobs {
        let depth = job.inputs.iter().map(|input| depths[input.as_str()] + 1).max().unwrap_or(0);
        depths.insert(&job.address, depth);
        layers.resize(layers.len().max(depth + 1), Vec::new());
        for shard in 0..job.parts as usize {
            layers[depth].push(command(SHELL, plan, job, shard, options)?);
        }
    }
    layers.push(vec![report_command(SHELL, plan, name, work, options)]);
    if !fetches.is_empty() {
        layers.insert(0, fetches);
    }
    let layers: Vec<String> = layers.iter().map(|commands| commands.join("\n")).collect();
    Ok(layers.join("\n\n") + "\n")
}

/// What below `data/` no plan that was written there names any more: whole artifacts, parts of another sharding, receipts.
///
/// # Errors
/// If a folder cannot be read.
pub fn garbage(root: &Path) -> Result<Vec<PathBuf>> {
    let mut named = BTreeSet::new();
    for fragment in entries(&root.join("data/plan"))?.iter().map(|folder| folder.join("plan.mk")) {
        if let Ok(text) = std::fs::read_to_string(&fragment) {
            named.extend(text.split_whitespace().map(|word| word.trim_end_matches(':').to_owned()));
        }
    }
    let folders: BTreeSet<&str> =
        named.iter().filter_map(|path| path.rsplit_once('/')).map(|(folder, _)| folder).collect();
    let name = |path: &Path| path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
    let mut garbage = Vec::new();
    for stage in ["sample", "finetune", "fit", "attack", "theory"] {
        for folder in entries(&root.join("data").join(stage))? {
            if !folders.contains(name(&folder).as_str()) {
                garbage.push(folder);
                continue;
            }
            let part = |path: &Path| {
                path.file_name().and_then(|n| n.to_str()).and_then(|n| n.split('.').next()).map(str::to_owned)
            };
            garbage.extend(entries(&folder)?.into_iter().filter(|path| {
                part(path).is_some_and(|part| {
                    part.starts_with("part-") && !named.contains(&format!("{}/{part}.parquet", name(&folder)))
                })
            }));
        }
    }
    garbage.extend(entries(&root.join("data/fetch"))?.into_iter().filter(|path| !named.contains(&name(path))));
    for scale in entries(&root.join("data/plan"))?.into_iter().filter(|path| path.is_dir()) {
        let parameters = entries(&scale)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "json"));
        garbage.extend(parameters.filter(|path| !named.contains(&name(path))));
    }
    Ok(garbage)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
            paths.sort();
            Ok(paths)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Read { path: folder.into(), source }),
    }
}

fn outputs(plan: &Plan, addresses: &[String]) -> Vec<String> {
    addresses.iter().flat_map(|address| plan.jobs.at(address).outputs()).collect()
}

fn parameters(job: &Job, options: &Options) -> String {
    format!("data/plan/{}/{}.json", options.scale.name(), job.address.replacen('/', "--", 1))
}

/// The revision is in the name: a report that would read differently is made again.
fn report_parameters(name: &str, options: &Options) -> String {
    format!("data/plan/{}/report--{name}--r{}.json", options.scale.name(), ReportStage::REVISION)
}

fn report_path(name: &str, options: &Options) -> String {
    format!("data/report/{}/{name}.parquet", options.scale.name())
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// A sentence in the quotes of a shell in a recipe.
fn said(text: &str) -> String {
    text.replace('\'', "").replace('$', "$$").replace(['\n', '\r'], " ")
}

/// The path as text, if Make and a shell take it literally.
fn plain(path: &Path) -> Result<&str> {
    let text = path.to_str().filter(|text| !text.is_empty() && !text.contains(|c| SPECIAL.contains(c)));
    text.ok_or_else(|| Error::Path { path: path.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_make_misreads_are_refused() {
        for path in ["a b", "a:b", "$HOME", "~/x", "100%"] {
            assert!(plain(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(plain(Path::new("../data/a-b_c.parquet")).unwrap(), "../data/a-b_c.parquet");
    }

    #[test]
    fn garbage_is_what_no_plan_names() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "data/plan/demo/plan.mk",
            "data/attack/a--1/part-0-of-1.parquet: data/finetune/n--1/part-0-of-1.parquet | data/plan/demo/attack--a--1.json build\n# data/fetch/f--1.json: in the cache\n",
        );
        for kept in [
            "fetch/f--1.json",
            "attack/a--1/part-0-of-1.parquet",
            "attack/a--1/part-0-of-1.timing.parquet",
            "finetune/n--1/epoch-001.safetensors",
        ] {
            write(&format!("data/{kept}"), "");
        }
        write("data/plan/demo/attack--a--1.json", "");
        assert_eq!(garbage(root.path()).unwrap(), Vec::<PathBuf>::new());
        let gone = [
            "attack/a--1/part-0-of-2.parquet",
            "attack/a--1/part-0-of-2.timing.parquet",
            "plan/demo/attack--a--2.json",
        ];
        for gone in gone {
            write(&format!("data/{gone}"), "");
        }
        write("data/sample/old--1/part-0-of-1.parquet", "");
        write("data/fetch/old--1.json", "");
        let expected = [&gone[..2], &["sample/old--1", "fetch/old--1.json"], &gone[2..]].concat();
        let expected: Vec<PathBuf> = expected.iter().map(|path| root.path().join("data").join(path)).collect();
        let mut found = garbage(root.path()).unwrap();
        found.sort_by_key(|path| expected.iter().position(|e| e == path));
        assert_eq!(found, expected);
    }
}
