//! The owner at work: who fails, which swap comes next, rolls and seals, closing.
//!
//! Must always hold:
//! * a member is taken out only by a swap, in one swap for all that fail, and never below min_isr (R2, I7);
//! * a seal is sent only when nothing up to it is in flight, nothing may differ, nothing is half brought back, and no swap is
//!   unsettled (R7, R17, R30);
//! * bitmaps of an interval are dropped with its own seal, and not while a stale replica's base lies below (R17).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::peer::{Link, Purpose};
use super::snaps::LAST_HOLDER;
use super::store::Intent;
use super::{Change, EndReason, Event, Phase, Session};
use crate::block_set::BlockSet;
use crate::ids::{Generation, Instant, Rid};
use crate::message::{Ask, Refusal};
use crate::mutants::Mutation;
use crate::payload::Payload;
use crate::record::{Ack, OnLoss, ReplicaState};

/// `on_loss = error`: how long requests wait before their guest is told.
const ON_LOSS_PATIENCE_MS: u64 = 5000;
/// A pause of this process longer than this says nothing about others: their answers wait in our sockets.
const OWN_PAUSE_MS: u64 = 500;
/// More interval bitmaps than this are merged, oldest first; a merged one is a superset for every base.
const BITMAPS_MAX: usize = 32;

/// How far a close is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    Draining,
    Sealing(Generation),
}

impl<P: Payload> Session<P> {
    pub(super) fn serve(&mut self, now: Instant) {
        let failing = self.failing();
        for rid in self.in_sync() {
            self.ask_promise(now, rid);
        }
        self.reconcile(now);
        let usable = |rid: &Rid| {
            !failing.iter().any(|(f, _)| f == rid)
                && self.peers.get(rid).is_some_and(|p| p.obeys(self.rec().epoch))
        };
        let source = self.in_sync().into_iter().filter(usable).min_by_key(|rid| self.hangs(*rid));
        if let Some(source) = source
            && matches!(self.phase, Phase::Serving)
        {
            self.drive_join(now, source);
        }
        self.drive_revert(now);
        self.drive_growth(now);
        self.drive_release(now);
        self.refuse_headless();
        self.drive_barrier(now, &failing);
        self.drive_snaps(now);
        self.propose_next(now, &failing);
        self.tell_resized();
        self.tell_reverted();
        if self.progressed {
            self.check_all_ops(now);
            self.start_waiting(now);
        }
        self.drive_scrub(now);
        self.seal(now);
        self.drive_close(now);
    }

    /// Members that can't be waited for, each with why.
    fn failing(&self) -> Vec<(Rid, String)> {
        let mut out = Vec::new();
        for rid in self.in_sync() {
            let Some(peer) = self.peers.get(&rid) else { continue };
            if let Some((refusal, _)) = peer.bad {
                let why = match (refusal, self.rec().replica(rid)) {
                    (Refusal::NoSpace, Some(at)) => format!("pool {} of host {} is full", at.pool, at.node),
                    _ => format!("refused: {refusal:?}"),
                };
                out.push((rid, why));
            } else if matches!(peer.link, Link::Down { refused: true, .. }) {
                out.push((rid, "connection refused".to_string()));
            } else if let Some(why) = self.stalled.get(&rid) {
                out.push((rid, (*why).to_string()));
            }
        }
        out
    }

    /// The one swap that is needed most, if any and if the store is free.
    fn propose_next(&mut self, now: Instant, failing: &[(Rid, String)]) {
        let members = self.in_sync();
        let min_isr = usize::from(self.rec().policy.min_isr);
        let lost: Vec<Rid> = failing.iter().map(|(rid, _)| *rid).collect();
        let remaining = members.len() - lost.len();
        let ready = self.join_ready();
        let irreplaceable = lost.iter().any(|rid| self.sole_source() == Some(*rid));
        let enough = !irreplaceable
            && (remaining >= min_isr.max(1)
                || remaining >= 1 && self.config.broken.is(Mutation::BelowMinIsr));
        let rescued = !irreplaceable && remaining >= 1 && ready.is_some() && remaining + 1 >= min_isr;
        if lost.is_empty() {
            self.resume();
        } else if !enough && !rescued {
            let reason = match failing {
                [(rid, why)] => format!("waits for {rid}: {why}"),
                _ => format!("waits for {} members", failing.len()),
            };
            self.pause(now, &reason);
        } else if self.store_retry.is_some() {
            // The last call of the store failed: nothing completes without a member before its removal is known.
            let reason = format!("waits for the store, to go on without {}", lost[0]);
            self.pause(now, &reason);
        }
        if !self.store_ready(now) {
            return;
        }
        let base = if self.config.broken.is(Mutation::BaseCurrent) { self.generation() } else { self.sealed };
        if !lost.is_empty() && (enough || rescued) {
            let reason = failing.first().map(|(_, why)| why.clone()).unwrap_or_default();
            let admit = if enough { None } else { ready };
            self.propose(now, Intent::Demote { rids: lost, base, reason, admit });
        } else if self.barrier_is_on() {
            // What else would change the record waits until the images are there, or not.
        } else if self.propose_snapshot(now) {
            // At the epoch of its PREPARE: whatever comes first ends the attempt.
        } else if let (Some(rid), true) = (ready, lost.is_empty()) {
            self.propose(now, Intent::Admit { rid });
        } else if self.steal_wait && self.steal_wait_over(now) {
            self.propose(now, Intent::ClearWait);
        } else if lost.is_empty()
            && (self.interval >= self.config.timing.renew_interval || self.attempts_left() == 0)
            && !self.config.broken.is(Mutation::IntervalsWrap)
        {
            self.propose(now, Intent::Renew);
        } else if self.attempts.is_empty() && self.propose_unmark(now) {
            // The volume is what its snapshot has.
        } else if self.attempts.is_empty() && self.propose_released(now) {
            // Nothing is left that only its deleted head had.
        } else if self.attempts.is_empty() && self.propose_change(now, false) {
            // The agent's change is under way.
        } else if self.attempts.is_empty() && self.propose_snap_change(now) {
            // So is a snapshot's key.
        } else if !self.attempts.is_empty() {
            let again = self.snapshot_again();
            self.propose(now, again.unwrap_or(Intent::Settle));
        }
    }

    /// The next change that the agent asked for; `add_only`: none takes a member out, while the volume is opened paused.
    pub(super) fn propose_change(&mut self, now: Instant, add_only: bool) -> bool {
        if !self.attempts.is_empty() {
            return false;
        }
        // A new copy goes first: what was asked before may wait for a member that it replaces.
        if let Some(at) = self.change.iter().position(|change| matches!(change, Change::Add { .. })) {
            let add = self.change.remove(at).expect("found a moment ago");
            self.change.push_front(add);
        }
        let Some(change) = self.change.front().cloned() else { return false };
        let (rid, verdict) = match change {
            Change::Add { rid, node, pool } => {
                if let Some(known) = self.rec().replica(rid) {
                    let same = known.node == node && known.pool == pool;
                    (rid, if same { Ok(None) } else { Err("this replica number is in use") })
                } else if rid.0 == u32::MAX {
                    (rid, Err("there is no replica number after this one"))
                } else if rid.0 < self.rec().next_rid {
                    (rid, Err("a replica number is never reused"))
                } else if self.rec().replicas.len() >= crate::record::REPLICAS_MAX {
                    (rid, Err("a volume has at most 8 replicas"))
                } else {
                    (rid, Ok(Some(Intent::Add { rid, node, pool })))
                }
            }
            Change::Remove { .. } | Change::Resize { .. } | Change::Revert { .. } | Change::Release
                if add_only =>
            {
                return false;
            }
            Change::Remove { rid }
                if self.rec().replica(rid).is_some() && self.holds_last_image(rid) != Some(false) =>
            {
                if self.holds_last_image(rid).is_none() {
                    return false;
                }
                (rid, Err(LAST_HOLDER))
            }
            Change::Resize { size, lose } => return self.propose_resize(now, size, lose),
            Change::Revert { id, until } => return self.propose_revert(now, id, until),
            Change::Release => {
                self.propose_release(now);
                return true;
            }
            Change::Policy(wanted) => {
                self.propose_policy(now, &wanted);
                return true;
            }
            Change::Remove { rid } => match self.rec().replica(rid).map(|e| e.state) {
                None => (rid, Ok(None)),
                Some(ReplicaState::InSync) => {
                    let left = self.in_sync().len() - 1;
                    let min_isr = usize::from(self.rec().policy.min_isr).max(1);
                    let verdict = if left < min_isr {
                        Err("too few in-sync copies would be left")
                    } else if self.sole_source() == Some(rid) {
                        Err("the other copies are still being brought what only this one has")
                    } else {
                        Ok(Some(Intent::Remove { rid }))
                    };
                    (rid, verdict)
                }
                Some(_) if self.join_rid() == Some(rid) => {
                    self.abandon_join("it is being removed");
                    return true;
                }
                Some(_) => (rid, Ok(Some(Intent::Remove { rid }))),
            },
        };
        match verdict {
            Ok(Some(intent)) => self.propose(now, intent),
            Ok(None) | Err(_) => {
                self.change.pop_front();
                self.events.push_back(Event::ChangeDone { rid, outcome: verdict.map(|_| ()) });
            }
        }
        true
    }

    /// Members left; the rest goes on at the new epoch.
    pub(super) fn demoted(&mut self, now: Instant) {
        self.stalled.retain(|_, _| false);
        for rid in self.in_sync() {
            self.ask_promise(now, rid);
        }
        if let Some(rid) = self.join_rid()
            && self.rec().replica(rid).is_none()
        {
            self.abandon_join("it was removed");
        }
        self.progressed = true;
    }

    pub(super) fn pause(&mut self, now: Instant, reason: &str) {
        if self.paused.as_deref() != Some(reason) {
            if self.paused.is_none() {
                self.paused_since = Some(now);
            }
            self.paused = Some(reason.to_string());
            self.events.push_back(Event::Paused { reason: reason.to_string() });
        }
    }

    pub(super) fn resume(&mut self) {
        if self.paused.take().is_some() {
            self.paused_since = None;
            self.events.push_back(Event::Resumed);
        }
    }

    // ---- time

    pub(super) fn tick(&mut self, now: Instant) {
        if self.is_ended() || self.record.is_none() {
            self.last_tick = now;
            return;
        }
        if now.ms_since(self.last_tick) > OWN_PAUSE_MS {
            // We were stopped: silence until now was ours. Leases are not touched, they run out by themselves.
            for peer in self.peers.values_mut() {
                (peer.heard, peer.worked) = (now, now);
                peer.unpromised = peer.unpromised.map(|_| now);
                for sent in peer.outstanding.values_mut() {
                    if matches!(
                        sent.purpose,
                        Purpose::Op(_)
                            | Purpose::Read(_)
                            | Purpose::Piece(_)
                            | Purpose::Image(_)
                            | Purpose::Look(_)
                    ) {
                        sent.at = now;
                    }
                }
            }
        }
        self.last_tick = now;
        // A member that refused is asked anew: its disk may have space again, its pool may be back.
        let again: Vec<Rid> = self
            .peers
            .iter()
            .filter(|(_, p)| p.is_attached() && p.bad.is_some_and(|(_, at)| now.ms_since(at) >= 1000))
            .map(|(rid, _)| *rid)
            .collect();
        for rid in again {
            self.drop_attachment(rid);
        }
        if !self.owns() {
            return;
        }
        self.beat(now);
        self.pass_over_hung(now);
        self.stalled.clear();
        for rid in self.in_sync() {
            let Some(peer) = self.peers.get(&rid) else { continue };
            if now.ms_since(peer.heard) >= self.config.timing.dead_ms {
                self.stalled.insert(rid, "silent");
            } else if peer.unpromised.is_some_and(|at| now.ms_since(at) >= self.config.timing.dead_ms) {
                self.stalled.insert(rid, "does not promise");
            } else if peer.hung && !peer.is_attached() {
                self.stalled.insert(rid, "a copy hangs that others have done");
            } else if self
                .oldest_unacked(rid)
                .is_some_and(|at| now.ms_since(at) >= self.config.timing.dead_ms)
            {
                self.stalled.insert(rid, "a write hangs that others have done");
            }
        }
        let joiner_silent = self.join_rid().is_some_and(|rid| {
            let late = |p: &super::peer::Peer| now.ms_since(p.heard) >= self.config.timing.dead_ms;
            self.peers.get(&rid).is_some_and(late)
                || self.oldest_unacked(rid).is_some_and(|at| now.ms_since(at) >= self.config.timing.dead_ms)
        });
        if joiner_silent {
            self.abandon_join("it is silent");
        }
        if matches!(self.phase, Phase::Serving | Phase::Closing(_)) {
            for rid in self.recipients() {
                self.resend_ops(now, rid);
            }
            self.check_all_ops(now);
            self.retry_reads(now);
        }
        if self.is_serving() {
            let patient = self.paused_since.is_none_or(|at| now.ms_since(at) < ON_LOSS_PATIENCE_MS);
            if self.rec().policy.on_loss == OnLoss::Error && !patient {
                self.fail_waiting_guests();
            }
        }
    }

    // ---- intervals

    fn seal(&mut self, now: Instant) {
        if self.barrier_is_on() {
            // It ends an interval itself, and guests wait for it, not for a seal.
            return;
        }
        let busy = self.bitmaps.contains_key(&self.generation()) || self.stamped;
        let timing = self.config.timing;
        let idle = now.ms_since(self.last_write) >= timing.idle_roll_ms
            && now.ms_since(self.rolled) >= timing.idle_roll_ms;
        let early = self.config.broken.is(Mutation::SealWhileDirty) && !self.dirty.is_empty();
        let due = early
            || self.roll_now
            || idle
            || self.roll_pays(now)
            || now.ms_since(self.rolled) >= timing.roll_ms;
        let partly = self.brings_back() && !self.config.broken.is(Mutation::RevertSealedPartly);
        let equal = self.dirty.is_empty() && !partly || self.config.broken.is(Mutation::SealWhileDirty);
        if busy && due && self.seal_next.is_none() && equal && self.interval < Generation::INTERVAL_MAX {
            self.seal_next = Some((self.generation(), None));
            self.interval += 1;
            if self.interval > self.config.timing.renew_interval
                && self.config.broken.is(Mutation::IntervalsWrap)
            {
                self.interval = 1;
            }
            self.rolled = now;
            self.interval_writes = 0;
            self.roll_now = false;
            self.stamped = false;
        }
        let Some((generation, flush)) = self.seal_next else { return };
        let in_flight = self.in_flight_up_to(generation) && !self.config.broken.is(Mutation::SealInFlight);
        let settled = self.attempts.is_empty() && self.everyone_promised();
        if in_flight || !settled || !equal {
            return;
        }
        if self.rec().policy.ack == Ack::Cached && !self.config.broken.is(Mutation::SealWithoutFlush) {
            match flush {
                None => {
                    let op = self.own_flush(now);
                    self.seal_next = Some((generation, Some(op)));
                    return;
                }
                Some(op) if self.is_open(op) => return,
                Some(_) => {}
            }
        }
        self.seal_next = None;
        assert!(generation > self.sealed, "I9: seal {generation} after {}", self.sealed);
        self.sealed = generation;
        self.seal_acks = (generation, Vec::new());
        let mut to = self.in_sync();
        to.extend(self.join_rid().filter(|rid| self.join_is_required(*rid)));
        for rid in to {
            if self.peers.get(&rid).is_some_and(|p| p.obeys(self.rec().epoch)) {
                self.send(now, rid, Purpose::Seal(generation), Ask::Seal { generation });
            }
        }
        self.drop_bitmaps();
    }

    /// Under load: is a new interval worth its stamps?
    fn roll_pays(&self, now: Instant) -> bool {
        let timing = &self.config.timing;
        now.ms_since(self.rolled) >= timing.busy_roll_ms
            && self
                .bitmaps
                .get(&self.generation())
                .is_some_and(|b| self.interval_writes >= timing.writes_per_stamp * b.pieces())
    }

    fn everyone_promised(&self) -> bool {
        let epoch = self.rec().epoch;
        self.in_sync().iter().all(|rid| self.peers.get(rid).is_some_and(|p| p.obeys(epoch)))
    }

    pub(super) fn seal_acked(&mut self, rid: Rid, generation: Generation) {
        if let Some(view) = self.peers.get_mut(&rid).and_then(|peer| peer.view.as_mut()) {
            // It was flushed and equal then: what it lost before is not missed any more (R8).
            view.lossy = false;
        }
        if self.seal_acks.0 == generation && !self.seal_acks.1.contains(&rid) {
            self.seal_acks.1.push(rid);
        }
    }

    fn drop_bitmaps(&mut self) {
        let sealed = self.sealed;
        let lowest = self
            .rec()
            .replicas
            .iter()
            .filter(|r| matches!(r.state, ReplicaState::Stale | ReplicaState::Joining))
            .filter(|r| r.base.epoch() >= self.first_epoch)
            .map(|r| r.base)
            .min();
        let broken = self.config.broken;
        self.bitmaps.retain(|generation, _| {
            let open = *generation > sealed && !broken.is(Mutation::DropAllBitmaps);
            let needed = lowest.is_some_and(|base| *generation > base) && *generation <= sealed;
            open || needed && !broken.is(Mutation::DropNeededBitmaps)
        });
        self.growths
            .retain(|(generation, _)| *generation > sealed || lowest.is_some_and(|base| *generation > base));
        while self.bitmaps.len() > BITMAPS_MAX {
            let Some((_, oldest)) = self.bitmaps.pop_first() else { break };
            if let Some(mut next) = self.bitmaps.first_entry() {
                let merged: &mut BlockSet = next.get_mut();
                merged.union(&oldest);
            }
        }
    }

    // ---- closing

    pub(super) fn begin_close(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Ended => true,
            Phase::Reading | Phase::Contacting { .. } if self.attempts.is_empty() => {
                self.end(EndReason::Closed);
                true
            }
            // What has come back in part may not be sealed, so the volume can't be left in order.
            Phase::Serving if self.marker().is_some() => false,
            Phase::Serving if self.paused.is_none() && self.failing().is_empty() => {
                self.phase = Phase::Closing(Closing::Draining);
                self.scrub_closes(now);
                true
            }
            Phase::Closing(_) => true,
            _ => false,
        }
    }

    fn drive_close(&mut self, now: Instant) {
        let Phase::Closing(stage) = self.phase else { return };
        match stage {
            Closing::Draining => {
                self.abandon_join("the volume is being closed");
                let quiet = self.is_drained() && self.pieces.is_empty() && self.dirty.is_empty();
                let waited = !self.steal_wait || self.config.broken.is(Mutation::CloseBeforeWait);
                let settled = self.join.is_none() && self.attempts.is_empty() && waited;
                let settled = settled && !self.barrier_awaited() && !self.snaps_awaited();
                if quiet && settled && self.seal_next.is_none() {
                    if self.bitmaps.contains_key(&self.generation())
                        || self.stamped
                        || self.sealed < Generation::new(self.first_epoch, 0)
                    {
                        self.stamped = true;
                        self.roll_now = true;
                        self.phase = Phase::Closing(Closing::Sealing(self.generation()));
                    } else {
                        self.phase = Phase::Closing(Closing::Sealing(self.sealed));
                    }
                    self.progressed = true;
                }
            }
            Closing::Sealing(wanted) => {
                let members = self.in_sync();
                let logged = self.seal_acks.0 == self.sealed
                    && members.iter().all(|rid| self.seal_acks.1.contains(rid));
                let durable =
                    self.sealed >= wanted && (logged || self.config.broken.is(Mutation::CloseUnsealed));
                if durable && self.store_ready(now) && self.failing().is_empty() && self.everyone_promised() {
                    let sealed = self.sealed;
                    self.propose(now, Intent::Close { sealed });
                } else if self.sealed >= wanted
                    && !durable
                    && self.seal_next.is_none()
                    && self.everyone_promised()
                    && self.attempts.is_empty()
                {
                    // A member came in or back after the seal: once more for all.
                    let missing = members.iter().any(|rid| {
                        !self.seal_acks.1.contains(rid)
                            && !self.peers.get(rid).is_some_and(|p| {
                                p.outstanding.values().any(|s| matches!(s.purpose, Purpose::Seal(_)))
                            })
                    });
                    if missing {
                        self.stamped = true;
                        self.roll_now = true;
                        self.phase = Phase::Closing(Closing::Sealing(self.generation()));
                        self.progressed = true;
                    }
                }
            }
        }
    }

    /// For the event log: who closes and why not.
    pub(super) fn pause_reason(&self) -> Option<&str> {
        self.paused.as_deref()
    }
}
