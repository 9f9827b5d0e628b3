//! Which chunks of a replica's thin volume are its own since its newest snapshot: what it writes there takes no room.
//!
//! Must always hold:
//! * what is said to be its own was written, durably, after the newest snapshot of the replica was taken, by this process;
//! * a segment's sidecar is its own before the segment is written: a seal needs no room (R20).

use core::ops::Range;
use std::collections::BTreeMap;

use crate::sidecar::SEGMENT_BLOCKS;

/// Blocks of the smallest chunk that is told apart.
const CHUNK: u32 = 16;
const WORDS: usize = (SEGMENT_BLOCKS / CHUNK) as usize / 64;
/// Chunks that a block of the pool's metadata maps, at least.
const MAPPED: u32 = 128;

#[derive(Debug, Default)]
struct Owned {
    chunks: [u64; WORDS],
    sidecar: bool,
}

/// See the module. Takes 136 bytes for each segment that was written since then.
#[derive(Debug, Default)]
pub(super) struct Own(BTreeMap<u32, Owned>);

impl Own {
    /// A snapshot is taken: nothing is its own.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    pub(super) fn has_sidecar(&self, segment: u32) -> bool {
        self.0.get(&segment).is_some_and(|owned| owned.sidecar)
    }

    pub(super) fn add_sidecar(&mut self, segment: u32) {
        self.0.entry(segment).or_default().sidecar = true;
    }

    /// Is all of this chunk its own, the block that it begins with given?
    pub(super) fn has(&self, segment: u32, block: u32) -> bool {
        let chunk = block / CHUNK;
        self.0.get(&segment).is_some_and(|owned| owned.chunks[chunk as usize / 64] & 1 << (chunk % 64) != 0)
    }

    /// Blocks were written.
    pub(super) fn add(&mut self, segment: u32, blocks: Range<u32>) {
        let owned = self.0.entry(segment).or_default();
        for chunk in blocks.start / CHUNK..blocks.end.div_ceil(CHUNK) {
            owned.chunks[chunk as usize / 64] |= 1 << (chunk % 64);
        }
    }

    /// How many blocks of metadata, which map what these blocks lie in, map nothing of its own yet.
    pub(super) fn new_maps(&self, segment: u32, blocks: Range<u32>) -> u64 {
        let words = MAPPED as usize / 64;
        let maps = blocks.start / CHUNK / MAPPED..blocks.end.div_ceil(CHUNK).div_ceil(MAPPED);
        let is_new = |map: &u32| {
            let first = *map as usize * words;
            self.0
                .get(&segment)
                .is_none_or(|owned| owned.chunks[first..first + words].iter().all(|word| *word == 0))
        };
        maps.filter(is_new).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_its_own_until_the_next_snapshot() {
        let mut own = Own::default();
        own.add(3, 15..17);
        let has = |own: &Own| [0, 16, 31, 32].map(|block| own.has(3, block));
        assert_eq!(has(&own), [true, true, true, false]);
        assert!(!own.has(2, 0) && !own.has_sidecar(3));
        // 8 MiB are mapped by a block.
        assert_eq!(
            (own.new_maps(3, 0..2048), own.new_maps(3, 2047..2049), own.new_maps(2, 0..16384)),
            (0, 1, 8)
        );
        own.add_sidecar(3);
        assert!(own.has_sidecar(3));
        own.forget();
        assert_eq!((has(&own), own.has_sidecar(3), own.new_maps(3, 0..1)), ([false; 4], false, 1));
    }
}
