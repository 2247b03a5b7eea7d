//! EfficientNet-Lite.

use serde::{Deserialize, Serialize};

use super::{Builder, Edges, Invalid, same_edges, thousand};
use crate::{Graph, Id, Pad};

/// EfficientNet-Lite (Google, 2020: `tensorflow/tpu/models/official/efficientnet/lite`): EfficientNet (Tan and Le 2019)
/// without squeeze-and-excitation, with ReLU6, and with stem and head of one size in all variants.
///
/// The originals' images have 224, 240, 260, 280 and 300 pixels a side. Normalisations add 0.001 to the variance.
/// Parameter names are those of `efficientnet-lite-pytorch`: `_blocks.0._depthwise_conv`; timm's are taken for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EfficientnetLite {
    /// From 0 to 4: the depth and width of the network.
    pub variant: usize,
    /// The number of classes.
    #[serde(default = "thousand")]
    pub classes: usize,
    /// Where the convolutions of stride 2 pad. `same`, as the published weights were trained, is TensorFlow's `SAME` of
    /// any size here; `symmetric` is by half the kernel on each side.
    #[serde(default = "same_edges")]
    pub padding: Edges,
    /// Subtracted from the pixels, per channel; 127/255 in the original.
    #[serde(default = "centre", deserialize_with = "game::triple")]
    pub mean: [f64; 3],
    /// What the pixels are then divided by, per channel; 128/255 in the original.
    #[serde(default = "spread", deserialize_with = "game::triple")]
    pub std: [f64; 3],
}

fn centre() -> [f64; 3] {
    [127.0 / 255.0; 3]
}
fn spread() -> [f64; 3] {
    [128.0 / 255.0; 3]
}

/// Width and depth of each variant.
const SCALES: [(f64, f64); 5] = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8)];

/// Expansion, channels, blocks, stride of the first block, and kernel (table 1 of Tan and Le).
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
];

impl EfficientnetLite {
    pub(super) fn example() -> Self {
        Self { variant: 0, classes: 1000, padding: Edges::Same, mean: centre(), std: spread() }
    }

    pub(super) fn build(&self, mut net: Builder) -> Result<Graph, Invalid> {
        let Some(&(width, depth)) = SCALES.get(self.variant) else {
            return Err(Invalid(format!("no efficientnet-lite has variant {}: variants are 0 to 4", self.variant)));
        };
        net.eps = 1e-3;
        net.pad = (self.padding == Edges::Same).then_some(Pad::Same);
        let mut x = net.conv(net.last(), "_conv_stem", 32, 3, 2);
        x = net.norm(x, "_bn0");
        x = net.relu6(x);
        let mut block = 0;
        for (stage, (expansion, channels, count, first, kernel)) in STAGES.into_iter().enumerate() {
            // Neither the first nor the last stage grows in depth.
            let whole = stage > 0 && stage + 1 < STAGES.len();
            let count = if whole { (count as f64 * depth).ceil() as usize } else { count };
            for place in 0..count {
                let stride = if place == 0 { first } else { 1 };
                let name = format!("_blocks.{block}");
                x = net.lite_block(x, &name, rounded(channels, width), expansion, [kernel, stride]);
                block += 1;
            }
        }
        x = net.conv(x, "_conv_head", 1280, 1, 1);
        x = net.norm(x, "_bn1");
        x = net.relu6(x);
        Ok(net.head(x, "_fc", self.classes))
    }
}

/// `channels` times the width, rounded to a multiple of 8 but not down by more than a tenth.
fn rounded(channels: usize, width: f64) -> usize {
    let exact = channels as f64 * width;
    let near = ((exact + 4.0) as usize / 8 * 8).max(8);
    if (near as f64) < 0.9 * exact { near + 8 } else { near }
}

impl Builder {
    /// An inverted residual: expansion, depthwise convolution, linear projection.
    fn lite_block(
        &mut self,
        input: Id,
        name: &str,
        outputs: usize,
        expansion: usize,
        [kernel, stride]: [usize; 2],
    ) -> Id {
        let inputs = self.channels[input];
        let hidden = inputs * expansion;
        let mut x = input;
        if expansion != 1 {
            x = self.conv(x, &format!("{name}._expand_conv"), hidden, 1, 1);
            x = self.norm(x, &format!("{name}._bn0"));
            x = self.relu6(x);
        }
        x = self.grouped(x, &format!("{name}._depthwise_conv"), hidden, kernel, stride, hidden);
        x = self.norm(x, &format!("{name}._bn1"));
        x = self.relu6(x);
        x = self.conv(x, &format!("{name}._project_conv"), outputs, 1, 1);
        x = self.norm(x, &format!("{name}._bn2"));
        if stride == 1 && inputs == outputs { self.add(x, input) } else { x }
    }
}
