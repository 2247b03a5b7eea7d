//! The only source of chance: keys are derived, never advanced.
//!
//! A [`Key`] names a stream of Philox4x32-10 blocks (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011), the generator cuRAND and PyTorch use on GPUs. The stream depends on the key alone, so any batch, shard,
//! thread or device that holds the key draws the same bits.

use serde::{Deserialize, Serialize};

use crate::fill::{Normal, Uniform, fill};

pub const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
pub const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Set in a counter's second word when it derives a child key, clear when it draws a block.
const DERIVE: u32 = 1 << 31;
/// The child by which [`Key::shared`] parts from the keys of images; it has no other use.
const SHARED: u64 = (1 << 63) - 1;

/// One Philox4x32-10 block: a 128-bit counter and a 64-bit key to 128 bits.
///
/// Matches the published known-answer vectors of Random123.
#[inline]
#[must_use]
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
    }
    counter
}

/// The words of child (`tag` = [`DERIVE`]) or block (0) number `index` of the key of these words.
#[inline]
fn cipher([a, b, c, d]: [u32; 4], index: u64, tag: u32) -> [u32; 4] {
    debug_assert!(index >> 63 == 0, "the top bit tells derivations from blocks");
    philox4x32_10([index as u32, (index >> 32) as u32 | tag, c, d], [a, b])
}

/// What a run's randomness is for: the first derivation below the seed, so that no phase repeats another's draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u64)]
pub enum Phase {
    /// Votes before the attack.
    Before = 1,
    /// Gradient queries of the attack.
    Attack = 2,
    /// Votes after the attack.
    After = 3,
    /// Draws of the defense while training, and the order of the training images.
    Train = 4,
    /// Initial weights.
    Init = 5,
    /// Drawing a data set.
    Data = 6,
    /// Fitting a detector.
    Fit = 7,
}

/// A name for a stream of random bits. Copying a key copies the stream: derive a child for each separate use.
///
/// ```
/// # use game::{Key, Phase};
/// let image = Key::root(7).phase(Phase::Attack).at(1234);
/// let draw = image.at(3).at(0); // step 3, first draw
/// assert_ne!(draw, image.at(3).at(1));
/// assert_eq!(draw.unit(), draw.unit());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    key: [u32; 2],
    high: [u32; 2],
    /// The words that the key would have without [`Key::image`].
    common: [u32; 4],
}

impl Key {
    /// The key of a run with this seed.
    #[must_use]
    pub const fn root(seed: u64) -> Self {
        let [low, high] = [seed as u32, (seed >> 32) as u32];
        Self { key: [low, high], high: [0, 0], common: [low, high, 0, 0] }
    }

    /// The child of this key numbered `index` (below 2^63).
    #[must_use]
    pub fn at(self, index: u64) -> Self {
        Self { common: cipher(self.common, index, DERIVE), ..self.image(index) }
    }

    /// The child of this key for the image `id`: [`at`](Self::at), but for what all images [share](Self::shared).
    #[must_use]
    pub fn image(self, id: u64) -> Self {
        let [a, b, c, d] = cipher(self.words(), id, DERIVE);
        Self { key: [a, b], high: [c, d], common: self.common }
    }

    /// The key that this one has in common with those of all other images: of the same seed, phase, step, draw and
    /// operation, in any batch or shard. No image's own key is like it.
    ///
    /// ```
    /// # use game::Key;
    /// let [one, other] = [3, 4].map(|id| Key::root(7).image(id).at(0));
    /// assert_ne!(one, other);
    /// assert_eq!(one.shared(), other.shared());
    /// assert_ne!(one.shared(), one.at(1).shared());
    /// ```
    #[must_use]
    pub fn shared(self) -> Self {
        let [a, b, c, d] = cipher(self.common, SHARED, DERIVE);
        Self { key: [a, b], high: [c, d], common: self.common }
    }

    /// The child of this key for one phase of a run.
    #[must_use]
    pub fn phase(self, phase: Phase) -> Self {
        self.at(phase as u64)
    }

    /// Block `index` (below 2^63) of this key's stream.
    #[inline]
    #[must_use]
    pub fn block(self, index: u64) -> [u32; 4] {
        cipher(self.words(), index, 0)
    }

    /// The four words a device needs to draw this key's blocks: key low, key high, counter words 2 and 3.
    #[must_use]
    pub const fn words(self) -> [u32; 4] {
        [self.key[0], self.key[1], self.high[0], self.high[1]]
    }

    /// One uniform number in `[0, 1)` with 53 random bits: the first of this key's stream.
    #[must_use]
    pub fn unit(self) -> f64 {
        let [a, b, ..] = self.block(0);
        let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
        bits as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// One uniform number in `[low, high)`.
    #[must_use]
    pub fn uniform(self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// One integer in `0..n`, uniform to within 2^-64 (multiply-shift).
    ///
    /// # Panics
    /// If `n` is zero.
    #[must_use]
    pub fn below(self, n: u64) -> u64 {
        assert!(n > 0, "an empty range has no element");
        let [a, b, ..] = self.block(0);
        let bits = u64::from(a) << 32 | u64::from(b);
        ((u128::from(bits) * u128::from(n)) >> 64) as u64
    }

    /// A uniform permutation of `0..n` (Fisher-Yates).
    #[must_use]
    pub fn permutation(self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.at(i as u64).below(i as u64 + 1) as usize);
        }
        order
    }

    /// Fills `out` with uniform numbers in `[0, 1)` of 24 random bits: element `i` is word `i % 4` of block `i / 4`.
    pub fn fill_uniform(self, out: &mut [f32]) {
        self.fill_uniform_from(0, out);
    }

    /// Fills `out` with the elements from `4 * block` on of a longer [`fill_uniform`](Self::fill_uniform).
    pub fn fill_uniform_from(self, block: u64, out: &mut [f32]) {
        fill::<Uniform>(self, block, out);
    }

    /// Fills `out` with standard normal numbers: elements `4i..4i+4` are the two Box-Muller pairs of block `i`.
    ///
    /// Logarithm, sine and cosine are polynomials in plain f32 arithmetic, so the values are the same on every host
    /// (largest magnitude 6.8; error below 1e-6 against f64 Box-Muller on the same bits).
    pub fn fill_normal(self, out: &mut [f32]) {
        self.fill_normal_from(0, out);
    }

    /// Fills `out` with the elements from `4 * block` on of a longer [`fill_normal`](Self::fill_normal).
    pub fn fill_normal_from(self, block: u64, out: &mut [f32]) {
        fill::<Normal>(self, block, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Random123, tests/kat_vectors: philox4x32 with 10 rounds.
        let known = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in known {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn a_root_key_draws_philox_blocks_of_its_seed() {
        let seed = 0x299f_31d0_a409_3822;
        assert_eq!(Key::root(seed).block(5), philox4x32_10([5, 0, 0, 0], [0xa409_3822, 0x299f_31d0]));
    }

    #[test]
    fn children_differ_from_their_parent_their_siblings_and_its_blocks() {
        let key = Key::root(1);
        assert_ne!(key.at(0), key);
        assert_ne!(key.at(0), key.at(1));
        let [a, b, c, d] = key.block(0);
        assert_ne!(key.at(0).words(), [a, b, c, d]);
        assert_ne!(key.phase(Phase::Before), key.phase(Phase::After));
    }

    #[test]
    fn images_keep_their_own_draws_and_share_others() {
        let phase = Key::root(5).phase(Phase::Attack);
        let path = |key: Key| key.at(2).at(0).at(1);
        // What an image draws by itself does not depend on how its key was made.
        assert_eq!(path(phase.image(9)).words(), path(phase.at(9)).words());
        assert_eq!(path(phase.image(9)).shared(), path(phase.image(8)).shared());
        assert_ne!(path(phase.at(9)).shared(), path(phase.at(8)).shared());
        for other in [phase.image(9).at(2).at(0).at(0), phase.image(9).at(3).at(0).at(1), path(Key::root(5).image(9))] {
            assert_ne!(path(phase.image(9)).shared(), other.shared());
        }
        // The image 2 at step 0 has the path of what step 2 and draw 0 share.
        let (own, shared) = (phase.image(2).at(0).at(1), phase.image(9).at(2).at(0).at(1).shared());
        assert!(own.words() != shared.words() && own.at(0).words() != shared.words());
        assert_eq!(shared.shared(), shared);
    }

    #[test]
    fn a_prefix_of_a_fill_is_a_shorter_fill() {
        let (mut long, mut short) = ([0.0; 103], [0.0; 10]);
        Key::root(3).fill_normal(&mut long);
        Key::root(3).fill_normal(&mut short);
        assert_eq!(long[..10], short);
    }

    #[test]
    fn normals_follow_box_muller_in_double_precision() {
        let mut out = vec![0.0; 100_000];
        let key = Key::root(11);
        key.fill_normal(&mut out);
        for (i, pair) in out.chunks(2).enumerate() {
            let block = key.block(i as u64 / 2);
            let (a, b) = if i % 2 == 0 { (block[0], block[1]) } else { (block[2], block[3]) };
            let u = f64::from((a as f32 + 0.5) * (1.0 / 4_294_967_296.0));
            let radius = (-2.0 * u.ln()).sqrt();
            let angle = std::f64::consts::TAU * f64::from(b) / 4_294_967_296.0;
            // Near u = 1 the radius is the root of a tiny number: compare there with the absolute error of ln.
            let tolerance = 2e-6 * (1.0 + radius) + 1e-7 / radius.max(1e-3);
            assert!((f64::from(pair[0]) - radius * angle.cos()).abs() < tolerance);
            assert!((f64::from(pair[1]) - radius * angle.sin()).abs() < tolerance);
        }
    }

    #[test]
    fn moments_are_those_of_the_standard_normal() {
        let mut out = vec![0.0; 1 << 20];
        Key::root(5).fill_normal(&mut out);
        let n = out.len() as f64;
        let moment = |p: i32| out.iter().map(|&z| f64::from(z).powi(p)).sum::<f64>() / n;
        // Five standard errors: sqrt(1/n), sqrt(2/n), sqrt(15/n), sqrt(96/n).
        assert!(moment(1).abs() < 5.0 * (1.0 / n).sqrt());
        assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert!(moment(3).abs() < 5.0 * (15.0 / n).sqrt());
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
    }

    #[test]
    fn uniform_integers_fill_their_range_evenly() {
        let mut counts = [0u32; 7];
        for i in 0..70_000 {
            counts[Key::root(2).at(i).below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (f64::from(c) - 10_000.0).abs() < 5.0 * 100.0), "{counts:?}");
    }

    #[test]
    fn permutations_hold_every_index_once() {
        let mut order = Key::root(9).permutation(257);
        assert_ne!(order[..5], [0, 1, 2, 3, 4]);
        order.sort_unstable();
        assert!(order.into_iter().eq(0..257));
    }
}
