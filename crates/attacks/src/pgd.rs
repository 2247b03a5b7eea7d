//! Projected gradient descent.

use candle_core::{Device, Result, Tensor};
use game::{Entry, Fraction, Goal, Key, Norm};
use serde::{Deserialize, Serialize};

use crate::{
    Attack, Ball, Cost, Eot, Loss, Mean, Snapshot, Victim,
    attack::Images,
    uniform_noise::{budget, check_eps},
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
            step_size: "1/255".parse().expect("a number"),
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
        check_eps(&self.eps)?;
        if self.step_size.value() <= 0.0 {
            return Err(format!("step_size = {} must be greater than 0", self.step_size));
        }
        if self.steps.is_empty() || self.steps[0] == 0 || !self.steps.is_sorted_by(|a, b| a < b) {
            return Err(format!("steps = {:?} must be numbers from 1 in ascending order, at least one", self.steps));
        }
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
        let steps = self.steps.last().copied().unwrap_or(0);
        match self.eot.draws {
            1 => format!("{name}-{steps}"),
            draws => format!("{name}-{steps}-eot-{draws}"),
        }
    }
}

impl Attack for Pgd {
    fn run(
        &self,
        victim: &Victim<'_>,
        x: &Tensor,
        goal: &Goal,
        keys: &[Key],
        sink: &mut dyn FnMut(Snapshot) -> Result<()>,
    ) -> Result<()> {
        Entry::check(self).map_err(candle_core::Error::msg)?;
        let ball = Ball { norm: self.norm, eps: self.eps.value() };
        let step_size = goal.direction() * self.step_size.value();
        let origins = Images::new(x, goal, keys)?;
        let mut images = origins.clone();
        if self.random_start {
            images.each(&origins, |i, origin, x| ball.random_start(origin, keys[i].at(0), x));
        }
        let mut snapshot = Snapshot::unqueried(&images)?;
        for step in 1..=self.steps[self.steps.len() - 1] {
            let keys: Vec<Key> = keys.iter().map(|key| key.at(step as u64)).collect();
            let query = victim.gradient(&images.tensor()?, goal, self.loss, self.eot, &keys)?;
            let gradient = query.gradient.to_device(&Device::Cpu)?.flatten(1, 3)?.to_vec2::<f32>()?;
            images.each(&origins, |i, origin, x| {
                ball.ascend(&gradient[i], step_size, x);
                ball.project(origin, x);
            });
            snapshot.non_finite.iter_mut().zip(&query.non_finite).for_each(|(sum, new)| *sum += new);
            snapshot.forward_queries += query.forward_queries;
            snapshot.backward_queries += query.backward_queries;
            if self.steps.contains(&step) {
                images.check(&origins, ball)?;
                sink(Snapshot {
                    step,
                    x: images.tensor()?,
                    loss: Some(query.loss),
                    zero_gradient: Some(query.zero_gradient),
                    ..snapshot.clone()
                })?;
            }
        }
        Ok(())
    }

    fn ball(&self) -> Option<(Norm, &Fraction)> {
        Some((self.norm, &self.eps))
    }

    fn steps(&self) -> Vec<usize> {
        self.steps.clone()
    }

    fn cost(&self) -> Cost {
        let queries = self.steps.last().map_or(0, |&steps| steps as u64 * self.eot.draws as u64);
        Cost { forward: queries, backward: queries }
    }
}
