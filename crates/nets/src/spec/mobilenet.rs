//! MobileNetV2.

use serde::{Deserialize, Serialize};

use super::{Builder, Invalid, imagenet_mean, imagenet_std, one, thousand};
use crate::{Graph, Id};

/// MobileNetV2 (Sandler et al. 2018, table 2).
///
/// Parameter names are torchvision's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MobilenetV2 {
    /// The number of classes.
    #[serde(default = "thousand")]
    pub classes: usize,
    /// Multiplies the channels of every layer, which are then rounded to multiples of 8.
    #[serde(default = "one")]
    pub width: f64,
    /// Where the convolutions of stride 2 pad.
    #[serde(default)]
    pub padding: Edges,
    /// Subtracted from the pixels, per channel.
    #[serde(default = "imagenet_mean", deserialize_with = "game::triple")]
    pub mean: [f64; 3],
    /// What the pixels are then divided by, per channel.
    #[serde(default = "imagenet_std", deserialize_with = "game::triple")]
    pub std: [f64; 3],
}

/// The padding of the 3x3 convolutions of stride 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Edges {
    /// One pixel on each side, as PyTorch's models pad.
    #[default]
    Symmetric,
    /// One pixel below and to the right: TensorFlow's `SAME` wherever a plane's sides are even, as they all are for
    /// images whose sides are multiples of 32.
    Same,
}

impl MobilenetV2 {
    pub(super) fn build(&self, mut net: Builder) -> Result<Graph, Invalid> {
        if !(self.width.is_finite() && 0.0 < self.width && self.width <= 16.0) {
            return Err(Invalid(format!("`width` is {}: it must be above 0, and at most 16", self.width)));
        }
        net.same = self.padding == Edges::Same;
        let mut x = net.conv(net.last(), "features.0.0", self.channels(32), 3, 2);
        x = net.norm(x, "features.0.1");
        x = net.relu6(x);
        // Expansion, channels, blocks, stride of the first block (table 2 of the paper).
        let stages =
            [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];
        let mut feature = 1;
        for (expansion, channels, blocks, first) in stages {
            for block in 0..blocks {
                let stride = if block == 0 { first } else { 1 };
                let name = format!("features.{feature}.conv");
                x = net.inverted(x, &name, self.channels(channels), expansion, stride);
                feature += 1;
            }
        }
        x = net.conv(x, "features.18.0", self.channels(1280).max(1280), 1, 1);
        x = net.norm(x, "features.18.1");
        x = net.relu6(x);
        Ok(net.head(x, "classifier.1", self.classes))
    }

    /// `channels` times the width, rounded to a multiple of 8 but not down by more than a tenth.
    fn channels(&self, channels: usize) -> usize {
        let exact = channels as f64 * self.width;
        let rounded = ((exact + 4.0) as usize / 8 * 8).max(8);
        if (rounded as f64) < 0.9 * exact { rounded + 8 } else { rounded }
    }
}

impl Builder {
    /// An inverted residual: expansion, depthwise convolution, linear projection.
    fn inverted(&mut self, input: Id, name: &str, outputs: usize, expansion: usize, stride: usize) -> Id {
        let inputs = self.channels[input];
        let hidden = inputs * expansion;
        let mut x = input;
        if expansion != 1 {
            x = self.conv(x, &format!("{name}.0.0"), hidden, 1, 1);
            x = self.norm(x, &format!("{name}.0.1"));
            x = self.relu6(x);
        }
        let at = usize::from(expansion != 1);
        x = self.grouped(x, &format!("{name}.{at}.0"), hidden, 3, stride, hidden);
        x = self.norm(x, &format!("{name}.{at}.1"));
        x = self.relu6(x);
        x = self.conv(x, &format!("{name}.{}", at + 1), outputs, 1, 1);
        x = self.norm(x, &format!("{name}.{}", at + 2));
        if stride == 1 && inputs == outputs { self.add(x, input) } else { x }
    }
}
