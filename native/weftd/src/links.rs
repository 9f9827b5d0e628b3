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

mod calls;
mod door;
mod doorkeeper;
mod judging;
mod proof;
mod wire;
mod wires;

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
use weft_proto::ids::{Epoch, HostId, Instant, Ordinal, PoolId, Rid};
use weft_proto::log::ReplicaKey;
use weft_proto::message::{Ask, Claim, Refusal, Request, Response, Watermark};
use weft_proto::replica::AttachmentId;
use weft_proto::wire::{
    EncodedFrame, FrameError, FrameKind, Hello, PoolLog, Version, decode_hello, decode_request,
    decode_response, encode_hello, encode_request, encode_response, negotiate,
};

use crate::clock::random_u128;
use crate::errors::{Code, Failure};
use crate::seat::Seat;
use crate::tokens::Part;
use crate::trust::transport_kind;

use calls::Call;
use doorkeeper::{Doorkeeper, Visit};
use judging::is_wanted;
use proof::{Proof, host_of, refusal_of};
use wire::{Attached, Content, Handles, Role, Wire, broken, content_of, hello_frame, next_space};

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
/// Set in the handles of attachments that read snapshots: of those a host may have several at one replica, and each ends
/// when it is given up. A session's ends when the host's next session of the volume attaches.
const READER: u32 = 1 << 31;
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
        /// Whose.
        seat: Seat,
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

    /// Sends a session's request. Dropped when the connection is down, which the session is told by
    /// [`LinksOut::Down`].
    pub fn send(
        &mut self,
        driver: &mut impl Driver,
        host: HostId,
        seat: Seat,
        rid: Rid,
        ordinal: Ordinal,
        request: &Request<IoBuf>,
    ) {
        let Some(call) = self.calls.get_mut(&host).filter(|c| c.state == LinkState::Connected) else {
            return;
        };
        let handle = match call.handles.get(&(seat, rid)) {
            Some((known, handle)) if *known == ordinal => *handle,
            before => {
                if let Some((_, old)) = before {
                    call.by_handle.remove(old);
                }
                let handle = call.next_handle(seat);
                call.handles.insert((seat, rid), (ordinal, handle));
                call.by_handle.insert(handle, (seat, rid, ordinal));
                handle
            }
        };
        let Some(id) = call.wire else { return };
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let Some(version) = wire.version else { return };
        wire.queue(encode_request(version, handle, request));
        wire.drive(driver);
    }

    /// An attachment is of no use any more. A session's is followed by that of the next session; a reader's is given up.
    pub fn forget(&mut self, driver: &mut impl Driver, host: HostId, seat: Seat, rid: Rid) {
        let Some(call) = self.calls.get_mut(&host) else { return };
        let Some((_, handle)) = call.handles.remove(&(seat, rid)) else { return };
        call.by_handle.remove(&handle);
        let wire = call.wire.and_then(|id| self.wires.get_mut(&id));
        if let (Seat::Reader(_) | Seat::Comparison(_) | Seat::Fetch(_), Some(wire)) = (seat, wire)
            && let Some(version) = wire.version
        {
            let detach = Request { tag: 0, epoch: Epoch(0), ask: Ask::Detach };
            wire.queue(encode_request(version, handle, &detach));
            wire.drive(driver);
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
}

#[cfg(test)]
mod tests;
