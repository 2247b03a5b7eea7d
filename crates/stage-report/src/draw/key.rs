//! The key of a picture: what its lines and points mean.

use super::{Anchor, BLACK, Colour, LABEL, Marker, Picture, Stroke, width};

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

/// Draws entries from `left` to `left + limit`, in as many rows as they need; returns the height they take.
pub(crate) fn key(picture: &mut Picture, (left, top): (f64, f64), limit: f64, entries: &[Entry]) -> f64 {
    let (mut x, mut y) = (left, top);
    for entry in entries {
        let length = SAMPLE + 5.0 + width(&entry.label, LABEL) + 14.0;
        if x > left && x + length > left + limit {
            (x, y) = (left, y + ROW);
        }
        let middle = y + ROW / 2.0;
        if let Some(stroke) = entry.stroke {
            picture.line(vec![(x, middle), (x + SAMPLE, middle)], stroke);
        }
        if let Some((marker, colour, hollow)) = entry.marker {
            picture.marker((x + SAMPLE / 2.0, middle), marker, 2.6, colour, hollow);
        }
        picture.text((x + SAMPLE + 5.0, middle + 0.35 * LABEL), Anchor::Start, LABEL, BLACK, &entry.label);
        x += length;
    }
    if entries.is_empty() { 0.0 } else { y + ROW - top }
}
