//! Draws by the vectors of x86.

use std::arch::x86_64::*;

use super::{COS, Draw, EIGHTH, LN_4, LOG, MANTISSA, QUARTER, ROOT_HALF, SIN, TURN, TWO_32, UNIT};
use crate::key::{Key, MULTIPLIERS, WEYL};

/// What draws ask of vectors of 64 bits, which hold a word in their lower halves, of 32 bits, and of floats.
///
/// # Safety
/// The host must have the vector's instructions.
pub trait Vector {
    type Words: Copy;
    type Floats: Copy;
    /// How many 64-bit words there are.
    const BLOCKS: usize;

    unsafe fn splat_64(x: u64) -> Self::Words;
    /// `first`, `first + 1`, ... in 64 bits.
    unsafe fn count(first: u64) -> Self::Words;
    /// The 64-bit products of the lower halves.
    unsafe fn product(a: Self::Words, b: Self::Words) -> Self::Words;
    /// The upper halves, moved down.
    unsafe fn upper(a: Self::Words) -> Self::Words;
    unsafe fn xor(a: Self::Words, b: Self::Words) -> Self::Words;
    unsafe fn xor3(a: Self::Words, b: Self::Words, c: Self::Words) -> Self::Words;
    /// The lower halves of `a` and `b` in turns.
    unsafe fn lower(a: Self::Words, b: Self::Words) -> Self::Words;

    unsafe fn splat_32(x: u32) -> Self::Words;
    unsafe fn add_32(a: Self::Words, b: Self::Words) -> Self::Words;
    unsafe fn sub_32(a: Self::Words, b: Self::Words) -> Self::Words;
    unsafe fn and(a: Self::Words, b: Self::Words) -> Self::Words;
    unsafe fn twice_twice(a: Self::Words) -> Self::Words;
    /// The exponents of floats, signed.
    unsafe fn exponent(a: Self::Words) -> Self::Words;
    unsafe fn without_low_byte(a: Self::Words) -> Self::Words;

    unsafe fn splat(x: f32) -> Self::Floats;
    unsafe fn of_unsigned(a: Self::Words) -> Self::Floats;
    unsafe fn of_signed(a: Self::Words) -> Self::Floats;
    unsafe fn bits(a: Self::Floats) -> Self::Words;
    unsafe fn of_bits(a: Self::Words) -> Self::Floats;
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn sub(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `c - a * b` for exact products: one rounding, fused or not.
    unsafe fn sub_exact(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    unsafe fn sqrt(a: Self::Floats) -> Self::Floats;
    /// `a` with its sign changed where `sign` has its highest bit.
    unsafe fn flip(a: Self::Floats, sign: Self::Words) -> Self::Floats;
    /// `(a, b)` where bit 30 is clear, `(b, a)` where it is set.
    unsafe fn swap(bit: Self::Words, a: Self::Floats, b: Self::Floats) -> (Self::Floats, Self::Floats);
    /// Stores the elements of `a` and `b` in turns.
    unsafe fn store(a: Self::Floats, b: Self::Floats, to: *mut f32);
}

/// 512 bits.
pub struct Avx512;

impl Vector for Avx512 {
    type Words = __m512i;
    type Floats = __m512;
    const BLOCKS: usize = 8;

    #[inline(always)]
    unsafe fn splat_64(x: u64) -> __m512i {
        unsafe { _mm512_set1_epi64(x as i64) }
    }
    #[inline(always)]
    unsafe fn count(first: u64) -> __m512i {
        unsafe { _mm512_add_epi64(Self::splat_64(first), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0)) }
    }
    #[inline(always)]
    unsafe fn product(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mul_epu32(a, b) }
    }
    #[inline(always)]
    unsafe fn upper(a: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi64::<32>(a) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        unsafe { _mm512_ternarylogic_epi64::<0x96>(a, b, c) }
    }
    #[inline(always)]
    unsafe fn lower(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mask_shuffle_epi32::<0b10_10_00_00>(a, 0xAAAA, b) }
    }
    #[inline(always)]
    unsafe fn splat_32(x: u32) -> __m512i {
        unsafe { _mm512_set1_epi32(x as i32) }
    }
    #[inline(always)]
    unsafe fn add_32(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_32(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn twice_twice(a: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<2>(a) }
    }
    #[inline(always)]
    unsafe fn exponent(a: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi32::<23>(a) }
    }
    #[inline(always)]
    unsafe fn without_low_byte(a: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi32::<8>(a) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn of_unsigned(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepu32_ps(a) }
    }
    #[inline(always)]
    unsafe fn of_signed(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn bits(a: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(a) }
    }
    #[inline(always)]
    unsafe fn of_bits(a: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_exact(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn flip(a: __m512, sign: __m512i) -> __m512 {
        // a ^ (sign & SIGN)
        let highest = unsafe { Self::splat_32(super::SIGN) };
        unsafe { Self::of_bits(_mm512_ternarylogic_epi32::<0x78>(Self::bits(a), sign, highest)) }
    }
    #[inline(always)]
    unsafe fn swap(bit: __m512i, a: __m512, b: __m512) -> (__m512, __m512) {
        unsafe {
            let set = _mm512_test_epi32_mask(bit, Self::splat_32(QUARTER));
            (_mm512_mask_blend_ps(set, a, b), _mm512_mask_blend_ps(set, b, a))
        }
    }
    #[inline(always)]
    unsafe fn store(a: __m512, b: __m512, to: *mut f32) {
        unsafe {
            let low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
            let high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
            _mm512_storeu_ps(to, _mm512_permutex2var_ps(a, low, b));
            _mm512_storeu_ps(to.add(16), _mm512_permutex2var_ps(a, high, b));
        }
    }
}

/// 256 bits.
pub struct Avx2;

impl Vector for Avx2 {
    type Words = __m256i;
    type Floats = __m256;
    const BLOCKS: usize = 4;

    #[inline(always)]
    unsafe fn splat_64(x: u64) -> __m256i {
        unsafe { _mm256_set1_epi64x(x as i64) }
    }
    #[inline(always)]
    unsafe fn count(first: u64) -> __m256i {
        unsafe { _mm256_add_epi64(Self::splat_64(first), _mm256_set_epi64x(3, 2, 1, 0)) }
    }
    #[inline(always)]
    unsafe fn product(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_mul_epu32(a, b) }
    }
    #[inline(always)]
    unsafe fn upper(a: __m256i) -> __m256i {
        unsafe { _mm256_srli_epi64::<32>(a) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn xor3(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        unsafe { Self::xor(a, Self::xor(b, c)) }
    }
    #[inline(always)]
    unsafe fn lower(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_blend_epi32::<0b1010_1010>(a, _mm256_slli_epi64::<32>(b)) }
    }
    #[inline(always)]
    unsafe fn splat_32(x: u32) -> __m256i {
        unsafe { _mm256_set1_epi32(x as i32) }
    }
    #[inline(always)]
    unsafe fn add_32(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_32(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn and(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn twice_twice(a: __m256i) -> __m256i {
        unsafe { _mm256_slli_epi32::<2>(a) }
    }
    #[inline(always)]
    unsafe fn exponent(a: __m256i) -> __m256i {
        unsafe { _mm256_srai_epi32::<23>(a) }
    }
    #[inline(always)]
    unsafe fn without_low_byte(a: __m256i) -> __m256i {
        unsafe { _mm256_srli_epi32::<8>(a) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn of_unsigned(a: __m256i) -> __m256 {
        // Halves as the mantissas of floats of two scales; only the sum is rounded.
        unsafe {
            let low = Self::of_bits(_mm256_blend_epi16::<0b1010_1010>(a, Self::splat_32(0x4B00_0000)));
            let high = Self::of_bits(_mm256_blend_epi16::<0b1010_1010>(
                _mm256_srli_epi32::<16>(a),
                Self::splat_32(0x5300_0000),
            ));
            Self::add(Self::sub(high, Self::splat(f32::from_bits(0x5300_0080))), low)
        }
    }
    #[inline(always)]
    unsafe fn of_signed(a: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn bits(a: __m256) -> __m256i {
        unsafe { _mm256_castps_si256(a) }
    }
    #[inline(always)]
    unsafe fn of_bits(a: __m256i) -> __m256 {
        unsafe { _mm256_castsi256_ps(a) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_exact(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { Self::sub(c, Self::mul(a, b)) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: __m256) -> __m256 {
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn flip(a: __m256, sign: __m256i) -> __m256 {
        unsafe { Self::of_bits(Self::xor(Self::bits(a), Self::and(sign, Self::splat_32(super::SIGN)))) }
    }
    #[inline(always)]
    unsafe fn swap(bit: __m256i, a: __m256, b: __m256) -> (__m256, __m256) {
        unsafe {
            let highest = Self::of_bits(Self::add_32(bit, bit));
            (_mm256_blendv_ps(a, b, highest), _mm256_blendv_ps(b, a, highest))
        }
    }
    #[inline(always)]
    unsafe fn store(a: __m256, b: __m256, to: *mut f32) {
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(low, high));
            _mm256_storeu_ps(to.add(8), _mm256_permute2f128_ps::<0x31>(low, high));
        }
    }
}

/// [`super::fill`] with AVX-512.
///
/// # Safety
/// The host has AVX-512 F, BW, DQ and VL; the counters drawn have the same upper half.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn avx512<D: Draw>(key: Key, first: u64, out: &mut [f32]) {
    unsafe { fill::<Avx512, D, 4>(key, first, out) }
}

/// [`super::fill`] with AVX2.
///
/// # Safety
/// The host has AVX2; the counters drawn have the same upper half.
#[target_feature(enable = "avx2")]
pub unsafe fn avx2<D: Draw>(key: Key, first: u64, out: &mut [f32]) {
    unsafe { fill::<Avx2, D, 2>(key, first, out) }
}

/// Numbers of the largest group: `K` vectors of blocks.
const MOST: usize = 4 * 8 * 4;

#[inline(always)]
unsafe fn fill<V: Vector, D: Draw, const K: usize>(key: Key, first: u64, out: &mut [f32]) {
    let philox = unsafe { Philox::<V>::new(key, (first >> 32) as u32) };
    let (mut first, mut groups) = (first, out.chunks_exact_mut(4 * V::BLOCKS * K));
    for out in &mut groups {
        // SAFETY: there is room for a group.
        unsafe { philox.draw::<D, K>(first, out.as_mut_ptr()) };
        first = first.wrapping_add((V::BLOCKS * K) as u64);
    }
    let rest = groups.into_remainder();
    if !rest.is_empty() {
        let mut part = [0.0; MOST];
        // SAFETY: there is room for a group.
        unsafe { philox.draw::<D, K>(first, part.as_mut_ptr()) };
        rest.copy_from_slice(&part[..rest.len()]);
    }
}

/// Philox4x32-10 of counters that differ in their lowest word: what the first two rounds know is computed once.
struct Philox<V: Vector> {
    multipliers: [V::Words; 2],
    /// The keys of rounds 3 to 10.
    keys: [[V::Words; 2]; 8],
    /// What the first round mixes into word 2, and the second into words 0 and 2.
    mixed: [V::Words; 3],
    /// Word 3 after the second round.
    last: V::Words,
}

impl<V: Vector> Philox<V> {
    #[inline(always)]
    unsafe fn new(key: Key, high: u32) -> Self {
        let [k0, k1, high0, high1] = key.words();
        let round = |r: u32| [k0.wrapping_add(r.wrapping_mul(WEYL[0])), k1.wrapping_add(r.wrapping_mul(WEYL[1]))];
        let product = |i: usize, word: u32| u64::from(MULTIPLIERS[i]) * u64::from(word);
        let first = product(1, high0);
        let second = product(0, (first >> 32) as u32 ^ high ^ k0);
        let [next0, next1] = round(1);
        let mixed = [high1 ^ k1, first as u32 ^ next0, (second >> 32) as u32 ^ next1];
        let splat = |word: u32| unsafe { V::splat_64(word.into()) };
        let mut keys = [[splat(0); 2]; 8];
        for (r, keys) in keys.iter_mut().enumerate() {
            let [k0, k1] = round(r as u32 + 2);
            *keys = [splat(k0), splat(k1)];
        }
        Self {
            multipliers: [splat(MULTIPLIERS[0]), splat(MULTIPLIERS[1])],
            keys,
            mixed: [splat(mixed[0]), splat(mixed[1]), splat(mixed[2])],
            last: splat(second as u32),
        }
    }

    /// Stores a group: the numbers of `K` vectors of blocks from `first` on.
    #[inline(always)]
    unsafe fn draw<D: Draw, const K: usize>(&self, first: u64, to: *mut f32) {
        unsafe {
            let [a, b] = D::pairs::<V, K>(self.blocks::<K>(first));
            for k in 0..K {
                V::store(a[k], b[k], to.add(4 * V::BLOCKS * k));
            }
        }
    }

    /// Words 0 and 2, and words 1 and 3, in turns, of the blocks from `first` on.
    #[inline(always)]
    unsafe fn blocks<const K: usize>(&self, first: u64) -> [[V::Words; K]; 2] {
        let ([m0, m1], [x, y, z]) = (self.multipliers, self.mixed);
        let mut words = [[self.last; 4]; K];
        unsafe {
            for (k, words) in words.iter_mut().enumerate() {
                let a = V::product(V::count(first.wrapping_add((k * V::BLOCKS) as u64)), m0);
                let b = V::product(V::xor(V::upper(a), x), m1);
                *words = [V::xor(V::upper(b), y), b, V::xor(a, z), self.last];
            }
            for [k0, k1] in self.keys {
                for words in &mut words {
                    let (a, b) = (V::product(words[0], m0), V::product(words[2], m1));
                    *words = [V::xor3(V::upper(b), words[1], k0), b, V::xor3(V::upper(a), words[3], k1), a];
                }
            }
            let (mut even, mut odd) = ([self.last; K], [self.last; K]);
            for k in 0..K {
                even[k] = V::lower(words[k][0], words[k][2]);
                odd[k] = V::lower(words[k][1], words[k][3]);
            }
            [even, odd]
        }
    }
}

/// `$value` for every `$k` of `0..K`.
macro_rules! each {
    ($zero:expr, $k:ident => $value:expr) => {{
        let mut values = [$zero; K];
        for $k in 0..K {
            values[$k] = $value;
        }
        values
    }};
}

/// [`super::Uniform`].
#[inline(always)]
pub unsafe fn units<V: Vector, const K: usize>([a, b]: [[V::Words; K]; 2]) -> [[V::Floats; K]; 2] {
    unsafe {
        let (zero, unit) = (V::splat(0.0), V::splat(UNIT));
        let of = |word| V::mul(V::of_signed(V::without_low_byte(word)), unit);
        [each!(zero, k => of(a[k])), each!(zero, k => of(b[k]))]
    }
}

/// [`super::Normal`].
#[inline(always)]
pub unsafe fn normals<V: Vector, const K: usize>([a, b]: [[V::Words; K]; 2]) -> [[V::Floats; K]; 2] {
    unsafe {
        let radius = radius::<V, K>(a);
        let [sin, cos] = sin_cos::<V, K>(b);
        let zero = V::splat(0.0);
        [each!(zero, k => V::mul(radius[k], cos[k])), each!(zero, k => V::mul(radius[k], sin[k]))]
    }
}

/// [`super::radius`].
#[inline(always)]
unsafe fn radius<V: Vector, const K: usize>(a: [V::Words; K]) -> [V::Floats; K] {
    unsafe {
        let (zero, none) = (V::splat(0.0), V::splat_32(0));
        let (root, mantissa) = (V::splat_32(ROOT_HALF), V::splat_32(MANTISSA));
        let u = each!(zero, k => V::add(V::of_unsigned(a[k]), V::splat(0.5)));
        let bits = each!(none, k => V::sub_32(V::bits(u[k]), V::splat_32(ROOT_HALF + TWO_32)));
        let e = each!(zero, k => V::of_signed(V::exponent(bits[k])));
        let m = each!(zero, k => V::of_bits(V::add_32(V::and(bits[k], mantissa), root)));
        let m = each!(zero, k => V::sub(m[k], V::splat(1.0)));
        let z = each!(zero, k => V::mul(m[k], m[k]));
        let mut p = [V::splat(LOG[0]); K];
        for c in &LOG[1..] {
            p = each!(zero, k => V::add(V::mul(p[k], m[k]), V::splat(*c)));
        }
        let p = each!(zero, k => V::mul(V::mul(p[k], m[k]), z[k]));
        let y = each!(zero, k => V::add(V::sub(p[k], V::mul(V::splat(LN_4[1]), e[k])), z[k]));
        let y = each!(zero, k => V::sub_exact(V::splat(2.0), m[k], y[k]));
        each!(zero, k => V::sqrt(V::sub_exact(V::splat(LN_4[0]), e[k], y[k])))
    }
}

/// [`super::sin_cos`].
#[inline(always)]
unsafe fn sin_cos<V: Vector, const K: usize>(turn: [V::Words; K]) -> [[V::Floats; K]; 2] {
    unsafe {
        let zero = V::splat(0.0);
        let x = each!(zero, k => V::mul(V::of_signed(V::twice_twice(turn[k])), V::splat(TURN)));
        let z = each!(zero, k => V::mul(x[k], x[k]));
        let mut sin = [V::splat(SIN[0]); K];
        let mut cos = [V::splat(COS[0]); K];
        for i in 1..3 {
            sin = each!(zero, k => V::add(V::mul(sin[k], z[k]), V::splat(SIN[i])));
            cos = each!(zero, k => V::add(V::mul(cos[k], z[k]), V::splat(COS[i])));
        }
        let sin = each!(zero, k => V::add(V::mul(V::mul(sin[k], z[k]), x[k]), x[k]));
        let cos = each!(zero, k => V::mul(V::mul(cos[k], z[k]), z[k]));
        let cos = each!(zero, k => V::add(V::sub_exact(V::splat(0.5), z[k], cos[k]), V::splat(1.0)));
        let (mut sines, mut cosines) = (sin, cos);
        for k in 0..K {
            let turned = V::add_32(turn[k], V::splat_32(EIGHTH));
            let (sin, cos) = V::swap(turned, sin[k], cos[k]);
            sines[k] = V::flip(sin, turned);
            cosines[k] = V::flip(cos, V::add_32(turned, V::splat_32(QUARTER)));
        }
        [sines, cosines]
    }
}
