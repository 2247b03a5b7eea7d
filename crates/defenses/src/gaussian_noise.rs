//! Gaussian noise on every pixel.

use candle_core::{Result, Tensor};
use game::{Entry, Gradient, Key, vectorised};
use serde::{Deserialize, Serialize};

use crate::device::Batch;
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};

/// Adds `sigma` times standard normal noise to every channel of every pixel.
///
/// Randomised smoothing adds it unclipped (Cohen et al. 2019; Gao et al. 2022, section 6.2); the fine-tuned ImageNette
/// classifiers clip the result to `[0, 1]` and take both steps for the identity when differentiating (appendix D.3).
/// The exact derivative is 1 where the noisy pixel is in `[0, 1]`, ends included, and 0 where it is clipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianNoise {
    /// Standard deviation, in pixel units of `[0, 1]`; at least 0, at most 2.
    #[serde(deserialize_with = "game::number")]
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
        kernel::deviation("sigma", self.sigma)
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

vectorised! {
    /// Adds `sigma` times the noise `z`.
    fn add<F: Pixel>(x: &[F], z: &[f32], sigma: F, clip: bool, out: &mut [F]) {
        for ((out, &pixel), &z) in out.iter_mut().zip(x).zip(z) {
            let noisy = pixel + sigma * F::drawn(z);
            *out = if clip { noisy.clipped() } else { noisy };
        }
    }
}

vectorised! {
    /// Passes on the gradient where the noisy pixel is not clipped.
    fn keep_inside<F: Pixel>(x: &[F], z: &[f32], sigma: F, upstream: &[F], out: &mut [F]) {
        for (((out, &pixel), &z), &upstream) in out.iter_mut().zip(x).zip(z).zip(upstream) {
            let inside = (pixel + sigma * F::drawn(z)).is_inside();
            *out = if inside { upstream } else { F::zero() };
        }
    }
}

impl Kernel for GaussianNoise {
    fn forward<F: Pixel>(&self, x: &[F], _: Shape, key: Key, out: &mut Canvas<'_, F>) {
        let sigma = F::narrow(self.sigma);
        kernel::normals(key, x.len(), |i, z| add(&x[i], z, sigma, self.clip, out.next(z.len())));
    }

    fn backward<F: Pixel>(&self, x: &[F], _: Shape, key: Key, upstream: &[F], out: &mut [F]) {
        if !self.clip {
            return out.copy_from_slice(upstream);
        }
        let sigma = F::narrow(self.sigma);
        kernel::normals(key, x.len(), |i, z| {
            keep_inside(&x[i.clone()], z, sigma, &upstream[i.clone()], &mut out[i]);
        });
    }

    fn launch(&self, batch: &Batch<'_>) -> Result<Tensor> {
        gpu::noise::add_normal(batch.x, batch.keys, self.sigma as f32, self.clip)
    }

    fn launch_back(&self, batch: &Batch<'_>, upstream: &Tensor) -> Result<Tensor> {
        if !self.clip {
            return Ok(upstream.clone());
        }
        gpu::noise::keep_inside(batch.x, batch.keys, self.sigma as f32, upstream)
    }
}

kernel::defense!(GaussianNoise);

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use game::Defense as _;

    use super::*;

    #[test]
    fn the_gpus_way_gives_the_same_bits_where_the_cpu_goes_it() {
        let mut pixels = vec![0.0; 2 * 3 * 50 * 41];
        Key::root(1).fill_uniform(&mut pixels);
        let x = Tensor::from_vec(pixels, (2, 3, 50, 41), &Device::Cpu).unwrap();
        let (keys, above) = ([Key::root(2), Key::root(3)], (&x - 0.5).unwrap());
        let bits = |x: Tensor| -> Vec<u32> {
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        };
        for noise in GaussianNoise::examples() {
            let sigma = noise.sigma as f32;
            let ours = noise.apply(&x, &keys).unwrap();
            assert_eq!(bits(ours), bits(gpu::noise::add_normal(&x, &keys, sigma, noise.clip).unwrap()));
            if noise.clip {
                let ours = noise.exact_pullback(&x, &keys, &above).unwrap();
                assert_eq!(bits(ours), bits(gpu::noise::keep_inside(&x, &keys, sigma, &above).unwrap()));
            }
        }
    }
}
