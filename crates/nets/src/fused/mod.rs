//! A compiled training step on the CPU in f32: loss, logits and every gradient, without a tape.
//!
//! Autograd ([`crate::Trainee::loss`]) is the reference. Here activations are NHWC with channels padded to whole vectors
//! and a border of zeros, in buffers that are kept from step to step, and an image passes through as many layers as it
//! can while it is in the cache: only a batch's statistics, and the sums that carry gradients through them, make all
//! images wait for each other. 3x3 convolutions of stride 1 are done by Winograd's F(4x4, 3x3) where its tiles fit the
//! plane, the gradient of the weights always by its definition.
//!
//! Images belong to at most [`PARTS`] groups, which rayon's threads share out; whatever is summed over images is summed
//! within the group, then over the groups in order, so that no number depends on threads.

mod build;
mod kernels;

use std::{cell::UnsafeCell, collections::BTreeMap, ops::Range};

use rayon::prelude::*;
use simd::{
    Finish, Isa, View,
    dense::{Dense, pack},
    view::End,
    winograd::{self, Winograd},
};

use crate::{
    Padding,
    ops::{Activation, Statistics, spread, threshold},
};
use kernels::{Affine, Bend, Mask, Moments, Unnormalise, WeightGradient};

/// Groups of images with a sum of their own.
const PARTS: usize = 16;
/// Output channels whose weight gradients are summed at once.
const COLUMNS: usize = 16;

/// Floats that threads write in disjoint parts, on the boundaries of cache lines.
#[derive(Default)]
struct Memory(Vec<UnsafeCell<Line>>);

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read through pointers")] [f32; 16]);

// SAFETY: who writes through `at` sees to it that no other thread reads or writes there.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(floats: usize) -> Self {
        Self((0..floats.div_ceil(16)).map(|_| UnsafeCell::new(Line([0.0; 16]))).collect())
    }

    fn at(&self, float: usize) -> *mut f32 {
        assert!(float <= self.0.len() * 16);
        self.0.as_ptr().cast_mut().cast::<f32>().wrapping_add(float)
    }

    fn numbers(&mut self) -> &mut [f32] {
        // SAFETY: lines are sixteen floats each, without gaps, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// The shape of one image at a node of the graph.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Plane {
    channels: usize,
    /// Channels, and zeros up to a whole number of vectors.
    padded: usize,
    height: usize,
    width: usize,
    /// Pixels of zeros on each side.
    border: usize,
}

impl Plane {
    fn row(&self) -> usize {
        (self.width + 2 * self.border) * self.padded
    }

    /// Floats of one image.
    fn image(&self) -> usize {
        (self.height + 2 * self.border) * self.row()
    }

    /// The offset of the pixel some rows down and some columns to the right.
    fn step(&self, rows: isize, columns: isize) -> isize {
        rows * self.row() as isize + columns * self.padded as isize
    }

    fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// The same without a border.
    fn bare(self) -> Self {
        Self { border: 0, ..self }
    }

    fn view(&self, memory: &Memory, image: usize) -> View<f32> {
        assert!((image + 1) * self.image() <= memory.0.len() * 16);
        let at = memory.at(image * self.image() + self.border * (self.row() + self.padded));
        View { at, image: self.image(), row: self.row(), pixel: self.padded }
    }
}

/// A gradient's buffer, and whether there is something in it to add to.
#[derive(Clone, Copy, Debug)]
struct Target {
    slot: usize,
    add: bool,
}

struct Layer {
    work: Work,
    inputs: Vec<usize>,
    output: usize,
    /// The activation.
    bend: Bend,
    /// The buffer of the output's gradient.
    dy: usize,
    /// The buffers of the inputs' gradients; none for the image, and where an input's is the output's.
    dx: Vec<Option<Target>>,
}

enum Work {
    /// The pixels, and the standardisation of each image after it.
    Normalise {
        mean: Vec<f32>,
        scale: Vec<f32>,
        standardise: bool,
    },
    Conv(Box<Convolution>),
    /// Nothing but the moments of its input, for the normalisation that comes next; back, it undoes that one.
    Measure {
        norm: usize,
    },
    Norm(Box<Norm>),
    Add,
    Subsample {
        stride: usize,
        before: usize,
    },
    KeepLargest {
        winners: usize,
        /// By image.
        thresholds: Memory,
    },
    AveragePool {
        kernel: usize,
        stride: usize,
        padding: usize,
    },
    Pool,
}

impl Work {
    /// The layer of the normalisation whose statistics this layer takes.
    fn norm(&self) -> Option<usize> {
        match self {
            Self::Conv(conv) => conv.norm,
            Self::Measure { norm } => Some(*norm),
            _ => None,
        }
    }
}

/// A convolution, or a linear layer as one of a single pixel.
struct Convolution {
    name: String,
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    padding: Padding,
    has_bias: bool,
    bias: Vec<f32>,
    /// Offsets in the input, by position in the kernel.
    taps: Vec<isize>,
    /// Register tiles of output channels.
    blocks: Vec<usize>,
    weights: Memory,
    form: Form,
    /// The convolutions that carry gradients back, one for each parity of row and column.
    back: Vec<Back>,
    back_blocks: Vec<usize>,
    /// The output's gradient, with the border they need.
    dy: Plane,
    /// The layer of the normalisation after it.
    norm: Option<usize>,
    /// Where in a group's memory the weight gradient is summed, and then the bias'.
    part: usize,
}

struct Back {
    y: usize,
    x: usize,
    rows: usize,
    columns: usize,
    /// Offsets in the output's gradient, and positions in the kernel.
    taps: Vec<isize>,
    positions: Vec<usize>,
    weights: Memory,
    form: Form,
}

/// How a convolution is done: a rule of shapes alone.
#[derive(Clone, Copy)]
enum Form {
    Dense,
    /// Winograd's F(4x4, 3x3), some tiles at a time.
    Winograd(usize),
}

/// Floats of transformed inputs and outputs that stay in the second cache.
const WINOGRAD: usize = 192 << 10;

impl Form {
    /// The form of a convolution to a `rows x columns` plane.
    fn of(kernel: usize, stride: usize, from: Plane, to: Plane, rows: usize, columns: usize) -> Self {
        let whole = [rows, columns].iter().all(|size| size.is_multiple_of(winograd::TILE));
        match kernel == 3 && stride == 1 && whole && from.channels.min(to.channels) >= 8 {
            true => {
                let tile = winograd::SIDE * winograd::SIDE * (from.padded + to.padded);
                Self::Winograd((WINOGRAD / tile).clamp(8, 256).next_multiple_of(8))
            }
            false => Self::Dense,
        }
    }

    /// Floats of packed weights, per input and padded output channel.
    fn floats(self, taps: usize) -> usize {
        match self {
            Self::Dense => taps,
            Self::Winograd(_) => winograd::SIDE * winograd::SIDE,
        }
    }

    /// Packs weights `of(tap, input channel, output channel)`, of which there are `[taps, inputs, outputs]`; the last
    /// tap first if `turned`.
    fn pack(
        self,
        (blocks, lanes): (&[usize], usize),
        [taps, inputs, outputs]: [usize; 3],
        turned: bool,
        to: &mut [f32],
        of: impl Fn(usize, usize, usize) -> f32,
    ) {
        if let Self::Dense = self {
            return pack(blocks, lanes, taps * inputs, to, |row, o| match o < outputs {
                true => of(row / inputs, row % inputs, o),
                false => 0.0,
            });
        }
        let matrix = inputs * blocks.iter().sum::<usize>() * lanes;
        let mut first = 0;
        for width in blocks.iter().map(|block| block * lanes) {
            for c in 0..inputs {
                for o in (0..width).step_by(winograd::TOGETHER) {
                    let mut g = [[0.0; winograd::TOGETHER]; 9];
                    for (tap, g) in g.iter_mut().enumerate() {
                        let tap = if turned { 8 - tap } else { tap };
                        for (g, o) in g.iter_mut().zip(first + o..outputs) {
                            *g = f64::from(of(tap, c, o));
                        }
                    }
                    let mut u = [[0.0; winograd::TOGETHER]; winograd::SIDE * winograd::SIDE];
                    winograd::transform(&g, &mut u);
                    for (e, kernel) in u.iter().enumerate() {
                        let at = e * matrix + first * inputs + c * width + o;
                        to[at..][..winograd::TOGETHER].copy_from_slice(kernel);
                    }
                }
            }
            first += width;
        }
    }
}

impl Convolution {
    /// Numbers of a weight gradient as it is summed: positions by inputs by padded outputs, and the bias'.
    fn floats(&self) -> usize {
        (self.taps.len() * self.inputs + usize::from(self.has_bias)) * self.dy.padded
    }

    fn load(&mut self, isa: Isa, weight: &[f32], bias: Option<&[f32]>) {
        let (inputs, outputs, area) = (self.inputs, self.outputs, self.kernel * self.kernel);
        let to = self.weights.numbers();
        self.form.pack((&self.blocks, isa.lanes()), [area, inputs, outputs], false, to, |tap, c, o| {
            weight[(o * inputs + c) * area + tap]
        });
        for Back { form, positions, weights, .. } in &mut self.back {
            let sizes = [positions.len(), outputs, inputs];
            form.pack((&self.back_blocks, isa.lanes()), sizes, true, weights.numbers(), |tap, o, c| {
                weight[(o * inputs + c) * area + positions[tap]]
            });
        }
        if let Some(bias) = bias {
            self.bias[..outputs].copy_from_slice(bias);
        }
    }
}

/// A batch normalisation with the batch's statistics.
struct Norm {
    name: String,
    eps: f64,
    gamma: Vec<f32>,
    statistics: Statistics,
    /// By image: means, then sums of squared deviations.
    moments: Memory,
    /// Mean, scale and shift.
    forward: Memory,
    /// By image: sums of the gradient, then of the gradient times the deviation.
    sums: Memory,
    /// Scale, second and first (see [`Unnormalise`]).
    backward: Memory,
}

impl Norm {
    fn load(&mut self, gamma: &[f32], beta: &[f32], padded: usize) {
        self.gamma = gamma.to_vec();
        self.forward.numbers()[2 * padded..][..beta.len()].copy_from_slice(beta);
    }

    /// The batch's statistics from the images', all of `pixels` pixels.
    fn settle(&mut self, images: usize, pixels: usize, padded: usize) {
        let count = images * pixels;
        let moments = &self.moments.numbers()[..images * 2 * padded];
        let (mut mean, mut variance) = (Vec::new(), Vec::new());
        for c in 0..self.gamma.len() {
            let of = |part: usize| moments.chunks(2 * padded).map(move |image| f64::from(image[part * padded + c]));
            let centre = of(0).sum::<f64>() / images as f64;
            let between: f64 = of(0).map(|mean| (mean - centre) * (mean - centre)).sum();
            mean.push(centre);
            variance.push((of(1).sum::<f64>() + between * pixels as f64) / count as f64);
        }
        let forward = self.forward.numbers();
        for (c, gamma) in self.gamma.iter().enumerate() {
            forward[c] = mean[c] as f32;
            forward[padded + c] = (f64::from(*gamma) / (variance[c] + self.eps).sqrt()) as f32;
        }
        self.statistics = Statistics { mean, variance, count };
    }

    /// The gradients of gamma and beta, and what the gradient of the input needs to know of them.
    fn settle_back(&mut self, images: usize, padded: usize) -> [Vec<f32>; 2] {
        let sums = &self.sums.numbers()[..images * 2 * padded];
        let count = self.statistics.count as f64;
        let backward = self.backward.numbers();
        let [mut dgamma, mut dbeta] = [vec![], vec![]];
        for (c, gamma) in self.gamma.iter().enumerate() {
            let of =
                |part: usize| sums.chunks(2 * padded).map(|image| f64::from(image[part * padded + c])).sum::<f64>();
            let inverse = 1.0 / (self.statistics.variance[c] + self.eps).sqrt();
            let (first, second, scale) = (of(0), of(1), f64::from(*gamma) * inverse);
            dbeta.push(first as f32);
            dgamma.push((second * inverse) as f32);
            backward[c] = scale as f32;
            backward[padded + c] = (scale * inverse * inverse * second / count) as f32;
            backward[2 * padded + c] = (scale * first / count) as f32;
        }
        [dgamma, dbeta]
    }
}

/// A training step for images of one size, and batches up to one size.
pub(crate) struct Program {
    isa: Isa,
    /// The size of a batch there is room for, and of an image.
    room: [usize; 4],
    layers: Vec<Layer>,
    /// By node.
    planes: Vec<Plane>,
    values: Vec<Memory>,
    /// The node that holds the values of each node.
    holders: Vec<usize>,
    /// Buffers of gradients.
    slots: Vec<Memory>,
    /// By group: the gradient of a convolution's output, and floats of one group.
    scratch: (Memory, usize),
    /// By group: sums of weight gradients, and floats of one group.
    parts: (Memory, usize),
    /// By group: Winograd's transformed tiles, and floats of one group.
    tiles: (Memory, usize),
    /// Layers that an image passes through without waiting for the others.
    forward: Vec<Range<usize>>,
    backward: Vec<Range<usize>>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("isa", &self.isa).field("room", &self.room).finish_non_exhaustive()
    }
}

/// What a step found.
pub(crate) struct Found {
    pub gradients: BTreeMap<String, Vec<f32>>,
    pub statistics: Vec<(String, Statistics)>,
}

impl Program {
    /// Whether images `(n, c, h, w)` have room.
    pub(crate) fn fits(&self, [n, c, h, w]: [usize; 4]) -> bool {
        n <= self.room[0] && [c, h, w] == self.room[1..]
    }

    /// Takes the parameters as they stand.
    ///
    /// # Errors
    /// Those of `parameter`, which gives the numbers of a tensor by name.
    pub(crate) fn load<E: Send>(&mut self, parameter: impl Fn(String) -> Result<Vec<f32>, E> + Sync) -> Result<(), E> {
        let part = |name: &str, part: &str| parameter(format!("{name}.{part}"));
        self.layers.par_iter_mut().try_for_each(|layer| {
            match &mut layer.work {
                Work::Conv(conv) => {
                    let bias = if conv.has_bias { Some(part(&conv.name, "bias")?) } else { None };
                    conv.load(self.isa, &part(&conv.name, "weight")?, bias.as_deref());
                }
                Work::Norm(norm) => {
                    let padded = self.planes[layer.output].padded;
                    norm.load(&part(&norm.name, "weight")?, &part(&norm.name, "bias")?, padded);
                }
                _ => {}
            }
            Ok(())
        })
    }

    /// Logits of `n` images, `(n, classes)`.
    pub(crate) fn logits(&mut self, x: &[f32]) -> Vec<f32> {
        let [_, c, h, w] = self.room;
        let n = x.len() / (c * h * w);
        for phase in self.forward.clone() {
            self.each_group(n, |group, images| {
                for image in images {
                    for index in phase.clone() {
                        // SAFETY: a layer writes its own image's part of its own buffers, once per phase.
                        unsafe { self.forward_image(index, group, image, &x[image * c * h * w..][..c * h * w]) };
                    }
                }
            });
            for index in phase {
                if let Some(norm) = self.layers[index].work.norm() {
                    let plane = self.planes[self.layers[index].output];
                    if let Work::Norm(norm) = &mut self.layers[norm].work {
                        norm.settle(n, plane.pixels(), plane.padded);
                    }
                }
            }
        }
        let last = self.layers[self.layers.len() - 1].output;
        let Plane { channels, padded, .. } = self.planes[last];
        self.values[last].numbers().chunks(padded).take(n).flat_map(|row| row[..channels].to_vec()).collect()
    }

    /// Every gradient, from that of the logits; the images must be the last that [`Program::logits`] saw.
    pub(crate) fn gradients(&mut self, dy: &[f32]) -> Found {
        let last = self.layers.len() - 1;
        let Plane { channels, padded, .. } = self.planes[self.layers[last].output];
        let n = dy.len() / channels;
        let slot = self.slots[self.layers[last].dy].numbers();
        slot.chunks_mut(padded).zip(dy.chunks(channels)).for_each(|(to, dy)| to[..channels].copy_from_slice(dy));
        let mut found = Found { gradients: BTreeMap::new(), statistics: vec![] };
        for phase in self.backward.clone() {
            let groups = self.each_group(n, |group, images| {
                let first = images.start;
                for image in images {
                    for index in phase.clone().rev() {
                        // SAFETY: as in the forward pass, and a buffer is used again only by the same image.
                        unsafe { self.backward_image(index, (group, image == first), image) };
                    }
                }
            });
            for index in phase {
                self.settle_back(index, n, groups, &mut found);
            }
        }
        found
    }

    /// Calls `f(group, its images)`, and answers with the number of groups.
    fn each_group(&self, n: usize, f: impl Fn(usize, Range<usize>) + Sync) -> usize {
        let size = n.div_ceil(PARTS).max(2);
        let groups = n.div_ceil(size);
        (0..groups)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|group| f(group, group * size..((group + 1) * size).min(n)));
        groups
    }

    fn value(&self, node: usize, image: usize) -> View<f32> {
        let node = self.holders[node];
        self.planes[node].view(&self.values[node], image)
    }

    fn gradient(&self, slot: usize, node: usize, image: usize) -> View<f32> {
        self.planes[node].bare().view(&self.slots[slot], image)
    }

    unsafe fn forward_image(&self, index: usize, group: usize, image: usize, x: &[f32]) {
        let layer = &self.layers[index];
        let plane = self.planes[layer.output];
        let to = self.value(layer.output, image);
        let from = |input: usize| self.value(layer.inputs[input], image);
        let (rows, columns, channels) = (plane.height, plane.width, plane.padded);
        unsafe {
            match &layer.work {
                Work::Normalise { mean, scale, standardise } => {
                    for (c, x) in x.chunks(plane.pixels()).enumerate() {
                        for (i, &x) in x.iter().enumerate() {
                            *to.at.add(to.offset(0, i / columns, i % columns) + c) = (x - mean[c]) * scale[c];
                        }
                    }
                    if *standardise {
                        standardised(to, &plane);
                    }
                }
                Work::Conv(conv) => {
                    let bias = if conv.has_bias { conv.bias.as_ptr() } else { std::ptr::null() };
                    let source = self.planes[layer.inputs[0]];
                    self.convolve(
                        group,
                        conv.form,
                        Dense {
                            from: from(0).every(conv.stride, 0, 0),
                            taps: &conv.taps,
                            run: conv.inputs,
                            weights: conv.weights.at(0),
                            blocks: &conv.blocks,
                            images: 1,
                            rows,
                            columns,
                            finish: finish(to, View::NONE, bias),
                        },
                        source.padded,
                    );
                    self.moments(layer, to, image);
                }
                Work::Measure { .. } => self.moments(layer, to, image),
                Work::Norm(norm) => {
                    let (factors, bend) = (norm.forward.at(0).cast_const(), layer.bend);
                    let from = from(0);
                    self.isa.run(&Affine { from, factors, residual: View::NONE, to, bend, rows, columns, channels });
                }
                Work::Add => {
                    let (from, residual, bend) = (from(0), from(1), layer.bend);
                    let factors = std::ptr::null();
                    self.isa.run(&Affine { from, factors, residual, to, bend, rows, columns, channels });
                }
                Work::Subsample { stride, before } => {
                    let (from, count) = (from(0), self.planes[layer.inputs[0]].channels);
                    for y in 0..rows {
                        for x in 0..columns {
                            let source = from.at.add(from.offset(0, y * stride, x * stride));
                            let to = to.at.add(to.offset(0, y, x) + before);
                            std::ptr::copy_nonoverlapping(source, to, count);
                        }
                    }
                }
                Work::KeepLargest { winners, thresholds } => {
                    let from = from(0);
                    let mut numbers = Vec::with_capacity(plane.channels * plane.pixels());
                    each_pixel(&plane, |y, x| {
                        let pixel = std::slice::from_raw_parts(from.at.add(from.offset(0, y, x)), plane.channels);
                        numbers.extend_from_slice(pixel);
                    });
                    let threshold = threshold(&numbers, *winners);
                    *thresholds.at(image) = threshold;
                    each_pixel(&plane, |y, x| {
                        let (from, to) = (from.at.add(from.offset(0, y, x)), to.at.add(to.offset(0, y, x)));
                        for c in 0..channels {
                            let x = *from.add(c);
                            *to.add(c) = if x < threshold { 0.0 } else { x };
                        }
                    });
                }
                Work::AveragePool { kernel, stride, padding } => {
                    let (source, from) = (self.planes[layer.inputs[0]], from(0));
                    let share = 1.0 / (kernel * kernel) as f32;
                    each_pixel(&plane, |y, x| {
                        let to = to.at.add(to.offset(0, y, x));
                        to.write_bytes(0, channels);
                        each_in_window((y, x), (*kernel, *stride, *padding), &source, |y, x| {
                            let from = from.at.add(from.offset(0, y, x));
                            (0..channels).for_each(|c| *to.add(c) += *from.add(c));
                        });
                        (0..channels).for_each(|c| *to.add(c) *= share);
                    });
                }
                Work::Pool => {
                    let (source, from) = (self.planes[layer.inputs[0]], from(0));
                    let mut sums = vec![0.0f64; channels];
                    for i in 0..source.pixels() {
                        let pixel = from.at.add(from.offset(0, i / source.width, i % source.width));
                        sums.iter_mut().enumerate().for_each(|(c, sum)| *sum += f64::from(*pixel.add(c)));
                    }
                    let share = 1.0 / source.pixels() as f64;
                    sums.iter().enumerate().for_each(|(c, sum)| *to.at.add(c) = (sum * share) as f32);
                }
            }
        }
    }

    unsafe fn backward_image(&self, index: usize, group: (usize, bool), image: usize) {
        let layer = &self.layers[index];
        let plane = self.planes[layer.output];
        let (rows, columns, channels) = (plane.height, plane.width, plane.padded);
        if let Work::Normalise { .. } = layer.work {
            return;
        }
        let dy = self.gradient(layer.dy, layer.output, image);
        unsafe {
            match &layer.work {
                Work::Normalise { .. } => {}
                Work::Conv(conv) => self.convolution_back(layer, conv, group, image),
                Work::Measure { norm } => {
                    let (Some(target), Work::Norm(norm)) = (layer.dx[0], &self.layers[*norm].work) else { return };
                    let (mean, factors) = (norm.forward.at(0).cast_const(), norm.backward.at(0).cast_const());
                    let from = self.value(layer.output, image);
                    let (to, add) = (self.gradient(target.slot, layer.inputs[0], image), target.add);
                    self.isa.run(&Unnormalise { dy, from, to, mean, factors, add, rows, columns, channels });
                }
                Work::Norm(norm) => {
                    let (mean, sums) = (norm.forward.at(0).cast_const(), norm.sums.at(image * 2 * channels));
                    let (from, out, bend) =
                        (self.value(layer.inputs[0], image), self.value(layer.output, image), layer.bend);
                    self.isa.run(&Mask { dy, out, bend, from, mean, sums, rows, columns, channels });
                }
                Work::Add => {
                    let (out, bend) = (self.value(layer.output, image), layer.bend);
                    let (mean, sums) = (std::ptr::null(), std::ptr::null_mut());
                    let from = View::NONE;
                    self.isa.run(&Mask { dy, out, bend, from, mean, sums, rows, columns, channels });
                    for (target, &input) in layer.dx.iter().zip(&layer.inputs) {
                        if let Some(target) = target {
                            let to = self.gradient(target.slot, input, image);
                            let residual = if target.add { to } else { View::NONE };
                            let (from, factors, bend) = (dy, std::ptr::null(), Bend::None);
                            self.isa.run(&Affine { from, factors, residual, to, bend, rows, columns, channels });
                        }
                    }
                }
                Work::Subsample { stride, before } => {
                    let Some(target) = layer.dx[0] else { return };
                    let (source, to) =
                        (self.planes[layer.inputs[0]], self.gradient(target.slot, layer.inputs[0], image));
                    if !target.add {
                        to.at.write_bytes(0, source.bare().image());
                    }
                    for y in 0..rows {
                        for x in 0..columns {
                            let dy = dy.at.add(dy.offset(0, y, x) + before);
                            let to = to.at.add(to.offset(0, y * stride, x * stride));
                            (0..source.channels).for_each(|c| *to.add(c) += *dy.add(c));
                        }
                    }
                }
                Work::KeepLargest { thresholds, .. } => {
                    let (threshold, from) = (*thresholds.at(image), self.value(layer.inputs[0], image));
                    // In place, unless the input's gradient has a buffer already.
                    let target = layer.dx[0];
                    let to = target.map_or(dy, |target| self.gradient(target.slot, layer.inputs[0], image));
                    each_pixel(&plane, |y, x| {
                        let (from, dy) = (from.at.add(from.offset(0, y, x)), dy.at.add(dy.offset(0, y, x)));
                        let to = to.at.add(to.offset(0, y, x));
                        for c in 0..channels {
                            let before = if target.is_some_and(|target| target.add) { *to.add(c) } else { 0.0 };
                            *to.add(c) = if *from.add(c) < threshold { before } else { before + *dy.add(c) };
                        }
                    });
                }
                Work::AveragePool { kernel, stride, padding } => {
                    let Some(target) = layer.dx[0] else { return };
                    let (source, to) =
                        (self.planes[layer.inputs[0]], self.gradient(target.slot, layer.inputs[0], image));
                    if !target.add {
                        to.at.write_bytes(0, source.bare().image());
                    }
                    let share = 1.0 / (kernel * kernel) as f32;
                    each_pixel(&plane, |y, x| {
                        let dy = dy.at.add(dy.offset(0, y, x));
                        each_in_window((y, x), (*kernel, *stride, *padding), &source, |y, x| {
                            let to = to.at.add(to.offset(0, y, x));
                            (0..channels).for_each(|c| *to.add(c) += *dy.add(c) * share);
                        });
                    });
                }
                Work::Pool => {
                    let Some(target) = layer.dx[0] else { return };
                    let (source, to) =
                        (self.planes[layer.inputs[0]], self.gradient(target.slot, layer.inputs[0], image));
                    let share = 1.0 / source.pixels() as f32;
                    for i in 0..source.pixels() {
                        for c in 0..channels {
                            let (to, dy) = (to.at.add(i * channels + c), *dy.at.add(c) * share);
                            *to = if target.add { *to + dy } else { dy };
                        }
                    }
                }
            }
        }
    }

    /// The moments of a layer's output, if a normalisation asks for them.
    unsafe fn moments(&self, layer: &Layer, from: View<f32>, image: usize) {
        if let Some(Work::Norm(norm)) = layer.work.norm().map(|norm| &self.layers[norm].work) {
            let plane = self.planes[layer.output];
            let (pixels, channels) = (plane.pixels(), plane.padded);
            let to = norm.moments.at(image * 2 * channels);
            unsafe { self.isa.run(&Moments { from: from.at, pixels, channels, to }) };
        }
    }

    /// The gradients of a convolution; of the group it is told the number, and whether this is its first image.
    unsafe fn convolution_back(&self, layer: &Layer, conv: &Convolution, (group, first): (usize, bool), image: usize) {
        let (isa, plane) = (self.isa, self.planes[layer.output]);
        let (rows, columns, channels) = (plane.height, plane.width, plane.padded);
        let dy = self.gradient(layer.dy, layer.output, image);
        let at = self.scratch.0.at(group * self.scratch.1);
        unsafe {
            clear_border(at, &conv.dy);
            let to = View {
                at: at.add(conv.dy.border * (conv.dy.row() + channels)),
                image: 0,
                row: conv.dy.row(),
                pixel: channels,
            };
            match conv.norm.map(|norm| &self.layers[norm].work) {
                Some(Work::Norm(norm)) => {
                    let (mean, factors) = (norm.forward.at(0).cast_const(), norm.backward.at(0).cast_const());
                    let from = self.value(layer.output, image);
                    isa.run(&Unnormalise { dy, from, to, mean, factors, add: false, rows, columns, channels });
                }
                _ => {
                    let (factors, residual, bend) = (std::ptr::null(), View::NONE, Bend::None);
                    isa.run(&Affine { from: dy, factors, residual, to, bend, rows, columns, channels });
                }
            }
            let dy = to;
            let x = self.value(layer.inputs[0], image).every(conv.stride, 0, 0);
            let part = self.parts.0.at(group * self.parts.1 + conv.part);
            let (taps, inputs, outputs) = (&conv.taps[..], conv.inputs, channels);
            isa.run(&WeightGradient { x, taps, inputs, dy, outputs, rows, columns, to: part, add: !first });
            if conv.has_bias {
                let to = part.add(taps.len() * inputs * outputs);
                if first {
                    to.write_bytes(0, channels);
                }
                for i in 0..plane.pixels() {
                    let dy = dy.at.add(dy.offset(0, i / columns, i % columns));
                    (0..channels).for_each(|c| *to.add(c) += *dy.add(c));
                }
            }
            let Some(target) = layer.dx[0] else { return };
            let dx = self.gradient(target.slot, layer.inputs[0], image);
            for back in &conv.back {
                let to = dx.every(conv.stride, back.y, back.x);
                self.convolve(
                    group,
                    back.form,
                    Dense {
                        from: dy,
                        taps: &back.taps,
                        run: conv.outputs,
                        weights: back.weights.at(0),
                        blocks: &conv.back_blocks,
                        images: 1,
                        rows: back.rows,
                        columns: back.columns,
                        finish: finish(to, if target.add { to } else { View::NONE }, std::ptr::null()),
                    },
                    channels,
                );
            }
        }
    }

    /// Does a convolution, of an input with `padded` channels, in its form.
    unsafe fn convolve(&self, group: usize, form: Form, job: Dense<'_>, padded: usize) {
        let Form::Winograd(chunk) = form else { return unsafe { self.isa.run(&job) } };
        // The first of a tile's inputs is under the lowest tap.
        let first = job.taps.iter().copied().min().unwrap_or(0);
        let Dense { from, run, weights, blocks, images, rows, columns, finish, .. } = job;
        let scratch = self.tiles.0.at(group * self.tiles.1);
        let from = View { at: from.at.wrapping_offset(first), ..from };
        let (depth, depth_padded) = (run, padded);
        unsafe {
            self.isa.run(&Winograd {
                from,
                depth,
                depth_padded,
                weights,
                blocks,
                images,
                rows,
                columns,
                finish,
                scratch,
                chunk,
            });
        }
    }

    /// What follows from all images of a phase together.
    fn settle_back(&mut self, index: usize, n: usize, groups: usize, found: &mut Found) {
        let layer = &mut self.layers[index];
        let padded = self.planes[layer.output].padded;
        match &mut layer.work {
            Work::Norm(norm) => {
                let [dgamma, dbeta] = norm.settle_back(n, padded);
                found.gradients.insert(format!("{}.weight", norm.name), dgamma);
                found.gradients.insert(format!("{}.bias", norm.name), dbeta);
                found.statistics.push((norm.name.clone(), norm.statistics.clone()));
            }
            Work::Conv(conv) => {
                let (parts, size) = (self.parts.0.numbers(), self.parts.1);
                let (inputs, outputs, area) = (conv.inputs, conv.outputs, conv.taps.len());
                // The groups' sums, of some output channels.
                let sum = |row: usize, first: usize, sums: &mut [f32]| {
                    sums.fill(0.0);
                    for group in 0..groups {
                        let part = &parts[group * size + conv.part + row * padded + first..][..sums.len()];
                        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                    }
                };
                let mut dw = vec![0.0; outputs * inputs * area];
                dw.par_chunks_mut(COLUMNS * inputs * area).enumerate().for_each(|(chunk, dw)| {
                    let mut sums = [0.0; COLUMNS];
                    let sums = &mut sums[..dw.len() / (inputs * area)];
                    for row in 0..area * inputs {
                        sum(row, chunk * COLUMNS, sums);
                        let to = row % inputs * area + row / inputs;
                        dw[to..].iter_mut().step_by(inputs * area).zip(&*sums).for_each(|(dw, sum)| *dw = *sum);
                    }
                });
                found.gradients.insert(format!("{}.weight", conv.name), dw);
                if conv.has_bias {
                    let mut db = vec![0.0; outputs];
                    sum(area * inputs, 0, &mut db);
                    found.gradients.insert(format!("{}.bias", conv.name), db);
                }
            }
            _ => {}
        }
    }
}

/// Writes the zeros around an image.
unsafe fn clear_border(at: *mut f32, plane: &Plane) {
    let side = plane.border * plane.padded;
    let rows = plane.height + 2 * plane.border;
    for y in 0..rows {
        let row = at.wrapping_add(y * plane.row());
        unsafe {
            if y < plane.border || y >= rows - plane.border {
                row.write_bytes(0, plane.row());
            } else {
                row.write_bytes(0, side);
                row.add(plane.row() - side).write_bytes(0, side);
            }
        }
    }
}

fn finish(to: View<f32>, residual: View<f32>, bias: *const f32) -> Finish {
    Finish { to, residual, mask: View::NONE, bias, end: End::Linear }
}

/// Calls `f` with every row and column.
fn each_pixel(plane: &Plane, mut f: impl FnMut(usize, usize)) {
    (0..plane.height).for_each(|y| (0..plane.width).for_each(|x| f(y, x)));
}

/// Calls `f` with every row and column of `source` in the window of output pixel `(y, x)`.
fn each_in_window(
    (y, x): (usize, usize),
    (kernel, stride, padding): (usize, usize, usize),
    source: &Plane,
    mut f: impl FnMut(usize, usize),
) {
    let span = |o: usize, size: usize| {
        (o * stride).saturating_sub(padding)..(o * stride + kernel).saturating_sub(padding).min(size)
    };
    span(y, source.height).for_each(|y| span(x, source.width).for_each(|x| f(y, x)));
}

/// Standardises the numbers of one image, all channels together.
unsafe fn standardised(image: View<f32>, plane: &Plane) {
    let pixel = |y: usize, x: usize| {
        // SAFETY: a pixel of the image, which nothing else reads or writes.
        unsafe { std::slice::from_raw_parts_mut(image.at.add(image.offset(0, y, x)), plane.channels) }
    };
    let mut numbers = Vec::with_capacity(plane.channels * plane.pixels());
    each_pixel(plane, |y, x| numbers.extend_from_slice(pixel(y, x)));
    let (mean, divisor, _) = spread(&numbers);
    let (mean, scale) = (mean as f32, (1.0 / divisor) as f32);
    each_pixel(plane, |y, x| pixel(y, x).iter_mut().for_each(|value| *value = (*value - mean) * scale));
}

fn bend(activation: Activation) -> Bend {
    match activation {
        Activation::None => Bend::None,
        Activation::Relu => Bend::Clamp(f32::INFINITY),
        Activation::Relu6 => Bend::Clamp(6.0),
        Activation::LeakyRelu { slope } => Bend::Leak(slope as f32),
    }
}
