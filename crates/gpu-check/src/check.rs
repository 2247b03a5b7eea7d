//! Values and gradients of both devices side by side.

use std::fmt;

use candle_core::{DType, Device, Result, Tensor, Var};
use engine::{DevicePlan, Settings};
use game::{Classifier, Gradient, Key, Phase};
use gpu::Order;
use nets::{
    Network, Op, Padding, Precision, Spec,
    ops::{self, Activation, Window},
    weights,
};

/// One comparison.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was compared.
    pub name: String,
    /// How far apart the devices are, or why one of them failed.
    pub gap: std::result::Result<f64, String>,
    /// How far apart they may be.
    pub limit: f64,
}

impl Check {
    /// Whether the devices agree.
    pub fn holds(&self) -> bool {
        self.gap.as_ref().is_ok_and(|gap| *gap <= self.limit)
    }

    fn new(name: String, limit: f64, gap: Result<f64>) -> Self {
        let first_line = |error: candle_core::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
        Self { name, gap: gap.map_err(first_line), limit }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.holds() { "agrees" } else { "DOES NOT AGREE" };
        match &self.gap {
            Ok(gap) => write!(f, "{verdict}: {}: apart by {gap:.1e}, at most {:.0e}", self.name, self.limit),
            Err(error) => write!(f, "{verdict}: {}: {error}", self.name),
        }
    }
}

/// Every check on `device` against the CPU.
///
/// # Errors
/// If the CPU's side fails.
pub fn all(device: &Device, each: &mut dyn FnMut(Check)) -> Result<()> {
    convolutions(device, each);
    operations(device, each);
    transforms(device, each)?;
    for spec in Spec::examples() {
        network(&spec, device, each)?;
    }
    Ok(())
}

/// Normal numbers.
fn normal(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let mut values = vec![0.0; shape.iter().product()];
    Key::root(seed).fill_normal(&mut values);
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Pixels in `[0, 1)`.
fn pixels(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let mut values = vec![0.0; shape.iter().product()];
    Key::root(seed).fill_uniform(&mut values);
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The largest difference, as a share of the largest entry of `expected`; a NaN is infinitely far.
fn apart(found: &Tensor, expected: &Tensor) -> Result<f64> {
    if found.dims() != expected.dims() {
        candle_core::bail!("{:?} instead of {:?}", found.dims(), expected.dims())
    }
    let list = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (found, expected) = (list(found)?, list(expected)?);
    let largest = expected.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let far = |gap: f64, (x, y): (&f64, &f64)| if x == y { gap } else { gap.max(nan_is_far((x - y).abs())) };
    let gap = found.iter().zip(&expected).fold(0.0, far);
    Ok(if gap == 0.0 { 0.0 } else { gap / largest })
}

fn nan_is_far(gap: f64) -> f64 {
    if gap.is_nan() { f64::INFINITY } else { gap }
}

/// The value of an operation, and its gradients at every argument.
fn answers(arguments: &[Tensor], device: &Device, f: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let to = |x: &Tensor| Var::from_tensor(&x.to_device(device)?);
    let variables = arguments.iter().map(to).collect::<Result<Vec<Var>>>()?;
    let inputs: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let value = f(&inputs)?;
    let upstream = normal(99, value.dims())?.to_dtype(value.dtype())?.to_device(device)?;
    let found = (&value * upstream)?.sum_all()?.backward()?;
    let gradients = variables.iter().map(|x| found.get(x).cloned().map_or_else(|| x.zeros_like(), Ok));
    let mut answers = vec![value.detach()];
    answers.extend(gradients.collect::<Result<Vec<_>>>()?);
    Ok(answers)
}

/// The largest distance of value and gradients between the CPU, by `expected`, and the device, by `found`.
fn compare(
    arguments: &[Tensor],
    device: &Device,
    expected: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    found: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<f64> {
    let (expected, found) = (answers(arguments, &Device::Cpu, expected)?, answers(arguments, device, found)?);
    found.iter().zip(&expected).try_fold(0.0f64, |gap, (found, expected)| Ok(gap.max(apart(found, expected)?)))
}

/// Every kind of convolution there is in a network, in every precision: result, input and weight gradients.
fn convolutions(device: &Device, each: &mut dyn FnMut(Check)) {
    let cases = [
        ([2, 16, 32, 32], [16, 16, 3, 3], [1, 1], 1, 1),
        ([2, 16, 33, 32], [32, 16, 3, 3], [1, 1], 2, 1),
        ([2, 64, 14, 14], [128, 64, 1, 1], [0, 0], 1, 1),
        ([2, 64, 14, 14], [128, 64, 1, 1], [0, 0], 2, 1),
        ([2, 3, 64, 64], [64, 3, 7, 7], [3, 3], 2, 1),
        ([2, 32, 28, 28], [32, 1, 3, 3], [1, 1], 2, 32),
        ([2, 24, 17, 17], [32, 24, 1, 7], [0, 3], 1, 1),
        ([2, 24, 17, 17], [32, 24, 7, 1], [3, 0], 1, 1),
        ([4, 512, 1, 1], [10, 512, 1, 1], [0, 0], 1, 1),
    ];
    // TF32 has 10 bits of mantissa, bfloat16 has 7; sums are in f32.
    let precisions = [(Precision::F32, 1e-4), (Precision::Tf32, 5e-3), (Precision::Bf16, 3e-2)];
    for (x, w, padding, stride, groups) in cases {
        for (precision, limit) in precisions {
            let conv = |precision| move |a: &[Tensor]| gpu::conv2d(&a[0], &a[1], padding, stride, groups, precision);
            let gap = normal(1, &x)
                .and_then(|x| Ok([x, normal(2, &w)?]))
                .and_then(|arguments| compare(&arguments, device, &conv(Precision::F32), &conv(precision)));
            let name = format!("convolution {x:?} by {w:?}, stride {stride}, {groups} groups, {}", precision.name());
            each(Check::new(name, limit, gap));
        }
    }
}

/// Every other operation of a network.
fn operations(device: &Device, each: &mut dyn FnMut(Check)) {
    type Operation<'a> = (&'static str, Box<dyn Fn(&[Tensor]) -> Result<Tensor> + 'a>);
    let keys = [Key::root(8), Key::root(9)];
    let leaky = Activation::LeakyRelu { slope: 0.1 };
    let lopsided = Padding { top: 0, bottom: 1, left: 2, right: 1 };
    let one: Vec<Operation<'_>> = vec![
        ("max-pool", Box::new(|a| ops::max_pool(&a[0], 3, 2, 1))),
        ("average-pool", Box::new(|a| ops::average_pool(&a[0], 3, 1, 1))),
        ("global average pool", Box::new(|a| ops::global_average_pool(&a[0]))),
        ("subsample", Box::new(|a| ops::subsample(&a[0], 2, 1, 2))),
        ("standardise", Box::new(|a| ops::standardise(&a[0]))),
        ("k-winners-take-all", Box::new(|a| ops::keep_largest(&a[0], 0.2))),
        ("activation pruning", Box::new(|a| ops::prune(&a[0], 2.0, &keys))),
        ("relu", Box::new(|a| ops::activate(&a[0], Activation::Relu))),
        ("relu6", Box::new(|a| ops::activate(&a[0], Activation::Relu6))),
        ("leaky relu", Box::new(move |a| ops::activate(&a[0], leaky))),
        ("sum", Box::new(|a| ops::add(&a[0], &a[0].affine(2.0, 1.0)?, Activation::Relu))),
    ];
    for (name, operation) in one {
        let gap = normal(4, &[2, 6, 16, 15]).and_then(|x| compare(&[x], device, &*operation, &*operation));
        each(Check::new(name.to_owned(), 1e-4, gap));
    }
    let norm = |a: &[Tensor]| Ok(ops::batch_norm(&a[0], &a[1], &a[2], 1e-5, Activation::Relu)?.0);
    let arguments = || Ok([normal(4, &[2, 6, 16, 15])?, normal(5, &[6])?, normal(6, &[6])?]);
    each(Check::new("batch-norm".into(), 1e-4, arguments().and_then(|a| compare(&a, device, &norm, &norm))));
    let window = Window { stride: 2, padding: lopsided, groups: 2 };
    let conv = |a: &[Tensor]| ops::conv2d(&a[0], &a[1], Some(&a[2]), window);
    let arguments = || Ok([normal(4, &[2, 6, 16, 15])?, normal(5, &[8, 3, 3, 2])?, normal(6, &[8])?]);
    let gap = arguments().and_then(|a| compare(&a, device, &conv, &conv));
    each(Check::new("convolution with a bias and lopsided padding".into(), 1e-4, gap));
}

/// Every defense, forward and, where it has one, backward.
fn transforms(device: &Device, each: &mut dyn FnMut(Check)) -> Result<()> {
    let x = pixels(1, &[2, 3, 32, 32])?;
    let keys = [Key::root(2), Key::root(3)];
    for spec in defenses::Spec::examples() {
        let defense = spec.build();
        let expected = defense.apply(&x, &keys)?;
        let forward = || apart(&defense.apply(&x.to_device(device)?, &keys)?, &expected);
        // A difference of one rounding near a threshold may show in one quantised pixel; the noise must be the same.
        each(Check::new(format!("defense {}", serde_json::json!(spec)), 1e-6, forward()));
        if defense.gradient() == Gradient::Exact {
            let above = normal(4, expected.dims())?;
            let expected = defense.exact_pullback(&x, &keys, &above)?;
            let found = || defense.exact_pullback(&x.to_device(device)?, &keys, &above.to_device(device)?);
            let gap = found().and_then(|found| apart(&found, &expected));
            each(Check::new(format!("gradient of defense {}", serde_json::json!(spec)), 1e-6, gap));
        }
    }
    Ok(())
}

/// How far logits may be from the CPU's, and the median image's gradient: some times what was seen where factors are rounded
/// as by a GPU's matrix units, to the 10 bits of TF32 or the 7 of bf16 (2e-6 and 4e-3 in f32, 2e-3 and 0.13 in TF32, 1e-2 and
/// 0.4 in bf16).
const fn limits(precision: Precision) -> (f64, f64) {
    match precision {
        Precision::F32 => (1e-4, 5e-2),
        Precision::Tf32 => (1e-2, 0.5),
        Precision::Bf16 => (5e-2, 1.5),
    }
}

/// The logits and the gradient query of an untrained network: planned in every precision and order, and by autograd, which
/// training uses.
///
/// Where a value near zero has another sign, a ReLU passes another gradient: the gradient's check is the median image's.
/// Winners that change places move logits too, so a network of winners is compared in f32 alone.
fn network(spec: &Spec, device: &Device, each: &mut dyn FnMut(Check)) -> Result<()> {
    let graph = spec.graph().map_err(candle_core::Error::wrap)?;
    let weights = weights::initialise(&graph, Key::root(0).phase(Phase::Init))?;
    let side = match spec {
        Spec::InceptionV3(_) => 96,
        _ if spec.classes() == 1000 => 64,
        _ => 32,
    };
    let (x, keys) = (pixels(1, &[5, 3, side, side])?, Vec::from_iter((0..5).map(Key::root)));
    // Upstream gradients begin within a tensor, as those of a part of a batch do.
    let above = normal(2, &[6, spec.classes()])?;
    let ask = |network: &dyn Classifier, n: usize| -> Result<[Tensor; 2]> {
        let mut seen = None;
        let x = x.narrow(0, 0, n)?.to_device(network.device())?;
        let gradient = network.input_gradient(&x, &keys[..n], &mut |logits| {
            seen = Some(logits.clone());
            above.to_device(logits.device())?.narrow(0, 1, n)
        })?;
        let Some(logits) = seen else { candle_core::bail!("the network did not ask for the gradient at its logits") };
        Ok([logits, gradient])
    };
    let expected = ask(&Network::new(&graph, &weights, &Device::Cpu)?, 5)?;
    let mut hold = |name: String, precision: Precision, found: Result<[Tensor; 2]>| {
        let (near, far) = limits(precision);
        match found {
            Ok([logits, gradient]) => {
                each(Check::new(format!("logits of {name}"), near, apart(&logits, &expected[0])));
                each(Check::new(format!("gradient of {name}"), far, median_image(&gradient, &expected[1])));
            }
            Err(error) => each(Check::new(format!("logits and gradient of {name}"), near, Err(error))),
        }
    };
    let spec = serde_json::json!(spec);
    let found = Network::new(&graph, &weights, device).and_then(|network| ask(&network, 5));
    hold(format!("{spec} by autograd"), Precision::F32, found);
    if !gpu::plans(device) && !gpu::kernels::run_at(device) {
        return Ok(());
    }
    let jumps = graph.nodes.iter().any(|node| matches!(node.op, Op::KeepLargest { .. }));
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
        if jumps && !precision.is_full() {
            continue;
        }
        for order in [Order::Nchw, Order::Nhwc] {
            let name = format!("{spec} in {}, {order:?}", precision.name());
            let settings = Settings { precision, order, graphs: true };
            let found = DevicePlan::with(&graph, &weights, device, settings).and_then(|plan| {
                // The third and fourth queries are a recording's, with others before it that move the arena.
                for n in [5, 2, 5] {
                    ask(&plan, n)?;
                }
                let [first, again] = [ask(&plan, 5)?, ask(&plan, 5)?];
                let same = apart(&first[1], &again[1])?;
                if same > 0.0 {
                    candle_core::bail!("the same query twice: apart by {same:.1e}")
                }
                Ok(again)
            });
            // The other order is there to be timed; cuDNN need not have it.
            if settings == Settings::of(precision) || found.is_ok() {
                hold(name, precision, found);
            }
        }
    }
    Ok(())
}

/// How far the median image's gradient is from what is expected.
fn median_image(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let image = |i: usize| apart(&found.get(i)?, &expected.get(i)?);
    let mut gaps = (0..expected.dim(0)?).map(image).collect::<Result<Vec<f64>>>()?;
    gaps.sort_by(f64::total_cmp);
    Ok(gaps.get(gaps.len() / 2).copied().unwrap_or(f64::INFINITY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself() {
        let mut names = Vec::new();
        // Also here the reference of the GPU's convolutions stands beside itself in other precisions.
        let mut hold = |check: Check| {
            assert!(check.holds() || check.name.contains("bf16"), "{check}");
            names.push(check.name);
        };
        operations(&Device::Cpu, &mut hold);
        transforms(&Device::Cpu, &mut hold).unwrap();
        network(&Spec::examples()[0], &Device::Cpu, &mut hold).unwrap();
        let without = names.len();
        assert!(without > 30, "{names:?}");
        // And the plan, where there is a compiler for its kernels.
        let mut planned = 0;
        let mut count = |check: Check| {
            assert!(check.holds(), "{check}");
            planned += 1;
        };
        if gpu::kernels::on_host(|| network(&Spec::examples()[0], &Device::Cpu, &mut count).unwrap()).is_some() {
            assert_eq!(planned, 2 + 2 * 3 * 2);
        }
    }

    #[test]
    fn wrong_numbers_do_not_agree() {
        let x = [normal(1, &[2, 3, 4, 4]).unwrap()];
        let right = |a: &[Tensor]| a[0].sqr();
        let gap = |wrong: &dyn Fn(&[Tensor]) -> Result<Tensor>| compare(&x, &Device::Cpu, &right, wrong);
        assert_eq!(gap(&right).unwrap(), 0.0);
        assert!(gap(&|a| a[0].sqr()? + 0.01).unwrap() > 1e-4);
        // The value is right, the gradient is not.
        assert!(gap(&|a| a[0].detach().sqr()).unwrap() > 0.5);
        assert_eq!(gap(&|a| a[0].sqr()?.affine(f64::NAN, 0.0)).unwrap(), f64::INFINITY);
        assert!(gap(&|a| a[0].sqr()?.narrow(0, 0, 1)).is_err());
        let check = Check::new("a".into(), 0.1, Err(candle_core::Error::msg("lost")));
        assert!(!check.holds() && check.to_string().contains("lost"));
    }
}
