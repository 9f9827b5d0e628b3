//! Images that are filled with what other members have of a snapshot, by blocking calls (protocol.md 4.19).
//!
//! ```text
//! begin ─▶ fill, piece by piece; sync, segment by segment ─▶ publish: all of it durable, its slot as well, then its name
//!                    └─────────────────────────────────────▶ abandon
//! ```
//!
//! Must always hold:
//! * until it is published it lies under a name that the next start of the pool removes; then it is there as a whole, with
//!   its slot;
//! * blocks are shared that were compared with what arrived while nobody could write to them, and no others.

use core::ops::Range;
use std::collections::BTreeSet;

use weft_proto::ids::SnapId;
use weft_proto::log::ReplicaKey;
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::{BLOCK, Payload};

use crate::buffer::IoBuf;
use crate::driver::{Errno, Fd};
use crate::files::{Files, exists_at, names, open_at};
use crate::images::{self, bytes_of, dir_at, entries_at, images_of, open_dir, segment, segment_name};
use crate::pool_dir::replica_name;
use crate::sidecar::{Entry, SEGMENT_BLOCKS};

const BLOCK_LEN: usize = 4096;

fn temporary(image: SnapId) -> String {
    format!("{image}.tmp")
}

fn temporary_dir(root: &Fd, key: ReplicaKey, image: SnapId) -> Result<Fd, Errno> {
    open_dir(&images_of(root, key)?, &temporary(image))
}

/// Blocks that arrived, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    first: u64,
    entries: Vec<Entry>,
    /// By the first block of each run that has data.
    data: Vec<(u64, IoBuf)>,
}

impl Arrived {
    /// Whole blocks from this one on; none if they are not.
    pub(crate) fn new(first: u64, extents: Vec<Extent<IoBuf>>) -> Option<Arrived> {
        let mut arrived = Arrived { first, entries: Vec::new(), data: Vec::new() };
        for extent in extents {
            match extent {
                Extent::Hole { len, kind } => {
                    let entry = if kind == Hole::Zero { Entry::Zero } else { Entry::Absent };
                    let blocks = usize::try_from(len / BLOCK).ok().filter(|_| len.is_multiple_of(BLOCK))?;
                    arrived.entries.resize(arrived.entries.len() + blocks, entry);
                }
                Extent::Data { crcs, data } => {
                    if data.len() != crcs.len() * BLOCK_LEN {
                        return None;
                    }
                    arrived.data.push((arrived.end(), data));
                    arrived.entries.extend(crcs.into_iter().map(Entry::Data));
                }
            }
        }
        (arrived.entries.len() <= SEGMENT_BLOCKS as usize).then_some(arrived)
    }

    /// The block behind the last one.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn index(&self, block: u64) -> Option<usize> {
        usize::try_from(block.checked_sub(self.first)?).ok().filter(|at| *at < self.entries.len())
    }

    /// What a block is to be.
    pub(crate) fn entry(&self, block: u64) -> Option<Entry> {
        self.index(block).map(|at| self.entries[at])
    }

    /// Has it exactly these bytes?
    pub(crate) fn is(&self, block: u64, bytes: &[u8]) -> bool {
        let run = self.data.iter().rev().find(|(first, _)| *first <= block);
        run.is_some_and(|(first, data)| {
            let at = usize::try_from(block - first).unwrap_or(usize::MAX).saturating_mul(BLOCK_LEN);
            data.bytes().get(at..at.saturating_add(BLOCK_LEN)) == Some(bytes)
        })
    }

    /// The data of blocks of one run.
    fn bytes(&self, blocks: &Range<u64>) -> Option<IoBuf> {
        let (first, data) = self.data.iter().rev().find(|(first, _)| *first <= blocks.start)?;
        let at = |block: u64| usize::try_from(block - first).ok().map(|blocks| blocks * BLOCK_LEN);
        let (start, end) = (at(blocks.start)?, at(blocks.end)?);
        (end <= data.len()).then(|| data.slice(start, end - start))
    }
}

/// Begins an image that is to be filled, with its two files of `slot_bytes`. What an earlier try left goes.
pub(crate) fn begin(
    files: &Files,
    root: &Fd,
    (key, image): (ReplicaKey, SnapId),
    slot_bytes: u64,
) -> Result<(), Errno> {
    let home = dir_at(files, &dir_at(files, root, images::IMAGES)?, &replica_name(key))?;
    if exists_at(&home, &image.to_string())? {
        return Err(Errno(libc::EEXIST));
    }
    let name = temporary(image);
    files.remove_tree(&home, &name)?;
    images::make(files, &home, &name, slot_bytes, &|_| Ok(()))
}

/// Puts blocks of a segment there, not durably; so many of them are shared with the head: of those in `same` all that can be.
pub(crate) fn fill(
    files: &Files,
    root: &Fd,
    (key, image, number): (ReplicaKey, SnapId, u32),
    (arrived, blocks): (&Arrived, Range<u32>),
    head: Option<(&Fd, &BTreeSet<u32>)>,
) -> Result<u32, Errno> {
    let file = segment(files, &temporary_dir(root, key, image)?, number)?;
    let base = u64::from(number) * u64::from(SEGMENT_BLOCKS);
    let whole = |block: u32| base + u64::from(block);
    let entry = |block: u32| arrived.entry(whole(block)).unwrap_or(Entry::Absent);
    let is_same = |block: u32| head.is_some_and(|(_, same)| same.contains(&block));
    let mut shared = 0;
    let mut at = blocks.start;
    while at < blocks.end {
        if !matches!(entry(at), Entry::Data(_)) {
            at += 1;
            continue;
        }
        let same = is_same(at);
        let begins = |block: u32| arrived.data.iter().any(|(first, _)| *first == whole(block));
        let ends = |block: &u32| {
            !matches!(entry(*block), Entry::Data(_)) || is_same(*block) != same || begins(*block)
        };
        let run = at..(at + 1..blocks.end).find(ends).unwrap_or(blocks.end);
        let (offset, len) = bytes_of(&run);
        let cloned =
            same && head.is_some_and(|(head, _)| files.clone_range(head, offset, len, &file, offset).is_ok());
        if cloned {
            shared += run.end - run.start;
        } else {
            let bytes = arrived.bytes(&(whole(run.start)..whole(run.end))).ok_or(Errno(libc::EINVAL))?;
            files.write_all_at(&file, bytes.bytes(), offset)?;
        }
        at = run.end;
    }
    let entries: Vec<u8> = blocks.clone().flat_map(|block| entry(block).in_image()).collect();
    files.write_all_at(&file, &entries, entries_at(blocks.start))?;
    Ok(shared)
}

/// Makes durable what was put into a segment.
pub(crate) fn sync(
    files: &Files,
    root: &Fd,
    (key, image, number): (ReplicaKey, SnapId, u32),
) -> Result<(), Errno> {
    match open_at(&temporary_dir(root, key, image)?, &segment_name(number), libc::O_RDWR) {
        Err(Errno(libc::ENOENT)) => Ok(()),
        file => files.sync(&file?),
    }
}

/// Makes all of it durable, `slot` as the first of its two files, and gives it its name.
pub(crate) fn publish(
    files: &Files,
    root: &Fd,
    (key, image): (ReplicaKey, SnapId),
    slot: &[u8],
) -> Result<(), Errno> {
    let home = images_of(root, key)?;
    let (from, name) = (temporary(image), image.to_string());
    let dir = open_dir(&home, &from)?;
    let first = open_at(&dir, "image.a", libc::O_RDWR)?;
    files.write_all_at(&first, slot, 0)?;
    files.sync(&first)?;
    let mut segments: Vec<String> =
        names(&dir)?.into_iter().filter(|name| name.starts_with("seg-")).collect();
    segments.sort_unstable();
    for segment in segments {
        files.sync(&open_at(&dir, &segment, libc::O_RDWR)?)?;
    }
    files.sync(&dir)?;
    if exists_at(&home, &name)? {
        return Err(Errno(libc::EEXIST));
    }
    files.rename_at(&home, &from, &home, &name)?;
    files.sync(&home)
}

/// Removes what was begun; fine if there is nothing.
pub(crate) fn abandon(files: &Files, root: &Fd, key: ReplicaKey, image: SnapId) -> Result<(), Errno> {
    match images_of(root, key) {
        Err(Errno(libc::ENOENT)) => Ok(()),
        home => files.remove_tree(&home?, &temporary(image)),
    }
}
