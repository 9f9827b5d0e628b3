//! Replicas in the making that get what an image of another one has, by blocking calls: their files share the blocks of that
//! one's.
//!
//! ```text
//! begin ─▶ share, segment by segment ─▶ publish: all of it durable, its first checkpoint, then its name
//!                    └────────────────▶ abandon
//! ```
//!
//! Must always hold:
//! * until it is published it lies under a name that the next start of the pool removes; then it is there as a whole, with
//!   a checkpoint, and nothing of it depends on where it came from;
//! * sidecars are copied, never shared: a seal must not need space (R20);
//! * whose blocks are shared says so in its directory, so that what is written to them counts as taking room;
//! * the lock of a file with many extents is held for 1 MiB at a time.

use core::ops::Range;

use weft_proto::ids::SnapId;
use weft_proto::log::ReplicaKey;

use crate::driver::{Errno, Fd};
use crate::files::{Files, exists_at, names, open_at};
use crate::images::{self, bytes_of, open_dir};
use crate::pool_dir::{mark_shared, replica_name, settle};
use crate::reflink::few_extents;
use crate::sidecar::{ENTRY, Entry, SEGMENT_BYTES, SIDECAR_BYTES};

/// Blocks of one step through a file with many extents.
pub(crate) const STEP: u32 = 256;

/// Its directory's name until it is published.
pub(crate) fn temporary(key: ReplicaKey) -> String {
    format!("{}.tmp", replica_name(key))
}

/// Begins a replica that shares blocks with another one: its directory, with its two checkpoint files of `meta_bytes`. What an
/// earlier try left goes.
pub(crate) fn begin(
    files: &Files,
    replicas: &Fd,
    (from, to): (ReplicaKey, ReplicaKey),
    meta_bytes: u64,
) -> Result<(), Errno> {
    if exists_at(replicas, &replica_name(to))? {
        return Err(Errno(libc::EEXIST));
    }
    let source = open_dir(replicas, &replica_name(from))?;
    if mark_shared(files, &source)? {
        files.sync(&source)?;
    }
    let name = temporary(to);
    files.remove_tree(replicas, &name)?;
    let dir = files.make_dir_at(replicas, &name)?;
    make_meta(files, &dir, meta_bytes)?;
    mark_shared(files, &dir).map(drop)
}

/// Its two checkpoint files.
pub(crate) fn make_meta(files: &Files, dir: &Fd, meta_bytes: u64) -> Result<(), Errno> {
    for file in ["meta.a", "meta.b"] {
        files.write_zeroes(&files.create_at(dir, file, libc::O_RDWR)?, meta_bytes)?;
    }
    Ok(())
}

/// Shares blocks of a segment of a head, not durably; so many of them, from the first on. In a file with many extents that is a
/// step's, so that who writes there need not wait long.
pub(crate) fn from_head(
    files: &Files,
    replicas: &Fd,
    (to, number): (ReplicaKey, u32),
    head: &Fd,
    mut blocks: Range<u32>,
    entries: &[Entry],
) -> Result<u32, Errno> {
    let (offset, len) = bytes_of(&blocks);
    if blocks.len() > STEP as usize && !(files.is_recorded() || few_extents(head, offset, len)?) {
        blocks.end = blocks.start + STEP;
    }
    let target = Target::open(files, replicas, to, number)?;
    target.put(files, head, blocks.clone(), &entries[..blocks.len()])?;
    Ok(blocks.end - blocks.start)
}

/// Shares blocks of a segment that one of these images of a replica has, not durably. False: none of them has that file. What
/// the file lacks is damaged in the clone, too.
pub(crate) fn from_image(
    files: &Files,
    (root, replicas): (&Fd, &Fd),
    (from, of): (ReplicaKey, [Option<SnapId>; 2]),
    (to, number): (ReplicaKey, u32),
    blocks: Range<u32>,
) -> Result<bool, Errno> {
    let Some(file) = images::find(root, from, of.into_iter().flatten(), number)? else { return Ok(false) };
    let entries = images::entries_of(&file, blocks.clone())?;
    let entries: Vec<Entry> = entries.into_iter().map(|entry| entry.unwrap_or(Entry::Damaged)).collect();
    let file: Fd = std::sync::Arc::new(file.into());
    let (offset, len) = bytes_of(&blocks);
    let step = if files.is_recorded() || few_extents(&file, offset, len)? { u32::MAX } else { STEP };
    let target = Target::open(files, replicas, to, number)?;
    let mut at = blocks.start;
    while at < blocks.end {
        let end = at.saturating_add(step).min(blocks.end);
        let known = (at - blocks.start) as usize..(end - blocks.start) as usize;
        target.put(files, &file, at..end, &entries[known])?;
        at = end;
    }
    Ok(true)
}

/// A segment of a replica in the making.
struct Target {
    data: Fd,
    side: Fd,
}

impl Target {
    fn open(files: &Files, replicas: &Fd, to: ReplicaKey, number: u32) -> Result<Target, Errno> {
        let dir = open_dir(replicas, &temporary(to))?;
        let file = |name: String, len: u64, whole: bool| {
            let there = exists_at(&dir, &name)?;
            let file = files.create_at(&dir, &name, libc::O_RDWR)?;
            if !there {
                files.truncate(&file, len)?;
                if whole {
                    files.allocate(&file, len)?;
                }
            }
            Ok::<Fd, Errno>(file)
        };
        let side = file(format!("crc-{number:06}"), SIDECAR_BYTES as u64, true)?;
        Ok(Target { data: file(format!("seg-{number:06}"), SEGMENT_BYTES, false)?, side })
    }

    fn put(&self, files: &Files, from: &Fd, blocks: Range<u32>, entries: &[Entry]) -> Result<(), Errno> {
        let (offset, len) = bytes_of(&blocks);
        files.clone_range(from, offset, len, &self.data, offset)?;
        let entries: Vec<u8> = entries.iter().flat_map(|entry| entry.in_sidecar()).collect();
        files.write_all_at(&self.side, &entries, u64::from(blocks.start) * ENTRY as u64)
    }
}

/// Makes all of it durable, its first checkpoint as well, and gives it its name.
pub(crate) fn publish(files: &Files, replicas: &Fd, to: ReplicaKey, checkpoint: &[u8]) -> Result<(), Errno> {
    let (from, name) = (temporary(to), replica_name(to));
    let dir = open_dir(replicas, &from)?;
    let meta = open_at(&dir, "meta.a", libc::O_RDWR)?;
    files.write_all_at(&meta, checkpoint, 0)?;
    files.sync(&meta)?;
    let number = |name: &String| name.strip_prefix("seg-")?.parse().ok();
    let mut made: Vec<u32> = names(&dir)?.iter().filter_map(number).collect();
    made.sort_unstable();
    settle(files, &dir, &made)?;
    if exists_at(replicas, &name)? {
        return Err(Errno(libc::EEXIST));
    }
    files.rename_at(replicas, &from, replicas, &name)?;
    files.sync(replicas)
}

/// Removes what is there of it; fine if there is nothing.
pub(crate) fn abandon(files: &Files, replicas: &Fd, to: ReplicaKey) -> Result<(), Errno> {
    files.remove_tree(replicas, &temporary(to))
}
