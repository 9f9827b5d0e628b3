//! Bringing a snapshot to a copy that lacks it (protocol.md 4.19): all of it is read from members that have it, as any reader
//! does, and handed on piece by piece, in order of address.
//!
//! ```text
//! kinds of the next range ──▶ read the next region that is not absent, 1 MiB at most ──▶ handed on ──▶ … ──▶ whole
//!        ▲                                        └── it is not time yet: later          │
//!        └───────────────────────────────── nothing is left of the range ◀──────────────┘
//! ```
//!
//! Must always hold:
//! * a region is left out only where all of it is absent; of every other one all is handed on, each block verified;
//! * nothing is read before what was read earlier has been taken, and no faster than it may be;
//! * its end is told once: all of it was taken, or why not.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::guest::{GuestOp, GuestReply, RequestId};
use crate::ids::{HostId, Instant, Ordinal, PoolId, Rid};
use crate::message::{Extent, Hole, Response, Watermark};
use crate::payload::{BLOCK, Payload};
use crate::session::Transmit;
use crate::snap_reader::{ReaderConfig, ReaderMember, SnapReader};

/// The most that is read at a time, and what a piece never crosses a multiple of.
pub const PIECE: u64 = 1 << 20;
/// Of so much kinds are asked at a time.
const RANGE: u64 = 1 << 30;
/// What a piece costs at least: it has entries, if no data.
const LEAST: u64 = 64 << 10;
/// So long it waits for members that can't be reached.
const STALL_MS: u64 = 20_000;

/// Why a snapshot was not brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotBrought {
    /// No member gave some of it.
    Unreadable,
    /// No member that has it answered.
    Unreached,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub enum CopyWant<P> {
    /// These blocks go there; [`SnapCopy::handle_taken`] when that is done. What lies between two of these is absent.
    Take {
        /// Byte offset.
        offset: u64,
        /// All blocks from there on, what is absent too.
        extents: Vec<Extent<P>>,
    },
    /// All was taken.
    Whole,
    /// It comes to nothing.
    Failed(NotBrought),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The next piece may be read, or kinds asked for.
    Next,
    Kinds {
        end: u64,
    },
    Reading {
        end: u64,
    },
    /// A piece was handed on.
    Taking {
        end: u64,
    },
    Over,
}

/// The machine.
#[derive(Debug)]
pub struct SnapCopy<P> {
    reader: SnapReader<P>,
    region_shift: u8,
    /// Bytes a second.
    rate: u64,
    stage: Stage,
    /// Below this all is done.
    at: u64,
    /// Kinds are known up to here.
    known: u64,
    /// What is left to read of that: ranges of bytes, in order.
    todo: VecDeque<(u64, u64)>,
    /// Not before this.
    due: Instant,
    /// Given up then.
    until: Instant,
    wants: VecDeque<CopyWant<P>>,
}

impl<P: Payload> SnapCopy<P> {
    /// Brings a snapshot of regions of `1 << region_shift` bytes from these members, at `rate` bytes a second at most.
    #[must_use]
    pub fn new(
        config: ReaderConfig,
        (region_shift, rate): (u8, u64),
        members: &[ReaderMember],
        now: Instant,
    ) -> SnapCopy<P> {
        let mut copy = SnapCopy {
            reader: SnapReader::new(config, members, now),
            region_shift,
            rate: rate.max(1),
            stage: Stage::Next,
            at: 0,
            known: 0,
            todo: VecDeque::new(),
            due: now,
            until: now.after_ms(STALL_MS),
            wants: VecDeque::new(),
        };
        copy.drive(now);
        copy
    }

    // ---- getters

    /// Below this byte all is done.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.at
    }

    /// The snapshot's size.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.reader.size()
    }

    /// Every copy to which a connection is wanted, with its host and pool.
    pub fn wanted_links(&self) -> impl Iterator<Item = (Rid, HostId, PoolId)> + '_ {
        self.reader.wanted_links()
    }

    // ---- what happened

    /// The connection to a copy's host is up.
    pub fn handle_link_up(&mut self, now: Instant, rid: Rid) {
        self.reader.handle_link_up(now, rid);
        self.drive(now);
    }

    /// The connection to a copy's host is gone.
    pub fn handle_link_down(&mut self, now: Instant, rid: Rid) {
        self.reader.handle_link_down(now, rid);
        self.drive(now);
    }

    /// A copy answered on an attachment.
    pub fn handle_response(&mut self, now: Instant, rid: Rid, ordinal: Ordinal, response: Response<P>) {
        self.reader.handle_response(now, rid, ordinal, response);
        self.drive(now);
    }

    /// This host has seen the store further.
    pub fn handle_watermark(&mut self, seen: Watermark) {
        self.reader.handle_watermark(seen);
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.reader.handle_timeout(now);
        let asks = matches!(self.stage, Stage::Kinds { .. } | Stage::Reading { .. });
        if asks && now >= self.until {
            return self.fail(NotBrought::Unreached);
        }
        self.drive(now);
    }

    /// What was handed on is where it belongs.
    pub fn handle_taken(&mut self, now: Instant) {
        if let Stage::Taking { end } = self.stage {
            (self.stage, self.at) = (Stage::Next, end);
            self.drive(now);
        }
    }

    // ---- what the caller wants

    /// Nothing is read any more, nor told.
    pub fn close(&mut self) {
        self.stage = Stage::Over;
        self.reader.close();
        self.wants.clear();
    }

    // ---- what to do next

    /// The next request to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit<P>> {
        self.reader.poll_transmit()
    }

    /// What is to be done next.
    pub fn poll_want(&mut self) -> Option<CopyWant<P>> {
        self.wants.pop_front()
    }

    /// When [`SnapCopy::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.stage {
            Stage::Next => Some(self.due),
            Stage::Kinds { .. } | Stage::Reading { .. } => Some(self.until),
            Stage::Taking { .. } | Stage::Over => None,
        };
        let reader = self.reader.poll_timeout().filter(|_| self.stage != Stage::Over);
        [own, reader].into_iter().flatten().min()
    }

    // ---- the way through

    fn drive(&mut self, now: Instant) {
        while self.stage != Stage::Over {
            if let Some((_, reply)) = self.reader.poll_reply() {
                self.take_reply(now, reply);
                continue;
            }
            if self.stage != Stage::Next || now < self.due {
                return;
            }
            let size = self.reader.size();
            if let Some((start, end)) = self.todo.pop_front() {
                self.at = start;
                let end_of_piece = end.min((start / PIECE + 1) * PIECE);
                if end_of_piece < end {
                    self.todo.push_front((end_of_piece, end));
                }
                self.stage = Stage::Reading { end: end_of_piece };
                self.ask(now, GuestOp::Read { offset: start, len: end_of_piece - start });
            } else if self.known < size {
                self.at = self.known;
                let end = size.min(self.known + RANGE);
                self.stage = Stage::Kinds { end };
                self.ask(now, GuestOp::Kinds { offset: self.known, len: end - self.known });
            } else {
                (self.at, self.stage) = (size, Stage::Over);
                self.wants.push_back(CopyWant::Whole);
            }
        }
    }

    fn ask(&mut self, now: Instant, op: GuestOp<P>) {
        self.until = now.after_ms(STALL_MS);
        self.reader.submit(now, RequestId(self.at), &op);
    }

    fn take_reply(&mut self, now: Instant, reply: GuestReply<P>) {
        match (self.stage, reply) {
            (Stage::Kinds { end }, GuestReply::Kinds(runs)) => {
                self.note(&runs);
                (self.known, self.stage) = (end, Stage::Next);
            }
            (Stage::Reading { end }, GuestReply::Data(extents)) => {
                let data = |extent: &Extent<P>| match extent {
                    Extent::Data { data, .. } => data.len() as u64,
                    Extent::Hole { .. } => 0,
                };
                let bytes: u64 = extents.iter().map(data).sum();
                self.due = now.after_ms(bytes.max(LEAST).saturating_mul(1000) / self.rate);
                self.stage = Stage::Taking { end };
                self.wants.push_back(CopyWant::Take { offset: self.at, extents });
            }
            _ => self.fail(NotBrought::Unreadable),
        }
    }

    /// Takes in the kinds from `known` on: the regions that are not absent as a whole are left to be read.
    fn note(&mut self, runs: &[(u64, Option<Hole>)]) {
        let (size, shift) = (self.reader.size().next_multiple_of(BLOCK), self.region_shift);
        let mut at = self.known;
        for (len, kind) in runs {
            let (start, stop) = (at, at + len);
            at = stop;
            if *len == 0 || *kind == Some(Hole::Absent) {
                continue;
            }
            let first = (start >> shift) << shift;
            let end = (((stop - 1) >> shift) + 1) << shift;
            let end = end.min(size);
            match self.todo.back_mut() {
                Some((_, last)) if *last >= first => *last = end.max(*last),
                _ => self.todo.push_back((first, end)),
            }
        }
    }

    fn fail(&mut self, why: NotBrought) {
        self.close();
        self.wants.push_back(CopyWant::Failed(why));
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::ids::{ClusterId, Epoch, Generation, PoolInc, SessionId, SnapId, VolumeId};
    use crate::message::{Answer, Ask, Refusal, ReplicaView};
    use crate::payload::{HeapPayload, block_crcs};

    const SHIFT: u8 = 16;
    const MARK: Watermark = Watermark { cluster: ClusterId(1), incarnation: 1, revision: 1 };

    type Copy = SnapCopy<HeapPayload>;

    fn at(ms: u64) -> Instant {
        Instant(0).after_ms(ms)
    }

    /// The block at this byte.
    fn index(offset: u64) -> usize {
        usize::try_from(offset / BLOCK).expect("small")
    }

    /// A member that has a snapshot: of each block what fills it, or which hole it is.
    struct Source(Vec<Result<u8, Hole>>);

    impl Source {
        fn kinds(&self, offset: u64, len: u64) -> Answer<HeapPayload> {
            let kind = |block: &Result<u8, Hole>| (BLOCK, block.err());
            Answer::Kinds(self.blocks(offset, len).iter().map(kind).collect())
        }

        fn data(&self, offset: u64, len: u64) -> Answer<HeapPayload> {
            let extent = |block: &Result<u8, Hole>| match block {
                Ok(fill) => {
                    let data: HeapPayload = vec![*fill; 4096].into();
                    Extent::Data { crcs: block_crcs(data.bytes()), data }
                }
                Err(kind) => Extent::Hole { len: BLOCK, kind: *kind },
            };
            Answer::Data(self.blocks(offset, len).iter().map(extent).collect())
        }

        fn blocks(&self, offset: u64, len: u64) -> &[Result<u8, Hole>] {
            &self.0[index(offset)..index(offset + len)]
        }

        fn answer(&self, copy: &mut Copy, now: Instant) {
            while let Some(to) = copy.poll_transmit() {
                let outcome = Ok(match to.request.ask {
                    Ask::Attach(_) => Answer::Attached(view()),
                    Ask::SnapKinds { id: SnapId(9), offset, len } => self.kinds(offset, len),
                    Ask::SnapRead { id: SnapId(9), offset, len } => self.data(offset, len),
                    other => panic!("{other:?}"),
                });
                say(copy, now, &to, outcome);
            }
        }
    }

    fn say(
        copy: &mut Copy,
        now: Instant,
        to: &Transmit<HeapPayload>,
        outcome: Result<Answer<HeapPayload>, Refusal>,
    ) {
        let response = Response { tag: to.request.tag, epoch: Epoch(3), outcome, service_us: 1 };
        copy.handle_response(now, to.rid, to.ordinal, response);
    }

    fn view() -> ReplicaView {
        ReplicaView {
            promised: Epoch(3),
            session: SessionId(77),
            sealed: Generation::NEVER,
            newest: Generation::NEVER,
            unsealed_regions: 0,
            lossy: false,
            size: 0,
            pool_inc: PoolInc(1),
            watermark: MARK,
            ordinal: Ordinal(1),
        }
    }

    fn copy(blocks: usize, rate: u64) -> Copy {
        let config = ReaderConfig {
            volume: VolumeId(1),
            snap: SnapId(9),
            size: blocks as u64 * BLOCK,
            host: HostId(0xB),
            session: SessionId(5),
            watermark: MARK,
            others: Vec::new(),
            layer: None,
        };
        let (node, pool) = (HostId(0xA), PoolId(1));
        let member = ReaderMember { rid: Rid(0), node, pool, local: false, took: true };
        let mut copy = Copy::new(config, (SHIFT, rate), &[member], at(0));
        copy.handle_link_up(at(0), Rid(0));
        copy
    }

    /// What was handed on, block by block; none: left out. And the end.
    fn brought(
        copy: &mut Copy,
        source: &Source,
    ) -> (Vec<Option<Result<u8, Hole>>>, CopyWant<HeapPayload>, Instant) {
        let mut found = vec![None; source.0.len()];
        let mut now = at(0);
        loop {
            source.answer(copy, now);
            match copy.poll_want() {
                Some(CopyWant::Take { offset, extents }) => {
                    assert_eq!(copy.poll_want(), None, "one at a time");
                    let mut block = index(offset);
                    assert!(offset.is_multiple_of(1 << SHIFT), "it begins with a region");
                    for extent in extents {
                        let (len, what) = match extent {
                            Extent::Data { data, .. } => (data.len() as u64, Ok(data.bytes()[0])),
                            Extent::Hole { len, kind } => (len, Err(kind)),
                        };
                        for _ in 0..len / BLOCK {
                            assert_eq!(found[block].replace(what), None, "once");
                            block += 1;
                        }
                    }
                    assert!(block as u64 * BLOCK - offset <= PIECE);
                    copy.handle_taken(now);
                }
                Some(end) => return (found, end, now),
                None => {
                    now = copy.poll_timeout().expect("it goes on");
                    copy.handle_timeout(now);
                }
            }
        }
    }

    /// All but regions of which nothing was ever written, each block once, in pieces.
    #[test]
    fn everything_is_handed_on_but_what_is_absent_as_a_whole() {
        // 3 MiB and a block: 48 regions of 16 blocks, and one of a single block.
        let mut source = Source(vec![Err(Hole::Absent); 48 * 16 + 1]);
        source.0[17] = Ok(1);
        source.0[40] = Err(Hole::Zero);
        source.0[48..400].fill(Ok(2));
        source.0[768] = Ok(3);
        let mut copy = copy(source.0.len(), u64::MAX);
        let (found, end, _) = brought(&mut copy, &source);
        assert_eq!(end, CopyWant::Whole);
        let written = [1, 2].into_iter().chain(3..25).chain([48]);
        let mut expected: Vec<Option<Result<u8, Hole>>> = vec![None; found.len()];
        for region in written {
            for block in (region * 16..region * 16 + 16).take_while(|block| *block < found.len()) {
                expected[block] = Some(source.0[block]);
            }
        }
        assert_eq!(found, expected);
        assert_eq!((copy.done_bytes(), copy.total_bytes()), (769 * BLOCK, 769 * BLOCK));
        assert_eq!(copy.poll_timeout(), None);
    }

    /// Guests need the network and the disks.
    #[test]
    fn it_is_no_faster_than_it_may_be() {
        let source = Source(vec![Ok(7); 4 * 256]);
        let mut copy = copy(source.0.len(), 1 << 20);
        let (_, end, now) = brought(&mut copy, &source);
        assert_eq!((end, now), (CopyWant::Whole, at(4000)), "4 MiB, 1 MiB a second");
    }

    /// Its image is damaged there: nothing is made of half a snapshot.
    #[test]
    fn what_no_member_gives_ends_it() {
        let source = Source(vec![Ok(7); 16]);
        let mut copy = copy(16, u64::MAX);
        while let Some(to) = copy.poll_transmit() {
            let outcome = match to.request.ask {
                Ask::Attach(_) => Ok(Answer::Attached(view())),
                Ask::SnapKinds { offset, len, .. } => Ok(source.kinds(offset, len)),
                _ => Err(Refusal::BitRot),
            };
            say(&mut copy, at(0), &to, outcome);
        }
        assert_eq!(copy.poll_want(), Some(CopyWant::Failed(NotBrought::Unreadable)));
        assert_eq!((copy.poll_want(), copy.poll_timeout()), (None, None));
    }

    /// Nobody that has it is in reach: it is given up, and begun again by whoever wants it.
    #[test]
    fn it_waits_twenty_seconds_for_a_member() {
        let mut copy = copy(16, u64::MAX);
        copy.handle_link_down(at(0), Rid(0));
        copy.handle_timeout(at(19_900));
        assert_eq!(copy.poll_want(), None);
        copy.handle_timeout(at(20_000));
        assert_eq!(copy.poll_want(), Some(CopyWant::Failed(NotBrought::Unreached)));
    }
}
