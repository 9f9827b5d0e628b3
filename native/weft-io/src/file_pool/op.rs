//! What a pool is asked, and what it answers.

use core::fmt;
use core::ops::Range;

use weft_proto::ids::SnapId;
use weft_proto::images::Place;
use weft_proto::log::ReplicaKey;
use weft_proto::message::Extent;
use weft_proto::replica::{DiskDone, DiskError, DiskOp};

use crate::buffer::IoBuf;
use crate::driver::{Errno, TokenSpace};
use crate::pool_dir::TrashEntry;
use crate::reflink::NoSnapshots;

/// How a pool is served.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// The driver's tokens that are this pool's.
    pub space: TokenSpace,
    /// Segments held open (two descriptors and up to 128 KiB each); more only while they are in use.
    pub open_segments: usize,
    /// Threads for blocking calls.
    pub threads: usize,
    /// What may need room is refused at 98 % ([`Fill`](super::Fill)), before the file system refuses it; never where
    /// the files have a journal.
    pub gated: bool,
}

impl PoolConfig {
    /// 128 open segments, 2 threads, gated.
    #[must_use]
    pub fn new(space: TokenSpace) -> PoolConfig {
        PoolConfig { space, open_segments: 128, threads: 2, gated: true }
    }
}

/// One of a replica's two checkpoint files, or of an image's two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// `meta.a`, `image.a`
    A,
    /// `meta.b`, `image.b`
    B,
}

impl Slot {
    pub(super) fn name(self) -> &'static str {
        match self {
            Slot::A => "meta.a",
            Slot::B => "meta.b",
        }
    }

    pub(super) fn image_name(self) -> &'static str {
        match self {
            Slot::A => "image.a",
            Slot::B => "image.b",
        }
    }
}

/// What a pool is asked to do. Offsets and lengths are bytes, multiples of 4096.
#[derive(Debug)]
pub enum PoolOp {
    /// Makes a replica's directory, durably, with two checkpoint files of `meta_bytes` written once over their length
    /// (protocol.md R20). Answered with `Done`, or [`PoolError::Exists`].
    CreateReplica {
        /// Which.
        replica: ReplicaKey,
        /// Length of each checkpoint file, a multiple of 4096.
        meta_bytes: u64,
        /// A thick one has so many bytes: their blocks and those of its sidecars are its own from now on, zeroed or
        /// trimmed ones too, and those that it grows by ([`PoolError::NoSpace`] where they can't be had).
        thick: Option<u64>,
    },
    /// Makes a replica ready for [`PoolOp::Disk`]. Answered with `Done`.
    OpenReplica {
        /// Which.
        replica: ReplicaKey,
        /// Its size in bytes (from its checkpoint and log).
        size: u64,
        /// Byte ranges of the regions stamped above the replica's own sealed generation: their checksums are not
        /// authoritative (R22). Rounded outwards to blocks.
        unsealed: Vec<Range<u64>>,
    },
    /// Ends service of a replica: waits for its ops, writes its sidecars back, closes its files. Ops that come after
    /// it get [`PoolError::NoReplica`].
    CloseReplica {
        /// Which.
        replica: ReplicaKey,
    },
    /// Closes a replica, if open, and moves it to the trash, durably.
    TrashReplica {
        /// Which.
        replica: ReplicaKey,
        /// Now, in seconds since 1970: kept in the entry's name.
        now_s: u64,
    },
    /// Answered with `Replicas`: all that are here, open or not.
    ListReplicas,
    /// What a replica's machine asks of its pool; answered with `Disk`. `Write` trusts the CRCs it is given, which the
    /// replica has checked. `Zero` is done in pieces of a segment, at most four at a time, each durable; ended early
    /// by [`PoolOp::Cancel`]. `Grow` makes everything between its two sizes absent, whatever lies there (R18); so does
    /// `Cut`, as `Zero` would: what was cut without a stamp is to be grown over before it is read.
    Disk {
        /// Which; open.
        replica: ReplicaKey,
        /// What.
        op: DiskOp<IoBuf>,
    },
    /// Writes whole blocks of the log, durably.
    WriteLog {
        /// Byte offset within the log.
        offset: u64,
        /// Whole blocks.
        data: IoBuf,
    },
    /// Answered with `Bytes`: the whole log.
    ReadLog,
    /// Writes over the start of a checkpoint file, durably; lengthens it if needed.
    WriteCheckpoint {
        /// Whose.
        replica: ReplicaKey,
        /// Which of the two.
        slot: Slot,
        /// The content, with its own checksum.
        bytes: Vec<u8>,
    },
    /// Answered with `Bytes`: the whole file.
    ReadCheckpoint {
        /// Whose.
        replica: ReplicaKey,
        /// Which of the two.
        slot: Slot,
    },
    /// Replaces the superblock's content (at most [`SUPERBLOCK_MAX`](crate::pool_dir::SUPERBLOCK_MAX) bytes), durably.
    WriteSuperblock {
        /// The new content.
        content: Vec<u8>,
    },
    /// Answered with `Space`; an error if the pool's directory is not where it was.
    Space,
    /// Answered with `Trash`, oldest first.
    ListTrash,
    /// Moves a replica back from the trash.
    RestoreTrash {
        /// [`TrashEntry::name`].
        name: String,
    },
    /// Deletes one entry of the trash for good.
    EmptyTrash {
        /// [`TrashEntry::name`].
        name: String,
    },
    /// Makes an image, which has nothing yet, durably; of an open replica where the pool takes snapshots itself, everything is
    /// done that would take time in [`PoolOp::TakeSnapshot`]: its directory with two files of `slot_bytes` for what the caller
    /// keeps of it. Answered with `Done`, [`PoolError::Exists`] or [`PoolError::NoSnapshots`].
    TakeImage {
        /// Of which replica; it need not be open.
        replica: ReplicaKey,
        /// Its name.
        image: SnapId,
        /// Length of each of the two files, a multiple of 4096.
        slot_bytes: u64,
    },
    /// Takes the pool's own snapshot of a replica for an image that was made, durably, where the pool can
    /// ([`Ability::Thin`](crate::reflink::Ability::Thin)): it has everything then. What is in doubt is looked at and sidecars are
    /// written back first; nothing may change the replica meanwhile. Answered with `Disk(Done)`; after an error something may be
    /// there, until [`PoolOp::DropImage`].
    TakeSnapshot {
        /// Of which replica; open.
        replica: ReplicaKey,
        /// For which image.
        image: SnapId,
    },
    /// Answered with `Images`: all there are, also of replicas in the trash. What their making left is removed.
    ListImages,
    /// Writes over the start of one of an image's two files, durably; makes them again if they were taken away.
    WriteImage {
        /// Of which replica.
        replica: ReplicaKey,
        /// Which image.
        image: SnapId,
        /// Which of the two.
        slot: Slot,
        /// The content, with its own checksum.
        bytes: Vec<u8>,
    },
    /// Answered with `Bytes`: the whole file.
    ReadImage {
        /// Of which replica.
        replica: ReplicaKey,
        /// Which image.
        image: SnapId,
        /// Which of the two.
        slot: Slot,
    },
    /// Puts what the head has now into an image, durably (R28), at most 1 MiB at a time; what overlaps it and comes
    /// later waits. To be logged when it is done, and before the head changes there; what an op that failed, or whose
    /// end nobody has seen, has put there means nothing. Answered with `Disk(Done)`.
    Preserve {
        /// Of which replica; open.
        replica: ReplicaKey,
        /// Into which image.
        image: SnapId,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A `Read`, `Kinds` or `Hash` of blocks that an image has, by the caller's log. Answered with `Disk`, or
    /// [`PoolError::ImageDamaged`]. What an image does not have itself, the next newer one may; at last it is the head's,
    /// and to be asked of that.
    Image {
        /// Of which replica; it need not be open.
        replica: ReplicaKey,
        /// Which image.
        image: SnapId,
        /// Where its files may be by now, while they are handed down.
        heir: Option<SnapId>,
        /// What.
        op: DiskOp<IoBuf>,
    },
    /// Hands a segment of an image that is being deleted down to the next older one, durably: with ranges of blocks those
    /// blocks are shared; without any the file changes its image, to which the log gives nothing in that segment, and
    /// which needs no space. Answered with `Done`; can be repeated.
    HandDown {
        /// Of which replica.
        replica: ReplicaKey,
        /// From this image.
        image: SnapId,
        /// To this one.
        heir: SnapId,
        /// Which segment.
        segment: u32,
        /// Which blocks of it.
        blocks: Vec<Range<u32>>,
    },
    /// Keeps hashes of a segment beside an image, durably; can be repeated. Answered with `Done`. As little as it is, it goes on
    /// in a pool that is nearly full: what it makes room for is more.
    KeepHashes {
        /// Of which replica.
        replica: ReplicaKey,
        /// Which image.
        image: SnapId,
        /// Which segment.
        segment: u32,
        /// The file.
        bytes: Vec<u8>,
    },
    /// Answered with `Disk(Kept)`.
    KeptHashes {
        /// Of which replica.
        replica: ReplicaKey,
        /// Which image.
        image: SnapId,
        /// Which segment.
        segment: u32,
    },
    /// Removes an image's data for good, and nothing else of it. Answered with `Done`; can be repeated.
    EmptyImage {
        /// Of which replica.
        replica: ReplicaKey,
        /// Which image.
        image: SnapId,
    },
    /// Removes an image's files for good. Answered with `Done`; can be repeated.
    DropImage {
        /// Of which replica.
        replica: ReplicaKey,
        /// Which image.
        image: SnapId,
    },
    /// Begins a replica that is to share an image's blocks, durably enough to be filled: under a name that the next start of
    /// the pool removes. What an earlier try left goes. Answered with `Done`, [`PoolError::Exists`] or
    /// [`PoolError::NoSnapshots`].
    BeginClone {
        /// Whose blocks it is to share; it need not be open.
        from: ReplicaKey,
        /// What of it: the image.
        image: SnapId,
        /// Which.
        to: ReplicaKey,
        /// Length of each checkpoint file, a multiple of 4096.
        meta_bytes: u64,
    },
    /// Shares a range within one segment with a replica in the making, not durably. Of the head (`from` is open then) what is
    /// there now: it is kept in order among what overlaps it, as [`DiskOp::Read`] is. Of an image what it has by the caller's
    /// log. Answered with `Disk(Shared)`: so many bytes from the start on, perhaps not all, so that nobody who writes to
    /// the head waits for long; or [`PoolError::ImageDamaged`].
    CloneOut {
        /// From which replica.
        from: ReplicaKey,
        /// From where in it.
        place: Place,
        /// The replica in the making.
        to: ReplicaKey,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Makes a replica in the making durable, with its first checkpoint, and then one as every other. Answered with `Done`.
    PublishClone {
        /// Which.
        replica: ReplicaKey,
        /// The checkpoint, with its own checksum.
        checkpoint: Vec<u8>,
    },
    /// Removes a replica in the making. Answered with `Done`; can be repeated.
    AbandonClone {
        /// Which.
        replica: ReplicaKey,
    },
    /// Begins an image that is to be filled with what others have of its snapshot: under a name that the next start of the pool
    /// removes. What an earlier try left goes. Answered with `Done`, [`PoolError::Exists`] or [`PoolError::NoSnapshots`].
    BeginCopy {
        /// Of which replica; it need not be open.
        replica: ReplicaKey,
        /// Its name to be.
        image: SnapId,
        /// Length of each of its two files, a multiple of 4096.
        slot_bytes: u64,
    },
    /// Puts blocks there, all within one segment, not durably. Those that the head has just so are shared, if the replica is
    /// open: then what overlaps them and comes later waits. Answered with `Disk(Shared)`: so many bytes are.
    FillCopy {
        /// Of which replica.
        replica: ReplicaKey,
        /// Which image.
        image: SnapId,
        /// First byte.
        offset: u64,
        /// What arrived, verified.
        extents: Vec<Extent<IoBuf>>,
    },
    /// Makes durable what was put into a segment of it. Answered with `Done`.
    SyncCopy {
        /// Of which replica.
        replica: ReplicaKey,
        /// Which image.
        image: SnapId,
        /// Which segment.
        segment: u32,
    },
    /// Makes all of it durable, `slot` as the first of its two files, and then an image as every other. Answered with `Done`.
    PublishCopy {
        /// Of which replica.
        replica: ReplicaKey,
        /// Which image.
        image: SnapId,
        /// The slot, with its own checksum.
        slot: Vec<u8>,
    },
    /// Removes what was begun. Answered with `Done`; can be repeated.
    AbandonCopy {
        /// Of which replica.
        replica: ReplicaKey,
        /// Which image.
        image: SnapId,
    },
    /// Ends a `Zero`, `Hash`, `Kinds`, `Read`, `Seal` or `Preserve` op after the pieces that have started: it is then answered with
    /// [`PoolError::Cancelled`], or normally if it was too late. Has no answer of its own.
    Cancel {
        /// The token of the op to end.
        target: u64,
    },
}

/// An op's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum PoolAnswer {
    /// Done, nothing to add.
    Done,
    /// To [`PoolOp::Disk`].
    Disk(DiskDone<IoBuf>),
    /// To [`PoolOp::ListReplicas`].
    Replicas(Vec<ReplicaKey>),
    /// To [`PoolOp::ReadLog`] and [`PoolOp::ReadCheckpoint`].
    Bytes(IoBuf),
    /// To [`PoolOp::Space`].
    Space {
        /// Bytes that can still be written.
        free: u64,
        /// Bytes of the file system.
        total: u64,
    },
    /// To [`PoolOp::ListTrash`].
    Trash(Vec<TrashEntry>),
    /// To [`PoolOp::ListImages`].
    Images(Vec<(ReplicaKey, SnapId)>),
}

/// Why an op was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolError {
    /// The file system is full or nearly so ([`Fill::Full`](super::Fill::Full)), or a quota is.
    NoSpace,
    /// The device or the file system failed; a written range's content is undefined until it is written again.
    Io(Errno),
    /// A block fails its checksum.
    BitRot {
        /// Byte offset of the (first) block.
        offset: u64,
    },
    /// The replica is not open here, or not here at all.
    NoReplica,
    /// It is already there, or open.
    Exists,
    /// Not whole blocks, empty, or beyond the replica's size or the log.
    OutOfBounds,
    /// A segment's files contradict each other: somebody took one away or cut it.
    Damaged {
        /// The segment's number.
        segment: u32,
    },
    /// An image lacks a block that it should have: its files were cut or taken away.
    ImageDamaged {
        /// Byte offset of the (first) block.
        offset: u64,
    },
    /// The pool's file system can't have images.
    NoSnapshots(NoSnapshots),
    /// An fdatasync failed earlier: what the kernel had not written is gone.
    ReplicaFailed,
    /// Ended by [`PoolOp::Cancel`].
    Cancelled,
}

impl PoolError {
    /// In the words of the replica's machine.
    #[must_use]
    pub fn disk_error(&self) -> DiskError {
        match self {
            PoolError::NoSpace => DiskError::NoSpace,
            PoolError::NoSnapshots(_) => DiskError::NoSnapshots,
            PoolError::BitRot { .. } | PoolError::ImageDamaged { .. } => DiskError::BitRot,
            PoolError::Io(_)
            | PoolError::NoReplica
            | PoolError::Exists
            | PoolError::OutOfBounds
            | PoolError::Damaged { .. }
            | PoolError::ReplicaFailed
            | PoolError::Cancelled => DiskError::Io,
        }
    }

    /// True if the replica's content can't be trusted any more: reopen and resync, or quarantine.
    #[must_use]
    pub fn ends_replica(&self) -> bool {
        matches!(self, PoolError::ReplicaFailed | PoolError::Damaged { .. })
    }
}

impl From<Errno> for PoolError {
    fn from(errno: Errno) -> Self {
        match errno.0 {
            _ if errno.is_no_space() => PoolError::NoSpace,
            libc::EEXIST => PoolError::Exists,
            _ => PoolError::Io(errno),
        }
    }
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolError::NoSpace => f.write_str("the pool's file system is full"),
            PoolError::Io(errno) => write!(f, "the pool's disk failed: {errno}"),
            PoolError::BitRot { offset } => {
                write!(f, "the block at byte {offset} does not match its stored checksum")
            }
            PoolError::NoReplica => f.write_str("the replica is not open in this pool"),
            PoolError::Exists => f.write_str("the replica is already in this pool"),
            PoolError::OutOfBounds => f.write_str("the range is not whole blocks within the replica"),
            PoolError::Damaged { segment } => {
                write!(f, "the files of segment {segment} contradict each other")
            }
            PoolError::ImageDamaged { offset } => {
                write!(f, "the image lacks the block at byte {offset}, which it should have")
            }
            PoolError::NoSnapshots(why) => write!(f, "no snapshots: {why}"),
            PoolError::ReplicaFailed => f.write_str("a flush of the replica failed earlier"),
            PoolError::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl core::error::Error for PoolError {}

/// What happened in a pool.
#[derive(Clone, Debug, PartialEq)]
pub enum PoolEvent {
    /// An op has ended.
    Done {
        /// The op's token.
        token: u64,
        /// Its outcome.
        result: Result<PoolAnswer, PoolError>,
    },
    /// An fdatasync failed: the replica answers every further op with [`PoolError::ReplicaFailed`] until it is closed.
    ReplicaFailed {
        /// Which.
        replica: ReplicaKey,
        /// What the kernel said.
        errno: Errno,
    },
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolFigures {
    /// Write pieces whose buffer had to be copied because it was not aligned.
    pub unaligned_writes: u64,
    /// Blocks that failed their checksum, each counted once until it is written again.
    pub bit_rot: u64,
    /// Those of them that were not written again.
    pub bit_rot_left: u64,
    /// Segments opened.
    pub segments_opened: u64,
    /// Flushes of data and sidecar files.
    pub fdatasyncs: u64,
    /// Flushes of segments of images before writes.
    pub image_flushes: u64,
    /// How often room was refused that the file system still had.
    pub refused_room: u64,
}
