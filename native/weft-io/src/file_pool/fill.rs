//! Filling an image with what other members have of a snapshot: [`PoolOp::BeginCopy`](super::PoolOp::BeginCopy) and
//! [`PoolOp::FillCopy`](super::PoolOp::FillCopy).
//!
//! Must always hold:
//! * a block is shared with the head only if its bytes there are those that arrived, and whoever writes to it waits from that
//!   comparison on until it is shared (docs/model.md, `image-copy-unlocked`);
//! * it is refused room where guests' writes would be, and no pool is called full because of it.

use super::*;
use crate::copies::Arrived;
use crate::reflink::NoSnapshots;
use weft_proto::message::Extent;

impl FilePool {
    pub(super) fn begin_copy(&mut self, token: u64, key: ReplicaKey, image: SnapId, slot_bytes: u64) {
        let why = match self.dir.probe().ability {
            Ability::Reflink => None,
            Ability::Thin => Some(NoSnapshots::OthersOnThin),
            Ability::None(why) => Some(why),
        };
        if let Some(why) = why {
            return self.answer(token, Err(PoolError::NoSnapshots(why)));
        }
        let bytes = slot_bytes.saturating_mul(2).saturating_add(NAMES_ROOM);
        if !self.room.reserve(Taker::Op(token), bytes) {
            return self.answer(token, Err(PoolError::NoSpace));
        }
        self.imaged.insert(key);
        let (files, root) = (self.dir.files.clone(), self.dir.root.clone());
        self.call_bulk(token, move || {
            copies::begin(&files, &root, (key, image), slot_bytes)?;
            Ok(PoolAnswer::Done)
        });
    }

    pub(super) fn fill_copy(
        &mut self,
        token: u64,
        (key, image): (ReplicaKey, SnapId),
        offset: u64,
        extents: Vec<Extent<IoBuf>>,
    ) {
        let arrived = Arrived::new(offset / BLOCK, extents).filter(|arrived| {
            let range = offset / BLOCK..arrived.end();
            offset.is_multiple_of(BLOCK)
                && !range.is_empty()
                && range.end <= 1 << 34
                && segment_of(range.start) == segment_of(range.end - 1)
        });
        let Some(arrived) = arrived else { return self.answer(token, Err(PoolError::OutOfBounds)) };
        let range = offset / BLOCK..arrived.end();
        let bytes = (range.end - range.start) * BLOCK + SEGMENT_ROOM;
        if !self.room.reserve(Taker::Op(token), bytes) {
            return self.answer(token, Err(PoolError::NoSpace));
        }
        let arrived = Arc::new(arrived);
        let head = self
            .replicas
            .get(&key)
            .filter(|replica| replica.closing.is_none() && !replica.failed && range.end <= replica.blocks);
        if head.is_none() {
            let (files, root) = (self.dir.files.clone(), self.dir.root.clone());
            return self.call_bulk(token, move || {
                let number = segment_of(range.start);
                let within = |block: u64| u32::try_from(block - at(number, 0)).expect("within a segment");
                let blocks = within(range.start)..within(range.end);
                copies::fill(&files, &root, (key, image, number), (&arrived, blocks), None)?;
                Ok(PoolAnswer::Disk(DiskDone::Shared(0)))
            });
        }
        self.begin(Job {
            token,
            replica: key,
            work: Work::Fill { image, arrived, same: BTreeMap::new(), shared: 0 },
            feed: VecDeque::from([range]),
            pending: 0,
            error: None,
            found: BTreeMap::new(),
        });
    }

    /// A piece goes into an image that is filled; with the head's file it holds its blocks there.
    pub(super) fn put_into_copy(&mut self, key: ReplicaKey, piece: Piece, head: Option<Fd>) {
        let job = self.jobs.get_mut(piece.job).expect("a piece's job is under way");
        let Work::Fill { image, arrived, same, .. } = &job.work else { unreachable!("only a Fill fills") };
        let (place, arrived) = ((key, *image, piece.segment), arrived.clone());
        let same = same.get(&piece.segment).cloned().unwrap_or_default();
        let (files, root) = (self.dir.files.clone(), self.dir.root.clone());
        self.workers.run(move || {
            let head_of = head.as_ref().map(|head| (head, &same));
            let result = copies::fill(&files, &root, place, (&arrived, piece.lo..piece.hi), head_of);
            Called::Filled(key, piece, head.is_some(), result)
        });
    }

    pub(super) fn on_filled(
        &mut self,
        key: ReplicaKey,
        piece: Piece,
        held: bool,
        result: Result<u32, Errno>,
    ) {
        if let (Ok(blocks), Some(job)) = (&result, self.jobs.get_mut(piece.job))
            && let Work::Fill { shared, .. } = &mut job.work
        {
            *shared += u64::from(*blocks) * BLOCK;
        }
        let result = result.map(|_| Found::Nothing).map_err(PoolError::from);
        if held {
            return self.end_piece(key, piece, result);
        }
        self.record(&piece, result);
        self.pumps.push_back(piece.job);
    }
}
