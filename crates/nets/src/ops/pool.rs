//! Pools and subsampling.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, backend::BackendStorage, bail};
use rayon::prelude::*;

use super::{Element, device, dispatch, owned, plain, read, tensor, view, zeros};

/// Maximum over `kernel x kernel` windows of `(n, c, h, w)`; the padding never wins. The gradient goes to the first
/// maximum of a window, in reading order.
///
/// # Errors
/// If a window would lie in the padding alone, or is larger than the padded plane.
pub fn max_pool(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let pool = MaxPool { kernel, stride, padding };
    let shape = pool.output(x.dims())?;
    if device::pools(x, kernel) {
        return device::max_pool(x, [kernel, stride, padding], shape);
    }
    if !x.device().is_cpu() {
        return plain::max_pool(x, kernel, stride, padding);
    }
    x.contiguous()?.apply_op1(pool)
}

#[derive(Clone, Copy, Debug)]
struct MaxPool {
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl MaxPool {
    fn output(&self, x: &[usize]) -> Result<[usize; 4]> {
        let &[n, c, h, w] = x else { bail!("a pool takes images (n, c, h, w), not {x:?}") };
        let Self { kernel, stride, padding } = *self;
        if stride == 0 || 2 * padding > kernel || h + 2 * padding < kernel || w + 2 * padding < kernel {
            bail!("a {kernel}x{kernel} pool of stride {stride} and padding {padding} does not fit {x:?}");
        }
        Ok([n, c, (h + 2 * padding - kernel) / stride + 1, (w + 2 * padding - kernel) / stride + 1])
    }

    /// Calls `f(output, winning input)` for every window of one plane.
    fn winners<T: Element>(
        &self,
        x: &[T],
        (h, w): (usize, usize),
        (oh, ow): (usize, usize),
        mut f: impl FnMut(usize, usize),
    ) {
        let span = |o: usize, size: usize| {
            let start = o * self.stride;
            start.saturating_sub(self.padding)..(start + self.kernel - self.padding).min(size)
        };
        for oy in 0..oh {
            for ox in 0..ow {
                let mut best = span(oy, h).start * w + span(ox, w).start;
                for y in span(oy, h) {
                    for i in y * w + span(ox, w).start..y * w + span(ox, w).end {
                        if x[i] > x[best] || x[i].is_nan() {
                            best = i;
                        }
                    }
                }
                f(oy * ow + ox, best);
            }
        }
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, _, h, w) = layout.shape().dims4()?;
        let shape = self.output(layout.dims())?;
        let [_, _, oh, ow] = shape;
        dispatch!(x.dtype(), T => {
            let x: &[T] = view(x, layout)?;
            let mut out = zeros::<T>(shape.iter().product());
            out.par_chunks_mut(oh * ow).zip(x.par_chunks(h * w)).for_each(|(out, x)| {
                self.winners(x, (h, w), (oh, ow), |to, from| out[to] = x[from]);
            });
            Ok(owned(out, shape.to_vec()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        let (_, _, oh, ow) = dy.dims4()?;
        dispatch!(x.dtype(), T => {
            let dx = read::<T, _>(x, |x| read::<T, _>(dy, |dy| {
                let mut dx = zeros::<T>(x.len());
                let planes = x.par_chunks(h * w).zip(dy.par_chunks(oh * ow));
                dx.par_chunks_mut(h * w).zip(planes).for_each(|(dx, (x, dy))| {
                    self.winners(x, (h, w), (oh, ow), |to, from| dx[from] += dy[to]);
                });
                dx
            }))??;
            tensor(dx, x.shape()).map(Some)
        })
    }
}

/// Mean over `kernel x kernel` windows of `(n, c, h, w)`, the padding counted as zeros.
///
/// # Errors
/// If a window would lie in the padding alone, or is larger than the padded plane.
pub fn average_pool(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let pool = AveragePool { kernel, stride, padding };
    let shape = pool.output(x.dims())?;
    if device::takes(x) {
        return device::average_pool(x, [kernel, stride, padding], shape);
    }
    if !x.device().is_cpu() {
        return plain::average_pool(x, kernel, stride, padding);
    }
    x.contiguous()?.apply_op1(pool)
}

#[derive(Clone, Copy, Debug)]
struct AveragePool {
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl AveragePool {
    fn output(&self, x: &[usize]) -> Result<[usize; 4]> {
        let Self { kernel, stride, padding } = *self;
        MaxPool { kernel, stride, padding }.output(x)
    }

    /// Calls `f(output, inputs of one row of its window)` for every row of every window of one plane.
    fn rows(&self, (h, w): (usize, usize), (oh, ow): (usize, usize), mut f: impl FnMut(usize, Range<usize>)) {
        let Self { kernel, stride, padding } = *self;
        let span = |o: usize, size: usize| {
            let start = o * stride;
            start.saturating_sub(padding)..(start + kernel - padding).min(size)
        };
        for oy in 0..oh {
            for ox in 0..ow {
                let columns = span(ox, w);
                for y in span(oy, h) {
                    f(oy * ow + ox, y * w + columns.start..y * w + columns.end);
                }
            }
        }
    }

    /// One over the pixels of a window.
    fn share<T: Element>(&self) -> T {
        T::of(1.0 / (self.kernel * self.kernel) as f64)
    }
}

impl CustomOp1 for AveragePool {
    fn name(&self) -> &'static str {
        "average-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, _, h, w) = layout.shape().dims4()?;
        let shape = self.output(layout.dims())?;
        let [_, _, oh, ow] = shape;
        dispatch!(x.dtype(), T => {
            let x: &[T] = view(x, layout)?;
            let mut out = zeros::<T>(shape.iter().product());
            out.par_chunks_mut(oh * ow).zip(x.par_chunks(h * w)).for_each(|(out, x)| {
                self.rows((h, w), (oh, ow), |to, from| out[to] = x[from].iter().fold(out[to], |sum, &x| sum + x));
                out.iter_mut().for_each(|out| *out *= self.share::<T>());
            });
            Ok(owned(out, shape.to_vec()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        let (_, _, oh, ow) = dy.dims4()?;
        dispatch!(dy.dtype(), T => {
            let dx = read::<T, _>(dy, |dy| {
                let share: T = self.share();
                let mut dx = zeros::<T>(x.elem_count());
                dx.par_chunks_mut(h * w).zip(dy.par_chunks(oh * ow)).for_each(|(dx, dy)| {
                    self.rows((h, w), (oh, ow), |from, to| dx[to].iter_mut().for_each(|dx| *dx += dy[from] * share));
                });
                dx
            })?;
            tensor(dx, x.shape()).map(Some)
        })
    }
}

/// Every `stride`-th row and column of `(n, c, h, w)`, with `before` and `after` zero channels around.
///
/// # Errors
/// If the images have no four dimensions, or the stride is zero.
pub fn subsample(x: &Tensor, stride: usize, before: usize, after: usize) -> Result<Tensor> {
    if stride == 0 {
        bail!("a stride of zero");
    }
    if device::takes(x) {
        return device::subsample(x, stride, before, after);
    }
    if !x.device().is_cpu() {
        return plain::subsample(x, stride, before, after);
    }
    x.contiguous()?.apply_op1(Subsample { stride, before, after })
}

#[derive(Clone, Copy, Debug)]
struct Subsample {
    stride: usize,
    before: usize,
    after: usize,
}

impl Subsample {
    /// Calls `f(pixel of the output image, pixel of the input image)`.
    fn pairs(&self, [c, h, w]: [usize; 3], mut f: impl FnMut(usize, usize)) {
        let (oh, ow) = (h.div_ceil(self.stride), w.div_ceil(self.stride));
        for channel in 0..c {
            for y in 0..oh {
                for x in 0..ow {
                    let to = ((channel + self.before) * oh + y) * ow + x;
                    f(to, (channel * h + y * self.stride) * w + x * self.stride);
                }
            }
        }
    }
}

impl CustomOp1 for Subsample {
    fn name(&self) -> &'static str {
        "subsample"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, c, h, w) = layout.shape().dims4()?;
        let shape = [n, self.before + c + self.after, h.div_ceil(self.stride), w.div_ceil(self.stride)];
        dispatch!(x.dtype(), T => {
            let x: &[T] = view(x, layout)?;
            let mut out = zeros::<T>(shape.iter().product());
            let images = out.par_chunks_mut(shape[1..].iter().product()).zip(x.par_chunks(c * h * w));
            images.for_each(|(out, x)| self.pairs([c, h, w], |to, from| out[to] = x[from]));
            Ok(owned(out, shape.to_vec()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, c, h, w) = x.dims4()?;
        let image: usize = dy.dims()[1..].iter().product();
        dispatch!(dy.dtype(), T => {
            let dx = read::<T, _>(dy, |dy| {
                let mut dx = zeros::<T>(x.elem_count());
                dx.par_chunks_mut(c * h * w).zip(dy.par_chunks(image)).for_each(|(dx, dy)| {
                    self.pairs([c, h, w], |to, from| dx[from] = dy[to]);
                });
                dx
            })?;
            tensor(dx, x.shape()).map(Some)
        })
    }
}

/// Mean over all pixels: `(n, c, h, w)` to `(n, c)`.
///
/// # Errors
/// If the images have no four dimensions.
pub fn global_average_pool(x: &Tensor) -> Result<Tensor> {
    x.dims4()?;
    if device::takes(x) {
        return device::global_average_pool(x);
    }
    if !x.device().is_cpu() {
        return x.mean((2, 3));
    }
    x.contiguous()?.apply_op1(Average)
}

#[derive(Clone, Copy, Debug)]
struct Average;

impl CustomOp1 for Average {
    fn name(&self) -> &'static str {
        "global-average-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, c, h, w) = layout.shape().dims4()?;
        dispatch!(x.dtype(), T => {
            let x: &[T] = view(x, layout)?;
            let mean = |x: &[T]| T::of(super::norm::sum(x) / (h * w) as f64);
            Ok(owned(x.chunks(h * w).map(mean).collect::<Vec<T>>(), (n, c)))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        dispatch!(dy.dtype(), T => {
            let dx = read::<T, _>(dy, |dy| {
                let share = T::of(1.0 / (h * w) as f64);
                let mut dx = zeros::<T>(x.elem_count());
                dx.par_chunks_mut(h * w).zip(dy.par_iter()).for_each(|(dx, &dy)| dx.fill(dy * share));
                dx
            })?;
            tensor(dx, x.shape()).map(Some)
        })
    }
}
