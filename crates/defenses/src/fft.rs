//! Perturbation of the Fourier coefficients.

#![expect(clippy::needless_range_loop, reason = "lanes run side by side")]

use game::{Entry, Gradient, Key, vectorised};
use serde::{Deserialize, Serialize};

use crate::fourier::{self, LANES, Lanes, Plan};
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};
use crate::scratch::Scratch;

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
    /// For each frequency of an axis of `n`, 1 if it stays and 0 if not.
    fn kept<F: Pixel>(self, fraction: f64, n: usize) -> Vec<F> {
        let size = n as f64;
        let removed = |k: usize| match self {
            Self::AsCoded => ((size * fraction) as usize..(size * (1.0 - fraction)) as usize).contains(&k),
            Self::Corrected => k.min(n - k) as f64 > (1.0 - fraction).sqrt() * size / 2.0,
        };
        (0..n).map(|k| if removed(k) { F::zero() } else { F::one() }).collect()
    }
}

/// The filter of images of one shape, and its scratch.
struct Filter<F: Pixel> {
    height: usize,
    width: usize,
    down: Plan<F>,
    across: Plan<F>,
    /// Factors of the coefficients, and of their opposites: a row of groups of row frequencies per column frequency.
    factors: Scratch<Lanes<F>>,
    opposites: Scratch<Lanes<F>>,
    columns: [Scratch<Lanes<F>>; 2],
    /// The spectrum of the columns: for each group of row frequencies, all columns.
    spectrum: [Scratch<Lanes<F>>; 2],
}

impl<F: Pixel> Filter<F> {
    /// The factor of row frequency `k` and column frequency `l` is `field[l * height + k]`.
    fn new(height: usize, width: usize, field: &[F]) -> Self {
        let zeros = |n: usize| Scratch::of([F::zero(); LANES], n);
        let (groups, half) = ((height / 2 + 1).div_ceil(LANES), height / 2);
        let (mut factors, mut opposites) = (zeros(groups * width), zeros(groups * width));
        for l in 0..width {
            let range = l * groups..(l + 1) * groups;
            let (here, there) = (&field[l * height..][..height], &field[(width - l) % width * height..][..height]);
            factors[range.clone()].as_flattened_mut()[..=half].copy_from_slice(&here[..=half]);
            let opposites = opposites[range].as_flattened_mut();
            opposites[0] = there[0];
            for (opposite, &factor) in opposites[1..=half].iter_mut().zip(there[1..].iter().rev()) {
                *opposite = factor;
            }
        }
        Self {
            height,
            width,
            down: Plan::new(height),
            across: Plan::new(width),
            factors,
            opposites,
            columns: [zeros(height), zeros(height)],
            spectrum: [zeros(groups * width), zeros(groups * width)],
        }
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
            fourier::forward(&mut self.down, re, im);
            unzip(self, start, pairs);
        }
        for group in 0..self.groups() {
            self.scale(group, rows, columns);
        }
        for start in (0..pairs).step_by(LANES) {
            zip(self, start, pairs);
            let [re, im] = &mut self.columns;
            fourier::backward(&mut self.down, re, im);
            store(&self.columns, self.width, start, pairs, out);
        }
    }

    /// Filters one group of row frequencies along the columns.
    fn scale(&mut self, group: usize, rows: &[F], columns: &[F]) {
        let range = group * self.width..(group + 1) * self.width;
        let [re, im] = self.spectrum.each_mut().map(|part| &mut part[range.clone()]);
        let half = F::narrow(0.5 / (self.height * self.width) as f64);
        let (mut kept, mut opposite) = ([F::zero(); LANES], [F::zero(); LANES]);
        for (lane, k) in (group * LANES..self.height / 2 + 1).take(LANES).enumerate() {
            kept[lane] = half * rows[k];
            opposite[lane] = half * rows[(self.height - k) % self.height];
        }
        if kept.iter().chain(&opposite).all(|&kept| kept == F::zero()) {
            re.fill([F::zero(); LANES]);
            im.fill([F::zero(); LANES]);
            return;
        }
        fourier::forward(&mut self.across, re, im);
        amplify(self, group, &kept, &opposite, columns);
        let [re, im] = self.spectrum.each_mut().map(|part| &mut part[range.clone()]);
        fourier::backward(&mut self.across, re, im);
    }
}

/// Loads the columns `start..start + LANES` as real parts, and those `pairs` later as imaginary ones.
fn load<F: Pixel>(x: &[F], width: usize, start: usize, pairs: usize, columns: &mut [Scratch<Lanes<F>>; 2]) {
    for (part, columns) in columns.iter_mut().enumerate() {
        let (from, to) =
            (part * pairs + start, (part * pairs + start + LANES).min(if part == 0 { pairs } else { width }));
        for (x, column) in x.chunks_exact(width).zip(columns.iter_mut()) {
            let values = &x[from.min(to)..to];
            if let Ok(values) = values.try_into() {
                *column = values;
            } else {
                column[..values.len()].copy_from_slice(values);
                column[values.len()..].fill(F::zero());
            }
        }
    }
}

/// The inverse of [`load`].
fn store<F: Pixel>(columns: &[Scratch<Lanes<F>>; 2], width: usize, start: usize, pairs: usize, out: &mut [F]) {
    for (part, columns) in columns.iter().enumerate() {
        let (from, to) =
            (part * pairs + start, (part * pairs + start + LANES).min(if part == 0 { pairs } else { width }));
        for (out, column) in out.chunks_exact_mut(width).zip(columns.iter()) {
            let out = &mut out[from.min(to)..to];
            if let Ok(out) = <&mut Lanes<F>>::try_from(&mut *out) {
                *out = *column;
            } else {
                out.copy_from_slice(&column[..out.len()]);
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
        let (groups, width) = (filter.groups(), filter.width);
        let [re, im] = filter.spectrum.each_mut().map(|part| &mut part[group * width..(group + 1) * width]);
        for ((&l, re), im) in filter.across.frequencies.iter().zip(re).zip(im) {
            let at = l * groups + group;
            let (here, there) = (columns[l], columns[(width - l) % width]);
            let (factors, opposites) = (&filter.factors[at], &filter.opposites[at]);
            for lane in 0..LANES {
                let gain = here * kept[lane] * factors[lane] + there * opposite[lane] * opposites[lane];
                re[lane] *= gain;
                im[lane] *= gain;
            }
        }
    }
}

vectorised! {
    /// Takes the spectra of pairs of real columns apart, and turns rows into columns.
    fn unzip<F: Pixel>(filter: &mut Filter<F>, start: usize, pairs: usize) {
        let half = F::narrow(0.5);
        let (height, width) = (filter.height, filter.width);
        let [re, im] = &filter.columns;
        let [out_re, out_im] = &mut filter.spectrum;
        for group in 0..(height / 2 + 1).div_ceil(LANES) {
            // First and second column of each pair: real and imaginary parts, by row frequency and column.
            let mut tile = [[[F::zero(); LANES]; LANES]; 4];
            for (row, k) in (group * LANES..height / 2 + 1).take(LANES).enumerate() {
                let (at, opposite) = (filter.down.positions[k], filter.down.positions[(height - k) % height]);
                for lane in 0..LANES {
                    tile[0][row][lane] = half * (re[at][lane] + re[opposite][lane]);
                    tile[1][row][lane] = half * (im[at][lane] - im[opposite][lane]);
                    tile[2][row][lane] = half * (im[at][lane] + im[opposite][lane]);
                    tile[3][row][lane] = half * (re[opposite][lane] - re[at][lane]);
                }
            }
            for lane in 0..LANES.min(pairs - start) {
                for (part, column) in [start + lane, pairs + start + lane].into_iter().enumerate() {
                    if column < width {
                        let at = group * width + column;
                        for row in 0..LANES {
                            out_re[at][row] = tile[2 * part][row][lane];
                            out_im[at][row] = tile[2 * part + 1][row][lane];
                        }
                    }
                }
            }
        }
    }
}

vectorised! {
    /// The inverse of [`unzip`].
    fn zip<F: Pixel>(filter: &mut Filter<F>, start: usize, pairs: usize) {
        let (height, width) = (filter.height, filter.width);
        let [re, im] = &mut filter.columns;
        let [in_re, in_im] = &filter.spectrum;
        for group in 0..(height / 2 + 1).div_ceil(LANES) {
            let mut tile = [[[F::zero(); LANES]; LANES]; 4];
            for lane in 0..LANES.min(pairs - start) {
                for (part, column) in [start + lane, pairs + start + lane].into_iter().enumerate() {
                    if column < width {
                        let at = group * width + column;
                        for row in 0..LANES {
                            tile[2 * part][row][lane] = in_re[at][row];
                            tile[2 * part + 1][row][lane] = in_im[at][row];
                        }
                    }
                }
            }
            for (row, k) in (group * LANES..height / 2 + 1).take(LANES).enumerate() {
                let (at, opposite) = (filter.down.positions[k], filter.down.positions[(height - k) % height]);
                for lane in 0..LANES {
                    re[opposite][lane] = tile[0][row][lane] + tile[3][row][lane];
                    im[opposite][lane] = tile[2][row][lane] - tile[1][row][lane];
                }
                for lane in 0..LANES {
                    re[at][lane] = tile[0][row][lane] - tile[3][row][lane];
                    im[at][lane] = tile[2][row][lane] + tile[1][row][lane];
                }
            }
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
        let mut uniform = Scratch::of(0.0, shape.area());
        key.at(0).fill_uniform(&mut uniform);
        let (low, range) = (F::narrow(1.0 - self.spread), F::narrow(2.0 * self.spread));
        let mut field = Scratch::empty();
        field.extend(uniform.iter().map(|&u| low + range * F::drawn(u)));
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
}

kernel::defense!(Fft);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn values_are_numpys() {
        for case in golden::cases("fft") {
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
