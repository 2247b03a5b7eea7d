//! Operations of training that a GPU does by kernels of our own: device.cu.

use candle_core::{DType, Result, Tensor};
use gpu::kernels::{Call, Parameters, Source, tie, tie3};

use super::{Activation, Statistics};

const SOURCE: Source = Source { name: "training", text: include_str!("device.cu") };
/// Threads that share a channel's sum.
const PARTS: usize = 1024;

/// Whether these operations run where the images are.
pub(super) fn takes(x: &Tensor) -> bool {
    gpu::kernels::run_at(x.device()) && x.dtype() == DType::F32
}

/// As its namesake in device.cu.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Norm {
    x: u64,
    out: u64,
    upstream: u64,
    gamma: u64,
    beta: u64,
    to: u64,
    dgamma: u64,
    dbeta: u64,
    parts: u64,
    statistics: u64,
    sums: u64,
    eps: f64,
    slope: f64,
    count: u64,
    channels: u32,
    plane: u32,
    act: u32,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Norm {}

impl Norm {
    fn new([n, c, h, w]: [usize; 4], eps: f64, activation: Activation) -> Self {
        let (act, slope) = match activation {
            Activation::None => (0, 0.0),
            Activation::Relu => (1, 0.0),
            Activation::Relu6 => (2, 0.0),
            Activation::LeakyRelu { slope } => (3, slope),
        };
        Self {
            eps,
            slope,
            count: (n * h * w) as u64,
            channels: c as u32,
            plane: (h * w) as u32,
            act,
            ..Self::default()
        }
    }

    /// Sums over every channel: of a part by each thread, and of the parts by one.
    fn sum(&self, call: &Call, parts: &str, total: &str) -> Result<()> {
        let channels = self.channels as usize;
        // SAFETY: the callers bind tensors of these sizes.
        unsafe {
            call.launch(&SOURCE, parts, channels * PARTS, self)?;
            call.launch(&SOURCE, total, channels, self)
        }
    }
}

/// [`super::batch_norm`] of f32 images.
///
/// The statistics are read from the device, which is waited for.
pub(super) fn batch_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<(Tensor, Statistics)> {
    let shape: [usize; 4] = x.dims4()?.into();
    let (c, x) = (shape[1], x.contiguous()?);
    let mut call = Call::new(x.device());
    let (out, parts) = (call.output(x.shape(), DType::F32)?, call.output(c * PARTS, DType::F64)?);
    let statistics = call.output((c, 2), DType::F64)?;
    let norm = Norm {
        x: call.read(&x, DType::F32)?,
        gamma: call.read(gamma, DType::F32)?,
        beta: call.read(beta, DType::F32)?,
        to: out.address,
        parts: parts.address,
        statistics: statistics.address,
        ..Norm::new(shape, eps, activation)
    };
    norm.sum(&call, "mean_parts", "mean_total")?;
    norm.sum(&call, "variance_parts", "variance_total")?;
    // SAFETY: the result has the images' shape.
    unsafe { call.launch(&SOURCE, "normalise", x.elem_count(), &norm)? };
    let statistics = statistics.tensor();
    let [mean, variance] = [0, 1].map(|column| statistics.narrow(1, column, 1)?.flatten_all()?.to_vec1::<f64>());
    let known = Statistics { mean: mean?, variance: variance?, count: norm.count as usize };
    let out = tie3([&x, gamma, beta], out, move |[x, gamma, _], out, dy| {
        let mut call = Call::new(x.device());
        let (dx, parts) = (call.output(x.shape(), DType::F32)?, call.output(2 * c * PARTS, DType::F64)?);
        let [dgamma, dbeta] = [call.output(c, DType::F32)?, call.output(c, DType::F32)?];
        let sums = call.output((c, 2), DType::F64)?;
        let norm = Norm {
            x: call.read(x, DType::F32)?,
            out: call.read(out, DType::F32)?,
            upstream: call.read(dy, DType::F32)?,
            gamma: call.read(gamma, DType::F32)?,
            statistics: call.read(&statistics, DType::F64)?,
            to: dx.address,
            dgamma: dgamma.address,
            dbeta: dbeta.address,
            parts: parts.address,
            sums: sums.address,
            ..Norm::new(shape, eps, activation)
        };
        norm.sum(&call, "gradient_parts", "gradient_total")?;
        // SAFETY: as above.
        unsafe { call.launch(&SOURCE, "gradient", x.elem_count(), &norm)? };
        Ok([dx.tensor(), dgamma.tensor(), dbeta.tensor()])
    })?;
    Ok((out, known))
}

/// As its namesake in device.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pool {
    x: u64,
    to: u64,
    winners: u64,
    h: u32,
    w: u32,
    oh: u32,
    ow: u32,
    kernel: u32,
    stride: u32,
    padding: u32,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Pool {}

/// [`super::max_pool`] of f32 images to ones of the shape `to`; windows have at most 15 rows.
pub(super) fn max_pool(x: &Tensor, to: [usize; 4], [kernel, stride, padding]: [usize; 3]) -> Result<Tensor> {
    let (x, [_, _, oh, ow]) = (x.contiguous()?, to.map(|length| length as u32));
    let (_, _, h, w) = x.dims4()?;
    let mut call = Call::new(x.device());
    let (out, winners) = (call.output(&to, DType::F32)?, call.output(&to, DType::U8)?);
    let [kernel, stride, padding] = [kernel, stride, padding].map(|length| length as u32);
    let (h, w) = (h as u32, w as u32);
    let pool = Pool {
        x: call.read(&x, DType::F32)?,
        to: out.address,
        winners: winners.address,
        h,
        w,
        oh,
        ow,
        kernel,
        stride,
        padding,
    };
    // SAFETY: a thread for each number of the result.
    unsafe { call.launch(&SOURCE, "max_pool", to.iter().product(), &pool)? };
    let winners = winners.tensor();
    tie(&x, out, move |x, _, dy| {
        let mut call = Call::new(x.device());
        let dx = call.output(x.shape(), DType::F32)?;
        let (upstream, winners) = (call.read(dy, DType::F32)?, call.read(&winners, DType::U8)?);
        let pool = Pool { x: upstream, to: dx.address, winners, ..pool };
        // SAFETY: a thread for each number of the images.
        unsafe { call.launch(&SOURCE, "max_pool_gradient", x.elem_count(), &pool)? };
        Ok(dx.tensor())
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use game::Key;
    use gpu::kernels::on_host;

    use crate::ops;

    use super::*;

    fn random(seed: u64, shape: &[usize]) -> Tensor {
        let mut values = vec![0.0; shape.iter().product()];
        Key::root(seed).fill_normal(&mut values);
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// A value and its gradients at all arguments, for one random projection.
    fn answers(arguments: &[Tensor], f: &dyn Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
        let variables: Vec<Var> = arguments.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
        let value = f(&variables.iter().map(|x| x.as_tensor().clone()).collect::<Vec<_>>());
        let projection = random(99, value.dims());
        let gradients = (&value * projection).unwrap().sum_all().unwrap().backward().unwrap();
        let gradients = variables.iter().map(|x| gradients.get(x).unwrap().clone());
        std::iter::once(value.detach()).chain(gradients).collect()
    }

    /// The kernels on the host beside the CPU's own way.
    #[expect(clippy::print_stderr, reason = "why a test is skipped")]
    fn agree(arguments: &[Tensor], f: &dyn Fn(&[Tensor]) -> Tensor) {
        let expected = answers(arguments, f);
        let Some(found) = on_host(|| {
            assert!(takes(&arguments[0]));
            answers(arguments, f)
        }) else {
            return eprintln!("skipped: no C++ compiler to run the kernels with");
        };
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.dims(), expected.dims());
            let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let gap = largest(&(found - expected).unwrap());
            assert!(gap <= 2e-6 * largest(expected), "{gap} of {}", largest(expected));
        }
    }

    #[test]
    fn batch_norms_and_their_gradients_are_the_cpus() {
        let leaky = Activation::LeakyRelu { slope: 0.1 };
        for activation in [Activation::None, Activation::Relu, Activation::Relu6, leaky] {
            // More numbers than threads share, fewer, and one image.
            for shape in [[5, 3, 16, 15], [2, 7, 3, 1], [1, 4, 9, 8]] {
                let x = (random(1, &shape) * 4.0).unwrap();
                let arguments = [(x + 0.5).unwrap(), random(2, &shape[1..2]), random(3, &shape[1..2])];
                agree(&arguments, &|a| ops::batch_norm(&a[0], &a[1], &a[2], 1e-5, activation).unwrap().0);
            }
        }
        let arguments = || [random(1, &[5, 3, 16, 15]), random(2, &[3]), random(3, &[3])];
        let statistics = || {
            let [x, gamma, beta] = arguments();
            ops::batch_norm(&x, &gamma, &beta, 1e-5, Activation::None).unwrap().1
        };
        let Some(found) = on_host(statistics) else { return };
        let expected = statistics();
        assert_eq!(found.count, expected.count);
        let pairs = found.mean.iter().chain(&found.variance).zip(expected.mean.iter().chain(&expected.variance));
        pairs.for_each(|(x, y)| assert!((x - y).abs() < 1e-6, "{x} {y}"));
    }

    #[test]
    fn max_pools_and_their_gradients_are_the_cpus() {
        for (kernel, stride, padding) in [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 3, 1), (5, 2, 2)] {
            for shape in [[2, 3, 9, 8], [1, 2, 16, 7]] {
                let x = random(4, &shape);
                agree(std::slice::from_ref(&x), &|a| ops::max_pool(&a[0], kernel, stride, padding).unwrap());
                // Ties: the first of several wins.
                agree(&[x.round().unwrap()], &|a| ops::max_pool(&a[0], kernel, stride, padding).unwrap());
            }
        }
    }
}
