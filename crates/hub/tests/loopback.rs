//! The real download path, against a server on the loopback device.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
};

use hub::{File, Hub, Kind};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Serves one dataset: `good.bin` and `closed.bin` (HEAD 200, GET 403) as large files, nothing else.
fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(&mut stream.unwrap()));
        }
    });
    endpoint
}

fn answer(stream: &mut TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let head = request.starts_with("HEAD");
    let file = format!("/datasets/a/b/resolve/{COMMIT}/");
    let (status, body) = match request.split(' ').nth(1).and_then(|path| path.strip_prefix(file.as_str())) {
        Some("good.bin") => ("200 OK", &b"good"[..]),
        Some("closed.bin") if head => ("200 OK", &b"good"[..]),
        Some("closed.bin") => ("403 Forbidden", &b"<html>closed</html>"[..]),
        _ => ("404 Not Found", &b"none"[..]),
    };
    let (length, tag) = (body.len(), digest(b"good"));
    let headers = format!("ETag: \"{tag}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close");
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n\r\n");
    if !head {
        let _ = stream.write_all(body);
    }
}

fn file<'a>(path: &'a str, sha256: Option<&'a str>) -> File<'a> {
    File { kind: Kind::Dataset, repo: "a/b", revision: COMMIT, path, sha256 }
}

fn hub(endpoint: &str, cache: &Path, offline: bool) -> Hub {
    Hub { endpoint: Some(endpoint.into()), cache: Some(cache.into()), offline }
}

#[test]
fn a_file_is_downloaded_verified_and_found_again_offline() {
    let (endpoint, cache) = (serve(), tempfile::tempdir().unwrap());
    let fetched = hub(&endpoint, cache.path(), false).fetch(&file("good.bin", Some(&digest(b"good")))).unwrap();
    assert_eq!(std::fs::read(&fetched.path).unwrap(), b"good");
    assert_eq!(fetched.sha256, digest(b"good"));
    let offline = hub("http://127.0.0.1:9", cache.path(), true);
    assert_eq!(offline.fetch(&file("good.bin", None)).unwrap(), fetched);
    let missing = offline.fetch(&file("other.bin", None)).unwrap_err().to_string();
    assert!(missing.contains("not in the cache"), "{missing}");
}

#[test]
fn a_wrong_digest_is_refused() {
    let (endpoint, cache) = (serve(), tempfile::tempdir().unwrap());
    let error = hub(&endpoint, cache.path(), false).fetch(&file("good.bin", Some(&digest(b"bad")))).unwrap_err();
    assert!(error.to_string().contains("correct `sha256`"), "{error}");
}

#[test]
fn an_error_page_is_not_kept() {
    let (endpoint, cache) = (serve(), tempfile::tempdir().unwrap());
    let hub = hub(&endpoint, cache.path(), false);
    let error = hub.fetch(&file("closed.bin", None)).unwrap_err();
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
    // The blob has the name of the good file's: were it kept, this would find it.
    assert!(hub.fetch(&file("good.bin", None)).is_ok());
}

#[test]
fn a_missing_file_is_named() {
    let (endpoint, cache) = (serve(), tempfile::tempdir().unwrap());
    let error = hub(&endpoint, cache.path(), false).fetch(&file("none.bin", None)).unwrap_err().to_string();
    assert!(error.contains("none.bin") && error.contains("check all three"), "{error}");
}
