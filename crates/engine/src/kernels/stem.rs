//! The gradient with respect to the image: few channels, so the lanes are columns of a row.

use super::View;
use crate::simd::{Kernel, Simd};

/// Vectors of columns in a register tile.
pub(crate) const ACROSS: usize = 2;

/// Copies NHWC pixels into planes with a border of zeros that the caller has cleared.
pub(crate) struct Planes {
    pub from: View<f32>,
    pub channels: usize,
    pub rows: usize,
    pub columns: usize,
    /// The first pixel of the first plane.
    pub to: *mut f32,
    pub row: usize,
    pub plane: usize,
}

impl Kernel for Planes {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        for y in 0..self.rows {
            for x in 0..self.columns {
                unsafe {
                    let from = self.from.at.add(self.from.offset(0, y, x));
                    let to = self.to.add(y * self.row + x);
                    for c in 0..self.channels {
                        *to.add(c.wrapping_mul(self.plane)) = *from.add(c);
                    }
                }
            }
        }
    }
}

/// One parity of one image's gradient: `to[c](y, x) (+)= sum over k and taps of from[k](y, x)[tap] * weights[k][tap][c]`.
pub(crate) struct Stem<'a> {
    pub from: *const f32,
    pub from_row: usize,
    pub from_plane: usize,
    pub depth: usize,
    pub taps: &'a [isize],
    /// `(depth, taps, channels)`.
    pub weights: *const f32,
    pub channels: usize,
    pub rows: usize,
    pub columns: usize,
    /// Planes; steps of rows and pixels include the stride.
    pub to: *mut f32,
    pub to_plane: usize,
    pub to_row: usize,
    pub to_pixel: usize,
    pub accumulate: bool,
}

#[inline(always)]
unsafe fn tile<S: Simd, const C: usize>(job: &Stem<'_>, channel: usize, y: usize, x: usize) {
    unsafe {
        let mut sums = [[S::splat(0.0); ACROSS]; C];
        let mut weights = job.weights.add(channel);
        let mut plane = job.from.add(y * job.from_row + x);
        for _ in 0..job.depth {
            for &tap in job.taps {
                let from = plane.offset(tap);
                let mut v = [S::splat(0.0); ACROSS];
                for a in 0..ACROSS {
                    v[a] = S::load(from.add(a * S::LANES));
                }
                for c in 0..C {
                    let w = S::splat(*weights.add(c));
                    for a in 0..ACROSS {
                        sums[c][a] = S::fma(v[a], w, sums[c][a]);
                    }
                }
                weights = weights.add(job.channels);
            }
            plane = plane.add(job.from_plane);
        }
        for c in 0..C {
            let mut line = [0.0; 64];
            for a in 0..ACROSS {
                S::store(line.as_mut_ptr().add(a * S::LANES), sums[c][a]);
            }
            let to = job.to.add((channel + c) * job.to_plane + y * job.to_row + x * job.to_pixel);
            for (i, v) in line[..(ACROSS * S::LANES).min(job.columns - x)].iter().enumerate() {
                let to = to.add(i.wrapping_mul(job.to_pixel));
                *to = if job.accumulate { *to + v } else { *v };
            }
        }
    }
}

impl Kernel for Stem<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        for y in 0..self.rows {
            let mut x = 0;
            while x < self.columns {
                let mut c = 0;
                while c < self.channels {
                    unsafe {
                        match self.channels - c {
                            1 => tile::<S, 1>(self, c, y, x),
                            2 => tile::<S, 2>(self, c, y, x),
                            _ => tile::<S, 3>(self, c, y, x),
                        }
                    }
                    c += 3;
                }
                x += ACROSS * S::LANES;
            }
        }
    }
}
