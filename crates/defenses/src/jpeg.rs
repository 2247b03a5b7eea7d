//! JPEG compression of random quality.

use game::{Defense, Entry, Gradient, Key, vectorised};
use serde::{Deserialize, Serialize};

use crate::block_dct::{load, store};
use crate::dct::{self, Block};
use crate::kernel::{self, Kernel, Pixel, Shape};

/// Compresses as a JPEG file of random quality, and decompresses.
///
/// BaRT's JPEG (Raff et al. 2019) as the code released with Gao et al. 2022 has it: quality 55 to 74, with Pillow's
/// defaults (libjpeg's tables, chroma halved along both axes, triangular upsampling). Pixels are rounded to bytes first.
/// What the file's entropy coding does not change is computed in memory, and the cosine transforms in single precision
/// where libjpeg has integers: bytes differ from Pillow's by a few levels at most, and seldom. Images of other than three
/// channels are compressed channel by channel, as luma.
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

/// The steps of a quality, as libjpeg scales them, transposed as the spectra are.
fn steps(table: &Block<u8>, quality: usize) -> Block<f32> {
    let scale = if quality < 50 { 5000 / quality } else { 200 - 2 * quality };
    let step = |k: usize, l: usize| ((usize::from(table[l][k]) * scale + 50) / 100).clamp(1, 255) as f32;
    std::array::from_fn(|k| std::array::from_fn(|l| step(k, l)))
}

vectorised! {
    /// Quantises the blocks of a plane of bytes; what comes out are bytes.
    fn quantise(plane: &mut [f32], height: usize, width: usize, steps: &Block<f32>) {
        for i in 0..height.div_ceil(8) {
            for j in 0..width.div_ceil(8) {
                let mut block = load(plane, height, width, i, j);
                for row in &mut block {
                    for value in row {
                        *value -= 128.0;
                    }
                }
                let mut spectrum = dct::forward(&block);
                for (row, steps) in spectrum.iter_mut().zip(steps) {
                    for (value, &step) in row.iter_mut().zip(steps) {
                        // Halves go away from zero, and are found through the transform's rounding.
                        let count = (value.abs() / step + 0.500_01).floor();
                        *value = (count * step).copysign(*value);
                    }
                }
                let mut block = dct::backward(&spectrum);
                for row in &mut block {
                    for value in row {
                        *value = byte(*value + 128.0);
                    }
                }
                store(&block, height, width, i, j, plane);
            }
        }
    }
}

/// The nearest byte.
#[inline(always)]
fn byte(value: f32) -> f32 {
    let rounded = (value + 0.5).floor();
    let positive = if rounded < 0.0 { 0.0 } else { rounded };
    if positive > 255.0 { 255.0 } else { positive }
}

vectorised! {
    fn to_bytes<F: Pixel>(x: &[F], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = byte(x.widen() as f32 * 255.0);
        }
    }
}

vectorised! {
    fn from_bytes<F: Pixel>(x: &[f32], out: &mut [F]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = F::drawn(x) / F::narrow(255.0);
        }
    }
}

vectorised! {
    /// Red, green and blue to luma and chroma, in place.
    fn to_ycc(r: &mut [f32], g: &mut [f32], b: &mut [f32]) {
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            let (red, green, blue) = (*r, *g, *b);
            *r = (0.299 * red + 0.587 * green + 0.114 * blue + 0.5).floor();
            // Halves go down, as libjpeg's constant has it.
            *g = (0.5 * blue - 0.168_735_89 * red - 0.331_264_11 * green + 128.499_99).floor();
            *b = (0.5 * red - 0.418_687_6 * green - 0.081_312_41 * blue + 128.499_99).floor();
        }
    }
}

vectorised! {
    /// The inverse of [`to_ycc`].
    fn to_rgb(y: &mut [f32], cb: &mut [f32], cr: &mut [f32]) {
        for ((y, cb), cr) in y.iter_mut().zip(cb).zip(cr) {
            let (luma, blue, red) = (*y, *cb - 128.0, *cr - 128.0);
            *y = byte(luma + (1.402 * red + 0.5).floor());
            *cb = byte(luma + (-0.344_136_29 * blue - 0.714_136_29 * red + 0.5).floor());
            *cr = byte(luma + (1.772 * blue + 0.5).floor());
        }
    }
}

/// Halves a plane along both axes: means of four, halves rounded down and up in turns.
fn halve(x: &[f32], height: usize, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(height.div_ceil(2) * width.div_ceil(2));
    for i in 0..height.div_ceil(2) {
        let row = |k: usize| &x[(2 * i + k).min(height - 1) * width..][..width];
        let (above, below) = (row(0), row(1));
        out.extend((0..width.div_ceil(2)).map(|j| {
            let (left, right) = (2 * j, (2 * j + 1).min(width - 1));
            let bias = if j % 2 == 0 { 1.0 } else { 2.0 };
            ((above[left] + above[right] + below[left] + below[right] + bias) * 0.25).floor()
        }));
    }
    out
}

/// Doubles a plane along both axes: three quarters of the nearest pixel, one of the next, along either.
fn double(x: &[f32], height: usize, width: usize, out: &mut [f32]) {
    let (rows, columns) = (height.div_ceil(2), width.div_ceil(2));
    let mut sums = vec![0.0; columns];
    for (i, out) in out.chunks_exact_mut(width).enumerate() {
        let near = i / 2;
        let next = if i % 2 == 0 { near.saturating_sub(1) } else { (near + 1).min(rows - 1) };
        let (near, next) = (&x[near * columns..][..columns], &x[next * columns..][..columns]);
        for ((sum, near), next) in sums.iter_mut().zip(near).zip(next) {
            *sum = 3.0 * near + next;
        }
        for (j, out) in out.chunks_mut(2).enumerate() {
            let (left, right) = (sums[j.saturating_sub(1)], sums[(j + 1).min(columns - 1)]);
            out[0] = ((3.0 * sums[j] + left + 8.0) / 16.0).floor();
            if let Some(out) = out.get_mut(1) {
                *out = ((3.0 * sums[j] + right + 7.0) / 16.0).floor();
            }
        }
    }
}

/// Compresses and decompresses.
fn compress<F: Pixel>(quality: usize, x: &[F], shape: Shape, out: &mut [F]) {
    let Shape { channels, height, width } = shape;
    let mut bytes = vec![0.0; x.len()];
    to_bytes(x, &mut bytes);
    let luma = steps(&LUMA, quality);
    if channels == 3 {
        let (y, chroma) = bytes.split_at_mut(shape.area());
        let (cb, cr) = chroma.split_at_mut(shape.area());
        to_ycc(y, cb, cr);
        quantise(y, height, width, &luma);
        for plane in [&mut *cb, &mut *cr] {
            let mut small = halve(plane, height, width);
            quantise(&mut small, height.div_ceil(2), width.div_ceil(2), &steps(&CHROMA, quality));
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
    fn bytes_are_pillows_but_for_single_levels() {
        for case in golden::cases("jpeg") {
            let mut out = vec![0.0; case.output.len()];
            compress(case.params["quality"][0] as usize, &case.image, case.shape(), &mut out);
            let levels =
                |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| 255.0 * (a - b).abs()).collect() };
            let differences = levels(&out, &case.output);
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            let (worst, average) = (differences.iter().copied().fold(0.0, f64::max), mean(&differences));
            println!("{:?} {:?}: {worst} {average}", case.shape(), case.params);
            assert!(worst < 4.5 && average < 0.2, "{:?} {:?}: {worst} {average}", case.shape(), case.params);
            // The compression itself moves bytes much farther.
            assert!(mean(&levels(&case.image, &case.output)) > 2.0);
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
