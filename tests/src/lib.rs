//! Helpers of the whole-pipeline tests: the repository, its binaries, and throw-away copies of a project.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    sync::OnceLock,
};

use tempfile::TempDir;

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

/// The pipeline files, sorted.
#[must_use]
pub fn pipelines() -> Vec<PathBuf> {
    files(&root().join("pipelines"), "toml")
}

/// The folder of the stages' binaries, built as this test was, once.
///
/// # Panics
/// If they do not build.
#[must_use]
pub fn binaries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let test = std::env::current_exe().expect("a test is a program");
        let folder = test.ancestors().nth(2).expect("target/<profile>/deps/test").to_owned();
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root()).args(["build", "--quiet", "--workspace", "--bins"]);
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().expect("cargo runs").success(), "the binaries do not build");
        folder
    })
}

/// The folder of real data, `DATA_ROOT` or `shared/data` beside the repository; none, and a message, where it is absent.
#[must_use]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn data_root() -> Option<PathBuf> {
    let folder = std::env::var_os("DATA_ROOT").map_or_else(|| root().join("../shared/data"), PathBuf::from);
    if !folder.join("images").is_dir() {
        eprintln!("skipped: no {} (set DATA_ROOT)", folder.join("images").display());
        return None;
    }
    folder.canonicalize().ok()
}

/// A copy of what a user runs, in a folder of its own.
#[derive(Debug)]
pub struct Project {
    folder: TempDir,
}

impl Project {
    /// The Makefile and the pipelines, and nothing made yet.
    ///
    /// # Panics
    /// If the copy fails.
    #[must_use]
    pub fn new() -> Self {
        let project = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        copy(&root().join("Makefile"), project.path());
        copy(&root().join("pipelines"), project.path());
        project
    }

    /// A project in which `make smoke` has run.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn finished() -> Self {
        static FINISHED: OnceLock<Project> = OnceLock::new();
        let finished = FINISHED.get_or_init(|| {
            let project = Self::new();
            project.make(&["smoke"]);
            project
        });
        let project = Self::new();
        copy(&finished.path().join("data"), project.path());
        project
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `make` with this build's binaries; nothing of the outer Make reaches it.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut make = Command::new("make");
        for variable in
            ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "SCALE", "DATA_ROOT", "SHARDS", "RUN", "DEVICE", "CARGOFLAGS"]
        {
            make.env_remove(variable);
        }
        make.current_dir(self.path()).args(arguments).arg("BUILD=").arg(format!("BIN={}", binaries().display()));
        make
    }

    /// Runs one stage's binary; how it ended.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn stage(&self, name: &str, arguments: &[&str]) -> ExitStatus {
        let binary = binaries().join(name);
        Command::new(binary).current_dir(self.path()).args(arguments).status().expect("the binary is there")
    }

    /// What `make` prints on standard output when it succeeds.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn output(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("make is installed");
        assert!(output.status.success(), "make {arguments:?}:\n{}", both(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `make`.
    ///
    /// # Panics
    /// If it fails.
    pub fn make(&self, arguments: &[&str]) {
        let _ = self.output(arguments);
    }

    /// What `make` prints when it fails.
    ///
    /// # Panics
    /// If it succeeds.
    #[must_use]
    pub fn failure(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("make is installed");
        assert!(!output.status.success(), "make {arguments:?} succeeded:\n{}", both(&output));
        both(&output)
    }

    /// The stages that `make -n` would run, by their `--out`.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn missing(&self, arguments: &[&str]) -> Vec<String> {
        let text = self.output(&[&["-n"], arguments].concat());
        let out =
            |line: &str| line.split_once(" --out ").and_then(|(_, rest)| rest.split(' ').next()).map(str::to_owned);
        text.lines().filter_map(out).collect()
    }

    /// Part files of one stage, as paths below the project's folder, sorted.
    ///
    /// # Panics
    /// If a folder cannot be read.
    #[must_use]
    pub fn parts(&self, stage: &str) -> Vec<PathBuf> {
        let folders = fs::read_dir(self.path().join("data").join(stage)).expect("the stage has run");
        let mut parts: Vec<PathBuf> = folders
            .flat_map(|folder| files(&folder.expect("readable").path(), "parquet"))
            .filter(|path| !path.to_string_lossy().contains(".timing."))
            .map(|path| path.strip_prefix(self.path()).expect("below").to_owned())
            .collect();
        parts.sort();
        parts
    }

    /// The bytes of one of its files.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn bytes(&self, path: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path().join(path);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Writes a file, with its folders.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("writable");
        fs::write(path, text).expect("writable");
    }

    /// Deletes a file.
    ///
    /// # Panics
    /// If it is not there.
    pub fn delete(&self, path: impl AsRef<Path>) {
        fs::remove_file(self.path().join(path)).expect("it was there");
    }
}

impl Default for Project {
    fn default() -> Self {
        Self::new()
    }
}

/// Files of a folder with this extension, sorted.
///
/// # Panics
/// If the folder cannot be read.
#[must_use]
pub fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    files
}

/// Copies a file or folder into a folder, times and all: Make decides by times.
fn copy(from: &Path, into: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(into).status().expect("cp is installed");
    assert!(status.success(), "{} cannot be copied", from.display());
}

fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
