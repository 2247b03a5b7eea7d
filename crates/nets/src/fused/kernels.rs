//! The inner loops of training, each written once over [`Simd`].
//!
//! Pixels are NHWC, channels padded to whole vectors. Every sum has an order that depends on the sizes alone.

#![expect(
    clippy::needless_range_loop,
    reason = "loops of constant length over indices become registers; iterators may not"
)]

use simd::{Kernel, Simd, View};

/// Sums that are taken side by side, so that no addition waits for the last.
const CHAINS: usize = 4;
/// Pixels of the rows that a weight gradient works on at once: they stay in the first cache.
const PIXELS: usize = 256;

/// An activation, or none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bend {
    None,
    /// Clamps to `[0, top]`.
    Clamp(f32),
    /// Multiplies what is below 0.
    Leak(f32),
}

impl Bend {
    /// The limit, or the slope.
    fn number(self) -> f32 {
        match self {
            Self::None => 0.0,
            Self::Clamp(number) | Self::Leak(number) => number,
        }
    }
}

#[inline(always)]
unsafe fn total<S: Simd>(sums: [S::V; CHAINS]) -> S::V {
    unsafe { S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])) }
}

/// Each channel's mean over the pixels of one image, and the sum of its squared deviations from it.
pub(super) struct Moments {
    pub from: *const f32,
    pub pixels: usize,
    pub channels: usize,
    /// Means, then sums of squares.
    pub to: *mut f32,
}

impl Kernel for Moments {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        unsafe {
            let mut c = 0;
            while c < self.channels {
                let sum = self.sum::<S, false>(c, S::splat(0.0));
                let mean = S::mul(sum, S::splat(1.0 / self.pixels as f32));
                S::store(self.to.add(c), mean);
                S::store(self.to.add(self.channels + c), self.sum::<S, true>(c, mean));
                c += S::LANES;
            }
        }
    }
}

impl Moments {
    #[inline(always)]
    unsafe fn sum<S: Simd, const SQUARED: bool>(&self, channel: usize, mean: S::V) -> S::V {
        unsafe {
            let mut sums = [S::splat(0.0); CHAINS];
            let mut at = self.from.add(channel);
            let mut left = self.pixels;
            while left >= CHAINS {
                for chain in 0..CHAINS {
                    let d = S::sub(S::load(at.add(chain * self.channels)), mean);
                    sums[chain] = if SQUARED { S::fma(d, d, sums[chain]) } else { S::add(sums[chain], d) };
                }
                at = at.add(CHAINS * self.channels);
                left -= CHAINS;
            }
            while left > 0 {
                let d = S::sub(S::load(at), mean);
                sums[0] = if SQUARED { S::fma(d, d, sums[0]) } else { S::add(sums[0], d) };
                at = at.add(self.channels);
                left -= 1;
            }
            total::<S>(sums)
        }
    }
}

/// `to = activation((from - mean) * scale + shift + residual)` of one image.
pub(super) struct Affine {
    pub from: View<f32>,
    /// Per channel: mean, scale and shift; null for none of them.
    pub factors: *const f32,
    /// Absent if its pointer is null.
    pub residual: View<f32>,
    pub to: View<f32>,
    pub bend: Bend,
    pub rows: usize,
    pub columns: usize,
    pub channels: usize,
}

impl Kernel for Affine {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        unsafe {
            match (self.residual.at.is_null(), self.factors.is_null()) {
                (true, true) => self.all::<S, false, false>(),
                (true, false) => self.all::<S, false, true>(),
                (false, true) => self.all::<S, true, false>(),
                (false, false) => self.all::<S, true, true>(),
            }
        }
    }
}

impl Affine {
    #[inline(always)]
    unsafe fn all<S: Simd, const RESIDUAL: bool, const SCALED: bool>(&self) {
        unsafe {
            let (zero, number) = (S::splat(0.0), S::splat(self.bend.number()));
            let mut c = 0;
            while c < self.channels {
                let factor = |i: usize| self.factors.add(i * self.channels + c);
                let (mut mean, mut scale, mut shift) = (zero, zero, zero);
                if SCALED {
                    (mean, scale, shift) = (S::load(factor(0)), S::load(factor(1)), S::load(factor(2)));
                }
                for y in 0..self.rows {
                    let from = self.from.at.add(self.from.offset(0, y, 0) + c);
                    let to = self.to.at.add(self.to.offset(0, y, 0) + c);
                    let residual = self.residual.at.wrapping_add(self.residual.offset(0, y, 0) + c);
                    for x in 0..self.columns {
                        let mut v = S::load(from.add(x * self.from.pixel));
                        if SCALED {
                            v = S::fma(S::sub(v, mean), scale, shift);
                        }
                        if RESIDUAL {
                            v = S::add(v, S::load(residual.add(x * self.residual.pixel)));
                        }
                        v = match self.bend {
                            Bend::None => v,
                            Bend::Clamp(_) => S::cap(S::relu(v), number),
                            Bend::Leak(_) => S::if_greater(v, zero, v, S::mul(v, number)),
                        };
                        S::store(to.add(x * self.to.pixel), v);
                    }
                }
                c += S::LANES;
            }
        }
    }
}

/// Carries a gradient back through an activation, and sums it.
pub(super) struct Mask {
    /// The gradient after the activation, made that before it.
    pub dy: View<f32>,
    /// The activation's value; not read if there is none.
    pub out: View<f32>,
    pub bend: Bend,
    /// What was normalised, and its mean per channel; not read if `sums` is null.
    pub from: View<f32>,
    pub mean: *const f32,
    /// Per channel the sum of the gradient, and of the gradient times the deviation from the mean; or null.
    pub sums: *mut f32,
    pub rows: usize,
    pub columns: usize,
    pub channels: usize,
}

impl Kernel for Mask {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        unsafe {
            match (self.bend != Bend::None, self.sums.is_null()) {
                (true, true) => self.all::<S, true, false>(),
                (true, false) => self.all::<S, true, true>(),
                (false, false) => self.all::<S, false, true>(),
                (false, true) => {}
            }
        }
    }
}

impl Mask {
    #[inline(always)]
    unsafe fn all<S: Simd, const MASKED: bool, const SUMMED: bool>(&self) {
        unsafe {
            let (zero, number) = (S::splat(0.0), S::splat(self.bend.number()));
            let mut c = 0;
            while c < self.channels {
                let mean = if SUMMED { S::load(self.mean.add(c)) } else { zero };
                let (mut first, mut second) = ([zero; CHAINS], [zero; CHAINS]);
                for y in 0..self.rows {
                    let dy = self.dy.at.add(self.dy.offset(0, y, 0) + c);
                    let out = self.out.at.wrapping_add(self.out.offset(0, y, 0) + c);
                    let from = self.from.at.wrapping_add(self.from.offset(0, y, 0) + c);
                    let mut x = 0;
                    while x + CHAINS <= self.columns {
                        for chain in 0..CHAINS {
                            let (z, sums) = ((mean, from), (&mut first[chain], &mut second[chain]));
                            self.pixel::<S, MASKED, SUMMED>((dy, out), z, number, x + chain, sums);
                        }
                        x += CHAINS;
                    }
                    while x < self.columns {
                        let (z, sums) = ((mean, from), (&mut first[0], &mut second[0]));
                        self.pixel::<S, MASKED, SUMMED>((dy, out), z, number, x, sums);
                        x += 1;
                    }
                }
                if SUMMED {
                    S::store(self.sums.add(c), total::<S>(first));
                    S::store(self.sums.add(self.channels + c), total::<S>(second));
                }
                c += S::LANES;
            }
        }
    }
}

impl Mask {
    #[inline(always)]
    unsafe fn pixel<S: Simd, const MASKED: bool, const SUMMED: bool>(
        &self,
        (dy, out): (*mut f32, *mut f32),
        (mean, from): (S::V, *mut f32),
        number: S::V,
        x: usize,
        (first, second): (&mut S::V, &mut S::V),
    ) {
        unsafe {
            let zero = S::splat(0.0);
            let at = dy.add(x * self.dy.pixel);
            let mut d = S::load(at);
            if MASKED {
                let out = S::load(out.add(x * self.out.pixel));
                d = match self.bend {
                    Bend::Leak(_) => S::if_greater(out, zero, d, S::mul(d, number)),
                    _ => S::if_greater(number, out, S::if_greater(out, zero, d, zero), zero),
                };
                S::store(at, d);
            }
            if SUMMED {
                *first = S::add(*first, d);
                *second = S::fma(d, S::sub(S::load(from.add(x * self.from.pixel)), mean), *second);
            }
        }
    }
}

/// The gradient before a normalisation: `to = (dy * scale - (from - mean) * second) - first`.
pub(super) struct Unnormalise {
    pub dy: View<f32>,
    pub from: View<f32>,
    pub to: View<f32>,
    /// Per channel: the mean, then scale, second and first.
    pub mean: *const f32,
    pub factors: *const f32,
    /// Whether to add to what is there.
    pub add: bool,
    pub rows: usize,
    pub columns: usize,
    pub channels: usize,
}

impl Kernel for Unnormalise {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        unsafe {
            let mut c = 0;
            while c < self.channels {
                let mean = S::load(self.mean.add(c));
                let scale = S::load(self.factors.add(c));
                let second = S::load(self.factors.add(self.channels + c));
                let first = S::load(self.factors.add(2 * self.channels + c));
                for y in 0..self.rows {
                    let dy = self.dy.at.add(self.dy.offset(0, y, 0) + c);
                    let from = self.from.at.add(self.from.offset(0, y, 0) + c);
                    let to = self.to.at.add(self.to.offset(0, y, 0) + c);
                    for x in 0..self.columns {
                        let z = S::sub(S::load(from.add(x * self.from.pixel)), mean);
                        let v = S::fma(S::load(dy.add(x * self.dy.pixel)), scale, S::sub(S::splat(0.0), first));
                        let v = S::fnma(z, second, v);
                        let at = to.add(x * self.to.pixel);
                        S::store(at, if self.add { S::add(S::load(at), v) } else { v });
                    }
                }
                c += S::LANES;
            }
        }
    }
}

/// One image's share of a convolution's weight gradient: `to[tap][c][o] = sum over pixels of x[tap][c] dy[o]`, or added
/// to what is there.
pub(super) struct WeightGradient<'a> {
    /// The input; its steps include the stride.
    pub x: View<f32>,
    pub taps: &'a [isize],
    /// Input channels.
    pub inputs: usize,
    pub dy: View<f32>,
    /// Output channels, padded.
    pub outputs: usize,
    pub rows: usize,
    pub columns: usize,
    pub to: *mut f32,
    pub add: bool,
}

impl Kernel for WeightGradient<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let step = (PIXELS / self.columns).max(1);
        for start in (0..self.rows).step_by(step) {
            let rows = (start, (start + step).min(self.rows));
            let mut o = 0;
            while o + 2 * S::LANES <= self.outputs {
                unsafe { self.columns_of::<S, 2>(rows, o) };
                o += 2 * S::LANES;
            }
            if o < self.outputs {
                unsafe { self.columns_of::<S, 1>(rows, o) };
            }
        }
    }
}

impl WeightGradient<'_> {
    #[inline(always)]
    unsafe fn columns_of<S: Simd, const L: usize>(&self, rows: (usize, usize), o: usize) {
        for (tap, &offset) in self.taps.iter().enumerate() {
            let mut c = 0;
            let to = self.to.wrapping_add(tap * self.inputs * self.outputs + o);
            let x = self.x.at.wrapping_offset(offset);
            // As many sums as the registers hold; of few channels, several chains of each.
            unsafe {
                if L == 1 && S::LANES == 16 {
                    while self.inputs - c >= 16 {
                        self.tile::<S, L, 16, 1>(rows, x.add(c), o, to.add(c * self.outputs));
                        c += 16;
                    }
                }
                if L == 1 || S::LANES == 16 {
                    while self.inputs - c >= 8 {
                        self.tile::<S, L, 8, 1>(rows, x.add(c), o, to.add(c * self.outputs));
                        c += 8;
                    }
                }
                while self.inputs - c >= 4 {
                    self.tile::<S, L, 4, 1>(rows, x.add(c), o, to.add(c * self.outputs));
                    c += 4;
                }
                match self.inputs - c {
                    3 => self.tile::<S, L, 3, 2>(rows, x.add(c), o, to.add(c * self.outputs)),
                    2 => self.tile::<S, L, 2, 2>(rows, x.add(c), o, to.add(c * self.outputs)),
                    1 => self.tile::<S, L, 1, 4>(rows, x.add(c), o, to.add(c * self.outputs)),
                    _ => {}
                }
            }
        }
    }

    /// `C` input channels by `L` vectors of output channels, over some rows; pixels take turns among `U` chains.
    #[inline(always)]
    unsafe fn tile<S: Simd, const L: usize, const C: usize, const U: usize>(
        &self,
        rows: (usize, usize),
        x: *const f32,
        o: usize,
        to: *mut f32,
    ) {
        unsafe {
            let mut sums = [[[S::splat(0.0); L]; C]; U];
            for y in rows.0..rows.1 {
                let mut x = x.add(self.x.offset(0, y, 0));
                let mut dy = self.dy.at.add(self.dy.offset(0, y, 0) + o).cast_const();
                let mut left = self.columns;
                while left >= U {
                    for u in 0..U {
                        let mut d = [S::splat(0.0); L];
                        for l in 0..L {
                            d[l] = S::load(dy.add(l * S::LANES));
                        }
                        for c in 0..C {
                            let v = S::splat(*x.add(c));
                            for l in 0..L {
                                sums[u][c][l] = S::fma(v, d[l], sums[u][c][l]);
                            }
                        }
                        x = x.add(self.x.pixel);
                        dy = dy.add(self.dy.pixel);
                    }
                    left -= U;
                }
                while left > 0 {
                    for c in 0..C {
                        let v = S::splat(*x.add(c));
                        for l in 0..L {
                            sums[0][c][l] = S::fma(v, S::load(dy.add(l * S::LANES)), sums[0][c][l]);
                        }
                    }
                    x = x.add(self.x.pixel);
                    dy = dy.add(self.dy.pixel);
                    left -= 1;
                }
            }
            for c in 0..C {
                for l in 0..L {
                    let to = to.add(c * self.outputs + l * S::LANES);
                    let mut sum = if rows.0 > 0 || self.add { S::load(to) } else { S::splat(0.0) };
                    for u in 0..U {
                        sum = S::add(sum, sums[u][c][l]);
                    }
                    S::store(to, sum);
                }
            }
        }
    }
}
