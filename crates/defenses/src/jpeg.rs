//! JPEG compression of random quality.

#![expect(clippy::needless_range_loop, reason = "lanes run side by side")]

use std::num::Wrapping;

use candle_core::{DType, Tensor};
use game::{Defense, Entry, Gradient, Key, vectorised};
use gpu::kernels::{Call, Parameters, Source};
use serde::{Deserialize, Serialize};

use crate::dct::{self, LANES, Table, Tile};
use crate::device::{Batch, Dims};
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};
use crate::scratch::Scratch;

const SOURCE: Source = crate::device::source!("jpeg");

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
const LUMA: Table<u8> = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
];
const CHROMA: Table<u8> = [
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

/// Bytes, and small sums of them.
type Short = Wrapping<i16>;

#[inline(always)]
const fn short(value: Int) -> Short {
    Wrapping(value.0 as i16)
}

#[inline(always)]
const fn long(value: Short) -> Int {
    Wrapping(value.0 as i32)
}

/// The steps of a quality, as libjpeg scales them.
fn steps(table: &Table<u8>, quality: usize) -> Table<i32> {
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

/// `value * factor` for a value of 16 bits, which every one but the largest sum is.
#[inline(always)]
fn times(value: Int, factor: i16) -> Int {
    #[cfg(test)]
    assert!(i16::try_from(value.0).is_ok(), "{value}");
    int(i32::from(value.0 as i16) * i32::from(factor))
}

/// The odd part that both transforms share (Loeffler, Ligtenberg and Moschytz 1989): libjpeg's accurate integer method.
#[inline(always)]
fn odd([a, b, c, d]: [Int; 4]) -> [Int; 4] {
    let (z1, z2, z3, z4) = (a + d, b + c, a + c, b + d);
    let z5 = (z3 + z4) * int(9633);
    let (z1, z2) = (times(z1, -7373), times(z2, -20995));
    let (z3, z4) = (times(z3, -16069) + z5, times(z4, -3196) + z5);
    [times(a, 2446) + z1 + z3, times(b, 16819) + z2 + z4, times(c, 25172) + z2 + z3, times(d, 12299) + z1 + z4]
}

/// One pass of the cosine transform, down every column; the first leaves fractional bits, the second takes them away.
#[inline(always)]
fn transform(Tile(x): &mut Tile<Int>, second: bool) {
    let bits = if second { CONST_BITS + PASS_BITS } else { CONST_BITS - PASS_BITS };
    for lane in 0..LANES {
        let at = |i: usize| x[i][lane];
        let (s0, s1, s2, s3) = (at(0) + at(7), at(1) + at(6), at(2) + at(5), at(3) + at(4));
        let odd = odd([at(3) - at(4), at(2) - at(5), at(1) - at(6), at(0) - at(7)]);
        let (even0, even3, even1, even2) = (s0 + s3, s0 - s3, s1 + s2, s1 - s2);
        let whole = |value: Int| if second { descale(value, PASS_BITS) } else { value << PASS_BITS };
        let z = times(even2 + even3, 4433);
        x[0][lane] = whole(even0 + even1);
        x[4][lane] = whole(even0 - even1);
        x[2][lane] = descale(z + times(even3, 6270), bits);
        x[6][lane] = descale(z - times(even2, 15137), bits);
        for (k, odd) in [7, 5, 3, 1].into_iter().zip(odd) {
            x[k][lane] = descale(odd, bits);
        }
    }
}

/// One pass of the inverse, down every column.
#[inline(always)]
fn transform_back(Tile(x): &mut Tile<Int>, second: bool) {
    let bits = if second { CONST_BITS + PASS_BITS + 3 } else { CONST_BITS - PASS_BITS };
    for lane in 0..LANES {
        let at = |k: usize| x[k][lane];
        let z = times(at(2) + at(6), 4433);
        let (low, high) = (z - times(at(6), 15137), z + times(at(2), 6270));
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
    fn quantise(plane: &mut [Short], height: usize, width: usize, steps: &Table<i32>) {
        let steps = Tile(std::array::from_fn(|k| std::array::from_fn(|lane| int(steps[k][lane % 8]))));
        // A spectrum is 8 times the orthonormal one.
        let reciprocals = dct::each(&steps, |step| 1.0 / (step << 3).0 as f32);
        for top in (0..height).step_by(8) {
            for left in (0..width).step_by(LANES) {
                let bytes = dct::load(plane, (height, width), (top, left));
                let mut tile = dct::turned(&dct::each(&bytes, |byte| long(byte) - int(128)));
                transform(&mut tile, false);
                tile = dct::turned_back(&tile);
                transform(&mut tile, true);
                let table = steps.0.as_flattened().iter().zip(reciprocals.0.as_flattened());
                for (value, (&step, &reciprocal)) in tile.0.as_flattened_mut().iter_mut().zip(table) {
                    // Halves go away from zero. The half added keeps exact quotients from falling short.
                    let size = if *value < int(0) { -*value } else { *value } + (step << 2);
                    // SAFETY: at most 2^15.
                    let count = int(unsafe { ((size.0 as f32 + 0.5) * reciprocal).to_int_unchecked() });
                    *value = if *value < int(0) { -count } else { count } * step;
                }
                transform_back(&mut tile, false);
                tile = dct::turned(&tile);
                transform_back(&mut tile, true);
                tile = dct::turned_back(&tile);
                let bytes = dct::each(&tile, |value| short(byte(value + int(128))));
                dct::store(&bytes, plane, (height, width), (top, left));
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

/// A pixel as a byte; NaN is black.
#[inline(always)]
#[expect(clippy::manual_clamp, reason = "clamping keeps NaN; the greater of NaN and 0 is 0")]
fn rounded<F: Pixel>(x: F) -> Int {
    let x = (x.widen() as f32).max(0.0).min(1.0);
    // SAFETY: in 0..=255.5.
    int(unsafe { (x * 255.0 + 0.5).to_int_unchecked() }) & int(255)
}

vectorised! {
    fn to_bytes<F: Pixel>(x: &[F], out: &mut [Short]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = short(rounded(x));
        }
    }
}

vectorised! {
    fn from_bytes<F: Pixel>(x: &[Short], out: &mut [F]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = F::of_byte(x.0.into());
        }
    }
}

vectorised! {
    /// Pixels of red, green and blue to bytes of luma and chroma, with libjpeg's 16-bit fractions.
    fn to_ycc<F: Pixel>(r: &[F], g: &[F], b: &[F], y: &mut [Short], cb: &mut [Short], cr: &mut [Short]) {
        // Chroma's halves go down.
        let centre = int((128 << 16) + 32767);
        for ((((y, cb), cr), (&r, &g)), &b) in y.iter_mut().zip(cb).zip(cr).zip(r.iter().zip(g)).zip(b) {
            let (red, green, blue) = (rounded(r), rounded(g), rounded(b));
            let luma = times(red, 19595) + times(green + green, 19235) + times(blue, 7471) + int(32768);
            *y = short(luma >> 16);
            *cb = short(((blue << 15) - times(red, 11059) - times(green, 21709) + centre) >> 16);
            *cr = short(((red << 15) - times(green, 27439) - times(blue, 5329) + centre) >> 16);
        }
    }
}

vectorised! {
    /// The inverse of [`to_ycc`].
    fn to_rgb<F: Pixel>(y: &[Short], cb: &[Short], cr: &[Short], r: &mut [F], g: &mut [F], b: &mut [F]) {
        let (centre, half) = (int(128), int(32768));
        for ((((r, g), b), (&y, &cb)), &cr) in r.iter_mut().zip(g).zip(b).zip(y.iter().zip(cb)).zip(cr) {
            let (luma, blue, red) = (long(y), long(cb) - centre, long(cr) - centre);
            // 65536 + 26345, 22554 and 65536 - 18734, and 131072 - 14942.
            *r = F::of_byte(byte(luma + red + ((times(red, 26345) + half) >> 16)).0);
            *g = F::of_byte(byte(luma - red + ((times(red, 18734) - times(blue, 22554) + half) >> 16)).0);
            *b = F::of_byte(byte(luma + blue + blue + ((half - times(blue, 14942)) >> 16)).0);
        }
    }
}

/// The columns of a halved plane, filled up to whole blocks.
const fn halved(width: usize) -> usize {
    width.div_ceil(2).next_multiple_of(8)
}

vectorised! {
    /// Halves a plane along both axes: means of four, halves rounded down and up in turns.
    ///
    /// Columns are filled up as libjpeg does, with means of the last pixels and not with the last mean.
    fn halve(x: &[Short], height: usize, width: usize, out: &mut [Short]) {
        let mean = |j: usize, sum: Short| (sum + Wrapping(1 + (j as i16 & 1))) >> 2;
        for (i, out) in out.chunks_exact_mut(halved(width)).enumerate() {
            let row = |k: usize| &x[(2 * i + k).min(height - 1) * width..][..width];
            let (above, below) = (row(0), row(1));
            let pairs = above.chunks_exact(2).zip(below.chunks_exact(2));
            for ((j, out), (above, below)) in out.iter_mut().enumerate().zip(pairs) {
                *out = mean(j, above[0] + above[1] + below[0] + below[1]);
            }
            let last = (above[width - 1] + below[width - 1]) << 1;
            for (j, out) in out.iter_mut().enumerate().skip(width / 2) {
                *out = mean(j, last);
            }
        }
    }
}

/// Rows of a halved plane at its full size.
struct Doubled<'a> {
    plane: &'a [Short],
    rows: usize,
    columns: usize,
    stride: usize,
    sums: Scratch<Short>,
    row: Scratch<Short>,
}

impl<'a> Doubled<'a> {
    fn new(plane: &'a [Short], height: usize, width: usize) -> Self {
        let (rows, columns) = (height.div_ceil(2), width.div_ceil(2));
        let (sums, row) = (Scratch::of(Wrapping(0), columns + 2), Scratch::of(Wrapping(0), 2 * columns));
        Self { plane, rows, columns, stride: halved(width), sums, row }
    }

    /// Row `i`: three quarters of the nearest pixel, one of the next, along either axis.
    fn row(&mut self, i: usize) -> &[Short] {
        let near = i / 2;
        let next = if i.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(self.rows - 1) };
        let row = |i: usize| &self.plane[i * self.stride..][..self.columns];
        blend(row(near), row(next), &mut self.sums, &mut self.row);
        &self.row
    }
}

vectorised! {
    fn blend(near: &[Short], next: &[Short], sums: &mut [Short], out: &mut [Short]) {
        let (n, thrice) = (near.len(), Wrapping(3));
        for ((sum, &near), &next) in sums[1..].iter_mut().zip(near).zip(next) {
            *sum = thrice * near + next;
        }
        // The first and last column are their own neighbours.
        (sums[0], sums[n + 1]) = (sums[1], sums[n]);
        let neighbours = sums.iter().zip(&sums[1..]).zip(&sums[2..]);
        for (out, ((&before, &at), &after)) in out.chunks_exact_mut(2).zip(neighbours) {
            out[0] = (thrice * at + before + Wrapping(8)) >> 4;
            out[1] = (thrice * at + after + Wrapping(7)) >> 4;
        }
    }
}

/// Compresses and decompresses.
fn compress<F: Pixel>(quality: usize, x: &[F], shape: Shape, out: &mut [F]) {
    let Shape { channels, height, width } = shape;
    let luma = steps(&LUMA, quality);
    let mut bytes = Scratch::of(Wrapping(0), x.len());
    if channels != 3 {
        to_bytes(x, &mut bytes);
        bytes.chunks_exact_mut(shape.area()).for_each(|plane| quantise(plane, height, width, &luma));
        return from_bytes(&bytes, out);
    }
    let [y, cb, cr] = thirds_mut(&mut bytes);
    let [r, g, b] = thirds(x);
    to_ycc(r, g, b, y, cb, cr);
    quantise(y, height, width, &luma);
    let chroma = steps(&CHROMA, quality);
    let small = [&*cb, &*cr].map(|plane| {
        let (rows, columns) = (height.div_ceil(2), halved(width));
        let mut small = Scratch::of(Wrapping(0), rows * columns);
        halve(plane, height, width, &mut small);
        quantise(&mut small, rows, columns, &chroma);
        small
    });
    let [mut cb, mut cr] = small.each_ref().map(|plane| Doubled::new(plane, height, width));
    let [r, g, b] = thirds_mut(out);
    let rows = r.chunks_exact_mut(width).zip(g.chunks_exact_mut(width)).zip(b.chunks_exact_mut(width));
    for ((i, y), ((r, g), b)) in y.chunks_exact(width).enumerate().zip(rows) {
        to_rgb(y, cb.row(i), cr.row(i), r, g, b);
    }
}

/// The three channels.
fn thirds<T>(x: &[T]) -> [&[T]; 3] {
    let (a, rest) = x.split_at(x.len() / 3);
    let (b, c) = rest.split_at(a.len());
    [a, b, c]
}

fn thirds_mut<T>(x: &mut [T]) -> [&mut [T]; 3] {
    let (a, rest) = x.split_at_mut(x.len() / 3);
    let (b, c) = rest.split_at_mut(a.len());
    [a, b, c]
}

impl Jpeg {
    fn quality(&self, key: Key) -> usize {
        kernel::integer(key, self.quality_min, self.quality_max)
    }
}

impl Kernel for Jpeg {
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut Canvas<'_, F>) {
        compress(self.quality(key), x, shape, out.rest());
    }

    fn backward<F: Pixel>(&self, _: &[F], _: Shape, _: Key, _: &[F], _: &mut [F]) {}

    fn launch(&self, batch: &Batch<'_>) -> candle_core::Result<Tensor> {
        let (mut call, Shape { height, width, .. }) = (batch.call(), batch.shape);
        let (images, to) = (batch.keys.len(), batch.images(&call, batch.shape)?);
        let (rows, stride) = (height.div_ceil(2), halved(width));
        let bytes = call.output(batch.len(batch.shape), DType::U8)?;
        let small = call.output(images * 2 * rows * stride, DType::U8)?;
        let quality = |&key| self.quality(key);
        let tables =
            batch.keys.iter().map(quality).flat_map(|quality| [steps(&LUMA, quality), steps(&CHROMA, quality)]);
        let planes = Planes {
            from: call.read(batch.x, DType::F32)?,
            to: to.address,
            bytes: bytes.address,
            small: small.address,
            steps: call.upload(tables.collect::<Vec<_>>().as_flattened().as_flattened())?,
            stride: stride as u32,
            shape: batch.shape.into(),
        };
        let blocks = |height: usize, width: usize| height.div_ceil(8) * width.div_ceil(8);
        let each = if batch.shape.channels == 3 {
            vec![
                ("to_ycc", images * height * width),
                ("quantise", images * blocks(height, width)),
                ("halve", images * 2 * rows * stride),
                ("quantise_small", images * 2 * blocks(rows, stride)),
                ("to_rgb", images * height * width),
            ]
        } else {
            let all = batch.len(batch.shape);
            vec![("to_bytes", all), ("quantise", batch.planes() * blocks(height, width)), ("from_bytes", all)]
        };
        planes.launch(&call, &each)?;
        Ok(to.tensor())
    }
}

/// As `Jpeg` in jpeg.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Planes {
    from: u64,
    to: u64,
    bytes: u64,
    small: u64,
    steps: u64,
    stride: u32,
    shape: Dims,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Planes {}

impl Planes {
    fn launch(&self, call: &Call, kernels: &[(&str, usize)]) -> candle_core::Result<()> {
        // SAFETY: there are two tables for each image, and blocks leave out what is outside a plane.
        kernels.iter().try_for_each(|&(kernel, threads)| unsafe { call.launch(&SOURCE, kernel, threads, self) })
    }
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
    fn the_greatest_sums_fit_in_16_bits() {
        // Signs of every cosine of a block: what makes one coefficient, or one sum of a pass, as large as it can be.
        let cos = |k: usize, i: usize| (std::f64::consts::PI * (2 * i + 1) as f64 * k as f64 / 16.0).cos();
        let shape = Shape { channels: 64, height: 8, width: 8 };
        let pixel = |at: usize| {
            let (k, l, i, j) = (at / 512, at / 64 % 8, at / 8 % 8, at % 8);
            if cos(k, i) * cos(l, j) > 0.0 { 1.0 } else { 0.0 }
        };
        let x: Vec<f32> = (0..shape.len()).map(pixel).collect();
        for x in [x.clone(), x.iter().map(|x| 1.0 - x).collect()] {
            for quality in [1, 5, 25, 50, 100] {
                let mut out = vec![0.0; x.len()];
                compress(quality, &x, shape, &mut out);
                assert!(quality < 100 || x.iter().zip(&out).all(|(x, out)| (x - out).abs() < 0.02));
            }
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
