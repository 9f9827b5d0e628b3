//! Replicas: their processes start and stop, take requests in and answer.

use super::*;

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// kill -9: what was on its way to the disk happened or not (R13: nothing is later).
    Kill,
    /// With the power: what was not flushed may be gone, and a block torn.
    Power,
    /// In order: everything is flushed first.
    Clean,
}

impl World {
    pub(super) fn make_replica(&mut self, rid: Rid, host: Id) -> Id {
        let rep = self.reps.len();
        let stored = Stored {
            durable: Durable::new(VOLUME, rid, self.store.record.size, REGION_SHIFT),
            media: Media::default(),
            lossy: false,
            superblock: World::new_superblock(rep, host),
            log_seq: 0,
        };
        self.reps.push(Rep {
            rid,
            host,
            pool: pool_id(rep),
            stored,
            machine: None,
            inc: 0,
            attachments: BTreeMap::new(),
            pending: BTreeMap::new(),
            log_until: 0,
            stalled_until: 0,
            start: None,
            lost: false,
            quarantined: false,
            foreign: None,
            image: None,
            put_back: false,
            promised_max: Epoch(0),
            failed_inc: 0,
            failed_at: 0,
            flush_failed: 0,
            cache_went: false,
            answered: (Epoch(0), SessionId(0)),
        });
        self.start_replica(rep);
        rep
    }

    pub(super) fn start_replica(&mut self, rep: Id) {
        let host = self.reps[rep].host;
        let r = &mut self.reps[rep];
        if r.machine.is_some() || r.start.is_some() || r.lost || !self.hosts[host].powered {
            return;
        }
        r.inc += 1;
        r.attachments.clear();
        r.log_until = 0;
        if r.stored.durable.promised < r.promised_max && !r.put_back {
            let (rid, max) = (r.rid, r.promised_max);
            return self.fail(format!("I3: {rid} had promised {max} and starts with less"));
        }
        let r = &mut self.reps[rep];
        let sealed = r.stored.durable.sealed;
        let region_blocks = (1 << REGION_SHIFT) / BLOCK as usize;
        let stamp =
            |block: usize| r.stored.durable.rgm.get(block / region_blocks).copied().unwrap_or_default();
        let unsealed = (0..BLOCKS).filter(|b| stamp(*b) > sealed);
        let unsealed = unsealed.fold(0, |mask, block| mask | 1 << block);
        r.stored.media.reopen(unsealed);
        let pool_inc = PoolInc(r.inc);
        if self.plan.pool_starts {
            self.start_pool(rep);
        } else {
            self.serve(rep, pool_inc);
        }
    }

    /// Its machine runs.
    pub(super) fn serve(&mut self, rep: Id, pool_inc: PoolInc) {
        let r = &mut self.reps[rep];
        let config = ReplicaConfig {
            pool: r.pool,
            pool_inc,
            watermark: self.hosts[r.host].watermark,
            lossy: r.stored.lossy,
            cached: self.plan.cached,
            // Every other copy lies in a pool that takes snapshots by itself.
            takes: if r.rid.0 % 2 == 1 {
                weft_proto::images::ImageForm::Whole
            } else {
                weft_proto::images::ImageForm::Chained
            },
            broken: self.broken,
        };
        r.machine = Some(Replica::new(config, r.stored.durable.clone()));
        let (rid, host) = (r.rid, r.host + 1);
        self.note(|_| format!("{rid} starts on h{host}"));
        self.drain_replica(rep);
        self.relink_all();
    }

    pub(super) fn stop_replica(&mut self, rep: Id, how: Stop) {
        let power = how == Stop::Power;
        let r = &mut self.reps[rep];
        if let Some(start) = r.start.take() {
            // A superblock that was being written is the old or the new one.
            if let PoolAction::WriteSuperblock(superblock) = start.machine.action()
                && r.foreign.is_none()
                && self.rng.chance(50)
            {
                r.stored.superblock = superblock;
            }
        }
        let was_running = r.machine.take().is_some();
        let rid = r.rid;
        let pending = std::mem::take(&mut r.pending);
        let mut log_alive = true;
        for io in pending.into_values() {
            match io {
                Io::Disk { op, .. } => {
                    let by = if power { Interrupted::Device } else { Interrupted::Process };
                    self.reps[rep].stored.media.interrupt(&op, by, &mut self.rng);
                }
                Io::Image { op, .. } => self.reps[rep].stored.media.interrupt_image(&op, &mut self.rng),
                Io::Log { record, .. } => {
                    log_alive &= self.rng.chance(60);
                    if log_alive {
                        self.logged(rep, &record);
                    }
                }
            }
        }
        match how {
            Stop::Kill => {}
            Stop::Clean => self.reps[rep].stored.media.flush(),
            Stop::Power => self.lose_cache(rep),
        }
        if !was_running {
            return;
        }
        self.note(|_| {
            let how = match how {
                Stop::Kill => "is killed",
                Stop::Power => "loses power",
                Stop::Clean => "stops in order",
            };
            format!("{rid} {how}")
        });
        for session in 0..self.sessions.len() {
            let linked = self.sessions[session].links.get(&rid).is_some_and(|l| l.up);
            if linked && self.sessions[session].machine.is_some() {
                let refused = !power && self.rng.chance(70);
                let delay = if power { self.rng.below(4000) * MS } else { self.rng.below(20) * MS };
                self.at(delay, Event::LinkDown { session, rid, refused });
            }
        }
    }

    /// What was not flushed is gone, or not.
    pub(super) fn lose_cache(&mut self, rep: Id) {
        self.held_before = self.held();
        let r = &mut self.reps[rep];
        r.stored.media.lose_power(&mut self.rng);
        r.stored.lossy = true;
        r.cache_went = true;
        self.era(false);
    }

    /// A record is durable in the pool's log.
    pub(super) fn logged(&mut self, rep: Id, record: &LogRecord) {
        let r = &mut self.reps[rep];
        let before = r.stored.durable.promised;
        r.stored.durable.apply(record);
        r.stored.log_seq += 1;
        let kept = self.hosts[r.host].logs.entry(r.pool).or_default();
        *kept = (*kept).max(r.stored.log_seq);
        let (rid, after) = (r.rid, r.stored.durable.promised);
        r.promised_max = r.promised_max.max(after);
        if after < before {
            self.fail(format!("I3: {rid} promised {before}, then {after}"));
        }
        if let LogRecord::Sealed { generation } = record {
            // One that was on its way when a later flush failed tells nothing of what that flush dropped.
            let r = &mut self.reps[rep];
            r.stored.lossy &= r.flush_failed == r.inc;
            self.judge_seal(rep, *generation);
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
        let now = self.clock(self.reps[rep].host);
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
        let asked = (request.epoch, self.sessions[session].id);
        let is_data = !matches!(request.ask, Ask::Attach(_) | Ask::Detach | Ask::Promise { .. });
        machine.handle_request(now, attachment, request);
        // Whatever it starts at once, it starts for this request.
        self.executing = is_data.then_some((asked, session, ordinal));
        self.drain_replica(rep);
        self.executing = None;
    }

    pub(super) fn drain_replica(&mut self, rep: Id) {
        while let Some(action) = self.reps[rep].machine.as_mut().and_then(Replica::poll_action) {
            let inc = self.reps[rep].inc;
            match action {
                Action::Log { token, record } => {
                    self.judge_start(rep);
                    self.start_io(rep, Io::Log { token, record });
                }
                Action::Disk { token, op } => {
                    self.judge_start(rep);
                    self.start_io(rep, Io::Disk { token, op });
                }
                Action::Image { token, op } => self.start_io(rep, Io::Image { token, op }),
                Action::ReadStore { token } => {
                    let delay = self.rng.delay(3 * MS);
                    self.at(delay, Event::Verified { rep, inc, token });
                }
                Action::Reply { attachment, response } => {
                    if let Ok(Answer::Promised(view)) = &response.outcome {
                        self.judge_promised(rep, view.session);
                    }
                    let r = &self.reps[rep];
                    let Some(((session, ordinal), _)) = r.attachments.iter().find(|(_, a)| **a == attachment)
                    else {
                        continue;
                    };
                    let (session, ordinal, rid, from) = (*session, *ordinal, r.rid, r.host);
                    let to = self.sessions[session].host;
                    let delay = self.net_delay(from, to);
                    let cut = self.cuts.contains(&(from, to));
                    let Some(link) = self.sessions[session].links.get_mut(&rid) else { continue };
                    if cut {
                        link.lost_something = true;
                        continue;
                    }
                    let delay = in_turn(self.plan.ordered, &mut link.back_until, self.now, delay);
                    let link = link.generation;
                    self.at(delay, Event::Answer { session, rid, ordinal, link, response });
                }
            }
        }
        // The pool is opened anew when a flush has failed; what its cache held is not trusted.
        let r = &self.reps[rep];
        if r.machine.as_ref().is_some_and(Replica::is_failed) && r.failed_inc != r.inc {
            let (inc, rid) = (r.inc, r.rid);
            (self.reps[rep].failed_inc, self.reps[rep].failed_at) = (inc, self.now);
            self.note(|_| format!("{rid} has failed"));
            let delay = (200 + self.rng.below(3000)) * MS;
            self.at(delay, Event::Reopen { rep, inc });
        }
    }
}
