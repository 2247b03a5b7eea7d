//! The loop of `ascent` where a GPU does it all: images, gradients and statistics stay on the device for the whole run.
//!
//! A step is kernels on the network's device, launched one after the other without waiting for any: the gather of the draws'
//! images, what defense and network queue, the loss at the logits, the sum of the draws' gradients, and the attack's own
//! move. Only a snapshot copies something to the host, and waits. The arithmetic is that of the host's way, operation by
//! operation, except for sums over pixels, which have another order, and for the device's own `exp` and `log`.

mod snapshot;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use game::{Key, Norm, pullback};
use gpu::kernels::{Call, Output, Parameters, Source};

use crate::{
    Ball, Eot, Loss, Mean, Snapshot, Victim,
    attack::Images,
    victim::{Draw, split},
};

const QUERY: Source =
    Source { name: "attack-query", text: concat!(include_str!("images.cu"), include_str!("query.cu")) };
const BALL: Source = Source { name: "attack-ball", text: concat!(include_str!("images.cu"), include_str!("ball.cu")) };
/// Partial sums per image, as `PARTS` in images.cu.
const PARTS: usize = 256;

/// As `Images` in images.cu: addresses of one entry, or of one image's pixels, per image.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct At {
    x: u64,
    origin: u64,
    /// The gradient of the step's query, f32, scaled as [`crate::Query::gradient`].
    pub gradient: u64,
    log2: u64,
    partial: u64,
    total: u64,
    images: u64,
    size: u64,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for At {}

/// As `Query` in query.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Query {
    at: At,
    classes: u64,
    sums: u64,
    units: u64,
    loss_sums: u64,
    non_finite: u64,
    losses: u64,
    zeros: u64,
    factors: u64,
    logit_sums: u64,
    k: u64,
    draws: u64,
    by_image: u64,
    first: u64,
    rows: u64,
    logits: u64,
    upstream: u64,
    row_loss: u64,
    row_log2: u64,
    spread: u64,
    answer: u64,
    broken: u64,
    alive: u64,
    fade: u64,
    share: u64,
    out: u64,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Query {}

impl Query {
    /// The image of this chunk's first draw.
    const fn image(&self) -> u64 {
        self.first / self.draws
    }

    /// The images this chunk has draws of.
    const fn images(&self) -> usize {
        ((self.first + self.rows - 1) / self.draws - self.image() + 1) as usize
    }
}

/// As `Words` in query.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Words {
    words: u64,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Words {}

/// As `Move` in ball.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Move {
    at: At,
    direction: u64,
    step: f64,
    eps: f64,
}
// SAFETY: the fields are the kernels'.
unsafe impl Parameters for Move {}

/// The loss of every row of some logits, and the powers of two that were taken out of its gradient.
struct Said {
    loss: Output,
    log2: Output,
}

/// What a run starts with.
pub(crate) struct Run<'a> {
    pub victim: &'a Victim<'a>,
    pub keys: &'a [Key],
    /// What every image's loss is about.
    pub classes: Vec<u32>,
    pub origins: Images,
    /// The images as they start.
    pub images: Images,
    pub ball: Ball,
    /// Where no snapshot may find an image outside.
    pub inside: Ball,
    pub steps: Vec<usize>,
    pub loss: Loss,
    pub eot: Eot,
}

/// A run whose state is on the network's device. Its kernels are queued; only [`Queue::snapshot`] waits for them.
pub(crate) struct Queue<'a> {
    run: Run<'a>,
    step: usize,
    dims: (usize, usize, usize, usize),
    /// Keeps what only kernels hold the addresses of.
    call: Call,
    memory: Vec<Output>,
    query: Query,
}

impl<'a> Queue<'a> {
    /// Copies the images to the device.
    pub fn new(run: Run<'a>) -> Result<Self> {
        let device = run.victim.net.device();
        let x = run.images.tensor()?;
        let (n, size, k) = (run.images.count(), run.images.size(), run.victim.net.classes());
        let mut call = Call::new(device);
        let start = call.read(&x.to_device(device)?, DType::F32)?;
        let origin = call.read(&run.origins.tensor()?.to_device(device)?, DType::F32)?;
        let query = Query { classes: call.upload(&run.classes)?, ..Query::default() };
        let mut queue = Self { step: 0, dims: x.dims4()?, call, memory: vec![], query, run };
        let at = At {
            x: queue.memory(n * size, DType::F32)?,
            origin,
            gradient: queue.zeros(n * size, DType::F32)?,
            log2: queue.zeros(n, DType::U32)?,
            partial: queue.zeros(n * PARTS, DType::F64)?,
            total: queue.zeros(n, DType::F64)?,
            images: n as u64,
            size: size as u64,
        };
        let by_image = queue.run.eot.mean == Mean::Logits;
        queue.query = Query {
            at,
            sums: queue.memory(n * size, DType::F64)?,
            units: queue.memory(n, DType::U32)?,
            loss_sums: queue.memory(n, DType::F64)?,
            non_finite: queue.zeros(n, DType::F64)?,
            losses: queue.zeros(n, DType::F64)?,
            zeros: queue.memory(n, DType::U32)?,
            factors: queue.memory(n, DType::F64)?,
            logit_sums: queue.memory(if by_image { n * k } else { 0 }, DType::F64)?,
            k: k as u64,
            draws: queue.run.eot.draws as u64,
            by_image: u64::from(by_image),
            ..queue.query
        };
        queue.copy(Query { at: At { x: start, ..at }, out: at.x, ..queue.everything() })?;
        Ok(queue)
    }

    /// The step, from 1.
    pub const fn step(&self) -> usize {
        self.step
    }

    /// What kernels read and write.
    pub const fn at(&self) -> At {
        self.query.at
    }

    /// The number of pixels of one image, over all channels.
    pub const fn size(&self) -> usize {
        self.query.at.size as usize
    }

    /// The number of pixels of all images.
    pub const fn pixels(&self) -> usize {
        self.count() * self.size()
    }

    const fn count(&self) -> usize {
        self.query.at.images as usize
    }

    fn device(&self) -> &Device {
        self.run.victim.net.device()
    }

    /// The address of numbers that live as long as the run, and are anything at first.
    fn memory(&mut self, len: usize, dtype: DType) -> Result<u64> {
        let output = self.call.output(len, dtype)?;
        let address = output.address;
        self.memory.push(output);
        Ok(address)
    }

    /// The address of `len` numbers that live as long as the run, and are 0 at first: f32, f64 or u32.
    pub fn zeros(&mut self, len: usize, dtype: DType) -> Result<u64> {
        let address = self.memory(len, dtype)?;
        self.clear(address, len * dtype.size_in_bytes() / 4)?;
        Ok(address)
    }

    fn clear(&self, words: u64, len: usize) -> Result<()> {
        // SAFETY: the callers' memory is so long.
        unsafe { self.launch(&QUERY, "clear", len, &Words { words }) }
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// With these parameters no thread reads or writes but what of this run's memory is its own.
    pub unsafe fn launch(&self, source: &Source, kernel: &str, threads: usize, with: &impl Parameters) -> Result<()> {
        // SAFETY: the caller's; the memory lives as long as this.
        unsafe { self.call.launch(source, kernel, threads, with) }
    }

    /// Queues a kernel with one thread for every partial sum, and adds those up to every image's `total`.
    ///
    /// # Safety
    /// As [`Queue::launch`], and the kernel writes all of `partial`.
    pub unsafe fn sum(&self, source: &Source, kernel: &str, with: &impl Parameters) -> Result<()> {
        // SAFETY: the caller's; `fold` reads the partial sums of an image and writes its total.
        unsafe {
            self.launch(source, kernel, self.count() * PARTS, with)?;
            self.launch(&BALL, "fold", self.count(), &self.at())
        }
    }

    /// Asks once a step, has `turn` move the images, and hands over the snapshots.
    pub fn run(
        mut self,
        sink: &mut dyn FnMut(Snapshot) -> Result<()>,
        mut turn: impl FnMut(&Self) -> Result<()>,
    ) -> Result<()> {
        let steps = self.run.steps.clone();
        for step in 1..=steps.last().copied().unwrap_or(0) {
            self.step = step;
            self.ask()?;
            turn(&self)?;
            if steps.contains(&step) {
                sink(self.snapshot()?)?;
            }
        }
        Ok(())
    }

    /// Moves the images along `direction`, an address as [`At::gradient`], as [`Ball::ascend`] does.
    pub fn ascend(&self, direction: u64, step: f64) -> Result<()> {
        let step = Move { direction, step, ..self.movement() };
        // SAFETY: a thread has a pixel, or a partial sum, of its own.
        unsafe {
            match self.run.ball.norm {
                Norm::Linf => self.launch(&BALL, "ascend_linf", self.pixels(), &step),
                Norm::L2 => {
                    self.sum(&BALL, "squares", &step)?;
                    self.launch(&BALL, "ascend_l2", self.pixels(), &step)
                }
            }
        }
    }

    /// Brings the images back into `[0, 1]`.
    pub fn clamp(&self) -> Result<()> {
        // SAFETY: a thread has a pixel of its own.
        unsafe { self.launch(&BALL, "box", self.pixels(), &self.at()) }
    }

    /// Puts the squared distance of every image from its origin into its `total`.
    pub fn measure(&self) -> Result<()> {
        // SAFETY: a thread has a partial sum of its own.
        unsafe { self.sum(&BALL, "distances", &self.at()) }
    }

    /// Brings the images back as [`Ball::project`] does.
    pub fn project(&self) -> Result<()> {
        self.clamp()?;
        let kernel = match self.run.ball.norm {
            Norm::Linf => "clip",
            Norm::L2 => {
                self.measure()?;
                "shorten"
            }
        };
        // SAFETY: a thread has a pixel of its own.
        unsafe { self.launch(&BALL, kernel, self.pixels(), &self.movement()) }
    }

    const fn movement(&self) -> Move {
        Move { at: self.at(), direction: self.query.at.gradient, step: 0.0, eps: self.run.ball.eps }
    }

    /// One gradient query about every image, as [`Victim::gradient`].
    fn ask(&self) -> Result<()> {
        let Run { victim, eot, .. } = &self.run;
        let (query, n, k) = (&self.query, self.count(), self.query.k as usize);
        self.clear(query.sums, 2 * self.pixels())?;
        // SAFETY: a thread has an image of its own.
        unsafe { self.launch(&QUERY, "begin", n, query)? };
        let keys: Vec<Key> = self.run.keys.iter().map(|key| key.at(self.step as u64)).collect();
        let draws = Draw::all(&keys, eot.draws);
        match eot.mean {
            Mean::Gradients => self.backward(&draws, victim.batch, false)?,
            // All draws of an image in one evaluation, which yields the mean and the gradient at once.
            Mean::Logits if eot.draws <= victim.batch => {
                self.backward(&draws, victim.batch / eot.draws * eot.draws, true)?;
            }
            Mean::Logits => {
                self.clear(query.logit_sums, 2 * n * k)?;
                self.forward(&draws)?;
                self.backward(&draws, victim.batch, false)?;
            }
        }
        // SAFETY: a thread has an image, or a share of its pixels, of its own.
        unsafe {
            self.launch(&QUERY, "largest", n * PARTS, query)?;
            self.launch(&QUERY, "scale", n, query)?;
            self.launch(&QUERY, "finish", n * PARTS, query)
        }
    }

    /// Adds up the logits of the draws of every image.
    fn forward(&self, draws: &[Draw]) -> Result<()> {
        for (chunk, draws) in draws.chunks(self.run.victim.batch).enumerate() {
            let query = self.chunk(chunk * self.run.victim.batch, draws);
            let images = self.gather(query)?;
            let (defense, net) = split(&Draw::keys(draws));
            let defended = self.run.victim.defense.apply(&images, &defense)?;
            let logits = self.wide(&self.run.victim.net.logits(&defended, &net)?, query)?;
            let mut call = Call::new(self.device());
            let query = Query { logits: call.read(&logits, DType::F64)?, ..query };
            self.add_logits(&query)?;
        }
        Ok(())
    }

    fn add_logits(&self, query: &Query) -> Result<()> {
        // SAFETY: a thread has one image's sum of one class of its own.
        unsafe { self.launch(&QUERY, "add_logits", query.images() * query.k as usize, query) }
    }

    /// Adds up every draw's gradient, at most `batch` draws at a time; `whole` says that these are all draws of some
    /// images, and that their logits are still to be added up.
    fn backward(&self, draws: &[Draw], batch: usize, whole: bool) -> Result<()> {
        let Victim { net, defense, .. } = *self.run.victim;
        for (chunk, draws) in draws.chunks(batch).enumerate() {
            let query = self.chunk(chunk * batch, draws);
            let images = self.gather(query)?;
            let (defense_keys, net_keys) = split(&Draw::keys(draws));
            let defended = defense.apply(&images, &defense_keys)?;
            let mut said = None;
            let above = net.input_gradient(&defended, &net_keys, &mut |logits| {
                let (upstream, losses) = self.upstream(query, logits, whole)?;
                said = Some(losses);
                Ok(upstream)
            })?;
            let Some(said) = said else { bail!("the network did not ask for the gradient at its logits") };
            self.add(query, &said, &pullback(defense, &images, &defense_keys, &above)?)?;
        }
        Ok(())
    }

    /// The draws of a chunk of all.
    fn chunk(&self, first: usize, draws: &[Draw]) -> Query {
        Query { first: first as u64, rows: draws.len() as u64, ..self.query }
    }

    /// All images as if they were the draws.
    fn everything(&self) -> Query {
        Query { draws: 1, first: 0, rows: self.query.at.images, ..self.query }
    }

    fn copy(&self, query: Query) -> Result<()> {
        // SAFETY: a thread writes one pixel of its own.
        unsafe { self.launch(&QUERY, "gather", query.rows as usize * self.size(), &query) }
    }

    /// The image of every draw, `(rows, c, h, w)`.
    fn gather(&self, query: Query) -> Result<Tensor> {
        let (_, c, h, w) = self.dims;
        let out = self.call.output((query.rows as usize, c, h, w), DType::F32)?;
        self.copy(Query { out: out.address, ..query })?;
        Ok(out.tensor())
    }

    /// The logits of every draw in f64.
    fn wide(&self, logits: &Tensor, query: Query) -> Result<Tensor> {
        if logits.dims() != [query.rows as usize, query.k as usize] {
            bail!("logits of {:?} for {} images and {} classes", logits.dims(), query.rows, query.k)
        }
        logits.to_dtype(DType::F64)
    }

    /// The gradient of the loss at the logits, row by row, and what goes with it. It may be asked again.
    fn upstream(&self, query: Query, logits: &Tensor, whole: bool) -> Result<(Tensor, Said)> {
        let wide = self.wide(logits, query)?;
        let mut call = Call::new(self.device());
        let (k, rows) = (query.k as usize, query.rows as usize);
        let losses = if query.by_image == 1 { query.images() } else { rows };
        let output = |shape: Shape, dtype| call.output(shape, dtype);
        let upstream = output((losses, k).into(), DType::F64)?;
        let said = Said { loss: output(losses.into(), DType::F64)?, log2: output(losses.into(), DType::U32)? };
        let spread = output((rows, k).into(), DType::F64)?;
        let query = Query {
            logits: call.read(&wide, DType::F64)?,
            upstream: upstream.address,
            row_loss: said.loss.address,
            row_log2: said.log2.address,
            spread: spread.address,
            ..query
        };
        if whole {
            self.clear(query.logit_sums + 8 * query.image() * query.k, 2 * losses * k)?;
            self.add_logits(&query)?;
        }
        let kernel = match self.run.loss {
            Loss::CrossEntropy => "cross_entropies",
            Loss::Margin => "margins",
        };
        // SAFETY: a thread writes a row, or an entry, of its own.
        unsafe { self.launch(&QUERY, kernel, losses, &query)? };
        let rows = if query.by_image == 1 {
            // SAFETY: as above.
            unsafe { self.launch(&QUERY, "repeat", rows * k, &query)? };
            spread
        } else {
            upstream
        };
        Ok((rows.tensor().to_dtype(logits.dtype())?, said))
    }

    /// Adds the gradients of some draws to the sums of their images.
    fn add(&self, query: Query, said: &Said, gradient: &Tensor) -> Result<()> {
        let rows = query.rows as usize;
        if gradient.elem_count() != rows * self.size() {
            bail!("a gradient of {:?} for {rows} images of {} pixels", gradient.dims(), self.size())
        }
        let mut call = Call::new(self.device());
        let counts = [call.output(rows, DType::U32)?, call.output(rows, DType::U32)?];
        let weights = [call.output(rows, DType::F64)?, call.output(rows, DType::F64)?];
        let query = Query {
            row_loss: said.loss.address,
            row_log2: said.log2.address,
            answer: call.read(&gradient.to_dtype(DType::F32)?, DType::F32)?,
            broken: counts[0].address,
            alive: counts[1].address,
            fade: weights[0].address,
            share: weights[1].address,
            ..query
        };
        // SAFETY: a thread writes what belongs to its draw, image or pixel; only `census` shares, and adds atomically.
        unsafe {
            self.launch(&QUERY, "begin_draws", rows, &query)?;
            self.launch(&QUERY, "census", rows * PARTS, &query)?;
            self.launch(&QUERY, "weigh", query.images(), &query)?;
            self.launch(&QUERY, "add", query.images() * self.size(), &query)
        }
    }
}
