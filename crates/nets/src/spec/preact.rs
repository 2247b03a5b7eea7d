//! Residual networks that normalise and activate before their convolutions.

use serde::{Deserialize, Serialize};

use super::{Builder, Invalid, cifar_mean, cifar_std, ones, ten, zeros};
use crate::{Graph, Id};

/// The wide residual networks of Zagoruyko and Komodakis 2016 as TRADES (Zhang et al. 2019) and RobustBench build them:
/// WRN-28-10, WRN-34-10, WRN-70-16. Three groups of `(depth - 4) / 6` units, ReLU, and a 1x1 convolution as the shortcut
/// where channels change.
///
/// The pixels are not normalised unless `mean` and `std` say so, as TRADES trains; RobustBench's models differ in that.
/// Parameter names are theirs and those of `xternalz/WideResNet-pytorch`: `block1.layer.0.convShortcut`. The group
/// `sub_block1` of TRADES' files computes nothing and is left out. (Madry et al.'s networks are
/// [`super::WideResnet`].)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wrn {
    /// Layers with weights: `6 n + 4` with `n` units in each group, as 16, 28, 34, 40 or 70.
    pub depth: usize,
    /// Multiplies the channels of the groups: 16, 32 and 64 at width 1.
    #[serde(default = "ten")]
    pub width: usize,
    /// The number of classes.
    #[serde(default = "ten")]
    pub classes: usize,
    /// Subtracted from the pixels, per channel.
    #[serde(default = "zeros", deserialize_with = "game::triple")]
    pub mean: [f64; 3],
    /// What the pixels are then divided by, per channel.
    #[serde(default = "ones", deserialize_with = "game::triple")]
    pub std: [f64; 3],
}

/// The pre-activation residual networks of He et al. 2016b for 32x32 images as `kuangliu/pytorch-cifar` builds them,
/// and Wong et al. 2020, Rice et al. 2020 and RobustBench use them.
///
/// Three builds of the same tensors are about, which `shortcut` and `final_norm` tell apart: Rice et al.'s is the
/// default; kuangliu's is without `final_norm`; Wong et al.'s and Andriushchenko and Flammarion's are without it, and of
/// `shortcut = "input"`. Parameter names are theirs: `layer1.0.bn1`, `layer2.0.shortcut.0`, `bn`, `linear`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreactResnet {
    /// Layers with weights: 18, 34 or 50.
    pub depth: usize,
    /// What the convolution of a shortcut reads; no file of weights tells.
    #[serde(default)]
    pub shortcut: Source,
    /// Whether a normalisation `bn` and a ReLU come before the mean of the pixels.
    #[serde(default = "yes")]
    pub final_norm: bool,
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

/// What a shortcut that changes the shape starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The block's input, normalised and activated (RobustBench's `PreActBlockV2`).
    #[default]
    Activated,
    /// The block's input as it is (RobustBench's `PreActBlock`).
    Input,
}

const fn yes() -> bool {
    true
}

impl Wrn {
    pub(super) fn build(&self, mut net: Builder) -> Result<Graph, Invalid> {
        let (depth, width) = (self.depth, self.width);
        if depth < 10 || !(depth - 4).is_multiple_of(6) {
            return Err(Invalid(format!(
                "no wrn has depth {depth}: depths are 6 n + 4, as 16, 28, 34, 40 or 70; Madry et al.'s networks, of depth \
                 6 n + 2, are named `wide-resnet`"
            )));
        }
        if !(1..=256).contains(&width) {
            return Err(Invalid(format!("`width` is {width}: it must be from 1 to 256 (10 in WRN-28-10)")));
        }
        let mut x = net.conv(net.last(), "conv1", 16, 3, 1);
        for group in 0..3 {
            for unit in 0..(depth - 4) / 6 {
                let stride = if group > 0 && unit == 0 { 2 } else { 1 };
                let name = format!("block{}.layer.{unit}", group + 1);
                x = net.wide_unit(x, &name, (16 * width) << group, stride);
            }
        }
        x = net.norm(x, "bn1");
        x = net.relu(x);
        Ok(net.head(x, "fc", self.classes))
    }
}

impl PreactResnet {
    pub(super) fn example() -> Self {
        let (mean, std) = (cifar_mean(), cifar_std());
        Self { depth: 18, shortcut: Source::Activated, final_norm: true, classes: 10, mean, std }
    }

    pub(super) fn build(&self, mut net: Builder) -> Result<Graph, Invalid> {
        let (blocks, bottleneck) = match self.depth {
            18 => ([2, 2, 2, 2], false),
            34 => ([3, 4, 6, 3], false),
            50 => ([3, 4, 6, 3], true),
            depth => return Err(Invalid(format!("no preact-resnet has depth {depth}: depths are 18, 34 and 50"))),
        };
        if bottleneck && self.shortcut == Source::Input {
            return Err(Invalid("`shortcut` is `input`: where blocks are bottlenecks it is `activated`".into()));
        }
        let mut x = net.conv(net.last(), "conv1", 64, 3, 1);
        for (stage, count) in blocks.into_iter().enumerate() {
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let name = format!("layer{}.{block}", stage + 1);
                x = self.block(&mut net, x, &name, 64 << stage, stride, bottleneck);
            }
        }
        if self.final_norm {
            x = net.norm(x, "bn");
            x = net.relu(x);
        }
        Ok(net.head(x, "linear", self.classes))
    }

    fn block(&self, net: &mut Builder, input: Id, name: &str, inner: usize, stride: usize, bottleneck: bool) -> Id {
        let outputs = if bottleneck { 4 * inner } else { inner };
        let layers: &[(usize, usize, usize)] = match bottleneck {
            true => &[(inner, 1, 1), (inner, 3, stride), (outputs, 1, 1)],
            false => &[(inner, 3, stride), (outputs, 3, 1)],
        };
        let (mut x, mut shortcut) = (input, input);
        for (layer, &(channels, kernel, stride_of)) in layers.iter().enumerate() {
            let number = layer + 1;
            x = net.norm(x, &format!("{name}.bn{number}"));
            x = net.relu(x);
            if layer == 0 && (stride != 1 || net.channels[input] != outputs) {
                let from = if self.shortcut == Source::Activated { x } else { input };
                shortcut = net.conv(from, &format!("{name}.shortcut.0"), outputs, 1, stride);
            }
            x = net.conv(x, &format!("{name}.conv{number}"), channels, kernel, stride_of);
        }
        net.add(x, shortcut)
    }
}

impl Builder {
    /// Normalisation, ReLU, convolution, twice, and the shortcut: of the input, or where channels change a convolution of
    /// what is already normalised and activated.
    fn wide_unit(&mut self, input: Id, name: &str, outputs: usize, stride: usize) -> Id {
        let mut x = self.norm(input, &format!("{name}.bn1"));
        x = self.relu(x);
        let shortcut = match self.channels[input] == outputs {
            true => input,
            false => self.conv(x, &format!("{name}.convShortcut"), outputs, 1, stride),
        };
        x = self.conv(x, &format!("{name}.conv1"), outputs, 3, stride);
        x = self.norm(x, &format!("{name}.bn2"));
        x = self.relu(x);
        x = self.conv(x, &format!("{name}.conv2"), outputs, 3, 1);
        self.add(x, shortcut)
    }
}
