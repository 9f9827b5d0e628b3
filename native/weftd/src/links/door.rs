//! Others call: who is let in to prove itself.
//!
//! Must always hold: who is not proven holds one of few places, for a short time ([`Doorkeeper`]).

use super::*;

impl Links {
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

    pub(super) fn accept(&mut self, driver: &mut impl Driver) {
        // Those that are to prove themselves are bounded at the door.
        let counts =
            |w: &&Wire| matches!(&w.role, Role::Called { peer, .. } if peer.is_some() || !w.is_secured);
        let called = self.wires.values().filter(counts).count();
        if let Some(listener) = self.listener.as_ref().filter(|_| !self.accepting && called < PEERS_MAX) {
            self.accepting = true;
            driver.submit(Part::Link.token(ACCEPT, 0), Op::Accept { listener: listener.clone() });
        }
    }

    pub(super) fn handle_accepted(&mut self, driver: &mut impl Driver, now: Instant, done: Completion) {
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

    pub(super) fn take_called(
        &mut self,
        driver: &mut impl Driver,
        now: Instant,
        socket: Fd,
    ) -> io::Result<()> {
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

    /// What new connections prove themselves by; none: they speak in the clear.
    pub(super) fn proving(&self) -> Option<&Secured> {
        self.secured.as_ref().filter(|secured| !CLEAR || secured.trust.get().transport != Transport::Clear)
    }
}
