//! A set of 4 KiB blocks of a volume: two levels, 32 bytes per touched 1 MiB (protocol.md 4.13).
//!
//! Must always hold: memory is proportional to the touched 1 MiB pieces, never to the volume.

use alloc::collections::BTreeMap;

use crate::payload::BLOCK;

const WORDS: usize = 4;
const CHUNK_BLOCKS: u64 = 256;

/// Blocks, by byte range. Ranges are multiples of 4096.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSet {
    chunks: BTreeMap<u64, [u64; WORDS]>,
}

impl BlockSet {
    /// Adds a byte range.
    pub fn insert(&mut self, offset: u64, len: u64) {
        self.change(offset, len, |word, mask| *word |= mask);
    }

    /// Takes a byte range out.
    pub fn remove(&mut self, offset: u64, len: u64) {
        self.change(offset, len, |word, mask| *word &= !mask);
    }

    fn change(&mut self, offset: u64, len: u64, f: impl Fn(&mut u64, u64)) {
        assert!(
            offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK),
            "range {offset}+{len} is not whole blocks"
        );
        let (mut block, end) = (offset / BLOCK, (offset + len) / BLOCK);
        while block < end {
            let chunk = block / CHUNK_BLOCKS;
            let chunk_end = ((chunk + 1) * CHUNK_BLOCKS).min(end);
            let words = self.chunks.entry(chunk).or_insert([0; WORDS]);
            while block < chunk_end {
                let bit = block % 64;
                let count = (64 - bit).min(chunk_end - block);
                let mask = if count == 64 { u64::MAX } else { ((1u64 << count) - 1) << bit };
                let word = usize::try_from(block % CHUNK_BLOCKS / 64).expect("below 4");
                f(&mut words[word], mask);
                block += count;
            }
            if *words == [0; WORDS] {
                self.chunks.remove(&chunk);
            }
        }
    }

    /// Adds all of another set.
    pub fn union(&mut self, other: &BlockSet) {
        for (chunk, words) in &other.chunks {
            let mine = self.chunks.entry(*chunk).or_insert([0; WORDS]);
            for (a, b) in mine.iter_mut().zip(words) {
                *a |= b;
            }
        }
    }

    /// True when there is no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes of the blocks in the set.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.chunks.values().flatten().map(|w| u64::from(w.count_ones())).sum::<u64>() * BLOCK
    }

    /// Number of 1 MiB pieces with a block in the set.
    #[must_use]
    pub fn pieces(&self) -> u64 {
        self.chunks.len() as u64
    }

    /// Is the block at this byte offset in the set?
    #[must_use]
    pub fn contains(&self, offset: u64) -> bool {
        let block = offset / BLOCK;
        let word = usize::try_from(block % CHUNK_BLOCKS / 64).expect("below 4");
        self.chunks.get(&(block / CHUNK_BLOCKS)).is_some_and(|w| w[word] >> (block % 64) & 1 == 1)
    }

    /// The first run at or after `from`, as (offset, length) in bytes, cut at `max_len` and at 1 MiB borders.
    #[must_use]
    pub fn next_run(&self, from: u64, max_len: u64) -> Option<(u64, u64)> {
        let first = from / BLOCK;
        for (chunk, _) in self.chunks.range(first / CHUNK_BLOCKS..) {
            let start = (chunk * CHUNK_BLOCKS).max(first);
            let end = (chunk + 1) * CHUNK_BLOCKS;
            let Some(begin) = (start..end).find(|b| self.contains(b * BLOCK)) else { continue };
            let limit = end.min(begin + max_len / BLOCK);
            let stop = (begin..limit).find(|b| !self.contains(b * BLOCK)).unwrap_or(limit);
            return Some((begin * BLOCK, (stop - begin) * BLOCK));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        /// The set does what a plain set of block numbers does.
        #[test]
        fn a_block_set_is_a_set_of_blocks(steps in proptest::collection::vec((any::<bool>(), 0u64..700, 1u64..300), 1..40)) {
            let mut set = BlockSet::default();
            let mut plain = BTreeSet::new();
            for (add, block, count) in steps {
                for b in block..block + count {
                    if add { plain.insert(b); } else { plain.remove(&b); }
                }
                if add { set.insert(block * BLOCK, count * BLOCK) } else { set.remove(block * BLOCK, count * BLOCK) }
            }
            prop_assert_eq!(set.bytes(), plain.len() as u64 * BLOCK);
            prop_assert_eq!(set.is_empty(), plain.is_empty());
            let mut runs = Vec::new();
            let mut from = 0;
            while let Some((offset, len)) = set.next_run(from, 64 * 1024) {
                prop_assert!(len > 0 && len <= 64 * 1024);
                runs.extend((offset..offset + len).step_by(4096).map(|o| o / BLOCK));
                from = offset + len;
            }
            prop_assert_eq!(runs, plain.into_iter().collect::<Vec<_>>());
        }
    }
}
