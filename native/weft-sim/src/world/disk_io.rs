//! What replicas ask of their disks and logs, carried out after a while.

use super::*;

impl World {
    pub(super) fn start_io(&mut self, rep: Id, io: Io) {
        self.next_io += 1;
        let id = self.next_io;
        let mean = match &io {
            Io::Log { .. } => 100_000,
            Io::Disk { .. } => 150_000,
        };
        let stall = self.reps[rep].stalled_until.saturating_sub(self.now);
        let mut delay = self.rng.delay(mean) + stall;
        if matches!(io, Io::Log { .. }) {
            // The log keeps its order.
            let inc = self.reps[rep].inc;
            let last = self
                .queue
                .iter()
                .filter(|(_, e)| {
                    matches!(e, Event::Io { rep: r, inc: i, io } if *r == rep && *i == inc
                        && matches!(self.reps[rep].pending.get(io), Some(Io::Log { .. })))
                })
                .map(|((time, _), _)| *time)
                .max();
            delay = delay.max(last.map_or(0, |t| t + 1 - self.now.min(t + 1)));
        }
        let inc = self.reps[rep].inc;
        self.reps[rep].pending.insert(id, io);
        self.at(delay, Event::Io { rep, inc, io: id });
    }

    pub(super) fn io_done(&mut self, rep: Id, inc: u64, io: u64) {
        if self.reps[rep].inc != inc {
            return;
        }
        let Some(io) = self.reps[rep].pending.remove(&io) else { return };
        let now = Instant(self.now);
        let r = &mut self.reps[rep];
        match io {
            Io::Log { token, record } => {
                let before = r.stored.durable.promised;
                r.stored.durable.apply(&record);
                assert!(r.stored.durable.promised >= before, "I3");
                if matches!(record, LogRecord::Sealed { .. }) {
                    r.stored.lossy = false;
                }
                if let Some(m) = &mut r.machine {
                    m.handle_logged(now, token, record, Ok(()));
                }
            }
            Io::Disk { token, op } => {
                if self.verbose
                    && let DiskOp::Write { offset, data, .. } = &op
                {
                    let values: Vec<Value> = data.bytes().chunks_exact(4096).map(value_of).collect();
                    let (rid, first) = (r.rid, offset / BLOCK);
                    let line = format!("{rid} has blocks {first}.. = {values:?} on its disk");
                    self.note(|_| line);
                }
                let r = &mut self.reps[rep];
                let outcome: Result<DiskDone<HeapPayload>, _> = r.stored.disk.run(&op);
                if let Some(m) = &mut r.machine {
                    m.handle_disk(now, token, outcome);
                }
            }
        }
        self.drain_replica(rep);
    }
}
