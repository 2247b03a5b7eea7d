//! Auto-PGD, as its authors wrote it and as the Adversarial Robustness Toolbox did.

use candle_core::{Result, Tensor};
use game::{Entry, Fraction, Goal, Key, Norm};
use serde::{Deserialize, Serialize};

use crate::{
    Attack, Ball, Cost, Eot, Guides, Loss, Mean, Snapshot, Stop, Victim,
    ascent::{Ascent, Purpose, Slope},
    check::{self, budget, number},
};

/// Auto-PGD: projected gradient ascent with momentum, whose step halves, and whose iterate returns to the best one so
/// far, wherever progress stalls at one of some checkpoints; the last iterate is the answer.
///
/// References: Croce and Hein 2020 and their code (the schedule `auto-attack`); version 1.9.1 of the Adversarial
/// Robustness Toolbox (the schedule `art`), with which Gao et al. 2022 made figures 4, 5 and 9. The defaults are the
/// corrected attack: every image has its own step, decisions rest on the mean loss over the draws that the gradient is
/// the mean of, and no image is kept, dropped or exchanged because of one draw. What the paper ran is
///
/// `{"schedule": "art", "start": "uniform", "step_size": "2/255", "steps": [200], "rating_draws": 1,
/// "bookkeeping": "single-draw"}`
///
/// with one departure. There, all images of a batch share one step size, driven by the batch's mean loss, so that an
/// image's result depends on its neighbours; here every image is a batch of its own (as in the toolbox from version
/// 1.14). A batch's mean loss is less noisy than one draw's: `rating_draws` of the order of a batch (100 to 250) come
/// close to that, at a price in forward queries.
///
/// The schedule depends on the number of steps: a short run is not the beginning of a longer one, and snapshots before
/// the last step show the way, not the answer of fewer steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Apgd {
    /// The norm of the ball and of the steps: signs in l-inf, normalised gradients in l2.
    pub norm: Norm,
    /// The ball's radius, in pixel units of `[0, 1]`.
    pub eps: Fraction,
    /// The length of the first step in the same norm and units: twice `eps` in the original.
    pub step_size: Fraction,
    /// After how many steps to take a snapshot, ascending; the last is the number of steps that the schedule knows.
    pub steps: Vec<usize>,
    /// Draws of the defense per step, and what is averaged over them.
    pub eot: Eot,
    /// The loss that is ascended about labels and descended about targets.
    pub loss: Loss,
    /// Where to start.
    pub start: Start,
    /// When the step halves.
    pub schedule: Schedule,
    /// Fresh draws whose mean loss rates an iterate, forward queries all; 0 for the draws of its gradient. The schedule
    /// `art` needs at least 1, the schedule `auto-attack` has none.
    pub rating_draws: usize,
    /// Which images are attacked and what is returned.
    pub bookkeeping: Bookkeeping,
}

/// Where Auto-PGD starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// From a random point on the ball's surface, clipped to `[0, 1]`: uniform noise (l-inf) or normal noise (l2),
    /// scaled to touch it.
    #[default]
    Surface,
    /// From a uniform point of the ball.
    Uniform,
    /// From the image itself.
    Image,
}

/// When Auto-PGD's step halves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// As in the code of Croce and Hein: the first checkpoint after 22% of the steps, each interval 3% shorter, at least
    /// 6%, all rounded down. The step halves where at most three quarters of an interval's steps raised the loss, or
    /// where the step was not halved at the last checkpoint and the best loss has not risen since. (Their code compares
    /// the first loss with 0; here with the start's.)
    #[default]
    AutoAttack,
    /// As in the Adversarial Robustness Toolbox 1.9.1: checkpoints at rounded-up shares of the steps; the step halves
    /// where fewer than three quarters of an interval's steps set a new best loss, or where neither step nor best loss
    /// changed since the last checkpoint. Against targets the first step is taken for progress where the loss rose,
    /// although it is to fall. (Its stop where a batch's mean loss is exactly 0 is left out.)
    Art,
}

/// Which images are attacked and what is returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bookkeeping {
    /// All images; the last iterate.
    #[default]
    None,
    /// Images that one draw finds adversarial before the attack are left alone. Of the others the last iterate is
    /// returned where one draw finds it adversarial, otherwise the start. Against a random defense this returns many
    /// images unattacked, and the more the less invariant the network.
    SingleDraw,
}

/// The share of an interval's steps that must make progress.
const RHO: f64 = 0.75;
/// The share of a step that is not momentum.
const ALPHA: f64 = 0.75;

impl Default for Apgd {
    fn default() -> Self {
        Self {
            norm: Norm::Linf,
            eps: budget(),
            step_size: number("16/255"),
            steps: vec![100],
            eot: Eot::default(),
            loss: Loss::CrossEntropy,
            start: Start::Surface,
            schedule: Schedule::AutoAttack,
            rating_draws: 0,
            bookkeeping: Bookkeeping::None,
        }
    }
}

impl Entry for Apgd {
    const ABOUT: &'static str = "Auto-PGD: momentum, and a step that halves where progress stalls";

    fn check(&self) -> std::result::Result<(), String> {
        check::eps(self.norm, &self.eps)?;
        check::step(self.norm, &self.step_size)?;
        check::steps(&self.steps)?;
        match (self.schedule, self.rating_draws) {
            (Schedule::Art, 0) => return Err("rating_draws = 0 must be at least 1 with schedule = art".into()),
            (Schedule::AutoAttack, 1..) => {
                return Err(format!("rating_draws = {} must be 0 with schedule = auto-attack", self.rating_draws));
            }
            _ => {}
        }
        self.eot.check()
    }

    fn examples() -> Vec<Self> {
        let eot = Eot { draws: 2, mean: Mean::Gradients };
        let art = Self {
            schedule: Schedule::Art,
            start: Start::Uniform,
            step_size: number("2/255"),
            rating_draws: 1,
            bookkeeping: Bookkeeping::SingleDraw,
            steps: vec![12],
            ..Self::default()
        };
        vec![
            Self { steps: vec![2, 12], eot, ..Self::default() },
            Self { norm: Norm::L2, eps: number("0.5"), step_size: number("1"), steps: vec![9], ..Self::default() },
            Self { start: Start::Image, bookkeeping: Bookkeeping::None, rating_draws: 3, ..art.clone() },
            art,
        ]
    }

    fn slug(&self, name: &str) -> String {
        let name = match self.schedule {
            Schedule::AutoAttack => name.to_owned(),
            Schedule::Art => format!("{name}-art"),
        };
        check::slug(&name, &self.steps, self.eot.draws)
    }
}

/// The way of one image.
#[derive(Clone, Debug)]
struct Path {
    step_size: f64,
    /// The iterate before the present one.
    previous: Vec<f32>,
    /// The best iterate so far, the one before it (`art`) and its gradient (`auto-attack`).
    best: Vec<f32>,
    before_best: Vec<f32>,
    best_slope: Slope,
    best_loss: f64,
    /// The loss of the iterate before the present one (`auto-attack`).
    loss: f64,
    /// Steps since the last checkpoint that made progress.
    progress: usize,
    /// Steps since the last checkpoint, and how many there are to the next (`auto-attack`).
    since: usize,
    interval: usize,
    /// The step and the best loss at the last checkpoint, and whether the step halved there.
    checked_step_size: f64,
    checked_loss: f64,
    halved: bool,
}

impl Path {
    fn new(step_size: f64, interval: usize) -> Self {
        Self {
            step_size,
            previous: vec![],
            best: vec![],
            before_best: vec![],
            best_slope: Slope::default(),
            best_loss: f64::NEG_INFINITY,
            loss: f64::NEG_INFINITY,
            progress: 0,
            since: 0,
            interval,
            checked_step_size: step_size,
            checked_loss: f64::NEG_INFINITY,
            halved: true,
        }
    }

    /// Moves `x` up the gradient, and on in the direction it came from.
    fn ascend(&mut self, ball: Ball, gradient: &[f32], direction: f64, origin: &[f32], x: &mut [f32]) {
        let from = x.to_vec();
        ball.ascend(gradient, direction * self.step_size, x);
        ball.project(origin, x);
        if !self.previous.is_empty() {
            for ((x, &from), &previous) in x.iter_mut().zip(&from).zip(&self.previous) {
                let [to, at, before] = [*x, from, previous].map(f64::from);
                *x = (at + ALPHA * (to - at) + (1.0 - ALPHA) * (at - before)) as f32;
            }
            ball.project(origin, x);
        }
        self.previous = from;
    }

    fn set_best(&mut self, loss: f64, x: &[f32], before: &[f32]) {
        self.best_loss = loss;
        self.best = x.to_vec();
        self.before_best = before.to_vec();
    }
}

/// The intervals between Auto-PGD's checkpoints: the first, how much shorter each next one is, and the shortest.
fn intervals(steps: usize) -> (usize, usize, usize) {
    let share = |percent: usize| (steps * percent / 100).max(1);
    (share(22), share(3), share(6))
}

/// The steps, from 0, after which the toolbox checks, each once.
fn art_checkpoints(steps: usize) -> Vec<usize> {
    let mut shares = vec![0.0, 0.22];
    loop {
        let [before, last] = [shares[shares.len() - 2], shares[shares.len() - 1]];
        let next: f64 = last + f64::max(last - before - 0.03, 0.06);
        if next > 1.0 {
            break;
        }
        shares.push(next);
    }
    let mut checkpoints: Vec<usize> = shares.iter().map(|share| (share * steps as f64).ceil() as usize).collect();
    checkpoints.dedup();
    checkpoints
}

impl Apgd {
    /// The number of steps.
    fn last(&self) -> usize {
        check::last(&self.steps) as usize
    }

    /// Writes where an image starts.
    fn start(&self, ball: Ball, origin: &[f32], key: Key, x: &mut [f32]) {
        match self.start {
            Start::Image => {}
            Start::Uniform => ball.random_start(origin, key, x),
            Start::Surface => {
                let mut noise = vec![0.0f32; x.len()];
                let length = match ball.norm {
                    Norm::Linf => {
                        key.fill_uniform(&mut noise);
                        noise.iter_mut().for_each(|z| *z = 2.0 * *z - 1.0);
                        noise.iter().fold(0.0, |most: f64, &z| most.max(f64::from(z.abs())))
                    }
                    Norm::L2 => {
                        key.fill_normal(&mut noise);
                        noise.iter().map(|&z| f64::from(z).powi(2)).sum::<f64>().sqrt()
                    }
                };
                for ((x, &origin), noise) in x.iter_mut().zip(origin).zip(noise) {
                    let step = ball.eps * f64::from(noise) / length.max(f64::MIN_POSITIVE);
                    *x = (f64::from(origin) + step) as f32;
                }
                ball.project(origin, x);
            }
        }
    }

    /// Looks at the iterate that the last step led to, whose gradient this is; goes back to the best where progress
    /// stalled, and answers the gradient to follow.
    fn look(&self, path: &mut Path, slope: &Slope, direction: f64, x: &mut [f32]) -> Slope {
        let loss = direction * slope.loss;
        if path.previous.is_empty() {
            (path.loss, path.checked_loss) = (loss, loss);
            path.set_best(loss, x, &[]);
            path.best_slope = slope.clone();
            return slope.clone();
        }
        path.progress += usize::from(loss > path.loss);
        path.loss = loss;
        if loss > path.best_loss {
            path.set_best(loss, x, &[]);
            path.best_slope = slope.clone();
        }
        path.since += 1;
        if path.since < path.interval {
            return slope.clone();
        }
        let stalled = path.progress as f64 <= RHO * path.interval as f64;
        let stuck = !path.halved && path.checked_loss >= path.best_loss;
        path.halved = stalled || stuck;
        path.checked_loss = path.best_loss;
        let (_, shorter, shortest) = intervals(self.last());
        path.interval = path.interval.saturating_sub(shorter).max(shortest);
        (path.since, path.progress) = (0, 0);
        if !path.halved {
            return slope.clone();
        }
        path.step_size /= 2.0;
        x.copy_from_slice(&path.best);
        path.best_slope.clone()
    }

    /// Looks, as the toolbox does, at the iterate that this step led to, given fresh losses: of the start, and of it.
    fn look_as_art(&self, path: &mut Path, step: usize, [start, loss]: [f64; 2], direction: f64, at: At<'_>) {
        let At { origin, x, checkpoints } = at;
        if step == 1 {
            path.checked_loss = start;
            if loss >= start {
                path.progress = 1;
                path.set_best(loss, x, origin);
            } else {
                let previous = path.previous.clone();
                path.set_best(start, &previous, origin);
            }
            return;
        }
        if direction * loss > direction * path.best_loss {
            path.progress += 1;
            let previous = path.previous.clone();
            path.set_best(loss, x, &previous);
        }
        // The toolbox counts its steps from 0.
        let Some(checkpoint) = checkpoints.iter().position(|&checkpoint| checkpoint == step - 1) else { return };
        let interval = checkpoints[checkpoint] - checkpoints[checkpoint - 1];
        let stalled = (path.progress as f64) < RHO * interval as f64;
        let stuck = path.checked_step_size == path.step_size && path.checked_loss == path.best_loss;
        if stalled || stuck {
            path.step_size /= 2.0;
            path.previous.clone_from(&path.before_best);
            x.copy_from_slice(&path.best);
        }
        path.progress = 0;
        path.checked_step_size = path.step_size;
        path.checked_loss = path.best_loss;
    }

    /// The mean losses of fresh draws; 0 for images that do not move.
    fn rate(&self, ascent: &mut Ascent<'_>, goal: &Goal) -> Result<Vec<f64>> {
        let logits = ascent.draws(self.rating_draws, Purpose::Rating)?;
        let loss = |image: usize, row: &Vec<f64>| {
            self.loss.evaluate(row, goal.classes()[image] as usize, &mut vec![0.0; row.len()]).loss
        };
        let sum = |(image, rows): (usize, &Vec<Vec<f64>>)| rows.iter().map(|row| loss(image, row)).sum::<f64>();
        Ok(logits.iter().enumerate().map(|entry| sum(entry) / self.rating_draws as f64).collect())
    }
}

/// Where an image is.
struct At<'a> {
    origin: &'a [f32],
    x: &'a mut [f32],
    checkpoints: &'a [usize],
}

impl Attack for Apgd {
    fn run(
        &self,
        victim: &Victim<'_>,
        x: &Tensor,
        goal: &Goal,
        keys: &[Key],
        _: Option<Guides<'_>>,
        sink: &mut dyn FnMut(Snapshot) -> Result<()>,
    ) -> Result<()> {
        Entry::check(self).map_err(candle_core::Error::msg)?;
        let mut ascent = Ascent::new(self, Stop::None {}, victim, x, goal, keys)?;
        let (ball, direction) = (ascent.ball(), goal.direction());
        let gated = self.bookkeeping == Bookkeeping::SingleDraw;
        if gated {
            let reached = ascent.verdicts()?;
            ascent.halt(|image| reached[image]);
        }
        ascent.start(|key, origin, x| self.start(ball, origin, key, x));
        let starts = ascent.positions();
        let art = self.schedule == Schedule::Art;
        let start_losses = if art { self.rate(&mut ascent, goal)? } else { vec![] };
        let checkpoints = art_checkpoints(self.last());
        let mut paths = vec![Path::new(self.step_size.value(), intervals(self.last()).0); ascent.count()];
        ascent.run(sink, |ascent| {
            let slopes = ascent.gradient(self.loss, self.eot)?;
            ascent.advance(&mut paths, |image, path, origin, x| {
                let slope = if art { slopes[image].clone() } else { self.look(path, &slopes[image], direction, x) };
                path.ascend(ball, &slope.entries, direction, origin, x);
            });
            if art {
                let (step, losses) = (ascent.step(), self.rate(ascent, goal)?);
                ascent.advance(&mut paths, |image, path, origin, x| {
                    let at = At { origin, x, checkpoints: &checkpoints };
                    self.look_as_art(path, step, [start_losses[image], losses[image]], direction, at);
                });
            }
            if gated && ascent.is_last() {
                let reached = ascent.verdicts()?;
                ascent.advance(&mut paths, |image, _, _, x| {
                    if !reached[image] {
                        x.copy_from_slice(&starts[image]);
                    }
                });
            }
            Ok(())
        })
    }

    fn ball(&self) -> Option<(Norm, &Fraction)> {
        Some((self.norm, &self.eps))
    }

    fn step_size(&self) -> Option<&Fraction> {
        Some(&self.step_size)
    }

    fn steps(&self) -> Vec<usize> {
        self.steps.clone()
    }

    fn cost(&self) -> Cost {
        let (steps, draws) = (check::last(&self.steps), self.eot.draws as u64);
        let ratings = if self.schedule == Schedule::Art { (steps + 1) * self.rating_draws as u64 } else { 0 };
        let verdicts = if self.bookkeeping == Bookkeeping::SingleDraw { 2 } else { 0 };
        Cost { forward: steps * draws + ratings + verdicts, backward: steps * draws }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_on_the_surface_touches_the_ball() {
        let origin = [0.5f32; 30];
        for norm in [Norm::Linf, Norm::L2] {
            let ball = Ball { norm, eps: 0.1 };
            let start = |key| {
                let mut x = origin;
                Apgd { norm, ..Apgd::default() }.start(ball, &origin, Key::root(key), &mut x);
                x
            };
            assert_ne!(start(1), start(2));
            let changes = start(1).map(|x| f64::from(x) - 0.5);
            let length = match norm {
                Norm::Linf => changes.iter().fold(0.0, |most: f64, change| most.max(change.abs())),
                Norm::L2 => changes.iter().map(|change| change * change).sum::<f64>().sqrt(),
            };
            assert!((length - 0.1).abs() < 1e-6, "{norm:?} {length}");
            assert!(changes.iter().any(|&change| change > 0.0) && changes.iter().any(|&change| change < 0.0));
        }
    }

    #[test]
    fn checkpoints_of_a_hundred_steps_are_those_of_the_paper() {
        // Croce and Hein, section 3.1: p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of 100 steps.
        let (mut interval, shorter, shortest) = intervals(100);
        let mut checkpoints = vec![0];
        while checkpoints[checkpoints.len() - 1] + interval <= 100 {
            checkpoints.push(checkpoints[checkpoints.len() - 1] + interval);
            interval = interval.saturating_sub(shorter).max(shortest);
        }
        assert_eq!(checkpoints, [0, 22, 41, 57, 70, 80, 87, 93, 99]);
        // Sums of shares in binary, rounded up: one more here and there.
        let art = art_checkpoints(100);
        assert_eq!(art.len(), checkpoints.len());
        assert!(art.iter().zip(&checkpoints).all(|(art, exact)| (exact..=&(exact + 1)).contains(&art)), "{art:?}");
        assert_eq!(art_checkpoints(3), [0, 1, 2, 3]);
    }

    /// The step sizes after each of these losses of the iterates, the start's first.
    fn steps_after(apgd: &Apgd, losses: &[f64]) -> Vec<f64> {
        let mut path = Path::new(1.0, intervals(apgd.last()).0);
        let mut x = [0.0];
        let look = |(i, &loss): (usize, &f64)| {
            x = [i as f32];
            apgd.look(&mut path, &Slope { entries: vec![1.0], log2: 0, loss }, 1.0, &mut x);
            path.previous = x.to_vec();
            path.step_size
        };
        losses.iter().enumerate().map(look).collect()
    }

    #[test]
    fn three_quarters_of_rises_are_too_few() {
        // Intervals of 8, 7, ... steps: six rises of eight halve the step, seven do not.
        let apgd = Apgd { steps: vec![37], ..Apgd::default() };
        let six = [0.0, 1.0, 2.0, 1.5, 1.7, 1.9, 1.6, 2.1, 2.2];
        assert_eq!(steps_after(&apgd, &six)[7..], [1.0, 0.5]);
        let seven = [0.0, 1.0, 2.0, 1.5, 1.7, 1.9, 1.95, 2.1, 2.2];
        assert_eq!(steps_after(&apgd, &seven)[7..], [1.0, 1.0]);
        // Six rises of the next seven, but no new best.
        let stuck = [&seven[..], &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]].concat();
        assert_eq!(steps_after(&apgd, &stuck)[14..], [1.0, 0.5]);
        // A best loss in time keeps the step; so does a step just halved.
        let saved = [&seven[..], &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 2.3]].concat();
        assert_eq!(steps_after(&apgd, &saved)[15], 1.0);
        let halved = [&six[..], &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]].concat();
        assert_eq!(steps_after(&apgd, &halved)[15], 0.5);
    }

    #[test]
    fn the_toolbox_takes_a_rising_loss_for_progress_in_the_first_step_even_towards_targets() {
        let apgd = Apgd { schedule: Schedule::Art, rating_draws: 1, steps: vec![37], ..Apgd::default() };
        let first = |start, loss| {
            let mut path = Path { previous: vec![7.0], ..Path::new(1.0, 1) };
            let at = At { origin: &[0.0], x: &mut [8.0], checkpoints: &[0, 9] };
            apgd.look_as_art(&mut path, 1, [start, loss], -1.0, at);
            (path.progress, path.best_loss, path.best)
        };
        assert_eq!(first(2.0, 1.0), (0, 2.0, vec![7.0]));
        assert_eq!(first(2.0, 3.0), (1, 3.0, vec![8.0]));
    }

    #[test]
    fn three_quarters_of_new_bests_are_enough_for_the_toolbox() {
        let apgd = Apgd { schedule: Schedule::Art, rating_draws: 1, steps: vec![37], ..Apgd::default() };
        let after = |progress| {
            let best = vec![3.0];
            let mut path = Path { progress, best: best.clone(), before_best: vec![2.0], ..Path::new(1.0, 1) };
            path.best_loss = 5.0;
            let mut x = [8.0];
            let at = At { origin: &[0.0], x: &mut x, checkpoints: &[0, 8] };
            apgd.look_as_art(&mut path, 9, [0.0, 4.0], 1.0, at);
            (path.step_size, x[0], path.progress)
        };
        assert_eq!(after(6), (1.0, 8.0, 0));
        assert_eq!(after(5), (0.5, 3.0, 0));
    }
}
