//! Networks of candle's model library (`candle-transformers`), with gradients that reach the image.
//!
//! Candle's layers are made for answers, not for attacks: its layer normalisation and its quick softmax have no backward pass
//! and cut the gradient without a word, so that its transformers seem to withstand every attack; its convolutions compute
//! gradients of frozen weights, too. So the blocks here are our own. Forward they are timm's networks, with timm's names, and
//! candle's own, which the tests compare with; backward every architecture of the catalogue is tested by finite differences.
//!
//! A [`Spec`] names an architecture; [`prepare`] takes its weights from a file's tensors; [`Zoo`] runs the two as a
//! [`game::Classifier`].

mod catalogue;
mod convnext;
mod efficientnet;
mod layers;
mod mobilenet;
mod names;
mod network;
mod ops;
mod resample;
mod spec;
mod vit;
mod weights;

pub use catalogue::names as architectures;
pub use network::Zoo;
pub use spec::{Invalid, Spec};
pub use weights::{initialise, parameters, prepare};

/// A number of channels as the mobile networks round it: to the nearest multiple of 8, and not below nine tenths.
fn round_channels(channels: f64) -> usize {
    let rounded = ((channels + 4.0) as usize / 8 * 8).max(8);
    if (rounded as f64) < 0.9 * channels { rounded + 8 } else { rounded }
}
