//! Streams, events and graphs. Every call is done when it returns; what a stream captures is kept and not done.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::Instant,
};

use crate::{
    failure::{
        CAPTURE_INVALIDATED, CAPTURE_ISOLATION, CAPTURE_UNMATCHED, CAPTURE_UNSUPPORTED, CAPTURED_EVENT, INVALID_HANDLE,
        INVALID_VALUE, Outcome, fail,
    },
    memory,
};

/// Something for the device to do.
pub type Work = Arc<dyn Fn() -> Outcome + Send + Sync>;

/// A stream's handle: 0 and 1 are the legacy default stream, 2 is each thread's own.
pub type Handle = usize;
const PER_THREAD: Handle = 2;

/// What was captured, ready to be done again and again.
#[derive(Default)]
pub struct Graph {
    work: Vec<Work>,
    /// Memory that was allocated while it was captured: it lives as long as the graph.
    memory: Vec<u64>,
}

impl Graph {
    /// How many things it does.
    pub fn len(&self) -> usize {
        self.work.len()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        for address in self.memory.drain(..) {
            let _ = memory::free(address);
        }
    }
}

struct Capture {
    graph: Graph,
    mode: u32,
    thread: ThreadId,
    streams: Vec<Key>,
    invalid: Option<String>,
}

/// A stream as one thread names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(Handle, Option<ThreadId>);

fn key(stream: Handle) -> Key {
    match stream {
        0 | 1 => Key(0, None),
        PER_THREAD => Key(PER_THREAD, Some(thread::current().id())),
        other => Key(other, None),
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Never,
    At(Instant),
    /// In the capture of this number.
    Captured(u64),
}

#[derive(Default)]
struct State {
    made: u64,
    streams: Vec<Handle>,
    events: HashMap<Handle, Event>,
    captures: HashMap<u64, Capture>,
    capturing: HashMap<Key, u64>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

fn with<T>(f: impl FnOnce(&mut State) -> T) -> T {
    let mut state: MutexGuard<'_, Option<State>> = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    f(state.get_or_insert_default())
}

impl State {
    /// Handles look like addresses, and none is used twice.
    fn handle(&mut self) -> Handle {
        self.made += 1;
        0x1000 + 16 * self.made as usize
    }

    fn capture(&mut self, stream: Handle) -> Outcome<Option<(u64, &mut Capture)>> {
        if stream > PER_THREAD && !self.streams.contains(&stream) {
            return fail(INVALID_HANDLE, format!("{stream:#x} is no stream"));
        }
        match self.capturing.get(&key(stream)) {
            Some(&number) => Ok(self.captures.get_mut(&number).map(|capture| (number, capture))),
            None => Ok(None),
        }
    }
}

pub fn create() -> Handle {
    with(|state| {
        let handle = state.handle();
        state.streams.push(handle);
        handle
    })
}

pub fn destroy(stream: Handle) -> Outcome {
    with(|state| match state.streams.iter().position(|known| *known == stream) {
        Some(at) => {
            state.streams.swap_remove(at);
            Ok(())
        }
        None => fail(INVALID_HANDLE, format!("{stream:#x} is no stream")),
    })
}

/// Does something, or keeps it where the stream captures.
pub fn submit(stream: Handle, work: impl Fn() -> Outcome + Send + Sync + 'static) -> Outcome {
    let work: Work = Arc::new(work);
    let kept = with(|state| {
        Ok(match state.capture(stream)? {
            Some((_, capture)) => {
                capture.graph.work.push(work.clone());
                true
            }
            None => false,
        })
    })?;
    if kept { Ok(()) } else { work() }
}

/// Fails for what may not be called while a stream captures, and spoils that capture.
pub fn forbid(stream: Handle, call: &str) -> Outcome {
    with(|state| match state.capture(stream)? {
        Some((_, capture)) => {
            capture.invalid = Some(call.to_owned());
            fail(CAPTURE_UNSUPPORTED, format!("{call} of a stream that is capturing"))
        }
        None => Ok(()),
    })
}

/// Fails for what may not be called while any stream captures in a mode that forbids it.
pub fn forbid_everywhere(call: &str) -> Outcome {
    with(|state| {
        let here = thread::current().id();
        for capture in state.captures.values_mut() {
            // Global: of any thread; thread-local: of this one; relaxed: none.
            if capture.mode == 0 || capture.mode == 1 && capture.thread == here {
                capture.invalid = Some(call.to_owned());
                return fail(CAPTURE_UNSUPPORTED, format!("{call} while a stream is capturing"));
            }
        }
        Ok(())
    })
}

/// Whether the stream captures: 0 no, 1 yes, 2 the capture is spoilt; and the capture's number.
pub fn status(stream: Handle) -> Outcome<(u32, u64)> {
    with(|state| {
        Ok(match state.capture(stream)? {
            Some((number, capture)) => (if capture.invalid.is_some() { 2 } else { 1 }, number),
            None => (0, 0),
        })
    })
}

pub fn begin(stream: Handle, mode: u32) -> Outcome {
    if stream < PER_THREAD {
        return fail(CAPTURE_UNSUPPORTED, "the legacy default stream cannot capture");
    }
    with(|state| {
        if state.capture(stream)?.is_some() {
            return fail(INVALID_VALUE, "the stream is capturing already");
        }
        state.made += 1;
        let (number, key) = (state.made, key(stream));
        let thread = thread::current().id();
        let capture = Capture { graph: Graph::default(), mode, thread, streams: vec![key], invalid: None };
        state.captures.insert(number, capture);
        state.capturing.insert(key, number);
        Ok(())
    })
}

pub fn end(stream: Handle) -> Outcome<Arc<Graph>> {
    with(|state| {
        let Some((number, capture)) = state.capture(stream)? else {
            return fail(CAPTURE_UNMATCHED, "the stream is not capturing");
        };
        if capture.streams[0] != key(stream) {
            return fail(CAPTURE_UNMATCHED, "the capture began on another stream");
        }
        state.capturing.retain(|_, of| *of != number);
        let Some(capture) = state.captures.remove(&number) else { return fail(CAPTURE_UNMATCHED, "no capture") };
        match capture.invalid {
            Some(call) => fail(CAPTURE_INVALIDATED, format!("{call} has spoilt the capture")),
            None => Ok(Arc::new(capture.graph)),
        }
    })
}

pub fn launch(graph: &Arc<Graph>, stream: Handle) -> Outcome {
    let graph = graph.clone();
    submit(stream, move || graph.work.iter().try_for_each(|work| work()))
}

/// Memory in the order of a stream: a capture keeps what it allocates.
pub fn allocate(stream: Handle, bytes: usize) -> Outcome<u64> {
    let address = memory::allocate(bytes)?;
    with(|state| {
        if let Some((_, capture)) = state.capture(stream)? {
            capture.graph.memory.push(address);
        }
        Ok(address)
    })
}

pub fn free(stream: Handle, address: u64) -> Outcome {
    let kept = with(|state| match state.capture(stream)? {
        Some((_, capture)) if capture.graph.memory.contains(&address) => Ok(true),
        Some((_, capture)) => {
            capture.invalid = Some("a free of memory from outside".to_owned());
            fail(INVALID_VALUE, format!("{address:#x} is freed in a capture, but was allocated before it"))
        }
        None => Ok(false),
    })?;
    if kept { Ok(()) } else { memory::free(address) }
}

pub fn new_event() -> Handle {
    with(|state| {
        let handle = state.handle();
        state.events.insert(handle, Event::Never);
        handle
    })
}

pub fn destroy_event(event: Handle) -> Outcome {
    with(|state| match state.events.remove(&event) {
        Some(_) => Ok(()),
        None => fail(INVALID_HANDLE, format!("{event:#x} is no event")),
    })
}

pub fn record(event: Handle, stream: Handle) -> Outcome {
    with(|state| {
        let now = match state.capture(stream)? {
            Some((number, _)) => Event::Captured(number),
            None => Event::At(Instant::now()),
        };
        match state.events.get_mut(&event) {
            Some(event) => *event = now,
            None => return fail(INVALID_HANDLE, format!("{event:#x} is no event")),
        }
        Ok(())
    })
}

/// What the host asks about an event; an event of a capture never happens.
pub fn query(event: Handle) -> Outcome<Option<Instant>> {
    with(|state| match state.events.get(&event) {
        Some(Event::At(when)) => Ok(Some(*when)),
        Some(Event::Never) => Ok(None),
        Some(Event::Captured(_)) => fail(CAPTURED_EVENT, "an event of a capture is asked about"),
        None => fail(INVALID_HANDLE, format!("{event:#x} is no event")),
    })
}

pub fn wait(stream: Handle, event: Handle) -> Outcome {
    with(|state| {
        let Some(&event) = state.events.get(&event) else {
            return fail(INVALID_HANDLE, format!("{event:#x} is no event"));
        };
        let captured = state.capture(stream)?.map(|(number, _)| number);
        match (captured, event) {
            (None, Event::Captured(number)) => {
                let key = key(stream);
                if let Some(capture) = state.captures.get_mut(&number) {
                    capture.streams.push(key);
                    state.capturing.insert(key, number);
                }
                Ok(())
            }
            (Some(number), Event::At(_)) => {
                if let Some(capture) = state.captures.get_mut(&number) {
                    capture.invalid = Some("a wait for an event from outside".to_owned());
                }
                fail(CAPTURE_ISOLATION, "a stream that is capturing waits for an event from outside the capture")
            }
            _ => Ok(()),
        }
    })
}
