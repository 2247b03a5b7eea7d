//! How sure a rate is, and a difference between two rates over the same images.

/// The 95% quantile of the two-sided standard normal.
const Z: f64 = 1.959_963_984_540_054;

/// The Wilson score interval at 95% of the rate `count / of` (Wilson 1927); the whole of `[0, 1]` when `of` is zero.
///
/// # Panics
/// If `count` exceeds `of`.
#[must_use]
pub fn wilson(count: u64, of: u64) -> (f64, f64) {
    assert!(count <= of, "{count} of {of} is no rate");
    if of == 0 {
        return (0.0, 1.0);
    }
    let (low, high) = wilson_rate(count as f64 / of as f64, of as f64);
    (if count == 0 { 0.0 } else { low }, if count == of { 1.0 } else { high })
}

/// The Wilson score interval at 95% of a rate observed over `n` independent trials, `n` above zero.
#[must_use]
pub fn wilson_rate(rate: f64, n: f64) -> (f64, f64) {
    let square = Z * Z / n;
    let middle = rate + square / 2.0;
    let reach = Z * (rate * (1.0 - rate) / n + square / n / 4.0).sqrt();
    (((middle - reach) / (1.0 + square)).max(0.0), ((middle + reach) / (1.0 + square)).min(1.0))
}

/// Two answers, yes or no, about each of some images: how many have each pair of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Yes twice.
    pub both: u64,
    /// Yes by the first alone.
    pub first: u64,
    /// Yes by the second alone.
    pub second: u64,
    /// No twice.
    pub neither: u64,
}

impl Pairs {
    /// Counts pairs of answers.
    pub fn count(answers: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut pairs = Self::default();
        for answer in answers {
            *match answer {
                (true, true) => &mut pairs.both,
                (true, false) => &mut pairs.first,
                (false, true) => &mut pairs.second,
                (false, false) => &mut pairs.neither,
            } += 1;
        }
        pairs
    }

    /// All images.
    #[must_use]
    pub const fn images(&self) -> u64 {
        self.both + self.first + self.second + self.neither
    }

    /// The correlation of the answers, drawn towards 0 by half an image's weight where it is positive (Newcombe 1998); 0
    /// where one of them never varies.
    fn correlation(&self) -> f64 {
        let [both, first, second, neither] =
            [self.both, self.first, self.second, self.neither].map(|count| count as f64);
        let spread = (both + first) * (second + neither) * (both + second) * (first + neither);
        let cross = both * neither - first * second;
        let cross = if cross > 0.0 { (cross - self.images() as f64 / 2.0).max(0.0) } else { cross };
        if spread > 0.0 { cross / spread.sqrt() } else { 0.0 }
    }
}

/// The first rate less `share` times the second over the same images, and its 95% interval; nothing without images.
///
/// The Wilson intervals of the two rates are squared and added, with their correlation: method 10 of Newcombe (1998,
/// Statistics in Medicine 17, 2635) for the difference (`share` 1), its MOVER generalisation (Donner and Zou 2012,
/// Statistical Methods in Medical Research 21, 347) for any other share. The interval has a width where both rates are 0 or
/// 1, and ends within `[-share, 1]`.
#[must_use]
pub fn paired_difference(pairs: Pairs, share: f64) -> Option<(f64, (f64, f64))> {
    let images = pairs.images();
    if images == 0 {
        return None;
    }
    let reach = |count: u64, share: f64| {
        let (rate, (low, high)) = (count as f64 / images as f64, wilson(count, images));
        (share * rate, share * (rate - low), share * (high - rate))
    };
    let (first, first_down, first_up) = reach(pairs.both + pairs.first, 1.0);
    let (second, second_down, second_up) = reach(pairs.both + pairs.second, share);
    let correlation = pairs.correlation();
    let add = |a: f64, b: f64| (a * a - 2.0 * correlation * a * b + b * b).max(0.0).sqrt();
    let value = first - second;
    Some((value, (value - add(first_down, second_up), value + add(first_up, second_down))))
}

/// The p-value of McNemar's test that both answers are yes equally often: exact, two-sided, given the discordant pairs.
#[must_use]
pub fn mcnemar(pairs: Pairs) -> f64 {
    let (fewer, all) = (pairs.first.min(pairs.second), pairs.first + pairs.second);
    // The logarithm of a binomial probability with one half, from each to the next.
    let mut log = -(all as f64) * std::f64::consts::LN_2;
    let mut tail = log.exp();
    for k in 1..=fewer {
        log += ((all - k + 1) as f64 / k as f64).ln();
        tail += log.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;

    #[test]
    fn intervals_are_those_of_scipy() {
        // scipy.stats.binomtest(count, of).proportion_ci(method="wilson")
        for (count, of, low, high) in [
            (0, 10, 0.000000000000000, 0.277532799862889),
            (10, 10, 0.722467200137111, 1.000000000000000),
            (1, 2, 0.094531205734231, 0.905468794265769),
            (117, 785, 0.125842760289094, 0.175664540273256),
            (199, 200, 0.972226295602107, 0.999116831284399),
            (100000, 200000, 0.497808714692788, 0.502191285307212),
        ] {
            let ours = wilson(count, of);
            assert!((ours.0 - low).abs() < 1e-12 && (ours.1 - high).abs() < 1e-12, "{count} of {of}: {ours:?}");
        }
    }

    #[test]
    fn no_images_tell_nothing() {
        assert_eq!(wilson(0, 0), (0.0, 1.0));
    }

    const fn pairs((both, first, second, neither): (u64, u64, u64, u64)) -> Pairs {
        Pairs { both, first, second, neither }
    }

    #[test]
    fn paired_intervals_and_tests_are_those_of_scipy() {
        // tests/golden/paired.py. The first table is Cavo et al. (2012), for which Fagerland, Lydersen and Laake (2017,
        // Statistical Analysis of Contingency Tables, chapter 8) print -0.0621 [-0.1186, -0.0046] and p = 0.0525.
        for (table, share, value, low, high, p) in [
            ((59, 6, 16, 80), 1.0, -0.062111801242236, -0.118621195638710, -0.004625113933050, 0.052478790283203125),
            ((59, 6, 16, 80), 0.95, -0.038819875776398, -0.093743232666693, 0.017461157074184, 0.052478790283203125),
            ((1, 1, 7, 12), 1.0, -0.285714285714286, -0.506920226686141, -0.025559124164860, 0.0703125),
            ((1, 1, 7, 12), 0.95, -0.266666666666667, -0.477904969055741, -0.012210989536971, 0.0703125),
            ((20, 12, 2, 16), 1.0, 0.200000000000000, 0.056156424841748, 0.329206995400141, 0.012939453125),
            ((20, 12, 2, 16), 0.95, 0.222000000000000, 0.081550580815901, 0.347619776362000, 0.012939453125),
            ((0, 0, 0, 30), 1.0, 0.000000000000000, -0.113513393173969, 0.113513393173969, 1.0),
            ((0, 0, 0, 30), 0.95, 0.000000000000000, -0.107837723515270, 0.113513393173969, 1.0),
            ((30, 0, 0, 0), 1.0, 0.000000000000000, -0.113513393173969, 0.113513393173969, 1.0),
            ((30, 0, 0, 0), 0.95, 0.050000000000000, -0.063513393173969, 0.157837723515270, 1.0),
            ((0, 29, 0, 1), 1.0, 0.966666666666667, 0.791529574286577, 0.994091409618387, 3.725290298461914e-09),
            ((0, 29, 0, 1), 0.95, 0.966666666666667, 0.795153736219893, 0.994091409618387, 3.725290298461914e-09),
            ((95, 0, 1, 4), 1.0, -0.010000000000000, -0.055640054852602, 0.030620489989080, 1.0),
            ((95, 0, 1, 4), 0.95, 0.038000000000000, -0.008275121257759, 0.076028567451423, 1.0),
            ((3, 40, 45, 12), 1.0, -0.050000000000000, -0.225395024310020, 0.128814251104708, 0.6646454904132133),
            ((3, 40, 45, 12), 0.95, -0.026000000000000, -0.196906996468701, 0.148420784065484, 0.6646454904132133),
            ((0, 3, 5, 0), 1.0, -0.250000000000000, -0.726311428352805, 0.388515210794745, 0.7265625),
            ((0, 3, 5, 0), 0.95, -0.218750000000000, -0.683153642643985, 0.403802330524877, 0.7265625),
        ] {
            let (ours, interval) = paired_difference(pairs(table), share).unwrap();
            let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
            let agree = close(ours, value) && close(interval.0, low) && close(interval.1, high);
            assert!(agree, "{table:?} at {share}: {ours} {interval:?}");
            assert!((mcnemar(pairs(table)) / p - 1.0).abs() < 1e-12, "{table:?}: {}", mcnemar(pairs(table)));
        }
        assert_eq!(paired_difference(Pairs::default(), 1.0), None);
        // scipy.stats.binomtest(2900, 6000).pvalue: terms far below the smallest double.
        let p = mcnemar(pairs((0, 2900, 3100, 0)));
        assert!((p / 0.01019104152341286 - 1.0).abs() < 1e-9, "{p}");
    }

    #[test]
    fn answers_swapped_or_negated_turn_the_interval_round() {
        let table = Pairs { both: 20, first: 12, second: 2, neither: 16 };
        let (value, (low, high)) = paired_difference(table, 1.0).unwrap();
        let swapped = Pairs { first: table.second, second: table.first, ..table };
        let negated = Pairs { both: table.neither, neither: table.both, ..swapped };
        let near = |pairs, expected: [f64; 3]| {
            let (value, (low, high)) = paired_difference(pairs, 1.0).unwrap();
            [value, low, high].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12)
        };
        assert!(near(swapped, [-value, -high, -low]));
        assert!(near(negated, [-value, -high, -low]), "no is counted as yes is");
        let answers = [(true, true), (true, false), (false, true), (true, false), (false, false)];
        assert_eq!(Pairs::count(answers), pairs((1, 2, 1, 1)));
    }

    /// How many of 2,000 simulated tables have an interval around the truth.
    fn coverage(both: f64, first: f64, second: f64, images: u64, share: f64) -> f64 {
        const TABLES: u64 = 2000;
        let truth = both + first - share * (both + second);
        let covered = |&table: &u64| {
            let answer = |image| {
                let u = Key::root(1998).at(table).at(image).unit();
                (u < both + first, u < both || (both + first..both + first + second).contains(&u))
            };
            let (_, (low, high)) = paired_difference(Pairs::count((0..images).map(answer)), share).unwrap();
            low <= truth && truth <= high
        };
        (0..TABLES).filter(covered).count() as f64 / TABLES as f64
    }

    #[test]
    fn intervals_cover_the_truth_about_as_often_as_they_say() {
        // The standard error of a share near 0.95 over 2,000 tables is half a point. Near 0 and 1 the interval is cautious.
        for (both, first, second, images, most) in [
            (0.4, 0.1, 0.1, 100, 0.975),
            (0.3, 0.3, 0.05, 60, 0.975),
            (0.05, 0.05, 0.8, 100, 0.975),
            (0.9, 0.02, 0.05, 100, 1.0),
            (0.95, 0.03, 0.0, 200, 1.0),
            (0.97, 0.0, 0.02, 50, 1.0),
        ] {
            for share in [1.0, 0.95] {
                let coverage = coverage(both, first, second, images, share);
                let case = (both, first, second, images, share);
                assert!((0.935..=most).contains(&coverage), "{case:?}: {coverage}");
            }
        }
        assert_eq!(coverage(1.0, 0.0, 0.0, 100, 0.95), 1.0, "nothing varies: the truth is at the estimate");
    }
}
