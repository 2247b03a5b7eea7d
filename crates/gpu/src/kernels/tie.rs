//! Results of kernels in candle's graph of gradients.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

use super::Output;

/// `out`, made from `x`, as a tensor whose gradient at `x` is `backward(x, out, gradient at out)`.
///
/// # Errors
/// If they are on different devices.
pub fn tie(
    x: &Tensor,
    out: Output,
    backward: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    x.apply_op1(Tied::new(out, backward))
}

/// The same of a result of three tensors; `backward` answers with the gradients at all of them.
///
/// # Errors
/// As [`tie`].
pub fn tie3(
    [x, y, z]: [&Tensor; 3],
    out: Output,
    backward: impl Fn([&Tensor; 3], &Tensor, &Tensor) -> Result<[Tensor; 3]> + Send + Sync + 'static,
) -> Result<Tensor> {
    x.apply_op3(y, z, Tied::new(out, backward))
}

/// An operation whose forward pass was done before it.
struct Tied<B> {
    made: Mutex<Option<Storage>>,
    shape: Shape,
    backward: B,
}

impl<B> Tied<B> {
    fn new(out: Output, backward: B) -> Self {
        Self { made: Mutex::new(Some(out.storage)), shape: out.shape, backward }
    }

    fn on_host(&self) -> Result<(CpuStorage, Shape)> {
        match self.made.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Storage::Cpu(storage)) => Ok((storage, self.shape.clone())),
            _ => bail!("what a kernel made is on another device, or was taken before"),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_device(&self) -> Result<(candle_core::CudaStorage, Shape)> {
        match self.made.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Storage::Cuda(storage)) => Ok((storage, self.shape.clone())),
            _ => bail!("what a kernel made is on another device, or was taken before"),
        }
    }
}

impl<B: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync> CustomOp1 for Tied<B> {
    fn name(&self) -> &'static str {
        "kernels"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_host()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &candle_core::CudaStorage, _: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_device()
    }

    fn bwd(&self, x: &Tensor, out: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(x, out, gradient).map(Some)
    }
}

impl<B: Fn([&Tensor; 3], &Tensor, &Tensor) -> Result<[Tensor; 3]> + Send + Sync> CustomOp3 for Tied<B> {
    fn name(&self) -> &'static str {
        "kernels"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_host()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_device()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = (self.backward)([x, y, z], out, gradient)?;
        Ok((Some(x), Some(y), Some(z)))
    }
}
