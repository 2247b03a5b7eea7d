//! Every architecture of the catalogue, small: gradients by finite differences, and that there are any.

use game::Classifier;

use super::*;

/// The architecture with few channels and blocks, for small images.
fn small(name: &str) -> Spec {
    let mut spec = Spec::of(name).unwrap();
    let family = name.trim_start_matches("tf-").split('-').next().unwrap();
    (spec.side, spec.width, spec.depth) = match family {
        "vit" | "deit" | "dinov2" => {
            let patch = name.split("patch").nth(1).unwrap().split('-').next().unwrap();
            (2 * patch.parse::<usize>().unwrap(), 0.0625, 0.1)
        }
        "convnext" | "convnextv2" => (64, 0.1, 0.1),
        "efficientnet" => (37, 0.1, 0.1),
        _ => (41, 0.1, 0.5),
    };
    spec.classes = 5;
    spec
}

fn loss(net: &Zoo, x: &Tensor) -> f64 {
    let logits = net.logits(x, &[]).unwrap();
    (&logits * upstream(&logits).unwrap()).unwrap().sum_all().unwrap().to_scalar().unwrap()
}

#[test]
fn gradients_are_those_of_finite_differences_and_none_is_zero() {
    for name in zoo::architectures() {
        let spec = small(&name);
        let (net, x) = (network(&spec), images(&spec, 2));
        let gradient = net.input_gradient(&x, &[], &mut upstream).unwrap();
        let values = numbers(&gradient);
        let silent = values.iter().filter(|&&value| value == 0.0).count();
        assert!(silent * 50 < values.len(), "{name}: {silent} of {} numbers of the gradient are zero", values.len());
        let direction: Vec<f64> = uniform("direction", values.len()).into_iter().map(|u| 2.0 * u - 1.0).collect();
        let exact: f64 = values.iter().zip(&direction).map(|(g, d)| g * d).sum();
        let direction = Tensor::from_vec(direction, x.shape(), &Device::Cpu).unwrap();
        let at = |step: f64| loss(&net, &(&x + (&direction * step).unwrap()).unwrap());
        let scale = values.iter().map(|g| g * g).sum::<f64>().sqrt();
        // A long step may cross a kink of a ReLU, and a short one loses digits: the best of them tells.
        let steps = [1e-5, 1e-6, 1e-7, 1e-8];
        let numeric = steps.map(|step| (at(step) - at(-step)) / (2.0 * step));
        let nearest = numeric.iter().map(|numeric| (numeric - exact).abs()).fold(f64::INFINITY, f64::min);
        assert!(nearest < 1e-5 * scale, "{name}: {numeric:?} by differences, {exact} by autograd");
    }
}

#[test]
fn an_image_has_the_same_numbers_in_any_batch() {
    for name in [
        "vit-tiny-patch16-224",
        "dinov2-small-patch14-224",
        "convnextv2-atto",
        "tf-efficientnet-b0",
        "mobilenetv4-conv-small",
    ] {
        let spec = small(name);
        let single = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap();
        let weights = weights(&spec).into_iter().map(|(name, tensor)| (name, single(&tensor))).collect();
        let net = Zoo::new(&spec, &weights, &Device::Cpu).unwrap();
        let x = single(&images(&spec, 5));
        let ask = |x: &Tensor| {
            let mut ones = |logits: &Tensor| logits.ones_like();
            (net.logits(x, &[]).unwrap(), net.input_gradient(x, &[], &mut ones).unwrap())
        };
        let (logits, gradient) = ask(&x);
        for image in 0..5 {
            let (one, its) = ask(&x.narrow(0, image, 1).unwrap());
            assert_eq!(numbers(&one), numbers(&logits.narrow(0, image, 1).unwrap()), "{name}");
            assert_eq!(numbers(&its), numbers(&gradient.narrow(0, image, 1).unwrap()), "{name}");
        }
    }
}
