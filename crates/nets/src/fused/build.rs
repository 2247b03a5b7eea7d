//! From the steps of a graph to a program.

use std::ops::Range;

use simd::{Isa, view::split, winograd};

use super::{Back, Convolution, Form, Layer, Memory, Norm, PARTS, Plane, Program, Target, Work, bend, kernels::Bend};
use crate::{
    Conv, Id, Op, Padding,
    ops::{Statistics, winners},
    steps::Step,
};

/// The layers so far, and the shapes of their outputs.
struct Builder {
    isa: Isa,
    images: usize,
    layers: Vec<Layer>,
    planes: Vec<Plane>,
    /// The layer that makes each node, and how many layers read it.
    makers: Vec<Option<usize>>,
    readers: Vec<usize>,
    /// The node that holds the values of each node.
    holders: Vec<Id>,
}

impl Program {
    /// The program of `steps` for images `(n, c, h, w)`; none if they hold something it cannot do: grouped and
    /// rectangular convolutions, max-pools, concatenations.
    pub(crate) fn build(isa: Isa, steps: &[Step], room: [usize; 4]) -> Option<Self> {
        let [images, channels, height, width] = room;
        let nodes = steps.iter().map(|step| step.output).max()? + 1;
        let (planes, makers) = (vec![Plane::default(); nodes], vec![None; nodes]);
        let mut readers = vec![0; nodes];
        steps.iter().flat_map(|step| &step.inputs).for_each(|&input| readers[input] += 1);
        let holders = (0..nodes).collect();
        let mut builder = Builder { isa, images, layers: vec![], planes, makers, readers, holders };
        builder.planes[0] = Plane { channels, padded: channels, height, width, border: 0 };
        for step in steps {
            builder.layer(step)?;
        }
        builder.place()?;
        let slots = builder.slots()?;
        let (forward, backward) = builder.phases();
        let parts = builder.parts(&backward);
        let Builder { layers, planes, makers, holders, .. } = builder;
        let scratch = convolutions(&layers).map(|conv| conv.dy.image()).max().unwrap_or(0);
        let tiles = |conv: &Convolution, input: usize| {
            let room = |form, from, to| match form {
                Form::Winograd(chunk) => winograd::scratch(chunk, from, to),
                Form::Dense => 0,
            };
            let back = conv.back.iter().map(|back| room(back.form, conv.dy.padded, input)).max();
            room(conv.form, input, conv.dy.padded).max(back.unwrap_or(0))
        };
        let tiles = layers.iter().map(|layer| match &layer.work {
            Work::Conv(conv) => tiles(conv, planes[layer.inputs[0]].padded),
            _ => 0,
        });
        let tiles = tiles.max().unwrap_or(0);
        let memory = |node: Id| {
            let held = makers[node].is_some() && holders[node] == node;
            Memory::new(if held { images * planes[node].image() } else { 0 })
        };
        Some(Self {
            isa,
            room,
            values: (0..planes.len()).map(memory).collect(),
            holders,
            slots: slots.into_iter().map(|floats| Memory::new(images * floats)).collect(),
            scratch: (Memory::new(PARTS * scratch), scratch),
            parts: (Memory::new(PARTS * parts), parts),
            tiles: (Memory::new(PARTS * tiles), tiles),
            layers,
            planes,
            forward,
            backward,
        })
    }
}

fn convolutions(layers: &[Layer]) -> impl Iterator<Item = &Convolution> {
    layers.iter().filter_map(|layer| match &layer.work {
        Work::Conv(conv) => Some(&**conv),
        _ => None,
    })
}

impl Builder {
    fn padded(&self, channels: usize) -> usize {
        channels.next_multiple_of(self.isa.lanes())
    }

    fn layer(&mut self, step: &Step) -> Option<()> {
        let mut inputs = step.inputs.clone();
        let input = inputs[0];
        let from = self.planes[input];
        // A shape that does not fit is left to the reference, which says what is wrong.
        let (work, plane) = match &step.op {
            Op::Normalise { mean, std } if input == 0 && mean.len() == from.channels => {
                let scale = std.iter().map(|std| (1.0 / std) as f32).collect();
                let mean = mean.iter().map(|mean| *mean as f32).collect();
                (
                    Work::Normalise { mean, scale, standardise: false },
                    Plane { padded: self.padded(from.channels), ..from },
                )
            }
            Op::Standardise if self.readers[input] == 1 => {
                // A part of the normalisation before it: no gradient passes either.
                let [Layer { work: Work::Normalise { standardise, .. }, output, .. }] = &mut self.layers[..] else {
                    return None;
                };
                (*standardise, *output) = (true, step.output);
                self.planes[step.output] = from;
                self.makers[step.output] = self.makers[input].take();
                return Some(());
            }
            Op::Conv(conv) => self.convolution(conv, input)?,
            Op::Linear { name, inputs, outputs } if from.pixels() == 1 => {
                let (name, inputs, outputs) = (name.clone(), *inputs, *outputs);
                let padding = Default::default();
                let conv = Conv { name, inputs, outputs, kernel: [1, 1], stride: 1, padding, groups: 1, bias: true };
                self.convolution(&conv, input)?
            }
            Op::BatchNorm { name, channels, eps } if *channels == from.channels && from.pixels() > 1 => {
                inputs = vec![self.measure(input)?];
                let by_image = || Memory::new(self.images * 2 * from.padded);
                let norm = Norm {
                    name: name.clone(),
                    eps: *eps,
                    gamma: vec![],
                    statistics: Statistics::default(),
                    moments: by_image(),
                    forward: Memory::new(3 * from.padded),
                    sums: by_image(),
                    backward: Memory::new(3 * from.padded),
                };
                (Work::Norm(Box::new(norm)), from)
            }
            Op::Add if step.inputs[0] != step.inputs[1] && from.bare() == self.planes[step.inputs[1]].bare() => {
                (Work::Add, from)
            }
            Op::Subsample { stride, before, after } => {
                let channels = before + from.channels + after;
                let (height, width) = (from.height.div_ceil(*stride), from.width.div_ceil(*stride));
                let plane = Plane { channels, padded: self.padded(channels), height, width, border: 0 };
                (Work::Subsample { stride: *stride, before: *before }, plane)
            }
            &Op::KeepLargest { share } => {
                let winners = winners(share, from.channels * from.pixels()).ok()?;
                (Work::KeepLargest { winners, thresholds: Memory::new(self.images) }, from)
            }
            &Op::AveragePool { kernel, stride, padding } => {
                let size = |size: usize| Some((size + 2 * padding).checked_sub(kernel)? / stride + 1);
                if stride == 0 || kernel == 0 || 2 * padding > kernel {
                    return None;
                }
                let (height, width) = (size(from.height)?, size(from.width)?);
                (Work::AveragePool { kernel, stride, padding }, Plane { height, width, ..from })
            }
            Op::GlobalAveragePool => (Work::Pool, Plane { height: 1, width: 1, ..from }),
            _ => return None,
        };
        self.planes[step.output] = plane.bare();
        self.makers[step.output] = Some(self.layers.len());
        self.push(work, inputs, step.output, bend(step.activation));
        Some(())
    }

    fn push(&mut self, work: Work, inputs: Vec<Id>, output: Id, bend: Bend) {
        self.layers.push(Layer { work, inputs, output, bend, dy: 0, dx: vec![] });
    }

    /// Sees to the statistics of a node for the normalisation that comes next, and answers with the node it reads: the
    /// same, if a convolution made it for nothing else and so takes its moments and undoes the normalisation; or else
    /// one that stands for it, behind a layer that does so.
    fn measure(&mut self, input: Id) -> Option<Id> {
        let maker = self.makers[input]?;
        let index = self.layers.len();
        match &mut self.layers[maker].work {
            Work::Normalise { .. } => return None,
            Work::Conv(conv) if self.readers[input] == 1 => {
                conv.norm = Some(index);
                return Some(input);
            }
            _ => {}
        }
        let node = self.planes.len();
        self.planes.push(self.planes[input].bare());
        self.makers.push(Some(index));
        self.readers.push(1);
        self.holders.push(input);
        self.push(Work::Measure { norm: index + 1 }, vec![input], node, Bend::None);
        Some(node)
    }

    fn convolution(&mut self, conv: &Conv, input: Id) -> Option<(Work, Plane)> {
        let from = self.planes[input];
        let (k, stride, pad) = (conv.side()?, conv.stride, conv.padding([from.height, from.width]));
        let (height, width) = (from.height + pad.top + pad.bottom, from.width + pad.left + pad.right);
        if conv.groups != 1 || conv.inputs != from.channels || k == 0 || stride == 0 || height < k || width < k {
            return None;
        }
        let (rows, columns) = ((height - k) / stride + 1, (width - k) / stride + 1);
        let past =
            |outputs: usize, before: usize, size: usize| ((outputs - 1) * stride + k).saturating_sub(before + size);
        let border = [pad.top, pad.left, past(rows, pad.top, from.height), past(columns, pad.left, from.width)];
        let source = &mut self.planes[input];
        source.border = border.into_iter().fold(source.border, usize::max);
        let plane = Plane {
            channels: conv.outputs,
            padded: self.padded(conv.outputs),
            height: rows,
            width: columns,
            border: 0,
        };
        let form = Form::of(k, stride, from, plane, rows, columns);
        let (mut back, border) = backward([k, stride], pad, from, plane);
        let dy = Plane { border, ..plane };
        let floats = |taps: usize, run: usize, columns: usize| Memory::new(taps * run * columns);
        for back in &mut back {
            back.form = Form::of(k, stride, plane, from, back.rows, back.columns);
            back.weights = floats(back.form.floats(back.positions.len()), conv.outputs, from.padded);
        }
        let blocks = |padded: usize| split(padded / self.isa.lanes(), self.isa.widest()).collect();
        let work = Convolution {
            name: conv.name.clone(),
            inputs: conv.inputs,
            outputs: conv.outputs,
            kernel: k,
            stride,
            has_bias: conv.bias,
            bias: vec![0.0; plane.padded],
            padding: pad,
            taps: vec![],
            blocks: blocks(plane.padded),
            weights: floats(form.floats(k * k), conv.inputs, plane.padded),
            form,
            back,
            back_blocks: blocks(from.padded),
            dy,
            norm: None,
            part: 0,
        };
        Some((Work::Conv(Box::new(work)), plane))
    }

    /// Where a convolution's taps are, now that every border is known.
    fn place(&mut self) -> Option<()> {
        for layer in &mut self.layers {
            if let Work::Measure { .. } = layer.work
                && self.planes[layer.inputs[0]].border > 0
            {
                // Moments are of pixels without a gap.
                return None;
            }
            if let Work::Conv(conv) = &mut layer.work {
                let from = self.planes[layer.inputs[0]];
                let position = |tap: usize| {
                    let (y, x) = (tap / conv.kernel, tap % conv.kernel);
                    from.step(y as isize - conv.padding.top as isize, x as isize - conv.padding.left as isize)
                };
                conv.taps = (0..conv.kernel * conv.kernel).map(position).collect();
            }
        }
        Some(())
    }

    /// Gives every gradient a buffer, and answers with the buffers' floats for one image.
    fn slots(&mut self) -> Option<Vec<usize>> {
        let mut slots = Slots { of: vec![None; self.planes.len()], sizes: vec![], free: vec![] };
        let last = self.layers.last()?.output;
        slots.target(last, self.planes[last]);
        for layer in self.layers.iter_mut().rev() {
            if let Work::Normalise { .. } = layer.work {
                continue;
            }
            let dy = slots.of[layer.output].take()?;
            layer.dy = dy;
            let mut given = false;
            let in_place = matches!(layer.work, Work::Norm(_) | Work::Add | Work::KeepLargest { .. });
            for &input in &layer.inputs {
                let image = self.makers[input].is_none_or(|maker| maker == 0);
                let passes = in_place && !given && slots.of[input].is_none();
                layer.dx.push(match (image, passes) {
                    (true, _) => None,
                    (false, true) => {
                        slots.of[input] = Some(dy);
                        given = true;
                        None
                    }
                    (false, false) => Some(slots.target(input, self.planes[input])),
                });
            }
            if !given {
                slots.free.push(dy);
            }
        }
        Some(slots.sizes)
    }

    /// The layers between which all images must wait: in the forward pass for the statistics of a batch, in the
    /// backward pass for the sums of a gradient.
    fn phases(&self) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
        let (mut forward, mut backward) = (vec![], vec![]);
        let mut start = 0;
        for (index, layer) in self.layers.iter().enumerate() {
            let waits = matches!(layer.work, Work::Norm(_)) && self.makers[layer.inputs[0]] >= Some(start);
            if waits {
                forward.push(start..index);
                start = index;
            }
        }
        forward.push(start..self.layers.len());
        let mut end = self.layers.len();
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let waits = layer.work.norm().is_some_and(|norm| norm < end);
            if waits {
                backward.push(index + 1..end);
                end = index + 1;
            }
        }
        backward.push(0..end);
        (forward, backward)
    }

    /// Places in a group's memory for the weight gradients of each phase; the most floats that a phase needs.
    fn parts(&mut self, phases: &[Range<usize>]) -> usize {
        let mut most = 0;
        for phase in phases {
            let mut floats = 0;
            for layer in &mut self.layers[phase.clone()] {
                if let Work::Conv(conv) = &mut layer.work {
                    conv.part = floats;
                    floats += conv.floats();
                }
            }
            most = most.max(floats);
        }
        most.next_multiple_of(16)
    }
}

/// Buffers of gradients, used again by gradients of the same size.
struct Slots {
    /// By node.
    of: Vec<Option<usize>>,
    sizes: Vec<usize>,
    free: Vec<usize>,
}

impl Slots {
    fn target(&mut self, node: Id, plane: Plane) -> Target {
        if let Some(slot) = self.of[node] {
            return Target { slot, add: true };
        }
        let size = plane.bare().image();
        let slot = match self.free.iter().position(|&slot| self.sizes[slot] == size) {
            Some(at) => self.free.swap_remove(at),
            None => {
                self.sizes.push(size);
                self.sizes.len() - 1
            }
        };
        self.of[node] = Some(slot);
        Target { slot, add: false }
    }
}

/// The convolutions, of kernels of side `k` and a stride, that carry the gradient of `to` back to `from`, and the border that it must have.
///
/// Row `y` of the input met row `(y + top - ky) / stride` of the output, where that is whole: a different set of `ky`
/// for each remainder of `y`.
fn backward([k, stride]: [usize; 2], pad: Padding, from: Plane, to: Plane) -> (Vec<Back>, usize) {
    let reach = |parity: usize, before: usize| -> Vec<(usize, isize)> {
        let distance = |tap: usize| (parity + before) as isize - tap as isize;
        let meets = (0..k).filter(|&tap| distance(tap) % stride as isize == 0);
        meets.map(|tap| (tap, distance(tap) / stride as isize)).collect()
    };
    let beyond = |parity: usize, before: usize, size: usize, outputs: usize| -> usize {
        let count = size.saturating_sub(parity).div_ceil(stride) as isize;
        let past = reach(parity, before).into_iter().map(|(_, d)| (-d).max(count - 1 + d - (outputs as isize - 1)));
        past.max().unwrap_or(0).max(0) as usize
    };
    let parities = || (0..stride).flat_map(|y| (0..stride).map(move |x| (y, x)));
    let parities = || parities().filter(|&(y, x)| y < from.height && x < from.width);
    let border = parities().flat_map(|(y, x)| {
        let (top, left) = (pad.top, pad.left);
        [beyond(y, top, from.height, to.height), beyond(x, left, from.width, to.width)]
    });
    let border = border.max().unwrap_or(0);
    let dy = Plane { border, ..to };
    let back = parities().map(|(y, x)| {
        let (rows, columns) = (reach(y, pad.top), reach(x, pad.left));
        let taps = rows.iter().flat_map(|r| columns.iter().map(move |c| (r, c)));
        let (positions, taps) = taps.map(|(r, c)| (r.0 * k + c.0, dy.step(r.1, c.1))).unzip();
        let (rows, columns) = ((from.height - y).div_ceil(stride), (from.width - x).div_ceil(stride));
        Back { y, x, rows, columns, taps, positions, weights: Memory::default(), form: Form::Dense }
    });
    (back.collect(), border)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Spec, steps::steps};

    #[test]
    fn what_is_trained_on_small_images_is_compiled() {
        let sparse = r#""activation": {"name": "k-winners-take-all", "share": 0.1}"#;
        for (spec, compiled) in [
            (r#"{"name": "cifar-resnet", "depth": 8, "shortcut": "B"}"#.to_owned(), true),
            (format!(r#"{{"name": "cifar-resnet", "depth": 8, {sparse}}}"#), true),
            (format!(r#"{{"name": "resnet", "depth": 18, "stem": "cifar", {sparse}}}"#), true),
            (r#"{"name": "wide-resnet", "depth": 14, "width": 1}"#.to_owned(), true),
            (r#"{"name": "resnet", "depth": 18}"#.to_owned(), false),
            (r#"{"name": "inception-v3"}"#.to_owned(), false),
        ] {
            let graph = serde_json::from_str::<Spec>(&spec).unwrap().graph().unwrap();
            for isa in Isa::available() {
                let program = Program::build(isa, &steps(&graph, false), [2, 3, 32, 32]);
                assert_eq!(program.is_some(), compiled, "{spec}");
            }
        }
    }
}
