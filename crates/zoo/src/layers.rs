//! The layers that the architectures share, made of tensors by name.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;
use nets::{
    Padding, Precision,
    ops::{Activation, Frozen, Window},
};

use crate::ops::{self, Pointwise};

/// A linear layer `{name}.weight` `(outputs, inputs)` and `{name}.bias` `(outputs)`.
pub(crate) fn linear(inputs: usize, outputs: usize, vb: &VarBuilder<'_>) -> Result<ops::Linear> {
    Ok(ops::Linear { weight: vb.get((outputs, inputs), "weight")?, bias: vb.get(outputs, "bias")? })
}

/// The same with every output multiplied by its number in `scale` `(outputs)`.
pub(crate) fn scaled(layer: ops::Linear, scale: &Tensor) -> Result<ops::Linear> {
    let weight = layer.weight.broadcast_mul(&scale.unsqueeze(1)?)?.contiguous()?;
    Ok(ops::Linear { weight, bias: (layer.bias * scale)? })
}

/// A layer normalisation over `channels`.
pub(crate) fn layer_norm(channels: usize, vb: &VarBuilder<'_>) -> Result<ops::LayerNorm> {
    Ok(ops::LayerNorm { weight: vb.get(channels, "weight")?, bias: vb.get(channels, "bias")?, eps: 1e-6 })
}

/// What follows a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    None,
    Relu,
    Silu,
}

/// How a convolution pads with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edges {
    /// Half the kernel on each side, as PyTorch's models.
    Symmetric,
    /// TensorFlow's `SAME`: as much as makes `ceil(size / stride)` outputs, the odd pixel below and to the right.
    Same,
    /// Nothing.
    Valid,
}

/// The sizes of a square convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub inputs: usize,
    pub outputs: usize,
    pub kernel: usize,
    pub stride: usize,
    pub groups: usize,
}

impl Shape {
    pub const fn dense(inputs: usize, outputs: usize, kernel: usize, stride: usize) -> Self {
        Self { inputs, outputs, kernel, stride, groups: 1 }
    }

    pub const fn depthwise(channels: usize, kernel: usize, stride: usize) -> Self {
        Self { inputs: channels, outputs: channels, kernel, stride, groups: channels }
    }

    /// Multiply-adds for images of `side` rows and columns, which become those of the output.
    pub fn multiplications(&self, side: &mut usize) -> u64 {
        *side = side.div_ceil(self.stride);
        (*side * *side * self.outputs * (self.inputs / self.groups) * self.kernel * self.kernel) as u64
    }
}

/// A convolution, with a batch normalisation folded into it where there is one, and an activation.
#[derive(Debug)]
pub(crate) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    shape: Shape,
    edges: Edges,
    act: Act,
}

impl Conv {
    /// With a bias of its own, at `{name}.weight` and `{name}.bias`.
    pub fn new(shape: Shape, edges: Edges, act: Act, vb: &VarBuilder<'_>) -> Result<Self> {
        let bias = Some(vb.get(shape.outputs, "bias")?);
        Ok(Self { weight: Self::kernel(&shape, vb)?, bias, shape, edges, act })
    }

    /// Without one, followed by the batch normalisation `norm`.
    pub fn normed(
        shape: Shape,
        edges: Edges,
        act: Act,
        eps: f64,
        vb: &VarBuilder<'_>,
        norm: &VarBuilder<'_>,
    ) -> Result<Self> {
        let (scale, shift) = batch_norm(shape.outputs, eps, norm)?;
        let weight = Self::kernel(&shape, vb)?;
        let dtype = weight.dtype();
        let weight = weight.to_dtype(DType::F64)?.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?;
        Ok(Self { weight: weight.to_dtype(dtype)?, bias: Some(shift.to_dtype(dtype)?), shape, edges, act })
    }

    fn kernel(shape: &Shape, vb: &VarBuilder<'_>) -> Result<Tensor> {
        vb.get((shape.outputs, shape.inputs / shape.groups, shape.kernel, shape.kernel), "weight")
    }

    /// Of images `(n, c, h, w)`, with a sum before the activation where there is a residual.
    fn apply(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let Shape { kernel, stride, groups, .. } = self.shape;
        let padding = match self.edges {
            Edges::Valid => Padding::default(),
            Edges::Symmetric => Padding::same(kernel / 2),
            Edges::Same => {
                let total = |size: usize| ((size.div_ceil(stride) - 1) * stride + kernel).saturating_sub(size);
                let (rows, columns) = (total(height), total(width));
                let (top, left) = (rows / 2, columns / 2);
                Padding { top, bottom: rows - top, left, right: columns - left }
            }
        };
        let frozen = Frozen {
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            window: Window { stride, padding, groups },
            activation: if self.act == Act::Relu { Activation::Relu } else { Activation::None },
            precision: Precision::F32,
        };
        let out = frozen.apply(x, residual)?;
        if self.act == Act::Silu { ops::pointwise(&out, Pointwise::Silu) } else { Ok(out) }
    }

    /// The convolution plus `residual`, which has its shape.
    pub fn plus(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.apply(x, Some(residual))
    }

    /// The same of vectors `(n, c)`, taken for images of one pixel.
    pub fn of_vectors(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(&x.unsqueeze(2)?.unsqueeze(3)?)?.flatten_from(1)
    }
}

impl Module for Conv {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, None)
    }
}

/// A batch normalisation by its running statistics, as a factor and a sum in double precision.
fn batch_norm(channels: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<(Tensor, Tensor)> {
    let part = |name: &str| vb.get(channels, name)?.to_dtype(DType::F64);
    let scale = (part("weight")? / (part("running_var")? + eps)?.sqrt()?)?;
    let shift = (part("bias")? - (part("running_mean")? * &scale)?)?;
    Ok((scale, shift))
}
