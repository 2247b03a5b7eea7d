//! Activations, sums, and scaling by channel.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, backend::BackendStorage, bail};
use rayon::prelude::*;

use super::{Element, device, dispatch, owned, plain, read, same_type, tensor, view, zeros};

/// Numbers a thread works on at once.
const CHUNK: usize = 1 << 14;

/// What is applied to every number of a layer's output.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`, with derivative 0 at 0.
    Relu,
    /// `min(max(x, 0), 6)`, with derivative 0 at 0 and at 6.
    Relu6,
    /// `max(x, slope x)`, with derivative `slope` at 0.
    LeakyRelu {
        /// In `[0, 1)`.
        slope: f64,
    },
}

impl Activation {
    /// The activation of `x`; of NaN it is NaN.
    #[inline]
    pub(super) fn of<T: Element>(self, x: T) -> T {
        match self {
            Self::None => x,
            Self::Relu if x < T::zero() => T::zero(),
            Self::Relu6 if x < T::zero() => T::zero(),
            Self::Relu6 if x > T::of(6.0) => T::of(6.0),
            Self::LeakyRelu { slope } if x < T::zero() => T::of(slope) * x,
            Self::Relu | Self::Relu6 | Self::LeakyRelu { .. } => x,
        }
    }

    /// The gradient before the activation, where its value is `out` and the gradient after it `dy`.
    #[inline]
    pub(super) fn pass<T: Element>(self, out: T, dy: T) -> T {
        let (open, below) = match self {
            Self::None => (true, T::zero()),
            Self::Relu => (out > T::zero(), T::zero()),
            Self::Relu6 => (out > T::zero() && out < T::of(6.0), T::zero()),
            Self::LeakyRelu { slope } => (out > T::zero(), T::of(slope) * dy),
        };
        if open { dy } else { below }
    }
}

/// The gradient before an activation, from its value and the gradient after it.
pub(super) fn mask(out: &Tensor, dy: &Tensor, activation: Activation) -> Result<Tensor> {
    if activation == Activation::None {
        return dy.contiguous();
    }
    dispatch!(dy.dtype(), T => read::<T, _>(out, |out| read::<T, _>(dy, |dy| {
        let mut masked = zeros::<T>(dy.len());
        masked.par_chunks_mut(CHUNK).zip(out.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)).for_each(|((to, out), dy)| {
            to.iter_mut().zip(out).zip(dy).for_each(|((to, &out), &dy)| *to = activation.pass(out, dy));
        });
        masked
    }))?.and_then(|masked| tensor(masked, dy.shape())))
}

/// An activation of any tensor.
///
/// # Errors
/// If the tensor is neither f32 nor f64.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if device::takes(x) {
        return if activation == Activation::None { Ok(x.clone()) } else { device::activate(x, None, activation) };
    }
    if !x.device().is_cpu() {
        return plain::activate(x, activation);
    }
    x.contiguous()?.apply_op1(Activate(activation))
}

/// `activation(x + y)`.
///
/// # Errors
/// If the shapes or types differ.
pub fn add(x: &Tensor, y: &Tensor, activation: Activation) -> Result<Tensor> {
    same_type("sum", x.dtype(), y.dtype())?;
    if device::takes(x) && x.dims() == y.dims() {
        return device::activate(x, Some(y), activation);
    }
    if !x.device().is_cpu() {
        return plain::activate(&(x + y)?, activation);
    }
    x.contiguous()?.apply_op2(&y.contiguous()?, Activate(activation))
}

#[derive(Debug)]
struct Activate(Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        dispatch!(x.dtype(), T => {
            let x: &[T] = view(x, layout)?;
            let mut out = zeros::<T>(x.len());
            out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| {
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = self.0.of(x));
            });
            Ok(owned(out, layout.shape()))
        })
    }

    fn bwd(&self, _: &Tensor, out: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        mask(out, dy, self.0).map(Some)
    }
}

impl CustomOp2 for Activate {
    fn name(&self) -> &'static str {
        "add-activate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, y: &CpuStorage, yl: &Layout) -> Result<(CpuStorage, Shape)> {
        if xl.dims() != yl.dims() {
            bail!("a sum of {:?} and {:?}", xl.dims(), yl.dims());
        }
        dispatch!(x.dtype(), T => {
            let (x, y): (&[T], &[T]) = (view(x, xl)?, view(y, yl)?);
            let mut out = zeros::<T>(x.len());
            out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(y.par_chunks(CHUNK)).for_each(|((out, x), y)| {
                out.iter_mut().zip(x).zip(y).for_each(|((out, &x), &y)| *out = self.0.of(x + y));
            });
            Ok(owned(out, xl.shape()))
        })
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, out: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = mask(out, dy, self.0)?;
        Ok((Some(dy.clone()), Some(dy)))
    }
}

/// `activation((x - centre) * scale + shift)` per channel, with fixed numbers: normalisation of pixels, and batch
/// normalisation with running statistics.
#[derive(Clone, Debug)]
pub struct Affine {
    /// Subtracted, per channel.
    pub centre: Vec<f64>,
    /// Multiplied, per channel.
    pub scale: Vec<f64>,
    /// Added, per channel.
    pub shift: Vec<f64>,
    /// Applied last.
    pub activation: Activation,
}

impl Affine {
    /// Of images `(n, c, h, w)`.
    ///
    /// # Errors
    /// If the channels do not fit.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (_, channels, ..) = x.dims4()?;
        let channels_of = [&self.centre[..], &self.scale, &self.shift];
        if channels_of.iter().any(|values| values.len() != channels) {
            bail!("images {:?} where {} channels are due", x.dims(), self.scale.len());
        }
        if device::takes(x) {
            return device::affine(x, channels_of, self.activation);
        }
        if !x.device().is_cpu() {
            let part = |values: &[f64]| Tensor::new(values, x.device())?.to_dtype(x.dtype())?.reshape((1, (), 1, 1));
            let centred = x.broadcast_sub(&part(&self.centre)?)?;
            let out = centred.broadcast_mul(&part(&self.scale)?)?.broadcast_add(&part(&self.shift)?)?;
            return plain::activate(&out, self.activation);
        }
        x.contiguous()?.apply_op1(self.clone())
    }
}

impl CustomOp1 for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, channels, h, w) = layout.shape().dims4()?;
        dispatch!(x.dtype(), T => {
            let x: &[T] = view(x, layout)?;
            let mut out = zeros::<T>(x.len());
            out.par_chunks_mut(h * w).zip(x.par_chunks(h * w)).enumerate().for_each(|(i, (out, x))| {
                let of = |values: &[f64]| T::of(values[i % channels]);
                let (centre, scale, shift) = (of(&self.centre), of(&self.scale), of(&self.shift));
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = self.activation.of((x - centre) * scale + shift));
            });
            Ok(owned(out, layout.shape()))
        })
    }

    fn bwd(&self, x: &Tensor, out: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, channels, h, w) = x.dims4()?;
        dispatch!(dy.dtype(), T => {
            let dx = read::<T, _>(out, |out| read::<T, _>(dy, |dy| {
                let mut dx = zeros::<T>(dy.len());
                let planes = out.par_chunks(h * w).zip(dy.par_chunks(h * w));
                dx.par_chunks_mut(h * w).zip(planes).enumerate().for_each(|(i, (dx, (out, dy)))| {
                    let scale = T::of(self.scale[i % channels]);
                    dx.iter_mut().zip(out).zip(dy).for_each(|((dx, &out), &dy)| *dx = self.activation.pass(out, dy) * scale);
                });
                dx
            }))??;
            tensor(dx, x.shape()).map(Some)
        })
    }
}
