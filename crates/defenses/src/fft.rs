//! Perturbation of the Fourier coefficients.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use game::{Entry, Gradient, Key, vectorised};
use gpu::kernels::{Parameters, Source};
use serde::{Deserialize, Serialize};

use crate::device::{Batch, Dims};
use crate::fourier::{self, LANES, Lanes, Plan, Square};
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};
use crate::scratch::Scratch;

const SOURCE: Source = crate::device::source!("fft");

/// Which coefficients a fraction `f` removes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Band {
    /// What the released code does: rows `int(H f)` to `int(H (1 - f)) - 1` of the unshifted transform, and the same for
    /// columns, so that `f` is the share of low frequencies kept on either side. From one half on nothing is removed (47%
    /// of draws), and below `1/H` nearly everything.
    ///
    /// The code then also draws, with probability one half, a random mask, which keeps every coefficient whatever is
    /// drawn (it negates, intersects with nothing, and negates back): it is left out.
    #[default]
    AsCoded,
    /// What the paper's text says: the fraction `f` of the coefficients, the highest frequencies of either axis. Those
    /// of at most `sqrt(1 - f)` times the highest stay.
    Corrected,
}

/// Removes high frequencies of every channel and multiplies the others by random factors near 1.
///
/// BaRT's FFT perturbation (Raff et al. 2019) as Gao et al. 2022 released it: the fraction is drawn uniformly per image
/// and channel, the factors per coefficient and image, the same for all channels. The real part of what the inverse
/// transform gives is clipped to `[0, 1]`.
///
/// The exact derivative is the transpose: the same filter, for the gradient of the pixels that were not clipped. (Its
/// real part is a circular convolution with an even kernel, whose transfer function is the mean of the factors at
/// opposite frequencies.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fft {
    /// The largest fraction, in `[0, 1]`; the smallest is 0.
    pub fraction_max: f64,
    /// Factors are uniform in `[1 - spread, 1 + spread]`; at least 0.
    pub spread: f64,
    /// Which coefficients a fraction removes.
    pub band: Band,
    /// How an attack differentiates it.
    pub gradient: Gradient,
}

impl Default for Fft {
    fn default() -> Self {
        Self { fraction_max: 0.95, spread: 0.02, band: Band::AsCoded, gradient: Gradient::Identity }
    }
}

impl Entry for Fft {
    const ABOUT: &'static str = "removal of high frequencies, random factors for the others";

    fn check(&self) -> Result<(), String> {
        kernel::at_least("spread", self.spread, 0.0)?;
        if (0.0..=1.0).contains(&self.fraction_max) {
            Ok(())
        } else {
            Err(format!("fraction_max = {} must be in [0, 1]", self.fraction_max))
        }
    }

    fn examples() -> Vec<Self> {
        vec![
            Self { gradient: Gradient::Exact, ..Self::default() },
            Self { band: Band::Corrected, spread: 0.3, gradient: Gradient::Exact, ..Self::default() },
            Self::default(),
        ]
    }
}

impl Band {
    /// The frequencies of an axis of `n` that are removed.
    fn removed(self, fraction: f64, n: usize) -> Range<usize> {
        let size = n as f64;
        let (from, to) = match self {
            Self::AsCoded => ((size * fraction) as usize, (size * (1.0 - fraction)) as usize),
            Self::Corrected => {
                // Those above, counted from either end.
                let highest = ((1.0 - fraction).sqrt() * size / 2.0) as usize;
                (highest + 1, n - highest)
            }
        };
        from.min(to)..to
    }

    /// For each frequency of an axis of `n`, 1 if it stays and 0 if not.
    fn kept<F: Pixel>(self, fraction: f64, n: usize) -> Vec<F> {
        let mut kept = vec![F::one(); n];
        kept[self.removed(fraction, n)].fill(F::zero());
        kept
    }
}

/// The filter of images of one shape, and its scratch.
struct Filter<F: Pixel> {
    height: usize,
    width: usize,
    down: Arc<Plan<F>>,
    across: Arc<Plan<F>>,
    /// Factors of the coefficients, and of their opposites: for each group of row frequencies, the columns' frequencies as
    /// the plan leaves them.
    factors: [Scratch<Lanes<F>>; 2],
    columns: [Scratch<Lanes<F>>; 2],
    /// The spectrum of the columns: for each group of row frequencies, all columns.
    spectrum: [Scratch<Lanes<F>>; 2],
}

impl<F: Pixel> Filter<F> {
    /// The factor of row frequency `k` and column frequency `l` is `field[l * height + k]`.
    fn new(height: usize, width: usize, field: &[F]) -> Self {
        let groups = (height / 2 + 1).div_ceil(LANES);
        // A spectrum is filled up to whole squares.
        let stride = width.next_multiple_of(LANES);
        let some = |n: usize| Scratch::some(Lanes::zero(), n);
        let pair = |n: usize| [some(n), some(n)];
        let mut filter = Self {
            height,
            width,
            down: Plan::of(height),
            across: Plan::of(width),
            factors: pair(groups * width),
            columns: pair(height),
            spectrum: pair(groups * stride),
        };
        arrange(&mut filter, field);
        filter
    }

    /// The number of groups of row frequencies: the others are their conjugates.
    fn groups(&self) -> usize {
        (self.height / 2 + 1).div_ceil(LANES)
    }

    /// Filters a plane, keeping the frequencies marked 1.
    fn apply(&mut self, x: &[F], rows: &[F], columns: &[F], out: &mut [F]) {
        // Two real columns make one complex one.
        let pairs = self.width.div_ceil(2);
        for start in (0..pairs).step_by(LANES) {
            load(x, self.width, start, pairs, &mut self.columns);
            let [re, im] = &mut self.columns;
            fourier::forward(&self.down, re, im);
            unzip(self, start, pairs);
        }
        for group in 0..self.groups() {
            self.scale(group, rows, columns);
        }
        for start in (0..pairs).step_by(LANES) {
            zip(self, start, pairs);
            let [re, im] = &mut self.columns;
            fourier::backward(&self.down, re, im);
            store(&self.columns, self.width, start, pairs, out);
        }
    }

    /// The spectrum of one group of row frequencies.
    fn spectrum(&mut self, group: usize) -> [&mut [Lanes<F>]; 2] {
        let (stride, width) = (self.width.next_multiple_of(LANES), self.width);
        self.spectrum.each_mut().map(|part| &mut part[group * stride..][..width])
    }

    /// Filters one group of row frequencies along the columns.
    fn scale(&mut self, group: usize, rows: &[F], columns: &[F]) {
        let half = F::narrow(0.5 / (self.height * self.width) as f64);
        let (mut kept, mut opposite) = (Lanes::zero(), Lanes::zero());
        for (lane, k) in (group * LANES..self.height / 2 + 1).take(LANES).enumerate() {
            kept[lane] = half * rows[k];
            opposite[lane] = half * rows[(self.height - k) % self.height];
        }
        if kept.iter().chain(opposite.iter()).all(|&kept| kept == F::zero()) {
            for part in self.spectrum(group) {
                part.fill(Lanes::zero());
            }
            return;
        }
        let plan = self.across.clone();
        let [re, im] = self.spectrum(group);
        fourier::forward(&plan, re, im);
        amplify(self, group, &kept, &opposite, columns);
        let [re, im] = self.spectrum(group);
        fourier::backward(&plan, re, im);
    }
}

vectorised! {
    /// Puts the factors where they are needed.
    fn arrange<F: Pixel>(filter: &mut Filter<F>, field: &[F]) {
        let (height, width, plan) = (filter.height, filter.width, filter.across.clone());
        let [factors, opposites] = filter.factors.each_mut().map(|part| &mut part[..]);
        for (position, &l) in plan.frequencies.iter().enumerate() {
            let (here, there) = (&field[l * height..][..height], &field[(width - l) % width * height..][..height]);
            for (group, k) in (0..=height / 2).step_by(LANES).enumerate() {
                let at = group * width + position;
                let mut row = [F::zero(); LANES];
                let n = LANES.min(height - k);
                row[..n].copy_from_slice(&here[k..k + n]);
                factors[at].0 = row;
                // Of row frequency k the opposite is height - k, and 0 its own.
                row[0] = there[(height - k) % height];
                if let Some(there) = there[..height - k].last_chunk::<LANES>() {
                    for lane in 1..LANES {
                        row[lane] = there[LANES - lane];
                    }
                } else {
                    for lane in 1..n {
                        row[lane] = there[height - k - lane];
                    }
                }
                opposites[at].0 = row;
            }
        }
    }
}

vectorised! {
    /// Loads the columns `start..start + LANES` as real parts, and those `pairs` later as imaginary ones.
    fn load<F: Pixel>(x: &[F], width: usize, start: usize, pairs: usize, columns: &mut [Scratch<Lanes<F>>; 2]) {
        for (part, columns) in columns.iter_mut().enumerate() {
            let (from, to) =
                (part * pairs + start, (part * pairs + start + LANES).min(if part == 0 { pairs } else { width }));
            for (x, column) in x.chunks_exact(width).zip(columns.iter_mut()) {
                let values = &x[from.min(to)..to];
                if let Ok(values) = values.try_into() {
                    *column = Lanes(values);
                } else {
                    column[..values.len()].copy_from_slice(values);
                    column[values.len()..].fill(F::zero());
                }
            }
        }
    }
}

vectorised! {
    /// The inverse of [`load`].
    fn store<F: Pixel>(columns: &[Scratch<Lanes<F>>; 2], width: usize, start: usize, pairs: usize, out: &mut [F]) {
        for (part, columns) in columns.iter().enumerate() {
            let (from, to) =
                (part * pairs + start, (part * pairs + start + LANES).min(if part == 0 { pairs } else { width }));
            for (out, column) in out.chunks_exact_mut(width).zip(columns.iter()) {
                let out = &mut out[from.min(to)..to];
                if let Ok(out) = <&mut [F; LANES]>::try_from(&mut *out) {
                    *out = **column;
                } else {
                    out.copy_from_slice(&column[..out.len()]);
                }
            }
        }
    }
}

vectorised! {
    /// Multiplies a group's coefficients by the mean of their factors and their opposites', as far as each is kept.
    fn amplify<F: Pixel>(
        filter: &mut Filter<F>,
        group: usize,
        kept: &Lanes<F>,
        opposite: &Lanes<F>,
        columns: &[F],
    ) {
        let (width, plan, kept, opposite) = (filter.width, filter.across.clone(), kept.0, opposite.0);
        let factors = filter.factors.each_ref().map(|part| &part[group * width..][..width]);
        let [re, im] = filter.spectrum.each_mut().map(|part| &mut part[group * width.next_multiple_of(LANES)..][..width]);
        let factors = factors[0].iter().zip(factors[1]);
        for (((&l, re), im), (factors, opposites)) in plan.frequencies.iter().zip(re).zip(im).zip(factors) {
            let (here, there) = (columns[l], columns[if l == 0 { 0 } else { width - l }]);
            let (mut a, mut b) = (re.0, im.0);
            for lane in 0..LANES {
                let gain = here * kept[lane] * factors[lane] + there * opposite[lane] * opposites[lane];
                a[lane] *= gain;
                b[lane] *= gain;
            }
            (re.0, im.0) = (a, b);
        }
    }
}

/// Where a group's row frequencies and their opposites are found in a column.
fn places<F: Pixel>(plan: &Plan<F>, group: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let n = plan.positions.len();
    let rows = (group * LANES..n / 2 + 1).take(LANES).enumerate();
    rows.map(move |(row, k)| (row, plan.positions[k], plan.positions[(n - k) % n]))
}

vectorised! {
    /// Takes the spectra of pairs of real columns apart, and turns rows into columns.
    fn unzip<F: Pixel>(filter: &mut Filter<F>, start: usize, pairs: usize) {
        let half = F::narrow(0.5);
        let stride = filter.width.next_multiple_of(LANES);
        let [re, im] = filter.columns.each_ref().map(|part| &part[..]);
        let [out_re, out_im] = filter.spectrum.each_mut().map(|part| &mut part[..]);
        for group in 0..(filter.height / 2 + 1).div_ceil(LANES) {
            // First and second column of each pair: real and imaginary parts, by row frequency and column.
            let mut squares = [Square::zero(); 4];
            for (row, at, opposite) in places(&filter.down, group) {
                let [a, b, c, d] = [re[at].0, im[at].0, re[opposite].0, im[opposite].0];
                let [p, q, r, s] = squares.each_mut().map(|square| &mut square.0[row]);
                for lane in 0..LANES {
                    p[lane] = half * (a[lane] + c[lane]);
                    q[lane] = half * (b[lane] - d[lane]);
                    r[lane] = half * (b[lane] + d[lane]);
                    s[lane] = half * (c[lane] - a[lane]);
                }
            }
            for (part, column) in [start, pairs + start].into_iter().enumerate() {
                let range = group * stride + column..group * stride + column + LANES.min(pairs - start);
                turn(&squares[2 * part], &mut out_re[range.clone()]);
                turn(&squares[2 * part + 1], &mut out_im[range]);
            }
        }
    }
}

/// Stores the columns of a square.
#[inline(always)]
fn turn<F: Pixel>(square: &Square<F>, out: &mut [Lanes<F>]) {
    for (out, row) in out.iter_mut().zip(&square.transposed().0) {
        out.0 = *row;
    }
}

/// The inverse of [`turn`].
#[inline(always)]
fn turn_back<F: Pixel>(x: &[Lanes<F>]) -> Square<F> {
    let mut square = Square::zero();
    for (row, x) in square.0.iter_mut().zip(x) {
        *row = x.0;
    }
    square.transposed()
}

vectorised! {
    /// The inverse of [`unzip`].
    fn zip<F: Pixel>(filter: &mut Filter<F>, start: usize, pairs: usize) {
        let stride = filter.width.next_multiple_of(LANES);
        let [re, im] = filter.columns.each_mut().map(|part| &mut part[..]);
        let [in_re, in_im] = filter.spectrum.each_ref().map(|part| &part[..]);
        for group in 0..(filter.height / 2 + 1).div_ceil(LANES) {
            let mut squares = [Square::zero(); 4];
            for (part, column) in [start, pairs + start].into_iter().enumerate() {
                let range = group * stride + column..group * stride + column + LANES.min(pairs - start);
                squares[2 * part] = turn_back(&in_re[range.clone()]);
                squares[2 * part + 1] = turn_back(&in_im[range]);
            }
            for (row, at, opposite) in places(&filter.down, group) {
                let [p, q, r, s] = squares.each_ref().map(|square| square.0[row]);
                let [mut a, mut b, mut c, mut d] = [[F::zero(); LANES]; 4];
                for lane in 0..LANES {
                    a[lane] = p[lane] - s[lane];
                    b[lane] = r[lane] + q[lane];
                    c[lane] = p[lane] + s[lane];
                    d[lane] = r[lane] - q[lane];
                }
                // At frequency 0 and, of an even height, at the highest both are the same place.
                (re[opposite].0, im[opposite].0) = (c, d);
                (re[at].0, im[at].0) = (a, b);
            }
        }
    }
}

vectorised! {
    /// Numbers of `[0, 1)` in a range.
    fn spread<F: Pixel>(uniform: &[f32], low: F, range: F, out: &mut [F]) {
        for (out, &u) in out.iter_mut().zip(uniform) {
            *out = low + range * F::drawn(u);
        }
    }
}

impl Fft {
    /// Filters every channel as drawn by `key`.
    fn filter<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut [F]) {
        let Shape { height, width, .. } = shape;
        if shape.area() == 0 {
            return;
        }
        let (low, range) = (F::narrow(1.0 - self.spread), F::narrow(2.0 * self.spread));
        let mut field = Scratch::some(F::zero(), shape.area());
        kernel::uniforms(key.at(0), shape.area(), |i, u| spread(u, low, range, &mut field[i]));
        let mut filter = Filter::new(height, width, &field);
        for (c, (x, out)) in x.chunks_exact(shape.area()).zip(out.chunks_exact_mut(shape.area())).enumerate() {
            let fraction = self.fraction(key, c);
            filter.apply(x, &self.band.kept(fraction, height), &self.band.kept(fraction, width), out);
        }
    }

    /// The fraction drawn by `key` for a channel.
    fn fraction(&self, key: Key, channel: usize) -> f64 {
        key.at(1 + channel as u64).uniform(0.0, self.fraction_max)
    }
}

vectorised! {
    fn clip<F: Pixel>(x: &mut [F]) {
        for x in x {
            *x = x.clipped();
        }
    }
}

impl Kernel for Fft {
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut Canvas<'_, F>) {
        let out = out.rest();
        self.filter(x, shape, key, out);
        clip(out);
    }

    fn backward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, upstream: &[F], out: &mut [F]) {
        self.filter(x, shape, key, out);
        let unclipped: Vec<F> = out
            .iter()
            .zip(upstream)
            .map(|(out, &upstream)| if out.is_inside() { upstream } else { F::zero() })
            .collect();
        self.filter(&unclipped, shape, key, out);
    }

    fn launch(&self, batch: &Batch<'_>) -> candle_core::Result<Tensor> {
        self.filter_at(batch, batch.x, true)
    }

    fn launch_back(&self, batch: &Batch<'_>, upstream: &Tensor) -> candle_core::Result<Tensor> {
        let filtered = self.filter_at(batch, batch.x, false)?;
        let mut call = batch.call();
        let kept = batch.images(&call, batch.shape)?;
        let inside = Filtering {
            x: call.read(&filtered, DType::F32)?,
            upstream: call.read(upstream, DType::F32)?,
            to: kept.address,
            ..Filtering::default()
        };
        // SAFETY: all three have the images' shape.
        unsafe { call.launch(&SOURCE, "keep_inside", batch.len(batch.shape), &inside)? };
        self.filter_at(batch, &kept.tensor(), false)
    }
}

/// As `Fft` in fft.cu.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Filtering {
    x: u64,
    upstream: u64,
    to: u64,
    row_roots: u64,
    column_roots: u64,
    rows: u64,
    columns: u64,
    field: u64,
    words: u64,
    removed: u64,
    spectrum: u64,
    other: u64,
    low: f32,
    range: f32,
    scale: f32,
    clip: u32,
    half: u32,
    shape: Dims,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Filtering {}

/// How many rows a thread of fft.cu makes.
const RUN: usize = 4;

/// `exp(2 pi i j / n)` by `j`.
fn roots(n: usize) -> Vec<f32> {
    let root = |j: usize| (std::f64::consts::TAU * j as f64 / n as f64).sin_cos();
    (0..n).map(root).flat_map(|(sin, cos)| [cos as f32, sin as f32]).collect()
}

impl Fft {
    /// Filters every channel of every image, on its device.
    fn filter_at(&self, batch: &Batch<'_>, x: &Tensor, clip: bool) -> candle_core::Result<Tensor> {
        let (mut call, shape, planes) = (batch.call(), batch.shape, batch.planes());
        let Shape { height, width, .. } = shape;
        let half = width / 2 + 1;
        let complex = |n: usize| call.output(2 * n, DType::F32);
        let [rows, columns] = [complex(height * height)?, complex(width * width)?];
        let [spectrum, other] = [complex(planes * height * half)?, complex(planes * height * half)?];
        let (field, to) = (batch.words(&call, shape.area())?, batch.images(&call, shape)?);
        let removed = batch.keys.iter().flat_map(|&key| (0..shape.channels).map(move |c| self.fraction(key, c)));
        let ends = removed.flat_map(|fraction| {
            let [rows, columns] = [height, width].map(|n| self.band.removed(fraction, n));
            [rows.start, rows.end, columns.start, columns.end].map(|end| end as u32)
        });
        let filtering = Filtering {
            x: call.read(x, DType::F32)?,
            upstream: 0,
            to: to.address,
            row_roots: call.upload(&roots(height))?,
            column_roots: call.upload(&roots(width))?,
            rows: rows.address,
            columns: columns.address,
            field: field.address,
            words: call.upload(&batch.keys.iter().flat_map(|key| key.at(0).words()).collect::<Vec<u32>>())?,
            removed: call.upload(&ends.collect::<Vec<u32>>())?,
            spectrum: spectrum.address,
            other: other.address,
            low: (1.0 - self.spread) as f32,
            range: (2.0 * self.spread) as f32,
            scale: (0.5 / shape.area() as f64) as f32,
            clip: clip.into(),
            half: half as u32,
            shape: shape.into(),
        };
        let runs = planes * height.div_ceil(RUN);
        let kernels = [
            ("row_matrix", height * height),
            ("column_matrix", width * width),
            ("factors", batch.keys.len() * shape.area().div_ceil(4)),
            ("across", runs * half),
            ("down", runs * half),
            ("up", runs * half),
            ("back", runs * width),
        ];
        for (kernel, threads) in kernels {
            // SAFETY: matrices, field and spectra have room for what the kernels index by `shape` and `half`.
            unsafe { call.launch(&SOURCE, kernel, threads, &filtering)? };
        }
        Ok(to.tensor())
    }
}

kernel::defense!(Fft);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn values_are_numpys() {
        for case in golden::cases("fft") {
            // Whatever an earlier image left in memory.
            let shape = Shape { channels: 1, height: 40, width: 33 };
            kernel::output(&Fft::default(), &vec![f64::NAN; shape.len()], shape, Key::root(0));
            let Shape { channels, height, width } = case.shape();
            let field = &case.params["field"];
            let field: Vec<f64> = (0..width).flat_map(|l| (0..height).map(move |k| field[k * width + l])).collect();
            let mut filter = Filter::new(height, width, &field);
            let mut out = vec![0.0; case.output.len()];
            for c in 0..channels {
                let (range, fraction) = (c * height * width..(c + 1) * height * width, case.params["fraction"][c]);
                let [rows, columns] = [height, width].map(|n| Band::AsCoded.kept(fraction, n));
                filter.apply(&case.image[range.clone()], &rows, &columns, &mut out[range]);
            }
            clip(&mut out);
            golden::assert_close(&out, &case.output, 1e-13);
        }
    }

    fn kept(band: Band, fraction: f64, n: usize) -> Vec<usize> {
        let kept: Vec<f64> = band.kept(fraction, n);
        (0..n).filter(|&k| kept[k] == 1.0).collect()
    }

    #[test]
    fn the_coded_fraction_is_a_share_kept() {
        // Nothing is removed from one half on, nearly everything below one row, everything at 0.
        for fraction in [0.5, 0.6, 0.95] {
            assert_eq!(kept(Band::AsCoded, fraction, 224).len(), 224);
        }
        assert_eq!(kept(Band::AsCoded, 0.9 / 224.0, 224), [223]);
        assert!(kept(Band::AsCoded, 0.0, 224).is_empty());
        assert_eq!(kept(Band::AsCoded, 0.25, 8), [0, 1, 6, 7]);
    }

    #[test]
    fn the_corrected_fraction_is_a_share_removed() {
        assert_eq!(kept(Band::Corrected, 0.0, 224).len(), 224);
        for fraction in [0.1, 0.5, 0.95] {
            let kept = kept(Band::Corrected, fraction, 224);
            assert!(((kept.len() as f64 / 224.0).powi(2) - (1.0 - fraction)).abs() < 0.02, "{fraction}");
            assert!(kept.contains(&0) && kept.iter().all(|k| kept.contains(&((224 - k) % 224))));
        }
    }

    #[test]
    fn below_one_row_the_channel_turns_black_and_above_one_half_hardly_changes() {
        let shape = Shape { channels: 40, height: 16, width: 16 };
        let mut x = vec![0.0f32; shape.len()];
        Key::root(1).fill_uniform(&mut x);
        let (fft, key) = (Fft::default(), Key::root(2));
        let out = kernel::output(&fft, &x, shape, key);
        let (mut black, mut whole) = (0, 0);
        for c in 0..shape.channels {
            let range = c * shape.area()..(c + 1) * shape.area();
            let change = x[range.clone()].iter().zip(&out[range.clone()]).map(|(x, out)| (x - out).abs());
            let mean = out[range].iter().sum::<f32>() / shape.area() as f32;
            match fft.fraction(key, c) {
                fraction if fraction < 1.0 / 16.0 => black += usize::from(mean < 0.05),
                fraction if fraction >= 0.5 => whole += usize::from(change.fold(0.0, f32::max) < 0.1),
                _ => assert!(mean > 0.3),
            }
        }
        let count = |range: std::ops::Range<f64>| (0..40).filter(|&c| range.contains(&fft.fraction(key, c))).count();
        assert_eq!((black, whole), (count(0.0..1.0 / 16.0), count(0.5..1.0)));
        assert!(black > 0 && whole > 10, "{black} {whole}");
    }
}
