//! k-winners-take-all: each image's largest values stay, in place.
//!
//! Whichever way the smallest value that stays is found, the values that stay are the same, so this may depend on the
//! width of vectors. A sample of the values tells where it is likely to be, and one pass over the image gathers what lies
//! there, some twentieth of it; bisection over the floats' bits finds it among those.

use super::View;
use simd::{Kernel, Simd};

/// Values of the sample, and the fewest of an image that are not gathered at once.
const SAMPLE: usize = 512;
const FEW: usize = 4 * SAMPLE;
/// Floats beyond those gathered that may be written.
const BEYOND: usize = 5 * 16;

/// Floats of scratch for an image of `volume` values.
pub(crate) fn scratch(volume: usize) -> usize {
    volume.max(2 * SAMPLE) + BEYOND
}

/// In each image the values that `keep - 1` or fewer exceed stay; all others become 0. NaN counts as infinite.
pub(crate) struct KeepLargest {
    pub at: View<f32>,
    /// One bit a value: whether it stays. May be absent.
    pub mask: View<u8>,
    /// At least 1, and at most the values of an image.
    pub keep: usize,
    pub channels: usize,
    pub channels_padded: usize,
    pub images: usize,
    pub rows: usize,
    pub columns: usize,
    /// Room for [`scratch`] floats.
    pub scratch: *mut f32,
}

impl Kernel for KeepLargest {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        for image in 0..self.images {
            unsafe {
                let low = self.smallest_kept::<S>(image);
                self.keep_from::<S>(image, low);
            }
        }
    }
}

impl KeepLargest {
    fn volume(&self) -> usize {
        self.rows * self.columns * self.channels
    }

    /// A number that as many values reach as stay.
    #[inline(always)]
    unsafe fn smallest_kept<S: Simd>(&self, image: usize) -> f32 {
        let (mut low, mut high) = match self.volume() {
            ..FEW => (f32::NEG_INFINITY, f32::INFINITY),
            _ => unsafe { self.likely::<S>(image) },
        };
        loop {
            let (above, between) = unsafe { self.gather::<S>(image, low, high) };
            if above >= self.keep {
                if high == f32::INFINITY {
                    return high;
                }
                (low, high) = (high, f32::INFINITY);
            } else if above + between < self.keep {
                (low, high) = (f32::NEG_INFINITY, low);
            } else {
                return unsafe { nth_largest::<S>(self.scratch, between, self.keep - above, low, high) };
            }
        }
    }

    /// An interval in which the smallest value that stays is likely to be, from a sample.
    #[inline(always)]
    unsafe fn likely<S: Simd>(&self, image: usize) -> (f32, f32) {
        let (none, all) = (f32::NEG_INFINITY, f32::INFINITY);
        unsafe {
            let count = self.sample::<S>(image);
            let rank = (self.keep * count) as f64 / self.volume() as f64;
            // Three standard errors, were the sample's values independent.
            let margin = 3.0 * (rank * (1.0 - rank / count.max(1) as f64)).max(1.0).sqrt();
            let (few, many) = ((rank - margin) as usize, (rank + margin) as usize + 1);
            let high = if few == 0 { all } else { nth_largest::<S>(self.scratch, count, few, none, all) };
            let low = if many >= count { none } else { nth_largest::<S>(self.scratch, count, many, none, all) };
            (low, high)
        }
    }

    /// Gathers some of an image's values in the scratch, and answers how many.
    #[inline(always)]
    unsafe fn sample<S: Simd>(&self, image: usize) -> usize {
        let across = self.channels_padded / S::LANES;
        let vectors = self.rows * self.columns * across;
        // An odd step visits all channels.
        let step = (vectors * S::LANES / SAMPLE) | 1;
        let mut count = 0;
        for vector in (0..vectors).step_by(step) {
            let (pixel, channel) = (vector / across, vector % across * S::LANES);
            let lanes = S::LANES.min(self.channels - channel);
            unsafe {
                let (low, high) = (S::splat(f32::NEG_INFINITY), S::splat(f32::INFINITY));
                let from = self.at.at.add(self.at.offset(image, pixel / self.columns, pixel % self.columns) + channel);
                count += S::gather_between(self.scratch.add(count), S::load(from), low, high, lanes);
            }
        }
        count
    }

    /// Gathers the values in `[low, high)` in the scratch, and answers how many are not below `high`, and how many are in
    /// between.
    #[inline(always)]
    unsafe fn gather<S: Simd>(&self, image: usize, low: f32, high: f32) -> (usize, usize) {
        // Stretches of values without padding.
        let padded = self.channels < self.channels_padded;
        let (across, len) = if padded { (self.columns, self.channels) } else { (1, self.columns * self.channels) };
        unsafe {
            let (lows, highs, none) = (S::splat(low), S::splat(high), S::splat(f32::NEG_INFINITY));
            let (mut above, mut between) = (S::splat(0.0), 0);
            for stretch in 0..self.rows * across {
                let from = self.at.at.add(self.at.offset(image, stretch / across, stretch % across));
                let mut i = 0;
                while i + S::LANES <= len {
                    let v = S::load(from.add(i));
                    above = count::<S>(above, v, highs);
                    between += S::gather_between(self.scratch.add(between), v, lows, highs, S::LANES);
                    i += S::LANES;
                }
                if i < len {
                    let bits = (1u16 << (len - i)) - 1;
                    let v = S::if_set((&raw const bits).cast(), S::load(from.add(i)), none);
                    above = count::<S>(above, v, highs);
                    between += S::gather_between(self.scratch.add(between), v, lows, highs, len - i);
                }
            }
            (sum::<S>(above), between)
        }
    }

    /// The values not below `low` stay.
    #[inline(always)]
    unsafe fn keep_from<S: Simd>(&self, image: usize, low: f32) {
        unsafe {
            let (low, zero) = (S::splat(low), S::splat(0.0));
            for y in 0..self.rows {
                let at = self.at.at.add(self.at.offset(image, y, 0));
                let mask = self.mask.at.wrapping_add(self.mask.offset(image, y, 0));
                for i in (0..self.columns * self.channels_padded).step_by(S::LANES) {
                    let v = S::load(at.add(i));
                    if !self.mask.at.is_null() {
                        S::store_not_below(mask.add(i / 8), v, low);
                    }
                    S::store(at.add(i), S::if_greater(low, v, zero, v));
                }
            }
        }
    }
}

/// `counts`, plus one in each lane that is not below `low`.
#[inline(always)]
unsafe fn count<S: Simd>(counts: S::V, v: S::V, low: S::V) -> S::V {
    unsafe { S::if_greater(low, v, counts, S::add(counts, S::splat(1.0))) }
}

/// The sum of the lanes, which are whole numbers.
#[inline(always)]
unsafe fn sum<S: Simd>(counts: S::V) -> usize {
    let mut lanes = [0.0; 16];
    unsafe { S::store(lanes.as_mut_ptr(), counts) };
    lanes.iter().sum::<f32>() as usize
}

/// Floats as integers of the same order.
fn ordinal(x: f32) -> i32 {
    let bits = x.to_bits() as i32;
    bits ^ bits >> 31 & i32::MAX
}

/// The float of an ordinal.
fn float(ordinal: i32) -> f32 {
    f32::from_bits((ordinal ^ ordinal >> 31 & i32::MAX) as u32)
}

/// A number that `n` of `len` floats in `[low, high)` reach; or if there is none because of ties, the `n`-th largest.
/// Overwrites what is behind the floats.
#[inline(always)]
unsafe fn nth_largest<S: Simd>(floats: *mut f32, len: usize, n: usize, low: f32, high: f32) -> f32 {
    unsafe {
        let none = S::splat(f32::NEG_INFINITY);
        (0..4).for_each(|i| S::store(floats.add(len + i * S::LANES), none));
        // `low` is reached by `n` or more, `high` by fewer.
        let (mut low, mut high) = (ordinal(low), ordinal(high));
        while low.wrapping_add(1) < high {
            let middle = i32::midpoint(low, high);
            let level = S::splat(float(middle));
            let mut counts = [S::splat(0.0); 4];
            let mut i = 0;
            while i < len {
                for lane in 0..4 {
                    counts[lane] = count::<S>(counts[lane], S::load(floats.add(i + lane * S::LANES)), level);
                }
                i += 4 * S::LANES;
            }
            let count = sum::<S>(S::add(S::add(counts[0], counts[1]), S::add(counts[2], counts[3])));
            if count == n {
                return float(middle);
            }
            if count > n { low = middle } else { high = middle }
        }
        float(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use game::{Key, Phase};
    use simd::Isa;

    /// Keeps the largest of values `(rows, columns, channels)`, channels padded, with a border.
    fn kept(isa: Isa, [rows, columns, channels]: [usize; 3], keep: usize, values: &[f32]) -> (Vec<f32>, Vec<bool>) {
        let channels_padded = channels.next_multiple_of(isa.lanes());
        let (row, pixel) = ((columns + 2) * channels_padded, channels_padded);
        let mut padded = vec![0.0; rows * row];
        let place = |i: usize| i / channels / columns * row + (i / channels % columns + 1) * pixel + i % channels;
        values.iter().enumerate().for_each(|(i, &v)| padded[place(i)] = v);
        let mut mask = vec![0u8; rows * row / 8];
        let mut scratch = vec![f32::NAN; scratch(values.len())];
        let job = KeepLargest {
            at: View { at: padded[pixel..].as_mut_ptr(), image: 0, row, pixel },
            mask: View { at: mask[pixel / 8..].as_mut_ptr(), image: 0, row: row / 8, pixel: pixel / 8 },
            keep,
            channels,
            channels_padded,
            images: 1,
            rows,
            columns,
            scratch: scratch.as_mut_ptr(),
        };
        // SAFETY: the views are of the vectors.
        unsafe { isa.run(&job) };
        let bit = |i: usize| mask[i / 8] >> (i % 8) & 1 == 1;
        let padding = (0..padded.len()).filter(|&i| i % row < pixel || i % row >= row - pixel || i % pixel >= channels);
        assert!(padding.map(|i| padded[i]).all(|v| v == 0.0), "padding is zero");
        (0..values.len()).map(|i| (padded[place(i)], bit(place(i)))).unzip()
    }

    fn check(name: &str, shape: [usize; 3], keep: usize, values: &[f32]) {
        let rank = |v: f32| if v.is_nan() { f32::INFINITY } else { v };
        let mut sorted: Vec<_> = values.iter().map(|&v| rank(v)).collect();
        sorted.sort_by(|a, b| b.partial_cmp(a).unwrap());
        let stays: Vec<_> = values.iter().map(|&v| rank(v) >= sorted[keep - 1]).collect();
        for isa in Isa::available() {
            let (after, mask) = kept(isa, shape, keep, values);
            assert!(mask == stays, "{name} {shape:?} {keep} {isa:?}");
            for ((&before, after), &stays) in values.iter().zip(after).zip(&stays) {
                let bits = if stays { before.to_bits() } else { 0 };
                assert_eq!(after.to_bits(), bits, "{name} {shape:?} {keep} {isa:?}");
            }
        }
    }

    #[test]
    fn the_largest_stay_whatever_the_values() {
        for (at, shape) in [[1, 1, 1], [1, 1, 10], [5, 3, 16], [8, 8, 40], [30, 31, 16], [16, 16, 50], [32, 32, 64]]
            .into_iter()
            .enumerate()
        {
            let volume: usize = shape.iter().product();
            let mut normal = vec![0.0f32; volume];
            Key::root(at as u64).phase(Phase::Data).fill_normal(&mut normal);
            let each = |f: &dyn Fn(usize, f32) -> f32| -> Vec<f32> {
                normal.iter().enumerate().map(|(i, &v)| f(i, v)).collect()
            };
            let specials = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, 1e-42, -f32::NAN, f32::MAX];
            for (name, values) in [
                ("normal", normal.clone()),
                ("half zero", each(&|_, v| v.max(0.0))),
                ("few different", each(&|_, v| v.round())),
                ("one sign", each(&|_, v| -v.abs() - 3.0)),
                ("far apart", each(&|_, v| v.powi(21))),
                ("all equal", vec![-1.5; volume]),
                ("sorted", each(&|i, _| i as f32)),
                ("sorted by channel", each(&|i, v| (i % shape[2]) as f32 + 1e-3 * v)),
                ("special", each(&|i, v| if v > 0.5 { specials[i % 8] } else { v })),
                ("not numbers", vec![f32::NAN; volume]),
                ("infinite", each(&|i, _| specials[1 + i % 2])),
            ] {
                for keep in [1, 2, volume / 10, volume / 3, volume / 2, volume - 1, volume] {
                    check(name, shape, keep.clamp(1, volume), &values);
                }
            }
        }
    }
}
