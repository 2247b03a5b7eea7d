//! EfficientNet (Tan and Le 2019), as timm trained it and as TensorFlow's weights were converted.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use nets::ops::global_average_pool;

use crate::{
    layers::{Act, Conv, Edges, Shape, linear},
    ops::{self, Map as _, Pointwise, gate, pointwise},
    round_channels,
};

/// The sizes of an EfficientNet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Config {
    /// Multiplies the channels of B0.
    pub width: f64,
    /// Multiplies the blocks of a stage of B0.
    pub depth: f64,
    /// TensorFlow's: its padding, and 1e-3 beside the variances.
    pub tensorflow: bool,
}

/// Expansion, channels, blocks, stride and kernel of each stage of B0 (table 1 of the paper).
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
];

/// One inverted residual.
#[derive(Clone, Debug)]
pub(crate) struct Inverted {
    /// Its name, as `blocks.0.0`.
    pub name: String,
    inputs: usize,
    outputs: usize,
    pub expansion: usize,
    stride: usize,
    kernel: usize,
}

impl Config {
    pub fn resized(self, width: f64, depth: f64) -> Self {
        Self { width: self.width * width, depth: self.depth * depth, ..self }
    }

    fn channels(&self, channels: usize) -> usize {
        round_channels(channels as f64 * self.width)
    }

    /// All blocks in their order.
    pub fn blocks(&self) -> Vec<Inverted> {
        let mut inputs = self.channels(32);
        let mut blocks = Vec::new();
        for (stage, (expansion, channels, count, stride, kernel)) in STAGES.into_iter().enumerate() {
            for block in 0..(count as f64 * self.depth).ceil() as usize {
                let (outputs, stride) = (self.channels(channels), if block == 0 { stride } else { 1 });
                let name = format!("blocks.{stage}.{block}");
                blocks.push(Inverted { name, inputs, outputs, expansion, stride, kernel });
                inputs = outputs;
            }
        }
        blocks
    }

    pub fn multiplications(&self, mut side: usize, classes: usize) -> u64 {
        let mut sum = Shape::dense(3, self.channels(32), 3, 2).multiplications(&mut side);
        let mut last = 0;
        for block in self.blocks() {
            let hidden = block.inputs * block.expansion;
            if block.expansion > 1 {
                sum += Shape::dense(block.inputs, hidden, 1, 1).multiplications(&mut side);
            }
            sum += Shape::depthwise(hidden, block.kernel, block.stride).multiplications(&mut side);
            sum += (2 * hidden * block.squeezed()) as u64;
            sum += Shape::dense(hidden, block.outputs, 1, 1).multiplications(&mut side);
            last = block.outputs;
        }
        let features = self.channels(1280);
        sum + Shape::dense(last, features, 1, 1).multiplications(&mut side) + (features * classes) as u64
    }

    const fn edges(&self) -> Edges {
        if self.tensorflow { Edges::Same } else { Edges::Symmetric }
    }

    const fn eps(&self) -> f64 {
        if self.tensorflow { 1e-3 } else { 1e-5 }
    }
}

impl Inverted {
    /// Channels between the two layers that weigh the channels (Hu et al. 2018): a quarter of the block's inputs.
    fn squeezed(&self) -> usize {
        (self.inputs as f64 / 4.0).round_ties_even().max(1.0) as usize
    }
}

#[derive(Debug)]
struct Block {
    expand: Option<Conv>,
    depthwise: Conv,
    reduce: Conv,
    widen: Conv,
    project: Conv,
    residual: bool,
}

impl Block {
    fn new(config: &Config, block: &Inverted, vb: &VarBuilder<'_>) -> Result<Self> {
        let vb = vb.pp(&block.name);
        let hidden = block.inputs * block.expansion;
        let (edges, eps) = (config.edges(), config.eps());
        let conv = |shape: Shape, act: Act, conv: &str, norm: &str| {
            Conv::normed(shape, edges, act, eps, &vb.pp(conv), &vb.pp(norm))
        };
        // The names of a block without expansion are those of a plain separable convolution.
        let [first, second, project] = if block.expansion == 1 {
            [("", ""), ("conv_dw", "bn1"), ("conv_pw", "bn2")]
        } else {
            [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
        };
        let expand = || conv(Shape::dense(block.inputs, hidden, 1, 1), Act::Silu, first.0, first.1);
        let depthwise = Shape::depthwise(hidden, block.kernel, block.stride);
        let (into, out_of) =
            (Shape::dense(hidden, block.squeezed(), 1, 1), Shape::dense(block.squeezed(), hidden, 1, 1));
        Ok(Self {
            expand: (block.expansion > 1).then(expand).transpose()?,
            depthwise: conv(depthwise, Act::Silu, second.0, second.1)?,
            reduce: Conv::new(into, Edges::Valid, Act::Silu, &vb.pp("se.conv_reduce"))?,
            widen: Conv::new(out_of, Edges::Valid, Act::None, &vb.pp("se.conv_expand"))?,
            project: conv(Shape::dense(hidden, block.outputs, 1, 1), Act::None, project.0, project.1)?,
            residual: block.stride == 1 && block.inputs == block.outputs,
        })
    }
}

impl Module for Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let expanded = self.expand.as_ref().map(|conv| conv.forward(x)).transpose()?;
        let inner = self.depthwise.forward(expanded.as_ref().unwrap_or(x))?;
        let weights = self.widen.of_vectors(&self.reduce.of_vectors(&global_average_pool(&inner)?)?)?;
        let inner = gate(&inner, &pointwise(&weights, Pointwise::Sigmoid)?)?;
        if self.residual { self.project.plus(&inner, x) } else { self.project.forward(&inner) }
    }
}

/// An EfficientNet; the names of its parameters are timm's.
#[derive(Debug)]
pub(crate) struct EfficientNet {
    stem: Conv,
    blocks: Vec<Block>,
    last: Conv,
    head: ops::Linear,
}

impl EfficientNet {
    pub fn new(config: &Config, classes: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let (edges, eps) = (config.edges(), config.eps());
        let conv = |shape: Shape, conv: &str, norm: &str| {
            Conv::normed(shape, edges, Act::Silu, eps, &vb.pp(conv), &vb.pp(norm))
        };
        let blocks = config.blocks();
        let (inputs, features) = (blocks.last().map_or(0, |block| block.outputs), config.channels(1280));
        Ok(Self {
            stem: conv(Shape::dense(3, config.channels(32), 3, 2), "conv_stem", "bn1")?,
            blocks: blocks.iter().map(|block| Block::new(config, block, vb)).collect::<Result<_>>()?,
            last: conv(Shape::dense(inputs, features, 1, 1), "conv_head", "bn2")?,
            head: linear(features, classes, &vb.pp("classifier"))?,
        })
    }
}

impl Module for EfficientNet {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.stem.forward(x)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.head.apply(&global_average_pool(&self.last.forward(&x)?)?)
    }
}
