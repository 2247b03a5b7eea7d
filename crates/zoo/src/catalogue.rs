//! Architectures by name, with the images that their published weights expect.

use candle_core::{Module, Result};
use candle_nn::VarBuilder;

use crate::{
    convnext::{self, Convnext},
    efficientnet::{self, EfficientNet},
    mobilenet::{self, MobileNet},
    vit::{self, Head, Vit},
};

/// An architecture with its sizes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Family {
    Vit(vit::Config),
    Convnext(convnext::Config),
    EfficientNet(efficientnet::Config),
    MobileNet(mobilenet::Config),
}

/// A line of the catalogue.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: String,
    pub family: Family,
    /// Rows and columns of the images that its published weights were trained on.
    pub side: usize,
    /// The normalisation of those weights.
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
const HALF: ([f64; 3], [f64; 3]) = ([0.5; 3], [0.5; 3]);

/// Every architecture.
pub(crate) fn entries() -> Vec<Entry> {
    [transformers(), convnexts(), efficientnets(), mobilenets()].concat()
}

/// The architecture of this name.
pub(crate) fn find(name: &str) -> Option<Entry> {
    entries().into_iter().find(|entry| entry.name == name)
}

/// The names of all architectures: timm's, with hyphens.
#[must_use]
pub fn names() -> Vec<String> {
    entries().into_iter().map(|entry| entry.name).collect()
}

fn entry(name: String, family: Family, side: usize, (mean, std): ([f64; 3], [f64; 3])) -> Entry {
    Entry { name, family, side, mean, std }
}

fn transformers() -> Vec<Entry> {
    let sizes = [("tiny", 12, 3), ("small", 12, 6), ("base", 12, 12), ("large", 24, 16)];
    let mut all = Vec::new();
    let mut push = |name: String, side: usize, normalisation, config: vit::Config| {
        all.push(entry(name, Family::Vit(config), side, normalisation));
    };
    for (size, depth, heads) in sizes {
        let plain = vit::Config { patch: 16, depth, heads, head: 64, last: Head::Token, layer_scale: false };
        push(format!("vit-{size}-patch16-224"), 224, HALF, plain);
        push(format!("vit-{size}-patch16-384"), 384, HALF, plain);
        if size != "tiny" {
            let patch = vit::Config { patch: 32, ..plain };
            push(format!("vit-{size}-patch32-224"), 224, HALF, patch);
            let dino = vit::Config { patch: 14, last: Head::TokenAndMean, layer_scale: true, ..plain };
            push(format!("dinov2-{size}-patch14-224"), 224, IMAGENET, dino);
        }
        if size != "large" {
            push(format!("deit-{size}-patch16-224"), 224, IMAGENET, plain);
            let distilled = vit::Config { last: Head::TwoTokens, ..plain };
            push(format!("deit-{size}-distilled-patch16-224"), 224, IMAGENET, distilled);
        }
    }
    all
}

fn convnexts() -> Vec<Entry> {
    let sizes = [
        ("atto", [2, 2, 6, 2], 40),
        ("femto", [2, 2, 6, 2], 48),
        ("pico", [2, 2, 6, 2], 64),
        ("nano", [2, 2, 8, 2], 80),
        ("tiny", [3, 3, 9, 3], 96),
        ("small", [3, 3, 27, 3], 96),
        ("base", [3, 3, 27, 3], 128),
        ("large", [3, 3, 27, 3], 192),
        ("xlarge", [3, 3, 27, 3], 256),
        ("huge", [3, 3, 27, 3], 352),
    ];
    let mut all = Vec::new();
    for (size, blocks, first) in sizes {
        let channels = [first, 2 * first, 4 * first, 8 * first];
        for (version, second) in [("convnext", false), ("convnextv2", true)] {
            // Published are a first version up to xlarge, and a second without small and xlarge.
            if (second && matches!(size, "small" | "xlarge")) || (!second && size == "huge") {
                continue;
            }
            let config = convnext::Config { blocks, channels, second };
            all.push(entry(format!("{version}-{size}"), Family::Convnext(config), 224, IMAGENET));
        }
    }
    all
}

fn efficientnets() -> Vec<Entry> {
    // Width, depth and side of table 1 in the authors' code.
    let sizes = [
        (1.0, 1.0, 224),
        (1.0, 1.1, 240),
        (1.1, 1.2, 260),
        (1.2, 1.4, 300),
        (1.4, 1.8, 380),
        (1.6, 2.2, 456),
        (1.8, 2.6, 528),
        (2.0, 3.1, 600),
    ];
    let mut all = Vec::new();
    for (index, (width, depth, side)) in sizes.into_iter().enumerate() {
        for tensorflow in [false, true] {
            let config = efficientnet::Config { width, depth, tensorflow };
            let prefix = if tensorflow { "tf-" } else { "" };
            // PyTorch's own weights are of the first five.
            if tensorflow || index < 5 {
                let name = format!("{prefix}efficientnet-b{index}");
                all.push(entry(name, Family::EfficientNet(config), side, IMAGENET));
            }
        }
    }
    all
}

fn mobilenets() -> Vec<Entry> {
    let sizes = [
        ("small", mobilenet::Config::small(), 224),
        ("medium", mobilenet::Config::medium(), 256),
        ("large", mobilenet::Config::large(), 384),
    ];
    let of =
        |(size, config, side)| entry(format!("mobilenetv4-conv-{size}"), Family::MobileNet(config), side, IMAGENET);
    sizes.map(of).into()
}

impl Family {
    /// The same with `width` times the channels and `depth` times the blocks.
    pub fn resized(self, width: f64, depth: f64) -> Self {
        match self {
            Self::Vit(config) => Self::Vit(config.resized(width, depth)),
            Self::Convnext(config) => Self::Convnext(config.resized(width, depth)),
            Self::EfficientNet(config) => Self::EfficientNet(config.resized(width, depth)),
            Self::MobileNet(config) => Self::MobileNet(config.resized(width, depth)),
        }
    }

    /// Multiply-adds of one forward pass over an image of `side` rows and columns.
    pub fn multiplications(&self, side: usize, classes: usize) -> u64 {
        match self {
            Self::Vit(config) => config.multiplications(side, classes),
            Self::Convnext(config) => config.multiplications(side, classes),
            Self::EfficientNet(config) => config.multiplications(side, classes),
            Self::MobileNet(config) => config.multiplications(side, classes),
        }
    }

    /// The pixels that one side must be a multiple of, where other sizes are impossible: a transformer's patch.
    pub const fn patch(&self) -> Option<usize> {
        match self {
            Self::Vit(config) => Some(config.patch),
            _ => None,
        }
    }

    /// The smallest side of an image that leaves a pixel for the last layer.
    pub const fn smallest(&self) -> usize {
        match self {
            Self::Vit(config) => config.patch,
            Self::Convnext(_) => 32,
            Self::EfficientNet(_) | Self::MobileNet(_) => 1,
        }
    }

    /// The network.
    pub fn build(&self, side: usize, classes: usize, vb: &VarBuilder<'_>) -> Result<Box<dyn Module + Send + Sync>> {
        Ok(match self {
            Self::Vit(config) => Box::new(Vit::new(config, side, classes, vb)?),
            Self::Convnext(config) => Box::new(Convnext::new(config, classes, vb)?),
            Self::EfficientNet(config) => Box::new(EfficientNet::new(config, classes, vb)?),
            Self::MobileNet(config) => Box::new(MobileNet::new(config, classes, vb)?),
        })
    }
}
