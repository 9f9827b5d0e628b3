//! What a pool did to its file system, in order: written down by a journal behind weft-io's door and by a driver that
//! runs one op at a time.
//!
//! Must always hold:
//! * an op of the driver is on the record from its submission on, and its end is noted after the system call returned;
//! * which of the waiting ops runs next is drawn from the run's seed: the same seed gives the same trace;
//! * nothing is noted of a call that failed.

use core::time::Duration;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_io::driver::{
    AnyDriver, Completion, Driver, DriverConfig, DriverKind, Errno, Fd, Op, Outcome, Waker, open,
};
use weft_io::files::{Change, Journal};
use weft_proto::payload::Payload;

use crate::rng::Rng;

/// A file or directory, also when it has no name any more.
pub type Node = u32;

/// The directory that holds the pool's.
pub const ROOT: Node = 0;

/// One change of the disk.
#[derive(Clone, Debug)]
pub enum What {
    /// Bytes written.
    Write {
        /// To this file.
        node: Node,
        /// From this byte on.
        offset: u64,
        /// The bytes.
        bytes: Arc<[u8]>,
        /// On stable media when it has ended.
        durable: bool,
    },
    /// A file cut or lengthened.
    Truncate {
        /// The file.
        node: Node,
        /// Its new length.
        len: u64,
    },
    /// A file lengthened, if it was shorter.
    Allocate {
        /// The file.
        node: Node,
        /// Its least length.
        len: u64,
    },
    /// A range made zero.
    Zero {
        /// Of this file.
        node: Node,
        /// From this byte on.
        offset: u64,
        /// So many bytes.
        len: u64,
    },
    /// A range reads as a range of another file did then.
    Clone {
        /// That file.
        from: Node,
        /// From this byte on.
        from_offset: u64,
        /// This file.
        node: Node,
        /// From this byte on.
        offset: u64,
        /// So many bytes.
        len: u64,
    },
    /// A file or directory made durable.
    Sync {
        /// Which.
        node: Node,
        /// While a process takes up what an earlier one left.
        starting: bool,
    },
    /// A new file or directory.
    Make {
        /// In this directory.
        dir: Node,
        /// Under this name.
        name: String,
        /// The new one.
        node: Node,
        /// A directory.
        is_dir: bool,
    },
    /// A name becomes another one.
    Rename {
        /// From this directory.
        from_dir: Node,
        /// This name.
        from: String,
        /// To this directory.
        to_dir: Node,
        /// That name.
        to: String,
        /// What has the name.
        node: Node,
    },
    /// A name goes.
    Remove {
        /// From this directory.
        dir: Node,
        /// This name.
        name: String,
    },
}

/// One step of a trace.
#[derive(Clone, Debug)]
pub enum Event {
    /// An op of the driver was submitted: from now on it may be on the disk.
    Start(u64, What),
    /// It has ended.
    End(u64),
    /// A call was made.
    Did(What),
    /// The process was killed, the machine runs on: these ops never reached the kernel, the other running ones did.
    Kill {
        /// Numbers of driver ops.
        dropped: Vec<u64>,
    },
}

/// A trace that grows.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    events: Vec<Event>,
    inodes: BTreeMap<u64, Node>,
    names: BTreeMap<(Node, String), Node>,
    next_node: Node,
    next_op: u64,
    calls: BTreeMap<u64, What>,
    next_call: u64,
    starting: bool,
}

fn inode(file: &Fd) -> u64 {
    let file = File::from(file.try_clone().expect("a descriptor to spare"));
    file.metadata().expect("an open file has metadata").ino()
}

impl Recorder {
    /// An empty trace of what happens below `root`, whose present content is known.
    #[must_use]
    pub fn below(root: &Path) -> Recorder {
        let recorder = Recorder::default();
        {
            let mut inner = recorder.inner();
            let ino = std::fs::metadata(root).expect("the root is there").ino();
            inner.inodes.insert(ino, ROOT);
            inner.next_node = 1;
            inner.enter(root, ROOT);
        }
        recorder
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner().events.len()
    }

    /// True before the first event.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was recorded.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.inner().events.clone()
    }

    /// The names there were at the beginning, with their nodes; see [`Recorder::below`].
    #[must_use]
    pub fn names(&self) -> BTreeMap<(Node, String), Node> {
        self.inner().names.clone()
    }

    /// From now on a process takes up what an earlier one left, or has done so.
    pub fn starting(&self, starting: bool) {
        self.inner().starting = starting;
    }

    /// The process was killed while these ops were waiting for the kernel.
    pub fn kill(&self, dropped: Vec<u64>) {
        self.inner().events.push(Event::Kill { dropped });
    }

    fn start(&self, what: impl FnOnce(&Inner) -> What) -> u64 {
        let mut inner = self.inner();
        let what = what(&inner);
        inner.next_op += 1;
        let op = inner.next_op;
        inner.events.push(Event::Start(op, what));
        op
    }

    fn end(&self, op: u64) {
        self.inner().events.push(Event::End(op));
    }
}

impl Inner {
    /// Learns what lies in a directory.
    fn enter(&mut self, path: &Path, dir: Node) {
        let entries = std::fs::read_dir(path).expect("a directory");
        let mut entries: Vec<_> = entries.map(|e| e.expect("an entry")).collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let node = self.next_node;
            self.next_node += 1;
            let metadata = entry.metadata().expect("an entry has metadata");
            self.inodes.insert(metadata.ino(), node);
            self.names.insert((dir, entry.file_name().into_string().expect("names are ours")), node);
            if metadata.is_dir() {
                self.enter(&entry.path(), node);
            }
        }
    }

    fn node(&self, file: &Fd) -> Node {
        *self.inodes.get(&inode(file)).expect("every file came through the door")
    }

    /// None: no change, or none that will succeed.
    fn translate(&mut self, change: &Change<'_>) -> Option<What> {
        Some(match *change {
            Change::Create { dir, name } | Change::MakeDir { dir, name } => {
                let dir = self.node(dir);
                if self.names.contains_key(&(dir, name.to_owned())) {
                    return None;
                }
                let node = self.next_node;
                self.next_node += 1;
                let is_dir = matches!(change, Change::MakeDir { .. });
                What::Make { dir, name: name.to_owned(), node, is_dir }
            }
            Change::Rename { from_dir, from, to_dir, to } => {
                let (from_dir, to_dir) = (self.node(from_dir), self.node(to_dir));
                let node = *self.names.get(&(from_dir, from.to_owned()))?;
                What::Rename { from_dir, from: from.to_owned(), to_dir, to: to.to_owned(), node }
            }
            Change::Remove { dir, name } => What::Remove { dir: self.node(dir), name: name.to_owned() },
            Change::Write { file, offset, bytes } => {
                What::Write { node: self.node(file), offset, bytes: bytes.into(), durable: false }
            }
            Change::Truncate { file, len } => What::Truncate { node: self.node(file), len },
            Change::Allocate { file, len } => What::Allocate { node: self.node(file), len },
            Change::Zero { file, offset, len } => What::Zero { node: self.node(file), offset, len },
            Change::Clone { from, from_offset, to, to_offset, len } => {
                let (from, node) = (self.node(from), self.node(to));
                What::Clone { from, from_offset, node, offset: to_offset, len }
            }
            Change::Sync { file } => What::Sync { node: self.node(file), starting: self.starting },
        })
    }
}

impl Journal for Recorder {
    fn starts(&self, change: &Change<'_>) -> u64 {
        let mut inner = self.inner();
        inner.next_call += 1;
        let call = inner.next_call;
        if let Some(what) = inner.translate(change) {
            inner.calls.insert(call, what);
        }
        call
    }

    fn ended(&self, number: u64, done: bool, made: Option<&Fd>) {
        let mut inner = self.inner();
        let Some(what) = inner.calls.remove(&number).filter(|_| done) else { return };
        match &what {
            What::Make { dir, name, node, .. } => {
                let (dir, name, node) = (*dir, name.clone(), *node);
                inner.inodes.insert(inode(made.expect("what was made is open")), node);
                inner.names.insert((dir, name), node);
            }
            What::Rename { from_dir, from, to_dir, to, node } => {
                let (old, new, node) = ((*from_dir, from.clone()), (*to_dir, to.clone()), *node);
                inner.names.remove(&old);
                inner.names.insert(new, node);
            }
            What::Remove { dir, name } => {
                let key = (*dir, name.clone());
                inner.names.remove(&key);
            }
            _ => {}
        }
        inner.events.push(Event::Did(what));
    }
}

/// A journal that nobody reads: a pool behind it makes its calls in order on its own thread.
#[derive(Debug)]
pub struct Silent;

impl Journal for Silent {
    fn starts(&self, _change: &Change<'_>) -> u64 {
        0
    }

    fn ended(&self, _number: u64, _done: bool, _made: Option<&Fd>) {}
}

struct Waiting {
    token: u64,
    op: Op,
    number: u64,
}

/// Runs one op at a time, whichever the seed draws, by plain system calls.
pub struct SlowDriver {
    /// Lends its waker: nobody here ever waits.
    inner: AnyDriver,
    waiting: Vec<Waiting>,
    locks: Vec<Fd>,
    rng: Rng,
    recorder: Option<Recorder>,
}

impl core::fmt::Debug for SlowDriver {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SlowDriver(waiting={})", self.waiting.len())
    }
}

impl SlowDriver {
    /// A driver that notes its ops, if there is a recorder.
    pub fn new(seed: u64, recorder: Option<Recorder>) -> io::Result<SlowDriver> {
        let config = DriverConfig { entries: 8, ..DriverConfig::default() };
        let inner = open(Some(DriverKind::Libaio), config)?;
        Ok(SlowDriver { inner, waiting: Vec::new(), locks: Vec::new(), rng: Rng::new(seed), recorder })
    }

    /// For another process: as new.
    pub fn reset(&mut self, seed: u64, recorder: Option<Recorder>) {
        self.waiting.clear();
        self.locks.clear();
        self.rng = Rng::new(seed);
        self.recorder = recorder;
    }

    /// The process dies: each op that waits has reached the kernel, or never will.
    pub fn kill(&mut self) {
        let mut dropped = Vec::new();
        for waiting in core::mem::take(&mut self.waiting) {
            if self.rng.chance(50) {
                dropped.push(waiting.number);
            } else if let Op::WriteAt { file, offset, bufs, .. } = &waiting.op {
                write_all(file, *offset, bufs).expect("the test's disk takes writes");
            }
        }
        self.locks.clear();
        if let Some(recorder) = &self.recorder {
            recorder.kill(dropped);
        }
    }
}

fn write_all(file: &Fd, offset: u64, bufs: &[weft_io::buffer::IoBuf]) -> io::Result<usize> {
    let file = File::from(file.try_clone()?);
    let mut at = offset;
    for buf in bufs {
        file.write_all_at(buf.bytes(), at)?;
        at += buf.len() as u64;
    }
    Ok(usize::try_from(at - offset).expect("buffers are below 4 GiB"))
}

impl Driver for SlowDriver {
    fn kind(&self) -> DriverKind {
        self.inner.kind()
    }

    fn submit(&mut self, token: u64, op: Op) {
        let number = self.recorder.as_ref().map_or(0, |recorder| match &op {
            Op::WriteAt { file, offset, bufs, durable } => recorder.start(|inner| {
                let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.bytes().iter().copied()).collect();
                let node = inner.node(file);
                What::Write { node, offset: *offset, bytes: bytes.into(), durable: *durable }
            }),
            Op::Fdatasync { file } => {
                recorder.start(|inner| What::Sync { node: inner.node(file), starting: inner.starting })
            }
            _ => 0,
        });
        self.waiting.push(Waiting { token, op, number });
    }

    fn wait(&mut self, _timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let at = self.rng.index(self.waiting.len());
        let Waiting { token, mut op, number } = self.waiting.swap_remove(at);
        let result = match &mut op {
            Op::WriteAt { file, offset, bufs, .. } => write_all(file, *offset, bufs).map(Outcome::Bytes),
            Op::ReadAt { file, offset, buf } => {
                let file = File::from(file.try_clone()?);
                file.read_at(buf.bytes_mut(), *offset).map(Outcome::Bytes)
            }
            Op::Fdatasync { .. } => Ok(Outcome::Done),
            other => panic!("a pool never asks for {other:?}"),
        };
        if let (Some(recorder), true) = (&self.recorder, number > 0) {
            recorder.end(number);
        }
        out.push(Completion { token, op, result: result.map_err(Errno::from) });
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn hold_lock(&mut self, lock: Fd) -> io::Result<()> {
        self.locks.push(lock);
        Ok(())
    }

    fn release_lock(&mut self, lock: &Fd) -> io::Result<()> {
        self.locks.retain(|held| !Arc::ptr_eq(held, lock));
        Ok(())
    }
}
