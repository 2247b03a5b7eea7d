//! The share of an image's energy at high frequencies.

use std::f64::consts::PI;

use libm::cos;

/// The orthonormal discrete cosine transform of type II, its lower half of the frequencies: `(n/2 rounded up, n)`.
fn lower_half(n: usize) -> Vec<f64> {
    let entry = |u: usize, i: usize| {
        let scale = if u == 0 { 1.0 } else { 2.0 } / n as f64;
        scale.sqrt() * cos(PI * (i as f64 + 0.5) * u as f64 / n as f64)
    };
    (0..n.div_ceil(2)).flat_map(|u| (0..n).map(move |i| entry(u, i))).collect()
}

/// The share of a channel's energy, `(rows, columns)` values, outside the lower half of the frequencies of both
/// directions: sums of squares of all coefficients, and of those low ones.
///
/// The transform keeps the sum of squares, so the low coefficients alone have to be computed.
pub(super) fn energies(values: &[f32], rows: usize, columns: usize) -> (f64, f64) {
    let all = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let (down, across) = (lower_half(rows), lower_half(columns));
    let dot = |a: &[f64], b: &mut dyn Iterator<Item = f64>| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // Along the rows first: `(rows, columns/2)`, then down the columns.
    let half: Vec<f64> = values
        .chunks_exact(columns)
        .flat_map(|row| across.chunks_exact(columns).map(|basis| dot(basis, &mut row.iter().map(|&v| f64::from(v)))))
        .collect();
    let width = columns.div_ceil(2);
    let low = down.chunks_exact(rows).flat_map(|basis| {
        let half = &half;
        (0..width).map(move |v| dot(basis, &mut (0..rows).map(|i| half[i * width + v])))
    });
    (all, low.map(|c| c * c).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn high_share(values: &[f32], rows: usize, columns: usize) -> f64 {
        let (all, low) = energies(values, rows, columns);
        1.0 - low / all
    }

    #[test]
    fn smooth_images_are_low_and_chequered_ones_high() {
        let image = |of: fn(usize, usize) -> f32| (0..48).map(|i| of(i / 6, i % 6)).collect::<Vec<f32>>();
        assert!(high_share(&image(|_, _| 0.3), 8, 6).abs() < 1e-12);
        // Alternating signs hold no constant part, and next to nothing below half of the frequencies.
        assert!(high_share(&image(|i, j| if (i + j) % 2 == 0 { 1.0 } else { -1.0 }), 8, 6) > 0.9);
        // A single cosine is where its frequency says.
        let wave = |u: usize| move |i: usize| cos(PI * ((i / 6) as f64 + 0.5) * u as f64 / 8.0) as f32;
        assert!(high_share(&(0..48).map(wave(3)).collect::<Vec<_>>(), 8, 6) < 1e-9);
        assert!(high_share(&(0..48).map(wave(4)).collect::<Vec<_>>(), 8, 6) > 1.0 - 1e-9);
    }

    #[test]
    fn a_single_point_is_spread_over_all_frequencies_as_the_transform_says() {
        // (scipy.fft.dctn(values, norm="ortho")[:2, :2] ** 2).sum()
        let mut values = [0.0; 16];
        values[6] = 1.0;
        let (all, low) = energies(&values, 4, 4);
        assert_eq!(all, 1.0);
        assert!((low - 0.104_473_304_703_366_3).abs() < 1e-12, "{low}");
    }
}
