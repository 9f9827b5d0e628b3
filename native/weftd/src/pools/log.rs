//! Replicas at work: what they want logged and done, the log's batches, and the checkpoints that let it forget.
//!
//! Must always hold: nothing that a replica was told is durable is forgotten by the log before a checkpoint holds it (R20).

use super::*;

impl Pools {
    /// Has each log's durable sequence kept, if it has grown.
    pub(super) fn keep_logs(&mut self) {
        let mut changed = false;
        for (id, pool) in &self.pools {
            let Some(seq) = pool.log.as_ref().map(Log::durable_seq) else { continue };
            let kept = self.kept_logs.entry(*id).or_default();
            if seq > kept.0 {
                *kept = Decimal(seq);
                changed = true;
            }
        }
        if changed {
            self.out.push_back(PoolsOut::Keep(LOGS_FILE, json!(self.kept_logs)));
        }
    }
}

impl Pool {
    /// Logs what [`Pool::slot`] made of a replica's identity.
    pub(super) fn append_identity(&mut self, now: Instant, key: ReplicaKey, owner: Option<&PoolOwner>) {
        let Some(slot) = self.replicas.get(&key) else { return };
        let durable = slot.machine.durable();
        if owner.is_some_and(|o| o.boot_id == durable.boot_id) {
            let boot_id = durable.boot_id;
            let identity = LogRecord::Identity { boot_id, device_generation: 0, clean_stop: false };
            self.append(now, key, None, identity);
        }
    }

    pub(super) fn first_checkpoint(&mut self, durable: Box<Durable>, answer: Answer) {
        let log_seq = self.log.as_ref().map_or(0, Log::durable_seq);
        let checkpoint = Checkpoint { pool: self.id, counter: 1, log_seq, durable: (*durable).clone() };
        let replica = ReplicaKey { volume: durable.volume, rid: durable.rid };
        let op = PoolOp::WriteCheckpoint { replica, slot: Slot::A, bytes: checkpoint.encode() };
        self.submit(Purpose::FirstCheckpoint { durable, log_seq, answer }, op);
    }

    /// The next checkpoint of a replica: its other side, how much of the log is in it and in its images' files, its bytes.
    pub(super) fn encode_checkpoint(&self, slot: &Slotted) -> (Side, u64, Vec<u8>) {
        let log_seq = slot.images_through(self.log.as_ref().map_or(0, Log::durable_seq));
        let durable = slot.machine.durable().without_images();
        let checkpoint = Checkpoint { pool: self.id, counter: slot.counter + 1, log_seq, durable };
        (slot.side.other(), log_seq, checkpoint.encode())
    }

    /// The last checkpoint of a replica before it goes to the trash, without its images: its other side, its bytes.
    pub(super) fn encode_last_checkpoint(&self, slot: &Slotted) -> (Side, Vec<u8>) {
        let log_seq = self.log.as_ref().map_or(0, Log::durable_seq);
        let durable = Pool::without_images(slot.machine.durable().clone()).without_images();
        let checkpoint = Checkpoint { pool: self.id, counter: slot.counter + 1, log_seq, durable };
        (slot.side.other(), checkpoint.encode())
    }

    /// Does what a replica's machine wants, once its files are open.
    pub(super) fn drive_replica(&mut self, now: Instant, key: ReplicaKey, out: &mut VecDeque<PoolsOut>) {
        if self.replicas.get(&key).is_some_and(|slot| !slot.open && !slot.quarantined) {
            return;
        }
        while let Some(action) = self.replicas.get_mut(&key).and_then(|slot| slot.machine.poll_action()) {
            match action {
                Action::Log { token, record } => self.append(now, key, Some(token), record),
                Action::Disk { token, op } => {
                    self.submit(Purpose::Disk(key, token), PoolOp::Disk { replica: key, op });
                }
                Action::Image { token, op } => self.submit_image(key, token, op),
                Action::ReadStore { token } => out.push_back(PoolsOut::Call(PoolsCall::Verify(key, token))),
                Action::Reply { attachment, response } => {
                    out.push_back(PoolsOut::Reply(attachment, response))
                }
            }
        }
        while let Some((to, outcome)) =
            self.replicas.get_mut(&key).and_then(|slot| slot.machine.poll_cloned())
        {
            self.clone_shared(to, outcome);
        }
        self.tell_copies(key, out);
        self.drive_log();
    }

    /// Appends a replica's record; without token nobody waits for it.
    pub(super) fn append(&mut self, now: Instant, key: ReplicaKey, token: Option<Token>, record: LogRecord) {
        let Some(log) = &mut self.log else { return };
        match (log.append(key, &record), token) {
            (Ok(at), token) => self.log_waiters.push_back((at, key, token, record)),
            (Err(AppendError::Full), token) => {
                self.log_full.push_back((key, token, record));
                self.begin_checkpoints();
            }
            (Err(AppendError::Poisoned), Some(token)) => {
                if let Some(slot) = self.replicas.get_mut(&key) {
                    slot.machine.handle_logged(now, token, record, Err(DiskError::Io));
                }
            }
            (Err(AppendError::Poisoned), None) => {}
        }
    }

    pub(super) fn drive_log(&mut self) {
        while let Some(write) = self.log.as_mut().and_then(Log::poll_write) {
            let offset = write.position_blocks * LOG_BLOCK as u64;
            let data = IoBuf::copy_of(&write.bytes);
            self.submit(Purpose::Log(write.batch), PoolOp::WriteLog { offset, data });
        }
        if self.log.as_ref().is_some_and(Log::needs_checkpoint) {
            self.begin_checkpoints();
        }
    }

    pub(super) fn handle_log_written(
        &mut self,
        now: Instant,
        batch: u64,
        done: bool,
        out: &mut VecDeque<PoolsOut>,
    ) {
        let Some(log) = &mut self.log else { return };
        let behind = log.durable_seq();
        log.handle_written(batch, if done { Ok(()) } else { Err(LogWriteFailed) });
        let durable = log.poll_durable();
        let poisoned = log.is_poisoned();
        let mut told = Vec::new();
        while let Some((at, ..)) = self.log_waiters.front() {
            let outcome = if durable.is_some_and(|durable| *at <= durable) {
                Ok(())
            } else if poisoned {
                Err(DiskError::Io)
            } else {
                break;
            };
            let Some((_, key, token, record)) = self.log_waiters.pop_front() else { break };
            told.push((key, token, record, outcome));
        }
        if poisoned {
            self.phase = Phase::Failed("a write to its log failed".to_owned());
            out.push_back(PoolsOut::Changed(self.id));
            let full = std::mem::take(&mut self.log_full);
            told.extend(
                full.into_iter().map(|(key, token, record)| (key, token, record, Err(DiskError::Io))),
            );
        }
        let mut keys = BTreeSet::new();
        // All of them before anything comes of one: a checkpoint that is made then has what the log has by now.
        for (key, token, record, outcome) in told {
            let of = match (&record, &outcome) {
                (LogRecord::Image { image, attempt, .. }, Ok(())) => Some((*image, *attempt)),
                _ => None,
            };
            if let (Some(slot), Some(token)) = (self.replicas.get_mut(&key), token) {
                slot.machine.handle_logged(now, token, record, outcome);
                keys.insert(key);
            }
            if let Some(of) = of {
                self.note_image(key, of, behind);
            }
        }
        for key in keys {
            self.drive_replica(now, key, out);
        }
        self.drive_log();
        self.drive_stop(now, out);
    }

    /// Checkpoints of all replicas, one after the other, so that the log may forget.
    fn begin_checkpoints(&mut self) {
        if self.checkpointing.is_none() && !self.log.as_ref().is_none_or(Log::is_poisoned) {
            self.checkpointing = Some(self.replicas.keys().copied().collect());
            if self.broken.is(Mutation::ForgetWithoutCheckpoint) {
                self.checkpointing = Some(VecDeque::new());
                self.replicas.values_mut().for_each(|slot| slot.log_seq = u64::MAX);
            }
            self.next_checkpoint();
        }
    }

    fn next_checkpoint(&mut self) {
        while let Some(key) = self.checkpointing.as_ref().and_then(|queue| queue.front().copied()) {
            if self.replicas.get(&key).is_some_and(|slot| !slot.quarantined) {
                let durable_seq = self.log.as_ref().map_or(0, Log::durable_seq);
                let through = *self.images_through.get_or_insert(durable_seq);
                if self.write_next_image(key, through) {
                    return;
                }
                self.leave_checkpoint();
                let Some(slot) = self.replicas.get(&key) else { continue };
                let counter = slot.counter + 1;
                let (side, log_seq, bytes) = self.encode_checkpoint(slot);
                let op = PoolOp::WriteCheckpoint { replica: key, slot: slot_of(side), bytes };
                return self.submit(Purpose::Checkpoint { key, side, counter, log_seq }, op);
            }
            self.leave_checkpoint();
        }
        self.checkpointing = None;
        let kept = self.replicas.values().filter(|s| !s.quarantined).map(|s| s.log_seq);
        let kept = kept.chain(self.kept_for_new()).min();
        if let Some(log) = &mut self.log {
            log.trim_to(kept.unwrap_or(log.durable_seq()).min(log.durable_seq()));
        }
        self.drive_log();
    }

    /// The first of the replicas whose checkpoints are being written has had its turn.
    fn leave_checkpoint(&mut self) {
        self.images_through = None;
        if let Some(queue) = &mut self.checkpointing {
            queue.pop_front();
        }
    }

    /// A file of an image was written, or could not be: then its replica's checkpoint waits for the next round.
    pub(super) fn handle_image_slot(
        &mut self,
        now: Instant,
        written: WrittenSlot,
        done: bool,
        out: &mut VecDeque<PoolsOut>,
    ) {
        let key = written.key();
        let is_first = self.checkpointing.as_ref().is_some_and(|queue| queue.front() == Some(&key));
        if !self.handle_image_written(written, done) && is_first {
            self.leave_checkpoint();
        }
        self.go_on_with_checkpoints(now, out);
    }

    pub(super) fn handle_checkpoint(
        &mut self,
        now: Instant,
        key: ReplicaKey,
        (side, counter, log_seq): (Side, u64, u64),
        done: bool,
        out: &mut VecDeque<PoolsOut>,
    ) {
        if let Some(slot) = self.replicas.get_mut(&key).filter(|_| done) {
            (slot.side, slot.counter, slot.log_seq) = (side, counter, log_seq);
        }
        self.go_on_with_checkpoints(now, out);
    }

    fn go_on_with_checkpoints(&mut self, now: Instant, out: &mut VecDeque<PoolsOut>) {
        self.next_checkpoint();
        if self.checkpointing.is_none() {
            for (key, token, record) in std::mem::take(&mut self.log_full) {
                self.append(now, key, token, record);
            }
            self.drive_log();
        }
        self.drive_stop(now, out);
    }
}
