//! A frozen network as a classifier.

use std::collections::HashMap;

use candle_core::{DType, Device, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use game::{Classifier, Key};
use nets::{
    Weights,
    ops::{Activation, Affine},
};

use crate::Spec;

/// A network of the catalogue with fixed weights.
///
/// It computes in its weights' type, f32 or f64, and asks for images of that type. Gradients come by candle's autograd and
/// reach the input; the weights have none. On the CPU an image's logits and gradient are the same bits in every batch and on
/// any number of threads.
pub struct Zoo {
    spec: Spec,
    normalise: Affine,
    network: Box<dyn Module + Send + Sync>,
    dtype: DType,
    device: Device,
}

impl std::fmt::Debug for Zoo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zoo").field("spec", &self.spec).field("dtype", &self.dtype).finish_non_exhaustive()
    }
}

impl Zoo {
    /// The network of `spec` with `weights` (f32 or f64, as [`crate::prepare`] gives them), on `device`.
    ///
    /// # Errors
    /// If there is no such network, a tensor is missing or of another shape or type, or cannot be moved to the device.
    pub fn new(spec: &Spec, weights: &Weights, device: &Device) -> Result<Self> {
        let family = spec.check().and_then(|()| spec.family()).map_err(candle_core::Error::msg)?;
        let dtype = weights.values().next().map_or(DType::F32, Tensor::dtype);
        if let Some((name, other)) = weights.iter().find(|(_, tensor)| tensor.dtype() != dtype) {
            bail!("tensor `{name}` is {:?} where others are {dtype:?}", other.dtype());
        }
        if !matches!(dtype, DType::F32 | DType::F64) {
            bail!("networks compute in f32 or f64, not {dtype:?}");
        }
        let moved = |(name, tensor): (&String, &Tensor)| -> Result<_> {
            Ok((name.clone(), tensor.detach().to_device(device)?.contiguous()?))
        };
        let tensors: HashMap<String, Tensor> = weights.iter().map(moved).collect::<Result<_>>()?;
        let network = family.build(spec.side, spec.classes, &VarBuilder::from_tensors(tensors, dtype, device))?;
        let normalise = Affine {
            centre: spec.mean.to_vec(),
            scale: spec.std.iter().map(|std| 1.0 / std).collect(),
            shift: vec![0.0; 3],
            activation: Activation::None,
        };
        Ok(Self { spec: spec.clone(), normalise, network, dtype, device: device.clone() })
    }

    /// The type of images and logits: that of the weights.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }
}

impl Classifier for Zoo {
    fn classes(&self) -> usize {
        self.spec.classes
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn logits(&self, x: &Tensor, _: &[Key]) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        self.spec.fits(height, width).map_err(candle_core::Error::msg)?;
        if x.dtype() != self.dtype {
            bail!("the network computes in {:?}: convert the images from {:?} first", self.dtype, x.dtype());
        }
        self.network.forward(&self.normalise.apply(x)?)
    }
}
