//! Connections by their number: what arrives on them, and what their end takes along.
//!
//! Must always hold: the first frame is HELLO; a peer that breaks the protocol loses its connection and nothing else.

use super::*;

impl Links {
    pub(super) fn add_wire(
        &mut self,
        socket: Fd,
        address: IpAddr,
        role: Role,
        visit: Option<Visit>,
    ) -> io::Result<u16> {
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

    pub(super) fn handle_stream(&mut self, driver: &mut impl Driver, now: Instant, done: Completion) {
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

    pub(super) fn take_frame(&mut self, now: Instant, id: u16, content: Content) -> Result<(), Failure> {
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
                if let Some((seat, rid, ordinal)) = asked {
                    self.out.push_back(LinksOut::Response { seat, rid, ordinal, response });
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
                    Some(Attached { attachment, pool, key })
                        if handle & READER != 0 && matches!(request.ask, Ask::Detach) =>
                    {
                        handles.remove(handle);
                        self.attachments.remove(&attachment);
                        self.out.push_back(LinksOut::Gone { attachment, pool, key });
                    }
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

    /// R10: a pool whose log is behind what this host has seen of it was rolled back.
    pub(super) fn pool_went_back(&mut self, theirs: &Hello) -> Option<String> {
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
    pub(super) fn lose(&mut self, driver: &mut impl Driver, now: Instant, id: u16, why: Option<Failure>) {
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
    pub(super) fn lapse(&mut self, id: u16) {
        if self.wires.get(&id).is_some_and(|wire| wire.conn.ended().is_some()) {
            self.drop_wire(id);
        }
    }

    /// A host that has too many connections loses the oldest.
    pub(super) fn drop_oldest_of(&mut self, host: HostId) {
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

    pub(super) fn drop_wire(&mut self, id: u16) {
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
