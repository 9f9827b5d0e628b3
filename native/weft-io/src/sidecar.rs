//! What a pool knows of each 4 KiB block of a segment: its kind, and the CRC32C of its data (protocol.md 4.10).
//!
//! Must always hold:
//! * an entry is 8 bytes at a multiple of 8, so that no torn write of a page mixes two versions of one entry: a
//!   page that is rewritten for the sake of an unsealed block keeps the entries of sealed ones;
//! * a file of zeroes says "everything absent";
//! * a page in flight to the disk is not changed (its buffer is copied first).
//!
//! There is no checksum of a page: after a torn write it would refuse the sound entries too. Damage of an entry
//! shows as an unknown kind or as a CRC that does not match, both of which are bit rot.

use weft_proto::message::Hole;
use weft_proto::payload::{BLOCK, Payload};

use crate::buffer::IoBuf;

/// Bytes of data in one segment.
pub const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Blocks in one segment.
pub const SEGMENT_BLOCKS: u32 = 16384;
/// Length of a segment's sidecar file.
pub const SIDECAR_BYTES: usize = SEGMENT_BLOCKS as usize * ENTRY;

/// Bytes of an entry.
pub(crate) const ENTRY: usize = 8;
const PAGE: usize = 4096;
const PAGES: usize = SIDECAR_BYTES / PAGE;
const _: () = assert!(SEGMENT_BLOCKS as u64 * BLOCK == SEGMENT_BYTES && PAGES == 32);

const ABSENT: u32 = 0;
const ZERO: u32 = u32::from_le_bytes(*b"ZERO");
const DATA: u32 = u32::from_le_bytes(*b"DATA");
/// Absent, in an image: there, zeroes say that nothing was put.
const NONE: u32 = u32::from_le_bytes(*b"NONE");

/// One block's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Never written.
    Absent,
    /// Zeroed or discarded.
    Zero,
    /// Data with this CRC32C.
    Data(u32),
    /// Not an entry that was ever written here.
    Damaged,
}

impl Entry {
    /// As an image's file has it.
    pub(crate) fn in_image(self) -> [u8; ENTRY] {
        self.bytes(NONE)
    }

    /// As a sidecar has it.
    pub(crate) fn in_sidecar(self) -> [u8; ENTRY] {
        self.bytes(ABSENT)
    }

    fn bytes(self, absent: u32) -> [u8; ENTRY] {
        let (kind, crc) = match self {
            Entry::Absent => (absent, 0),
            Entry::Zero => (ZERO, 0),
            Entry::Data(crc) => (DATA, crc),
            Entry::Damaged => (u32::MAX, 0),
        };
        let mut bytes = [0; ENTRY];
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes[4..].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    /// From a sidecar.
    pub(crate) fn of_sidecar(bytes: [u8; ENTRY]) -> Entry {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        match (word(4), word(0)) {
            (ABSENT, 0) => Entry::Absent,
            (ZERO, 0) => Entry::Zero,
            (DATA, crc) => Entry::Data(crc),
            _ => Entry::Damaged,
        }
    }

    /// None: nothing was put there.
    pub(crate) fn of_image(bytes: [u8; ENTRY]) -> Option<Entry> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Some(match (word(4), word(0)) {
            (0, 0) => return None,
            (NONE, 0) => Entry::Absent,
            (ZERO, 0) => Entry::Zero,
            (DATA, crc) => Entry::Data(crc),
            _ => Entry::Damaged,
        })
    }

    pub(crate) fn of_hole(hole: Hole) -> Entry {
        match hole {
            Hole::Zero => Entry::Zero,
            Hole::Absent => Entry::Absent,
        }
    }
}

/// The sidecar of one segment in memory; pages that were never written take no memory.
#[derive(Debug, Default)]
pub(crate) struct Sidecar {
    pages: [Option<IoBuf>; PAGES],
    /// Bit per page: differs from the file.
    dirty: u32,
    /// Bit per page: to be written with the next ones, for the sake of its place.
    touched: u32,
    /// Those of the pages that were last taken that differed.
    taken: u32,
    /// Entries changed since the dirty pages were last taken.
    changes: u32,
}

impl Sidecar {
    /// From the pages of the file, in order.
    pub(crate) fn from_pages(pages: Vec<IoBuf>) -> Sidecar {
        let mut sidecar = Sidecar::default();
        for (place, page) in sidecar.pages.iter_mut().zip(pages) {
            if page.bytes().iter().any(|b| *b != 0) {
                *place = Some(page);
            }
        }
        sidecar
    }

    pub(crate) fn get(&self, block: u32) -> Entry {
        let (page, at) = place(block);
        let Some(page) = &self.pages[page] else { return Entry::Absent };
        Entry::of_sidecar(page.bytes()[at..at + ENTRY].try_into().expect("8 bytes"))
    }

    /// Pages that begin these many bytes from each other are written with the next ones that are taken, changed or not: where
    /// they lie is this sidecar's own then.
    pub(crate) fn touch(&mut self, grain: u64) {
        let step = usize::try_from(grain).expect("a few pages") / PAGE;
        for number in (0..PAGES).step_by(step.max(1)) {
            self.pages[number].get_or_insert_with(|| IoBuf::zeroed(PAGE));
            self.touched |= 1 << number;
        }
    }

    pub(crate) fn set(&mut self, block: u32, entry: Entry) {
        if self.get(block) == entry {
            return;
        }
        let (number, at) = place(block);
        let page = self.pages[number].get_or_insert_with(|| IoBuf::zeroed(PAGE));
        page.bytes_mut()[at..at + ENTRY].copy_from_slice(&entry.in_sidecar());
        self.dirty |= 1 << number;
        self.changes += 1;
    }

    pub(crate) fn is_dirty(&self) -> bool {
        (self.dirty | self.touched) != 0
    }

    /// Entries changed since [`Sidecar::take_dirty`].
    pub(crate) fn changes(&self) -> u32 {
        self.changes
    }

    /// The dirty pages as runs of (offset in the file, buffers); they count as clean from now on.
    pub(crate) fn take_dirty(&mut self) -> Vec<(u64, Vec<IoBuf>)> {
        let mut runs: Vec<(u64, Vec<IoBuf>)> = Vec::new();
        let (mut previous, wanted) = (None, self.dirty | self.touched);
        for (number, page) in self.pages.iter().enumerate() {
            let Some(page) = page.as_ref().filter(|_| wanted & (1 << number) != 0) else { continue };
            match runs.last_mut() {
                Some((_, run)) if previous == Some(number.wrapping_sub(1)) => run.push(page.clone()),
                _ => runs.push(((number * PAGE) as u64, vec![page.clone()])),
            }
            previous = Some(number);
        }
        (self.taken, self.dirty, self.touched, self.changes) = (self.dirty, 0, 0, 0);
        runs
    }

    /// Some of what [`Sidecar::take_dirty`] gave did not reach the disk.
    pub(crate) fn mark_dirty_again(&mut self) {
        self.dirty |= self.taken;
    }
}

fn place(block: u32) -> (usize, usize) {
    assert!(block < SEGMENT_BLOCKS, "block {block} of a segment");
    let at = block as usize * ENTRY;
    (at / PAGE, at % PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_and_dirty_pages_are_joined_into_runs() {
        let mut sidecar = Sidecar::default();
        assert_eq!(sidecar.get(16383), Entry::Absent);
        sidecar.set(5, Entry::Absent);
        assert!(!sidecar.is_dirty(), "nothing changed");
        for (block, entry) in
            [(0, Entry::Data(7)), (511, Entry::Zero), (512, Entry::Data(0)), (16383, Entry::Zero)]
        {
            sidecar.set(block, entry);
            assert_eq!(sidecar.get(block), entry);
        }
        let runs = sidecar.take_dirty();
        let shape: Vec<_> = runs.iter().map(|(offset, run)| (*offset, run.len())).collect();
        assert_eq!((shape, sidecar.is_dirty()), (vec![(0, 2), (31 * 4096, 1)], false));
        // A page on its way to the disk does not change.
        sidecar.set(0, Entry::Absent);
        assert_eq!(runs[0].1[0].bytes()[..4], 7u32.to_le_bytes());
        sidecar.mark_dirty_again();
        assert_eq!((sidecar.take_dirty().len(), sidecar.changes()), (2, 0));
        // What was written for its place alone is as it was, also where that failed.
        sidecar.touch(64 << 10);
        let runs = sidecar.take_dirty();
        let places: Vec<u64> = runs.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(places, [0, 64 << 10]);
        sidecar.mark_dirty_again();
        assert!(!sidecar.is_dirty());
    }

    #[test]
    fn a_damaged_entry_is_neither_hole_nor_data() {
        let mut page = IoBuf::zeroed(4096);
        page.bytes_mut()[4..8].copy_from_slice(&ZERO.to_le_bytes());
        page.bytes_mut()[12..16].copy_from_slice(b"ZERP");
        page.bytes_mut()[16] = 1;
        let sidecar = Sidecar::from_pages(vec![page]);
        let entries = [sidecar.get(0), sidecar.get(1), sidecar.get(2), sidecar.get(3)];
        assert_eq!(entries, [Entry::Zero, Entry::Damaged, Entry::Damaged, Entry::Absent]);
    }
}
