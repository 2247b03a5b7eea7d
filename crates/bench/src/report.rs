//! The tables: tidy rows, every round, and Markdown for people.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use artifact::{BenchRow, Provenance, Shard, Writer};
use serde_json::{Value, json};

use crate::{
    clock::median,
    measure::{Beside, Plan, load},
    peak,
    stages::Memory,
    torch::Torch,
    work::{DRAWS, Kind, cores},
};

/// All that was measured.
pub struct Report {
    pub works: Vec<Beside>,
    pub memory: Option<Memory>,
    /// Multiplications per second of a large matrix product, by number of threads.
    peaks: BTreeMap<usize, f64>,
    machine: BTreeMap<&'static str, String>,
    versions: BTreeMap<String, String>,
    /// What the run was told.
    parameters: Value,
}

impl Report {
    pub fn new(torch: &Torch, threads: &[usize], plan: &Plan<'_>) -> anyhow::Result<Self> {
        let count = |&threads: &usize| if threads == 0 { cores() } else { threads };
        let peaks = threads.iter().map(count).map(|threads| Ok((threads, peak::gemm(threads, 10)?)));
        let weights = if plan.stages.real() { "published" } else { "untrained" };
        Ok(Self {
            works: vec![],
            memory: None,
            peaks: peaks.collect::<anyhow::Result<_>>()?,
            machine: machine(),
            versions: torch.versions.clone(),
            parameters: json!({
                "rounds": plan.rounds, "seconds": plan.seconds, "quick": plan.quick, "weights_of_votes": weights,
            }),
        })
    }

    /// Notes what the machine was like at the end.
    pub fn finish(&mut self) {
        self.machine.extend(load().map(|load| ("load at the end", load.to_string())));
    }

    fn rows(&self) -> Vec<BenchRow> {
        let machine = format!("{} x {}", self.machine.get("cpu").map_or("unknown", String::as_str), cores());
        let row = |measured: &Beside| {
            let (variant, best) = measured.best();
            let work = measured.work;
            BenchRow {
                work: work.kind.name().to_owned(),
                model: work.model.to_owned(),
                input: format!("3x{0}x{0}", work.side),
                batch: work.batch as u32,
                threads: work.cores() as u32,
                ours_per_second: median(&measured.ours),
                torch_best_per_second: best,
                torch_variant: variant.to_owned(),
                ratio: measured.ratio(),
                machine: machine.clone(),
            }
        };
        self.works.iter().map(row).collect()
    }

    /// The page for people.
    pub fn markdown(&self) -> String {
        let mut page = "# The engine beside PyTorch\n\n".to_owned();
        let facts: Vec<_> = self.machine.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let versions: Vec<_> = self.versions.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let _ = writeln!(
            page,
            "Images per second, medians of {} alternating rounds; one thread by processor time, several by the wall. The \
             base is PyTorch's best variant.\n\n- {}\n- {}\n",
            self.parameters["rounds"],
            facts.join("; "),
            versions.join("; "),
        );
        self.table(&mut page);
        self.multiplications(&mut page);
        self.votes(&mut page);
        self.program(&mut page);
        self.memory(&mut page);
        self.variants(&mut page);
        page
    }

    fn table(&self, page: &mut String) {
        page.push_str(
            "| work | model | input | batch | threads | ours | range | PyTorch | variant | ratio | must | aim | load |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for (row, measured) in self.rows().iter().zip(&self.works) {
            let (low, high) = crate::measure::range(&measured.ours);
            let (must, aim) = goal(measured).map_or(("".into(), "".into()), |(must, aim)| (times(must), times(aim)));
            let load = measured.load.map_or(String::new(), |load| format!("{load:.1}"));
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} | {:.1} | {low:.1} to {high:.1} | {:.1} | {} | {:.2} | {must} | {aim} | {load} |",
                row.work,
                row.model,
                row.input,
                row.batch,
                row.threads,
                row.ours_per_second,
                row.torch_best_per_second,
                row.torch_variant,
                row.ratio,
            );
        }
        if self.crowded() {
            page.push_str(
                "\nThe load was above the number of cores: PyTorch's threads wait for the slowest of them at every layer, so \
                 rows of several threads flatter this system and are no measurement.\n",
            );
        }
    }

    /// Whether rows of several threads were measured on a machine with other work.
    fn crowded(&self) -> bool {
        let several = self.works.iter().filter(|measured| measured.work.cores() > 1);
        several.into_iter().any(|measured| measured.load.is_some_and(|load| load > 1.5 * cores() as f64))
    }

    /// What comes from fewer multiplications, and what from better code.
    fn multiplications(&self, page: &mut String) {
        page.push_str("\n## Fewer multiplications, or better code\n\n");
        for (threads, peak) in &self.peaks {
            let _ = writeln!(
                page,
                "The gemm crate's peak on {threads} thread(s), a product of 1536 x 1536 matrices: {:.1} GFLOP/s.",
                2e-9 * peak
            );
        }
        page.push_str(
            "\nThe direct path does the multiplications of the definition; its ratio to PyTorch is better code. The ratio \
             of the engine to its direct path is Winograd's gain, all from fewer multiplications. Shares of the peak: the \
             direct path's; the engine's in multiplications done, and in those of the definition (effective, which fewer \
             multiplications can bring above 1). Multiplications done count channels and tiles that are filled up, not \
             the additions of Winograd's transforms.\n\n\
             | work | model | threads | direct / PyTorch | Winograd / direct | multiplications done | direct, of peak | done, of peak | effective, of peak |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        for measured in &self.works {
            let (Some([definition, done, direct]), Some(peak)) =
                (measured.multiplications, self.peaks.get(&measured.work.cores()))
            else {
                continue;
            };
            let (ours, slow) = (median(&measured.ours), median(&measured.direct));
            let _ = writeln!(
                page,
                "| {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
                measured.work.kind.name(),
                measured.work.model,
                measured.work.cores(),
                slow / measured.best().1,
                ours / slow,
                done as f64 / definition as f64,
                slow * direct as f64 / peak,
                ours * done as f64 / peak,
                ours * definition as f64 / peak,
            );
        }
    }

    fn votes(&self, page: &mut String) {
        for measured in self.works.iter().filter(|measured| measured.work.kind == Kind::Votes) {
            let (Some(draws), Some([stopping, engine])) = (measured.draws, measured.shares()) else { continue };
            let _ = writeln!(
                page,
                "\nVotes on {} thread(s), {} weights: {draws:.0} of {DRAWS} draws decide a vote, so early stopping makes \
                 {stopping:.2}x and the engine, defense and stage {engine:.2}x. The stage's time is that of its whole \
                 process; PyTorch's is that of the draws alone.",
                measured.work.cores(),
                self.parameters["weights_of_votes"].as_str().unwrap_or_default(),
            );
        }
    }

    fn program(&self, page: &mut String) {
        for measured in self.works.iter().filter(|measured| measured.work.kind == Kind::Program) {
            let _ = writeln!(
                page,
                "\nA PyTorch network behind Gaussian noise, attacked through the protocol `victim`: {:.3} times the time of a loop \
                 by hand at the same batch (must: 1.15), by the processor time of both processes.",
                1.0 / measured.ratio(),
            );
        }
    }

    fn memory(&self, page: &mut String) {
        if let Some(Memory { images: [few, many], peaks: [small, large] }) = self.memory {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let _ = writeln!(
                page,
                "\n## Memory\n\nThe stage `attack` (PGD-1, Gaussian noise, ResNet-20), largest resident set: {few} images {:.1} \
                 MiB, {many} images {:.1} MiB, ratio {:.3} (must: within 10%).",
                mib(small),
                mib(large),
                large as f64 / small as f64,
            );
        }
    }

    fn variants(&self, page: &mut String) {
        page.push_str(
            "\n## Every variant of PyTorch\n\nBoth sides have the same weights and images. Apart: the largest difference of \
             logits as a share of the largest (of the first loss, for training); for gradients, the largest difference \
             as a share of the image's largest entry, the median over images and the worst image, where a ReLU within \
             rounding of zero took the other branch.\n\n| work | variant | images per second | apart |\n|---|---|---|---|\n",
        );
        for measured in &self.works {
            for (name, rates) in &measured.torch {
                let apart = measured.apart.get(name).map(ToString::to_string).unwrap_or_default();
                let _ = writeln!(page, "| {} | {name} | {:.1} | {apart} |", measured.work, median(rates));
            }
            for (name, reason) in &measured.skipped {
                let _ = writeln!(page, "| {} | {name} | none: {} | |", measured.work, reason.replace('|', "/"));
            }
        }
    }

    /// Writes everything, the Parquet last.
    pub fn write(&self, folder: &Path, page: &str) -> anyhow::Result<()> {
        let rows = self.rows();
        let tidy: Vec<Value> = rows.iter().map(BenchRow::json).collect();
        let rounds = json!({
            "machine": self.machine, "versions": self.versions, "parameters": self.parameters,
            "gemm_multiplications_per_second": self.peaks, "memory": self.memory, "works": self.works,
        });
        let pretty = |value: &Value| serde_json::to_string_pretty(value).map(|text| text + "\n");
        artifact::write_atomic(&folder.join("engine.rounds.json"), pretty(&rounds)?.as_bytes())?;
        artifact::write_atomic(&folder.join("engine.json"), pretty(&Value::from(tidy))?.as_bytes())?;
        artifact::write_atomic(&folder.join("engine.md"), page.as_bytes())?;
        let environment = self.machine.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let provenance = Provenance {
            kind: String::new(),
            stage: "bench".to_owned(),
            revision: 1,
            parameters: self.parameters.clone(),
            shard: Shard::WHOLE,
            inputs: BTreeMap::new(),
            facts: BTreeMap::new(),
            environment: environment.chain(self.versions.clone()).collect(),
        };
        let mut writer = Writer::<BenchRow>::create(&folder.join("engine.parquet"), provenance)?;
        writer.push(&rows)?;
        Ok(writer.finish()?)
    }

    /// # Errors
    /// If the two sides did not compute the same: then no ratio means anything.
    pub fn verdict(&self) -> anyhow::Result<()> {
        let all = self.works.iter().flat_map(|measured| measured.apart.iter().map(move |apart| (measured, apart)));
        if let Some((measured, (name, apart))) = all.into_iter().find(|(_, (_, apart))| !apart.same()) {
            anyhow::bail!("{}: PyTorch ({name}) computes something else: apart by {apart}", measured.work);
        }
        Ok(())
    }
}

fn times(ratio: f64) -> String {
    format!("{ratio}x")
}

/// The ratios that were asked for: what it must be, and what it should.
fn goal(measured: &Beside) -> Option<(f64, f64)> {
    Some(match (measured.work.kind, measured.work.model) {
        (Kind::Gradient, "cifar-resnet-20" | "cifar-resnet-56") => (1.3, 2.5),
        (Kind::Gradient, "resnet-18") => (1.8, 2.5),
        (Kind::Gradient, _) => (1.0, 1.5),
        (Kind::Votes, _) => (3.0, 5.0),
        (Kind::Train, _) => (1.0, 1.5),
        // At most 1.15 times the time.
        (Kind::Program, _) => (0.87, 1.0),
        (Kind::Logits, _) => return None,
    })
}

/// Facts about the machine.
fn machine() -> BTreeMap<&'static str, String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let family = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let number = family("cpu family").zip(family("model\t")).map(|(family, model)| format!("{family}/{model}"));
    let facts = [
        ("cpu", cpu.map(|name| name.trim().to_owned())),
        ("cpu family and model", number),
        ("cores", Some(cores().to_string())),
        ("instruction set", engine::Isa::available().first().map(|isa| format!("{isa:?}"))),
        ("load at the start", load().map(|load| load.to_string())),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
