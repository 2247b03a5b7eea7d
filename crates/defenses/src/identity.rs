//! No defense.

use candle_core::{Result, Tensor, bail};
use game::{Defense, Entry, Gradient, Key};
use serde::{Deserialize, Serialize};

/// The identity: the undefended classifier.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {}

impl Entry for Identity {
    const ABOUT: &'static str = "no defense";
}

impl Defense for Identity {
    fn apply(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        let (n, ..) = x.dims4()?;
        if n != keys.len() {
            bail!("{n} images with {} keys: a defense needs one key per image", keys.len())
        }
        Ok(x.clone())
    }

    fn gradient(&self) -> Gradient {
        Gradient::Identity
    }
}
