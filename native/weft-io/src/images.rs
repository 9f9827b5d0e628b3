//! Images of replicas, by blocking calls: the files in which a snapshot keeps what the head had (protocol.md 4.19, R28).
//!
//! ```text
//! images/<volume>.<rid>/<snapshot>/{image.a, image.b, seg-000000…, hash-000000…}
//! ```
//!
//! They lie beside the replicas, so that a head goes to the trash without them. `image.a` and `image.b` hold what the
//! caller keeps of an image. A segment is one file: 64 MiB of data that shares its blocks with the head's, and behind it
//! 8 bytes a block, its kind and CRC32C as in a sidecar, with a kind of its own for "absent". One file has one name and
//! one flush, and a block that should be there and is not shows by its empty entry. Of one whose data was destroyed a file of
//! hashes is kept of each segment in place of that (weft-proto's `hashes`), and nothing else.
//!
//! Must always hold:
//! * what an image has is what its caller's log says; what is in a file beyond that was cut short and is made again;
//! * before a caller may log it, data, entries and the name of the file are durable;
//! * head's sidecars are copied, never shared: a seal must not need space (R20).

use core::ops::Range;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt;

use weft_proto::hashes::KEPT_MAX;
use weft_proto::ids::SnapId;
use weft_proto::log::ReplicaKey;
use weft_proto::payload::{BLOCK, Payload};

use crate::buffer::IoBuf;
use crate::driver::{Errno, Fd};
use crate::files::{Files, exists_at, names, open_at, unshared_clone};
use crate::pool_dir::{list_replicas, read_all, replica_name, size_of};
use crate::sidecar::{ENTRY, Entry, SEGMENT_BYTES, SIDECAR_BYTES};
use crate::store::Place;
use crate::thin::read_device;

pub(crate) const IMAGES: &str = "images";
/// Length of a segment of an image: data and entries.
const FILE_BYTES: u64 = SEGMENT_BYTES + SIDECAR_BYTES as u64;

pub(crate) fn open_dir(dir: &Fd, name: &str) -> Result<Fd, Errno> {
    open_at(dir, name, libc::O_RDONLY | libc::O_DIRECTORY)
}

/// Opens a directory, and makes it if it is missing; its name is durable in both cases.
pub(crate) fn dir_at(files: &Files, dir: &Fd, name: &str) -> Result<Fd, Errno> {
    let opened = match files.make_dir_at(dir, name) {
        Err(Errno(libc::EEXIST)) => open_dir(dir, name)?,
        made => made?,
    };
    files.sync(dir)?;
    Ok(opened)
}

/// Where a replica's images are, if it ever had any.
pub(crate) fn images_of(root: &Fd, key: ReplicaKey) -> Result<Fd, Errno> {
    open_dir(&open_dir(root, IMAGES)?, &replica_name(key))
}

pub(crate) fn image_dir(root: &Fd, key: ReplicaKey, image: SnapId) -> Result<Fd, Errno> {
    open_dir(&images_of(root, key)?, &image.to_string())
}

pub(crate) fn segment_name(number: u32) -> String {
    format!("seg-{number:06}")
}

/// Where blocks of a segment lie in its file: offset and length.
pub(crate) fn bytes_of(blocks: &Range<u32>) -> (u64, u64) {
    (u64::from(blocks.start) * BLOCK, u64::from(blocks.end - blocks.start) * BLOCK)
}

pub(crate) fn entries_at(block: u32) -> u64 {
    SEGMENT_BYTES + u64::from(block) * ENTRY as u64
}

/// Makes an image that has nothing yet, with its two files of `slot_bytes`, written over their length (R20), and what else
/// is to be in its directory.
pub(crate) fn take(
    files: &Files,
    root: &Fd,
    key: ReplicaKey,
    image: SnapId,
    slot_bytes: u64,
    more: &dyn Fn(&Fd) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let home = dir_at(files, &dir_at(files, root, IMAGES)?, &replica_name(key))?;
    let name = image.to_string();
    if exists_at(&home, &name)? {
        // Perhaps by a process that was killed before it was durable.
        files.sync(&home)?;
        return Err(Errno(libc::EEXIST));
    }
    let temporary = format!("{name}.tmp");
    files.remove_tree(&home, &temporary)?;
    let made = make(files, &home, &temporary, slot_bytes, more)
        .and_then(|()| files.rename_at(&home, &temporary, &home, &name))
        .and_then(|()| files.sync(&home));
    if made.is_err() {
        // Out of space, most likely: give back what it took. The first error is the one to tell.
        let _ = files.remove_tree(&home, &temporary);
    }
    made
}

pub(crate) fn make(
    files: &Files,
    home: &Fd,
    name: &str,
    slot_bytes: u64,
    more: &dyn Fn(&Fd) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let dir = files.make_dir_at(home, name)?;
    for file in ["image.a", "image.b"] {
        files.write_zeroes(&files.create_at(&dir, file, libc::O_RDWR)?, slot_bytes)?;
    }
    more(&dir)?;
    files.sync(&dir)
}

/// All images in the pool. What an earlier process left half made is removed, and the names found are durable.
pub(crate) fn list(files: &Files, root: &Fd) -> Result<Vec<(ReplicaKey, SnapId)>, Errno> {
    let images = match open_dir(root, IMAGES) {
        Err(Errno(libc::ENOENT)) => return Ok(Vec::new()),
        opened => opened?,
    };
    files.sync(root)?;
    files.sync(&images)?;
    let mut found = Vec::new();
    for key in list_replicas(&images)? {
        let home = open_dir(&images, &replica_name(key))?;
        files.sync(&home)?;
        for name in names(&home)? {
            if name.ends_with(".tmp") {
                files.remove_tree(&home, &name)?;
            } else if let Ok(image) = name.parse::<SnapId>()
                && image.to_string() == name
            {
                found.push((key, image));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Writes over the start of `image.a` or `image.b`, durably. They are made again if somebody has taken them away: what the
/// image had is damaged then, and that it has to be told of has to outlive this process.
pub(crate) fn write_slot(
    files: &Files,
    root: &Fd,
    key: ReplicaKey,
    image: SnapId,
    name: &str,
    bytes: &[u8],
) -> Result<(), Errno> {
    let dir = match image_dir(root, key, image) {
        Err(Errno(libc::ENOENT)) => {
            take(files, root, key, image, bytes.len() as u64, &|_| Ok(()))?;
            image_dir(root, key, image)?
        }
        dir => dir?,
    };
    let (file, made) = match open_at(&dir, name, libc::O_RDWR) {
        Err(Errno(libc::ENOENT)) => (files.create_at(&dir, name, libc::O_RDWR)?, true),
        file => (file?, false),
    };
    files.write_all_at(&file, bytes, 0)?;
    files.sync(&file)?;
    if made { files.sync(&dir) } else { Ok(()) }
}

/// Reads one of the two, which is durable by then: the log forgets what it holds.
pub(crate) fn read_slot(
    files: &Files,
    root: &Fd,
    key: ReplicaKey,
    image: SnapId,
    name: &str,
) -> Result<IoBuf, Errno> {
    let file = open_at(&image_dir(root, key, image)?, name, libc::O_RDONLY)?;
    files.sync(&file)?;
    read_all(&file)
}

/// A segment's file of an image, made if it is missing.
pub(crate) fn segment(files: &Files, dir: &Fd, number: u32) -> Result<Fd, Errno> {
    let file = files.create_at(dir, &segment_name(number), libc::O_RDWR)?;
    if size_of(&file)? != FILE_BYTES {
        files.truncate(&file, FILE_BYTES)?;
    }
    Ok(file)
}

/// Puts blocks of a segment of the head into an image, not durably. Without `head` there is nothing in that segment.
pub(crate) fn preserve(
    files: &Files,
    root: &Fd,
    (key, image, number): (ReplicaKey, SnapId, u32),
    head: Option<&Fd>,
    blocks: Range<u32>,
    entries: &[Entry],
) -> Result<(), Errno> {
    let file = segment(files, &image_dir(root, key, image)?, number)?;
    let (offset, len) = bytes_of(&blocks);
    if let Some(head) = head {
        files.clone_range(head, offset, len, &file, offset)?;
    }
    let entries: Vec<u8> = entries.iter().flat_map(|entry| entry.in_image()).collect();
    files.write_all_at(&file, &entries, entries_at(blocks.start))
}

/// Makes a segment's file of an image durable, with `named` also its name.
pub(crate) fn sync(
    files: &Files,
    root: &Fd,
    (key, image, number): (ReplicaKey, SnapId, u32),
    named: bool,
) -> Result<(), Errno> {
    let dir = image_dir(root, key, image)?;
    files.sync(&open_at(&dir, &segment_name(number), libc::O_RDWR)?)?;
    if named { files.sync(&dir) } else { Ok(()) }
}

/// A segment's file of the first of these images that has one.
pub(crate) fn find(
    root: &Fd,
    key: ReplicaKey,
    images: impl Iterator<Item = SnapId>,
    number: u32,
) -> Result<Option<File>, Errno> {
    for image in images {
        let file =
            image_dir(root, key, image).and_then(|dir| open_at(&dir, &segment_name(number), libc::O_RDONLY));
        match file {
            Err(Errno(libc::ENOENT)) => {}
            file => return Ok(Some(File::from(unshared_clone(&file?)?))),
        }
    }
    Ok(None)
}

/// A segment of an image, to be read.
#[derive(Debug)]
pub(crate) enum ImageSegment {
    /// Data and entries, with a kind of its own for "absent".
    File(File),
    /// Data at a place on a device, and at this byte of that the sidecar that the replica had.
    Volume(Place, u64),
    /// The replica had none.
    Absent,
}

impl ImageSegment {
    /// Entries of blocks; none for what should be there and is not.
    pub(crate) fn entries(&self, blocks: Range<u32>) -> Result<Vec<Option<Entry>>, Errno> {
        match self {
            ImageSegment::File(file) => entries_of(file, blocks),
            ImageSegment::Absent => Ok(vec![Some(Entry::Absent); blocks.len()]),
            ImageSegment::Volume(Place { file, .. }, sidecar) => {
                let (from, to) =
                    (u64::from(blocks.start) * ENTRY as u64, u64::from(blocks.end) * ENTRY as u64);
                let first = from / BLOCK * BLOCK;
                let len = usize::try_from(to.next_multiple_of(BLOCK) - first).expect("at most a sidecar");
                let mut pages = IoBuf::zeroed(len);
                read_device(file, pages.bytes_mut(), sidecar + first)?;
                let within = usize::try_from(from - first).expect("within a page");
                let bytes = &pages.bytes()[within..][..blocks.len() * ENTRY];
                let entry = |bytes: &[u8]| Some(Entry::of_sidecar(bytes.try_into().expect("8 bytes")));
                Ok(bytes.chunks_exact(ENTRY).map(entry).collect())
            }
        }
    }

    /// Reads data from a block on.
    pub(crate) fn read(&self, buf: &mut IoBuf, block: u32) -> Result<(), Errno> {
        let offset = u64::from(block) * BLOCK;
        match self {
            ImageSegment::File(file) => Ok(file.read_exact_at(buf.bytes_mut(), offset)?),
            ImageSegment::Volume(Place { file, base }, _) => {
                read_device(file, buf.bytes_mut(), base + offset)
            }
            ImageSegment::Absent => Err(Errno(libc::ENODATA)),
        }
    }
}

/// Entries of blocks; none for what the file does not have.
pub(crate) fn entries_of(file: &File, blocks: Range<u32>) -> Result<Vec<Option<Entry>>, Errno> {
    let mut bytes = vec![0; blocks.len() * ENTRY];
    match file.read_exact_at(&mut bytes, entries_at(blocks.start)) {
        // Somebody has cut it.
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {}
        read => read?,
    }
    Ok(bytes.chunks_exact(ENTRY).map(|entry| Entry::of_image(entry.try_into().expect("8 bytes"))).collect())
}

/// Lets another image share blocks of a segment, durably; without any that image has nothing in the segment and gets the
/// whole file, which needs no space. Fine if an earlier call has done it.
pub(crate) fn hand_down(
    files: &Files,
    root: &Fd,
    key: ReplicaKey,
    (from, to): (SnapId, SnapId),
    number: u32,
    ranges: &[Range<u32>],
) -> Result<(), Errno> {
    let (from, to) = (image_dir(root, key, from)?, image_dir(root, key, to)?);
    let name = segment_name(number);
    if ranges.is_empty() {
        match files.rename_at(&from, &name, &to, &name) {
            Err(Errno(libc::ENOENT)) if exists_at(&to, &name)? => {}
            renamed => renamed?,
        }
        return files.sync(&to);
    }
    let source = open_at(&from, &name, libc::O_RDONLY)?;
    let heir = segment(files, &to, number)?;
    let reader = File::from(unshared_clone(&source)?);
    for blocks in ranges {
        let (offset, len) = bytes_of(blocks);
        files.clone_range(&source, offset, len, &heir, offset)?;
        let mut bytes = vec![0; blocks.len() * ENTRY];
        reader.read_exact_at(&mut bytes, entries_at(blocks.start))?;
        files.write_all_at(&heir, &bytes, entries_at(blocks.start))?;
    }
    files.sync(&heir)?;
    files.sync(&to)
}

fn hashes_name(number: u32) -> String {
    format!("hash-{number:06}")
}

/// Keeps hashes of a segment beside an image, durably; what an earlier try has kept is written over.
pub(crate) fn keep(
    files: &Files,
    root: &Fd,
    (key, image, number): (ReplicaKey, SnapId, u32),
    bytes: &[u8],
) -> Result<(), Errno> {
    let dir = image_dir(root, key, image)?;
    let file = files.create_at(&dir, &hashes_name(number), libc::O_RDWR)?;
    files.truncate(&file, bytes.len() as u64)?;
    files.write_all_at(&file, bytes, 0)?;
    files.sync(&file)?;
    files.sync(&dir)
}

/// What is kept of a segment so, at most one byte more than it may be; none if there is no such file.
pub(crate) fn kept(root: &Fd, key: ReplicaKey, image: SnapId, number: u32) -> Result<Option<Vec<u8>>, Errno> {
    let opened =
        image_dir(root, key, image).and_then(|dir| open_at(&dir, &hashes_name(number), libc::O_RDONLY));
    let file = match opened {
        Err(Errno(libc::ENOENT)) => return Ok(None),
        file => File::from(unshared_clone(&file?)?),
    };
    let mut bytes = Vec::new();
    file.take(KEPT_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Removes an image's data for good, and nothing else of it.
pub(crate) fn empty(files: &Files, root: &Fd, key: ReplicaKey, image: SnapId) -> Result<(), Errno> {
    let dir = match image_dir(root, key, image) {
        Err(Errno(libc::ENOENT)) => return Ok(()),
        opened => opened?,
    };
    for name in names(&dir)?.iter().filter(|name| name.starts_with("seg-")) {
        files.remove_file_at(&dir, name)?;
    }
    files.sync(&dir)
}

/// Removes an image's files for good.
pub(crate) fn drop_image(files: &Files, root: &Fd, key: ReplicaKey, image: SnapId) -> Result<(), Errno> {
    let home = match images_of(root, key) {
        Err(Errno(libc::ENOENT)) => return Ok(()),
        opened => opened?,
    };
    files.remove_tree(&home, &image.to_string())?;
    files.sync(&home)
}
