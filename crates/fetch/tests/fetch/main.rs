//! The program as users run it, against a server on the loopback device that plays the hub.

mod server;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use server::{COMMIT, Server, digest};

/// A folder that holds the cache and receipts, and a hub.
struct Bench {
    folder: tempfile::TempDir,
    server: Server,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), server: Server::start() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fetch"));
        for variable in ["HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "OFFLINE", "HF_HUB_CACHE"] {
            command.env_remove(variable);
        }
        command.args(arguments).current_dir(self.folder.path());
        command.env("HF_ENDPOINT", &self.server.endpoint).env("HF_HOME", self.folder.path());
        command
    }

    fn fetch(&self, path: &str, more: &[&str]) -> Output {
        self.command(&[&[name(path).as_str()], more].concat()).output().unwrap()
    }

    fn repo(&self) -> PathBuf {
        self.folder.path().join("hub/datasets--a--b")
    }

    fn snapshot(&self, path: &str) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT).join(path)
    }

    /// Lays a file into the cache: a link to a blob of this name, or without a name a file of its own.
    fn lay(&self, path: &str, bytes: &[u8], blob: Option<&str>) -> PathBuf {
        let place = self.snapshot(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        let Some(blob) = blob else {
            fs::write(&place, bytes).unwrap();
            return place;
        };
        let blob = self.repo().join("blobs").join(blob);
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, bytes).unwrap();
        std::os::unix::fs::symlink(&blob, &place).unwrap();
        blob
    }
}

fn name(path: &str) -> String {
    format!("hf://datasets/a/b@{COMMIT}/{path}")
}

fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap().trim_end().to_owned()
}

/// What it says when it ends with code 3, and that it says so in one line beside what it was about to do.
fn refused(output: &Output, words: &[&str]) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` in: {text}");
    }
    assert_eq!(text.lines().filter(|line| !line.contains("downloading into")).count(), 1, "{text}");
    text
}

#[test]
fn a_file_is_downloaded_verified_and_found_again_without_a_network() {
    let bench = Bench::new();
    let good = digest(b"good");
    let path = done(&bench.fetch("sub/good.bin", &["--sha256", &good, "--out", "data/fetch/good.json"]));
    assert_eq!(Path::new(&path), bench.snapshot("sub/good.bin"));
    assert_eq!(fs::read(&path).unwrap(), b"good");
    let receipt: serde_json::Value =
        serde_json::from_slice(&fs::read(bench.folder.path().join("data/fetch/good.json")).unwrap()).unwrap();
    let expected = serde_json::json!({"kind": "dataset", "repo": "a/b", "revision": COMMIT, "path": "sub/good.bin",
        "sha256": good, "size": 4});
    assert_eq!(receipt, expected);
    let before = bench.server.requests();
    for variable in ["HF_HUB_OFFLINE", "OFFLINE", "NONE"] {
        let again = bench.command(&[&name("sub/good.bin")]).env(variable, "1").output().unwrap();
        assert_eq!(done(&again), path);
        let missing = bench.command(&[&name("other.bin")]).env(variable, "1").output().unwrap();
        if variable != "NONE" {
            let cache = bench.folder.path().join("hub");
            refused(
                &missing,
                &["other.bin: not in the cache", cache.to_str().unwrap(), &format!("{variable} forbids")],
            );
        }
    }
    assert_eq!(bench.server.requests() - before, 1, "the one that was allowed asked for the missing file");
}

#[test]
fn a_model_is_found_by_its_branch() {
    let bench = Bench::new();
    for _ in 0..2 {
        let path = done(&bench.command(&["hf://a/b@main/good.bin"]).output().unwrap());
        assert!(path.ends_with(&format!("models--a--b/snapshots/{COMMIT}/good.bin")), "{path}");
        // A blob that has gone leaves a link that leads nowhere: it is fetched again.
        fs::remove_file(fs::canonicalize(path).unwrap()).unwrap();
    }
}

#[test]
fn a_wrong_digest_is_refused_and_the_hubs_file_stays() {
    let bench = Bench::new();
    for _ in 0..2 {
        let wrong = bench.fetch("good.bin", &["--sha256", &digest(b"bad")]);
        refused(&wrong, &["correct `sha256`", &digest(b"bad"), &digest(b"good")]);
        assert!(bench.snapshot("good.bin").exists());
    }
    let nonsense = bench.fetch("good.bin", &["--sha256", "abc"]);
    assert_eq!(nonsense.status.code(), Some(2));
    assert_eq!(bench.command(&["good.bin"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn an_error_page_is_not_kept() {
    let bench = Bench::new();
    refused(&bench.fetch("closed.bin", &[]), &["it was deleted: run again", "HF_TOKEN"]);
    assert!(!bench.snapshot("closed.bin").is_symlink());
    // The blob has the name of the good file's: were it kept, this would find it.
    done(&bench.fetch("good.bin", &[]));
}

#[test]
fn faults_of_the_hub_are_told_with_their_mends() {
    let bench = Bench::new();
    refused(&bench.fetch("none.bin", &[]), &["none.bin", "check all three"]);
    refused(&bench.fetch("gated.bin", &[]), &["no access: accept the repository's terms on the hub and set HF_TOKEN"]);
    refused(&bench.fetch("small.txt", &[]), &["the hub states no SHA-256 of it: set `sha256`", &digest(b"small")]);
    done(&bench.fetch("small.txt", &["--sha256", &digest(b"small")]));
    let mut deaf = bench.command(&[&name("good.bin")]);
    refused(&deaf.env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap(), &["no answer: check the network"]);
}

#[test]
fn what_was_in_the_cache_before_is_never_deleted() {
    let bench = Bench::new();
    let good = digest(b"good");
    // A file that is no link, as in a cache that was copied: right by its digest, unknown without, wrong.
    let copy = bench.lay("copy.bin", b"good", None);
    done(&bench.fetch("copy.bin", &["--sha256", &good]));
    refused(&bench.fetch("copy.bin", &[]), &[copy.to_str().unwrap(), &good, "set `sha256`"]);
    refused(&bench.fetch("copy.bin", &["--sha256", &digest(b"bad")]), &["move it away"]);
    assert_eq!(fs::read(&copy).unwrap(), b"good");
    // Its blob beside it says what the hub said.
    fs::create_dir_all(bench.repo().join("blobs")).unwrap();
    fs::write(bench.repo().join("blobs").join(&good), b"good").unwrap();
    done(&bench.fetch("copy.bin", &[]));
    fs::remove_file(bench.repo().join("blobs").join(&good)).unwrap();
    // A damaged blob, under the link and, at another path, found by the hub's client.
    let blob = bench.lay("good.bin", b"go", Some(&good));
    refused(&bench.fetch("good.bin", &[]), &["2 bytes", blob.to_str().unwrap(), "move it away"]);
    fs::remove_file(bench.snapshot("good.bin")).unwrap();
    refused(&bench.fetch("good.bin", &[]), &["it was in the cache before", blob.to_str().unwrap(), "move that away"]);
    assert_eq!(fs::read(&blob).unwrap(), b"go");
    fs::rename(&blob, bench.folder.path().join("away")).unwrap();
    done(&bench.fetch("good.bin", &[]));
}

/// The lines a process says until it says one with this word.
fn until(child: &mut Child, word: &str) -> String {
    use std::io::{BufRead as _, BufReader};
    let stderr = child.stderr.take().unwrap();
    let mut text = String::new();
    for line in BufReader::new(stderr).lines() {
        text += &(line.unwrap() + "\n");
        if text.contains(word) {
            return text;
        }
    }
    panic!("it never said `{word}`:\n{text}");
}

#[test]
fn two_that_want_one_file_fetch_it_once_and_the_second_waits() {
    let bench = Bench::new();
    // Longer than the 10 seconds after which the hub's client gives up waiting.
    bench.server.hold();
    let spawn = || bench.command(&[&name("good.bin")]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut first = spawn();
    bench.server.wait_for_a_download();
    let mut second = spawn();
    until(&mut second, "another program is fetching it: waiting");
    std::thread::sleep(Duration::from_millis(10_500));
    assert!(second.try_wait().unwrap().is_none(), "the second gave up");
    bench.server.release();
    assert_eq!((first.wait().unwrap().code(), second.wait().unwrap().code()), (Some(0), Some(0)));
    assert_eq!(bench.server.downloads(), 1);
}

#[test]
fn a_lock_of_another_client_is_waited_for() {
    let bench = Bench::new();
    let lock = bench.folder.path().join("hub/.locks/datasets--a--b").join(format!("{}.lock", digest(b"good")));
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let held = fs::File::create(lock).unwrap();
    held.lock().unwrap();
    let start = Instant::now();
    let mut waiting = bench.command(&[&name("good.bin")]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    until(&mut waiting, "another program is fetching it: waiting");
    assert!(start.elapsed() > Duration::from_secs(9), "the hub's client waits for 10 seconds by itself");
    drop(held);
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
    assert_eq!(fs::read(bench.snapshot("good.bin")).unwrap(), b"good");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new();
    // A file where the folder should be: what no user, root included, can write into.
    fs::write(bench.folder.path().join("blocked"), "").unwrap();
    let cache = bench.folder.path().join("blocked/hub");
    let blocked = bench.command(&[&name("good.bin")]).env("HF_HUB_CACHE", &cache).output().unwrap();
    refused(&blocked, &[&format!("the cache {} cannot be written", cache.display()), "set HF_HUB_CACHE"]);
    // A folder without the right to write; root has it always.
    let cache = bench.folder.path().join("hub");
    bench.lay("good.bin", b"good", Some(&digest(b"good")));
    let allow = |mode| fs::set_permissions(&cache, fs::Permissions::from_mode(mode)).unwrap();
    allow(0o555);
    let is_root = fs::write(cache.join("probe"), "").is_ok();
    done(&bench.fetch("good.bin", &[]));
    let output = bench.fetch("other.bin", &[]);
    allow(0o755);
    if !is_root {
        refused(&output, &[&format!("the cache {} cannot be written", cache.display()), "set HF_HUB_CACHE"]);
    }
}
