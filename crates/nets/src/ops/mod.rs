//! Operations with right and quick gradients on the CPU.
//!
//! Candle's own convolutions always compute the weight gradient and its pools have wrong gradients, so every operation
//! here is a custom one. Images are worked on one by one, in parallel: an image's result is the same in any batch.
//! Sums over images are taken in an order that depends on the batch alone, never on threads. On a GPU,
//! operations on f32 that training needs are kernels of our own; else, and in f64, they are composed of candle's.

mod adaptive;
mod conv;
mod device;
mod kernel;
mod norm;
mod plain;
mod pointwise;
mod pool;
mod volume;

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail};

pub use adaptive::adaptive_average_pool;
pub use conv::{Frozen, Window, conv2d, linear};
pub(crate) use device::{Rates, adam_w, takes};
pub use norm::{Moments, Statistics, batch_norm};
pub use pointwise::{Activation, Affine, activate, add};
pub use pool::{average_pool, global_average_pool, max_pool, subsample};
pub use volume::{keep_largest, prune, standardise};
pub(crate) use volume::{spread, threshold, winners};

/// The number types of networks: f32 and f64.
pub trait Element: WithDType + num_traits::Float {
    /// An integer whose order is that of the numbers it stands for.
    type Rank: Ord + Copy + Send;

    /// The number's place in the order of numbers: -0 before 0, and NaN beyond the infinity of its sign.
    #[must_use]
    fn rank(self) -> Self::Rank;

    /// The number of a rank.
    #[must_use]
    fn of_rank(rank: Self::Rank) -> Self;

    /// The nearest number of this type.
    #[must_use]
    fn of(value: f64) -> Self {
        <Self as WithDType>::from_f64(value)
    }

    /// The same number in f64.
    #[must_use]
    fn wide(self) -> f64 {
        WithDType::to_f64(self)
    }
}

macro_rules! element {
    ($float:ty, $rank:ty) => {
        impl Element for $float {
            type Rank = $rank;

            fn rank(self) -> $rank {
                let bits = self.to_bits() as $rank;
                // The magnitude's bits of a negative number are turned round.
                bits ^ ((bits >> (<$rank>::BITS - 1)) & <$rank>::MAX)
            }

            fn of_rank(rank: $rank) -> Self {
                Self::from_bits((rank ^ ((rank >> (<$rank>::BITS - 1)) & <$rank>::MAX)).cast_unsigned())
            }
        }
    };
}
element!(f32, i32);
element!(f64, i64);

/// `n` zeros.
fn zeros<T: Element>(n: usize) -> Vec<T> {
    vec![T::zero(); n]
}

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

/// The numbers of a contiguous tensor's storage.
pub(crate) fn view<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("a custom operation needs contiguous tensors"),
    }
}

/// Calls `f` with the numbers of a tensor on the CPU.
pub(crate) fn read<T: Element, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(view(storage, layout)?)),
        _ => bail!("a custom operation for the CPU met a tensor elsewhere"),
    }
}

/// A tensor on the CPU that owns `values`.
pub(crate) fn tensor<T: Element>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &candle_core::Device::Cpu)
}

/// What a custom operation's forward pass answers with.
pub(crate) fn owned<T: Element>(values: Vec<T>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (T::to_cpu_storage_owned(values), shape.into())
}

/// Refuses tensors of different types with one clear error.
fn same_type(what: &str, x: DType, y: DType) -> Result<()> {
    if x != y {
        bail!("{what}: the images are {x:?} and the network is {y:?}; convert the images first");
    }
    Ok(())
}
