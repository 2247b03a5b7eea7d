//! The average pool to a given size.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, backend::BackendStorage, bail};
use rayon::prelude::*;

use super::{Element, dispatch, owned, read, tensor, view, zeros};

/// Means over windows that cover `(n, c, h, w)`, to `(n, c, side, side)`: see [`crate::Op::AdaptiveAveragePool`].
///
/// # Errors
/// If the images have no four dimensions or no pixels, or `side` is zero.
pub fn adaptive_average_pool(x: &Tensor, side: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if side == 0 || h == 0 || w == 0 {
        bail!("no pool makes {side}x{side} pixels of {h}x{w}");
    }
    if h == side && w == side {
        return Ok(x.clone());
    }
    if !x.device().is_cpu() {
        return composed(x, side);
    }
    x.contiguous()?.apply_op1(Adaptive { side })
}

/// The rows, or columns, of `size` that window `at` of `side` covers.
fn span(at: usize, size: usize, side: usize) -> Range<usize> {
    at * size / side..((at + 1) * size).div_ceil(side)
}

/// The same of candle's own operations, on any device.
fn composed(x: &Tensor, side: usize) -> Result<Tensor> {
    let axis = |x: &Tensor, axis: usize| -> Result<Tensor> {
        let size = x.dim(axis)?;
        let mean = |at: usize| {
            let span = span(at, size, side);
            x.narrow(axis, span.start, span.len())?.mean_keepdim(axis)
        };
        Tensor::cat(&(0..side).map(mean).collect::<Result<Vec<_>>>()?, axis)
    };
    axis(&axis(x, 3)?, 2)
}

#[derive(Clone, Copy, Debug)]
struct Adaptive {
    side: usize,
}

impl Adaptive {
    /// Calls `f(output, inputs of one row of its window, one over the window's pixels)` for every row of every window of
    /// a plane.
    fn rows(&self, (h, w): (usize, usize), mut f: impl FnMut(usize, Range<usize>, f64)) {
        let side = self.side;
        for oy in 0..side {
            for ox in 0..side {
                let (rows, columns) = (span(oy, h, side), span(ox, w, side));
                let share = 1.0 / (rows.len() * columns.len()) as f64;
                for y in rows {
                    f(oy * side + ox, y * w + columns.start..y * w + columns.end, share);
                }
            }
        }
    }
}

impl CustomOp1 for Adaptive {
    fn name(&self) -> &'static str {
        "adaptive-average-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, c, h, w) = layout.shape().dims4()?;
        let area = self.side * self.side;
        dispatch!(x.dtype(), T => {
            let x: &[T] = view(x, layout)?;
            let mut out = zeros::<T>(n * c * area);
            out.par_chunks_mut(area).zip(x.par_chunks(h * w)).for_each(|(out, x)| {
                let mut sums = vec![0.0; area];
                self.rows((h, w), |to, from, share| {
                    sums[to] += x[from].iter().map(|x| x.wide()).sum::<f64>() * share;
                });
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = T::of(sum));
            });
            Ok(owned(out, (n, c, self.side, self.side)))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        dispatch!(dy.dtype(), T => {
            let dx = read::<T, _>(dy, |dy| {
                let mut dx = zeros::<T>(x.elem_count());
                dx.par_chunks_mut(h * w).zip(dy.par_chunks(self.side * self.side)).for_each(|(dx, dy)| {
                    self.rows((h, w), |from, to, share| {
                        let share = T::of(share * dy[from].wide());
                        dx[to].iter_mut().for_each(|dx| *dx += share);
                    });
                });
                dx
            })?;
            tensor(dx, x.shape()).map(Some)
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use game::Key;

    use super::*;

    #[test]
    fn both_ways_agree_and_windows_cover_every_pixel() {
        for (h, w, side) in [(7, 7, 7), (14, 21, 7), (2, 3, 7), (1, 1, 7), (10, 9, 4), (5, 8, 1)] {
            let mut values = vec![0.0; 2 * 3 * h * w];
            Key::root(1).fill_normal(&mut values);
            let x = Tensor::from_vec(values, (2, 3, h, w), &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
            let x = Var::from_tensor(&x).unwrap();
            let mut upstream = vec![0.0; 2 * 3 * side * side];
            Key::root(2).fill_normal(&mut upstream);
            let upstream = Tensor::from_vec(upstream, (2, 3, side, side), &Device::Cpu).unwrap();
            let upstream = upstream.to_dtype(DType::F64).unwrap();
            let answers = |out: Tensor| {
                let gradients = (&out * &upstream).unwrap().sum_all().unwrap().backward().unwrap();
                [out.detach(), gradients.get(&x).unwrap().clone()]
            };
            let (ours, theirs) = (adaptive_average_pool(&x, side).unwrap(), composed(&x, side).unwrap());
            for (a, b) in answers(ours).iter().zip(&answers(theirs)) {
                let gap: f64 = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
                assert!(gap < 1e-12, "{h}x{w} to {side}: {gap}");
            }
            let mut seen = vec![false; h];
            (0..side).for_each(|at| span(at, h, side).for_each(|row| seen[row] = true));
            assert!(seen.into_iter().all(|seen| seen));
        }
        let x = Tensor::zeros((1, 2, 3, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(
            adaptive_average_pool(&x, 0).is_err() && adaptive_average_pool(&x.flatten_from(1).unwrap(), 2).is_err()
        );
    }
}
