//! How many multiplications a plan does, and how many the definition of its network asks for.

use candle_core::Result;

use crate::Plan;
use crate::compile::Work;
use crate::kernels::winograd::TILE;
use crate::lower::Kind;
use crate::passes::{Algorithm, Pass};

/// Multiplications of the convolutions and linear layers of one image, and of what is done as such: average pools, and
/// batch-norms that no convolution could take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiplications {
    /// By the definition of a convolution, padding included: one for each output, tap and input channel.
    pub definition: u64,
    /// Done by the matrix kernels: fewer where Winograd's algorithm is used, more where channels or tiles are filled up.
    /// The additions of Winograd's transforms are not counted.
    pub done: u64,
}

impl Pass {
    fn multiplications(&self) -> usize {
        let places = match self.kernel {
            Algorithm::Winograd { .. } => self.rows.div_ceil(TILE) * self.columns.div_ceil(TILE),
            _ => self.rows * self.columns,
        };
        places * self.weights.len()
    }
}

impl Plan {
    /// The multiplications of one image of `rows x columns` pixels: of the forward pass, or of a gradient query.
    ///
    /// # Errors
    /// If the network cannot take images of this size.
    pub fn multiplications(&self, rows: usize, columns: usize, gradient: bool) -> Result<Multiplications> {
        let fitted = self.fitted([rows, columns])?;
        let (mut definition, mut done) = (0, 0);
        for (step, stage) in self.network.steps.iter().zip(&fitted.net.stages) {
            let (Kind::Dense(filter) | Kind::Depthwise(filter), Work::Convolution { forward, backward, .. }) =
                (&step.kind, &stage.work)
            else {
                continue;
            };
            let once = forward.rows * forward.columns * filter.weight.len();
            definition += if gradient { 2 * once } else { once };
            done += forward.multiplications();
            done += if gradient { backward.iter().map(Pass::multiplications).sum() } else { 0 };
        }
        Ok(Multiplications { definition: definition as u64, done: done as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use game::{Key, Phase};

    #[test]
    fn winograd_saves_and_the_definition_is_the_published_count() {
        let spec: nets::Spec = serde_json::from_str(r#"{"name": "resnet", "depth": 18}"#).unwrap();
        let graph = spec.graph().unwrap();
        let weights = nets::weights::initialise(&graph, Key::root(0).phase(Phase::Init)).unwrap();
        let (plan, direct) = (Plan::new(&graph, &weights).unwrap(), Plan::direct(&graph, &weights).unwrap());
        let count = |plan: &Plan, gradient| plan.multiplications(224, 224, gradient).unwrap();
        // torchvision's documentation: 1.81 GFLOPS (multiply-adds) for ResNet-18 at 224 pixels.
        assert_eq!(count(&plan, false).definition / 10_000_000, 181);
        assert_eq!(count(&direct, false).definition, count(&plan, false).definition);
        assert_eq!(count(&plan, true).definition, 2 * count(&plan, false).definition);
        let (few, many) = (count(&plan, false).done as f64, count(&direct, false).done as f64);
        assert!(few < 0.55 * many, "{few} of {many}");
        assert!((many / count(&direct, false).definition as f64 - 1.0).abs() < 0.01, "{many}");
    }
}
