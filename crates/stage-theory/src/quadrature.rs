//! Gauss-Legendre quadrature on panels.

use std::{f64::consts::PI, sync::LazyLock};

const NODES: usize = 20;
/// Beyond this many standard deviations from the means -1 and 1 the normal density is below 1e-20.
const REACH: f64 = 11.0;
const WIDEST: f64 = 0.5;

/// Nodes and weights on `[-1, 1]`: the roots of the Legendre polynomial, by Newton's method.
static RULE: LazyLock<Vec<(f64, f64)>> = LazyLock::new(|| {
    (0..NODES)
        .map(|i| {
            let mut x = (PI * (i as f64 + 0.75) / (NODES as f64 + 0.5)).cos();
            for _ in 0..50 {
                let (p, slope) = legendre(x);
                x -= p / slope;
            }
            let slope = legendre(x).1;
            (x, 2.0 / ((1.0 - x * x) * slope * slope))
        })
        .collect()
});

/// The Legendre polynomial of degree [`NODES`] and its derivative.
fn legendre(x: f64) -> (f64, f64) {
    let (mut p, mut before) = (x, 1.0);
    for n in 2..=NODES {
        let n = n as f64;
        (p, before) = (((2.0 * n - 1.0) * x * p - (n - 1.0) * before) / n, p);
    }
    (p, NODES as f64 * (x * p - before) / (x * x - 1.0))
}

/// The integral of `f`, which decays like a normal density about -1 or 1, over the real line.
///
/// `f` may jump at 0 and may change quickly near `centre`, over a distance of `width`: panels end at 0 and shrink there.
pub(crate) fn integrate(centre: f64, width: f64, f: impl Fn(f64) -> f64) -> f64 {
    let even = (0..=(2.0 * REACH / WIDEST) as i32).map(|i| f64::from(i) * WIDEST - REACH);
    let fine = (-10..=10).map(|i| centre + width * f64::from(i)).filter(|x| x.abs() < REACH);
    let mut ends: Vec<f64> = even.chain(fine).chain([0.0]).collect();
    ends.sort_by(f64::total_cmp);
    ends.windows(2).map(|ends| panel(ends[0], ends[1], &f)).sum()
}

fn panel(from: f64, to: f64, f: &impl Fn(f64) -> f64) -> f64 {
    let (middle, half) = ((from + to) / 2.0, (to - from) / 2.0);
    half * RULE.iter().map(|(x, weight)| weight * f(middle + half * x)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_up_to_twice_the_nodes_are_exact() {
        for degree in 0..2 * NODES as i32 {
            let integral = panel(-1.0, 1.0, &|x: f64| x.powi(degree));
            let exact = if degree % 2 == 0 { 2.0 / f64::from(degree + 1) } else { 0.0 };
            assert!((integral - exact).abs() < 1e-14, "degree {degree}: {integral} is not {exact}");
        }
    }
}
