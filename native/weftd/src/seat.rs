//! Who on this host asks replicas, and offers what they hold to guests.
//!
//! Must always hold: of each there is one in this process, so answers and guests find it.

use weft_proto::ids::{SnapId, VolumeId};

/// A session of a volume, or a reader of snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seat {
    /// The session of this volume.
    Session(VolumeId),
    /// The reader of this snapshot.
    Reader(SnapId),
    /// Whoever compares two snapshots for somebody.
    Comparison(u64),
    /// Whoever brings a snapshot to a copy here.
    Fetch(u64),
}

impl From<VolumeId> for Seat {
    fn from(volume: VolumeId) -> Seat {
        Seat::Session(volume)
    }
}

impl From<SnapId> for Seat {
    fn from(snap: SnapId) -> Seat {
        Seat::Reader(snap)
    }
}

impl std::fmt::Display for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Seat::Session(volume) => write!(f, "volume {volume}"),
            Seat::Reader(snap) => write!(f, "snapshot {snap}"),
            Seat::Comparison(number) => write!(f, "comparison {number}"),
            Seat::Fetch(number) => write!(f, "fetch {number}"),
        }
    }
}
