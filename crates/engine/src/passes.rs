//! Convolutions as passes: which pixels a sweep reads, which kernel does it, and the weights packed for it.

use crate::kernels::{split, stem, winograd};
use crate::lower::Filter;
use crate::memory::{Border, Floats, Layout};
use nets::Padding;
use simd::{Isa, dense};

/// A sweep over output pixels: what each reads and where it goes, in pixels.
pub(crate) struct Sweep {
    /// Row and column offset in the source, and row and column of the kernel.
    taps: Vec<(isize, isize, usize, usize)>,
    stride: usize,
    step: usize,
    first: (usize, usize),
    rows: usize,
    columns: usize,
}

/// One convolution pass, ready to run.
pub(crate) struct Pass {
    pub taps: Vec<isize>,
    /// The source's stride: the source pixel of loop pixel (y, x) is (y, x) times this.
    pub stride: usize,
    /// The output pixel of loop pixel (y, x) is (y, x) times `step` plus `first`.
    pub step: usize,
    pub first: (usize, usize),
    pub rows: usize,
    pub columns: usize,
    pub weights: Floats,
    pub kernel: Algorithm,
}

/// How a pass multiplies.
pub(crate) enum Algorithm {
    Dense {
        run: usize,
        blocks: Vec<usize>,
    },
    /// `start` is the offset of the source pixel under the first tap.
    Winograd {
        depth: usize,
        depth_padded: usize,
        start: isize,
        blocks: Vec<usize>,
        chunk: usize,
    },
    Depthwise {
        channels_padded: usize,
    },
    /// The gradient of a convolution of the image.
    Stem {
        depth: usize,
    },
}

/// A pass before its layouts are known.
pub(crate) struct Draft {
    pub sweep: Sweep,
    pub form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Dense,
    Winograd,
    Depthwise,
    Stem,
}

/// The sweep over an output of `rows x columns`.
pub(crate) fn forward_sweep(filter: &Filter, padding: Padding, [rows, columns]: [usize; 2]) -> Sweep {
    let [down, across] = filter.kernel;
    let tap = |i: usize| {
        let (y, x) = (i / across, i % across);
        (y as isize - padding.top as isize, x as isize - padding.left as isize, y, x)
    };
    Sweep { taps: (0..down * across).map(tap).collect(), stride: filter.stride, step: 1, first: (0, 0), rows, columns }
}

/// The gradient's sweeps, one for each parity of the input's rows and columns, over an input of `rows x columns`: row
/// `i` of the input is in output row `(i + top - y) / stride` for each kernel row `y` that makes this whole.
pub(crate) fn backward_sweeps(filter: &Filter, padding: Padding, [rows, columns]: [usize; 2]) -> Vec<Sweep> {
    let ([height, width], s) = (filter.kernel, filter.stride);
    let taps = |parity: usize, before: usize, size: usize| {
        let offset = move |at: usize| (parity + before) as isize - at as isize;
        (0..size).filter(move |&at| offset(at).rem_euclid(s as isize) == 0).map(move |at| (offset(at) / s as isize, at))
    };
    let mut sweeps = Vec::new();
    for py in 0..s.min(rows) {
        for px in 0..s.min(columns) {
            let across: Vec<_> = taps(px, padding.left, width).collect();
            let down = taps(py, padding.top, height);
            let mut all: Vec<_> = down.flat_map(|(dy, y)| across.iter().map(move |&(dx, x)| (dy, dx, y, x))).collect();
            // In the order of memory, which Winograd's tiles rely on.
            all.sort_unstable();
            let (rows, columns) = ((rows - py).div_ceil(s), (columns - px).div_ceil(s));
            sweeps.push(Sweep { taps: all, stride: 1, step: s, first: (py, px), rows, columns });
        }
    }
    sweeps
}

/// The rule by which a dense convolution is done, of shapes alone.
pub(crate) fn form(filter: &Filter, padding: Padding, [rows, columns]: [usize; 2]) -> Form {
    let three = filter.kernel == [3, 3] && filter.stride == 1;
    let small = padding.top.max(padding.bottom).max(padding.left).max(padding.right) <= 2;
    match three && small && filter.inputs >= 8 && filter.outputs >= 8 && rows * columns >= 9 {
        true => Form::Winograd,
        false => Form::Dense,
    }
}

impl Draft {
    /// The border the source needs.
    pub(crate) fn reach(&self, lanes: usize, rows: usize, columns: usize) -> Border {
        let sweep = &self.sweep;
        let range = |d: &mut dyn Iterator<Item = isize>, count: usize| {
            let (low, high) = d.fold((isize::MAX, isize::MIN), |(low, high), d| (low.min(d), high.max(d)));
            let end = match self.form {
                Form::Winograd => low + (count.div_ceil(winograd::TILE) * winograd::TILE + 1) as isize,
                _ => ((count - 1) * sweep.stride) as isize + high,
            };
            (low, end)
        };
        if sweep.taps.is_empty() {
            return Border::default();
        }
        let y = range(&mut sweep.taps.iter().map(|t| t.0), sweep.rows);
        let mut x = range(&mut sweep.taps.iter().map(|t| t.1), sweep.columns);
        if self.form == Form::Stem {
            x.1 += (stem::ACROSS * lanes) as isize;
        }
        Border::reach(y, x, rows, columns)
    }

    /// Packs one pass of a convolution from a buffer of `source` layout; `weight(k, c, y, x)` is from the source's
    /// channel `k` to the output's channel `c`.
    pub(crate) fn pack(
        self,
        isa: Isa,
        source: &Layout,
        [depth, outputs]: [usize; 2],
        weight: impl Fn(usize, usize, usize, usize) -> f64,
    ) -> Pass {
        let lanes = isa.lanes();
        let blocks: Vec<_> = split(outputs.div_ceil(lanes), isa.widest()).collect();
        let padded = outputs.next_multiple_of(lanes);
        let Sweep { taps, stride, step, first, rows, columns } = self.sweep;
        let offset = |t: &(isize, isize, usize, usize)| source.offset(t.0, t.1);
        let planar = source.channels == 1 && self.form == Form::Dense;
        let (offsets, weights, kernel) = match self.form {
            Form::Winograd => {
                let weights = pack_winograd(&blocks, lanes, depth, outputs, &taps, &weight);
                let bytes = winograd::SIDE * winograd::SIDE * (source.channels + padded) * size_of::<f32>();
                let room = WINOGRAD_BYTES.max(weights.len() * size_of::<f32>() / 4);
                let chunk = (room / bytes).clamp(8, 256).next_multiple_of(8);
                let start = offset(&taps[0]);
                let depth_padded = source.channels;
                (Vec::new(), weights, Algorithm::Winograd { depth, depth_padded, start, blocks, chunk })
            }
            Form::Dense if planar => {
                // One run is a row of the kernel in one plane.
                let side = taps.iter().filter(|t| t.2 == taps[0].2).count();
                let plane = source.image() as isize;
                let heads = || (0..depth).flat_map(|c| taps.iter().step_by(side).map(move |t| (c, t)));
                let offsets: Vec<_> = heads().map(|(c, t)| c as isize * plane + offset(t)).collect();
                let places: Vec<_> = heads().collect();
                let mut weights = Floats::zeros(offsets.len() * side * padded);
                dense::pack(&blocks, lanes, offsets.len() * side, weights.as_mut(), |k, c| {
                    let (channel, &(_, _, y, x)) = places[k / side];
                    if c < outputs { weight(channel, c, y, x + k % side) as f32 } else { 0.0 }
                });
                (offsets, weights, Algorithm::Dense { run: side, blocks })
            }
            Form::Dense => {
                let mut offsets: Vec<_> = taps.iter().map(offset).collect();
                let mut weights = Floats::zeros(offsets.len() * depth * padded);
                dense::pack(&blocks, lanes, offsets.len() * depth, weights.as_mut(), |k, c| {
                    let (_, _, y, x) = taps[k / depth];
                    if c < outputs { weight(k % depth, c, y, x) as f32 } else { 0.0 }
                });
                let joined = joined(&offsets, depth);
                offsets = offsets.into_iter().step_by(joined).collect();
                (offsets, weights, Algorithm::Dense { run: depth * joined, blocks })
            }
            Form::Depthwise => {
                let mut weights = Floats::zeros(taps.len() * padded);
                for (row, &(_, _, y, x)) in weights.as_mut().chunks_exact_mut(padded).zip(&taps) {
                    row[..outputs].iter_mut().enumerate().for_each(|(c, w)| *w = weight(c, c, y, x) as f32);
                }
                (taps.iter().map(offset).collect(), weights, Algorithm::Depthwise { channels_padded: padded })
            }
            Form::Stem => {
                let mut weights = Floats::zeros(depth * taps.len() * outputs);
                for (i, w) in weights.as_mut().iter_mut().enumerate() {
                    let (k, t, c) = (i / outputs / taps.len(), i / outputs % taps.len(), i % outputs);
                    *w = weight(k, c, taps[t].2, taps[t].3) as f32;
                }
                (taps.iter().map(offset).collect(), weights, Algorithm::Stem { depth })
            }
        };
        Pass { taps: offsets, stride, step, first, rows, columns, weights, kernel }
    }
}

/// Scratch of the Winograd kernels, so that a chunk of tiles stays in the second cache.
const WINOGRAD_BYTES: usize = 384 << 10;
/// How many taps at a time lie one behind the other in memory, each `depth` long.
fn joined(offsets: &[isize], depth: usize) -> usize {
    let follows = |pair: &[isize]| pair[1] - pair[0] == depth as isize;
    let first = offsets.windows(2).take_while(|pair| follows(pair)).count() + 1;
    let even = offsets.len().is_multiple_of(first) && offsets.chunks(first).all(|row| row.windows(2).all(follows));
    if even { first } else { 1 }
}

fn pack_winograd(
    blocks: &[usize],
    lanes: usize,
    depth: usize,
    outputs: usize,
    taps: &[(isize, isize, usize, usize)],
    weight: &impl Fn(usize, usize, usize, usize) -> f64,
) -> Floats {
    let padded = outputs.next_multiple_of(lanes);
    let elements = winograd::SIDE * winograd::SIDE;
    let matrix = depth * padded;
    let mut packed = Floats::zeros(elements * matrix);
    let to = packed.as_mut();
    let mut first = 0;
    for &block in blocks {
        // Each block of columns is one stretch of every matrix.
        let width = block * lanes;
        for k in 0..depth {
            for c in (0..width).step_by(winograd::TOGETHER) {
                let mut g = [[0.0; winograd::TOGETHER]; 9];
                for i in 0..winograd::TOGETHER.min(outputs.saturating_sub(first + c)) {
                    for (g, &(_, _, y, x)) in g.iter_mut().zip(taps) {
                        g[i] = weight(k, first + c + i, y, x);
                    }
                }
                let mut u = [[0.0; winograd::TOGETHER]; winograd::SIDE * winograd::SIDE];
                winograd::transform(&g, &mut u);
                let at = first * depth + k * width + c;
                for (matrix, u) in to.chunks_exact_mut(matrix).zip(&u) {
                    matrix[at..at + winograd::TOGETHER].copy_from_slice(u);
                }
            }
        }
        first += width;
    }
    packed
}
