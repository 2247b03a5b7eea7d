//! The figure of the theory report: densities as in the paper's figures 1 and 6, and the quantities along the shift.

use std::f64::consts::PI;

use artifact::TheoryRow;
use libm::exp;

use crate::{
    document::unique,
    draw::{Axis, BLACK, Entry, Frame, LABEL, LEADING, Marker, Picture, Point, Stroke, TITLE, colour, key},
};

const WIDTH: f64 = 196.0;
const HEIGHT: f64 = 130.0;
const GAP: f64 = 12.0;
const EDGE: f64 = 10.0;
const ACROSS: f64 = 4.0;

/// The figure of a theory table at one noise and budget; nothing if the table lacks the classifiers of figure 1.
pub(crate) fn draw(rows: &[TheoryRow], sigma: f64, epsilon: f64) -> Option<Picture> {
    let here = |row: &&TheoryRow| row.epsilon == epsilon && (row.sigma == sigma || row.k.is_none());
    let rows: Vec<&TheoryRow> = rows.iter().filter(here).collect();
    let width = 2.0 * EDGE + ACROSS * (Frame::LEFT + WIDTH + GAP);
    let mut picture = Picture::new(width, 0.0);
    let title = format!("Densities and closed forms at sigma = {sigma}, epsilon = {epsilon}");
    let top = EDGE + picture.lines((width / 2.0, EDGE + TITLE), TITLE, &[title]);
    densities(&mut picture, &rows, (sigma, epsilon), top + 2.0 * LEADING * LABEL + 4.0)?;
    let top = top + 2.0 * LEADING * LABEL + HEIGHT + Frame::BELOW + 8.0;
    let votes = unique(rows.iter().filter(|row| row.k.is_some()).map(|row| row.votes));
    for (column, quantity) in ["robustness", "accuracy", "joint", "invariance"].iter().enumerate() {
        along(&mut picture, &rows, quantity, &votes, corner(column, top + LEADING * LABEL + 4.0));
    }
    let bottom = top + LEADING * LABEL + 4.0 + HEIGHT + Frame::BELOW + 4.0;
    let below = key(&mut picture, (EDGE, bottom), width - 2.0 * EDGE, &entries(&votes, epsilon));
    picture.height = bottom + below + EDGE;
    Some(picture)
}

fn corner(column: usize, top: f64) -> Point {
    (EDGE + Frame::LEFT + column as f64 * (Frame::LEFT + WIDTH + GAP), top)
}

fn frame((left, top): Point, x: Axis, y: Axis) -> Frame {
    Frame { left, top, width: WIDTH, height: HEIGHT, x, y }
}

/// Three panels: undefended, defended, and defended with trained invariance. Filled: right; dotted: robustly right.
fn densities(picture: &mut Picture, rows: &[&TheoryRow], (sigma, epsilon): (f64, f64), top: f64) -> Option<()> {
    let value = |quantity: &str, k: Option<f64>| {
        let single = |row: &&&TheoryRow| row.k.is_none() || row.votes == Some(1);
        let found = rows
            .iter()
            .filter(single)
            .find(|row| row.method == "closed-form" && row.quantity == quantity && row.k == k);
        found.map(|row| 100.0 * row.value)
    };
    let noisy = (sigma * sigma + 1.0).sqrt();
    let cases = [
        ("undefended", None, [-1.0, 1.0], 1.0),
        ("defended", Some(0.0), [0.0, 2.0], noisy),
        ("defended, trained invariance", Some(1.0), [0.0, 2.0], noisy),
    ];
    for (column, (name, k, means, spread)) in cases.into_iter().enumerate() {
        let (accuracy, robustness) = (value("accuracy", k)?, value("robustness", k)?);
        let (left, top) = corner(column, top);
        let titles = [name.to_owned(), format!("accuracy {accuracy:.1}%, robustness {robustness:.1}%")];
        picture.lines((left + WIDTH / 2.0, top - 5.0 - LEADING * LABEL), LABEL, &titles);
        let frame = frame((left, top), Axis::linear("x", -5.0, 7.0), Axis::linear("density", 0.0, 0.42));
        frame.draw(picture, column == 0);
        let boundary = k.unwrap_or(0.0);
        for (side, mean) in [-1.0, 1.0].into_iter().zip(means) {
            let ink = colour(usize::from(side > 0.0));
            let density = |x: f64| {
                let z = (x - mean) / spread;
                exp(-z * z / 2.0) / (spread * (2.0 * PI).sqrt())
            };
            let curve = |from: f64, to: f64| -> Vec<Point> {
                let x = |i: i32| from + (to - from) * f64::from(i) / 120.0;
                (0..=120).map(x).map(|x| frame.place(x, density(x))).collect()
            };
            // The part of the curve on the class's own side of the boundary, `margin` away from it.
            let area = |margin: f64| {
                let edge = boundary + side * margin;
                let (from, to) = if side < 0.0 { (-5.0, edge) } else { (edge, 7.0) };
                [vec![frame.place(from, 0.0)], curve(from, to), vec![frame.place(to, 0.0)]].concat()
            };
            picture.area(area(0.0), ink, 0.25);
            picture.line(area(epsilon), Stroke { colour: ink, width: 1.8, dash: DOTTED });
            picture.line(curve(-5.0, 7.0), Stroke::solid(ink, 1.0));
        }
        picture.line(vec![frame.place(boundary, 0.0), frame.place(boundary, 0.42)], Stroke::solid(BLACK, 1.0));
    }
    Some(())
}

const DOTTED: &[f32] = &[0.5, 3.0];

/// One quantity along k: a curve for each number of votes, a ring for each simulated value.
fn along(picture: &mut Picture, rows: &[&TheoryRow], quantity: &str, votes: &[Option<u32>], (left, top): Point) {
    let rows: Vec<&&TheoryRow> = rows.iter().filter(|row| row.quantity == quantity && row.k.is_some()).collect();
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (low, high) = ends(&mut rows.iter().map(|row| row.value));
    if rows.is_empty() {
        return;
    }
    let margin = ((high - low) * 0.08).max(0.01);
    let k = ends(&mut rows.iter().filter_map(|row| row.k).chain([0.0, 1.0]));
    let frame = frame((left, top), Axis::linear("k", k.0, k.1), Axis::linear("value", low - margin, high + margin));
    frame.draw(picture, false);
    picture.lines((left + WIDTH / 2.0, top - 5.0), LABEL, &[quantity.to_owned()]);
    let points = |votes: Option<u32>, method: &str| -> Vec<Point> {
        let ours = rows.iter().filter(|row| row.votes == votes && row.method == method);
        let mut points: Vec<Point> = ours.filter_map(|row| Some((row.k?, row.value))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.into_iter().map(|(x, y)| frame.place(x, y)).collect()
    };
    for (i, votes) in votes.iter().enumerate() {
        picture.line(points(*votes, "closed-form"), stroke(i));
        for point in points(*votes, "monte-carlo") {
            picture.marker(point, Marker::of(i), 2.4, colour(i), true);
        }
    }
}

/// Of the n-th number of votes: colours and dashes.
fn stroke(index: usize) -> Stroke {
    const DASHES: [&[f32]; 4] = [&[], &[5.0, 2.5], &[1.5, 2.0], &[7.0, 2.0, 1.5, 2.0]];
    Stroke { colour: colour(index), width: 1.5, dash: DASHES[index % DASHES.len()] }
}

fn entries(votes: &[Option<u32>], epsilon: f64) -> [Vec<Entry>; 2] {
    let entry = |label: String, stroke, marker| Entry { label, stroke, marker };
    let name = |votes: &Option<u32>| match votes {
        Some(1) => "1 vote".to_owned(),
        Some(votes) => format!("{votes} votes"),
        None => "infinitely many votes".to_owned(),
    };
    let votes = votes.iter().enumerate().map(|(i, votes)| entry(name(votes), Some(stroke(i)), None));
    let dotted = Stroke { colour: BLACK, width: 1.8, dash: DOTTED };
    let more = [
        entry("simulated".to_owned(), None, Some((Marker::Circle, BLACK, true))),
        entry(format!("right for every shift within {epsilon}"), Some(dotted), None),
    ];
    [votes.collect(), more.into()]
}
