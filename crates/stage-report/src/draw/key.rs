//! The key of a picture: what its lines and points mean.

use super::{Anchor, BLACK, Colour, LABEL, Marker, Picture, Point, Stroke, width};

const ROW: f64 = 15.0;
const SAMPLE: f64 = 26.0;

/// One entry: a sample and what it stands for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub label: String,
    /// A line, if any.
    pub stroke: Option<Stroke>,
    /// A marker with its colour, hollow or not, if any.
    pub marker: Option<(Marker, Colour, bool)>,
}

impl Entry {
    /// The room it takes along a row.
    fn length(&self) -> f64 {
        SAMPLE + 5.0 + width(&self.label, LABEL) + 14.0
    }
}

/// Draws entries from `left` to `left + limit`, in as many rows as they need, a group on one row where it fits; returns
/// the height they take.
pub(crate) fn key(picture: &mut Picture, (left, top): Point, limit: f64, groups: &[Vec<Entry>]) -> f64 {
    let (mut x, mut y) = (left, top);
    for group in groups {
        let length: f64 = group.iter().map(Entry::length).sum();
        if x > left && x + length > left + limit {
            (x, y) = (left, y + ROW);
        }
        for entry in group {
            if x > left && x + entry.length() > left + limit {
                (x, y) = (left, y + ROW);
            }
            draw(picture, (x, y + ROW / 2.0), entry);
            x += entry.length();
        }
    }
    if groups.iter().all(Vec::is_empty) { 0.0 } else { y + ROW - top }
}

/// One entry, its sample from this point to the right.
fn draw(picture: &mut Picture, (x, middle): Point, entry: &Entry) {
    if let Some(stroke) = entry.stroke {
        picture.line(vec![(x, middle), (x + SAMPLE, middle)], stroke);
    }
    if let Some((marker, colour, hollow)) = entry.marker {
        picture.marker((x + SAMPLE / 2.0, middle), marker, 2.6, colour, hollow);
    }
    picture.text((x + SAMPLE + 5.0, middle + 0.35 * LABEL), Anchor::Start, LABEL, BLACK, &entry.label);
}
