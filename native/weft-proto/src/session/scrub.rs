//! Scrub (protocol.md 4.10): what lies on the members' disks is compared while guests go on, and what one of them can't
//! give any more is written there again from another one.
//!
//! ```text
//! scrub: kinds of 64 MiB ──▶ what holds data on some member ───────┐
//! a guest's read or a copy: a member could not give a block ───────┴─▶ looks, one at a time, 256 KiB at most
//!
//! look: Reserved ─▶ Hashing (every in-sync member) ──equal──▶ done
//!       until its     ├─ somebody can't give it, or it differs: again by halves, until it is one block:
//!       range is free └─▶ Reading (who can give it) ──equal──▶ Mending (who can't) ─▶ done
//!                                                   └─different: told, never written
//! ```
//!
//! Must always hold:
//! * a look holds its range from its first question to its last answer, and begins when no write is under way there:
//!   what differs then, differs (D15);
//! * a look changes nothing, so that it may be given up at any time: reads pass it, and a guest's write waits for it no
//!   longer than [`PATIENCE_MS`], twice as long at each further try;
//! * a block is mended by a write like any other, under the look's lock, of what a member gave with a checksum that is
//!   right. Members that gave the same have it already; whoever could not is sent it, and is taken out if it can't take it;
//! * where copies differ and each one's checksum is right nothing is written: which of them is right nobody knows.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::copy::PieceId;
use super::ops::{Lock, Op, OpId, OpKind, Stage as OpStage, verified};
use super::peer::Purpose;
use super::{Event, Phase, Session};
use crate::block_set::BlockSet;
use crate::ids::{Instant, Rid};
use crate::message::{Answer, Ask, Extent, Hole, Refusal};
use crate::mutants::Mutation;
use crate::payload::{BLOCK, Payload, block_crcs};
use crate::replica::KINDS_MAX;

/// The longest range that a look holds, in bytes.
const LOOK: u64 = 256 * 1024;
/// How long a guest's write waits for a look that is tried the first time.
const PATIENCE_MS: u64 = 100;
/// It doubles so often at most: a disk that needs longer is one that hangs.
const PATIENCE_DOUBLES: u32 = 4;
/// What a scrub with a bandwidth cap may catch up on at once, as time.
const BURST_MS: u64 = 100;
/// Places that wait to be looked at because a member could not give them, in pieces of 1 MiB; a scrub finds further ones.
const SUSPECTS_MAX: u64 = 4096;

/// What a session scrubs, and what it looks at besides.
#[derive(Debug, Default)]
pub(super) struct Scrubber {
    /// The scrub that was asked for last.
    scrub: Option<Scrub>,
    /// What a member could not give to a guest or for a copy.
    suspects: BlockSet,
    /// What is to be looked at before anything else, the last one first.
    parts: Vec<Part>,
    look: Option<Look>,
    /// No new look before this.
    hold: Instant,
    /// How often the range of the next look was given up.
    tries: u32,
    /// A look has ended: who waited for its range may begin.
    freed: bool,
    /// When there is something to do although nothing happens.
    wake: Option<Instant>,
}

#[derive(Debug)]
struct Scrub {
    bucket: Bucket,
    began: Instant,
    /// When it ended, and whether because everything was looked at.
    ended: Option<(Instant, bool)>,
    /// Up to here members were asked for what they hold.
    mapped: u64,
    /// What of that is still to be compared.
    todo: BlockSet,
    /// How far it had come when it ended.
    done: u64,
    compared: u64,
    members: BTreeMap<Rid, Found>,
    divergent: u64,
    lost: u64,
}

/// What a scrub found on a member, in blocks.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    rotten: u64,
    repaired: u64,
}

/// A token bucket. Over any time it lets no more through than `rate` bytes a second, what [`BURST_MS`] bring, and one look.
#[derive(Debug)]
struct Bucket {
    /// Bytes a second; none: as fast as it goes.
    rate: Option<u64>,
    /// It is full [`BURST_MS`] after this, and empty before it.
    due: Instant,
}

impl Bucket {
    fn new(now: Instant, rate: Option<u64>) -> Bucket {
        Bucket { rate: rate.map(|rate| rate.max(1)), due: now }
    }

    /// When more may be taken, if not now.
    fn waits(&self, now: Instant) -> Option<Instant> {
        (self.rate.is_some() && now < self.due).then_some(self.due)
    }

    fn take(&mut self, now: Instant, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let from = self.due.0.max(now.0.saturating_sub(BURST_MS * 1_000_000));
        let ns = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate));
        self.due = Instant(from.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX)));
    }
}

/// A range to be looked at; `scrub`: by the scrub, not because a member could not give it.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: u64,
    end: u64,
    scrub: bool,
}

impl Part {
    fn within(self, size: u64) -> Option<Part> {
        (self.start < size).then_some(Part { end: self.end.min(size), ..self })
    }
}

#[derive(Debug)]
struct Look {
    id: PieceId,
    part: Part,
    since: Instant,
    members: Vec<Rid>,
    stage: Stage,
}

/// What members answered: a hash of each block; none if they can't give one of them.
type Hashes = BTreeMap<Rid, Option<Vec<[u8; 16]>>>;

#[derive(Debug)]
enum Stage {
    /// Asks which blocks hold data; holds nothing, since it decides only what is looked at.
    Mapping {
        kinds: BTreeMap<Rid, Option<Vec<(u64, Option<Hole>)>>>,
    },
    /// Writes that begin in its range wait until it has had its turn.
    Reserved,
    Hashing {
        hashes: Hashes,
    },
    /// Asks for the block that `good` can give and `bad` can't: one of them, or where hashes differ each.
    Reading {
        bad: Vec<Rid>,
        good: Vec<Rid>,
        asked: usize,
        given: BTreeMap<Rid, Given>,
    },
    /// The block's write is on its way to `bad`.
    Mending {
        op: OpId,
        bad: Vec<Rid>,
    },
}

/// A block as a member gave it. A hole of either kind reads as zeroes, and is equal to them.
#[derive(Debug)]
struct Given {
    hole: Option<Hole>,
    bytes: Vec<u8>,
}

impl Given {
    fn from<P: Payload>(extents: &[Extent<P>]) -> Option<Given> {
        match extents {
            [Extent::Data { data, .. }] => Some(Given { hole: None, bytes: data.bytes().to_vec() }),
            [Extent::Hole { len, kind }] => {
                Some(Given { hole: Some(*kind), bytes: alloc::vec![0; usize::try_from(*len).ok()?] })
            }
            _ => None,
        }
    }

    fn op<P: Payload>(&self) -> OpKind<P> {
        if let Some(kind) = self.hole {
            return OpKind::Zero { kind, keep_space: false };
        }
        let mut data = P::zeroed(self.bytes.len());
        data.bytes_mut().copy_from_slice(&self.bytes);
        OpKind::Write { data, crcs: block_crcs(&self.bytes), patch: None }
    }
}

impl Stage {
    /// Does it hold its range?
    fn holds(&self) -> bool {
        matches!(self, Stage::Hashing { .. } | Stage::Reading { .. })
    }
}

/// A scrub at one moment. Blocks are counted for each copy, but for `divergent` and `lost`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubView {
    /// When it began, in unix milliseconds.
    pub began_ms: u64,
    /// When it ended, if it did.
    pub ended_ms: Option<u64>,
    /// It ended because everything was looked at.
    pub complete: bool,
    /// Its bandwidth cap, in bytes of the volume a second; each copy reads as many.
    pub rate: Option<u64>,
    /// Bytes of the volume that were looked at.
    pub done: u64,
    /// Bytes of the volume.
    pub total: u64,
    /// Bytes whose copies were compared: those that hold data.
    pub compared: u64,
    /// Blocks that a copy could not give.
    pub rotten: u64,
    /// Those of them that were written again from another copy.
    pub repaired: u64,
    /// Blocks whose copies are all valid, and differ.
    pub divergent: u64,
    /// Blocks that no copy could give.
    pub lost: u64,
    /// What was found on which member: `(replica, rotten, repaired)`, in order, those without findings left out.
    pub members: Vec<(Rid, u64, u64)>,
}

impl<P: Payload> Session<P> {
    /// Compares the copies of the whole volume once, at most `rate` bytes of it a second. One that is under way goes on, at
    /// the new rate. False while the session closes or is over.
    #[must_use]
    pub fn scrub(&mut self, now: Instant, rate: Option<u64>) -> bool {
        let closing = |phase: &Phase| matches!(phase, Phase::Closing(_) | Phase::Ended);
        if closing(&self.phase) || self.back.as_ref().is_some_and(closing) {
            return false;
        }
        match self.scrubber.scrub.as_mut().filter(|scrub| scrub.ended.is_none()) {
            Some(scrub) => scrub.bucket = Bucket::new(now, rate),
            None => {
                self.scrubber.scrub = Some(Scrub {
                    bucket: Bucket::new(now, rate),
                    began: now,
                    ended: None,
                    mapped: 0,
                    todo: BlockSet::default(),
                    done: 0,
                    compared: 0,
                    members: BTreeMap::new(),
                    divergent: 0,
                    lost: 0,
                });
            }
        }
        self.maintain(now);
        true
    }

    /// Ends the scrub that is under way, if one is; what it found stays in the view.
    pub fn stop_scrub(&mut self, now: Instant) {
        self.end_scrub(now, false);
        self.maintain(now);
    }

    /// The session closes: nothing is looked at any more. What is being mended is.
    pub(super) fn scrub_closes(&mut self, now: Instant) {
        self.end_scrub(now, false);
        self.scrubber.parts.clear();
        self.scrubber.suspects = BlockSet::default();
        if self.scrubber.look.as_ref().is_some_and(|look| !matches!(look.stage, Stage::Mending { .. })) {
            self.end_look();
        }
    }

    /// The session is over.
    pub(super) fn scrub_is_over(&mut self) {
        let (at, done) = (self.last_tick, self.scrub_done());
        let scrub = self.scrubber.scrub.take();
        self.scrubber = Scrubber::default();
        self.scrubber.scrub =
            scrub.map(|scrub| Scrub { ended: scrub.ended.or(Some((at, false))), done, ..scrub });
    }

    /// Bytes that the scrub has looked at.
    fn scrub_done(&self) -> u64 {
        let Some(scrub) = &self.scrubber.scrub else { return 0 };
        if scrub.ended.is_some() {
            return scrub.done;
        }
        let look = self.scrubber.look.as_ref().filter(|look| !matches!(look.stage, Stage::Mapping { .. }));
        let begun = self.scrubber.parts.iter().chain(look.map(|look| &look.part));
        let begun: u64 = begun.filter(|part| part.scrub).map(|part| part.end - part.start).sum();
        scrub.mapped.saturating_sub(scrub.todo.bytes() + begun)
    }

    fn end_scrub(&mut self, now: Instant, complete: bool) {
        let done = self.scrub_done();
        let Some(scrub) = self.scrubber.scrub.as_mut().filter(|scrub| scrub.ended.is_none()) else { return };
        (scrub.ended, scrub.done) = (Some((now, complete)), done);
        scrub.todo = BlockSet::default();
        self.scrubber.parts.retain(|part| !part.scrub);
        let ends = |look: &Look| look.part.scrub && !matches!(look.stage, Stage::Mending { .. });
        if self.scrubber.look.as_ref().is_some_and(ends) {
            self.end_look();
        }
        self.events.push_back(Event::ScrubEnded { complete });
    }

    /// A member could not give this range: it is looked at.
    pub(super) fn suspect_rot(&mut self, start: u64, end: u64) {
        if self.scrubber.suspects.pieces() < SUSPECTS_MAX {
            self.scrubber.suspects.insert(start, end - start);
        }
    }

    /// When the scrub goes on by itself.
    pub(super) fn scrub_wakes(&self) -> Option<Instant> {
        self.scrubber.wake
    }

    pub(super) fn scrub_view(&self) -> Option<ScrubView> {
        let scrub = self.scrubber.scrub.as_ref()?;
        let unix_ms = |at: Instant| self.config.unix_ms_at_zero + at.0 / 1_000_000;
        let total = self.record.as_ref().map_or(0, |record| record.size);
        let sum = |of: fn(&Found) -> u64| scrub.members.values().map(of).sum();
        Some(ScrubView {
            began_ms: unix_ms(scrub.began),
            ended_ms: scrub.ended.map(|(at, _)| unix_ms(at)),
            complete: scrub.ended.is_some_and(|(_, complete)| complete),
            rate: scrub.bucket.rate,
            done: self.scrub_done().min(total),
            total,
            compared: scrub.compared,
            rotten: sum(|found| found.rotten),
            repaired: sum(|found| found.repaired),
            divergent: scrub.divergent,
            lost: scrub.lost,
            members: scrub.members.iter().map(|(rid, found)| (*rid, found.rotten, found.repaired)).collect(),
        })
    }

    /// Starts the next look, or carries on the one that is under way.
    pub(super) fn drive_scrub(&mut self, now: Instant) {
        self.scrubber.wake = None;
        if core::mem::take(&mut self.scrubber.freed) {
            self.start_waiting(now);
        }
        if self.scrubber.look.is_some() {
            return self.carry_look(now);
        }
        let scrubs = self.scrubber.scrub.as_ref().is_some_and(|scrub| scrub.ended.is_none());
        if !scrubs && self.scrubber.parts.is_empty() && self.scrubber.suspects.is_empty() {
            return;
        }
        if now < self.scrubber.hold {
            return;
        }
        let Some(members) = self.all_to_look_at() else { return };
        let Some((part, maps)) = self.next_part(now) else { return };
        let Some(part) = part.within(self.rec().size) else {
            // The volume was made smaller meanwhile.
            self.progressed = true;
            return;
        };
        let id = PieceId(self.fresh_id());
        let stage = if maps { Stage::Mapping { kinds: BTreeMap::new() } } else { Stage::Reserved };
        self.scrubber.look = Some(Look { id, part, since: now, members: members.clone(), stage });
        if maps {
            let (offset, len) = (part.start, part.end - part.start);
            for rid in members {
                self.send(now, rid, Purpose::Look(id), Ask::Kinds { offset, len });
            }
        } else {
            self.carry_look(now);
        }
    }

    /// May the volume have become smaller? Then nothing is written that may lie beyond its end.
    fn may_have_shrunk(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.record.size < self.rec().size)
    }

    /// The in-sync members, if each of them can be asked now, and nothing has to be made equal first (R5).
    fn all_to_look_at(&self) -> Option<Vec<Rid>> {
        let epoch = self.rec().epoch;
        let usable = |rid: &Rid| {
            let peer = self.peers.get(rid);
            peer.is_some_and(|p| p.obeys(epoch) && !p.hung && p.bad.is_none()) && !self.removal_pending(*rid)
        };
        let equal = matches!(self.phase, Phase::Serving) && self.dirty.is_empty() && !self.may_have_shrunk();
        Some(self.in_sync()).filter(|members| equal && !self.reverts() && members.iter().all(usable))
    }

    /// The next range; `true`: to be asked for what it holds.
    fn next_part(&mut self, now: Instant) -> Option<(Part, bool)> {
        let size = self.rec().size;
        let s = &mut self.scrubber;
        if let Some((start, len)) = s.suspects.next_run(0, LOOK) {
            s.suspects.remove(start, len);
            return Some((Part { start, end: start + len, scrub: false }, false));
        }
        let waits = s.scrub.as_ref().and_then(|scrub| scrub.bucket.waits(now));
        if let Some(part) = s.parts.pop_if(|part| !part.scrub || waits.is_none()) {
            return Some((part, false));
        }
        let scrub = s.scrub.as_mut().filter(|scrub| scrub.ended.is_none())?;
        if waits.is_some() {
            s.wake = waits;
            return None;
        }
        if let Some((start, len)) = scrub.todo.next_run(0, LOOK) {
            scrub.todo.remove(start, len);
            return Some((Part { start, end: start + len, scrub: true }, false));
        }
        if scrub.mapped < size {
            let (start, end) = (scrub.mapped, (scrub.mapped + KINDS_MAX).min(size));
            return Some((Part { start, end, scrub: true }, true));
        }
        self.end_scrub(now, true);
        None
    }

    /// Begins when the range is free; gives way when a guest has waited long enough.
    fn carry_look(&mut self, now: Instant) {
        let Some(look) = &self.scrubber.look else { return };
        let Part { start, end, scrub } = look.part;
        if let Stage::Mending { op, .. } = look.stage {
            if !self.is_open(op) {
                self.mended(op, &[]);
            }
            return;
        }
        if matches!(look.stage, Stage::Mapping { .. }) {
            return;
        }
        let unlocked = self.config.broken.is(Mutation::ScrubWithoutLock);
        if matches!(look.stage, Stage::Reserved) && (unlocked || self.is_free(start, end)) {
            let id = look.id;
            // Somebody may have come or gone since it began to wait.
            let Some(members) = self.all_to_look_at() else { return self.give_up_look() };
            if !unlocked {
                self.locks.insert(start, (end, Lock::Look(id)));
            }
            let len = end - start;
            if let Some(of) = self.scrubber.scrub.as_mut().filter(|_| scrub) {
                of.bucket.take(now, len);
            }
            let key = self.fresh_random().to_le_bytes();
            if let Some(look) = &mut self.scrubber.look {
                look.members.clone_from(&members);
                look.stage = Stage::Hashing { hashes: BTreeMap::new() };
            }
            for rid in members {
                self.send(now, rid, Purpose::Look(id), Ask::Hash { offset: start, len, key });
            }
        }
        let Some(look) = &self.scrubber.look else { return };
        let until = look.since.after_ms(PATIENCE_MS << self.scrubber.tries.min(PATIENCE_DOUBLES));
        if now < until {
            self.scrubber.wake = Some(until);
        } else if matches!(look.stage, Stage::Reserved) || self.is_wanted(start, end) {
            self.scrubber.tries += 1;
            self.give_up_look();
        }
    }

    /// Does a look wait for this range? Then a write that has not begun waits for the look.
    pub(super) fn is_reserved(&self, start: u64, end: u64) -> bool {
        let reserves = |look: &Look| {
            matches!(look.stage, Stage::Reserved) && look.part.start < end && start < look.part.end
        };
        self.scrubber.look.as_ref().is_some_and(reserves)
    }

    /// Ends the look for now: its range is free again, and looked at later.
    fn give_up_look(&mut self) {
        let Some(look) = &self.scrubber.look else { return };
        if !matches!(look.stage, Stage::Mapping { .. }) {
            self.scrubber.parts.push(look.part);
        }
        self.scrubber.hold = self.next_tick;
        self.end_look();
    }

    /// The look is over, and its range free.
    fn end_look(&mut self) {
        if let Some(look) = self.scrubber.look.take() {
            if look.stage.holds() {
                self.unlock(look.part.start, Lock::Look(look.id));
            }
            self.scrubber.freed = true;
            self.progressed = true;
        }
    }

    /// A member's attachment has ended: what it, or another one, has said of the range may not be so any more.
    pub(super) fn look_lost(&mut self, rid: Rid) {
        let concerned = |look: &Look| {
            look.members.contains(&rid) && !matches!(look.stage, Stage::Mending { .. } | Stage::Reserved)
        };
        if self.scrubber.look.as_ref().is_some_and(concerned) {
            self.give_up_look();
        }
    }

    /// An answer hangs in a disk: nobody waits for it any more.
    pub(super) fn look_hangs(&mut self, id: PieceId) {
        if self.scrubber.look.as_ref().is_some_and(|look| look.id == id) {
            self.give_up_look();
        }
    }

    pub(super) fn look_answered(&mut self, now: Instant, id: PieceId, rid: Rid, answer: Answer<P>) {
        let Some(look) = self.scrubber.look.as_mut().filter(|look| look.id == id) else { return };
        let len = look.part.end - look.part.start;
        match (&mut look.stage, answer) {
            (Stage::Mapping { kinds }, Answer::Kinds(runs)) => {
                kinds.insert(rid, Some(runs));
                self.map_if_complete();
            }
            (Stage::Hashing { hashes }, Answer::Hashes(list)) if list.len() as u64 == len / BLOCK => {
                hashes.insert(rid, Some(list));
                self.compare_if_complete(now);
            }
            (Stage::Reading { given, asked, .. }, Answer::Data(extents)) if verified(&extents, len) => {
                let Some(block) = Given::from(&extents) else { return self.give_up_look() };
                given.insert(rid, block);
                if given.len() == *asked {
                    self.judge_block(now);
                }
            }
            _ => self.give_up_look(),
        }
    }

    pub(super) fn look_refused(&mut self, now: Instant, id: PieceId, rid: Rid, refusal: Refusal) {
        let Some(look) = self.scrubber.look.as_mut().filter(|look| look.id == id) else { return };
        let bad = matches!(refusal, Refusal::BitRot | Refusal::IoError);
        match &mut look.stage {
            Stage::Mapping { kinds } if bad => {
                kinds.insert(rid, None);
                self.map_if_complete();
            }
            Stage::Hashing { hashes } if bad => {
                hashes.insert(rid, None);
                self.compare_if_complete(now);
            }
            _ => self.give_up_look(),
        }
    }

    /// Everybody has told what the range holds: where all say the same hole there is nothing to compare.
    fn map_if_complete(&mut self) {
        let Some(Look { part, members, stage: Stage::Mapping { kinds }, .. }) = &self.scrubber.look else {
            return;
        };
        if kinds.len() < members.len() {
            return;
        }
        let (start, end) = (part.start, part.end);
        let data = holds_data(kinds.values().map(|runs| runs.as_deref().unwrap_or_default()), start, end);
        if let Some(scrub) = &mut self.scrubber.scrub {
            scrub.mapped = end;
            scrub.todo.union(&data);
        }
        self.end_look();
    }

    /// Everybody has answered: equal, different, or not to be had from somebody.
    fn compare_if_complete(&mut self, now: Instant) {
        let Some(Look { part, members, stage: Stage::Hashing { hashes }, .. }) = &mut self.scrubber.look
        else {
            return;
        };
        if hashes.len() < members.len() {
            return;
        }
        let (part, hashes) = (*part, core::mem::take(hashes));
        let (bad, good): (Vec<Rid>, Vec<Rid>) = hashes.keys().partition(|rid| hashes[*rid].is_none());
        let mut given = hashes.values().flatten();
        let first = given.next();
        let equal = given.all(|list| Some(list) == first);
        let len = part.end - part.start;
        self.scrubber.tries = 0;
        if bad.is_empty() && equal {
            self.compared(part);
            return self.end_look();
        }
        if len > BLOCK {
            // Which of its blocks?
            let middle = part.start + len.next_multiple_of(2 * BLOCK) / 2;
            self.scrubber.parts.push(Part { start: middle, ..part });
            self.scrubber.parts.push(Part { end: middle, ..part });
            return self.end_look();
        }
        if good.is_empty() {
            self.compared(part);
            self.found_rot(part, &bad, &[]);
            return self.end_look();
        }
        let mut from = good.clone();
        if equal {
            let elsewhere = |rid: &Rid| self.peers.get(rid).is_none_or(|peer| peer.node != self.config.host);
            from.sort_by_key(elsewhere);
            from.truncate(1);
        }
        let Some(look) = &mut self.scrubber.look else { return };
        let id = look.id;
        look.stage = Stage::Reading { bad, good, asked: from.len(), given: BTreeMap::new() };
        if !from.iter().all(|rid| self.obeys(*rid)) {
            return self.give_up_look();
        }
        for rid in from {
            self.send(now, rid, Purpose::Look(id), Ask::Read { offset: part.start, len: BLOCK });
        }
    }

    /// The block is here, from whoever was asked for it, with checksums that are right, and its range held. Whoever could
    /// not give it is written it, if those who could gave the same.
    fn judge_block(&mut self, now: Instant) {
        if self.may_have_shrunk() || self.barrier_holds() {
            return self.give_up_look();
        }
        let Some(look) = &mut self.scrubber.look else { return };
        let (id, part) = (look.id, look.part);
        let Stage::Reading { bad, good, given, .. } = &mut look.stage else { return };
        let (mut bad, mut good, given) =
            (core::mem::take(bad), core::mem::take(good), core::mem::take(given));
        let Some((source, block)) = given.first_key_value() else { return };
        let equal = given.values().all(|other| other.bytes == block.bytes);
        self.compared(part);
        if !equal && self.config.broken.is(Mutation::RepairFromBad) {
            bad = good.iter().copied().filter(|rid| rid != source).collect();
            good = alloc::vec![*source];
        } else if !equal {
            self.found_different(part, good);
            if !bad.is_empty() {
                // Rotten on one, and the others differ: nobody knows what it was.
                self.found_rot(part, &bad, &[]);
            }
            return self.end_look();
        }
        if bad.is_empty() {
            return self.end_look();
        }
        let (op, kind, generation) = (OpId(self.fresh_id()), block.op(), self.generation());
        let (start, end) = (part.start, part.end);
        if let Some(look) = &mut self.scrubber.look {
            look.stage = Stage::Mending { op, bad };
        }
        self.unlock(start, Lock::Look(id));
        self.locks.insert(start, (end, Lock::Op(op)));
        self.stamped = true;
        self.bitmaps.entry(generation).or_default().insert(start, end - start);
        let (stage, acked, sent) = (OpStage::Sent, good, Vec::new());
        self.ops.insert(op, Op { request: None, start, end, kind, stage, generation, acked, sent });
        self.fan_out(now, op);
    }

    /// A range was looked at.
    fn compared(&mut self, part: Part) {
        if part.scrub {
            self.figures.scrubbed_bytes += part.end - part.start;
            if let Some(scrub) = &mut self.scrubber.scrub {
                scrub.compared += part.end - part.start;
            }
        }
    }

    /// A write is at every recipient, or was forgotten: was it what a look mended with?
    pub(super) fn mended(&mut self, op: OpId, acked: &[Rid]) {
        let ours = |look: &mut Look| matches!(look.stage, Stage::Mending { op: of, .. } if of == op);
        let Some(look) = self.scrubber.look.take_if(ours) else { return };
        if let Stage::Mending { bad, .. } = look.stage {
            let repaired: Vec<Rid> = bad.iter().copied().filter(|rid| acked.contains(rid)).collect();
            self.found_rot(look.part, &bad, &repaired);
        }
        (self.scrubber.freed, self.progressed) = (true, true);
    }

    /// A block that some members could not give, and which of them have it again.
    fn found_rot(&mut self, part: Part, bad: &[Rid], repaired: &[Rid]) {
        let members = self.in_sync();
        let lost = repaired.is_empty() && members.iter().all(|rid| bad.contains(rid));
        let mut known = true;
        for rid in bad {
            let unreadable = self.unreadable.entry(*rid).or_default();
            known &= unreadable.contains(part.start);
            self.figures.rotten_blocks += u64::from(!unreadable.contains(part.start));
            if !repaired.contains(rid) {
                unreadable.insert(part.start, BLOCK);
            }
        }
        self.figures.repaired_blocks += repaired.len() as u64;
        self.figures.lost_blocks += u64::from(lost && !known);
        if let Some(scrub) = self.scrubber.scrub.as_mut().filter(|_| part.scrub) {
            for rid in bad {
                let found = scrub.members.entry(*rid).or_default();
                found.rotten += 1;
                found.repaired += u64::from(repaired.contains(rid));
            }
            scrub.lost += u64::from(lost);
        }
        let (rids, mended) = (bad.to_vec(), repaired.len() == bad.len());
        self.events.push_back(Event::Rotten { offset: part.start, rids, mended });
    }

    /// A block that members give with checksums that are right, and not the same.
    fn found_different(&mut self, part: Part, rids: Vec<Rid>) {
        self.figures.divergent_blocks += 1;
        if let Some(scrub) = self.scrubber.scrub.as_mut().filter(|_| part.scrub) {
            scrub.divergent += 1;
        }
        self.events.push_back(Event::Divergent { offset: part.start, rids });
    }
}

/// Where somebody has data, or not all have the same hole. Whoever does not tell of the whole range may have data anywhere.
fn holds_data<'a>(told: impl Iterator<Item = &'a [(u64, Option<Hole>)]>, start: u64, end: u64) -> BlockSet {
    let whole = |runs: &&[(u64, Option<Hole>)]| {
        let mut sum = 0u64;
        let sound = runs.iter().all(|(len, _)| {
            sum = sum.saturating_add(*len);
            *len > 0 && len.is_multiple_of(BLOCK)
        });
        sound && sum == end - start
    };
    let mut data = BlockSet::default();
    let mut members: Vec<_> = Vec::new();
    for runs in told {
        if !whole(&runs) {
            data.insert(start, end - start);
            return data;
        }
        members.push((runs.iter(), 0u64, None));
    }
    let mut at = start;
    while at < end {
        let mut step = end - at;
        for (runs, left, kind) in &mut members {
            if *left == 0
                && let Some((len, of)) = runs.next()
            {
                (*left, *kind) = (*len, *of);
            }
            step = step.min(*left);
        }
        let first = members.first().and_then(|(_, _, kind)| *kind);
        if first.is_none() || members.iter().any(|(_, _, kind)| *kind != first) {
            data.insert(at, step);
        }
        members.iter_mut().for_each(|(_, left, _)| *left -= step);
        at += step;
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Over any time no more than the rate brings, the burst, and one look; and no less while there is work.
        #[test]
        fn a_bucket_lets_through_what_its_rate_brings(
            rate in 1u64..1 << 34,
            steps in proptest::collection::vec((0u64..300_000_000, 1u64..64), 1..200),
        ) {
            let mut bucket = Bucket::new(Instant(1_000_000_000), Some(rate));
            let (mut now, mut taken) = (Instant(1_000_000_000), Vec::new());
            for (wait, blocks) in steps {
                now = Instant(now.0 + wait);
                if let Some(until) = bucket.waits(now) {
                    prop_assert!(until > now, "a wait that is over would be waited for again and again");
                    now = if wait % 2 == 0 { until } else { now };
                }
                if bucket.waits(now).is_none() {
                    bucket.take(now, blocks * BLOCK);
                    taken.push((now, blocks * BLOCK));
                }
            }
            for (i, (from, _)) in taken.iter().enumerate() {
                let mut sum = 0u128;
                for (to, bytes) in &taken[i..] {
                    sum += u128::from(*bytes);
                    let ns = u128::from(to.0 - from.0 + BURST_MS * 1_000_000);
                    prop_assert!(sum <= ns * u128::from(rate) / 1_000_000_000 + u128::from(LOOK));
                }
            }
        }

        /// A range is left out exactly where all members say the same hole.
        #[test]
        fn only_what_is_the_same_hole_everywhere_is_not_looked_at(
            kinds in proptest::collection::vec([0u8..3, 0u8..3, 0u8..3], 1..80),
            split in any::<u64>(),
        ) {
            let of = |kind: u8| [None, Some(Hole::Zero), Some(Hole::Absent)][usize::from(kind)];
            let told: Vec<Vec<(u64, Option<Hole>)>> = (0..3)
                .map(|m| {
                    let mut runs: Vec<(u64, Option<Hole>)> = Vec::new();
                    for (i, block) in kinds.iter().enumerate() {
                        match runs.last_mut() {
                            Some((len, kind)) if *kind == of(block[m]) && split >> (i % 64) & 1 == 0 => *len += BLOCK,
                            _ => runs.push((BLOCK, of(block[m]))),
                        }
                    }
                    runs
                })
                .collect();
            let (start, end) = (8 * BLOCK, (8 + kinds.len() as u64) * BLOCK);
            let data = holds_data(told.iter().map(Vec::as_slice), start, end);
            for (i, [a, b, c]) in kinds.iter().enumerate() {
                let skipped = *a > 0 && a == b && b == c;
                prop_assert_eq!(data.contains(start + i as u64 * BLOCK), !skipped);
            }
            prop_assert!(!data.contains(start - BLOCK) && !data.contains(end));
        }
    }

    #[test]
    fn whoever_tells_of_another_range_is_looked_at_as_a_whole() {
        let (hole, end) = (Some(Hole::Zero), 4 * BLOCK);
        let wrong: [&[(u64, Option<Hole>)]; 4] =
            [&[], &[(BLOCK, hole)], &[(u64::MAX, hole), (end + 1, hole)], &[(end - 1, hole), (1, hole)]];
        for runs in wrong {
            let data = holds_data([&[(end, hole)][..], runs].into_iter(), 0, end);
            assert_eq!(data.bytes(), end, "{runs:?}");
        }
    }
}
