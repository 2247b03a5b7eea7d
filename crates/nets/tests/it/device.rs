//! The kernels that a GPU trains with, run on the host, against the operations of the CPU.

use candle_core::{DType, Device, Result, Tensor, Var};
use game::Key;
use gpu::kernels::on_host;
use nets::{
    AdamW, Trainee,
    ops::{self, Activation, Affine},
    train::Settings,
};

use crate::{difference, images, normal, spec, vector};

const ACTIVATIONS: [Activation; 4] =
    [Activation::None, Activation::Relu, Activation::Relu6, Activation::LeakyRelu { slope: 0.1 }];

fn random(seed: u64, shape: &[usize]) -> Tensor {
    normal(Key::root(300).at(seed), shape, DType::F32)
}

/// A result, and the gradients of a random projection of it with respect to each argument.
fn answers(arguments: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
    let variables: Vec<Var> = arguments.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let inputs: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let out = f(&inputs).unwrap();
    let projection = random(99, out.dims());
    let gradients = (&out * &projection).unwrap().sum_all().unwrap().backward().unwrap();
    let of = |variable: &Var| gradients.get(variable).expect("a gradient for each argument").clone();
    std::iter::once(out.detach()).chain(variables.iter().map(of)).collect()
}

/// Compares a result and its gradients; relative to the largest number they may differ by `limit`.
fn check(what: &str, limit: f64, arguments: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let expected = answers(arguments, &f);
    let Some(found) = on_host(|| answers(arguments, &f)) else {
        return eprintln!("skipped: no C++ compiler to run the kernels with");
    };
    for (index, (expected, found)) in expected.iter().zip(&found).enumerate() {
        assert!(expected.is_contiguous() && found.is_contiguous(), "{what}, {index}");
        let gap = if vector(expected) == vector(found) { 0.0 } else { difference(expected, found) };
        assert!(gap <= limit, "{what}, {index} (0 is the result): {gap:e}");
    }
}

#[test]
fn normalisation_by_kernels_is_the_cpus() {
    // The last has so many numbers that each channel's sum is one of sums.
    for (case, shape) in [[3, 4, 5, 7], [1, 3, 9, 8], [4, 5, 1, 1], [1, 1, 1, 3], [5, 2, 33, 31]].iter().enumerate() {
        let (x, c) = (random(case as u64, shape), shape[1]);
        let x = x.affine(2.0, 0.7).unwrap();
        let (gamma, beta) = (random(8, &[c]), random(9, &[c]));
        for activation in ACTIVATIONS {
            let what = format!("batch-norm of {shape:?}, {activation:?}");
            check(&what, 1e-6, &[x.clone(), gamma.clone(), beta.clone()], |a| {
                Ok(ops::batch_norm(&a[0], &a[1], &a[2], 1e-5, activation)?.0)
            });
            // What lies in memory in another order, and what nobody asks the gradient of.
            check(&what, 1e-6, &[x.transpose(2, 3).unwrap().contiguous().unwrap(), gamma.clone()], |a| {
                Ok(ops::batch_norm(&a[0].transpose(2, 3)?, &a[1], &beta, 1e-3, activation)?.0)
            });
            check(&what, 1e-6, &[gamma.clone(), beta.clone()], |a| {
                Ok(ops::batch_norm(&x, &a[0], &a[1], 1e-5, activation)?.0)
            });
            let numbers = |seed| vector(&random(seed, &[c]));
            let affine = Affine { centre: numbers(5), scale: numbers(6), shift: numbers(7), activation };
            check(&format!("affine, {activation:?}"), 0.0, std::slice::from_ref(&x), |a| affine.apply(&a[0]));
        }
    }
}

#[test]
fn statistics_by_kernels_are_right() {
    let (gamma, beta) = (random(1, &[3]), random(2, &[3]));
    // Far from zero, in double precision: what the CPU computes of the same numbers.
    let x = random(3, &[7, 3, 30, 31]).affine(1.0, 1e3).unwrap();
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let of = |x: &Tensor, gamma: &Tensor, beta: &Tensor| {
        let (out, moments) = ops::batch_norm(x, gamma, beta, 1e-5, Activation::None).unwrap();
        (out, ops::Moments::statistics(&[moments.clone(), moments]).unwrap())
    };
    let (_, expected) = of(&wide(&x), &wide(&gamma), &wide(&beta));
    let constant = (x.zeros_like().unwrap() + 0.1).unwrap();
    let Some(([(_, found), (out, same)], broken)) = on_host(|| {
        let broken = Tensor::full(f32::NAN, x.shape(), &Device::Cpu).unwrap();
        ([of(&x, &gamma, &beta), of(&constant, &gamma, &beta)], of(&broken, &gamma, &beta))
    }) else {
        return eprintln!("skipped: no C++ compiler to run the kernels with");
    };
    assert_eq!((found.len(), &found[0]), (2, &found[1]));
    assert_eq!(found[0].count, 7 * 30 * 31);
    for channel in 0..3 {
        let (found, expected) = (&found[0], &expected[0]);
        assert!((found.mean[channel] / expected.mean[channel] - 1.0).abs() < 1e-12);
        assert!((found.variance[channel] / expected.variance[channel] - 1.0).abs() < 1e-10);
    }
    // Numbers that are all the same vary by nothing, and become the shift.
    assert_eq!(same[0].variance, [0.0; 3]);
    assert_eq!(same[0].mean, [f64::from(0.1f32); 3]);
    let shift = beta.reshape((1, 3, 1, 1)).unwrap().broadcast_as(out.shape()).unwrap();
    assert_eq!(difference(&shift, &out), 0.0);
    assert!(broken.1[0].mean.iter().chain(&broken.1[0].variance).all(|x| x.is_nan()));
}

#[test]
fn pools_by_kernels_are_the_cpus() {
    // Few values, so that many windows have several largest numbers.
    let steps = |x: &Tensor| (x * 2.0).unwrap().round().unwrap();
    for (size, stride, padding) in [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 0), (1, 3, 0), (4, 1, 2), (2, 3, 1)] {
        for shape in [[2, 3, 9, 8], [1, 1, 4, 4], [1, 2, 7, 11]] {
            let (x, what) = ([steps(&random(4, &shape))], format!("{size} {stride} {padding} of {shape:?}"));
            check(&format!("max-pool {what}"), 0.0, &x, |a| ops::max_pool(&a[0], size, stride, padding));
            let x = [random(5, &shape)];
            check(&format!("average-pool {what}"), 1e-7, &x, |a| ops::average_pool(&a[0], size, stride, padding));
            check("transposed", 0.0, &x, |a| ops::max_pool(&a[0].transpose(2, 3)?, size, stride, padding));
            check(&format!("subsample {what}"), 0.0, &x, |a| ops::subsample(&a[0], stride, size, padding));
            check("global average pool", 1e-7, &x, |a| ops::global_average_pool(&a[0]));
        }
    }
    // Windows too large for the kernel take another way.
    check("max-pool 17", 0.0, &[random(6, &[1, 2, 40, 39])], |a| ops::max_pool(&a[0], 17, 5, 3));
}

#[test]
fn activations_by_kernels_are_the_cpus() {
    for (case, shape) in [vec![2, 3, 5, 7], vec![1, 11], vec![300], vec![1, 1, 1, 1]].iter().enumerate() {
        let (x, y) = (random(case as u64, shape), random(50 + case as u64, shape));
        let wide = (&x * 5.0).unwrap();
        for activation in ACTIVATIONS {
            let what = format!("{activation:?} of {shape:?}");
            check(&what, 0.0, std::slice::from_ref(&wide), |a| ops::activate(&a[0], activation));
            check(&what, 0.0, &[x.clone(), wide.clone()], |a| ops::add(&a[0], &a[1], activation));
            check(&what, 0.0, std::slice::from_ref(&x), |a| ops::add(&a[0], &y, activation));
            // At the corners: no gradient, or the slope.
            check(&what, 0.0, &[(&x * 0.0).unwrap()], |a| ops::activate(&a[0], activation));
            let six = (x.zeros_like().unwrap() + 6.0).unwrap();
            check(&what, 0.0, &[six], |a| ops::activate(&a[0], activation));
        }
    }
}

#[test]
fn what_is_no_number_is_seen() {
    let x = Tensor::new(&[[[[f32::NAN, 1.0, 2.0], [3.0, f32::NAN, 0.0], [-1.0, 5.0, 4.0]]]], &Device::Cpu).unwrap();
    let seen = || {
        let bits = |x: Tensor| vector(&x.relu().unwrap()).len() + vector(&x).iter().filter(|x| x.is_nan()).count();
        let activated = ACTIVATIONS.map(|activation| bits(ops::activate(&x, activation).unwrap()));
        let gradient = answers(std::slice::from_ref(&x), |a| ops::max_pool(&a[0], 2, 1, 0)).pop().unwrap();
        (activated, bits(ops::max_pool(&x, 2, 1, 0).unwrap()), vector(&gradient))
    };
    let Some(found) = on_host(seen) else { return eprintln!("skipped: no C++ compiler to run the kernels with") };
    assert_eq!(found, seen());
    // Nine numbers, two of which are none; and all four windows see one.
    assert_eq!((found.0, found.1), ([11; 4], 8));
}

#[test]
fn a_sum_that_does_not_fit_is_refused() {
    let refused = || ops::add(&random(1, &[2, 3]), &random(2, &[3, 2]), Activation::None).is_err();
    assert!(refused() && on_host(refused).unwrap_or(true));
}

#[test]
fn adamw_by_a_kernel_takes_the_same_steps() {
    let graph = spec(r#"{"name": "cifar-resnet", "depth": 8, "width": 4, "classes": 3}"#).graph().unwrap();
    let start = nets::weights::initialise(&graph, Key::root(1)).unwrap();
    let mut trainee = Trainee::new(&graph, &start, &Device::Cpu).unwrap();
    let x = images(Key::root(2), &[4, 3, 8, 8], DType::F32);
    let gradients = trainee.loss(&x, &[0, 1, 2, 0]).unwrap().0.backward().unwrap();
    let first = trainee.weights().unwrap();
    let mut run = || {
        for (name, var) in trainee.parameters() {
            var.set(&first[name]).unwrap();
        }
        let mut optimiser = AdamW::new(Settings::default());
        (0..3).for_each(|_| optimiser.step(&mut trainee, &gradients, 1e-2).unwrap());
        (trainee.weights().unwrap(), optimiser.state().unwrap())
    };
    let (weights, state) = run();
    let Some(found) = on_host(run) else { return eprintln!("skipped: no C++ compiler to run the kernels with") };
    let same =
        |(name, tensor): (&String, &Tensor)| tensor.dtype() == DType::I64 || vector(tensor) == vector(&found.1[name]);
    assert!(state.len() > 1 && state.iter().all(same));
    assert!(weights.iter().all(|(name, tensor)| vector(tensor) == vector(&found.0[name])));
    assert!(weights.iter().any(|(name, tensor)| vector(tensor) != vector(&first[name])));
}

#[test]
fn a_network_trains_by_kernels_as_on_the_cpu() {
    for json in [
        r#"{"name": "cifar-resnet", "depth": 8, "width": 4, "classes": 3}"#,
        r#"{"name": "resnet", "depth": 18, "classes": 3}"#,
    ] {
        let graph = spec(json).graph().unwrap();
        let start = nets::weights::initialise(&graph, Key::root(1)).unwrap();
        let x = images(Key::root(2), &[6, 3, 33, 32], DType::F32);
        let run = || {
            let mut trainee = Trainee::new(&graph, &start, &Device::Cpu).unwrap();
            let mut optimiser = AdamW::new(Settings { eps: 1e-3, ..Settings::default() });
            let step = |_| {
                let (loss, _) = trainee.loss(&x, &[0, 1, 2, 0, 1, 2]).unwrap();
                optimiser.step(&mut trainee, &loss.backward().unwrap(), 1e-3).unwrap();
                loss.to_scalar::<f32>().unwrap()
            };
            let losses: Vec<f32> = (0..4).map(step).collect();
            (losses, trainee.weights().unwrap())
        };
        let (expected, weights) = run();
        let Some((found, by_kernels)) = on_host(run) else {
            return eprintln!("skipped: no C++ compiler to run the kernels with");
        };
        assert!(expected[3] < expected[0], "{expected:?}");
        for (expected, found) in expected.iter().zip(&found) {
            assert!((found / expected - 1.0).abs() < 1e-5, "{expected} and {found}");
        }
        for (name, expected) in weights.iter().filter(|(name, _)| name.contains("running")) {
            assert!(difference(expected, &by_kernels[name]) < 1e-4, "{name}");
        }
    }
}
