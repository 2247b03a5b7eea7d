//! Named images and weights (`pipelines/sources/*.toml`), and where this machine gets them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, Result, file, file::Table};

/// All named sources.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sources {
    /// Data sets by name.
    pub images: BTreeMap<String, Images>,
    /// Networks' weights by name.
    pub weights: BTreeMap<String, Weights>,
}

/// One data set, and the places to get it from: the first that this machine has is used.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// Sources as the stage `sample` takes them, each with an optional `count` of its images.
    pub from: Vec<Table>,
    /// The classes: their names, the name of a list, or how many there are.
    #[serde(default)]
    pub classes: Option<Value>,
    /// Which of them each class of the source is, where its name or number does not say.
    #[serde(default)]
    pub labels: Option<Value>,
    /// The number that the source gives to its first class.
    #[serde(default)]
    pub first_label: Option<Value>,
    /// Whether an orientation in an image's EXIF turns it.
    #[serde(default)]
    pub orientation: Option<Value>,
    /// Shorter side to resize to, unless the pipeline says otherwise.
    #[serde(default)]
    pub resize: Option<u32>,
    /// Centre crop, unless the pipeline says otherwise.
    #[serde(default)]
    pub crop: Option<u32>,
    /// Rows and columns of the images as they are, where all are alike: for costs, and nothing else.
    #[serde(default)]
    pub side: Option<u32>,
}

/// One set of weights, and the places to get it from: the first that this machine has is used.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// The network they belong to.
    pub model: Table,
    /// The classes of their logits: names, the name of a list, or how many there are.
    #[serde(default)]
    pub classes: Option<Value>,
    /// Initial weights as the stage `finetune` takes them.
    pub from: Vec<Table>,
    /// How many images of a source the network is known to get right: `make check-source` holds it to that.
    #[serde(default)]
    pub expect: Vec<Expect>,
}

/// What is known of a network.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The name of a source of images.
    pub images: String,
    /// The share that it gets right, in `[0, 1]`.
    pub accuracy: f64,
}

/// A place that this machine has.
#[derive(Clone, Debug)]
pub struct Place {
    /// The source as the stage takes it.
    pub source: Table,
    /// Local files it reads, as Make shall see them.
    pub files: Vec<PathBuf>,
    /// Number of images, where the file says so.
    pub count: Option<u64>,
}

impl Images {
    /// Parameters of the stage `sample` that hold unless a pipeline says otherwise.
    #[must_use]
    pub fn defaults(&self) -> Table {
        let all = [
            ("classes", json!(self.classes)),
            ("labels", json!(self.labels)),
            ("first_label", json!(self.first_label)),
            ("orientation", json!(self.orientation)),
            ("resize", json!(self.resize)),
            ("crop", json!(self.crop)),
        ];
        all.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

impl Sources {
    /// Reads every `*.toml` of a folder; a missing folder holds none.
    ///
    /// # Errors
    /// If a file cannot be read or understood, or two files use one name.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut all = Self::default();
        for path in toml_files(folder)? {
            let text = std::fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
            let wrong = |reason| Error::File { path: path.clone(), reason };
            let file: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
            for (name, mut images) in file.images {
                for place in &mut images.from {
                    expand(place).map_err(|fault| wrong(format!("images `{name}`: {fault}")))?;
                }
                if all.images.insert(name.clone(), images).is_some() {
                    return Err(wrong(format!("another file names images `{name}` already")));
                }
            }
            for (name, weights) in file.weights {
                if all.weights.insert(name.clone(), weights).is_some() {
                    return Err(wrong(format!("another file names weights `{name}` already")));
                }
            }
        }
        Ok(all)
    }

    /// Images by name.
    ///
    /// # Errors
    /// With the names there are.
    pub fn images(&self, name: &str) -> Result<&Images, String> {
        let accepted: Vec<&str> = self.images.keys().map(String::as_str).collect();
        self.images.get(name).ok_or_else(|| file::unknown("images", name, &accepted))
    }

    /// Weights by name.
    ///
    /// # Errors
    /// With the names there are.
    pub fn weights(&self, name: &str) -> Result<&Weights, String> {
        let accepted: Vec<&str> = self.weights.keys().map(String::as_str).collect();
        self.weights.get(name).ok_or_else(|| file::unknown("weights", name, &accepted))
    }
}

/// Puts every file of a numbered family in the place of the family: `{ pattern = "a-{:05}-of-00002.parquet", count = 2 }`.
fn expand(place: &mut Table) -> Result<(), String> {
    let is_hub = place.get("name").and_then(Value::as_str) == Some("hub");
    let Some(Value::Array(files)) = place.get_mut("files") else { return Ok(()) };
    let mut all = Vec::new();
    for file in std::mem::take(files) {
        match file.get("pattern") {
            Some(_) => {
                let family: Family = serde_json::from_value(file).map_err(|fault| format!("files: {fault}"))?;
                let path = |path: String| if is_hub { json!({"path": path}) } else { json!(path) };
                all.extend(family.paths()?.into_iter().map(path));
            }
            None => all.push(file),
        }
    }
    *files = all;
    Ok(())
}

/// Files whose names differ in a number.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Family {
    /// A path with the number's place in it: `{}`, or `{:05}` for at least five digits.
    pattern: String,
    /// How many there are.
    count: u32,
    /// The number of the first.
    #[serde(default)]
    first: u32,
}

impl Family {
    fn paths(&self) -> Result<Vec<String>, String> {
        let pattern = &self.pattern;
        let wrong =
            || format!("files: `{pattern}` needs one place for a number, as `{{:05}}` for five digits, or `{{}}`");
        let (before, rest) = pattern.split_once('{').ok_or_else(wrong)?;
        let (format, after) = rest.split_once('}').ok_or_else(wrong)?;
        let width: usize = match format {
            "" => 0,
            format => {
                format.strip_prefix(":0").and_then(|width| width.parse().ok()).filter(|w| *w < 20).ok_or_else(wrong)?
            }
        };
        if after.contains(['{', '}']) || before.contains('}') {
            return Err(wrong());
        }
        if self.count == 0 {
            return Err(format!("files: `{pattern}`: a family of 0 files: count them"));
        }
        Ok((self.first..self.first.saturating_add(self.count)).map(|n| format!("{before}{n:0width$}{after}")).collect())
    }
}

/// The first place this machine has: local files must exist, everything else is taken at its word.
#[must_use]
pub fn first(from: &[Table], data_root: Option<&Path>) -> Option<Place> {
    from.iter().find_map(|source| {
        let local = local_paths(source);
        let files: Option<Vec<PathBuf>> = local.iter().map(|path| resolve(path, data_root)).collect();
        let files = files.filter(|files| files.iter().all(|file| file.exists()))?;
        let mut source = source.clone();
        let count = source.shift_remove("count").as_ref().and_then(Value::as_u64);
        let count = count.or_else(|| source.get("images").and_then(Value::as_u64));
        Some(Place { source, files, count })
    })
}

/// What the user can do where no place is at hand.
#[must_use]
pub fn advice(from: &[Table], data_root: Option<&Path>) -> String {
    let places: Vec<String> = from.iter().flat_map(local_paths).collect();
    match data_root {
        Some(root) => format!("put {} below DATA_ROOT={}", places.join(" or "), root.display()),
        None => format!("set DATA_ROOT to a folder that holds {}", places.join(" or ")),
    }
}

/// Paths on this machine that a source reads; none for sources that are drawn or fetched.
fn local_paths(source: &Table) -> Vec<String> {
    let text = |key: &str| source.get(key).and_then(Value::as_str).map(str::to_owned);
    match source.get("name").and_then(Value::as_str) {
        Some("parquet") => {
            let files = source.get("files").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            files.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        Some("folder" | "file") => text("path").into_iter().collect(),
        _ => Vec::new(),
    }
}

fn resolve(path: &str, data_root: Option<&Path>) -> Option<PathBuf> {
    let path = Path::new(path);
    if path.is_absolute() { Some(path.into()) } else { data_root.map(|root| root.join(path)) }
}

/// The TOML files of a folder, sorted.
fn toml_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Read { path: folder.into(), source }),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numbered_family_is_all_of_its_files() {
        let table = |value: Value| value.as_object().unwrap().clone();
        let expanded = |value: Value| expand(&mut table(value.clone())).map(|()| value);
        let mut local = table(json!({"name": "parquet", "files": [
            {"pattern": "a-{:05}-of-00002.parquet", "count": 2}, "b.parquet", {"pattern": "c{}.parquet", "first": 9, "count": 2}
        ]}));
        expand(&mut local).unwrap();
        let all = ["a-00000-of-00002.parquet", "a-00001-of-00002.parquet", "b.parquet", "c9.parquet", "c10.parquet"];
        assert_eq!(local["files"], json!(all));
        let mut hub = table(json!({"name": "hub", "files": [{"pattern": "a{:02}", "count": 1}, {"path": "b"}]}));
        expand(&mut hub).unwrap();
        assert_eq!(hub["files"], json!([{"path": "a00"}, {"path": "b"}]));
        for (pattern, count) in [("a", 2), ("a{", 2), ("{}{}", 2), ("{:5}", 2), ("a{}", 0)] {
            let text = expanded(json!({"name": "hub", "files": [{"pattern": pattern, "count": count}]})).unwrap_err();
            assert!(text.contains(pattern), "{text}");
        }
        let text = expanded(json!({"name": "hub", "files": [{"pattern": "a{}", "number": 2}]})).unwrap_err();
        assert!(text.contains("number"), "{text}");
    }

    #[test]
    fn the_first_place_at_hand_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let table = |value: Value| value.as_object().unwrap().clone();
        let from = [
            table(json!({"name": "parquet", "files": ["a.parquet", "b.parquet"], "count": 5})),
            table(json!({"name": "hub", "repo": "owner/name", "count": 9})),
        ];
        let root = Some(folder.path());
        assert_eq!(first(&from, None).unwrap().source["name"], "hub");
        std::fs::write(folder.path().join("a.parquet"), "").unwrap();
        assert_eq!(first(&from, root).unwrap().source["name"], "hub", "half a data set is none");
        std::fs::write(folder.path().join("b.parquet"), "").unwrap();
        let local = first(&from, root).unwrap();
        assert_eq!(Value::Object(local.source), json!({"name": "parquet", "files": ["a.parquet", "b.parquet"]}));
        assert_eq!((local.count, local.files.len()), (Some(5), 2));
        assert!(first(&from[..1], None).is_none());
        assert!(advice(&from[..1], None).contains("set DATA_ROOT"));
    }
}
