//! What a file of the hub is called.

use std::{fmt, str::FromStr};

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Weights.
    Model,
    /// Data.
    Dataset,
}

impl Kind {
    /// As the hub writes it in lists: `models`, `datasets`.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A file asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct File {
    /// What the repository holds.
    pub kind: Kind,
    /// `owner/name`.
    pub repo: String,
    /// A commit, branch or tag.
    pub revision: String,
    /// Path in the repository.
    pub path: String,
    /// What the SHA-256 must be, in hexadecimal; none takes the hub's word.
    pub sha256: Option<String>,
}

impl File {
    /// The command that fetches it, for a shell.
    #[must_use]
    pub fn command(&self) -> String {
        format!("fetch {}", self.arguments())
    }

    /// The arguments of that command.
    #[must_use]
    pub fn arguments(&self) -> String {
        let digest = self.sha256.as_ref().map(|digest| format!(" --sha256 {}", quoted(digest))).unwrap_or_default();
        quoted(&self.to_string()) + &digest
    }
}

/// The name that `huggingface_hub` gives it too: `hf://datasets/owner/name@revision/path`, without `datasets/` for models.
impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let datasets = if self.kind == Kind::Dataset { "datasets/" } else { "" };
        // A revision such as `refs/pr/1` must not end where the path begins.
        let revision = self.revision.replace('%', "%25").replace('/', "%2F");
        write!(f, "hf://{datasets}{}@{revision}/{}", self.repo, self.path)
    }
}

/// A text that names no file of the hub.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no file of the hub; write hf://owner/name@revision/path, or hf://datasets/owner/name@revision/path"
)]
pub struct NoFile(String);

impl FromStr for File {
    type Err = NoFile;

    fn from_str(text: &str) -> Result<Self, NoFile> {
        let parse = || {
            let name = text.strip_prefix("hf://")?;
            let (kind, name) = match name.strip_prefix("datasets/") {
                Some(name) => (Kind::Dataset, name),
                None => (Kind::Model, name),
            };
            let (repo, rest) = name.split_once('@')?;
            let (revision, path) = rest.split_once('/')?;
            let revision = revision.replace("%2F", "/").replace("%2f", "/").replace("%25", "%");
            // A path that leaves its folder would be looked up, and written, elsewhere.
            let plain = |text: &str| text.split('/').all(|part| !["", ".", ".."].contains(&part));
            let file = Self { kind, repo: repo.into(), revision, path: path.into(), sha256: None };
            let whole = plain(&file.repo) && plain(&file.revision) && plain(&file.path);
            whole.then_some(file)
        };
        parse().ok_or_else(|| NoFile(text.to_owned()))
    }
}

/// A word as a shell takes it.
fn quoted(text: &str) -> String {
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:@=+,%".contains(c)) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_and_read_back() {
        let dataset = File {
            kind: Kind::Dataset,
            repo: "a/b".into(),
            revision: "refs/pr/1".into(),
            path: "plain text/x@y.parquet".into(),
            sha256: None,
        };
        let model = File { kind: Kind::Model, repo: "gpt2".into(), revision: "main".into(), ..dataset.clone() };
        let names = ["hf://datasets/a/b@refs%2Fpr%2F1/plain text/x@y.parquet", "hf://gpt2@main/plain text/x@y.parquet"];
        for (file, name) in [dataset, model].into_iter().zip(names) {
            assert_eq!(file.to_string(), name);
            assert_eq!(name.parse(), Ok(file));
        }
        for nonsense in ["", "a/b@main/x", "hf://a/b/x", "hf://a/b@main", "hf://a/b@main/", "hf://a/b@main/../x"] {
            assert!(nonsense.parse::<File>().unwrap_err().to_string().contains("owner/name@revision"), "{nonsense}");
        }
    }

    #[test]
    fn commands_survive_a_shell() {
        let mut file: File = "hf://a/b@main/x.bin".parse().unwrap();
        file.sha256 = Some("0".repeat(64));
        assert_eq!(file.command(), format!("fetch hf://a/b@main/x.bin --sha256 {}", "0".repeat(64)));
        let file: File = "hf://a/b@main/it's $1.bin".parse().unwrap();
        assert_eq!(file.command(), r"fetch 'hf://a/b@main/it'\''s $1.bin'");
    }
}
