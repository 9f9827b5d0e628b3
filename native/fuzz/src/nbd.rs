//! A guest at the NBD server: a handshake and requests that are right, almost right or nonsense, cut anywhere, against
//! a backend that answers in any order.
//!
//! Must always hold:
//! * each request is answered once, nothing else is, and what is read is what the backend said;
//! * the server holds no more bytes than its limits, one transfer and what the last call brought;
//! * after the session is fenced nothing succeeds.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use weft_export::nbd::{Connection, Ending, ExportInfo, GuestRequest, Limits, MAX_TRANSFER};
use weft_proto::guest::{GuestError, GuestOp, GuestReply};
use weft_proto::ids::SnapId;
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::{HeapPayload, Payload};

use crate::input::Input;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const SHUTDOWN: u32 = 108;
/// Bytes of heads, options and replies that a few calls may leave unsent, and the shared zeroes.
const OVERHEAD: usize = 256 * 1024;

thread_local! {
    /// Bytes of guests' data that are alive.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

#[derive(Debug)]
struct Counted(usize);

impl Counted {
    fn new(len: usize) -> Rc<Counted> {
        HELD.set(HELD.get() + len);
        Rc::new(Counted(len))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        HELD.set(HELD.get() - self.0);
    }
}

/// A payload whose memory is counted.
#[derive(Clone, Debug)]
struct Bytes(HeapPayload, Rc<Counted>);

impl Payload for Bytes {
    fn zeroed(len: usize) -> Self {
        Bytes(HeapPayload::zeroed(len), Counted::new(len))
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
    fn slice(&self, start: usize, len: usize) -> Self {
        Bytes(self.0.slice(start, len), self.1.clone())
    }
}

/// What the client knows of a request of its own.
#[derive(Clone, Copy, Debug)]
struct Asked {
    command: u16,
    offset: u64,
    len: u32,
}

struct World {
    server: Connection<Bytes>,
    limits: Limits,
    /// Requests that were sent whole and are not answered; the cookie of each is its number.
    asked: BTreeMap<u64, Asked>,
    next_cookie: u64,
    /// Requests at the backend.
    open: Vec<GuestRequest<Bytes>>,
    /// Bytes from the server, not yet understood.
    received: Vec<u8>,
    /// The client sent only what it knows, so every byte of the answers can be understood.
    sound: bool,
    transmitting: bool,
    structured: bool,
    fenced: bool,
    last_feed: usize,
}

/// A client's life.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let size = if input.one_in(64) { input.number() % (1 << 46) } else { 1 << 20 };
    let export = ExportInfo {
        name: "vm1".into(),
        aliases: vec!["tapdisk_client".into()],
        description: if input.flag() { "two copies".into() } else { String::new() },
        size,
        read_only: input.one_in(16),
        multi_conn: input.flag(),
        since: (0..u128::from(input.u8() % 3)).map(SnapId).collect(),
    };
    let limits = match input.u8() % 4 {
        0 => Limits { requests: 1 + input.below(8), bytes: 4096 * (1 + input.below(64)) },
        _ => Limits { requests: 64, bytes: 1 << 20 },
    };
    let mut world = World {
        server: Connection::new(7, export, limits),
        limits,
        asked: BTreeMap::new(),
        next_cookie: 1,
        open: Vec::new(),
        received: Vec::new(),
        sound: true,
        transmitting: false,
        structured: false,
        fenced: false,
        last_feed: 0,
    };
    if !input.one_in(8) {
        world.handshake(&mut input);
    }
    while !input.is_done() {
        world.step(&mut input);
    }
    world.end();
}

impl World {
    fn handshake(&mut self, input: &mut Input<'_>) {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        self.structured = input.flag();
        if self.structured {
            bytes.extend(option(8, &[]));
            if input.flag() {
                let names = [
                    "base:allocation".to_owned(),
                    format!("weft:changed-since:{}", SnapId(0)),
                    format!("qemu:dirty-bitmap:weft-since-{}", SnapId(1)),
                ];
                let wanted: Vec<&String> = names.iter().filter(|_| input.flag()).collect();
                let number = |n: usize| u32::try_from(n).expect("few").to_be_bytes();
                let mut queries = [[0; 4], number(wanted.len())].concat();
                wanted
                    .iter()
                    .for_each(|name| queries.extend([&number(name.len()), name.as_bytes()].concat()));
                bytes.extend(option(10, &queries));
            }
        }
        bytes.extend(option(7, &[0; 6]));
        self.feed(input, &bytes);
        self.drain_out();
        self.received.clear();
        self.transmitting = self.server.is_transmitting();
        assert!(self.transmitting, "a good handshake failed");
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..=5 if self.transmitting => self.request(input),
            6 => self.nonsense(input),
            7 => {
                let code = u32::from(input.u8() % 12);
                let len = usize::from(input.u8());
                let data = input.take(len);
                self.sound &= !self.transmitting;
                self.feed(input, &option(code, data));
            }
            8..=12 => self.answer(input),
            13 => {
                self.drain_out();
            }
            14 if input.one_in(8) => {
                // What was answered before has arrived.
                self.drain_out();
                self.server.shutdown_fenced();
                self.fenced = true;
            }
            15 if input.one_in(16) => {
                self.transmitting = false;
                self.server.handle_eof();
            }
            15 if input.one_in(16) => self.server.set_size(input.number() % (1 << 46)),
            _ => self.poll_requests(input),
        }
        self.check();
    }

    fn request(&mut self, input: &mut Input<'_>) {
        let command = if input.one_in(16) { input.u16() } else { u16::from(input.u8() % 8) };
        let flags = if input.one_in(4) { u16::from(input.u8()) } else { 0 };
        let offset = if input.one_in(8) { input.number() } else { u64::from(input.u16()) * 16 };
        let len = match input.u8() % 8 {
            0 => input.number_u32(),
            1 => u32::from(input.u16()) * 16,
            _ => u32::from(input.u16()),
        };
        let (command, len) = match command {
            // Only as many bytes are sent as there are.
            1 => (1, len.min(40_000)),
            3 if !input.one_in(4) => (3, 0),
            // Saying goodbye ends the plot: rarely.
            2 if !input.one_in(16) => (0, len),
            other => (other, len),
        };
        let offset = if command == 3 && len == 0 { 0 } else { offset };
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        if command == 1 {
            let fill = input.u8();
            bytes.resize(bytes.len() + usize::try_from(len).expect("32 bits"), fill);
        }
        if !self.feed(input, &bytes) {
            return;
        }
        if command == 2 {
            self.transmitting = false;
        } else {
            self.asked.insert(cookie, Asked { command, offset, len });
        }
    }

    fn nonsense(&mut self, input: &mut Input<'_>) {
        let len = usize::from(input.u8());
        let mut bytes = input.take(len).to_vec();
        if input.flag() {
            bytes.splice(..0, REQUEST_MAGIC.to_be_bytes());
        }
        self.sound = false;
        self.feed(input, &bytes);
    }

    /// Gives bytes to the server as a socket would: in pieces, while it wants to read.
    fn feed(&mut self, input: &mut Input<'_>, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while !rest.is_empty() {
            if !self.server.wants_read() {
                // The client waits, and the backend works.
                self.poll_requests(input);
                self.drain_out();
                while !self.server.wants_read() && !self.open.is_empty() {
                    self.answer(input);
                    self.poll_requests(input);
                    self.drain_out();
                }
                if !self.server.wants_read() {
                    self.sound = false;
                    return false;
                }
            }
            let piece = if input.one_in(4) { 1 + input.below(64) } else { rest.len() };
            let (now, later) = rest.split_at(piece.min(rest.len()));
            self.last_feed = now.len();
            self.server.handle_bytes(now);
            self.check();
            rest = later;
        }
        true
    }

    fn poll_requests(&mut self, input: &mut Input<'_>) {
        while !input.one_in(8) {
            let Some(request) = self.server.poll_request() else { return };
            assert!(!self.fenced, "{request:?} after the session was fenced");
            assert!(self.open.iter().all(|open| open.id != request.id), "an id is used twice");
            self.open.push(request);
            assert!(self.open.len() <= self.limits.requests, "{} requests at the backend", self.open.len());
        }
    }

    /// The backend answers one of its requests.
    fn answer(&mut self, input: &mut Input<'_>) {
        if self.open.is_empty() {
            return;
        }
        let request = self.open.swap_remove(input.below(self.open.len()));
        let errors =
            [GuestError::OutOfRange, GuestError::Fenced, GuestError::Unreadable, GuestError::Waiting];
        let reply = match &request.op {
            _ if input.one_in(8) => GuestReply::Failed(*input.pick(&errors)),
            GuestOp::Read { offset, len } => GuestReply::Data(extents(input, *offset, *len)),
            GuestOp::Kinds { len, .. } => GuestReply::Kinds(kinds(input, *len)),
            GuestOp::Changed { since, len, .. } => {
                assert!(since.0 < 2, "{since} was never offered");
                let runs = kinds(input, *len).into_iter().map(|(len, kind)| (len, kind.is_none()));
                GuestReply::Changed { runs: runs.collect(), exact: input.flag() }
            }
            GuestOp::Write { .. } | GuestOp::Flush | GuestOp::Zero { .. } => GuestReply::Done,
        };
        let id = request.id;
        drop(request);
        self.server.complete(id, reply);
    }

    fn drain_out(&mut self) {
        while let Some(gather) = self.server.poll_transmit(3) {
            let before = self.received.len();
            gather.parts().iter().for_each(|part| self.received.extend_from_slice(part.bytes()));
            assert_eq!(self.received.len() - before, gather.len());
            self.server.handle_transmitted(gather);
        }
        if self.sound && self.transmitting {
            self.understand();
        } else {
            self.received.clear();
        }
    }

    /// Reads the answers as a client does.
    fn understand(&mut self) {
        let bytes = core::mem::take(&mut self.received);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let magic = u32_at(rest, 0);
            if magic == SIMPLE_MAGIC {
                let (error, cookie) = (u32_at(rest, 4), u64_at(rest, 8));
                let asked = self.asked.remove(&cookie).expect("an answer to no request, or a second one");
                rest = &rest[16..];
                self.allowed(error);
                if asked.command == 0 {
                    assert!(!self.structured, "a simple reply to a read");
                    if error == 0 {
                        let len = usize::try_from(asked.len).expect("32 bits");
                        compare(asked.offset, &rest[..len]);
                        rest = &rest[len..];
                    }
                }
                continue;
            }
            assert_eq!(magic, CHUNK_MAGIC, "neither a simple nor a structured reply");
            let (flags, kind) = (u32_at(rest, 4) >> 16, u32_at(rest, 4) & 0xffff);
            let cookie = u64_at(rest, 8);
            let len = usize::try_from(u32_at(rest, 16)).expect("32 bits");
            let data = &rest[20..20 + len];
            rest = &rest[20 + len..];
            let asked = *self.asked.get(&cookie).expect("a chunk of no request");
            match kind {
                1 => {
                    self.allowed(0);
                    compare(u64_at(data, 0), &data[8..]);
                }
                2 => self.allowed(0),
                5 => {
                    let told: u64 = data[4..].chunks_exact(8).map(|run| u64::from(u32_at(run, 0))).sum();
                    assert!(told > 0 && told <= u64::from(asked.len), "status of {told} bytes");
                }
                _ => {
                    assert_eq!(kind, 0x8001, "a chunk of kind {kind}");
                    self.allowed(u32_at(data, 0));
                }
            }
            if flags & 1 != 0 {
                self.asked.remove(&cookie);
            }
        }
    }

    fn allowed(&self, error: u32) {
        assert!(error != 0 || !self.fenced, "success after the fence");
        let known = [0, 1, 5, 22, 28, 75, 95, SHUTDOWN];
        assert!(known.contains(&error), "error {error}");
    }

    fn check(&self) {
        let most =
            self.limits.bytes + usize::try_from(MAX_TRANSFER).expect("32 bits") + OVERHEAD + self.last_feed;
        assert!(HELD.get() <= most, "{} bytes of data are held, allowed are {most}", HELD.get());
        assert!(
            self.server.held_requests() <= self.limits.requests + self.last_feed / 28 + 1,
            "{} requests are held",
            self.server.held_requests()
        );
    }

    /// Everything is answered; then the client leaves.
    fn end(mut self) {
        let mut none = Input::new(&[]);
        for _ in 0..2000 {
            self.poll_requests(&mut none);
            self.drain_out();
            if self.open.is_empty() && self.server.held_requests() == 0 {
                break;
            }
            self.answer(&mut none);
        }
        self.drain_out();
        let over = self.server.ending();
        if self.sound && self.transmitting && over.is_none() {
            assert!(self.asked.is_empty(), "never answered: {:?}", self.asked);
        }
        if over.is_none() {
            self.server.handle_eof();
            let ending = self.server.ending();
            assert!(
                matches!(ending, Some(Ending::Lost | Ending::Fenced | Ending::Disconnected)),
                "{ending:?}"
            );
        }
        drop(self);
        assert_eq!(HELD.get(), 0, "bytes are held by nobody");
    }
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The byte that the backend has at this place.
fn byte_at(offset: u64) -> u8 {
    (offset / 512 % 251).to_le_bytes()[0]
}

fn compare(offset: u64, data: &[u8]) {
    for (at, byte) in (offset..).zip(data) {
        assert!(*byte == byte_at(at) || *byte == 0, "byte {at} is {byte}");
    }
}

/// Runs of data and holes that cover the range.
fn extents(input: &mut Input<'_>, offset: u64, len: u64) -> Vec<Extent<Bytes>> {
    let mut runs = Vec::new();
    let mut at = offset;
    while at < offset + len {
        let left = offset + len - at;
        let run = if input.one_in(2) { left } else { left.min(1 + u64::from(input.u16())) };
        runs.push(match input.u8() % 3 {
            _ if run > 1 << 18 => Extent::Hole { len: run, kind: Hole::Zero },
            0 => Extent::Hole { len: run, kind: Hole::Zero },
            1 => Extent::Hole { len: run, kind: Hole::Absent },
            _ => {
                let mut data = Bytes::zeroed(usize::try_from(run).expect("one transfer"));
                for (byte, at) in data.bytes_mut().iter_mut().zip(at..) {
                    *byte = byte_at(at);
                }
                Extent::Data { crcs: Vec::new(), data }
            }
        });
        at += run;
    }
    runs
}

fn kinds(input: &mut Input<'_>, len: u64) -> Vec<(u64, Option<Hole>)> {
    let mut runs = Vec::new();
    let mut left = len;
    while left > 0 {
        let run = if input.one_in(2) { left } else { left.min(1 + u64::from(input.u16())) };
        runs.push((run, *input.pick(&[None, Some(Hole::Zero), Some(Hole::Absent)])));
        left -= run;
    }
    runs
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
