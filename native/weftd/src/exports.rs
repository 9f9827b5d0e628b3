//! Guests' sockets: a unix listener per exported volume or snapshot, and its NBD connections.
//!
//! ```text
//!  driver ─ completion ─▶ Exports ─ limiter ─ poll_request ─▶ session
//!  driver ◀─ send, recv ─         ◀─ reply ─────────────────
//! ```
//!
//! Must always hold:
//! * a client that breaks the protocol or goes away ends its own connection only;
//! * an answer finds the connection that asked, or nobody;
//! * after [`Exports::close`] nothing of its clients reaches a session any more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_export::nbd::{self, Connection, Ending, ExportInfo, Gather, GuestRequest, Limits};
use weft_io::buffer::IoBuf;
use weft_io::driver::{Completion, Driver, Fd, Op, Outcome, PARTS_MAX, Part as SendPart};
use weft_proto::guest::{GuestReply, RequestId};
use weft_proto::ids::Instant;
use weft_proto::payload::Payload as _;

use crate::control::bind;
use crate::errors::Failure;
use crate::limiter::{Ask, Limiter, Limits as VolumeLimits};
use crate::seat::Seat;
use crate::tokens::Part;

/// Bytes received at once.
const RECV_BYTES: usize = 256 * 1024;
/// Clients of one volume at a time: qemu opens up to 16.
const CLIENTS_MAX: usize = 64;

const ACCEPT: u8 = 0;
const RECV: u8 = 1;
const SEND: u8 = 2;
const CANCEL: u8 = 3;

/// Every export of this host.
#[derive(Debug, Default)]
pub struct Exports {
    listeners: BTreeMap<u64, Listener>,
    by_seat: BTreeMap<Seat, u64>,
    /// By tag, the upper half of their requests' ids.
    clients: BTreeMap<u32, Client>,
    next_listener: u64,
    next_tag: u32,
    /// Of each export.
    limiters: BTreeMap<Seat, Limiter<Arrived>>,
    /// Exports of which requests wait for their limits.
    holding: BTreeSet<Seat>,
    requests: VecDeque<(Seat, Arrived)>,
}

/// A guest's request, and since when it is here.
#[derive(Debug)]
pub struct Arrived {
    /// When all of it had come.
    pub at: Instant,
    /// The request.
    pub request: GuestRequest<IoBuf>,
}

#[derive(Debug)]
struct Listener {
    seat: Seat,
    info: ExportInfo,
    path: PathBuf,
    fd: Fd,
    accepting: bool,
    closed: bool,
    /// So many clients have come.
    seen: u32,
}

#[derive(Debug)]
struct Client {
    seat: Seat,
    listener: u64,
    socket: Fd,
    connection: Connection<IoBuf>,
    receiving: bool,
    sending: Option<Sending>,
    /// Its socket is of no use any more; it goes when nothing is in flight.
    broken: bool,
}

/// Bytes on their way to a client.
#[derive(Debug)]
struct Sending {
    gather: Gather<IoBuf>,
    sent: usize,
    /// The driver has it.
    in_flight: bool,
}

impl Exports {
    /// Offers a volume, or a snapshot of one, on a unix socket.
    pub fn open(
        &mut self,
        driver: &mut impl Driver,
        now: Instant,
        seat: Seat,
        path: &Path,
        info: ExportInfo,
        limits: Option<VolumeLimits>,
    ) -> Result<(), Failure> {
        assert!(!self.by_seat.contains_key(&seat), "{seat} is exported already");
        let listener = bind(path)?;
        let index = self.next_listener;
        self.next_listener += 1;
        let fd: Fd = Arc::new(OwnedFd::from(listener));
        self.listeners.insert(
            index,
            Listener { seat, info, path: path.to_owned(), fd, accepting: false, closed: false, seen: 0 },
        );
        self.by_seat.insert(seat, index);
        self.limiters.insert(seat, Limiter::new(now, limits));
        self.accept(driver, index);
        Ok(())
    }

    /// Ends an export: its clients are told ESHUTDOWN for whatever is open, and go.
    pub fn close(&mut self, driver: &mut impl Driver, now: Instant, seat: Seat) {
        let Some(index) = self.by_seat.remove(&seat) else { return };
        if let Some(listener) = self.listeners.get_mut(&index) {
            listener.closed = true;
            // A path that is gone already needs no removal.
            let _ = std::fs::remove_file(&listener.path);
            if listener.accepting {
                let target = Part::Export.token(ACCEPT, index);
                driver.submit(Part::Export.token(CANCEL, index), Op::Cancel { target });
            } else {
                self.listeners.remove(&index);
            }
        }
        self.requests.retain(|(of, _)| *of != seat);
        self.limiters.remove(&seat);
        self.holding.remove(&seat);
        for tag in self.tags_of(seat) {
            if let Some(client) = self.clients.get_mut(&tag) {
                client.connection.shutdown_fenced();
            }
            self.drive_client(driver, now, tag);
        }
    }

    /// Ends an export's connections without a word: somebody holds what is not answered, and asks for it again (R32). The kernel's
    /// nbd would tell a guest of an error.
    pub fn cut(&mut self, driver: &mut impl Driver, now: Instant, seat: Seat) {
        self.requests.retain(|(of, _)| *of != seat);
        for tag in self.tags_of(seat) {
            if let Some(client) = self.clients.get_mut(&tag) {
                client.connection.handle_eof();
            }
            self.drive_client(driver, now, tag);
        }
    }

    fn tags_of(&self, seat: Seat) -> Vec<u32> {
        self.clients.iter().filter(|(_, c)| c.seat == seat).map(|(tag, _)| *tag).collect()
    }

    /// Other limits of a volume, also for the requests that wait; of no effect where it is not exported.
    pub fn set_limits(&mut self, now: Instant, seat: Seat, limits: Option<VolumeLimits>) {
        if let Some(limiter) = self.limiters.get_mut(&seat) {
            limiter.set(now, limits);
        }
    }

    /// Lets go whatever of a volume waits for its limits.
    pub fn release(&mut self, seat: Seat) {
        if let Some(limiter) = self.limiters.get_mut(&seat) {
            self.requests.extend(limiter.release().map(|request| (seat, request)));
        }
        self.holding.remove(&seat);
    }

    /// Requests of a volume that wait for its limits.
    #[must_use]
    pub fn held(&self, seat: Seat) -> u32 {
        let held = self.limiters.get(&seat).map_or(0, Limiter::held);
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    /// The volume has a new size.
    pub fn set_size(&mut self, seat: Seat, size: u64) {
        for listener in self.listeners.values_mut().filter(|l| l.seat == seat) {
            listener.info.size = size;
        }
        for client in self.clients.values_mut().filter(|c| c.seat == seat) {
            client.connection.set_size(size);
        }
    }

    /// Connections to a volume's export.
    #[must_use]
    pub fn clients_of(&self, seat: Seat) -> u32 {
        let count = self.clients.values().filter(|c| c.seat == seat && !c.broken).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Connections since the volume is offered, those that have gone among them.
    #[must_use]
    pub fn seen_of(&self, seat: Seat) -> u32 {
        let listener = self.by_seat.get(&seat).and_then(|index| self.listeners.get(index));
        listener.map_or(0, |listener| listener.seen)
    }

    /// A driver's completion of [`Part::Export`].
    pub fn handle_completion(
        &mut self,
        driver: &mut impl Driver,
        now: Instant,
        what: u8,
        index: u64,
        done: Completion,
    ) {
        match what {
            ACCEPT => self.handle_accepted(driver, now, index, done),
            RECV | SEND => {
                let Ok(tag) = u32::try_from(index) else { return };
                if what == RECV {
                    self.handle_received(tag, done);
                } else {
                    self.handle_sent(tag, &done);
                }
                self.drive_client(driver, now, tag);
            }
            _ => {}
        }
    }

    /// The next request of a guest that may go to its session.
    pub fn poll_request(&mut self, now: Instant) -> Option<(Seat, Arrived)> {
        if let Some(request) = self.requests.pop_front() {
            return Some(request);
        }
        let limiters = &mut self.limiters;
        let mut found = None;
        self.holding.retain(|seat| {
            let Some(limiter) = limiters.get_mut(seat) else { return false };
            if found.is_none() && limiter.poll_timeout().is_some_and(|due| now >= due) {
                found = limiter.poll(now).map(|request| (*seat, request));
            }
            limiter.held() > 0
        });
        found
    }

    /// When [`poll_request`](Self::poll_request) is to be asked again.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.holding.iter().filter_map(|seat| self.limiters.get(seat)?.poll_timeout()).min()
    }

    /// A session's answer; of no effect when its client has gone.
    pub fn reply(&mut self, driver: &mut impl Driver, now: Instant, id: RequestId, reply: GuestReply<IoBuf>) {
        let tag = u32::try_from(id.0 >> 32).expect("32 bits are left");
        if let Some(client) = self.clients.get_mut(&tag) {
            client.connection.complete(id, reply);
            self.drive_client(driver, now, tag);
        }
    }

    fn accept(&mut self, driver: &mut impl Driver, index: u64) {
        let Some(listener) = self.listeners.get_mut(&index) else { return };
        let clients = self.clients.values().filter(|c| c.listener == index).count();
        if !listener.accepting && !listener.closed && clients < CLIENTS_MAX {
            listener.accepting = true;
            driver.submit(Part::Export.token(ACCEPT, index), Op::Accept { listener: listener.fd.clone() });
        }
    }

    fn handle_accepted(&mut self, driver: &mut impl Driver, now: Instant, index: u64, done: Completion) {
        let Some(listener) = self.listeners.get_mut(&index) else { return };
        listener.accepting = false;
        if listener.closed {
            self.listeners.remove(&index);
            return;
        }
        match done.result {
            Ok(Outcome::Accepted(socket)) => {
                listener.seen = listener.seen.saturating_add(1);
                let tag = self.next_tag;
                self.next_tag = self.next_tag.wrapping_add(1);
                let client = Client {
                    seat: listener.seat,
                    listener: index,
                    socket: Arc::new(socket),
                    connection: Connection::new(tag, listener.info.clone(), Limits::default()),
                    receiving: false,
                    sending: None,
                    broken: false,
                };
                tracing::debug!(seat = %client.seat, tag, "guest connected");
                self.clients.insert(tag, client);
                self.drive_client(driver, now, tag);
            }
            Ok(other) => unreachable!("an accept came to {other:?}"),
            Err(errno) => tracing::warn!(seat = %listener.seat, %errno, "accept failed"),
        }
        self.accept(driver, index);
    }

    fn handle_received(&mut self, tag: u32, done: Completion) {
        let Some(client) = self.clients.get_mut(&tag) else { return };
        client.receiving = false;
        match (done.result, done.op) {
            (Ok(Outcome::Bytes(len @ 1..)), Op::Recv { buf, .. }) => {
                client.connection.handle_bytes(&buf.bytes()[..len]);
            }
            _ => client.connection.handle_eof(),
        }
    }

    fn handle_sent(&mut self, tag: u32, done: &Completion) {
        let Some(client) = self.clients.get_mut(&tag) else { return };
        let Some(mut sending) = client.sending.take() else { return };
        match done.result {
            Ok(Outcome::Bytes(len @ 1..)) => {
                sending.sent += len;
                sending.in_flight = false;
                if sending.sent < sending.gather.len() {
                    client.sending = Some(sending);
                } else {
                    client.connection.handle_transmitted(sending.gather);
                }
            }
            _ => client.connection.handle_eof(),
        }
    }

    /// Takes the client's requests, and asks the driver for what it needs next.
    fn drive_client(&mut self, driver: &mut impl Driver, now: Instant, tag: u32) {
        let Some(client) = self.clients.get_mut(&tag) else { return };
        let seat = client.seat;
        while let Some(request) = client.connection.poll_request() {
            let Some(limiter) = self.limiters.get_mut(&seat) else { continue };
            let ask = Ask::of(&request.op);
            match limiter.admit(now, tag, ask, Arrived { at: now, request }) {
                Some(request) => self.requests.push_back((seat, request)),
                None => {
                    self.holding.insert(seat);
                }
            }
        }
        client.send(driver, tag);
        if !client.receiving && !client.broken && client.connection.wants_read() {
            client.receiving = true;
            let (socket, buf) = (client.socket.clone(), IoBuf::scratch(RECV_BYTES));
            let op = Op::Recv { socket, buf, start: 0, len: RECV_BYTES };
            driver.submit(Part::Export.token(RECV, u64::from(tag)), op);
        }
        if client.connection.ending().is_some() && !client.broken {
            client.broken = true;
            if let Some(limiter) = self.limiters.get_mut(&seat) {
                limiter.forget(tag);
            }
            // Ends what is in flight at this socket.
            let _ = rustix::net::shutdown(&client.socket, rustix::net::Shutdown::Both);
        }
        if client.broken && !client.receiving && client.sending.is_none() {
            match client.connection.ending() {
                Some(Ending::Violation(how)) => {
                    tracing::warn!(seat = %client.seat, tag, how, "guest dropped")
                }
                ending => tracing::debug!(seat = %client.seat, tag, ?ending, "guest gone"),
            }
            let listener = client.listener;
            self.clients.remove(&tag);
            self.accept(driver, listener);
        }
    }
}

impl Client {
    fn send(&mut self, driver: &mut impl Driver, tag: u32) {
        if self.sending.is_none() && !self.broken {
            let gather = self.connection.poll_transmit(PARTS_MAX);
            self.sending = gather.map(|gather| Sending { gather, sent: 0, in_flight: false });
        }
        let Some(sending) = self.sending.as_mut().filter(|s| !s.in_flight) else { return };
        if self.broken {
            self.sending = None;
            return;
        }
        sending.in_flight = true;
        let parts = sending.gather.parts().iter().map(|part| match part {
            nbd::Part::Head(bytes) => SendPart::Bytes(bytes.clone()),
            nbd::Part::Data(buf) => SendPart::Buf(buf.clone()),
        });
        let op = Op::Send { socket: self.socket.clone(), parts: parts.collect(), skip: sending.sent };
        driver.submit(Part::Export.token(SEND, u64::from(tag)), op);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;
    use std::collections::BTreeMap as Blocks;
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;
    use weft_io::driver::{DriverConfig, DriverKind, open};
    use weft_proto::guest::{GuestError, GuestOp};
    use weft_proto::ids::VolumeId;
    use weft_proto::message::Extent;

    const VOLUME: Seat = Seat::Session(VolumeId(9));
    const SIZE: u64 = 4 << 20;

    /// A session's place taken by memory.
    #[derive(Default)]
    struct Memory(Blocks<u64, u8>);

    impl Memory {
        fn answer(&mut self, op: GuestOp<IoBuf>) -> GuestReply<IoBuf> {
            match op {
                GuestOp::Read { offset, len } => {
                    let bytes: Vec<u8> =
                        (offset..offset + len).map(|at| self.0.get(&at).copied().unwrap_or(0)).collect();
                    GuestReply::Data(vec![Extent::Data { crcs: Vec::new(), data: IoBuf::copy_of(&bytes) }])
                }
                GuestOp::Write { offset, data, .. } => {
                    self.0.extend((offset..).zip(data.bytes().iter().copied()));
                    GuestReply::Done
                }
                GuestOp::Flush => GuestReply::Done,
                GuestOp::Zero { offset, len, .. } => {
                    self.0.retain(|at, _| !(offset..offset + len).contains(at));
                    GuestReply::Done
                }
                GuestOp::Kinds { len, .. } => GuestReply::Kinds(vec![(len, None)]),
                GuestOp::Changed { .. } => panic!("no context of the kind is offered"),
            }
        }
    }

    /// Serves until `script` (a shell command that sees the export's address as $URI) has ended; answers whether
    /// it succeeded. From request `fence_at` on none is answered; when so many wait that the client waits for their
    /// answers, the session is fenced.
    fn serve_while(kind: DriverKind, script: &str, fence_at: Option<(usize, usize)>) -> bool {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("v.sock");
        let mut driver = open(Some(kind), DriverConfig::default()).expect("a driver");
        let mut exports = Exports::default();
        let info = ExportInfo {
            name: "v".to_owned(),
            aliases: Vec::new(),
            description: String::new(),
            size: SIZE,
            read_only: false,
            multi_conn: true,
            since: Vec::new(),
        };
        exports.open(&mut driver, now(), VOLUME, &path, info, None).expect("a socket");
        let ended = Arc::new(AtomicBool::new(false));
        let client = {
            let (ended, waker, script) = (ended.clone(), driver.waker(), script.to_owned());
            let uri = format!("nbd+unix:///v?socket={}", path.display());
            let dir = dir.path().to_owned();
            std::thread::spawn(move || {
                let mut shell = Command::new("sh");
                shell.args(["-c", &script]).env("URI", uri).current_dir(dir).stdout(Stdio::null());
                let status = shell.stderr(Stdio::null()).status().expect("a shell");
                ended.store(true, Ordering::SeqCst);
                waker.wake();
                status.success()
            })
        };
        let mut memory = Memory::default();
        let mut completions = Vec::new();
        let (mut asked, mut held) = (0, Vec::new());
        while !ended.load(Ordering::SeqCst) {
            driver.wait(Some(Duration::from_secs(10)), &mut completions).expect("wait");
            for done in completions.drain(..) {
                let (part, what, index) = Part::of(done.token).expect("ours");
                assert_eq!(part, Part::Export);
                exports.handle_completion(&mut driver, now(), what, index, done);
            }
            while let Some((seat, Arrived { request, .. })) = exports.poll_request(now()) {
                assert_eq!(seat, VOLUME);
                asked += 1;
                if let Some((from, depth)) = fence_at
                    && asked >= from
                {
                    held.push(request.id);
                    if held.len() == depth {
                        // As a session ends: it fails what it has, then its export closes.
                        for id in held.drain(..) {
                            exports.reply(&mut driver, now(), id, GuestReply::Failed(GuestError::Fenced));
                        }
                        exports.close(&mut driver, now(), VOLUME);
                    }
                    continue;
                }
                let reply = memory.answer(request.op);
                exports.reply(&mut driver, now(), request.id, reply);
            }
        }
        exports.close(&mut driver, now(), VOLUME);
        assert!(!path.exists(), "the socket's name is gone");
        client.join().expect("the client's thread")
    }

    #[test]
    fn a_stock_client_copies_in_and_out_over_either_driver() {
        for kind in [DriverKind::IoUring, DriverKind::Libaio] {
            let script =
                "head -c 4194304 /dev/urandom >in && nbdcopy in $URI && nbdcopy $URI out && cmp in out";
            assert!(serve_while(kind, script, None), "{kind}");
        }
    }

    #[test]
    fn a_client_that_breaks_the_protocol_does_not_stop_the_next() {
        let junk = "import os,socket; s=socket.socket(socket.AF_UNIX); s.connect('v.sock'); s.send(os.urandom(9999))";
        let script = format!("python3 -c \"{junk}\" && nbdinfo --size $URI && nbdinfo --size $URI");
        assert!(serve_while(DriverKind::IoUring, &script, None));
    }

    #[test]
    fn a_fenced_client_gets_an_error_and_the_socket_is_gone() {
        // Every one of its 16 requests waits when the session is fenced: error 108 is ESHUTDOWN.
        let script = "fio --name=f --ioengine=nbd --uri=$URI --rw=randwrite --bs=16k --iodepth=16 --size=4m \
            --time_based --runtime=60 >out 2>&1; test $? = 1 && grep -q err=108 out";
        for kind in [DriverKind::IoUring, DriverKind::Libaio] {
            assert!(serve_while(kind, script, Some((300, 16))), "{kind}");
        }
    }
}
