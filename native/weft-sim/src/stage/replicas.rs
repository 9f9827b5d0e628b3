//! Replicas on the stage, and their disks: started, killed, stalled, full, rotten.

use super::*;

impl Stage {
    pub(super) fn make(&mut self, rid: Rid, host: HostId) {
        let durable = Durable::new(VOLUME, rid, self.scene.blocks * BLOCK, 16);
        let stored = Stored { durable, disk: Disk::default(), lossy: false };
        let rep = Rep {
            host,
            stored,
            machine: None,
            inc: 0,
            silent: false,
            lost: false,
            attachments: BTreeMap::new(),
            pending: BTreeMap::new(),
            data_stalled: false,
            log_stalled: false,
            slower: 0,
            failing: None,
            full: false,
            rotten: BTreeSet::new(),
            ghosts: Vec::new(),
            ran: Vec::new(),
        };
        self.reps.insert(rid, rep);
        self.start(rid);
    }

    pub(super) fn rep(&mut self, rid: Rid) -> &mut Rep {
        self.reps.get_mut(&rid).expect("a replica on this stage")
    }

    /// The replica's daemon is up again.
    pub fn start(&mut self, rid: Rid) {
        self.play.tell(self.now, format_args!("{rid} is started"));
        let (watermark, cached) = (self.watermarks[&self.reps[&rid].host], self.scene.cached);
        let (broken, takes) = (self.play.broken(), self.scene.takes);
        let rep = self.rep(rid);
        assert!(rep.machine.is_none() && !rep.lost, "{rid} can't start");
        rep.inc += 1;
        rep.silent = false;
        rep.attachments.clear();
        rep.stored.disk.restart();
        let config = ReplicaConfig {
            pool: pool_of(rep.host),
            pool_inc: PoolInc(rep.inc),
            watermark,
            lossy: rep.stored.lossy,
            cached,
            takes,
            broken,
        };
        rep.machine = Some(Replica::new(config, rep.stored.durable.clone()));
        self.drain_replica(rid);
        self.relink_soon();
    }

    /// Its daemon is killed: connections are refused, what was under way at its disk never happens (a stalled
    /// request does not, either: its pool's lock is held until it has, R13).
    pub fn kill(&mut self, rid: Rid) {
        self.play.tell(self.now, format_args!("{rid}'s daemon is killed"));
        let lands = self.play.broken().is(Mutation::LandAfterDeath);
        let rep = self.rep(rid);
        rep.machine = None;
        let pending = std::mem::take(&mut rep.pending).into_values();
        rep.ghosts =
            pending.filter_map(|io| if let Io::Disk { op, .. } = io { Some(op) } else { None }).collect();
        if !lands {
            rep.ghosts.clear();
        }
        self.relink_soon();
    }

    /// Its pool or its metadata is found not to be trusted.
    pub fn quarantine(&mut self, rid: Rid) {
        self.play.tell(self.now, format_args!("{rid} is quarantined"));
        if let Some(m) = &mut self.rep(rid).machine {
            m.handle_quarantine();
        }
        self.drain_replica(rid);
    }

    /// As [`Stage::kill`], but somebody keeps its port: connections are neither refused nor accepted.
    pub fn kill_silently(&mut self, rid: Rid) {
        self.kill(rid);
        self.rep(rid).silent = true;
    }

    /// Its daemon is killed, but what was under way at its disk happens.
    pub fn kill_after_io(&mut self, rid: Rid) {
        self.play.tell(self.now, format_args!("{rid}'s daemon is gone; what its disk was asked happens"));
        let rep = self.rep(rid);
        rep.machine = None;
        for io in std::mem::take(&mut rep.pending).into_values() {
            match io {
                Io::Disk { op, .. } => drop(rep.stored.disk.run(&op)),
                Io::Image { op, .. } => drop(rep.stored.disk.run_image(&op)),
                Io::Log { record, .. } => rep.stored.durable.apply(&record),
            }
        }
        self.relink_soon();
    }

    /// Its host loses power: silence, and what was only in its caches is gone.
    pub fn power_off(&mut self, rid: Rid) {
        self.play.tell(self.now, format_args!("{rid}'s host loses power"));
        self.judged &= !self.scene.cached;
        let rep = self.rep(rid);
        rep.machine = None;
        rep.silent = true;
        rep.pending.clear();
        rep.stored.disk.lose_cache();
        rep.stored.lossy = true;
    }

    /// Its host is shut down in order: everything is flushed, connections are refused.
    pub fn shut_down(&mut self, rid: Rid) {
        self.play.tell(self.now, format_args!("{rid}'s host is shut down in order"));
        let rep = self.rep(rid);
        rep.stored.disk.run(&DiskOp::Flush).expect("a flush");
        self.kill_after_io(rid);
    }

    /// Its disk is dead for good; its daemon says that there is no such replica.
    pub fn lose_disk(&mut self, rid: Rid) {
        self.play.tell(self.now, format_args!("{rid}'s disk is dead for good"));
        let rep = self.rep(rid);
        (rep.machine, rep.lost) = (None, true);
        rep.pending.clear();
    }

    /// Its disk does not finish anything any more; its log goes on.
    pub fn stall(&mut self, rid: Rid) {
        self.play.tell(self.now, format_args!("{rid}'s disk hangs"));
        self.rep(rid).data_stalled = true;
    }

    /// Neither its disk nor its log finish anything any more.
    pub fn stall_all(&mut self, rid: Rid) {
        self.play.tell(self.now, format_args!("{rid}'s disk and log hang"));
        let rep = self.rep(rid);
        (rep.data_stalled, rep.log_stalled) = (true, true);
    }

    /// Each request of its disk takes so much longer from now on; its log is as fast as ever.
    pub fn slow_down(&mut self, rid: Rid, ms: u64) {
        self.play.tell(self.now, format_args!("{rid}'s disk takes {ms} ms longer"));
        self.rep(rid).slower = ms * MS;
    }

    /// Its disk goes on; what stuck happens now.
    pub fn unstall(&mut self, rid: Rid) {
        self.play.tell(self.now, format_args!("{rid}'s disk goes on"));
        let rep = self.rep(rid);
        (rep.data_stalled, rep.log_stalled) = (false, false);
        for op in std::mem::take(&mut rep.ghosts) {
            drop(rep.stored.disk.run(&op));
        }
        let (inc, stuck) = (rep.inc, rep.pending.keys().copied().collect::<Vec<u64>>());
        for io in stuck {
            self.at(0, Cue::Io { rid, inc, io });
        }
    }

    /// Its disk takes requests again; what stuck still does.
    pub fn unstall_new(&mut self, rid: Rid) {
        self.play.tell(self.now, format_args!("{rid}'s disk takes requests again"));
        let rep = self.rep(rid);
        (rep.data_stalled, rep.log_stalled) = (false, false);
    }

    /// The next disk request that is picked fails; the ones after it don't.
    pub fn fail_once(&mut self, rid: Rid, pick: fn(&DiskOp<HeapPayload>) -> bool, error: DiskError) {
        self.play.tell(self.now, format_args!("a request of {rid}'s disk is going to fail: {error:?}"));
        self.rep(rid).failing = Some((pick, error));
    }

    /// Its pool is full, or has room again: blocks that hold no data can't be written, its log goes on (R20).
    pub fn fill(&mut self, rid: Rid, full: bool) {
        self.play.tell(self.now, format_args!("{rid}'s pool {}", if full { "is full" } else { "has room" }));
        self.rep(rid).full = full;
    }

    /// A replica that is not running will say that it has sealed this.
    pub fn lie_about_seals(&mut self, rid: Rid, sealed: Generation) {
        self.play.tell(self.now, format_args!("{rid} will say that it has sealed {sealed}"));
        self.reps.get_mut(&rid).expect("a replica").stored.durable.sealed = sealed;
    }

    /// A block's stored checksum no longer fits its data, until it is written again.
    pub fn rot(&mut self, rid: Rid, block: u64) {
        self.play.tell(self.now, format_args!("block {block} rots at {rid}"));
        self.rep(rid).rotten.insert(block);
    }

    /// Does a block's stored checksum not fit its data?
    #[must_use]
    pub fn is_rotten(&self, rid: Rid, block: u64) -> bool {
        self.reps[&rid].rotten.contains(&block)
    }

    /// A block and its stored checksum are another time's, of nobody's doing: a drive that lost what it had said was
    /// written.
    pub fn forge(&mut self, rid: Rid, block: u64, value: Value) {
        self.play.tell(self.now, format_args!("block {block} at {rid} is {value} all at once"));
        let data = bytes_of(&[value]);
        let (offset, crcs) = (block * BLOCK, weft_proto::payload::block_crcs(data.bytes()));
        let op = DiskOp::Write { offset, crcs, data, durable: true };
        self.rep(rid).stored.disk.run(&op).expect("a write");
    }

    /// What a replica's disk holds.
    #[must_use]
    pub fn disk(&self, rid: Rid, block: u64) -> Value {
        self.reps[&rid].stored.disk.value(block)
    }

    /// What a replica's log holds.
    #[must_use]
    pub fn durable(&self, rid: Rid) -> &Durable {
        &self.reps[&rid].stored.durable
    }

    /// What a replica's disk has carried out.
    #[must_use]
    pub fn ran(&self, rid: Rid) -> &[DiskOp<HeapPayload>] {
        &self.reps[&rid].ran
    }

    /// Requests that are at its disk or its log.
    #[must_use]
    pub fn at_disk(&self, rid: Rid) -> usize {
        self.reps[&rid].pending.len()
    }

    pub(super) fn deliver(
        &mut self,
        who: Who,
        rid: Rid,
        inc: u64,
        ordinal: Ordinal,
        request: Request<HeapPayload>,
    ) {
        let (now, fresh) = (self.clock(self.reps[&rid].host), AttachmentId(self.next_id + 1));
        self.next_id += 1;
        let rep = self.rep(rid);
        if rep.inc != inc {
            return;
        }
        if rep.lost {
            let (tag, outcome) = (request.tag, Err(Refusal::NoReplica));
            let response = Response { tag, epoch: Epoch(0), outcome, service_us: 0 };
            return self.answer(who, rid, ordinal, response);
        }
        let refuse =
            self.acts[who.0].links.entry(rid).or_default().refuse.take_if(|(pick, _)| pick(&request.ask));
        let rep = self.rep(rid);
        if let Some((_, refusal)) = refuse {
            let (tag, epoch) = (request.tag, rep.stored.durable.promised);
            let response = Response { tag, epoch, outcome: Err(refusal), service_us: 0 };
            return self.answer(who, rid, ordinal, response);
        }
        let attachment = *rep.attachments.entry((who, ordinal)).or_insert(fresh);
        if let Some(m) = &mut rep.machine {
            m.handle_request(now, attachment, request);
            self.drain_replica(rid);
        }
    }

    pub(super) fn drain_replica(&mut self, rid: Rid) {
        loop {
            let verify = self.play.store(self.reps[&rid].host);
            let rep = self.rep(rid);
            let inc = rep.inc;
            let Some(action) = rep.machine.as_mut().and_then(Replica::poll_action) else { return };
            match action {
                Action::Log { token, record } => self.start_io(rid, Io::Log { token, record }),
                Action::Disk { token, op } => self.start_io(rid, Io::Disk { token, op }),
                Action::Image { token, op } => self.start_io(rid, Io::Image { token, op }),
                Action::ReadStore { token } => self.at(verify, Cue::Verified { rid, inc, token }),
                Action::Reply { attachment, response } => {
                    let found = rep.attachments.iter().find(|(_, a)| **a == attachment).map(|(k, _)| *k);
                    if let Some((who, ordinal)) = found {
                        self.answer(who, rid, ordinal, response);
                    }
                }
            }
        }
    }

    pub(super) fn answer(&mut self, who: Who, rid: Rid, ordinal: Ordinal, response: Response<HeapPayload>) {
        let (from, to) = (self.reps[&rid].host, self.acts[who.0].host);
        let cut = self.cuts.contains(&(from, to));
        let link = self.acts[who.0].links.entry(rid).or_default();
        if cut || link.hold_answers {
            link.lost_something = true;
            return;
        }
        let picked = |pick: AnswerFilter| response.outcome.as_ref().is_ok_and(pick);
        if link.delay.is_some_and(picked) {
            link.delayed.push((ordinal, link.generation, response));
            return;
        }
        let link = link.generation;
        self.at(self.net(from, to), Cue::Answer { who, rid, ordinal, link, response });
    }

    pub(super) fn start_io(&mut self, rid: Rid, io: Io) {
        self.next_id += 1;
        let (io_id, rep) = (self.next_id, self.reps.get_mut(&rid).expect("made"));
        let inc = rep.inc;
        let wait = match &io {
            Io::Disk { .. } | Io::Image { .. } => self.play.disk(rid) + rep.slower,
            Io::Log { .. } => self.play.log(rid),
        };
        rep.pending.insert(io_id, io);
        self.at(wait, Cue::Io { rid, inc, io: io_id });
    }

    pub(super) fn io_done(&mut self, rid: Rid, inc: u64, io: u64) {
        let now = self.clock(self.reps[&rid].host);
        let unflushed = self.play.broken().is(Mutation::ZeroBeforeFlush);
        let rep = self.rep(rid);
        let stalled = match rep.pending.get(&io) {
            Some(Io::Disk { .. } | Io::Image { .. }) => rep.data_stalled,
            Some(Io::Log { .. }) => rep.log_stalled,
            None => return,
        };
        if rep.inc != inc || stalled {
            return;
        }
        match rep.pending.remove(&io).expect("looked at a moment ago") {
            Io::Log { token, record } => {
                rep.stored.durable.apply(&record);
                if matches!(record, LogRecord::Sealed { .. }) {
                    rep.stored.lossy = false;
                }
                if let Some(m) = &mut rep.machine {
                    m.handle_logged(now, token, record, Ok(()));
                }
            }
            Io::Image { token, op } => {
                let full = rep.full
                    && matches!(
                        op,
                        ImageOp::Make { .. } | ImageOp::Preserve { .. } | ImageOp::CopyFill { .. }
                    );
                let outcome = if full { Err(DiskError::NoSpace) } else { rep.stored.disk.run_image(&op) };
                if let (ImageOp::CopyPublish { image }, Ok(_)) = (&op, &outcome) {
                    // Its slot says that it is there, and nothing else does.
                    rep.stored.durable.images.restore(vec![(**image).clone()]);
                }
                if let Some(m) = &mut rep.machine {
                    m.handle_disk(now, token, outcome);
                }
            }
            Io::Disk { token, op } => {
                let outcome = rep.run(&op, unflushed);
                if let Some(m) = &mut rep.machine {
                    m.handle_disk(now, token, outcome);
                }
            }
        }
        self.drain_replica(rid);
    }
}

impl Rep {
    /// `unflushed`: a zero is not made durable.
    fn run(&mut self, op: &DiskOp<HeapPayload>, unflushed: bool) -> Result<DiskDone<HeapPayload>, DiskError> {
        if let Some((_, error)) = self.failing.take_if(|(pick, _)| pick(op)) {
            return Err(error);
        }
        self.ran.push(op.clone());
        let (offset, len) = match op {
            DiskOp::Write { offset, data, .. } => (*offset, data.len() as u64),
            DiskOp::Zero { offset, len, .. }
            | DiskOp::Read { offset, len }
            | DiskOp::Kinds { offset, len }
            | DiskOp::Hash { offset, len, .. } => (*offset, *len),
            DiskOp::Grow { from, to } | DiskOp::Cut { from, to } => (*from, to - from),
            DiskOp::Flush | DiskOp::Seal => (0, 0),
        };
        let blocks = offset / BLOCK..(offset + len) / BLOCK;
        let empty = |block: u64| matches!(self.stored.disk.value(block), ABSENT | ZERO);
        if self.full && matches!(op, DiskOp::Write { .. }) && blocks.clone().any(empty) {
            return Err(DiskError::NoSpace);
        }
        match op {
            DiskOp::Write { .. } | DiskOp::Zero { .. } | DiskOp::Grow { .. } | DiskOp::Cut { .. } => {
                self.rotten.retain(|b| !blocks.contains(b))
            }
            DiskOp::Read { .. } | DiskOp::Hash { .. }
                if self.rotten.range(blocks.clone()).next().is_some() =>
            {
                return Err(DiskError::BitRot);
            }
            _ => {}
        }
        if unflushed && matches!(op, DiskOp::Zero { .. }) {
            return self.stored.disk.run_unflushed(op);
        }
        self.stored.disk.run(op)
    }
}
