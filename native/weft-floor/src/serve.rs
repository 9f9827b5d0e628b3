//! A peer: one thread, the daemon's own completion driver, and as many disk requests at once as are asked for.
//!
//! Must always hold: `Done` is sent only after the kernel said that the write is on stable media.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use weft_io::buffer::IoBuf;
use weft_io::driver::{AnyDriver, Completion, Driver, DriverConfig, DriverKind, Fd, Op, Outcome, Part};
use weft_proto::payload::Payload;

use crate::frame::{HEAD_LEN, Head, MAX_DATA, Verb};

/// Holds at least one message whole.
const INCOMING: usize = MAX_DATA + HEAD_LEN;
/// Parts of one send.
const MAX_PARTS: usize = 256;

pub(crate) struct Config {
    pub(crate) listen: String,
    pub(crate) file: PathBuf,
    pub(crate) size: u64,
    /// As the daemon picks it, if it isn't given.
    pub(crate) driver: Option<DriverKind>,
}

/// What an op of the driver was for.
#[derive(Clone, Copy)]
enum Token {
    Accept,
    Receive(u32),
    Send(u32),
    /// Connection and the request's tag.
    Disk(u32, u32),
}

struct Peer {
    driver: AnyDriver,
    listener: Fd,
    file: Fd,
    size: u64,
    connections: BTreeMap<u32, Client>,
    next_connection: u32,
}

struct Client {
    socket: Fd,
    filled: usize,
    outgoing: Vec<Part>,
    is_sending: bool,
}

/// Serves connections until it is killed.
pub(crate) fn serve(config: &Config) -> io::Result<()> {
    let file = open(config)?;
    let listener = TcpListener::bind(&config.listen)?;
    listener.set_nonblocking(true)?;
    let driver = weft_io::driver::open(config.driver, DriverConfig::default())?;
    println!("listening on {}", listener.local_addr()?);
    let mut peer = Peer {
        driver,
        listener: Arc::new(listener.into()),
        file: Arc::new(file),
        size: config.size,
        connections: BTreeMap::new(),
        next_connection: 0,
    };
    peer.submit(Token::Accept, Op::Accept { listener: peer.listener.clone() });
    let mut done = Vec::new();
    loop {
        peer.driver.wait(None, &mut done)?;
        for completion in done.drain(..) {
            peer.handle(completion)?;
        }
        peer.send();
    }
}

/// Opens the file past the page cache, filled: a first write to a hole costs more than any later one.
fn open(config: &Config) -> io::Result<OwnedFd> {
    if config.file.metadata().map_or(true, |found| found.len() != config.size) {
        let mut file = File::create(&config.file)?;
        let zeroes = vec![0; MAX_DATA];
        let mut left = config.size;
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(MAX_DATA).min(MAX_DATA);
            file.write_all(&zeroes[..piece])?;
            left -= piece as u64;
        }
        file.sync_all()?;
    }
    Ok(rustix::fs::open(&config.file, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())?)
}

impl Peer {
    fn submit(&mut self, token: Token, op: Op) {
        self.driver.submit(token.to_number(), op);
    }

    fn handle(&mut self, completion: Completion) -> io::Result<()> {
        let Completion { token, op, result } = completion;
        match (Token::from_number(token), op, result) {
            (Token::Accept, _, Ok(Outcome::Accepted(socket))) => {
                self.on_accepted(socket)?;
                self.submit(Token::Accept, Op::Accept { listener: self.listener.clone() });
            }
            (Token::Accept, _, result) => {
                return Err(io::Error::other(format!("accept: {result:?}")));
            }
            (Token::Receive(id), Op::Recv { buf, .. }, Ok(Outcome::Bytes(len))) if len > 0 => {
                self.on_received(id, buf, len);
            }
            (Token::Send(id), Op::Send { socket, parts, skip }, Ok(Outcome::Bytes(len))) => {
                self.on_sent(id, socket, parts, skip + len);
            }
            (Token::Disk(id, tag), op, result) => self.on_disk(id, tag, op, result.ok()),
            // The initiator has measured enough and left, or makes no sense.
            (Token::Receive(id) | Token::Send(id), ..) => {
                self.connections.remove(&id);
            }
        }
        Ok(())
    }

    fn on_accepted(&mut self, socket: OwnedFd) -> io::Result<()> {
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        let socket: Fd = Arc::new(stream.into());
        let id = self.next_connection;
        self.next_connection = (id + 1) & MAX_CONNECTION;
        let client = Client { socket: socket.clone(), filled: 0, outgoing: Vec::new(), is_sending: false };
        self.connections.insert(id, client);
        let buf = IoBuf::scratch(INCOMING);
        self.submit(Token::Receive(id), Op::Recv { socket, buf, start: 0, len: INCOMING });
        Ok(())
    }

    fn on_received(&mut self, id: u32, mut buf: IoBuf, len: usize) {
        let Some(client) = self.connections.get_mut(&id) else { return };
        let socket = client.socket.clone();
        let filled = client.filled + len;
        let mut used = 0;
        while let Some((head, _)) = buf.bytes()[used..filled].split_first_chunk::<HEAD_LEN>() {
            let Some(head) = Head::parse(head).filter(|head| self.is_sensible(head)) else {
                self.connections.remove(&id);
                return;
            };
            let end = used + HEAD_LEN + head.data_len();
            if end > filled {
                break;
            }
            let file = self.file.clone();
            let op = if head.verb == Verb::Write {
                let data = IoBuf::copy_of(&buf.bytes()[used + HEAD_LEN..end]);
                Op::WriteAt { file, offset: head.offset, bufs: vec![data], durable: true }
            } else {
                let len = usize::try_from(head.len).unwrap_or(0);
                Op::ReadAt { file, offset: head.offset, buf: IoBuf::scratch(len) }
            };
            self.submit(Token::Disk(id, head.tag), op);
            used = end;
        }
        buf.bytes_mut().copy_within(used..filled, 0);
        let start = filled - used;
        if let Some(client) = self.connections.get_mut(&id) {
            client.filled = start;
        }
        self.submit(Token::Receive(id), Op::Recv { socket, buf, start, len: INCOMING - start });
    }

    fn is_sensible(&self, head: &Head) -> bool {
        head.offset.is_multiple_of(4096)
            && head.len.is_multiple_of(4096)
            && head.len > 0
            && head.offset.checked_add(u64::from(head.len)).is_some_and(|end| end <= self.size)
            && matches!(head.verb, Verb::Write | Verb::Read)
    }

    fn on_disk(&mut self, id: u32, tag: u32, op: Op, outcome: Option<Outcome>) {
        let Some(client) = self.connections.get_mut(&id) else { return };
        let moved = if let Some(Outcome::Bytes(len)) = outcome { len } else { 0 };
        let (wanted, data) = match op {
            Op::WriteAt { bufs, .. } => (bufs.iter().map(Payload::len).sum(), None),
            Op::ReadAt { buf, .. } => (buf.len(), Some(buf)),
            op => unreachable!("{op:?} is no disk request"),
        };
        let is_ok = moved == wanted;
        let data = data.filter(|_| is_ok);
        let len = data.as_ref().map_or(0, |data| u32::try_from(data.len()).unwrap_or(0));
        let verb = if is_ok { Verb::Done } else { Verb::Failed };
        let head = Head { verb, tag, len, offset: 0 }.to_bytes();
        match client.outgoing.last_mut() {
            Some(Part::Bytes(bytes)) => bytes.extend_from_slice(&head),
            _ => client.outgoing.push(Part::Bytes(head.to_vec())),
        }
        client.outgoing.extend(data.map(Part::Buf));
    }

    fn on_sent(&mut self, id: u32, socket: Fd, mut parts: Vec<Part>, mut sent: usize) {
        let Some(client) = self.connections.get_mut(&id) else { return };
        let whole = parts.iter().take_while(|part| {
            let is_whole = sent >= part.len();
            sent -= if is_whole { part.len() } else { 0 };
            is_whole
        });
        let whole = whole.count();
        parts.drain(..whole);
        if parts.is_empty() {
            client.is_sending = false;
        } else {
            self.submit(Token::Send(id), Op::Send { socket, parts, skip: sent });
        }
    }

    /// Begins to send what the connections have to say, all of it at once.
    fn send(&mut self) {
        for (id, client) in &mut self.connections {
            if client.is_sending || client.outgoing.is_empty() {
                continue;
            }
            client.is_sending = true;
            let parts = client.outgoing.drain(..MAX_PARTS.min(client.outgoing.len())).collect();
            let op = Op::Send { socket: client.socket.clone(), parts, skip: 0 };
            self.driver.submit(Token::Send(*id).to_number(), op);
        }
    }
}

/// 30 bits.
const MAX_CONNECTION: u32 = (1 << 30) - 1;

impl Token {
    fn to_number(self) -> u64 {
        let join = |kind: u64, id: u32, tag: u32| kind << 62 | u64::from(id) << 32 | u64::from(tag);
        match self {
            Token::Accept => join(0, 0, 0),
            Token::Receive(id) => join(1, id, 0),
            Token::Send(id) => join(2, id, 0),
            Token::Disk(id, tag) => join(3, id, tag),
        }
    }

    fn from_number(number: u64) -> Token {
        let [a, b, c, d, tag @ ..] = number.to_be_bytes();
        let id = u32::from_be_bytes([a, b, c, d]) & MAX_CONNECTION;
        match number >> 62 {
            0 => Token::Accept,
            1 => Token::Receive(id),
            2 => Token::Send(id),
            _ => Token::Disk(id, u32::from_be_bytes(tag)),
        }
    }
}
