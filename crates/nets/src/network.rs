//! A frozen network on candle's autograd.

use candle_core::{DType, Device, Result, Tensor, bail};
use game::{Classifier, Key};

use crate::{
    Graph, Op, Pad, Precision, Weights,
    fold::{fold, get},
    ops::{self, Activation, Affine, Frozen, Window},
    steps::{Step, run, stateless, steps},
};

/// A frozen network in evaluation mode: batch normalisation uses its running statistics.
///
/// It computes in its weights' type, f32 or f64, and asks for images of that type. Gradients reach the input; the
/// weights have none. A stochastic graph asks for one key per image. On the CPU an image's logits and gradient are the
/// same bits in every batch and on any number of threads.
#[derive(Debug)]
pub struct Network {
    steps: Vec<Step>,
    layers: Vec<Layer>,
    classes: usize,
    dtype: DType,
    device: Device,
}

/// A step's parameters.
#[derive(Debug)]
enum Layer {
    /// Padded as the plane's size asks for.
    Conv(Frozen, Pad),
    /// Takes `(n, c)` as images of one pixel.
    Linear(Frozen),
    Affine(Affine),
    /// With keys derived at `index`.
    Prune {
        samples: f64,
        index: u64,
    },
    Stateless,
}

impl Network {
    /// The network of `graph` with `weights` (f32 or f64), on `device`.
    ///
    /// # Errors
    /// If a tensor is missing or of another type than the rest, or cannot be moved to the device.
    pub fn new(graph: &Graph, weights: &Weights, device: &Device) -> Result<Self> {
        Self::in_precision(graph, weights, device, Precision::F32)
    }

    /// The same, multiplying in `precision`, which only a GPU offers.
    ///
    /// # Errors
    /// As [`Network::new`]; that the device has no such precision shows when it is asked.
    pub fn in_precision(graph: &Graph, weights: &Weights, device: &Device, precision: Precision) -> Result<Self> {
        let (graph, weights) = fold(graph, weights)?;
        let dtype = weights.values().next().map_or(DType::F32, Tensor::dtype);
        if let Some((name, other)) = weights.iter().find(|(_, tensor)| tensor.dtype() != dtype) {
            bail!("tensor `{name}` is {:?} where others are {dtype:?}", other.dtype());
        }
        if !matches!(dtype, DType::F32 | DType::F64) {
            bail!("networks compute in f32 or f64, not {dtype:?}");
        }
        let steps = steps(&graph, true);
        let layers = steps.iter().map(|step| Layer::new(step, &weights, device, precision)).collect::<Result<_>>()?;
        Ok(Self { steps, layers, classes: graph.classes, dtype, device: device.clone() })
    }

    /// The type of images and logits: that of the weights.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }
}

impl Layer {
    fn new(step: &Step, weights: &Weights, device: &Device, precision: Precision) -> Result<Self> {
        let tensor = |name: String| get(weights, &name)?.detach().to_device(device)?.contiguous();
        Ok(match &step.op {
            Op::Conv(conv) => {
                let frozen = Frozen {
                    weight: tensor(format!("{}.weight", conv.name))?,
                    bias: conv.bias.then(|| tensor(format!("{}.bias", conv.name))).transpose()?,
                    window: Window { stride: conv.stride, groups: conv.groups, ..Window::default() },
                    activation: step.activation,
                    precision,
                };
                Self::Conv(frozen, conv.padding)
            }
            Op::Linear { name, .. } => Self::Linear(Frozen {
                weight: tensor(format!("{name}.weight"))?.unsqueeze(2)?.unsqueeze(3)?,
                bias: Some(tensor(format!("{name}.bias"))?),
                window: Window::default(),
                activation: Activation::None,
                precision,
            }),
            Op::BatchNorm { name, eps, .. } => {
                let part = |part: &str| {
                    get(weights, &format!("{name}.{part}"))?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()
                };
                let (gamma, var): (Vec<f64>, Vec<f64>) = (part("weight")?, part("running_var")?);
                let scale = gamma.iter().zip(var).map(|(gamma, var)| gamma / (var + eps).sqrt()).collect();
                let (centre, shift) = (part("running_mean")?, part("bias")?);
                Self::Affine(Affine { centre, scale, shift, activation: step.activation })
            }
            &Op::Prune { samples, index } => Self::Prune { samples, index },
            _ => Self::Stateless,
        })
    }

    fn apply(&self, step: &Step, inputs: &[&Tensor], keys: &[Key]) -> Result<Tensor> {
        match self {
            Self::Conv(conv, pad) => {
                let (_, _, h, w) = inputs[0].dims4()?;
                let (_, _, rows, columns) = conv.weight.dims4()?;
                let padding = pad.of([rows, columns], conv.window.stride, [h, w]);
                let conv = Frozen { window: Window { padding, ..conv.window }, ..conv.clone() };
                conv.apply(inputs[0], inputs.get(1).copied())
            }
            Self::Linear(linear) => {
                let x = inputs[0].flatten_from(1)?.unsqueeze(2)?.unsqueeze(3)?;
                linear.apply(&x, None)?.flatten_from(1)
            }
            Self::Affine(affine) => affine.apply(inputs[0]),
            Self::Prune { samples, index } => {
                let keys: Vec<Key> = keys.iter().map(|key| key.at(*index)).collect();
                ops::prune(inputs[0], *samples, &keys)
            }
            Self::Stateless => stateless(step, inputs),
        }
    }
}

impl Classifier for Network {
    fn classes(&self) -> usize {
        self.classes
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        if x.dtype() != self.dtype {
            bail!("the network computes in {:?}: convert the images from {:?} first", self.dtype, x.dtype());
        }
        run(&self.steps, x, |index, inputs| self.layers[index].apply(&self.steps[index], inputs, keys))
    }
}

#[cfg(test)]
mod tests {
    use game::Phase;

    use super::*;
    use crate::{Spec, weights};

    #[test]
    fn graphs_know_the_shapes_that_their_nodes_have() {
        let inception = r#"{"name": "inception-v3"}"#;
        for (spec, side) in [
            (r#"{"name": "cifar-resnet", "depth": 20, "shortcut": "A"}"#, 32),
            (r#"{"name": "resnet", "depth": 18}"#, 65),
            (r#"{"name": "resnet", "depth": 50}"#, 33),
            (inception, 79),
            (r#"{"name": "efficientnet-lite", "variant": 0}"#, 65),
            (r#"{"name": "densenet", "depth": 121}"#, 33),
            (r#"{"name": "vgg", "depth": 11, "batch_norm": true, "hidden": 8}"#, 39),
            (r#"{"name": "preact-resnet", "depth": 18}"#, 15),
        ] {
            let spec: Spec = serde_json::from_str(spec).unwrap();
            let graph = spec.graph().unwrap();
            let weights = weights::initialise(&graph, Key::root(0).phase(Phase::Init)).unwrap();
            let network = Network::new(&graph, &weights, &Device::Cpu).unwrap();
            let (folded, _) = fold(&graph, &weights).unwrap();
            let shapes = folded.shapes(side, side + 2);
            let x = Tensor::zeros((1, 3, side, side + 2), DType::F32, &Device::Cpu).unwrap();
            run(&network.steps, &x, |index, inputs| {
                let (step, out) =
                    (&network.steps[index], network.layers[index].apply(&network.steps[index], inputs, &[])?);
                let shape: Vec<usize> = out.dims()[1..].iter().copied().chain([1, 1]).take(3).collect();
                assert_eq!(shape, shapes[step.output], "{step:?}");
                Ok(out)
            })
            .unwrap();
            assert!(graph.numbers(side, side) > folded.numbers(side, side));
        }
    }
}
