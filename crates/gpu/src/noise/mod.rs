//! Keyed noise where the images are: the numbers a [`Key`] fills a host's memory with, made on the GPU.
//!
//! The kernels' arithmetic is that of the CPU, operation by operation, and each is rounded on its own, so the bits should be
//! the same too.

use candle_core::{DType, Device, Result, Tensor, bail};
use game::Key;
use rayon::prelude::*;

use crate::kernels::{Call, Parameters, Source, takes};

const SOURCE: Source = Source { name: "noise", text: include_str!("noise.cu") };

/// Uniform numbers in `[0, 1)` in the shape of `x` `(n, ...)`, f32: image `i`'s are those of `keys[i]`, row-major.
///
/// # Errors
/// If the number of keys is not that of images, `x` is not f32, or the device fails.
pub fn uniform_like(x: &Tensor, keys: &[Key]) -> Result<Tensor> {
    check(x, keys)?;
    if takes(x) {
        return launch("uniform", x, keys, None, 0.0, false);
    }
    each(x, keys, |key, _, _, out| key.fill_uniform(out))
}

/// `x + sigma z` for the standard normal numbers `z` of each image's key, in `[0, 1]` if `clip`; `x` is `(n, ...)`, f32.
///
/// # Errors
/// As [`uniform_like`].
pub fn add_normal(x: &Tensor, keys: &[Key], sigma: f32, clip: bool) -> Result<Tensor> {
    check(x, keys)?;
    if takes(x) {
        return launch("add_normal", x, keys, None, sigma, clip);
    }
    each(x, keys, |key, _, x, out| {
        key.fill_normal(out);
        for (out, &x) in out.iter_mut().zip(x) {
            let noisy = x + sigma * *out;
            // Not `clamp`, whose zeros have other signs.
            let positive = if clip && noisy < 0.0 { 0.0 } else { noisy };
            *out = if clip && positive > 1.0 { 1.0 } else { positive };
        }
    })
}

/// What of `upstream` passes the clipping of [`add_normal`]: its entries where `x + sigma z` is in `[0, 1]`, 0 elsewhere.
///
/// # Errors
/// As [`uniform_like`], and if the shapes differ.
pub fn keep_inside(x: &Tensor, keys: &[Key], sigma: f32, upstream: &Tensor) -> Result<Tensor> {
    check(x, keys)?;
    if x.dims() != upstream.dims() {
        bail!("a gradient of {:?} does not fit images of {:?}", upstream.dims(), x.dims())
    }
    if takes(x) {
        return launch("keep_inside", x, keys, Some(upstream), sigma, true);
    }
    let above = upstream.flatten_all()?.to_vec1::<f32>()?;
    each(x, keys, |key, image, x, out| {
        key.fill_normal(out);
        for ((out, &x), &above) in out.iter_mut().zip(x).zip(&above[image * x.len()..]) {
            *out = if (0.0..=1.0).contains(&(x + sigma * *out)) { above } else { 0.0 };
        }
    })
}

fn check(x: &Tensor, keys: &[Key]) -> Result<()> {
    if x.dims().first() != Some(&keys.len()) {
        bail!("images {:?} with {} keys: noise needs one key per image", x.dims(), keys.len())
    }
    if x.dtype() != DType::F32 {
        bail!("noise is f32, not {:?}", x.dtype())
    }
    Ok(())
}

/// As `Noise` in noise.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Noise {
    words: u64,
    x: u64,
    upstream: u64,
    out: u64,
    len: u64,
    sigma: f32,
    clip: i32,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Noise {}

fn launch(kernel: &str, x: &Tensor, keys: &[Key], upstream: Option<&Tensor>, sigma: f32, clip: bool) -> Result<Tensor> {
    let mut call = Call::new(x.device());
    let words: Vec<u32> = keys.iter().flat_map(|key| key.words()).collect();
    let len = x.elem_count() / keys.len().max(1);
    let out = call.output(x.shape(), DType::F32)?;
    let noise = Noise {
        words: call.upload(&words)?,
        x: call.read(x, DType::F32)?,
        upstream: upstream.map_or(Ok(0), |upstream| call.read(upstream, DType::F32))?,
        out: out.address,
        len: len as u64,
        sigma,
        clip: i32::from(clip),
    };
    // SAFETY: every tensor has the shape of `x`, and each key its four words.
    unsafe { call.launch(&SOURCE, kernel, keys.len() * len.div_ceil(4), &noise)? };
    Ok(out.tensor())
}

/// Fills what `make(key, image, x, out)` makes of each image, in parallel.
fn each(x: &Tensor, keys: &[Key], make: impl Fn(Key, usize, &[f32], &mut [f32]) + Sync) -> Result<Tensor> {
    let pixels = x.flatten_all()?.to_vec1::<f32>()?;
    let (mut out, len) = (vec![0.0; pixels.len()], (pixels.len() / keys.len().max(1)).max(1));
    let images = out.par_chunks_mut(len).zip(pixels.par_chunks(len)).zip(keys).enumerate();
    images.for_each(|(image, ((out, x), &key))| make(key, image, x, out));
    Tensor::from_vec(out, x.shape(), &Device::Cpu)?.to_device(x.device())
}

#[cfg(test)]
mod tests;
