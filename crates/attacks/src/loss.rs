//! Losses, and their gradients at the logits.

use serde::{Deserialize, Serialize};

/// What an attack ascends about a label, or descends about a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The negative logarithm of the class's probability.
    #[default]
    CrossEntropy,
    /// The largest other logit minus the class's own (Carlini and Wagner 2017, f6 without its clamp).
    Margin,
}

/// The value of a loss and the scale of its gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cotangent {
    /// The loss.
    pub loss: f64,
    /// The gradient with respect to the logits is what was written to `upstream`, times two to this power.
    pub log2: i32,
}

impl Loss {
    /// The loss of one row of logits about `class`; its gradient goes to `upstream`, scaled to entries near 1.
    ///
    /// Where the network is certain, the gradient of cross-entropy is tiny, and the label's own entry `p_y - 1` cancels:
    /// in f32 a third of a well-trained network's images lose their gradient's sign. So that entry is the negative sum
    /// of the other probabilities here, everything is relative to the largest other logit, and the magnitude is set
    /// apart as a power of two: nothing underflows in an f32 backward pass, however certain the network is.
    ///
    /// # Panics
    /// If `class` is not a class, is the only one, or the slices differ in length.
    pub fn evaluate(self, logits: &[f64], class: usize, upstream: &mut [f64]) -> Cotangent {
        assert_eq!(logits.len(), upstream.len());
        assert!(class < logits.len() && logits.len() > 1, "a loss is about one of several classes");
        match self {
            Self::CrossEntropy => cross_entropy(logits, class, upstream),
            Self::Margin => margin(logits, class, upstream),
        }
    }
}

/// The class other than `class` with the largest logit, the smallest class on ties.
fn rival(logits: &[f64], class: usize) -> usize {
    let others = (0..logits.len()).filter(|&j| j != class);
    others.reduce(|best, j| if logits[j] > logits[best] { j } else { best }).expect("several classes")
}

fn cross_entropy(logits: &[f64], class: usize, upstream: &mut [f64]) -> Cotangent {
    let top = logits[rival(logits, class)];
    // Odds of the other classes against the strongest of them: they sum to a number in [1, k - 1].
    let mut others = 0.0;
    for (j, (u, &z)) in upstream.iter_mut().zip(logits).enumerate() {
        *u = if j == class { 0.0 } else { (z - top).exp() };
        others += *u;
    }
    upstream[class] = -others;
    // ln(others + e^lead), without overflow; the gradient is the odds divided by that sum.
    let lead = logits[class] - top;
    let certain = (others * (-lead).exp()).ln_1p();
    let (loss, ln_sum) = if lead > 0.0 {
        (certain, lead + certain)
    } else {
        let ln_sum = (others + lead.exp()).ln();
        (ln_sum - lead, ln_sum)
    };
    let log2 = -ln_sum / std::f64::consts::LN_2;
    let whole = log2.floor();
    let rest = (log2 - whole).exp2();
    upstream.iter_mut().for_each(|u| *u *= rest);
    // Saturates far below what any product with it could represent.
    Cotangent { loss, log2: whole.max(-1e9) as i32 }
}

fn margin(logits: &[f64], class: usize, upstream: &mut [f64]) -> Cotangent {
    let rival = rival(logits, class);
    upstream.fill(0.0);
    upstream[rival] = 1.0;
    upstream[class] = -1.0;
    Cotangent { loss: logits[rival] - logits[class], log2: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(loss: Loss, logits: &[f64], class: usize) -> (f64, Vec<f64>) {
        let mut upstream = vec![0.0; logits.len()];
        let Cotangent { loss, log2 } = loss.evaluate(logits, class, &mut upstream);
        (loss, upstream.iter().map(|u| u * f64::from(log2).exp2()).collect())
    }

    #[test]
    fn cross_entropy_is_the_textbooks_where_the_textbook_works() {
        let logits: [f64; 4] = [0.3, -1.2, 2.5, 0.9];
        let sum: f64 = logits.iter().map(|z| z.exp()).sum();
        for class in 0..4 {
            let (loss, got) = gradient(Loss::CrossEntropy, &logits, class);
            assert!((loss - (sum.ln() - logits[class])).abs() < 1e-14);
            for j in 0..4 {
                let expected = logits[j].exp() / sum - f64::from(u8::from(j == class));
                assert!((got[j] - expected).abs() < 1e-15, "{class} {j}");
            }
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_losses() {
        let logits = [1.0, 3.0, -2.0, 2.5, 0.0];
        for loss in [Loss::CrossEntropy, Loss::Margin] {
            for class in 0..5 {
                let (_, got) = gradient(loss, &logits, class);
                for j in 0..5 {
                    let at = |h: f64| {
                        let mut moved = logits;
                        moved[j] += h;
                        gradient(loss, &moved, class).0
                    };
                    assert!(((at(1e-5) - at(-1e-5)) / 2e-5 - got[j]).abs() < 1e-9, "{loss:?} {class} {j}");
                }
            }
        }
    }

    #[test]
    fn certainty_costs_no_digit() {
        // p_other = 2 e^-800 / (1 + 2 e^-800): below every f64, but its logarithm and its direction are not.
        let mut upstream = [0.0; 3];
        let Cotangent { loss, log2 } = Loss::CrossEntropy.evaluate(&[800.0, 0.0, 0.0], 0, &mut upstream);
        assert_eq!(loss, 2.0 * (-800f64).exp());
        assert!((f64::from(log2) + upstream[1].log2() + 800.0 / std::f64::consts::LN_2).abs() < 1e-9);
        assert_eq!(upstream, [-2.0 * upstream[1], upstream[1], upstream[1]]);
        assert!((1.0..2.0).contains(&upstream[1]));
        // And the other way round: sure of another class.
        let (loss, gradient) = gradient(Loss::CrossEntropy, &[-800.0, 0.0, -900.0], 0);
        assert_eq!((loss, gradient), (800.0, vec![-1.0, 1.0, 0.0]));
    }
}
