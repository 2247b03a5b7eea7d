//! Pictures as lists of marks, written as SVG and as PNG: one drawing, two files, the same bytes every time.
//!
//! Lengths are points, x to the right and y down. A bitmap's text is set in an embedded font, so it needs none of the
//! machine's; an SVG names that font first and then any sans-serif, none of which is wider.

mod axes;
mod font;
mod key;
mod png;
mod style;
mod svg;

pub(crate) use self::{
    axes::{Axis, Frame},
    font::{width, wrap},
    key::{Entry, key},
    style::{BLACK, Colour, GREY, Marker, PALE, Stroke, WHITE, blues, colour, dash},
};

/// Sizes of text.
pub(crate) const TITLE: f64 = 12.0;
/// Panel titles, axis titles, legends.
pub(crate) const LABEL: f64 = 9.0;
/// Ticks and numbers.
pub(crate) const SMALL: f64 = 8.0;
/// From one line of text to the next, in sizes of the text.
pub(crate) const LEADING: f64 = 1.3;

/// x and y.
pub(crate) type Point = (f64, f64);

/// Where a text stands relative to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A text on one line; its point is on the baseline.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Text {
    pub at: Point,
    pub anchor: Anchor,
    pub size: f64,
    pub colour: Colour,
    /// Read from below to above.
    pub turned: bool,
    pub text: String,
}

/// What a picture consists of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mark {
    Line {
        points: Vec<Point>,
        stroke: Stroke,
    },
    Area {
        points: Vec<Point>,
        fill: Colour,
        opacity: f64,
    },
    Circle {
        centre: Point,
        radius: f64,
        fill: Option<Colour>,
        stroke: Stroke,
    },
    Polygon {
        points: Vec<Point>,
        fill: Option<Colour>,
        stroke: Stroke,
    },
    Text(Text),
    /// An image, its pixels shown as squares.
    Pixels {
        at: Point,
        size: Point,
        image: Pixels,
    },
}

/// An image of `columns` by `rows` pixels, 8-bit RGB, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pixels {
    pub columns: u32,
    pub rows: u32,
    pub rgb: Vec<u8>,
}

/// A drawing in the making; later marks cover earlier ones.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Picture {
    pub width: f64,
    pub height: f64,
    marks: Vec<Mark>,
}

impl Picture {
    /// An empty white page.
    pub(crate) const fn new(width: f64, height: f64) -> Self {
        Self { width, height, marks: Vec::new() }
    }

    /// A polyline; one point alone is a dot of the stroke's width.
    pub(crate) fn line(&mut self, points: Vec<Point>, stroke: Stroke) {
        if !points.is_empty() {
            self.marks.push(Mark::Line { points, stroke });
        }
    }

    /// A filled outline without a border.
    pub(crate) fn area(&mut self, points: Vec<Point>, fill: Colour, opacity: f64) {
        if points.len() > 2 {
            self.marks.push(Mark::Area { points, fill, opacity });
        }
    }

    /// A filled rectangle.
    pub(crate) fn block(&mut self, (left, top): Point, (width, height): Point, fill: Colour) {
        let (right, bottom) = (left + width, top + height);
        self.area(vec![(left, top), (right, top), (right, bottom), (left, bottom)], fill, 1.0);
    }

    /// The border of a rectangle.
    pub(crate) fn border(&mut self, (left, top): Point, (width, height): Point, stroke: Stroke) {
        let (right, bottom) = (left + width, top + height);
        let points = vec![(left, top), (right, top), (right, bottom), (left, bottom)];
        self.marks.push(Mark::Polygon { points, fill: None, stroke });
    }

    /// A marker, filled with its own colour or hollow.
    pub(crate) fn marker(&mut self, at: Point, marker: Marker, size: f64, colour: Colour, hollow: bool) {
        let (fill, stroke) = (if hollow { WHITE } else { colour }, Stroke::solid(colour, 1.1));
        self.marks.push(match marker.corners(at, size) {
            None => Mark::Circle { centre: at, radius: size, fill: Some(fill), stroke },
            Some(points) => Mark::Polygon { points, fill: Some(fill), stroke },
        });
    }

    /// A text on one line.
    pub(crate) fn text(&mut self, at: Point, anchor: Anchor, size: f64, colour: Colour, text: impl Into<String>) {
        self.marks.push(Mark::Text(Text { at, anchor, size, colour, turned: false, text: text.into() }));
    }

    /// A text that reads from below to above, its middle at the point.
    pub(crate) fn turned(&mut self, at: Point, size: f64, text: impl Into<String>) {
        let text = Text { at, anchor: Anchor::Middle, size, colour: BLACK, turned: true, text: text.into() };
        self.marks.push(Mark::Text(text));
    }

    /// Lines of text around a middle, the first baseline at `at`; returns the height they take.
    pub(crate) fn lines(&mut self, at: Point, size: f64, lines: &[String]) -> f64 {
        for (i, line) in lines.iter().enumerate() {
            self.text((at.0, at.1 + i as f64 * LEADING * size), Anchor::Middle, size, BLACK, line);
        }
        lines.len() as f64 * LEADING * size
    }

    /// An image.
    pub(crate) fn pixels(&mut self, at: Point, size: Point, image: Pixels) {
        self.marks.push(Mark::Pixels { at, size, image });
    }

    pub(crate) fn svg(&self) -> String {
        svg::write(self)
    }

    /// The picture at two pixels per point.
    pub(crate) fn png(&self) -> anyhow::Result<Vec<u8>> {
        png::write(self)
    }
}
