//! The inner loops, each written once over [`Simd`](simd::Simd).
//!
//! Activations are NHWC with the channels padded to whole vectors (the padding is zero) and a border of zeros, so no
//! kernel checks bounds. Every output is one sum in one fixed order, whatever the tile it falls in: tiles may cross
//! images without changing a bit.

#![expect(
    clippy::needless_range_loop,
    reason = "loops of constant length over indices become registers; iterators may not"
)]

pub(crate) mod adaptive;
pub(crate) mod depthwise;
pub(crate) mod largest;
pub(crate) mod map;
pub(crate) mod prune;
pub(crate) mod standard;
pub(crate) mod stem;

pub(crate) use simd::{
    Finish, View, dense,
    view::{End, split},
    winograd,
};
