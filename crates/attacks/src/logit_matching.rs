//! Logit matching: imitating the logits of another image.

use candle_core::{Result, Tensor, bail};
use game::{Defense, Entry, Fraction, Goal, Gradient, Key, Norm, pullback};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    Attack, Cost, Eot, Guides, Mean, Query, Snapshot, Stop, Victim,
    ascent::{Ascent, Batch, Purpose},
    check::{self, budget, number},
    stop::Reading,
};

/// Steps of constant length that bring the logits close to those of another image, on average over normal noise; each
/// is followed by a projection, and the last iterate is the answer.
///
/// Reference: Tramèr et al. 2020, section 9, against the odds test (Roth et al. 2019), as used by Gao et al. 2022: the
/// noise is the attack's own (30/255, noisy pixels clipped to `[0, 1]`), gradients are taken at the noisy points, and
/// the logits to imitate are those of one draw of a guide ([`Guides`]): the first that satisfies the goal, so for labels
/// the first image of the sample, or the first of another class for images of that one's class. A run of fewer steps is
/// the beginning of a longer one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogitMatching {
    /// The norm of the ball and of the steps: signs in l-inf, normalised gradients in l2.
    pub norm: Norm,
    /// The ball's radius, in pixel units of `[0, 1]`.
    pub eps: Fraction,
    /// The length of each step in the same norm and units.
    pub step_size: Fraction,
    /// After how many steps to take a snapshot, ascending; the last is the number of steps.
    pub steps: Vec<usize>,
    /// The standard deviation of the noise, in pixel units of `[0, 1]`.
    pub sigma: Fraction,
    /// Noisy gradients per step.
    pub draws: usize,
    /// Whether the gradient without noise is one more in the mean.
    pub clean: bool,
    /// When to stop early.
    pub stop: Stop,
}

impl Default for LogitMatching {
    fn default() -> Self {
        Self {
            norm: Norm::Linf,
            eps: budget(),
            step_size: number("0.2/255"),
            steps: vec![10],
            sigma: number("30/255"),
            draws: 1,
            clean: true,
            stop: Stop::None {},
        }
    }
}

impl Entry for LogitMatching {
    const ABOUT: &'static str = "brings the logits to those of another image, on average over noise";

    fn check(&self) -> std::result::Result<(), String> {
        check::eps(self.norm, &self.eps)?;
        check::step(self.norm, &self.step_size)?;
        check::steps(&self.steps)?;
        if self.sigma.value() < 0.0 {
            return Err(format!("sigma = {} must be at least 0", self.sigma));
        }
        check::pixels("sigma", &self.sigma)?;
        if self.draws == 0 && !self.clean {
            return Err("draws = 0 must be at least 1 where clean = false: nothing would be averaged".into());
        }
        self.stop.check_fresh()
    }

    fn examples() -> Vec<Self> {
        let vote = Stop::FreshVote { draws: 3, reading: Reading::All };
        vec![
            Self { steps: vec![1, 3], ..Self::default() },
            Self { steps: vec![2], draws: 3, clean: false, step_size: number("1/255"), ..Self::default() },
            Self {
                norm: Norm::L2,
                eps: number("0.5"),
                step_size: number("0.1"),
                draws: 0,
                stop: vote,
                ..Self::default()
            },
        ]
    }

    fn slug(&self, name: &str) -> String {
        check::slug(name, &self.steps, self.draws + usize::from(self.clean))
    }
}

game::vectorised! {
    /// Adds noise and clips to `[0, 1]`.
    fn add_clipped(pixels: &mut [f32], sigma: f64, noise: &[f32]) {
        for (pixel, &noise) in pixels.iter_mut().zip(noise) {
            *pixel = (f64::from(*pixel) + sigma * f64::from(noise)).clamp(0.0, 1.0) as f32;
        }
    }
}

/// The attack's noise before the victim's defense.
#[derive(Debug)]
struct Noisy<'a> {
    sigma: f64,
    defense: &'a dyn Defense,
}

impl Noisy<'_> {
    /// The noisy images, clipped to `[0, 1]`, and the keys of the defense.
    fn noisy(&self, x: &Tensor, keys: &[Key]) -> Result<(Tensor, Vec<Key>)> {
        let mut pixels = x.to_device(&candle_core::Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let size = pixels.len() / keys.len().max(1);
        pixels.par_chunks_mut(size.max(1)).zip(keys).for_each_init(
            || vec![0.0; size],
            |noise, (pixels, key)| {
                key.at(0).fill_normal(noise);
                add_clipped(pixels, self.sigma, noise);
            },
        );
        let noisy = Tensor::from_vec(pixels, x.dims(), &candle_core::Device::Cpu)?.to_device(x.device())?;
        Ok((noisy, keys.iter().map(|key| key.at(1)).collect()))
    }
}

impl Defense for Noisy<'_> {
    fn apply(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        let (noisy, keys) = self.noisy(x, keys)?;
        self.defense.apply(&noisy, &keys)
    }

    fn gradient(&self) -> Gradient {
        Gradient::Exact
    }

    /// The gradient at the noisy points.
    fn exact_pullback(&self, x: &Tensor, keys: &[Key], upstream: &Tensor) -> Result<Tensor> {
        let (noisy, keys) = self.noisy(x, keys)?;
        pullback(self.defense, &noisy, &keys, upstream)
    }
}

impl LogitMatching {
    /// The logits each image is to imitate.
    fn targets(&self, ascent: &mut Ascent<'_>, goal: &Goal, guides: Option<Guides<'_>>) -> Result<Vec<Vec<f64>>> {
        let Some(guides) = guides else { bail!("logit matching needs guides: images whose logits to imitate") };
        let choose = |image| {
            let found = guides.labels.iter().position(|&label| goal.reached(image, label));
            let Some(guide) = found else {
                bail!("no guide satisfies the goal about class {}: add one that does", goal.classes()[image])
            };
            Ok(guide as u32)
        };
        let chosen = (0..ascent.count()).map(choose).collect::<Result<Vec<u32>>>()?;
        let chosen = Tensor::from_vec(chosen, ascent.count(), guides.x.device())?;
        ascent.logits_of(&guides.x.contiguous()?.index_select(&chosen, 0)?)
    }

    /// The mean of the noisy gradients, and of the one without noise.
    fn query(&self, victim: &Victim<'_>, batch: &Batch, targets: &[Vec<f64>]) -> Result<Query> {
        let targets: Vec<Vec<f64>> = batch.images.iter().map(|&image| targets[image].clone()).collect();
        let ask = |defense: &dyn Defense, draws, keys: &[Key]| {
            Victim { defense, ..*victim }.matching(&batch.x, &targets, Eot { draws, mean: Mean::Gradients }, keys)
        };
        let noisy = Noisy { sigma: self.sigma.value(), defense: victim.defense };
        let clean = || {
            let keys: Vec<Key> = batch.keys.iter().map(|key| key.at(Purpose::Clean as u64)).collect();
            ask(victim.defense, 1, &keys)
        };
        match (self.draws, self.clean) {
            (0, _) => clean(),
            (draws, false) => ask(&noisy, draws, &batch.keys),
            (draws, true) => ask(&noisy, draws, &batch.keys)?.mean_with(clean()?),
        }
    }
}

impl Attack for LogitMatching {
    fn run(
        &self,
        victim: &Victim<'_>,
        x: &Tensor,
        goal: &Goal,
        keys: &[Key],
        guides: Option<Guides<'_>>,
        sink: &mut dyn FnMut(Snapshot) -> Result<()>,
    ) -> Result<()> {
        Entry::check(self).map_err(candle_core::Error::msg)?;
        let mut ascent = Ascent::new(self, self.stop, victim, x, goal, keys)?;
        let targets = self.targets(&mut ascent, goal, guides)?;
        let ball = ascent.ball();
        ascent.run(sink, |ascent| {
            let mut slopes = ascent.ask(|victim, batch| self.query(victim, batch, &targets))?;
            ascent.advance(&mut slopes, |_, slope, origin, x| {
                ball.ascend(&slope.entries, -self.step_size.value(), x);
                ball.project(origin, x);
            });
            Ok(())
        })
    }

    fn ball(&self) -> Option<(Norm, &Fraction)> {
        Some((self.norm, &self.eps))
    }

    fn step_size(&self) -> Option<&Fraction> {
        Some(&self.step_size)
    }

    fn needs_guides(&self) -> bool {
        true
    }

    fn steps(&self) -> Vec<usize> {
        self.steps.clone()
    }

    fn cost(&self) -> Cost {
        let (steps, gradients) = (check::last(&self.steps), self.draws as u64 + u64::from(self.clean));
        // One more forward evaluation for the logits to imitate.
        Cost { forward: 1 + steps * (gradients + self.stop.cost()), backward: steps * gradients }
    }
}
