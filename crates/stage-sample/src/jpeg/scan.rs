//! One scan: every block of its components, in units, restarted where the file says so.

use super::{
    Fault, Frame,
    bits::{Bits, Table},
};

/// A component of a scan, and the numbers of its tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub component: usize,
    pub dc: usize,
    pub ac: usize,
}

/// What the header of a scan says.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    pub parts: Vec<Part>,
    /// The first and the last coefficient, in zigzag order.
    pub from: usize,
    pub to: usize,
    /// Whether it refines what an earlier scan brought.
    pub refines: bool,
    /// Units between restarts; 0 for none.
    pub interval: usize,
}

type Tables = [[Option<Table>; 4]; 2];

impl Scan {
    /// Passes over all of its blocks.
    pub fn walk(&self, frame: &mut Frame, tables: &Tables, bits: &mut Bits<'_>) -> Result<(), Fault> {
        let most = |side: fn(&super::Component) -> usize| frame.components.iter().map(side).max().unwrap_or(1);
        let (across, down) = (most(|c| c.across), most(|c| c.down));
        // A component by itself has no blocks that only fill up a unit.
        let alone = self.parts.len() == 1;
        let (columns, rows) = if alone {
            let component = &frame.components[self.parts[0].component];
            let blocks = |side: usize, own: usize, most: usize| (side * own).div_ceil(most).div_ceil(8);
            (blocks(frame.width, component.across, across), blocks(frame.height, component.down, down))
        } else {
            (frame.width.div_ceil(8 * across), frame.height.div_ceil(8 * down))
        };
        let mut run = 0;
        for unit in 0..columns * rows {
            if self.interval > 0 && unit > 0 && unit % self.interval == 0 {
                bits.restart()?;
                run = 0;
            }
            let (row, column) = (unit / columns, unit % columns);
            for part in &self.parts {
                let component = &mut frame.components[part.component];
                let (across, down) = if alone { (1, 1) } else { (component.across, component.down) };
                for block in 0..across * down {
                    let (y, x) = (row * down + block / across, column * across + block % across);
                    if frame.progressive {
                        let known = component.known.get_mut(y * component.stride + x).ok_or(Fault::Damaged)?;
                        self.progressive(part, tables, bits, known, &mut run)?;
                    } else {
                        sequential(part, tables, bits)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// One block of a progressive scan; `run` counts the blocks to come that bring nothing new.
    fn progressive(
        &self,
        part: &Part,
        tables: &Tables,
        bits: &mut Bits<'_>,
        known: &mut u64,
        run: &mut u32,
    ) -> Result<(), Fault> {
        if self.from == 0 {
            let length = if self.refines { 1 } else { bits.code(table(tables, 0, part.dc)?)?.into() };
            return Ok(bits.skip(size(length)?)?);
        }
        let codes = table(tables, 1, part.ac)?;
        if self.refines {
            return self.refine(codes, bits, known, run);
        }
        if *run > 0 {
            *run -= 1;
            return Ok(());
        }
        let mut at = self.from;
        while at <= self.to {
            let code = bits.code(codes)?;
            let (zeros, length) = (usize::from(code >> 4), u32::from(code & 15));
            if length > 0 {
                at += zeros;
                bits.skip(length)?;
                *known |= bit(at);
            } else if zeros == 15 {
                at += 15;
            } else {
                *run = (1 << zeros) + bits.take(zeros as u32)? - 1;
                break;
            }
            at += 1;
        }
        Ok(())
    }

    /// One block of a scan that refines: a bit for each coefficient that is known, and new ones among those that are not.
    fn refine(&self, codes: &Table, bits: &mut Bits<'_>, known: &mut u64, run: &mut u32) -> Result<(), Fault> {
        let mut at = self.from;
        if *run == 0 {
            while at <= self.to {
                let code = bits.code(codes)?;
                let (mut zeros, is_new) = (code >> 4, code & 15 > 0);
                if is_new {
                    bits.skip(1)?;
                } else if zeros < 15 {
                    *run = (1 << zeros) + bits.take(zeros.into())?;
                    break;
                }
                while at <= self.to {
                    if *known & bit(at) != 0 {
                        bits.skip(1)?;
                    } else if zeros == 0 {
                        break;
                    } else {
                        zeros -= 1;
                    }
                    at += 1;
                }
                if is_new {
                    *known |= bit(at);
                }
                at += 1;
            }
        }
        if *run > 0 {
            while at <= self.to {
                bits.skip(u32::from(*known & bit(at) != 0))?;
                at += 1;
            }
            *run -= 1;
        }
        Ok(())
    }
}

/// One block of a sequential scan.
fn sequential(part: &Part, tables: &Tables, bits: &mut Bits<'_>) -> Result<(), Fault> {
    let length = bits.code(table(tables, 0, part.dc)?)?.into();
    bits.skip(size(length)?)?;
    let codes = table(tables, 1, part.ac)?;
    let mut at = 1;
    while at < 64 {
        let code = bits.code(codes)?;
        let (zeros, length) = (usize::from(code >> 4), u32::from(code & 15));
        if length == 0 && zeros < 15 {
            break;
        }
        bits.skip(length)?;
        at += zeros + 1;
    }
    Ok(())
}

fn table(tables: &Tables, class: usize, slot: usize) -> Result<&Table, Fault> {
    tables[class][slot].as_ref().ok_or(Fault::Damaged)
}

/// How many bits a DC difference has.
fn size(length: u32) -> Result<u32, Fault> {
    if length <= 16 { Ok(length) } else { Err(Fault::Damaged) }
}

/// The bit of a coefficient; none beyond the last.
fn bit(at: usize) -> u64 {
    1_u64.checked_shl(at as u32).unwrap_or(0)
}
