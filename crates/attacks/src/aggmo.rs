//! Aggregated momentum.

use candle_core::{DType, Result, Tensor};
use game::{Entry, Fraction, Goal, Key, Norm};
use gpu::kernels::{Parameters, Source};
use serde::{Deserialize, Serialize};

use crate::{
    Attack, Cost, Eot, Guides, Loss, Mean, Snapshot, Stop, Victim,
    ascent::{Ascent, Gradient},
    check::{self, budget, number},
    queue::{At, Queue},
};

/// Aggregated momentum: several decaying sums of gradients, of different memory, each of which takes its share of
/// every step.
///
/// References: Lucas et al. 2019 (the optimiser); Sitawarin et al. 2022 (the attack, which Gao et al. 2022 mention):
/// betas `1 - 10^-j` for j = 0, 1, 2, each share along the signs of its sum, the margin loss, a random start, a
/// step of .005. As there, entries of a raw gradient are clipped to `1 / sqrt(d)` for `d` pixels before they are added.
/// A run of fewer steps is the beginning of a longer one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AggMo {
    /// The norm of the ball and of the steps: signs in l-inf, normalised sums in l2.
    pub norm: Norm,
    /// The ball's radius, in pixel units of `[0, 1]`.
    pub eps: Fraction,
    /// The length of each step, all shares together, in the same norm and units.
    pub step_size: Fraction,
    /// What each sum is multiplied by before each step, in `[0, 1)`; at least one. 0 remembers nothing.
    pub betas: Vec<f64>,
    /// What is summed: the mean gradient over the draws, or its signs.
    pub gradient: Gradient,
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

impl Default for AggMo {
    fn default() -> Self {
        Self {
            norm: Norm::Linf,
            eps: budget(),
            step_size: number("0.005"),
            betas: vec![0.0, 0.9, 0.99],
            gradient: Gradient::Raw,
            steps: vec![10],
            eot: Eot::default(),
            loss: Loss::Margin,
            random_start: true,
            stop: Stop::None {},
        }
    }
}

impl Entry for AggMo {
    const ABOUT: &'static str = "aggregated momentum: sums of gradients of different memory share every step";

    fn check(&self) -> std::result::Result<(), String> {
        check::eps(self.norm, &self.eps)?;
        check::step(self.norm, &self.step_size)?;
        if self.betas.is_empty() {
            return Err("betas = [] must have at least one entry".into());
        }
        self.betas.iter().try_for_each(|&beta| check::decay("betas", beta))?;
        check::steps(&self.steps)?;
        self.stop.check()?;
        self.eot.check()
    }

    fn examples() -> Vec<Self> {
        let eot = Eot { draws: 3, mean: Mean::Gradients };
        vec![
            Self { steps: vec![1, 3], random_start: false, ..Self::default() },
            Self { eot, gradient: Gradient::Sign, steps: vec![4], ..Self::default() },
            Self { norm: Norm::L2, eps: number("0.5"), step_size: number("0.2"), betas: vec![0.5], ..Self::default() },
        ]
    }

    fn slug(&self, name: &str) -> String {
        check::slug(name, &self.steps, self.eot.draws)
    }
}

const KERNELS: Source =
    Source { name: "aggmo", text: concat!(include_str!("queue/images.cu"), include_str!("aggmo.cu")) };

/// As its namesake in aggmo.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Kernel {
    at: At,
    sum: u64,
    beta: f64,
    most: f64,
    signs: u64,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Kernel {}

/// The largest entry of a raw gradient that is summed as it is.
fn most(size: usize) -> f64 {
    1.0 / (size as f64).sqrt()
}

impl AggMo {
    /// The same steps on the device.
    fn run_queued(&self, mut queue: Queue<'_>, share: f64, sink: &mut dyn FnMut(Snapshot) -> Result<()>) -> Result<()> {
        let (at, signs) = (queue.at(), u64::from(self.gradient == Gradient::Sign));
        let mut kernels = vec![];
        for &beta in &self.betas {
            let sum = queue.zeros(queue.pixels(), DType::F32)?;
            kernels.push(Kernel { at, sum, beta, most: most(queue.size()), signs });
        }
        queue.run(sink, |queue| {
            for kernel in &kernels {
                // SAFETY: a thread has a pixel of its own.
                unsafe { queue.launch(&KERNELS, "aggmo", queue.pixels(), kernel)? };
                queue.ascend(kernel.sum, share)?;
            }
            queue.project()
        })
    }

    /// The entry of a gradient that is summed.
    fn entry(&self, gradient: f64, size: usize) -> f64 {
        match self.gradient {
            Gradient::Sign => gradient,
            Gradient::Raw => {
                let most = most(size);
                gradient.clamp(-most, most)
            }
        }
    }
}

impl Attack for AggMo {
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
        let (ball, size) = (ascent.ball(), ascent.size());
        let share = goal.direction() * self.step_size.value() / self.betas.len() as f64;
        if self.random_start {
            ascent.start(|key, origin, x| ball.random_start(origin, key, x));
        }
        if let Some(queue) = ascent.queue(self.loss, self.eot)? {
            return self.run_queued(queue, share, sink);
        }
        let mut sums = vec![vec![vec![0.0f32; size]; self.betas.len()]; ascent.count()];
        ascent.run(sink, |ascent| {
            let slopes = ascent.gradient(self.loss, self.eot)?;
            ascent.advance(&mut sums, |image, sums, origin, x| {
                for (sum, &beta) in sums.iter_mut().zip(&self.betas) {
                    for (sum, g) in sum.iter_mut().zip(slopes[image].of(self.gradient)) {
                        *sum = (beta * f64::from(*sum) + self.entry(g, size)) as f32;
                    }
                    ball.ascend(sum, share, x);
                }
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
