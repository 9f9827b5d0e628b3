//! Reading a snapshot, on any host, whoever owns the volume and whether anybody does: a machine of the same kind as
//! [`crate::session::Session`], without a promise, a record and a store (R1's last sentence: an image that is READY never
//! changes).
//!
//! ```text
//! guest request ─split─▶ parts ──▶ a member that is attached, the local one first ──▶ verified ──▶ answered
//!                          ▲                    │ refused, wrong or late
//!                          └──── another one ◀──┘            each of them refused: unreadable
//! ```
//!
//! Must always hold:
//! * what is answered was verified by its checksums, and comes from images of this snapshot only;
//! * a request fails when every member has refused it, not before; while one is out of reach it waits;
//! * what differs from another snapshot is told by a member that took both itself (R29); where none does, refused or out
//!   of reach, whatever is data in either counts as different, and the answer says so;
//! * nothing is ever written.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::guest::{GuestError, GuestOp, GuestReply, RequestId};
use crate::ids::{Epoch, HostId, Instant, LayerMark, Ordinal, PoolId, Rid, SessionId, SnapId, VolumeId};
use crate::layer::hide_all;
use crate::message::{
    Answer, Ask, Attach, CHANGED_GRAIN, Extent, Hole, MAX_DATA, Refusal, Request, Response, Watermark,
};
use crate::payload::{BLOCK, Payload};
use crate::session::{Transmit, clip_data, clip_kinds, verified};

/// Kinds are asked for in ranges of this size.
const KINDS_PIECE: u64 = 64 << 20;
/// The same, of what differs: all of it may have to be read, twice.
const CHANGED_PIECE: u64 = 8 << 20;
/// So long it is waited for a member that can tell what differs.
const GIVE_UP_MS: u64 = 5000;
/// Requests under way at once.
const OPEN_MAX: usize = 64;
/// An answer that is later than this is not waited for, if another member can be asked.
const LATE_MS: u64 = 1500;
/// Before a member that has refused an attach, or was busy, is asked again.
const AGAIN_MS: u64 = 500;
/// Between two looks at what is late.
const TICK_MS: u64 = 100;

/// Which snapshot is read, and by whom.
#[derive(Clone, Debug)]
pub struct ReaderConfig {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot.
    pub snap: SnapId,
    /// Its size in bytes: whole blocks.
    pub size: u64,
    /// This host.
    pub host: HostId,
    /// A session's id, fresh per reader: what replicas know its attachments by.
    pub session: SessionId,
    /// This host's watermark (R11).
    pub watermark: Watermark,
    /// With which others it may be compared.
    pub others: Vec<OtherSnap>,
    /// The mark of a layer, to be hidden from who reads it as a guest does (R34). None: it is no layer, or is read as it lies.
    pub layer: Option<LayerMark>,
}

/// Another snapshot of the volume.
#[derive(Clone, Debug)]
pub struct OtherSnap {
    /// Which.
    pub snap: SnapId,
    /// Its size in bytes: whole blocks.
    pub size: u64,
    /// Who took it.
    pub members: Vec<Rid>,
}

/// A copy that has an image, of this snapshot or of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderMember {
    /// Its number.
    pub rid: Rid,
    /// Its host.
    pub node: HostId,
    /// Its pool.
    pub pool: PoolId,
    /// It is on this host: asked first.
    pub local: bool,
    /// It took the snapshot that is read.
    pub took: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    Up,
    Attaching,
    Attached,
}

#[derive(Debug)]
struct Member {
    is: ReaderMember,
    link: Link,
    ordinal: Ordinal,
    next_tag: u32,
    /// Which part each request is for, and when it was sent.
    open: BTreeMap<u32, (Option<PartId>, Instant)>,
    /// It refused its attach: it gives nothing now.
    refuses: bool,
    /// It is asked for nothing before this.
    hold: Option<Instant>,
    /// It was late, and has not answered since.
    hangs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PartId(u64);

/// What a part is to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Data,
    Kinds,
    /// What differs from that one.
    Changed(SnapId),
    /// Kinds of that one.
    KindsOf(SnapId),
}

#[derive(Debug)]
struct Part {
    request: RequestId,
    start: u64,
    end: u64,
    what: What,
    since: Instant,
    /// Who has refused it.
    bad: Vec<Rid>,
    /// Who is asked.
    asked: Option<Rid>,
}

/// What has been found of a request, part by part, each with where it begins.
#[derive(Debug)]
enum Found<P> {
    Data(Vec<(u64, Vec<Extent<P>>)>),
    Kinds(Vec<(u64, Vec<(u64, Option<Hole>)>)>),
    /// Of each grain from the one on in which the request begins.
    Changed {
        grains: Vec<bool>,
        exact: bool,
    },
}

#[derive(Debug)]
struct Asked<P> {
    offset: u64,
    len: u64,
    remaining: usize,
    found: Found<P>,
}

impl<P> Asked<P> {
    /// These bytes differ.
    fn differs(&mut self, from: u64, to: u64) {
        let first = self.offset / CHANGED_GRAIN;
        if let Found::Changed { grains, .. } = &mut self.found {
            for grain in from / CHANGED_GRAIN..to.div_ceil(CHANGED_GRAIN) {
                let at = grain.checked_sub(first).and_then(|at| usize::try_from(at).ok());
                if let Some(differs) = at.and_then(|at| grains.get_mut(at)) {
                    *differs = true;
                }
            }
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct SnapReader<P> {
    config: ReaderConfig,
    members: BTreeMap<Rid, Member>,
    parts: BTreeMap<PartId, Part>,
    waiting: VecDeque<PartId>,
    guests: BTreeMap<RequestId, Asked<P>>,
    next_part: u64,
    next_tick: Instant,
    closed: bool,
    transmits: VecDeque<Transmit<P>>,
    replies: VecDeque<(RequestId, GuestReply<P>)>,
}

impl<P: Payload> SnapReader<P> {
    /// A reader of a snapshot of which these copies have images.
    #[must_use]
    pub fn new(config: ReaderConfig, members: &[ReaderMember], now: Instant) -> SnapReader<P> {
        let member = |is: &ReaderMember| {
            let new = Member {
                is: *is,
                link: Link::Down,
                ordinal: Ordinal(0),
                next_tag: 0,
                open: BTreeMap::new(),
                refuses: false,
                hold: None,
                hangs: false,
            };
            (is.rid, new)
        };
        SnapReader {
            config,
            members: members.iter().map(member).collect(),
            parts: BTreeMap::new(),
            waiting: VecDeque::new(),
            guests: BTreeMap::new(),
            next_part: 0,
            next_tick: now,
            closed: false,
            transmits: VecDeque::new(),
            replies: VecDeque::new(),
        }
    }

    // ---- getters

    /// The volume.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.config.volume
    }

    /// The snapshot.
    #[must_use]
    pub fn snap(&self) -> SnapId {
        self.config.snap
    }

    /// The id by which replicas know it.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.config.session
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.config.size
    }

    /// Unanswered requests.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.guests.len()
    }

    /// Every copy to which a connection is wanted, with its host and pool.
    pub fn wanted_links(&self) -> impl Iterator<Item = (Rid, HostId, PoolId)> + '_ {
        self.members.values().filter(|_| !self.closed).map(|m| (m.is.rid, m.is.node, m.is.pool))
    }

    // ---- what happened

    /// The connection to a copy's host is up; the reader attaches.
    pub fn handle_link_up(&mut self, now: Instant, rid: Rid) {
        if let Some(member) = self.members.get_mut(&rid).filter(|m| m.link == Link::Down) {
            member.link = Link::Up;
        }
        self.drive(now);
    }

    /// The connection to a copy's host is gone.
    pub fn handle_link_down(&mut self, now: Instant, rid: Rid) {
        self.detach(rid, Link::Down);
        self.drive(now);
    }

    /// A copy answered on an attachment.
    pub fn handle_response(&mut self, now: Instant, rid: Rid, ordinal: Ordinal, response: Response<P>) {
        self.take_response(now, rid, ordinal, response);
        self.drive(now);
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.next_tick {
            self.next_tick = now.after_ms(TICK_MS);
            self.pass_over_late(now);
        }
        self.drive(now);
    }

    /// This host has seen the store further.
    pub fn handle_watermark(&mut self, seen: Watermark) {
        self.config.watermark = self.config.watermark.max(seen);
    }

    // ---- what the caller wants

    /// A guest's request; answered once through [`SnapReader::poll_reply`]. Whatever would change something fails with
    /// [`GuestError::OutOfRange`]: nothing of a snapshot may be written.
    pub fn submit(&mut self, now: Instant, id: RequestId, op: &GuestOp<P>) {
        assert!(!self.guests.contains_key(&id), "request {id:?} is used twice");
        let failed = |error| GuestReply::Failed(error);
        let (offset, len, what) = match op {
            _ if self.closed => return self.replies.push_back((id, failed(GuestError::Fenced))),
            GuestOp::Read { offset, len } => (*offset, *len, What::Data),
            GuestOp::Kinds { offset, len } => (*offset, *len, What::Kinds),
            GuestOp::Changed { since, offset, len } if self.other(*since).is_some() => {
                (*offset, *len, What::Changed(*since))
            }
            GuestOp::Flush => return self.replies.push_back((id, GuestReply::Done)),
            GuestOp::Write { .. } | GuestOp::Zero { .. } | GuestOp::Changed { .. } => {
                return self.replies.push_back((id, failed(GuestError::OutOfRange)));
            }
        };
        let Some(end) = offset.checked_add(len).filter(|end| *end <= self.config.size) else {
            return self.replies.push_back((id, failed(GuestError::OutOfRange)));
        };
        let (grain, max) = match what {
            What::Data => (BLOCK, MAX_DATA),
            What::Kinds | What::KindsOf(_) => (BLOCK, KINDS_PIECE),
            What::Changed(_) => (CHANGED_GRAIN, CHANGED_PIECE),
        };
        let start = offset / grain * grain;
        let end = end.next_multiple_of(grain).min(self.config.size.next_multiple_of(BLOCK));
        let found = match what {
            What::Data => Found::Data(Vec::new()),
            What::Kinds | What::KindsOf(_) => Found::Kinds(Vec::new()),
            What::Changed(_) => {
                let grains = usize::try_from((end - start).div_ceil(grain)).expect("at most 2^30");
                Found::Changed { grains: alloc::vec![false; grains], exact: true }
            }
        };
        let (mut at, mut remaining) = (start, 0);
        while len > 0 && at < end {
            let stop = end.min(at + max);
            self.add(now, id, (at, stop), what);
            (at, remaining) = (stop, remaining + 1);
        }
        self.guests.insert(id, Asked { offset, len, remaining, found });
        self.finish(id);
        self.drive(now);
    }

    fn add(&mut self, now: Instant, request: RequestId, (start, end): (u64, u64), what: What) {
        self.next_part += 1;
        let (id, bad, asked) = (PartId(self.next_part), Vec::new(), None);
        self.parts.insert(id, Part { request, start, end, what, since: now, bad, asked });
        self.waiting.push_back(id);
    }

    fn other(&self, snap: SnapId) -> Option<&OtherSnap> {
        self.config.others.iter().find(|other| other.snap == snap)
    }

    /// Nothing is read any more: what waits fails.
    pub fn close(&mut self) {
        self.closed = true;
        while let Some((id, _)) = self.guests.pop_first() {
            self.replies.push_back((id, GuestReply::Failed(GuestError::Fenced)));
        }
        self.parts.clear();
        self.waiting.clear();
        self.transmits.clear();
    }

    // ---- what to do next

    /// The next request to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit<P>> {
        self.transmits.pop_front()
    }

    /// The next answer to a guest.
    pub fn poll_reply(&mut self) -> Option<(RequestId, GuestReply<P>)> {
        self.replies.pop_front()
    }

    /// When [`SnapReader::handle_timeout`] is due; `None` while nothing waits.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waits = !self.parts.is_empty() || self.members.values().any(|m| m.link == Link::Up);
        (waits && !self.closed).then_some(self.next_tick)
    }

    // ---- members

    fn send(&mut self, now: Instant, rid: Rid, part: Option<PartId>, ask: Ask<P>) {
        let Some(member) = self.members.get_mut(&rid) else { return };
        member.next_tag = member.next_tag.wrapping_add(1);
        let tag = member.next_tag;
        member.open.insert(tag, (part, now));
        let ReaderMember { node, pool, .. } = member.is;
        let request = Request { tag, epoch: Epoch(0), ask };
        self.transmits.push_back(Transmit { rid, node, pool, ordinal: member.ordinal, request });
    }

    /// The attachment has ended: what it was asked is asked of another member, or of this one again.
    fn detach(&mut self, rid: Rid, link: Link) {
        let Some(member) = self.members.get_mut(&rid) else { return };
        (member.link, member.hangs) = (link, false);
        let open = core::mem::take(&mut member.open);
        for (part, _) in open.into_values() {
            self.again(part, rid);
        }
    }

    /// A part has not come back from this member.
    fn again(&mut self, part: Option<PartId>, rid: Rid) {
        let Some(id) = part else { return };
        if let Some(part) = self.parts.get_mut(&id).filter(|p| p.asked == Some(rid)) {
            part.asked = None;
            self.waiting.push_front(id);
        }
    }

    fn take_response(&mut self, now: Instant, rid: Rid, ordinal: Ordinal, response: Response<P>) {
        let Some(member) = self.members.get_mut(&rid).filter(|m| m.ordinal == ordinal) else { return };
        let Some((part, _)) = member.open.remove(&response.tag) else { return };
        member.hangs = false;
        let Some(id) = part else {
            return match response.outcome {
                Ok(Answer::Attached(_)) => (member.link, member.refuses) = (Link::Attached, false),
                // Its host has seen more of the store, or has lost an attachment of ours: no word on its image.
                Err(Refusal::MetadataRollback | Refusal::Busy | Refusal::NotAttached) => {
                    (member.link, member.hold) = (Link::Up, Some(now.after_ms(AGAIN_MS)));
                }
                _ => {
                    (member.link, member.hold) = (Link::Up, Some(now.after_ms(AGAIN_MS)));
                    member.refuses = true;
                }
            };
        };
        // Late, and in the meantime asked of another one: whoever answers first.
        let Some(part) = self.parts.get(&id) else { return };
        let (request, start, len) = (part.request, part.start, part.end - part.start);
        match (response.outcome, part.what) {
            (Ok(Answer::Data(extents)), What::Data) if verified(&extents, len) => {
                self.part_done(id);
                if let Some(Found::Data(all)) = self.guests.get_mut(&request).map(|guest| &mut guest.found) {
                    all.push((start, extents));
                }
                self.finish(request);
            }
            (Ok(Answer::Kinds(runs)), What::Kinds | What::KindsOf(_))
                if runs.iter().map(|(l, _)| *l).sum::<u64>() == len =>
            {
                self.part_done(id);
                match self.guests.get_mut(&request) {
                    Some(Asked { found: Found::Kinds(all), .. }) => all.push((start, runs)),
                    Some(guest) => {
                        let mut at = start;
                        for (len, kind) in runs {
                            if kind.is_none() {
                                guest.differs(at, at + len);
                            }
                            at += len;
                        }
                    }
                    None => {}
                }
                self.finish(request);
            }
            (Ok(Answer::Changed(bits)), What::Changed(_))
                if bits.len() as u64 == len.div_ceil(8 * CHANGED_GRAIN) =>
            {
                self.part_done(id);
                if let Some(guest) = self.guests.get_mut(&request) {
                    let set = |n: &usize| bits[n / 8] & 0x80 >> (n % 8) != 0;
                    for at in (0..8 * bits.len()).filter(set).map(|n| start + n as u64 * CHANGED_GRAIN) {
                        guest.differs(at, at + 1);
                    }
                }
                self.finish(request);
            }
            (outcome, _) => self.not_given(now, rid, id, outcome.err()),
        }
    }

    /// A member did not give a part: for this reason, or none.
    fn not_given(&mut self, now: Instant, rid: Rid, id: PartId, refusal: Option<Refusal>) {
        match refusal {
            Some(Refusal::NotAttached) => {
                self.again(Some(id), rid);
                self.detach(rid, Link::Up);
            }
            Some(Refusal::Busy) => {
                if let Some(member) = self.members.get_mut(&rid) {
                    member.hold = Some(now.after_ms(TICK_MS));
                }
                self.again(Some(id), rid);
            }
            // Refused, or not what it should be.
            _ => {
                if let Some(part) = self.parts.get_mut(&id)
                    && !part.bad.contains(&rid)
                {
                    part.bad.push(rid);
                }
                self.again(Some(id), rid);
            }
        }
    }

    /// What is late is asked of another member, if there is one; the late answer is not used.
    fn pass_over_late(&mut self, now: Instant) {
        let mut late = Vec::new();
        for (rid, member) in &mut self.members {
            let old = |(_, (part, at)): &(&u32, &(Option<PartId>, Instant))| {
                part.is_some() && now.ms_since(*at) >= LATE_MS
            };
            let tags: Vec<u32> = member.open.iter().filter(old).map(|(tag, _)| *tag).collect();
            member.hangs |= !tags.is_empty();
            late.extend(tags.into_iter().map(|tag| (*rid, tag)));
        }
        for (rid, tag) in late {
            let part = self.members[&rid].open.get(&tag).and_then(|(part, _)| *part);
            let other = part.and_then(|id| self.parts.get(&id)).is_some_and(|part| {
                self.chosen(now, part).is_some_and(|chosen| chosen != rid && !self.members[&chosen].hangs)
            });
            if other && let Some(member) = self.members.get_mut(&rid) {
                member.open.remove(&tag);
                self.again(part, rid);
            }
        }
    }

    /// Who is asked for a part: one that is attached and has not refused it, one that answers, the local one, the one
    /// with the least to do.
    fn chosen(&self, now: Instant, part: &Part) -> Option<Rid> {
        let may = |m: &&Member| {
            m.link == Link::Attached
                && self.has(&m.is, part.what)
                && !part.bad.contains(&m.is.rid)
                && m.hold.is_none_or(|at| now >= at)
        };
        let best = self.members.values().filter(may).min_by_key(|m| (m.hangs, !m.is.local, m.open.len()));
        best.map(|m| m.is.rid)
    }

    /// Can a member tell that?
    fn has(&self, member: &ReaderMember, what: What) -> bool {
        let took = |snap| self.other(snap).is_some_and(|other| other.members.contains(&member.rid));
        match what {
            What::Data | What::Kinds => member.took,
            What::Changed(other) => member.took && took(other),
            What::KindsOf(other) => took(other),
        }
    }

    // ---- parts

    fn drive(&mut self, now: Instant) {
        if self.closed {
            return;
        }
        self.attach(now);
        let mut left = self.waiting.len();
        while left > 0 {
            left -= 1;
            let open: usize = self.members.values().map(|m| m.open.len()).sum();
            if open >= OPEN_MAX {
                return;
            }
            let Some(id) = self.waiting.pop_front() else { return };
            let Some(part) = self.parts.get(&id) else { continue };
            let (offset, len, what, request) = (part.start, part.end - part.start, part.what, part.request);
            let useless = |m: &Member| m.refuses || part.bad.contains(&m.is.rid) || !self.has(&m.is, what);
            if let Some(rid) = self.chosen(now, part) {
                let ask = self.ask(id, what, offset, len);
                if let Some(part) = self.parts.get_mut(&id) {
                    part.asked = Some(rid);
                }
                self.send(now, rid, Some(id), ask);
            } else if let What::Changed(other) = what
                && (self.members.values().all(useless) || now.ms_since(part.since) >= GIVE_UP_MS)
            {
                left += self.fall_back(now, id, other);
            } else if self.members.values().all(useless) {
                let refused = |m: &Member| m.refuses || !self.has(&m.is, what);
                if len > BLOCK && what == What::Data && !self.members.values().all(refused) {
                    // Each block may be good on some member: they are asked for one by one.
                    left += self.split(now, id);
                } else {
                    self.fail(request);
                }
            } else {
                self.waiting.push_back(id);
            }
        }
    }

    fn ask(&self, id: PartId, what: What, offset: u64, len: u64) -> Ask<P> {
        let snap = self.config.snap;
        match what {
            What::Data => Ask::SnapRead { id: snap, offset, len },
            What::Kinds => Ask::SnapKinds { id: snap, offset, len },
            What::KindsOf(other) => Ask::SnapKinds { id: other, offset, len },
            What::Changed(since) => {
                // The session's id is random, and nothing that a guest could know.
                let key = (self.config.session.0 ^ u128::from(id.0)).to_le_bytes();
                Ask::SnapChanged { id: snap, since, offset, len, key }
            }
        }
    }

    /// Nobody tells what differs: what is data in either is said to. Into how many parts it was split.
    fn fall_back(&mut self, now: Instant, id: PartId, other: SnapId) -> usize {
        let Some(Part { request, start, end, .. }) = self.parts.remove(&id) else { return 0 };
        let stop = end.min(self.other(other).map_or(0, |other| other.size));
        self.add(now, request, (start, end), What::Kinds);
        let both = start < stop;
        if both {
            self.add(now, request, (start, stop), What::KindsOf(other));
        }
        if let Some(guest) = self.guests.get_mut(&request) {
            guest.remaining += usize::from(both);
            if let Found::Changed { exact, .. } = &mut guest.found {
                *exact = false;
            }
        }
        1 + usize::from(both)
    }

    fn attach(&mut self, now: Instant) {
        let ready = |m: &&Member| m.link == Link::Up && m.hold.is_none_or(|at| now >= at);
        let ready: Vec<Rid> = self.members.values().filter(ready).map(|m| m.is.rid).collect();
        for rid in ready {
            let Some(member) = self.members.get_mut(&rid) else { continue };
            member.link = Link::Attaching;
            member.ordinal.0 += 1;
            let attach = Attach {
                volume: self.config.volume,
                rid,
                pool: member.is.pool,
                host: self.config.host,
                session: self.config.session,
                ordinal: member.ordinal,
                watermark: self.config.watermark,
            };
            self.send(now, rid, None, Ask::Attach(attach));
        }
    }

    /// Into how many it was split.
    fn split(&mut self, now: Instant, id: PartId) -> usize {
        let Some(Part { request, start, end, what, .. }) = self.parts.remove(&id) else { return 0 };
        let (mut at, before) = (start, self.waiting.len());
        while at < end {
            self.add(now, request, (at, at + BLOCK), what);
            if let Some(guest) = self.guests.get_mut(&request).filter(|_| at > start) {
                guest.remaining += 1;
            }
            at += BLOCK;
        }
        self.waiting.len() - before
    }

    fn part_done(&mut self, id: PartId) {
        let Some(part) = self.parts.remove(&id) else { return };
        self.waiting.retain(|other| *other != id);
        if let Some(guest) = self.guests.get_mut(&part.request) {
            guest.remaining -= 1;
        }
    }

    /// No member gives it.
    fn fail(&mut self, request: RequestId) {
        self.parts.retain(|_, part| part.request != request);
        if self.guests.remove(&request).is_some() {
            self.replies.push_back((request, GuestReply::Failed(GuestError::Unreadable)));
        }
    }

    fn finish(&mut self, id: RequestId) {
        if self.guests.get(&id).is_none_or(|guest| guest.remaining > 0) {
            return;
        }
        let Some(guest) = self.guests.remove(&id) else { return };
        let reply = match guest.found {
            Found::Kinds(kinds) => GuestReply::Kinds(clip_kinds(kinds, guest.offset, guest.len)),
            Found::Data(mut data) => {
                if let Some(mark) = self.config.layer {
                    hide_all(mark, &mut data);
                }
                GuestReply::Data(clip_data(data, guest.offset, guest.len))
            }
            Found::Changed { grains, exact } => {
                GuestReply::Changed { runs: runs_of(&grains, guest.offset, guest.len), exact }
            }
        };
        self.replies.push_back((id, reply));
    }
}

/// Grains, the first of which is the one that a range begins in, as runs of that range.
fn runs_of(grains: &[bool], offset: u64, len: u64) -> Vec<(u64, bool)> {
    let mut runs: Vec<(u64, bool)> = Vec::new();
    let (mut at, end) = (offset, offset + len);
    for differs in grains {
        let stop = end.min((at / CHANGED_GRAIN + 1) * CHANGED_GRAIN);
        match runs.last_mut() {
            Some((run, last)) if last == differs => *run += stop - at,
            _ => runs.push((stop - at, *differs)),
        }
        at = stop;
    }
    runs
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::ids::{ClusterId, Generation, PoolInc};
    use crate::message::ReplicaView;
    use crate::payload::{HeapPayload, block_crcs};

    const SIZE: u64 = 64 * BLOCK;
    const MARK: Watermark = Watermark { cluster: ClusterId(1), incarnation: 1, revision: 1 };

    type Reader = SnapReader<HeapPayload>;

    /// Two members, r1 on this host; both connected.
    fn reader() -> Reader {
        reader_of(2, 1, Vec::new())
    }

    /// So many members, all connected; r0 and r1 took the snapshot.
    fn reader_of(members: u32, local: u32, others: Vec<OtherSnap>) -> Reader {
        let config = ReaderConfig {
            volume: VolumeId(1),
            snap: SnapId(9),
            size: SIZE,
            host: HostId(0xB),
            session: SessionId(5),
            watermark: MARK,
            others,
            layer: None,
        };
        let member = |rid: u32| ReaderMember {
            rid: Rid(rid),
            node: HostId(0xA + u128::from(rid)),
            pool: PoolId(u128::from(rid)),
            local: rid == local,
            took: rid < 2,
        };
        let list: Vec<ReaderMember> = (0..members).map(member).collect();
        let mut reader = Reader::new(config, &list, at(0));
        for rid in 0..members {
            reader.handle_link_up(at(0), Rid(rid));
            let attach = sent(&mut reader);
            assert!(matches!(attach.request.ask, Ask::Attach(_)), "{attach:?}");
            answer(&mut reader, at(0), &attach, Ok(Answer::Attached(view())));
        }
        reader
    }

    fn at(ms: u64) -> Instant {
        Instant(0).after_ms(ms)
    }

    fn view() -> ReplicaView {
        ReplicaView {
            promised: Epoch(3),
            session: SessionId(77),
            sealed: Generation::NEVER,
            newest: Generation::NEVER,
            unsealed_regions: 0,
            lossy: false,
            size: SIZE,
            pool_inc: PoolInc(1),
            watermark: MARK,
            ordinal: Ordinal(1),
        }
    }

    fn sent(reader: &mut Reader) -> Transmit<HeapPayload> {
        reader.poll_transmit().expect("something is asked")
    }

    fn answer(
        reader: &mut Reader,
        now: Instant,
        to: &Transmit<HeapPayload>,
        outcome: Result<Answer<HeapPayload>, Refusal>,
    ) {
        let response = Response { tag: to.request.tag, epoch: Epoch(3), outcome, service_us: 1 };
        reader.handle_response(now, to.rid, to.ordinal, response);
    }

    /// What an honest member says: each block is filled with `fill`.
    fn data(ask: &Ask<HeapPayload>, fill: u8) -> Answer<HeapPayload> {
        let Ask::SnapRead { id: SnapId(9), len, .. } = ask else { panic!("{ask:?}") };
        let data: HeapPayload = vec![fill; usize::try_from(*len).expect("small")].into();
        Answer::Data(vec![Extent::Data { crcs: block_crcs(data.bytes()), data }])
    }

    fn bytes(reader: &mut Reader) -> Vec<u8> {
        let Some((_, GuestReply::Data(extents))) = reader.poll_reply() else { panic!("no data") };
        let mut all = Vec::new();
        for extent in extents {
            match extent {
                Extent::Data { data, .. } => all.extend_from_slice(data.bytes()),
                Extent::Hole { len, .. } => all.resize(all.len() + usize::try_from(len).expect("small"), 0),
            }
        }
        all
    }

    #[test]
    fn the_local_copy_is_asked_and_a_read_is_cut_to_what_was_wanted() {
        let mut reader = reader();
        reader.submit(at(1), RequestId(1), &GuestOp::Read { offset: 100, len: 40 * BLOCK });
        // Two messages' worth.
        let (first, second) = (sent(&mut reader), sent(&mut reader));
        assert_eq!((first.rid, second.rid), (Rid(1), Rid(1)));
        answer(&mut reader, at(2), &second, Ok(data(&second.request.ask, 8)));
        assert_eq!(reader.poll_reply(), None, "one part is missing");
        answer(&mut reader, at(2), &first, Ok(data(&first.request.ask, 7)));
        let all = bytes(&mut reader);
        assert_eq!(all.len() as u64, 40 * BLOCK);
        assert_eq!((all[0], all[all.len() - 1]), (7, 8));
        assert_eq!((reader.pending(), reader.poll_timeout()), (0, None));
    }

    #[test]
    fn what_one_copy_can_not_give_another_one_is_asked_for() {
        for refusal in [Refusal::BitRot, Refusal::IoError, Refusal::NoSnapshot, Refusal::Quarantined] {
            let mut reader = reader();
            reader.submit(at(1), RequestId(1), &GuestOp::Read { offset: 0, len: BLOCK });
            let first = sent(&mut reader);
            answer(&mut reader, at(2), &first, Err(refusal));
            let second = sent(&mut reader);
            assert_eq!(second.rid, Rid(0), "{refusal:?}");
            answer(&mut reader, at(3), &second, Ok(data(&second.request.ask, 7)));
            assert_eq!(bytes(&mut reader), vec![7; 4096]);
        }
    }

    #[test]
    fn data_that_does_not_fit_its_checksums_is_no_answer() {
        let mut reader = reader();
        reader.submit(at(1), RequestId(1), &GuestOp::Read { offset: 0, len: BLOCK });
        let first = sent(&mut reader);
        let Answer::Data(mut extents) = data(&first.request.ask, 7) else { unreachable!() };
        let Extent::Data { crcs, .. } = &mut extents[0] else { unreachable!() };
        crcs[0] ^= 1;
        answer(&mut reader, at(2), &first, Ok(Answer::Data(extents)));
        assert_eq!(reader.poll_reply(), None);
        let second = sent(&mut reader);
        // Nor is too little of it.
        answer(&mut reader, at(3), &second, Ok(Answer::Data(Vec::new())));
        assert_eq!(reader.poll_reply(), Some((RequestId(1), GuestReply::Failed(GuestError::Unreadable))));
    }

    #[test]
    fn a_request_fails_when_every_copy_has_refused_it_and_not_before() {
        let mut reader = reader();
        reader.handle_link_down(at(1), Rid(0));
        reader.submit(at(1), RequestId(1), &GuestOp::Read { offset: 0, len: BLOCK });
        let first = sent(&mut reader);
        answer(&mut reader, at(2), &first, Err(Refusal::BitRot));
        reader.handle_timeout(at(60_000));
        assert_eq!((reader.poll_reply(), reader.pending()), (None, 1), "r0 may have it");
        reader.handle_link_up(at(60_001), Rid(0));
        let attach = sent(&mut reader);
        assert_eq!(attach.ordinal, Ordinal(2));
        answer(&mut reader, at(60_002), &attach, Err(Refusal::NoReplica));
        assert_eq!(reader.poll_reply(), Some((RequestId(1), GuestReply::Failed(GuestError::Unreadable))));
    }

    #[test]
    fn blocks_that_are_each_rotten_somewhere_are_put_together() {
        let mut reader = reader();
        reader.submit(at(1), RequestId(1), &GuestOp::Read { offset: 0, len: 2 * BLOCK });
        // r1 has lost block 0, r0 block 1.
        let lost = |to: &Transmit<HeapPayload>| {
            let Ask::SnapRead { offset, len, .. } = to.request.ask else { panic!("{to:?}") };
            let block = if to.rid == Rid(1) { 0 } else { BLOCK };
            (offset..offset + len).contains(&block)
        };
        for _ in 0..10 {
            let Some(to) = reader.poll_transmit() else { break };
            let outcome = if lost(&to) { Err(Refusal::BitRot) } else { Ok(data(&to.request.ask, 7)) };
            answer(&mut reader, at(2), &to, outcome);
        }
        assert_eq!(bytes(&mut reader), vec![7; 8192]);
    }

    #[test]
    fn a_copy_that_is_late_is_passed_over_and_asked_last() {
        let mut reader = reader();
        reader.submit(at(1), RequestId(1), &GuestOp::Read { offset: 0, len: BLOCK });
        let late = sent(&mut reader);
        assert_eq!(late.rid, Rid(1));
        reader.handle_timeout(at(1000));
        assert!(reader.poll_transmit().is_none());
        reader.handle_timeout(at(1601));
        let second = sent(&mut reader);
        assert_eq!(second.rid, Rid(0));
        reader.submit(at(1602), RequestId(2), &GuestOp::Read { offset: 0, len: BLOCK });
        let third = sent(&mut reader);
        assert_eq!(third.rid, Rid(0), "the local one hangs");
        answer(&mut reader, at(1603), &late, Ok(data(&late.request.ask, 9)));
        assert_eq!(reader.poll_reply(), None, "what was given up counts no more");
        answer(&mut reader, at(1604), &second, Ok(data(&second.request.ask, 7)));
        assert_eq!(bytes(&mut reader), vec![7; 4096]);
    }

    #[test]
    fn an_attachment_that_has_ended_is_made_anew_and_its_requests_are_asked_again() {
        let mut reader = reader();
        reader.handle_link_down(at(1), Rid(0));
        reader.submit(at(1), RequestId(1), &GuestOp::Read { offset: 0, len: BLOCK });
        let first = sent(&mut reader);
        answer(&mut reader, at(2), &first, Err(Refusal::NotAttached));
        let attach = sent(&mut reader);
        assert!(matches!(&attach.request.ask, Ask::Attach(a) if a.ordinal == Ordinal(2)));
        answer(&mut reader, at(3), &first, Ok(data(&first.request.ask, 9)));
        answer(&mut reader, at(3), &attach, Ok(Answer::Attached(view())));
        let again = sent(&mut reader);
        answer(&mut reader, at(4), &again, Err(Refusal::Busy));
        assert!(reader.poll_transmit().is_none(), "not at once");
        reader.handle_timeout(at(200));
        let again = sent(&mut reader);
        answer(&mut reader, at(201), &again, Ok(data(&again.request.ask, 7)));
        assert_eq!(bytes(&mut reader), vec![7; 4096]);
    }

    #[test]
    fn holes_are_told_and_nothing_is_written() {
        let mut reader = reader();
        reader.submit(at(1), RequestId(1), &GuestOp::Kinds { offset: BLOCK, len: 2 * BLOCK });
        let kinds = sent(&mut reader);
        assert_eq!(kinds.request.ask, Ask::SnapKinds { id: SnapId(9), offset: BLOCK, len: 2 * BLOCK });
        let runs = vec![(BLOCK, None), (BLOCK, Some(Hole::Absent))];
        answer(&mut reader, at(2), &kinds, Ok(Answer::Kinds(runs.clone())));
        assert_eq!(reader.poll_reply(), Some((RequestId(1), GuestReply::Kinds(runs))));
        let refused = Some(GuestReply::Failed(GuestError::OutOfRange));
        let zero = GuestOp::Zero { offset: 0, len: BLOCK, discard: true, keep_space: false, fua: false };
        let write = GuestOp::Write { offset: 0, data: HeapPayload::zeroed(4096), fua: false };
        let beyond = GuestOp::Read { offset: SIZE, len: 1 };
        let around = GuestOp::Kinds { offset: u64::MAX, len: 2 };
        for (n, op) in (2..).zip([zero, write, beyond, around]) {
            reader.submit(at(3), RequestId(n), &op);
            assert_eq!(reader.poll_reply().map(|(_, reply)| reply), refused, "{op:?}");
        }
        reader.submit(at(3), RequestId(9), &GuestOp::Flush);
        assert_eq!(reader.poll_reply(), Some((RequestId(9), GuestReply::Done)));
        assert!(reader.poll_transmit().is_none(), "nobody was asked for any of it");
    }

    /// r0 and r1 took snapshot 9, r1 and r2 the older and smaller one, 8.
    fn comparing() -> Reader {
        let others = vec![OtherSnap { snap: SnapId(8), size: SIZE / 2, members: vec![Rid(1), Rid(2)] }];
        reader_of(3, 0, others)
    }

    const SINCE: SnapId = SnapId(8);

    #[test]
    fn what_differs_is_asked_of_a_copy_that_took_both() {
        let mut reader = comparing();
        let (offset, len) = (CHANGED_GRAIN + 512, 2 * CHANGED_GRAIN);
        reader.submit(at(1), RequestId(1), &GuestOp::Changed { since: SINCE, offset, len });
        let asked = sent(&mut reader);
        assert_eq!(asked.rid, Rid(1), "the only one of both");
        let Ask::SnapChanged { id: SnapId(9), since: SINCE, offset, len, key } = asked.request.ask else {
            panic!("{asked:?}")
        };
        assert_eq!((offset, len), (CHANGED_GRAIN, 3 * CHANGED_GRAIN), "whole grains");
        answer(&mut reader, at(2), &asked, Ok(Answer::Changed(vec![0b0101_0000])));
        let runs = vec![(CHANGED_GRAIN - 512, false), (CHANGED_GRAIN, true), (512, false)];
        assert_eq!(reader.poll_reply(), Some((RequestId(1), GuestReply::Changed { runs, exact: true })));
        reader.submit(at(3), RequestId(2), &GuestOp::Changed { since: SINCE, offset: SIZE - 1, len: 1 });
        let asked = sent(&mut reader);
        let Ask::SnapChanged { key: other, .. } = asked.request.ask else { panic!("{asked:?}") };
        assert_ne!(key, other, "no two ranges have the same key");
        answer(&mut reader, at(4), &asked, Ok(Answer::Changed(vec![0x80])));
        let runs = vec![(1, true)];
        assert_eq!(reader.poll_reply(), Some((RequestId(2), GuestReply::Changed { runs, exact: true })));
        let unknown = GuestOp::Changed { since: SnapId(7), offset: 0, len: 1 };
        reader.submit(at(5), RequestId(3), &unknown);
        let refused = Some(GuestReply::Failed(GuestError::OutOfRange));
        assert_eq!(reader.poll_reply().map(|(_, reply)| reply), refused);
    }

    /// Everything is data in the one that is read, but for the third grain; the older one has half of that.
    fn told_by_kinds(reader: &mut Reader, now: Instant) -> GuestReply<HeapPayload> {
        for _ in 0..2 {
            let asked = sent(reader);
            let runs = match asked.request.ask {
                Ask::SnapKinds { id: SnapId(9), offset: 0, len: SIZE } => vec![
                    (SIZE / 4, None),
                    (SIZE / 4, Some(Hole::Zero)),
                    (SIZE / 4, Some(Hole::Absent)),
                    (SIZE / 4, Some(Hole::Zero)),
                ],
                Ask::SnapKinds { id: SINCE, offset: 0, len } => {
                    assert_eq!(len, SIZE / 2, "it has no more");
                    vec![(SIZE / 4, Some(Hole::Absent)), (SIZE / 4 - BLOCK, Some(Hole::Zero)), (BLOCK, None)]
                }
                ref other => panic!("{other:?}"),
            };
            answer(reader, now, &asked, Ok(Answer::Kinds(runs)));
        }
        reader.poll_reply().expect("all is told").1
    }

    #[test]
    fn what_no_copy_tells_counts_as_different_where_there_is_data() {
        let whole = GuestOp::Changed { since: SINCE, offset: 0, len: SIZE };
        let grains = |n: u64, differs| (n * CHANGED_GRAIN, differs);
        let told = GuestReply::Changed { runs: vec![grains(2, true), grains(2, false)], exact: false };
        // The only one that took both refuses, says nonsense, or is away for long.
        for outcome in [Err(Refusal::BitRot), Ok(Answer::Changed(vec![0; 9])), Ok(Answer::Done)] {
            let mut reader = comparing();
            reader.submit(at(1), RequestId(1), &whole);
            let asked = sent(&mut reader);
            answer(&mut reader, at(2), &asked, outcome);
            assert_eq!(told_by_kinds(&mut reader, at(3)), told);
        }
        let mut reader = comparing();
        reader.handle_link_down(at(1), Rid(1));
        reader.submit(at(1), RequestId(1), &whole);
        reader.handle_timeout(at(4900));
        assert!(reader.poll_transmit().is_none(), "it may come back");
        reader.handle_timeout(at(5100));
        assert_eq!(told_by_kinds(&mut reader, at(5101)), told);
        // Nor does any tell of kinds.
        let mut reader = comparing();
        reader.submit(at(1), RequestId(1), &whole);
        while let Some(asked) = reader.poll_transmit() {
            answer(&mut reader, at(2), &asked, Err(Refusal::NoSnapshot));
        }
        assert_eq!(reader.poll_reply(), Some((RequestId(1), GuestReply::Failed(GuestError::Unreadable))));
    }

    #[test]
    fn a_copy_that_took_another_snapshot_only_is_never_asked_for_data() {
        let mut reader = comparing();
        for rid in [0, 1] {
            reader.handle_link_down(at(1), Rid(rid));
        }
        for (n, op) in (1..).zip([GuestOp::Read { offset: 0, len: 1 }, GuestOp::Kinds { offset: 0, len: 1 }])
        {
            reader.submit(at(1), RequestId(n), &op);
        }
        reader.handle_timeout(at(60_000));
        assert_eq!((reader.poll_transmit(), reader.pending()), (None, 2));
    }

    #[test]
    fn no_more_requests_are_under_way_than_a_copy_takes() {
        let mut reader = reader();
        let len = 32 * BLOCK;
        for n in 0..200 {
            reader.submit(at(1), RequestId(n), &GuestOp::Read { offset: 0, len });
        }
        let mut under_way: VecDeque<_> = core::iter::from_fn(|| reader.poll_transmit()).collect();
        assert_eq!(under_way.len(), OPEN_MAX);
        while let Some(to) = under_way.pop_front() {
            answer(&mut reader, at(2), &to, Ok(data(&to.request.ask, 7)));
            under_way.extend(core::iter::from_fn(|| reader.poll_transmit()));
        }
        assert_eq!((core::iter::from_fn(|| reader.poll_reply()).count(), reader.pending()), (200, 0));
        reader.submit(at(3), RequestId(500), &GuestOp::Read { offset: 0, len });
        reader.close();
        assert_eq!(reader.poll_reply().map(|(id, _)| id), Some(RequestId(500)));
        assert_eq!((reader.wanted_links().count(), reader.poll_timeout()), (0, None));
    }
}
