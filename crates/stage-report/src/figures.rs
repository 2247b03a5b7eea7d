//! Figures: what the pipeline file asks for, drawn from the report's lines and the attack tables.

mod cosine;
mod curves;
mod heat_map;
mod histogram;
mod lattice;
mod lines;
mod perturbations;
mod pivot;
mod scatter;
mod series;
mod spec;

use std::{fmt::Write as _, path::Path};

use anyhow::Result;
use artifact::{ReportRow, write_atomic};
use serde_json::{Map, Value, json};

use self::pivot::Request;
pub use self::spec::{
    Along, Curves, Figure, FigureKind, HeatMap, Histogram, Intervals, Lines, MORE_AXES, Perturbations, Scatter,
};
use crate::{
    Cell, Params,
    data::Store,
    document::unique,
    draw::{Anchor, BLACK, LEADING, Picture, SMALL, TITLE, wrap},
    line::Line,
    tidy,
};

/// Space around everything.
const EDGE: f64 = 10.0;
/// The widest a page gets where its panels can be put below each other.
const PAGE: f64 = 720.0;

/// A finished figure.
#[derive(Debug)]
pub(crate) struct Drawn {
    /// Its files' stem.
    pub stem: String,
    pub title: String,
    /// How to read it.
    pub caption: String,
    pub picture: Picture,
    /// The values drawn; none where the report's own files hold exactly these.
    pub rows: Option<Vec<ReportRow>>,
    /// Whether the values are the figure's own, and not among the table's.
    pub own: bool,
}

impl Drawn {
    /// Writes the figure beside a report, each file whole or not at all.
    pub(crate) fn write(&self, report: &Path) -> Result<()> {
        let file = |extension| report.with_file_name(format!("{}.{extension}", self.stem));
        if let Some(rows) = &self.rows {
            write_atomic(&file("csv"), tidy::csv(rows)?.as_bytes())?;
        }
        write_atomic(&file("png"), &self.picture.png()?)?;
        write_atomic(&file("svg"), self.picture.svg().as_bytes())?;
        Ok(())
    }
}

/// The values that no table shows, for the data files of the report; those of two figures once.
pub(crate) fn more_rows(figures: &[Drawn]) -> Vec<ReportRow> {
    let own = figures.iter().filter(|figure| figure.own);
    unique(own.flat_map(|figure| figure.rows.iter().flatten()).cloned())
}

/// What a kind of figure makes.
struct Sketch {
    picture: Picture,
    caption: String,
    rows: Vec<ReportRow>,
}

/// Every figure of the report, in its order.
pub(crate) fn draw(params: &Params, store: &Store, lines: &[Line]) -> Result<Vec<Drawn>> {
    let one = |figure| {
        let request = Request { figure, params, store, lines };
        request.check()?;
        let sketch = match &figure.kind {
            FigureKind::HeatMap(kind) => heat_map::draw(&request, kind)?,
            FigureKind::Lines(kind) => lines::draw(&request, kind)?,
            FigureKind::Scatter(kind) => scatter::draw(&request, kind)?,
            FigureKind::Histogram(kind) => histogram::draw(&request, kind)?,
            FigureKind::Curves(kind) => curves::draw(&request, kind)?,
            FigureKind::Perturbations(kind) => perturbations::draw(&request, kind)?,
        };
        Ok(Drawn {
            stem: format!("{}-{}", params.pipeline, figure.name),
            title: figure.title.clone(),
            caption: sketch.caption,
            picture: sketch.picture,
            rows: Some(sketch.rows),
            own: matches!(figure.kind, FigureKind::Histogram(_) | FigureKind::Perturbations(_)),
        })
    };
    params.figures.iter().map(one).collect()
}

/// The figures as a section of the report's Markdown; nothing without figures.
pub(crate) fn markdown(figures: &[Drawn]) -> String {
    let mut text = String::new();
    for Drawn { stem, title, caption, rows, .. } in figures {
        let alternative = title.replace(['[', ']'], "");
        let values = if rows.is_some() { format!(" Values: [{stem}.csv]({stem}.csv).") } else { String::new() };
        let _ = write!(text, "![{alternative}]({stem}.svg)\n\n{title}. {caption}{values}\n\n");
    }
    if text.is_empty() { text } else { format!("## Figures\n\n{text}") }
}

/// A page with a title; the height it takes.
fn page(title: &str, width: f64) -> (Picture, f64) {
    let mut picture = Picture::new(width, 0.0);
    let lines = wrap(title, TITLE, width - 2.0 * EDGE);
    let height = picture.lines((width / 2.0, EDGE + TITLE), TITLE, &lines);
    (picture, EDGE + height + 4.0)
}

/// A page that says that there is nothing to draw.
fn blank(title: &str) -> Picture {
    let (mut picture, top) = page(title, 360.0);
    picture.text(
        (180.0, top + 20.0),
        Anchor::Middle,
        SMALL,
        BLACK,
        "There are no numbers for this figure at this scale.",
    );
    picture.height = top + 20.0 + LEADING * SMALL + EDGE;
    picture
}

/// How a caption names the intervals.
const fn intervals(shown: Intervals) -> &'static str {
    match shown {
        Intervals::Bars => "; bars, 95% intervals",
        Intervals::Bands => "; shades, 95% intervals",
        Intervals::None => "",
    }
}

/// A row of a number that only a figure shows, without the number: labels and parameters of its cell, and more of them.
fn row<const N: usize>(quantity: &str, cell: &Cell, params: &Params, more: [(&str, Value); N]) -> ReportRow {
    let mut parameters: Map<String, Value> = cell.at.iter().map(|(axis, label)| (axis.clone(), json!(label))).collect();
    parameters.extend(cell.parameters.clone());
    parameters.extend(more.map(|(name, value)| (name.to_owned(), value)));
    ReportRow {
        pipeline: params.pipeline.clone(),
        scale: params.scale.clone(),
        protocol: cell.protocol.name().to_owned(),
        quantity: quantity.to_owned(),
        parameters: Value::Object(parameters).to_string(),
        value: None,
        low: None,
        high: None,
        numerator: None,
        denominator: None,
        baseline_zero: None,
        baseline_noise: None,
        forward_queries: None,
        backward_queries: None,
        paper: None,
    }
}
