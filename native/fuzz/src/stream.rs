//! A connection of frames over a driver that cuts everything anywhere: `weft-io`'s unsafe buffers under it.
//!
//! Must always hold:
//! * how the stream is cut changes nothing: the frames are those that a reader of the whole stream sees, and the same
//!   error ends them;
//! * with a MAC nothing passes but what the other end sealed, in its order;
//! * what is queued leaves in order and whole, however short the sends are.

use std::sync::{Arc, LazyLock};

use rustix::fs::{Mode, OFlags};
use weft_io::buffer::IoBuf;
use weft_io::driver::{Completion, Fd, Op, Outcome, Part, TokenSpace};
use weft_io::mac::{FrameMac, KEYS_LEN, TAG_LEN};
use weft_io::stream::{Pressure, StreamConfig};
use weft_io::tcp::{Conn, ConnError, Frame};
use weft_proto::ids::{ClusterId, PoolId, VolumeId};
use weft_proto::message::{Request, Response};
use weft_proto::payload::Payload;
use weft_proto::wire::{EncodedFrame, HEADER_LEN, Header, Version, encode_request, encode_response};

use crate::input::Input;
use crate::messages::{self, Known};

const KNOWN: Known = Known { volume: VolumeId(1), pool: PoolId(2), cluster: ClusterId(3), size: 1 << 20 };
/// More than one receive buffer, so that it wraps.
const STREAM_MAX: usize = 1 << 20;

/// Both ends have them.
static KEYS: LazyLock<[u8; KEYS_LEN]> = LazyLock::new(|| core::array::from_fn(|i| i.to_le_bytes()[0] ^ 0x3c));

fn mac(sealed: bool, caller: bool) -> Option<FrameMac> {
    sealed.then(|| FrameMac::new(&KEYS, caller))
}

/// With a MAC or without, frames or nonsense, then how the stream is cut.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let sealed = input.below(65) % 2 == 1;
    let mut sealing = mac(sealed, true);
    let cuts = input.u64();
    let mut whole = Vec::new();
    let mut queued = Vec::new();
    while !input.is_done() && whole.len() < STREAM_MAX {
        match input.u8() % 8 {
            0 => {
                let len = usize::from(input.u8());
                whole.extend_from_slice(input.take(len));
            }
            1 => {
                // A header with the right checksum and anything in it.
                let mut head: [u8; HEADER_LEN] = input.array();
                head[..5].copy_from_slice(b"weft\x01");
                let crc = crc32c::crc32c(&head[..60]);
                head[60..].copy_from_slice(&crc.to_le_bytes());
                whole.extend_from_slice(&head);
            }
            2..=4 => {
                let request = Request {
                    tag: input.u32(),
                    epoch: messages::epoch(&mut input),
                    ask: messages::ask(&mut input, &KNOWN),
                };
                append(&mut whole, &encode_request(Version::V1, 9, &request), &mut sealing);
            }
            _ => {
                let outcome = if input.one_in(8) {
                    Err(*input.pick(&messages::REFUSALS))
                } else {
                    Ok(messages::answer(&mut input, &KNOWN))
                };
                let (tag, epoch) = (input.u32(), messages::epoch(&mut input));
                let response = Response { tag, epoch, outcome, service_us: input.u32() };
                let frame = encode_response(Version::V1, 9, &response);
                append(&mut whole, &frame, &mut sealing);
                queued.push(frame);
            }
        }
    }
    receive(&whole, sealed, cuts);
    send(&queued, sealed, cuts);
}

fn append<P: Payload>(whole: &mut Vec<u8>, frame: &EncodedFrame<P>, mac: &mut Option<FrameMac>) {
    let mut head = frame.head.clone();
    if let Some(mac) = mac {
        mac.seal(&mut head).expect("one of the first frames");
    }
    whole.extend_from_slice(&head);
    for part in &frame.data {
        whole.extend_from_slice(part.bytes());
    }
}

/// The next length of a cut: short ones often, since they find the edges.
fn cut(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let random = usize::try_from(*state >> 40).expect("24 bits");
    match random % 4 {
        0 => 1 + random % 7,
        1 => 1 + random % 300,
        _ => 1 + random % 70_000,
    }
}

fn connection(mac: Option<FrameMac>) -> Conn {
    let socket = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let socket: Fd = Arc::new(socket.expect("/dev/null"));
    let config = StreamConfig::new(TokenSpace(5));
    let mut conn = match mac {
        Some(mac) => Conn::sealed(Conn::stream_of(socket, config), mac),
        None => Conn::new(socket, config),
    };
    conn.set_version(Version::V1);
    conn
}

fn receive(whole: &[u8], sealed: bool, mut cuts: u64) {
    let mut expected = Reader { whole, at: 0, mac: mac(sealed, false) };
    let mut conn = connection(mac(sealed, false));
    let mut sent = 0;
    loop {
        let Some((token, op)) = conn.poll_op() else {
            assert!(conn.ended().is_some(), "a connection that wants nothing has ended");
            return;
        };
        let Op::Recv { mut buf, start, len, socket } = op else { panic!("nothing was queued: {op:?}") };
        assert!(len > 0 && start + len <= buf.len(), "a receive of {start}+{len} into {}", buf.len());
        let count = cut(&mut cuts).min(len).min(whole.len() - sent);
        buf.bytes_mut()[start..start + count].copy_from_slice(&whole[sent..sent + count]);
        sent += count;
        let op = Op::Recv { socket, buf, start, len };
        conn.handle_completion(Completion { token, op, result: Ok(Outcome::Bytes(count)) });
        loop {
            match conn.poll_frame() {
                Ok(Some(frame)) => {
                    let wanted = expected.next().expect("a frame more than the stream has");
                    compare(&frame, wanted);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(expected.next().err(), Some(Some(error)), "another error");
                    assert!(conn.ended().is_some(), "an error ends the connection");
                    return;
                }
            }
        }
        if conn.ended().is_some() {
            assert!(expected.next().is_err_and(|error| error.is_none()), "a frame was lost");
            return;
        }
    }
}

fn compare(frame: &Frame, wanted: Expected<'_>) {
    assert_eq!(frame.header, wanted.header);
    assert_eq!(frame.meta, wanted.meta);
    assert_eq!(frame.data.bytes(), wanted.data);
    assert!(frame.data.is_aligned(), "O_DIRECT wants it aligned");
}

struct Expected<'a> {
    header: Header,
    meta: &'a [u8],
    data: &'a [u8],
}

/// The dumb reader: all of the stream at once.
struct Reader<'a> {
    whole: &'a [u8],
    at: usize,
    mac: Option<FrameMac>,
}

impl<'a> Reader<'a> {
    /// `Err(None)`: the stream ends within the next frame.
    fn next(&mut self) -> Result<Expected<'a>, Option<ConnError>> {
        if self.mac.is_some() && self.whole.get(self.at).is_some_and(|first| [21, 23].contains(first)) {
            return Err(Some(ConnError::RefusedUs));
        }
        let head = self.whole[self.at..].first_chunk::<HEADER_LEN>().ok_or(None)?;
        let header = Header::parse(head, Version::V1).map_err(|error| Some(ConnError::Frame(error)))?;
        let tag_at = self.at + HEADER_LEN;
        let meta_at = tag_at + if self.mac.is_some() { TAG_LEN } else { 0 };
        let data_at = meta_at + header.meta_len();
        let meta = self.whole.get(meta_at..data_at).ok_or(None)?;
        if let Some(mac) = &mut self.mac {
            let opened = mac.open(head, &self.whole[tag_at..meta_at], meta);
            opened.map_err(|error| Some(ConnError::Mac(error)))?;
        }
        let end = data_at + header.data_len();
        let data = self.whole.get(data_at..end).ok_or(None)?;
        self.at = end;
        Ok(Expected { header, meta, data })
    }
}

fn send(frames: &[EncodedFrame<weft_proto::payload::HeapPayload>], sealed: bool, mut cuts: u64) {
    let (mut conn, mut sealing) = (connection(mac(sealed, true)), mac(sealed, true));
    let mut wanted = Vec::new();
    let mut left = Vec::new();
    let mut waiting = frames.iter();
    loop {
        // Queue a few, as long as there is room.
        for frame in waiting.by_ref() {
            append(&mut wanted, frame, &mut sealing);
            let data = frame.data.iter().map(|part| IoBuf::copy_of(part.bytes())).collect();
            if conn.queue(EncodedFrame { head: frame.head.clone(), data }) == Pressure::Stop
                || cut(&mut cuts).is_multiple_of(3)
            {
                break;
            }
        }
        let mut sent = false;
        while let Some((token, op)) = conn.poll_op() {
            // The receive stays where it is: nothing arrives.
            let Op::Send { socket, parts, skip } = op else { continue };
            sent = true;
            let bytes: Vec<u8> = parts.iter().flat_map(Part::bytes).copied().skip(skip).collect();
            let count = cut(&mut cuts).min(bytes.len());
            left.extend_from_slice(&bytes[..count]);
            let op = Op::Send { socket, parts, skip };
            conn.handle_completion(Completion { token, op, result: Ok(Outcome::Bytes(count)) });
            break;
        }
        if !sent && waiting.len() == 0 {
            break;
        }
    }
    assert!(left == wanted, "{} bytes left, {} were queued", left.len(), wanted.len());
}
