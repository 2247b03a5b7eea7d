//! Training: batch statistics, the loss, and AdamW.

use candle_core::{Device, Result, Tensor, backprop::GradStore, bail};
use serde::{Deserialize, Serialize};

use crate::{Graph, Weights};

/// A network in training mode: batch normalisation uses, and learns, the batches' statistics.
#[derive(Debug)]
pub struct Trainee {
    device: Device,
    weights: Weights,
}

impl Trainee {
    /// The network of `graph` with `weights` (f32 or f64), on `device`.
    ///
    /// # Errors
    /// If a tensor is missing, or cannot be moved to the device.
    pub fn new(_graph: &Graph, weights: &Weights, device: &Device) -> Result<Self> {
        Ok(Self { device: device.clone(), weights: weights.clone() })
    }

    /// Logits `(n, classes)` of images `(n, 3, h, w)` in `[0, 1]`; the running statistics take their step.
    ///
    /// # Errors
    /// If the shapes or types do not fit.
    pub fn logits(&mut self, _x: &Tensor) -> Result<Tensor> {
        bail!("not yet on {:?}", self.device)
    }

    /// The batch's mean cross-entropy, a scalar to call `backward` on, and the detached logits.
    ///
    /// # Errors
    /// If the shapes or types do not fit.
    pub fn loss(&mut self, x: &Tensor, labels: &[u32]) -> Result<(Tensor, Tensor)> {
        let logits = self.logits(x)?;
        Ok((cross_entropy(&logits, labels)?.mean_all()?, logits.detach()))
    }

    /// The weights and running statistics as they stand, on the CPU.
    ///
    /// # Errors
    /// If the device fails.
    pub fn weights(&self) -> Result<Weights> {
        Ok(self.weights.clone())
    }
}

/// Cross-entropy of each image: logits `(n, k)` and `n` labels to `(n)`.
///
/// # Errors
/// If a label is no class, or the shapes do not fit.
pub fn cross_entropy(_logits: &Tensor, _labels: &[u32]) -> Result<Tensor> {
    bail!("not yet")
}

/// Settings of [`AdamW`] (Loshchilov and Hutter 2019, algorithm 2); the defaults are PyTorch's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean of squared gradients.
    pub eps: f64,
    /// Share of the weights taken off at each step, times the learning rate.
    pub weight_decay: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// The AdamW optimiser: every trained parameter decays, as in PyTorch's.
#[derive(Debug)]
pub struct AdamW {
    settings: Settings,
    state: Weights,
}

impl AdamW {
    /// An optimiser that has taken no step.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, state: Weights::new() }
    }

    /// One step of `trainee`'s parameters down `gradients`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn step(&mut self, _trainee: &mut Trainee, _gradients: &GradStore, _learning_rate: f64) -> Result<()> {
        bail!("not yet with {:?}", self.settings)
    }

    /// What a later [`AdamW::restore`] needs to go on bit for bit: tensors that [`crate::weights::save`] writes.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state(&self) -> Result<Weights> {
        Ok(self.state.clone())
    }

    /// An optimiser in a state it was once in.
    ///
    /// # Errors
    /// If `state` is not one that [`AdamW::state`] gave.
    pub fn restore(settings: Settings, state: &Weights) -> Result<Self> {
        Ok(Self { settings, state: state.clone() })
    }
}
