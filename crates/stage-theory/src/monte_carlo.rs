//! The same probabilities by simulation: an overlay that knows none of the closed forms.

use game::{Key, Phase};
use rayon::prelude::*;

use crate::{Example, Votes};

/// What was counted in the samples of one point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All samples.
    pub samples: u64,
    /// Samples answered right.
    pub right: u64,
    /// Samples answered right for every shift within the budget.
    pub robust: u64,
    /// Samples answered as the undefended classifier does.
    pub same: u64,
}

/// Samples in one unit of parallel work; no effect on the counts.
const CHUNK: u64 = 1024;

/// Simulates every point with the same `samples` inputs and draws.
///
/// Sample `i` takes its label, its input and its draws from the key of `(seed, data, i)`; the votes of n draws are the
/// first n of them.
#[must_use]
pub fn simulate(points: &[Example], samples: u64, seed: u64) -> Vec<Counts> {
    let key = Key::root(seed).phase(Phase::Data);
    let mut votes: Vec<u32> = points.iter().filter_map(|point| point.votes.finite()).collect();
    votes.sort_unstable();
    votes.dedup();
    (0..samples.div_ceil(CHUNK))
        .into_par_iter()
        .map(|chunk| {
            let mut counts = vec![Counts::default(); points.len()];
            let mut noise = vec![0.0; 1 + votes.last().copied().unwrap_or(0) as usize];
            for index in chunk * CHUNK..samples.min((chunk + 1) * CHUNK) {
                let sample = Sample::draw(key.at(index), &votes, &mut noise);
                counts.iter_mut().zip(points).for_each(|(counts, point)| counts.add(&sample, point, &votes));
            }
            counts
        })
        .reduce(|| vec![Counts::default(); points.len()], |a, b| a.iter().zip(&b).map(|(a, b)| a.plus(b)).collect())
}

/// One labelled input, and for each number of votes the standard normal draw that decides the vote.
struct Sample {
    positive: bool,
    x: f64,
    deciding: Vec<f64>,
}

impl Sample {
    fn draw(key: Key, votes: &[u32], noise: &mut [f32]) -> Self {
        let positive = key.at(0).below(2) == 1;
        key.at(1).fill_normal(noise);
        let x = f64::from(noise[0]) + if positive { 1.0 } else { -1.0 };
        // The positive class wins if more than half of the draws exceed the boundary: if the draw with exactly
        // floor(n/2) draws above it does.
        let decide = |&n: &u32| {
            let mut draws = noise[1..=n as usize].to_vec();
            let (_, &mut draw, _) = draws.select_nth_unstable_by(n as usize / 2, |a, b| b.total_cmp(a));
            f64::from(draw)
        };
        Self { positive, x, deciding: votes.iter().map(decide).collect() }
    }

    /// Signed distance of the deciding draw from the boundary.
    fn margin(&self, point: &Example, votes: &[u32]) -> f64 {
        let deviation = match point.votes {
            Votes::Infinite => 0.0,
            Votes::Finite(n) => self.deciding[votes.partition_point(|&other| other < n)],
        };
        self.x + 1.0 + point.sigma * deviation - point.k
    }
}

impl Counts {
    fn add(&mut self, sample: &Sample, point: &Example, votes: &[u32]) {
        let margin = sample.margin(point, votes);
        let (right, distance) = if sample.positive { (margin > 0.0, margin) } else { (margin <= 0.0, -margin) };
        self.samples += 1;
        self.right += u64::from(right);
        self.robust += u64::from(right && distance >= point.epsilon);
        self.same += u64::from((margin > 0.0) == (sample.x > 0.0));
    }

    const fn plus(&self, other: &Self) -> Self {
        Self {
            samples: self.samples + other.samples,
            right: self.right + other.right,
            robust: self.robust + other.robust,
            same: self.same + other.same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points() -> Vec<Example> {
        let votes = [1, 3, 4, 11, 101].map(Votes::Finite).into_iter().chain([Votes::Infinite]);
        votes
            .flat_map(|votes| {
                [(1.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.4, 0.25, 0.7), (2.0, 0.5, 1.6)]
                    .map(|(sigma, epsilon, k)| Example { sigma, epsilon, k, votes })
            })
            .collect()
    }

    #[test]
    fn simulation_and_closed_forms_agree_within_four_standard_errors() {
        let points = points();
        for (point, counts) in points.iter().zip(simulate(&points, 60_000, 1)) {
            let check = |count: u64, of: u64, exact: f64| {
                let (count, of) = (count as f64, of as f64);
                let error = (exact * (1.0 - exact) / of).sqrt();
                assert!((count / of - exact).abs() <= 4.0 * error, "{point:?}: {} is not {exact}", count / of);
            };
            check(counts.right, counts.samples, point.accuracy());
            check(counts.robust, counts.samples, point.joint());
            check(counts.robust, counts.right, point.robustness());
            check(counts.same, counts.samples, point.invariance());
        }
    }

    #[test]
    fn a_point_is_counted_alike_alone_and_among_others() {
        let points = points();
        let together = simulate(&points, 3000, 9);
        assert_eq!(simulate(&points[9..10], 3000, 9), together[9..10]);
        assert_ne!(simulate(&points[9..10], 3000, 8), together[9..10]);
        assert_eq!(together[9].samples, 3000);
    }
}
