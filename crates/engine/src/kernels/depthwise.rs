//! Depthwise convolution: lanes are channels, and each sees only itself.

use super::{Finish, View};
use crate::simd::{Kernel, Simd};

/// `to(y, x)[c] = sum over taps of from(y, x)[tap + c] * weights[tap][c]`.
pub(crate) struct Depthwise<'a> {
    pub from: View<f32>,
    pub taps: &'a [isize],
    /// `(taps, channels padded)`.
    pub weights: *const f32,
    pub channels_padded: usize,
    pub images: usize,
    pub rows: usize,
    pub columns: usize,
    pub finish: Finish,
}

#[inline(always)]
unsafe fn tile<S: Simd, const P: usize>(job: &Depthwise<'_>, image: usize, y: usize, x: usize, c: usize) {
    unsafe {
        let from = job.from.at.cast_const().add(job.from.offset(image, y, x)).add(c);
        let mut sums = [S::splat(0.0); P];
        let mut weights = job.weights.add(c);
        for &tap in job.taps {
            let w = S::load(weights);
            let from = from.offset(tap);
            for p in 0..P {
                sums[p] = S::fma(S::load(from.add(p.wrapping_mul(job.from.pixel))), w, sums[p]);
            }
            weights = weights.add(job.channels_padded);
        }
        for p in 0..P {
            job.finish.store::<S>(sums[p], job.finish.spot(image, y, x + p), c);
        }
    }
}

impl Kernel for Depthwise<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        for image in 0..self.images {
            for y in 0..self.rows {
                let mut c = 0;
                while c < self.channels_padded {
                    let mut x = 0;
                    while x < self.columns {
                        unsafe {
                            if x + 7 <= self.columns {
                                tile::<S, 7>(self, image, y, x, c);
                                x += 7;
                            } else if x + 4 <= self.columns {
                                tile::<S, 4>(self, image, y, x, c);
                                x += 4;
                            } else {
                                tile::<S, 1>(self, image, y, x, c);
                                x += 1;
                            }
                        }
                    }
                    c += S::LANES;
                }
            }
        }
    }
}
