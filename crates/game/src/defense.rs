//! Random transformations of the input, and how gradients pass them.

use std::fmt::Debug;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::Key;

/// How an attack differentiates a defense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gradient {
    /// The true derivative of the transformation at the drawn parameters.
    #[default]
    Exact,
    /// Backward-pass differentiable approximation by the identity (Athalye et al. 2018, section 4.1): the forward pass
    /// is exact, the backward pass takes the transformation for the identity.
    Identity,
}

/// A stochastic pre-processing defense: pixels in, pixels out, one key per image.
///
/// The output of image `i` depends on `x[i]` and `keys[i]` alone, never on its neighbours in the batch. The output's
/// shape depends on the input's shape and on the defense's parameters, never on a key.
pub trait Defense: Debug + Send + Sync {
    /// Transforms `(n, c, h, w)` with `n` keys to `(n, c, h', w')`.
    ///
    /// # Errors
    /// If the shapes or the number of keys do not fit.
    fn apply(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor>;

    /// How an attack differentiates this defense.
    fn gradient(&self) -> Gradient;

    /// The true vector-Jacobian product at `x` under the draws of `keys`: `upstream` `(n, c, h', w')` to `(n, c, h, w)`.
    ///
    /// # Errors
    /// If the defense has no derivative (the default), or the shapes do not fit.
    fn exact_pullback(&self, x: &Tensor, keys: &[Key], upstream: &Tensor) -> Result<Tensor> {
        let _ = (x, keys, upstream);
        bail!("{self:?} has no exact gradient: declare it `identity`")
    }
}

/// Carries a gradient back through a defense as the defense declares it: the one place where BPDA happens.
///
/// # Errors
/// If an identity-approximated defense changes the shape, or its exact gradient fails.
pub fn pullback(defense: &dyn Defense, x: &Tensor, keys: &[Key], upstream: &Tensor) -> Result<Tensor> {
    match defense.gradient() {
        Gradient::Exact => defense.exact_pullback(x, keys, upstream),
        Gradient::Identity if x.dims() == upstream.dims() => Ok(upstream.clone()),
        Gradient::Identity => bail!(
            "{defense:?} maps {:?} to {:?}: the identity can approximate it only if shapes are equal",
            x.dims(),
            upstream.dims()
        ),
    }
}
