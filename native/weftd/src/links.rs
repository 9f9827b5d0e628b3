//! Connections to other hosts: one to each host whose replicas a session here wants, and those that others make to
//! this host's replicas. Attachments share a connection, told apart by their handle.
//!
//! ```text
//! wanted ─▶ connecting ─▶ hello both ways ─▶ up ─▶ broken ─▶ connecting …
//!               └ refused, silent, mismatch ─▶ waits a moment ─┘
//! ```
//!
//! Must always hold:
//! * the first frame each way is HELLO, and its host is the one that was called;
//! * a refused connection (nobody listens) is told apart from silence (nobody answers);
//! * a response goes to the attachment that asked, or to nobody;
//! * a peer that breaks the protocol loses its connection and nothing else; what it may hold is bounded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_control::types::{Decimal, LinkInfo, LinkState};
use weft_io::buffer::IoBuf;
use weft_io::driver::{Completion, Driver, Errno, Fd, Op, Outcome, TokenSpace};
use weft_io::stream::{Pressure, StreamConfig};
use weft_io::tcp::{self, Conn};
use weft_proto::ids::{HostId, Instant, Ordinal, PoolId, Rid, VolumeId};
use weft_proto::log::ReplicaKey;
use weft_proto::message::{Ask, Claim, Refusal, Request, Response, Watermark};
use weft_proto::replica::AttachmentId;
use weft_proto::wire::{
    EncodedFrame, FrameError, FrameKind, Hello, PoolLog, Version, decode_hello, decode_request,
    decode_response, encode_hello, encode_request, encode_response, negotiate,
};

use crate::errors::{Code, Failure};
use crate::tokens::Part;

/// The port of the data path on every host's cluster address.
pub const DATA_PORT: u16 = 7401;
/// A host that hasn't accepted by then is silent.
const CONNECT_MS: u64 = 500;
/// A peer that hasn't said hello by then is silent.
const HELLO_MS: u64 = 1000;
/// Before a failed connection is tried again.
const RETRY_MS: u64 = 200;
/// Before a host of another cluster or version is called again.
const MISMATCH_MS: u64 = 2000;
/// Attachments of one peer's connection: 500 volumes of 8 replicas.
const HANDLES_MAX: usize = 4096;
/// Connections that others may make.
const PEERS_MAX: usize = 512;
/// The driver's tokens of connections: spaces that no [`Part`] has.
const WIRE_SPACES: std::ops::RangeInclusive<u16> = 0x1000..=0xffff;
/// Marks an attachment of a peer; without it it is a local session's.
const REMOTE: u64 = 1 << 63;

const ACCEPT: u8 = 0;
const CONNECT: u8 = 1;

/// What comes out of the links.
#[derive(Debug)]
pub enum LinksOut {
    /// The connection to a host stands.
    Up(HostId),
    /// It does not. `refused`: nobody listens there.
    Down {
        /// Which host.
        host: HostId,
        /// The host answers, its daemon doesn't.
        refused: bool,
    },
    /// A replica elsewhere answers a session here.
    Response {
        /// Whose session.
        volume: VolumeId,
        /// Which replica.
        rid: Rid,
        /// On which attachment.
        ordinal: Ordinal,
        /// What.
        response: Response<IoBuf>,
    },
    /// A session elsewhere asks a replica here.
    Request {
        /// For the answer.
        attachment: AttachmentId,
        /// In which pool.
        pool: PoolId,
        /// Which replica.
        key: ReplicaKey,
        /// What.
        request: Request<IoBuf>,
    },
    /// A session elsewhere is gone.
    Gone {
        /// Its attachment.
        attachment: AttachmentId,
        /// In which pool.
        pool: PoolId,
        /// At which replica.
        key: ReplicaKey,
    },
    /// What a host, on either side of a connection, says that it has seen of the store (R11).
    Claim(Claim),
}

/// All connections of this host.
#[derive(Debug)]
pub struct Links {
    hello: Hello,
    listener: Option<Fd>,
    /// When and where to try to listen again.
    listen_due: Option<(Instant, SocketAddr)>,
    told_in_use: bool,
    accepting: bool,
    addresses: BTreeMap<HostId, IpAddr>,
    calls: BTreeMap<HostId, Call>,
    wires: BTreeMap<u16, Wire>,
    next_wire: u16,
    attachments: BTreeMap<AttachmentId, (u16, u32)>,
    next_attachment: u64,
    /// The furthest log of each pool that its host's HELLO named (R10). What a host says of others' pools is nothing.
    seen: BTreeMap<(HostId, PoolId), PoolLog>,
    out: VecDeque<LinksOut>,
}

/// A host that sessions here want to reach.
#[derive(Debug)]
struct Call {
    state: LinkState,
    since: Instant,
    reason: Option<String>,
    /// The connection, once there is a socket.
    wire: Option<u16>,
    /// When to try again, or to give a try up.
    due: Option<Instant>,
    handles: BTreeMap<(VolumeId, Rid), (Ordinal, u32)>,
    by_handle: BTreeMap<u32, (VolumeId, Rid, Ordinal)>,
    next_handle: u32,
}

#[derive(Debug)]
struct Wire {
    conn: Conn,
    role: Role,
    /// Agreed by HELLO.
    version: Option<Version>,
}

#[derive(Debug)]
enum Role {
    /// We called this host.
    Caller(HostId),
    /// Somebody called us.
    Called { peer: Option<HostId>, handles: BTreeMap<u32, Attached>, until: Instant },
}

#[derive(Clone, Copy, Debug)]
struct Attached {
    attachment: AttachmentId,
    pool: PoolId,
    key: ReplicaKey,
}

impl Links {
    /// Links of a host that says `hello` to others.
    #[must_use]
    pub fn new(hello: Hello) -> Links {
        Links {
            hello,
            listener: None,
            listen_due: None,
            told_in_use: false,
            accepting: false,
            addresses: BTreeMap::new(),
            calls: BTreeMap::new(),
            wires: BTreeMap::new(),
            next_wire: *WIRE_SPACES.start(),
            attachments: BTreeMap::new(),
            next_attachment: 0,
            seen: BTreeMap::new(),
            out: VecDeque::new(),
        }
    }

    /// True for an attachment that came over a connection.
    #[must_use]
    pub fn is_remote(attachment: AttachmentId) -> bool {
        attachment.0 & REMOTE != 0
    }

    /// What new connections are told from now on.
    pub fn set_hello(&mut self, watermark: Watermark, pools: Vec<PoolLog>) {
        self.hello.watermark = watermark;
        self.hello.pools = pools;
    }

    /// Listens for other hosts. An address that is in use is tried again and again: after kill -9 the kernel may
    /// hold the listener of the process before for as long as its disk I/O lasts (R13).
    pub fn listen(
        &mut self,
        driver: &mut impl Driver,
        now: Instant,
        address: SocketAddr,
    ) -> Result<(), Failure> {
        let refuse = |e: &io::Error| {
            Failure::new(Code::SOCKET, format!("can't listen on {address}: {e}"))
                .with("address", address.to_string())
        };
        self.listen_due = None;
        match tcp::listen(address) {
            Ok((listener, _)) => {
                self.listener = Some(listener);
                self.accept(driver);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if !self.told_in_use {
                    self.told_in_use = true;
                    tracing::warn!(%address, "in use, perhaps by a process that was killed; waiting for it");
                }
                self.listen_due = Some((now.after_ms(RETRY_MS), address));
                Ok(())
            }
            Err(error) => Err(refuse(&error)),
        }
    }

    /// Where a host is; none: it left the cluster.
    pub fn set_address(
        &mut self,
        driver: &mut impl Driver,
        now: Instant,
        host: HostId,
        address: Option<IpAddr>,
    ) {
        let before = match address {
            Some(address) => self.addresses.insert(host, address),
            None => self.addresses.remove(&host),
        };
        if before != address && self.calls.contains_key(&host) {
            self.end_call(now, host, LinkState::Connecting, None, false);
            self.connect(driver, now, host);
        }
    }

    /// Which hosts the sessions here want to reach; others' connections are closed.
    pub fn want(&mut self, driver: &mut impl Driver, now: Instant, hosts: &BTreeSet<HostId>) {
        let gone: Vec<HostId> = self.calls.keys().filter(|h| !hosts.contains(h)).copied().collect();
        for host in gone {
            if let Some(call) = self.calls.remove(&host)
                && let Some(wire) = call.wire
            {
                self.drop_wire(wire);
            }
        }
        for host in hosts {
            if !self.calls.contains_key(host) {
                let call = Call {
                    state: LinkState::Connecting,
                    since: now,
                    reason: None,
                    wire: None,
                    due: None,
                    handles: BTreeMap::new(),
                    by_handle: BTreeMap::new(),
                    next_handle: 0,
                };
                self.calls.insert(*host, call);
                self.connect(driver, now, *host);
            }
        }
    }

    /// True when requests to a host can be sent now.
    #[must_use]
    pub fn is_up(&self, host: HostId) -> bool {
        self.calls.get(&host).is_some_and(|c| c.state == LinkState::Connected)
    }

    /// Every host that is wanted.
    #[must_use]
    pub fn list(&self, now: Instant) -> Vec<LinkInfo> {
        let info = |(host, call): (&HostId, &Call)| LinkInfo {
            host: *host,
            address: self
                .addresses
                .get(host)
                .map_or_else(String::new, |a| SocketAddr::new(*a, DATA_PORT).to_string()),
            state: call.state,
            since_ms: Decimal(now.ms_since(call.since)),
            reason: call.reason.clone(),
        };
        self.calls.iter().map(info).collect()
    }

    /// Sends a session's request. Dropped when the connection is down, which the session is told by
    /// [`LinksOut::Down`].
    pub fn send(
        &mut self,
        driver: &mut impl Driver,
        host: HostId,
        volume: VolumeId,
        rid: Rid,
        ordinal: Ordinal,
        request: &Request<IoBuf>,
    ) {
        let Some(call) = self.calls.get_mut(&host).filter(|c| c.state == LinkState::Connected) else {
            return;
        };
        let handle = match call.handles.get(&(volume, rid)) {
            Some((known, handle)) if *known == ordinal => *handle,
            before => {
                if let Some((_, old)) = before {
                    call.by_handle.remove(old);
                }
                let handle = call.next_handle;
                call.next_handle = call.next_handle.wrapping_add(1);
                call.handles.insert((volume, rid), (ordinal, handle));
                call.by_handle.insert(handle, (volume, rid, ordinal));
                handle
            }
        };
        let Some(id) = call.wire else { return };
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let Some(version) = wire.version else { return };
        wire.queue(encode_request(version, handle, request));
        wire.drive(driver);
    }

    /// A session's attachment is of no use any more.
    pub fn forget(&mut self, host: HostId, volume: VolumeId, rid: Rid) {
        if let Some(call) = self.calls.get_mut(&host)
            && let Some((_, handle)) = call.handles.remove(&(volume, rid))
        {
            call.by_handle.remove(&handle);
        }
    }

    /// Sends a replica's answer to the session that asked; of no effect when its connection has gone.
    pub fn reply(&mut self, driver: &mut impl Driver, attachment: AttachmentId, response: &Response<IoBuf>) {
        let Some((id, handle)) = self.attachments.get(&attachment).copied() else { return };
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let Some(version) = wire.version else { return };
        wire.queue(encode_response(version, handle, response));
        wire.drive(driver);
    }

    /// A driver's completion of [`Part::Link`], or of a connection's own token space.
    pub fn handle_completion(&mut self, driver: &mut impl Driver, now: Instant, done: Completion) {
        match Part::of(done.token) {
            Some((Part::Link, ACCEPT, _)) => self.handle_accepted(driver, now, done),
            Some((Part::Link, CONNECT, id)) => {
                if let Ok(id) = u16::try_from(id) {
                    self.handle_connected(driver, now, id);
                }
            }
            Some(_) => {}
            None => self.handle_stream(driver, now, done),
        }
    }

    /// What happened.
    pub fn poll(&mut self) -> Option<LinksOut> {
        self.out.pop_front()
    }

    /// When [`Links::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let calls = self.calls.values().filter_map(|c| c.due);
        let called = self.wires.values().filter_map(|w| match &w.role {
            Role::Called { peer: None, until, .. } => Some(*until),
            _ => None,
        });
        calls.chain(called).chain(self.listen_due.map(|(due, _)| due)).min()
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, driver: &mut impl Driver, now: Instant) {
        if let Some((due, address)) = self.listen_due
            && now >= due
        {
            match self.listen(driver, now, address) {
                Ok(()) if self.listener.is_some() => tracing::info!(%address, "listens"),
                Ok(()) => {}
                Err(failure) => {
                    tracing::error!(%failure, "no other host can reach this one; tried again");
                    self.listen_due = Some((now.after_ms(MISMATCH_MS), address));
                }
            }
        }
        let due: Vec<HostId> =
            self.calls.iter().filter(|(_, c)| c.due.is_some_and(|d| now >= d)).map(|(h, _)| *h).collect();
        for host in due {
            if self.calls.get(&host).is_some_and(|c| c.wire.is_some()) {
                self.end_call(now, host, LinkState::Silent, Some("no answer".to_owned()), false);
            } else {
                self.connect(driver, now, host);
            }
        }
        let mute =
            |wire: &Wire| matches!(&wire.role, Role::Called { peer: None, until, .. } if now >= *until);
        let late: Vec<u16> = self.wires.iter().filter(|(_, w)| mute(w)).map(|(id, _)| *id).collect();
        for id in late {
            self.drop_wire(id);
        }
    }

    // ---- calling

    fn connect(&mut self, driver: &mut impl Driver, now: Instant, host: HostId) {
        let address = self.addresses.get(&host).copied();
        let Some(call) = self.calls.get_mut(&host) else { return };
        call.due = None;
        let Some(address) = address else {
            call.reason = Some("the host's address is not known".to_owned());
            return;
        };
        match tcp::connect(SocketAddr::new(address, DATA_PORT)) {
            Ok(socket) => {
                call.due = Some(now.after_ms(CONNECT_MS));
                let op = Op::PollWrite { fd: socket.clone() };
                let id = self.add_wire(socket, Role::Caller(host));
                if let Some(call) = self.calls.get_mut(&host) {
                    call.wire = Some(id);
                }
                driver.submit(Part::Link.token(CONNECT, u64::from(id)), op);
            }
            Err(error) => self.not_connected(now, host, error.into()),
        }
    }

    fn handle_connected(&mut self, driver: &mut impl Driver, now: Instant, id: u16) {
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let Role::Caller(host) = wire.role else { return };
        match tcp::connected(wire.conn.socket()) {
            Ok(()) => {
                wire.queue(hello_frame(&self.hello));
                wire.drive(driver);
                if let Some(call) = self.calls.get_mut(&host) {
                    call.due = Some(now.after_ms(HELLO_MS));
                }
            }
            Err(error) => self.not_connected(now, host, error),
        }
    }

    fn not_connected(&mut self, now: Instant, host: HostId, error: Errno) {
        let refused = io::Error::from(error).kind() == io::ErrorKind::ConnectionRefused;
        let state = if refused { LinkState::Refused } else { LinkState::Silent };
        self.end_call(now, host, state, Some(error.to_string()), refused);
    }

    /// The connection to a host is not, or is no longer, there.
    fn end_call(
        &mut self,
        now: Instant,
        host: HostId,
        state: LinkState,
        reason: Option<String>,
        refused: bool,
    ) {
        let Some(call) = self.calls.get_mut(&host) else { return };
        let wire = call.wire.take();
        let pause = match state {
            // It was up: tried again at once, to learn whether it is refused.
            LinkState::Connecting => 0,
            LinkState::Mismatch => MISMATCH_MS,
            _ => RETRY_MS,
        };
        if call.state != state {
            call.since = now;
            tracing::info!(%host, ?state, reason, "link");
        }
        call.state = state;
        call.reason = reason;
        call.due = Some(now.after_ms(pause));
        call.handles.clear();
        call.by_handle.clear();
        if let Some(wire) = wire {
            self.drop_wire(wire);
        }
        self.out.push_back(LinksOut::Down { host, refused });
    }

    // ---- being called

    fn accept(&mut self, driver: &mut impl Driver) {
        let called = self.wires.values().filter(|w| matches!(w.role, Role::Called { .. })).count();
        if let Some(listener) = self.listener.as_ref().filter(|_| !self.accepting && called < PEERS_MAX) {
            self.accepting = true;
            driver.submit(Part::Link.token(ACCEPT, 0), Op::Accept { listener: listener.clone() });
        }
    }

    fn handle_accepted(&mut self, driver: &mut impl Driver, now: Instant, done: Completion) {
        self.accepting = false;
        match done.result {
            Ok(Outcome::Accepted(socket)) => {
                let socket: Fd = Arc::new(socket);
                match tcp::set_up(&socket) {
                    Ok(()) => {
                        let until = now.after_ms(HELLO_MS);
                        let role = Role::Called { peer: None, handles: BTreeMap::new(), until };
                        let id = self.add_wire(socket, role);
                        if let Some(wire) = self.wires.get_mut(&id) {
                            wire.queue(hello_frame(&self.hello));
                            wire.drive(driver);
                        }
                    }
                    Err(error) => tracing::warn!(%error, "a connection has gone at once"),
                }
            }
            Ok(other) => unreachable!("an accept came to {other:?}"),
            Err(errno) => tracing::warn!(%errno, "accept failed"),
        }
        self.accept(driver);
    }

    // ---- bytes

    fn add_wire(&mut self, socket: Fd, role: Role) -> u16 {
        // Far fewer connections are open than there are names, so a name is long unused when it comes again.
        let mut id = self.next_wire;
        while self.wires.contains_key(&id) {
            id = next_space(id);
        }
        self.next_wire = next_space(id);
        let conn = Conn::new(socket, StreamConfig::new(TokenSpace(id)));
        self.wires.insert(id, Wire { conn, role, version: None });
        id
    }

    fn handle_stream(&mut self, driver: &mut impl Driver, now: Instant, done: Completion) {
        let id = TokenSpace::of(done.token).0;
        let Some(wire) = self.wires.get_mut(&id) else { return };
        wire.conn.handle_completion(done);
        loop {
            let Some(wire) = self.wires.get_mut(&id) else { return };
            let content = match wire.conn.poll_frame() {
                Ok(Some(frame)) => content_of(frame).map_err(|e| e.to_string()),
                Ok(None) => break,
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = content.and_then(|content| self.take_frame(driver, now, id, content)) {
                return self.lose(driver, now, id, Some(why));
            }
        }
        let Some(wire) = self.wires.get_mut(&id) else { return };
        if wire.conn.ended().is_some() {
            return self.lose(driver, now, id, None);
        }
        wire.drive(driver);
    }

    fn take_frame(
        &mut self,
        driver: &mut impl Driver,
        now: Instant,
        id: u16,
        content: Content,
    ) -> Result<(), String> {
        let Some(wire) = self.wires.get_mut(&id) else { return Ok(()) };
        match content {
            Content::Hello(theirs) => {
                let agreed = negotiate(&self.hello, &theirs);
                match &mut wire.role {
                    Role::Caller(host) => {
                        let host = *host;
                        let why = match agreed {
                            Err(error) => Some(error.to_string()),
                            Ok(_) if theirs.host != host => {
                                Some(format!("host {} answers at the address of host {host}", theirs.host))
                            }
                            Ok(_) => self.pool_went_back(&theirs),
                        };
                        if let Some(why) = why {
                            tracing::warn!(%host, why, "link refused");
                            self.end_call(now, host, LinkState::Mismatch, Some(why), false);
                            return Ok(());
                        }
                        let Some(wire) = self.wires.get_mut(&id) else { return Ok(()) };
                        if let Ok(agreed) = agreed {
                            wire.agree(agreed.version);
                        }
                        if let Some(call) = self.calls.get_mut(&host) {
                            (call.state, call.since, call.reason, call.due) =
                                (LinkState::Connected, now, None, None);
                        }
                        tracing::info!(%host, "link up");
                        self.out.push_back(LinksOut::Claim(Claim { watermark: theirs.watermark, host }));
                        self.out.push_back(LinksOut::Up(host));
                    }
                    Role::Called { peer, .. } => {
                        let agreed = agreed.map_err(|e| e.to_string())?;
                        *peer = Some(theirs.host);
                        let claim = Claim { watermark: theirs.watermark, host: theirs.host };
                        self.out.push_back(LinksOut::Claim(claim));
                        wire.agree(agreed.version);
                    }
                }
            }
            Content::Response(handle, response) => {
                let Role::Caller(host) = wire.role else { return Err("a response from a caller".to_owned()) };
                let asked = self.calls.get(&host).and_then(|c| c.by_handle.get(&handle)).copied();
                if let Some((volume, rid, ordinal)) = asked {
                    self.out.push_back(LinksOut::Response { volume, rid, ordinal, response });
                }
            }
            Content::Request(handle, request) => {
                let Role::Called { peer: Some(peer), handles, .. } = &mut wire.role else {
                    return Err("a request from the called side".to_owned());
                };
                if let Ask::Attach(attach) = &request.ask {
                    if attach.host != *peer {
                        return Err(format!("host {peer} attaches as {}", attach.host));
                    }
                    if handles.contains_key(&handle) {
                        return Err(format!("attachment {handle} is attached twice"));
                    }
                    if handles.len() >= HANDLES_MAX {
                        return Err(format!("more than {HANDLES_MAX} attachments"));
                    }
                    let attachment = AttachmentId(REMOTE | self.next_attachment);
                    self.next_attachment += 1;
                    let key = ReplicaKey { volume: attach.volume, rid: attach.rid };
                    // A session has one attachment per replica; an older one answers nothing any more.
                    handles.insert(handle, Attached { attachment, pool: attach.pool, key });
                    self.attachments.insert(attachment, (id, handle));
                }
                match handles.get(&handle).copied() {
                    Some(Attached { attachment, pool, key }) => {
                        self.out.push_back(LinksOut::Request { attachment, pool, key, request });
                    }
                    None => {
                        let outcome = Err(Refusal::NotAttached);
                        let response =
                            Response { tag: request.tag, epoch: request.epoch, outcome, service_us: 0 };
                        if let Some(version) = wire.version {
                            wire.queue(encode_response(version, handle, &response));
                            wire.drive(driver);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// R10: a pool whose log is behind what this host has seen of it was rolled back.
    fn pool_went_back(&mut self, theirs: &Hello) -> Option<String> {
        for log in &theirs.pools {
            let before = self.seen.insert((theirs.host, log.pool), *log);
            if let Some(before) = before
                && (log.inc, log.durable_seq) < (before.inc, before.durable_seq)
            {
                self.seen.insert((theirs.host, log.pool), before);
                return Some(format!(
                    "pool {} is at incarnation {} log {}, it was seen at incarnation {} log {}",
                    log.pool, log.inc, log.durable_seq, before.inc, before.durable_seq
                ));
            }
        }
        None
    }

    /// A connection broke, or its peer broke the protocol.
    fn lose(&mut self, driver: &mut impl Driver, now: Instant, id: u16, why: Option<String>) {
        let Some(wire) = self.wires.get(&id) else { return };
        if let Some(why) = &why {
            tracing::warn!(why, "a peer broke the protocol");
        }
        match wire.role {
            Role::Caller(host) => {
                let was_up = self.is_up(host);
                let state = match (&why, was_up) {
                    (Some(_), _) => LinkState::Mismatch,
                    (None, true) => LinkState::Connecting,
                    (None, false) => LinkState::Silent,
                };
                let reason = why.unwrap_or_else(|| "the connection ended".to_owned());
                self.end_call(now, host, state, Some(reason), false);
                if state == LinkState::Connecting {
                    self.connect(driver, now, host);
                }
            }
            Role::Called { .. } => self.drop_wire(id),
        }
        self.accept(driver);
    }

    fn drop_wire(&mut self, id: u16) {
        let Some(mut wire) = self.wires.remove(&id) else { return };
        // Ends what the driver has in flight; its completions find nobody.
        wire.conn.close();
        if let Role::Called { handles, .. } = wire.role {
            for Attached { attachment, pool, key } in handles.into_values() {
                self.attachments.remove(&attachment);
                self.out.push_back(LinksOut::Gone { attachment, pool, key });
            }
        }
    }
}

impl Wire {
    fn agree(&mut self, version: Version) {
        self.version = Some(version);
        self.conn.set_version(version);
    }

    /// A peer that doesn't read its answers is not listened to until it does; our own requests are bounded by the
    /// sessions.
    fn queue(&mut self, frame: EncodedFrame<IoBuf>) {
        if self.conn.queue(frame) == Pressure::Stop && matches!(self.role, Role::Called { .. }) {
            self.conn.pause(true);
        }
    }

    /// Gives the driver what the connection wants from it.
    fn drive(&mut self, driver: &mut impl Driver) {
        if self.conn.is_writable() {
            self.conn.pause(false);
        }
        while let Some((token, op)) = self.conn.poll_op() {
            driver.submit(token, op);
        }
    }
}

enum Content {
    Hello(Hello),
    Request(u32, Request<IoBuf>),
    Response(u32, Response<IoBuf>),
}

fn content_of(frame: tcp::Frame) -> Result<Content, FrameError> {
    let tcp::Frame { header, meta, data, .. } = frame;
    match header.kind() {
        FrameKind::Hello => decode_hello(&header, &meta).map(Content::Hello),
        FrameKind::Request => {
            decode_request(&header, &meta, data).map(|r| Content::Request(header.handle, r))
        }
        FrameKind::Response => {
            decode_response(&header, &meta, data).map(|r| Content::Response(header.handle, r))
        }
    }
}

fn hello_frame(hello: &Hello) -> EncodedFrame<IoBuf> {
    EncodedFrame { head: encode_hello(hello), data: Vec::new() }
}

fn next_space(id: u16) -> u16 {
    if id == *WIRE_SPACES.end() { *WIRE_SPACES.start() } else { id + 1 }
}
