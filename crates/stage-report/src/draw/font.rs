//! The embedded font: how wide a text is, and its outline.

use std::sync::LazyLock;

use tiny_skia::{Path, PathBuilder};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

static FACE: LazyLock<Face<'static>> = LazyLock::new(|| {
    Face::parse(include_bytes!("../../font/DejaVuSans-subset.ttf"), 0).expect("the embedded font is whole")
});

/// The glyphs of a text with the x each starts at, and where the text ends; in units of the size.
fn glyphs(text: &str) -> (Vec<(GlyphId, f64)>, f64) {
    let units = f64::from(FACE.units_per_em());
    let mut x = 0.0;
    let place = |c| {
        // Glyph 0, a box, stands for what the font lacks.
        let glyph = FACE.glyph_index(c).unwrap_or_default();
        let start = x;
        x += f64::from(FACE.glyph_hor_advance(glyph).unwrap_or_default()) / units;
        (glyph, start)
    };
    (text.chars().map(place).collect(), x)
}

/// The width of a text.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    size * glyphs(text).1
}

/// The text in lines no wider than `limit` where its words allow.
pub(crate) fn wrap(text: &str, size: f64, limit: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(line, size) + width(" ", size) + width(word, size) <= limit => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The outline of a text, one unit in size, its baseline starting at the origin, y down; none where there is no ink.
pub(super) fn outline(text: &str) -> Option<Path> {
    let mut pen = Pen { path: PathBuilder::new(), x: 0.0, unit: 1.0 / f32::from(FACE.units_per_em()) };
    for (glyph, x) in glyphs(text).0 {
        pen.x = x as f32;
        FACE.outline_glyph(glyph, &mut pen);
    }
    pen.path.finish()
}

struct Pen {
    path: PathBuilder,
    x: f32,
    unit: f32,
}

impl Pen {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.unit, -y * self.unit)
    }
}

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_that_figures_use_has_a_glyph() {
        for c in "Az09 %±×−–→≤≥·κσεδ∞…’°²₁|/[]()Éß".chars() {
            assert!(FACE.glyph_index(c).is_some(), "no glyph for {c:?}");
        }
        assert!(outline("σ = 0.5").is_some() && outline("  ").is_none());
    }

    #[test]
    fn widths_are_the_fonts_own() {
        // DejaVu Sans: a digit is 1303 of 2048 units wide, a space 651.
        assert!((width("0000", 10.0) - 40.0 * 1303.0 / 2048.0).abs() < 1e-9);
        assert!((width(" ", 2048.0) - 651.0).abs() < 1e-9);
    }

    #[test]
    fn lines_break_between_words_only() {
        let limit = width("one two", 9.0) + 1e-9;
        assert_eq!(wrap("one two three  verylongword x", 9.0, limit), ["one two", "three", "verylongword", "x"]);
    }
}
