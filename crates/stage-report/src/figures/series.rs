//! Lines with markers, intervals, baselines and claims: what `lines` and `curves` share.

use super::{
    EDGE, Intervals, PAGE,
    pivot::{Key, Labelled as _, key, title},
};
use crate::{
    document::unique,
    draw::{self, Axis, BLACK, Colour, Entry, Frame, LABEL, LEADING, Marker, Picture, Point, Stroke, dash, wrap},
    line::Line,
};

/// Where panels stand on a page, and how large they are.
pub(super) struct Sheet {
    pub across: usize,
    pub width: f64,
    pub height: f64,
    top: f64,
    /// Lines of the panels' titles.
    lines: usize,
    /// Below each box.
    below: f64,
}

impl Sheet {
    const GAP: f64 = 12.0;

    /// A sheet for panels with these titles, `across` of them beside each other, or as many as look well.
    pub(super) fn new(titles: &[String], across: Option<usize>) -> Self {
        let across = across.unwrap_or(match titles.len() {
            0 | 1 => 1,
            2 | 4 => 2,
            _ => 3,
        });
        let width = match across {
            1 => 380.0,
            _ => (PAGE - 2.0 * EDGE) / across as f64 - Frame::LEFT - Self::GAP,
        };
        let lines = titles.iter().map(|title| wrap(title, LABEL, width).len()).max().unwrap_or(0);
        Self { across, width, height: (0.68 * width).clamp(120.0, 240.0), top: 0.0, lines, below: Frame::BELOW }
    }

    pub(super) fn page(&self) -> f64 {
        2.0 * EDGE + self.across as f64 * (self.width + Frame::LEFT + Self::GAP)
    }

    /// The sheet with its panels from here on, and with room for the ticks of their axes.
    pub(super) fn from(self, top: f64, x: &Axis) -> Self {
        Self { top, below: x.below(self.width), ..self }
    }

    fn row(&self) -> f64 {
        self.lines as f64 * LEADING * LABEL + 6.0 + self.height + self.below
    }

    /// The corner of the n-th panel's box.
    pub(super) fn corner(&self, index: usize) -> Point {
        let (column, row) = ((index % self.across) as f64, (index / self.across) as f64);
        let top = self.top + row * self.row() + self.lines as f64 * LEADING * LABEL + 6.0;
        (EDGE + Frame::LEFT + column * (self.width + Frame::LEFT + Self::GAP), top)
    }

    /// Whether the n-th panel is the first of its row.
    pub(super) const fn first(&self, index: usize) -> bool {
        index.is_multiple_of(self.across)
    }

    /// Writes the n-th panel's title.
    pub(super) fn name(&self, picture: &mut Picture, index: usize, title: &str) {
        let lines = wrap(title, LABEL, self.width);
        let (left, top) = self.corner(index);
        let first = top - 5.0 - (lines.len().saturating_sub(1)) as f64 * LEADING * LABEL;
        picture.lines((left + self.width / 2.0, first), LABEL, &lines);
    }

    /// Below the last of so many panels.
    pub(super) fn bottom(&self, panels: usize) -> f64 {
        self.top + panels.div_ceil(self.across) as f64 * self.row()
    }
}

/// How lines are told apart: labels of some axes by colour and marker, of others by dashes.
pub(super) struct Styles<'a> {
    colour: &'a [String],
    dash: &'a [String],
    colours: Vec<Key>,
    dashes: Vec<Key>,
}

impl<'a> Styles<'a> {
    pub(super) fn new(colour: &'a [String], dash: &'a [String], lines: &[&Line]) -> Self {
        let (mut colours, mut dashes) = (Vec::new(), Vec::new());
        for line in lines {
            for (axes, keys) in [(colour, &mut colours), (dash, &mut dashes)] {
                let key = key(*line, axes);
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        Self { colour, dash, colours, dashes }
    }

    /// The lines by how they look: colour, marker, stroke.
    pub(super) fn series<'b>(&self, lines: &[&'b Line]) -> Vec<(Colour, Marker, Stroke, Vec<&'b Line>)> {
        let mut series = Vec::new();
        for (i, colour) in self.colours.iter().enumerate() {
            for (j, dashes) in self.dashes.iter().enumerate() {
                let here = |line: &&&Line| key(**line, self.colour) == *colour && key(**line, self.dash) == *dashes;
                let lines: Vec<&Line> = lines.iter().filter(here).copied().collect();
                let colour = draw::colour(i);
                let stroke = Stroke { colour, width: 1.5, dash: dash(j, self.dashes.len()) };
                if !lines.is_empty() {
                    series.push((colour, Marker::of(i), stroke, lines));
                }
            }
        }
        series
    }

    /// What colours stand for, and what dashes do; without `lines`, markers only.
    pub(super) fn entries(&self, lines: bool) -> Vec<Vec<Entry>> {
        let colours = self.colours.iter().enumerate().map(|(i, labels)| {
            let colour = draw::colour(i);
            let stroke = lines.then(|| Stroke::solid(colour, 1.5));
            Entry { label: title(self.colour, labels), stroke, marker: Some((Marker::of(i), colour, false)) }
        });
        let dashes = self.dashes.iter().enumerate().map(|(j, labels)| {
            let stroke = Stroke { colour: BLACK, width: 1.5, dash: dash(j, self.dashes.len()) };
            Entry { label: title(self.dash, labels), stroke: Some(stroke), marker: None }
        });
        let named = |axes: &[String], entries: Vec<Entry>| if axes.is_empty() { Vec::new() } else { entries };
        vec![named(self.colour, colours.collect()), named(self.dash, dashes.collect())]
    }
}

/// One line of a panel: its points by x, each with the number there.
pub(super) struct Series<'a> {
    pub colour: Colour,
    pub marker: Marker,
    pub stroke: Stroke,
    pub points: Vec<(f64, &'a Line)>,
}

/// What is drawn beside the line itself.
pub(super) struct Extras {
    pub intervals: Intervals,
    pub baselines: bool,
}

/// From one bar to the next at the same place, at most.
const BAR: f64 = 2.6;
/// Markers on a line, at most.
const MARKERS: usize = 14;
/// Thin lines without a perturbation, and under uniform noise.
const ZERO: &[f32] = &[1.0, 2.0];
const NOISE: &[f32] = &[6.0, 1.5, 1.0, 1.5];

/// Draws the lines of a panel: shades first, markers last.
pub(super) fn plot(picture: &mut Picture, frame: &Frame, series: &[Series<'_>], extras: &Extras) {
    // Bars at one place would cover each other.
    let apart = if extras.intervals == Intervals::Bars { BAR.min(12.0 / series.len() as f64) } else { 0.0 };
    let shift = |index: usize| apart * (index as f64 - (series.len() as f64 - 1.0) / 2.0);
    let pens: Vec<Pen<'_>> = (0..series.len()).map(|index| Pen { frame, shift: shift(index) }).collect();
    let pens = || series.iter().zip(&pens);
    for (one, pen) in pens().filter(|_| extras.intervals == Intervals::Bands) {
        for run in runs(&one.points, |line| line.interval) {
            let low = run.iter().map(|(x, interval)| pen.place(*x, interval.0));
            let high = run.iter().rev().map(|(x, interval)| pen.place(*x, interval.1));
            picture.area(low.chain(high).collect(), one.colour, 0.16);
        }
    }
    for (one, pen) in pens() {
        let thin = |dash| Stroke { colour: one.colour, width: 0.7, dash };
        if extras.baselines {
            pen.runs(picture, &one.points, |line| line.zero, thin(ZERO));
            pen.runs(picture, &one.points, |line| line.noise, thin(NOISE));
        }
        for (x, line) in one.points.iter().filter(|_| extras.intervals == Intervals::Bars) {
            let Some((low, high)) = line.interval else { continue };
            bar(picture, pen.place(*x, low), pen.place(*x, high), one.colour);
        }
        pen.runs(picture, &one.points, |line| line.paper, thin(one.stroke.dash));
        pen.runs(picture, &one.points, |line| line.value, one.stroke);
    }
    for (one, pen) in pens() {
        for (x, line) in &one.points {
            if let Some(paper) = line.paper {
                picture.marker(pen.place(*x, paper), one.marker, 3.2, one.colour, true);
            }
        }
        // Of many points, a few are marked: enough to tell the line from others without colour.
        for (x, line) in one.points.iter().step_by(one.points.len().div_ceil(MARKERS).max(1)) {
            if let Some(value) = line.value {
                picture.marker(pen.place(*x, value), one.marker, 2.6, one.colour, false);
            }
        }
    }
}

/// Where one line's points are put: a little beside their places, for bars not to cover each other.
struct Pen<'a> {
    frame: &'a Frame,
    shift: f64,
}

impl Pen<'_> {
    fn place(&self, x: f64, y: f64) -> Point {
        let (x, y) = self.frame.place(x, y);
        (x + self.shift, y)
    }

    fn runs(&self, picture: &mut Picture, points: &[(f64, &Line)], value: Value, stroke: Stroke) {
        for run in runs(points, value) {
            picture.line(run.into_iter().map(|(x, y)| self.place(x, y)).collect(), stroke);
        }
    }
}

/// One of a line's numbers.
type Value = fn(&Line) -> Option<f64>;

/// Entries of the key for what is drawn beside the lines, as far as it is there.
pub(super) fn extra_entries(lines: &[&Line], baselines: bool) -> Vec<Entry> {
    let thin = |label: &str, dash| Entry {
        label: label.to_owned(),
        stroke: Some(Stroke { colour: BLACK, width: 0.7, dash }),
        marker: None,
    };
    let mut entries = Vec::new();
    if baselines && lines.iter().any(|line| line.zero.is_some()) {
        entries.push(thin("no perturbation", ZERO));
    }
    if baselines && lines.iter().any(|line| line.noise.is_some()) {
        entries.push(thin("uniform noise", NOISE));
    }
    if lines.iter().any(|line| line.paper.is_some()) {
        let marker = Some((Marker::Circle, BLACK, true));
        entries.push(Entry { label: "the paper's claim".to_owned(), stroke: None, marker });
    }
    entries
}

/// An interval as a bar with ends.
pub(super) fn bar(picture: &mut Picture, (x, low): Point, (_, high): Point, colour: Colour) {
    let stroke = Stroke::solid(colour, 0.8);
    picture.line(vec![(x, low), (x, high)], stroke);
    for y in [low, high] {
        picture.line(vec![(x - 2.0, y), (x + 2.0, y)], stroke);
    }
}

/// The stretches of points that have a value: where there was nothing to count, a line has a gap.
fn runs<T>(points: &[(f64, &Line)], value: impl Fn(&Line) -> Option<T>) -> Vec<Vec<(f64, T)>> {
    let mut runs: Vec<Vec<(f64, T)>> = vec![Vec::new()];
    for (x, line) in points {
        match (value(line), runs.last_mut()) {
            (Some(value), Some(run)) => run.push((*x, value)),
            _ => runs.push(Vec::new()),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

/// The labels of the panels, in order of appearance, with their lines.
pub(super) fn panels<'a>(axes: &[String], lines: &[&'a Line]) -> Vec<(String, Vec<&'a Line>)> {
    let keys = unique(lines.iter().map(|line| key(*line, axes)));
    let of = |panel: &Key| lines.iter().copied().filter(|line| key(*line, axes) == *panel).collect();
    keys.iter().map(|panel| (title(axes, panel), of(panel))).collect()
}

/// Whether quantities are to be told apart by colour because nothing else does.
pub(super) fn with_quantity(colour: &[String], others: &[&[String]], lines: &[&Line]) -> Vec<String> {
    let mut axes = colour.to_vec();
    let placed = axes.iter().chain(others.iter().copied().flatten()).any(|axis| axis == "quantity");
    if !placed && lines.iter().any(|line| line.label("quantity") != lines[0].label("quantity")) {
        axes.push("quantity".to_owned());
    }
    axes
}

/// Draws the key below the panels and ends the page there.
pub(super) fn finish(picture: &mut Picture, bottom: f64, entries: &[Vec<Entry>]) {
    let width = picture.width - 2.0 * EDGE;
    let height = draw::key(picture, (EDGE, bottom + 2.0), width, entries);
    picture.height = bottom + 2.0 + height + EDGE;
}
