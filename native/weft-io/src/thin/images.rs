//! Images of a pool on LVM: thin snapshots of replicas' volumes.
//!
//! ```text
//! images/<volume>.<rid>/<snapshot>/{image.a, image.b, lv, segments}
//! s-…     the volume that `lv` names: data and sidecars of the replica as they were, segment behind segment
//! ```
//!
//! `lv` is there before its volume is; so a volume that carries `weft.busy=create` and that no directory names was never
//! anybody's. `segments` says which segments the replica had. What of a replica a segment that is not among them would have
//! is absent.
//!
//! An image's volume is not activated when it is taken, nor at a start: whoever reads it first does that.
//!
//! ```text
//! segments:  0 magic u32   4 crc u32 (of all that follows)   8 version u32   12 count u32
//!           16 runs: first segment u32, number of segments u32
//! ```
//!
//! Must always hold:
//! * when a snapshot is taken, the sidecars on the volume are right for every block, and nothing writes;
//! * an image is read from its volume only, and that is removed when nobody reads it any more.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError, RwLock};

use weft_proto::ids::SnapId;
use weft_proto::log::ReplicaKey;

use super::{CREATE, Left, NAME, REMOVE, STRIDE, ThinStore, fresh_name, read_name, write_name};
use crate::clones;
use crate::driver::{Errno, Fd};
use crate::files::{Files, exists_at, names, open_at, unshared_clone};
use crate::images::{self, ImageSegment, image_dir, open_dir};
use crate::pool_dir::{mark_shared, parse_replica_name, read_all, replica_name};
use crate::sidecar::SEGMENT_BYTES;
use crate::store::{Home, Place};

const SEGMENTS: &str = "segments";
const MAGIC: u32 = u32::from_le_bytes(*b"wseg");
const VERSION: u32 = 1;
const HEAD: usize = 16;
/// Segments of the largest volume.
const SEGMENTS_MAX: u32 = 1 << 20;

/// What the file `segments` holds.
fn encode_segments(segments: &BTreeSet<u32>) -> Vec<u8> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for segment in segments {
        match runs.last_mut() {
            Some((first, len)) if *first + *len == *segment => *len += 1,
            _ => runs.push((*segment, 1)),
        }
    }
    let count = u32::try_from(runs.len()).expect("at most 2^20 segments");
    let mut bytes: Vec<u8> = [MAGIC, 0, VERSION, count].into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.extend(runs.into_iter().flat_map(|(first, len)| [first, len]).flat_map(u32::to_le_bytes));
    let crc = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// None: not what was written there, or of newer software.
fn decode_segments(bytes: &[u8]) -> Option<BTreeSet<u32>> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let count = usize::try_from(word(12)?).ok().filter(|count| *count <= SEGMENTS_MAX as usize)?;
    let body = bytes.get(8..HEAD + 8 * count)?;
    if (word(0)?, word(4)?, word(8)?) != (MAGIC, crc32c::crc32c(body), VERSION) {
        return None;
    }
    let mut segments = BTreeSet::new();
    for run in 0..count {
        let (first, len) = (word(HEAD + 8 * run)?, word(HEAD + 8 * run + 4)?);
        let end = first.checked_add(len).filter(|end| *end <= SEGMENTS_MAX)?;
        segments.extend(first..end);
    }
    Some(segments)
}

/// An image's volume, open.
#[derive(Debug)]
pub(super) struct Opened {
    device: Fd,
    segments: BTreeSet<u32>,
}

/// Of one image: open or not. Whoever reads it holds this shared; who removes it alone.
pub(super) type Shelf = Arc<RwLock<Option<Opened>>>;

/// What a tag says is to be removed with its volume, and where a directory is that names one.
pub(super) fn entry_of_image(key: ReplicaKey, image: SnapId) -> String {
    format!("images/{}/{image}", replica_name(key))
}

fn entry_of_making(to: ReplicaKey) -> String {
    format!("replicas/{}", clones::temporary(to))
}

/// Finds a volume's name in an image's directory; none if that has none, or is not there.
fn volume_of(dir: Result<Fd, Errno>) -> Result<Option<String>, Errno> {
    match dir.and_then(|dir| read_name(&dir)) {
        Err(Errno(libc::ENOENT)) => Ok(None),
        name => name.map(Some),
    }
}

impl ThinStore {
    /// Which volumes are named by directories of images: with the entry of each.
    pub(super) fn named_by_images(&self) -> Result<Vec<(String, String)>, Errno> {
        let mut named = Vec::new();
        let images = match open_dir(&self.root, images::IMAGES) {
            Err(Errno(libc::ENOENT)) => return Ok(named),
            opened => opened?,
        };
        for replica in names(&images)? {
            let Some(key) = parse_replica_name(&replica) else { continue };
            let home = open_dir(&images, &replica)?;
            for name in names(&home)? {
                let Ok(image) = name.parse::<SnapId>() else { continue };
                if let Some(volume) = volume_of(open_dir(&home, &name))? {
                    named.push((volume, entry_of_image(key, image)));
                }
            }
        }
        Ok(named)
    }

    /// Removes what an entry of a tag names, if it is not the trash's. False: it is.
    pub(super) fn remove_image_entry(&self, entry: &str) -> Result<bool, Errno> {
        let parts: Vec<&str> = entry.split('/').collect();
        match parts[..] {
            ["images", replica, image] => {
                if let (Some(key), Ok(image)) = (parse_replica_name(replica), image.parse::<SnapId>()) {
                    images::drop_image(&self.files, &self.root, key, image)?;
                }
                Ok(true)
            }
            ["replicas", making] => {
                if making.strip_suffix(".tmp").and_then(parse_replica_name).is_some() {
                    self.files.remove_tree(&self.replicas, making)?;
                    self.files.sync(&self.replicas)?;
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn shelf(&self, key: ReplicaKey, image: SnapId) -> Shelf {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.entry((key, image)).or_default().clone()
    }

    /// A directory that has what the caller keeps of an image, and the name of the volume that it will have.
    pub(super) fn make_image(
        &self,
        files: &Files,
        root: &Fd,
        (key, image): (ReplicaKey, SnapId),
        slot_bytes: u64,
    ) -> Result<(), Errno> {
        // So that nothing is left to be done in the barrier.
        self.tidy(&mut self.lock())?;
        let name = fresh_name("s-", key);
        images::take(files, root, key, image, slot_bytes, &|dir| write_name(files, dir, &name))
    }

    /// See [`Store::take_image`](crate::store::Store::take_image).
    pub(super) fn take_image(
        &self,
        files: &Files,
        root: &Fd,
        home: &Home,
        (key, image): (ReplicaKey, SnapId),
        segments: &BTreeSet<u32>,
    ) -> Result<(), Errno> {
        let (_, origin) = home.device.as_ref().ok_or(Errno(libc::ENXIO))?;
        let dir = image_dir(root, key, image)?;
        let name = read_name(&dir)?;
        let list = files.create_at(&dir, SEGMENTS, libc::O_RDWR)?;
        files.write_all_at(&list, &encode_segments(segments), 0)?;
        files.sync(&list)?;
        files.sync(&dir)?;
        let mut left = self.lock();
        self.tidy(&mut left)?;
        let taken = self.snapshot(&mut left, origin, &name, "y");
        if taken.is_err() {
            // Its origin may be suspended, and guests with it. The first error is the one to tell.
            let _ = self.tidy(&mut left);
        } else {
            left.named.push(name);
        }
        taken
    }

    fn snapshot(&self, left: &mut Left, origin: &str, name: &str, skip: &str) -> Result<(), Errno> {
        let args = [
            "--yes",
            "--snapshot",
            "--setactivationskip",
            skip,
            "--addtag",
            CREATE,
            "--name",
            name,
            &self.path(origin),
        ];
        self.change(left, "lvcreate", &args)
    }

    /// Opens an image's volume; none if it has none any more.
    fn open_image(&self, root: &Fd, key: ReplicaKey, image: SnapId) -> Result<Option<Opened>, Errno> {
        let dir = match image_dir(root, key, image) {
            Err(Errno(libc::ENOENT)) => return Ok(None),
            dir => dir?,
        };
        let list = match open_at(&dir, SEGMENTS, libc::O_RDONLY) {
            Err(Errno(libc::ENOENT)) => return Ok(None),
            list => read_all(&list?)?,
        };
        let segments = decode_segments(weft_proto::payload::Payload::bytes(&list));
        let (Some(segments), Some(name)) = (segments, volume_of(Ok(dir))?) else { return Ok(None) };
        let mut left = self.lock();
        self.tidy(&mut left)?;
        let Some(volume) = self.volumes()?.into_iter().find(|volume| volume.name == name) else {
            return Ok(None);
        };
        let volume = if volume.number.is_some() {
            volume
        } else {
            let path = self.path(&name);
            let activate = ["--yes", "--ignoreactivationskip", "--activate", "y", &path];
            self.change(&mut left, "lvchange", &activate)?;
            self.volume(&name)?
        };
        Ok(Some(Opened { device: self.system.device(&volume)?, segments }))
    }

    /// See [`Store::image_segment`](crate::store::Store::image_segment).
    pub(super) fn image_segment(
        &self,
        root: &Fd,
        (key, image): (ReplicaKey, SnapId),
        number: u32,
        look: &mut dyn FnMut(&ImageSegment),
    ) -> Result<bool, Errno> {
        let shelf = self.shelf(key, image);
        if shelf.read().unwrap_or_else(PoisonError::into_inner).is_none() {
            let mut shelf = shelf.write().unwrap_or_else(PoisonError::into_inner);
            if shelf.is_none() {
                *shelf = self.open_image(root, key, image)?;
            }
        }
        let shelf = shelf.read().unwrap_or_else(PoisonError::into_inner);
        let Some(opened) = &*shelf else { return Ok(false) };
        look(&match opened.segments.contains(&number) {
            true => {
                let base = u64::from(number) * STRIDE;
                ImageSegment::Volume(Place { file: opened.device.clone(), base }, base + SEGMENT_BYTES)
            }
            false => ImageSegment::Absent,
        });
        Ok(true)
    }

    /// Removes an image with its volume; waits for those who read it.
    pub(super) fn drop_image(
        &self,
        files: &Files,
        root: &Fd,
        (key, image): (ReplicaKey, SnapId),
    ) -> Result<(), Errno> {
        let shelf = self.shelf(key, image);
        let mut shelf = shelf.write().unwrap_or_else(PoisonError::into_inner);
        *shelf = None;
        let name = volume_of(image_dir(root, key, image))?;
        let removed = self
            .remove_with(name, &entry_of_image(key, image), || images::drop_image(files, root, key, image));
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&(key, image));
        removed
    }

    /// Removes a volume and, between its tag and its end, what names it.
    fn remove_with(
        &self,
        name: Option<String>,
        entry: &str,
        remove: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut left = self.lock();
        self.tidy(&mut left)?;
        let volumes = if name.is_some() { self.volumes()? } else { Vec::new() };
        let Some(volume) = volumes.into_iter().find(|volume| Some(&volume.name) == name.as_ref()) else {
            return remove();
        };
        left.named.retain(|named| *named != volume.name);
        let path = self.path(&volume.name);
        self.change(&mut left, "lvchange", &["--addtag", &format!("{REMOVE}{entry}"), &path])?;
        if let Err(errno) = remove() {
            left.unsettled = true;
            return Err(errno);
        }
        // The tag will see to it otherwise.
        let _ = self.change(&mut left, "lvremove", &["--yes", &path]);
        Ok(())
    }

    /// Begins a replica that is to have what an image has: with all of it, on a snapshot of that one's volume.
    pub(super) fn begin_clone(
        &self,
        files: &Files,
        (root, replicas): (&Fd, &Fd),
        (from, image, to): (ReplicaKey, SnapId, ReplicaKey),
        meta_bytes: u64,
    ) -> Result<(), Errno> {
        if exists_at(replicas, &replica_name(to))? {
            return Err(Errno(libc::EEXIST));
        }
        let source = image_dir(root, from, image)?;
        let origin = read_name(&source)?;
        let list = read_all(&open_at(&source, SEGMENTS, libc::O_RDONLY)?)?;
        let segments =
            decode_segments(weft_proto::payload::Payload::bytes(&list)).ok_or(Errno(libc::EUCLEAN))?;
        // What an earlier try left.
        self.abandon_clone(files, replicas, to)?;
        let mut left = self.lock();
        self.tidy(&mut left)?;
        let name = fresh_name("r-", to);
        self.snapshot(&mut left, &origin, &name, "n")?;
        let made = || {
            let dir = files.make_dir_at(replicas, &clones::temporary(to))?;
            write_name(files, &dir, &name)?;
            clones::make_meta(files, &dir, meta_bytes)?;
            for number in &segments {
                files.create_at(&dir, &format!("seg-{number:06}"), libc::O_RDWR)?;
            }
            mark_shared(files, &dir)?;
            files.sync(&dir)
        };
        let made = made();
        if made.is_err() {
            left.unsettled = true;
        }
        made
    }

    /// It is a replica as every other one: its tag goes.
    pub(super) fn clone_published(&self, replicas: &Fd, to: ReplicaKey) -> Result<(), Errno> {
        if let Some(name) = volume_of(open_dir(replicas, &replica_name(to)))? {
            self.lock().named.push(name);
        }
        Ok(())
    }

    /// Removes a replica in the making with its volume; fine if there is nothing.
    pub(super) fn abandon_clone(&self, files: &Files, replicas: &Fd, to: ReplicaKey) -> Result<(), Errno> {
        let name = volume_of(open_dir(replicas, &clones::temporary(to)))?;
        let remove = || clones::abandon(files, replicas, to);
        match name {
            None => remove(),
            name => self.remove_with(name, &entry_of_making(to), remove),
        }
    }
}

/// Bytes that are read of a device, which takes whole blocks only.
pub(crate) fn read_device(file: &Fd, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
    Ok(File::from(unshared_clone(file)?).read_exact_at(buf, offset)?)
}

const _: () = assert!(NAME.len() == 2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_segments_has_the_bytes_it_was_released_with() {
        let segments: BTreeSet<u32> = (0..3).chain([7]).chain(1000..1024).collect();
        let bytes = encode_segments(&segments);
        let specimen = include_str!("../../specimens/segments-v1.txt");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(specimen.lines().find(|line| !line.starts_with('#')), Some(hex.as_str()));
        assert_eq!(decode_segments(&bytes), Some(segments));
        assert_eq!(decode_segments(&encode_segments(&BTreeSet::new())), Some(BTreeSet::new()));
    }

    /// It is read from a disk: refused, or what was written there.
    #[test]
    fn a_list_of_segments_that_was_changed_is_refused() {
        let bytes = encode_segments(&[1, 2, 9].into());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_segments(&bad), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(decode_segments(&bytes[..len]), None, "{len} bytes");
        }
        let sealed = |words: &[u32]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let crc = crc32c::crc32c(&bytes[8..]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            bytes
        };
        assert_eq!(decode_segments(&sealed(&[MAGIC, 0, VERSION + 1, 0])), None, "newer software");
        assert_eq!(decode_segments(&sealed(&[MAGIC, 0, VERSION, 1, u32::MAX, 2])), None, "too many");
        assert_eq!(decode_segments(&sealed(&[MAGIC, 0, VERSION, u32::MAX])), None, "too long");
    }
}
