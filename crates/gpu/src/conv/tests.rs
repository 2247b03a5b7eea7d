use candle_core::{Device, Var};
use game::Key;

use super::*;

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    Key::root(seed).fill_normal(&mut values);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

fn gap(x: &Tensor, y: &Tensor) -> f64 {
    assert_eq!(x.dims(), y.dims());
    let gap = (x.to_dtype(DType::F64).unwrap() - y.to_dtype(DType::F64).unwrap()).unwrap();
    gap.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// The result and both gradients, of a fixed upstream gradient.
fn gradients(x: &Tensor, w: &Tensor, conv: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> [Tensor; 3] {
    let (x, w) = (Var::from_tensor(x).unwrap(), Var::from_tensor(w).unwrap());
    let y = conv(&x, &w).unwrap();
    let upstream = random(9, y.dims()).to_dtype(y.dtype()).unwrap();
    let found = (&y * upstream).unwrap().sum_all().unwrap().backward().unwrap();
    [y.detach(), found.get(&x).unwrap().clone(), found.get(&w).unwrap().clone()]
}

/// Side, kernel, padding, stride and groups for which candle's own backward pass is right: those whose last window ends at
/// the border.
const CASES: [[usize; 5]; 7] = [
    [9, 3, 1, 1, 1],
    [9, 3, 1, 2, 1],
    [8, 1, 0, 1, 2],
    [7, 1, 0, 2, 1],
    [9, 3, 1, 1, 6],
    [9, 5, 0, 2, 2],
    [11, 7, 3, 2, 1],
];

#[test]
fn all_three_are_candles() {
    for [size, kernel, padding, stride, groups] in CASES {
        let (x, w) = (random(1, &[2, 6, size, size]), random(2, &[12, 6 / groups, kernel, kernel]));
        let ours = gradients(&x, &w, |x, w| conv2d(x, w, [padding; 2], stride, groups, Precision::F32));
        let candles = gradients(&x, &w, |x, w| x.conv2d(w, padding, stride, 1, groups));
        for (ours, candles) in ours.iter().zip(&candles) {
            assert!(gap(ours, candles) < 1e-11, "{size} {kernel} {stride} {groups}: {}", gap(ours, candles));
        }
    }
}

#[test]
fn gradients_are_finite_differences_where_candle_has_none() {
    // Oblong kernels and padding, and a last window that leaves a row and a column unread.
    let (x, w) = (random(1, &[1, 4, 8, 7]), random(2, &[2, 2, 1, 3]));
    let conv = |x: &Tensor, w: &Tensor| conv2d(x, w, [0, 1], 3, 2, Precision::F32);
    let [y, dx, dw] = gradients(&x, &w, conv);
    assert_eq!(y.dims(), [1, 2, 3, 3]);
    let upstream = random(9, y.dims());
    let along = |x: &Tensor, w: &Tensor| -> f64 {
        (conv(x, w).unwrap() * &upstream).unwrap().sum_all().unwrap().to_scalar().unwrap()
    };
    let (to_x, to_w) = (random(3, x.dims()), random(4, w.dims()));
    // Linear in each, so a whole step is exact.
    let inner = |a: &Tensor, b: &Tensor| -> f64 { (a * b).unwrap().sum_all().unwrap().to_scalar().unwrap() };
    let step_x = along(&(&x + &to_x).unwrap(), &w) - along(&x, &w);
    assert!((step_x - inner(&dx, &to_x)).abs() < 1e-11);
    let step_w = along(&x, &(&w + &to_w).unwrap()) - along(&x, &w);
    assert!((step_w - inner(&dw, &to_w)).abs() < 1e-11);
}

#[test]
fn frozen_weights_have_no_gradient() {
    let (x, w) = (Var::from_tensor(&random(1, &[1, 2, 4, 4])).unwrap(), random(2, &[2, 2, 3, 3]));
    let y = conv2d(&x, &w, [1, 1], 1, 1, Precision::F32).unwrap();
    let found = y.sum_all().unwrap().backward().unwrap();
    assert!(found.get(&x).is_some() && found.get(&w).is_none());
}

#[test]
fn operands_need_not_be_contiguous() {
    let (x, w) = (random(1, &[2, 3, 5, 6]), random(2, &[4, 3, 3, 2]));
    let turned = |t: &Tensor| t.transpose(2, 3).unwrap();
    let turn = |x: &Tensor, w: &Tensor| conv2d(&turned(x), &turned(w), [1, 1], 1, 1, Precision::F32);
    let straight = |x: &Tensor, w: &Tensor| turned(&conv2d(x, w, [1, 1], 1, 1, Precision::F32)?).contiguous();
    assert!(gap(&turn(&x, &w).unwrap(), &straight(&x, &w).unwrap()) < 1e-12);
}

#[test]
fn bf16_rounds_factors_and_result_and_nothing_else_changes() {
    let (x, w) = (random(1, &[2, 8, 6, 6]), random(2, &[4, 8, 3, 3]));
    let (x32, w32) = (x.to_dtype(DType::F32).unwrap(), w.to_dtype(DType::F32).unwrap());
    let rounded = gradients(&x32, &w32, |x, w| conv2d(x, w, [1, 1], 1, 1, Precision::Bf16));
    let full = gradients(&x32, &w32, |x, w| conv2d(x, w, [1, 1], 1, 1, Precision::F32));
    for (rounded, full) in rounded.iter().zip(&full) {
        assert_eq!(rounded.dtype(), DType::F32);
        let largest = full.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let gap = gap(rounded, full) / f64::from(largest);
        assert!((1e-4..2e-2).contains(&gap), "{gap}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, w) = (random(1, &[1, 3, 4, 4]), random(2, &[2, 3, 5, 5]));
    for (padding, stride, groups) in [([0, 0], 1, 1), ([1, 1], 1, 2), ([1, 1], 0, 1), ([1, 1], 1, 0)] {
        let error = conv2d(&x, &w, padding, stride, groups, Precision::F32).unwrap_err();
        assert!(error.to_string().contains("do not fit"), "{error}");
    }
    let error = conv2d(&x, &w.to_dtype(DType::F32).unwrap(), [1, 1], 1, 1, Precision::F32).unwrap_err();
    assert!(error.to_string().contains("F32"), "{error}");
}
