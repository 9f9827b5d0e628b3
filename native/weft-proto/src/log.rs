//! The pool's metadata log: records.

use alloc::vec::Vec;

use crate::ids::{Epoch, Generation, Rid, SessionId, VolumeId};

/// Whose record it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplicaKey {
    /// The volume.
    pub volume: VolumeId,
    /// The replica's number.
    pub rid: Rid,
}

/// One change of a replica's durable state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    /// The replica was made.
    Create {
        /// Size in bytes.
        size: u64,
        /// Regions are `1 << region_shift` bytes.
        region_shift: u8,
    },
    /// A promise.
    Promise {
        /// The epoch.
        epoch: Epoch,
        /// The session.
        session: SessionId,
        /// The record as JSON.
        record: Vec<u8>,
    },
    /// Regions stamped.
    Stamp {
        /// With this generation.
        generation: Generation,
        /// These regions.
        regions: Vec<u32>,
    },
    /// A generation sealed.
    Sealed {
        /// Which.
        generation: Generation,
    },
    /// The size raised.
    Grow {
        /// New size in bytes.
        size: u64,
    },
    /// The machine that serves it.
    Identity {
        /// The kernel's boot id.
        boot_id: u128,
        /// The device's generation.
        device_generation: u64,
        /// Everything was flushed before the stop.
        clean_stop: bool,
    },
    /// The replica went to the trash.
    Trashed,
}
