//! Gradient queries per second, and what the device could do at best.

use std::{fmt, time::Instant};

use candle_core::{DType, Device, Result, Tensor};
use engine::{DevicePlan, Settings};
use game::{Classifier as _, Key, Phase};
use gpu::{Order, Precision};
use nets::{Graph, Spec, Weights, weights};

/// A network, its images, and how it multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
///
/// The first network is timed with few images, too, where launching costs most.
pub fn works() -> Vec<Work> {
    let networks = [("resnet-50", 224, 64), ("resnet-34", 224, 64), ("resnet-50", 224, 4)];
    let precisions = [Precision::F32, Precision::Tf32, Precision::Bf16];
    let of = |(model, side, batch)| precisions.map(|precision| Work { model, side, batch, precision });
    networks.into_iter().flat_map(of).collect()
}

/// Seconds of one measurement.
const SECONDS: f64 = 0.7;

/// Every way to compute in a precision.
fn ways(precision: Precision) -> impl Iterator<Item = Settings> {
    let orders = [Order::Nchw, Order::Nhwc];
    orders.into_iter().flat_map(move |order| [true, false].map(|graphs| Settings { precision, order, graphs }))
}

/// What a way is called.
pub fn name(settings: Settings) -> String {
    let order = match settings.order {
        Order::Nchw => "NCHW",
        Order::Nhwc => "NHWC",
    };
    format!("{order}, {}", if settings.graphs { "CUDA graphs" } else { "plain launches" })
}

/// Images per second.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub work: Work,
    pub settings: Settings,
    /// Gradient queries.
    pub gradient: f64,
    /// Logits alone.
    pub forward: f64,
}

impl Rate {
    /// Whether runs compute in this way.
    pub fn is_usual(&self) -> bool {
        self.settings == Settings::of(self.work.precision)
    }
}

/// How often per second `work` is done, after some that warm up; the device is waited for at the end.
fn often(device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    // Recordings are made at the third.
    for _ in 0..4 {
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

/// Every way to do the work, of an untrained network; a way that the device cannot go is its error.
///
/// # Errors
/// If the network cannot be made.
pub fn rates(work: Work, device: &Device) -> Result<Vec<(Settings, Result<Rate>)>> {
    let depth = work.model.rsplit_once('-').and_then(|(_, depth)| depth.parse::<usize>().ok()).unwrap_or_default();
    let spec: Spec = serde_json::from_value(serde_json::json!({"name": "resnet", "depth": depth}))
        .map_err(candle_core::Error::wrap)?;
    let graph = spec.graph().map_err(candle_core::Error::wrap)?;
    let weights = weights::initialise(&graph, Key::root(0).phase(Phase::Init))?;
    let rate = |settings| (settings, rate(work, &graph, &weights, settings, device));
    Ok(ways(work.precision).map(rate).collect())
}

fn rate(work: Work, graph: &Graph, weights: &Weights, settings: Settings, device: &Device) -> Result<Rate> {
    let plan = DevicePlan::with(graph, weights, device, settings)?;
    let mut pixels = vec![0.0; work.batch * 3 * work.side * work.side];
    Key::root(0).phase(Phase::Data).fill_uniform(&mut pixels);
    let x = Tensor::from_vec(pixels, (work.batch, 3, work.side, work.side), device)?;
    let above = Tensor::ones((work.batch, graph.classes), DType::F32, device)?;
    let queries = often(device, || plan.input_gradient(&x, &[], &mut |_| Ok(above.clone())).map(drop))?;
    let passes = often(device, || plan.logits(&x, &[]).map(drop))?;
    let images = work.batch as f64;
    Ok(Rate { work, settings, gradient: queries * images, forward: passes * images })
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
