//! A program that answers: asked, started again, asked again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use candle_core::{DType, Device, Tensor};
use game::{Key, Program};

use crate::{
    Array, Hello, Message, Result, files,
    process::{Failure, Fault, Kind, Process},
    wire::Numbers,
};

/// Where a program runs and what it may take; nothing here changes an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How long one request may take, in seconds.
    pub seconds: f64,
    /// How many bytes of memory it may take; any number where there is none.
    pub memory: Option<u64>,
    /// How many threads it is asked to compute with (`VICTIM_THREADS`).
    pub threads: usize,
    /// Whether big tensors may travel through shared memory, where the program offers it too.
    pub shared_memory: bool,
    /// The folder that relative paths are below, beside the current one.
    pub data_root: Option<PathBuf>,
}

impl Options {
    /// The environment's: `VICTIM_SECONDS` (600 unless set) and `VICTIM_MEMORY` (MiB; no limit unless set).
    ///
    /// # Errors
    /// One sentence: a variable that is no such number.
    pub fn from_env(data_root: Option<&Path>) -> Result<Self, String> {
        let number = |name: &str| -> Result<Option<f64>, String> {
            let Some(text) = std::env::var(name).ok().filter(|text| !text.trim().is_empty()) else { return Ok(None) };
            match text.trim().parse() {
                Ok(number) if number > 0.0 && f64::is_finite(number) => Ok(Some(number)),
                _ => Err(format!("{name}={text} is no number above 0")),
            }
        };
        Ok(Self {
            seconds: number("VICTIM_SECONDS")?.unwrap_or(600.0),
            memory: number("VICTIM_MEMORY")?.map(|mebibytes| (mebibytes * f64::from(1 << 20)) as u64),
            threads: rayon::current_num_threads(),
            shared_memory: true,
            data_root: data_root.map(Path::to_owned),
        })
    }
}

/// What is made of the gradients of an image's draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Their mean: one gradient for each image.
    Mean,
    /// Nothing: one gradient for each draw.
    Each,
}

/// A gradient, and what the program says of it.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The gradient with respect to the images, `(n, c, h, w)`, f32; of every draw, image after image, `(n m, c, h, w)`.
    pub gradient: Tensor,
    /// Whether the program says that its answer does not depend on the images by any operation that has a derivative: then
    /// the gradient is zero.
    pub cut: bool,
}

/// A program, started and ready.
///
/// It may be shared by threads: requests are answered one after another. A request that fails is asked once more of a program
/// started anew, so what it answers must depend on images and keys alone.
#[derive(Debug)]
pub struct Client {
    program: Program,
    options: Options,
    command: Vec<PathBuf>,
    files: BTreeMap<String, String>,
    hello: Hello,
    state: Mutex<State>,
    restarts: AtomicU64,
    requests: AtomicU64,
    id: AtomicU32,
    fault: Mutex<Option<Fault>>,
}

#[derive(Debug)]
pub(crate) struct State {
    process: Option<Process>,
    /// The number of the last request.
    last: u64,
    /// Counts starts: what a process of an earlier one kept is gone.
    pub generation: u64,
}

impl Client {
    /// Starts a program and hears its hello.
    ///
    /// # Errors
    /// If its files are not those that the parameters state, it cannot be started, or says no hello.
    pub fn start(program: &Program, options: &Options) -> Result<Self> {
        let fault = |kind, reason: String| Fault { program: program.line(), kind, reason, last_words: Vec::new() };
        program.check().map_err(|reason| fault(Kind::Start, reason))?;
        let root = options.data_root.as_deref();
        let files = files::verify(program, root).map_err(|reason| fault(Kind::Start, reason.to_string()))?;
        let command = files::command(program, root).map_err(|reason| fault(Kind::Start, reason.to_string()))?;
        let mut tries = 0;
        let (process, hello) = loop {
            match begin(program, &command, options) {
                Ok(begun) => break begun,
                // What cannot be started or speaks otherwise will do so again.
                Err(fault) if tries == 1 || matches!(fault.kind, Kind::Start | Kind::Reply) => return Err(fault),
                Err(fault) => tracing::warn!("{fault}; starting it once more"),
            }
            tries += 1;
        };
        Ok(Self {
            program: program.clone(),
            options: options.clone(),
            command,
            files,
            hello,
            id: AtomicU32::new(process.id()),
            state: Mutex::new(State { process: Some(process), last: 0, generation: 0 }),
            restarts: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            fault: Mutex::new(None),
        })
    }

    /// What the program says of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// How it is called.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// SHA-256 of its files, by the names its parameters give them, as they were when it was started.
    #[must_use]
    pub fn files(&self) -> &BTreeMap<String, String> {
        &self.files
    }

    /// How often it has been started again.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// How many requests it has been asked, repetitions among them.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The failure that a caller was told of last.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of memory that it takes now, where the system tells.
    #[must_use]
    pub fn resident(&self) -> Option<u64> {
        self.lock().process.as_ref().and_then(Process::resident)
    }

    /// The number of the process that was started last.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.id.load(Ordering::Relaxed)
    }

    /// Logits `(n m, k)`, f32, of the images `(n, c, h, w)`: `keys` are those of image after image's `m` draws.
    ///
    /// # Errors
    /// If it fails twice, or was asked for what it is not.
    pub fn logits(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        let rows = Rows::new(self, "logits", x, keys)?;
        let k = self.hello.classes.unwrap_or(0);
        let mut logits = Vec::with_capacity(keys.len() * k);
        for part in rows.parts(self.hello.batch) {
            logits.extend(self.exchange(|session| session.logits(&part, k, false).map(|(_, logits)| logits))?);
        }
        tensor(logits, &[keys.len(), k])
    }

    /// The gradient with respect to the images of a loss whose gradient at the logits `upstream` answers, `(n m, k)` to
    /// `(n m, k)`; it is called once. Draws are as in [`Client::logits`].
    ///
    /// Where there are more rows than the program takes in one request, it evaluates them twice rather than keep them all.
    ///
    /// # Errors
    /// If it fails twice, was asked for what it is not, or `upstream` fails.
    pub fn gradient(
        &self,
        x: &Tensor,
        keys: &[Key],
        reduce: Reduce,
        upstream: &mut dyn FnMut(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Answer> {
        let rows = Rows::new(self, "logits", x, keys)?;
        self.needs("pull")?;
        let k = self.hello.classes.unwrap_or(0);
        let shape = [keys.len(), k];
        let parts = rows.parts(self.hello.batch);
        let mut cotangent = None;
        if parts.len() > 1 {
            let logits = self.logits(x, keys)?;
            cotangent = Some(self.host(&upstream(&logits).map_err(|error| self.misuse(error.to_string()))?)?);
        }
        let mut gradient = Vec::with_capacity(keys.len() * rows.size());
        let (mut cut, mut first) = (true, 0);
        for part in &parts {
            let own = first * k..(first + part.rows()) * k;
            first += part.rows();
            let (pulled, was_cut) = self.exchange(|session| {
                let (id, logits) = session.logits(part, k, true)?;
                // A repetition must not ask again: a loss may count how often it is asked.
                if cotangent.is_none() {
                    let logits = Tensor::from_vec(logits, &shape[..], &Device::Cpu);
                    let above = logits.and_then(|logits| upstream(&logits)).and_then(|above| host(&above));
                    cotangent = Some(above.map_err(|error| Failure::new(Kind::Misuse, error.to_string()))?);
                }
                let above = cotangent.as_ref().map(|above| &above[own.clone()]).unwrap_or_default();
                let mean = reduce == Reduce::Mean && parts.len() == 1;
                session.pull(part, id, Array::f32(&[part.images, part.draws, k], above.to_vec()), mean)
            })?;
            gradient.extend(pulled);
            cut &= was_cut;
        }
        let [c, h, w] = rows.sides;
        let n = gradient.len() / rows.size().max(1);
        let gradient = tensor(gradient, &[n, c, h, w])?;
        let images = keys.len() / rows.draws.max(1);
        if reduce == Reduce::Mean && n != images {
            let each = gradient.reshape((images, rows.draws, c, h, w)).and_then(|each| each.mean(1));
            return Ok(Answer { gradient: each.map_err(|error| self.misuse(error.to_string()))?, cut });
        }
        Ok(Answer { gradient, cut })
    }

    /// Transformed images `(n, c', h', w')`, f32, of `(n, c, h, w)`: one key for each.
    ///
    /// # Errors
    /// If it fails twice, or was asked for what it is not.
    pub fn apply(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        Ok(self.applied(x, keys, false)?.0)
    }

    /// The same, and what must be given back for [`Client::pull_kept`]; nothing where the request was divided.
    pub(crate) fn applied(&self, x: &Tensor, keys: &[Key], keep: bool) -> Result<(Tensor, Option<(u64, u64)>)> {
        let rows = Rows::new(self, "apply", x, keys)?;
        let parts = rows.parts(self.hello.batch);
        let keep = keep && parts.len() == 1;
        let (mut images, mut shape, mut kept) = (Vec::new(), vec![0, 0, 0], None);
        for part in &parts {
            let (id, sides, pixels) = self.exchange(|session| {
                let (id, sides, pixels) = session.apply(part, keep)?;
                Ok(((id, session.generation()), sides, pixels))
            })?;
            if !images.is_empty() && sides != shape {
                return Err(self.misuse("its images have other sides in one batch than in another".to_owned()));
            }
            (shape, kept) = (sides, keep.then_some(id));
            images.extend(pixels);
        }
        if parts.is_empty() {
            shape = rows.sides.to_vec();
        }
        Ok((tensor(images, &[&[keys.len()], &shape[..]].concat())?, kept))
    }

    /// The product of `upstream`, `(n, c', h', w')`, with the Jacobian of [`Client::apply`] at `x`: `(n, c, h, w)`, f32.
    ///
    /// # Errors
    /// If it fails twice, or was asked for what it is not.
    pub fn pullback(&self, x: &Tensor, keys: &[Key], upstream: &Tensor) -> Result<Answer> {
        self.pull_kept(x, keys, upstream, None)
    }

    /// The same, of what the program has kept, if it still has it.
    pub(crate) fn pull_kept(
        &self,
        x: &Tensor,
        keys: &[Key],
        upstream: &Tensor,
        mut kept: Option<(u64, u64)>,
    ) -> Result<Answer> {
        let rows = Rows::new(self, "apply", x, keys)?;
        self.needs("pull")?;
        if upstream.dims().first() != Some(&keys.len()) {
            let (n, m) = (keys.len(), upstream.dims());
            return Err(self.misuse(format!("a gradient of {m:?} does not fit {n} images")));
        }
        let (above, size) = (self.host(upstream)?, upstream.elem_count() / keys.len().max(1));
        let (mut gradient, mut cut, mut first) = (Vec::new(), true, 0);
        for part in &rows.parts(self.hello.batch) {
            let own = above[first * size..(first + part.rows()) * size].to_vec();
            first += part.rows();
            let cotangent = Array::f32(&[&[part.images, 1], &upstream.dims()[1..]].concat(), own);
            let (pulled, was_cut) = self.exchange(|session| {
                let id = match kept.take().filter(|(_, generation)| *generation == session.generation()) {
                    Some((id, _)) => id,
                    None => session.apply(part, true)?.0,
                };
                session.pull(part, id, cotangent.clone(), true)
            })?;
            gradient.extend(pulled);
            cut &= was_cut;
        }
        Ok(Answer { gradient: tensor(gradient, x.dims())?, cut })
    }

    /// Lets the program forget what it has kept for a gradient that nobody asks for any more.
    pub(crate) fn forget(&self, (id, generation): (u64, u64)) -> Result<()> {
        self.exchange(|session| if session.generation() == generation { session.forget(id) } else { Ok(()) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn misuse(&self, reason: String) -> Fault {
        self.record(Fault { program: self.program.line(), kind: Kind::Misuse, reason, last_words: Vec::new() })
    }

    fn record(&self, fault: Fault) -> Fault {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.clone());
        fault
    }

    fn needs(&self, operation: &str) -> Result<()> {
        if self.hello.answers(operation) {
            return Ok(());
        }
        let all = self.hello.operations.join(", ");
        let mend = match operation {
            "pull" => "it has no gradient: take an attack without, or, of a defense, `gradient = \"identity\"`",
            "apply" => "it is a network: name it as `model`",
            _ => "it is a transformation: name it as `defense`",
        };
        Err(self.misuse(format!("it answers {all}, and not {operation}; {mend}")))
    }

    fn host(&self, x: &Tensor) -> Result<Vec<f32>> {
        host(x).map_err(|error| self.misuse(error.to_string()))
    }

    /// Does `work` with the running program; where that fails, once more with one started anew.
    fn exchange<T>(&self, mut work: impl FnMut(&mut Session<'_>) -> Result<T, Failure>) -> Result<T> {
        let mut state = self.lock();
        let mut again = false;
        loop {
            let fault = match self.running(&mut state) {
                Ok(process) => {
                    let mut session = Session { client: self, process, state: &mut state };
                    match work(&mut session) {
                        Ok(done) => {
                            let Session { process, .. } = session;
                            state.process = Some(process);
                            return Ok(done);
                        }
                        Err(Failure { kind: Kind::Misuse, reason }) => {
                            let Session { process, .. } = session;
                            state.process = Some(process);
                            return Err(self.misuse(reason));
                        }
                        Err(failure) => {
                            let Session { process, .. } = session;
                            fault(&self.program, failure, process)
                        }
                    }
                }
                Err(fault) => fault,
            };
            if again || fault.kind == Kind::Start {
                let reason = if again { format!("{}, and failed before it too", fault.reason) } else { fault.reason };
                return Err(self.record(Fault { reason, ..fault }));
            }
            tracing::warn!("{fault}; starting it once more");
            again = true;
        }
    }

    /// The running program, started if it is not.
    fn running(&self, state: &mut State) -> Result<Process> {
        if let Some(process) = state.process.take() {
            return Ok(process);
        }
        self.restarts.fetch_add(1, Ordering::Relaxed);
        state.generation += 1;
        let (process, hello) = begin(&self.program, &self.command, &self.options)?;
        self.id.store(process.id(), Ordering::Relaxed);
        if hello != self.hello {
            let reason = "it says other things of itself than before: its files have changed while it ran".to_owned();
            let (program, kind) = (self.program.line(), Kind::Start);
            return Err(Fault { program, kind, reason, last_words: Vec::new() });
        }
        Ok(process)
    }
}

/// Starts a program and hears its hello.
fn begin(program: &Program, command: &[PathBuf], options: &Options) -> Result<(Process, Hello)> {
    let started = Process::start(command, &program.slug(), options);
    let mut process = started.map_err(|Failure { kind, reason }| {
        let mend = format!("{reason}; check `command`");
        Fault { program: program.line(), kind, reason: mend, last_words: Vec::new() }
    })?;
    let features = if options.shared_memory { "shared" } else { "" };
    let request = Message::new("hello", 0).with("protocol", crate::VERSION).with("features", features);
    let heard = process.ask(request, 0, options.seconds);
    let hello = heard.and_then(|reply| Hello::read(&reply).map_err(|reason| Failure::new(Kind::Reply, reason)));
    match hello {
        Ok(hello) => {
            process.shares = options.shared_memory && hello.features.iter().any(|feature| feature == "shared");
            Ok((process, hello))
        }
        Err(failure) => Err(fault(program, failure, process)),
    }
}

/// Ends the program that has failed, and keeps its last words.
fn fault(program: &Program, Failure { kind, reason }: Failure, process: Process) -> Fault {
    Fault { program: program.line(), kind, reason, last_words: process.kill() }
}

/// Some images, their draws' keys, and the sides they have.
struct Rows {
    pixels: Vec<f32>,
    keys: Vec<Key>,
    sides: [usize; 3],
    images: usize,
    draws: usize,
}

impl Rows {
    fn new(client: &Client, operation: &str, x: &Tensor, keys: &[Key]) -> Result<Self> {
        client.needs(operation)?;
        let (n, c, h, w) = x.dims4().map_err(|error| client.misuse(error.to_string()))?;
        if let Some([channels, rows, columns]) = client.hello.shape.filter(|shape| *shape != [c, h, w]) {
            let wanted = format!("it takes images of {channels}x{rows}x{columns}");
            return Err(client.misuse(format!("{wanted}, and is asked about images of {c}x{h}x{w}")));
        }
        if n == 0 && !keys.is_empty() || n > 0 && (keys.is_empty() || !keys.len().is_multiple_of(n)) {
            return Err(client.misuse(format!("{n} images with {} keys: every image needs as many draws", keys.len())));
        }
        let mut pixels = client.host(x)?;
        let [low, high] = client.hello.range;
        if [low, high] != [0.0, 1.0] {
            pixels.iter_mut().for_each(|x| *x = (low + (high - low) * f64::from(*x)) as f32);
        }
        Ok(Self { pixels, keys: keys.to_vec(), sides: [c, h, w], images: n, draws: keys.len() / n.max(1) })
    }

    /// Elements of an image.
    fn size(&self) -> usize {
        self.sides.iter().product()
    }

    fn rows(&self) -> usize {
        self.keys.len()
    }

    /// Divided so that a part has at most so many rows: by images with all their draws, or, where these are too many, draw by
    /// draw.
    fn parts(&self, most: Option<usize>) -> Vec<Self> {
        let most = most.unwrap_or(usize::MAX);
        let size = self.size();
        if self.rows() <= most {
            let (pixels, keys) = (self.pixels.clone(), self.keys.clone());
            return if keys.is_empty() { Vec::new() } else { vec![Self { pixels, keys, ..*self }] };
        }
        let mut parts = Vec::new();
        let (images, draws) = if self.draws <= most { (most / self.draws, self.draws) } else { (most, 1) };
        let repeats = self.draws / draws;
        let owners: Vec<usize> = (0..self.images).flat_map(|image| std::iter::repeat_n(image, repeats)).collect();
        for (owners, keys) in owners.chunks(images).zip(self.keys.chunks(images * draws)) {
            let pixels = owners.iter().flat_map(|&image| &self.pixels[image * size..][..size]).copied().collect();
            parts.push(Self { pixels, keys: keys.to_vec(), sides: self.sides, images: owners.len(), draws });
        }
        parts
    }

    fn message(&self, op: &str, id: u64) -> Message {
        let [c, h, w] = self.sides;
        let words = self.keys.iter().flat_map(|key| key.words()).collect();
        let x = Array::f32(&[self.images, c, h, w], self.pixels.clone());
        Message::new(op, id).tensor("x", x).tensor("keys", Array::u32(&[self.images, self.draws, 4], words))
    }
}

/// Requests to a running program.
struct Session<'a> {
    client: &'a Client,
    process: Process,
    state: &'a mut State,
}

impl Session<'_> {
    fn generation(&self) -> u64 {
        self.state.generation
    }

    fn number(&mut self) -> u64 {
        self.state.last += 1;
        self.state.last
    }

    fn ask(&mut self, request: Message, room: usize) -> Result<Message, Failure> {
        self.client.requests.fetch_add(1, Ordering::Relaxed);
        self.process.ask(request, room, self.client.options.seconds)
    }

    /// The number of the request and its logits.
    fn logits(&mut self, part: &Rows, k: usize, keep: bool) -> Result<(u64, Vec<f32>), Failure> {
        let id = self.number();
        let request = part.message("logits", id).with("keep", keep);
        let mut reply = self.ask(request, 4 * part.rows() * k)?;
        let logits = taken(&mut reply, "logits", Some(&[part.images, part.draws, k]))?.1;
        finite(&logits, "logits")?;
        Ok((id, logits))
    }

    /// The number of the request, and the images with their sides, in our range.
    fn apply(&mut self, part: &Rows, keep: bool) -> Result<(u64, Vec<usize>, Vec<f32>), Failure> {
        let id = self.number();
        let request = part.message("apply", id).with("keep", keep);
        let mut reply = self.ask(request, 4 * part.rows() * part.size())?;
        let (shape, mut images) = taken(&mut reply, "images", None)?;
        let [n, m, sides @ ..] = &shape[..] else { return Err(misshapen("images", &shape)) };
        if [*n, *m] != [part.images, part.draws] || sides.len() != 3 {
            return Err(misshapen("images", &shape));
        }
        finite(&images, "images")?;
        let [low, high] = self.client.hello.range;
        if [low, high] != [0.0, 1.0] {
            images.iter_mut().for_each(|x| *x = ((f64::from(*x) - low) / (high - low)) as f32);
        }
        Ok((id, sides.to_vec(), images))
    }

    /// The gradient at the images of an earlier request, which is forgotten; and whether the program says that there is none.
    fn pull(&mut self, part: &Rows, of: u64, cotangent: Array, mean: bool) -> Result<(Vec<f32>, bool), Failure> {
        let id = self.number();
        let of_logits = cotangent.shape.len() == 3;
        let [c, h, w] = part.sides;
        let shape = if mean { vec![part.images, c, h, w] } else { vec![part.images, part.draws, c, h, w] };
        let request = Message::new("pull", id).with("of", of).with("last", true);
        let request = request.with("reduce", if mean { "mean" } else { "each" }).tensor("cotangent", cotangent);
        let mut reply = self.ask(request, 4 * shape.iter().product::<usize>())?;
        let cut = reply.facts.get("cut").is_some_and(|cut| cut == "true");
        let mut gradient = taken(&mut reply, "gradient", Some(&shape))?.1;
        let [low, high] = self.client.hello.range;
        // A transformation's own range divides what its images' multiplies.
        if of_logits && [low, high] != [0.0, 1.0] {
            gradient.iter_mut().for_each(|entry| *entry = (f64::from(*entry) * (high - low)) as f32);
        }
        Ok((gradient, cut))
    }

    fn forget(&mut self, of: u64) -> Result<(), Failure> {
        let id = self.number();
        self.ask(Message::new("forget", id).with("of", of), 0).map(drop)
    }
}

/// A tensor of a reply, of the shape that it must have.
fn taken(reply: &mut Message, name: &str, shape: Option<&[usize]>) -> Result<(Vec<usize>, Vec<f32>), Failure> {
    match reply.tensors.remove(name) {
        Some(Array { shape: found, .. }) if shape.is_some_and(|shape| *shape != found[..]) => {
            Err(misshapen(name, &found))
        }
        Some(Array { shape, numbers: Numbers::F32(numbers) }) => Ok((shape, numbers)),
        Some(_) => Err(Failure::new(Kind::Reply, format!("its `{name}` are no F32 numbers"))),
        None => Err(Failure::new(Kind::Reply, format!("its reply has no tensor `{name}`"))),
    }
}

fn misshapen(name: &str, shape: &[usize]) -> Failure {
    Failure::new(Kind::Reply, format!("it answers `{name}` of the wrong shape {shape:?}"))
}

fn finite(numbers: &[f32], name: &str) -> Result<(), Failure> {
    match numbers.iter().find(|number| !number.is_finite()) {
        Some(number) => Err(Failure::new(Kind::Numbers, format!("it answers {name} with a {number} among them"))),
        None => Ok(()),
    }
}

/// The elements of a tensor, row-major, in f32.
fn host(x: &Tensor) -> candle_core::Result<Vec<f32>> {
    x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

fn tensor(numbers: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(numbers, shape, &Device::Cpu).map_err(|error| {
        let reason = error.to_string();
        Fault { program: String::new(), kind: Kind::Reply, reason, last_words: Vec::new() }
    })
}
