//! Who may stay: what a handshake has proven, and what another trust list changes.
//!
//! Must always hold: a host that the list in force does not name has no connection, nor one under way.

use super::*;

impl Links {
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
    pub(super) fn refuse_host(&mut self, now: Instant, host: HostId) {
        let reason = format!("host {host} is not trusted any more");
        self.end_call(now, host, LinkState::Mismatch, Some((Code::PEER_REVOKED, reason)), true);
    }

    /// The peer of this connection is proven: it may say HELLO now, if the list still names it.
    pub(super) fn prove(&mut self, now: Instant, id: u16, proven: Proven) -> Result<(), Failure> {
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
    pub(super) fn refuse(&mut self, driver: &mut impl Driver, now: Instant, id: u16, failure: Failure) {
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
    pub(super) fn report(&mut self, now: Instant, address: IpAddr, host: Option<HostId>, failure: &Failure) {
        let Some(unsaid) = self.door.say(now) else { return };
        let host = host.or_else(|| host_of(failure));
        let Failure { code, message, facts } = failure.clone();
        tracing::warn!(%address, host = host.map(|h| h.to_string()), %code, message, unsaid, "peer refused");
        let (address, code, reason) = (address.to_string(), code.to_string(), message);
        self.out.push_back(LinksOut::Refused(PeerRefused { address, host, code, reason, facts, unsaid }));
    }
}

/// May a connection of this proof stay, by this list? What its key may is asked elsewhere.
pub(super) fn is_wanted(trust: &Trust, proof: &Proof) -> bool {
    trust.has_authority(proof.peer.issuer)
        && (proof.mode == Transport::Tls || trust.transport == Transport::Auth)
}
