//! Weights in files, and fresh weights.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor, pickle};
use game::Key;

use crate::{Graph, Op, Weights, spec::names};

/// What is wrong with a file of weights; the text names the file and the mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The file is not what its name says.
    #[error("{}: {cause}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and the mend.
        cause: String,
    },
    /// The tensors are not those of the network.
    #[error("{}: these are not the weights of this network: {cause}", path.display())]
    Misfit {
        /// The file.
        path: PathBuf,
        /// The first few tensors that are missing, misshapen or left over.
        cause: String,
    },
    /// A tensor holds NaN or an infinity, or a variance that is negative.
    #[error("{}: tensor `{name}` holds {value}: the network was spoilt when it was saved", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The first such tensor.
        name: String,
        /// Its first such value.
        value: f64,
    },
}

impl Error {
    /// Whether the numbers are invalid, rather than the file.
    #[must_use]
    pub const fn is_invalid_numbers(&self) -> bool {
        matches!(self, Self::Invalid { .. })
    }
}

/// Where torch checkpoints keep their weights, if not at the top.
const NESTS: [&str; 8] = ["state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params"];

/// Reads the tensors of a safetensors file or of a torch checkpoint (`.pth`, `.pt`, `.th`, `.bin`), as they are, on
/// the CPU.
///
/// A checkpoint is parsed as data: nothing in it is executed. The weights may lie at its top or under a usual key, as
/// `state_dict`.
///
/// # Errors
/// If the file is missing, damaged, of another format, or holds no tensor.
pub fn load(path: &Path) -> Result<Weights, Error> {
    // A missing file is told apart from a damaged one.
    fs::File::open(path).map_err(|cause| Error::File { path: path.into(), cause })?;
    let damaged = |cause: String| Error::Damaged { path: path.into(), cause };
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let weights = match extension {
        "safetensors" => candle_core::safetensors::load(path, &Device::Cpu)
            .map(Weights::from_iter)
            .map_err(|cause| damaged(format!("not a whole safetensors file ({})", brief(&cause)))),
        "pth" | "pt" | "th" | "bin" | "ckpt" | "tar" => checkpoint(path).map_err(damaged),
        _ => Err(damaged("weights are .safetensors files, or torch checkpoints named .pth or .pt".into())),
    }?;
    if weights.is_empty() {
        return Err(damaged("it holds no tensor where one is looked for: at its top, or under `state_dict`".into()));
    }
    Ok(weights)
}

/// An error's first line: candle appends a backtrace.
fn brief(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The tensors of a torch checkpoint.
fn checkpoint(path: &Path) -> Result<Weights, String> {
    let read = |key: Option<&str>| -> Result<Weights, String> {
        // The reader panics on some damaged files.
        let read = std::panic::catch_unwind(|| pickle::read_all_with_key(path, key));
        match read {
            Ok(Ok(tensors)) => Ok(tensors.into_iter().collect()),
            Ok(Err(cause)) => Err(brief(&cause)),
            Err(_) => Err("its pickle is damaged".into()),
        }
    };
    let explain = |cause: String| {
        format!(
            "not a torch checkpoint that can be read ({cause}); if PyTorch reads it, save its state_dict again with \
             torch.save, or as safetensors"
        )
    };
    let top = read(None).map_err(explain)?;
    if !top.is_empty() {
        return Ok(top);
    }
    Ok(NESTS.iter().filter_map(|key| read(Some(key)).ok()).find(|found| !found.is_empty()).unwrap_or_default())
}

/// The metadata of a safetensors file.
///
/// # Errors
/// If the file is missing or damaged.
pub fn metadata(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let bytes = fs::read(path).map_err(|cause| Error::File { path: path.into(), cause })?;
    match safetensors::SafeTensors::read_metadata(&bytes) {
        Ok((_, header)) => Ok(header.metadata().clone().unwrap_or_default().into_iter().collect()),
        Err(cause) => {
            Err(Error::Damaged { path: path.into(), cause: format!("not a whole safetensors file ({cause})") })
        }
    }
}

/// The tensors that a graph needs, under the graph's names.
///
/// Prefixes such as `module.` are dropped, timm's names of MobileNetV2 and the names that CIFAR ResNets after
/// `kuangliu/pytorch-cifar` give their shortcuts and last layer are taken for torchvision's, and `num_batches_tracked`
/// and Inception's auxiliary classifier are ignored. Half-precision tensors become f32. `path` is only named in errors.
///
/// # Errors
/// If tensors are missing, misshapen or left over, or hold NaN, infinities or negative variances.
pub fn prepare(graph: &Graph, weights: Weights, path: &Path) -> Result<Weights, Error> {
    let needed = graph.parameters();
    let mut found: Weights = weights
        .into_iter()
        .filter(|(name, _)| !name.ends_with("num_batches_tracked") && !name.contains("AuxLogits."))
        .filter(|(name, _)| !names::is_unused(name))
        .map(|(name, tensor)| (rename(&name, |name| needed.iter().any(|(n, _)| n == name)), tensor))
        .collect();
    names::take_normalisation(graph, &mut found).map_err(|cause| Error::Misfit { path: path.into(), cause })?;
    let mut prepared = Weights::new();
    let mut faults = Vec::new();
    for (name, shape) in &needed {
        match found.remove(name) {
            None => faults.push(format!("`{name}` {shape:?} is missing")),
            Some(tensor) if tensor.dims() != &shape[..] => {
                faults.push(format!("`{name}` is {:?}, not {shape:?}", tensor.dims()));
            }
            Some(tensor) if !tensor.dtype().is_float() => {
                faults.push(format!("`{name}` holds {}, not floating-point numbers", tensor.dtype().as_str()));
            }
            Some(tensor) => {
                prepared.insert(name.clone(), tensor);
            }
        }
    }
    faults.extend(found.keys().map(|name| format!("`{name}` is not part of it")));
    if !faults.is_empty() {
        let more = faults.len().saturating_sub(5);
        faults.truncate(5);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        return Err(Error::Misfit { path: path.into(), cause: faults.join("; ") + &more });
    }
    let dtype = if prepared.values().any(|t| t.dtype() == DType::F64) { DType::F64 } else { DType::F32 };
    for (name, tensor) in &mut prepared {
        let damaged = |cause: candle_core::Error| Error::Damaged { path: path.into(), cause: brief(&cause) };
        *tensor = tensor.to_dtype(dtype).and_then(|t| t.contiguous()).map_err(damaged)?;
        if let Some(value) = invalid(name, tensor).map_err(damaged)? {
            return Err(Error::Invalid { path: path.into(), name: name.clone(), value });
        }
    }
    Ok(prepared)
}

/// The first number that no trained network holds.
fn invalid(name: &str, tensor: &Tensor) -> candle_core::Result<Option<f64>> {
    let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let variance = name.ends_with("running_var");
    Ok(values.into_iter().find(|v| !v.is_finite() || (variance && *v < 0.0)))
}

/// The graph's name of a tensor, if it has one.
fn rename(name: &str, needed: impl Fn(&str) -> bool) -> String {
    // `1.module.` is a network behind a normalisation layer, both inside DataParallel.
    const PREFIXES: [&str; 5] = ["module.", "1.module.", "model.", "_orig_mod.", "net."];
    let mut short = name;
    while !needed(short) {
        let renamed = timm_mobilenet(short).or_else(|| kuangliu_resnet(short));
        let renamed = renamed.filter(|renamed| needed(renamed)).or_else(|| names::known(short, &needed));
        if let Some(renamed) = renamed {
            return renamed;
        }
        match PREFIXES.iter().find_map(|prefix| short.strip_prefix(prefix)) {
            Some(rest) => short = rest,
            None => return name.to_owned(),
        }
    }
    short.to_owned()
}

/// torchvision's name for a tensor of a ResNet that is named as in `kuangliu/pytorch-cifar`; none if it is not one.
fn kuangliu_resnet(name: &str) -> Option<String> {
    match name.strip_prefix("linear.") {
        Some(part) => Some(format!("fc.{part}")),
        None => name.contains(".shortcut.").then(|| name.replacen(".shortcut.", ".downsample.", 1)),
    }
}

/// torchvision's name for a tensor of timm's `mobilenetv2`; none if it is not one.
fn timm_mobilenet(name: &str) -> Option<String> {
    // The first feature of each stage.
    const STAGES: [usize; 7] = [1, 2, 4, 7, 11, 14, 17];
    let (layer, part) = name.rsplit_once('.')?;
    let renamed = match layer {
        "conv_stem" => "features.0.0".to_owned(),
        "bn1" => "features.0.1".to_owned(),
        "bn2" => "features.18.1".to_owned(),
        "conv_head" => "features.18.0".to_owned(),
        "classifier" => "classifier.1".to_owned(),
        _ => {
            let mut parts = layer.strip_prefix("blocks.")?.splitn(3, '.');
            let (stage, block): (usize, usize) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let place = match (stage, parts.next()?) {
                (0, "conv_dw") => "0.0",
                (0, "bn1") => "0.1",
                (0, "conv_pw") => "1",
                (0, "bn2") => "2",
                (_, "conv_pw") => "0.0",
                (_, "bn1") => "0.1",
                (_, "conv_dw") => "1.0",
                (_, "bn2") => "1.1",
                (_, "conv_pwl") => "2",
                (_, "bn3") => "3",
                _ => return None,
            };
            format!("features.{}.conv.{place}", STAGES.get(stage)? + block)
        }
    };
    Some(format!("{renamed}.{part}"))
}

/// Writes weights and metadata as a safetensors file, whole or not at all.
///
/// Equal weights and metadata give equal bytes.
///
/// # Errors
/// If a tensor is not f32 or f64, or the file cannot be written.
pub fn save(path: &Path, weights: &Weights, metadata: &BTreeMap<String, String>) -> Result<(), Error> {
    let bytes = serialise(weights, metadata).map_err(|cause| Error::Damaged {
        path: path.into(),
        cause: format!("cannot be written: {}", brief(&cause)),
    })?;
    let file = |cause| Error::File { path: path.into(), cause };
    let draft = path.with_file_name(format!("{}{}", drafts(path), std::process::id()));
    let written = (|| {
        let mut out = fs::File::create(&draft)?;
        out.write_all(&bytes)?;
        out.sync_all()?;
        fs::rename(&draft, path)
    })();
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&draft);
    }
    written.map_err(file)
}

/// How the names of drafts of a file begin; they end with their writer's process.
fn drafts(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes the drafts that writers of this file left when they were killed. None of them may still be at work.
pub fn remove_drafts(path: &Path) {
    let Some(Ok(entries)) = path.parent().map(fs::read_dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&drafts(path)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The safetensors format: the header's length, the header in JSON, the data. Written by hand because the crate keeps
/// metadata in a hash map, whose order changes from run to run.
fn serialise(weights: &Weights, metadata: &BTreeMap<String, String>) -> candle_core::Result<Vec<u8>> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!(metadata));
    let mut data = Vec::new();
    // Wide types first, so that every tensor is aligned.
    for dtype in [DType::F64, DType::I64, DType::F32] {
        for (name, tensor) in weights.iter().filter(|(_, tensor)| tensor.dtype() == dtype) {
            let (begin, flat) = (data.len(), tensor.flatten_all()?);
            match dtype {
                DType::F64 => data.extend(flat.to_vec1::<f64>()?.into_iter().flat_map(f64::to_le_bytes)),
                DType::I64 => data.extend(flat.to_vec1::<i64>()?.into_iter().flat_map(i64::to_le_bytes)),
                _ => data.extend(flat.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes)),
            }
            let kind = dtype.as_str().to_uppercase();
            let entry = serde_json::json!({"dtype": kind, "shape": tensor.dims(), "data_offsets": [begin, data.len()]});
            header.insert(name.clone(), entry);
        }
    }
    if header.len() != weights.len() + 1 {
        candle_core::bail!("weights are f32 or f64");
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    Ok(bytes)
}

/// Fresh f32 weights on the CPU: convolutions normal with variance `2 / (outputs * kernel^2)` (He et al. 2015, fan-out),
/// linear layers uniform within `1 / sqrt(inputs)` (as PyTorch's), normalisations the identity.
///
/// Tensor `i` of [`Graph::parameters`] depends on `key.at(i)` alone.
///
/// # Errors
/// If memory runs out.
pub fn initialise(graph: &Graph, key: Key) -> candle_core::Result<Weights> {
    let mut weights = Weights::new();
    for op in graph.nodes.iter().map(|node| &node.op) {
        for (name, shape) in op.parameters() {
            let key = key.at(weights.len() as u64);
            let mut values = vec![0.0; shape.iter().product()];
            match op {
                Op::Conv(conv) if shape.len() == 4 => {
                    let deviation = (2.0 / (conv.outputs * conv.kernel.iter().product::<usize>()) as f64).sqrt() as f32;
                    key.fill_normal(&mut values);
                    values.iter_mut().for_each(|v| *v *= deviation);
                }
                Op::Linear { inputs, .. } => {
                    let bound = (1.0 / (*inputs as f64).sqrt()) as f32;
                    key.fill_uniform(&mut values);
                    values.iter_mut().for_each(|v| *v = (2.0 * *v - 1.0) * bound);
                }
                Op::BatchNorm { .. } if name.ends_with(".weight") || name.ends_with(".running_var") => values.fill(1.0),
                _ => {}
            }
            weights.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
    }
    Ok(weights)
}
