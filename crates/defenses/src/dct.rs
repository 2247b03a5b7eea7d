//! Blocks of 8 x 8 pixels, and their cosine transform.

#![expect(clippy::needless_range_loop, reason = "lanes run side by side")]

use crate::kernel::Pixel;

/// How many columns are transformed at a time: those of two blocks.
pub const LANES: usize = 16;

/// Two blocks side by side: rows of columns; or, [`turned`], columns of rows. A row is one vector.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(align(64))]
pub struct Tile<T>(pub [[T; LANES]; 8]);

/// Numbers by frequency, rows of columns.
pub type Table<T> = [[T; 8]; 8];

/// The tile at row `top` and column `left`, repeating the plane's last row and column.
#[inline(always)]
pub fn load<T: Copy + Default>(plane: &[T], (height, width): (usize, usize), (top, left): (usize, usize)) -> Tile<T> {
    if top + 8 > height || left + LANES > width {
        return load_edge(plane, (height, width), (top, left));
    }
    let mut tile = Tile([[T::default(); LANES]; 8]);
    let plane = &plane[top * width + left..][..7 * width + LANES];
    for (i, row) in tile.0.iter_mut().enumerate() {
        row.copy_from_slice(&plane[i * width..i * width + LANES]);
    }
    tile
}

#[cold]
#[inline(never)]
fn load_edge<T: Copy>(plane: &[T], (height, width): (usize, usize), (top, left): (usize, usize)) -> Tile<T> {
    let at = |i: usize, j: usize| plane[(top + i).min(height - 1) * width + (left + j).min(width - 1)];
    Tile(std::array::from_fn(|i| std::array::from_fn(|j| at(i, j))))
}

/// The inverse of [`load`], without what is outside.
#[inline(always)]
pub fn store<T: Copy>(tile: &Tile<T>, plane: &mut [T], (height, width): (usize, usize), (top, left): (usize, usize)) {
    if top + 8 > height || left + LANES > width {
        return store_edge(tile, plane, (height, width), (top, left));
    }
    let plane = &mut plane[top * width + left..][..7 * width + LANES];
    for (i, row) in tile.0.iter().enumerate() {
        plane[i * width..i * width + LANES].copy_from_slice(row);
    }
}

#[cold]
#[inline(never)]
fn store_edge<T: Copy>(tile: &Tile<T>, plane: &mut [T], (height, width): (usize, usize), (top, left): (usize, usize)) {
    let columns = LANES.min(width - left);
    for (row, line) in tile.0.iter().zip(plane[top * width..height * width].chunks_exact_mut(width)) {
        line[left..left + columns].copy_from_slice(&row[..columns]);
    }
}

/// What `of` makes of every element.
#[inline(always)]
pub fn each<T: Copy, U: Copy + Default>(tile: &Tile<T>, of: impl Fn(T) -> U) -> Tile<U> {
    let mut out = Tile([[U::default(); LANES]; 8]);
    // Flat: two nested loops would be vectorised the wrong way.
    for (out, &value) in out.0.as_flattened_mut().iter_mut().zip(tile.0.as_flattened()) {
        *out = of(value);
    }
    out
}

/// Columns for rows: row `j` of what comes out holds column `j` of both blocks, their rows in turns.
#[inline(always)]
pub fn turned<T: Copy + Default>(tile: &Tile<T>) -> Tile<T> {
    shuffled(&shuffled(&shuffled(&shuffled(tile))))
}

/// The inverse of [`turned`].
#[inline(always)]
pub fn turned_back<T: Copy + Default>(tile: &Tile<T>) -> Tile<T> {
    shuffled(&shuffled(&shuffled(tile)))
}

/// The elements of both halves in turns: of the 7 bits of an element's place (row, block, column) the first becomes the
/// last.
#[inline(always)]
fn shuffled<T: Copy + Default>(tile: &Tile<T>) -> Tile<T> {
    let mut out = Tile([[T::default(); LANES]; 8]);
    let (even, odd) = tile.0.as_flattened().split_at(4 * LANES);
    for ((&even, &odd), pair) in even.iter().zip(odd).zip(out.0.as_flattened_mut().chunks_exact_mut(2)) {
        (pair[0], pair[1]) = (even, odd);
    }
    out
}

/// By frequency, the orthonormal cosine transform of 8 numbers over what [`forward`] makes of them: 1 / (4 cos(k pi / 16)),
/// and 1 / sqrt(8) for the mean.
pub const SCALE: [f64; 8] = [
    0.353_553_390_593_273_8,
    0.254_897_789_552_079_6,
    0.270_598_050_073_098_5,
    0.300_672_443_467_522_64,
    0.353_553_390_593_273_8,
    0.449_988_111_568_207_8,
    0.653_281_482_438_188_3,
    1.281_457_723_870_752_7,
];

/// The four multipliers: cosines of 4, 6, 2 - 6 and 2 + 6 sixteenths of a half turn.
const COS: [f64; 4] =
    [std::f64::consts::FRAC_1_SQRT_2, 0.382_683_432_365_089_8, 0.541_196_100_146_197, 1.306_562_964_876_376_5];

/// The cosine transform of every column, scaled (Arai, Agui and Nakajima 1988: 5 multiplications).
#[inline(always)]
pub fn forward<F: Pixel>(Tile(x): &mut Tile<F>) {
    let [half, low, difference, sum] = COS.map(F::narrow);
    for lane in 0..LANES {
        let at = |i: usize| x[i][lane];
        let (s0, s1, s2, s3) = (at(0) + at(7), at(1) + at(6), at(2) + at(5), at(3) + at(4));
        let (d0, d1, d2, d3) = (at(0) - at(7), at(1) - at(6), at(2) - at(5), at(3) - at(4));
        let (outer, inner, outer_minus, inner_minus) = (s0 + s3, s1 + s2, s0 - s3, s1 - s2);
        let turn = (inner_minus + outer_minus) * half;
        let (p, q, r) = (d3 + d2, (d2 + d1) * half, d1 + d0);
        let both = (p - r) * low;
        let (p, r) = (p * difference + both, r * sum + both);
        let (plus, minus) = (d0 + q, d0 - q);
        x[0][lane] = outer + inner;
        x[1][lane] = plus + r;
        x[2][lane] = outer_minus + turn;
        x[3][lane] = minus - p;
        x[4][lane] = outer - inner;
        x[5][lane] = minus + p;
        x[6][lane] = outer_minus - turn;
        x[7][lane] = plus - r;
    }
}

/// The transpose of [`forward`]: of a spectrum scaled in the same way, its inverse.
#[inline(always)]
pub fn backward<F: Pixel>(Tile(x): &mut Tile<F>) {
    let [half, low, difference, sum] = COS.map(F::narrow);
    for lane in 0..LANES {
        let at = |k: usize| x[k][lane];
        let (outer, inner) = (at(0) + at(4), at(0) - at(4));
        let turn = (at(2) - at(6)) * half;
        let outer_minus = at(2) + at(6) + turn;
        let (s0, s1, s2, s3) = (outer + outer_minus, inner + turn, inner - turn, outer - outer_minus);
        let (plus, r, minus, p) = (at(1) + at(7), at(1) - at(7), at(5) + at(3), at(5) - at(3));
        let q = (plus - minus) * half;
        let both = (p + r) * low;
        let (p, r) = (p * difference + both, r * sum - both);
        let (d0, d1, d2, d3) = (plus + minus + r, q + r, p + q, p);
        x[0][lane] = s0 + d0;
        x[1][lane] = s1 + d1;
        x[2][lane] = s2 + d2;
        x[3][lane] = s3 + d3;
        x[4][lane] = s3 - d3;
        x[5][lane] = s2 - d2;
        x[6][lane] = s1 - d1;
        x[7][lane] = s0 - d0;
    }
}

/// A table for [`turned`] tiles: rows of the frequencies of columns.
pub fn spread<T: Copy>(table: &Table<T>) -> Tile<T> {
    Tile(std::array::from_fn(|l| std::array::from_fn(|lane| table[lane / 2][l])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile() -> Tile<f64> {
        Tile(std::array::from_fn(|i| std::array::from_fn(|j| (i * i * 3 + j * 5 % 7 + i * j) as f64)))
    }

    #[test]
    fn transforms_are_cosines_and_their_transpose() {
        let x = tile();
        let cos = |k: usize, i: usize| {
            let scale = if k == 0 { (1.0f64 / 8.0).sqrt() } else { 0.5 };
            scale * (std::f64::consts::PI * (2 * i + 1) as f64 * k as f64 / 16.0).cos()
        };
        let (mut there, mut back) = (x, x);
        forward(&mut there);
        for (row, scale) in back.0.iter_mut().zip(SCALE) {
            row.iter_mut().for_each(|value| *value *= scale);
        }
        backward(&mut back);
        for lane in 0..LANES {
            for k in 0..8 {
                let spectrum: f64 = (0..8).map(|i| cos(k, i) * x.0[i][lane]).sum();
                let inverse: f64 = (0..8).map(|i| cos(i, k) * x.0[i][lane]).sum();
                assert!((there.0[k][lane] * SCALE[k] - spectrum).abs() < 1e-12, "{k}");
                assert!((back.0[k][lane] - inverse).abs() < 1e-12, "{k}");
            }
        }
    }

    #[test]
    fn turned_tiles_hold_columns_and_turn_back() {
        let (x, turned) = (tile(), turned(&tile()));
        for (i, j, block) in (0..8).flat_map(|i| (0..8).flat_map(move |j| [(i, j, 0), (i, j, 1)])) {
            assert_eq!(turned.0[j][2 * i + block], x.0[i][8 * block + j]);
        }
        assert_eq!(turned_back(&turned), x);
        let table: Table<usize> = std::array::from_fn(|k| std::array::from_fn(|l| 8 * k + l));
        assert_eq!((spread(&table).0[3][0], spread(&table).0[3][1], spread(&table).0[3][10]), (3, 3, 43));
    }

    #[test]
    fn tiles_repeat_the_last_row_and_column_and_store_what_is_inside() {
        let plane: Vec<i32> = (0..11 * 21).collect();
        let Tile(tile) = load(&plane, (11, 21), (8, 16));
        assert_eq!((tile[0][0], tile[0][4], tile[0][5], tile[2][1], tile[7][15]), (184, 188, 188, 227, 230));
        let mut out = vec![0; plane.len()];
        for (top, left) in [(0, 0), (0, 16), (8, 0), (8, 16)] {
            store(&load(&plane, (11, 21), (top, left)), &mut out, (11, 21), (top, left));
        }
        assert_eq!(out, plane);
    }
}
