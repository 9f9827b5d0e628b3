//! What the session believes of one replica, and the attachment to it.
//!
//! ```text
//! Down ──link up──▶ Up ──attach sent──▶ Attaching ──answered──▶ Attached ──promise answered──▶ obeys(epoch)
//!  ▲                                        │ dropped: the next attach has a higher ordinal
//!  └──────────── link down ─────────────────┘
//! ```
//!
//! Must always hold:
//! * a request is sent on the newest attachment only, and an answer of an older one changes nothing;
//! * `promised` is set only by an answer on the newest attachment.

use alloc::collections::BTreeMap;
use alloc::string::String;

use super::copy::PieceId;
use super::ops::OpId;
use super::revert::RevertId;
use super::size::GrowthId;
use super::snaps::{SnapStep, SnapWork};
use super::{Phase, Session, Transmit};
use crate::ids::{Epoch, Generation, HostId, Instant, Ordinal, PoolId, Rid};
use crate::message::{Answer, Ask, Attach, Refusal, ReplicaView, Request, Response};
use crate::mutants::Mutation;
use crate::payload::Payload;
use crate::record::{COUNTER_MAX, ReplicaState};

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: HostId,
    pub(super) pool: PoolId,
    pub(super) link: Link,
    pub(super) ordinal: Ordinal,
    pub(super) view: Option<ReplicaView>,
    pub(super) promised: Option<Epoch>,
    /// A promise is on its way.
    pub(super) promising: bool,
    /// Since when it has been asked for the current epoch without promising it: its host may not be able to read the store.
    pub(super) unpromised: Option<Instant>,
    /// When the member last said anything on the newest attachment.
    pub(super) heard: Instant,
    /// When its disk last answered anything: it may hang while heartbeats are answered.
    pub(super) worked: Instant,
    /// A read or a copy hangs in its disk, and nothing came from there since: others are asked first.
    pub(super) hung: bool,
    /// When the request was sent whose answer last showed that it obeys the current epoch (R9).
    pub(super) lease: Option<Instant>,
    pub(super) outstanding: BTreeMap<u32, Sent>,
    /// Why it can't be used although it answers.
    pub(super) bad: Option<(Refusal, Instant)>,
    pub(super) acked: u64,
    pub(super) sent: u64,
    /// It refused a promise or an attach: asked again at the tick after this, not at once.
    hold: Option<Instant>,
    next_tag: u32,
    heartbeat_out: bool,
}

/// The connection and the attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Down { since: Instant, refused: bool },
    Up,
    Attaching,
    Attached,
}

/// A request without an answer yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) purpose: Purpose,
    pub(super) at: Instant,
    pub(super) epoch: Epoch,
}

/// Whose answer it will be.
/// One gathering of stamps. An answer counts for the one that asked for it, and for no other: the next asks above another
/// seal, for another joiner, and from the first page on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StampsId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Attach,
    Promise,
    Heartbeat,
    /// A write, zero or flush of an operation.
    Op(OpId),
    /// A guest's read or a block at the edge of a partial write.
    Read(OpId),
    /// A step of a copy.
    Piece(PieceId),
    /// A step of a copy that looks at an image.
    Image(PieceId),
    /// A step of a comparison.
    Look(PieceId),
    Seal(Generation),
    /// Stamps for the set of regions that may differ at open.
    OpenStamps(StampsId),
    /// Stamps for a join.
    JoinStamps(StampsId),
    /// Flush of the joiner before its admission, cached mode.
    JoinFlush,
    /// Growth of the volume.
    Grow(GrowthId),
    /// Growth of the joiner to the volume's size, before it gets anything.
    JoinGrow,
    /// A step for a snapshot.
    Snap(SnapWork),
    /// What a member has of the snapshot that the volume is, or will be, taken back to.
    RevertLook(RevertId),
    /// Stamps for such a revert.
    RevertStamps(RevertId),
}

impl Purpose {
    /// Is it answered by the member's disk?
    fn is_of_disk(self) -> bool {
        matches!(
            self,
            Purpose::Op(_)
                | Purpose::Read(_)
                | Purpose::Piece(_)
                | Purpose::Image(_)
                | Purpose::Look(_)
                | Purpose::JoinFlush
                | Purpose::Grow(_)
                | Purpose::JoinGrow
        )
    }
}

impl Peer {
    pub(super) fn new(now: Instant, node: HostId, pool: PoolId) -> Peer {
        Peer {
            node,
            pool,
            link: Link::Down { since: now, refused: false },
            ordinal: Ordinal(0),
            view: None,
            promised: None,
            promising: false,
            unpromised: None,
            heard: now,
            worked: now,
            hung: false,
            lease: None,
            outstanding: BTreeMap::new(),
            bad: None,
            acked: 0,
            sent: 0,
            hold: None,
            next_tag: 0,
            heartbeat_out: false,
        }
    }

    pub(super) fn link_up(&mut self, now: Instant) {
        if matches!(self.link, Link::Down { .. }) {
            self.link = Link::Up;
            self.heard = now;
        }
    }

    pub(super) fn link_down(&mut self, now: Instant, refused: bool) {
        self.hung = false;
        match &mut self.link {
            Link::Down { refused: r, .. } => *r |= refused,
            link => *link = Link::Down { since: now, refused },
        }
    }

    pub(super) fn is_attached(&self) -> bool {
        self.link == Link::Attached
    }

    /// May requests of this epoch be sent to it?
    pub(super) fn obeys(&self, epoch: Epoch) -> bool {
        self.is_attached() && self.promised == Some(epoch)
    }

    /// One line for people and for scenario tests.
    pub(super) fn line(&self, state: &str) -> String {
        let link = match self.link {
            Link::Down { refused: true, .. } => " [refused]",
            Link::Down { .. } => " [down]",
            Link::Up | Link::Attaching => " [attaching]",
            Link::Attached => "",
        };
        let bad = self.bad.map_or(String::new(), |(why, _)| alloc::format!(" [{why:?}]"));
        alloc::format!(
            "{state} acked={} sent={} window={}{link}{bad}",
            self.acked,
            self.sent,
            self.outstanding.len()
        )
    }
}

impl<P: Payload> Session<P> {
    /// Brings `peers` in line with the record.
    pub(super) fn sync_peers(&mut self, now: Instant) {
        let Some(record) = &self.record else { return };
        let wanted: BTreeMap<Rid, (HostId, PoolId)> = record
            .replicas
            .iter()
            .filter(|r| !matches!(r.state, ReplicaState::Removing | ReplicaState::Quarantined))
            .map(|r| (r.rid, (r.node, r.pool)))
            .collect();
        let gone: alloc::vec::Vec<Rid> =
            self.peers.keys().filter(|r| !wanted.contains_key(r)).copied().collect();
        for rid in gone {
            self.drop_attachment(rid);
            self.peers.remove(&rid);
        }
        for (rid, (node, pool)) in wanted {
            self.peers.entry(rid).or_insert_with(|| Peer::new(now, node, pool));
        }
    }

    /// Sends a request on the newest attachment.
    pub(super) fn send(&mut self, now: Instant, rid: Rid, purpose: Purpose, ask: Ask<P>) {
        let epoch = self.record.as_ref().map_or(Epoch(0), |r| r.epoch);
        let peer = self.peers.get_mut(&rid).expect("only members are sent to");
        peer.next_tag = peer.next_tag.wrapping_add(1);
        let tag = peer.next_tag;
        peer.outstanding.insert(tag, Sent { purpose, at: now, epoch });
        self.transmits.push_back(Transmit {
            rid,
            node: peer.node,
            pool: peer.pool,
            ordinal: peer.ordinal,
            request: Request { tag, epoch, ask },
        });
    }

    /// Attaches wherever a link is up and nothing is under way.
    pub(super) fn attach_peers(&mut self, now: Instant) {
        if self.is_ended() || self.record.is_none() {
            return;
        }
        let ready: alloc::vec::Vec<Rid> = self
            .peers
            .iter()
            .filter(|(_, p)| p.link == Link::Up && p.hold.is_none_or(|at| now >= at))
            .filter(|(_, p)| p.bad.is_none_or(|(_, at)| now.ms_since(at) >= self.config.timing.retry_ms))
            .map(|(rid, _)| *rid)
            .collect();
        for rid in ready {
            let peer = self.peers.get_mut(&rid).expect("listed a moment ago");
            peer.link = Link::Attaching;
            peer.ordinal.0 += 1;
            let attach = Attach {
                volume: self.config.volume,
                rid,
                pool: peer.pool,
                host: self.config.host,
                session: self.config.session,
                ordinal: peer.ordinal,
                watermark: self.watermark,
            };
            self.send(now, rid, Purpose::Attach, Ask::Attach(attach));
        }
    }

    /// Ends the attachment: what was sent on it and not answered may still execute, until the next attach or
    /// promise has drained it; nothing of it counts any more.
    pub(super) fn drop_attachment(&mut self, rid: Rid) {
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        if matches!(peer.link, Link::Attaching | Link::Attached) {
            peer.link = Link::Up;
        }
        peer.promised = None;
        peer.promising = false;
        peer.unpromised = None;
        peer.lease = None;
        peer.heartbeat_out = false;
        self.unreadable.remove(&rid);
        self.damaged.remove(&rid);
        self.fail_pieces_of(rid);
        self.look_lost(rid);
        self.forget_bad(rid);
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        let outstanding = core::mem::take(&mut peer.outstanding);
        for sent in outstanding.into_values() {
            match sent.purpose {
                Purpose::Op(op) => self.op_unsent(op, rid),
                Purpose::Read(op) => self.read_unsent(op),
                Purpose::Piece(piece) | Purpose::Image(piece) => self.piece_failed(piece, rid),
                Purpose::RevertLook(id) | Purpose::RevertStamps(id) => self.revert_unsent(id, rid, None),
                Purpose::OpenStamps(_) => self.restart_gather(),
                Purpose::Grow(id) => self.growth_unsent(id, rid, None),
                Purpose::Snap(work) => self.snap_undone(self.last_tick, rid, work, None),
                Purpose::Look(_)
                | Purpose::JoinStamps(_)
                | Purpose::JoinFlush
                | Purpose::JoinGrow
                | Purpose::Attach
                | Purpose::Promise
                | Purpose::Heartbeat
                | Purpose::Seal(_) => {}
            }
        }
        self.join_lost_peer(rid);
    }

    /// Reads and copies that hang in a disk whose host answers heartbeats. The oldest-write rule (M23) sees none of
    /// them, and a guest may wait for each: for its read, or for the range that is copied.
    ///
    /// A read is asked of another member. A copy that others have done their part of, or that hangs in the joiner, ends
    /// the attachment, so that nothing of it executes later; where the source of a join hangs alone, nothing of it can.
    pub(super) fn pass_over_hung(&mut self, now: Instant) {
        let dead_ms = self.config.timing.dead_ms;
        let late = |since: Instant, times: u64| now.ms_since(since) >= dead_ms * times;
        let mut hung = alloc::vec::Vec::new();
        for (rid, peer) in &self.peers {
            for (tag, sent) in &peer.outstanding {
                let hangs = match sent.purpose {
                    Purpose::Read(_) => late(sent.at, 1),
                    // A slow disk works off many copies; one of them alone is waited for longer.
                    Purpose::Piece(_) | Purpose::Image(_) | Purpose::Look(_) => {
                        late(sent.at, 1) && late(peer.worked, 1) || late(sent.at, 4)
                    }
                    _ => false,
                };
                if hangs {
                    hung.push((*rid, *tag, sent.purpose));
                }
            }
        }
        for (rid, tag, purpose) in hung {
            let Some(peer) = self.peers.get_mut(&rid).filter(|p| p.outstanding.contains_key(&tag)) else {
                continue;
            };
            peer.hung = true;
            match purpose {
                Purpose::Read(op) if self.read_elsewhere(now, op) => {
                    self.give_up(rid, tag);
                    self.read_unsent(op);
                }
                Purpose::Look(look) => {
                    self.give_up(rid, tag);
                    self.look_hangs(look);
                }
                Purpose::Piece(_) if self.join_rid() == Some(rid) => {
                    self.abandon_join("a copy hangs in its disk");
                }
                Purpose::Image(piece) => {
                    self.give_up(rid, tag);
                    self.piece_failed(piece, rid);
                }
                Purpose::Piece(piece) if self.others_did(piece, rid) => self.drop_attachment(rid),
                Purpose::Piece(piece) if self.only_reads_for_join(piece) => {
                    self.give_up(rid, tag);
                    self.piece_failed(piece, rid);
                }
                _ => {}
            }
        }
    }

    /// Nobody waits for this answer any more. For requests that change nothing.
    fn give_up(&mut self, rid: Rid, tag: u32) {
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.outstanding.remove(&tag);
        }
    }

    /// Asks for a promise at the current epoch, with the record under which it is asked (4.15).
    pub(super) fn ask_promise(&mut self, now: Instant, rid: Rid) {
        let epoch = self.rec().epoch;
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        if peer.is_attached()
            && !peer.promising
            && peer.promised != Some(epoch)
            && peer.bad.is_none()
            && peer.hold.is_none_or(|at| now >= at)
        {
            peer.promising = true;
            peer.unpromised.get_or_insert(now);
            let ask = Ask::Promise { record: self.rec().to_bytes(), watermark: self.watermark };
            self.send(now, rid, Purpose::Promise, ask);
        }
    }

    /// One heartbeat a member and tick; none is piled on an unanswered one.
    pub(super) fn beat(&mut self, now: Instant) {
        let epoch = self.rec().epoch;
        let members: alloc::vec::Vec<Rid> =
            self.peers.iter().filter(|(_, p)| p.obeys(epoch) && !p.heartbeat_out).map(|(r, _)| *r).collect();
        for rid in members {
            if let Some(peer) = self.peers.get_mut(&rid) {
                peer.heartbeat_out = true;
            }
            self.send(now, rid, Purpose::Heartbeat, Ask::Heartbeat);
        }
    }

    pub(super) fn take_response(&mut self, now: Instant, rid: Rid, ordinal: Ordinal, response: Response<P>) {
        if self.is_ended() {
            return;
        }
        let current = self.record.as_ref().map_or(Epoch(0), |r| r.epoch);
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        if peer.ordinal != ordinal {
            return;
        }
        let sent = peer.outstanding.remove(&response.tag);
        // What was given up is answered late by a disk that goes on.
        if sent.is_none_or(|s| s.purpose.is_of_disk()) {
            (peer.worked, peer.hung) = (now, false);
        }
        let Some(sent) = sent else { return };
        peer.heard = now;
        if sent.purpose == Purpose::Heartbeat {
            peer.heartbeat_out = false;
        }
        match response.outcome {
            // Its host may serve other volumes well: of this copy nothing is believed.
            Ok(Answer::Attached(view) | Answer::Promised(view)) if !self.is_possible(&view) => {
                // Unless the volume has had another owner meanwhile: the store names it.
                self.get_wanted |= view.promised > current;
                self.take_refusal(now, rid, sent, current, response.epoch, Refusal::Quarantined);
            }
            Ok(answer) => self.take_answer(now, rid, sent, current, answer),
            Err(refusal) => self.take_refusal(now, rid, sent, current, response.epoch, refusal),
        }
    }

    /// Can an honest replica say this? Since the claim nobody has sealed anything but this session, and what it says of its
    /// pool is written into the record.
    fn is_possible(&self, view: &ReplicaView) -> bool {
        let sealed = view.sealed;
        let by_others = !self.owns()
            || sealed.epoch() < self.first_epoch
            || self.config.broken.is(Mutation::SealBelieved);
        (by_others || sealed <= self.sealed) && view.pool_inc.0 <= COUNTER_MAX
    }

    fn take_answer(&mut self, now: Instant, rid: Rid, sent: Sent, current: Epoch, answer: Answer<P>) {
        let owns = self.owns();
        let asked = if self.config.broken.is(Mutation::LeaseFromAnswer) { now } else { sent.at };
        let peer = self.peers.get_mut(&rid).expect("answered a moment ago");
        match (sent.purpose, answer) {
            (Purpose::Attach, Answer::Attached(view)) => {
                peer.link = Link::Attached;
                peer.bad = None;
                // Whatever hung was drained before this answer (R1).
                (peer.worked, peer.hung) = (now, false);
                // Its promise of before the attachment was lost still binds it; ours is asked anew all the same.
                peer.promised = None;
                let (promised, watermark) = (view.promised, view.watermark);
                peer.view = Some(view);
                self.attached(now, rid, promised, watermark);
            }
            (Purpose::Promise, Answer::Promised(view)) => {
                if sent.epoch == current {
                    peer.promising = false;
                }
                if owns && sent.epoch == current {
                    peer.promised = Some(current);
                    peer.unpromised = None;
                    // A promise answered is a sign of obedience at least as new as a heartbeat (R9).
                    peer.lease = Some(asked);
                    peer.view = Some(view);
                    self.first_promise.get_or_insert(now);
                    self.promised(now, rid);
                }
            }
            (Purpose::Heartbeat, Answer::Alive { .. }) => {
                if sent.epoch == current {
                    peer.lease = peer.lease.max(Some(asked));
                    self.retry_reads(now);
                }
            }
            (Purpose::Op(op), Answer::Done) => {
                peer.acked += 1;
                self.op_acked(now, op, rid);
            }
            (Purpose::Read(op), answer) => self.read_answered(now, op, rid, answer),
            (Purpose::Piece(piece), answer) => self.piece_answered(now, piece, (rid, false), answer),
            (Purpose::Image(piece), answer) => self.piece_answered(now, piece, (rid, true), answer),
            (Purpose::RevertLook(id), Answer::Images(views)) => self.revert_looked(id, rid, &views),
            (Purpose::RevertStamps(id), Answer::Stamps { stamps, next }) => {
                self.revert_stamps(now, id, rid, &stamps, next);
            }
            (Purpose::Look(look), answer) => self.look_answered(now, look, rid, answer),
            (Purpose::Seal(generation), Answer::Done) => self.seal_acked(rid, generation),
            (Purpose::OpenStamps(id), Answer::Stamps { stamps, next }) => {
                self.open_stamps(now, id, rid, &stamps, next);
            }
            (Purpose::JoinStamps(id), Answer::Stamps { stamps, next }) => {
                self.join_stamps(now, id, rid, &stamps, next);
            }
            (Purpose::JoinFlush, Answer::Done) => self.join_flushed(),
            (Purpose::Grow(id), Answer::Done) => self.grown(id, rid),
            (Purpose::JoinGrow, Answer::Done) => self.join_grown(),
            (Purpose::Snap(work), Answer::Done) => self.snap_done(now, rid, work, true),
            (Purpose::Snap(work), Answer::Deleting)
                if matches!(work.step, SnapStep::Delete | SnapStep::Destroy) =>
            {
                self.snap_done(now, rid, work, false);
            }
            // An answer of the wrong kind: the peer misbehaves; nothing of this attachment is believed.
            (purpose, _) => {
                self.drop_attachment(rid);
                if let Purpose::Op(op) = purpose {
                    self.op_unsent(op, rid);
                }
            }
        }
    }

    fn take_refusal(
        &mut self,
        now: Instant,
        rid: Rid,
        sent: Sent,
        current: Epoch,
        promised: Epoch,
        refusal: Refusal,
    ) {
        let (later, owns) = (now.after_ms(self.config.timing.heartbeat_ms), self.owns());
        let peer = self.peers.get_mut(&rid).expect("answered a moment ago");
        // What is said of a promise that a later one has followed holds nothing up.
        if sent.purpose == Purpose::Attach || sent.purpose == Purpose::Promise && sent.epoch == current {
            peer.hold = Some(later);
        }
        if sent.purpose == Purpose::Promise && sent.epoch == current {
            peer.promising = false;
        }
        if let (Purpose::Grow(id), Refusal::NoSpace | Refusal::OutOfBounds) = (sent.purpose, refusal) {
            // Only this was refused: the member serves on.
            if self.join_rid() == Some(rid) {
                return self.abandon_join("the joiner can't grow");
            }
            let full = refusal == Refusal::NoSpace;
            let why = if full { super::size::NO_ROOM } else { "a copy refuses this size" };
            return self.growth_failed(id, why);
        }
        if let Purpose::Snap(work) = sent.purpose {
            let of_snapshots = !matches!(
                refusal,
                Refusal::StaleEpoch
                    | Refusal::MetadataRollback
                    | Refusal::NotAttached
                    | Refusal::NoReplica
                    | Refusal::Quarantined
            );
            if of_snapshots {
                // Only this was refused: the member serves on.
                return self.snap_undone(now, rid, work, Some(refusal));
            }
        }
        match refusal {
            Refusal::StaleEpoch => {
                if promised > current || (promised == current && sent.epoch == current && owns) {
                    // Somebody else has been promised something: the store knows whom (R11, fencing).
                    peer.promised = None;
                    peer.hold = Some(later);
                    self.suspect(promised);
                } else if let Some(peer) = self.peers.get_mut(&rid)
                    && sent.epoch == current
                {
                    peer.promised = None;
                    // Its host has read a record above ours: somebody else's, perhaps.
                    self.get_wanted |= sent.purpose == Purpose::Promise;
                }
            }
            Refusal::MetadataRollback => {
                peer.bad = Some((refusal, now));
                if sent.purpose == Purpose::Attach {
                    // Its host has seen a younger store than ours: read again, with the watermark that brings.
                    peer.link = Link::Up;
                    self.get_wanted = true;
                } else {
                    // Its host has read the store for this promise: what that showed is not our record, or less than it
                    // has seen. If a read of ours shows the same epoch still, the store has gone back (R11).
                    let asked = sent.purpose == Purpose::Promise && sent.epoch == current && owns;
                    self.suspect(if asked { promised.max(current) } else { promised });
                }
            }
            Refusal::NotAttached => {
                if sent.purpose == Purpose::Attach {
                    peer.link = Link::Up;
                } else {
                    self.drop_attachment(rid);
                }
            }
            Refusal::Busy => {
                if sent.purpose == Purpose::Attach {
                    peer.link = Link::Up;
                }
            }
            Refusal::NoReplica | Refusal::Quarantined | Refusal::IoError | Refusal::NoSpace => {
                let is_read = match sent.purpose {
                    Purpose::Read(_) | Purpose::Look(_) => true,
                    Purpose::Piece(id) | Purpose::Image(id) => self.piece_reads(id),
                    _ => false,
                };
                let Some(peer) = self.peers.get_mut(&rid) else { return };
                if sent.purpose == Purpose::Attach {
                    peer.link = Link::Up;
                }
                if !(is_read && refusal == Refusal::IoError) {
                    peer.bad = Some((refusal, now));
                }
            }
            Refusal::OutOfBounds
            | Refusal::BadCrc
            | Refusal::BitRot
            | Refusal::NoSnapshot
            | Refusal::NoSnapshots
            | Refusal::OldAttempt
            | Refusal::OldGeneration => {}
        }
        match sent.purpose {
            Purpose::Op(op) => self.op_unsent(op, rid),
            Purpose::Read(op) => self.read_failed(now, op, rid, refusal),
            Purpose::Piece(piece) | Purpose::Image(piece) => {
                let of_image = matches!(sent.purpose, Purpose::Image(_));
                let bad = matches!(refusal, Refusal::BadCrc | Refusal::BitRot | Refusal::IoError);
                if bad && self.piece_reads(piece) {
                    self.piece_unreadable(piece, rid, of_image);
                    return;
                }
                if of_image && refusal == Refusal::NoSnapshot {
                    self.revert_without(rid);
                }
                self.piece_failed(piece, rid);
            }
            Purpose::RevertLook(id) | Purpose::RevertStamps(id) => self.revert_unsent(id, rid, Some(later)),
            Purpose::Look(look) => self.look_refused(now, look, rid, refusal),
            Purpose::OpenStamps(_) => {
                self.copy_hold = later;
                self.restart_gather();
            }
            Purpose::JoinStamps(id) => self.join_stamps_refused(id),
            Purpose::JoinFlush => self.join_flush_refused(),
            Purpose::Grow(id) => self.growth_unsent(id, rid, (refusal == Refusal::Busy).then_some(later)),
            Purpose::JoinGrow => self.join_growth_refused(),
            Purpose::Snap(work) => self.snap_undone(now, rid, work, Some(refusal)),
            _ => {}
        }
        if self.join_rid() == Some(rid) {
            // One whose host can't read the store may have to be without promise for long (R1): others go first, and no
            // write waits for it.
            let no_promise = sent.purpose == Purpose::Promise && sent.epoch == current;
            if refusal == Refusal::Busy && no_promise {
                self.abandon_join("the joiner can't promise yet");
            } else if refusal == Refusal::Busy && sent.purpose == Purpose::JoinGrow {
                self.abandon_join("the joiner still cuts what a shrink has left");
            } else if !matches!(refusal, Refusal::Busy | Refusal::StaleEpoch) {
                self.abandon_join("the joiner refused a request");
            }
        }
    }

    /// A replica obeys, or obeyed, a higher epoch than ours: only a read made after this settles what it is.
    fn suspect(&mut self, promised: Epoch) {
        self.rollback_suspect = self.rollback_suspect.max(Some(promised));
        self.get_wanted = true;
    }

    fn promised(&mut self, now: Instant, rid: Rid) {
        if matches!(self.phase, Phase::Serving | Phase::Closing(_)) {
            self.resend_ops(now, rid);
            self.check_all_ops(now);
        }
    }
}
