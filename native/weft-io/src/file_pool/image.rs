//! Looking at an image: what [`PoolOp::Image`](super::PoolOp::Image) does on a thread of its own.

use weft_proto::ids::SnapId;
use weft_proto::log::ReplicaKey;
use weft_proto::payload::{BLOCK, Payload};
use weft_proto::replica::{DiskDone, DiskOp};

use super::job::{Found, Work, conclude, join_extents, join_kinds};
use super::op::PoolError;
use super::{BLOCK_LEN, at, segment_of, whole_blocks};
use crate::buffer::IoBuf;
use crate::driver::Fd;
use crate::images::ImageSegment;
use crate::segment::Piece;
use crate::sidecar::{Entry, SEGMENT_BLOCKS, Sidecar};
use crate::store::Store;

/// Reads, tells kinds of or hashes blocks that one of these images has.
pub(super) fn look(
    store: &dyn Store,
    root: &Fd,
    key: ReplicaKey,
    of: [Option<SnapId>; 2],
    op: DiskOp<IoBuf>,
) -> Result<DiskDone<IoBuf>, PoolError> {
    let (offset, len, work) = match op {
        DiskOp::Read { offset, len } => (offset, len, Work::Read),
        DiskOp::Kinds { offset, len } => (offset, len, Work::Kinds),
        DiskOp::Hash { offset, len, key } => (offset, len, Work::Hash { key }),
        _ => return Err(PoolError::OutOfBounds),
    };
    if !whole_blocks(offset, len) || offset.checked_add(len).is_none_or(|end| end > 1 << 46) {
        return Err(PoolError::OutOfBounds);
    }
    let (mut block, end) = (offset / BLOCK, (offset + len) / BLOCK);
    let mut found = Vec::new();
    while block < end {
        let segment = segment_of(block);
        let stop = end.min(at(segment, SEGMENT_BLOCKS)).min(block + 256);
        let within = |block: u64| u32::try_from(block - at(segment, 0)).expect("within a segment");
        let piece = Piece { job: 0, segment, lo: within(block), hi: within(stop), exclusive: false };
        let mut outcome = Err(PoolError::ImageDamaged { offset: block * BLOCK });
        store.image_segment(root, key, of, segment, &mut |there| outcome = look_at(there, &work, piece))?;
        found.push(outcome?);
        block = stop;
    }
    Ok(match work {
        Work::Kinds => DiskDone::Kinds(join_kinds(found.into_iter())),
        Work::Hash { .. } => {
            let hashes = |found| if let Found::Hashes(hashes) = found { hashes } else { Vec::new() };
            DiskDone::Hashes(found.into_iter().flat_map(hashes).collect())
        }
        _ => DiskDone::Data(join_extents(found.into_iter())),
    })
}

fn look_at(there: &ImageSegment, work: &Work, piece: Piece) -> Result<Found, PoolError> {
    let place = |block: u32| at(piece.segment, block) * BLOCK;
    let mut sidecar = Sidecar::default();
    let mut span: Option<(u32, u32)> = None;
    for (block, entry) in (piece.lo..).zip(there.entries(piece.lo..piece.hi)?) {
        let entry = entry.ok_or(PoolError::ImageDamaged { offset: place(block) })?;
        sidecar.set(block, entry);
        match entry {
            Entry::Damaged if !matches!(work, Work::Kinds) => {
                return Err(PoolError::BitRot { offset: place(block) });
            }
            Entry::Data(_) => span = Some((span.map_or(block, |(lo, _)| lo), block + 1)),
            _ => {}
        }
    }
    let Some((lo, hi)) = span.filter(|_| !matches!(work, Work::Kinds)) else {
        return conclude(work, piece, None, &sidecar);
    };
    let mut buf = IoBuf::zeroed((hi - lo) as usize * BLOCK_LEN);
    there.read(&mut buf, lo)?;
    for (block, bytes) in (lo..).zip(buf.bytes().chunks_exact(BLOCK_LEN)) {
        if let Entry::Data(crc) = sidecar.get(block)
            && crc32c::crc32c(bytes) != crc
        {
            return Err(PoolError::BitRot { offset: place(block) });
        }
    }
    conclude(work, piece, Some((lo, buf)), &sidecar)
}
