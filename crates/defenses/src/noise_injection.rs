//! Noise of a random type.

use candle_core::{DType, Tensor};
use game::{Entry, Gradient, Key, vectorised};
use gpu::kernels::{Call, Output, Parameters, Plain, Source};
use serde::{Deserialize, Serialize};

use crate::device::{Batch, Fill};
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};
use crate::scratch::Scratch;

const SOURCE: Source = crate::device::source!("noise_injection");

/// A type of noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Noise {
    /// Adds normal noise.
    Gaussian,
    /// Replaces a pixel by a Poisson count of `v` times the pixel, divided by `v`.
    Poisson,
    /// Sets values hit to 1.
    Salt,
    /// Sets values hit to 0.
    Pepper,
    /// Sets values hit to 0 or 1, equally likely.
    SaltAndPepper,
    /// Adds normal noise times the pixel.
    Speckle,
}

/// What a Poisson count is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoissonScale {
    /// The number of distinct values of the image, rounded up to a power of two, as scikit-image does.
    ///
    /// At most 256 for an image of bytes, but above 100,000 for the same image under attack or after another
    /// transformation: there the noise all but vanishes, in the adversary's favour.
    #[default]
    DistinctValues,
    /// 256, whatever the image.
    Fixed,
}

/// Adds noise of a type drawn uniformly for each image, and clips to `[0, 1]`.
///
/// BaRT's noise injection (Raff et al. 2019) as Gao et al. 2022 released it: the parameters are those of
/// `skimage.util.random_noise`, the type alone is random, and every channel of every pixel is hit independently.
///
/// The exact derivative is that of the clipped sum for Gaussian and speckle noise, and 0 where salt or pepper falls. A
/// Poisson count has no derivative: that of its mean, the identity, stands in where the count is not clipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NoiseInjection {
    /// The types to draw from.
    pub types: Vec<Noise>,
    /// Standard deviation of Gaussian and speckle noise, in pixel units of `[0, 1]`; at least 0, at most 2.
    #[serde(deserialize_with = "game::number")]
    pub std: f64,
    /// Probability that salt or pepper hits one channel of one pixel, in `[0, 1]`.
    pub amount: f64,
    /// What a Poisson count is divided by.
    pub poisson_scale: PoissonScale,
    /// How an attack differentiates it.
    pub gradient: Gradient,
}

impl Default for NoiseInjection {
    fn default() -> Self {
        use Noise::{Gaussian, Pepper, Poisson, Salt, SaltAndPepper, Speckle};
        Self {
            types: vec![Gaussian, Poisson, Salt, Pepper, SaltAndPepper, Speckle],
            std: 0.1,
            amount: 0.05,
            poisson_scale: PoissonScale::DistinctValues,
            gradient: Gradient::Identity,
        }
    }
}

impl Entry for NoiseInjection {
    const ABOUT: &'static str = "noise of a random type: Gaussian, Poisson, salt, pepper, both, speckle";

    fn check(&self) -> Result<(), String> {
        if self.types.is_empty() {
            return Err("types = [] draws from nothing".into());
        }
        kernel::deviation("std", self.std)?;
        if (0.0..=1.0).contains(&self.amount) {
            Ok(())
        } else {
            Err(format!("amount = {} must be a probability in [0, 1]", self.amount))
        }
    }

    fn examples() -> Vec<Self> {
        use Noise::{Gaussian, Pepper, Poisson, Salt, SaltAndPepper, Speckle};
        let exact = Self { gradient: Gradient::Exact, ..Self::default() };
        vec![
            Self { types: vec![Gaussian, Speckle, Salt, Pepper, SaltAndPepper], ..exact.clone() },
            Self { types: vec![Poisson], ..Self::default() },
            Self { types: vec![Poisson], poisson_scale: PoissonScale::Fixed, ..exact },
            Self { amount: 0.3, ..Self::default() },
        ]
    }
}

impl NoiseInjection {
    /// The type drawn by `key`.
    fn drawn(&self, key: Key) -> Noise {
        self.types[key.at(0).below(self.types.len() as u64) as usize]
    }

    /// What a Poisson count of `x` is divided by.
    fn scale<F: Pixel>(&self, x: &[F]) -> f64 {
        match self.poisson_scale {
            PoissonScale::DistinctValues => distinct(x).max(1).next_power_of_two() as f64,
            PoissonScale::Fixed => 256.0,
        }
    }

    /// How values are hit: one whose uniform number is below the first is salted, one between it and the second peppered.
    fn below(&self, noise: Noise) -> [f32; 2] {
        let salted = match noise {
            Noise::Salt => self.amount,
            Noise::Pepper => 0.0,
            _ => self.amount / 2.0,
        };
        [salted as f32, self.amount as f32]
    }

    /// Calls `each` with every chunk and how it is [hit](Self::below).
    fn impulses(
        &self,
        noise: Noise,
        key: Key,
        len: usize,
        mut each: impl FnMut(std::ops::Range<usize>, &[f32], [f32; 2]),
    ) {
        let below = self.below(noise);
        kernel::uniforms(key, len, |i, u| each(i, u, below));
    }
}

vectorised! {
    /// Adds normal noise: `offset + slope * x` times `z`.
    fn add<F: Pixel>(x: &[F], z: &[f32], offset: F, slope: F, out: &mut [F]) {
        for ((out, &x), &z) in out.iter_mut().zip(x).zip(z) {
            *out = (x + (offset + slope * x) * F::drawn(z)).clipped();
        }
    }
}

vectorised! {
    /// The derivative of [`add`].
    fn add_back<F: Pixel>(x: &[F], z: &[f32], offset: F, slope: F, upstream: &[F], out: &mut [F]) {
        for (((out, &x), &z), &upstream) in out.iter_mut().zip(x).zip(z).zip(upstream) {
            let z = F::drawn(z);
            let inside = (x + (offset + slope * x) * z).is_inside();
            *out = if inside { upstream * (F::one() + slope * z) } else { F::zero() };
        }
    }
}

vectorised! {
    fn hit<F: Pixel>(x: &[F], u: &[f32], below: [f32; 2], out: &mut [F]) {
        for ((out, &x), &u) in out.iter_mut().zip(x).zip(u) {
            let hit = if u < below[0] { F::one() } else { F::zero() };
            *out = if u < below[1] { hit } else { x.clipped() };
        }
    }
}

vectorised! {
    /// The derivative of [`hit`].
    fn hit_back<F: Pixel>(x: &[F], u: &[f32], below: [f32; 2], upstream: &[F], out: &mut [F]) {
        for (((out, &x), &u), &upstream) in out.iter_mut().zip(x).zip(u).zip(upstream) {
            *out = if u < below[1] || !x.is_inside() { F::zero() } else { upstream };
        }
    }
}

/// The number of distinct values (-0 and 0 are one).
fn distinct<F: Pixel>(x: &[F]) -> usize {
    // Open addressing over ordered bits; no finite number has the bits 0.
    let mut table = Scratch::of(0u64, 1024);
    let mut count = 0;
    let place = |table: &[u64], bits: u64| {
        let shift = 64 - table.len().trailing_zeros();
        let mut slot = (bits.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> shift) as usize;
        while table[slot] != 0 && table[slot] != bits {
            slot = (slot + 1) & (table.len() - 1);
        }
        slot
    };
    for &x in x {
        let bits = (x + F::zero()).ordered();
        let slot = place(&table, bits);
        if table[slot] == 0 {
            table[slot] = bits;
            count += 1;
            if 2 * count > table.len() {
                let mut larger = Scratch::of(0, 4 * table.len());
                for &bits in table.iter().filter(|&&bits| bits != 0) {
                    let slot = place(&larger, bits);
                    larger[slot] = bits;
                }
                table = larger;
            }
        }
    }
    count
}

/// Uniform numbers in `(0, 1)`, one after another.
struct Stream {
    key: Key,
    block: u64,
    buffer: [f32; 64],
    next: usize,
}

impl Stream {
    const fn new(key: Key) -> Self {
        Self { key, block: 0, buffer: [0.0; 64], next: 64 }
    }

    fn next(&mut self) -> f64 {
        if self.next == self.buffer.len() {
            self.key.fill_uniform_from(self.block, &mut self.buffer);
            self.block += self.buffer.len() as u64 / 4;
            self.next = 0;
        }
        self.next += 1;
        centred(self.buffer[self.next - 1])
    }
}

/// The middle of the 2^-24 that a drawn number stands for: never 0.
#[inline(always)]
fn centred(u: f32) -> f64 {
    f64::from(u) + 1.0 / (1 << 25) as f64
}

/// Rates from which counts are drawn by rejection.
const LARGE: f64 = 10.0;

/// The proposal of Hörmann's transformed rejection at a rate: `W. Hörmann, "The transformed rejection method for
/// generating Poisson random variables", 1993`, algorithm PTRS, which numpy uses.
struct Proposal {
    rate: f64,
    a: f64,
    b: f64,
}

impl Proposal {
    #[inline(always)]
    fn new(rate: f64) -> Self {
        let b = 0.931 + 2.53 * rate.sqrt();
        Self { rate, a: -0.059 + 0.02483 * b, b }
    }

    /// The count proposed by `u`, and how near `u` is to an end of `(0, 1)`.
    #[inline(always)]
    fn count(&self, u: f64) -> (f64, f64) {
        let u = u - 0.5;
        let us = 0.5 - u.abs();
        (((2.0 * self.a / us + self.b) * u + self.rate + 0.43).floor(), us)
    }

    /// Whether `v` accepts at once.
    #[inline(always)]
    fn accepts_at_once(&self, us: f64, v: f64) -> bool {
        us >= 0.07 && v <= 0.9277 - 3.6224 / (self.b - 2.0)
    }

    /// Whether `v` accepts `count`.
    fn accepts(&self, count: f64, us: f64, v: f64) -> bool {
        if self.accepts_at_once(us, v) {
            return true;
        }
        if count < 0.0 || us < 0.013 && v > us {
            return false;
        }
        let inverse_alpha = 1.1239 + 1.1328 / (self.b - 3.4);
        let hat = v.ln() + inverse_alpha.ln() - (self.a / (us * us) + self.b).ln();
        hat <= count * self.rate.ln() - self.rate - ln_factorial(count)
    }
}

/// The logarithm of `n!` for a whole `n` of at least 0 (Stirling's series; error below 1e-10).
fn ln_factorial(n: f64) -> f64 {
    if n < 10.0 {
        return (1..=n as u32).map(f64::from).product::<f64>().ln();
    }
    let series = (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * n * n)) / (n * n)) / n;
    (n + 0.5) * n.ln() - n + 0.5 * std::f64::consts::TAU.ln() + series
}

vectorised! {
    /// Poisson counts of large rates that the first proposal settles; -1 elsewhere.
    fn settle<F: Pixel>(x: &[F], u: &[f32], v: &[f32], scale: f64, counts: &mut [f64]) {
        for (((count, &x), &u), &v) in counts.iter_mut().zip(x).zip(u).zip(v) {
            let rate = x.widen() * scale;
            let proposal = Proposal::new(if rate > 0.0 { rate } else { 0.0 });
            let (proposed, us) = proposal.count(centred(u));
            let settled = rate >= LARGE && proposal.accepts_at_once(us, centred(v));
            *count = if settled { proposed } else { -1.0 };
        }
    }
}

/// A Poisson count by inversion: for small rates.
fn invert(rate: f64, u: f64) -> f64 {
    let (mut count, mut mass) = (0.0, (-rate).exp());
    let mut sum = mass;
    while u > sum && count < 100.0 {
        count += 1.0;
        mass *= rate / count;
        sum += mass;
    }
    count
}

/// Poisson counts of `scale * x`, divided by `scale`; negative pixels count as 0.
fn poisson<F: Pixel>(x: &[F], scale: f64, key: Key, mut each: impl FnMut(usize, f64)) {
    let (first, second, mut rest) = (key.at(0), key.at(1), Stream::new(key.at(2)));
    let (mut v, mut counts) = (vec![0.0; x.len().min(1 << 12)], vec![0.0; x.len().min(1 << 12)]);
    kernel::uniforms(first, x.len(), |range, u| {
        let (v, counts) = (&mut v[..u.len()], &mut counts[..u.len()]);
        second.fill_uniform_from(range.start as u64 / 4, v);
        settle(&x[range.clone()], u, v, scale, counts);
        for (k, i) in range.enumerate() {
            let rate = (x[i].widen() * scale).max(0.0);
            if counts[k] < 0.0 && rate < LARGE {
                // 48 bits: small probabilities are not rounded away.
                let u = f64::from(u[k]) + centred(v[k]) / (1 << 24) as f64;
                counts[k] = invert(rate, u);
            } else if counts[k] < 0.0 {
                let proposal = Proposal::new(rate);
                let (mut u, mut v) = (centred(u[k]), centred(v[k]));
                counts[k] = loop {
                    let (count, us) = proposal.count(u);
                    if proposal.accepts(count, us, v) {
                        break count;
                    }
                    (u, v) = (rest.next(), rest.next());
                };
            }
            each(i, counts[k] / scale);
        }
    });
}

impl Kernel for NoiseInjection {
    fn forward<F: Pixel>(&self, x: &[F], _: Shape, key: Key, out: &mut Canvas<'_, F>) {
        let (noise, key, std) = (self.drawn(key), key.at(1), F::narrow(self.std));
        match noise {
            Noise::Gaussian | Noise::Speckle => {
                let (offset, slope) = if noise == Noise::Gaussian { (std, F::zero()) } else { (F::zero(), std) };
                kernel::normals(key, x.len(), |i, z| add(&x[i], z, offset, slope, out.next(z.len())));
            }
            Noise::Salt | Noise::Pepper | Noise::SaltAndPepper => {
                self.impulses(noise, key, x.len(), |i, u, below| hit(&x[i], u, below, out.next(u.len())));
            }
            Noise::Poisson => {
                let out = out.rest();
                poisson(x, self.scale(x), key, |i, value| out[i] = F::narrow(value).clipped());
            }
        }
    }

    fn backward<F: Pixel>(&self, x: &[F], _: Shape, key: Key, upstream: &[F], out: &mut [F]) {
        let (noise, key, std) = (self.drawn(key), key.at(1), F::narrow(self.std));
        match noise {
            Noise::Gaussian | Noise::Speckle => {
                let (offset, slope) = if noise == Noise::Gaussian { (std, F::zero()) } else { (F::zero(), std) };
                kernel::normals(key, x.len(), |i, z| {
                    add_back(&x[i.clone()], z, offset, slope, &upstream[i.clone()], &mut out[i]);
                });
            }
            Noise::Salt | Noise::Pepper | Noise::SaltAndPepper => {
                self.impulses(noise, key, x.len(), |i, u, below| {
                    hit_back(&x[i.clone()], u, below, &upstream[i.clone()], &mut out[i]);
                });
            }
            Noise::Poisson => poisson(x, self.scale(x), key, |i, value| {
                if value <= 1.0 {
                    out[i] = upstream[i];
                }
            }),
        }
    }

    fn launch(&self, batch: &Batch<'_>) -> candle_core::Result<Tensor> {
        self.inject(batch, None)
    }

    fn launch_back(&self, batch: &Batch<'_>, upstream: &Tensor) -> candle_core::Result<Tensor> {
        self.inject(batch, Some(upstream))
    }
}

/// What one image meets; as `Hit` in noise_injection.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Hit {
    words: [u32; 4],
    kind: u32,
    numbers: [f32; 2],
}
// SAFETY: numbers of 4 bytes leave no gap.
unsafe impl Plain for Hit {}

/// As `Injection` in noise_injection.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Injection {
    x: u64,
    upstream: u64,
    to: u64,
    hits: u64,
    len: u64,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Injection {}

/// Keys of an image that draws Poisson counts, and its number; as `Streams` in noise_injection.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Streams {
    keys: [[u32; 4]; 3],
    image: u32,
}
// SAFETY: numbers of 4 bytes leave no gap.
unsafe impl Plain for Streams {}

/// As `Poisson` in noise_injection.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Counting {
    x: u64,
    upstream: u64,
    to: u64,
    streams: u64,
    counts: u64,
    open: u64,
    len: u64,
    stride: u64,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Counting {}

/// As `Distinct` in noise_injection.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Distinct {
    x: u64,
    tables: u64,
    counts: u64,
    images: u64,
    len: u64,
    slots: u32,
    threads: u32,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Distinct {}

/// How many words the tables of distinct values have together (64 MiB), unless one image needs more: images are counted in
/// groups, several of them in tests.
const TABLES: usize = if cfg!(test) { 1 << 14 } else { 1 << 24 };
/// Threads that count one table.
const COUNTERS: usize = 256;

impl NoiseInjection {
    /// What an image meets, but for Poisson counts.
    fn hit(&self, key: Key) -> Hit {
        let (noise, std) = (self.drawn(key), self.std as f32);
        let (kind, numbers) = match noise {
            Noise::Gaussian => (0, [std, 0.0]),
            Noise::Speckle => (0, [0.0, std]),
            Noise::Salt | Noise::Pepper | Noise::SaltAndPepper => (1, self.below(noise)),
            Noise::Poisson => (2, [0.0; 2]),
        };
        Hit { words: key.at(1).words(), kind, numbers }
    }

    /// Images, or gradients carried back, on their device.
    fn inject(&self, batch: &Batch<'_>, upstream: Option<&Tensor>) -> candle_core::Result<Tensor> {
        let (mut call, len) = (batch.call(), batch.shape.len());
        let to = batch.images(&call, batch.shape)?;
        let injection = Injection {
            x: call.read(batch.x, DType::F32)?,
            upstream: upstream.map_or(Ok(0), |upstream| call.read(upstream, DType::F32))?,
            to: to.address,
            hits: batch.upload(&mut call, |key| self.hit(key))?,
            len: len as u64,
        };
        let kernel = if upstream.is_none() { "inject" } else { "inject_back" };
        // SAFETY: there is a hit for each image, and everything has the images' shape.
        unsafe { call.launch(&SOURCE, kernel, batch.keys.len() * len.div_ceil(4), &injection)? };
        let counts = |(image, &key): (usize, &Key)| {
            let keys = [0, 1, 2].map(|i| key.at(1).at(i).words());
            (self.drawn(key) == Noise::Poisson).then_some(Streams { keys, image: image as u32 })
        };
        let streams: Vec<Streams> = batch.keys.iter().enumerate().filter_map(counts).collect();
        self.count(&mut call, &injection, &streams)?;
        Ok(to.tensor())
    }

    /// Makes the images that draw Poisson counts.
    fn count(&self, call: &mut Call, injection: &Injection, streams: &[Streams]) -> candle_core::Result<()> {
        // Whole groups of eight blocks.
        let stride = (injection.len as usize).div_ceil(32) * 8;
        let open = call.output(streams.len() * stride, DType::U8)?;
        let distinct = match self.poisson_scale {
            PoissonScale::DistinctValues => Some(count_distinct(call, injection, streams)?),
            PoissonScale::Fixed => None,
        };
        let counting = Counting {
            x: injection.x,
            upstream: injection.upstream,
            to: injection.to,
            streams: call.upload(streams)?,
            counts: distinct.as_ref().map_or(0, |counts| counts.address),
            open: open.address,
            len: injection.len,
            stride: stride as u64,
        };
        // SAFETY: `open` has a byte for each block of each of these images.
        unsafe {
            call.launch(&SOURCE, "settle", streams.len() * stride, &counting)?;
            call.launch(&SOURCE, "reject", streams.len(), &counting)
        }
    }
}

/// The number of distinct values of each of these images, on the device: [`distinct`].
fn count_distinct(call: &mut Call, injection: &Injection, streams: &[Streams]) -> candle_core::Result<Output> {
    let len = injection.len as usize;
    let slots = (2 * len).next_power_of_two();
    let group = (TABLES / slots).clamp(1, streams.len().max(1));
    let tables = call.output(group * slots, DType::U32)?;
    let counts = call.output(streams.len(), DType::U32)?;
    let images: Vec<u32> = streams.iter().map(|streams| streams.image).collect();
    let images = call.upload(&images)?;
    let empty = Fill { to: counts.address, value: 0 };
    // SAFETY: there is a word for each image.
    unsafe { call.launch(&SOURCE, "fill", streams.len(), &empty)? };
    for start in (0..streams.len()).step_by(group) {
        let n = group.min(streams.len() - start);
        let distinct = Distinct {
            x: injection.x,
            tables: tables.address,
            counts: counts.address + 4 * start as u64,
            images: images + 4 * start as u64,
            len: injection.len,
            slots: slots as u32,
            threads: COUNTERS as u32,
        };
        let empty = Fill { to: tables.address, value: 0 };
        // SAFETY: there is a table for each image of the group, with more slots than the image has values.
        unsafe {
            call.launch(&SOURCE, "fill", n * slots, &empty)?;
            call.launch(&SOURCE, "enter", n * len, &distinct)?;
            call.launch(&SOURCE, "count", n * COUNTERS, &distinct)?;
        }
    }
    Ok(counts)
}

kernel::defense!(NoiseInjection);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    const SHAPE: Shape = Shape { channels: 3, height: 40, width: 50 };

    /// The output of one type on pixels that are all `level`.
    fn noisy(noise: Noise, level: f64, key: u64) -> Vec<f64> {
        let injection =
            NoiseInjection { types: vec![noise], poisson_scale: PoissonScale::Fixed, ..NoiseInjection::default() };
        kernel::output(&injection, &vec![level; SHAPE.len()], SHAPE, Key::root(key))
    }

    fn share(out: &[f64], of: impl Fn(f64) -> bool) -> f64 {
        out.iter().filter(|&&value| of(value)).count() as f64 / out.len() as f64
    }

    /// Asserts a share `p` of `n` trials to within five standard errors.
    fn assert_share(share: f64, p: f64, n: usize) {
        assert!((share - p).abs() <= 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "{share} is not {p}");
    }

    #[test]
    fn every_type_occurs_equally_often() {
        let (injection, n) = (NoiseInjection::default(), 12_000);
        for noise in &injection.types {
            let drawn = (0..n).filter(|&i| injection.drawn(Key::root(3).at(i)) == *noise).count();
            assert_share(drawn as f64 / n as f64, 1.0 / 6.0, n as usize);
        }
    }

    #[test]
    fn salt_and_pepper_hit_their_shares_of_single_values() {
        let n = SHAPE.len();
        for (noise, salt, pepper) in
            [(Noise::Salt, 0.05, 0.0), (Noise::Pepper, 0.0, 0.05), (Noise::SaltAndPepper, 0.025, 0.025)]
        {
            let out = noisy(noise, 0.5, 8);
            assert_share(share(&out, |value| value == 1.0), salt, n);
            assert_share(share(&out, |value| value == 0.0), pepper, n);
            assert_share(share(&out, |value| value == 0.5), 0.95, n);
            // A pixel's channels are hit independently: whole pixels almost never.
            let whole = (0..SHAPE.area()).filter(|&i| (0..3).all(|c| out[c * SHAPE.area() + i] != 0.5)).count();
            assert!(whole < 8, "{noise:?} hits {whole} whole pixels");
        }
    }

    #[test]
    fn additive_noise_has_its_spread() {
        let spread = |noise, level| {
            let out = noisy(noise, level, 4);
            (out.iter().map(|value| (value - level) * (value - level)).sum::<f64>() / out.len() as f64).sqrt()
        };
        for (noise, level, std) in
            [(Noise::Gaussian, 0.5, 0.1), (Noise::Speckle, 0.5, 0.05), (Noise::Speckle, 0.2, 0.02)]
        {
            assert!((spread(noise, level) / std - 1.0).abs() < 0.03, "{noise:?} {}", spread(noise, level));
        }
        for noise in [Noise::Gaussian, Noise::Speckle] {
            assert!(noisy(noise, 0.95, 2).iter().all(|value| (0.0..=1.0).contains(value)));
        }
    }

    #[test]
    fn counts_follow_the_poisson_law() {
        // Rates by inversion, at the border, and by rejection; a chi-squared test against the exact masses.
        for rate in [0.3f64, 4.0, 9.99, 10.0, 25.0, 140.0] {
            let n = 200_000;
            let mut counts = vec![0u32; 400];
            poisson(&vec![rate / 256.0; n], 256.0, Key::root(6), |_, value| counts[(value * 256.0) as usize] += 1);
            let (mut chi2, mut freedom, mut mass, mut expected, mut found) = (0.0, 0.0, (-rate).exp(), 0.0, 0.0);
            for (k, &count) in counts.iter().enumerate() {
                expected += mass * n as f64;
                found += f64::from(count);
                if expected >= 10.0 {
                    chi2 += (found - expected) * (found - expected) / expected;
                    freedom += 1.0;
                    (expected, found) = (0.0, 0.0);
                }
                mass *= rate / (k as f64 + 1.0);
            }
            // Mean and standard deviation of chi-squared: 5 of the latter.
            assert!(chi2 < freedom + 5.0 * (2.0f64 * freedom).sqrt() + 5.0, "rate {rate}: {chi2} with {freedom}");
        }
    }

    #[test]
    fn large_rates_have_poisson_moments() {
        let (n, rate) = (100_000, 0.7 * 262_144.0);
        let mut values = vec![];
        poisson(&vec![0.7; n], 262_144.0, Key::root(2), |_, value| values.push(value * 262_144.0 - rate));
        let mean = values.iter().sum::<f64>() / n as f64;
        let square = values.iter().map(|value| value * value).sum::<f64>() / n as f64;
        assert!(mean.abs() < 5.0 * (rate / n as f64).sqrt(), "{mean}");
        assert!((square / rate - 1.0).abs() < 5.0 * (2.0 / n as f64).sqrt(), "{square}");
    }

    #[test]
    fn counts_are_divided_by_what_scikit_image_divides_them_by() {
        let injection = NoiseInjection::default();
        for case in golden::cases("poisson-noise") {
            assert_eq!(injection.scale(&case.image), case.params["scale"][0]);
        }
    }

    #[test]
    fn distinct_values_are_counted_and_zeros_are_one() {
        assert_eq!(distinct(&[0.0, -0.0, 1.0, 0.5, 0.5, -2.0]), 4);
        let many: Vec<f32> = (0..150_000).map(|i| ((i * 7919) % 70_001) as f32 / 70_001.0).collect();
        assert_eq!(distinct(&many), 70_001);
        assert_eq!(distinct::<f32>(&[]), 0);
    }

    #[test]
    fn poisson_noise_fades_on_images_of_many_values() {
        // The trap: 256 levels make visible noise, the same image with every value distinct almost none.
        let spread = |scale, jitter: f64| {
            let injection = NoiseInjection { types: vec![Noise::Poisson], poisson_scale: scale, ..Default::default() };
            let x: Vec<f64> = (0..SHAPE.len()).map(|i| (i % 200) as f64 / 255.0 + jitter * i as f64).collect();
            let out = kernel::output(&injection, &x, SHAPE, Key::root(1));
            let square: f64 = x.iter().zip(&out).map(|(x, out)| (x - out) * (x - out)).sum();
            (square / x.len() as f64).sqrt()
        };
        let (bytes, attacked) = (spread(PoissonScale::DistinctValues, 0.0), spread(PoissonScale::DistinctValues, 1e-9));
        assert!(bytes > 0.03 && attacked < 0.2 * bytes, "{bytes} {attacked}");
        let fixed = [0.0, 1e-9].map(|jitter| spread(PoissonScale::Fixed, jitter));
        assert!((fixed[0] - bytes).abs() < 1e-12 && (fixed[1] / bytes - 1.0).abs() < 0.05, "{fixed:?}");
    }
}
