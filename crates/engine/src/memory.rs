//! Aligned floats, layouts with borders, and buffers that are used again.

use crate::kernels::View;

/// Zeroed floats on cache lines.
pub(crate) struct Floats {
    floats: Vec<f32>,
    /// The first float on a cache line.
    start: usize,
    len: usize,
}

/// Floats of a cache line.
const LINE: usize = 16;

impl Floats {
    pub(crate) fn zeros(len: usize) -> Self {
        // The system's own zero pages, which cost nothing before they are used.
        let floats = vec![0.0; len + LINE];
        // Where lines cannot be found, memory is only slower.
        let start = floats.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        Self { floats, start, len }
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.floats[self.start..].as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_mut(&mut self) -> &mut [f32] {
        &mut self.floats[self.start..][..self.len]
    }
}

/// Rows and columns of zeros around a plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Border {
    pub top: usize,
    pub bottom: usize,
    pub left: usize,
    pub right: usize,
}

impl Border {
    /// The border for reads of rows `y.0..=y.1` and columns `x.0..=x.1` of a plane of `rows x columns`.
    pub(crate) fn reach(y: (isize, isize), x: (isize, isize), rows: usize, columns: usize) -> Self {
        let over = |last: isize, size: usize| (last + 1 - size as isize).max(0) as usize;
        let under = |first: isize| (-first).max(0) as usize;
        Self { top: under(y.0), bottom: over(y.1, rows), left: under(x.0), right: over(x.1, columns) }
    }

    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            top: self.top.max(other.top),
            bottom: self.bottom.max(other.bottom),
            left: self.left.max(other.left),
            right: self.right.max(other.right),
        }
    }
}

/// How one image's activations lie in memory: rows of pixels of `channels` floats (padding included), with a border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub rows: usize,
    pub columns: usize,
    pub channels: usize,
    pub border: Border,
}

impl Layout {
    pub(crate) fn row(&self) -> usize {
        (self.border.left + self.columns + self.border.right) * self.channels
    }

    /// Floats of one image.
    pub(crate) fn image(&self) -> usize {
        (self.border.top + self.rows + self.border.bottom) * self.row()
    }

    /// The offset of pixel (0, 0).
    pub(crate) fn origin(&self) -> usize {
        self.border.top * self.row() + self.border.left * self.channels
    }

    /// The offset between two pixels.
    pub(crate) fn offset(&self, y: isize, x: isize) -> isize {
        y * self.row() as isize + x * self.channels as isize
    }

    /// A buffer of this layout at `at`.
    ///
    /// # Safety
    /// `at` must point at at least one image.
    pub(crate) unsafe fn view(&self, at: *mut f32) -> View<f32> {
        let at = unsafe { at.add(self.origin()) };
        View { at, image: self.image(), row: self.row(), pixel: self.channels }
    }
}

/// One use of buffers: `writes` is made from `reads`; `over` is the one of them that may be overwritten in place.
pub(crate) struct Use {
    pub reads: Vec<usize>,
    pub writes: Option<usize>,
    pub over: Option<usize>,
}

/// A buffer for some images of one layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub layout: Layout,
    pub images: usize,
}

/// Slots of memory, each of one layout for its whole life, so that borders stay zero.
#[derive(Default)]
pub(crate) struct Slots {
    slots: Vec<Buffer>,
}

impl Slots {
    /// Gives every buffer a slot such that no two live at once share one. `given` buffers live from the start, `kept`
    /// ones to the end. Slots of earlier calls are used again.
    pub(crate) fn assign(&mut self, buffers: &[Buffer], uses: &[Use], given: &[usize], kept: &[usize]) -> Vec<usize> {
        let mut last = vec![0; buffers.len()];
        for (time, u) in uses.iter().enumerate() {
            u.reads.iter().chain(&u.writes).for_each(|&buffer| last[buffer] = time);
        }
        kept.iter().for_each(|&buffer| last[buffer] = usize::MAX);
        let mut free = vec![true; self.slots.len()];
        let mut assigned = vec![None; buffers.len()];
        for &buffer in given {
            assigned[buffer] = Some(self.take(&mut free, buffers[buffer]));
        }
        for (time, u) in uses.iter().enumerate() {
            let release = |free: &mut Vec<bool>, buffer: usize, assigned: &[Option<usize>]| {
                if let Some(slot) = assigned[buffer].filter(|_| last[buffer] == time) {
                    free[slot] = true;
                }
            };
            if let Some(over) = u.over {
                release(&mut free, over, &assigned);
            }
            if let Some(buffer) = u.writes
                && assigned[buffer].is_none()
            {
                assigned[buffer] = Some(self.take(&mut free, buffers[buffer]));
            }
            // A buffer overwritten in place has handed its slot on already.
            for &buffer in u.reads.iter().chain(&u.writes).filter(|&&buffer| Some(buffer) != u.over) {
                release(&mut free, buffer, &assigned);
            }
        }
        // A buffer nobody uses needs no memory.
        assigned.into_iter().map(|slot| slot.unwrap_or(0)).collect()
    }

    fn take(&mut self, free: &mut Vec<bool>, buffer: Buffer) -> usize {
        let found = (0..free.len()).find(|&slot| free[slot] && self.slots[slot] == buffer);
        let slot = found.unwrap_or_else(|| {
            self.slots.push(buffer);
            free.push(true);
            free.len() - 1
        });
        free[slot] = false;
        slot
    }

    /// The offset of each slot, and the floats in all.
    pub(crate) fn place(&self) -> (Vec<usize>, usize) {
        let mut at = 0;
        let offsets = self.slots.iter().map(|slot| {
            let offset = at;
            at += (slot.layout.image() * slot.images).next_multiple_of(16);
            offset
        });
        (offsets.collect(), at)
    }
}
