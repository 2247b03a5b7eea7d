//! Every operation beside the same composed of candle's, and beside finite differences, in double precision.

use candle_core::{Device, Tensor, Var};
use game::{Key, Phase};

use super::*;

fn random(shape: &[usize], of: u64) -> Tensor {
    let mut values = vec![0.0f32; shape.iter().product()];
    Key::root(of).phase(Phase::Init).fill_normal(&mut values);
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The output, and the gradient of its product with fixed numbers.
fn run(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> (Tensor, Tensor) {
    let x = Var::from_tensor(x).unwrap();
    let out = f(x.as_tensor()).unwrap();
    let upstream = random(out.dims(), 99);
    let gradients = (&out * upstream).unwrap().sum_all().unwrap().backward().unwrap();
    (out.detach(), gradients.get(x.as_tensor()).unwrap().clone())
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn agree(
    what: &str,
    x: &Tensor,
    ours: impl Fn(&Tensor) -> Result<Tensor>,
    composed: impl Fn(&Tensor) -> Result<Tensor>,
) {
    let (ours, composed) = (run(x, ours), run(x, composed));
    let (forward, backward) = (distance(&ours.0, &composed.0), distance(&ours.1, &composed.1));
    assert!(forward < 1e-11 && backward < 1e-11, "{what}: {forward:e} forward, {backward:e} backward");
    assert!(ours.1.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap() > 1e-3, "{what}: no gradient");
}

fn check<M: Map>(map: M, x: &[usize]) {
    agree(M::NAME, &random(x, 1), |x| map.apply(x), |x| map.composed(x));
}

#[test]
fn custom_operations_are_what_candle_composes() {
    check(Linear { weight: random(&[7, 5], 2), bias: random(&[7], 3) }, &[2, 3, 5]);
    check(Linear { weight: random(&[7, 5], 2), bias: random(&[7], 3) }, &[2, 5]);
    check(LayerNorm { weight: random(&[37], 2), bias: random(&[37], 3), eps: 1e-6 }, &[2, 3, 37]);
    check(GlobalResponse { weight: random(&[6], 2), bias: random(&[6], 3) }, &[2, 4, 6]);
    check(Attention { heads: 2 }, &[2, 5, 18]);
    for function in [Pointwise::Gelu, Pointwise::Silu, Pointwise::Sigmoid] {
        check(function, &[2, 40]);
    }
    agree("swap", &random(&[2, 19, 33], 1), swap, |x| x.transpose(1, 2)?.contiguous());
}

#[test]
fn a_gate_passes_gradients_to_planes_and_to_gates() {
    let (planes, gates) = (random(&[2, 3, 4, 5], 1), random(&[2, 3], 2));
    agree("planes", &planes, |x| gate(x, &gates), |x| gate::composed(x, &gates));
    agree("gates", &gates, |g| gate(&planes, g), |g| gate::composed(&planes, g));
}

#[test]
fn a_silent_channel_has_a_finite_gradient() {
    let map = GlobalResponse { weight: random(&[3], 2), bias: random(&[3], 3) };
    let x = random(&[1, 4, 3], 1).broadcast_mul(&Tensor::new(&[1.0, 0.0, 1.0], &Device::Cpu).unwrap()).unwrap();
    let gradient = run(&x, |x| map.apply(x)).1.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert!(gradient.iter().all(|value| value.is_finite()));
}

#[test]
fn operations_follow_finite_differences() {
    fn differences<M: Map>(map: M, shape: &[usize]) {
        let x = random(shape, 1);
        let (_, gradient) = run(&x, |x| map.apply(x));
        let (direction, step) = (random(shape, 5), 1e-5);
        let loss = |sign: f64| {
            let out = map.apply(&(&x + (&direction * (sign * step)).unwrap()).unwrap()).unwrap();
            (&out * random(out.dims(), 99)).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
        };
        let numeric = (loss(1.0) - loss(-1.0)) / (2.0 * step);
        let exact = (gradient * direction).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!((numeric - exact).abs() < 1e-7 * (1.0 + exact.abs()), "{}: {numeric} for {exact}", M::NAME);
    }
    differences(LayerNorm { weight: random(&[37], 2), bias: random(&[37], 3), eps: 1e-6 }, &[2, 3, 37]);
    differences(GlobalResponse { weight: random(&[6], 2), bias: random(&[6], 3) }, &[2, 4, 6]);
    differences(Attention { heads: 3 }, &[2, 5, 18]);
    differences(Pointwise::Gelu, &[2, 40]);
    differences(Pointwise::Silu, &[2, 40]);
}
