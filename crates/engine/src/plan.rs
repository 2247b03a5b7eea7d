//! The classifier: a frozen network, compiled for each size of image it meets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use game::{Classifier, Key};
use nets::{Graph, Weights};
use rayon::prelude::*;

use crate::Isa;
use crate::compile::{Compiled, compile};
use crate::execute::Run;
use crate::lower::{Network, lower};
use crate::memory::Floats;

/// A frozen network compiled for the CPU.
///
/// Compiled once: batch-norm is folded and weights are packed at the first query of each image size, in f32. Buffers
/// are kept between queries. Images are independent: a row of the answer has the same bits in any batch and with any
/// number of threads. A network that is random inside needs one key for each image.
pub struct Plan {
    pub(crate) network: Network,
    isa: Isa,
    sizes: Mutex<BTreeMap<[usize; 2], Arc<Fitted>>>,
}

/// A network compiled for one size, and the memory not in use at the moment.
pub(crate) struct Fitted {
    pub(crate) net: Compiled,
    arenas: Mutex<Vec<Floats>>,
    states: Mutex<Vec<Vec<u8>>>,
}

/// A lock whose data is valid whatever happened to another holder.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fitted {
    fn with_arena(&self, work: impl FnOnce(&mut Floats)) {
        let kept = lock(&self.arenas).pop();
        let mut arena = kept.unwrap_or_else(|| Floats::zeros(self.net.arena));
        work(&mut arena);
        lock(&self.arenas).push(arena);
    }

    /// Images for one thread at a time: few enough to keep all threads busy.
    fn group(&self, images: usize) -> usize {
        images.div_ceil(rayon::current_num_threads()).clamp(1, self.net.group())
    }

    fn pixels(&self) -> usize {
        self.net.channels * self.net.values[0].rows * self.net.values[0].columns
    }

    /// Logits; `keys` and `state` are empty, or have a key and `net.state` bytes for each image.
    pub(crate) fn forward(&self, pixels: &[f32], keys: &[Key], state: &mut [u8], logits: &mut [f32]) {
        let images = logits.len() / self.net.classes;
        let group = self.group(images);
        // Without state each group is given an empty one.
        let mut states: Vec<&mut [u8]> = match state.is_empty() {
            true => (0..images.div_ceil(group)).map(|_| Default::default()).collect(),
            false => state.chunks_mut(group * self.net.state).collect(),
        };
        pixels
            .par_chunks(group * self.pixels())
            .zip(logits.par_chunks_mut(group * self.net.classes))
            .zip(&mut states)
            .enumerate()
            .for_each(|(i, ((pixels, logits), state))| {
                let images = logits.len() / self.net.classes;
                let keys = if keys.is_empty() { keys } else { &keys[i * group..][..images] };
                self.with_arena(|arena| {
                    Run::new(&self.net, arena, state, images).with_keys(keys).forward(pixels, logits);
                });
            });
    }

    pub(crate) fn backward(&self, upstream: &[f32], state: &mut [u8], gradient: &mut [f32]) {
        let group = self.group(upstream.len() / self.net.classes);
        upstream
            .par_chunks(group * self.net.classes)
            .zip(gradient.par_chunks_mut(group * self.pixels()))
            .zip(state.par_chunks_mut(group * self.net.state))
            .for_each(|((upstream, gradient), state)| {
                self.with_arena(|arena| {
                    let images = upstream.len() / self.net.classes;
                    Run::new(&self.net, arena, state, images).backward(upstream, gradient);
                });
            });
    }
}

/// Hands the contiguous f32 data of a CPU tensor to `work`.
fn with_floats<T>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(data)), Some((start, end))) => work(&data[start..end]),
        _ => bail!("a tensor that is not f32 on the CPU"),
    }
}

impl Plan {
    /// A plan for the fastest instruction set of this machine.
    ///
    /// # Errors
    /// If a parameter is missing or of the wrong shape, or the graph is not one the engine can run: an image that
    /// something other than a convolution reads, a second normalisation, or a standardisation elsewhere than right behind the
    /// first.
    pub fn new(graph: &Graph, weights: &Weights) -> Result<Self> {
        Self::with_isa(graph, weights, Isa::available()[0])
    }

    /// A plan for an instruction set of this machine.
    ///
    /// # Errors
    /// As [`Plan::new`], or if the machine lacks the instruction set.
    pub fn with_isa(graph: &Graph, weights: &Weights, isa: Isa) -> Result<Self> {
        if !Isa::available().contains(&isa) {
            bail!("this processor has no {isa:?}");
        }
        Ok(Self { network: lower(graph, weights)?, isa, sizes: Mutex::default() })
    }

    /// The same plan without Winograd's algorithm: what benchmarks and tests compare with.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn direct(graph: &Graph, weights: &Weights) -> Result<Self> {
        let mut plan = Self::new(graph, weights)?;
        plan.network.direct = true;
        Ok(plan)
    }

    /// Compiles the network for images of `rows x columns` pixels, if that was not done yet; a query does it unasked.
    ///
    /// # Errors
    /// If the network cannot take images of this size.
    pub fn prepare(&self, rows: usize, columns: usize) -> Result<()> {
        self.fitted([rows, columns]).map(drop)
    }

    pub(crate) fn fitted(&self, size: [usize; 2]) -> Result<Arc<Fitted>> {
        let mut sizes = lock(&self.sizes);
        if let Some(fitted) = sizes.get(&size) {
            return Ok(fitted.clone());
        }
        let net = compile(&self.network, size, self.isa)?;
        let fitted = Arc::new(Fitted { net, arenas: Mutex::default(), states: Mutex::default() });
        sizes.insert(size, fitted.clone());
        Ok(fitted)
    }

    /// The keys of `n` images, if any are needed.
    fn keys<'a>(&self, keys: &'a [Key], n: usize) -> Result<&'a [Key]> {
        match self.network.draws() {
            true if keys.len() != n => bail!("{} keys for {n} images of a stochastic network", keys.len()),
            true => Ok(keys),
            false => Ok(&[]),
        }
    }

    fn size(&self, x: &Tensor) -> Result<(usize, Arc<Fitted>)> {
        let (n, c, h, w) = x.dims4()?;
        if c != self.network.mean.len() {
            bail!("images of {c} channels, but the network takes {}", self.network.mean.len());
        }
        Ok((n, self.fitted([h, w])?))
    }
}

impl Classifier for Plan {
    fn classes(&self) -> usize {
        self.network.classes
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        let (n, fitted) = self.size(x)?;
        let keys = self.keys(keys, n)?;
        let mut logits = vec![0.0; n * self.network.classes];
        with_floats(x, |pixels| {
            fitted.forward(pixels, keys, &mut [], &mut logits);
            Ok(())
        })?;
        Tensor::from_vec(logits, (n, self.network.classes), &Device::Cpu)
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (n, fitted) = self.size(x)?;
        let keys = self.keys(keys, n)?;
        let shape = (n, self.network.classes);
        let mut state = lock(&fitted.states).pop().unwrap_or_default();
        state.resize(n * fitted.net.state, 0);
        let mut logits = vec![0.0; n * self.network.classes];
        with_floats(x, |pixels| {
            fitted.forward(pixels, keys, &mut state, &mut logits);
            Ok(())
        })?;
        let upstream = upstream(&Tensor::from_vec(logits, shape, &Device::Cpu)?)?;
        if upstream.dims2()? != shape {
            bail!("the upstream gradient has shape {:?}, the logits {shape:?}", upstream.dims());
        }
        let mut gradient = vec![0.0; n * fitted.pixels()];
        with_floats(&upstream, |upstream| {
            fitted.backward(upstream, &mut state, &mut gradient);
            Ok(())
        })?;
        lock(&fitted.states).push(state);
        Tensor::from_vec(gradient, x.shape(), &Device::Cpu)
    }
}
