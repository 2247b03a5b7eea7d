//! Perturbations as pictures, and numbers that say how they look.

use anyhow::Result;
use artifact::{AttackRow, ReportRow};
use game::Norm;
use serde_json::json;
use stage::Unfit;

use super::{
    EDGE, Perturbations, Sketch, blank,
    cosine::energies,
    lattice::Lattice,
    page,
    pivot::{Key, Request, key},
};
use crate::{
    Cell,
    document::unique,
    draw::{Anchor, BLACK, Pixels, Point, SMALL},
};

/// Of a picture.
const SIDE: f64 = 112.0;
/// From one number below a picture to the next.
const LINE: f64 = 10.5;
/// Below the pictures and numbers of one row.
const SIZE: Point = (SIDE, SIDE + 3.0 * LINE + 4.0);
/// Stands for the image's id among the axes down the side.
const IMAGE: &str = "image";

/// A picture of one image's perturbation, `(channels, side, side)` row-major.
struct Delta<'a> {
    cell: &'a Cell,
    row: &'a AttackRow,
    values: &'a [f32],
    /// The snapshot before, if there is one.
    before: Option<(u32, &'a [f32])>,
    /// Half the range of values that the picture's greys span.
    eps: f64,
    channels: usize,
    side: usize,
}

/// How a perturbation looks.
struct Looks {
    total_variation: f64,
    high_frequency_share: Option<f64>,
    sign_flip_rate: Option<f64>,
}

pub(super) fn draw(request: &Request<'_>, kind: &Perturbations) -> Result<Sketch> {
    let cells = request.cells();
    let images = match kind.images.as_slice() {
        [] => request.images(&cells)?,
        some => some.to_vec(),
    };
    if cells.is_empty() || images.is_empty() {
        let caption = "Nothing is drawn at this scale.".to_owned();
        return Ok(Sketch { picture: blank(&request.figure.title), caption, rows: Vec::new() });
    }
    // The image is one more axis down the side where there are several.
    let several = images.len() > 1;
    let mut axes: Vec<String> = several.then(|| IMAGE.to_owned()).into_iter().collect();
    axes.extend(kind.rows.clone());
    let sides = unique(cells.iter().map(|cell| key(*cell, &kind.rows)));
    let tops = unique(cells.iter().map(|cell| key(*cell, &kind.columns)));
    let places: Vec<(u32, &Key)> =
        images.iter().flat_map(|&image| sides.iter().map(move |side| (image, side))).collect();
    let labels = |&(image, side): &(u32, &Key)| {
        several.then(|| image.to_string()).into_iter().chain(side.iter().cloned()).collect::<Key>()
    };
    let mut lattice = Lattice::new((&axes, places.iter().map(labels).collect()), (&kind.columns, tops.clone()), SIZE);
    let (mut picture, top) = page(&request.figure.title, lattice.page().max(260.0));
    lattice.top = top;
    lattice.label(&mut picture);
    let mut rows = Vec::new();
    for (i, (image, side)) in places.iter().enumerate() {
        for (j, head) in tops.iter().enumerate() {
            let here = |cell: &&&Cell| key(**cell, &kind.rows) == **side && key(**cell, &kind.columns) == *head;
            let Some(cell) = request.single(cells.iter().filter(here).copied())? else { continue };
            let delta = Delta::find(request, cell, *image)?;
            let (looks, corner) = (delta.looks(), lattice.corner(i, j));
            picture.pixels(corner, (SIDE, SIDE), delta.pixels());
            for (line, text) in looks.texts().into_iter().enumerate() {
                let at = (corner.0 + SIDE / 2.0, corner.1 + SIDE + 2.0 + SMALL + LINE * line as f64);
                picture.text(at, Anchor::Middle, SMALL, BLACK, text);
            }
            rows.extend(delta.rows(&looks, request));
        }
    }
    picture.height = lattice.bottom() + EDGE / 2.0;
    let images: Vec<String> = images.iter().map(u32::to_string).collect();
    let caption = format!(
        "Perturbations of {} {}, 0.95 (d/(2e) + 0.5); TV, mean absolute difference of neighbours in units of 2e; high, \
         share of the energy in the higher half of the frequencies; flips, share of signs unlike the previous \
         snapshot's.",
        if several { "images" } else { "image" },
        images.join(", ")
    );
    Ok(Sketch { picture, caption, rows })
}

impl<'a> Delta<'a> {
    fn find(request: &Request<'a>, cell: &'a Cell, image: u32) -> Result<Self> {
        let folder = request.store.folder(&cell.attack)?;
        let name = &cell.attack;
        let mut snapshots: Vec<&AttackRow> =
            folder.rows.iter().filter(|row| row.id == image && row.phase == "after").collect();
        snapshots.sort_by_key(|row| row.step);
        let last = request.store.steps(cell)?.last().copied();
        let Some(at) = snapshots.iter().position(|row| Some(row.step) == last) else {
            return Err(Unfit(request.refuse(&format!("{name}: image {image} is not among its images")).0).into());
        };
        let row = snapshots[at];
        let Some(values) = row.delta.as_deref() else {
            let why = format!("{name}: no perturbations were kept; set `keep_delta = true` in the pipeline");
            return Err(Unfit(request.refuse(&why).0).into());
        };
        let before = at.checked_sub(1).map(|at| snapshots[at]);
        let Some((channels, side)) = shape(values.len()) else {
            let why = format!("{name}: {} values are no square image of 3 channels or of 1", values.len());
            return Err(Unfit(request.refuse(&why).0).into());
        };
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let eps = match folder.budget() {
            Some(budget) if budget.norm == Norm::Linf => budget.eps,
            _ => f64::from(largest).max(f64::MIN_POSITIVE),
        };
        let before = before.and_then(|row| Some((row.step, row.delta.as_deref()?)));
        Ok(Self { cell, row, values, before, eps, channels, side })
    }

    fn pixels(&self) -> Pixels {
        let shade = |value: f32| 0.95 * (f64::from(value) / (2.0 * self.eps) + 0.5);
        let byte = |value: f32| (255.0 * shade(value)).round().clamp(0.0, 255.0) as u8;
        let plane = self.side * self.side;
        let rgb =
            |pixel: usize| (0..3).map(move |channel| byte(self.values[channel.min(self.channels - 1) * plane + pixel]));
        Pixels { columns: self.side as u32, rows: self.side as u32, rgb: (0..plane).flat_map(rgb).collect() }
    }

    fn looks(&self) -> Looks {
        let channels = || self.values.chunks_exact(self.side * self.side);
        let (mut all, mut low) = (0.0, 0.0);
        for channel in channels() {
            let (of_all, of_low) = energies(channel, self.side, self.side);
            (all, low) = (all + of_all, low + of_low);
        }
        let flips = |before: &[f32]| {
            let sign = |v: f32| i8::from(v > 0.0) - i8::from(v < 0.0);
            let flips = self.values.iter().zip(before).filter(|(a, b)| sign(**a) != sign(**b)).count();
            flips as f64 / self.values.len() as f64
        };
        Looks {
            total_variation: channels().map(|channel| variation(channel, self.side)).sum::<f64>()
                / (self.channels as f64 * 2.0 * self.eps),
            high_frequency_share: (all > 0.0).then(|| (1.0 - low / all).max(0.0)),
            sign_flip_rate: self.before.map(|(_, before)| flips(before)),
        }
    }

    fn rows(&self, looks: &Looks, request: &Request<'_>) -> Vec<ReportRow> {
        let row = |quantity: &str, value: Option<f64>| {
            let step = self.before.filter(|_| quantity == "sign_flip_rate").map(|before| before.0);
            let more = [("image", json!(self.row.id)), ("step", json!(self.row.step)), ("previous_step", json!(step))];
            ReportRow { value, ..super::row(quantity, self.cell, request.params, more) }
        };
        vec![
            row("total_variation", Some(looks.total_variation)),
            row("high_frequency_share", looks.high_frequency_share),
            row("sign_flip_rate", looks.sign_flip_rate),
            row("linf", Some(self.row.linf)),
            row("l2", Some(self.row.l2)),
        ]
    }
}

impl Looks {
    fn texts(&self) -> [String; 3] {
        let percent = |share: Option<f64>| share.map_or_else(|| "–".to_owned(), |s| format!("{:.1}%", 100.0 * s));
        [
            format!("TV {:.3}", self.total_variation),
            format!("high {}", percent(self.high_frequency_share)),
            format!("flips {}", percent(self.sign_flip_rate)),
        ]
    }
}

/// Channels and side of an image with so many values.
fn shape(values: usize) -> Option<(usize, usize)> {
    let square = |channels: usize| {
        let side = (values / channels).isqrt();
        (side > 0 && channels * side * side == values).then_some((channels, side))
    };
    square(3).or_else(|| square(1))
}

/// The mean absolute difference of neighbours, to the right and below, of one channel.
fn variation(values: &[f32], side: usize) -> f64 {
    let difference = |a: usize, b: usize| (f64::from(values[a]) - f64::from(values[b])).abs();
    let places = || (0..side).flat_map(|i| (1..side).map(move |j| (i, j)));
    let right = places().map(|(i, j)| difference(i * side + j, i * side + j - 1));
    let below = places().map(|(i, j)| difference(j * side + i, (j - 1) * side + i));
    let count = 2 * side * (side - 1);
    if count == 0 { 0.0 } else { right.chain(below).sum::<f64>() / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_square() {
        assert_eq!(
            (shape(3 * 32 * 32), shape(28 * 28), shape(7), shape(0)),
            (Some((3, 32)), Some((1, 28)), None, None)
        );
    }

    #[test]
    fn variation_is_the_mean_step_to_a_neighbour() {
        // Two steps of 1 across, and down 2 and 2.
        assert_eq!(variation(&[0.0, 1.0, 2.0, 3.0], 2), (1.0 + 1.0 + 2.0 + 2.0) / 4.0);
        assert_eq!(variation(&[0.5], 1), 0.0);
    }
}
