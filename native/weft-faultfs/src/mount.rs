//! The store as a mounted file system.
//!
//! Must always hold:
//! * every file is opened for direct I/O: the kernel keeps nothing back, and a write's flags say whether it is durable;
//! * names and attributes are asked for anew each time: a power cut changes them behind the kernel's back;
//! * a request that waits does so on a thread of its own.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::fd::AsRawFd;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, chmod, chown,
    readlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::faults::{Faults, Verdict, What};
use crate::store::{Entry, Node, Powered, Store};
use crate::undo::positive;

/// Nothing is cached.
const TTL: Duration = Duration::ZERO;
/// Node numbers are never used twice.
const GENERATION: Generation = Generation(0);
const DIRECT: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

/// <asm-generic/fcntl.h>; `OFlags::DSYNC` of rustix 1.1 is O_SYNC, which has one bit more.
const O_DSYNC: i32 = 0o10000;

/// A mount that lasts until it is dropped.
#[derive(Debug)]
pub struct Mounted {
    shared: Arc<Shared>,
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl Mounted {
    /// Mounts a directory at another one.
    pub fn new(backing: &Path, at: &Path) -> io::Result<Mounted> {
        let shared = Shared::open(backing)?;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("weft-faultfs".to_owned())];
        config.acl = SessionACL::All;
        config.n_threads = Some(4);
        config.clone_fd = true;
        let session = fuser::spawn_mount(Mount::new(Arc::clone(&shared)), at, &config)?;
        Ok(Mounted { shared, at: at.to_owned(), session: Some(session) })
    }

    /// What its control socket works on.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A file that is still open must not keep it mounted.
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        if self.shared.store.is_powered() {
            self.shared.store.close();
        }
        // Requests that are stalled end with the process: to wait for the session's threads would be to wait for them.
        std::mem::forget(self.session.take());
    }
}

/// What the mount and the control socket share.
#[derive(Debug)]
pub struct Shared {
    /// Files and names.
    pub store: Store,
    /// What is broken.
    pub faults: Faults,
    /// What was asked for.
    pub counts: Counts,
}

impl Shared {
    /// Over a directory.
    pub fn open(backing: &Path) -> Result<Arc<Shared>, Errno> {
        let (faults, counts) = (Faults::default(), Counts::default());
        Ok(Arc::new(Shared { store: Store::open(backing)?, faults, counts }))
    }
}

/// Requests so far, those that failed too.
#[derive(Debug, Default)]
pub struct Counts {
    /// READ.
    pub read: AtomicU64,
    /// WRITE, fallocate, changes of size.
    pub write: AtomicU64,
    /// fsync and fdatasync.
    pub flush: AtomicU64,
    /// Names made, removed, changed.
    pub name: AtomicU64,
}

/// The mounted file system.
#[derive(Debug)]
pub struct Mount {
    shared: Arc<Shared>,
    /// Directories as they were when somebody began to read them.
    listings: Mutex<HashMap<u64, Arc<Vec<Entry>>>>,
    next_handle: AtomicU64,
}

impl Mount {
    /// Of what is shared with the control socket.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Mount {
        Mount { shared, listings: Mutex::default(), next_handle: AtomicU64::new(1) }
    }

    fn now<T>(&self, job: impl FnOnce(&Powered<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
        job(&self.shared.store.powered()?)
    }

    /// Carries a request out now, or later on another thread if a fault says so.
    fn judged(&self, what: What, path: &str, job: impl FnOnce(Result<&Shared, Errno>) + Send + 'static) {
        let counts = &self.shared.counts;
        let count = match what {
            What::Read => &counts.read,
            What::Write => &counts.write,
            What::Flush => &counts.flush,
            What::Name | What::Any => &counts.name,
        };
        count.fetch_add(1, Ordering::Relaxed);
        match self.shared.faults.judge(what, path) {
            Verdict::Go => job(Ok(&self.shared)),
            Verdict::Fail(errno) => job(Err(errno)),
            Verdict::Wait(ticket) => {
                let shared = Arc::clone(&self.shared);
                std::thread::spawn(move || {
                    shared.faults.wait(ticket);
                    job(Ok(&shared));
                });
            }
        }
    }

    fn judged_at(
        &self,
        id: INodeNo,
        what: What,
        job: impl FnOnce(Result<(&Shared, &Arc<Node>), Errno>) + Send + 'static,
    ) {
        match self.shared.store.node(id.0) {
            Ok(node) => {
                let path = node.path();
                self.judged(what, &path, move |shared| job(shared.map(|s| (s, &node))));
            }
            Err(errno) => job(Err(errno)),
        }
    }

    /// Something that is done with a name of a directory.
    fn judged_name(
        &self,
        dir: INodeNo,
        name: &OsStr,
        job: impl FnOnce(Result<(&Shared, &Arc<Node>, &OsStr), Errno>) + Send + 'static,
    ) {
        match self.shared.store.node(dir.0) {
            Ok(dir) => {
                let (path, name) = (dir.path(), name.to_owned());
                let path = if path.is_empty() { String::new() } else { path + "/" } + &name.to_string_lossy();
                self.judged(
                    What::Name,
                    &path,
                    move |shared| job(shared.map(|s| (s, &dir, name.as_os_str()))),
                );
            }
            Err(errno) => job(Err(errno)),
        }
    }

    fn handle(&self) -> FileHandle {
        FileHandle(self.next_handle.fetch_add(1, Ordering::Relaxed))
    }
}

impl Filesystem for Mount {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What the kernel does not have, it does without.
        for flag in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // etcd maps its database.
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ] {
            let _ = config.add_capabilities(flag);
        }
        // Requests that wait must not keep others out.
        let _ = config.set_max_background(4096);
        let _ = config.set_congestion_threshold(4096);
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.now(|p| entered(p.lookup(&*self.shared.store.node(parent.0)?, name)));
        entry(reply, found);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.shared.store.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        attr(reply, self.now(|_| attr_of(&*self.shared.store.node(ino.0)?)));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = move |node: &Node| -> Result<(), Errno> {
            let path = format!("/proc/self/fd/{}", node.handle.as_raw_fd());
            if let Some(mode) = mode {
                chmod(&path, Mode::from_raw_mode(mode & 0o7777))?;
            }
            if uid.is_some() || gid.is_some() {
                chown(&path, uid.map(rustix::fs::Uid::from_raw), gid.map(rustix::fs::Gid::from_raw))?;
            }
            if atime.is_some() || mtime.is_some() {
                let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
                utimensat(CWD, &path, &times, AtFlags::empty())?;
            }
            Ok(())
        };
        let Some(size) = size else {
            return attr(
                reply,
                self.now(|_| {
                    let node = self.shared.store.node(ino.0)?;
                    change(&node)?;
                    attr_of(&node)
                }),
            );
        };
        self.judged_at(ino, What::Write, move |to| {
            let done = to.and_then(|(shared, node)| {
                let powered = shared.store.powered()?;
                powered.set_size(node, size)?;
                change(node)?;
                attr_of(node)
            });
            attr(reply, done);
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.now(|_| readlinkat(&self.shared.store.node(ino.0)?.handle, "", Vec::new()));
        match target {
            Ok(target) => reply.data(target.to_bytes()),
            Err(errno) => reply.error(said(errno)),
        }
    }

    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.judged_name(parent, name, move |to| {
            entry(
                reply,
                to.and_then(|(s, dir, name)| entered(s.store.powered()?.mkdir(dir, name, mode & !umask))),
            );
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.judged_name(parent, name, move |to| {
            empty(reply, to.and_then(|(s, dir, name)| s.store.powered()?.remove(dir, name, false)));
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.judged_name(parent, name, move |to| {
            empty(reply, to.and_then(|(s, dir, name)| s.store.powered()?.remove(dir, name, true)));
        });
    }

    fn symlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.to_owned();
        self.judged_name(parent, name, move |to| {
            entry(
                reply,
                to.and_then(|(s, dir, name)| entered(s.store.powered()?.symlink(dir, name, &target))),
            );
        });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let new = newname.to_owned();
        let to_dir = self.shared.store.node(newparent.0);
        self.judged_name(parent, name, move |from| {
            let done = from.and_then(|(s, dir, name)| {
                if flags.intersects(!RenameFlags::RENAME_NOREPLACE) {
                    return Err(Errno::INVAL);
                }
                let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
                s.store.powered()?.rename((dir, name), (&to_dir?, &new), replace)
            });
            empty(reply, done);
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let node = self.shared.store.node(ino.0);
        self.judged_name(newparent, newname, move |to| {
            entry(reply, to.and_then(|(s, dir, name)| entered(s.store.powered()?.link(&*node?, dir, name))));
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.now(|_| self.shared.store.node(ino.0)) {
            Ok(_) => reply.opened(self.handle(), DIRECT),
            Err(errno) => reply.error(said(errno)),
        }
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let handle = self.handle();
        let exclusive = OFlags::from_bits_retain(flags.cast_unsigned()).contains(OFlags::EXCL);
        self.judged_name(parent, name, move |to| {
            let made = to.and_then(|(s, dir, name)| {
                entered(s.store.powered()?.create(dir, name, mode & !umask, exclusive))
            });
            match made {
                Ok(attr) => reply.created(&TTL, &attr, GENERATION, handle, DIRECT),
                Err(errno) => reply.error(said(errno)),
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.judged_at(ino, What::Read, move |at| {
            match at.and_then(|(s, node)| s.store.powered()?.read(node, offset, size as usize)) {
                Ok(bytes) => reply.data(&bytes),
                Err(errno) => reply.error(said(errno)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // RWF_DSYNC is in the flags of the one write, as if its file had been opened with O_DSYNC.
        let durable = flags.0 & O_DSYNC != 0;
        let bytes = data.to_owned();
        self.judged_at(ino, What::Write, move |at| {
            match at.and_then(|(s, node)| s.store.powered()?.write(node, offset, &bytes, durable)) {
                Ok(()) => reply.written(u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
                Err(errno) => reply.error(said(errno)),
            }
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // Of a close: nothing is kept back here.
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.judged_at(ino, What::Flush, move |at| {
            empty(reply, at.and_then(|(s, node)| s.store.powered().map(|p| p.flush(node))));
        });
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fsync(req, ino, fh, datasync, reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.now(|_| self.shared.store.node(ino.0)) {
            Ok(_) => reply.opened(self.handle(), FopenFlags::empty()),
            Err(errno) => reply.error(said(errno)),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever reads on while files are removed has a list that stays as it was.
        if offset == 0 || !listings.contains_key(&fh.0) {
            match self.now(|p| p.list(&*self.shared.store.node(ino.0)?)) {
                Ok(entries) => drop(listings.insert(fh.0, Arc::new(entries))),
                Err(errno) => return reply.error(said(errno)),
            }
        }
        let entries = listings.get(&fh.0).map(Arc::clone).unwrap_or_default();
        drop(listings);
        for (entry, next) in entries.iter().zip(1..).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(INodeNo(entry.inode), next, kind_of(entry.kind), &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner).remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.now(|p| p.statvfs()) {
            Ok(s) => {
                let short = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                reply.statfs(
                    s.f_blocks,
                    s.f_bfree,
                    s.f_bavail,
                    s.f_files,
                    s.f_ffree,
                    short(s.f_bsize),
                    short(s.f_namemax),
                    short(s.f_frsize),
                );
            }
            Err(errno) => reply.error(said(errno)),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.judged_at(ino, What::Write, move |at| {
            empty(
                reply,
                at.and_then(|(s, node)| {
                    s.store.powered()?.allocate(node, offset, length, mode.cast_unsigned())
                }),
            );
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // <linux/fs.h>: SEEK_DATA, SEEK_HOLE; the kernel does the others.
        let whence = match whence {
            3 => SeekFrom::Data(positive(offset)),
            4 => SeekFrom::Hole(positive(offset)),
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        match self.now(|p| p.seek(&*self.shared.store.node(ino.0)?, whence)) {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(errno) => reply.error(said(errno)),
        }
    }
}

fn said(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

fn empty(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(said(errno)),
    }
}

fn entry(reply: ReplyEntry, found: Result<FileAttr, Errno>) {
    match found {
        Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
        Err(errno) => reply.error(said(errno)),
    }
}

fn attr(reply: ReplyAttr, found: Result<FileAttr, Errno>) {
    match found {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(errno) => reply.error(said(errno)),
    }
}

fn entered(node: Result<Arc<Node>, Errno>) -> Result<FileAttr, Errno> {
    attr_of(&*node?)
}

fn attr_of(node: &Node) -> Result<FileAttr, Errno> {
    let stat: Stat = node.stat()?;
    let time = |s: i64, ns: u64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(positive(s)) + Duration::from_nanos(ns)
    };
    let short = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(FileAttr {
        ino: INodeNo(node.id),
        size: positive(stat.st_size),
        blocks: positive(stat.st_blocks),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind_of(rustix::fs::FileType::from_raw_mode(stat.st_mode)),
        perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        nlink: short(stat.st_nlink),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: short(stat.st_rdev),
        blksize: 4096,
        flags: 0,
    })
}

fn kind_of(kind: rustix::fs::FileType) -> FileType {
    use rustix::fs::FileType as Backing;
    match kind {
        Backing::Directory => FileType::Directory,
        Backing::Symlink => FileType::Symlink,
        Backing::Fifo => FileType::NamedPipe,
        Backing::Socket => FileType::Socket,
        Backing::CharacterDevice => FileType::CharDevice,
        Backing::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match time {
        None => special(UTIME_OMIT),
        Some(TimeOrNow::Now) => special(UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Timespec {
                tv_sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(since.subsec_nanos()),
            }
        }
    }
}
