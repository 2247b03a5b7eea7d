//! The hub's cache on this machine.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use crate::{Error, File, Found, is_sha256, sha256};

/// The folder that holds what was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Where it is.
    pub root: PathBuf,
}

impl Cache {
    /// The cache that the environment names as it does for Python: `HF_HUB_CACHE`, else the folder `hub` in `HF_HOME`,
    /// else that of the user.
    #[must_use]
    pub fn from_env() -> Self {
        let named = |name: &str| {
            let value = env::var_os(name).filter(|value| !value.is_empty())?;
            Some(home(Path::new(&value)))
        };
        let root = named("HF_HUB_CACHE").or_else(|| named("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| {
            let user = || named("XDG_CACHE_HOME").unwrap_or_else(|| home(Path::new("~/.cache"))).join("huggingface");
            named("HF_HOME").unwrap_or_else(user).join("hub")
        });
        Self { root }
    }

    /// The folder of a file's repository.
    #[must_use]
    pub fn folder(&self, file: &File) -> PathBuf {
        self.root.join(format!("{}--{}", file.kind.plural(), file.repo.replace('/', "--")))
    }

    /// Where a file is, if it is there; what it holds is not looked at.
    #[must_use]
    pub fn locate(&self, file: &File) -> Option<PathBuf> {
        self.place(file).filter(|path| path.is_file())
    }

    /// Where a file would be, as far as the commit of its revision is known here.
    #[must_use]
    pub fn place(&self, file: &File) -> Option<PathBuf> {
        let folder = self.folder(file);
        let commit = if is_commit(&file.revision) {
            file.revision.clone()
        } else {
            fs::read_to_string(folder.join("refs").join(&file.revision)).ok()?.trim().to_owned()
        };
        Some(folder.join("snapshots").join(commit).join(&file.path))
    }

    /// Finds a file and verifies it: against the digest asked for or, failing that, against the one that the hub stated
    /// when it was fetched.
    ///
    /// # Errors
    /// If it is not there, has another digest, or if neither states one.
    pub fn find(&self, file: &File) -> Result<Found, Error> {
        let missing = || Error::Missing { file: file.clone().into(), cache: self.root.clone() };
        let path = self.locate(file).ok_or_else(missing)?;
        let unread = |error: io::Error| Error::Unfit(format!("{}: {error}: check its permissions", path.display()));
        let sha256 = sha256(&path).map_err(unread)?;
        let stated = self.stated(file, &path, &sha256);
        let place = path.display();
        let Some(wanted) = file.sha256.as_ref().map(|digest| digest.to_ascii_lowercase()).or(stated.clone()) else {
            return Err(Error::Unfit(format!(
                "{file}: {place} has SHA-256 {sha256}, and nothing in the cache says what it must have: set `sha256` (the \
                 hub's page of the file shows it), or move that file away and run again, which fetches it anew"
            )));
        };
        if sha256 == wanted {
            return Ok(Found { path, sha256 });
        }
        if stated.as_ref() == Some(&sha256) {
            return Err(Error::Unfit(format!(
                "{file}: the hub's file has SHA-256 {sha256}, not {wanted}: correct `sha256`"
            )));
        }
        let size = fs::metadata(&path).map_or(0, |file| file.len());
        let blob = fs::canonicalize(&path).unwrap_or(path);
        Err(Error::Unfit(format!(
            "{file}: {} ({size} bytes) has SHA-256 {sha256}, not {wanted}: it was cut or changed; move it away and run \
             again, which fetches it anew (or correct `sha256`)",
            blob.display()
        )))
    }

    /// The SHA-256 that the hub stated of a cached file: the name of the blob it leads to. A file that is no link, as in
    /// a cache that was copied, is vouched for by a blob that is named by its digest.
    #[must_use]
    pub fn stated(&self, file: &File, path: &Path, sha256: &str) -> Option<String> {
        let blob = fs::canonicalize(path).ok()?;
        let in_blobs = blob.parent().and_then(Path::file_name).is_some_and(|folder| folder == "blobs");
        let name = blob.file_name().and_then(|name| name.to_str()).filter(|name| in_blobs && is_sha256(name));
        let twin = || self.folder(file).join("blobs").join(sha256).is_file().then(|| sha256.to_owned());
        name.map(str::to_ascii_lowercase).or_else(twin)
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A path with the user's folder in the place of `~`.
fn home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    // FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn file(revision: &str, sha256: Option<&str>) -> File {
        let file: File = format!("hf://datasets/a/b@{revision}/sub/x.bin").parse().unwrap();
        File { sha256: sha256.map(str::to_owned), ..file }
    }

    /// A cache with one file of the content `abc`: a link to its blob, a copy beside its blob, or a copy alone.
    fn cache(link: bool, blob: bool) -> (tempfile::TempDir, Cache, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache { root: root.path().to_owned() };
        let folder = cache.folder(&file(COMMIT, None));
        let path = folder.join("snapshots").join(COMMIT).join("sub/x.bin");
        for folder in [path.parent().unwrap(), &folder.join("blobs"), &folder.join("refs")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(folder.join("refs/main"), COMMIT).unwrap();
        if blob {
            fs::write(folder.join("blobs").join(ABC), "abc").unwrap();
        }
        #[cfg(unix)]
        if link {
            std::os::unix::fs::symlink(format!("../../../blobs/{ABC}"), &path).unwrap();
            return (root, cache, path);
        }
        assert!(!link);
        fs::write(&path, "abc").unwrap();
        (root, cache, path)
    }

    #[test]
    fn links_and_copies_beside_their_blobs_are_used_by_commit_and_by_branch() {
        for link in [cfg!(unix), false] {
            let (_root, cache, path) = cache(link, true);
            for revision in [COMMIT, "main"] {
                for sha256 in [None, Some(ABC), Some(&*ABC.to_uppercase())] {
                    let found = cache.find(&file(revision, sha256)).unwrap();
                    assert_eq!((&found.path, found.sha256.as_str()), (&path, ABC));
                }
            }
            let error = cache.find(&file("other", None)).unwrap_err();
            assert!(matches!(error, Error::Missing { .. }), "{error}");
            let error = cache.find(&file(COMMIT, Some(&"0".repeat(64)))).unwrap_err().to_string();
            assert!(error.contains("correct `sha256`") && path.exists(), "{error}");
        }
    }

    #[test]
    fn a_lone_copy_needs_a_digest_and_stays() {
        let (_root, cache, path) = cache(false, false);
        assert_eq!(cache.find(&file(COMMIT, Some(ABC))).unwrap().path, path);
        let error = cache.find(&file(COMMIT, None)).unwrap_err().to_string();
        for word in [path.to_str().unwrap(), ABC, "set `sha256`", "move that file away"] {
            assert!(error.contains(word), "{word}: {error}");
        }
        assert!(path.exists());
    }

    #[test]
    fn what_was_changed_is_refused_and_stays() {
        for link in [cfg!(unix), false] {
            let (_root, cache, path) = cache(link, true);
            // Through the link this changes the blob; a copy differs from its blob.
            fs::write(&path, "abcd").unwrap();
            let error = cache.find(&file(COMMIT, Some(ABC))).unwrap_err().to_string();
            assert!(error.contains("4 bytes") && error.contains("move it away"), "{error}");
            assert!(cache.find(&file(COMMIT, None)).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), "abcd");
        }
    }

    #[test]
    fn a_missing_file_names_the_cache_and_the_command() {
        let (root, cache, path) = cache(false, false);
        fs::remove_file(path).unwrap();
        let error = cache.find(&file(COMMIT, Some(ABC))).unwrap_err().to_string();
        let command = format!("fetch hf://datasets/a/b@{COMMIT}/sub/x.bin --sha256 {ABC}");
        assert!(error.contains(root.path().to_str().unwrap()) && error.contains(&command), "{error}");
    }
}
