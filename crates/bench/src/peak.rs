//! The machine's speed limit: the largest rate of fused multiply-adds that a matrix product reaches.

use game::Key;
use gemm::Parallelism;

use crate::clock::{Clock, median};

/// Rows and columns of the matrices: large enough to hide packing.
const N: usize = 1536;

/// Multiplications per second of the `gemm` crate, which candle uses: the median of some products of f32 matrices.
pub fn gemm(threads: usize, repeats: usize) -> anyhow::Result<f64> {
    let (mut a, mut b, mut c) = (vec![0f32; N * N], vec![0f32; N * N], vec![0f32; N * N]);
    Key::root(0).at(0).fill_normal(&mut a);
    Key::root(0).at(1).fill_normal(&mut b);
    let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
    let n = N as isize;
    let clock = Clock::new(threads);
    let mut rates = Vec::new();
    for _ in 0..=repeats {
        rates.push(clock.rate(0.0, || {
            // SAFETY: three row-major matrices of N x N.
            unsafe {
                let (c, a, b) = (c.as_mut_ptr(), a.as_ptr(), b.as_ptr());
                gemm::gemm(N, N, N, c, 1, n, false, a, 1, n, b, 1, n, 0.0, 1.0, false, false, false, parallelism);
            }
            Ok(())
        })?);
    }
    // The first one warms up.
    Ok(median(&rates[1..]) * (N * N * N) as f64)
}
