//! Attacks, one file each, and the victim where network, defense, BPDA and EOT meet.
//!
//! To add one: write its file (parameters, arithmetic, reference, unit test) and name it in the `catalogue!` below. The
//! parameter files, listings and contract tests take it from there.

mod attack;
mod ball;
mod loss;
mod none;
mod pgd;
mod uniform_noise;
mod victim;

pub use attack::{Attack, Cost, Snapshot};
pub use ball::{Ball, OutsideBall};
pub use loss::{Cotangent, Loss};
pub use none::None;
pub use pgd::Pgd;
pub use uniform_noise::UniformNoise;
pub use victim::{Eot, Mean, Query, Victim};

use game::{Fraction, Norm};

game::catalogue! {
    /// Any attack and its parameters.
    dyn Attack {
        "none" => None,
        "uniform-noise" => UniformNoise,
        "pgd" => Pgd,
    }
}

impl Spec {
    /// The norm that bounds the perturbation; `None` for no perturbation.
    #[must_use]
    pub fn norm(&self) -> Option<Norm> {
        self.build().ball().map(|(norm, _)| norm)
    }

    /// The budget in that norm, in pixel units of `[0, 1]`; `None` for no perturbation.
    #[must_use]
    pub fn eps(&self) -> Option<&Fraction> {
        self.build().ball().map(|(_, eps)| eps)
    }

    /// The number of steps of every snapshot, ascending.
    #[must_use]
    pub fn steps(&self) -> Vec<usize> {
        self.build().steps()
    }

    /// Queries per image of the whole run.
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
            Self::Pgd(_) => [None {}.into()].into_iter().chain(noise()).collect(),
        }
    }
}
