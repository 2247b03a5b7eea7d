//! Every defense's kernels, run on the host, beside what the CPU does.

use candle_core::{Device, Tensor};
use game::{Gradient, Key, pullback};
use gpu::kernels::on_host;
use serde_json::{Value, json};

use crate::Spec;
use crate::kernel::{self, Canvas, Kernel, ON_HOST, Pixel, Shape};

/// Defenses that bring images to the host, and back, where they could stay on the device.
const LEAVE_THE_DEVICE: [&str; 0] = [];

/// Shapes of batches: what examples are made for, the smallest images of data sets, odd and lopsided ones.
const SHAPES: [[usize; 4]; 5] = [[5, 2, 6, 5], [4, 3, 32, 32], [3, 3, 65, 65], [3, 3, 17, 34], [2, 1, 33, 9]];

/// Pixels in [0, 1], some of them at the ends.
fn images(dims: [usize; 4]) -> Tensor {
    let mut pixels = vec![0.0f32; dims.iter().product()];
    Key::root(7).fill_uniform(&mut pixels);
    for (i, pixel) in pixels.iter_mut().enumerate().filter(|(i, _)| i % 11 == 0) {
        *pixel = (i / 11 % 2) as f32;
    }
    Tensor::from_vec(pixels, &dims, &Device::Cpu).unwrap()
}

fn keys(seed: u64, n: usize) -> Vec<Key> {
    (0..n as u64).map(|image| Key::root(seed).image(image).at(1)).collect()
}

fn signed_like(x: &Tensor) -> Tensor {
    let mut numbers = vec![0.0f32; x.elem_count()];
    Key::root(98).fill_normal(&mut numbers);
    Tensor::from_vec(numbers, x.dims(), &Device::Cpu).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// What the catalogue's examples leave out: larger images, every branch of the noises, barrages of everything.
fn more() -> Vec<Spec> {
    let exact = |name: &str| json!({"name": name, "gradient": "exact"});
    let bart = ["noise-injection", "gaussian-blur", "median-blur", "swirl", "fft"].map(exact);
    let quantisation = json!({"name": "quantisation"});
    let bart = Value::from([&bart[..], std::slice::from_ref(&quantisation)].concat());
    let crops = json!([{"name": "crop-resize", "size": 5, "resize": 5}, {"name": "resize-pad", "smallest": 4, "largest": 5,
        "padded": 5, "gradient": "exact"}, {"name": "crop", "size": 5}]);
    let kinds = ["gaussian", "poisson", "salt", "pepper", "salt-and-pepper", "speckle"];
    let mut specs = kinds
        .map(|kind| json!({"name": "noise-injection", "types": [kind], "amount": 0.2, "gradient": "exact"}))
        .to_vec();
    specs.extend([
        json!({"name": "crop", "size": 5}),
        json!({"name": "crop-resize", "size": 5, "resize": 48}),
        json!({"name": "resize-pad", "smallest": 40, "largest": 50, "padded": 56, "fill": 0.5}),
        json!({"name": "resize-pad", "smallest": 70, "largest": 80, "padded": 90, "resize": 31}),
        json!({"name": "rotation", "degrees": 180.0}),
        json!({"name": "noise-injection", "types": ["poisson"], "poisson_scale": "fixed", "gradient": "exact"}),
        json!({"name": "gaussian-blur", "kernel_min": 21, "kernel_max": 41, "sigma_max": 20.0, "gradient": "exact"}),
        json!({"name": "median-blur", "kernel_min": 1, "kernel_max": 25, "gradient": "exact"}),
        json!({"name": "swirl", "strength_min": -30.0, "strength_max": 30.0, "center_max": 40, "gradient": "exact"}),
        json!({"name": "quantisation", "scale_min": 1, "scale_max": 3}),
        json!({"name": "jpeg", "quality_min": 1, "quality_max": 100}),
        json!({"name": "stack", "of": bart, "order": "random"}),
        json!({"name": "stack", "of": bart, "order": "random", "pick": 3}),
        json!({"name": "stack", "of": bart, "order": "shared", "pick": 4}),
        json!({"name": "stack", "of": bart, "order": "fixed", "first": 4, "pick": 2}),
        json!({"name": "stack", "of": crops, "order": "random"}),
        json!({"name": "stack", "of": [quantisation, {"name": "rotation"}, {"name": "none"}], "order": "random"}),
    ]);
    specs.into_iter().map(|spec| serde_json::from_value(spec).unwrap()).collect()
}

/// How near the kernels come: the largest difference, on the scale of the largest number, and which share of the numbers may
/// differ more.
///
/// Kernels do the CPU's arithmetic in its order, and every operation is rounded on its own: the same bits, but for two. A
/// blur's gradient is summed line by line where the CPU sums rectangles. The Fourier transform is a product of matrices where
/// the CPU's is a fast one; single pixels that near to a bound are clipped on one side alone, and in a barrage quantised to
/// another level.
fn tolerance(spec: &Spec) -> (f32, f64) {
    match spec {
        Spec::GaussianBlur(_) => (3e-7, 0.0),
        Spec::Fft(_) => (1e-6, 2e-4),
        Spec::Stack(stack) if stack.of.iter().any(|of| matches!(of, Spec::Fft(_))) => (2e-6, 1e-3),
        Spec::Stack(stack) if stack.of.iter().any(|of| matches!(of, Spec::GaussianBlur(_))) => (1e-6, 0.0),
        _ => (0.0, 0.0),
    }
}

/// What is wrong, if anything.
fn misfit(spec: &Spec, what: &str, found: &Tensor, expected: &Tensor) -> Option<String> {
    assert_eq!(found.dims(), expected.dims(), "{spec:?} {what}");
    let (near, share) = tolerance(spec);
    let (found, expected) = (numbers(found), numbers(expected));
    let scale = expected.iter().fold(1.0f32, |scale, x| scale.max(x.abs()));
    let difference = |i: &usize| (found[*i] - expected[*i]).abs();
    let is_far = |i: &usize| difference(i).is_nan() || difference(i) > near * scale;
    let far: Vec<usize> = (0..found.len()).filter(is_far).collect();
    let most = far.iter().map(difference).fold(0.0, f32::max);
    (far.len() as f64 > share * found.len() as f64).then(|| {
        let (first, few) = (far[0], far.len());
        format!("{spec:?} {what}: {few} of {} differ, by up to {most:e}, the first at {first}", found.len())
    })
}

/// Output and, where it is exact, gradient; `None` where the images are too small.
fn behaviour(spec: &Spec, x: &Tensor, keys: &[Key]) -> Option<(Tensor, Option<Tensor>)> {
    let out = spec.build().apply(x, keys).ok()?;
    let exact = spec.build().gradient() == Gradient::Exact;
    let back = exact.then(|| pullback(spec.build(), x, keys, &signed_like(&out)).unwrap());
    Some((out, back))
}

#[test]
#[expect(clippy::print_stderr, reason = "why a test is skipped")]
fn kernels_do_what_the_cpu_does() {
    let mut wrong = vec![];
    for spec in Spec::examples().into_iter().chain(more()) {
        let mut fitted = 0;
        for dims in SHAPES {
            let (x, keys) = (images(dims), keys(3, dims[0]));
            let Some((out, back)) = behaviour(&spec, &x, &keys) else { continue };
            let Some(found) = on_host(|| behaviour(&spec, &x, &keys)) else {
                return eprintln!("skipped: no C++ compiler to run the kernels with");
            };
            let (found_out, found_back) = found.unwrap_or_else(|| panic!("{spec:?} fails on the device"));
            wrong.extend(misfit(&spec, &format!("of {dims:?}"), &found_out, &out));
            if let (Some(found), Some(expected)) = (found_back, back) {
                wrong.extend(misfit(&spec, &format!("gradient of {dims:?}"), &found, &expected));
            }
            fitted += 1;
        }
        assert!(fitted > 0, "{spec:?} fits no image");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_batch_stays_on_the_device() {
    let (x, keys) = (images(SHAPES[1]), keys(5, 4));
    let mut leave = vec![];
    for spec in Spec::examples().into_iter().chain(more()) {
        let before = ON_HOST.get();
        if on_host(|| behaviour(&spec, &x, &keys)).is_none() {
            return;
        }
        if ON_HOST.get() != before && !leave.contains(&spec.name()) {
            leave.push(spec.name());
        }
        // The same on the host is seen.
        assert!(behaviour(&spec, &x, &keys).is_none() || spec.name() == "none" || ON_HOST.get() > before, "{spec:?}");
    }
    assert_eq!(leave, LEAVE_THE_DEVICE);
}

#[test]
fn another_key_draws_another_and_an_image_the_same_in_any_batch() {
    let x = images(SHAPES[1]);
    for spec in Spec::examples().into_iter().chain(more()) {
        let apply = |x: &Tensor, keys: &[Key]| on_host(|| spec.build().apply(x, keys));
        let Some(all) = apply(&x, &keys(8, 4)) else { return };
        let Ok(all) = all else { continue };
        let other = apply(&x, &keys(9, 4)).unwrap().unwrap();
        assert_eq!(numbers(&all) == numbers(&other), ["none", "block-dct"].contains(&spec.name()), "{spec:?}");
        let one = apply(&x.narrow(0, 2, 1).unwrap(), &keys(8, 4)[2..3]).unwrap().unwrap();
        assert_eq!(numbers(&one), numbers(&all.narrow(0, 2, 1).unwrap()), "{spec:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_on_the_device_too() {
    for spec in Spec::examples() {
        let defense = spec.build();
        let refused = on_host(|| {
            assert_eq!(defense.apply(&images([0, 2, 6, 5]), &[]).unwrap().dims()[0], 0, "{spec:?}");
            if defense.gradient() == Gradient::Exact {
                let back = defense.exact_pullback(&images([2, 2, 6, 5]), &keys(1, 2), &images([1, 2, 6, 5]));
                assert!(back.is_err(), "{spec:?}");
            }
            defense.apply(&images([2, 2, 6, 5]), &keys(1, 3)).unwrap_err().to_string()
        });
        assert!(refused.is_none_or(|error| error.contains("2 images with 3 keys")), "{spec:?}");
    }
}

/// A defense of which nobody has written kernels: twice the pixels.
struct Double;

impl Kernel for Double {
    fn forward<F: Pixel>(&self, x: &[F], _: Shape, _: Key, out: &mut Canvas<'_, F>) {
        out.rest().iter_mut().zip(x).for_each(|(out, &x)| *out = x + x);
    }

    fn backward<F: Pixel>(&self, _: &[F], _: Shape, _: Key, upstream: &[F], out: &mut [F]) {
        out.iter_mut().zip(upstream).for_each(|(out, &upstream)| *out = upstream + upstream);
    }
}

#[test]
fn a_defense_without_kernels_leaves_the_device() {
    let (x, keys, before) = (images(SHAPES[0]), keys(1, 5), ON_HOST.get());
    let both = || [kernel::forward(&Double, &x, &keys), kernel::backward(&Double, &x, &keys, &x)];
    for out in on_host(both).into_iter().flatten() {
        assert_eq!(numbers(&out.unwrap()), numbers(&(&x + &x).unwrap()));
        assert!(ON_HOST.get() > before);
    }
}

#[test]
fn distinct_values_are_counted_image_by_image() {
    // At and beside powers of two; zeros of both signs are one value. More images than tables.
    let level = |levels: usize, i: usize| match i % levels {
        0 if i / levels % 2 == 1 => -0.0,
        rest => rest as f32 / levels as f32,
    };
    let pixels = [16, 17, 1, 1024, 1025].iter().flat_map(|&levels| (0..1600).map(move |i| level(levels, i)));
    let x = Tensor::from_vec(pixels.collect::<Vec<f32>>(), (5, 1, 40, 40), &Device::Cpu).unwrap();
    let poisson: Spec = serde_json::from_value(json!({"name": "noise-injection", "types": ["poisson"]})).unwrap();
    let apply = || numbers(&poisson.build().apply(&x, &keys(4, 5)).unwrap());
    assert!(on_host(apply).is_none_or(|found| found == apply()));
}
