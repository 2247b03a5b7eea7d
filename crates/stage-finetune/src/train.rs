//! The training loop.

use std::{path::Path, time::Instant};

use artifact::FinetuneRow;
use candle_core::Tensor;
use game::{Classifier, Key};
use nets::{
    AdamW, Graph, Network, Trainee, Weights,
    train::{Query, Settings},
};
use stage::{Context, Invalid};

use crate::{
    Keep, Training,
    adversary::Adversary,
    data::{Data, correct},
    init::fault,
    resume::{Resume, State},
    schedule,
    store::{self, Store},
};

/// Everything a run needs that is decided before it starts.
pub(crate) struct Run<'a> {
    pub ctx: &'a Context,
    pub graph: &'a Graph,
    pub training: &'a Training,
    pub data: Data<'a>,
    pub store: Store<'a>,
    pub resume: Resume,
}

/// What one pass over the training images measured.
struct Pass {
    steps: u64,
    loss: f64,
    accuracy: f64,
}

impl Run<'_> {
    /// Trains from where the last run of the same identity was killed, or from `initial`; one row per epoch.
    pub fn train(&self, initial: impl FnOnce() -> anyhow::Result<Weights>) -> anyhow::Result<Vec<FinetuneRow>> {
        let (training, validation) = schedule::split(self.data.images.len(), self.training.validation);
        let mut state = match self.resume.load().filter(|state| self.store.holds(&state.rows)) {
            Some(state) => state,
            None => self.begin(initial()?, &validation)?,
        };
        self.store.prune(&state.rows);
        let spec = self.training.adversarial.as_ref();
        let adversary = spec.map(|spec| Adversary::new(spec, self.data.defense, self.graph, &self.ctx.device));
        self.announce(state.rows.len() as u32 - 1, training.len(), validation.len(), adversary.as_ref());
        let settings = Settings { weight_decay: self.training.weight_decay, ..Settings::default() };
        let mut trainee = Trainee::new(self.graph, &state.network, &self.ctx.device)?;
        let mut optimiser = match state.optimiser.is_empty() {
            true => AdamW::new(settings),
            false => AdamW::restore(settings, &state.optimiser)?,
        };
        while (state.rows.len() as u32) <= self.training.epochs {
            let start = Instant::now();
            let epoch = state.rows.len() as u32;
            let pass = self.pass(epoch, &training, &mut trainee, &mut optimiser, adversary.as_ref())?;
            state.network = trainee.weights()?;
            state.optimiser = optimiser.state()?;
            let row = self.row(epoch, &pass, &state, &validation)?;
            state.rows.push(row);
            mark(&mut state.rows, self.training.keep);
            self.resume.save(&state)?;
            self.store.prune(&state.rows);
            self.report(&state.rows, start.elapsed().as_secs_f64());
        }
        Ok(state.rows)
    }

    /// The state before the first epoch: the initial weights, and how they do on the validation images.
    fn begin(&self, network: Weights, validation: &[usize]) -> anyhow::Result<State> {
        let kept = self.training.keep == Keep::Every;
        let stored = if kept { Some(self.store.save(0, &network)?) } else { None };
        let (weights, sha256) = stored.unzip();
        let validation_correct = self.validate(0, &network, validation)?;
        let row = FinetuneRow {
            weights,
            sha256,
            validation_correct,
            validation_images: validation_correct.map(|_| validation.len() as u32),
            ..store::row(0)
        };
        Ok(State { rows: vec![row], network, optimiser: Weights::new() })
    }

    fn announce(&self, done: u32, training: usize, validation: usize, adversary: Option<&Adversary<'_>>) {
        let epochs = self.training.epochs;
        let left = if done > 0 { format!(", going on after epoch {done}") } else { String::new() };
        let images = u64::from(epochs - done.min(epochs)) * training as u64;
        let attack = adversary.map(|adversary| {
            let (name, cost) = (adversary.name(), adversary.cost());
            format!(", {} forward and {} backward evaluations by {name}", images * cost.forward, images * cost.backward)
        });
        let attack = attack.unwrap_or_default();
        self.ctx.announce(&format!(
            "training: {epochs} epochs x {training} images = {images} gradients of the weights{attack}, {validation} \
             validation images{left}",
        ));
    }

    /// One epoch of optimiser steps.
    fn pass(
        &self,
        epoch: u32,
        training: &[usize],
        trainee: &mut Trainee,
        optimiser: &mut AdamW,
        adversary: Option<&Adversary<'_>>,
    ) -> anyhow::Result<Pass> {
        let order = schedule::order(self.data.seed, epoch, training.len());
        let positions: Vec<usize> = order.into_iter().map(|i| training[i]).collect();
        let rate = schedule::learning_rate(self.training, epoch);
        let start = Instant::now();
        let progress = self.ctx.progress(positions.len() as u64, &format!("epoch {epoch}/{}", self.training.epochs));
        let (mut steps, mut images, mut right, mut sum) = (0, 0, 0, 0.0);
        for batch in positions.chunks(self.training.batch) {
            if self.training.drop_last && batch.len() < self.training.batch {
                break;
            }
            let (x, labels) = self.data.training(epoch, batch, |x, labels, keys| match adversary {
                Some(adversary) => self.attacked(adversary, trainee, &x, labels, keys),
                None => Ok(x),
            })?;
            let Query { loss: value, logits, gradients } = trainee.query(&x.to_device(&self.ctx.device)?, &labels)?;
            if !value.is_finite() {
                return Err(self.diverged(epoch, &format!("the loss of step {} is {value}", steps + 1)));
            }
            optimiser.step(trainee, &gradients, rate)?;
            steps += 1;
            images += batch.len() as u64;
            right += u64::from(correct(&logits, &labels)?);
            sum += value * batch.len() as f64;
            progress.advance(batch.len() as u64);
        }
        self.ctx.time("training_images", images, start.elapsed().as_secs_f64());
        Ok(Pass { steps, loss: sum / images as f64, accuracy: right as f64 / images as f64 })
    }

    /// Training images as an attack on the network as it stands leaves them.
    fn attacked(
        &self,
        adversary: &Adversary<'_>,
        trainee: &Trainee,
        x: &Tensor,
        labels: &[u32],
        keys: &[Key],
    ) -> candle_core::Result<Tensor> {
        let start = Instant::now();
        let (x, queries) = adversary.attack(&trainee.weights()?, x, labels, keys)?;
        self.ctx.time("attack_queries", queries, start.elapsed().as_secs_f64());
        Ok(x)
    }

    /// Stores and validates the weights of an epoch.
    fn row(&self, epoch: u32, pass: &Pass, state: &State, validation: &[usize]) -> anyhow::Result<FinetuneRow> {
        // The same check the weights must pass when they are read.
        let checked = nets::weights::prepare(self.graph, state.network.clone(), Path::new("the trained network"));
        if let Err(error) = checked {
            return Err(match error.is_invalid_numbers() {
                true => self.diverged(epoch, &error.to_string()),
                false => fault(error),
            });
        }
        let (weights, sha256) = self.store.save(epoch, &state.network)?;
        let validation_correct = self.validate(epoch, &state.network, validation)?;
        Ok(FinetuneRow {
            steps: state.rows.last().map_or(0, |row| row.steps) + pass.steps,
            learning_rate: Some(schedule::learning_rate(self.training, epoch)),
            train_loss: Some(pass.loss),
            train_accuracy: Some(pass.accuracy),
            validation_correct,
            validation_images: validation_correct.map(|_| validation.len() as u32),
            weights: Some(weights),
            sha256: Some(sha256),
            ..store::row(epoch)
        })
    }

    fn diverged(&self, epoch: u32, what: &str) -> anyhow::Error {
        let kept = match epoch {
            1 => "nothing was trained yet".to_owned(),
            _ => format!("the weights of epoch {} are kept beside the table", epoch - 1),
        };
        Invalid(format!("epoch {epoch}: training diverged: {what}; {kept}; lower `training.learning_rate`")).into()
    }

    fn validate(&self, epoch: u32, weights: &Weights, positions: &[usize]) -> anyhow::Result<Option<u32>> {
        if positions.is_empty() {
            return Ok(None);
        }
        let start = Instant::now();
        let defended = self.training.defend_validation;
        let network = Network::new(self.graph, weights, &self.ctx.device)?;
        let right =
            evaluate(self.ctx, &network, &self.data, positions, |batch| self.data.validation(epoch, batch, defended))?;
        self.ctx.time("validation_images", positions.len() as u64, start.elapsed().as_secs_f64());
        Ok(Some(right))
    }

    fn report(&self, rows: &[FinetuneRow], seconds: f64) {
        let Some(row) = rows.last() else { return };
        let percent =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{:.1}%", 100.0 * value));
        let validation = row.validation_correct.zip(row.validation_images);
        self.ctx.announce(&format!(
            "epoch {}/{}: loss {:.4}, accuracy {}, validation {}, {seconds:.1} s ({:.0} s left)",
            row.epoch,
            self.training.epochs,
            row.train_loss.unwrap_or(f64::NAN),
            percent(row.train_accuracy),
            percent(validation.map(|(right, all)| f64::from(right) / f64::from(all))),
            seconds * f64::from(self.training.epochs - row.epoch),
        ));
    }
}

/// Counts right answers of a frozen network on the images at `positions`, as `batch` makes them.
pub(crate) fn evaluate(
    ctx: &Context,
    network: &dyn Classifier,
    data: &Data<'_>,
    positions: &[usize],
    batch: impl Fn(&[usize]) -> candle_core::Result<(Tensor, Vec<u32>)>,
) -> anyhow::Result<u32> {
    let (height, width) = data.augment.size(data.images.height, data.images.width);
    let mut right = 0;
    for positions in positions.chunks(trained::batch_of(height * width)) {
        let (x, labels) = batch(positions)?;
        right += correct(&network.logits(&x.to_device(&ctx.device)?, &[])?, &labels)?;
    }
    Ok(right)
}

/// Marks the best epoch, and forgets the weights of those that are not kept.
fn mark(rows: &mut [FinetuneRow], keep: Keep) {
    let last = rows.len() - 1;
    // Of equals the earliest; the network before training does not compete.
    let best = (1..rows.len())
        .filter(|&i| rows[i].validation_correct.is_some())
        .min_by_key(|&i| (std::cmp::Reverse(rows[i].validation_correct), i));
    for (i, row) in rows.iter_mut().enumerate() {
        row.best = Some(i) == best;
        if i != last && !(keep == Keep::Every || keep == Keep::Best && row.best) {
            (row.weights, row.sha256) = (None, None);
        }
    }
}

/// Fails where an epoch would hold no step, or a crop no image.
pub(crate) fn check(training: &Training, data: &Data<'_>) -> Result<(), String> {
    let images = data.images;
    let (train, _) = schedule::split(images.len(), training.validation);
    if train.is_empty() || training.drop_last && train.len() < training.batch {
        return Err(format!(
            "training.batch: {} training images fill no batch of {}; lower it or set `drop_last` = false",
            train.len(),
            training.batch
        ));
    }
    let side = images.height.min(images.width);
    if let Some(crop) = data.augment.random_crop.filter(|&crop| crop as usize > side) {
        return Err(format!(
            "training.augment.random_crop: {crop} pixels do not fit images of {}x{}",
            images.height, images.width
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(correct: &[u32]) -> Vec<FinetuneRow> {
        let row = |(epoch, &correct): (usize, &u32)| FinetuneRow {
            validation_correct: Some(correct),
            weights: Some(format!("epoch-{epoch:03}.safetensors")),
            sha256: Some(String::new()),
            ..store::row(epoch as u32)
        };
        correct.iter().enumerate().map(row).collect()
    }

    fn kept(keep: Keep) -> Vec<usize> {
        let mut rows = rows(&[9, 5, 7, 7, 6]);
        mark(&mut rows, keep);
        assert!(rows[2].best && rows.iter().filter(|row| row.best).count() == 1, "the earliest of the best trained");
        (0..rows.len()).filter(|&i| rows[i].weights.is_some()).collect()
    }

    #[test]
    fn best_last_or_every_epoch_is_kept() {
        assert_eq!(kept(Keep::Best), [2, 4]);
        assert_eq!(kept(Keep::Last), [4]);
        assert_eq!(kept(Keep::Every), [0, 1, 2, 3, 4]);
    }
}
