//! What every attack is, and what it reports.

use std::fmt::Debug;

use candle_core::{Device, Error, Result, Tensor, bail};
use game::{Fraction, Goal, Key, Norm};
use rayon::prelude::*;

use crate::{Ball, Eot, Stop, Victim};

/// Queries of the network per image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Forward evaluations.
    pub forward: u64,
    /// Backward evaluations.
    pub backward: u64,
}

impl Cost {
    /// Of `steps` gradients over the draws of `eot`, each followed by what the stop rule asks.
    pub(crate) const fn of_steps(steps: u64, eot: Eot, stop: Stop) -> Self {
        let draws = eot.draws as u64;
        Self { forward: steps * (draws + stop.cost()), backward: steps * draws }
    }
}

/// The images after some steps of an attack, and how it got there; every list has one entry per image.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Steps taken.
    pub step: usize,
    /// The images `(n, c, h, w)`, f32, in `[0, 1]` and, where [`Attack::stays_inside`], in the ball; in host memory.
    pub x: Tensor,
    /// The attack's loss in the image's last draws, before that step moved it; `None` before the first.
    pub loss: Vec<Option<f64>>,
    /// Share of the image's last gradient's entries that were exactly zero; `None` before the first.
    pub zero_gradient: Vec<Option<f64>>,
    /// Gradient entries that were not finite, over all draws of all steps so far; they were taken as 0.
    pub non_finite: Vec<u64>,
    /// Forward evaluations of the network so far.
    pub forward_queries: Vec<u64>,
    /// Backward evaluations of the network so far.
    pub backward_queries: Vec<u64>,
}

impl Snapshot {
    /// The images before any query.
    pub(crate) fn unqueried(images: &Images) -> Result<Self> {
        Ok(Self {
            step: 0,
            x: images.tensor()?,
            loss: vec![None; images.count()],
            zero_gradient: vec![None; images.count()],
            non_finite: vec![0; images.count()],
            forward_queries: vec![0; images.count()],
            backward_queries: vec![0; images.count()],
        })
    }
}

/// Images whose logits an attack may imitate, in a fixed order; the same ones for every shard of a sample.
///
/// For Roth et al. (2019)'s row of table 2 in Gao et al. (2022) these are the first images of the sample: at least one
/// of every class that a goal may ask for. An attack imitates the first whose label satisfies its goal.
#[derive(Clone, Copy, Debug)]
pub struct Guides<'a> {
    /// The images `(g, c, h, w)`, f32 in `[0, 1]`, of the same size as those attacked.
    pub x: &'a Tensor,
    /// Their labels.
    pub labels: &'a [u32],
}

/// A way to choose, for each image, another one near it.
pub trait Attack: Debug + Send + Sync {
    /// Attacks the images `x` `(n, c, h, w)`, f32 in `[0, 1]`, and hands every snapshot to `sink` in the order of steps.
    ///
    /// `keys` holds one key per image, of the phase [`game::Phase::Attack`] and the image's id. An image's result
    /// depends on the image, its entry of the goal and its key, never on its neighbours or on the victim's batch size.
    /// Step `s`, from 1, draws from `key.at(s)`, and the start from `key.at(0)`. An image that its stop rule has
    /// stopped keeps its place and asks nothing more.
    ///
    /// `guides` is for attacks that imitate other images ([`Attack::needs_guides`]); the others ignore it.
    ///
    /// # Errors
    /// If the arguments do not fit together, a pixel is outside `[0, 1]`, a query or `sink` fails, or an image leaves
    /// the ball of an attack that stays inside.
    fn run(
        &self,
        victim: &Victim<'_>,
        x: &Tensor,
        goal: &Goal,
        keys: &[Key],
        guides: Option<Guides<'_>>,
        sink: &mut dyn FnMut(Snapshot) -> Result<()>,
    ) -> Result<()>;

    /// The norm and the budget the perturbation is bounded by, or judged by; `None` for no perturbation.
    fn ball(&self) -> Option<(Norm, &Fraction)>;

    /// The length of its steps in the norm of the ball, where it is a parameter.
    fn step_size(&self) -> Option<&Fraction> {
        None
    }

    /// Whether the perturbation cannot leave the ball. Where it can, an image outside is a failure of the attack (as
    /// robustml counts it), not a fault of the program.
    fn stays_inside(&self) -> bool {
        true
    }

    /// Whether [`Attack::run`] fails without guides.
    fn needs_guides(&self) -> bool {
        false
    }

    /// Whether its steps are queued on a GPU, so that nothing but a snapshot waits for the device. Where it is not so, the
    /// host reads every answer: to decide what comes next, as APGD's checkpoints and every stop rule do.
    fn is_queued(&self) -> bool {
        false
    }

    /// The number of steps of every snapshot, ascending.
    fn steps(&self) -> Vec<usize>;

    /// Queries per image of the whole run, where nothing stops it early.
    fn cost(&self) -> Cost;
}

/// A batch of images in host memory, as attacks move them.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    pixels: Vec<f32>,
    dims: (usize, usize, usize, usize),
}

impl Images {
    /// The images an attack starts from, after a check that everything fits.
    pub(crate) fn new(x: &Tensor, goal: &Goal, keys: &[Key]) -> Result<Self> {
        let dims = x.dims4()?;
        if keys.len() != dims.0 || goal.classes().len() != dims.0 {
            bail!("{} images with {} keys and a goal for {}", dims.0, keys.len(), goal.classes().len())
        }
        let pixels = x.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(pixel) = pixels.iter().find(|pixel| !(0.0..=1.0).contains(*pixel)) {
            bail!("an attack starts from pixels in [0, 1], not {pixel}")
        }
        Ok(Self { pixels, dims })
    }

    /// The number of images.
    pub(crate) const fn count(&self) -> usize {
        self.dims.0
    }

    /// The same images with other pixels.
    pub(crate) const fn moved(&self, pixels: Vec<f32>) -> Self {
        Self { pixels, dims: self.dims }
    }

    /// The number of pixels of one image, over all channels.
    pub(crate) const fn size(&self) -> usize {
        self.dims.1 * self.dims.2 * self.dims.3
    }

    /// `(n, c, h, w)`, f32.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.pixels, self.dims, &Device::Cpu)
    }

    /// The images `these`, `(these.len(), c, h, w)`.
    pub(crate) fn some(&self, these: &[usize]) -> Result<Tensor> {
        let pixels: Vec<f32> = these.iter().flat_map(|&image| self.get(image)).copied().collect();
        Tensor::from_vec(pixels, (these.len(), self.dims.1, self.dims.2, self.dims.3), &Device::Cpu)
    }

    /// The pixels of one image.
    pub(crate) fn get(&self, image: usize) -> &[f32] {
        &self.pixels[image * self.size()..][..self.size()]
    }

    /// Moves every image, given its position and its origin.
    pub(crate) fn each(&mut self, origins: &Self, each: impl Fn(usize, &[f32], &mut [f32]) + Sync) {
        self.each_with(origins, &mut vec![(); origins.count()], |image, (), origin, x| each(image, origin, x));
    }

    /// Moves every image, given its position, its entry of `states` and its origin.
    pub(crate) fn each_with<S: Send>(
        &mut self,
        origins: &Self,
        states: &mut [S],
        each: impl Fn(usize, &mut S, &[f32], &mut [f32]) + Sync,
    ) {
        let size = self.size().max(1);
        let pairs = self.pixels.par_chunks_mut(size).zip(origins.pixels.par_chunks(size)).zip(states);
        pairs.enumerate().for_each(|(i, ((x, origin), state))| each(i, state, origin, x));
    }

    /// Fails if an image is not in its ball.
    pub(crate) fn check(&self, origins: &Self, ball: Ball) -> Result<()> {
        ball.check(&origins.pixels, &self.pixels, self.size()).map_err(Error::wrap)
    }

    /// Whether one image is in its ball.
    pub(crate) fn is_inside(&self, origins: &Self, ball: Ball, image: usize) -> bool {
        ball.check(origins.get(image), self.get(image), self.size()).is_ok()
    }
}
