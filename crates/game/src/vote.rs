//! From the classes of many draws to one decision.
//!
//! A randomised classifier answers with the class of one draw; its users repeat it and reduce the answers (Gao et al.
//! 2022, appendix A.1). Rows keep the draws themselves, so every reduction here can be taken later.

/// How often each class was drawn: `counts(draws)[c]` for class `c`, up to the largest class drawn.
#[must_use]
pub fn counts(draws: &[u16]) -> Vec<u32> {
    let mut counts = vec![0; draws.iter().max().map_or(0, |&largest| usize::from(largest) + 1)];
    for &class in draws {
        counts[usize::from(class)] += 1;
    }
    counts
}

/// The class drawn most often, the smallest on ties (as `scipy.stats.mode`); `None` without draws.
///
/// ```
/// # use game::vote::majority;
/// assert_eq!(majority(&[7, 2, 7, 2, 5]), Some(2));
/// ```
#[must_use]
pub fn majority(draws: &[u16]) -> Option<u16> {
    leader(&counts(draws))
}

/// Whether any draw satisfies `reached`: the adversary wins with one lucky draw.
pub fn any(draws: &[u16], reached: impl Fn(u16) -> bool) -> bool {
    draws.iter().any(|&class| reached(class))
}

/// The class that every draw agrees on; `None` where they differ (the vote abstains) or there are none.
#[must_use]
pub fn all(draws: &[u16]) -> Option<u16> {
    let (&first, rest) = draws.split_first()?;
    rest.iter().all(|&class| class == first).then_some(first)
}

/// The class with the most votes, the smallest on ties; `None` where no class has any.
fn leader(counts: &[u32]) -> Option<u16> {
    let most = *counts.iter().max()?;
    let class = counts.iter().position(|&count| count == most)?;
    (most > 0).then(|| u16::try_from(class).expect("classes are counted by their u16"))
}

/// A majority vote taken draw by draw, which knows when the rest cannot change it.
///
/// ```
/// # use game::vote::Tally;
/// let mut tally = Tally::new(10, 5);
/// tally.push(3);
/// tally.push(3);
/// assert_eq!(tally.decided(), None); // three draws are left for another class
/// tally.push(3);
/// assert_eq!(tally.decided(), Some(3));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    counts: Vec<u32>,
    remaining: u32,
}

impl Tally {
    /// A vote of `draws` draws among the classes `0..classes`.
    #[must_use]
    pub fn new(classes: usize, draws: u32) -> Self {
        Self { counts: vec![0; classes], remaining: draws }
    }

    /// Counts one draw.
    ///
    /// # Panics
    /// If the class is not one of the vote's, or every draw was already counted.
    pub fn push(&mut self, class: u16) {
        assert!(self.remaining > 0, "a vote counts no more draws than it was made for");
        self.counts[usize::from(class)] += 1;
        self.remaining -= 1;
    }

    /// Draws still to come.
    #[must_use]
    pub const fn remaining(&self) -> u32 {
        self.remaining
    }

    /// The majority of all draws, as soon as those still to come cannot change it; `None` before.
    ///
    /// The leader is safe from a challenger who would stay behind with every remaining vote, or would draw level and
    /// lose the tie by having the larger class. Classes without votes are challengers too.
    #[must_use]
    pub fn decided(&self) -> Option<u16> {
        let leader = leader(&self.counts)?;
        let votes = self.counts[usize::from(leader)];
        let safe = |(class, &count): (usize, &u32)| {
            let reach = count + self.remaining;
            reach < votes || reach == votes && class > usize::from(leader)
        };
        let (before, after) = self.counts.split_at(usize::from(leader));
        let others =
            before.iter().enumerate().chain(after.iter().enumerate().skip(1).map(|(i, n)| (before.len() + i, n)));
        others.into_iter().all(safe).then_some(leader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;

    #[test]
    fn the_smallest_class_wins_ties() {
        assert_eq!(majority(&[9, 4, 9, 4]), Some(4));
        assert_eq!(majority(&[9, 4, 9]), Some(9));
        assert_eq!(majority(&[]), None);
        assert_eq!(counts(&[2, 0, 2]), [1, 0, 2]);
    }

    #[test]
    fn unanimity_abstains_and_any_takes_one() {
        assert_eq!((all(&[3, 3]), all(&[3, 1]), all(&[])), (Some(3), None, None));
        assert!(any(&[3, 1], |class| class == 1) && !any(&[3, 3], |class| class == 1));
    }

    /// The majorities of every way a vote can still end.
    fn outcomes(classes: u16, draws: &mut Vec<u16>, total: usize, seen: &mut Vec<u16>) {
        if draws.len() == total {
            seen.extend(majority(draws));
            return;
        }
        for class in 0..classes {
            draws.push(class);
            outcomes(classes, draws, total, seen);
            draws.pop();
        }
    }

    #[test]
    fn a_vote_is_decided_exactly_when_every_continuation_agrees() {
        for (classes, total) in [(1, 3), (2, 7), (3, 6), (4, 5)] {
            let mut prefixes = vec![vec![]];
            while let Some(mut prefix) = prefixes.pop() {
                let mut tally = Tally::new(usize::from(classes), total as u32);
                prefix.iter().for_each(|&class| tally.push(class));
                let mut seen = vec![];
                outcomes(classes, &mut prefix, total, &mut seen);
                // A vote of one class is settled before its first draw, but only the draw names the class.
                let agreed = all(&seen).filter(|_| !prefix.is_empty());
                assert_eq!(tally.decided(), agreed, "{prefix:?} of {total} among {classes}");
                if prefix.len() < total {
                    prefixes.extend((0..classes).map(|class| [prefix.as_slice(), &[class]].concat()));
                }
            }
        }
    }

    #[test]
    fn stopping_early_never_changes_a_long_vote() {
        let mut saved = 0;
        for vote in 0..300 {
            let key = Key::root(17).at(vote);
            // From lopsided to even votes.
            let share = key.at(0).unit();
            let draws: Vec<u16> =
                (1..=500).map(|i| if key.at(i).unit() < share { 4 } else { key.at(i).at(0).below(7) as u16 }).collect();
            let mut tally = Tally::new(7, 500);
            let stop = draws.iter().position(|&class| {
                tally.push(class);
                tally.decided().is_some()
            });
            assert_eq!(tally.decided(), majority(&draws));
            saved += 499 - stop.expect("a full vote is decided");
        }
        assert!(saved > 10_000, "early stopping saved only {saved} of 150,000 draws");
    }
}
