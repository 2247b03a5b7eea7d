//! Per-image standardisation, and its gradient. Sums are in f64, of eight parts.

const PARTS: usize = 8;

/// The sum of `term(i)` over `i < count`.
#[inline(always)]
fn sum(count: usize, term: impl Fn(usize) -> f64) -> f64 {
    let mut sums = [0.0; PARTS];
    let whole = count - count % PARTS;
    for first in (0..whole).step_by(PARTS) {
        for (part, sum) in sums.iter_mut().enumerate() {
            *sum += term(first + part);
        }
    }
    for (sum, i) in sums.iter_mut().zip(whole..count) {
        *sum += term(i);
    }
    sums.iter().sum()
}

/// Standardises an image, and answers with one over what it was divided by, negative where that was not the standard
/// deviation because it is too small.
pub(crate) fn standardise(values: &mut [f32]) -> f64 {
    let count = values.len() as f64;
    let mean = sum(values.len(), |i| f64::from(values[i])) / count;
    let square = |x: f64| x * x;
    let deviation = (sum(values.len(), |i| square(f64::from(values[i]) - mean)) / count).sqrt();
    let least = count.sqrt().recip();
    // Not a number is no deviation, and shows.
    let inverse = if deviation < least { -1.0 / least } else { 1.0 / deviation };
    values.iter_mut().for_each(|x| *x = ((f64::from(*x) - mean) * inverse.abs()) as f32);
    inverse
}

/// The gradient of an image from that of its standardised `values`, in place; `inverse` is [`standardise`]'s.
pub(crate) fn unstandardise(gradient: &mut [f32], values: &[f32], inverse: f64) {
    let count = gradient.len();
    let mean = sum(count, |i| f64::from(gradient[i])) / count as f64;
    let slope = match inverse < 0.0 {
        true => 0.0,
        false => sum(count, |i| f64::from(gradient[i]) * f64::from(values[i])) / count as f64,
    };
    for (g, &z) in gradient.iter_mut().zip(values) {
        *g = ((f64::from(*g) - mean - slope * f64::from(z)) * inverse.abs()) as f32;
    }
}
