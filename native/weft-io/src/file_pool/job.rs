//! An op on a replica under way, and what its pieces find.

use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use weft_proto::ids::SnapId;
use weft_proto::log::ReplicaKey;
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::{BLOCK, Payload, block_hash};

use super::BLOCK_LEN;
use super::op::PoolError;
use crate::buffer::IoBuf;
use crate::copies::Arrived;
use crate::segment::Piece;
use crate::sidecar::{Entry, SEGMENT_BLOCKS, Sidecar};

/// An op under way.
pub(super) struct Job {
    pub(super) token: u64,
    pub(super) replica: ReplicaKey,
    pub(super) work: Work,
    /// Ranges of blocks that no piece has taken yet.
    pub(super) feed: VecDeque<Range<u64>>,
    /// Pieces and waits that have not ended.
    pub(super) pending: usize,
    pub(super) error: Option<PoolError>,
    /// By first block.
    pub(super) found: BTreeMap<u64, Found>,
}

pub(super) enum Work {
    Write {
        first: u64,
        data: IoBuf,
        crcs: Vec<u32>,
        durable: bool,
    },
    Zero {
        hole: Hole,
        keep_space: bool,
    },
    Read,
    Kinds,
    Hash {
        key: [u8; 16],
    },
    Flush {
        asked: bool,
    },
    Seal {
        asked: bool,
    },
    /// A thick replica gets the blocks of a range of bytes first.
    Grow {
        blocks: u64,
        reserve: Option<Range<u64>>,
        asked: bool,
    },
    Close {
        trash: Option<u64>,
        asked: bool,
    },
    Preserve {
        image: SnapId,
        segments: BTreeSet<u32>,
        asked: bool,
    },
    /// Sidecars are made right first: then room is made for an image, or it is taken.
    Image {
        image: SnapId,
        /// Of each of its two files; none: it is taken.
        slot_bytes: Option<u64>,
        step: Step,
    },
    /// Blocks for an image that is filled, and which of them, by segment, the head has just so.
    Fill {
        image: SnapId,
        arrived: Arc<Arrived>,
        same: BTreeMap<u32, BTreeSet<u32>>,
        shared: u64,
    },
    /// One piece. What of it is in doubt is looked at up to `looks` blocks at a time.
    CloneOut {
        to: ReplicaKey,
        looks: u32,
        shared: u64,
    },
}

/// How far a [`Work::Image`] is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Looking,
    Writing,
    Calling,
}

impl Work {
    /// What is in doubt and can't be read is entered as that.
    pub(super) fn settles(&self) -> bool {
        matches!(self, Work::Seal { .. } | Work::Image { .. })
    }

    /// Largest piece in blocks, and how many at a time.
    pub(super) fn pieces(&self) -> (u32, usize) {
        match self {
            Work::Write { .. } => (SEGMENT_BLOCKS, usize::MAX),
            Work::Zero { .. } | Work::Grow { .. } => (SEGMENT_BLOCKS, 4),
            Work::CloneOut { .. } => (SEGMENT_BLOCKS, 1),
            Work::Hash { .. } => (32, 4),
            Work::Read
            | Work::Kinds
            | Work::Seal { .. }
            | Work::Flush { .. }
            | Work::Close { .. }
            | Work::Image { .. }
            | Work::Fill { .. }
            | Work::Preserve { .. } => (256, 4),
        }
    }

    /// The pieces change blocks.
    pub(super) fn writes(&self) -> bool {
        matches!(self, Work::Write { .. } | Work::Zero { .. } | Work::Grow { .. })
    }

    /// A segment without files gets some.
    pub(super) fn creates(&self) -> bool {
        matches!(self, Work::Write { .. } | Work::Zero { hole: Hole::Zero, .. })
    }

    /// Blocks that it writes may need room.
    pub(super) fn allocates(&self) -> bool {
        matches!(self, Work::Write { .. } | Work::Zero { keep_space: true, .. })
    }

    pub(super) fn can_stop(&self) -> bool {
        matches!(
            self,
            Work::Zero { .. }
                | Work::Read
                | Work::Kinds
                | Work::Hash { .. }
                | Work::Seal { asked: false }
                | Work::Preserve { asked: false, .. }
        )
    }
}

/// What a piece found.
pub(super) enum Found {
    Nothing,
    Extents(Vec<Extent<IoBuf>>),
    Kinds(Vec<(u64, Option<Hole>)>),
    Hashes(Vec<[u8; 16]>),
}

/// What a block in doubt is, by its data.
pub(super) fn entry_of(known: Entry, bytes: &[u8]) -> Entry {
    let zero = bytes.iter().all(|b| *b == 0);
    match known {
        Entry::Absent | Entry::Zero if zero => known,
        _ => Entry::Data(crc32c::crc32c(bytes)),
    }
}

/// What a look at a segment without files finds.
pub(super) fn nothing_there(work: &Work, blocks: u32) -> Found {
    let len = u64::from(blocks) * BLOCK;
    match work {
        Work::Read => Found::Extents(vec![Extent::Hole { len, kind: Hole::Absent }]),
        Work::Kinds => Found::Kinds(vec![(len, Some(Hole::Absent))]),
        Work::Hash { key } => Found::Hashes(vec![block_hash(key, &[]); blocks as usize]),
        _ => Found::Nothing,
    }
}

/// The result of a look: the sidecar is right for the piece, and `looked` holds the data of all data blocks.
pub(super) fn conclude(
    work: &Work,
    piece: Piece,
    looked: Option<(u32, IoBuf)>,
    sidecar: &Sidecar,
) -> Result<Found, PoolError> {
    let hole = |entry: Entry| match entry {
        Entry::Absent => Some(Hole::Absent),
        Entry::Zero => Some(Hole::Zero),
        Entry::Data(_) | Entry::Damaged => None,
    };
    let data = |lo: u32, hi: u32| {
        let (first, buf) = looked.as_ref().expect("data blocks were read");
        buf.slice((lo - first) as usize * BLOCK_LEN, (hi - lo) as usize * BLOCK_LEN)
    };
    // Runs of one kind.
    let mut runs: Vec<(u32, u32, Option<Hole>)> = Vec::new();
    for block in piece.lo..piece.hi {
        let kind = hole(sidecar.get(block));
        match runs.last_mut() {
            Some((_, hi, last)) if *last == kind => *hi += 1,
            _ => runs.push((block, block + 1, kind)),
        }
    }
    Ok(match work {
        Work::Read => Found::Extents(
            runs.into_iter()
                .map(|(lo, hi, kind)| match kind {
                    Some(kind) => Extent::Hole { len: u64::from(hi - lo) * BLOCK, kind },
                    None => {
                        let crc = |block| if let Entry::Data(crc) = sidecar.get(block) { crc } else { 0 };
                        Extent::Data { crcs: (lo..hi).map(crc).collect(), data: data(lo, hi) }
                    }
                })
                .collect(),
        ),
        Work::Kinds => {
            Found::Kinds(runs.into_iter().map(|(lo, hi, kind)| (u64::from(hi - lo) * BLOCK, kind)).collect())
        }
        Work::Hash { key } => Found::Hashes(
            runs.into_iter()
                .flat_map(|(lo, hi, kind)| (lo..hi).map(move |block| (block, kind)))
                .map(|(block, kind)| match kind {
                    Some(Hole::Absent) => block_hash(key, &[]),
                    Some(Hole::Zero) => block_hash(key, &[0; BLOCK_LEN]),
                    None => block_hash(key, data(block, block + 1).bytes()),
                })
                .collect(),
        ),
        _ => Found::Nothing,
    })
}

/// Pieces' extents in order; holes of one kind that meet become one.
pub(super) fn join_extents(found: impl Iterator<Item = Found>) -> Vec<Extent<IoBuf>> {
    let mut all: Vec<Extent<IoBuf>> = Vec::new();
    for extent in found.flat_map(|f| if let Found::Extents(e) = f { e } else { Vec::new() }) {
        match (all.last_mut(), &extent) {
            (Some(Extent::Hole { len, kind }), Extent::Hole { len: more, kind: same }) if kind == same => {
                *len += more
            }
            _ => all.push(extent),
        }
    }
    all
}

pub(super) fn join_kinds(found: impl Iterator<Item = Found>) -> Vec<(u64, Option<Hole>)> {
    let mut all: Vec<(u64, Option<Hole>)> = Vec::new();
    for (len, kind) in found.flat_map(|f| if let Found::Kinds(k) = f { k } else { Vec::new() }) {
        match all.last_mut() {
            Some((total, last)) if *last == kind => *total += len,
            _ => all.push((len, kind)),
        }
    }
    all
}
