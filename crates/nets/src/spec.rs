//! The catalogue of architectures.

mod densenet;
mod efficientnet;
mod inception;
mod mobilenet;
pub(crate) mod names;
mod preact;
mod vgg;
mod wide;

use serde::{Deserialize, Serialize};

use crate::{Conv, Graph, Id, Node, Op, Pad, Padding};

pub use densenet::{CifarDensenet, Densenet};
pub use efficientnet::EfficientnetLite;
pub use inception::InceptionV3;
pub use mobilenet::{Edges, MobilenetV2};
pub use preact::{PreactResnet, Source, Wrn};
pub use vgg::{Head, Vgg};
pub use wide::WideResnet;

/// Why a specification gives no network; the text names the field and what it accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

/// An architecture and its sizes: `{"name": "cifar-resnet", "depth": 20}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Spec {
    /// The thin residual networks for 32x32 images.
    CifarResnet(CifarResnet),
    /// The residual networks for ImageNet.
    Resnet(Resnet),
    /// MobileNetV2.
    MobilenetV2(MobilenetV2),
    /// The wide residual networks for 32x32 images.
    WideResnet(WideResnet),
    /// Inception-v3.
    InceptionV3(InceptionV3),
    /// EfficientNet-Lite.
    EfficientnetLite(EfficientnetLite),
    /// The densely connected networks for ImageNet.
    Densenet(Densenet),
    /// The densely connected networks for 32x32 images.
    CifarDensenet(CifarDensenet),
    /// VGG.
    Vgg(Vgg),
    /// The wide residual networks of papers on robustness.
    Wrn(Wrn),
    /// The pre-activation residual networks for 32x32 images.
    PreactResnet(PreactResnet),
}

/// The residual networks of He et al. 2016, section 4.2: three stages of `(depth - 2) / 6` basic blocks.
///
/// Parameter names are those of `akamaster/pytorch_resnet_cifar10`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CifarResnet {
    /// Layers with weights: `6 n + 2`, as 8, 20, 32, 44, 56 or 110.
    pub depth: usize,
    /// Channels of the first stage; doubled in the second and again in the third.
    #[serde(default = "sixteen")]
    pub width: usize,
    /// How a block that changes its shape passes its input on.
    #[serde(default)]
    pub shortcut: Shortcut,
    /// The activation of the blocks; that of the first layer is always ReLU.
    #[serde(default, skip_serializing_if = "Activation::is_relu")]
    pub activation: Activation,
    /// The number of classes.
    #[serde(default = "ten")]
    pub classes: usize,
    /// Subtracted from the pixels, per channel.
    #[serde(default = "imagenet_mean", deserialize_with = "game::triple")]
    pub mean: [f64; 3],
    /// What the pixels are then divided by, per channel.
    #[serde(default = "imagenet_std", deserialize_with = "game::triple")]
    pub std: [f64; 3],
}

/// The activation of a network's blocks: after every normalisation but the last of a block, and after its sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Activation {
    /// `max(x, 0)`.
    #[default]
    Relu,
    /// k-winners-take-all (Xiao et al. 2020) over all channels and pixels of a layer: see [`Op::KeepLargest`].
    KWinnersTakeAll {
        /// The share of the values that stay, in `(0, 1]`.
        share: f64,
    },
}

impl Activation {
    /// Whether this is the default, which parameters do not mention.
    #[must_use]
    pub const fn is_relu(&self) -> bool {
        matches!(self, Self::Relu)
    }

    const fn op(self) -> Op {
        match self {
            Self::Relu => Op::Relu,
            Self::KWinnersTakeAll { share } => Op::KeepLargest { share },
        }
    }

    fn check(self) -> Result<(), Invalid> {
        match self {
            Self::KWinnersTakeAll { share } if !(share > 0.0 && share <= 1.0) => {
                Err(Invalid(format!("`activation.share` is {share}: it must be above 0, and at most 1")))
            }
            _ => Ok(()),
        }
    }
}

/// The shortcut of a block that changes its shape (He et al. 2016, section 3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shortcut {
    /// Every second pixel, and zero channels on both sides: no parameters.
    #[default]
    A,
    /// A 1x1 convolution and batch normalisation.
    B,
}

/// The residual networks of He et al. 2016, table 1, with the stride of a bottleneck in its 3x3 convolution, as
/// torchvision builds them.
///
/// Parameter names are torchvision's and timm's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resnet {
    /// Layers with weights: 18, 34 or 50.
    pub depth: usize,
    /// What comes before the first block.
    #[serde(default)]
    pub stem: Stem,
    /// The activation of the blocks; that of the stem is always ReLU.
    ///
    /// With `k-winners-take-all`, a depth of 18, the CIFAR stem and no normalisation of the pixels (mean 0, std 1) this
    /// is the `SparseResNet18` of Xiao et al. 2020.
    #[serde(default, skip_serializing_if = "Activation::is_relu")]
    pub activation: Activation,
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

/// The first layers of a [`Resnet`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// A 7x7 convolution of stride 2 and a 3x3 max-pool of stride 2.
    #[default]
    Imagenet,
    /// A 3x3 convolution of stride 1, for small images.
    Cifar,
}

fn one() -> f64 {
    1.0
}
fn ten() -> usize {
    10
}
fn twelve() -> usize {
    12
}
fn same_edges() -> Edges {
    Edges::Same
}
fn sixteen() -> usize {
    16
}
fn thousand() -> usize {
    1000
}
fn half() -> [f64; 3] {
    [0.5; 3]
}
fn imagenet_mean() -> [f64; 3] {
    [0.485, 0.456, 0.406]
}
fn imagenet_std() -> [f64; 3] {
    [0.229, 0.224, 0.225]
}
fn zeros() -> [f64; 3] {
    [0.0; 3]
}
fn ones() -> [f64; 3] {
    [1.0; 3]
}
/// The pixels' statistics over CIFAR-10's training images.
fn cifar_mean() -> [f64; 3] {
    [0.4914, 0.4822, 0.4465]
}
fn cifar_std() -> [f64; 3] {
    [0.2471, 0.2435, 0.2616]
}

impl Spec {
    /// The accepted values of `name`.
    pub const NAMES: [&'static str; 11] = [
        "cifar-resnet",
        "resnet",
        "mobilenet-v2",
        "wide-resnet",
        "inception-v3",
        "efficientnet-lite",
        "densenet",
        "cifar-densenet",
        "vgg",
        "wrn",
        "preact-resnet",
    ];

    /// One of each architecture, for tests and documentation.
    #[must_use]
    pub fn examples() -> Vec<Self> {
        let (mean, std) = (imagenet_mean(), imagenet_std());
        let cifar = CifarResnet {
            depth: 20,
            width: 16,
            shortcut: Shortcut::A,
            activation: Activation::Relu,
            classes: 10,
            mean,
            std,
        };
        let resnet = Resnet { depth: 18, stem: Stem::Imagenet, activation: Activation::Relu, classes: 1000, mean, std };
        vec![
            Self::CifarResnet(CifarResnet { depth: 8, shortcut: Shortcut::B, ..cifar.clone() }),
            Self::CifarResnet(cifar),
            Self::Resnet(Resnet {
                depth: 18,
                stem: Stem::Cifar,
                activation: Activation::KWinnersTakeAll { share: 0.1 },
                classes: 10,
                mean: [0.0; 3],
                std: [1.0; 3],
            }),
            Self::Resnet(Resnet { stem: Stem::Cifar, classes: 10, ..resnet.clone() }),
            Self::Resnet(Resnet { depth: 50, ..resnet }),
            Self::MobilenetV2(MobilenetV2 { classes: 1000, width: 1.0, padding: Edges::Symmetric, mean, std }),
            Self::WideResnet(WideResnet { depth: 32, width: 10, classes: 10 }),
            Self::InceptionV3(InceptionV3 { classes: 1000, mean: half(), std: half() }),
            Self::EfficientnetLite(EfficientnetLite::example()),
            Self::Densenet(Densenet { depth: 121, classes: 1000, mean, std }),
            Self::CifarDensenet(CifarDensenet {
                depth: 22,
                growth: 12,
                classes: 10,
                mean: cifar_mean(),
                std: cifar_std(),
            }),
            Self::Vgg(Vgg { hidden: 64, ..Vgg::example(Head::Imagenet) }),
            Self::Vgg(Vgg { batch_norm: true, ..Vgg::example(Head::Cifar) }),
            Self::Wrn(Wrn { depth: 16, width: 4, classes: 10, mean: zeros(), std: ones() }),
            Self::PreactResnet(PreactResnet::example()),
        ]
    }

    /// The number of classes.
    #[must_use]
    pub const fn classes(&self) -> usize {
        match self {
            Self::CifarResnet(spec) => spec.classes,
            Self::Resnet(spec) => spec.classes,
            Self::MobilenetV2(spec) => spec.classes,
            Self::WideResnet(spec) => spec.classes,
            Self::InceptionV3(spec) => spec.classes,
            Self::EfficientnetLite(spec) => spec.classes,
            Self::Densenet(spec) => spec.classes,
            Self::CifarDensenet(spec) => spec.classes,
            Self::Vgg(spec) => spec.classes,
            Self::Wrn(spec) => spec.classes,
            Self::PreactResnet(spec) => spec.classes,
        }
    }

    /// Mean and standard deviation of the normalisation, per channel in units of pixels.
    #[must_use]
    pub const fn normalisation(&self) -> ([f64; 3], [f64; 3]) {
        match self {
            Self::CifarResnet(spec) => (spec.mean, spec.std),
            Self::Resnet(spec) => (spec.mean, spec.std),
            Self::MobilenetV2(spec) => (spec.mean, spec.std),
            // Pixels from 0 to 255, which only matter to a standardisation where all are nearly the same.
            Self::WideResnet(_) => ([0.0; 3], [1.0 / 255.0; 3]),
            Self::InceptionV3(spec) => (spec.mean, spec.std),
            Self::EfficientnetLite(spec) => (spec.mean, spec.std),
            Self::Densenet(spec) => (spec.mean, spec.std),
            Self::CifarDensenet(spec) => (spec.mean, spec.std),
            Self::Vgg(spec) => (spec.mean, spec.std),
            Self::Wrn(spec) => (spec.mean, spec.std),
            Self::PreactResnet(spec) => (spec.mean, spec.std),
        }
    }

    /// The activation of the blocks, where it can be chosen.
    const fn activation(&self) -> Activation {
        match self {
            Self::CifarResnet(spec) => spec.activation,
            Self::Resnet(spec) => spec.activation,
            _ => Activation::Relu,
        }
    }

    /// The network's graph.
    ///
    /// # Errors
    /// If no such network exists: a depth the family lacks, no channels, no classes, or a standard deviation that is
    /// not positive.
    pub fn graph(&self) -> Result<Graph, Invalid> {
        self.check()?;
        let (mean, std) = self.normalisation();
        let mut builder = Builder::new(mean, std);
        builder.activation = self.activation();
        match self {
            Self::CifarResnet(spec) => spec.build(builder),
            Self::Resnet(spec) => spec.build(builder),
            Self::MobilenetV2(spec) => spec.build(builder),
            Self::WideResnet(spec) => spec.build(builder),
            Self::InceptionV3(spec) => Ok(spec.build(builder)),
            Self::EfficientnetLite(spec) => spec.build(builder),
            Self::Densenet(spec) => spec.build(builder),
            Self::CifarDensenet(spec) => spec.build(builder),
            Self::Vgg(spec) => spec.build(builder),
            Self::Wrn(spec) => spec.build(builder),
            Self::PreactResnet(spec) => spec.build(builder),
        }
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.classes() < 2 {
            return Err(Invalid(format!("`classes` is {}: a classifier has at least 2", self.classes())));
        }
        let (mean, std) = self.normalisation();
        let of_255 = |name: &str, values: [f64; 3], most: f64| {
            let first = values[0];
            let mend =
                if most > 1.0 && most <= 255.0 { format!("; of 255, write \"{first}/255\"") } else { String::new() };
            Err(Invalid(format!("`{name}` is {values:?}: it must be in [0, 1], the units of pixels{mend}")))
        };
        let most = |values: [f64; 3]| values.iter().copied().fold(0.0, f64::max);
        if !mean.iter().all(|m| (0.0..=1.0).contains(m)) {
            return of_255("mean", mean, most(mean));
        }
        if !std.iter().all(|s| (0.0..=1.0).contains(s)) {
            return of_255("std", std, most(std));
        }
        if std.contains(&0.0) {
            return Err(Invalid(format!("`std` is {std:?}: pixels are divided by it, so that it must be above 0")));
        }
        self.activation().check()
    }
}

impl CifarResnet {
    fn build(&self, mut net: Builder) -> Result<Graph, Invalid> {
        let (depth, width) = (self.depth, self.width);
        if depth < 8 || !(depth - 2).is_multiple_of(6) {
            return Err(Invalid(format!(
                "no cifar-resnet has depth {depth}: depths are 6 n + 2, as 8, 20, 32, 44, 56 or 110"
            )));
        }
        if !(1..=4096).contains(&width) {
            return Err(Invalid(format!("`width` is {width}: it must be from 1 to 4096 (the paper's is 16)")));
        }
        let mut x = net.conv(net.last(), "conv1", width, 3, 1);
        x = net.norm(x, "bn1");
        x = net.relu(x);
        for stage in 0..3 {
            for block in 0..(depth - 2) / 6 {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                x = self.block(&mut net, x, &format!("layer{}.{block}", stage + 1), width << stage, stride);
            }
        }
        Ok(net.head(x, "linear", self.classes))
    }

    fn block(&self, net: &mut Builder, x: Id, name: &str, outputs: usize, stride: usize) -> Id {
        let shortcut = match self.shortcut {
            _ if stride == 1 => x,
            Shortcut::A => net.subsample(x, outputs, stride),
            Shortcut::B => net.projection(x, &format!("{name}.shortcut"), outputs, stride),
        };
        net.basic(x, shortcut, name, outputs, stride)
    }
}

impl Resnet {
    fn build(&self, mut net: Builder) -> Result<Graph, Invalid> {
        let (blocks, bottleneck) = match self.depth {
            18 => ([2, 2, 2, 2], false),
            34 => ([3, 4, 6, 3], false),
            50 => ([3, 4, 6, 3], true),
            depth => return Err(Invalid(format!("no resnet has depth {depth} here: depths are 18, 34 and 50"))),
        };
        let mut x = self.stem(&mut net);
        for (stage, count) in blocks.into_iter().enumerate() {
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let name = format!("layer{}.{block}", stage + 1);
                let inner = 64 << stage;
                let outputs = if bottleneck { 4 * inner } else { inner };
                let changes = stride != 1 || net.channels[x] != outputs;
                let shortcut =
                    if changes { net.projection(x, &format!("{name}.downsample"), outputs, stride) } else { x };
                x = if bottleneck {
                    net.bottleneck(x, shortcut, &name, inner, stride)
                } else {
                    net.basic(x, shortcut, &name, outputs, stride)
                };
            }
        }
        Ok(net.head(x, "fc", self.classes))
    }

    fn stem(&self, net: &mut Builder) -> Id {
        let (kernel, stride) = if self.stem == Stem::Imagenet { (7, 2) } else { (3, 1) };
        let mut x = net.conv(net.last(), "conv1", 64, kernel, stride);
        x = net.norm(x, "bn1");
        x = net.relu(x);
        if self.stem == Stem::Imagenet {
            x = net.push(Op::MaxPool { kernel: 3, stride: 2, padding: 1 }, &[x], 64);
        }
        x
    }
}

/// A graph being built. Each method adds the layers it names after node `x` and answers with the last of them.
struct Builder {
    nodes: Vec<Node>,
    /// The channels of each node.
    channels: Vec<usize>,
    /// Whether convolutions of stride 2 pad one pixel below and to the right: TensorFlow's `SAME` of even sides.
    same: bool,
    /// How convolutions pad, if not that way nor by half their kernel.
    pad: Option<Pad>,
    /// What normalisations add to the variance.
    eps: f64,
    /// The activation of blocks that can choose it.
    activation: Activation,
}

impl Builder {
    fn new(mean: [f64; 3], std: [f64; 3]) -> Self {
        let mut net =
            Self { nodes: vec![], channels: vec![], same: false, pad: None, eps: 1e-5, activation: Activation::Relu };
        net.push(Op::Input, &[], 3);
        net.push(Op::Normalise { mean: mean.into(), std: std.into() }, &[0], 3);
        net
    }

    fn last(&self) -> Id {
        self.nodes.len() - 1
    }

    fn push(&mut self, op: Op, inputs: &[Id], channels: usize) -> Id {
        self.nodes.push(Node { op, inputs: inputs.into() });
        self.channels.push(channels);
        self.last()
    }

    fn conv(&mut self, x: Id, name: &str, outputs: usize, kernel: usize, stride: usize) -> Id {
        self.grouped(x, name, outputs, kernel, stride, 1)
    }

    fn grouped(&mut self, x: Id, name: &str, outputs: usize, kernel: usize, stride: usize, groups: usize) -> Id {
        let padding = if self.same && stride == 2 {
            Padding { bottom: 1, right: 1, ..Padding::default() }
        } else {
            Padding::same(kernel / 2)
        };
        let padding = self.pad.unwrap_or_else(|| padding.into());
        let (name, inputs) = (name.to_owned(), self.channels[x]);
        let conv = Conv { name, inputs, outputs, kernel: [kernel; 2], stride, padding, groups, bias: false };
        self.push(Op::Conv(conv), &[x], outputs)
    }

    fn norm(&mut self, x: Id, name: &str) -> Id {
        let channels = self.channels[x];
        self.push(Op::BatchNorm { name: name.to_owned(), channels, eps: self.eps }, &[x], channels)
    }

    fn relu(&mut self, x: Id) -> Id {
        self.push(Op::Relu, &[x], self.channels[x])
    }

    /// The activation of blocks.
    fn activate(&mut self, x: Id) -> Id {
        self.push(self.activation.op(), &[x], self.channels[x])
    }

    fn relu6(&mut self, x: Id) -> Id {
        self.push(Op::Relu6, &[x], self.channels[x])
    }

    fn add(&mut self, x: Id, y: Id) -> Id {
        self.push(Op::Add, &[x, y], self.channels[x])
    }

    fn subsample(&mut self, x: Id, outputs: usize, stride: usize) -> Id {
        let added = outputs - self.channels[x];
        self.push(Op::Subsample { stride, before: added / 2, after: added - added / 2 }, &[x], outputs)
    }

    /// The shortcut with parameters.
    fn projection(&mut self, x: Id, name: &str, outputs: usize, stride: usize) -> Id {
        let x = self.conv(x, &format!("{name}.0"), outputs, 1, stride);
        self.norm(x, &format!("{name}.1"))
    }

    /// Two 3x3 convolutions and the shortcut.
    fn basic(&mut self, x: Id, shortcut: Id, name: &str, outputs: usize, stride: usize) -> Id {
        let mut x = self.conv(x, &format!("{name}.conv1"), outputs, 3, stride);
        x = self.norm(x, &format!("{name}.bn1"));
        x = self.activate(x);
        x = self.conv(x, &format!("{name}.conv2"), outputs, 3, 1);
        x = self.norm(x, &format!("{name}.bn2"));
        x = self.add(x, shortcut);
        self.activate(x)
    }

    /// A 1x1, a 3x3 and a 1x1 convolution, and the shortcut.
    fn bottleneck(&mut self, mut x: Id, shortcut: Id, name: &str, inner: usize, stride: usize) -> Id {
        for (layer, outputs, kernel, stride) in [(1, inner, 1, 1), (2, inner, 3, stride), (3, 4 * inner, 1, 1)] {
            x = self.conv(x, &format!("{name}.conv{layer}"), outputs, kernel, stride);
            x = self.norm(x, &format!("{name}.bn{layer}"));
            if layer < 3 {
                x = self.activate(x);
            }
        }
        x = self.add(x, shortcut);
        self.activate(x)
    }

    fn head(mut self, x: Id, name: &str, classes: usize) -> Graph {
        let inputs = self.channels[x];
        let x = self.push(Op::GlobalAveragePool, &[x], inputs);
        self.push(Op::Linear { name: name.to_owned(), inputs, outputs: classes }, &[x], classes);
        Graph { nodes: self.nodes, classes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(json: &str) -> usize {
        let spec: Spec = serde_json::from_str(json).unwrap();
        let graph = spec.graph().unwrap();
        let trained = graph.parameters().into_iter().filter(|(name, _)| !name.contains("running_"));
        trained.map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn networks_have_the_published_number_of_parameters() {
        // The tables of He et al. 2016 in full figures (akamaster's README), and torchvision's documentation.
        assert_eq!(parameters(r#"{"name": "cifar-resnet", "depth": 20}"#), 269_722);
        assert_eq!(parameters(r#"{"name": "cifar-resnet", "depth": 56}"#), 853_018);
        assert_eq!(parameters(r#"{"name": "resnet", "depth": 18}"#), 11_689_512);
        assert_eq!(parameters(r#"{"name": "resnet", "depth": 34}"#), 21_797_672);
        assert_eq!(parameters(r#"{"name": "resnet", "depth": 50}"#), 25_557_032);
        assert_eq!(parameters(r#"{"name": "mobilenet-v2"}"#), 3_504_872);
        // torchvision's without the auxiliary classifier, which timm counts too.
        assert_eq!(parameters(r#"{"name": "inception-v3"}"#), 23_834_568);
        // 45,873,072 in the 31 convolutions, 22,432 in the 31 normalisations, 6,410 in the linear layer.
        assert_eq!(parameters(r#"{"name": "wide-resnet", "depth": 32}"#), 45_901_914);
        // timm's table of results for tf_efficientnet_lite, in millions; the first is the published file's own count.
        assert_eq!(parameters(r#"{"name": "efficientnet-lite", "variant": 0}"#), 4_652_008);
        for (variant, millions) in [(1, 5.42), (2, 6.09), (3, 8.20), (4, 13.01)] {
            let found = parameters(&format!(r#"{{"name": "efficientnet-lite", "variant": {variant}}}"#)) as f64;
            assert!((found / 1e6 - millions).abs() < 0.006, "Lite{variant}: {found}");
        }
        // torchvision's documentation.
        for (depth, count) in [(121, 7_978_856), (161, 28_681_000), (169, 14_149_480), (201, 20_013_928)] {
            assert_eq!(parameters(&format!(r#"{{"name": "densenet", "depth": {depth}}}"#)), count);
        }
        for (depth, plain, normalised) in [
            (11, 132_863_336, 132_868_840),
            (13, 133_047_848, 133_053_736),
            (16, 138_357_544, 138_365_992),
            (19, 143_667_240, 143_678_248),
        ] {
            assert_eq!(parameters(&format!(r#"{{"name": "vgg", "depth": {depth}}}"#)), plain);
            let json = format!(r#"{{"name": "vgg", "depth": {depth}, "batch_norm": true}}"#);
            assert_eq!(parameters(&json), normalised);
        }
        // Huang et al. 2017, table 2: 0.8 M and 25.6 M; the first in full figures is of the implementation followed here.
        assert_eq!(parameters(r#"{"name": "cifar-densenet", "depth": 100}"#), 769_162);
        let large = parameters(r#"{"name": "cifar-densenet", "depth": 190, "growth": 40}"#);
        assert_eq!(large / 100_000, 256);
        // Zagoruyko and Komodakis 2016, tables 4 and 5: 36.5 M, 8.9 M; 46.2 M of WRN-34-10 and 266.8 M of WRN-70-16 in
        // later papers.
        for (depth, width, published) in [(28, 10, 365), (16, 8, 110), (40, 4, 89), (34, 10, 462), (70, 16, 2668)] {
            let found = parameters(&format!(r#"{{"name": "wrn", "depth": {depth}, "width": {width}}}"#));
            assert!(found.abs_diff(published * 100_000) <= 60_000, "WRN-{depth}-{width}: {found}");
        }
        // PyTorch's count of kuangliu's; 1024 more with the last normalisation.
        assert_eq!(parameters(r#"{"name": "preact-resnet", "depth": 18}"#), 11_172_170);
        assert_eq!(parameters(r#"{"name": "preact-resnet", "depth": 18, "final_norm": false}"#), 11_171_146);
    }

    #[test]
    fn specifications_survive_json_and_every_name_has_an_example() {
        let mut names = Vec::new();
        for spec in Spec::examples() {
            let json = serde_json::to_value(&spec).unwrap();
            names.push(json["name"].as_str().unwrap().to_owned());
            assert_eq!(serde_json::from_value::<Spec>(json).unwrap(), spec);
            assert_eq!(spec.graph().unwrap().classes, spec.classes());
        }
        names.dedup();
        assert_eq!(names, Spec::NAMES);
    }

    #[test]
    fn parameters_do_not_mention_the_default_activation() {
        let parse = |json: &str| serde_json::from_str::<Spec>(json).unwrap();
        let plain = parse(r#"{"name": "resnet", "depth": 18}"#);
        assert_eq!(plain, parse(r#"{"name": "resnet", "depth": 18, "activation": {"name": "relu"}}"#));
        assert!(serde_json::to_value(&plain).unwrap().get("activation").is_none());
        let sparse =
            parse(r#"{"name": "resnet", "depth": 18, "activation": {"name": "k-winners-take-all", "share": 0.1}}"#);
        let count = |spec: &Spec, op: Op| spec.graph().unwrap().nodes.iter().filter(|node| node.op == op).count();
        assert_eq!((count(&sparse, Op::Relu), count(&sparse, Op::KeepLargest { share: 0.1 })), (1, 16));
        assert_eq!((count(&plain, Op::Relu), count(&plain, Op::KeepLargest { share: 0.1 })), (17, 0));
        let typo = r#"{"name": "resnet", "depth": 18, "activation": {"name": "k-winners-take-all", "k": 0.1}}"#;
        assert!(serde_json::from_str::<Spec>(typo).is_err());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let typo = serde_json::from_str::<Spec>(r#"{"name": "resnet", "deepth": 18}"#).unwrap_err();
        assert!(typo.to_string().contains("deepth") && typo.to_string().contains("depth"), "{typo}");
        for (json, word) in [
            (r#"{"name": "cifar-resnet", "depth": 21}"#, "6 n + 2"),
            (r#"{"name": "cifar-resnet", "depth": 2}"#, "6 n + 2"),
            (r#"{"name": "cifar-resnet", "depth": 20, "width": 0}"#, "width"),
            (r#"{"name": "resnet", "depth": 101}"#, "50"),
            (r#"{"name": "resnet", "depth": 18, "classes": 1}"#, "classes"),
            (r#"{"name": "resnet", "depth": 18, "std": [0.1, 0, 0.1]}"#, "std"),
            (r#"{"name": "mobilenet-v2", "width": 0}"#, "width"),
            (r#"{"name": "wide-resnet", "depth": 28}"#, "6 n + 2"),
            (r#"{"name": "wide-resnet", "depth": 28}"#, "`wrn`"),
            (r#"{"name": "wrn", "depth": 32}"#, "`wide-resnet`"),
            (r#"{"name": "wrn", "depth": 28, "width": 0}"#, "width"),
            (r#"{"name": "preact-resnet", "depth": 101}"#, "50"),
            (r#"{"name": "preact-resnet", "depth": 50, "shortcut": "input"}"#, "activated"),
            (r#"{"name": "efficientnet-lite", "variant": 5}"#, "0 to 4"),
            (r#"{"name": "densenet", "depth": 100}"#, "`cifar-densenet`"),
            (r#"{"name": "cifar-densenet", "depth": 121}"#, "6 n + 4"),
            (r#"{"name": "cifar-densenet", "depth": 100, "growth": 0}"#, "growth"),
            (r#"{"name": "vgg", "depth": 12}"#, "19"),
            (r#"{"name": "vgg", "depth": 16, "hidden": 0}"#, "hidden"),
            (r#"{"name": "vgg", "depth": 16, "head": "cifar", "hidden": 64}"#, "hidden"),
            (r#"{"name": "wide-resnet", "depth": 32, "width": 0}"#, "width"),
            (r#"{"name": "resnet", "depth": 18, "activation": {"name": "k-winners-take-all", "share": 0}}"#, "share"),
            (
                r#"{"name": "cifar-resnet", "depth": 8, "activation": {"name": "k-winners-take-all", "share": 2}}"#,
                "share",
            ),
        ] {
            let error = serde_json::from_str::<Spec>(json).unwrap().graph().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
