//! Keyed noise where the images are: the numbers a [`Key`] fills a host's memory with, made on the GPU.
//!
//! The kernels are C++ for CUDA, compiled by NVRTC at their first use; their arithmetic is that of the CPU, operation by
//! operation, and each is rounded on its own, so the bits should be the same too.

#[cfg(feature = "cuda")]
mod kernels;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, backend::BackendStorage, bail,
};
use game::Key;
use rayon::prelude::*;

/// Whether these draws can be made where the images are: f32 on a GPU of this build.
#[must_use]
pub fn takes(x: &Tensor) -> bool {
    cfg!(feature = "cuda") && x.device().is_cuda() && x.dtype() == DType::F32
}

/// Uniform numbers in `[0, 1)` in the shape of `x` `(n, ...)`, f32: image `i`'s are those of `keys[i]`, row-major.
///
/// # Errors
/// If the number of keys is not that of images, `x` is not f32, or the device fails.
pub fn uniform_like(x: &Tensor, keys: &[Key]) -> Result<Tensor> {
    x.detach().contiguous()?.apply_op1_no_bwd(&Uniform { keys })
}

/// `x + sigma z` for the standard normal numbers `z` of each image's key, in `[0, 1]` if `clip`; `x` is `(n, ...)`, f32.
///
/// # Errors
/// As [`uniform_like`].
pub fn add_normal(x: &Tensor, keys: &[Key], sigma: f32, clip: bool) -> Result<Tensor> {
    x.detach().contiguous()?.apply_op1_no_bwd(&AddNormal { keys, sigma, clip })
}

/// What of `upstream` passes the clipping of [`add_normal`]: its entries where `x + sigma z` is in `[0, 1]`, 0 elsewhere.
///
/// # Errors
/// As [`uniform_like`], and if the shapes differ.
pub fn keep_inside(x: &Tensor, keys: &[Key], sigma: f32, upstream: &Tensor) -> Result<Tensor> {
    if x.dims() != upstream.dims() {
        bail!("a gradient of {:?} does not fit images of {:?}", upstream.dims(), x.dims())
    }
    x.detach().contiguous()?.apply_op2_no_bwd(&upstream.detach().contiguous()?, &KeepInside { keys, sigma })
}

struct Uniform<'a> {
    keys: &'a [Key],
}

struct AddNormal<'a> {
    keys: &'a [Key],
    sigma: f32,
    clip: bool,
}

struct KeepInside<'a> {
    keys: &'a [Key],
    sigma: f32,
}

/// The numbers of each image.
fn length(layout: &Layout, keys: &[Key]) -> Result<usize> {
    match layout.dims() {
        [n, image @ ..] if *n == keys.len() => Ok(image.iter().product()),
        dims => bail!("images {dims:?} with {} keys: noise needs one key per image", keys.len()),
    }
}

/// The numbers of a contiguous tensor.
fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("noise reads contiguous images"),
    }
}

/// Fills what `make(key, image, out)` makes of each image, in parallel.
fn each(keys: &[Key], len: usize, make: impl Fn(Key, usize, &mut [f32]) + Sync) -> CpuStorage {
    let mut out = vec![0.0; keys.len() * len];
    out.par_chunks_mut(len.max(1)).zip(keys).enumerate().for_each(|(image, (out, &key))| make(key, image, out));
    CpuStorage::F32(out)
}

impl CustomOp1 for Uniform<'_> {
    fn name(&self) -> &'static str {
        "uniform-noise"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let len = length(layout, self.keys)?;
        if x.dtype() != DType::F32 {
            bail!("noise is f32, not {:?}", x.dtype())
        }
        Ok((each(self.keys, len, |key, _, out| key.fill_uniform(out)), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        let out = kernels::uniform(self.keys, length(layout, self.keys)?, &x.device)?;
        Ok((out, layout.shape().clone()))
    }
}

impl CustomOp1 for AddNormal<'_> {
    fn name(&self) -> &'static str {
        "normal-noise"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (len, x) = (length(layout, self.keys)?, numbers(x, layout)?);
        let out = each(self.keys, len, |key, image, out| {
            key.fill_normal(out);
            for (out, &x) in out.iter_mut().zip(&x[image * len..]) {
                let noisy = x + self.sigma * *out;
                // Not `clamp`, which a limit of NaN panics in, and whose zeros have other signs.
                let positive = if self.clip && noisy < 0.0 { 0.0 } else { noisy };
                *out = if self.clip && positive > 1.0 { 1.0 } else { positive };
            }
        });
        Ok((out, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        let len = length(layout, self.keys)?;
        let out = kernels::add_normal(self.keys, len, self.sigma, self.clip, (x, layout))?;
        Ok((out, layout.shape().clone()))
    }
}

impl CustomOp2 for KeepInside<'_> {
    fn name(&self) -> &'static str {
        "clipped-noise-gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, above: &CpuStorage, al: &Layout) -> Result<(CpuStorage, Shape)> {
        let (len, x, above) = (length(xl, self.keys)?, numbers(x, xl)?, numbers(above, al)?);
        let out = each(self.keys, len, |key, image, out| {
            key.fill_normal(out);
            for ((out, &x), &above) in out.iter_mut().zip(&x[image * len..]).zip(&above[image * len..]) {
                let noisy = x + self.sigma * *out;
                *out = if (0.0..=1.0).contains(&noisy) { above } else { 0.0 };
            }
        });
        Ok((out, xl.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        xl: &Layout,
        above: &candle_core::CudaStorage,
        al: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let len = length(xl, self.keys)?;
        Ok((kernels::keep_inside(self.keys, len, self.sigma, (x, xl), (above, al))?, xl.shape().clone()))
    }
}

#[cfg(test)]
mod tests;
