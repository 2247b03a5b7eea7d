//! The same operations composed of candle's own, for other devices. Right on every device, and quick on none.

use candle_core::{D, DType, Device, Result, Tensor, bail};
use game::Key;

use super::{
    Activation, Moments, Window, dispatch, read,
    volume::{PRUNE_EPS, thresholds, uniform},
};
use crate::{Padding, Precision};

pub(super) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(x.clone()),
        Activation::Relu => x.relu(),
        // Candle's clamp passes half a gradient at its bounds: here relu6(x) = relu(x) - relu(x - 6).
        Activation::Relu6 => x.relu()? - (x - 6.0)?.relu()?,
        Activation::LeakyRelu { slope } => x.relu()? - (x.neg()?.relu()? * slope)?,
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

pub(super) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    window: Window,
    precision: Precision,
) -> Result<Tensor> {
    let out = if gpu::plans(x.device()) {
        by_gpu(x, weight, window, precision)?
    } else if precision.is_full() {
        by_candle(x, weight, window)?
    } else {
        bail!("convolutions in {} need a GPU and a build with cuDNN", precision.name())
    };
    match bias {
        Some(bias) => out.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(out),
    }
}

fn by_gpu(x: &Tensor, weight: &Tensor, window: Window, precision: Precision) -> Result<Tensor> {
    let Padding { top, bottom, left, right } = window.padding;
    // cuDNN pads opposite sides alike: what one side has more is put there before.
    let [rows, columns] = [top.min(bottom), left.min(right)];
    let x = x.pad_with_zeros(2, top - rows, bottom - rows)?.pad_with_zeros(3, left - columns, right - columns)?;
    gpu::conv2d(&x, weight, [rows, columns], window.stride, window.groups, precision)
}

fn by_candle(x: &Tensor, weight: &Tensor, window: Window) -> Result<Tensor> {
    let Window { stride, padding, groups } = window;
    let x = x.pad_with_zeros(2, padding.top, padding.bottom)?.pad_with_zeros(3, padding.left, padding.right)?;
    // Candle's backward pass takes the input's size for the one that the output's suggests: cut what no window reads.
    let read = |size: usize, kernel: usize| (size - kernel) / stride * stride + kernel;
    let x = x.narrow(2, 0, read(x.dim(2)?, weight.dim(2)?))?.narrow(3, 0, read(x.dim(3)?, weight.dim(3)?))?;
    x.contiguous()?.conv2d(weight, 0, stride, 1, groups)
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

pub(super) fn average_pool(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let padded = x.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
    let (h, w) = (padded.dim(2)?, padded.dim(3)?);
    let (oh, ow) = ((h - kernel) / stride + 1, (w - kernel) / stride + 1);
    let part = |i: usize| every(&every(&padded, 2, i / kernel, stride, oh)?, 3, i % kernel, stride, ow);
    let sum = (1..kernel * kernel).try_fold(part(0)?, |sum, i| sum + part(i)?)?;
    sum / (kernel * kernel) as f64
}

/// Sums over the last three of four dimensions, which stay as ones.
fn sum_images(x: &Tensor) -> Result<Tensor> {
    x.sum_keepdim((1, 2, 3))
}

pub(super) fn standardise(x: &Tensor) -> Result<Tensor> {
    let count = x.dims()[1..].iter().product::<usize>() as f64;
    let centred = x.broadcast_sub(&(sum_images(x)? / count)?)?;
    let variance = (sum_images(&centred.sqr()?)? / count)?;
    // Chosen and not clamped: candle's maximum passes half a gradient on a tie.
    let least = (variance.ones_like()? / count)?;
    let variance = variance.detach().ge(&least)?.where_cond(&variance, &least)?;
    centred.broadcast_div(&variance.sqrt()?)
}

pub(super) fn keep_largest(x: &Tensor, winners: usize) -> Result<Tensor> {
    let image = x.dims()[1..].iter().product();
    let thresholds = dispatch!(x.dtype(), T => {
        read::<T, _>(&x.detach().to_device(&Device::Cpu)?, |x| thresholds(x, image, winners))?
    });
    let thresholds = Tensor::new(thresholds, x.device())?.to_dtype(x.dtype())?.reshape(((), 1, 1, 1))?;
    let lost = x.detach().broadcast_lt(&thresholds)?;
    lost.where_cond(&x.zeros_like()?, x)
}

pub(super) fn prune(x: &Tensor, samples: f64, keys: &[Key]) -> Result<Tensor> {
    let image = x.dims()[1..].iter().product::<usize>();
    let uniform = if gpu::kernels::takes(x) {
        gpu::noise::uniform_like(x, keys)?
    } else {
        Tensor::from_vec(uniform(keys, image), x.shape(), x.device())?.to_dtype(x.dtype())?
    };
    let magnitude = x.abs()?;
    let sum = sum_images(&magnitude)?;
    // Where all are zero the sum is taken for one, and none is kept.
    let sum = (&sum + sum.detach().eq(0.0)?.to_dtype(x.dtype())?)?;
    let rate = (sum.recip()? * (samples * image as f64))?;
    let keep = (1.0 - magnitude.broadcast_mul(&rate)?.neg()?.exp()?)?;
    let dropped = uniform.ge(&keep.detach())?;
    dropped.where_cond(&x.zeros_like()?, &(x / (keep + PRUNE_EPS)?)?)
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
) -> Result<(Tensor, Moments)> {
    let (n, c, h, w) = x.dims4()?;
    let rows = x.transpose(0, 1)?.contiguous()?.reshape((c, n * h * w))?;
    let mean = rows.mean_keepdim(1)?;
    let centred = rows.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(1)?;
    let scale = (gamma.reshape((c, 1))? / (&variance + eps)?.sqrt()?)?;
    let out = centred.broadcast_mul(&scale)?.broadcast_add(&beta.reshape((c, 1))?)?;
    let out = activate(&out.reshape((c, n, h, w))?.transpose(0, 1)?.contiguous()?, activation)?;
    let values = Tensor::cat(&[mean.detach(), variance.detach()], 0)?.flatten_all()?.to_dtype(DType::F64)?;
    Ok((out, Moments { values, count: n * h * w }))
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use game::Key;

    use super::*;
    use crate::ops;

    fn random(seed: u64, shape: &[usize]) -> Tensor {
        let mut values = vec![0.0; shape.iter().product()];
        Key::root(seed).fill_normal(&mut values);
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
    }

    /// Values and gradients of both implementations of one operation.
    fn agree(
        arguments: &[Tensor],
        plain: impl Fn(&[Tensor]) -> Result<Tensor>,
        quick: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let variables: Vec<Var> = arguments.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
        let inputs: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
        let (plain, quick) = (plain(&inputs).unwrap(), quick(&inputs).unwrap());
        let projection = random(99, quick.dims());
        let gradients = |out: &Tensor| (out * &projection).unwrap().sum_all().unwrap().backward().unwrap();
        let (by_plain, by_quick) = (gradients(&plain), gradients(&quick));
        let close = |x: &Tensor, y: &Tensor| {
            assert_eq!(x.dims(), y.dims());
            let gap: f64 = (x - y).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
            assert!(gap < 1e-10, "{gap}");
        };
        close(&plain, &quick);
        for variable in &variables {
            close(by_plain.get(variable).unwrap(), by_quick.get(variable).unwrap());
        }
    }

    #[test]
    fn candles_operations_and_ours_agree() {
        for (size, stride, padding, groups) in [
            ([9, 8], 2, Padding::same(1), 1),
            ([7, 8], 1, Padding { top: 0, bottom: 1, left: 2, right: 1 }, 2),
            ([8, 8], 2, Padding { bottom: 1, right: 1, ..Padding::default() }, 4),
        ] {
            let window = Window { stride, padding, groups };
            for kernel in [[3, 3], [1, 3], [3, 2]] {
                let weight = random(2, &[4, 4 / groups, kernel[0], kernel[1]]);
                let x = random(1, &[2, 4, size[0], size[1]]);
                agree(
                    &[x.clone(), weight.clone(), random(3, &[4])],
                    |a| conv2d(&a[0], &a[1], Some(&a[2]), window, Precision::F32),
                    |a| ops::conv2d(&a[0], &a[1], Some(&a[2]), window),
                );
                // The GPU's way, as its reference on the CPU computes it.
                agree(
                    &[x, weight],
                    |a| by_gpu(&a[0], &a[1], window, Precision::F32),
                    |a| ops::conv2d(&a[0], &a[1], None, window),
                );
            }
        }
        let x = random(4, &[2, 3, 9, 8]);
        let one = std::slice::from_ref(&x);
        agree(one, |a| max_pool(&a[0], 3, 2, 1), |a| ops::max_pool(&a[0], 3, 2, 1));
        agree(one, |a| subsample(&a[0], 2, 1, 2), |a| ops::subsample(&a[0], 2, 1, 2));
        for (kernel, stride, padding) in [(3, 1, 1), (2, 2, 0), (3, 2, 1)] {
            agree(
                one,
                |a| average_pool(&a[0], kernel, stride, padding),
                |a| ops::average_pool(&a[0], kernel, stride, padding),
            );
        }
        let wide = [(&x * 5.0).unwrap()];
        let leaky = Activation::LeakyRelu { slope: 0.1 };
        for activation in [Activation::None, Activation::Relu, Activation::Relu6, leaky] {
            agree(&wide, |a| activate(&a[0], activation), |a| ops::activate(&a[0], activation));
            agree(
                &[x.clone(), random(5, &[3]), random(6, &[3])],
                |a| Ok(batch_norm(&a[0], &a[1], &a[2], 1e-5, activation)?.0),
                |a| Ok(ops::batch_norm(&a[0], &a[1], &a[2], 1e-5, activation)?.0),
            );
        }
    }

    #[test]
    fn candles_operations_and_ours_agree_on_whole_images() {
        let x = random(7, &[2, 3, 4, 5]);
        let one = std::slice::from_ref(&x);
        let keys = [Key::root(8).at(0), Key::root(8).at(1)];
        agree(one, |a| standardise(&a[0]), |a| ops::standardise(&a[0]));
        agree(&[(&x * 1e-2).unwrap()], |a| standardise(&a[0]), |a| ops::standardise(&a[0]));
        agree(one, |a| keep_largest(&a[0], 12), |a| ops::keep_largest(&a[0], 0.2));
        agree(one, |a| prune(&a[0], 2.0, &keys), |a| ops::prune(&a[0], 2.0, &keys));
        agree(&[x.zeros_like().unwrap()], |a| prune(&a[0], 2.0, &keys), |a| ops::prune(&a[0], 2.0, &keys));
    }
}
