//! A frozen network on candle's autograd.

use candle_core::{Device, Result, Tensor, bail};
use game::{Classifier, Key};

use crate::{Graph, Weights};

/// A frozen network in evaluation mode: batch normalisation uses its running statistics.
///
/// It computes in its weights' type, f32 or f64, and asks for images of that type. Gradients reach the input; the
/// weights have none. On the CPU an image's logits and gradient are the same bits in every batch and on any number of
/// threads.
#[derive(Debug)]
pub struct Network {
    classes: usize,
    device: Device,
}

impl Network {
    /// The network of `graph` with `weights`, on `device`.
    ///
    /// # Errors
    /// If a tensor is missing, or cannot be moved to the device.
    pub fn new(graph: &Graph, weights: &Weights, device: &Device) -> Result<Self> {
        let _ = crate::fold(graph, weights)?;
        Ok(Self { classes: graph.classes, device: device.clone() })
    }
}

impl Classifier for Network {
    fn classes(&self) -> usize {
        self.classes
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn logits(&self, _x: &Tensor, _keys: &[Key]) -> Result<Tensor> {
        bail!("not yet")
    }
}
