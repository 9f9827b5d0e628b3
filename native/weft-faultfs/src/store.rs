//! The directory behind the mount: files and names, what of them is durable, and the power cut.
//!
//! Must always hold:
//! * whatever changes is noted before, so that a power cut can take it back;
//! * a power cut waits for requests that are being carried out, and nothing is carried out until the power is back;
//! * locks are taken in the order power, names, nodes, a file's data.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{
    AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Stat, StatVfs, fallocate, fstat,
    fstatvfs, ftruncate, linkat, mkdirat, open, openat, renameat, seek, statat, symlinkat,
};
use rustix::io::Errno;
use serde::Serialize;

use crate::faults::matches;
use crate::names::{Change, Names, Place};
use crate::undo::{Undo, positive, read_up_to, room_wanted, write_all};

/// The side directory's name below the backing directory; the mount does not show it.
pub const SIDE: &str = ".weft-faultfs";

/// A file or directory that the kernel knows or that isn't durable.
#[derive(Debug)]
pub struct Node {
    /// Its number in the mount.
    pub id: u64,
    inode: u64,
    /// Names it whatever it is called.
    pub(crate) handle: OwnedFd,
    kind: FileType,
    path: Mutex<String>,
    data: Mutex<Data>,
}

#[derive(Debug, Default)]
struct Data {
    file: Option<Arc<OwnedFd>>,
    undo: Option<Undo>,
}

impl Node {
    fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path below the mount by which it was last found.
    #[must_use]
    pub fn path(&self) -> String {
        self.path.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn child_path(&self, name: &OsStr) -> String {
        let (path, name) = (self.path(), name.to_string_lossy());
        if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") }
    }

    /// The same file or directory, opened for what `flags` say.
    pub(crate) fn reopen(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = format!("/proc/self/fd/{}", self.handle.as_raw_fd());
        open(path, flags | OFlags::CLOEXEC, Mode::empty())
    }

    fn file(&self, data: &mut Data) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(file) = &data.file {
            return Ok(Arc::clone(file));
        }
        if self.kind == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        let file = Arc::new(self.reopen(OFlags::RDWR)?);
        data.file = Some(Arc::clone(&file));
        Ok(file)
    }

    pub(crate) fn stat(&self) -> Result<Stat, Errno> {
        fstat(&self.handle)
    }
}

/// Decides what of the volatile things a power cut leaves.
#[derive(Debug)]
pub struct Mixture {
    keep_percent: u64,
    state: u64,
}

impl Mixture {
    /// Keeps so many of a hundred, chosen by the seed.
    #[must_use]
    pub fn new(keep_percent: u8, seed: u64) -> Mixture {
        Mixture { keep_percent: u64::from(keep_percent), state: seed }
    }

    pub(crate) fn keeps(&mut self) -> bool {
        // splitmix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 100 < self.keep_percent
    }
}

/// What a power cut did, or what one would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Blocks of 4 KiB.
    pub blocks: u64,
    /// Files whose size differs.
    pub sizes: u64,
    /// Names made, removed or changed.
    pub names: u64,
}

#[derive(Debug, Default)]
struct Nodes {
    by_id: HashMap<u64, (Arc<Node>, u64)>,
    by_inode: BTreeMap<u64, u64>,
    next: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    powered: RwLock<bool>,
    names: RwLock<Names>,
    nodes: Mutex<Nodes>,
    root: Arc<Node>,
    /// Bytes that may yet be allocated.
    room: Mutex<Option<u64>>,
    durable_writes: AtomicU64,
    /// What is called durable here and is not.
    lies: Mutex<Option<String>>,
}

/// Says that the power is on, and that it stays on as long as this lives.
#[derive(Debug)]
pub struct Powered<'a> {
    _on: RwLockReadGuard<'a, bool>,
    store: &'a Store,
}

impl Store {
    /// Opens a directory; empties its side directory.
    pub fn open(backing: &Path) -> Result<Store, Errno> {
        let handle = open(backing, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let side = backing.join(SIDE);
        let io = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
        match std::fs::remove_dir_all(&side) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
            _ => std::fs::create_dir(&side).map_err(io)?,
        }
        let side = open(&side, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let inode = fstat(&handle)?.st_ino;
        let root = Arc::new(Node {
            id: 1,
            inode,
            handle,
            kind: FileType::Directory,
            path: Mutex::default(),
            data: Mutex::default(),
        });
        let mut nodes = Nodes { next: 2, ..Nodes::default() };
        nodes.by_inode.insert(inode, 1);
        nodes.by_id.insert(1, (Arc::clone(&root), 1));
        Ok(Store {
            powered: RwLock::new(true),
            names: RwLock::new(Names::new(side)),
            nodes: Mutex::new(nodes),
            root,
            room: Mutex::new(None),
            durable_writes: AtomicU64::new(0),
            lies: Mutex::new(None),
        })
    }

    /// An orderly end, which is a flush of everything: what was put aside is removed for good.
    pub fn close(&self) {
        if let Ok(root) = self.root.reopen(OFlags::RDONLY | OFlags::DIRECTORY) {
            // A new start would remove it, too.
            let _ = std::fs::remove_dir_all(format!("/proc/self/fd/{}/{SIDE}", root.as_raw_fd()));
        }
    }

    /// The way to everything else; EIO without power.
    pub fn powered(&self) -> Result<Powered<'_>, Errno> {
        let on = self.powered.read().unwrap_or_else(PoisonError::into_inner);
        if *on { Ok(Powered { _on: on, store: self }) } else { Err(Errno::IO) }
    }

    /// Cuts the power: takes back what isn't durable, but for what the mixture keeps. What was dropped, what was kept.
    pub fn power_cut(&self, mixture: &mut Mixture) -> Result<(Tally, Tally), Errno> {
        let mut on = self.powered.write().unwrap_or_else(PoisonError::into_inner);
        *on = false;
        let (mut dropped, mut kept) = (Tally::default(), Tally::default());
        for node in self.known() {
            let mut data = node.data();
            let Some(undo) = data.undo.take() else { continue };
            let file = node.file(&mut data)?;
            let fate = undo.restore(&*file, mixture)?;
            dropped.blocks += fate.blocks_dropped;
            dropped.sizes += fate.sizes_dropped;
            kept.blocks += fate.blocks_kept;
            kept.sizes += fate.sizes_kept;
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        (dropped.names, kept.names) = names.restore(mixture);
        Ok((dropped, kept))
    }

    /// Gives the power back.
    pub fn power_on(&self) {
        *self.powered.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Whether there is power.
    #[must_use]
    pub fn is_powered(&self) -> bool {
        *self.powered.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allows so many more bytes to be allocated; none is as many as the disk has.
    pub fn limit_room(&self, bytes: Option<u64>) {
        *self.room() = bytes;
    }

    /// Whatever matches this pattern is called durable from now on and is not; nothing any more if there is none.
    pub fn lie_about(&self, pattern: Option<String>) {
        *self.lies.lock().unwrap_or_else(PoisonError::into_inner) = pattern;
    }

    fn lies_about(&self, node: &Node) -> bool {
        let lies = self.lies.lock().unwrap_or_else(PoisonError::into_inner);
        lies.as_ref().is_some_and(|pattern| matches(pattern.as_bytes(), node.path().as_bytes()))
    }

    /// Bytes that may yet be allocated, if that is limited.
    #[must_use]
    pub fn room_left(&self) -> Option<u64> {
        *self.room()
    }

    /// What a power cut would drop; a file of which nothing but its size changed counts as such.
    #[must_use]
    pub fn volatile(&self) -> Tally {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner).len() as u64;
        let mut tally = Tally { names, ..Tally::default() };
        for node in self.known() {
            if let Some(undo) = &node.data().undo {
                tally.blocks += undo.blocks() as u64;
                tally.sizes += 1;
            }
        }
        tally
    }

    /// How many writes were durable by their own flags.
    #[must_use]
    pub fn durable_writes(&self) -> u64 {
        self.durable_writes.load(Ordering::Relaxed)
    }

    /// A node the kernel knows.
    pub fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        self.nodes().by_id.get(&id).map(|(node, _)| Arc::clone(node)).ok_or(Errno::STALE)
    }

    /// The kernel forgets so many look-ups of a node.
    pub fn forget(&self, id: u64, lookups: u64) {
        let mut nodes = self.nodes();
        let Some((node, count)) = nodes.by_id.get_mut(&id) else { return };
        *count = count.saturating_sub(lookups);
        // What isn't durable is still needed: to take it back.
        if id == self.root.id || *count > 0 || node.data().undo.is_some() {
            return;
        }
        let inode = node.inode;
        nodes.by_id.remove(&id);
        nodes.by_inode.remove(&inode);
    }

    fn known(&self) -> Vec<Arc<Node>> {
        let mut known: Vec<_> = self.nodes().by_id.values().map(|(node, _)| Arc::clone(node)).collect();
        // The mixture's choices follow the order.
        known.sort_unstable_by_key(|node| node.id);
        known
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&self) -> MutexGuard<'_, Option<u64>> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_room(&self, bytes: u64) -> Result<(), Errno> {
        match &mut *self.room() {
            Some(left) if *left < bytes => Err(Errno::NOSPC),
            Some(left) => {
                *left -= bytes;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn give_room(&self, bytes: u64) {
        if let Some(left) = &mut *self.room() {
            *left += bytes;
        }
    }

    /// The node of a name, with one more look-up.
    fn enter(&self, dir: &Node, name: &OsStr) -> Result<Arc<Node>, Errno> {
        let handle =
            openat(&dir.handle, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&handle)?;
        let mut nodes = self.nodes();
        let path = dir.child_path(name);
        // Holding a file keeps its inode from being given to another one.
        if let Some(id) = nodes.by_inode.get(&stat.st_ino).copied()
            && let Some((node, count)) = nodes.by_id.get_mut(&id)
        {
            *count += 1;
            *node.path.lock().unwrap_or_else(PoisonError::into_inner) = path;
            return Ok(Arc::clone(node));
        }
        let id = nodes.next;
        nodes.next += 1;
        let node = Arc::new(Node {
            id,
            inode: stat.st_ino,
            handle,
            kind: FileType::from_raw_mode(stat.st_mode),
            path: Mutex::new(path),
            data: Mutex::default(),
        });
        nodes.by_inode.insert(stat.st_ino, id);
        nodes.by_id.insert(id, (Arc::clone(&node), 1));
        Ok(node)
    }
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// What it is.
    pub kind: FileType,
    /// Its number in the backing store.
    pub inode: u64,
}

impl Powered<'_> {
    /// Finds a name; the kernel has one more look-up of what is found.
    pub fn lookup(&self, dir: &Node, name: &OsStr) -> Result<Arc<Node>, Errno> {
        self.visible(dir, name)?;
        let _names = self.store.names.read().unwrap_or_else(PoisonError::into_inner);
        self.store.enter(dir, name)
    }

    /// What a directory holds.
    pub fn list(&self, dir: &Node) -> Result<Vec<Entry>, Errno> {
        let _names = self.store.names.read().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::new();
        for entry in Dir::new(dir.reopen(OFlags::RDONLY | OFlags::DIRECTORY)?)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            if dir.id != self.store.root.id || name != SIDE {
                entries.push(Entry { name, kind: entry.file_type(), inode: entry.ino() });
            }
        }
        Ok(entries)
    }

    /// Makes a file, or opens it if it is there and `exclusive` doesn't forbid that.
    pub fn create(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        mode: u32,
        exclusive: bool,
    ) -> Result<Arc<Node>, Errno> {
        let make = |flags: OFlags| {
            openat(
                &dir.handle,
                name,
                flags | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                mode_of(mode),
            )
        };
        match self.made(dir, name, || make(OFlags::CREATE | OFlags::EXCL).map(drop)) {
            Err(Errno::EXIST) if !exclusive => self.lookup(dir, name),
            other => other,
        }
    }

    /// Makes a directory.
    pub fn mkdir(&self, dir: &Arc<Node>, name: &OsStr, mode: u32) -> Result<Arc<Node>, Errno> {
        self.made(dir, name, || mkdirat(&dir.handle, name, mode_of(mode)))
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, dir: &Arc<Node>, name: &OsStr, target: &Path) -> Result<Arc<Node>, Errno> {
        self.made(dir, name, || symlinkat(target, &dir.handle, name))
    }

    /// Gives a file another name.
    pub fn link(&self, node: &Node, dir: &Arc<Node>, name: &OsStr) -> Result<Arc<Node>, Errno> {
        let from = format!("/proc/self/fd/{}", node.handle.as_raw_fd());
        self.made(dir, name, || linkat(rustix::fs::CWD, from, &dir.handle, name, AtFlags::SYMLINK_FOLLOW))
    }

    fn made(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        make: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<Arc<Node>, Errno> {
        self.visible(dir, name)?;
        let mut names = self.store.names.write().unwrap_or_else(PoisonError::into_inner);
        make()?;
        names.push(Change::Made(Place { dir: Arc::clone(dir), name: name.to_owned() }));
        self.store.enter(dir, name)
    }

    /// Removes a file (or, with `directory`, an empty directory).
    pub fn remove(&self, dir: &Arc<Node>, name: &OsStr, directory: bool) -> Result<(), Errno> {
        self.visible(dir, name)?;
        let mut names = self.store.names.write().unwrap_or_else(PoisonError::into_inner);
        let stat = statat(&dir.handle, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match (FileType::from_raw_mode(stat.st_mode) == FileType::Directory, directory) {
            (true, false) => return Err(Errno::ISDIR),
            (false, true) => return Err(Errno::NOTDIR),
            (true, true) => self.require_empty(dir, name)?,
            (false, false) => {}
        }
        let aside = names.fresh();
        renameat(&dir.handle, name, names.side(), &aside)?;
        if !directory && stat.st_nlink == 1 {
            self.store.give_room(positive(stat.st_blocks) * 512);
        }
        names.push(Change::Gone { at: Place { dir: Arc::clone(dir), name: name.to_owned() }, aside });
        Ok(())
    }

    /// Moves a name; what is in its way goes, unless that is forbidden.
    pub fn rename(
        &self,
        (from_dir, from): (&Arc<Node>, &OsStr),
        (to_dir, to): (&Arc<Node>, &OsStr),
        replace: bool,
    ) -> Result<(), Errno> {
        self.visible(from_dir, from)?;
        self.visible(to_dir, to)?;
        let mut names = self.store.names.write().unwrap_or_else(PoisonError::into_inner);
        let kind = |s: &Stat| FileType::from_raw_mode(s.st_mode) == FileType::Directory;
        let moved = statat(&from_dir.handle, from, AtFlags::SYMLINK_NOFOLLOW)?;
        let aside = match statat(&to_dir.handle, to, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno),
            Ok(_) if !replace => return Err(Errno::EXIST),
            // Two names of one file: nothing happens.
            Ok(there) if there.st_ino == moved.st_ino => return Ok(()),
            Ok(there) => {
                match (kind(&moved), kind(&there)) {
                    (true, false) => return Err(Errno::NOTDIR),
                    (false, true) => return Err(Errno::ISDIR),
                    (true, true) => self.require_empty(to_dir, to)?,
                    (false, false) => {}
                }
                let aside = names.fresh();
                renameat(&to_dir.handle, to, names.side(), &aside)?;
                Some(aside)
            }
        };
        if let Err(errno) = renameat(&from_dir.handle, from, &to_dir.handle, to) {
            if let Some(aside) = &aside {
                let _ = renameat(names.side(), aside, &to_dir.handle, to);
            }
            return Err(errno);
        }
        let node = {
            let nodes = self.store.nodes();
            let id = nodes.by_inode.get(&moved.st_ino);
            id.and_then(|id| nodes.by_id.get(id)).map(|(node, _)| Arc::clone(node))
        };
        if let Some(node) = node {
            *node.path.lock().unwrap_or_else(PoisonError::into_inner) = to_dir.child_path(to);
        }
        names.push(Change::Moved {
            from: Place { dir: Arc::clone(from_dir), name: from.to_owned() },
            to: Place { dir: Arc::clone(to_dir), name: to.to_owned() },
            aside,
        });
        Ok(())
    }

    fn require_empty(&self, dir: &Node, name: &OsStr) -> Result<(), Errno> {
        let there = openat(
            &dir.handle,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        for entry in Dir::new(there)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Err(Errno::NOTEMPTY);
            }
        }
        Ok(())
    }

    /// The side directory is nobody else's.
    fn visible(&self, dir: &Node, name: &OsStr) -> Result<(), Errno> {
        if dir.id == self.store.root.id && name == SIDE { Err(Errno::NOENT) } else { Ok(()) }
    }

    /// Reads up to `len` bytes.
    pub fn read(&self, node: &Node, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let file = node.file(&mut node.data())?;
        let mut buf = vec![0; len];
        let n = read_up_to(&*file, &mut buf, offset)?;
        buf.truncate(n);
        Ok(buf)
    }

    /// Writes; `durable` if the write's own flags ask for that.
    pub fn write(&self, node: &Node, offset: u64, bytes: &[u8], durable: bool) -> Result<(), Errno> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(Errno::FBIG)?;
        let mut data = node.data();
        let file = node.file(&mut data)?;
        self.need_room(&file, offset, end)?;
        if durable && !self.store.lies_about(node) {
            self.store.durable_writes.fetch_add(1, Ordering::Relaxed);
            write_all(&*file, bytes, offset)?;
            if let Some(undo) = &mut data.undo {
                undo.durable(offset, end);
            }
            return Ok(());
        }
        undo_of(&mut data, &file)?.note(&*file, offset, end, true)?;
        write_all(&*file, bytes, offset)
    }

    /// Cuts or lengthens a file.
    pub fn set_size(&self, node: &Node, size: u64) -> Result<(), Errno> {
        let mut data = node.data();
        let file = node.file(&mut data)?;
        let stat = fstat(&*file)?;
        let (now, allocated) = (positive(stat.st_size), positive(stat.st_blocks) * 512);
        if size == now {
            return Ok(());
        }
        let undo = undo_of(&mut data, &file)?;
        if size < now {
            undo.note(&*file, size, now, false)?;
        }
        ftruncate(&*file, size)?;
        self.store.give_room(allocated.saturating_sub(positive(fstat(&*file)?.st_blocks) * 512));
        Ok(())
    }

    /// fallocate with the modes that a pool uses: reserve, punch a hole, zero a range.
    pub fn allocate(&self, node: &Node, offset: u64, len: u64, mode: u32) -> Result<(), Errno> {
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let flags = FallocateFlags::from_bits(mode).filter(|f| known.contains(*f)).ok_or(Errno::OPNOTSUPP)?;
        let end = offset.checked_add(len).ok_or(Errno::FBIG)?;
        let mut data = node.data();
        let file = node.file(&mut data)?;
        let before = positive(fstat(&*file)?.st_blocks) * 512;
        if !flags.contains(FallocateFlags::PUNCH_HOLE) {
            self.need_room(&file, offset, end)?;
        }
        let undo = undo_of(&mut data, &file)?;
        if flags.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
            undo.note(&*file, offset, end, false)?;
        }
        fallocate(&*file, flags, offset, len)?;
        self.store.give_room(before.saturating_sub(positive(fstat(&*file)?.st_blocks) * 512));
        Ok(())
    }

    /// Makes a file's content and size durable, or what was done in a directory.
    pub fn flush(&self, node: &Arc<Node>) {
        if self.store.lies_about(node) {
            return;
        }
        if node.kind == FileType::Directory {
            self.store.names.write().unwrap_or_else(PoisonError::into_inner).flush(node);
        } else {
            node.data().undo = None;
        }
    }

    /// The next data or hole.
    pub fn seek(&self, node: &Node, whence: SeekFrom) -> Result<u64, Errno> {
        let file = node.file(&mut node.data())?;
        seek(&*file, whence)
    }

    /// The file system's room, as far as it is not limited further.
    pub fn statvfs(&self) -> Result<StatVfs, Errno> {
        let mut stat = fstatvfs(&self.store.root.handle)?;
        if let Some(left) = self.store.room_left() {
            let blocks = left / stat.f_frsize.max(1);
            stat.f_bfree = stat.f_bfree.min(blocks);
            stat.f_bavail = stat.f_bavail.min(blocks);
        }
        Ok(stat)
    }

    fn need_room(&self, file: &OwnedFd, start: u64, end: u64) -> Result<(), Errno> {
        if self.store.room_left().is_none() {
            return Ok(());
        }
        self.store.take_room(room_wanted(file, start, end)?)
    }
}

fn undo_of<'a>(data: &'a mut Data, file: &OwnedFd) -> Result<&'a mut Undo, Errno> {
    if data.undo.is_none() {
        data.undo = Some(Undo::of(file)?);
    }
    data.undo.as_mut().ok_or(Errno::IO)
}

fn mode_of(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}
