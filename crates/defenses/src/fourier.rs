//! Fourier transforms of several sequences side by side.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use game::vectorised;

use crate::kernel::Pixel;
use crate::scratch::Scratch;

/// How many sequences are transformed at a time.
pub const LANES: usize = 16;

/// One element of every sequence: a vector, or two.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Lanes<F>(pub [F; LANES]);

impl<F: Pixel> Lanes<F> {
    /// Zeros.
    #[inline(always)]
    pub fn zero() -> Self {
        Self([F::zero(); LANES])
    }
}

impl<F> Deref for Lanes<F> {
    type Target = [F; LANES];

    #[inline(always)]
    fn deref(&self) -> &[F; LANES] {
        &self.0
    }
}

impl<F> DerefMut for Lanes<F> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [F; LANES] {
        &mut self.0
    }
}

/// As many rows as each has elements.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Square<F>(pub [[F; LANES]; LANES]);

impl<F: Pixel> Square<F> {
    /// Zeros.
    #[inline(always)]
    pub fn zero() -> Self {
        Self([[F::zero(); LANES]; LANES])
    }

    /// Rows for columns.
    #[inline(always)]
    pub fn transposed(&self) -> Self {
        self.shuffled().shuffled().shuffled().shuffled()
    }

    /// The elements of both halves in turns: of the 8 bits of an element's place the first becomes the last.
    #[inline(always)]
    fn shuffled(&self) -> Self {
        let mut out = Self::zero();
        let (even, odd) = self.0.as_flattened().split_at(LANES * LANES / 2);
        for ((&even, &odd), pair) in even.iter().zip(odd).zip(out.0.as_flattened_mut().chunks_exact_mut(2)) {
            (pair[0], pair[1]) = (even, odd);
        }
        out
    }
}

/// The transform of length `n`: decimation in frequency forward, in time backward, in place and without reordering.
pub struct Plan<F> {
    stages: Vec<Stage<F>>,
    /// The frequency found at each position after [`forward`].
    pub frequencies: Vec<usize>,
    /// Where each frequency is found.
    pub positions: Vec<usize>,
}

/// Plans by type and length.
type Plans = HashMap<(TypeId, usize), Arc<dyn Any + Send + Sync>>;

static PLANS: LazyLock<RwLock<Plans>> = LazyLock::new(Default::default);

struct Stage<F> {
    radix: usize,
    /// The length of the transforms that this stage splits.
    length: usize,
    /// Powers of the root of unity of order `length`: `j * p`, for `j < length / radix` and `p < radix`.
    twiddles: Vec<[F; 2]>,
    /// Cosines and sines of the multiples of a turn by `radix`.
    roots: Vec<[F; 2]>,
}

fn roots<F: Pixel>(n: usize) -> impl Fn(usize) -> [F; 2] {
    move |k| {
        let (sin, cos) = (std::f64::consts::TAU * (k % n) as f64 / n as f64).sin_cos();
        [F::narrow(cos), F::narrow(sin)]
    }
}

impl<F: Pixel> Plan<F> {
    /// The plan of length `n`, made once.
    pub fn of(n: usize) -> Arc<Self> {
        let key = (TypeId::of::<F>(), n);
        let known = PLANS.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let plan = known.unwrap_or_else(|| {
            let mut plans = PLANS.write().unwrap_or_else(PoisonError::into_inner);
            plans.entry(key).or_insert_with(|| Arc::new(Self::new(n))).clone()
        });
        plan.downcast().expect("a plan is kept under its type")
    }

    fn new(n: usize) -> Self {
        let (mut rest, mut stages, mut frequencies) = (n, vec![], vec![0; n]);
        let mut stride = 1;
        while rest > 1 {
            let radix = match rest {
                _ if rest.is_multiple_of(4) => 4,
                _ => (2..).find(|&prime| rest.is_multiple_of(prime)).expect("a number above 1 has a prime factor"),
            };
            let (length, part) = (rest, rest / radix);
            let root = roots(length);
            let twiddles = (0..part).flat_map(|j| (0..radix).map(move |p| j * p)).map(root).collect();
            for (position, frequency) in frequencies.iter_mut().enumerate() {
                *frequency += stride * (position % length / part);
            }
            stages.push(Stage { radix, length, twiddles, roots: (0..radix).map(roots(radix)).collect() });
            stride *= radix;
            rest = part;
        }
        let mut positions = vec![0; n];
        for (position, &frequency) in frequencies.iter().enumerate() {
            positions[frequency] = position;
        }
        Self { stages, frequencies, positions }
    }
}

vectorised! {
    /// Transforms `n` complex numbers per lane; the frequencies end up permuted.
    pub fn forward<F: Pixel>(plan: &Plan<F>, re: &mut [Lanes<F>], im: &mut [Lanes<F>]) {
        for stage in &plan.stages {
            pass::<F, true>(stage, re, im);
        }
    }
}

vectorised! {
    /// Undoes [`forward`], times `n`.
    pub fn backward<F: Pixel>(plan: &Plan<F>, re: &mut [Lanes<F>], im: &mut [Lanes<F>]) {
        // Exchanging real and imaginary parts conjugates every root.
        for stage in plan.stages.iter().rev() {
            pass::<F, false>(stage, im, re);
        }
    }
}

/// One stage: butterflies, and turns by the twiddles after them (forward) or before (backward).
#[inline(always)]
fn pass<F: Pixel, const FORWARD: bool>(stage: &Stage<F>, re: &mut [Lanes<F>], im: &mut [Lanes<F>]) {
    match stage.radix {
        2 => even::<F, 2, FORWARD>(stage, re, im),
        4 => even::<F, 4, FORWARD>(stage, re, im),
        _ => odd::<F, FORWARD>(stage, re, im),
    }
}

/// A complex number.
#[derive(Clone, Copy, Debug)]
struct Number<F> {
    re: F,
    im: F,
}

impl<F: Pixel> Number<F> {
    #[inline(always)]
    fn zero() -> Self {
        Self { re: F::zero(), im: F::zero() }
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }

    /// Minus and plus `i` times `other`.
    #[inline(always)]
    fn quarters(self, other: Self) -> [Self; 2] {
        let back = Self { re: self.re + other.im, im: self.im - other.re };
        [back, Self { re: self.re - other.im, im: self.im + other.re }]
    }

    /// Times the conjugate of a root of unity.
    #[inline(always)]
    fn turned_back(self, [cos, sin]: [F; 2]) -> Self {
        Self { re: self.re * cos + self.im * sin, im: self.im * cos - self.re * sin }
    }
}

/// A stage of radix 2 or 4: its butterflies stay in registers.
#[inline(always)]
fn even<F: Pixel, const RADIX: usize, const FORWARD: bool>(stage: &Stage<F>, re: &mut [Lanes<F>], im: &mut [Lanes<F>]) {
    let part = stage.length / RADIX;
    for (re, im) in re.chunks_exact_mut(stage.length).zip(im.chunks_exact_mut(stage.length)) {
        for (j, twiddles) in stage.twiddles.chunks_exact(RADIX).enumerate() {
            let (mut a, mut b) = ([Lanes::zero(); RADIX], [Lanes::zero(); RADIX]);
            for p in 0..RADIX {
                (a[p], b[p]) = (re[j + p * part], im[j + p * part]);
            }
            for lane in 0..LANES {
                let mut x = [Number::zero(); RADIX];
                for p in 0..RADIX {
                    let number = Number { re: a[p].0[lane], im: b[p].0[lane] };
                    x[p] = if FORWARD || p == 0 { number } else { number.turned_back(twiddles[p]) };
                }
                x = if RADIX == 2 { two(x) } else { four(x) };
                for p in 0..RADIX {
                    let number = if FORWARD && p > 0 { x[p].turned_back(twiddles[p]) } else { x[p] };
                    (a[p].0[lane], b[p].0[lane]) = (number.re, number.im);
                }
            }
            for p in 0..RADIX {
                (re[j + p * part], im[j + p * part]) = (a[p], b[p]);
            }
        }
    }
}

#[inline(always)]
fn two<F: Pixel, const RADIX: usize>(x: [Number<F>; RADIX]) -> [Number<F>; RADIX] {
    let mut out = x;
    (out[0], out[1]) = (x[0].plus(x[1]), x[0].minus(x[1]));
    out
}

#[inline(always)]
fn four<F: Pixel, const RADIX: usize>(x: [Number<F>; RADIX]) -> [Number<F>; RADIX] {
    let mut out = x;
    let (even, odd) = (x[0].plus(x[2]), x[1].plus(x[3]));
    (out[0], out[2]) = (even.plus(odd), even.minus(odd));
    [out[1], out[3]] = x[0].minus(x[2]).quarters(x[1].minus(x[3]));
    out
}

/// A stage of an odd radix.
#[inline(always)]
fn odd<F: Pixel, const FORWARD: bool>(stage: &Stage<F>, re: &mut [Lanes<F>], im: &mut [Lanes<F>]) {
    let part = stage.length / stage.radix;
    let mut pairs = Scratch::of([Lanes::zero(); 4], stage.radix / 2);
    for start in (0..re.len()).step_by(stage.length) {
        for j in 0..part {
            if !FORWARD {
                turn(stage, start + j, j, re, im);
            }
            butterfly(stage, start + j, re, im, &mut pairs);
            if FORWARD {
                turn(stage, start + j, j, re, im);
            }
        }
    }
}

/// Multiplies the elements `first + p * part` by the conjugate of root `j * p`.
#[inline(always)]
fn turn<F: Pixel>(stage: &Stage<F>, first: usize, j: usize, re: &mut [Lanes<F>], im: &mut [Lanes<F>]) {
    if j == 0 {
        return;
    }
    for p in 1..stage.radix {
        let at = first + p * (stage.length / stage.radix);
        let (mut a, mut b) = (re[at].0, im[at].0);
        for lane in 0..LANES {
            let number = Number { re: a[lane], im: b[lane] }.turned_back(stage.twiddles[j * stage.radix + p]);
            (a[lane], b[lane]) = (number.re, number.im);
        }
        (re[at].0, im[at].0) = (a, b);
    }
}

/// Transforms the elements `first + p * part`: sums and differences of opposite ones halve the multiplications.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "lanes run side by side")]
fn butterfly<F: Pixel>(
    stage: &Stage<F>,
    first: usize,
    re: &mut [Lanes<F>],
    im: &mut [Lanes<F>],
    pairs: &mut [[Lanes<F>; 4]],
) {
    let (radix, part) = (stage.radix, stage.length / stage.radix);
    let zero = [re[first].0, im[first].0];
    let mut sum = zero;
    for (q, pair) in (1..).zip(&mut *pairs) {
        let (low, high) = (first + q * part, first + (radix - q) * part);
        let ([a, b], [c, d]) = ([re[low].0, im[low].0], [re[high].0, im[high].0]);
        for lane in 0..LANES {
            pair[0].0[lane] = a[lane] + c[lane];
            pair[1].0[lane] = b[lane] + d[lane];
            pair[2].0[lane] = a[lane] - c[lane];
            pair[3].0[lane] = b[lane] - d[lane];
        }
        for lane in 0..LANES {
            sum[0][lane] += pair[0].0[lane];
            sum[1][lane] += pair[1].0[lane];
        }
    }
    [re[first].0, im[first].0] = sum;
    for p in 1..=radix / 2 {
        let (mut even, mut odd) = (zero, [[F::zero(); LANES]; 2]);
        for (q, pair) in (1..).zip(&*pairs) {
            let [cos, sin] = stage.roots[p * q % radix];
            for lane in 0..LANES {
                even[0][lane] += pair[0].0[lane] * cos;
                even[1][lane] += pair[1].0[lane] * cos;
                odd[0][lane] += pair[2].0[lane] * sin;
                odd[1][lane] += pair[3].0[lane] * sin;
            }
        }
        let ([mut a, mut b], [mut c, mut d]) = (even, even);
        for lane in 0..LANES {
            a[lane] += odd[1][lane];
            b[lane] -= odd[0][lane];
            c[lane] -= odd[1][lane];
            d[lane] += odd[0][lane];
        }
        let (low, high) = (first + p * part, first + (radix - p) * part);
        (re[low].0, im[low].0) = (a, b);
        (re[high].0, im[high].0) = (c, d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use game::Key;

    #[test]
    fn squares_are_transposed() {
        let square = Square(std::array::from_fn(|i| std::array::from_fn(|j| (LANES * i + j) as f32)));
        let transposed = square.transposed();
        assert!((0..LANES * LANES).all(|at| transposed.0[at / LANES][at % LANES] == square.0[at % LANES][at / LANES]));
    }

    #[test]
    fn transforms_are_sums_of_turns_and_come_back() {
        for n in [1, 2, 3, 4, 5, 6, 8, 12, 13, 16, 28, 35, 64, 121, 224] {
            let mut noise = vec![0.0f32; 2 * n * LANES];
            Key::root(n as u64).fill_normal(&mut noise);
            let plane = |part: usize| -> Vec<Lanes<f64>> {
                let row = |i: usize| std::array::from_fn(|lane| f64::from(noise[(part * n + i) * LANES + lane]));
                (0..n).map(|i| Lanes(row(i))).collect()
            };
            let (x, y) = (plane(0), plane(1));
            let (mut re, mut im, plan) = (x.clone(), y.clone(), Plan::of(n));
            forward(&plan, &mut re, &mut im);
            for frequency in 0..n {
                let position = plan.positions[frequency];
                assert_eq!(plan.frequencies[position], frequency);
                for lane in [0, LANES - 1] {
                    let (mut expected_re, mut expected_im) = (0.0, 0.0);
                    for i in 0..n {
                        let (sin, cos) = (-std::f64::consts::TAU * (i * frequency % n) as f64 / n as f64).sin_cos();
                        expected_re += x[i][lane] * cos - y[i][lane] * sin;
                        expected_im += x[i][lane] * sin + y[i][lane] * cos;
                    }
                    assert!((re[position][lane] - expected_re).abs() < 1e-11, "{n}");
                    assert!((im[position][lane] - expected_im).abs() < 1e-11, "{n}");
                }
            }
            backward(&plan, &mut re, &mut im);
            for i in 0..n {
                for lane in 0..LANES {
                    assert!((re[i][lane] / n as f64 - x[i][lane]).abs() < 1e-13);
                    assert!((im[i][lane] / n as f64 - y[i][lane]).abs() < 1e-13);
                }
            }
        }
    }
}
