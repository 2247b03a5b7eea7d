//! Which images train when, and how fast.

use game::{Key, Phase};

use crate::Training;

/// Children of the training key from here on name orders of images; those below name epochs.
const ORDERS: u64 = 1 << 32;

/// The learning rate of epoch `epoch` (from 1): half a cosine from `learning_rate` down to `min_learning_rate`.
///
/// Stepped once per epoch, as PyTorch's `CosineAnnealingLR` with `T_max = epochs` (Loshchilov and Hutter 2017,
/// equation 5): the first epoch runs at the full rate, and the minimum would be that of the epoch after the last.
pub fn learning_rate(training: &Training, epoch: u32) -> f64 {
    let turn = f64::from(epoch - 1) / f64::from(training.epochs);
    let (low, high) = (training.min_learning_rate, training.learning_rate);
    low + 0.5 * (high - low) * (1.0 + (std::f64::consts::PI * turn).cos())
}

/// Positions of the training and of the validation images among `images`, both ascending.
///
/// The same for every seed, so that a network fine-tuned from another never validates on what the other trained on.
pub fn split(images: usize, validation: f64) -> (Vec<usize>, Vec<usize>) {
    let held_out = (images as f64 * validation).round() as usize;
    let mut training = Key::root(0).phase(Phase::Train).at(ORDERS).permutation(images);
    let mut validation = training.split_off(images - held_out);
    training.sort_unstable();
    validation.sort_unstable();
    (training, validation)
}

/// The order in which `images` training images pass in one epoch.
pub fn order(seed: u64, epoch: u32, images: usize) -> Vec<usize> {
    Key::root(seed).phase(Phase::Train).at(ORDERS + u64::from(epoch)).permutation(images)
}

/// What one image's random numbers of one epoch derive from.
#[derive(Clone, Copy)]
pub struct Draws(Key);

impl Draws {
    /// Image `id` in epoch `epoch`. It shares nothing with other images (no [`Key::image`]): even transformations whose
    /// order is shared elsewhere are applied image by image in the authors' training.
    pub fn of(seed: u64, epoch: u32, id: u32) -> Self {
        Self(Key::root(seed).phase(Phase::Train).at(u64::from(epoch)).at(u64::from(id)))
    }

    /// For the defense.
    pub fn defense(self) -> Key {
        self.0.at(0)
    }

    /// For augmentation.
    pub fn augment(self) -> Key {
        self.0.at(1)
    }

    /// For the attack.
    pub fn attack(self) -> Key {
        self.0.at(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_half_a_cosine_by_epoch() {
        let training = Training { epochs: 4, learning_rate: 1e-3, min_learning_rate: 1e-4, ..Training::default() };
        // torch.optim.lr_scheduler.CosineAnnealingLR(AdamW(lr=1e-3), T_max=4, eta_min=1e-4), see tests/golden/make.py.
        let known = [1e-3, 8.681_980_515_339_464e-4, 5.5e-4, 2.318_019_484_660_536_6e-4];
        for (epoch, known) in (1..).zip(known) {
            assert!((learning_rate(&training, epoch) - known).abs() < 1e-12, "epoch {epoch}");
        }
    }

    #[test]
    fn a_split_parts_the_images() {
        let (training, validation) = split(101, 0.1);
        assert_eq!((training.len(), validation.len()), (91, 10));
        assert_ne!(validation, (91..101).collect::<Vec<_>>());
        let mut all = [training, validation].concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..101));
        assert_eq!(split(5, 0.0).0.len(), 5);
    }

    #[test]
    fn orders_change_with_epoch_and_seed_and_are_not_the_split() {
        let first = order(0, 1, 64);
        assert_eq!(first, order(0, 1, 64));
        assert_ne!(first, order(0, 2, 64));
        assert_ne!(first, order(1, 1, 64));
        assert_ne!(first, Key::root(0).phase(Phase::Train).at(ORDERS).permutation(64));
    }

    #[test]
    fn every_use_has_its_own_draws() {
        let draws = Draws::of(0, 1, 7);
        assert_ne!(draws.defense(), draws.augment());
        assert!(draws.attack() != draws.defense() && draws.attack() != draws.augment());
        for other in [Draws::of(1, 1, 7), Draws::of(0, 2, 7), Draws::of(0, 1, 8)] {
            assert_ne!(draws.defense(), other.defense());
        }
    }
}
