//! Hostile peers of a session: members that answer anything, answer twice, or not at all, a store that hesitates, and a
//! record that no writer of ours made.
//!
//! Must always hold:
//! * the session does not panic and comes to rest after everything that happens to it;
//! * a guest's request is answered at most once, with as many bytes as it asked for; when the session has ended, every
//!   one is answered;
//! * what the session writes to the store is a record.

use std::collections::BTreeMap;

use weft_proto::guest::{GuestError, GuestOp, GuestReply, RequestId};
use weft_proto::ids::{
    ClusterId, Epoch, Generation, HostId, Instant, Ordinal, PoolId, PoolInc, Revision, Rid, SessionId,
    SnapId, VolumeId,
};
use weft_proto::images::ImageState;
use weft_proto::message::{Answer, Ask, Extent, Hole, ImageView, NOTE_MAX, ReplicaView, Response, Watermark};
use weft_proto::mutants::Broken;
use weft_proto::payload::{BLOCK, HeapPayload, Payload, block_crcs};
use weft_proto::record::{RECORD_MAX, Record, ReplicaState};
use weft_proto::session::{
    Event, OpenMode, Session, SessionConfig, SnapData, SnapKnown, SnapState, StoreCall, StoreReply, Timing,
    Transmit,
};

use crate::input::Input;
use crate::messages::{self, Known};
use crate::record::{SPECIMEN, changed};

const KNOWN: Known = Known { volume: VolumeId(1), pool: PoolId(2), cluster: ClusterId(3), size: 1 << 20 };
const STEPS_MAX: usize = 1500;
/// Requests that peers have not answered; a session under attack must not make ever more of them.
const WAITING_MAX: usize = 4096;

struct World {
    session: Session<HeapPayload>,
    now: Instant,
    record: Record,
    revision: u64,
    /// Swaps that the store may still apply.
    late: Vec<(u64, Record)>,
    call: Option<StoreCall>,
    to_peers: Vec<Transmit<HeapPayload>>,
    /// Guests' requests: what each may be answered with.
    guests: BTreeMap<RequestId, GuestOp<HeapPayload>>,
    next_guest: u64,
    promised: BTreeMap<Rid, Epoch>,
    ended: bool,
}

/// A session's life among enemies.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    let mut steps = 0;
    while !input.is_done() && steps < STEPS_MAX && !world.ended {
        steps += 1;
        world.step(&mut input);
    }
    world.end();
}

fn first_record(input: &mut Input<'_>) -> Record {
    let mut record = Record::parse(SPECIMEN.as_bytes()).expect("the specimen");
    if input.one_in(8) {
        // What somebody wrote by hand, or newer software: whatever is accepted must be served.
        record = Record::parse(&changed(input)).unwrap_or(record);
    }
    record.vol = KNOWN.volume;
    record.size = KNOWN.size;
    record.region_shift = 16;
    let members = record.replicas.len();
    for (at, entry) in record.replicas.iter_mut().enumerate() {
        entry.pool = KNOWN.pool;
        if at > 0 {
            let states = [ReplicaState::InSync, ReplicaState::Stale, ReplicaState::Removing];
            entry.state = *input.pick(&states);
        }
    }
    if input.flag() && members < 8 && record.next_rid < u32::MAX {
        let mut entry = record.replicas[0].clone();
        entry.rid = Rid(record.next_rid);
        entry.node = HostId(u128::from(input.u8()));
        record.next_rid += 1;
        record.replicas.push(entry);
    }
    if input.flag() {
        record.owner = None;
    }
    if record.check().is_err() {
        record = Record::parse(SPECIMEN.as_bytes()).expect("the specimen");
        record.vol = KNOWN.volume;
    }
    record
}

impl World {
    fn new(input: &mut Input<'_>) -> World {
        let record = first_record(input);
        let mode = if input.one_in(4) { OpenMode::Closed } else { OpenMode::Steal { old_stopped: None } };
        let config = SessionConfig {
            volume: KNOWN.volume,
            session: SessionId(0x5e55),
            host: HostId(0xa0),
            mode,
            caretaker: input.one_in(8),
            watermark: mark(1),
            timing: Timing::default(),
            seed: u128::from(input.u8()),
            unix_ms_at_zero: 1_790_000_000_000,
            broken: Broken::default(),
        };
        let now = Instant(1);
        let mut world = World {
            session: Session::new(config, now),
            now,
            record,
            revision: 5,
            late: Vec::new(),
            call: None,
            to_peers: Vec::new(),
            guests: BTreeMap::new(),
            next_guest: 1,
            promised: BTreeMap::new(),
            ended: false,
        };
        world.drain();
        world
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0 => {
                let ms = [1, 20, 100, 200, 600, 2100, 61_000][input.below(7)];
                self.now = self.now.after_ms(ms);
                self.session.handle_timeout(self.now);
            }
            1 => {
                let rid = self.rid(input);
                self.session.handle_link_up(self.now, rid);
            }
            2 if input.one_in(4) => {
                let rid = self.rid(input);
                self.session.handle_link_down(self.now, rid, input.flag());
            }
            2 | 3 => self.guest(input),
            4..=6 => self.store(input),
            7..=12 => self.peer(input, true),
            13 => self.peer(input, false),
            14 if input.one_in(4) => self.change(input),
            14 if input.one_in(3) => self.snapshots(input),
            14 if input.one_in(8) => drop(self.session.close(self.now)),
            14 if input.one_in(32) => self.session.abandon(self.now),
            _ => self.stray(input),
        }
        self.drain();
    }

    fn rid(&self, input: &mut Input<'_>) -> Rid {
        let rids: Vec<Rid> = self.session.wanted_links().map(|(rid, _, _)| rid).collect();
        if rids.is_empty() || input.one_in(16) { Rid(input.number_u32()) } else { *input.pick(&rids) }
    }

    fn change(&mut self, input: &mut Input<'_>) {
        let rid = if input.one_in(4) { Rid(input.number_u32()) } else { Rid(u32::from(input.u8() % 8)) };
        if input.flag() {
            self.session.add_replica(self.now, rid, HostId(u128::from(input.u8())), KNOWN.pool);
        } else {
            self.session.remove_replica(self.now, rid);
        }
    }

    /// Snapshots are asked for, deleted and changed, and told of from a store that may say anything.
    fn snapshots(&mut self, input: &mut Input<'_>) {
        let id = SnapId(u128::from(input.u8() % 8));
        match input.u8() % 8 {
            0..=3 => self.session.snapshot(self.now, id, vec![7; input.below(NOTE_MAX)]),
            4 => self.session.delete_snapshot(self.now, id),
            5 if input.flag() => self.session.revert(self.now, id),
            5 => self.session.change_snapshot(self.now, id),
            _ => {
                let states = [SnapState::Taken, SnapState::Logged, SnapState::Deleting];
                let members = (0..input.below(4)).map(|_| Rid(u32::from(input.u8() % 8))).collect();
                let known = SnapKnown {
                    id,
                    attempt: input.number(),
                    generation: messages::generation(input),
                    state: *input.pick(&states),
                    members,
                    note: vec![7; input.below(8)],
                    data: if input.one_in(4) { SnapData::Going } else { SnapData::Kept },
                };
                self.session.know_snapshots(self.now, vec![known]);
            }
        }
    }

    fn guest(&mut self, input: &mut Input<'_>) {
        if self.guests.len() > 64 {
            return;
        }
        let id = RequestId(self.next_guest);
        self.next_guest += 1;
        let offset = u64::from(input.u16()) * 16;
        let len = 1 + u64::from(input.u16() % 20_000);
        let op = match input.u8() % 7 {
            0 | 1 => GuestOp::Write {
                offset,
                data: vec![input.u8(); usize::try_from(len).expect("16 bits")].into(),
                fua: input.flag(),
            },
            2 => GuestOp::Flush,
            3 => GuestOp::Zero { offset, len, discard: input.flag(), keep_space: input.flag(), fua: false },
            4 => GuestOp::Kinds { offset, len },
            5 if input.one_in(8) => GuestOp::Changed { since: SnapId(4), offset, len },
            _ => GuestOp::Read { offset, len },
        };
        self.guests.insert(id, op.clone());
        self.session.submit(self.now, id, op);
    }

    /// The store answers the call that it was given, as stores do, or as bad ones do.
    fn store(&mut self, input: &mut Input<'_>) {
        // A swap that nobody knows of is applied late, if it still can be.
        if !self.late.is_empty() && input.one_in(8) {
            let (expect, record) = self.late.remove(0);
            if expect == self.revision {
                self.revision += 1;
                self.record = record;
            }
        }
        let Some(call) = self.call.take() else { return };
        let odd = input.one_in(8);
        let reply = match call {
            _ if odd && input.one_in(4) => match input.u8() % 8 {
                0 => StoreReply::Missing,
                1 => StoreReply::RolledBack,
                _ => StoreReply::Unavailable,
            },
            StoreCall::Swap { expect, record, .. } if odd => {
                self.late.push((expect.0, record));
                StoreReply::Unknown
            }
            StoreCall::Swap { expect, record, base, snap: _, grouped: _ }
                if expect.0 == self.revision && base == self.record.nonce =>
            {
                self.revision += 1;
                self.record = record;
                StoreReply::Swapped { revision: Revision(self.revision) }
            }
            StoreCall::Swap { .. } => {
                StoreReply::Conflict { record: self.record.clone(), revision: Revision(self.revision) }
            }
            StoreCall::Get if odd => StoreReply::Unknown,
            StoreCall::Get => {
                if input.one_in(32) {
                    // Somebody else's record, or an older one.
                    self.record.rev.0 += 1;
                    self.record.epoch =
                        Epoch(self.record.epoch.0.saturating_sub(1).max(u64::from(input.u8() % 32)));
                    self.revision += 1;
                }
                StoreReply::Record { record: self.record.clone(), revision: Revision(self.revision) }
            }
        };
        self.session.handle_store(self.now, reply, (!odd).then(|| mark(self.revision)));
    }

    /// A peer answers one of the requests that it was sent: `good` as a replica would, else with anything.
    fn peer(&mut self, input: &mut Input<'_>, good: bool) {
        if self.to_peers.is_empty() {
            return;
        }
        let at = if input.one_in(4) { input.below(self.to_peers.len()) } else { 0 };
        let sent = self.to_peers.remove(at);
        let outcome = if good {
            Ok(self.good_answer(input, &sent))
        } else if input.flag() {
            Err(*input.pick(&messages::REFUSALS))
        } else {
            Ok(messages::answer(input, &KNOWN))
        };
        let epoch = if good { sent.request.epoch } else { messages::epoch(input) };
        let response = Response { tag: sent.request.tag, epoch, outcome, service_us: 1 };
        let response = messages::carried_response(&response);
        self.session.handle_response(self.now, sent.rid, sent.ordinal, response.clone());
        if input.one_in(32) {
            self.session.handle_response(self.now, sent.rid, sent.ordinal, response);
        }
    }

    /// An answer to nothing.
    fn stray(&mut self, input: &mut Input<'_>) {
        let rid = self.rid(input);
        let response = Response {
            tag: input.number_u32(),
            epoch: messages::epoch(input),
            outcome: Ok(messages::answer(input, &KNOWN)),
            service_us: 1,
        };
        let ordinal = Ordinal(u64::from(input.u8() % 8));
        self.session.handle_response(self.now, rid, ordinal, messages::carried_response(&response));
        self.session.handle_record_seen(self.now, Revision(input.number()));
    }

    fn good_answer(&mut self, input: &mut Input<'_>, sent: &Transmit<HeapPayload>) -> Answer<HeapPayload> {
        let promised = self.promised.get(&sent.rid).copied().unwrap_or(Epoch(0));
        match &sent.request.ask {
            Ask::Attach(_) => Answer::Attached(view(promised, input)),
            Ask::Promise { .. } => {
                self.promised.insert(sent.rid, sent.request.epoch);
                Answer::Promised(view(sent.request.epoch, input))
            }
            Ask::Read { len, .. } => {
                let data = HeapPayload::zeroed(usize::try_from(*len).expect("one message"));
                Answer::Data(vec![Extent::Data { crcs: block_crcs(data.bytes()), data }])
            }
            Ask::Kinds { len, .. } => Answer::Kinds(vec![(*len, Some(Hole::Zero))]),
            Ask::Stamps { .. } => {
                let stamps =
                    (0..u32::from(input.u8() % 4)).map(|region| (region, Generation::new(Epoch(7), 1)));
                Answer::Stamps { stamps: stamps.collect(), next: None }
            }
            Ask::Hash { len, .. } => {
                let blocks = usize::try_from(len / BLOCK).expect("few");
                Answer::Hashes((0..blocks).map(|_| [input.u8() % 2; 16]).collect())
            }
            Ask::SnapHash { len, .. } => {
                let blocks = usize::try_from(len / BLOCK).expect("few");
                Answer::Hashes((0..blocks).map(|_| [input.u8() % 2; 16]).collect())
            }
            Ask::SnapRead { len, .. } => Answer::Data(vec![Extent::Hole { len: *len, kind: Hole::Absent }]),
            Ask::Images { from } => {
                let marker = self.record.reverting.as_ref().filter(|marker| marker.snap == *from);
                let attempt = marker.map_or_else(|| input.number(), |marker| marker.attempt);
                let (id, generation, state) = (*from, Generation::new(Epoch(7), 1), ImageState::Ready);
                let (whole, copied) = (false, input.flag());
                let view = ImageView { id, attempt, generation, state, whole, copied, size: KNOWN.size };
                Answer::Images(vec![view; input.below(2)])
            }
            Ask::Heartbeat => Answer::Alive { oldest_io_ms: 0, free_bytes: 1 << 30 },
            _ => Answer::Done,
        }
    }

    fn drain(&mut self) {
        while let Some(sent) = self.session.poll_transmit() {
            self.to_peers.push(Transmit { request: messages::carried_request(&sent.request), ..sent });
        }
        assert!(self.to_peers.len() < WAITING_MAX, "{} requests wait at peers", self.to_peers.len());
        while let Some(call) = self.session.poll_store() {
            if let StoreCall::Swap { record, .. } = &call {
                let text = record.to_bytes();
                assert!(text.len() <= RECORD_MAX, "a record of {} bytes goes to the store", text.len());
                assert_eq!(Record::parse(&text).as_ref(), Ok(record), "no record goes to the store");
            }
            assert!(self.call.is_none(), "two calls of the store at once");
            self.call = Some(call);
        }
        while let Some((id, reply)) = self.session.poll_reply() {
            let op = self.guests.remove(&id).expect("an answer to no request, or a second one");
            let told = match (&op, &reply) {
                (GuestOp::Read { len, .. }, GuestReply::Data(extents)) => {
                    *len == extents.iter().map(extent_len).sum::<u64>()
                }
                (GuestOp::Kinds { len, .. }, GuestReply::Kinds(runs)) => {
                    *len == runs.iter().map(|(len, _)| *len).sum::<u64>()
                }
                (
                    GuestOp::Read { .. } | GuestOp::Kinds { .. } | GuestOp::Changed { .. },
                    GuestReply::Done,
                ) => false,
                (_, GuestReply::Done) => true,
                (_, GuestReply::Failed(error)) => {
                    *error != GuestError::Fenced
                        || self.session.is_ended()
                        || self.session.is_headless()
                        || self.closing()
                }
                _ => false,
            };
            assert!(told, "{reply:?} to {op:?}");
        }
        while let Some(event) = self.session.poll_event() {
            assert!(!self.ended, "{event:?} after the end");
            self.ended = matches!(event, Event::Ended(_));
        }
        // Printed as status does.
        assert!(!self.session.view().phase.is_empty());
    }

    fn closing(&self) -> bool {
        self.session.view().phase == "closing"
    }

    fn end(mut self) {
        self.session.abandon(self.now);
        self.drain();
        assert!(
            self.session.is_ended() && self.guests.is_empty(),
            "never answered: {:?}",
            self.guests.keys()
        );
        assert!(self.session.poll_timeout().is_none());
    }
}

pub(crate) fn extent_len(extent: &Extent<HeapPayload>) -> u64 {
    match extent {
        Extent::Data { data, .. } => data.len() as u64,
        Extent::Hole { len, .. } => *len,
    }
}

fn mark(revision: u64) -> Watermark {
    Watermark { cluster: KNOWN.cluster, incarnation: 1, revision }
}

fn view(promised: Epoch, input: &mut Input<'_>) -> ReplicaView {
    let newest = if input.flag() { Generation::NEVER } else { Generation::new(Epoch(7), 1) };
    ReplicaView {
        promised,
        session: SessionId(0x5e55),
        sealed: Generation::NEVER,
        newest,
        unsealed_regions: 1,
        lossy: false,
        size: KNOWN.size,
        pool_inc: PoolInc(1),
        watermark: mark(1),
        ordinal: Ordinal(0),
    }
}
