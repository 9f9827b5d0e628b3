//! Sessions: opened on hosts, driven until they end.

use super::*;

impl World {
    /// `task`: a caretaker's session, which does that.
    pub(super) fn open(&mut self, host: Id, steal: bool, task: Option<Task>) {
        let host_up = self.hosts[host].powered && self.hosts[host].paused_until <= self.now;
        let in_core = self.core.as_ref().is_none_or(|core| core.contains(&host));
        if !host_up || !in_core {
            return;
        }
        let reverts = |s: &Sess| s.machine.is_some() && matches!(s.task, Some(Task::Revert(_)));
        if self.faults_on && self.sessions.iter().any(reverts) && self.rng.chance(90) {
            // Most who want the volume wait for what a caretaker does.
            let delay = (500 + self.rng.below(2000)) * MS;
            if task.is_none() {
                self.at(delay, Event::Open { host, steal });
            }
            return;
        }
        self.next_session += 1;
        let id = SessionId(self.next_session);
        // A process that restarts on its host knows that its former self has ended.
        let owner = self.store.record.owner;
        let stopped =
            owner.filter(|o| o.node == host_id(host)).map(|o| o.session).filter(|s| !self.is_alive(*s));
        // Every other one that finds its host's own former session goes on with what that had, and with nothing else (R32).
        let goes_on = stopped.filter(|_| steal && self.next_session.is_multiple_of(2));
        // Or replaces the one that it saw, and no other (R33).
        let only = owner.map(|o| o.session).filter(|_| steal && self.next_session.is_multiple_of(3));
        let mode = match goes_on {
            Some(session) => OpenMode::Continue { session },
            None => match only {
                Some(session) => OpenMode::Replace { session, ended: stopped == only },
                None if steal => OpenMode::Steal { old_stopped: stopped },
                None => OpenMode::Closed,
            },
        };
        let config = SessionConfig {
            volume: VOLUME,
            session: id,
            host: host_id(host),
            mode,
            caretaker: task.is_some(),
            watermark: self.hosts[host].watermark,
            timing: Timing {
                roll_ms: 3000,
                busy_roll_ms: 300,
                renew_interval: self.plan.renew_interval,
                ..Timing::default()
            },
            seed: u128::from(self.rng.number()),
            // Wall clocks jump by hours; nothing may depend on them.
            unix_ms_at_zero: 1_790_000_000_000 + self.now % 7_200_000,
            broken: self.broken,
        };
        let mut machine = Session::new(config, self.clock(host));
        if let Some(claim) = self.highest_claim(host) {
            machine.handle_claim(self.clock(host), claim);
        }
        match task {
            Some(Task::Shrink(size)) => machine.resize(self.clock(host), size, true),
            Some(Task::Revert(id)) => machine.revert(self.clock(host), id),
            None => {}
        }
        let (guests, links) = (BTreeMap::new(), BTreeMap::new());
        self.sessions.push(Sess {
            id,
            host,
            machine: Some(machine),
            guests,
            links,
            tick_at: u64::MAX,
            started: false,
            only,
            task,
            stale_answers: false,
        });
        let session = self.sessions.len() - 1;
        self.note(|_| {
            format!("s{} opens on h{}{}", session + 1, host + 1, if steal { " (steal)" } else { "" })
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
                self.judge_sent(session, t.rid, &t.request.ask);
                self.note_barrier(&t.request.ask);
                let ordered = self.plan.ordered;
                let link = self.sessions[session].links.entry(t.rid).or_default();
                let delay = in_turn(ordered, &mut link.there_until, self.now, delay);
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
            let delay = self.until_clock(host, at);
            self.at(delay, Event::Tick { session });
        }
        if ended {
            self.sessions[session].machine = None;
        }
    }

    pub(super) fn session_event(&mut self, session: Id, event: SessionEvent) {
        if let Some(line) = line_of(&event) {
            self.note(|_| format!("s{} {line}", session + 1));
        }
        match event {
            SessionEvent::Opened { .. } => {
                self.counts.opens += 1;
                if self.plan.snapshot > 0 {
                    self.at(MS, Event::Keys { session });
                } else {
                    let now = self.clock(self.sessions[session].host);
                    if let Some(m) = &mut self.sessions[session].machine {
                        m.know_snapshots(now, Vec::new());
                    }
                }
                self.judge_opened(session);
                if !self.sessions[session].started && self.sessions[session].task.is_none() {
                    self.sessions[session].started = true;
                    self.at(MS, Event::Guest { session });
                }
            }
            SessionEvent::Demoted { .. } => self.counts.demotions += 1,
            SessionEvent::Resized { size, outcome } => {
                if outcome.is_ok() && self.owner_session() == Some(session) && !self.store.rolled_back {
                    (self.store.told, self.store.cut_off) = (Some(size), None);
                    self.counts.resizes += 1;
                }
                if matches!(self.sessions[session].task, Some(Task::Shrink(_))) {
                    self.caretaker_goes(session);
                }
            }
            SessionEvent::Reverted { id, outcome } => {
                self.counts.reverts += u64::from(outcome.is_ok());
                if self.sessions[session].task == Some(Task::Revert(id)) {
                    self.caretaker_goes(session);
                }
            }
            SessionEvent::SnapshotTaken { id, .. } => self.judge_taken(id),
            SessionEvent::Admitted { .. } => self.counts.admissions += 1,
            SessionEvent::Divergent { offset, .. } => self.judge_divergent(session, offset),
            SessionEvent::Rotten { mended: true, .. } => self.counts.mended += 1,
            SessionEvent::ScrubEnded { complete: true } => self.counts.scrubs += 1,
            SessionEvent::Ended(reason) => {
                if matches!(reason, EndReason::Fenced { .. }) {
                    self.counts.fenced += 1;
                }
                let rollback_possible = self.store.rolled_back || self.plan.rollback > 0;
                let went_back = matches!(reason, EndReason::MetadataRollback | EndReason::Claimed(_));
                if went_back && !rollback_possible {
                    self.fail(format!(
                        "s{} believes in a rolled-back store, but there was none",
                        session + 1
                    ));
                }
                if let EndReason::Unusable(_) | EndReason::Missing = reason {
                    self.fail(format!("s{} ended: {reason:?}", session + 1));
                }
                if !self.faults_on {
                    let id = self.sessions[session].id;
                    let inside = |host: Id| self.core.as_ref().is_none_or(|core| core.contains(&host));
                    let others = |s: &Sess| s.machine.is_some() && s.id != id && inside(s.host);
                    if self.closing || self.sessions.iter().any(others) {
                        return;
                    }
                    // The end of the run: whoever must serve is opened anew.
                    let host = self.any_owner();
                    return self.at(500 * MS, Event::Open { host, steal: true });
                }
                let host = self.any_owner();
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

    fn caretaker_goes(&mut self, session: Id) {
        let now = self.clock(self.sessions[session].host);
        if let Some(m) = &mut self.sessions[session].machine {
            let _ = m.close(now);
        }
    }

    pub(super) fn for_owner(&mut self, f: impl FnOnce(&mut Session<HeapPayload>, Instant)) {
        let owner = self.store.record.owner.map(|o| o.session);
        let session =
            self.sessions.iter().position(|s| s.machine.as_ref().is_some_and(|m| Some(m.id()) == owner));
        let Some(session) = session else { return };
        let now = self.clock(self.sessions[session].host).0;
        if let Some(m) = &mut self.sessions[session].machine {
            f(m, Instant(now));
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
                self.note(|_| format!("s{} is killed", session + 1));
                let delay = self.rng.below(1000) * MS;
                let host = if self.rng.chance(50) { self.sessions[session].host } else { self.any_owner() };
                self.at(delay, Event::Open { host, steal: true });
            }
        }
    }
}

/// What a session says happened, for people.
fn line_of(event: &SessionEvent) -> Option<String> {
    Some(match event {
        SessionEvent::Opened { epoch } => format!("serves at epoch {epoch}"),
        SessionEvent::Paused { reason } => format!("pauses: {reason}"),
        SessionEvent::Resumed => "goes on".into(),
        SessionEvent::Demoted { rids, reason } => format!("took {} out: {reason}", names(rids)),
        SessionEvent::ResyncStarted { rid, bytes } => {
            format!("brings {rid} up to date: {} blocks may differ", bytes / BLOCK)
        }
        SessionEvent::Admitted { rid, copied } => {
            format!("has {rid} in sync again, {} blocks copied", copied / BLOCK)
        }
        SessionEvent::JoinAbandoned { rid, reason } => format!("gives up bringing {rid} in: {reason}"),
        SessionEvent::ChangeDone { rid, outcome: Ok(()) } => format!("changed the place of {rid} as asked"),
        SessionEvent::ChangeDone { rid, outcome: Err(why) } => format!("refuses to change {rid}: {why}"),
        SessionEvent::HeadReleasing { outcome: Ok(()) } => "gives back what the deleted head has".into(),
        SessionEvent::HeadReleasing { outcome: Err(why) } => format!("keeps what the head has: {why}"),
        SessionEvent::HeadReleased => "has given back what the deleted head had".into(),
        SessionEvent::PolicySet { outcome: Ok(()) } => "changed its policy as asked".into(),
        SessionEvent::PolicySet { outcome: Err(why) } => format!("refuses another policy: {why}"),
        SessionEvent::Ended(reason) => match reason {
            EndReason::Closed => "is closed".into(),
            EndReason::Abandoned { lost_writes } => {
                format!("is abandoned with {lost_writes} writes unanswered")
            }
            EndReason::Fenced { owner: Some(owner) } => {
                format!("is fenced: {} owns the volume", session_name(owner.session))
            }
            EndReason::Fenced { owner: None } => "is fenced: nobody owns the volume".into(),
            EndReason::Busy { owner } => {
                format!("is refused: {} owns the volume", session_name(owner.session))
            }
            EndReason::MetadataRollback => "ends: the store went back".into(),
            EndReason::Claimed(claim) => format!("ends: {} says that the store went back", claim.host),
            EndReason::CachesLost => "ends: every cache with its writes is lost".into(),
            EndReason::Missing => "ends: no such volume".into(),
            EndReason::HeadDeleted => "ends: the volume's head is deleted".into(),
            EndReason::Unusable(why) => format!("ends: the record is of no use: {why}"),
            EndReason::Unsupported(what) => format!("ends: {what} is not served"),
        },
        SessionEvent::SnapshotTaken { id, members, held_ms, .. } => {
            format!("has snapshot {} at {}, writes waited {held_ms} ms", id.0, names(members))
        }
        SessionEvent::SnapshotFailed { id, why } => format!("takes no snapshot {}: {why:?}", id.0),
        SessionEvent::SnapshotDeleting { id } => format!("deletes snapshot {}", id.0),
        SessionEvent::SnapshotGone { id } => format!("has no snapshot {} any more", id.0),
        SessionEvent::SnapshotDestroyed { id } => format!("the data of snapshot {} goes", id.0),
        SessionEvent::SnapshotChanged { id } => format!("has changed snapshot {}", id.0),
        SessionEvent::Reverted { id, outcome: Ok(written) } => {
            format!("has taken the volume back to snapshot {}, {} blocks written", id.0, written / BLOCK)
        }
        SessionEvent::Reverted { id, outcome: Err(why) } => {
            format!("does not take the volume back to snapshot {}: {why:?}", id.0)
        }
        SessionEvent::SnapshotCopyAdded { id, rid, outcome: Ok(()) } => {
            format!("lists {rid} with snapshot {}", id.0)
        }
        SessionEvent::SnapshotCopyAdded { id, rid, outcome: Err(why) } => {
            format!("does not list {rid} with snapshot {}: {why:?}", id.0)
        }
        SessionEvent::Resized { size, outcome: Ok(()) } => {
            format!("has made the volume {} blocks large", size / BLOCK)
        }
        SessionEvent::Resized { size, outcome: Err(why) } => {
            format!("refuses to make the volume {} blocks large: {why}", size / BLOCK)
        }
        SessionEvent::Rotten { offset, rids, mended } => {
            let outcome = if *mended { "mended" } else { "not mended" };
            format!("finds block {} bad at {}: {outcome}", offset / BLOCK, names(rids))
        }
        SessionEvent::Divergent { offset, rids } => {
            format!("finds block {} different at {}", offset / BLOCK, names(rids))
        }
        SessionEvent::ScrubEnded { complete: true } => "has compared everything".into(),
        SessionEvent::ScrubEnded { complete: false } => "stops comparing".into(),
        SessionEvent::Reverting { .. } | SessionEvent::RecordChanged => return None,
    })
}

pub(super) fn names(rids: &[Rid]) -> String {
    rids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
