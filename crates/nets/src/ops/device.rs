//! The operations of training as kernels of our own: a pass over the numbers each, and no wait for the device.
//!
//! The formulas are those of the CPU, operation by operation; sums over a channel are in double precision and in an order
//! that depends on the shape alone.

use candle_core::{DType, Result, Tensor};
use gpu::kernels::{self, Call, Output, Parameters, Source};

use super::{Activation, Moments};

const SOURCE: Source = Source { name: "nets-operations", text: include_str!("device.cu") };
/// As in device.cu.
const LANES: usize = 32;
/// Threads that keep a GPU busy with a sum over each channel.
const BUSY: usize = 1 << 18;
/// Numbers that are worth a thread.
const RUN: usize = 16;
/// The largest window whose places have a number in a byte.
const LARGEST_WINDOW: usize = 16;

/// As `Step` in device.cu.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Step {
    x: u64,
    y: u64,
    dy: u64,
    gamma: u64,
    beta: u64,
    out: u64,
    channels: u64,
    slopes: u64,
    dgamma: u64,
    dbeta: u64,
    moments: u64,
    sums: u64,
    winners: u64,
    eps: f64,
    c: u32,
    h: u32,
    w: u32,
    oc: u32,
    oh: u32,
    ow: u32,
    size: u32,
    stride: u32,
    padding: u32,
    before: u32,
    count: u32,
    parts: u32,
    act: u32,
    slope: f32,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Step {}

/// Whether kernels compute what is made of `x`: f32 where they [run](kernels::takes), and few enough for their indices.
pub(crate) fn takes(x: &Tensor) -> bool {
    kernels::takes(x) && u32::try_from(x.elem_count()).is_ok()
}

/// Whether they find the largest number of windows of this size.
pub(super) fn pools(x: &Tensor, size: usize) -> bool {
    takes(x) && size <= LARGEST_WINDOW
}

impl Step {
    /// For images `(n, c, h, w)`, each of which becomes one of `(oc, oh, ow)`.
    fn images(x: &[usize], out: &[usize]) -> Self {
        let size = |shape: &[usize], axis: usize| shape.get(axis).map_or(1, |&size| size as u32);
        let [c, h, w] = [1, 2, 3].map(|axis| size(x, axis));
        let [oc, oh, ow] = [1, 2, 3].map(|axis| size(out, axis));
        Self { c, h, w, oc, oh, ow, ..Self::default() }
    }

    fn windows(self, size: usize, stride: usize, padding: usize) -> Self {
        let [size, stride, padding] = [size, stride, padding].map(|number| number as u32);
        Self { size, stride, padding, ..self }
    }

    fn with(self, activation: Activation) -> Self {
        let (act, slope) = match activation {
            Activation::None => (0, 0.0),
            Activation::Relu => (1, 0.0),
            Activation::Relu6 => (2, 0.0),
            Activation::LeakyRelu { slope } => (3, slope as f32),
        };
        Self { act, slope, ..self }
    }

    /// Launches a kernel with a thread for every number of its result.
    fn fill(self, call: &Call, kernel: &str, out: &Output) -> Result<()> {
        // SAFETY: the kernel's operands have the shapes that `self` says, as those who fill it in make sure.
        unsafe { call.launch(&SOURCE, kernel, out.count(), &Self { out: out.address, ..self }) }
    }

    /// Makes two sums for each channel: by `kernel`, which each thread of a share of its numbers begins with, and `finish`.
    fn sum(self, call: &mut Call, kernel: &str, finish: &str) -> Result<()> {
        let (c, count) = (self.c as usize, self.count as usize);
        let parts = (BUSY / c).min(count / RUN) / LANES * LANES;
        let parts = parts.max(LANES);
        let sums = call.room(2 * c * parts, DType::F64)?;
        let step = Self { parts: parts as u32, sums, ..self };
        // SAFETY: there is room for two rows of `parts` sums per channel; the rest as in `fill`.
        unsafe {
            call.launch(&SOURCE, kernel, c * parts, &step)?;
            if parts > LANES {
                call.launch(&SOURCE, "add_parts", 2 * c * LANES, &step)?;
            }
            call.launch(&SOURCE, finish, c, &step)
        }
    }
}

/// `activation(x)`, or `activation(x + y)` for a `y` of the same shape.
pub(super) fn activate(x: &Tensor, y: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    let mut call = Call::new(x.device());
    let out = call.output(x.shape(), DType::F32)?;
    let step = Step {
        x: call.read(x, DType::F32)?,
        y: y.map_or(Ok(0), |y| call.read(y, DType::F32))?,
        ..Step::default().with(activation)
    };
    step.fill(&call, "activate", &out)?;
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(y).collect();
    out.tied("activate", &inputs, move |inputs, out, dy| {
        let dx = if activation == Activation::None { dy.contiguous()? } else { mask(out, dy, activation)? };
        Ok(inputs.iter().map(|input| input.track_op().then(|| dx.clone())).collect())
    })
}

/// The gradient before an activation, from its value and the gradient after it.
fn mask(out: &Tensor, dy: &Tensor, activation: Activation) -> Result<Tensor> {
    let mut call = Call::new(dy.device());
    let dx = call.output(dy.shape(), DType::F32)?;
    let step = Step { y: call.read(out, DType::F32)?, dy: call.read(dy, DType::F32)?, ..Step::default() };
    step.with(activation).fill(&call, "activate_back", &dx)?;
    Ok(dx.tensor())
}

/// See [`super::batch_norm`]; the shapes fit.
pub(super) fn batch_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<(Tensor, Moments)> {
    let (c, count) = (x.dim(1)?, x.elem_count() / x.dim(1)?);
    let mut call = Call::new(x.device());
    let out = call.output(x.shape(), DType::F32)?;
    let (moments, channels) = (call.output(2 * c, DType::F64)?, call.output(2 * c, DType::F32)?);
    let step = Step {
        x: call.read(x, DType::F32)?,
        gamma: call.read(gamma, DType::F32)?,
        beta: call.read(beta, DType::F32)?,
        channels: channels.address,
        moments: moments.address,
        count: count as u32,
        eps,
        ..Step::images(x.dims(), x.dims()).with(activation)
    };
    step.sum(&mut call, "moments_parts", "moments_total")?;
    step.fill(&call, "normalise", &out)?;
    let channels = channels.tensor();
    let out = out.tied("batch-norm", &[x, gamma, beta], move |inputs, out, dy| {
        let &[x, gamma, _] = inputs else { candle_core::bail!("batch normalisation has three inputs") };
        batch_norm_back([x, gamma, out, dy], &channels, activation)
    })?;
    Ok((out, Moments { values: moments.tensor(), count }))
}

fn batch_norm_back(
    [x, gamma, out, dy]: [&Tensor; 4],
    channels: &Tensor,
    activation: Activation,
) -> Result<Vec<Option<Tensor>>> {
    let c = x.dim(1)?;
    let mut call = Call::new(x.device());
    let [dgamma, dbeta] = [call.output(c, DType::F32)?, call.output(c, DType::F32)?];
    let step = Step {
        x: call.read(x, DType::F32)?,
        y: call.read(out, DType::F32)?,
        dy: call.read(dy, DType::F32)?,
        gamma: call.read(gamma, DType::F32)?,
        channels: call.read(channels, DType::F32)?,
        slopes: call.room(2 * c, DType::F32)?,
        dgamma: dgamma.address,
        dbeta: dbeta.address,
        count: (x.elem_count() / c) as u32,
        ..Step::images(x.dims(), x.dims()).with(activation)
    };
    step.sum(&mut call, "normalise_back_parts", "normalise_back_total")?;
    let back = |call: &Call| {
        let dx = call.output(x.shape(), DType::F32)?;
        step.fill(call, "normalise_back", &dx)?;
        Ok(dx.tensor())
    };
    let dx: Option<Result<Tensor>> = x.track_op().then(|| back(&call));
    Ok(vec![dx.transpose()?, Some(dgamma.tensor()), Some(dbeta.tensor())])
}

/// `activation((x - centre) * scale + shift)` per channel of `x`, of which there are as many as numbers.
pub(super) fn affine(x: &Tensor, [centre, scale, shift]: [&[f64]; 3], activation: Activation) -> Result<Tensor> {
    let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<f32>>();
    let channels = Tensor::new([narrow(centre), narrow(scale)].concat(), x.device())?;
    let mut call = Call::new(x.device());
    let out = call.output(x.shape(), DType::F32)?;
    let step = Step {
        x: call.read(x, DType::F32)?,
        channels: call.read(&channels, DType::F32)?,
        beta: call.upload(&narrow(shift))?,
        ..Step::images(x.dims(), x.dims()).with(activation)
    };
    step.fill(&call, "normalise", &out)?;
    out.tied("affine", &[x], move |inputs, out, dy| {
        let mut call = Call::new(dy.device());
        let dx = call.output(dy.shape(), DType::F32)?;
        let step = Step {
            y: call.read(out, DType::F32)?,
            dy: call.read(dy, DType::F32)?,
            channels: call.read(&channels, DType::F32)?,
            ..Step::images(inputs[0].dims(), out.dims()).with(activation)
        };
        step.fill(&call, "scale_back", &dx)?;
        Ok(vec![Some(dx.tensor())])
    })
}

/// An operation that moves or adds numbers of `x` within its planes.
struct Moved {
    name: &'static str,
    /// The kernels of result and gradient.
    kernels: [&'static str; 2],
    /// Shapes, and how windows move.
    step: Step,
    /// The gradient goes to the numbers that won their windows.
    wins: bool,
}

impl Moved {
    fn apply(self, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
        let Self { name, kernels: [forward, backward], step, wins } = self;
        let mut call = Call::new(x.device());
        let out = call.output(shape, DType::F32)?;
        let winners = wins.then(|| call.output(shape, DType::U8)).transpose()?;
        let address = winners.as_ref().map_or(0, |winners| winners.address);
        Step { x: call.read(x, DType::F32)?, winners: address, ..step }.fill(&call, forward, &out)?;
        let winners = winners.map(Output::tensor);
        out.tied(name, &[x], move |inputs, _, dy| {
            let mut call = Call::new(dy.device());
            let dx = call.output(inputs[0].shape(), DType::F32)?;
            let winners = winners.as_ref().map_or(Ok(0), |winners| call.read(winners, DType::U8))?;
            Step { dy: call.read(dy, DType::F32)?, winners, ..step }.fill(&call, backward, &dx)?;
            Ok(vec![Some(dx.tensor())])
        })
    }
}

/// See [`super::max_pool`]; `shape` is the result's.
pub(super) fn max_pool(x: &Tensor, [size, stride, padding]: [usize; 3], shape: [usize; 4]) -> Result<Tensor> {
    let step = Step::images(x.dims(), &shape).windows(size, stride, padding);
    Moved { name: "max-pool", kernels: ["max_pool", "max_pool_back"], step, wins: true }.apply(x, &shape)
}

/// See [`super::average_pool`]; `shape` is the result's.
pub(super) fn average_pool(x: &Tensor, [size, stride, padding]: [usize; 3], shape: [usize; 4]) -> Result<Tensor> {
    let slope = (1.0 / (size * size) as f64) as f32;
    let step = Step { slope, ..Step::images(x.dims(), &shape).windows(size, stride, padding) };
    Moved { name: "average-pool", kernels: ["average_pool", "average_pool_back"], step, wins: false }.apply(x, &shape)
}

/// See [`super::global_average_pool`].
pub(super) fn global_average_pool(x: &Tensor) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let step = Step { slope: (1.0 / (h * w) as f64) as f32, ..Step::images(x.dims(), &[n, c]) };
    Moved { name: "global-average-pool", kernels: ["global_pool", "global_pool_back"], step, wins: false }
        .apply(x, &[n, c])
}

/// See [`super::subsample`].
pub(super) fn subsample(x: &Tensor, stride: usize, before: usize, after: usize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let shape = [n, before + c + after, h.div_ceil(stride), w.div_ceil(stride)];
    let step = Step { before: before as u32, ..Step::images(x.dims(), &shape).windows(1, stride, 0) };
    Moved { name: "subsample", kernels: ["subsample", "subsample_back"], step, wins: false }.apply(x, &shape)
}

/// The numbers of one step of AdamW, the same for all parameters.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates<T> {
    /// What decay leaves of a parameter.
    pub keep: T,
    /// The learning rate over the bias of the gradients' mean.
    pub step: T,
    /// The root of the bias of their mean square.
    pub root: T,
    /// One less the decay of the mean, and of the mean square.
    pub one_less1: T,
    pub one_less2: T,
    /// The decay of the mean square.
    pub beta2: T,
    /// Added to the root of the mean square.
    pub eps: T,
}

/// As `Adam` in device.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Adam {
    /// Gradient, parameter, mean and mean square.
    old: [u64; 4],
    /// Parameter, mean and mean square.
    new: [u64; 3],
    rates: Rates<f32>,
}
// SAFETY: the fields are the kernel's.
unsafe impl Parameters for Adam {}

/// One step of AdamW: of a parameter, its gradients' mean and their mean square, all of one shape.
pub(crate) fn adam_w(
    old: &Tensor,
    gradient: &Tensor,
    [mean, square]: &[Tensor; 2],
    rates: Rates<f32>,
) -> Result<[Tensor; 3]> {
    let tensors = [gradient, old, mean, square];
    if tensors.iter().any(|tensor| tensor.shape() != old.shape()) {
        candle_core::bail!(
            "a parameter {:?} has a gradient {:?} and a mean {:?}",
            old.dims(),
            gradient.dims(),
            mean.dims()
        );
    }
    let mut call = Call::new(old.device());
    let mut addresses = [0; 4];
    for (address, tensor) in addresses.iter_mut().zip(tensors) {
        *address = call.read(tensor, DType::F32)?;
    }
    let new = || call.output(old.shape(), DType::F32);
    let new = [new()?, new()?, new()?];
    let adam = Adam { old: addresses, new: [0, 1, 2].map(|i: usize| new[i].address), rates };
    // SAFETY: all tensors have the parameter's shape.
    unsafe { call.launch(&SOURCE, "adam_w", old.elem_count(), &adam)? };
    Ok(new.map(Output::tensor))
}
