//! VGG.

use serde::{Deserialize, Serialize};

use super::{Builder, Invalid, imagenet_mean, imagenet_std, thousand};
use crate::{Conv, Graph, Id, Op, Padding};

/// The networks of Simonyan and Zisserman 2015, table 1 (columns A, B, D and E), as torchvision builds them, without
/// dropout, which frozen networks lack; the least images have 32x32 pixels.
///
/// Parameter names are torchvision's. With `head = "cifar"` and `batch_norm = true` they are those of
/// `kuangliu/pytorch-cifar`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vgg {
    /// Layers with weights: 11, 13, 16 or 19.
    pub depth: usize,
    /// Whether a batch normalisation follows every convolution: torchvision's `vgg16_bn`.
    #[serde(default)]
    pub batch_norm: bool,
    /// What comes after the last pool.
    #[serde(default)]
    pub head: Head,
    /// Units of the two hidden layers of the head for ImageNet, 4096 in the original; the other head has none.
    #[serde(default = "units")]
    pub hidden: usize,
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

/// What a [`Vgg`] makes of its last planes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// A pool to 7x7 pixels, which 224x224 pixels are left as, and three linear layers.
    #[default]
    Imagenet,
    /// The mean of all pixels (one, of 32x32), and one linear layer.
    Cifar,
}

/// The original's.
const UNITS: usize = 4096;
/// Rows and columns of pixels that the head for ImageNet reads.
const SIDE: usize = 7;

const fn units() -> usize {
    UNITS
}

impl Vgg {
    pub(super) fn example(head: Head) -> Self {
        let classes = if head == Head::Cifar { 10 } else { 1000 };
        let (mean, std) = (imagenet_mean(), imagenet_std());
        Self { depth: 11, batch_norm: false, head, hidden: UNITS, classes, mean, std }
    }

    pub(super) fn build(&self, mut net: Builder) -> Result<Graph, Invalid> {
        let blocks = match self.depth {
            11 => [1, 1, 2, 2, 2],
            13 => [2, 2, 2, 2, 2],
            16 => [2, 2, 3, 3, 3],
            19 => [2, 2, 4, 4, 4],
            depth => return Err(Invalid(format!("no vgg has depth {depth}: depths are 11, 13, 16 and 19"))),
        };
        if !(1..=1 << 16).contains(&self.hidden) {
            return Err(Invalid(format!("`hidden` is {}: it must be from 1 to 65536 (4096)", self.hidden)));
        }
        if self.head == Head::Cifar && self.hidden != UNITS {
            return Err(Invalid("`hidden` is of the head for ImageNet: the head `cifar` has no hidden layer".into()));
        }
        let mut x = net.last();
        // torchvision counts ReLUs and pools too.
        let mut place = 0;
        for (count, channels) in blocks.into_iter().zip([64, 128, 256, 512, 512]) {
            for _ in 0..count {
                x = net.biased(x, &format!("features.{place}"), channels);
                if self.batch_norm {
                    place += 1;
                    x = net.norm(x, &format!("features.{place}"));
                }
                x = net.relu(x);
                place += 2;
            }
            x = net.push(Op::MaxPool { kernel: 2, stride: 2, padding: 0 }, &[x], channels);
            place += 1;
        }
        if self.head == Head::Cifar {
            return Ok(net.head(x, "classifier", self.classes));
        }
        x = net.push(Op::AdaptiveAveragePool { side: SIDE }, &[x], 512);
        x = net.linear(x, "classifier.0", 512 * SIDE * SIDE, self.hidden);
        x = net.relu(x);
        x = net.linear(x, "classifier.3", self.hidden, self.hidden);
        x = net.relu(x);
        net.linear(x, "classifier.6", self.hidden, self.classes);
        Ok(Graph { nodes: net.nodes, classes: self.classes })
    }
}

impl Builder {
    /// A 3x3 convolution with a bias.
    fn biased(&mut self, x: Id, name: &str, outputs: usize) -> Id {
        let (name, inputs, padding) = (name.to_owned(), self.channels[x], Padding::same(1).into());
        let conv = Conv { name, inputs, outputs, kernel: [3; 2], stride: 1, padding, groups: 1, bias: true };
        self.push(Op::Conv(conv), &[x], outputs)
    }

    fn linear(&mut self, x: Id, name: &str, inputs: usize, outputs: usize) -> Id {
        self.push(Op::Linear { name: name.to_owned(), inputs, outputs }, &[x], outputs)
    }
}
