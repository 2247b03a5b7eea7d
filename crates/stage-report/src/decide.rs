//! From one image's draws to right or wrong, reached or not.

use artifact::AttackRow;
use game::vote::{Tally, any, majority};

use crate::{Rule, RuleName};

/// What a rule says about the draws of one image.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Decision {
    /// The aggregated prediction is the image's class.
    pub correct: bool,
    /// The aggregated prediction satisfies the adversary's objective.
    pub reached: bool,
    /// Draws that satisfy the objective, and all draws; none where the vote stopped early.
    pub draws: Option<(u64, u64)>,
}

impl Decision {
    /// The same for a perturbation outside its budget: whatever the votes say, the adversary has failed.
    pub(crate) fn failed(self) -> Self {
        Self { correct: true, reached: false, draws: self.draws.map(|(_, all)| (0, all)) }
    }
}

/// Applies a rule to one row's votes, `asked` draws of which were asked for.
///
/// `any` and `all` judge draws one by one: the image counts as right if any (all) of its draws are, and the objective
/// as reached likewise. The error says why the votes do not support the rule.
pub(crate) fn decide(row: &AttackRow, rule: &Rule, asked: u32) -> Result<Decision, String> {
    let n = rule.n.unwrap_or(asked);
    if n == 0 || n > asked {
        return Err(format!("a rule over {n} votes, but {asked} were asked for; give 1 to {asked}"));
    }
    let votes = &row.votes[..row.votes.len().min(n as usize)];
    let full = votes.len() == n as usize;
    let right = |class: u16| u32::from(class) == row.label;
    let reach = |class: u16| row.target.map_or(!right(class), |target| u32::from(class) == target);
    let (correct, reached) = match rule.name {
        RuleName::Majority => {
            let class = winner(votes, n).ok_or_else(|| unsettled(votes, n))?;
            (right(class), reach(class))
        }
        RuleName::Any if full => (any(votes, right), any(votes, reach)),
        RuleName::All if full => (votes.iter().all(|&class| right(class)), votes.iter().all(|&class| reach(class))),
        RuleName::Any | RuleName::All => return Err(unsettled(votes, n)),
        RuleName::MeanLogits if rule.n.is_some() => return Err("mean-logits takes all draws; leave out its n".into()),
        RuleName::MeanLogits if !full => return Err(unsettled(votes, n)),
        RuleName::MeanLogits => {
            let class = largest(row.mean_logits.as_deref().unwrap_or_default())
                .ok_or("no logits were kept; set `keep_logits = true` in the pipeline")?;
            (right(class), reach(class))
        }
    };
    let draws = full.then(|| (votes.iter().filter(|&&class| reach(class)).count() as u64, u64::from(n)));
    Ok(Decision { correct, reached, draws })
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

/// The index of the largest logit, the first on ties.
fn largest(logits: &[f32]) -> Option<u16> {
    let best = logits.iter().copied().reduce(f32::max)?;
    u16::try_from(logits.iter().position(|&logit| logit == best)?).ok()
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
        decide(&row, rule, asked).map(|decision| (decision.correct, decision.reached))
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
    fn mean_logits_need_logits_and_take_the_largest() {
        let logits = AttackRow { mean_logits: Some(vec![0.5, 2.0, 2.0]), ..row(0, 1, "after", &[0, 0]) };
        let decision = decide(&logits, &rule(RuleName::MeanLogits, None), 2).unwrap();
        assert!(decision.correct && !decision.reached);
        assert!(decide(&logits, &rule(RuleName::MeanLogits, 2), 2).unwrap_err().contains("all draws"));
        let without = row(0, 1, "after", &[0, 0]);
        assert!(decide(&without, &rule(RuleName::MeanLogits, None), 2).unwrap_err().contains("keep_logits"));
    }

    #[test]
    fn single_draws_are_counted_only_in_full_votes() {
        let draws = |votes: &[u16], asked| decide(&row(0, 1, "after", votes), &Rule::default(), asked).unwrap().draws;
        assert_eq!(draws(&[1, 2, 1, 2], 4), Some((2, 4)));
        assert_eq!(draws(&[1, 1, 1], 4), None);
    }
}
