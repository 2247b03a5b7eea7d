//! The kernels, compiled for the host, against the f64 reference of the CPU's tests.

use super::*;
use crate::tests::{Case, distance};
use game::Phase;
use gpu::kernels::on_host;

const WAYS: [(Precision, Order); 3] =
    [(Precision::F32, Order::Nchw), (Precision::F32, Order::Nhwc), (Precision::Bf16, Order::Nhwc)];

/// Numbers of all values of a case above which the host is too slow for it.
const LARGE: usize = 1_000_000;

/// Logits and the gradient of `upstream` times the logits; logits alone must be the same.
fn ask(plan: &DevicePlan, x: &Tensor, keys: &[Key], upstream: &[f32]) -> [Vec<f32>; 2] {
    let mut seen: Vec<f32> = Vec::new();
    let gradient = plan.input_gradient(x, keys, &mut |logits| {
        seen = logits.flatten_all()?.to_vec1()?;
        Tensor::from_slice(upstream, logits.shape(), &Device::Cpu)
    });
    let gradient = gradient.unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let logits = plan.logits(x, keys).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(logits.iter().zip(&seen).all(|(a, b)| a.to_bits() == b.to_bits()), "logits without a gradient differ");
    [seen, gradient]
}

/// Two f32 programs that sum in different orders take different branches of a few ReLUs (see the crate's documentation), so
/// most images' gradients must agree, not all.
#[expect(clippy::print_stderr, reason = "why a test is skipped")]
pub fn check(case: &Case<'_>, name: &str) {
    let (n, [rows, columns]) = (case.images(), case.size);
    if n * case.graph.numbers(rows, columns) > LARGE {
        return;
    }
    let x = Tensor::from_slice(&case.pixels, (n, 3, rows, columns), &Device::Cpu).unwrap();
    let found = on_host(|| {
        WAYS.map(|(precision, order)| {
            let settings = Settings { precision, order, graphs: true };
            let plan = DevicePlan::with(case.graph, case.weights, &Device::Cpu, settings).unwrap();
            // A smaller query before, so that the arena grows and moves.
            let one = ask(&plan, &x.narrow(0, 0, 1).unwrap(), &case.keys[..1], &case.upstream[..case.graph.classes]);
            let all = ask(&plan, &x, &case.keys, &case.upstream);
            assert!(one[0][..] == all[0][..one[0].len()] || one[0].iter().any(|x| x.is_nan()), "{name}: alone");
            assert!(one[1][..] == all[1][..one[1].len()] || one[1].iter().any(|x| x.is_nan()), "{name}: alone");
            all
        })
    });
    let Some(found) = found else { return eprintln!("skipped: no C++ compiler to run the kernels with") };
    let jumps = case.jumps();
    for ((precision, order), [logits, gradient]) in WAYS.iter().zip(found) {
        let images = |numbers: &[f32], truth: &dyn Fn(usize) -> Vec<f64>| -> Vec<f64> {
            let each = numbers.chunks(numbers.len() / n).enumerate();
            let mut gaps: Vec<f64> = each.map(|(image, numbers)| distance(numbers, &truth(image))).collect();
            gaps.sort_by(f64::total_cmp);
            gaps
        };
        let logits = images(&logits, &|image| case.logits(image));
        let gradient = images(&gradient, &|image| case.gradient(image));
        if std::env::var_os("VERBOSE").is_some() {
            eprintln!("{name} {} {order:?}: logits {logits:.1?} gradient {gradient:.1?}", precision.name());
        }
        // With bf16 every layer rounds to 8 bits; there a network that jumps is only run, and so is one of few images, of
        // which one may jump.
        let (near, far) = match precision {
            _ if jumps && n < 3 => (f64::INFINITY, f64::INFINITY),
            Precision::Bf16 if jumps => (f64::INFINITY, f64::INFINITY),
            Precision::Bf16 => (0.1, 0.5),
            _ if jumps => (1e-4, 1e-3),
            _ => (1e-5, 5e-5),
        };
        assert!(logits[n / 2] <= near && gradient[n / 2] <= far, "{name} {order:?}: {logits:?} {gradient:?}");
        assert!(gradient.iter().all(|gap| gap.is_finite()), "{name} {order:?}: {gradient:?}");
    }
}

#[test]
fn a_smaller_batch_after_a_larger_one_and_many_shapes_are_answered_alike() {
    let graph = crate::tests::spec(r#"{"name": "cifar-resnet", "depth": 8, "width": 4}"#);
    let weights = crate::tests::weights(&graph);
    on_host(|| {
        let plan = DevicePlan::new(&graph, &weights, &Device::Cpu, Precision::F32).unwrap();
        let mut pixels = vec![0.0; 12 * 3 * 64];
        Key::root(1).phase(Phase::Data).fill_uniform(&mut pixels);
        let x = Tensor::from_vec(pixels, (12, 3, 8, 8), &Device::Cpu).unwrap();
        let upstream = vec![1.0; 12 * 10];
        let all = ask(&plan, &x, &[], &upstream);
        // More shapes than are kept, each asked until it would be recorded.
        for n in (1..=11).rev().flat_map(|n| [n; 3]) {
            let some = ask(&plan, &x.narrow(0, 12 - n, n).unwrap(), &[], &upstream[..n * 10]);
            for (some, all) in some.iter().zip(&all) {
                assert_eq!(some[..], all[all.len() - some.len()..]);
            }
        }
        assert!(plan.bytes(8, 8).unwrap() > 4 * 3 * 64);
    });
}

#[test]
fn bad_input_is_an_error() {
    let graph = crate::tests::spec(r#"{"name": "cifar-resnet", "depth": 8, "width": 4}"#);
    let weights = crate::tests::weights(&graph);
    on_host(|| {
        let plan = DevicePlan::new(&graph, &weights, &Device::Cpu, Precision::F32).unwrap();
        let x = Tensor::zeros((2, 3, 8, 8), DType::F32, &Device::Cpu).unwrap();
        assert!(plan.logits(&x.narrow(1, 0, 2).unwrap(), &[]).is_err());
        assert!(plan.logits(&x.to_dtype(DType::F64).unwrap(), &[]).is_err());
        assert!(plan.input_gradient(&x, &[], &mut |logits| logits.narrow(0, 0, 1)).is_err());
        assert!(plan.input_gradient(&x, &[], &mut |_| bail!("no")).unwrap_err().to_string().contains("no"));
        assert_eq!(plan.logits(&x.narrow(0, 0, 0).unwrap(), &[]).unwrap().dims(), [0, 10]);
        // After an error it goes on.
        assert_eq!(plan.logits(&x, &[]).unwrap().dims(), [2, 10]);
    });
}
