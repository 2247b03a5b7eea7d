//! The figure of the theory report, as SVG: densities as in the paper's figure 1, and the quantities along the shift.

use std::{f64::consts::PI, fmt::Write as _};

use artifact::TheoryRow;

use crate::document::unique;

const WIDTH: f64 = 260.0;
const HEIGHT: f64 = 180.0;
const GAP: f64 = 50.0;
/// Colours that stay apart for colour-blind readers (Okabe and Ito 2008).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// Axes from data to one panel's place on the page.
struct Panel {
    left: f64,
    top: f64,
    x: (f64, f64),
    y: (f64, f64),
    text: String,
}

impl Panel {
    fn new(column: usize, row: usize, x: (f64, f64), y: (f64, f64), titles: &[String]) -> Self {
        let (left, top) = (GAP + column as f64 * (WIDTH + GAP), GAP + row as f64 * (HEIGHT + 2.0 * GAP));
        let mut panel = Self { left, top, x, y, text: String::new() };
        for (line, title) in titles.iter().rev().enumerate() {
            panel.label(left + WIDTH / 2.0, top - 6.0 - 14.0 * line as f64, "middle", title);
        }
        let _ = writeln!(
            panel.text,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#888\"/>"
        );
        for i in 0..=4 {
            let at = x.0 + (x.1 - x.0) * f64::from(i) / 4.0;
            panel.label(panel.place(at, y.0).0, top + HEIGHT + 14.0, "middle", &tick(at));
            let at = y.0 + (y.1 - y.0) * f64::from(i) / 4.0;
            panel.label(left - 4.0, panel.place(x.0, at).1 + 4.0, "end", &tick(at));
        }
        panel
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let part = |value: f64, (low, high): (f64, f64)| (value - low) / (high - low);
        (self.left + WIDTH * part(x, self.x), self.top + HEIGHT * (1.0 - part(y, self.y)))
    }

    fn label(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let _ = writeln!(self.text, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
    }

    fn line(&mut self, points: &[(f64, f64)], style: &str) {
        let places: Vec<String> =
            points.iter().map(|&(x, y)| self.place(x, y)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(self.text, "<polyline points=\"{}\" {style}/>", places.join(" "));
    }

    fn dot(&mut self, x: f64, y: f64, colour: &str) {
        let (x, y) = self.place(x, y);
        let _ =
            writeln!(self.text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"none\" stroke=\"{colour}\"/>");
    }
}

/// The figure of a theory table at one noise and budget; nothing if the table lacks the classifiers of figure 1.
pub(crate) fn svg(rows: &[TheoryRow], sigma: f64, epsilon: f64) -> Option<String> {
    let here = |row: &&TheoryRow| row.epsilon == epsilon && (row.sigma == sigma || row.k.is_none());
    let rows: Vec<&TheoryRow> = rows.iter().filter(here).collect();
    let mut panels = densities(&rows, sigma, epsilon)?;
    panels.extend(
        ["robustness", "accuracy", "joint", "invariance"]
            .iter()
            .enumerate()
            .map(|(i, quantity)| along(&rows, quantity, i)),
    );
    let (width, height) = (GAP + 4.0 * (WIDTH + GAP), 2.0 * (HEIGHT + 2.0 * GAP));
    let body: String = panels.into_iter().map(|panel| panel.text).collect();
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    ))
}

/// Three panels: undefended, defended, and defended with trained invariance. Filled: right; dotted: robustly right.
fn densities(rows: &[&TheoryRow], sigma: f64, epsilon: f64) -> Option<Vec<Panel>> {
    let value = |quantity: &str, k: Option<f64>| {
        let single = |row: &&&TheoryRow| row.k.is_none() || row.votes == Some(1);
        let found = rows
            .iter()
            .filter(single)
            .find(|row| row.method == "closed-form" && row.quantity == quantity && row.k == k);
        found.map(|row| 100.0 * row.value)
    };
    let noisy = sigma.hypot(1.0);
    let cases = [("undefended", None, [-1.0, 1.0], 1.0), ("defended", Some(0.0), [0.0, 2.0], noisy)];
    let trained = ("defended, trained invariance", Some(1.0), [0.0, 2.0], noisy);
    let mut panels = Vec::new();
    for (column, (name, k, means, spread)) in cases.into_iter().chain([trained]).enumerate() {
        let (accuracy, robustness) = (value("accuracy", k)?, value("robustness", k)?);
        let titles = [name.to_owned(), format!("accuracy {accuracy:.1}%, robustness {robustness:.1}%")];
        let mut panel = Panel::new(column, 0, (-5.0, 7.0), (0.0, 0.42), &titles);
        let boundary = k.unwrap_or(0.0);
        for (side, mean) in [-1.0, 1.0].into_iter().zip(means) {
            let colour = COLOURS[usize::from(side > 0.0)];
            let density = |x: f64| {
                let z = (x - mean) / spread;
                (-z * z / 2.0).exp() / (spread * (2.0 * PI).sqrt())
            };
            let curve = |from: f64, to: f64| -> Vec<(f64, f64)> {
                (0..=120).map(|i| from + (to - from) * f64::from(i) / 120.0).map(|x| (x, density(x))).collect()
            };
            // The part of the curve on the class's own side of the boundary, `margin` away from it.
            let area = |margin: f64| {
                let edge = boundary + side * margin;
                let curve = if side < 0.0 { curve(-5.0, edge) } else { curve(edge, 7.0) };
                let (first, last) = (curve[0].0, curve[curve.len() - 1].0);
                [vec![(first, 0.0)], curve, vec![(last, 0.0)]].concat()
            };
            panel.line(&area(0.0), &format!("fill=\"{colour}\" fill-opacity=\"0.25\" stroke=\"none\""));
            let dotted = "stroke-width=\"2\" stroke-dasharray=\"2 3\"";
            panel.line(&area(epsilon), &format!("fill=\"none\" stroke=\"{colour}\" {dotted}"));
            panel.line(&curve(-5.0, 7.0), &format!("fill=\"none\" stroke=\"{colour}\""));
        }
        panel.line(&[(boundary, 0.0), (boundary, 0.42)], "fill=\"none\" stroke=\"black\"");
        panels.push(panel);
    }
    Some(panels)
}

/// One quantity along k: a curve for each number of votes, a ring for each simulated value.
fn along(rows: &[&TheoryRow], quantity: &str, column: usize) -> Panel {
    let rows: Vec<&&TheoryRow> = rows.iter().filter(|row| row.quantity == quantity && row.k.is_some()).collect();
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let margin = ((high - low) * 0.08).max(0.01);
        (low - margin, high + margin)
    };
    let x = rows.iter().filter_map(|row| row.k).fold((0.0_f64, 1.0_f64), |(low, high), k| (low.min(k), high.max(k)));
    let y = ends(&mut rows.iter().map(|row| row.value));
    let mut panel = Panel::new(column, 1, x, y, &[format!("{quantity} along k")]);
    for (i, votes) in unique(rows.iter().map(|row| row.votes)).into_iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let of = |method: &str| -> Vec<(f64, f64)> {
            let mut points: Vec<(f64, f64)> = rows
                .iter()
                .filter(|row| row.votes == votes && row.method == method)
                .filter_map(|row| Some((row.k?, row.value)))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        panel.line(&of("closed-form"), &format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\""));
        of("monte-carlo").into_iter().for_each(|(x, y)| panel.dot(x, y, colour));
        let name = votes.map_or_else(|| "∞".to_owned(), |votes| votes.to_string());
        let at = panel.left + 12.0 + 42.0 * i as f64;
        let _ = writeln!(
            panel.text,
            "<text x=\"{at:.1}\" y=\"{:.1}\" fill=\"{colour}\">n={name}</text>",
            panel.top + HEIGHT + 32.0
        );
    }
    panel
}

fn tick(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
