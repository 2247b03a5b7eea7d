//! Projected gradient descent.

use candle_core::{Result, Tensor};
use game::{Entry, Fraction, Goal, Key, Norm};
use serde::{Deserialize, Serialize};

use crate::{
    Attack, Cost, Eot, Guides, Loss, Mean, Snapshot, Stop, Victim,
    ascent::Ascent,
    check::{self, budget, number},
};

/// PGD with expectation over transformation: steps of constant length along the mean gradient over random draws of the
/// defense, each followed by a projection; the last iterate is the answer.
///
/// References: Madry et al. 2018; Athalye et al. 2018 (EOT); as used by Gao et al. 2022, section 3 and appendix A.2:
/// from the image itself, no restarts, no early stop. As the step is constant, a run of fewer steps is the beginning of
/// a longer one, so one run yields a snapshot at every number of steps named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pgd {
    /// The norm of the ball and of the steps: signs in l-inf, normalised gradients in l2.
    pub norm: Norm,
    /// The ball's radius, in pixel units of `[0, 1]`.
    pub eps: Fraction,
    /// The length of each step in the same norm and units.
    pub step_size: Fraction,
    /// After how many steps to take a snapshot, ascending; the last is the number of steps.
    pub steps: Vec<usize>,
    /// Draws of the defense per step, and what is averaged over them.
    pub eot: Eot,
    /// The loss that is ascended about labels and descended about targets.
    pub loss: Loss,
    /// Whether to start from a uniform point of the ball instead of the image itself.
    pub random_start: bool,
}

impl Default for Pgd {
    fn default() -> Self {
        Self {
            norm: Norm::Linf,
            eps: budget(),
            step_size: number("1/255"),
            steps: vec![10],
            eot: Eot::default(),
            loss: Loss::CrossEntropy,
            random_start: false,
        }
    }
}

impl Entry for Pgd {
    const ABOUT: &'static str = "projected gradient descent with expectation over transformation";

    fn check(&self) -> std::result::Result<(), String> {
        check::eps(self.norm, &self.eps)?;
        check::step(self.norm, &self.step_size)?;
        check::steps(&self.steps)?;
        self.eot.check()
    }

    fn examples() -> Vec<Self> {
        let eot = |draws, mean| Eot { draws, mean };
        vec![
            Self { steps: vec![1, 3], ..Self::default() },
            Self { steps: vec![2], eot: eot(3, Mean::Gradients), random_start: true, ..Self::default() },
            Self { steps: vec![2], eot: eot(3, Mean::Logits), loss: Loss::Margin, ..Self::default() },
            Self { norm: Norm::L2, eps: 0.5.into(), step_size: 0.2.into(), steps: vec![1, 4], ..Self::default() },
        ]
    }

    fn slug(&self, name: &str) -> String {
        check::slug(name, &self.steps, self.eot.draws)
    }
}

impl Attack for Pgd {
    fn run(
        &self,
        victim: &Victim<'_>,
        x: &Tensor,
        goal: &Goal,
        keys: &[Key],
        _: Option<Guides<'_>>,
        sink: &mut dyn FnMut(Snapshot) -> Result<()>,
    ) -> Result<()> {
        Entry::check(self).map_err(candle_core::Error::msg)?;
        let mut ascent = Ascent::new(self, Stop::None {}, victim, x, goal, keys)?;
        let (ball, step_size) = (ascent.ball(), goal.direction() * self.step_size.value());
        if self.random_start {
            ascent.start(|key, origin, x| ball.random_start(origin, key, x));
        }
        if let Some(queue) = ascent.queue(self.loss, self.eot)? {
            return queue.run(sink, |queue| {
                queue.ascend(queue.at().gradient, step_size)?;
                queue.project()
            });
        }
        ascent.run(sink, |ascent| {
            let mut slopes = ascent.gradient(self.loss, self.eot)?;
            ascent.advance(&mut slopes, |_, slope, origin, x| {
                ball.ascend(&slope.entries, step_size, x);
                ball.project(origin, x);
            });
            Ok(())
        })
    }

    fn ball(&self) -> Option<(Norm, &Fraction)> {
        Some((self.norm, &self.eps))
    }

    fn step_size(&self) -> Option<&Fraction> {
        Some(&self.step_size)
    }

    fn is_queued(&self) -> bool {
        true
    }

    fn steps(&self) -> Vec<usize> {
        self.steps.clone()
    }

    fn cost(&self) -> Cost {
        let queries = check::last(&self.steps) * self.eot.draws as u64;
        Cost { forward: queries, backward: queries }
    }
}
