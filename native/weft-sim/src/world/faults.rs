//! Faults, drawn by the weights of the plan.

use super::*;

impl World {
    pub(super) fn fault(&mut self) {
        if !self.faults_on {
            return;
        }
        let plan = self.plan.clone();
        let dice = |w: &mut World, weight: u64| w.rng.below(1000) < weight;
        if dice(self, plan.kill_replica) || dice(self, plan.power_off / 2) {
            let rep = self.rng.index(self.reps.len());
            self.stop_replica(rep, false);
            let delay = self.rng.below(3000) * MS;
            self.at(delay, Event::Restart { rep });
        }
        if dice(self, plan.power_off) {
            // One host, or all of them.
            let all = self.rng.chance(30);
            let one = self.rng.index(self.reps.len());
            for rep in 0..self.reps.len() {
                if all || rep == one {
                    self.stop_replica(rep, true);
                    let delay = (200 + self.rng.below(4000)) * MS;
                    self.at(delay, Event::Restart { rep });
                }
            }
            if all && self.rng.chance(50) {
                self.kill_sessions();
            }
        }
        if dice(self, plan.kill_owner) {
            self.kill_sessions();
        }
        if dice(self, plan.steal) {
            let host = self.rng.index(plan.hosts);
            self.at(0, Event::Open { host, steal: true });
        }
        if dice(self, plan.close) {
            for session in 0..self.sessions.len() {
                if let Some(m) = &mut self.sessions[session].machine {
                    let _ = m.close(Instant(self.now));
                    self.drain_session(session);
                }
            }
        }
        if dice(self, plan.pause_host) {
            let host = self.rng.index(plan.hosts);
            let ms = if self.rng.chance(30) { 5000 } else { 800 };
            self.hosts[host].paused_until = self.now + self.rng.below(ms) * MS;
            self.note(|_| format!("host {host} is stopped"));
        }
        if dice(self, plan.cut) && plan.hosts > 1 {
            let from = self.rng.index(plan.hosts);
            let to = self.rng.index(plan.hosts);
            if from != to {
                let ms = 100 + self.rng.below(4000);
                let both = self.rng.chance(70);
                self.cut(from, to, ms);
                if both {
                    self.cut(to, from, ms);
                }
            }
        }
        if dice(self, plan.store_outage) {
            self.store.down_until = self.now + self.rng.below(4000) * MS;
            self.note(|_| "the store is away".into());
        }
        if dice(self, plan.stall_disk) {
            let rep = self.rng.index(self.reps.len());
            self.reps[rep].stalled_until = self.now + self.rng.below(2500) * MS;
            let rid = self.reps[rep].rid;
            self.note(|_| format!("the disk of {rid} stalls"));
        }
        if dice(self, plan.lose_disk) && self.reps.iter().filter(|r| r.lost).count() == 0 {
            let in_sync: Vec<Rid> = self.store.record.in_sync().map(|e| e.rid).collect();
            if in_sync.len() > 1 {
                let rid = in_sync[self.rng.index(in_sync.len())];
                if let Some(rep) = self.rep_of(rid) {
                    self.stop_replica(rep, false);
                    self.reps[rep].lost = true;
                    self.note(|_| format!("the disk of {rid} is gone for good"));
                }
            }
        }
        if dice(self, plan.add_replica) {
            self.add_spare();
        }
        if dice(self, plan.remove_replica) {
            let entries: Vec<Rid> = self.store.record.replicas.iter().map(|e| e.rid).collect();
            let rid = entries[self.rng.index(entries.len())];
            self.for_owner(|m, now| m.remove_replica(now, rid));
        }
        if !self.store.repaired
            && dice(self, plan.rollback)
            && let Some((record, revision)) = self.store.backup.take()
            && record.epoch < self.store.record.epoch
        {
            // A rollback is noticed only by who has met the lost revisions (docs/model.md, finding 3). weft's own
            // restore marks the store; one by other means is told by hosts that had read it since the backup.
            let seen = self.host_watermark();
            for host in self.hosts.iter_mut().filter(|_| plan.all_hosts_know) {
                host.watermark = host.watermark.max(seen);
            }
            self.store.record = record;
            self.store.revision = revision;
            self.store.rolled_back = true;
            self.note(|w| format!("the store is restored from a backup: epoch {}", w.store.record.epoch));
            let delay = (500 + self.rng.below(3000)) * MS;
            self.at(delay, Event::Repair);
            let host = self.rng.index(plan.hosts);
            self.at(MS, Event::Open { host, steal: true });
        }
        let alive = self.sessions.iter().filter(|s| s.machine.is_some()).count();
        if alive == 0 {
            let host = self.rng.index(plan.hosts);
            self.at(0, Event::Open { host, steal: true });
        }
        let delay = 1 + self.rng.delay(plan.fault_every_ms * MS);
        self.at(delay, Event::Fault);
    }

    /// A disk that is gone for good is replaced, as an agent would, until enough copies are there.
    pub(super) fn replace_lost(&mut self) {
        let alive = |w: &World, rid: Rid| w.rep_of(rid).is_some_and(|r| !w.reps[r].lost);
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
        let made = self.reps.iter().find(|r| !r.lost && r.rid.0 >= self.store.record.next_rid);
        if let Some((rid, host)) = made.map(|r| (r.rid, r.host)) {
            return self.for_owner(|m, now| m.add_replica(now, rid, host_id(host), pool_id(host)));
        }
        let used: Vec<Id> = self.reps.iter().filter(|r| !r.lost).map(|r| r.host).collect();
        let free: Vec<Id> = (0..self.plan.hosts).filter(|h| !used.contains(h)).collect();
        if free.is_empty() || self.reps.len() >= self.plan.copies + self.plan.spares {
            return;
        }
        let host = free[self.rng.index(free.len())];
        let rid =
            Rid(self.store.record.next_rid.max(self.reps.iter().map(|r| r.rid.0 + 1).max().unwrap_or(1)));
        self.make_replica(rid, host);
        self.note(|_| format!("{rid} is made on host {host}"));
        self.for_owner(|m, now| m.add_replica(now, rid, host_id(host), pool_id(host)));
    }
}
