//! Where an artifact came from.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Part `index` of `count`: the images whose position in the sample is `index` modulo `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shard {
    /// From 0.
    pub index: u32,
    /// At least 1.
    pub count: u32,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Whether the image at this position of the sample (from 0) belongs to this part.
    #[must_use]
    pub const fn holds(self, position: usize) -> bool {
        position % self.count as usize == self.index as usize
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('/')
            .and_then(|(index, count)| Some(Self { index: index.parse().ok()?, count: count.parse().ok()? }))
            .filter(|shard| shard.index < shard.count)
            .ok_or_else(|| format!("`{text}` is no part of a whole; write I/N with I from 0 to N-1, as 0/1 or 2/3"))
    }
}

/// Where an artifact came from; stored as JSON in the file's key-value metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The row's kind.
    pub kind: String,
    /// The stage that wrote it.
    pub stage: String,
    /// The stage's revision: raised when the same parameters give other numbers.
    pub revision: u32,
    /// The stage's parameters, complete with defaults.
    pub parameters: serde_json::Value,
    /// Which part of the whole.
    pub shard: Shard,
    /// SHA-256 of every input by its path.
    pub inputs: BTreeMap<String, String>,
    /// Facts later stages need that are not parameters: class names, image shape, the network.
    pub facts: BTreeMap<String, serde_json::Value>,
    /// What may differ between machines and is no part of equality: git commit, device, versions.
    pub environment: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_part_the_positions() {
        let parts: Vec<Shard> = ["0/3", "1/3", "2/3"].iter().map(|text| text.parse().unwrap()).collect();
        for position in 0..10 {
            assert_eq!(parts.iter().filter(|part| part.holds(position)).count(), 1);
        }
        assert_eq!(parts[2].to_string(), "2/3");
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["", "1", "1/1", "0/0", "-1/2", "3/2", "1/2/3", "a/b"] {
            assert!(text.parse::<Shard>().unwrap_err().contains("0/1"), "{text}");
        }
    }
}
