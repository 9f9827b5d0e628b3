//! Replicas: their processes start and stop, take requests in and answer.

use super::*;

impl World {
    pub(super) fn make_replica(&mut self, rid: Rid, host: Id) -> Id {
        let durable = Durable::new(VOLUME, rid, SIZE, REGION_SHIFT);
        let stored = Stored { durable, disk: Disk::default(), lossy: false };
        self.reps.push(Rep {
            rid,
            host,
            stored,
            machine: None,
            inc: 0,
            attachments: BTreeMap::new(),
            pending: BTreeMap::new(),
            stalled_until: 0,
            lost: false,
            cache_went: false,
        });
        let rep = self.reps.len() - 1;
        self.start_replica(rep);
        rep
    }

    pub(super) fn start_replica(&mut self, rep: Id) {
        let r = &mut self.reps[rep];
        if r.machine.is_some() || r.lost {
            return;
        }
        r.inc += 1;
        r.attachments.clear();
        let config = ReplicaConfig {
            pool: pool_id(r.host),
            pool_inc: PoolInc(r.inc),
            watermark: self.hosts[r.host].watermark,
            lossy: r.stored.lossy,
            cached: self.plan.cached,
            broken: self.broken,
        };
        r.machine = Some(Replica::new(config, r.stored.durable.clone()));
        let rid = r.rid;
        self.note(|_| format!("{rid} starts"));
        self.relink_all();
    }

    pub(super) fn stop_replica(&mut self, rep: Id, power: bool) {
        let Some(machine) = self.reps[rep].machine.take() else { return };
        drop(machine);
        let rid = self.reps[rep].rid;
        // What was on its way to the disk happened or not; the log keeps a prefix (R13: nothing is later).
        let pending = std::mem::take(&mut self.reps[rep].pending);
        let mut log_alive = true;
        for io in pending.into_values() {
            match io {
                Io::Disk { op, .. } => {
                    if matches!(op, DiskOp::Write { .. } | DiskOp::Zero { .. }) && self.rng.chance(50) {
                        let _ = self.reps[rep].stored.disk.run(&op);
                    }
                }
                Io::Log { record, .. } => {
                    log_alive &= self.rng.chance(60);
                    if log_alive {
                        self.reps[rep].stored.durable.apply(&record);
                    }
                }
            }
        }
        if power {
            self.held_before = self.held();
            let r = &mut self.reps[rep];
            r.stored.disk.lose_power(&mut self.rng);
            r.stored.lossy = true;
            r.cache_went = true;
            self.era(false);
        }
        self.note(|_| format!("{rid} {}", if power { "loses power" } else { "is killed" }));
        for session in 0..self.sessions.len() {
            let linked = self.sessions[session].links.get(&rid).is_some_and(|l| l.up);
            if linked && self.sessions[session].machine.is_some() {
                let refused = !power && self.rng.chance(70);
                let delay = if power { self.rng.below(4000) * MS } else { self.rng.below(20) * MS };
                self.at(delay, Event::LinkDown { session, rid, refused });
            }
        }
    }

    pub(super) fn rep_of(&self, rid: Rid) -> Option<Id> {
        self.reps.iter().position(|r| r.rid == rid)
    }

    pub(super) fn deliver(
        &mut self,
        rep: Id,
        inc: u64,
        session: Id,
        ordinal: Ordinal,
        request: Request<HeapPayload>,
    ) {
        let r = &mut self.reps[rep];
        if r.inc != inc {
            return;
        }
        let Some(machine) = &mut r.machine else { return };
        let next = &mut self.next_attachment;
        let attachment = *r.attachments.entry((session, ordinal)).or_insert_with(|| {
            *next += 1;
            AttachmentId(*next)
        });
        machine.handle_request(Instant(self.now), attachment, request);
        self.drain_replica(rep);
    }

    pub(super) fn drain_replica(&mut self, rep: Id) {
        loop {
            let Some(action) = self.reps[rep].machine.as_mut().and_then(Replica::poll_action) else { return };
            let inc = self.reps[rep].inc;
            match action {
                Action::Log { token, record } => self.start_io(rep, Io::Log { token, record }),
                Action::Disk { token, op } => self.start_io(rep, Io::Disk { token, op }),
                Action::ReadStore { token } => {
                    let delay = self.rng.delay(3 * MS);
                    self.at(delay, Event::Verified { rep, inc, token });
                }
                Action::Reply { attachment, response } => {
                    let r = &self.reps[rep];
                    let Some(((session, ordinal), _)) = r.attachments.iter().find(|(_, a)| **a == attachment)
                    else {
                        continue;
                    };
                    let (session, ordinal, rid) = (*session, *ordinal, r.rid);
                    let to = self.sessions[session].host;
                    let link = self.sessions[session].links.get(&rid).map_or(0, |l| l.generation);
                    if self.cuts.contains(&(r.host, to)) {
                        if let Some(l) = self.sessions[session].links.get_mut(&rid) {
                            l.lost_something = true;
                        }
                        continue;
                    }
                    let delay = self.net_delay(r.host, to);
                    self.at(delay, Event::Answer { session, rid, ordinal, link, response });
                }
            }
        }
    }
}
