//! Convolutions as loops: the images' channels are innermost, and every sum has an order of its own that no thread changes.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::{
    failure::{Outcome, fail},
    memory,
    numbers::tf32,
};

/// The format of a tensor's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    F32,
    F64,
    F16,
    Bf16,
}

impl Kind {
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Where sums are kept: f32, or f64 for numbers in f64.
pub trait Sum: Copy + Default + Send + Sync + std::ops::AddAssign + std::ops::Mul<Output = Self> + 'static {
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
}

impl Sum for f32 {
    fn of(x: f64) -> Self {
        x as Self
    }
    fn wide(self) -> f64 {
        self.into()
    }
}

impl Sum for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn wide(self) -> f64 {
        self
    }
}

/// The number at a place.
///
/// # Safety
/// The place is live.
pub unsafe fn read(kind: Kind, address: u64, index: usize) -> f64 {
    // SAFETY: live, says the caller.
    unsafe {
        match kind {
            Kind::F32 => (address as *const f32).add(index).read().into(),
            Kind::F64 => (address as *const f64).add(index).read(),
            Kind::F16 => (address as *const f16).add(index).read().to_f64(),
            Kind::Bf16 => (address as *const bf16).add(index).read().to_f64(),
        }
    }
}

/// Writes a number, rounded.
///
/// # Safety
/// The place is live.
pub unsafe fn write(kind: Kind, address: u64, index: usize, value: f64) {
    // SAFETY: live, says the caller.
    unsafe {
        match kind {
            Kind::F32 => (address as *mut f32).add(index).write(value as f32),
            Kind::F64 => (address as *mut f64).add(index).write(value),
            // The values are sums in f32, so this rounds once.
            Kind::F16 => (address as *mut f16).add(index).write(f16::from_f32(value as f32)),
            Kind::Bf16 => (address as *mut bf16).add(index).write(bf16::from_f32(value as f32)),
        }
    }
}

/// Extents and steps of images `(n, c, h, w)`, or of kernels `(o, c / groups, rows, columns)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    pub kind: Kind,
    pub dims: [usize; 4],
    pub strides: [usize; 4],
}

impl View {
    /// Of a tensor that is contiguous in the order `n, c, h, w`, or `n, h, w, c`.
    pub fn packed(kind: Kind, dims: [usize; 4], channels_last: bool) -> Self {
        let [_, c, h, w] = dims;
        let strides = if channels_last { [h * w * c, 1, w * c, c] } else { [c * h * w, h * w, w, 1] };
        Self { kind, dims, strides }
    }

    pub fn check(&self, address: u64, what: &str) -> Outcome {
        let last: usize = self.dims.iter().zip(self.strides).map(|(extent, stride)| (extent - 1) * stride).sum();
        memory::check(address, (last + 1) * self.kind.bytes(), what)
    }

    fn at(&self, [n, c, h, w]: [usize; 4]) -> usize {
        n * self.strides[0] + c * self.strides[1] + h * self.strides[2] + w * self.strides[3]
    }

    /// The numbers in the order `n, h, w, c`.
    fn gather<S: Sum>(&self, address: u64, rounded: bool) -> Vec<S> {
        let [n, c, h, w] = self.dims;
        let mut out = vec![S::default(); n * c * h * w];
        out.par_chunks_mut(w * c).enumerate().for_each(|(row, out)| {
            for (i, out) in out.iter_mut().enumerate() {
                // SAFETY: the view has been checked.
                let x = unsafe { read(self.kind, address, self.at([row / h, i % c, row % h, i / c])) };
                *out = S::of(if rounded { tf32(x as f32).into() } else { x });
            }
        });
        out
    }

    /// Writes `alpha` times the numbers in the order `n, h, w, c`, plus `beta` times what is there; with 0 it is not read.
    fn scatter<S: Sum>(&self, address: u64, from: &[S], [alpha, beta]: [f64; 2]) {
        let [_, c, h, w] = self.dims;
        from.par_chunks(w * c).enumerate().for_each(|(row, from)| {
            for (i, x) in from.iter().enumerate() {
                let at = self.at([row / h, i % c, row % h, i / c]);
                let mut value = alpha * x.wide();
                // SAFETY: the view has been checked.
                unsafe {
                    if beta != 0.0 {
                        value += beta * read(self.kind, address, at);
                    }
                    write(self.kind, address, at, value);
                }
            }
        });
    }
}

/// How kernels move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Motion {
    pub padding: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    pub groups: usize,
    /// Whether factors are rounded to TF32.
    pub tf32: bool,
}

/// The result of `x` and `w`, the gradient at `x` of `w` and `y`, or the gradient at `w` of `x` and `y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Y,
    X,
    W,
}

/// A cross-correlation: images, kernels, result, each with its address.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub x: View,
    pub w: View,
    pub y: View,
    pub motion: Motion,
}

impl Problem {
    /// The result's shape.
    pub fn result(x: [usize; 4], w: [usize; 4], motion: &Motion) -> Option<[usize; 4]> {
        let side = |axis: usize| {
            let reach = motion.dilation[axis] * (w[2 + axis].checked_sub(1)?) + 1;
            Some((x[2 + axis] + 2 * motion.padding[axis]).checked_sub(reach)? / motion.stride[axis] + 1)
        };
        let fits = motion.groups > 0 && x[1] == w[1] * motion.groups && w[0].is_multiple_of(motion.groups);
        fits.then_some([x[0], w[0], side(0)?, side(1)?])
    }

    /// Fails where shapes and formats do not go together.
    pub fn check(&self) -> Outcome {
        let kinds = self.x.kind == self.w.kind && self.x.kind == self.y.kind;
        if !kinds || Self::result(self.x.dims, self.w.dims, &self.motion) != Some(self.y.dims) {
            return fail(crate::failure::INVALID_VALUE, format!("{self:?} does not fit together"));
        }
        Ok(())
    }

    /// Computes what is wanted, `[alpha, beta]` as in [`View::scatter`].
    pub fn run(&self, wanted: Wanted, [x, w, y]: [u64; 3], scales: [f64; 2]) -> Outcome {
        for (view, address, what) in [(&self.x, x, "x"), (&self.w, w, "w"), (&self.y, y, "y")] {
            view.check(address, &format!("a convolution's {what}, {:?}", view.dims))?;
        }
        match self.x.kind {
            Kind::F64 => self.compute::<f64>(wanted, [x, w, y], scales),
            _ => self.compute::<f32>(wanted, [x, w, y], scales),
        }
        Ok(())
    }

    fn compute<S: Sum>(&self, wanted: Wanted, [x, w, y]: [u64; 3], scales: [f64; 2]) {
        let rounded = self.motion.tf32 && self.x.kind == Kind::F32;
        let images = || self.x.gather::<S>(x, rounded);
        let kernels = || self.w.gather::<S>(w, rounded);
        let results = || self.y.gather::<S>(y, rounded);
        match wanted {
            Wanted::Y => self.y.scatter(y, &self.forward(&images(), &kernels()), scales),
            Wanted::X => self.x.scatter(x, &self.input_gradient(&kernels(), &results()), scales),
            Wanted::W => self.w.scatter(w, &self.weight_gradient(&images(), &results()), scales),
        }
    }

    /// The place in the images that a kernel's row or column meets, if it is inside.
    fn meets(&self, axis: usize, out: usize, kernel: usize) -> Option<usize> {
        let place = out * self.motion.stride[axis] + kernel * self.motion.dilation[axis];
        place.checked_sub(self.motion.padding[axis]).filter(|&place| place < self.x.dims[2 + axis])
    }

    fn forward<S: Sum>(&self, x: &[S], w: &[S]) -> Vec<S> {
        let ([_, c, h, width], [o, per, rows, columns], [_, _, oh, ow]) = (self.x.dims, self.w.dims, self.y.dims);
        let (groups, of) = (self.motion.groups, o / self.motion.groups);
        // From `o, rows, columns, c` to `group, rows, columns, c, o`.
        let mut turned = vec![S::default(); w.len()];
        for (i, &value) in w.iter().enumerate() {
            let (channel, place, output) = (i % per, i / per % (rows * columns), i / (per * rows * columns));
            turned[(((output / of) * rows * columns + place) * per + channel) * of + output % of] = value;
        }
        let mut y = vec![S::default(); self.y.dims.iter().product()];
        y.par_chunks_mut(ow * o).enumerate().for_each(|(row, y)| {
            let (n, i) = (row / oh, row % oh);
            for (j, y) in y.chunks_mut(o).enumerate() {
                for (r, up) in (0..rows).filter_map(|r| Some((r, self.meets(0, i, r)?))) {
                    for (s, across) in (0..columns).filter_map(|s| Some((s, self.meets(1, j, s)?))) {
                        let x = &x[((n * h + up) * width + across) * c..][..c];
                        for g in 0..groups {
                            let w = &turned[((g * rows + r) * columns + s) * per * of..][..per * of];
                            let y = &mut y[g * of..][..of];
                            for (&x, w) in x[g * per..][..per].iter().zip(w.chunks_exact(of)) {
                                for (y, &w) in y.iter_mut().zip(w) {
                                    *y += x * w;
                                }
                            }
                        }
                    }
                }
            }
        });
        y
    }

    fn input_gradient<S: Sum>(&self, w: &[S], y: &[S]) -> Vec<S> {
        let ([_, c, h, width], [o, per, rows, columns], [_, _, oh, ow]) = (self.x.dims, self.w.dims, self.y.dims);
        let (groups, of) = (self.motion.groups, o / self.motion.groups);
        let Motion { padding, stride, dilation, .. } = self.motion;
        let from = |axis: usize, place: usize, kernel: usize, count: usize| {
            let steps = (place + padding[axis]).checked_sub(kernel * dilation[axis])?;
            (steps.is_multiple_of(stride[axis]) && steps / stride[axis] < count).then_some(steps / stride[axis])
        };
        let mut x = vec![S::default(); self.x.dims.iter().product()];
        x.par_chunks_mut(width * c).enumerate().for_each(|(row, x)| {
            let (n, up) = (row / h, row % h);
            for (across, x) in x.chunks_mut(c).enumerate() {
                for (r, i) in (0..rows).filter_map(|r| Some((r, from(0, up, r, oh)?))) {
                    for (s, j) in (0..columns).filter_map(|s| Some((s, from(1, across, s, ow)?))) {
                        let y = &y[((n * oh + i) * ow + j) * o..][..o];
                        for g in 0..groups {
                            let x = &mut x[g * per..][..per];
                            for (k, &y) in y[g * of..][..of].iter().enumerate() {
                                let w = &w[(((g * of + k) * rows + r) * columns + s) * per..][..per];
                                for (x, &w) in x.iter_mut().zip(w) {
                                    *x += y * w;
                                }
                            }
                        }
                    }
                }
            }
        });
        x
    }

    fn weight_gradient<S: Sum>(&self, x: &[S], y: &[S]) -> Vec<S> {
        let ([n, c, h, width], [o, per, rows, columns], [_, _, oh, ow]) = (self.x.dims, self.w.dims, self.y.dims);
        let of = o / self.motion.groups;
        // For each place of the kernel and each channel of the images, all outputs of its group.
        let mut sums = vec![S::default(); rows * columns * c * of];
        sums.par_chunks_mut(of).enumerate().for_each(|(task, sums)| {
            let (channel, s, r) = (task % c, task / c % columns, task / (c * columns));
            let group = channel / per;
            for image in 0..n {
                for (i, up) in (0..oh).filter_map(|i| Some((i, self.meets(0, i, r)?))) {
                    for (j, across) in (0..ow).filter_map(|j| Some((j, self.meets(1, j, s)?))) {
                        let x = x[((image * h + up) * width + across) * c + channel];
                        let y = &y[((image * oh + i) * ow + j) * o + group * of..][..of];
                        for (sum, &y) in sums.iter_mut().zip(y) {
                            *sum += x * y;
                        }
                    }
                }
            }
        });
        let mut w = vec![S::default(); o * per * rows * columns];
        for (task, sums) in sums.chunks(of).enumerate() {
            let (channel, place) = (task % c, task / c);
            for (k, &sum) in sums.iter().enumerate() {
                w[((channel / per * of + k) * rows * columns + place) * per + channel % per] = sum;
            }
        }
        w
    }
}
