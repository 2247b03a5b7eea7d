//! Files of weights beside the table.

use std::{collections::BTreeMap, fs, path::PathBuf};

use artifact::FinetuneRow;
use nets::{Weights, weights};

/// The folder the weights go to, and what is written into every file.
pub(crate) struct Store<'a> {
    pub folder: PathBuf,
    pub metadata: &'a BTreeMap<String, String>,
}

impl Store<'_> {
    /// Stores the weights of an epoch: the file's name and its SHA-256.
    pub fn save(&self, epoch: u32, network: &Weights) -> anyhow::Result<(String, String)> {
        let name = name(epoch);
        let path = self.folder.join(&name);
        let mut metadata = self.metadata.clone();
        metadata.insert("epoch".to_owned(), epoch.to_string());
        weights::save(&path, network, &metadata)?;
        Ok((name, artifact::sha256(&path)?))
    }

    /// Whether every file that the rows name is there, unchanged.
    pub fn holds(&self, rows: &[FinetuneRow]) -> bool {
        let whole = |(weights, sha256): (&String, &String)| {
            artifact::sha256(&self.folder.join(weights)).is_ok_and(|digest| &digest == sha256)
        };
        !rows.is_empty() && rows.iter().filter_map(|row| row.weights.as_ref().zip(row.sha256.as_ref())).all(whole)
    }

    /// Removes the files of epochs that are no longer kept, and what killed runs left of any.
    pub fn prune(&self, rows: &[FinetuneRow]) {
        rows.iter().for_each(|row| weights::remove_drafts(&self.folder.join(name(row.epoch))));
        for row in rows.iter().filter(|row| row.weights.is_none()) {
            let _ = fs::remove_file(self.folder.join(name(row.epoch)));
        }
    }
}

fn name(epoch: u32) -> String {
    format!("epoch-{epoch:03}.safetensors")
}

/// The row of an epoch of which nothing is known.
pub(crate) const fn row(epoch: u32) -> FinetuneRow {
    FinetuneRow {
        epoch,
        steps: 0,
        learning_rate: None,
        train_loss: None,
        train_accuracy: None,
        validation_correct: None,
        validation_images: None,
        weights: None,
        sha256: None,
        best: false,
    }
}
