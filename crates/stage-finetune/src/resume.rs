//! What a killed run leaves behind, so that the next one goes on from its last whole epoch.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use artifact::FinetuneRow;
use nets::{Weights, weights};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const NETWORK: &str = "network/";
const OPTIMISER: &str = "optimiser/";

/// The whole state of a run after some epoch.
pub(crate) struct State {
    /// One row per epoch so far, epoch 0 first.
    pub rows: Vec<FinetuneRow>,
    /// The network.
    pub network: Weights,
    /// The optimiser.
    pub optimiser: Weights,
}

/// The file that holds a run's state.
pub(crate) struct Resume {
    path: PathBuf,
}

impl Resume {
    /// The file of the run that `identity` (everything that decides its numbers) names, in `folder/resume`.
    pub fn new(folder: &Path, identity: &Value) -> Self {
        let digest = Sha256::digest(identity.to_string());
        let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { path: folder.join("resume").join(format!("{name}.safetensors")) }
    }

    /// The state a run of this identity was killed in; none if there is no whole one.
    pub fn load(&self) -> Option<State> {
        let metadata = weights::metadata(&self.path).ok()?;
        let rows: Vec<Value> = serde_json::from_str(metadata.get("rows")?).ok()?;
        let (mut network, mut optimiser) = (Weights::new(), Weights::new());
        for (name, tensor) in weights::load(&self.path).ok()? {
            if let Some(name) = name.strip_prefix(NETWORK) {
                network.insert(name.to_owned(), tensor);
            } else if let Some(name) = name.strip_prefix(OPTIMISER) {
                optimiser.insert(name.to_owned(), tensor);
            }
        }
        Some(State { rows: rows.iter().map(decode).collect::<Option<_>>()?, network, optimiser })
    }

    /// Stores a state in the place of the last one, whole or not at all.
    pub fn save(&self, state: &State) -> anyhow::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let named = |prefix: &'static str, weights: &Weights| {
            weights.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect::<Vec<_>>()
        };
        let tensors = [named(NETWORK, &state.network), named(OPTIMISER, &state.optimiser)].concat();
        let rows: Vec<Value> = state.rows.iter().map(encode).collect();
        let metadata = BTreeMap::from([("rows".to_owned(), Value::from(rows).to_string())]);
        Ok(weights::save(&self.path, &tensors.into_iter().collect(), &metadata)?)
    }

    /// Removes the file, what a killed run left of it, and its folder where it was the last.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        weights::remove_drafts(&self.path);
        if let Some(folder) = self.path.parent() {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A row as JSON. Floats are stored as their bits, for JSON numbers need not come back the same.
fn encode(row: &FinetuneRow) -> Value {
    let bits = |value: Option<f64>| value.map(f64::to_bits);
    json!({
        "epoch": row.epoch,
        "steps": row.steps,
        "learning_rate": bits(row.learning_rate),
        "train_loss": bits(row.train_loss),
        "train_accuracy": bits(row.train_accuracy),
        "validation_correct": row.validation_correct,
        "validation_images": row.validation_images,
        "weights": row.weights,
        "sha256": row.sha256,
        "best": row.best,
    })
}

fn decode(row: &Value) -> Option<FinetuneRow> {
    let number = |name: &str| row[name].as_u64();
    let small = |name: &str| number(name).and_then(|value| u32::try_from(value).ok());
    let float = |name: &str| number(name).map(f64::from_bits);
    let text = |name: &str| row[name].as_str().map(str::to_owned);
    Some(FinetuneRow {
        epoch: small("epoch")?,
        steps: number("steps")?,
        learning_rate: float("learning_rate"),
        train_loss: float("train_loss"),
        train_accuracy: float("train_accuracy"),
        validation_correct: small("validation_correct"),
        validation_images: small("validation_images"),
        weights: text("weights"),
        sha256: text("sha256"),
        best: row["best"].as_bool()?,
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn a_state_comes_back_bit_for_bit_to_its_own_run_only() {
        let folder = tempfile::tempdir().unwrap();
        let row = FinetuneRow {
            epoch: 3,
            steps: 1 << 40,
            learning_rate: Some(0.1 + 0.2),
            train_loss: Some(1.0 / 3.0),
            train_accuracy: None,
            validation_correct: Some(5),
            validation_images: None,
            weights: Some("epoch-003.safetensors".to_owned()),
            sha256: None,
            best: true,
        };
        let tensor = |value: f32| Tensor::new(&[value, -value], &Device::Cpu).unwrap();
        let state = State {
            rows: vec![row.clone()],
            network: Weights::from([("a".to_owned(), tensor(0.1))]),
            optimiser: Weights::from([("a".to_owned(), tensor(0.7))]),
        };
        let resume = Resume::new(folder.path(), &json!({"seed": 0}));
        resume.save(&state).unwrap();
        assert!(Resume::new(folder.path(), &json!({"seed": 1})).load().is_none());
        let loaded = resume.load().unwrap();
        assert_eq!(loaded.rows, [row]);
        assert_eq!(loaded.network["a"].to_vec1::<f32>().unwrap(), [0.1, -0.1]);
        assert_eq!(loaded.optimiser["a"].to_vec1::<f32>().unwrap(), [0.7, -0.7]);
        let draft = format!(".{}.1", resume.path.file_name().unwrap().to_str().unwrap());
        fs::write(resume.path.with_file_name(draft), "half a state").unwrap();
        resume.remove();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
