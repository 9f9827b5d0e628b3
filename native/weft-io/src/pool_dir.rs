//! A pool's directory, by blocking calls: making, opening and locking it, and what lies in it.
//!
//! ```text
//! lock  superblock  wal  trash/<volume>.<rid>.<seconds>/
//! replicas/<volume>.<rid>/{meta.a, meta.b, thick?, shared?, seg-000000…, crc-000000…}
//! images/…                                              see `images`
//! ```
//!
//! Must always hold:
//! * a file or directory that somebody relies on is durable together with its name;
//! * a replica's directory appears complete or not at all (it is made under a name ending in `.tmp`);
//! * no function here runs on a reactor's thread, except through [`crate::blocking`].

use core::fmt;
use core::ops::Range;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_proto::ids::{Rid, VolumeId};
use weft_proto::log::ReplicaKey;
use weft_proto::payload::Payload;

use crate::buffer::IoBuf;
use crate::driver::{Errno, Fd, checked};
use crate::files::{Files, exists_at, names, open_at, open_path, unshared_clone};
use crate::reflink::{Ability, NoSnapshots, is_unsupported};
use crate::sidecar::{Entry, SEGMENT_BLOCKS, SEGMENT_BYTES, SIDECAR_BYTES, Sidecar};
use crate::store::{FileStore, Place, Store};
use crate::thin::{self, ThinStore};

/// Longest content of a superblock, in bytes.
pub const SUPERBLOCK_MAX: usize = 4096 - SUPERBLOCK_HEAD - 4;

const SUPERBLOCK_MAGIC: &[u8; 8] = b"weftpool";
const SUPERBLOCK_VERSION: u32 = 1;
/// In a replica's directory: its blocks are reserved.
const THICK: &str = "thick";
/// In a replica's directory: its blocks are shared with another one's, or were.
const SHARED: &str = "shared";
/// magic 8, version 4, length 4, sequence 8.
const SUPERBLOCK_HEAD: usize = 24;

/// Why a pool can't be made or opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Another process serves the pool, or an earlier one has I/O in flight (protocol.md R13): wait.
    Locked,
    /// The directory for a new pool holds something else; one name of it.
    NotEmpty(String),
    /// No pool was ever finished here.
    NotAPool,
    /// Neither copy of the superblock is sound.
    BadSuperblock,
    /// The superblock is of a newer format than this program knows.
    NewerFormat(u32),
    /// The file system lacks what a pool needs.
    Unsupported(&'static str),
    /// The pool lies on LVM, which refused or lacks something; what.
    Lvm(String),
    /// The system refused.
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        errno: Errno,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Locked => {
                f.write_str("the pool is served by another process, or its I/O has not ended yet")
            }
            OpenError::NotEmpty(name) => write!(f, "the directory is not empty: it holds {name:?}"),
            OpenError::NotAPool => f.write_str("the directory holds no pool"),
            OpenError::BadSuperblock => f.write_str("both copies of the superblock are damaged"),
            OpenError::NewerFormat(v) => {
                write!(f, "the pool has format {v}, this program knows up to {SUPERBLOCK_VERSION}")
            }
            OpenError::Unsupported(what) => write!(f, "the file system has no {what}"),
            OpenError::Lvm(why) => f.write_str(why),
            OpenError::Io { what, errno } => write!(f, "{what}: {errno}"),
        }
    }
}

impl core::error::Error for OpenError {}

/// What the file system under a pool can do, tried at every start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Reads and writes pass the page cache by (O_DIRECT). Without it disk I/O with libaio blocks.
    pub direct: bool,
    /// Which file system.
    pub file_system: FileSystem,
    /// Whether volumes with a copy here can have snapshots.
    pub ability: Ability,
}

/// File systems by their magic number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext2, 3 or 4; tested.
    Ext4,
    /// XFS; tested.
    Xfs,
    /// btrfs; tested.
    Btrfs,
    /// Memory; for tests: nothing survives.
    Tmpfs,
    /// Not known here.
    Other(i64),
}

impl FileSystem {
    fn of_magic(magic: i64) -> FileSystem {
        match magic {
            0xef53 => FileSystem::Ext4,
            0x5846_5342 => FileSystem::Xfs,
            0x9123_683e => FileSystem::Btrfs,
            0x0102_1994 => FileSystem::Tmpfs,
            other => FileSystem::Other(other),
        }
    }
}

impl FileSystem {
    /// A block that has its place is written there, whatever it held.
    pub(crate) fn keeps_blocks(self) -> bool {
        matches!(self, FileSystem::Ext4 | FileSystem::Xfs | FileSystem::Tmpfs)
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileSystem::Ext4 => f.write_str("ext4"),
            FileSystem::Xfs => f.write_str("XFS"),
            FileSystem::Btrfs => f.write_str("btrfs"),
            FileSystem::Tmpfs => f.write_str("tmpfs"),
            FileSystem::Other(magic) => write!(f, "a file system of type {magic:#x}"),
        }
    }
}

/// A locked pool directory, ready to be served.
#[derive(Debug)]
pub struct PoolDir {
    pub(crate) files: Files,
    pub(crate) path: PathBuf,
    pub(crate) root: Fd,
    pub(crate) replicas: Fd,
    pub(crate) trash: Fd,
    pub(crate) wal: Fd,
    pub(crate) lock: Fd,
    pub(crate) store: Arc<dyn Store>,
    superblock: Vec<u8>,
    wal_bytes: u64,
    probe: Probe,
    /// Free and total bytes when it was opened.
    pub(crate) space: (u64, u64),
}

impl PoolDir {
    /// Makes a pool in a new or empty directory (`lost+found` and what an interrupted attempt left don't count)
    /// with a log of `wal_bytes` (a multiple of 4096), written once over its length (protocol.md R20), and
    /// `superblock` (at most [`SUPERBLOCK_MAX`] bytes) as content of the superblock. Blocks.
    pub fn create(path: &Path, wal_bytes: u64, superblock: &[u8]) -> Result<PoolDir, OpenError> {
        PoolDir::create_through(&Files::default(), path, wal_bytes, superblock)
    }

    /// [`PoolDir::create`] through a door with a journal.
    pub fn create_through(
        files: &Files,
        path: &Path,
        wal_bytes: u64,
        superblock: &[u8],
    ) -> Result<PoolDir, OpenError> {
        assert!(wal_bytes > 0 && wal_bytes.is_multiple_of(4096), "a log of {wal_bytes} bytes");
        files.make_dirs(path).map_err(said("create", path))?;
        refuse_foreign(path)?;
        let lock = lock_file(files, path, libc::LOCK_NB)?;
        let root = open_dir(path)?;
        for name in ["trash", "replicas"] {
            match files.make_dir_at(&root, name) {
                Ok(_) | Err(Errno(libc::EEXIST)) => {}
                Err(errno) => return Err(said_at("create", path, name)(errno)),
            }
        }
        let wal = files.create_at(&root, "wal", libc::O_RDWR).map_err(said_at("create", path, "wal"))?;
        files.write_zeroes(&wal, wal_bytes).map_err(said_at("write", path, "wal"))?;
        let probe = probe(files, &root)?;
        let copies = files
            .create_at(&root, "superblock.tmp", libc::O_RDWR)
            .and_then(|file| write_superblock(files, &file, superblock, 1, 1));
        copies.map_err(said_at("write", path, "superblock.tmp"))?;
        // A pool is one that has a superblock: by then the rest has its names.
        files.sync(&root).map_err(said("sync", path))?;
        files.rename_at(&root, "superblock.tmp", &root, "superblock").map_err(said_at(
            "rename",
            path,
            "superblock",
        ))?;
        files.sync(&root).map_err(said("sync", path))?;
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            files.sync(&open_dir(parent)?).map_err(said("sync", parent))?;
        }
        PoolDir::finish_open(files, path, lock, root, probe)
    }

    /// Locks and opens a pool. Blocks, but not for the lock: [`OpenError::Locked`] says to come again.
    pub fn open(path: &Path) -> Result<PoolDir, OpenError> {
        PoolDir::open_through(&Files::default(), path)
    }

    /// [`PoolDir::open`] through a door with a journal.
    pub fn open_through(files: &Files, path: &Path) -> Result<PoolDir, OpenError> {
        require_superblock(path)?;
        let lock = lock_file(files, path, libc::LOCK_NB)?;
        PoolDir::open_locked(files, path, lock)
    }

    /// Locks and opens a pool, however long its lock is held (protocol.md R13); `waits` is called once if it is. Blocks.
    pub fn open_when_free(path: &Path, waits: impl FnOnce()) -> Result<PoolDir, OpenError> {
        let files = &Files::default();
        require_superblock(path)?;
        let lock = match lock_file(files, path, libc::LOCK_NB) {
            Err(OpenError::Locked) => {
                waits();
                lock_file(files, path, 0)?
            }
            other => other?,
        };
        // While it was waited for, another pool may have been put there.
        require_superblock(path)?;
        PoolDir::open_locked(files, path, lock)
    }

    fn open_locked(files: &Files, path: &Path, lock: Fd) -> Result<PoolDir, OpenError> {
        let root = open_dir(path)?;
        let probe = probe(files, &root)?;
        PoolDir::finish_open(files, path, lock, root, probe)
    }

    fn finish_open(
        files: &Files,
        path: &Path,
        lock: Fd,
        root: Fd,
        probe: Probe,
    ) -> Result<PoolDir, OpenError> {
        // A process that was killed may have left in the kernel what no power cut would spare. Nothing that is found
        // here is acted upon before it is durable: names first, then what the files hold.
        files.sync(&root).map_err(said("sync", path))?;
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            files.sync(&open_dir(parent)?).map_err(said("sync", parent))?;
        }
        let superblock = open_at(&root, "superblock", libc::O_RDWR)
            .and_then(|file| files.sync(&file).map(|()| file))
            .map_err(said_at("open", path, "superblock"))
            .and_then(|file| read_superblock(&file))?
            .content;
        let direct = if probe.direct { libc::O_DIRECT } else { 0 };
        let wal = open_at(&root, "wal", libc::O_RDWR | direct)
            .and_then(|wal| files.sync(&wal).map(|()| wal))
            .map_err(said_at("open", path, "wal"))?;
        let wal_bytes = size_of(&wal).map_err(said_at("stat", path, "wal"))? / 4096 * 4096;
        let below = |name| {
            open_at(&root, name, libc::O_RDONLY | libc::O_DIRECTORY)
                .and_then(|dir| files.sync(&dir).map(|()| dir))
                .map_err(said_at("open", path, name))
        };
        let (replicas, trash) = (below("replicas")?, below("trash")?);
        let space = space(path, &lock).map_err(said("look at the space of", path))?;
        let (files, path) = (files.clone(), path.to_owned());
        let store = Arc::new(FileStore);
        let mut dir = PoolDir {
            files,
            path,
            root,
            replicas,
            trash,
            wal,
            lock,
            store,
            superblock,
            wal_bytes,
            probe,
            space,
        };
        let path = &dir.path;
        // Replicas whose making was interrupted.
        for name in names(&dir.replicas).map_err(said("list", &path.join("replicas")))? {
            if name.ends_with(".tmp") {
                dir.files.remove_tree(&dir.replicas, &name).map_err(said_at("remove", path, &name))?;
            }
        }
        if let Some(vg) = thin::vg_of(&dir.root).map_err(said_at("read", path, thin::MARK))? {
            let store = thin::Lvm::under(&dir.root, &vg)
                .and_then(|lvm| {
                    ThinStore::start(Box::new(lvm), &vg, &dir.files, &dir.root, &dir.replicas, &dir.trash)
                })
                .map_err(|thin::Unfit(why)| OpenError::Lvm(why))?;
            dir.space = store
                .space(dir.space.0, dir.space.1)
                .map_err(|errno| OpenError::Lvm(format!("{vg}/{}: {errno}", thin::DATA)))?;
            dir.store = Arc::new(store);
            dir.probe.ability = dir.store.ability(dir.probe.ability);
        }
        Ok(dir)
    }

    /// What stood in the superblock when the pool was opened.
    #[must_use]
    pub fn superblock(&self) -> &[u8] {
        &self.superblock
    }

    /// Length of the log in bytes.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        self.wal_bytes
    }

    /// What the file system can do.
    #[must_use]
    pub fn probe(&self) -> Probe {
        self.probe
    }

    /// As on a file system that has no O_DIRECT.
    #[cfg(test)]
    pub(crate) fn without_direct(mut self) -> PoolDir {
        self.probe.direct = false;
        self
    }

    /// With another store.
    #[cfg(test)]
    pub(crate) fn stored(mut self, make: impl FnOnce(&PoolDir) -> Arc<dyn Store>) -> PoolDir {
        self.store = make(&self);
        self.space = self.store.space(self.space.0, self.space.1).expect("looked");
        self.probe.ability = self.store.ability(self.probe.ability);
        self
    }

    /// Where the pool is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The replicas here. Blocks.
    pub fn list(&self) -> io::Result<Vec<ReplicaKey>> {
        list_replicas(&self.replicas).map_err(io::Error::from)
    }

    /// The whole log. Blocks.
    pub fn read_wal(&self) -> io::Result<IoBuf> {
        read_all(&self.wal).map_err(io::Error::from)
    }

    /// [`PoolDir::read_wal`] for another thread.
    pub(crate) fn read_wal_call(&self) -> impl FnOnce() -> Result<IoBuf, Errno> + Send + use<> {
        let wal = self.wal.clone();
        move || read_all(&wal)
    }

    /// A replica's two checkpoint files, whole. Blocks.
    pub fn read_checkpoints(&self, replica: ReplicaKey) -> io::Result<[IoBuf; 2]> {
        let dir = open_at(&self.replicas, &replica_name(replica), libc::O_RDONLY | libc::O_DIRECTORY)?;
        let read = |name| open_at(&dir, name, libc::O_RDONLY).and_then(|file| read_all(&file));
        Ok([read("meta.a")?, read("meta.b")?])
    }

    /// Replaces the superblock's content, both copies one after the other, durably. Blocks.
    pub fn write_superblock(&mut self, content: &[u8]) -> io::Result<()> {
        replace_superblock(&self.files, &self.root, content)?;
        content.clone_into(&mut self.superblock);
        Ok(())
    }
}

/// The directory's name of a replica.
pub(crate) fn replica_name(key: ReplicaKey) -> String {
    format!("{}.{}", key.volume, key.rid.0)
}

pub(crate) fn parse_replica_name(name: &str) -> Option<ReplicaKey> {
    let (volume, rid) = name.split_once('.')?;
    let key = ReplicaKey { volume: volume.parse::<VolumeId>().ok()?, rid: Rid(rid.parse().ok()?) };
    (replica_name(key) == name).then_some(key)
}

pub(crate) fn list_replicas(replicas: &Fd) -> Result<Vec<ReplicaKey>, Errno> {
    let mut keys: Vec<_> = names(replicas)?.iter().filter_map(|name| parse_replica_name(name)).collect();
    keys.sort_unstable();
    Ok(keys)
}

/// A replica in the trash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrashEntry {
    /// Its directory's name below `trash/`.
    pub name: String,
    /// Which replica it was.
    pub replica: ReplicaKey,
    /// When it was put there, in seconds since 1970.
    pub since_s: u64,
}

pub(crate) fn list_trash(trash: &Fd) -> Result<Vec<TrashEntry>, Errno> {
    let parse = |name: String| {
        let (replica, since) = name.rsplit_once('.')?;
        let (replica, since_s) = (parse_replica_name(replica)?, since.parse().ok()?);
        Some(TrashEntry { name, replica, since_s })
    };
    let mut entries: Vec<_> = names(trash)?.into_iter().filter_map(parse).collect();
    entries.sort_by(|a, b| (a.since_s, &a.name).cmp(&(b.since_s, &b.name)));
    Ok(entries)
}

/// Makes a replica's directory with its two checkpoint files of `meta_bytes`, written over their length (R20), and the name
/// of the logical volume that has its segments, if one has.
pub(crate) fn create_replica(
    files: &Files,
    replicas: &Fd,
    key: ReplicaKey,
    meta_bytes: u64,
    volume: Option<&str>,
    thick: Option<u64>,
) -> Result<(), Errno> {
    let name = replica_name(key);
    if exists_at(replicas, &name)? {
        return Err(Errno(libc::EEXIST));
    }
    let temporary = format!("{name}.tmp");
    files.remove_tree(replicas, &temporary)?;
    let made = make_replica(files, replicas, &temporary, meta_bytes, volume, thick)
        .and_then(|()| files.rename_at(replicas, &temporary, replicas, &name))
        .and_then(|()| files.sync(replicas));
    if made.is_err() {
        // Out of space, most likely: give back what it took. The first error is the one to tell.
        let _ = files.remove_tree(replicas, &temporary);
    }
    made
}

fn make_replica(
    files: &Files,
    replicas: &Fd,
    name: &str,
    meta_bytes: u64,
    volume: Option<&str>,
    thick: Option<u64>,
) -> Result<(), Errno> {
    let dir = files.make_dir_at(replicas, name)?;
    if let Some(volume) = volume {
        thin::write_name(files, &dir, volume)?;
    }
    for file in ["meta.a", "meta.b"] {
        files.write_zeroes(&files.create_at(&dir, file, libc::O_RDWR)?, meta_bytes)?;
    }
    if let Some(size) = thick {
        files.sync(&files.create_at(&dir, THICK, libc::O_RDWR)?)?;
        reserve(files, &dir, 0..size)?;
    }
    files.sync(&dir)
}

/// Gives a thick replica the blocks of a range of its bytes, and of the sidecars there: of each segment its number.
/// What was not there before is taken away again where they can't be had.
pub(crate) fn reserve(files: &Files, dir: &Fd, range: Range<u64>) -> Result<Vec<u32>, Errno> {
    let segment = |at: u64| u32::try_from(at / SEGMENT_BYTES).map_err(|_| Errno(libc::EFBIG));
    let numbers = segment(range.start)?..segment(range.end.next_multiple_of(SEGMENT_BYTES))?;
    let mut made = Vec::new();
    let outcome = reserve_in(files, dir, numbers.clone(), &range, &mut made);
    if outcome.is_err() {
        // The first error is the one to tell.
        for number in made {
            for name in [format!("seg-{number:06}"), format!("crc-{number:06}")] {
                let _ = files.remove_file_at(dir, &name);
            }
        }
    }
    outcome.map(|()| numbers.collect())
}

fn reserve_in(
    files: &Files,
    dir: &Fd,
    numbers: Range<u32>,
    range: &Range<u64>,
    made: &mut Vec<u32>,
) -> Result<(), Errno> {
    let names = |number: u32| (format!("seg-{number:06}"), format!("crc-{number:06}"));
    for number in numbers.clone() {
        let (data, side) = names(number);
        if exists_at(dir, &data)? || exists_at(dir, &side)? {
            // Half made or damaged: whoever opens it says so.
            continue;
        }
        made.push(number);
        let side = files.create_at(dir, &side, libc::O_RDWR)?;
        files.truncate(&side, SIDECAR_BYTES as u64)?;
        files.allocate(&side, SIDECAR_BYTES as u64)?;
        files.truncate(&files.create_at(dir, &data, libc::O_RDWR)?, SEGMENT_BYTES)?;
    }
    // A segment is never found with blocks and without its sidecar.
    settle(files, dir, made)?;
    for number in numbers {
        let start = u64::from(number) * SEGMENT_BYTES;
        let (from, to) = (range.start.max(start), range.end.min(start + SEGMENT_BYTES));
        let data = open_at(dir, &names(number).0, libc::O_RDWR)?;
        files.reserve(&data, from - start, to - from)?;
    }
    settle(files, dir, made)
}

/// Makes segments and their names durable, all at once.
pub(crate) fn settle(files: &Files, dir: &Fd, made: &[u32]) -> Result<(), Errno> {
    if !files.is_recorded() {
        // SAFETY: no memory is passed.
        return checked(unsafe { libc::syncfs(dir.as_raw_fd()) }).map(|_| ());
    }
    for number in made {
        for name in [format!("seg-{number:06}"), format!("crc-{number:06}")] {
            files.sync(&open_at(dir, &name, libc::O_RDWR)?)?;
        }
    }
    files.sync(dir)
}

/// Opens a replica's directory: itself, and the numbers of its segments. Those of which `in_doubt` says so may hold
/// what an earlier process wrote and nothing has flushed since: they are made durable before anybody reads them, or
/// is told that they were flushed.
pub(crate) fn open_replica(
    files: &Files,
    replicas: &Fd,
    key: ReplicaKey,
    in_doubt: impl Fn(u32) -> bool,
) -> Result<(Fd, Vec<u32>), Errno> {
    let dir = open_at(replicas, &replica_name(key), libc::O_RDONLY | libc::O_DIRECTORY)?;
    files.sync(&dir)?;
    let number =
        |name: &String| name.strip_prefix("seg-").or_else(|| name.strip_prefix("crc-"))?.parse().ok();
    let mut segments: Vec<u32> = names(&dir)?.iter().filter_map(number).collect();
    segments.sort_unstable();
    segments.dedup();
    for number in segments.iter().filter(|number| in_doubt(**number)) {
        for name in [format!("seg-{number:06}"), format!("crc-{number:06}")] {
            match open_at(&dir, &name, libc::O_RDONLY) {
                // Half made; `open_segment` says what that means.
                Err(Errno(libc::ENOENT)) => {}
                file => files.sync(&file?)?,
            }
        }
    }
    Ok((dir, segments))
}

/// Are the blocks of the replica with this directory reserved?
pub(crate) fn is_thick(dir: &Fd) -> Result<bool, Errno> {
    exists_at(dir, THICK)
}

/// Are blocks of the replica with this directory shared with another one's, or were they ever?
pub(crate) fn is_shared(dir: &Fd) -> Result<bool, Errno> {
    exists_at(dir, SHARED)
}

/// Says so, not durably; false if it did already.
pub(crate) fn mark_shared(files: &Files, dir: &Fd) -> Result<bool, Errno> {
    if is_shared(dir)? {
        return Ok(false);
    }
    files.create_at(dir, SHARED, libc::O_RDWR).map(|_| true)
}

/// Writes a checkpoint over the start of `meta.a` or `meta.b`, durably; raises the file's size if needed.
pub(crate) fn write_checkpoint(
    files: &Files,
    replicas: &Fd,
    key: ReplicaKey,
    name: &str,
    bytes: &[u8],
) -> Result<(), Errno> {
    let dir = open_at(replicas, &replica_name(key), libc::O_RDONLY | libc::O_DIRECTORY)?;
    let file = open_at(&dir, name, libc::O_RDWR)?;
    files.write_all_at(&file, bytes, 0)?;
    files.sync(&file)
}

/// Reads a checkpoint, which is durable by then: the log forgets what it holds.
pub(crate) fn read_checkpoint(
    files: &Files,
    replicas: &Fd,
    key: ReplicaKey,
    name: &str,
) -> Result<IoBuf, Errno> {
    let dir = open_at(replicas, &replica_name(key), libc::O_RDONLY | libc::O_DIRECTORY)?;
    let file = open_at(&dir, name, libc::O_RDONLY)?;
    files.sync(&file)?;
    read_all(&file)
}

/// Moves a replica to the trash.
pub(crate) fn trash_replica(
    files: &Files,
    replicas: &Fd,
    trash: &Fd,
    key: ReplicaKey,
    now_s: u64,
) -> Result<(), Errno> {
    let name = replica_name(key);
    files.rename_at(replicas, &name, trash, &format!("{name}.{now_s}"))?;
    // The new name first: between the two the replica is in both places rather than in none.
    files.sync(trash)?;
    files.sync(replicas)
}

/// Moves a replica back from the trash.
pub(crate) fn restore_replica(files: &Files, replicas: &Fd, trash: &Fd, name: &str) -> Result<(), Errno> {
    let entry = list_trash(trash)?.into_iter().find(|e| e.name == name).ok_or(Errno(libc::ENOENT))?;
    let home = replica_name(entry.replica);
    if exists_at(replicas, &home)? {
        return Err(Errno(libc::EEXIST));
    }
    files.rename_at(trash, name, replicas, &home)?;
    files.sync(replicas)?;
    files.sync(trash)
}

/// Deletes an entry of the trash for good.
pub(crate) fn empty_trash(files: &Files, trash: &Fd, name: &str) -> Result<(), Errno> {
    if !list_trash(trash)?.iter().any(|e| e.name == name) {
        return Err(Errno(libc::ENOENT));
    }
    files.remove_tree(trash, name)?;
    files.sync(trash)
}

/// A segment's files and its sidecar, or what is wrong with them.
pub(crate) struct SegmentFiles {
    pub(crate) data: Place,
    pub(crate) side: Place,
    pub(crate) sidecar: Sidecar,
}

/// Why a segment can't be opened.
#[derive(Debug)]
pub(crate) enum SegmentError {
    Errno(Errno),
    /// One of the two files is gone or short although there is data.
    Damaged,
}

impl From<Errno> for SegmentError {
    fn from(errno: Errno) -> Self {
        SegmentError::Errno(errno)
    }
}

/// Opens a segment; makes what is missing of its files, durably: both are sparse and of full length before the
/// first write, and the sidecar's space is allocated, so that a full file system can still be sealed.
pub(crate) fn open_segment(
    files: &Files,
    dir: &Fd,
    number: u32,
    direct: bool,
) -> Result<SegmentFiles, SegmentError> {
    let flags = libc::O_RDWR | if direct { libc::O_DIRECT } else { 0 };
    let (data_name, side_name) = (format!("seg-{number:06}"), format!("crc-{number:06}"));
    let (data_there, side_there) = (exists_at(dir, &data_name)?, exists_at(dir, &side_name)?);
    let data = files.create_at(dir, &data_name, flags)?;
    let side = files.create_at(dir, &side_name, flags)?;
    let data_complete = size_of(&data)? == SEGMENT_BYTES;
    let side_complete = size_of(&side)? == SIDECAR_BYTES as u64;
    if !(data_complete && side_complete && data_there && side_there) {
        // An interrupted creation leaves files without content. Content in one without the other means that
        // somebody took a file away or cut it.
        let sidecar_says_data = side_complete && has_data(&read_sidecar(&side, 0)?);
        let allocated = !data_complete && size_of(&data)? > 0 || data_complete && has_blocks(&data)?;
        if (!side_complete && allocated) || (!data_complete && sidecar_says_data) {
            return Err(SegmentError::Damaged);
        }
        files.truncate(&data, SEGMENT_BYTES)?;
        files.truncate(&side, SIDECAR_BYTES as u64)?;
        files.allocate(&side, SIDECAR_BYTES as u64)?;
        files.sync(&data)?;
        files.sync(&side)?;
        files.sync(dir)?;
    }
    let sidecar = read_sidecar(&side, 0)?;
    let [data, side] = [data, side].map(|file| Place { file, base: 0 });
    Ok(SegmentFiles { data, side, sidecar })
}

fn has_data(sidecar: &Sidecar) -> bool {
    (0..SEGMENT_BLOCKS).any(|block| !matches!(sidecar.get(block), Entry::Absent | Entry::Zero))
}

/// A sidecar that begins at byte `base`.
pub(crate) fn read_sidecar(side: &Fd, base: u64) -> Result<Sidecar, Errno> {
    let file = File::from(unshared_clone(side)?);
    let mut pages = Vec::new();
    for offset in (0..SIDECAR_BYTES).step_by(4096) {
        let mut page = IoBuf::scratch(4096);
        file.read_exact_at(page.bytes_mut(), base + offset as u64)?;
        pages.push(page);
    }
    Ok(Sidecar::from_pages(pages))
}

/// Free and total bytes of the file system. An error if the pool's directory is not where it was.
pub(crate) fn space(path: &Path, lock: &Fd) -> Result<(u64, u64), Errno> {
    let (here, held) = (std::fs::metadata(path.join("lock"))?, File::from(unshared_clone(lock)?).metadata()?);
    if (here.dev(), here.ino()) != (held.dev(), held.ino()) {
        return Err(Errno(libc::ESTALE));
    }
    // SAFETY: all-zero is a valid statvfs; the call overwrites it.
    let mut stat: libc::statvfs = unsafe { core::mem::zeroed() };
    // SAFETY: `stat` is writable.
    checked(unsafe { libc::fstatvfs(lock.as_raw_fd(), &raw mut stat) })?;
    let unit = stat.f_frsize;
    Ok((unit.saturating_mul(stat.f_bavail), unit.saturating_mul(stat.f_blocks)))
}

pub(crate) fn replace_superblock(files: &Files, root: &Fd, content: &[u8]) -> Result<(), Errno> {
    let file = open_at(root, "superblock", libc::O_RDWR)?;
    match read_superblock(&file) {
        Ok(newest) => write_superblock(files, &file, content, newest.sequence + 1, newest.copy),
        Err(_) => write_superblock(files, &file, content, 1, 1),
    }
}

/// Both copies, first the one that is not the newest, then that: a crash may have left only the newest whole, and it
/// stays so until the other is durable.
fn write_superblock(
    files: &Files,
    file: &Fd,
    content: &[u8],
    sequence: u64,
    newest: u64,
) -> Result<(), Errno> {
    assert!(content.len() <= SUPERBLOCK_MAX, "a superblock of {} bytes", content.len());
    let mut block = vec![0u8; 4096];
    block[..8].copy_from_slice(SUPERBLOCK_MAGIC);
    block[8..12].copy_from_slice(&SUPERBLOCK_VERSION.to_le_bytes());
    block[12..16].copy_from_slice(&u32::try_from(content.len()).expect("below 4096").to_le_bytes());
    block[16..24].copy_from_slice(&sequence.to_le_bytes());
    block[SUPERBLOCK_HEAD..SUPERBLOCK_HEAD + content.len()].copy_from_slice(content);
    let crc = crc32c::crc32c(&block[..4092]);
    block[4092..].copy_from_slice(&crc.to_le_bytes());
    for copy in [1 - newest, newest] {
        files.write_all_at(file, &block, copy * 4096)?;
        files.sync(file)?;
    }
    Ok(())
}

/// A sound copy of the superblock.
struct Newest {
    /// Which of the two, 0 or 1.
    copy: u64,
    sequence: u64,
    content: Vec<u8>,
}

/// The newer sound copy.
fn read_superblock(file: &Fd) -> Result<Newest, OpenError> {
    let failed = |e: io::Error| said("read", Path::new("superblock"))(e);
    let file = File::from(unshared_clone(file).map_err(|e| failed(e.into()))?);
    let mut newest: Option<Newest> = None;
    for copy in [0, 1] {
        let mut block = vec![0u8; 4096];
        match file.read_exact_at(&mut block, copy * 4096) {
            // A latent error in one copy is what the other is for.
            Err(e) if e.raw_os_error() == Some(libc::EIO) || e.kind() == io::ErrorKind::UnexpectedEof => {
                continue;
            }
            other => other.map_err(failed)?,
        }
        let word = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"));
        if &block[..8] != SUPERBLOCK_MAGIC || word(4092) != crc32c::crc32c(&block[..4092]) {
            continue;
        }
        if word(8) > SUPERBLOCK_VERSION {
            return Err(OpenError::NewerFormat(word(8)));
        }
        let sequence = u64::from_le_bytes(block[16..24].try_into().expect("eight bytes"));
        let end = SUPERBLOCK_HEAD + word(12) as usize;
        let Some(content) = block.get(SUPERBLOCK_HEAD..end.min(4092)) else { continue };
        if newest.as_ref().is_none_or(|known| known.sequence < sequence) {
            newest = Some(Newest { copy, sequence, content: content.to_vec() });
        }
    }
    newest.ok_or(OpenError::BadSuperblock)
}

fn refuse_foreign(path: &Path) -> Result<(), OpenError> {
    let dir = open_dir(path)?;
    for name in names(&dir).map_err(said("list", path))? {
        let unfinished = match name.as_str() {
            "lost+found" | "lock" | "wal" | "superblock.tmp" | "probe.tmp" | thin::MARK => true,
            "trash" | "replicas" => std::fs::read_dir(path.join(&name)).is_ok_and(|mut d| d.next().is_none()),
            _ => false,
        };
        if !unfinished {
            return Err(OpenError::NotEmpty(name));
        }
    }
    Ok(())
}

fn require_superblock(path: &Path) -> Result<(), OpenError> {
    match std::fs::symlink_metadata(path.join("superblock")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.is_dir() => Err(OpenError::NotAPool),
        Err(e) => Err(said("open", &path.join("superblock"))(e)),
        Ok(_) => Ok(()),
    }
}

/// Locks a pool; without `LOCK_NB` in `how` it waits.
fn lock_file(files: &Files, path: &Path, how: i32) -> Result<Fd, OpenError> {
    loop {
        let dir = open_dir(path)?;
        let lock = files.create_at(&dir, "lock", libc::O_RDWR).map_err(said_at("open", path, "lock"))?;
        // SAFETY: no memory is passed.
        match checked(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | how) }) {
            // The lock of a file that is not there any more is nobody's.
            Ok(_) if matches!(space(path, &lock), Err(Errno(libc::ESTALE | libc::ENOENT))) => {}
            Ok(_) => return Ok(lock),
            Err(Errno(libc::EINTR)) => {}
            Err(Errno(libc::EWOULDBLOCK)) => return Err(OpenError::Locked),
            Err(errno) => return Err(said_at("lock", path, "lock")(errno)),
        }
    }
}

/// Tries what the file system can do, on a file of its own.
fn probe(files: &Files, root: &Fd) -> Result<Probe, OpenError> {
    let failed = |e: Errno| OpenError::Io { what: "try the file system".to_owned(), errno: e };
    // SAFETY: all-zero is a valid statfs; the call overwrites it.
    let mut stat: libc::statfs = unsafe { core::mem::zeroed() };
    // SAFETY: `stat` is writable.
    checked(unsafe { libc::fstatfs(root.as_raw_fd(), &raw mut stat) }).map_err(failed)?;
    let write = |flags: i32| -> Result<(), Errno> {
        let file = files.create_at(root, "probe.tmp", libc::O_RDWR | flags)?;
        let block = IoBuf::zeroed(4096);
        let iovec = libc::iovec { iov_base: block.as_ptr().cast_mut().cast(), iov_len: 4096 };
        // SAFETY: the gather list names 4096 readable bytes.
        let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const iovec, 1, 0, libc::RWF_DSYNC) };
        if written < 0 { Err(io::Error::last_os_error().into()) } else { Ok(()) }
    };
    let direct = match write(libc::O_DIRECT) {
        Ok(()) => true,
        Err(errno) if errno.is_no_space() => return Err(failed(errno)),
        Err(_) => match write(0) {
            Ok(()) => false,
            Err(Errno(libc::EOPNOTSUPP | libc::EINVAL)) => return Err(OpenError::Unsupported("RWF_DSYNC")),
            Err(errno) => return Err(failed(errno)),
        },
    };
    let file_system = FileSystem::of_magic(stat.f_type);
    let ability = ability(files, root, file_system).map_err(failed)?;
    files.remove_file_at(root, "probe.tmp").map_err(failed)?;
    Ok(Probe { direct, file_system, ability })
}

/// Tries to share the block that the probe has written.
fn ability(files: &Files, root: &Fd, file_system: FileSystem) -> Result<Ability, Errno> {
    if files.is_recorded() {
        return Ok(Ability::Reflink); // the door copies
    }
    if file_system != FileSystem::Xfs {
        return Ok(Ability::None(NoSnapshots::FileSystem(file_system)));
    }
    let file = open_at(root, "probe.tmp", libc::O_RDWR)?;
    match files.clone_range(&file, 0, 4096, &file, 4096) {
        Ok(()) => Ok(Ability::Reflink),
        Err(errno) if is_unsupported(errno) => Ok(Ability::None(NoSnapshots::XfsWithout)),
        // A full one is asked at its next start; to say that it can't would be wrong.
        Err(errno) if errno.is_no_space() => Ok(Ability::Reflink),
        Err(errno) => Err(errno),
    }
}

fn said<E: Into<Errno>>(verb: &'static str, path: &Path) -> impl Fn(E) -> OpenError + use<E> {
    let what = format!("{verb} {}", path.display());
    move |e| OpenError::Io { what: what.clone(), errno: e.into() }
}

fn said_at<E: Into<Errno>>(verb: &'static str, path: &Path, name: &str) -> impl Fn(E) -> OpenError + use<E> {
    said(verb, &path.join(name))
}

fn open_dir(path: &Path) -> Result<Fd, OpenError> {
    open_path(path).map_err(said("open", path))
}

pub(crate) fn read_all(file: &Fd) -> Result<IoBuf, Errno> {
    let len = size_of(file)?.next_multiple_of(4096);
    let mut buf = IoBuf::zeroed(usize::try_from(len).map_err(|_| Errno(libc::EFBIG))?);
    let file = File::from(unshared_clone(file)?);
    let mut at = 0;
    while at < buf.len() {
        let end = buf.len().min(at + (1 << 20));
        match file.read_at(&mut buf.bytes_mut()[at..end], at as u64)? {
            0 => break,
            n => at += n,
        }
    }
    Ok(buf)
}

pub(crate) fn size_of(file: &Fd) -> Result<u64, Errno> {
    Ok(File::from(unshared_clone(file)?).metadata()?.len())
}

fn has_blocks(file: &Fd) -> Result<bool, Errno> {
    Ok(File::from(unshared_clone(file)?).metadata()?.blocks() > 0)
}
