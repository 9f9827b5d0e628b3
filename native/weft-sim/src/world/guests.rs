//! Guests: requests drawn from the seed, answers told to the oracle, which judges each half of a block by itself: 512
//! bytes are all that is promised to be written at once (R5), so that a torn block may be seen, but no half of another
//! time.
//!
//! Must always hold: a value is written once, or again when nobody could see it any more; blocks with an even number may be discarded, those with an odd one may be
//! written by halves, so that zeroes in a block tell where they come from.

use weft_proto::guest::GuestError;

use super::*;

const HALF: u64 = BLOCK / 2;

impl World {
    pub(super) fn guest(&mut self, session: Id) {
        let depth = self.plan.queue_depth;
        let s = &self.sessions[session];
        let Some(m) = &s.machine else { return };
        if m.is_serving() && s.guests.len() < depth {
            let blocks = self.plan.blocks.min(m.record().map_or(1, |record| record.size / BLOCK));
            let first = self.rng.below(blocks);
            let count = (1 + self.rng.below(3)).min(blocks - first);
            let dice = self.rng.below(100);
            let halves = self.plan.halves > 0 && self.rng.chance(self.plan.halves);
            if dice < 40 {
                let cut = u64::from(halves) * self.rng.below(2);
                self.guest_reads(session, 2 * first + cut, 2 * count - cut);
            } else if dice < 94 && halves {
                // Half of an odd block, or an even block and half of the odd one after it.
                let odd = first | 1;
                if odd < blocks {
                    let (from, count) = match self.rng.below(3) {
                        0 => (2 * odd, 1),
                        1 => (2 * odd + 1, 1),
                        _ => (2 * odd - 2, 3),
                    };
                    self.guest_writes(session, from, count);
                }
            } else if dice < 94 {
                self.guest_writes(session, 2 * first, 2 * count);
            } else if dice < 97 && first.is_multiple_of(2) && self.zeroed.insert(first) {
                for half in 2 * first..2 * first + 2 {
                    self.oracle.write_called(half, ZERO, self.now);
                }
                self.note(|_| format!("s{}: a guest discards block {first}", session + 1));
                let (offset, len) = (first * BLOCK, BLOCK);
                let op = GuestOp::Zero { offset, len, discard: true, keep_space: false, fua: true };
                self.submit(session, op, Asked::Write { first: 2 * first, values: vec![ZERO; 2] });
            } else {
                self.submit(session, GuestOp::Flush, Asked::Flush { called: self.now });
            }
        }
        if self.faults_on {
            let delay = 1 + self.rng.delay(self.plan.guest_every_ms * MS);
            self.at(delay, Event::Guest { session });
        }
    }

    /// `first`, `count`: half blocks.
    pub(super) fn guest_reads(&mut self, session: Id, first: u64, count: u64) {
        let op = GuestOp::Read { offset: first * HALF, len: count * HALF };
        self.submit(session, op, Asked::Read { first, count, called: self.now });
    }

    /// A write of half blocks, whole blocks with one value each.
    pub(super) fn guest_writes(&mut self, session: Id, first: u64, count: u64) {
        let mut values: Vec<Value> =
            (first..first + count).map(|half| self.next_value + half / 2 - first / 2).collect();
        self.next_value += 64;
        for at in 0..values.len().saturating_sub(1) {
            let half = first + at as u64;
            if half.is_multiple_of(2)
                && let Some(value) = self.once_more(half)
            {
                values[at..at + 2].fill(value);
            }
        }
        for (half, value) in (first..).zip(&values) {
            self.oracle.write_called(half, *value, self.now);
        }
        self.note(|_| format!("s{}: a guest writes {}", session + 1, written(first, values.iter().copied())));
        let op = GuestOp::Write { offset: first * HALF, data: bytes_of_halves(&values), fua: false };
        self.submit(session, op, Asked::Write { first, values });
    }

    /// A value that this block, named by its first half, had before, one time in four that there is one. Guests write what was
    /// there, and what compares blocks finds them equal then.
    fn once_more(&mut self, half: u64) -> Option<Value> {
        let reads = |asked: &Asked| match asked {
            Asked::Read { first, count, .. } => *first < half + 2 && half < first + count,
            _ => false,
        };
        if self.sessions.iter().any(|s| s.guests.values().any(reads)) {
            return None;
        }
        let also: Vec<Value> = self.oracle.repeatable(half + 1).collect();
        let value = self.oracle.repeatable(half).find(|value| also.contains(value))?;
        self.rng.chance(25).then_some(value)
    }

    fn submit(&mut self, session: Id, op: GuestOp<HeapPayload>, asked: Asked) {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let now = self.clock(self.sessions[session].host);
        let s = &mut self.sessions[session];
        s.guests.insert(id, asked);
        if let Some(m) = &mut s.machine {
            m.submit(now, id, op);
        }
        self.drain_session(session);
    }

    pub(super) fn answered(&mut self, session: Id, id: RequestId, reply: GuestReply<HeapPayload>) {
        let Some(asked) = self.sessions[session].guests.remove(&id) else {
            if !self.sessions[session].stale_answers {
                self.fail(format!("request {} was answered twice", id.0));
            }
            return;
        };
        match (asked, reply) {
            (_, GuestReply::Failed(GuestError::Fenced)) => {}
            (Asked::Read { first, count, .. }, GuestReply::Failed(GuestError::Unreadable)) => {
                self.judge_unreadable(session, first, count);
            }
            (Asked::Write { first, values }, GuestReply::Failed(GuestError::Unreadable)) => {
                self.judge_unreadable(session, first, values.len() as u64);
            }
            (Asked::Write { first, values }, GuestReply::Done) => {
                self.note(|_| {
                    format!("s{}: acknowledged: {}", session + 1, written(first, values.iter().copied()))
                });
                self.judge_answering(session);
                for (half, value) in (first..).zip(&values) {
                    self.counts.acks += u64::from(half % 2 == 0 || half == first);
                    self.oracle.write_acked(half, *value, self.now);
                    self.judge_acknowledged(session, half, *value);
                }
            }
            (Asked::Read { first, count, called }, GuestReply::Data(extents)) => {
                let values: Vec<Value> = extents.iter().flat_map(values_of).collect();
                if values.len() as u64 != count {
                    return self.fail(format!("a read of {count} half blocks gave {}", values.len()));
                }
                for (half, value) in (first..).zip(values) {
                    self.counts.reads += u64::from(half % 2 == 0 || half == first);
                    if let Err(what) = self.oracle.read(half, value, called, self.now) {
                        self.fail(what);
                    }
                }
            }
            (Asked::Flush { called }, GuestReply::Done) => self.oracle.flushed(called),
            (_, reply) => self.fail(format!("request {} was answered with {reply:?}", id.0)),
        }
    }
}

/// The values that a part of an answer carries, one for each half block.
fn values_of(extent: &Extent<HeapPayload>) -> Vec<Value> {
    match extent {
        Extent::Data { data, .. } => halves_of(data.bytes()).collect(),
        Extent::Hole { len, kind } => {
            let value = if *kind == Hole::Zero { ZERO } else { ABSENT };
            vec![value; usize::try_from(len / HALF).expect("small")]
        }
    }
}
