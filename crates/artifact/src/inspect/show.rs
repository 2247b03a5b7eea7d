//! An artifact as text and as JSON.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use arrow_array::{
    Array, RecordBatch,
    cast::AsArray,
    types::{Float32Type, Float64Type, Int64Type, UInt16Type, UInt32Type, UInt64Type},
};
use arrow_schema::{DataType, SchemaRef};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use crate::{Error, Manifest, Provenance, Result, read};

/// The most characters of a cell, and entries of a list, that the text shows.
const WIDTH: usize = 48;
const ENTRIES: usize = 8;

/// An artifact's provenance, columns and first rows.
pub struct View {
    path: PathBuf,
    bytes: u64,
    rows: i64,
    groups: usize,
    provenance: Provenance,
    schema: SchemaRef,
    head: Vec<Vec<Value>>,
}

impl View {
    /// Reads the first `rows` rows and everything about the others but their values.
    pub fn open(path: &Path, rows: usize) -> Result<Self> {
        let builder = read::open(path)?;
        let provenance = read::extract(path, &builder)?;
        let metadata = builder.metadata();
        let (count, groups) = (metadata.file_metadata().num_rows(), metadata.num_row_groups());
        let schema = builder.schema().clone();
        let head = read::guarded(path, || {
            let batches = builder.with_limit(rows).build().map_err(|error| Error::damaged(path, error))?;
            let mut head = Vec::new();
            for batch in batches {
                head.extend(cells(&batch.map_err(|error| Error::damaged(path, error))?));
            }
            Ok(head)
        })?;
        let bytes = fs::metadata(path).map_err(|error| Error::reading(path, error))?.len();
        Ok(Self { path: path.to_owned(), bytes, rows: count, groups, provenance, schema, head })
    }

    /// `file`, `bytes`, `rows`, `provenance`, `columns` (name to type) and `head` (rows as objects).
    pub fn json(&self) -> Value {
        let names = || self.schema.fields().iter().map(|field| field.name().clone());
        let columns: Value =
            self.schema.fields().iter().map(|f| (f.name().clone(), f.data_type().to_string())).collect();
        let head = self.head.iter().map(|row| names().zip(row.iter().cloned()).collect::<Value>());
        json!({
            "file": self.path,
            "bytes": self.bytes,
            "rows": self.rows,
            "provenance": self.provenance,
            "columns": columns,
            "head": Value::from_iter(head),
        })
    }

    /// Provenance, then a table of columns, then a table of the first rows.
    pub fn text(&self) -> String {
        let mut text = self.origin();
        let mut columns = table(&["column", "type"]);
        for field in self.schema.fields() {
            columns.add_row([field.name().clone(), field.data_type().to_string()]);
        }
        let names: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let mut head = table(&names);
        for row in &self.head {
            head.add_row(row.iter().map(brief));
        }
        let _ = write!(text, "\n{columns}\n");
        if !self.head.is_empty() {
            let _ = write!(text, "\n{head}\n");
        }
        text
    }

    fn origin(&self) -> String {
        let from = &self.provenance;
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(text, "{name:<12} {value}");
        };
        line("file", &self.path.display().to_string());
        line("kind", &from.kind);
        line("stage", &format!("{}, revision {}, part {}", from.stage, from.revision, from.shard));
        line("rows", &format!("{} in {} row groups, {} bytes", self.rows, self.groups, self.bytes));
        line("parameters", &from.parameters.to_string());
        for (path, sha256) in &from.inputs {
            line("input", &format!("{sha256} {path}"));
        }
        for (folder, manifest) in from.folders() {
            line(
                "folder",
                &format!("{folder}: {} files, each with its size and digest (--json)", manifest.entries.len()),
            );
        }
        for (name, value) in from.facts.iter().filter(|(name, _)| *name != Manifest::FACT) {
            line("fact", &format!("{name} = {value}"));
        }
        for (name, value) in &from.environment {
            line("environment", &format!("{name} = {value}"));
        }
        text
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header);
    table
}

/// The rows of a batch as JSON values.
fn cells(batch: &RecordBatch) -> impl Iterator<Item = Vec<Value>> {
    (0..batch.num_rows()).map(|row| batch.columns().iter().map(|column| cell(column, row)).collect())
}

/// One cell as JSON; bytes as their number.
fn cell(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::UInt16 => json!(array.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => json!(array.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => json!(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => number(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => number(array.as_primitive::<Float64Type>().value(row)),
        DataType::Binary => json!(format!("{} bytes", array.as_binary::<i32>().value(row).len())),
        DataType::List(_) => {
            let list = array.as_list::<i32>().value(row);
            (0..list.len()).map(|entry| cell(&list, entry)).collect()
        }
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            columns.map(|(field, column)| (field.name().clone(), cell(column, row))).collect()
        }
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        // No table of ours has another type; another program's column is named by its own.
        other => json!(format!("({other})")),
    }
}

/// A float with no more digits than tell it apart; `inf`, `-inf` and `NaN`, which JSON lacks, as texts.
fn number(value: impl ToString) -> Value {
    let text = value.to_string();
    text.parse().map_or_else(|_| Value::Null, |value: f64| if value.is_finite() { json!(value) } else { json!(text) })
}

/// A cell for the eye: long texts and lists cut short.
fn brief(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.chars().count() > WIDTH => text.chars().take(WIDTH - 1).chain(['…']).collect(),
        Value::String(text) => text.clone(),
        Value::Array(entries) => {
            let shown: Vec<String> = entries.iter().take(ENTRIES).map(brief).collect();
            let rest = if entries.len() > ENTRIES { format!(" … ({})", entries.len()) } else { String::new() };
            format!("{}{rest}", shown.join(" "))
        }
        Value::Object(fields) => fields.values().map(brief).collect::<Vec<_>>().join(", "),
        number => number.to_string(),
    }
}
