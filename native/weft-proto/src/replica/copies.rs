//! Images of snapshots that were taken while this replica was away, or before it was one (protocol.md 4.19): what others have of
//! them is put into an image of its own, which is there when all of it is.
//!
//! ```text
//! begun ──▶ filled, piece by piece, in order of address ──▶ published: durable as a whole, with its name ──▶ an image, PREPARED
//!   └─────────┴──▶ given up, refused by the pool ──▶ removed
//! ```
//!
//! Must always hold:
//! * nobody knows of it, nor reads it, before all of it is durable: no image, no list, no repair of the store names half of one;
//! * a region that it has was filled to its end, one that it has not is absent in the snapshot;
//! * what was begun and is not to be leaves no word of being gone: the snapshot is there, elsewhere;
//! * none is begun beside another image of its snapshot, or where that was deleted.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{Action, DiskDone, DiskError, IMAGES_MAX, ImageOp, Replica, Token};
use crate::checkpoint::image_slot_len;
use crate::ids::{Epoch, Generation, Instant, SnapId};
use crate::images::{Image, ImageForm, ImageState, Regions, SEGMENT_SHIFT};
use crate::message::Extent;
use crate::payload::{BLOCK, Payload};
use crate::record::REGIONS_MAX;

/// Which snapshot is copied, by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyOf {
    /// The snapshot.
    pub id: SnapId,
    /// Which attempt's images are its own.
    pub attempt: u64,
    /// The barrier's generation.
    pub generation: Generation,
    /// The owner's epoch then.
    pub epoch: Epoch,
    /// The store's incarnation then.
    pub incarnation: u64,
    /// Size in bytes.
    pub size: u64,
    /// Regions were `1 << region_shift` bytes.
    pub region_shift: u8,
}

/// Why there is no copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCopied {
    /// There is an image of that snapshot already, or one goes.
    There,
    /// The snapshot is being deleted, or was.
    Deleted,
    /// What is asked for is no image that can be.
    OutOfBounds,
    /// The replica has as many images as it may.
    Full,
    /// The pool refused.
    Disk(DiskError),
    /// The replica is not served any more, or whoever wanted it has given it up.
    Ended,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyStep {
    /// It can be filled.
    Begun,
    /// A piece is there.
    Filled {
        /// So many of its bytes are shared with the head, and took no room.
        shared: u64,
    },
    /// It is an image as every other one, PREPARED.
    Whole,
    /// It comes to nothing.
    Failed(NotCopied),
}

#[derive(Debug)]
enum Stage<P> {
    Beginning,
    /// Nothing is at the pool.
    Idle,
    /// The segment before is made durable, then this goes there.
    Syncing {
        offset: u64,
        extents: Vec<Extent<P>>,
        end: u64,
    },
    Filling {
        end: u64,
    },
    Publishing,
    Abandoning(NotCopied),
}

/// A copy under way.
#[derive(Debug)]
pub(super) struct Copying<P> {
    of: CopyOf,
    stage: Stage<P>,
    token: Token,
    written: Regions,
    /// Below this byte all is done.
    at: u64,
    given_up: Option<NotCopied>,
}

/// All copies of a replica.
#[derive(Debug)]
pub(super) struct Copies<P> {
    all: BTreeMap<SnapId, Copying<P>>,
    told: VecDeque<(SnapId, CopyStep)>,
}

impl<P> Default for Copies<P> {
    fn default() -> Self {
        Copies { all: BTreeMap::new(), told: VecDeque::new() }
    }
}

impl<P> Copies<P> {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn has(&self, id: SnapId) -> bool {
        self.all.contains_key(&id)
    }
}

impl<P: Payload> Replica<P> {
    /// Begins an image of a snapshot that others have. [`Replica::poll_copied`] tells when it can be filled.
    pub fn begin_copy(&mut self, of: CopyOf) -> Result<(), NotCopied> {
        if self.failed || self.quarantined {
            return Err(NotCopied::Ended);
        }
        let fits = of.size > 0
            && of.size.is_multiple_of(BLOCK)
            && (16..=SEGMENT_SHIFT).contains(&of.region_shift)
            && of.size.div_ceil(1 << of.region_shift) <= REGIONS_MAX;
        if !fits {
            return Err(NotCopied::OutOfBounds);
        }
        if self.copies.has(of.id) || self.is_imaging(of.id) {
            return Err(NotCopied::There);
        }
        if self.durable.images.gone().any(|(id, attempt)| id == of.id && attempt >= of.attempt) {
            return Err(NotCopied::Deleted);
        }
        if self.images_len() >= IMAGES_MAX {
            return Err(NotCopied::Full);
        }
        let token = self.token();
        let regions = usize::try_from(of.size.div_ceil(1 << of.region_shift)).expect("at most 2^20 regions");
        let op = ImageOp::CopyBegin { image: of.id, slot_bytes: image_slot_len(regions) as u64 };
        let (stage, written) = (Stage::Beginning, Regions::default());
        self.copies.all.insert(of.id, Copying { of, stage, token, written, at: 0, given_up: None });
        self.actions.push_back(Action::Image { token, op });
        Ok(())
    }

    /// Puts the next blocks into it. What was left out since the last ones is absent: whole regions, as all that these begin in.
    pub fn fill_copy(&mut self, id: SnapId, offset: u64, extents: Vec<Extent<P>>) {
        let Some(copying) = self.copies.all.get_mut(&id).filter(|c| matches!(c.stage, Stage::Idle)) else {
            return;
        };
        let len = |extent: &Extent<P>| match extent {
            Extent::Data { data, .. } => data.len() as u64,
            Extent::Hole { len, .. } => *len,
        };
        let region = 1 << copying.of.region_shift;
        let len: u64 = extents.iter().map(len).sum();
        let end = offset.saturating_add(len);
        let goes_on = offset == copying.at || offset.is_multiple_of(region) && copying.ends_region();
        let fits = len > 0
            && len.is_multiple_of(BLOCK)
            && end <= copying.of.size
            && offset >> SEGMENT_SHIFT == (end - 1) >> SEGMENT_SHIFT;
        if !goes_on || offset < copying.at || !fits {
            return self.abandon_copy(id, NotCopied::OutOfBounds);
        }
        let before = copying.at.saturating_sub(1) >> SEGMENT_SHIFT;
        if copying.at > 0 && before != offset >> SEGMENT_SHIFT {
            copying.stage = Stage::Syncing { offset, extents, end };
            let segment = u32::try_from(before).expect("volumes end at 64 TiB");
            let (token, op) = (copying.token, ImageOp::CopySync { image: id, segment });
            return self.actions.push_back(Action::Image { token, op });
        }
        self.put_into_copy(id, offset, extents, end);
    }

    fn put_into_copy(&mut self, id: SnapId, offset: u64, extents: Vec<Extent<P>>, end: u64) {
        let Some(copying) = self.copies.all.get_mut(&id) else { return };
        copying.stage = Stage::Filling { end };
        let region = |at: u64| u32::try_from(at >> copying.of.region_shift).expect("at most 2^20 regions");
        (region(offset)..=region(end - 1)).for_each(|region| copying.written.add(region));
        let op = ImageOp::CopyFill { image: id, offset, extents };
        self.actions.push_back(Action::Image { token: copying.token, op });
    }

    /// All of it was put there: it becomes an image.
    pub fn finish_copy(&mut self, id: SnapId) {
        let Some(copying) = self.copies.all.get_mut(&id).filter(|c| matches!(c.stage, Stage::Idle)) else {
            return;
        };
        if !copying.ends_region() {
            return self.abandon_copy(id, NotCopied::OutOfBounds);
        }
        copying.stage = Stage::Publishing;
        let op = ImageOp::CopyPublish { image: Box::new(copying.image()) };
        self.actions.push_back(Action::Image { token: copying.token, op });
    }

    /// Nobody wants it any more: it goes, after what is at the pool.
    pub fn give_up_copy(&mut self, id: SnapId) {
        self.end_copy(id, NotCopied::Ended);
    }

    /// The same of all that there are.
    pub fn give_up_copies(&mut self) {
        let all: Vec<SnapId> = self.copies.all.keys().copied().collect();
        all.into_iter().for_each(|id| self.give_up_copy(id));
    }

    /// Is one of this snapshot under way?
    #[must_use]
    pub fn is_copying(&self, id: SnapId) -> bool {
        self.copies.has(id)
    }

    /// How far one of them has come.
    pub fn poll_copied(&mut self) -> Option<(SnapId, CopyStep)> {
        self.copies.told.pop_front()
    }

    /// Its snapshot goes, or it is not wanted.
    pub(super) fn end_copy(&mut self, id: SnapId, why: NotCopied) {
        match self.copies.all.get_mut(&id) {
            Some(Copying { stage: Stage::Idle, .. }) => self.abandon_copy(id, why),
            Some(copying) => {
                copying.given_up.get_or_insert(why);
            }
            None => {}
        }
    }

    fn abandon_copy(&mut self, id: SnapId, why: NotCopied) {
        let Some(copying) = self.copies.all.get_mut(&id) else { return };
        copying.stage = Stage::Abandoning(why);
        let op = ImageOp::CopyAbandon { image: id };
        self.actions.push_back(Action::Image { token: copying.token, op });
    }

    /// The pool has done something for a copy, or not. The outcome back: `token` is none of these.
    pub(super) fn copy_done(
        &mut self,
        now: Instant,
        token: Token,
        outcome: Result<DiskDone<P>, DiskError>,
    ) -> Result<(), Result<DiskDone<P>, DiskError>> {
        let found = self.copies.all.iter().find(|(_, copying)| copying.token == token);
        let Some(id) = found.map(|(id, _)| *id) else { return Err(outcome) };
        let ended = (self.failed || self.quarantined).then_some(NotCopied::Ended);
        let Some(copying) = self.copies.all.get_mut(&id) else { return Ok(()) };
        let given_up = copying.given_up.or(ended);
        let stage = core::mem::replace(&mut copying.stage, Stage::Idle);
        let step = match (stage, outcome) {
            (Stage::Abandoning(why), _) => {
                // What could not be removed is at the next start.
                self.copies.all.remove(&id);
                CopyStep::Failed(why)
            }
            (Stage::Publishing, Ok(_)) => {
                let image = copying.image();
                self.copies.all.remove(&id);
                self.copied_is_there(image, given_up.is_some());
                self.settle(now);
                given_up.map_or(CopyStep::Whole, CopyStep::Failed)
            }
            (_, Err(error)) => {
                self.abandon_copy(id, NotCopied::Disk(error));
                return Ok(());
            }
            (_, Ok(_)) if let Some(why) = given_up => {
                self.abandon_copy(id, why);
                return Ok(());
            }
            (Stage::Syncing { offset, extents, end }, Ok(_)) => {
                self.put_into_copy(id, offset, extents, end);
                return Ok(());
            }
            (Stage::Filling { end }, Ok(done)) => {
                copying.at = end;
                CopyStep::Filled { shared: if let DiskDone::Shared(len) = done { len } else { 0 } }
            }
            (Stage::Beginning | Stage::Idle, Ok(_)) => CopyStep::Begun,
        };
        self.copies.told.push_back((id, step));
        Ok(())
    }
}

impl<P> Copying<P> {
    /// Is what was filled last filled to the end of its region?
    fn ends_region(&self) -> bool {
        self.at == self.of.size || self.at.is_multiple_of(1 << self.of.region_shift)
    }

    fn image(&self) -> Image {
        let CopyOf { id, attempt, generation, epoch, incarnation, size, region_shift } = self.of;
        Image {
            id,
            attempt,
            generation,
            epoch,
            incarnation,
            size,
            region_shift,
            form: ImageForm::Copied,
            state: ImageState::Prepared,
            note: Vec::new(),
            has: self.written.clone(),
            written: self.written.clone(),
        }
    }
}
