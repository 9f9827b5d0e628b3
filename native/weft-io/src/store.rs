//! Where the bytes of a pool's replicas lie: in files of their own, or on volumes of LVM ([`crate::thin`]).
//!
//! Must always hold:
//! * what a store makes or removes is durable before it says so, and is there as a whole or not at all;
//! * a segment's sidecar has its space before the segment takes data: a seal never needs any (R20);
//! * no function here runs on a reactor's thread.

use core::fmt;
use std::collections::BTreeSet;
use std::sync::Arc;

use weft_proto::ids::SnapId;
use weft_proto::log::ReplicaKey;

use crate::clones;
use crate::driver::{Errno, Fd};
use crate::files::Files;
use crate::images::{self, ImageSegment};
use crate::pool_dir::{self, SegmentError, SegmentFiles};
use crate::reflink::Ability;

/// A stretch of a file or device.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: Fd,
    /// Where it begins there, in bytes.
    pub(crate) base: u64,
}

/// An open replica's own.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) dir: Fd,
    /// That has its segments, if they have no files, and its name.
    pub(crate) device: Option<(Fd, Arc<str>)>,
}

/// See the module.
pub(crate) trait Store: Send + Sync + fmt::Debug {
    /// Its calls run commands, which take long: not on the threads that writes wait for.
    fn is_slow(&self) -> bool;

    /// Space is taken in units of so many bytes.
    fn grain(&self) -> u64;

    /// Makes a replica, with its two checkpoint files of `meta_bytes`; a thick one of so many bytes gets its blocks, or it
    /// is an error.
    fn create(
        &self,
        files: &Files,
        replicas: &Fd,
        key: ReplicaKey,
        meta_bytes: u64,
        thick: Option<u64>,
    ) -> Result<(), Errno>;

    /// Opens a replica of `size` bytes; also the numbers of the segments that may have something. Those of which `in_doubt`
    /// says so are durable as they are.
    fn open(
        &self,
        files: &Files,
        replicas: &Fd,
        key: ReplicaKey,
        size: u64,
        in_doubt: &dyn Fn(u32) -> bool,
    ) -> Result<(Home, Vec<u32>), Errno>;

    /// Makes room for segments of up to `size` bytes.
    fn extend(&self, home: &Home, size: u64) -> Result<(), Errno>;

    /// Opens a segment, and makes it if it is missing.
    fn segment(
        &self,
        files: &Files,
        home: &Home,
        number: u32,
        direct: bool,
    ) -> Result<SegmentFiles, SegmentError>;

    /// Makes a range of a segment's data zero, not durably; with `keep_space` it keeps its space.
    fn zero(
        &self,
        files: &Files,
        place: &Place,
        offset: u64,
        len: u64,
        keep_space: bool,
    ) -> Result<(), Errno>;

    /// Deletes an entry of the trash for good.
    fn empty_trash(&self, files: &Files, trash: &Fd, name: &str) -> Result<(), Errno>;

    /// How volumes with a copy here can have snapshots, where its file system offers that.
    fn ability(&self, of_files: Ability) -> Ability;

    /// Bytes of space that the first write of a while to some 8 MiB takes beside its own, where those are shared.
    fn metadata_cost(&self) -> u64;

    /// Makes room for an image, durably: its directory, with two files of `slot_bytes` for what the caller keeps of it.
    fn make_image(
        &self,
        files: &Files,
        root: &Fd,
        of: (ReplicaKey, SnapId),
        slot_bytes: u64,
    ) -> Result<(), Errno>;

    /// Takes a snapshot of an open replica, which has these segments, for an image that was made. Nobody writes meanwhile, and
    /// sidecars are right.
    fn take_image(
        &self,
        files: &Files,
        root: &Fd,
        home: &Home,
        of: (ReplicaKey, SnapId),
        segments: &BTreeSet<u32>,
    ) -> Result<(), Errno>;

    /// Lets somebody look at a segment of the first of these images that has it; false if none has.
    fn image_segment(
        &self,
        root: &Fd,
        key: ReplicaKey,
        images: [Option<SnapId>; 2],
        number: u32,
        look: &mut dyn FnMut(&ImageSegment),
    ) -> Result<bool, Errno>;

    /// Removes an image for good; fine if there is none.
    fn drop_image(&self, files: &Files, root: &Fd, of: (ReplicaKey, SnapId)) -> Result<(), Errno>;

    /// Begins a replica that is to have what an image of another one has, in the directories `root` and `replicas`.
    fn begin_clone(
        &self,
        files: &Files,
        dirs: (&Fd, &Fd),
        of: (ReplicaKey, SnapId, ReplicaKey),
        meta_bytes: u64,
    ) -> Result<(), Errno>;

    /// It has all of it as soon as it is begun.
    fn clones_begin_whole(&self) -> bool;

    /// Makes it durable, with its first checkpoint, and then a replica as every other one.
    fn publish_clone(
        &self,
        files: &Files,
        replicas: &Fd,
        to: ReplicaKey,
        checkpoint: &[u8],
    ) -> Result<(), Errno>;

    /// Removes it; fine if there is none.
    fn abandon_clone(&self, files: &Files, replicas: &Fd, to: ReplicaKey) -> Result<(), Errno>;

    /// Bytes that a replica takes, where its files take `files`; none while that is not known.
    fn used(&self, home: &Home, files: Option<u64>) -> Option<u64>;

    /// Free and total bytes for data of replicas, where the file system has `free` of `total`.
    fn space(&self, free: u64, total: u64) -> Result<(u64, u64), Errno>;
}

/// Two files a segment.
#[derive(Debug)]
pub(crate) struct FileStore;

impl Store for FileStore {
    fn is_slow(&self) -> bool {
        false
    }

    fn grain(&self) -> u64 {
        4096
    }

    fn create(
        &self,
        files: &Files,
        replicas: &Fd,
        key: ReplicaKey,
        meta_bytes: u64,
        thick: Option<u64>,
    ) -> Result<(), Errno> {
        pool_dir::create_replica(files, replicas, key, meta_bytes, None, thick)
    }

    fn open(
        &self,
        files: &Files,
        replicas: &Fd,
        key: ReplicaKey,
        _size: u64,
        in_doubt: &dyn Fn(u32) -> bool,
    ) -> Result<(Home, Vec<u32>), Errno> {
        let (dir, segments) = pool_dir::open_replica(files, replicas, key, in_doubt)?;
        Ok((Home { dir, device: None }, segments))
    }

    fn extend(&self, _home: &Home, _size: u64) -> Result<(), Errno> {
        Ok(())
    }

    fn segment(
        &self,
        files: &Files,
        home: &Home,
        number: u32,
        direct: bool,
    ) -> Result<SegmentFiles, SegmentError> {
        pool_dir::open_segment(files, &home.dir, number, direct)
    }

    fn zero(
        &self,
        files: &Files,
        place: &Place,
        offset: u64,
        len: u64,
        keep_space: bool,
    ) -> Result<(), Errno> {
        files.zero(&place.file, place.base + offset, len, keep_space)
    }

    fn empty_trash(&self, files: &Files, trash: &Fd, name: &str) -> Result<(), Errno> {
        pool_dir::empty_trash(files, trash, name)
    }

    fn ability(&self, of_files: Ability) -> Ability {
        of_files
    }

    fn metadata_cost(&self) -> u64 {
        0
    }

    fn make_image(
        &self,
        files: &Files,
        root: &Fd,
        (key, image): (ReplicaKey, SnapId),
        slot_bytes: u64,
    ) -> Result<(), Errno> {
        images::take(files, root, key, image, slot_bytes, &|_| Ok(()))
    }

    fn take_image(
        &self,
        _files: &Files,
        _root: &Fd,
        _home: &Home,
        _of: (ReplicaKey, SnapId),
        _segments: &BTreeSet<u32>,
    ) -> Result<(), Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }

    fn image_segment(
        &self,
        root: &Fd,
        key: ReplicaKey,
        images: [Option<SnapId>; 2],
        number: u32,
        look: &mut dyn FnMut(&ImageSegment),
    ) -> Result<bool, Errno> {
        let found = images::find(root, key, images.into_iter().flatten(), number)?;
        Ok(found.map(|file| look(&ImageSegment::File(file))).is_some())
    }

    fn drop_image(&self, files: &Files, root: &Fd, (key, image): (ReplicaKey, SnapId)) -> Result<(), Errno> {
        images::drop_image(files, root, key, image)
    }

    fn begin_clone(
        &self,
        files: &Files,
        (_, replicas): (&Fd, &Fd),
        (from, _, to): (ReplicaKey, SnapId, ReplicaKey),
        meta_bytes: u64,
    ) -> Result<(), Errno> {
        clones::begin(files, replicas, (from, to), meta_bytes)
    }

    fn clones_begin_whole(&self) -> bool {
        false
    }

    fn publish_clone(
        &self,
        files: &Files,
        replicas: &Fd,
        to: ReplicaKey,
        checkpoint: &[u8],
    ) -> Result<(), Errno> {
        clones::publish(files, replicas, to, checkpoint)
    }

    fn abandon_clone(&self, files: &Files, replicas: &Fd, to: ReplicaKey) -> Result<(), Errno> {
        clones::abandon(files, replicas, to)
    }

    fn used(&self, _home: &Home, files: Option<u64>) -> Option<u64> {
        files
    }

    fn space(&self, free: u64, total: u64) -> Result<(u64, u64), Errno> {
        Ok((free, total))
    }
}
