//! Stochastic pre-processing defenses, one file each.
//!
//! To add one: write its file (parameters, arithmetic, reference, unit test) and name it in the `catalogue!` below. The
//! parameter files, listings and contract tests take it from there.

mod gaussian_noise;
mod identity;
mod kernel;
mod noise_injection;
mod rotation;
mod stack;

pub use gaussian_noise::GaussianNoise;
pub use identity::Identity;
pub use noise_injection::{Noise, NoiseInjection, PoissonScale};
pub use rotation::Rotation;
pub use stack::{Order, Stack};

use game::Defense;

game::catalogue! {
    /// Any defense and its parameters.
    dyn Defense {
        "none" => Identity,
        "gaussian-noise" => GaussianNoise,
        "rotation" => Rotation,
        "noise-injection" => NoiseInjection,
        "stack" => Stack,
    }
}
