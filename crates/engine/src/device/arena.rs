//! Where everything lies in one stretch of the device's memory.

use std::collections::BTreeMap;

/// Every block starts at a multiple of it, which is what wide loads and cuDNN ask for.
const ALIGNMENT: u64 = 256;

/// A stretch of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block(usize);

/// Gives out blocks, and those given back again: the smallest gap that fits, the first of several.
#[derive(Debug, Default)]
pub struct Arena {
    /// Offset and bytes of every block, and how many owners it has.
    blocks: Vec<(u64, u64, usize)>,
    /// Bytes by offset; no gap touches another.
    gaps: BTreeMap<u64, u64>,
    end: u64,
}

impl Arena {
    /// A block with room for so many bytes, for one owner.
    pub fn take(&mut self, bytes: u64) -> Block {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        let fitting = self.gaps.iter().filter(|(_, gap)| **gap >= bytes);
        let offset = match fitting.min_by_key(|(_, gap)| **gap).map(|(&offset, &gap)| (offset, gap)) {
            Some((offset, gap)) => {
                self.gaps.remove(&offset);
                if gap > bytes {
                    self.gaps.insert(offset + bytes, gap - bytes);
                }
                offset
            }
            None => {
                // What is free at the end grows.
                let offset = match self.gaps.last_key_value() {
                    Some((&offset, &gap)) if offset + gap == self.end => {
                        self.gaps.remove(&offset);
                        offset
                    }
                    _ => self.end,
                };
                self.end = offset + bytes;
                offset
            }
        };
        self.blocks.push((offset, bytes, 1));
        Block(self.blocks.len() - 1)
    }

    /// One more owner of a block.
    pub fn share(&mut self, block: Block) -> Block {
        self.blocks[block.0].2 += 1;
        block
    }

    /// One owner less; with the last one the block is free.
    pub fn release(&mut self, block: Block) {
        let (offset, bytes, owners) = &mut self.blocks[block.0];
        *owners -= 1;
        if *owners > 0 {
            return;
        }
        let (mut offset, mut bytes) = (*offset, *bytes);
        if let Some(after) = self.gaps.remove(&(offset + bytes)) {
            bytes += after;
        }
        if let Some((&before, &gap)) = self.gaps.range(..offset).next_back()
            && before + gap == offset
        {
            self.gaps.remove(&before);
            (offset, bytes) = (before, bytes + gap);
        }
        self.gaps.insert(offset, bytes);
    }

    /// How many own a block.
    pub fn owners(&self, block: Block) -> usize {
        self.blocks[block.0].2
    }

    /// Where a block begins.
    pub fn offset(&self, block: Block) -> u64 {
        self.blocks[block.0].0
    }

    /// The bytes of all of it.
    pub const fn bytes(&self) -> u64 {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_gaps_are_used_again() {
        let mut arena = Arena::default();
        let mut owned: Vec<(Block, u64)> = Vec::new();
        for i in 0..2000u64 {
            let chance = game::Key::root(i);
            if chance.unit() < 0.5 && !owned.is_empty() {
                let (block, _) = owned.swap_remove(chance.at(1).below(owned.len() as u64) as usize);
                arena.release(block);
            } else {
                let bytes = chance.at(2).below(5000);
                owned.push((arena.take(bytes), bytes));
            }
            let mut places: Vec<_> = owned.iter().map(|&(block, bytes)| (arena.offset(block), bytes)).collect();
            places.sort_unstable();
            assert!(places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "at {i}");
            assert!(places.last().is_none_or(|(offset, bytes)| offset + bytes <= arena.bytes()));
        }
        owned.into_iter().for_each(|(block, _)| arena.release(block));
        let bytes = arena.bytes();
        assert_eq!(arena.gaps.len(), 1, "neighbouring gaps are one");
        arena.take(bytes);
        assert_eq!(arena.bytes(), bytes);
    }

    #[test]
    fn a_shared_block_is_free_after_its_last_owner() {
        let mut arena = Arena::default();
        let block = arena.take(100);
        arena.share(block);
        arena.release(block);
        let other = arena.take(100);
        assert_ne!(arena.offset(block), arena.offset(other));
        arena.release(block);
        let third = arena.take(100);
        assert_eq!(arena.offset(third), arena.offset(block));
    }
}
