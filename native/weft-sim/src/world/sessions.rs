//! Sessions: opened on hosts, driven until they end.

use super::*;

impl World {
    pub(super) fn open(&mut self, host: Id, steal: bool) {
        if self.hosts[host].paused_until > self.now {
            return;
        }
        self.next_session += 1;
        let id = SessionId(self.next_session);
        // A process that restarts on its host knows that its former self has ended.
        let owner = self.store.record.owner;
        let stopped =
            owner.filter(|o| o.node == host_id(host)).map(|o| o.session).filter(|s| !self.is_alive(*s));
        let mode = if steal { OpenMode::Steal { old_stopped: stopped } } else { OpenMode::Closed };
        let config = SessionConfig {
            volume: VOLUME,
            session: id,
            host: host_id(host),
            mode,
            caretaker: false,
            watermark: self.hosts[host].watermark,
            timing: Timing {
                roll_ms: 3000,
                busy_roll_ms: 300,
                renew_interval: self.plan.renew_interval,
                ..Timing::default()
            },
            seed: u128::from(self.rng.number()),
            unix_ms_at_zero: 0,
            broken: self.broken,
        };
        let machine = Session::new(config, Instant(self.now));
        let (guests, links) = (BTreeMap::new(), BTreeMap::new());
        self.sessions.push(Sess {
            host,
            machine: Some(machine),
            guests,
            links,
            tick_at: u64::MAX,
            started: false,
            stale_answers: false,
        });
        let session = self.sessions.len() - 1;
        self.note(|_| {
            format!("session {session} opens on host {host}{}", if steal { " (steal)" } else { "" })
        });
        self.drain_session(session);
    }

    pub(super) fn is_alive(&self, id: SessionId) -> bool {
        self.sessions.iter().any(|s| s.machine.as_ref().is_some_and(|m| m.id() == id))
    }

    pub(super) fn drain_session(&mut self, session: Id) {
        let host = self.sessions[session].host;
        loop {
            let Some(m) = &mut self.sessions[session].machine else { return };
            if let Some(t) = m.poll_transmit() {
                let Some(rep) = self.rep_of(t.rid) else { continue };
                let (to, inc) = (self.reps[rep].host, self.reps[rep].inc);
                let link = self.sessions[session].links.entry(t.rid).or_default();
                if !link.up {
                    continue;
                }
                if self.cuts.contains(&(host, to)) || self.reps[rep].machine.is_none() {
                    link.lost_something = true;
                    continue;
                }
                // Now and then a request stays unread in a socket's buffer for a while.
                let stuck = if self.faults_on && self.rng.chance(self.plan.stuck) {
                    self.rng.below(3000) * MS
                } else {
                    0
                };
                let delay = self.net_delay(host, to) + stuck;
                self.at(delay, Event::Deliver { rep, inc, session, ordinal: t.ordinal, request: t.request });
            } else if let Some(call) = m.poll_store() {
                let delay = self.rng.delay(2 * MS);
                self.at(delay, Event::Store { session, call });
            } else if let Some((id, reply)) = m.poll_reply() {
                self.answered(session, id, reply);
            } else if let Some(event) = m.poll_event() {
                self.session_event(session, event);
            } else {
                break;
            }
        }
        self.relink_new(session);
        let Some(m) = &self.sessions[session].machine else { return };
        let (due, ended) = (m.poll_timeout(), m.is_ended());
        if let Some(at) = due
            && at.0 < self.sessions[session].tick_at
        {
            self.sessions[session].tick_at = at.0;
            let delay = at.0.saturating_sub(self.now);
            self.at(delay, Event::Tick { session });
        }
        if ended {
            self.sessions[session].machine = None;
        }
    }

    pub(super) fn session_event(&mut self, session: Id, event: SessionEvent) {
        self.note(|_| format!("session {session}: {event:?}"));
        match event {
            SessionEvent::Opened { .. } => {
                self.counts.opens += 1;
                if !self.sessions[session].started {
                    self.sessions[session].started = true;
                    self.at(MS, Event::Guest { session });
                }
            }
            SessionEvent::Demoted { .. } => self.counts.demotions += 1,
            SessionEvent::Admitted { .. } => self.counts.admissions += 1,
            SessionEvent::Watermark(w) => {
                let host = self.sessions[session].host;
                self.hosts[host].watermark = self.hosts[host].watermark.max(w);
            }
            SessionEvent::Ended(reason) => {
                if matches!(reason, EndReason::Fenced { .. }) {
                    self.counts.fenced += 1;
                }
                let rollback_possible = self.store.rolled_back || self.plan.rollback > 0;
                if reason == EndReason::MetadataRollback && !rollback_possible {
                    self.fail(format!(
                        "session {session} believes in a rolled-back store, but there was none"
                    ));
                }
                if let EndReason::Unusable(_) | EndReason::Missing = reason {
                    self.fail(format!("session {session} ended: {reason:?}"));
                }
                let host = self.rng.index(self.plan.hosts);
                // One that was fenced does not steal back at once, or two hosts would do nothing else.
                let chance = if matches!(reason, EndReason::Fenced { .. }) { 10 } else { 70 };
                let steal = !matches!(reason, EndReason::Closed) && self.rng.chance(chance);
                let delay = self.rng.below(1500) * MS;
                if !matches!(reason, EndReason::Busy { .. }) {
                    self.at(delay, Event::Open { host, steal });
                }
            }
            _ => {}
        }
    }

    pub(super) fn for_owner(&mut self, f: impl FnOnce(&mut Session<HeapPayload>, Instant)) {
        let owner = self.store.record.owner.map(|o| o.session);
        let session =
            self.sessions.iter().position(|s| s.machine.as_ref().is_some_and(|m| Some(m.id()) == owner));
        if let Some(session) = session
            && let Some(m) = &mut self.sessions[session].machine
        {
            f(m, Instant(self.now));
            self.drain_session(session);
        }
    }

    pub(super) fn is_owner(&self, m: &Session<HeapPayload>) -> bool {
        self.store.record.owner.is_some_and(|o| o.session == m.id())
    }

    pub(super) fn owner_session(&self) -> Option<Id> {
        self.sessions.iter().position(|s| s.machine.as_ref().is_some_and(|m| self.is_owner(m)))
    }

    pub(super) fn kill_sessions(&mut self) {
        for session in 0..self.sessions.len() {
            if self.sessions[session].machine.take().is_some() {
                self.note(|_| format!("session {session} is killed"));
                let delay = self.rng.below(1000) * MS;
                let host = if self.rng.chance(50) {
                    self.sessions[session].host
                } else {
                    self.rng.index(self.plan.hosts)
                };
                self.at(delay, Event::Open { host, steal: true });
            }
        }
    }
}
