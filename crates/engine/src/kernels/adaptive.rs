//! The average pool to a given size.

use super::View;
use super::map::Source;
use simd::Simd;

/// From which row, or column, of `size` to before which one window `at` of `side` goes.
fn span(at: usize, size: usize, side: usize) -> (usize, usize) {
    (at * size / side, ((at + 1) * size).div_ceil(side))
}

/// The means over windows of a plane of `rows x columns`, `side x side` of which cover it.
pub(crate) struct Adapt {
    pub from: View<f32>,
    pub rows: usize,
    pub columns: usize,
    pub side: usize,
}

impl Source for Adapt {
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, image: usize, y: usize, x: usize, channel: usize) -> S::V {
        let ((top, bottom), (left, right)) = (span(y, self.rows, self.side), span(x, self.columns, self.side));
        unsafe {
            let mut sum = S::splat(0.0);
            for row in top..bottom {
                for column in left..right {
                    sum = S::add(sum, S::load(self.from.at.add(self.from.offset(image, row, column) + channel)));
                }
            }
            S::mul(sum, S::splat(1.0 / ((bottom - top) * (right - left)) as f32))
        }
    }
}

/// The gradient of [`Adapt`], whose input had `rows x columns` pixels.
pub(crate) struct Unadapt {
    pub from: View<f32>,
    pub rows: usize,
    pub columns: usize,
    pub side: usize,
}

impl Source for Unadapt {
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, image: usize, y: usize, x: usize, channel: usize) -> S::V {
        // The windows that cover a row are those that its own span in the result touches.
        let ((top, bottom), (left, right)) = (span(y, self.side, self.rows), span(x, self.side, self.columns));
        unsafe {
            let mut sum = S::splat(0.0);
            for row in top..bottom {
                let (first, end) = span(row, self.rows, self.side);
                for column in left..right {
                    let (start, past) = span(column, self.columns, self.side);
                    let share = S::splat(1.0 / ((end - first) * (past - start)) as f32);
                    let from = self.from.at.add(self.from.offset(image, row, column) + channel);
                    sum = S::add(sum, S::mul(S::load(from), share));
                }
            }
            sum
        }
    }
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn a_window_covers_a_pixel_if_the_pixel_touches_the_window() {
        for (size, side) in [(7, 7), (14, 7), (2, 7), (1, 7), (10, 4), (9, 4), (5, 1), (3, 8)] {
            let covers =
                |window: usize, pixel: usize| (span(window, size, side).0..span(window, size, side).1).contains(&pixel);
            for (window, pixel) in (0..side).flat_map(|window| (0..size).map(move |pixel| (window, pixel))) {
                let (first, end) = span(pixel, side, size);
                assert_eq!(
                    covers(window, pixel),
                    (first..end).contains(&window),
                    "{pixel} of {size}, {window} of {side}"
                );
            }
        }
    }
}
