//! Operations on all of an image's numbers together: standardisation, k-winners-take-all, pruning.

use std::{
    cmp::Ordering,
    sync::{Arc, OnceLock},
};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, backend::BackendStorage, bail};
use game::Key;
use rayon::prelude::*;

use super::{Element, dispatch, norm::accumulate, owned, plain, read, tensor, view, zeros};

/// Added to a keep probability before the division.
pub(super) const PRUNE_EPS: f64 = 1e-8;

/// The numbers of one image `(c, h, w)`, above zero.
fn volume(x: &[usize]) -> Result<usize> {
    match x {
        [_, image @ ..] if image.len() == 3 && !image.contains(&0) => Ok(image.iter().product()),
        _ => bail!("an operation on whole images takes images (n, c, h, w), not {x:?}"),
    }
}

/// `(x - mean) / max(std, 1 / sqrt(c h w))` of each image of `(n, c, h, w)`: the mean and the population's standard
/// deviation over its `c h w` numbers, as TensorFlow's `per_image_standardization`.
///
/// # Errors
/// If the images have no four dimensions, or no pixels.
pub fn standardise(x: &Tensor) -> Result<Tensor> {
    volume(x.dims())?;
    if !x.device().is_cpu() {
        return plain::standardise(x);
    }
    x.contiguous()?.apply_op1(Standardise)
}

#[derive(Clone, Copy, Debug)]
struct Standardise;

/// The mean and the divisor of an image that is standardised, and whether the divisor is its deviation.
pub(crate) fn spread<T: Element>(x: &[T]) -> (f64, f64, bool) {
    let count = x.len() as f64;
    let mean = super::norm::sum(x) / count;
    let centre = T::of(mean);
    let deviation = (accumulate([x], |[x]| (x - centre) * (x - centre)) / count).sqrt();
    let least = 1.0 / count.sqrt();
    // Not `max`, so that NaN stays NaN.
    if deviation < least { (mean, least, false) } else { (mean, deviation, true) }
}

impl CustomOp1 for Standardise {
    fn name(&self) -> &'static str {
        "standardise"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let image = volume(layout.dims())?;
        dispatch!(x.dtype(), T => {
            let x: &[T] = view(x, layout)?;
            let mut out = zeros::<T>(x.len());
            out.par_chunks_mut(image).zip(x.par_chunks(image)).for_each(|(out, x)| {
                let (mean, divisor, _) = spread(x);
                let (mean, scale) = (T::of(mean), T::of(1.0 / divisor));
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = (x - mean) * scale);
            });
            Ok(owned(out, layout.shape()))
        })
    }

    fn bwd(&self, x: &Tensor, out: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let image = volume(x.dims())?;
        dispatch!(dy.dtype(), T => {
            let dx = read::<T, _>(x, |x| read::<T, _>(out, |out| read::<T, _>(dy, |dy| {
                let mut dx = zeros::<T>(dy.len());
                let images = x.par_chunks(image).zip(out.par_chunks(image)).zip(dy.par_chunks(image));
                dx.par_chunks_mut(image).zip(images).for_each(|(dx, ((x, out), dy))| {
                    let (_, divisor, varies) = spread(x);
                    let first = T::of(super::norm::sum(dy) / image as f64);
                    let second = accumulate([out, dy], |[out, dy]| out * dy) / image as f64;
                    let second = T::of(if varies { second } else { 0.0 });
                    let scale = T::of(1.0 / divisor);
                    dx.iter_mut().zip(out).zip(dy).for_each(|((dx, &out), &dy)| {
                        *dx = (dy - first - out * second) * scale;
                    });
                });
                dx
            })))???;
            tensor(dx, x.shape()).map(Some)
        })
    }
}

/// k-winners-take-all: of each image of `(n, c, h, w)` the `floor(share c h w)` (at least one) largest numbers stay, and
/// those that tie with the smallest of them; the others become 0. The gradient takes the winners for fixed.
///
/// # Errors
/// If the images have no four dimensions or no pixels, or the share is not in `(0, 1]`.
pub fn keep_largest(x: &Tensor, share: f64) -> Result<Tensor> {
    let winners = winners(share, volume(x.dims())?)?;
    if !x.device().is_cpu() {
        return plain::keep_largest(x, winners);
    }
    x.contiguous()?.apply_op1(KeepLargest { winners, thresholds: Arc::default() })
}

/// How many of an image's numbers win.
pub(crate) fn winners(share: f64, image: usize) -> Result<usize> {
    if !(share > 0.0 && share <= 1.0) {
        bail!("k-winners-take-all keeps a share in (0, 1], not {share}");
    }
    Ok(((share * image as f64) as usize).clamp(1, image))
}

/// The smallest of the `winners` largest numbers.
pub(crate) fn threshold<T: Element>(numbers: &[T], winners: usize) -> T {
    let mut ranks: Vec<T::Rank> = numbers.iter().map(|number| number.rank()).collect();
    let losers = ranks.len() - winners;
    T::of_rank(*ranks.select_nth_unstable(losers).1)
}

/// The smallest number that stays, per image.
pub(super) fn thresholds<T: Element>(x: &[T], image: usize, winners: usize) -> Vec<f64> {
    x.par_chunks(image).map(|x| threshold(x, winners).wide()).collect()
}

#[derive(Debug)]
struct KeepLargest {
    winners: usize,
    /// Found by the forward pass.
    thresholds: Arc<OnceLock<Vec<f64>>>,
}

/// `value` where `x` is not below `threshold`, else zero.
fn winning<T: Element>(x: T, value: T, threshold: T) -> T {
    if x.partial_cmp(&threshold) == Some(Ordering::Less) { T::zero() } else { value }
}

impl CustomOp1 for KeepLargest {
    fn name(&self) -> &'static str {
        "keep-largest"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let image = volume(layout.dims())?;
        dispatch!(x.dtype(), T => {
            let x: &[T] = view(x, layout)?;
            let thresholds = self.thresholds.get_or_init(|| thresholds(x, image, self.winners));
            let mut out = zeros::<T>(x.len());
            out.par_chunks_mut(image).zip(x.par_chunks(image)).zip(thresholds).for_each(|((out, x), &threshold)| {
                let threshold = T::of(threshold);
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = winning(x, x, threshold));
            });
            Ok(owned(out, layout.shape()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let image = volume(x.dims())?;
        let Some(thresholds) = self.thresholds.get() else {
            bail!("k-winners-take-all's backward pass before its forward")
        };
        dispatch!(dy.dtype(), T => {
            let dx = read::<T, _>(x, |x| read::<T, _>(dy, |dy| {
                let mut dx = zeros::<T>(dy.len());
                let images = x.par_chunks(image).zip(dy.par_chunks(image)).zip(thresholds);
                dx.par_chunks_mut(image).zip(images).for_each(|(dx, ((x, dy), &threshold))| {
                    let threshold = T::of(threshold);
                    dx.iter_mut().zip(x).zip(dy).for_each(|((dx, &x), &dy)| *dx = winning(x, dy, threshold));
                });
                dx
            }))??;
            tensor(dx, x.shape()).map(Some)
        })
    }
}

/// Stochastic activation pruning of images `(n, c, h, w)`: see [`Op::Prune`](crate::Op::Prune).
///
/// Value `v` of image `n`, in `(c, h, w)` row-major order, is kept where uniform number `v` of `keys[n]` is below its
/// keep probability.
///
/// # Errors
/// If the images have no four dimensions or no pixels, or there is not one key per image.
pub fn prune(x: &Tensor, samples: f64, keys: &[Key]) -> Result<Tensor> {
    volume(x.dims())?;
    if keys.len() != x.dim(0)? {
        bail!("{} keys for {} images", keys.len(), x.dim(0)?);
    }
    if !x.device().is_cpu() {
        return plain::prune(x, samples, keys);
    }
    x.contiguous()?.apply_op1(Prune { samples, keys: keys.into() })
}

/// The uniform numbers of all images, one after the other.
pub(super) fn uniform(keys: &[Key], image: usize) -> Vec<f32> {
    let mut uniform = vec![0.0; keys.len() * image];
    uniform.par_chunks_mut(image).zip(keys).for_each(|(uniform, key)| key.fill_uniform(uniform));
    uniform
}

#[derive(Debug)]
struct Prune {
    samples: f64,
    keys: Vec<Key>,
}

impl Prune {
    /// `(samples c h w / sum |x|, sum |x|)`; none where all numbers are zero.
    fn rate<T: Element>(&self, x: &[T]) -> Option<(f64, f64)> {
        let sum = accumulate([x], |[x]| x.abs());
        (sum != 0.0).then(|| (self.samples * x.len() as f64 / sum, sum))
    }

    /// The product of keep mask and quotient for one number: `1 / (q + 1e-8)` where it is kept; and `1 - q`.
    fn factor(magnitude: f64, rate: f64, uniform: f32) -> (f64, f64) {
        let dropped = (-rate * magnitude).exp();
        let keep = -(-rate * magnitude).exp_m1();
        // NaN is kept, and seen.
        let factor = if f64::from(uniform) >= keep { 0.0 } else { 1.0 / (keep + PRUNE_EPS) };
        (factor, dropped)
    }

    /// The output of one image.
    fn forward<T: Element>(&self, x: &[T], uniform: &[f32], out: &mut [T]) {
        let Some((rate, _)) = self.rate(x) else { return };
        for ((out, &x), &uniform) in out.iter_mut().zip(x).zip(uniform) {
            *out = T::of(x.wide() * Self::factor(x.wide().abs(), rate, uniform).0);
        }
    }

    /// The gradient of one image. With `a = |x|`, `S = sum a`, `z = rate a`, `q = 1 - exp(-z)` and the mask `m`:
    /// `y = m x / (q + 1e-8)`, so `x_j` acts directly, through `a_j` in its own `z`, and through `S` in every `z`.
    fn backward<T: Element>(&self, x: &[T], dy: &[T], uniform: &[f32], dx: &mut [T]) {
        let Some((rate, sum)) = self.rate(x) else { return };
        let mut shared = 0.0;
        let mut own = Vec::with_capacity(x.len());
        for ((&x, &dy), &uniform) in x.iter().zip(dy).zip(uniform) {
            let (x, dy) = (x.wide(), dy.wide());
            let (factor, dropped) = Self::factor(x.abs(), rate, uniform);
            // The gradient of z.
            let dz = -dy * x * factor * factor * dropped;
            shared += dz * x.abs();
            own.push((dy * factor, dz));
        }
        let shared = shared / sum;
        for ((dx, &x), (direct, dz)) in dx.iter_mut().zip(x).zip(own) {
            let x = x.wide();
            let sign = if x == 0.0 { 0.0 } else { x.signum() };
            *dx = T::of(direct + sign * rate * (dz - shared));
        }
    }
}

impl CustomOp1 for Prune {
    fn name(&self) -> &'static str {
        "prune"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let image = volume(layout.dims())?;
        dispatch!(x.dtype(), T => {
            let x: &[T] = view(x, layout)?;
            let mut out = zeros::<T>(x.len());
            let images = out.par_chunks_mut(image).zip(x.par_chunks(image)).zip(&self.keys);
            images.for_each_init(|| vec![0.0; image], |uniform, ((out, x), key)| {
                key.fill_uniform(uniform);
                self.forward(x, uniform, out);
            });
            Ok(owned(out, layout.shape()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let image = volume(x.dims())?;
        dispatch!(dy.dtype(), T => {
            let dx = read::<T, _>(x, |x| read::<T, _>(dy, |dy| {
                let mut dx = zeros::<T>(dy.len());
                let images = dx.par_chunks_mut(image).zip(x.par_chunks(image).zip(dy.par_chunks(image))).zip(&self.keys);
                images.for_each_init(|| vec![0.0; image], |uniform, ((dx, (x, dy)), key)| {
                    key.fill_uniform(uniform);
                    self.backward(x, dy, uniform, dx);
                });
                dx
            }))??;
            tensor(dx, x.shape()).map(Some)
        })
    }
}
