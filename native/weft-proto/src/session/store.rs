//! The session and the store: one call at a time, and swaps whose outcome may be unknown (protocol.md R14).
//!
//! Must always hold:
//! * every unsettled attempt replaces the same record at the same revision, so at most one of them can ever be applied;
//! * an attempt is forgotten only when its outcome is known: its nonce was seen, a swap of ours on the same
//!   revision succeeded, the key was seen at a higher revision, or the store said "surely not applied";
//! * what the session believes of the record changes in [`Session::adopt`] only.

use alloc::string::String;
use alloc::vec::Vec;

use super::policy::PolicyChange;
use super::snaps::{SnapChange, SnapTaken};
use super::{EndReason, Event, Phase, Session, StoreCall, StoreReply};
use crate::ids::{Generation, HostId, Instant, Nonce, PoolId, PoolInc, Revision, Rid};
use crate::message::Watermark;
use crate::mutants::Mutation;
use crate::payload::Payload;
use crate::record::{Head, HeadData, Owner, Record, ReplicaEntry, ReplicaState, Reverting};

/// A swap that was sent.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) nonce: Nonce,
    pub(super) record: Record,
    pub(super) intent: Intent,
}

/// What a swap is for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Intent {
    /// owner := me.
    Claim,
    /// Members that don't answer become stale (R2); `admit`: in the same swap a joiner comes in (R23).
    Demote { rids: Vec<Rid>, base: Generation, reason: String, admit: Option<Rid> },
    /// A joiner comes in.
    Admit { rid: Rid },
    /// The wait of a steal is over (R9).
    ClearWait,
    /// A new epoch before intervals wrap (R21).
    Renew,
    /// A new replica, stale at base 0.
    Add { rid: Rid, node: HostId, pool: PoolId },
    /// A replica leaves.
    Remove { rid: Rid },
    /// Another size (R25).
    Resize { size: u64 },
    /// Something else is wanted of the volume (R25).
    Policy(PolicyChange),
    /// Larger regions, so that there are few enough of them in a size to come (R26).
    Fold { region_shift: u8 },
    /// A snapshot stands in the store.
    Snapshot(SnapTaken),
    /// The key of one changes otherwise.
    Snap(SnapChange),
    /// The volume is being taken back to a snapshot; members without its image become stale (R30).
    Mark { reverting: Reverting, without: Vec<Rid>, base: Generation, reason: String },
    /// It has been.
    Unmark,
    /// What only the deleted head has goes, or is gone (R31).
    Head(HeadData),
    /// Nothing changes but the revision: settles earlier attempts.
    Settle,
    /// owner := null, clean.
    Close { sealed: Generation },
}

impl Intent {
    /// What it does to a snapshot's key.
    fn snap(&self) -> Option<SnapChange> {
        match self {
            Intent::Snapshot(taken) => Some(SnapChange::Taken(taken.clone())),
            Intent::Snap(change) => Some(change.clone()),
            _ => None,
        }
    }
}

impl<P: Payload> Session<P> {
    /// True while an admission of this replica may have happened, or may yet happen.
    pub(super) fn admission_pending(&self, rid: Rid) -> bool {
        self.attempts.iter().any(|a| match &a.intent {
            Intent::Admit { rid: r } => *r == rid,
            Intent::Demote { admit, .. } => *admit == Some(rid),
            _ => false,
        })
    }

    /// True while a swap that removes this replica may have happened: it is not read (R2).
    pub(super) fn removal_pending(&self, rid: Rid) -> bool {
        self.attempts.iter().any(|a| match &a.intent {
            Intent::Demote { rids, .. } => rids.contains(&rid),
            Intent::Mark { without, .. } => without.contains(&rid),
            Intent::Remove { rid: r } => *r == rid,
            _ => false,
        })
    }

    /// Was a swap that removes this replica sent, and its outcome not told?
    pub(super) fn removal_unknown(&self, rid: Rid) -> bool {
        let told = self.attempts.len() - usize::from(self.store_busy && !self.attempts.is_empty());
        self.attempts.iter().take(told).any(|a| match &a.intent {
            Intent::Demote { rids, .. } => rids.contains(&rid),
            _ => false,
        })
    }

    /// May a swap be sent now?
    pub(super) fn store_ready(&self, now: Instant) -> bool {
        !self.store_busy && !self.get_wanted && self.store_retry.is_none_or(|at| now >= at)
    }

    /// Sends the reads that are wanted.
    pub(super) fn drive_store(&mut self, now: Instant) {
        if self.get_wanted
            && !self.store_busy
            && self.store_retry.is_none_or(|at| now >= at)
            && !self.is_ended()
        {
            self.get_wanted = false;
            (self.store_busy, self.swapping) = (true, false);
            self.suspect_asked = self.rollback_suspect.take();
            self.told_asked = self.told.take();
            self.store_calls.push_back(StoreCall::Get);
        }
    }

    /// Sends a swap.
    pub(super) fn propose(&mut self, now: Instant, intent: Intent) {
        assert!(self.store_ready(now), "one store call at a time");
        let nonce = self.fresh_nonce();
        let record = self.amended(now, &intent, nonce);
        record.check().unwrap_or_else(|e| panic!("{intent:?} would write a bad record: {e}"));
        if let Err(error) = record.check_counters() {
            // What is there is at the end of its range, which changes don't lead to: it waits for a repair.
            return self.end(EndReason::Unusable(error));
        }
        let snap = intent.snap();
        let alone = self.config.broken.is(Mutation::GroupSettlesAlone) && !self.attempts.is_empty();
        let grouped = !alone && matches!(&intent, Intent::Snapshot(taken) if self.is_grouped(taken.id));
        // A swap that takes members out is not sent before they have stopped being read.
        self.attempts.push(Attempt { nonce, record: record.clone(), intent });
        (self.store_busy, self.swapping) = (true, true);
        self.store_calls.push_back(StoreCall::Swap {
            expect: self.revision,
            base: self.rec().nonce,
            record,
            snap,
            grouped,
        });
    }

    /// Does this session's claim go on with what that owner began (R32)? It is asked of the record that the swap replaces,
    /// so nobody comes in between.
    fn continues(&self, owner: &Owner) -> bool {
        let broken = self.config.broken.is(Mutation::AnyOwnerContinues);
        let same = owner.node == self.config.host && self.config.mode.has_ended(owner.session);
        (same || broken) && !owner.caretaker && !self.config.caretaker
    }

    fn amended(&self, now: Instant, intent: &Intent, nonce: Nonce) -> Record {
        let mut r = self.rec().clone();
        let since = alloc::format!("{}", self.config.unix_ms_at_zero + now.0 / 1_000_000);
        r.nonce = nonce;
        r.rev.0 += 1;
        let mut membership = false;
        match intent {
            Intent::Claim => {
                let stolen = match (&r.owner, self.config.mode) {
                    (None, _) => false,
                    (Some(o), mode) if mode.has_ended(o.session) => false,
                    (Some(_), _) => true,
                };
                // A caretaker has no guest that could read something stale, but its process does not know that
                // it is one when it is asked twice; the wait costs two seconds, a stale read costs trust.
                let broken = self.config.broken;
                r.wait = (r.wait && !broken.is(Mutation::ExceptionIgnoresMark))
                    || (stolen && !broken.is(Mutation::NoWaitMark));
                r.owner = Some(Owner {
                    node: self.config.host,
                    session: self.config.session,
                    caretaker: self.config.caretaker,
                    first: r.owner.as_ref().filter(|o| self.continues(o)).map(Owner::first),
                });
                r.next = None;
                r.clean = false;
                membership = true;
            }
            Intent::Demote { rids, base, reason, admit } => {
                for entry in &mut r.replicas {
                    if rids.contains(&entry.rid) && entry.state == ReplicaState::InSync {
                        entry.state = ReplicaState::Stale;
                        entry.base = *base;
                        entry.reason.clone_from(reason);
                        entry.since.clone_from(&since);
                    }
                    if *admit == Some(entry.rid) {
                        entry.state = ReplicaState::InSync;
                        entry.base = Generation::NEVER;
                        entry.reason = "resynced".into();
                        entry.since.clone_from(&since);
                    }
                }
                membership = true;
            }
            Intent::Admit { rid } => {
                if let Some(entry) = r.replica_mut(*rid) {
                    entry.state = ReplicaState::InSync;
                    entry.base = Generation::NEVER;
                    entry.reason = "resynced".into();
                    entry.since = since;
                }
                membership = true;
            }
            Intent::ClearWait => r.wait = false,
            Intent::Renew => membership = true,
            Intent::Add { rid, node, pool } => {
                if !self.config.broken.is(Mutation::ReuseReplicaNumber) {
                    r.next_rid = r.next_rid.max(rid.0 + 1);
                }
                r.replicas.push(ReplicaEntry {
                    rid: *rid,
                    node: *node,
                    pool: *pool,
                    pool_inc: PoolInc(0),
                    state: ReplicaState::Stale,
                    base: Generation::NEVER,
                    reason: "added".into(),
                    since,
                    unknown: alloc::collections::BTreeMap::new(),
                });
                // The members' copies of the record must name it before it can be the last of them: a repair of the
                // store goes by those copies (4.15; docs/model.md, finding 9).
                membership = true;
            }
            Intent::Remove { rid } => {
                // In-sync or not: the epoch rises, so that the leaver's host sees a record above its promise (R15).
                r.replicas.retain(|entry| entry.rid != *rid);
                membership = true;
            }
            Intent::Resize { size } => {
                let keeps =
                    if *size > r.size { Mutation::GrowKeepsEpoch } else { Mutation::ShrinkKeepsEpoch };
                r.size = *size;
                // A repair of the store goes by the members' copies of the record: nothing completes in the new size, and
                // nobody is told of it, before they hold it (R25; docs/model.md, findings 9 and 24).
                membership = !self.config.broken.is(keeps);
            }
            Intent::Policy(wanted) => {
                wanted.put_into(&mut r.policy);
                membership = !self.config.broken.is(Mutation::PolicyKeepsEpoch);
            }
            Intent::Fold { region_shift } => {
                r.region_shift = *region_shift;
                // Members fold at the promise, and say nothing of their stamps between the two.
                membership = true;
            }
            Intent::Mark { reverting, without, base, reason } => {
                for entry in r.replicas.iter_mut().filter(|entry| without.contains(&entry.rid)) {
                    entry.state = ReplicaState::Stale;
                    entry.base = *base;
                    entry.reason.clone_from(reason);
                    entry.since.clone_from(&since);
                }
                if !self.config.broken.is(Mutation::RevertUnmarked) {
                    r.mark(Some(Reverting { since, ..reverting.clone() }));
                }
                membership = !self.config.broken.is(Mutation::RevertMarkerKeepsEpoch);
            }
            Intent::Unmark => {
                r.mark(None);
                membership = !self.config.broken.is(Mutation::RevertClearKeepsEpoch);
            }
            Intent::Head(data) => {
                let head = r.head.clone().map(|head| Head { data: *data, ..head });
                r.mark_head(head);
                // Before anything goes every member knows that it may (R25).
                let keeps = self.config.broken.is(Mutation::HeadReleaseKeepsEpoch);
                membership = *data == HeadData::Releasing && !keeps;
            }
            Intent::Settle => {}
            Intent::Snapshot(_) | Intent::Snap(_) => {
                // The epoch stays: what a repair of the store needs is in the members' logs, not in their records (R27).
                let change = intent.snap().expect("of a key");
                self.count_snaps(&change, &mut r);
            }
            Intent::Close { sealed } => {
                r.owner = None;
                r.next = None;
                r.clean = true;
                r.closed_gen = *sealed;
                r.wait &= !self.config.broken.is(Mutation::CloseBeforeWait);
                membership = !self.config.broken.is(Mutation::CloseKeepsEpoch);
            }
        }
        if membership {
            r.epoch = r.epoch.next();
        }
        for entry in &mut r.replicas {
            if let Some(view) = self.peers.get(&entry.rid).and_then(|p| p.view.as_ref()) {
                entry.pool_inc = view.pool_inc;
            }
        }
        r
    }

    pub(super) fn take_store_reply(&mut self, now: Instant, reply: StoreReply, seen: Option<Watermark>) {
        if self.is_ended() {
            return;
        }
        self.store_busy = false;
        self.store_retry = None;
        let reply = match reply {
            StoreReply::Unknown if self.config.broken.is(Mutation::UnknownIsFailed) => {
                StoreReply::Unavailable
            }
            reply => reply,
        };
        match reply {
            StoreReply::Record { record, revision } => {
                let opening = matches!(self.phase, Phase::Reading | Phase::Contacting { .. });
                if let Some(claim) = self.told_asked.take().filter(|_| opening)
                    && seen.is_none_or(|seen| seen < claim.watermark)
                    && !self.config.broken.is(Mutation::ClaimIgnored)
                {
                    return self.end(EndReason::Claimed(claim));
                }
                self.take_record(now, record, revision, true);
            }
            StoreReply::Conflict { record, revision } => self.take_record(now, record, revision, false),
            StoreReply::Swapped { revision } => {
                if let Some(attempt) = self.attempts.last().cloned() {
                    self.adopt(now, attempt.record, revision, Some(attempt.intent));
                }
            }
            StoreReply::Missing => self.end(EndReason::Missing),
            StoreReply::Unusable(error) => self.end(EndReason::Unusable(error)),
            StoreReply::RolledBack => self.end(EndReason::MetadataRollback),
            StoreReply::Unknown => {
                self.ask_again();
                self.get_wanted |= self.config.broken.is(Mutation::RereadSettles);
                self.store_retry = Some(now.after_ms(self.config.timing.retry_ms));
                if matches!(self.phase, Phase::Reading) {
                    self.get_wanted = true;
                }
            }
            StoreReply::Unavailable => {
                // This try, if it was one, was surely not applied; earlier unknown ones stay unsettled (R14).
                self.ask_again();
                if self.swapping {
                    self.attempts.pop();
                }
                self.store_retry = Some(now.after_ms(self.config.timing.retry_ms));
                if matches!(self.phase, Phase::Reading | Phase::Contacting { .. }) {
                    self.get_wanted = true;
                }
                if matches!(self.phase, Phase::Claiming) && self.attempts.is_empty() {
                    self.phase = Phase::Contacting { since: now };
                }
            }
        }
    }

    /// A read that did not come back confirms nothing.
    fn ask_again(&mut self) {
        if let Some(claim) = self.told_asked.take() {
            self.told = self.told.max(Some(claim));
            self.get_wanted = true;
        }
        if let Some(epoch) = self.suspect_asked.take() {
            self.rollback_suspect = self.rollback_suspect.max(Some(epoch));
            self.get_wanted = true;
        }
    }

    /// The record as the store has it, from a read (`by_read`) or from a swap that did not apply.
    fn take_record(&mut self, now: Instant, record: Record, revision: Revision, by_read: bool) {
        // Whoever reads the store can put our nonce into another record.
        let ours = |a: &&Attempt| {
            (a.nonce, a.record.version()) == (record.nonce, record.version())
                && !self.config.broken.is(Mutation::NonceIgnored)
        };
        if let Some(attempt) = self.attempts.iter().find(ours).cloned() {
            return self.adopt(now, record, revision, Some(attempt.intent));
        }
        match self.phase {
            Phase::Claiming if revision == self.revision && record.nonce == self.rec().nonce => {
                // A claim with unknown outcome may still be applied (R14): it is settled by another one. A record
                // with another nonce at this revision is of a store that was put back: no claim can replace it that
                // was made from the record it lost.
            }
            Phase::Reading | Phase::Contacting { .. } | Phase::Claiming => {
                // Nothing of ours was applied (its nonce would be there, or somebody came after it: a claim of
                // ours that was applied and then replaced is a lost race either way).
                self.attempts.clear();
                self.record_read(now, record, revision, by_read);
            }
            Phase::Gathering { .. } | Phase::Stamping(_) | Phase::Serving | Phase::Closing(_) => {
                let mine = record.owner.is_some_and(|o| o.session == self.config.session);
                if !mine && record.version() > self.rec().version() {
                    return self.end(EndReason::Fenced { owner: record.owner });
                }
                if revision > self.revision {
                    if mine && self.may_adopt(&record) {
                        return self.adopt(now, record, revision, None);
                    }
                    let reason = if mine {
                        EndReason::MetadataRollback
                    } else {
                        EndReason::Fenced { owner: record.owner }
                    };
                    return self.end(reason);
                }
                if revision < self.revision || !mine {
                    return self.end(EndReason::MetadataRollback);
                }
                // The old revision settles nothing (R14) …
                if by_read && self.config.broken.is(Mutation::RereadSettles) {
                    self.attempts.clear();
                    self.abandon_join("its admission is believed not to have happened");
                }
                // … but it does show that a replica knows of an epoch that the store does not (R11).
                if by_read
                    && self.suspect_asked.take().is_some_and(|e| e >= record.epoch)
                    && self.attempts.is_empty()
                {
                    self.end(EndReason::MetadataRollback);
                }
            }
            Phase::Ended => {}
        }
    }

    /// A record that names us with a nonce that we don't know (R14).
    fn may_adopt(&self, record: &Record) -> bool {
        let newer = record.version() > self.rec().version();
        let members_known = record.in_sync().all(|e| {
            self.rec().replica(e.rid).is_some_and(|m| m.state == ReplicaState::InSync)
                || self.join_is_required(e.rid)
        });
        newer && members_known
    }

    /// The record is known to be this one: the only place where the session's belief changes.
    fn adopt(&mut self, now: Instant, record: Record, revision: Revision, intent: Option<Intent>) {
        if let Some(old) = &self.record
            && self.owns()
        {
            assert!(record.epoch >= old.epoch, "I1: epoch {} after {}", record.epoch, old.epoch);
        }
        let owned = self.owns();
        let epoch_changed = self.record.as_ref().is_none_or(|old| old.epoch != record.epoch) || !self.owns();
        let left: Vec<Rid> = self
            .record
            .iter()
            .flat_map(|old| old.in_sync())
            .map(|e| e.rid)
            .filter(|rid| record.replica(*rid).is_none_or(|e| e.state != ReplicaState::InSync))
            .collect();
        // Somebody else's words on top of ours: they are a later record, and the key is there.
        let overwritten = self
            .snapshot_swapping()
            .filter(|taken| intent.is_none() && record.snaps.newest == Some(taken.id));
        let (came_back, old_size) = (self.join_anew(), self.record.as_ref().map_or(0, |r| r.size));
        self.attempts.clear();
        self.rollback_suspect = None;
        self.suspect_asked = None;
        let before = self.record.replace(record);
        self.revision = revision;
        self.events.push_back(Event::RecordChanged);
        self.revert_adopted(before.as_ref().filter(|_| owned), intent.as_ref());
        for rid in left {
            self.drop_attachment(rid);
        }
        self.sync_peers(now);
        self.look_at_snaps();
        if let Some(taken) = overwritten {
            self.snapshot_swapped(&taken);
        }
        if epoch_changed {
            self.interval = 0;
            self.snap_count = 0;
            for peer in self.peers.values_mut() {
                peer.promised = None;
                peer.promising = false;
                peer.unpromised = None;
                peer.lease = None;
            }
        }
        match intent {
            Some(Intent::Claim) => self.claimed(now),
            Some(Intent::Close { .. }) => self.end(EndReason::Closed),
            Some(Intent::Demote { rids, reason, admit, .. }) => {
                self.events.push_back(Event::Demoted { rids, reason });
                self.demoted(now);
                if let Some(rid) = admit {
                    self.admitted(now, rid);
                }
            }
            Some(Intent::Mark { without, reason, .. }) => {
                if !without.is_empty() {
                    self.events.push_back(Event::Demoted { rids: without, reason });
                }
                self.demoted(now);
            }
            Some(Intent::Admit { rid }) => self.admitted(now, rid),
            Some(Intent::Add { rid, .. } | Intent::Remove { rid }) => {
                self.change.pop_front();
                self.events.push_back(Event::ChangeDone { rid, outcome: Ok(()) });
            }
            Some(Intent::Resize { .. }) => self.resized(now, old_size),
            Some(Intent::Policy(_)) => self.policy_done(Ok(())),
            Some(Intent::Fold { .. }) => self.folded(now),
            Some(Intent::ClearWait) => self.steal_wait = false,
            Some(Intent::Settle) => self.settled(now),
            Some(Intent::Snapshot(taken)) => self.snapshot_swapped(&taken),
            Some(Intent::Snap(change)) => self.snap_changed(&change),
            Some(Intent::Head(data)) => self.head_swapped(now, data),
            Some(Intent::Renew | Intent::Unmark) | None => self.demoted(now),
        }
        // A joiner that came back without its cache was not known for a member then (R8, R14).
        if let Some(rid) = came_back
            && self.is_serving()
        {
            self.lost_cache(now, rid);
        }
        self.check_all_ops(now);
    }
}
