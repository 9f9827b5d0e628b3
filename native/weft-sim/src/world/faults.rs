//! Faults, drawn by the weights of the plan.

use super::*;

impl World {
    /// It is taken over when it is done, or when it takes too long.
    pub(super) fn caretake(&mut self, task: Task) {
        let host = self.any_owner();
        self.at(0, Event::Caretake { host, task });
        let host = self.any_owner();
        let longest = if matches!(task, Task::Revert(_)) { 12_000 } else { 3000 };
        let delay = (500 + self.rng.below(longest)) * MS;
        self.at(delay, Event::Open { host, steal: true });
    }

    pub(super) fn fault(&mut self) {
        if !self.faults_on {
            return;
        }
        let plan = self.plan.clone();
        let dice = |w: &mut World, weight: u64| weight > 0 && w.rng.below(1000) < weight;
        let any = |w: &mut World| w.rng.index(w.reps.len());
        if dice(self, plan.kill_replica) || dice(self, plan.power_off / 2) {
            let rep = any(self);
            self.stop_replica(rep, Stop::Kill);
            if self.rng.chance(50) {
                self.after_stop(rep);
            }
            let delay = self.rng.below(3000) * MS;
            self.at(delay, Event::Restart { rep });
        }
        if dice(self, plan.kill_host) {
            let host = self.rng.index(plan.hosts);
            self.stop_host(host, Stop::Kill);
        }
        if dice(self, plan.reboot) {
            let host = self.rng.index(plan.hosts);
            self.stop_host(host, Stop::Clean);
        }
        if dice(self, plan.power_off) {
            let rep = any(self);
            let host = self.reps[rep].host;
            self.stop_host(host, Stop::Power);
        }
        if dice(self, plan.power_off / 3) {
            // Every disk, with its host or alone: owners may live on.
            let hosts = self.rng.chance(50);
            for rep in 0..self.reps.len() {
                if hosts {
                    self.stop_host(self.reps[rep].host, Stop::Power);
                } else {
                    self.stop_replica(rep, Stop::Power);
                    let delay = (200 + self.rng.below(4000)) * MS;
                    self.at(delay, Event::Restart { rep });
                }
            }
        }
        if dice(self, plan.power_off_all) {
            for host in 0..plan.hosts {
                self.stop_host(host, Stop::Power);
            }
        }
        if dice(self, plan.kill_owner) {
            self.kill_sessions();
        }
        if dice(self, plan.steal) {
            let host = self.any_owner();
            self.at(0, Event::Open { host, steal: true });
        }
        if dice(self, plan.close) {
            for session in 0..self.sessions.len() {
                let now = self.clock(self.sessions[session].host);
                if let Some(m) = &mut self.sessions[session].machine {
                    let _ = m.close(now);
                    self.drain_session(session);
                }
            }
        }
        if dice(self, plan.pause_host) {
            let host = self.rng.index(plan.hosts);
            let ms = if self.rng.chance(30) { 5000 } else { 800 };
            self.hosts[host].paused_until = self.now + self.rng.below(ms) * MS;
            self.note(|_| format!("h{} is stopped for a while", host + 1));
        }
        if plan.hosts > 1 && dice(self, plan.cut) {
            let (from, to) = (self.rng.index(plan.hosts), self.rng.index(plan.hosts));
            if from != to {
                let ms = 100 + self.rng.below(4000);
                let both = self.rng.chance(70);
                self.cut(from, to, ms);
                if both {
                    self.cut(to, from, ms);
                }
            }
        }
        if plan.hosts > 1 && dice(self, plan.slow_link) {
            let (from, to) = (self.rng.index(plan.hosts), self.rng.index(plan.hosts));
            if from != to && self.slow.insert((from, to)) {
                self.note(|_| format!("the link from h{} to h{} is slow", from + 1, to + 1));
                let delay = (100 + self.rng.below(5000)) * MS;
                self.at(delay, Event::Hurry { from, to });
            }
        }
        if dice(self, plan.store_outage) {
            self.store.down_until = self.now + self.rng.below(4000) * MS;
            self.note(|_| "the store is away".into());
        }
        self.disk_faults();
        if dice(self, plan.add_replica) {
            self.add_spare();
        }
        if dice(self, plan.remove_replica) {
            let entries: Vec<Rid> = self.store.record.replicas.iter().map(|e| e.rid).collect();
            let rid = entries[self.rng.index(entries.len())];
            self.for_owner(|m, now| m.remove_replica(now, rid));
        }
        if dice(self, plan.grow) && self.store.record.size < SIZE {
            let left = (SIZE - self.store.record.size) / BLOCK;
            let size = self.store.record.size + (1 + self.rng.below(left)) * BLOCK;
            self.for_owner(|m, now| m.resize(now, size, false));
        }
        if dice(self, plan.shrink) {
            let blocks = self.rng.below(self.plan.size) + 1;
            self.caretake(Task::Shrink(blocks * BLOCK));
        }
        self.snapshot_faults();
        if dice(self, plan.rollback) {
            self.roll_store_back();
        }
        if dice(self, plan.scrub) {
            // As fast as it goes, or for seconds: then it meets whatever else happens.
            let rate = if self.rng.chance(50) { None } else { Some(32 * 1024 + self.rng.below(256 * 1024)) };
            let stops = self.rng.chance(10);
            self.note(|_| if stops { "a scrub is to stop".into() } else { "a scrub is asked for".into() });
            self.for_owner(|m, now| match stops {
                true => m.stop_scrub(now),
                false => drop(m.scrub(now, rate)),
            });
        }
        let alive = self.sessions.iter().filter(|s| s.machine.is_some()).count();
        if alive == 0 {
            let host = self.any_owner();
            self.at(0, Event::Open { host, steal: true });
        }
        let delay = 1 + self.rng.delay(plan.fault_every_ms * MS);
        self.at(delay, Event::Fault);
    }

    /// What happens to disks and to pools' directories.
    fn disk_faults(&mut self) {
        let plan = self.plan.clone();
        let dice = |w: &mut World, weight: u64| weight > 0 && w.rng.below(1000) < weight;
        if dice(self, plan.stall_disk) {
            let rep = self.rng.index(self.reps.len());
            self.reps[rep].stalled_until = self.now + self.rng.below(2500) * MS;
            let rid = self.reps[rep].rid;
            self.note(|_| format!("the disk of {rid} stalls"));
        }
        if dice(self, plan.full) {
            let rep = self.rng.index(self.reps.len());
            self.reps[rep].stored.media.full = true;
            let rid = self.reps[rep].rid;
            self.note(|_| format!("the disk of {rid} is full"));
            let delay = self.rng.below(6000) * MS;
            self.at(delay, Event::Space { rep });
        }
        for (weight, bad) in [(plan.latent_error, Bad::Unreadable), (plan.bit_rot, Bad::Wrong)] {
            if dice(self, weight) {
                let rep = self.rng.index(self.reps.len());
                let block = self.rng.below(plan.blocks) as usize;
                if self.may_spoil(rep, block) && self.reps[rep].stored.media.spoil(block, bad) {
                    let rid = self.reps[rep].rid;
                    self.note(|_| match bad {
                        Bad::Unreadable => format!("{rid} can't read block {block} any more"),
                        _ => format!("{rid} has rotten bits in block {block}"),
                    });
                }
            }
        }
        if dice(self, plan.roll_back_pool) {
            let rep = self.rng.index(self.reps.len());
            let r = &mut self.reps[rep];
            if r.image.is_none() && !r.is_gone() && !r.put_back {
                r.image = Some(Box::new(r.stored.clone()));
            }
        }
        if dice(self, plan.swap_disks) {
            let can = |r: &Rep| !r.is_gone() && !r.put_back && r.foreign.is_none();
            let all: Vec<Id> = (0..self.reps.len()).filter(|rep| can(&self.reps[*rep])).collect();
            if let [first, .., last] = all[..] {
                self.swap_disks(first, last);
            }
        }
        if dice(self, plan.lose_disk)
            && let Some(rep) = self.one_that_may_go()
        {
            self.stop_replica(rep, Stop::Kill);
            self.reps[rep].lost = true;
            let rid = self.reps[rep].rid;
            self.note(|_| format!("the disk of {rid} is gone for good"));
        }
    }

    /// An in-sync copy without which another one is left; one disk at a time is gone for good.
    fn one_that_may_go(&mut self) -> Option<Id> {
        if self.reps.iter().any(|r| r.is_gone() || r.put_back) {
            return None;
        }
        let in_sync: Vec<Rid> = self.store.record.in_sync().map(|e| e.rid).collect();
        if in_sync.len() < 2 {
            return None;
        }
        let rid = in_sync[self.rng.index(in_sync.len())];
        self.rep_of(rid)
    }

    /// A process is down: its pool's directory may be put back to an older image.
    fn after_stop(&mut self, rep: Id) {
        let known = self.store.record.replica(self.reps[rep].rid).is_some();
        let alone = self.store.record.in_sync().all(|e| e.rid == self.reps[rep].rid);
        let one_at_a_time = !self.reps.iter().any(|r| r.is_gone() || r.put_back);
        // With caches lost and a copy gone as well, waiting for an operator is right: nothing to show.
        if known && !alone && one_at_a_time && !self.plan.cached && self.reps[rep].foreign.is_none() {
            self.put_back(rep);
        }
    }

    /// A host's processes end, with the power or without; it comes back after a while.
    pub(super) fn stop_host(&mut self, host: Id, how: Stop) {
        if !self.hosts[host].powered {
            return;
        }
        self.note(|_| {
            let how = match how {
                Stop::Kill => "'s weft is killed",
                Stop::Power => " loses power",
                Stop::Clean => " is rebooted",
            };
            format!("h{}{how}", host + 1)
        });
        for session in 0..self.sessions.len() {
            if self.sessions[session].host == host {
                self.sessions[session].machine = None;
            }
        }
        for rep in 0..self.reps.len() {
            if self.reps[rep].host == host {
                self.stop_replica(rep, how);
            }
        }
        if how == Stop::Kill {
            for rep in (0..self.reps.len()).filter(|rep| self.reps[*rep].host == host).collect::<Vec<_>>() {
                let delay = self.rng.below(3000) * MS;
                self.at(delay, Event::Restart { rep });
            }
            return;
        }
        self.hosts[host].powered = false;
        let delay = (200 + self.rng.below(4000)) * MS;
        self.at(delay, Event::PowerOn { host });
    }

    pub(super) fn power_on(&mut self, host: Id) {
        if self.hosts[host].powered {
            return;
        }
        self.hosts[host].powered = true;
        self.hosts[host].paused_until = self.now;
        self.note(|_| format!("h{} has power", host + 1));
        for rep in 0..self.reps.len() {
            if self.reps[rep].host == host {
                self.start_replica(rep);
            }
        }
    }

    /// The store is restored from a backup, and repaired later.
    fn roll_store_back(&mut self) {
        if self.store.repaired {
            return;
        }
        let Some(Backup { record, revision, pools, keys }) = self.store.backup.take() else { return };
        if record.epoch >= self.store.record.epoch {
            return;
        }
        // A rollback is noticed only by who has met the lost revisions (docs/model.md, finding 3). weft's own
        // restore marks the store; one by other means is told by hosts that had read it since the backup.
        let seen = self.host_watermark();
        for host in self.hosts.iter_mut().filter(|_| self.plan.all_hosts_know) {
            host.watermark = host.watermark.max(seen);
        }
        self.store.record = record;
        (self.store.pools, self.store.keys) = (pools, keys);
        (self.store.revision, self.store.record_revision) = (revision, revision);
        self.store.rolled_back = true;
        self.note(|w| format!("the store is restored from a backup: epoch {}", w.store.record.epoch));
        let delay = (500 + self.rng.below(3000)) * MS;
        self.at(delay, Event::Repair);
        let host = self.any_owner();
        self.at(MS, Event::Open { host, steal: true });
    }

    /// A disk that is gone for good is replaced, as an agent would, until enough copies are there.
    pub(super) fn replace_lost(&mut self) {
        // One whose pool was put back is known for that when it starts.
        let alive =
            |w: &World, rid: Rid| w.rep_of(rid).is_some_and(|r| !w.reps[r].is_gone() && !w.reps[r].put_back);
        let record = self.store.record.clone();
        let in_sync = record.in_sync().filter(|e| alive(self, e.rid)).count();
        let coming = record.replicas.iter().any(|e| e.state == ReplicaState::Stale && alive(self, e.rid));
        if in_sync >= usize::from(self.plan.min_isr) {
            return;
        }
        if !coming {
            self.plan.spares += 1;
            self.add_spare();
        }
        self.at(1000 * MS, Event::ReplaceLost);
    }

    pub(super) fn add_spare(&mut self) {
        // One that was made and whose request was lost is asked for again, as an agent does.
        let made = self.reps.iter().position(|r| !r.is_gone() && r.rid.0 >= self.store.record.next_rid);
        if let Some(rep) = made {
            let (rid, host, pool) = (self.reps[rep].rid, self.reps[rep].host, self.reps[rep].pool);
            return self.for_owner(|m, now| m.add_replica(now, rid, host_id(host), pool));
        }
        let used: Vec<Id> = self.reps.iter().filter(|r| !r.is_gone()).map(|r| r.host).collect();
        let free: Vec<Id> = (0..self.plan.data_hosts).filter(|h| !used.contains(h)).collect();
        if free.is_empty() || self.reps.len() >= self.plan.copies + self.plan.spares {
            return;
        }
        let host = free[self.rng.index(free.len())];
        let rid =
            Rid(self.store.record.next_rid.max(self.reps.iter().map(|r| r.rid.0 + 1).max().unwrap_or(1)));
        let rep = self.make_replica(rid, host);
        let pool = self.reps[rep].pool;
        self.note(|_| format!("{rid} is made on h{}", host + 1));
        self.for_owner(|m, now| m.add_replica(now, rid, host_id(host), pool));
    }
}
