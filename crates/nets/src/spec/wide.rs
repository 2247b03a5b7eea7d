//! Wide residual networks.

use serde::{Deserialize, Serialize};

use super::{Builder, Invalid, ten};
use crate::{Graph, Id, Op};

/// The derivative of the activation below 0.
const SLOPE: f64 = 0.1;

/// The wide residual networks of Zagoruyko and Komodakis 2016 as Madry et al. 2018 built them for CIFAR-10: three groups
/// of `(depth - 2) / 6` pre-activation units, leaky ReLU, images standardised one by one, and shortcuts without
/// parameters (average-pooled, with zero channels on both sides). The original is of depth 32 and width 10.
///
/// Convolutions pad as TensorFlow's `SAME`: the sides of an image have to be multiples of 4. Normalisations add 0.001 to
/// the variance. Parameter names are those of `xternalz/WideResNet-pytorch`: `block1.layer.0.conv1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WideResnet {
    /// Layers with weights: `6 n + 2` with `n` units in each group, as 8, 14, 20, 26 or 32.
    pub depth: usize,
    /// Multiplies the channels of the groups: 16, 32 and 64 at width 1.
    #[serde(default = "ten")]
    pub width: usize,
    /// The number of classes.
    #[serde(default = "ten")]
    pub classes: usize,
}

impl WideResnet {
    pub(super) fn build(&self, mut net: Builder) -> Result<Graph, Invalid> {
        let (depth, width) = (self.depth, self.width);
        if depth < 8 || !(depth - 2).is_multiple_of(6) {
            return Err(Invalid(format!(
                "no wide-resnet has depth {depth}: depths are 6 n + 2, as 8, 14, 20, 26 or 32 (the original); networks of \
                 depth 6 n + 4, as WRN-28-10, are named `wrn`"
            )));
        }
        if !(1..=256).contains(&width) {
            return Err(Invalid(format!("`width` is {width}: it must be from 1 to 256 (the original's is 10)")));
        }
        (net.eps, net.same) = (1e-3, true);
        let mut x = net.push(Op::Standardise, &[net.last()], 3);
        x = net.conv(x, "conv1", 16, 3, 1);
        for group in 0..3 {
            for unit in 0..(depth - 2) / 6 {
                let stride = if group > 0 && unit == 0 { 2 } else { 1 };
                let name = format!("block{}.layer.{unit}", group + 1);
                x = unit_of(&mut net, x, &name, (16 * width) << group, stride, group == 0 && unit == 0);
            }
        }
        x = net.norm(x, "bn1");
        x = net.push(Op::LeakyRelu { slope: SLOPE }, &[x], 64 * width);
        Ok(net.head(x, "fc", self.classes))
    }
}

/// Normalisation, activation, convolution, twice, and the shortcut; of the first unit the shortcut is of what is already
/// normalised and activated, of the others of the unit's input.
fn unit_of(net: &mut Builder, input: Id, name: &str, outputs: usize, stride: usize, first: bool) -> Id {
    let activated = |net: &mut Builder, x: Id, norm: &str| {
        let x = net.norm(x, &format!("{name}.{norm}"));
        net.push(Op::LeakyRelu { slope: SLOPE }, &[x], net.channels[x])
    };
    let mut x = activated(net, input, "bn1");
    let shortcut = shortcut(net, if first { x } else { input }, outputs, stride);
    x = net.conv(x, &format!("{name}.conv1"), outputs, 3, stride);
    x = activated(net, x, "bn2");
    x = net.conv(x, &format!("{name}.conv2"), outputs, 3, 1);
    net.add(x, shortcut)
}

fn shortcut(net: &mut Builder, mut x: Id, outputs: usize, stride: usize) -> Id {
    let channels = net.channels[x];
    if stride != 1 {
        x = net.push(Op::AveragePool { kernel: stride, stride, padding: 0 }, &[x], channels);
    }
    if outputs == channels { x } else { net.subsample(x, outputs, 1) }
}
