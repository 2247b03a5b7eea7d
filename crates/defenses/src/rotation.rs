//! Rotation by a random angle.

use candle_core::{DType, Result, Tensor};
use game::{Defense, Entry, Gradient, Key};
use gpu::kernels::{Parameters, Source};
use serde::{Deserialize, Serialize};

use crate::device::{Batch, Dims};
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};

const SOURCE: Source = crate::device::source!("rotation");

/// Rotates each image about its centre by an angle drawn uniformly from `[-degrees, degrees]`.
///
/// Positive angles turn anti-clockwise. The output has the input's size; each of its pixels is read from the input by
/// bilinear interpolation, with zeros outside: `kornia.augmentation.RandomRotation` with its defaults and
/// `align_corners=True`. Random rotation is the case study of Gao et al. 2022, section 4 (there +-90 degrees).
///
/// The derivative is exact: the transpose of the interpolation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    /// The largest angle, in degrees, at least 0.
    pub degrees: f64,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { degrees: 90.0 }
    }
}

impl Entry for Rotation {
    const ABOUT: &'static str = "rotation by a uniform angle, bilinear, zeros outside";

    fn check(&self) -> std::result::Result<(), String> {
        if self.degrees.is_finite() && self.degrees >= 0.0 {
            Ok(())
        } else {
            Err(format!("degrees = {} must be a finite number of at least 0", self.degrees))
        }
    }

    fn examples() -> Vec<Self> {
        vec![Self { degrees: 10.0 }, Self { degrees: 45.0 }, Self::default()]
    }
}

impl Rotation {
    /// The angle drawn by `key`, in degrees.
    fn angle(&self, key: Key) -> f64 {
        key.uniform(-self.degrees, self.degrees)
    }

    /// What a kernel makes of `from`.
    fn turn(&self, batch: &Batch<'_>, kernel: &str, from: &Tensor) -> Result<Tensor> {
        let mut call = batch.call();
        let to = batch.images(&call, batch.shape)?;
        let turns = batch.keys.iter().flat_map(|&key| <[f64; 2]>::from(self.angle(key).to_radians().sin_cos()));
        let turn = Turn {
            from: call.read(from, DType::F32)?,
            to: to.address,
            turns: call.upload(&turns.collect::<Vec<f64>>())?,
            shape: batch.shape.into(),
        };
        // SAFETY: there are a sine and a cosine for each image, and kernels read no pixel outside one.
        unsafe { call.launch(&SOURCE, kernel, batch.keys.len() * batch.shape.area(), &turn)? };
        Ok(to.tensor())
    }
}

/// As `Rotation` in rotation.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Turn {
    from: u64,
    to: u64,
    turns: u64,
    shape: Dims,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Turn {}

/// Calls `each` with every output pixel, an input pixel it reads, and the weight it reads it with, row by row.
fn taps(degrees: f64, shape: Shape, mut each: impl FnMut(usize, usize, f64)) {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (height, width) = (shape.height as isize, shape.width as isize);
    let (cy, cx) = ((height - 1) as f64 / 2.0, (width - 1) as f64 / 2.0);
    for i in 0..shape.height {
        for j in 0..shape.width {
            let (dy, dx) = (i as f64 - cy, j as f64 - cx);
            let (y, x) = (cy + sin * dx + cos * dy, cx + cos * dx - sin * dy);
            let (top, left) = (y.floor(), x.floor());
            let (fy, fx) = (y - top, x - left);
            let (top, left) = (top as isize, left as isize);
            for (row, by_row) in [(top, 1.0 - fy), (top + 1, fy)] {
                for (column, weight) in [(left, by_row * (1.0 - fx)), (left + 1, by_row * fx)] {
                    if (0..height).contains(&row) && (0..width).contains(&column) {
                        each(i * shape.width + j, (row * width + column) as usize, weight);
                    }
                }
            }
        }
    }
}

/// Adds to `out` the image `x` turned by `degrees`.
fn rotate<F: Pixel>(degrees: f64, shape: Shape, x: &[F], out: &mut [F]) {
    taps(degrees, shape, |to, from, weight| {
        let weight = F::from_f64(weight);
        for c in (0..shape.len()).step_by(shape.area()) {
            out[c + to] += weight * x[c + from];
        }
    });
}

/// Adds to `out` the transpose of [`rotate`] at `upstream`.
fn transpose<F: Pixel>(degrees: f64, shape: Shape, upstream: &[F], out: &mut [F]) {
    taps(degrees, shape, |to, from, weight| {
        let weight = F::from_f64(weight);
        for c in (0..shape.len()).step_by(shape.area()) {
            out[c + from] += weight * upstream[c + to];
        }
    });
}

impl Kernel for Rotation {
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut Canvas<'_, F>) {
        let out = out.rest();
        rotate(self.angle(key), shape, x, out);
    }

    fn backward<F: Pixel>(&self, _: &[F], shape: Shape, key: Key, upstream: &[F], out: &mut [F]) {
        transpose(self.angle(key), shape, upstream, out);
    }

    fn launch(&self, batch: &Batch<'_>) -> Result<Tensor> {
        self.turn(batch, "rotate", batch.x)
    }

    fn launch_back(&self, batch: &Batch<'_>, upstream: &Tensor) -> Result<Tensor> {
        self.turn(batch, "rotate_back", upstream)
    }
}

impl Defense for Rotation {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        channels: usize,
        height: usize,
        width: usize,
        degrees: f64,
        image: Vec<f64>,
        upstream: Vec<f64>,
        rotated: Vec<f64>,
        gradient: Vec<f64>,
    }

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }

    fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn values_and_gradients_are_kornias() {
        let golden: Golden = serde_json::from_str(include_str!("../tests/golden/rotation.json")).unwrap();
        for Case { channels, height, width, degrees, image, upstream, rotated, gradient } in golden.cases {
            let shape = Shape { channels, height, width };
            let mut out = vec![0.0; shape.len()];
            rotate(degrees, shape, &image, &mut out);
            let forward = largest_difference(&out, &rotated);
            out.fill(0.0);
            transpose(degrees, shape, &upstream, &mut out);
            let backward = largest_difference(&out, &gradient);
            assert!(forward < 1e-12 && backward < 1e-12, "{shape:?} {degrees}: {forward:e} {backward:e}");
        }
    }

    #[test]
    fn a_quarter_turn_is_anti_clockwise() {
        let (shape, mut out) = (Shape { channels: 1, height: 2, width: 2 }, [0.0; 4]);
        rotate(90.0, shape, &[1.0, 2.0, 3.0, 4.0], &mut out);
        assert!(largest_difference(&out, &[2.0, 4.0, 1.0, 3.0]) < 1e-12, "{out:?}");
    }

    #[test]
    fn angles_fill_their_range_and_stay_in_it() {
        for degrees in [22.5, 45.0, 90.0] {
            let rotation = Rotation { degrees };
            let n = 20_000;
            let angles: Vec<f64> = (0..n).map(|i| rotation.angle(Key::root(4).at(i)) / degrees).collect();
            let moment = |p: i32| angles.iter().map(|angle| angle.powi(p)).sum::<f64>() / n as f64;
            assert!(angles.iter().all(|angle| (-1.0..=1.0).contains(angle)));
            assert!(angles.iter().any(|&angle| angle > 0.999) && angles.iter().any(|&angle| angle < -0.999));
            // Uniform on [-1, 1]: mean 0, mean square 1/3, within five standard errors.
            assert!(moment(1).abs() < 5.0 * (1.0 / 3.0 / n as f64).sqrt());
            assert!((moment(2) - 1.0 / 3.0).abs() < 5.0 * (4.0 / 45.0 / n as f64).sqrt());
        }
    }
}
