//! Links between the hosts of the stage, and hosts that stand still.

use super::*;

impl Stage {
    /// Nothing that `from` sends reaches `to` any more; nobody is told.
    pub fn cut_way(&mut self, from: HostId, to: HostId) {
        self.play.tell(self.now, format_args!("nothing from {} reaches {} any more", Host(from), Host(to)));
        self.cuts.insert((from, to));
    }

    /// Two hosts no longer reach each other.
    pub fn cut(&mut self, a: HostId, b: HostId) {
        self.cut_way(a, b);
        self.cut_way(b, a);
    }

    /// All hosts reach each other; connections that lost something are made anew.
    pub fn heal(&mut self) {
        self.play.tell(self.now, "all hosts reach each other again");
        self.cuts.clear();
        self.relink_soon();
    }

    /// A host's network card takes so much longer for each message that comes or goes, from now on.
    pub fn slow_card(&mut self, host: HostId, ms: u64) {
        self.play.tell(self.now, format_args!("host {}'s network card takes {ms} ms longer", Host(host)));
        self.cards.insert(host, ms * MS);
    }

    /// One way between two hosts.
    pub(super) fn net(&self, from: HostId, to: HostId) -> u64 {
        let card = |host| if from == to { 0 } else { self.cards.get(&host).copied().unwrap_or(0) };
        self.play.net(from, to) + card(from) + card(to)
    }

    /// Requests that are picked stay unread in the replica's socket, from now on.
    pub fn hold(&mut self, who: Who, rid: Rid, pick: Filter) {
        self.play.tell(self.now, format_args!("{who}: some requests to {rid} stay unread from now on"));
        self.acts[who.0].links.entry(rid).or_default().hold = Some(pick);
    }

    /// How many are unread.
    #[must_use]
    pub fn held(&self, who: Who, rid: Rid) -> usize {
        self.acts[who.0].links.get(&rid).map_or(0, |l| l.held.len())
    }

    /// They are read now, in order, and no more are held.
    pub fn release(&mut self, who: Who, rid: Rid) {
        self.play.tell(self.now, format_args!("{who}: what {rid} had not read is read now"));
        let link = self.acts[who.0].links.entry(rid).or_default();
        link.hold = None;
        for (inc, ordinal, request) in std::mem::take(&mut link.held) {
            self.at(0, Cue::Request { who, rid, inc, ordinal, request });
        }
    }

    /// No more are held; those that are, are not read yet.
    pub fn hold_no_more(&mut self, who: Who, rid: Rid) {
        self.play.tell(self.now, format_args!("{who}: later requests to {rid} are read again"));
        self.acts[who.0].links.entry(rid).or_default().hold = None;
    }

    /// The replica's answers are lost, from now on or no more.
    pub fn lose_answers(&mut self, who: Who, rid: Rid, lose: bool) {
        self.play.tell(
            self.now,
            format_args!("{who}: answers of {rid} {}", if lose { "are lost" } else { "arrive again" }),
        );
        self.acts[who.0].links.entry(rid).or_default().hold_answers = lose;
    }

    /// Answers that are picked are overtaken by whatever the replica says later, from now on.
    pub fn delay_answers(&mut self, who: Who, rid: Rid, pick: AnswerFilter) {
        self.play.tell(self.now, format_args!("{who}: some answers of {rid} are late from now on"));
        self.acts[who.0].links.entry(rid).or_default().delay = Some(pick);
    }

    /// How many are late.
    #[must_use]
    pub fn delayed(&self, who: Who, rid: Rid) -> usize {
        self.acts[who.0].links.get(&rid).map_or(0, |l| l.delayed.len())
    }

    /// They arrive now, and no more are late.
    pub fn deliver_answers(&mut self, who: Who, rid: Rid) {
        self.play.tell(self.now, format_args!("{who}: the late answers of {rid} arrive"));
        let link = self.acts[who.0].links.entry(rid).or_default();
        link.delay = None;
        for (ordinal, link, response) in std::mem::take(&mut link.delayed) {
            self.at(0, Cue::Answer { who, rid, ordinal, link, response });
        }
    }

    /// A bit of the next write to this replica flips on its way.
    pub fn flip_a_bit(&mut self, who: Who, rid: Rid) {
        self.play.tell(self.now, format_args!("{who}: a bit of the next write to {rid} flips on its way"));
        self.acts[who.0].links.entry(rid).or_default().corrupt = true;
    }

    /// The next request that is picked is refused; the ones after it are not.
    pub fn refuse_once(&mut self, who: Who, rid: Rid, pick: Filter, refusal: Refusal) {
        self.play
            .tell(self.now, format_args!("{who}: a request to {rid} is going to be refused: {refusal:?}"));
        self.acts[who.0].links.entry(rid).or_default().refuse = Some((pick, refusal));
    }

    /// The connection breaks; a new one is made at once.
    pub fn reconnect(&mut self, who: Who, rid: Rid) {
        self.play.tell(self.now, format_args!("{who}: its connection to {rid} breaks and is made anew"));
        self.link_down(who, rid, false);
        self.link_up(who, rid);
    }

    pub(super) fn transmit(
        &mut self,
        who: Who,
        from: HostId,
        rid: Rid,
        ordinal: Ordinal,
        mut request: Request<HeapPayload>,
    ) {
        let Some(rep) = self.reps.get(&rid) else { return };
        let (to, inc, gone) = (rep.host, rep.inc, rep.machine.is_none() && !rep.lost);
        let cut = self.cuts.contains(&(from, to));
        let link = self.acts[who.0].links.entry(rid).or_default();
        if !link.up {
            return;
        }
        if cut || gone {
            link.lost_something = true;
            return;
        }
        if link.corrupt
            && let Ask::Write { data, .. } = &mut request.ask
        {
            data.bytes_mut()[0] ^= 1;
            link.corrupt = false;
        }
        if link.hold.is_some_and(|pick| pick(&request.ask)) {
            link.held.push_back((inc, ordinal, request));
            return;
        }
        self.at(self.net(from, to), Cue::Request { who, rid, inc, ordinal, request });
    }

    pub(super) fn link_down(&mut self, who: Who, rid: Rid, refused: bool) {
        let link = self.acts[who.0].links.entry(rid).or_default();
        link.up = false;
        link.generation += 1;
        link.lost_something = false;
        let now = self.clock(self.acts[who.0].host);
        if let Some(m) = &mut self.acts[who.0].machine {
            m.handle_link_down(now, rid, refused);
            self.drain(who);
        }
    }

    pub(super) fn link_up(&mut self, who: Who, rid: Rid) {
        let inc = self.reps[&rid].inc;
        let link = self.acts[who.0].links.entry(rid).or_default();
        (link.up, link.inc) = (true, inc);
        let now = self.clock(self.acts[who.0].host);
        if let Some(m) = &mut self.acts[who.0].machine {
            m.handle_link_up(now, rid);
            self.drain(who);
        }
    }

    pub(super) fn relink_soon(&mut self) {
        for who in (0..self.acts.len()).map(Who) {
            if self.acts[who.0].machine.is_some() {
                self.at(MS / 2, Cue::Relink { who, again: false });
            }
        }
    }

    /// Makes connections that are wanted and possible, notices those that are broken.
    pub(super) fn relink(&mut self, who: Who) {
        let host = self.acts[who.0].host;
        let Some(m) = &self.acts[who.0].machine else { return };
        let wanted: Vec<Rid> = m.wanted_links().map(|(rid, _, _)| rid).collect();
        for rid in wanted {
            let Some(rep) = self.reps.get(&rid) else { continue };
            let cut = self.cuts.contains(&(host, rep.host)) || self.cuts.contains(&(rep.host, host));
            let (gone, silent, inc) = (rep.machine.is_none() && !rep.lost, rep.silent, rep.inc);
            let link = self.acts[who.0].links.entry(rid).or_default();
            let broken = link.up && (gone || link.inc != inc || link.lost_something && !link.hold_answers);
            if cut || silent || self.frozen.contains_key(&self.reps[&rid].host) {
                continue;
            }
            if broken || gone {
                self.link_down(who, rid, gone);
            }
            if !gone && !self.acts[who.0].links[&rid].up {
                self.link_up(who, rid);
            }
        }
    }

    // ---- hosts

    /// A host is stopped, as by SIGSTOP; its clock goes on.
    pub fn freeze(&mut self, host: HostId) {
        self.play.tell(self.now, format_args!("host {} is stopped", Host(host)));
        self.frozen.entry(host).or_default();
    }

    /// It goes on, and finds everything that arrived meanwhile.
    pub fn thaw(&mut self, host: HostId) {
        self.play.tell(self.now, format_args!("host {} goes on", Host(host)));
        for cue in self.frozen.remove(&host).unwrap_or_default() {
            self.at(0, cue);
        }
    }

    /// A host's wall clock, in Unix milliseconds, for sessions that open there from now on.
    pub fn set_wall_clock(&mut self, host: HostId, unix_ms: u64) {
        self.play.tell(self.now, format_args!("host {}'s wall clock is set to {unix_ms} ms", Host(host)));
        self.wall_ms.insert(host, unix_ms);
    }

    /// From now on a host's clock runs so many thousandths too fast. More than R9's margin is a lie: reads of sessions
    /// that are owners no more are judged by nobody.
    pub fn set_clock_rate(&mut self, host: HostId, thousandths: u64) {
        self.play
            .tell(self.now, format_args!("host {}'s clock is {thousandths} thousandths fast", Host(host)));
        assert!(self.acts.iter().all(|a| a.host != host), "before anybody looks at it");
        self.rates.insert(host, thousandths);
        self.lying |= thousandths > 10;
    }

    pub(super) fn see(&mut self, host: HostId, watermark: Watermark) {
        let known = self.watermarks.get_mut(&host).expect("a host of the stage");
        *known = (*known).max(watermark);
        let known = *known;
        for rep in self.reps.values_mut().filter(|r| r.host == host) {
            if let Some(m) = &mut rep.machine {
                m.handle_watermark(known);
            }
        }
    }
}
