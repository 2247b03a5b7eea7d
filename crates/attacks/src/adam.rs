//! Adam.

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

/// Adam (Kingma and Ba 2015, algorithm 1) on the pixels, projected onto the ball after each step.
///
/// Reference: Athalye et al. 2018 against stochastic activation pruning (Dhillon et al. 2018): signs of the margin's
/// gradient, a learning rate of 0.1/255, no early stop. A run of fewer steps is the beginning of a longer one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adam {
    /// The norm of the ball.
    pub norm: Norm,
    /// The ball's radius, in pixel units of `[0, 1]`.
    pub eps: Fraction,
    /// Roughly how far a pixel moves in a step, in pixel units of `[0, 1]`.
    pub learning_rate: Fraction,
    /// The decay rate of the gradient's mean, in `[0, 1)`.
    pub beta1: f64,
    /// The decay rate of the squared gradient's mean, in `[0, 1)`.
    pub beta2: f64,
    /// What the optimiser is fed with: the mean gradient over the draws, or its signs.
    pub gradient: Gradient,
    /// After how many steps to take a snapshot, ascending; the last is the number of steps.
    pub steps: Vec<usize>,
    /// Draws of the defense per step, and what is averaged over them.
    pub eot: Eot,
    /// The loss that is ascended about labels and descended about targets.
    pub loss: Loss,
    /// When to stop early.
    pub stop: Stop,
}

/// Keeps the step of a vanishing gradient finite.
const GUARD: f64 = 1e-8;

impl Default for Adam {
    fn default() -> Self {
        Self {
            norm: Norm::Linf,
            eps: budget(),
            learning_rate: number("0.1/255"),
            beta1: 0.9,
            beta2: 0.999,
            gradient: Gradient::Sign,
            steps: vec![10],
            eot: Eot::default(),
            loss: Loss::Margin,
            stop: Stop::None {},
        }
    }
}

impl Entry for Adam {
    const ABOUT: &'static str = "Adam on the pixels, fed with the gradient or its signs";

    fn check(&self) -> std::result::Result<(), String> {
        check::eps(self.norm, &self.eps)?;
        check::positive("learning_rate", &self.learning_rate)?;
        check::pixels("learning_rate", &self.learning_rate)?;
        check::decay("beta1", self.beta1)?;
        check::decay("beta2", self.beta2)?;
        check::steps(&self.steps)?;
        self.stop.check()?;
        self.eot.check()
    }

    fn examples() -> Vec<Self> {
        let eot = Eot { draws: 3, mean: Mean::Gradients };
        vec![
            Self { steps: vec![1, 3], learning_rate: number("1/255"), ..Self::default() },
            Self { gradient: Gradient::Raw, eot, stop: Stop::DrawsAbsent {}, ..Self::default() },
            Self { norm: Norm::L2, eps: number("0.1"), learning_rate: number("0.02"), ..Self::default() },
        ]
    }

    fn slug(&self, name: &str) -> String {
        check::slug(name, &self.steps, self.eot.draws)
    }
}

/// The running means of one image.
#[derive(Clone, Debug)]
struct Moments {
    steps: i32,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Moments {
    fn new(size: usize) -> Self {
        Self { steps: 0, first: vec![0.0; size], second: vec![0.0; size] }
    }
}

const KERNELS: Source =
    Source { name: "adam", text: concat!(include_str!("queue/images.cu"), include_str!("adam.cu")) };

/// As its namesake in adam.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Kernel {
    at: At,
    first: u64,
    second: u64,
    direction: f64,
    beta1: f64,
    beta2: f64,
    rate: f64,
    bias: f64,
    signs: u64,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Kernel {}

impl Adam {
    /// The learning rate over the first mean's bias after some steps, and the root of the second mean's bias.
    fn biases(&self, steps: i32) -> (f64, f64) {
        let rate = self.learning_rate.value() / (1.0 - self.beta1.powi(steps));
        (rate, (1.0 - self.beta2.powi(steps)).sqrt())
    }

    /// The same steps on the device.
    fn run_queued(
        &self,
        mut queue: Queue<'_>,
        direction: f64,
        sink: &mut dyn FnMut(Snapshot) -> Result<()>,
    ) -> Result<()> {
        let (at, signs) = (queue.at(), u64::from(self.gradient == Gradient::Sign));
        let first = queue.zeros(queue.pixels(), DType::F64)?;
        let second = queue.zeros(queue.pixels(), DType::F64)?;
        queue.run(sink, |queue| {
            let (rate, bias) = self.biases(queue.step() as i32);
            let kernel =
                Kernel { at, first, second, direction, beta1: self.beta1, beta2: self.beta2, rate, bias, signs };
            // SAFETY: a thread has a pixel of its own.
            unsafe { queue.launch(&KERNELS, "adam", queue.pixels(), &kernel)? };
            queue.project()
        })
    }

    /// Moves `x` up the gradient.
    fn ascend(&self, moments: &mut Moments, gradient: impl Iterator<Item = f64>, x: &mut [f32]) {
        let (beta1, beta2) = (self.beta1, self.beta2);
        moments.steps += 1;
        let (rate, bias) = self.biases(moments.steps);
        for (((x, m), v), g) in x.iter_mut().zip(&mut moments.first).zip(&mut moments.second).zip(gradient) {
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *x = (f64::from(*x) + rate * *m / (v.sqrt() / bias + GUARD)) as f32;
        }
    }
}

impl Attack for Adam {
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
        let ball = ascent.ball();
        if let Some(queue) = ascent.queue(self.loss, self.eot)? {
            return self.run_queued(queue, goal.direction(), sink);
        }
        let mut moments = vec![Moments::new(ascent.size()); ascent.count()];
        ascent.run(sink, |ascent| {
            let slopes = ascent.gradient(self.loss, self.eot)?;
            ascent.advance(&mut moments, |image, moments, origin, x| {
                let gradient = slopes[image].of(self.gradient).map(|g| goal.direction() * g);
                self.ascend(moments, gradient, x);
                ball.project(origin, x);
            });
            Ok(())
        })
    }

    fn ball(&self) -> Option<(Norm, &Fraction)> {
        Some((self.norm, &self.eps))
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
