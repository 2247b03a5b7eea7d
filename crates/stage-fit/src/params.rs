//! What decides the statistics.

use defenses::Detector;
use serde::{Deserialize, Serialize};
use stage::Epoch;

/// Parameters of the stage `fit`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The detector.
    pub detector: Detector,
    /// Which epoch of the network.
    #[serde(default)]
    pub epoch: Epoch,
    /// Randomness inside the network, put there after training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<nets::Inside>,
    /// Only this many images, the first of the sample.
    #[serde(default)]
    pub limit: Option<u32>,
    /// Names the run's random numbers.
    #[serde(default)]
    pub seed: u64,
}

impl Params {
    /// Finds combinations that cannot work, so that a planner can refuse them before anything runs.
    ///
    /// # Errors
    /// With a sentence that names the parameter and the mend.
    pub fn check(&self) -> Result<(), String> {
        self.detector.check().map_err(|fault| format!("detector: {fault}"))?;
        self.inside.as_ref().map_or(Ok(()), nets::Inside::check).map_err(|fault| format!("inside: {fault}"))?;
        if self.limit == Some(0) {
            return Err("limit: 0 images leave nothing to fit to; leave it out for all".to_owned());
        }
        Ok(())
    }
}
