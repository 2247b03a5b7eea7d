//! Dense convolution: a matrix product whose rows are gathered by a list of taps.

use std::mem::MaybeUninit;

use crate::{Finish, Kernel, Simd, Spot, View, tiles};

/// Pixels whose offsets are worked out at once.
const CHUNK: usize = 64;
/// Floats of the largest register tile: 8 pixels by 3 vectors of 16.
const ROOM: usize = 8 * 3 * 16;

/// `to(y, x) = sum over taps and k < run of from(y, x)[tap + k] * weight`, over `rows x columns` pixels of `images`.
///
/// `weights` is packed by [`pack`]; `from`'s steps include the stride.
pub struct Dense<'a> {
    pub from: View<f32>,
    pub taps: &'a [isize],
    pub run: usize,
    pub weights: *const f32,
    /// Register tiles of output channels, in vectors.
    pub blocks: &'a [usize],
    pub images: usize,
    pub rows: usize,
    pub columns: usize,
    pub finish: Finish,
}

/// Packs a matrix of `depth` rows and `blocks` vectors of columns: block by block, row by row.
pub fn pack(blocks: &[usize], lanes: usize, depth: usize, out: &mut [f32], at: impl Fn(usize, usize) -> f32) {
    let (mut first, mut out) = (0, out.iter_mut());
    for &block in blocks {
        for k in 0..depth {
            for (c, out) in (first..first + block * lanes).zip(&mut out) {
                *out = at(k, c);
            }
        }
        first += block * lanes;
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const P: usize, const L: usize>(
    job: &Dense<'_>,
    from: &[usize],
    spots: &[Spot],
    weights: *const f32,
    channel: usize,
) {
    unsafe {
        let mut sums = [[S::splat(0.0); L]; P];
        let mut rows = [job.from.at.cast_const(); P];
        for p in 0..P {
            rows[p] = rows[p].add(*from.get_unchecked(p));
        }
        let mut weights = weights;
        for &tap in job.taps {
            let mut k = 0;
            while k < job.run {
                let mut w = [S::splat(0.0); L];
                for l in 0..L {
                    w[l] = S::load(weights.add(l * S::LANES));
                }
                for p in 0..P {
                    let x = S::splat(*rows[p].offset(tap).add(k));
                    for l in 0..L {
                        sums[p][l] = S::fma(x, w[l], sums[p][l]);
                    }
                }
                weights = weights.add(L * S::LANES);
                k += 1;
            }
        }
        // Through memory: the epilogue is a loop, and sums that a loop indexes would never stay in registers.
        let mut done = [const { MaybeUninit::<f32>::uninit() }; ROOM];
        let done = done.as_mut_ptr().cast::<f32>();
        for p in 0..P {
            for l in 0..L {
                S::store(done.add((p * L + l) * S::LANES), sums[p][l]);
            }
        }
        let done = S::opaque(done);
        for p in 0..P {
            for l in 0..L {
                let sum = S::load(done.add((p * L + l) * S::LANES));
                job.finish.store::<S>(sum, *spots.get_unchecked(p), channel + l * S::LANES);
            }
        }
    }
}

impl Kernel for Dense<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let depth = self.taps.len() * self.run;
        let (mut image, mut y, mut x) = (0, 0, 0);
        let mut left = self.images * self.rows * self.columns;
        let mut from = [0; CHUNK];
        let mut spots = [Spot::default(); CHUNK];
        while left > 0 {
            let count = left.min(CHUNK);
            for p in 0..count {
                from[p] = self.from.offset(image, y, x);
                spots[p] = self.finish.spot(image, y, x);
                x += 1;
                if x == self.columns {
                    (x, y) = (0, y + 1);
                    if y == self.rows {
                        (y, image) = (0, image + 1);
                    }
                }
            }
            left -= count;
            let (mut weights, mut channel) = (self.weights, 0);
            for &block in self.blocks {
                unsafe {
                    match block {
                        1 => tiles!(S, 1, count, |p| tile(self, &from[p..], &spots[p..], weights, channel)),
                        2 => tiles!(S, 2, count, |p| tile(self, &from[p..], &spots[p..], weights, channel)),
                        _ => tiles!(S, 3, count, |p| tile(self, &from[p..], &spots[p..], weights, channel)),
                    }
                    weights = weights.add(depth * block * S::LANES);
                }
                channel += block * S::LANES;
            }
        }
    }
}
