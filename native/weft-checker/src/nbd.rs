//! A small NBD client: fixed newstyle, simple replies, a unix socket.
//!
//! Must always hold: what the server says is believed only as far as it fits what was asked.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::stamp::{self, Value};
use crate::{BLOCK, Rng};

const INIT: u64 = 0x4e42_444d_4147_4943;
const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;

/// Length of a request's head.
pub const REQUEST_HEAD: usize = 28;
/// Length of a reply's head.
pub const REPLY_HEAD: usize = 16;

/// Error of a reply whose server ends.
pub const ESHUTDOWN: u32 = 108;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// NBD_CMD_READ.
    Read,
    /// NBD_CMD_WRITE.
    Write,
    /// NBD_CMD_FLUSH.
    Flush,
    /// NBD_CMD_TRIM.
    Trim,
    /// NBD_CMD_WRITE_ZEROES.
    WriteZeroes,
}

/// What the server offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Bytes.
    pub size: u64,
    /// NBD_FLAG_…
    pub flags: u16,
}

impl Export {
    /// NBD_FLAG_SEND_FLUSH.
    #[must_use]
    pub fn flush(&self) -> bool {
        self.flags & 1 << 2 != 0
    }
    /// NBD_FLAG_SEND_FUA.
    #[must_use]
    pub fn fua(&self) -> bool {
        self.flags & 1 << 3 != 0
    }
    /// NBD_FLAG_SEND_TRIM.
    #[must_use]
    pub fn trim(&self) -> bool {
        self.flags & 1 << 5 != 0
    }
    /// NBD_FLAG_SEND_WRITE_ZEROES.
    #[must_use]
    pub fn write_zeroes(&self) -> bool {
        self.flags & 1 << 6 != 0
    }
    /// NBD_FLAG_CAN_MULTI_CONN.
    #[must_use]
    pub fn multi_conn(&self) -> bool {
        self.flags & 1 << 8 != 0
    }
}

/// Connects and agrees on an export; every step of the server's may take as long as `patience`.
pub fn connect(path: &str, export: &str, patience: Duration) -> io::Result<(UnixStream, Export)> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let (init, option) = (u64_of(&mut stream)?, u64_of(&mut stream)?);
    if (init, option) != (INIT, OPTION) {
        return Err(wrong("not an NBD server of the newstyle".to_owned()));
    }
    let flags = u16_of(&mut stream)?;
    if flags & 1 == 0 {
        return Err(wrong("not of the fixed newstyle".to_owned()));
    }
    let mut hello = (u32::from(flags & 3)).to_be_bytes().to_vec();
    let name = u32::try_from(export.len()).map_err(|_| wrong("a long name".to_owned()))?;
    hello.extend(OPTION.to_be_bytes());
    hello.extend(OPT_GO.to_be_bytes());
    hello.extend((name + 6).to_be_bytes());
    hello.extend(name.to_be_bytes());
    hello.extend(export.as_bytes());
    hello.extend([0, 0]);
    stream.write_all(&hello)?;
    let mut found = None;
    loop {
        if u64_of(&mut stream)? != OPTION_REPLY {
            return Err(wrong("an answer that is none".to_owned()));
        }
        let (_option, reply, len) = (u32_of(&mut stream)?, u32_of(&mut stream)?, u32_of(&mut stream)?);
        if len > 1 << 16 {
            return Err(wrong(format!("an answer of {len} bytes")));
        }
        let mut body = vec![0; len as usize];
        stream.read_exact(&mut body)?;
        match (reply, body.as_slice()) {
            (REP_ACK, _) => break,
            (REP_INFO, [0, 0, s0, s1, s2, s3, s4, s5, s6, s7, f0, f1]) => {
                found = Some(Export {
                    size: u64::from_be_bytes([*s0, *s1, *s2, *s3, *s4, *s5, *s6, *s7]),
                    flags: u16::from_be_bytes([*f0, *f1]),
                });
            }
            (REP_INFO, _) => {}
            (error, text) => {
                return Err(wrong(format!(
                    "the server refuses ({error:#x}): {}",
                    String::from_utf8_lossy(text)
                )));
            }
        }
    }
    let export = found.ok_or_else(|| wrong("the server says nothing of its export".to_owned()))?;
    Ok((stream, export))
}

fn u16_of(stream: &mut UnixStream) -> io::Result<u16> {
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes).map(|()| u16::from_be_bytes(bytes))
}

fn u32_of(stream: &mut UnixStream) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).map(|()| u32::from_be_bytes(bytes))
}

fn u64_of(stream: &mut UnixStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes).map(|()| u64::from_be_bytes(bytes))
}

/// A request's head.
#[must_use]
pub fn request(command: Command, fua: bool, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_HEAD] {
    let number: u16 = match command {
        Command::Read => 0,
        Command::Write => 1,
        Command::Flush => 3,
        Command::Trim => 4,
        Command::WriteZeroes => 6,
    };
    let mut head = [0; REQUEST_HEAD];
    head[..4].copy_from_slice(&REQUEST.to_be_bytes());
    head[4..6].copy_from_slice(&u16::from(fua).to_be_bytes());
    head[6..8].copy_from_slice(&number.to_be_bytes());
    head[8..16].copy_from_slice(&cookie.to_be_bytes());
    head[16..24].copy_from_slice(&offset.to_be_bytes());
    head[24..].copy_from_slice(&len.to_be_bytes());
    head
}

/// Error and cookie of a reply's head.
pub fn reply(head: &[u8; REPLY_HEAD]) -> io::Result<(u32, u64)> {
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if word(0) != REPLY {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a reply that is none"));
    }
    Ok((word(4), u64::from(word(8)) << 32 | u64::from(word(12))))
}

/// Reads blocks, one request after the other.
pub fn read_blocks(stream: &mut UnixStream, first: u64, count: u64) -> io::Result<Vec<Value>> {
    const AT_ONCE: u8 = 32;
    let mut values = Vec::new();
    let mut cookies = Rng(first);
    let mut bytes = vec![0; usize::from(AT_ONCE) * BLOCK];
    for start in (first..first + count).step_by(AT_ONCE.into()) {
        let blocks = u64::from(AT_ONCE).min(first + count - start);
        let bytes = &mut bytes[..usize::try_from(blocks).unwrap_or(0) * BLOCK];
        let cookie = cookies.number();
        let len = u32::try_from(bytes.len()).unwrap_or(0);
        stream.write_all(&request(Command::Read, false, cookie, start * BLOCK as u64, len))?;
        let mut head = [0; REPLY_HEAD];
        stream.read_exact(&mut head)?;
        match reply(&head)? {
            (0, answered) if answered == cookie => {}
            (0, _) => return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to nothing")),
            (error, _) => return Err(io::Error::other(format!("read of block {start}: error {error}"))),
        }
        stream.read_exact(bytes)?;
        values.extend(bytes.chunks_exact(BLOCK).zip(start..).map(|(b, number)| stamp::read(b, number)));
    }
    Ok(values)
}
