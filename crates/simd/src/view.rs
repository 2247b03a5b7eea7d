//! Where pixels are, and what happens to a sum before it is stored.

use crate::Simd;

/// Pixels in memory: where pixel (0, 0) of the first image is, and the steps between images, rows and pixels in
/// elements.
#[derive(Clone, Copy, Debug)]
pub struct View<T> {
    pub at: *mut T,
    pub image: usize,
    pub row: usize,
    pub pixel: usize,
}

impl<T> View<T> {
    pub const NONE: Self = Self { at: std::ptr::null_mut(), image: 0, row: 0, pixel: 0 };

    #[inline(always)]
    pub fn offset(&self, image: usize, y: usize, x: usize) -> usize {
        image.wrapping_mul(self.image).wrapping_add(y.wrapping_mul(self.row)).wrapping_add(x.wrapping_mul(self.pixel))
    }

    /// Every `step`-th pixel from `(y, x)` on.
    pub fn every(self, step: usize, y: usize, x: usize) -> Self {
        if self.at.is_null() {
            return self;
        }
        // SAFETY: the caller's pixel is inside the view.
        let at = unsafe { self.at.add(y * self.row + x * self.pixel) };
        Self { at, row: self.row * step, pixel: self.pixel * step, ..self }
    }
}

/// What happens to a sum before it is stored.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// `sum + bias + residual`.
    Linear,
    /// Then clamped to `[0, top]`; the mask, if any, is written: what is inside.
    Clamp { top: f32 },
    /// Then times `slope` unless above 0; the mask, if any, is written: what is above 0.
    Leaky { slope: f32 },
    /// `sum + residual` where the mask is set.
    Masked,
    /// `sum + residual`, times `slope` unless the mask is set.
    Scaled { slope: f32 },
}

/// The epilogue: bias, residual, ReLU and mask, and the store.
#[derive(Clone, Copy, Debug)]
pub struct Finish {
    pub to: View<f32>,
    pub residual: View<f32>,
    pub mask: View<u8>,
    /// Bias per channel, or null.
    pub bias: *const f32,
    pub end: End,
}

/// A pixel's offsets in an epilogue's three views.
#[derive(Clone, Copy, Default)]
pub struct Spot {
    pub to: usize,
    pub residual: usize,
    pub mask: usize,
}

impl Finish {
    #[inline(always)]
    pub fn spot(&self, image: usize, y: usize, x: usize) -> Spot {
        Spot {
            to: self.to.offset(image, y, x),
            residual: self.residual.offset(image, y, x),
            mask: self.mask.offset(image, y, x),
        }
    }

    /// Finishes and stores one vector of channels from `channel` on.
    ///
    /// # Safety
    /// The spot must be of a pixel inside the views.
    #[inline(always)]
    pub unsafe fn store<S: Simd>(&self, sum: S::V, spot: Spot, channel: usize) {
        unsafe {
            let bias = self.bias_at::<S>(channel);
            match (self.end, self.mask.at.is_null()) {
                (End::Linear, _) => self.store_as::<S, LINEAR>(sum, bias, spot, channel),
                (End::Clamp { .. }, true) => self.store_as::<S, CLAMP>(sum, bias, spot, channel),
                (End::Clamp { .. }, false) => self.store_as::<S, CLAMP_AND_MARK>(sum, bias, spot, channel),
                (End::Leaky { .. }, true) => self.store_as::<S, LEAKY>(sum, bias, spot, channel),
                (End::Leaky { .. }, false) => self.store_as::<S, LEAKY_AND_MARK>(sum, bias, spot, channel),
                (End::Masked, _) => self.store_as::<S, MASKED>(sum, bias, spot, channel),
                (End::Scaled { .. }, _) => self.store_as::<S, SCALED>(sum, bias, spot, channel),
            }
        }
    }

    /// # Safety
    /// The channel must be inside the output.
    #[inline(always)]
    pub unsafe fn bias_at<S: Simd>(&self, channel: usize) -> S::V {
        unsafe { if self.bias.is_null() { S::splat(0.0) } else { S::load(self.bias.add(channel)) } }
    }

    /// [`Finish::store`] where the kind of end is known to the compiler.
    ///
    /// # Safety
    /// As `store`, and the kind must be this epilogue's.
    #[inline(always)]
    pub unsafe fn store_as<S: Simd, const KIND: u8>(&self, sum: S::V, bias: S::V, spot: Spot, channel: usize) {
        unsafe {
            let mut v = S::add(sum, bias);
            if !self.residual.at.is_null() {
                v = S::add(v, S::load(self.residual.at.add(spot.residual + channel)));
            }
            if let End::Clamp { top } = self.end
                && (KIND == CLAMP || KIND == CLAMP_AND_MARK)
            {
                let top = S::splat(top);
                if KIND == CLAMP_AND_MARK {
                    S::store_inside(self.mask.at.add(spot.mask + channel / 8), v, top);
                }
                v = S::cap(S::relu(v), top);
            }
            if let End::Leaky { slope } = self.end
                && (KIND == LEAKY || KIND == LEAKY_AND_MARK)
            {
                if KIND == LEAKY_AND_MARK {
                    S::store_inside(self.mask.at.add(spot.mask + channel / 8), v, S::splat(f32::INFINITY));
                }
                v = S::if_greater(v, S::splat(0.0), v, S::mul(v, S::splat(slope)));
            }
            if KIND == MASKED {
                v = S::if_set(self.mask.at.add(spot.mask + channel / 8), v, S::splat(0.0));
            }
            if let End::Scaled { slope } = self.end
                && KIND == SCALED
            {
                v = S::if_set(self.mask.at.add(spot.mask + channel / 8), v, S::mul(v, S::splat(slope)));
            }
            S::store(self.to.at.add(spot.to + channel), v);
        }
    }
}

/// Kinds of epilogue, for [`Finish::store_as`].
pub const LINEAR: u8 = 0;
pub const CLAMP: u8 = 1;
pub const CLAMP_AND_MARK: u8 = 2;
pub const LEAKY: u8 = 3;
pub const LEAKY_AND_MARK: u8 = 4;
pub const MASKED: u8 = 5;
pub const SCALED: u8 = 6;

/// Splits `vectors` of output channels into register tiles of at most `widest`.
pub fn split(vectors: usize, widest: usize) -> impl Iterator<Item = usize> {
    let mut left = vectors;
    std::iter::from_fn(move || {
        let take = match left {
            0 => return None,
            2 | 4 => 2.min(widest),
            _ => left.min(widest),
        };
        left -= take;
        Some(take)
    })
}

/// Calls `$tile::<S, P, L>($args)` on all `$rows` rows in tiles of at most `S::PIXELS`, the rest in halves.
#[macro_export]
macro_rules! tiles {
    ($S:ty, $L:literal, $rows:expr, |$row:ident| $tile:ident($($arg:expr),* $(,)?)) => {{
        let rows: usize = $rows;
        let mut $row = 0usize;
        if <$S>::PIXELS >= 8 {
            while rows - $row >= 8 { $tile::<$S, 8, $L>($($arg),*); $row += 8; }
        }
        while rows - $row >= 4 { $tile::<$S, 4, $L>($($arg),*); $row += 4; }
        if rows - $row >= 2 { $tile::<$S, 2, $L>($($arg),*); $row += 2; }
        if rows - $row >= 1 { $tile::<$S, 1, $L>($($arg),*); }
    }};
}
