//! What a handshake has proven, for how long that holds, and how a refusal is told.

use std::sync::Arc;

use serde_json::Value;
use weft_io::identity::{Peer, PeerRefusal, Transport, TrustCell, WallTime};
use weft_io::tls::{HandshakeError, Proven, TlsConfigs};
use weft_proto::ids::{HostId, Instant};

use crate::errors::{Code, Failure};

/// A connection is followed by the next one so long before its proof ends, or at half of a shorter life.
const AHEAD_MS: u64 = 3_600_000;
/// When a connection is not as the trust list wants it: its peer may not have that list yet.
const ASK_AGAIN_MS: u64 = 30_000;
/// Certificates that are valid for longer are believed for so long: the clock counts nanoseconds.
const LIFE_MAX_MS: u64 = 10 * 366 * 86_400_000;

/// What a host with an identity begins each connection with.
#[derive(Debug)]
pub struct Secured {
    /// Its identity, and the list that judges.
    pub configs: TlsConfigs,
    /// The list in force.
    pub trust: Arc<TrustCell>,
    /// The last second at which its own certificate is valid.
    pub not_after: WallTime,
}

/// A proven peer.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) peer: Peer,
    pub(super) mode: Transport,
    /// When the connection is cut: decided once, by a clock that nobody sets.
    pub(super) cut: Instant,
    /// When either certificate ends.
    ends: Instant,
}

impl Proof {
    /// Of a handshake that was over at `now`, when the clock on the wall showed `wall`; `own`: the end of our own
    /// certificate.
    pub(super) fn new(now: Instant, wall: WallTime, proven: Proven, own: WallTime) -> Proof {
        let left = |not_after: WallTime| {
            let seconds = (not_after.0.saturating_add(1)).saturating_sub(wall.0);
            now.after_ms(seconds.saturating_mul(1000).min(LIFE_MAX_MS))
        };
        let cut = left(proven.peer.not_after);
        Proof { peer: proven.peer, mode: proven.mode, cut, ends: cut.min(left(own)) }
    }

    /// When the caller begins the next connection.
    pub(super) fn renew(&self, now: Instant, wants_auth: bool) -> Instant {
        let left = self.ends.ms_since(now);
        let in_ms = if left > 2 * AHEAD_MS { left - AHEAD_MS } else { (left / 2).max(1000) };
        let asks_again = wants_auth && self.mode == Transport::Tls;
        now.after_ms(if asks_again { in_ms.min(ASK_AGAIN_MS) } else { in_ms })
    }
}

/// Why there is no connection, as it is told to people: for a certificate's time with both clocks.
pub(super) fn refusal_of(error: &HandshakeError) -> Failure {
    let HandshakeError::Refused(refusal) = error else {
        let message = error.to_string();
        // How rustls names the alert no_application_protocol, and the reason to send it.
        let is_transport = ["NoApplicationProtocol", "known protocol", "no protocol"]
            .iter()
            .any(|words| message.contains(words));
        return Failure::new(if is_transport { Code::OTHER_TRANSPORT } else { Code::PEER_UNKNOWN }, message);
    };
    let about =
        |code: Code, host: &HostId| Failure::new(code, refusal.to_string()).with("host", host.to_string());
    match refusal {
        PeerRefusal::Stranger | PeerRefusal::OtherCluster | PeerRefusal::BadChain => {
            Failure::new(Code::PEER_UNKNOWN, refusal.to_string())
        }
        PeerRefusal::NotListed => Failure::new(Code::PEER_NOT_LISTED, refusal.to_string()),
        PeerRefusal::Revoked { host, at } => about(Code::PEER_REVOKED, host).with("at", at.clone()),
        PeerRefusal::Expired { host, at, now } => {
            about(Code::PEER_EXPIRED, host).with("not_after", at.to_string()).with("now", now.to_string())
        }
        PeerRefusal::NotYetValid { host, at, now } => {
            about(Code::CLOCKS_DIFFER, host).with("not_before", at.to_string()).with("now", now.to_string())
        }
    }
}

/// The host that a refusal is about, where the certificate named one.
pub(super) fn host_of(failure: &Failure) -> Option<HostId> {
    failure.facts.get("host").and_then(Value::as_str)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use weft_io::identity::Kid;

    use super::*;

    const WALL: WallTime = WallTime(1_795_262_400);
    const NOW: Instant = Instant(5_000_000_000);

    fn proof(peer: u64, own: u64) -> Proof {
        let peer = Peer {
            host: HostId(7),
            kid: Kid([1; 32]),
            issuer: Kid([2; 32]),
            not_after: WallTime(WALL.0 + peer),
        };
        Proof::new(NOW, WALL, Proven { peer, mode: Transport::Tls }, WallTime(WALL.0 + own))
    }

    #[test]
    fn a_connection_is_cut_when_the_peers_certificate_ends_and_followed_before_either_does() {
        let month = 30 * 86_400;
        let both = proof(month, month);
        assert_eq!(both.cut, NOW.after_ms((month + 1) * 1000));
        assert_eq!(both.renew(NOW, false), NOW.after_ms((month + 1) * 1000 - AHEAD_MS));
        assert_eq!(both.renew(NOW, true), NOW.after_ms(ASK_AGAIN_MS), "the peer may take auth later");
        let ours_first = proof(month, 59);
        assert_eq!(ours_first.cut, both.cut, "ours is the peer's to cut");
        assert_eq!(ours_first.renew(NOW, false), NOW.after_ms(30_000));
    }

    #[test]
    fn no_end_of_a_certificate_is_too_near_or_too_far() {
        let last = proof(0, 0);
        assert_eq!((last.cut, last.renew(NOW, false)), (NOW.after_ms(1000), NOW.after_ms(1000)));
        let for_ever = proof(u64::MAX - WALL.0, u64::MAX - WALL.0);
        assert_eq!(for_ever.cut, NOW.after_ms(LIFE_MAX_MS));
    }

    #[test]
    fn a_refusal_by_the_clock_tells_both_times() {
        let refusal = PeerRefusal::Expired { host: HostId(7), at: WallTime(WALL.0 - 1), now: WALL };
        let failure = refusal_of(&HandshakeError::Refused(refusal));
        assert_eq!((failure.code, host_of(&failure)), (Code::PEER_EXPIRED, Some(HostId(7))));
        for text in ["2026-11-21T11:59:59Z", "2026-11-21T12:00:00Z"] {
            assert!(failure.message.contains(text), "{failure}");
        }
        assert_eq!(failure.facts["not_after"], "2026-11-21T11:59:59Z");
        assert_eq!(failure.facts["now"], "2026-11-21T12:00:00Z");
        let silent = refusal_of(&HandshakeError::TooLong);
        assert_eq!((silent.code, host_of(&silent)), (Code::PEER_UNKNOWN, None));
    }
}
