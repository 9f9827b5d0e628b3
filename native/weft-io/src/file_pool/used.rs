//! How much of the pool a replica's head takes: the blocks that the file system has given to its segments.
//!
//! Must always hold: nobody who asks waits for a walk. Segments that are not open were counted when the replica was opened,
//! in the background, or when they were closed; those that are open, few, are asked.

use core::ops::Range;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use super::{Replica, Segment};
use crate::driver::{Errno, Fd};
use crate::files::{Files, open_at, unshared_clone};
use crate::pool_dir;
use crate::sidecar::SEGMENT_BYTES;

/// What is known of a replica's segments that are not open.
#[derive(Debug)]
pub(super) enum Closed {
    /// They are being counted; these were opened since that began (0), or opened and closed again.
    Counting(BTreeMap<u32, u64>),
    /// Their bytes together.
    Counted(u64),
}

impl Default for Closed {
    fn default() -> Closed {
        Closed::Counting(BTreeMap::new())
    }
}

impl Closed {
    /// A segment was opened, of which so many bytes were there before.
    pub(super) fn opened(&mut self, number: u32, bytes: u64) {
        match self {
            Closed::Counting(seen) => {
                seen.insert(number, 0);
            }
            Closed::Counted(sum) => *sum = sum.saturating_sub(bytes),
        }
    }

    /// A segment was closed.
    pub(super) fn closed(&mut self, number: u32, bytes: u64) {
        match self {
            Closed::Counting(seen) => {
                seen.insert(number, bytes);
            }
            Closed::Counted(sum) => *sum += bytes,
        }
    }

    /// The count is there.
    pub(super) fn counted(&mut self, found: Vec<(u32, u64)>) {
        if let Closed::Counting(seen) = self {
            let others =
                found.iter().filter(|(number, _)| !seen.contains_key(number)).map(|(_, bytes)| bytes);
            *self = Closed::Counted(others.chain(seen.values()).sum());
        }
    }
}

/// Reserves a range of a thick replica's bytes: of each segment its number, what it took before and takes now. Blocks.
pub(super) fn reserve(files: &Files, dir: &Fd, range: Range<u64>) -> Result<Vec<(u32, u64, u64)>, Errno> {
    let first = range.start / SEGMENT_BYTES;
    // Only the first may have been there.
    let before = u32::try_from(first).map_or(0, |number| of_names(dir, number));
    let numbers = pool_dir::reserve(files, dir, range)?;
    let was = |number: u32| if u64::from(number) == first { before } else { 0 };
    Ok(numbers.into_iter().map(|number| (number, was(number), of_names(dir, number))).collect())
}

/// Bytes of each of these segments. Blocks.
pub(super) fn count(dir: &Fd, segments: &[u32]) -> Vec<(u32, u64)> {
    // One that can't be looked at counts when it is opened.
    segments.iter().map(|number| (*number, of_names(dir, *number))).collect()
}

/// Bytes of a segment's two files, which need not be there. Blocks.
pub(super) fn of_names(dir: &Fd, number: u32) -> u64 {
    let of = |name: String| open_at(dir, &name, libc::O_PATH).and_then(|file| of_file(&file)).unwrap_or(0);
    of(format!("seg-{number:06}")) + of(format!("crc-{number:06}"))
}

fn of_file(file: &Fd) -> Result<u64, Errno> {
    Ok(File::from(unshared_clone(file)?).metadata()?.blocks() * 512)
}

/// Bytes of an open segment, as the kernel has them in memory; 0 while it is being opened.
pub(super) fn of_segment(segment: &Segment) -> u64 {
    let Some((data, side)) = &segment.files else { return 0 };
    of_file(&data.file).unwrap_or(0) + of_file(&side.file).unwrap_or(0)
}

/// Bytes of a replica; none while they are being counted.
pub(super) fn of_replica(replica: &Replica) -> Option<u64> {
    let Closed::Counted(closed) = replica.used else { return None };
    Some(closed + replica.segments.values().map(of_segment).sum::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments come and go while the others are counted: each counts once, as it was last.
    #[test]
    fn what_is_opened_while_it_is_counted_counts_once() {
        let mut closed = Closed::default();
        closed.opened(1, 10);
        closed.closed(1, 15);
        closed.opened(2, 20);
        closed.opened(9, 0);
        closed.closed(9, 90);
        closed.counted(vec![(0, 1), (1, 10), (2, 20), (3, 4)]);
        assert!(matches!(closed, Closed::Counted(110)), "{closed:?}");
        closed.closed(2, 25);
        closed.opened(3, 4);
        assert!(matches!(closed, Closed::Counted(131)), "{closed:?}");
    }
}
