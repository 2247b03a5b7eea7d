//! The order in which an executor runs a graph, with sums and activations fused into the layers before them.

use candle_core::{Result, Tensor, bail};

use crate::{Graph, Id, Op, ops::Activation};

/// A layer with what is fused into it.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub op: Op,
    /// What the layer reads; of a convolution with a residual sum, the residual is the second.
    pub inputs: Vec<Id>,
    pub activation: Activation,
    /// The last of the fused nodes.
    pub output: Id,
    /// The nodes that no later step reads.
    spent: Vec<Id>,
}

/// The steps of a graph, in order of evaluation. Activations are fused into batch normalisations and sums; with
/// `into_conv`, sums and activations are fused into convolutions.
pub(crate) fn steps(graph: &Graph, into_conv: bool) -> Vec<Step> {
    let mut users: Vec<Vec<Id>> = vec![vec![]; graph.nodes.len()];
    for (id, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|&input| users[input].push(id));
    }
    let mut fused = vec![false; graph.nodes.len()];
    let mut steps = Vec::new();
    for (id, node) in graph.nodes.iter().enumerate().skip(1) {
        if fused[id] {
            continue;
        }
        let (mut output, mut inputs, mut activation) = (id, node.inputs.clone(), Activation::None);
        if let (Op::Conv(_), true, &[user]) = (&node.op, into_conv, &users[output][..])
            && graph.nodes[user].op == Op::Add
            && !fused[user]
        {
            inputs.extend(graph.nodes[user].inputs.iter().filter(|&&input| input != id));
            fused[user] = true;
            output = user;
        }
        let fusing = matches!(node.op, Op::BatchNorm { .. } | Op::Add) || (into_conv && matches!(node.op, Op::Conv(_)));
        if let (true, &[user]) = (fusing, &users[output][..])
            && let Some(fusible) = activation_of(&graph.nodes[user].op)
        {
            activation = fusible;
            fused[user] = true;
            output = user;
        }
        steps.push(Step { op: node.op.clone(), inputs, activation, output, spent: vec![] });
    }
    steps.sort_by_key(|step| step.output);
    let mut seen = vec![false; graph.nodes.len()];
    for step in steps.iter_mut().rev() {
        for &input in &step.inputs {
            if !std::mem::replace(&mut seen[input], true) {
                step.spent.push(input);
            }
        }
    }
    steps
}

fn activation_of(op: &Op) -> Option<Activation> {
    match *op {
        Op::Relu => Some(Activation::Relu),
        Op::Relu6 => Some(Activation::Relu6),
        Op::LeakyRelu { slope } => Some(Activation::LeakyRelu { slope }),
        _ => None,
    }
}

/// Runs `layer(index, inputs)` for every step, and answers with the last one's output.
pub(crate) fn run(
    steps: &[Step],
    x: &Tensor,
    mut layer: impl FnMut(usize, &[&Tensor]) -> Result<Tensor>,
) -> Result<Tensor> {
    let nodes = steps.iter().map(|step| step.output).max().unwrap_or_default() + 1;
    let mut values: Vec<Option<Tensor>> = vec![None; nodes];
    values[0] = Some(x.clone());
    for (index, step) in steps.iter().enumerate() {
        let inputs: Vec<&Tensor> = step.inputs.iter().filter_map(|&input| values[input].as_ref()).collect();
        if inputs.len() != step.inputs.len() {
            bail!("node {} of the graph reads a node that is not before it", step.output);
        }
        let value = layer(index, &inputs)?;
        values[step.output] = Some(value);
        // Freed as early as possible: only what the gradient needs outlives its readers.
        step.spent.iter().for_each(|&spent| values[spent] = None);
    }
    match values.pop().flatten() {
        Some(logits) => Ok(logits),
        None => bail!("a graph without layers"),
    }
}

/// The layers that need neither parameters nor statistics.
pub(crate) fn stateless(step: &Step, inputs: &[&Tensor]) -> Result<Tensor> {
    use crate::ops;
    let x = inputs[0];
    match &step.op {
        Op::Normalise { mean, std } => ops::Affine {
            centre: mean.clone(),
            scale: std.iter().map(|std| 1.0 / std).collect(),
            shift: vec![0.0; mean.len()],
            activation: Activation::None,
        }
        .apply(x),
        op @ (Op::Relu | Op::Relu6 | Op::LeakyRelu { .. }) => ops::activate(x, activation_of(op).unwrap_or_default()),
        Op::KeepLargest { share } => ops::keep_largest(x, *share),
        Op::Standardise => ops::standardise(x),
        Op::Concat => Tensor::cat(inputs, 1),
        Op::Add => ops::add(x, inputs[1], step.activation),
        Op::MaxPool { kernel, stride, padding } => ops::max_pool(x, *kernel, *stride, *padding),
        Op::AveragePool { kernel, stride, padding } => ops::average_pool(x, *kernel, *stride, *padding),
        Op::Subsample { stride, before, after } => ops::subsample(x, *stride, *before, *after),
        Op::GlobalAveragePool => ops::global_average_pool(x),
        Op::AdaptiveAveragePool { side } => ops::adaptive_average_pool(x, *side),
        Op::Prune { .. } => bail!("a stochastic network is trained without its randomness"),
        Op::Input | Op::Conv(_) | Op::BatchNorm { .. } | Op::Linear { .. } => {
            bail!("node {} of the graph cannot stand there", step.output)
        }
    }
}
