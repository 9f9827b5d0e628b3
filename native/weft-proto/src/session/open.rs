//! Opening (protocol.md 4.11): read, contact, claim, gather promises, find what may differ.
//!
//! Must always hold:
//! * no claim before an in-sync member has answered (R16), and none while a replica knows of a higher epoch than
//!   the store, read again after that answer, shows (R11);
//! * nothing is served before every in-sync member of the record has promised the same epoch to this session;
//! * a region that any in-sync member has stamped above the highest seal is equalised before it is read (R5).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::peer::{Link, Purpose, StampsId};
use super::serve::Closing;
use super::store::Intent;
use super::{EndReason, Event, OpenMode, Phase, Session};
use crate::ids::{Epoch, Generation, Instant, Revision, Rid};
use crate::message::{Ask, Claim, Refusal, Watermark};
use crate::mutants::Mutation;
use crate::payload::Payload;
use crate::record::{Ack, Mode, Record};

/// After the first member answered, how long the others have before the claim is sent.
const CONTACT_MS: u64 = 300;

/// Which stamps are still to come.
#[derive(Debug)]
pub(super) struct Stamping {
    id: StampsId,
    /// Members whose answer is not complete.
    missing: Vec<Rid>,
    /// The highest seal of any in-sync member.
    sealed: Generation,
    /// The regions so far.
    regions: BTreeMap<u32, ()>,
    /// When they were asked.
    asked: Instant,
}

impl<P: Payload> Session<P> {
    /// The record before the claim.
    pub(super) fn record_read(&mut self, now: Instant, record: Record, revision: Revision, by_read: bool) {
        if record.deleted.is_some() {
            return self.end(EndReason::Missing);
        }
        let opened = self.config.caretaker || self.config.broken.is(Mutation::HeadOpened);
        if record.head.is_some() && !opened {
            return self.end(EndReason::HeadDeleted);
        }
        if record.mode == Mode::Register {
            return self.end(EndReason::Unsupported("register mode"));
        }
        if let OpenMode::Continue { session } = self.config.mode
            && record.owner.is_none_or(|owner| owner.session != session)
        {
            return self.end(EndReason::Fenced { owner: record.owner });
        }
        if let Some(owner) = record.owner {
            let any = self.config.mode != OpenMode::Closed && self.config.broken.is(Mutation::ReplaceAny);
            let takeable = owner.caretaker || any || self.config.mode.may_replace(owner.session);
            if !takeable || owner.session == self.config.session {
                return self.end(EndReason::Busy { owner });
            }
        }
        let suspect = self.suspect_asked.take();
        if by_read && suspect.is_some_and(|e| e > record.epoch) {
            return self.end(EndReason::MetadataRollback);
        }
        self.record = Some(record);
        self.revision = revision;
        if !matches!(self.phase, Phase::Contacting { .. }) {
            self.phase = Phase::Contacting { since: now };
        }
        self.sync_peers(now);
    }

    /// A member answered the attach.
    pub(super) fn attached(&mut self, now: Instant, rid: Rid, promised: Epoch, watermark: Watermark) {
        if let Some(host) = self.peers.get(&rid).map(|p| p.node) {
            self.heed(Claim { watermark, host, relayed: true });
        }
        match &mut self.phase {
            Phase::Contacting { since } => {
                let record = self.record.as_ref().expect("known in this phase");
                let view = self.peers.get(&rid).and_then(|p| p.view.as_ref());
                let other_session = view.is_some_and(|v| {
                    v.promised == record.epoch && record.owner.is_some_and(|o| o.session != v.session)
                });
                if promised > record.epoch && self.config.broken.is(Mutation::RollbackUnread) {
                    return self.end(EndReason::MetadataRollback);
                }
                if promised > record.epoch || other_session {
                    // Only a read made after this answer tells a race from a rolled-back store (R11).
                    let known = if other_session { Epoch(promised.0 + 1) } else { promised };
                    self.rollback_suspect = self.rollback_suspect.max(Some(known));
                    self.get_wanted = true;
                }
                *since = (*since).min(now);
            }
            _ => {
                self.restart_gather();
                if self.is_serving() {
                    self.join_attached(rid);
                    self.lost_cache(now, rid);
                }
            }
        }
    }

    /// R8: a member came back without the cache that it had acknowledged from, while we live.
    pub(super) fn lost_cache(&mut self, now: Instant, rid: Rid) {
        let cached = self.rec().policy.ack == Ack::Cached && !self.config.broken.is(Mutation::TrustLossy);
        let is_lossy = |r: &Rid| self.peers.get(r).and_then(|p| p.view.as_ref()).is_some_and(|v| v.lossy);
        if !cached || !self.in_sync().contains(&rid) || !is_lossy(&rid) {
            return;
        }
        let kept = self.in_sync().iter().filter(|r| !is_lossy(r)).count();
        if kept == 0 {
            if self.config.broken.is(Mutation::OutliveCaches) {
                return;
            }
            // Its guest believes in writes that no longer exist anywhere.
            return self.end(EndReason::CachesLost);
        }
        // What it said of writes and flushes that others have yet to answer is not true any more.
        for op in self.ops.values_mut() {
            op.acked.retain(|r| *r != rid);
        }
        if let Some((_, flush)) = &mut self.seal_next {
            *flush = None;
        }
        if kept >= usize::from(self.rec().policy.min_isr) {
            if let Some(peer) = self.peers.get_mut(&rid) {
                peer.bad = Some((Refusal::IoError, now));
            }
            return;
        }
        // min_isr forbids to take it out: it is brought what it lost as by an open, and what is under way waits.
        self.abandon_join("a member lost its cache");
        self.dirty.clear();
        match core::mem::replace(&mut self.phase, Phase::Gathering { since: now }) {
            Phase::Serving => self.back = Some(Phase::Serving),
            Phase::Closing(_) => self.back = Some(Phase::Closing(Closing::Draining)),
            _ => {}
        }
    }

    /// Claims once a member has answered.
    pub(super) fn contact(&mut self, now: Instant) {
        let Phase::Contacting { since } = self.phase else { return };
        let members = self.in_sync();
        let good = members.iter().filter(|r| self.peers.get(r).is_some_and(|p| p.is_attached())).count();
        let patient = now.ms_since(since) < CONTACT_MS && good < members.len();
        let blind = self.config.broken.is(Mutation::ClaimBlind);
        if good == 0 && !blind || patient {
            if good == 0 && now.ms_since(since) > self.config.timing.dead_ms {
                self.pause(now, "no in-sync member answers");
            }
            return;
        }
        if self.store_ready(now) && self.attempts.is_empty() {
            self.phase = Phase::Claiming;
            self.propose(now, Intent::Claim);
        }
    }

    /// A claim whose outcome is unknown is settled by another one on the same revision (R14).
    pub(super) fn claim_again(&mut self, now: Instant) {
        if !self.attempts.is_empty() && self.store_ready(now) {
            self.propose(now, Intent::Claim);
        }
    }

    /// The claim was applied.
    pub(super) fn claimed(&mut self, now: Instant) {
        self.first_epoch = self.rec().epoch;
        self.steal_wait = self.rec().wait
            || self.config.broken.is(Mutation::NoWaitMark)
                && matches!(self.config.mode, OpenMode::Steal { .. } | OpenMode::Replace { .. });
        self.first_promise = self.config.broken.is(Mutation::WaitFromClaim).then_some(now);
        self.phase = Phase::Gathering { since: now };
    }

    /// Starts over: something changed among the members while promises or stamps were gathered.
    pub(super) fn restart_gather(&mut self) {
        if let Phase::Stamping(_) = self.phase {
            self.phase = Phase::Gathering { since: self.next_tick };
        }
    }

    /// Promises of all members, then stamps, then service.
    pub(super) fn gather(&mut self, now: Instant) {
        let epoch = self.rec().epoch;
        let members = self.in_sync();
        for rid in &members {
            self.ask_promise(now, *rid);
        }
        let cached = self.rec().policy.ack == Ack::Cached;
        let obeys = |rid: &Rid| self.peers.get(rid).is_some_and(|p| p.obeys(epoch));
        let lossy = |rid: &Rid| {
            cached
                && !self.config.broken.is(Mutation::TrustLossy)
                && self.peers.get(rid).and_then(|p| p.view.as_ref()).is_some_and(|v| v.lossy)
        };
        let got: Vec<Rid> = members.iter().filter(|r| obeys(r)).copied().collect();
        let mut good: Vec<Rid> = got.iter().filter(|r| !lossy(r)).copied().collect();
        if good.is_empty() && got.len() == members.len() {
            if self.back.is_some() && !self.config.broken.is(Mutation::OutliveCaches) {
                return self.end(EndReason::CachesLost);
            }
            // All of them lost their caches and no session lives: what was not flushed may legally be gone (R8).
            good.clone_from(&got);
        }
        if let Phase::Stamping(stamping) = &self.phase {
            if got.len() == members.len() {
                // One that promised and falls silent before it has told its stamps is asked for its promise again:
                // whoever does not give it is not waited for.
                let asked = stamping.asked;
                let silent = stamping.missing.iter().copied().find(|rid| {
                    let heard = self.peers.get(rid).map_or(asked, |peer| peer.heard.max(asked));
                    now.ms_since(heard) >= self.config.timing.dead_ms
                });
                return match silent {
                    Some(rid) => self.drop_attachment(rid),
                    None => self.stamps_complete(now),
                };
            }
            self.phase = Phase::Gathering { since: now };
            return;
        }
        let Phase::Gathering { since } = self.phase else { return };
        if good.len() == members.len() {
            if self.rescue_ended(now) {
                self.trusted_only = false;
                self.ask_stamps(now, &members);
            }
            return;
        }
        let hopeless = |rid: &Rid| {
            let Some(peer) = self.peers.get(rid) else { return true };
            let gone = matches!(peer.link, Link::Down { refused: true, .. }) || peer.bad.is_some();
            gone || obeys(rid)
        };
        let waited = now.ms_since(since) >= self.config.timing.dead_ms;
        let settled = members.iter().all(hopeless);
        if good.is_empty() || !(waited || settled) {
            if waited {
                self.pause(now, "no in-sync member promises");
            }
            return;
        }
        let missing: Vec<Rid> = members.iter().filter(|r| !good.contains(r)).copied().collect();
        let enough = good.len() >= usize::from(self.rec().policy.min_isr);
        if enough || self.config.broken.is(Mutation::BelowMinIsr) {
            if self.store_ready(now) {
                let base = self.highest_seal(&good);
                let reason = "did not promise when the volume was opened".into();
                self.propose(now, Intent::Demote { rids: missing, base, reason, admit: None });
            }
            return;
        }
        if got.len() == members.len() {
            // All are here, some without their cache, and min_isr forbids to take those out: what they may have
            // lost is above the highest seal, so reconciling from one that kept its cache brings it back (R8).
            if !self.rescue_ended(now) {
                return;
            }
            self.trusted = good.first().copied().filter(|_| !self.config.broken.is(Mutation::LossySource));
            self.trusted_only = self.trusted.is_some();
            return self.ask_stamps(now, &members);
        }
        // Fewer than min_isr: opened paused; may only reconcile, join and swap (R16).
        self.pause(now, "fewer in-sync members than min_isr");
        self.rescue(now, &good, missing);
    }

    /// Every member is here: none has to be replaced. What a rescue's swap would have changed must be known first (R14);
    /// and no join goes on among members that may differ (R5).
    fn rescue_ended(&mut self, now: Instant) -> bool {
        if !self.attempts.is_empty() {
            if self.store_ready(now) {
                self.propose(now, Intent::Settle);
            }
            return false;
        }
        self.abandon_join("every member is back");
        true
    }

    /// The one member that kept its cache, while the others are still being brought what they lost (R8).
    pub(super) fn sole_source(&self) -> Option<Rid> {
        self.trusted.filter(|_| self.trusted_only && !self.dirty.is_empty())
    }

    /// The highest seal of these members, and of this session.
    pub(super) fn highest_seal(&self, members: &[Rid]) -> Generation {
        let seal = |rid: &Rid| self.peers.get(rid).and_then(|p| p.view.as_ref()).map(|v| v.sealed);
        members.iter().filter_map(seal).max().unwrap_or_default().max(self.sealed)
    }

    fn ask_stamps(&mut self, now: Instant, members: &[Rid]) {
        if now < self.copy_hold {
            return;
        }
        let sealed = self.highest_seal(members);
        self.sealed = sealed;
        // What a member told when it was attached is old once the session has served.
        let differs = |rid: &Rid| {
            let view = self.peers.get(rid).and_then(|p| p.view.as_ref());
            self.back.is_some() || view.is_some_and(|v| v.newest > sealed)
        };
        let ask: Vec<Rid> = members.iter().filter(|r| differs(r)).copied().collect();
        let (single, id) = (members.len() == 1, StampsId(self.fresh_id()));
        if single || ask.is_empty() || self.config.broken.is(Mutation::ReadBeforeReconcile) {
            self.phase = Phase::Stamping(Stamping {
                id,
                missing: Vec::new(),
                sealed,
                regions: BTreeMap::new(),
                asked: now,
            });
            return self.stamps_complete(now);
        }
        for rid in &ask {
            self.send(now, *rid, Purpose::OpenStamps(id), Ask::Stamps { above: sealed, from_region: 0 });
        }
        self.phase =
            Phase::Stamping(Stamping { id, missing: ask, sealed, regions: BTreeMap::new(), asked: now });
    }

    pub(super) fn open_stamps(
        &mut self,
        now: Instant,
        id: StampsId,
        rid: Rid,
        stamps: &[(u32, Generation)],
        next: Option<u32>,
    ) {
        let Phase::Stamping(stamping) = &mut self.phase else { return };
        if stamping.id != id {
            return;
        }
        let sealed = stamping.sealed;
        for (region, stamp) in stamps {
            if *stamp > sealed {
                stamping.regions.insert(*region, ());
            }
        }
        match next {
            Some(from_region) => {
                self.send(now, rid, Purpose::OpenStamps(id), Ask::Stamps { above: sealed, from_region });
            }
            None => stamping.missing.retain(|r| *r != rid),
        }
    }

    fn stamps_complete(&mut self, now: Instant) {
        let Phase::Stamping(stamping) = &mut self.phase else { return };
        if !stamping.missing.is_empty() {
            return;
        }
        let regions = self.rec_regions();
        let Phase::Stamping(stamping) = &mut self.phase else { return };
        let found = core::mem::take(&mut stamping.regions);
        self.dirty = found.into_keys().filter(|r| u64::from(*r) < regions).map(|r| (r, None)).collect();
        self.dirty_wanted.clear();
        if !self.dirty.is_empty() && self.trusted.is_none() {
            // Any one of them will do (R5); drawn, so that no order of members hides a fault.
            let members = self.in_sync();
            let draw = self.fresh_random() % members.len() as u128;
            self.trusted = members.get(usize::try_from(draw).expect("below 8")).copied();
        }
        self.rolled = now;
        self.interval = self.interval.max(1);
        let epoch = self.rec().epoch;
        self.phase = self.back.take().unwrap_or_else(|| {
            self.events.push_back(Event::Opened { epoch });
            Phase::Serving
        });
        self.resume();
        for rid in self.in_sync() {
            self.resend_ops(now, rid);
        }
    }

    fn rec_regions(&self) -> u64 {
        self.rec().regions()
    }
}
