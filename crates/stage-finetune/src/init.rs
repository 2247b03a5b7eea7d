//! The weights a run starts from.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use artifact::FinetuneRow;
use candle_core::DType;
use game::{Key, Phase};
use hub::{Cache, Found};
use nets::{Graph, Op, Weights, weights};
use serde_json::{Value, json};
use stage::{Context, Invalid, Unfit};

use crate::{Init, Params};

/// The initial weights: drawn, or in a file whose digest is known before it is read.
pub(crate) enum Source {
    Fresh,
    File { path: PathBuf, sha256: String, new_head: bool },
}

impl Source {
    /// Finds the file, in the hub's cache if it is the hub's, and checks its digest.
    pub fn open(init: &Init, ctx: &Context) -> anyhow::Result<Self> {
        let (path, wanted, new_head) = match init {
            Init::Fresh {} => return Ok(Self::Fresh),
            Init::File { path, sha256, new_head } => (ctx.local(Path::new(path))?, sha256.as_deref(), *new_head),
            Init::Hub { new_head, .. } => {
                let file = init.hub_file().context("a file of the hub")?;
                let Found { path, sha256 } = Cache::from_env().find(&file).map_err(|error| Unfit(error.to_string()))?;
                return Ok(Self::File { path, sha256, new_head: *new_head });
            }
            Init::Finetuned { epoch, new_head } => (epoch.weights(&ctx.table::<FinetuneRow>()?)?, None, *new_head),
        };
        let sha256 = artifact::sha256(&path)?;
        if let Some(wanted) = wanted.filter(|wanted| !wanted.eq_ignore_ascii_case(&sha256)) {
            let path = path.display();
            return Err(Unfit(format!("{path}: its SHA-256 is {sha256}, not {wanted}; check `init.sha256`")).into());
        }
        Ok(Self::File { path, sha256, new_head })
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

    /// The weights of `graph`, f32 on the CPU, under the graph's names.
    pub fn weights(&self, graph: &Graph, params: &Params) -> anyhow::Result<Weights> {
        let fresh = || weights::initialise(graph, Key::root(params.seed).phase(Phase::Init));
        let Self::File { path, new_head, .. } = self else { return Ok(fresh()?) };
        let mut found = weights::load(path).map_err(fault)?;
        if *new_head {
            replace_head(graph, &mut found, fresh()?);
        }
        let mut weights = weights::prepare(graph, found, path).map_err(fault)?;
        for tensor in weights.values_mut() {
            *tensor = tensor.to_dtype(DType::F32)?;
        }
        Ok(weights)
    }
}

/// Puts fresh tensors in the place of the last layer's, whatever prefix the file's names have.
fn replace_head(graph: &Graph, found: &mut Weights, fresh: Weights) {
    let head = graph.nodes.iter().rev().find_map(|node| match &node.op {
        Op::Linear { name, .. } => Some(format!("{name}.")),
        _ => None,
    });
    let Some(head) = head else { return };
    let of_head = |name: &str| {
        name.strip_suffix("weight").or(name.strip_suffix("bias")).is_some_and(|stem| {
            stem.strip_suffix(&head).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        })
    };
    found.retain(|name, _| !of_head(name));
    found.extend(fresh.into_iter().filter(|(name, _)| name.starts_with(&head)));
}

/// Gives an error about weights its exit code.
pub(crate) fn fault(error: weights::Error) -> anyhow::Error {
    let text = error.to_string();
    if error.is_invalid_numbers() { Invalid(text).into() } else { Unfit(text).into() }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn only_the_head_is_replaced_under_any_prefix() {
        let spec: nets::Spec =
            serde_json::from_value(json!({"name": "cifar-resnet", "depth": 8, "classes": 3})).unwrap();
        let graph = spec.graph().unwrap();
        let old = Tensor::zeros(7, DType::F32, &Device::Cpu).unwrap();
        let names = ["module.linear.weight", "module.linear.bias", "module.conv1.weight", "module.nonlinear.weight"];
        let mut found: Weights = names.map(|name| (name.to_owned(), old.clone())).into();
        replace_head(&graph, &mut found, weights::initialise(&graph, Key::root(0)).unwrap());
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["linear.bias", "linear.weight", "module.conv1.weight", "module.nonlinear.weight"]);
        assert_eq!(found["linear.bias"].dims(), [3]);
    }
}
