//! From a fused network to the launches that compute it, for one number of images of one size.

use candle_core::{DType, Result, bail};
use gpu::{Convolutions, Geometry, Order, Precision, Prepared, Problem, Wanted};
use nets::Padding;

use super::{
    Constants, Settings,
    arena::{Arena, Block},
    layer::{Layer, NOWHERE, PARTS, RANK_WORDS, RANKS, RUN, SUMS},
};
use crate::lower::{Act, Filter, Kind, Network, Step};

/// What a sequence of launches is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ask {
    /// Images.
    pub n: usize,
    /// Rows and columns of pixels.
    pub size: [usize; 2],
    /// Whether a backward pass follows.
    pub gradient: bool,
}

/// A launch.
#[derive(Debug)]
pub enum Task {
    /// Of a kernel of layers.cu, for f32 or else bf16.
    Kernel { name: &'static str, wide: bool, threads: usize, layer: Layer },
    /// Of a convolution; the operands and the result.
    Convolution { op: Prepared, operands: [Operand; 2], out: u64 },
}

/// Where an operand of a convolution is.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    Arena(u64),
    Weights(u64),
}

/// All launches of a query, and offsets in the arena of what goes in and out.
#[derive(Debug, Default)]
pub struct Built {
    /// Takes the image: the `x` of its first launch.
    pub enter: Vec<Task>,
    pub forward: Vec<Task>,
    pub backward: Vec<Task>,
    /// Gives the image's gradient: the `out` of its last launch; none if no gradient reaches the image.
    pub leave: Vec<Task>,
    /// `(n, classes)`, f32.
    pub logits: u64,
    /// The gradient there, f32.
    pub upstream: u64,
    /// Keys' words, `(prunings, n, 4)`.
    pub words: u64,
    /// Where the workspace of the convolutions begins.
    pub workspace: u64,
    /// Of the whole arena.
    pub bytes: u64,
}

/// A value or a gradient of one.
#[derive(Clone, Copy, Debug)]
struct Held {
    block: Block,
    /// f32, whatever the network's numbers are.
    wide: bool,
}

/// What the backward pass of a step needs to know.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    bits: Option<Block>,
    winners: Option<Block>,
    sums: Option<Block>,
    input: Option<Held>,
}

struct Builder<'a> {
    network: &'a Network,
    constants: &'a Constants,
    settings: Settings,
    /// Without it nothing is prepared, and only the arena is laid out.
    convolutions: Option<&'a Convolutions>,
    ask: Ask,
    arena: Arena,
    tasks: Vec<Task>,
    shapes: Vec<[usize; 3]>,
    values: Vec<Option<Held>>,
    gradients: Vec<Option<Held>>,
    memories: Vec<Memory>,
    words: Option<Block>,
    workspace: usize,
}

/// Channels of the image as the first convolution reads it: matrix units read several numbers at a time.
fn padded(channels: usize, settings: Settings) -> usize {
    match (settings.order, settings.precision) {
        (Order::Nchw, _) => channels,
        (Order::Nhwc, Precision::Bf16) => channels.next_multiple_of(8),
        (Order::Nhwc, _) => channels.next_multiple_of(4),
    }
}

/// The weights of a step's dense convolution in the order of the tensors, and how many input channels they have.
pub fn pack(filter: &Filter, inputs: usize, order: Order) -> Vec<f32> {
    let [rows, columns] = filter.kernel;
    let mut packed = Vec::with_capacity(filter.outputs * rows * columns * inputs);
    let at = |o, i, y, x| if i < filter.inputs { filter.at(o, i, y, x) as f32 } else { 0.0 };
    for o in 0..filter.outputs {
        match order {
            Order::Nchw => {
                for (i, (y, x)) in (0..inputs).flat_map(|i| places(rows, columns).map(move |place| (i, place))) {
                    packed.push(at(o, i, y, x));
                }
            }
            Order::Nhwc => {
                for ((y, x), i) in places(rows, columns).flat_map(|place| (0..inputs).map(move |i| (place, i))) {
                    packed.push(at(o, i, y, x));
                }
            }
        }
    }
    packed
}

fn places(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)))
}

/// The input channels of a step's convolution, as its weights are packed.
pub fn inputs(network: &Network, step: &Step, filter: &Filter, settings: Settings) -> usize {
    if step.input == 0 { padded(network.mean.len(), settings) } else { filter.inputs }
}

/// Whether a step is computed in f32 whatever the network's numbers are: the layer that makes the logits.
pub fn is_wide(network: &Network, step: &Step) -> bool {
    let plain = step.residual.is_none() && step.act == Act::None && step.input != 0;
    step.output == network.steps.len() && plain && matches!(step.kind, Kind::Dense(_))
}

/// Every launch of a query.
///
/// # Errors
/// If images of this size do not fit the network, or cuDNN cannot do a convolution.
pub fn build(
    network: &Network,
    constants: &Constants,
    settings: Settings,
    convolutions: Option<&Convolutions>,
    ask: Ask,
) -> Result<Built> {
    let values = network.steps.len() + 1;
    let image = [padded(network.mean.len(), settings), ask.size[0], ask.size[1]];
    let mut builder = Builder {
        network,
        constants,
        settings,
        convolutions,
        ask,
        arena: Arena::default(),
        tasks: Vec::new(),
        shapes: vec![image; values],
        values: vec![None; values],
        gradients: vec![None; values],
        memories: vec![Memory::default(); values],
        words: None,
        workspace: 0,
    };
    builder.all()
}

impl Builder<'_> {
    fn all(&mut self) -> Result<Built> {
        let mut built = Built { words: NOWHERE, upstream: NOWHERE, ..Built::default() };
        let prunings = self.network.steps.iter().filter(|step| matches!(step.kind, Kind::Prune { .. })).count();
        if prunings > 0 {
            let words = self.arena.take((prunings * self.ask.n * 16) as u64);
            self.words = Some(words);
            built.words = self.arena.offset(words);
        }
        let standard = self.enter();
        built.enter = std::mem::take(&mut self.tasks);
        let logits = self.forward()?;
        built.logits = self.arena.offset(logits);
        built.forward = std::mem::take(&mut self.tasks);
        if self.ask.gradient {
            let upstream = self.backward()?;
            built.upstream = self.arena.offset(upstream);
            built.backward = std::mem::take(&mut self.tasks);
            self.leave(standard);
            built.leave = std::mem::take(&mut self.tasks);
        }
        built.workspace = self.arena.bytes();
        built.bytes = built.workspace + self.workspace as u64;
        Ok(built)
    }

    /// The numbers of all images of a shape.
    fn count(&self, shape: [usize; 3]) -> usize {
        self.ask.n * shape.iter().product::<usize>()
    }

    fn take(&mut self, shape: [usize; 3], wide: bool) -> Held {
        let size = if wide || self.settings.precision != Precision::Bf16 { 4 } else { 2 };
        Held { block: self.arena.take((self.count(shape) * size) as u64), wide }
    }

    fn at(&self, held: Held) -> u64 {
        self.arena.offset(held.block)
    }

    fn layer(&self) -> Layer {
        Layer { nhwc: u32::from(self.settings.order == Order::Nhwc), ..Layer::default() }
    }

    fn launch(&mut self, name: &'static str, wide: bool, threads: usize, layer: Layer) {
        let wide = wide || self.settings.precision != Precision::Bf16;
        self.tasks.push(Task::Kernel { name, wide, threads, layer });
    }

    /// A launch over runs of all numbers of a shape.
    fn launch_runs(&mut self, name: &'static str, wide: bool, shape: [usize; 3], layer: Layer) {
        let count = self.count(shape);
        self.launch(name, wide, count.div_ceil(RUN), Layer { count: count as u64, ..layer.to(shape) });
    }

    /// Sums over images: of a part by each thread, and of the parts by one.
    fn sum(&mut self, parts: &'static str, total: &'static str, layer: Layer) {
        self.launch(parts, false, self.ask.n * PARTS, layer);
        self.launch(total, false, self.ask.n, layer);
    }

    fn sums(&mut self) -> Block {
        self.arena.take((self.ask.n * SUMS * size_of::<f64>()) as u64)
    }

    fn planes(&self) -> [usize; 3] {
        [self.network.mean.len(), self.ask.size[0], self.ask.size[1]]
    }

    /// The image, normalised, in the network's order and numbers; where it is standardised, what that leaves behind.
    fn enter(&mut self) -> Option<(Held, Block)> {
        let (planes, image) = (self.planes(), self.shapes[0]);
        let Constants { mean, scale, .. } = *self.constants;
        let entered = self.take(image, false);
        let layer = Layer { out: self.at(entered), before: planes[0] as u32, ..self.layer() }.to(image);
        self.values[0] = Some(entered);
        if !self.network.standardise {
            self.launch("enter", false, self.count(image), Layer { weight: scale, bias: mean, ..layer });
            return None;
        }
        let (values, sums) = (self.take(planes, true), self.sums());
        let own = Layer { sums: self.arena.offset(sums), x: self.at(values), out: self.at(values), ..self.layer() };
        let own = own.from(planes);
        let count = self.count(planes);
        self.launch("normalise", true, count, Layer { x: NOWHERE, weight: scale, bias: mean, ..own });
        self.sum("sum_parts", "mean_total", own);
        self.sum("square_parts", "inverse_total", own);
        self.launch("standardise", true, count, own);
        self.launch("enter", false, self.count(image), Layer { x: self.at(values), ..layer });
        Some((values, sums))
    }

    fn leave(&mut self, standard: Option<(Held, Block)>) {
        let Some(gradient) = self.gradients[0] else { return };
        let (planes, count) = (self.planes(), self.count(self.planes()));
        let scale = self.constants.scale;
        let layer = Layer { x: self.at(gradient), before: planes[0] as u32, ..self.layer() }.from(self.shapes[0]);
        let Some((values, sums)) = standard else {
            return self.launch("leave", false, count, Layer { weight: scale, ..layer });
        };
        let standardised = self.take(planes, true);
        let at = self.at(standardised);
        self.launch("leave", false, count, Layer { out: at, ..layer });
        let (y, sums) = (self.at(values), self.arena.offset(sums));
        let own = Layer { x: at, y, sums, weight: scale, ..self.layer() }.from(planes);
        self.sum("standardise_back_parts", "standardise_back_total", own);
        self.launch("standardise_back", true, count, own);
    }

    /// The logits' block.
    fn forward(&mut self) -> Result<Block> {
        let mut readers = vec![0; self.values.len()];
        self.network.steps.iter().flat_map(Step::reads).for_each(|value| readers[value] += 1);
        let steps = &self.network.steps;
        for (index, step) in steps.iter().enumerate() {
            self.step(index, step)?;
            for value in step.reads() {
                readers[value] -= 1;
                if readers[value] == 0
                    && let Some(held) = self.values[value].take()
                {
                    self.arena.release(held.block);
                }
            }
        }
        let (last, shape) = (self.value(steps.len())?, self.shapes[steps.len()]);
        if shape != [self.network.classes, 1, 1] {
            bail!("images of {:?} pixels give logits of the shape {shape:?}", self.ask.size)
        }
        let logits = self.take(shape, true);
        let layer = Layer { x: self.at(last), out: self.at(logits), ..self.layer() };
        self.launch("widen", last.wide, self.count(shape), layer);
        Ok(logits.block)
    }

    fn value(&self, value: usize) -> Result<Held> {
        match self.values[value] {
            Some(held) => Ok(held),
            None => bail!("value {value} is read after it is gone"),
        }
    }

    fn step(&mut self, index: usize, step: &Step) -> Result<()> {
        let (input, from) = (self.value(step.input)?, self.shapes[step.input]);
        let to = self.after(step)?;
        if self.count(to).max(self.count(from)) > u32::MAX as usize {
            // A smaller batch is what helps.
            bail!("out of memory: {} images are more than kernels count", self.ask.n)
        }
        self.shapes[step.output] = to;
        let wide = is_wide(self.network, step);
        let out = self.take(to, wide);
        self.values[step.output] = Some(out);
        let base = Layer { x: self.at(input), out: self.at(out), ..self.layer() }.from(from).to(to);
        // What is to be finished: the result so far, or the input itself.
        let mut unfinished = out;
        match &step.kind {
            Kind::Dense(filter) => self.dense(index, step, filter, input, out)?,
            Kind::Depthwise(filter) => {
                let layer = Layer { weight: self.constants.weights[index], ..windows(base, filter, from) };
                self.launch("depthwise", false, self.count(to), layer);
            }
            &Kind::MaxPool { kernel, stride, padding } => {
                let winners = self.ask.gradient.then(|| self.arena.take(self.count(to) as u64));
                self.memories[step.output].winners = winners;
                let bits = winners.map_or(NOWHERE, |winners| self.arena.offset(winners));
                let layer = Layer { bits, ..square(base, kernel, stride, padding) };
                self.launch("max_pool", false, self.count(to), layer);
            }
            &Kind::Subsample { stride, before, .. } => {
                let layer = Layer { stride: stride as u32, before: before as u32, ..base };
                self.launch("spread", false, self.count(to), layer);
            }
            Kind::GlobalPool => self.launch("global_pool", false, self.ask.n * from[0], base),
            Kind::AdaptivePool { .. } => self.launch("adaptive_pool", false, self.count(to), base),
            &Kind::Prune { samples, .. } => self.prune(index, step, Layer { samples, ..base })?,
            Kind::Concat => self.concat(step, out)?,
            Kind::Identity => unfinished = input,
        }
        self.finish(index, step, unfinished, out)
    }

    /// Bias, residual, activation.
    fn finish(&mut self, index: usize, step: &Step, from: Held, to: Held) -> Result<()> {
        let shape = self.shapes[step.output];
        let residual = step.residual.map(|value| self.value(value)).transpose()?;
        let (act, slope) = match step.act {
            Act::None | Act::KeepLargest { .. } => (0, 0.0),
            Act::Relu => (1, 0.0),
            Act::Relu6 => (2, 0.0),
            Act::LeakyRelu { slope } => (3, slope),
        };
        let bias = self.constants.biases[index];
        let bits = if step.act == Act::None || !self.ask.gradient {
            NOWHERE
        } else {
            let bits = self.arena.take(self.count(shape).div_ceil(RUN) as u64);
            self.memories[step.output].bits = Some(bits);
            self.arena.offset(bits)
        };
        let y = residual.map_or(NOWHERE, |residual| self.at(residual));
        let layer = Layer { x: self.at(from), y, out: self.at(to), bias, act, slope, ..self.layer() };
        if act != 0 || bias != 0 || residual.is_some() || from.block != to.block {
            let bits = if act == 0 { NOWHERE } else { bits };
            self.launch_runs("finish", to.wide, shape, Layer { bits, ..layer });
        }
        if let Act::KeepLargest { share } = step.act {
            self.keep_largest(share, shape, Layer { x: self.at(to), bits, ..layer });
        }
        Ok(())
    }

    fn keep_largest(&mut self, share: f64, shape: [usize; 3], layer: Layer) {
        let volume = shape.iter().product::<usize>();
        let keep = ((share * volume as f64) as usize).clamp(1, volume) as u32;
        let ranks = self.arena.take((self.ask.n * RANKS * size_of::<f64>()) as u64);
        let layer = Layer { keep, sums: self.arena.offset(ranks), ..layer }.from(shape);
        self.launch("clear_ranks", false, self.ask.n * RANK_WORDS, layer);
        for before in [24, 16, 8, 0] {
            self.launch("count_ranks", false, self.count(shape), Layer { before, ..layer });
            self.launch("pick_rank", false, self.ask.n, Layer { before, ..layer });
        }
        self.launch_runs("keep_largest", false, shape, layer);
        self.arena.release(ranks);
    }

    fn prune(&mut self, index: usize, step: &Step, layer: Layer) -> Result<()> {
        let sums = self.sums();
        let layer = Layer { sums: self.arena.offset(sums), words: self.words_of(index)?, ..layer };
        self.sum("magnitude_parts", "rate_total", layer);
        let blocks = self.shapes[step.output].iter().product::<usize>().div_ceil(4);
        self.launch("prune", false, self.ask.n * blocks, layer);
        if self.ask.gradient {
            // The backward pass looks at what was pruned.
            let input = self.value(step.input)?;
            self.arena.share(input.block);
            self.memories[step.output] = Memory { sums: Some(sums), input: Some(input), ..Memory::default() };
        } else {
            self.arena.release(sums);
        }
        Ok(())
    }

    /// Where the words of a step's keys are.
    fn words_of(&self, index: usize) -> Result<u64> {
        let Some(words) = self.words else { bail!("no room for keys") };
        let before = self.network.steps[..index].iter().filter(|step| matches!(step.kind, Kind::Prune { .. })).count();
        Ok(self.arena.offset(words) + (before * self.ask.n * 16) as u64)
    }

    fn concat(&mut self, step: &Step, out: Held) -> Result<()> {
        let to = self.shapes[step.output];
        let mut before = 0;
        for value in step.inputs() {
            let (from, shape) = (self.value(value)?, self.shapes[value]);
            let layer = Layer { x: self.at(from), out: self.at(out), before: before as u32, ..self.layer() };
            self.launch("put", false, self.count(shape), layer.from(shape).to(to));
            before += shape[0];
        }
        Ok(())
    }

    /// The shape of a step's result.
    fn after(&self, step: &Step) -> Result<[usize; 3]> {
        let [c, h, w] = self.shapes[step.input];
        let windows =
            |size: usize, kernel: usize, stride: usize, padding: usize| match (size + padding).checked_sub(kernel) {
                Some(rest) => Ok(rest / stride + 1),
                None => bail!("images of {:?} pixels are too small for the network", self.ask.size),
            };
        Ok(match &step.kind {
            Kind::Dense(filter) | Kind::Depthwise(filter) => {
                let ([rows, columns], stride, padding) = (filter.kernel, filter.stride, filter.padding([h, w]));
                [
                    filter.outputs,
                    windows(h, rows, stride, padding.top + padding.bottom)?,
                    windows(w, columns, stride, padding.left + padding.right)?,
                ]
            }
            &Kind::MaxPool { kernel, stride, padding } => {
                [c, windows(h, kernel, stride, 2 * padding)?, windows(w, kernel, stride, 2 * padding)?]
            }
            Kind::Subsample { stride, before, after } => [before + c + after, h.div_ceil(*stride), w.div_ceil(*stride)],
            Kind::GlobalPool => [c, 1, 1],
            &Kind::AdaptivePool { side } if side * h * w > 0 => [c, side, side],
            Kind::AdaptivePool { side } => bail!("no pool makes {side}x{side} pixels of {h}x{w}"),
            Kind::Concat => [step.inputs().map(|value| self.shapes[value][0]).sum(), h, w],
            Kind::Prune { .. } | Kind::Identity => [c, h, w],
        })
    }

    /// The convolution of images of a shape, or one of its gradients.
    fn convolve(
        &mut self,
        index: usize,
        filter: &Filter,
        shape: [usize; 3],
        (wanted, wide, accumulate): (Wanted, bool, bool),
        from: u64,
        out: u64,
    ) -> Result<()> {
        let Some(convolutions) = self.convolutions else { return Ok(()) };
        let [c, h, w] = shape;
        let [rows, columns] = filter.kernel;
        let Padding { top, bottom, left, right } = self.padding(index, filter);
        let geometry = Geometry {
            x: [self.ask.n, c, h, w],
            w: [filter.outputs, c, rows, columns],
            padding: [top.min(bottom), left.min(right)],
            stride: filter.stride,
            groups: 1,
        };
        let wide = wide || self.settings.precision != Precision::Bf16;
        let dtype = if wide { DType::F32 } else { DType::BF16 };
        // The logits are made in full precision.
        let tf32 = self.settings.precision == Precision::Tf32 && !is_wide(self.network, &self.network.steps[index]);
        let op =
            convolutions.prepare(Problem { geometry, dtype, tf32, order: self.settings.order }, wanted, accumulate)?;
        self.workspace = self.workspace.max(op.workspace());
        let weights = Operand::Weights(self.constants.weights[index]);
        let operands = match wanted {
            Wanted::Y => [Operand::Arena(from), weights],
            _ => [weights, Operand::Arena(from)],
        };
        self.tasks.push(Task::Convolution { op, operands, out });
        Ok(())
    }

    /// The padding of a step's input.
    fn padding(&self, index: usize, filter: &Filter) -> Padding {
        let [_, h, w] = self.shapes[self.network.steps[index].input];
        filter.padding([h, w])
    }

    fn dense(&mut self, index: usize, step: &Step, filter: &Filter, input: Held, out: Held) -> Result<()> {
        let mut shape = self.shapes[step.input];
        let (mut from, mut kept) = (input, Vec::new());
        if out.wide && !input.wide && self.settings.precision == Precision::Bf16 {
            from = self.take(shape, true);
            kept.push(from);
            let layer = Layer { x: self.at(input), out: self.at(from), ..self.layer() };
            self.launch("widen", false, self.count(shape), layer);
        }
        if let Some((padded, top, left)) = lopsided(shape, self.padding(index, filter)) {
            let with = self.take(padded, from.wide);
            kept.push(with);
            let layer = Layer { x: self.at(from), out: self.at(with), ..self.layer() }.from(shape).to(padded);
            let layer = Layer { top: top as u32, left: left as u32, ..layer };
            self.launch("spread", from.wide, self.count(padded), layer);
            (from, shape) = (with, padded);
        }
        self.convolve(index, filter, shape, (Wanted::Y, out.wide, false), self.at(from), self.at(out))?;
        kept.into_iter().for_each(|held| self.arena.release(held.block));
        Ok(())
    }

    /// The block of the gradient at the logits.
    fn backward(&mut self) -> Result<Block> {
        let last = self.network.steps.len();
        let shape = self.shapes[last];
        let upstream = self.take(shape, true);
        let wide = is_wide(self.network, &self.network.steps[last - 1]);
        let gradient = self.take(shape, wide);
        let layer = Layer { x: self.at(upstream), out: self.at(gradient), ..self.layer() };
        self.launch("narrow", wide, self.count(shape), layer);
        self.gradients[last] = Some(gradient);
        for index in (0..last).rev() {
            self.step_back(index)?;
        }
        Ok(upstream.block)
    }

    fn step_back(&mut self, index: usize) -> Result<()> {
        let network = self.network;
        let step = &network.steps[index];
        let Some(gradient) = self.gradients[step.output].take() else { return Ok(()) };
        let (at, shape, memory) = (self.at(gradient), self.shapes[step.output], self.memories[step.output]);
        if let Some(bits) = memory.bits {
            let slope = if let Act::LeakyRelu { slope } = step.act { slope } else { 0.0 };
            let layer = Layer { x: at, out: at, bits: self.arena.offset(bits), slope, ..self.layer() };
            self.launch_runs("mask", gradient.wide, shape, layer);
        }
        if let Some(residual) = step.residual {
            self.pass_on(residual, gradient, step.inputs().any(|value| value == residual));
        }
        let layer = Layer { x: at, ..self.layer() };
        match &step.kind {
            Kind::Dense(filter) => self.dense_back(index, filter, gradient)?,
            Kind::Depthwise(filter) => {
                let weight = self.constants.weights[index];
                let layer = Layer { weight, ..windows(layer, filter, self.shapes[step.input]) };
                self.gather("depthwise_back", step, step.input, layer);
            }
            &Kind::MaxPool { kernel, stride, padding } => {
                let bits = memory.winners.map_or(NOWHERE, |winners| self.arena.offset(winners));
                let layer = Layer { bits, ..square(layer, kernel, stride, padding) };
                self.gather("max_pool_back", step, step.input, layer);
            }
            &Kind::Subsample { stride, before, .. } => {
                let layer = Layer { stride: stride as u32, before: before as u32, ..layer };
                self.gather("collect", step, step.input, layer);
            }
            Kind::GlobalPool => self.gather("global_pool_back", step, step.input, layer),
            Kind::AdaptivePool { .. } => self.gather("adaptive_pool_back", step, step.input, layer),
            &Kind::Prune { samples, .. } => self.prune_back(index, step, Layer { y: at, samples, ..layer })?,
            Kind::Concat => {
                let mut before = 0;
                for value in step.inputs() {
                    self.gather("collect", step, value, Layer { before: before as u32, ..layer });
                    before += self.shapes[value][0];
                }
            }
            Kind::Identity => self.pass_on(step.input, gradient, false),
        }
        self.arena.release(gradient.block);
        for block in [memory.bits, memory.winners, memory.sums, memory.input.map(|held| held.block)] {
            block.into_iter().for_each(|block| self.arena.release(block));
        }
        Ok(())
    }

    /// The gradient's block of a value, and whether something is there already.
    fn gradient(&mut self, value: usize) -> (Held, bool) {
        match self.gradients[value] {
            Some(held) => (held, true),
            None => {
                let held = self.take(self.shapes[value], false);
                self.gradients[value] = Some(held);
                (held, false)
            }
        }
    }

    /// Adds a gradient to a value's as it is; the value takes the block itself over where it may be written to.
    fn pass_on(&mut self, value: usize, gradient: Held, still_read: bool) {
        if self.gradients[value].is_none() && !still_read && self.arena.owners(gradient.block) == 1 {
            self.arena.share(gradient.block);
            self.gradients[value] = Some(gradient);
            return;
        }
        let (to, there) = self.gradient(value);
        let layer = Layer { x: self.at(gradient), out: self.at(to), accumulate: u32::from(there), ..self.layer() };
        self.launch_runs("copy", false, self.shapes[value], layer);
    }

    /// A backward pass with a thread for each number of a value.
    fn gather(&mut self, kernel: &'static str, step: &Step, value: usize, layer: Layer) {
        let (to, there) = self.gradient(value);
        let layer = Layer { out: self.at(to), accumulate: u32::from(there), ..layer };
        let (from, shape) = (self.shapes[step.output], self.shapes[value]);
        self.launch(kernel, false, self.count(shape), layer.from(shape).to(from));
    }

    fn prune_back(&mut self, index: usize, step: &Step, layer: Layer) -> Result<()> {
        let Memory { sums: Some(sums), input: Some(input), .. } = self.memories[step.output] else {
            bail!("a pruning that left nothing behind")
        };
        let (to, there) = self.gradient(step.input);
        let shape = self.shapes[step.input];
        let layer = Layer {
            x: self.at(input),
            out: self.at(to),
            sums: self.arena.offset(sums),
            words: self.words_of(index)?,
            accumulate: u32::from(there),
            ..layer
        }
        .from(shape);
        self.sum("prune_back_parts", "prune_back_total", layer);
        self.launch("prune_back", false, self.ask.n * shape.iter().product::<usize>().div_ceil(4), layer);
        Ok(())
    }

    fn dense_back(&mut self, index: usize, filter: &Filter, gradient: Held) -> Result<()> {
        let network = self.network;
        let step = &network.steps[index];
        let (from, shape) = (self.at(gradient), self.shapes[step.input]);
        let wide = gradient.wide;
        let narrower = wide && self.settings.precision == Precision::Bf16;
        let padded = lopsided(shape, self.padding(index, filter));
        if padded.is_none() && !narrower {
            let (to, there) = self.gradient(step.input);
            return self.convolve(index, filter, shape, (Wanted::X, wide, there), from, self.at(to));
        }
        let (read, top, left) = padded.unwrap_or((shape, 0, 0));
        let with = self.take(read, wide);
        self.convolve(index, filter, read, (Wanted::X, wide, false), from, self.at(with))?;
        let mut cut = with;
        if narrower {
            cut = self.take(read, false);
            let layer = Layer { x: self.at(with), out: self.at(cut), ..self.layer() };
            self.launch("narrow", false, self.count(read), layer);
        }
        let (to, there) = self.gradient(step.input);
        let layer = Layer { x: self.at(cut), out: self.at(to), accumulate: u32::from(there), ..self.layer() };
        let layer = Layer { top: top as u32, left: left as u32, ..layer }.from(shape).to(read);
        self.launch("collect", false, self.count(shape), layer);
        self.arena.release(with.block);
        if narrower {
            self.arena.release(cut.block);
        }
        Ok(())
    }
}

/// The shape with what one side's padding has more than the other's, and what of it comes first: cuDNN pads sides alike.
fn lopsided([c, h, w]: [usize; 3], padding: Padding) -> Option<([usize; 3], usize, usize)> {
    let Padding { top, bottom, left, right } = padding;
    let even = top == bottom && left == right;
    let shape = [c, h + top.abs_diff(bottom), w + left.abs_diff(right)];
    (!even).then(|| (shape, top.saturating_sub(bottom), left.saturating_sub(right)))
}

/// The windows of a depthwise convolution of images of a shape.
fn windows(layer: Layer, filter: &Filter, [_, h, w]: [usize; 3]) -> Layer {
    let [rows, columns] = filter.kernel.map(|side| side as u32);
    let padding = filter.padding([h, w]);
    let (top, left) = (padding.top as u32, padding.left as u32);
    Layer { rows, columns, stride: filter.stride as u32, top, left, ..layer }
}

fn square(layer: Layer, kernel: usize, stride: usize, padding: usize) -> Layer {
    let [kernel, stride, padding] = [kernel, stride, padding].map(|length| length as u32);
    Layer { rows: kernel, columns: kernel, stride, top: padding, left: padding, ..layer }
}
