//! Small pictures in rows and columns, labelled at the side and above.

use super::{
    EDGE,
    pivot::{Key, title},
};
use crate::draw::{Anchor, BLACK, LABEL, LEADING, Picture, Point, width, wrap};

const GAP: f64 = 10.0;

/// Where the small pictures of a figure stand.
pub(super) struct Lattice<'a> {
    rows: (&'a [String], Vec<Key>),
    columns: (&'a [String], Vec<Key>),
    /// Of one small picture, with whatever stands below it.
    size: Point,
    /// Of the labels at the side.
    labels: f64,
    /// Lines of the labels above.
    lines: usize,
    pub top: f64,
}

impl<'a> Lattice<'a> {
    pub(super) fn new(rows: (&'a [String], Vec<Key>), columns: (&'a [String], Vec<Key>), size: Point) -> Self {
        let widest =
            rows.1.iter().flat_map(|row| side(rows.0, row)).map(|line| width(&line, LABEL)).fold(0.0, f64::max);
        let labels = if widest > 0.0 { widest + 10.0 } else { 0.0 };
        let lines =
            columns.1.iter().map(|column| wrap(&title(columns.0, column), LABEL, size.0).len()).max().unwrap_or(0);
        Self { rows, columns, size, labels, lines, top: 0.0 }
    }

    /// The width of the page, `left` points being taken at the left of every row.
    pub(super) fn page(&self) -> f64 {
        2.0 * EDGE + self.labels + self.columns.1.len() as f64 * (self.size.0 + GAP) - GAP
    }

    /// The corner of a small picture.
    pub(super) fn corner(&self, row: usize, column: usize) -> Point {
        let below = self.top + self.lines as f64 * LEADING * LABEL + 6.0;
        let left = EDGE + self.labels + column as f64 * (self.size.0 + GAP);
        (left, below + row as f64 * (self.size.1 + GAP))
    }

    /// Below everything.
    pub(super) fn bottom(&self) -> f64 {
        self.corner(self.rows.1.len(), 0).1 - GAP + EDGE
    }

    /// Writes the labels.
    pub(super) fn label(&self, picture: &mut Picture) {
        for (column, labels) in self.columns.1.iter().enumerate() {
            let lines = wrap(&title(self.columns.0, labels), LABEL, self.size.0);
            let (left, top) = self.corner(0, column);
            let first = top - 5.0 - lines.len().saturating_sub(1) as f64 * LEADING * LABEL;
            picture.lines((left + self.size.0 / 2.0, first), LABEL, &lines);
        }
        for (row, labels) in self.rows.1.iter().enumerate() {
            let (left, top) = self.corner(row, 0);
            for (line, text) in side(self.rows.0, labels).iter().enumerate() {
                let y = top + 0.4 * self.size.1 + line as f64 * LEADING * LABEL;
                picture.text((left - 8.0, y), Anchor::End, LABEL, BLACK, text);
            }
        }
    }
}

/// The labels of a row, one below the other.
fn side(axes: &[String], key: &Key) -> Vec<String> {
    axes.iter().zip(key).map(|(axis, label)| super::pivot::shown(axis, label)).collect()
}
