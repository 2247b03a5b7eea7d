//! Random crops: of whole pixels, and between pixels.

use candle_core::{DType, Result, Tensor, bail};
use game::{Defense, Entry, Gradient, Key};
use gpu::kernels::{Parameters, Source};
use serde::{Deserialize, Serialize};

use crate::device::{Batch, Dims};
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};
use crate::resample::{self, Axis, Corner, Points, Reading};

const SOURCE: Source = crate::device::source!("crop");

/// Cuts a square of whole pixels from a place drawn uniformly.
///
/// The crop of the code released with Gao et al. 2022: 128 of 224 pixels. The derivative is exact, zero outside the
/// square.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Crop {
    /// The side of the square, in pixels; at least 1 and at most the image's sides.
    pub size: u64,
}

impl Default for Crop {
    fn default() -> Self {
        Self { size: 128 }
    }
}

impl Entry for Crop {
    const ABOUT: &'static str = "random crop of whole pixels";

    fn check(&self) -> std::result::Result<(), String> {
        positive("size", self.size)
    }

    fn examples() -> Vec<Self> {
        vec![Self { size: 2 }, Self { size: 4 }]
    }
}

/// Refuses an empty square.
pub fn positive(name: &str, size: u64) -> std::result::Result<(), String> {
    if size > 0 { Ok(()) } else { Err(format!("{name} = 0 must be at least 1")) }
}

/// The side of a square, if the image holds it.
fn side(size: u64, input: Shape) -> Result<usize> {
    let side = usize::try_from(size).unwrap_or(usize::MAX);
    if side == 0 || side > input.height.min(input.width) {
        bail!("an image of {} x {} pixels has no crop of size = {size}", input.height, input.width)
    }
    Ok(side)
}

/// As `Crop` in crop.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Cut {
    from: u64,
    to: u64,
    corners: u64,
    whole: Dims,
    square: Dims,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Cut {}

impl Crop {
    /// The row and column of the corner drawn by `key`.
    fn corner(&self, shape: Shape, key: Key) -> [usize; 2] {
        let room = |side: usize| (side - self.size as usize) as u64;
        [kernel::integer(key.at(0), 0, room(shape.height)), kernel::integer(key.at(1), 0, room(shape.width))]
    }

    /// Calls `each` with the first pixel in the image and in the square of every row drawn by `key`.
    fn rows(&self, shape: Shape, key: Key, mut each: impl FnMut(usize, usize, usize)) {
        let size = self.size as usize;
        let [top, left] = self.corner(shape, key);
        for c in 0..shape.channels {
            for i in 0..size {
                each(c * shape.area() + (top + i) * shape.width + left, (c * size + i) * size, size);
            }
        }
    }
}

impl Kernel for Crop {
    fn output(&self, input: Shape) -> Result<Shape> {
        let side = side(self.size, input)?;
        Ok(Shape { height: side, width: side, ..input })
    }

    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut Canvas<'_, F>) {
        let out = out.rest();
        self.rows(shape, key, |from, to, n| out[to..to + n].copy_from_slice(&x[from..from + n]));
    }

    fn backward<F: Pixel>(&self, _: &[F], shape: Shape, key: Key, upstream: &[F], out: &mut [F]) {
        self.rows(shape, key, |to, from, n| out[to..to + n].copy_from_slice(&upstream[from..from + n]));
    }

    fn launch(&self, batch: &Batch<'_>) -> Result<Tensor> {
        self.cut(batch, "crop", batch.x, batch.output)
    }

    fn launch_back(&self, batch: &Batch<'_>, upstream: &Tensor) -> Result<Tensor> {
        self.cut(batch, "crop_back", upstream, batch.shape)
    }
}

impl Crop {
    /// What a kernel makes of `from`: images of this shape.
    fn cut(&self, batch: &Batch<'_>, kernel: &str, from: &Tensor, shape: Shape) -> Result<Tensor> {
        let mut call = batch.call();
        let to = batch.images(&call, shape)?;
        let corners = batch.keys.iter().flat_map(|&key| self.corner(batch.shape, key)).map(|at| at as u32);
        let cut = Cut {
            from: call.read(from, DType::F32)?,
            to: to.address,
            corners: call.upload(&corners.collect::<Vec<u32>>())?,
            whole: batch.shape.into(),
            square: batch.output.into(),
        };
        // SAFETY: images, squares and corners are one for each key, and squares are inside the images.
        unsafe { call.launch(&SOURCE, kernel, batch.len(shape), &cut)? };
        Ok(to.tensor())
    }
}

impl Defense for Crop {
    fn apply(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        kernel::forward(self, x, keys)
    }

    fn gradient(&self) -> Gradient {
        Gradient::Exact
    }

    fn exact_pullback(&self, x: &Tensor, keys: &[Key], upstream: &Tensor) -> Result<Tensor> {
        kernel::backward(self, x, keys, upstream)
    }
}

/// Cuts a square from between the pixels, by bilinear interpolation.
///
/// The crop of Guo et al. 2018 as Athalye et al. 2018 attacked it, with TensorFlow's `crop_and_resize`: the corner is
/// uniform in `[0, 1 - size / side]` of each axis, and `size` points reach from there over `size / side` of the distance
/// between the first pixel and the last, both ends included (so they stand a little more than a pixel apart). With
/// `resize` the square is then resized as TensorFlow 1's `resize_images` does, as the attacked network's wrapper did.
///
/// The derivative is exact by default: the transpose of the interpolation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CropResize {
    /// The side of the square, in pixels; at least 1 and at most the image's sides.
    pub size: u64,
    /// The side to which the square is resized, in pixels; 0 leaves it.
    pub resize: u64,
    /// How an attack differentiates it; the identity fits only if the output has the input's size.
    pub gradient: Gradient,
}

impl Default for CropResize {
    fn default() -> Self {
        Self { size: 90, resize: 0, gradient: Gradient::Exact }
    }
}

impl Entry for CropResize {
    const ABOUT: &'static str = "random crop between the pixels, bilinear, resized if wanted";

    fn check(&self) -> std::result::Result<(), String> {
        positive("size", self.size)
    }

    fn examples() -> Vec<Self> {
        vec![
            Self { size: 2, ..Self::default() },
            Self { size: 3, resize: 7, ..Self::default() },
            Self { size: 1, resize: 1, ..Self::default() },
        ]
    }
}

/// The points read by a crop of `size` of `side` pixels whose corner is at `start` of the axis.
fn points(start: f64, size: usize, side: usize) -> Points {
    let last = (side - 1) as f64;
    let share = size as f64 / side as f64;
    match size {
        1 => Points { start: (start + share / 2.0) * last, step: 0.0, ..Points::default() },
        _ => Points { step: share, length: last, parts: (size - 1) as f64, start: start * last, ..Points::default() },
    }
}

impl CropResize {
    /// The points of the crop drawn by `key`, of rows and of columns.
    fn points(&self, shape: Shape, key: Key) -> [Points; 2] {
        let size = self.size as usize;
        [(0, shape.height), (1, shape.width)].map(|(axis, side)| {
            let start = key.at(axis).uniform(0.0, (side - size) as f64 / side as f64);
            points(start, size, side)
        })
    }

    /// The axes of the crop drawn by `key`.
    fn drawn(&self, shape: Shape, key: Key) -> [Axis; 2] {
        let [rows, columns] = self.points(shape, key);
        [Axis::new(rows, self.size as usize, shape.height), Axis::new(columns, self.size as usize, shape.width)]
    }

    /// How each image is read.
    fn readings(&self, batch: &Batch<'_>) -> Vec<Reading> {
        let (square, keys) = (self.square(batch.shape), batch.keys.iter());
        keys.map(|&key| Reading::new(self.points(batch.shape, key), [square.height, square.width], ORIGIN)).collect()
    }

    /// The crop's shape.
    const fn square(&self, shape: Shape) -> Shape {
        Shape { height: self.size as usize, width: self.size as usize, ..shape }
    }
}

const ORIGIN: Corner = Corner { top: 0, left: 0 };

impl Kernel for CropResize {
    fn output(&self, input: Shape) -> Result<Shape> {
        let side = side(self.size, input)?;
        let side = if self.resize == 0 { side } else { self.resize as usize };
        Ok(Shape { height: side, width: side, ..input })
    }

    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut Canvas<'_, F>) {
        let out = out.rest();
        let ([rows, columns], square) = (self.drawn(shape, key), self.square(shape));
        if self.resize == 0 {
            return resample::sample(x, shape, [&rows, &columns], out, square, ORIGIN);
        }
        let mut crop = vec![F::zero(); square.len()];
        resample::sample(x, shape, [&rows, &columns], &mut crop, square, ORIGIN);
        resample::resize(&crop, square, resample::Sampling::Asymmetric, self.resize as usize, out);
    }

    fn backward<F: Pixel>(&self, _: &[F], shape: Shape, key: Key, upstream: &[F], out: &mut [F]) {
        let ([rows, columns], square) = (self.drawn(shape, key), self.square(shape));
        if self.resize == 0 {
            return resample::scatter(upstream, square, ORIGIN, [&rows, &columns], out, shape);
        }
        let mut crop = vec![F::zero(); square.len()];
        resample::resize_back(upstream, square, resample::Sampling::Asymmetric, self.resize as usize, &mut crop);
        resample::scatter(&crop, square, ORIGIN, [&rows, &columns], out, shape);
    }

    fn launch(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let (square, readings) = (self.square(batch.shape), self.readings(batch));
        let crop = resample::sample_at(batch.x, batch.shape, square, &readings, 0.0)?;
        if self.resize == 0 {
            return Ok(crop);
        }
        resample::resize_at(&crop, square, resample::Sampling::Asymmetric, self.resize as usize)
    }

    fn launch_back(&self, batch: &Batch<'_>, upstream: &Tensor) -> Result<Tensor> {
        let (square, readings) = (self.square(batch.shape), self.readings(batch));
        if self.resize == 0 {
            return resample::gather_at(upstream, square, batch.shape, &readings);
        }
        let crop = resample::resize_back_at(upstream, square, resample::Sampling::Asymmetric, self.resize as usize)?;
        resample::gather_at(&crop, square, batch.shape, &readings)
    }
}

kernel::defense!(CropResize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn sub_pixel_crops_are_grid_samples() {
        for case in golden::cases("crop-resize") {
            let (shape, size) = (case.shape(), case.params["size"][0] as usize);
            let [rows, columns] = [(0, shape.height), (1, shape.width)]
                .map(|(axis, side)| Axis::new(points(case.params["start"][axis], size, side), size, side));
            let square = Shape { height: size, width: size, ..shape };
            let (mut out, mut back) = (vec![0.0; case.output.len()], vec![0.0; case.image.len()]);
            resample::sample(&case.image, shape, [&rows, &columns], &mut out, square, ORIGIN);
            golden::assert_close(&out, &case.output, 1e-12);
            resample::scatter(&case.upstream, square, ORIGIN, [&rows, &columns], &mut back, shape);
            golden::assert_close(&back, &case.gradient, 1e-12);
        }
    }

    #[test]
    fn corners_reach_both_ends() {
        // An image that holds its own coordinates: the crop's first and last pixel tell its corner.
        let shape = Shape { channels: 1, height: 1, width: 30 };
        let shape = Shape { height: 30, ..shape };
        let x: Vec<f64> = (0..900).map(|i| (i % 30) as f64).collect();
        let (mut low, mut high, mut counts) = (f64::MAX, f64::MIN, [0u32; 11]);
        for draw in 0..11_000 {
            let key = Key::root(1).at(draw);
            let out = kernel::output(&Crop { size: 20 }, &x, shape, key);
            counts[out[0] as usize] += 1;
            let out = kernel::output(&CropResize { size: 20, ..CropResize::default() }, &x, shape, key);
            (low, high) = (low.min(out[0]), high.max(out[19]));
        }
        assert!(counts.iter().all(|&count| (f64::from(count) - 1_000.0).abs() < 5.0 * 30.2), "{counts:?}");
        assert!((0.0..0.01).contains(&low) && (28.99..=29.0).contains(&high), "{low} {high}");
    }

    #[test]
    fn an_image_too_small_is_refused() {
        let shape = Shape { channels: 3, height: 32, width: 128 };
        let error = Crop::default().output(shape).unwrap_err().to_string();
        assert!(error.contains("32 x 128") && error.contains("size = 128"), "{error}");
    }
}
