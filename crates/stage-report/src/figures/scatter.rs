//! One quantity against another.

use stage::Usage;

use super::{
    Scatter, Sketch, blank, page,
    pivot::{Request, key, title},
    series::{self, Sheet, Styles, bar},
};
use crate::{
    document::title as named,
    draw::{Anchor, Axis, BLACK, Frame, Picture, Point, SMALL, Stroke, width},
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
    let sheet = sheet.below(top);
    let mut rows = Vec::new();
    for (index, (name, lines)) in panels.iter().enumerate() {
        let (left, top) = sheet.corner(index);
        let x = axis(format!("{} (%)", named(kind.x)), spans.iter().map(|span| span.0));
        let y = axis(format!("{} (%)", named(kind.y)), spans.iter().map(|span| span.1));
        let frame = Frame { left, top, width: sheet.width, height: sheet.height, x, y };
        frame.draw(&mut picture, sheet.first(index));
        sheet.name(&mut picture, index, name);
        let mut labels = Labels { frame: &frame, taken: Vec::new() };
        for (colour, marker, _, lines) in styles.series(lines) {
            for pair in lines.iter().filter_map(|line| pairs.iter().find(|pair| std::ptr::eq(pair.0, *line))) {
                let Some(at) = cross(&mut picture, &frame, *pair, Stroke::solid(colour, 0.8)) else { continue };
                picture.marker(at, marker, 2.6, colour, false);
                labels.put(&mut picture, at, &title(&kind.labels, &key(pair.0, &kind.labels)));
                rows.extend([pair.0.row(request.params), pair.1.row(request.params)]);
            }
        }
    }
    series::finish(&mut picture, sheet.bottom(panels.len()), &styles.entries());
    let caption = format!("{} against {}; crosses, 95% intervals.", named(kind.y), named(kind.x));
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

/// Both intervals of a point; the point.
fn cross(picture: &mut Picture, frame: &Frame, (x, y): Pair<'_>, stroke: Stroke) -> Option<Point> {
    let at = |x: f64, y: f64| frame.place(100.0 * x, 100.0 * y);
    let ((x_value, y_value), (wide, high)) = (x.value.zip(y.value)?, x.interval.zip(y.interval)?);
    let (from, to) = (at(wide.0, y_value), at(wide.1, y_value));
    picture.line(vec![from, to], stroke);
    for end in [from, to] {
        picture.line(vec![(end.0, end.1 - 2.0), (end.0, end.1 + 2.0)], stroke);
    }
    bar(picture, at(x_value, high.0), at(x_value, high.1), stroke.colour);
    Some(at(x_value, y_value))
}

/// Labels of points, put where no other label is.
struct Labels<'a> {
    frame: &'a Frame,
    /// Left, top, right, bottom.
    taken: Vec<[f64; 4]>,
}

impl Labels<'_> {
    fn put(&mut self, picture: &mut Picture, (x, y): Point, text: &str) {
        let (wide, high) = (width(text, SMALL), SMALL);
        let places = [(4.0, -3.0), (4.0, high + 2.0), (-4.0 - wide, -3.0), (-4.0 - wide, high + 2.0)];
        let (left, right) = (self.frame.left, self.frame.left + self.frame.width);
        let spot = |&(dx, dy): &(f64, f64)| [x + dx, y + dy - high, x + dx + wide, y + dy];
        let free = |spot: &[f64; 4]| {
            let apart =
                |other: &[f64; 4]| spot[2] < other[0] || other[2] < spot[0] || spot[3] < other[1] || other[3] < spot[1];
            spot[0] > left && spot[2] < right && self.taken.iter().all(apart)
        };
        let spots: Vec<[f64; 4]> = places.iter().map(spot).collect();
        let place = spots.iter().copied().find(free).unwrap_or(spots[0]);
        self.taken.push(place);
        if !text.is_empty() {
            picture.text((place[0], place[3]), Anchor::Start, SMALL, BLACK, text);
        }
    }
}
