//! Where the paper's lemmas hold beyond their assumption sigma = epsilon = 1.

use crate::{Example, Votes, undefended_robustness};

const SHIFTS: u32 = 400;
/// Budgets among which a change of sign is looked for: 0.001 to 4, each 2% above the one before.
const BUDGETS: i32 = 420;

/// Robustness of a single draw at shift k.
fn robustness(sigma: f64, epsilon: f64, k: f64) -> f64 {
    Example { sigma, epsilon, k, votes: Votes::Finite(1) }.robustness()
}

/// The largest increase of the robustness Rob(k) between two shifts `0 <= k < k' <= 1` (a grid of step 1/400), at least 0.
///
/// Lemma 2 says that Rob falls toward k = 1: it holds where this is 0 (to rounding, 1e-12).
#[must_use]
pub fn robustness_rise(sigma: f64, epsilon: f64) -> f64 {
    let shifts = (0..=SHIFTS).map(|i| robustness(sigma, epsilon, f64::from(i) / f64::from(SHIFTS)));
    let (rise, _) = shifts.fold((0.0_f64, f64::INFINITY), |(rise, lowest), value| {
        let lowest = lowest.min(value);
        (rise.max(value - lowest), lowest)
    });
    rise
}

/// Robustness of the trained classifier (k = 1, one draw) less that of the undefended one.
///
/// Observation 3 says that this is positive.
#[must_use]
pub fn robustness_gain(sigma: f64, epsilon: f64) -> f64 {
    robustness(sigma, epsilon, 1.0) - undefended_robustness(epsilon)
}

/// The budget above which the trained classifier is more robust than the undefended one: where [`robustness_gain`]
/// last turns positive, by bisection; 0 if it is positive for every budget from 0.001 to 4.
#[must_use]
pub fn robustness_threshold(sigma: f64) -> f64 {
    let budgets: Vec<f64> = (0..BUDGETS).map(|i| 0.001 * 1.02_f64.powi(i)).collect();
    let last = budgets.windows(2).rfind(|pair| robustness_gain(sigma, pair[0]) <= 0.0);
    let Some(&[mut low, mut high]) = last else { return 0.0 };
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if robustness_gain(sigma, middle) <= 0.0 { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trained_classifier_is_more_robust_only_above_a_budget() {
        for (sigma, threshold, digits) in [(1.0, 0.02, 0.005), (0.5, 0.22, 0.005), (0.25, 0.285, 0.001)] {
            let ours = robustness_threshold(sigma);
            assert!((ours - threshold).abs() <= digits, "{ours} is not {threshold}");
            assert!(robustness_gain(sigma, ours * 0.99) < 0.0 && robustness_gain(sigma, ours * 1.01) > 0.0);
        }
        assert!((robustness(1.0, 0.01, 1.0) - 0.997_103).abs() < 5e-7);
        assert!((undefended_robustness(0.01) - 0.997_110).abs() < 5e-7);
    }

    #[test]
    fn robustness_falls_toward_the_trained_shift_but_not_for_small_noise_and_budget() {
        for (sigma, epsilon) in [(1.0, 0.001), (1.0, 1.0), (1.0, 5.0), (0.7, 0.05), (0.7, 0.3)] {
            assert!(robustness_rise(sigma, epsilon) <= 1e-12, "sigma {sigma}, epsilon {epsilon}");
        }
        for (sigma, epsilon) in [(0.5, 0.1), (0.5, 0.01), (0.3, 0.1), (0.1, 0.25)] {
            assert!(robustness_rise(sigma, epsilon) > 1e-7, "sigma {sigma}, epsilon {epsilon}");
        }
    }
}
