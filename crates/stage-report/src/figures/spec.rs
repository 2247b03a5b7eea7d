//! What a figure shows: `[[report.figure]]` in a pipeline file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Quantity;

/// Names that stand beside the axes of the cells wherever a figure names an axis: the `quantity`; how the best was chosen
/// (`selection`: `test` or `held-out`); the `protocol`.
pub const MORE_AXES: [&str; 3] = ["quantity", "selection", "protocol"];

/// A figure of a report, written as `<pipeline>-<name>.svg`, `.png` and `.csv` (the values drawn) beside the table.
///
/// ```toml
/// [[report.figure]]
/// name = "grid"
/// title = "Steps against draws: what pays?"
/// kind = "heat-map"
/// rows = ["eot"]
/// columns = ["steps"]
/// panels = ["step_size"]
/// best = true
/// only = { goal = ["targeted"] }
/// ```
///
/// Axes are those of the cells, and [`MORE_AXES`]. Numbers are those of the printed rule. With `best_over` in the report,
/// a figure that names one of those axes shows the points one by one; a figure that does not shows the best of them, and
/// has to place or fix `selection`. Two numbers in one place are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Lower-case letters, digits and `-`: a part of the files' names.
    pub name: String,
    /// Printed above the picture.
    pub title: String,
    /// The labels to keep of some axes; all of the others are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub only: BTreeMap<String, Vec<String>>,
    /// How it shows what. Its fields stand beside the three above.
    #[serde(flatten)]
    pub kind: FigureKind,
}

/// The kinds of figure, and what each needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum FigureKind {
    /// Printed numbers on a shade of blue.
    HeatMap(HeatMap),
    /// Quantities along an axis.
    Lines(Lines),
    /// One quantity against another.
    Scatter(Scatter),
    /// How often each class is predicted before the attack.
    Histogram(Histogram),
    /// A quantity along the snapshots of an attack.
    Curves(Curves),
    /// Perturbations as pictures.
    Perturbations(Perturbations),
}

/// A number for each row and column.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeatMap {
    /// Axes down the side, outermost first.
    pub rows: Vec<String>,
    /// Axes along the top, outermost first.
    pub columns: Vec<String>,
    /// One map for each of their labels.
    #[serde(default)]
    pub panels: Vec<String>,
    /// The number.
    #[serde(default)]
    pub quantity: Quantity,
    /// Two more maps for the best over the report's `best_over`: chosen on these images, and cross-fitted.
    #[serde(default)]
    pub best: bool,
}

/// Quantities along an axis.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lines {
    /// The axis along which they run; labels that are numbers (`0.25`, `8/255`) lie where they belong, others one after
    /// the other.
    pub x: String,
    /// By logarithms; all labels must be positive numbers.
    #[serde(default)]
    pub log: bool,
    /// What is drawn; several are told apart by colour unless `dash` or `panels` names `quantity`.
    #[serde(default = "printed")]
    pub quantities: Vec<Quantity>,
    /// Axes told apart by colour and marker.
    #[serde(default)]
    pub colour: Vec<String>,
    /// Axes told apart by dashes: the last label is solid (after), those before it are dashed (before), dotted, ...
    #[serde(default)]
    pub dash: Vec<String>,
    /// One panel for each of their labels.
    #[serde(default)]
    pub panels: Vec<String>,
    /// How 95% intervals are shown.
    #[serde(default)]
    pub intervals: Intervals,
    /// Thin lines for the same quantity without a perturbation, and under uniform noise.
    #[serde(default)]
    pub baselines: bool,
}

/// One quantity against another, a point for each cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scatter {
    /// Across.
    pub x: Quantity,
    /// Up.
    pub y: Quantity,
    /// Axes told apart by colour and marker.
    #[serde(default)]
    pub colour: Vec<String>,
    /// Axes whose labels are printed beside the points.
    #[serde(default)]
    pub labels: Vec<String>,
    /// One panel for each of their labels.
    #[serde(default)]
    pub panels: Vec<String>,
}

/// Shares of predicted classes: the majority votes before the attack, beside the shares of the true classes.
///
/// A network that answers with few classes, whatever it is shown, is seen at once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    /// Axes down the side, outermost first.
    #[serde(default)]
    pub rows: Vec<String>,
    /// Axes along the top, outermost first.
    #[serde(default)]
    pub columns: Vec<String>,
}

/// A quantity along the snapshots of an attack, a line for each cell; cells must not name one `step`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curves {
    /// What is run along, a panel for each.
    pub x: Vec<Along>,
    /// What is drawn.
    #[serde(default)]
    pub quantity: Quantity,
    /// By the logarithm of x; step 0 is then left out.
    #[serde(default = "yes")]
    pub log: bool,
    /// Axes told apart by colour and marker.
    #[serde(default)]
    pub colour: Vec<String>,
    /// Axes told apart by dashes, as in [`Lines`].
    #[serde(default)]
    pub dash: Vec<String>,
    /// One row of panels for each of their labels.
    #[serde(default)]
    pub panels: Vec<String>,
    /// How 95% intervals are shown.
    #[serde(default = "band")]
    pub intervals: Intervals,
}

/// What an attack spends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Along {
    /// Steps.
    Steps,
    /// Steps times the draws that each gradient is averaged over.
    Draws,
    /// Forward evaluations of the network per image.
    ForwardQueries,
    /// Backward evaluations of the network per image.
    BackwardQueries,
}

/// Perturbations of a few images as pictures, with numbers that say how they look; cells need `keep_delta = true`.
///
/// A perturbation d in a ball of l-inf radius e is drawn as 0.95 (d/(2e) + 0.5); in other balls, e is the largest change
/// in the picture. Under each picture, and in the CSV:
///
/// * `total_variation`: the mean absolute difference of neighbours (to the right and below, per channel), in units of 2e;
/// * `high_frequency_share`: the share of the energy of the discrete cosine transform (type II, per channel) outside the
///   lower half of the frequencies in both directions; 0.75 for white noise;
/// * `sign_flip_rate`: the share of entries whose sign differs from the previous snapshot's; none for the first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perturbations {
    /// Ids of the images, or none for all that the cells have; several stand below each other.
    #[serde(default)]
    pub images: Vec<u32>,
    /// Axes down the side, outermost first.
    #[serde(default)]
    pub rows: Vec<String>,
    /// Axes along the top, outermost first.
    #[serde(default)]
    pub columns: Vec<String>,
}

/// How intervals are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intervals {
    /// A bar at each point.
    #[default]
    Bars,
    /// A shade around the line.
    Bands,
    /// Not at all.
    None,
}

fn printed() -> Vec<Quantity> {
    vec![Quantity::default()]
}

const fn yes() -> bool {
    true
}

const fn band() -> Intervals {
    Intervals::Bands
}

impl Figure {
    /// The axes that it gives a place, in order; some may be of [`MORE_AXES`].
    #[must_use]
    pub fn places(&self) -> Vec<&str> {
        let (x, lists): (_, [&[String]; 3]) = match &self.kind {
            FigureKind::HeatMap(kind) => (None, [&kind.rows, &kind.columns, &kind.panels]),
            FigureKind::Lines(kind) => (Some(&kind.x), [&kind.colour, &kind.dash, &kind.panels]),
            FigureKind::Scatter(kind) => (None, [&kind.colour, &kind.labels, &kind.panels]),
            FigureKind::Histogram(kind) => (None, [&kind.rows, &kind.columns, &[]]),
            FigureKind::Curves(kind) => (None, [&kind.colour, &kind.dash, &kind.panels]),
            FigureKind::Perturbations(kind) => (None, [&kind.rows, &kind.columns, &[]]),
        };
        x.into_iter().chain(lists.into_iter().flatten()).map(String::as_str).collect()
    }
}
