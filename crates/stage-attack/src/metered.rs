//! A network that reports its evaluations.

use candle_core::{Device, Tensor};
use game::{Classifier, Key};
use stage::Progress;

/// A network whose evaluations by the attack move a progress bar.
pub(crate) struct Metered<'a> {
    pub network: &'a dyn Classifier,
    pub progress: &'a Progress,
}

impl Classifier for Metered<'_> {
    fn classes(&self) -> usize {
        self.network.classes()
    }

    fn device(&self) -> &Device {
        self.network.device()
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> candle_core::Result<Tensor> {
        let logits = self.network.logits(x, keys)?;
        self.progress.advance(x.dim(0)? as u64);
        Ok(logits)
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let gradient = self.network.input_gradient(x, keys, upstream)?;
        self.progress.advance(x.dim(0)? as u64);
        Ok(gradient)
    }
}
