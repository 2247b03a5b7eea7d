//! The discrete cosine transform of 8 x 8 blocks.

use crate::kernel::Pixel;

/// An 8 x 8 block: rows of columns.
pub type Block<F> = [[F; 8]; 8];

/// `COS[k][i]`: the orthonormal cosine of frequency `k` at `i`, for the first half; the second mirrors it, with the sign of
/// an odd `k` changed.
const COS: [[f64; 4]; 8] = [
    [0.353_553_390_593_273_8; 4],
    [0.490_392_640_201_615_2, 0.415_734_806_151_272_6, 0.277_785_116_509_801_1, 0.097_545_161_008_064_13],
    [0.461_939_766_255_643_4, 0.191_341_716_182_544_9, -0.191_341_716_182_544_9, -0.461_939_766_255_643_4],
    [0.415_734_806_151_272_6, -0.097_545_161_008_064_13, -0.490_392_640_201_615_2, -0.277_785_116_509_801_1],
    [0.353_553_390_593_273_8, -0.353_553_390_593_273_8, -0.353_553_390_593_273_8, 0.353_553_390_593_273_8],
    [0.277_785_116_509_801_1, -0.490_392_640_201_615_2, 0.097_545_161_008_064_13, 0.415_734_806_151_272_6],
    [0.191_341_716_182_544_9, -0.461_939_766_255_643_4, 0.461_939_766_255_643_4, -0.191_341_716_182_544_9],
    [0.097_545_161_008_064_13, -0.277_785_116_509_801_1, 0.415_734_806_151_272_6, -0.490_392_640_201_615_2],
];

/// The orthonormal DCT of every column.
#[inline(always)]
fn columns<F: Pixel>(x: &Block<F>) -> Block<F> {
    let mut out = [[F::zero(); 8]; 8];
    let (mut sums, mut differences) = ([[F::zero(); 8]; 4], [[F::zero(); 8]; 4]);
    for i in 0..4 {
        for lane in 0..8 {
            sums[i][lane] = x[i][lane] + x[7 - i][lane];
            differences[i][lane] = x[i][lane] - x[7 - i][lane];
        }
    }
    for k in 0..8 {
        let halves = if k % 2 == 0 { &sums } else { &differences };
        for i in 0..4 {
            let cos = F::narrow(COS[k][i]);
            for lane in 0..8 {
                out[k][lane] += cos * halves[i][lane];
            }
        }
    }
    out
}

/// The inverse, and transpose, of [`columns`].
#[inline(always)]
fn columns_back<F: Pixel>(x: &Block<F>) -> Block<F> {
    let mut out = [[F::zero(); 8]; 8];
    for i in 0..4 {
        let (mut even, mut odd) = ([F::zero(); 8], [F::zero(); 8]);
        for k in 0..4 {
            let (by_even, by_odd) = (F::narrow(COS[2 * k][i]), F::narrow(COS[2 * k + 1][i]));
            for lane in 0..8 {
                even[lane] += by_even * x[2 * k][lane];
                odd[lane] += by_odd * x[2 * k + 1][lane];
            }
        }
        for lane in 0..8 {
            out[i][lane] = even[lane] + odd[lane];
            out[7 - i][lane] = even[lane] - odd[lane];
        }
    }
    out
}

/// Rows for columns.
#[inline(always)]
pub fn transposed<T: Copy>(x: &Block<T>) -> Block<T> {
    let mut out = *x;
    for i in 0..8 {
        for j in 0..8 {
            out[j][i] = x[i][j];
        }
    }
    out
}

/// The two-dimensional orthonormal DCT, transposed: column frequencies of row frequencies.
#[inline(always)]
pub fn forward<F: Pixel>(x: &Block<F>) -> Block<F> {
    columns(&transposed(&columns(x)))
}

/// The inverse of [`forward`].
#[inline(always)]
pub fn backward<F: Pixel>(x: &Block<F>) -> Block<F> {
    columns_back(&transposed(&columns_back(x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_are_cosines_and_the_inverse_inverts() {
        for (k, cos) in COS.iter().enumerate() {
            for (i, cos) in cos.iter().enumerate() {
                let scale = if k == 0 { (1.0f64 / 8.0).sqrt() } else { 0.5 };
                let angle = std::f64::consts::PI * (2 * i + 1) as f64 * k as f64 / 16.0;
                assert!((cos - scale * angle.cos()).abs() < 1e-15);
            }
        }
        let x: Block<f64> = std::array::from_fn(|i| std::array::from_fn(|j| (i * i * 3 + j * 5 % 7) as f64));
        let back = backward(&forward(&x));
        assert!(x.iter().flatten().zip(back.iter().flatten()).all(|(x, back)| (x - back).abs() < 1e-12));
    }
}
