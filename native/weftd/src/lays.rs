//! What is written in one volume is laid over another one, both open here (docs/model.md R34).
//!
//! ```text
//!  kinds of the layer, 64 MiB at a time ─▶ data: read as it lies ─▶ its written sectors are written onto the other
//!                                       ├▶ zero: zeroed there
//!                                       └▶ absent: nothing; at last all of it is flushed
//! ```
//!
//! Must always hold:
//! * what nobody has written in the layer changes nothing;
//! * it is done when everything was answered: what was refused once makes all of it undone, to be begun anew;
//! * no more is held than [`OPEN_MAX`] requests and [`BYTES_MAX`] of data.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use weft_proto::guest::{GuestError, GuestOp, GuestReply, RequestId};
use weft_proto::ids::LayerMark;
use weft_proto::layer::written;
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::Payload;

/// Requests under way.
pub const OPEN_MAX: usize = 64;
/// Data that was asked for, or was read and is not written yet, in bytes.
pub const BYTES_MAX: u64 = 8 << 20;
/// What is read at once, in bytes.
const READ: u64 = 512 << 10;
/// What is looked at, or zeroed, at once, in bytes.
const LOOK: u64 = 64 << 20;
/// The upper half of the ids of its requests: no client of an export has it.
const TAG: u64 = u32::MAX as u64;

/// Is this a request of some laying?
#[must_use]
pub fn is_ours(id: RequestId) -> bool {
    id.0 >> 32 == TAG
}

/// The volume that something is asked of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The layer.
    From,
    /// The one that it is laid over.
    Onto,
}

/// What is asked of a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked<P> {
    /// As a guest asks.
    Guest(GuestOp<P>),
    /// Data as it lies.
    Raw {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// Why it is not done to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Which volume's session refused.
    pub side: Side,
    /// What it said; none: an answer to something else.
    pub why: Option<GuestError>,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.why {
            Some(GuestError::OutOfRange) => "a range lies outside of it",
            Some(GuestError::Fenced) => "its session has ended",
            Some(GuestError::Unreadable) => "no copy has a readable block",
            Some(GuestError::Waiting) => "it waits, and its policy is to fail",
            None => "its session answered something else",
        })
    }
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Laid {
    /// Bytes of data that were written.
    pub data: u64,
    /// Bytes that were zeroed.
    pub zeroed: u64,
}

#[derive(Debug)]
enum Open {
    Look {
        at: u64,
    },
    /// So many bytes of data are held by it.
    Read {
        at: u64,
        len: u64,
    },
    /// A write of so many bytes.
    Write(u64),
    Zero(u64),
    Flush,
}

/// One laying, sans-I/O.
#[derive(Debug)]
pub struct Lay<P> {
    mark: LayerMark,
    size: u64,
    /// Up to here the layer was looked at.
    looked: u64,
    looking: bool,
    /// Present there, not begun: offset, length, kind.
    runs: VecDeque<(u64, u64, Option<Hole>)>,
    open: BTreeMap<RequestId, Open>,
    bytes: u64,
    /// To be written or zeroed.
    waiting: VecDeque<(GuestOp<P>, u64)>,
    flush: Flush,
    laid: Laid,
    cut: Option<Cut>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Due,
    Asked,
    Done,
}

impl<P: Payload> Lay<P> {
    /// Of a layer with this mark and so many bytes.
    #[must_use]
    pub fn new(mark: LayerMark, size: u64) -> Lay<P> {
        Lay {
            mark,
            size,
            looked: 0,
            looking: false,
            runs: VecDeque::new(),
            open: BTreeMap::new(),
            bytes: 0,
            waiting: VecDeque::new(),
            flush: Flush::Due,
            laid: Laid::default(),
            cut: None,
        }
    }

    /// Is this request one of its own that is not answered yet?
    #[must_use]
    pub fn asked(&self, id: RequestId) -> bool {
        self.open.contains_key(&id)
    }

    /// How much was done so far.
    #[must_use]
    pub fn laid(&self) -> Laid {
        self.laid
    }

    /// Up to which byte the layer was looked at.
    #[must_use]
    pub fn looked(&self) -> u64 {
        self.looked
    }

    /// Its end: all was done and is durable, or it was cut. None: it goes on.
    #[must_use]
    pub fn outcome(&self) -> Option<Result<Laid, Cut>> {
        match (self.cut, self.flush) {
            (Some(cut), _) => Some(Err(cut)),
            (None, Flush::Done) => Some(Ok(self.laid)),
            (None, _) => None,
        }
    }

    /// What is to be asked next; `number` is used by nobody else.
    pub fn poll(&mut self, number: u32) -> Option<(Side, RequestId, Asked<P>)> {
        if self.cut.is_some() {
            return None;
        }
        let id = RequestId(TAG << 32 | u64::from(number));
        let (side, open, asked) = self.next()?;
        self.open.insert(id, open);
        Some((side, id, asked))
    }

    fn next(&mut self) -> Option<(Side, Open, Asked<P>)> {
        if self.open.len() >= OPEN_MAX {
            return None;
        }
        // What was read goes first: only that makes room again.
        if let Some((op, len)) = self.waiting.pop_front() {
            let open = if matches!(op, GuestOp::Zero { .. }) { Open::Zero(len) } else { Open::Write(len) };
            return Some((Side::Onto, open, Asked::Guest(op)));
        }
        if self.runs.is_empty() && !self.looking && self.looked < self.size {
            self.looking = true;
            let (offset, len) = (self.looked, LOOK.min(self.size - self.looked));
            let look = GuestOp::Kinds { offset, len };
            return Some((Side::From, Open::Look { at: offset }, Asked::Guest(look)));
        }
        if let Some((offset, len, kind)) = self.runs.front().copied() {
            let data = kind.is_none();
            let piece = len.min(if data { READ } else { LOOK });
            if data && self.bytes + piece > BYTES_MAX {
                return None;
            }
            match self.runs.front_mut() {
                Some(run) if piece < len => (run.0, run.1) = (offset + piece, len - piece),
                _ => drop(self.runs.pop_front()),
            }
            if data {
                self.bytes += piece;
                let open = Open::Read { at: offset, len: piece };
                return Some((Side::From, open, Asked::Raw { offset, len: piece }));
            }
            return Some((Side::Onto, Open::Zero(piece), Asked::Guest(zero(offset, piece))));
        }
        let is_all = self.looked >= self.size && self.runs.is_empty() && self.open.is_empty();
        if is_all && self.flush == Flush::Due {
            self.flush = Flush::Asked;
            return Some((Side::Onto, Open::Flush, Asked::Guest(GuestOp::Flush)));
        }
        None
    }

    /// An answer to one of its requests.
    pub fn handle(&mut self, id: RequestId, reply: GuestReply<P>) {
        let Some(open) = self.open.remove(&id) else { return };
        match (open, reply) {
            (Open::Look { at }, GuestReply::Kinds(kinds)) => {
                self.looking = false;
                let mut at = at;
                for (len, kind) in kinds {
                    if kind != Some(Hole::Absent) {
                        self.runs.push_back((at, len, kind));
                    }
                    at += len;
                }
                self.looked = at;
            }
            (Open::Read { at, len }, GuestReply::Data(extents)) => {
                // What of it is written is held until it is.
                self.bytes -= len;
                self.take(at, extents);
            }
            (Open::Write(len), GuestReply::Done) => {
                self.bytes -= len;
                self.laid.data += len;
            }
            (Open::Zero(len), GuestReply::Done) => self.laid.zeroed += len,
            (Open::Flush, GuestReply::Done) => self.flush = Flush::Done,
            (open, reply) => {
                let side = match open {
                    Open::Look { .. } | Open::Read { .. } => Side::From,
                    Open::Write(_) | Open::Zero(_) | Open::Flush => Side::Onto,
                };
                let why = if let GuestReply::Failed(why) = reply { Some(why) } else { None };
                self.cut = self.cut.or(Some(Cut { side, why }));
            }
        }
    }

    fn take(&mut self, at: u64, extents: Vec<Extent<P>>) {
        let mut at = at;
        for extent in extents {
            match extent {
                Extent::Data { data, .. } => {
                    for part in written(self.mark, data.bytes()) {
                        let (offset, len) = (at + part.start as u64, part.len() as u64);
                        self.bytes += len;
                        let data = data.slice(part.start, part.len());
                        self.waiting.push_back((GuestOp::Write { offset, data, fua: false }, len));
                    }
                    at += data.len() as u64;
                }
                Extent::Hole { len, kind } => {
                    if kind == Hole::Zero {
                        self.waiting.push_back((zero(at, len), len));
                    }
                    at += len;
                }
            }
        }
    }
}

fn zero<P>(offset: u64, len: u64) -> GuestOp<P> {
    GuestOp::Zero { offset, len, discard: false, keep_space: false, fua: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::layer::{SECTOR, unwritten_block};
    use weft_proto::payload::HeapPayload;

    const MARK: LayerMark = LayerMark(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff01);
    const BLOCK: usize = 4096;

    /// Small numbers that look random, the same for the same seed.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        }
    }

    /// A block of a volume: as a replica keeps it.
    #[derive(Clone, Debug, PartialEq)]
    enum Block {
        Hole(Hole),
        Data(Vec<u8>),
    }

    /// A volume as its session plays it to the laying.
    struct Volume(Vec<Block>);

    impl Volume {
        fn bytes(&self, block: usize) -> Vec<u8> {
            match &self.0[block] {
                Block::Hole(_) => vec![0; BLOCK],
                Block::Data(bytes) => bytes.clone(),
            }
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            for (i, sector) in data.chunks(SECTOR).enumerate() {
                let at = usize::try_from(offset).expect("small") + i * SECTOR;
                let mut bytes = self.bytes(at / BLOCK);
                bytes[at % BLOCK..at % BLOCK + SECTOR].copy_from_slice(sector);
                self.0[at / BLOCK] = Block::Data(bytes);
            }
        }

        fn answer(&mut self, asked: Asked<HeapPayload>) -> GuestReply<HeapPayload> {
            let blocks = |offset: u64, len: u64| {
                let at = usize::try_from(offset).expect("small") / BLOCK;
                at..at + usize::try_from(len).expect("small") / BLOCK
            };
            let len = BLOCK as u64;
            match asked {
                Asked::Guest(GuestOp::Kinds { offset, len: all }) => {
                    let kind = |block: &Block| match block {
                        Block::Hole(kind) => Some(*kind),
                        Block::Data(_) => None,
                    };
                    GuestReply::Kinds(self.0[blocks(offset, all)].iter().map(|b| (len, kind(b))).collect())
                }
                Asked::Raw { offset, len: all } => {
                    let extent = |block: &Block| match block {
                        Block::Hole(kind) => Extent::Hole { len, kind: *kind },
                        Block::Data(bytes) => Extent::Data { crcs: Vec::new(), data: bytes.clone().into() },
                    };
                    GuestReply::Data(self.0[blocks(offset, all)].iter().map(extent).collect())
                }
                Asked::Guest(GuestOp::Write { offset, data, .. }) => {
                    self.write(offset, data.bytes());
                    GuestReply::Done
                }
                Asked::Guest(GuestOp::Zero { offset, len, .. }) => {
                    self.0[blocks(offset, len)].fill(Block::Hole(Hole::Zero));
                    GuestReply::Done
                }
                Asked::Guest(GuestOp::Flush) => GuestReply::Done,
                Asked::Guest(other) => panic!("{other:?}"),
            }
        }
    }

    /// A layer of any content, with what a guest wrote of it by sectors, and what lies below.
    fn any(dice: &mut Dice, blocks: usize) -> (Volume, Volume, Vec<u8>) {
        let (mut layer, mut below) = (Vec::new(), Vec::new());
        let mut both = Vec::new();
        for _ in 0..blocks {
            let base = match dice.below(3) {
                0 => Block::Hole(Hole::Absent),
                1 => Block::Hole(Hole::Zero),
                _ => Block::Data(vec![u8::try_from(100 + dice.below(100)).expect("a byte"); BLOCK]),
            };
            let mut bytes = if let Block::Data(bytes) = &base { bytes.clone() } else { vec![0; BLOCK] };
            let over = match dice.below(5) {
                0 | 1 => Block::Hole(Hole::Absent),
                2 => Block::Hole(Hole::Zero),
                3 => Block::Data(vec![u8::try_from(dice.below(3)).expect("a byte"); BLOCK]),
                _ => {
                    let mut data = unwritten_block(MARK);
                    for sector in data.chunks_mut(SECTOR) {
                        if dice.below(2) == 0 {
                            sector.fill(u8::try_from(dice.below(3)).expect("a byte"));
                        }
                    }
                    Block::Data(data)
                }
            };
            match &over {
                Block::Hole(Hole::Absent) => {}
                Block::Hole(Hole::Zero) => bytes.fill(0),
                Block::Data(data) => {
                    for part in written(MARK, data) {
                        bytes[part.clone()].copy_from_slice(&data[part]);
                    }
                }
            }
            both.extend_from_slice(&bytes);
            layer.push(over);
            below.push(base);
        }
        (Volume(layer), Volume(below), both)
    }

    /// Whatever order sessions answer in, what the guest wrote lies over what was below, by sectors, and nothing else has changed.
    #[test]
    fn what_was_written_lies_over_what_was_below_and_nothing_else_has_changed() {
        for seed in 0..200 {
            let mut dice = Dice(seed);
            let blocks = usize::try_from(1 + dice.below(600)).expect("small");
            let (mut layer, mut below, both) = any(&mut dice, blocks);
            let before = below.0.clone();
            let mut lay = Lay::new(MARK, (blocks * BLOCK) as u64);
            let mut open = Vec::new();
            let mut number = 0;
            let (mut held_max, mut flushed) = (0, false);
            while lay.outcome().is_none() {
                while let Some((side, id, asked)) = lay.poll(number) {
                    assert!(is_ours(id) && !flushed);
                    number += 1;
                    flushed = asked == Asked::Guest(GuestOp::Flush);
                    open.push((side, id, asked));
                }
                held_max = held_max.max(lay.bytes);
                assert!(open.len() <= OPEN_MAX);
                assert!(!open.is_empty(), "it waits for nothing");
                let at = usize::try_from(dice.below(open.len() as u64)).expect("small");
                let (side, id, asked) = open.swap_remove(at);
                let reply = match side {
                    Side::From => layer.answer(asked),
                    Side::Onto => below.answer(asked),
                };
                assert!(lay.asked(id));
                lay.handle(id, reply);
            }
            assert!(flushed && open.is_empty() && held_max <= BYTES_MAX && lay.bytes == 0);
            assert!(lay.waiting.is_empty() && lay.runs.is_empty());
            let after: Vec<u8> = (0..blocks).flat_map(|block| below.bytes(block)).collect();
            assert!(after == both, "seed {seed}");
            for (block, over) in layer.0.iter().enumerate() {
                match over {
                    // Not so much as another kind of hole.
                    Block::Hole(Hole::Absent) => assert_eq!(below.0[block], before[block]),
                    Block::Hole(Hole::Zero) => assert_eq!(below.0[block], Block::Hole(Hole::Zero)),
                    Block::Data(_) => {}
                }
            }
        }
    }

    #[test]
    fn what_is_refused_once_is_not_done_and_nothing_more_is_asked() {
        for (refuse_at, side) in [(0, Side::From), (1, Side::From), (2, Side::Onto)] {
            let mut layer = Volume(vec![Block::Data(vec![7; BLOCK])]);
            let mut lay: Lay<HeapPayload> = Lay::new(MARK, BLOCK as u64);
            for number in 0..=refuse_at {
                let (at, id, asked) = lay.poll(number).expect("something is asked");
                let reply = match at {
                    _ if number == refuse_at => GuestReply::Failed(GuestError::Fenced),
                    Side::From => layer.answer(asked),
                    Side::Onto => GuestReply::Done,
                };
                lay.handle(id, reply);
            }
            assert_eq!(lay.outcome(), Some(Err(Cut { side, why: Some(GuestError::Fenced) })));
            assert_eq!(lay.poll(9), None);
        }
    }
}
