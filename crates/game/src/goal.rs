//! What the adversary wants, as a value.

use candle_core::{Result, bail};

/// The adversary's objective for each image of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Any class but the true one: `labels[i]` for image `i`.
    Untargeted(Vec<u32>),
    /// One chosen class: `targets[i]` for image `i`.
    Targeted(Vec<u32>),
}

impl Goal {
    /// The class each image's loss is about: its label, or its target.
    #[must_use]
    pub fn classes(&self) -> &[u32] {
        match self {
            Self::Untargeted(classes) | Self::Targeted(classes) => classes,
        }
    }

    /// +1 where the adversary ascends the loss of [`Goal::classes`], -1 where it descends.
    #[must_use]
    pub const fn direction(&self) -> f64 {
        match self {
            Self::Untargeted(_) => 1.0,
            Self::Targeted(_) => -1.0,
        }
    }

    /// Whether image `image` classified as `predicted` satisfies the objective.
    ///
    /// # Panics
    /// If `image` is not in the batch.
    #[must_use]
    pub fn reached(&self, image: usize, predicted: u32) -> bool {
        match self {
            Self::Untargeted(labels) => predicted != labels[image],
            Self::Targeted(targets) => predicted == targets[image],
        }
    }

    /// The goal of the images `range` of the batch.
    ///
    /// # Errors
    /// If the range leaves the batch.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Result<Self> {
        let Some(classes) = self.classes().get(range.clone()) else {
            bail!("images {range:?} of a goal for {} images", self.classes().len())
        };
        Ok(match self {
            Self::Untargeted(_) => Self::Untargeted(classes.to_vec()),
            Self::Targeted(_) => Self::Targeted(classes.to_vec()),
        })
    }

    /// The same goal with every image's entry repeated `times` times in a row, as draws of one image stand in a batch.
    #[must_use]
    pub fn repeat(&self, times: usize) -> Self {
        let repeated = self.classes().iter().flat_map(|&c| std::iter::repeat_n(c, times)).collect();
        match self {
            Self::Untargeted(_) => Self::Untargeted(repeated),
            Self::Targeted(_) => Self::Targeted(repeated),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objective_is_about_the_class_of_its_own_image() {
        let away = Goal::Untargeted(vec![3, 4]);
        assert!(away.reached(0, 4) && !away.reached(1, 4));
        let toward = Goal::Targeted(vec![3, 4]);
        assert!(!toward.reached(0, 4) && toward.reached(1, 4));
    }

    #[test]
    fn repeating_keeps_the_draws_of_an_image_together() {
        assert_eq!(Goal::Targeted(vec![1, 2]).repeat(2), Goal::Targeted(vec![1, 1, 2, 2]));
        assert!(Goal::Targeted(vec![1, 2]).slice(1..3).is_err());
    }
}
