//! The end of a run: everything is healed, and liveness is demanded (I30).

use super::*;

impl World {
    pub(super) fn heal_all(&mut self) {
        self.note(|_| "everything is healed".into());
        self.faults_on = false;
        self.cuts.clear();
        self.store.down_until = 0;
        for host in &mut self.hosts {
            host.paused_until = self.now;
        }
        for rep in 0..self.reps.len() {
            self.reps[rep].stalled_until = 0;
            self.start_replica(rep);
        }
        if self.store.rolled_back {
            self.repair();
        }
        self.relink_all();
    }

    /// Liveness (I30): a steal opens, every block can be read, every copy comes back in sync, a close is clean,
    /// and then all copies are equal.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        let old: Vec<Id> = (0..self.sessions.len()).collect();
        for session in old {
            if self.rng.chance(50) {
                self.sessions[session].machine = None;
            }
        }
        let host = self.rng.index(self.plan.hosts);
        self.at(10 * MS, Event::Open { host, steal: true });
        if self.reps.iter().any(|r| r.lost) {
            self.at(3000 * MS, Event::ReplaceLost);
        }
        let limit = self.now + LIVENESS_MS * MS;
        let opened = |w: &World| {
            w.sessions
                .iter()
                .any(|s| s.machine.as_ref().is_some_and(|m| w.is_owner(m) && m.view().phase == "serving"))
        };
        self.until(limit, "a healed cluster does not serve", opened)?;
        let session = self.owner_session();
        let Some(session) = session else { return Err(self.report("no owner after healing")) };
        let blocks = self.plan.blocks;
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let now = self.now;
        self.sessions[session].guests.insert(id, Asked::Read { first: 0, called: now });
        if let Some(m) = &mut self.sessions[session].machine {
            m.submit(Instant(now), id, GuestOp::Read { offset: 0, len: blocks * BLOCK });
        }
        self.drain_session(session);
        let limit = self.now + LIVENESS_MS * MS;
        self.until(limit, "a guest's requests hang in a healed cluster", |w| {
            w.sessions[session].guests.is_empty()
        })?;
        let lost: BTreeSet<Rid> = self.reps.iter().filter(|r| r.lost).map(|r| r.rid).collect();
        let limit = self.now + LIVENESS_MS * MS;
        self.until(limit, "a copy does not come back in sync", |w| {
            w.store.record.replicas.iter().all(|e| lost.contains(&e.rid) || e.state == ReplicaState::InSync)
        })?;
        if let Err(what) = self.oracle.check() {
            return Err(self.report(&what));
        }
        if self.sessions[session].machine.is_some() {
            let limit = self.now + LIVENESS_MS * MS;
            self.until(limit, "a close does not end", |w| {
                w.sessions[session].machine.is_none()
                    || w.store.record.in_sync().count() > 0
                        && w.sessions[session].machine.as_ref().is_some_and(|m| m.view().dirty_regions == 0)
            })?;
            let limit = self.now + LIVENESS_MS * MS;
            loop {
                // Refused while a member is waited for: asked again a little later.
                let accepted =
                    self.sessions[session].machine.as_mut().is_none_or(|m| m.close(Instant(self.now)));
                self.drain_session(session);
                let later = self.now + 100 * MS;
                self.run_until(|w| w.now > later || w.sessions[session].machine.is_none())?;
                if accepted || self.now > limit {
                    break;
                }
            }
            self.until(limit, "a close does not end", |w| w.sessions[session].machine.is_none())?;
            if !self.store.record.clean && self.store.record.owner.is_none() {
                return Err(self.report("a close left a record that is not clean"));
            }
        }
        self.check_equal()
    }

    pub(super) fn until(
        &mut self,
        limit: u64,
        what: &str,
        done: impl Fn(&World) -> bool,
    ) -> Result<(), String> {
        self.run_until(|w| done(w) || w.now > limit)?;
        if done(self) { Ok(()) } else { Err(self.report(&self.describe(what))) }
    }

    pub(super) fn describe(&self, what: &str) -> String {
        let mut text = what.to_string();
        for (i, s) in self.sessions.iter().enumerate() {
            if let Some(m) = &s.machine {
                text.push_str(&format!("\n  session {i} on host {}: {:?}", s.host, m.view()));
            }
        }
        for r in &self.reps {
            let line = r.machine.as_ref().map_or_else(|| format!("{} is not running", r.rid), Replica::line);
            text.push_str(&format!("\n  {line}"));
        }
        text.push_str(&format!("\n  record: {:?}", self.store.record));
        text
    }
}
