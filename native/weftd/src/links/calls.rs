//! Hosts that sessions here want to reach: each is called, called again when its connection ends, and by another connection
//! while the one before still stands.
//!
//! Must always hold: a host has one connection that requests go by; the one that follows it takes its place whole.

use super::*;

/// A host that sessions here want to reach.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) state: LinkState,
    pub(super) since: Instant,
    pub(super) reason: Option<String>,
    /// The reason's, where it has one.
    pub(super) code: Option<Code>,
    /// The connection, once there is a socket.
    pub(super) wire: Option<u16>,
    /// When to try again, or to give a try up.
    pub(super) due: Option<Instant>,
    /// The one that is to follow it, and when to give that up.
    pub(super) next: Option<(u16, Instant)>,
    /// When to begin the next one.
    pub(super) renew: Option<Instant>,
    /// Connections in a row that were up for less than [`BRIEF_MS`].
    pub(super) brief: u32,
    pub(super) handles: BTreeMap<(Seat, Rid), (Ordinal, u32)>,
    pub(super) by_handle: BTreeMap<u32, (Seat, Rid, Ordinal)>,
    pub(super) next_handle: u32,
}

impl Call {
    /// Nothing was tried yet.
    pub(super) fn new(now: Instant) -> Call {
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

impl Call {
    pub(super) fn next_handle(&mut self, seat: Seat) -> u32 {
        let number = self.next_handle;
        self.next_handle = (number + 1) % READER;
        match seat {
            Seat::Session(_) => number,
            Seat::Reader(_) | Seat::Comparison(_) | Seat::Fetch(_) => number | READER,
        }
    }
}

impl Links {
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

    /// The wires of calls that are up.
    pub(super) fn callers(&self) -> Vec<(HostId, u16)> {
        let up = self.calls.iter().filter(|(_, call)| call.state == LinkState::Connected);
        up.filter_map(|(host, call)| Some((*host, call.wire?))).collect()
    }

    /// Begins the next connection to a host at some moment within so many milliseconds: not all at once.
    pub(super) fn renew_within(&mut self, now: Instant, host: HostId, ms: u64) {
        let ms = u64::try_from(random_u128() % (u128::from(ms) + 1)).unwrap_or(ms);
        if let Some(call) = self.calls.get_mut(&host) {
            let at = now.after_ms(ms);
            call.renew = Some(call.renew.map_or(at, |due| due.min(at)));
        }
    }

    /// The connection that is to follow another one: begun when it is time, and given up when it takes too long.
    pub(super) fn follow(&mut self, driver: &mut impl Driver, now: Instant, host: HostId) {
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

    pub(super) fn connect(&mut self, driver: &mut impl Driver, now: Instant, host: HostId) {
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

    pub(super) fn begin(
        &mut self,
        driver: &mut impl Driver,
        host: HostId,
        address: IpAddr,
    ) -> io::Result<u16> {
        let socket = tcp::connect(SocketAddr::new(address, DATA_PORT), self.own)?;
        let op = Op::PollWrite { fd: socket.clone() };
        let id = self.add_wire(socket, address, Role::Caller(host), None)?;
        driver.submit(Part::Link.token(CONNECT, u64::from(id)), op);
        Ok(id)
    }

    pub(super) fn handle_connected(&mut self, driver: &mut impl Driver, now: Instant, id: u16) {
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

    pub(super) fn not_connected(&mut self, now: Instant, host: HostId, error: Errno) {
        let refused = io::Error::from(error).kind() == io::ErrorKind::ConnectionRefused;
        let state = if refused { LinkState::Refused } else { LinkState::Silent };
        self.end_call(now, host, state, Some((Code::WAITING, error.to_string())), refused);
    }

    /// The connection to a host is not, or is no longer, there.
    pub(super) fn end_call(
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

    /// The keys of a connection have had half of their records: who made it makes the next one. Asked for once; what
    /// comes of it is seen to as for any other.
    pub(super) fn follow_worn(&mut self, now: Instant, id: u16) {
        let Some(wire) = self.wires.get_mut(&id).filter(|wire| !wire.is_worn) else { return };
        wire.is_worn = true;
        let Role::Caller(host) = wire.role else { return };
        if self.calls.get(&host).is_some_and(|call| call.wire == Some(id)) {
            self.renew_within(now, host, WORN_MS);
        }
    }

    /// A call is up, or is followed by the next connection: then its sessions attach anew, over that one.
    pub(super) fn call_agreed(&mut self, now: Instant, id: u16, host: HostId, version: Version) {
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
}
