//! What happened to each image, and the rates over all of them.

use artifact::AttackRow;
use game::wilson;

use crate::{Quantity, decide::Decision};

/// What is put to the vote after the fresh votes on the clean image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// The attacked image.
    Attack = 0,
    /// The clean image again.
    Zero = 1,
    /// The image with uniform noise in the adversary's ball.
    Noise = 2,
}

/// One image in one cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub id: u32,
    before: Decision,
    after: [Decision; 3],
    /// Whether the target is the image's own class: no success counts it.
    is_own: bool,
    /// Draws before the attack that are answered as the image without the defense, and all that are compared; none where
    /// nobody asked without the defense.
    alike: Option<(u64, u64)>,
    forward: u64,
    backward: u64,
    zero_gradient: Option<f64>,
    non_finite: u64,
}

/// A rate with what it was counted from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    pub numerator: u64,
    pub denominator: u64,
    /// The numbers behind the interval: images, even where draws are counted.
    images: u64,
}

impl Outcome {
    /// `row` is the attack's; decisions `after` are those of [`After`], in its order; of `alike` draws are counted.
    pub(crate) const fn new(
        row: &AttackRow,
        before: Decision,
        after: [Decision; 3],
        alike: Option<(u64, u64)>,
    ) -> Self {
        Self {
            id: row.id,
            before,
            after,
            is_own: matches!(row.target, Some(target) if target == row.label),
            alike,
            forward: row.forward_queries,
            backward: row.backward_queries,
            zero_gradient: row.zero_gradient,
            non_finite: row.non_finite,
        }
    }

    /// What a quantity says about this image: nothing where it does not count it, or counts draws instead.
    pub(crate) fn judged(&self, quantity: Quantity, after: After) -> Option<bool> {
        let (before, after) = (self.before, self.after[after as usize]);
        match quantity {
            Quantity::BenignAccuracy => Some(before.correct),
            Quantity::AttackSuccessRate | Quantity::CommonAttackSuccessRate => self.counts().then_some(after.reached),
            Quantity::AttackedError => Some(after.reached),
            Quantity::AttackedAccuracy => Some(after.correct || after.flagged),
            Quantity::RobustAccuracy => Some(before.correct && (after.correct || after.flagged)),
            Quantity::SoftAttackSuccessRate | Quantity::InvarianceRate => None,
        }
    }

    /// Whether the adversary had something to win here: an objective that was not satisfied, and not the image's own class.
    const fn counts(&self) -> bool {
        !self.before.reached && !self.is_own
    }

    /// Whether the attack did what the best parameters are chosen by: it turned an image or, where all images are
    /// counted, has it its way.
    fn won(&self, quantity: Quantity) -> bool {
        let by = if quantity == Quantity::AttackedError { quantity } else { Quantity::AttackSuccessRate };
        self.judged(by, After::Attack) == Some(true)
    }
}

impl Rate {
    const fn of_images(numerator: u64, denominator: u64) -> Self {
        Self { numerator, denominator, images: denominator }
    }

    /// The rate; nothing if there was nothing to count.
    pub(crate) fn value(&self) -> Option<f64> {
        (self.denominator > 0).then(|| self.numerator as f64 / self.denominator as f64)
    }

    /// The Wilson interval at 95%.
    ///
    /// Draws of one image are not independent: where draws are counted, the interval is that of as many images with
    /// the same rate, which is never too narrow.
    pub(crate) fn interval(&self) -> Option<(f64, f64)> {
        let value = self.value()?;
        Some(if self.images == self.denominator {
            wilson(self.numerator, self.denominator)
        } else {
            game::wilson_rate(value, self.images as f64)
        })
    }
}

/// One quantity over images; `None` where single draws are wanted that votes which stopped early do not have, or that
/// nothing can be compared with.
pub(crate) fn rate(quantity: Quantity, images: &[Outcome], after: After) -> Option<Rate> {
    match quantity {
        Quantity::SoftAttackSuccessRate => {
            return of_draws(images.iter().filter(|image| image.counts()), |image| image.after[after as usize].draws);
        }
        Quantity::InvarianceRate => return of_draws(images.iter(), |image| image.alike),
        _ => {}
    }
    let judged: Vec<bool> = images.iter().filter_map(|image| image.judged(quantity, after)).collect();
    Some(Rate::of_images(judged.iter().filter(|&&hit| hit).count() as u64, judged.len() as u64))
}

/// Draws that count among all draws.
fn of_draws<'a>(
    images: impl Iterator<Item = &'a Outcome>,
    draws: impl Fn(&Outcome) -> Option<(u64, u64)>,
) -> Option<Rate> {
    let mut rate = Rate::of_images(0, 0);
    for image in images {
        let (hits, draws) = draws(image)?;
        rate.numerator += hits;
        rate.denominator += draws;
        rate.images += 1;
    }
    Some(rate)
}

/// Forward and backward evaluations per image.
pub(crate) fn queries(images: &[Outcome]) -> Option<(f64, f64)> {
    let mean = |of: fn(&Outcome) -> u64| images.iter().map(of).sum::<u64>() as f64 / images.len() as f64;
    (!images.is_empty()).then(|| (mean(|image| image.forward), mean(|image| image.backward)))
}

/// Mean share of gradient entries that were exactly zero, and all gradient entries that were not finite.
pub(crate) fn gradients(images: &[Outcome]) -> (Option<f64>, u64) {
    let shares: Vec<f64> = images.iter().filter_map(|image| image.zero_gradient).collect();
    let mean = (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64);
    (mean, images.iter().map(|image| image.non_finite).sum())
}

/// The candidate with the most successes (the first on ties) among the images at positions that satisfy `of`.
pub(crate) fn best(candidates: &[Vec<Outcome>], quantity: Quantity, of: impl Fn(usize) -> bool) -> usize {
    let won = |&(i, image): &(usize, &Outcome)| of(i) && image.won(quantity);
    let wins = |images: &[Outcome]| images.iter().enumerate().filter(won).count();
    (0..candidates.len()).max_by_key(|&i| (wins(&candidates[i]), std::cmp::Reverse(i))).unwrap_or(0)
}

/// Two-fold cross-fitting: images at odd positions under the candidate that is best at even ones, and the other way
/// round. Also the candidates chosen, at even and at odd positions.
pub(crate) fn cross_fit(candidates: &[Vec<Outcome>], quantity: Quantity) -> (Vec<Outcome>, [usize; 2]) {
    let chosen = [best(candidates, quantity, |i| i % 2 == 0), best(candidates, quantity, |i| i % 2 == 1)];
    let images = candidates.first().map_or(0, Vec::len);
    ((0..images).map(|i| candidates[chosen[1 - i % 2]][i]).collect(), chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(correct: bool, reached: bool, draws: u64) -> Decision {
        Decision { correct, reached, flagged: false, draws: Some((draws, 4)) }
    }

    /// Untargeted: reached is not correct.
    fn image(before: bool, after: bool, zero: bool, noise: bool, draws: u64) -> Outcome {
        let untargeted = |correct: bool| decision(correct, !correct, draws);
        Outcome {
            id: 0,
            before: untargeted(before),
            after: [untargeted(after), untargeted(zero), untargeted(noise)],
            is_own: false,
            alike: None,
            forward: 6,
            backward: 5,
            zero_gradient: Some(0.25),
            non_finite: 1,
        }
    }

    fn counted(quantity: Quantity, images: &[Outcome], after: After) -> (u64, u64) {
        let rate = rate(quantity, images, after).unwrap();
        (rate.numerator, rate.denominator)
    }

    #[test]
    fn every_quantity_counts_its_own_images() {
        let images = [
            image(true, false, true, true, 4),
            image(true, false, true, false, 3),
            image(true, true, true, true, 1),
            image(true, false, false, true, 2),
            image(false, false, false, false, 4),
            image(false, true, true, true, 0),
        ];
        assert_eq!(counted(Quantity::BenignAccuracy, &images, After::Attack), (4, 6));
        assert_eq!(counted(Quantity::AttackSuccessRate, &images, After::Attack), (3, 4));
        assert_eq!(counted(Quantity::AttackSuccessRate, &images, After::Zero), (1, 4));
        assert_eq!(counted(Quantity::AttackSuccessRate, &images, After::Noise), (1, 4));
        assert_eq!(counted(Quantity::RobustAccuracy, &images, After::Attack), (1, 6));
        assert_eq!(counted(Quantity::RobustAccuracy, &images, After::Zero), (3, 6));
        assert_eq!(counted(Quantity::SoftAttackSuccessRate, &images, After::Attack), (10, 16));
        assert_eq!(queries(&images), Some((6.0, 5.0)));
        assert_eq!(gradients(&images), (Some(0.25), 6));
    }

    #[test]
    fn a_targeted_attack_keeps_images_that_were_wrong_but_not_of_the_target() {
        let after = |correct, reached| [decision(correct, reached, 0); 3];
        let with = |before, after| Outcome { before, after, ..image(true, true, true, true, 0) };
        let images = [
            with(decision(false, false, 0), after(false, true)),
            with(decision(false, true, 0), after(false, true)),
            with(decision(true, false, 0), after(false, false)),
            // Two images of the target's class: right, and wrong before the attack made it right.
            Outcome { is_own: true, ..with(decision(true, false, 0), after(true, false)) },
            Outcome { is_own: true, ..with(decision(false, false, 0), after(true, false)) },
        ];
        assert_eq!(counted(Quantity::AttackSuccessRate, &images, After::Attack), (1, 2));
        assert_eq!(counted(Quantity::BenignAccuracy, &images, After::Attack), (2, 5));
        assert_eq!(counted(Quantity::RobustAccuracy, &images, After::Attack), (1, 5));
        assert_eq!(counted(Quantity::AttackedError, &images, After::Attack), (2, 5));
        assert_eq!(counted(Quantity::AttackedAccuracy, &images, After::Attack), (2, 5));
    }

    #[test]
    fn draws_are_judged_as_sure_as_their_images_are_many() {
        let images = [image(true, false, true, true, 3), image(true, false, true, true, 3)];
        let soft = rate(Quantity::SoftAttackSuccessRate, &images, After::Attack).unwrap();
        assert_eq!((soft.numerator, soft.denominator, soft.value()), (6, 8, Some(0.75)));
        assert_eq!(soft.interval(), Some(game::wilson_rate(0.75, 2.0)));
        let mut stopped = images;
        stopped[1].after[0].draws = None;
        assert_eq!(rate(Quantity::SoftAttackSuccessRate, &stopped, After::Attack), None);
    }

    #[test]
    fn invariance_counts_the_draws_of_all_images_and_needs_every_one_of_them() {
        let alike = |alike, right| Outcome { alike, ..image(right, false, true, true, 0) };
        let images = [alike(Some((3, 4)), true), alike(Some((1, 4)), false)];
        assert_eq!(counted(Quantity::InvarianceRate, &images, After::Attack), (4, 8));
        let measured = rate(Quantity::InvarianceRate, &images, After::Attack).unwrap();
        assert_eq!(measured.interval(), Some(game::wilson_rate(0.5, 2.0)));
        assert_eq!(rate(Quantity::InvarianceRate, &[images[0], alike(None, true)], After::Attack), None);
    }

    #[test]
    fn nothing_to_count_is_no_rate() {
        let images = [image(false, false, false, false, 4)];
        let rate = rate(Quantity::AttackSuccessRate, &images, After::Attack).unwrap();
        assert_eq!((rate.denominator, rate.value(), rate.interval()), (0, None, None));
    }

    #[test]
    fn the_best_is_judged_on_the_images_it_was_not_chosen_on() {
        let run = |wins: [bool; 4]| wins.map(|won| image(true, !won, true, true, 0)).to_vec();
        // The first wins on even positions only, the second on odd ones only and once more.
        let candidates = [run([true, false, true, false]), run([false, true, true, true])];
        let asr = Quantity::AttackSuccessRate;
        assert_eq!(best(&candidates, asr, |_| true), 1);
        let (images, chosen) = cross_fit(&candidates, asr);
        assert_eq!(chosen, [0, 1]);
        // Even positions from candidate 1 (best at odd ones): 0 and 1; odd positions from candidate 0: 0 and 0.
        assert_eq!(counted(Quantity::AttackSuccessRate, &images, After::Attack), (1, 4));
        assert_eq!(best(&[run([true; 4]), run([true; 4])], asr, |_| true), 0);
        // Two images that were wrong from the start count where all are counted.
        let given = vec![image(false, false, true, true, 0); 2];
        assert_eq!(best(&[run([true, false, false, false]), given.clone()], asr, |_| true), 0);
        assert_eq!(best(&[run([true, false, false, false]), given], Quantity::AttackedError, |_| true), 1);
    }
}
