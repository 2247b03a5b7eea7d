//! Stochastic activation pruning, and its gradient.
//!
//! What is kept and divided by hangs on `q = 1 - exp(-rate |r|)` with `rate = samples volume / sum |r|`: worked out in f64,
//! so that other programs that do the same take the same decisions but where `q` and a uniform number are equal to 15
//! digits. What is not of f64's precision is the quotient itself. Sums are of eight parts, by channel modulo 8, which
//! every width of vectors makes alike.

use game::Key;

use super::{Finish, View};
use simd::{Kernel, Simd};

/// Parts of a sum.
const PARTS: usize = 8;
/// Added to what is divided by.
const FLOOR: f64 = 1e-8;
/// The most floats in a vector, and pixels whose uniform numbers are turned round together.
const WIDEST: usize = 16;

/// What is kept of the forward pass for the backward one: for each image its values before pruning (f32), a bit for each
/// that stays, and their sum (f64).
#[derive(Clone, Copy)]
pub(crate) struct Record {
    pub values: View<u8>,
    pub mask: View<u8>,
    pub sum: View<u8>,
}

/// Pruning: `r / (q + 1e-8)` where a uniform number is below `q`, else 0.
pub(crate) struct Prune<'a> {
    pub from: View<f32>,
    /// One for each image, and the number of the child to draw from.
    pub keys: &'a [Key],
    pub index: u64,
    pub samples: f64,
    /// May be absent.
    pub record: Option<Record>,
    pub channels: usize,
    pub channels_padded: usize,
    pub rows: usize,
    pub columns: usize,
    pub finish: Finish,
    /// Room for [`scratch`] floats.
    pub scratch: *mut f32,
}

/// The gradient of [`Prune`].
pub(crate) struct Unprune {
    pub from: View<f32>,
    pub samples: f64,
    pub record: Record,
    pub channels: usize,
    pub channels_padded: usize,
    pub images: usize,
    pub rows: usize,
    pub columns: usize,
    pub finish: Finish,
    /// Room for [`scratch`] floats.
    pub scratch: *mut f32,
}

/// Floats of scratch for either.
pub(crate) fn scratch(pixels: usize, channels_padded: usize) -> usize {
    pixels * channels_padded.max(WIDEST)
}

/// `samples volume / sum`, and 0 where all values are 0.
fn rate(samples: f64, volume: usize, sum: f64) -> f64 {
    if sum == 0.0 { 0.0 } else { samples * volume as f64 / sum }
}

/// `a * b + c`, rounded once where that is one instruction.
#[inline(always)]
fn fma<S: Simd>(a: f64, b: f64, c: f64) -> f64 {
    if S::FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `exp(x)` for `x <= 0`, to an error of two units in the last place; below -700 it is `exp(-700)`.
#[inline(always)]
fn exp<S: Simd>(x: f64) -> f64 {
    // 1.5 2^52: what is added to it is rounded to a whole number in its lowest bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    // The natural logarithm of 2 in two parts, the first of so few bits that its multiples are exact.
    const LN_2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
    let x = if x < -700.0 { -700.0 } else { x };
    let rounded = fma::<S>(x, std::f64::consts::LOG2_E, ROUND);
    let whole = rounded - ROUND;
    let rest = fma::<S>(-whole, LN_2[1], fma::<S>(-whole, LN_2[0], x));
    // Taylor's series: within half of ln 2 the next term is 4e-18.
    let mut sum = 1.0 / 6_227_020_800.0;
    for factorial in
        [479_001_600.0, 39_916_800.0, 3_628_800.0, 362_880.0, 40_320.0, 5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0]
    {
        sum = fma::<S>(sum, rest, 1.0 / factorial);
    }
    let power = f64::from_bits((rounded.to_bits() << 52).wrapping_add(1.0f64.to_bits()));
    sum * power
}

impl Kernel for Prune<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        for (image, key) in self.keys.iter().enumerate() {
            unsafe {
                let sum = self.magnitude(image);
                if let Some(record) = self.record {
                    record.sum.at.add(image * record.sum.image).cast::<f64>().write_unaligned(sum);
                }
                let volume = self.rows * self.columns * self.channels;
                let rate = rate(self.samples, volume, sum);
                for channel in (0..self.channels_padded).step_by(S::LANES) {
                    self.prune::<S>(image, key.at(self.index), rate, channel);
                }
            }
        }
    }
}

impl Prune<'_> {
    /// The sum of an image's magnitudes.
    #[inline(always)]
    unsafe fn magnitude(&self, image: usize) -> f64 {
        let mut sums = [0.0; PARTS];
        for y in 0..self.rows {
            let row = unsafe { self.from.at.add(self.from.offset(image, y, 0)) };
            for i in (0..self.columns * self.channels_padded).step_by(PARTS) {
                for part in 0..PARTS {
                    sums[part] += f64::from(unsafe { *row.add(i + part) }.abs());
                }
            }
        }
        sums.iter().sum()
    }

    /// Prunes a vector of channels of all pixels.
    #[inline(always)]
    unsafe fn prune<S: Simd>(&self, image: usize, key: Key, rate: f64, channel: usize) {
        unsafe {
            let pixels = self.rows * self.columns;
            let lanes = S::LANES.min(self.channels - channel);
            let uniform = std::slice::from_raw_parts_mut(self.scratch, lanes * pixels);
            // A vector's channels are a multiple of four, as are the numbers of a block.
            key.fill_uniform_from((channel * pixels / 4) as u64, uniform);
            let mut turned = [[0.0; WIDEST]; WIDEST];
            let (mut y, mut x) = (0, 0);
            for first in (0..pixels).step_by(WIDEST) {
                let count = WIDEST.min(pixels - first);
                for lane in 0..lanes {
                    let from = uniform.as_ptr().add(lane * pixels + first);
                    for p in 0..count {
                        turned[p][lane] = *from.add(p);
                    }
                }
                for uniform in &turned[..count] {
                    self.pixel::<S>([image, y, x], channel, rate, uniform);
                    x += 1;
                    if x == self.columns {
                        (x, y) = (0, y + 1);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn pixel<S: Simd>(&self, [image, y, x]: [usize; 3], channel: usize, rate: f64, uniform: &[f32; WIDEST]) {
        unsafe {
            let v = S::load(self.from.at.add(self.from.offset(image, y, x) + channel));
            let (mut r, mut stays) = ([0.0; WIDEST], [0.0; WIDEST]);
            S::store(r.as_mut_ptr(), v);
            for i in 0..S::LANES {
                let q = 1.0 - exp::<S>(-rate * f64::from(r[i].abs()));
                // Not a number stays, and shows.
                let drop = f64::from(uniform[i]) >= q;
                stays[i] = if drop { 0.0 } else { 1.0 };
                r[i] = if drop { 0.0 } else { r[i] / (q + FLOOR) as f32 };
            }
            if let Some(Record { values, mask, .. }) = self.record {
                S::store(values.at.add(values.offset(image, y, x)).cast::<f32>().add(channel), v);
                let mask = mask.at.add(mask.offset(image, y, x) + channel / 8);
                S::store_inside(mask, S::load(stays.as_ptr()), S::splat(2.0));
            }
            self.finish.store::<S>(S::load(r.as_ptr()), self.finish.spot(image, y, x), channel);
        }
    }
}

/// With `y = r / (q + floor)` of the values that stay: a value moves its own `y` directly, and all `y` through the sum of
/// magnitudes.
impl Kernel for Unprune {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let volume = self.rows * self.columns * self.channels;
        for image in 0..self.images {
            unsafe {
                let sum = self.record.sum.at.add(image * self.record.sum.image).cast::<f64>().read_unaligned();
                let rate = rate(self.samples, volume, sum);
                let through_sum = self.direct::<S>(image, rate);
                let through_sum = if sum == 0.0 { 0.0 } else { through_sum * rate / sum };
                self.sum_up::<S>(image, through_sum as f32);
            }
        }
    }
}

impl Unprune {
    unsafe fn value(&self, image: usize, y: usize, x: usize) -> *const f32 {
        unsafe { self.record.values.at.add(self.record.values.offset(image, y, x)).cast() }
    }

    /// Leaves each value's derivative at a constant sum in the scratch, and answers with the sum over values of upstream
    /// times `r |r| exp(-rate |r|) / (q + floor)^2`.
    #[inline(always)]
    unsafe fn direct<S: Simd>(&self, image: usize, rate: f64) -> f64 {
        let mut sums = [0.0; PARTS];
        let mut to = self.scratch.cast::<[f32; PARTS]>();
        for y in 0..self.rows {
            for x in 0..self.columns {
                unsafe {
                    let upstream = self.from.at.add(self.from.offset(image, y, x));
                    let values = self.value(image, y, x);
                    let mask = self.record.mask.at.add(self.record.mask.offset(image, y, x));
                    for channel in (0..self.channels_padded).step_by(PARTS) {
                        let r = values.add(channel).cast::<[f32; PARTS]>().read_unaligned();
                        let upstream = upstream.add(channel).cast::<[f32; PARTS]>().read_unaligned();
                        let stays = *mask.add(channel / 8);
                        let mut own = [0.0; PARTS];
                        for i in 0..PARTS {
                            let scaled = rate * f64::from(r[i].abs());
                            let dropped = exp::<S>(-scaled);
                            let q = 1.0 - dropped + FLOOR;
                            let inverse = if stays >> i & 1 == 1 { 1.0 / q as f32 } else { 0.0 };
                            let square = inverse * inverse;
                            own[i] = (q - scaled * dropped) as f32 * square;
                            let by_rate = f64::from(upstream[i] * square) * f64::from(r[i] * r[i].abs());
                            sums[i] += by_rate * dropped;
                        }
                        to.write_unaligned(own);
                        to = to.add(1);
                    }
                }
            }
        }
        sums.iter().sum()
    }

    /// Upstream times what is in the scratch, plus `through_sum` with the value's sign.
    #[inline(always)]
    unsafe fn sum_up<S: Simd>(&self, image: usize, through_sum: f32) {
        let mut direct = self.scratch;
        for y in 0..self.rows {
            for x in 0..self.columns {
                let spot = self.finish.spot(image, y, x);
                for channel in (0..self.channels_padded).step_by(S::LANES) {
                    unsafe {
                        let zero = S::splat(0.0);
                        let r = S::load(self.value(image, y, x).add(channel));
                        let below = S::if_greater(zero, r, S::splat(-through_sum), zero);
                        let shared = S::if_greater(r, zero, S::splat(through_sum), below);
                        let upstream = S::load(self.from.at.add(self.from.offset(image, y, x) + channel));
                        self.finish.store::<S>(S::fma(upstream, S::load(direct), shared), spot, channel);
                        direct = direct.add(S::LANES);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simd::Isa;

    /// The exponentials of numbers.
    struct Exponentials<'a>(&'a [f64], *mut f64);

    impl Kernel for Exponentials<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(&self) {
            for (i, &x) in self.0.iter().enumerate() {
                unsafe { *self.1.add(i) = exp::<S>(x) };
            }
        }
    }

    #[test]
    fn the_exponential_is_that_of_the_standard_library() {
        let mut numbers: Vec<_> = (0..200_000).map(|i| -700.0 * (f64::from(i) / 200_000.0).powi(3)).collect();
        numbers.extend([0.0, f64::NEG_INFINITY, f64::NAN]);
        for isa in Isa::available() {
            let mut ours = vec![0.0; numbers.len()];
            // SAFETY: there is room for all.
            unsafe { isa.run(&Exponentials(&numbers, ours.as_mut_ptr())) };
            for (&x, &ours) in numbers.iter().zip(&ours).take(200_000) {
                let theirs = x.exp();
                assert!((ours - theirs).abs() <= 4.5e-16 * theirs, "{isa:?}: exp({x}) is {theirs}, not {ours}");
            }
            let [zero, infinity, nan] = ours[200_000..] else { unreachable!() };
            assert!(zero == 1.0 && infinity < 1e-300 && nan.is_nan(), "{isa:?}: {zero}, {infinity}, {nan}");
        }
    }
}
