//! Warps that run a kernel's steps.
//!
//! The lanes of a warp that are at the same step take it together. Where they part, the group that is furthest behind goes
//! on first, so that the groups meet again as soon as they can.

use rayon::prelude::*;

use super::decode::{Action, Kernel, Special};
use crate::{
    failure::{
        Failure, ILLEGAL_ADDRESS, ILLEGAL_INSTRUCTION, INVALID_VALUE, LAUNCH_FAILED, MISALIGNED_ADDRESS,
        OUT_OF_RESOURCES, Outcome, fail,
    },
    memory::{self, Ranges, UNWRITTEN},
};

/// Threads of a warp.
pub const LANES: usize = 32;
/// Shared memory of a block that is asked for expressly, at most.
pub const MOST_SHARED: usize = 232_448;

/// What a generic address of shared memory begins at: no address of the host is so high.
pub const SHARED: u64 = 1 << 60;
/// The same of local memory.
pub const LOCAL: u64 = 2 << 60;
/// The same of a kernel's parameters.
pub const PARAMETERS: u64 = 3 << 60;

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Parameters,
}

/// Blocks of a grid, threads of a block, and bytes of shared memory beside the kernel's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
    pub shared: usize,
}

impl Grid {
    /// Fails where the driver of a GPU would refuse the launch.
    fn check(&self, kernel: &Kernel, most_dynamic: usize) -> Outcome {
        let Self { blocks, threads, shared } = *self;
        let count: u64 = threads.iter().map(|&n| u64::from(n)).product();
        if blocks.contains(&0) || threads.contains(&0) {
            return fail(INVALID_VALUE, format!("{self:?}: a launch of nothing"));
        }
        let limits = blocks[0] > i32::MAX as u32 || blocks[1] > 65_535 || blocks[2] > 65_535;
        if limits || threads[0] > 1024 || threads[1] > 1024 || threads[2] > 64 || count > 1024 {
            return fail(INVALID_VALUE, format!("{self:?}: too many blocks or threads"));
        }
        if count > kernel.most_threads {
            return fail(
                OUT_OF_RESOURCES,
                format!("{self:?}: the kernel is made for {} threads a block", kernel.most_threads),
            );
        }
        let most = most_dynamic.max(49_152usize.saturating_sub(kernel.shared));
        if shared > most || shared + kernel.shared > MOST_SHARED {
            return fail(
                INVALID_VALUE,
                format!("{self:?}: {} bytes of shared memory of its own and {most} more allowed", kernel.shared),
            );
        }
        Ok(())
    }
}

/// The lanes' values of one register.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Slot(pub [u64; LANES]);

/// Lanes that wait, or that are to go on later.
#[derive(Clone, Copy, Debug)]
struct Group {
    at: usize,
    lanes: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// For the other lanes of the warp.
    Meeting,
    /// For the other warps of the block.
    Barrier,
}

enum Stop {
    Done,
    Barrier,
}

/// One warp and what it sees.
pub struct Warp<'a> {
    pub slots: Vec<Slot>,
    /// The lanes that take the step at hand.
    pub active: u32,
    pub local: Vec<u8>,
    pub local_bytes: usize,
    pub shared: *mut u8,
    pub shared_bytes: usize,
    pub parameters: &'a [u8],
    memory: &'a Ranges,
    last: (u64, u64),
    at: usize,
    lanes: u32,
    alive: u32,
    others: Vec<Group>,
}

/// Calls `f` for every lane of a mask.
#[inline(always)]
pub fn each(lanes: u32, mut f: impl FnMut(usize)) {
    if lanes == u32::MAX {
        for lane in 0..LANES {
            f(lane);
        }
    } else {
        let mut left = lanes;
        while left != 0 {
            f(left.trailing_zeros() as usize);
            left &= left - 1;
        }
    }
}

impl Warp<'_> {
    #[inline(always)]
    pub fn slot(&mut self, slot: usize) -> *mut [u64; LANES] {
        debug_assert!(slot < self.slots.len());
        // SAFETY: slots are numbered by the decoder, which has made as many.
        unsafe { &raw mut (*self.slots.as_mut_ptr().add(slot)).0 }
    }

    /// The lanes for which a predicate holds.
    #[inline(always)]
    pub fn holds(&self, slot: usize) -> u32 {
        self.slots[slot].0[0] as u32
    }

    /// Sets a predicate for the lanes that take this step.
    #[inline(always)]
    pub fn set(&mut self, slot: usize, lanes: u32) {
        let kept = self.slots[slot].0[0] as u32 & !self.active;
        self.slots[slot].0[0] = u64::from(kept | lanes & self.active);
    }

    /// The place of the host that an address stands for, if so many bytes may be touched there.
    #[inline(always)]
    pub fn place(&mut self, space: Space, lane: usize, address: u64, bytes: usize) -> Outcome<*mut u8> {
        if address & (bytes as u64 - 1) != 0 {
            return misaligned(address, bytes);
        }
        match space {
            Space::Global => self.global(address, bytes),
            Space::Shared => {
                self.inside(address, bytes, self.shared_bytes, "shared").map(|at| self.shared.wrapping_add(at))
            }
            Space::Local => self.local(lane, address, bytes),
            Space::Parameters => self
                .inside(address, bytes, self.parameters.len(), "parameter")
                .map(|at| self.parameters.as_ptr().wrapping_add(at).cast_mut()),
            Space::Generic => match address & (3 << 60) {
                SHARED => self.place(Space::Shared, lane, address - SHARED, bytes),
                LOCAL => self.local(lane, address - LOCAL, bytes),
                PARAMETERS => self.place(Space::Parameters, lane, address - PARAMETERS, bytes),
                _ => self.global(address, bytes),
            },
        }
    }

    #[inline(always)]
    fn global(&mut self, address: u64, bytes: usize) -> Outcome<*mut u8> {
        let (start, end) = self.last;
        if address < start || address.wrapping_add(bytes as u64) > end || address > end {
            self.memory.check(address, bytes, "an access of global memory")?;
            self.last = self.memory.around(address).unwrap_or_default();
        }
        Ok(address as *mut u8)
    }

    fn local(&mut self, lane: usize, address: u64, bytes: usize) -> Outcome<*mut u8> {
        let at = self.inside(address, bytes, self.local_bytes, "local")?;
        Ok(self.local.as_mut_ptr().wrapping_add(lane * self.local_bytes + at))
    }

    fn inside(&self, address: u64, bytes: usize, room: usize, space: &str) -> Outcome<usize> {
        match address.checked_add(bytes as u64) {
            Some(end) if end <= room as u64 => Ok(address as usize),
            _ => fail(ILLEGAL_ADDRESS, format!("{bytes} bytes at {address:#x} of {room} bytes of {space} memory")),
        }
    }

    fn start(&mut self, kernel: &Kernel, block: [u32; 3], grid: Grid, number: usize) {
        let threads = grid.threads.map(|n| n as usize);
        let count: usize = threads.iter().product();
        let first = number * LANES;
        self.alive = if count - first >= LANES { u32::MAX } else { (1 << (count - first)) - 1 };
        (self.lanes, self.at) = (self.alive, 0);
        self.others.clear();
        if self.local_bytes > 0 {
            self.local.fill(UNWRITTEN);
        }
        for &(slot, special) in &kernel.specials {
            for lane in 0..LANES {
                let thread = first + lane;
                self.slots[slot].0[lane] = match special {
                    Special::Thread(0) => (thread % threads[0]) as u64,
                    Special::Thread(1) => (thread / threads[0] % threads[1]) as u64,
                    Special::Thread(_) => (thread / (threads[0] * threads[1])) as u64,
                    Special::Threads(axis) => threads[axis] as u64,
                    Special::Block(axis) => block[axis].into(),
                    Special::Blocks(axis) => grid.blocks[axis].into(),
                    Special::Lane => lane as u64,
                    Special::Warp => number as u64,
                    Special::Warps => count.div_ceil(LANES) as u64,
                    Special::Before => (1 << lane) - 1,
                    Special::UpTo => (2 << lane) - 1,
                    Special::This => 1 << lane,
                    Special::After => u64::from(!(((2u64 << lane) - 1) as u32)),
                    Special::From => u64::from(!(((1u64 << lane) - 1) as u32)),
                    Special::DynamicShared => grid.shared as u64,
                    Special::Zero => 0,
                };
            }
        }
    }

    /// Runs until the warp is done or waits for the others of its block.
    fn run(&mut self, kernel: &Kernel) -> Outcome<Stop> {
        if self.lanes == 0 && !self.resume()? {
            return Ok(self.stop());
        }
        loop {
            let Some(step) = kernel.code.get(self.at) else {
                return fail(ILLEGAL_INSTRUCTION, "the kernel's end is passed");
            };
            self.active = match step.guard {
                None => self.lanes,
                Some((slot, negated)) => self.lanes & if negated { !self.holds(slot) } else { self.holds(slot) },
            };
            let active = self.active;
            match &step.action {
                Action::Compute(f) => {
                    if active != 0 {
                        f(self);
                    }
                    self.at += 1;
                }
                Action::Access(f) => {
                    if active != 0 {
                        f(self).map_err(|failure| failure.within(&step.text))?;
                    }
                    self.at += 1;
                }
                Action::Branch(to) => self.part(&[(*to, active)]),
                Action::Table(slot, targets) => {
                    let mut parts = Vec::new();
                    for (number, &to) in targets.iter().enumerate() {
                        let mut lanes = 0;
                        each(active, |lane| {
                            lanes |= u32::from(self.slots[*slot].0[lane] as u32 as usize == number) << lane
                        });
                        parts.push((to, lanes));
                    }
                    if parts.iter().fold(0, |all, part| all | part.1) != active {
                        return fail(ILLEGAL_INSTRUCTION, format!("{}: beyond the table", step.text));
                    }
                    self.part(&parts);
                }
                Action::Exit => {
                    self.alive &= !active;
                    self.lanes &= !active;
                    self.at += 1;
                    if self.lanes == 0 {
                        // Those who wait for the ones that have left wait no longer.
                        for group in self.others.iter_mut().filter(|group| group.state == State::Meeting) {
                            group.state = State::Ready;
                        }
                        if !self.resume()? {
                            return Ok(self.stop());
                        }
                    }
                }
                Action::Meet(members, f) => {
                    if active != 0 && !self.meet(*members, active, &step.text)? {
                        continue;
                    }
                    if self.active != 0 {
                        f(self).map_err(|failure| failure.within(&step.text))?;
                    }
                    self.at += 1;
                }
                Action::Barrier => {
                    if active != self.lanes {
                        return fail(
                            LAUNCH_FAILED,
                            format!("{}: a barrier under a predicate that not all lanes share", step.text),
                        );
                    }
                    self.others.push(Group { at: self.at + 1, lanes: active, state: State::Barrier });
                    self.lanes = 0;
                    if !self.resume()? {
                        return Ok(self.stop());
                    }
                }
                Action::Fail(code, message) => {
                    if active != 0 {
                        return fail(*code, format!("{message} (step `{}`)", step.text));
                    }
                    self.at += 1;
                }
            }
            if !self.others.is_empty() {
                self.settle();
            }
        }
    }

    fn stop(&self) -> Stop {
        if self.others.is_empty() { Stop::Done } else { Stop::Barrier }
    }

    /// Sends lanes to other steps; what is left goes on to the next one.
    fn part(&mut self, parts: &[(usize, u32)]) {
        let next = self.at + 1;
        for &(at, lanes) in parts.iter().filter(|part| part.1 != 0) {
            self.lanes &= !lanes;
            self.others.push(Group { at, lanes, state: State::Ready });
        }
        self.at = next;
        if self.lanes == 0 && self.others.len() == 1 && self.others[0].state == State::Ready {
            // All of them go, as in most loops.
            let Some(group) = self.others.pop() else { return };
            (self.at, self.lanes) = (group.at, group.lanes);
        } else if self.lanes == 0 {
            self.at = usize::MAX;
        }
    }

    /// Joins groups at the same step, and goes on with the one furthest behind.
    fn settle(&mut self) {
        let mut i = 0;
        while i < self.others.len() {
            let group = &mut self.others[i];
            if group.state == State::Ready && self.lanes == 0 {
                (self.at, self.lanes) = (group.at, group.lanes);
                self.others.swap_remove(i);
                i = 0;
                continue;
            }
            if group.state == State::Ready && group.at < self.at {
                std::mem::swap(&mut group.at, &mut self.at);
                std::mem::swap(&mut group.lanes, &mut self.lanes);
                i = 0;
                continue;
            }
            if group.state == State::Ready && group.at == self.at {
                self.lanes |= group.lanes;
                self.others.swap_remove(i);
                continue;
            }
            i += 1;
        }
    }

    /// Goes on with another group; whether there is one that can.
    fn resume(&mut self) -> Outcome<bool> {
        self.settle();
        if self.lanes != 0 {
            return Ok(true);
        }
        if self.others.iter().any(|group| group.state == State::Meeting) {
            return fail(LAUNCH_FAILED, "lanes of a warp wait for others that never come");
        }
        Ok(false)
    }

    /// Whether all lanes that are named are here; if not, this group waits and another one goes on.
    fn meet(&mut self, members: usize, active: u32, text: &str) -> Outcome<bool> {
        let at = self.at;
        let mut here = active;
        self.others.retain(|group| {
            let joins = group.state == State::Meeting && group.at == at;
            here |= if joins { group.lanes } else { 0 };
            !joins
        });
        let mut named = 0;
        each(here, |lane| named |= self.slots[members].0[lane] as u32);
        if here & !named != 0 {
            return fail(LAUNCH_FAILED, format!("{text}: a lane that its own mask does not name"));
        }
        if named & self.alive & !here == 0 {
            self.lanes |= here;
            self.active = here;
            return Ok(true);
        }
        if active != self.lanes {
            return fail(LAUNCH_FAILED, format!("{text}: under a predicate that the named lanes do not share"));
        }
        self.others.push(Group { at, lanes: here, state: State::Meeting });
        self.lanes = 0;
        match self.resume()? {
            true => Ok(false),
            false => fail(LAUNCH_FAILED, format!("{text}: the named lanes never meet")),
        }
    }

    fn release(&mut self) {
        for group in &mut self.others {
            group.state = State::Ready;
        }
    }
}

fn misaligned<T>(address: u64, bytes: usize) -> Outcome<T> {
    fail(MISALIGNED_ADDRESS, format!("{address:#x} is no multiple of {bytes}"))
}

/// What one thread of the host needs to run blocks.
struct Bench<'a> {
    warps: Vec<Warp<'a>>,
    shared: Vec<u128>,
}

// SAFETY: the pointers in it are to memory of its own and to the device's, which all threads share as a GPU's do.
unsafe impl Send for Bench<'_> {}

impl<'a> Bench<'a> {
    fn new(kernel: &Kernel, grid: Grid, parameters: &'a [u8], memory: &'a Ranges) -> Self {
        let count: usize = grid.threads.iter().map(|&n| n as usize).product();
        let shared_bytes = kernel.shared + grid.shared;
        let mut shared = vec![0u128; shared_bytes.div_ceil(16)];
        let warp = || {
            let mut slots = vec![Slot([0; LANES]); kernel.slots];
            for &(slot, value) in &kernel.constants {
                slots[slot] = Slot([value; LANES]);
            }
            Warp {
                slots,
                active: 0,
                local: vec![UNWRITTEN; kernel.local * LANES],
                local_bytes: kernel.local,
                shared: std::ptr::null_mut(),
                shared_bytes,
                parameters,
                memory,
                last: (0, 0),
                at: 0,
                lanes: 0,
                alive: 0,
                others: Vec::new(),
            }
        };
        let mut warps: Vec<Warp<'a>> = (0..count.div_ceil(LANES)).map(|_| warp()).collect();
        for warp in &mut warps {
            warp.shared = shared.as_mut_ptr().cast();
        }
        Self { warps, shared }
    }

    fn block(&mut self, kernel: &Kernel, grid: Grid, block: [u32; 3]) -> Outcome {
        self.shared.fill(u128::from_ne_bytes([UNWRITTEN; 16]));
        for (number, warp) in self.warps.iter_mut().enumerate() {
            warp.start(kernel, block, grid, number);
        }
        let mut done = vec![false; self.warps.len()];
        while done.contains(&false) {
            let mut barrier = None;
            for (warp, done) in self.warps.iter_mut().zip(&mut done).filter(|(_, done)| !**done) {
                match warp.run(kernel)? {
                    Stop::Done => *done = true,
                    Stop::Barrier => {
                        for group in &warp.others {
                            if *barrier.get_or_insert(group.at) != group.at {
                                return fail(LAUNCH_FAILED, "threads of one block wait at different barriers");
                            }
                        }
                    }
                }
            }
            for warp in &mut self.warps {
                warp.release();
            }
        }
        Ok(())
    }
}

/// Runs a kernel on every block of a grid.
pub fn launch(kernel: &Kernel, grid: Grid, most_dynamic: usize, parameters: &[u8]) -> Outcome {
    grid.check(kernel, most_dynamic)?;
    let memory = memory::ranges();
    let blocks: u64 = grid.blocks.iter().map(|&n| u64::from(n)).product();
    let place = |number: u64| {
        let [x, y] = [u64::from(grid.blocks[0]), u64::from(grid.blocks[1])];
        [(number % x) as u32, (number / x % y) as u32, (number / (x * y)) as u32]
    };
    let failed =
        |block: [u32; 3]| move |failure: Failure| failure.within(&format!("kernel {}, block {block:?}", kernel.name));
    let one = |bench: &mut Bench<'_>, number: u64| {
        let block = place(number);
        bench.block(kernel, grid, block).map_err(failed(block))
    };
    if blocks == 1 {
        return one(&mut Bench::new(kernel, grid, parameters, &memory), 0);
    }
    let least = (blocks as usize / (16 * rayon::current_num_threads())).max(1);
    let bench = || Bench::new(kernel, grid, parameters, &memory);
    (0..blocks as usize)
        .into_par_iter()
        .with_min_len(least)
        .try_for_each_init(bench, |bench, number| one(bench, number as u64))
}
