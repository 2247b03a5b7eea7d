//! The networks against finite differences, other implementations and real data.

#![allow(clippy::print_stderr, reason = "tests that skip say so")]

mod checkpoints;
mod device;
mod families;
mod gradients;
mod invariance;
mod oracle;
mod real;
mod resize;
mod stream;
mod table2;
mod training;
mod weights;

use candle_core::{DType, Device, Result, Tensor};
use game::{Classifier, Key};
use nets::{Graph, Spec, Weights};

/// A normal tensor.
fn normal(key: Key, shape: &[usize], dtype: DType) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    key.fill_normal(&mut values);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// Images with pixels in `[0, 1]`.
fn images(key: Key, shape: &[usize], dtype: DType) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    key.fill_uniform(&mut values);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// A network as after some training: statistics and shifts are not those of initialisation.
fn trained(graph: &Graph, key: Key, dtype: DType) -> Weights {
    let mut weights = nets::weights::initialise(graph, key).unwrap();
    for (index, (name, tensor)) in weights.iter_mut().enumerate() {
        let noise = normal(key.at(1000 + index as u64), tensor.dims(), DType::F32);
        let changed = match name.rsplit('.').next() {
            Some("running_var") => noise.abs().and_then(|noise| noise + 0.5),
            Some("running_mean") => noise * 0.3,
            Some("bias") => noise * 0.3,
            Some("weight") if tensor.rank() == 1 => noise.affine(0.2, 0.8),
            _ => Ok(tensor.clone()),
        };
        *tensor = changed.unwrap();
    }
    weights.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap())).collect()
}

fn spec(json: &str) -> Spec {
    serde_json::from_str(json).unwrap()
}

fn keys(n: usize) -> Vec<Key> {
    vec![Key::root(0); n]
}

/// The gradient of `sum of logits * upstream`.
fn gradient(network: &dyn Classifier, x: &Tensor, upstream: &Tensor) -> Result<Tensor> {
    network.input_gradient(x, &keys(x.dim(0)?), &mut |_| Ok(upstream.clone()))
}

fn vector(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The largest difference of two tensors, relative to the largest number of the first.
fn difference(expected: &Tensor, found: &Tensor) -> f64 {
    assert_eq!(expected.dims(), found.dims());
    let (expected, found) = (vector(expected), vector(found));
    let scale = expected.iter().fold(0.0f64, |scale, x| scale.max(x.abs()));
    expected.iter().zip(&found).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max) / scale
}
