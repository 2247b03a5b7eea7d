//! Networks and defenses small enough to check by hand; every row is computed alone, in the order written.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use game::{Classifier, Defense, Gradient, Key};

/// Pixels of an image `(3, 2, 2)`.
const SIZE: usize = 12;
const HIDDEN: usize = 16;

/// Images `(n, 3, 2, 2)`, f32 in `[0, 1]`.
pub fn images(n: usize) -> Tensor {
    let mut pixels = vec![0.0f32; n * SIZE];
    Key::root(77).fill_uniform(&mut pixels);
    Tensor::from_vec(pixels, (n, 3, 2, 2), &Device::Cpu).unwrap()
}

/// The elements in f64, row-major.
pub fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The elements in f64, image by image.
pub fn rows(x: &Tensor) -> Vec<Vec<f64>> {
    x.to_dtype(DType::F64).unwrap().flatten_from(1).unwrap().to_vec2().unwrap()
}

/// Maps every row of a tensor in its own precision; `f` gets the row's number and the row.
fn map(x: &Tensor, dims: &[usize], f: impl Fn(usize, &[f64]) -> Vec<f64>) -> Result<Tensor> {
    let out: Vec<f64> = rows(x).iter().enumerate().flat_map(|(i, row)| f(i, row)).collect();
    Tensor::from_vec(out, dims, &Device::Cpu)?.to_dtype(x.dtype())
}

/// A linear network, or one with a hidden layer of hyperbolic tangents; its arithmetic has its input's precision.
#[derive(Clone, Debug)]
pub struct Net {
    first: Option<Vec<f64>>,
    second: Vec<f64>,
    classes: usize,
    device: Device,
    scale: f64,
    noise: f64,
}

fn weights(seed: u64, n: usize) -> Vec<f64> {
    let mut weights = vec![0.0f32; n];
    Key::root(seed).fill_normal(&mut weights);
    weights.into_iter().map(f64::from).collect()
}

impl Net {
    pub fn linear(seed: u64, classes: usize) -> Self {
        let second = weights(seed, classes * SIZE);
        Self { first: None, second, classes, device: Device::Cpu, scale: 1.0, noise: 0.0 }
    }

    pub fn curved(seed: u64, classes: usize) -> Self {
        let first = weights(seed, HIDDEN * SIZE).into_iter().map(|w| w * 0.5).collect();
        let second = weights(seed + 1000, classes * HIDDEN).into_iter().map(|w| w * 0.5).collect();
        Self { first: Some(first), second, ..Self::linear(seed, classes) }
    }

    /// A network with these weights, row by row: of the hidden layer, if there is one, and of the last.
    pub fn of(first: Option<Vec<f64>>, second: Vec<f64>) -> Self {
        let classes = second.len() / if first.is_some() { HIDDEN } else { SIZE };
        Self { first, second, ..Self::linear(0, classes) }
    }

    /// The network with its logits multiplied.
    pub fn stretched(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// The network with normal noise of this size on its logits, drawn from its own keys.
    pub fn noisy(self, noise: f64) -> Self {
        Self { noise, ..self }
    }

    /// A linear network's weight from pixel `pixel` to class `class`.
    pub fn weight(&self, class: usize, pixel: usize) -> f64 {
        self.second[class * SIZE + pixel]
    }

    fn hidden<F: WithDType>(&self, x: &[F]) -> Vec<F> {
        match &self.first {
            None => x.to_vec(),
            Some(first) => {
                let tanh = |z: F| F::from_f64(z.to_f64().tanh());
                first.chunks(SIZE).map(|row| tanh(dot(row, x))).collect()
            }
        }
    }

    fn row<F: WithDType>(&self, x: &[F]) -> Vec<F> {
        let hidden = self.hidden(x);
        self.second.chunks(hidden.len()).map(|row| dot(row, &hidden) * F::from_f64(self.scale)).collect()
    }

    /// The product of `upstream` with the Jacobian of the logits.
    pub fn row_gradient<F: WithDType>(&self, x: &[F], upstream: &[F]) -> Vec<F> {
        let hidden = self.hidden(x);
        let upstream: Vec<F> = upstream.iter().map(|&u| u * F::from_f64(self.scale)).collect();
        let above = transposed(&self.second, hidden.len(), &upstream);
        match &self.first {
            None => above,
            Some(first) => {
                let slopes = above.iter().zip(&hidden).map(|(&u, &h)| u * (F::one() - h * h));
                transposed(first, SIZE, &slopes.collect::<Vec<F>>())
            }
        }
    }

    /// The probabilities less one at `class`, as a textbook computes them.
    pub fn textbook<F: WithDType>(&self, x: &[F], class: usize) -> Vec<F> {
        let logits = self.row(x);
        let top = logits.iter().copied().fold(logits[0], |a, b| if b > a { b } else { a });
        let odds: Vec<F> = logits.iter().map(|&z| F::from_f64((z - top).to_f64().exp())).collect();
        let sum = odds.iter().fold(F::zero(), |sum, &odds| sum + odds);
        let label = |j| if j == class { F::one() } else { F::zero() };
        odds.iter().enumerate().map(|(j, &odds)| odds / sum - label(j)).collect()
    }

    /// The gradient of cross-entropy by the textbook, all in one precision.
    pub fn textbook_gradient<F: WithDType>(&self, x: &[F], class: usize) -> Vec<F> {
        self.row_gradient(x, &self.textbook(x, class))
    }
}

fn dot<F: WithDType>(weights: &[f64], x: &[F]) -> F {
    weights.iter().zip(x).fold(F::zero(), |sum, (&w, &x)| sum + F::from_f64(w) * x)
}

fn transposed<F: WithDType>(weights: &[f64], columns: usize, upstream: &[F]) -> Vec<F> {
    let mut out = vec![F::zero(); columns];
    for (row, &u) in weights.chunks(columns).zip(upstream) {
        out.iter_mut().zip(row).for_each(|(out, &w)| *out += F::from_f64(w) * u);
    }
    out
}

fn single(row: &[f64]) -> Vec<f32> {
    row.iter().map(|&x| x as f32).collect()
}

fn double(row: Vec<f32>) -> Vec<f64> {
    row.into_iter().map(f64::from).collect()
}

impl Classifier for Net {
    fn classes(&self) -> usize {
        self.classes
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        map(x, &[x.dim(0)?, self.classes], |i, row| {
            let clean = if x.dtype() == DType::F64 { self.row(row) } else { double(self.row(&single(row))) };
            let mut noise = vec![0.0; self.classes];
            keys[i].fill_normal(&mut noise);
            clean.iter().zip(noise).map(|(z, noise)| z + self.noise * f64::from(noise)).collect()
        })
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let upstream = rows(&upstream(&self.logits(x, keys)?)?);
        map(x, x.dims(), |i, row| match x.dtype() {
            DType::F64 => self.row_gradient(row, &upstream[i]),
            _ => double(self.row_gradient(&single(row), &single(&upstream[i]))),
        })
    }
}

/// No defense.
#[derive(Debug)]
pub struct Open;

impl Defense for Open {
    fn apply(&self, x: &Tensor, _: &[Key]) -> Result<Tensor> {
        Ok(x.clone())
    }

    fn gradient(&self) -> Gradient {
        Gradient::Identity
    }
}

/// Random brightness in `[0.5, 1.5)` and random noise.
#[derive(Debug)]
pub struct Jitter {
    pub noise: f64,
    pub gradient: Gradient,
}

impl Defense for Jitter {
    fn apply(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        map(x, x.dims(), |i, row| {
            let mut noise = vec![0.0; row.len()];
            keys[i].at(1).fill_normal(&mut noise);
            let brightness = keys[i].at(0).uniform(0.5, 1.5);
            row.iter().zip(noise).map(|(x, noise)| brightness * x + self.noise * f64::from(noise)).collect()
        })
    }

    fn gradient(&self) -> Gradient {
        self.gradient
    }

    fn exact_pullback(&self, _: &Tensor, keys: &[Key], upstream: &Tensor) -> Result<Tensor> {
        map(upstream, upstream.dims(), |i, row| row.iter().map(|u| keys[i].at(0).uniform(0.5, 1.5) * u).collect())
    }
}

/// A network some of whose gradient entries are not numbers.
#[derive(Debug)]
pub struct Poisoned<'a> {
    pub net: &'a Net,
    pub entries: Vec<(usize, f32)>,
}

impl Classifier for Poisoned<'_> {
    fn classes(&self) -> usize {
        self.net.classes
    }

    fn device(&self) -> &Device {
        self.net.device()
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        self.net.logits(x, keys)
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        map(&self.net.input_gradient(x, keys, upstream)?, x.dims(), |_, row| {
            let mut row = row.to_vec();
            self.entries.iter().for_each(|&(j, poison)| row[j] = f64::from(poison));
            row
        })
    }
}

/// Remembers every key it is given, as a network or as a defense that does nothing.
#[derive(Debug)]
pub struct Recorder<'a> {
    net: &'a Net,
    seen: Mutex<Vec<Key>>,
    backward: AtomicU64,
}

impl<'a> Recorder<'a> {
    pub fn new(net: &'a Net) -> Self {
        Self { net, seen: Mutex::default(), backward: AtomicU64::default() }
    }

    /// Backward evaluations so far.
    pub fn backward(&self) -> u64 {
        self.backward.load(Ordering::Relaxed)
    }

    pub fn seen(&self) -> Vec<Key> {
        self.seen.lock().unwrap().clone()
    }
}

impl Classifier for Recorder<'_> {
    fn classes(&self) -> usize {
        self.net.classes
    }

    fn device(&self) -> &Device {
        self.net.device()
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        self.seen.lock().unwrap().extend(keys);
        self.net.logits(x, keys)
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.seen.lock().unwrap().extend(keys);
        self.backward.fetch_add(keys.len() as u64, Ordering::Relaxed);
        self.net.input_gradient(x, keys, upstream)
    }
}

impl Defense for Recorder<'_> {
    fn apply(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        if x.dim(0)? != keys.len() {
            bail!("one key per image")
        }
        self.seen.lock().unwrap().extend(keys);
        Ok(x.clone())
    }

    fn gradient(&self) -> Gradient {
        Gradient::Identity
    }
}
