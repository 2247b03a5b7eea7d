//! How sure a rate is.

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

#[cfg(test)]
mod tests {
    use super::wilson;

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
}
