//! Bilinear resampling along rows and columns.

use game::vectorised;
use serde::{Deserialize, Serialize};

use crate::kernel::{Pixel, Shape};

/// Which point of the input a pixel of a resized image shows, along each axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// Centres at halves: `(i + 1/2) * from / to - 1/2`, clamped to the image (PyTorch's `align_corners=False`).
    #[default]
    HalfPixel,
    /// Corners on corners: `i * (from - 1) / (to - 1)` (PyTorch's `align_corners=True`, TensorFlow's `crop_and_resize`).
    AlignCorners,
    /// `i * from / to`, clamped (TensorFlow 1's `resize_images`).
    Asymmetric,
}

/// What the pixels of an output axis read: two input pixels each, and the weight of the second.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    taps: Vec<(u32, u32, f64)>,
}

impl Axis {
    /// Reads at `points`, in pixels, clamped to an axis of `from` pixels.
    pub fn new(points: impl IntoIterator<Item = f64>, from: usize) -> Self {
        let last = from.saturating_sub(1);
        let tap = |point: f64| {
            let point = point.clamp(0.0, last as f64);
            let low = point as usize;
            (low as u32, (low + 1).min(last) as u32, point - low as f64)
        };
        Self { taps: points.into_iter().map(tap).collect() }
    }

    /// Resizes an axis.
    pub fn resize(sampling: Sampling, from: usize, to: usize) -> Self {
        let (scale, corners) = (from as f64 / to as f64, from.saturating_sub(1) as f64 / (to.max(2) - 1) as f64);
        let point = |i: usize| match sampling {
            Sampling::HalfPixel => (i as f64 + 0.5) * scale - 0.5,
            Sampling::AlignCorners => i as f64 * corners,
            Sampling::Asymmetric => i as f64 * scale,
        };
        Self::new((0..to).map(point), from)
    }

    /// The number of output pixels.
    pub const fn len(&self) -> usize {
        self.taps.len()
    }
}

/// Where in an output a resampled image stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corner {
    pub top: usize,
    pub left: usize,
}

vectorised! {
    /// `out = (1 - weight) * a + weight * b`.
    fn mix<F: Pixel>(a: &[F], b: &[F], weight: F, out: &mut [F]) {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = a + (b - a) * weight;
        }
    }
}

/// Writes every channel of `x`, read along `rows` and `columns`, into `out` from `corner` on.
pub fn sample<F: Pixel>(
    x: &[F],
    shape: Shape,
    [rows, columns]: [&Axis; 2],
    out: &mut [F],
    frame: Shape,
    corner: Corner,
) {
    let mut row = vec![F::zero(); shape.width];
    let across: Vec<(usize, usize, F)> =
        columns.taps.iter().map(|&(low, high, weight)| (low as usize, high as usize, F::narrow(weight))).collect();
    for (x, out) in x.chunks_exact(shape.area()).zip(out.chunks_exact_mut(frame.area())) {
        for (i, &(low, high, weight)) in rows.taps.iter().enumerate() {
            let line = |i: u32| &x[i as usize * shape.width..][..shape.width];
            mix(line(low), line(high), F::narrow(weight), &mut row);
            let out = &mut out[(corner.top + i) * frame.width + corner.left..][..across.len()];
            for (out, &(low, high, weight)) in out.iter_mut().zip(&across) {
                *out = row[low] + (row[high] - row[low]) * weight;
            }
        }
    }
}

/// Adds to `out` the transpose of [`sample`] at `upstream`.
pub fn scatter<F: Pixel>(
    upstream: &[F],
    frame: Shape,
    corner: Corner,
    [rows, columns]: [&Axis; 2],
    out: &mut [F],
    shape: Shape,
) {
    let mut row = vec![F::zero(); shape.width];
    for (upstream, out) in upstream.chunks_exact(frame.area()).zip(out.chunks_exact_mut(shape.area())) {
        for (i, &(above, below, down)) in rows.taps.iter().enumerate() {
            row.fill(F::zero());
            let upstream = &upstream[(corner.top + i) * frame.width + corner.left..][..columns.len()];
            for (&upstream, &(low, high, weight)) in upstream.iter().zip(&columns.taps) {
                let weight = F::narrow(weight);
                row[low as usize] += (F::one() - weight) * upstream;
                row[high as usize] += weight * upstream;
            }
            for (line, weight) in [(above, 1.0 - down), (below, down)] {
                let weight = F::narrow(weight);
                for (out, &row) in out[line as usize * shape.width..].iter_mut().zip(&row) {
                    *out += weight * row;
                }
            }
        }
    }
}

/// Resizes every channel to a square.
pub fn resize<F: Pixel>(x: &[F], shape: Shape, sampling: Sampling, side: usize, out: &mut [F]) {
    let [rows, columns] = [shape.height, shape.width].map(|from| Axis::resize(sampling, from, side));
    let frame = Shape { height: side, width: side, ..shape };
    sample(x, shape, [&rows, &columns], out, frame, Corner { top: 0, left: 0 });
}

/// Adds to `out` the transpose of [`resize`] at `upstream`.
pub fn resize_back<F: Pixel>(upstream: &[F], shape: Shape, sampling: Sampling, side: usize, out: &mut [F]) {
    let [rows, columns] = [shape.height, shape.width].map(|from| Axis::resize(sampling, from, side));
    let frame = Shape { height: side, width: side, ..shape };
    scatter(upstream, frame, Corner { top: 0, left: 0 }, [&rows, &columns], out, shape);
}
