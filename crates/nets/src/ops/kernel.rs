//! Convolution on slices: one image after another, im2col and matrix products; depthwise in its own loops.

use std::ops::Range;

use candle_core::{Result, bail};
use gemm::Parallelism;
use rayon::prelude::*;

use super::{Element, Window};

/// Numbers of im2col's matrix that stay in a core's cache.
const TILE: usize = 1 << 17;
/// Partial sums of a weight gradient over the images of a batch.
const PARTS: usize = 16;

/// All sizes of one convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub n: usize,
    c: usize,
    h: usize,
    w: usize,
    pub o: usize,
    pub oh: usize,
    pub ow: usize,
    /// Rows and columns of the kernel.
    kh: usize,
    kw: usize,
    stride: usize,
    top: usize,
    left: usize,
    groups: usize,
}

impl Geometry {
    /// Of images `(n, c, h, w)` and weights `(o, c / groups, rows, columns)`.
    pub fn new(x: &[usize], weight: &[usize], window: &Window) -> Result<Self> {
        let (&[n, c, h, w], &[o, per_group, kh, kw]) = (x, weight) else {
            bail!("a convolution takes images (n, c, h, w) and weights (o, c, rows, columns), not {x:?} and {weight:?}")
        };
        let Window { stride, padding, groups } = *window;
        if stride == 0 || groups == 0 || kh == 0 || kw == 0 || c != per_group * groups || o % groups != 0 {
            bail!("images {x:?} do not fit weights {weight:?} in {groups} groups with stride {stride}");
        }
        let (height, width) = (h + padding.top + padding.bottom, w + padding.left + padding.right);
        if height < kh || width < kw {
            bail!("images {x:?} with {padding:?} are smaller than the {kh}x{kw} kernel");
        }
        let (oh, ow) = ((height - kh) / stride + 1, (width - kw) / stride + 1);
        Ok(Self { n, c, h, w, o, oh, ow, kh, kw, stride, top: padding.top, left: padding.left, groups })
    }

    pub fn output(&self) -> [usize; 4] {
        [self.n, self.o, self.oh, self.ow]
    }

    pub fn image_out(&self) -> usize {
        self.o * self.oh * self.ow
    }

    pub fn plane_out(&self) -> usize {
        self.oh * self.ow
    }

    fn image_in(&self) -> usize {
        self.c * self.h * self.w
    }

    fn weights(&self) -> usize {
        self.o * self.taps()
    }

    /// Products per output number.
    fn taps(&self) -> usize {
        self.c / self.groups * self.area()
    }

    /// Pixels of the kernel.
    fn area(&self) -> usize {
        self.kh * self.kw
    }

    /// The convolution that carries gradients back, where it is one: with a stride of 1, of the mirrored kernel.
    fn mirrored(&self) -> Option<Self> {
        let (below, beside) = (self.kh - 1, self.kw - 1);
        let bottom = (self.oh + below).checked_sub(self.h + self.top)?;
        let right = (self.ow + beside).checked_sub(self.w + self.left)?;
        let fits = self.stride == 1 && self.area() > 1 && self.groups == 1;
        let fits = fits && self.top.max(bottom) <= below && self.left.max(right) <= beside;
        let (c, o, h, w, oh, ow) = (self.o, self.c, self.oh, self.ow, self.h, self.w);
        fits.then(|| Self { c, o, h, w, oh, ow, top: below - self.top, left: beside - self.left, ..*self })
    }

    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.c && self.o == self.c
    }

    /// Whether the input is its own im2col matrix.
    fn is_direct(&self) -> bool {
        self.area() == 1
            && self.stride == 1
            && self.top == 0
            && self.left == 0
            && self.oh == self.h
            && self.ow == self.w
    }

    /// Output rows that are worked on at once: a number that depends on the sizes alone.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = if self.is_direct() { self.oh } else { (TILE / (self.taps() * self.ow)).clamp(1, self.oh) };
        let height = self.oh;
        (0..height).step_by(rows).map(move |row| row..(row + rows).min(height))
    }

    /// The outputs of one axis whose input under kernel offset `tap` is inside the image.
    fn inside(&self, tap: usize, before: usize, size: usize, outputs: usize) -> Range<usize> {
        let first = before.saturating_sub(tap).div_ceil(self.stride);
        let end = (size + before).saturating_sub(tap).div_ceil(self.stride).min(outputs);
        first.min(end)..end
    }

    fn rows(&self, ky: usize) -> Range<usize> {
        self.inside(ky, self.top, self.h, self.oh)
    }

    fn columns(&self, kx: usize) -> Range<usize> {
        self.inside(kx, self.left, self.w, self.ow)
    }

    /// Calls `f(tap, row of the input, row of the output, columns of the output, first column of the input)` for every
    /// row of every tap within the output rows `tile`.
    fn each_row(
        &self,
        tile: &Range<usize>,
        channel: usize,
        mut f: impl FnMut(usize, usize, usize, Range<usize>, usize),
    ) {
        for ky in 0..self.kh {
            let rows = self.rows(ky);
            for kx in 0..self.kw {
                let columns = self.columns(kx);
                if columns.is_empty() {
                    continue;
                }
                let from = columns.start * self.stride + kx - self.left;
                let tap = (channel * self.kh + ky) * self.kw + kx;
                for oy in rows.start.max(tile.start)..rows.end.min(tile.end) {
                    f(tap, channel * self.h + oy * self.stride + ky - self.top, oy, columns.clone(), from);
                }
            }
        }
    }

    /// im2col: the channels `x` of one group to `(taps, tile rows * ow)`.
    fn unfold<T: Element>(&self, x: &[T], tile: &Range<usize>, matrix: &mut Vec<T>) {
        let width = tile.len() * self.ow;
        matrix.resize(self.taps() * width, T::zero());
        for (tap, to) in matrix.chunks_exact_mut(width).enumerate() {
            let (channel, ky, kx) = (tap / self.area(), tap / self.kw % self.kh, tap % self.kw);
            let (rows, columns) = (self.rows(ky), self.columns(kx));
            let rows = rows.start.clamp(tile.start, tile.end)..rows.end.clamp(tile.start, tile.end);
            if rows.is_empty() || columns.is_empty() {
                to.fill(T::zero());
                continue;
            }
            let (above, below) = ((rows.start - tile.start) * self.ow, (rows.end - tile.start) * self.ow);
            to[..above].fill(T::zero());
            to[below..].fill(T::zero());
            let row = channel * self.h + rows.start * self.stride + ky - self.top;
            let x = &x[row * self.w + columns.start * self.stride + kx - self.left..];
            self.unfold_rows(x, &mut to[above..below], columns);
        }
    }

    /// The output rows `to` of one tap; `x` begins at the first pixel that is read.
    fn unfold_rows<T: Element>(&self, x: &[T], to: &mut [T], columns: Range<usize>) {
        let shifted = self.stride == 1 && self.ow == self.w;
        if shifted {
            // Input and output rows are equally long: one copy, whose overhang is then overwritten.
            let len = to.len() - self.ow + columns.len();
            to[columns.start..][..len].copy_from_slice(&x[..len]);
        }
        for (row, to) in to.chunks_exact_mut(self.ow).enumerate() {
            to[..columns.start].iter_mut().for_each(|to| *to = T::zero());
            to[columns.end..].iter_mut().for_each(|to| *to = T::zero());
            if !shifted {
                let x = x[row * self.stride * self.w..].iter().step_by(self.stride);
                to[columns.clone()].iter_mut().zip(x).for_each(|(to, &x)| *to = x);
            }
        }
    }

    /// The transpose of [`Geometry::unfold`]: adds the matrix to the channels `x` of one group.
    fn fold<T: Element>(&self, matrix: &[T], tile: &Range<usize>, x: &mut [T]) {
        let width = tile.len() * self.ow;
        for channel in 0..self.c / self.groups {
            self.each_row(tile, channel, |tap, row, oy, columns, from| {
                let of = &matrix[tap * width + (oy - tile.start) * self.ow..][columns];
                add_strided(&mut x[row * self.w + from..], of, self.stride, T::one());
            });
        }
    }
}

/// `x[i * stride] += factor * y[i]`.
#[inline]
fn add_strided<T: Element>(x: &mut [T], y: &[T], stride: usize, factor: T) {
    if stride == 1 {
        x.iter_mut().zip(y).for_each(|(x, &y)| *x += factor * y);
    } else {
        x.iter_mut().step_by(stride).zip(y).for_each(|(x, &y)| *x += factor * y);
    }
}

/// A matrix inside a slice, by its strides.
#[derive(Clone, Copy)]
struct Matrix<'a, T> {
    data: &'a [T],
    row: usize,
    column: usize,
}

impl<'a, T> Matrix<'a, T> {
    const fn rows(data: &'a [T], row: usize) -> Self {
        Self { data, row, column: 1 }
    }

    const fn transposed(self) -> Self {
        Self { data: self.data, row: self.column, column: self.row }
    }
}

/// `out (m, n) = a (m, k) b (k, n)`, or added to it; the rows of `out` are `stride` apart.
fn product<T: Element>(
    [m, n, k]: [usize; 3],
    out: &mut [T],
    stride: usize,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    accumulate: bool,
) {
    let fits = |rows: usize, columns: usize, row: usize, column: usize, len: usize| {
        rows > 0 && columns > 0 && (rows - 1) * row + (columns - 1) * column < len
    };
    assert!(fits(m, n, stride, 1, out.len()) && fits(m, k, a.row, a.column, a.data.len()));
    assert!(fits(k, n, b.row, b.column, b.data.len()));
    // SAFETY: the assertions above keep every access inside the three slices, and `out` is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// The convolution of `x`; `finish` then sees each image's output once.
pub(super) fn forward<T: Element>(
    g: &Geometry,
    x: &[T],
    weight: &[T],
    finish: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let mut out = vec![T::zero(); g.n * g.image_out()];
    out.par_chunks_mut(g.image_out()).zip(x.par_chunks(g.image_in())).enumerate().for_each_init(
        Vec::new,
        |matrix, (image, (out, x))| {
            if g.is_depthwise() {
                depthwise_forward(g, x, weight, out);
            } else {
                image_forward(g, x, weight, out, matrix);
            }
            finish(image, out);
        },
    );
    out
}

fn image_forward<T: Element>(g: &Geometry, x: &[T], weight: &[T], out: &mut [T], matrix: &mut Vec<T>) {
    let (taps, plane, outputs) = (g.taps(), g.plane_out(), g.o / g.groups);
    let group_in = g.image_in() / g.groups;
    for group in 0..g.groups {
        let x = &x[group * group_in..][..group_in];
        let weight = Matrix::rows(&weight[group * outputs * taps..], taps);
        for tile in g.tiles() {
            let width = tile.len() * g.ow;
            let columns = if g.is_direct() {
                Matrix::rows(x, plane)
            } else {
                g.unfold(x, &tile, matrix);
                Matrix::rows(&matrix[..], width)
            };
            let out = &mut out[group * outputs * plane + tile.start * g.ow..];
            product([outputs, width, taps], out, plane, weight, columns, false);
        }
    }
}

fn depthwise_forward<T: Element>(g: &Geometry, x: &[T], weight: &[T], out: &mut [T]) {
    let tile = 0..g.oh;
    for channel in 0..g.c {
        let out = &mut out[channel * g.plane_out()..][..g.plane_out()];
        g.each_row(&tile, channel, |tap, row, oy, columns, from| {
            let (x, factor) = (&x[row * g.w + from..], weight[tap]);
            let out = &mut out[oy * g.ow..][columns];
            if g.stride == 1 {
                out.iter_mut().zip(x).for_each(|(out, &x)| *out += factor * x);
            } else {
                out.iter_mut().zip(x.iter().step_by(g.stride)).for_each(|(out, &x)| *out += factor * x);
            }
        });
    }
}

/// The gradient with respect to the images, from the output's gradient `dy`.
pub(super) fn input_gradient<T: Element>(g: &Geometry, weight: &[T], dy: &[T]) -> Vec<T> {
    if let Some(mirrored) = g.mirrored() {
        return forward(&mirrored, dy, &mirror(g, weight), |_, _| {});
    }
    let mut dx = vec![T::zero(); g.n * g.image_in()];
    dx.par_chunks_mut(g.image_in()).zip(dy.par_chunks(g.image_out())).for_each_init(Vec::new, |matrix, (dx, dy)| {
        if g.is_depthwise() {
            depthwise_input_gradient(g, weight, dy, dx);
        } else {
            image_input_gradient(g, weight, dy, dx, matrix);
        }
    });
    dx
}

/// Weights `(o, c, rows, columns)` as those of [`Geometry::mirrored`]: `(c, o, rows, columns)`, each kernel read backwards.
fn mirror<T: Element>(g: &Geometry, weight: &[T]) -> Vec<T> {
    let kernel = g.area();
    let mut mirrored = vec![T::zero(); weight.len()];
    for (index, from) in weight.chunks_exact(kernel).enumerate() {
        let (o, c) = (index / g.c, index % g.c);
        let to = &mut mirrored[(c * g.o + o) * kernel..][..kernel];
        to.iter_mut().zip(from.iter().rev()).for_each(|(to, &from)| *to = from);
    }
    mirrored
}

fn image_input_gradient<T: Element>(g: &Geometry, weight: &[T], dy: &[T], dx: &mut [T], matrix: &mut Vec<T>) {
    let (taps, plane, outputs) = (g.taps(), g.plane_out(), g.o / g.groups);
    let group_in = g.image_in() / g.groups;
    for group in 0..g.groups {
        let dx = &mut dx[group * group_in..][..group_in];
        let weight = Matrix::rows(&weight[group * outputs * taps..], taps).transposed();
        for tile in g.tiles() {
            let width = tile.len() * g.ow;
            let dy = Matrix::rows(&dy[group * outputs * plane + tile.start * g.ow..], plane);
            if g.is_direct() {
                product([taps, width, outputs], dx, plane, weight, dy, false);
            } else {
                matrix.resize(taps * width, T::zero());
                product([taps, width, outputs], matrix, width, weight, dy, false);
                g.fold(&matrix[..], &tile, dx);
            }
        }
    }
}

fn depthwise_input_gradient<T: Element>(g: &Geometry, weight: &[T], dy: &[T], dx: &mut [T]) {
    let tile = 0..g.oh;
    for channel in 0..g.c {
        let dy = &dy[channel * g.plane_out()..];
        g.each_row(&tile, channel, |tap, row, oy, columns, from| {
            add_strided(&mut dx[row * g.w + from..], &dy[oy * g.ow..][columns], g.stride, weight[tap]);
        });
    }
}

/// The gradient with respect to the weights, summed over the images in an order that depends on their number alone.
pub(super) fn weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let images = g.n.div_ceil(PARTS).max(1);
    let parts: Vec<Vec<T>> = x
        .par_chunks(images * g.image_in())
        .zip(dy.par_chunks(images * g.image_out()))
        .map(|(x, dy)| {
            let (mut dw, mut matrix) = (vec![T::zero(); g.weights()], Vec::new());
            for (x, dy) in x.chunks(g.image_in()).zip(dy.chunks(g.image_out())) {
                if g.is_depthwise() {
                    depthwise_weight_gradient(g, x, dy, &mut dw);
                } else {
                    image_weight_gradient(g, x, dy, &mut dw, &mut matrix);
                }
            }
            dw
        })
        .collect();
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_else(|| vec![T::zero(); g.weights()]);
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    sum
}

fn image_weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T], dw: &mut [T], matrix: &mut Vec<T>) {
    let (taps, plane, outputs) = (g.taps(), g.plane_out(), g.o / g.groups);
    let group_in = g.image_in() / g.groups;
    for group in 0..g.groups {
        let x = &x[group * group_in..][..group_in];
        let dw = &mut dw[group * outputs * taps..][..outputs * taps];
        for tile in g.tiles() {
            let width = tile.len() * g.ow;
            let dy = Matrix::rows(&dy[group * outputs * plane + tile.start * g.ow..], plane);
            let columns = if g.is_direct() {
                Matrix::rows(x, plane)
            } else {
                g.unfold(x, &tile, matrix);
                Matrix::rows(&matrix[..], width)
            };
            product([outputs, taps, width], dw, taps, dy, columns.transposed(), true);
        }
    }
}

fn depthwise_weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T], dw: &mut [T]) {
    let tile = 0..g.oh;
    for channel in 0..g.c {
        let dy = &dy[channel * g.plane_out()..];
        g.each_row(&tile, channel, |tap, row, oy, columns, from| {
            let x = x[row * g.w + from..].iter().step_by(g.stride);
            dw[tap] += dy[oy * g.ow..][columns].iter().zip(x).fold(T::zero(), |sum, (&dy, &x)| sum + dy * x);
        });
    }
}
