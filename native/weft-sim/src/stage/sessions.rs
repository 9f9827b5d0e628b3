//! Sessions on the stage: who opens, steals, closes, and what it told.

use weft_proto::session::policy::PolicyChange;

use super::*;

impl Stage {
    /// Somebody opens a closed volume.
    pub fn open(&mut self, host: HostId) -> Who {
        self.enter(host, OpenMode::Closed, false)
    }

    /// Somebody steals it.
    pub fn steal(&mut self, host: HostId) -> Who {
        self.enter(host, OpenMode::Steal { old_stopped: None }, false)
    }

    /// Somebody takes it over from a session whose process is known to have ended.
    pub fn replace(&mut self, host: HostId, old: Who) -> Who {
        let old = self.id(old);
        self.enter(host, OpenMode::Steal { old_stopped: Some(old) }, false)
    }

    /// Somebody replaces exactly this session (R33).
    pub fn replace_only(&mut self, host: HostId, old: Who) -> Who {
        let session = self.id(old);
        self.enter(host, OpenMode::Replace { session, ended: false }, false)
    }

    /// A caretaker's session that comes to serve a closed volume.
    pub fn caretaker(&mut self, host: HostId) -> Who {
        let who = self.enter(host, OpenMode::Closed, true);
        self.serving(who);
        who
    }

    /// A session that comes to serve a closed volume.
    pub fn owner(&mut self, host: HostId) -> Who {
        let who = self.open(host);
        self.serving(who);
        who
    }

    pub(super) fn id(&self, who: Who) -> SessionId {
        SessionId(0x5000 + who.0 as u128)
    }

    pub(super) fn enter(&mut self, host: HostId, mode: OpenMode, caretaker: bool) -> Who {
        let who = Who(self.acts.len());
        let machine_mode = mode;
        let config = SessionConfig {
            volume: VOLUME,
            session: self.id(who),
            host,
            mode,
            caretaker,
            watermark: self.watermarks[&host],
            timing: Timing::default(),
            seed: (self.scene.seed << 32) + (u128::from(self.play.number()) << 64) + 1 + who.0 as u128,
            unix_ms_at_zero: self.wall_ms.get(&host).copied().unwrap_or(0),
            broken: self.play.broken(),
        };
        let machine: Session<HeapPayload> = Session::new(config, self.clock(host));
        let view = machine.view();
        let how = match &machine_mode {
            OpenMode::Closed => "opens",
            OpenMode::Steal { old_stopped: None } => "steals",
            OpenMode::Steal { old_stopped: Some(_) } => "takes over from a session that has ended",
            OpenMode::Replace { .. } => "replaces one session and no other",
            OpenMode::Continue { .. } => "goes on with what a session had that has ended",
        };
        self.play.tell(self.now, format_args!("{who} on host {} {how}", Host(host)));
        let (links, events) = (BTreeMap::new(), Vec::new());
        self.acts.push(Act { host, machine: Some(machine), links, tick_at: u64::MAX, events, view });
        self.drain(who);
        self.at(MS, Cue::Relink { who, again: true });
        who
    }

    /// As [`Stage::steal`], served, and what is picked stays unread at a replica from the first on.
    pub fn enter_holding(&mut self, host: HostId, rid: Rid, pick: Filter) -> Who {
        let who = self.steal(host);
        self.hold(who, rid, pick);
        self.serving(who);
        who
    }

    /// Asks it to compare the copies, at most so many bytes a second.
    pub fn scrub(&mut self, who: Who, rate: Option<u64>) {
        self.play.tell(self.now, format_args!("{who} is asked to scrub"));
        let now = self.clock(self.acts[who.0].host);
        assert!(self.acts[who.0].machine.as_mut().is_some_and(|m| m.scrub(now, rate)), "it can't");
        self.drain(who);
    }

    /// Asks it to compare no more.
    pub fn stop_scrub(&mut self, who: Who) {
        self.play.tell(self.now, format_args!("{who} is asked to stop its scrub"));
        let now = self.clock(self.acts[who.0].host);
        if let Some(m) = &mut self.acts[who.0].machine {
            m.stop_scrub(now);
        }
        self.drain(who);
    }

    /// Its scrub, or the last one.
    #[must_use]
    pub fn scrub_of(&self, who: Who) -> &ScrubView {
        self.view(who).scrub.as_ref().expect("one was asked for")
    }

    /// Plays until its scrub has ended.
    pub fn scrubbed(&mut self, who: Who) -> ScrubView {
        self.run_until("a scrub has ended", |s| s.scrub_of(who).ended_ms.is_some());
        assert!(self.scrub_of(who).complete, "it was stopped");
        self.scrub_of(who).clone()
    }

    /// Plays until it serves.
    pub fn serving(&mut self, who: Who) {
        self.run_until("a session serves", |s| s.view(who).phase == "serving");
    }

    /// Plays until it is over, and tells why.
    pub fn over(&mut self, who: Who) -> EndReason {
        self.run_until("a session is over", |s| s.ended(who).is_some());
        self.ended(who).expect("awaited")
    }

    /// Asks it to close in order.
    pub fn begin_close(&mut self, who: Who) {
        self.play.tell(self.now, format_args!("{who} is asked to close"));
        let now = self.clock(self.acts[who.0].host);
        assert!(self.acts[who.0].machine.as_mut().is_some_and(|m| m.close(now)), "the close is refused");
        self.drain(who);
    }

    /// Closes it in order and plays until that is done.
    pub fn close(&mut self, who: Who) {
        self.begin_close(who);
        assert_eq!(self.over(who), EndReason::Closed);
    }

    /// Its process is gone, at once and for ever.
    pub fn vanish(&mut self, who: Who) {
        self.play.tell(self.now, format_args!("{who} is gone"));
        self.acts[who.0].machine = None;
    }

    /// Asks for another copy, made durable on `host` before.
    pub fn add(&mut self, who: Who, rid: Rid, host: HostId) {
        self.play.tell(self.now, format_args!("{who} is asked to add {rid} on host {}", Host(host)));
        self.make(rid, host);
        let now = self.clock(self.acts[who.0].host);
        if let Some(m) = &mut self.acts[who.0].machine {
            m.add_replica(now, rid, host, pool_of(host));
        }
        self.drain(who);
    }

    /// Asks that a copy leaves.
    pub fn remove(&mut self, who: Who, rid: Rid) {
        self.play.tell(self.now, format_args!("{who} is asked to take {rid} out for good"));
        let now = self.clock(self.acts[who.0].host);
        if let Some(m) = &mut self.acts[who.0].machine {
            m.remove_replica(now, rid);
        }
        self.drain(who);
    }

    /// Asks for another size, in blocks.
    pub fn resize(&mut self, who: Who, blocks: u64) {
        self.play.tell(self.now, format_args!("{who} is asked to make the volume {blocks} blocks large"));
        let now = self.clock(self.acts[who.0].host);
        if let Some(m) = &mut self.acts[who.0].machine {
            m.resize(now, blocks * BLOCK, true);
        }
        self.drain(who);
    }

    /// Has it told that the volume has this size, in blocks?
    #[must_use]
    pub fn is_resized(&self, who: Who, blocks: u64) -> bool {
        self.told(who, |e| *e == Event::Resized { size: blocks * BLOCK, outcome: Ok(()) })
    }

    /// Asks for another size, in blocks, and plays until that is done.
    pub fn resized(&mut self, who: Who, blocks: u64) {
        self.resize(who, blocks);
        self.run_until("the volume has another size", |s| s.is_resized(who, blocks));
    }

    /// Asks for other copies and another min_isr, and plays until the session has answered.
    pub fn set_policy(&mut self, who: Who, copies: u8, min_isr: u8) -> Result<(), &'static str> {
        self.play
            .tell(self.now, format_args!("{who} is asked for {copies} copies, {min_isr} of them for writes"));
        let answers = |s: &Stage| {
            let outcome =
                |e: &Event| if let Event::PolicySet { outcome } = e { Some(*outcome) } else { None };
            s.events(who).iter().filter_map(outcome).collect::<Vec<_>>()
        };
        let before = answers(self).len();
        let now = self.clock(self.acts[who.0].host);
        if let Some(m) = &mut self.acts[who.0].machine {
            m.set_policy(now, PolicyChange { copies, min_isr, spread: "host".into() });
        }
        self.drain(who);
        self.run_until("the policy is answered", |s| answers(s).len() > before);
        answers(self)[before]
    }

    /// Asks it to give back what only the deleted head has.
    pub fn release_head(&mut self, who: Who) {
        self.play.tell(self.now, format_args!("{who} is asked to give back what the deleted head has"));
        let now = self.clock(self.acts[who.0].host);
        if let Some(m) = &mut self.acts[who.0].machine {
            m.release_head(now);
        }
        self.drain(who);
    }

    /// How it stands, or stood last.
    #[must_use]
    pub fn view(&self, who: Who) -> &SessionView {
        &self.acts[who.0].view
    }

    /// Its line about a replica.
    #[must_use]
    pub fn line(&self, who: Who, rid: Rid) -> &str {
        let members = &self.view(who).members;
        members.iter().find(|m| m.rid == rid).map_or("not in the record", |m| &m.line)
    }

    /// What it told so far.
    #[must_use]
    pub fn events(&self, who: Who) -> &[Event] {
        &self.acts[who.0].events
    }

    /// Did it tell something like this?
    #[must_use]
    pub fn told(&self, who: Who, what: impl Fn(&Event) -> bool) -> bool {
        self.events(who).iter().any(what)
    }

    /// How often it took members out.
    #[must_use]
    pub fn demotions(&self, who: Who) -> usize {
        self.events(who).iter().filter(|e| matches!(e, Event::Demoted { .. })).count()
    }

    /// Why it ended, if it did.
    #[must_use]
    pub fn ended(&self, who: Who) -> Option<EndReason> {
        self.events(who).iter().find_map(|e| match e {
            Event::Ended(reason) => Some(reason.clone()),
            _ => None,
        })
    }

    pub(super) fn drain(&mut self, who: Who) {
        let host = self.acts[who.0].host;
        loop {
            let Some(m) = &mut self.acts[who.0].machine else { return };
            if let Some(t) = m.poll_transmit() {
                self.note_barrier(&t.request.ask);
                self.transmit(who, host, t.rid, t.ordinal, t.request);
            } else if let Some(call) = m.poll_store() {
                if matches!(call, StoreCall::Swap { grouped: true, .. }) {
                    self.grouped.push_back((who, call));
                    continue;
                }
                self.at(self.play.store(host) / 2, Cue::Store { who, call });
            } else if let Some((id, reply)) = m.poll_reply() {
                self.answered(who, id, reply);
            } else if let Some(event) = m.poll_event() {
                self.play.tell(self.now, format_args!("{who} tells: {event:?}"));
                self.handle_snapshot_event(who, &event);
                self.acts[who.0].events.push(event);
            } else {
                break;
            }
        }
        let act = &mut self.acts[who.0];
        let Some(m) = &act.machine else { return };
        act.view = m.view();
        let (due, ended) = (m.poll_timeout(), m.is_ended());
        if let Some(at) = due
            && at.0 < act.tick_at
        {
            act.tick_at = at.0;
            let rate = self.rates.get(&host).copied().unwrap_or(0);
            let delay = at.0.saturating_sub(self.clock(host).0) * 1000 / (1000 + rate) + u64::from(rate > 0);
            self.at(delay, Cue::Tick { who });
        }
        if ended {
            self.acts[who.0].machine = None;
        }
    }
}
