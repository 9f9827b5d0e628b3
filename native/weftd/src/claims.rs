//! What other hosts say that they have seen of the store (protocol.md R11).
//!
//! Must always hold:
//! * nothing of it becomes this host's own watermark, or is told to others as that: a host with a valid identity that lies
//!   must not stop the cluster for longer than until it is revoked (`weft-model`, cases claims-adopted and -relayed);
//! * one claim a host, its last word; gone when its host says less, is not on the trust list any more, or this host has
//!   seen as much itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_control::types::{Decimal, StoreClaim};
use weft_proto::ids::{ClusterId, HostId};
use weft_proto::message::{Claim, Watermark};

use crate::errors::Failure;
use crate::state::StateDir;

/// Where they are kept in the state directory.
pub const CLAIMS_FILE: &str = "watermark-claims.json";

/// One of them, in that file.
#[derive(Debug, Deserialize, Serialize)]
struct KeptClaim {
    host: HostId,
    cluster: ClusterId,
    incarnation: Decimal,
    revision: Decimal,
}

/// The claims above this host's own watermark.
#[derive(Debug, Default)]
pub struct Claims(BTreeMap<HostId, Watermark>);

impl Claims {
    /// As kept by the last process. A damaged file is refused, as that of the watermark is.
    pub fn read(state: &StateDir) -> Result<Claims, Failure> {
        let kept: Option<Vec<KeptClaim>> = state.read_json(CLAIMS_FILE)?;
        let claim = |kept: KeptClaim| {
            let (incarnation, revision) = (kept.incarnation.0, kept.revision.0);
            (kept.host, Watermark { cluster: kept.cluster, incarnation, revision })
        };
        Ok(Claims(kept.unwrap_or_default().into_iter().map(claim).collect()))
    }

    /// What a host, proven to be it, says now; `own`: this host's own watermark. True if anything changed.
    pub fn hear(&mut self, host: HostId, says: Watermark, own: Watermark) -> bool {
        if says.cluster == own.cluster && says > own {
            self.0.insert(host, says) != Some(says)
        } else {
            self.0.remove(&host).is_some()
        }
    }

    /// This host has read the store. True if anything changed.
    pub fn handle_own(&mut self, own: Watermark) -> bool {
        let before = self.0.len();
        self.0.retain(|_, says| *says > own);
        self.0.len() != before
    }

    /// Nothing that others have said counts than hosts that are listed. True if anything changed.
    pub fn handle_trust(&mut self, is_listed: impl Fn(HostId) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|host, _| is_listed(*host));
        self.0.len() != before
    }

    /// The highest one.
    #[must_use]
    pub fn highest(&self) -> Option<Claim> {
        let claim = |(host, watermark): (&HostId, &Watermark)| Claim {
            watermark: *watermark,
            host: *host,
            relayed: false,
        };
        self.0.iter().map(claim).max()
    }

    /// For people.
    #[must_use]
    pub fn shown(&self) -> Vec<StoreClaim> {
        let claim = |(host, w): (&HostId, &Watermark)| StoreClaim {
            host: *host,
            incarnation: Decimal(w.incarnation),
            revision: Decimal(w.revision),
        };
        self.0.iter().map(claim).collect()
    }

    /// The file's content.
    #[must_use]
    pub fn kept(&self) -> Value {
        let kept = self.0.iter().map(|(host, w)| KeptClaim {
            host: *host,
            cluster: w.cluster,
            incarnation: Decimal(w.incarnation),
            revision: Decimal(w.revision),
        });
        json!(kept.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIAR: HostId = HostId(8);
    const HONEST: HostId = HostId(7);

    fn mark(incarnation: u64, revision: u64) -> Watermark {
        Watermark { cluster: ClusterId(1), incarnation, revision }
    }

    #[test]
    fn a_claim_ends_when_its_host_says_less_is_not_listed_or_was_right() {
        let mut claims = Claims::default();
        assert!(!claims.hear(HONEST, mark(1, 5), mark(1, 9)), "seen already");
        assert!(claims.hear(HONEST, mark(1, 12), mark(1, 9)));
        assert!(claims.hear(LIAR, mark(u64::MAX, 0), mark(1, 9)));
        assert_eq!(claims.highest().map(|c| c.host), Some(LIAR));
        assert!(claims.hear(LIAR, mark(1, 3), mark(1, 9)), "its last word counts");
        assert_eq!(claims.highest(), Some(Claim { watermark: mark(1, 12), host: HONEST, relayed: false }));
        assert!(claims.handle_own(mark(1, 12)) && claims.highest().is_none());
        assert!(claims.hear(LIAR, mark(2, 0), mark(1, 12)) && !claims.handle_trust(|_| true));
        assert!(claims.handle_trust(|host| host == HONEST));
        assert!(claims.highest().is_none());
        let other = Watermark { cluster: ClusterId(2), ..mark(9, 9) };
        assert!(!claims.hear(LIAR, other, mark(1, 12)), "of another cluster's store");
    }

    #[test]
    fn claims_survive_the_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(dir.path()).expect("opens");
        let mut claims = Claims::read(&state).expect("none yet");
        assert!(claims.hear(HONEST, mark(3, u64::MAX), mark(1, 1)));
        state.write_json(CLAIMS_FILE, &claims.kept()).expect("written");
        assert_eq!(Claims::read(&state).expect("read").highest(), claims.highest());
        std::fs::write(dir.path().join(CLAIMS_FILE), "[{").expect("damaged");
        assert!(Claims::read(&state).is_err());
    }
}
