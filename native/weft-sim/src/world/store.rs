//! The store: one record, compared and swapped, now and then unsure, away, late or rolled back.

use super::*;

impl World {
    pub(super) fn host_watermark(&self) -> Watermark {
        Watermark { cluster: CLUSTER, incarnation: self.store.incarnation, revision: self.store.revision }
    }

    /// Can a host use the store? It reaches a member that is with a leader of a majority.
    pub(super) fn reaches_store(&self, host: Id) -> bool {
        if self.store.down_until > self.now || !self.hosts[host].powered {
            return false;
        }
        let members = &self.plan.store_members;
        if members.is_empty() {
            return self.core.as_ref().is_none_or(|core| core.contains(&host));
        }
        let runs = |m: Id| self.hosts[m].powered && self.hosts[m].paused_until <= self.now;
        let linked = |a: Id, b: Id| a == b || !self.cuts.contains(&(a, b)) && !self.cuts.contains(&(b, a));
        members.iter().filter(|m| runs(**m) && linked(host, **m)).any(|near| {
            members.iter().filter(|m| runs(**m) && linked(*near, **m)).any(|leader| {
                let with = members.iter().filter(|m| runs(**m) && linked(*leader, **m)).count();
                with > members.len() / 2
            })
        })
    }

    /// A read of the store at a host: none if it is out of reach, else whether the host believes what it shows. Then its
    /// watermark is as high (R11).
    pub(super) fn sees_store(&mut self, host: Id) -> Option<bool> {
        if !self.reaches_store(host) {
            return None;
        }
        let seen = self.host_watermark();
        if seen < self.hosts[host].watermark && !self.broken.is(Mutation::NoWatermark) {
            return Some(false);
        }
        let known = self.hosts[host].watermark.max(seen);
        self.hosts[host].watermark = known;
        for s in self.sessions.iter_mut().filter(|s| s.host == host) {
            if let Some(m) = &mut s.machine {
                m.handle_watermark(known);
            }
        }
        self.told(host);
        Some(true)
    }

    /// Two hosts say HELLO, and who hears of more than it has seen looks for itself (R11).
    pub(super) fn hello(&mut self, a: Id, b: Id) {
        for (from, to) in [(a, b), (b, a)] {
            let says = self.hosts[from].watermark;
            self.hosts[to].claims.insert(from, says);
            if from != to && says > self.hosts[to].watermark {
                self.sees_store(to);
            }
            self.told(to);
        }
    }

    /// The highest that other hosts have told this one, if it is more than it has seen itself.
    pub(super) fn highest_claim(&self, host: Id) -> Option<Claim> {
        let own = self.hosts[host].watermark;
        let claims = self.hosts[host].claims.iter().filter(|(_, w)| **w > own);
        claims.map(|(from, w)| Claim { watermark: *w, host: host_id(*from), relayed: false }).max()
    }

    /// Its replicas know what it has seen and was told.
    fn told(&mut self, host: Id) {
        let (own, claim) = (self.hosts[host].watermark, self.highest_claim(host));
        for rep in self.reps.iter_mut().filter(|rep| rep.host == host) {
            if let Some(m) = &mut rep.machine {
                m.handle_watermark(own);
                m.handle_claim(claim.map(|c| c.watermark));
            }
        }
    }

    pub(super) fn apply(&mut self, writer: SessionId, record: Record, snap: Option<SnapChange>) {
        let old = self.store.record.clone();
        let changed =
            old.owner != record.owner || old.in_sync().map(|e| e.rid).ne(record.in_sync().map(|e| e.rid));
        if self.plan.rollback > 0
            && !self.store.repaired
            && self.store.backup.is_none()
            && self.rng.chance(30)
        {
            let Store { record, revision, pools, keys, .. } = &self.store;
            let (record, pools, keys) = (record.clone(), pools.clone(), keys.clone());
            self.store.backup = Some(Backup { record, revision: *revision, pools, keys });
        }
        self.store.revision += 1;
        self.store.record_revision = self.store.revision;
        self.store.record = record;
        self.size_changed(old.size);
        let mark = |record: &Record| record.reverting.as_ref().map(|reverting| reverting.snap);
        match (mark(&old), mark(&self.store.record)) {
            (before, Some(id)) if before != Some(id) => self.revert_marked(id),
            (Some(id), None) => self.judge_reverted(id),
            _ => {}
        }
        if let Some(change) = snap {
            self.change_key(change);
        }
        let opened = self.store.record.owner != old.owner;
        let (epoch, owner) = (self.store.record.epoch, self.store.record.owner.map(|o| o.session));
        let members: Vec<Rid> = self.store.record.in_sync().map(|e| e.rid).collect();
        if changed {
            self.era(opened);
        }
        self.note(|w| {
            format!(
                "store: revision {}, epoch {epoch}, {}, in sync {}",
                w.store.revision,
                owner.map_or("no owner".into(), |o| format!("owner {}", session_name(o))),
                names(&members)
            )
        });
        self.judge_record(writer, &old);
        // Whoever watches is told, or not.
        for session in 0..self.sessions.len() {
            let s = &self.sessions[session];
            if s.machine.is_some()
                && s.id != writer
                && self.plan.watch > 0
                && self.rng.chance(self.plan.watch)
            {
                let (delay, revision) = (self.rng.delay(3 * MS), self.store.revision_of());
                self.at(delay, Event::Seen { session, revision });
            }
        }
    }

    pub(super) fn store_call(&mut self, session: Id, call: StoreCall) {
        let faulty = self.faults_on && self.rng.chance(self.plan.store_fault);
        let (host, writer) = (self.sessions[session].host, self.sessions[session].id);
        let down = !self.reaches_store(host);
        let seen = self.host_watermark();
        let known = self.hosts[host].watermark;
        let guarded = !self.broken.is(Mutation::NoWatermark);
        let slow = self.faults_on && self.plan.store_slow_ms > 0 && self.rng.chance(3);
        let reply_delay =
            self.rng.delay(2 * MS) + if slow { self.rng.below(self.plan.store_slow_ms) * MS } else { 0 };
        if down {
            let reply = if self.rng.chance(50) { StoreReply::Unavailable } else { StoreReply::Unknown };
            // A member that has lost the others takes it in, and may bring it through when they are back.
            if let (StoreReply::Unknown, StoreCall::Swap { expect, base, record, snap, .. }) = (&reply, &call)
                && !self.plan.store_members.is_empty()
                && self.rng.chance(30)
            {
                let late = self.rng.below(4000) * MS;
                let (record, snap) = (record.clone(), snap.clone());
                self.at(late, Event::LateSwap { writer, expect: *expect, base: *base, record, snap });
            }
            return self.at(300 * MS, Event::StoreAnswer { session, reply, watermark: None });
        }
        if guarded && seen < known {
            return self.at(
                reply_delay,
                Event::StoreAnswer { session, reply: StoreReply::RolledBack, watermark: None },
            );
        }
        let revision = self.store.revision_of();
        let (reply, watermark) = match call {
            StoreCall::Get if faulty => (StoreReply::Unknown, None),
            StoreCall::Get => {
                (StoreReply::Record { record: self.store.record.clone(), revision }, Some(seen))
            }
            StoreCall::Swap { expect, base, record, snap, .. } => {
                let matches = expect == revision && self.store.record.nonce == base;
                if faulty {
                    match self.rng.below(4) {
                        0 => {
                            return self.at(
                                300 * MS,
                                Event::StoreAnswer {
                                    session,
                                    reply: StoreReply::Unavailable,
                                    watermark: None,
                                },
                            );
                        }
                        1 => {}
                        2 => {
                            let late = self.rng.below(4000) * MS;
                            self.at(late, Event::LateSwap { writer, expect, base, record, snap });
                        }
                        _ => {
                            if matches {
                                self.apply(writer, record, snap);
                            }
                        }
                    }
                    (StoreReply::Unknown, None)
                } else if matches {
                    self.apply(writer, record, snap);
                    (StoreReply::Swapped { revision: self.store.revision_of() }, Some(self.host_watermark()))
                } else {
                    (StoreReply::Conflict { record: self.store.record.clone(), revision }, Some(seen))
                }
            }
        };
        let delay = if reply == StoreReply::Unknown { 300 * MS } else { reply_delay };
        self.at(delay, Event::StoreAnswer { session, reply, watermark });
    }

    /// `weft store repair`: the record with the highest (epoch, rev) that replicas keep, epochs raised (R11).
    pub(super) fn repair(&mut self) {
        if !self.store.rolled_back {
            return;
        }
        // A pool that waits for a store it can believe tells its records all the same. A disk in the wrong host does not.
        let silent =
            |r: &Rep| (r.machine.is_none() && r.start.is_none() || r.foreign.is_some()) && !r.is_gone();
        if self.reps.iter().any(silent) {
            return self.at(500 * MS, Event::Repair);
        }
        let copies = self
            .reps
            .iter()
            .filter(|r| !r.is_gone() && !r.put_back)
            .filter_map(|r| Record::parse(&r.stored.durable.record).ok());
        let mut best = copies.max_by_key(Record::version).unwrap_or_else(|| self.store.record.clone());
        if best.version() < self.store.record.version() {
            best = self.store.record.clone();
        }
        // Whoever the best copy names must have told its own, in sync or not, else an operator has to assent: a later
        // record may exist there alone (4.15; docs/model.md, finding 9). This one knows what was on the disks, and
        // assents where it costs nothing; where the only copies of a later record are gone, the volume waits.
        let later = |r: &Rep| (r.is_gone() || r.put_back) && r.promised_max > best.epoch;
        let missing = self.reps.iter().find(|r| later(r) && best.replica(r.rid).is_some()).map(|r| r.rid);
        self.store.needs_assent = missing.is_some();
        if let Some(rid) = missing {
            self.note(|_| {
                format!("no repair of the store without an operator's assent: {rid} tells no record")
            });
            return self.at(500 * MS, Event::Repair);
        }
        if let Some(what) = self.judge_size(best.size) {
            return self.fail(what);
        }
        if !self.broken.is(Mutation::NoWatermark) {
            best.epoch = Epoch(best.epoch.0 + REPAIR_EPOCH_JUMP);
        }
        best.rev.0 += 1;
        best.owner = None;
        best.clean = false;
        best.nonce = Nonce(u128::from(self.rng.number()));
        best.snaps = self.repair_keys();
        self.store.incarnation += 1;
        self.store.revision += 1;
        self.store.record_revision = self.store.revision;
        self.store.record = best;
        self.repair_pools();
        self.store.rolled_back = false;
        self.store.repaired = true;
        self.store.backup = None;
        let w = self.host_watermark();
        for host in &mut self.hosts {
            host.watermark = host.watermark.max(w);
        }
        for rep in &mut self.reps {
            if let Some(m) = &mut rep.machine {
                m.handle_watermark(w);
            }
        }
        self.note(|w| format!("the store is repaired: epoch {}", w.store.record.epoch));
        self.judge_reported();
        let host = self.any_owner();
        self.at(MS, Event::Open { host, steal: true });
    }
}

impl World {
    /// A swap of another size, if it is: what is beyond a new end is forgotten when somebody is told of that.
    fn size_changed(&mut self, old: u64) {
        let size = self.store.record.size;
        if size == old || self.store.rolled_back {
            return;
        }
        (self.store.told, self.store.cut_off) = (None, None);
        self.note(|_| format!("store: the volume has {} blocks, after {}", size / BLOCK, old / BLOCK));
        if size < old {
            match self.oracle.cut(2 * size / BLOCK) {
                Ok(beyond) => self.store.cut_off = Some((size, beyond)),
                Err(what) => self.fail(what),
            }
        }
    }

    /// R25: the store is repaired from a record with this size.
    fn judge_size(&mut self, size: u64) -> Option<String> {
        if self.store.told.is_some_and(|told| told != size) {
            let told = self.store.told.unwrap_or_default() / BLOCK;
            let now = size / BLOCK;
            return Some(format!("R25: somebody was told of {told} blocks, a repair makes them {now}"));
        }
        if let Some((end, beyond)) = self.store.cut_off.take()
            && size > end
        {
            // Nobody was told of the shrink, and it did not happen.
            self.oracle.uncut(beyond);
        }
        let beyond = self.oracle.told_beyond(2 * size / BLOCK)?;
        Some(format!("R25: {} was answered, a repair ends the volume before it", self.oracle.name(beyond)))
    }

    /// The keys of pools are raised to the highest incarnation that anybody knows of (R10; docs/adr/0012).
    fn repair_pools(&mut self) {
        for r in self.reps.iter().filter(|r| !r.is_gone()) {
            let disk = r.start.as_ref().map_or(r.stored.superblock, |start| *start.machine.superblock()).inc;
            let served = self.hosts[r.host].served.get(&r.pool).copied().unwrap_or_default();
            let named = self.store.record.replica(r.rid).map(|e| e.pool_inc).unwrap_or_default();
            let known = disk.max(served).max(named);
            let stored = self.store.pools.get(&r.pool).map(|(stored, _)| stored.inc).unwrap_or_default();
            if self.plan.pool_starts && known > stored {
                self.store.revision += 1;
                let key = StoredPool { host: host_id(r.host), inc: known, intent: None };
                self.store.pools.insert(r.pool, (key, self.store.revision));
            }
        }
    }
}

impl Store {
    pub(super) fn revision_of(&self) -> Revision {
        Revision(self.record_revision)
    }
}
