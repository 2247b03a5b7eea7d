//! Votes before and after an attack, one row per image.

mod params;

pub use params::{Goal, Params, Protocol, Stop, Votes};
