//! Norms a perturbation is measured in.

use serde::{Deserialize, Serialize};

/// The norm that bounds a perturbation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// The largest absolute change of one channel of one pixel.
    #[default]
    Linf,
    /// The Euclidean length over all channels and pixels.
    L2,
}
