//! From a graph to fused steps.
//!
//! Batch-norm is folded into the convolution before it; a residual sum and a ReLU after it become its epilogue. All
//! folding is in f64 and rounded once.

use candle_core::{DType, Result, bail};
use nets::{Conv, Graph, Id, Op, Pad, Padding, Weights};

/// The non-linearity at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Act {
    None,
    Relu,
    Relu6,
    LeakyRelu { slope: f32 },
    KeepLargest { share: f64 },
}

impl Act {
    /// The operation as the end of a step, if it can be one.
    fn of(op: &Op) -> Result<Option<Self>> {
        Ok(Some(match *op {
            Op::Relu => Self::Relu,
            Op::Relu6 => Self::Relu6,
            Op::LeakyRelu { slope } if (0.0..1.0).contains(&slope) => Self::LeakyRelu { slope: slope as f32 },
            Op::LeakyRelu { slope } => bail!("a leaky ReLU's slope is {slope}: it must be in [0, 1)"),
            Op::KeepLargest { share } if share > 0.0 && share <= 1.0 => Self::KeepLargest { share },
            Op::KeepLargest { share } => bail!("the share of values to keep is {share}: it must be in (0, 1]"),
            _ => return Ok(None),
        }))
    }
}

/// A convolution's weights `(outputs, inputs / groups, rows, columns)` and bias `(outputs)`, batch-norm folded.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    pub inputs: usize,
    pub outputs: usize,
    /// Rows and columns.
    pub kernel: [usize; 2],
    pub stride: usize,
    pub padding: Pad,
    pub weight: Vec<f32>,
    pub bias: Vec<f64>,
}

impl Network {
    /// Whether answers depend on keys.
    pub(crate) fn draws(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.kind, Kind::Prune { .. }))
    }
}

impl Filter {
    /// The weight from input channel `i` to output channel `o` at row `y`, column `x`.
    pub(crate) fn at(&self, o: usize, i: usize, y: usize, x: usize) -> f64 {
        let [rows, columns] = self.kernel;
        self.weight[((o * self.inputs + i) * rows + y) * columns + x].into()
    }

    /// The padding of a plane of `size` rows and columns.
    pub(crate) const fn padding(&self, size: [usize; 2]) -> Padding {
        self.padding.of(self.kernel, self.stride, size)
    }

    /// Each channel with itself, times a weight.
    fn scale(weight: Vec<f32>, bias: Vec<f64>) -> Self {
        let padding = Pad::default();
        Self { inputs: 1, outputs: bias.len(), kernel: [1, 1], stride: 1, padding, weight, bias }
    }

    /// The mean of each channel over a window.
    fn average(channels: usize, kernel: usize, stride: usize, padding: usize) -> Self {
        let taps = kernel * kernel;
        Self {
            inputs: 1,
            outputs: channels,
            kernel: [kernel; 2],
            stride,
            padding: Padding::same(padding).into(),
            weight: vec![(1.0 / taps as f64) as f32; channels * taps],
            bias: vec![0.0; channels],
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Every output channel sees every input channel.
    Dense(Filter),
    /// Output channel `c` sees input channel `c`; the filter's `inputs` is 1.
    Depthwise(Filter),
    MaxPool {
        kernel: usize,
        stride: usize,
        padding: usize,
    },
    Subsample {
        stride: usize,
        before: usize,
        after: usize,
    },
    GlobalPool,
    /// Means over windows that cover the plane, to `side x side` pixels.
    AdaptivePool {
        side: usize,
    },
    /// Stochastic activation pruning, by the key's child `index`.
    Prune {
        samples: f64,
        index: u64,
    },
    /// The channels of all inputs, one after the other.
    Concat,
    /// The input itself: a sum or a ReLU that no convolution could take.
    Identity,
}

/// `output = act(kind(input) + residual)`. Indices are of values; value 0 is the normalised image.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub kind: Kind,
    pub input: usize,
    /// More inputs, of a concatenation.
    pub others: Vec<usize>,
    pub residual: Option<usize>,
    pub output: usize,
    pub act: Act,
    /// The graph's nodes at which this step begins, and whose value is its output.
    pub first: Id,
    pub node: Id,
}

impl Step {
    /// What the kind is applied to.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.input).chain(self.others.iter().copied())
    }

    /// All values it reads.
    pub(crate) fn reads(&self) -> impl Iterator<Item = usize> {
        self.inputs().chain(self.residual)
    }
}

/// A network as fused steps; step `i` makes value `i + 1`, the last of which is the logits.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
    /// Whether each image is standardised after its normalisation.
    pub standardise: bool,
    pub steps: Vec<Step>,
    pub classes: usize,
    /// Whether Winograd's algorithm is left out.
    pub direct: bool,
}

fn parameter(weights: &Weights, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
    let Some(tensor) = weights.get(name) else { bail!("the weights lack `{name}`") };
    if tensor.dims() != shape {
        bail!("`{name}` has shape {:?}, but the network needs {shape:?}", tensor.dims());
    }
    tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

fn rounded(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// A convolution's filter, after which comes batch-norm, if any, with this scale and shift.
fn filter(conv: &Conv, weights: &Weights, norm: Option<Affine>) -> Result<Filter> {
    let inputs = conv.inputs / conv.groups;
    let kernel = conv.kernel;
    let shape = [conv.outputs, inputs, kernel[0], kernel[1]];
    let mut weight = parameter(weights, &format!("{}.weight", conv.name), &shape)?;
    let mut bias = match conv.bias {
        true => parameter(weights, &format!("{}.bias", conv.name), &[conv.outputs])?,
        false => vec![0.0; conv.outputs],
    };
    let (outputs, stride, padding) = (conv.outputs, conv.stride, conv.padding);
    if let Some((scale, shift)) = norm {
        for (o, row) in weight.chunks_mut(shape[1..].iter().product::<usize>().max(1)).enumerate() {
            row.iter_mut().for_each(|w| *w *= scale[o]);
            bias[o] = bias[o] * scale[o] + shift[o];
        }
    }
    let weight = rounded(&weight);
    Ok(Filter { inputs, outputs, kernel, stride, padding, weight, bias })
}

/// Groups that are neither one nor one per channel: zeros between the groups.
fn densify(filter: Filter, groups: usize) -> Filter {
    let (inputs, outputs) = (filter.inputs * groups, filter.outputs);
    let taps = filter.kernel[0] * filter.kernel[1];
    let mut weight = vec![0.0; outputs * inputs * taps];
    for o in 0..outputs {
        let first = o / (outputs / groups) * filter.inputs;
        let (from, to, len) = (o * filter.inputs * taps, (o * inputs + first) * taps, filter.inputs * taps);
        weight[to..to + len].copy_from_slice(&filter.weight[from..from + len]);
    }
    Filter { inputs, weight, ..filter }
}

/// Scale and shift per channel.
type Affine = (Vec<f64>, Vec<f64>);

/// Batch-norm as scale and shift.
fn affine(weights: &Weights, name: &str, channels: usize, eps: f64) -> Result<Affine> {
    let get = |part: &str| parameter(weights, &format!("{name}.{part}"), &[channels]);
    let (gain, bias) = (get("weight")?, get("bias")?);
    let (mean, variance) = (get("running_mean")?, get("running_var")?);
    let scale: Vec<f64> = gain.iter().zip(&variance).map(|(g, v)| g / (v + eps).sqrt()).collect();
    let shift = (0..channels).map(|c| bias[c] - mean[c] * scale[c]).collect();
    Ok((scale, shift))
}

/// A step's kind, first node, residual and non-linearity, in nodes.
type End = (Kind, Id, Option<Id>, Act);

struct Lowering<'a> {
    graph: &'a Graph,
    /// Of each node.
    channels: Vec<usize>,
    consumers: Vec<Vec<Id>>,
    /// Nodes that became part of an earlier node's step.
    taken: Vec<bool>,
    /// The step that ends at a node.
    ends: Vec<Option<End>>,
}

impl Lowering<'_> {
    /// The only consumer of a node, if nobody took it yet.
    fn next(&self, id: Id) -> Option<Id> {
        match self.consumers[id][..] {
            [only] if !self.taken[only] => Some(only),
            _ => None,
        }
    }

    fn take_residual(&mut self, end: &mut Id) -> Option<Id> {
        let next = self.next(*end)?;
        if self.graph.nodes[next].op != Op::Add {
            return None;
        }
        let other = *self.graph.nodes[next].inputs.iter().find(|&&i| i != *end)?;
        self.taken[next] = true;
        *end = next;
        Some(other)
    }

    fn take_act(&mut self, end: &mut Id) -> Result<Act> {
        let Some(next) = self.next(*end) else { return Ok(Act::None) };
        let Some(act) = Act::of(&self.graph.nodes[next].op)? else { return Ok(Act::None) };
        self.taken[next] = true;
        *end = next;
        Ok(act)
    }

    /// Starts a step at `id` and lets it take what follows.
    fn fuse(&mut self, id: Id, mut end: Id, kind: Kind) -> Result<()> {
        let residual = self.take_residual(&mut end);
        let act = self.take_act(&mut end)?;
        self.ends[end] = Some((kind, id, residual, act));
        Ok(())
    }

    fn visit(&mut self, id: Id, weights: &Weights) -> Result<()> {
        let node = &self.graph.nodes[id];
        match &node.op {
            Op::Conv(conv) => {
                let (mut end, mut norm) = (id, None);
                if let Some(next) = self.next(id)
                    && let Op::BatchNorm { name, channels, eps } = &self.graph.nodes[next].op
                {
                    norm = Some(affine(weights, name, *channels, *eps)?);
                    self.taken[next] = true;
                    end = next;
                }
                let filter = filter(conv, weights, norm)?;
                let depthwise = conv.groups > 1 && conv.groups == conv.inputs && conv.inputs == conv.outputs;
                let kind = match depthwise {
                    true => Kind::Depthwise(filter),
                    false if conv.groups > 1 => Kind::Dense(densify(filter, conv.groups)),
                    false => Kind::Dense(filter),
                };
                self.fuse(id, end, kind)?;
            }
            Op::Linear { name, inputs: total, outputs } => {
                let weight = rounded(&parameter(weights, &format!("{name}.weight"), &[*outputs, *total])?);
                let bias = parameter(weights, &format!("{name}.bias"), &[*outputs])?;
                let (inputs, outputs) = (self.channels[node.inputs[0]], *outputs);
                let side = plane(*total, inputs, id)?;
                let (kernel, stride, padding) = ([side; 2], side, Pad::default());
                let filter = Filter { inputs, outputs, kernel, stride, padding, weight, bias };
                self.fuse(id, id, Kind::Dense(filter))?;
            }
            Op::BatchNorm { name, channels, eps } => {
                let (scale, bias) = affine(weights, name, *channels, *eps)?;
                self.fuse(id, id, Kind::Depthwise(Filter::scale(rounded(&scale), bias)))?;
            }
            Op::Add => {
                let mut end = id;
                let act = self.take_act(&mut end)?;
                self.ends[end] = Some((Kind::Identity, id, Some(node.inputs[1]), act));
            }
            Op::Relu | Op::Relu6 | Op::LeakyRelu { .. } | Op::KeepLargest { .. } => {
                let act = Act::of(&node.op)?.unwrap_or(Act::None);
                self.ends[id] = Some((Kind::Identity, id, None, act));
            }
            &Op::MaxPool { kernel, stride, padding } => {
                self.ends[id] = Some((Kind::MaxPool { kernel, stride, padding }, id, None, Act::None));
            }
            &Op::Subsample { stride, before, after } => {
                self.ends[id] = Some((Kind::Subsample { stride, before, after }, id, None, Act::None));
            }
            &Op::Prune { samples, index } => {
                if !(samples > 0.0 && samples.is_finite()) {
                    bail!("node {id}: pruning stands for {samples} draws per value, which must be above 0");
                }
                self.fuse(id, id, Kind::Prune { samples, index })?;
            }
            &Op::AveragePool { kernel, stride, padding } => {
                let filter = Filter::average(self.channels[id], kernel, stride, padding);
                self.fuse(id, id, Kind::Depthwise(filter))?;
            }
            Op::GlobalAveragePool => self.ends[id] = Some((Kind::GlobalPool, id, None, Act::None)),
            &Op::AdaptiveAveragePool { side } => {
                self.ends[id] = Some((Kind::AdaptivePool { side }, id, None, Act::None));
            }
            Op::Concat => self.ends[id] = Some((Kind::Concat, id, None, Act::None)),
            Op::Input | Op::Normalise { .. } | Op::Standardise => {
                bail!("node {id}: an image is normalised, and then standardised, once and at the start")
            }
        }
        Ok(())
    }
}

/// The side of the plane that a linear layer of `total` inputs takes whole: it is a convolution by a kernel of that side,
/// and so of stride, that the gradient has no multiplication by a border.
fn plane(total: usize, channels: usize, id: Id) -> Result<usize> {
    let side = total.checked_div(channels).unwrap_or(0).isqrt();
    if side * side * channels != total || total == 0 {
        bail!("node {id}: a linear layer of {total} inputs is given {channels} channels");
    }
    Ok(side)
}

/// The channels of each node, as far as they do not depend on parameters.
fn channels(graph: &Graph) -> Vec<usize> {
    let mut channels: Vec<usize> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let of_inputs = node.inputs.iter().map(|&input| channels[input]);
        channels.push(match &node.op {
            Op::Normalise { mean, .. } => mean.len(),
            Op::Conv(conv) => conv.outputs,
            Op::Linear { outputs, .. } => *outputs,
            Op::Subsample { before, after, .. } => before + of_inputs.sum::<usize>() + after,
            Op::Concat => of_inputs.sum(),
            _ => of_inputs.take(1).sum(),
        });
    }
    channels
}

/// Fuses a graph into steps.
pub(crate) fn lower(graph: &Graph, weights: &Weights) -> Result<Network> {
    let count = graph.nodes.len();
    let mut consumers = vec![Vec::new(); count];
    for (id, node) in graph.nodes.iter().enumerate() {
        for &input in &node.inputs {
            if input >= id {
                bail!("node {id} reads node {input}, which is not before it");
            }
            consumers[input].push(id);
        }
    }
    let (Some(Op::Input), Some(Op::Normalise { mean, std })) =
        (graph.nodes.first().map(|n| &n.op), graph.nodes.get(1).map(|n| &n.op))
    else {
        bail!("a network starts with the input and its normalisation");
    };
    let channels = channels(graph);
    // Where the network begins.
    let standardise = matches!(graph.nodes.get(2), Some(node) if node.op == Op::Standardise) && consumers[1] == [2];
    let start = if standardise { 2 } else { 1 };
    let mut lowering = Lowering { graph, channels, consumers, taken: vec![false; count], ends: vec![None; count] };
    let mut values = vec![None; count];
    values[start] = Some(0);
    let mut steps: Vec<Step> = Vec::new();
    for id in start + 1..count {
        if !lowering.taken[id] {
            lowering.visit(id, weights)?;
        }
        if let Some((kind, first, residual, act)) = lowering.ends[id].take() {
            let value = |node: Id| match values[node] {
                Some(value) => Ok(value),
                None => bail!("node {node} is read in an order that cannot be fused"),
            };
            let others = match kind {
                Kind::Concat => &graph.nodes[first].inputs[1..],
                _ => &[],
            };
            let step = Step {
                kind,
                input: value(graph.nodes[first].inputs[0])?,
                others: others.iter().map(|&other| value(other)).collect::<Result<_>>()?,
                residual: residual.map(value).transpose()?,
                output: steps.len() + 1,
                act,
                first,
                node: id,
            };
            let besides = step.residual == Some(0) || step.others.contains(&0);
            if besides || step.input == 0 && !matches!(step.kind, Kind::Dense(_)) {
                bail!("only convolutions without groups may read the image");
            }
            steps.push(step);
            values[id] = Some(steps.len());
        }
    }
    if values[count - 1] != Some(steps.len()) || steps.is_empty() {
        bail!("the last node must give the logits");
    }
    Ok(Network { mean: mean.clone(), std: std.clone(), standardise, steps, classes: graph.classes, direct: false })
}
