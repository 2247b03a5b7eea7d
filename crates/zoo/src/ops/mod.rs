//! Operations that candle has no gradient for, or only a slow one.
//!
//! Weights are frozen: gradients reach the images alone. On the CPU images are worked on one by one, in parallel, and an
//! image's result is the same in any batch and on any number of threads; elsewhere every operation is composed of candle's
//! own, which is also what the tests compare with.

mod attention;
mod gate;
mod layout;
mod linear;
mod matrix;
mod norm;
mod pointwise;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};
use nets::ops::Element;
use rayon::prelude::*;

pub(crate) use attention::Attention;
pub(crate) use gate::gate;
pub(crate) use layout::swap;
pub(crate) use linear::Linear;
pub(crate) use norm::{GlobalResponse, LayerNorm};
pub(crate) use pointwise::{Pointwise, pointwise};

/// Runs `$body` with `$T` standing for the number type `$dtype`.
macro_rules! dispatch {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => candle_core::bail!("networks compute in f32 or f64, not {other:?}"),
        }
    };
}
pub(crate) use dispatch;

/// A function of one image's numbers, with fixed parameters.
///
/// `dims` are those of the image: the tensor's without the first.
pub(crate) trait Map: Clone + Send + Sync + 'static {
    /// For messages.
    const NAME: &'static str;

    /// The fixed parameters, contiguous and of the images' type.
    fn parameters(&self) -> Vec<&Tensor> {
        Vec::new()
    }

    /// The shape of what becomes of one image.
    fn shape(&self, dims: &[usize]) -> Vec<usize> {
        dims.to_vec()
    }

    /// Writes the image's output.
    fn forward<T: Element>(&self, dims: &[usize], parameters: &[&[T]], x: &[T], out: &mut [T]);

    /// Writes the gradient of the image, from that of its output.
    fn backward<T: Element>(&self, dims: &[usize], parameters: &[&[T]], x: &[T], dy: &[T], dx: &mut [T]);

    /// The same of a whole tensor, composed of candle's operations.
    fn composed(&self, x: &Tensor) -> Result<Tensor>;

    /// Of `x` `(n, ..)`.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return self.composed(x);
        }
        for parameter in self.parameters() {
            if parameter.dtype() != x.dtype() {
                let (x, network) = (x.dtype(), parameter.dtype());
                bail!("{}: the images are {x:?} and the network is {network:?}; convert the images first", Self::NAME);
            }
        }
        x.contiguous()?.apply_op1(Run(self.clone()))
    }
}

/// A [`Map`] as an operation of candle's.
struct Run<M>(M);

impl<M: Map> Run<M> {
    fn images<T: Element>(&self, dims: &[usize], x: &[T], dy: Option<&[T]>) -> Result<Vec<T>> {
        let Some((&n, dims)) = dims.split_first() else { bail!("{}: a number is no image", M::NAME) };
        let (size, out_size) = (dims.iter().product::<usize>(), self.0.shape(dims).iter().product::<usize>());
        let tensors: Vec<_> = self.0.parameters().into_iter().map(Tensor::storage_and_layout).collect();
        let parameters: Vec<&[T]> =
            tensors.iter().map(|(storage, layout)| stored(storage, layout)).collect::<Result<_>>()?;
        if size == 0 || out_size == 0 || n == 0 {
            return Ok(vec![T::zero(); n * if dy.is_some() { size } else { out_size }]);
        }
        Ok(match dy {
            None => {
                let mut out = vec![T::zero(); n * out_size];
                let images = out.par_chunks_mut(out_size).zip(x.par_chunks(size));
                images.for_each(|(out, x)| self.0.forward(dims, &parameters, x, out));
                out
            }
            Some(dy) => {
                let mut dx = vec![T::zero(); n * size];
                let images = dx.par_chunks_mut(size).zip(x.par_chunks(size)).zip(dy.par_chunks(out_size));
                images.for_each(|((dx, x), dy)| self.0.backward(dims, &parameters, x, dy, dx));
                dx
            }
        })
    }
}

impl<M: Map> CustomOp1 for Run<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, dims) = (layout.dims()[0], &layout.dims()[1..]);
        let shape: Vec<usize> = std::iter::once(n).chain(self.0.shape(dims)).collect();
        dispatch!(candle_core::backend::BackendStorage::dtype(x), T => {
            let out = self.images::<T>(layout.dims(), view(x, layout)?, None)?;
            Ok((<T as candle_core::WithDType>::to_cpu_storage_owned(out), shape.into()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        dispatch!(dy.dtype(), T => {
            let dx = read::<T, _>(x, |x_data| read::<T, _>(dy, |dy| self.images(x.dims(), x_data, Some(dy))))???;
            Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
        })
    }
}

/// The numbers of a contiguous tensor's storage.
pub(crate) fn view<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("a custom operation needs contiguous tensors"),
    }
}

fn stored<'a, T: Element>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    match storage {
        Storage::Cpu(storage) => view(storage, layout),
        _ => bail!("a custom operation for the CPU met a tensor elsewhere"),
    }
}

/// Calls `f` with the numbers of a tensor on the CPU.
pub(crate) fn read<T: Element, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    Ok(f(stored(&storage, layout)?))
}

/// The sum of `f` over `0..n`, in an order that depends on `n` alone: lanes side by side, and those in f64.
#[inline]
pub(crate) fn sum<T: Element>(n: usize, f: impl Fn(usize) -> T) -> f64 {
    const LANES: usize = 16;
    let (mut lanes, whole) = ([T::zero(); LANES], n / LANES * LANES);
    for at in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(at + lane);
        }
    }
    lanes.iter().map(|lane| lane.wide()).sum::<f64>() + (whole..n).map(|i| f(i).wide()).sum::<f64>()
}

#[cfg(test)]
mod tests;
