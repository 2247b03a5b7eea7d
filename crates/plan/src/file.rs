//! The pipeline file: what is written once, what varies, and what each scale changes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stage_report::{Claim, Layout};

use crate::{Error, Result};

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
    report: Layout,
    #[serde(default)]
    paper: Vec<Claim>,
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

/// What one scale changes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Overlay {
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
    /// The paper's numbers about points that this scale keeps.
    pub paper: Vec<Claim>,
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

/// Targets of the Makefile, which a pipeline cannot be called.
const TAKEN: [&str; 14] = [
    "all", "build", "clean", "clippy", "cost", "data", "gc", "help", "inspect", "lint", "list", "plan", "test",
    "verify",
];

impl Pipeline {
    /// Reads a pipeline file as one scale sees it.
    ///
    /// # Errors
    /// If the file cannot be read, a key is unknown, or the parts do not fit each other.
    pub fn read(path: &Path, scale: Scale) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self::parse(&text, &name, scale)
            .map_err(|reason| Error::File { path: path.into(), reason })
            .map(|pipeline| Self { path: path.into(), ..pipeline })
    }

    fn parse(text: &str, name: &str, scale: Scale) -> Result<Self, String> {
        check_name(name)?;
        let mut file: File = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let overlay = file.scale.remove(&scale).unwrap_or_default();
        for (other, overlay) in &file.scale {
            check_axes(&file.axis, overlay).map_err(|reason| format!("scale.{}: {reason}", other.name()))?;
        }
        let all = file.axis.iter().map(label_points).collect::<Result<Vec<_>, _>>()?;
        check_axes(&file.axis, &overlay).map_err(|reason| format!("scale.{}: {reason}", scale.name()))?;
        check_layout(&file.report, &all, file.kind)?;
        if file.kind == Kind::Attack {
            check_claims(&file.paper, &all)?;
        }
        let axes: Vec<_> = all
            .into_iter()
            .map(|(axis, points)| match overlay.axis.get(&axis) {
                Some(changes) => (axis, apply(points, changes)),
                None => (axis, points),
            })
            .collect();
        let kept = |claim: &Claim| claim.at.iter().all(|(axis, label)| has(&axes, axis, label));
        Ok(Self {
            path: PathBuf::new(),
            name: name.to_owned(),
            kind: file.kind,
            title: file.title,
            analysis: file.analysis.trim().to_owned(),
            base: merged(&file.base, &overlay.base),
            layout: file.report,
            paper: file.paper.into_iter().filter(|claim| file.kind == Kind::Theory || kept(claim)).collect(),
            theory: merged(&file.theory, &overlay.theory),
            axes,
        })
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

/// Merges `over` into `base`: a table that names another variant (by `name` or `source`) replaces, any other refines.
#[must_use]
pub fn merged(base: &Table, over: &Table) -> Table {
    let mut result = base.clone();
    for (key, new) in over {
        let value = match (result.get(key), new) {
            (Some(Value::Object(old)), Value::Object(new)) if !renames(old, new) => Value::Object(merged(old, new)),
            _ => new.clone(),
        };
        result.insert(key.clone(), value);
    }
    result
}

fn renames(old: &Table, new: &Table) -> bool {
    ["name", "source"].iter().any(|key| new.get(*key).is_some_and(|name| old.get(*key) != Some(name)))
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

fn check_layout(layout: &Layout, axes: &[(String, Vec<Point>)], kind: Kind) -> Result<(), String> {
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
    match names.iter().find(|name| !places.iter().any(|place| place == *name)) {
        Some(lost) if kind == Kind::Attack => {
            Err(format!("report: the axis `{lost}` must stand in rows, columns or best_over"))
        }
        _ => Ok(()),
    }
}

fn check_claims(claims: &[Claim], axes: &[(String, Vec<Point>)]) -> Result<(), String> {
    for (index, claim) in claims.iter().enumerate() {
        let wrong = |reason: String| Err(format!("paper[{index}]: {reason}"));
        if !(0.0..=1.0).contains(&claim.value) {
            return wrong(format!("the rate {} is not between 0 and 1", claim.value));
        }
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

    #[test]
    fn axes_are_crossed_and_a_scale_changes_points_by_label() {
        let demo = Pipeline::parse(FILE, "t", Scale::Demo).unwrap();
        let tables: Vec<Value> = demo.cells().into_iter().map(|(_, table)| Value::Object(table)).collect();
        assert_eq!(tables, [json!({"seed": 1, "x": 1, "y": 3}), json!({"seed": 1, "x": 2, "y": 3})]);
        let paper = Pipeline::parse(FILE, "t", Scale::Paper).unwrap();
        let [(at, table)] = &paper.cells()[..] else { panic!("one cell") };
        assert_eq!((at["a"].as_str(), at["b"].as_str()), ("2", "one"));
        assert_eq!(Value::Object(table.clone()), json!({"seed": 7, "x": 2, "z": 9, "y": 3}));
        assert_eq!(paper.paper.iter().map(|claim| claim.value).collect::<Vec<_>>(), [0.5]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_accepted_names() {
        let refused = |from: &str, to: &str| {
            assert!(FILE.contains(from), "{from}");
            Pipeline::parse(&FILE.replace(from, to), "t", Scale::Demo).unwrap_err()
        };
        assert!(refused("rows = [\"a\"]", "rows = [\"aa\"]").contains("unknown axis `aa`, expected one of `a`, `b`"));
        assert!(refused("rows = [\"a\"]", "rows = []").contains("`a` must stand in"));
        assert!(refused("columns = [\"b\"]", "columns = [\"b\", \"a\"]").contains("two places"));
        assert!(refused("only = [\"2\"]", "only = [\"3\"]").contains("scale.paper: axis.a: unknown label `3`"));
        assert!(refused("at = { a = \"2\" }", "at = { a = \"5\" }").contains("paper[0]: a: unknown label `5`"));
        assert!(refused("[scale.paper]", "[scale.papier]").contains("expected one of `demo`, `cifar10`, `paper`"));
        assert!(refused("x = 2", "x = 1").contains("second point"));
        assert!(refused("title", "titel").contains("unknown field `titel`"));
        assert!(Pipeline::parse(FILE, "clean", Scale::Demo).unwrap_err().contains("target of the Makefile"));
        assert!(Pipeline::parse(FILE, "Table 1", Scale::Demo).unwrap_err().contains("lower-case"));
    }
}
