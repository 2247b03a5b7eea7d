//! The device's memory: a table of live allocations, which every access is checked against.

use std::{
    alloc::Layout,
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::failure::{ILLEGAL_ADDRESS, INVALID_VALUE, OUT_OF_MEMORY, Outcome, fail};

/// What the driver aligns to, and the width of the zones before and after an allocation that belong to none.
const ALIGN: usize = 256;
/// New memory holds this byte, and so NaN in every format.
pub const UNWRITTEN: u8 = 0xFF;

/// The live allocations at one moment, sorted, as first address and first address behind.
#[derive(Debug, Default)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// The allocation that holds an address.
    pub fn around(&self, address: u64) -> Option<(u64, u64)> {
        let after = self.0.partition_point(|range| range.0 <= address);
        self.0[..after].last().copied().filter(|range| address < range.1)
    }

    /// Fails unless `bytes` bytes from `address` lie in one allocation.
    pub fn check(&self, address: u64, bytes: usize, what: &str) -> Outcome {
        match self.around(address) {
            _ if bytes == 0 => Ok(()),
            Some((_, end)) if bytes as u64 <= end - address => Ok(()),
            Some((start, end)) => fail(
                ILLEGAL_ADDRESS,
                format!(
                    "{what}: {bytes} bytes from {address:#x} reach beyond the allocation of {} bytes there",
                    end - start
                ),
            ),
            None => fail(ILLEGAL_ADDRESS, format!("{what}: {address:#x} lies in no live allocation")),
        }
    }
}

struct Table {
    /// Bytes by address.
    live: BTreeMap<u64, usize>,
    used: usize,
    most: usize,
    snapshot: Option<Arc<Ranges>>,
    /// What was freed last, kept from the host so that its addresses are not soon used again.
    freed: VecDeque<(u64, usize)>,
    freed_bytes: usize,
}

/// Bytes of freed memory that are kept.
const KEPT: usize = 256 << 20;

static TABLE: Mutex<Table> = Mutex::new(Table {
    live: BTreeMap::new(),
    used: 0,
    most: 0,
    snapshot: None,
    freed: VecDeque::new(),
    freed_bytes: 0,
});

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of the device.
pub fn total() -> usize {
    static TOTAL: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *TOTAL.get_or_init(|| std::env::var("REHEARSAL_MEMORY").ok().and_then(|text| text.parse().ok()).unwrap_or(8 << 30))
}

/// Bytes that are said to be free, whatever is: a program that believes it runs out of memory.
pub fn claimed() -> Option<usize> {
    std::env::var("REHEARSAL_CLAIMED").ok().and_then(|text| text.parse().ok())
}

/// Bytes in use now and at most so far.
pub fn used() -> [usize; 2] {
    let table = table();
    [table.used, table.most]
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(2 * ALIGN)?, ALIGN).ok()
}

/// New memory, with a zone on both sides that no access may touch.
pub fn allocate(bytes: usize) -> Outcome<u64> {
    let mut table = table();
    let room = total().saturating_sub(table.used);
    let (Some(layout), true) = (layout(bytes), bytes <= room) else {
        return fail(OUT_OF_MEMORY, format!("{bytes} bytes asked for, {room} of {} free", total()));
    };
    // SAFETY: the layout is not empty.
    let base = unsafe { std::alloc::alloc(layout) };
    if base.is_null() {
        return fail(OUT_OF_MEMORY, format!("the host has no {bytes} bytes"));
    }
    // SAFETY: just allocated, with this size.
    unsafe { base.write_bytes(UNWRITTEN, layout.size()) };
    let address = base as u64 + ALIGN as u64;
    table.live.insert(address, bytes);
    table.used += bytes;
    table.most = table.most.max(table.used);
    table.snapshot = None;
    Ok(address)
}

/// Gives memory back; a null pointer is none.
pub fn free(address: u64) -> Outcome {
    if address == 0 {
        return Ok(());
    }
    let mut table = table();
    let Some(bytes) = table.live.remove(&address) else {
        return fail(INVALID_VALUE, format!("{address:#x} is freed, but was not allocated, or was freed before"));
    };
    table.used -= bytes;
    table.snapshot = None;
    table.freed.push_back((address, bytes));
    table.freed_bytes += bytes;
    while table.freed_bytes > KEPT {
        let Some((address, bytes)) = table.freed.pop_front() else { break };
        table.freed_bytes -= bytes;
        if let Some(layout) = layout(bytes) {
            // SAFETY: allocated with this layout, `ALIGN` bytes before the address.
            unsafe { std::alloc::dealloc((address as usize - ALIGN) as *mut u8, layout) };
        }
    }
    Ok(())
}

/// The allocations that are live now.
pub fn ranges() -> Arc<Ranges> {
    let mut table = table();
    if let Some(known) = &table.snapshot {
        return known.clone();
    }
    let ranges = Arc::new(Ranges(table.live.iter().map(|(&start, &bytes)| (start, start + bytes as u64)).collect()));
    table.snapshot = Some(ranges.clone());
    ranges
}

/// Fails unless `bytes` bytes from `address` lie in one live allocation.
pub fn check(address: u64, bytes: usize, what: &str) -> Outcome {
    ranges().check(address, bytes, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_must_lie_in_one_live_allocation() {
        let (a, b) = (allocate(100).unwrap(), allocate(0).unwrap());
        assert_eq!(a % 256, 0);
        assert!(check(a, 100, "all").is_ok() && check(a + 99, 1, "last").is_ok() && check(b, 0, "none").is_ok());
        for (address, bytes) in [(a, 101), (a + 100, 1), (a - 1, 1), (b, 1), (0, 4)] {
            assert_eq!(check(address, bytes, "beyond").unwrap_err().code, ILLEGAL_ADDRESS, "{bytes}");
        }
        // SAFETY: live.
        assert!(unsafe { (a as *const f32).read() }.is_nan());
        free(a).unwrap();
        assert!(check(a, 1, "freed").is_err());
        assert_eq!(free(a).unwrap_err().code, INVALID_VALUE);
        free(b).unwrap();
        assert_eq!(allocate(usize::MAX).unwrap_err().code, OUT_OF_MEMORY);
    }
}
