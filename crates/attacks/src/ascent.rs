//! The loop all iterative attacks share: ask, decide who goes on, move, take a snapshot.

use candle_core::{Result, Tensor};
use game::{Goal, Key};
use serde::{Deserialize, Serialize};

use crate::{
    Attack, Ball, Eot, Loss, Opinion, Query, Snapshot, Stop, Victim,
    attack::Images,
    queue::{Queue, Run},
    stop::Reading,
};

/// Children of a step's key from this one on are no draws of the step's query.
const ASIDE: u64 = 1 << 32;

/// What draws beside a step's query are for: each purpose has its own.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(crate) enum Purpose {
    /// The vote of a stop rule.
    Stop = ASIDE,
    /// The rating of an iterate.
    Rating,
    /// The bookkeeping's last look.
    Verdict,
    /// A gradient without the attack's own noise.
    Clean,
    /// The logits of a guide.
    Guide,
}

/// What an attack makes of a gradient before anything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gradient {
    /// Its signs.
    #[default]
    Sign,
    /// The gradient in its true magnitude.
    Raw,
}

/// The gradient of one image's loss.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slope {
    /// The gradient, times `2^-log2`; nothing for an image that does not move.
    pub entries: Vec<f32>,
    pub log2: i32,
    pub loss: f64,
}

impl Slope {
    /// The gradient in its true magnitude; 0 where f64 cannot hold it.
    pub fn raw(&self) -> impl Iterator<Item = f64> {
        let unit = f64::from(self.log2).exp2();
        self.entries.iter().map(move |&entry| f64::from(entry) * unit)
    }

    /// The entries of the gradient or their signs, 0 for 0.
    pub fn of(&self, gradient: Gradient) -> impl Iterator<Item = f64> {
        let sign = |entry: f64| if entry == 0.0 { 0.0 } else { entry.signum() };
        self.raw().zip(&self.entries).map(move |(raw, &entry)| match gradient {
            Gradient::Raw => raw,
            Gradient::Sign => sign(f64::from(entry)),
        })
    }
}

/// The images of one run, and which of them still move.
pub(crate) struct Ascent<'a> {
    victim: &'a Victim<'a>,
    goal: &'a Goal,
    keys: &'a [Key],
    ball: Ball,
    stays_inside: bool,
    is_queued: bool,
    stop: Stop,
    origins: Images,
    images: Images,
    moving: Vec<usize>,
    step: usize,
    steps: Vec<usize>,
    so_far: Snapshot,
}

impl<'a> Ascent<'a> {
    /// The images as they are, after a check that everything fits.
    pub fn new(
        attack: &dyn Attack,
        stop: Stop,
        victim: &'a Victim<'a>,
        x: &Tensor,
        goal: &'a Goal,
        keys: &'a [Key],
    ) -> Result<Self> {
        let images = Images::new(x, goal, keys)?;
        let Some((norm, eps)) = attack.ball() else { candle_core::bail!("{attack:?} has no ball to move in") };
        Ok(Self {
            victim,
            goal,
            keys,
            ball: Ball { norm, eps: eps.value() },
            stays_inside: attack.stays_inside(),
            is_queued: attack.is_queued() && gpu::kernels::run_at(victim.net.device()) && images.count() > 0,
            stop,
            origins: images.clone(),
            moving: (0..images.count()).collect(),
            step: 0,
            steps: attack.steps(),
            so_far: Snapshot::unqueried(&images)?,
            images,
        })
    }

    /// The ball.
    pub const fn ball(&self) -> Ball {
        self.ball
    }

    /// The number of images.
    pub const fn count(&self) -> usize {
        self.images.count()
    }

    /// The number of pixels of one image, over all channels.
    pub const fn size(&self) -> usize {
        self.images.size()
    }

    /// The step, from 1; 0 before the first.
    pub const fn step(&self) -> usize {
        self.step
    }

    /// Whether this is the last step.
    pub fn is_last(&self) -> bool {
        self.steps.last() == Some(&self.step)
    }

    /// The pixels of every image.
    pub fn positions(&self) -> Vec<Vec<f32>> {
        (0..self.count()).map(|image| self.images.get(image).to_vec()).collect()
    }

    /// Moves the images that still move to where they start, given their keys.
    pub fn start(&mut self, start: impl Fn(Key, &[f32], &mut [f32]) + Sync) {
        let keys = self.keys;
        self.advance(&mut vec![(); keys.len()], |image, (), origin, x| start(keys[image].at(0), origin, x));
    }

    /// Moves every image that still moves, given its position, its entry of `states` and its origin.
    pub fn advance<S: Send>(&mut self, states: &mut [S], each: impl Fn(usize, &mut S, &[f32], &mut [f32]) + Sync) {
        let mut moves = vec![false; self.count()];
        self.moving.iter().for_each(|&image| moves[image] = true);
        self.images.each_with(&self.origins, states, |image, state, origin, x| {
            if moves[image] {
                each(image, state, origin, x);
            }
        });
    }

    /// Stops the images where `is_done`.
    pub fn halt(&mut self, is_done: impl Fn(usize) -> bool) {
        self.moving.retain(|&image| !is_done(image));
    }

    /// This run from here on, on the network's device, where that can do it without the host.
    pub fn queue(&self, loss: Loss, eot: Eot) -> Result<Option<Queue<'a>>> {
        if !self.is_queued {
            return Ok(None);
        }
        self.victim.classes(self.goal, self.keys)?;
        let run = Run {
            victim: self.victim,
            keys: self.keys,
            classes: self.goal.classes().to_vec(),
            origins: self.origins.clone(),
            images: self.images.clone(),
            ball: self.ball,
            inside: self.inside(),
            steps: self.steps.clone(),
            loss,
            eot,
        };
        self.victim.check(&run.images.tensor()?, self.keys)?;
        Queue::new(run).map(Some)
    }

    /// What no snapshot's image may leave.
    const fn inside(&self) -> Ball {
        if self.stays_inside { self.ball } else { Ball { eps: f64::INFINITY, ..self.ball } }
    }

    /// Takes `turn` once a step, and hands over the snapshots.
    pub fn run(
        &mut self,
        sink: &mut dyn FnMut(Snapshot) -> Result<()>,
        mut turn: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if self.is_queued {
            candle_core::bail!("an attack whose steps are queued took one on the host")
        }
        let inside = self.inside();
        let steps = self.steps.clone();
        for step in 1..=steps.last().copied().unwrap_or(0) {
            self.step = step;
            self.vote()?;
            turn(self)?;
            if steps.contains(&step) {
                self.images.check(&self.origins, inside)?;
                sink(Snapshot { step, x: self.images.tensor()?, ..self.so_far.clone() })?;
            }
        }
        Ok(())
    }

    /// One gradient query of every image that still moves; stops those that the rule stops by its draws.
    pub fn gradient(&mut self, loss: Loss, eot: Eot) -> Result<Vec<Slope>> {
        self.ask(|victim, batch| victim.gradient(&batch.x, &batch.goal, loss, eot, &batch.keys))
    }

    /// One query of every image that still moves, as [`Ascent::gradient`]; one slope per image.
    pub fn ask(&mut self, ask: impl FnOnce(&Victim<'_>, &Batch) -> Result<Query>) -> Result<Vec<Slope>> {
        let mut slopes = vec![Slope::default(); self.count()];
        if self.moving.is_empty() {
            return Ok(slopes);
        }
        let query = ask(self.victim, &self.batch()?)?;
        let gradient = query.gradient.flatten(1, 3)?.to_vec2::<f32>()?;
        for (i, (&image, entries)) in self.moving.iter().zip(gradient).enumerate() {
            let so_far = &mut self.so_far;
            so_far.loss[image] = Some(query.loss[i]);
            so_far.zero_gradient[image] = Some(query.zero_gradient[i]);
            so_far.non_finite[image] += query.non_finite[i];
            so_far.forward_queries[image] += query.forward_queries;
            so_far.backward_queries[image] += query.backward_queries;
            slopes[image] = Slope { entries, log2: query.log2[i], loss: query.loss[i] };
        }
        if let Some(reading) = self.stop.of_step() {
            let opinions = self.spread(query.opinions);
            self.settle(reading, &opinions);
        }
        Ok(slopes)
    }

    /// The logits of fresh draws of every image that still moves; nothing for the others.
    pub fn draws(&mut self, draws: usize, purpose: Purpose) -> Result<Vec<Vec<Vec<f64>>>> {
        if self.moving.is_empty() {
            return Ok(vec![vec![]; self.count()]);
        }
        let batch = self.batch()?;
        let keys: Vec<Key> = batch.keys.iter().map(|key| key.at(purpose as u64)).collect();
        let logits = self.victim.draws(&batch.x, draws, &keys)?;
        self.pay(draws as u64);
        Ok(self.spread(logits))
    }

    /// The logits of one draw of another image for every image, before the first step.
    pub fn logits_of(&mut self, others: &Tensor) -> Result<Vec<Vec<f64>>> {
        let keys: Vec<Key> = self.keys.iter().map(|key| key.at(0).at(Purpose::Guide as u64)).collect();
        let logits = self.victim.draws(others, 1, &keys)?;
        self.pay(1);
        Ok(logits.into_iter().map(|rows| rows.concat()).collect())
    }

    /// Whether one fresh draw of every image that still moves satisfies the goal.
    pub fn verdicts(&mut self) -> Result<Vec<bool>> {
        let logits = self.draws(1, Purpose::Verdict)?;
        let opinions = logits.iter().map(|rows| Opinion::new(rows.iter().map(Vec::as_slice)));
        Ok(opinions.enumerate().map(|(i, opinion)| opinion.classes.iter().any(|&c| self.goal.reached(i, c))).collect())
    }

    /// Counts forward queries that were asked about every image that still moves.
    fn pay(&mut self, forward: u64) {
        self.moving.iter().for_each(|&image| self.so_far.forward_queries[image] += forward);
    }

    /// The images that still move.
    fn batch(&self) -> Result<Batch> {
        let classes = self.moving.iter().map(|&image| self.goal.classes()[image]).collect();
        let goal = match self.goal {
            Goal::Untargeted(_) => Goal::Untargeted(classes),
            Goal::Targeted(_) => Goal::Targeted(classes),
        };
        let keys = self.moving.iter().map(|&image| self.keys[image].at(self.step as u64)).collect();
        Ok(Batch { x: self.images.some(&self.moving)?, goal, keys, images: self.moving.clone() })
    }

    /// Asks for the fresh votes of the stop rule, if it is one.
    fn vote(&mut self) -> Result<()> {
        let Stop::FreshVote { draws, reading } = self.stop else { return Ok(()) };
        let logits = self.draws(draws, Purpose::Stop)?;
        let opinions: Vec<Opinion> = logits.iter().map(|rows| Opinion::new(rows.iter().map(Vec::as_slice))).collect();
        self.settle(reading, &opinions);
        Ok(())
    }

    /// Stops the images whose opinion says so and that are in their ball.
    fn settle(&mut self, reading: Reading, opinions: &[Opinion]) {
        let Self { images, origins, ball, goal, moving, .. } = self;
        moving.retain(|&i| !(reading.is_reached(&opinions[i], goal, i) && images.is_inside(origins, *ball, i)));
    }

    /// From one entry per moving image to one per image.
    fn spread<T: Clone + Default>(&self, entries: Vec<T>) -> Vec<T> {
        let mut spread = vec![T::default(); self.count()];
        for (&image, entry) in self.moving.iter().zip(entries) {
            spread[image] = entry;
        }
        spread
    }
}

/// The images of a run that still move, at one step.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// The images `(n, c, h, w)`, in host memory.
    pub x: Tensor,
    /// Their goal.
    pub goal: Goal,
    /// Their keys of this step.
    pub keys: Vec<Key>,
    /// Their positions among all images.
    pub images: Vec<usize>,
}
