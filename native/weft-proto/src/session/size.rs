//! The size of a volume (protocol.md 4.18, R18, R25): it grows while it is attached, and shrinks under a caretaker.
//!
//! ```text
//! grow:   (larger regions: swap, all promise) ──▶
//!         GROW at every recipient ──all have answered in this epoch──▶ swap (epoch + 1) ──all have promised──▶ told
//! shrink:      nothing under way  ──▶  swap (epoch + 1) ──all have promised (and cut themselves)──▶ told
//! ```
//!
//! Must always hold:
//! * regions become larger in a swap of their own, before it (R26), while none is being equalised;
//! * the record's size rises only when every in-sync member, and every joiner that gets writes, has grown in the epoch of
//!   that record; a joiner that has not is given up, and grown before it gets a write (I18, D13, D14);
//! * a growth is a write: it is stamped, and its interval is not sealed before the record has the new size;
//! * whoever asked is told when every in-sync member durably holds a record with the new size.

use alloc::vec::Vec;

use super::peer::Purpose;
use super::store::Intent;
use super::{Change, Event, Phase, Session};
use crate::ids::{Epoch, Generation, Instant, Rid};
use crate::message::{Ask, Hole};
use crate::mutants::Mutation;
use crate::payload::{BLOCK, Payload};
use crate::record::{REGIONS_MAX, SIZE_MAX};

/// A growth under way: answers of another one don't count for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GrowthId(pub u64);

#[derive(Debug)]
pub(super) struct Growing {
    id: GrowthId,
    to: u64,
    pub(super) generation: Generation,
    epoch: Epoch,
    sent: Vec<Rid>,
    acked: Vec<Rid>,
    /// A member still cuts what a shrink left: asked again then.
    hold: Option<Instant>,
}

/// Refused: it is no size.
pub const NO_SIZE: &str = "a size is whole 4 KiB blocks, 4 KiB to 64 TiB";
/// Refused: a guest may be using what would go.
pub const SHRINKS_DETACHED: &str = "a volume shrinks only while it is detached";
/// Refused: nobody said that what would go may go.
pub const WOULD_LOSE: &str = "it would lose what lies beyond that";
/// Refused: the session ends.
pub const CLOSING: &str = "the volume is being closed";
/// Refused: it is that of the snapshot that the volume is being taken back to.
pub const REVERTING: &str = "the volume is being taken back to a snapshot";
/// Refused: a member has no room for it.
pub const NO_ROOM: &str = "a copy has no room for it";

impl<P: Payload> Session<P> {
    /// Has the growth that the agent asked for first, if any, under way at every recipient.
    pub(super) fn drive_growth(&mut self, now: Instant) {
        if self.barrier_is_on() {
            return;
        }
        let size = self.rec().size;
        let Some(Change::Resize { size: to, .. }) = self.change.front().filter(|_| self.may_grow()) else {
            return self.growing = None;
        };
        let (to, epoch) = (*to, self.rec().epoch);
        if to <= size || self.resize_refused(to, false).is_some() || self.folds_to(to).is_some() {
            return self.growing = None;
        }
        let across = self.config.broken.is(Mutation::GrownAcrossEpochs);
        if self.growing.as_ref().is_none_or(|g| g.to != to || g.epoch != epoch && !across) {
            // Answers to GROW end with their epoch: a promise to a record of the old size cuts what has grown.
            let (id, generation) = (GrowthId(self.fresh_id()), self.generation());
            let (sent, acked) = (Vec::new(), Vec::new());
            self.growing = Some(Growing { id, to, generation, epoch, sent, acked, hold: None });
            self.stamped = true;
        }
        let recipients = self.recipients();
        let Some(growing) = &mut self.growing else { return };
        if growing.hold.is_some_and(|at| now < at) {
            return;
        }
        let (id, generation) = (growing.id, growing.generation);
        let usable = |rid: &Rid| self.peers.get(rid).is_some_and(|p| p.obeys(epoch) && p.bad.is_none());
        let missing: Vec<Rid> = recipients
            .into_iter()
            .filter(|rid| usable(rid) && !growing.sent.contains(rid) && !growing.acked.contains(rid))
            .collect();
        growing.sent.extend(&missing);
        for rid in missing {
            self.send(now, rid, Purpose::Grow(id), Ask::Grow { generation, from: size, to });
        }
    }

    /// A volume that is being closed grows only if its swap may have happened.
    fn may_grow(&self) -> bool {
        (matches!(self.phase, Phase::Serving) || !self.attempts.is_empty())
            && self.marker().is_none()
            && !self.is_headless()
    }

    pub(super) fn grown(&mut self, id: GrowthId, rid: Rid) {
        let Some(growing) = self.growing.as_mut().filter(|g| g.id == id) else { return };
        growing.sent.retain(|r| *r != rid);
        growing.acked.push(rid);
        self.progressed = true;
    }

    /// It was not done, or its answer is lost: it is asked again, after `hold` if the member was busy.
    pub(super) fn growth_unsent(&mut self, id: GrowthId, rid: Rid, hold: Option<Instant>) {
        let Some(growing) = self.growing.as_mut().filter(|g| g.id == id) else { return };
        growing.sent.retain(|r| *r != rid);
        growing.hold = growing.hold.max(hold);
    }

    /// A member can't grow; nothing was changed that counts.
    pub(super) fn growth_failed(&mut self, id: GrowthId, why: &'static str) {
        if self.growing.as_ref().is_some_and(|g| g.id == id) && self.attempts.is_empty() {
            self.resize_done(Err(why));
        }
    }

    /// Nothing up to this generation is sealed while a growth of it is under way (R7).
    pub(super) fn grows_up_to(&self, generation: Generation) -> bool {
        let counts = !self.config.broken.is(Mutation::SealWhileGrowing);
        counts && self.growing.as_ref().is_some_and(|g| g.generation <= generation)
    }

    /// The swap of the resize that was asked for first, if it is due.
    pub(super) fn propose_resize(&mut self, now: Instant, size: u64, lose: bool) -> bool {
        if self.telling.is_some() {
            return false;
        }
        let closing = (!matches!(self.phase, Phase::Serving)).then_some(CLOSING);
        let closing = closing.or(self.marker().is_some().then_some(REVERTING));
        let closing = closing.or(self.is_headless().then_some(super::head::DELETED));
        if let Some(why) = closing.or_else(|| self.resize_refused(size, lose)) {
            self.resize_done(Err(why));
            return true;
        }
        let old = self.rec().size;
        if size == old {
            self.change.pop_front();
            self.telling = Some(size);
            return true;
        }
        if size < old {
            return self.propose_shrink(now, size);
        }
        if let Some(region_shift) = self.folds_to(size) {
            if self.dirty.is_empty() {
                self.propose(now, Intent::Fold { region_shift });
            }
            return self.dirty.is_empty();
        }
        let (epoch, recipients) = (self.rec().epoch, self.recipients());
        let early = self.config.broken.is(Mutation::SwapBeforeGrow);
        let across = self.config.broken.is(Mutation::GrownAcrossEpochs);
        let ready = self.growing.as_ref().is_some_and(|g| {
            let all = recipients.iter().all(|rid| g.acked.contains(rid));
            g.to == size && (g.epoch == epoch || across) && (all || early)
        });
        if ready {
            self.propose(now, Intent::Resize { size });
        }
        ready
    }

    /// Nothing may be under way beyond the new end.
    fn propose_shrink(&mut self, now: Instant, size: u64) -> bool {
        if self.join.is_some() {
            self.abandon_join("the volume shrinks");
            return self.join.is_none();
        }
        let quiet = self.is_drained() && self.pieces.is_empty() && self.dirty.is_empty();
        if !quiet || self.steal_wait {
            return false;
        }
        if self.config.broken.is(Mutation::CutBeforeSwap) {
            let (generation, offset, len) = (self.generation(), size, self.rec().size - size);
            for rid in self.in_sync().into_iter().filter(|rid| self.obeys(*rid)).collect::<Vec<_>>() {
                let (kind, keep_space, copy) = (Hole::Absent, false, true);
                let ask = Ask::Zero { generation, offset, len, kind, keep_space, copy };
                self.send(now, rid, Purpose::Grow(GrowthId(0)), ask);
            }
        }
        self.propose(now, Intent::Resize { size });
        true
    }

    fn resize_refused(&self, size: u64, lose: bool) -> Option<&'static str> {
        let record = self.rec();
        if size == 0 || !size.is_multiple_of(BLOCK) || size > SIZE_MAX {
            Some(NO_SIZE)
        } else if size < record.size && !self.config.caretaker {
            Some(SHRINKS_DETACHED)
        } else if size < record.size && !lose {
            Some(WOULD_LOSE)
        } else {
            None
        }
    }

    /// How large the regions have to be for this size, if that is larger than they are.
    fn folds_to(&self, size: u64) -> Option<u8> {
        let record = self.rec();
        let mut region_shift = record.region_shift;
        while size.div_ceil(1 << region_shift) > REGIONS_MAX {
            region_shift += 1;
        }
        (region_shift > record.region_shift).then_some(region_shift)
    }

    /// The record has larger regions.
    pub(super) fn folded(&mut self, now: Instant) {
        self.join_folded();
        self.demoted(now);
    }

    fn resize_done(&mut self, outcome: Result<(), &'static str>) {
        self.growing = None;
        if let Some(Change::Resize { size, .. }) = self.change.pop_front() {
            self.events.push_back(Event::Resized { size, outcome });
        }
        self.progressed = true;
    }

    /// The swap is known to have been applied: the record's size was `old`.
    pub(super) fn resized(&mut self, now: Instant, old: u64) {
        let size = self.rec().size;
        if let Some(growing) = self.growing.take() {
            // A joiner that has not grown with the others is brought the size before anything else.
            if self.join_rid().is_some_and(|rid| !growing.acked.contains(&rid)) {
                self.abandon_join("the volume has grown");
            }
            self.growths.push((growing.generation, old));
            self.stamped = true;
            self.roll_now = true;
        } else if size < old {
            for blocks in self.bitmaps.values_mut() {
                blocks.remove(size, old - size);
            }
        }
        self.change.pop_front();
        self.telling = Some(size);
        self.demoted(now);
    }

    /// R25: whoever asked is told once no loss of the store can take it back.
    pub(super) fn tell_resized(&mut self) {
        if self.telling.is_some() && (self.everyone_obeys() || self.config.broken.is(Mutation::ToldAtSwap)) {
            let size = self.telling.take().expect("looked at a moment ago");
            self.events.push_back(Event::Resized { size, outcome: Ok(()) });
        }
    }

    /// From where on a joiner must be made absent and as large as the record, if it must: what it lacks to the record's
    /// size, and what the volume has grown by since its base, which no bitmap has.
    pub(super) fn join_grows_from(&self, rid: Rid, base: Generation) -> Option<u64> {
        let size = self.rec().size;
        let own = self.peers.get(&rid).and_then(|p| p.view.as_ref()).map_or(size, |v| v.size);
        let missed = self.growths.iter().filter(|(g, _)| *g > base).map(|(_, from)| *from);
        missed.chain([own]).min().filter(|from| *from < size)
    }
}
