//! Whether a JPEG holds all of its data.
//!
//! Decoders fill what is missing with grey, or leave it blurred. So the entropy-coded data is walked first, as ITU-T T.81
//! says, without computing a pixel: every block of every scan must be there, and the end marker. What stands after that is
//! nobody's business, as with PIL. (PIL fills with grey where the end marker comes too soon; here that is refused.)

mod bits;
mod scan;

use bits::{Bits, Missing, Table};
use scan::{Part, Scan};

/// What is wrong with a JPEG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// The file ends, or a marker stands, before the last block.
    #[error("it is cut: its data ends before the image does")]
    Cut,
    /// A code that stands for nothing.
    #[error("its data is damaged")]
    Damaged,
    /// A kind of JPEG that no browser shows.
    #[error("it is {0} JPEG, which is not read")]
    Kind(&'static str),
}

impl From<Missing> for Fault {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Data => Self::Cut,
            Missing::Code => Self::Damaged,
        }
    }
}

/// A component of the frame.
#[derive(Clone, Debug)]
struct Component {
    id: u8,
    /// Blocks of one unit, across and down.
    across: usize,
    down: usize,
    /// Blocks in a row, with those that fill up the last unit.
    stride: usize,
    /// Which coefficients of each block are not zero so far, one bit each.
    known: Vec<u64>,
    /// Whether a scan has brought it.
    seen: bool,
}

/// What the header of the frame says.
#[derive(Clone, Debug)]
struct Frame {
    progressive: bool,
    height: usize,
    width: usize,
    components: Vec<Component>,
}

/// Walks a JPEG from its first byte to its end marker.
pub(crate) fn check(bytes: &[u8]) -> Result<(), Fault> {
    let mut walk = Walk { bytes, at: 2, frame: None, interval: 0, tables: Default::default() };
    while let Some(marker) = walk.marker() {
        match marker {
            0xD9 => return walk.end(),
            0x01 | 0xD0..=0xD8 => {}
            0xC4 => walk.tables()?,
            0xC0..=0xC2 => walk.frame(marker == 0xC2)?,
            0xC3 | 0xC7 | 0xCB | 0xCF => return Err(Fault::Kind("a lossless")),
            0xC5 | 0xC6 | 0xCD | 0xCE => return Err(Fault::Kind("a hierarchical")),
            0xC9 | 0xCA => return Err(Fault::Kind("an arithmetic-coded")),
            0xDD => {
                walk.interval =
                    usize::from(u16::from_be_bytes(walk.segment()?.first_chunk().copied().ok_or(Fault::Cut)?))
            }
            0xDA => walk.scan()?,
            _ => drop(walk.segment()?),
        }
    }
    Err(Fault::Cut)
}

/// How far a walk has come.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    frame: Option<Frame>,
    /// Units between restarts; 0 for none.
    interval: usize,
    /// Codes of DC and AC coefficients.
    tables: [[Option<Table>; 4]; 2],
}

impl<'a> Walk<'a> {
    /// The next marker, past whatever stands before it.
    fn marker(&mut self) -> Option<u8> {
        let is_marker = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xFF);
        let ahead = self.bytes.get(self.at..)?.windows(2).position(is_marker)?;
        self.at += ahead + 2;
        Some(self.bytes[self.at - 1])
    }

    /// What belongs to a marker.
    fn segment(&mut self) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.at..];
        let length = usize::from(u16::from_be_bytes(*rest.first_chunk().ok_or(Fault::Cut)?));
        let segment = rest.get(2..length.max(2)).ok_or(Fault::Cut)?;
        self.at += length.max(2);
        Ok(segment)
    }

    fn tables(&mut self) -> Result<(), Fault> {
        let mut rest = self.segment()?;
        while let Some((&which, after)) = rest.split_first() {
            let counts: &[u8; 16] = after.first_chunk().ok_or(Fault::Damaged)?;
            let symbols: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let values = after.get(16..16 + symbols).ok_or(Fault::Damaged)?;
            let (class, slot) = (usize::from(which >> 4), usize::from(which & 15));
            let table = self.tables.get_mut(class).and_then(|tables| tables.get_mut(slot)).ok_or(Fault::Damaged)?;
            *table = Some(Table::new(counts, values));
            rest = &after[16 + symbols..];
        }
        Ok(())
    }

    fn frame(&mut self, progressive: bool) -> Result<(), Fault> {
        let segment = self.segment()?;
        let [precision, h1, h0, w1, w0, count, components @ ..] = segment else { return Err(Fault::Damaged) };
        if *precision != 8 {
            return Err(Fault::Kind(if *precision == 12 { "a 12-bit" } else { "a 16-bit" }));
        }
        let (height, width) = (usize::from(*h1) << 8 | usize::from(*h0), usize::from(*w1) << 8 | usize::from(*w0));
        let parts = components.chunks_exact(3).take(usize::from(*count));
        let mut components: Vec<Component> = parts
            .map(|part| {
                let (across, down) = (usize::from(part[1] >> 4), usize::from(part[1] & 15));
                Component { id: part[0], across, down, stride: 0, known: Vec::new(), seen: false }
            })
            .collect();
        let most = |side: fn(&Component) -> usize| components.iter().map(side).max().unwrap_or(0);
        let (across, down) = (most(|c| c.across), most(|c| c.down));
        let fits = |c: &Component| (1..=4).contains(&c.across) && (1..=4).contains(&c.down);
        if height * width == 0 || components.len() != usize::from(*count) || !components.iter().all(fits) {
            return Err(Fault::Damaged);
        }
        let units = (width.div_ceil(8 * across), height.div_ceil(8 * down));
        for component in &mut components {
            component.stride = units.0 * component.across;
            component.known =
                if progressive { vec![0; component.stride * units.1 * component.down] } else { Vec::new() };
        }
        self.frame = Some(Frame { progressive, height, width, components });
        Ok(())
    }

    fn scan(&mut self) -> Result<(), Fault> {
        let header = self.segment()?;
        let frame = self.frame.as_mut().ok_or(Fault::Damaged)?;
        let count = usize::from(*header.first().ok_or(Fault::Damaged)?);
        let (parts, [from, to, bits]) = (
            header.get(1..1 + 2 * count).ok_or(Fault::Damaged)?,
            header
                .get(1 + 2 * count..4 + 2 * count)
                .and_then(|rest| rest.first_chunk().copied())
                .ok_or(Fault::Damaged)?,
        );
        let part = |pair: &[u8]| {
            let component = frame.components.iter().position(|c| c.id == pair[0])?;
            Some(Part { component, dc: usize::from(pair[1] >> 4) & 3, ac: usize::from(pair[1]) & 3 })
        };
        let parts: Vec<Part> = parts.chunks_exact(2).map(part).collect::<Option<_>>().ok_or(Fault::Damaged)?;
        if parts.is_empty() || from > 63 || to > 63 {
            return Err(Fault::Damaged);
        }
        let scan = Scan { parts, from: from.into(), to: to.into(), refines: bits >> 4 != 0, interval: self.interval };
        let mut bits = Bits::new(self.bytes, self.at);
        scan.walk(frame, &self.tables, &mut bits)?;
        self.at = bits.at();
        for part in &scan.parts {
            frame.components[part.component].seen = true;
        }
        Ok(())
    }

    /// At the end marker.
    fn end(&self) -> Result<(), Fault> {
        let whole = |frame: &Frame| frame.components.iter().all(|component| component.seen);
        if self.frame.as_ref().is_some_and(whole) { Ok(()) } else { Err(Fault::Cut) }
    }
}
