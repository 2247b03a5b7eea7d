//! The files that a program is made of.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use game::Program;
use sha2::{Digest as _, Sha256};

/// Why the files of a program cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// One is not there; on another machine it may be.
    #[error("{0}")]
    Missing(String),
    /// One is there twice, cannot be read, or is another one than stated.
    #[error("{0}")]
    Wrong(String),
}

/// The files of a program, by the names its parameters give them: those that its command names, and those it lists.
///
/// A relative name is below the current folder, where the program runs, or below the data root. A word of the command that is
/// no file is taken for what it is; the first word is a file where it names a folder (`./mine`), and is looked up otherwise.
///
/// # Errors
/// A listed file that is nowhere, or a name that means two different files.
pub fn resolve(program: &Program, data_root: Option<&Path>) -> Result<Vec<(String, PathBuf)>, FileFault> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    let words = program.command.iter().enumerate().filter(|(place, word)| *place > 0 || word.contains('/'));
    for name in words.map(|(_, word)| word).chain(&program.files) {
        let listed = program.files.contains(name);
        if found.iter().any(|(known, _)| known == name) || name.is_empty() {
            continue;
        }
        let below = data_root.map(|root| root.join(name)).filter(|path| path.is_file());
        let here = Some(PathBuf::from(name)).filter(|path| path.is_file());
        let path = match (here, below) {
            (Some(here), Some(below)) if differ(&here, &below) => {
                let below = below.display();
                let text = format!("{name} is one file here and another one at {below}: write its whole path");
                return Err(FileFault::Wrong(text));
            }
            (Some(path), _) | (None, Some(path)) => path,
            (None, None) if listed => return Err(missing(name, data_root)),
            (None, None) => continue,
        };
        found.push((name.clone(), path));
    }
    Ok(found)
}

fn missing(name: &str, data_root: Option<&Path>) -> FileFault {
    let below = data_root.map_or_else(|| "; DATA_ROOT is not set".to_owned(), |root| format!(" or {}", root.display()));
    FileFault::Missing(format!("files: there is no file {name} below the current folder{below}"))
}

/// Whether two paths hold different files; what cannot be read differs.
fn differ(a: &Path, b: &Path) -> bool {
    let same = a.canonicalize().ok().zip(b.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    !same && sha256(a).ok().zip(sha256(b).ok()).is_none_or(|(a, b)| a != b)
}

/// SHA-256 in hexadecimal of a program's files, by the names its parameters give them.
///
/// # Errors
/// A file that is missing, means two files, or cannot be read.
pub fn digests(program: &Program, data_root: Option<&Path>) -> Result<BTreeMap<String, String>, FileFault> {
    let digest = |(name, path): (String, PathBuf)| {
        let digest = sha256(&path).map_err(|error| FileFault::Wrong(format!("{}: {error}", path.display())))?;
        Ok((name, digest))
    };
    resolve(program, data_root)?.into_iter().map(digest).collect()
}

/// The command as it is started: names of files below the data root are whole paths.
pub(crate) fn command(program: &Program, data_root: Option<&Path>) -> Result<Vec<PathBuf>, FileFault> {
    let found = resolve(program, data_root)?;
    let path = |word: &String| found.iter().find(|(name, _)| name == word).map(|(_, path)| path.clone());
    Ok(program.command.iter().map(|word| path(word).unwrap_or_else(|| PathBuf::from(word))).collect())
}

/// The same, of files that are those which the parameters state.
///
/// # Errors
/// As [`digests`], or a file that is another one.
pub fn verify(program: &Program, data_root: Option<&Path>) -> Result<BTreeMap<String, String>, FileFault> {
    let found = digests(program, data_root)?;
    for (name, stated) in &program.digests {
        match found.get(name) {
            Some(digest) if digest.eq_ignore_ascii_case(stated) => {}
            Some(digest) => {
                let text = format!("{name} has changed: its SHA-256 is {digest}, not {stated}; run make again");
                return Err(FileFault::Wrong(text));
            }
            None => return Err(missing(name, data_root)),
        }
    }
    Ok(found)
}

fn sha256(path: &Path) -> io::Result<String> {
    let (mut file, mut digest, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => digest.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn program(command: &[&str], files: &[&str]) -> Program {
        let texts = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Program { command: texts(command), files: texts(files), ..Program::default() }
    }

    #[test]
    fn files_are_found_below_the_data_root_and_change_with_their_bytes() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("mine.py"), "abc").unwrap();
        fs::write(root.path().join("w.pt"), "").unwrap();
        let found = digests(&program(&["python3", "-u", "mine.py", "--x"], &["w.pt"]), Some(root.path())).unwrap();
        assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), ["mine.py", "w.pt"]);
        assert_eq!(found["mine.py"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let started = command(&program(&["python3", "mine.py"], &[]), Some(root.path())).unwrap();
        assert_eq!(started, [PathBuf::from("python3"), root.path().join("mine.py")]);
        let stated = Program { digests: found.clone(), ..program(&["python3", "mine.py"], &["w.pt"]) };
        assert_eq!(verify(&stated, Some(root.path())), Ok(found));
        fs::write(root.path().join("mine.py"), "abcd").unwrap();
        assert!(verify(&stated, Some(root.path())).unwrap_err().to_string().contains("mine.py has changed"));
    }

    #[test]
    fn a_name_of_two_files_or_of_none_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let names = |error: FileFault| assert!(error.to_string().contains("write its whole path"), "{error}");
        // Tests run in the crate's folder.
        fs::write(root.path().join("Cargo.toml"), "another").unwrap();
        names(resolve(&program(&["x", "Cargo.toml"], &[]), Some(root.path())).unwrap_err());
        fs::copy("Cargo.toml", root.path().join("Cargo.toml")).unwrap();
        assert_eq!(resolve(&program(&["x", "Cargo.toml"], &[]), Some(root.path())).unwrap().len(), 1);
        let error = resolve(&program(&["x"], &["no/such.pt"]), None).unwrap_err();
        assert!(matches!(&error, FileFault::Missing(text) if text.contains("no file no/such.pt")), "{error}");
        assert!(resolve(&program(&["Cargo.toml", "nothing"], &[]), None).unwrap().is_empty());
    }
}
