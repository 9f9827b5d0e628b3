//! One connection: its stream, its part, and the frames that it carries.

use super::*;

#[derive(Debug)]
pub(super) struct Wire {
    pub(super) conn: Conn,
    pub(super) role: Role,
    /// The how manyth it is.
    pub(super) number: u64,
    /// The peer's.
    pub(super) address: IpAddr,
    /// Its first bytes are a handshake.
    pub(super) is_secured: bool,
    /// Another one was asked for, because its keys wear out.
    pub(super) is_worn: bool,
    pub(super) proof: Option<Proof>,
    /// Until it is agreed, if others called.
    pub(super) visit: Option<Visit>,
    /// Agreed by HELLO.
    pub(super) version: Option<Version>,
}

#[derive(Debug)]
pub(super) enum Role {
    /// We called this host.
    Caller(HostId),
    /// Somebody called us.
    Called { peer: Option<HostId>, handles: Handles, until: Instant },
    /// Its handshake has failed: the alert is on its way, and nothing more comes of it.
    Leaving { until: Instant },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Attached {
    pub(super) attachment: AttachmentId,
    pub(super) pool: PoolId,
    pub(super) key: ReplicaKey,
}

/// What a peer is attached to over one connection.
#[derive(Debug, Default)]
pub(super) struct Handles {
    pub(super) by_handle: BTreeMap<u32, Attached>,
    /// One a replica: a host has one session of a volume. Readers are not in it.
    pub(super) by_replica: BTreeMap<(PoolId, ReplicaKey), u32>,
}

impl Handles {
    /// The attachment to the same replica that this one follows, which nobody asks anything of any more.
    pub(super) fn insert(&mut self, handle: u32, attached: Attached) -> Option<Attached> {
        let before = match handle & READER {
            0 => self.by_replica.insert((attached.pool, attached.key), handle),
            _ => None,
        };
        let before = before.and_then(|before| self.by_handle.remove(&before));
        self.by_handle.insert(handle, attached);
        before
    }

    /// Nobody asks anything of it any more.
    pub(super) fn remove(&mut self, handle: u32) {
        if let Some(Attached { pool, key, .. }) = self.by_handle.remove(&handle)
            && self.by_replica.get(&(pool, key)) == Some(&handle)
        {
            self.by_replica.remove(&(pool, key));
        }
    }
}

impl Wire {
    /// Who is at the other end, as far as it is known.
    pub(super) fn host(&self) -> Option<HostId> {
        match (&self.proof, &self.role) {
            (Some(proof), _) => Some(proof.peer.host),
            (None, Role::Caller(host)) => Some(*host),
            (None, Role::Called { peer, .. }) => *peer,
            (None, Role::Leaving { .. }) => None,
        }
    }

    /// When it is given up.
    pub(super) fn until(&self) -> Option<Instant> {
        match &self.role {
            Role::Called { peer: None, until, .. } | Role::Leaving { until } => Some(*until),
            Role::Called { .. } | Role::Caller(_) => None,
        }
    }

    pub(super) fn agree(&mut self, version: Version) {
        self.version = Some(version);
        self.conn.set_version(version);
    }

    /// A peer that doesn't read its answers is not listened to until it does; our own requests are bounded by the
    /// sessions.
    pub(super) fn queue(&mut self, frame: EncodedFrame<IoBuf>) {
        if self.conn.queue(frame) == Pressure::Stop && matches!(self.role, Role::Called { .. }) {
            self.conn.pause(true);
        }
    }

    /// Gives the driver what the connection wants from it.
    pub(super) fn drive(&mut self, driver: &mut impl Driver) {
        if self.conn.is_writable() {
            self.conn.pause(false);
        }
        while let Some((token, op)) = self.conn.poll_op() {
            driver.submit(token, op);
        }
    }
}

pub(super) enum Content {
    Hello(Hello),
    Request(u32, Request<IoBuf>),
    Response(u32, Response<IoBuf>),
}

/// Why no frame came, as it is told.
pub(super) fn broken(error: &ConnError) -> Failure {
    let code = match error {
        ConnError::Mac(_) => Code::FRAME_MAC,
        ConnError::Frame(_) | ConnError::RefusedUs | ConnError::Tls(_) => Code::PEER_UNKNOWN,
    };
    match error {
        ConnError::Tls(error) => refusal_of(error),
        _ => Failure::new(code, error.to_string()),
    }
}

pub(super) fn content_of(frame: tcp::Frame) -> Result<Content, FrameError> {
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

pub(super) fn hello_frame(hello: &Hello) -> EncodedFrame<IoBuf> {
    EncodedFrame { head: encode_hello(hello), data: Vec::new() }
}

pub(super) fn next_space(id: u16) -> u16 {
    if id == *WIRE_SPACES.end() { *WIRE_SPACES.start() } else { id + 1 }
}
