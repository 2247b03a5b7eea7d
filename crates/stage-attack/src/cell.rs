//! One cell: a network, a defense, an attack and a goal on some images.

use std::time::Instant;

use artifact::AttackRow;
use attacks::{Guides, Snapshot, Victim};
use candle_core::Tensor;
use game::{Key, Norm, Phase};
use stage::{Context, Invalid, Progress, images::Images};
use trained::Trained;

use crate::{
    Params, Stop, Votes,
    detect::Fitted,
    metered::Metered,
    votes::{Ballot, Poll},
};

/// Rounding that a perturbation may exceed its budget by, relative and absolute.
const SLACK: f64 = 1e-6;

/// What a cell is made of.
pub(crate) struct Cell<'a> {
    pub params: &'a Params,
    pub ctx: &'a Context,
    pub trained: &'a Trained,
    pub detector: Option<&'a Fitted>,
    /// The first image of each class of the whole sample, for attacks that imitate other images.
    pub guides: Option<&'a Images>,
}

/// The distance between an image and its origin, in pixel units.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Distance {
    linf: f64,
    l2: f64,
}

impl Cell<'_> {
    /// Whether this is the attack that changes nothing: the one that also records the votes before.
    fn is_control(&self) -> bool {
        self.params.attack.build().ball().is_none()
    }

    /// Whether all draws of an image are alike.
    fn is_certain(&self) -> bool {
        self.params.defense.name() == "none" && !self.trained.is_stochastic && self.detector.is_none()
    }

    /// How votes are taken: in full where their logits are averaged, or a detector judges each.
    fn votes(&self) -> Votes {
        let stop =
            if self.params.keep_logits || self.detector.is_some() { Stop::Never } else { self.params.votes.stop };
        Votes { stop, ..self.params.votes }
    }

    /// Votes per image.
    fn polls(&self) -> u64 {
        self.params.attack.build().steps().len() as u64 + u64::from(self.is_control())
    }

    /// Forward evaluations of the network for this many images at most, by the attack and by the votes.
    pub fn evaluations(&self, images: u64) -> u64 {
        let cost = self.params.attack.build().cost();
        images * (cost.forward + self.polls() * self.evaluations_per_poll())
    }

    /// Forward evaluations of the network by one vote about one image at most.
    fn evaluations_per_poll(&self) -> u64 {
        u64::from(self.params.votes.draws) * (1 + self.detector.map_or(0, Fitted::draws))
    }

    /// Says what the cell will cost.
    pub fn announce(&self, images: u64) {
        let cost = self.params.attack.build().cost();
        let votes = images * self.polls() * u64::from(self.params.votes.draws);
        let detector =
            self.detector.map(|detector| format!(", the detector evaluating {} times each", detector.draws()));
        self.ctx.announce(&format!(
            "{} against {} on {images} images: {} forward and {} backward evaluations, and up to {votes} votes{}",
            self.params.attack.name(),
            self.params.defense.name(),
            images * cost.forward,
            images * cost.backward,
            detector.unwrap_or_default(),
        ));
    }

    /// Says how fast it was.
    pub fn report(&self) {
        for row in self.ctx.timing().iter().filter(|row| row.count > 0 && row.seconds > 0.0) {
            let rate = row.count as f64 / row.seconds;
            self.ctx.announce(&format!("{}: {} in {:.1} s, {rate:.1} per second", row.work, row.count, row.seconds));
        }
    }

    /// Fails if an image is outside its ball or its box: no success there counts.
    ///
    /// An attack that may leave its ball fails where it does; the report tells by the distance.
    fn check(&self, id: u32, distance: Distance, x: &[f32]) -> Result<(), Invalid> {
        let attack = self.params.attack.build();
        let (measured, budget) = match attack.ball() {
            Some(_) if !attack.stays_inside() => (0.0, 0.0),
            Some((Norm::Linf, eps)) => (distance.linf, eps.value()),
            Some((Norm::L2, eps)) => (distance.l2, eps.value()),
            None => (distance.linf, 0.0),
        };
        let inside = measured <= budget * (1.0 + SLACK) + if budget > 0.0 { SLACK } else { 0.0 };
        if !inside || !x.iter().all(|x| (0.0..=1.0).contains(x)) {
            let text = format!("image {id}: the attack moved it by {measured}, at most {budget} within [0, 1]");
            return Err(Invalid(format!("{text}; this is a bug of the attack")));
        }
        Ok(())
    }

    /// The rows of some images, image after image.
    pub fn attack(&self, images: &Images, batch: usize, progress: &Progress) -> anyhow::Result<Vec<AttackRow>> {
        let metered = Metered { network: self.trained.network.as_ref(), progress };
        let victim = Victim { net: self.trained.network.as_ref(), defense: self.params.defense.build(), batch };
        let chunk = Chunk { cell: self, images, x: images.tensor()?, victim };
        let snapshots = chunk.snapshots(&Victim { net: &metered, ..victim })?;
        let before = snapshots.iter().filter(|_| self.is_control()).map(|snapshot| (Phase::Before, snapshot));
        let mut columns = Vec::new();
        for (phase, snapshot) in before.chain(snapshots.iter().map(|snapshot| (Phase::After, snapshot))) {
            columns.push(chunk.rows(phase, snapshot)?.into_iter());
            progress.advance(images.len() as u64 * self.evaluations_per_poll());
        }
        // From one list per snapshot to one per image.
        Ok((0..images.len()).flat_map(|_| columns.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>()).collect())
    }
}

/// Some images of a cell, attacked side by side.
struct Chunk<'a> {
    cell: &'a Cell<'a>,
    images: &'a Images,
    x: Tensor,
    victim: Victim<'a>,
}

impl Chunk<'_> {
    /// Runs the attack.
    fn snapshots(&self, victim: &Victim<'_>) -> anyhow::Result<Vec<Snapshot>> {
        let start = Instant::now();
        let params = self.cell.params;
        let goal = params.goal.of(&self.images.labels);
        let mut snapshots = Vec::new();
        let guides = self.cell.guides.map(|guides| anyhow::Ok((guides.tensor()?, &guides.labels))).transpose()?;
        let guides = guides.as_ref().map(|(x, labels)| Guides { x, labels });
        params.attack.build().run(victim, &self.x, &goal, &self.keys(Phase::Attack), guides, &mut |snapshot| {
            snapshots.push(snapshot);
            Ok(())
        })?;
        let queries = |snapshot: &Snapshot| snapshot.forward_queries.iter().sum();
        self.cell.ctx.time("attack_queries", snapshots.last().map_or(0, queries), start.elapsed().as_secs_f64());
        Ok(snapshots)
    }

    /// Votes about a snapshot: one row per image.
    fn rows(&self, phase: Phase, snapshot: &Snapshot) -> anyhow::Result<Vec<AttackRow>> {
        let start = Instant::now();
        let mut keys = self.keys(phase);
        if phase == Phase::After {
            keys.iter_mut().for_each(|key| *key = key.at(snapshot.step as u64));
        }
        let Cell { detector, .. } = *self.cell;
        let poll = Poll { victim: self.victim, votes: self.cell.votes(), alike: self.cell.is_certain(), detector };
        let (ballots, evaluations) = poll.cast(&snapshot.x, &keys)?;
        self.cell.ctx.time("votes", evaluations, start.elapsed().as_secs_f64());
        ballots.into_iter().enumerate().map(|(i, ballot)| self.row(i, phase, snapshot, ballot)).collect()
    }

    /// The key of every image in a phase.
    fn keys(&self, phase: Phase) -> Vec<Key> {
        let key = Key::root(self.cell.params.seed).phase(phase);
        self.images.ids.iter().map(|&id| key.image(u64::from(id))).collect()
    }

    fn row(&self, i: usize, phase: Phase, snapshot: &Snapshot, ballot: Ballot) -> anyhow::Result<AttackRow> {
        let (images, params) = (self.images, self.cell.params);
        let pixels = |x: &Tensor| x.get(i)?.flatten_all()?.to_vec1::<f32>();
        let (from, to) = (pixels(&self.x)?, pixels(&snapshot.x)?);
        let distance = Distance::between(&from, &to);
        self.cell.check(images.ids[i], distance, &to)?;
        let delta = || to.iter().zip(&from).map(|(to, from)| to - from).collect();
        Ok(AttackRow {
            id: images.ids[i],
            label: images.labels[i],
            target: params.goal.target(),
            phase: if phase == Phase::Before { "before" } else { "after" }.to_owned(),
            step: snapshot.step as u32,
            votes: ballot.votes,
            flags: ballot.flags,
            mean_logits: params.keep_logits.then_some(ballot.mean_logits),
            mean_probabilities: params.keep_logits.then_some(ballot.mean_probabilities),
            loss: snapshot.loss[i],
            linf: distance.linf,
            l2: distance.l2,
            zero_gradient: snapshot.zero_gradient[i],
            non_finite: snapshot.non_finite[i],
            forward_queries: snapshot.forward_queries[i],
            backward_queries: snapshot.backward_queries[i],
            delta: params.keep_delta.then(delta),
        })
    }
}

impl Distance {
    fn between(from: &[f32], to: &[f32]) -> Self {
        let changes = || to.iter().zip(from).map(|(&to, &from)| f64::from(to) - f64::from(from));
        // Once a NaN, always a NaN.
        let larger = |most: f64, change: f64| if change.abs() > most || change.is_nan() { change.abs() } else { most };
        let linf = changes().fold(0.0, larger);
        Self { linf, l2: changes().map(|change| change * change).sum::<f64>().sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_is_the_largest_and_the_euclidean_and_forgets_no_nan() {
        let distance = Distance::between(&[0.0, 0.5, 1.0], &[0.25, 0.5, 0.5]);
        assert_eq!(distance, Distance { linf: 0.5, l2: 0.3125f64.sqrt() });
        let distance = Distance::between(&[0.0, 0.5, 1.0], &[f32::NAN, 0.5, 0.5]);
        assert!(distance.linf.is_nan() && distance.l2.is_nan());
    }
}
