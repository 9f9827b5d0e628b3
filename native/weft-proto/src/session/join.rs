//! Bringing a stale replica back into the in-sync set (protocol.md 4.13, R3, R4, R23).
//!
//! ```text
//! Promising ─▶ (Growing) ─▶ Stamps ─▶ Copying ─▶ Settling ─▶ (swap) ─▶ in-sync
//!  as joiner    as large     what     best       acks are
//!               as the       differs  effort     required
//!               record
//! ```
//!
//! Must always hold:
//! * it is as large as the record before anything is written to it (D14);
//! * from then on every write goes to it as well, before anybody asks what it lacks;
//! * its acknowledgements are required before the swap that admits it is sent, and until its outcome is known;
//! * what it is compared by it is stamped by, though it be equal: once admitted it may be the source of another one, to
//!   which its stamps alone say what has changed (R4);
//! * a join that fails ends the joiner's attachment, so that nothing sent to it executes later.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::ToString;
use alloc::vec::Vec;

use super::copy::{Copied, PIECES_MAX};
use super::peer::{Purpose, StampsId};
use super::store::Intent;
use super::{Event, Phase, Session};
use crate::block_set::BlockSet;
use crate::ids::{Epoch, Generation, Instant, Rid};
use crate::message::Ask;
use crate::mutants::Mutation;
use crate::payload::{BLOCK, Payload};
use crate::record::{Ack, ReplicaState};

#[derive(Debug)]
pub(super) struct Join {
    pub(super) rid: Rid,
    base: Generation,
    pub(super) stage: JoinStage,
    todo: BlockSet,
    /// Regions of `1 << .0` bytes that the source has a newer stamp of.
    unstamped: (u8, BTreeSet<u32>),
    cursor: u64,
    hashed: bool,
    pub(super) copied: u64,
    pub(super) total: u64,
    /// It failed while its admission was unsettled; given up as soon as that is known.
    broken: Option<&'static str>,
    /// Its attachment was lost and made anew while its admission was unsettled.
    anew: bool,
    /// In which epoch it has grown to which size, last; and what it was asked.
    grown: Option<(Epoch, u64)>,
    growing: Option<(Epoch, u64)>,
}

#[derive(Debug)]
pub(super) enum JoinStage {
    Promising,
    /// It obeys, and is not yet as large as the volume.
    Growing,
    /// Whose stamps are still to come, and the regions so far with those of source and joiner.
    Stamps {
        id: StampsId,
        missing: Vec<Rid>,
        source: Rid,
        regions: BTreeMap<u32, (Generation, Generation)>,
    },
    Copying,
    /// Operations up to this id were on their way when its acknowledgements became required.
    Settling {
        last: u64,
        flush: Flushed,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    NotYet,
    Asked,
    Done,
}

impl<P: Payload> Session<P> {
    pub(super) fn join_rid(&self) -> Option<Rid> {
        self.join.as_ref().map(|j| j.rid)
    }

    /// The joiner, once every write goes to it as well.
    pub(super) fn join_writes_to(&self) -> Option<Rid> {
        let gets = |stage: &JoinStage| !matches!(stage, JoinStage::Promising | JoinStage::Growing);
        self.join.as_ref().filter(|j| gets(&j.stage)).map(|j| j.rid)
    }

    /// Are this joiner's acknowledgements required?
    pub(super) fn join_is_required(&self, rid: Rid) -> bool {
        self.join.as_ref().is_some_and(|j| j.rid == rid && matches!(j.stage, JoinStage::Settling { .. }))
    }

    /// Starts a join if a stale replica is there, and carries one on.
    pub(super) fn drive_join(&mut self, now: Instant, source: Rid) {
        if self.join.is_none() {
            self.start_join(now);
        }
        let epoch = self.rec().epoch;
        let Some(rid) = self.join_rid() else { return };
        if self.join.as_ref().is_some_and(|j| j.broken.is_some()) {
            return;
        }
        self.ask_promise(now, rid);
        if !self.peers.get(&rid).is_some_and(|p| p.obeys(epoch)) {
            return;
        }
        let Some(join) = &self.join else { return };
        match join.stage {
            JoinStage::Promising => {
                if !self.grow_joiner(now, rid) {
                    self.begin_double_writes(now, rid, source);
                }
            }
            JoinStage::Growing | JoinStage::Stamps { .. } => {}
            JoinStage::Copying => self.copy_pieces(now, rid, source),
            JoinStage::Settling { flush, .. } => {
                let cached = self.rec().policy.ack == Ack::Cached;
                if cached && flush == Flushed::NotYet && self.join_settled(rid) {
                    if let Some(JoinStage::Settling { flush, .. }) = self.join.as_mut().map(|j| &mut j.stage)
                    {
                        *flush = Flushed::Asked;
                    }
                    self.send(now, rid, Purpose::JoinFlush, Ask::Flush);
                }
            }
        }
    }

    fn start_join(&mut self, now: Instant) {
        if !self.dirty.is_empty() || !self.attempts.is_empty() || self.revert_bars_joins() {
            return;
        }
        let ready = |rid: Rid| {
            let waited = self.rejoin.get(&rid).is_none_or(|(at, _)| now >= *at);
            let peer = self.peers.get(&rid);
            waited && peer.is_some_and(|p| p.is_attached() && p.bad.is_none() && p.view.is_some())
        };
        let stale = |s| matches!(s, ReplicaState::Stale | ReplicaState::Joining);
        let candidate =
            self.rec().replicas.iter().find(|r| stale(r.state) && ready(r.rid)).map(|r| (r.rid, r.base));
        if let Some((rid, base)) = candidate {
            // A stale replica is sent no heartbeats: its silence counts from now on.
            if let Some(peer) = self.peers.get_mut(&rid) {
                peer.heard = now;
            }
            self.join = Some(Join {
                rid,
                base,
                stage: JoinStage::Promising,
                todo: BlockSet::default(),
                unstamped: (0, BTreeSet::new()),
                cursor: 0,
                hashed: false,
                copied: 0,
                total: 0,
                broken: None,
                anew: false,
                grown: None,
                growing: None,
            });
            self.progressed = true;
        }
    }

    /// The joiner obeys: it is made as large as the volume first, if it is not; true while that is under way.
    fn grow_joiner(&mut self, now: Instant, rid: Rid) -> bool {
        let here = (self.rec().epoch, self.rec().size);
        let Some(base) = self.join.as_ref().filter(|j| j.grown != Some(here)).map(|j| j.base) else {
            return false;
        };
        let Some(from) = self.join_grows_from(rid, base) else { return false };
        if self.config.broken.is(Mutation::JoinWithoutGrow) {
            return false;
        }
        if let Some(join) = &mut self.join {
            (join.stage, join.growing) = (JoinStage::Growing, Some(here));
        }
        // Stamped like a write: what is open is sealed after this.
        self.stamped = true;
        let generation = self.generation();
        self.send(now, rid, Purpose::JoinGrow, Ask::Grow { generation, from, to: here.1 });
        true
    }

    pub(super) fn join_grown(&mut self) {
        if let Some(join) = self.join.as_mut().filter(|j| matches!(j.stage, JoinStage::Growing)) {
            (join.stage, join.grown) = (JoinStage::Promising, join.growing);
            self.progressed = true;
        }
    }

    /// Asked at an epoch that the joiner no longer obeyed: asked again when it has promised.
    pub(super) fn join_growth_refused(&mut self) {
        if let Some(join) = self.join.as_mut().filter(|j| matches!(j.stage, JoinStage::Growing)) {
            join.stage = JoinStage::Promising;
        }
    }

    /// The joiner obeys: from now on it gets every write. Then, not before, it is asked what it lacks.
    fn begin_double_writes(&mut self, now: Instant, rid: Rid, source: Rid) {
        let id = StampsId(self.fresh_id());
        let by_this_session = self.sealed_here(self.join.as_ref().map(|j| j.base).unwrap_or_default());
        let Some(join) = &mut self.join else { return };
        let base = join.base;
        if by_this_session {
            // Sealed by this session: members were equal then, and its bitmaps know every write since (4.13).
            for (generation, blocks) in &self.bitmaps {
                if *generation > base {
                    join.todo.union(blocks);
                }
            }
            join.stage = JoinStage::Copying;
            join.total = join.todo.bytes();
            self.figures.changed_bytes += join.total;
            let bytes = join.total;
            self.events.push_back(Event::ResyncStarted { rid, bytes });
        } else {
            let missing = alloc::vec![rid, source];
            join.stage = JoinStage::Stamps { id, missing, source, regions: BTreeMap::new() };
            for of in [rid, source] {
                self.send(now, of, Purpose::JoinStamps(id), Ask::Stamps { above: base, from_region: 0 });
            }
        }
        if self.config.broken.is(Mutation::JoinIgnoresInFlight) {
            for op in self.ops.values_mut().filter(|op| op.generation > Generation::NEVER) {
                op.acked.push(rid);
            }
        }
        self.resend_ops(now, rid);
        self.progressed = true;
    }

    /// Was this base sealed by this session? Then its bitmaps are complete from there on.
    fn sealed_here(&self, base: Generation) -> bool {
        base.epoch() >= self.first_epoch && base > Generation::NEVER
    }

    pub(super) fn join_stamps(
        &mut self,
        now: Instant,
        id: StampsId,
        rid: Rid,
        stamps: &[(u32, Generation)],
        next: Option<u32>,
    ) {
        let (shift, size, regions_max) = (self.rec().region_shift, self.rec().size, self.rec().regions());
        let fresh = self
            .join
            .as_ref()
            .and_then(|j| self.peers.get(&j.rid))
            .and_then(|p| p.view.as_ref())
            .is_some_and(|v| v.newest == Generation::NEVER);
        let without_union = self.config.broken.is(Mutation::ResyncWithoutUnion);
        let Some(join) = &mut self.join else { return };
        let (base, joiner) = (join.base, join.rid);
        let JoinStage::Stamps { id: asked, missing, regions, .. } = &mut join.stage else { return };
        if *asked != id {
            return;
        }
        for (region, stamp) in stamps {
            // R4: the union of both sides' stamps; the joiner may hold writes that nobody else ever got.
            if *stamp > base && u64::from(*region) < regions_max && !(without_union && rid == joiner) {
                let known = regions.entry(*region).or_default();
                if rid == joiner {
                    known.1 = *stamp;
                } else {
                    known.0 = *stamp;
                }
            }
        }
        if let Some(from_region) = next {
            return self.send(now, rid, Purpose::JoinStamps(id), Ask::Stamps { above: base, from_region });
        }
        missing.retain(|r| *r != rid);
        if !missing.is_empty() {
            return;
        }
        join.unstamped = (shift, BTreeSet::new());
        for (region, (source, own)) in regions {
            let begin = u64::from(*region) << shift;
            join.todo.insert(begin, (begin + (1 << shift)).min(size) - begin);
            if *own < *source {
                join.unstamped.1.insert(*region);
            }
        }
        join.hashed = !fresh;
        join.stage = JoinStage::Copying;
        join.total = join.todo.bytes();
        self.figures.changed_bytes += join.total;
        let bytes = join.total;
        self.events.push_back(Event::ResyncStarted { rid: joiner, bytes });
        self.progressed = true;
    }

    pub(super) fn join_stamps_refused(&mut self, id: StampsId) {
        let asked = |join: &Join| matches!(&join.stage, JoinStage::Stamps { id: asked, .. } if *asked == id);
        if self.join.as_ref().is_some_and(asked) {
            self.abandon_join("the stamps were refused");
        }
    }

    fn copy_pieces(&mut self, now: Instant, rid: Rid, source: Rid) {
        if now < self.copy_hold || self.hangs(source) {
            return;
        }
        let epoch = self.rec().epoch;
        let mut sources = alloc::vec![source];
        // While the volume is opened, those that are not waited for may have lost what they had (R8).
        let equal = matches!(self.phase, Phase::Serving);
        sources.extend(self.in_sync().into_iter().filter(|other| {
            equal
                && *other != source
                && self.peers.get(other).is_some_and(|p| p.obeys(epoch) && p.bad.is_none())
        }));
        let mut hopeless = None;
        while self.pieces.len() < PIECES_MAX {
            let Some(join) = &self.join else { return };
            let (cursor, hashed) = (join.cursor, join.hashed);
            let run = self.free_run(&join.todo, cursor).or_else(|| self.free_run(&join.todo, 0));
            let Some(range) = run else { break };
            if hopeless == Some(range.0) {
                break;
            }
            let targets = alloc::vec![rid];
            let piece = self.start_readable_piece(now, range, Copied::Joiner, &sources, targets, hashed);
            let next = match piece {
                Ok(()) => range.1,
                // Nobody can give it. It is not copied, so that the joiner stays out until it is written again.
                Err(block) => {
                    hopeless = hopeless.or(Some(block));
                    block + BLOCK
                }
            };
            if let Some(join) = &mut self.join {
                join.cursor = next;
            }
        }
        if self.config.broken.is(Mutation::AdmitBeforePausedWrite) {
            // The range of a write that is on its way counts as copied.
            let held: Vec<(u64, u64)> = self.locks.iter().map(|(start, (end, _))| (*start, *end)).collect();
            for (start, end) in held {
                self.join_covered(start, end);
            }
        }
        let last = self.next_id;
        let Some(join) = &mut self.join else { return };
        if join.todo.is_empty() && self.pieces.is_empty() {
            join.stage = JoinStage::Settling { last, flush: Flushed::NotYet };
            self.progressed = true;
        }
    }

    /// A whole range was overwritten on the joiner by a guest's write.
    pub(super) fn join_covered(&mut self, start: u64, end: u64) {
        if let Some(join) = &mut self.join {
            join.todo.remove(start, end - start);
        }
    }

    /// Of what is equal in a piece, the blocks that are written all the same so that each region is stamped: the first of
    /// each that the source has a newer stamp of.
    pub(super) fn join_stamps_by(&self, start: u64, differs: &mut [bool]) {
        let Some(join) = self.join.as_ref().filter(|_| !self.config.broken.is(Mutation::EqualUnstamped))
        else {
            return;
        };
        let (shift, unstamped) = &join.unstamped;
        let region =
            |block: usize| u32::try_from((start + block as u64 * BLOCK) >> shift).unwrap_or(u32::MAX);
        let mut first = 0;
        while first < differs.len() {
            let of = region(first);
            let end = (first..differs.len()).find(|block| region(*block) != of).unwrap_or(differs.len());
            if unstamped.contains(&of) && !differs[first..end].contains(&true) {
                differs[first] = true;
            }
            first = end;
        }
    }

    pub(super) fn join_copied(&mut self, start: u64, end: u64, written: u64) {
        self.figures.resynced_bytes += written;
        if let Some(join) = &mut self.join {
            // Each of these had a block written, or no need of it.
            let (shift, unstamped) = &mut join.unstamped;
            let region = |at: u64| u32::try_from(at >> *shift).unwrap_or(u32::MAX);
            for of in region(start)..=region(end - 1) {
                unstamped.remove(&of);
            }
            join.todo.remove(start, end - start);
            join.copied += written;
        }
    }

    /// Asked at an epoch that the joiner no longer obeyed, or not yet: asked again.
    pub(super) fn join_flush_refused(&mut self) {
        if let Some(JoinStage::Settling { flush, .. }) = self.join.as_mut().map(|j| &mut j.stage) {
            *flush = Flushed::NotYet;
        }
    }

    pub(super) fn join_flushed(&mut self) {
        if let Some(JoinStage::Settling { flush, .. }) = self.join.as_mut().map(|j| &mut j.stage) {
            *flush = Flushed::Done;
        }
    }

    /// What is left of the resync, in bytes.
    pub(super) fn join_remaining(&self) -> u64 {
        self.join.as_ref().map_or(0, |j| j.todo.bytes())
    }

    fn join_settled(&self, rid: Rid) -> bool {
        let Some(Join { stage: JoinStage::Settling { last, .. }, .. }) = &self.join else { return false };
        let paused_ok =
            self.config.broken.is(Mutation::AdmitBeforePausedWrite) || self.acked_up_to(rid, *last);
        let waits = self.config.broken.is(Mutation::RescueWaits) && self.in_flight_up_to(self.generation());
        !self.completed_without(rid) && paused_ok && !waits
    }

    /// The joiner that may be admitted now.
    pub(super) fn join_ready(&self) -> Option<Rid> {
        let join = self.join.as_ref().filter(|j| j.broken.is_none())?;
        let obeys = self.peers.get(&join.rid).is_some_and(|p| p.obeys(self.rec().epoch));
        if self.config.broken.is(Mutation::AdmitEarly)
            && obeys
            && matches!(join.stage, JoinStage::Settling { .. })
        {
            return Some(join.rid);
        }
        let JoinStage::Settling { flush, .. } = join.stage else { return None };
        let flushed = flush == Flushed::Done || self.rec().policy.ack == Ack::Durable;
        (obeys && flushed && self.join_settled(join.rid)).then_some(join.rid)
    }

    /// The swap that admits it is known to have happened.
    pub(super) fn admitted(&mut self, _now: Instant, rid: Rid) {
        if let Some(join) = self.join.take_if(|j| j.rid == rid) {
            self.events.push_back(Event::Admitted { rid, copied: join.copied });
        }
        self.rejoin.remove(&rid);
        self.roll_now = true;
        self.progressed = true;
    }

    /// Regions are counted anew: what is being told of them is of no use.
    pub(super) fn join_folded(&mut self) {
        if self.join.as_ref().is_some_and(|j| matches!(j.stage, JoinStage::Stamps { .. })) {
            self.abandon_join("the volume's regions become larger");
        }
    }

    /// A joiner is attached again: its admission is unsettled, or the join had ended with the attachment.
    pub(super) fn join_attached(&mut self, rid: Rid) {
        if let Some(join) = self.join.as_mut().filter(|j| j.rid == rid) {
            join.anew = true;
        }
    }

    /// The joiner that went and came back while its admission was unsettled.
    pub(super) fn join_anew(&self) -> Option<Rid> {
        self.join.as_ref().filter(|j| j.anew).map(|j| j.rid)
    }

    /// The connection to a member is gone; if it was the joiner or its source of stamps, so is the join.
    pub(super) fn join_lost_peer(&mut self, rid: Rid) {
        let concerned = self.join.as_ref().is_some_and(|j| {
            j.rid == rid || matches!(&j.stage, JoinStage::Stamps { source, missing, .. } if *source == rid && missing.contains(&rid))
        });
        if concerned {
            self.abandon_join("its connection was lost");
        }
    }

    /// Gives a join up, unless its admission may have happened: then it stays required until that is settled (R14).
    pub(super) fn abandon_join(&mut self, reason: &'static str) {
        let Some(join) = &mut self.join else { return };
        let rid = join.rid;
        if self.admission_pending(rid) {
            if let Some(join) = &mut self.join {
                join.broken = Some(reason);
            }
            return;
        }
        self.join = None;
        let (now, ms) = (self.last_tick, self.config.timing.rejoin_ms);
        let tries = self.rejoin.get(&rid).map_or(0, |(_, n)| *n);
        self.rejoin.insert(rid, (now.after_ms(ms << tries.min(5)), tries + 1));
        if self.config.broken.is(Mutation::DropKeepsAttachment) {
            for op in self.ops.values_mut() {
                op.sent.retain(|r| *r != rid);
            }
        } else {
            // R3: nothing that was sent executes once the next attachment is answered.
            self.drop_attachment(rid);
        }
        self.events.push_back(Event::JoinAbandoned { rid, reason: reason.to_string() });
        self.progressed = true;
    }

    /// Earlier swaps are known not to have happened.
    pub(super) fn settled(&mut self, _now: Instant) {
        if let Some(reason) = self.join.as_ref().and_then(|j| j.broken) {
            self.abandon_join(reason);
        }
    }

    /// Opened with fewer members than min_isr: a joiner is copied from the one that is there, and one swap
    /// brings it in and takes the missing ones out (R23).
    pub(super) fn rescue(&mut self, now: Instant, good: &[Rid], missing: Vec<Rid>) {
        let [source] = good else { return };
        if self.store_ready(now) && self.propose_change(now, true) {
            return;
        }
        self.drive_join(now, *source);
        if let Some(rid) = self.join_ready()
            && self.store_ready(now)
            && self.attempts.is_empty()
        {
            let base = self.highest_seal(good);
            let reason = "replaced while the volume waited".to_string();
            self.propose(now, Intent::Demote { rids: missing, base, reason, admit: Some(rid) });
        } else if !self.attempts.is_empty() && self.store_ready(now) {
            self.propose(now, Intent::Settle);
        }
    }
}
