//! What goes over a connection to an export of weftd, apart from its socket: the handshake, requests as bytes, bytes as replies.
//!
//! Must always hold:
//! * what weftd says is believed only as far as it fits what was asked;
//! * requests leave whole and in the order in which they were pushed, however short the sends are.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use weft_io::buffer::IoBuf;
use weft_proto::guest::{GuestError, GuestOp, GuestReply};
use weft_proto::message::Extent;
use weft_proto::payload::Payload as _;

use crate::held::Held;

const INIT: u64 = 0x4e42_444d_4147_4943;
const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const FLAG_READ_ONLY: u16 = 1 << 1;
/// An option's answer of weftd is never longer.
const OPTION_ANSWER_MAX: u32 = 1 << 16;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;

/// Length of a request's head.
const REQUEST_HEAD: usize = 28;
/// Length of a reply's head.
const REPLY_HEAD: usize = 16;
/// Pieces given to the kernel at once.
const SLICES: usize = 64;

/// NBD's errors that are passed on, and the one that says that the server ends.
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;

/// What the export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// In bytes.
    pub size: u64,
    /// NBD's transmission flags.
    pub flags: u16,
}

impl Export {
    /// Nothing may be written to it.
    #[must_use]
    pub fn is_read_only(self) -> bool {
        self.flags & FLAG_READ_ONLY != 0
    }

    /// Also to somebody who may write to it.
    #[must_use]
    pub fn read_only_if(self, so: bool) -> Export {
        Export { flags: self.flags | if so { FLAG_READ_ONLY } else { 0 }, ..self }
    }
}

/// An answer of weftd.
#[derive(Debug)]
pub struct Reply {
    /// The request's number.
    pub cookie: u64,
    /// 0, or NBD's number of what went wrong.
    pub error: u32,
    /// What a read found.
    pub data: Option<IoBuf>,
}

/// What an answer says of its request.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// The guest is told this.
    Told(GuestReply<IoBuf>),
    /// Trouble that passes: it is asked again.
    Again,
    /// This session ends; who owns the volume is asked of weftd.
    Ends,
}

impl Reply {
    /// A guest is told of an error only when waiting can't help.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        Verdict::Told(match self.error {
            0 => match self.data {
                Some(data) => GuestReply::Data(vec![Extent::Data { crcs: Vec::new(), data }]),
                None => GuestReply::Done,
            },
            EIO => GuestReply::Failed(GuestError::Unreadable),
            EINVAL | ENOSPC => GuestReply::Failed(GuestError::OutOfRange),
            ESHUTDOWN => return Verdict::Ends,
            _ => return Verdict::Again,
        })
    }
}

/// What the next bytes are.
#[derive(Debug)]
enum Expect {
    /// As much of it as came.
    Head([u8; REPLY_HEAD], usize),
    Data {
        cookie: u64,
        data: IoBuf,
        filled: usize,
    },
}

impl Expect {
    /// A reply's beginning.
    const NEW: Expect = Expect::Head([0; REPLY_HEAD], 0);
}

/// A stretch of bytes to be sent.
#[derive(Debug)]
enum Piece {
    Head([u8; REQUEST_HEAD]),
    Data(IoBuf),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Head(bytes) => bytes,
            Piece::Data(data) => data.bytes(),
        }
    }
}

/// One connection's requests that wait for its socket, and what is known of the reply that is being received.
#[derive(Debug)]
pub struct Wire {
    unsent: VecDeque<Piece>,
    /// Bytes of the first of them that were sent.
    skip: usize,
    expect: Expect,
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Asks for the export by this name; refused where nothing of that name is.
pub async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    name: &str,
) -> io::Result<Export> {
    if (stream.read_u64().await?, stream.read_u64().await?) != (INIT, OPTION) {
        return Err(wrong("no NBD server of the newstyle"));
    }
    let flags = stream.read_u16().await?;
    if flags & 1 == 0 {
        return Err(wrong("not of the fixed newstyle"));
    }
    let name_len = u32::try_from(name.len()).map_err(|_| wrong("a long name"))?;
    let mut hello = (u32::from(flags & 3)).to_be_bytes().to_vec();
    hello.extend(OPTION.to_be_bytes());
    hello.extend(OPT_GO.to_be_bytes());
    hello.extend((name_len + 6).to_be_bytes());
    hello.extend(name_len.to_be_bytes());
    hello.extend(name.as_bytes());
    hello.extend([0, 0]);
    stream.write_all(&hello).await?;
    let mut found = None;
    loop {
        if stream.read_u64().await? != OPTION_REPLY || stream.read_u32().await? != OPT_GO {
            return Err(wrong("an answer that is none"));
        }
        let (kind, len) = (stream.read_u32().await?, stream.read_u32().await?);
        if len > OPTION_ANSWER_MAX {
            return Err(wrong(format!("an answer of {len} bytes")));
        }
        let mut body = vec![0; len as usize];
        stream.read_exact(&mut body).await?;
        match (kind, body.as_slice()) {
            (REP_ACK, _) => break,
            (REP_INFO, [0, 0, s0, s1, s2, s3, s4, s5, s6, s7, f0, f1]) => {
                let size = u64::from_be_bytes([*s0, *s1, *s2, *s3, *s4, *s5, *s6, *s7]);
                found = Some(Export { size, flags: u16::from_be_bytes([*f0, *f1]) });
            }
            (REP_INFO, _) => {}
            (_, text) => return Err(wrong(format!("weftd refuses: {}", String::from_utf8_lossy(text)))),
        }
    }
    found.ok_or_else(|| wrong("weftd says nothing of its export"))
}

fn head_of(cookie: u64, op: &GuestOp<IoBuf>) -> [u8; REQUEST_HEAD] {
    let (command, flags, offset, len) = match op {
        GuestOp::Read { offset, len } => (READ, 0, *offset, *len),
        GuestOp::Write { offset, data, fua } => (WRITE, u16::from(*fua) * FUA, *offset, data.len() as u64),
        GuestOp::Flush => (FLUSH, 0, 0, 0),
        GuestOp::Zero { offset, len, discard: true, fua, .. } => (TRIM, u16::from(*fua) * FUA, *offset, *len),
        GuestOp::Zero { offset, len, keep_space, fua, .. } => {
            let flags = (u16::from(*fua) * FUA) | (u16::from(*keep_space) * NO_HOLE);
            (WRITE_ZEROES, flags, *offset, *len)
        }
        GuestOp::Kinds { .. } | GuestOp::Changed { .. } => unreachable!("never asked of weftd"),
    };
    let len = u32::try_from(len).expect("NBD's lengths have 32 bits");
    let mut head = [0; REQUEST_HEAD];
    head[..4].copy_from_slice(&REQUEST.to_be_bytes());
    head[4..6].copy_from_slice(&flags.to_be_bytes());
    head[6..8].copy_from_slice(&command.to_be_bytes());
    head[8..16].copy_from_slice(&cookie.to_be_bytes());
    head[16..24].copy_from_slice(&offset.to_be_bytes());
    head[24..].copy_from_slice(&len.to_be_bytes());
    head
}

impl Default for Wire {
    fn default() -> Self {
        Wire { unsent: VecDeque::new(), skip: 0, expect: Expect::NEW }
    }
}

impl Wire {
    /// Bytes wait for the socket.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// A request, to be sent after those before it.
    pub fn push(&mut self, cookie: u64, op: &GuestOp<IoBuf>) {
        self.unsent.push_back(Piece::Head(head_of(cookie, op)));
        if let GuestOp::Write { data, .. } = op {
            self.unsent.push_back(Piece::Data(data.clone()));
        }
    }

    /// The next bytes to be sent, in the first so many of these.
    #[must_use]
    pub fn slices(&self) -> ([IoSlice<'_>; SLICES], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES];
        for (i, (slice, piece)) in slices.iter_mut().zip(&self.unsent).enumerate() {
            *slice = IoSlice::new(if i == 0 { &piece.bytes()[self.skip..] } else { piece.bytes() });
        }
        (slices, self.unsent.len().min(SLICES))
    }

    /// So many of them were sent.
    pub fn sent(&mut self, sent: usize) {
        self.skip += sent;
        while let Some(first) = self.unsent.front().filter(|first| first.bytes().len() <= self.skip) {
            self.skip -= first.bytes().len();
            self.unsent.pop_front();
        }
    }

    /// Where the rest of a read's data may be put at once, so that it is copied once less; empty while none is expected. What was put
    /// there is told by [`filled`](Self::filled).
    pub fn space(&mut self) -> &mut [u8] {
        match &mut self.expect {
            Expect::Data { data, filled, .. } => &mut data.bytes_mut()[*filled..],
            Expect::Head(..) => &mut [],
        }
    }

    /// So many bytes of weftd are where [`space`](Self::space) said: the answer that they complete.
    pub fn filled(&mut self, len: usize) -> Option<Reply> {
        let Expect::Data { data, filled, .. } = &mut self.expect else { return None };
        *filled += len;
        assert!(*filled <= data.len(), "{filled} bytes put where {} are", data.len());
        if *filled < data.len() {
            return None;
        }
        let Expect::Data { cookie, data, .. } = std::mem::replace(&mut self.expect, Expect::NEW) else {
            return None;
        };
        Some(Reply { cookie, error: 0, data: Some(data) })
    }

    /// Bytes of weftd, in order: the answers that they complete. An error: it breaks the protocol.
    pub fn take(&mut self, bytes: &[u8], held: &Held<IoBuf>) -> io::Result<Vec<Reply>> {
        let (mut input, mut replies) = (bytes, Vec::new());
        while !input.is_empty() {
            match &mut self.expect {
                Expect::Head(head, filled) => {
                    let taken = input.len().min(REPLY_HEAD - *filled);
                    head[*filled..*filled + taken].copy_from_slice(&input[..taken]);
                    *filled += taken;
                    input = &input[taken..];
                    if *filled < REPLY_HEAD {
                        continue;
                    }
                    let (error, cookie) = parse_head(head)?;
                    self.expect = Expect::NEW;
                    let op = held.op(cookie).ok_or_else(|| wrong("an answer to nothing"))?;
                    match op {
                        GuestOp::Read { len, .. } if error == 0 => {
                            let len = usize::try_from(*len).map_err(|_| wrong("a long read"))?;
                            // All of it is overwritten before anybody sees it.
                            self.expect = Expect::Data { cookie, data: IoBuf::scratch(len), filled: 0 };
                        }
                        _ => replies.push(Reply { cookie, error, data: None }),
                    }
                }
                Expect::Data { data, filled, .. } => {
                    let taken = input.len().min(data.len() - *filled);
                    data.bytes_mut()[*filled..*filled + taken].copy_from_slice(&input[..taken]);
                    input = &input[taken..];
                    replies.extend(self.filled(taken));
                }
            }
        }
        Ok(replies)
    }
}

fn parse_head(head: &[u8; REPLY_HEAD]) -> io::Result<(u32, u64)> {
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if word(0) != REPLY {
        return Err(wrong("a reply that is none"));
    }
    Ok((word(4), (u64::from(word(8)) << 32) | u64::from(word(12))))
}
