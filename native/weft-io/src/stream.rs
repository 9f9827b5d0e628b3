//! A stream socket (TCP or unix) over the driver: bytes in, bytes out, both bounded.
//!
//! ```text
//! stream.handle_completion(c);                       // what the driver said
//! loop over stream.bytes() / consume / begin_fill / poll_filled, stream.queue(part) …
//! while let Some((token, op)) = stream.poll_op() { driver.submit(token, op) }
//! ```
//!
//! Must always hold:
//! * at most one receive and one send are in flight, so bytes keep their order;
//! * memory is the receive buffer, one fill at a time, and what the caller queues: [`Pressure::Stop`] asks him to wait
//!   for [`ByteStream::is_writable`];
//! * after an error or the end of the stream nothing is received or sent any more; what had arrived before can be read.
//!
//! Small pieces come through one large receive buffer (one system call for many requests, one copy while the bytes
//! are in the cache); the rest of a long piece ([`DIRECT`] bytes or more) is received where it belongs.

use core::fmt;
use std::collections::VecDeque;
use std::os::fd::AsRawFd;

use weft_proto::payload::Payload;

use crate::buffer::IoBuf;
use crate::driver::{Completion, Errno, Fd, Op, Outcome, PARTS_MAX, Part, TokenSpace};

/// From this many missing bytes on, a fill is received in place instead of being copied.
pub const DIRECT: usize = 16 * 1024;

const RECV: u64 = 1;
const SEND: u64 = 2;
/// Bytes for one sendmsg at most: keeps a slow peer's share of kernel memory and the latency of urgent frames low.
const BATCH_BYTES: usize = 1 << 20;

/// Whether more may be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pressure {
    /// Go on.
    Go,
    /// The queue is full: everything was taken, but wait for [`ByteStream::is_writable`] before making more.
    Stop,
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The peer closed its side, or we did.
    Closed,
    /// The system says so: reset, timed out …
    Failed(Errno),
}

impl fmt::Display for StreamEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamEnd::Closed => f.write_str("the connection was closed"),
            StreamEnd::Failed(errno) => write!(f, "the connection failed: {errno}"),
        }
    }
}

/// How large a stream's buffers are.
#[derive(Clone, Copy, Debug)]
pub struct StreamConfig {
    /// The driver's tokens that are this stream's.
    pub space: TokenSpace,
    /// Length of the receive buffer: the longest piece that can be looked at with [`ByteStream::bytes`].
    pub recv_bytes: usize,
    /// From this many queued bytes on, [`Pressure::Stop`].
    pub send_bytes: usize,
}

impl StreamConfig {
    /// 128 KiB to receive into, 4 MiB to send.
    #[must_use]
    pub fn new(space: TokenSpace) -> StreamConfig {
        StreamConfig { space, recv_bytes: 128 * 1024, send_bytes: 4 << 20 }
    }
}

/// A piece that is received into a buffer of its own.
#[derive(Debug)]
struct Fill {
    /// Away while the driver receives into it.
    buf: Option<IoBuf>,
    len: usize,
    filled: usize,
}

/// See the module.
#[derive(Debug)]
pub struct ByteStream {
    socket: Fd,
    config: StreamConfig,
    /// Away while the driver receives into it.
    recv: Option<IoBuf>,
    start: usize,
    end: usize,
    fill: Option<Fill>,
    receiving: bool,
    paused: bool,
    queue: VecDeque<Part>,
    /// Bytes of the first part that are already sent.
    skip: usize,
    queued: usize,
    sending: bool,
    ended: Option<StreamEnd>,
}

impl ByteStream {
    /// Takes over a connected socket.
    #[must_use]
    pub fn new(socket: Fd, config: StreamConfig) -> ByteStream {
        ByteStream {
            socket,
            config,
            recv: Some(IoBuf::scratch(config.recv_bytes)),
            start: 0,
            end: 0,
            fill: None,
            receiving: false,
            paused: false,
            queue: VecDeque::new(),
            skip: 0,
            queued: 0,
            sending: false,
            ended: None,
        }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Fd {
        &self.socket
    }

    /// True if a driver's completion with this token is for this stream.
    #[must_use]
    pub fn owns(&self, token: u64) -> bool {
        TokenSpace::of(token) == self.config.space
    }

    /// Why the stream ended, if it has. What had arrived can still be read.
    #[must_use]
    pub fn ended(&self) -> Option<StreamEnd> {
        self.ended
    }

    /// True when the stream has ended and the driver has given everything back: it can be dropped, and its token space
    /// used again.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.ended.is_some() && !self.receiving && !self.sending
    }

    /// Bytes queued and not yet taken by the kernel.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// True when less than half of the queue's limit is used: go on after [`Pressure::Stop`].
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.queued < self.config.send_bytes / 2
    }

    /// What was received and not yet consumed; empty while a fill is under way or the driver has the buffer (after
    /// [`ByteStream::poll_op`]: look before).
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match (&self.recv, &self.fill) {
            (Some(buf), None) => &buf.bytes()[self.start..self.end],
            _ => &[],
        }
    }

    /// The same, to be changed where it lies.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match (&mut self.recv, &self.fill) {
            (Some(buf), None) => &mut buf.bytes_mut()[self.start..self.end],
            _ => &mut [],
        }
    }

    /// Length of the receive buffer: the longest piece that can be looked at.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.config.recv_bytes
    }

    /// Done with the first `count` of [`ByteStream::bytes`]. Panics when there are fewer: a caller's bug.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.bytes().len(), "consume {count} of {}", self.bytes().len());
        self.start += count;
    }

    /// Wants the next `len` bytes in an aligned buffer of their own, told by [`ByteStream::poll_filled`].
    pub fn begin_fill(&mut self, len: usize) {
        assert!(self.fill.is_none(), "a second fill while {:?}", self.fill);
        self.fill = Some(Fill { buf: Some(IoBuf::scratch(len)), len, filled: 0 });
        self.copy_to_fill();
    }

    /// The filled buffer, once it is.
    pub fn poll_filled(&mut self) -> Option<IoBuf> {
        self.fill.take_if(|fill| fill.filled == fill.len && fill.buf.is_some())?.buf
    }

    fn copy_to_fill(&mut self) {
        let (Some(fill), Some(recv)) = (&mut self.fill, &self.recv) else { return };
        let Some(buf) = &mut fill.buf else { return };
        let count = (fill.len - fill.filled).min(self.end - self.start);
        if count > 0 {
            let from = &recv.bytes()[self.start..self.start + count];
            buf.bytes_mut()[fill.filled..fill.filled + count].copy_from_slice(from);
            fill.filled += count;
            self.start += count;
        }
    }

    /// Stops receiving (a receive in flight may still end), or goes on: back-pressure towards the peer.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Queues bytes to be sent.
    pub fn queue(&mut self, part: Part) -> Pressure {
        if self.ended.is_none() && !part.is_empty() {
            self.queued += part.len();
            self.queue.push_back(part);
        }
        if self.queued < self.config.send_bytes { Pressure::Go } else { Pressure::Stop }
    }

    /// Ends the stream from our side at once; what is queued is dropped. The ops in flight end soon.
    pub fn close(&mut self) {
        self.end(StreamEnd::Closed);
    }

    fn end(&mut self, why: StreamEnd) {
        if self.ended.is_none() {
            self.ended = Some(why);
            self.queue.clear();
            (self.queued, self.skip) = (0, 0);
            // SAFETY: no memory is passed. An error means that it is shut already.
            unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
        }
    }

    /// A driver's op of this stream has ended.
    pub fn handle_completion(&mut self, completion: Completion) {
        assert!(self.owns(completion.token), "completion {:#x} for another stream", completion.token);
        let result = match completion.result {
            Ok(Outcome::Bytes(count)) => Ok(count),
            Ok(_) => Ok(0),
            Err(errno) => Err(errno),
        };
        match completion.op {
            Op::Recv { buf, start, .. } => {
                self.receiving = false;
                let count = *result.as_ref().unwrap_or(&0);
                match &mut self.fill {
                    Some(fill) if fill.buf.is_none() => {
                        fill.buf = Some(buf);
                        fill.filled = start + count;
                    }
                    _ => {
                        self.recv = Some(buf);
                        self.end = start + count;
                        self.copy_to_fill();
                    }
                }
                if result == Ok(0) {
                    self.end(StreamEnd::Closed);
                }
            }
            Op::Send { parts, skip, .. } => {
                self.sending = false;
                if let (Ok(count), None) = (result, self.ended) {
                    self.give_back(parts, skip + count);
                    self.queued -= count;
                }
            }
            _ => {}
        }
        if let Err(errno) = result {
            self.end(if errno.is_cancelled() { StreamEnd::Closed } else { StreamEnd::Failed(errno) });
        }
    }

    /// Puts the parts of a send back in front of the queue without their first `sent` bytes.
    fn give_back(&mut self, parts: Vec<Part>, mut sent: usize) {
        let mut rest = Vec::new();
        for part in parts {
            if rest.is_empty() && sent >= part.len() {
                sent -= part.len();
            } else {
                rest.push(part);
            }
        }
        self.skip = if rest.is_empty() { 0 } else { sent };
        for part in rest.into_iter().rev() {
            self.queue.push_front(part);
        }
    }

    /// The next op for the driver.
    pub fn poll_op(&mut self) -> Option<(u64, Op)> {
        self.poll_recv().or_else(|| self.poll_send())
    }

    /// The next receive, if one is wanted and there is room. The receive buffer is away until it completes: read
    /// [`ByteStream::bytes`] first.
    pub fn poll_recv(&mut self) -> Option<(u64, Op)> {
        if self.receiving || self.paused || self.ended.is_some() {
            return None;
        }
        let token = self.config.space.token(RECV);
        if let Some(fill) = &mut self.fill {
            let missing = fill.len - fill.filled;
            if missing == 0 {
                return None; // to be taken first
            }
            if missing >= DIRECT {
                let buf = fill.buf.take()?;
                self.receiving = true;
                let op = Op::Recv { socket: self.socket.clone(), buf, start: fill.filled, len: missing };
                return Some((token, op));
            }
        }
        let mut buf = self.recv.take()?;
        if self.start > 0 {
            // What is left is the beginning of one piece: short.
            buf.bytes_mut().copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let len = buf.len() - self.end;
        if len == 0 {
            self.recv = Some(buf);
            return None; // the caller wants to see no more than fits
        }
        self.receiving = true;
        Some((token, Op::Recv { socket: self.socket.clone(), buf, start: self.end, len }))
    }

    /// The next send, if something is queued: as many parts as fit into one system call.
    pub fn poll_send(&mut self) -> Option<(u64, Op)> {
        if self.sending || self.ended.is_some() || self.queue.is_empty() {
            return None;
        }
        let (mut parts, mut bytes) = (Vec::new(), 0);
        while let Some(part) = self.queue.pop_front() {
            bytes += part.len();
            parts.push(part);
            if parts.len() == PARTS_MAX || bytes >= BATCH_BYTES {
                break;
            }
        }
        self.sending = true;
        let op = Op::Send { socket: self.socket.clone(), parts, skip: self.skip };
        Some((self.config.space.token(SEND), op))
    }
}
