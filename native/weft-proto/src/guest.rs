//! What a guest asks of a session and what it is told. Exports speak this; the session answers each id once.

use alloc::vec::Vec;

use crate::ids::SnapId;
use crate::message::{Extent, Hole};

/// Names a guest's request until it is answered; chosen by the export, unique per session while unanswered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct RequestId(pub u64);

/// A guest's request. Offsets and lengths are bytes and need not be aligned: the session clips nothing and
/// refuses what lies outside of the volume.
#[derive(Clone, Debug, PartialEq)]
pub enum GuestOp<P> {
    /// Reads a range.
    Read {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Writes a range.
    Write {
        /// Byte offset.
        offset: u64,
        /// The bytes, already a private copy (R12).
        data: P,
        /// Answer only when on stable media.
        fua: bool,
    },
    /// Everything answered before is on stable media when this is answered.
    Flush,
    /// Makes a range read as zero.
    Zero {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// A discard: give the space back.
        discard: bool,
        /// Keep the space allocated.
        keep_space: bool,
        /// Answer only when on stable media (always so, R19).
        fua: bool,
    },
    /// Tells data from holes.
    Kinds {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Tells what differs from another snapshot of the volume (R29); of a snapshot only.
    Changed {
        /// Which one.
        since: SnapId,
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// The answer to a guest's request.
#[derive(Clone, Debug, PartialEq)]
pub enum GuestReply<P> {
    /// Written, flushed, zeroed.
    Done,
    /// Runs that cover the asked range exactly (clipped to its bytes); CRC lists are empty where a run was cut.
    Data(Vec<Extent<P>>),
    /// (length in bytes, kind) runs that cover the asked range exactly; `None` is data.
    Kinds(Vec<(u64, Option<Hole>)>),
    /// What differs.
    Changed {
        /// (length in bytes, whether it may differ) runs that cover the asked range exactly.
        runs: Vec<(u64, bool)>,
        /// Each 64 KiB that is told as different is; else it may only be so.
        exact: bool,
    },
    /// Not done, and waiting can't help.
    Failed(GuestError),
}

/// Why a guest's request failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestError {
    /// Outside of the volume.
    OutOfRange,
    /// The session is no longer the owner (stolen, or ended): nothing more will ever be done by it.
    Fenced,
    /// No member has a readable copy of the block.
    Unreadable,
    /// `on_loss = error`: the volume waits, and its policy says that the guest is told.
    Waiting,
}
