//! Networks as graphs: architectures, weights, and the autograd executor.
//!
//! A [`Spec`] names an architecture and gives its [`Graph`]; [`Weights`] come from a file ([`weights::open`], then
//! [`weights::Checkpoint::fit`]) or from a key ([`weights::initialise`]). [`Network`] runs the two frozen, [`Trainee`] trains
//! them. [`Inside`] makes a trained network stochastic.

mod fold;
mod fused;
pub mod graph;
mod inside;
mod network;
pub mod ops;
pub mod spec;
mod steps;
pub mod train;
pub mod weights;

pub use fold::fold;
pub use gpu::Precision;
pub use graph::{Conv, Graph, Id, Node, Op, Pad, Padding};
pub use inside::Inside;
pub use network::Network;
pub use simd::Isa;
pub use spec::Spec;
pub use train::{AdamW, Trainee};

/// Parameters and running statistics by name.
pub type Weights = std::collections::BTreeMap<String, candle_core::Tensor>;
