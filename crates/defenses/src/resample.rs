//! Bilinear resampling along rows and columns.

use candle_core::{DType, Result, Tensor};
use game::vectorised;
use gpu::kernels::{Call, Parameters, Plain, Source};
use serde::{Deserialize, Serialize};

use crate::device::Dims;
use crate::kernel::{Pixel, Shape};

const SOURCE: Source = crate::device::source!("resample");

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

/// Evenly spaced points of an input axis, in pixels: output pixel `i` reads at
/// `(i + shift) * step * length / parts + start`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Points {
    pub shift: f64,
    pub step: f64,
    pub length: f64,
    pub parts: f64,
    pub start: f64,
}

impl Default for Points {
    fn default() -> Self {
        Self { shift: 0.0, step: 1.0, length: 1.0, parts: 1.0, start: 0.0 }
    }
}

impl Points {
    /// Those of an axis of `from` pixels resized to `to`.
    pub fn resize(sampling: Sampling, from: usize, to: usize) -> Self {
        let (scale, corners) = (from as f64 / to as f64, from.saturating_sub(1) as f64 / (to.max(2) - 1) as f64);
        match sampling {
            Sampling::HalfPixel => Self { shift: 0.5, step: scale, start: -0.5, ..Self::default() },
            Sampling::AlignCorners => Self { step: corners, ..Self::default() },
            Sampling::Asymmetric => Self { step: scale, ..Self::default() },
        }
    }

    fn at(self, i: usize) -> f64 {
        (i as f64 + self.shift) * self.step * self.length / self.parts + self.start
    }
}

/// What the pixels of an output axis read: two input pixels each, and the weight of the second.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    taps: Vec<(u32, u32, f64)>,
}

impl Axis {
    /// Reads at the first `len` points, clamped to an axis of `from` pixels.
    pub fn new(points: Points, len: usize, from: usize) -> Self {
        let last = from.saturating_sub(1);
        let tap = |i: usize| {
            let point = points.at(i).clamp(0.0, last as f64);
            let low = point as usize;
            (low as u32, (low + 1).min(last) as u32, point - low as f64)
        };
        Self { taps: (0..len).map(tap).collect() }
    }

    /// Resizes an axis.
    pub fn resize(sampling: Sampling, from: usize, to: usize) -> Self {
        Self::new(Points::resize(sampling, from, to), to, from)
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

/// How one image is read on a device, and where in the frame what is read stands.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    rows: Points,
    columns: Points,
    top: u32,
    left: u32,
    height: u32,
    width: u32,
}
// SAFETY: numbers of 8 bytes and then four of 4 leave no gap.
unsafe impl Plain for Reading {}

impl Reading {
    /// `size` points of rows and columns, put into the frame from `corner` on.
    pub fn new([rows, columns]: [Points; 2], size: [usize; 2], corner: Corner) -> Self {
        let [top, left, height, width] = [corner.top, corner.left, size[0], size[1]].map(|at| at as u32);
        Self { rows, columns, top, left, height, width }
    }

    /// What resizes an image of `shape` to a square, put into the frame from `corner` on.
    pub fn resize(shape: Shape, sampling: Sampling, side: usize, corner: Corner) -> Self {
        Self::new([shape.height, shape.width].map(|from| Points::resize(sampling, from, side)), [side; 2], corner)
    }
}

/// As `Resample` in resample.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Resample {
    from: u64,
    to: u64,
    readings: u64,
    taps: u64,
    most: u32,
    fill: f32,
    shape: Dims,
    frame: Dims,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Resample {}

/// [`sample`] of every image `(n, c, h, w)`, f32, on its device, into a frame that is `fill` elsewhere.
///
/// A reading must fit into the frame.
pub fn sample_at(x: &Tensor, shape: Shape, frame: Shape, readings: &[Reading], fill: f32) -> Result<Tensor> {
    resample_at("sample", x, [shape, frame], frame, readings, fill)
}

/// [`scatter`] of every gradient `(n, c, h', w')`, f32, on its device, of a frame.
pub fn gather_at(upstream: &Tensor, frame: Shape, shape: Shape, readings: &[Reading]) -> Result<Tensor> {
    resample_at("sample_back", upstream, [shape, frame], shape, readings, 0.0)
}

/// [`resize`] of every image.
pub fn resize_at(x: &Tensor, shape: Shape, sampling: Sampling, side: usize) -> Result<Tensor> {
    sample_at(x, shape, Shape { height: side, width: side, ..shape }, &all(x, shape, sampling, side)?, 0.0)
}

/// [`resize_back`] of every gradient.
pub fn resize_back_at(upstream: &Tensor, shape: Shape, sampling: Sampling, side: usize) -> Result<Tensor> {
    gather_at(upstream, Shape { height: side, width: side, ..shape }, shape, &all(upstream, shape, sampling, side)?)
}

fn all(x: &Tensor, shape: Shape, sampling: Sampling, side: usize) -> Result<Vec<Reading>> {
    Ok(vec![Reading::resize(shape, sampling, side, Corner { top: 0, left: 0 }); x.dim(0)?])
}

fn resample_at(
    kernel: &str,
    from: &Tensor,
    [shape, frame]: [Shape; 2],
    made: Shape,
    readings: &[Reading],
    fill: f32,
) -> Result<Tensor> {
    let (mut call, n, most) = (Call::new(from.device()), readings.len(), frame.height.max(frame.width));
    // Four words a tap.
    let taps = call.output(n * 2 * most * 4, DType::U32)?;
    let to = call.output((n, made.channels, made.height, made.width), DType::F32)?;
    let parameters = Resample {
        from: call.read(from, DType::F32)?,
        to: to.address,
        readings: call.upload(readings)?,
        taps: taps.address,
        most: most as u32,
        fill,
        shape: shape.into(),
        frame: frame.into(),
    };
    // SAFETY: there is a reading for each image, none larger than the frame, and taps are clamped to the image.
    unsafe {
        call.launch(&SOURCE, "taps", n * 2 * most, &parameters)?;
        call.launch(&SOURCE, kernel, n * made.len(), &parameters)?;
    }
    Ok(to.tensor())
}
