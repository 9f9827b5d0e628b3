//! Guests: requests drawn from the seed, answers told to the oracle.

use super::*;

impl World {
    pub(super) fn guest(&mut self, session: Id) {
        let depth = self.plan.queue_depth;
        let s = &self.sessions[session];
        let Some(m) = &s.machine else { return };
        if m.is_serving() && s.guests.len() < depth {
            self.next_request += 1;
            let id = RequestId(self.next_request);
            let first = self.rng.below(self.plan.blocks);
            let count = (1 + self.rng.below(3)).min(self.plan.blocks - first);
            let (offset, len) = (first * BLOCK, count * BLOCK);
            let now = self.now;
            let dice = self.rng.below(100);
            let (op, asked) = if dice < 40 {
                (GuestOp::Read { offset, len }, Asked::Read { first, called: now })
            } else if dice < 94 {
                let values: Vec<Value> = (0..count).map(|i| self.next_value + i).collect();
                self.next_value += 64;
                for (i, value) in values.iter().enumerate() {
                    self.oracle.write_called(first + i as u64, *value, now);
                }
                self.note(|_| format!("session {session}: a guest writes blocks {first}.. = {values:?}"));
                (
                    GuestOp::Write { offset, data: bytes_of(&values), fua: false },
                    Asked::Write { first, values },
                )
            } else if dice < 97 && self.zeroed.insert(first) {
                self.oracle.write_called(first, ZERO, now);
                let op = GuestOp::Zero { offset, len: BLOCK, discard: true, keep_space: false, fua: true };
                (op, Asked::Write { first, values: vec![ZERO] })
            } else {
                (GuestOp::Flush, Asked::Flush { called: now })
            };
            let s = &mut self.sessions[session];
            s.guests.insert(id, asked);
            if let Some(m) = &mut s.machine {
                m.submit(Instant(now), id, op);
            }
            self.drain_session(session);
        }
        if self.faults_on {
            let delay = 1 + self.rng.delay(self.plan.guest_every_ms * MS);
            self.at(delay, Event::Guest { session });
        }
    }

    pub(super) fn answered(&mut self, session: Id, id: RequestId, reply: GuestReply<HeapPayload>) {
        let Some(asked) = self.sessions[session].guests.remove(&id) else {
            if !self.sessions[session].stale_answers {
                self.fail(format!("request {id:?} was answered twice"));
            }
            return;
        };
        match (asked, reply) {
            (_, GuestReply::Failed(_)) => {}
            (Asked::Write { first, values }, GuestReply::Done) => {
                self.note(|_| format!("session {session}: blocks {first}.. = {values:?} are acknowledged"));
                for (i, value) in values.iter().enumerate() {
                    let block = first + i as u64;
                    self.counts.acks += 1;
                    self.oracle.write_acked(block, *value, self.now);
                    self.check_i6(session, block, *value);
                }
            }
            (Asked::Read { first, called }, GuestReply::Data(extents)) => {
                let mut block = first;
                for extent in extents {
                    let values: Vec<Value> = match extent {
                        Extent::Data { data, .. } => data.bytes().chunks_exact(4096).map(value_of).collect(),
                        Extent::Hole { len, kind } => {
                            let value = if kind == Hole::Zero { ZERO } else { ABSENT };
                            vec![value; usize::try_from(len / BLOCK).expect("small")]
                        }
                    };
                    for value in values {
                        self.counts.reads += 1;
                        if let Err(what) = self.oracle.read(block, value, called, self.now) {
                            self.fail(what);
                        }
                        block += 1;
                    }
                }
            }
            (Asked::Flush { called }, GuestReply::Done) => self.oracle.flushed(called),
            (_, reply) => self.fail(format!("request {id:?} was answered with {reply:?}")),
        }
    }
}
