//! A pool of replicas in a directory, served by one reactor thread: sans-I/O towards the driver, blocking calls on
//! threads of its own.
//!
//! ```text
//! let dir = PoolDir::open(path)?;                       // blocks: on any thread, before the reactor serves it
//! let mut pool = FilePool::start(dir, config, &mut driver)?;
//! loop {
//!     driver.wait(timeout, &mut done)?;
//!     for c in done.drain(..) { if pool.owns(c.token) { pool.handle_completion(c) } }
//!     pool.drive(&mut driver);
//!     while let Some(event) = pool.poll_event() { … }   // which leads to pool.submit(token, op)
//!     pool.drive(&mut driver);                          // hands over what those submitted
//! }
//! ```
//!
//! Must always hold:
//! * every submitted op but [`PoolOp::Cancel`] is answered by exactly one [`PoolEvent::Done`] with its token;
//! * of overlapping disk ops on a replica, of which one writes, the later one starts when the earlier has ended;
//! * a write reported done is what reads return, and is on stable media if it asked for that, the block's
//!   allocation and the segment's name included;
//! * a seal reported done means that the sidecar on disk is right for every block whose write was done before;
//! * after a failed fdatasync nothing more is done for that replica, and no fdatasync is repeated on its files.
//!
//! **Checksums.** A block that was in no `unsealed` range of [`PoolOp::OpenReplica`], or was written or looked at
//! since, has an authoritative entry in the sidecar: a read whose data doesn't match is [`PoolError::BitRot`]. For
//! the others ("in doubt") the CRC is computed from the data as read, and non-zero data makes a block data whatever
//! its kind said; what was found is entered, and what nobody looked at is looked at by the next seal.
//!
//! **Hashes** are SipHash-2-4 with 128 bits of result: a pseudo-random function made for short secret keys, so that
//! a guest who does not know the key (fresh per range) can't prepare two blocks that look equal; it takes the
//! protocol's 16-byte key as it is (blake3 wants 32) and is pure Rust. A zero hole hashes as 4096 zero bytes, since
//! that is what it reads as; an absent block hashes as no bytes at all, so that it differs from a zeroed one.
//!
//! **Memory**: [`PoolConfig::open_segments`] × (128 KiB of sidecar at most), 2 KiB per segment partly in doubt, 4
//! bytes per segment that exists, and the callers' own buffers.

use core::fmt;
use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use weft_proto::ids::SnapId;
use weft_proto::images::Place;
use weft_proto::log::ReplicaKey;
use weft_proto::message::Hole;
use weft_proto::payload::{BLOCK, Payload};
use weft_proto::replica::{DiskDone, DiskOp};

use crate::blocking::Workers;
use crate::buffer::IoBuf;
use crate::clones;
use crate::copies;
use crate::doubt::Doubt;
use crate::driver::slab::Slab;
use crate::driver::{Completion, Driver, Errno, Fd, Op, Outcome, TokenSpace};
use crate::images;
use crate::pool_dir::{self, PoolDir, Probe, SegmentError, SegmentFiles};
use crate::reflink::Ability;
use crate::segment::{Piece, Rounds, Segment, Waiter};
use crate::sidecar::{Entry, SEGMENT_BLOCKS, SIDECAR_BYTES};
use crate::store::Home;

mod fill;
mod image;
mod job;
mod op;
mod own;
mod room;
mod used;

pub use op::{PoolAnswer, PoolConfig, PoolError, PoolEvent, PoolFigures, PoolOp, Slot};
pub use room::{FULL_PERCENT, Fill, GO_ON_PERCENT, LOW_PERCENT};

use job::{Found, Job, Step, Work, conclude, entry_of, join_extents, join_kinds, nothing_there};
use room::{Room, Taker};

const BLOCK_LEN: usize = 4096;
/// A segment's sidecar is written back after this many changed entries (8 MiB of data), so that a seal finds little to
/// do: at most 32 pages and a flush for 2048 writes. Fewer would cost random writes more than the seal gains.
const WRITE_BACK_CHANGES: u32 = 2048;
/// Blocks of a replica that are remembered as rotten, so that each counts once; further ones count whenever they are met.
const ROTTEN_MAX: usize = 1 << 16;
/// What a new directory or file needs beside its content.
const NAMES_ROOM: u64 = 16 << 10;
/// A segment's sidecar, and the names of its two files.
const SEGMENT_ROOM: u64 = SIDECAR_BYTES as u64 + NAMES_ROOM;

/// An open replica.
struct Replica {
    home: Home,
    blocks: u64,
    /// Segments that have files.
    exists: BTreeSet<u32>,
    /// Its blocks are reserved.
    thick: bool,
    doubt: Doubt,
    segments: BTreeMap<u32, Segment>,
    used: used::Closed,
    /// Where it shares chunks with snapshots, which it does not.
    own: own::Own,
    rotten: Rotten,
    /// Jobs that have not ended.
    jobs: usize,
    closing: Option<u64>,
    failed: bool,
}

/// Blocks whose checksum was found not to match, until they are written again.
#[derive(Default)]
struct Rotten(BTreeSet<u64>);

impl Rotten {
    /// Is it news that this block is rotten?
    fn is_news(&mut self, block: u64) -> bool {
        self.0.len() >= ROTTEN_MAX && !self.0.contains(&block) || self.0.insert(block)
    }

    /// Blocks were written.
    fn written(&mut self, piece: &Piece) {
        let range = at(piece.segment, piece.lo)..at(piece.segment, piece.hi);
        while let Some(block) = self.0.range(range.clone()).next().copied() {
            self.0.remove(&block);
        }
    }
}

/// A driver's op under way.
enum Io {
    Write(ReplicaKey, Piece, Until),
    Look(ReplicaKey, Piece, u32),
    DataSync(ReplicaKey, u32),
    SidePages(ReplicaKey, u32),
    SideSync(ReplicaKey, u32),
    Log(u64),
}

/// When a piece of a write has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Written,
    /// As one request.
    Durable,
    /// By a flush that it shares with others.
    Flushed,
}

/// A blocking call's result.
enum Called {
    Answer(u64, Result<PoolAnswer, PoolError>),
    ReplicaOpened {
        token: u64,
        replica: ReplicaKey,
        size: u64,
        unsealed: Vec<Range<u64>>,
        result: Listed,
    },
    /// With the bytes that were there before.
    SegmentOpened(ReplicaKey, u32, Result<SegmentFiles, SegmentError>, u64),
    Counted(ReplicaKey, Fd, Vec<(u32, u64)>),
    /// A growth's blocks: of each segment what it took before, and takes now.
    Reserved(u64, ReplicaKey, Result<Vec<(u32, u64, u64)>, Errno>),
    HoleMade(ReplicaKey, Piece, Result<(), Errno>),
    /// The piece holds its blocks, if the head has that segment.
    Preserved(ReplicaKey, Piece, bool, Result<(), Errno>),
    /// So many blocks of the piece, which holds all of them.
    SharedOut(ReplicaKey, Piece, Result<u32, Errno>),
    /// So many blocks of the piece, which holds its blocks, are shared with the head.
    Filled(ReplicaKey, Piece, bool, Result<u32, Errno>),
    /// A segment of an image; true: and its name.
    ImageSynced((ReplicaKey, SnapId, u32), bool, Result<(), Errno>),
    /// There is room for the segments of a larger replica, or there is not.
    Extended(u64, Result<(), Errno>),
    /// Room was made for an image, or it was taken, or not.
    Imaged(u64, Result<(), Errno>),
}

/// A replica's home, its segments, and whether it is thick, and shares blocks.
type Listed = Result<(Home, Vec<u32>, [bool; 2]), Errno>;

/// See the module.
pub struct FilePool {
    config: PoolConfig,
    dir: PoolDir,
    workers: Workers<Called>,
    /// For what nobody's write waits for: looks at images, and their end.
    bulk: Workers<Called>,
    /// For snapshots that are taken, for which all writes of a volume wait.
    takes: Workers<Called>,
    /// Of the image that was preserved into last, the segments whose names are durable.
    named: BTreeMap<ReplicaKey, (SnapId, BTreeSet<u32>)>,
    /// Flushes of images' segments that are under way or waited for.
    image_rounds: BTreeMap<(ReplicaKey, SnapId, u32), Rounds>,
    replicas: BTreeMap<ReplicaKey, Replica>,
    opening: BTreeSet<ReplicaKey>,
    jobs: Slab<Job>,
    ios: Slab<Io>,
    outbox: VecDeque<(u64, Op)>,
    events: VecDeque<PoolEvent>,
    /// Jobs to look at again.
    pumps: VecDeque<u64>,
    open_segments: usize,
    tick: u64,
    figures: PoolFigures,
    room: Room,
    /// Replicas with images or clones, as far as known since the start: what they overwrite may be shared.
    imaged: BTreeSet<ReplicaKey>,
}

impl fmt::Debug for FilePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "FilePool({}, jobs={}, open={})",
            self.dir.path.display(),
            self.jobs.len(),
            self.open_segments
        )
    }
}

impl FilePool {
    /// Starts to serve a locked directory: starts its threads and lets the driver hold the lock (R13).
    pub fn start(dir: PoolDir, config: PoolConfig, driver: &mut impl Driver) -> io::Result<FilePool> {
        driver.hold_lock(dir.lock.clone())?;
        let threads = if dir.files.is_recorded() { 0 } else { config.threads.max(1) };
        let workers = Workers::start(threads, "weft-pool", &dir.lock, &driver.waker())?;
        let bulk = Workers::start(threads, "weft-images", &dir.lock, &driver.waker())?;
        let taking = usize::from(dir.probe().ability == Ability::Thin);
        let takes = Workers::start(taking, "weft-takes", &dir.lock, &driver.waker())?;
        let room = Room::new(config.gated && !dir.files.is_recorded(), dir.space);
        Ok(FilePool {
            room,
            imaged: BTreeSet::new(),
            config,
            dir,
            workers,
            bulk,
            takes,
            named: BTreeMap::new(),
            image_rounds: BTreeMap::new(),
            replicas: BTreeMap::new(),
            opening: BTreeSet::new(),
            jobs: Slab::new(),
            ios: Slab::new(),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            pumps: VecDeque::new(),
            open_segments: 0,
            tick: 0,
            figures: PoolFigures::default(),
        })
    }

    /// Stops serving; the lock is free when the kernel has let go of it. Panics while anything is under way
    /// ([`FilePool::is_idle`]): its end would be lost.
    pub fn stop(self, driver: &mut impl Driver) -> io::Result<()> {
        assert!(self.is_idle(), "{self:?} stopped with work under way");
        driver.release_lock(&self.dir.lock)
    }

    /// True when no op, write-back or blocking call is under way and no event waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.jobs.len() == 0
            && self.ios.len() == 0
            && self.workers.pending() + self.bulk.pending() + self.takes.pending() == 0
            && self.events.is_empty()
    }

    /// True if a driver's completion with this token is for this pool.
    #[must_use]
    pub fn owns(&self, token: u64) -> bool {
        TokenSpace::of(token) == self.config.space
    }

    /// What the file system can do.
    #[must_use]
    pub fn probe(&self) -> Probe {
        self.dir.probe()
    }

    /// The directory: superblock as opened, length of the log, path.
    #[must_use]
    pub fn dir(&self) -> &PoolDir {
        &self.dir
    }

    /// Counts since the start.
    #[must_use]
    pub fn figures(&self) -> PoolFigures {
        let left = self.replicas.values().map(|replica| replica.rotten.0.len() as u64).sum();
        PoolFigures { bit_rot_left: left, refused_room: self.room.refused(), ..self.figures }
    }

    /// Are an open replica's blocks reserved?
    #[must_use]
    pub fn is_thick(&self, replica: ReplicaKey) -> bool {
        self.replicas.get(&replica).is_some_and(|replica| replica.thick)
    }

    /// Bytes of the file system that an open replica's head takes, its sidecars included; none while they are counted.
    #[must_use]
    pub fn used(&self, replica: ReplicaKey) -> Option<u64> {
        let replica = self.replicas.get(&replica)?;
        self.dir.store.used(&replica.home, used::of_replica(replica))
    }

    /// How full the file system is.
    #[must_use]
    pub fn fill(&self) -> Fill {
        self.room.fill()
    }

    /// Should [`PoolOp::Space`] be asked now rather than when it is due? Said once for each reason.
    pub fn take_wants_look(&mut self) -> bool {
        self.room.take_wants_look()
    }

    /// Segments open now.
    #[must_use]
    pub fn open_segments(&self) -> usize {
        self.open_segments
    }

    /// Starts an op. `token` is the caller's, told back in its event.
    pub fn submit(&mut self, token: u64, op: PoolOp) {
        let (replicas, trash, root) =
            (self.dir.replicas.clone(), self.dir.trash.clone(), self.dir.root.clone());
        let files = self.dir.files.clone();
        let store = self.dir.store.clone();
        match op {
            PoolOp::Disk { replica, op } => self.submit_disk(token, replica, op),
            PoolOp::OpenReplica { replica, size, unsealed } => {
                if self.replicas.contains_key(&replica) || !self.opening.insert(replica) {
                    return self.answer(token, Err(PoolError::Exists));
                }
                self.stored().run(move || {
                    let in_doubt =
                        |segment| unsealed.iter().any(|range| !doubtful(segment, range).is_empty());
                    let result = store.open(&files, &replicas, replica, size, &in_doubt).and_then(
                        |(home, segments)| {
                            let marks = [pool_dir::is_thick(&home.dir)?, pool_dir::is_shared(&home.dir)?];
                            Ok((home, segments, marks))
                        },
                    );
                    Called::ReplicaOpened { token, replica, size, unsealed, result }
                });
            }
            PoolOp::CloseReplica { replica } => self.close(token, replica, None),
            PoolOp::TrashReplica { replica, now_s } => {
                if self.replicas.contains_key(&replica) {
                    return self.close(token, replica, Some(now_s));
                }
                self.call(token, move || {
                    missing_is_no_replica(pool_dir::trash_replica(&files, &replicas, &trash, replica, now_s))
                });
            }
            PoolOp::CreateReplica { replica, meta_bytes, thick } => {
                let bytes = meta_bytes.saturating_mul(2).saturating_add(thick.map_or(0, reserved_bytes));
                if !self.room.reserve(Taker::Op(token), bytes.saturating_add(NAMES_ROOM)) {
                    return self.answer(token, Err(PoolError::NoSpace));
                }
                let make = move || {
                    store.create(&files, &replicas, replica, meta_bytes, thick)?;
                    Ok(PoolAnswer::Done)
                };
                match thick {
                    None => self.call_stored(token, make),
                    Some(_) => self.call_bulk(token, make),
                }
            }
            PoolOp::ListReplicas => {
                self.call(token, move || Ok(PoolAnswer::Replicas(pool_dir::list_replicas(&replicas)?)));
            }
            PoolOp::WriteLog { offset, data } => self.write_log(token, offset, data),
            PoolOp::ReadLog => {
                let dir = self.dir.read_wal_call();
                self.call(token, move || Ok(PoolAnswer::Bytes(dir()?)));
            }
            PoolOp::WriteCheckpoint { replica, slot, bytes } => self.call(token, move || {
                missing_is_no_replica(pool_dir::write_checkpoint(
                    &files,
                    &replicas,
                    replica,
                    slot.name(),
                    &bytes,
                ))
            }),
            PoolOp::ReadCheckpoint { replica, slot } => self.call(token, move || {
                match pool_dir::read_checkpoint(&files, &replicas, replica, slot.name()) {
                    Err(Errno(libc::ENOENT)) => Err(PoolError::NoReplica),
                    other => Ok(PoolAnswer::Bytes(other?)),
                }
            }),
            PoolOp::WriteSuperblock { content } => self.call(token, move || {
                pool_dir::replace_superblock(&files, &root, &content)?;
                Ok(PoolAnswer::Done)
            }),
            PoolOp::Space => {
                let (path, lock) = (self.dir.path.clone(), self.dir.lock.clone());
                self.room.look_begins(token);
                self.call_stored(token, move || {
                    let (free, total) = pool_dir::space(&path, &lock)?;
                    let (free, total) = store.space(free, total)?;
                    Ok(PoolAnswer::Space { free, total })
                });
            }
            PoolOp::ListTrash => {
                self.call(token, move || Ok(PoolAnswer::Trash(pool_dir::list_trash(&trash)?)))
            }
            PoolOp::RestoreTrash { name } => self.call(token, move || {
                missing_is_no_replica(pool_dir::restore_replica(&files, &replicas, &trash, &name))
            }),
            PoolOp::EmptyTrash { name } => {
                self.call_stored(token, move || {
                    missing_is_no_replica(store.empty_trash(&files, &trash, &name))
                });
            }
            PoolOp::TakeImage { replica, image, slot_bytes } => match self.dir.probe().ability {
                Ability::None(why) => self.answer(token, Err(PoolError::NoSnapshots(why))),
                ability => {
                    if !self.take_room(token, slot_bytes.saturating_mul(2)) {
                        return self.answer(token, Err(PoolError::NoSpace));
                    }
                    if ability == Ability::Thin && self.replicas.contains_key(&replica) {
                        return self.image_of_open(token, replica, image, Some(slot_bytes));
                    }
                    self.imaged.insert(replica);
                    self.call_stored(token, move || {
                        store.make_image(&files, &root, (replica, image), slot_bytes)?;
                        Ok(PoolAnswer::Done)
                    });
                }
            },
            PoolOp::TakeSnapshot { replica, image } => self.image_of_open(token, replica, image, None),
            PoolOp::ListImages => {
                self.call(token, move || Ok(PoolAnswer::Images(images::list(&files, &root)?)));
            }
            PoolOp::WriteImage { replica, image, slot, bytes } => self.call(token, move || {
                images::write_slot(&files, &root, replica, image, slot.image_name(), &bytes)?;
                Ok(PoolAnswer::Done)
            }),
            PoolOp::ReadImage { replica, image, slot } => self.call(token, move || {
                let name = slot.image_name();
                Ok(PoolAnswer::Bytes(images::read_slot(&files, &root, replica, image, name)?))
            }),
            PoolOp::Preserve { replica, image, offset, len } => {
                self.preserve(token, replica, image, offset, len);
            }
            PoolOp::Image { replica, image, heir, op } => self.call_bulk(token, move || {
                Ok(PoolAnswer::Disk(image::look(&*store, &root, replica, [Some(image), heir], op)?))
            }),
            PoolOp::HandDown { replica, image, heir, segment, blocks } => {
                // What is in that file now has come with another name.
                self.named.remove(&replica);
                self.call_bulk(token, move || {
                    let of = (image, heir);
                    let done = images::hand_down(&files, &root, replica, of, segment, &blocks);
                    done.map(|()| PoolAnswer::Done).map_err(|errno| lost(errno, segment))
                });
            }
            PoolOp::KeepHashes { replica, image, segment, bytes } => self.call_bulk(token, move || {
                images::keep(&files, &root, (replica, image, segment), &bytes)?;
                Ok(PoolAnswer::Done)
            }),
            PoolOp::KeptHashes { replica, image, segment } => self.call_bulk(token, move || {
                Ok(PoolAnswer::Disk(DiskDone::Kept(images::kept(&root, replica, image, segment)?)))
            }),
            PoolOp::EmptyImage { replica, image } => {
                self.named.remove(&replica);
                self.call_bulk(token, move || {
                    images::empty(&files, &root, replica, image)?;
                    Ok(PoolAnswer::Done)
                });
            }
            PoolOp::DropImage { replica, image } => {
                self.named.remove(&replica);
                self.call_bulk(token, move || {
                    store.drop_image(&files, &root, (replica, image))?;
                    Ok(PoolAnswer::Done)
                });
            }
            PoolOp::BeginClone { from, image, to, meta_bytes } => match self.dir.probe().ability {
                Ability::None(why) => self.answer(token, Err(PoolError::NoSnapshots(why))),
                Ability::Reflink | Ability::Thin => {
                    let bytes = meta_bytes.saturating_mul(2).saturating_add(NAMES_ROOM);
                    if !self.room.reserve(Taker::Op(token), bytes) {
                        return self.answer(token, Err(PoolError::NoSpace));
                    }
                    self.imaged.extend([from, to]);
                    self.call_bulk(token, move || {
                        let dirs = (&root, &replicas);
                        missing_is_no_replica(store.begin_clone(&files, dirs, (from, image, to), meta_bytes))
                    });
                }
            },
            PoolOp::CloneOut { from, place, to, offset, len } => {
                self.clone_out(token, (from, place), to, (offset, len));
            }
            PoolOp::PublishClone { replica, checkpoint } => self.call_bulk(token, move || {
                missing_is_no_replica(store.publish_clone(&files, &replicas, replica, &checkpoint))
            }),
            PoolOp::AbandonClone { replica } => self.call_bulk(token, move || {
                store.abandon_clone(&files, &replicas, replica)?;
                Ok(PoolAnswer::Done)
            }),
            PoolOp::BeginCopy { replica, image, slot_bytes } => {
                self.begin_copy(token, replica, image, slot_bytes)
            }
            PoolOp::FillCopy { replica, image, offset, extents } => {
                self.fill_copy(token, (replica, image), offset, extents);
            }
            PoolOp::SyncCopy { replica, image, segment } => self.call_bulk(token, move || {
                copies::sync(&files, &root, (replica, image, segment))?;
                Ok(PoolAnswer::Done)
            }),
            PoolOp::PublishCopy { replica, image, slot } => self.call_bulk(token, move || {
                copies::publish(&files, &root, (replica, image), &slot)?;
                Ok(PoolAnswer::Done)
            }),
            PoolOp::AbandonCopy { replica, image } => self.call_bulk(token, move || {
                copies::abandon(&files, &root, replica, image)?;
                Ok(PoolAnswer::Done)
            }),
            PoolOp::Cancel { target } => self.cancel(target),
        }
        self.settle();
    }

    /// A driver's op of this pool has ended.
    pub fn handle_completion(&mut self, completion: Completion) {
        let Completion { token, op, result } = completion;
        assert!(self.owns(token), "completion {token:#x} is not for {:?}", self.config.space);
        let key = TokenSpace::key(token);
        let result = match (op, result) {
            (Op::WriteAt { file, offset, bufs, durable }, Ok(Outcome::Bytes(done))) => {
                match rest_of(&bufs, done) {
                    None => Ok((done, None)),
                    // A full file system takes a part; what it says to the rest tells.
                    Some(rest) if done >= BLOCK_LEN => {
                        let offset = offset + (done - done % BLOCK_LEN) as u64;
                        self.outbox.push_back((token, Op::WriteAt { file, offset, bufs: rest, durable }));
                        return;
                    }
                    Some(_) => Err(Errno(libc::ENOSPC)),
                }
            }
            (Op::ReadAt { buf, .. }, Ok(Outcome::Bytes(done))) => {
                // Segments have their full length: a short read means that somebody cut the file.
                if done == buf.len() { Ok((done, Some(buf))) } else { Err(Errno(libc::EIO)) }
            }
            (_, Ok(_)) => Ok((0, None)),
            (_, Err(errno)) => Err(errno),
        };
        let Some(io) = self.ios.remove(key) else { return };
        match io {
            Io::Log(token) => self.answer(token, result.map(|_| PoolAnswer::Done).map_err(PoolError::from)),
            Io::Write(replica, piece, until) => self.on_written(replica, piece, until, result.map(|_| ())),
            Io::Look(replica, piece, first) => {
                let result = result.map(|(_, buf)| buf.expect("a read gives its buffer back"));
                self.on_looked(replica, piece, first, result);
            }
            Io::DataSync(replica, segment) => self.on_data_synced(replica, segment, result.map(|_| ())),
            Io::SidePages(replica, segment) => self.on_side_written(replica, segment, result.map(|_| ())),
            Io::SideSync(replica, segment) => self.on_side_synced(replica, segment, result.map(|_| ())),
        }
        self.settle();
    }

    /// Takes the results of blocking calls and gives the driver what the pool wants from it. To be called after
    /// each [`Driver::wait`] and after submitting ops.
    pub fn drive(&mut self, driver: &mut impl Driver) {
        self.handle_calls();
        while let Some((token, op)) = self.poll_op() {
            driver.submit(token, op);
        }
    }

    /// Takes the results of blocking calls ([`FilePool::drive`] does).
    pub fn handle_calls(&mut self) {
        while let Some(called) =
            self.takes.poll().or_else(|| self.workers.poll()).or_else(|| self.bulk.poll())
        {
            match called {
                Called::Answer(token, result) => {
                    // Of an image, which nobody writes: it is counted whenever it is met.
                    self.figures.bit_rot += u64::from(matches!(result, Err(PoolError::BitRot { .. })));
                    match &result {
                        Ok(PoolAnswer::Space { free, total }) => {
                            self.room.looked(token, Some((*free, *total)));
                        }
                        Ok(PoolAnswer::Images(images)) => {
                            self.imaged.extend(images.iter().map(|(replica, _)| *replica));
                        }
                        Err(PoolError::NoSpace) => self.room.met_the_end(),
                        Err(_) => self.room.looked(token, None),
                        Ok(_) => {}
                    }
                    self.answer(token, result);
                }
                Called::ReplicaOpened { token, replica, size, unsealed, result } => {
                    self.on_replica_opened(token, replica, size, &unsealed, result);
                }
                Called::SegmentOpened(replica, segment, result, used) => {
                    self.on_segment_opened(replica, segment, result, used)
                }
                Called::Counted(replica, dir, found) => {
                    // It may have been closed and opened again meanwhile: then another count is under way.
                    let same = |replica: &&mut Replica| Arc::ptr_eq(&replica.home.dir, &dir);
                    if let Some(replica) = self.replicas.get_mut(&replica).filter(same) {
                        replica.used.counted(found);
                    }
                }
                Called::Reserved(job, replica, result) => self.on_reserved(job, replica, result),
                Called::HoleMade(replica, piece, result) => self.on_hole_made(replica, piece, result),
                Called::Preserved(replica, piece, held, result) => {
                    self.on_preserved(replica, piece, held, result);
                }
                Called::SharedOut(replica, piece, result) => self.on_shared_out(replica, piece, result),
                Called::Filled(replica, piece, held, result) => self.on_filled(replica, piece, held, result),
                Called::ImageSynced(place, named, result) => self.on_image_synced(place, named, result),
                Called::Extended(job, result) | Called::Imaged(job, result) => {
                    self.tell(job, result.map_err(PoolError::from));
                }
            }
            self.settle();
        }
    }

    /// The next op for the driver ([`FilePool::drive`] takes them all).
    pub fn poll_op(&mut self) -> Option<(u64, Op)> {
        self.outbox.pop_front()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<PoolEvent> {
        self.events.pop_front()
    }

    fn answer(&mut self, token: u64, result: Result<PoolAnswer, PoolError>) {
        self.room.end(Taker::Op(token));
        self.events.push_back(PoolEvent::Done { token, result });
    }

    /// May an op take so much, and some names?
    fn take_room(&mut self, token: u64, bytes: u64) -> bool {
        self.room.take(Taker::Op(token), bytes.saturating_add(NAMES_ROOM))
    }

    fn call(&mut self, token: u64, job: impl FnOnce() -> Result<PoolAnswer, PoolError> + Send + 'static) {
        self.workers.run(move || Called::Answer(token, job()));
    }

    /// Who makes the store's longer calls.
    fn stored(&mut self) -> &mut Workers<Called> {
        if self.dir.store.is_slow() { &mut self.bulk } else { &mut self.workers }
    }

    fn call_stored(
        &mut self,
        token: u64,
        job: impl FnOnce() -> Result<PoolAnswer, PoolError> + Send + 'static,
    ) {
        self.stored().run(move || Called::Answer(token, job()));
    }

    fn call_bulk(
        &mut self,
        token: u64,
        job: impl FnOnce() -> Result<PoolAnswer, PoolError> + Send + 'static,
    ) {
        self.bulk.run(move || Called::Answer(token, job()));
    }

    fn io(&mut self, io: Io, op: Op) {
        let key = self.ios.insert(io);
        self.outbox.push_back((self.config.space.token(key), op));
    }

    fn write_log(&mut self, token: u64, offset: u64, data: IoBuf) {
        let len = data.len() as u64;
        if !whole_blocks(offset, len) || offset.checked_add(len).is_none_or(|end| end > self.dir.wal_bytes())
        {
            return self.answer(token, Err(PoolError::OutOfBounds));
        }
        let op =
            Op::WriteAt { file: self.dir.wal.clone(), offset, bufs: vec![aligned(data).0], durable: true };
        self.io(Io::Log(token), op);
    }

    fn on_replica_opened(
        &mut self,
        token: u64,
        key: ReplicaKey,
        size: u64,
        unsealed: &[Range<u64>],
        result: Listed,
    ) {
        self.opening.remove(&key);
        let (home, segments, [thick, shared]) = match result {
            Ok(opened) => opened,
            Err(Errno(libc::ENOENT)) => return self.answer(token, Err(PoolError::NoReplica)),
            Err(errno) => return self.answer(token, Err(errno.into())),
        };
        if shared {
            self.imaged.insert(key);
        }
        let mut doubt = Doubt::default();
        for segment in &segments {
            for blocks in unsealed.iter().map(|range| doubtful(*segment, range)).filter(|r| !r.is_empty()) {
                doubt.add(*segment, blocks.start, blocks.end);
            }
        }
        let replica = Replica {
            home,
            blocks: size.div_ceil(BLOCK),
            exists: segments.into_iter().collect(),
            thick,
            doubt,
            segments: BTreeMap::new(),
            used: used::Closed::default(),
            own: own::Own::default(),
            rotten: Rotten::default(),
            jobs: 0,
            closing: None,
            failed: false,
        };
        let (dir, segments) = (replica.home.dir.clone(), replica.exists.iter().copied().collect::<Vec<_>>());
        self.replicas.insert(key, replica);
        self.bulk.run(move || {
            let found = used::count(&dir, &segments);
            Called::Counted(key, dir, found)
        });
        self.answer(token, Ok(PoolAnswer::Done));
    }

    fn submit_disk(&mut self, token: u64, key: ReplicaKey, op: DiskOp<IoBuf>) {
        let Some(replica) = self.replicas.get(&key).filter(|r| r.closing.is_none()) else {
            return self.answer(token, Err(PoolError::NoReplica));
        };
        if replica.failed {
            return self.answer(token, Err(PoolError::ReplicaFailed));
        }
        let whole = |offset: u64, len: u64| {
            let range = offset / BLOCK..offset.saturating_add(len) / BLOCK;
            (whole_blocks(offset, len) && range.end <= replica.blocks).then_some(range)
        };
        let (range, work) = match op {
            DiskOp::Write { offset, crcs, data, durable } => {
                let len = data.len() as u64;
                let range = whole(offset, len).filter(|_| crcs.len() as u64 == len / BLOCK);
                (range, Work::Write { first: offset / BLOCK, data, crcs, durable })
            }
            DiskOp::Zero { offset, len, kind, keep_space } => {
                (whole(offset, len), Work::Zero { hole: kind, keep_space: keep_space || replica.thick })
            }
            DiskOp::Read { offset, len } => (whole(offset, len), Work::Read),
            DiskOp::Kinds { offset, len } => (whole(offset, len), Work::Kinds),
            DiskOp::Hash { offset, len, key } => (whole(offset, len), Work::Hash { key }),
            DiskOp::Flush => (Some(0..0), Work::Flush { asked: false }),
            DiskOp::Seal => (Some(0..0), Work::Seal { asked: false }),
            DiskOp::Grow { from, to } => {
                let (from, blocks) = (from / BLOCK, to.div_ceil(BLOCK));
                let range = from.min(blocks)..blocks;
                let reserve = replica.thick.then_some(range.start * BLOCK..range.end * BLOCK);
                (Some(range), Work::Grow { blocks, reserve: reserve.filter(|r| !r.is_empty()), asked: false })
            }
            DiskOp::Cut { from, to } => {
                let work = Work::Zero { hole: Hole::Absent, keep_space: false };
                (whole(from, to.saturating_sub(from)), work)
            }
        };
        let Some(range) = range else { return self.answer(token, Err(PoolError::OutOfBounds)) };
        if let Work::Grow { reserve: Some(reserve), .. } = &work
            && !self.room.reserve(Taker::Op(token), reserved_bytes(reserve.end - reserve.start))
        {
            return self.answer(token, Err(PoolError::NoSpace));
        }
        let segments =
            |blocks: &Range<u64>| segment_of(blocks.start)..=segment_of(blocks.end.saturating_sub(1));
        let feed = match &work {
            Work::Seal { .. } => {
                replica.doubt.runs().into_iter().map(|(s, lo, hi)| at(s, lo)..at(s, hi)).collect()
            }
            // What has no file is absent already: only segments that exist have to be touched.
            Work::Zero { hole: Hole::Absent, .. } | Work::Grow { .. } if range.start < range.end => replica
                .exists
                .range(segments(&range))
                .map(|s| at(*s, 0).max(range.start)..at(*s, SEGMENT_BLOCKS).min(range.end))
                .collect(),
            _ => VecDeque::from_iter((range.start < range.end).then_some(range)),
        };
        let mut job =
            Job { token, replica: key, work, feed, pending: 0, error: None, found: BTreeMap::new() };
        let Work::Grow { blocks, .. } = job.work else { return self.begin(job) };
        job.pending = 1;
        let (store, home) = (self.dir.store.clone(), replica.home.clone());
        self.begin(job);
        let id = *self.pumps.back().expect("just started");
        self.stored().run(move || Called::Extended(id, store.extend(&home, blocks * BLOCK)));
    }

    /// Room is made for an image of an open replica, or it is taken; what is known of each block is on the disk first.
    fn image_of_open(&mut self, token: u64, key: ReplicaKey, image: SnapId, slot_bytes: Option<u64>) {
        let Some(replica) = self.replicas.get(&key).filter(|r| r.closing.is_none()) else {
            return self.answer(token, Err(PoolError::NoReplica));
        };
        if replica.failed {
            return self.answer(token, Err(PoolError::ReplicaFailed));
        }
        let feed = replica.doubt.runs().into_iter().map(|(s, lo, hi)| at(s, lo)..at(s, hi)).collect();
        if slot_bytes.is_none() && !self.take_room(token, 0) {
            return self.answer(token, Err(PoolError::NoSpace));
        }
        let work = Work::Image { image, slot_bytes, step: Step::Looking };
        self.begin(Job { token, replica: key, work, feed, pending: 0, error: None, found: BTreeMap::new() });
        self.settle();
    }

    /// All entries of a replica are on the disk.
    fn call_image(&mut self, id: u64, key: ReplicaKey, image: SnapId, slot_bytes: Option<u64>) {
        let Some(replica) = self.replicas.get_mut(&key) else { return };
        let (files, root, store) = (self.dir.files.clone(), self.dir.root.clone(), self.dir.store.clone());
        if let Some(slot_bytes) = slot_bytes {
            return self
                .bulk
                .run(move || Called::Imaged(id, store.make_image(&files, &root, (key, image), slot_bytes)));
        }
        // Also where it fails: it may have been taken.
        replica.own.forget();
        let (home, segments) = (replica.home.clone(), replica.exists.clone());
        self.imaged.insert(key);
        self.takes
            .run(move || Called::Imaged(id, store.take_image(&files, &root, &home, (key, image), &segments)));
    }

    fn preserve(&mut self, token: u64, key: ReplicaKey, image: SnapId, offset: u64, len: u64) {
        let Some(replica) = self.replicas.get(&key).filter(|r| r.closing.is_none()) else {
            return self.answer(token, Err(PoolError::NoReplica));
        };
        if replica.failed {
            return self.answer(token, Err(PoolError::ReplicaFailed));
        }
        let range = offset / BLOCK..offset.saturating_add(len) / BLOCK;
        if !whole_blocks(offset, len) || range.end > replica.blocks {
            return self.answer(token, Err(PoolError::OutOfBounds));
        }
        // Its entries; the blocks themselves are shared, until the head's are written.
        if !self.take_room(token, len / BLOCK * 8) {
            return self.answer(token, Err(PoolError::NoSpace));
        }
        self.imaged.insert(key);
        self.begin(Job {
            token,
            replica: key,
            work: Work::Preserve { image, segments: BTreeSet::new(), asked: false },
            feed: VecDeque::from([range]),
            pending: 0,
            error: None,
            found: BTreeMap::new(),
        });
    }

    fn clone_out(
        &mut self,
        token: u64,
        (key, place): (ReplicaKey, Place),
        to: ReplicaKey,
        (offset, len): (u64, u64),
    ) {
        let range = offset / BLOCK..offset.saturating_add(len) / BLOCK;
        if !whole_blocks(offset, len)
            || offset.saturating_add(len) > 1 << 46
            || segment_of(range.start) != segment_of(range.end - 1)
        {
            return self.answer(token, Err(PoolError::OutOfBounds));
        }
        let segment = segment_of(range.start);
        let within = |block: u64| u32::try_from(block - at(segment, 0)).expect("within a segment");
        let blocks = within(range.start)..within(range.end);
        if place != Place::Absent && !self.room.reserve(Taker::Op(token), SEGMENT_ROOM) {
            return self.answer(token, Err(PoolError::NoSpace));
        }
        let (image, heir) = match place {
            Place::Absent => return self.answer(token, Ok(PoolAnswer::Disk(DiskDone::Shared(len)))),
            Place::Image { .. } if self.dir.store.clones_begin_whole() => {
                return self.answer(token, Ok(PoolAnswer::Disk(DiskDone::Shared(len))));
            }
            Place::Head => return self.clone_head_out(token, key, to, range),
            Place::Image { image, heir } => (image, heir),
        };
        let (root, replicas) = (self.dir.root.clone(), self.dir.replicas.clone());
        let files = self.dir.files.clone();
        self.call_bulk(token, move || {
            let of = (key, [Some(image), heir]);
            match clones::from_image(&files, (&root, &replicas), of, (to, segment), blocks)? {
                true => Ok(PoolAnswer::Disk(DiskDone::Shared(len))),
                false => Err(PoolError::ImageDamaged { offset }),
            }
        });
    }

    fn clone_head_out(&mut self, token: u64, key: ReplicaKey, to: ReplicaKey, mut range: Range<u64>) {
        let Some(replica) = self.replicas.get(&key).filter(|r| r.closing.is_none()) else {
            return self.answer(token, Err(PoolError::NoReplica));
        };
        if replica.failed {
            return self.answer(token, Err(PoolError::ReplicaFailed));
        }
        if range.end > replica.blocks {
            return self.answer(token, Err(PoolError::OutOfBounds));
        }
        let segment = segment_of(range.start);
        let within = |block: u64| u32::try_from(block - at(segment, 0)).expect("within a segment");
        let mut blocks = within(range.start)..within(range.end);
        if blocks.any(|block| replica.doubt.contains(segment, block)) {
            // What is in doubt is read, by which nobody's write should be held up for long.
            range.end = range.end.min(range.start + u64::from(clones::STEP));
        }
        let shared = (range.end - range.start) * BLOCK;
        let looks = (within(range.end) - within(range.start)).min(clones::STEP);
        self.begin(Job {
            token,
            replica: key,
            work: Work::CloneOut { to, looks, shared },
            feed: VecDeque::from([range]),
            pending: 0,
            error: None,
            found: BTreeMap::new(),
        });
    }

    fn begin(&mut self, job: Job) {
        if let Some(replica) = self.replicas.get_mut(&job.replica) {
            replica.jobs += 1;
        }
        let id = self.jobs.insert(job);
        self.pumps.push_back(id);
    }

    fn close(&mut self, token: u64, key: ReplicaKey, trash: Option<u64>) {
        let work = Work::Close { trash, asked: false };
        let job = Job {
            token,
            replica: key,
            work,
            feed: VecDeque::new(),
            pending: 0,
            error: None,
            found: BTreeMap::new(),
        };
        match self.replicas.get(&key).map(|replica| replica.closing) {
            Some(None) => self.begin(job),
            _ => return self.answer(token, Err(PoolError::NoReplica)),
        }
        let id = *self.pumps.back().expect("just started");
        self.replicas.get_mut(&key).expect("looked at above").closing = Some(id);
        self.settle();
    }

    fn cancel(&mut self, target: u64) {
        let found =
            self.jobs.iter().find(|(_, job)| job.token == target && job.work.can_stop()).map(|(id, _)| id);
        let Some((id, job)) = found.and_then(|id| self.jobs.get_mut(id).map(|job| (id, job))) else { return };
        if !job.feed.is_empty() {
            job.feed.clear();
            job.error.get_or_insert(PoolError::Cancelled);
            self.pumps.push_back(id);
        }
    }

    /// Looks at jobs until none has anything to do, then closes segments that are too many.
    fn settle(&mut self) {
        while let Some(id) = self.pumps.pop_front() {
            self.pump(id);
        }
        if self.open_segments > self.config.open_segments {
            self.trim();
        }
    }

    /// Starts the next pieces of a job, or ends it.
    fn pump(&mut self, id: u64) {
        loop {
            let Some(job) = self.jobs.get_mut(id) else { return };
            let (max, window) = job.work.pieces();
            if job.error.is_some() {
                job.feed.clear();
            }
            if job.pending >= window {
                return;
            }
            let Some(range) = job.feed.pop_front() else { break };
            let segment = segment_of(range.start);
            let end = range.end.min(at(segment, SEGMENT_BLOCKS)).min(range.start + u64::from(max));
            if end < range.end {
                job.feed.push_front(end..range.end);
            }
            let lo = u32::try_from(range.start - at(segment, 0)).expect("within a segment");
            let hi = u32::try_from(end - at(segment, 0)).expect("within a segment");
            let piece = Piece { job: id, segment, lo, hi, exclusive: job.work.writes() };
            job.pending += 1;
            let key = job.replica;
            if let Some(result) = self.start_piece(key, piece) {
                self.record(&piece, result);
            }
        }
        if self.jobs.get_mut(id).is_some_and(|job| job.pending == 0) {
            self.advance(id);
        }
    }

    /// Enters a piece's outcome into its job.
    fn record(&mut self, piece: &Piece, result: Result<Found, PoolError>) {
        self.room.end(Taker::Piece(piece.job, at(piece.segment, piece.lo)));
        let Some(job) = self.jobs.get_mut(piece.job) else { return };
        job.pending -= 1;
        match result {
            Ok(Found::Nothing) => {}
            Ok(found) => {
                job.found.insert(at(piece.segment, piece.lo), found);
            }
            Err(error) => {
                if error == PoolError::NoSpace {
                    self.room.met_the_end();
                }
                job.error.get_or_insert(error);
            }
        }
    }

    /// All pieces of a job's present stage have ended.
    fn advance(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let key = job.replica;
        let closes = matches!(job.work, Work::Close { .. });
        if !closes && self.replicas.get(&key).is_some_and(|replica| replica.failed) {
            job.error.get_or_insert(PoolError::ReplicaFailed);
        }
        let failed = job.error.is_some();
        let (data, side) = match &mut job.work {
            Work::Grow { reserve, .. } if !failed && reserve.is_some() => {
                let Some(range) = reserve.take() else { return };
                let Some(replica) = self.replicas.get(&key) else { return };
                let (files, dir) = (self.dir.files.clone(), replica.home.dir.clone());
                job.pending += 1;
                return self.bulk.run(move || Called::Reserved(id, key, used::reserve(&files, &dir, range)));
            }
            Work::Flush { asked } if !failed && !*asked => {
                *asked = true;
                (true, false)
            }
            Work::Seal { asked } | Work::Grow { asked, .. } if !failed && !*asked => {
                *asked = true;
                (true, true)
            }
            Work::Image { step: step @ Step::Looking, .. } if !failed => {
                *step = Step::Writing;
                (true, true)
            }
            Work::Image { image, slot_bytes, step: step @ Step::Writing } if !failed => {
                *step = Step::Calling;
                job.pending += 1;
                let (image, slot_bytes) = (*image, *slot_bytes);
                return self.call_image(id, key, image, slot_bytes);
            }
            Work::Close { trash, asked } => {
                let Some(replica) = self.replicas.get(&key) else { return };
                if replica.jobs > 1 || !replica.segments.values().all(Segment::is_idle) {
                    return; // looked at again when one of them ends
                }
                if trash.is_some() || replica.failed || core::mem::replace(asked, true) {
                    return self.finish_close(id);
                }
                (true, true)
            }
            Work::Preserve { image, segments, asked } if !failed && !*asked => {
                *asked = true;
                let (image, segments) = (*image, core::mem::take(segments));
                job.pending += segments.len();
                return self.sync_image(id, key, image, &segments);
            }
            _ => return self.finish(id),
        };
        let replica = self.replicas.get(&key).expect("a job's replica is open");
        let open: Vec<u32> = replica.segments.keys().copied().collect();
        let mut asked = 0;
        for number in open {
            asked += usize::from(data && self.ask_data_sync(key, number, Waiter::Job(id), false));
            asked += usize::from(side && self.ask_side_sync(key, number, Waiter::Job(id)));
        }
        if let Some(job) = self.jobs.get_mut(id) {
            job.pending += asked;
        }
        if asked == 0 {
            self.pumps.push_back(id);
        }
    }

    fn finish(&mut self, id: u64) {
        let Some(job) = self.jobs.remove(id) else { return };
        let result = match job.error {
            Some(error) => Err(error),
            None if matches!(job.work, Work::Image { slot_bytes: Some(_), .. }) => Ok(PoolAnswer::Done),
            None => Ok(PoolAnswer::Disk(match &job.work {
                Work::Read => DiskDone::Data(join_extents(job.found.into_values())),
                Work::Kinds => DiskDone::Kinds(join_kinds(job.found.into_values())),
                Work::Hash { .. } => DiskDone::Hashes(
                    job.found
                        .into_values()
                        .flat_map(|f| if let Found::Hashes(h) = f { h } else { Vec::new() })
                        .collect(),
                ),
                Work::CloneOut { shared, .. } | Work::Fill { shared, .. } => DiskDone::Shared(*shared),
                _ => DiskDone::Done,
            })),
        };
        if let Some(replica) = self.replicas.get_mut(&job.replica) {
            if let (Work::Grow { blocks, .. }, Ok(_)) = (&job.work, &result) {
                replica.blocks = replica.blocks.max(*blocks);
            }
            replica.jobs -= 1;
            self.pumps.extend(replica.closing);
        }
        self.answer(job.token, result);
    }

    fn finish_close(&mut self, id: u64) {
        let Some(job) = self.jobs.remove(id) else { return };
        let Some(replica) = self.replicas.remove(&job.replica) else { return };
        self.open_segments -= replica.segments.len();
        let (key, token, error) = (job.replica, job.token, job.error);
        let (replicas, trash) = (self.dir.replicas.clone(), self.dir.trash.clone());
        let files = self.dir.files.clone();
        let Work::Close { trash: now_s, .. } = job.work else { unreachable!("only a Close closes") };
        self.call(token, move || {
            drop(replica);
            if let Some(error) = error {
                return Err(error);
            }
            match now_s {
                Some(now_s) => {
                    missing_is_no_replica(pool_dir::trash_replica(&files, &replicas, &trash, key, now_s))
                }
                None => Ok(PoolAnswer::Done),
            }
        });
    }

    /// Starts a piece; an outcome if it has already ended.
    fn start_piece(&mut self, key: ReplicaKey, piece: Piece) -> Option<Result<Found, PoolError>> {
        let job = self.jobs.get_mut(piece.job).expect("a piece's job is under way");
        let creates = job.work.creates();
        let replica = self.replicas.get_mut(&key).expect("a job's replica is open");
        if replica.failed {
            return Some(Err(PoolError::ReplicaFailed));
        }
        self.tick += 1;
        if !replica.segments.contains_key(&piece.segment) {
            if !creates && !replica.exists.contains(&piece.segment) {
                match job.work {
                    Work::Preserve { .. } => self.put_into_image(key, piece, None),
                    Work::Fill { .. } => self.put_into_copy(key, piece, None),
                    _ => return Some(Ok(nothing_there(&job.work, piece.hi - piece.lo))),
                }
                return None;
            }
            if !replica.exists.contains(&piece.segment)
                && !self.room.take(Taker::Segment(key, piece.segment), SEGMENT_ROOM)
            {
                return Some(Err(PoolError::NoSpace));
            }
            replica.segments.insert(piece.segment, Segment::default());
            self.open_segments += 1;
            self.figures.segments_opened += 1;
            let (home, number, direct) = (replica.home.clone(), piece.segment, self.dir.probe().direct);
            let (files, store) = (self.dir.files.clone(), self.dir.store.clone());
            self.workers.run(move || {
                let used = used::of_names(&home.dir, number);
                let result = store.segment(&files, &home, number, direct);
                Called::SegmentOpened(key, number, result, used)
            });
        }
        let segment = replica.segments.get_mut(&piece.segment).expect("there by now");
        segment.used = self.tick;
        if !segment.enter(piece) {
            return None;
        }
        let result = self.run_piece(key, piece)?;
        self.segment(key, piece.segment).leave(&piece);
        Some(result)
    }

    /// Does a piece that holds its blocks; an outcome if that took no I/O.
    fn run_piece(&mut self, key: ReplicaKey, piece: Piece) -> Option<Result<Found, PoolError>> {
        let job = self.jobs.get_mut(piece.job).expect("a piece's job is under way");
        let replica = self.replicas.get_mut(&key).expect("a job's replica is open");
        if replica.failed {
            return Some(Err(PoolError::ReplicaFailed));
        }
        let segment = replica.segments.get_mut(&piece.segment).expect("a running piece's segment is open");
        let place = segment.files.as_ref().expect("a running piece's segment is open").0.clone();
        let (file, offset) = (place.file.clone(), u64::from(piece.lo) * BLOCK);
        let on_disk = place.base + offset;
        let shared = self.imaged.contains(&key);
        let grain = u32::try_from(self.dir.store.grain() / BLOCK).expect("a few blocks");
        // Chunks of a volume are its own or a snapshot's, too; its sidecar's have to be its own before it is written.
        let chunked = shared && grain > 1;
        let unshares = chunked && job.work.writes() && !replica.own.has_sidecar(piece.segment);
        let reserved = replica.thick && !shared && self.dir.probe().file_system.keeps_blocks();
        let mut needs = if job.work.allocates() && !reserved {
            let has_space = |block: u32| {
                let known = matches!(segment.sidecar.get(block), Entry::Data(_));
                known && !replica.doubt.contains(piece.segment, block)
            };
            let is_own = |chunk: u32| !shared || chunked && replica.own.has(piece.segment, chunk * grain);
            let needs = |chunk: &u32| !is_own(*chunk) || !(chunk * grain..(chunk + 1) * grain).any(has_space);
            let chunks = piece.lo / grain..piece.hi.div_ceil(grain);
            chunks.filter(needs).count() as u64 * u64::from(grain) * BLOCK
        } else if chunked && job.work.writes() {
            // The edges of a hole that are no whole chunks are written.
            let edges = [(piece.lo, piece.lo / grain), (piece.hi, (piece.hi - 1) / grain)];
            let is_edge =
                |(at, chunk): &(u32, u32)| at % grain != 0 && !replica.own.has(piece.segment, chunk * grain);
            edges.iter().filter(|edge| is_edge(edge)).count() as u64 * u64::from(grain) * BLOCK
        } else {
            0
        };
        if unshares {
            needs = SIDECAR_BYTES as u64 + self.dir.store.metadata_cost();
        } else if chunked && job.work.writes() {
            needs += replica.own.new_maps(piece.segment, piece.lo..piece.hi) * self.dir.store.metadata_cost();
        }
        if !self.room.take(Taker::Piece(piece.job, at(piece.segment, piece.lo)), needs) {
            return Some(Err(PoolError::NoSpace));
        }
        if unshares {
            segment.sidecar.touch(self.dir.store.grain());
            let asked = self.ask_side_sync(key, piece.segment, Waiter::Piece(piece));
            return (!asked).then_some(Err(PoolError::ReplicaFailed));
        }
        match &job.work {
            Work::Write { first, data, durable, .. } => {
                let start =
                    usize::try_from((at(piece.segment, piece.lo) - first) * BLOCK).expect("within the data");
                let (buf, copied) = aligned(data.slice(start, (piece.hi - piece.lo) as usize * BLOCK_LEN));
                // Where blocks may be shared each write of its own would wait for the file system's log.
                let until = match (*durable, shared && !chunked) {
                    (false, _) => Until::Written,
                    (true, false) => Until::Durable,
                    (true, true) => Until::Flushed,
                };
                let durable = until == Until::Durable;
                self.figures.unaligned_writes += u64::from(copied);
                self.io(
                    Io::Write(key, piece, until),
                    Op::WriteAt { file, offset: on_disk, bufs: vec![buf], durable },
                );
                None
            }
            Work::Zero { .. } | Work::Grow { .. } => {
                let keep_space = matches!(job.work, Work::Zero { keep_space: true, .. });
                let len = u64::from(piece.hi - piece.lo) * BLOCK;
                let (files, store) = (self.dir.files.clone(), self.dir.store.clone());
                self.workers.run(move || {
                    Called::HoleMade(key, piece, store.zero(&files, &place, offset, len, keep_space))
                });
                None
            }
            work => {
                // Which blocks' data has to be looked at?
                let mut span: Option<(u32, u32)> = None;
                for block in piece.lo..piece.hi {
                    let doubted = replica.doubt.contains(piece.segment, block);
                    let entry = segment.sidecar.get(block);
                    let wanted = match work {
                        Work::Read | Work::Hash { .. } => {
                            if entry == Entry::Damaged && !doubted {
                                let block = at(piece.segment, block);
                                self.figures.bit_rot += u64::from(replica.rotten.is_news(block));
                                return Some(Err(PoolError::BitRot { offset: block * BLOCK }));
                            }
                            doubted || matches!(entry, Entry::Data(_))
                        }
                        Work::Kinds => doubted && !matches!(entry, Entry::Data(_)),
                        Work::Fill { arrived, .. } => {
                            let asked = arrived.entry(at(piece.segment, block));
                            !doubted && matches!(entry, Entry::Data(_)) && asked == Some(entry)
                        }
                        _ => doubted,
                    };
                    if wanted {
                        span = Some((span.map_or(block, |(lo, _)| lo), block + 1));
                    }
                }
                let Some((lo, hi)) = span else {
                    match work {
                        Work::Preserve { .. } => self.put_into_image(key, piece, Some(file)),
                        Work::CloneOut { .. } => self.share_out(key, piece),
                        Work::Fill { .. } => self.put_into_copy(key, piece, Some(file)),
                        _ => return Some(conclude(work, piece, None, &segment.sidecar)),
                    }
                    return None;
                };
                let hi = if let Work::CloneOut { looks, .. } = work { hi.min(lo + looks) } else { hi };
                let buf = IoBuf::scratch((hi - lo) as usize * BLOCK_LEN);
                let offset = place.base + u64::from(lo) * BLOCK;
                self.io(Io::Look(key, piece, lo), Op::ReadAt { file, offset, buf });
                None
            }
        }
    }

    /// A piece has ended: enters its outcome and starts those that waited for it.
    fn end_piece(&mut self, key: ReplicaKey, piece: Piece, result: Result<Found, PoolError>) {
        self.segment(key, piece.segment).leave(&piece);
        self.record(&piece, result);
        self.pumps.push_back(piece.job);
        self.start_waiting(key, piece.segment);
    }

    fn start_waiting(&mut self, key: ReplicaKey, number: u32) {
        while let Some(piece) = self.segment(key, number).next_startable() {
            if let Some(result) = self.run_piece(key, piece) {
                self.segment(key, number).leave(&piece);
                self.record(&piece, result);
                self.pumps.push_back(piece.job);
            }
        }
        self.pumps.extend(self.replicas.get(&key).and_then(|replica| replica.closing));
    }

    fn segment(&mut self, key: ReplicaKey, number: u32) -> &mut Segment {
        let replica = self.replicas.get_mut(&key).expect("a replica with I/O under way is open");
        replica.segments.get_mut(&number).expect("a segment with I/O under way is open")
    }

    fn on_segment_opened(
        &mut self,
        key: ReplicaKey,
        number: u32,
        result: Result<SegmentFiles, SegmentError>,
        used: u64,
    ) {
        self.room.end(Taker::Segment(key, number));
        let replica = self.replicas.get_mut(&key).expect("a replica with calls under way is open");
        match result {
            Ok(files) => {
                replica.exists.insert(number);
                let segment = replica.segments.get_mut(&number).expect("it was being opened");
                segment.sidecar = files.sidecar;
                segment.files = Some((files.data, files.side));
                replica.used.opened(number, used);
                self.start_waiting(key, number);
            }
            Err(error) => {
                let segment = replica.segments.remove(&number).expect("it was being opened");
                let existed = replica.exists.contains(&number);
                self.open_segments -= 1;
                let error = match error {
                    SegmentError::Errno(errno) => PoolError::from(errno),
                    SegmentError::Damaged => PoolError::Damaged { segment: number },
                };
                for piece in segment.give_up() {
                    let job = self.jobs.get_mut(piece.job).expect("a piece's job is under way");
                    if !existed && matches!(job.work, Work::Preserve { .. }) {
                        self.put_into_image(key, piece, None);
                        continue;
                    }
                    if matches!(job.work, Work::Fill { .. }) {
                        self.put_into_copy(key, piece, None);
                        continue;
                    }
                    // A file that could not be made for a write is no error to those who only look.
                    let result = if existed || job.work.creates() {
                        Err(error.clone())
                    } else {
                        Ok(nothing_there(&job.work, piece.hi - piece.lo))
                    };
                    self.record(&piece, result);
                    self.pumps.push_back(piece.job);
                }
                self.pumps.extend(self.replicas.get(&key).and_then(|replica| replica.closing));
            }
        }
    }

    fn on_written(&mut self, key: ReplicaKey, piece: Piece, until: Until, result: Result<(), Errno>) {
        let replica = self.replicas.get_mut(&key).expect("a replica with I/O under way is open");
        let segment = replica.segments.get_mut(&piece.segment).expect("a segment with I/O under way is open");
        match result {
            Ok(()) if until == Until::Flushed => {
                if !self.ask_data_sync(key, piece.segment, Waiter::Piece(piece), true) {
                    self.end_piece(key, piece, Err(PoolError::ReplicaFailed));
                }
                return;
            }
            Ok(()) => {
                segment.unsynced |= until == Until::Written;
                self.enter_written(key, piece);
            }
            // Old, new or torn: whatever is there now is what it is.
            Err(_) => replica.doubt.add(piece.segment, piece.lo, piece.hi),
        }
        self.end_piece(key, piece, result.map(|()| Found::Nothing).map_err(PoolError::from));
    }

    /// What was written is known from now on.
    fn enter_written(&mut self, key: ReplicaKey, piece: Piece) {
        let job = self.jobs.get_mut(piece.job).expect("a piece's job is under way");
        let replica = self.replicas.get_mut(&key).expect("a replica with I/O under way is open");
        let segment = replica.segments.get_mut(&piece.segment).expect("a segment with I/O under way is open");
        let Work::Write { first, crcs, .. } = &job.work else { unreachable!("only a Write writes") };
        let start = usize::try_from(at(piece.segment, piece.lo) - first).expect("within the data");
        for (block, crc) in (piece.lo..piece.hi).zip(&crcs[start..]) {
            segment.sidecar.set(block, Entry::Data(*crc));
        }
        replica.doubt.remove(piece.segment, piece.lo, piece.hi);
        replica.rotten.written(&piece);
        if self.dir.store.grain() > BLOCK && self.imaged.contains(&key) {
            replica.own.add(piece.segment, piece.lo..piece.hi);
        }
        if segment.sidecar.changes() >= WRITE_BACK_CHANGES && segment.side_rounds.is_idle() {
            self.ask_side_sync(key, piece.segment, Waiter::Nobody);
        }
    }

    fn on_reserved(&mut self, id: u64, key: ReplicaKey, result: Result<Vec<(u32, u64, u64)>, Errno>) {
        if let (Ok(segments), Some(replica)) = (&result, self.replicas.get_mut(&key)) {
            for (number, before, now) in segments {
                replica.exists.insert(*number);
                if !replica.segments.contains_key(number) {
                    replica.used.opened(*number, *before);
                    replica.used.closed(*number, *now);
                }
            }
        }
        self.tell(id, result.map(|_| ()).map_err(PoolError::from));
    }

    fn on_hole_made(&mut self, key: ReplicaKey, piece: Piece, result: Result<(), Errno>) {
        match result {
            Ok(()) => {
                if !self.ask_data_sync(key, piece.segment, Waiter::Piece(piece), true) {
                    self.end_piece(key, piece, Err(PoolError::ReplicaFailed));
                }
            }
            Err(errno) => {
                let replica = self.replicas.get_mut(&key).expect("a replica with calls under way is open");
                replica.doubt.add(piece.segment, piece.lo, piece.hi);
                self.end_piece(key, piece, Err(errno.into()));
            }
        }
    }

    fn on_looked(&mut self, key: ReplicaKey, piece: Piece, first: u32, result: Result<IoBuf, Errno>) {
        let job = self.jobs.get_mut(piece.job).expect("a piece's job is under way");
        let replica = self.replicas.get_mut(&key).expect("a replica with I/O under way is open");
        let segment = replica.segments.get_mut(&piece.segment).expect("a segment with I/O under way is open");
        let sealing = job.work.settles();
        let preserving = matches!(job.work, Work::Preserve { .. });
        let cloning = matches!(job.work, Work::CloneOut { .. });
        let filling = matches!(job.work, Work::Fill { .. });
        let mut rotten = Vec::new();
        let result = match result {
            Ok(buf) => {
                let mut result = None;
                for (block, bytes) in (first..).zip(buf.bytes().chunks_exact(BLOCK_LEN)) {
                    let entry = segment.sidecar.get(block);
                    if replica.doubt.contains(piece.segment, block) {
                        segment.sidecar.set(block, entry_of(entry, bytes));
                    } else if let (Entry::Data(crc), Work::Read | Work::Hash { .. }) = (entry, &job.work)
                        && crc32c::crc32c(bytes) != crc
                    {
                        let block = at(piece.segment, block);
                        rotten.push(block);
                        result.get_or_insert(Err(PoolError::BitRot { offset: block * BLOCK }));
                    }
                }
                let end = first + u32::try_from(buf.len() / BLOCK_LEN).expect("within a segment");
                replica.doubt.remove(piece.segment, first, end);
                if let Work::Fill { arrived, same, .. } = &mut job.work {
                    let of = same.entry(piece.segment).or_default();
                    let blocks = (first..).zip(buf.bytes().chunks_exact(BLOCK_LEN));
                    of.extend(blocks.filter_map(|(block, bytes)| {
                        arrived.is(at(piece.segment, block), bytes).then_some(block)
                    }));
                }
                result.unwrap_or_else(|| conclude(&job.work, piece, Some((first, buf)), &segment.sidecar))
            }
            // A seal, or what has to come before a write, must not fail for ever because of one sector: the sound blocks
            // are looked at one by one, and the others are entered as what they are, unreadable until they are written
            // again.
            Err(_) if (sealing || preserving) && piece.hi - piece.lo > 1 => {
                let (lo, hi) = (at(piece.segment, piece.lo), at(piece.segment, piece.hi));
                let middle = lo + (hi - lo) / 2;
                job.feed.extend([lo..middle, middle..hi]);
                return self.end_piece(key, piece, Ok(Found::Nothing));
            }
            // A clone keeps its piece: who waits for these blocks has waited since before they were looked at.
            Err(_)
                if let Work::CloneOut { looks, .. } = &mut job.work
                    && *looks > 1 =>
            {
                *looks /= 2;
                if let Some(result) = self.run_piece(key, piece) {
                    self.end_piece(key, piece, result);
                }
                return;
            }
            Err(Errno(libc::EIO | libc::ENODATA | libc::EILSEQ)) if cloning => {
                segment.sidecar.set(first, Entry::Damaged);
                replica.doubt.remove(piece.segment, first, first + 1);
                Ok(Found::Nothing)
            }
            Err(Errno(libc::EIO | libc::ENODATA | libc::EILSEQ)) if sealing || preserving => {
                segment.sidecar.set(piece.lo, Entry::Damaged);
                replica.doubt.remove(piece.segment, piece.lo, piece.hi);
                Ok(Found::Nothing)
            }
            Err(errno) => Err(errno.into()),
        };
        let news = rotten.into_iter().filter(|block| replica.rotten.is_news(*block)).count();
        self.figures.bit_rot += news as u64;
        if filling {
            // What can't be read of the head is not shared.
            let head = self.segment(key, piece.segment).files.as_ref().map(|files| files.0.file.clone());
            return self.put_into_copy(key, piece, head);
        }
        if preserving && result.is_ok() {
            let head = self.segment(key, piece.segment).files.as_ref().map(|files| files.0.file.clone());
            return self.put_into_image(key, piece, head);
        }
        if cloning && result.is_ok() {
            return self.share_out(key, piece);
        }
        self.end_piece(key, piece, result);
    }

    /// The blocks at the start of a piece whose entries are right are shared with a replica in the making; the piece holds them
    /// meanwhile.
    fn share_out(&mut self, key: ReplicaKey, piece: Piece) {
        let job = self.jobs.get_mut(piece.job).expect("a piece's job is under way");
        let Work::CloneOut { to, .. } = job.work else { unreachable!("only a CloneOut shares") };
        let replica = self.replicas.get(&key).expect("a replica with I/O under way is open");
        let segment = replica.segments.get(&piece.segment).expect("a running piece's segment is open");
        let doubted = |block: &u32| replica.doubt.contains(piece.segment, *block);
        let end = (piece.lo..piece.hi).find(doubted).unwrap_or(piece.hi);
        let entries: Vec<Entry> = (piece.lo..end).map(|block| segment.sidecar.get(block)).collect();
        let head = segment.files.as_ref().expect("a running piece's segment is open").0.file.clone();
        let (files, replicas) = (self.dir.files.clone(), self.dir.replicas.clone());
        self.workers.run(move || {
            let place = (to, piece.segment);
            let result = clones::from_head(&files, &replicas, place, &head, piece.lo..end, &entries);
            Called::SharedOut(key, piece, result)
        });
    }

    fn on_shared_out(&mut self, key: ReplicaKey, piece: Piece, result: Result<u32, Errno>) {
        if let (Ok(blocks), Some(job)) = (&result, self.jobs.get_mut(piece.job))
            && let Work::CloneOut { shared, .. } = &mut job.work
        {
            *shared = u64::from(*blocks) * BLOCK;
        }
        self.end_piece(key, piece, result.map(|_| Found::Nothing).map_err(PoolError::from));
    }

    /// A piece whose entries are right goes into its image; with the head's file it holds its blocks.
    fn put_into_image(&mut self, key: ReplicaKey, piece: Piece, head: Option<Fd>) {
        let job = self.jobs.get_mut(piece.job).expect("a piece's job is under way");
        let Work::Preserve { image, segments, .. } = &mut job.work else {
            unreachable!("only a Preserve puts into an image")
        };
        segments.insert(piece.segment);
        let place = (key, *image, piece.segment);
        let blocks = piece.lo..piece.hi;
        let entries: Vec<Entry> = match &head {
            Some(_) => {
                let sidecar = &self.segment(key, piece.segment).sidecar;
                blocks.clone().map(|block| sidecar.get(block)).collect()
            }
            None => vec![Entry::Absent; blocks.len()],
        };
        let (files, root, held) = (self.dir.files.clone(), self.dir.root.clone(), head.is_some());
        self.workers.run(move || {
            let result = images::preserve(&files, &root, place, head.as_ref(), blocks, &entries);
            Called::Preserved(key, piece, held, result)
        });
    }

    fn on_preserved(&mut self, key: ReplicaKey, piece: Piece, held: bool, result: Result<(), Errno>) {
        let result = result.map(|()| Found::Nothing).map_err(|errno| lost(errno, piece.segment));
        if held {
            return self.end_piece(key, piece, result);
        }
        self.record(&piece, result);
        self.pumps.push_back(piece.job);
    }

    fn sync_image(&mut self, id: u64, key: ReplicaKey, image: SnapId, segments: &BTreeSet<u32>) {
        let named = self.named.entry(key).or_insert((image, BTreeSet::new()));
        if named.0 != image {
            *named = (image, BTreeSet::new());
        }
        for number in segments.iter().copied() {
            let place = (key, image, number);
            self.image_rounds.entry(place).or_default().ask(Waiter::Job(id));
            self.start_image_round(place);
        }
    }

    /// One flush for all whose blocks were there when it began.
    fn start_image_round(&mut self, place: (ReplicaKey, SnapId, u32)) {
        if !self.image_rounds.get_mut(&place).is_some_and(Rounds::start) {
            return;
        }
        let (key, image, number) = place;
        let new = self.named.get(&key).is_none_or(|(of, known)| *of != image || !known.contains(&number));
        let (files, root) = (self.dir.files.clone(), self.dir.root.clone());
        self.figures.image_flushes += 1;
        self.workers.run(move || Called::ImageSynced(place, new, images::sync(&files, &root, place, new)));
    }

    fn on_image_synced(&mut self, place: (ReplicaKey, SnapId, u32), named: bool, result: Result<(), Errno>) {
        let (key, image, number) = place;
        let rounds = self.image_rounds.get_mut(&place).expect("it is under way");
        let failed = match result {
            Ok(()) => {
                if let Some((of, known)) = self.named.get_mut(&key)
                    && *of == image
                    && named
                {
                    known.insert(number);
                }
                false
            }
            // It was not even opened.
            Err(Errno(libc::ENOENT | libc::EMFILE | libc::ENFILE)) => false,
            Err(_) => true,
        };
        let told = if failed { rounds.end_all() } else { rounds.end() };
        if rounds.is_idle() {
            self.image_rounds.remove(&place);
        }
        if let (true, Err(errno)) = (failed, result) {
            self.fail(key, errno);
        }
        for waiter in told {
            let Waiter::Job(id) = waiter else { unreachable!("only a Preserve asks") };
            self.tell(id, result.map_err(|errno| lost(errno, number)));
        }
        self.start_image_round(place);
    }

    /// Asks for a flush of a segment's data; false (and nobody will be told) if there is nothing to flush.
    fn ask_data_sync(&mut self, key: ReplicaKey, number: u32, waiter: Waiter, always: bool) -> bool {
        if self.has_failed(key) {
            return false;
        }
        let segment = self.segment(key, number);
        if !always && !segment.unsynced && segment.data_rounds.is_idle() {
            return false;
        }
        segment.data_rounds.ask(waiter);
        self.start_data_round(key, number);
        true
    }

    fn start_data_round(&mut self, key: ReplicaKey, number: u32) {
        let segment = self.segment(key, number);
        if segment.data_rounds.start() {
            segment.unsynced = false;
            let file = segment.files.as_ref().expect("who asks has the segment open").0.file.clone();
            self.figures.fdatasyncs += 1;
            self.io(Io::DataSync(key, number), Op::Fdatasync { file });
        }
    }

    fn on_data_synced(&mut self, key: ReplicaKey, number: u32, result: Result<(), Errno>) {
        if let Err(errno) = result {
            self.fail(key, errno);
        }
        let failed = self.has_failed(key);
        let rounds = &mut self.segment(key, number).data_rounds;
        for waiter in if failed { rounds.end_all() } else { rounds.end() } {
            match waiter {
                Waiter::Piece(piece) => {
                    let job = self.jobs.get_mut(piece.job).expect("a piece's job is under way");
                    let hole = match job.work {
                        Work::Write { .. } => None,
                        Work::Zero { hole, .. } => Some(hole),
                        _ => Some(Hole::Absent),
                    };
                    let replica = self.replicas.get_mut(&key).expect("a replica with I/O under way is open");
                    let segment = replica.segments.get_mut(&number).expect("a segment with I/O is open");
                    if let (Ok(()), None) = (result, hole) {
                        self.enter_written(key, piece);
                    } else if let (Ok(()), Some(hole)) = (result, hole) {
                        for block in piece.lo..piece.hi {
                            segment.sidecar.set(block, Entry::of_hole(hole));
                        }
                        replica.doubt.remove(number, piece.lo, piece.hi);
                        replica.rotten.written(&piece);
                    }
                    let result = result.map(|()| Found::Nothing).map_err(|_| PoolError::ReplicaFailed);
                    self.end_piece(key, piece, result);
                }
                Waiter::Job(id) => self.tell(id, result.map_err(|_| PoolError::ReplicaFailed)),
                Waiter::Nobody => {}
            }
        }
        self.start_data_round(key, number);
        self.pumps.extend(self.replicas.get(&key).and_then(|replica| replica.closing));
    }

    /// Asks for a segment's dirty sidecar pages to be made durable; false if there are none.
    fn ask_side_sync(&mut self, key: ReplicaKey, number: u32, waiter: Waiter) -> bool {
        if self.has_failed(key) {
            return false;
        }
        let segment = self.segment(key, number);
        if !segment.sidecar.is_dirty() && segment.side_rounds.is_idle() {
            return false;
        }
        segment.side_rounds.ask(waiter);
        self.start_side_round(key, number);
        true
    }

    fn start_side_round(&mut self, key: ReplicaKey, number: u32) {
        let segment = self.segment(key, number);
        if !segment.side_rounds.start() {
            return;
        }
        let place = segment.files.as_ref().expect("a dirty segment is open").1.clone();
        let runs = segment.sidecar.take_dirty();
        segment.side_rounds.writes = runs.len();
        segment.side_rounds.error = None;
        if runs.is_empty() {
            return self.sync_side(key, number);
        }
        for (offset, bufs) in runs {
            let op =
                Op::WriteAt { file: place.file.clone(), offset: place.base + offset, bufs, durable: false };
            self.io(Io::SidePages(key, number), op);
        }
    }

    fn sync_side(&mut self, key: ReplicaKey, number: u32) {
        let place = self.segment(key, number).files.as_ref().expect("a round's segment is open").1.clone();
        let file = place.file;
        self.figures.fdatasyncs += 1;
        self.io(Io::SideSync(key, number), Op::Fdatasync { file });
    }

    fn on_side_written(&mut self, key: ReplicaKey, number: u32, result: Result<(), Errno>) {
        let rounds = &mut self.segment(key, number).side_rounds;
        rounds.writes -= 1;
        if let Err(errno) = result {
            rounds.error.get_or_insert(errno);
        }
        if rounds.writes > 0 {
            return;
        }
        let error = rounds.error;
        match error {
            None if self.has_failed(key) => self.end_side_round(key, number, Err(PoolError::ReplicaFailed)),
            None => self.sync_side(key, number),
            Some(errno) => {
                // The pages are still in memory: a later round writes them again.
                let segment = self.segment(key, number);
                segment.sidecar.mark_dirty_again();
                self.end_side_round(key, number, Err(errno.into()));
            }
        }
    }

    fn on_side_synced(&mut self, key: ReplicaKey, number: u32, result: Result<(), Errno>) {
        if let Err(errno) = result {
            self.fail(key, errno);
        }
        self.end_side_round(key, number, result.map_err(|_| PoolError::ReplicaFailed));
    }

    fn end_side_round(&mut self, key: ReplicaKey, number: u32, result: Result<(), PoolError>) {
        let failed = self.has_failed(key);
        let rounds = &mut self.segment(key, number).side_rounds;
        for waiter in if failed { rounds.end_all() } else { rounds.end() } {
            match waiter {
                Waiter::Job(id) => self.tell(id, result.clone()),
                // It waited for the sidecar's place to be the replica's own.
                Waiter::Piece(piece) => {
                    if let (Ok(()), Some(replica)) = (&result, self.replicas.get_mut(&key)) {
                        replica.own.add_sidecar(number);
                    }
                    let ended = match &result {
                        Ok(()) => self.run_piece(key, piece),
                        Err(error) => Some(Err(error.clone())),
                    };
                    if let Some(ended) = ended {
                        self.end_piece(key, piece, ended);
                    }
                }
                Waiter::Nobody => {}
            }
        }
        self.start_side_round(key, number);
        self.pumps.extend(self.replicas.get(&key).and_then(|replica| replica.closing));
    }

    /// A job's wait is over.
    fn tell(&mut self, id: u64, result: Result<(), PoolError>) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.pending -= 1;
        if let Err(error) = result {
            job.error.get_or_insert(error);
        }
        self.pumps.push_back(id);
    }

    fn has_failed(&self, key: ReplicaKey) -> bool {
        self.replicas.get(&key).is_some_and(|replica| replica.failed)
    }

    fn fail(&mut self, key: ReplicaKey, errno: Errno) {
        let replica = self.replicas.get_mut(&key).expect("a replica with I/O under way is open");
        if !core::mem::replace(&mut replica.failed, true) {
            self.events.push_back(PoolEvent::ReplicaFailed { replica: key, errno });
        }
    }

    /// Closes the segments that were not used for longest; dirty ones are written back first.
    fn trim(&mut self) {
        let mut idle: Vec<(u64, ReplicaKey, u32)> = self
            .replicas
            .iter()
            .flat_map(|(key, replica)| {
                replica.segments.iter().map(move |(number, segment)| (key, number, segment))
            })
            .filter(|(_, _, segment)| segment.is_idle())
            .map(|(key, number, segment)| (segment.used, *key, *number))
            .collect();
        idle.sort_unstable();
        for (_, key, number) in idle.into_iter().take(self.open_segments - self.config.open_segments) {
            let writes_data = self.ask_data_sync(key, number, Waiter::Nobody, false);
            if self.ask_side_sync(key, number, Waiter::Nobody) || writes_data {
                continue; // comes again when it is clean
            }
            let Some(replica) = self.replicas.get_mut(&key) else { continue };
            if let Some(segment) = replica.segments.remove(&number) {
                self.open_segments -= 1;
                replica.used.closed(number, used::of_segment(&segment));
            }
        }
    }
}

/// The blocks of a segment that a range of bytes touches.
fn doubtful(segment: u32, range: &Range<u64>) -> Range<u32> {
    let start = at(segment, 0);
    let within = |block: u64| {
        let end = start + u64::from(SEGMENT_BLOCKS);
        u32::try_from(block.clamp(start, end) - start).expect("within a segment")
    };
    within(range.start / BLOCK)..within(range.end.div_ceil(BLOCK))
}

fn missing_is_no_replica(result: Result<(), Errno>) -> Result<PoolAnswer, PoolError> {
    match result {
        Ok(()) => Ok(PoolAnswer::Done),
        Err(Errno(libc::ENOENT)) => Err(PoolError::NoReplica),
        Err(errno) => Err(errno.into()),
    }
}

/// Files of an image that somebody has taken away are damage; there is nothing to be repeated.
fn lost(errno: Errno, segment: u32) -> PoolError {
    match errno {
        Errno(libc::ENOENT) => PoolError::ImageDamaged { offset: at(segment, 0) * BLOCK },
        errno => errno.into(),
    }
}

/// What so many bytes of a thick replica need, with sidecars and names.
fn reserved_bytes(bytes: u64) -> u64 {
    let segments = bytes.div_ceil(u64::from(SEGMENT_BLOCKS) * BLOCK).saturating_add(1);
    bytes.saturating_add(segments.saturating_mul(SEGMENT_ROOM))
}

fn whole_blocks(offset: u64, len: u64) -> bool {
    len > 0 && offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK)
}

/// The volume's block number of a segment's block.
fn at(segment: u32, block: u32) -> u64 {
    u64::from(segment) * u64::from(SEGMENT_BLOCKS) + u64::from(block)
}

fn segment_of(block: u64) -> u32 {
    u32::try_from(block / u64::from(SEGMENT_BLOCKS)).expect("volumes end at 64 TiB")
}

/// The buffer as O_DIRECT wants it, and whether it had to be copied.
fn aligned(buf: IoBuf) -> (IoBuf, bool) {
    if buf.is_aligned() { (buf, false) } else { (IoBuf::copy_of(buf.bytes()), true) }
}

/// What is left of a write of which `done` bytes were taken, from the last whole block on.
fn rest_of(bufs: &[IoBuf], done: usize) -> Option<Vec<IoBuf>> {
    if done >= bufs.iter().map(Payload::len).sum() {
        return None;
    }
    let mut skip = done - done % BLOCK_LEN;
    let mut rest = Vec::new();
    for buf in bufs {
        let here = skip.min(buf.len());
        skip -= here;
        if here < buf.len() {
            rest.push(buf.slice(here, buf.len() - here));
        }
    }
    Some(rest)
}

#[cfg(test)]
mod tests;
