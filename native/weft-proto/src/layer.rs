//! What is written in a volume that is a layer, sector by sector (docs/model.md R34).
//!
//! Replicas keep whole blocks of 4 KiB, and guests write sectors of 512 bytes. What a guest leaves of a block that nobody had
//! written before must not be taken for zeroes when the layer is laid over another volume: there it is filled with the volume's
//! mark, 128 random bits over and over, and so it lies on every copy.
//!
//! Must always hold: a sector of a layer's data has the mark all over exactly if nobody has written it. No guest knows the
//! mark: [`hide`] shows zeroes instead, as before the first write.

use alloc::vec::Vec;
use core::ops::Range;

use crate::ids::LayerMark;
use crate::message::Extent;
use crate::payload::{BLOCK, Payload};

/// What guests write whole, in bytes.
pub const SECTOR: usize = 512;

/// A block of which nobody has written anything.
#[must_use]
pub fn unwritten_block(mark: LayerMark) -> Vec<u8> {
    let len = usize::try_from(BLOCK).expect("4096");
    mark.0.to_be_bytes().into_iter().cycle().take(len).collect()
}

/// Is this a sector that nobody has written?
fn is_unwritten(mark: [u8; 16], sector: &[u8]) -> bool {
    sector.chunks(16).all(|piece| piece == mark)
}

/// The written parts of a layer's data, which is whole sectors: byte ranges in order, as long as they can be.
#[must_use]
pub fn written(mark: LayerMark, data: &[u8]) -> Vec<Range<usize>> {
    let mark = mark.0.to_be_bytes();
    let mut parts: Vec<Range<usize>> = Vec::new();
    for (number, sector) in data.chunks(SECTOR).enumerate() {
        if is_unwritten(mark, sector) {
            continue;
        }
        let start = number * SECTOR;
        let end = start + sector.len();
        match parts.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => parts.push(start..end),
        }
    }
    parts
}

/// Makes of a layer's data, of whole sectors from a sector's start on, what a guest may read; true if anything was changed.
pub fn hide<P: Payload>(mark: LayerMark, data: &mut P) -> bool {
    let piece = mark.0.to_be_bytes();
    if !data.bytes().chunks(SECTOR).any(|sector| is_unwritten(piece, sector)) {
        return false;
    }
    for sector in data.bytes_mut().chunks_mut(SECTOR) {
        if is_unwritten(piece, sector) {
            sector.fill(0);
        }
    }
    true
}

/// The same of all parts of an answer, which begin at sectors.
pub(crate) fn hide_all<P: Payload>(mark: LayerMark, parts: &mut [(u64, Vec<Extent<P>>)]) {
    for extent in parts.iter_mut().flat_map(|(_, extents)| extents) {
        if let Extent::Data { crcs, data } = extent
            && hide(mark, data)
        {
            crcs.clear();
        }
    }
}

/// May a guest's write, or zeroing, of this range be done in a layer? Of part of a sector nobody could say later what of it was
/// written.
#[must_use]
pub fn is_whole_sectors(offset: u64, len: u64) -> bool {
    (offset | len).is_multiple_of(SECTOR as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::HeapPayload;
    use alloc::vec;

    const MARK: LayerMark = LayerMark(0x0123_4567_89ab_cdef_0011_2233_4455_6677);

    fn one(start: usize, end: usize) -> Vec<Range<usize>> {
        core::iter::once(start..end).collect()
    }

    #[test]
    fn what_was_written_is_told_from_what_was_not_also_where_it_is_zero() {
        let mut block = unwritten_block(MARK);
        assert_eq!((block.len(), written(MARK, &block)), (4096, vec![]));
        block[512..1536].fill(0);
        block[3584..].fill(7);
        assert_eq!(written(MARK, &block), [512..1536, 3584..4096]);
        // Sixteen bytes that look like it are not the whole sector.
        block[2048..2064].fill(1);
        assert_eq!(written(MARK, &block), [512..1536, 2048..2560, 3584..4096]);
        assert_eq!(written(MARK, &[9; 8192]), one(0, 8192));
        assert_eq!(written(LayerMark(1), &block), one(0, 4096), "of another volume's mark it is data");
    }

    #[test]
    fn nobody_reads_the_mark() {
        let mut block = unwritten_block(MARK);
        block[512..1024].fill(7);
        let mut data: HeapPayload = block.into();
        assert!(hide(MARK, &mut data));
        let mut shown = vec![0; 4096];
        shown[512..1024].fill(7);
        assert_eq!(data.bytes(), shown);
        assert!(!hide(MARK, &mut data), "once it is hidden there is none");
    }
}
