//! Training: batch statistics, the loss, and AdamW.

use std::collections::BTreeMap;

use candle_core::{
    CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, Var, backend::BackendStorage,
    backprop::GradStore, bail,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use simd::Isa;

use crate::{
    Graph, Op, Weights,
    fold::get,
    fused::Program,
    ops::{self, Element, Moments, Rates, Statistics, Window, dispatch, owned, read, tensor, view},
    steps::{Step, run, stateless, steps},
};

/// The share of a batch's statistics in the running ones, as PyTorch's default.
const MOMENTUM: f64 = 0.1;

/// A network in training mode: batch normalisation uses, and learns, the batches' statistics.
///
/// On the CPU the loss, its gradients and the statistics are the same bits on any number of threads.
#[derive(Debug)]
pub struct Trainee {
    steps: Vec<Step>,
    parameters: BTreeMap<String, Var>,
    /// Running means and variances, on the CPU in the parameters' type.
    running: Weights,
    device: Device,
    /// The compiled step for the size of image last seen.
    program: Option<Program>,
    isa: Isa,
}

/// What one batch gives.
#[derive(Debug)]
pub struct Query {
    /// The mean cross-entropy.
    pub loss: f64,
    /// `(n, classes)`.
    pub logits: Tensor,
    /// The gradients of the mean cross-entropy with respect to the trainee's parameters.
    pub gradients: GradStore,
}

impl Trainee {
    /// The network of `graph` with `weights` (f32 or f64), on `device`.
    ///
    /// # Errors
    /// If a tensor is missing, or cannot be moved to the device.
    pub fn new(graph: &Graph, weights: &Weights, device: &Device) -> Result<Self> {
        let (mut parameters, mut running) = (BTreeMap::new(), Weights::new());
        for (name, _) in graph.parameters() {
            let tensor = get(weights, &name)?.detach();
            if name.ends_with(".running_mean") || name.ends_with(".running_var") {
                running.insert(name, tensor.to_device(&Device::Cpu)?);
            } else {
                parameters.insert(name, Var::from_tensor(&tensor.to_device(device)?.contiguous()?)?);
            }
        }
        Ok(Self {
            steps: steps(graph, false),
            parameters,
            running,
            device: device.clone(),
            program: None,
            isa: Isa::available()[0],
        })
    }

    /// The same, compiled for an instruction set that this processor has.
    #[must_use]
    pub fn compiled_for(self, isa: Isa) -> Self {
        assert!(Isa::available().contains(&isa), "this processor has no {isa:?}");
        Self { program: None, isa, ..self }
    }

    /// The device on which images are expected.
    #[must_use]
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// The trained parameters by name: everything but the running statistics.
    #[must_use]
    pub const fn parameters(&self) -> &BTreeMap<String, Var> {
        &self.parameters
    }

    /// Logits `(n, classes)` of images `(n, 3, h, w)` in `[0, 1]`; the running statistics take their step.
    ///
    /// # Errors
    /// If the shapes or types do not fit.
    pub fn logits(&mut self, x: &Tensor) -> Result<Tensor> {
        let (steps, parameters) = (&self.steps, &self.parameters);
        let mut seen = Vec::new();
        let logits = run(steps, x, |index, inputs| forward(&steps[index], inputs, parameters, &mut seen))?;
        let (names, moments): (Vec<String>, Vec<Moments>) = seen.into_iter().unzip();
        // Here, once for all layers, the host waits for the device.
        for (name, statistics) in names.iter().zip(Moments::statistics(&moments)?) {
            self.learn(name, &statistics)?;
        }
        Ok(logits)
    }

    /// The batch's mean cross-entropy, a scalar to call `backward` on, and the detached logits.
    ///
    /// # Errors
    /// If the shapes or types do not fit.
    pub fn loss(&mut self, x: &Tensor, labels: &[u32]) -> Result<(Tensor, Tensor)> {
        let logits = self.logits(x)?;
        Ok((cross_entropy(&logits, labels)?.mean_all()?, logits.detach()))
    }

    /// The batch's loss, logits and gradients; the running statistics take their step.
    ///
    /// In f32 on the CPU a network of plain convolutions, each with its normalisation, is compiled (once for a size of
    /// image); anything else goes through [`Trainee::loss`]. The two differ by rounding.
    ///
    /// # Errors
    /// If the shapes or types do not fit.
    pub fn query(&mut self, x: &Tensor, labels: &[u32]) -> Result<Query> {
        if let Some(mut program) = self.compiled(x)? {
            let query = self.run(&mut program, x, labels);
            self.program = Some(program);
            return query;
        }
        let (loss, logits) = self.loss(x, labels)?;
        Ok(Query { loss: loss.to_dtype(DType::F64)?.to_scalar()?, logits, gradients: loss.backward()? })
    }

    /// The program for images like `x`, if there is one.
    fn compiled(&mut self, x: &Tensor) -> Result<Option<Program>> {
        let single = self.parameters.values().all(|var| var.dtype() == DType::F32) && x.dtype() == DType::F32;
        if !(single && self.device.is_cpu() && x.device().is_cpu() && x.rank() == 4 && x.elem_count() > 0) {
            return Ok(None);
        }
        let shape = x.dims4()?.into();
        Ok(match self.program.take() {
            Some(program) if program.fits(shape) => Some(program),
            _ => Program::build(self.isa, &self.steps, shape),
        })
    }

    fn run(&mut self, program: &mut Program, x: &Tensor, labels: &[u32]) -> Result<Query> {
        let numbers = |tensor: &Tensor| read::<f32, _>(tensor, <[f32]>::to_vec);
        let parameters = &self.parameters;
        program.load(|name| match parameters.get(&name) {
            Some(var) => numbers(var.as_tensor()),
            None => bail!("the trainee has no parameter `{name}`"),
        })?;
        let logits = read::<f32, _>(x, |x| program.logits(x))?;
        let (n, classes) = (x.dim(0)?, logits.len() / x.dim(0)?.max(1));
        let logits = tensor(logits, (n, classes))?;
        let leaf = Var::from_tensor(&logits)?;
        let loss = cross_entropy(leaf.as_tensor(), labels)?.to_dtype(DType::F64)?.mean_all()?;
        let upstream = loss.backward()?;
        let Some(dy) = upstream.get(leaf.as_tensor()) else { bail!("the loss has no gradient") };
        let found = read::<f32, _>(dy, |dy| program.gradients(dy))?;
        for (name, statistics) in &found.statistics {
            self.learn(name, statistics)?;
        }
        let mut gradients = upstream;
        for (name, gradient) in found.gradients {
            if let Some(var) = self.parameters.get(&name) {
                gradients.insert(var.as_tensor(), tensor(gradient, var.shape())?);
            }
        }
        Ok(Query { loss: loss.to_scalar()?, logits, gradients })
    }

    /// The weights and running statistics as they stand, copied to the CPU.
    ///
    /// # Errors
    /// If the device fails.
    pub fn weights(&self) -> Result<Weights> {
        let mut weights = self.running.clone();
        for (name, var) in &self.parameters {
            weights.insert(name.clone(), var.as_tensor().copy()?.detach().to_device(&Device::Cpu)?);
        }
        Ok(weights)
    }

    /// One step of the running statistics: the variance without bias, as PyTorch's.
    fn learn(&mut self, norm: &str, statistics: &Statistics) -> Result<()> {
        let unbias = statistics.count as f64 / (statistics.count - 1) as f64;
        for (part, values, factor) in [("mean", &statistics.mean, 1.0), ("var", &statistics.variance, unbias)] {
            let name = format!("{norm}.running_{part}");
            let old = get(&self.running, &name)?;
            let dtype = old.dtype();
            let old: Vec<f64> = old.to_dtype(DType::F64)?.to_vec1()?;
            let step = |(old, new): (f64, &f64)| (1.0 - MOMENTUM) * old + MOMENTUM * factor * new;
            let new: Vec<f64> = old.into_iter().zip(values).map(step).collect();
            self.running.insert(name, Tensor::new(new, &Device::Cpu)?.to_dtype(dtype)?);
        }
        Ok(())
    }
}

fn forward(
    step: &Step,
    inputs: &[&Tensor],
    parameters: &BTreeMap<String, Var>,
    seen: &mut Vec<(String, Moments)>,
) -> Result<Tensor> {
    let part = |name: &str, part: &str| match parameters.get(&format!("{name}.{part}")) {
        Some(var) => Ok(var.as_tensor()),
        None => bail!("the trainee has no parameter `{name}.{part}`"),
    };
    let x = inputs[0];
    match &step.op {
        Op::Conv(conv) => {
            let bias = conv.bias.then(|| part(&conv.name, "bias")).transpose()?;
            let (_, _, h, w) = x.dims4()?;
            let window = Window { stride: conv.stride, padding: conv.padding([h, w]), groups: conv.groups };
            ops::conv2d(x, part(&conv.name, "weight")?, bias, window)
        }
        Op::Linear { name, .. } => ops::linear(&x.flatten_from(1)?, part(name, "weight")?, part(name, "bias")?),
        Op::BatchNorm { name, eps, .. } => {
            let (gamma, beta) = (part(name, "weight")?, part(name, "bias")?);
            let (out, moments) = ops::batch_norm(x, gamma, beta, *eps, step.activation)?;
            seen.push((name.clone(), moments));
            Ok(out)
        }
        _ => stateless(step, inputs),
    }
}

/// Cross-entropy of each image: logits `(n, k)` and `n` labels to `(n)`.
///
/// The gradient of the label's logit is minus the sum of the other classes' probabilities, and a confident loss is
/// summed without its leading one, so that both stay right where the probability rounds to one.
///
/// # Errors
/// If a label is no class, or the shapes do not fit.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let (n, k) = logits.dims2()?;
    if n != labels.len() {
        bail!("{} labels for {n} images", labels.len());
    }
    if let Some(label) = labels.iter().find(|&&label| label as usize >= k) {
        bail!("label {label} of a network with {k} classes");
    }
    let loss = logits.to_device(&Device::Cpu)?.contiguous()?.apply_op1(CrossEntropy(labels.to_vec()))?;
    loss.to_device(logits.device())
}

#[derive(Debug)]
struct CrossEntropy(Vec<u32>);

impl CrossEntropy {
    /// Calls `f(row, logits, label)` for every image.
    fn rows<T: Element>(&self, logits: &[T], mut f: impl FnMut(usize, &[f64], usize)) {
        let k = logits.len() / self.0.len().max(1);
        for (row, (logits, &label)) in logits.chunks(k.max(1)).zip(&self.0).enumerate() {
            let logits: Vec<f64> = logits.iter().map(|&z| z.wide()).collect();
            f(row, &logits, label as usize);
        }
    }
}

/// `ln(sum of exp(z_j - z_y))`.
fn row_loss(z: &[f64], label: usize) -> f64 {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top.is_infinite() || z.iter().any(|z| z.is_nan()) {
        return f64::NAN;
    }
    let others =
        |from: f64| z.iter().enumerate().filter(|(j, _)| *j != label).map(|(_, z)| (z - from).exp()).sum::<f64>();
    if z[label] == top { others(top).ln_1p() } else { ((z[label] - top).exp() + others(top)).ln() + top - z[label] }
}

/// The gradient of [`row_loss`].
fn row_gradient(z: &[f64], label: usize) -> Vec<f64> {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut p: Vec<f64> = z.iter().map(|z| (z - top).exp()).collect();
    let total: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= total);
    p[label] = 0.0;
    p[label] = -p.iter().sum::<f64>();
    p
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        dispatch!(logits.dtype(), T => {
            let mut losses = Vec::with_capacity(self.0.len());
            self.rows::<T>(view(logits, layout)?, |_, z, label| losses.push(T::of(row_loss(z, label))));
            Ok(owned(losses, self.0.len()))
        })
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        dispatch!(logits.dtype(), T => {
            let gradient = read::<T, _>(logits, |logits| read::<T, _>(dy, |dy| {
                let mut gradient = Vec::with_capacity(logits.len());
                self.rows(logits, |row, z, label| {
                    gradient.extend(row_gradient(z, label).into_iter().map(|g| T::of(g * dy[row].wide())));
                });
                gradient
            }))??;
            tensor(gradient, logits.shape()).map(Some)
        })
    }
}

/// Settings of [`AdamW`] (Loshchilov and Hutter 2019, algorithm 2); the defaults are PyTorch's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean of squared gradients.
    pub eps: f64,
    /// Share of the weights taken off at each step, times the learning rate.
    pub weight_decay: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// The AdamW optimiser: every trained parameter decays, as in PyTorch's.
#[derive(Debug)]
pub struct AdamW {
    settings: Settings,
    steps: i64,
    /// The gradients' running mean and mean square, by parameter.
    moments: BTreeMap<String, [Tensor; 2]>,
}

impl AdamW {
    /// An optimiser that has taken no step.
    #[must_use]
    pub const fn new(settings: Settings) -> Self {
        Self { settings, steps: 0, moments: BTreeMap::new() }
    }

    /// One step of `trainee`'s parameters down `gradients`; parameters without a gradient stay.
    ///
    /// # Errors
    /// If the device fails.
    pub fn step(&mut self, trainee: &mut Trainee, gradients: &GradStore, learning_rate: f64) -> Result<()> {
        self.steps += 1;
        for (name, var) in &trainee.parameters {
            let Some(gradient) = gradients.get(var.as_tensor()) else { continue };
            let old = var.as_tensor().detach();
            // Kernels update a parameter where it is; else the CPU does.
            let place = if ops::takes(&old) { old.device().clone() } else { Device::Cpu };
            let there = |tensor: &Tensor| tensor.detach().to_device(&place)?.contiguous();
            let (old, gradient) = (there(&old)?, there(gradient)?);
            let moments = match self.moments.get(name) {
                Some([mean, square]) => [there(mean)?, there(square)?],
                None => [old.zeros_like()?, old.zeros_like()?],
            };
            let [new, mean, square] = if ops::takes(&old) {
                ops::adam_w(&old, &gradient, &moments, self.rates(learning_rate))?
            } else {
                dispatch!(old.dtype(), T => update::<T>(&old, &gradient, &moments, self.rates(learning_rate))?)
            };
            var.set(&new.to_device(var.device())?)?;
            self.moments.insert(name.clone(), [mean, square]);
        }
        Ok(())
    }

    fn rates<T: Element>(&self, learning_rate: f64) -> Rates<T> {
        let Settings { beta1, beta2, eps, weight_decay } = self.settings;
        let correction = |beta: f64| 1.0 - beta.powf(self.steps as f64);
        Rates {
            keep: T::of(1.0 - learning_rate * weight_decay),
            step: T::of(learning_rate / correction(beta1)),
            root: T::of(correction(beta2).sqrt()),
            one_less1: T::of(1.0 - beta1),
            one_less2: T::of(1.0 - beta2),
            beta2: T::of(beta2),
            eps: T::of(eps),
        }
    }

    /// What a later [`AdamW::restore`] needs to go on bit for bit: tensors that [`crate::weights::save`] writes.
    ///
    /// # Errors
    /// If memory runs out, or the device fails.
    pub fn state(&self) -> Result<Weights> {
        let mut state = Weights::from([("steps".to_owned(), Tensor::new(&[self.steps], &Device::Cpu)?)]);
        for (name, [mean, square]) in &self.moments {
            state.insert(format!("mean.{name}"), mean.to_device(&Device::Cpu)?);
            state.insert(format!("square.{name}"), square.to_device(&Device::Cpu)?);
        }
        Ok(state)
    }

    /// An optimiser in a state it was once in.
    ///
    /// # Errors
    /// If `state` is not one that [`AdamW::state`] gave.
    pub fn restore(settings: Settings, state: &Weights) -> Result<Self> {
        let steps = match get(state, "steps")?.to_vec1::<i64>()?[..] {
            [steps] if steps >= 0 => steps,
            _ => bail!("`steps` is no number of steps"),
        };
        let mut moments = BTreeMap::new();
        for (name, mean) in state.iter().filter_map(|(name, mean)| Some((name.strip_prefix("mean.")?, mean))) {
            moments.insert(name.to_owned(), [mean.clone(), get(state, &format!("square.{name}"))?.clone()]);
        }
        Ok(Self { settings, steps, moments })
    }
}

/// The new parameter and moments.
fn update<T: Element>(old: &Tensor, gradient: &Tensor, moments: &[Tensor; 2], rates: Rates<T>) -> Result<[Tensor; 3]> {
    let Rates { keep, step, root, one_less1, one_less2, beta2, eps } = rates;
    let copy = |tensor: &Tensor| read::<T, _>(tensor, <[T]>::to_vec);
    let (mut new, mut mean, mut square) = (copy(old)?, copy(&moments[0])?, copy(&moments[1])?);
    read::<T, _>(gradient, |gradient| {
        let state = new.par_iter_mut().zip(mean.par_iter_mut()).zip(square.par_iter_mut()).zip(gradient.par_iter());
        state.with_min_len(1 << 13).for_each(|(((w, mean), square), &g)| {
            *mean = *mean + (g - *mean) * one_less1;
            *square = *square * beta2 + g * g * one_less2;
            *w = *w * keep - step * *mean / (square.sqrt() / root + eps);
        });
    })?;
    let shape = old.shape();
    Ok([tensor(new, shape)?, tensor(mean, shape)?, tensor(square, shape)?])
}
