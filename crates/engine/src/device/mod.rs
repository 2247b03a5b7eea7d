//! The same networks on a GPU.
//!
//! A [`DevicePlan`] takes the fused steps that the CPU's plan takes (batch-norm folded in f64, residual sums and activations at
//! the end of the step before them) and lays all launches of a query out in advance: buffers in one stretch of memory,
//! convolutions with their algorithms chosen, everything else by kernels of layers.cu.
//!
//! - The forward pass keeps one bit for each number that a ReLU passes, and one byte for each output of a max-pool; the
//!   activations themselves are given up as soon as the last layer has read them. With frozen weights nothing else is
//!   needed, so a gradient query of many images fits, and the backward pass reads a thirty-second of what autograd would.
//! - Bias, residual and activation are one pass over a layer's output, in place. Gradients that meet are added by the
//!   convolution that makes the second of them.
//! - In TF32 and bf16 the tensors are NHWC, and the image has zero channels added up to the four or eight that the matrix
//!   units read at a time; in f32 they are NCHW. With bf16 everything between the image and the last layer is bf16; the
//!   logits are made in f32 in every precision.
//! - From the third query of the same shape on, the launches are replayed as a CUDA graph.
//! - Nothing here waits for the device.
//!
//! An image's answer depends on the batch it is in only through cuDNN's choice of an algorithm, which may round
//! differently. On the CPU a plan runs in tests alone, within [`gpu::kernels::on_host`].

mod arena;
mod build;
mod layer;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use candle_core::{DType, Device, Result, Tensor, bail};
use game::{Classifier, Key};
use gpu::{
    Convolutions, Order, Precision, Recording,
    kernels::{Call, Output},
};
use half::bf16;
use nets::{Graph, Weights};

use crate::lower::{Kind, Network, lower};
use build::{Ask, Built, Operand, Task, build, inputs, is_wide, pack};
use layer::{BF16, F32, Layer};

/// Shapes of queries whose launches are kept.
const SHAPES: usize = 8;
/// Queries of a shape before its launches are recorded: the first loads kernels, the second is timed by nobody either.
const PLAIN: usize = 2;

/// How a plan computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of the convolutions, and with bf16 of all tensors.
    pub precision: Precision,
    /// Of all tensors.
    pub order: Order,
    /// Whether launches are replayed as a CUDA graph.
    pub graphs: bool,
}

impl Settings {
    /// What a precision is computed with. The order is fixed and not timed at run time, so that a run's numbers do not depend on
    /// a clock; `make gpu-check` times every choice.
    #[must_use]
    pub fn of(precision: Precision) -> Self {
        let order = if precision.is_full() { Order::Nchw } else { Order::Nhwc };
        Self { precision, order, graphs: true }
    }
}

/// A frozen network compiled for a GPU.
///
/// A network that is random inside needs one key for each image. Queries follow each other: a second thread waits for the
/// first one's to be queued.
pub struct DevicePlan {
    network: Network,
    device: Device,
    settings: Settings,
    constants: Constants,
    convolutions: Convolutions,
    /// Keeps what `constants` points to.
    _kept: Call,
    state: Mutex<State>,
}

/// Addresses of weights, one for each step; 0 where there are none.
#[derive(Debug)]
struct Constants {
    weights: Vec<u64>,
    biases: Vec<u64>,
    mean: u64,
    /// One over the deviation.
    scale: u64,
}

#[derive(Default)]
struct State {
    arena: Option<Output>,
    bytes: u64,
    fitted: HashMap<Ask, Fitted>,
}

/// The launches of one shape of query.
struct Fitted {
    built: Built,
    forward: Replayed,
    backward: Replayed,
}

#[derive(Default)]
struct Replayed {
    runs: usize,
    recording: Option<Recording>,
    /// The device would not record it.
    refused: bool,
}

impl std::fmt::Debug for DevicePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevicePlan")
            .field("device", &self.device)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl DevicePlan {
    /// A plan with what is usual for a precision.
    ///
    /// # Errors
    /// As [`crate::Plan::new`]; and if the device has no memory left, or cuDNN is missing.
    pub fn new(graph: &Graph, weights: &Weights, device: &Device, precision: Precision) -> Result<Self> {
        Self::with(graph, weights, device, Settings::of(precision))
    }

    /// A plan with these settings.
    ///
    /// # Errors
    /// As [`DevicePlan::new`].
    pub fn with(graph: &Graph, weights: &Weights, device: &Device, settings: Settings) -> Result<Self> {
        let network = lower(graph, weights)?;
        let mut kept = Call::new(device);
        let constants = Constants::new(&network, settings, &mut kept)?;
        let convolutions = Convolutions::new(device)?;
        let (device, state) = (device.clone(), Mutex::default());
        Ok(Self { network, device, settings, constants, convolutions, _kept: kept, state })
    }

    /// Bytes of the device's memory that a gradient query needs for each image of `rows x columns` pixels, without cuDNN's
    /// workspace.
    ///
    /// # Errors
    /// If the network cannot take images of this size.
    pub fn bytes(&self, rows: usize, columns: usize) -> Result<u64> {
        let bytes = |n| {
            let ask = Ask { n, size: [rows, columns], gradient: true };
            Ok::<_, candle_core::Error>(build(&self.network, &self.constants, self.settings, None, ask)?.bytes)
        };
        // What a single image is rounded up by does not count.
        Ok(bytes(9)?.saturating_sub(bytes(1)?) / 8)
    }

    /// Puts a query's launches into the state, and makes the arena large enough.
    fn fit(&self, state: &mut State, ask: Ask) -> Result<()> {
        let State { arena, bytes, fitted } = state;
        if !fitted.contains_key(&ask) {
            if fitted.len() >= SHAPES {
                fitted.clear();
            }
            let built = build(&self.network, &self.constants, self.settings, Some(&self.convolutions), ask)?;
            if arena.is_none() || *bytes < built.bytes {
                // Recordings know the old addresses. The old memory goes first, so that both need not fit.
                fitted.clear();
                (*arena, *bytes) = (None, 0);
                *arena = Some(Call::new(&self.device).output(built.bytes as usize, DType::U8)?);
                *bytes = built.bytes;
            }
            fitted.insert(ask, Fitted { built, forward: Replayed::default(), backward: Replayed::default() });
        }
        Ok(())
    }

    /// Whether the answers depend on keys, and the words of those keys, pruning by pruning.
    fn words(&self, keys: &[Key], n: usize) -> Result<Vec<u32>> {
        let mut words = Vec::new();
        for step in &self.network.steps {
            let Kind::Prune { index, .. } = step.kind else { continue };
            if keys.len() != n {
                bail!("{} keys for {n} images of a stochastic network", keys.len());
            }
            words.extend(keys.iter().flat_map(|key| key.at(index).words()));
        }
        Ok(words)
    }

    /// The forward pass; its logits lie in the arena.
    fn forward(&self, fitted: &mut Fitted, base: u64, ask: Ask, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        let words = self.words(keys, ask.n)?;
        let mut call = Call::new(&self.device);
        if !words.is_empty() {
            let from = call.upload(&words)?;
            copy(&call, from, base + fitted.built.words, words.len())?;
        }
        let image = call.read(x, DType::F32)?;
        for (index, task) in fitted.built.enter.iter().enumerate() {
            let at = (index == 0).then_some(image);
            run(&call, task, base, 0, |layer| Layer { x: at.unwrap_or(layer.x), ..layer })?;
        }
        let Fitted { built, forward, .. } = fitted;
        self.replay(forward, &built.forward, base, base + built.workspace)?;
        let logits = call.output((ask.n, self.network.classes), DType::F32)?;
        copy(&call, base + built.logits, logits.address, ask.n * self.network.classes)?;
        Ok(logits.tensor())
    }

    fn backward(&self, fitted: &mut Fitted, base: u64, x: &Tensor, upstream: &Tensor) -> Result<Tensor> {
        let Fitted { built, backward, .. } = fitted;
        if built.leave.is_empty() {
            return x.zeros_like();
        }
        let mut call = Call::new(&self.device);
        let from = call.read(upstream, DType::F32)?;
        copy(&call, from, base + built.upstream, upstream.elem_count())?;
        self.replay(backward, &built.backward, base, base + built.workspace)?;
        let gradient = call.output(x.shape(), DType::F32)?;
        for (index, task) in built.leave.iter().enumerate() {
            let at = (index + 1 == built.leave.len()).then_some(gradient.address);
            run(&call, task, base, 0, |layer| Layer { out: at.unwrap_or(layer.out), ..layer })?;
        }
        Ok(gradient.tensor())
    }

    fn replay(&self, replayed: &mut Replayed, tasks: &[Task], base: u64, workspace: u64) -> Result<()> {
        let call = Call::new(&self.device);
        let launch = || tasks.iter().try_for_each(|task| run(&call, task, base, workspace, |layer| layer));
        replayed.runs += 1;
        if !self.settings.graphs || replayed.refused || replayed.runs <= PLAIN {
            return launch();
        }
        if replayed.recording.is_none() {
            replayed.recording = gpu::record(&self.device, launch)?;
        }
        match &replayed.recording {
            Some(recording) => recording.replay(),
            None => {
                replayed.refused = true;
                launch()
            }
        }
    }

    fn ask(&self, x: &Tensor, gradient: bool) -> Result<Ask> {
        let (n, c, rows, columns) = x.dims4()?;
        if c != self.network.mean.len() {
            bail!("images of {c} channels, but the network takes {}", self.network.mean.len());
        }
        if x.dtype() != DType::F32 {
            bail!("the network computes from f32: convert the images from {:?} first", x.dtype());
        }
        Ok(Ask { n, size: [rows, columns], gradient })
    }
}

/// Queues a launch, with a layer whose addresses `place` may change.
fn run(call: &Call, task: &Task, base: u64, workspace: u64, place: impl FnOnce(Layer) -> Layer) -> Result<()> {
    match task {
        Task::Kernel { name, wide, threads, layer } => {
            let source = if *wide { &F32 } else { &BF16 };
            // SAFETY: the builder gave every operand a block of its size in the arena, which the plan's state holds.
            unsafe { call.launch(source, name, *threads, &place(layer.placed(base))) }
        }
        Task::Convolution { op, operands, out } => {
            let operands = operands.map(|operand| match operand {
                Operand::Arena(offset) => base + offset,
                Operand::Weights(address) => address,
            });
            // SAFETY: as above; the workspace ends where the arena does.
            unsafe { op.enqueue(operands, base + out, workspace) }
        }
    }
}

/// Copies 32-bit words, one by one: a tensor may begin anywhere.
fn copy(call: &Call, from: u64, to: u64, count: usize) -> Result<()> {
    let layer = Layer { x: from, out: to, ..Layer::default().placed(0) };
    // SAFETY: both have so many words.
    unsafe { call.launch(&F32, "widen", count, &layer) }
}

impl Constants {
    fn new(network: &Network, settings: Settings, call: &mut Call) -> Result<Self> {
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for step in &network.steps {
            let (weight, bias) = match &step.kind {
                Kind::Dense(filter) => {
                    let packed = pack(filter, inputs(network, step, filter, settings), settings.order);
                    let narrow = settings.precision == Precision::Bf16 && !is_wide(network, step);
                    let address = if narrow {
                        let bits: Vec<u16> = packed.iter().map(|&weight| bf16::from_f32(weight).to_bits()).collect();
                        call.upload(&bits)?
                    } else {
                        call.upload(&packed)?
                    };
                    (address, floats(call, &filter.bias)?)
                }
                Kind::Depthwise(filter) => {
                    let taps = filter.kernel[0] * filter.kernel[1];
                    let weight = |i: usize| filter.weight[i % filter.outputs * taps + i / filter.outputs];
                    let packed: Vec<f32> = (0..taps * filter.outputs).map(weight).collect();
                    (call.upload(&packed)?, floats(call, &filter.bias)?)
                }
                _ => (0, 0),
            };
            weights.push(weight);
            biases.push(bias);
        }
        let scale: Vec<f64> = network.std.iter().map(|std| 1.0 / std).collect();
        Ok(Self { weights, biases, mean: floats(call, &network.mean)?, scale: floats(call, &scale)? })
    }
}

/// The address of some numbers in f32.
fn floats(call: &mut Call, numbers: &[f64]) -> Result<u64> {
    let numbers: Vec<f32> = numbers.iter().map(|&number| number as f32).collect();
    call.upload(&numbers)
}

impl Classifier for DevicePlan {
    fn classes(&self) -> usize {
        self.network.classes
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        let ask = self.ask(x, false)?;
        if ask.n == 0 {
            return Tensor::zeros((0, self.network.classes), DType::F32, &self.device);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.fit(&mut state, ask)?;
        let State { arena, fitted, .. } = &mut *state;
        let (Some(arena), Some(fitted)) = (arena.as_ref(), fitted.get_mut(&ask)) else { bail!("the arena is lost") };
        self.forward(fitted, arena.address, ask, x, keys)
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let ask = self.ask(x, true)?;
        if ask.n == 0 {
            return x.zeros_like();
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.fit(&mut state, ask)?;
        let State { arena, fitted, .. } = &mut *state;
        let (Some(arena), Some(fitted)) = (arena.as_ref(), fitted.get_mut(&ask)) else { bail!("the arena is lost") };
        let logits = self.forward(fitted, arena.address, ask, x, keys)?;
        let upstream = upstream(&logits)?;
        if upstream.dims() != logits.dims() {
            bail!("the upstream gradient has shape {:?}, the logits {:?}", upstream.dims(), logits.dims());
        }
        self.backward(fitted, arena.address, x, &upstream)
    }
}
