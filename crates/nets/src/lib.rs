//! Networks as graphs: architectures, weights, and the autograd executor.

pub mod graph;

pub use graph::{Conv, Graph, Id, Node, Op, Padding};

/// Parameters and running statistics by name.
pub type Weights = std::collections::BTreeMap<String, candle_core::Tensor>;
