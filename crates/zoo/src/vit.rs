//! Vision transformers: ViT (Dosovitskiy et al. 2021), DeiT (Touvron et al. 2021) and DINOv2 with its linear classifier
//! (Oquab et al. 2023).

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use nets::ops::{Activation, add};

use crate::{
    layers::{Act, Conv, Edges, Shape, layer_norm, linear, scaled},
    ops::{self, Attention, Map as _, Pointwise, pointwise, swap},
};

/// What a transformer's last layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// The class token.
    Token,
    /// The class token and the distillation token, each by a layer of its own; the mean of both (DeiT, distilled).
    TwoTokens,
    /// The class token beside the mean of all others (DINOv2).
    TokenAndMean,
}

/// The sizes of a vision transformer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Config {
    pub patch: usize,
    pub depth: usize,
    pub heads: usize,
    /// Channels of one head.
    pub head: usize,
    pub last: Head,
    /// Whether every branch of a block is scaled by channel.
    pub layer_scale: bool,
}

impl Config {
    pub const fn channels(&self) -> usize {
        self.heads * self.head
    }

    pub fn resized(self, width: f64, depth: f64) -> Self {
        let head = ((self.head as f64 * width).round() as usize).max(1);
        Self { head, depth: ((self.depth as f64 * depth).ceil() as usize).max(1), ..self }
    }

    /// Tokens that stand for no patch.
    pub const fn prefix(&self) -> usize {
        if matches!(self.last, Head::TwoTokens) { 2 } else { 1 }
    }

    pub const fn patches(&self, side: usize) -> usize {
        (side / self.patch) * (side / self.patch)
    }

    const fn features(&self) -> usize {
        if matches!(self.last, Head::TokenAndMean) { 2 * self.channels() } else { self.channels() }
    }

    pub fn multiplications(&self, side: usize, classes: usize) -> u64 {
        let (c, p) = (self.channels(), self.patches(side));
        let t = p + self.prefix();
        // The projections of attention take 4 c^2 a token, those after it 8 c^2.
        let block = t * 12 * c * c + 2 * t * t * c;
        let heads = if self.last == Head::TwoTokens { 2 } else { 1 };
        (p * c * 3 * self.patch * self.patch + self.depth * block + heads * self.features() * classes) as u64
    }
}

#[derive(Debug)]
struct Block {
    norm1: ops::LayerNorm,
    qkv: ops::Linear,
    attention: Attention,
    proj: ops::Linear,
    norm2: ops::LayerNorm,
    fc1: ops::Linear,
    fc2: ops::Linear,
}

impl Block {
    fn new(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        let c = config.channels();
        let scale = |layer: ops::Linear, name: &str| match config.layer_scale {
            true => scaled(layer, &vb.get(c, &format!("{name}.gamma"))?),
            false => Ok(layer),
        };
        Ok(Self {
            norm1: layer_norm(c, &vb.pp("norm1"))?,
            qkv: linear(c, 3 * c, &vb.pp("attn.qkv"))?,
            attention: Attention { heads: config.heads },
            proj: scale(linear(c, c, &vb.pp("attn.proj"))?, "ls1")?,
            norm2: layer_norm(c, &vb.pp("norm2"))?,
            fc1: linear(c, 4 * c, &vb.pp("mlp.fc1"))?,
            fc2: scale(linear(4 * c, c, &vb.pp("mlp.fc2"))?, "ls2")?,
        })
    }
}

impl Module for Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let looked = self.attention.apply(&self.qkv.apply(&self.norm1.apply(x)?)?)?;
        let x = add(x, &self.proj.apply(&looked)?, Activation::None)?;
        let inner = pointwise(&self.fc1.apply(&self.norm2.apply(&x)?)?, Pointwise::Gelu)?;
        add(&x, &self.fc2.apply(&inner)?, Activation::None)
    }
}

/// A vision transformer; the names of its parameters are timm's.
#[derive(Debug)]
pub(crate) struct Vit {
    config: Config,
    side: usize,
    embed: Conv,
    /// `(1, prefix, c)`.
    prefix: Tensor,
    /// `(1, t, c)`.
    places: Tensor,
    blocks: Vec<Block>,
    norm: ops::LayerNorm,
    heads: Vec<ops::Linear>,
}

impl Vit {
    pub fn new(config: &Config, side: usize, classes: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let (c, patch) = (config.channels(), config.patch);
        let mut prefix = vec![vb.get((1, 1, c), "cls_token")?];
        let mut heads = vec![linear(config.features(), classes, &vb.pp("head"))?];
        if config.last == Head::TwoTokens {
            prefix.push(vb.get((1, 1, c), "dist_token")?);
            heads.push(linear(c, classes, &vb.pp("head_dist"))?);
        }
        let shape = Shape::dense(3, c, patch, patch);
        let blocks = (0..config.depth).map(|block| Block::new(config, &vb.pp(format!("blocks.{block}"))));
        Ok(Self {
            config: *config,
            side,
            embed: Conv::new(shape, Edges::Valid, Act::None, &vb.pp("patch_embed.proj"))?,
            prefix: Tensor::cat(&prefix, 1)?,
            places: vb.get((1, config.patches(side) + config.prefix(), c), "pos_embed")?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: layer_norm(c, &vb.pp("norm"))?,
            heads,
        })
    }
}

impl Module for Vit {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n, _, height, width) = x.dims4()?;
        if height != self.side || width != self.side {
            bail!("the transformer takes images of {0}x{0} pixels, not of {height}x{width}", self.side);
        }
        let (prefix, c) = (self.config.prefix(), self.config.channels());
        let patches = swap(&self.embed.forward(x)?.flatten_from(2)?)?;
        let mut x = Tensor::cat(&[&self.prefix.broadcast_as((n, prefix, c))?.contiguous()?, &patches], 1)?;
        x = add(&x, &self.places.broadcast_as(x.shape())?.contiguous()?, Activation::None)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let token = |x: &Tensor, index: usize| x.narrow(1, index, 1)?.squeeze(1)?.contiguous();
        match self.config.last {
            Head::Token => self.heads[0].apply(&self.norm.apply(&token(&x, 0)?)?),
            Head::TwoTokens => {
                let of = |head: usize| self.heads[head].apply(&self.norm.apply(&token(&x, head)?)?);
                (of(0)? + of(1)?)? * 0.5
            }
            Head::TokenAndMean => {
                let x = self.norm.apply(&x)?;
                let mean = x.narrow(1, prefix, x.dim(1)? - prefix)?.mean(1)?;
                self.heads[0].apply(&Tensor::cat(&[token(&x, 0)?, mean], 1)?)
            }
        }
    }
}
