//! One quantity against another.

use stage::Usage;

use super::{
    Scatter, Sketch, blank, page,
    pivot::{Request, key, names},
    series::{self, Sheet, Styles, bar},
};
use crate::{
    document::title as named,
    draw::{Anchor, Axis, BLACK, Colour, Frame, Picture, Point, SMALL, Stroke, width},
    line::Line,
};

/// The two numbers of one cell.
type Pair<'a> = (&'a Line, &'a Line);

pub(super) fn draw(request: &Request<'_>, kind: &Scatter) -> Result<Sketch, Usage> {
    let pairs = pairs(request, kind)?;
    let spans: Vec<_> = pairs.iter().filter_map(|(x, y)| x.interval.zip(y.interval)).collect();
    if spans.is_empty() {
        let caption = "Nothing is drawn at this scale.".to_owned();
        return Ok(Sketch { picture: blank(&request.figure.title), caption, rows: Vec::new() });
    }
    let across: Vec<&Line> = pairs.iter().map(|pair| pair.0).collect();
    let styles = Styles::new(&kind.colour, &[], &across);
    let panels = series::panels(&kind.panels, &across);
    let titles: Vec<String> = panels.iter().map(|panel| panel.0.clone()).filter(|title| !title.is_empty()).collect();
    let sheet = Sheet::new(&titles, (panels.len() == 1).then_some(1));
    let (mut picture, top) = page(&request.figure.title, sheet.page());
    let x = axis(format!("{}, %", named(kind.x)), spans.iter().map(|span| span.0));
    let y = axis(format!("{}, %", named(kind.y)), spans.iter().map(|span| span.1));
    let sheet = sheet.from(top, &x);
    let mut rows = Vec::new();
    for (index, (name, lines)) in panels.iter().enumerate() {
        let (left, top) = sheet.corner(index);
        let (x, y) = (x.clone(), y.clone());
        let frame = Frame { left, top, width: sheet.width, height: sheet.height, x, y };
        frame.draw(&mut picture, sheet.first(index));
        sheet.name(&mut picture, index, name);
        let mut points = Vec::new();
        for (colour, marker, _, lines) in styles.series(lines) {
            for pair in lines.iter().filter_map(|line| pairs.iter().find(|pair| std::ptr::eq(pair.0, *line))) {
                let Some(cross) = Cross::new(&frame, *pair) else { continue };
                cross.draw(&mut picture, colour);
                picture.marker(cross.at, marker, 2.6, colour, false);
                points.push((cross, key(pair.0, &kind.labels).join(", ")));
                rows.extend([pair.0.row(request.params), pair.1.row(request.params)]);
            }
        }
        label(&mut picture, &frame, &points);
    }
    series::finish(&mut picture, sheet.bottom(panels.len()), &styles.entries(false));
    let mut caption = format!("{} against {}; crosses, 95% intervals", named(kind.y), named(kind.x).to_lowercase());
    if !kind.labels.is_empty() {
        caption += &format!("; beside the points, {}", names(&kind.labels));
    }
    caption.push('.');
    Ok(Sketch { picture, caption, rows })
}

/// The numbers of each cell, those across and those up; a cell that lacks one of them has no point.
fn pairs<'a>(request: &Request<'a>, kind: &Scatter) -> Result<Vec<Pair<'a>>, Usage> {
    let across = request.numbers(&[kind.x]);
    let up = request.numbers(&[kind.y]);
    let same = |a: &Line, b: &Line| (&a.at, a.selection, &a.protocol) == (&b.at, b.selection, &b.protocol);
    let mut pairs = Vec::new();
    for x in across {
        let y = request.single(up.iter().copied().filter(|y| same(x, y)))?;
        pairs.extend(y.map(|y| (x, y)));
    }
    Ok(pairs)
}

/// From the lowest to the highest end of all intervals, in percent.
fn axis(title: String, intervals: impl Iterator<Item = (f64, f64)>) -> Axis {
    let (low, high) = intervals.fold((1.0_f64, 0.0_f64), |(low, high), ends| (low.min(ends.0), high.max(ends.1)));
    let margin = (0.05 * (high - low)).max(0.01);
    Axis::linear(title, 100.0 * (low - margin).max(-0.03), 100.0 * (high + margin).min(1.03))
}

/// A point with its intervals.
struct Cross {
    at: Point,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// Left, top, right, bottom.
type Spot = [f64; 4];

impl Cross {
    fn new(frame: &Frame, (x, y): Pair<'_>) -> Option<Self> {
        let at = |x: f64, y: f64| frame.place(100.0 * x, 100.0 * y);
        let (wide, high) = x.interval.zip(y.interval)?;
        let ((left, bottom), (right, top)) = (at(wide.0, high.0), at(wide.1, high.1));
        Some(Self { at: at(x.value?, y.value?), left, right, top, bottom })
    }

    fn draw(&self, picture: &mut Picture, colour: Colour) {
        let ((x, y), stroke) = (self.at, Stroke::solid(colour, 0.8));
        picture.line(vec![(self.left, y), (self.right, y)], stroke);
        for end in [self.left, self.right] {
            picture.line(vec![(end, y - 2.0), (end, y + 2.0)], stroke);
        }
        bar(picture, (x, self.bottom), (x, self.top), colour);
    }

    /// What a label should not cover.
    fn spots(&self) -> [Spot; 3] {
        let (x, y) = self.at;
        [
            [x - 3.0, y - 3.0, x + 3.0, y + 3.0],
            [self.left, y - 1.0, self.right, y + 1.0],
            [x - 1.0, self.top, x + 1.0, self.bottom],
        ]
    }
}

/// Labels points where they cover least: points, intervals and the labels before them.
fn label(picture: &mut Picture, frame: &Frame, points: &[(Cross, String)]) {
    let taken: Vec<Spot> = points.iter().flat_map(|(cross, _)| cross.spots()).collect();
    let mut labels: Vec<Spot> = Vec::new();
    for (Cross { at: (x, y), .. }, text) in points.iter().filter(|(_, text)| !text.is_empty()) {
        let (wide, high) = (width(text, SMALL), 0.75 * SMALL);
        let levels = [-3.0, 3.0 + high, -5.0 - high, 5.0 + 2.0 * high];
        let around = [4.0, 9.0].into_iter().flat_map(|far| {
            levels.into_iter().flat_map(move |level| [(x + far, y + level), (x - far - wide, y + level)])
        });
        let spot = |(left, bottom): Point| [left, bottom - high, left + wide, bottom];
        let cost = |spot: &Spot| {
            let covered = |spots: &[Spot]| spots.iter().filter(|other| overlap(spot, other)).count();
            let (right, bottom) = (frame.left + frame.width, frame.top + frame.height);
            let outside = spot[0] < frame.left || spot[2] > right || spot[1] < frame.top || spot[3] > bottom;
            covered(&taken) + 10 * covered(&labels) + if outside { 100 } else { 0 }
        };
        let Some(best) = around.map(spot).min_by_key(cost) else { continue };
        picture.text((best[0], best[3]), Anchor::Start, SMALL, BLACK, text);
        labels.push(best);
    }
}

fn overlap(one: &Spot, other: &Spot) -> bool {
    one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3]
}
