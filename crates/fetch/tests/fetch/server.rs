//! A hub of one repository, `a/b`, both as a model and as a dataset.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files by their names: `good.bin` and `copy.bin` as large files, `closed.bin` (HEAD 200, GET 403), `gated.bin` (401),
/// `small.txt` as a small file, of which the hub states a SHA-1 of git's; nothing else.
pub struct Server {
    pub endpoint: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    requests: AtomicUsize,
    downloads: AtomicUsize,
    held: Mutex<bool>,
    changed: Condvar,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                thread::spawn(move || answer(&mut stream.unwrap(), &state));
            }
        });
        Self { endpoint, state }
    }

    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    pub fn downloads(&self) -> usize {
        self.state.downloads.load(Ordering::SeqCst)
    }

    /// Lets downloads wait from here on.
    pub fn hold(&self) {
        *self.state.held.lock().unwrap() = true;
    }

    pub fn release(&self) {
        *self.state.held.lock().unwrap() = false;
        self.state.changed.notify_all();
    }

    pub fn wait_for_a_download(&self) {
        while self.downloads() == 0 {
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

fn answer(stream: &mut TcpStream, state: &State) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(request)) = lines.next() else { return };
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let head = request.starts_with("HEAD");
    state.requests.fetch_add(1, Ordering::SeqCst);
    let path = request.split(' ').nth(1).unwrap_or_default();
    let path = path.strip_prefix("/datasets").unwrap_or(path).strip_prefix("/a/b/resolve/").unwrap_or_default();
    let name = path.split_once('/').map_or("", |(_, path)| path.rsplit('/').next().unwrap_or_default());
    let good = digest(b"good");
    let (status, tag, body) = match name {
        "good.bin" | "copy.bin" => ("200 OK", good.as_str(), &b"good"[..]),
        "closed.bin" if head => ("200 OK", good.as_str(), &b"good"[..]),
        "closed.bin" => ("403 Forbidden", good.as_str(), &b"<html>closed</html>"[..]),
        "gated.bin" => ("401 Unauthorized", good.as_str(), &b"Access is restricted."[..]),
        "small.txt" => ("200 OK", "0f1e2d3c4b5a69788796a5b4c3d2e1f001234567", &b"small"[..]),
        _ => ("404 Not Found", good.as_str(), &b"none"[..]),
    };
    if !head {
        state.downloads.fetch_add(1, Ordering::SeqCst);
        let held = state.held.lock().unwrap();
        drop(state.changed.wait_while(held, |held| *held).unwrap());
    }
    let headers = format!("ETag: \"{tag}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close");
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n\r\n", body.len());
    if !head {
        let _ = stream.write_all(body);
    }
}
