//! From an image in a slice to a batch in a tensor, in one place.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, WithDType, bail};
use game::Key;
use rayon::prelude::*;

/// The numbers a kernel computes with: `f32` in runs, `f64` where tests differentiate by finite differences.
pub trait Pixel: WithDType {}

impl Pixel for f32 {}
impl Pixel for f64 {}

/// Channels, rows and columns of one image; pixel `(c, i, j)` is element `(c * height + i) * width + j`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

impl Shape {
    /// The number of pixels of one channel.
    pub const fn area(self) -> usize {
        self.height * self.width
    }

    /// The number of elements.
    pub const fn len(self) -> usize {
        self.channels * self.area()
    }
}

/// A transformation of one image, and its transposed derivative.
pub trait Kernel: Sync {
    /// The output's shape.
    fn output(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    /// Fills `out`, which is zero, with the transformed image.
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut [F]);

    /// Fills `out`, which is zero, with the product of `upstream` and the Jacobian at `x`.
    fn backward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, upstream: &[F], out: &mut [F]);
}

/// Transforms a batch `(n, c, h, w)` of `f32` or `f64`, one key per image.
pub fn forward<K: Kernel>(kernel: &K, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
    let (shape, host) = unpack(x, keys)?;
    let output = kernel.output(shape)?;
    match host.dtype() {
        DType::F32 => images::<f32>(&[&host], &[shape], output, keys, x.device(), |ins, key, out| {
            kernel.forward(ins[0], shape, key, out);
        }),
        DType::F64 => images::<f64>(&[&host], &[shape], output, keys, x.device(), |ins, key, out| {
            kernel.forward(ins[0], shape, key, out);
        }),
        other => bail!("a defense takes f32 or f64 pixels, not {other:?}"),
    }
}

/// Carries `upstream` `(n, c, h', w')` back through the transformation of `x` `(n, c, h, w)` drawn by `keys`.
pub fn backward<K: Kernel>(kernel: &K, x: &Tensor, keys: &[Key], upstream: &Tensor) -> Result<Tensor> {
    let (shape, host) = unpack(x, keys)?;
    let (output, above) = unpack(upstream, keys)?;
    if output != kernel.output(shape)? || above.dtype() != host.dtype() {
        bail!(
            "a gradient {:?} ({:?}) does not fit an input {:?} ({:?})",
            upstream.dims(),
            above.dtype(),
            x.dims(),
            x.dtype()
        )
    }
    let (both, shapes) = ([&host, &above], [shape, output]);
    match host.dtype() {
        DType::F32 => images::<f32>(&both, &shapes, shape, keys, x.device(), |ins, key, out| {
            kernel.backward(ins[0], shape, key, ins[1], out);
        }),
        DType::F64 => images::<f64>(&both, &shapes, shape, keys, x.device(), |ins, key, out| {
            kernel.backward(ins[0], shape, key, ins[1], out);
        }),
        other => bail!("a defense takes f32 or f64 pixels, not {other:?}"),
    }
}

/// The shape of each image, and the batch contiguous in host memory.
fn unpack(x: &Tensor, keys: &[Key]) -> Result<(Shape, Tensor)> {
    let (n, channels, height, width) = x.dims4()?;
    if n != keys.len() {
        bail!("{n} images with {} keys: a defense needs one key per image", keys.len())
    }
    Ok((Shape { channels, height, width }, x.to_device(&Device::Cpu)?.contiguous()?))
}

/// Computes every output image from the same image of every input, in parallel over images.
fn images<F: Pixel>(
    inputs: &[&Tensor],
    shapes: &[Shape],
    output: Shape,
    keys: &[Key],
    device: &Device,
    compute: impl Fn(&[&[F]], Key, &mut [F]) + Sync,
) -> Result<Tensor> {
    let guards: Vec<_> = inputs.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let slices = guards.iter().map(|(storage, layout)| slice::<F>(storage, layout)).collect::<Result<Vec<_>>>()?;
    let mut out = vec![F::zero(); keys.len() * output.len()];
    // Zero-sized images have no chunks, and nothing to compute.
    out.par_chunks_mut(output.len().max(1)).zip(keys).enumerate().for_each(|(i, (out, &key))| {
        let ins: [&[F]; 2] = std::array::from_fn(|k| match slices.get(k) {
            Some(all) => &all[i * shapes[k].len()..][..shapes[k].len()],
            None => &[],
        });
        compute(&ins, key, out);
    });
    let dims = (keys.len(), output.channels, output.height, output.width);
    Tensor::from_vec(out, dims, &Device::Cpu)?.to_device(device)
}

/// The elements of a contiguous host tensor.
fn slice<'a, F: WithDType>(storage: &'a Storage, layout: &candle_core::Layout) -> Result<&'a [F]> {
    let (Storage::Cpu(cpu), Some((from, to))) = (storage, layout.contiguous_offsets()) else {
        bail!("a kernel reads contiguous tensors in host memory")
    };
    let cpu: &CpuStorage = cpu;
    Ok(&cpu.as_slice::<F>()?[from..to])
}
