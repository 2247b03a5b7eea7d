//! The momentum iterative method.

use candle_core::{DType, Result, Tensor};
use game::{Entry, Fraction, Goal, Key, Norm};
use gpu::kernels::{Parameters, Source};
use serde::{Deserialize, Serialize};

use crate::{
    Attack, Cost, Eot, Guides, Loss, Mean, Snapshot, Stop, Victim,
    ascent::Ascent,
    check::{self, budget, number},
    queue::{At, Queue},
};

/// Steps of constant length along a decaying sum of gradients, each divided by its l1 norm.
///
/// Reference: Dong et al. 2018 (MI-FGSM, decay 1), with expectation over transformation. With decay 0 it is projected
/// gradient descent. A run of fewer steps is the beginning of a longer one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Momentum {
    /// The norm of the ball and of the steps: signs in l-inf, normalised sums in l2.
    pub norm: Norm,
    /// The ball's radius, in pixel units of `[0, 1]`.
    pub eps: Fraction,
    /// The length of each step in the same norm and units.
    pub step_size: Fraction,
    /// What the sum is multiplied by before each step, in `[0, 1]`.
    pub decay: f64,
    /// After how many steps to take a snapshot, ascending; the last is the number of steps.
    pub steps: Vec<usize>,
    /// Draws of the defense per step, and what is averaged over them.
    pub eot: Eot,
    /// The loss that is ascended about labels and descended about targets.
    pub loss: Loss,
    /// Whether to start from a uniform point of the ball instead of the image itself.
    pub random_start: bool,
    /// When to stop early.
    pub stop: Stop,
}

impl Default for Momentum {
    fn default() -> Self {
        Self {
            norm: Norm::Linf,
            eps: budget(),
            step_size: number("1/255"),
            decay: 1.0,
            steps: vec![10],
            eot: Eot::default(),
            loss: Loss::CrossEntropy,
            random_start: false,
            stop: Stop::None {},
        }
    }
}

impl Entry for Momentum {
    const ABOUT: &'static str = "steps along a decaying sum of normalised gradients";

    fn check(&self) -> std::result::Result<(), String> {
        check::eps(self.norm, &self.eps)?;
        check::step(self.norm, &self.step_size)?;
        if !(0.0..=1.0).contains(&self.decay) {
            return Err(format!("decay = {} must be at least 0 and at most 1", self.decay));
        }
        check::steps(&self.steps)?;
        self.stop.check()?;
        self.eot.check()
    }

    fn examples() -> Vec<Self> {
        let eot = Eot { draws: 3, mean: Mean::Gradients };
        vec![
            Self { steps: vec![1, 3], ..Self::default() },
            Self { norm: Norm::L2, eps: number("0.5"), step_size: number("0.2"), decay: 0.9, ..Self::default() },
            Self { steps: vec![3], eot, random_start: true, stop: Stop::DrawsMean {}, ..Self::default() },
        ]
    }

    fn slug(&self, name: &str) -> String {
        check::slug(name, &self.steps, self.eot.draws)
    }
}

const KERNELS: Source =
    Source { name: "momentum", text: concat!(include_str!("queue/images.cu"), include_str!("momentum.cu")) };

/// As its namesake in momentum.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Kernel {
    at: At,
    sum: u64,
    decay: f64,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Kernel {}

impl Momentum {
    /// The same steps on the device.
    fn run_queued(
        &self,
        mut queue: Queue<'_>,
        step_size: f64,
        sink: &mut dyn FnMut(Snapshot) -> Result<()>,
    ) -> Result<()> {
        let sum = queue.zeros(queue.pixels(), DType::F32)?;
        let kernel = Kernel { at: queue.at(), sum, decay: self.decay };
        queue.run(sink, |queue| {
            // SAFETY: a thread has a partial sum, or a pixel, of its own.
            unsafe {
                queue.sum(&KERNELS, "lengths", &kernel)?;
                queue.launch(&KERNELS, "momentum", queue.pixels(), &kernel)?;
            }
            queue.ascend(sum, step_size)?;
            queue.project()
        })
    }
}

impl Attack for Momentum {
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
        if self.random_start {
            ascent.start(|key, origin, x| ball.random_start(origin, key, x));
        }
        if let Some(queue) = ascent.queue(self.loss, self.eot)? {
            return self.run_queued(queue, step_size, sink);
        }
        let mut sums = vec![vec![0.0f32; ascent.size()]; ascent.count()];
        ascent.run(sink, |ascent| {
            let slopes = ascent.gradient(self.loss, self.eot)?;
            ascent.advance(&mut sums, |image, sum, origin, x| {
                let gradient = &slopes[image].entries;
                let length: f64 = gradient.iter().map(|&g| f64::from(g.abs())).sum();
                let share = if length > 0.0 { 1.0 / length } else { 0.0 };
                for (sum, &g) in sum.iter_mut().zip(gradient) {
                    *sum = (self.decay * f64::from(*sum) + share * f64::from(g)) as f32;
                }
                ball.ascend(sum, step_size, x);
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
        self.stop == Stop::None {}
    }

    fn steps(&self) -> Vec<usize> {
        self.steps.clone()
    }

    fn cost(&self) -> Cost {
        Cost::of_steps(check::last(&self.steps), self.eot, self.stop)
    }
}
