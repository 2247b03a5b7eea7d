//! Labels as Parquet files hold them: numbers, numbers with names, or names.

use std::collections::BTreeSet;

use arrow_array::ArrayRef;
use serde_json::Value;
use stage::{
    Unfit,
    classes::{few, place},
};

use super::Table;
use crate::column;

/// How the labels of some files are read.
pub(super) enum Labels {
    /// As numbers.
    Numbers,
    /// As numbers of these names; of each file, the class that its own number of a name is.
    Named { names: Vec<String>, to: Vec<Vec<i64>> },
    /// As these names.
    Names(Vec<String>),
}

impl Labels {
    /// Finds out how.
    pub fn of(tables: &[Table], label: &str) -> anyhow::Result<Self> {
        let mut kinds = Vec::new();
        for table in tables {
            let builder = table.open()?;
            let field = builder.schema().field_with_name(label)?;
            let kind = field.data_type();
            if !column::is_text(kind) && !column::is_number(kind) {
                let text = format!(
                    "column `{label}` holds no whole numbers or names, but {kind}: name the labels in `source.label`"
                );
                return Err(table.unfit(text).into());
            }
            kinds.push((column::is_text(kind), class_names(builder.schema().metadata().get("huggingface"), label)));
        }
        if kinds.iter().any(|(is_text, _)| *is_text) {
            if let Some(at) = kinds.iter().position(|(is_text, _)| !is_text) {
                return Err(tables[at]
                    .unfit("its labels are numbers, those of another file names: read them apart")
                    .into());
            }
            return Ok(Self::Names(distinct(tables, label)?));
        }
        let Some(names) = kinds.iter().find_map(|(_, names)| names.clone()) else { return Ok(Self::Numbers) };
        let mut to = Vec::new();
        for (table, (_, own)) in tables.iter().zip(kinds) {
            let Some(own) = own else {
                let text = "it names no classes, and another file of the source does: write its `ClassLabel`, or read it apart";
                return Err(table.unfit(text).into());
            };
            let places = place(&own, &names).ok().filter(|_| own.len() == names.len());
            let places = places.ok_or_else(|| {
                let (own, names) = (few(&own, "", ""), few(&names, "", ""));
                table.unfit(format!(
                    "other classes ({}) than the file before ({}): read them apart",
                    own.trim(),
                    names.trim()
                ))
            })?;
            to.push(places.into_iter().map(i64::from).collect());
        }
        Ok(Self::Named { names, to })
    }

    /// The names of the classes.
    pub fn names(&self) -> Option<&[String]> {
        match self {
            Self::Numbers => None,
            Self::Named { names, .. } | Self::Names(names) => Some(names),
        }
    }

    /// The label in a row of a column of a file.
    pub fn of_row(&self, file: usize, labels: &ArrayRef, row: usize) -> Result<i64, String> {
        let missing = "no label: fill it in or remove the row".to_owned();
        if let Self::Names(names) = self {
            let name = column::text(labels.as_ref(), row).ok_or(missing)?;
            let class = names.binary_search_by(|known| known.as_str().cmp(name));
            return class.map(|class| class as i64).map_err(|_| format!("`{name}` came after the labels were listed"));
        }
        let label = column::number(labels.as_ref(), row)
            .map_err(|value| format!("label {value} is no whole number: correct it"))?
            .ok_or(missing)?;
        Ok(match self {
            Self::Named { to, .. } => {
                usize::try_from(label).ok().and_then(|at| to[file].get(at)).copied().unwrap_or(label)
            }
            _ => label,
        })
    }
}

/// The smallest and the largest of all labels that are numbers.
pub(super) fn range(tables: &[Table], label: &str) -> anyhow::Result<Option<(i64, i64)>> {
    let mut range: Option<(i64, i64)> = None;
    for table in tables {
        table.read(&[label], None, &mut |batch, _| {
            for row in 0..batch.num_rows() {
                // What is no number is refused where it is read.
                if let Ok(Some(label)) = column::number(batch.column(0).as_ref(), row) {
                    let (least, most) = range.unwrap_or((label, label));
                    range = Some((least.min(label), most.max(label)));
                }
            }
            Ok(())
        })?;
    }
    Ok(range)
}

/// All names that are labels, in their order.
fn distinct(tables: &[Table], label: &str) -> anyhow::Result<Vec<String>> {
    let mut names = BTreeSet::new();
    for table in tables {
        table.read(&[label], None, &mut |batch, _| {
            let column = batch.column(0).as_ref();
            for name in (0..batch.num_rows()).filter_map(|row| column::text(column, row)) {
                if !names.contains(name) {
                    names.insert(name.to_owned());
                }
            }
            Ok(())
        })?;
    }
    if names.is_empty() {
        return Err(Unfit(format!("{}: no image has a label: fill in `{label}`", tables[0].name)).into());
    }
    Ok(names.into_iter().collect())
}

/// The names that the metadata of Hugging Face's `datasets` gives to the classes of a column.
fn class_names(metadata: Option<&String>, label: &str) -> Option<Vec<String>> {
    let metadata: Value = serde_json::from_str(metadata?).ok()?;
    let names = &metadata["info"]["features"][label]["names"];
    if let Value::Object(by_number) = names {
        // As the cards of data sets write them.
        let name = |number: usize| by_number.get(&number.to_string()).and_then(Value::as_str).map(str::to_owned);
        return (0..by_number.len()).map(name).collect();
    }
    serde_json::from_value(names.clone()).ok().filter(|names: &Vec<String>| !names.is_empty())
}
