//! Quantisation of the cosine transform of blocks.

use candle_core::{DType, Tensor};
use game::{Defense, Entry, Gradient, Key, vectorised};
use gpu::kernels::{Parameters, Source};
use serde::{Deserialize, Serialize};

use crate::dct::{self, LANES, Table, Tile};
use crate::device::{Batch, Dims};
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};

const SOURCE: Source = crate::device::source!("block_dct");

/// Rounds the coefficients of every 8 x 8 block's cosine transform to multiples of a table, on the scale of `[0, 255]`.
///
/// Of the code released with Gao et al. 2022, which does not use it for the paper: the table is 30, with 25 for the 4 x 4
/// lowest frequencies (the table of "feature distillation", Liu et al. 2019). The transform is orthonormal, channels are
/// apart, halves go to even multiples, and the result is clipped to `[0, 1]`; blocks that leave the image repeat its last
/// row or column. Nothing is random. The true derivative is 0 almost everywhere, so only the identity is offered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockDct {
    /// The step of the lowest frequencies, 4 x 4 of them; at least 1.
    pub low: f64,
    /// The step of the others; at least 1.
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
            if !(step >= 1.0 && step.is_finite()) {
                return Err(format!(
                    "{name} = {step} must be a finite number of at least 1: it is on the scale of 0 to 255"
                ));
            }
        }
        Ok(())
    }
}

vectorised! {
    /// Quantises a plane: what a spectrum is multiplied with before it is rounded, and afterwards.
    fn quantise<F: Pixel>(x: &[F], height: usize, width: usize, before: &Tile<F>, after: &Tile<F>, out: &mut [F]) {
        for top in (0..height).step_by(8) {
            for left in (0..width).step_by(LANES) {
                let mut tile = dct::load(x, (height, width), (top, left));
                dct::forward(&mut tile);
                tile = dct::turned(&tile);
                dct::forward(&mut tile);
                let factors = before.0.as_flattened().iter().zip(after.0.as_flattened());
                for (value, (&before, &after)) in tile.0.as_flattened_mut().iter_mut().zip(factors) {
                    *value = (*value * before).round_even() * after;
                }
                dct::backward(&mut tile);
                tile = dct::turned_back(&tile);
                dct::backward(&mut tile);
                dct::store(&dct::each(&tile, Pixel::clipped), out, (height, width), (top, left));
            }
        }
    }
}

impl BlockDct {
    /// The factors of a spectrum of pixels in `[0, 1]` before it is rounded, and afterwards.
    fn tables<F: Pixel>(&self) -> [Table<F>; 2] {
        let step = |k: usize, l: usize| if k < 4 && l < 4 { self.low } else { self.high };
        let scale = |k: usize, l: usize| dct::SCALE[k] * dct::SCALE[l];
        let table = |of: &dyn Fn(usize, usize) -> f64| -> Table<F> {
            std::array::from_fn(|k| std::array::from_fn(|l| F::narrow(of(k, l))))
        };
        [table(&|k, l| 255.0 * scale(k, l) / step(k, l)), table(&|k, l| step(k, l) * scale(k, l) / 255.0)]
    }
}

impl Kernel for BlockDct {
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, _: Key, out: &mut Canvas<'_, F>) {
        let out = out.rest();
        let [before, after] = self.tables().map(|table| dct::spread(&table));
        for (x, out) in x.chunks_exact(shape.area()).zip(out.chunks_exact_mut(shape.area())) {
            quantise(x, shape.height, shape.width, &before, &after, out);
        }
    }

    fn backward<F: Pixel>(&self, _: &[F], _: Shape, _: Key, _: &[F], _: &mut [F]) {}

    fn launch(&self, batch: &Batch<'_>) -> candle_core::Result<Tensor> {
        let (mut call, shape) = (batch.call(), batch.shape);
        let to = batch.images(&call, shape)?;
        let [before, after] = self.tables::<f32>();
        let blocks = Blocks {
            from: call.read(batch.x, DType::F32)?,
            to: to.address,
            before: call.upload(before.as_flattened())?,
            after: call.upload(after.as_flattened())?,
            shape: shape.into(),
        };
        let threads = batch.planes() * shape.height.div_ceil(8) * shape.width.div_ceil(8);
        // SAFETY: tables have 64 numbers, and blocks leave out what is outside a plane.
        unsafe { call.launch(&SOURCE, "quantise", threads, &blocks)? };
        Ok(to.tensor())
    }
}

/// As `BlockDct` in block_dct.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Blocks {
    from: u64,
    to: u64,
    before: u64,
    after: u64,
    shape: Dims,
}
// SAFETY: the fields are the kernel's.
unsafe impl Parameters for Blocks {}

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
            let out = kernel::output(&BlockDct::default(), &case.image, case.shape(), Key::root(0));
            golden::assert_close(&out, &case.output, 1e-12);
        }
    }
}
