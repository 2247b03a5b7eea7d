//! Asking a defended network for its opinion, often enough to settle a vote.

use attacks::Victim;
use candle_core::{Device, Tensor};
use game::{
    Key,
    vote::{self, Tally},
};
use stage::Invalid;

use crate::{Stop, Votes, detect::Fitted};

/// The recorded vote about one image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ballot {
    /// The class of every draw, in order, up to the one that settled the vote.
    pub votes: Vec<u16>,
    /// Whether the detector flagged the image in each of these draws; nothing without a detector.
    pub flags: Option<Vec<bool>>,
    /// Mean of the drawn logits.
    pub mean_logits: Vec<f32>,
    /// Mean of the drawn probabilities.
    pub mean_probabilities: Vec<f32>,
}

/// A defended network, and how it is asked.
#[derive(Clone, Copy)]
pub(crate) struct Poll<'a> {
    pub victim: Victim<'a>,
    pub votes: Votes,
    /// Whether all draws of an image are alike, so that one stands for all.
    pub alike: bool,
    /// What looks at the image of every draw.
    pub detector: Option<&'a Fitted>,
}

/// One image's vote so far.
struct Count {
    votes: Vec<u16>,
    flags: Option<Vec<bool>>,
    tally: Tally,
    logits: Vec<f64>,
    probabilities: Vec<f64>,
    settled: bool,
}

impl Poll<'_> {
    /// Votes about the images `(n, c, h, w)` on the CPU; draw `d` of image `i` has the key `keys[i].at(d)`. Answers
    /// with the ballots and the number of evaluations of the network.
    ///
    /// Draws are evaluated in rounds: every image that is not settled contributes the fewest draws that could settle
    /// it. So no draw is wasted, and the votes are those of asking one draw after the other.
    pub fn cast(&self, x: &Tensor, keys: &[Key]) -> anyhow::Result<(Vec<Ballot>, u64)> {
        let classes = self.victim.net.classes();
        let new = || Count {
            votes: Vec::new(),
            flags: self.detector.map(|_| Vec::new()),
            tally: Tally::new(classes, self.votes.draws),
            logits: vec![0.0; classes],
            probabilities: vec![0.0; classes],
            settled: false,
        };
        let mut counts: Vec<Count> = keys.iter().map(|_| new()).collect();
        let mut evaluations = 0;
        loop {
            let round = self.round(&counts);
            if round.is_empty() {
                let ballots = counts.into_iter().map(Count::ballot).collect();
                return Ok((ballots, evaluations));
            }
            for draws in round.chunks(self.victim.batch) {
                evaluations += draws.len() as u64 * (1 + self.detector.map_or(0, Fitted::draws));
                for (&(image, _), answer) in draws.iter().zip(self.ask(x, keys, draws)?) {
                    let repeats = if self.alike { self.votes.draws } else { 1 };
                    (0..repeats).try_for_each(|_| counts[image].take(&answer, self.votes.stop))?;
                }
            }
        }
    }

    /// The next draws, as pairs of image and draw.
    fn round(&self, counts: &[Count]) -> Vec<(usize, u64)> {
        let open = counts.iter().enumerate().filter(|(_, count)| !count.settled);
        open.flat_map(|(image, count)| {
            let drawn = count.votes.len() as u64;
            let more = if self.alike { 1 } else { count.fewest(self.votes.stop) };
            (drawn..drawn + u64::from(more)).map(move |draw| (image, draw))
        })
        .collect()
    }

    /// Answers to some draws; the detector has the child 2 of a draw's key.
    fn ask(&self, x: &Tensor, keys: &[Key], draws: &[(usize, u64)]) -> anyhow::Result<Vec<Answer>> {
        let images: Vec<u32> = draws.iter().map(|&(image, _)| image as u32).collect();
        let keys: Vec<Key> = draws.iter().map(|&(image, draw)| keys[image].at(draw)).collect();
        let x = x.index_select(&Tensor::new(images, x.device())?, 0)?;
        let Victim { net, batch, .. } = self.victim;
        let logits = self.victim.predict(&x, &keys)?.to_device(&Device::Cpu)?;
        let keys: Vec<Key> = keys.iter().map(|key| key.at(2)).collect();
        let flags = self.detector.map(|detector| detector.flags(net, &x, &logits, &keys, batch)).transpose()?;
        let answers = logits.to_vec2()?.into_iter().enumerate();
        Ok(answers.map(|(i, logits)| Answer { logits, flag: flags.as_ref().map(|flags| flags[i]) }).collect())
    }
}

/// The answer to one draw.
struct Answer {
    logits: Vec<f32>,
    flag: Option<bool>,
}

impl Count {
    /// Counts one draw, unless the vote is settled.
    fn take(&mut self, Answer { logits, flag }: &Answer, stop: Stop) -> Result<(), Invalid> {
        if self.settled {
            return Ok(());
        }
        if let Some(logit) = logits.iter().find(|logit| !logit.is_finite()) {
            return Err(Invalid(format!("the network answers with a logit of {logit}: its weights are no good")));
        }
        let class = (1..logits.len()).fold(0, |best, class| if logits[class] > logits[best] { class } else { best });
        self.votes.push(class as u16);
        self.tally.push(class as u16);
        self.flags.iter_mut().for_each(|flags| flags.extend(flag));
        self.logits.iter_mut().zip(logits).for_each(|(sum, &logit)| *sum += f64::from(logit));
        self.probabilities.iter_mut().zip(softmax(logits, class)).for_each(|(sum, p)| *sum += p);
        self.settled = self.tally.remaining() == 0 || stop == Stop::Majority && self.tally.decided().is_some();
        Ok(())
    }

    /// The fewest further draws after which the vote can be settled: those the leader needs to be out of reach if it
    /// gets them all.
    fn fewest(&self, stop: Stop) -> u32 {
        let remaining = self.tally.remaining();
        if stop == Stop::Never {
            return remaining;
        }
        let mut counts = vote::counts(&self.votes);
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let (first, second) = (counts.first().unwrap_or(&0), counts.get(1).unwrap_or(&0));
        (second + remaining).saturating_sub(*first).div_ceil(2).clamp(1, remaining)
    }

    fn ballot(self) -> Ballot {
        let draws = self.votes.len().max(1) as f64;
        let mean = |sums: Vec<f64>| sums.into_iter().map(|sum| (sum / draws) as f32).collect();
        Ballot {
            votes: self.votes,
            flags: self.flags,
            mean_logits: mean(self.logits),
            mean_probabilities: mean(self.probabilities),
        }
    }
}

/// Probabilities of finite logits, of which that of `class` is the largest.
fn softmax(logits: &[f32], class: usize) -> impl Iterator<Item = f64> {
    let odds = move |&logit: &f32| (f64::from(logit) - f64::from(logits[class])).exp();
    let sum: f64 = logits.iter().map(odds).sum();
    logits.iter().map(move |logit| odds(logit) / sum)
}

#[cfg(test)]
mod tests {
    use game::{Classifier, Defense, Gradient};

    use super::*;

    /// Draws a class by itself: class `c` with a probability that the image's first pixel skews.
    struct Dice {
        classes: usize,
        calls: std::sync::atomic::AtomicU64,
    }

    impl Classifier for Dice {
        fn classes(&self) -> usize {
            self.classes
        }
        fn device(&self) -> &Device {
            &Device::Cpu
        }
        fn logits(&self, x: &Tensor, _: &[Key]) -> candle_core::Result<Tensor> {
            self.calls.fetch_add(x.dim(0)? as u64, std::sync::atomic::Ordering::Relaxed);
            // The defense below left a uniform number in every image.
            let drawn = x.flatten_all()?.to_vec1::<f32>()?;
            let rows: Vec<f32> = drawn
                .iter()
                .flat_map(|&u| {
                    let class = (u * u * self.classes as f32) as usize;
                    (0..self.classes).map(move |c| if c == class { 1.0 + u } else { 0.0 })
                })
                .collect();
            Tensor::from_vec(rows, (drawn.len(), self.classes), &Device::Cpu)
        }
    }

    #[derive(Debug)]
    struct Uniform;

    impl Defense for Uniform {
        fn apply(&self, x: &Tensor, keys: &[Key]) -> candle_core::Result<Tensor> {
            Tensor::from_vec(keys.iter().map(|key| key.unit() as f32).collect::<Vec<_>>(), x.dims(), &Device::Cpu)
        }
        fn gradient(&self) -> Gradient {
            Gradient::Identity
        }
    }

    fn cast(classes: usize, draws: u32, stop: Stop, batch: usize, images: usize) -> (Vec<Ballot>, u64) {
        let net = Dice { classes, calls: 0.into() };
        let victim = Victim { net: &net, defense: &Uniform, batch };
        let x = Tensor::zeros((images, 1, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let keys: Vec<Key> = (0..images as u64).map(|i| Key::root(4).at(i)).collect();
        let result =
            Poll { victim, votes: Votes { draws, stop }, alike: false, detector: None }.cast(&x, &keys).unwrap();
        assert_eq!(result.1, net.calls.into_inner());
        result
    }

    #[test]
    fn stopping_early_truncates_the_full_vote_where_it_is_decided() {
        for (classes, draws) in [(2, 1), (2, 7), (3, 20), (5, 101)] {
            let (full, all) = cast(classes, draws, Stop::Never, 16, 40);
            let (early, some) = cast(classes, draws, Stop::Majority, 16, 40);
            assert_eq!(all, u64::from(draws) * 40);
            assert_eq!(some, early.iter().map(|ballot| ballot.votes.len() as u64).sum::<u64>(), "no draw is wasted");
            for (full, early) in full.iter().zip(&early) {
                assert_eq!(full.votes.len(), draws as usize);
                assert!(full.votes.starts_with(&early.votes));
                assert_eq!(vote::majority(&full.votes), vote::majority(&early.votes));
                // Not one draw later than asking them one by one.
                let mut tally = Tally::new(classes, draws);
                let stop = full.votes.iter().position(|&class| {
                    tally.push(class);
                    tally.decided().is_some()
                });
                assert_eq!(early.votes.len(), stop.unwrap() + 1);
            }
        }
    }

    #[test]
    fn neither_batch_nor_neighbours_matter() {
        let (ballots, _) = cast(4, 33, Stop::Majority, 16, 10);
        assert_eq!(cast(4, 33, Stop::Majority, 1, 10).0, ballots);
        assert_eq!(cast(4, 33, Stop::Majority, 1000, 10).0, ballots);
        assert_eq!(cast(4, 33, Stop::Majority, 16, 3).0, ballots[..3]);
        assert!(ballots.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn means_are_over_the_draws_there_are() {
        let (ballots, _) = cast(2, 9, Stop::Never, 4, 1);
        let drawn: Vec<f64> = (0..9).map(|d| f64::from(Key::root(4).at(0).at(d).at(0).unit() as f32)).collect();
        let mean = |class: usize| {
            let logits = drawn.iter().map(|u| if (u * u * 2.0) as usize == class { 1.0 + u } else { 0.0 });
            logits.sum::<f64>() / 9.0
        };
        for class in 0..2 {
            assert!((f64::from(ballots[0].mean_logits[class]) - mean(class)).abs() < 1e-6);
        }
        // One logit is 1 + u, the other 0.
        let won = |u: &f64| 1.0 / (1.0 + (-1.0 - u).exp());
        let first =
            drawn.iter().map(|u| if (u * u * 2.0) as usize == 0 { won(u) } else { 1.0 - won(u) }).sum::<f64>() / 9.0;
        for (found, expected) in ballots[0].mean_probabilities.iter().zip([first, 1.0 - first]) {
            assert!((f64::from(*found) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn one_draw_stands_for_all_where_they_are_alike() {
        struct Fixed;
        impl Classifier for Fixed {
            fn classes(&self) -> usize {
                3
            }
            fn device(&self) -> &Device {
                &Device::Cpu
            }
            fn logits(&self, x: &Tensor, _: &[Key]) -> candle_core::Result<Tensor> {
                Tensor::new(&[[0f32, 2.0, 1.0]], &Device::Cpu)?.repeat((x.dim(0)?, 1))
            }
        }
        let identity = defenses::Identity::default();
        let x = Tensor::zeros((2, 1, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let keys = [Key::root(0), Key::root(1)];
        for stop in [Stop::Majority, Stop::Never] {
            let victim = Victim { net: &Fixed, defense: &identity, batch: 8 };
            let poll = Poll { victim, votes: Votes { draws: 10, stop }, alike: false, detector: None };
            let (all, evaluations) = poll.cast(&x, &keys).unwrap();
            assert_eq!(all[0].votes.len(), if stop == Stop::Never { 10 } else { 6 });
            let (one, once) = Poll { alike: true, ..poll }.cast(&x, &keys).unwrap();
            assert_eq!((one, once), (all, 2));
            assert!(once < evaluations);
        }
    }

    #[test]
    fn broken_logits_are_refused() {
        struct Broken;
        impl Classifier for Broken {
            fn classes(&self) -> usize {
                2
            }
            fn device(&self) -> &Device {
                &Device::Cpu
            }
            fn logits(&self, _: &Tensor, _: &[Key]) -> candle_core::Result<Tensor> {
                Tensor::new(&[[0f32, f32::NAN]], &Device::Cpu)
            }
        }
        let victim = Victim { net: &Broken, defense: &Uniform, batch: 8 };
        let x = Tensor::zeros((1, 1, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = Poll { victim, votes: Votes::default(), alike: false, detector: None }
            .cast(&x, &[Key::root(0)])
            .unwrap_err();
        assert!(error.is::<Invalid>(), "{error}");
    }
}
