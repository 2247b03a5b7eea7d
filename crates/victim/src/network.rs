//! A program as a network.

use std::sync::Arc;

use candle_core::{Device, Error, Tensor};
use game::{Classifier, Key};

use crate::{Client, Fault, Reduce, Result, process::Kind};

/// A program that answers `logits`: with whatever defense it holds, a network as any other.
///
/// Its device is the CPU: where the program computes is its own affair.
#[derive(Clone, Debug)]
pub struct Network {
    client: Arc<Client>,
    classes: usize,
}

impl Network {
    /// A program as a network.
    ///
    /// # Errors
    /// If it answers no `logits`.
    pub fn new(client: Arc<Client>) -> Result<Self> {
        match client.hello().classes.filter(|_| client.hello().answers("logits")) {
            Some(classes) => Ok(Self { client, classes }),
            None => Err(Fault {
                program: client.program().line(),
                kind: Kind::Misuse,
                reason: "it is a transformation and no network; name it as `defense`".to_owned(),
                last_words: Vec::new(),
            }),
        }
    }

    /// The program.
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

impl Classifier for Network {
    fn classes(&self) -> usize {
        self.classes
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> candle_core::Result<Tensor> {
        let keys = drawn(x, keys);
        self.client.logits(x, &keys).map_err(Error::wrap)?.to_dtype(x.dtype())
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let keys = drawn(x, keys);
        let answer = self.client.gradient(x, &keys, Reduce::Each, &mut |logits| upstream(&logits.to_dtype(x.dtype())?));
        answer.map_err(Error::wrap)?.gradient.to_dtype(x.dtype())
    }
}

/// The keys, of which a caller that knows nothing random may give none.
fn drawn(x: &Tensor, keys: &[Key]) -> Vec<Key> {
    if keys.is_empty() {
        return vec![Key::root(0); x.dims().first().copied().unwrap_or(0)];
    }
    keys.to_vec()
}
