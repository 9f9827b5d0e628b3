//! Taking a snapshot: a barrier over all in-sync members (protocol.md 4.19), one at a time.
//!
//! ```text
//! Making ──conditions──▶ Draining ──nothing in flight, rolled──▶ Preparing ──all have──▶ Prepared ──▶ Swapping ──▶ taken
//!  members make room      writes are held                         members take             guests go on
//!  guests go on           ≤ 1 s                                   images ≤ 1 s
//!     ▲                      │                                        │                       │
//!     └──────────────────────┴──── it came to nothing, images go ─────┴──surely not applied───┘   at most 3 times
//! ```
//!
//! As one of a group (`snap_group`) it stops before Draining, before Preparing and at its end, until all of the group
//! are there, and is tried once.
//!
//! Must always hold:
//! * no write of the barrier's generation or an older one is on its way to an in-sync member when PREPARE is sent, nothing
//!   may differ between members (R5), and none of a later one begins before every one of them has answered: so each
//!   image has the same writes (I21);
//! * an attempt has a name of its own, above every earlier one, and the barrier ends its interval (docs/model.md, finding 21);
//! * the swap is made in the epoch of its PREPARE: after that a replica may take the image for what is left of an owner
//!   that is gone (R15);
//! * guests go on when the images are there, whatever the store does: going on is as safe as the swap is late;
//! * images of an attempt go only if its swap is surely not applied, and exactly that attempt's (R14);
//! * the swap of one of a group is sent once, with the others': a swap of unknown outcome is settled by any other one, which
//!   its own alone would not be (D19).
//!
//! A joiner is not asked and not listed: what it has yet to acknowledge is in no image.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::copy::Piece;
use super::ops::{OpId, OpKind, Stage as OpStage};
use super::peer::Purpose;
use super::snaps::{SnapFailure, SnapStep, SnapTaken, SnapWork};
use super::store::Intent;
use super::{Change, Event, Phase, Session};
use crate::ids::{Epoch, Generation, Instant, Rid, SnapId};
use crate::message::{Ask, NOTE_MAX, Refusal};
use crate::mutants::Mutation;
use crate::payload::Payload;
use crate::record::Ack;
use crate::snap_group::GroupStep;

/// How long a snapshot is tried for.
const PATIENCE_MS: u64 = 20_000;
/// How long what has begun may hold new writes, and then how long the members may.
const BUDGET_MS: u64 = 1000;
/// How much later than the others of its group one says that it waits for them.
const READY_MS: u64 = 1000;
/// Barriers for one request.
const TRIES_MAX: u32 = 3;
/// Before the next one: a member that has not answered is taken out by then.
const AGAIN_MS: u64 = 1000;
/// What one of a group waits for.
const ITS_GROUP: &str = "the other volumes of its group";
/// Attempts of one epoch: their names hold so many.
const ATTEMPTS_MAX: u64 = 1 << 20;

/// A snapshot that was asked for.
#[derive(Debug)]
pub(super) struct SnapAsk {
    id: SnapId,
    note: Vec<u8>,
    until: Instant,
    /// It is one of a group.
    grouped: bool,
}

/// A barrier that is one of a group's.
#[derive(Debug, Default)]
struct Grouped {
    /// Where it stands.
    reached: Option<GroupStep>,
    /// Where all of them are, so that it may go on.
    passed: Option<GroupStep>,
}

/// The barrier for the snapshot that was asked for first.
#[derive(Debug)]
pub(super) struct Barrier {
    id: SnapId,
    attempt: u64,
    epoch: Epoch,
    tries: u32,
    stage: Stage,
    /// Members that are asked for the stage's step, and that have done it.
    sent: Vec<Rid>,
    done: Vec<Rid>,
    /// Nothing is tried before this.
    hold: Option<Instant>,
    /// What it waits for, or why the last attempt came to nothing.
    why: SnapFailure,
    /// Who asked was told that it is not known.
    given_up: bool,
    /// It is one of a group.
    group: Option<Grouped>,
}

#[derive(Debug)]
enum Stage {
    Making,
    /// `flush`: in cached mode, what has been answered is made durable before images are taken.
    Draining {
        since: Instant,
        flush: Option<OpId>,
    },
    Preparing {
        since: Instant,
        at: Instant,
        taken: SnapTaken,
    },
    /// Guests go on; the swap is to be sent.
    Prepared {
        taken: SnapTaken,
        held_ms: u64,
    },
    /// It was sent, and its outcome is not known.
    Swapping {
        taken: SnapTaken,
        held_ms: u64,
    },
}

impl Barrier {
    /// It has come so far: may it go on? As one of a group only when all have.
    fn passes(&mut self, step: GroupStep) -> bool {
        let Some(group) = &mut self.group else { return true };
        group.reached = Some(step);
        group.passed >= Some(step)
    }

    /// Have the others of its group begun to hold their guests?
    fn is_begun(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.passed.is_some())
    }
}

impl<P: Payload> Session<P> {
    pub(super) fn snapshot_asked(&mut self, now: Instant, id: SnapId, note: Vec<u8>) {
        self.asked_until(id, note, now.after_ms(PATIENCE_MS), false);
    }

    pub(super) fn asked_until(&mut self, id: SnapId, note: Vec<u8>, until: Instant, grouped: bool) {
        if matches!(self.phase, Phase::Closing(_)) || self.is_ended() {
            return self.events.push_back(Event::SnapshotFailed { id, why: SnapFailure::Closing });
        }
        assert!(note.len() <= NOTE_MAX, "a note of {} bytes", note.len());
        match self.asks.iter_mut().find(|ask| ask.id == id) {
            Some(ask) => ask.until = until,
            None => self.asks.push_back(SnapAsk { id, note, until, grouped }),
        }
        if let Some(barrier) = self.barrier.as_mut().filter(|b| b.id == id) {
            barrier.given_up = false;
        }
    }

    /// A volume whose head is deleted gets none (R31).
    pub(super) fn refuse_headless(&mut self) {
        if self.is_headless() && self.barrier.is_none() {
            while let Some(SnapAsk { id, .. }) = self.asks.pop_front() {
                self.events.push_back(Event::SnapshotFailed { id, why: SnapFailure::HeadDeleted });
            }
        }
    }

    /// How far it is as one of a group.
    pub(super) fn barrier_step(&self, id: SnapId) -> Option<GroupStep> {
        self.barrier.as_ref().filter(|b| b.id == id)?.group.as_ref()?.reached
    }

    /// All of its group have come so far.
    pub(super) fn barrier_passes(&mut self, id: SnapId, step: GroupStep) {
        if let Some(barrier) = self.barrier.as_mut().filter(|b| b.id == id)
            && let Some(group) = &mut barrier.group
        {
            group.passed = group.passed.max(Some(step));
        }
    }

    /// Another one of its group comes to nothing, and so does it; nobody is told. A swap that was sent settles it.
    pub(super) fn barrier_dropped(&mut self, id: SnapId) {
        if let Some(barrier) = self.barrier.as_mut().filter(|b| b.id == id) {
            barrier.given_up = true;
            if !matches!(barrier.stage, Stage::Swapping { .. }) {
                self.barrier_over(waits(ITS_GROUP));
            }
        } else {
            self.asks.retain(|ask| ask.id != id);
        }
    }

    /// Are new writes held?
    pub(super) fn barrier_holds(&self) -> bool {
        let early = self.config.broken.is(Mutation::SnapResumeEarly);
        match self.barrier.as_ref().map(|b| &b.stage) {
            Some(Stage::Draining { .. }) => true,
            Some(Stage::Preparing { .. }) => !early,
            _ => false,
        }
    }

    /// Is a swap of the record held back for the barrier? Only members that fail are not waited for.
    pub(super) fn barrier_is_on(&self) -> bool {
        let stage = self.barrier.as_ref().map(|b| &b.stage);
        matches!(stage, Some(Stage::Draining { .. } | Stage::Preparing { .. }))
    }

    /// Is a snapshot under way that a close waits for?
    pub(super) fn barrier_awaited(&self) -> bool {
        self.barrier.is_some()
    }

    /// The next step of the snapshot that was asked for first.
    pub(super) fn drive_barrier(&mut self, now: Instant, failing: &[(Rid, String)]) {
        self.progressed |= core::mem::take(&mut self.released);
        self.expire_asks(now);
        if self.barrier.is_none() && !self.begin_barrier() {
            return;
        }
        let Some(barrier) = &self.barrier else { return };
        let same_epoch = barrier.epoch == self.rec().epoch;
        match &barrier.stage {
            Stage::Making => {
                self.make_room(now, failing);
                // The others hold their guests for it.
                let late = |b: &&Barrier| matches!(b.stage, Stage::Making) && b.is_begun();
                if let Some(why) = self.barrier.as_ref().filter(late).map(|b| b.why.clone()) {
                    self.barrier_failed(now, why);
                }
            }
            Stage::Draining { since, flush } => {
                let (since, flush) = (*since, *flush);
                if let Some(why) = self.barrier_breaks(failing) {
                    return self.barrier_failed(now, why);
                }
                if !self.is_still() {
                    if now.ms_since(since) >= BUDGET_MS {
                        let late = self.in_sync().into_iter().max_by_key(|rid| self.lacks(*rid));
                        let why = late.map(|rid| SnapFailure::Silent { rid });
                        self.barrier_failed(now, why.unwrap_or_else(|| waits("writes that are under way")));
                    }
                    return;
                }
                let cached = self.rec().policy.ack == Ack::Cached;
                let flushes = flush.is_some_and(|op| self.is_open(op));
                if cached && flush.is_none() {
                    let op = self.own_flush(now);
                    self.set_stage(Stage::Draining { since, flush: Some(op) });
                } else if !flushes && self.barrier.as_mut().is_some_and(|b| b.passes(GroupStep::Still)) {
                    self.prepare(now, since);
                } else if now.ms_since(since) >= BUDGET_MS {
                    self.barrier_failed(now, waits(if flushes { "a flush" } else { ITS_GROUP }));
                }
            }
            Stage::Preparing { at, .. } => {
                let at = *at;
                let silent = self.in_sync().into_iter().find(|rid| !barrier.done.contains(rid));
                if let Some(why) = self.barrier_breaks(failing) {
                    self.barrier_failed(now, why);
                } else if silent.is_none() && self.barrier_imaged(now) {
                    self.progressed = true;
                } else if now.ms_since(at) >= BUDGET_MS {
                    let why = silent.map(|rid| SnapFailure::Silent { rid });
                    self.barrier_failed(now, why.unwrap_or_else(|| waits(ITS_GROUP)));
                }
            }
            Stage::Prepared { .. } if !same_epoch => {
                self.barrier_failed(now, waits("its members, which have changed"));
            }
            Stage::Prepared { .. } => {
                // The store has not answered for long, and nobody waits for this any more.
                if self.asks.front().is_none_or(|ask| now >= ask.until) {
                    self.barrier_over(waits("the store"));
                }
            }
            Stage::Swapping { taken, .. } => {
                let (id, attempt, members) = (taken.id, taken.attempt, taken.members.clone());
                let broken = self.config.broken;
                if !self.snapshot_pending(attempt) {
                    self.barrier_failed(now, waits("the store"));
                } else if self.store_retry.is_some() && broken.is(Mutation::SnapDropUnsettled) {
                    self.drop_images(&members, id, attempt);
                } else if self.store_retry.is_some() && broken.is(Mutation::SnapRetryUnsettled) {
                    self.barrier_again(now, waits("the store"));
                }
            }
        }
    }

    /// Whoever has waited long enough is told.
    fn expire_asks(&mut self, now: Instant) {
        let closing = matches!(self.phase, Phase::Closing(_));
        let busy = self.barrier.as_ref().filter(|b| !matches!(b.stage, Stage::Making)).map(|b| b.id);
        // It is ready itself: another one of its group has more to say.
        let ready = self.barrier.as_ref().filter(|b| b.group.as_ref().is_some_and(|g| g.reached.is_some()));
        let ready = ready.map(|b| b.id);
        let why = self.barrier.as_ref().map(|b| (b.id, b.why.clone()));
        let untold = !self.snaps.are_told();
        let events = &mut self.events;
        self.asks.retain(|ask| {
            let late = now >= if ready == Some(ask.id) { ask.until.after_ms(READY_MS) } else { ask.until };
            if busy == Some(ask.id) || !late && !closing {
                return true;
            }
            let why = match &why {
                _ if closing => SnapFailure::Closing,
                Some((id, why)) if *id == ask.id => why.clone(),
                _ if untold => waits("the list of its snapshots"),
                _ => waits("an earlier snapshot"),
            };
            events.push_back(Event::SnapshotFailed { id: ask.id, why });
            false
        });
        let given_up = |b: &&mut Barrier| self.asks.front().is_none_or(|ask| ask.id != b.id);
        if let Some(barrier) = self.barrier.as_mut().filter(given_up)
            && matches!(barrier.stage, Stage::Making)
        {
            let (id, attempt, made) = (barrier.id, barrier.attempt, core::mem::take(&mut barrier.sent));
            self.barrier = None;
            self.drop_images(&made, id, attempt);
            self.progressed = true;
        }
        let late = self.asks.front().is_some_and(|ask| now >= ask.until);
        if let Some(barrier) = self.barrier.as_mut().filter(|b| late && !b.given_up)
            && matches!(barrier.stage, Stage::Swapping { .. })
        {
            barrier.given_up = true;
            let (id, why) = (barrier.id, waits("the store"));
            self.events.push_back(Event::SnapshotFailed { id, why });
        }
    }

    fn begin_barrier(&mut self) -> bool {
        if !self.snaps.are_told() {
            return false;
        }
        while let Some(ask) = self.asks.front() {
            let (id, until, grouped) = (ask.id, ask.until, ask.grouped);
            if self.snaps.state_of(id).is_none() {
                self.barrier = Some(Barrier {
                    id,
                    attempt: 0,
                    epoch: Epoch(0),
                    tries: 0,
                    stage: Stage::Making,
                    sent: Vec::new(),
                    done: Vec::new(),
                    hold: None,
                    why: waits("its copies"),
                    given_up: false,
                    group: grouped.then(Grouped::default),
                });
                return true;
            }
            self.asks.pop_front();
            self.snap_asked_again(id, until);
        }
        false
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Some(barrier) = &mut self.barrier {
            barrier.stage = stage;
            self.progressed = true;
        }
    }

    /// Has each in-sync member make room for an image, and begins the barrier when all have and nothing is in its way.
    fn make_room(&mut self, now: Instant, failing: &[(Rid, String)]) {
        let (epoch, members) = (self.rec().epoch, self.in_sync());
        if self.attempts_left() == 0 {
            // The next epoch, which is asked for by then, has names again.
            return;
        }
        let Some(barrier) = &mut self.barrier else { return };
        let id = barrier.id;
        if let Some(group) = &mut barrier.group {
            group.reached = None;
        }
        if barrier.hold.is_some_and(|at| now < at) {
            return;
        }
        if barrier.epoch != epoch {
            // The name of another epoch's attempt may be below one that another session has used.
            let made = barrier.sent.clone();
            let old = barrier.attempt;
            self.drop_images(&made, id, old);
            self.snap_count += 1;
            let attempt = epoch.0 * ATTEMPTS_MAX + self.snap_count;
            let Some(barrier) = &mut self.barrier else { return };
            (barrier.epoch, barrier.attempt) = (epoch, attempt);
            (barrier.sent, barrier.done) = (Vec::new(), Vec::new());
        }
        let Some(barrier) = &self.barrier else { return };
        let attempt = barrier.attempt;
        let work = SnapWork { step: SnapStep::Make, id, attempt };
        let missing: Vec<Rid> =
            members.iter().copied().filter(|rid| !barrier.sent.contains(rid) && self.obeys(*rid)).collect();
        for rid in missing {
            if let Some(barrier) = &mut self.barrier {
                barrier.sent.push(rid);
            }
            self.send(now, rid, Purpose::Snap(work), Ask::SnapMake { id, attempt });
        }
        let waiting = self.barrier_waits(now, failing, &members);
        let Some(barrier) = &mut self.barrier else { return };
        match waiting {
            Some(why) => barrier.why = why,
            None if !barrier.passes(GroupStep::Ready) => barrier.why = waits(ITS_GROUP),
            None => {
                barrier.tries += 1;
                self.set_stage(Stage::Draining { since: now, flush: None });
            }
        }
    }

    /// What has to end before writes may be held.
    fn barrier_waits(&self, now: Instant, failing: &[(Rid, String)], members: &[Rid]) -> Option<SnapFailure> {
        let broken = self.config.broken;
        if let Some(why) = self.barrier_breaks(failing) {
            return Some(why);
        }
        let barrier = self.barrier.as_ref()?;
        if let Some(rid) = members.iter().find(|rid| !barrier.done.contains(rid)) {
            return Some(SnapFailure::Silent { rid: *rid });
        }
        let resizes = matches!(self.change.front(), Some(Change::Resize { .. }));
        let what = if !self.attempts.is_empty() && !broken.is(Mutation::SnapRetryUnsettled)
            || self.store_retry.is_some_and(|at| now < at)
        {
            "the store"
        } else if self.growing.is_some() || self.telling.is_some() || resizes {
            "its new size"
        } else if self.reverts() {
            "its revert to a snapshot"
        } else if self.steal_wait {
            "the end of the last owner's reads"
        } else if self.seal_next.is_some() {
            "an interval to be sealed"
        } else if self.interval >= self.config.timing.renew_interval {
            "a new epoch"
        } else {
            return None;
        };
        Some(waits(what))
    }

    /// What ends a barrier that has begun, too.
    fn barrier_breaks(&self, failing: &[(Rid, String)]) -> Option<SnapFailure> {
        if let Some((rid, why)) = failing.first() {
            return Some(waits(&format!("{rid}: {why}")));
        }
        if let Some(reason) = &self.paused {
            return Some(waits(reason));
        }
        if let Some(rid) = self.in_sync().into_iter().find(|rid| !self.obeys(*rid)) {
            return Some(SnapFailure::Silent { rid });
        }
        if !self.dirty.is_empty() && !self.config.broken.is(Mutation::SnapBeforeReconcile) {
            return Some(waits("its copies to be made equal"));
        }
        let began = self.barrier.as_ref().is_some_and(|b| b.epoch != self.rec().epoch);
        began.then(|| waits("its members, which have changed"))
    }

    /// Is no write on its way to an in-sync member?
    fn is_still(&self) -> bool {
        if self.config.broken.is(Mutation::SnapNoDrain) {
            return true;
        }
        let writes =
            self.ops.values().any(|o| o.is_write() && matches!(o.stage, OpStage::Edges | OpStage::Sent));
        let early = self.config.broken.is(Mutation::SnapBeforeReconcile);
        let equalises = !early && self.pieces.values().any(Piece::equalises);
        !(writes || equalises)
    }

    /// How many writes are not acknowledged by it.
    fn lacks(&self, rid: Rid) -> usize {
        let lacks = |kind: &OpKind<P>| matches!(kind, OpKind::Write { .. } | OpKind::Zero { .. });
        self.ops.values().filter(|o| lacks(&o.kind) && !o.acked.contains(&rid)).count()
    }

    /// Nothing is on its way: ends the interval, and has every in-sync member take its image.
    fn prepare(&mut self, now: Instant, since: Instant) {
        let generation = self.roll_for_barrier(now);
        let (members, record) = (self.in_sync(), self.rec());
        let (epoch, size, region_shift) = (record.epoch, record.size, record.region_shift);
        let incarnation = self.watermark.incarnation;
        let Some(barrier) = &mut self.barrier else { return };
        let (id, attempt) = (barrier.id, barrier.attempt);
        let taken = SnapTaken {
            id,
            attempt,
            generation,
            epoch,
            incarnation,
            size,
            region_shift,
            members: members.clone(),
        };
        barrier.stage = Stage::Preparing { since, at: now, taken };
        (barrier.sent, barrier.done) = (members.clone(), Vec::new());
        for rid in members {
            let work = SnapWork { step: SnapStep::Prepare, id, attempt };
            self.send(
                now,
                rid,
                Purpose::Snap(work),
                Ask::SnapPrepare { id, attempt, generation, incarnation },
            );
        }
        self.progressed = true;
    }

    /// Always, also where nothing was written: what comes after the barrier has another generation.
    fn roll_for_barrier(&mut self, now: Instant) -> Generation {
        let generation = self.generation();
        if self.bitmaps.contains_key(&generation) || self.stamped {
            self.seal_next = Some((generation, None));
        }
        self.interval += 1;
        self.rolled = now;
        self.interval_writes = 0;
        (self.roll_now, self.stamped) = (false, false);
        generation
    }

    pub(super) fn barrier_done(&mut self, now: Instant, rid: Rid, work: SnapWork) {
        let all = self.in_sync();
        let lists_silent = self.config.broken.is(Mutation::SnapListsSilent);
        let Some(barrier) = self.barrier.as_mut().filter(|b| b.attempt == work.attempt) else { return };
        match (&barrier.stage, work.step) {
            (Stage::Making, SnapStep::Make) => barrier.done.push(rid),
            (Stage::Preparing { .. }, SnapStep::Prepare) => {
                barrier.done.push(rid);
                if lists_silent || all.iter().all(|rid| barrier.done.contains(rid)) {
                    self.barrier_imaged(now);
                }
            }
            _ => {}
        }
    }

    /// Every member has its image: guests go on, as one of a group when all of it are so far.
    fn barrier_imaged(&mut self, now: Instant) -> bool {
        let Some(barrier) = self.barrier.as_mut().filter(|b| !b.done.is_empty()) else { return false };
        if !barrier.passes(GroupStep::Imaged) {
            return false;
        }
        let Stage::Preparing { since, taken, .. } = &barrier.stage else { return false };
        let (taken, held_ms) = (taken.clone(), now.ms_since(*since));
        barrier.stage = Stage::Prepared { taken, held_ms };
        self.released = true;
        true
    }

    pub(super) fn barrier_undone(&mut self, now: Instant, rid: Rid, work: SnapWork, why: Option<Refusal>) {
        let later = now.after_ms(self.config.timing.heartbeat_ms);
        let Some(barrier) = self.barrier.as_mut().filter(|b| b.attempt == work.attempt) else { return };
        let expected = match barrier.stage {
            Stage::Making => SnapStep::Make,
            Stage::Preparing { .. } => SnapStep::Prepare,
            _ => return,
        };
        if work.step != expected {
            return;
        }
        match why {
            Some(Refusal::NoSnapshots) => self.barrier_over(SnapFailure::CannotBe { rid }),
            Some(Refusal::NoSpace) => self.barrier_over(SnapFailure::NoSpace { rid }),
            _ if expected == SnapStep::Make => {
                barrier.sent.retain(|r| *r != rid);
                barrier.hold = Some(later);
                if why == Some(Refusal::OldAttempt) {
                    // Somebody has used this name, or a later one.
                    barrier.epoch = Epoch(0);
                }
            }
            None => self.barrier_failed(now, SnapFailure::Silent { rid }),
            Some(refusal) => self.barrier_failed(now, waits(&format!("{rid}: {refusal:?}"))),
        }
    }

    /// This attempt comes to nothing: its images go, and it is tried again, if there is time.
    fn barrier_failed(&mut self, now: Instant, why: SnapFailure) {
        let closing = matches!(self.phase, Phase::Closing(_));
        let late = self.asks.front().is_none_or(|ask| now >= ask.until);
        let Some(barrier) = &self.barrier else { return };
        if closing {
            self.barrier_over(SnapFailure::Closing);
        } else if barrier.tries >= TRIES_MAX || late || barrier.group.is_some() {
            self.barrier_over(why);
        } else {
            let (members, id, attempt) = (barrier.sent.clone(), barrier.id, barrier.attempt);
            self.drop_images(&members, id, attempt);
            self.barrier_again(now, why);
        }
    }

    fn barrier_again(&mut self, now: Instant, why: SnapFailure) {
        let Some(barrier) = &mut self.barrier else { return };
        (barrier.stage, barrier.why) = (Stage::Making, why);
        (barrier.epoch, barrier.hold) = (Epoch(0), Some(now.after_ms(AGAIN_MS)));
        (barrier.sent, barrier.done) = (Vec::new(), Vec::new());
        self.look_at_snaps();
        self.released = true;
    }

    /// There is no snapshot.
    fn barrier_over(&mut self, why: SnapFailure) {
        let Some(barrier) = self.barrier.take() else { return };
        self.drop_images(&barrier.sent, barrier.id, barrier.attempt);
        self.asks.pop_front();
        if !barrier.given_up {
            self.events.push_back(Event::SnapshotFailed { id: barrier.id, why });
        }
        self.look_at_snaps();
        self.released = true;
    }

    // ---- the swap

    /// Sends the swap that makes it stand in the store, if the images are there.
    pub(super) fn propose_snapshot(&mut self, now: Instant) -> bool {
        let Some(barrier) = &mut self.barrier else { return false };
        let Stage::Prepared { taken, held_ms } = &barrier.stage else { return false };
        if taken.epoch != self.record.as_ref().map_or(Epoch(0), |r| r.epoch) {
            return false;
        }
        let (taken, held_ms) = (taken.clone(), *held_ms);
        barrier.stage = Stage::Swapping { taken: taken.clone(), held_ms };
        self.propose(now, Intent::Snapshot(taken));
        true
    }

    /// Its outcome is unknown: another swap settles it, the same while somebody waits for it and it is alone.
    pub(super) fn snapshot_again(&self) -> Option<Intent> {
        let alone = |b: &&Barrier| b.group.is_none() || self.config.broken.is(Mutation::GroupSettlesAlone);
        let barrier = self.barrier.as_ref().filter(|b| !b.given_up).filter(alone)?;
        match &barrier.stage {
            Stage::Swapping { taken, .. } if taken.epoch == self.rec().epoch => {
                Some(Intent::Snapshot(taken.clone()))
            }
            _ => None,
        }
    }

    /// What a swap that was sent would make of its key.
    pub(super) fn snapshot_swapping(&self) -> Option<SnapTaken> {
        match &self.barrier.as_ref()?.stage {
            Stage::Swapping { taken, .. } => Some(taken.clone()),
            _ => None,
        }
    }

    /// Does the swap of this snapshot go with others'?
    pub(super) fn is_grouped(&self, id: SnapId) -> bool {
        self.barrier.as_ref().is_some_and(|b| b.id == id && b.group.is_some())
    }

    /// May a swap for this attempt have been applied, or yet be?
    fn snapshot_pending(&self, attempt: u64) -> bool {
        let ours = |intent: &Intent| matches!(intent, Intent::Snapshot(taken) if taken.attempt == attempt);
        self.attempts.iter().any(|a| ours(&a.intent))
    }

    /// The swap is known to have been applied.
    pub(super) fn snapshot_swapped(&mut self, taken: &SnapTaken) {
        let barrier = self.barrier.take_if(|b| b.id == taken.id);
        let ask = self.asks.pop_front_if(|ask| ask.id == taken.id);
        let (note, until) = ask.map_or((Vec::new(), None), |ask| (ask.note, Some(ask.until)));
        let given_up = barrier.as_ref().is_some_and(|b| b.given_up);
        let held_ms = match barrier.map(|b| b.stage) {
            Some(Stage::Swapping { held_ms, .. }) => held_ms,
            _ => 0,
        };
        self.snap_taken(taken, note, held_ms, until.filter(|_| !given_up));
    }

    // ---- names

    /// The names that are left for attempts in this epoch.
    pub(super) fn attempts_left(&self) -> u64 {
        (ATTEMPTS_MAX - 1).saturating_sub(self.snap_count)
    }

    pub(super) fn forget_barrier(&mut self) {
        self.barrier = None;
        self.asks.clear();
        self.forget_snaps();
    }
}

fn waits(what: &str) -> SnapFailure {
    SnapFailure::Waits(what.to_string())
}
