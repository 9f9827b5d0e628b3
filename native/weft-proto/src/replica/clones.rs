//! Clones of an image: what it has is shared out into a replica in the making beside this one, part by part, each from
//! where it is at that moment. When all of it is done the other one is whole and owes this one nothing.
//!
//! ```text
//! clone out ──where is the next part?──▶ pool: share it ──▶ … ──▶ told of the end
//! ```
//!
//! Must always hold:
//! * a part is shared from where the log has it when that is asked of the pool, which keeps it in order among what
//!   overlaps it; one that failed is looked for again, once it is elsewhere;
//! * it goes on only while the image is READY and of the same attempt, so that nothing is ever made of one that goes;
//! * its end is told once, whatever happened.

use alloc::vec::Vec;

use super::{Action, DiskDone, DiskError, ImageOp, Replica, Token};
use crate::durable::Durable;
use crate::ids::SnapId;
use crate::images::{Image, ImageState, Place, SEGMENT_SHIFT};
use crate::log::ReplicaKey;
use crate::payload::Payload;

/// Why a replica was not made of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCloned {
    /// There is no such image that is READY, or no longer.
    NoImage,
    /// The pool refused.
    Disk(DiskError),
    /// The source is not served any more, or whoever wanted it has given it up.
    Ended,
}

/// A clone under way.
#[derive(Debug)]
pub(super) struct Cloning {
    image: SnapId,
    attempt: u64,
    to: ReplicaKey,
    at: u64,
    /// The part that is at the pool: its end, and where it was.
    part: (u64, Place),
    given_up: bool,
}

impl<P: Payload> Replica<P> {
    /// Shares all that an image has out into a replica in the making, and says what that one is to be durably, once the end
    /// is told by [`Replica::poll_cloned`]. One at a time for each `to`.
    pub fn clone_out(&mut self, image: SnapId, to: ReplicaKey) -> Result<Durable, NotCloned> {
        let of = self.cloned_image(image, None)?;
        let durable = Durable::of_image(to.volume, to.rid, of);
        let attempt = of.attempt;
        let token = self.token();
        let part = (0, Place::Absent);
        self.cloning.insert(token, Cloning { image, attempt, to, at: 0, part, given_up: false });
        self.go_on_cloning(token);
        Ok(durable)
    }

    /// Nobody wants these any more: they end after what is at the pool.
    pub fn give_up_clones(&mut self, unwanted: impl Fn(ReplicaKey) -> bool) {
        self.cloning.values_mut().filter(|cloning| unwanted(cloning.to)).for_each(|c| c.given_up = true);
    }

    /// The next clone whose end is known.
    pub fn poll_cloned(&mut self) -> Option<(ReplicaKey, Result<(), NotCloned>)> {
        self.cloned.pop_front()
    }

    fn cloned_image(&self, id: SnapId, attempt: Option<u64>) -> Result<&Image, NotCloned> {
        if self.failed || self.quarantined {
            return Err(NotCloned::Ended);
        }
        let of = self.durable.images.get(id).filter(|of| of.state == ImageState::Ready);
        of.filter(|of| attempt.is_none_or(|attempt| of.attempt == attempt)).ok_or(NotCloned::NoImage)
    }

    fn go_on_cloning(&mut self, token: Token) {
        match self.next_to_clone(token) {
            Ok(Some(op)) => self.actions.push_back(Action::Image { token, op }),
            Ok(None) => self.end_clone(token, Ok(())),
            Err(why) => self.end_clone(token, Err(why)),
        }
    }

    fn end_clone(&mut self, token: Token, outcome: Result<(), NotCloned>) {
        if let Some(cloning) = self.cloning.remove(&token) {
            self.cloned.push_back((cloning.to, outcome));
        }
    }

    /// What is shared next: as far as it is in one place and one segment. None: all is.
    fn next_to_clone(&mut self, token: Token) -> Result<Option<ImageOp<P>>, NotCloned> {
        let Some(cloning) = self.cloning.get(&token) else { return Ok(None) };
        if cloning.given_up {
            return Err(NotCloned::Ended);
        }
        let (image, to, mut at) = (cloning.image, cloning.to, cloning.at);
        let of = self.cloned_image(image, Some(cloning.attempt))?;
        let (size, shift) = (of.size, of.region_shift);
        let place = |at: u64| {
            let region = u32::try_from(at >> shift).expect("within the image");
            self.durable.images.place(image, region).unwrap_or(Place::Absent)
        };
        let next = |at: u64| (((at >> shift) + 1) << shift).min(size);
        while at < size && place(at) == Place::Absent {
            at = next(at);
        }
        if at >= size {
            return Ok(None);
        }
        let found = place(at);
        let segment = ((at >> SEGMENT_SHIFT) + 1) << SEGMENT_SHIFT;
        let mut stop = next(at).min(segment);
        while stop < size.min(segment) && place(stop) == found {
            stop = next(stop).min(segment);
        }
        if let Some(cloning) = self.cloning.get_mut(&token) {
            (cloning.at, cloning.part) = (at, (stop, found));
        }
        Ok(Some(ImageOp::CloneOut { to, place: found, offset: at, len: stop - at }))
    }

    /// The pool has shared a part, or some of it from its start on, or not. None: `token` is none of these.
    pub(super) fn clone_done(
        &mut self,
        token: Token,
        outcome: Result<DiskDone<P>, DiskError>,
    ) -> Result<(), Result<DiskDone<P>, DiskError>> {
        let Some(cloning) = self.cloning.get_mut(&token) else { return Err(outcome) };
        let (from, (stop, found)) = (cloning.at, cloning.part);
        match outcome {
            Ok(DiskDone::Shared(len)) if len > 0 => cloning.at = from.saturating_add(len).min(stop),
            _ => {
                let error = outcome.err().unwrap_or(DiskError::Io);
                // Looked for where it was: it may have been handed down meanwhile.
                let image = cloning.image;
                let images = &self.durable.images;
                let shift = images.get(image).map_or(SEGMENT_SHIFT, |of| of.region_shift);
                let mut regions = (from >> shift)..=((stop - 1) >> shift);
                let stays = regions.all(|region| {
                    let region = u32::try_from(region).expect("within the image");
                    images.place(image, region) == Some(found)
                });
                if stays {
                    self.end_clone(token, Err(NotCloned::Disk(error)));
                    return Ok(());
                }
            }
        }
        self.go_on_cloning(token);
        Ok(())
    }

    /// Replicas in the making that this one is shared out into.
    pub fn clones(&self) -> Vec<ReplicaKey> {
        self.cloning.values().map(|cloning| cloning.to).collect()
    }
}
