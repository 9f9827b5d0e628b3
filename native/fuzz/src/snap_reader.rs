//! Hostile members of who reads a snapshot: they answer anything, twice, late, or not at all.
//!
//! Must always hold:
//! * the reader does not panic, and asks members for nothing but to be attached and for looks at its snapshot, and at
//!   what another one differs by;
//! * a request is answered at most once, with as many bytes as it asked for, with data only that fits its checksums; when
//!   the reader is closed, every one is answered;
//! * no more requests are under way than it may have.

use std::collections::BTreeMap;

use weft_proto::guest::{GuestOp, GuestReply, RequestId};
use weft_proto::ids::{ClusterId, HostId, Instant, Ordinal, PoolId, Rid, SessionId, SnapId, VolumeId};
use weft_proto::message::{Answer, Ask, CHANGED_GRAIN, CHANGED_MAX, Extent, Hole, Response, Watermark};
use weft_proto::payload::{HeapPayload, Payload, block_crcs};
use weft_proto::session::Transmit;
use weft_proto::snap_reader::{OtherSnap, ReaderConfig, ReaderMember, SnapReader};

use crate::input::Input;
use crate::messages::{self, Known};
use crate::session::extent_len;

const KNOWN: Known = Known { volume: VolumeId(1), pool: PoolId(2), cluster: ClusterId(3), size: 1 << 20 };
const SNAP: SnapId = SnapId(4);
const OTHER: SnapId = SnapId(3);
const STEPS_MAX: usize = 1500;
/// Requests at members that may not have been answered yet: given up ones are forgotten here late.
const WAITING_MAX: usize = 4096;

struct World {
    reader: SnapReader<HeapPayload>,
    now: Instant,
    to_members: Vec<Transmit<HeapPayload>>,
    guests: BTreeMap<RequestId, GuestOp<HeapPayload>>,
    next_guest: u64,
}

/// A reader's life among enemies.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let config = ReaderConfig {
        volume: KNOWN.volume,
        snap: SNAP,
        size: KNOWN.size,
        host: HostId(0xa0),
        session: SessionId(0x5e55),
        watermark: Watermark { cluster: KNOWN.cluster, incarnation: 1, revision: 1 },
        others: vec![OtherSnap {
            snap: OTHER,
            size: [KNOWN.size, KNOWN.size / 2, 2 * KNOWN.size, 4096][input.below(4)],
            members: (0..4).map(Rid).filter(|_| input.flag()).collect(),
        }],
        layer: None,
    };
    let took = [input.flag(), input.flag(), input.flag()];
    let member = |rid: u32| ReaderMember {
        rid: Rid(rid),
        node: HostId(0xa0 + u128::from(rid)),
        pool: KNOWN.pool,
        local: rid == 0,
        took: rid == 0 || took[rid as usize],
    };
    let members: Vec<ReaderMember> = (0..1 + u32::from(input.u8() % 3)).map(member).collect();
    let now = Instant(1);
    let reader = SnapReader::new(config, &members, now);
    let (to_members, guests) = (Vec::new(), BTreeMap::new());
    let mut world = World { reader, now, to_members, guests, next_guest: 1 };
    let mut steps = 0;
    while !input.is_done() && steps < STEPS_MAX {
        steps += 1;
        world.step(&mut input);
    }
    world.reader.close();
    world.drain();
    assert!(world.guests.is_empty(), "never answered: {:?}", world.guests.keys());
    assert!(world.reader.poll_timeout().is_none());
}

impl World {
    fn step(&mut self, input: &mut Input<'_>) {
        let rid = Rid(u32::from(input.u8() % 4));
        match input.u8() % 12 {
            0 => {
                self.now = self.now.after_ms([1, 20, 100, 500, 1600, 61_000][input.below(6)]);
                self.reader.handle_timeout(self.now);
            }
            1 | 2 => self.reader.handle_link_up(self.now, rid),
            3 if input.one_in(3) => self.reader.handle_link_down(self.now, rid),
            3..=5 => self.guest(input),
            6..=9 => self.member(input, true),
            10 => self.member(input, false),
            _ => {
                let outcome = Ok(messages::answer(input, &KNOWN));
                let (tag, epoch) = (input.number_u32(), messages::epoch(input));
                let response = messages::carried_response(&Response { tag, epoch, outcome, service_us: 1 });
                let ordinal = Ordinal(u64::from(input.u8() % 8));
                self.reader.handle_response(self.now, rid, ordinal, response);
            }
        }
        self.drain();
    }

    fn guest(&mut self, input: &mut Input<'_>) {
        if self.guests.len() > 64 {
            return;
        }
        let id = RequestId(self.next_guest);
        self.next_guest += 1;
        let (offset, len) = (input.number() % (KNOWN.size + 4096), u64::from(input.u16()) * 8);
        let op = match input.u8() % 12 {
            0 => GuestOp::Flush,
            1 => GuestOp::Zero { offset, len, discard: true, keep_space: false, fua: false },
            2 => GuestOp::Write { offset, data: vec![1; 512].into(), fua: false },
            3 => GuestOp::Kinds { offset, len },
            4 => GuestOp::Changed { since: SnapId(9), offset, len },
            5..=7 => GuestOp::Changed { since: OTHER, offset, len },
            _ => GuestOp::Read { offset, len },
        };
        self.guests.insert(id, op.clone());
        self.reader.submit(self.now, id, &op);
    }

    /// A member answers one of the requests that it was sent: `good` as a replica would, else with anything.
    fn member(&mut self, input: &mut Input<'_>, good: bool) {
        if self.to_members.is_empty() {
            return;
        }
        let at = if input.one_in(4) { input.below(self.to_members.len()) } else { 0 };
        let sent = self.to_members.remove(at);
        let outcome = match &sent.request.ask {
            _ if !good && input.flag() => Err(*input.pick(&messages::REFUSALS)),
            _ if !good => Ok(messages::answer(input, &KNOWN)),
            Ask::SnapRead { len, .. } => {
                let data = HeapPayload::zeroed(usize::try_from(*len).expect("one message"));
                Ok(Answer::Data(vec![Extent::Data { crcs: block_crcs(data.bytes()), data }]))
            }
            Ask::SnapKinds { len, .. } => Ok(Answer::Kinds(vec![(*len, Some(Hole::Zero))])),
            Ask::SnapChanged { len, .. } => {
                let bytes = len.div_ceil(8 * CHANGED_GRAIN);
                Ok(Answer::Changed((0..bytes).map(|_| input.u8()).collect()))
            }
            _ => Ok(Answer::Attached(messages::view(input, &KNOWN))),
        };
        let response =
            Response { tag: sent.request.tag, epoch: messages::epoch(input), outcome, service_us: 1 };
        let response = messages::carried_response(&response);
        self.reader.handle_response(self.now, sent.rid, sent.ordinal, response.clone());
        if input.one_in(16) {
            self.reader.handle_response(self.now, sent.rid, sent.ordinal, response);
        }
    }

    fn drain(&mut self) {
        while let Some(sent) = self.reader.poll_transmit() {
            let ask = &sent.request.ask;
            let may = match ask {
                Ask::Attach(_) => true,
                Ask::SnapKinds { id: OTHER, offset, len } => offset + len <= 2 * KNOWN.size,
                Ask::SnapRead { id, offset, len } | Ask::SnapKinds { id, offset, len } => {
                    *id == SNAP && offset + len <= KNOWN.size
                }
                Ask::SnapChanged { id: SNAP, since: OTHER, offset, len, .. } => {
                    offset.is_multiple_of(CHANGED_GRAIN) && *len <= CHANGED_MAX && offset + len <= KNOWN.size
                }
                _ => false,
            };
            assert!(may, "{ask:?}");
            self.to_members.push(Transmit { request: messages::carried_request(&sent.request), ..sent });
        }
        assert!(self.to_members.len() < WAITING_MAX, "{} requests at members", self.to_members.len());
        while let Some((id, reply)) = self.reader.poll_reply() {
            let op = self.guests.remove(&id).expect("an answer to no request, or a second one");
            let told = match (&op, &reply) {
                (GuestOp::Read { len, .. }, GuestReply::Data(extents)) => {
                    let fits = |extent: &Extent<HeapPayload>| match extent {
                        Extent::Data { crcs, data } => crcs.is_empty() || *crcs == block_crcs(data.bytes()),
                        Extent::Hole { .. } => true,
                    };
                    *len == extents.iter().map(extent_len).sum::<u64>() && extents.iter().all(fits)
                }
                (GuestOp::Kinds { len, .. }, GuestReply::Kinds(runs)) => {
                    *len == runs.iter().map(|(len, _)| *len).sum::<u64>()
                }
                (GuestOp::Changed { since: OTHER, len, .. }, GuestReply::Changed { runs, .. }) => {
                    *len == runs.iter().map(|(len, _)| *len).sum::<u64>()
                }
                (GuestOp::Flush, GuestReply::Done) | (_, GuestReply::Failed(_)) => true,
                _ => false,
            };
            assert!(told, "{reply:?} to {op:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash, Hasher};

    /// Without a fuzzer: what random bytes find.
    #[test]
    fn a_thousand_random_lives_end_well() {
        for life in 0..1000u64 {
            let byte = |at: u64| {
                let mut hasher = DefaultHasher::new();
                (life, at).hash(&mut hasher);
                u8::try_from(hasher.finish() & 0xff).expect("a byte")
            };
            let bytes: Vec<u8> = (0..400).map(byte).collect();
            super::run(&bytes);
        }
    }
}
