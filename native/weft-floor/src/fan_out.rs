//! The initiator: a write goes to all peers at once and is done when all have it; a read goes to one in turn.
//!
//! Must always hold: one thread, sockets that never block; a peer that fails is an error of the whole.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags};
use weft_proto::payload::{HeapPayload, Payload};

use crate::frame::{HEAD_LEN, Head, MAX_DATA, Verb};

/// Slices of one vectored write.
const MAX_SLICES: usize = 64;

/// The end of a request.
pub(crate) struct Done {
    /// What the caller named it.
    pub(crate) key: u64,
    /// The data of a read; empty for a write.
    pub(crate) data: Option<HeapPayload>,
    pub(crate) is_ok: bool,
}

pub(crate) struct FanOut {
    peers: Vec<Peer>,
    open: Vec<Option<Open>>,
    free: Vec<u32>,
    done: VecDeque<Done>,
    next_reader: usize,
}

struct Open {
    key: u64,
    waiting: usize,
    is_ok: bool,
}

struct Peer {
    stream: TcpStream,
    outgoing: VecDeque<(Head, Option<HeapPayload>)>,
    /// Bytes of the first outgoing message that are sent.
    sent: usize,
    incoming: Vec<u8>,
    filled: usize,
    is_full: bool,
}

impl FanOut {
    pub(crate) fn connect(addresses: &[String]) -> io::Result<FanOut> {
        let peers = addresses.iter().map(|address| {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(Peer {
                stream,
                outgoing: VecDeque::new(),
                sent: 0,
                incoming: vec![0; MAX_DATA + HEAD_LEN],
                filled: 0,
                is_full: false,
            })
        });
        Ok(FanOut {
            peers: peers.collect::<io::Result<_>>()?,
            open: Vec::new(),
            free: Vec::new(),
            done: VecDeque::new(),
            next_reader: 0,
        })
    }

    pub(crate) fn write(&mut self, key: u64, offset: u64, data: &HeapPayload) {
        let tag = self.begin(key, self.peers.len());
        let len = u32::try_from(data.len()).expect("checked by the caller");
        for peer in &mut self.peers {
            peer.outgoing.push_back((Head { verb: Verb::Write, tag, len, offset }, Some(data.clone())));
        }
    }

    pub(crate) fn read(&mut self, key: u64, offset: u64, len: u32) {
        let tag = self.begin(key, 1);
        self.next_reader = (self.next_reader + 1) % self.peers.len();
        self.peers[self.next_reader].outgoing.push_back((Head { verb: Verb::Read, tag, len, offset }, None));
    }

    fn begin(&mut self, key: u64, waiting: usize) -> u32 {
        let open = Some(Open { key, waiting, is_ok: true });
        if let Some(tag) = self.free.pop() {
            self.open[index(tag)] = open;
            return tag;
        }
        self.open.push(open);
        u32::try_from(self.open.len() - 1).expect("few requests at a time")
    }

    /// Sends what the sockets take.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        self.peers.iter_mut().try_for_each(Peer::send)
    }

    /// Takes what has arrived from peers that `poll` found readable.
    pub(crate) fn receive(&mut self, peer: usize) -> io::Result<()> {
        let mut messages = Vec::new();
        self.peers[peer].receive(&mut messages)?;
        for (head, data) in messages {
            let slot = self.open.get_mut(index(head.tag)).filter(|open| open.is_some());
            let slot = slot.ok_or_else(|| io::Error::other("a reply that nobody waits for"))?;
            let open = slot.as_mut().expect("just filtered");
            open.is_ok &= head.verb == Verb::Done;
            open.waiting -= 1;
            if open.waiting == 0 {
                self.done.push_back(Done { key: open.key, data, is_ok: open.is_ok });
                *slot = None;
                self.free.push(head.tag);
            }
        }
        Ok(())
    }

    pub(crate) fn poll_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    /// One entry for each peer, in order.
    pub(crate) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.peers.iter().map(|peer| {
            let mut flags = PollFlags::IN;
            if peer.is_full {
                flags |= PollFlags::OUT;
            }
            PollFd::from_borrowed_fd(peer.stream.as_fd(), flags)
        })
    }

    pub(crate) fn peer_count(&self) -> usize {
        self.peers.len()
    }
}

impl Peer {
    fn send(&mut self) -> io::Result<()> {
        self.is_full = false;
        while !self.outgoing.is_empty() {
            let heads: Vec<_> =
                self.outgoing.iter().take(MAX_SLICES / 2).map(|(head, _)| head.to_bytes()).collect();
            let mut skip = self.sent;
            let slices: Vec<IoSlice<'_>> = heads
                .iter()
                .zip(&self.outgoing)
                .flat_map(|(head, (_, data))| [&head[..], data.as_ref().map_or(&[][..], Payload::bytes)])
                .filter_map(|bytes| {
                    let skipped = skip.min(bytes.len());
                    skip -= skipped;
                    (skipped < bytes.len()).then(|| IoSlice::new(&bytes[skipped..]))
                })
                .collect();
            match self.stream.write_vectored(&slices) {
                Ok(len) => self.on_sent(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_full = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn on_sent(&mut self, len: usize) {
        self.sent += len;
        while let Some((_, data)) = self.outgoing.front() {
            let whole = HEAD_LEN + data.as_ref().map_or(0, Payload::len);
            if self.sent < whole {
                return;
            }
            self.sent -= whole;
            self.outgoing.pop_front();
        }
    }

    fn receive(&mut self, messages: &mut Vec<(Head, Option<HeapPayload>)>) -> io::Result<()> {
        match self.stream.read(&mut self.incoming[self.filled..]) {
            Ok(0) => return Err(io::Error::other("a peer hung up")),
            Ok(len) => self.filled += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut rest = &self.incoming[..self.filled];
        while let Some((bytes, after)) = rest.split_first_chunk::<HEAD_LEN>() {
            let head = Head::parse(bytes).ok_or_else(|| io::Error::other("a reply that makes no sense"))?;
            let Some((data, after)) = after.split_at_checked(head.data_len()) else { break };
            messages.push((head, (!data.is_empty()).then(|| data.to_vec().into())));
            rest = after;
        }
        let kept = rest.len();
        let used = self.filled - kept;
        self.incoming.copy_within(used..self.filled, 0);
        self.filled = kept;
        Ok(())
    }
}

fn index(tag: u32) -> usize {
    usize::try_from(tag).expect("32 bits fit")
}
