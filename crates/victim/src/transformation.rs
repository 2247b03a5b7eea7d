//! A program as a defense.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{Error, Tensor, TensorId};
use game::{Defense, Gradient, Key};

use crate::{Client, Fault, Result, process::Kind};

/// A program that answers `apply`: a transformation before a network of ours, or of another program.
pub struct Transformation {
    client: Arc<Client>,
    gradient: Gradient,
    kept: Mutex<Kept>,
}

/// What the program keeps for the gradient that an attack asks for next.
#[derive(Debug, Default)]
struct Kept {
    /// Whether the last transformed images were asked for their gradient: the next ones then will be, too.
    expected: bool,
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    x: TensorId,
    keys: Vec<Key>,
    id: (u64, u64),
}

impl fmt::Debug for Transformation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "program `{}`", self.client.program().line())
    }
}

impl Transformation {
    /// A program as a defense, differentiated as its parameters say: by asking it, unless they say `identity`.
    ///
    /// # Errors
    /// If it answers no `apply`, or no `pull` and its gradient is to be exact.
    pub fn new(client: Arc<Client>) -> Result<Self> {
        let gradient = client.program().gradient.unwrap_or_default();
        let fault = |reason: &str| {
            let (program, kind) = (client.program().line(), Kind::Misuse);
            Err(Fault { program, kind, reason: reason.to_owned(), last_words: Vec::new() })
        };
        if !client.hello().answers("apply") {
            return fault("it is a network and no transformation; name it as `model`");
        }
        if gradient == Gradient::Exact && !client.hello().answers("pull") {
            return fault("it has no gradient; set `gradient = \"identity\"`");
        }
        Ok(Self { client, gradient, kept: Mutex::default() })
    }

    /// The program.
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

impl Defense for Transformation {
    fn apply(&self, x: &Tensor, keys: &[Key]) -> candle_core::Result<Tensor> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = kept.last.take() {
            kept.expected = false;
            self.client.forget(last.id).map_err(Error::wrap)?;
        }
        let keep = kept.expected && self.gradient == Gradient::Exact;
        let (images, id) = self.client.applied(x, keys, keep).map_err(Error::wrap)?;
        kept.last = id.map(|id| Last { x: x.id(), keys: keys.to_vec(), id });
        images.to_dtype(x.dtype())?.to_device(x.device())
    }

    fn gradient(&self) -> Gradient {
        self.gradient
    }

    fn exact_pullback(&self, x: &Tensor, keys: &[Key], upstream: &Tensor) -> candle_core::Result<Tensor> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.expected = true;
        let last = kept.last.take_if(|last| last.x == x.id() && last.keys == keys);
        let id = last.map(|last| last.id);
        let answer = self.client.pull_kept(x, keys, upstream, id).map_err(Error::wrap)?;
        answer.gradient.to_dtype(x.dtype())?.to_device(x.device())
    }
}
