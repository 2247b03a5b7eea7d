//! The weights a run starts from.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use artifact::FinetuneRow;
use candle_core::DType;
use game::{Key, Phase};
use hub::{Cache, Found};
use nets::{Graph, Weights, weights};
use serde_json::{Value, json};
use stage::{Context, Invalid, Unfit, Usage};

use crate::{Init, Params};

/// The initial weights: drawn, or in a file whose digest is known before it is read.
pub(crate) enum Source {
    Fresh,
    File { path: PathBuf, sha256: String, key: Option<String>, new_head: bool },
}

impl Source {
    /// Finds the file, in the hub's cache if it is the hub's, and checks its digest.
    pub fn open(init: &Init, ctx: &Context) -> anyhow::Result<Self> {
        let (path, wanted, key, new_head) = match init {
            Init::Fresh {} | Init::Own {} => return Ok(Self::Fresh),
            Init::File { path, sha256, key, new_head } => {
                (ctx.local(Path::new(path))?, sha256.as_deref(), key.clone(), *new_head)
            }
            Init::Hub { key, new_head, .. } => {
                let file = init.hub_file().context("a file of the hub")?;
                let Found { path, sha256 } = Cache::from_env().find(&file).map_err(|error| Unfit(error.to_string()))?;
                return Ok(Self::File { path, sha256, key: key.clone(), new_head: *new_head });
            }
            Init::Finetuned { epoch, new_head } => {
                (epoch.weights(&ctx.table::<FinetuneRow>()?)?, None, None, *new_head)
            }
        };
        let sha256 = artifact::sha256(&path)?;
        if let Some(wanted) = wanted.filter(|wanted| !wanted.eq_ignore_ascii_case(&sha256)) {
            let path = path.display();
            return Err(Unfit(format!("{path}: its SHA-256 is {sha256}, not {wanted}; check `init.sha256`")).into());
        }
        Ok(Self::File { path, sha256, key, new_head })
    }

    /// The file among the inputs, by the name that the parameters give it, if it is none of an earlier stage's.
    pub fn input(&self, init: &Init) -> Option<(String, String)> {
        let Self::File { sha256, .. } = self else { return None };
        let name = match init {
            Init::File { path, .. } => path.clone(),
            _ => init.hub_file()?.to_string(),
        };
        Some((name, sha256.clone()))
    }

    /// Facts for the record: the digest of the file the weights came from.
    pub fn facts(&self) -> Value {
        match self {
            Self::Fresh => Value::Null,
            Self::File { path, sha256, .. } => {
                json!({"file": path.file_name().unwrap_or_default().to_string_lossy(), "sha256": sha256})
            }
        }
    }

    /// The weights of `graph`, f32 on the CPU, under the graph's names. What the file holds beside them is counted aloud.
    pub fn weights(&self, graph: &Graph, params: &Params, ctx: &Context) -> anyhow::Result<Weights> {
        let fresh = || weights::initialise(graph, Key::root(params.seed).phase(Phase::Init));
        let Self::File { path, key, new_head, .. } = self else { return Ok(fresh()?) };
        let found = weights::open(path).and_then(|file| file.fit(graph, key.as_deref(), *new_head)).map_err(fault)?;
        if !found.left_out.is_empty() {
            let some = found.left_out.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
            let (taken, left) = (found.weights.len(), found.left_out.len());
            ctx.announce(&format!("{}: {taken} tensors taken, {left} left out: {some}, ...", path.display()));
        }
        let mut weights = found.weights;
        if *new_head {
            weights.extend(fresh()?.into_iter().filter(|(name, _)| !weights.contains_key(name)).collect::<Vec<_>>());
        }
        for tensor in weights.values_mut() {
            *tensor = tensor.to_dtype(DType::F32)?;
        }
        Ok(weights)
    }
}

impl Source {
    /// The weights of a network of candle's library, f32 on the CPU, under its own names.
    pub fn candle(&self, spec: &zoo::Spec, params: &Params) -> anyhow::Result<Weights> {
        let Self::File { path, .. } = self else {
            return Ok(zoo::initialise(spec, Key::root(params.seed).phase(Phase::Init))?);
        };
        let mut weights = zoo::prepare(spec, weights::load(path).map_err(fault)?, path).map_err(fault)?;
        for tensor in weights.values_mut() {
            *tensor = tensor.to_dtype(DType::F32)?;
        }
        Ok(weights)
    }
}

/// What a file of weights holds for a network.
#[derive(Debug)]
pub struct Understood {
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// The tensors that the network takes, and how many numbers they hold.
    pub taken: (usize, usize),
    /// What stands before their names.
    pub prefix: String,
    /// Names of the tensors that are left out.
    pub left_out: Vec<String>,
}

impl Understood {
    /// Reads the weights that parameters name, from the hub's cache if they are the hub's; nothing where they are drawn.
    ///
    /// # Errors
    /// With exit codes as the stage has them.
    pub fn of(params: &Params, ctx: &Context) -> anyhow::Result<Option<Self>> {
        params.check().map_err(Usage)?;
        let Some(spec) = params.model.graph() else {
            let text = "is no architecture of ours, whose tensors could be told";
            return Err(Usage(format!("model: `{}` {text}; `make` imports it", params.model.slug())).into());
        };
        let graph = spec.graph().map_err(|fault| Usage(format!("model: {fault}")))?;
        let Source::File { path, sha256, key, new_head } = Source::open(&params.init, ctx)? else { return Ok(None) };
        let found = weights::open(&path).and_then(|file| file.fit(&graph, key.as_deref(), new_head)).map_err(fault)?;
        let numbers = found.weights.values().map(|tensor| tensor.elem_count()).sum();
        let taken = (found.weights.len(), numbers);
        Ok(Some(Self { path, sha256, taken, prefix: found.prefix, left_out: found.left_out }))
    }
}

/// Gives an error about weights its exit code.
pub(crate) fn fault(error: weights::Error) -> anyhow::Error {
    let text = error.to_string();
    if error.is_invalid_numbers() { Invalid(text).into() } else { Unfit(text).into() }
}
