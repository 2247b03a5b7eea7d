//! Gaussian noise on every pixel.

use candle_core::{Result, Tensor};
use game::{Defense, Entry, Gradient, Key};
use serde::{Deserialize, Serialize};

use crate::kernel::{self, Kernel, Pixel, Shape};

/// Adds `sigma` times standard normal noise to every channel of every pixel.
///
/// Randomised smoothing adds it unclipped (Cohen et al. 2019; Gao et al. 2022, section 6.2); the fine-tuned ImageNette
/// classifiers clip the result to `[0, 1]` and take both steps for the identity when differentiating (appendix D.3).
/// The exact derivative is 1 where the noisy pixel is in `[0, 1]`, ends included, and 0 where it is clipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianNoise {
    /// Standard deviation, in pixel units of `[0, 1]`; at least 0.
    pub sigma: f64,
    /// Whether noisy pixels are clipped to `[0, 1]`.
    pub clip: bool,
    /// How an attack differentiates the clipping; without clipping both answers are the same.
    pub gradient: Gradient,
}

impl Default for GaussianNoise {
    fn default() -> Self {
        Self { sigma: 0.25, clip: false, gradient: Gradient::Identity }
    }
}

impl Entry for GaussianNoise {
    const ABOUT: &'static str = "Gaussian noise on every pixel";

    fn check(&self) -> std::result::Result<(), String> {
        if self.sigma.is_finite() && self.sigma >= 0.0 {
            Ok(())
        } else {
            Err(format!("sigma = {} must be a finite number of at least 0", self.sigma))
        }
    }

    fn examples() -> Vec<Self> {
        vec![
            Self::default(),
            Self { sigma: 0.5, clip: true, gradient: Gradient::Identity },
            Self { sigma: 0.5, clip: true, gradient: Gradient::Exact },
            Self { gradient: Gradient::Exact, ..Self::default() },
        ]
    }
}

impl GaussianNoise {
    /// Calls `each` with every index and noisy, unclipped pixel.
    fn noisy<F: Pixel>(&self, x: &[F], key: Key, mut each: impl FnMut(usize, F)) {
        let sigma = F::from_f64(self.sigma);
        let mut noise = vec![0.0f32; x.len()];
        key.fill_normal(&mut noise);
        for (i, (&pixel, z)) in x.iter().zip(noise).enumerate() {
            each(i, pixel + sigma * F::from_f64(f64::from(z)));
        }
    }
}

impl Kernel for GaussianNoise {
    fn forward<F: Pixel>(&self, x: &[F], _: Shape, key: Key, out: &mut [F]) {
        self.noisy(x, key, |i, pixel| {
            out[i] = match pixel {
                low if self.clip && low < F::zero() => F::zero(),
                high if self.clip && high > F::one() => F::one(),
                inside => inside,
            }
        });
    }

    fn backward<F: Pixel>(&self, x: &[F], _: Shape, key: Key, upstream: &[F], out: &mut [F]) {
        if !self.clip {
            return out.copy_from_slice(upstream);
        }
        self.noisy(x, key, |i, pixel| {
            if (F::zero()..=F::one()).contains(&pixel) {
                out[i] = upstream[i];
            }
        });
    }
}

impl Defense for GaussianNoise {
    fn apply(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        kernel::forward(self, x, keys)
    }

    fn gradient(&self) -> Gradient {
        self.gradient
    }

    fn exact_pullback(&self, x: &Tensor, keys: &[Key], upstream: &Tensor) -> Result<Tensor> {
        kernel::backward(self, x, keys, upstream)
    }
}
