//! A network as data: nodes in order of evaluation.
//!
//! One graph serves every executor: candle's autograd (the reference, and training), and compiled plans for frozen
//! networks. An architecture is a function that builds a graph; parameter names are torchvision's (timm's are the same
//! for these networks), so published weights load as they are.

/// The index of a node in its graph.
pub type Id = usize;

/// Zero padding in pixels on each side of a plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same padding on all four sides.
    #[must_use]
    pub const fn same(pixels: usize) -> Self {
        Self { top: pixels, bottom: pixels, left: pixels, right: pixels }
    }
}

/// How a convolution pads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pad {
    /// By so many pixels, whatever the plane's size.
    Fixed(Padding),
    /// As TensorFlow's `SAME`: so that there is an output for every `stride`-th pixel, begun ones included. What that
    /// takes depends on the plane's size; where it is an odd number, the more is below and to the right.
    Same,
}

impl Default for Pad {
    fn default() -> Self {
        Self::Fixed(Padding::default())
    }
}

impl From<Padding> for Pad {
    fn from(padding: Padding) -> Self {
        Self::Fixed(padding)
    }
}

impl Pad {
    /// The padding of a plane of `size` rows and columns under a kernel of so many rows and columns.
    #[must_use]
    pub const fn of(self, [rows, columns]: [usize; 2], stride: usize, size: [usize; 2]) -> Padding {
        const fn needed(kernel: usize, stride: usize, size: usize) -> usize {
            match size.div_ceil(stride) {
                0 => 0,
                outputs => ((outputs - 1) * stride + kernel).saturating_sub(size),
            }
        }
        match self {
            Self::Fixed(padding) => padding,
            Self::Same => {
                let (high, wide) = (needed(rows, stride, size[0]), needed(columns, stride, size[1]));
                let (top, left) = (high / 2, wide / 2);
                Padding { top, bottom: high - top, left, right: wide - left }
            }
        }
    }
}

/// A two-dimensional cross-correlation with weights `(outputs, inputs / groups, rows, columns)` at `{name}.weight`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv {
    /// The parameter's name without `.weight` or `.bias`.
    pub name: String,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Rows and columns of the kernel in pixels.
    pub kernel: [usize; 2],
    /// Step of the kernel in pixels, the same in both directions.
    pub stride: usize,
    /// Zero padding.
    pub padding: Pad,
    /// Groups of channels that do not see each other; `inputs` for a depthwise convolution, else 1.
    pub groups: usize,
    /// Whether there is a `{name}.bias` of shape `(outputs)`.
    pub bias: bool,
}

/// What a node computes from its inputs. Tensors are `(n, c, h, w)` until the global pool, `(n, c)` after it.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The image, `(n, 3, h, w)` with pixels in `[0, 1]`; always node 0.
    Input,
    /// `(x - mean) / std` per channel; always node 1, so that attacks work in pixels.
    Normalise {
        /// Per channel, in units of pixels.
        mean: Vec<f64>,
        /// Per channel, in units of pixels.
        std: Vec<f64>,
    },
    /// Convolution.
    Conv(Conv),
    /// Batch normalisation with `{name}.{weight,bias,running_mean,running_var}` of shape `(channels)`.
    BatchNorm {
        /// The parameters' common name.
        name: String,
        /// Channels.
        channels: usize,
        /// Added to the variance.
        eps: f64,
    },
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// `max(x, slope x)`.
    LeakyRelu {
        /// The derivative below 0, in `[0, 1)`.
        slope: f64,
    },
    /// k-winners-take-all (Xiao et al. 2020): of an image's `c h w` values the `floor(share c h w)` largest, by sign and
    /// not by magnitude, stay as they are; values that tie with the smallest of them stay too; all others become 0. The
    /// derivative takes the winners for fixed.
    KeepLargest {
        /// In `(0, 1]`; at least one value is kept.
        share: f64,
    },
    /// Stochastic activation pruning (Dhillon et al. 2018) as Athalye et al. 2018 re-implemented it: of an image's
    /// `c h w` values `r`, each is kept with probability `q = 1 - exp(-samples c h w |r| / sum |r|)` and then divided by
    /// `q + 1e-8`, independently, anew in every evaluation. Where all values are 0 they stay 0. The derivative passes
    /// through `r` and through `q` in the quotient, and takes the kept values for fixed.
    Prune {
        /// Draws with replacement that the pruning stands for, per value; greater than 0.
        samples: f64,
        /// Number of pruning operations before this one: operation `i` of image `n` draws from `keys[n].at(i)`, value
        /// `v` in `(c, h, w)` row-major order by the `v`-th of the key's uniform numbers.
        index: u64,
    },
    /// Per-image standardisation: `(x - mean) / max(std, 1 / sqrt(c h w))`, both over the image's `c h w` values (the
    /// population's standard deviation), as TensorFlow's `per_image_standardization`.
    Standardise,
    /// The channels of all inputs, one after the other.
    Concat,
    /// Mean over `kernel x kernel` windows, the padding counted as zeros.
    AveragePool {
        /// Side of the window in pixels.
        kernel: usize,
        /// Step of the window in pixels.
        stride: usize,
        /// Padding on each side in pixels.
        padding: usize,
    },
    /// The sum of two nodes of equal shape.
    Add,
    /// Maximum over `kernel x kernel` windows; the padding never wins.
    MaxPool {
        /// Side of the window in pixels.
        kernel: usize,
        /// Step of the window in pixels.
        stride: usize,
        /// Padding on each side in pixels.
        padding: usize,
    },
    /// The CIFAR ResNet shortcut without parameters (option A of He et al. 2016, section 4.2): every `stride`-th row
    /// and column, and zero channels before and after.
    Subsample {
        /// Step in pixels.
        stride: usize,
        /// Zero channels put before.
        before: usize,
        /// Zero channels put after.
        after: usize,
    },
    /// Mean over all pixels: `(n, c, h, w)` to `(n, c)`.
    GlobalAveragePool,
    /// Means over `side x side` windows that cover the plane, whatever its size: of row `i` (and of a column likewise)
    /// from `floor(i h / side)` to before `ceil((i + 1) h / side)`, as PyTorch's `AdaptiveAvgPool2d`.
    AdaptiveAveragePool {
        /// Rows and columns of the result in pixels.
        side: usize,
    },
    /// `x W^T + b` with `{name}.weight` `(outputs, inputs)` and `{name}.bias` `(outputs)`: `(n, inputs)` to `(n, outputs)`.
    /// Images `(n, c, s, s)` with `c s s = inputs` are taken channel by channel and row by row.
    Linear {
        /// The parameters' common name.
        name: String,
        /// Input features.
        inputs: usize,
        /// Output features.
        outputs: usize,
    },
}

/// An operation and the earlier nodes it reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// The nodes it is computed from, each smaller than the node's own index.
    pub inputs: Vec<Id>,
}

/// A network: nodes in order of evaluation, the last of which gives the logits `(n, classes)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Nodes; node 0 is the input.
    pub nodes: Vec<Node>,
    /// The number of classes.
    pub classes: usize,
}

impl Graph {
    /// Every tensor the graph needs, by name and shape, in order of evaluation; running statistics included.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        self.nodes.iter().flat_map(|node| node.op.parameters()).collect()
    }

    /// Whether the logits depend on keys: whether there is randomness inside.
    #[must_use]
    pub fn is_stochastic(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.op, Op::Prune { .. }))
    }

    /// The numbers that all nodes of one image of `height x width` pixels hold together: what a gradient query keeps.
    #[must_use]
    pub fn numbers(&self, height: usize, width: usize) -> usize {
        self.shapes(height, width).iter().map(|shape| shape.iter().product::<usize>()).sum()
    }

    /// The shape `(c, h, w)` of every node of one image of `height x width` pixels.
    pub(crate) fn shapes(&self, height: usize, width: usize) -> Vec<[usize; 3]> {
        let mut shapes: Vec<[usize; 3]> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let inputs: Vec<[usize; 3]> = node.inputs.iter().map(|&input| shapes[input]).collect();
            shapes.push(node.op.shape(&inputs, [3, height, width]));
        }
        shapes
    }

    /// How many nodes read each node; the logits count as read once.
    #[must_use]
    pub fn readers(&self) -> Vec<usize> {
        let mut readers = vec![0; self.nodes.len()];
        for &input in self.nodes.iter().flat_map(|node| &node.inputs) {
            readers[input] += 1;
        }
        if let Some(last) = readers.last_mut() {
            *last += 1;
        }
        readers
    }
}

impl Conv {
    /// The side of the kernel, if it is a square.
    #[must_use]
    pub const fn side(&self) -> Option<usize> {
        let [rows, columns] = self.kernel;
        if rows == columns { Some(rows) } else { None }
    }

    /// The padding of a plane of `size` rows and columns.
    #[must_use]
    pub const fn padding(&self, size: [usize; 2]) -> Padding {
        self.padding.of(self.kernel, self.stride, size)
    }
}

impl Op {
    /// The shape `(c, h, w)` of what becomes of one image's inputs; `(c, 1, 1)` after the global pool.
    fn shape(&self, inputs: &[[usize; 3]], image: [usize; 3]) -> [usize; 3] {
        let [c, h, w] = inputs.first().copied().unwrap_or(image);
        let windows = |size: usize, kernel: usize, stride: usize| size.saturating_sub(kernel) / stride + 1;
        match self {
            Self::Conv(conv) => {
                let ([rows, columns], padding) = (conv.kernel, conv.padding([h, w]));
                let (h, w) = (h + padding.top + padding.bottom, w + padding.left + padding.right);
                [conv.outputs, windows(h, rows, conv.stride), windows(w, columns, conv.stride)]
            }
            &Self::AveragePool { kernel, stride, padding } | &Self::MaxPool { kernel, stride, padding } => {
                [c, windows(h + 2 * padding, kernel, stride), windows(w + 2 * padding, kernel, stride)]
            }
            Self::Subsample { stride, before, after } => [c + before + after, h.div_ceil(*stride), w.div_ceil(*stride)],
            Self::Concat => [inputs.iter().map(|input| input[0]).sum(), h, w],
            Self::GlobalAveragePool => [c, 1, 1],
            Self::AdaptiveAveragePool { side } => [c, *side, *side],
            Self::Linear { outputs, .. } => [*outputs, 1, 1],
            _ => [c, h, w],
        }
    }

    /// The tensors this operation needs, by name and shape.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        match self {
            Self::Conv(conv) => {
                let weight = vec![conv.outputs, conv.inputs / conv.groups, conv.kernel[0], conv.kernel[1]];
                let bias = conv.bias.then(|| (format!("{}.bias", conv.name), vec![conv.outputs]));
                std::iter::once((format!("{}.weight", conv.name), weight)).chain(bias).collect()
            }
            Self::BatchNorm { name, channels, .. } => ["weight", "bias", "running_mean", "running_var"]
                .map(|part| (format!("{name}.{part}"), vec![*channels]))
                .into(),
            Self::Linear { name, inputs, outputs } => {
                vec![(format!("{name}.weight"), vec![*outputs, *inputs]), (format!("{name}.bias"), vec![*outputs])]
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_is_tensorflows() {
        // Rows in, and above and below, of kernels of 3 and 5 rows: TensorFlow's documentation of `SAME`.
        for (kernel, stride, size, above, below) in [
            (3, 1, 7, 1, 1),
            (5, 1, 7, 2, 2),
            (3, 2, 224, 0, 1),
            (3, 2, 7, 1, 1),
            (5, 2, 56, 1, 2),
            (5, 2, 15, 2, 2),
            (1, 2, 8, 0, 0),
            (2, 3, 7, 0, 1),
            (3, 2, 1, 1, 1),
        ] {
            let padding = Pad::Same.of([kernel, 1], stride, [size, 9]);
            assert_eq!((padding.top, padding.bottom), (above, below), "{kernel}/{stride} of {size}");
            let padding = Pad::Same.of([1, kernel], stride, [9, size]);
            assert_eq!((padding.left, padding.right), (above, below), "{kernel}/{stride} of {size}");
            assert_eq!((size + above + below - kernel) / stride + 1, size.div_ceil(stride));
        }
        let some = Padding { top: 1, bottom: 2, left: 3, right: 4 };
        assert_eq!(Pad::from(some).of([3, 3], 2, [5, 6]), some);
    }
}
