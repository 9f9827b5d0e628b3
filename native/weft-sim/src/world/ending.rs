//! The end of a run: what is left when faults end must suffice (I30), first a part of the cluster for itself, then all.
//!
//! The bounds, in simulated time: faults have ended [`SETTLE_MS`] after the last one began (a stopped host, a stalled disk,
//! a message in a buffer); a part that suffices serves within [`SERVE_MS`] more (silence until a member is given up,
//! the wait of a steal, one swap for each, tries at a store that has just come back); a guest's request of then is
//! answered within [`ANSWER_MS`]; whoever is behind is in sync within [`RESYNC_MS`] (tries are spaced by 10 s at last).

use super::*;

const SETTLE_MS: u64 = 5_000;
const SERVE_MS: u64 = 10_000;
const ANSWER_MS: u64 = 6_000;
const RESYNC_MS: u64 = 40_000;
/// For what has to wait for every copy.
const LIVENESS_MS: u64 = 60_000;

impl World {
    /// A random part that suffices goes on alone: a majority of the store, a host that owns, as many good in-sync members
    /// as writes need. All other hosts stay dead or are cut off.
    pub(super) fn heal_core(&mut self) -> Result<(), String> {
        if !self.plan.core || self.store.rolled_back {
            return Ok(());
        }
        let Some(core) = self.choose_core() else { return Ok(()) };
        self.faults_on = false;
        self.note(|_| {
            let hosts: Vec<String> = core.iter().map(|h| format!("h{}", h + 1)).collect();
            format!("{} must do alone", hosts.join(" "))
        });
        self.cuts.clear();
        self.slow.clear();
        for host in 0..self.plan.hosts {
            if core.contains(&host) {
                continue;
            }
            if self.rng.chance(50) {
                let how = if self.rng.chance(50) { Stop::Kill } else { Stop::Power };
                // Its power would take a cache that may be the last one: only its processes end then.
                self.stop_host(host, if self.plan.cached { Stop::Kill } else { how });
                self.hosts[host].powered = false;
                for rep in 0..self.reps.len() {
                    if self.reps[rep].host == host {
                        self.stop_replica(rep, Stop::Kill);
                    }
                }
            }
            for inside in &core {
                self.cuts.insert((host, *inside));
                self.cuts.insert((*inside, host));
            }
        }
        for session in 0..self.sessions.len() {
            let s = &self.sessions[session];
            if !core.contains(&s.host) {
                // What it sent arrives no more; connections break when somebody has waited long enough.
                continue;
            }
            let links: Vec<Rid> = s.links.keys().copied().collect();
            for rid in links {
                let outside = self.rep_of(rid).is_some_and(|rep| !core.contains(&self.reps[rep].host));
                if outside && self.rng.chance(50) {
                    let delay = self.rng.below(1000) * MS;
                    self.at(delay, Event::LinkDown { session, rid, refused: false });
                }
            }
        }
        self.core = Some(core.clone());
        self.store.down_until = 0;
        for host in &core {
            self.hosts[*host].paused_until = self.now;
            self.power_on(*host);
        }
        for rep in 0..self.reps.len() {
            if core.contains(&self.reps[rep].host) {
                self.mend(rep);
            }
        }
        self.relink_all();
        self.core_lives()?;
        self.core = None;
        for host in 0..self.plan.hosts {
            self.power_on(host);
        }
        Ok(())
    }

    /// The in-sync members that an owner may rely on, and how many it needs.
    fn good_members(&self) -> (Vec<Id>, usize) {
        let members: Vec<Id> = self.store.record.in_sync().filter_map(|e| self.rep_of(e.rid)).collect();
        let usable = |r: &Rep| !r.is_gone() && !r.put_back && r.foreign.is_none();
        let lossy = |rep: &Id| self.plan.cached && self.reps[*rep].stored.lossy;
        let mut good: Vec<Id> = members.iter().copied().filter(|m| usable(&self.reps[*m])).collect();
        let need = usize::from(self.plan.min_isr).max(1);
        if members.iter().all(lossy) {
            // Every cache was lost: only all of them together may go on (R8).
            return (good, need.max(members.len()));
        }
        good.retain(|m| !lossy(m));
        (good, need)
    }

    /// Is each block good on some member that is in sync? If not, a copy of it can't be made until it is written again.
    fn all_readable(&self) -> bool {
        let members: Vec<Id> = self.store.record.in_sync().filter_map(|e| self.rep_of(e.rid)).collect();
        self.readable_at(&members)
    }

    fn readable_at(&self, members: &[Id]) -> bool {
        (0..self.blocks()).all(|block| members.iter().any(|m| !self.reps[*m].stored.media.is_bad(block)))
    }

    fn core_suffices(&self) -> bool {
        let (good, need) = self.good_members();
        let inside = |m: &&Id| self.core.as_ref().is_some_and(|core| core.contains(&self.reps[**m].host));
        good.iter().filter(inside).count() >= need && self.revert_can_end(|rep| inside(&&rep))
    }

    fn choose_core(&mut self) -> Option<BTreeSet<Id>> {
        let (mut good, need) = self.good_members();
        if good.len() < need {
            return None;
        }
        while good.len() > need && self.rng.chance(50) {
            good.swap_remove(self.rng.index(good.len()));
        }
        let mut core: BTreeSet<Id> = good.iter().map(|m| self.reps[*m].host).collect();
        core.insert(self.any_owner());
        let votes = self.plan.store_members.clone();
        while core.iter().filter(|h| votes.contains(h)).count() * 2 <= votes.len() && !votes.is_empty() {
            core.insert(votes[self.rng.index(votes.len())]);
        }
        (core.len() < self.plan.hosts || self.rng.chance(20)).then_some(core)
    }

    /// A disk's passing faults are over.
    fn mend(&mut self, rep: Id) {
        self.reps[rep].stalled_until = 0;
        self.reps[rep].stored.media.full = false;
        if self.reps[rep].machine.as_ref().is_some_and(Replica::is_failed) {
            self.stop_replica(rep, Stop::Kill);
        }
        self.start_replica(rep);
    }

    fn core_lives(&mut self) -> Result<(), String> {
        let inside = |w: &World, host: Id| w.core.as_ref().is_some_and(|core| core.contains(&host));
        let owner = self.owner_session().filter(|s| inside(self, self.sessions[*s].host));
        let stays = owner.is_some() && self.rng.chance(50);
        for session in 0..self.sessions.len() {
            if inside(self, self.sessions[session].host) && !(stays && owner == Some(session)) {
                self.sessions[session].machine = None;
            }
        }
        if !stays {
            let host = self.any_owner();
            self.at(10 * MS, Event::Open { host, steal: true });
        }
        // What was under way ends: hosts go on that were stopped, disks answer that stalled.
        let settled = self.now + SETTLE_MS * MS;
        self.run_until(|w| w.now >= settled)?;
        if !self.core_suffices() {
            // A swap that was on its way took a member out that was counted on: the premise does not hold.
            return Ok(());
        }
        if self.owner_session().is_none_or(|s| !inside(self, self.sessions[s].host)) {
            // Whoever owns it by the record has ended, perhaps by a claim that the store took late: opened anew.
            let host = self.any_owner();
            self.at(10 * MS, Event::Open { host, steal: true });
        }
        self.counts.cores += 1;
        let began = self.now;
        let session = self.serving(SERVE_MS, "a part of the cluster that suffices does not serve")?;
        self.counts.serve_ms_max = self.counts.serve_ms_max.max((self.now - began) / MS);
        let asked = self.now;
        self.ask_all(session);
        let limit = self.now + ANSWER_MS * MS;
        self.until(limit, "I30: a guest's request hangs in a part of the cluster that suffices", |w| {
            w.sessions[session].guests.is_empty()
        })?;
        self.counts.answer_ms_max = self.counts.answer_ms_max.max((self.now - asked) / MS);
        let began = self.now;
        let limit = self.now + RESYNC_MS * MS;
        self.until(limit, "I30: a copy within reach does not come back in sync", |w| {
            w.store.record.replicas.iter().all(|e| {
                let rep = w.rep_of(e.rid).map(|rep| &w.reps[rep]);
                let useful = rep
                    .is_some_and(|r| inside(w, r.host) && !r.is_gone() && !r.put_back && r.foreign.is_none());
                !useful || !w.all_readable() || e.state == ReplicaState::InSync
            })
        })?;
        self.counts.resync_ms_max = self.counts.resync_ms_max.max((self.now - began) / MS);
        Ok(())
    }

    /// Waits until some owner serves.
    fn serving(&mut self, ms: u64, what: &str) -> Result<Id, String> {
        let limit = self.now + ms * MS;
        let opened = |w: &World| {
            let inside = |host: Id| w.core.as_ref().is_none_or(|core| core.contains(&host));
            w.sessions.iter().position(|s| {
                inside(s.host)
                    && s.machine.as_ref().is_some_and(|m| w.is_owner(m) && m.view().phase == "serving")
            })
        };
        self.until(limit, what, |w| opened(w).is_some())?;
        Ok(opened(self).expect("just found"))
    }

    /// A read of everything, and a write.
    fn ask_all(&mut self, session: Id) {
        let record = self.sessions[session].machine.as_ref().and_then(Session::record);
        let blocks = self.plan.blocks.min(record.map_or(1, |record| record.size / BLOCK));
        self.guest_reads(session, 0, 2 * blocks);
        let first = self.rng.below(blocks);
        self.guest_writes(session, 2 * first, 2);
    }

    pub(super) fn heal_all(&mut self) {
        self.note(|_| "everything is healed".into());
        self.faults_on = false;
        self.cuts.clear();
        self.slow.clear();
        self.store.down_until = 0;
        for host in 0..self.plan.hosts {
            self.hosts[host].paused_until = self.now;
            self.power_on(host);
        }
        for rep in 0..self.reps.len() {
            self.mend(rep);
            self.swap_back(rep);
        }
        if self.store.rolled_back {
            self.repair();
        }
        self.relink_all();
    }

    /// A steal opens, every block can be read, every copy comes back in sync, a close is clean, and then all copies are
    /// equal.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        for session in 0..self.sessions.len() {
            if self.rng.chance(50) {
                self.sessions[session].machine = None;
            }
        }
        let host = self.any_owner();
        self.at(10 * MS, Event::Open { host, steal: true });
        if self.reps.iter().any(|r| r.is_gone() || r.put_back) {
            self.at(3000 * MS, Event::ReplaceLost);
        }
        // A swap that is on its way may yet leave a lost copy as the last one in sync.
        let settled = self.now + SETTLE_MS * MS;
        self.run_until(|w| w.now >= settled)?;
        let left = self.store.record.in_sync().filter_map(|e| self.rep_of(e.rid));
        let nothing = left.into_iter().all(|rep| self.reps[rep].is_gone() || self.reps[rep].put_back);
        let (good, need) = self.good_members();
        let unrepaired = self.store.rolled_back && self.store.needs_assent;
        let no_way_back = !self.revert_can_end(|_| true);
        if unrepaired || nothing || no_way_back || good.len() < need && !self.readable_at(&good) {
            // The last copy that was in sync is gone for good, or too few are left and a block can't be copied from them,
            // or nobody tells of the latest record, or what the volume is to be taken back to is nowhere whole: it waits
            // for an operator, and must (M11, S15, D21).
            let why = if unrepaired {
                "nobody tells of the latest record"
            } else {
                "too few copies in sync are left"
            };
            self.note(|_| why.into());
            return match self.oracle.check() {
                Ok(()) => Ok(()),
                Err(what) => Err(self.report(&what)),
            };
        }
        let session = self.serving(LIVENESS_MS, "a healed cluster does not serve")?;
        self.ask_all(session);
        let limit = self.now + LIVENESS_MS * MS;
        self.until(limit, "a guest's requests hang in a healed cluster", |w| {
            w.sessions[session].guests.is_empty()
        })?;
        let limit = self.now + LIVENESS_MS * MS;
        self.until(limit, "a copy does not come back in sync", |w| {
            let gone = |rid: Rid| w.rep_of(rid).is_some_and(|rep| w.reps[rep].is_gone());
            !w.all_readable()
                || w.store.record.replicas.iter().all(|e| gone(e.rid) || e.state == ReplicaState::InSync)
        })?;
        if let Err(what) = self.oracle.check() {
            return Err(self.report(&what));
        }
        self.scrub_all(session)?;
        self.judge_leftovers()?;
        self.close_in_order(session)?;
        self.judge_copies();
        match self.violation.take() {
            Some(what) => Err(self.report(&what)),
            None => Ok(()),
        }
    }

    /// Everything is compared once more, and what one copy can give no other one lacks then.
    fn scrub_all(&mut self, session: Id) -> Result<(), String> {
        let now = self.clock(self.sessions[session].host);
        let Some(m) = &mut self.sessions[session].machine else { return Ok(()) };
        m.stop_scrub(now);
        if !m.scrub(now, None) {
            return Ok(());
        }
        self.drain_session(session);
        let limit = self.now + LIVENESS_MS * MS;
        self.until(limit, "a scrub does not end", |w| {
            let machine = w.sessions[session].machine.as_ref();
            machine.is_none_or(|m| m.view().scrub.is_none_or(|scrub| scrub.ended_ms.is_some()))
        })?;
        let scrub = self.sessions[session].machine.as_ref().and_then(|m| m.view().scrub);
        if scrub.is_some_and(|scrub| scrub.complete) {
            self.judge_scrubbed();
        }
        Ok(())
    }

    fn close_in_order(&mut self, session: Id) -> Result<(), String> {
        if self.sessions[session].machine.is_none() {
            return Ok(());
        }
        self.closing = true;
        let limit = self.now + LIVENESS_MS * MS;
        self.until(limit, "a close does not end", |w| {
            w.sessions[session].machine.as_ref().is_none_or(|m| m.view().dirty_regions == 0)
        })?;
        let limit = self.now + LIVENESS_MS * MS;
        loop {
            // Refused while a member is waited for: asked again a little later.
            let now = self.clock(self.sessions[session].host);
            let accepted = self.sessions[session].machine.as_mut().is_none_or(|m| m.close(now));
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
        Ok(())
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

    /// What everybody believes, a line each.
    pub(super) fn describe(&self, what: &str) -> String {
        let mut text = what.to_string();
        for (i, s) in self.sessions.iter().enumerate() {
            let Some(m) = &s.machine else { continue };
            let v = m.view();
            let paused = v.paused.map_or(String::new(), |why| format!(", paused: {why}"));
            text.push_str(&format!(
                "\n  s{} on h{}: {}{paused}, epoch {}, {} requests, {} regions to equalise",
                i + 1,
                s.host + 1,
                v.phase,
                m.epoch(),
                m.pending(),
                v.dirty_regions
            ));
            for member in &v.members {
                text.push_str(&format!("\n    {}: {}", member.rid, member.line));
            }
        }
        for r in &self.reps {
            let line = r.machine.as_ref().map_or_else(|| format!("{} is not running", r.rid), Replica::line);
            let bad = match r.stored.media.bad_blocks() {
                0 => String::new(),
                n => format!(", {n} blocks can't be read"),
            };
            text.push_str(&format!("\n  h{}: {line}{bad}", r.host + 1));
        }
        let record = &self.store.record;
        text.push_str(&format!(
            "\n  record: epoch {}, {}",
            record.epoch,
            record.owner.map_or("no owner".into(), |o| format!("owner {}", session_name(o.session)))
        ));
        for e in &record.replicas {
            text.push_str(&format!(", {} {:?} base {}", e.rid, e.state, e.base));
        }
        text
    }
}
