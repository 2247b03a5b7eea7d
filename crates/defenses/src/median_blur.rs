//! Median filter of random size.

use candle_core::{DType, Tensor};
#[cfg(target_arch = "x86_64")]
use game::InstructionSet;
use game::{Entry, Gradient, Key, vectorised};
use gpu::kernels::{Call, Parameters, Source};
use serde::{Deserialize, Serialize};

use crate::device::{Batch, Dims};
use crate::gaussian_blur::{check_sizes, odd};
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};
use crate::scratch::Scratch;

const SOURCE: Source = crate::device::source!("median_blur");

/// Replaces every pixel by the median of a rectangle whose height and width are drawn per image.
///
/// BaRT's median filter (Raff et al. 2019) as Gao et al. 2022 released it, with `kornia.filters.median_blur`: sizes are
/// drawn as for the [Gaussian blur](crate::GaussianBlur), channels are filtered apart, and zeros surround the image (in
/// the releases of kornia up to 2022; later ones reflect unless told).
///
/// The exact derivative leads to the pixel that is the median (the first in the rectangle where several are equal), and
/// nowhere where the median is a surrounding zero.
///
/// Pixels are replaced by their ranks in the channel, 16 bits wide; medians of ranks are found bit by bit, for a row of
/// pixels at a time, by counting the ranks below a bound. (A GPU's threads bisect the values themselves.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MedianBlur {
    /// The smallest number drawn for a kernel size, in pixels; at least 1.
    pub kernel_min: u64,
    /// The largest number drawn for a kernel size, in pixels.
    pub kernel_max: u64,
    /// How an attack differentiates it.
    pub gradient: Gradient,
}

impl Default for MedianBlur {
    fn default() -> Self {
        Self { kernel_min: 2, kernel_max: 13, gradient: Gradient::Identity }
    }
}

impl Entry for MedianBlur {
    const ABOUT: &'static str = "median filter of random size per axis, zeros outside";

    fn check(&self) -> Result<(), String> {
        check_sizes(self.kernel_min, self.kernel_max)
    }

    fn examples() -> Vec<Self> {
        vec![
            Self { kernel_max: 5, gradient: Gradient::Exact, ..Self::default() },
            Self { gradient: Gradient::Exact, ..Self::default() },
            Self::default(),
        ]
    }
}

impl MedianBlur {
    /// The height and width drawn by `key`.
    fn drawn(&self, key: Key) -> [usize; 2] {
        [0, 1].map(|axis| odd(key.at(axis), self.kernel_min, self.kernel_max))
    }
}

/// How many medians are found side by side.
const LANES: usize = 32;

/// A rectangle of outputs, and the ranks of the pixels they read.
struct Tile<'a, F> {
    top: usize,
    left: usize,
    height: usize,
    width: usize,
    /// Ranks among the tile's pixels and zero, with zeros outside the image; rows of `pitch`.
    ranks: &'a [u16],
    pitch: usize,
    /// The value of each rank.
    values: &'a [F],
}

/// The longest side of a tile: with its surroundings it has at most 2^16 ranks, zero included.
const fn side(kernel: usize) -> usize {
    256 - kernel
}

/// Sorts by value: a radix sort, 11 bits at a time.
fn sort<F: Pixel>(items: &mut Vec<F::Placed>, other: &mut Vec<F::Placed>) {
    const DIGIT: u32 = 11;
    const DIGITS: usize = 1 << DIGIT;
    other.resize(items.len(), F::Placed::default());
    for shift in (0..F::BITS).step_by(DIGIT as usize) {
        let digit = |item| F::placed(item, shift).2 as usize & (DIGITS - 1);
        let mut starts = [0u32; DIGITS];
        items.iter().for_each(|&item| starts[digit(item)] += 1);
        if starts.iter().any(|&count| count as usize == items.len()) {
            continue;
        }
        let mut sum = 0;
        for start in &mut starts {
            (*start, sum) = (sum, sum + *start);
        }
        for &item in items.iter() {
            let start = &mut starts[digit(item)];
            other[*start as usize] = item;
            *start += 1;
        }
        std::mem::swap(items, other);
    }
}

/// Calls `each` with every tile of a plane.
fn tiles<F: Pixel>(x: &[F], shape: Shape, [down, across]: [usize; 2], mut each: impl FnMut(&Tile<F>)) {
    let (mut items, mut other) = (Scratch::empty(), Scratch::empty());
    let (mut ranks, mut values) = (Scratch::empty(), Scratch::empty());
    for top in (0..shape.height).step_by(side(down)) {
        for left in (0..shape.width).step_by(side(across)) {
            let (height, width) = (side(down).min(shape.height - top), side(across).min(shape.width - left));
            // Full groups of lanes read past the last pixel.
            let pitch = width.next_multiple_of(LANES) + across - 1;
            let (first, before) = (left.saturating_sub(across / 2), (across / 2).saturating_sub(left));
            let last = (left + width + across / 2).min(shape.width);
            items.clear();
            items.push(F::zero().place(u32::MAX));
            for i in 0..height + down - 1 {
                let Some(row) = (top + i).checked_sub(down / 2).filter(|&row| row < shape.height) else { continue };
                let start = i * pitch + before;
                // Adding zero makes one value of -0 and 0.
                let row = &x[row * shape.width..][first..last];
                items.extend(row.iter().enumerate().map(|(j, &x)| (x + F::zero()).place((start + j) as u32)));
            }
            sort::<F>(&mut items, &mut other);
            values.clear();
            let mut zero = 0;
            for &item in items.iter() {
                let (value, place, _) = F::placed(item, 0);
                if values.last() != Some(&value) {
                    values.push(value);
                }
                if place == u32::MAX {
                    zero = values.len() - 1;
                }
            }
            ranks.clear();
            ranks.resize((height + down - 1) * pitch, zero as u16);
            let mut rank = 0;
            for &item in items.iter() {
                let (value, place, _) = F::placed(item, 0);
                rank += usize::from(value != values[rank]);
                if place != u32::MAX {
                    ranks[place as usize] = rank as u16;
                }
            }
            each(&Tile { top, left, height, width, ranks: &ranks, pitch, values: &values });
        }
    }
}

/// The median ranks of `LANES` rectangles side by side, the first with its corner at `ranks[0]`.
///
/// The median is the largest rank with at most half of the rectangle below it.
fn medians(ranks: &[u16], pitch: usize, size: [usize; 2], bits: u32, medians: &mut [u16; LANES]) {
    #[cfg(target_arch = "x86_64")]
    if InstructionSet::detected() == InstructionSet::Avx512 {
        // SAFETY: the host has these instructions.
        return unsafe { medians_avx512(ranks, pitch, size, bits, medians) };
    }
    medians_plain(ranks, pitch, size, bits, medians);
}

/// [`medians`], counting under masks: two instructions for 32 ranks, where the compiler's choice for the plain loop is
/// three.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn medians_avx512(ranks: &[u16], pitch: usize, [down, across]: [usize; 2], bits: u32, medians: &mut [u16; LANES]) {
    use std::arch::x86_64::{
        __m512i, _mm512_cmple_epu16_mask, _mm512_cmplt_epu16_mask, _mm512_loadu_epi16, _mm512_mask_add_epi16,
        _mm512_mask_mov_epi16, _mm512_or_si512, _mm512_set1_epi16, _mm512_setzero_si512, _mm512_storeu_epi16,
    };
    const VECTORS: usize = LANES / 32;

    assert!(down > 0 && across > 0 && ranks.len() >= (down - 1) * pitch + across - 1 + LANES);
    let (one, half) = (_mm512_set1_epi16(1), _mm512_set1_epi16((down * across / 2) as i16));
    let mut found: [__m512i; VECTORS] = [_mm512_setzero_si512(); VECTORS];
    for bit in (0..bits).rev() {
        let bit = _mm512_set1_epi16((1u16 << bit) as i16);
        let bound = found.map(|found| _mm512_or_si512(found, bit));
        let mut below = [_mm512_setzero_si512(); VECTORS];
        for i in 0..down {
            for j in 0..across {
                for k in 0..VECTORS {
                    // SAFETY: `i * pitch + j + LANES` is at most the length asserted.
                    let values = unsafe { _mm512_loadu_epi16(ranks.as_ptr().add(i * pitch + j + 32 * k).cast()) };
                    let less = _mm512_cmplt_epu16_mask(values, bound[k]);
                    below[k] = _mm512_mask_add_epi16(below[k], less, below[k], one);
                }
            }
        }
        for k in 0..VECTORS {
            let reached = _mm512_cmple_epu16_mask(below[k], half);
            found[k] = _mm512_mask_mov_epi16(found[k], reached, bound[k]);
        }
    }
    for (k, found) in found.into_iter().enumerate() {
        // SAFETY: `LANES` ranks have room for this many vectors.
        unsafe { _mm512_storeu_epi16(medians.as_mut_ptr().add(32 * k).cast(), found) };
    }
}

vectorised! {
    /// [`medians`] on any host.
    fn medians_plain(ranks: &[u16], pitch: usize, size: [usize; 2], bits: u32, medians: &mut [u16; LANES]) {
        let [down, across] = size;
        let half = (down * across / 2) as u16;
        let mut found = [0u16; LANES];
        for bit in (0..bits).rev() {
            let bound = found.map(|found| found | 1 << bit);
            let mut below = [0u16; LANES];
            for i in 0..down {
                let row = &ranks[i * pitch..][..across - 1 + LANES];
                for j in 0..across {
                    let values: &[u16; LANES] = row[j..j + LANES].try_into().expect("as many as lanes");
                    for lane in 0..LANES {
                        below[lane] = below[lane].wrapping_add(u16::from(values[lane] < bound[lane]));
                    }
                }
            }
            for lane in 0..LANES {
                found[lane] |= u16::from(below[lane] <= half) << bit;
            }
        }
        *medians = found;
    }
}

/// Calls `each` with every tile, a pixel of it (row, column), and the pixel's median rank.
fn filter<F: Pixel>(x: &[F], shape: Shape, size: [usize; 2], mut each: impl FnMut(&Tile<F>, usize, usize, u16)) {
    tiles(x, shape, size, |tile| {
        let bits = usize::BITS - (tile.values.len() - 1).leading_zeros();
        let mut found = [0; LANES];
        for i in 0..tile.height {
            for start in (0..tile.width).step_by(LANES) {
                medians(&tile.ranks[i * tile.pitch + start..], tile.pitch, size, bits, &mut found);
                for (j, &rank) in (start..tile.width).zip(&found) {
                    each(tile, i, j, rank);
                }
            }
        }
    });
}

/// The median of every rectangle.
fn blur<F: Pixel>(size: [usize; 2], x: &[F], shape: Shape, out: &mut [F]) {
    for (x, out) in x.chunks_exact(shape.area()).zip(out.chunks_exact_mut(shape.area())) {
        filter(x, shape, size, |tile, i, j, rank| {
            out[(tile.top + i) * shape.width + tile.left + j] = tile.values[usize::from(rank)];
        });
    }
}

/// The transpose of the derivative of [`blur`] at `x`.
fn route<F: Pixel>([down, across]: [usize; 2], x: &[F], shape: Shape, upstream: &[F], out: &mut [F]) {
    let planes = x.chunks_exact(shape.area()).zip(upstream.chunks_exact(shape.area()));
    for ((x, upstream), out) in planes.zip(out.chunks_exact_mut(shape.area())) {
        filter(x, shape, [down, across], |tile, i, j, rank| {
            let is_median = |&(k, l): &(usize, usize)| tile.ranks[(i + k) * tile.pitch + j + l] == rank;
            let inside = |(k, l): (usize, usize)| {
                let row = (tile.top + i + k).checked_sub(down / 2).filter(|&row| row < shape.height)?;
                let column = (tile.left + j + l).checked_sub(across / 2).filter(|&column| column < shape.width)?;
                Some(row * shape.width + column)
            };
            let mut window = (0..down).flat_map(|k| (0..across).map(move |l| (k, l)));
            if let Some(from) = window.find(is_median).and_then(inside) {
                out[from] += upstream[(tile.top + i) * shape.width + tile.left + j];
            }
        });
    }
}

impl Kernel for MedianBlur {
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut Canvas<'_, F>) {
        let out = out.rest();
        blur(self.drawn(key), x, shape, out);
    }

    fn backward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, upstream: &[F], out: &mut [F]) {
        route(self.drawn(key), x, shape, upstream, out);
    }

    fn launch(&self, batch: &Batch<'_>) -> candle_core::Result<Tensor> {
        let mut call = batch.call();
        let to = batch.images(&call, batch.shape)?;
        let medians = Medians { to: to.address, ..self.medians(&mut call, batch)? };
        // SAFETY: there is a size for each image, and kernels read no pixel outside one.
        unsafe { call.launch(&SOURCE, "median", batch.len(batch.shape), &medians)? };
        Ok(to.tensor())
    }

    fn launch_back(&self, batch: &Batch<'_>, upstream: &Tensor) -> candle_core::Result<Tensor> {
        let mut call = batch.call();
        let to = batch.images(&call, batch.shape)?;
        let sources = batch.words(&call, batch.shape.len())?;
        let medians = Medians {
            upstream: call.read(upstream, DType::F32)?,
            to: to.address,
            sources: sources.address,
            ..self.medians(&mut call, batch)?
        };
        // SAFETY: as above, and there is a source for each pixel.
        unsafe {
            call.launch(&SOURCE, "locate", batch.len(batch.shape), &medians)?;
            call.launch(&SOURCE, "median_back", batch.len(batch.shape), &medians)?;
        }
        Ok(to.tensor())
    }
}

/// As `Median` in median_blur.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Medians {
    x: u64,
    upstream: u64,
    to: u64,
    sources: u64,
    sizes: u64,
    shape: Dims,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Medians {}

impl MedianBlur {
    /// What every kernel is given.
    fn medians(&self, call: &mut Call, batch: &Batch<'_>) -> candle_core::Result<Medians> {
        let sizes = batch.keys.iter().flat_map(|&key| self.drawn(key)).map(|size| size as u32);
        Ok(Medians {
            x: call.read(batch.x, DType::F32)?,
            upstream: 0,
            to: 0,
            sources: 0,
            sizes: call.upload(&sizes.collect::<Vec<u32>>())?,
            shape: batch.shape.into(),
        })
    }
}

kernel::defense!(MedianBlur);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn values_are_kornias() {
        for case in golden::cases("median-blur") {
            let size = [0, 1].map(|axis| case.params["kernel"][axis] as usize);
            let mut out = vec![0.0; case.output.len()];
            blur(size, &case.image, case.shape(), &mut out);
            assert_eq!(out, case.output, "{size:?}");
        }
    }

    /// The definition: sort every rectangle.
    fn plain(size: [usize; 2], x: &[f32], shape: Shape) -> Vec<f32> {
        let at = |c: usize, i: isize, j: isize| {
            let inside = (0..shape.height as isize).contains(&i) && (0..shape.width as isize).contains(&j);
            if inside { x[c * shape.area() + i as usize * shape.width + j as usize] } else { 0.0 }
        };
        let [up, left] = size.map(|n| n as isize / 2);
        let mut out = vec![];
        for c in 0..shape.channels {
            for i in 0..shape.height as isize {
                for j in 0..shape.width as isize {
                    let mut window: Vec<f32> =
                        (i - up..=i + up).flat_map(|i| (j - left..=j + left).map(move |j| at(c, i, j))).collect();
                    window.sort_by(f32::total_cmp);
                    out.push(window[window.len() / 2]);
                }
            }
        }
        out
    }

    #[test]
    fn tiles_meet_without_seams_and_ties_and_signs_are_in_order() {
        for (height, width, size) in [(3, 520, [3, 13]), (300, 5, [13, 3]), (9, 64, [5, 5]), (1, 1, [3, 3])] {
            let shape = Shape { channels: 2, height, width };
            let mut x = vec![0.0; shape.len()];
            Key::root(3).fill_normal(&mut x);
            // Half of the image has few values, zeros of both signs among them.
            let coarse = x.len() / 2;
            x[..coarse].iter_mut().for_each(|x| *x = (2.0 * *x).round() / 2.0);
            let mut out = vec![0.0; x.len()];
            blur(size, &x, shape, &mut out);
            assert_eq!(out, plain(size, &x, shape), "{shape:?} {size:?}");
        }
    }

    #[test]
    fn every_instruction_set_counts_the_same() {
        let (pitch, mut noise) = (LANES + 12, vec![0.0; 13 * (LANES + 12)]);
        Key::root(5).fill_uniform(&mut noise);
        let ranks: Vec<u16> = noise.iter().map(|x| (x * 65_536.0) as u16).collect();
        for size in [[1, 1], [3, 13], [13, 7]] {
            let (mut any, mut best) = ([0; LANES], [0; LANES]);
            medians_plain(&ranks, pitch, size, 16, &mut any);
            medians(&ranks, pitch, size, 16, &mut best);
            assert_eq!(any, best);
        }
    }

    #[test]
    fn the_largest_kernel_fits() {
        let (shape, mut x) = (Shape { channels: 1, height: 300, width: 4 }, vec![0.0; 1200]);
        Key::root(9).fill_uniform(&mut x);
        let mut out = vec![1.0; x.len()];
        blur([255, 1], &x, shape, &mut out);
        assert_eq!(out, plain([255, 1], &x, shape));
    }
}
