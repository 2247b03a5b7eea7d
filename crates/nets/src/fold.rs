//! Batch normalisation of frozen networks, folded into the convolutions before it.

use candle_core::{DType, Result, Tensor, bail};

use crate::{Graph, Id, Op, Weights};

/// The same function with every batch normalisation that directly follows a convolution folded into it: the
/// convolution's weights are scaled, and it gains a bias.
///
/// The arithmetic is done in f64 and rounded once to the weights' own type. Weights keep the convolutions' names; those
/// of folded normalisations are gone. A normalisation of anything else, or of a convolution that something else reads
/// too, stays.
///
/// # Errors
/// If a tensor is missing.
pub fn fold(graph: &Graph, weights: &Weights) -> Result<(Graph, Weights)> {
    let readers = graph.readers();
    let mut folded = Graph { nodes: Vec::with_capacity(graph.nodes.len()), classes: graph.classes };
    let mut kept = Weights::new();
    // Where each old node went.
    let mut place: Vec<Id> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        if let Op::BatchNorm { name, eps, .. } = &node.op
            && readers[node.inputs[0]] == 1
            && let Op::Conv(conv) = &mut folded.nodes[place[node.inputs[0]]].op
        {
            conv.bias = true;
            scale(&conv.name, name, *eps, weights, &mut kept)?;
            place.push(place[node.inputs[0]]);
            continue;
        }
        for (name, _) in node.op.parameters() {
            kept.insert(name.clone(), get(weights, &name)?.clone());
        }
        let mut node = node.clone();
        node.inputs.iter_mut().for_each(|input| *input = place[*input]);
        folded.nodes.push(node);
        place.push(folded.nodes.len() - 1);
    }
    Ok((folded, kept))
}

/// `gamma (w x + b - mean) / sqrt(var + eps) + beta`, as one convolution.
fn scale(conv: &str, norm: &str, eps: f64, weights: &Weights, kept: &mut Weights) -> Result<()> {
    let weight_name = format!("{conv}.weight");
    let weight = get(weights, &weight_name)?;
    let part = |part: &str| get(weights, &format!("{norm}.{part}"))?.to_dtype(DType::F64);
    let (gamma, beta) = (part("weight")?, part("bias")?);
    let (mean, var) = (part("running_mean")?, part("running_var")?);
    let factor = (gamma / (var + eps)?.sqrt()?)?;
    let shift = match kept.get(&format!("{conv}.bias")) {
        Some(bias) => (bias.to_dtype(DType::F64)? - mean)?,
        None => mean.neg()?,
    };
    let bias = ((shift * &factor)? + beta)?.to_dtype(weight.dtype())?;
    let scaled = weight.to_dtype(DType::F64)?.broadcast_mul(&factor.reshape(((), 1, 1, 1))?)?;
    kept.insert(weight_name, scaled.to_dtype(weight.dtype())?);
    kept.insert(format!("{conv}.bias"), bias);
    Ok(())
}

/// A tensor by name.
pub(crate) fn get<'a>(weights: &'a Weights, name: &str) -> Result<&'a Tensor> {
    match weights.get(name) {
        Some(tensor) => Ok(tensor),
        None => bail!("the weights hold no tensor `{name}`"),
    }
}
