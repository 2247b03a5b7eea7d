//! ConvNeXt (Liu et al. 2022) and ConvNeXt V2 (Woo et al. 2023).

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use nets::ops::{Activation, add, global_average_pool};

use crate::{
    layers::{Act, Conv, Edges, Shape, layer_norm, linear, scaled},
    ops::{self, GlobalResponse, Map as _, Pointwise, pointwise, swap},
};

/// The sizes of a ConvNeXt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Config {
    pub blocks: [usize; 4],
    pub channels: [usize; 4],
    /// Version 2: global response normalisation inside the block, and no scale after it.
    pub second: bool,
}

impl Config {
    pub fn resized(self, width: f64, depth: f64) -> Self {
        let scale = |n: usize, by: f64| (n as f64 * by).max(1.0);
        Self {
            blocks: self.blocks.map(|blocks| scale(blocks, depth).ceil() as usize),
            channels: self.channels.map(|channels| scale(channels, width).round() as usize),
            ..self
        }
    }

    pub fn multiplications(&self, mut side: usize, classes: usize) -> u64 {
        let mut sum = 0;
        let mut inputs = 3;
        for (stage, (&blocks, &c)) in self.blocks.iter().zip(&self.channels).enumerate() {
            let patch = if stage == 0 { 4 } else { 2 };
            side /= patch;
            sum += side * side * c * (inputs * patch * patch + blocks * (49 + 8 * c));
            inputs = c;
        }
        (sum + inputs * classes) as u64
    }
}

#[derive(Debug)]
struct Block {
    conv: Conv,
    norm: ops::LayerNorm,
    fc1: ops::Linear,
    response: Option<GlobalResponse>,
    fc2: ops::Linear,
}

impl Block {
    fn new(c: usize, second: bool, vb: &VarBuilder<'_>) -> Result<Self> {
        let fc2 = linear(4 * c, c, &vb.pp("mlp.fc2"))?;
        let response = |vb: &VarBuilder<'_>| -> Result<GlobalResponse> {
            Ok(GlobalResponse { weight: vb.get(4 * c, "weight")?, bias: vb.get(4 * c, "bias")? })
        };
        Ok(Self {
            conv: Conv::new(Shape::depthwise(c, 7, 1), Edges::Symmetric, Act::None, &vb.pp("conv_dw"))?,
            norm: layer_norm(c, &vb.pp("norm"))?,
            fc1: linear(c, 4 * c, &vb.pp("mlp.fc1"))?,
            response: second.then(|| response(&vb.pp("mlp.grn"))).transpose()?,
            fc2: if second { fc2 } else { scaled(fc2, &vb.get(c, "gamma")?)? },
        })
    }
}

impl Module for Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = rows(&self.conv.forward(x)?)?;
        let mut inner = pointwise(&self.fc1.apply(&self.norm.apply(&inner)?)?, Pointwise::Gelu)?;
        if let Some(response) = &self.response {
            inner = response.apply(&inner)?;
        }
        add(x, &planes(&self.fc2.apply(&inner)?, x.dims())?, Activation::None)
    }
}

/// `(n, c, h, w)` to `(n, h w, c)`.
fn rows(x: &Tensor) -> Result<Tensor> {
    swap(&x.flatten_from(2)?)
}

/// `(n, h w, c)` to `(n, c, h, w)` with the places of `like`.
fn planes(x: &Tensor, like: &[usize]) -> Result<Tensor> {
    let c = x.dim(2)?;
    swap(x)?.reshape((like[0], c, like[2], like[3]))
}

/// A normalisation over the channels of `(n, c, h, w)`.
fn norm_planes(norm: &ops::LayerNorm, x: &Tensor) -> Result<Tensor> {
    planes(&norm.apply(&rows(x)?)?, x.dims())
}

#[derive(Debug)]
struct Stage {
    /// What halves the image before the stage; of the first, the stem.
    norm: ops::LayerNorm,
    conv: Conv,
    blocks: Vec<Block>,
}

/// A ConvNeXt; the names of its parameters are timm's.
#[derive(Debug)]
pub(crate) struct Convnext {
    stages: Vec<Stage>,
    norm: ops::LayerNorm,
    head: ops::Linear,
}

impl Convnext {
    pub fn new(config: &Config, classes: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let mut stages = Vec::new();
        let mut inputs = 3;
        for (index, (&blocks, &c)) in config.blocks.iter().zip(&config.channels).enumerate() {
            let (conv, norm, patch, normed) = match index {
                0 => ("stem.0".to_owned(), "stem.1".to_owned(), 4, c),
                _ => (format!("stages.{index}.downsample.1"), format!("stages.{index}.downsample.0"), 2, inputs),
            };
            let block = |block| Block::new(c, config.second, &vb.pp(format!("stages.{index}.blocks.{block}")));
            stages.push(Stage {
                norm: layer_norm(normed, &vb.pp(norm))?,
                conv: Conv::new(Shape::dense(inputs, c, patch, patch), Edges::Valid, Act::None, &vb.pp(conv))?,
                blocks: (0..blocks).map(block).collect::<Result<_>>()?,
            });
            inputs = c;
        }
        let norm = layer_norm(inputs, &vb.pp("head.norm"))?;
        Ok(Self { stages, norm, head: linear(inputs, classes, &vb.pp("head.fc"))? })
    }
}

impl Module for Convnext {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (index, stage) in self.stages.iter().enumerate() {
            x = match index {
                0 => norm_planes(&stage.norm, &stage.conv.forward(&x)?)?,
                _ => stage.conv.forward(&norm_planes(&stage.norm, &x)?)?,
            };
            for block in &stage.blocks {
                x = block.forward(&x)?;
            }
        }
        self.head.apply(&self.norm.apply(&global_average_pool(&x)?)?)
    }
}
