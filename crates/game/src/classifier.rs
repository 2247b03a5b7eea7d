//! What an attack may ask of a network.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};

use crate::Key;

/// A function from images to logits, and its gradient.
///
/// Images are `(n, c, h, w)` tensors of pixels, in `[0, 1]` before any defense; normalisation is the network's first
/// layer. `keys` holds one key per image for networks with randomness inside; deterministic networks ignore it. Every
/// result row depends on its own image and key alone, so it is the same in any batch.
pub trait Classifier: Send + Sync {
    /// The number of classes `k`.
    fn classes(&self) -> usize;

    /// The device on which inputs are expected and outputs returned.
    fn device(&self) -> &Device;

    /// Logits: `(n, c, h, w)` to `(n, k)`.
    ///
    /// # Errors
    /// If the shapes do not fit the network, or the device fails.
    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor>;

    /// One gradient query per image: the product of `upstream` with the Jacobian of the logits, `(n, c, h, w)`.
    ///
    /// `upstream` is called once with the logits `(n, k)` and answers with the loss's gradient with respect to them,
    /// `(n, k)`. This default asks candle's autograd and is the reference for every faster implementation.
    ///
    /// # Errors
    /// If the shapes do not fit the network, `upstream` fails, or the device does.
    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let x = Var::from_tensor(&x.detach())?;
        let logits = self.logits(x.as_tensor(), keys)?;
        let upstream = upstream(&logits.detach())?.detach();
        let gradients = (logits * upstream)?.sum_all()?.backward()?;
        match gradients.get(x.as_tensor()) {
            Some(gradient) => Ok(gradient.clone()),
            None => x.as_tensor().zeros_like(),
        }
    }
}

impl<C: Classifier + ?Sized> Classifier for Arc<C> {
    fn classes(&self) -> usize {
        self.as_ref().classes()
    }

    fn device(&self) -> &Device {
        self.as_ref().device()
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        self.as_ref().logits(x, keys)
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.as_ref().input_gradient(x, keys, upstream)
    }
}
