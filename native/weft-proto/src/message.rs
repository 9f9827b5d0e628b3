//! What a session and a replica say to each other (protocol.md 4.5 to 4.13). `wire` gives the bytes.
//!
//! Must always hold: a request carries the epoch it was made under, and the replica executes it only if that
//! epoch and the attachment's session are exactly what it promised (R1). Every request gets one response with
//! its tag, or the attachment ends.

use alloc::vec::Vec;

use crate::ids::{
    ClusterId, Epoch, Generation, HostId, Ordinal, PoolId, PoolInc, Rid, SessionId, SnapId, VolumeId,
};
use crate::images::ImageState;

/// The largest range of data in one message, in bytes (transport.md 1.9b).
pub const MAX_DATA: u64 = 128 * 1024;
/// Longest note of a snapshot, in bytes: what a replica keeps of it for a repair of the store.
pub const NOTE_MAX: usize = 512;
/// Most images in one answer to [`Ask::Images`].
pub const IMAGES_PAGE: usize = 1024;
/// What one bit of [`Answer::Changed`] tells of, in bytes.
pub const CHANGED_GRAIN: u64 = 64 * 1024;
/// The longest range of one [`Ask::SnapChanged`], in bytes.
pub const CHANGED_MAX: u64 = 64 << 20;

/// How far a host has seen the store advance (R11): compared in field order, from linearizable reads only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Watermark {
    /// The store's cluster; two hosts that disagree here talk to different stores.
    pub cluster: ClusterId,
    /// Raised by `weft store repair`.
    pub incarnation: u64,
    /// The store's revision.
    pub revision: u64,
}

/// What another host says that it has seen of the store. No truth: it refuses opens for as long as it is above what a read
/// of this host's own shows, and is never told on as this host's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Claim {
    /// How far.
    pub watermark: Watermark,
    /// Who says so.
    pub host: HostId,
    /// It may only have been told so: the higher of what it has seen and what others have told it.
    pub relayed: bool,
}

/// A request with its frame's common fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Request<P> {
    /// Chosen by the session, unique among its unanswered requests on one attachment.
    pub tag: u32,
    /// The epoch under which the session asks. Ignored for [`Ask::Attach`] and [`Ask::Detach`], and where
    /// [`Ask::is_of_images`] says so.
    pub epoch: Epoch,
    /// What is asked.
    pub ask: Ask<P>,
}

/// What a session asks of a replica. Offsets and lengths are bytes, multiples of 4096; lengths are at most
/// [`MAX_DATA`] where data travels.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask<P> {
    /// Binds this attachment to a replica and a session. Answered after all I/O of lower ordinals has ended.
    Attach(Attach),
    /// The session lets go; nothing of this attachment executes after the answer.
    Detach,
    /// "Obey this epoch and session": answered when durable and all I/O of lower epochs has drained (R1).
    Promise {
        /// The session's record as JSON, kept durably beside the promise (4.15).
        record: Vec<u8>,
        /// The session's watermark.
        watermark: Watermark,
    },
    /// Writes whole blocks. `copy` marks resync and reconcile traffic.
    Write {
        /// Stamp of the region before the data may reach the medium (R6).
        generation: Generation,
        /// Byte offset.
        offset: u64,
        /// CRC32C of each block.
        crcs: Vec<u32>,
        /// The data.
        data: P,
        /// Resync or reconcile traffic.
        copy: bool,
    },
    /// Makes a range read as zero (kind `Zero` or, for copies of never-written blocks, `Absent`), durably (R19).
    Zero {
        /// As in `Write`.
        generation: Generation,
        /// Byte offset.
        offset: u64,
        /// Length in bytes, may exceed [`MAX_DATA`].
        len: u64,
        /// What the blocks become.
        kind: Hole,
        /// Keep the space allocated (WRITE_ZEROES with NO_HOLE).
        keep_space: bool,
        /// Resync or reconcile traffic.
        copy: bool,
    },
    /// Reads whole blocks.
    Read {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Kinds of the blocks of a range, without data (block status, resync of holes).
    Kinds {
        /// Byte offset.
        offset: u64,
        /// Length in bytes, at most 64 MiB.
        len: u64,
    },
    /// Makes everything acknowledged before durable (`cached` mode; in `durable` mode it already is).
    Flush,
    /// Every write of a generation ≤ this one is complete on every in-sync member (R7).
    Seal {
        /// The sealed generation.
        generation: Generation,
    },
    /// Regions whose stamp is above a generation, from a region number on; answered in pages.
    Stamps {
        /// Only stamps above this.
        above: Generation,
        /// First region of the page.
        from_region: u32,
    },
    /// Keyed 128-bit hash of each block of a range, for resync and reconcile.
    Hash {
        /// Byte offset.
        offset: u64,
        /// Length in bytes, at most 1 MiB.
        len: u64,
        /// Key of the hash, fresh per range.
        key: [u8; 16],
    },
    /// Makes what the volume is to grow by absent, whatever lies there, and the replica as large as that (R18). A write:
    /// its regions are stamped.
    Grow {
        /// As in `Write`.
        generation: Generation,
        /// The record's size in bytes; of a joiner that is smaller, its own. Not above the replica's.
        from: u64,
        /// The size to come, in bytes.
        to: u64,
    },
    /// "Are you serving this volume at this epoch?" (R9, 4.9)
    Heartbeat,
    /// Makes room for an image, which is still none: before the barrier, since it takes several flushes. What an earlier
    /// attempt has left of it goes first.
    SnapMake {
        /// Of which snapshot.
        id: SnapId,
        /// For this attempt: above every other one that was asked for.
        attempt: u64,
    },
    /// Takes the image for which [`Ask::SnapMake`] has made room. Answered when it is in the log, and no write, zero or growth of
    /// its generation or an older one is executed any more (R28).
    SnapPrepare {
        /// Of which snapshot.
        id: SnapId,
        /// Attempts have names of their own: their interval is not enough (docs/model.md, finding 21).
        attempt: u64,
        /// The interval that the barrier ends.
        generation: Generation,
        /// The store's incarnation.
        incarnation: u64,
    },
    /// Its snapshot stands in the store (R27).
    SnapReady {
        /// Which.
        id: SnapId,
        /// The attempt that the store names.
        attempt: u64,
        /// What the store says of the snapshot, for a repair; at most [`NOTE_MAX`] bytes, which nobody here reads.
        note: Vec<u8>,
    },
    /// The attempt is known not to stand in the store, and never will: its image goes, if there is one.
    SnapDrop {
        /// Which.
        id: SnapId,
        /// Exactly this attempt.
        attempt: u64,
    },
    /// The snapshot is being deleted: its image goes.
    SnapDelete {
        /// Which.
        id: SnapId,
    },
    /// The snapshot's data is destroyed: hashes of what the image holds are kept instead (see [`crate::hashes`]), durably, and
    /// then its data goes. Answered with [`Answer::Deleting`] while it is at it, to be asked again.
    SnapDestroy {
        /// Which; it is READY.
        id: SnapId,
        /// The attempt that the store names.
        attempt: u64,
        /// Key of the hashes: the same for all snapshots of the volume, or they can't be compared with each other.
        key: [u8; 16],
    },
    /// Reads whole blocks of an image that is READY, as do the next two: without any promise, at any epoch.
    SnapRead {
        /// Which.
        id: SnapId,
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// As `Kinds`.
    SnapKinds {
        /// Of which image.
        id: SnapId,
        /// Byte offset.
        offset: u64,
        /// Length in bytes, at most 64 MiB.
        len: u64,
    },
    /// As `Hash`.
    SnapHash {
        /// Of which image.
        id: SnapId,
        /// Byte offset.
        offset: u64,
        /// Length in bytes, at most 1 MiB.
        len: u64,
        /// Key of the hash, fresh per range.
        key: [u8; 16],
    },
    /// Which images there are, without any promise.
    Images {
        /// In the order of ids, from this one on.
        from: SnapId,
    },
    /// What differs between two images that are READY (R29), without any promise. Nothing differs where the replica reads both
    /// at the same place; elsewhere what is there is compared.
    SnapChanged {
        /// One of them: the range lies within it.
        id: SnapId,
        /// The other one: past its end it counts as never written.
        since: SnapId,
        /// Byte offset: a multiple of [`CHANGED_GRAIN`].
        offset: u64,
        /// Length in bytes, at most [`CHANGED_MAX`].
        len: u64,
        /// Key of the hashes that are compared, fresh per range.
        key: [u8; 16],
    },
}

impl<P> Ask<P> {
    /// Is it a look at images, which may be had without a promise (R1's last sentence)?
    #[must_use]
    pub fn is_of_images(&self) -> bool {
        matches!(
            self,
            Ask::SnapRead { .. }
                | Ask::SnapKinds { .. }
                | Ask::SnapHash { .. }
                | Ask::Images { .. }
                | Ask::SnapChanged { .. }
        )
    }
}

/// The first request of an attachment.
#[derive(Clone, Debug, PartialEq)]
pub struct Attach {
    /// Which volume.
    pub volume: VolumeId,
    /// Which replica of it.
    pub rid: Rid,
    /// In which pool it should be.
    pub pool: PoolId,
    /// Who asks; proven by the connection's identity once there is one.
    pub host: HostId,
    /// For which session.
    pub session: SessionId,
    /// Higher than any attachment of this session before (R1).
    pub ordinal: Ordinal,
    /// The session's watermark.
    pub watermark: Watermark,
}

/// What blocks without data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hole {
    /// Zeroed or discarded.
    Zero,
    /// Never written: reads as zero, told apart for layers below (4.6).
    Absent,
}

/// A response with its frame's common fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Response<P> {
    /// The request's tag.
    pub tag: u32,
    /// The replica's promised epoch when it answered.
    pub epoch: Epoch,
    /// The outcome.
    pub outcome: Result<Answer<P>, Refusal>,
    /// Time from receipt to answer at the replica, in microseconds.
    pub service_us: u32,
}

/// A granted request's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer<P> {
    /// Done, nothing to add: `Detach`, `Write`, `Zero`, `Flush`, `Seal`, `Grow`, `SnapMake`, `SnapPrepare`, `SnapReady`, `SnapDrop`,
    /// `SnapDelete` where there is no such image any more, and `SnapDestroy` where hashes of it are kept.
    Done,
    /// To `Attach`.
    Attached(ReplicaView),
    /// To `Promise`.
    Promised(ReplicaView),
    /// To `Read` and `SnapRead`: runs in order that cover the range exactly.
    Data(Vec<Extent<P>>),
    /// To `Kinds` and `SnapKinds`: (length in bytes, kind) runs that cover the range exactly; `None` is data.
    Kinds(Vec<(u64, Option<Hole>)>),
    /// To `Stamps`: (region, stamp) in order; `next` is where the next page starts.
    Stamps {
        /// The page.
        stamps: Vec<(u32, Generation)>,
        /// First region of the next page, if there is one.
        next: Option<u32>,
    },
    /// To `Hash` and `SnapHash`: one per block.
    Hashes(Vec<[u8; 16]>),
    /// To `Heartbeat`.
    Alive {
        /// Age of the oldest unfinished disk request, in milliseconds; 0 if none.
        oldest_io_ms: u32,
        /// Free bytes of the pool.
        free_bytes: u64,
    },
    /// To `SnapDelete`: it is in the log, and goes on after a restart, but the image is still there; to `SnapDestroy`: it is
    /// being done, and begins again after a restart. To be asked again.
    Deleting,
    /// To `Images`, in the order of ids: with less than [`IMAGES_PAGE`] of them there are no more.
    Images(Vec<ImageView>),
    /// To `SnapChanged`: one bit for each [`CHANGED_GRAIN`] of the range, the highest of each byte first; set: it differs.
    Changed(Vec<u8>),
}

/// What a replica tells of one of its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageView {
    /// Of which snapshot.
    pub id: SnapId,
    /// Of which attempt at it.
    pub attempt: u64,
    /// The barrier's generation.
    pub generation: Generation,
    /// How far it is.
    pub state: ImageState,
    /// It needs nothing of the volume's current data.
    pub whole: bool,
    /// The replica got it from others, and did not take it itself.
    pub copied: bool,
    /// Size in bytes.
    pub size: u64,
}

/// One run of a read.
#[derive(Clone, Debug, PartialEq)]
pub enum Extent<P> {
    /// Blocks with data and the CRC32C of each.
    Data {
        /// One CRC per block.
        crcs: Vec<u32>,
        /// The bytes.
        data: P,
    },
    /// Blocks without data.
    Hole {
        /// Length in bytes.
        len: u64,
        /// Zero or absent.
        kind: Hole,
    },
}

/// What a replica tells of itself at attach and promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaView {
    /// Promised epoch.
    pub promised: Epoch,
    /// The session that was promised.
    pub session: SessionId,
    /// Highest sealed generation.
    pub sealed: Generation,
    /// Highest stamp of any region.
    pub newest: Generation,
    /// Number of regions stamped above `sealed`.
    pub unsealed_regions: u32,
    /// Came back with another boot id or device generation, without clean stop (R8).
    pub lossy: bool,
    /// Size in bytes.
    pub size: u64,
    /// The pool's incarnation (R10).
    pub pool_inc: PoolInc,
    /// The higher of the replica's host's watermark and what other hosts have told that one of theirs (R11).
    pub watermark: Watermark,
    /// Highest ordinal of the asking session seen so far.
    pub ordinal: Ordinal,
}

/// Why a replica did not execute a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// (epoch, session) is not what was promised; `Response::epoch` tells what was.
    StaleEpoch,
    /// A newer attachment of the session exists, or there was no `Attach` on this one.
    NotAttached,
    /// No such replica here.
    NoReplica,
    /// An equal epoch was promised to another session, or the watermark goes back (R11).
    MetadataRollback,
    /// Range or size out of bounds, or not whole blocks.
    OutOfBounds,
    /// Data did not match its CRC: nothing was stored.
    BadCrc,
    /// No space; nothing was promised about the range.
    NoSpace,
    /// The disk failed; the range's content is undefined until rewritten or resynced.
    IoError,
    /// The stored block fails its own checksum (bit rot).
    BitRot,
    /// Metadata damaged or incarnation mismatch: content is not trusted (R10, R24).
    Quarantined,
    /// Too many requests at once; ask again.
    Busy,
    /// No such image here, or none that may be read.
    NoSnapshot,
    /// This replica can have no images where it lies.
    NoSnapshots,
    /// Not above the highest attempt at this snapshot that was seen here.
    OldAttempt,
    /// Of an interval that a barrier has ended here.
    OldGeneration,
}
