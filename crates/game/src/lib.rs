//! The vocabulary of the game: keys, classifiers, defenses, goals, norms.
//!
//! Nothing here knows a network, a defense or an attack. A [`Classifier`] maps pixels in `[0, 1]` to logits, a
//! [`Defense`] maps pixels to pixels, and all chance either of them uses comes from a [`Key`].

mod catalogue;
mod classifier;
mod defense;
mod fill;
mod fraction;
mod goal;
mod interval;
mod key;
mod norm;
mod program;
mod vectorised;
pub mod vote;

pub use catalogue::Entry;
pub use classifier::Classifier;
pub use defense::{Defense, Gradient, pullback};
pub use fraction::{Fraction, number, triple, within_pixels};
pub use goal::Goal;
pub use interval::{Pairs, mcnemar, paired_difference, wilson, wilson_rate};
pub use key::{Key, Phase, philox4x32_10};
pub use norm::Norm;
pub use program::Program;
pub use vectorised::InstructionSet;
