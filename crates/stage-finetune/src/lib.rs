//! Weights: imported, or trained on clean or defended data.

mod params;

pub use params::{Augment, Init, Keep, Params, Training};
