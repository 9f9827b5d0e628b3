//! A connection of frames over a driver that cuts everything anywhere: `weft-io`'s unsafe buffers under it.
//!
//! Must always hold:
//! * how the stream is cut changes nothing: the frames are those that a reader of the whole stream sees, and the same
//!   error ends them;
//! * what is queued leaves in order and whole, however short the sends are.

use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use weft_io::buffer::IoBuf;
use weft_io::driver::{Completion, Fd, Op, Outcome, Part, TokenSpace};
use weft_io::stream::{Pressure, StreamConfig};
use weft_io::tcp::{Conn, Frame};
use weft_proto::ids::{ClusterId, PoolId, VolumeId};
use weft_proto::message::{Request, Response};
use weft_proto::payload::Payload;
use weft_proto::wire::{
    EncodedFrame, FrameError, HEADER_LEN, Header, Version, encode_request, encode_response,
};

use crate::input::Input;
use crate::messages::{self, Known};

const KNOWN: Known = Known { volume: VolumeId(1), pool: PoolId(2), cluster: ClusterId(3), size: 1 << 20 };
/// More than one receive buffer, so that it wraps.
const STREAM_MAX: usize = 1 << 20;

/// Frames or nonsense, then how the stream is cut.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let trailer_len = input.below(65);
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
                append(&mut whole, &encode_request(Version::V1, 9, &request), trailer_len);
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
                append(&mut whole, &frame, trailer_len);
                queued.push(frame);
            }
        }
    }
    receive(&whole, trailer_len, cuts);
    send(&queued, cuts);
}

fn append<P: Payload>(whole: &mut Vec<u8>, frame: &EncodedFrame<P>, trailer_len: usize) {
    whole.extend_from_slice(&frame.head[..HEADER_LEN]);
    whole.resize(whole.len() + trailer_len, 0x7a);
    whole.extend_from_slice(&frame.head[HEADER_LEN..]);
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

fn connection(trailer_len: usize) -> Conn {
    let socket = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let socket: Fd = Arc::new(socket.expect("/dev/null"));
    let mut conn = Conn::new(socket, StreamConfig::new(TokenSpace(5)));
    conn.set_version(Version::V1);
    conn.set_trailer_len(trailer_len);
    conn
}

fn receive(whole: &[u8], trailer_len: usize, mut cuts: u64) {
    let mut expected = Reader { whole, at: 0, trailer_len };
    let mut conn = connection(trailer_len);
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
    assert_eq!(frame.trailer, wanted.trailer);
    assert_eq!(frame.meta, wanted.meta);
    assert_eq!(frame.data.bytes(), wanted.data);
    assert!(frame.data.is_aligned(), "O_DIRECT wants it aligned");
}

struct Expected<'a> {
    header: Header,
    trailer: &'a [u8],
    meta: &'a [u8],
    data: &'a [u8],
}

/// The dumb reader: all of the stream at once.
struct Reader<'a> {
    whole: &'a [u8],
    at: usize,
    trailer_len: usize,
}

impl<'a> Reader<'a> {
    /// `Err(None)`: the stream ends within the next frame.
    fn next(&mut self) -> Result<Expected<'a>, Option<FrameError>> {
        let head = self.whole[self.at..].first_chunk::<HEADER_LEN>().ok_or(None)?;
        let header = Header::parse(head, Version::V1).map_err(Some)?;
        let at = self.at + HEADER_LEN;
        let meta_at = at + self.trailer_len;
        let data_at = meta_at + header.meta_len();
        let end = data_at + header.data_len();
        let data = self.whole.get(data_at..end).ok_or(None)?;
        self.at = end;
        Ok(Expected { header, trailer: &self.whole[at..meta_at], meta: &self.whole[meta_at..data_at], data })
    }
}

fn send(frames: &[EncodedFrame<weft_proto::payload::HeapPayload>], mut cuts: u64) {
    let mut conn = connection(0);
    let mut wanted = Vec::new();
    let mut left = Vec::new();
    let mut waiting = frames.iter();
    loop {
        // Queue a few, as long as there is room.
        for frame in waiting.by_ref() {
            append(&mut wanted, frame, 0);
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
