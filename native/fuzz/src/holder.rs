//! The holder between a guest and whatever answers as weftd: a guest's bytes that are right, almost right or nonsense; a
//! server that answers in any order, with trouble, with lies, cut anywhere, and that goes away with what it has.
//!
//! Must always hold, whatever is answered:
//! * what leaves for weftd are whole requests, in bounds, each under a number of its own; of two that overlap and are under way
//!   both only read;
//! * each request of the guest is answered once at most, with data of the length that it asked for; an answer to nothing is none;
//! * what is held is within the limits.
//!
//! And as long as the server says the truth: what a read finds is what the guest wrote last before it, and in the end each
//! byte is as the guest wrote it last, however often what was not answered was repeated.

use std::collections::BTreeMap;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_control::frame::{AnswerLine, E_LINE, E_METHOD, parse_line_of};
use weft_control::holder::Command;
use weft_export::nbd::{Connection, ExportInfo, Limits, MAX_TRANSFER};
use weft_holder::held::Held;
use weft_holder::wire::{Verdict, Wire, shake_hands};
use weft_io::buffer::IoBuf;
use weft_proto::guest::{GuestOp, GuestReply};

use crate::input::Input;

const SIZE: usize = 64 * 1024;
const LIMITS: Limits = Limits { requests: 16, bytes: 128 * 1024 };
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const SHUTDOWN: u32 = 108;
/// A guest's write here: more would only cost time.
const WRITE_MAX: u32 = 8 * 1024;

/// A line of the control socket, weftd's handshake, or a guest's life.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.u8() % 8 {
        0 => line(input.rest()),
        1 => handshake(&mut input),
        _ => World::default().live(&mut input),
    }
}

fn line(line: &[u8]) {
    let id = serde_json::from_slice::<Value>(line).ok().and_then(|v| v.get("id").and_then(Value::as_u64));
    match parse_line_of(line, Command::parse) {
        Ok((told, _)) => assert!(id.is_none() || Some(told) == id, "answered {told} to {id:?}"),
        Err(AnswerLine::Error { id: told, error }) => {
            assert!(id.is_none() || told.is_none() || told == id, "answered {told:?} to {id:?}");
            assert!([E_LINE, E_METHOD].contains(&error.code.as_str()), "{error:?}");
        }
        Err(answer) => panic!("{answer:?} to no command"),
    }
}

/// A server that has said all it will ever say.
struct Said<'a> {
    says: &'a [u8],
    heard: Vec<u8>,
}

impl AsyncRead for Said<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.says.split_at(self.says.len().min(buf.remaining()));
        buf.put_slice(now);
        self.says = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.heard.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// weftd's side of a handshake, right up to where the input has it otherwise.
fn handshake(input: &mut Input<'_>) {
    let mut says = Vec::new();
    let right = !input.one_in(4);
    if right {
        says.extend(0x4e42_444d_4147_4943_u64.to_be_bytes());
        says.extend(0x4948_4156_454f_5054_u64.to_be_bytes());
        says.extend((input.u16() | 1).to_be_bytes());
    }
    let mut told = None;
    let mut ended = false;
    for _ in 0..input.below(5) {
        let (kind, len) = (*input.pick(&[1, 3, 3, 3, 1 << 31, 9]), input.below(20));
        let body = if input.flag() { [&[0, 0], input.take(10)].concat() } else { input.take(len).to_vec() };
        says.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
        says.extend(7_u32.to_be_bytes());
        says.extend(u32::to_be_bytes(kind));
        says.extend(u32::try_from(body.len()).expect("short").to_be_bytes());
        says.extend(&body);
        match (kind, body.as_slice()) {
            _ if ended => {}
            (3, [0, 0, rest @ ..]) if rest.len() == 10 => {
                told = Some(u64::from_be_bytes(rest[..8].try_into().expect("eight bytes")));
            }
            (3, _) => {}
            _ => ended = true,
        }
    }
    let sound = right && input.is_done();
    says.extend_from_slice(input.rest());
    let mut server = Said { says: &says, heard: Vec::new() };
    let name = "11111111-1111-4111-8111-111111111111";
    let made = {
        let mut future = pin!(shake_hands(&mut server, name));
        // A server that never lets it wait: it comes to an end at once.
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(made) => made,
            Poll::Pending => panic!("nothing is waited for"),
        }
    };
    assert!(server.heard.len() < 128, "{} bytes for a handshake", server.heard.len());
    if let (Ok(export), true) = (&made, sound) {
        assert_eq!(Some(export.size), told, "another size than weftd's");
    }
}

/// A request as the server has it.
#[derive(Clone, Debug)]
struct Asked {
    cookie: u64,
    command: u16,
    offset: usize,
    len: usize,
    data: Vec<u8>,
}

impl Asked {
    fn changes(&self) -> bool {
        matches!(self.command, 1 | 4 | 6)
    }
    fn overlaps(&self, other: &Asked) -> bool {
        self.offset < other.offset + other.len && other.offset < self.offset + self.len
    }
}

/// What the guest knows of a request of its own.
struct Wanted {
    command: u16,
    len: usize,
    /// What a read is to find, as the guest asked.
    finds: Vec<u8>,
}

struct World {
    guest: Connection<IoBuf>,
    held: Held<IoBuf>,
    wire: Wire,
    /// What weftd has received, not yet a whole request.
    arrived: Vec<u8>,
    has: Vec<Asked>,
    /// Done, with what a read has found; not answered.
    done: Vec<(Asked, Vec<u8>)>,
    disk: Vec<u8>,
    /// Each byte as the guest wrote it last.
    model: Vec<u8>,
    wanted: BTreeMap<u64, Wanted>,
    next_cookie: u64,
    /// From the holder to the guest, not yet understood.
    received: Vec<u8>,
    /// Only truths were answered, and the guest kept to the protocol.
    sound: bool,
    guest_sound: bool,
    last_feed: usize,
}

impl Default for World {
    fn default() -> World {
        let export = ExportInfo {
            name: "vm1".into(),
            aliases: vec!["tapdisk_client".into()],
            description: String::new(),
            size: SIZE as u64,
            read_only: false,
            multi_conn: false,
            since: Vec::new(),
        };
        World {
            guest: Connection::new(1, export, LIMITS),
            held: Held::default(),
            wire: Wire::default(),
            arrived: Vec::new(),
            has: Vec::new(),
            done: Vec::new(),
            disk: vec![0; SIZE],
            model: vec![0; SIZE],
            wanted: BTreeMap::new(),
            next_cookie: 1,
            received: Vec::new(),
            sound: true,
            guest_sound: true,
            last_feed: 0,
        }
    }
}

impl World {
    fn live(mut self, input: &mut Input<'_>) {
        // tapdisk's handshake.
        let mut hello = 1u32.to_be_bytes().to_vec();
        hello.extend(0x4948_4156_454f_5054_u64.to_be_bytes());
        hello.extend(7_u32.to_be_bytes());
        hello.extend(20_u32.to_be_bytes());
        hello.extend(14_u32.to_be_bytes());
        hello.extend(b"tapdisk_client\0\0");
        self.guest.handle_bytes(&hello);
        self.drain_guest();
        assert!(self.guest.is_transmitting(), "a good handshake failed");
        self.received.clear();
        while !input.is_done() {
            self.step(input);
            self.check();
        }
        self.end();
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..=4 => self.ask(input),
            5 if input.one_in(8) => self.nonsense_of_guest(input),
            6..=8 => {
                let most = if input.flag() { usize::MAX } else { 1 + input.below(256) };
                self.send(most);
            }
            9 | 10 => self.serve(input),
            11..=13 => self.answer(input),
            14 => self.die(),
            15 if input.one_in(4) => self.lie(input),
            _ => self.pump(),
        }
    }

    /// The guest asks for something.
    fn ask(&mut self, input: &mut Input<'_>) {
        if !self.guest_sound || !self.guest.wants_read() {
            return;
        }
        let command = *input.pick(&[0u16, 1, 1, 3, 4, 6]);
        let (offset, len) = if command == 3 {
            (0, 0)
        } else {
            let offset = u64::from(input.u8()) * 256 + u64::from(input.u8());
            (offset, u32::from(input.u8()) * if input.flag() { 32 } else { 1 })
        };
        let len = len.min(WRITE_MAX);
        let mut bytes = request(if input.one_in(8) { 1 } else { 0 }, command, self.next_cookie, offset, len);
        let fill = u8::try_from(self.next_cookie % 251).expect("small") + 1;
        let (start, count) = (usize::try_from(offset).expect("small"), usize::try_from(len).expect("small"));
        if command == 1 {
            bytes.resize(bytes.len() + count, fill);
        }
        let inside = start + count <= SIZE;
        let range = start.min(SIZE)..(start + count).min(SIZE);
        let finds = if command == 0 && inside { self.model[range.clone()].to_vec() } else { Vec::new() };
        match command {
            1 if inside => self.model[range].fill(fill),
            4 | 6 if inside => self.model[range].fill(0),
            _ => {}
        }
        self.wanted.insert(self.next_cookie, Wanted { command, len: count, finds });
        self.next_cookie += 1;
        self.last_feed = bytes.len();
        self.guest.handle_bytes(&bytes);
        self.pump();
    }

    fn nonsense_of_guest(&mut self, input: &mut Input<'_>) {
        if !self.guest.wants_read() {
            return;
        }
        let len = usize::from(input.u8());
        let mut bytes = input.take(len).to_vec();
        if input.flag() {
            bytes.splice(..0, REQUEST.to_be_bytes());
        }
        (self.guest_sound, self.sound) = (false, false);
        self.last_feed = bytes.len();
        self.guest.handle_bytes(&bytes);
        self.pump();
    }

    /// What the holder does by itself: requests in, answers out.
    fn pump(&mut self) {
        while let Some(request) = self.guest.poll_request() {
            match request.op {
                GuestOp::Kinds { len, .. } => {
                    self.guest.complete(request.id, GuestReply::Kinds(vec![(len, None)]))
                }
                GuestOp::Changed { .. } => panic!("no context of the kind is offered"),
                op => self.held.push(request.id, op),
            }
        }
        while let Some((cookie, op)) = self.held.poll() {
            self.wire.push(cookie, op);
        }
        self.drain_guest();
    }

    /// weftd's socket takes at most so many bytes.
    fn send(&mut self, most: usize) {
        self.pump();
        let mut left = most;
        while self.wire.is_full() && left > 0 {
            let (slices, count) = self.wire.slices();
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            let sent = bytes.len().min(left);
            self.arrived.extend_from_slice(&bytes[..sent]);
            self.wire.sent(sent);
            left -= sent;
        }
        self.understand();
    }

    fn understand(&mut self) {
        loop {
            let Some(head) = self.arrived.first_chunk::<28>() else { return };
            assert_eq!(u32::from_be_bytes([head[0], head[1], head[2], head[3]]), REQUEST);
            let flags = u16::from_be_bytes([head[4], head[5]]);
            let command = u16::from_be_bytes([head[6], head[7]]);
            let cookie = u64::from_be_bytes(head[8..16].try_into().expect("eight bytes"));
            let offset = u64::from_be_bytes(head[16..24].try_into().expect("eight bytes"));
            let len = u32::from_be_bytes(head[24..].try_into().expect("four bytes"));
            assert!([0, 1, 3, 4, 6].contains(&command), "command {command}");
            assert!(flags <= 3 && (command == 6 || flags <= 1), "flags {flags} of command {command}");
            assert!(len <= MAX_TRANSFER, "{len} bytes");
            let (offset, len) =
                (usize::try_from(offset).expect("small"), usize::try_from(len).expect("32 bits"));
            let data = if command == 1 { len } else { 0 };
            let Some(data) = self.arrived.get(28..28 + data).map(<[u8]>::to_vec) else { return };
            self.arrived.drain(..28 + data.len());
            let asked = Asked { cookie, command, offset, len, data };
            let under_way = self.has.iter().chain(self.done.iter().map(|(asked, _)| asked));
            for other in under_way {
                assert!(other.cookie != cookie || !self.sound, "{cookie} is under way twice");
                let apart = !asked.overlaps(other) || !(asked.changes() || other.changes());
                assert!(apart || !self.sound, "{asked:?} beside {other:?}");
            }
            self.has.push(asked);
        }
    }

    /// weftd does one of what it has.
    fn serve(&mut self, input: &mut Input<'_>) {
        if self.has.is_empty() {
            return;
        }
        let asked = self.has.swap_remove(input.below(self.has.len()));
        let mut found = Vec::new();
        if let Some(range) = self.disk.get_mut(asked.offset..asked.offset + asked.len) {
            match asked.command {
                0 => found = range.to_vec(),
                1 => range.copy_from_slice(&asked.data),
                4 | 6 => range.fill(0),
                _ => {}
            }
        }
        self.done.push((asked, found));
    }

    /// weftd answers one that is done, or says that there is trouble.
    fn answer(&mut self, input: &mut Input<'_>) {
        if self.done.is_empty() {
            return;
        }
        let (asked, found) = self.done.swap_remove(input.below(self.done.len()));
        let outside = asked.offset + asked.len > SIZE;
        let error = match input.u8() % 16 {
            _ if outside => 22,
            0 => 5,
            1 => 11,
            2 => 28,
            3 if input.one_in(4) => SHUTDOWN,
            _ => 0,
        };
        let mut bytes = reply(error, asked.cookie);
        if error == 0 {
            bytes.extend(&found);
        }
        self.take(input, &bytes);
    }

    /// Bytes of weftd, cut as a socket cuts them.
    fn take(&mut self, input: &mut Input<'_>, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = if input.one_in(4) { 1 + input.below(32) } else { rest.len() };
            let (now, later) = rest.split_at(piece.min(rest.len()));
            rest = later;
            // Of a read's data as much as the socket brings is put where it belongs at once.
            let space = self.wire.space();
            let direct = space.len().min(now.len());
            space[..direct].copy_from_slice(&now[..direct]);
            let whole = self.wire.filled(direct);
            let Ok(replies) = self.wire.take(&now[direct..], &self.held) else {
                assert!(!self.sound, "the truth breaks the protocol");
                return self.die();
            };
            for answered in whole.into_iter().chain(replies) {
                let cookie = answered.cookie;
                match answered.verdict() {
                    Verdict::Told(reply) => {
                        if let Some(id) = self.held.answer(cookie) {
                            self.guest.complete(id, reply);
                        }
                    }
                    Verdict::Again => self.held.again(cookie),
                    // What weftd says of the ownership decides; here it is unbroken.
                    Verdict::Ends => return self.die(),
                }
            }
        }
        self.pump();
    }

    /// weftd goes, with what it has; another one comes.
    fn die(&mut self) {
        self.has.clear();
        self.done.clear();
        self.arrived.clear();
        self.wire = Wire::default();
        self.held.lost();
    }

    fn lie(&mut self, input: &mut Input<'_>) {
        self.sound = false;
        let bytes = match input.u8() % 3 {
            0 => {
                let len = usize::from(input.u8());
                input.take(len).to_vec()
            }
            1 => reply(u32::from(input.u8()), 1 + u64::from(input.u8() % 32)),
            _ => [reply(0, 1 + u64::from(input.u8() % 32)), input.take(64).to_vec()].concat(),
        };
        self.take(input, &bytes);
    }

    /// What the guest is told.
    fn drain_guest(&mut self) {
        while let Some(gather) = self.guest.poll_transmit(3) {
            gather.parts().iter().for_each(|part| self.received.extend_from_slice(part.bytes()));
            self.guest.handle_transmitted(gather);
        }
        if !self.guest_sound {
            return self.received.clear();
        }
        if !self.guest.is_transmitting() && self.wanted.is_empty() {
            return;
        }
        while self.received.len() >= 16 && self.next_cookie > 1 {
            let word =
                |at: usize| u32::from_be_bytes(self.received[at..at + 4].try_into().expect("four bytes"));
            assert_eq!(word(0), REPLY, "no reply");
            let (error, cookie) = (word(4), (u64::from(word(8)) << 32) | u64::from(word(12)));
            let wanted = self.wanted.remove(&cookie).expect("an answer to no request, or a second one");
            assert!([0, 5, 22, 28].contains(&error), "the guest is told {error}");
            let data = if wanted.command == 0 && error == 0 { wanted.len } else { 0 };
            let found: Vec<u8> = self.received.drain(..16 + data).skip(16).collect();
            if error == 0 && wanted.command == 0 && self.sound {
                assert_eq!(found, wanted.finds, "a read found something else than was written");
            }
            // What failed may be written or not.
            self.sound &= error == 0 || !matches!(wanted.command, 1 | 4 | 6);
        }
    }

    fn check(&self) {
        assert!(self.held.unanswered() <= LIMITS.requests, "{} requests are held", self.held.unanswered());
        let most = LIMITS.bytes as u64 + u64::from(MAX_TRANSFER);
        assert!(self.held.bytes() <= most, "{} bytes are held", self.held.bytes());
        assert!(self.held.under_way() <= self.held.unanswered());
    }

    /// A weftd that says the truth is there, long enough.
    fn end(mut self) {
        self.die();
        let mut none = Input::new(&[]);
        for _ in 0..4 * LIMITS.requests + 64 {
            self.send(usize::MAX);
            while !self.has.is_empty() {
                self.serve(&mut none);
            }
            for (asked, found) in std::mem::take(&mut self.done) {
                let outside = asked.offset + asked.len > SIZE;
                let bytes = [reply(if outside { 22 } else { 0 }, asked.cookie), found].concat();
                self.take(&mut none, &bytes);
            }
        }
        assert_eq!(self.held.unanswered(), 0, "what weftd answers is answered");
        if self.guest_sound {
            assert!(self.wanted.is_empty(), "{} requests are never answered", self.wanted.len());
        }
        if self.sound {
            assert!(self.disk == self.model, "the disk is not as the guest wrote it last");
        }
    }
}

fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn reply(error: u32, cookie: u64) -> Vec<u8> {
    let mut bytes = REPLY.to_be_bytes().to_vec();
    bytes.extend(error.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes
}
