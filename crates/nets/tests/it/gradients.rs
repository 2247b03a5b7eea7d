//! Gradients by central differences in f64.

use candle_core::{DType, Device, Result, Tensor, Var};
use game::{Classifier, Key};
use nets::{
    Network, Padding, Precision, Trainee,
    ops::{self, Activation, Frozen, Window},
};

use crate::{gradient, images, keys, normal, spec, trained};

/// Checks the gradient of a random projection of `f` with respect to each of `arguments`, along random directions.
///
/// The step is small enough that no activation changes sides; the comparison fails where one does.
fn check(what: &str, arguments: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let variables: Vec<Var> = arguments.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let inputs: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let out = f(&inputs).unwrap();
    let projection = normal(Key::root(77), out.dims(), DType::F64);
    let value = |inputs: &[Tensor]| -> f64 {
        (f(inputs).unwrap() * &projection).unwrap().sum_all().unwrap().to_scalar().unwrap()
    };
    let gradients = (out * &projection).unwrap().sum_all().unwrap().backward().unwrap();
    for (index, argument) in arguments.iter().enumerate() {
        let gradient = gradients.get(&variables[index]).expect("a gradient for each argument");
        assert_eq!(gradient.dims(), argument.dims(), "{what}, argument {index}");
        for direction in 0..3 {
            let direction = normal(Key::root(direction).at(index as u64), argument.dims(), DType::F64);
            let at = |step: f64| {
                let mut moved = arguments.to_vec();
                moved[index] = (argument + (&direction * step).unwrap()).unwrap();
                value(&moved)
            };
            let step = 1e-6;
            let numeric = (at(step) - at(-step)) / (2.0 * step);
            let exact: f64 = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar().unwrap();
            let tolerance = 1e-6 * (1.0 + numeric.abs());
            assert!((numeric - exact).abs() < tolerance, "{what}, argument {index}: {numeric} against {exact}");
        }
    }
}

const ACTIVATIONS: [Activation; 4] =
    [Activation::None, Activation::Relu, Activation::Relu6, Activation::LeakyRelu { slope: 0.1 }];

fn random(seed: u64, shape: &[usize]) -> Tensor {
    normal(Key::root(100).at(seed), shape, DType::F64)
}

#[test]
fn convolutions_of_every_shape_have_right_gradients() {
    let asymmetric = Padding { top: 0, bottom: 1, left: 2, right: 1 };
    for (size, inputs, outputs, kernel, stride, padding, groups) in [
        ([7, 7], 3, 4, [3, 3], 1, Padding::same(1), 1),
        ([8, 7], 3, 4, [3, 3], 2, Padding::same(1), 1),
        ([7, 8], 3, 4, [3, 3], 2, asymmetric, 1),
        ([9, 6], 4, 6, [1, 1], 1, Padding::same(0), 1),
        ([9, 6], 4, 6, [1, 1], 2, Padding::same(0), 1),
        ([13, 10], 3, 4, [7, 7], 2, Padding::same(3), 1),
        ([11, 8], 2, 3, [5, 5], 3, asymmetric, 1),
        ([8, 9], 4, 6, [3, 3], 2, Padding::same(1), 2),
        ([6, 5], 4, 4, [3, 3], 1, Padding::same(1), 4),
        ([7, 6], 4, 4, [3, 3], 2, asymmetric, 4),
        ([6, 6], 3, 6, [3, 3], 1, Padding::same(1), 3),
        ([1, 1], 5, 3, [1, 1], 1, Padding::same(0), 1),
        ([2, 2], 3, 2, [3, 3], 2, Padding::same(1), 1),
        ([6, 9], 3, 4, [1, 7], 1, Padding { left: 3, right: 3, ..Padding::default() }, 1),
        ([9, 6], 3, 4, [7, 1], 1, Padding { top: 3, bottom: 3, ..Padding::default() }, 1),
        ([7, 8], 4, 2, [1, 3], 2, asymmetric, 2),
        ([8, 7], 4, 4, [3, 2], 1, Padding { top: 2, bottom: 0, left: 1, right: 0 }, 4),
        ([8, 7], 2, 3, [2, 5], 1, Padding { top: 0, bottom: 3, left: 4, right: 5 }, 1),
    ] {
        let what =
            format!("{size:?} {inputs}->{outputs} kernel {kernel:?} stride {stride} {padding:?} groups {groups}");
        let window = Window { stride, padding, groups };
        let x = random(1, &[3, inputs, size[0], size[1]]);
        let weight = random(2, &[outputs, inputs / groups, kernel[0], kernel[1]]);
        let bias = random(3, &[outputs]);
        check(&what, &[x.clone(), weight.clone()], |a| ops::conv2d(&a[0], &a[1], None, window));
        check(&what, &[x.clone(), weight.clone(), bias.clone()], |a| ops::conv2d(&a[0], &a[1], Some(&a[2]), window));
        for activation in ACTIVATIONS {
            let frozen = Frozen {
                weight: weight.clone(),
                bias: Some(bias.clone()),
                window,
                activation,
                precision: Precision::F32,
            };
            let y = frozen.apply(&x, None).unwrap().zeros_like().unwrap();
            let y = random(4, y.dims());
            check(&what, std::slice::from_ref(&x), |a| frozen.apply(&a[0], None));
            check(&what, &[x.clone(), y], |a| frozen.apply(&a[0], Some(&a[1])));
        }
    }
}

#[test]
fn frozen_and_trained_convolutions_agree_with_candle_and_with_a_direct_sum() {
    let (x, weight) = (random(1, &[2, 4, 9, 8]), random(2, &[6, 2, 3, 3]));
    let window = Window { stride: 2, padding: Padding::same(1), groups: 2 };
    let ours = ops::conv2d(&x, &weight, None, window).unwrap();
    let candle = x.conv2d(&weight, 1, 2, 1, 2).unwrap();
    assert!(crate::difference(&candle, &ours) < 1e-14);

    let padding = Padding { top: 0, bottom: 1, left: 2, right: 1 };
    let window = Window { stride: 2, padding, groups: 4 };
    let weight = random(3, &[4, 1, 3, 3]);
    let ours = ops::conv2d(&x, &weight, None, window).unwrap();
    assert_eq!(ours.dims(), [2, 4, 4, 5]);
    let (x, weight) = (x.to_vec4(), weight.to_vec4());
    let (image, channel, y, column) = (1, 2, 3, 4usize);
    let mut sum = 0.0;
    for (ky, weights) in weight[channel][0].iter().enumerate() {
        for (kx, weight) in weights.iter().enumerate() {
            let (row, column) = (2 * y + ky, (2 * column + kx).wrapping_sub(2));
            if row < 9 && column < 8 {
                sum += x[image][channel][row][column] * weight;
            }
        }
    }
    let found: f64 = ours.get(1).unwrap().get(2).unwrap().get(3).unwrap().get(4).unwrap().to_scalar().unwrap();
    assert!((found - sum).abs() < 1e-13);
}

trait ToVec4 {
    fn to_vec4(&self) -> Vec<Vec<Vec<Vec<f64>>>>;
}

impl ToVec4 for Tensor {
    fn to_vec4(&self) -> Vec<Vec<Vec<Vec<f64>>>> {
        (0..self.dim(0).unwrap()).map(|i| self.get(i).unwrap().to_vec3().unwrap()).collect()
    }
}

#[test]
fn pools_have_right_values_and_gradients() {
    for (size, kernel, stride, padding) in [
        ([8, 8], 3, 2, 1),
        ([7, 10], 3, 2, 1),
        ([9, 8], 2, 2, 0),
        ([7, 7], 3, 1, 1),
        ([8, 5], 3, 3, 0),
        ([6, 7], 2, 3, 1),
    ] {
        let x = random(5, &[2, 3, size[0], size[1]]);
        check("max-pool", std::slice::from_ref(&x), |a| ops::max_pool(&a[0], kernel, stride, padding));
        check("average-pool", &[x], |a| ops::average_pool(&a[0], kernel, stride, padding));
    }
    // Padding never wins, even where all is negative.
    let x = (random(5, &[1, 1, 5, 5]).abs().unwrap() * -1.0).unwrap();
    let top: f64 = ops::max_pool(&x, 3, 2, 1).unwrap().max_all().unwrap().to_scalar().unwrap();
    assert!(top < 0.0);
    assert!(ops::max_pool(&x, 9, 2, 1).is_err() && ops::average_pool(&x, 9, 2, 1).is_err());

    let x = random(6, &[2, 3, 7, 8]);
    check("subsample", std::slice::from_ref(&x), |a| ops::subsample(&a[0], 2, 1, 2));
    let small = ops::subsample(&x, 2, 1, 2).unwrap();
    assert_eq!(small.dims(), [2, 6, 4, 4]);
    assert_eq!(small.to_vec4()[1][2][3][1], x.to_vec4()[1][1][6][2]);
    assert_eq!(small.to_vec4()[1][0][3][1], 0.0);
    check("average", &[x], |a| ops::global_average_pool(&a[0]));
}

#[test]
fn operations_on_whole_images_have_right_gradients() {
    let x = random(16, &[3, 2, 5, 4]);
    let keys: Vec<Key> = (0..3).map(|image| Key::root(17).at(image)).collect();
    check("standardise", std::slice::from_ref(&x), |a| ops::standardise(&a[0]));
    // A deviation below the least, of which only the mean moves.
    check("standardise-flat", &[(&x * 0.01).unwrap()], |a| ops::standardise(&a[0]));
    for share in [0.1, 0.5, 1.0] {
        check("keep-largest", std::slice::from_ref(&x), |a| ops::keep_largest(&a[0], share));
    }
    for samples in [0.3, 2.0] {
        // The steps are too small for any value to be kept on one side only: the difference freezes the mask.
        check("prune", std::slice::from_ref(&x), |a| ops::prune(&a[0], samples, &keys));
        let mask = ops::prune(&x, samples, &keys).unwrap().ne(0.0).unwrap().to_dtype(DType::F64).unwrap();
        let kept: f64 = mask.mean_all().unwrap().to_scalar().unwrap();
        assert!(0.05 < kept && kept < 0.95, "{kept}");
        // The same by candle's own operations, the mask a constant.
        let formula = |x: &Tensor| {
            let magnitude = x.abs()?;
            let share = magnitude.broadcast_div(&magnitude.sum_keepdim((1, 2, 3))?)?;
            let keep = (1.0 - (share * (-samples * 40.0))?.exp()?)?;
            (x / (keep + 1e-8)?)? * &mask
        };
        let projection = random(18, x.dims());
        let gradient = |f: &dyn Fn(&Tensor) -> Result<Tensor>| {
            let x = Var::from_tensor(&x).unwrap();
            let value = (f(x.as_tensor()).unwrap() * &projection).unwrap().sum_all().unwrap();
            value.backward().unwrap().get(&x).unwrap().clone()
        };
        let (expected, found) = (gradient(&formula), gradient(&|x| ops::prune(x, samples, &keys)));
        assert!(crate::difference(&expected, &found) < 1e-12);
    }
}

#[test]
fn layers_without_planes_have_right_gradients() {
    let (x, y) = (random(7, &[2, 3, 4, 5]), random(8, &[2, 3, 4, 5]));
    for activation in ACTIVATIONS {
        check("activation", &[(&x * 5.0).unwrap()], |a| ops::activate(&a[0], activation));
        check("sum", &[x.clone(), y.clone()], |a| ops::add(&a[0], &a[1], activation));
        let affine = ops::Affine {
            centre: vec![0.1, 0.2, 0.3],
            scale: vec![-1.0, 5.0, 0.5],
            shift: vec![0.0, 1.0, 2.0],
            activation,
        };
        check("affine", std::slice::from_ref(&x), |a| affine.apply(&a[0]));
    }
    let (x, weight, bias) = (random(9, &[4, 5]), random(10, &[3, 5]), random(11, &[3]));
    check("linear", &[x.clone(), weight.clone(), bias.clone()], |a| ops::linear(&a[0], &a[1], &a[2]));
    let expected = x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
    assert!(crate::difference(&expected, &ops::linear(&x, &weight, &bias).unwrap()) < 1e-14);
}

#[test]
fn batch_normalisation_differentiates_its_statistics() {
    let (x, gamma, beta) = (random(12, &[3, 4, 5, 3]), random(13, &[4]), random(14, &[4]));
    for activation in ACTIVATIONS {
        check("batch-norm", &[x.clone(), gamma.clone(), beta.clone()], |a| {
            Ok(ops::batch_norm(&a[0], &a[1], &a[2], 1e-5, activation)?.0)
        });
    }
    let far = (x * 1e-3).unwrap() + 1000.0;
    let (out, _) =
        ops::batch_norm(&far.unwrap(), &gamma.ones_like().unwrap(), &beta.zeros_like().unwrap(), 0.0, Activation::None)
            .unwrap();
    let (mean, square): (f64, f64) =
        (out.mean_all().unwrap().to_scalar().unwrap(), out.sqr().unwrap().mean_all().unwrap().to_scalar().unwrap());
    assert!(mean.abs() < 1e-9 && (square - 1.0).abs() < 1e-6, "{mean} {square}");
}

#[test]
fn cross_entropy_is_right_where_the_network_is_certain() {
    let logits = (random(15, &[4, 5]) * 3.0).unwrap();
    let labels = [0, 4, 2, 2];
    check("cross-entropy", &[logits], |a| nets::train::cross_entropy(&a[0], &labels));

    // In f32: p_y rounds to one, yet loss and gradient have seven right digits.
    let certain = Var::new(&[[30.0f32, 0.0, -1.0]], &Device::Cpu).unwrap();
    let loss = nets::train::cross_entropy(certain.as_tensor(), &[0]).unwrap();
    let exact = ((-30.0f64).exp() + (-31.0f64).exp()).ln_1p();
    assert!((loss.to_vec1::<f32>().unwrap()[0] as f64 / exact - 1.0).abs() < 1e-6);
    let gradients = loss.sum_all().unwrap().backward().unwrap();
    let found = gradients.get(&certain).unwrap().to_vec2::<f32>().unwrap()[0][0];
    assert!((f64::from(found) / -exact - 1.0).abs() < 1e-6, "{found} {exact}");
    assert!(nets::train::cross_entropy(certain.as_tensor(), &[3]).is_err());
}

#[test]
fn input_gradients_of_every_architecture_are_right() {
    for (json, size) in [
        (r#"{"name": "cifar-resnet", "depth": 8, "width": 5}"#, [11, 14]),
        (r#"{"name": "cifar-resnet", "depth": 14, "width": 4, "shortcut": "B"}"#, [17, 16]),
        (r#"{"name": "resnet", "depth": 18, "classes": 7}"#, [33, 38]),
        (r#"{"name": "resnet", "depth": 34, "classes": 7, "stem": "cifar"}"#, [9, 8]),
        (r#"{"name": "resnet", "depth": 50, "classes": 7}"#, [34, 31]),
        (r#"{"name": "mobilenet-v2", "classes": 7, "width": 0.25}"#, [33, 30]),
        (r#"{"name": "mobilenet-v2", "classes": 7, "width": 0.25, "padding": "same"}"#, [32, 64]),
        (r#"{"name": "wide-resnet", "depth": 14, "width": 1, "classes": 7}"#, [8, 12]),
        (r#"{"name": "efficientnet-lite", "variant": 0, "classes": 7}"#, [33, 30]),
        (r#"{"name": "densenet", "depth": 121, "classes": 7}"#, [33, 38]),
        (r#"{"name": "cifar-densenet", "depth": 22, "classes": 7}"#, [12, 9]),
        (r#"{"name": "vgg", "depth": 11, "hidden": 20, "classes": 7}"#, [33, 70]),
        (r#"{"name": "vgg", "depth": 13, "batch_norm": true, "head": "cifar", "classes": 7}"#, [32, 34]),
        (r#"{"name": "wrn", "depth": 10, "width": 2, "classes": 7}"#, [9, 12]),
        (r#"{"name": "preact-resnet", "depth": 18, "classes": 7}"#, [9, 8]),
        (r#"{"name": "preact-resnet", "depth": 18, "shortcut": "input", "final_norm": false, "classes": 7}"#, [8, 9]),
        (r#"{"name": "preact-resnet", "depth": 50, "classes": 7}"#, [8, 9]),
        (
            r#"{"name": "cifar-resnet", "depth": 14, "width": 4, "activation": {"name": "k-winners-take-all", "share": 0.2}}"#,
            [11, 12],
        ),
    ] {
        let graph = spec(json).graph().unwrap();
        // Statistics that fit the activations keep the gradient from vanishing.
        let mut trainee = Trainee::new(&graph, &trained(&graph, Key::root(3), DType::F64), &Device::Cpu).unwrap();
        let others = images(Key::root(9), &[4, 3, size[0], size[1]], DType::F64);
        for _ in 0..60 {
            trainee.logits(&others).unwrap();
        }
        let network = Network::new(&graph, &trainee.weights().unwrap(), &Device::Cpu).unwrap();
        let x = images(Key::root(4), &[2, 3, size[0], size[1]], DType::F64);
        let upstream = normal(Key::root(5), &[2, graph.classes], DType::F64);
        let gradient = gradient(&network, &x, &upstream).unwrap();
        let value = |x: &Tensor| -> f64 {
            let logits = network.logits(x, &keys(2)).unwrap();
            (logits * &upstream).unwrap().sum_all().unwrap().to_scalar().unwrap()
        };
        for direction in 0..3 {
            let direction = normal(Key::root(6).at(direction), x.dims(), DType::F64);
            let exact: f64 = (&gradient * &direction).unwrap().sum_all().unwrap().to_scalar().unwrap();
            // Of thousands of activations some may change sides within a step, and too small a step drowns in
            // rounding: one of them has to be right.
            let error = [1e-5, 1e-6, 1e-7, 1e-8].map(|step| {
                let at = |step: f64| value(&(&x + (&direction * step).unwrap()).unwrap());
                let numeric = (at(step) - at(-step)) / (2.0 * step);
                (numeric - exact).abs()
                    / (1e-3 * gradient.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap() + numeric.abs())
            });
            assert!(error.iter().any(|&error| error < 1e-5), "{json}: {error:?}");
        }
    }
}
