//! A picture as PNG.

use anyhow::{Context as _, Result};
use png::{BitDepth, ColorType, Compression, Encoder, PixelDimensions, Unit};
use tiny_skia::{
    FillRule, FilterQuality, LineCap, LineJoin, Paint, Path, PathBuilder, Pixmap, PixmapPaint, StrokeDash, Transform,
};

use super::{Anchor, Colour, Mark, Picture, Pixels, Point, Stroke, Text, font};

/// Pixels per point.
const SCALE: f32 = 2.0;
/// Points per inch as viewers read an SVG: 96 per inch.
const POINTS_PER_METRE: f32 = 96.0 / 0.0254;

pub(super) fn write(picture: &Picture) -> Result<Vec<u8>> {
    let pixels = |length: f64| (length as f32 * SCALE).ceil() as u32;
    let (width, height) = (pixels(picture.width), pixels(picture.height));
    let mut canvas = Pixmap::new(width, height).context("a picture of no size, or too large to draw")?;
    canvas.fill(tiny_skia::Color::WHITE);
    for mark in &picture.marks {
        draw(&mut canvas, mark);
    }
    let rgb: Vec<u8> = canvas.pixels().iter().flat_map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]).collect();
    encode(width, height, &rgb)
}

/// 8-bit RGB as PNG bytes.
pub(super) fn encode(width: u32, height: u32, rgb: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Balanced);
    let density = (SCALE * POINTS_PER_METRE).round() as u32;
    encoder.set_pixel_dims(Some(PixelDimensions { xppu: density, yppu: density, unit: Unit::Meter }));
    encoder.write_header()?.write_image_data(rgb)?;
    Ok(bytes)
}

fn draw(canvas: &mut Pixmap, mark: &Mark) {
    match mark {
        Mark::Line { points, stroke } => {
            let points = if points.len() == 1 { &[points[0], (points[0].0 + 0.01, points[0].1)] } else { &points[..] };
            line(canvas, path(points, false), *stroke);
        }
        Mark::Area { points, fill, opacity } => area(canvas, path(points, true), *fill, *opacity),
        Mark::Polygon { points, fill, stroke } => {
            if let Some(fill) = fill {
                area(canvas, path(points, true), *fill, 1.0);
            }
            line(canvas, path(points, true), *stroke);
        }
        Mark::Circle { centre, radius, fill, stroke } => {
            let circle = || PathBuilder::from_circle(centre.0 as f32, centre.1 as f32, *radius as f32);
            if let Some(fill) = fill {
                area(canvas, circle(), *fill, 1.0);
            }
            line(canvas, circle(), *stroke);
        }
        Mark::Text(text) => words(canvas, text),
        Mark::Pixels { at, size, image } => pixels(canvas, *at, *size, image),
    }
}

fn path(points: &[Point], closed: bool) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (i, &(x, y)) in points.iter().enumerate() {
        if i == 0 { path.move_to(x as f32, y as f32) } else { path.line_to(x as f32, y as f32) }
    }
    if closed {
        path.close();
    }
    path.finish()
}

fn paint(Colour(red, green, blue): Colour, opacity: f64) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(red, green, blue, (255.0 * opacity).round() as u8);
    paint
}

fn page() -> Transform {
    Transform::from_scale(SCALE, SCALE)
}

fn area(canvas: &mut Pixmap, path: Option<Path>, fill: Colour, opacity: f64) {
    if let Some(path) = path {
        canvas.fill_path(&path, &paint(fill, opacity), FillRule::Winding, page(), None);
    }
}

fn line(canvas: &mut Pixmap, path: Option<Path>, stroke: Stroke) {
    let dash = if stroke.dash.is_empty() { None } else { even(stroke.dash) };
    let pen = tiny_skia::Stroke {
        width: stroke.width as f32,
        line_cap: LineCap::Round,
        line_join: LineJoin::Miter,
        dash,
        ..tiny_skia::Stroke::default()
    };
    if let Some(path) = path {
        canvas.stroke_path(&path, &paint(stroke.colour, 1.0), &pen, page(), None);
    }
}

fn even(dash: &[f32]) -> Option<StrokeDash> {
    StrokeDash::new(dash.to_vec(), 0.0)
}

fn words(canvas: &mut Pixmap, text: &Text) {
    let size = text.size as f32;
    let width = font::width(&text.text, 1.0) as f32;
    let shift = match text.anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => -width / 2.0,
        Anchor::End => -width,
    };
    let (x, y) = (text.at.0 as f32, text.at.1 as f32);
    // The sine and cosine of a quarter turn are exact here, unlike those of an angle in degrees.
    let turn = if text.turned { Transform::from_row(0.0, -1.0, 1.0, 0.0, 0.0, 0.0) } else { Transform::identity() };
    let place = page().pre_translate(x, y).pre_concat(turn).pre_scale(size, size).pre_translate(shift, 0.0);
    if let Some(outline) = font::outline(&text.text) {
        canvas.fill_path(&outline, &paint(text.colour, 1.0), FillRule::Winding, place, None);
    }
}

fn pixels(canvas: &mut Pixmap, at: Point, size: Point, image: &Pixels) {
    let Some(mut source) = Pixmap::new(image.columns, image.rows) else { return };
    for (to, from) in source.data_mut().chunks_exact_mut(4).zip(image.rgb.chunks_exact(3)) {
        to.copy_from_slice(&[from[0], from[1], from[2], 255]);
    }
    let stretch = (size.0 as f32 / image.columns as f32, size.1 as f32 / image.rows as f32);
    let place = page().pre_translate(at.0 as f32, at.1 as f32).pre_scale(stretch.0, stretch.1);
    let paint = PixmapPaint { quality: FilterQuality::Nearest, ..PixmapPaint::default() };
    canvas.draw_pixmap(0, 0, source.as_ref(), &paint, place, None);
}

#[cfg(test)]
mod tests {
    use super::{super::BLACK, *};

    fn decode(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info.width, info.height, pixels)
    }

    #[test]
    fn marks_are_where_they_belong() {
        let mut picture = Picture::new(40.0, 20.0);
        picture.block((0.0, 0.0), (10.0, 10.0), Colour(0, 114, 178));
        picture.pixels((10.0, 0.0), (20.0, 10.0), Pixels { columns: 2, rows: 1, rgb: vec![1, 2, 3, 250, 251, 252] });
        picture.line(vec![(0.0, 15.0), (30.0, 15.0)], Stroke::solid(BLACK, 2.0));
        let (width, height, rgb) = decode(&write(&picture).unwrap());
        let at = |x: usize, y: usize| &rgb[3 * (y * width as usize + x)..][..3];
        assert_eq!((width, height), (80, 40));
        assert_eq!((at(10, 10), at(21, 2), at(41, 18)), (&[0, 114, 178][..], &[1, 2, 3][..], &[250, 251, 252][..]));
        assert_eq!((at(20, 30), at(70, 30)), (&[0, 0, 0][..], &[255, 255, 255][..]));
    }

    #[test]
    fn text_has_ink_where_its_anchor_puts_it() {
        for (anchor, turned, left) in
            [(Anchor::Start, false, false), (Anchor::End, false, true), (Anchor::Middle, true, true)]
        {
            let mut picture = Picture::new(60.0, 60.0);
            let text = Text { at: (30.0, 30.0), anchor, size: 10.0, colour: BLACK, turned, text: "Hk0".to_owned() };
            picture.marks.push(Mark::Text(text));
            let (width, _, rgb) = decode(&write(&picture).unwrap());
            let dark = |pixel: &[u8]| pixel[0] < 128;
            let places: Vec<usize> =
                rgb.chunks(3).enumerate().filter(|(_, p)| dark(p)).map(|(i, _)| i % width as usize).collect();
            assert!(places.len() > 50, "{anchor:?}: {} dark pixels", places.len());
            assert!(places.iter().all(|&x| (x < 60) == left), "{anchor:?}: ink on the other side");
        }
    }
}
