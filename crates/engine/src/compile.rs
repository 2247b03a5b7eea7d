//! From fused steps to stages over memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use candle_core::{Result, bail};

use crate::kernels::map::Window;
use crate::kernels::{largest, prune, stem, winograd};
use crate::lower::{Act, Filter, Kind, Network, Step};
use crate::memory::{Border, Floats, Layout, Slots};
use crate::passes::{Algorithm, Draft, Form, Pass, Sweep, backward_sweeps, form, forward_sweep};
use crate::places::{Back, Place, Segment, backward, backward_places, forward_places, segments};
use simd::Isa;

/// A value's shape and place.
pub(crate) struct Value {
    pub channels: usize,
    pub rows: usize,
    pub columns: usize,
    /// Of the NHWC buffer; for value 0, of one plane of the image.
    pub layout: Layout,
    /// The non-linearity that made it.
    pub act: Act,
    /// Where its mask is in an image's state, if it has a non-linearity.
    pub mask: Option<usize>,
    /// Its place in the forward pass.
    pub place: Place,
}

/// A gradient's place.
pub(crate) struct Gradient {
    pub layout: Layout,
    pub place: Place,
}

pub(crate) enum Work {
    Convolution { forward: Pass, bias: Floats, backward: Vec<Pass> },
    MaxPool { window: Window, winners: usize },
    Subsample { stride: usize, before: usize },
    GlobalPool,
    AdaptivePool { side: usize },
    Prune { samples: f64, index: u64, record: Record },
    Concat,
    Identity,
}

/// Where in an image's state is what pruning leaves for the backward pass.
#[derive(Clone, Copy)]
pub(crate) struct Record {
    pub values: usize,
    pub mask: usize,
    pub sum: usize,
}

/// Where in an image's state is what standardisation leaves for the backward pass: the standardised image, and one over
/// what it was divided by.
#[derive(Clone, Copy)]
pub(crate) struct Standard {
    pub values: usize,
    pub inverse: usize,
}

/// A fused step, ready to run.
pub(crate) struct Stage {
    pub work: Work,
    pub input: usize,
    /// More inputs, of a concatenation.
    pub others: Vec<usize>,
    pub residual: Option<usize>,
    pub output: usize,
}

/// A network compiled for images of one size.
pub(crate) struct Compiled {
    pub isa: Isa,
    pub channels: usize,
    pub mean: Vec<f32>,
    pub inverse_std: Vec<f32>,
    /// If images are standardised.
    pub standard: Option<Standard>,
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
                    bail!("node {}: a layer for {inputs} channels is given {c}", step.first);
                }
                let p = f.padding([h, w]);
                [
                    f.outputs,
                    output_size(h, p.top + p.bottom, f.kernel[0], f.stride)?,
                    output_size(w, p.left + p.right, f.kernel[1], f.stride)?,
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
            &Kind::AdaptivePool { side } if side * h * w > 0 => [c, side, side],
            Kind::AdaptivePool { side } => bail!("no pool makes {side}x{side} pixels of {h}x{w}"),
            Kind::Concat => {
                let parts = || step.inputs().map(|value| shapes[value]);
                if let Some([_, rows, columns]) = parts().find(|shape| shape[1..] != [h, w]) {
                    bail!("node {}: images of {rows} by {columns} pixels beside such of {h} by {w}", step.first);
                }
                [parts().map(|shape| shape[0]).sum(), h, w]
            }
            Kind::Prune { .. } | Kind::Identity => [c, h, w],
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
            let [to, from] = [step.output, step.input].map(|value| [self.shapes[value][1], self.shapes[value][2]]);
            let form = |filter: &Filter, size| form(filter, filter.padding(from), size);
            let (filter, forward, backward) = match &step.kind {
                Kind::Dense(filter) if step.input == 0 => (filter, Form::Dense, Form::Stem),
                Kind::Dense(filter) if self.network.direct => (filter, Form::Dense, Form::Dense),
                Kind::Dense(filter) => (filter, form(filter, to), form(filter, from)),
                Kind::Depthwise(filter) => (filter, Form::Depthwise, Form::Depthwise),
                _ => {
                    self.drafts.push(None);
                    continue;
                }
            };
            let draft = |form: Form| move |sweep: Sweep| Draft { sweep, form };
            let padding = filter.padding(from);
            let backward = backward_sweeps(filter, padding, from).into_iter().map(draft(backward)).collect();
            self.drafts.push(Some((draft(forward)(forward_sweep(filter, padding, to)), backward)));
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

    /// Packs a pass for this instruction set.
    fn pack(
        &self,
        draft: Draft,
        source: &Layout,
        channels: [usize; 2],
        weight: impl Fn(usize, usize, usize, usize) -> f64,
    ) -> Pass {
        draft.pack(self.isa, source, channels, weight)
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
        let forward = self.pack(forward, &self.layouts[step.input], [inputs, filter.outputs], weight);
        let source = match step.input {
            0 => self.planes(step.output),
            _ => self.layouts[step.output],
        };
        let backward = backward.into_iter().map(|draft| match step.input {
            // Where images are standardised too, that is left for afterwards.
            0 if !self.network.standardise => {
                let std = &self.network.std;
                self.pack(draft, &source, [filter.outputs, inputs], |o, i, y, x| weight(i, o, y, x) / std[i])
            }
            _ => self.pack(draft, &source, [filter.outputs, inputs], |o, i, y, x| weight(i, o, y, x)),
        });
        let mut bias = Floats::zeros(self.layouts[step.output].channels);
        bias.as_mut().iter_mut().zip(&filter.bias).for_each(|(to, from)| *to = *from as f32);
        Work::Convolution { forward, backward: backward.collect(), bias }
    }

    fn work(&self, drafts: Vec<Option<(Draft, Vec<Draft>)>>, state: &State) -> Vec<Work> {
        let drafts: Vec<_> = drafts.into_iter().map(Mutex::new).collect();
        share_out(self.network.steps.len(), |stage| {
            let step = &self.network.steps[stage];
            let drafts = drafts[stage].lock().unwrap_or_else(PoisonError::into_inner).take();
            match (&step.kind, drafts) {
                (Kind::Dense(filter) | Kind::Depthwise(filter), Some(drafts)) => self.convolution(step, filter, drafts),
                (&Kind::MaxPool { kernel, stride, padding }, _) => {
                    Work::MaxPool { window: Window { kernel, stride, padding }, winners: state.winners[stage] }
                }
                (&Kind::Subsample { stride, before, .. }, _) => Work::Subsample { stride, before },
                (Kind::GlobalPool, _) => Work::GlobalPool,
                (&Kind::AdaptivePool { side }, _) => Work::AdaptivePool { side },
                (&Kind::Prune { samples, index }, _) => Work::Prune { samples, index, record: state.records[stage] },
                (Kind::Concat, _) => Work::Concat,
                _ => Work::Identity,
            }
        })
    }

    /// What the backward pass needs to know: a bit a channel of every pixel with a non-linearity, a byte of one that a
    /// max-pool made, and where values are pruned, they themselves.
    fn state(&self, acts: &[Act]) -> State {
        let mut bytes = 0;
        let mut keep = |bits: usize| {
            let at = bytes;
            bytes += bits.div_ceil(8).next_multiple_of(64);
            at
        };
        let volume =
            |value: usize| self.layouts[value].rows * self.layouts[value].columns * self.layouts[value].channels;
        let masks = (0..acts.len()).map(|value| (acts[value] != Act::None).then(|| keep(volume(value)))).collect();
        let winners = self.network.steps.iter().map(|step| match step.kind {
            Kind::MaxPool { .. } => keep(8 * volume(step.output)),
            _ => 0,
        });
        let winners = winners.collect();
        let records = self.network.steps.iter().map(|step| match step.kind {
            Kind::Prune { .. } => {
                let volume = volume(step.output);
                Record { values: keep(32 * volume), mask: keep(volume), sum: keep(64) }
            }
            _ => Record { values: 0, mask: 0, sum: 0 },
        });
        let records = records.collect();
        let standard = self
            .network
            .standardise
            .then(|| Standard { values: keep(32 * self.shapes[0].iter().product::<usize>()), inverse: keep(64) });
        // Never nothing, so that there is a part of it for each image.
        State { masks, winners, records, standard, bytes: bytes.max(1) }
    }

    /// Floats of scratch for the kernel that needs most.
    fn scratch(&self, work: &[Work]) -> usize {
        let pass = |step: &Step, pass: &Pass| match &pass.kernel {
            Algorithm::Winograd { depth_padded, blocks, chunk, .. } => {
                winograd::scratch(*chunk, *depth_padded, blocks.iter().sum::<usize>() * self.isa.lanes())
            }
            Algorithm::Stem { depth } => depth * self.planes(step.output).image() + stem::BEYOND,
            _ => 0,
        };
        let stage = |(step, work): (&Step, &Work)| {
            let work = match work {
                Work::Convolution { forward, backward, .. } => {
                    backward.iter().map(|back| pass(step, back)).fold(pass(step, forward), usize::max)
                }
                Work::Prune { .. } => {
                    let Layout { rows, columns, channels, .. } = self.layouts[step.output];
                    prune::scratch(rows * columns, channels)
                }
                _ => 0,
            };
            match step.act {
                Act::KeepLargest { .. } => work.max(largest::scratch(self.shapes[step.output].iter().product())),
                _ => work,
            }
        };
        let image = if self.network.standardise { self.shapes[0].iter().product() } else { 0 };
        self.network.steps.iter().zip(work).map(stage).fold(image, usize::max)
    }
}

/// What is kept of an image between the passes, in bytes.
struct State {
    /// Where each value's mask is, if it has one.
    masks: Vec<Option<usize>>,
    /// Where each max-pool's winners are.
    winners: Vec<usize>,
    /// Where each pruning's records are.
    records: Vec<Record>,
    standard: Option<Standard>,
    bytes: usize,
}

/// `work` of every number below `count`, on as many threads as rayon has, but not rayon's own: a thread of rayon's that
/// waits may take up a query, and that would wait for this very compilation.
fn share_out<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    std::thread::scope(|scope| {
        for _ in 0..rayon::current_num_threads().min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let result = work(index);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
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
    let state = compiler.state(&acts);
    let work = compiler.work(drafts, &state);

    let channels: Vec<_> = compiler.shapes.iter().map(|shape| shape[0]).collect();
    let (backs, gradient_values) = backward(&network.steps, &acts, &channels);
    let segments = segments(network, &compiler.layouts, &work, &backs);
    let mut slots = Slots::default();
    let values = forward_places(network, &compiler.layouts, &segments, &mut slots);
    let gradients = backward_places(&backs, &gradient_values, &compiler.layouts, &segments, &mut slots);
    let (offsets, image) = slots.place();

    let planes = network.mean.len() * compiler.layouts[0].image() * segments[values[0].home].group;
    let scratch = image + planes.next_multiple_of(16);
    let arena = scratch + compiler.scratch(&work);
    let values = values.into_iter().enumerate().map(|(value, place)| {
        let [channels, rows, columns] = compiler.shapes[value];
        let (layout, act, mask) = (compiler.layouts[value], acts[value], state.masks[value]);
        Value { channels, rows, columns, layout, act, mask, place }
    });
    let gradients = gradient_values
        .iter()
        .zip(gradients)
        .map(|(&value, place)| Gradient { layout: compiler.layouts[value], place });
    let stages = network.steps.iter().zip(work).map(|(step, work)| Stage {
        work,
        input: step.input,
        others: step.others.clone(),
        residual: step.residual,
        output: step.output,
    });
    Ok(Compiled {
        isa,
        channels: network.mean.len(),
        mean: network.mean.iter().map(|&m| m as f32).collect(),
        inverse_std: network.std.iter().map(|&s| (1.0 / s) as f32).collect(),
        standard: state.standard,
        classes: network.classes,
        values: values.collect(),
        stages: stages.collect(),
        backs,
        gradients: gradients.collect(),
        slots: offsets,
        segments,
        image,
        scratch,
        arena,
        stem: compiler.stem,
        state: state.bytes,
    })
}
