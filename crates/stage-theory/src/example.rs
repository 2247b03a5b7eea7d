//! The closed forms (paper, section 5 and appendix C).

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use libm::erfc;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use statrs::function::beta::beta_reg;

use crate::quadrature::integrate;

/// How many draws of the defense are put to the vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Votes {
    /// The majority of this many draws; a tie (of an even number) goes to the smaller class, the negative one.
    Finite(u32),
    /// The limit of infinitely many draws.
    Infinite,
}

impl Votes {
    /// The number of draws; `None` if infinite.
    #[must_use]
    pub const fn finite(self) -> Option<u32> {
        match self {
            Self::Finite(n) => Some(n),
            Self::Infinite => None,
        }
    }
}

impl Serialize for Votes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Finite(n) => serializer.serialize_u32(*n),
            Self::Infinite => serializer.serialize_str("infinite"),
        }
    }
}

impl<'de> Deserialize<'de> for Votes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Votes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of votes from 1, or \"infinite\"")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Votes, E> {
                match u32::try_from(n) {
                    Ok(n) if n > 0 => Ok(Votes::Finite(n)),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(n), &self)),
                }
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Votes, E> {
                match u64::try_from(n) {
                    Ok(n) => self.visit_u64(n),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(n), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Votes, E> {
                match text {
                    "infinite" => Ok(Votes::Infinite),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// The defended classifier of the binary Gaussian example against one adversary.
///
/// Labels y are -1 or 1 with equal chance, inputs are x ~ N(y, 1), the defense adds t ~ N(1, sigma^2), the trained
/// classifier answers sgn(x + t - k), and the adversary moves x by at most epsilon, the defense's draws being the same
/// before and after.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Example {
    /// Standard deviation of the defense's noise, above 0.
    pub sigma: f64,
    /// Budget of the adversary, at least 0.
    pub epsilon: f64,
    /// Shift of the decision boundary by training: 0 without trained invariance, 1 for the noise's mean.
    pub k: f64,
    /// How many draws answer together.
    pub votes: Votes,
}

impl Example {
    /// Pr[right]: benign accuracy.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.right_within(0.0)
    }

    /// Pr[right for every shift of at most epsilon]: unconditional robust accuracy.
    #[must_use]
    pub fn joint(&self) -> f64 {
        self.right_within(self.epsilon)
    }

    /// Pr[right for every shift of at most epsilon | right]: the robustness of the paper.
    #[must_use]
    pub fn robustness(&self) -> f64 {
        self.joint() / self.accuracy()
    }

    /// Pr[same answer as the undefended sgn(x)]: the invariance R(k).
    #[must_use]
    pub fn invariance(&self) -> f64 {
        let Votes::Finite(_) = self.votes else { return 1.0 - self.between_boundaries() };
        self.integrate(0.0, |x| {
            let positive = self.positive(x);
            mixture(x) * if x > 0.0 { positive } else { 1.0 - positive }
        })
    }

    /// The chance of a right answer that a shift by `margin` toward the other class does not change.
    fn right_within(&self, margin: f64) -> f64 {
        let spread = match self.votes {
            Votes::Finite(1) => self.sigma.hypot(1.0),
            Votes::Infinite => 1.0,
            Votes::Finite(_) => {
                let above = self.integrate(margin, |x| density(x - 1.0) * self.positive(x - margin));
                let below = self.integrate(-margin, |x| density(x + 1.0) * (1.0 - self.positive(x + margin)));
                return (above + below) / 2.0;
            }
        };
        (phi((self.k - margin) / spread) + phi((2.0 - self.k - margin) / spread)) / 2.0
    }

    /// Pr[the vote at x is positive].
    fn positive(&self, x: f64) -> f64 {
        let margin = x + 1.0 - self.k;
        match self.votes {
            Votes::Infinite => f64::from(u8::from(margin > 0.0)),
            Votes::Finite(1) => phi(margin / self.sigma),
            Votes::Finite(n) => {
                // More than half of n draws: the upper tail of a binomial, as an incomplete beta function.
                let needed = n / 2 + 1;
                beta_reg(f64::from(needed), f64::from(n - needed + 1), phi(margin / self.sigma))
            }
        }
    }

    /// Pr[x lies between the undefended boundary 0 and the infinite vote's boundary k - 1].
    fn between_boundaries(&self) -> f64 {
        let boundary = self.k - 1.0;
        [-1.0, 1.0].map(|y| (phi(boundary - y) - phi(-y)).abs()).iter().sum::<f64>() / 2.0
    }

    fn integrate(&self, shift: f64, f: impl Fn(f64) -> f64) -> f64 {
        // The median of n normal draws has a standard deviation near sigma sqrt(pi / 2n).
        let draws = self.votes.finite().map_or(1.0, f64::from);
        integrate(self.k - 1.0 + shift, self.sigma * (PI / 2.0 / draws).sqrt(), f)
    }
}

/// Pr[right] of the undefended classifier sgn(x).
#[must_use]
pub fn undefended_accuracy() -> f64 {
    phi(1.0)
}

/// Pr[right for every shift of at most epsilon] of the undefended classifier sgn(x).
#[must_use]
pub fn undefended_joint(epsilon: f64) -> f64 {
    phi(1.0 - epsilon)
}

/// Pr[right for every shift of at most epsilon | right] of the undefended classifier sgn(x).
#[must_use]
pub fn undefended_robustness(epsilon: f64) -> f64 {
    undefended_joint(epsilon) / undefended_accuracy()
}

/// The standard normal distribution function.
fn phi(z: f64) -> f64 {
    erfc(-z * FRAC_1_SQRT_2) / 2.0
}

fn density(z: f64) -> f64 {
    (-z * z / 2.0).exp() / (2.0 * PI).sqrt()
}

/// The density of x over both classes.
fn mixture(x: f64) -> f64 {
    (density(x - 1.0) + density(x + 1.0)) / 2.0
}

#[cfg(test)]
mod tests {
    use std::f64::consts::E;

    use libm::erf;

    use super::*;

    fn at(k: f64) -> Example {
        Example { sigma: 1.0, epsilon: 1.0, k, votes: Votes::Finite(1) }
    }

    fn voted(k: f64, n: u32) -> Example {
        Example { votes: Votes::Finite(n), ..at(k) }
    }

    #[track_caller]
    fn close(ours: f64, reference: f64, tolerance: f64) {
        assert!((ours - reference).abs() <= tolerance, "{ours} is not {reference}");
    }

    /// Central difference.
    fn slope(f: impl Fn(f64) -> f64, k: f64) -> f64 {
        (f(k + 1e-4) - f(k - 1e-4)) / 2e-4
    }

    #[test]
    fn single_draws_give_the_reference_values() {
        for (k, invariance, accuracy, robustness) in [
            (0.0, 0.750000, 0.710675, 0.703556),
            (0.25, 0.777505, 0.731098, 0.683903),
            (0.5, 0.799128, 0.746871, 0.669460),
            (0.75, 0.812966, 0.756839, 0.660642),
            (1.0, 0.817730, 0.760250, 0.657678),
        ] {
            for k in [k, 2.0 - k] {
                close(at(k).invariance(), invariance, 5.1e-7);
                close(at(k).accuracy(), accuracy, 5.1e-7);
                close(at(k).robustness(), robustness, 5.1e-7);
            }
        }
        close(undefended_accuracy(), 0.841345, 5.1e-7);
        close(undefended_robustness(1.0), 0.594287, 5.1e-7);
    }

    #[test]
    fn votes_give_the_reference_values() {
        for (k, n, accuracy, robustness, invariance) in [
            (1.0, 3, 0.79704, 0.62732, 0.87312),
            (1.0, 11, 0.82582, 0.60546, 0.92871),
            (1.0, 101, 0.83949, 0.59560, 0.97598),
            (1.0, 501, 0.84097, 0.59455, 0.98919),
            (0.0, 3, 0.72586, 0.68884, 0.76445),
            (0.0, 11, 0.73482, 0.68044, 0.76498),
            (0.0, 101, 0.73821, 0.67732, 0.76179),
            (0.0, 501, 0.73854, 0.67701, 0.76146),
        ] {
            close(voted(k, n).accuracy(), accuracy, 5.1e-6);
            close(voted(k, n).robustness(), robustness, 5.1e-6);
            close(voted(k, n).invariance(), invariance, 5.1e-6);
        }
        let limit = Example { votes: Votes::Infinite, ..at(0.0) };
        close(limit.invariance(), 0.76138, 5.1e-6);
        close(limit.robustness(), 1.0 / (phi(0.0) + phi(2.0)), 1e-15);
    }

    #[test]
    fn one_vote_by_quadrature_is_one_draw_in_closed_form() {
        for sigma in [0.01, 0.3, 1.0, 4.0] {
            for k in [-0.5, 0.0, 0.7, 1.0] {
                for margin in [0.0, 0.1, 2.0] {
                    let example = Example { sigma, k, ..at(0.0) };
                    let above = example.integrate(margin, |x| density(x - 1.0) * example.positive(x - margin));
                    let below = example.integrate(-margin, |x| density(x + 1.0) * (1.0 - example.positive(x + margin)));
                    close((above + below) / 2.0, example.right_within(margin), 1e-13);
                }
            }
        }
    }

    #[test]
    fn scipy_agrees_at_other_noises_budgets_and_votes() {
        let golden = include_str!("../tests/golden/theory.csv");
        assert!(golden.lines().count() > 20);
        for line in golden.lines().skip(1) {
            let column: Vec<f64> = line.split(',').map(|text| text.parse().unwrap()).collect();
            let votes = if column[3] == 0.0 { Votes::Infinite } else { Votes::Finite(column[3] as u32) };
            let example = Example { sigma: column[0], epsilon: column[1], k: column[2], votes };
            close(example.accuracy(), column[4], 1e-10);
            close(example.joint(), column[5], 1e-10);
            close(example.robustness(), column[6], 1e-10);
            close(example.invariance(), column[7], 1e-10);
        }
    }

    #[test]
    fn many_votes_approach_infinitely_many() {
        for k in [0.0, 0.6, 1.0] {
            let (many, limit) = (voted(k, 1_000_001), Example { votes: Votes::Infinite, ..at(k) });
            close(many.accuracy(), limit.accuracy(), 2e-6);
            close(many.joint(), limit.joint(), 2e-6);
            close(many.invariance(), limit.invariance(), 3e-4);
        }
    }

    #[test]
    fn slopes_match_their_formulas() {
        let root = PI.sqrt();
        for k in [-0.4, 0.0, 0.3, 0.9, 1.0, 1.6, 2.5] {
            let bell = |k: f64| (-k * k / 4.0).exp();
            let invariance = (bell(k) * erf(1.0 - k / 2.0) - bell(2.0 - k) * erf(k / 2.0)) / (4.0 * root);
            close(slope(|k| at(k).invariance(), k), invariance, 1e-8);
            let accuracy = (-1.0 - k * k / 4.0).exp() * (E - k.exp()) / (4.0 * root);
            close(slope(|k| at(k).accuracy(), k), accuracy, 1e-8);
            let under = 2.0 - erf((k - 2.0) / 2.0) - erf(-k / 2.0);
            let robustness = 2.0 * (-1.0 - k * k / 4.0).exp() * (k.exp() - E) / (root * under * under);
            close(slope(|k| at(k).robustness(), k), robustness, 1e-8);
        }
    }

    #[test]
    fn the_joint_probability_is_one_half_at_unit_budget() {
        for sigma in [0.1, 0.5, 1.0, 3.0] {
            for k in [-1.0, 0.0, 0.4, 1.0, 1.7] {
                for votes in [Votes::Finite(1), Votes::Finite(3), Votes::Finite(101), Votes::Infinite] {
                    close(Example { sigma, epsilon: 1.0, k, votes }.joint(), 0.5, 1e-12);
                }
            }
        }
    }

    #[test]
    fn an_even_vote_gives_ties_to_the_negative_class() {
        // At x = k - 1 each draw is fair: of 2 draws both must be positive, of 4 at least three.
        close(voted(1.0, 2).positive(0.0), 1.0 / 4.0, 1e-14);
        close(voted(1.0, 4).positive(0.0), 5.0 / 16.0, 1e-14);
        close(voted(1.0, 3).positive(0.0), 1.0 / 2.0, 1e-14);
    }

    #[test]
    fn without_budget_robustness_is_certain() {
        close(Example { epsilon: 0.0, ..voted(0.3, 5) }.robustness(), 1.0, 1e-15);
    }
}
