//! Every instruction set against f64, on every architecture and layer.
//!
//! A network of ReLUs and max-pools is piecewise linear: its gradient is decided by which branch each unit takes. f32
//! and f64 take different branches where a pre-activation is within rounding of a kink, and then their gradients differ
//! by what that unit carries. So the tests ask three things:
//!
//! - the engine's gradient is, within rounding, the f64 gradient *at the engine's own branches*, for every image;
//! - wherever the branches differ from f64's, the f64 value is within rounding of the kink;
//! - such flips are few.
//!
//! Where some values stay and others become 0, the network itself jumps at a kink. There the logits, too, are compared
//! with f64's at the engine's branches.

#![expect(clippy::print_stderr, reason = "tests say what they skip")]

mod real;
mod reference;

use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use game::{Classifier, Key, Phase};
use nets::{Conv, Graph, Id, Node, Op, Pad, Padding, Spec, Weights};
use rayon::prelude::*;
use reference::Reference;

use crate::compile::{Compiled, Work};
use crate::{Isa, Plan};

/// Largest difference of gradients at equal branches, as a share of the image's largest gradient. A product is rounded
/// by 6e-8 of itself. Errors of many layers add up like a random walk: some tens of layers and Winograd's transforms,
/// whose terms are about ten times as large as their sums, make it 3e-6. The largest seen is 1.1e-5 (VGG-11, which normalises
/// nothing between sums of 4,608 products).
const GRADIENT: f64 = 2e-5;
/// The same for logits, as a share of the largest.
const LOGITS: f64 = 1e-5;
/// Largest distance from a kink, as a share of the layer's largest value, at which a unit may take the other branch: no
/// more than the values themselves may err. The largest seen is 5e-7.
const KINK: f64 = 5e-6;
/// Largest share of units that take the other branch. Values are spread over their layer's range, so about as many fall
/// within an error of 1e-7 to 1e-6 of a kink; 3e-7 were seen on real images.
const FLIPS: f64 = 2e-6;

/// An image, its f64 values and the engine's branches.
pub(crate) struct Case<'a> {
    pub graph: &'a Graph,
    pub weights: &'a Weights,
    reference: Reference<'a>,
    pub size: [usize; 2],
    pub pixels: Vec<f32>,
    pub upstream: Vec<f32>,
    /// Of each image.
    pub keys: Vec<Key>,
    /// Of each image, all nodes.
    values: Vec<Vec<Vec<f64>>>,
    /// Of each image, the gradient at f64's own branches, once it was asked for.
    gradients: Vec<OnceLock<Vec<f64>>>,
}

/// How the images of a case fared, the worst of them.
#[derive(Debug, Default)]
struct Score {
    logits: f64,
    /// At the engine's branches.
    gradient: f64,
    /// At f64's own branches.
    free: f64,
    kink: f64,
    flips: usize,
    units: usize,
    images: usize,
    /// Images without a flip.
    agreeing: usize,
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |top, v| top.max(v.abs()))
}

/// The largest difference as a share of the largest of `right`.
pub(crate) fn distance(left: &[f32], right: &[f64]) -> f64 {
    let differences: Vec<_> = left.iter().zip(right).map(|(&l, r)| f64::from(l) - r).collect();
    if differences.iter().any(|d| d.is_nan()) {
        return f64::INFINITY;
    }
    largest(&differences) / largest(right).max(1e-300)
}

impl<'a> Case<'a> {
    fn new(graph: &'a Graph, weights: &'a Weights, size: [usize; 2], images: usize) -> Self {
        let key = Key::root(5).phase(Phase::Data);
        let [rows, columns] = size;
        let mut pixels = vec![0.0; images * 3 * rows * columns];
        key.fill_uniform(&mut pixels);
        let mut upstream = vec![0.0; images * graph.classes];
        key.at(1).fill_normal(&mut upstream);
        Self::of(graph, weights, size, pixels, upstream)
    }

    fn of(graph: &'a Graph, weights: &'a Weights, size: [usize; 2], pixels: Vec<f32>, upstream: Vec<f32>) -> Self {
        let reference = Reference::new(graph, weights, size);
        let images: Vec<_> = pixels.chunks(3 * size[0] * size[1]).collect();
        let keys: Vec<_> = (0..images.len()).map(|i| Key::root(6).phase(Phase::Attack).at(i as u64)).collect();
        let values = images.into_par_iter().zip(&keys).map(|(image, &key)| {
            let image: Vec<_> = image.iter().map(|&x| f64::from(x)).collect();
            reference.forward(&image, key, None)
        });
        let values: Vec<_> = values.collect();
        let gradients = vec![OnceLock::new(); values.len()];
        Self { gradients, graph, weights, reference, size, pixels, upstream, keys, values }
    }

    pub fn images(&self) -> usize {
        self.values.len()
    }

    /// Whether the network itself jumps at a kink.
    pub fn jumps(&self) -> bool {
        self.reference.jumps()
    }

    /// An image's logits in f64.
    pub fn logits(&self, image: usize) -> Vec<f64> {
        self.values[image].last().unwrap().clone()
    }

    /// An image's gradient at f64's own branches.
    pub fn gradient(&self, image: usize) -> Vec<f64> {
        let upstream = &self.upstream[image * self.graph.classes..][..self.graph.classes];
        let upstream: Vec<f64> = upstream.iter().map(|&u| f64::from(u)).collect();
        let truth = || {
            let own = self.reference.branches(&self.values[image], self.keys[image]);
            self.reference.backward(&self.values[image], &upstream, &|node, unit| own[node][unit])
        };
        self.gradients[image].get_or_init(truth).clone()
    }

    fn plan(&self, isa: Isa) -> Plan {
        Plan::with_isa(self.graph, self.weights, isa).unwrap()
    }

    fn score(&self, isa: Isa) -> Score {
        let plan = self.plan(isa);
        let fitted = plan.fitted(self.size).unwrap();
        let net = &fitted.net;
        let (classes, images) = (self.graph.classes, self.images());
        let mut state = vec![0xAA; images * net.state];
        let mut logits = vec![0.0; images * classes];
        fitted.forward(&self.pixels, &self.keys, &mut state, &mut logits);
        let mut gradient = vec![0.0; self.pixels.len()];
        fitted.backward(&self.upstream, &mut state, &mut gradient);
        let per_image = self.pixels.len() / images;
        let scores = (0..images).into_par_iter().map(|image| {
            let branches = plan.branches(net, &state[image * net.state..][..net.state]);
            self.score_image(
                image,
                &branches,
                &logits[image * classes..][..classes],
                &gradient[image * per_image..][..per_image],
            )
        });
        scores.reduce(Score::default, |a, b| Score {
            logits: a.logits.max(b.logits),
            gradient: a.gradient.max(b.gradient),
            free: a.free.max(b.free),
            kink: a.kink.max(b.kink),
            flips: a.flips + b.flips,
            units: a.units + b.units,
            images: a.images + b.images,
            agreeing: a.agreeing + b.agreeing,
        })
    }

    fn score_image(&self, image: usize, branches: &[Vec<u8>], logits: &[f32], gradient: &[f32]) -> Score {
        let theirs = |node: usize, unit: usize| usize::from(branches[node][unit]);
        let (key, pixels) = (self.keys[image], &self.values[image][0]);
        let jumped = self.reference.jumps().then(|| self.reference.forward(pixels, key, Some(&theirs)));
        let values = jumped.as_ref().unwrap_or(&self.values[image]);
        let own = self.reference.branches(values, key);
        let upstream: Vec<_> =
            self.upstream[image * logits.len()..][..logits.len()].iter().map(|&u| f64::from(u)).collect();
        let logits = distance(logits, values.last().unwrap());
        let mut score = Score { logits, images: 1, ..Score::default() };
        for (node, (own, theirs)) in own.iter().zip(branches).enumerate() {
            assert_eq!(own.len(), theirs.len(), "node {node}");
            score.units += own.len();
            for unit in (0..own.len()).filter(|&unit| own[unit] != usize::from(theirs[unit])) {
                score.flips += 1;
                score.kink = score.kink.max(self.kink(image, values, node, unit, theirs[unit]));
            }
        }
        score.agreeing = usize::from(score.flips == 0);
        if jumped.is_some() {
            score.gradient = distance(gradient, &self.reference.backward(values, &upstream, &theirs));
            return score;
        }
        let truth = || self.reference.backward(values, &upstream, &|node, unit| own[node][unit]);
        score.free = distance(gradient, self.gradients[image].get_or_init(truth));
        score.gradient = match score.flips {
            0 => score.free,
            _ => distance(gradient, &self.reference.backward(values, &upstream, &theirs)),
        };
        score
    }

    /// How far a unit is from taking another branch, as a share of its layer's largest value.
    fn kink(&self, image: usize, values: &[Vec<f64>], node: usize, unit: usize, branch: u8) -> f64 {
        let x = &values[self.graph.nodes[node].inputs[0]];
        let gap = match self.graph.nodes[node].op {
            Op::Relu | Op::LeakyRelu { .. } => x[unit].abs(),
            Op::KeepLargest { share } => (x[unit] - reference::smallest_kept(x, share)).abs(),
            Op::Relu6 => x[unit].abs().min((x[unit] - 6.0).abs()),
            // Another sign, or another side of the magnitude at which the uniform number is the chance to stay.
            Op::Prune { .. } if branch / 2 != reference::pruned(false, x[unit]) as u8 / 2 => x[unit].abs(),
            Op::Prune { samples, index } => {
                let uniform = reference::uniforms(self.keys[image], index, x.len())[unit];
                (x[unit].abs() - -(-uniform).ln_1p() / reference::rate(x, samples)).abs()
            }
            Op::MaxPool { .. } => self.reference.loss(values, node, unit, branch.into()),
            _ => unreachable!(),
        };
        gap / largest(x)
    }

    fn check(&self, name: &str) {
        for isa in Isa::available() {
            let score = self.score(isa);
            if std::env::var_os("VERBOSE").is_some() {
                eprintln!("{name} {isa:?}: {score:?}");
            }
            assert!(score.logits < LOGITS, "{name} {isa:?}: {score:?}");
            assert!(score.gradient < GRADIENT, "{name} {isa:?}: {score:?}");
            assert!(score.kink < KINK, "{name} {isa:?}: {score:?}");
            assert!(score.flips as f64 <= (FLIPS * score.units as f64).max(2.0), "{name} {isa:?}: {score:?}");
        }
        crate::device::tests::check(self, name);
    }
}

impl Plan {
    /// Which branch each unit of each node took, in the order of the reference.
    fn branches(&self, net: &Compiled, state: &[u8]) -> Vec<Vec<u8>> {
        let mut branches = vec![Vec::new(); self.network.steps.last().unwrap().node + 1];
        for (step, stage) in self.network.steps.iter().zip(&net.stages) {
            let value = &net.values[step.output];
            let padded = value.layout.channels;
            let units =
                (0..value.channels).flat_map(|c| (0..value.rows * value.columns).map(move |pixel| pixel * padded + c));
            let bits = |mask: usize| units.clone().map(|unit| state[mask + unit / 8] >> (unit % 8) & 1).collect();
            if let Some(mask) = value.mask {
                branches[step.node] = bits(mask);
            }
            match stage.work {
                Work::MaxPool { winners, .. } => {
                    branches[step.node] = units.map(|unit| state[winners + unit]).collect()
                }
                Work::Prune { ref record, .. } => {
                    let value = |unit: usize| {
                        let at = record.values + 4 * unit;
                        f32::from_ne_bytes(state[at..at + 4].try_into().unwrap()).into()
                    };
                    let stays: Vec<u8> = bits(record.mask);
                    let units = units.zip(stays).map(|(unit, stays)| reference::pruned(stays == 1, value(unit)) as u8);
                    branches[step.first] = units.collect();
                }
                _ => (),
            }
        }
        branches
    }
}

/// Weights whose batch-norms do something: fresh ones, and statistics drawn around the identity.
pub(crate) fn weights(graph: &Graph) -> Weights {
    let key = Key::root(3).phase(Phase::Init);
    let mut weights = nets::weights::initialise(graph, key).unwrap();
    for (i, (name, tensor)) in weights.iter_mut().enumerate() {
        if tensor.dims().len() > 1 {
            continue;
        }
        let mut noise = vec![0.0; tensor.elem_count()];
        key.at(1 << 20).at(i as u64).fill_uniform(&mut noise);
        let (low, high) = match () {
            () if name.ends_with("running_var") => (0.5, 1.5),
            () if name.ends_with("weight") => (0.5, 1.2),
            () => (-0.3, 0.3),
        };
        noise.iter_mut().for_each(|x| *x = low + (high - low) * *x);
        *tensor = Tensor::new(noise, &Device::Cpu).unwrap();
    }
    weights
}

pub(crate) fn spec(json: &str) -> Graph {
    serde_json::from_str::<Spec>(json).unwrap().graph().unwrap()
}

fn architecture(json: &str, size: [usize; 2], images: usize) {
    let graph = spec(json);
    let weights = weights(&graph);
    Case::new(&graph, &weights, size, images).check(json);
}

#[test]
fn cifar_resnets() {
    architecture(r#"{"name": "cifar-resnet", "depth": 20}"#, [32, 32], 8);
    architecture(r#"{"name": "cifar-resnet", "depth": 14, "shortcut": "B", "width": 10}"#, [29, 34], 3);
    architecture(r#"{"name": "cifar-resnet", "depth": 56}"#, [32, 32], 3);
}

#[test]
fn resnets() {
    architecture(r#"{"name": "resnet", "depth": 18, "stem": "cifar", "classes": 10}"#, [32, 32], 2);
    architecture(r#"{"name": "resnet", "depth": 34}"#, [75, 90], 1);
    architecture(r#"{"name": "resnet", "depth": 50}"#, [64, 64], 1);
}

#[test]
fn mobilenets() {
    architecture(r#"{"name": "mobilenet-v2"}"#, [96, 96], 1);
    architecture(r#"{"name": "mobilenet-v2", "width": 0.35, "padding": "same", "classes": 7}"#, [64, 96], 2);
}

#[test]
fn efficientnets() {
    architecture(r#"{"name": "efficientnet-lite", "variant": 0}"#, [64, 96], 1);
    architecture(r#"{"name": "efficientnet-lite", "variant": 1, "classes": 7}"#, [71, 60], 1);
    architecture(r#"{"name": "efficientnet-lite", "variant": 2, "classes": 7, "padding": "symmetric"}"#, [33, 64], 1);
}

#[test]
fn densenets() {
    architecture(r#"{"name": "densenet", "depth": 121, "classes": 7}"#, [64, 70], 1);
    architecture(r#"{"name": "densenet", "depth": 161, "classes": 7}"#, [32, 33], 1);
    architecture(r#"{"name": "cifar-densenet", "depth": 40}"#, [32, 32], 2);
}

#[test]
fn vggs() {
    architecture(r#"{"name": "vgg", "depth": 11, "hidden": 60, "classes": 7}"#, [64, 70], 1);
    architecture(r#"{"name": "vgg", "depth": 13, "hidden": 16, "batch_norm": true, "classes": 7}"#, [39, 32], 1);
    architecture(r#"{"name": "vgg", "depth": 16, "head": "cifar", "batch_norm": true, "classes": 10}"#, [32, 32], 1);
}

#[test]
fn pre_activation_networks() {
    architecture(r#"{"name": "wrn", "depth": 16, "width": 4}"#, [32, 32], 2);
    architecture(r#"{"name": "wrn", "depth": 10, "width": 1, "classes": 7}"#, [29, 34], 2);
    architecture(r#"{"name": "preact-resnet", "depth": 18}"#, [32, 32], 1);
    architecture(r#"{"name": "preact-resnet", "depth": 18, "shortcut": "input", "final_norm": false}"#, [29, 34], 1);
    architecture(r#"{"name": "preact-resnet", "depth": 50}"#, [32, 32], 1);
}

/// A small network around `ops`: an image of 12 channels goes in, whatever comes out is pooled.
fn around(ops: Vec<Op>, channels: usize) -> Graph {
    let mut nodes = vec![
        Node { op: Op::Input, inputs: vec![] },
        Node { op: Op::Normalise { mean: vec![0.5, 0.4, 0.3], std: vec![0.2, 0.25, 0.3] }, inputs: vec![0] },
    ];
    let head = [Op::GlobalAveragePool, Op::Linear { name: "linear".into(), inputs: channels, outputs: 5 }];
    for op in [conv("stem", [3, 12], 3, 1, 1), Op::Relu].into_iter().chain(ops).chain(head) {
        let last = nodes.len() - 1;
        nodes.push(Node { op, inputs: vec![last] });
    }
    Graph { nodes, classes: 5 }
}

fn conv(name: &str, [inputs, outputs]: [usize; 2], kernel: usize, stride: usize, padding: usize) -> Op {
    let padding = Padding::same(padding).into();
    Op::Conv(Conv { name: name.into(), inputs, outputs, kernel: [kernel; 2], stride, padding, groups: 1, bias: true })
}

fn layer(name: &str, ops: Vec<Op>, channels: usize) {
    let graph = around(ops, channels);
    let weights = weights(&graph);
    for size in [[13, 10], [16, 16], [7, 9]] {
        Case::new(&graph, &weights, size, 3).check(&format!("{name} {size:?}"));
    }
}

#[test]
fn every_convolution() {
    for (kernel, stride, padding) in [
        (1, 1, 0),
        (1, 2, 0),
        (1, 3, 0),
        (2, 2, 0),
        (3, 1, 0),
        (3, 1, 1),
        (3, 1, 2),
        (3, 2, 1),
        (3, 3, 1),
        (5, 1, 2),
        (5, 2, 2),
        (7, 2, 3),
    ] {
        for outputs in [5, 16, 50] {
            let op = conv("conv", [12, outputs], kernel, stride, padding);
            layer(&format!("{kernel}x{kernel}/{stride}, padding {padding}, to {outputs}"), vec![op, Op::Relu], outputs);
        }
    }
}

#[test]
fn rectangular_kernels() {
    for (kernel, stride, [down, across]) in [
        ([1, 7], 1, [0, 3]),
        ([7, 1], 1, [3, 0]),
        ([1, 3], 1, [0, 1]),
        ([3, 1], 1, [1, 0]),
        ([2, 5], 2, [1, 2]),
        ([3, 2], 3, [0, 1]),
    ] {
        let padding = Padding { top: down, bottom: down, left: across, right: across }.into();
        for (groups, outputs) in [(1, 5), (1, 48), (12, 12), (4, 12)] {
            let name = "conv".into();
            let conv = Conv { name, inputs: 12, outputs, kernel, stride, padding, groups, bias: true };
            let name = format!("{kernel:?}/{stride} in {groups} groups to {outputs}");
            layer(&name, vec![Op::Conv(conv), Op::Relu], outputs);
        }
    }
    // Of the image itself.
    let mut graph = around(vec![], 12);
    let Op::Conv(stem) = &mut graph.nodes[2].op else { unreachable!() };
    (stem.kernel, stem.stride) = ([2, 5], 2);
    Case::new(&graph, &weights(&graph), [12, 17], 3).check("rectangular stem");
}

#[test]
fn padding_on_some_sides() {
    for (kernel, stride) in [(3, 1), (3, 2), (4, 2)] {
        for groups in [1, 12] {
            let padding = Padding { top: 0, bottom: 1, left: 2, right: 1 }.into();
            let (name, inputs, outputs) = ("conv".into(), 12, 12);
            let conv = Conv { name, inputs, outputs, kernel: [kernel; 2], stride, padding, groups, bias: false };
            layer(&format!("{kernel}x{kernel}/{stride} in {groups} groups"), vec![Op::Conv(conv), Op::Relu6], 12);
        }
    }
}

/// TensorFlow's `SAME`, which pads planes of odd and of even sides in other ways: the image's, and those of layers.
#[test]
fn padding_that_depends_on_the_size() {
    for (kernel, stride) in [(1, 2), (2, 1), (3, 1), (3, 2), (3, 3), (4, 3), (5, 2), (5, 4)] {
        for groups in [1, 12] {
            let conv = |name: &str, [inputs, outputs]: [usize; 2], groups: usize| {
                let (name, kernel, padding) = (name.into(), [kernel; 2], Pad::Same);
                Op::Conv(Conv { name, inputs, outputs, kernel, stride, padding, groups, bias: false })
            };
            let layers = vec![conv("conv", [12, 12], groups), Op::Relu6];
            layer(&format!("same, {kernel}x{kernel}/{stride} in {groups} groups"), layers, 12);
        }
    }
    let mut graph = around(vec![], 12);
    let Op::Conv(stem) = &mut graph.nodes[2].op else { unreachable!() };
    (stem.stride, stem.padding) = (2, Pad::Same);
    let weights = weights(&graph);
    for size in [[12, 17], [13, 10], [1, 2]] {
        Case::new(&graph, &weights, size, 3).check(&format!("same stem {size:?}"));
    }
}

/// A pool to a given size, and a linear layer over all its pixels.
#[test]
fn heads_of_planes() {
    for (side, channels) in [(7, 12), (2, 12), (1, 5), (3, 16)] {
        let mut graph = around(vec![conv("conv", [12, channels], 3, 1, 1), Op::Relu], channels);
        graph.nodes.truncate(6);
        let linear = |name: &str, inputs, outputs| Op::Linear { name: name.into(), inputs, outputs };
        let head = [Op::AdaptiveAveragePool { side }, linear("a", channels * side * side, 19), Op::Relu];
        for op in head.into_iter().chain([linear("b", 19, 5)]) {
            let last = graph.nodes.len() - 1;
            graph.nodes.push(Node { op, inputs: vec![last] });
        }
        let weights = weights(&graph);
        for size in [[7, 7], [14, 21], [1, 1], [10, 9], [2, 3]] {
            Case::new(&graph, &weights, size, 3).check(&format!("head of {side}x{side}x{channels} at {size:?}"));
        }
    }
}

#[test]
fn grouped_convolutions() {
    for (groups, outputs, kernel, stride) in
        [(12, 12, 3, 1), (12, 12, 3, 2), (12, 12, 5, 2), (12, 24, 3, 1), (4, 20, 3, 2)]
    {
        let (name, inputs, padding) = ("conv".into(), 12, Padding::same(kernel / 2).into());
        let conv = Conv { name, inputs, outputs, kernel: [kernel; 2], stride, padding, groups, bias: true };
        layer(
            &format!("{kernel}x{kernel}/{stride}, {groups} groups to {outputs}"),
            vec![Op::Conv(conv), Op::Relu],
            outputs,
        );
    }
}

#[test]
fn pools_and_the_rest() {
    for (kernel, stride, padding) in [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1)] {
        layer("max-pool", vec![conv("conv", [12, 9], 3, 1, 1), Op::MaxPool { kernel, stride, padding }], 9);
    }
    for (kernel, stride, padding) in [(2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 0), (2, 3, 1)] {
        let pool = Op::AveragePool { kernel, stride, padding };
        layer("average-pool", vec![conv("conv", [12, 9], 3, 1, 1), Op::Relu, pool.clone()], 9);
        layer("average-pool", vec![pool, conv("conv", [12, 9], 3, 1, 1), Op::Relu], 9);
    }
    for (stride, before, after) in [(2, 6, 6), (1, 0, 3), (3, 5, 0)] {
        let norm = Op::BatchNorm { name: "norm".into(), channels: 12 + before + after, eps: 1e-3 };
        layer(
            "sub-sample",
            vec![Op::Subsample { stride, before, after }, norm, Op::Relu6, Op::Relu],
            12 + before + after,
        );
    }
}

#[test]
fn activations() {
    let relus = [Op::LeakyRelu { slope: 0.1 }, Op::LeakyRelu { slope: 0.0 }];
    let shares = [1e-9, 0.1, 0.5, 1.0].map(|share| Op::KeepLargest { share });
    for act in relus.into_iter().chain(shares) {
        for outputs in [9, 16] {
            let name = format!("{act:?} of {outputs}");
            let norm = Op::BatchNorm { name: "norm".into(), channels: outputs, eps: 1e-3 };
            layer(&name, vec![conv("conv", [12, outputs], 3, 1, 1), act.clone()], outputs);
            layer(&name, vec![conv("conv", [12, outputs], 3, 2, 1), norm.clone(), act.clone()], outputs);
            let again = vec![conv("conv", [12, outputs], 5, 1, 2), act.clone(), norm, act.clone(), Op::Relu6];
            layer(&name, again, outputs);
        }
        layer(&format!("{act:?} twice"), vec![act.clone(), act.clone(), conv("conv", [12, 12], 3, 1, 1), act], 12);
    }
}

/// A network with another activation.
fn activated(mut graph: Graph, act: &Op) -> Graph {
    for node in graph.nodes.iter_mut().filter(|node| node.op == Op::Relu) {
        node.op = act.clone();
    }
    graph
}

#[test]
fn networks_of_other_activations() {
    for act in [Op::KeepLargest { share: 0.1 }, Op::LeakyRelu { slope: 0.1 }] {
        for (json, size, images) in [
            (r#"{"name": "cifar-resnet", "depth": 20}"#, [32, 32], 4),
            (r#"{"name": "cifar-resnet", "depth": 14, "shortcut": "B", "width": 10}"#, [29, 34], 3),
            (r#"{"name": "resnet", "depth": 18, "stem": "cifar", "classes": 10}"#, [32, 32], 1),
        ] {
            let graph = activated(spec(json), &act);
            Case::new(&graph, &weights(&graph), size, images).check(&format!("{json} of {act:?}"));
        }
    }
}

/// A network that prunes after every convolution.
fn pruned(graph: &Graph, samples: f64) -> Graph {
    let mut nodes: Vec<Node> = Vec::new();
    // Where each old node went.
    let mut place = Vec::new();
    let mut index = 0;
    for node in &graph.nodes {
        let inputs = node.inputs.iter().map(|&input| place[input]).collect();
        nodes.push(Node { op: node.op.clone(), inputs });
        if matches!(node.op, Op::Conv(_)) {
            nodes.push(Node { op: Op::Prune { samples, index }, inputs: vec![nodes.len() - 1] });
            index += 1;
        }
        place.push(nodes.len() - 1);
    }
    Graph { nodes, classes: graph.classes }
}

#[test]
fn pruning() {
    // The derivative of pruning is not constant but moves by a half while `samples |r| / mean |r|` moves by one: many
    // samples make the values' errors as much larger in the gradient.
    for (samples, outputs) in [(2.0, 9), (0.3, 16), (6.0, 50)] {
        let prune = |index: u64| Op::Prune { samples, index };
        let norm = Op::BatchNorm { name: "norm".into(), channels: outputs, eps: 1e-3 };
        let conv = |name: &str, inputs: usize| conv(name, [inputs, outputs], 3, 1, 1);
        let name = format!("{samples} of {outputs}");
        layer(&name, vec![conv("conv", 12), prune(7)], outputs);
        layer(&name, vec![conv("conv", 12), prune(0), norm.clone(), Op::LeakyRelu { slope: 0.1 }], outputs);
        // Behind a ReLU many values are 0, and so are their signs.
        layer(&name, vec![conv("conv", 12), Op::Relu, prune(1), conv("next", outputs), prune(2), Op::Relu6], outputs);
    }
}

#[test]
fn pruned_networks() {
    for (json, size, images) in [
        (r#"{"name": "cifar-resnet", "depth": 20}"#, [32, 32], 4),
        (r#"{"name": "cifar-resnet", "depth": 14, "shortcut": "B", "width": 10}"#, [29, 34], 3),
        (r#"{"name": "resnet", "depth": 18, "stem": "cifar", "classes": 10}"#, [32, 32], 1),
    ] {
        let graph = pruned(&spec(json), 2.0);
        Case::new(&graph, &weights(&graph), size, images).check(&format!("pruned {json}"));
    }
}

/// Sums in every place a fused step can meet one: of a value with itself, of two sums, of values read three times, and
/// at the logits.
#[test]
fn sums() {
    let node = |op: Op, inputs: &[Id]| Node { op, inputs: inputs.into() };
    let linear = |name: &str| Op::Linear { name: name.into(), inputs: 12, outputs: 5 };
    let nodes = vec![
        node(Op::Input, &[]),
        node(Op::Normalise { mean: vec![0.5; 3], std: vec![0.25; 3] }, &[0]),
        node(conv("a", [3, 12], 3, 1, 1), &[1]),
        node(conv("b", [3, 12], 5, 1, 2), &[1]),
        node(Op::Add, &[2, 3]),
        node(Op::Relu, &[4]),
        node(conv("c", [12, 12], 3, 1, 1), &[5]),
        node(Op::Add, &[5, 6]),
        node(Op::Relu, &[7]),
        node(Op::Add, &[8, 8]),
        node(Op::Add, &[9, 5]),
        node(Op::Add, &[10, 8]),
        node(Op::Relu, &[11]),
        node(conv("unread", [12, 3], 1, 1, 0), &[12]),
        node(Op::GlobalAveragePool, &[12]),
        node(linear("d"), &[14]),
        node(linear("e"), &[14]),
        node(Op::Add, &[15, 16]),
        node(Op::Relu, &[17]),
    ];
    let graph = Graph { nodes, classes: 5 };
    let weights = weights(&graph);
    Case::new(&graph, &weights, [11, 12], 4).check("sums");
}

/// Concatenations of values that others read too, of one value with itself, one behind another, and of every width.
#[test]
fn concatenations() {
    let node = |op: Op, inputs: &[Id]| Node { op, inputs: inputs.into() };
    for [a, b, c] in [[16, 32, 16], [5, 9, 2], [16, 3, 24]] {
        let nodes = vec![
            node(Op::Input, &[]),
            node(Op::Normalise { mean: vec![0.5; 3], std: vec![0.25; 3] }, &[0]),
            node(conv("stem", [3, 12], 3, 1, 1), &[1]),
            node(Op::Relu, &[2]),
            node(conv("a", [12, a], 3, 1, 1), &[3]),
            node(conv("b", [12, b], 1, 1, 0), &[3]),
            node(Op::Relu, &[5]),
            node(conv("c", [12, c], 5, 1, 2), &[3]),
            node(Op::AveragePool { kernel: 3, stride: 1, padding: 1 }, &[3]),
            node(Op::Concat, &[4, 6, 7, 8]),
            node(Op::Relu, &[9]),
            node(Op::Concat, &[10, 6, 6]),
            node(conv("d", [a + 3 * b + c + 12, b], 3, 2, 1), &[11]),
            node(conv("e", [b, b], 3, 2, 1), &[6]),
            node(Op::Add, &[12, 13]),
            node(Op::Concat, &[14]),
            node(Op::GlobalAveragePool, &[15]),
            node(Op::Concat, &[16, 16]),
            node(Op::Linear { name: "linear".into(), inputs: 2 * b, outputs: 5 }, &[17]),
        ];
        let graph = Graph { nodes, classes: 5 };
        Case::new(&graph, &weights(&graph), [11, 12], 4).check(&format!("{a}, {b}, {c}"));
    }
}

/// A network whose images are standardised.
fn standardised(mut graph: Graph) -> Graph {
    graph.nodes.insert(2, Node { op: Op::Standardise, inputs: vec![1] });
    for node in &mut graph.nodes[3..] {
        node.inputs.iter_mut().for_each(|input| *input += 1);
    }
    graph
}

#[test]
fn standardisation() {
    let mut graph = standardised(around(vec![conv("conv", [12, 9], 3, 1, 1), Op::Relu], 9));
    graph.nodes[1].op = Op::Normalise { mean: vec![0.5; 3], std: vec![0.25; 3] };
    let weights = weights(&graph);
    for size in [[13, 10], [32, 32], [7, 9]] {
        let case = Case::new(&graph, &weights, size, 3);
        case.check(&format!("standardised {size:?}"));
        // So little contrast that it is not divided by, and none.
        for contrast in [0.01, 0.0] {
            let pixels = case.pixels.iter().map(|x| 0.5 + contrast * (x - 0.5)).collect();
            let flat = Case::of(&graph, &weights, size, pixels, case.upstream.clone());
            flat.check(&format!("standardised {size:?}, contrast {contrast}"));
        }
    }
}

#[test]
fn answers_do_not_depend_on_batch_or_threads() {
    let resnet = || spec(r#"{"name": "cifar-resnet", "depth": 14}"#);
    let cases = [
        ("resnet", resnet(), [32, 32]),
        ("mobilenet", spec(r#"{"name": "mobilenet-v2", "width": 0.35, "classes": 7}"#), [45, 64]),
        ("k-winners-take-all", activated(resnet(), &Op::KeepLargest { share: 0.1 }), [32, 32]),
        ("standardised and pruned", standardised(pruned(&resnet(), 2.0)), [29, 33]),
    ];
    for (name, graph, size) in cases {
        let weights = weights(&graph);
        let case = Case::new(&graph, &weights, size, 21);
        for isa in Isa::available() {
            let ask = |plan: &Plan, first: usize, count: usize| {
                let per_image = case.pixels.len() / case.images();
                let shape = (count, 3, size[0], size[1]);
                let x = Tensor::from_slice(&case.pixels[first * per_image..][..count * per_image], shape, &Device::Cpu);
                let keys = &case.keys[first..][..count];
                let (classes, mut seen) = (graph.classes, Vec::new());
                let gradient = plan.input_gradient(&x.unwrap(), keys, &mut |logits| {
                    seen = logits.flatten_all()?.to_vec1::<f32>()?;
                    Tensor::from_slice(
                        &case.upstream[first * classes..][..count * classes],
                        (count, classes),
                        &Device::Cpu,
                    )
                });
                let gradient = gradient.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                seen.extend(gradient);
                seen.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            let split = |answer: Vec<u32>, count: usize| {
                let logits = count * graph.classes;
                let per_image = (answer.len() - logits) / count;
                let rows = (0..count).map(|i| {
                    let mut row = answer[i * graph.classes..][..graph.classes].to_vec();
                    row.extend(&answer[logits + i * per_image..][..per_image]);
                    row
                });
                rows.collect::<Vec<_>>()
            };
            let plan = case.plan(isa);
            let whole = split(ask(&plan, 0, 21), 21);
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                for count in [1, 2, 7, 20] {
                    let rows = split(pool.install(|| ask(&plan, 1, count)), count);
                    assert!(rows[..] == whole[1..=count], "{name} {isa:?}: {count} images on {threads} threads");
                }
            }
        }
    }
}

/// Random images of a shape.
fn random(shape: [usize; 4]) -> Tensor {
    let mut pixels = vec![0.0; shape.iter().product()];
    Key::root(0).phase(Phase::Data).fill_uniform(&mut pixels);
    Tensor::from_vec(pixels, &shape, &Device::Cpu).unwrap()
}

#[test]
fn instruction_sets_with_fused_multiply_add_agree_in_every_bit() {
    let fused: Vec<_> = Isa::available().into_iter().filter(|&isa| isa != Isa::Portable).collect();
    let resnet = || spec(r#"{"name": "cifar-resnet", "depth": 8, "width": 10}"#);
    for (name, graph) in [
        ("resnet", resnet()),
        ("mobilenet", spec(r#"{"name": "mobilenet-v2", "width": 0.35, "classes": 7}"#)),
        ("k-winners-take-all", activated(resnet(), &Op::KeepLargest { share: 0.1 })),
        ("leaky and pruned", standardised(pruned(&activated(resnet(), &Op::LeakyRelu { slope: 0.1 }), 2.0))),
    ] {
        let weights = weights(&graph);
        let x = random([2, 3, 37, 64]);
        let ask = |&isa: &Isa| {
            let plan = Plan::with_isa(&graph, &weights, isa).unwrap();
            let mut bits = Vec::new();
            let keys = [Key::root(1), Key::root(2)];
            let gradient = plan.input_gradient(&x, &keys, &mut |logits| {
                bits = logits.flatten_all()?.to_vec1::<f32>()?;
                logits.ones_like()
            });
            bits.extend(gradient.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
            bits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let answers: Vec<_> = fused.iter().map(ask).collect();
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{name}");
    }
}

#[test]
fn logits_alone_are_the_logits_of_a_gradient_query() {
    let resnet = || spec(r#"{"name": "cifar-resnet", "depth": 8}"#);
    for graph in [resnet(), activated(resnet(), &Op::KeepLargest { share: 0.1 }), pruned(&resnet(), 2.0)] {
        let plan = Plan::new(&graph, &weights(&graph)).unwrap();
        let x = random([5, 3, 32, 32]);
        let keys: Vec<_> = (0..5).map(Key::root).collect();
        let alone = plan.logits(&x, &keys).unwrap().to_vec2::<f32>().unwrap();
        let mut within = Vec::new();
        plan.input_gradient(&x, &keys, &mut |logits| {
            within = logits.to_vec2::<f32>()?;
            logits.ones_like()
        })
        .unwrap();
        assert_eq!(alone, within);
    }
}

#[test]
fn only_keys_move_a_stochastic_network() {
    let graph = pruned(&spec(r#"{"name": "cifar-resnet", "depth": 8}"#), 2.0);
    let plan = Plan::new(&graph, &weights(&graph)).unwrap();
    let x = random([1, 3, 32, 32]).broadcast_as((3, 3, 32, 32)).unwrap();
    let ask = |keys: &[Key]| plan.logits(&x, keys).map(|logits| logits.to_vec2::<f32>().unwrap());
    let [a, b, c] = [7, 8, 9].map(Key::root);
    let (first, second) = (ask(&[a, b, a]).unwrap(), ask(&[b, c, a]).unwrap());
    assert!(first[0] == first[2] && first[0] == second[2] && first[1] == second[0]);
    assert!(first[0] != first[1] && first[0] != second[1]);
    for keys in [&[][..], &[a, b], &[a, b, c, a]] {
        let error = ask(keys).unwrap_err().to_string();
        assert!(error.contains(&format!("{} keys for 3 images", keys.len())), "{error}");
    }
}

/// Where there is nothing to prune, nothing is divided by nothing.
#[test]
fn zeros_stay_zeros_when_pruned() {
    let graph = around(vec![conv("conv", [12, 9], 3, 1, 1), Op::Prune { samples: 2.0, index: 0 }], 9);
    let mut weights = weights(&graph);
    for name in ["conv.weight", "conv.bias"] {
        weights.insert(name.into(), weights[name].zeros_like().unwrap());
    }
    Case::new(&graph, &weights, [8, 8], 2).check("zeros");
}

/// A plan that compiles while rayon's threads ask it other questions must not wait for itself.
#[test]
fn queries_may_be_parallel_from_the_first() {
    let graph = spec(r#"{"name": "cifar-resnet", "depth": 14}"#);
    let weights = weights(&graph);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let plan = Plan::new(&graph, &weights).unwrap();
    let x = random([12, 3, 32, 32]);
    let rows: Vec<_> = pool.install(|| {
        let rows = (0..12).into_par_iter().map(|i| plan.logits(&x.narrow(0, i, 1).unwrap(), &[]).unwrap());
        rows.map(|row| row.to_vec2::<f32>().unwrap().remove(0)).collect()
    });
    assert_eq!(rows, plan.logits(&x, &[]).unwrap().to_vec2::<f32>().unwrap());
}

#[test]
fn not_a_number_shows() {
    let resnet = || spec(r#"{"name": "resnet", "depth": 18, "classes": 7}"#);
    let acts = [Op::LeakyRelu { slope: 0.1 }, Op::KeepLargest { share: 0.1 }];
    let others = acts.iter().map(|act| activated(resnet(), act)).chain([pruned(&resnet(), 2.0)]);
    for graph in others.chain([resnet()]) {
        let mut weights = weights(&graph);
        let bias = weights.get_mut("layer2.0.bn1.bias").unwrap();
        *bias = (bias.clone() * f64::NAN).unwrap();
        for isa in Isa::available() {
            let plan = Plan::with_isa(&graph, &weights, isa).unwrap();
            let x = random([1, 3, 64, 64]);
            let logits = plan.logits(&x, &[Key::root(0)]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(logits.iter().all(|v| v.is_nan()), "{isa:?}: {logits:?}");
        }
    }
}

#[test]
fn bad_input_is_an_error() {
    let graph = spec(r#"{"name": "cifar-resnet", "depth": 8}"#);
    let mut weights = weights(&graph);
    let plan = Plan::new(&graph, &weights).unwrap();
    let zeros = |shape: [usize; 4]| Tensor::zeros(&shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    assert_eq!(plan.logits(&zeros([0, 3, 32, 32]), &[]).unwrap().dims(), [0, 10]);
    assert!(plan.logits(&zeros([1, 1, 32, 32]), &[]).unwrap_err().to_string().contains("channels"));
    assert!(plan.input_gradient(&zeros([2, 3, 32, 32]), &[], &mut |_| Tensor::new(&[0f32], &Device::Cpu)).is_err());
    let large = spec(r#"{"name": "resnet", "depth": 18}"#);
    let large = Plan::new(&large, &self::weights(&large)).unwrap();
    assert_eq!(large.logits(&zeros([1, 3, 1, 1]), &[]).unwrap().dims(), [1, 1000]);
    for (op, word) in [
        (Op::Standardise, "at the start"),
        (Op::LeakyRelu { slope: 1.5 }, "slope"),
        (Op::KeepLargest { share: 0.0 }, "share"),
        (Op::Prune { samples: f64::NAN, index: 0 }, "NaN draws"),
    ] {
        let graph = around(vec![conv("conv", [12, 9], 3, 1, 1), op], 9);
        let error = Plan::new(&graph, &self::weights(&graph)).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
    weights.remove("bn1.running_var");
    assert!(Plan::new(&graph, &weights).err().unwrap().to_string().contains("bn1.running_var"));
}
