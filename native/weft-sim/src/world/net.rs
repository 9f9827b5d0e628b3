//! Links between sessions and replicas: up, down, cut in one or both directions.

use super::*;

impl World {
    pub(super) fn net_delay(&mut self, from: Id, to: Id) -> u64 {
        if from == to {
            return 1000;
        }
        let mean = if self.slow.contains(&(from, to)) { 30 * MS } else { 120_000 };
        let lost = self.faults_on && self.plan.loss > 0 && self.rng.below(1000) < self.plan.loss;
        self.rng.delay(mean) + if lost { (200 + self.rng.below(600)) * MS } else { 0 }
    }

    pub(super) fn link_up(&mut self, session: Id, rid: Rid) {
        let Some(rep) = self.rep_of(rid) else { return };
        let (a, b) = (self.sessions[session].host, self.reps[rep].host);
        let cut = self.cuts.contains(&(a, b)) || self.cuts.contains(&(b, a));
        let running = self.reps[rep].machine.is_some();
        let now = self.clock(a);
        let s = &mut self.sessions[session];
        let link = s.links.entry(rid).or_default();
        if link.up || cut || !running {
            return;
        }
        link.up = true;
        link.lost_something = false;
        // A new connection: its messages need not wait for those of the old one.
        (link.there_until, link.back_until) = (0, 0);
        if let Some(m) = &mut s.machine {
            m.handle_link_up(now, rid);
            self.drain_session(session);
        }
    }

    /// Every session tries every member that it wants and has no connection to.
    pub(super) fn relink_all(&mut self) {
        for session in 0..self.sessions.len() {
            self.relink(session);
        }
    }

    pub(super) fn relink(&mut self, session: Id) {
        let Some(m) = &self.sessions[session].machine else { return };
        let wanted: Vec<Rid> = m.wanted_links().map(|(rid, _, _)| rid).collect();
        for rid in wanted {
            let link = self.sessions[session].links.entry(rid).or_default();
            if link.up && link.lost_something {
                self.at(0, Event::LinkDown { session, rid, refused: false });
                self.at(1, Event::LinkUp { session, rid });
            } else if !link.up {
                let delay = 1 + self.rng.below(3) * MS;
                self.at(delay, Event::LinkUp { session, rid });
            }
        }
    }

    pub(super) fn relink_new(&mut self, session: Id) {
        let Some(m) = &self.sessions[session].machine else { return };
        let fresh: Vec<Rid> = m
            .wanted_links()
            .map(|(rid, _, _)| rid)
            .filter(|rid| !self.sessions[session].links.contains_key(rid))
            .collect();
        for rid in fresh {
            self.sessions[session].links.insert(rid, Link::default());
            let delay = 1 + self.rng.delay(300_000);
            self.at(delay, Event::LinkUp { session, rid });
        }
    }

    /// The replica's side notices that a connection is gone.
    pub(super) fn drop_connection(&mut self, session: Id, rid: Rid) {
        let Some(rep) = self.rep_of(rid) else { return };
        let gone: Vec<AttachmentId> =
            self.reps[rep].attachments.iter().filter(|((s, _), _)| *s == session).map(|(_, a)| *a).collect();
        if self.rng.chance(50) {
            for attachment in gone {
                if let Some(m) = &mut self.reps[rep].machine {
                    m.handle_disconnect(attachment);
                }
            }
            self.drain_replica(rep);
        }
        let delay = self.rng.below(300) * MS;
        self.at(delay, Event::LinkUp { session, rid });
    }

    pub(super) fn cut(&mut self, from: Id, to: Id, ms: u64) {
        self.cuts.insert((from, to));
        self.note(|_| format!("h{} no longer reaches h{}", from + 1, to + 1));
        self.at(ms * MS, Event::Heal { from, to });
        for session in 0..self.sessions.len() {
            let rids: Vec<Rid> = self.sessions[session].links.keys().copied().collect();
            for rid in rids {
                let Some(rep) = self.rep_of(rid) else { continue };
                let pair = (self.sessions[session].host, self.reps[rep].host);
                if (pair == (from, to) || pair == (to, from)) && self.rng.chance(40) {
                    let delay = self.rng.below(3000) * MS;
                    self.at(delay, Event::LinkDown { session, rid, refused: false });
                }
            }
        }
    }
}

/// A connection keeps its order: a message arrives after the one before it.
pub(super) fn in_turn(ordered: bool, until: &mut u64, now: u64, delay: u64) -> u64 {
    if !ordered {
        return delay;
    }
    let at = (now + delay).max(*until + 1);
    *until = at;
    at - now
}
