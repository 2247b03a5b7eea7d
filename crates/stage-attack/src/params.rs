//! What decides the votes.

use serde::{Deserialize, Serialize};
use stage::Epoch;

/// Parameters of the stage `attack`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Which epoch of the network.
    #[serde(default)]
    pub epoch: Epoch,
    /// Randomness inside the network, put there after training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<nets::Inside>,
    /// In what the network's convolutions multiply; anything but f32 needs a GPU.
    #[serde(default, skip_serializing_if = "nets::Precision::is_full")]
    pub precision: nets::Precision,
    /// The defense between the pixels and the network.
    pub defense: defenses::Spec,
    /// The attack.
    pub attack: attacks::Spec,
    /// What the adversary wants.
    pub goal: Goal,
    /// How the defended network is asked for its opinion.
    #[serde(default)]
    pub votes: Votes,
    /// How the detector among the inputs judges every vote; then no vote stops early, for what it flags is no part of the
    /// majority. The attack does not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detector: Option<Detection>,
    /// Whether the mean logits and the mean probabilities of every vote are stored; then no vote stops early, for a mean
    /// over draws that ended at a majority would be biased.
    #[serde(default)]
    pub keep_logits: bool,
    /// Whether the perturbations are stored.
    #[serde(default)]
    pub keep_delta: bool,
    /// Only this many images, the first of the sample.
    #[serde(default)]
    pub limit: Option<u32>,
    /// Names the run's random numbers.
    #[serde(default)]
    pub seed: u64,
}

/// What the adversary wants of every image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Goal {
    /// Any class but the true one.
    Untargeted {},
    /// One class for all images.
    Targeted {
        /// The class, from 0.
        class: u32,
    },
}

impl Goal {
    /// The adversary's objective for images of these labels.
    #[must_use]
    pub fn of(self, labels: &[u32]) -> game::Goal {
        match self {
            Self::Untargeted {} => game::Goal::Untargeted(labels.to_vec()),
            Self::Targeted { class } => game::Goal::Targeted(vec![class; labels.len()]),
        }
    }

    /// The chosen class, if there is one.
    #[must_use]
    pub const fn target(self) -> Option<u32> {
        match self {
            Self::Untargeted {} => None,
            Self::Targeted { class } => Some(class),
        }
    }
}

/// How the defended network is asked for its opinion of an image (Gao et al. 2022, appendix A.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Votes {
    /// Independent draws of the defense, one prediction each.
    pub draws: u32,
    /// When to stop before.
    pub stop: Stop,
}

impl Default for Votes {
    fn default() -> Self {
        Self { draws: 500, stop: Stop::Majority }
    }
}

/// How a fitted detector is used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Detection {
    /// The probability, in `(0, 1)`, that one margin of a clean image exceeds the threshold, were its erosion normal.
    pub false_positive_rate: f64,
}

impl Default for Detection {
    fn default() -> Self {
        Self { false_positive_rate: 0.001 }
    }
}

impl Detection {
    fn check(self) -> Result<(), String> {
        if self.false_positive_rate > 0.0 && self.false_positive_rate < 1.0 {
            return Ok(());
        }
        Err(format!("detector.false_positive_rate: {} is not between 0 and 1", self.false_positive_rate))
    }
}

/// When to stop drawing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// As soon as no remaining draw can change the majority.
    #[default]
    Majority,
    /// Never.
    Never,
}

impl Params {
    /// Finds combinations that cannot work, so that a planner can refuse them before anything runs.
    ///
    /// # Errors
    /// With a sentence that names the parameter and the mend.
    pub fn check(&self) -> Result<(), String> {
        self.inside.as_ref().map_or(Ok(()), nets::Inside::check).map_err(|fault| format!("inside: {fault}"))?;
        self.defense.check().map_err(|fault| format!("defense: {fault}"))?;
        self.attack.check().map_err(|fault| format!("attack: {fault}"))?;
        self.detector.map_or(Ok(()), Detection::check)?;
        if self.detector.is_some() && self.defense.name() != "none" {
            let name = self.defense.name();
            return Err(format!(
                "detector: it is fitted without a defense, not behind `{name}`; set the defense to none"
            ));
        }
        if self.votes.draws == 0 {
            return Err("votes.draws: a vote needs at least 1 draw".to_owned());
        }
        if self.limit == Some(0) {
            return Err("limit: 0 images leave nothing to attack; leave it out for all".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_precision_is_not_written_so_no_address_moves() {
        let text = r#"{"defense": {"name": "none"}, "attack": {"name": "none"}, "goal": {"name": "untargeted"}}"#;
        let mut params: Params = serde_json::from_str(text).unwrap();
        assert!(!serde_json::to_string(&params).unwrap().contains("precision"));
        params.precision = nets::Precision::Bf16;
        assert!(serde_json::to_string(&params).unwrap().contains(r#""precision":"bf16""#));
    }
}
