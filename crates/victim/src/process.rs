//! A program as a process: started, watched while it works, and killed with all that it has started.

mod log;
mod spawn;

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::{Message, Options};
use log::Log;

/// Why a program gives no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("program `{program}`: {reason}{}", told(last_words))]
pub struct Fault {
    /// Its command.
    pub program: String,
    /// What kind of failure it is.
    pub kind: Kind,
    /// What happened.
    pub reason: String,
    /// The last lines that it has written, on whatever stream.
    pub last_words: Vec<String>,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It cannot be started: no such program, other files than stated.
    Start,
    /// It ended.
    Died,
    /// It did not answer in time.
    Time,
    /// It took more memory than it may.
    Memory,
    /// What it wrote is no reply to what it was asked: no message, another number, another shape.
    Reply,
    /// It answered with logits or pixels that are not finite.
    Numbers,
    /// It said that it cannot.
    Refused,
    /// It was asked for what it is not: other images, an operation that it lacks. Asking again would not help.
    Misuse,
}

fn told(last_words: &[String]) -> String {
    if last_words.is_empty() {
        return String::new();
    }
    format!("; its last words:\n  {}", last_words.join("\n  "))
}

/// A failure of one attempt.
#[derive(Debug)]
pub(crate) struct Failure {
    pub kind: Kind,
    pub reason: String,
}

impl Failure {
    pub fn new(kind: Kind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }
}

/// The environment variable by which a program learns where it reads requests, where it writes replies, and where the
/// memory is that it shares with us: numbers of open files, with commas.
const FDS: &str = "VICTIM_FDS";

/// Bytes of a pipe's buffer, where the system allows it.
const PIPE: libc::c_int = 1 << 20;

/// How often a program that works is looked at.
const TICK: Duration = Duration::from_millis(50);

/// How long a program that is no longer needed may take to end by itself.
const GRACE: Duration = Duration::from_millis(500);

/// The longest reply that is read, so that what is no length is not taken for one.
const LONGEST: u64 = 1 << 36;

/// A running program.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    requests: Option<File>,
    replies: File,
    log: Log,
    memory: Option<File>,
    /// Whether the program has said that it can read and write that memory.
    pub shares: bool,
    most: Option<u64>,
}

impl Process {
    /// Starts a command.
    pub fn start(command: &[PathBuf], name: &str, options: &Options) -> Result<Self, Failure> {
        let fault = |what: &str, error: io::Error| Failure::new(Kind::Start, format!("{what}: {error}"));
        let pipe = || io::pipe().map_err(|error| fault("no pipe", error));
        let ((theirs_in, requests), (replies, theirs_out), (said, says)) = (pipe()?, pipe()?, pipe()?);
        let memory = if options.shared_memory { shared_memory().ok() } else { None };
        let mut inherited = vec![theirs_in.as_raw_fd(), theirs_out.as_raw_fd()];
        inherited.extend(memory.as_ref().map(File::as_raw_fd));
        let numbers: Vec<String> = inherited.iter().map(ToString::to_string).collect();
        let says_too = says.try_clone().map_err(|error| fault("no pipe", error))?;
        let mut starting = Command::new(&command[0]);
        starting.args(&command[1..]).env(FDS, numbers.join(",")).env("VICTIM_THREADS", options.threads.to_string());
        // What it prints last must not be lost in a buffer.
        starting.env("PYTHONUNBUFFERED", "1").process_group(0);
        starting.stdin(Stdio::null()).stdout(says).stderr(says_too);
        // SAFETY: the closure calls nothing that is not safe between fork and exec.
        unsafe { starting.pre_exec(move || inherit(&inherited)) };
        let child = spawn::spawn(starting).map_err(|error| fault("cannot be started", error))?;
        let log = Log::follow(said, name.to_owned());
        // Ours must not wait where theirs does not read or write.
        let ours = |end: OwnedFd| {
            // SAFETY: the descriptor is open, and these commands change its own flags and buffer only.
            unsafe {
                let flags = libc::fcntl(end.as_raw_fd(), libc::F_GETFL);
                libc::fcntl(end.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK);
                #[cfg(target_os = "linux")]
                libc::fcntl(end.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE);
            }
            File::from(end)
        };
        let (requests, replies) = (Some(ours(requests.into())), ours(replies.into()));
        Ok(Self { child, requests, replies, log, memory, shares: false, most: options.memory })
    }

    /// One request and its reply. `room` is how many bytes of tensors the reply will have.
    pub fn ask(&mut self, request: Message, room: usize, seconds: f64) -> Result<Message, Failure> {
        let until = Instant::now() + Duration::from_secs_f64(seconds.clamp(0.001, 1e9));
        let (op, id) = (request.op.clone(), request.id);
        let system = |error: io::Error| Failure::new(Kind::Reply, format!("shared memory: {error}"));
        let request = match &self.memory {
            Some(memory) if self.shares && request.size() + room >= SHARED_FROM => {
                request.share(memory, room).map_err(system)?
            }
            _ => request,
        };
        let told = |failure: Failure| {
            let reason = format!("{} {op} (request {id})", failure.reason);
            if matches!(failure.kind, Kind::Reply) { failure } else { Failure { reason, ..failure } }
        };
        self.send(&request.frame(), until, seconds).map_err(told)?;
        let blob = self.receive(until, seconds).map_err(told)?;
        self.within_memory().map_err(told)?;
        let wrong = |reason: String| Failure::new(Kind::Reply, format!("{reason}, in answer to {op} (request {id})"));
        let reply = Message::read(&blob).map_err(wrong)?;
        if reply.id != id {
            return Err(wrong(format!("its reply is to request {}", reply.id)));
        }
        match reply.op.as_str() {
            "error" => {
                let text = reply.facts.get("text").map_or("no reason given", String::as_str);
                Err(Failure::new(Kind::Refused, format!("it cannot answer {op} (request {id}): {text:.2000}")))
            }
            answered if answered == op => match &self.memory {
                Some(memory) => reply.unshare(memory).map_err(wrong),
                None if reply.facts.contains_key("shared") => {
                    Err(wrong("it shares memory that it was not given".into()))
                }
                None => Ok(reply),
            },
            other => Err(wrong(format!("its reply is to `{other:.40}`"))),
        }
    }

    fn send(&mut self, mut bytes: &[u8], until: Instant, seconds: f64) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let Some(pipe) = &mut self.requests else { return Err(self.died()) };
            match pipe.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let fd = pipe.as_raw_fd();
                    self.wait(fd, libc::POLLOUT, until, seconds)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(self.died()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, until: Instant, seconds: f64) -> Result<Vec<u8>, Failure> {
        let mut length = [0; 8];
        self.fill(&mut length, until, seconds)?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST {
            return Err(Failure::new(Kind::Reply, format!("it wrote {length} as the length of a reply: no message")));
        }
        // Memory is taken as bytes come, not as a length promises.
        let mut blob = Vec::new();
        while (blob.len() as u64) < length {
            let (from, step) = (blob.len(), (length - blob.len() as u64).min(1 << 24) as usize);
            blob.resize(from + step, 0);
            self.fill(&mut blob[from..], until, seconds)?;
        }
        Ok(blob)
    }

    fn fill(&mut self, mut bytes: &mut [u8], until: Instant, seconds: f64) -> Result<(), Failure> {
        while !bytes.is_empty() {
            match self.replies.read(bytes) {
                Ok(0) => return Err(self.died()),
                Ok(n) => bytes = &mut bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let fd = self.replies.as_raw_fd();
                    self.wait(fd, libc::POLLIN, until, seconds)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(self.died()),
            }
        }
        Ok(())
    }

    /// Waits until a pipe can be used, and looks at the program meanwhile.
    fn wait(&mut self, fd: libc::c_int, events: libc::c_short, until: Instant, seconds: f64) -> Result<(), Failure> {
        loop {
            let ready = |within: Duration| {
                let mut poll = libc::pollfd { fd, events, revents: 0 };
                // SAFETY: one descriptor, open as long as this process has it.
                unsafe { libc::poll(&raw mut poll, 1, within.as_millis() as libc::c_int) > 0 }
            };
            if ready(TICK) {
                return Ok(());
            }
            // Something that it has started may hold its pipes open: their end is not the only sign of its own.
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return if ready(Duration::ZERO) { Ok(()) } else { Err(self.died()) };
            }
            self.within_memory()?;
            if Instant::now() >= until {
                return Err(Failure::new(Kind::Time, format!("no answer within {seconds} seconds to")));
            }
        }
    }

    fn within_memory(&self) -> Result<(), Failure> {
        let Some((most, taken)) = self.most.zip(self.resident()) else { return Ok(()) };
        if taken <= most {
            return Ok(());
        }
        let (taken, most) = (taken >> 20, most >> 20);
        Err(Failure::new(Kind::Memory, format!("it takes {taken} MiB of memory, and may take {most}, for")))
    }

    /// Bytes of memory that the program takes, where the system tells (Linux).
    pub fn resident(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.child.id())).ok()?;
        let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
        // SAFETY: asks for a constant.
        Some(pages * u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?)
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What a closed pipe means.
    fn died(&mut self) -> Failure {
        let how = match self.ended(GRACE) {
            Some(status) => format!("it ended ({}) instead of answering", describe(status)),
            None => "it closed its pipe instead of answering".to_owned(),
        };
        Failure::new(Kind::Died, how)
    }

    /// How it ended, if it does so in time.
    fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + within;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
                _ => return None,
            }
        }
    }

    /// Ends it at once; the last lines that it has written.
    pub fn kill(mut self) -> Vec<String> {
        self.end(Duration::ZERO);
        self.log.last_words(GRACE)
    }

    /// Closes its requests, which tells it to end, and kills what is left of it and of all it has started.
    fn end(&mut self, grace: Duration) {
        if self.requests.take().is_none() {
            return;
        }
        if !grace.is_zero() {
            self.ended(grace);
        }
        // SAFETY: the group is the program's own; its number is not used again before the program is waited for, and a
        // group outlives its leader while others are in it.
        unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(GRACE);
    }
}

/// Tensors of so many bytes travel through shared memory, smaller ones through the pipe.
const SHARED_FROM: usize = 1 << 20;

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Lets a program that is being started have these files.
fn inherit(files: &[libc::c_int]) -> io::Result<()> {
    for &file in files {
        // SAFETY: changes a flag of a descriptor of the new process.
        if unsafe { libc::fcntl(file, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: asks the system to end this process with the one that has started it.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    Ok(())
}

/// Memory without a name in any file system.
#[cfg(target_os = "linux")]
fn shared_memory() -> io::Result<File> {
    // SAFETY: a name that ends with a zero, and a flag.
    let fd = unsafe { libc::memfd_create(c"victim".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[cfg(not(target_os = "linux"))]
fn shared_memory() -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}
