//! Bits of entropy-coded data, and the codes in them.

/// Why there are no more bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// The file ends, or a marker stands there.
    Data,
    /// The bits are no code.
    Code,
}

/// A Huffman code of at most 16 bits.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Length and value by the next 16 bits, for the shorter codes by the first [`Table::QUICK`] of them.
    quick: Vec<(u8, u8)>,
    /// By length: the first code, how many there are, and where their values begin.
    long: [(u32, u32, usize); 17],
    values: Vec<u8>,
}

impl Table {
    const QUICK: u32 = 9;

    pub fn new(counts: &[u8; 16], values: &[u8]) -> Self {
        let mut table = Self { quick: vec![(0, 0); 1 << Self::QUICK], long: [(0, 0, 0); 17], values: values.to_vec() };
        let (mut code, mut at) = (0_u32, 0);
        for (length, &count) in (1_u32..).zip(counts) {
            table.long[length as usize] = (code, count.into(), at);
            for (code, &value) in (code..).zip(&values[at..at + usize::from(count)]) {
                if length <= Self::QUICK {
                    let free = Self::QUICK - length;
                    let first = (code << free) as usize;
                    let last = (first + (1 << free)).min(table.quick.len());
                    table.quick[first.min(last)..last].fill((length as u8, value));
                }
            }
            code = (code + u32::from(count)) << 1;
            at += usize::from(count);
        }
        table
    }

    /// Length and value of the code that these 16 bits begin with.
    fn find(&self, bits: u32) -> Option<(u32, u8)> {
        let (length, value) = self.quick[(bits >> (16 - Self::QUICK)) as usize];
        if length > 0 {
            return Some((length.into(), value));
        }
        (Self::QUICK + 1..=16).find_map(|length| {
            let (first, count, at) = self.long[length as usize];
            let nth = (bits >> (16 - length)).checked_sub(first).filter(|nth| *nth < count)?;
            Some((length, self.values[at + nth as usize]))
        })
    }
}

/// Reads bits up to the next marker.
#[derive(Debug)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    word: u64,
    held: u32,
}

impl<'a> Bits<'a> {
    pub const fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, word: 0, held: 0 }
    }

    /// Where the bytes begin that were not looked at: at a marker, or before one.
    pub const fn at(&self) -> usize {
        self.at
    }

    /// Holds at least 16 bits, as far as there are any.
    fn fill(&mut self) {
        while self.held <= 48 {
            let byte = match self.bytes.get(self.at) {
                Some(0xFF) if self.bytes.get(self.at + 1) == Some(&0) => {
                    self.at += 1;
                    0xFF
                }
                Some(0xFF) | None => break,
                Some(&byte) => byte,
            };
            self.at += 1;
            self.word = self.word << 8 | u64::from(byte);
            self.held += 8;
        }
    }

    /// The value of the next code.
    pub fn code(&mut self, table: &Table) -> Result<u8, Missing> {
        if self.held < 16 {
            self.fill();
        }
        let next = if self.held >= 16 { self.word >> (self.held - 16) } else { self.word << (16 - self.held) };
        let (length, value) = table.find((next & 0xFFFF) as u32).ok_or(Missing::Code)?;
        self.skip(length)?;
        Ok(value)
    }

    /// The next bits, at most 16, as a number.
    pub fn take(&mut self, count: u32) -> Result<u32, Missing> {
        self.skip(count)?;
        Ok((self.word >> self.held) as u32 & ((1 << count) - 1))
    }

    /// Passes over bits, at most 16.
    pub fn skip(&mut self, count: u32) -> Result<(), Missing> {
        if self.held < count {
            self.fill();
        }
        self.held = self.held.checked_sub(count).ok_or(Missing::Data)?;
        Ok(())
    }

    /// Goes on after the next restart marker, which must be the next marker.
    pub fn restart(&mut self) -> Result<(), Missing> {
        self.held = 0;
        let is_marker = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xFF);
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let ahead = rest.windows(2).position(is_marker).ok_or(Missing::Data)?;
        if !(0xD0..=0xD7).contains(&rest[ahead + 1]) {
            return Err(Missing::Data);
        }
        self.at += ahead + 2;
        Ok(())
    }
}
