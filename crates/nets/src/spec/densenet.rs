//! Densely connected networks.

use serde::{Deserialize, Serialize};

use super::{Builder, Invalid, cifar_mean, cifar_std, imagenet_mean, imagenet_std, ten, thousand, twelve};
use crate::{Graph, Id, Op};

/// The densely connected networks of Huang et al. 2017, table 1, as torchvision builds them: bottlenecks of four times
/// the growth, and transitions that halve the channels.
///
/// Parameter names are torchvision's, those of its published files (`denselayer1.norm.1`) included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Densenet {
    /// Layers with weights: 121, 161, 169 or 201.
    pub depth: usize,
    /// The number of classes.
    #[serde(default = "thousand")]
    pub classes: usize,
    /// Subtracted from the pixels, per channel.
    #[serde(default = "imagenet_mean", deserialize_with = "game::triple")]
    pub mean: [f64; 3],
    /// What the pixels are then divided by, per channel.
    #[serde(default = "imagenet_std", deserialize_with = "game::triple")]
    pub std: [f64; 3],
}

/// DenseNet-BC for 32x32 images (Huang et al. 2017, section 3): three blocks of `(depth - 4) / 6` layers. DenseNet-BC
/// (k = 12, L = 100) is that of depth 100 and growth 12.
///
/// Parameter names are those of `andreasveit/densenet-pytorch`, whose networks the detectors of Lee et al. 2018 and
/// Liang et al. 2018 come with: `block1.layer.0.conv1`, `trans1.bn1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CifarDensenet {
    /// Layers with weights: `6 n + 4`, as 40, 100, 190 or 250.
    pub depth: usize,
    /// Channels that a layer adds.
    #[serde(default = "twelve")]
    pub growth: usize,
    /// The number of classes.
    #[serde(default = "ten")]
    pub classes: usize,
    /// Subtracted from the pixels, per channel.
    #[serde(default = "cifar_mean", deserialize_with = "game::triple")]
    pub mean: [f64; 3],
    /// What the pixels are then divided by, per channel.
    #[serde(default = "cifar_std", deserialize_with = "game::triple")]
    pub std: [f64; 3],
}

impl Densenet {
    pub(super) fn build(&self, mut net: Builder) -> Result<Graph, Invalid> {
        let (growth, blocks) = match self.depth {
            121 => (32, [6, 12, 24, 16]),
            161 => (48, [6, 12, 36, 24]),
            169 => (32, [6, 12, 32, 32]),
            201 => (32, [6, 12, 48, 32]),
            depth => {
                return Err(Invalid(format!(
                    "no densenet has depth {depth}: depths are 121, 161, 169 and 201; those for 32x32 images are named \
                     `cifar-densenet`"
                )));
            }
        };
        let mut x = net.conv(net.last(), "features.conv0", 2 * growth, 7, 2);
        x = net.norm(x, "features.norm0");
        x = net.relu(x);
        x = net.push(Op::MaxPool { kernel: 3, stride: 2, padding: 1 }, &[x], 2 * growth);
        for (block, layers) in blocks.into_iter().enumerate() {
            let number = block + 1;
            for layer in 1..=layers {
                let name = format!("features.denseblock{number}.denselayer{layer}");
                x = net.dense_layer(x, &name, "norm", growth);
            }
            if number < blocks.len() {
                let name = format!("features.transition{number}");
                x = net.transition(x, &format!("{name}.norm"), &format!("{name}.conv"));
            }
        }
        x = net.norm(x, "features.norm5");
        x = net.relu(x);
        Ok(net.head(x, "classifier", self.classes))
    }
}

impl CifarDensenet {
    pub(super) fn build(&self, mut net: Builder) -> Result<Graph, Invalid> {
        let (depth, growth) = (self.depth, self.growth);
        if depth < 10 || !(depth - 4).is_multiple_of(6) {
            return Err(Invalid(format!(
                "no cifar-densenet has depth {depth}: depths are 6 n + 4, as 40, 100, 190 or 250"
            )));
        }
        if !(1..=256).contains(&growth) {
            return Err(Invalid(format!("`growth` is {growth}: it must be from 1 to 256 (the paper's are 12 to 40)")));
        }
        let mut x = net.conv(net.last(), "conv1", 2 * growth, 3, 1);
        for block in 1..=3 {
            for layer in 0..(depth - 4) / 6 {
                x = net.dense_layer(x, &format!("block{block}.layer.{layer}"), "bn", growth);
            }
            if block < 3 {
                x = net.transition(x, &format!("trans{block}.bn1"), &format!("trans{block}.conv1"));
            }
        }
        x = net.norm(x, "bn1");
        x = net.relu(x);
        Ok(net.head(x, "fc", self.classes))
    }
}

impl Builder {
    /// Normalisation, ReLU and a 1x1 convolution, the same with a 3x3 one, and their result behind the input's channels.
    fn dense_layer(&mut self, input: Id, name: &str, norm: &str, growth: usize) -> Id {
        let mut x = self.norm(input, &format!("{name}.{norm}1"));
        x = self.relu(x);
        x = self.conv(x, &format!("{name}.conv1"), 4 * growth, 1, 1);
        x = self.norm(x, &format!("{name}.{norm}2"));
        x = self.relu(x);
        x = self.conv(x, &format!("{name}.conv2"), growth, 3, 1);
        self.push(Op::Concat, &[input, x], self.channels[input] + growth)
    }

    /// Half the channels, and half the rows and columns.
    fn transition(&mut self, x: Id, norm: &str, conv: &str) -> Id {
        let outputs = self.channels[x] / 2;
        let mut x = self.norm(x, norm);
        x = self.relu(x);
        x = self.conv(x, conv, outputs, 1, 1);
        self.push(Op::AveragePool { kernel: 2, stride: 2, padding: 0 }, &[x], outputs)
    }
}
