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
/// The most floats in a vector, and vectors counted together.
const WIDEST: usize = 16;
const TOGETHER: usize = 4;
/// Floats beyond those gathered that may be written.
const BEYOND: usize = TOGETHER * WIDEST;

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
        let mut range = match self.volume() {
            ..FEW => ALL,
            _ => unsafe { self.likely::<S>(image) },
        };
        loop {
            let (between, below) = unsafe { self.gather::<S>(image, range) };
            let above = self.volume() - below;
            if above >= self.keep {
                if range.high == ALL.high {
                    return range.high;
                }
                range = Range { low: range.high, ..ALL };
            } else if above + between < self.keep {
                range = Range { high: range.low, ..ALL };
            } else {
                return unsafe { nth_largest::<S>(self.scratch, between, self.keep - above, 0, range) };
            }
        }
    }

    /// Where the smallest value that stays is likely to be, from a sample.
    #[inline(always)]
    unsafe fn likely<S: Simd>(&self, image: usize) -> Range {
        unsafe {
            let (count, range) = self.sample::<S>(image);
            let rank = (self.keep * count) as f64 / self.volume() as f64;
            // Three standard errors, were the sample's values independent, of which the search may give up one.
            let error = (rank * (1.0 - rank / count.max(1) as f64)).max(1.0).sqrt();
            let (few, many) = (rank - 3.0 * error, rank + 3.0 * error);
            let slack = error as usize;
            let high = match few < 1.0 {
                true => ALL.high,
                false => nth_largest::<S>(self.scratch, count, few as usize, slack, range),
            };
            let low = match many >= count as f64 {
                true => ALL.low,
                false => nth_largest::<S>(self.scratch, count, many as usize, slack, Range { high, ..range }),
            };
            Range { low, high }
        }
    }

    /// Gathers some of an image's values in the scratch, and answers how many and their range.
    #[inline(always)]
    unsafe fn sample<S: Simd>(&self, image: usize) -> (usize, Range) {
        let row = self.columns * self.channels_padded;
        // An odd number of vectors visits all channels.
        let step = ((self.rows * row / SAMPLE) | 1) * S::LANES;
        let (mut count, mut i) = (0, 0);
        unsafe {
            let (low, high) = (S::splat(ALL.low), S::splat(ALL.high));
            let (mut least, mut most) = (high, low);
            for y in 0..self.rows {
                let from = self.at.at.add(self.at.offset(image, y, 0));
                while i < row {
                    let padded = self.channels < self.channels_padded;
                    let left = if padded { self.channels - i % self.channels_padded } else { S::LANES };
                    let v = S::load(from.add(i));
                    count += S::gather_between(self.scratch.add(count), v, low, high, left.min(S::LANES))[0];
                    (least, most) = (S::if_greater(least, v, v, least), S::if_greater(v, most, v, most));
                    i += step;
                }
                i -= row;
            }
            let (mut lows, mut highs) = ([ALL.high; WIDEST], [ALL.low; WIDEST]);
            S::store(lows.as_mut_ptr(), least);
            S::store(highs.as_mut_ptr(), most);
            let highest = highs.into_iter().fold(ALL.low, f32::max);
            let above = if highest < ALL.high { float(ordinal(highest) + 1) } else { ALL.high };
            (count, Range { low: lows.into_iter().fold(ALL.high, f32::min), high: above })
        }
    }

    /// Gathers the values in a range in the scratch, and answers how many they are and how many are below its end.
    #[inline(always)]
    unsafe fn gather<S: Simd>(&self, image: usize, range: Range) -> (usize, usize) {
        // Stretches of values without padding.
        let padded = self.channels < self.channels_padded;
        let (across, len) = if padded { (self.columns, self.channels) } else { (1, self.columns * self.channels) };
        let (mut all, mut all_below) = (0, 0);
        unsafe {
            let (low, high) = (S::splat(range.low), S::splat(range.high));
            for stretch in 0..self.rows * across {
                let from = self.at.at.add(self.at.offset(image, stretch / across, stretch % across));
                let mut i = 0;
                while i + S::LANES <= len {
                    let v = S::load(from.add(i));
                    let [between, below] = S::gather_between(self.scratch.add(all), v, low, high, S::LANES);
                    (all, all_below) = (all + between, all_below + below);
                    i += S::LANES;
                }
                if i < len {
                    let v = S::load(from.add(i));
                    let [between, below] = S::gather_between(self.scratch.add(all), v, low, high, len - i);
                    (all, all_below) = (all + between, all_below + below);
                }
            }
        }
        (all, all_below)
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

/// The numbers from `low` to below `high`.
#[derive(Clone, Copy)]
struct Range {
    low: f32,
    high: f32,
}

/// All numbers but infinity.
const ALL: Range = Range { low: f32::NEG_INFINITY, high: f32::INFINITY };

/// How many of `len` floats are not below `level`; behind them is negative infinity.
#[inline(always)]
unsafe fn count<S: Simd>(floats: *const f32, len: usize, level: f32) -> usize {
    let mut lanes = [0.0; WIDEST];
    unsafe {
        let level = S::splat(level);
        let mut counts = [S::splat(0.0); TOGETHER];
        let mut i = 0;
        while i < len {
            for c in 0..TOGETHER {
                let v = S::load(floats.add(i + c * S::LANES));
                counts[c] = S::if_greater(level, v, counts[c], S::add(counts[c], S::splat(1.0)));
            }
            i += TOGETHER * S::LANES;
        }
        let sum = S::add(S::add(counts[0], counts[1]), S::add(counts[2], counts[3]));
        S::store(lanes.as_mut_ptr(), sum);
    }
    // Whole numbers add up alike in any order.
    lanes.iter().map(|&count| count as i32).sum::<i32>() as usize
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

/// A number that `n` of `len` floats reach, give or take `slack`; or if there is none because of ties, the `n`-th
/// largest. It is in `range`, whose end fewer than `n` reach. Overwrites what is behind the floats.
#[inline(always)]
unsafe fn nth_largest<S: Simd>(floats: *mut f32, len: usize, n: usize, slack: usize, range: Range) -> f32 {
    for i in 0..TOGETHER {
        unsafe { S::store(floats.add(len + i * S::LANES), S::splat(f32::NEG_INFINITY)) };
    }
    // `low` is reached by `n` or more, `high` by fewer.
    let Range { mut low, mut high } = range;
    let (mut at_low, mut at_high) = (len, 0);
    for turn in 0.. {
        if ordinal(low).wrapping_add(1) >= ordinal(high) {
            break;
        }
        // Where the floats are spread evenly, it is at this share of the range; where not, other ways to halve it help, the
        // last of which ends after as many turns as floats have bits.
        let share = (at_low - n) as f32 / (at_low - at_high) as f32;
        let guess = match turn % 4 {
            0 | 2 => low + (high - low) * share,
            1 => 0.5 * low + 0.5 * high,
            _ => high,
        };
        let middle = float(i32::midpoint(ordinal(low), ordinal(high)));
        let level = if low < guess && guess < high { guess } else { middle };
        let count = unsafe { count::<S>(floats, len, level) };
        if count.abs_diff(n) <= slack {
            return level;
        }
        if count > n { (low, at_low) = (level, count) } else { (high, at_high) = (level, count) }
    }
    low
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
