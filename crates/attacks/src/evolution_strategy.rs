//! Evolution strategies: the gradient estimated by antithetic finite differences, without back-propagation.

use candle_core::{Result, Tensor};
use game::{Entry, Fraction, Goal, Key, Norm};
use serde::{Deserialize, Serialize};

use crate::{
    Attack, Cost, Guides, Loss, Snapshot, Stop, Victim,
    ascent::Ascent,
    check::{self, budget, number},
    stop::Reading,
    victim::Sampling,
};

/// Evolution strategies: steps of constant length along an estimate of the gradient from pairs of forward evaluations
/// on either side of the image, each followed by a projection; the last iterate is the answer.
///
/// Reference: Tramèr et al. 2020, section 5 (after Salimans et al. 2017), against k-winners-take-all (Xiao et al.
/// 2020), whose gradient means nothing. A run of fewer steps is the beginning of a longer one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvolutionStrategy {
    /// The norm of the ball and of the steps: signs in l-inf, normalised gradients in l2.
    pub norm: Norm,
    /// The ball's radius, in pixel units of `[0, 1]`.
    pub eps: Fraction,
    /// The length of each step in the same norm and units.
    pub step_size: Fraction,
    /// After how many steps to take a snapshot, ascending; the last is the number of steps.
    pub steps: Vec<usize>,
    /// The standard deviation of the directions, in pixel units of `[0, 1]`.
    pub sigma: Fraction,
    /// How many evaluations each step pays for.
    pub schedule: Vec<Samples>,
    /// The loss that is ascended about labels and descended about targets.
    pub loss: Loss,
    /// When to stop early; `fresh-vote` with one draw moves only images that are still classified correctly.
    pub stop: Stop,
}

/// One entry of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Samples {
    /// How many steps it holds for; the last entry holds for all that follow, too.
    pub steps: usize,
    /// Evaluations per image and step, two for each direction: even, and at least 2.
    pub samples: usize,
}

impl Default for EvolutionStrategy {
    fn default() -> Self {
        Self {
            norm: Norm::Linf,
            eps: budget(),
            step_size: number("0.01"),
            steps: vec![10],
            sigma: number("8/255"),
            schedule: vec![Samples { steps: 10, samples: 100 }],
            loss: Loss::Margin,
            stop: Stop::None {},
        }
    }
}

impl Entry for EvolutionStrategy {
    const ABOUT: &'static str = "sign steps along a gradient estimated from forward evaluations alone";

    fn check(&self) -> std::result::Result<(), String> {
        check::eps(self.norm, &self.eps)?;
        check::step(self.norm, &self.step_size)?;
        check::positive("sigma", &self.sigma)?;
        check::pixels("sigma", &self.sigma)?;
        check::steps(&self.steps)?;
        if self.schedule.is_empty() {
            return Err("schedule = [] must have at least one entry".into());
        }
        for &Samples { steps, samples } in &self.schedule {
            if steps == 0 || samples < 2 || samples % 2 != 0 {
                let must = "steps must be at least 1, and samples even and at least 2";
                return Err(format!("schedule: {steps} steps of {samples} samples: {must}"));
            }
        }
        self.stop.check_fresh()
    }

    fn examples() -> Vec<Self> {
        let schedule = [(1, 2), (2, 6)].map(|(steps, samples)| Samples { steps, samples }).to_vec();
        let mask = Stop::FreshVote { draws: 1, reading: Reading::Majority };
        vec![
            Self { steps: vec![1, 5], schedule: schedule.clone(), ..Self::default() },
            Self { steps: vec![6], schedule: schedule.clone(), stop: mask, ..Self::default() },
            Self { norm: Norm::L2, eps: number("0.2"), steps: vec![3], schedule, ..Self::default() },
        ]
    }

    fn slug(&self, name: &str) -> String {
        format!("{name}-{}-samples-{}", check::last(&self.steps), self.samples(check::last(&self.steps) as usize))
    }
}

impl EvolutionStrategy {
    /// Evaluations of step `step`, from 1.
    fn samples(&self, step: usize) -> usize {
        let mut before = 0;
        let of_step = self.schedule.iter().find(|entry| {
            before += entry.steps;
            step <= before
        });
        of_step.or(self.schedule.last()).map_or(0, |entry| entry.samples)
    }
}

impl Attack for EvolutionStrategy {
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
        let mut ascent = Ascent::new(self, self.stop, victim, x, goal, keys)?;
        let (ball, step_size) = (ascent.ball(), goal.direction() * self.step_size.value());
        ascent.run(sink, |ascent| {
            let sampling = Sampling { sigma: self.sigma.value(), samples: self.samples(ascent.step()) };
            let mut slopes =
                ascent.ask(|victim, batch| victim.estimate(&batch.x, &batch.goal, self.loss, sampling, &batch.keys))?;
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

    fn steps(&self) -> Vec<usize> {
        self.steps.clone()
    }

    fn cost(&self) -> Cost {
        let steps = check::last(&self.steps);
        let samples: u64 = (1..=steps as usize).map(|step| self.samples(step) as u64).sum();
        Cost { forward: samples + steps * self.stop.cost(), backward: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_of_the_original_costs_what_it_says() {
        let schedule = [(20, 100), (20, 1000), (60, 20_000)].map(|(steps, samples)| Samples { steps, samples });
        let original =
            EvolutionStrategy { steps: vec![100], schedule: schedule.to_vec(), ..EvolutionStrategy::default() };
        assert_eq!(
            [1, 20, 21, 40, 41, 100, 101].map(|step| original.samples(step)),
            [100, 100, 1000, 1000, 20_000, 20_000, 20_000]
        );
        assert_eq!(original.cost(), Cost { forward: 1_222_000, backward: 0 });
    }
}
