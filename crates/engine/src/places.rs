//! Where everything is: groups of images, the order of the backward pass, and slots of memory.

use std::ops::Range;

use crate::compile::Work;
use crate::lower::{Act, Kind, Network, Step};
use crate::memory::{Buffer, Layout, Slots, Use};

/// Stages in a row that work on so many images at a time: few while the images are large, so that they stay in the
/// cache, and more where the weights are, so that these are read less often.
pub(crate) struct Segment {
    pub stages: Range<usize>,
    pub backs: Range<usize>,
    pub group: usize,
}

/// A step of the backward pass: `to = masked(work^T(from) + residual)`.
pub(crate) struct Back {
    /// The stage that shares the gradient out.
    pub of: usize,
    /// The stage whose gradient this is; none is the sum alone.
    pub stage: Option<usize>,
    /// The value whose gradient is made.
    pub value: usize,
    /// Channels before it where it is part of a concatenation.
    pub before: usize,
    pub from: usize,
    pub residual: Option<usize>,
    /// None is the image's gradient.
    pub to: Option<usize>,
    pub masked: bool,
    /// Whether the image's gradient is added to.
    pub accumulate: bool,
}

/// A buffer's slot, and the segment whose group of images it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub slot: usize,
    pub home: usize,
}

/// The largest buffer of a group of images, for the same reason.
const GROUP_BYTES: usize = 512 << 10;
const GROUP_IMAGES: usize = 32;

/// Splits the stages by how many images they should work on at a time.
pub(crate) fn segments(network: &Network, layouts: &[Layout], work: &[Work], backs: &[Back]) -> Vec<Segment> {
    let bytes = |floats: usize| floats * size_of::<f32>();
    let mut groups: Vec<usize> = network
        .steps
        .iter()
        .zip(work)
        .map(|(step, work)| {
            let image = layouts[step.input].image().max(layouts[step.output].image());
            let weights = match work {
                Work::Convolution { forward, backward, .. } => {
                    forward.weights.len().max(backward.iter().map(|pass| pass.weights.len()).sum())
                }
                _ => 0,
            };
            let fitting = GROUP_BYTES.max(bytes(weights) / 4) / bytes(image).max(1);
            1 << fitting.clamp(1, GROUP_IMAGES).ilog2()
        })
        .collect();
    // Groups only grow.
    for stage in 1..groups.len() {
        groups[stage] = groups[stage].max(groups[stage - 1]);
    }
    let mut segments: Vec<Segment> = Vec::new();
    for (stage, group) in groups.into_iter().enumerate() {
        match segments.last_mut() {
            Some(segment) if segment.group == group => segment.stages.end = stage + 1,
            _ => segments.push(Segment { stages: stage..stage + 1, backs: 0..0, group }),
        }
    }
    for segment in &mut segments {
        let before = |stage: usize| backs.iter().take_while(|back| back.of >= stage).count();
        segment.backs = before(segment.stages.end)..before(segment.stages.start);
    }
    segments
}

/// The backward pass in order: every value's gradient is summed over its readers, last reader first, and the last sum
/// applies the mask of the value's ReLU. A residual's share is the gradient of the sum itself, so it is not copied.
pub(crate) fn backward(steps: &[Step], acts: &[Act], channels: &[usize]) -> (Vec<Back>, Vec<usize>) {
    let values = steps.len() + 1;
    let mut shares = vec![0; values];
    for step in steps {
        step.reads().for_each(|value| shares[value] += 1);
    }
    let mut values_of = vec![values - 1];
    let mut current: Vec<Option<usize>> = vec![None; values];
    let mut backs: Vec<Back> = Vec::new();
    current[values - 1] = Some(0);
    for (stage, step) in steps.iter().enumerate().rev() {
        // A value nobody reads has no gradient.
        let Some(from) = current[step.output] else { continue };
        let work = (!matches!(step.kind, Kind::Identity)).then_some(stage);
        let mut before = 0;
        let inputs = step.inputs().map(|value| {
            let first = before;
            before += channels[value];
            (value, work, first)
        });
        for (value, work, before) in step.residual.map(|residual| (residual, None, 0)).into_iter().chain(inputs) {
            shares[value] -= 1;
            let masked = shares[value] == 0 && acts[value] != Act::None;
            let residual = current[value];
            if work.is_none() && residual.is_none() && !masked {
                current[value] = Some(from);
                continue;
            }
            let to = (value != 0).then(|| {
                values_of.push(value);
                values_of.len() - 1
            });
            let accumulate = value == 0 && backs.iter().any(|back| back.value == 0);
            backs.push(Back { of: stage, stage: work, value, before, from, residual, to, masked, accumulate });
            current[value] = to;
        }
    }
    (backs, values_of)
}

/// The segments that touch a buffer, from the first to the last.
type Span = (usize, usize);

fn widen(span: &mut Option<Span>, segment: usize) {
    let (first, last) = span.unwrap_or((segment, segment));
    *span = Some((first.min(segment), last.max(segment)));
}

fn segment_of(segments: &[Segment], stage: usize) -> usize {
    segments.iter().position(|segment| segment.stages.contains(&stage)).unwrap_or(0)
}

/// Gives every buffer a slot for the group of the last segment that touches it. A buffer that segments
/// share is filled, or read, in parts, while an earlier one goes through its stages again and again: `given` says
/// whether its slot is its own before it is written, else it is after it was read.
fn places(
    layouts: &[Layout],
    spans: Vec<Option<Span>>,
    segments: &[Segment],
    uses: &[Use],
    [first, last]: [Vec<usize>; 2],
    given: bool,
    slots: &mut Slots,
) -> Vec<Place> {
    let spans: Vec<Span> = spans.into_iter().map(|span| span.unwrap_or((0, 0))).collect();
    let shared = || (0..spans.len()).filter(|&buffer| spans[buffer].0 < spans[buffer].1);
    let buffers: Vec<_> = layouts
        .iter()
        .zip(&spans)
        .map(|(&layout, &(_, home))| Buffer { layout, images: segments[home].group })
        .collect();
    let (mut first, mut last) = (first, last);
    if given {
        first.extend(shared())
    } else {
        last.extend(shared())
    }
    let assigned = slots.assign(&buffers, uses, &first, &last);
    assigned.into_iter().zip(spans).map(|(slot, (_, home))| Place { slot, home }).collect()
}

/// Places of the values in the forward pass.
pub(crate) fn forward_places(
    network: &Network,
    layouts: &[Layout],
    segments: &[Segment],
    slots: &mut Slots,
) -> Vec<Place> {
    let mut spans = vec![None; layouts.len()];
    let mut uses = Vec::new();
    for (stage, step) in network.steps.iter().enumerate() {
        let segment = segment_of(segments, stage);
        step.reads().chain([step.output]).for_each(|value| widen(&mut spans[value], segment));
        uses.push(Use {
            // The image has a place of its own.
            reads: step.reads().filter(|&value| value != 0).collect(),
            writes: Some(step.output),
            over: step.residual.filter(|&residual| residual != step.input),
        });
    }
    let image = spans[0].take();
    let kept = [vec![], vec![layouts.len() - 1]];
    let mut places = places(layouts, spans, segments, &uses, kept, true, slots);
    places[0].home = image.map_or(0, |(_, last)| last);
    places
}

/// Places of the gradients in the backward pass; `values` says whose gradient each buffer is.
pub(crate) fn backward_places(
    backs: &[Back],
    values: &[usize],
    layouts: &[Layout],
    segments: &[Segment],
    slots: &mut Slots,
) -> Vec<Place> {
    let mut spans = vec![None; values.len()];
    spans[0] = Some((segments.len() - 1, segments.len() - 1));
    let mut uses = Vec::new();
    for back in backs {
        let segment = segment_of(segments, back.of);
        let reads = || [Some(back.from), back.residual].into_iter().flatten();
        reads().chain(back.to).for_each(|buffer| widen(&mut spans[buffer], segment));
        uses.push(Use {
            reads: reads().collect(),
            writes: back.to,
            over: back.residual.filter(|&residual| residual != back.from),
        });
    }
    let layouts: Vec<_> = values.iter().map(|&value| layouts[value]).collect();
    places(&layouts, spans, segments, &uses, [vec![0], vec![]], false, slots)
}
