//! What an NVIDIA GPU does by our own hand, where candle has no quick or no keyed way.
//!
//! [`conv2d`] is every convolution: forward, input gradient and weight gradient by cuDNN, with the choice of algorithm kept
//! and the workspace reused; it needs the feature `cudnn`. [`noise`] draws a [`game::Key`]'s numbers on the device; it needs
//! the feature `cuda`. Both compute on the CPU too, without speed: that is the reference of their tests. [`Halving`] meets
//! memory that runs out with smaller batches.
//!
//! The features only make the device's side: without them the crate builds, and its tests pass, on any machine.

mod conv;
mod memory;
pub mod noise;
mod precision;

pub use conv::{Geometry, conv2d};
pub use memory::{Halving, batch, free, is_out_of_memory};
pub use precision::Precision;

/// The name of a GPU; none of the CPU.
///
/// # Errors
/// If the device fails.
pub fn name(device: &candle_core::Device) -> candle_core::Result<Option<String>> {
    match device {
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(device) => {
            use candle_core::cuda_backend::WrapErr as _;
            Ok(Some(device.cuda_stream().context().name().w()?))
        }
        _ => Ok(None),
    }
}

/// Whether a device multiplies in this precision.
#[must_use]
pub fn offers(device: &candle_core::Device, precision: Precision) -> bool {
    precision.is_full() || cfg!(feature = "cudnn") && device.is_cuda()
}

/// Whether [`conv2d`] can take this tensor where it lies.
#[must_use]
pub fn takes(x: &candle_core::Tensor) -> bool {
    cfg!(feature = "cudnn") && x.device().is_cuda()
}
