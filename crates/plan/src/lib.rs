//! Pipeline files to cells, jobs and one Make fragment.
//!
//! A pipeline file ([`file`]) names its images and weights ([`sources`]); its cells ([`cells`]) become jobs with
//! addresses ([`jobs`]), and all jobs of all files become one set of Make rules ([`make`]). What they cost ([`costs`]) is in
//! evaluations, and in time: by what this machine was measured to do ([`calibration`], [`estimate`]), and at the recorded rates
//! of others ([`rates`]).

pub mod calibration;
pub mod cells;
pub mod check;
pub mod costs;
pub mod estimate;
pub mod fetches;
pub mod figures;
pub mod file;
pub mod folders;
pub mod jobs;
mod load;
pub mod make;
pub mod programs;
pub mod rates;
pub mod sources;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub use calibration::Calibration;
pub use costs::Bill;
pub use estimate::Estimates;
pub use file::{Kind, Pipeline, Scale};
pub use jobs::{Cost, Job, Jobs};
pub use load::Load;
pub use rates::{Net, Rates};
pub use sources::Sources;
use stage_report::Figure;

/// Result of planning.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no plan; the text names the file, the cell and the accepted names.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file says something that cannot be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What, and what would be accepted.
        reason: String,
    },
    /// A cell is nothing that a stage can run.
    #[error("{}: cell {cell}: {reason}", path.display())]
    Cell {
        /// The pipeline file.
        path: PathBuf,
        /// The labels of its axes.
        cell: String,
        /// What, and what would be accepted.
        reason: String,
    },
    /// Two different jobs have the same eight digits.
    #[error("{address} stands for two jobs, {one} and {other}: change the seed of one")]
    Collision {
        /// The address.
        address: String,
        /// One identity.
        one: String,
        /// The other identity.
        other: String,
    },
    /// A path that Make would misread.
    #[error("{}: Make cannot handle this path; use one without spaces and `$ # : % \\ * ? [ ~ ' \"`", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// This machine's speed cannot be measured.
    #[error("{0}")]
    Calibration(String),
    /// No such pipeline.
    #[error("{0}")]
    Pipeline(String),
}

/// Where and how wide the plan is to run; nothing here changes numbers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which overlay of the pipeline files.
    pub scale: Scale,
    /// Parts per attack, at least 1.
    pub shards: u32,
    /// The folder of local data.
    pub data_root: Option<PathBuf>,
}

/// All jobs of all pipelines, and the reports made from them.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Each job once.
    pub jobs: Jobs,
    /// One report per pipeline, in the order of the files.
    pub reports: Vec<Report>,
}

/// One pipeline's report.
#[derive(Clone, Debug)]
pub struct Report {
    /// The Make target.
    pub name: String,
    /// One line.
    pub title: String,
    /// What to make, or why this machine cannot and what to do about it.
    pub work: std::result::Result<Work, String>,
    /// The figures it draws.
    pub figures: Vec<Figure>,
}

/// A report's parameters, and the tables it reads.
#[derive(Clone, Debug)]
pub struct Work {
    /// Parameters of the stage `report`.
    pub params: stage_report::Params,
    /// Addresses of its input tables.
    pub inputs: Vec<String>,
    /// What each of its cells would cost if it ran everything by itself, by the pipeline that defines them.
    pub apart: BTreeMap<String, Vec<Bill>>,
}

impl Plan {
    /// Plans pipeline files together, so that what they share runs once.
    ///
    /// # Errors
    /// If a file or a cell of it cannot be planned. Data or weights that this machine lacks are no error here: the
    /// report says what to do, and the other pipelines stand.
    pub fn new(files: &[PathBuf], sources: &Sources, options: &Options) -> Result<Self> {
        let mut plan = Self { jobs: Jobs::default(), reports: Vec::new() };
        for path in files {
            let pipeline = Pipeline::read(path, options.scale)?;
            if plan.reports.iter().any(|report| report.name == pipeline.name) {
                let reason = "another file of the same name is planned already".to_owned();
                return Err(Error::File { path: path.clone(), reason });
            }
            plan.claim_files(&pipeline)?;
            let work = cells::plan(&pipeline, sources, options, &mut plan.jobs)?;
            let Pipeline { name, title, figures, .. } = pipeline;
            plan.reports.push(Report { name, title, work, figures });
        }
        Ok(plan)
    }

    /// Fails where the files of a pipeline's report are those of another's.
    fn claim_files(&self, pipeline: &Pipeline) -> Result<()> {
        let stems = |name: &str, figures: &[Figure]| {
            let figures = figures.iter().map(|figure| format!("{name}-{}", figure.name));
            std::iter::once(name.to_owned()).chain(figures).collect::<Vec<_>>()
        };
        let ours = stems(&pipeline.name, &pipeline.figures);
        for report in &self.reports {
            if let Some(stem) = stems(&report.name, &report.figures).iter().find(|stem| ours.contains(stem)) {
                let reason =
                    format!("its report and that of {} would both write {stem}.csv; rename a figure", report.name);
                return Err(Error::File { path: pipeline.path.clone(), reason });
            }
        }
        Ok(())
    }

    /// The report of this name.
    ///
    /// # Errors
    /// With the names there are, or with what this machine lacks.
    pub fn report(&self, name: &str) -> Result<&Work> {
        let names: Vec<&str> = self.reports.iter().map(|report| report.name.as_str()).collect();
        let report = self.reports.iter().find(|report| report.name == name);
        let report = report.ok_or_else(|| Error::Pipeline(file::unknown("pipeline", name, &names)))?;
        report.work.as_ref().map_err(|reason| Error::Pipeline(format!("{name}: {reason}")))
    }
}

/// Writes a file, whole or not at all, if that changes it; whether it did.
///
/// # Errors
/// If the file cannot be written.
pub fn write_if_changed(path: &Path, text: &str) -> Result<bool> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    artifact::write_atomic(path, text.as_bytes())
        .map_err(|error| Error::Write { path: path.into(), source: std::io::Error::other(error) })?;
    Ok(true)
}
