//! Runs a compiled network on a group of images.

use std::ops::Range;

use game::Key;

use crate::compile::{self, Compiled, Stage, Standard, Value, Work};
use crate::kernels::adaptive::{Adapt, Unadapt};
use crate::kernels::dense::Dense;
use crate::kernels::depthwise::Depthwise;
use crate::kernels::largest::KeepLargest;
use crate::kernels::map::{Map, Max, Mean, Same, Source, Spread, Subsample, Unmax, Upsample, clear, copy};
use crate::kernels::prune::{self, Prune, Unprune};
use crate::kernels::stem::{Planes, Stem};
use crate::kernels::winograd::Winograd;
use crate::kernels::{End, Finish, View, standard, stem};
use crate::lower::Act;
use crate::memory::{Floats, Layout};
use crate::passes::{Algorithm, Pass};
use crate::places::{Back, Place};

/// Images on their way through a network: the memory of one thread.
///
/// A segment works on its group of images stage by stage, and is itself given its group in parts by the segment before
/// it (forward), or hands it on in parts (backward).
pub(crate) struct Run<'a> {
    net: &'a Compiled,
    arena: *mut f32,
    /// Bytes of state, `net.state` for each image; null when there will be no backward pass.
    state: *mut u8,
    /// One for each image, if anything is drawn.
    keys: &'a [Key],
    /// The segment at work and how many images it has; the first image of each segment's group.
    segment: usize,
    images: usize,
    starts: Vec<usize>,
}

/// Splits a range into parts of at most `size`.
fn parts(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(size).map(move |start| start..(start + size).min(range.end))
}

impl<'a> Run<'a> {
    /// `state` holds `net.state` bytes for each of `images` images, or is empty.
    pub(crate) fn new(net: &'a Compiled, arena: &'a mut Floats, state: &'a mut [u8], images: usize) -> Self {
        assert!(images <= net.group() && (state.is_empty() || state.len() == net.state * images));
        let state = if state.is_empty() { std::ptr::null_mut() } else { state.as_mut_ptr() };
        assert!(arena.as_mut().len() == net.arena);
        let starts = vec![0; net.segments.len()];
        Self { net, arena: arena.as_mut().as_mut_ptr(), state, keys: &[], segment: 0, images, starts }
    }

    /// The same with one key for each image.
    pub(crate) fn with_keys(self, keys: &'a [Key]) -> Self {
        Self { keys, ..self }
    }

    /// The segment at work's first image, in a buffer that begins with the first image of another segment's group.
    fn skip(&self, home: usize) -> usize {
        self.starts[self.segment] - self.starts[home]
    }

    /// The state of the segment at work's first image.
    fn state(&self) -> *mut u8 {
        // SAFETY: the state of all images.
        unsafe { self.state.add(self.starts[self.segment] * self.net.state) }
    }

    fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: all offsets of the plan lie inside its arena.
        unsafe { self.arena.add(offset) }
    }

    fn buffer(&self, layout: &Layout, Place { slot, home }: Place) -> View<f32> {
        // SAFETY: a slot has room for its home's group of images of its layout.
        unsafe { layout.view(self.at(self.net.slots[slot] + self.skip(home) * layout.image())) }
    }

    fn value(&self, value: usize) -> View<f32> {
        let value = &self.net.values[value];
        self.buffer(&value.layout, value.place)
    }

    fn gradient(&self, buffer: usize) -> View<f32> {
        let gradient = &self.net.gradients[buffer];
        self.buffer(&gradient.layout, gradient.place)
    }

    /// The mask of a value, if it has one and the state is kept.
    fn mask(&self, value: usize) -> View<u8> {
        match self.net.values[value].mask.filter(|_| !self.state.is_null()) {
            Some(offset) => self.kept(value, offset, 1),
            None => View::NONE,
        }
    }

    fn winners(&self, value: usize, offset: usize) -> View<u8> {
        if self.state.is_null() {
            return View::NONE;
        }
        self.kept(value, offset, 8)
    }

    /// What is kept in so many bits for each channel of a value.
    fn kept(&self, value: usize, offset: usize, bits: usize) -> View<u8> {
        let layout = &self.net.values[value].layout;
        let pixel = layout.channels * bits / 8;
        // SAFETY: inside the image's state.
        View { at: unsafe { self.state().add(offset) }, image: self.net.state, row: layout.columns * pixel, pixel }
    }

    /// What pruning keeps, if the state is.
    fn record(&self, value: usize, at: &compile::Record) -> Option<prune::Record> {
        (!self.state.is_null()).then(|| prune::Record {
            values: self.kept(value, at.values, 32),
            mask: self.kept(value, at.mask, 1),
            sum: self.kept(value, at.sum, 64),
        })
    }

    fn map<T: Source>(&self, source: T, layout: &Layout, finish: Finish) {
        let map = Map {
            source,
            channels_padded: layout.channels,
            images: self.images,
            rows: layout.rows,
            columns: layout.columns,
            finish,
        };
        // SAFETY: the plan's layouts cover every pixel of its maps.
        unsafe { self.net.isa.run(&map) };
    }

    fn convolve(&self, pass: &Pass, from: View<f32>, finish: Finish) {
        let isa = self.net.isa;
        let (step, (y, x)) = (pass.step, pass.first);
        let finish = Finish {
            to: finish.to.every(step, y, x),
            residual: finish.residual.every(step, y, x),
            mask: finish.mask.every(step, y, x),
            ..finish
        };
        let weights = pass.weights.as_ptr();
        let (images, rows, columns) = (self.images, pass.rows, pass.columns);
        let from = from.every(pass.stride, 0, 0);
        // SAFETY: the borders of the plan's layouts cover all taps of its passes.
        unsafe {
            match &pass.kernel {
                Algorithm::Dense { run, blocks } => {
                    let taps = &pass.taps;
                    isa.run(&Dense { from, taps, run: *run, weights, blocks, images, rows, columns, finish });
                }
                &Algorithm::Winograd { depth, depth_padded, start, ref blocks, chunk } => {
                    let from = View { at: from.at.offset(start), ..from };
                    let scratch = self.at(self.net.scratch);
                    isa.run(&Winograd {
                        from,
                        depth,
                        depth_padded,
                        weights,
                        blocks,
                        images,
                        rows,
                        columns,
                        finish,
                        scratch,
                        chunk,
                    });
                }
                &Algorithm::Depthwise { channels_padded } => {
                    let taps = &pass.taps;
                    isa.run(&Depthwise { from, taps, weights, channels_padded, images, rows, columns, finish });
                }
                Algorithm::Stem { .. } => unreachable!("the image's gradient has no epilogue"),
            }
        }
    }

    /// Pixels of an image, times channels.
    fn pixels(&self) -> usize {
        let Value { rows, columns, .. } = self.net.values[0];
        self.net.channels * rows * columns
    }

    /// Copies the images in, normalised, and standardised where the network asks for it.
    fn load(&self, pixels: &[f32]) {
        let plane = self.pixels() / self.net.channels;
        for (image, pixels) in pixels.chunks_exact(self.pixels()).enumerate() {
            let planes = || pixels.chunks_exact(plane).zip(self.net.mean.iter().zip(&self.net.inverse_std)).enumerate();
            let Some(standard) = &self.net.standard else {
                for (channel, (from, (mean, scale))) in planes() {
                    self.fill(image, channel, from, |x| (x - mean) * scale);
                }
                continue;
            };
            let values = self.standard_values();
            for (channel, (from, (mean, scale))) in planes() {
                let to = &mut values[channel * plane..][..plane];
                to.iter_mut().zip(from).for_each(|(to, x)| *to = (x - mean) * scale);
            }
            let inverse = standard::standardise(values);
            values.chunks_exact(plane).enumerate().for_each(|(channel, from)| self.fill(image, channel, from, |x| x));
            if !self.state.is_null() {
                // SAFETY: inside the image's state.
                unsafe {
                    let state = self.state().add(image * self.net.state);
                    state.add(standard.inverse).cast::<f64>().write_unaligned(inverse);
                    state.add(standard.values).copy_from_nonoverlapping(values.as_ptr().cast(), size_of_val(values));
                }
            }
        }
    }

    /// Fills a plane of an image.
    fn fill(&self, image: usize, channel: usize, from: &[f32], each: impl Fn(f32) -> f32) {
        let layout = &self.net.values[0].layout;
        let plane = (image * self.net.channels + channel) * layout.image();
        let to = self.at(self.net.image + plane + layout.origin());
        for (y, line) in from.chunks_exact(layout.columns).enumerate() {
            // SAFETY: inside the plane.
            let to = unsafe { std::slice::from_raw_parts_mut(to.add(y * layout.row()), layout.columns) };
            to.iter_mut().zip(line).for_each(|(to, &from)| *to = each(from));
        }
    }

    /// Room for the values of one image that is standardised.
    #[expect(clippy::mut_from_ref, reason = "the scratch is one kernel's at a time")]
    fn standard_values(&self) -> &mut [f32] {
        // SAFETY: where images are standardised, the scratch has room for one.
        unsafe { std::slice::from_raw_parts_mut(self.at(self.net.scratch), self.pixels()) }
    }

    /// Makes the gradients of pixels from those of standardised values, in place.
    fn unstandardise(&self, gradient: &mut [f32], at: &Standard) {
        let plane = self.pixels() / self.net.channels;
        for (image, gradient) in gradient.chunks_exact_mut(self.pixels()).enumerate() {
            let values = self.standard_values();
            // SAFETY: inside the image's state.
            let inverse = unsafe {
                let state = self.state.add(image * self.net.state);
                state.add(at.values).copy_to_nonoverlapping(values.as_mut_ptr().cast(), size_of_val(values));
                state.add(at.inverse).cast::<f64>().read_unaligned()
            };
            standard::unstandardise(gradient, values, inverse);
            for (gradient, scale) in gradient.chunks_exact_mut(plane).zip(&self.net.inverse_std) {
                gradient.iter_mut().for_each(|g| *g *= scale);
            }
        }
    }

    /// The images' planes.
    fn planes(&self) -> View<f32> {
        let Value { layout, place, .. } = &self.net.values[0];
        let image = layout.image() * self.net.channels;
        let at = self.at(self.net.image + self.skip(place.home) * image + layout.origin());
        View { at, image, row: layout.row(), pixel: 1 }
    }

    /// Logits, `(images, classes)`, from pixels `(images, channels, rows, columns)`.
    pub(crate) fn forward(&mut self, pixels: &[f32], logits: &mut [f32]) {
        let net = self.net;
        self.forward_segment(net.segments.len() - 1, 0..self.images, pixels);
        let view = self.value(net.stages.len());
        for (image, logits) in logits.chunks_exact_mut(net.classes).enumerate() {
            // SAFETY: the last value has one pixel of at least `classes` channels.
            logits.copy_from_slice(unsafe { std::slice::from_raw_parts(view.at.add(image * view.image), net.classes) });
        }
    }

    /// Makes the segment the one at work, on these images.
    fn enter(&mut self, segment: usize, images: &Range<usize>) {
        self.starts[segment] = images.start;
        (self.segment, self.images) = (segment, images.len());
    }

    fn forward_segment(&mut self, segment: usize, images: Range<usize>, pixels: &[f32]) {
        let net = self.net;
        self.enter(segment, &images);
        if net.values[0].place.home == segment {
            self.load(&pixels[images.start * self.pixels()..images.end * self.pixels()]);
        }
        if segment > 0 {
            for part in parts(images.clone(), net.segments[segment - 1].group) {
                self.forward_segment(segment - 1, part, pixels);
            }
            self.enter(segment, &images);
        }
        self.forward_stages(&net.stages[net.segments[segment].stages.clone()]);
    }

    fn forward_stages(&self, stages: &[Stage]) {
        let net = self.net;
        for stage in stages {
            let (output, input) = (&net.values[stage.output], &net.values[stage.input]);
            let from = if stage.input == 0 { self.planes() } else { self.value(stage.input) };
            let finish = Finish {
                to: self.value(stage.output),
                residual: stage.residual.map_or(View::NONE, |value| self.value(value)),
                mask: self.mask(stage.output),
                bias: std::ptr::null(),
                end: match output.act {
                    Act::None | Act::KeepLargest { .. } => End::Linear,
                    Act::Relu => End::Clamp { top: f32::INFINITY },
                    Act::Relu6 => End::Clamp { top: 6.0 },
                    Act::LeakyRelu { slope } => End::Leaky { slope },
                },
            };
            let layout = &output.layout;
            let (rows, columns, channels) = (input.rows, input.columns, input.channels);
            match &stage.work {
                Work::Convolution { forward, bias, .. } => {
                    self.convolve(forward, from, Finish { bias: bias.as_ptr(), ..finish });
                }
                &Work::MaxPool { window, winners } => {
                    let winners = self.winners(stage.output, winners);
                    self.map(Max { from, window, rows, columns, winners }, layout, finish);
                }
                &Work::Subsample { stride, before } => {
                    self.map(Subsample { from, stride, before, channels }, layout, finish);
                }
                Work::GlobalPool => self.map(Mean { from, rows, columns }, layout, finish),
                &Work::AdaptivePool { side } => self.map(Adapt { from, rows, columns, side }, layout, finish),
                &Work::Prune { samples, index, ref record } => {
                    let prune = Prune {
                        from,
                        keys: &self.keys[self.starts[self.segment]..][..self.images],
                        index,
                        samples,
                        record: self.record(stage.output, record),
                        channels,
                        channels_padded: layout.channels,
                        rows,
                        columns,
                        finish,
                        scratch: self.at(net.scratch),
                    };
                    // SAFETY: the views are of values of this shape, and the plan's scratch is large enough for it.
                    unsafe { net.isa.run(&prune) };
                }
                Work::Concat => self.concat(stage),
                Work::Identity => self.map(Same(from), layout, finish),
            }
            if let Act::KeepLargest { share } = output.act {
                self.keep_largest(output, share, finish);
            }
        }
    }

    fn concat(&self, stage: &Stage) {
        let to = self.value(stage.output);
        let Layout { rows, columns, channels: padded, .. } = self.net.values[stage.output].layout;
        let mut before = 0;
        for value in [stage.input].iter().chain(&stage.others) {
            let (from, channels) = (self.value(*value), self.net.values[*value].channels);
            // SAFETY: the parts' channels follow each other up to the output's.
            unsafe { copy(from, View { at: to.at.add(before), ..to }, [self.images, rows, columns, channels]) };
            before += channels;
        }
        // SAFETY: what is left are the output's channels that are padding.
        unsafe { clear(View { at: to.at.add(before), ..to }, [self.images, rows, columns, padded - before]) };
    }

    /// Lets the largest values of each image stay, in place.
    fn keep_largest(&self, value: &Value, share: f64, Finish { to, mask, .. }: Finish) {
        let volume = value.channels * value.rows * value.columns;
        let largest = KeepLargest {
            at: to,
            mask,
            keep: ((share * volume as f64) as usize).max(1),
            channels: value.channels,
            channels_padded: value.layout.channels,
            images: self.images,
            rows: value.rows,
            columns: value.columns,
            scratch: self.at(self.net.scratch),
        };
        // SAFETY: the views are of this value, and the plan's scratch is large enough for it.
        unsafe { self.net.isa.run(&largest) };
    }

    /// The images' gradient from the logits', after `forward` with the same state.
    pub(crate) fn backward(&mut self, upstream: &[f32], gradient: &mut [f32]) {
        let net = self.net;
        assert!(!self.state.is_null(), "the state of the forward pass");
        let last = net.segments.len() - 1;
        self.enter(last, &(0..self.images));
        let view = self.gradient(0);
        for (image, from) in upstream.chunks_exact(net.classes).enumerate() {
            // SAFETY: as in `forward`; the channels that are padding are cleared, the slot may have held others.
            let to = unsafe { std::slice::from_raw_parts_mut(view.at.add(image * view.image), view.pixel) };
            to.fill(0.0);
            to[..net.classes].copy_from_slice(from);
        }
        let logits = net.stages.len();
        if net.values[logits].mask.is_some() {
            self.map(Same(view), &net.values[logits].layout, self.masked(view, None, logits));
        }
        if !net.backs.iter().any(|back| back.value == 0) {
            gradient.fill(0.0);
        }
        let images = self.images;
        self.backward_segment(last, 0..images, gradient);
        if let Some(standard) = &net.standard {
            self.unstandardise(gradient, standard);
        }
    }

    fn backward_segment(&mut self, segment: usize, images: Range<usize>, gradient: &mut [f32]) {
        let net = self.net;
        self.enter(segment, &images);
        for back in &net.backs[net.segments[segment].backs.clone()] {
            let Some(to) = back.to else {
                self.image_gradient(back, gradient);
                continue;
            };
            let finish = self.masked(self.gradient(to), back.residual, back.value);
            self.step(back, if back.masked { finish } else { Finish { end: End::Linear, ..finish } });
        }
        if segment > 0 {
            for part in parts(images, net.segments[segment - 1].group) {
                self.backward_segment(segment - 1, part, gradient);
            }
        }
    }

    fn masked(&self, to: View<f32>, residual: Option<usize>, value: usize) -> Finish {
        let residual = residual.map_or(View::NONE, |buffer| self.gradient(buffer));
        let end = match self.net.values[value].act {
            Act::None => End::Linear,
            Act::Relu | Act::Relu6 | Act::KeepLargest { .. } => End::Masked,
            Act::LeakyRelu { slope } => End::Scaled { slope },
        };
        Finish { to, residual, mask: self.mask(value), bias: std::ptr::null(), end }
    }

    fn step(&self, back: &Back, finish: Finish) {
        let net = self.net;
        let from = self.gradient(back.from);
        let input = &net.values[back.value];
        let Some(stage) = back.stage else { return self.map(Same(from), &input.layout, finish) };
        let stage = &net.stages[stage];
        let output = &net.values[stage.output];
        let (rows, columns, channels) = (output.rows, output.columns, input.channels);
        match &stage.work {
            Work::Convolution { backward, .. } => {
                backward.iter().for_each(|pass| self.convolve(pass, from, finish));
            }
            &Work::MaxPool { window, winners } => {
                let winners = self.winners(stage.output, winners);
                self.map(Unmax { from, window, rows, columns, winners }, &input.layout, finish);
            }
            &Work::Subsample { stride, before } => {
                self.map(Upsample { from, stride, before, channels }, &input.layout, finish);
            }
            Work::GlobalPool => {
                let share = 1.0 / (input.rows * input.columns) as f32;
                self.map(Spread { from, share }, &input.layout, finish);
            }
            &Work::AdaptivePool { side } => {
                let (rows, columns) = (input.rows, input.columns);
                self.map(Unadapt { from, rows, columns, side }, &input.layout, finish);
            }
            Work::Prune { samples, record, .. } => {
                let Some(record) = self.record(stage.output, record) else { unreachable!("the state is kept") };
                let prune = Unprune {
                    from,
                    samples: *samples,
                    record,
                    channels,
                    channels_padded: output.layout.channels,
                    images: self.images,
                    rows,
                    columns,
                    finish,
                    scratch: self.at(net.scratch),
                };
                // SAFETY: as in the forward pass.
                unsafe { net.isa.run(&prune) };
            }
            Work::Concat => {
                let before = back.before;
                self.map(Upsample { from, stride: 1, before, channels }, &input.layout, finish);
            }
            Work::Identity => self.map(Same(from), &input.layout, finish),
        }
    }

    fn image_gradient(&self, back: &Back, gradient: &mut [f32]) {
        let net = self.net;
        let Some(Work::Convolution { backward, .. }) = back.stage.map(|stage| &net.stages[stage].work) else {
            unreachable!("only convolutions read the image")
        };
        let layout = &net.gradients[back.from].layout;
        let from = self.gradient(back.from);
        let image = &net.values[0];
        let (rows, columns) = (image.rows, image.columns);
        let border = net.stem;
        let plane = Layout { channels: 1, border, ..*layout };
        let pixels = self.pixels();
        let gradient = &mut gradient[self.starts[self.segment] * pixels..][..self.images * pixels];
        for (i, gradient) in gradient.chunks_exact_mut(pixels).enumerate() {
            let Some(&Algorithm::Stem { depth }) = backward.first().map(|pass| &pass.kernel) else {
                gradient.fill(0.0);
                continue;
            };
            let planes = self.at(net.scratch);
            // SAFETY: the scratch holds `depth` planes and a vector more, and the sweeps stay inside the gradient.
            unsafe {
                std::ptr::write_bytes(planes, 0, depth * plane.image() + stem::BEYOND);
                let from = View { at: from.at.add(i * from.image), ..from };
                net.isa.run(&Planes {
                    from,
                    channels: depth,
                    rows: layout.rows,
                    columns: layout.columns,
                    to: planes.add(plane.origin()),
                    row: plane.row(),
                    plane: plane.image(),
                });
                for pass in backward {
                    net.isa.run(&Stem {
                        from: planes.add(plane.origin()),
                        from_row: plane.row(),
                        from_plane: plane.image(),
                        depth,
                        taps: &pass.taps,
                        weights: pass.weights.as_ptr(),
                        channels: net.channels,
                        rows: pass.rows,
                        columns: pass.columns,
                        to: gradient.as_mut_ptr().add(pass.first.0 * columns + pass.first.1),
                        to_plane: rows * columns,
                        to_row: pass.step * columns,
                        to_pixel: pass.step,
                        accumulate: back.accumulate,
                    });
                }
            }
        }
    }
}
