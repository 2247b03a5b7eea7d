//! Programs to talk to, compiled when they are first wanted: by rustc alone, for they need nothing else.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use game::Program;

/// This crate's folder, from any crate's tests.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("victim")
}

fn compiled(source: &str, name: &str) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Tests of several crates may want it at a time: it appears whole.
    let draft = out.with_extension(std::process::id().to_string());
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "-C", "opt-level=2", "-C", "debug-assertions=no", "-o"]).arg(&draft);
    assert!(command.arg(folder().join(source)).status().expect("rustc runs").success(), "{source} does not compile");
    std::fs::rename(&draft, &out).unwrap();
    out
}

/// The example.
pub fn plain() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| compiled("examples/plain/main.rs", "plain"))
}

/// The same, failing on purpose.
pub fn faulty() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| compiled("tests/programs/faulty.rs", "faulty"))
}

/// A program's parameters.
pub fn program(path: &Path, words: &[&str]) -> Program {
    let words = words.iter().map(|&word| word.to_owned());
    Program { command: std::iter::once(path.display().to_string()).chain(words).collect(), ..Program::default() }
}
