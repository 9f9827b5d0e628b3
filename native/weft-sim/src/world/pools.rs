//! Pools start by the store (R10), go back in time and come into the wrong host; each must be known for what it is.

use super::*;

impl World {
    pub(super) fn new_superblock(rep: Id, host: Id) -> Superblock {
        Superblock {
            pool: pool_id(rep),
            cluster: CLUSTER,
            host: host_id(host),
            inc: PoolInc(0),
            intent: None,
            segment_bytes: SEGMENT_BYTES,
            log_blocks: 4096,
            created: 0,
            counter: 1,
        }
    }

    /// A start of a pool by the store, or its next try.
    pub(super) fn start_pool(&mut self, rep: Id) {
        let r = &self.reps[rep];
        let superblock = r.foreign.unwrap_or(r.stored.superblock);
        let served = self.hosts[r.host].served.get(&r.pool).copied().unwrap_or_default();
        if r.foreign.is_none() && superblock.inc < served {
            return self.quarantine(rep, "its disk is behind what the host has served");
        }
        let fresh = Nonce(u128::from(self.rng.number()));
        let machine = PoolStart::new(superblock, CLUSTER, host_id(self.reps[rep].host), fresh);
        self.reps[rep].start = Some(Starting { machine, read: (0, None) });
        self.pool_step(rep);
    }

    /// What a starting pool does next.
    pub(super) fn pool_step(&mut self, rep: Id) {
        let r = &mut self.reps[rep];
        let (inc, rid) = (r.inc, r.rid);
        let Some(start) = &r.start else { return };
        match start.machine.action() {
            PoolAction::ReadStore => {
                let delay = self.rng.delay(2 * MS);
                self.at(delay, Event::PoolRead { rep, inc });
            }
            PoolAction::WriteSuperblock(_) => {
                let delay = self.rng.delay(200_000);
                self.at(delay, Event::PoolWritten { rep, inc });
            }
            PoolAction::Swap { .. } => {
                let delay = self.rng.delay(2 * MS);
                self.at(delay, Event::PoolSwap { rep, inc });
            }
            PoolAction::Serve(pool_inc) => {
                r.start = None;
                let kept = self.hosts[r.host].logs.get(&r.pool).copied().unwrap_or(0);
                if r.stored.log_seq < kept {
                    return self.quarantine(rep, "its log is behind what the host has kept of it");
                }
                if r.put_back {
                    return self.fail(format!("I19: {rid} serves from a pool that went back in time"));
                }
                if r.foreign.is_some() {
                    return self.fail(format!("I19: {rid} serves from another host's disk"));
                }
                self.hosts[r.host].served.insert(r.pool, pool_inc);
                self.serve(rep, pool_inc);
            }
            // The store knows less than the disk: it is looked at again, it may be repaired.
            PoolAction::Quarantine(PoolRefusal::StoreBehind { .. } | PoolRefusal::Unknown { .. })
                if self.store.rolled_back =>
            {
                self.at(500 * MS, Event::PoolAgain { rep, inc });
            }
            PoolAction::Quarantine(reason) => self.quarantine(rep, &reason.to_string()),
        }
    }

    /// The store is looked at again for a pool of which it knew too little.
    pub(super) fn pool_again(&mut self, rep: Id, inc: u64) {
        if self.reps[rep].inc == inc && self.reps[rep].start.take().is_some() {
            self.start_pool(rep);
        }
    }

    pub(super) fn pool_read(&mut self, rep: Id, inc: u64) {
        if self.reps[rep].inc != inc || self.reps[rep].start.is_none() {
            return;
        }
        let host = self.reps[rep].host;
        if !self.reaches_store(host) || self.host_watermark() < self.hosts[host].watermark {
            return self.at(300 * MS, Event::PoolRead { rep, inc });
        }
        let stored = self.store.pools.get(&self.reps[rep].pool).copied();
        if let Some(start) = &mut self.reps[rep].start {
            start.read = stored.map_or((0, None), |(pool, revision)| (revision, Some(pool)));
            start.machine.handle_store(stored.map(|(pool, _)| pool));
        }
        self.pool_step(rep);
    }

    pub(super) fn pool_written(&mut self, rep: Id, inc: u64) {
        let r = &mut self.reps[rep];
        if r.inc != inc {
            return;
        }
        let Some(start) = &mut r.start else { return };
        r.stored.superblock = *start.machine.superblock();
        start.machine.handle_written();
        self.pool_step(rep);
    }

    pub(super) fn pool_swap(&mut self, rep: Id, inc: u64) {
        let r = &self.reps[rep];
        let Some(start) = r.start.as_ref().filter(|_| r.inc == inc) else { return };
        let PoolAction::Swap { inc: raised, intent } = start.machine.action() else { return };
        let (pool, compared) = (r.pool, start.read);
        // The swap looks first: it is not sent to a store that went back.
        if self.host_watermark() < self.hosts[r.host].watermark {
            return self.at(300 * MS, Event::PoolSwap { rep, inc });
        }
        let stored = StoredPool { host: host_id(r.host), inc: raised, intent: Some(intent) };
        let faulty = self.faults_on && self.rng.chance(self.plan.store_fault);
        // weftd looks before each swap whether the store may be believed.
        let believed =
            self.host_watermark() >= self.hosts[r.host].watermark || self.broken.is(Mutation::NoWatermark);
        let outcome = match (self.reaches_store(r.host) && believed, faulty) {
            (true, false) if self.raise_pool(pool, compared, stored) => PoolSwapOutcome::Done,
            (true, false) => PoolSwapOutcome::Lost,
            (false, _) => PoolSwapOutcome::Unknown,
            (true, true) => {
                match self.rng.below(3) {
                    0 => drop(self.raise_pool(pool, compared, stored)),
                    1 => {
                        let late = self.rng.below(4000) * MS;
                        self.at(late, Event::LatePoolSwap { pool, compared, stored });
                    }
                    _ => {}
                }
                PoolSwapOutcome::Unknown
            }
        };
        let delay = if outcome == PoolSwapOutcome::Unknown { 300 * MS } else { self.rng.delay(MS) };
        self.at(delay, Event::PoolSwapped { rep, inc, outcome });
    }

    pub(super) fn pool_swapped(&mut self, rep: Id, inc: u64, outcome: PoolSwapOutcome) {
        let r = &mut self.reps[rep];
        if r.inc != inc {
            return;
        }
        let Some(start) = &mut r.start else { return };
        start.machine.handle_swap(outcome);
        self.pool_step(rep);
    }

    /// The store compares and swaps a pool's key: its value too, since a restored store counts its revisions anew.
    pub(super) fn raise_pool(
        &mut self,
        pool: PoolId,
        compared: (u64, Option<StoredPool>),
        stored: StoredPool,
    ) -> bool {
        let there =
            self.store.pools.get(&pool).map_or((0, None), |(there, revision)| (*revision, Some(*there)));
        if there != compared {
            return false;
        }
        self.store.revision += 1;
        let revision = self.store.revision;
        self.store.pools.insert(pool, (stored, revision));
        true
    }

    fn quarantine(&mut self, rep: Id, why: &str) {
        let r = &mut self.reps[rep];
        r.start = None;
        let (rid, foreign) = (r.rid, r.foreign.is_some());
        if !foreign && !r.put_back {
            return self.fail(format!("{rid} is quarantined although its pool is sound: {why}"));
        }
        r.quarantined = !foreign;
        self.note(|_| format!("{rid} is quarantined: {why}"));
        // A process answers for it, with a refusal.
        self.serve(rep, PoolInc(0));
        if let Some(m) = &mut self.reps[rep].machine {
            m.handle_quarantine();
        }
    }

    /// The pool's directory is put back to an older image while nobody serves it.
    pub(super) fn put_back(&mut self, rep: Id) {
        let Some(image) = self.reps[rep].image.take() else { return };
        let r = &mut self.reps[rep];
        // An image that lacks no record of the log can't be told from the present: said in docs/RELIABILITY.md.
        if image.log_seq == r.stored.log_seq {
            return;
        }
        r.stored = *image;
        r.put_back = true;
        let rid = r.rid;
        self.note(|_| format!("the directory of {rid} is put back to an older image"));
    }

    /// Two hosts' disks are exchanged, and changed back later.
    pub(super) fn swap_disks(&mut self, a: Id, b: Id) {
        let (first, second) = (self.reps[a].rid, self.reps[b].rid);
        self.note(|_| format!("the disks of {first} and {second} are exchanged"));
        let ms = 500 + self.rng.below(4000);
        for (rep, other) in [(a, b), (b, a)] {
            self.stop_replica(rep, Stop::Kill);
            self.reps[rep].foreign = Some(self.reps[other].stored.superblock);
        }
        for rep in [a, b] {
            self.start_replica(rep);
            self.at(ms * MS, Event::SwapBack { rep });
        }
    }

    pub(super) fn swap_back(&mut self, rep: Id) {
        if self.reps[rep].foreign.is_none() {
            return;
        }
        self.stop_replica(rep, Stop::Kill);
        self.reps[rep].foreign = None;
        let rid = self.reps[rep].rid;
        self.note(|_| format!("{rid} has its own disk again"));
        self.start_replica(rep);
    }
}
