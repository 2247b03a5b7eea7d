//! Normalisations over the last axis.

use candle_core::{D, Result, Tensor};
use nets::ops::Element;

use super::{Map, sum};

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over the last axis, by its biased variance (Ba et al. 2016).
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    /// `(c)`.
    pub weight: Tensor,
    /// `(c)`.
    pub bias: Tensor,
    pub eps: f64,
}

impl LayerNorm {
    /// Mean, and one over the standard deviation.
    fn moments<T: Element>(&self, x: &[T]) -> (T, T) {
        let n = x.len() as f64;
        let mean = T::of(sum(x.len(), |i| x[i]) / n);
        let variance = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
        (mean, T::of(1.0 / (variance + self.eps).sqrt()))
    }
}

impl Map for LayerNorm {
    const NAME: &'static str = "layer-norm";

    fn parameters(&self) -> Vec<&Tensor> {
        vec![&self.weight, &self.bias]
    }

    fn forward<T: Element>(&self, _: &[usize], parameters: &[&[T]], x: &[T], out: &mut [T]) {
        let (weight, bias) = (parameters[0], parameters[1]);
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            let (mean, scale) = self.moments(x);
            for (((out, &x), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = (x - mean) * scale * weight + bias;
            }
        }
    }

    fn backward<T: Element>(&self, _: &[usize], parameters: &[&[T]], x: &[T], dy: &[T], dx: &mut [T]) {
        let (weight, c) = (parameters[0], parameters[0].len());
        for ((x, dy), dx) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)) {
            let (mean, scale) = self.moments(x);
            let first = T::of(sum(c, |i| dy[i] * weight[i]) / c as f64);
            let second = T::of(sum(c, |i| dy[i] * weight[i] * ((x[i] - mean) * scale)) / c as f64);
            for (((dx, &x), &dy), &weight) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                *dx = scale * (dy * weight - first - (x - mean) * scale * second);
            }
        }
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        centred.broadcast_div(&deviation)?.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// Global response normalisation of `(n, t, c)` (Woo et al. 2023, section 3): with the norm `g` of each channel over all
/// places, `x + weight x g / (mean of g + eps) + bias`.
#[derive(Clone, Debug)]
pub(crate) struct GlobalResponse {
    /// `(c)`.
    pub weight: Tensor,
    /// `(c)`.
    pub bias: Tensor,
}

/// Of the published networks.
const RESPONSE_EPS: f64 = 1e-6;

impl GlobalResponse {
    /// The norm of each channel, and their mean with eps.
    fn norms<T: Element>(x: &[T], c: usize) -> (Vec<f64>, f64) {
        let mut squares = vec![0.0; c];
        for row in x.chunks_exact(c) {
            row.iter().zip(&mut squares).for_each(|(x, sum)| *sum += x.wide() * x.wide());
        }
        let norms: Vec<f64> = squares.into_iter().map(f64::sqrt).collect();
        let mean = norms.iter().sum::<f64>() / c as f64 + RESPONSE_EPS;
        (norms, mean)
    }
}

impl Map for GlobalResponse {
    const NAME: &'static str = "global-response-norm";

    fn parameters(&self) -> Vec<&Tensor> {
        vec![&self.weight, &self.bias]
    }

    fn forward<T: Element>(&self, _: &[usize], parameters: &[&[T]], x: &[T], out: &mut [T]) {
        let c = parameters[0].len();
        let (norms, mean) = Self::norms(x, c);
        let factor: Vec<T> = norms.iter().zip(parameters[0]).map(|(g, w)| T::of(1.0 + w.wide() * g / mean)).collect();
        for (x, out) in x.chunks_exact(c).zip(out.chunks_exact_mut(c)) {
            for (((out, &x), &factor), &bias) in out.iter_mut().zip(x).zip(&factor).zip(parameters[1]) {
                *out = x * factor + bias;
            }
        }
    }

    fn backward<T: Element>(&self, _: &[usize], parameters: &[&[T]], x: &[T], dy: &[T], dx: &mut [T]) {
        let c = parameters[0].len();
        let (norms, mean) = Self::norms(x, c);
        // The gradient of `g / mean`, then that of `g`.
        let mut ratio = vec![0.0; c];
        for (x, dy) in x.chunks_exact(c).zip(dy.chunks_exact(c)) {
            x.iter().zip(dy).zip(&mut ratio).for_each(|((x, dy), sum)| *sum += x.wide() * dy.wide());
        }
        ratio.iter_mut().zip(parameters[0]).for_each(|(ratio, weight)| *ratio *= weight.wide());
        let common = ratio.iter().zip(&norms).map(|(ratio, g)| ratio * g).sum::<f64>() / (mean * mean * c as f64);
        let channel = |i: usize| {
            let factor = 1.0 + parameters[0][i].wide() * norms[i] / mean;
            // Where a channel is 0 everywhere its norm has no derivative, and takes none.
            let back = if norms[i] > 0.0 { (ratio[i] / mean - common) / norms[i] } else { 0.0 };
            (T::of(factor), T::of(back))
        };
        let factors: Vec<(T, T)> = (0..c).map(channel).collect();
        for ((x, dy), dx) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)) {
            for (((dx, &x), &dy), &(factor, back)) in dx.iter_mut().zip(x).zip(dy).zip(&factors) {
                *dx = dy * factor + x * back;
            }
        }
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let norms = x.sqr()?.sum_keepdim(1)?.sqrt()?;
        let ratio = norms.broadcast_div(&(norms.mean_keepdim(D::Minus1)? + RESPONSE_EPS)?)?;
        (x + x.broadcast_mul(&ratio)?.broadcast_mul(&self.weight)?)?.broadcast_add(&self.bias)
    }
}
