//! Quantisation of the cosine transform of blocks.

use game::{Defense, Entry, Gradient, Key, vectorised};
use serde::{Deserialize, Serialize};

use crate::dct::{self, Block};
use crate::kernel::{self, Kernel, Pixel, Shape};

/// Rounds the coefficients of every 8 x 8 block's cosine transform to multiples of a table, on the scale of `[0, 255]`.
///
/// Of the code released with Gao et al. 2022, which does not use it for the paper: the table is 30, with 25 for the 4 x 4
/// lowest frequencies (the table of "feature distillation", Liu et al. 2019). The transform is orthonormal, channels are
/// apart, halves go to even multiples, and the result is clipped to `[0, 1]`; blocks that leave the image repeat its last
/// row or column. Nothing is random. The true derivative is 0 almost everywhere, so only the identity is offered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockDct {
    /// The step of the lowest frequencies, 4 x 4 of them; above 0.
    pub low: f64,
    /// The step of the others; above 0.
    pub high: f64,
}

impl Default for BlockDct {
    fn default() -> Self {
        Self { low: 25.0, high: 30.0 }
    }
}

impl Entry for BlockDct {
    const ABOUT: &'static str = "quantisation of the cosine transform of 8 x 8 blocks; not random";

    fn check(&self) -> Result<(), String> {
        for (name, step) in [("low", self.low), ("high", self.high)] {
            if !(step > 0.0 && step.is_finite()) {
                return Err(format!("{name} = {step} must be a finite number above 0"));
            }
        }
        Ok(())
    }
}

/// Loads the block at rows `8 * i..`, columns `8 * j..`, repeating the plane's last row and column.
#[inline(always)]
pub fn load<T: Copy + Default>(x: &[T], height: usize, width: usize, i: usize, j: usize) -> Block<T> {
    if 8 * i + 8 > height || 8 * j + 8 > width {
        return load_edge(x, height, width, i, j);
    }
    let mut block = [[T::default(); 8]; 8];
    let x = &x[8 * i * width + 8 * j..][..7 * width + 8];
    for (k, row) in block.iter_mut().enumerate() {
        row.copy_from_slice(&x[k * width..k * width + 8]);
    }
    block
}

#[cold]
#[inline(never)]
fn load_edge<T: Copy>(x: &[T], height: usize, width: usize, i: usize, j: usize) -> Block<T> {
    let at = |k: usize, l: usize| x[(8 * i + k).min(height - 1) * width + (8 * j + l).min(width - 1)];
    std::array::from_fn(|k| std::array::from_fn(|l| at(k, l)))
}

/// The inverse of [`load`], without what is outside.
#[inline(always)]
pub fn store<T: Copy>(block: &Block<T>, height: usize, width: usize, i: usize, j: usize, out: &mut [T]) {
    if 8 * i + 8 > height || 8 * j + 8 > width {
        return store_edge(block, height, width, i, j, out);
    }
    let out = &mut out[8 * i * width + 8 * j..][..7 * width + 8];
    for (k, row) in block.iter().enumerate() {
        out[k * width..k * width + 8].copy_from_slice(row);
    }
}

#[cold]
#[inline(never)]
fn store_edge<T: Copy>(block: &Block<T>, height: usize, width: usize, i: usize, j: usize, out: &mut [T]) {
    let columns = 8.min(width - 8 * j);
    for (row, line) in block.iter().zip(out[8 * i * width..height * width].chunks_exact_mut(width)) {
        line[8 * j..8 * j + columns].copy_from_slice(&row[..columns]);
    }
}

vectorised! {
    fn quantise<F: Pixel>(x: &[F], height: usize, width: usize, low: F, high: F, out: &mut [F]) {
        let scale = F::narrow(255.0);
        let (unit, by_low, by_high) = (F::one() / scale, F::one() / low, F::one() / high);
        let (mut steps, mut reciprocals) = ([[high; 8]; 8], [[by_high; 8]; 8]);
        for k in 0..4 {
            for l in 0..4 {
                (steps[k][l], reciprocals[k][l]) = (low, by_low);
            }
        }
        for i in 0..height.div_ceil(8) {
            for j in 0..width.div_ceil(8) {
                let mut block = load(x, height, width, i, j);
                for row in &mut block {
                    for value in row {
                        *value *= scale;
                    }
                }
                let mut spectrum = dct::forward(&block);
                for k in 0..8 {
                    for l in 0..8 {
                        spectrum[k][l] = (spectrum[k][l] * reciprocals[k][l]).round_even() * steps[k][l];
                    }
                }
                let mut block = dct::backward(&spectrum);
                for row in &mut block {
                    for value in row {
                        *value = (*value * unit).clipped();
                    }
                }
                store(&block, height, width, i, j, out);
            }
        }
    }
}

impl Kernel for BlockDct {
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, _: Key, out: &mut [F]) {
        for (x, out) in x.chunks_exact(shape.area()).zip(out.chunks_exact_mut(shape.area())) {
            quantise(x, shape.height, shape.width, F::narrow(self.low), F::narrow(self.high), out);
        }
    }

    fn backward<F: Pixel>(&self, _: &[F], _: Shape, _: Key, _: &[F], _: &mut [F]) {}
}

impl Defense for BlockDct {
    fn apply(&self, x: &candle_core::Tensor, keys: &[Key]) -> candle_core::Result<candle_core::Tensor> {
        kernel::forward(self, x, keys)
    }

    fn gradient(&self) -> Gradient {
        Gradient::Identity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn values_are_scipys() {
        for case in golden::cases("block-dct") {
            let mut out = vec![0.0; case.output.len()];
            BlockDct::default().forward(&case.image, case.shape(), Key::root(0), &mut out);
            golden::assert_close(&out, &case.output, 1e-12);
        }
    }
}
