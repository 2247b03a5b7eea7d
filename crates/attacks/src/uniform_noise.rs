//! Noise in the adversary's ball.

use candle_core::{Result, Tensor};
use game::{Entry, Fraction, Goal, Key, Norm};
use serde::{Deserialize, Serialize};

use crate::{
    Attack, Ball, Cost, Guides, Snapshot, Victim,
    attack::Images,
    check::{budget, eps},
};

/// Moves the image to a point drawn uniformly from the ball, clipped to `[0, 1]`: what the budget is worth without any
/// knowledge of the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UniformNoise {
    /// The norm of the ball.
    pub norm: Norm,
    /// Its radius, in pixel units of `[0, 1]`.
    pub eps: Fraction,
}

impl Default for UniformNoise {
    fn default() -> Self {
        Self { norm: Norm::Linf, eps: budget() }
    }
}

impl Entry for UniformNoise {
    const ABOUT: &'static str = "uniform noise in the adversary's ball: the baseline of blind strength";

    fn check(&self) -> std::result::Result<(), String> {
        eps(self.norm, &self.eps)
    }

    fn examples() -> Vec<Self> {
        vec![Self::default(), Self { norm: Norm::L2, eps: 0.5.into() }]
    }
}

impl Attack for UniformNoise {
    fn run(
        &self,
        _: &Victim<'_>,
        x: &Tensor,
        goal: &Goal,
        keys: &[Key],
        _: Option<Guides<'_>>,
        sink: &mut dyn FnMut(Snapshot) -> Result<()>,
    ) -> Result<()> {
        let ball = Ball { norm: self.norm, eps: self.eps.value() };
        let origins = Images::new(x, goal, keys)?;
        let mut images = origins.clone();
        images.each(&origins, |i, origin, x| ball.random_start(origin, keys[i].at(0), x));
        images.check(&origins, ball)?;
        sink(Snapshot::unqueried(&images)?)
    }

    fn ball(&self) -> Option<(Norm, &Fraction)> {
        Some((self.norm, &self.eps))
    }

    fn steps(&self) -> Vec<usize> {
        vec![0]
    }

    fn cost(&self) -> Cost {
        Cost::default()
    }
}
