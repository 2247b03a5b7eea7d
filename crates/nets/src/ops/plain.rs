//! The same operations composed of candle's own, for other devices. Right on every device, and quick on none.

use candle_core::{D, Result, Tensor};

use super::{Activation, Statistics, Window};

pub(super) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(x.clone()),
        Activation::Relu => x.relu(),
        // Candle's clamp passes half a gradient at its bounds: here relu6(x) = relu(x) - relu(x - 6).
        Activation::Relu6 => x.relu()? - (x - 6.0)?.relu()?,
    }
}

/// Every `stride`-th element of a dimension from `start`, `count` of them.
fn every(x: &Tensor, dim: usize, start: usize, stride: usize, count: usize) -> Result<Tensor> {
    let x = x.narrow(dim, start, (count - 1) * stride + 1)?;
    if stride == 1 {
        return Ok(x);
    }
    let indices: Vec<u32> = (0..count).map(|i| (i * stride) as u32).collect();
    x.contiguous()?.index_select(&Tensor::new(indices, x.device())?, dim)
}

pub(super) fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, window: Window) -> Result<Tensor> {
    let Window { stride, padding, groups } = window;
    let x = x.pad_with_zeros(2, padding.top, padding.bottom)?.pad_with_zeros(3, padding.left, padding.right)?;
    // Candle's backward pass takes the input's size for the one that the output's suggests: cut what no window reads.
    let (kernel, h, w) = (weight.dim(2)?, x.dim(2)?, x.dim(3)?);
    let read = |size: usize| (size - kernel) / stride * stride + kernel;
    let x = x.narrow(2, 0, read(h))?.narrow(3, 0, read(w))?;
    let out = x.contiguous()?.conv2d(weight, 0, stride, 1, groups)?;
    match bias {
        Some(bias) => out.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(out),
    }
}

pub(super) fn max_pool(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    // Lower than every number, so that the padding never wins.
    let lowest = x.flatten_all()?.min(D::Minus1)?.detach();
    let shifted = x.broadcast_sub(&lowest)?;
    let padded = shifted.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
    let (h, w) = (padded.dim(2)?, padded.dim(3)?);
    let (oh, ow) = ((h - kernel) / stride + 1, (w - kernel) / stride + 1);
    let mut best: Option<Tensor> = None;
    for dy in 0..kernel {
        for dx in 0..kernel {
            let part = every(&every(&padded, 2, dy, stride, oh)?, 3, dx, stride, ow)?;
            best = Some(match best {
                Some(best) => best.maximum(&part)?,
                None => part,
            });
        }
    }
    match best {
        Some(best) => best.broadcast_add(&lowest),
        None => Ok(x.clone()),
    }
}

pub(super) fn subsample(x: &Tensor, stride: usize, before: usize, after: usize) -> Result<Tensor> {
    let (h, w) = (x.dim(2)?.div_ceil(stride), x.dim(3)?.div_ceil(stride));
    every(&every(x, 2, 0, stride, h)?, 3, 0, stride, w)?.pad_with_zeros(1, before, after)
}

pub(super) fn batch_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<(Tensor, Statistics)> {
    let (n, c, h, w) = x.dims4()?;
    let rows = x.transpose(0, 1)?.contiguous()?.reshape((c, n * h * w))?;
    let mean = rows.mean_keepdim(1)?;
    let centred = rows.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(1)?;
    let scale = (gamma.reshape((c, 1))? / (&variance + eps)?.sqrt()?)?;
    let out = centred.broadcast_mul(&scale)?.broadcast_add(&beta.reshape((c, 1))?)?;
    let out = activate(&out.reshape((c, n, h, w))?.transpose(0, 1)?.contiguous()?, activation)?;
    let list = |x: &Tensor| x.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>();
    Ok((out, Statistics { mean: list(&mean)?, variance: list(&variance)?, count: n * h * w }))
}
