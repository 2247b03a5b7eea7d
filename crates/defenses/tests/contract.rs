//! What every defense promises, asked of the whole catalogue.

mod golden;

use candle_core::{DType, Device, Tensor};
use defenses::{GaussianNoise, Noise, Order, Rotation, Spec, Stack};
use game::{Defense, Gradient, Key, pullback};
use serde_json::{Value, json};

/// Defenses without chance.
const CERTAIN: [&str; 2] = ["none", "block-dct"];

/// Images `(n, 2, 6, 5)` of pixels in `[0, 1]`.
fn images(n: usize, dtype: DType) -> Tensor {
    let mut pixels = vec![0.0f32; n * 60];
    Key::root(99).fill_uniform(&mut pixels);
    Tensor::from_vec(pixels, (n, 2, 6, 5), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn keys(seed: u64, n: usize) -> Vec<Key> {
    (0..n as u64).map(|image| Key::root(seed).at(image)).collect()
}

/// Numbers of either sign, shaped like `x`.
fn signed_like(x: &Tensor) -> Tensor {
    let mut numbers = vec![0.0f32; x.elem_count()];
    Key::root(98).fill_normal(&mut numbers);
    Tensor::from_vec(numbers, x.dims(), &Device::Cpu).unwrap().to_dtype(x.dtype()).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The output, and the gradient an attack gets, under some keys.
fn behaviour(defense: &dyn Defense, x: &Tensor, keys: &[Key]) -> (Vec<f64>, Vec<f64>) {
    attempt(defense, x, keys).unwrap()
}

/// The same, unless parameters and images do not fit.
fn attempt(defense: &dyn Defense, x: &Tensor, keys: &[Key]) -> candle_core::Result<(Vec<f64>, Vec<f64>)> {
    let out = defense.apply(x, keys)?;
    let back = pullback(defense, x, keys, &signed_like(&out))?;
    assert_eq!((back.dims(), back.dtype(), out.dtype()), (x.dims(), x.dtype(), x.dtype()));
    Ok((values(&out), values(&back)))
}

/// Whether every step of the gradient is the true derivative.
fn is_exact(spec: &Spec) -> bool {
    match spec {
        Spec::Stack(stack) => stack.of.iter().all(is_exact),
        // A count has no derivative: its mean's stands in.
        Spec::NoiseInjection(injection) if injection.types.contains(&Noise::Poisson) => false,
        _ => spec.build().gradient() == Gradient::Exact,
    }
}

#[test]
fn the_catalogue_is_whole_and_its_examples_make_sense() {
    let bart = ["noise-injection", "gaussian-blur", "median-blur", "swirl", "quantisation", "fft"];
    let others = ["crop", "crop-resize", "resize-pad", "jpeg", "block-dct"];
    assert_eq!(
        Spec::NAMES,
        [&["none", "gaussian-noise", "rotation"], &bart[..], &others[..], &["program", "stack"]].concat()
    );
    // What a program does is nobody's to test before it is started.
    for name in Spec::NAMES.iter().filter(|name| **name != "program") {
        assert!(Spec::examples().iter().any(|spec| spec.name() == *name), "{name} has no example");
    }
    for spec in Spec::examples() {
        spec.check().unwrap();
        let slug = spec.slug();
        assert!(slug.starts_with(spec.name()) && slug.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{slug}");
    }
}

#[test]
fn the_same_key_draws_the_same_and_another_key_another() {
    let x = images(4, DType::F32);
    for spec in Spec::examples() {
        let defense = spec.build();
        let once = behaviour(defense, &x, &keys(1, 4));
        assert_eq!(once, behaviour(defense, &x, &keys(1, 4)), "{spec:?}");
        let other = behaviour(defense, &x, &keys(2, 4)).0;
        assert_eq!(once.0 == other, CERTAIN.contains(&spec.name()), "{spec:?}");
    }
}

#[test]
fn an_image_meets_the_same_defense_in_any_batch() {
    for dtype in [DType::F32, DType::F64] {
        let (x, keys) = (images(5, dtype), keys(3, 5));
        for spec in Spec::examples() {
            let defense = spec.build();
            let out = defense.apply(&x, &keys).unwrap();
            let upstream = signed_like(&out);
            let back = pullback(defense, &x, &keys, &upstream).unwrap();
            for i in [4, 0, 2] {
                let (x, key) = (x.narrow(0, i, 1).unwrap(), &keys[i..=i]);
                let alone = defense.apply(&x, key).unwrap();
                assert_eq!(values(&alone), values(&out.narrow(0, i, 1).unwrap()), "{spec:?}");
                let alone = pullback(defense, &x, key, &upstream.narrow(0, i, 1).unwrap()).unwrap();
                assert_eq!(values(&alone), values(&back.narrow(0, i, 1).unwrap()), "{spec:?}");
            }
        }
    }
}

#[test]
fn outputs_are_finite_and_their_shape_depends_on_no_key() {
    for x in
        [images(3, DType::F32), images(3, DType::F32).zeros_like().unwrap(), images(3, DType::F32).ones_like().unwrap()]
    {
        for spec in Spec::examples() {
            let out = spec.build().apply(&x, &keys(5, 3)).unwrap();
            assert!(values(&out).iter().all(|value| value.is_finite()), "{spec:?}");
            assert_eq!(out.dims(), spec.build().apply(&x, &keys(6, 3)).unwrap().dims(), "{spec:?}");
        }
    }
}

#[test]
fn nothing_is_computed_of_nothing_and_misfits_are_refused() {
    for spec in Spec::examples() {
        let defense = spec.build();
        assert_eq!(defense.apply(&images(0, DType::F32), &[]).unwrap().dims()[0], 0, "{spec:?}");
        let error = defense.apply(&images(2, DType::F32), &keys(1, 3)).unwrap_err().to_string();
        assert!(error.contains("2 images with 3 keys"), "{spec:?}: {error}");
        if defense.gradient() == Gradient::Exact {
            let error = defense.exact_pullback(&images(2, DType::F32), &keys(1, 2), &images(1, DType::F32));
            assert!(error.is_err(), "{spec:?}");
        }
    }
}

/// Every value that a field of named choices has; those of other fields do not parse.
const CHOICES: [&str; 11] = [
    "identity",
    "exact",
    "fixed",
    "random",
    "shared",
    "distinct-values",
    "as-coded",
    "corrected",
    "half-pixel",
    "align-corners",
    "asymmetric",
];

/// The other values worth trying for a field.
fn mutations(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(value) => vec![json!(!value)],
        Value::Number(number) if number.is_u64() => vec![json!(number.as_u64().unwrap() ^ 1)],
        Value::Number(number) => vec![json!(number.as_f64().unwrap() / 2.0)],
        Value::String(text) => {
            assert!(CHOICES.contains(&text.as_str()), "what else can `{text}` be? tell this test");
            CHOICES.iter().filter(|&choice| choice != text).map(|choice| json!(choice)).collect()
        }
        Value::Array(items) => vec![items[1..].into()],
        other => panic!("how can {other} change? tell this test"),
    }
}

#[test]
fn every_field_matters() {
    // The published code drew its rotations from +-45 degrees whatever `degree` said; no field may be ignored so.
    let x = images(8, DType::F32);
    for name in Spec::NAMES.iter().filter(|name| **name != "program") {
        let examples: Vec<Spec> = Spec::examples().into_iter().filter(|spec| spec.name() == *name).collect();
        let Value::Object(fields) = serde_json::to_value(&examples[0]).unwrap() else { panic!("{name} is no object") };
        for field in fields.keys().filter(|field| *field != "name") {
            let matters = examples.iter().any(|spec| {
                let before = serde_json::to_value(spec).unwrap();
                mutations(&before[field]).into_iter().any(|mutation| {
                    let mut after = before.clone();
                    after[field] = mutation;
                    let Ok(changed) = serde_json::from_value::<Spec>(after) else { return false };
                    behaviour(spec.build(), &x, &keys(8, 8))
                        != attempt(changed.build(), &x, &keys(8, 8)).unwrap_or_default()
                })
            });
            assert!(matters, "the field `{field}` of `{name}` changes nothing");
        }
    }
}

/// Fails unless a defense's gradient is the slope of `sum(upstream * output)` in every pixel, by central differences.
fn assert_slopes(spec: &Spec, x: &Tensor, keys: &[Key]) {
    let defense = spec.build();
    let upstream = signed_like(&defense.apply(x, keys).unwrap());
    let back = values(&pullback(defense, x, keys, &upstream).unwrap());
    let value = |pixels: Vec<f64>| -> f64 {
        let x = Tensor::from_vec(pixels, x.dims(), &Device::Cpu).unwrap();
        let out = values(&defense.apply(&x, keys).unwrap());
        out.iter().zip(values(&upstream)).map(|(out, upstream)| out * upstream).sum()
    };
    for i in 0..x.elem_count() {
        let moved = |h: f64| {
            let mut pixels = values(x);
            pixels[i] += h;
            value(pixels)
        };
        let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
        assert!((slope - back[i]).abs() < 1e-7, "{spec:?}, pixel {i}: {slope} {}", back[i]);
    }
}

#[test]
fn exact_gradients_are_true_and_identities_are_identities() {
    let (x, keys) = (images(3, DType::F64), keys(7, 3));
    for spec in Spec::examples() {
        let defense = spec.build();
        if defense.gradient() == Gradient::Identity {
            let upstream = signed_like(&defense.apply(&x, &keys).unwrap());
            assert_eq!(values(&pullback(defense, &x, &keys, &upstream).unwrap()), values(&upstream), "{spec:?}");
        } else if is_exact(&spec) {
            assert_slopes(&spec, &x, &keys);
        }
    }
}

#[test]
fn the_true_gradient_of_a_barrage_is_the_slope_of_its_output() {
    // Every transformation of BaRT with a derivative, in whatever order; no Poisson counts, and no quantisation.
    let exact = |name: &str, more: Value| {
        let mut spec = json!({"name": name, "gradient": "exact"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let noises = json!({"types": ["gaussian", "salt", "pepper", "salt-and-pepper", "speckle"]});
    let few = json!({"kernel_max": 5});
    let of = [
        exact("noise-injection", noises),
        exact("gaussian-blur", few.clone()),
        exact("median-blur", few),
        exact("swirl", json!({"center_max": 8})),
        exact("fft", json!({})),
    ];
    for order in ["random", "shared"] {
        let spec: Spec = serde_json::from_value(json!({"name": "stack", "of": of, "order": order})).unwrap();
        assert!(is_exact(&spec));
        assert_slopes(&spec, &images(6, DType::F64), &keys(17, 6));
    }
}

#[test]
fn parameters_survive_the_round_trip_and_default_where_absent() {
    for spec in Spec::examples() {
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec, "{text}");
    }
    let spec: Spec = serde_json::from_value(json!({"name": "rotation"})).unwrap();
    assert_eq!(spec, Rotation::default().into());
    let spec: Spec = serde_json::from_value(json!({"name": "rotation", "degrees": 45})).unwrap();
    assert_eq!(spec, Rotation { degrees: 45.0 }.into());
}

#[test]
fn mistakes_are_named_with_what_is_accepted() {
    let error = |value: Value| serde_json::from_value::<Spec>(value).unwrap_err().to_string();
    let unknown = error(json!({"name": "rotation", "degree": 45}));
    assert!(unknown.contains("unknown field `degree`, expected `degrees`"), "{unknown}");
    let unknown = error(json!({"name": "none", "degrees": 45}));
    assert!(unknown.contains("unknown field `degrees`"), "{unknown}");
    let unknown = error(json!({"name": "rotatoin"}));
    assert!(Spec::NAMES.iter().all(|name| unknown.contains(&format!("`{name}`"))), "{unknown}");
    let nested = error(json!({"name": "stack", "of": [{"name": "rotation", "angle": 1}]}));
    assert!(nested.contains("unknown field `angle`"), "{nested}");

    let refused = |spec: Spec| spec.check().unwrap_err();
    assert_eq!(
        refused(GaussianNoise { sigma: -0.5, ..Default::default() }.into()),
        "gaussian-noise: sigma = -0.5 must be a finite number of at least 0"
    );
    assert!(refused(Rotation { degrees: f64::NAN }.into()).contains("degrees = NaN"));
    assert!(refused(Stack { of: vec![], ..Default::default() }.into()).contains("picks from nothing"));
    assert!(refused(Stack { pick: 3, ..Default::default() }.into()).contains("pick = 3"));
    let inner = Stack { of: vec![Rotation { degrees: -1.0 }.into()], ..Default::default() };
    assert!(refused(inner.into()).contains("stack: rotation: degrees = -1"));
}

#[test]
fn noise_has_the_moments_it_promises() {
    let x = (images(1, DType::F64).zeros_like().unwrap() + 0.5).unwrap().repeat((2_000, 1, 1, 1)).unwrap();
    let keys = keys(13, 2_000);
    for sigma in [0.05, 0.25] {
        let out = values(&GaussianNoise { sigma, ..Default::default() }.apply(&x, &keys).unwrap());
        let n = out.len() as f64;
        let moment = |p: i32| out.iter().map(|out| ((out - 0.5) / sigma).powi(p)).sum::<f64>() / n;
        assert!(moment(1).abs() < 5.0 * (1.0 / n).sqrt());
        assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
    }
    // Half of the noise around a black pixel is clipped away, all of it inside [0, 1].
    let clipped = GaussianNoise { sigma: 0.1, clip: true, gradient: Gradient::Exact };
    let black = x.zeros_like().unwrap();
    let (out, back) = behaviour(&clipped, &black, &keys);
    let zeros = out.iter().filter(|&&out| out == 0.0).count() as f64 / out.len() as f64;
    assert!((zeros - 0.5).abs() < 5.0 * (0.25 / out.len() as f64).sqrt(), "{zeros}");
    assert!(out.iter().all(|out| (0.0..=1.0).contains(out)));
    assert!(out.iter().zip(&back).all(|(&out, &back)| (out == 0.0) == (back == 0.0)));
}

#[test]
fn a_stack_is_its_children_one_after_another() {
    let (x, keys) = (images(6, DType::F32), keys(21, 6));
    let (turn, noise) =
        (Rotation { degrees: 60.0 }, GaussianNoise { sigma: 0.5, clip: true, gradient: Gradient::Exact });
    let child = |place: u64| -> Vec<Key> { keys.iter().map(|key| key.at(1 + place)).collect() };
    let stack = Stack { of: vec![turn.clone().into(), noise.clone().into()], first: 0, pick: 0, order: Order::Fixed };
    let turned = turn.apply(&x, &child(0)).unwrap();
    let out = noise.apply(&turned, &child(1)).unwrap();
    let upstream = signed_like(&out);
    let back =
        turn.exact_pullback(&x, &child(0), &noise.exact_pullback(&turned, &child(1), &upstream).unwrap()).unwrap();
    assert_eq!(behaviour(&stack, &x, &keys), (values(&out), values(&back)));

    // In random order each image meets one of the two orders, with the same draws as in fixed order.
    let random = Stack { order: Order::Random, ..stack.clone() };
    let other = turn.apply(&noise.apply(&x, &child(1)).unwrap(), &child(0)).unwrap();
    let mixed = random.apply(&x, &keys).unwrap();
    let row = |x: &Tensor, i: usize| values(&x.narrow(0, i, 1).unwrap());
    let as_listed = (0..6).filter(|&i| row(&mixed, i) == row(&out, i)).count();
    let reversed = (0..6).filter(|&i| row(&mixed, i) == row(&other, i)).count();
    assert!(as_listed + reversed == 6 && as_listed > 0 && reversed > 0, "{as_listed} and {reversed}");
}

#[test]
fn a_shared_order_is_that_of_all_images_in_any_batch() {
    let x = images(6, DType::F32);
    let (turn, noise) = (Rotation { degrees: 60.0 }, GaussianNoise { sigma: 0.5, ..Default::default() });
    let stack = Stack { of: vec![turn.into(), noise.into()], first: 0, pick: 0, order: Order::Shared };
    let [listed, reversed] = [[0, 1], [1, 0]].map(|order| {
        let of = order.map(|place| (place, stack.of[place].clone()));
        move |x: &Tensor, keys: &[Key]| {
            of.iter().fold(x.clone(), |x, (place, spec)| {
                let keys: Vec<Key> = keys.iter().map(|key| key.at(1 + *place as u64)).collect();
                spec.build().apply(&x, &keys).unwrap()
            })
        }
    });
    let mut counts = [0; 2];
    for draw in 0..40 {
        // The images of a draw meet the same order, each with noise of its own, whatever stands beside them.
        let keys: Vec<Key> = (0..6).map(|id| Key::root(61).image(id).at(draw)).collect();
        let out = values(&stack.apply(&x, &keys).unwrap());
        let orders = [listed(&x, &keys), reversed(&x, &keys)].map(|x| values(&x) == out);
        assert!(orders[0] != orders[1], "{orders:?}");
        counts[usize::from(orders[1])] += 1;
        let mixed: Vec<Key> =
            (0..6).map(|id| if id == 3 { keys[3] } else { Key::root(62).image(id).at(draw) }).collect();
        let out = &out[3 * 60..][..60];
        assert_eq!(&values(&stack.apply(&x, &mixed).unwrap())[3 * 60..][..60], out);
    }
    assert!(counts.iter().all(|&count| count > 8), "{counts:?}"); // p = 2e-4
}

#[test]
fn a_stack_picks_every_choice_and_order_equally_often() {
    // Constant images tell three noises apart by scale: 1, 1e-3 and 1e-6 of noise leave their size as a signature.
    let noise = |sigma| GaussianNoise { sigma, ..Default::default() }.into();
    let stack = Stack { of: vec![noise(1.0), noise(1e-3), noise(1e-6)], first: 0, pick: 1, order: Order::Random };
    let n = 3_000;
    let x = images(1, DType::F64).zeros_like().unwrap().repeat((n, 1, 1, 1)).unwrap();
    let out = values(&stack.apply(&x, &keys(31, n)).unwrap());
    let mut counts = [0.0f64; 3];
    for image in out.chunks(60) {
        let size = (image.iter().map(|z| z * z).sum::<f64>() / 60.0).sqrt();
        counts[(-size.log10() / 3.0).round() as usize] += 1.0;
    }
    let expected = n as f64 / 3.0;
    let chi2: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
    assert!(chi2 < 20.0, "{counts:?}"); // p = 5e-5 with two degrees of freedom
}

#[test]
fn a_fixed_order_is_kept_whatever_is_picked() {
    let (x, keys) = (images(40, DType::F32), keys(51, 40));
    let of: Vec<Spec> = vec![
        Rotation { degrees: 60.0 }.into(),
        GaussianNoise { sigma: 0.5, clip: true, gradient: Gradient::Exact }.into(),
        Rotation { degrees: 20.0 }.into(),
    ];
    let child = |x: &Tensor, place: usize| -> Tensor {
        let keys: Vec<Key> = keys.iter().map(|key| key.at(1 + place as u64)).collect();
        of[place].build().apply(x, &keys).unwrap()
    };
    let pairs = [(0, 1), (0, 2), (1, 2)].map(|(first, second)| values(&child(&child(&x, first), second)));
    let stack = Stack { of: of.clone(), first: 0, pick: 2, order: Order::Fixed };
    let out = values(&stack.apply(&x, &keys).unwrap());
    let mut counts = [0; 3];
    for (i, image) in out.chunks(60).enumerate() {
        let pair = pairs.iter().position(|pair| &pair[i * 60..][..60] == image);
        counts[pair.expect("two of the three, in the order listed")] += 1;
    }
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
}

#[test]
fn a_gradient_stops_being_exact_only_where_a_child_says_so() {
    // Clipping declared as the identity: the stack's gradient is the rotation's transpose alone.
    let (x, keys) = (images(4, DType::F32), keys(41, 4));
    let clip = || GaussianNoise { sigma: 1.0, clip: true, gradient: Gradient::Identity }.into();
    let turn = Rotation { degrees: 60.0 };
    let stack = Stack { of: vec![clip(), turn.clone().into(), clip()], first: 0, pick: 0, order: Order::Fixed };
    let upstream = signed_like(&x);
    let child: Vec<Key> = keys.iter().map(|key| key.at(2)).collect();
    let expected = turn.exact_pullback(&x, &child, &upstream).unwrap();
    assert_eq!(values(&stack.exact_pullback(&x, &keys, &upstream).unwrap()), values(&expected));
}
