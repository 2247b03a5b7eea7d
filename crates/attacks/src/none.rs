//! No perturbation.

use candle_core::{Result, Tensor};
use game::{Entry, Fraction, Goal, Key, Norm};
use serde::{Deserialize, Serialize};

use crate::{Attack, Cost, Guides, Snapshot, Victim, attack::Images};

/// Leaves the image as it is: how often fresh draws alone reach the goal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct None {}

impl Entry for None {
    const ABOUT: &'static str = "no perturbation: the baseline of luck";
}

impl Attack for None {
    fn run(
        &self,
        _: &Victim<'_>,
        x: &Tensor,
        goal: &Goal,
        keys: &[Key],
        _: Option<Guides<'_>>,
        sink: &mut dyn FnMut(Snapshot) -> Result<()>,
    ) -> Result<()> {
        sink(Snapshot::unqueried(&Images::new(x, goal, keys)?)?)
    }

    fn ball(&self) -> Option<(Norm, &Fraction)> {
        Option::None
    }

    fn steps(&self) -> Vec<usize> {
        vec![0]
    }

    fn cost(&self) -> Cost {
        Cost::default()
    }
}
