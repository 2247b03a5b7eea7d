//! Gradient queries per second, and what the device could do at best.

use std::{fmt, time::Instant};

use candle_core::{DType, Device, Result, Tensor};
use game::{Classifier as _, Key, Phase};
use gpu::Halving;
use nets::{Network, Precision, Spec, weights};

/// A network, its images, and how it multiplies.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// As PyTorch's side names it.
    pub model: &'static str,
    /// Rows and columns of pixels.
    pub side: usize,
    /// Images in one query.
    pub batch: usize,
    /// Of the convolutions.
    pub precision: Precision,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} pixels, {} images, {}", self.model, self.side, self.batch, self.precision.name())
    }
}

/// What is timed: the networks of the paper's ImageNet and ImageNette experiments.
pub fn works() -> Vec<Work> {
    let networks = [("resnet-34", 224, 64), ("resnet-50", 224, 64)];
    let precisions = [Precision::F32, Precision::Tf32, Precision::Bf16];
    let of = |(model, side, batch)| precisions.map(|precision| Work { model, side, batch, precision });
    networks.into_iter().flat_map(of).collect()
}

/// Seconds of one measurement.
const SECONDS: f64 = 3.0;

/// How often per second `work` is done, after some that warm up; the device is waited for at the end.
fn often(device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..3 {
        work()?;
    }
    device.synchronize()?;
    let (start, mut count) = (Instant::now(), 0);
    while count == 0 || start.elapsed().as_secs_f64() < SECONDS {
        work()?;
        // Work is queued far faster than done: without waiting there would be no end to the queue.
        device.synchronize()?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

/// Gradient queries (images) per second, of an untrained network.
///
/// # Errors
/// If the device fails.
pub fn rate(work: Work, device: &Device) -> Result<f64> {
    let depth = work.model.rsplit_once('-').and_then(|(_, depth)| depth.parse::<usize>().ok()).unwrap_or_default();
    let spec: Spec = serde_json::from_value(serde_json::json!({"name": "resnet", "depth": depth}))
        .map_err(candle_core::Error::wrap)?;
    let graph = spec.graph().map_err(candle_core::Error::wrap)?;
    let key = Key::root(0);
    let weights = weights::initialise(&graph, key.phase(Phase::Init))?;
    let network = Halving::new(Network::in_precision(&graph, &weights, device, work.precision)?);
    let mut pixels = vec![0.0; work.batch * 3 * work.side * work.side];
    key.phase(Phase::Data).fill_uniform(&mut pixels);
    let x = Tensor::from_vec(pixels, (work.batch, 3, work.side, work.side), device)?;
    let above = Tensor::ones((work.batch, graph.classes), DType::F32, device)?;
    let queries = often(device, || network.input_gradient(&x, &[], &mut |_| Ok(above.clone())).map(drop))?;
    Ok(queries * work.batch as f64)
}

/// What the device does at best.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Floating-point operations per second of a product of large f32 matrices.
    pub f32: f64,
    /// The same of bf16 matrices.
    pub bf16: f64,
    /// Bytes per second, read and written, of a copy.
    pub copy: f64,
}

impl Ceilings {
    /// # Errors
    /// If the device fails.
    pub fn measure(device: &Device) -> Result<Self> {
        Self::of(device, 8192, 1 << 28)
    }

    /// From matrices of `side x side` and a copy of so many f32.
    fn of(device: &Device, side: usize, numbers: usize) -> Result<Self> {
        let matrices = |dtype| {
            let matrix = Tensor::ones((side, side), dtype, device)?;
            Ok::<_, candle_core::Error>(
                often(device, || matrix.matmul(&matrix).map(drop))? * 2.0 * (side as f64).powi(3),
            )
        };
        let from = Tensor::ones(numbers, DType::F32, device)?;
        let copies = often(device, || from.copy().map(drop))?;
        Ok(Self { f32: matrices(DType::F32)?, bf16: matrices(DType::BF16)?, copy: copies * 8.0 * numbers as f64 })
    }
}
