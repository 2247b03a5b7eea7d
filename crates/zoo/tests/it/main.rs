//! The catalogue's networks beside timm's and candle's, and their gradients beside finite differences.

mod candle;
mod gradients;
mod timm;

use candle_core::{DType, Device, Result, Tensor};
use nets::Weights;
use zoo::{Spec, Zoo};

/// Numbers in `[0, 1)` that depend on a name (FNV-1a) and a position alone: those of golden.py.
fn uniform(name: &str, count: usize) -> Vec<f64> {
    let seed = name.bytes().fold(2_166_136_261u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(16_777_619));
    let number = |position: usize| {
        let mut x = (position as u32).wrapping_mul(2_654_435_761).wrapping_add(seed);
        for (shift, factor) in [(16, 0x7FEB_352D), (15, 0x846C_A68B), (16, 1)] {
            x = (x ^ (x >> shift)).wrapping_mul(factor);
        }
        f64::from(x) / 2f64.powi(32)
    };
    (0..count).map(number).collect()
}

/// The weights that golden.py gives a tensor of timm's.
fn weight(name: &str, shape: &[usize]) -> Tensor {
    let vector = shape.iter().filter(|&&dim| dim > 1).count() < 2;
    let inputs = shape.iter().skip(1).product::<usize>() as f64;
    let of = |u: f64| match name {
        _ if name.ends_with("running_var") => 0.5 + u,
        _ if name.ends_with("running_mean") || name.ends_with("bias") => 0.4 * u - 0.2,
        _ if name.contains("grn") => u - 0.5,
        _ if name.ends_with("gamma") || (vector && name.ends_with("weight")) => 0.6 + 0.8 * u,
        _ if name.ends_with("_token") || name == "pos_embed" => u - 0.5,
        _ => (2.0 * u - 1.0) * (3.0 / inputs).sqrt(),
    };
    let values: Vec<f64> = uniform(name, shape.iter().product()).into_iter().map(of).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// All weights of a network, in double precision.
fn weights(spec: &Spec) -> Weights {
    let named = |(name, shape): (String, Vec<usize>)| (name.clone(), weight(&name, &shape));
    zoo::parameters(spec).unwrap().into_iter().map(named).collect()
}

/// Images of the network's size, in double precision.
fn images(spec: &Spec, count: usize) -> Tensor {
    let values = uniform("image", count * 3 * spec.side * spec.side);
    Tensor::from_vec(values, (count, 3, spec.side, spec.side), &Device::Cpu).unwrap()
}

/// What the loss's gradient with respect to the logits is, whatever they are.
fn upstream(logits: &Tensor) -> Result<Tensor> {
    let values = uniform("upstream", logits.elem_count()).into_iter().map(|u| 2.0 * u - 1.0).collect::<Vec<f64>>();
    Tensor::from_vec(values, logits.shape(), &Device::Cpu)?.to_dtype(logits.dtype())
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn network(spec: &Spec) -> Zoo {
    Zoo::new(spec, &weights(spec), &Device::Cpu).unwrap()
}
