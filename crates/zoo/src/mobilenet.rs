//! MobileNetV4 of convolutions alone (Qin et al. 2024).

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use nets::ops::global_average_pool;

use crate::{
    layers::{Act, Conv, Edges, Shape, linear},
    ops::{self, Map as _},
    round_channels,
};

/// One block of the paper's tables.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Block {
    /// Channels, kernel and stride of a convolution.
    Conv(usize, usize, usize),
    /// Channels, kernel, stride and expansion of a fused inverted bottleneck.
    Fused(usize, usize, usize, usize),
    /// Channels, first and middle depthwise kernel (0 for none), stride and expansion of a universal inverted bottleneck.
    Universal(usize, usize, usize, usize, usize),
}

use Block::{Conv as C, Fused as F, Universal as U};

/// The sizes of a MobileNetV4.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    stem: usize,
    stages: Vec<Vec<Block>>,
    width: f64,
}

/// Channels of the last convolution, which follows the pool.
const FEATURES: usize = 1280;

impl Config {
    fn new(stem: usize, stages: &[&[Block]]) -> Self {
        Self { stem, stages: stages.iter().map(|stage| stage.to_vec()).collect(), width: 1.0 }
    }

    /// Table 11 of the paper.
    pub fn small() -> Self {
        let third = [
            U(96, 5, 5, 2, 3),
            U(96, 0, 3, 1, 2),
            U(96, 0, 3, 1, 2),
            U(96, 0, 3, 1, 2),
            U(96, 0, 3, 1, 2),
            U(96, 3, 0, 1, 4),
        ];
        let fourth = [
            U(128, 3, 3, 2, 6),
            U(128, 5, 5, 1, 4),
            U(128, 0, 5, 1, 4),
            U(128, 0, 5, 1, 3),
            U(128, 0, 3, 1, 4),
            U(128, 0, 3, 1, 4),
        ];
        Self::new(32, &[&[C(32, 3, 2), C(32, 1, 1)], &[C(96, 3, 2), C(64, 1, 1)], &third, &fourth, &[C(960, 1, 1)]])
    }

    /// Table 12.
    pub fn medium() -> Self {
        let third = [
            U(160, 3, 5, 2, 6),
            U(160, 3, 3, 1, 4),
            U(160, 3, 3, 1, 4),
            U(160, 3, 5, 1, 4),
            U(160, 3, 3, 1, 4),
            U(160, 3, 0, 1, 4),
            U(160, 0, 0, 1, 2),
            U(160, 3, 0, 1, 4),
        ];
        let fourth = [
            U(256, 5, 5, 2, 6),
            U(256, 5, 5, 1, 4),
            U(256, 3, 5, 1, 4),
            U(256, 3, 5, 1, 4),
            U(256, 0, 0, 1, 4),
            U(256, 3, 0, 1, 4),
            U(256, 3, 5, 1, 2),
            U(256, 5, 5, 1, 4),
            U(256, 0, 0, 1, 4),
            U(256, 0, 0, 1, 4),
            U(256, 5, 0, 1, 2),
        ];
        let second = [U(80, 3, 5, 2, 4), U(80, 3, 3, 1, 2)];
        Self::new(32, &[&[F(48, 3, 2, 4)], &second, &third, &fourth, &[C(960, 1, 1)]])
    }

    /// Table 14.
    pub fn large() -> Self {
        let mut third = vec![U(192, 3, 5, 2, 4)];
        third.extend([U(192, 3, 3, 1, 4); 3]);
        third.push(U(192, 3, 5, 1, 4));
        third.extend([U(192, 5, 3, 1, 4); 5]);
        third.push(U(192, 3, 0, 1, 4));
        let mut fourth = vec![U(512, 5, 5, 2, 4)];
        fourth.extend([U(512, 5, 5, 1, 4); 3]);
        for middle in [0, 3, 0, 0, 3, 5, 0, 0, 0] {
            fourth.push(U(512, 5, middle, 1, 4));
        }
        let second = [U(96, 3, 5, 2, 4), U(96, 3, 3, 1, 4)];
        Self::new(24, &[&[F(48, 3, 2, 4)], &second, &third, &fourth, &[C(960, 1, 1)]])
    }

    pub fn resized(self, width: f64, depth: f64) -> Self {
        let cut = |mut stage: Vec<Block>| {
            stage.truncate(((stage.len() as f64 * depth).ceil() as usize).max(1));
            stage
        };
        let stages = self.stages.into_iter().map(cut).collect();
        Self { stages, width: self.width * width, ..self }
    }

    fn channels(&self, channels: usize) -> usize {
        round_channels(channels as f64 * self.width)
    }

    /// Channels of the stem, which a narrower network keeps.
    fn stem(&self) -> usize {
        if self.width < 1.0 { self.stem } else { self.channels(self.stem) }
    }

    /// Every block: its name, the channels that it reads, and itself.
    fn blocks(&self) -> Vec<(String, usize, Block)> {
        let mut inputs = self.stem();
        let mut blocks = Vec::new();
        for (stage, of_stage) in self.stages.iter().enumerate() {
            for (index, &block) in of_stage.iter().enumerate() {
                blocks.push((format!("blocks.{stage}.{index}"), inputs, block));
                inputs = self.channels(block.channels());
            }
        }
        blocks
    }

    fn outputs(&self) -> usize {
        self.stages.iter().flatten().last().map_or(0, |block| self.channels(block.channels()))
    }

    pub fn multiplications(&self, mut side: usize, classes: usize) -> u64 {
        let mut sum = Shape::dense(3, self.stem(), 3, 2).multiplications(&mut side);
        for (_, inputs, block) in self.blocks() {
            for (shape, ..) in self.layers(inputs, block) {
                sum += shape.multiplications(&mut side);
            }
        }
        sum + (self.outputs() * FEATURES + FEATURES * classes) as u64
    }

    /// The convolutions of a block: sizes, activation, and the names of the convolution and of its normalisation.
    fn layers(&self, inputs: usize, block: Block) -> Vec<(Shape, Act, &'static str, &'static str)> {
        let outputs = self.channels(block.channels());
        match block {
            C(_, kernel, stride) => vec![(Shape::dense(inputs, outputs, kernel, stride), Act::Relu, "conv", "bn1")],
            F(_, kernel, stride, expansion) => {
                let hidden = round_channels((inputs * expansion) as f64);
                vec![
                    (Shape::dense(inputs, hidden, kernel, stride), Act::Relu, "conv_exp", "bn1"),
                    (Shape::dense(hidden, outputs, 1, 1), Act::None, "conv_pwl", "bn2"),
                ]
            }
            U(_, first, middle, stride, expansion) => {
                let hidden = round_channels((inputs * expansion) as f64);
                let mut layers = Vec::new();
                if first > 0 {
                    let stride = if middle > 0 { 1 } else { stride };
                    layers.push((Shape::depthwise(inputs, first, stride), Act::None, "dw_start.conv", "dw_start.bn"));
                }
                layers.push((Shape::dense(inputs, hidden, 1, 1), Act::Relu, "pw_exp.conv", "pw_exp.bn"));
                if middle > 0 {
                    layers.push((Shape::depthwise(hidden, middle, stride), Act::Relu, "dw_mid.conv", "dw_mid.bn"));
                }
                layers.push((Shape::dense(hidden, outputs, 1, 1), Act::None, "pw_proj.conv", "pw_proj.bn"));
                layers
            }
        }
    }

    /// Whether a block adds its input to its output.
    fn adds(&self, inputs: usize, block: Block) -> bool {
        let stride = match block {
            C(..) => return false,
            F(_, _, stride, _) | U(_, _, _, stride, _) => stride,
        };
        stride == 1 && inputs == self.channels(block.channels())
    }
}

impl Block {
    const fn channels(&self) -> usize {
        match *self {
            C(channels, ..) | F(channels, ..) | U(channels, ..) => channels,
        }
    }
}

/// Beside every variance.
const EPS: f64 = 1e-5;

/// A MobileNetV4; the names of its parameters are timm's.
#[derive(Debug)]
pub(crate) struct MobileNet {
    stem: Conv,
    /// The layers of each block, and whether its input is added to its output.
    blocks: Vec<(Vec<Conv>, bool)>,
    last: Conv,
    head: ops::Linear,
}

impl MobileNet {
    pub fn new(config: &Config, classes: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let conv = |shape: Shape, act: Act, conv: String, norm: String| {
            Conv::normed(shape, Edges::Symmetric, act, EPS, &vb.pp(conv), &vb.pp(norm))
        };
        let block = |(name, inputs, block): (String, usize, Block)| -> Result<_> {
            let layers = config.layers(inputs, block).into_iter();
            let layers =
                layers.map(|(shape, act, of, norm)| conv(shape, act, format!("{name}.{of}"), format!("{name}.{norm}")));
            Ok((layers.collect::<Result<Vec<_>>>()?, config.adds(inputs, block)))
        };
        let stem = Shape::dense(3, config.stem(), 3, 2);
        let last = Shape::dense(config.outputs(), FEATURES, 1, 1);
        Ok(Self {
            stem: conv(stem, Act::Relu, "conv_stem".into(), "bn1".into())?,
            blocks: config.blocks().into_iter().map(block).collect::<Result<_>>()?,
            last: conv(last, Act::Relu, "conv_head".into(), "norm_head".into())?,
            head: linear(FEATURES, classes, &vb.pp("classifier"))?,
        })
    }
}

impl Module for MobileNet {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.stem.forward(x)?;
        for (layers, adds) in &self.blocks {
            let input = x.clone();
            for (index, layer) in layers.iter().enumerate() {
                x = if *adds && index + 1 == layers.len() { layer.plus(&x, &input)? } else { layer.forward(&x)? };
            }
        }
        self.head.apply(&self.last.of_vectors(&global_average_pool(&x)?)?)
    }
}
