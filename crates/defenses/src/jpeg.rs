//! JPEG compression of random quality.

#![expect(clippy::needless_range_loop, reason = "lanes run side by side")]

use std::num::Wrapping;

use game::{Defense, Entry, Gradient, Key, vectorised};
use serde::{Deserialize, Serialize};

use crate::block_dct::{load, store};
use crate::dct::{self, Block};
use crate::kernel::{self, Kernel, Pixel, Shape};
use crate::scratch::Scratch;

/// Compresses as a JPEG file of random quality, and decompresses.
///
/// BaRT's JPEG (Raff et al. 2019) as the code released with Gao et al. 2022 has it: quality 55 to 74, with Pillow's
/// defaults (libjpeg's tables, chroma halved along both axes, triangular upsampling). Pixels are rounded to bytes first.
/// No file is made: entropy coding loses nothing. The rest is libjpeg's integer arithmetic, byte for byte. Images of other
/// than three channels are compressed channel by channel, as luma.
///
/// The true derivative is 0 almost everywhere, so only the identity is offered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jpeg {
    /// The lowest quality; at least 1.
    pub quality_min: u64,
    /// The highest quality; at most 100.
    pub quality_max: u64,
}

impl Default for Jpeg {
    fn default() -> Self {
        Self { quality_min: 55, quality_max: 74 }
    }
}

impl Entry for Jpeg {
    const ABOUT: &'static str = "JPEG compression of random quality";

    fn check(&self) -> Result<(), String> {
        match (self.quality_min, self.quality_max) {
            (0, _) => Err("quality_min = 0 must be at least 1".into()),
            (_, high @ 101..) => Err(format!("quality_max = {high} must be at most 100")),
            (low, high) => kernel::ordered(("quality_min", low), ("quality_max", high)),
        }
    }
}

/// The standard's tables at quality 50 (ITU-T T.81, annex K.1), rows by vertical frequency.
const LUMA: Block<u8> = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
];
const CHROMA: Block<u8> = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    [99; 8],
    [99; 8],
    [99; 8],
    [99; 8],
];

/// Whole numbers as libjpeg computes with them.
type Int = Wrapping<i32>;

const fn int(value: i32) -> Int {
    Wrapping(value)
}

/// The steps of a quality, as libjpeg scales them.
fn steps(table: &Block<u8>, quality: usize) -> Block<i32> {
    let scale = if quality < 50 { 5000 / quality } else { 200 - 2 * quality };
    table.map(|row| row.map(|step| ((usize::from(step) * scale + 50) / 100).clamp(1, 255) as i32))
}

/// Fractional bits of the transforms' constants, and of what the first pass leaves.
const CONST_BITS: usize = 13;
const PASS_BITS: usize = 2;

/// `value / 2^bits`, halves up.
#[inline(always)]
fn descale(value: Int, bits: usize) -> Int {
    (value + int(1 << (bits - 1))) >> bits
}

/// The odd part that both transforms share (Loeffler, Ligtenberg and Moschytz 1989): libjpeg's accurate integer method.
#[inline(always)]
fn odd([a, b, c, d]: [Int; 4]) -> [Int; 4] {
    let (z1, z2, z3, z4) = (a + d, b + c, a + c, b + d);
    let z5 = (z3 + z4) * int(9633);
    let (z1, z2) = (z1 * int(-7373), z2 * int(-20995));
    let (z3, z4) = (z3 * int(-16069) + z5, z4 * int(-3196) + z5);
    [a * int(2446) + z1 + z3, b * int(16819) + z2 + z4, c * int(25172) + z2 + z3, d * int(12299) + z1 + z4]
}

/// One pass of the cosine transform, down every column; the first leaves fractional bits, the second takes them away.
#[inline(always)]
fn transform(x: &mut Block<Int>, second: bool) {
    let bits = if second { CONST_BITS + PASS_BITS } else { CONST_BITS - PASS_BITS };
    for lane in 0..8 {
        let at = |i: usize| x[i][lane];
        let (s0, s1, s2, s3) = (at(0) + at(7), at(1) + at(6), at(2) + at(5), at(3) + at(4));
        let odd = odd([at(3) - at(4), at(2) - at(5), at(1) - at(6), at(0) - at(7)]);
        let (even0, even3, even1, even2) = (s0 + s3, s0 - s3, s1 + s2, s1 - s2);
        let whole = |value: Int| if second { descale(value, PASS_BITS) } else { value << PASS_BITS };
        let z = (even2 + even3) * int(4433);
        x[0][lane] = whole(even0 + even1);
        x[4][lane] = whole(even0 - even1);
        x[2][lane] = descale(z + even3 * int(6270), bits);
        x[6][lane] = descale(z - even2 * int(15137), bits);
        for (k, odd) in [7, 5, 3, 1].into_iter().zip(odd) {
            x[k][lane] = descale(odd, bits);
        }
    }
}

/// One pass of the inverse, down every column.
#[inline(always)]
fn transform_back(x: &mut Block<Int>, second: bool) {
    let bits = if second { CONST_BITS + PASS_BITS + 3 } else { CONST_BITS - PASS_BITS };
    for lane in 0..8 {
        let at = |k: usize| x[k][lane];
        let z = (at(2) + at(6)) * int(4433);
        let (low, high) = (z - at(6) * int(15137), z + at(2) * int(6270));
        let (sum, difference) = ((at(0) + at(4)) << CONST_BITS, (at(0) - at(4)) << CONST_BITS);
        let even = [sum + high, difference + low, difference - low, sum - high];
        let [o0, o1, o2, o3] = odd([at(7), at(5), at(3), at(1)]);
        for (i, (even, odd)) in even.into_iter().zip([o3, o2, o1, o0]).enumerate() {
            x[i][lane] = descale(even + odd, bits);
            x[7 - i][lane] = descale(even - odd, bits);
        }
    }
}

vectorised! {
    /// Quantises the blocks of a plane of bytes; what comes out are bytes.
    fn quantise(plane: &mut [Int], height: usize, width: usize, steps: &Block<i32>) {
        // A spectrum is 8 times the orthonormal one.
        let reciprocals = steps.map(|row| row.map(|step| 1.0 / (8 * step) as f32));
        for i in 0..height.div_ceil(8) {
            for j in 0..width.div_ceil(8) {
                let mut block = dct::transposed(&load(plane, height, width, i, j));
                for row in &mut block {
                    for value in row {
                        *value -= int(128);
                    }
                }
                transform(&mut block, false);
                block = dct::transposed(&block);
                transform(&mut block, true);
                for ((row, steps), reciprocals) in block.iter_mut().zip(steps).zip(&reciprocals) {
                    for ((value, &step), &reciprocal) in row.iter_mut().zip(steps).zip(reciprocals) {
                        // Halves go away from zero. The half added keeps exact quotients from falling short.
                        let size = if *value < int(0) { -*value } else { *value } + int(step << 2);
                        // SAFETY: at most 2^15.
                        let count = int(unsafe { ((size.0 as f32 + 0.5) * reciprocal).to_int_unchecked() });
                        *value = if *value < int(0) { -count } else { count } * int(step);
                    }
                }
                transform_back(&mut block, false);
                block = dct::transposed(&block);
                transform_back(&mut block, true);
                for row in &mut block {
                    for value in row {
                        *value = byte(*value + int(128));
                    }
                }
                store(&dct::transposed(&block), height, width, i, j, plane);
            }
        }
    }
}

/// The nearest byte.
#[inline(always)]
fn byte(value: Int) -> Int {
    let positive = if value < int(0) { int(0) } else { value };
    if positive > int(255) { int(255) } else { positive }
}

vectorised! {
    fn to_bytes<F: Pixel>(x: &[F], out: &mut [Int]) {
        for (out, &x) in out.iter_mut().zip(x) {
            let x = x.clipped().widen() as f32;
            // NaN passes the clipping; it becomes black.
            let x = if x >= 0.0 { x } else { 0.0 };
            // SAFETY: in 0..=255.5.
            *out = int(unsafe { (x * 255.0 + 0.5).to_int_unchecked() });
        }
    }
}

vectorised! {
    fn from_bytes<F: Pixel>(x: &[Int], out: &mut [F]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = F::drawn(x.0 as f32).over(F::narrow(255.0), 1.0 / 255.0);
        }
    }
}

vectorised! {
    /// Red, green and blue to luma and chroma, in place, with libjpeg's 16-bit fractions.
    fn to_ycc(r: &mut [Int], g: &mut [Int], b: &mut [Int]) {
        // Chroma's halves go down.
        let centre = int((128 << 16) + 32767);
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            let (red, green, blue) = (*r, *g, *b);
            *r = (int(19595) * red + int(38470) * green + int(7471) * blue + int(32768)) >> 16;
            *g = ((blue << 15) - int(11059) * red - int(21709) * green + centre) >> 16;
            *b = ((red << 15) - int(27439) * green - int(5329) * blue + centre) >> 16;
        }
    }
}

vectorised! {
    /// The inverse of [`to_ycc`].
    fn to_rgb(y: &mut [Int], cb: &mut [Int], cr: &mut [Int]) {
        let half = int(32768);
        for ((y, cb), cr) in y.iter_mut().zip(cb).zip(cr) {
            let (luma, blue, red) = (*y, *cb - int(128), *cr - int(128));
            *y = byte(luma + ((int(91881) * red + half) >> 16));
            *cb = byte(luma + ((half - int(22554) * blue - int(46802) * red) >> 16));
            *cr = byte(luma + ((int(116130) * blue + half) >> 16));
        }
    }
}

/// The columns of a halved plane, filled up to whole blocks.
const fn halved(width: usize) -> usize {
    width.div_ceil(2).next_multiple_of(8)
}

/// Halves a plane along both axes: means of four, halves rounded down and up in turns.
///
/// Columns are filled up as libjpeg does, with means of the last pixels and not with the last mean.
fn halve(x: &[Int], height: usize, width: usize) -> Scratch<Int> {
    let mut out = Scratch::empty();
    for i in 0..height.div_ceil(2) {
        let row = |k: usize| &x[(2 * i + k).min(height - 1) * width..][..width];
        let (above, below) = (row(0), row(1));
        let mean = |j: usize, sum: Int| (sum + int(1 + (j as i32 & 1))) >> 2;
        let pairs = above.chunks_exact(2).zip(below.chunks_exact(2));
        out.extend(pairs.enumerate().map(|(j, (above, below))| mean(j, above[0] + above[1] + below[0] + below[1])));
        let last = (above[width - 1] + below[width - 1]) << 1;
        out.extend((width / 2..halved(width)).map(|j| mean(j, last)));
    }
    out
}

vectorised! {
/// Doubles a plane along both axes: three quarters of the nearest pixel, one of the next, along either.
fn double(x: &[Int], height: usize, width: usize, out: &mut [Int]) {
    let (rows, columns) = (height.div_ceil(2), width.div_ceil(2));
    // The first and last column are their own neighbours.
    let mut sums = Scratch::of(int(0), columns + 2);
    for (i, out) in out.chunks_exact_mut(width).enumerate() {
        let near = i / 2;
        let next = if i % 2 == 0 { near.saturating_sub(1) } else { (near + 1).min(rows - 1) };
        let (near, next) = (&x[near * halved(width)..][..columns], &x[next * halved(width)..][..columns]);
        for ((sum, &near), &next) in sums[1..].iter_mut().zip(near).zip(next) {
            *sum = int(3) * near + next;
        }
        (sums[0], sums[columns + 1]) = (sums[1], sums[columns]);
        for (out, sums) in out.chunks_mut(2).zip(sums.windows(3)) {
            out[0] = (int(3) * sums[1] + sums[0] + int(8)) >> 4;
            if let Some(out) = out.get_mut(1) {
                *out = (int(3) * sums[1] + sums[2] + int(7)) >> 4;
            }
        }
    }
}
}

/// Compresses and decompresses.
fn compress<F: Pixel>(quality: usize, x: &[F], shape: Shape, out: &mut [F]) {
    let Shape { channels, height, width } = shape;
    let mut bytes = Scratch::of(int(0), x.len());
    to_bytes(x, &mut bytes);
    let luma = steps(&LUMA, quality);
    if channels == 3 {
        let (y, chroma) = bytes.split_at_mut(shape.area());
        let (cb, cr) = chroma.split_at_mut(shape.area());
        to_ycc(y, cb, cr);
        quantise(y, height, width, &luma);
        for plane in [&mut *cb, &mut *cr] {
            let mut small = halve(plane, height, width);
            quantise(&mut small, height.div_ceil(2), halved(width), &steps(&CHROMA, quality));
            double(&small, height, width, plane);
        }
        to_rgb(y, cb, cr);
    } else {
        bytes.chunks_exact_mut(shape.area()).for_each(|plane| quantise(plane, height, width, &luma));
    }
    from_bytes(&bytes, out);
}

impl Jpeg {
    fn quality(&self, key: Key) -> usize {
        kernel::integer(key, self.quality_min, self.quality_max)
    }
}

impl Kernel for Jpeg {
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut [F]) {
        compress(self.quality(key), x, shape, out);
    }

    fn backward<F: Pixel>(&self, _: &[F], _: Shape, _: Key, _: &[F], _: &mut [F]) {}
}

impl Defense for Jpeg {
    fn apply(&self, x: &candle_core::Tensor, keys: &[Key]) -> candle_core::Result<candle_core::Tensor> {
        kernel::forward(self, x, keys)
    }

    fn gradient(&self) -> Gradient {
        Gradient::Identity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn bytes_are_pillows() {
        for case in golden::cases("jpeg") {
            let mut out = vec![0.0; case.output.len()];
            compress(case.params["quality"][0] as usize, &case.image, case.shape(), &mut out);
            golden::assert_close(&out, &case.output, 1e-14);
            // The compression itself moves bytes by several levels.
            let moved: f64 = case.image.iter().zip(&out).map(|(x, out)| (x - out).abs()).sum();
            assert!(255.0 * moved / out.len() as f64 > 2.0);
        }
    }

    #[test]
    fn qualities_fill_their_range() {
        let mut counts = [0u32; 128];
        for i in 0..20_000 {
            counts[Jpeg::default().quality(Key::root(1).at(i))] += 1;
        }
        assert!(counts[55..=74].iter().all(|&count| (f64::from(count) - 1_000.0).abs() < 5.0 * 31.0), "{counts:?}");
        assert_eq!(counts.iter().sum::<u32>(), counts[55..=74].iter().sum::<u32>());
    }
}
