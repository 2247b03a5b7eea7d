//! A picture as SVG.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Anchor, Colour, Mark, Picture, Pixels, Point, Stroke, Text};

pub(super) fn write(picture: &Picture) -> String {
    let (width, height) = (number(picture.width), number(picture.height));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"DejaVu Sans, Verdana, sans-serif\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for mark in &picture.marks {
        text += &element(mark);
        text.push('\n');
    }
    text + "</svg>\n"
}

fn element(mark: &Mark) -> String {
    match mark {
        Mark::Line { points, stroke } => {
            // A line to itself with a round cap is a dot.
            let points = if points.len() == 1 { path(&[points[0], points[0]]) } else { path(points) };
            format!("<polyline points=\"{points}\" fill=\"none\" stroke-linecap=\"round\" {}/>", line(*stroke))
        }
        Mark::Area { points, fill, opacity } => {
            let opacity =
                if *opacity < 1.0 { format!(" fill-opacity=\"{}\"", number(*opacity)) } else { String::new() };
            format!("<polygon points=\"{}\" fill=\"{}\"{opacity}/>", path(points), hex(*fill))
        }
        Mark::Circle { centre: (x, y), radius, fill, stroke } => format!(
            "<circle cx=\"{}\" cy=\"{}\" r=\"{}\" fill=\"{}\" {}/>",
            number(*x),
            number(*y),
            number(*radius),
            filled(*fill),
            line(*stroke)
        ),
        Mark::Polygon { points, fill, stroke } => {
            format!("<polygon points=\"{}\" fill=\"{}\" {}/>", path(points), filled(*fill), line(*stroke))
        }
        Mark::Text(text) => words(text),
        Mark::Pixels { at, size, image } => pixels(*at, *size, image),
    }
}

fn words(text: &Text) -> String {
    let (x, y) = (number(text.at.0), number(text.at.1));
    let anchor = match text.anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let turn = if text.turned { format!(" transform=\"rotate(-90 {x} {y})\"") } else { String::new() };
    let (size, fill) = (number(text.size), hex(text.colour));
    format!(
        "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{fill}\"{turn}>{}</text>",
        escape(&text.text)
    )
}

fn pixels((x, y): Point, (width, height): Point, image: &Pixels) -> String {
    // Encoding into memory fails for no image of at least one pixel.
    let data = super::png::encode(image.columns, image.rows, &image.rgb).unwrap_or_default();
    format!(
        "<image x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" style=\"image-rendering:pixelated\" \
         href=\"data:image/png;base64,{}\"/>",
        number(x),
        number(y),
        number(width),
        number(height),
        STANDARD.encode(data)
    )
}

fn path(points: &[Point]) -> String {
    points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect::<Vec<_>>().join(" ")
}

fn line(stroke: Stroke) -> String {
    let mut text = format!("stroke=\"{}\" stroke-width=\"{}\"", hex(stroke.colour), number(stroke.width));
    if !stroke.dash.is_empty() {
        let lengths: Vec<String> = stroke.dash.iter().map(f32::to_string).collect();
        let _ = write!(text, " stroke-dasharray=\"{}\"", lengths.join(" "));
    }
    text
}

fn filled(fill: Option<Colour>) -> String {
    fill.map_or_else(|| "none".to_owned(), hex)
}

fn hex(Colour(red, green, blue): Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Hundredths of a point, without trailing zeros.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_elements() {
        let mut picture = Picture::new(20.0, 10.5);
        picture.line(
            vec![(0.0, 1.0), (2.004, -0.001)],
            Stroke { dash: &[1.5, 2.0], ..Stroke::solid(Colour(0, 114, 178), 1.0) },
        );
        picture.text((1.0, 2.0), Anchor::End, 9.0, super::super::BLACK, "a < b & c");
        let text = write(&picture);
        assert!(text.contains("viewBox=\"0 0 20 10.5\""), "{text}");
        assert!(text.contains("points=\"0,1 2,0\" fill=\"none\" stroke-linecap=\"round\" stroke=\"#0072b2\" stroke-width=\"1\" stroke-dasharray=\"1.5 2\""), "{text}");
        assert!(text.contains("text-anchor=\"end\" fill=\"#000000\">a &lt; b &amp; c</text>"), "{text}");
    }
}
