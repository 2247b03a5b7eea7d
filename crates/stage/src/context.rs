//! What a stage may know besides its parameters.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use artifact::{Provenance, Row, Shard, TimingRow};
use candle_core::Device;
use indicatif::{ProgressBar, ProgressStyle};

use crate::Unfit;

/// An input table: where it is, what wrote it, and its digest.
#[derive(Clone, Debug)]
pub struct Input {
    /// The file.
    pub path: PathBuf,
    /// Its provenance; `provenance.kind` tells what rows it holds.
    pub provenance: Provenance,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

impl Input {
    /// Reads the provenance and the digest of an artifact.
    ///
    /// # Errors
    /// If the file is missing, damaged, or not an artifact.
    pub fn open(path: &Path) -> artifact::Result<Self> {
        let provenance = artifact::provenance(path)?;
        Ok(Self { path: path.to_owned(), provenance, sha256: artifact::sha256(path)? })
    }

    /// Whether two inputs are parts of one table.
    fn belongs_with(&self, other: &Self) -> bool {
        let (a, b) = (&self.provenance, &other.provenance);
        self.path.parent() == other.path.parent()
            && (&a.kind, &a.stage, a.revision, a.shard.count) == (&b.kind, &b.stage, b.revision, b.shard.count)
            && a.parameters == b.parameters
            && a.inputs == b.inputs
    }
}

/// All parts of one input table.
#[derive(Clone, Debug)]
pub struct Table<R> {
    /// The parts in shard order, every one of them.
    pub parts: Vec<Input>,
    /// Their rows, part after part.
    pub rows: Vec<R>,
}

impl<R> Table<R> {
    /// The provenance of the first part; the parts differ in shard and environment only.
    #[must_use]
    pub fn provenance(&self) -> &Provenance {
        &self.parts[0].provenance
    }

    /// The folder the table is in, where finetune keeps its weights.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.parts[0].path.parent().unwrap_or(Path::new(""))
    }
}

/// What a stage may know besides its parameters; nothing here changes numbers.
#[derive(Debug)]
pub struct Context {
    /// The inputs in the order given.
    pub inputs: Vec<Input>,
    /// The file being written; other files of the artifact go beside it.
    pub out: PathBuf,
    /// Which part of the whole to compute.
    pub shard: Shard,
    /// Where tensors live.
    pub device: Device,
    /// The folder that relative paths of local sources are below.
    pub data_root: Option<PathBuf>,
    timing: Mutex<Vec<TimingRow>>,
}

impl Context {
    /// The context of a whole artifact on the CPU without inputs; its fields are there to be set.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self {
            inputs: Vec::new(),
            out: out.into(),
            shard: Shard::WHOLE,
            device: Device::Cpu,
            data_root: None,
            timing: Mutex::default(),
        }
    }

    /// The inputs of one kind (`sample`, `finetune`, `detector`, `attack`, `theory`), in the order given.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Input> {
        self.inputs.iter().filter(move |input| input.provenance.kind == kind)
    }

    /// The tables among the inputs of one kind, each as its parts in shard order; tables in the order given.
    ///
    /// # Errors
    /// [`Unfit`] if a part of a table is missing or given twice.
    pub fn tables(&self, kind: &str) -> Result<Vec<Vec<Input>>, Unfit> {
        let mut tables: Vec<Vec<Input>> = Vec::new();
        for input in self.of_kind(kind) {
            match tables.iter_mut().find(|parts| parts[0].belongs_with(input)) {
                Some(parts) => parts.push(input.clone()),
                None => tables.push(vec![input.clone()]),
            }
        }
        for parts in &mut tables {
            parts.sort_by_key(|part| part.provenance.shard.index);
            whole(parts)?;
        }
        Ok(tables)
    }

    /// All rows of all inputs of one kind, in the order given (parts of one table in shard order), with their inputs.
    ///
    /// # Errors
    /// If a table is incomplete, or a file is damaged.
    pub fn read<R: Row>(&self) -> anyhow::Result<Vec<(Input, Vec<R>)>> {
        let mut read = Vec::new();
        for input in self.tables(R::KIND)?.into_iter().flatten() {
            let (_, rows) = artifact::read(&input.path)?;
            read.push((input, rows));
        }
        Ok(read)
    }

    /// The one table of a kind among the inputs, all parts of it.
    ///
    /// # Errors
    /// [`Unfit`] if there is none, or more than one, or one is incomplete; an [`artifact::Error`] if it is damaged.
    pub fn table<R: Row>(&self) -> anyhow::Result<Table<R>> {
        let mut tables = self.tables(R::KIND)?;
        let parts = match (tables.pop(), tables.len()) {
            (Some(parts), 0) => parts,
            (None, _) => return Err(Unfit(format!("no `{}` table among the inputs; name one", R::KIND)).into()),
            (Some(parts), _) => {
                let (one, other) = (tables[0][0].path.display(), parts[0].path.display());
                let text = format!("{one} and {other} are both `{}` tables; name only one of them", R::KIND);
                return Err(Unfit(text).into());
            }
        };
        let mut rows = Vec::new();
        for part in &parts {
            rows.append(&mut artifact::read(&part.path)?.1);
        }
        Ok(Table { parts, rows })
    }

    /// Resolves a source's path: absolute, or below the data root (the current folder where none is given).
    ///
    /// # Errors
    /// If nothing is there.
    pub fn local(&self, path: &Path) -> anyhow::Result<PathBuf> {
        let found = match &self.data_root {
            Some(root) => root.join(path),
            None => path.to_owned(),
        };
        if found.exists() {
            return Ok(found);
        }
        let mend = if path.is_absolute() {
            "check the path"
        } else if self.data_root.is_some() {
            "paths are taken below DATA_ROOT: check both"
        } else {
            "set DATA_ROOT to the folder it is below, or give its whole path"
        };
        Err(Unfit(format!("{}: no such file or folder; {mend}", found.display())).into())
    }

    /// Says on stderr what the work will cost before it starts.
    pub fn announce(&self, cost: &str) {
        tracing::info!("{cost}");
    }

    /// A progress bar of `total` steps, hidden when stderr is no terminal.
    #[must_use]
    pub fn progress(&self, total: u64, what: &str) -> Progress {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {elapsed} (left {eta})");
        let bar = ProgressBar::new(total).with_message(what.to_owned());
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(500));
        Progress { bar }
    }

    /// Adds to the timing table written beside the artifact; the same work's counts and seconds are summed.
    pub fn time(&self, work: &str, count: u64, seconds: f64) {
        let mut timing = self.timing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match timing.iter_mut().find(|row| row.work == work) {
            Some(row) => {
                row.count += count;
                row.seconds += seconds;
            }
            None => timing.push(TimingRow { work: work.to_owned(), count, seconds }),
        }
    }

    /// Where the time went so far, in the order the works were first named.
    #[must_use]
    pub fn timing(&self) -> Vec<TimingRow> {
        self.timing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Whether these are all parts of a table, once each.
fn whole(parts: &[Input]) -> Result<(), Unfit> {
    let count = parts[0].provenance.shard.count;
    for index in 0..count {
        let fault = match parts.iter().filter(|part| part.provenance.shard.index == index).count() {
            0 => "is missing",
            1 => continue,
            _ => "is given twice",
        };
        let path = parts[0].path.display();
        return Err(Unfit(format!("{path}: part {index}/{count} of its table {fault}; name every part once")));
    }
    Ok(())
}

/// A progress bar; it vanishes when dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Advances by `steps`.
    pub fn advance(&self, steps: u64) {
        self.bar.inc(steps);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
