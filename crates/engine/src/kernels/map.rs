//! Pooling, sub-sampling and sums: kernels that are bound by memory.

use super::{Finish, View};
use simd::{Kernel, Simd};

/// The most floats in a vector.
const WIDEST: usize = 16;

/// What a pixel's vector of channels is made from, before the epilogue.
pub(crate) trait Source {
    /// # Safety
    /// The pixel and the channels must be inside the output.
    unsafe fn read<S: Simd>(&self, image: usize, y: usize, x: usize, channel: usize) -> S::V;
}

/// An output of `rows x columns` pixels, each read from its source.
pub(crate) struct Map<T> {
    pub source: T,
    pub channels_padded: usize,
    pub images: usize,
    pub rows: usize,
    pub columns: usize,
    pub finish: Finish,
}

impl<T: Source> Kernel for Map<T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        for image in 0..self.images {
            for y in 0..self.rows {
                for x in 0..self.columns {
                    let spot = self.finish.spot(image, y, x);
                    let mut c = 0;
                    while c < self.channels_padded {
                        unsafe { self.finish.store::<S>(self.source.read::<S>(image, y, x, c), spot, c) };
                        c += S::LANES;
                    }
                }
            }
        }
    }
}

/// The same pixel.
pub(crate) struct Same(pub View<f32>);

impl Source for Same {
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, image: usize, y: usize, x: usize, channel: usize) -> S::V {
        unsafe { S::load(self.0.at.add(self.0.offset(image, y, x) + channel)) }
    }
}

/// The mean of a plane of `rows x columns`.
pub(crate) struct Mean {
    pub from: View<f32>,
    pub rows: usize,
    pub columns: usize,
}

impl Source for Mean {
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, image: usize, _: usize, _: usize, channel: usize) -> S::V {
        unsafe {
            let mut sum = S::splat(0.0);
            for y in 0..self.rows {
                for x in 0..self.columns {
                    sum = S::add(sum, S::load(self.from.at.add(self.from.offset(image, y, x) + channel)));
                }
            }
            S::mul(sum, S::splat(1.0 / (self.rows * self.columns) as f32))
        }
    }
}

/// The gradient of [`Mean`]: the one pixel, times `share`.
pub(crate) struct Spread {
    pub from: View<f32>,
    pub share: f32,
}

impl Source for Spread {
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, image: usize, _: usize, _: usize, channel: usize) -> S::V {
        unsafe { S::mul(S::load(self.from.at.add(image * self.from.image + channel)), S::splat(self.share)) }
    }
}

/// Every `stride`-th pixel's channels, `before` channels later.
pub(crate) struct Subsample {
    pub from: View<f32>,
    pub stride: usize,
    pub before: usize,
    pub channels: usize,
}

impl Source for Subsample {
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, image: usize, y: usize, x: usize, channel: usize) -> S::V {
        unsafe {
            let from = self.from.at.add(self.from.offset(image, y * self.stride, x * self.stride));
            let mut v = [0.0; WIDEST];
            for (i, v) in v[..S::LANES].iter_mut().enumerate() {
                let c = (channel + i).wrapping_sub(self.before);
                if c < self.channels {
                    *v = *from.add(c);
                }
            }
            S::load(v.as_ptr())
        }
    }
}

/// The gradient of [`Subsample`], and of one part of a concatenation.
pub(crate) struct Upsample {
    pub from: View<f32>,
    pub stride: usize,
    pub before: usize,
    pub channels: usize,
}

impl Source for Upsample {
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, image: usize, y: usize, x: usize, channel: usize) -> S::V {
        unsafe {
            if !y.is_multiple_of(self.stride) || !x.is_multiple_of(self.stride) {
                return S::splat(0.0);
            }
            let from = self.from.at.add(self.from.offset(image, y / self.stride, x / self.stride) + self.before);
            if channel + S::LANES <= self.channels {
                return S::load(from.add(channel));
            }
            let mut v = [0.0; WIDEST];
            for (i, v) in v[..S::LANES].iter_mut().enumerate() {
                if channel + i < self.channels {
                    *v = *from.add(channel + i);
                }
            }
            S::load(v.as_ptr())
        }
    }
}

/// Copies pixels of so many images, rows, columns and channels.
///
/// # Safety
/// The pixels must be inside both views, which must not overlap.
pub(crate) unsafe fn copy(from: View<f32>, to: View<f32>, shape: [usize; 4]) {
    let [images, rows, columns, channels] = shape;
    for (image, y) in (0..images).flat_map(|image| (0..rows).map(move |y| (image, y))) {
        for x in 0..columns {
            unsafe {
                let from = from.at.add(from.offset(image, y, x));
                std::ptr::copy_nonoverlapping(from, to.at.add(to.offset(image, y, x)), channels);
            }
        }
    }
}

/// Clears pixels of so many images, rows, columns and channels.
///
/// # Safety
/// The pixels must be inside the view.
pub(crate) unsafe fn clear(to: View<f32>, [images, rows, columns, channels]: [usize; 4]) {
    if channels == 0 {
        return;
    }
    for (image, y) in (0..images).flat_map(|image| (0..rows).map(move |y| (image, y))) {
        for x in 0..columns {
            unsafe { std::ptr::write_bytes(to.at.add(to.offset(image, y, x)), 0, channels) };
        }
    }
}

/// The window of a max-pool.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

/// The largest of a window of a `rows x columns` plane; the first of equals wins, and its place is written down.
pub(crate) struct Max {
    pub from: View<f32>,
    pub window: Window,
    pub rows: usize,
    pub columns: usize,
    /// One byte an output: the place in the window, row by row. May be absent.
    pub winners: View<u8>,
}

impl Source for Max {
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, image: usize, y: usize, x: usize, channel: usize) -> S::V {
        let Window { kernel, stride, padding } = self.window;
        unsafe {
            let (mut best, mut winner) = (S::splat(f32::NEG_INFINITY), S::splat(0.0));
            for ky in 0..kernel {
                for kx in 0..kernel {
                    let (row, column) = (y * stride + ky, x * stride + kx);
                    if row < padding
                        || row >= self.rows + padding
                        || column < padding
                        || column >= self.columns + padding
                    {
                        continue;
                    }
                    let at = self.from.offset(image, row - padding, column - padding) + channel;
                    let v = S::load(self.from.at.add(at));
                    winner = S::if_greater(v, best, S::splat((ky * kernel + kx) as f32), winner);
                    best = S::if_greater(v, best, v, best);
                }
            }
            if !self.winners.at.is_null() {
                let mut places = [0.0; WIDEST];
                S::store(places.as_mut_ptr(), winner);
                let to = self.winners.at.add(self.winners.offset(image, y, x) + channel);
                for (i, place) in places[..S::LANES].iter().enumerate() {
                    *to.add(i) = *place as u8;
                }
            }
            best
        }
    }
}

/// The gradient of [`Max`], whose output had `rows x columns` pixels.
pub(crate) struct Unmax {
    pub from: View<f32>,
    pub window: Window,
    pub rows: usize,
    pub columns: usize,
    pub winners: View<u8>,
}

impl Source for Unmax {
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, image: usize, y: usize, x: usize, channel: usize) -> S::V {
        let Window { kernel, stride, padding } = self.window;
        let (y, x) = (y + padding, x + padding);
        let first = |at: usize| (at + 1).saturating_sub(kernel).div_ceil(stride);
        let mut sums = [0.0; WIDEST];
        unsafe {
            for row in first(y)..(y / stride + 1).min(self.rows) {
                for column in first(x)..(x / stride + 1).min(self.columns) {
                    let place = ((y - row * stride) * kernel + x - column * stride) as u8;
                    let from = self.from.at.add(self.from.offset(image, row, column) + channel);
                    let winners = self.winners.at.add(self.winners.offset(image, row, column) + channel);
                    for (i, sum) in sums[..S::LANES].iter_mut().enumerate() {
                        *sum += if *winners.add(i) == place { *from.add(i) } else { 0.0 };
                    }
                }
            }
            S::load(sums.as_ptr())
        }
    }
}
