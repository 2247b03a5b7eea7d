//! What a folder held when an artifact was made from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Provenance;

/// A file of a folder, as it was read. In JSON it is `[name, size, sha256]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(String, u64, String)", into = "(String, u64, String)")]
pub struct Entry {
    /// Its path below the folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

impl From<(String, u64, String)> for Entry {
    fn from((name, size, sha256): (String, u64, String)) -> Self {
        Self { name, size, sha256 }
    }
}

impl From<Entry> for (String, u64, String) {
    fn from(Entry { name, size, sha256 }: Entry) -> Self {
        (name, size, sha256)
    }
}

/// The files of a folder that an artifact was made from, in the order they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Manifest {
    /// Each file once.
    pub entries: Vec<Entry>,
}

impl Manifest {
    /// The fact that holds the manifests of an artifact's inputs.
    pub(crate) const FACT: &str = "files";

    /// The SHA-256 that stands for the folder among an artifact's inputs: that of the lines that `sha256sum` prints.
    #[must_use]
    pub fn digest(&self) -> String {
        let lines: String = self.entries.iter().map(|entry| format!("{}  {}\n", entry.sha256, entry.name)).collect();
        hub::digest(&lines)
    }
}

impl Provenance {
    /// Records a folder among the inputs, with all that was read of it.
    pub fn record_folder(&mut self, name: &str, manifest: &Manifest) {
        self.inputs.insert(name.to_owned(), manifest.digest());
        let files = self.facts.entry(Manifest::FACT.to_owned()).or_insert_with(|| json!({}));
        files[name] = json!(manifest);
    }

    /// What was read of the folders among the inputs, by their names.
    #[must_use]
    pub fn folders(&self) -> BTreeMap<String, Manifest> {
        self.facts.get(Manifest::FACT).and_then(|files| BTreeMap::deserialize(files).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shard;

    #[test]
    fn a_folder_is_recorded_and_comes_back() {
        let mut provenance = Provenance {
            kind: "sample".into(),
            stage: "sample".into(),
            revision: 1,
            parameters: json!({}),
            shard: Shard::WHOLE,
            inputs: [].into(),
            facts: [].into(),
            environment: [].into(),
        };
        assert!(provenance.folders().is_empty());
        let entry = |name: &str, size| Entry { name: name.into(), size, sha256: "0".repeat(64) };
        let manifest = Manifest { entries: vec![entry("a/1.png", 3), entry("b/2 x.png", 4)] };
        provenance.record_folder("set", &manifest);
        let text = serde_json::to_string(&provenance).unwrap();
        assert!(text.contains(r#""files":{"set":[["a/1.png",3,"000"#), "{text}");
        let read: Provenance = serde_json::from_str(&text).unwrap();
        assert_eq!(read.folders(), [("set".to_owned(), manifest)].into());
        // printf '%064d  a/1.png\n%064d  b/2 x.png\n' 0 0 | sha256sum
        assert_eq!(read.inputs["set"], "58b956683c72d50bf245f08d9c2dee1843c7969132b05f94a2a99c68bf3d3b06");
    }
}
