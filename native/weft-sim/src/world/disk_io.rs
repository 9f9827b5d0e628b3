//! What replicas ask of their disks and logs, carried out after a while, or not.

use super::*;

impl World {
    pub(super) fn start_io(&mut self, rep: Id, io: Io) {
        self.next_io += 1;
        let id = self.next_io;
        let mean = match &io {
            Io::Log { .. } => 100_000,
            Io::Disk { .. } | Io::Image { .. } => 150_000,
        };
        let stall = self.reps[rep].stalled_until.saturating_sub(self.now);
        let mut delay = self.rng.delay(mean) + stall;
        let r = &mut self.reps[rep];
        if matches!(io, Io::Log { .. }) {
            // The log keeps its order.
            delay = delay.max((r.log_until + 1).saturating_sub(self.now));
            r.log_until = self.now + delay;
        }
        let inc = r.inc;
        r.pending.insert(id, io);
        if r.pending.len() > PENDING_MAX {
            let rid = r.rid;
            self.fail(format!("I31: {rid} has more than {PENDING_MAX} requests at its disk"));
        }
        self.at(delay, Event::Io { rep, inc, io: id });
    }

    pub(super) fn io_done(&mut self, rep: Id, inc: u64, io: u64) {
        if self.reps[rep].inc != inc {
            return;
        }
        let Some(io) = self.reps[rep].pending.remove(&io) else { return };
        let now = self.clock(self.reps[rep].host);
        match io {
            Io::Log { token, record } => {
                self.logged(rep, &record);
                if let Some(m) = &mut self.reps[rep].machine {
                    m.handle_logged(now, token, record, Ok(()));
                }
            }
            Io::Image { token, op } => {
                let outcome = match self.reps[rep].flush_failed == self.reps[rep].inc {
                    true => Err(DiskError::Io),
                    false => self.reps[rep].stored.media.run_image(&op),
                };
                let (rid, how) = (self.reps[rep].rid, outcome.as_ref().map_or("fails to", |_| "has done"));
                self.note(|_| format!("{rid} {how} {}", image_op(&op)));
                if let Some(m) = &mut self.reps[rep].machine {
                    m.handle_disk(now, token, outcome);
                }
            }
            Io::Disk { token, op } => {
                let outcome = self.disk_does(rep, &op);
                if outcome.is_ok() {
                    self.judge_landed(rep, &op);
                }
                if self.verbose
                    && let DiskOp::Write { offset, data, .. } = &op
                {
                    let (rid, what) =
                        (self.reps[rep].rid, written(offset * 2 / BLOCK, halves_of(data.bytes())));
                    let how = if outcome.is_ok() { "has" } else { "fails to write" };
                    self.note(|_| format!("{rid} {how} {what}"));
                }
                if let Some(m) = &mut self.reps[rep].machine {
                    m.handle_disk(now, token, outcome);
                }
            }
        }
        self.drain_replica(rep);
    }

    /// The disk carries a request out, or something of it.
    fn disk_does(&mut self, rep: Id, op: &DiskOp<HeapPayload>) -> Result<DiskDone<HeapPayload>, DiskError> {
        if self.reps[rep].flush_failed == self.reps[rep].inc {
            return Err(DiskError::Io);
        }
        let plan = &self.plan;
        let (write_error, flush_error, misdirect) = (plan.write_error, plan.flush_error, plan.misdirect);
        let mut happens = |weight: u64| weight > 0 && self.faults_on && self.rng.below(1000) < weight;
        match op {
            DiskOp::Write { .. } | DiskOp::Zero { .. } if happens(write_error) => {
                self.reps[rep].stored.media.interrupt(op, Interrupted::Device, &mut self.rng);
                return Err(DiskError::Io);
            }
            DiskOp::Flush | DiskOp::Seal if happens(flush_error) => {
                self.reps[rep].flush_failed = self.reps[rep].inc;
                // What the kernel dropped is unknown: as if the power had gone for this file.
                if self.plan.cached {
                    self.lose_cache(rep);
                }
                return Err(DiskError::Io);
            }
            DiskOp::Write { offset, .. } if happens(misdirect) => {
                let place = self.rng.index(self.plan.blocks as usize);
                let meant = (offset / BLOCK) as usize;
                if self.may_spoil(rep, meant)
                    && self.may_spoil(rep, place)
                    && self.reps[rep].stored.media.misdirect(op, place)
                {
                    let rid = self.reps[rep].rid;
                    self.note(|_| format!("{rid}: the write to block {meant} goes to block {place}"));
                    return Ok(DiskDone::Done);
                }
            }
            _ => {}
        }
        self.reps[rep].stored.media.run(op)
    }

    /// May a block of this replica be damaged: within what copies are promised for?
    pub(super) fn may_spoil(&self, rep: Id, block: usize) -> bool {
        self.plan.beyond_redundancy
            || self.store.record.in_sync().any(|e| {
                self.rep_of(e.rid).is_some_and(|other| {
                    let r = &self.reps[other];
                    other != rep && r.is_serving() && !r.stored.media.is_bad(block)
                })
            })
    }
}

/// What is done to images, for people.
fn image_op(op: &ImageOp<HeapPayload>) -> String {
    match op {
        ImageOp::Make { image, .. } => format!("make room for snapshot {}", image.0),
        ImageOp::Preserve { image, offset, len } => {
            let (first, end) = (offset / BLOCK, (offset + len) / BLOCK);
            format!("preserve blocks {first} to {} in snapshot {}", end - 1, image.0)
        }
        ImageOp::Look { image, .. } => format!("look into snapshot {}", image.0),
        ImageOp::HandDown { image, heir, .. } => format!("hand snapshot {} down to {}", image.0, heir.0),
        ImageOp::Keep { image, segment, .. } => {
            format!("keep hashes of segment {segment} of snapshot {}", image.0)
        }
        ImageOp::Kept { image, .. } => format!("look at what is kept of snapshot {}", image.0),
        ImageOp::Empty { image } => format!("remove the data of snapshot {}", image.0),
        ImageOp::Drop { image } => format!("remove the files of snapshot {}", image.0),
        ImageOp::Take { image } => format!("take {image}"),
        ImageOp::CloneOut { to, .. } => format!("share blocks with volume {}", to.volume.0),
        ImageOp::CopyBegin { image, .. } => format!("begin an image of snapshot {}", image.0),
        ImageOp::CopyFill { image, offset, .. } => {
            format!("fill that of snapshot {} from block {} on", image.0, offset / BLOCK)
        }
        ImageOp::CopySync { image, .. } => format!("sync that of snapshot {}", image.0),
        ImageOp::CopyPublish { image } => format!("publish that of snapshot {}", image.id.0),
        ImageOp::CopyAbandon { image } => format!("give that of snapshot {} up", image.0),
    }
}

/// A write, for people: which blocks get which values.
pub(super) fn written(first: u64, values: impl Iterator<Item = Value>) -> String {
    let values: Vec<Value> = values.collect();
    let mut text = String::new();
    let mut at = 0;
    while at < values.len() {
        let half = first + at as u64;
        let whole = half.is_multiple_of(2) && values.get(at + 1) == Some(&values[at]);
        let place = match (whole, half % 2) {
            (true, _) => format!("{}", half / 2),
            (false, 0) => format!("{} (first half)", half / 2),
            _ => format!("{} (second half)", half / 2),
        };
        let separator = if text.is_empty() { "block" } else { ", block" };
        text.push_str(&format!("{separator} {place} = {}", values[at]));
        at += if whole { 2 } else { 1 };
    }
    text
}
