//! What an NVIDIA GPU does by our own hand, where candle has no quick or no keyed way.
//!
//! [`conv2d`] is every convolution of autograd: forward, input gradient and weight gradient by cuDNN, with the choice of
//! algorithm kept and the workspace reused; [`Convolutions`] are the same for plans, which place their memory themselves. Both
//! need the feature `cudnn`. [`kernels`] launches C++ of our own on tensors, which needs the feature `cuda`, or a C++ compiler in
//! tests; [`noise`] draws a [`game::Key`]'s numbers so. [`record`] makes a CUDA graph of launches. [`Halving`] meets memory that
//! runs out with smaller batches.
//!
//! The features only make the device's side: without them the crate builds, and its tests pass, on any machine.

mod conv;
mod device;
mod graph;
pub mod kernels;
mod memory;
pub mod noise;
mod precision;

pub use conv::{Convolutions, Geometry, Order, Prepared, Problem, Wanted, conv2d};
pub use device::{cudnn_version, name, offers, open, plans};
pub use graph::{Recording, record};
pub use memory::{Halving, batch, free, is_out_of_memory};
pub use precision::Precision;
