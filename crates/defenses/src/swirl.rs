//! Swirl about a random centre.

use candle_core::{DType, Tensor};
use game::{Entry, Gradient, Key, vectorised};
use gpu::kernels::{Call, Parameters, Plain, Source};
use serde::{Deserialize, Serialize};

use crate::device::{Batch, Dims, Fill};
use crate::kernel::{self, Canvas, Kernel, Pixel, Shape};

const SOURCE: Source = crate::device::source!("swirl");

/// Turns every pixel about a centre, by an angle that falls off exponentially with the distance from it.
///
/// BaRT's swirl (Raff et al. 2019) as Gao et al. 2022 released it, with `skimage.transform.swirl`: an output pixel at
/// distance `d` from the centre is read from where a turn by `strength * exp(-5 d / (radius ln 2))` takes it, by bilinear
/// interpolation, with the image mirrored about its border pixels. Strength, radius and centre are drawn per image; the
/// paper's text starts the strength at .1, the code at .01. Lengths are in pixels whatever the image's size.
///
/// The exact derivative is the transpose of the interpolation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Swirl {
    /// The smallest strength, in radians.
    pub strength_min: f64,
    /// The largest strength, in radians.
    pub strength_max: f64,
    /// The smallest radius, in pixels; at least 1.
    pub radius_min: u64,
    /// The largest radius, in pixels.
    pub radius_max: u64,
    /// The smallest row or column of the centre, in pixels.
    pub center_min: u64,
    /// The largest row or column of the centre, in pixels.
    pub center_max: u64,
    /// How an attack differentiates it.
    pub gradient: Gradient,
}

impl Default for Swirl {
    fn default() -> Self {
        Self {
            strength_min: 0.01,
            strength_max: 2.0,
            radius_min: 10,
            radius_max: 200,
            center_min: 1,
            center_max: 200,
            gradient: Gradient::Identity,
        }
    }
}

impl Entry for Swirl {
    const ABOUT: &'static str = "swirl of random strength and radius about a random centre";

    fn check(&self) -> Result<(), String> {
        if self.radius_min == 0 {
            return Err("radius_min = 0 must be at least 1".into());
        }
        for (name, strength) in [("strength_min", self.strength_min), ("strength_max", self.strength_max)] {
            if strength.is_nan() || strength.abs() > 1e3 {
                return Err(format!("{name} = {strength} must be between -1000 and 1000 radians"));
            }
        }
        kernel::ordered(("strength_min", self.strength_min), ("strength_max", self.strength_max))?;
        kernel::ordered(("radius_min", self.radius_min), ("radius_max", self.radius_max))?;
        kernel::ordered(("center_min", self.center_min), ("center_max", self.center_max))
    }

    fn examples() -> Vec<Self> {
        vec![Self { center_max: 8, gradient: Gradient::Exact, ..Self::default() }, Self::default()]
    }
}

/// What is drawn for one image; as `Drawn` in swirl.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Drawn {
    strength: f64,
    radius: f64,
    /// Column and row.
    center: [f64; 2],
}
// SAFETY: four numbers of 8 bytes leave no gap.
unsafe impl Plain for Drawn {}

impl Swirl {
    fn drawn(&self, key: Key) -> Drawn {
        Drawn {
            strength: key.at(0).uniform(self.strength_min, self.strength_max),
            radius: kernel::integer(key.at(1), self.radius_min, self.radius_max) as f64,
            center: [2, 3].map(|i| kernel::integer(key.at(i), self.center_min, self.center_max) as f64),
        }
    }
}

/// Adding it rounds a number of magnitude below 2^51 to an integer, which stands in the lowest bits.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// `exp(-t)` for `t` of at least 0; absolute error below 1e-15.
#[inline(always)]
fn exp_minus(t: f64) -> f64 {
    let t = if t < 700.0 { t } else { 700.0 };
    let rounded = t * std::f64::consts::LOG2_E + ROUND;
    let halvings = rounded - ROUND;
    let r = halvings * std::f64::consts::LN_2 - t;
    let mut sum = 1.0;
    for k in [13.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
        sum = 1.0 + sum * r * (1.0 / k);
    }
    sum * f64::from_bits((1023u64.wrapping_sub(rounded.to_bits() & 0x7FF)) << 52)
}

/// Sine and cosine, to 1e-15 for angles of a few turns.
#[inline(always)]
fn sin_cos(angle: f64) -> (f64, f64) {
    let rounded = angle * std::f64::consts::FRAC_2_PI + ROUND;
    let quarters = rounded - ROUND;
    // A quarter turn in two parts, the first exact for thousands of turns.
    let r = angle - quarters * 1.570_796_326_734_125_6 - quarters * 6.077_100_506_506_192e-11;
    let z = r * r;
    let (mut sin, mut cos) = (1.0, 1.0);
    for k in [16.0, 14.0, 12.0, 10.0, 8.0, 6.0, 4.0, 2.0] {
        sin = 1.0 - sin * z * (1.0 / (k * (k + 1.0)));
        cos = 1.0 - cos * z * (1.0 / (k * (k - 1.0)));
    }
    let sin = sin * r;
    let quarter = rounded.to_bits() & 3;
    let (sin, cos) = if quarter & 1 == 0 { (sin, cos) } else { (cos, sin) };
    let flip = |x: f64, sign: u64| f64::from_bits(x.to_bits() ^ sign << 63);
    (flip(sin, quarter >> 1), flip(cos, (quarter ^ quarter >> 1) & 1))
}

/// The point of `0..=n - 1` that a mirrored axis shows at `at`.
#[inline(always)]
fn mirrored(at: f64, last: f64) -> f64 {
    let period = 2.0 * last;
    let at = at.abs();
    let at = if last > 0.0 { at - period * (at / period).floor() } else { 0.0 };
    if at > last { period - at } else { at }
}

/// Where the pixels of one row are read: the first of four neighbours, and how far beyond it, down and across.
struct Places<F> {
    /// The columns themselves.
    column: Vec<f64>,
    first: Vec<u32>,
    down: Vec<F>,
    across: Vec<F>,
}

impl<F: Pixel> Places<F> {
    fn new(n: usize) -> Self {
        Self {
            column: (0..n).map(|j| j as f64).collect(),
            first: vec![0; n],
            down: vec![F::zero(); n],
            across: vec![F::zero(); n],
        }
    }
}

vectorised! {
    fn locate<F: Pixel>(drawn: Drawn, row: f64, height: usize, places: &mut Places<F>) {
        let Drawn { strength, radius, center: [cx, cy] } = drawn;
        let width = places.first.len();
        let (bottom, right) = ((height - 1) as f64, (width - 1) as f64);
        // The last neighbours are inside, too: a point on the border is read at a whole step from the row before.
        let (last_row, last_column) = ((bottom - 1.0).max(0.0), (right - 1.0).max(0.0));
        let rate = 5.0 / (radius * std::f64::consts::LN_2);
        let dy = row - cy;
        let outputs = places.first.iter_mut().zip(&mut places.down).zip(&mut places.across);
        for (((first, down), across), &column) in outputs.zip(&places.column) {
            let dx = column - cx;
            let (sin, cos) = sin_cos(strength * exp_minus(rate * (dx * dx + dy * dy).sqrt()));
            let y = mirrored(cy + dx * sin + dy * cos, bottom);
            let x = mirrored(cx + dx * cos - dy * sin, right);
            let (top, left) = (y.floor(), x.floor());
            let top = if top < last_row { top } else { last_row };
            let left = if left < last_column { left } else { last_column };
            *first = (top * width as f64 + left + ROUND).to_bits() as u32;
            *down = F::narrow(y - top);
            *across = F::narrow(x - left);
        }
    }
}

/// Calls `each` with every row's places and the index of its first pixel.
fn rows<F: Pixel>(drawn: Drawn, shape: Shape, mut each: impl FnMut(usize, &Places<F>)) {
    let mut places = Places::new(shape.width);
    for i in 0..shape.height {
        locate(drawn, i as f64, shape.height, &mut places);
        each(i * shape.width, &places);
    }
}

/// The steps from the first neighbour to those right of it and below it.
fn steps(shape: Shape) -> (usize, usize) {
    (usize::from(shape.width > 1), if shape.height > 1 { shape.width } else { 0 })
}

vectorised! {
    /// Reads one row of one channel.
    fn read<F: Pixel>(x: &[F], right: usize, below: usize, places: &Places<F>, out: &mut [F]) {
        // One check for all: the farthest neighbour of every place is inside.
        let farthest = places.first.iter().fold(0, |far, &first| if first > far { first } else { far });
        assert!(farthest as usize + right + below < x.len());
        let inputs = places.first.iter().zip(&places.down).zip(&places.across);
        for (out, ((&first, &down), &across)) in out.iter_mut().zip(inputs) {
            // SAFETY: `first + right + below` is inside, as asserted.
            let at = |step: usize| unsafe { *x.get_unchecked(first as usize + step) };
            let (a, b, c, d) = (at(0), at(right), at(below), at(below + right));
            let (top, bottom) = (a + (b - a) * across, c + (d - c) * across);
            *out = top + (bottom - top) * down;
        }
    }
}

/// Swirls every channel.
fn swirl<F: Pixel>(drawn: Drawn, x: &[F], shape: Shape, out: &mut [F]) {
    let (right, below) = steps(shape);
    rows(drawn, shape, |start, places| {
        for (x, out) in x.chunks_exact(shape.area()).zip(out.chunks_exact_mut(shape.area())) {
            read(x, right, below, places, &mut out[start..start + shape.width]);
        }
    });
}

/// The transpose of [`swirl`].
fn transpose<F: Pixel>(drawn: Drawn, upstream: &[F], shape: Shape, out: &mut [F]) {
    let (right, below) = steps(shape);
    rows(drawn, shape, |start, places: &Places<F>| {
        for (upstream, out) in upstream.chunks_exact(shape.area()).zip(out.chunks_exact_mut(shape.area())) {
            for (j, &upstream) in upstream[start..start + shape.width].iter().enumerate() {
                let (first, down, across) = (places.first[j] as usize, places.down[j], places.across[j]);
                out[first] += (F::one() - down) * (F::one() - across) * upstream;
                out[first + right] += (F::one() - down) * across * upstream;
                out[first + below] += down * (F::one() - across) * upstream;
                out[first + below + right] += down * across * upstream;
            }
        }
    });
}

impl Kernel for Swirl {
    fn forward<F: Pixel>(&self, x: &[F], shape: Shape, key: Key, out: &mut Canvas<'_, F>) {
        let out = out.rest();
        swirl(self.drawn(key), x, shape, out);
    }

    fn backward<F: Pixel>(&self, _: &[F], shape: Shape, key: Key, upstream: &[F], out: &mut [F]) {
        transpose(self.drawn(key), upstream, shape, out);
    }

    fn launch(&self, batch: &Batch<'_>) -> candle_core::Result<Tensor> {
        let mut call = batch.call();
        let to = batch.images(&call, batch.shape)?;
        let stir = Stir { to: to.address, ..self.stir(&mut call, batch, batch.x)? };
        // SAFETY: something is drawn for each image, and the kernel reads no pixel outside one.
        unsafe { call.launch(&SOURCE, "swirl", batch.keys.len() * batch.shape.area(), &stir)? };
        Ok(to.tensor())
    }

    fn launch_back(&self, batch: &Batch<'_>, upstream: &Tensor) -> candle_core::Result<Tensor> {
        let (mut call, pixels) = (batch.call(), batch.keys.len() * batch.shape.area());
        let to = batch.images(&call, batch.shape)?;
        // A spot is four words.
        let (heads, spots) = (batch.words(&call, batch.shape.area())?, batch.words(&call, 4 * batch.shape.area())?);
        let stir = Stir {
            to: to.address,
            heads: heads.address,
            spots: spots.address,
            ..self.stir(&mut call, batch, upstream)?
        };
        let clear = Fill { to: heads.address, value: u32::MAX };
        // SAFETY: as above; chains begin at pixels of their image and lead to its spots.
        unsafe {
            call.launch(&SOURCE, "fill", pixels, &clear)?;
            call.launch(&SOURCE, "chain", pixels, &stir)?;
            call.launch(&SOURCE, "swirl_back", pixels, &stir)?;
        }
        Ok(to.tensor())
    }
}

/// As `Swirl` in swirl.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Stir {
    from: u64,
    to: u64,
    drawn: u64,
    heads: u64,
    spots: u64,
    shape: Dims,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Stir {}

impl Swirl {
    /// What every kernel is given.
    fn stir(&self, call: &mut Call, batch: &Batch<'_>, from: &Tensor) -> candle_core::Result<Stir> {
        Ok(Stir {
            from: call.read(from, DType::F32)?,
            to: 0,
            drawn: batch.upload(call, |key| self.drawn(key))?,
            heads: 0,
            spots: 0,
            shape: batch.shape.into(),
        })
    }
}

kernel::defense!(Swirl);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn values_are_scikit_images() {
        for case in golden::cases("swirl") {
            let [strength, radius, x, y] = case.params["swirl"][..] else { panic!("four numbers") };
            let mut out = vec![0.0; case.output.len()];
            swirl(Drawn { strength, radius, center: [x, y] }, &case.image, case.shape(), &mut out);
            golden::assert_close(&out, &case.output, 1e-9);
        }
    }

    #[test]
    fn elementary_functions_are_exact_to_a_few_bits() {
        for i in 0..20_000 {
            let t = f64::from(i) * 0.01;
            assert!((exp_minus(t) - (-t).exp()).abs() < 1e-15, "{t}");
            let ((sin, cos), angle) = (sin_cos(t - 100.0), t - 100.0);
            assert!((sin - angle.sin()).abs() < 1e-14 && (cos - angle.cos()).abs() < 1e-14, "{angle}");
        }
        assert!(exp_minus(1e9) < 1e-300);
    }

    #[test]
    fn mirrors_do_not_repeat_the_edge() {
        let at: Vec<f64> = [-2.5, -1.0, 0.0, 2.0, 2.25, 4.0, 5.0, -6.5].map(|at| mirrored(at, 2.0)).to_vec();
        assert_eq!(at, [1.5, 1.0, 0.0, 2.0, 1.75, 0.0, 1.0, 1.5]);
        assert_eq!(mirrored(3.0, 0.0), 0.0);
    }

    #[test]
    fn draws_fill_their_ranges() {
        let (swirl, n) = (Swirl::default(), 20_000);
        let draws: Vec<Drawn> = (0..n).map(|i| swirl.drawn(Key::root(8).at(i))).collect();
        let range = |of: &dyn Fn(&Drawn) -> f64| {
            draws.iter().map(of).fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)))
        };
        let (low, high) = range(&|drawn| drawn.strength);
        assert!((0.01..0.012).contains(&low) && (1.998..2.0).contains(&high), "{low} {high}");
        assert_eq!(range(&|drawn| drawn.radius), (10.0, 200.0));
        assert_eq!(range(&|drawn| drawn.center[0]), (1.0, 200.0));
        assert_eq!(range(&|drawn| drawn.center[1]), (1.0, 200.0));
    }
}
