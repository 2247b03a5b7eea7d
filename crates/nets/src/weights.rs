//! Weights in files, and fresh weights.

mod fit;
mod names;
mod pickle;
mod stored;
mod torch;
mod tree;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use game::Key;

use crate::{Graph, Op, Weights};
use fit::Wanted;
use stored::{Kind, Numbers, Stored};
use torch::{Contents, Named};

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

/// A file of weights, read as data: every tensor that it holds. Nothing in it is executed.
///
/// Tensors may lie in dictionaries within dictionaries, for several networks beside one another, and beside what is no
/// weight: which of them a network is made of, [`Checkpoint::fit`] finds out.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    contents: Contents,
}

/// A network's weights, and what the file holds beside them.
#[derive(Debug)]
pub struct Fitted {
    /// The tensors that the graph needs, under the graph's names: f64 if any is that, otherwise f32; on the CPU.
    pub weights: Weights,
    /// Keys and prefixes before the names of the tensors that were taken; empty, or it ends with a dot.
    pub prefix: String,
    /// Names of the tensors that were left out.
    pub left_out: Vec<String>,
}

/// Opens a safetensors file or a torch checkpoint; the content tells which, not the name.
///
/// # Errors
/// If the file is missing, damaged, of another format, or holds no tensor.
pub fn open(path: &Path) -> Result<Checkpoint, Error> {
    let bytes = fs::read(path).map_err(|cause| Error::File { path: path.into(), cause })?;
    let damaged = |cause: String| Error::Damaged { path: path.into(), cause };
    let contents = if is_safetensors(&bytes, path) { flat(bytes) } else { checkpoint(bytes) }.map_err(damaged)?;
    if let ([], [class, ..]) = (contents.tensors.as_slice(), contents.modules.as_slice()) {
        return Err(damaged(format!(
            "it holds a whole module, pickled, of the class {class}, and no state_dict; where its code is at hand, save its \
             weights: torch.save(model.state_dict(), ...)"
        )));
    }
    if contents.tensors.is_empty() {
        return Err(damaged("it holds no tensor under a name".into()));
    }
    Ok(Checkpoint { path: path.into(), contents })
}

/// Reads every tensor of a file that holds one dictionary of them, under its own name, on the CPU; half-precision numbers
/// become f32.
///
/// # Errors
/// If the file is missing, damaged, of another format, or holds no tensor, several dictionaries, or other numbers.
pub fn load(path: &Path) -> Result<Weights, Error> {
    let Checkpoint { contents, .. } = open(path)?;
    let damaged = |cause: String| Error::Damaged { path: path.into(), cause };
    let mut weights = Weights::new();
    for Named { name, stored, .. } in contents.tensors {
        let tensor = stored.tensor().map_err(|cause| damaged(format!("tensor `{name}`: {cause}")))?;
        if weights.insert(name.clone(), tensor).is_some() {
            return Err(damaged(format!("it holds `{name}` more than once, in several dictionaries")));
        }
    }
    Ok(weights)
}

/// The tensors that a graph needs among `weights`, as [`Checkpoint::fit`] finds them; `path` is only named in errors.
///
/// # Errors
/// As [`Checkpoint::fit`].
pub fn prepare(graph: &Graph, weights: Weights, path: &Path) -> Result<Weights, Error> {
    let named = |(name, tensor): (String, Tensor)| Named { nest: String::new(), name, stored: Stored::of(&tensor) };
    let contents = Contents { tensors: weights.into_iter().map(named).collect(), modules: vec![] };
    Checkpoint { path: path.into(), contents }.fit(graph, None, false).map(|fitted| fitted.weights)
}

impl Checkpoint {
    /// Finds the tensors that a graph needs.
    ///
    /// They may lie under any keys and prefixes (`state_dict.`, `model.`, `student.`), the names of wrappers (`module.`) are
    /// taken out, and timm's names of MobileNetV2 and those that `kuangliu/pytorch-cifar` gives ResNets are taken for
    /// torchvision's. `key` says before which names to look, `""` for the names as they are; without it, two networks in one
    /// file must be equal. With `new_head` the last layer's tensors are left out.
    ///
    /// What is beside the network's dictionary is left out, and so are counters and Inception's auxiliary classifier. A mean
    /// or standard deviation of the pixels must be the graph's. Anything else must be part of the network.
    ///
    /// # Errors
    /// If tensors are missing, misshapen or left over, two differ that could be meant, or one holds NaN, infinities or
    /// negative variances.
    pub fn fit(&self, graph: &Graph, key: Option<&str>, new_head: bool) -> Result<Fitted, Error> {
        let head = graph.nodes.iter().rev().find_map(|node| match &node.op {
            Op::Linear { name, .. } => Some(format!("{name}.")),
            _ => None,
        });
        let wanted = Wanted {
            needed: graph.parameters(),
            head: head.unwrap_or_else(|| "fc.".to_owned()),
            new_head,
            normalisation: normalisation(graph),
        };
        let misfit = |cause: String| Error::Misfit { path: self.path.clone(), cause };
        let fit::Choice { taken, prefix, left_out } = fit::choose(&self.contents, &wanted, key).map_err(misfit)?;
        let damaged = |cause: String| Error::Damaged { path: self.path.clone(), cause };
        let mut weights = Weights::new();
        for (name, named) in taken {
            let tensor = named.stored.tensor();
            let tensor = tensor.map_err(|cause| damaged(format!("tensor `{}`: {cause}", named.name)))?;
            if let Some(value) = invalid(&name, &tensor).map_err(|cause| damaged(brief(&cause)))? {
                return Err(Error::Invalid { path: self.path.clone(), name, value });
            }
            weights.insert(name, tensor);
        }
        let dtype = if weights.values().any(|t| t.dtype() == DType::F64) { DType::F64 } else { DType::F32 };
        for tensor in weights.values_mut() {
            *tensor = tensor.to_dtype(dtype).map_err(|cause| damaged(brief(&cause)))?;
        }
        Ok(Fitted { weights, prefix, left_out })
    }
}

/// Mean and standard deviation that a graph's first layer takes from the pixels.
fn normalisation(graph: &Graph) -> Option<[Vec<f64>; 2]> {
    graph.nodes.iter().find_map(|node| match &node.op {
        Op::Normalise { mean, std } => Some([mean.to_vec(), std.to_vec()]),
        _ => None,
    })
}

/// Whether the content is safetensors', or the name says that it should be and the content is nothing that is known.
fn is_safetensors(bytes: &[u8], path: &Path) -> bool {
    let named = path.extension().is_some_and(|extension| extension == "safetensors");
    bytes.get(8) == Some(&b'{') || (named && foreign(bytes).is_none() && !bytes.starts_with(b"PK"))
}

/// What a file that holds no weights is, as far as its beginning tells.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    if bytes.is_empty() {
        Some("it is empty: copy or download it again")
    } else if begins(b"version https://git-lfs") {
        Some("it is a pointer of Git LFS, not the file: fetch it with git lfs pull")
    } else if begins(b"<") {
        Some("it is a web page, not the file: download it again, and look at it first")
    } else if begins(b"\x1f\x8b") {
        Some("it is compressed with gzip: unpack it")
    } else if begins(b"\x89HDF") {
        Some("it is HDF5, as Keras writes: convert its weights to PyTorch's names and layout, as safetensors")
    } else if bytes.get(257..262) == Some(b"ustar") {
        Some(
            "it is a tar archive: unpack it, or, if it is of the very first PyTorch, load it there and save its state_dict again",
        )
    } else {
        None
    }
}

/// The tensors of a torch checkpoint.
fn checkpoint(bytes: Vec<u8>) -> Result<Contents, String> {
    if let Some(what) = foreign(&bytes) {
        return Err(what.to_owned());
    }
    // Protocols before 2 begin with no mark; PyTorch never used them.
    if !bytes.starts_with(b"PK") && bytes[0] != 0x80 {
        return Err(
            "it is neither safetensors nor a torch checkpoint: weights are .safetensors files, or what torch.save \
                    has written (.pth, .pt, .bin, .ckpt)"
                .into(),
        );
    }
    torch::read(bytes).map_err(|cause| {
        format!(
            "not a torch checkpoint that can be read ({cause}); if PyTorch reads it, save its state_dict again with \
             torch.save, or as safetensors"
        )
    })
}

/// The tensors of a safetensors file.
fn flat(bytes: Vec<u8>) -> Result<Contents, String> {
    let (len, header) = safetensors::SafeTensors::read_metadata(&bytes)
        .map_err(|cause| format!("not a whole safetensors file ({cause})"))?;
    let (bytes, start) = (Arc::new(bytes), len + 8);
    let mut tensors: Vec<Named> = Vec::new();
    for (name, info) in header.tensors() {
        let kind = match info.dtype {
            safetensors::Dtype::F16 => Kind::F16,
            safetensors::Dtype::BF16 => Kind::Bf16,
            safetensors::Dtype::F32 => Kind::F32,
            safetensors::Dtype::F64 => Kind::F64,
            safetensors::Dtype::I64 => Kind::I64,
            other => Kind::Other(format!("{other:?}").to_lowercase()),
        };
        let range = start + info.data_offsets.0..start + info.data_offsets.1;
        let numbers = Numbers::Bytes { bytes: Arc::clone(&bytes), range, big_endian: false };
        tensors.push(Named { nest: String::new(), name, stored: Stored::dense(kind, info.shape.clone(), numbers) });
    }
    tensors.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(Contents { tensors, modules: vec![] })
}

/// An error's first line: candle appends a backtrace.
fn brief(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The first number that no trained network holds.
fn invalid(name: &str, tensor: &Tensor) -> candle_core::Result<Option<f64>> {
    let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let variance = name.ends_with("running_var");
    Ok(values.into_iter().find(|v| !v.is_finite() || (variance && *v < 0.0)))
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
