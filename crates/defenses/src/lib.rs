//! Stochastic pre-processing defenses, one file each.
//!
//! To add one: write its file (parameters, arithmetic, reference, unit test) and name it in the `catalogue!` below. The
//! parameter files, listings and contract tests take it from there.
//!
//! On a GPU a batch of f32 images stays where it is: beside a defense's file stands the text of its kernels (`*.cu`, behind
//! `common.cu`), compiled at run time, and `device.rs` says how they are launched. Parameters are drawn by the same code as on
//! the CPU, and the kernels draw the same bits of the same keys. Their tests run them on the host, beside the CPU's code. A
//! defense without kernels works, too: images come to the host for it, and go back.

mod block_dct;
mod crop;
mod dct;
mod device;
mod fft;
mod fourier;
mod gaussian_blur;
mod gaussian_noise;
#[cfg(test)]
mod golden;
mod identity;
mod jpeg;
mod kernel;
mod median_blur;
mod noise_injection;
mod odds;
mod program;
mod quantisation;
mod resample;
mod resize_pad;
mod rotation;
mod scratch;
mod stack;
mod swirl;

pub use block_dct::BlockDct;
pub use crop::{Crop, CropResize};
pub use fft::{Band, Fft};
pub use gaussian_blur::GaussianBlur;
pub use gaussian_noise::GaussianNoise;
pub use identity::Identity;
pub use jpeg::Jpeg;
pub use median_blur::MedianBlur;
pub use noise_injection::{Noise, NoiseInjection, PoissonScale};
pub use odds::{Detector, Erosion, MIN_IMAGES, Odds, Pair, Statistics, quantile};
pub use program::Program;
pub use quantisation::Quantisation;
pub use resample::Sampling;
pub use resize_pad::ResizePad;
pub use rotation::Rotation;
pub use stack::{Order, Stack};
pub use swirl::Swirl;

use game::Defense;

game::catalogue! {
    /// Any defense and its parameters.
    dyn Defense {
        "none" => Identity,
        "gaussian-noise" => GaussianNoise,
        "rotation" => Rotation,
        "noise-injection" => NoiseInjection,
        "gaussian-blur" => GaussianBlur,
        "median-blur" => MedianBlur,
        "swirl" => Swirl,
        "quantisation" => Quantisation,
        "fft" => Fft,
        "crop" => Crop,
        "crop-resize" => CropResize,
        "resize-pad" => ResizePad,
        "jpeg" => Jpeg,
        "block-dct" => BlockDct,
        "program" => Program,
        "stack" => Stack,
    }
}

impl Spec {
    /// The programs among its transformations, which somebody has to [start](Program::start).
    #[must_use]
    pub fn programs(&self) -> Vec<&Program> {
        match self {
            Self::Program(program) => vec![program],
            Self::Stack(stack) => stack.of.iter().flat_map(Self::programs).collect(),
            _ => Vec::new(),
        }
    }
}
