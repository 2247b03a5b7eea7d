//! When an attack leaves an image as it is.

use game::Goal;
use serde::{Deserialize, Serialize};

use crate::Opinion;

/// When an attack stops moving an image, before its last step.
///
/// Each rule looks at the image before the step moves it; a stopped image stays there and asks no more queries. A rule
/// that counts success on a random defense's own draws selects for luck: success must be measured on fresh draws, and
/// the rule belongs to every number it helped to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Stop {
    /// Never.
    None {},
    /// When every draw of the step satisfies the goal: the label is absent from all of them (Athalye et al. 2018
    /// against Xie et al. 2018).
    DrawsAbsent {},
    /// When the arg-max of the mean probabilities of the step's draws satisfies the goal, and the image is in the ball
    /// (Athalye et al. 2018 against Guo et al. 2018).
    DrawsMean {},
    /// When fresh draws, asked for before each step and counted as forward queries, satisfy the goal, and the image is
    /// in the ball. With one draw of a deterministic network this is the mask of Tramèr et al. 2020 against Xiao et al.
    /// 2020, which moves only images that are still classified correctly.
    FreshVote {
        /// Draws per image and step, at least 1.
        draws: usize,
        /// How they become a decision.
        #[serde(default)]
        reading: Reading,
    },
}

/// How draws become a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reading {
    /// The class drawn most often, the smallest on ties.
    #[default]
    Majority,
    /// The class with the largest mean probability.
    Mean,
    /// Every draw must satisfy the goal.
    All,
}

impl Default for Stop {
    fn default() -> Self {
        Self::None {}
    }
}

impl Stop {
    /// Whether the parameters make sense.
    pub(crate) fn check(self) -> Result<(), String> {
        match self {
            Self::FreshVote { draws: 0, .. } => Err("stop.draws = 0 must be at least 1".into()),
            _ => Ok(()),
        }
    }

    /// Whether the parameters make sense for an attack whose steps do not draw at the image itself.
    pub(crate) fn check_fresh(self) -> Result<(), String> {
        match self {
            Self::DrawsAbsent {} | Self::DrawsMean {} => {
                Err("stop.rule must be none or fresh-vote: the steps' draws are not taken at the image itself".into())
            }
            _ => self.check(),
        }
    }

    /// How the draws of a step decide, if they do.
    pub(crate) const fn of_step(self) -> Option<Reading> {
        match self {
            Self::DrawsAbsent {} => Some(Reading::All),
            Self::DrawsMean {} => Some(Reading::Mean),
            Self::None {} | Self::FreshVote { .. } => None,
        }
    }

    /// Forward queries per image and step.
    pub(crate) const fn cost(self) -> u64 {
        match self {
            Self::FreshVote { draws, .. } => draws as u64,
            _ => 0,
        }
    }
}

impl Reading {
    /// Whether the draws of `image` satisfy the goal.
    pub(crate) fn is_reached(self, opinion: &Opinion, goal: &Goal, image: usize) -> bool {
        match self {
            Self::Majority => {
                let classes: Vec<u16> = opinion.classes.iter().map(|&class| class as u16).collect();
                game::vote::majority(&classes).is_some_and(|class| goal.reached(image, u32::from(class)))
            }
            Self::Mean => goal.reached(image, opinion.mean()),
            Self::All => opinion.classes.iter().all(|&class| goal.reached(image, class)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_differ_where_they_should() {
        // Two weak draws for class 1, one strong one for class 0.
        let opinion = Opinion::new([&[0.0, 0.1][..], &[0.0, 0.1], &[9.0, 0.0]]);
        assert_eq!((opinion.classes.as_slice(), opinion.mean()), (&[1, 1, 0][..], 0));
        let away = Goal::Untargeted(vec![0]);
        let reached = |reading: Reading| reading.is_reached(&opinion, &away, 0);
        assert_eq!([Reading::Majority, Reading::Mean, Reading::All].map(reached), [true, false, false]);
        assert!(Reading::Mean.is_reached(&opinion, &Goal::Targeted(vec![0]), 0));
    }

    #[test]
    fn rules_are_written_with_their_names() {
        let stop = Stop::FreshVote { draws: 30, reading: Reading::Mean };
        assert_eq!(serde_json::to_string(&stop).unwrap(), r#"{"rule":"fresh-vote","draws":30,"reading":"mean"}"#);
        assert_eq!(serde_json::from_str::<Stop>(r#"{"rule":"none"}"#).unwrap(), Stop::None {});
        assert!(serde_json::from_str::<Stop>(r#"{"rule":"draws-absent","draws":3}"#).is_err());
    }
}
