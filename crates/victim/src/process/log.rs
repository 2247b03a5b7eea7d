//! What a program prints: to our log line by line, and the last of it kept.

use std::{
    collections::VecDeque,
    io::{PipeReader, Read as _},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Lines that are kept.
const LINES: usize = 20;

/// Bytes of a line; what is longer is cut into several.
const LENGTH: usize = 500;

#[derive(Debug, Default)]
struct Said {
    lines: VecDeque<String>,
    over: bool,
}

/// What a program has printed.
#[derive(Debug)]
pub struct Log {
    said: Arc<(Mutex<Said>, Condvar)>,
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// Follows a pipe to its end in a thread of its own.
    pub fn follow(mut pipe: PipeReader, name: String) -> Self {
        let said: Arc<(Mutex<Said>, Condvar)> = Arc::default();
        let ours = said.clone();
        thread::spawn(move || {
            let (mut line, mut buffer) = (Vec::new(), [0; 4096]);
            loop {
                let n = match pipe.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => n,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(_) => break,
                };
                for &byte in &buffer[..n] {
                    if byte != b'\n' {
                        line.push(byte);
                    }
                    if byte == b'\n' || line.len() == LENGTH {
                        take(&said.0, &name, &mut line);
                    }
                }
            }
            take(&said.0, &name, &mut line);
            lock(&said.0).over = true;
            said.1.notify_all();
        });
        Self { said: ours }
    }

    /// The last lines; waits so long for the end of the pipe, which something that the program has started may hold open.
    pub fn last_words(&self, within: Duration) -> Vec<String> {
        let (said, over) = &*self.said;
        let waited = over.wait_timeout_while(lock(said), within, |said| !said.over);
        let (said, _) = waited.unwrap_or_else(PoisonError::into_inner);
        said.lines.iter().cloned().collect()
    }
}

/// Logs a line and keeps it.
fn take(said: &Mutex<Said>, name: &str, line: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(line).trim_end().to_owned();
    line.clear();
    if text.is_empty() {
        return;
    }
    tracing::info!("{name}: {text}");
    let mut said = lock(said);
    if said.lines.len() == LINES {
        said.lines.pop_front();
    }
    said.lines.push_back(text);
}
