//! How often each class is predicted before the attack.

use anyhow::Result;
use artifact::ReportRow;
use game::wilson;
use serde_json::json;
use stage::{Unfit, Usage};

use super::{
    EDGE, Histogram, Sketch, blank,
    lattice::Lattice,
    page,
    pivot::{Key, Request, key},
    series,
};
use crate::{
    Cell, Params,
    decide::winner,
    document::unique,
    draw::{Anchor, BLACK, Entry, GREY, Marker, Picture, Point, SMALL, Stroke, colour},
};

const SIZE: Point = (130.0, 96.0);
/// The height of the bars; below them stand the classes and a summary.
const BARS: f64 = 68.0;

/// Images by class: the true one, and the one that the majority voted for.
struct Counts {
    labels: Vec<u64>,
    votes: Vec<u64>,
}

pub(super) fn draw(request: &Request<'_>, kind: &Histogram) -> Result<Sketch> {
    let cells = request.cells();
    if cells.is_empty() {
        let caption = "Nothing is drawn at this scale.".to_owned();
        return Ok(Sketch { picture: blank(&request.figure.title), caption, rows: Vec::new() });
    }
    let sides = unique(cells.iter().map(|cell| key(*cell, &kind.rows)));
    let tops = unique(cells.iter().map(|cell| key(*cell, &kind.columns)));
    let mut places = Vec::new();
    for (i, side) in sides.iter().enumerate() {
        for (j, top) in tops.iter().enumerate() {
            if let Some(cell) = network(request, kind, &cells, (side, top))? {
                places.push(((i, j), cell, counts(request, cell)?));
            }
        }
    }
    let classes = places.iter().map(|place| place.2.votes.len()).max().unwrap_or(1);
    let highest = places.iter().flat_map(|place| place.2.shares()).fold(0.0, f64::max);
    let mut lattice = Lattice::new((&kind.rows, sides), (&kind.columns, tops), SIZE);
    let (mut picture, top) = page(&request.figure.title, lattice.page().max(300.0));
    lattice.top = top;
    lattice.label(&mut picture);
    let mut rows = Vec::new();
    for ((i, j), cell, counts) in &places {
        counts.draw(&mut picture, lattice.corner(*i, *j), classes, highest);
        rows.extend(counts.rows(cell, request.params, classes));
    }
    let bars = Entry {
        label: "majority votes before the attack".to_owned(),
        stroke: None,
        marker: Some((Marker::Square, colour(0), false)),
    };
    let truth = Entry { label: "true classes".to_owned(), stroke: Some(Stroke::solid(colour(1), 1.0)), marker: None };
    series::finish(&mut picture, lattice.bottom() - EDGE / 2.0, &[vec![bars, truth]]);
    let caption = format!(
        "Share of the images that the majority votes for each class before the attack (bars, up to {:.1}%) and that are of \
         it (line).",
        100.0 * highest
    );
    Ok(Sketch { picture, caption, rows })
}

/// The cell of a place; several are one where their votes before the attack are the same.
fn network<'a>(
    request: &Request<'a>,
    kind: &Histogram,
    cells: &[&'a Cell],
    (side, top): (&Key, &Key),
) -> Result<Option<&'a Cell>, Usage> {
    let here = |cell: &&&Cell| key(**cell, &kind.rows) == *side && key(**cell, &kind.columns) == *top;
    let mut here = cells.iter().filter(here).copied();
    let Some(first) = here.next() else { return Ok(None) };
    match here.find(|other| other.none != first.none) {
        Some(other) => Err(request.crowded(first, other)),
        None => Ok(Some(first)),
    }
}

fn counts(request: &Request<'_>, cell: &Cell) -> Result<Counts> {
    let folder = request.store.folder(&cell.none)?;
    let asked = folder.draws(&cell.none)?;
    let mut counts = Counts { labels: Vec::new(), votes: Vec::new() };
    for row in folder.rows.iter().filter(|row| row.phase == "before") {
        let votes = winner(&row.votes, asked).map(usize::from).ok_or_else(|| {
            Unfit(format!("{}: image {}: its votes do not settle the majority over {asked}", cell.none, row.id))
        })?;
        let classes = counts.labels.len().max(votes + 1).max(row.label as usize + 1);
        counts.labels.resize(classes, 0);
        counts.votes.resize(classes, 0);
        counts.labels[row.label as usize] += 1;
        counts.votes[votes] += 1;
    }
    Ok(counts)
}

impl Counts {
    fn images(&self) -> u64 {
        self.labels.iter().sum()
    }

    fn share(&self, count: u64) -> f64 {
        count as f64 / self.images().max(1) as f64
    }

    fn shares(&self) -> impl Iterator<Item = f64> {
        self.labels.iter().chain(&self.votes).map(|&count| self.share(count))
    }

    fn draw(&self, picture: &mut Picture, (left, top): Point, classes: usize, highest: f64) {
        let (step, bottom) = (SIZE.0 / classes as f64, top + BARS);
        let height = |count: u64| BARS * self.share(count) / highest.max(f64::MIN_POSITIVE);
        for (class, &count) in self.votes.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (x, high) = (left + class as f64 * step, height(count));
            picture.block((x + 0.1 * step, bottom - high), (0.8 * step, high), colour(0));
        }
        let truth = |(class, &count): (usize, &u64)| {
            let (x, y) = (left + class as f64 * step, bottom - height(count));
            [(x, y), (x + step, y)]
        };
        picture.line(self.labels.iter().enumerate().flat_map(truth).collect(), Stroke::solid(colour(1), 1.0));
        picture.line(vec![(left, bottom), (left + SIZE.0, bottom)], Stroke::solid(GREY, 0.8));
        let last = classes.saturating_sub(1);
        for class in [0, last] {
            let x = left + (class as f64 + 0.5) * step;
            picture.text((x, bottom + 2.0 + SMALL), Anchor::Middle, SMALL, BLACK, class.to_string());
        }
        let most = self.votes.iter().copied().max().unwrap_or(0);
        let seen = self.votes.iter().filter(|&&count| count > 0).count();
        let summary = format!("{seen} classes, most {:.0}%", 100.0 * self.share(most));
        picture.text((left + SIZE.0 / 2.0, bottom + 6.0 + 2.0 * SMALL), Anchor::Middle, SMALL, BLACK, summary);
    }

    /// Two numbers for each class.
    fn rows(&self, cell: &Cell, params: &Params, classes: usize) -> Vec<ReportRow> {
        let images = self.images();
        let row = |quantity: &str, class: usize, counts: &[u64]| {
            let count = counts.get(class).copied().unwrap_or(0);
            let interval = (images > 0).then(|| wilson(count, images));
            ReportRow {
                value: (images > 0).then(|| self.share(count)),
                low: interval.map(|interval| interval.0),
                high: interval.map(|interval| interval.1),
                numerator: Some(count),
                denominator: Some(images),
                ..super::row(quantity, cell, params, [("class", json!(class))])
            }
        };
        let both =
            |class| [row("predicted_class_share", class, &self.votes), row("true_class_share", class, &self.labels)];
        (0..classes).flat_map(both).collect()
    }
}
