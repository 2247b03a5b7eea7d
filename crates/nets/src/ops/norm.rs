//! Batch normalisation with the batch's own statistics.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor, backend::BackendStorage, bail};
use rayon::prelude::*;

use super::{Activation, Element, device, dispatch, owned, plain, read, tensor, view, zeros};

/// Numbers that one step of a sum adds side by side.
const LANES: usize = 16;

/// A batch's statistics per channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Mean over images and pixels.
    pub mean: Vec<f64>,
    /// Mean squared deviation from the mean: the biased variance.
    pub variance: Vec<f64>,
    /// Numbers per channel.
    pub count: usize,
}

/// A batch's statistics where they were computed.
#[derive(Clone, Debug)]
pub struct Moments {
    /// The channels' means, then their biased variances, in f64.
    pub(super) values: Tensor,
    /// Numbers per channel.
    pub(super) count: usize,
}

impl Moments {
    /// The statistics of several normalisations on one device, in a single copy to the host.
    ///
    /// # Errors
    /// If they are on several devices, or the device fails.
    pub fn statistics(all: &[Self]) -> Result<Vec<Statistics>> {
        if all.is_empty() {
            return Ok(vec![]);
        }
        let values: Vec<&Tensor> = all.iter().map(|moments| &moments.values).collect();
        let numbers = Tensor::cat(&values, 0)?.to_vec1::<f64>()?;
        let mut rest = &numbers[..];
        let of_one = |Self { values, count }: &Self| {
            let (own, others) = rest.split_at(values.elem_count());
            rest = others;
            let (mean, variance) = own.split_at(own.len() / 2);
            Statistics { mean: mean.to_vec(), variance: variance.to_vec(), count: *count }
        };
        Ok(all.iter().map(of_one).collect())
    }
}

/// `activation(gamma (x - mean) / sqrt(variance + eps) + beta)` with the batch's biased variance, and the statistics;
/// `x` is `(n, c, h, w)`, `gamma` and `beta` are `(c)`. The gradient passes through the statistics.
///
/// # Errors
/// If a channel holds a single number, or the shapes do not fit.
pub fn batch_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<(Tensor, Moments)> {
    let (n, c, h, w) = x.dims4()?;
    if n * h * w < 2 {
        bail!("batch normalisation of {:?}: statistics need at least two numbers per channel", x.dims());
    }
    if gamma.dims() != [c] || beta.dims() != [c] {
        bail!("images {:?} do not fit a normalisation of {:?} channels", x.dims(), gamma.dims());
    }
    if device::takes(x) {
        return device::batch_norm(x, gamma, beta, eps, activation);
    }
    if !x.device().is_cpu() {
        return plain::batch_norm(x, gamma, beta, eps, activation);
    }
    let statistics = Arc::new(OnceLock::new());
    let op = BatchNorm { eps, activation, statistics: Arc::clone(&statistics) };
    let out = x.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op)?;
    let Some(Statistics { mean, variance, count }) = statistics.get() else {
        bail!("batch normalisation's forward pass found no statistics")
    };
    let values = Tensor::new([&mean[..], variance].concat(), &Device::Cpu)?;
    Ok((out, Moments { values, count: *count }))
}

#[derive(Debug)]
struct BatchNorm {
    eps: f64,
    activation: Activation,
    statistics: Arc<OnceLock<Statistics>>,
}

/// Sum in an order that depends on the length alone: lanes side by side, then in f64.
pub(super) fn sum<T: Element>(x: &[T]) -> f64 {
    accumulate([x], |[x]| x)
}

/// The sum of `of` over slices of one length, as [`sum`]. Long sums are cut so that f32 lanes stay accurate.
#[inline]
pub(super) fn accumulate<T: Element, const N: usize>(slices: [&[T]; N], of: impl Fn([T; N]) -> T) -> f64 {
    const BLOCK: usize = LANES * 64;
    let n = slices[0].len();
    let mut total = 0.0;
    for start in (0..n).step_by(BLOCK) {
        let block = slices.map(|slice| &slice[start..(start + BLOCK).min(n)]);
        let len = block[0].len();
        let whole = len / LANES * LANES;
        let mut lanes = [T::zero(); LANES];
        for at in (0..whole).step_by(LANES) {
            let rows = block.map(|slice| &slice[at..at + LANES]);
            for (lane, sum) in lanes.iter_mut().enumerate() {
                *sum += of(rows.map(|row| row[lane]));
            }
        }
        total += lanes.iter().map(|lane| lane.wide()).sum::<f64>();
        total += (whole..len).map(|at| of(block.map(|slice| slice[at])).wide()).sum::<f64>();
    }
    total
}

/// One plane per image, of one channel.
fn planes<T>(x: &[T], channels: usize, plane: usize, channel: usize) -> impl Iterator<Item = &[T]> {
    x.chunks(plane).skip(channel).step_by(channels)
}

fn statistics<T: Element>(x: &[T], channels: usize, plane: usize) -> Statistics {
    let count = x.len() / channels;
    let moments = |channel| {
        let mean = planes(x, channels, plane, channel).map(sum).sum::<f64>() / count as f64;
        let centre = T::of(mean);
        let squares = planes(x, channels, plane, channel).map(|x| accumulate([x], |[x]| (x - centre) * (x - centre)));
        (mean, squares.sum::<f64>() / count as f64)
    };
    let (mean, variance) = (0..channels).into_par_iter().map(moments).unzip();
    Statistics { mean, variance, count }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        gamma: &CpuStorage,
        gl: &Layout,
        beta: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, c, h, w) = xl.shape().dims4()?;
        dispatch!(x.dtype(), T => {
            let (x, gamma, beta): (&[T], &[T], &[T]) = (view(x, xl)?, view(gamma, gl)?, view(beta, bl)?);
            let statistics = self.statistics.get_or_init(|| statistics(x, c, h * w));
            let mut out = zeros::<T>(x.len());
            out.par_chunks_mut(h * w).zip(x.par_chunks(h * w)).enumerate().for_each(|(i, (out, x))| {
                let of = T::of;
                let channel = i % c;
                let mean = of(statistics.mean[channel]);
                let scale = of(1.0 / (statistics.variance[channel] + self.eps).sqrt()) * gamma[channel];
                let beta = beta[channel];
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = self.activation.of((x - mean) * scale + beta));
            });
            Ok(owned(out, xl.shape()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        out: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(statistics) = self.statistics.get() else {
            bail!("batch normalisation's backward pass before its forward")
        };
        let (_, c, h, w) = x.dims4()?;
        dispatch!(dy.dtype(), T => {
            let gradients = read::<T, _>(x, |x| read::<T, _>(gamma, |gamma| read::<T, _>(out, |out| read::<T, _>(dy, |dy| {
                self.backward(statistics, [x, gamma, out, dy], c, h * w)
            }))))????;
            let [dx, dgamma, dbeta] = gradients;
            Ok((Some(tensor(dx, x.shape())?), Some(tensor(dgamma, gamma.shape())?), Some(tensor(dbeta, beta.shape())?)))
        })
    }
}

impl BatchNorm {
    /// Gradients of `x`, gamma and beta.
    fn backward<T: Element>(
        &self,
        s: &Statistics,
        [x, gamma, out, dy]: [&[T]; 4],
        channels: usize,
        plane: usize,
    ) -> [Vec<T>; 3] {
        let of = T::of;
        let inverse: Vec<f64> = s.variance.iter().map(|variance| 1.0 / (variance + self.eps).sqrt()).collect();
        let sums = |channel: usize| {
            let (mean, inverse) = (of(s.mean[channel]), of(inverse[channel]));
            let (mut first, mut second) = (0.0, 0.0);
            let images = planes(x, channels, plane, channel)
                .zip(planes(out, channels, plane, channel))
                .zip(planes(dy, channels, plane, channel));
            for ((x, out), dy) in images {
                first += accumulate([out, dy], |[out, dy]| self.activation.pass(out, dy));
                second +=
                    accumulate([x, out, dy], |[x, out, dy]| self.activation.pass(out, dy) * ((x - mean) * inverse));
            }
            (first, second)
        };
        let (dbeta, dgamma): (Vec<f64>, Vec<f64>) = (0..channels).into_par_iter().map(sums).unzip();
        let mut dx = vec![T::zero(); x.len()];
        let images = x.par_chunks(plane).zip(out.par_chunks(plane)).zip(dy.par_chunks(plane));
        dx.par_chunks_mut(plane).zip(images).enumerate().for_each(|(i, (dx, ((x, out), dy)))| {
            let channel = i % channels;
            let (mean, inverse) = (of(s.mean[channel]), of(inverse[channel]));
            let scale = gamma[channel] * inverse;
            let first = of(dbeta[channel] / s.count as f64);
            let second = of(dgamma[channel] / s.count as f64) * inverse;
            for (((dx, &x), &out), &dy) in dx.iter_mut().zip(x).zip(out).zip(dy) {
                *dx = scale * (self.activation.pass(out, dy) - first - (x - mean) * second);
            }
        });
        let cast = |values: Vec<f64>| values.into_iter().map(of).collect();
        [dx, cast(dgamma), cast(dbeta)]
    }
}
