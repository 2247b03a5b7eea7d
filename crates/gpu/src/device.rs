//! The GPU itself.

use candle_core::{Device, Result};

use crate::Precision;

/// The first GPU, with one queue for all threads of the program.
///
/// # Errors
/// If there is none, or this build cannot use it.
pub fn open() -> Result<Device> {
    #[cfg(feature = "cuda")]
    {
        let device = Device::new_cuda_with_stream(0)?;
        if let Device::Cuda(cuda) = &device {
            prepare(cuda)?;
        }
        Ok(device)
    }
    #[cfg(not(feature = "cuda"))]
    Device::new_cuda(0)
}

/// Leaves out what several queues would need, and keeps freed memory for the next tensor: given back to the driver it would
/// have to be waited for.
#[cfg(feature = "cuda")]
fn prepare(device: &candle_core::CudaDevice) -> Result<()> {
    use candle_core::cuda_backend::{
        WrapErr as _,
        cudarc::driver::{result::device::get_default_mem_pool, sys},
    };
    // SAFETY: the stream that all tensors of this device are made and used on is the only one.
    unsafe { device.disable_event_tracking() };
    let mut all = u64::MAX;
    // SAFETY: the attribute's value is a u64.
    unsafe {
        let pool = get_default_mem_pool(device.cuda_stream().context().cu_device()).w()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut all).cast()).result().w()
    }
}

/// The name of a GPU; none of the CPU.
///
/// # Errors
/// If the device fails.
pub fn name(device: &Device) -> Result<Option<String>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            use candle_core::cuda_backend::WrapErr as _;
            Ok(Some(device.cuda_stream().context().name().w()?))
        }
        _ => Ok(None),
    }
}

/// Whether a device multiplies in this precision.
#[must_use]
pub fn offers(device: &Device, precision: Precision) -> bool {
    precision.is_full() || plans(device)
}

/// Whether convolutions are cuDNN's on this device: [`crate::conv2d`]'s, and those of [`crate::Convolutions`].
#[must_use]
pub fn plans(device: &Device) -> bool {
    cfg!(feature = "cudnn") && device.is_cuda()
}

/// The version of cuDNN that convolutions of a GPU are by; its algorithms may round differently in another one.
#[must_use]
pub fn cudnn_version(device: &Device) -> Option<String> {
    #[cfg(feature = "cudnn")]
    if device.is_cuda() {
        return Some(candle_core::cuda_backend::cudarc::cudnn::result::get_version().to_string());
    }
    let _ = device;
    None
}
