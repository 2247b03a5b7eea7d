//! Draws in bulk: uniform and normal numbers from the blocks of a key, by the vector.
//!
//! Every instruction set gives the same bits: the arithmetic is that of the scalar definitions here, each operation
//! rounded on its own.

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::InstructionSet;
use crate::key::{Key, MULTIPLIERS, WEYL};

/// What is made of two of a block's words: two numbers.
pub trait Draw {
    fn pair(a: u32, b: u32) -> (f32, f32);

    /// The same of vectors of 32-bit words, `K` of them side by side so that none waits for another.
    ///
    /// # Safety
    /// The host has the vector's instructions.
    #[cfg(target_arch = "x86_64")]
    unsafe fn pairs<V: x86::Vector, const K: usize>(words: [[V::Words; K]; 2]) -> [[V::Floats; K]; 2];
}

/// Uniform numbers in `[0, 1)` of 24 random bits.
pub struct Uniform;

impl Draw for Uniform {
    #[inline(always)]
    fn pair(a: u32, b: u32) -> (f32, f32) {
        let unit = |word: u32| (word >> 8) as f32 * UNIT;
        (unit(a), unit(b))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn pairs<V: x86::Vector, const K: usize>(words: [[V::Words; K]; 2]) -> [[V::Floats; K]; 2] {
        unsafe { x86::units::<V, K>(words) }
    }
}

const UNIT: f32 = 1.0 / (1 << 24) as f32;

/// Standard normal numbers by the method of Box and Muller.
pub struct Normal;

impl Draw for Normal {
    #[inline(always)]
    fn pair(a: u32, b: u32) -> (f32, f32) {
        let radius = radius(a);
        let (sin, cos) = sin_cos(b);
        (radius * cos, radius * sin)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn pairs<V: x86::Vector, const K: usize>(words: [[V::Words; K]; 2]) -> [[V::Floats; K]; 2] {
        unsafe { x86::normals::<V, K>(words) }
    }
}

/// The bits of the square root of one half: where mantissas begin, so that logarithms are taken of `[sqrt(1/2), sqrt(2))`.
const ROOT_HALF: u32 = 0x3F35_04F3;
/// The exponent of 2^32.
const TWO_32: u32 = 32 << 23;
const MANTISSA: u32 = 0x007F_FFFF;

/// Minus twice the Cephes polynomial of the logarithm, divided by the cube of its argument, the highest power first.
const LOG: [f32; 9] = [
    -2.0 * 7.037_683_6e-2,
    2.0 * 1.151_461e-1,
    -2.0 * 1.167_699_9e-1,
    2.0 * 1.242_014_1e-1,
    -2.0 * 1.424_932_3e-1,
    2.0 * 1.666_805_8e-1,
    -2.0 * 2.000_071_5e-1,
    2.0 * 2.499_999_4e-1,
    -2.0 * 3.333_333e-1,
];
/// Twice the logarithm of 2, in two parts: products of the first with exponents are exact.
const LN_4: [f32; 2] = [2.0 * 0.693_359_4, -2.0 * 2.121_944_4e-4];
/// The Cephes polynomials of sine and cosine, the highest power first.
const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
/// A turn by 2^34.
const TURN: f32 = std::f32::consts::TAU / 17_179_869_184.0;
const EIGHTH: u32 = 1 << 29;
const QUARTER: u32 = 1 << 30;
const SIGN: u32 = 1 << 31;

/// `sqrt(-2 ln u)` for `u = (a + 1/2) / 2^32` (relative error of the logarithm about 1e-7).
#[inline(always)]
fn radius(a: u32) -> f32 {
    // Split into 2^e * (1 + m).
    let bits = (a as f32 + 0.5).to_bits().wrapping_sub(ROOT_HALF + TWO_32);
    let e = (bits as i32 >> 23) as f32;
    let m = f32::from_bits((bits & MANTISSA) + ROOT_HALF) - 1.0;
    let z = m * m;
    let mut p = LOG[0];
    for c in &LOG[1..] {
        p = p * m + c;
    }
    let y = p * m * z - LN_4[1] * e + z;
    (y - 2.0 * m - LN_4[0] * e).sqrt()
}

/// Sine and cosine of `turn / 2^32` full turns.
#[inline(always)]
fn sin_cos(turn: u32) -> (f32, f32) {
    // What is left of the nearest quarter turn is in [-1/8, 1/8) turns: the lower 30 bits, signed.
    let x = (turn << 2) as i32 as f32 * TURN;
    let z = x * x;
    let sin = ((SIN[0] * z + SIN[1]) * z + SIN[2]) * z * x + x;
    let cos = ((COS[0] * z + COS[1]) * z + COS[2]) * z * z - 0.5 * z + 1.0;
    // Quarters turn (sin, cos) to (cos, -sin), (-sin, -cos), (-cos, sin): a swap and signs, without branches.
    let turned = turn.wrapping_add(EIGHTH);
    let (sin, cos) = if turned & QUARTER == 0 { (sin, cos) } else { (cos, sin) };
    let flip = |x: f32, sign: u32| f32::from_bits(x.to_bits() ^ sign & SIGN);
    (flip(sin, turned), flip(cos, turned.wrapping_add(QUARTER)))
}

/// Fills `out` with draws of `key` from block `first` on: elements `4i..4i+4` are the two pairs of block `first + i`.
pub fn fill<D: Draw>(key: Key, first: u64, out: &mut [f32]) {
    fill_by::<D>(InstructionSet::detected(), key, first, out);
}

fn fill_by<D: Draw>(set: InstructionSet, key: Key, first: u64, out: &mut [f32]) {
    // The vectors' counters have one upper half for all.
    let last = first.wrapping_add(out.len() as u64 / 4);
    match set {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the host has these instructions.
        InstructionSet::Avx512 if first >> 32 == last >> 32 => unsafe { x86::avx512::<D>(key, first, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the host has these instructions.
        InstructionSet::Avx2 if first >> 32 == last >> 32 => unsafe { x86::avx2::<D>(key, first, out) },
        _ => portable::<D>(key, first, out),
    }
}

/// How many blocks are drawn side by side.
const LANES: usize = 32;

/// Words 0 to 3 of the [`LANES`] blocks from `first` on, word by word.
///
/// Words live in 64 bits, of which a round reads the lower half only: one multiplication gives both of its halves, and
/// what the upper half holds is never cleared.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "lanes run side by side")]
fn blocks(key: Key, first: u64) -> [[u64; LANES]; 4] {
    const LOW: u64 = u32::MAX as u64;
    let [mut k0, mut k1, high0, high1] = key.words();
    let mut words = [[0u64; LANES]; 4];
    for lane in 0..LANES {
        let index = first.wrapping_add(lane as u64);
        words[0][lane] = index;
        words[1][lane] = index >> 32;
        words[2][lane] = u64::from(high0);
        words[3][lane] = u64::from(high1);
    }
    for _ in 0..10 {
        for lane in 0..LANES {
            let a = u64::from(MULTIPLIERS[0]).wrapping_mul(words[0][lane] & LOW);
            let b = u64::from(MULTIPLIERS[1]).wrapping_mul(words[2][lane] & LOW);
            words[0][lane] = (b >> 32) ^ words[1][lane] ^ u64::from(k0);
            words[2][lane] = (a >> 32) ^ words[3][lane] ^ u64::from(k1);
            words[1][lane] = b;
            words[3][lane] = a;
        }
        (k0, k1) = (k0.wrapping_add(WEYL[0]), k1.wrapping_add(WEYL[1]));
    }
    words
}

fn portable<D: Draw>(key: Key, first: u64, out: &mut [f32]) {
    for (chunk, out) in out.chunks_mut(4 * LANES).enumerate() {
        let wide = blocks(key, first.wrapping_add((chunk * LANES) as u64));
        let mut words = [[0; LANES]; 4];
        for (word, wide) in words.as_flattened_mut().iter_mut().zip(wide.as_flattened()) {
            *word = *wide as u32;
        }
        let mut values = [[0.0f32; LANES]; 4];
        for lane in 0..LANES {
            (values[0][lane], values[1][lane]) = D::pair(words[0][lane], words[1][lane]);
            (values[2][lane], values[3][lane]) = D::pair(words[2][lane], words[3][lane]);
        }
        let [a, b, c, d] = values;
        let (mut even, mut odd, mut all) = ([0.0; 2 * LANES], [0.0; 2 * LANES], [0.0; 4 * LANES]);
        zip(&a, &c, &mut even);
        zip(&b, &d, &mut odd);
        zip(&even, &odd, &mut all);
        out.copy_from_slice(&all[..out.len()]);
    }
}

/// Takes elements of `even` and `odd` in turns.
#[inline(always)]
fn zip(even: &[f32], odd: &[f32], out: &mut [f32]) {
    for (out, (&even, &odd)) in out.chunks_exact_mut(2).zip(even.iter().zip(odd)) {
        (out[0], out[1]) = (even, odd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Phase;

    #[test]
    fn every_instruction_set_gives_the_scalar_definition_bit_for_bit() {
        // Lengths around groups of blocks, and counters whose low word overflows.
        let cases = [(0, 0), (1, 3), (31, 0), (127, 0), (128, 9), (129, 0), (1030, (1 << 32) - 5), (200, 1 << 62)];
        for set in InstructionSet::available() {
            for (length, first) in cases.into_iter().chain([(100_003, 12), (4 << 10, (1 << 32) - (1 << 10))]) {
                for key in [Key::root(0), Key::root(u64::MAX), Key::root(5).at(77), Key::root(1).phase(Phase::Before)] {
                    let word = |i: usize| key.block(first + i as u64 / 4)[i % 4];
                    let (mut uniform, mut normal) = (vec![0.0; length], vec![0.0; length]);
                    fill_by::<Uniform>(set, key, first, &mut uniform);
                    fill_by::<Normal>(set, key, first, &mut normal);
                    for i in 0..length {
                        assert_eq!(uniform[i], (word(i) >> 8) as f32 * (1.0 / (1 << 24) as f32), "{set:?}");
                        let (cos, sin) = Normal::pair(word(i & !1), word(i | 1));
                        let expected = if i % 2 == 0 { cos } else { sin };
                        assert_eq!(normal[i].to_bits(), expected.to_bits(), "{set:?} {length} {first} {i}");
                    }
                }
            }
        }
    }

    /// Words in which something happens: about every power of two, quarter turns, and the ends.
    fn words() -> impl Iterator<Item = u32> {
        let near = |word: u32| (0..200).map(move |i| word.wrapping_add(i).wrapping_sub(100));
        let powers = (0..32).flat_map(move |bit| near(1 << bit));
        let roots = (0..32).flat_map(move |bit| near((ROOT_HALF & MANTISSA | 1 << 23) << 8 >> bit));
        let eighths = (0..8).flat_map(move |eighth| near(eighth << 29));
        powers.chain(roots).chain(eighths).chain((0..1 << 16).map(|i| i * 65_521))
    }

    #[test]
    fn radii_and_angles_are_those_of_double_precision() {
        for word in words() {
            let u = f64::from(word as f32 + 0.5) / 4_294_967_296.0;
            let squared = -2.0 * u.ln();
            assert!((f64::from(radius(word)).powi(2) - squared).abs() <= 4e-7 * squared + 1e-13, "{word}");
            let (sin, cos) = (std::f64::consts::TAU * f64::from(word) / 4_294_967_296.0).sin_cos();
            let (near_sin, near_cos) = sin_cos(word);
            assert!((f64::from(near_sin) - sin).abs() < 1.2e-7 && (f64::from(near_cos) - cos).abs() < 1.2e-7, "{word}");
        }
    }

    #[test]
    fn the_largest_radius_and_the_least() {
        assert_eq!(radius(u32::MAX), 0.0);
        assert!((6.7..6.8).contains(&radius(0)), "{}", radius(0));
    }
}
