//! The pipeline file: what is written once, what varies, and what each scale changes.
//!
//! A file of kind `attack`, which is the default:
//!
//! ```toml
//! title = "One line"
//! analysis = "Prose above the table"
//! notes = ["What to know beside it: printed under the table"]
//!
//! [base]                      # one cell: sample, model or weights, training, defense, attack, goal, votes, ...
//! protocol = "corrected"      # or "paper-text", "authors-code": decides no number of an attack, so that cells which
//!                             # differ in it alone share their jobs
//!
//! [[axis]]                    # one per thing that varies; a point is a change to the base
//! name = "protocol"
//! points = [{ protocol = "authors-code" }, { protocol = "corrected", votes.draws = 100 }]
//!
//! [[axis]]
//! name = "attack"
//! points = [{ label = "with EOT", attack.eot.draws = 30 }, { label = "without EOT", attack.eot.draws = 1 }]
//!
//! [report]
//! rows = ["protocol"]
//! columns = ["attack"]
//! best_over = []              # axes of which the best point for the adversary is taken
//! value = "attack_success_rate"
//! rule = { name = "majority" }
//! more_rules = [{ name = "majority", n = 1 }]     # into the data files only, for every cell
//! common = ["stage"]          # `common_attack_success_rate` too: among the images that every point of these axes counts
//! invariance = true           # asks each network without its defense too: `invariance_rate` goes into the data files
//!
//! [report.protocols.authors-code]                 # what differs for the cells of one protocol; every key is optional
//! value = "attacked_error"
//! rule = { name = "majority", n = 1 }
//! note = "What this protocol changes: printed under the table"
//!
//! [[report.figure]]           # a picture beside the table; kinds and their keys: stage_report::Figure
//! name = "grid"               # written as <pipeline>-grid.svg, .png and .csv
//! title = "Steps against draws"
//! kind = "heat-map"           # or lines, scatter, histogram, curves, perturbations
//! rows = ["attack"]
//! columns = ["protocol"]
//! only = { protocol = ["corrected"] }             # optional: labels to keep
//!
//! [report.compare]            # paired, over the same images, in every remaining cell
//! axis = "attack"
//! base = "with EOT"
//! other = "without EOT"
//! share = 0.95                # optional: test whether `other` reaches this share of `base`
//!
//! [report.equal_strength]     # paired too: several draws per step against one, where steps x draws are equal
//! steps = "k"
//! draws = "m"
//! share = 0.95                # as above, of the rate of several
//!
//! [[paper]]                   # what the paper claims; without `quantity` it is about the printed number
//! at = { attack = "with EOT" }
//! value = 1.0
//!
//! [[paper]]                   # evaluations of the network per image: `forward_queries` or `backward_queries`
//! at = { attack = "with EOT" }
//! quantity = "backward_queries"
//! value = 30000
//!
//! [scale.demo]                # what one scale changes; notes are added, `notes = { only = [...] }` replaces them
//! notes = ["100 images of 32 x 32 pixels instead of 1,000 of 299 x 299"]
//! base.votes.draws = 20
//! axis.attack.points."with EOT".attack.steps = [10]
//! ```
//!
//! An array is changed item by item where the change is a table of their numbers: `defense.of.0.std = 0.2`.
//!
//! A file that begins with `extends = "figure4"` is that file beside it with changes: tables are merged key by key as a
//! scale's are, arrays (axes, figures, claims, notes) replaced.
//!
//! A file of kind `collection` makes one table of several files of kind `attack` beside it, each of which can be made alone
//! too. Their cells, readings, claims and notes are the parts' own, their jobs are shared, and one more axis tells them apart:
//!
//! ```toml
//! kind = "collection"
//! title = "One line"
//! analysis = "Prose above the table"
//! part_axis = "defense"
//!
//! [[part]]
//! pipeline = "table2-guo"     # table2-guo.toml beside this file
//! label = "Random crop (Guo et al. 2018)"
//!
//! [report]                    # rows, columns, best_over, compare and figures alone: the rest is the parts'
//! rows = ["defense"]
//! columns = ["protocol", "attack"]
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stage_report::{Claim, Comparison, EqualStrength, Figure, Layout, Protocol, QUERIES, Quantity, Reading, Rule};

use crate::{Error, Result, figures};

/// A JSON object: what a TOML table becomes.
pub type Table = Map<String, Value>;

/// How large an experiment is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Images drawn by the program; minutes on two cores.
    Demo,
    /// CIFAR-10; an hour or so on a few cores.
    Cifar10,
    /// The paper's data, networks and numbers of draws; for a GPU.
    Paper,
}

impl Scale {
    /// Every scale.
    pub const ALL: [Self; 3] = [Self::Demo, Self::Cifar10, Self::Paper];

    /// The name in files, folders and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Cifar10 => "cifar10",
            Self::Paper => "paper",
        }
    }
}

/// What a pipeline computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Networks under attack: cells of sample, finetune and attack jobs.
    #[default]
    Attack,
    /// Closed forms: one theory job.
    Theory,
    /// Several pipelines of kind `attack` in one table.
    Collection,
}

/// One pipeline file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    kind: Kind,
    title: String,
    analysis: String,
    #[serde(default)]
    base: Table,
    #[serde(default)]
    axis: Vec<Axis>,
    #[serde(default)]
    report: ReportTable,
    #[serde(default)]
    paper: Vec<Claim>,
    #[serde(default)]
    notes: Vec<String>,
    #[serde(default)]
    part_axis: Option<String>,
    #[serde(default)]
    part: Vec<PartEntry>,
    #[serde(default)]
    theory: Table,
    #[serde(default)]
    scale: BTreeMap<Scale, Overlay>,
}

/// One thing that varies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Axis {
    name: String,
    points: Vec<Table>,
}

/// One pipeline of a collection.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartEntry {
    /// The stem of its file, beside the collection's.
    pipeline: String,
    label: String,
}

/// `[report]`: how the votes are read, laid out and compared.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ReportTable {
    rows: Vec<String>,
    columns: Vec<String>,
    best_over: Vec<String>,
    value: Option<Quantity>,
    rule: Option<Rule>,
    more_rules: Vec<Rule>,
    invariance: bool,
    protocols: BTreeMap<Protocol, ProtocolTable>,
    common: Vec<String>,
    compare: Option<Comparison>,
    equal_strength: Option<EqualStrength>,
    figure: Vec<Figure>,
}

/// What differs in the report for the cells of one protocol.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ProtocolTable {
    value: Option<Quantity>,
    rule: Option<Rule>,
    note: Option<String>,
}

/// How the votes of a pipeline's cells are read.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    common: Reading,
    invariance: bool,
    protocols: BTreeMap<Protocol, ProtocolTable>,
}

impl Readings {
    /// The reading of a cell of this protocol.
    #[must_use]
    pub fn of(&self, protocol: Protocol) -> Reading {
        let own = self.protocols.get(&protocol);
        Reading {
            value: own.and_then(|own| own.value).unwrap_or(self.common.value),
            rule: own.and_then(|own| own.rule.clone()).unwrap_or_else(|| self.common.rule.clone()),
            more_rules: self.common.more_rules.clone(),
        }
    }

    /// Whether a cell of this protocol is also asked about without its defense, to tell how invariant the network is.
    #[must_use]
    pub fn want_invariance(&self, protocol: Protocol) -> bool {
        self.invariance || self.of(protocol).value == Quantity::InvarianceRate
    }

    /// What the protocol changes, as a note under the table.
    #[must_use]
    pub fn note(&self, protocol: Protocol) -> Option<String> {
        let note = self.protocols.get(&protocol)?.note.as_ref()?;
        Some(format!("`{}`: {note}", protocol.name()))
    }
}

/// What one scale changes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Overlay {
    notes: NotesOverlay,
    base: Table,
    axis: BTreeMap<String, AxisOverlay>,
    theory: Table,
}

/// What one scale changes about one axis.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AxisOverlay {
    /// The labels of the points to keep.
    only: Option<Vec<String>>,
    /// Changes to points, by label.
    points: BTreeMap<String, Table>,
}

/// What one scale changes about the notes.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum NotesOverlay {
    /// Adds these.
    More(Vec<String>),
    /// Says these instead.
    Instead(OnlyNotes),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnlyNotes {
    only: Vec<String>,
}

impl Default for NotesOverlay {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

/// A pipeline at one scale: overlays merged, labels settled.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The file.
    pub path: PathBuf,
    /// The file's stem: the Make target.
    pub name: String,
    /// What it computes.
    pub kind: Kind,
    /// One line.
    pub title: String,
    /// Prose above the table.
    pub analysis: String,
    /// The axes in order.
    pub axes: Vec<(String, Vec<Point>)>,
    /// What all cells share.
    pub base: Table,
    /// How the table is laid out.
    pub layout: Layout,
    /// How the votes are read.
    pub readings: Readings,
    /// Two points of one axis to compare.
    pub compare: Option<Comparison>,
    /// Cells of equal strength to compare.
    pub equal_strength: Option<EqualStrength>,
    /// Pictures beside the table.
    pub figures: Vec<Figure>,
    /// The paper's numbers about points that this scale keeps.
    pub paper: Vec<Claim>,
    /// Sentences under the table.
    pub notes: Vec<String>,
    /// The axis that tells the parts of a collection apart; empty for other kinds.
    pub part_axis: String,
    /// The pipelines of a collection.
    pub parts: Vec<Part>,
    /// Parameters of the theory job.
    pub theory: Table,
}

/// One point of an axis.
#[derive(Clone, Debug)]
pub struct Point {
    /// What the report prints.
    pub label: String,
    /// What it changes in the base.
    pub changes: Table,
}

/// One pipeline of a collection, at the collection's scale.
#[derive(Clone, Debug)]
pub struct Part {
    /// What the report prints.
    pub label: String,
    /// The pipeline, of kind `attack`.
    pub pipeline: Pipeline,
}

/// Targets of the Makefile, which a pipeline cannot be called.
const TAKEN: [&str; 17] = [
    "all",
    "bench",
    "bench-torch",
    "build",
    "clean",
    "clippy",
    "cost",
    "data",
    "figures",
    "gc",
    "help",
    "inspect",
    "lint",
    "list",
    "plan",
    "test",
    "verify",
];

impl Pipeline {
    /// Reads a pipeline file as one scale sees it, and a collection's parts beside it.
    ///
    /// # Errors
    /// If a file cannot be read, a key is unknown, or the parts do not fit each other.
    pub fn read(path: &Path, scale: Scale) -> Result<Self> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let wrong = |reason| Error::File { path: path.into(), reason };
        let file = File::read(path)?;
        let mut parts = Vec::new();
        for part in file.part.iter().filter(|_| file.kind == Kind::Collection) {
            let beside = path.with_file_name(format!("{}.toml", part.pipeline));
            if file.part.iter().filter(|other| other.label == part.label).count() > 1 {
                return Err(wrong(format!("part: two parts are labelled `{}`", part.label)));
            }
            if !beside.is_file() {
                return Err(wrong(format!("part `{}`: there is no file {}", part.label, beside.display())));
            }
            // Looked at before it is read: a collection of itself would be read for ever.
            let kind = Self::kind_of(&beside)?;
            if kind != Kind::Attack {
                return Err(wrong(format!("part `{}`: only pipelines of kind `attack` make a collection", part.label)));
            }
            parts.push(Part { label: part.label.clone(), pipeline: Self::read(&beside, scale)? });
        }
        file.settle(&name, scale, parts).map_err(wrong).map(|pipeline| Self { path: path.into(), ..pipeline })
    }

    fn kind_of(path: &Path) -> Result<Kind> {
        Ok(File::read(path)?.kind)
    }

    /// The cells: one point of every axis each, the last axis fastest, with the base they make.
    #[must_use]
    pub fn cells(&self) -> Vec<(BTreeMap<String, String>, Table)> {
        let start = vec![(BTreeMap::new(), self.base.clone())];
        self.axes.iter().fold(start, |cells, (axis, points)| {
            let cross = |(at, table): &(BTreeMap<String, String>, Table)| {
                points
                    .iter()
                    .map(|point| {
                        let mut at = at.clone();
                        at.insert(axis.clone(), point.label.clone());
                        (at, merged(table, &point.changes))
                    })
                    .collect::<Vec<_>>()
            };
            cells.iter().flat_map(cross).collect()
        })
    }
}

/// The key that names the file which another one changes.
const EXTENDS: &str = "extends";

impl File {
    /// Reads a file, and what it extends.
    fn read(path: &Path) -> Result<Self> {
        let wrong = |reason| Error::File { path: path.into(), reason };
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        // Parsed as it stands first, for messages with lines; a file with a parent may lack what every file needs.
        let own: Table = toml::from_str(&text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        if !own.contains_key(EXTENDS) {
            return Self::parse(&text, &name).map_err(wrong);
        }
        check_name(&name).map_err(wrong)?;
        let whole = extended(path, own, &mut vec![path.to_owned()])?;
        serde_path_to_error::deserialize(Value::Object(whole)).map_err(|error| wrong(error.to_string()))
    }

    fn parse(text: &str, name: &str) -> Result<Self, String> {
        check_name(name)?;
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
    }

    /// The pipeline as one scale sees it.
    fn settle(mut self, name: &str, scale: Scale, parts: Vec<Part>) -> Result<Pipeline, String> {
        let part_axis = self.check_kind(&parts)?;
        let overlay = self.scale.remove(&scale).unwrap_or_default();
        for (other, overlay) in &self.scale {
            check_axes(&self.axis, overlay).map_err(|reason| format!("scale.{}: {reason}", other.name()))?;
        }
        check_axes(&self.axis, &overlay).map_err(|reason| format!("scale.{}: {reason}", scale.name()))?;
        let all = match self.kind {
            Kind::Collection => collected(&part_axis, &parts, &self.report)?,
            _ => self.axis.iter().map(label_points).collect::<Result<Vec<_>, _>>()?,
        };
        check_layout(&self.report, &all, self.kind)?;
        if self.kind == Kind::Attack {
            check_claims(&self.paper, &all)?;
        }
        if self.kind == Kind::Theory && !self.report.figure.is_empty() {
            return Err(
                "report: a pipeline of kind `theory` draws its own figure; leave out [[report.figure]]".to_owned()
            );
        }
        figures::check(&self.report.figure, &all, &self.report.best_over)
            .map_err(|reason| format!("report: {reason}"))?;
        if let Some(compare) = &self.report.compare {
            check_comparison(compare, &self.report, &all)?;
        }
        if let Some(by) = &self.report.equal_strength {
            check_strength(by, &self.report, &all)?;
        }
        let axes: Vec<_> = all
            .into_iter()
            .map(|(axis, points)| match overlay.axis.get(&axis) {
                Some(changes) => (axis, apply(points, changes)),
                None => (axis, points),
            })
            .collect();
        let kept = |claim: &Claim| claim.at.iter().all(|(axis, label)| has(&axes, axis, label));
        let ReportTable {
            rows,
            columns,
            best_over,
            value,
            rule,
            more_rules,
            invariance,
            protocols,
            common,
            compare,
            equal_strength,
            figure,
        } = self.report;
        let reading = Reading { value: value.unwrap_or_default(), rule: rule.unwrap_or_default(), more_rules };
        Ok(Pipeline {
            path: PathBuf::new(),
            name: name.to_owned(),
            kind: self.kind,
            title: self.title,
            analysis: self.analysis.trim().to_owned(),
            base: merged(&self.base, &overlay.base),
            layout: Layout { rows, columns, best_over, common },
            readings: Readings { common: reading, invariance, protocols },
            compare,
            equal_strength,
            figures: figure,
            paper: self.paper.into_iter().filter(|claim| self.kind == Kind::Theory || kept(claim)).collect(),
            notes: match overlay.notes {
                NotesOverlay::More(more) => [self.notes, more].concat(),
                NotesOverlay::Instead(notes) => notes.only,
            },
            part_axis,
            parts,
            theory: merged(&self.theory, &overlay.theory),
            axes,
        })
    }

    /// Fails where the file holds what its kind has no use for; the axis of a collection's parts.
    fn check_kind(&self, parts: &[Part]) -> Result<String, String> {
        if self.kind != Kind::Collection {
            let alien = self.part_axis.is_some() || !self.part.is_empty();
            let reason = "`part` and `part_axis` belong to a pipeline of kind `collection`";
            return if alien { Err(reason.to_owned()) } else { Ok(String::new()) };
        }
        let report = &self.report;
        let reads = report.value.is_some() || report.rule.is_some() || !report.more_rules.is_empty();
        let more = !report.common.is_empty() || report.equal_strength.is_some();
        if reads || more || report.invariance || !report.protocols.is_empty() {
            return Err("report: the parts of a collection say how their votes are read; leave out value, rule, \
                        more_rules, common, equal_strength, invariance and protocols"
                .to_owned());
        }
        if !(self.base.is_empty() && self.axis.is_empty() && self.paper.is_empty() && self.theory.is_empty()) {
            return Err("a collection has parts, and no base, axis, paper or theory of its own".to_owned());
        }
        if self.scale.values().any(|overlay| !overlay.base.is_empty()) {
            return Err("a collection has no base of its own; change that of its parts".to_owned());
        }
        if parts.is_empty() {
            return Err("a collection needs parts, as [[part]] pipeline = \"...\", label = \"...\"".to_owned());
        }
        self.part_axis.clone().ok_or_else(|| "name the axis of the parts, as part_axis = \"defense\"".to_owned())
    }
}

/// A file's table over that of the file it extends, and so on; `seen` are those on the way.
fn extended(path: &Path, mut own: Table, seen: &mut Vec<PathBuf>) -> Result<Table> {
    let wrong = |reason| Error::File { path: path.into(), reason };
    let parent = match own.shift_remove(EXTENDS) {
        None => return Ok(own),
        Some(Value::String(parent)) => path.with_file_name(format!("{parent}.toml")),
        Some(other) => {
            return Err(wrong(format!("{EXTENDS}: name a file beside this one, without `.toml`, not {other}")));
        }
    };
    if !parent.is_file() {
        return Err(wrong(format!("{EXTENDS}: there is no file {}", parent.display())));
    }
    if seen.contains(&parent) {
        return Err(wrong(format!("{EXTENDS}: {} extends itself", parent.display())));
    }
    seen.push(parent.clone());
    let text = std::fs::read_to_string(&parent).map_err(|source| Error::Read { path: parent.clone(), source })?;
    let table = toml::from_str(&text)
        .map_err(|error| Error::File { path: parent.clone(), reason: error.to_string().trim_end().to_owned() })?;
    Ok(merged(&extended(&parent, table, seen)?, &own))
}

/// The axes of a collection: its parts, then their own, with every label that one of them has.
fn collected(part_axis: &str, parts: &[Part], report: &ReportTable) -> Result<Vec<(String, Vec<Point>)>, String> {
    let point = |label: &str| Point { label: label.to_owned(), changes: Table::new() };
    let mut axes = vec![(part_axis.to_owned(), parts.iter().map(|part| point(&part.label)).collect::<Vec<_>>())];
    for part in parts {
        let wrong = |reason: String| Err(format!("part `{}`: {reason}", part.label));
        let own = |axis: &str| part.pipeline.axes.iter().any(|(name, _)| name == axis);
        if own(part_axis) {
            return wrong(format!("it has an axis `{part_axis}` of its own; call part_axis otherwise"));
        }
        let placed = report.rows.iter().chain(&report.columns).filter(|axis| *axis != part_axis);
        if let Some(axis) = placed.into_iter().find(|axis| !own(axis)) {
            return wrong(format!("it has no axis `{axis}`, which the table is laid out by"));
        }
        for (axis, points) in &part.pipeline.axes {
            let index = axes.iter().position(|(known, _)| known == axis).unwrap_or_else(|| {
                axes.push((axis.clone(), Vec::new()));
                axes.len() - 1
            });
            for label in points.iter().map(|point| &point.label) {
                if !axes[index].1.iter().any(|known| known.label == *label) {
                    axes[index].1.push(point(label));
                }
            }
        }
    }
    Ok(axes)
}

fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || !name.chars().all(plain) {
        return Err("name the file with lower-case letters, digits and `-`: it becomes a Make target".to_owned());
    }
    if TAKEN.contains(&name) {
        return Err(format!("`{name}` is a target of the Makefile already; call the file something else"));
    }
    Ok(())
}

/// Merges `over` into `base`: a table that names another variant (by `name`, `source` or `rule`) replaces, any other refines;
/// a table of numbers refines those items of an array.
#[must_use]
pub fn merged(base: &Table, over: &Table) -> Table {
    let mut result = base.clone();
    for (key, new) in over {
        let value = result.get(key).map_or_else(|| new.clone(), |old| refined(old, new));
        result.insert(key.clone(), value);
    }
    result
}

fn refined(old: &Value, new: &Value) -> Value {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) if !renames(old, new) => Value::Object(merged(old, new)),
        (Value::Array(items), Value::Object(new)) => {
            let index = |key: &String| key.parse().ok().filter(|index: &usize| *index < items.len());
            // What names no item stands as it is, for the stage to refuse.
            let Some(changes) = new.iter().map(|(key, new)| Some((index(key)?, new))).collect::<Option<Vec<_>>>()
            else {
                return Value::Object(new.clone());
            };
            let mut items = items.clone();
            for (index, new) in changes {
                items[index] = refined(&items[index], new);
            }
            Value::Array(items)
        }
        _ => new.clone(),
    }
}

fn renames(old: &Table, new: &Table) -> bool {
    ["name", "source", "rule"]
        .iter()
        .any(|key| new.get(*key).is_some_and(|name| name.is_string() && old.get(*key) != Some(name)))
}

fn label_points(axis: &Axis) -> Result<(String, Vec<Point>), String> {
    if axis.points.is_empty() {
        return Err(format!("axis {}: no points", axis.name));
    }
    let mut points: Vec<Point> = Vec::new();
    for (index, point) in axis.points.iter().enumerate() {
        let mut changes = point.clone();
        let label = match changes.shift_remove("label") {
            Some(Value::String(label)) => label,
            Some(other) => return Err(format!("axis {}[{index}]: the label {other} is no text", axis.name)),
            None => values(&Value::Object(changes.clone())).join(", "),
        };
        if points.iter().any(|point| point.label == label) {
            return Err(format!("axis {}[{index}]: a second point is labelled `{label}`", axis.name));
        }
        points.push(Point { label, changes });
    }
    Ok((axis.name.clone(), points))
}

/// The leaves of a value, as text.
fn values(value: &Value) -> Vec<String> {
    match value {
        Value::Object(table) => table.values().flat_map(values).collect(),
        Value::Array(items) => items.iter().flat_map(values).collect(),
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    }
}

fn apply(points: Vec<Point>, overlay: &AxisOverlay) -> Vec<Point> {
    let kept = |point: &Point| overlay.only.as_ref().is_none_or(|only| only.contains(&point.label));
    points
        .into_iter()
        .filter(kept)
        .map(|point| match overlay.points.get(&point.label) {
            Some(changes) => Point { changes: merged(&point.changes, changes), ..point },
            None => point,
        })
        .collect()
}

fn check_axes(axes: &[Axis], overlay: &Overlay) -> Result<(), String> {
    let names: Vec<&str> = axes.iter().map(|axis| axis.name.as_str()).collect();
    for (name, changes) in &overlay.axis {
        let Some(axis) = axes.iter().find(|axis| &axis.name == name) else {
            return Err(unknown("axis", name, &names));
        };
        let (_, points) = label_points(axis)?;
        let labels: Vec<&str> = points.iter().map(|point| point.label.as_str()).collect();
        let asked = changes.only.iter().flatten().chain(changes.points.keys());
        for label in asked {
            if !labels.contains(&label.as_str()) {
                return Err(format!("axis.{name}: {}", unknown("label", label, &labels)));
            }
        }
        if changes.only.as_ref().is_some_and(Vec::is_empty) {
            return Err(format!("axis.{name}: `only` keeps no point"));
        }
    }
    Ok(())
}

fn check_layout(layout: &ReportTable, axes: &[(String, Vec<Point>)], kind: Kind) -> Result<(), String> {
    let names: Vec<&str> = axes.iter().map(|(name, _)| name.as_str()).collect();
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            return Err(format!("two axes are called `{name}`"));
        }
    }
    let places: Vec<&String> = layout.rows.iter().chain(&layout.columns).chain(&layout.best_over).collect();
    for (index, place) in places.iter().enumerate() {
        if !names.contains(&place.as_str()) {
            return Err(format!("report: {}", unknown("axis", place, &names)));
        }
        if places[..index].contains(place) {
            return Err(format!("report: the axis `{place}` stands in two places of rows, columns and best_over"));
        }
    }
    if let Some(axis) = layout.common.iter().find(|axis| !names.contains(&axis.as_str())) {
        return Err(format!("report.common: {}", unknown("axis", axis, &names)));
    }
    match names.iter().find(|name| !places.iter().any(|place| place == *name)) {
        Some(lost) if kind != Kind::Theory => {
            Err(format!("report: the axis `{lost}` must stand in rows, columns or best_over"))
        }
        _ => Ok(()),
    }
}

fn check_comparison(by: &Comparison, report: &ReportTable, axes: &[(String, Vec<Point>)]) -> Result<(), String> {
    let wrong = |reason: String| Err(format!("report.compare: {reason}"));
    let Some((_, points)) = axes.iter().find(|(name, _)| *name == by.axis) else {
        return wrong(unknown("axis", &by.axis, &axes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>()));
    };
    if report.best_over.contains(&by.axis) {
        return wrong(format!("the best is taken over `{}`: its points do not stand side by side", by.axis));
    }
    let labels: Vec<&str> = points.iter().map(|point| point.label.as_str()).collect();
    if let Some(label) = [&by.base, &by.other].into_iter().find(|label| !labels.contains(&label.as_str())) {
        return wrong(unknown("label", label, &labels));
    }
    let values = report.protocols.values().map(|own| own.value).chain([report.value]);
    if by.base == by.other {
        return wrong(format!("base and other are both `{}`", by.base));
    }
    if by.share.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
        return wrong("share: give a number above 0, at most 1".to_owned());
    }
    if let Some(value) = values.flatten().find(|value| value.counts_draws()) {
        return wrong(format!("{} counts draws, and cannot be compared image by image", value.name()));
    }
    Ok(())
}

fn check_strength(by: &EqualStrength, report: &ReportTable, axes: &[(String, Vec<Point>)]) -> Result<(), String> {
    let wrong = |reason: String| Err(format!("report.equal_strength: {reason}"));
    for name in [&by.steps, &by.draws] {
        let Some((_, points)) = axes.iter().find(|(axis, _)| axis == name) else {
            return wrong(unknown("axis", name, &axes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>()));
        };
        if report.best_over.contains(name) {
            return wrong(format!("the best is taken over `{name}`: its points do not stand side by side"));
        }
        if let Some(point) = points.iter().find(|point| point.label.parse::<u64>().is_err()) {
            return wrong(format!("the label `{}` of `{name}` is no whole number", point.label));
        }
    }
    if !has(axes, &by.draws, "1") {
        return wrong(format!("`{}` has no point `1` to compare with", by.draws));
    }
    if by.share.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
        return wrong("share: give a number above 0, at most 1".to_owned());
    }
    match report.value.filter(|value| value.counts_draws()) {
        Some(value) => wrong(format!("{} counts draws, and cannot be compared image by image", value.name())),
        None => Ok(()),
    }
}

/// A rate is between 0 and 1; queries are any number.
fn check_claimed(quantity: Option<&str>, value: f64) -> Result<(), String> {
    let rates = Quantity::ALL.map(Quantity::name);
    match quantity {
        Some(name) if QUERIES.contains(&name) => {
            if value >= 0.0 && value.is_finite() {
                Ok(())
            } else {
                Err(format!("{value} {name} cannot be"))
            }
        }
        Some(name) if !rates.contains(&name) => {
            Err(unknown("quantity", name, &[rates.as_slice(), QUERIES.as_slice()].concat()))
        }
        _ if (0.0..=1.0).contains(&value) => Ok(()),
        _ => Err(format!("the rate {value} is not between 0 and 1")),
    }
}

fn check_claims(claims: &[Claim], axes: &[(String, Vec<Point>)]) -> Result<(), String> {
    for (index, claim) in claims.iter().enumerate() {
        let wrong = |reason: String| Err(format!("paper[{index}]: {reason}"));
        check_claimed(claim.quantity.as_deref(), claim.value).or_else(wrong)?;
        for (axis, label) in &claim.at {
            let Some((_, points)) = axes.iter().find(|(name, _)| name == axis) else {
                return wrong(unknown("axis", axis, &axes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>()));
            };
            if !points.iter().any(|point| &point.label == label) {
                let labels: Vec<&str> = points.iter().map(|point| point.label.as_str()).collect();
                return wrong(format!("{axis}: {}", unknown("label", label, &labels)));
            }
        }
    }
    Ok(())
}

fn has(axes: &[(String, Vec<Point>)], axis: &str, label: &str) -> bool {
    axes.iter().any(|(name, points)| name == axis && points.iter().any(|point| point.label == label))
}

/// The message for a name that is none of those accepted.
#[must_use]
pub fn unknown(what: &str, name: &str, accepted: &[&str]) -> String {
    let accepted: Vec<String> = accepted.iter().map(|name| format!("`{name}`")).collect();
    format!("unknown {what} `{name}`, expected one of {}", accepted.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(value: Value) -> Table {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn another_variant_replaces_and_the_same_refines() {
        let base = table(json!({"defense": {"name": "rotation", "degrees": 90}, "votes": {"draws": 500}}));
        let refined =
            merged(&base, &table(json!({"defense": {"name": "rotation", "padding": 1}, "votes": {"stop": 2}})));
        assert_eq!(refined["defense"], json!({"name": "rotation", "degrees": 90, "padding": 1}));
        assert_eq!(refined["votes"], json!({"draws": 500, "stop": 2}));
        let replaced = merged(&base, &table(json!({"defense": {"name": "gaussian-noise", "sigma": 0.5}})));
        assert_eq!(replaced["defense"], json!({"name": "gaussian-noise", "sigma": 0.5}));
    }

    #[test]
    fn items_of_an_array_are_refined_by_their_numbers() {
        let base = table(json!({"of": [{"name": "a", "x": 1}, {"name": "b"}]}));
        let item = merged(&base, &table(json!({"of": {"0": {"y": 2}}})));
        assert_eq!(item["of"], json!([{"name": "a", "x": 1, "y": 2}, {"name": "b"}]));
        let beyond = json!({"2": {"y": 2}});
        assert_eq!(merged(&base, &table(json!({"of": beyond})))["of"], beyond);
    }

    #[test]
    fn a_file_extends_another() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(format!("{name}.toml"));
            std::fs::write(&path, text).unwrap();
            path
        };
        write("parent", FILE);
        let child = write("child", "extends = \"parent\"\ntitle = \"other\"\nbase.more = 2\npaper = []");
        let pipeline = Pipeline::read(&child, Scale::Paper).unwrap();
        assert_eq!((pipeline.title.as_str(), pipeline.name.as_str()), ("other", "child"));
        assert_eq!(Value::Object(pipeline.base), json!({"seed": 7, "more": 2}));
        assert!(pipeline.paper.is_empty() && pipeline.axes.len() == 2);
        let refused = |text: &str| Pipeline::read(&write("odd", text), Scale::Demo).unwrap_err().to_string();
        assert!(refused("extends = \"none\"").contains("there is no file"));
        assert!(refused("extends = \"odd\"").contains("extends itself"));
        assert!(refused("extends = \"parent\"\ntitel = 1").contains("titel"));
    }

    const FILE: &str = r#"
        title = "t"
        analysis = "a"
        base = { seed = 1 }
        axis = [{ name = "a", points = [{ x = 1 }, { x = 2 }] }, { name = "b", points = [{ label = "one", y = 3 }] }]
        report = { rows = ["a"], columns = ["b"] }
        paper = [{ at = { a = "2" }, value = 0.5 }, { at = { a = "1" }, value = 0.25 }]
        [scale.paper]
        base.seed = 7
        axis.a.only = ["2"]
        axis.a.points.2.z = 9
    "#;

    fn parse(text: &str, name: &str, scale: Scale) -> Result<Pipeline, String> {
        File::parse(text, name)?.settle(name, scale, Vec::new())
    }

    #[test]
    fn axes_are_crossed_and_a_scale_changes_points_by_label() {
        let demo = parse(FILE, "t", Scale::Demo).unwrap();
        let tables: Vec<Value> = demo.cells().into_iter().map(|(_, table)| Value::Object(table)).collect();
        assert_eq!(tables, [json!({"seed": 1, "x": 1, "y": 3}), json!({"seed": 1, "x": 2, "y": 3})]);
        let paper = parse(FILE, "t", Scale::Paper).unwrap();
        let [(at, table)] = &paper.cells()[..] else { panic!("one cell") };
        assert_eq!((at["a"].as_str(), at["b"].as_str()), ("2", "one"));
        assert_eq!(Value::Object(table.clone()), json!({"seed": 7, "x": 2, "z": 9, "y": 3}));
        assert_eq!(paper.paper.iter().map(|claim| claim.value).collect::<Vec<_>>(), [0.5]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_accepted_names() {
        let refused = |from: &str, to: &str| {
            assert!(FILE.contains(from), "{from}");
            parse(&FILE.replace(from, to), "t", Scale::Demo).unwrap_err()
        };
        assert!(refused("rows = [\"a\"]", "rows = [\"aa\"]").contains("unknown axis `aa`, expected one of `a`, `b`"));
        assert!(refused("rows = [\"a\"]", "rows = []").contains("`a` must stand in"));
        assert!(refused("columns = [\"b\"]", "columns = [\"b\", \"a\"]").contains("two places"));
        assert!(refused("only = [\"2\"]", "only = [\"3\"]").contains("scale.paper: axis.a: unknown label `3`"));
        assert!(refused("at = { a = \"2\" }", "at = { a = \"5\" }").contains("paper[0]: a: unknown label `5`"));
        assert!(refused("[scale.paper]", "[scale.papier]").contains("expected one of `demo`, `cifar10`, `paper`"));
        assert!(refused("x = 2", "x = 1").contains("second point"));
        assert!(refused("title", "titel").contains("unknown field `titel`"));
        assert!(parse(FILE, "clean", Scale::Demo).unwrap_err().contains("target of the Makefile"));
        assert!(parse(FILE, "Table 1", Scale::Demo).unwrap_err().contains("lower-case"));
    }
}
