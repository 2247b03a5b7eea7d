//! Attacks, one file each, and the victim where network, defense, BPDA and EOT meet.
//!
//! To add one: write its file (parameters, arithmetic, reference, unit test) and name it in the `catalogue!` below. The
//! parameter files, listings and contract tests take it from there. Attacks that take steps share the loop in `ascent`:
//! it asks the victim, applies the stop rule, counts queries image by image, checks the ball and takes the snapshots, so
//! that an attack is its step. On a GPU the steps of most run in `queue` instead, where nothing waits for the device between
//! snapshots; such an attack says so ([`Attack::is_queued`]) and has its step as a kernel, too.

mod adam;
mod aggmo;
mod apgd;
mod ascent;
mod attack;
mod ball;
mod check;
mod evolution_strategy;
mod gradient_ascent;
mod logit_matching;
mod loss;
mod momentum;
mod none;
mod pgd;
mod queue;
mod stop;
mod uniform_noise;
mod victim;

pub use adam::Adam;
pub use aggmo::AggMo;
pub use apgd::{Apgd, Bookkeeping, Schedule, Start};
pub use ascent::Gradient;
pub use attack::{Attack, Cost, Guides, Snapshot};
pub use ball::{Ball, OutsideBall};
pub use evolution_strategy::{EvolutionStrategy, Samples};
pub use gradient_ascent::GradientAscent;
pub use logit_matching::LogitMatching;
pub use loss::{Cotangent, Loss};
pub use momentum::Momentum;
pub use none::None;
pub use pgd::Pgd;
pub use stop::{Reading, Stop};
pub use uniform_noise::UniformNoise;
pub use victim::{Eot, Mean, Opinion, Query, Sampling, Victim};

use game::{Fraction, Norm, within_pixels};

game::catalogue! {
    /// Any attack and its parameters.
    dyn Attack {
        "none" => None,
        "uniform-noise" => UniformNoise,
        "pgd" => Pgd,
        "momentum" => Momentum,
        "aggmo" => AggMo,
        "apgd" => Apgd,
        "gradient-ascent" => GradientAscent,
        "adam" => Adam,
        "evolution-strategy" => EvolutionStrategy,
        "logit-matching" => LogitMatching,
    }
}

impl Spec {
    /// The norm that bounds or judges the perturbation; `None` for no perturbation.
    #[must_use]
    pub fn norm(&self) -> Option<Norm> {
        self.build().ball().map(|(norm, _)| norm)
    }

    /// The budget in that norm, in pixel units of `[0, 1]`; `None` for no perturbation.
    #[must_use]
    pub fn eps(&self) -> Option<&Fraction> {
        self.build().ball().map(|(_, eps)| eps)
    }

    /// Whether budget and steps make sense for images of this many numbers, over all channels and pixels: in l2 no two such
    /// images are further apart than the diagonal of the box `[0, 1]` of them.
    ///
    /// # Errors
    /// One sentence: the attack, the parameter, its value, and what it must be.
    pub fn check_size(&self, numbers: usize) -> Result<(), String> {
        let attack = self.build();
        let Some((Norm::L2, eps)) = attack.ball() else { return Ok(()) };
        let diagonal = (numbers as f64).sqrt();
        let lengths = [("eps", Some(eps)), ("step_size", attack.step_size())];
        lengths
            .into_iter()
            .filter_map(|(name, length)| Some((name, length?)))
            .try_for_each(|(name, length)| within_pixels(name, length.value(), length, diagonal))
            .map_err(|error| format!("{}: {error}", self.name()))
    }

    /// The number of steps of every snapshot, ascending.
    #[must_use]
    pub fn steps(&self) -> Vec<usize> {
        self.build().steps()
    }

    /// Queries per image of the whole run, where nothing stops it early.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.build().cost()
    }

    /// The attacks whose success this one's must be compared with: no perturbation, and noise in the same ball.
    #[must_use]
    pub fn companions(&self) -> Vec<Self> {
        let noise = || self.build().ball().map(|(norm, eps)| UniformNoise { norm, eps: eps.clone() }.into());
        match self {
            Self::None(_) => vec![],
            Self::UniformNoise(_) => vec![None {}.into()],
            _ => [None {}.into()].into_iter().chain(noise()).collect(),
        }
    }
}
