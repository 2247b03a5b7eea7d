//! Weights of an architecture: from a file's tensors, or fresh.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use game::Key;
use nets::{Weights, weights::Error};

use crate::{Spec, catalogue::Family, names, resample, vit::Head};

/// Every tensor that a network needs, by name and shape, in the order in which it asks for them.
///
/// # Errors
/// If there is no such network.
pub fn parameters(spec: &Spec) -> candle_core::Result<Vec<(String, Vec<usize>)>> {
    let asked = Arc::default();
    let builder = VarBuilder::from_backend(Box::new(Recorder(Arc::clone(&asked))), DType::F32, Device::Cpu);
    let family = spec.check().and_then(|()| spec.family()).map_err(candle_core::Error::msg)?;
    family.build(spec.side, spec.classes, &builder)?;
    drop(builder);
    Ok(std::mem::take(&mut *asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner)))
}

type Asked = Arc<Mutex<Vec<(String, Vec<usize>)>>>;

/// Has every tensor that it is asked for, and remembers which.
struct Recorder(Asked);

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let mut asked = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        asked.push((name.to_owned(), shape.dims().to_vec()));
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("the shape of `{name}` is not known")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// The tensors that a network needs, under its own names (timm's).
///
/// Names of the Hugging Face library, of torchvision and of the authors' own files are understood, prefixes such as `module.`
/// are dropped, and separate queries, keys and values joined. Position embeddings of a DINOv2 are resampled to the grid of
/// `spec.side`. Half-precision tensors become f32. `path` is only named in errors.
///
/// # Errors
/// If there is no such network, tensors are missing, misshapen or left over, or hold NaN, infinities or negative variances.
pub fn prepare(spec: &Spec, weights: Weights, path: &Path) -> Result<Weights, Error> {
    let damaged = |cause: candle_core::Error| Error::Damaged { path: path.into(), cause: brief(&cause) };
    let misfit = |cause: String| Error::Misfit { path: path.into(), cause };
    let family = spec.check().and_then(|()| spec.family()).map_err(|fault| misfit(fault.to_string()))?;
    let needed = parameters(spec).map_err(damaged)?;
    let mut found = names::rename(&family, weights, &needed).map_err(misfit)?;
    names::join(&mut found).map_err(damaged)?;
    let (mut prepared, mut missing, mut wrong) = (Weights::new(), Vec::new(), Vec::new());
    for (name, shape) in &needed {
        match found.remove(name).map(|tensor| adapted(&family, name, tensor, shape)).transpose().map_err(damaged)? {
            None => missing.push(format!("`{name}` {shape:?}")),
            Some(tensor) if tensor.dims() != &shape[..] => {
                wrong.push(format!("`{name}` is {:?}, not {shape:?}", tensor.dims()));
            }
            Some(tensor) if !tensor.dtype().is_float() => {
                wrong.push(format!("`{name}` holds {}, not floating-point numbers", tensor.dtype().as_str()));
            }
            Some(tensor) => drop(prepared.insert(name.clone(), tensor)),
        }
    }
    let left: Vec<String> = found.iter().map(|(name, tensor)| format!("`{name}` {:?}", tensor.dims())).collect();
    if !(missing.is_empty() && wrong.is_empty() && left.is_empty()) {
        return Err(misfit(told(&spec.architecture, &missing, &wrong, &left)));
    }
    let dtype = if prepared.values().any(|tensor| tensor.dtype() == DType::F64) { DType::F64 } else { DType::F32 };
    for (name, tensor) in &mut prepared {
        *tensor = tensor.to_dtype(dtype).and_then(|tensor| tensor.contiguous()).map_err(damaged)?;
        if let Some(value) = invalid(name, tensor).map_err(damaged)? {
            return Err(Error::Invalid { path: path.into(), name: name.clone(), value });
        }
    }
    Ok(prepared)
}

/// Both sides of a misfit, two names of each.
fn told(architecture: &str, missing: &[String], wrong: &[String], left: &[String]) -> String {
    let list = |what: &str, names: &[String]| {
        let more = if names.len() > 2 { format!(" and {} more", names.len() - 2) } else { String::new() };
        (!names.is_empty()).then(|| format!("{what}{}{more}", names[..names.len().min(2)].join(", ")))
    };
    let parts =
        [list("", wrong), list(&format!("`{architecture}` also needs "), missing), list("the file also holds ", left)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// A tensor in the shape that is needed, where the difference means nothing: ones among the dimensions, as of a linear layer
/// written as a convolution, and DINOv2's grid of positions.
fn adapted(family: &Family, name: &str, tensor: Tensor, shape: &[usize]) -> candle_core::Result<Tensor> {
    let bare = |dims: &[usize]| dims.iter().copied().filter(|&dim| dim != 1).collect::<Vec<_>>();
    if tensor.dims() != shape && bare(tensor.dims()) == bare(shape) {
        return tensor.reshape(shape);
    }
    if let (Family::Vit(config), "pos_embed", &[1, tokens, c]) = (family, name, tensor.dims())
        && config.last == Head::TokenAndMean
        && tokens > 1
        && shape[2] == c
        && shape[1] != tokens
    {
        let (from, to) = ((tokens - 1).isqrt(), (shape[1] - 1).isqrt());
        if from * from + 1 == tokens && tensor.dtype().is_float() {
            return resample::places(&tensor, from, to);
        }
    }
    Ok(tensor)
}

/// The first number that no trained network holds.
fn invalid(name: &str, tensor: &Tensor) -> candle_core::Result<Option<f64>> {
    let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let variance = name.ends_with("running_var");
    Ok(values.into_iter().find(|value| !value.is_finite() || (variance && *value < 0.0)))
}

/// An error's first line: candle appends a backtrace.
fn brief(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Fresh f32 weights on the CPU: matrices normal with variance `1 / inputs`, kernels with `2 / inputs` (He et al. 2015), tokens
/// and positions with deviation .02, normalisations the identity, scales one. The `i`-th tensor depends on `key.at(i)` alone.
///
/// They are for trying a pipeline: no network is trained here.
///
/// # Errors
/// If there is no such network, or memory runs out.
pub fn initialise(spec: &Spec, key: Key) -> candle_core::Result<Weights> {
    let mut weights = Weights::new();
    for (name, shape) in parameters(spec)? {
        let mut values = vec![0.0f32; shape.iter().product()];
        let inputs = shape.iter().skip(1).product::<usize>();
        if shape.len() > 1 {
            key.at(weights.len() as u64).fill_normal(&mut values);
            let small = name.ends_with("_token") || name == "pos_embed";
            let gain = if shape.len() == 4 { 2.0 } else { 1.0 };
            let deviation = if small { 0.02 } else { (gain / inputs as f64).sqrt() as f32 };
            values.iter_mut().for_each(|value| *value *= deviation);
        } else if ["weight", "gamma", "running_var"].iter().any(|part| name.ends_with(part)) && !name.contains("grn") {
            values.fill(1.0);
        }
        weights.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
    }
    Ok(weights)
}
