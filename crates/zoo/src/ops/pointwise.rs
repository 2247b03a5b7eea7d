//! Smooth activations.

use candle_core::{Result, Tensor};
use nets::ops::Element;

use super::Map;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pointwise {
    /// `x` times the normal distribution function of `x` (Hendrycks and Gimpel 2016), exactly.
    Gelu,
    /// `x sigmoid(x)`.
    Silu,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

/// The function of every number of a tensor.
pub(crate) fn pointwise(x: &Tensor, function: Pointwise) -> Result<Tensor> {
    function.apply(x)
}

/// `erf(x)` in the number's own precision.
fn erf<T: Element>(x: T) -> T {
    if size_of::<T>() == size_of::<f32>() {
        T::of(libm::erff(x.wide() as f32).into())
    } else {
        T::of(libm::erf(x.wide()))
    }
}

impl Pointwise {
    fn of<T: Element>(self, x: T) -> T {
        match self {
            Self::Gelu => T::of(0.5) * x * (T::one() + erf(x * T::of(std::f64::consts::FRAC_1_SQRT_2))),
            Self::Silu => x * Self::Sigmoid.of(x),
            Self::Sigmoid => T::one() / (T::one() + (-x).exp()),
        }
    }

    fn slope<T: Element>(self, x: T) -> T {
        match self {
            Self::Gelu => {
                let area = T::of(0.5) * (T::one() + erf(x * T::of(std::f64::consts::FRAC_1_SQRT_2)));
                let density = (T::of(-0.5) * x * x).exp()
                    * T::of(0.5 * std::f64::consts::FRAC_1_SQRT_2 * std::f64::consts::FRAC_2_SQRT_PI);
                area + x * density
            }
            Self::Silu => {
                let gate = Self::Sigmoid.of(x);
                gate * (T::one() + x * (T::one() - gate))
            }
            Self::Sigmoid => {
                let gate = Self::Sigmoid.of(x);
                gate * (T::one() - gate)
            }
        }
    }
}

impl Map for Pointwise {
    const NAME: &'static str = "pointwise";

    fn forward<T: Element>(&self, _: &[usize], _: &[&[T]], x: &[T], out: &mut [T]) {
        out.iter_mut().zip(x).for_each(|(out, &x)| *out = self.of(x));
    }

    fn backward<T: Element>(&self, _: &[usize], _: &[&[T]], x: &[T], dy: &[T], dx: &mut [T]) {
        dx.iter_mut().zip(x).zip(dy).for_each(|((dx, &x), &dy)| *dx = dy * self.slope(x));
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            // Candle's own has a gradient of six figures.
            Self::Gelu => (x * 0.5)? * ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?,
            Self::Silu => x * Self::Sigmoid.composed(x)?,
            Self::Sigmoid => (x.neg()?.exp()? + 1.0)?.recip(),
        }
    }
}
