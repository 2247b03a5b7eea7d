//! Axes: from numbers to places, ticks, and the frame of a panel.

use libm::{exp10, log10};

use super::{Anchor, BLACK, GREY, LABEL, LEADING, PALE, Picture, Point, SMALL, Stroke, width, wrap};

/// Room for rings and squares that lie on the edge, as a share of the axis.
const MARGIN: f64 = 0.03;

/// One axis of a panel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    title: String,
    /// The ends, as logarithms where `log`.
    low: f64,
    high: f64,
    log: bool,
    /// Ticks are words, each in the middle of a stretch of its own.
    words: bool,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Rates in `[0, 1]`, labelled in percent.
    pub(crate) fn percent(title: impl Into<String>) -> Self {
        let ticks = (0..=5).map(|i| (f64::from(i) / 5.0, (20 * i).to_string())).collect();
        Self { title: title.into(), low: -MARGIN, high: 1.0 + MARGIN, log: false, words: false, ticks }
    }

    /// From `low` to `high`, ticks at round numbers.
    pub(crate) fn linear(title: impl Into<String>, low: f64, high: f64) -> Self {
        Self { title: title.into(), low, high, log: false, words: false, ticks: round_ticks(low, high) }
    }

    /// The same with room for points at the ends.
    pub(crate) fn roomy(title: impl Into<String>, low: f64, high: f64) -> Self {
        let (low, high) = padded(low, high);
        Self::linear(title, low, high)
    }

    /// Words one after the other, the first at 0, the next at 1.
    pub(crate) fn words(title: impl Into<String>, words: &[String]) -> Self {
        let ticks = words.iter().enumerate().map(|(i, word)| (i as f64, word.clone())).collect();
        Self { title: title.into(), low: -0.5, high: words.len() as f64 - 0.5, log: false, words: true, ticks }
    }

    /// From `low` to `high`, both positive, by their logarithms; ticks at powers of ten, or at 1, 2, 5 between few of them.
    pub(crate) fn log(title: impl Into<String>, low: f64, high: f64) -> Self {
        let (low, high) = padded(log10(low), log10(high));
        let steps: &[f64] = if high - low > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let powers = low.floor() as i32..=high.ceil() as i32;
        let ticks = powers.flat_map(|power| steps.iter().map(move |step| step * exp10(f64::from(power))));
        let ticks = ticks.filter(|&tick| (low..=high).contains(&log10(tick))).map(|tick| (tick, short(tick)));
        Self { title: title.into(), low, high, log: true, words: false, ticks: ticks.collect() }
    }

    /// Ticks at these values and nowhere else; by logarithms on demand.
    pub(crate) fn at(title: impl Into<String>, ticks: Vec<(f64, String)>, log: bool) -> Self {
        let place = |value: f64| if log { log10(value) } else { value };
        let ends = ticks.iter().map(|tick| place(tick.0));
        let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = padded(low, high);
        Self { title: title.into(), low, high, log, words: false, ticks }
    }

    /// Where a value lies, 0 at the low and 1 at the high end.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let value = if self.log { log10(value) } else { value };
        (value - self.low) / (self.high - self.low)
    }

    /// A tick's label in lines, on an axis of this length.
    fn lines(&self, label: &str, length: f64) -> Vec<String> {
        if self.words { wrap(label, SMALL, length / self.ticks.len() as f64 - 4.0) } else { vec![label.to_owned()] }
    }

    /// The space that ticks and title take below an axis of this length.
    pub(crate) fn below(&self, length: f64) -> f64 {
        let lines = self.ticks.iter().map(|tick| self.lines(&tick.1, length).len()).max().unwrap_or(1);
        Frame::BELOW + lines.saturating_sub(1) as f64 * LEADING * SMALL
    }
}

/// The ends a little apart from what they enclose; never the same.
fn padded(low: f64, high: f64) -> (f64, f64) {
    let margin = if high > low { MARGIN * (high - low) } else { 0.5 };
    if low.is_finite() && high.is_finite() { (low - margin, high + margin) } else { (0.0, 1.0) }
}

/// About six round numbers between the ends.
fn round_ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let rough = (high - low) / 6.0;
    let power = log10(rough).floor();
    let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * exp10(power)).into_iter().find(|&step| step >= rough);
    let Some(step) = step.filter(|step| step.is_normal()) else { return Vec::new() };
    let decimals = (-log10(step).floor()).max(0.0) as usize;
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    let label = |i: i64| {
        let text = format!("{:.decimals$}", i as f64 * step);
        (i as f64 * step, if i < 0 { text.replace('-', "−") } else { text })
    };
    (first..=last).map(label).collect()
}

/// A positive number in few characters: from 100,000 on, powers of ten as such.
fn short(number: f64) -> String {
    let power = log10(number).round();
    if (4.5..9.5).contains(&power) && (number / exp10(power) - 1.0).abs() < 1e-9 {
        const RAISED: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
        return format!("10{}", RAISED[power as usize]);
    }
    // Three digits are enough for a tick; the rest is rounding.
    let decimals = (2.0 - power).clamp(0.0, 9.0) as usize;
    let text = format!("{number:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The box of a panel with its axes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    pub x: Axis,
    pub y: Axis,
}

impl Frame {
    /// Space that ticks and title take left of the box.
    pub(crate) const LEFT: f64 = 44.0;
    /// Space that ticks of one line and the title take below the box.
    pub(crate) const BELOW: f64 = 34.0;

    /// Where a pair of values lies on the page.
    pub(crate) fn place(&self, x: f64, y: f64) -> Point {
        (self.left + self.width * self.x.place(x), self.top + self.height * (1.0 - self.y.place(y)))
    }

    /// The box, its grid, ticks and titles; `y_title` is left out where the panel beside it has the same.
    pub(crate) fn draw(&self, picture: &mut Picture, y_title: bool) {
        let (bottom, right) = (self.top + self.height, self.left + self.width);
        for (value, label) in &self.y.ticks {
            let y = self.top + self.height * (1.0 - self.y.place(*value));
            picture.line(vec![(self.left, y), (right, y)], Stroke::solid(PALE, 0.6));
            picture.text((self.left - 4.0, y + 0.35 * SMALL), Anchor::End, SMALL, BLACK, label);
        }
        let mut free = f64::NEG_INFINITY;
        for (value, label) in &self.x.ticks {
            let x = self.left + self.width * self.x.place(*value);
            let lines = self.x.lines(label, self.width);
            let half = lines.iter().map(|line| width(line, SMALL) / 2.0).fold(0.0, f64::max);
            picture.line(vec![(x, bottom), (x, bottom + 3.0)], Stroke::solid(GREY, 0.8));
            // A label that would run into the one before is left out.
            if x - half >= free {
                picture.lines((x, bottom + 4.0 + SMALL), SMALL, &lines);
                free = x + half + 3.0;
            }
        }
        picture.border((self.left, self.top), (self.width, self.height), Stroke::solid(GREY, 0.8));
        let middle = (self.left + self.width / 2.0, self.top + self.height / 2.0);
        let title = bottom + self.x.below(self.width) - Self::BELOW + 7.0 + SMALL + LABEL;
        picture.text((middle.0, title), Anchor::Middle, LABEL, BLACK, &self.x.title);
        if y_title {
            picture.turned((self.left - 32.0, middle.1), LABEL, &self.y.title);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.1.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(&Axis::linear("", 0.0, 1.0)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&Axis::linear("", -5.0, 7.0)), ["−4", "−2", "0", "2", "4", "6"]);
        assert_eq!(labels(&Axis::linear("", 0.0, 314.0)), ["0", "100", "200", "300"]);
        assert_eq!(labels(&Axis::log("", 10.0, 1000.0)), ["10", "20", "50", "100", "200", "500", "1000"]);
        assert_eq!(labels(&Axis::log("", 10.0, 4e6)), ["10", "100", "1000", "10000", "10⁵", "10⁶"]);
        assert_eq!(labels(&Axis::log("", 0.05, 0.5)), ["0.05", "0.1", "0.2", "0.5"]);
        assert_eq!(labels(&Axis::percent("")), ["0", "20", "40", "60", "80", "100"]);
    }

    #[test]
    fn values_lie_between_the_ends_in_proportion() {
        let axis = Axis::linear("", -1.0, 3.0);
        assert_eq!([-1.0, 1.0, 3.0].map(|v| axis.place(v)), [0.0, 0.5, 1.0]);
        let log = Axis::log("", 1.0, 100.0);
        assert!((log.place(10.0) - 0.5).abs() < 1e-12 && log.place(1.0) > 0.0 && log.place(100.0) < 1.0);
        let words = Axis::words("", &["a".to_owned(), "b".to_owned()]);
        assert_eq!([0.0, 1.0].map(|v| words.place(v)), [0.25, 0.75]);
        let one = Axis::at("", vec![(7.0, "7".to_owned())], false);
        assert_eq!(one.place(7.0), 0.5);
    }
}
