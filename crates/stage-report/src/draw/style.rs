//! Colours, dashes and markers that stay apart in print without colour and for colour-blind readers.

use super::Point;

/// Red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Colour(pub u8, pub u8, pub u8);

pub(crate) const BLACK: Colour = Colour(0, 0, 0);
pub(crate) const WHITE: Colour = Colour(255, 255, 255);
pub(crate) const GREY: Colour = Colour(110, 110, 110);
pub(crate) const PALE: Colour = Colour(222, 222, 222);

/// Okabe and Ito, "Color Universal Design", 2008; yellow, too pale for lines on white, is left out.
const COLOURS: [Colour; 7] = [
    Colour(0, 114, 178),
    Colour(213, 94, 0),
    Colour(0, 158, 115),
    Colour(204, 121, 167),
    Colour(230, 159, 0),
    Colour(86, 180, 233),
    BLACK,
];

/// A light to a dark blue: equal steps of a value are about equal steps of lightness.
const BLUES: [Colour; 9] = [
    Colour(247, 251, 255),
    Colour(222, 235, 247),
    Colour(198, 219, 239),
    Colour(158, 202, 225),
    Colour(107, 174, 214),
    Colour(66, 146, 198),
    Colour(33, 113, 181),
    Colour(8, 81, 156),
    Colour(8, 48, 107),
];

/// The colour of the n-th series.
pub(crate) const fn colour(index: usize) -> Colour {
    COLOURS[index % COLOURS.len()]
}

/// The blue of a share, 0 to 1, and whether text on it is to be white.
pub(crate) fn blues(share: f64) -> (Colour, bool) {
    let place = share.clamp(0.0, 1.0) * (BLUES.len() - 1) as f64;
    let index = (place as usize).min(BLUES.len() - 2);
    let part = place - index as f64;
    let mix = |a: u8, b: u8| (f64::from(a) + part * (f64::from(b) - f64::from(a))).round() as u8;
    let (a, b) = (BLUES[index], BLUES[index + 1]);
    (Colour(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2)), share > 0.7)
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stroke {
    pub colour: Colour,
    pub width: f64,
    /// Lengths of strokes and gaps in turn; none for a solid line.
    pub dash: &'static [f32],
}

impl Stroke {
    pub(crate) const fn solid(colour: Colour, width: f64) -> Self {
        Self { colour, width, dash: &[] }
    }
}

const DASHES: [&[f32]; 5] = [&[], &[5.0, 2.5], &[1.5, 2.0], &[7.0, 2.0, 1.5, 2.0], &[10.0, 3.0]];

/// The dash of the n-th of `count` lines: the last is solid, those before it dashed, dotted, and so on.
pub(crate) fn dash(index: usize, count: usize) -> &'static [f32] {
    DASHES[count.saturating_sub(index + 1) % DASHES.len()]
}

/// The shape of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Inverted,
    Cross,
    Star,
}

impl Marker {
    /// The marker of the n-th series.
    pub(crate) const fn of(index: usize) -> Self {
        const ALL: [Marker; 7] = [
            Marker::Circle,
            Marker::Square,
            Marker::Triangle,
            Marker::Diamond,
            Marker::Inverted,
            Marker::Cross,
            Marker::Star,
        ];
        ALL[index % ALL.len()]
    }

    /// The corners of the shape around a point, in the size of a circle of this radius; none for the circle.
    pub(crate) fn corners(self, (x, y): Point, radius: f64) -> Option<Vec<Point>> {
        let shape: &[Point] = match self {
            Self::Circle => return None,
            Self::Square => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            Self::Triangle => &[(0.0, -1.25), (1.15, 0.85), (-1.15, 0.85)],
            Self::Diamond => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
            Self::Inverted => &[(0.0, 1.25), (1.15, -0.85), (-1.15, -0.85)],
            Self::Cross => &[
                (-0.4, -1.2),
                (0.4, -1.2),
                (0.4, -0.4),
                (1.2, -0.4),
                (1.2, 0.4),
                (0.4, 0.4),
                (0.4, 1.2),
                (-0.4, 1.2),
                (-0.4, 0.4),
                (-1.2, 0.4),
                (-1.2, -0.4),
                (-0.4, -0.4),
            ],
            Self::Star => &[
                (0.0, -1.4),
                (0.33, -0.45),
                (1.33, -0.43),
                (0.53, 0.17),
                (0.82, 1.13),
                (0.0, 0.56),
                (-0.82, 1.13),
                (-0.53, 0.17),
                (-1.33, -0.43),
                (-0.33, -0.45),
            ],
        };
        Some(shape.iter().map(|(dx, dy)| (x + radius * dx, y + radius * dy)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blues_run_from_light_to_dark_and_text_on_them_can_be_read() {
        assert_eq!((blues(0.0), blues(1.0)), ((BLUES[0], false), (BLUES[8], true)));
        assert_eq!((blues(-1.0), blues(2.0)), (blues(0.0), blues(1.0)));
        // Relative luminance and contrast as in WCAG 2.1.
        let linear = |c: u8| {
            let c = f64::from(c) / 255.0;
            if c <= 0.03928 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        let luminance = |Colour(r, g, b): Colour| 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
        let mut above = 2.0;
        for percent in 0..=100 {
            let (colour, white) = blues(f64::from(percent) / 100.0);
            let ours = luminance(colour);
            assert!(ours <= above, "{percent}% is lighter than what is less");
            above = ours;
            let text = if white { 1.0 } else { 0.0 };
            let contrast = (f64::max(text, ours) + 0.05) / (f64::min(text, ours) + 0.05);
            assert!(contrast >= 4.3, "contrast {contrast} at {percent}%");
        }
    }

    #[test]
    fn the_last_line_is_solid() {
        assert_eq!((dash(0, 1), dash(1, 2), dash(0, 2)), (DASHES[0], DASHES[0], DASHES[1]));
        assert_eq!((dash(0, 3), dash(2, 3)), (DASHES[2], DASHES[0]));
    }
}
