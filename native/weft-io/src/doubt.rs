//! Blocks whose sidecar entry is not to be trusted: written after the replica's last seal, before a restart, so
//! that CRC and kind on disk may be older or newer than the data (protocol.md 4.10, R22).
//!
//! Must always hold: memory is taken only for segments that exist, 2 KiB at most for each.

use std::collections::BTreeMap;

use crate::sidecar::SEGMENT_BLOCKS;

const WORDS: usize = SEGMENT_BLOCKS as usize / 64;

#[derive(Debug)]
enum Blocks {
    All,
    Some(Box<[u64; WORDS]>),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Doubt(BTreeMap<u32, Blocks>);

impl Doubt {
    pub(crate) fn contains(&self, segment: u32, block: u32) -> bool {
        match self.0.get(&segment) {
            None => false,
            Some(Blocks::All) => true,
            Some(Blocks::Some(bits)) => bits[block as usize / 64] & (1 << (block % 64)) != 0,
        }
    }

    pub(crate) fn add(&mut self, segment: u32, lo: u32, hi: u32) {
        if lo == 0 && hi == SEGMENT_BLOCKS {
            self.0.insert(segment, Blocks::All);
            return;
        }
        let blocks = self.0.entry(segment).or_insert_with(|| Blocks::Some(Box::new([0; WORDS])));
        if let Blocks::Some(bits) = blocks {
            for block in lo..hi {
                bits[block as usize / 64] |= 1 << (block % 64);
            }
        }
    }

    pub(crate) fn remove(&mut self, segment: u32, lo: u32, hi: u32) {
        let Some(blocks) = self.0.get_mut(&segment) else { return };
        if matches!(blocks, Blocks::All) {
            *blocks = Blocks::Some(Box::new([u64::MAX; WORDS]));
        }
        let Blocks::Some(bits) = blocks else { return };
        for block in lo..hi {
            bits[block as usize / 64] &= !(1 << (block % 64));
        }
        if bits.iter().all(|word| *word == 0) {
            self.0.remove(&segment);
        }
    }

    /// All of it as (segment, lo, hi) runs.
    pub(crate) fn runs(&self) -> Vec<(u32, u32, u32)> {
        let mut runs: Vec<(u32, u32, u32)> = Vec::new();
        for (segment, blocks) in &self.0 {
            let Blocks::Some(_) = blocks else {
                runs.push((*segment, 0, SEGMENT_BLOCKS));
                continue;
            };
            for block in (0..SEGMENT_BLOCKS).filter(|block| self.contains(*segment, *block)) {
                match runs.last_mut() {
                    Some((s, _, hi)) if s == segment && *hi == block => *hi += 1,
                    _ => runs.push((*segment, block, block + 1)),
                }
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_shrinks_block_by_block_until_nothing_of_a_segment_is_left() {
        let mut doubt = Doubt::default();
        doubt.add(3, 0, SEGMENT_BLOCKS);
        doubt.add(5, 10, 20);
        doubt.remove(3, 1, SEGMENT_BLOCKS - 1);
        assert!(
            doubt.contains(3, 0) && !doubt.contains(3, 1) && doubt.contains(5, 19) && !doubt.contains(4, 0)
        );
        assert_eq!(doubt.runs(), vec![(3, 0, 1), (3, SEGMENT_BLOCKS - 1, SEGMENT_BLOCKS), (5, 10, 20)]);
        doubt.remove(5, 0, 100);
        assert_eq!(doubt.runs().len(), 2);
    }
}
