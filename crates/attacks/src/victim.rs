//! Where network, defense, BPDA and EOT meet: the only way an attack sees what it attacks.

use candle_core::{DType, Device, Result, Tensor, bail};
use game::{Classifier, Defense, Goal, Key, pullback};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Loss;

/// What expectation over transformation averages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mean {
    /// The gradients of every draw's loss (Athalye et al. 2018; what Gao et al. 2022 use).
    #[default]
    Gradients,
    /// The logits: the gradient of the loss of the mean logits.
    Logits,
}

/// Expectation over transformation: how many draws one step looks at, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eot {
    /// Draws per image and step, at least 1.
    pub draws: usize,
    /// What is averaged over them.
    pub mean: Mean,
}

impl Default for Eot {
    fn default() -> Self {
        Self { draws: 1, mean: Mean::Gradients }
    }
}

impl Eot {
    /// Whether the parameters make sense.
    ///
    /// # Errors
    /// One sentence: the parameter, its value, and what it must be.
    pub fn check(&self) -> std::result::Result<(), String> {
        if self.draws == 0 { Err("eot.draws = 0 must be at least 1".into()) } else { Ok(()) }
    }
}

/// Evolution strategies: how the gradient is estimated from forward evaluations alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The standard deviation of the normal directions, in pixel units of `[0, 1]`, greater than 0.
    pub sigma: f64,
    /// Evaluations per image, two for each direction, at least 2.
    pub samples: usize,
}

/// What the draws of one image said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Opinion {
    /// The class of every draw, in their order.
    pub classes: Vec<u32>,
    /// The sum of their probabilities (softmax), class by class.
    pub probabilities: Vec<f64>,
}

/// The position of the largest number, the first on ties; 0 without numbers.
fn largest(row: &[f64]) -> u32 {
    (0..row.len()).reduce(|best, j| if row[j] > row[best] { j } else { best }).unwrap_or(0) as u32
}

impl Opinion {
    /// The opinion of some draws, from their logits.
    #[must_use]
    pub fn new<'a>(draws: impl IntoIterator<Item = &'a [f64]>) -> Self {
        let mut opinion = Self::default();
        draws.into_iter().for_each(|logits| opinion.push(logits));
        opinion
    }

    fn push(&mut self, logits: &[f64]) {
        let class = largest(logits);
        self.classes.push(class);
        self.probabilities.resize(logits.len(), 0.0);
        let odds = || logits.iter().map(|z| (z - logits[class as usize]).exp());
        let sum: f64 = odds().sum();
        self.probabilities.iter_mut().zip(odds()).for_each(|(p, odds)| *p += odds / sum);
    }

    /// The opinion of these draws and others.
    fn and(mut self, others: Self) -> Self {
        self.classes.extend(others.classes);
        self.probabilities.iter_mut().zip(others.probabilities).for_each(|(p, other)| *p += other);
        self
    }

    /// The class with the largest mean probability, the smallest on ties.
    #[must_use]
    pub fn mean(&self) -> u32 {
        largest(&self.probabilities)
    }
}

/// The answer to one gradient query; every list has one entry per image.
#[derive(Clone, Debug)]
pub struct Query {
    /// The gradient of the loss with respect to the images, `(n, c, h, w)`, f32, in host memory, each image's times
    /// `2^-log2`, which brings its largest entry to `[1, 2]`. Entries that were not finite in some draw count as 0 there.
    pub gradient: Tensor,
    /// What the scaling took out; 0 where the whole gradient is zero.
    pub log2: Vec<i32>,
    /// The loss: its mean over the draws, or that of the mean logits.
    pub loss: Vec<f64>,
    /// Share of the gradient's entries that are exactly zero.
    pub zero_gradient: Vec<f64>,
    /// Entries that were not finite, over all draws.
    pub non_finite: Vec<u64>,
    /// What the draws said, each at the point where it was asked.
    pub opinions: Vec<Opinion>,
    /// Forward evaluations of the network per image.
    pub forward_queries: u64,
    /// Backward evaluations of the network per image.
    pub backward_queries: u64,
}

impl Query {
    /// The gradient in its true magnitude, `(n, c, h, w)`, f64; 0 where f64 cannot hold it.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn true_gradient(&self) -> Result<Tensor> {
        let mut rows = self.gradient.flatten(1, 3)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        for (row, &log2) in rows.iter_mut().zip(&self.log2) {
            row.iter_mut().for_each(|entry| *entry *= f64::from(log2).exp2());
        }
        Tensor::from_vec(rows.concat(), self.gradient.dims(), &Device::Cpu)
    }
}

/// A network behind a defense.
#[derive(Clone, Copy)]
pub struct Victim<'a> {
    /// The network.
    pub net: &'a dyn Classifier,
    /// The defense before it.
    pub defense: &'a dyn Defense,
    /// The largest number of images in one evaluation of the network, at least 1. It changes no result.
    pub batch: usize,
}

impl std::fmt::Debug for Victim<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Victim").field("defense", &self.defense).field("batch", &self.batch).finish_non_exhaustive()
    }
}

/// The keys of the defense and of the network, from those of the draws.
pub(crate) fn split(draws: &[Key]) -> (Vec<Key>, Vec<Key>) {
    draws.iter().map(|key| (key.at(0), key.at(1))).unzip()
}

/// The elements of a tensor in f64, row-major.
fn host(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()
}

/// The elements of a tensor in its own precision, row-major.
enum Floats {
    Single(Vec<f32>),
    Double(Vec<f64>),
}

fn floats(x: &Tensor) -> Result<Floats> {
    match x.dtype() {
        DType::F32 => Ok(Floats::Single(x.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)),
        _ => Ok(Floats::Double(host(x)?)),
    }
}

/// A number of either precision.
trait Wide: Copy + Sync {
    fn wide(self) -> f64;
}

impl Wide for f32 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self.into()
    }
}

impl Wide for f64 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
}

/// The gradient of one loss at the logits, scaled.
#[derive(Clone, Debug)]
struct Upstream {
    row: Vec<f64>,
    log2: i32,
    loss: f64,
}

impl Upstream {
    fn new(loss: Loss, logits: &[f64], class: usize) -> Self {
        let mut row = vec![0.0; logits.len()];
        let cotangent = loss.evaluate(logits, class, &mut row);
        Self { row, log2: cotangent.log2, loss: cotangent.loss }
    }

    /// The squared distance of the logits from others.
    fn distance(logits: &[f64], target: &[f64]) -> Self {
        let differences = || logits.iter().zip(target).map(|(z, t)| z - t);
        Self { row: differences().map(|d| 2.0 * d).collect(), log2: 0, loss: differences().map(|d| d * d).sum() }
    }
}

impl Victim<'_> {
    /// Logits `(n, k)` of `(n, c, h, w)`, one draw per image: `keys[i]` is the key of image `i`'s draw.
    ///
    /// # Errors
    /// If shapes and keys do not fit, or the defense or the network fails.
    pub fn predict(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        self.check(x, keys)?;
        let mut logits = Vec::new();
        for (chunk, keys) in keys.chunks(self.batch).enumerate() {
            logits.push(self.forward(&x.narrow(0, chunk * self.batch, keys.len())?, keys)?);
        }
        if logits.is_empty() {
            return Tensor::zeros((0, self.net.classes()), DType::F32, self.net.device());
        }
        Tensor::cat(&logits, 0)
    }

    /// The gradient of the loss with respect to the undefended images, in expectation over the defense.
    ///
    /// `keys[i]` is the key of image `i` at this step; its draw `d` has the key `keys[i].at(d)`, of which the defense
    /// gets `.at(0)` and the network `.at(1)`. The loss is about `goal`'s classes; whether to ascend or to descend is
    /// the attack's business. Queries are counted as the algorithm asks them, one forward and one backward per draw:
    /// where the draws of mean logits exceed a batch, the network runs forward twice to save memory.
    ///
    /// # Errors
    /// If the arguments do not fit together, or the defense or the network fails.
    pub fn gradient(&self, x: &Tensor, goal: &Goal, loss: Loss, eot: Eot, keys: &[Key]) -> Result<Query> {
        let classes = self.classes(goal, keys)?;
        self.expectation(x, eot, keys, &|image, logits| Upstream::new(loss, logits, classes[image]))
    }

    /// The gradient of the squared distance between the logits and `targets[i]`, `k` numbers for each image `i`, in
    /// expectation over the defense; otherwise as [`Victim::gradient`].
    ///
    /// # Errors
    /// If the arguments do not fit together, or the defense or the network fails.
    pub fn matching(&self, x: &Tensor, targets: &[Vec<f64>], eot: Eot, keys: &[Key]) -> Result<Query> {
        let k = self.net.classes();
        if targets.len() != keys.len() || targets.iter().any(|target| target.len() != k) {
            bail!("{} images with {} rows of logits to match, of {k} classes each", keys.len(), targets.len())
        }
        self.expectation(x, eot, keys, &|image, logits| Upstream::distance(logits, &targets[image]))
    }

    /// An estimate of the gradient from forward evaluations alone (Salimans et al. 2017, with antithetic sampling).
    ///
    /// Pair `d` of image `i` draws a normal direction `u` from `keys[i].at(d).at(2)` and evaluates the loss at
    /// `x + sigma u` and at `x - sigma u`, neither of them clipped, both under the draw of `keys[i].at(d)`; the answer
    /// is the mean of `(loss+ - loss-) / (2 sigma) u`, and its loss the mean of all evaluations. A pair whose losses
    /// are not finite counts as 0, and all its entries as not finite.
    ///
    /// # Errors
    /// If the arguments do not fit together, or the defense or the network fails.
    pub fn estimate(&self, x: &Tensor, goal: &Goal, loss: Loss, sampling: Sampling, keys: &[Key]) -> Result<Query> {
        self.check(x, keys)?;
        let classes = self.classes(goal, keys)?;
        let (k, size, pairs) = (self.net.classes(), x.elem_count() / keys.len().max(1), sampling.samples / 2);
        if pairs == 0 {
            bail!("{} samples: an estimate of the gradient needs at least 2", sampling.samples)
        }
        let pixels = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut sums = vec![Sum::new(size); keys.len()];
        let mut opinions = vec![Opinion::default(); keys.len()];
        for chunk in Draw::all(keys, pairs).chunks(self.batch.div_ceil(2)) {
            let mut directions = vec![0.0; chunk.len() * size];
            let mut points = vec![0.0; 2 * directions.len()];
            let places = directions.par_chunks_mut(size.max(1)).zip(points.par_chunks_mut(2 * size.max(1)));
            places.zip(chunk).for_each(|((direction, points), draw)| {
                draw.key.at(2).fill_normal(direction);
                let (above, below) = points.split_at_mut(size);
                let origin = &pixels[draw.image * size..][..size];
                look_aside(origin, direction, sampling.sigma, above, below);
            });
            let (_, c, h, w) = x.dims4()?;
            let points = Tensor::from_vec(points, (2 * chunk.len(), c, h, w), &Device::Cpu)?.to_device(x.device())?;
            let twice: Vec<Key> = chunk.iter().flat_map(|draw| [draw.key; 2]).collect();
            let logits = host(&self.predict(&points, &twice)?)?;
            let mut slopes = Vec::with_capacity(chunk.len());
            for (draw, logits) in chunk.iter().zip(logits.chunks(2 * k)) {
                let [above, below] =
                    [&logits[..k], &logits[k..]].map(|row| Upstream::new(loss, row, classes[draw.image]).loss);
                logits.chunks(k).for_each(|row| opinions[draw.image].push(row));
                slopes.push(((above - below) / (2.0 * sampling.sigma), f64::midpoint(above, below)));
            }
            let mut rest = (&slopes[..], &directions[..]);
            for draws in chunk.chunk_by(|a, b| a.image == b.image) {
                let (slopes, later) = rest.0.split_at(draws.len());
                let (directions, others) = rest.1.split_at(draws.len() * size);
                rest = (later, others);
                sums[draws[0].image].add_directions(slopes, directions);
            }
        }
        let query = Query::new(sums, opinions, pairs, x)?;
        Ok(Query { forward_queries: 2 * pairs as u64, backward_queries: 0, ..query })
    }

    /// The logits of `draws` draws of every image, draw by draw: `keys[i].at(d)` is the key of image `i`'s draw `d`.
    ///
    /// # Errors
    /// If shapes and keys do not fit, or the defense or the network fails.
    pub fn draws(&self, x: &Tensor, draws: usize, keys: &[Key]) -> Result<Vec<Vec<Vec<f64>>>> {
        self.check(x, keys)?;
        let k = self.net.classes();
        let mut rows = Vec::with_capacity(keys.len() * draws);
        for chunk in Draw::all(keys, draws).chunks(self.batch) {
            let logits = host(&self.forward(&Draw::images(x, chunk)?, &Draw::keys(chunk))?)?;
            rows.extend(logits.chunks(k).map(<[f64]>::to_vec));
        }
        let mut rows = rows.into_iter();
        Ok(keys.iter().map(|_| rows.by_ref().take(draws).collect()).collect())
    }

    /// The class each image's loss is about.
    pub(crate) fn classes(&self, goal: &Goal, keys: &[Key]) -> Result<Vec<usize>> {
        let classes: Vec<usize> = goal.classes().iter().map(|&class| class as usize).collect();
        if classes.len() != keys.len() {
            bail!("{} images with a goal for {}", keys.len(), classes.len())
        }
        let k = self.net.classes();
        if let Some(class) = classes.iter().find(|&&class| class >= k || k < 2) {
            bail!("class {class} is no goal for a network of {k} classes")
        }
        Ok(classes)
    }

    /// The gradient in expectation over the defense; `upstream` is a loss's gradient at an image's logits.
    fn expectation(
        &self,
        x: &Tensor,
        eot: Eot,
        keys: &[Key],
        upstream: &dyn Fn(usize, &[f64]) -> Upstream,
    ) -> Result<Query> {
        self.check(x, keys)?;
        eot.check().map_err(candle_core::Error::msg)?;
        let k = self.net.classes();
        let mut sums = vec![Sum::new(x.elem_count() / keys.len().max(1)); keys.len()];
        let mut opinions = vec![Opinion::default(); keys.len()];
        let mut listen = |draws: &[Draw], logits: &[f64]| {
            draws.iter().zip(logits.chunks(k)).for_each(|(draw, logits)| opinions[draw.image].push(logits));
        };
        match eot.mean {
            Mean::Gradients => self.accumulate(x, keys, eot.draws, self.batch, &mut sums, |draws, logits| {
                listen(draws, logits);
                draws.iter().zip(logits.chunks(k)).map(|(draw, logits)| upstream(draw.image, logits)).collect()
            })?,
            // All draws of an image in one evaluation, which yields the mean and the gradient at once.
            Mean::Logits if eot.draws <= self.batch => {
                let whole = self.batch / eot.draws * eot.draws;
                self.accumulate(x, keys, eot.draws, whole, &mut sums, |draws, logits| {
                    listen(draws, logits);
                    let images = draws.chunks(eot.draws).zip(logits.chunks(k * eot.draws));
                    let means = images
                        .map(|(draws, logits)| (upstream(draws[0].image, &mean(logits.chunks(k), k)), draws.len()));
                    means.flat_map(|(upstream, draws)| std::iter::repeat_n(upstream, draws)).collect()
                })?;
            }
            Mean::Logits => {
                let draws = self.draws(x, eot.draws, keys)?;
                let means = draws.iter().map(|rows| mean(rows.iter().map(Vec::as_slice), k));
                let upstreams: Vec<Upstream> = means.enumerate().map(|(image, mean)| upstream(image, &mean)).collect();
                self.accumulate(x, keys, eot.draws, self.batch, &mut sums, |draws, logits| {
                    listen(draws, logits);
                    draws.iter().map(|draw| upstreams[draw.image].clone()).collect()
                })?;
            }
        }
        Query::new(sums, opinions, eot.draws, x)
    }

    /// Fails unless there is one key per image and room for an image.
    pub(crate) fn check(&self, x: &Tensor, keys: &[Key]) -> Result<()> {
        let (n, ..) = x.dims4()?;
        if n != keys.len() {
            bail!("{n} images with {} keys: a victim needs one key per image", keys.len())
        }
        if self.batch == 0 {
            bail!("a batch of 0 images evaluates nothing")
        }
        Ok(())
    }

    /// Logits of one batch, one draw per image.
    fn forward(&self, x: &Tensor, draws: &[Key]) -> Result<Tensor> {
        let (defense, net) = split(draws);
        // Where a device draws noise itself, the images go there first.
        let x = x.to_device(self.net.device())?;
        self.net.logits(&self.defense.apply(&x, &defense)?, &net)
    }

    /// Adds up every draw's gradient in the order of draws, at most `batch` draws at a time.
    ///
    /// `upstream` answers the logits of some draws, row by row, with the gradients of the loss there.
    fn accumulate(
        &self,
        x: &Tensor,
        keys: &[Key],
        draws: usize,
        batch: usize,
        sums: &mut [Sum],
        mut upstream: impl FnMut(&[Draw], &[f64]) -> Vec<Upstream>,
    ) -> Result<()> {
        for chunk in Draw::all(keys, draws).chunks(batch) {
            let images = Draw::images(x, chunk)?.to_device(self.net.device())?;
            let (defense, net) = split(&Draw::keys(chunk));
            let defended = self.defense.apply(&images, &defense)?;
            let mut upstreams = Vec::new();
            let above = self.net.input_gradient(&defended, &net, &mut |logits| {
                upstreams = upstream(chunk, &host(logits)?);
                let rows: Vec<f64> = upstreams.iter().flat_map(|upstream| upstream.row.iter().copied()).collect();
                Tensor::from_vec(rows, logits.dims(), &Device::Cpu)?
                    .to_dtype(logits.dtype())?
                    .to_device(logits.device())
            })?;
            if upstreams.len() != chunk.len() {
                bail!("the network did not ask for the gradient at its logits")
            }
            let below = pullback(self.defense, &images, &defense, &above)?;
            match floats(&below)? {
                Floats::Single(below) => add(sums, chunk, &upstreams, &below),
                Floats::Double(below) => add(sums, chunk, &upstreams, &below),
            }
        }
        Ok(())
    }
}

/// One draw of one image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    image: usize,
    key: Key,
}

impl Draw {
    /// All draws, those of one image together.
    pub(crate) fn all(keys: &[Key], draws: usize) -> Vec<Self> {
        let draws = 0..draws as u64;
        keys.iter()
            .enumerate()
            .flat_map(|(image, key)| draws.clone().map(move |d| Self { image, key: key.at(d) }))
            .collect()
    }

    pub(crate) fn keys(draws: &[Self]) -> Vec<Key> {
        draws.iter().map(|draw| draw.key).collect()
    }

    /// The image of every draw.
    fn images(x: &Tensor, draws: &[Self]) -> Result<Tensor> {
        let ids: Vec<u32> = draws.iter().map(|draw| draw.image as u32).collect();
        x.contiguous()?.index_select(&Tensor::from_vec(ids, draws.len(), x.device())?, 0)
    }
}

/// The mean of some rows of `k` logits, added in their order.
fn mean<'a>(rows: impl ExactSizeIterator<Item = &'a [f64]>, k: usize) -> Vec<f64> {
    let n = rows.len() as f64;
    let mut mean = vec![0.0; k];
    for row in rows {
        mean.iter_mut().zip(row).for_each(|(sum, z)| *sum += z);
    }
    mean.iter_mut().for_each(|sum| *sum /= n);
    mean
}

/// Gradients of one image's draws, added up in units of `2^log2`, the largest unit so far.
#[derive(Clone, Debug)]
struct Sum {
    entries: Vec<f64>,
    log2: Option<i32>,
    loss: f64,
    non_finite: u64,
}

/// Adds a batch of draws' gradients to the sums of their images, in the order of draws.
fn add<T: Wide>(sums: &mut [Sum], draws: &[Draw], upstreams: &[Upstream], gradients: &[T]) {
    let Some((first, last)) = draws.first().zip(draws.last()) else { return };
    let size = gradients.len() / draws.len();
    sums[first.image..=last.image].par_iter_mut().enumerate().for_each(|(i, sum)| {
        let image = first.image + i;
        let from = draws.partition_point(|draw| draw.image < image);
        let to = draws.partition_point(|draw| draw.image <= image);
        for d in from..to {
            sum.add(&upstreams[d], &gradients[d * size..][..size]);
        }
    });
}

/// Two to the power `log2`; 0 where that is below the smallest normal number.
fn pow2(log2: i32) -> f64 {
    if log2 < -1022 { 0.0 } else { f64::from_bits(((log2.min(1023) + 1023) as u64) << 52) }
}

game::vectorised! {
    /// Counts the entries that are no finite numbers, and those that are and are not zero.
    fn count<T: Wide>(gradient: &[T], non_finite: &mut u64, moving: &mut u64) {
        for entry in gradient {
            let entry = entry.wide();
            *non_finite = non_finite.wrapping_add(u64::from(!entry.is_finite()));
            *moving = moving.wrapping_add(u64::from(entry.is_finite() && entry != 0.0));
        }
    }
}

game::vectorised! {
    /// Adds a multiple of the entries that are finite.
    fn add_finite<T: Wide>(sums: &mut [f64], factor: f64, gradient: &[T]) {
        for (sum, entry) in sums.iter_mut().zip(gradient) {
            let entry = entry.wide();
            *sum = if entry.is_finite() { *sum + factor * entry } else { *sum };
        }
    }
}

game::vectorised! {
    /// The points at a distance along a direction, and against it.
    fn look_aside(origin: &[f32], direction: &[f32], distance: f64, above: &mut [f32], below: &mut [f32]) {
        for (((above, below), &x), &u) in above.iter_mut().zip(below).zip(origin).zip(direction) {
            *above = (f64::from(x) + distance * f64::from(u)) as f32;
            *below = (f64::from(x) + -distance * f64::from(u)) as f32;
        }
    }
}

game::vectorised! {
    /// Adds a multiple of a direction.
    fn add_multiple(sums: &mut [f64], slope: f64, direction: &[f32]) {
        for (sum, &u) in sums.iter_mut().zip(direction) {
            *sum += slope * f64::from(u);
        }
    }
}

/// Entries that one thread sums up at a time: few enough to stay in its first cache, and enough for several threads.
const STRETCH: usize = 512;

impl Sum {
    /// Adds pairs of evaluations in their order: a slope along each direction, and a loss.
    ///
    /// # Panics
    /// Unless there is a direction of the sum's length for each slope.
    fn add_directions(&mut self, slopes: &[(f64, f64)], directions: &[f32]) {
        let size = self.entries.len();
        assert_eq!(directions.len(), slopes.len() * size);
        for (slope, loss) in slopes {
            self.loss += loss;
            // A slope that is no number makes all of its entries so.
            self.non_finite += if slope.is_finite() { 0 } else { size as u64 };
        }
        let counts = |slope: f64| slope != 0.0 && slope.is_finite();
        if slopes.iter().any(|(slope, _)| counts(*slope)) {
            self.log2 = Some(self.log2.unwrap_or(0));
        }
        self.entries.par_chunks_mut(STRETCH).enumerate().for_each(|(i, sums)| {
            for ((slope, _), direction) in slopes.iter().zip(directions.chunks(size)) {
                if counts(*slope) {
                    add_multiple(sums, *slope, &direction[i * STRETCH..][..sums.len()]);
                }
            }
        });
    }

    fn new(size: usize) -> Self {
        Self { entries: vec![0.0; size], log2: None, loss: 0.0, non_finite: 0 }
    }

    fn add<T: Wide>(&mut self, upstream: &Upstream, gradient: &[T]) {
        self.loss += upstream.loss;
        let (mut non_finite, mut moving) = (0, 0);
        count(gradient, &mut non_finite, &mut moving);
        self.non_finite += non_finite;
        // A draw without gradient says nothing about the unit.
        if moving == 0 {
            return;
        }
        let unit = self.log2.unwrap_or(upstream.log2);
        if upstream.log2 > unit {
            let factor = pow2(unit - upstream.log2);
            self.entries.iter_mut().for_each(|sum| *sum *= factor);
        }
        let unit = unit.max(upstream.log2);
        let factor = pow2(upstream.log2 - unit);
        add_finite(&mut self.entries, factor, gradient);
        self.log2 = Some(unit);
    }

    /// The mean over `draws` with its largest entry in `[1, 2]`, and the power of two that was taken out.
    fn scaled(&self, draws: usize) -> (Vec<f32>, i32) {
        let n = draws as f64;
        let largest = self.entries.iter().fold(0.0, |largest, entry| entry.abs().max(largest)) / n;
        if largest == 0.0 {
            return (vec![0.0; self.entries.len()], 0);
        }
        // The exponent field: right for every normal number, and no worse than 1 for the rest.
        let log2 = ((largest.to_bits() >> 52) as i32 - 1023).max(-1022);
        let factor = pow2(-log2);
        let entries = self.entries.iter().map(|entry| (entry / n * factor) as f32).collect();
        (entries, log2 + self.log2.unwrap_or(0))
    }
}

impl Query {
    /// The mean over the draws of both queries, of the same images.
    pub(crate) fn mean_with(self, other: Self) -> Result<Self> {
        let x = self.gradient.clone();
        let mut sums = vec![Sum::new(x.elem_count() / self.loss.len().max(1)); self.loss.len()];
        for query in [&self, &other] {
            let draws = query.backward_queries as f64;
            for (i, (sum, row)) in sums.iter_mut().zip(query.gradient.flatten(1, 3)?.to_vec2::<f32>()?).enumerate() {
                let entries: Vec<f64> = row.into_iter().map(|entry| draws * f64::from(entry)).collect();
                sum.add(&Upstream { row: vec![], log2: query.log2[i], loss: draws * query.loss[i] }, &entries);
                sum.non_finite += query.non_finite[i];
            }
        }
        let opinions = self.opinions.into_iter().zip(other.opinions).map(|(a, b)| a.and(b)).collect();
        Self::new(sums, opinions, (self.backward_queries + other.backward_queries) as usize, &x)
    }

    fn new(sums: Vec<Sum>, opinions: Vec<Opinion>, draws: usize, x: &Tensor) -> Result<Self> {
        let (gradients, log2): (Vec<Vec<f32>>, _) = sums.par_iter().map(|sum| sum.scaled(draws)).unzip();
        let share = |row: &Vec<f32>| row.iter().filter(|&&entry| entry == 0.0).count() as f64 / row.len() as f64;
        Ok(Self {
            zero_gradient: gradients.iter().map(share).collect(),
            gradient: Tensor::from_vec(gradients.concat(), x.dims(), &Device::Cpu)?,
            log2,
            loss: sums.iter().map(|sum| sum.loss / draws as f64).collect(),
            non_finite: sums.iter().map(|sum| sum.non_finite).collect(),
            opinions,
            forward_queries: draws as u64,
            backward_queries: draws as u64,
        })
    }
}
