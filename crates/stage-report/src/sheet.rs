//! A contact sheet: small pictures with a line of text below each.

use crate::draw::{Anchor, BLACK, Picture, Pixels, SMALL, wrap};

/// Side of a picture, and the space around it, in points.
const SIDE: f64 = 64.0;
const GAP: f64 = 8.0;
/// Pictures in a row.
const COLUMNS: usize = 10;

/// A picture of a contact sheet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnail {
    /// Rows of pixels.
    pub rows: u32,
    /// Columns of pixels.
    pub columns: u32,
    /// 8-bit RGB, row by row.
    pub rgb: Vec<u8>,
    /// What stands below it; what does not fit is cut off.
    pub caption: String,
}

/// Pictures side by side, ten in a row, as PNG.
///
/// # Errors
/// If the sheet cannot be drawn.
pub fn contact_sheet(pictures: Vec<Thumbnail>) -> anyhow::Result<Vec<u8>> {
    let columns = pictures.len().clamp(1, COLUMNS);
    let rows = pictures.len().div_ceil(columns).max(1);
    let (step, line) = (SIDE + GAP, SIDE + GAP + 1.5 * SMALL);
    let mut sheet = Picture::new(GAP + columns as f64 * step, GAP + rows as f64 * line);
    for (at, picture) in pictures.into_iter().enumerate() {
        let (left, top) = (GAP + (at % columns) as f64 * step, GAP + (at / columns) as f64 * line);
        let longer = f64::from(picture.rows.max(picture.columns).max(1));
        let size = (SIDE * f64::from(picture.columns) / longer, SIDE * f64::from(picture.rows) / longer);
        let image = Pixels { columns: picture.columns, rows: picture.rows, rgb: picture.rgb };
        sheet.pixels((left + (SIDE - size.0) / 2.0, top + (SIDE - size.1) / 2.0), size, image);
        let caption = wrap(&picture.caption, SMALL, SIDE).into_iter().next().unwrap_or_default();
        sheet.text((left + SIDE / 2.0, top + SIDE + 1.2 * SMALL), Anchor::Middle, SMALL, BLACK, caption);
    }
    sheet.png()
}
