//! Gradient ascent with the gradient as it is.

use candle_core::{Result, Tensor};
use game::{Entry, Fraction, Goal, Key, Norm};
use gpu::kernels::{Parameters, Source};
use serde::{Deserialize, Serialize};

use crate::{
    Attack, Ball, Cost, Eot, Guides, Loss, Mean, Snapshot, Stop, Victim,
    ascent::{Ascent, Slope},
    check::{self, budget, number},
    queue::{At, Queue},
    stop::Reading,
};

/// Gradient ascent: the mean gradient over random draws, neither signed nor normalised, times a learning rate.
///
/// Reference: Athalye et al. 2018, against random crops (Guo et al. 2018; a penalty on the l2 norm, pixels clipped to
/// `[0, 1]`, no projection) and against random rescaling (Xie et al. 2018; projection onto an l-inf box). As the
/// gradient is raw, its magnitude decides: where the network is certain, a step hardly moves the image. The step is
/// constant, so a run of fewer steps is the beginning of a longer one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GradientAscent {
    /// The norm of the ball.
    pub norm: Norm,
    /// The ball's radius, in pixel units of `[0, 1]`.
    pub eps: Fraction,
    /// What the gradient of the loss with respect to pixels in `[0, 1]` is multiplied by.
    pub learning_rate: Fraction,
    /// After how many steps to take a snapshot, ascending; the last is the number of steps.
    pub steps: Vec<usize>,
    /// Draws of the defense per step, and what is averaged over them.
    pub eot: Eot,
    /// The loss that is ascended about labels and descended about targets.
    pub loss: Loss,
    /// What `max(||delta||_2 - eps, 0)` is multiplied by before it is added to what is ascended, in the l2 norm only.
    ///
    /// Below 0 it pulls the image back to the ball. The original code against random crops has 1e-6: the sign is wrong,
    /// and the size negligible.
    pub penalty: Fraction,
    /// Whether each step is followed by the projection onto the ball. Without it the image may leave the ball, and then
    /// the attack has failed: [`Attack::stays_inside`].
    pub project: bool,
    /// When to stop early.
    pub stop: Stop,
}

impl Default for GradientAscent {
    fn default() -> Self {
        Self {
            norm: Norm::Linf,
            eps: budget(),
            learning_rate: number("0.1"),
            steps: vec![10],
            eot: Eot::default(),
            loss: Loss::CrossEntropy,
            penalty: number("0"),
            project: true,
            stop: Stop::None {},
        }
    }
}

impl Entry for GradientAscent {
    const ABOUT: &'static str = "ascent along the raw mean gradient, with a penalty or a projection";

    fn check(&self) -> std::result::Result<(), String> {
        check::eps(self.norm, &self.eps)?;
        check::positive("learning_rate", &self.learning_rate)?;
        check::steps(&self.steps)?;
        if self.norm == Norm::Linf && self.penalty.value() != 0.0 {
            return Err(format!("penalty = {} must be 0 in the norm linf: it is on the l2 norm", self.penalty));
        }
        self.stop.check()?;
        self.eot.check()
    }

    fn examples() -> Vec<Self> {
        let eot = |draws| Eot { draws, mean: Mean::Gradients };
        let rescale = Self { steps: vec![1, 4], eot: eot(3), stop: Stop::DrawsAbsent {}, ..Self::default() };
        let crop = Self {
            norm: Norm::L2,
            eps: number("0.3"),
            penalty: number("1e-6"),
            project: false,
            stop: Stop::DrawsMean {},
            ..rescale.clone()
        };
        vec![
            Self { steps: vec![1, 3], ..Self::default() },
            Self { stop: Stop::FreshVote { draws: 5, reading: Reading::Mean }, eot: eot(1), ..crop.clone() },
            Self { penalty: number("-2"), project: true, stop: Stop::None {}, ..crop.clone() },
            crop,
            rescale,
        ]
    }

    fn slug(&self, name: &str) -> String {
        check::slug(name, &self.steps, self.eot.draws)
    }
}

const KERNELS: Source = Source {
    name: "gradient-ascent",
    text: concat!(include_str!("queue/images.cu"), include_str!("gradient_ascent.cu")),
};

/// As its namesake in gradient_ascent.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Kernel {
    at: At,
    direction: f64,
    rate: f64,
    penalty: f64,
    eps: f64,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Kernel {}

impl GradientAscent {
    /// The same steps on the device.
    fn run_queued(&self, queue: Queue<'_>, direction: f64, sink: &mut dyn FnMut(Snapshot) -> Result<()>) -> Result<()> {
        let (rate, penalty, eps) = (self.learning_rate.value(), self.penalty.value(), self.eps.value());
        let kernel = Kernel { at: queue.at(), direction, rate, penalty, eps };
        queue.run(sink, |queue| {
            if penalty != 0.0 {
                queue.measure()?;
            }
            // SAFETY: a thread has a pixel of its own.
            unsafe { queue.launch(&KERNELS, "rise", queue.pixels(), &kernel)? };
            if self.project { queue.project() } else { queue.clamp() }
        })
    }

    /// One step.
    fn step(&self, ball: Ball, direction: f64, slope: &Slope, origin: &[f32], x: &mut [f32]) {
        let rate = self.learning_rate.value();
        // The penalty's gradient: its weight times the unit perturbation, outside the ball.
        let length = origin.iter().zip(&*x).map(|(&o, &x)| (f64::from(x) - f64::from(o)).powi(2)).sum::<f64>().sqrt();
        let pull = if self.penalty.value() != 0.0 && length > ball.eps { self.penalty.value() / length } else { 0.0 };
        for ((x, &o), gradient) in x.iter_mut().zip(origin).zip(slope.raw()) {
            let from = f64::from(*x);
            *x = (from + rate * (direction * gradient + pull * (from - f64::from(o)))) as f32;
        }
        if self.project {
            ball.project(origin, x);
        } else {
            x.iter_mut().for_each(|x| *x = x.clamp(0.0, 1.0));
        }
    }
}

impl Attack for GradientAscent {
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
        ascent.run(sink, |ascent| {
            let mut slopes = ascent.gradient(self.loss, self.eot)?;
            ascent.advance(&mut slopes, |_, slope, origin, x| self.step(ball, goal.direction(), slope, origin, x));
            Ok(())
        })
    }

    fn ball(&self) -> Option<(Norm, &Fraction)> {
        Some((self.norm, &self.eps))
    }

    fn stays_inside(&self) -> bool {
        self.project
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
