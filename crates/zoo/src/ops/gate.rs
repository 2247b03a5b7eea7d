//! Planes times a number each.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType as _, bail};
use nets::ops::Element;
use rayon::prelude::*;

use super::{dispatch, read, sum, view};

/// The planes of `x` `(n, c, h, w)`, each times its number in `gates` `(n, c)`.
pub(crate) fn gate(x: &Tensor, gates: &Tensor) -> Result<Tensor> {
    let (n, c, ..) = x.dims4()?;
    if gates.dims() != [n, c] || gates.dtype() != x.dtype() {
        bail!("planes {:?} do not fit gates {:?}", x.shape(), gates.shape());
    }
    if !x.device().is_cpu() {
        return composed(x, gates);
    }
    x.contiguous()?.apply_op2(&gates.contiguous()?, Gate)
}

pub(super) fn composed(x: &Tensor, gates: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&gates.unsqueeze(2)?.unsqueeze(3)?)
}

struct Gate;

fn scaled<T: Element>(x: &[T], gates: &[T]) -> Vec<T> {
    let mut out = vec![T::zero(); x.len()];
    let plane = (x.len() / gates.len().max(1)).max(1);
    out.par_chunks_mut(plane).zip(x.par_chunks(plane)).zip(gates).for_each(|((out, x), &gate)| {
        out.iter_mut().zip(x).for_each(|(out, &x)| *out = gate * x);
    });
    out
}

fn sums<T: Element>(x: &[T], dy: &[T], planes: usize) -> Vec<T> {
    let plane = (x.len() / planes.max(1)).max(1);
    x.par_chunks(plane).zip(dy.par_chunks(plane)).map(|(x, dy)| T::of(sum(x.len(), |i| x[i] * dy[i]))).collect()
}

impl CustomOp2 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, gates: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        dispatch!(candle_core::backend::BackendStorage::dtype(x), T => {
            Ok((T::to_cpu_storage_owned(scaled::<T>(view(x, xl)?, view(gates, gl)?)), xl.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, gates: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        dispatch!(dy.dtype(), T => read::<T, _>(dy, |dy| {
            let dx = read::<T, _>(gates, |gates| scaled(dy, gates))?;
            let dgates = read::<T, _>(x, |x| sums(x, dy, gates.elem_count()))?;
            let tensor = |values: Vec<T>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
            Ok((Some(tensor(dx, x)?), Some(tensor(dgates, gates)?)))
        })?)
    }
}
