//! The floor behind NBD, so that the same client measures it and a volume.
//!
//! Must always hold: a guest's request goes straight to the peers, and its answer straight back.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};
use weft_export::nbd::{Connection, ExportInfo, Gather, Limits};
use weft_proto::guest::{GuestError, GuestOp, GuestReply, RequestId};
use weft_proto::message::Extent;
use weft_proto::payload::{HeapPayload, Payload};

use crate::fan_out::FanOut;
use crate::frame::MAX_DATA;

pub(crate) struct Config {
    pub(crate) socket: PathBuf,
    pub(crate) peers: Vec<String>,
    pub(crate) size: u64,
}

struct Client {
    stream: UnixStream,
    connection: Connection<HeapPayload>,
    sending: Option<(Gather<HeapPayload>, usize)>,
}

/// Serves clients until it is killed or a peer is lost.
pub(crate) fn serve(config: &Config) -> io::Result<()> {
    let mut fan_out = FanOut::connect(&config.peers)?;
    let listener = UnixListener::bind(&config.socket)?;
    listener.set_nonblocking(true)?;
    println!("listening on {}", config.socket.display());
    let mut clients: BTreeMap<u32, Client> = BTreeMap::new();
    let mut next_tag = 0u32;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        for client in clients.values_mut() {
            client.ask(&mut fan_out);
            client.send();
        }
        clients.retain(|_, client| client.connection.ending().is_none());
        fan_out.send()?;

        let mut fds: Vec<PollFd<'_>> = fan_out.poll_fds().collect();
        fds.push(PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN));
        for client in clients.values() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, client.connection.wants_read());
            flags.set(PollFlags::OUT, client.sending.is_some());
            fds.push(PollFd::from_borrowed_fd(client.stream.as_fd(), flags));
        }
        poll(&mut fds, None)?;
        // Whatever else is seen, a socket that was only waited on to take more bytes is not read.
        let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().intersects(!PollFlags::OUT)).collect();
        let (peers, rest) = ready.split_at(fan_out.peer_count());

        for (peer, _) in peers.iter().enumerate().filter(|(_, is_ready)| **is_ready) {
            fan_out.receive(peer)?;
        }
        for (client, _) in clients.values_mut().zip(&rest[1..]).filter(|(_, is_ready)| **is_ready) {
            client.receive(&mut buffer);
        }
        while let Some(done) = fan_out.poll_done() {
            let tag = u32::try_from(done.key >> 32).map_err(io::Error::other)?;
            let Some(client) = clients.get_mut(&tag) else { continue };
            let reply = match (done.is_ok, done.data) {
                (false, _) => GuestReply::Failed(GuestError::Unreadable),
                (true, None) => GuestReply::Done,
                (true, Some(data)) => GuestReply::Data(vec![Extent::Data { crcs: Vec::new(), data }]),
            };
            client.connection.complete(RequestId(done.key), reply);
        }
        if rest[0] {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(true)?;
            let export = ExportInfo {
                name: "floor".into(),
                aliases: Vec::new(),
                description: "a benchmark's floor".into(),
                size: config.size,
                read_only: false,
                multi_conn: true,
                since: Vec::new(),
            };
            let connection = Connection::new(next_tag, export, Limits::default());
            clients.insert(next_tag, Client { stream, connection, sending: None });
            next_tag = next_tag.wrapping_add(1);
        }
    }
}

impl Client {
    fn ask(&mut self, fan_out: &mut FanOut) {
        while let Some(request) = self.connection.poll_request() {
            let fits = |offset: u64, len: u64| {
                offset.is_multiple_of(4096) && len.is_multiple_of(4096) && len <= MAX_DATA as u64
            };
            let reply = match request.op {
                GuestOp::Write { offset, data, .. } if fits(offset, data.len() as u64) => {
                    fan_out.write(request.id.0, offset, &data);
                    continue;
                }
                GuestOp::Read { offset, len } if fits(offset, len) => {
                    fan_out.read(request.id.0, offset, u32::try_from(len).unwrap_or(0));
                    continue;
                }
                // Every write was durable when it was answered.
                GuestOp::Flush => GuestReply::Done,
                GuestOp::Kinds { len, .. } => GuestReply::Kinds(vec![(len, None)]),
                // No context of the kind is offered.
                GuestOp::Changed { .. } => GuestReply::Failed(GuestError::OutOfRange),
                GuestOp::Write { .. } | GuestOp::Read { .. } | GuestOp::Zero { .. } => {
                    GuestReply::Failed(GuestError::Unreadable)
                }
            };
            self.connection.complete(request.id, reply);
        }
    }

    fn send(&mut self) {
        while let Some((gather, sent)) =
            self.sending.take().or_else(|| self.connection.poll_transmit(64).map(|gather| (gather, 0)))
        {
            let slices: Vec<_> = gather.slices_from(sent).collect();
            match self.stream.write_vectored(&slices) {
                Ok(len) if sent + len < gather.len() => self.sending = Some((gather, sent + len)),
                Ok(_) => self.connection.handle_transmitted(gather),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.sending = Some((gather, sent));
                    return;
                }
                Err(_) => return self.connection.handle_eof(),
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) {
        match self.stream.read(buffer) {
            Ok(len) if len > 0 => self.connection.handle_bytes(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => self.connection.handle_eof(),
        }
    }
}
