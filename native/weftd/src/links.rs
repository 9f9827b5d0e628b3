//! Connections to other hosts: one to each host whose replicas a session here wants, and those that others make to
//! this host's replicas. Attachments share a connection, told apart by their handle.
//!
//! ```text
//! wanted ─▶ connecting ─▶ handshake ─▶ hello both ways ─▶ up ─▶ broken ─▶ connecting …
//!               └ refused, silent, mismatch ─▶ waits a moment ─┘
//! ```
//!
//! A host with an identity speaks to nobody who has not proven one: each connection begins with TLS's handshake, and how
//! it goes on says the trust list. Before its peer's certificate ends, when this host's was renewed, and when its keys
//! have had half of what they are good for, a connection is followed by another one, over which the sessions go on.
//!
//! Must always hold:
//! * with an identity nothing but the handshake is sent or listened to before the peer is proven, and a peer that the
//!   list in force does not name has no connection;
//! * the first frame each way is HELLO, and its host is the one that was called, and the one of the certificate;
//! * no connection outlives its peer's certificate, by a clock that nobody sets;
//! * a refused connection (nobody listens) is told apart from silence (nobody answers);
//! * a response goes to the attachment that asked, or to nobody;
//! * a peer that breaks the protocol loses its connection and nothing else; what it may hold is bounded.

mod doorkeeper;
mod proof;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_control::types::{Decimal, LinkInfo, LinkState, PeerRefused, PeerShown};
use weft_io::buffer::IoBuf;
use weft_io::driver::{Completion, Driver, Errno, Fd, Op, Outcome, TokenSpace};
use weft_io::identity::{Transport, Trust, WallTime};
use weft_io::stream::{Pressure, StreamConfig};
use weft_io::tcp::{self, Conn, ConnError};
use weft_io::tls::{Proven, TlsStream};
use weft_proto::ids::{HostId, Instant, Ordinal, PoolId, Rid, VolumeId};
use weft_proto::log::ReplicaKey;
use weft_proto::message::{Ask, Claim, Refusal, Request, Response, Watermark};
use weft_proto::replica::AttachmentId;
use weft_proto::wire::{
    EncodedFrame, FrameError, FrameKind, Hello, PoolLog, Version, decode_hello, decode_request,
    decode_response, encode_hello, encode_request, encode_response, negotiate,
};

use crate::clock::random_u128;
use crate::errors::{Code, Failure};
use crate::tokens::Part;
use crate::trust::transport_kind;

use doorkeeper::{Doorkeeper, Visit};
use proof::{Proof, host_of, refusal_of};

pub use proof::Secured;

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
/// Connections are followed by others within so long after this host's certificate was renewed.
const RENEW_MS: u64 = 600_000;
/// The same after the trust list asks for other ones; those that peers should have made again end after
/// [`OVERDUE_MS`].
const CHANGE_MS: u64 = 10_000;
/// See [`CHANGE_MS`].
const OVERDUE_MS: u64 = 60_000;
/// The same after a connection's keys have had half of their records. The other half lasts longer than that, whatever
/// the machine.
const WORN_MS: u64 = 5_000;
/// Before a connection that was to follow another one is tried again.
const NEXT_RETRY_MS: u64 = 1000;
/// A connection that ends sooner was of no use: the next one is begun later each time, from [`RETRY_MS`] to
/// [`MISMATCH_MS`]. A peer that greets and leaves would keep this host busy with nothing else.
const BRIEF_MS: u64 = 1000;
/// Replicas here to which one connection is attached: 500 volumes of 8 replicas.
const HANDLES_MAX: usize = 4096;
/// Connections that others may make.
const PEERS_MAX: usize = 512;
/// Of these, one host's: it needs one, two while it renews it, and those of a machine that lost its power end late. The
/// oldest goes.
const PEER_WIRES_MAX: usize = 8;
/// Pools of one host whose logs are remembered: a host serves fewer.
const SEEN_POOLS_MAX: usize = 1024;
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
    /// A peer was refused, or has refused this host.
    Refused(PeerRefused),
}

/// Whether this build lets hosts speak in the clear, where they have no identity or the trust list says so.
pub const CLEAR: bool = cfg!(feature = "insecure-clear");

/// All connections of this host.
#[derive(Debug)]
pub struct Links {
    hello: Hello,
    /// None: this host has no identity, and speaks in clear.
    secured: Option<Secured>,
    door: Doorkeeper,
    /// Where this host calls from.
    own: Option<IpAddr>,
    listener: Option<Fd>,
    /// When and where to try to listen again.
    listen_due: Option<(Instant, SocketAddr)>,
    told_in_use: bool,
    accepting: bool,
    addresses: BTreeMap<HostId, IpAddr>,
    calls: BTreeMap<HostId, Call>,
    wires: BTreeMap<u16, Wire>,
    next_wire: u16,
    /// Connections so far.
    made: u64,
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
    /// The reason's, where it has one.
    code: Option<Code>,
    /// The connection, once there is a socket.
    wire: Option<u16>,
    /// When to try again, or to give a try up.
    due: Option<Instant>,
    /// The one that is to follow it, and when to give that up.
    next: Option<(u16, Instant)>,
    /// When to begin the next one.
    renew: Option<Instant>,
    /// Connections in a row that were up for less than [`BRIEF_MS`].
    brief: u32,
    handles: BTreeMap<(VolumeId, Rid), (Ordinal, u32)>,
    by_handle: BTreeMap<u32, (VolumeId, Rid, Ordinal)>,
    next_handle: u32,
}

impl Call {
    /// Nothing was tried yet.
    fn new(now: Instant) -> Call {
        Call {
            state: LinkState::Connecting,
            since: now,
            reason: None,
            code: None,
            wire: None,
            due: None,
            next: None,
            renew: None,
            brief: 0,
            handles: BTreeMap::new(),
            by_handle: BTreeMap::new(),
            next_handle: 0,
        }
    }
}

#[derive(Debug)]
struct Wire {
    conn: Conn,
    role: Role,
    /// The how manyth it is.
    number: u64,
    /// The peer's.
    address: IpAddr,
    /// Its first bytes are a handshake.
    is_secured: bool,
    /// Another one was asked for, because its keys wear out.
    is_worn: bool,
    proof: Option<Proof>,
    /// Until it is agreed, if others called.
    visit: Option<Visit>,
    /// Agreed by HELLO.
    version: Option<Version>,
}

#[derive(Debug)]
enum Role {
    /// We called this host.
    Caller(HostId),
    /// Somebody called us.
    Called { peer: Option<HostId>, handles: Handles, until: Instant },
    /// Its handshake has failed: the alert is on its way, and nothing more comes of it.
    Leaving { until: Instant },
}

#[derive(Clone, Copy, Debug)]
struct Attached {
    attachment: AttachmentId,
    pool: PoolId,
    key: ReplicaKey,
}

/// What a peer is attached to over one connection.
#[derive(Debug, Default)]
struct Handles {
    by_handle: BTreeMap<u32, Attached>,
    /// One a replica: a host has one session of a volume.
    by_replica: BTreeMap<(PoolId, ReplicaKey), u32>,
}

impl Handles {
    /// The attachment to the same replica that this one follows, which nobody asks anything of any more.
    fn insert(&mut self, handle: u32, attached: Attached) -> Option<Attached> {
        let before = self.by_replica.insert((attached.pool, attached.key), handle);
        let before = before.and_then(|before| self.by_handle.remove(&before));
        self.by_handle.insert(handle, attached);
        before
    }
}

impl Links {
    /// Links of a host that says `hello` to others.
    #[must_use]
    pub fn new(hello: Hello) -> Links {
        Links {
            hello,
            secured: None,
            door: Doorkeeper::default(),
            own: None,
            listener: None,
            listen_due: None,
            told_in_use: false,
            accepting: false,
            addresses: BTreeMap::new(),
            calls: BTreeMap::new(),
            wires: BTreeMap::new(),
            next_wire: *WIRE_SPACES.start(),
            made: 0,
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
        self.own = Some(address.ip());
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
            if let Some(call) = self.calls.remove(&host) {
                for wire in call.wire.into_iter().chain(call.next.map(|(wire, _)| wire)) {
                    self.drop_wire(wire);
                }
            }
        }
        for host in hosts {
            if !self.calls.contains_key(host) {
                self.calls.insert(*host, Call::new(now));
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
            code: call.code.map(|code| code.to_string()),
        };
        self.calls.iter().map(info).collect()
    }

    /// Every peer that is proven, connection by connection.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerShown> {
        let shown = |wire: &Wire| {
            let proof = wire.proof.as_ref()?;
            Some(PeerShown {
                host: proof.peer.host,
                mode: transport_kind(proof.mode),
                not_after: Decimal(proof.peer.not_after.0),
                by: proof.peer.issuer.to_string(),
                called: matches!(wire.role, Role::Called { .. }),
            })
        };
        let mut peers: Vec<PeerShown> = self.wires.values().filter_map(shown).collect();
        peers.sort_by_key(|peer| (peer.host, peer.called));
        peers
    }

    // ---- identity and trust

    /// From now on this identity is shown and this list judges. A host that had none had its connections in clear: they
    /// end. Others are followed by new ones within ten minutes, or half of the time that they have left.
    pub fn set_identity(&mut self, driver: &mut impl Driver, now: Instant, secured: Secured) {
        if self.secured.replace(secured).is_none() {
            let open: Vec<u16> = self.wires.keys().copied().collect();
            for id in open {
                self.lose(driver, now, id, None);
            }
            return;
        }
        for (host, wire) in self.callers() {
            let Some(cut) = self.wires.get(&wire).and_then(|wire| wire.proof.as_ref()).map(|proof| proof.cut)
            else {
                continue;
            };
            let within = RENEW_MS.min(cut.ms_since(now) / 2);
            self.renew_within(now, host, within);
        }
    }

    /// Another list is in force: whoever is not on it loses every connection at once, also under way. Those whose
    /// authority or transport is no longer wanted are followed by others, or end after a minute if those don't come.
    pub fn handle_trust(&mut self, driver: &mut impl Driver, now: Instant) {
        let Some(secured) = &self.secured else { return };
        let trust = secured.trust.get();
        let proofs = self.wires.iter().filter_map(|(id, wire)| Some((*id, wire.proof.as_ref()?)));
        let proofs: Vec<(u16, HostId, bool, bool, bool)> = proofs
            .map(|(id, proof)| {
                let is_listed = trust.lists(proof.peer.host, proof.peer.kid);
                let is_wanted = is_wanted(&trust, proof);
                let is_best =
                    is_wanted && (proof.mode == Transport::Auth) == (trust.transport == Transport::Auth);
                (id, proof.peer.host, is_listed, is_wanted, is_best)
            })
            .collect();
        for (id, host, is_listed, is_wanted, is_best) in proofs {
            let is_caller = self.wires.get(&id).is_some_and(|wire| matches!(wire.role, Role::Caller(_)));
            if !is_listed {
                tracing::warn!(%host, "cut: it is not on the trust list any more");
                if is_caller { self.refuse_host(now, host) } else { self.drop_wire(id) }
            } else if is_caller && !is_best {
                self.renew_within(now, host, CHANGE_MS);
            } else if !is_wanted
                && let Some(proof) = self.wires.get_mut(&id).and_then(|wire| wire.proof.as_mut())
            {
                proof.cut = proof.cut.min(now.after_ms(OVERDUE_MS));
            }
        }
        let revoked: Vec<HostId> =
            self.calls.keys().copied().filter(|host| trust.is_revoked(*host)).collect();
        for host in revoked {
            self.refuse_host(now, host);
        }
        self.accept(driver);
    }

    /// A host that is not to be spoken to: as one whose daemon is gone for good.
    fn refuse_host(&mut self, now: Instant, host: HostId) {
        let reason = format!("host {host} is not trusted any more");
        self.end_call(now, host, LinkState::Mismatch, Some((Code::PEER_REVOKED, reason)), true);
    }

    /// The wires of calls that are up.
    fn callers(&self) -> Vec<(HostId, u16)> {
        let up = self.calls.iter().filter(|(_, call)| call.state == LinkState::Connected);
        up.filter_map(|(host, call)| Some((*host, call.wire?))).collect()
    }

    /// Begins the next connection to a host at some moment within so many milliseconds: not all at once.
    fn renew_within(&mut self, now: Instant, host: HostId, ms: u64) {
        let ms = u64::try_from(random_u128() % (u128::from(ms) + 1)).unwrap_or(ms);
        if let Some(call) = self.calls.get_mut(&host) {
            let at = now.after_ms(ms);
            call.renew = Some(call.renew.map_or(at, |due| due.min(at)));
        }
    }

    /// The peer of this connection is proven: it may say HELLO now, if the list still names it.
    fn prove(&mut self, now: Instant, id: u16, proven: Proven) -> Result<(), Failure> {
        let (Some(secured), Some(wire)) = (&self.secured, self.wires.get_mut(&id)) else { return Ok(()) };
        let host = proven.peer.host;
        if !secured.trust.get().lists(host, proven.peer.kid) {
            // The list has changed since the handshake began.
            let message = format!("host {host} is not on the trust list any more");
            return Err(Failure::new(Code::PEER_REVOKED, message));
        }
        if let Role::Caller(called) = wire.role
            && called != host
        {
            let message = format!("host {host} answers at the address of host {called}");
            return Err(Failure::new(Code::PEER_UNKNOWN, message));
        }
        let mut proof = Proof::new(now, WallTime::now(), proven, secured.not_after);
        if !is_wanted(&secured.trust.get(), &proof) && matches!(wire.role, Role::Called { .. }) {
            // So has the transport, or the authorities: as those that were proven before.
            proof.cut = proof.cut.min(now.after_ms(OVERDUE_MS));
        }
        wire.proof = Some(proof);
        // Sent when what has arrived is read: until then the connection's buffer must stay.
        wire.queue(hello_frame(&self.hello));
        Ok(())
    }

    /// A peer is refused, or has refused us: told, and its connection goes when the alert is sent.
    fn refuse(&mut self, driver: &mut impl Driver, now: Instant, id: u16, failure: Failure) {
        let Some(wire) = self.wires.get(&id) else { return };
        let (address, host) = (wire.address, wire.host());
        self.report(now, address, host, &failure);
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let until = now.after_ms(HELLO_MS);
        let role = std::mem::replace(&mut wire.role, Role::Leaving { until });
        if wire.conn.poll_handshake().is_ok() {
            // Nothing is left to be said.
            wire.conn.close();
        }
        wire.drive(driver);
        if let Role::Caller(host) = role {
            let is_main = self.calls.get(&host).is_some_and(|call| call.wire == Some(id));
            if let Some(call) = self.calls.get_mut(&host) {
                if is_main {
                    call.wire = None;
                } else {
                    call.next = None;
                    call.renew = Some(now.after_ms(MISMATCH_MS));
                }
            }
            if is_main {
                let Failure { code, message, .. } = failure;
                self.end_call(now, host, LinkState::Mismatch, Some((code, message)), false);
            }
        }
        self.lapse(id);
    }

    /// Tells of a refusal; of a flood of them one in a while, and how many more there were.
    fn report(&mut self, now: Instant, address: IpAddr, host: Option<HostId>, failure: &Failure) {
        let Some(unsaid) = self.door.say(now) else { return };
        let host = host.or_else(|| host_of(failure));
        let Failure { code, message, facts } = failure.clone();
        tracing::warn!(%address, host = host.map(|h| h.to_string()), %code, message, unsaid, "peer refused");
        let (address, code, reason) = (address.to_string(), code.to_string(), message);
        self.out.push_back(LinksOut::Refused(PeerRefused { address, host, code, reason, facts, unsaid }));
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
        let calls =
            self.calls.values().flat_map(|c| [c.due, c.next.map(|(_, until)| until), c.renew]).flatten();
        let wires =
            self.wires.values().flat_map(|w| [w.until(), w.proof.as_ref().map(|proof| proof.cut)]).flatten();
        calls.chain(wires).chain(self.listen_due.map(|(due, _)| due)).min()
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
                let reason = (Code::WAITING, "no answer".to_owned());
                self.end_call(now, host, LinkState::Silent, Some(reason), false);
            } else {
                self.connect(driver, now, host);
            }
        }
        let late: Vec<u16> = self
            .wires
            .iter()
            .filter(|(_, w)| w.until().is_some_and(|u| now >= u))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.drop_wire(id);
        }
        let ended = |wire: &Wire| wire.proof.as_ref().is_some_and(|proof| now >= proof.cut);
        let ended: Vec<u16> = self.wires.iter().filter(|(_, w)| ended(w)).map(|(id, _)| *id).collect();
        for id in ended {
            tracing::warn!(host = ?self.wires.get(&id).and_then(Wire::host), "cut: its proof has ended");
            self.lose(driver, now, id, None);
        }
        let hosts: Vec<HostId> = self.calls.keys().copied().collect();
        for host in hosts {
            self.follow(driver, now, host);
        }
        self.accept(driver);
    }

    /// The connection that is to follow another one: begun when it is time, and given up when it takes too long.
    fn follow(&mut self, driver: &mut impl Driver, now: Instant, host: HostId) {
        let Some(call) = self.calls.get_mut(&host) else { return };
        if let Some((wire, until)) = call.next {
            if now >= until {
                call.next = None;
                call.renew = Some(now.after_ms(NEXT_RETRY_MS));
                self.drop_wire(wire);
            }
            return;
        }
        if call.renew.is_none_or(|due| now < due) {
            return;
        }
        call.renew = None;
        let is_up = call.state == LinkState::Connected;
        let Some(address) = self.addresses.get(&host).copied().filter(|_| is_up) else { return };
        let begun = self.begin(driver, host, address);
        let Some(call) = self.calls.get_mut(&host) else { return };
        match begun {
            Ok(id) => call.next = Some((id, now.after_ms(CONNECT_MS + HELLO_MS))),
            Err(error) => {
                tracing::warn!(%host, %error, "no further connection");
                call.renew = Some(now.after_ms(NEXT_RETRY_MS));
            }
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
        if self.secured.as_ref().is_some_and(|secured| secured.trust.get().is_revoked(host)) {
            return self.refuse_host(now, host);
        }
        match self.begin(driver, host, address) {
            Ok(id) => {
                if let Some(call) = self.calls.get_mut(&host) {
                    call.due = Some(now.after_ms(CONNECT_MS));
                    call.wire = Some(id);
                }
            }
            Err(error) => self.not_connected(now, host, error.into()),
        }
    }

    fn begin(&mut self, driver: &mut impl Driver, host: HostId, address: IpAddr) -> io::Result<u16> {
        let socket = tcp::connect(SocketAddr::new(address, DATA_PORT), self.own)?;
        let op = Op::PollWrite { fd: socket.clone() };
        let id = self.add_wire(socket, address, Role::Caller(host), None)?;
        driver.submit(Part::Link.token(CONNECT, u64::from(id)), op);
        Ok(id)
    }

    fn handle_connected(&mut self, driver: &mut impl Driver, now: Instant, id: u16) {
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let Role::Caller(host) = wire.role else { return };
        match tcp::connected(wire.conn.socket()) {
            Ok(()) => {
                if !wire.is_secured {
                    wire.queue(hello_frame(&self.hello));
                }
                wire.drive(driver);
                if let Some(call) = self.calls.get_mut(&host).filter(|call| call.wire == Some(id)) {
                    call.due = Some(now.after_ms(HELLO_MS));
                }
            }
            Err(_) if self.calls.get(&host).is_some_and(|call| call.wire != Some(id)) => {
                self.lose(driver, now, id, None);
            }
            Err(error) => self.not_connected(now, host, error),
        }
    }

    fn not_connected(&mut self, now: Instant, host: HostId, error: Errno) {
        let refused = io::Error::from(error).kind() == io::ErrorKind::ConnectionRefused;
        let state = if refused { LinkState::Refused } else { LinkState::Silent };
        self.end_call(now, host, state, Some((Code::WAITING, error.to_string())), refused);
    }

    /// The connection to a host is not, or is no longer, there.
    fn end_call(
        &mut self,
        now: Instant,
        host: HostId,
        state: LinkState,
        why: Option<(Code, String)>,
        refused: bool,
    ) {
        let Some(call) = self.calls.get_mut(&host) else { return };
        let wires = call.wire.take().into_iter().chain(call.next.take().map(|(wire, _)| wire));
        let (code, reason) = why.unzip();
        let pause = match state {
            // It was up: tried again at once, to learn whether it is refused; but not again and again.
            LinkState::Connecting if call.state == LinkState::Connected => {
                let is_brief = now.ms_since(call.since) < BRIEF_MS;
                call.brief = if is_brief { call.brief.saturating_add(1) } else { 0 };
                match call.brief {
                    0 | 1 => 0,
                    more => (RETRY_MS << (more - 2).min(8)).min(MISMATCH_MS),
                }
            }
            LinkState::Connecting => 0,
            LinkState::Mismatch => MISMATCH_MS,
            _ => RETRY_MS,
        };
        if call.state != state {
            call.since = now;
            tracing::info!(%host, ?state, reason, "link");
        }
        call.state = state;
        (call.code, call.reason) = (code, reason);
        (call.due, call.renew) = (Some(now.after_ms(pause)), None);
        call.handles.clear();
        call.by_handle.clear();
        for wire in wires {
            self.drop_wire(wire);
        }
        self.out.push_back(LinksOut::Down { host, refused });
    }

    // ---- being called

    fn accept(&mut self, driver: &mut impl Driver) {
        // Those that are to prove themselves are bounded at the door.
        let counts =
            |w: &&Wire| matches!(&w.role, Role::Called { peer, .. } if peer.is_some() || !w.is_secured);
        let called = self.wires.values().filter(counts).count();
        if let Some(listener) = self.listener.as_ref().filter(|_| !self.accepting && called < PEERS_MAX) {
            self.accepting = true;
            driver.submit(Part::Link.token(ACCEPT, 0), Op::Accept { listener: listener.clone() });
        }
    }

    fn handle_accepted(&mut self, driver: &mut impl Driver, now: Instant, done: Completion) {
        self.accepting = false;
        match done.result {
            Ok(Outcome::Accepted(socket)) => {
                if let Err(error) = self.take_called(driver, now, Arc::new(socket)) {
                    tracing::debug!(%error, "a connection has gone at once");
                }
            }
            Ok(other) => unreachable!("an accept came to {other:?}"),
            Err(errno) => tracing::warn!(%errno, "accept failed"),
        }
        self.accept(driver);
    }

    fn take_called(&mut self, driver: &mut impl Driver, now: Instant, socket: Fd) -> io::Result<()> {
        let address = tcp::peer_address(&socket)?;
        let mut visit = None;
        if self.proving().is_some() {
            let is_host = self.addresses.values().any(|known| *known == address);
            visit = self.door.admit(now, address, is_host);
            if visit.is_none() {
                let failure = Failure::new(Code::PEER_UNKNOWN, "too many connections begin there");
                self.report(now, address, None, &failure);
                return Ok(());
            }
        }
        let made = tcp::set_up(&socket).and_then(|()| {
            let role =
                Role::Called { peer: None, handles: Handles::default(), until: now.after_ms(HELLO_MS) };
            self.add_wire(socket, address, role, None)
        });
        let wire = match made {
            Ok(id) => self.wires.get_mut(&id),
            Err(error) => {
                if let Some(visit) = visit {
                    self.door.leave(visit);
                }
                return Err(error);
            }
        };
        if let Some(wire) = wire {
            wire.visit = visit;
            if !wire.is_secured {
                wire.queue(hello_frame(&self.hello));
            }
            wire.drive(driver);
        }
        Ok(())
    }

    // ---- bytes

    /// What new connections prove themselves by; none: they speak in the clear.
    fn proving(&self) -> Option<&Secured> {
        self.secured.as_ref().filter(|secured| !CLEAR || secured.trust.get().transport != Transport::Clear)
    }

    fn add_wire(&mut self, socket: Fd, address: IpAddr, role: Role, visit: Option<Visit>) -> io::Result<u16> {
        // Far fewer connections are open than there are names, so a name is long unused when it comes again.
        let mut id = self.next_wire;
        while self.wires.contains_key(&id) {
            id = next_space(id);
        }
        self.next_wire = next_space(id);
        let config = StreamConfig::new(TokenSpace(id));
        let secured = self.proving();
        let is_secured = secured.is_some();
        let conn = match secured {
            None => Conn::new(socket, config),
            Some(secured) => {
                let stream = Conn::stream_of(socket, config);
                let begin =
                    if matches!(role, Role::Caller(_)) { TlsStream::client } else { TlsStream::server };
                let stream = begin(stream, &secured.configs, config.send_bytes);
                Conn::secured(stream.map_err(|error| io::Error::other(error.to_string()))?)
            }
        };
        let number = self.made;
        self.made += 1;
        let wire = Wire {
            conn,
            role,
            number,
            address,
            is_secured,
            is_worn: false,
            proof: None,
            visit,
            version: None,
        };
        self.wires.insert(id, wire);
        Ok(id)
    }

    fn handle_stream(&mut self, driver: &mut impl Driver, now: Instant, done: Completion) {
        let id = TokenSpace::of(done.token).0;
        let Some(wire) = self.wires.get_mut(&id) else { return };
        wire.conn.handle_completion(done);
        if wire.is_secured && wire.proof.is_none() {
            let proven = match (&wire.role, wire.conn.poll_handshake()) {
                (Role::Leaving { .. }, _) | (_, Ok(None)) => None,
                (_, Ok(Some(proven))) => Some(Ok(proven)),
                (_, Err(error)) => Some(Err(refusal_of(&error))),
            };
            let refused = match proven {
                None => {
                    if wire.conn.ended().is_some() {
                        return self.lose(driver, now, id, None);
                    }
                    return wire.drive(driver);
                }
                Some(Ok(proven)) => self.prove(now, id, proven),
                Some(Err(failure)) => Err(failure),
            };
            if let Err(failure) = refused {
                return self.refuse(driver, now, id, failure);
            }
        }
        loop {
            let Some(wire) = self.wires.get_mut(&id) else { return };
            let content = match wire.conn.poll_frame() {
                Ok(Some(frame)) => {
                    content_of(frame).map_err(|e| Failure::new(Code::PEER_UNKNOWN, e.to_string()))
                }
                Ok(None) => break,
                Err(error) => Err(broken(&error)),
            };
            if let Err(why) = content.and_then(|content| self.take_frame(now, id, content)) {
                return self.lose(driver, now, id, Some(why));
            }
        }
        let Some(wire) = self.wires.get_mut(&id) else { return };
        if wire.conn.ended().is_some() {
            return self.lose(driver, now, id, None);
        }
        wire.drive(driver);
        if wire.conn.is_worn() {
            self.follow_worn(now, id);
        }
    }

    /// The keys of a connection have had half of their records: who made it makes the next one. Asked for once; what
    /// comes of it is seen to as for any other.
    fn follow_worn(&mut self, now: Instant, id: u16) {
        let Some(wire) = self.wires.get_mut(&id).filter(|wire| !wire.is_worn) else { return };
        wire.is_worn = true;
        let Role::Caller(host) = wire.role else { return };
        if self.calls.get(&host).is_some_and(|call| call.wire == Some(id)) {
            self.renew_within(now, host, WORN_MS);
        }
    }

    fn take_frame(&mut self, now: Instant, id: u16, content: Content) -> Result<(), Failure> {
        let wrong = |message: String| Failure::new(Code::PEER_UNKNOWN, message);
        let Some(wire) = self.wires.get_mut(&id) else { return Ok(()) };
        match content {
            Content::Hello(_) if wire.version.is_some() => return Err(wrong("HELLO twice".to_owned())),
            Content::Hello(theirs) => {
                let agreed = negotiate(&self.hello, &theirs);
                if let Some(proof) = &wire.proof
                    && proof.peer.host != theirs.host
                {
                    return Err(wrong(format!(
                        "host {} says that it is host {}",
                        proof.peer.host, theirs.host
                    )));
                }
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
                            let why = Some((Code::PEER_UNKNOWN, why));
                            self.end_call(now, host, LinkState::Mismatch, why, false);
                            return Ok(());
                        }
                        if let Ok(agreed) = agreed {
                            let claim = Claim { watermark: theirs.watermark, host, relayed: false };
                            self.out.push_back(LinksOut::Claim(claim));
                            self.call_agreed(now, id, host, agreed.version);
                        }
                    }
                    Role::Called { peer, .. } => {
                        let agreed = agreed.map_err(|e| wrong(e.to_string()))?;
                        *peer = Some(theirs.host);
                        let claim = Claim { watermark: theirs.watermark, host: theirs.host, relayed: false };
                        self.out.push_back(LinksOut::Claim(claim));
                        wire.agree(agreed.version);
                        if let Some(visit) = wire.visit.take() {
                            self.door.leave(visit);
                        }
                        self.drop_oldest_of(theirs.host);
                    }
                    Role::Leaving { .. } => {}
                }
            }
            Content::Response(handle, response) => {
                let Role::Caller(host) = wire.role else {
                    return Err(wrong("a response from a caller".to_owned()));
                };
                let asked = self.calls.get(&host).and_then(|c| c.by_handle.get(&handle)).copied();
                if let Some((volume, rid, ordinal)) = asked {
                    self.out.push_back(LinksOut::Response { volume, rid, ordinal, response });
                }
            }
            Content::Request(handle, request) => {
                let Role::Called { peer: Some(peer), handles, .. } = &mut wire.role else {
                    return Err(wrong("a request from the called side".to_owned()));
                };
                if let Ask::Attach(attach) = &request.ask {
                    if attach.host != *peer {
                        return Err(wrong(format!("host {peer} attaches as {}", attach.host)));
                    }
                    if handles.by_handle.contains_key(&handle) {
                        return Err(wrong(format!("attachment {handle} is attached twice")));
                    }
                    let attachment = AttachmentId(REMOTE | self.next_attachment);
                    self.next_attachment += 1;
                    let key = ReplicaKey { volume: attach.volume, rid: attach.rid };
                    // As for sessions of this host: the one before ends.
                    let before = handles.insert(handle, Attached { attachment, pool: attach.pool, key });
                    if let Some(Attached { attachment, pool, key }) = before {
                        self.attachments.remove(&attachment);
                        self.out.push_back(LinksOut::Gone { attachment, pool, key });
                    }
                    self.attachments.insert(attachment, (id, handle));
                    if handles.by_handle.len() > HANDLES_MAX {
                        return Err(wrong(format!("attached to more than {HANDLES_MAX} replicas")));
                    }
                }
                match handles.by_handle.get(&handle).copied() {
                    Some(Attached { attachment, pool, key }) => {
                        self.out.push_back(LinksOut::Request { attachment, pool, key, request });
                    }
                    None => {
                        let outcome = Err(Refusal::NotAttached);
                        let response =
                            Response { tag: request.tag, epoch: request.epoch, outcome, service_us: 0 };
                        if let Some(version) = wire.version {
                            wire.queue(encode_response(version, handle, &response));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// A call is up, or is followed by the next connection: then its sessions attach anew, over that one.
    fn call_agreed(&mut self, now: Instant, id: u16, host: HostId, version: Version) {
        let (Some(wire), Some(call)) = (self.wires.get_mut(&id), self.calls.get_mut(&host)) else { return };
        wire.agree(version);
        let trust = self.secured.as_ref().map(|secured| secured.trust.get());
        let wants_auth = trust.as_ref().is_some_and(|trust| trust.transport == Transport::Auth);
        call.renew = wire.proof.as_ref().map(|proof| proof.renew(now, wants_auth));
        let is_overdue =
            matches!((&trust, &wire.proof), (Some(trust), Some(proof)) if !is_wanted(trust, proof));
        let is_next = call.next.take_if(|(next, _)| *next == id).is_some();
        let before = if is_next { call.wire.replace(id) } else { None };
        if is_next {
            call.handles.clear();
            call.by_handle.clear();
            self.out.push_back(LinksOut::Down { host, refused: false });
        } else {
            call.since = now;
        }
        (call.state, call.reason, call.code, call.due) = (LinkState::Connected, None, None, None);
        tracing::info!(%host, again = is_next, "link up");
        self.out.push_back(LinksOut::Up(host));
        if let Some(before) = before {
            self.drop_wire(before);
        }
        if is_overdue {
            // The list has changed since this connection was begun.
            self.renew_within(now, host, CHANGE_MS);
        }
    }

    /// R10: a pool whose log is behind what this host has seen of it was rolled back.
    fn pool_went_back(&mut self, theirs: &Hello) -> Option<String> {
        let of_host = (theirs.host, PoolId(0))..=(theirs.host, PoolId(u128::MAX));
        if self.seen.range(of_host).count() + theirs.pools.len() > SEEN_POOLS_MAX {
            let named = |pool: &PoolId| theirs.pools.iter().any(|log| log.pool == *pool);
            self.seen.retain(|(host, pool), _| *host != theirs.host || named(pool));
        }
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
    fn lose(&mut self, driver: &mut impl Driver, now: Instant, id: u16, why: Option<Failure>) {
        let Some(wire) = self.wires.get(&id) else { return };
        if let Some(why) = &why {
            tracing::warn!(%why, "a peer broke the protocol");
            if wire.is_secured {
                let (address, host) = (wire.address, wire.host());
                self.report(now, address, host, why);
            }
        }
        let Some(wire) = self.wires.get(&id) else { return };
        match wire.role {
            Role::Caller(host) if self.calls.get(&host).is_some_and(|call| call.wire != Some(id)) => {
                if let Some(call) = self.calls.get_mut(&host) {
                    call.next = None;
                    call.renew = Some(now.after_ms(NEXT_RETRY_MS));
                }
                self.drop_wire(id);
            }
            Role::Caller(host) => {
                let was_up = self.is_up(host);
                let state = match (&why, was_up) {
                    (Some(_), _) => LinkState::Mismatch,
                    (None, true) => LinkState::Connecting,
                    (None, false) => LinkState::Silent,
                };
                let why = why.map_or_else(
                    || (Code::WAITING, "the connection ended".to_owned()),
                    |failure| (failure.code, failure.message),
                );
                self.end_call(now, host, state, Some(why), false);
                if self.calls.get(&host).is_some_and(|call| call.due.is_some_and(|due| now >= due)) {
                    self.connect(driver, now, host);
                }
            }
            Role::Called { .. } | Role::Leaving { .. } => self.drop_wire(id),
        }
        self.accept(driver);
    }

    /// Nothing is expected of a connection any more: it goes when it has ended.
    fn lapse(&mut self, id: u16) {
        if self.wires.get(&id).is_some_and(|wire| wire.conn.ended().is_some()) {
            self.drop_wire(id);
        }
    }

    /// A host that has too many connections loses the oldest.
    fn drop_oldest_of(&mut self, host: HostId) {
        let is_its =
            |wire: &Wire| matches!(&wire.role, Role::Called { peer: Some(peer), .. } if *peer == host);
        let its = || self.wires.iter().filter(|(_, wire)| is_its(wire));
        if its().count() > PEER_WIRES_MAX
            && let Some((id, _)) = its().min_by_key(|(_, wire)| wire.number)
        {
            let id = *id;
            tracing::warn!(%host, "it has more than {PEER_WIRES_MAX} connections: the oldest ends");
            self.drop_wire(id);
        }
    }

    fn drop_wire(&mut self, id: u16) {
        let Some(mut wire) = self.wires.remove(&id) else { return };
        // Ends what the driver has in flight; its completions find nobody.
        wire.conn.close();
        if let Some(visit) = wire.visit.take() {
            self.door.leave(visit);
        }
        if let Role::Called { handles, .. } = wire.role {
            for Attached { attachment, pool, key } in handles.by_handle.into_values() {
                self.attachments.remove(&attachment);
                self.out.push_back(LinksOut::Gone { attachment, pool, key });
            }
        }
    }
}

impl Wire {
    /// Who is at the other end, as far as it is known.
    fn host(&self) -> Option<HostId> {
        match (&self.proof, &self.role) {
            (Some(proof), _) => Some(proof.peer.host),
            (None, Role::Caller(host)) => Some(*host),
            (None, Role::Called { peer, .. }) => *peer,
            (None, Role::Leaving { .. }) => None,
        }
    }

    /// When it is given up.
    fn until(&self) -> Option<Instant> {
        match &self.role {
            Role::Called { peer: None, until, .. } | Role::Leaving { until } => Some(*until),
            Role::Called { .. } | Role::Caller(_) => None,
        }
    }

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

/// May a connection of this proof stay, by this list? What its key may is asked elsewhere.
fn is_wanted(trust: &Trust, proof: &Proof) -> bool {
    trust.has_authority(proof.peer.issuer)
        && (proof.mode == Transport::Tls || trust.transport == Transport::Auth)
}

/// Why no frame came, as it is told.
fn broken(error: &ConnError) -> Failure {
    let code = match error {
        ConnError::Mac(_) => Code::FRAME_MAC,
        ConnError::Frame(_) | ConnError::RefusedUs | ConnError::Tls(_) => Code::PEER_UNKNOWN,
    };
    match error {
        ConnError::Tls(error) => refusal_of(error),
        _ => Failure::new(code, error.to_string()),
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

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use weft_io::identity::{Identity, Peer, TrustCell};
    use weft_io::tls::TlsConfigs;
    use weft_proto::ids::{ClusterId, PoolInc, SessionId};
    use weft_proto::message::Attach;

    use super::*;

    const LIST: &[u8] = include_bytes!("../../weft-io/specimens/trust.json");
    const HOST: &[u8] = include_bytes!("../../weft-io/specimens/h1.pem");
    const NOW: Instant = Instant(5_000_000_000);

    fn greeting(cluster: ClusterId, host: HostId) -> Hello {
        Hello {
            wire_min: Version::OLDEST.number(),
            wire_max: Version::NEWEST.number(),
            cluster,
            host,
            process: 1,
            features: 0,
            max_frame: 1 << 20,
            slots: 64,
            heartbeat_ms: 100,
            trailer_len: 0,
            watermark: Watermark::default(),
            pools: Vec::new(),
        }
    }

    /// Links of the specimens' host, by whose list everything goes over TLS; and a host on that list, as it is proven.
    fn links() -> (Links, Peer) {
        let identity = Identity::from_pem(HOST).expect("a specimen");
        let trust = Trust::open_first(LIST, identity.cluster()).expect("a specimen");
        assert_eq!(trust.transport, Transport::Tls);
        let chain = identity.chain();
        let wall = WallTime(identity.not_after().0 - 1);
        let peer = trust.judge(&chain, wall).expect("it is on the list");
        let cell = Arc::new(TrustCell::new(trust));
        let mut links = Links::new(greeting(identity.cluster(), HostId(1)));
        let configs = TlsConfigs::new(&identity, cell.clone());
        links.secured =
            Some(Secured { configs, trust: cell, not_after: WallTime(WallTime::now().0 + 86_400) });
        (links, Peer { not_after: WallTime(WallTime::now().0 + 86_400), ..peer })
    }

    /// A connection with that role, whose bytes nobody sees. `id` is the how manyth it is.
    fn add(links: &mut Links, id: u16, role: Role) {
        let (socket, _) = UnixStream::pair().expect("a pair");
        let conn = Conn::new(Arc::new(OwnedFd::from(socket)), StreamConfig::new(TokenSpace(id)));
        let (address, number) = (IpAddr::from([127, 0, 0, 1]), u64::from(id));
        let wire = Wire {
            conn,
            role,
            number,
            address,
            is_secured: true,
            is_worn: false,
            proof: None,
            visit: None,
            version: None,
        };
        links.wires.insert(id, wire);
    }

    fn called() -> Role {
        Role::Called { peer: None, handles: Handles::default(), until: NOW.after_ms(1000) }
    }

    fn call(links: &mut Links, host: HostId, wire: u16) {
        let call = Call { wire: Some(wire), ..Call::new(NOW) };
        links.calls.insert(host, call);
        add(links, wire, Role::Caller(host));
    }

    /// The list has changed to TLS while two hosts were proving themselves to each other for a connection with `auth`: it
    /// is replaced as soon, and ends as late, as those that were proven before.
    #[test]
    fn a_handshake_under_way_does_not_escape_a_change_of_the_transport() {
        for (mode, overdue) in [(Transport::Auth, true), (Transport::Tls, false)] {
            let (mut links, peer) = links();
            let host = peer.host;
            add(&mut links, 0x1001, called());
            call(&mut links, host, 0x1002);
            for id in [0x1001, 0x1002] {
                links.prove(NOW, id, Proven { peer, mode }).expect("a listed host");
            }
            links.call_agreed(NOW, 0x1002, host, Version::NEWEST);
            let cut = links.wires[&0x1001].proof.as_ref().expect("proven").cut;
            assert_eq!(cut <= NOW.after_ms(OVERDUE_MS), overdue, "{mode:?}");
            let renew = links.calls[&host].renew.expect("some day");
            assert_eq!(renew <= NOW.after_ms(CHANGE_MS), overdue, "{mode:?}");
        }
    }

    /// A dropped authority is treated in the same way.
    #[test]
    fn a_handshake_under_way_does_not_escape_an_authority_that_was_dropped() {
        let (mut links, peer) = links();
        let dropped = Peer { issuer: peer.kid, ..peer };
        add(&mut links, 0x1001, called());
        links.prove(NOW, 0x1001, Proven { peer: dropped, mode: Transport::Tls }).expect("a listed host");
        assert_eq!(links.wires[&0x1001].proof.as_ref().expect("proven").cut, NOW.after_ms(OVERDUE_MS));
    }

    #[test]
    fn a_host_that_greets_and_leaves_is_called_ever_later() {
        let (mut links, peer) = links();
        let host = peer.host;
        call(&mut links, host, 0x1001);
        let mut now = NOW;
        let mut pauses = Vec::new();
        for up_ms in [5, 5, 5, 5, 5, 5, 5, 5, BRIEF_MS, 5, 5] {
            if let Some(call) = links.calls.get_mut(&host) {
                (call.state, call.since) = (LinkState::Connected, now);
            }
            now = now.after_ms(up_ms);
            links.end_call(now, host, LinkState::Connecting, None, false);
            let due = links.calls[&host].due.expect("called again");
            pauses.push(due.ms_since(now));
            now = due;
        }
        assert_eq!(pauses, [0, 200, 400, 800, 1600, 2000, 2000, 2000, 0, 0, 200]);
    }

    #[test]
    fn a_connection_whose_keys_wear_out_is_followed_by_its_caller_and_asked_for_once() {
        let (mut links, peer) = links();
        let host = peer.host;
        call(&mut links, host, 0x1001);
        add(&mut links, 0x1002, called());
        links.follow_worn(NOW, 0x1002);
        assert_eq!(links.calls[&host].renew, None, "the other side made that one");
        links.follow_worn(NOW, 0x1001);
        let renew = links.calls[&host].renew.expect("soon");
        assert!(renew <= NOW.after_ms(WORN_MS));
        // It failed, and is tried again in a moment: records that come meanwhile change nothing.
        let later = NOW.after_ms(60_000);
        links.calls.get_mut(&host).expect("it is called").renew = Some(later);
        links.follow_worn(NOW, 0x1001);
        assert_eq!(links.calls[&host].renew, Some(later));
        // A certificate that ends sooner is not put off.
        add(&mut links, 0x1003, Role::Caller(host));
        let call = links.calls.get_mut(&host).expect("it is called");
        (call.wire, call.renew) = (Some(0x1003), Some(NOW));
        links.follow_worn(NOW, 0x1003);
        assert_eq!(links.calls[&host].renew, Some(NOW));
    }

    fn hello_of(links: &mut Links, id: u16, host: HostId) -> Result<(), Failure> {
        let hello = greeting(links.hello.cluster, host);
        links.take_frame(NOW, id, Content::Hello(hello))
    }

    #[test]
    fn one_host_has_so_many_connections_and_loses_its_oldest() {
        let (mut links, _) = links();
        for id in 0x1001..0x1101 {
            add(&mut links, id, called());
            // One in sixteen is another host's.
            let host = HostId(if id % 16 == 0 { u128::from(id) } else { 7 });
            hello_of(&mut links, id, host).expect("let in");
        }
        let of = |host: HostId| links.wires.iter().filter(move |(_, wire)| wire.host() == Some(host));
        let left: Vec<u16> = of(HostId(7)).map(|(id, _)| *id).collect();
        assert_eq!(left, [0x10f8, 0x10f9, 0x10fa, 0x10fb, 0x10fc, 0x10fd, 0x10fe, 0x10ff]);
        assert!((0x1010..0x1101).step_by(16).all(|id| of(HostId(id)).count() == 1));
        assert!(hello_of(&mut links, 0x10ff, HostId(7)).is_err(), "HELLO twice");
    }

    fn attach(links: &mut Links, id: u16, handle: u32, volume: u128, session: u128) -> Result<(), Failure> {
        let ask = Ask::Attach(Attach {
            volume: VolumeId(volume),
            rid: Rid(0),
            pool: PoolId(1),
            host: HostId(7),
            session: SessionId(session),
            ordinal: Ordinal(1),
            watermark: Watermark::default(),
        });
        let request = Request { tag: 1, epoch: weft_proto::ids::Epoch(0), ask };
        links.take_frame(NOW, id, Content::Request(handle, request))
    }

    /// A host opens a volume again and again over one connection: nothing of the sessions before is kept, and each ends
    /// before the next one is asked for. Replicas are bounded, for those who make them up.
    #[test]
    fn a_connection_is_attached_to_a_replica_once_and_to_so_many_replicas() {
        let (mut links, _) = links();
        add(&mut links, 0x1001, called());
        hello_of(&mut links, 0x1001, HostId(7)).expect("let in");
        while links.poll().is_some() {}
        for handle in 0..20_000 {
            attach(&mut links, 0x1001, handle, 1, u128::from(handle)).expect("attached");
            if handle > 0 {
                assert!(matches!(links.poll(), Some(LinksOut::Gone { .. })));
            }
            assert!(matches!(links.poll(), Some(LinksOut::Request { .. })));
        }
        assert_eq!(links.attachments.len(), 1);
        let most = u32::try_from(HANDLES_MAX).expect("few");
        for volume in 2..=most {
            attach(&mut links, 0x1001, 20_000 + volume, u128::from(volume), 1).expect("attached");
        }
        attach(&mut links, 0x1001, 90_000, u128::MAX, 1).expect_err("too many");
        links.drop_wire(0x1001);
        assert!(links.attachments.is_empty());
    }

    #[test]
    fn of_a_hosts_pools_so_many_are_remembered_and_those_it_names_always() {
        let (mut links, _) = links();
        let mut hello = greeting(links.hello.cluster, HostId(7));
        let log = |pool: u128, inc| PoolLog { pool: PoolId(pool), inc: PoolInc(inc), durable_seq: 1 };
        for round in 0..100 {
            let own = (0..100).map(|pool| log(round * 100 + pool, 1));
            hello.pools = own.chain([log(u128::MAX, 9)]).collect();
            assert_eq!(links.pool_went_back(&hello), None);
        }
        assert!(links.seen.len() <= SEEN_POOLS_MAX);
        hello.pools = vec![log(u128::MAX, 8)];
        assert!(links.pool_went_back(&hello).is_some(), "it was seen at 9");
    }
}
