//! Inception-v3.

use serde::{Deserialize, Serialize};

use super::{Builder, half, thousand};
use crate::{Conv, Graph, Id, Op, Padding};

/// Inception-v3 (Szegedy et al. 2016), as torchvision and timm build it: without the auxiliary classifier, and with
/// pixels mapped to `[-1, 1]`, as the published weights (`timm/inception_v3.tv_in1k`) expect them.
///
/// The original's images have 299x299 pixels; the least are 75x75. Parameter names are torchvision's and timm's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InceptionV3 {
    /// The number of classes.
    #[serde(default = "thousand")]
    pub classes: usize,
    /// Subtracted from the pixels, per channel.
    #[serde(default = "half", deserialize_with = "game::triple")]
    pub mean: [f64; 3],
    /// What the pixels are then divided by, per channel.
    #[serde(default = "half", deserialize_with = "game::triple")]
    pub std: [f64; 3],
}

/// Name, output channels, kernel, stride and padding (rows and columns) of a convolution with normalisation and ReLU.
type Layer = (&'static str, usize, [usize; 2], usize, [usize; 2]);

/// A convolution that keeps the size.
const fn same(name: &'static str, outputs: usize, kernel: [usize; 2]) -> Layer {
    (name, outputs, kernel, 1, [kernel[0] / 2, kernel[1] / 2])
}

const fn point(name: &'static str, outputs: usize) -> Layer {
    same(name, outputs, [1, 1])
}

/// A 3x3 convolution of stride 2 without padding.
const fn halving(name: &'static str, outputs: usize) -> Layer {
    (name, outputs, [3, 3], 2, [0, 0])
}

impl InceptionV3 {
    pub(super) fn build(&self, mut net: Builder) -> Graph {
        net.eps = 1e-3;
        let mut x = net.last();
        x = net.chain(x, "", &[halving("Conv2d_1a_3x3", 32), ("Conv2d_2a_3x3", 32, [3, 3], 1, [0, 0])]);
        x = net.chain(x, "", &[same("Conv2d_2b_3x3", 64, [3, 3])]);
        x = net.shrink(x);
        x = net.chain(x, "", &[point("Conv2d_3b_1x1", 80), ("Conv2d_4a_3x3", 192, [3, 3], 1, [0, 0])]);
        x = net.shrink(x);
        for (name, pool) in [("Mixed_5b.", 32), ("Mixed_5c.", 64), ("Mixed_5d.", 64)] {
            x = net.inception_a(x, name, pool);
        }
        x = net.inception_b(x, "Mixed_6a.");
        for (name, inner) in [("Mixed_6b.", 128), ("Mixed_6c.", 160), ("Mixed_6d.", 160), ("Mixed_6e.", 192)] {
            x = net.inception_c(x, name, inner);
        }
        x = net.inception_d(x, "Mixed_7a.");
        for name in ["Mixed_7b.", "Mixed_7c."] {
            x = net.inception_e(x, name);
        }
        net.head(x, "fc", self.classes)
    }
}

/// The blocks, by torchvision's letters; in the paper figures 5, 10, 6, 10 and 7.
impl Builder {
    /// Convolutions one after the other.
    fn chain(&mut self, mut x: Id, prefix: &str, layers: &[Layer]) -> Id {
        for &(name, outputs, kernel, stride, [rows, columns]) in layers {
            let padding = Padding { top: rows, bottom: rows, left: columns, right: columns }.into();
            let (name, inputs) = (format!("{prefix}{name}"), self.channels[x]);
            let conv =
                Conv { name: format!("{name}.conv"), inputs, outputs, kernel, stride, padding, groups: 1, bias: false };
            x = self.push(Op::Conv(conv), &[x], outputs);
            x = self.norm(x, &format!("{name}.bn"));
            x = self.relu(x);
        }
        x
    }

    fn concat(&mut self, branches: &[Id]) -> Id {
        let channels = branches.iter().map(|&branch| self.channels[branch]).sum();
        self.push(Op::Concat, branches, channels)
    }

    /// The max-pool that halves the size.
    fn shrink(&mut self, x: Id) -> Id {
        self.push(Op::MaxPool { kernel: 3, stride: 2, padding: 0 }, &[x], self.channels[x])
    }

    /// The average-pool of a block, and its convolution.
    fn pooled(&mut self, x: Id, prefix: &str, outputs: usize) -> Id {
        let x = self.push(Op::AveragePool { kernel: 3, stride: 1, padding: 1 }, &[x], self.channels[x]);
        self.chain(x, prefix, &[point("branch_pool", outputs)])
    }

    fn inception_a(&mut self, x: Id, prefix: &str, pool: usize) -> Id {
        let branches = [
            self.chain(x, prefix, &[point("branch1x1", 64)]),
            self.chain(x, prefix, &[point("branch5x5_1", 48), same("branch5x5_2", 64, [5, 5])]),
            self.chain(
                x,
                prefix,
                &[point("branch3x3dbl_1", 64), same("branch3x3dbl_2", 96, [3, 3]), same("branch3x3dbl_3", 96, [3, 3])],
            ),
            self.pooled(x, prefix, pool),
        ];
        self.concat(&branches)
    }

    fn inception_b(&mut self, x: Id, prefix: &str) -> Id {
        let branches = [
            self.chain(x, prefix, &[halving("branch3x3", 384)]),
            self.chain(
                x,
                prefix,
                &[point("branch3x3dbl_1", 64), same("branch3x3dbl_2", 96, [3, 3]), halving("branch3x3dbl_3", 96)],
            ),
            self.shrink(x),
        ];
        self.concat(&branches)
    }

    fn inception_c(&mut self, x: Id, prefix: &str, inner: usize) -> Id {
        let branches = [
            self.chain(x, prefix, &[point("branch1x1", 192)]),
            self.chain(
                x,
                prefix,
                &[point("branch7x7_1", inner), same("branch7x7_2", inner, [1, 7]), same("branch7x7_3", 192, [7, 1])],
            ),
            self.chain(
                x,
                prefix,
                &[
                    point("branch7x7dbl_1", inner),
                    same("branch7x7dbl_2", inner, [7, 1]),
                    same("branch7x7dbl_3", inner, [1, 7]),
                    same("branch7x7dbl_4", inner, [7, 1]),
                    same("branch7x7dbl_5", 192, [1, 7]),
                ],
            ),
            self.pooled(x, prefix, 192),
        ];
        self.concat(&branches)
    }

    fn inception_d(&mut self, x: Id, prefix: &str) -> Id {
        let branches = [
            self.chain(x, prefix, &[point("branch3x3_1", 192), halving("branch3x3_2", 320)]),
            self.chain(
                x,
                prefix,
                &[
                    point("branch7x7x3_1", 192),
                    same("branch7x7x3_2", 192, [1, 7]),
                    same("branch7x7x3_3", 192, [7, 1]),
                    halving("branch7x7x3_4", 192),
                ],
            ),
            self.shrink(x),
        ];
        self.concat(&branches)
    }

    fn inception_e(&mut self, x: Id, prefix: &str) -> Id {
        let three = self.chain(x, prefix, &[point("branch3x3_1", 384)]);
        let double = self.chain(x, prefix, &[point("branch3x3dbl_1", 448), same("branch3x3dbl_2", 384, [3, 3])]);
        let branches = [
            self.chain(x, prefix, &[point("branch1x1", 320)]),
            self.chain(three, prefix, &[same("branch3x3_2a", 384, [1, 3])]),
            self.chain(three, prefix, &[same("branch3x3_2b", 384, [3, 1])]),
            self.chain(double, prefix, &[same("branch3x3dbl_3a", 384, [1, 3])]),
            self.chain(double, prefix, &[same("branch3x3dbl_3b", 384, [3, 1])]),
            self.pooled(x, prefix, 192),
        ];
        self.concat(&branches)
    }
}
