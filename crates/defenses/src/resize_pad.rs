//! Resizing to a random size, and padding at random.

use candle_core::{Result, Tensor};
use game::{Entry, Gradient, Key};
use serde::{Deserialize, Serialize};

use crate::crop::positive;
use crate::device::Batch;
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};
use crate::resample::{self, Axis, Corner, Reading, Sampling};

/// Resizes to a square of random size, puts it at random into a larger one, and resizes that if wanted.
///
/// The defense of Xie et al. 2018. The defaults are the code released with Gao et al. 2022: sides 224 to 255, padded to
/// 256 with zeros. Athalye et al. 2018 attacked sides 299 to 330, padded to 331 with 0.5 and resized back to 299 by the
/// network's wrapper: `smallest = 299, largest = 330, padded = 331, fill = 0.5, resize = 299`. Side and corner are drawn
/// uniformly among whole pixels; the corner stays below `padded - side`, as both codes draw it.
///
/// The derivative is exact by default: the transpose of the interpolations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResizePad {
    /// The smallest side, in pixels; at least 1.
    pub smallest: u64,
    /// The largest side, in pixels.
    pub largest: u64,
    /// The side after padding, in pixels; at least `largest`.
    pub padded: u64,
    /// The value of the padding, in `[0, 1]`.
    #[serde(deserialize_with = "game::number")]
    pub fill: f64,
    /// The side of the output, in pixels; 0 leaves the padded one.
    pub resize: u64,
    /// Where resizing reads.
    pub sampling: Sampling,
    /// How an attack differentiates it; the identity fits only if the output has the input's size.
    pub gradient: Gradient,
}

impl Default for ResizePad {
    fn default() -> Self {
        Self {
            smallest: 224,
            largest: 255,
            padded: 256,
            fill: 0.0,
            resize: 0,
            sampling: Sampling::HalfPixel,
            gradient: Gradient::Exact,
        }
    }
}

impl Entry for ResizePad {
    const ABOUT: &'static str = "resizing to a random size, padding at random";

    fn check(&self) -> std::result::Result<(), String> {
        positive("smallest", self.smallest)?;
        kernel::ordered(("smallest", self.smallest), ("largest", self.largest))?;
        kernel::ordered(("largest", self.largest), ("padded", self.padded))?;
        kernel::at_least("fill", self.fill, 0.0)?;
        game::within_pixels("fill", self.fill, &self.fill, 1.0)
    }

    fn examples() -> Vec<Self> {
        let small = Self { smallest: 4, largest: 8, padded: 10, ..Self::default() };
        vec![
            Self { fill: 0.5, sampling: Sampling::AlignCorners, ..small.clone() },
            Self { resize: 6, sampling: Sampling::Asymmetric, ..small.clone() },
            small,
        ]
    }
}

impl ResizePad {
    /// The side and the corner drawn by `key`.
    fn drawn(&self, key: Key) -> (usize, Corner) {
        let side = kernel::integer(key.at(0), self.smallest, self.largest.min(self.padded));
        let room = (self.padded as usize - side).max(1) as u64 - 1;
        (side, Corner { top: kernel::integer(key.at(1), 0, room), left: kernel::integer(key.at(2), 0, room) })
    }

    /// The axes that resize an image to `side`.
    fn axes(&self, shape: Shape, side: usize) -> [Axis; 2] {
        [shape.height, shape.width].map(|from| Axis::resize(self.sampling, from, side))
    }

    /// How each image is read.
    fn readings(&self, batch: &Batch<'_>) -> Vec<Reading> {
        let reading = |(side, corner)| Reading::resize(batch.shape, self.sampling, side, corner);
        batch.keys.iter().map(|&key| reading(self.drawn(key))).collect()
    }

    const fn frame(&self, shape: Shape) -> Shape {
        Shape { height: self.padded as usize, width: self.padded as usize, ..shape }
    }

    /// Resizes to `side` and pads.
    fn place<F: Pixel>(&self, x: &[F], shape: Shape, side: usize, corner: Corner, out: &mut [F]) {
        let [rows, columns] = self.axes(shape, side);
        out.fill(F::narrow(self.fill));
        resample::sample(x, shape, [&rows, &columns], out, self.frame(shape), corner);
    }
}

impl Kernel for ResizePad {
    fn output(&self, input: Shape) -> Result<Shape> {
        if input.area() == 0 || self.smallest == 0 || self.smallest > self.padded {
            candle_core::bail!("{self:?} cannot resize an image of {} x {} pixels", input.height, input.width)
        }
        let side = if self.resize == 0 { self.padded } else { self.resize } as usize;
        Ok(Shape { height: side, width: side, ..input })
    }

    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut Canvas<'_, F>) {
        let out = out.rest();
        let ((side, corner), frame) = (self.drawn(key), self.frame(shape));
        if self.resize == 0 {
            return self.place(x, shape, side, corner, out);
        }
        let mut padded = vec![F::zero(); frame.len()];
        self.place(x, shape, side, corner, &mut padded);
        resample::resize(&padded, frame, self.sampling, self.resize as usize, out);
    }

    fn backward<F: Pixel>(&self, _: &[F], shape: Shape, key: Key, upstream: &[F], out: &mut [F]) {
        let ((side, corner), frame) = (self.drawn(key), self.frame(shape));
        let [rows, columns] = self.axes(shape, side);
        if self.resize == 0 {
            return resample::scatter(upstream, frame, corner, [&rows, &columns], out, shape);
        }
        let mut padded = vec![F::zero(); frame.len()];
        resample::resize_back(upstream, frame, self.sampling, self.resize as usize, &mut padded);
        resample::scatter(&padded, frame, corner, [&rows, &columns], out, shape);
    }

    fn launch(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let (frame, readings) = (self.frame(batch.shape), self.readings(batch));
        let padded = resample::sample_at(batch.x, batch.shape, frame, &readings, self.fill as f32)?;
        if self.resize == 0 {
            return Ok(padded);
        }
        resample::resize_at(&padded, frame, self.sampling, self.resize as usize)
    }

    fn launch_back(&self, batch: &Batch<'_>, upstream: &Tensor) -> Result<Tensor> {
        let (frame, readings) = (self.frame(batch.shape), self.readings(batch));
        if self.resize == 0 {
            return resample::gather_at(upstream, frame, batch.shape, &readings);
        }
        let padded = resample::resize_back_at(upstream, frame, self.sampling, self.resize as usize)?;
        resample::gather_at(&padded, frame, batch.shape, &readings)
    }
}

kernel::defense!(ResizePad);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn values_and_gradients_are_pytorchs() {
        for case in golden::cases("resize-pad") {
            let param = |name: &str| case.params[name][0];
            let defense = ResizePad {
                padded: param("padded") as u64,
                fill: param("fill"),
                sampling: if param("corners") == 1.0 { Sampling::AlignCorners } else { Sampling::HalfPixel },
                ..ResizePad::default()
            };
            let (shape, side) = (case.shape(), param("side") as usize);
            let corner = Corner { top: case.params["corner"][0] as usize, left: case.params["corner"][1] as usize };
            let (mut out, mut back) = (vec![0.0; case.output.len()], vec![0.0; case.image.len()]);
            defense.place(&case.image, shape, side, corner, &mut out);
            golden::assert_close(&out, &case.output, 1e-12);
            let [rows, columns] = defense.axes(shape, side);
            let upstream = &case.upstream;
            resample::scatter(upstream, defense.frame(shape), corner, [&rows, &columns], &mut back, shape);
            golden::assert_close(&back, &case.gradient, 1e-12);
        }
    }

    #[test]
    fn sides_and_corners_fill_their_ranges() {
        let xie = ResizePad { smallest: 299, largest: 330, padded: 331, ..ResizePad::default() };
        let (mut sides, mut deepest) = ([0u32; 332], 0);
        for i in 0..16_000 {
            let (side, corner) = xie.drawn(Key::root(2).at(i));
            sides[side] += 1;
            assert!(corner.top < 331 - side && corner.left < 331 - side);
            deepest = deepest.max(corner.left);
        }
        assert!(sides[299..=330].iter().all(|&count| (f64::from(count) - 500.0).abs() < 5.0 * 22.0), "{sides:?}");
        assert_eq!((sides.iter().sum::<u32>(), deepest), (16_000, 31));
    }

    #[test]
    fn asymmetric_sampling_starts_at_the_first_pixel() {
        let (shape, mut out) = (Shape { channels: 1, height: 2, width: 2 }, [0.0f64; 16]);
        resample::resize(&[0.0, 1.0, 0.0, 1.0], shape, Sampling::Asymmetric, 4, &mut out);
        assert_eq!(out[..4], [0.0, 0.5, 1.0, 1.0]);
    }
}
