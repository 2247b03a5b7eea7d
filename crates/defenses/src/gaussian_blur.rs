//! Gaussian blur of random width.

use candle_core::{DType, Tensor};
use game::{Entry, Gradient, Key, vectorised};
use gpu::kernels::{Parameters, Source};
use serde::{Deserialize, Serialize};

use crate::device::{Batch, Dims};
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};

const SOURCE: Source = crate::device::source!("gaussian_blur");

/// Blurs with a Gaussian kernel whose size and standard deviation are drawn per image and axis.
///
/// BaRT's Gaussian blur (Raff et al. 2019) as Gao et al. 2022 released it, with `kornia.filters.gaussian_blur2d`: each
/// axis draws a whole number and takes it for its kernel size if odd, one more if even (sizes 3 to 13 are equally
/// likely), and a standard deviation, uniformly. Borders are reflected without repeating the edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianBlur {
    /// The smallest number drawn for a kernel size, in pixels; at least 1.
    pub kernel_min: u64,
    /// The largest number drawn for a kernel size, in pixels.
    pub kernel_max: u64,
    /// The smallest standard deviation, in pixels; above 0.
    pub sigma_min: f64,
    /// The largest standard deviation, in pixels.
    pub sigma_max: f64,
    /// How an attack differentiates it.
    pub gradient: Gradient,
}

impl Default for GaussianBlur {
    fn default() -> Self {
        Self { kernel_min: 2, kernel_max: 13, sigma_min: 0.1, sigma_max: 3.1, gradient: Gradient::Identity }
    }
}

impl Entry for GaussianBlur {
    const ABOUT: &'static str = "Gaussian blur of random size and width per axis";

    fn check(&self) -> Result<(), String> {
        check_sizes(self.kernel_min, self.kernel_max)?;
        if !(self.sigma_min > 0.0 && self.sigma_max.is_finite()) {
            return Err(format!("sigma_min = {} must be above 0 and sigma_max finite", self.sigma_min));
        }
        kernel::ordered(("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max))
    }

    fn examples() -> Vec<Self> {
        vec![Self { gradient: Gradient::Exact, ..Self::default() }, Self::default()]
    }
}

/// Refuses kernel sizes that no filter has.
pub fn check_sizes(kernel_min: u64, kernel_max: u64) -> Result<(), String> {
    kernel::ordered(("kernel_min", kernel_min), ("kernel_max", kernel_max))?;
    match (kernel_min, kernel_max) {
        (0, _) => Err("kernel_min = 0 must be at least 1".into()),
        (_, 256..) => Err(format!("kernel_max = {kernel_max} must be at most 255")),
        _ => Ok(()),
    }
}

/// An odd kernel size: a number drawn from `low..=high`, or one more.
pub fn odd(key: Key, low: u64, high: u64) -> usize {
    kernel::integer(key, low, high) | 1
}

impl GaussianBlur {
    /// The weights drawn by `key` for rows and for columns.
    fn drawn<F: Pixel>(&self, key: Key) -> [Vec<F>; 2] {
        [0, 1].map(|axis| {
            let size = odd(key.at(2 * axis), self.kernel_min, self.kernel_max);
            weights(size, key.at(2 * axis + 1).uniform(self.sigma_min, self.sigma_max))
        })
    }
}

/// A Gaussian of standard deviation `sigma` on `size` pixels, with sum 1.
fn weights<F: Pixel>(size: usize, sigma: f64) -> Vec<F> {
    let radius = (size / 2) as f64;
    let bell: Vec<f64> = (0..size).map(|i| (-(i as f64 - radius).powi(2) / (2.0 * sigma * sigma)).exp()).collect();
    let sum: f64 = bell.iter().sum();
    bell.into_iter().map(|weight| F::narrow(weight / sum)).collect()
}

/// The pixel of a row of `n` that stands at `i`, which may lie outside.
fn reflected(i: isize, n: usize) -> usize {
    let period = (2 * (n as isize - 1)).max(1);
    let i = i.rem_euclid(period);
    i.min(period - i).min(n as isize - 1) as usize
}

vectorised! {
    /// `out[j]` becomes the weighted sum of `padded[j..j + weights.len()]`.
    fn slide<F: Pixel>(padded: &[F], weights: &[F], out: &mut [F]) {
        const LANES: usize = 32;
        let n = out.len();
        for (block, out) in out.chunks_mut(LANES).enumerate() {
            let start = block * LANES;
            if start + LANES <= n {
                let mut sum = [F::zero(); LANES];
                for (k, &weight) in weights.iter().enumerate() {
                    let window = &padded[start + k..start + k + LANES];
                    for lane in 0..LANES {
                        sum[lane] += weight * window[lane];
                    }
                }
                out.copy_from_slice(&sum);
            } else {
                for (j, out) in out.iter_mut().enumerate() {
                    let window = &padded[start + j..start + j + weights.len()];
                    *out = F::zero();
                    for (&weight, &value) in weights.iter().zip(window) {
                        *out += weight * value;
                    }
                }
            }
        }
    }
}

vectorised! {
    /// Adds to `out` the rows named, each of `out.len()` elements, by their weights.
    fn blend<F: Pixel>(plane: &[F], rows: &[usize], weights: &[F], out: &mut [F]) {
        const LANES: usize = 32;
        let width = out.len();
        for (block, out) in out.chunks_mut(LANES).enumerate() {
            let (start, n) = (block * LANES, out.len());
            let mut sum = [F::zero(); LANES];
            for (&row, &weight) in rows.iter().zip(weights) {
                let values = &plane[row * width + start..][..n];
                if let Ok(values) = <&[F; LANES]>::try_from(values) {
                    for lane in 0..LANES {
                        sum[lane] += weight * values[lane];
                    }
                } else {
                    for (sum, &value) in sum.iter_mut().zip(values) {
                        *sum += weight * value;
                    }
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sum) {
                *out += sum;
            }
        }
    }
}

/// Blurs every channel.
fn blur<F: Pixel>([down, across]: &[Vec<F>; 2], x: &[F], shape: Shape, out: &mut [F]) {
    let Shape { height, width, .. } = shape;
    let (above, left) = (down.len() / 2, across.len() / 2);
    let border: Vec<usize> = (0..width + 2 * left).map(|j| reflected(j as isize - left as isize, width)).collect();
    let mut padded = vec![F::zero(); width + 2 * left];
    let mut rows = vec![0; down.len()];
    for (x, out) in x.chunks_exact(shape.area()).zip(out.chunks_exact_mut(shape.area())) {
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            for (k, row) in rows.iter_mut().enumerate() {
                *row = reflected(i as isize + k as isize - above as isize, height);
            }
            let inside = &mut padded[left..left + width];
            inside.fill(F::zero());
            blend(x, &rows, down, inside);
            for j in (0..left).chain(left + width..width + 2 * left) {
                padded[j] = padded[left + border[j]];
            }
            slide(&padded, across, out);
        }
    }
}

/// The transpose of [`blur`]: kernels are symmetric, so only the reflections turn round.
fn transpose<F: Pixel>([down, across]: &[Vec<F>; 2], upstream: &[F], shape: Shape, out: &mut [F]) {
    let Shape { height, width, .. } = shape;
    let (above, left) = (down.len() / 2, across.len() / 2);
    // A row with zeros for twice the border on both sides slides to one with a border, which is folded back.
    let mut wide = vec![F::zero(); width + 4 * left];
    let mut padded = vec![F::zero(); width + 2 * left];
    for (upstream, out) in upstream.chunks_exact(shape.area()).zip(out.chunks_exact_mut(shape.area())) {
        for (i, upstream) in upstream.chunks_exact(width).enumerate() {
            wide[2 * left..2 * left + width].copy_from_slice(upstream);
            slide(&wide, across, &mut padded);
            for j in (0..left).chain(left + width..width + 2 * left) {
                let value = padded[j];
                padded[left + reflected(j as isize - left as isize, width)] += value;
            }
            for (k, &weight) in down.iter().enumerate() {
                let row = reflected(i as isize + k as isize - above as isize, height);
                blend(&padded[left..left + width], &[0], &[weight], &mut out[row * width..][..width]);
            }
        }
    }
}

impl Kernel for GaussianBlur {
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut Canvas<'_, F>) {
        let out = out.rest();
        blur(&self.drawn(key), x, shape, out);
    }

    fn backward<F: Pixel>(&self, _: &[F], shape: Shape, key: Key, upstream: &[F], out: &mut [F]) {
        transpose(&self.drawn(key), upstream, shape, out);
    }

    fn launch(&self, batch: &Batch<'_>) -> candle_core::Result<Tensor> {
        self.smear(batch, "blur", batch.x, [0, 1])
    }

    fn launch_back(&self, batch: &Batch<'_>, upstream: &Tensor) -> candle_core::Result<Tensor> {
        self.smear(batch, "blur_back", upstream, [1, 0])
    }
}

/// As `Blur` in gaussian_blur.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Smear {
    from: u64,
    to: u64,
    weights: u64,
    sizes: u64,
    most: u32,
    axis: u32,
    shape: Dims,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Smear {}

impl GaussianBlur {
    /// What a kernel makes of `from`, along one axis after the other.
    fn smear(
        &self,
        batch: &Batch<'_>,
        kernel: &str,
        from: &Tensor,
        [first, second]: [u32; 2],
    ) -> candle_core::Result<Tensor> {
        let mut call = batch.call();
        let (half, to) = (batch.images(&call, batch.shape)?, batch.images(&call, batch.shape)?);
        let drawn: Vec<Vec<f32>> = batch.keys.iter().flat_map(|&key| self.drawn(key)).collect();
        let most = drawn.iter().map(Vec::len).max().unwrap_or(0);
        let mut weights = vec![0.0; drawn.len() * most];
        for (place, drawn) in weights.chunks_mut(most.max(1)).zip(&drawn) {
            place[..drawn.len()].copy_from_slice(drawn);
        }
        let once = Smear {
            from: call.read(from, DType::F32)?,
            to: half.address,
            weights: call.upload(&weights)?,
            sizes: call.upload(&drawn.iter().map(|drawn| drawn.len() as u32).collect::<Vec<_>>())?,
            most: most as u32,
            axis: first,
            shape: batch.shape.into(),
        };
        let again = Smear { from: half.address, to: to.address, axis: second, ..once };
        // SAFETY: there are weights for both axes of each image, and kernels read no pixel outside one.
        unsafe {
            call.launch(&SOURCE, kernel, batch.len(batch.shape), &once)?;
            call.launch(&SOURCE, kernel, batch.len(batch.shape), &again)?;
        }
        Ok(to.tensor())
    }
}

kernel::defense!(GaussianBlur);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn values_and_gradients_are_kornias() {
        for case in golden::cases("gaussian-blur") {
            let kernels = [0, 1].map(|axis| weights(case.params["kernel"][axis] as usize, case.params["sigma"][axis]));
            let mut out = vec![0.0; case.output.len()];
            blur(&kernels, &case.image, case.shape(), &mut out);
            golden::assert_close(&out, &case.output, 1e-12);
            let mut back = vec![0.0; case.image.len()];
            transpose(&kernels, &case.upstream, case.shape(), &mut back);
            golden::assert_close(&back, &case.gradient, 1e-12);
        }
    }

    #[test]
    fn sizes_are_odd_and_equally_likely_and_widths_fill_their_range() {
        let (blur, n) = (GaussianBlur::default(), 12_000);
        let (mut counts, mut low, mut high) = ([0u32; 16], f64::MAX, f64::MIN);
        for i in 0..n {
            let key = Key::root(1).at(i);
            for (axis, kernel) in blur.drawn::<f64>(key).iter().enumerate() {
                counts[kernel.len()] += 1;
                let (centre, next) = (kernel[kernel.len() / 2], kernel[kernel.len() / 2 + 1]);
                let sigma = (0.5 / (centre / next).ln()).sqrt();
                if next > 0.0 {
                    (low, high) = (low.min(sigma), high.max(sigma));
                }
                assert!((kernel.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{axis}");
            }
        }
        for (size, &count) in counts.iter().enumerate() {
            let expected = if size % 2 == 1 && (3..=13).contains(&size) { 4_000.0 } else { 0.0 };
            assert!((f64::from(count) - expected).abs() <= 5.0 * 58.0, "{counts:?}");
        }
        assert!((0.1..0.11).contains(&low) && (3.09..3.1).contains(&high), "{low} {high}");
    }

    #[test]
    fn reflection_does_not_repeat_the_edge_and_goes_on_for_ever() {
        let row: Vec<usize> = (-4..8).map(|i| reflected(i, 3)).collect();
        assert_eq!(row, [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]);
        assert_eq!((reflected(-3, 1), reflected(4, 1)), (0, 0));
    }
}
