//! From fused steps to passes over memory: layouts, algorithms, packed weights and the order of the backward pass.

use std::ops::Range;

use candle_core::{Result, bail};
use rayon::prelude::*;

use crate::kernels::{dense, map::Window, split, winograd};
use crate::lower::{Act, Filter, Kind, Network, Step};
use crate::memory::{Border, Buffer, Floats, Layout, Slots, Use};
use crate::simd::Isa;

/// A value's shape and place.
pub(crate) struct Value {
    pub channels: usize,
    pub rows: usize,
    pub columns: usize,
    /// Of the NHWC buffer; for value 0, of one plane of the image.
    pub layout: Layout,
    /// Where its mask is in an image's state, if it has a ReLU.
    pub mask: Option<usize>,
    /// The slot in the forward pass.
    pub slot: usize,
    /// The segment whose group of images the slot holds.
    pub home: usize,
}

/// A gradient's place.
pub(crate) struct Gradient {
    pub layout: Layout,
    pub slot: usize,
    pub home: usize,
}

/// Stages in a row that work on so many images at a time: few while the images are large, so that they stay in the
/// cache, and more where the weights are, so that these are read less often.
pub(crate) struct Segment {
    pub stages: Range<usize>,
    pub backs: Range<usize>,
    pub group: usize,
}

/// A sweep over output pixels: what each reads and where it goes, in pixels.
struct Sweep {
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
    Depthwise,
    /// The gradient of a convolution of the image.
    Stem {
        depth: usize,
    },
}

pub(crate) enum Work {
    Convolution { forward: Pass, bias: Floats, backward: Vec<Pass> },
    MaxPool { window: Window, winners: usize },
    Subsample { stride: usize, before: usize },
    GlobalPool,
    Identity,
}

/// A fused step, ready to run.
pub(crate) struct Stage {
    pub work: Work,
    pub input: usize,
    pub residual: Option<usize>,
    pub output: usize,
    pub act: Act,
}

/// A step of the backward pass: `to = masked(work^T(from) + residual)`.
pub(crate) struct Back {
    /// The stage that shares the gradient out.
    pub of: usize,
    /// The stage whose gradient this is; none is the sum alone.
    pub stage: Option<usize>,
    /// The value whose gradient is made.
    pub value: usize,
    pub from: usize,
    pub residual: Option<usize>,
    /// None is the image's gradient.
    pub to: Option<usize>,
    pub masked: bool,
    /// Whether the image's gradient is added to.
    pub accumulate: bool,
}

/// A network compiled for images of one size.
pub(crate) struct Compiled {
    pub isa: Isa,
    pub channels: usize,
    pub mean: Vec<f32>,
    pub inverse_std: Vec<f32>,
    pub classes: usize,
    pub values: Vec<Value>,
    pub stages: Vec<Stage>,
    pub backs: Vec<Back>,
    /// Gradient buffers; buffer 0 is the logits'.
    pub gradients: Vec<Gradient>,
    /// Offsets of the slots in the arena.
    pub slots: Vec<usize>,
    /// Each a part of the next one's group at a time.
    pub segments: Vec<Segment>,
    /// Where the image's planes, and the scratch of the kernels, are in the arena.
    pub image: usize,
    pub scratch: usize,
    pub arena: usize,
    /// Border of the planes from which the image's gradient is made.
    pub stem: Border,
    /// Bytes kept for each image between the passes.
    pub state: usize,
}

impl Compiled {
    /// The most images one thread works on together.
    pub(crate) fn group(&self) -> usize {
        self.segments.last().map_or(1, |segment| segment.group)
    }
}

/// A pass before its layouts are known.
struct Draft {
    sweep: Sweep,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Dense,
    Winograd,
    Depthwise,
    Stem,
}

fn output_size(size: usize, padding: usize, kernel: usize, stride: usize) -> Result<usize> {
    match (size + padding).checked_sub(kernel) {
        Some(room) => Ok(room / stride + 1),
        None => bail!("the image is too small for the network: a window of {kernel} on {size} pixels"),
    }
}

/// Channels, rows and columns of every value.
fn shapes(network: &Network, [rows, columns]: [usize; 2]) -> Result<Vec<[usize; 3]>> {
    let mut shapes = vec![[network.mean.len(), rows, columns]];
    for step in &network.steps {
        let [c, h, w] = shapes[step.input];
        let shape = match &step.kind {
            Kind::Dense(f) | Kind::Depthwise(f) => {
                let inputs = if matches!(step.kind, Kind::Dense(_)) { f.inputs } else { f.outputs };
                if inputs != c {
                    bail!("node {}: a layer for {inputs} channels is given {c}", step.node);
                }
                let p = f.padding;
                [
                    f.outputs,
                    output_size(h, p.top + p.bottom, f.kernel, f.stride)?,
                    output_size(w, p.left + p.right, f.kernel, f.stride)?,
                ]
            }
            &Kind::MaxPool { kernel, stride, padding } => {
                if kernel > 15 || 2 * padding > kernel {
                    bail!("a max-pool of kernel {kernel} and padding {padding} is not supported");
                }
                [c, output_size(h, 2 * padding, kernel, stride)?, output_size(w, 2 * padding, kernel, stride)?]
            }
            &Kind::Subsample { stride, before, after } => [before + c + after, h.div_ceil(stride), w.div_ceil(stride)],
            Kind::GlobalPool => [c, 1, 1],
            Kind::Identity => [c, h, w],
        };
        if let Some(residual) = step.residual
            && shapes[residual] != shape
        {
            bail!("node {}: a sum of {:?} and {shape:?} (channels, rows, columns)", step.node, shapes[residual]);
        }
        shapes.push(shape);
    }
    match shapes.last() {
        Some(&[classes, 1, 1]) if classes == network.classes => Ok(shapes),
        other => bail!("the network ends in {other:?} (channels, rows, columns), not {} logits", network.classes),
    }
}

fn forward_sweep(filter: &Filter, rows: usize, columns: usize) -> Sweep {
    let k = filter.kernel;
    let tap = |i: usize| {
        let (y, x) = (i / k, i % k);
        (y as isize - filter.padding.top as isize, x as isize - filter.padding.left as isize, y, x)
    };
    Sweep { taps: (0..k * k).map(tap).collect(), stride: filter.stride, step: 1, first: (0, 0), rows, columns }
}

/// The gradient's sweeps, one for each parity of the input's rows and columns, over an input of `rows x columns`: row
/// `i` of the input is in output row `(i + top - y) / stride` for each kernel row `y` that makes this whole.
fn backward_sweeps(filter: &Filter, rows: usize, columns: usize) -> Vec<Sweep> {
    let (k, s) = (filter.kernel, filter.stride);
    let taps = |parity: usize, before: usize| {
        let offset = move |at: usize| (parity + before) as isize - at as isize;
        (0..k).filter(move |&at| offset(at).rem_euclid(s as isize) == 0).map(move |at| (offset(at) / s as isize, at))
    };
    let mut sweeps = Vec::new();
    for py in 0..s.min(rows) {
        for px in 0..s.min(columns) {
            let across: Vec<_> = taps(px, filter.padding.left).collect();
            let down = taps(py, filter.padding.top);
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
fn form(filter: &Filter, rows: usize, columns: usize) -> Form {
    let three = filter.kernel == 3 && filter.stride == 1;
    let padding = filter.padding;
    let small = padding.top.max(padding.bottom).max(padding.left).max(padding.right) <= 2;
    match three && small && filter.inputs >= 8 && filter.outputs >= 8 && rows * columns >= 9 {
        true => Form::Winograd,
        false => Form::Dense,
    }
}

impl Draft {
    /// The border the source needs.
    fn reach(&self, lanes: usize, rows: usize, columns: usize) -> Border {
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
            x.1 += (crate::kernels::stem::ACROSS * lanes) as isize;
        }
        Border::reach(y, x, rows, columns)
    }
}

struct Compiler<'a> {
    isa: Isa,
    network: &'a Network,
    shapes: Vec<[usize; 3]>,
    /// Forward and backward passes of each convolution.
    drafts: Vec<Option<(Draft, Vec<Draft>)>>,
    /// Layout of each value.
    layouts: Vec<Layout>,
    stem: Border,
}

impl Compiler<'_> {
    fn draft(&mut self) {
        for step in &self.network.steps {
            let [_, rows, columns] = self.shapes[step.output];
            let [_, in_rows, in_columns] = self.shapes[step.input];
            let (filter, forward, backward) = match &step.kind {
                Kind::Dense(filter) if step.input == 0 => (filter, Form::Dense, Form::Stem),
                Kind::Dense(filter) => (filter, form(filter, rows, columns), form(filter, in_rows, in_columns)),
                Kind::Depthwise(filter) => (filter, Form::Depthwise, Form::Depthwise),
                _ => {
                    self.drafts.push(None);
                    continue;
                }
            };
            let draft = |form: Form| move |sweep: Sweep| Draft { sweep, form };
            let backward = backward_sweeps(filter, in_rows, in_columns).into_iter().map(draft(backward)).collect();
            self.drafts.push(Some((draft(forward)(forward_sweep(filter, rows, columns)), backward)));
        }
    }

    /// Buffers of the same size get the same border, the largest any of them needs, and can then share memory.
    fn lay_out(&mut self) {
        let lanes = self.isa.lanes();
        let padded = |c: usize| c.next_multiple_of(lanes);
        let mut borders = vec![Border::default(); self.shapes.len()];
        for (step, drafts) in self.network.steps.iter().zip(&self.drafts) {
            let Some((forward, backward)) = drafts else { continue };
            let [_, rows, columns] = self.shapes[step.input];
            borders[step.input] = borders[step.input].max(forward.reach(lanes, rows, columns));
            let [_, rows, columns] = self.shapes[step.output];
            for draft in backward {
                let reach = draft.reach(lanes, rows, columns);
                match draft.form {
                    Form::Stem => self.stem = self.stem.max(reach),
                    _ => borders[step.output] = borders[step.output].max(reach),
                }
            }
        }
        let key = |&[c, h, w]: &[usize; 3]| [padded(c), h, w];
        for (value, shape) in self.shapes.iter().enumerate() {
            let [channels, rows, columns] = key(shape);
            let same = (1..self.shapes.len()).filter(|&v| key(&self.shapes[v]) == key(shape));
            let border = same.fold(Border::default(), |border, v| border.max(borders[v]));
            self.layouts.push(match value {
                0 => Layout { rows, columns, channels: 1, border: borders[0] },
                _ => Layout { rows, columns, channels, border },
            });
        }
    }

    fn blocks(&self, channels: usize) -> Vec<usize> {
        split(channels.div_ceil(self.isa.lanes()), self.isa.widest()).collect()
    }

    /// Packs one pass of a convolution from a buffer of `source` layout; `weight(k, c, y, x)` is from the source's
    /// channel `k` to the output's channel `c`.
    fn pass(
        &self,
        draft: Draft,
        source: &Layout,
        [depth, outputs]: [usize; 2],
        weight: impl Fn(usize, usize, usize, usize) -> f64 + Sync,
    ) -> Pass {
        let lanes = self.isa.lanes();
        let blocks = self.blocks(outputs);
        let padded = outputs.next_multiple_of(lanes);
        let Sweep { taps, stride, step, first, rows, columns } = draft.sweep;
        let offset = |t: &(isize, isize, usize, usize)| source.offset(t.0, t.1);
        let planar = source.channels == 1 && draft.form == Form::Dense;
        let (offsets, weights, kernel) = match draft.form {
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
                (taps.iter().map(offset).collect(), weights, Algorithm::Depthwise)
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

    /// The layout of the planes from which the image's gradient is made.
    fn planes(&self, output: usize) -> Layout {
        let Layout { rows, columns, .. } = self.layouts[output];
        Layout { rows, columns, channels: 1, border: self.stem }
    }

    fn convolution(&self, step: &Step, filter: &Filter, (forward, backward): (Draft, Vec<Draft>)) -> Work {
        let dense = matches!(step.kind, Kind::Dense(_));
        let weight = |i: usize, o: usize, y: usize, x: usize| filter.at(o, if dense { i } else { 0 }, y, x);
        let inputs = self.shapes[step.input][0];
        let forward = self.pass(forward, &self.layouts[step.input], [inputs, filter.outputs], weight);
        let source = match step.input {
            0 => self.planes(step.output),
            _ => self.layouts[step.output],
        };
        let std = &self.network.std;
        let backward = backward.into_iter().map(|draft| match step.input {
            0 => self.pass(draft, &source, [filter.outputs, inputs], |o, i, y, x| weight(i, o, y, x) / std[i]),
            _ => self.pass(draft, &source, [filter.outputs, inputs], |o, i, y, x| weight(i, o, y, x)),
        });
        let mut bias = Floats::zeros(self.layouts[step.output].channels);
        bias.as_mut().iter_mut().zip(&filter.bias).for_each(|(to, from)| *to = *from as f32);
        Work::Convolution { forward, backward: backward.collect(), bias }
    }

    /// Bytes of one bit a channel of every pixel.
    fn mask_bytes(&self, value: usize) -> usize {
        let layout = &self.layouts[value];
        layout.rows * layout.columns * layout.channels / 8
    }
}

/// Scratch of the Winograd kernels, so that a chunk of tiles stays in the second cache.
const WINOGRAD_BYTES: usize = 768 << 10;
/// The largest buffer of a group of images, for the same reason.
const GROUP_BYTES: usize = 512 << 10;
const GROUP_IMAGES: usize = 32;

/// Splits the stages by how many images they should work on at a time.
fn segments(network: &Network, layouts: &[Layout], work: &[Work], backs: &[Back]) -> Vec<Segment> {
    let bytes = |floats: usize| floats * size_of::<f32>();
    let mut groups: Vec<usize> = network
        .steps
        .iter()
        .zip(work)
        .map(|(step, work)| {
            let image = layouts[step.input].image().max(layouts[step.output].image());
            let weights = match work {
                Work::Convolution { forward, backward, .. } => {
                    forward.weights.len().max(backward.iter().map(|pass| pass.weights.len()).sum())
                }
                _ => 0,
            };
            let fitting = GROUP_BYTES.max(bytes(weights) / 4) / bytes(image).max(1);
            1 << fitting.clamp(1, GROUP_IMAGES).ilog2()
        })
        .collect();
    // Groups only grow.
    for stage in 1..groups.len() {
        groups[stage] = groups[stage].max(groups[stage - 1]);
    }
    let mut segments: Vec<Segment> = Vec::new();
    for (stage, group) in groups.into_iter().enumerate() {
        match segments.last_mut() {
            Some(segment) if segment.group == group => segment.stages.end = stage + 1,
            _ => segments.push(Segment { stages: stage..stage + 1, backs: 0..0, group }),
        }
    }
    for segment in &mut segments {
        let before = |stage: usize| backs.iter().take_while(|back| back.of >= stage).count();
        segment.backs = before(segment.stages.end)..before(segment.stages.start);
    }
    segments
}

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
    weight: &(impl Fn(usize, usize, usize, usize) -> f64 + Sync),
) -> Floats {
    let padded = outputs.next_multiple_of(lanes);
    let elements = winograd::SIDE * winograd::SIDE;
    let matrix = depth * padded;
    let mut packed = Floats::zeros(elements * matrix);
    // Each block of columns is one stretch of every matrix.
    let to = SendPtr(packed.as_mut().as_mut_ptr());
    let starts = blocks.iter().scan(0, |first, &block| {
        let start = *first;
        *first += block * lanes;
        Some((start, block * lanes))
    });
    let starts: Vec<(usize, usize)> = starts.collect();
    starts.par_iter().for_each(|&(first, width)| {
        for k in 0..depth {
            for c in (0..width).step_by(winograd::TOGETHER) {
                let kernels = winograd::transform(|y, x, i| {
                    let (_, _, ky, kx) = taps[y * 3 + x];
                    if first + c + i < outputs { weight(k, first + c + i, ky, kx) } else { 0.0 }
                });
                for (e, u) in kernels.as_flattened().iter().enumerate() {
                    // SAFETY: inside the packed matrices, and each block writes its own stretch.
                    unsafe {
                        let to = to.get().add(e * matrix + first * depth + k * width + c);
                        to.copy_from_nonoverlapping(u.as_ptr(), winograd::TOGETHER);
                    }
                }
            }
        }
    });
    packed
}

/// A pointer that threads may share because each writes its own part.
#[derive(Clone, Copy)]
struct SendPtr(*mut f32);
// SAFETY: see the type.
unsafe impl Send for SendPtr {}
unsafe impl Sync for SendPtr {}

impl SendPtr {
    fn get(self) -> *mut f32 {
        self.0
    }
}

/// The backward pass in order: every value's gradient is summed over its readers, last reader first, and the last sum
/// applies the mask of the value's ReLU. A residual's share is the gradient of the sum itself, so it is not copied.
fn backward(steps: &[Step], acts: &[Act]) -> (Vec<Back>, Vec<usize>) {
    let values = steps.len() + 1;
    let mut shares = vec![0; values];
    for step in steps {
        step.residual.iter().chain([&step.input]).for_each(|&value| shares[value] += 1);
    }
    let mut values_of = vec![values - 1];
    let mut current: Vec<Option<usize>> = vec![None; values];
    let mut backs: Vec<Back> = Vec::new();
    current[values - 1] = Some(0);
    for (stage, step) in steps.iter().enumerate().rev() {
        // A value nobody reads has no gradient.
        let Some(from) = current[step.output] else { continue };
        let identity = matches!(step.kind, Kind::Identity);
        let shares_of_step = step.residual.map(|r| (r, None)).into_iter();
        for (value, work) in shares_of_step.chain([(step.input, (!identity).then_some(stage))]) {
            shares[value] -= 1;
            let masked = shares[value] == 0 && acts[value] != Act::None;
            let residual = current[value];
            if work.is_none() && residual.is_none() && !masked {
                current[value] = Some(from);
                continue;
            }
            let to = (value != 0).then(|| {
                values_of.push(value);
                values_of.len() - 1
            });
            let accumulate = value == 0 && backs.iter().any(|back| back.value == 0);
            backs.push(Back { of: stage, stage: work, value, from, residual, to, masked, accumulate });
            current[value] = to;
        }
    }
    (backs, values_of)
}

/// Compiles a network for images of `size` (rows, columns).
pub(crate) fn compile(network: &Network, size: [usize; 2], isa: Isa) -> Result<Compiled> {
    let shapes = shapes(network, size)?;
    let (drafts, layouts, stem) = (Vec::new(), Vec::new(), Border::default());
    let mut compiler = Compiler { isa, network, shapes, drafts, layouts, stem };
    compiler.draft();
    compiler.lay_out();
    let drafts = std::mem::take(&mut compiler.drafts);

    let mut acts = vec![Act::None; compiler.shapes.len()];
    network.steps.iter().for_each(|step| acts[step.output] = step.act);
    let mut state = 0;
    let mut keep = |bytes: usize| {
        let at = state;
        state += bytes.next_multiple_of(64);
        at
    };
    let masks: Vec<_> = (0..acts.len()).map(|v| (acts[v] != Act::None).then(|| keep(compiler.mask_bytes(v)))).collect();
    let winners: Vec<_> = network
        .steps
        .iter()
        .map(|step| match step.kind {
            Kind::MaxPool { .. } => keep(compiler.mask_bytes(step.output) * 8),
            _ => 0,
        })
        .collect();

    let work: Vec<Work> = network
        .steps
        .par_iter()
        .zip(drafts)
        .zip(&winners)
        .map(|((step, drafts), &winners)| match (&step.kind, drafts) {
            (Kind::Dense(filter) | Kind::Depthwise(filter), Some(drafts)) => compiler.convolution(step, filter, drafts),
            (&Kind::MaxPool { kernel, stride, padding }, _) => {
                Work::MaxPool { window: Window { kernel, stride, padding }, winners }
            }
            (&Kind::Subsample { stride, before, .. }, _) => Work::Subsample { stride, before },
            (Kind::GlobalPool, _) => Work::GlobalPool,
            _ => Work::Identity,
        })
        .collect();

    let (backs, gradient_values) = backward(&network.steps, &acts);
    let segments = segments(network, &compiler.layouts, &work, &backs);
    let segment_of = |stage: usize| segments.iter().position(|s| s.stages.contains(&stage)).unwrap_or(0);
    let mut slots = Slots::default();

    let mut homes = vec![0; compiler.layouts.len()];
    for (stage, step) in network.steps.iter().enumerate() {
        let values = [step.input, step.output].into_iter().chain(step.residual);
        values.for_each(|value| homes[value] = homes[value].max(segment_of(stage)));
    }
    // A value that a later segment reads gathers parts of that segment's group, so nothing may use its slot meanwhile.
    let gathered: Vec<_> = (1..homes.len()).filter(|&v| homes[v] > segment_of(v - 1)).collect();
    let forward_uses: Vec<_> = network
        .steps
        .iter()
        .map(|step| {
            // Value 0 has its own place.
            let reads = [Some(step.input), step.residual].into_iter().flatten().filter(|&v| v != 0).collect();
            let over = step.residual.filter(|&r| r != step.input);
            Use { reads, writes: Some(step.output), over }
        })
        .collect();
    let last = compiler.shapes.len() - 1;
    let buffer = |value: usize, home: usize| Buffer { layout: compiler.layouts[value], images: segments[home].group };
    let buffers: Vec<_> = homes.iter().enumerate().map(|(value, &home)| buffer(value, home)).collect();
    let value_slots = slots.assign(&buffers, &forward_uses, &gathered, &[last]);

    let (mut gradient_homes, mut first_homes) =
        (vec![0; gradient_values.len()], vec![usize::MAX; gradient_values.len()]);
    gradient_homes[0] = segments.len() - 1;
    for back in &backs {
        for buffer in [Some(back.from), back.residual, back.to].into_iter().flatten() {
            gradient_homes[buffer] = gradient_homes[buffer].max(segment_of(back.of));
            first_homes[buffer] = first_homes[buffer].min(segment_of(back.of));
        }
    }
    // And what an earlier segment reads is shared out.
    let shared: Vec<_> = (0..gradient_homes.len()).filter(|&b| first_homes[b] < gradient_homes[b]).collect();
    let buffers: Vec<_> =
        gradient_values.iter().zip(&gradient_homes).map(|(&value, &home)| buffer(value, home)).collect();
    let backward_uses: Vec<_> = backs
        .iter()
        .map(|back| Use {
            reads: [Some(back.from), back.residual].into_iter().flatten().collect(),
            writes: back.to,
            over: back.residual.filter(|&r| r != back.from),
        })
        .collect();
    let gradient_slots = slots.assign(&buffers, &backward_uses, &[0], &shared);
    let (offsets, image) = slots.place();

    let mut scratch_floats = 0;
    for (step, work) in network.steps.iter().zip(&work) {
        let Work::Convolution { forward, backward, .. } = work else { continue };
        for pass in std::iter::once(forward).chain(backward) {
            scratch_floats = scratch_floats.max(match &pass.kernel {
                Algorithm::Winograd { depth_padded, blocks, chunk, .. } => {
                    let outputs = blocks.iter().sum::<usize>() * isa.lanes();
                    winograd::scratch(*chunk, *depth_padded, outputs)
                }
                Algorithm::Stem { depth } => depth * compiler.planes(step.output).image() + 64,
                _ => 0,
            });
        }
    }
    let planes = network.mean.len() * compiler.layouts[0].image() * segments[homes[0]].group;
    let scratch = image + planes.next_multiple_of(16);
    let stages = network.steps.iter().zip(work).map(|(step, work)| Stage {
        work,
        input: step.input,
        residual: step.residual,
        output: step.output,
        act: step.act,
    });
    let stages = stages.collect();
    let values = compiler.shapes.iter().enumerate().map(|(v, &[channels, rows, columns])| Value {
        channels,
        rows,
        columns,
        layout: compiler.layouts[v],
        mask: masks[v],
        slot: value_slots[v],
        home: homes[v],
    });
    let gradients = gradient_values.iter().enumerate().map(|(buffer, &value)| Gradient {
        layout: compiler.layouts[value],
        slot: gradient_slots[buffer],
        home: gradient_homes[buffer],
    });
    let gradients = gradients.collect();
    Ok(Compiled {
        isa,
        channels: network.mean.len(),
        mean: network.mean.iter().map(|&m| m as f32).collect(),
        inverse_std: network.std.iter().map(|&s| (1.0 / s) as f32).collect(),
        classes: network.classes,
        values: values.collect(),
        stages,
        backs,
        gradients,
        slots: offsets,
        segments,
        image,
        scratch,
        arena: scratch + scratch_floats + 64,
        stem: compiler.stem,
        state: state.max(1),
    })
}
