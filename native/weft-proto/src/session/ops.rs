//! Guest requests and the operations that carry them out: split, locked, fanned out, completed.
//!
//! ```text
//! guest request ─split (≤128 KiB, edges of partial blocks)─▶ operations
//! operation: Waiting ──lock free, region equal──▶ Edges (partial blocks are read) ──▶ Sent ──▶ complete ──▶ gone
//!                                                                                      │        │
//!                                                               all required acked ────┘        └ all recipients answered
//! ```
//!
//! Must always hold:
//! * overlapping writes are carried out in the order of their locks, on all members (D2);
//! * an operation that a guest was answered for stays locked until every recipient answered or was dropped;
//! * a read never returns what an unfinished write brought: it waits for one that came before it, and is asked
//!   again when one began meanwhile; so two reads can't go backwards, not even across a change of owner.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::copy::{Piece, PieceId};
use super::peer::Purpose;
use super::{Phase, Session};
use crate::guest::{GuestError, GuestOp, GuestReply, RequestId};
use crate::ids::{Epoch, Generation, Instant, LayerMark, Rid};
use crate::layer::{hide_all, is_whole_sectors, unwritten_block};
use crate::message::{Answer, Ask, Extent, Hole, MAX_DATA, Refusal};
use crate::mutants::Mutation;
use crate::payload::{BLOCK, Payload, block_crcs};
use crate::record::{Ack, SIZE_MAX};

/// An operation within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// Who holds a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    Op(OpId),
    Piece(PieceId),
    /// Only compared: reads pass.
    Look(PieceId),
}

/// A zero or discard is carried out in pieces of this size, so that it locks no more than that at a time (R19).
const ZERO_PIECE: u64 = 64 << 20;
/// Members tried before a read is given up as unreadable.
const READ_TRIES: u8 = 6;

#[derive(Debug)]
pub(super) struct GuestRequest<P> {
    arrived: Instant,
    kind: GuestKind,
    remaining: usize,
    parts: Vec<(u64, Vec<Extent<P>>)>,
    kinds: Vec<(u64, Vec<(u64, Option<Hole>)>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GuestKind {
    Read {
        offset: u64,
        len: u64,
    },
    /// As it lies on the copies.
    Raw {
        offset: u64,
        len: u64,
    },
    Kinds {
        offset: u64,
        len: u64,
    },
    Write,
    Flush,
}

impl<P> GuestRequest<P> {
    pub(super) fn is_write(&self) -> bool {
        self.kind == GuestKind::Write
    }
}

/// One operation.
#[derive(Debug)]
pub(super) struct Op<P> {
    /// Whose, until it is answered.
    pub(super) request: Option<RequestId>,
    /// Whole blocks.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) kind: OpKind<P>,
    pub(super) stage: Stage,
    /// Of the interval in which it was first sent; resends keep it.
    pub(super) generation: Generation,
    pub(super) acked: Vec<Rid>,
    /// Sent on the newest attachment of these, not answered.
    pub(super) sent: Vec<Rid>,
}

#[derive(Debug)]
pub(super) enum OpKind<P> {
    /// `skip` and `used`: which bytes of the first and last block are the guest's, until the edges are read.
    Write {
        data: P,
        crcs: Vec<u32>,
        patch: Option<Patch>,
    },
    Zero {
        kind: Hole,
        keep_space: bool,
    },
    Read {
        bad: Bad,
    },
    Kinds {
        bad: Bad,
    },
    Flush,
}

/// A write that covers its first or last block only in part.
#[derive(Debug)]
pub(super) struct Patch {
    /// The guest's bytes lie at this offset of the buffer …
    from: usize,
    /// … and end here.
    to: usize,
    /// Blocks (byte offsets in the volume) whose other bytes are still to be read.
    edges: VecDeque<u64>,
    bad: Bad,
}

/// Which members could not give what is read: true of their content, their attachment and the in-sync set of then.
#[derive(Clone, Debug, Default)]
pub(super) struct Bad {
    tries: u8,
    members: Vec<Rid>,
    /// The record's, whose in-sync members were asked.
    epoch: Epoch,
}

impl Bad {
    /// One more could not give it: is that each of those that are in sync, and were they asked often enough?
    fn add(&mut self, rid: Rid, epoch: Epoch, in_sync: &[Rid]) -> bool {
        if self.epoch != epoch {
            *self = Bad { epoch, ..Bad::default() };
        }
        self.tries += 1;
        if !self.members.contains(&rid) {
            self.members.push(rid);
        }
        self.tries >= READ_TRIES && in_sync.iter().all(|member| self.members.contains(member))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting,
    Edges,
    Sent,
    /// Answered to the guest (or it never had one), not yet by every recipient.
    Complete,
}

impl<P: Payload> Op<P> {
    fn is_read(&self) -> bool {
        matches!(self.kind, OpKind::Read { .. } | OpKind::Kinds { .. })
    }

    pub(super) fn is_write(&self) -> bool {
        matches!(self.kind, OpKind::Write { .. } | OpKind::Zero { .. })
    }

    /// Who could not give what it reads.
    fn bad(&self) -> Option<&Bad> {
        match &self.kind {
            OpKind::Read { bad } | OpKind::Kinds { bad } => Some(bad),
            OpKind::Write { patch, .. } => patch.as_ref().map(|patch| &patch.bad),
            OpKind::Zero { .. } | OpKind::Flush => None,
        }
    }

    fn bad_mut(&mut self) -> Option<&mut Bad> {
        match &mut self.kind {
            OpKind::Read { bad } | OpKind::Kinds { bad } => Some(bad),
            OpKind::Write { patch, .. } => patch.as_mut().map(|patch| &mut patch.bad),
            OpKind::Zero { .. } | OpKind::Flush => None,
        }
    }

    pub(super) fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start < end && start < self.end
    }
}

impl<P: Payload> Session<P> {
    /// Takes a guest's request in: checks it, splits it, queues its operations.
    pub(super) fn accept(&mut self, now: Instant, id: RequestId, op: GuestOp<P>) {
        let (kind, offset, len) = match &op {
            GuestOp::Read { offset, len } => (GuestKind::Read { offset: *offset, len: *len }, *offset, *len),
            GuestOp::Kinds { offset, len } => {
                (GuestKind::Kinds { offset: *offset, len: *len }, *offset, *len)
            }
            GuestOp::Write { offset, data, .. } => (GuestKind::Write, *offset, data.len() as u64),
            GuestOp::Zero { offset, len, .. } => (GuestKind::Write, *offset, *len),
            GuestOp::Flush => (GuestKind::Flush, 0, 0),
            // A volume is no snapshot.
            GuestOp::Changed { .. } => {
                return self.replies.push_back((id, GuestReply::Failed(GuestError::OutOfRange)));
            }
        };
        if kind == GuestKind::Write && self.layer_mark().is_some() && !is_whole_sectors(offset, len) {
            return self.replies.push_back((id, GuestReply::Failed(GuestError::OutOfRange)));
        }
        if !self.admit(now, id, kind, offset, len) {
            return;
        }
        match op {
            GuestOp::Read { offset, len } => {
                let (start, end) = (offset / BLOCK * BLOCK, (offset + len).next_multiple_of(BLOCK));
                self.split(now, id, start, end, MAX_DATA, |_, _| OpKind::Read { bad: Bad::default() });
            }
            GuestOp::Kinds { offset, len } => {
                let (start, end) = (offset / BLOCK * BLOCK, (offset + len).next_multiple_of(BLOCK));
                self.split(now, id, start, end, ZERO_PIECE, |_, _| OpKind::Kinds { bad: Bad::default() });
            }
            GuestOp::Changed { .. } => {}
            GuestOp::Write { offset, data, .. } => self.accept_write(now, id, offset, &data),
            GuestOp::Zero { offset, len, keep_space, .. } => {
                // Partial blocks at the ends are written as zeroes; whole ones become holes (4.8).
                let (inner, inner_end) = (offset.next_multiple_of(BLOCK), (offset + len) / BLOCK * BLOCK);
                if inner >= inner_end {
                    let zeroes = P::zeroed(usize::try_from(len).expect("below two blocks"));
                    self.accept_write(now, id, offset, &zeroes);
                } else {
                    let edge =
                        |from: u64, to: u64| P::zeroed(usize::try_from(to - from).expect("below a block"));
                    if offset < inner {
                        self.accept_write(now, id, offset, &edge(offset, inner));
                    }
                    let kind = Hole::Zero;
                    self.split(now, id, inner, inner_end, ZERO_PIECE, |_, _| OpKind::Zero {
                        kind,
                        keep_space,
                    });
                    if inner_end < offset + len {
                        self.accept_write(now, id, inner_end, &edge(inner_end, offset + len));
                    }
                }
            }
            GuestOp::Flush => {
                // In durable mode everything that was answered is on stable media already (4.7).
                if self.record.as_ref().is_some_and(|r| r.policy.ack == Ack::Cached) {
                    self.queue_op(now, Some(id), 0, 0, OpKind::Flush);
                }
            }
        }
        self.finish_guest(now, id);
    }

    /// A read of whole blocks that nothing is hidden from.
    pub(super) fn accept_read(&mut self, now: Instant, id: RequestId, offset: u64, len: u64) {
        assert!((offset | len).is_multiple_of(BLOCK), "{offset} and {len} are not whole blocks");
        if self.admit(now, id, GuestKind::Raw { offset, len }, offset, len) {
            let end = offset + len;
            self.split(now, id, offset, end, MAX_DATA, |_, _| OpKind::Read { bad: Bad::default() });
            self.finish_guest(now, id);
        }
    }

    /// Notes a request, unless nothing is done any more, or not there; then it is answered.
    fn admit(&mut self, now: Instant, id: RequestId, kind: GuestKind, offset: u64, len: u64) -> bool {
        assert!(!self.guests.contains_key(&id), "request {id:?} is used twice");
        let closing = |phase: &Phase| matches!(phase, Phase::Closing(_));
        let none = self.is_ended() || self.is_headless();
        if none || closing(&self.phase) || self.back.as_ref().is_some_and(closing) {
            self.figures.fenced += 1;
            self.replies.push_back((id, GuestReply::Failed(GuestError::Fenced)));
            return false;
        }
        // Before the record is known, no volume is larger than this.
        let size = self.record.as_ref().map_or(SIZE_MAX, |record| record.size);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            self.replies.push_back((id, GuestReply::Failed(GuestError::OutOfRange)));
            return false;
        }
        let request = GuestRequest { arrived: now, kind, remaining: 0, parts: Vec::new(), kinds: Vec::new() };
        self.guests.insert(id, request);
        true
    }

    fn accept_write(&mut self, now: Instant, id: RequestId, offset: u64, data: &P) {
        let (mut at, end) = (offset, offset + data.len() as u64);
        while at < end {
            let start = at / BLOCK * BLOCK;
            let stop = end.min(start + MAX_DATA);
            let part = data.slice(to_usize(at - offset), to_usize(stop - at));
            let aligned_end = stop.next_multiple_of(BLOCK);
            let kind = if at == start && stop == aligned_end {
                let crcs = block_crcs(part.bytes());
                OpKind::Write { data: part, crcs, patch: None }
            } else {
                let mut buffer = P::zeroed(to_usize(aligned_end - start));
                let (from, to) = (to_usize(at - start), to_usize(stop - start));
                buffer.bytes_mut()[from..to].copy_from_slice(part.bytes());
                let mut edges = VecDeque::new();
                if at != start {
                    edges.push_back(start);
                }
                if stop != aligned_end && edges.front() != Some(&(aligned_end - BLOCK)) {
                    edges.push_back(aligned_end - BLOCK);
                }
                OpKind::Write {
                    data: buffer,
                    crcs: Vec::new(),
                    patch: Some(Patch { from, to, edges, bad: Bad::default() }),
                }
            };
            self.queue_op(now, Some(id), start, aligned_end, kind);
            at = stop;
        }
    }

    fn split(
        &mut self,
        now: Instant,
        id: RequestId,
        start: u64,
        end: u64,
        max: u64,
        kind: impl Fn(u64, u64) -> OpKind<P>,
    ) {
        let mut at = start;
        while at < end {
            let stop = end.min(at + max);
            self.queue_op(now, Some(id), at, stop, kind(at, stop));
            at = stop;
        }
    }

    /// `request`: whose it is; none: the session's own.
    pub(super) fn queue_op(
        &mut self,
        now: Instant,
        request: Option<RequestId>,
        start: u64,
        end: u64,
        kind: OpKind<P>,
    ) -> OpId {
        let id = OpId(self.fresh_id());
        let op = Op {
            request,
            start,
            end,
            kind,
            stage: Stage::Waiting,
            generation: Generation::NEVER,
            acked: Vec::new(),
            sent: Vec::new(),
        };
        self.ops.insert(id, op);
        self.waiting.push_back(id);
        if let Some(guest) = request.and_then(|request| self.guests.get_mut(&request)) {
            guest.remaining += 1;
        }
        if matches!(self.phase, Phase::Serving) {
            self.start_op(now, id);
        }
        id
    }

    // ---- starting

    /// Starts what waits, in order; called whenever a lock or a region became free.
    pub(super) fn start_waiting(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Serving | Phase::Closing(_)) {
            return;
        }
        let waiting: Vec<OpId> = self.waiting.iter().copied().collect();
        for id in waiting {
            self.start_op(now, id);
        }
    }

    fn start_op(&mut self, now: Instant, id: OpId) {
        if self.revert_holds() {
            return;
        }
        let Some(op) = self.ops.get(&id) else {
            self.waiting.retain(|w| *w != id);
            return;
        };
        let (start, end, read) = (op.start, op.end, op.is_read());
        let passes = |lock: &Lock| match lock {
            Lock::Op(_) => self.config.broken.is(Mutation::NoRangeLock),
            Lock::Piece(_) => false,
            Lock::Look(_) => read,
        };
        let held = self.overlapping(start, end).find(|lock| !passes(lock));
        if let Some(lock) = held {
            if let (Lock::Op(_), Some(bad)) = (lock, self.ops.get_mut(&id).and_then(Op::bad_mut)) {
                // It is being written: who could not give it before can give this.
                *bad = Bad::default();
            }
            return;
        }
        // Fair: what came earlier and overlaps goes first (reads pass reads).
        let earlier = self
            .waiting
            .iter()
            .take_while(|w| **w != id)
            .any(|w| self.ops.get(w).is_some_and(|o| o.overlaps(start, end) && !(read && o.is_read())));
        if earlier || self.dirty_blocks(start, end) || !read && self.is_reserved(start, end) {
            return;
        }
        if read {
            self.start_read(now, id);
            return;
        }
        if self.barrier_holds() && self.ops.get(&id).is_some_and(Op::is_write) {
            return;
        }
        self.waiting.retain(|w| *w != id);
        let generation = self.generation();
        let Some(op) = self.ops.get_mut(&id) else { return };
        op.generation = generation;
        if op.is_write() {
            self.locks.insert(start, (end, Lock::Op(id)));
            self.last_write = now;
            self.interval_writes += 1;
            self.stamped = true;
            self.bitmaps.entry(generation).or_default().insert(start, end - start);
        }
        let Some(op) = self.ops.get_mut(&id) else { return };
        if let OpKind::Write { patch: Some(_), .. } = op.kind {
            op.stage = Stage::Edges;
            self.read_edge(now, id);
        } else {
            self.fan_out(now, id);
        }
    }

    /// Who holds something of this range, the last one first.
    fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = Lock> + '_ {
        let held = self.locks.range(..end).rev().take_while(move |(_, (stop, _))| *stop > start);
        held.map(|(_, (_, lock))| *lock)
    }

    /// Does nobody hold anything of this range?
    pub(super) fn is_free(&self, start: u64, end: u64) -> bool {
        self.overlapping(start, end).next().is_none()
    }

    /// Does a write wait that concerns this range?
    pub(super) fn is_wanted(&self, start: u64, end: u64) -> bool {
        let wants = |id: &OpId| self.ops.get(id).is_some_and(|o| o.is_write() && o.overlaps(start, end));
        self.waiting.iter().any(wants)
    }

    /// Is a block of the range in a region that may differ between members? Then it is wanted first.
    fn dirty_blocks(&mut self, start: u64, end: u64) -> bool {
        if self.dirty.is_empty() || start == end {
            return false;
        }
        let shift = self.rec().region_shift;
        let region = |at: u64| u32::try_from(at >> shift).expect("inside the volume");
        let hit: Vec<u32> = self.dirty.range(region(start)..=region(end - 1)).map(|(r, _)| *r).collect();
        for region in &hit {
            if !self.dirty_wanted.contains(region) {
                self.dirty_wanted.push_back(*region);
            }
        }
        !hit.is_empty()
    }

    // ---- writing

    /// Who gets a write: every in-sync member, and the joiner once double writing has begun.
    pub(super) fn recipients(&self) -> Vec<Rid> {
        let mut all = self.in_sync();
        all.extend(self.join_writes_to());
        all
    }

    pub(super) fn fan_out(&mut self, now: Instant, id: OpId) {
        if let Some(op) = self.ops.get_mut(&id) {
            op.stage = Stage::Sent;
        }
        for rid in self.recipients() {
            self.send_op(now, id, rid);
        }
        self.check_op(now, id);
    }

    /// Sends an operation to one recipient, unless it has it, it is on its way, or it must promise first.
    pub(super) fn send_op(&mut self, now: Instant, id: OpId, rid: Rid) {
        let (epoch, sole_source) = (self.rec().epoch, self.sole_source());
        if !self.peers.get(&rid).is_some_and(|p| p.obeys(epoch) && p.bad.is_none()) {
            return;
        }
        let Some(op) = self.ops.get_mut(&id) else { return };
        if !matches!(op.stage, Stage::Sent | Stage::Complete)
            || op.is_read()
            || op.acked.contains(&rid)
            || op.sent.contains(&rid)
        {
            return;
        }
        if matches!(op.kind, OpKind::Flush) && sole_source.is_some() {
            // A member that lost its cache lacks what the guest had before: its flush would cover nothing of that (R8).
            return;
        }
        op.sent.push(rid);
        let ask = match &op.kind {
            OpKind::Write { data, crcs, .. } => Ask::Write {
                generation: op.generation,
                offset: op.start,
                crcs: crcs.clone(),
                data: data.clone(),
                copy: false,
            },
            OpKind::Zero { kind, keep_space } => Ask::Zero {
                generation: op.generation,
                offset: op.start,
                len: op.end - op.start,
                kind: *kind,
                keep_space: *keep_space,
                copy: false,
            },
            OpKind::Flush => Ask::Flush,
            OpKind::Read { .. } | OpKind::Kinds { .. } => return,
        };
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.sent += 1;
        }
        self.send(now, rid, Purpose::Op(id), ask);
    }

    /// Sends a recipient everything that it lacks.
    pub(super) fn resend_ops(&mut self, now: Instant, rid: Rid) {
        if !self.recipients().contains(&rid) {
            return;
        }
        let open: Vec<OpId> = self.ops.keys().copied().collect();
        for id in open {
            self.send_op(now, id, rid);
        }
    }

    pub(super) fn op_acked(&mut self, now: Instant, id: OpId, rid: Rid) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        op.sent.retain(|r| *r != rid);
        if !op.acked.contains(&rid) {
            op.acked.push(rid);
        }
        let (start, end, is_write) = (op.start, op.end, op.is_write());
        if is_write {
            self.readable_again(rid, start, end);
        }
        if is_write && self.join_writes_to() == Some(rid) {
            // Overwritten as a whole on the joiner: nothing to copy there.
            self.join_covered(start, end);
        }
        self.check_op(now, id);
    }

    /// The recipient does not have it, and it is not on its way.
    pub(super) fn op_unsent(&mut self, id: OpId, rid: Rid) {
        if let Some(op) = self.ops.get_mut(&id) {
            op.sent.retain(|r| *r != rid);
        }
    }

    /// Whose acknowledgement a write needs before it is complete (R2, R3, R14).
    pub(super) fn required(&self) -> Vec<Rid> {
        let mut all = self.in_sync();
        if let Some(rid) = self.join_rid()
            && (self.join_is_required(rid) || self.admission_pending(rid))
            && !self.config.broken.is(Mutation::AdmitEarly)
            && !all.contains(&rid)
        {
            all.push(rid);
        }
        if self.config.broken.is(Mutation::UnknownRemovalCounts) {
            all.retain(|rid| !self.removal_unknown(*rid));
        }
        all
    }

    /// May anything complete at all?
    fn completes(&self, now: Instant) -> bool {
        let serving = matches!(self.phase, Phase::Serving | Phase::Closing(_));
        let held = self.config.broken.is(Mutation::CompleteBeforeRepromise);
        serving && self.steal_wait_over(now) && (held || self.everyone_obeys())
    }

    /// After a reconfiguration nothing completes before every remaining member durably holds the record under
    /// which it completes (4.15). A member that is merely out of reach holds it since it promised.
    pub(super) fn everyone_obeys(&self) -> bool {
        let epoch = self.rec().epoch;
        self.in_sync().iter().all(|rid| {
            self.peers.get(rid).is_some_and(|p| {
                p.promised == Some(epoch)
                    || p.view
                        .as_ref()
                        .is_some_and(|v| v.promised == epoch && v.session == self.config.session)
            })
        })
    }

    /// R9: a thief completes no write before the old owner's read lease has surely ended.
    pub(super) fn steal_wait_over(&self, now: Instant) -> bool {
        let broken = self.config.broken;
        let timing = &self.config.timing;
        let ms = if broken.is(Mutation::NoMargin) { timing.lease_ms } else { timing.lease_wait_ms };
        !self.steal_wait
            || broken.is(Mutation::NoWait)
            || broken.is(Mutation::WaitOnlyIfMissing) && self.rec().epoch == self.first_epoch
            || self.first_promise.is_some_and(|at| now >= at.after_ms(ms))
    }

    pub(super) fn check_all_ops(&mut self, now: Instant) {
        let open: Vec<OpId> = self.ops.iter().filter(|(_, o)| !o.is_read()).map(|(id, _)| *id).collect();
        for id in open {
            self.check_op(now, id);
        }
    }

    /// Completes an operation that has what it needs, and forgets one that every recipient has answered.
    fn check_op(&mut self, now: Instant, id: OpId) {
        let required = self.required();
        let completes = self.completes(now);
        let broken = self.config.broken;
        let epoch = self.record.as_ref().map_or(Epoch(0), |r| r.epoch);
        let Some(op) = self.ops.get_mut(&id) else { return };
        let has_all = required.iter().all(|rid| op.acked.contains(rid));
        let removed_since = op.generation.epoch() < epoch;
        let early = !op.acked.is_empty()
            && (broken.is(Mutation::CompleteBeforeSwap)
                || broken.is(Mutation::CompleteWithoutRemaining) && removed_since);
        if op.stage == Stage::Sent && completes && (has_all || early) {
            op.stage = Stage::Complete;
            self.progressed = true;
            if let Some(request) = op.request.take() {
                self.part_done(now, request);
            }
        }
        let recipients = self.recipients();
        let Some(op) = self.ops.get(&id) else { return };
        let everyone = recipients.iter().all(|rid| op.acked.contains(rid)) && op.sent.is_empty();
        let unlock = everyone || broken.is(Mutation::EarlyUnlock);
        if op.stage == Stage::Complete && unlock {
            let op = self.ops.remove(&id).expect("looked at a moment ago");
            if op.is_write() {
                self.unlock(op.start, Lock::Op(id));
            }
            self.mended(id, &op.acked);
            self.start_waiting(now);
        }
    }

    pub(super) fn unlock(&mut self, start: u64, lock: Lock) {
        if self.locks.get(&start).is_some_and(|(_, l)| *l == lock) {
            self.locks.remove(&start);
        }
    }

    // ---- answering guests

    fn part_done(&mut self, now: Instant, id: RequestId) {
        if let Some(guest) = self.guests.get_mut(&id) {
            guest.remaining -= 1;
        }
        self.finish_guest(now, id);
    }

    fn finish_guest(&mut self, now: Instant, id: RequestId) {
        if self.guests.get(&id).is_none_or(|g| g.remaining > 0) {
            return;
        }
        let Some(guest) = self.guests.remove(&id) else { return };
        self.count_answer(now, &guest);
        let reply = match guest.kind {
            GuestKind::Write | GuestKind::Flush => GuestReply::Done,
            GuestKind::Read { offset, len } => {
                let mut parts = guest.parts;
                if let Some(mark) = self.layer_mark() {
                    hide_all(mark, &mut parts);
                }
                GuestReply::Data(clip_data(parts, offset, len))
            }
            GuestKind::Raw { offset, len } => GuestReply::Data(clip_data(guest.parts, offset, len)),
            GuestKind::Kinds { offset, len } => GuestReply::Kinds(clip_kinds(guest.kinds, offset, len)),
        };
        self.replies.push_back((id, reply));
    }

    fn layer_mark(&self) -> Option<LayerMark> {
        self.record.as_ref()?.layer.as_ref().map(|layer| layer.mark)
    }

    fn count_answer(&mut self, now: Instant, guest: &GuestRequest<P>) {
        match guest.kind {
            GuestKind::Write | GuestKind::Flush => {
                self.figures.writes += 1;
                self.figures.stall_ms_max = self.figures.stall_ms_max.max(now.ms_since(guest.arrived));
            }
            GuestKind::Read { .. } | GuestKind::Raw { .. } | GuestKind::Kinds { .. } => {
                self.figures.reads += 1;
            }
        }
    }

    /// `on_loss = error`: every waiting guest is told; the operations stay until every member has them (R2).
    pub(super) fn fail_waiting_guests(&mut self) {
        while let Some((id, _)) = self.guests.pop_first() {
            for op in self.ops.values_mut() {
                if op.request == Some(id) {
                    op.request = None;
                }
            }
            self.replies.push_back((id, GuestReply::Failed(GuestError::Waiting)));
        }
        if self.config.broken.is(Mutation::ForgetFailedWrite) {
            let failed = |o: &Op<P>| o.is_write() && o.request.is_none() && o.stage == Stage::Sent;
            let forgotten: Vec<OpId> =
                self.ops.iter().filter(|(_, o)| failed(o)).map(|(id, _)| *id).collect();
            for id in forgotten {
                let op = self.ops.remove(&id).expect("listed a moment ago");
                self.unlock(op.start, Lock::Op(id));
            }
        }
        let reads: Vec<OpId> = self.ops.iter().filter(|(_, o)| o.is_read()).map(|(id, _)| *id).collect();
        for id in reads {
            self.ops.remove(&id);
            self.waiting.retain(|w| *w != id);
        }
    }

    /// Since when a member has had a write that another one acknowledged (M23), if it has.
    pub(super) fn oldest_unacked(&self, rid: Rid) -> Option<Instant> {
        let peer = self.peers.get(&rid)?;
        let overtaken = |id: &OpId| self.ops.get(id).is_some_and(|o| o.acked.iter().any(|a| *a != rid));
        peer.outstanding
            .values()
            .filter(|sent| matches!(&sent.purpose, Purpose::Op(id) if overtaken(id)))
            .map(|sent| sent.at)
            .min()
    }

    /// Writes of generations up to this one that some recipient has not answered.
    pub(super) fn in_flight_up_to(&self, generation: Generation) -> bool {
        let ops = self.ops.values().any(|o| {
            o.is_write()
                && matches!(o.stage, Stage::Edges | Stage::Sent | Stage::Complete)
                && o.generation <= generation
        });
        let counts = |p: &Piece| !p.equalises() || !self.config.broken.is(Mutation::SealWhileDirty);
        ops || self.grows_up_to(generation)
            || self.pieces.values().any(|p| p.generation <= generation && counts(p))
    }

    /// Has this member acknowledged every write with an id up to `last` that is on its way? (R23)
    pub(super) fn acked_up_to(&self, rid: Rid, last: u64) -> bool {
        self.ops
            .range(..=OpId(last))
            .filter(|(_, o)| o.is_write() && matches!(o.stage, Stage::Edges | Stage::Sent | Stage::Complete))
            .filter(|(_, o)| {
                !(o.stage == Stage::Complete && self.config.broken.is(Mutation::AdmitBeforeBestEffort))
            })
            .all(|(_, o)| o.acked.contains(&rid))
    }

    /// A flush of the session's own, before a seal in cached mode (R7).
    pub(super) fn own_flush(&mut self, now: Instant) -> OpId {
        let id = OpId(self.fresh_id());
        let generation = self.generation();
        let (acked, sent) = (Vec::new(), Vec::new());
        let op = Op {
            request: None,
            start: 0,
            end: 0,
            kind: OpKind::Flush,
            stage: Stage::Sent,
            generation,
            acked,
            sent,
        };
        self.ops.insert(id, op);
        self.fan_out(now, id);
        id
    }

    /// True while the operation is on its way.
    pub(super) fn is_open(&self, id: OpId) -> bool {
        self.ops.contains_key(&id)
    }

    /// Every answered write that this member has not acknowledged (R3: none may be left at admission).
    pub(super) fn completed_without(&self, rid: Rid) -> bool {
        !self.config.broken.is(Mutation::AdmitBeforeBestEffort)
            && self
                .ops
                .values()
                .any(|o| o.is_write() && o.stage == Stage::Complete && !o.acked.contains(&rid))
    }

    /// True when nothing is under way for guests.
    pub(super) fn is_drained(&self) -> bool {
        self.ops.is_empty() && self.guests.is_empty()
    }

    // ---- reading

    /// Retries reads that wait for a lease or a member.
    pub(super) fn retry_reads(&mut self, now: Instant) {
        if !self.waiting.is_empty() {
            self.start_waiting(now);
        }
        let edges: Vec<OpId> = self
            .ops
            .iter()
            .filter(|(_, o)| o.stage == Stage::Edges && o.sent.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in edges {
            self.read_edge(now, id);
        }
    }

    fn start_read(&mut self, now: Instant, id: OpId) {
        // A thief answers no read while it waits, either: the old owner's lease may still let it answer an older
        // value after ours (found by weft-model, case lease-reads-while-waiting).
        let waited = self.steal_wait_over(now) || self.config.broken.is(Mutation::ReadWhileWaiting);
        if !self.lease_holds(now) || !self.everyone_obeys() || !waited {
            return;
        }
        let Some(op) = self.ops.get(&id) else { return };
        let (start, len) = (op.start, op.end - op.start);
        let is_kinds = matches!(op.kind, OpKind::Kinds { .. });
        let Some(rid) = self.reader(now, op.bad()) else { return };
        self.waiting.retain(|w| *w != id);
        if let Some(op) = self.ops.get_mut(&id) {
            op.stage = Stage::Sent;
            op.sent = alloc::vec![rid];
        }
        let ask = if is_kinds { Ask::Kinds { offset: start, len } } else { Ask::Read { offset: start, len } };
        self.send(now, rid, Purpose::Read(id), ask);
    }

    /// The member to read from: here if there is one, else the one with the least on its way.
    fn reader(&self, now: Instant, bad: Option<&Bad>) -> Option<Rid> {
        let epoch = self.rec().epoch;
        let avoid = bad.filter(|bad| bad.epoch == epoch).map_or(&[][..], |bad| &bad.members);
        let usable = |rid: &Rid| {
            let Some(p) = self.peers.get(rid) else { return false };
            let fresh = now.ms_since(p.heard) < self.config.timing.suspect_ms;
            p.obeys(epoch) && fresh && !self.removal_pending(*rid)
        };
        let joiner = self.join_writes_to().filter(|_| self.config.broken.is(Mutation::ReadFromJoiner));
        let all: Vec<Rid> = self.in_sync().into_iter().chain(joiner).filter(usable).collect();
        // A member that failed this read before is asked again only when no other is left.
        let fresh: Vec<Rid> = all.iter().filter(|r| !avoid.contains(r)).copied().collect();
        let from = if fresh.is_empty() { all } else { fresh };
        from.into_iter().min_by_key(|rid| {
            let p = &self.peers[rid];
            (p.hung, p.node != self.config.host, p.outstanding.len(), rid.0)
        })
    }

    /// Is there a member to ask whose disk does not hang?
    pub(super) fn read_elsewhere(&self, now: Instant, id: OpId) -> bool {
        let Some(op) = self.ops.get(&id) else { return false };
        self.reader(now, op.bad()).is_some_and(|rid| !self.hangs(rid))
    }

    /// R9: every in-sync member, and a joiner whose admission may have happened, lately said that it obeys us.
    pub(super) fn lease_holds(&self, now: Instant) -> bool {
        let mut members = self.in_sync();
        if let Some(rid) = self.join_rid()
            && self.admission_pending(rid)
            && !self.config.broken.is(Mutation::JoinerNotAsked)
        {
            members.push(rid);
        }
        if self.config.broken.is(Mutation::RemovedNotAsked) {
            members.retain(|rid| !self.removal_pending(*rid));
        }
        let fresh = |rid: &Rid| {
            let lease = self.peers.get(rid).and_then(|p| p.lease);
            lease.is_some_and(|at| now.ms_since(at) < self.config.timing.lease_ms)
        };
        self.config.broken.is(Mutation::NoLease)
            || self.config.broken.is(Mutation::AnyMemberLease) && members.iter().any(fresh)
            || members.iter().all(fresh)
    }

    fn read_edge(&mut self, now: Instant, id: OpId) {
        let Some(op) = self.ops.get(&id) else { return };
        let OpKind::Write { patch: Some(patch), .. } = &op.kind else { return };
        let Some(offset) = patch.edges.front().copied() else { return };
        if self.back.is_some() {
            return;
        }
        // No lease is needed: a stale value could only be written back by a fenced session, and is refused.
        let reader = match self.sole_source() {
            // It may have begun before a member lost its cache, where only this one has what was there.
            Some(rid) => Some(rid).filter(|rid| self.obeys(*rid)),
            None => self.reader(now, Some(&patch.bad)),
        };
        let Some(rid) = reader else { return };
        if let Some(op) = self.ops.get_mut(&id) {
            op.sent = alloc::vec![rid];
        }
        self.send(now, rid, Purpose::Read(id), Ask::Read { offset, len: BLOCK });
    }

    pub(super) fn read_answered(&mut self, now: Instant, id: OpId, rid: Rid, answer: Answer<P>) {
        let lease = self.lease_holds(now);
        let overtaken = self.ops.get(&id).is_some_and(|op| self.has_unfinished_write(op.start, op.end))
            && !self.config.broken.is(Mutation::OvertakenRead);
        let mark = self.layer_mark();
        let Some(op) = self.ops.get_mut(&id) else { return };
        op.sent.clear();
        let len = op.end - op.start;
        match (&mut op.kind, answer) {
            (OpKind::Write { data, crcs, patch: Some(patch) }, Answer::Data(extents)) => {
                let Some(offset) = patch.edges.front().copied() else { return };
                let Some(block) = whole_block::<P>(&extents, mark) else {
                    return self.read_failed(now, id, rid, Refusal::BadCrc);
                };
                patch.edges.pop_front();
                let at = to_usize(offset - op.start);
                let bytes = data.bytes_mut();
                for (i, byte) in block.iter().enumerate() {
                    if at + i < patch.from || at + i >= patch.to {
                        bytes[at + i] = *byte;
                    }
                }
                if patch.edges.is_empty() {
                    *crcs = block_crcs(data.bytes());
                    if let OpKind::Write { patch, .. } = &mut op.kind {
                        *patch = None;
                    }
                    self.fan_out(now, id);
                } else {
                    self.read_edge(now, id);
                }
            }
            // The answer may be older than what a new owner has completed (R9), or newer than what every member has:
            // a write that began meanwhile may yet vanish with this session. Asked again.
            (OpKind::Read { .. }, Answer::Data(extents)) if verified(&extents, len) => {
                if !lease || overtaken {
                    return self.requeue_read(id);
                }
                self.read_done(now, id, |guest, start| guest.parts.push((start, extents)));
            }
            (OpKind::Kinds { .. }, Answer::Kinds(kinds))
                if kinds.iter().map(|(l, _)| *l).sum::<u64>() == len =>
            {
                if !lease || overtaken {
                    return self.requeue_read(id);
                }
                self.read_done(now, id, |guest, start| guest.kinds.push((start, kinds)));
            }
            _ => self.read_failed(now, id, rid, Refusal::BadCrc),
        }
    }

    /// A read has its answer: its guest's request takes it in.
    fn read_done(&mut self, now: Instant, id: OpId, take: impl FnOnce(&mut GuestRequest<P>, u64)) {
        let Some(op) = self.ops.remove(&id) else { return };
        if let Some(request) = op.request {
            if let Some(guest) = self.guests.get_mut(&request) {
                take(guest, op.start);
            }
            self.part_done(now, request);
        }
    }

    /// Is there a write in this range that some required member may lack?
    fn has_unfinished_write(&self, start: u64, end: u64) -> bool {
        self.overlapping(start, end).any(|lock| match lock {
            Lock::Op(id) => self.ops.get(&id).is_some_and(|o| o.stage != Stage::Complete),
            Lock::Piece(_) | Lock::Look(_) => false,
        })
    }

    fn requeue_read(&mut self, id: OpId) {
        if let Some(op) = self.ops.get_mut(&id) {
            op.stage = Stage::Waiting;
            op.sent.clear();
            self.waiting.push_front(id);
        }
    }

    /// A read did not come back: another member is asked, or the same later.
    pub(super) fn read_unsent(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        op.sent.clear();
        if op.is_read() {
            self.requeue_read(id);
        }
    }

    /// A read was refused, or what came back was not what it should be.
    pub(super) fn read_failed(&mut self, now: Instant, id: OpId, rid: Rid, refusal: Refusal) {
        let (members, epoch) = (self.in_sync(), self.rec().epoch);
        let data_bad =
            matches!(refusal, Refusal::BadCrc | Refusal::BitRot | Refusal::IoError | Refusal::OutOfBounds);
        if let (Refusal::BitRot | Refusal::IoError, Some(op)) = (refusal, self.ops.get(&id)) {
            // The guest is served by another member, if one can; the block is mended besides.
            self.suspect_rot(op.start, op.end);
        }
        let bad = self.ops.get_mut(&id).and_then(Op::bad_mut).filter(|_| data_bad);
        if bad.is_some_and(|bad| bad.add(rid, epoch, &members)) {
            self.read_unreadable(now, id);
        } else {
            self.read_unsent(id);
        }
    }

    /// A member's attachment has ended: what it could not give, it may when it is asked again.
    pub(super) fn forget_bad(&mut self, rid: Rid) {
        for bad in self.ops.values_mut().filter_map(Op::bad_mut) {
            bad.members.retain(|member| *member != rid);
        }
    }

    /// No member gave it. Of several blocks each may be good on some member: they are asked for one by one.
    fn read_unreadable(&mut self, now: Instant, id: OpId) {
        let Some(op) = self.ops.remove(&id) else { return };
        self.waiting.retain(|w| *w != id);
        if let (OpKind::Read { .. }, Some(request)) = (&op.kind, op.request)
            && op.end - op.start > BLOCK
        {
            let mut at = op.start;
            while at < op.end {
                let id = OpId(self.fresh_id());
                let kind = OpKind::Read { bad: Bad::default() };
                let part = Op {
                    request: Some(request),
                    start: at,
                    end: at + BLOCK,
                    kind,
                    stage: Stage::Waiting,
                    generation: Generation::NEVER,
                    acked: Vec::new(),
                    sent: Vec::new(),
                };
                self.ops.insert(id, part);
                self.waiting.push_back(id);
                at += BLOCK;
            }
            if let Some(guest) = self.guests.get_mut(&request) {
                guest.remaining += to_usize((op.end - op.start) / BLOCK) - 1;
            }
            self.progressed = true;
            return;
        }
        if op.is_write() {
            self.unlock(op.start, Lock::Op(id));
            self.progressed = true;
        }
        if let Some(request) = op.request {
            self.refuse_guest(now, request);
        }
    }

    /// Part of a request can't be read: its guest is told now, while that is so, not when its other parts are done.
    fn refuse_guest(&mut self, now: Instant, id: RequestId) {
        let Some(guest) = self.guests.remove(&id) else { return };
        self.count_answer(now, &guest);
        // What it writes elsewhere stays until every member has it (R2).
        self.ops.retain(|_, op| !(op.is_read() && op.request == Some(id)));
        for op in self.ops.values_mut().filter(|op| op.request == Some(id)) {
            op.request = None;
        }
        self.replies.push_back((id, GuestReply::Failed(GuestError::Unreadable)));
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a request's length fits memory")
}

/// Do the CRCs match and the runs cover the range?
pub(crate) fn verified<P: Payload>(extents: &[Extent<P>], len: u64) -> bool {
    let mut covered = 0;
    for extent in extents {
        match extent {
            Extent::Data { crcs, data } => {
                if !(data.len() as u64).is_multiple_of(BLOCK) || block_crcs(data.bytes()) != *crcs {
                    return false;
                }
                covered += data.len() as u64;
            }
            Extent::Hole { len, .. } => covered += len,
        }
    }
    covered == len
}

/// `mark`: the volume's, if it is a layer: what nobody has written of its block is told from zeroes later (R34).
fn whole_block<P: Payload>(extents: &[Extent<P>], mark: Option<LayerMark>) -> Option<Vec<u8>> {
    if !verified(extents, BLOCK) {
        return None;
    }
    Some(match (extents.first()?, mark) {
        (Extent::Data { data, .. }, _) => data.bytes().to_vec(),
        (Extent::Hole { kind: Hole::Absent, .. }, Some(mark)) => unwritten_block(mark),
        (Extent::Hole { .. }, _) => alloc::vec![0; to_usize(BLOCK)],
    })
}

/// Puts the parts of a read in order and cuts them to what was asked.
pub(crate) fn clip_data<P: Payload>(
    mut parts: Vec<(u64, Vec<Extent<P>>)>,
    offset: u64,
    len: u64,
) -> Vec<Extent<P>> {
    parts.sort_by_key(|(start, _)| *start);
    let end = offset + len;
    let mut out = Vec::new();
    for (start, extents) in parts {
        let mut at = start;
        for extent in extents {
            let size = match &extent {
                Extent::Data { data, .. } => data.len() as u64,
                Extent::Hole { len, .. } => *len,
            };
            let (from, to) = (at.max(offset), (at + size).min(end));
            if from < to {
                let whole = from == at && to == at + size;
                out.push(match extent {
                    whole_extent if whole => whole_extent,
                    Extent::Data { data, .. } => Extent::Data {
                        crcs: Vec::new(),
                        data: data.slice(to_usize(from - at), to_usize(to - from)),
                    },
                    Extent::Hole { kind, .. } => Extent::Hole { len: to - from, kind },
                });
            }
            at += size;
        }
    }
    out
}

pub(crate) fn clip_kinds(
    mut parts: Vec<(u64, Vec<(u64, Option<Hole>)>)>,
    offset: u64,
    len: u64,
) -> Vec<(u64, Option<Hole>)> {
    parts.sort_by_key(|(start, _)| *start);
    let end = offset + len;
    let mut out: Vec<(u64, Option<Hole>)> = Vec::new();
    for (start, kinds) in parts {
        let mut at = start;
        for (size, kind) in kinds {
            let (from, to) = (at.max(offset), (at + size).min(end));
            if from < to {
                match out.last_mut() {
                    Some((l, k)) if *k == kind => *l += to - from,
                    _ => out.push((to - from, kind)),
                }
            }
            at += size;
        }
    }
    out
}
