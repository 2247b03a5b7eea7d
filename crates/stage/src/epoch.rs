//! Which epoch of a finetune table is meant, and its weights.

use std::{fmt, path::PathBuf, str::FromStr};

use artifact::FinetuneRow;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Table, Unfit};

/// Which epoch of a finetune table is meant: `"best"`, `"last"` or a number (0 is the network before training).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Epoch {
    /// The best by validation accuracy.
    Best,
    /// The last one.
    #[default]
    Last,
    /// This one.
    Number(u32),
}

impl Epoch {
    /// The row of this epoch, among one table's.
    ///
    /// # Errors
    /// If there is no such row, with a text that lists the epochs there are.
    pub fn choose(self, rows: &[FinetuneRow]) -> Result<&FinetuneRow, String> {
        let row = match self {
            Self::Best => rows.iter().find(|row| row.best),
            Self::Last => rows.iter().max_by_key(|row| row.epoch),
            Self::Number(epoch) => rows.iter().find(|row| row.epoch == epoch),
        };
        row.ok_or_else(|| match (rows.iter().map(|row| row.epoch).min(), rows.iter().map(|row| row.epoch).max()) {
            (Some(first), Some(last)) => {
                format!("no epoch is `{self}`; there are epochs {first} to {last} (`best` needs validation images)")
            }
            _ => "the table has no epoch at all".to_owned(),
        })
    }

    /// The file that holds this epoch's weights, after a check against the digest in the table.
    ///
    /// # Errors
    /// [`Unfit`] if there is no such epoch, its weights were not kept, or the file changed; an [`artifact::Error`] if
    /// it cannot be read.
    pub fn weights(self, table: &Table<FinetuneRow>) -> anyhow::Result<PathBuf> {
        let name = table.parts[0].path.display();
        let row = self.choose(&table.rows).map_err(|fault| Unfit(format!("{name}: {fault}")))?;
        let (Some(weights), Some(recorded)) = (&row.weights, &row.sha256) else {
            let mend = "train with `keep` = \"every\" to keep all epochs";
            return Err(Unfit(format!("{name}: the weights of epoch {} were not kept; {mend}", row.epoch)).into());
        };
        let path = table.folder().join(weights);
        if &artifact::sha256(&path)? != recorded {
            let path = path.display();
            return Err(Unfit(format!("{path}: not the file that {name} describes; run finetune again")).into());
        }
        Ok(path)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => f.write_str("best"),
            Self::Last => f.write_str("last"),
            Self::Number(epoch) => write!(f, "{epoch}"),
        }
    }
}

impl FromStr for Epoch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "best" => Ok(Self::Best),
            "last" => Ok(Self::Last),
            _ => text
                .parse()
                .map(Self::Number)
                .map_err(|_| format!("`{text}` is no epoch; write best, last or a number")),
        }
    }
}

impl Serialize for Epoch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(epoch) => serializer.serialize_u32(*epoch),
            named => serializer.collect_str(named),
        }
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Epoch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an epoch: \"best\", \"last\" or a number")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Epoch, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, epoch: u64) -> Result<Epoch, E> {
                u32::try_from(epoch).map(Epoch::Number).map_err(|_| E::custom(format!("epoch {epoch} is too large")))
            }

            fn visit_i64<E: de::Error>(self, epoch: i64) -> Result<Epoch, E> {
                u32::try_from(epoch).map(Epoch::Number).map_err(|_| E::custom(format!("{epoch} is no epoch")))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(epoch: u32, best: bool) -> FinetuneRow {
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
            best,
        }
    }

    #[test]
    fn epochs_are_chosen_by_name_and_by_number() {
        let rows = [row(1, false), row(2, true), row(3, false)];
        let chosen = |epoch: Epoch| epoch.choose(&rows).map(|row| row.epoch);
        assert_eq!(chosen(Epoch::Best), Ok(2));
        assert_eq!(chosen(Epoch::Last), Ok(3));
        assert_eq!(chosen(Epoch::Number(1)), Ok(1));
        assert!(chosen(Epoch::Number(4)).unwrap_err().contains("1 to 3"));
        assert!(Epoch::Best.choose(&rows[..1]).unwrap_err().contains("validation"));
        assert!(Epoch::Last.choose(&[]).is_err());
    }

    #[test]
    fn epochs_are_written_as_they_are_read() {
        for text in ["\"best\"", "\"last\"", "7"] {
            let epoch: Epoch = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&epoch).unwrap(), text);
        }
        assert!(serde_json::from_str::<Epoch>("\"bset\"").unwrap_err().to_string().contains("best, last or a number"));
        assert!(serde_json::from_str::<Epoch>("-1").is_err());
    }
}
