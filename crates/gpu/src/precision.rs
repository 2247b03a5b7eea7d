//! How exactly a GPU multiplies.

use serde::{Deserialize, Serialize};

/// In what numbers the convolutions of a frozen network multiply; sums are in f32, and so is everything between.
///
/// A choice other than f32 gives other numbers, so it is a parameter, with an address of its own; and only a GPU has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Products of f32: no tensor cores.
    #[default]
    F32,
    /// Factors rounded to 10 bits of mantissa with f32's range (NVIDIA's TF32, compute capability 8.0).
    Tf32,
    /// Factors, and each convolution's result, rounded to bfloat16: 7 bits of mantissa with f32's range.
    Bf16,
}

impl Precision {
    /// Whether this is f32, which every device has.
    #[must_use]
    pub fn is_full(&self) -> bool {
        *self == Self::F32
    }

    /// The name, as in parameters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}
