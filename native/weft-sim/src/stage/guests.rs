//! What guests ask on the stage, and the judgement of what they are answered.

use super::*;

impl Stage {
    /// Asks anything.
    pub fn submit(&mut self, who: Who, op: GuestOp<HeapPayload>) -> RequestId {
        self.ask(who, op, Asked::Other)
    }

    pub(super) fn ask(&mut self, who: Who, op: GuestOp<HeapPayload>, asked: Asked) -> RequestId {
        self.next_id += 1;
        let id = RequestId(self.next_id);
        self.play.tell_guest(self.now, format_args!("{who} asks {}: {}", id.0, told_op(&op)));
        self.asked.insert(id, asked);
        let now = self.clock(self.acts[who.0].host);
        match &mut self.acts[who.0].machine {
            Some(m) => m.submit(now, id, op),
            None => {
                self.replies.insert(id, (self.now, GuestReply::Failed(GuestError::Fenced)));
            }
        }
        self.drain(who);
        id
    }

    /// Writes a block.
    pub fn write(&mut self, who: Who, block: u64) -> Write {
        self.write_run(who, block, 1)
    }

    /// Writes several blocks at once.
    pub fn write_run(&mut self, who: Who, first: u64, count: u64) -> Write {
        let value = self.next_value;
        let values: Vec<Value> = (0..count).map(|i| value + i).collect();
        self.next_value += count;
        for (i, value) in values.iter().enumerate() {
            self.oracle.write_called(first + i as u64, *value, self.now);
        }
        let op = GuestOp::Write { offset: first * BLOCK, data: bytes_of(&values), fua: false };
        Write { id: self.ask(who, op, Asked::Write { first, values }), value }
    }

    /// Writes a block and plays until that is acknowledged.
    pub fn written(&mut self, who: Who, block: u64) -> Value {
        let write = self.write(who, block);
        self.run_until("a write is acknowledged", |s| s.done(write.id));
        write.value
    }

    /// Discards a block (once per block and stage).
    pub fn discard(&mut self, who: Who, block: u64) -> RequestId {
        self.oracle.write_called(block, ZERO, self.now);
        let op =
            GuestOp::Zero { offset: block * BLOCK, len: BLOCK, discard: true, keep_space: false, fua: false };
        self.ask(who, op, Asked::Write { first: block, values: vec![ZERO] })
    }

    /// Reads a block.
    pub fn read(&mut self, who: Who, block: u64) -> RequestId {
        self.read_run(who, block, 1)
    }

    /// Reads several blocks at once.
    pub fn read_run(&mut self, who: Who, first: u64, count: u64) -> RequestId {
        let op = GuestOp::Read { offset: first * BLOCK, len: count * BLOCK };
        self.ask(who, op, Asked::Read { first, called: self.now })
    }

    /// Reads a block and plays until that is answered.
    pub fn read_now(&mut self, who: Who, block: u64) -> Value {
        let id = self.read(who, block);
        self.run_until("a read is answered", |s| s.answered_at_ms(id).is_some());
        self.value(id).expect("the read failed")
    }

    /// The answer, if there is one.
    #[must_use]
    pub fn reply(&self, id: RequestId) -> Option<&GuestReply<HeapPayload>> {
        self.replies.get(&id).map(|(_, reply)| reply)
    }

    /// Was it answered well?
    #[must_use]
    pub fn done(&self, id: RequestId) -> bool {
        matches!(self.reply(id), Some(GuestReply::Done))
    }

    /// How it failed, if it did.
    #[must_use]
    pub fn failure(&self, id: RequestId) -> Option<GuestError> {
        match self.reply(id) {
            Some(GuestReply::Failed(error)) => Some(*error),
            _ => None,
        }
    }

    /// What a read found in its first block.
    #[must_use]
    pub fn value(&self, id: RequestId) -> Option<Value> {
        self.values(id).first().copied()
    }

    /// What a read found in its blocks.
    #[must_use]
    pub fn values(&self, id: RequestId) -> Vec<Value> {
        match self.reply(id) {
            Some(GuestReply::Data(extents)) => values(extents),
            _ => Vec::new(),
        }
    }

    /// When it was answered.
    #[must_use]
    pub fn answered_at_ms(&self, id: RequestId) -> Option<u64> {
        self.replies.get(&id).map(|(at, _)| at / MS - 1_000_000)
    }

    pub(super) fn answered(&mut self, who: Who, id: RequestId, reply: GuestReply<HeapPayload>) {
        self.play.tell_guest(self.now, format_args!("{who} answers {}: {}", id.0, told_reply(&reply)));
        match (self.asked.remove(&id), &reply) {
            (Some(Asked::Write { first, values }), GuestReply::Done) => {
                for (i, value) in values.iter().enumerate() {
                    self.oracle.write_acked(first + i as u64, *value, self.now);
                    self.check_i6(who, first + i as u64, *value);
                }
            }
            // At worst a stale read by an evicted owner (S11).
            (Some(Asked::Read { .. }), GuestReply::Data(_)) if self.lying && !self.owns(who) => {}
            (Some(Asked::Read { first, called }), GuestReply::Data(extents)) => {
                for (i, value) in values(extents).into_iter().enumerate() {
                    let seen = self.oracle.read(first + i as u64, value, called, self.now);
                    assert!(seen.is_ok() || !self.judged, "{seen:?}\n{}", self.describe());
                }
            }
            (Some(_), _) => {}
            (None, _) => panic!("request {id:?} was answered twice\n{}", self.describe()),
        }
        self.replies.insert(id, (self.now, reply));
    }

    /// I6: what is acknowledged is at every member that is in sync by the record.
    pub(super) fn check_i6(&self, who: Who, block: u64, value: Value) {
        let owner = self.record.owner.map(|o| o.session);
        if owner != Some(self.id(who)) || !self.judged {
            return;
        }
        for entry in self.record.in_sync() {
            let rep = &self.reps[&entry.rid];
            let held = rep.stored.disk.value(block);
            assert!(
                rep.lost || held == value,
                "I6: block {block} was acknowledged with {value}, {} is in sync and has {held}\n{}",
                entry.rid,
                self.describe()
            );
        }
    }
}

fn told_op(op: &GuestOp<HeapPayload>) -> String {
    let blocks = |offset: u64, len: u64| {
        let (first, last) = (offset / BLOCK, (offset + len.max(1) - 1) / BLOCK);
        if first == last { format!("block {first}") } else { format!("blocks {first} to {last}") }
    };
    match op {
        GuestOp::Read { offset, len } => format!("read {}", blocks(*offset, *len)),
        GuestOp::Write { offset, data, .. } => {
            let value = data.bytes().get(..8).map_or(0, value_of);
            format!("write {value} to {}", blocks(*offset, data.len() as u64))
        }
        GuestOp::Zero { offset, len, discard, .. } => {
            format!("{} {}", if *discard { "discard" } else { "zero" }, blocks(*offset, *len))
        }
        other => format!("{other:?}").to_lowercase(),
    }
}

fn told_reply(reply: &GuestReply<HeapPayload>) -> String {
    match reply {
        GuestReply::Data(extents) => match values(extents).as_slice() {
            [] => "less than a block".into(),
            [value] => format!("{value}"),
            [first, .., last] => format!("{first} … {last}"),
        },
        other => format!("{other:?}").to_lowercase(),
    }
}
