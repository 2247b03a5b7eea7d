//! Winograd's F(4x4, 3x3) (Lavin and Gray 2016, section 4.3): 36 multiplications for 16 outputs where the direct sum
//! has 144.

use crate::{
    Finish, Kernel, Simd, Spot, View, tiles,
    view::{CLAMP, CLAMP_AND_MARK, End, LEAKY, LEAKY_AND_MARK, LINEAR, MASKED, SCALED},
};

/// Outputs of a tile in each direction.
pub const TILE: usize = 4;
/// Inputs of a tile in each direction, and the side of the transformed kernel.
pub const SIDE: usize = 6;

/// Floats of weights that are asked for ahead: a page, beyond which no processor looks by itself.
const AHEAD: usize = 1024;

/// Kernels transformed together: a divisor of every vector.
pub const TOGETHER: usize = 8;

/// The same element of several kernels.
pub type Many<T> = [T; TOGETHER];

/// One direction of `G g G^T`.
#[inline]
fn kernel_line(g: [Many<f64>; 3], out: &mut [Many<f64>; SIDE]) {
    for i in 0..TOGETHER {
        let (even, odd) = (g[0][i] + g[2][i], g[1][i]);
        let (near, far) = (g[0][i] * (1.0 / 24.0) + g[2][i] * (1.0 / 6.0), g[1][i] * (1.0 / 12.0));
        out[0][i] = g[0][i] * (1.0 / 4.0);
        out[1][i] = (even + odd) * (-1.0 / 6.0);
        out[2][i] = (even - odd) * (-1.0 / 6.0);
        out[3][i] = near + far;
        out[4][i] = near - far;
        out[5][i] = g[2][i];
    }
}

/// 3x3 kernels, row by row, transformed: `G g G^T` row by row, in f64 and rounded once.
pub fn transform(g: &[Many<f64>; 9], out: &mut [Many<f32>; SIDE * SIDE]) {
    let mut columns = [[[0.0; TOGETHER]; SIDE]; 3];
    for x in 0..3 {
        kernel_line([g[x], g[3 + x], g[6 + x]], &mut columns[x]);
    }
    let mut line = [[0.0; TOGETHER]; SIDE];
    for y in 0..SIDE {
        kernel_line([columns[0][y], columns[1][y], columns[2][y]], &mut line);
        for x in 0..SIDE {
            for i in 0..TOGETHER {
                out[y * SIDE + x][i] = line[x][i] as f32;
            }
        }
    }
}

/// A 3x3 convolution of stride 1. `from` points at the input under the kernel's first tap for output (0, 0).
pub struct Winograd<'a> {
    pub from: View<f32>,
    /// Input channels that are not padding, and all of them.
    pub depth: usize,
    pub depth_padded: usize,
    /// 36 matrices packed by [`pack`](crate::dense::pack), row by row of the transformed kernel.
    pub weights: *const f32,
    pub blocks: &'a [usize],
    pub images: usize,
    pub rows: usize,
    pub columns: usize,
    pub finish: Finish,
    /// Room for [`scratch`] floats.
    pub scratch: *mut f32,
    /// Tiles transformed at once.
    pub chunk: usize,
}

impl Winograd<'_> {
    fn across(&self) -> usize {
        self.columns.div_ceil(TILE)
    }

    fn down(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Image, row and column of a tile.
    #[inline(always)]
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (across, down) = (self.across(), self.down());
        (tile / (across * down), tile / across % down, tile % across)
    }
}

/// The distance of the 36 matrices of `floats` each: an odd number of cache lines, so that the same element of each is
/// in another set of the cache.
fn matrix_step(floats: usize) -> usize {
    (floats.div_ceil(16) | 1) * 16
}

/// Floats of scratch for `chunk` tiles.
pub fn scratch(chunk: usize, inputs: usize, outputs: usize) -> usize {
    SIDE * SIDE * (matrix_step(chunk * inputs) + matrix_step(chunk * outputs))
}

/// One direction of `B^T d B`.
#[inline(always)]
unsafe fn input_line<S: Simd>(d: [S::V; SIDE]) -> [S::V; SIDE] {
    unsafe {
        let (two, four, five) = (S::splat(2.0), S::splat(4.0), S::splat(5.0));
        let a = S::fnma(four, d[2], d[4]);
        let b = S::fnma(four, d[1], d[3]);
        let c = S::sub(d[4], d[2]);
        let e = S::mul(two, S::sub(d[3], d[1]));
        [
            S::fma(four, d[0], S::fnma(five, d[2], d[4])),
            S::add(a, b),
            S::sub(a, b),
            S::add(c, e),
            S::sub(c, e),
            S::fma(four, d[1], S::fnma(five, d[3], d[5])),
        ]
    }
}

/// One direction of `A^T m A`.
#[inline(always)]
unsafe fn output_line<S: Simd>(m: [S::V; SIDE]) -> [S::V; TILE] {
    unsafe {
        let (two, four, eight) = (S::splat(2.0), S::splat(4.0), S::splat(8.0));
        let (s1, d1) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        let (s2, d2) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        [S::add(S::add(m[0], s1), s2), S::fma(two, d2, d1), S::fma(four, s2, s1), S::add(S::fma(eight, d2, d1), m[5])]
    }
}

#[inline(always)]
unsafe fn load_transform<S: Simd>(from: *mut f32, row: usize, pixel: usize, to: *mut f32, step: usize) {
    unsafe {
        let mut from = S::opaque(from);
        let mut to = S::opaque(to);
        let mut half = [[S::splat(0.0); SIDE]; SIDE];
        for x in 0..SIDE {
            let mut d = [S::splat(0.0); SIDE];
            for y in 0..SIDE {
                d[y] = S::load(from.add(y.wrapping_mul(row)));
            }
            from = from.add(pixel);
            let d = input_line::<S>(d);
            for y in 0..SIDE {
                half[y][x] = d[y];
            }
        }
        for y in 0..SIDE {
            let d = input_line::<S>(half[y]);
            for x in 0..SIDE {
                S::store(to.add(x.wrapping_mul(step)), d[x]);
            }
            to = to.add(SIDE.wrapping_mul(step));
        }
    }
}

#[inline(always)]
unsafe fn product_tile<S: Simd, const P: usize, const L: usize>(
    from: *const f32,
    step: usize,
    depth: usize,
    weights: *const f32,
    to: *mut f32,
    to_step: usize,
) {
    unsafe {
        let mut sums = [[S::splat(0.0); L]; P];
        let mut weights = weights;
        let mut k = 0;
        while k < depth {
            let mut w = [S::splat(0.0); L];
            for l in 0..L {
                w[l] = S::load(weights.add(l * S::LANES));
                S::prefetch(weights.wrapping_add(AHEAD + l * S::LANES));
            }
            for p in 0..P {
                let x = S::splat(*from.add(p.wrapping_mul(step)).add(k));
                for l in 0..L {
                    sums[p][l] = S::fma(x, w[l], sums[p][l]);
                }
            }
            weights = weights.add(L * S::LANES);
            k += 1;
        }
        for p in 0..P {
            for l in 0..L {
                S::store(to.add(p.wrapping_mul(to_step)).add(l * S::LANES), sums[p][l]);
            }
        }
    }
}

/// `rows` rows of a matrix product with packed weights.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a matrix product has them")]
unsafe fn product<S: Simd>(
    from: *const f32,
    step: usize,
    depth: usize,
    rows: usize,
    mut weights: *const f32,
    blocks: &[usize],
    to: *mut f32,
    to_step: usize,
) {
    let mut to = to;
    for &block in blocks {
        unsafe {
            match block {
                1 => tiles!(S, 1, rows, |r| product_tile(
                    from.add(r * step),
                    step,
                    depth,
                    weights,
                    to.add(r * to_step),
                    to_step
                )),
                2 => tiles!(S, 2, rows, |r| product_tile(
                    from.add(r * step),
                    step,
                    depth,
                    weights,
                    to.add(r * to_step),
                    to_step
                )),
                _ => tiles!(S, 3, rows, |r| product_tile(
                    from.add(r * step),
                    step,
                    depth,
                    weights,
                    to.add(r * to_step),
                    to_step
                )),
            }
            weights = weights.add(depth * block * S::LANES);
            to = to.add(block * S::LANES);
        }
    }
}

impl Kernel for Winograd<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        let outputs = self.blocks.iter().sum::<usize>() * S::LANES;
        let (inputs, depth) = (self.depth_padded, self.depth);
        let tiles = self.images * self.down() * self.across();
        let mut first = 0;
        while first < tiles {
            let count = self.chunk.min(tiles - first);
            let v = self.scratch;
            let (v_step, m_step) = (matrix_step(count * inputs), matrix_step(count * outputs));
            unsafe {
                let m = v.add(SIDE * SIDE * v_step);
                for t in 0..count {
                    let (image, y, x) = self.place(first + t);
                    let from = self.from.at.add(self.from.offset(image, y * TILE, x * TILE));
                    let mut c = 0;
                    while c < inputs {
                        let to = v.add(t * inputs + c);
                        load_transform::<S>(from.add(c), self.from.row, self.from.pixel, to, v_step);
                        c += S::LANES;
                    }
                }
                for e in 0..SIDE * SIDE {
                    let weights = self.weights.add(e * depth * outputs);
                    let (from, to) = (v.add(e * v_step), m.add(e * m_step));
                    match inputs {
                        16 if depth == 16 => product::<S>(from, 16, 16, count, weights, self.blocks, to, outputs),
                        32 if depth == 32 => product::<S>(from, 32, 32, count, weights, self.blocks, to, outputs),
                        64 if depth == 64 => product::<S>(from, 64, 64, count, weights, self.blocks, to, outputs),
                        _ => product::<S>(from, inputs, depth, count, weights, self.blocks, to, outputs),
                    }
                }
                match (self.finish.end, self.finish.mask.at.is_null()) {
                    (End::Linear, _) => self.finish_tiles::<S, LINEAR>(m, m_step, first, count),
                    (End::Clamp { .. }, true) => self.finish_tiles::<S, CLAMP>(m, m_step, first, count),
                    (End::Clamp { .. }, false) => self.finish_tiles::<S, CLAMP_AND_MARK>(m, m_step, first, count),
                    (End::Leaky { .. }, true) => self.finish_tiles::<S, LEAKY>(m, m_step, first, count),
                    (End::Leaky { .. }, false) => self.finish_tiles::<S, LEAKY_AND_MARK>(m, m_step, first, count),
                    (End::Masked, _) => self.finish_tiles::<S, MASKED>(m, m_step, first, count),
                    (End::Scaled { .. }, _) => self.finish_tiles::<S, SCALED>(m, m_step, first, count),
                }
            }
            first += count;
        }
    }
}

impl Winograd<'_> {
    #[inline(always)]
    unsafe fn finish_tiles<S: Simd, const KIND: u8>(&self, m: *mut f32, m_step: usize, first: usize, count: usize) {
        let outputs = self.blocks.iter().sum::<usize>() * S::LANES;
        let mut c = 0;
        while c < outputs {
            unsafe {
                let bias = self.finish.bias_at::<S>(c);
                for t in 0..count {
                    let (image, y, x) = self.place(first + t);
                    let (y, x) = (y * TILE, x * TILE);
                    let tile = output_tile::<S>(m.add(t * outputs + c), m_step);
                    let spot = self.finish.spot(image, y, x);
                    if y + TILE <= self.rows && x + TILE <= self.columns {
                        self.store_tile::<S, KIND>(tile, bias, spot, c);
                    } else {
                        self.store_edge::<S, KIND>(tile, bias, [image, y, x], c);
                    }
                }
            }
            c += S::LANES;
        }
    }

    #[inline(always)]
    unsafe fn store_tile<S: Simd, const KIND: u8>(
        &self,
        tile: [[S::V; TILE]; TILE],
        bias: S::V,
        mut spot: Spot,
        channel: usize,
    ) {
        let finish = &self.finish;
        for line in tile {
            let mut at = spot;
            for v in line {
                unsafe { finish.store_as::<S, KIND>(v, bias, at, channel) };
                at.to = at.to.wrapping_add(finish.to.pixel);
                at.residual = at.residual.wrapping_add(finish.residual.pixel);
                at.mask = at.mask.wrapping_add(finish.mask.pixel);
            }
            spot.to = spot.to.wrapping_add(finish.to.row);
            spot.residual = spot.residual.wrapping_add(finish.residual.row);
            spot.mask = spot.mask.wrapping_add(finish.mask.row);
        }
    }

    /// A tile that hangs over the edge.
    #[inline(always)]
    unsafe fn store_edge<S: Simd, const KIND: u8>(
        &self,
        tile: [[S::V; TILE]; TILE],
        bias: S::V,
        [image, y, x]: [usize; 3],
        channel: usize,
    ) {
        let mut done = [0.0; TILE * TILE * 16];
        for i in 0..TILE {
            for j in 0..TILE {
                unsafe { S::store(done.as_mut_ptr().add((i * TILE + j) * S::LANES), tile[i][j]) };
            }
        }
        let done = S::opaque(done.as_mut_ptr());
        for i in 0..TILE.min(self.rows - y) {
            for j in 0..TILE.min(self.columns - x) {
                unsafe {
                    let v = S::load(done.add((i * TILE + j) * S::LANES));
                    self.finish.store_as::<S, KIND>(v, bias, self.finish.spot(image, y + i, x + j), channel);
                }
            }
        }
    }
}

/// `A^T m A` of the tile at `m`, whose elements are `step` apart.
#[inline(always)]
unsafe fn output_tile<S: Simd>(m: *mut f32, step: usize) -> [[S::V; TILE]; TILE] {
    unsafe {
        let m = S::opaque(m);
        let mut half = [[S::splat(0.0); SIDE]; TILE];
        for j in 0..SIDE {
            let mut m = m.add(j.wrapping_mul(step));
            let mut line = [S::splat(0.0); SIDE];
            for i in 0..SIDE {
                line[i] = S::load(m);
                m = m.add(SIDE.wrapping_mul(step));
            }
            let line = output_line::<S>(line);
            for i in 0..TILE {
                half[i][j] = line[i];
            }
        }
        let mut tile = [[S::splat(0.0); TILE]; TILE];
        for i in 0..TILE {
            tile[i] = output_line::<S>(half[i]);
        }
        tile
    }
}
