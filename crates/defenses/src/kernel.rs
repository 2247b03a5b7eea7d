//! From an image in a slice to a batch in a tensor, in one place.

use std::mem::{MaybeUninit, take};

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, WithDType, bail};
use game::Key;
use rayon::prelude::*;

use crate::device::Batch;

/// The numbers a kernel computes with: `f32` in runs, `f64` where tests differentiate by finite differences.
///
/// The conversions are candle's, made to inline into code that is compiled for several instruction sets.
pub trait Pixel: WithDType + Default {
    /// The number of bits.
    const BITS: u32;

    /// A number and where it stands, in one integer: the number's ordered bits above the 32 of the place.
    type Placed: Copy + Default + Ord + 'static;

    /// The nearest number of this kind.
    fn narrow(value: f64) -> Self;

    /// Draws of a key in this kind.
    fn drawn(value: f32) -> Self;

    /// The same number in double precision.
    fn widen(self) -> f64;

    /// The nearest integer, the even one of two.
    fn round_even(self) -> Self;

    /// `self / divisor` for whole numbers, of which the second is at most 2^16 and has this `reciprocal`.
    ///
    /// In single precision a product in double precision gives the same bits sooner: such a quotient is never so near the
    /// middle of two single numbers that the product's rounding could cross it.
    fn over(self, divisor: Self, reciprocal: f64) -> Self;

    /// The pixel of a byte: `byte / 255`.
    fn of_byte(byte: i32) -> Self;

    /// Bits that order as the numbers do (and put -0 below 0).
    fn ordered(self) -> u64;

    /// The number at a place.
    fn place(self, place: u32) -> Self::Placed;

    /// The number, its place, and its ordered bits from `shift` on.
    fn placed(placed: Self::Placed, shift: u32) -> (Self, u32, u64);

    /// The nearest number in `[0, 1]`.
    #[inline(always)]
    fn clipped(self) -> Self {
        let positive = if self < Self::zero() { Self::zero() } else { self };
        if positive > Self::one() { Self::one() } else { positive }
    }

    /// Whether the number is in `[0, 1]`, where clipping changes nothing.
    #[inline(always)]
    fn is_inside(self) -> bool {
        self >= Self::zero() && self <= Self::one()
    }
}

macro_rules! pixel {
    ($kind:ident, $bits:ident, $wide:ident, $over:expr, $of_byte:expr) => {
        impl Pixel for $kind {
            const BITS: u32 = $bits::BITS;
            type Placed = $wide;

            #[inline(always)]
            fn narrow(value: f64) -> Self {
                value as Self
            }

            #[inline(always)]
            fn drawn(value: f32) -> Self {
                value.into()
            }

            #[inline(always)]
            fn widen(self) -> f64 {
                self.into()
            }

            #[inline(always)]
            fn round_even(self) -> Self {
                self.round_ties_even()
            }

            #[inline(always)]
            fn over(self, divisor: Self, reciprocal: f64) -> Self {
                $over(self, divisor, reciprocal)
            }

            #[inline(always)]
            fn of_byte(byte: i32) -> Self {
                $of_byte(byte as Self)
            }

            #[inline(always)]
            fn ordered(self) -> u64 {
                const SIGN: $bits = 1 << ($bits::BITS - 1);
                let bits = self.to_bits();
                (if bits & SIGN == 0 { bits | SIGN } else { !bits }).into()
            }

            #[inline(always)]
            fn place(self, place: u32) -> $wide {
                $wide::from(self.ordered()) << 32 | $wide::from(place)
            }

            #[inline(always)]
            fn placed(placed: $wide, shift: u32) -> (Self, u32, u64) {
                const SIGN: $bits = 1 << ($bits::BITS - 1);
                let ordered = (placed >> 32) as $bits;
                let value = Self::from_bits(if ordered & SIGN == 0 { !ordered } else { ordered ^ SIGN });
                (value, placed as u32, u64::from(ordered) >> shift)
            }
        }
    };
}

pixel!(
    f32,
    u32,
    u64,
    |a: f32, _, reciprocal| (f64::from(a) * reciprocal) as f32,
    // A quotient sooner than by division: the first product is exact, the second too small for its rounding to matter.
    |byte: f32| byte * BY_255[0] + byte * BY_255[1]
);
pixel!(f64, u64, u128, |a: f64, b: f64, _| a / b, |byte: f64| byte / 255.0);

/// 1/255 in 16 bits, and what is missing.
const BY_255: [f32; 2] = [16_843_008.0 / 4_294_967_296.0, (1.0 / 255.0 - 16_843_008.0 / 4_294_967_296.0) as f32];

/// How many draws of a key are made and used at a time: few enough to stay in the first cache.
pub const CHUNK: usize = 2048;

/// Calls `each` with the chunks of `0..len` and the standard normal numbers of `key` for them.
pub fn normals(key: Key, len: usize, mut each: impl FnMut(std::ops::Range<usize>, &[f32])) {
    chunks(len, |range, noise| {
        key.fill_normal_from(range.start as u64 / 4, noise);
        each(range, noise);
    });
}

/// Calls `each` with the chunks of `0..len` and the uniform numbers of `key` for them.
pub fn uniforms(key: Key, len: usize, mut each: impl FnMut(std::ops::Range<usize>, &[f32])) {
    chunks(len, |range, noise| {
        key.fill_uniform_from(range.start as u64 / 4, noise);
        each(range, noise);
    });
}

fn chunks(len: usize, mut each: impl FnMut(std::ops::Range<usize>, &mut [f32])) {
    let mut buffer = [0.0; CHUNK];
    for start in (0..len).step_by(CHUNK) {
        let n = CHUNK.min(len - start);
        each(start..start + n, &mut buffer[..n]);
    }
}

/// An integer drawn uniformly from `low..=high`.
pub fn integer(key: Key, low: u64, high: u64) -> usize {
    (low + key.below(high.saturating_sub(low) + 1)) as usize
}

/// Refuses a range whose ends are not in order.
pub fn ordered<T: PartialOrd + std::fmt::Display>(
    (low_name, low): (&str, T),
    (high_name, high): (&str, T),
) -> std::result::Result<(), String> {
    if low <= high { Ok(()) } else { Err(format!("{low_name} = {low} must be at most {high_name} = {high}")) }
}

/// Refuses a number that is not finite or below `least`.
pub fn at_least(name: &str, value: f64, least: f64) -> std::result::Result<(), String> {
    if value.is_finite() && value >= least {
        Ok(())
    } else {
        Err(format!("{name} = {value} must be a finite number of at least {least}"))
    }
}

/// Refuses a standard deviation of noise that is none of pixels in `[0, 1]`: smoothing has been tried up to about 1, and with
/// 2 nothing of an image is left.
pub fn deviation(name: &str, value: f64) -> std::result::Result<(), String> {
    at_least(name, value, 0.0)?;
    game::within_pixels(name, value, &value, 2.0)
}

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

/// Fresh memory for one image, handed out piece by piece and zero.
///
/// Memory that is cleared just before it is filled is still in the first cache then.
pub struct Canvas<'a, F> {
    rest: &'a mut [MaybeUninit<F>],
}

impl<'a, F: Pixel> Canvas<'a, F> {
    /// The next `n` elements.
    pub fn next(&mut self, n: usize) -> &'a mut [F] {
        let (piece, rest) = take(&mut self.rest).split_at_mut(n);
        self.rest = rest;
        piece.fill(MaybeUninit::new(F::zero()));
        // SAFETY: all of it has just been written.
        unsafe { &mut *(std::ptr::from_mut(piece) as *mut [F]) }
    }

    /// All that has not been handed out yet.
    pub fn rest(&mut self) -> &'a mut [F] {
        self.next(self.rest.len())
    }
}

/// The image that a kernel makes of one.
#[cfg(test)]
pub fn output<K: Kernel, F: Pixel>(kernel: &K, x: &[F], shape: Shape, key: Key) -> Vec<F> {
    let mut out = vec![MaybeUninit::new(F::zero()); kernel.output(shape).expect("an image that fits").len()];
    let mut canvas = Canvas { rest: &mut out };
    kernel.forward(x, shape, key, &mut canvas);
    canvas.rest();
    // SAFETY: the canvas has been handed out to its end.
    out.into_iter().map(|x| unsafe { x.assume_init() }).collect()
}

/// A transformation of one image, and its transposed derivative.
pub trait Kernel: Sync {
    /// The output's shape.
    fn output(&self, input: Shape) -> Result<Shape> {
        Ok(input)
    }

    /// Fills `out` with the transformed image.
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut Canvas<'_, F>);

    /// Fills `out`, which is zero, with the product of `upstream` and the Jacobian at `x`.
    fn backward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, upstream: &[F], out: &mut [F]);

    /// [`forward`](Self::forward) of every image where they are, by kernels there; unless written, on the host.
    fn launch(&self, batch: &Batch<'_>) -> Result<Tensor>
    where
        Self: Sized,
    {
        forward_on_host(self, batch)
    }

    /// [`backward`](Self::backward) of every image in the same way.
    fn launch_back(&self, batch: &Batch<'_>, upstream: &Tensor) -> Result<Tensor>
    where
        Self: Sized,
    {
        backward_on_host(self, batch, upstream)
    }
}

/// Implements [`Defense`](game::Defense) with the kernel and the field `gradient`.
macro_rules! defense {
    ($kind:ident) => {
        impl game::Defense for $kind {
            fn apply(&self, x: &candle_core::Tensor, keys: &[game::Key]) -> candle_core::Result<candle_core::Tensor> {
                $crate::kernel::forward(self, x, keys)
            }

            fn gradient(&self) -> game::Gradient {
                self.gradient
            }

            fn exact_pullback(
                &self,
                x: &candle_core::Tensor,
                keys: &[game::Key],
                upstream: &candle_core::Tensor,
            ) -> candle_core::Result<candle_core::Tensor> {
                $crate::kernel::backward(self, x, keys, upstream)
            }
        }
    };
}
pub(crate) use defense;

/// Transforms a batch `(n, c, h, w)` of `f32` or `f64`, one key per image.
pub fn forward<K: Kernel>(kernel: &K, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
    let shape = shape_of(x, keys)?;
    let output = kernel.output(shape)?;
    let batch = Batch { x, keys, shape, output };
    if gpu::kernels::takes(x) { kernel.launch(&batch) } else { forward_on_host(kernel, &batch) }
}

fn forward_on_host<K: Kernel>(kernel: &K, &Batch { x, keys, shape, output }: &Batch<'_>) -> Result<Tensor> {
    let host = to_host(x)?;
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
    let (shape, output) = (shape_of(x, keys)?, shape_of(upstream, keys)?);
    if output != kernel.output(shape)? || upstream.dtype() != x.dtype() {
        bail!(
            "a gradient {:?} ({:?}) does not fit an input {:?} ({:?})",
            upstream.dims(),
            upstream.dtype(),
            x.dims(),
            x.dtype()
        )
    }
    let batch = Batch { x, keys, shape, output };
    if gpu::kernels::takes(x) {
        kernel.launch_back(&batch, upstream)
    } else {
        backward_on_host(kernel, &batch, upstream)
    }
}

fn backward_on_host<K: Kernel>(
    kernel: &K,
    &Batch { x, keys, shape, output }: &Batch<'_>,
    upstream: &Tensor,
) -> Result<Tensor> {
    let (host, above) = (to_host(x)?, to_host(upstream)?);
    let (both, shapes) = ([&host, &above], [shape, output]);
    match host.dtype() {
        DType::F32 => images::<f32>(&both, &shapes, shape, keys, x.device(), |ins, key, out| {
            kernel.backward(ins[0], shape, key, ins[1], out.rest());
        }),
        DType::F64 => images::<f64>(&both, &shapes, shape, keys, x.device(), |ins, key, out| {
            kernel.backward(ins[0], shape, key, ins[1], out.rest());
        }),
        other => bail!("a defense takes f32 or f64 pixels, not {other:?}"),
    }
}

/// The shape of each image.
fn shape_of(x: &Tensor, keys: &[Key]) -> Result<Shape> {
    let (n, channels, height, width) = x.dims4()?;
    if n != keys.len() {
        bail!("{n} images with {} keys: a defense needs one key per image", keys.len())
    }
    Ok(Shape { channels, height, width })
}

#[cfg(test)]
thread_local! {
    /// How often this thread has computed on the host.
    pub static ON_HOST: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// The batch, contiguous in host memory.
pub fn to_host(x: &Tensor) -> Result<Tensor> {
    #[cfg(test)]
    ON_HOST.set(ON_HOST.get() + 1);
    x.to_device(&Device::Cpu)?.contiguous()
}

/// Computes every output image from the same image of every input, in parallel over images.
fn images<F: Pixel>(
    inputs: &[&Tensor],
    shapes: &[Shape],
    output: Shape,
    keys: &[Key],
    device: &Device,
    compute: impl Fn(&[&[F]], Key, &mut Canvas<'_, F>) + Sync,
) -> Result<Tensor> {
    let guards: Vec<_> = inputs.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let slices = guards.iter().map(|(storage, layout)| slice::<F>(storage, layout)).collect::<Result<Vec<_>>>()?;
    let (image, len) = (output.len(), keys.len() * output.len());
    let mut out = Vec::with_capacity(len);
    // Zero-sized images have no chunks, and nothing to compute.
    out.spare_capacity_mut()[..len].par_chunks_mut(image.max(1)).zip(keys).enumerate().for_each(|(i, (rest, &key))| {
        let ins: [&[F]; 2] = std::array::from_fn(|k| match slices.get(k) {
            Some(all) => &all[i * shapes[k].len()..][..shapes[k].len()],
            None => &[],
        });
        let mut canvas = Canvas { rest };
        compute(&ins, key, &mut canvas);
        canvas.rest();
    });
    // SAFETY: there is a key for every image, and every canvas has been handed out to its end.
    unsafe { out.set_len(len) };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_divided_by_255_with_one_rounding() {
        for byte in 0..=255u8 {
            assert_eq!(f32::of_byte(byte.into()), f32::from(byte) / 255.0);
            assert_eq!(f64::of_byte(byte.into()), f64::from(byte) / 255.0);
        }
    }

    #[test]
    fn a_canvas_hands_out_zeros_once() {
        let mut memory = [MaybeUninit::new(7.0f32); 10];
        let mut canvas = Canvas { rest: &mut memory };
        let first = canvas.next(4);
        assert_eq!(first, [0.0; 4]);
        first.fill(1.0);
        assert_eq!((canvas.rest().len(), canvas.rest().len()), (6, 0));
    }
}
