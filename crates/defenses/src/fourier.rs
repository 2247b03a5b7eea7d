//! Fourier transforms of several sequences side by side.

use game::vectorised;

use crate::kernel::Pixel;

/// How many sequences are transformed at a time.
pub const LANES: usize = 16;

/// One element of every sequence.
pub type Lanes<F> = [F; LANES];

/// The transform of length `n`: decimation in frequency forward, in time backward, in place and without reordering.
pub struct Plan<F> {
    stages: Vec<Stage<F>>,
    /// The frequency found at each position after [`forward`].
    pub frequencies: Vec<usize>,
    /// Where each frequency is found.
    pub positions: Vec<usize>,
    /// Room for one butterfly of any radix: real and imaginary sums and differences.
    scratch: Vec<[Lanes<F>; 4]>,
}

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
    pub fn new(n: usize) -> Self {
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
        let widest = stages.iter().map(|stage| stage.radix / 2).max().unwrap_or(0);
        Self { stages, frequencies, positions, scratch: vec![[[F::zero(); LANES]; 4]; widest] }
    }
}

vectorised! {
    /// Transforms `n` complex numbers per lane; the frequencies end up permuted.
    pub fn forward<F: Pixel>(plan: &mut Plan<F>, re: &mut [Lanes<F>], im: &mut [Lanes<F>]) {
        for stage in &plan.stages {
            let part = stage.length / stage.radix;
            for start in (0..re.len()).step_by(stage.length) {
                for j in 0..part {
                    butterfly(stage, start + j, part, re, im, &mut plan.scratch);
                    turn(stage, start + j, j, part, re, im);
                }
            }
        }
    }
}

vectorised! {
    /// Undoes [`forward`], times `n`.
    pub fn backward<F: Pixel>(plan: &mut Plan<F>, re: &mut [Lanes<F>], im: &mut [Lanes<F>]) {
        // Exchanging real and imaginary parts conjugates every root.
        let (re, im) = (im, re);
        for stage in plan.stages.iter().rev() {
            let part = stage.length / stage.radix;
            for start in (0..re.len()).step_by(stage.length) {
                for j in 0..part {
                    turn(stage, start + j, j, part, re, im);
                    butterfly(stage, start + j, part, re, im, &mut plan.scratch);
                }
            }
        }
    }
}

/// Multiplies the elements `first + p * part` by the conjugate of root `j * p`.
#[inline(always)]
fn turn<F: Pixel>(stage: &Stage<F>, first: usize, j: usize, part: usize, re: &mut [Lanes<F>], im: &mut [Lanes<F>]) {
    if j == 0 {
        return;
    }
    for p in 1..stage.radix {
        let [cos, sin] = stage.twiddles[j * stage.radix + p];
        let (re, im) = (&mut re[first + p * part], &mut im[first + p * part]);
        for lane in 0..LANES {
            let (a, b) = (re[lane], im[lane]);
            re[lane] = a * cos + b * sin;
            im[lane] = b * cos - a * sin;
        }
    }
}

/// Transforms the elements `first + p * part`, `p < radix`.
#[inline(always)]
fn butterfly<F: Pixel>(
    stage: &Stage<F>,
    first: usize,
    part: usize,
    re: &mut [Lanes<F>],
    im: &mut [Lanes<F>],
    scratch: &mut [[Lanes<F>; 4]],
) {
    match stage.radix {
        2 => two(first, part, re, im),
        4 => four(first, part, re, im),
        _ => odd(stage, first, part, re, im, scratch),
    }
}

#[inline(always)]
fn two<F: Pixel>(first: usize, part: usize, re: &mut [Lanes<F>], im: &mut [Lanes<F>]) {
    for x in [re, im] {
        let (a, b) = (x[first], x[first + part]);
        for lane in 0..LANES {
            x[first][lane] = a[lane] + b[lane];
            x[first + part][lane] = a[lane] - b[lane];
        }
    }
}

#[inline(always)]
fn four<F: Pixel>(first: usize, part: usize, re: &mut [Lanes<F>], im: &mut [Lanes<F>]) {
    let at = [first, first + part, first + 2 * part, first + 3 * part];
    let (a, b) = (at.map(|i| re[i]), at.map(|i| im[i]));
    let (mut c, mut d) = ([[F::zero(); LANES]; 4], [[F::zero(); LANES]; 4]);
    for lane in 0..LANES {
        let (even_re, even_im) = (a[0][lane] + a[2][lane], b[0][lane] + b[2][lane]);
        let (odd_re, odd_im) = (a[1][lane] + a[3][lane], b[1][lane] + b[3][lane]);
        let (minus_re, minus_im) = (a[0][lane] - a[2][lane], b[0][lane] - b[2][lane]);
        let (cross_re, cross_im) = (a[1][lane] - a[3][lane], b[1][lane] - b[3][lane]);
        (c[0][lane], d[0][lane]) = (even_re + odd_re, even_im + odd_im);
        (c[1][lane], d[1][lane]) = (minus_re + cross_im, minus_im - cross_re);
        (c[2][lane], d[2][lane]) = (even_re - odd_re, even_im - odd_im);
        (c[3][lane], d[3][lane]) = (minus_re - cross_im, minus_im + cross_re);
    }
    for p in 0..4 {
        (re[at[p]], im[at[p]]) = (c[p], d[p]);
    }
}

/// An odd radix: sums and differences of the elements `q` and `radix - q` halve the multiplications.
#[inline(always)]
fn odd<F: Pixel>(
    stage: &Stage<F>,
    first: usize,
    part: usize,
    re: &mut [Lanes<F>],
    im: &mut [Lanes<F>],
    scratch: &mut [[Lanes<F>; 4]],
) {
    let (radix, half) = (stage.radix, stage.radix / 2);
    let (zero_re, zero_im) = (re[first], im[first]);
    let (mut sum_re, mut sum_im) = (zero_re, zero_im);
    for q in 1..=half {
        let (low, high) = (first + q * part, first + (radix - q) * part);
        let pair = &mut scratch[q - 1];
        for lane in 0..LANES {
            pair[0][lane] = re[low][lane] + re[high][lane];
            pair[1][lane] = im[low][lane] + im[high][lane];
            pair[2][lane] = re[low][lane] - re[high][lane];
            pair[3][lane] = im[low][lane] - im[high][lane];
            sum_re[lane] += pair[0][lane];
            sum_im[lane] += pair[1][lane];
        }
    }
    (re[first], im[first]) = (sum_re, sum_im);
    for p in 1..=half {
        let (mut even_re, mut even_im) = (zero_re, zero_im);
        let (mut odd_re, mut odd_im) = ([F::zero(); LANES], [F::zero(); LANES]);
        for (q, pair) in scratch[..half].iter().enumerate() {
            let [cos, sin] = stage.roots[p * (q + 1) % radix];
            for lane in 0..LANES {
                even_re[lane] += pair[0][lane] * cos;
                even_im[lane] += pair[1][lane] * cos;
                odd_re[lane] += pair[2][lane] * sin;
                odd_im[lane] += pair[3][lane] * sin;
            }
        }
        let (low, high) = (first + p * part, first + (radix - p) * part);
        for lane in 0..LANES {
            re[low][lane] = even_re[lane] + odd_im[lane];
            im[low][lane] = even_im[lane] - odd_re[lane];
            re[high][lane] = even_re[lane] - odd_im[lane];
            im[high][lane] = even_im[lane] + odd_re[lane];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use game::Key;

    #[test]
    fn transforms_are_sums_of_turns_and_come_back() {
        for n in [1, 2, 3, 4, 5, 6, 8, 12, 13, 16, 28, 35, 64, 121, 224] {
            let mut noise = vec![0.0f32; 2 * n * LANES];
            Key::root(n as u64).fill_normal(&mut noise);
            let plane = |part: usize| -> Vec<Lanes<f64>> {
                (0..n).map(|i| std::array::from_fn(|lane| f64::from(noise[(part * n + i) * LANES + lane]))).collect()
            };
            let (x, y) = (plane(0), plane(1));
            let (mut re, mut im, mut plan) = (x.clone(), y.clone(), Plan::new(n));
            forward(&mut plan, &mut re, &mut im);
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
            backward(&mut plan, &mut re, &mut im);
            for i in 0..n {
                for lane in 0..LANES {
                    assert!((re[i][lane] / n as f64 - x[i][lane]).abs() < 1e-13);
                    assert!((im[i][lane] / n as f64 - y[i][lane]).abs() < 1e-13);
                }
            }
        }
    }
}
