//! From one image's draws to right or wrong, reached or not.

use artifact::AttackRow;
use game::vote::{Tally, majority};

use crate::{Rule, RuleName};

/// What a rule says about the draws of one image.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Decision {
    /// The aggregated prediction is the image's class, and no detector flags the image.
    pub correct: bool,
    /// The aggregated prediction satisfies the adversary's objective, and no detector flags the image.
    pub reached: bool,
    /// A detector flags the image.
    pub flagged: bool,
    /// Draws that satisfy the objective, and all draws; none where the vote stopped early.
    pub draws: Option<(u64, u64)>,
}

impl Decision {
    /// The same for a perturbation outside its budget: whatever the votes say, the adversary has failed.
    pub(crate) fn failed(self) -> Self {
        Self { correct: true, reached: false, flagged: false, draws: self.draws.map(|(_, all)| (0, all)) }
    }
}

/// Applies a rule to one row's votes, `asked` draws of which were asked for, against a target or the row's label.
///
/// `any` and `all` judge draws one by one: the image counts as right if any (all) of its draws are, and the objective
/// as reached likewise. The other rules make one prediction of them, and one flag: that of more than half of the draws. A
/// flagged image or draw is refused an answer: it is neither right nor has the adversary what it wants. The error says why
/// the votes do not support the rule.
pub(crate) fn decide(row: &AttackRow, target: Option<u32>, rule: &Rule, asked: u32) -> Result<Decision, String> {
    let n = rule.n.unwrap_or(asked);
    if n == 0 || n > asked {
        return Err(format!("a rule over {n} votes, but {asked} were asked for; give 1 to {asked}"));
    }
    let votes = &row.votes[..row.votes.len().min(n as usize)];
    let full = votes.len() == n as usize;
    let right = |class: u16| u32::from(class) == row.label;
    // What sends an image to its own class has done nothing to it.
    let reach = |class: u16| !right(class) && target.is_none_or(|target| u32::from(class) == target);
    if !full && (row.flags.is_some() || rule.name != RuleName::Majority) {
        return Err(unsettled(votes, n));
    }
    let flags = match &row.flags {
        Some(flags) if flags.len() < votes.len() => return Err("fewer flags than votes; delete the part".to_owned()),
        Some(flags) => flags[..votes.len()].to_vec(),
        None => vec![false; votes.len()],
    };
    // The draws that a detector let pass.
    let each = |what: &dyn Fn(u16) -> bool| -> Vec<bool> {
        votes.iter().zip(&flags).map(|(&class, flagged)| what(class) && !flagged).collect()
    };
    let yes = |answers: &[bool]| answers.iter().filter(|&&answer| answer).count();
    let draws = full.then(|| (yes(&each(&reach)) as u64, u64::from(n)));
    let by_draw = |of: fn(&[bool]) -> bool| Decision {
        correct: of(&each(&right)),
        reached: of(&each(&reach)),
        flagged: of(&flags),
        draws,
    };
    let class = match rule.name {
        RuleName::Any => return Ok(by_draw(|draws| draws.contains(&true))),
        RuleName::All => return Ok(by_draw(|draws| !draws.contains(&false))),
        RuleName::Majority => winner(votes, n).ok_or_else(|| unsettled(votes, n))?,
        RuleName::MeanLogits => mean(rule, row.mean_logits.as_deref())?,
        RuleName::MeanSoftmax => mean(rule, row.mean_probabilities.as_deref())?,
    };
    let flagged = 2 * yes(&flags) > votes.len();
    Ok(Decision { correct: right(class) && !flagged, reached: reach(class) && !flagged, flagged, draws })
}

/// The class with the largest mean over all draws.
fn mean(rule: &Rule, means: Option<&[f32]>) -> Result<u16, String> {
    if rule.n.is_some() {
        return Err(format!("{} takes all draws; leave out its n", rule.name.name()));
    }
    let kept = largest(means.unwrap_or_default());
    kept.ok_or_else(|| {
        format!("{} needs what was not kept; set `keep_logits = true` in the pipeline", rule.name.name())
    })
}

/// The majority of `n` draws, if those at hand settle it; the smallest class wins ties.
pub(crate) fn winner(votes: &[u16], n: u32) -> Option<u16> {
    if votes.len() == n as usize {
        return majority(votes);
    }
    // One class beyond those drawn stands for every class that may still get all the votes to come.
    let classes = votes.iter().max().map_or(1, |&class| usize::from(class) + 2);
    let mut tally = Tally::new(classes, n);
    votes.iter().for_each(|&class| tally.push(class));
    tally.decided()
}

fn unsettled(votes: &[u16], n: u32) -> String {
    format!(
        "its vote stopped early after {} draws, which do not settle this rule over {n}; \
         draw all with `votes = {{ stop = \"never\" }}`, or use the majority it was drawn for",
        votes.len()
    )
}

/// The index of the largest mean, the first on ties.
fn largest(means: &[f32]) -> Option<u16> {
    let best = means.iter().copied().reduce(f32::max)?;
    u16::try_from(means.iter().position(|&mean| mean == best)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::row;

    fn rule(name: RuleName, n: impl Into<Option<u32>>) -> Rule {
        Rule { name, n: n.into() }
    }

    fn answer(votes: &[u16], target: Option<u32>, rule: &Rule, asked: u32) -> Result<(bool, bool), String> {
        let row = AttackRow { target, ..row(0, 1, "after", votes) };
        decide(&row, row.target, rule, asked).map(|decision| (decision.correct, decision.reached))
    }

    #[test]
    fn the_majority_takes_the_smallest_class_on_ties_and_a_prefix_on_demand() {
        let majority = |n: Option<u32>| rule(RuleName::Majority, n);
        assert_eq!(answer(&[2, 1, 1, 2], None, &majority(None), 4), Ok((true, false)));
        assert_eq!(answer(&[0, 1, 1, 0], None, &majority(None), 4), Ok((false, true)));
        assert_eq!(answer(&[2, 1, 1, 2], None, &majority(Some(1)), 4), Ok((false, true)));
        assert_eq!(answer(&[2, 1, 1, 2], Some(3), &majority(Some(1)), 4), Ok((false, false)));
        assert_eq!(answer(&[3, 3, 1], Some(3), &majority(None), 3), Ok((false, true)));
    }

    #[test]
    fn an_image_of_the_targets_class_is_never_a_success() {
        for name in [RuleName::Majority, RuleName::Any, RuleName::All] {
            assert_eq!(answer(&[1, 1, 1], Some(1), &rule(name, None), 3), Ok((true, false)), "right");
            assert_eq!(answer(&[2, 2, 2], Some(1), &rule(name, None), 3), Ok((false, false)), "wrong, and no target");
        }
        let draws = decide(&row(0, 1, "after", &[1, 1, 2]), Some(1), &Rule::default(), 3).unwrap().draws;
        assert_eq!(draws, Some((0, 3)));
    }

    #[test]
    fn any_and_all_judge_draws_one_by_one() {
        assert_eq!(answer(&[1, 1, 2], None, &rule(RuleName::Any, None), 3), Ok((true, true)));
        assert_eq!(answer(&[1, 1, 2], None, &rule(RuleName::Any, 2), 3), Ok((true, false)));
        assert_eq!(answer(&[1, 1, 2], None, &rule(RuleName::All, None), 3), Ok((false, false)));
        assert_eq!(answer(&[2, 3], None, &rule(RuleName::All, None), 2), Ok((false, true)));
        assert_eq!(answer(&[2, 3], Some(3), &rule(RuleName::All, None), 2), Ok((false, false)));
    }

    #[test]
    fn a_stopped_vote_supports_only_what_it_settles() {
        let stopped = [4, 4, 4];
        assert_eq!(answer(&stopped, None, &rule(RuleName::Majority, None), 5), Ok((false, true)));
        assert_eq!(answer(&stopped, None, &rule(RuleName::Majority, 4), 5), Ok((false, true)));
        assert!(answer(&stopped, None, &rule(RuleName::Any, None), 5).unwrap_err().contains("stopped early"));
        assert!(answer(&stopped, None, &rule(RuleName::All, 4), 5).unwrap_err().contains("stopped early"));
        assert!(answer(&stopped, None, &rule(RuleName::Majority, None), 7).unwrap_err().contains("stopped early"));
        assert!(answer(&stopped, None, &rule(RuleName::Majority, 6), 5).unwrap_err().contains("1 to 5"));
        // Three of six votes: the rest could draw level, and would win the tie as a smaller class.
        assert!(answer(&stopped, None, &rule(RuleName::Majority, None), 6).is_err());
        assert_eq!(answer(&[0, 0, 0], None, &rule(RuleName::Majority, None), 6), Ok((false, true)));
    }

    #[test]
    fn mean_probabilities_may_name_another_class_than_logits_and_votes() {
        // One confident draw outweighs two that are not: of probabilities, not of votes.
        let row = AttackRow {
            mean_logits: Some(vec![3.0, 0.0]),
            mean_probabilities: Some(vec![0.4, 0.6]),
            ..row(0, 1, "after", &[0, 0, 1])
        };
        let correct = |name| decide(&row, None, &rule(name, None), 3).unwrap().correct;
        assert!(correct(RuleName::MeanSoftmax) && !correct(RuleName::MeanLogits) && !correct(RuleName::Majority));
        let error =
            |row: &AttackRow, n: Option<u32>| decide(row, None, &rule(RuleName::MeanSoftmax, n), 3).unwrap_err();
        assert!(error(&row, Some(3)).contains("all draws"));
        assert!(error(&AttackRow { mean_probabilities: None, ..row.clone() }, None).contains("keep_logits"));
        assert!(error(&AttackRow { votes: vec![1, 1], ..row.clone() }, None).contains("stopped early"));
    }

    #[test]
    fn a_flagged_image_is_neither_right_nor_won() {
        let flagged = |votes: &[u16], flags: &[bool], rule: &Rule| {
            let row = AttackRow { flags: Some(flags.to_vec()), ..row(0, 1, "after", votes) };
            let decision = decide(&row, row.target, rule, votes.len() as u32).unwrap();
            (decision.correct, decision.reached, decision.flagged, decision.draws.unwrap().0)
        };
        let majority = rule(RuleName::Majority, None);
        assert_eq!(flagged(&[2], &[true], &majority), (false, false, true, 0));
        assert_eq!(flagged(&[2], &[false], &majority), (false, true, false, 1));
        assert_eq!(flagged(&[1], &[true], &majority), (false, false, true, 0));
        assert_eq!(flagged(&[2, 2], &[true, false], &majority), (false, true, false, 1), "half is not most");
        assert_eq!(flagged(&[2, 2, 1], &[true, true, false], &majority), (false, false, true, 0));
        let any = rule(RuleName::Any, None);
        assert_eq!(flagged(&[2, 2, 1], &[true, false, false], &any), (true, true, true, 1));
        assert_eq!(flagged(&[2, 2], &[true, false], &rule(RuleName::All, None)), (false, false, false, 1));
        let stopped = AttackRow { flags: Some(vec![false; 3]), ..row(0, 1, "after", &[2, 2, 2]) };
        assert!(decide(&stopped, None, &majority, 5).unwrap_err().contains("stopped early"));
        let short = AttackRow { flags: Some(vec![]), ..row(0, 1, "after", &[2]) };
        assert!(decide(&short, None, &majority, 1).unwrap_err().contains("fewer flags"));
    }

    #[test]
    fn mean_logits_need_logits_and_take_the_largest() {
        let logits = AttackRow { mean_logits: Some(vec![0.5, 2.0, 2.0]), ..row(0, 1, "after", &[0, 0]) };
        let decision = decide(&logits, None, &rule(RuleName::MeanLogits, None), 2).unwrap();
        assert!(decision.correct && !decision.reached);
        assert!(decide(&logits, None, &rule(RuleName::MeanLogits, 2), 2).unwrap_err().contains("all draws"));
        let without = row(0, 1, "after", &[0, 0]);
        assert!(decide(&without, None, &rule(RuleName::MeanLogits, None), 2).unwrap_err().contains("keep_logits"));
    }

    #[test]
    fn single_draws_are_counted_only_in_full_votes() {
        let draws =
            |votes: &[u16], asked| decide(&row(0, 1, "after", votes), None, &Rule::default(), asked).unwrap().draws;
        assert_eq!(draws(&[1, 2, 1, 2], 4), Some((2, 4)));
        assert_eq!(draws(&[1, 1, 1], 4), None);
    }
}
