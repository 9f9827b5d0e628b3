//! Who this host is and whom it trusts: what lies in the identity directory, and the list that the store has.
//!
//! ```text
//! STATE/identity/host.pem    written by the agent, read at start and whenever it says so
//! STATE/identity/trust.json  written by the agent at init or join; from then on by the daemon alone
//! ```
//!
//! Must always hold:
//! * a list that is not acceptable changes nothing but what is told about it;
//! * an accepted list is obeyed at once: a revocation does not wait for a disk. It is told of when it is durable, so
//!   that whoever counts on it may be killed;
//! * what a list says is decided here without asking anybody: a host that is cut off can still judge.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use weft_control::types::{Decimal, Finding, IdentityReloaded, IdentityShown, PeerShown, TransportKind};
use weft_io::identity::{HOST_PEM, Identity, Transport, Trust, TrustCell, TrustError};
use weft_io::tls::TlsConfigs;
use weft_proto::ids::{ClusterId, HostId, Instant};
use zeroize::Zeroizing;

use crate::errors::{Code, Failure};
use crate::links::Secured;
use crate::state::StateDir;
use crate::store::StoreCredentials;

/// Where the list stands in the store.
pub const TRUST_KEY: &str = "/weft/v1/trust";
/// The identity directory, in the state directory.
pub const IDENTITY_DIR: &str = "identity";
/// The list that this host keeps, in the identity directory.
pub const TRUST_FILE: &str = "trust.json";
/// Before a list that could not be made durable is written again.
const RETRY_MS: u64 = 1000;

/// What the identity directory holds.
pub struct IdentityFiles {
    identity: Identity,
    pem: Zeroizing<Vec<u8>>,
    trust: Trust,
}

/// A key is never shown.
impl fmt::Debug for IdentityFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IdentityFiles").field(&self.identity).finish()
    }
}

impl IdentityFiles {
    /// Reads them; none where the host has neither certificate nor list. One without the other, a damaged file, or one
    /// of another host is refused. Blocks.
    pub fn read(
        state: &StateDir,
        cluster: ClusterId,
        host: HostId,
    ) -> Result<Option<IdentityFiles>, Failure> {
        let dir = state.path().join(IDENTITY_DIR);
        let (certificate, list) = (dir.join(HOST_PEM), dir.join(TRUST_FILE));
        let pem = there(Identity::read_pem(&dir)).map_err(|e| unusable(&certificate, e))?;
        let signed = there(std::fs::read(&list)).map_err(|e| unusable(&list, e))?;
        let (pem, signed) = match (pem, signed) {
            (None, None) => return Ok(None),
            (Some(pem), Some(signed)) => (pem, signed),
            (None, _) => return Err(unusable(&certificate, format!("{TRUST_FILE} is there and it is not"))),
            (_, None) => return Err(unusable(&list, format!("{HOST_PEM} is there and it is not"))),
        };
        let identity = Identity::from_pem(&pem).map_err(|e| unusable(&certificate, e))?;
        if (identity.cluster(), identity.host()) != (cluster, host) {
            let (its_host, its_cluster) = (identity.host(), identity.cluster());
            let message = format!("it is of host {its_host} of cluster {its_cluster}");
            return Err(unusable(&certificate, message));
        }
        let trust = Trust::open_first(&signed, cluster).map_err(|e| unusable(&list, e))?;
        Ok(Some(IdentityFiles { identity, pem, trust }))
    }
}

fn there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn unusable(path: &Path, why: impl fmt::Display) -> Failure {
    Failure::new(Code::STATE_FILE, format!("can't use {}: {why}", path.display()))
        .with("path", path.display().to_string())
        .with("cause", why.to_string())
}

/// What an accepted list changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustChange {
    /// Its generation.
    pub generation: u64,
    /// The list as it was signed: to be made durable.
    pub signed: Vec<u8>,
}

/// This host's identity and the list in force.
#[derive(Debug)]
pub struct TrustKeeper {
    identity: Identity,
    pem: Zeroizing<Vec<u8>>,
    cell: Arc<TrustCell>,
    /// Why what the store has is not followed.
    refused: Option<Failure>,
    /// The list in force, while it is not durable yet.
    unkept: Option<Unkept>,
}

#[derive(Debug)]
struct Unkept {
    generation: u64,
    signed: Vec<u8>,
    /// When to write it again; none while it is being written.
    due: Option<Instant>,
}

impl TrustKeeper {
    /// Begins with what the files hold.
    #[must_use]
    pub fn new(files: IdentityFiles) -> TrustKeeper {
        let IdentityFiles { identity, pem, trust } = files;
        let cell = Arc::new(TrustCell::new(trust));
        TrustKeeper { identity, pem, cell, refused: None, unkept: None }
    }

    /// A certificate was renewed. The list of the file is ours, but for a host that could not hear of the authorities that
    /// took over: then the agent has put a newer one there, which counts as it would at a start, and is durable. True when
    /// it is followed.
    pub fn renew(&mut self, files: IdentityFiles) -> bool {
        (self.identity, self.pem) = (files.identity, files.pem);
        let known = self.cell.get();
        if files.trust.generation <= known.generation {
            return false;
        }
        let generation = files.trust.generation;
        let revoked: Vec<HostId> = files.trust.revoked().filter(|host| !known.is_revoked(*host)).collect();
        tracing::info!(generation, ?revoked, "trust, by this host's file");
        self.cell.set(files.trust);
        (self.refused, self.unkept) = (None, None);
        true
    }

    /// The certificate in use.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The list in force, for those who judge by it.
    #[must_use]
    pub fn cell(&self) -> &Arc<TrustCell> {
        &self.cell
    }

    /// What every connection to another host begins with.
    #[must_use]
    pub fn secured(&self) -> Secured {
        Secured {
            configs: TlsConfigs::new(&self.identity, self.cell.clone()),
            trust: self.cell.clone(),
            not_after: self.identity.not_after(),
        }
    }

    /// What the store is shown and believed by.
    #[must_use]
    pub fn credentials(&self) -> StoreCredentials {
        StoreCredentials {
            authorities: self.cell.get().store_authorities().into_bytes(),
            certificate: self.pem.to_vec(),
            key: self.pem.to_vec(),
        }
    }

    /// What stands in the store now. An acceptable list is in force from here on and has to be made durable
    /// ([`TrustKeeper::handle_kept`]); none is returned when there is nothing new, or nothing acceptable.
    pub fn offer(&mut self, signed: Option<&[u8]>) -> Option<TrustChange> {
        let known = self.cell.get();
        let next = match signed {
            Some(signed) => known.advance(signed).map_err(|error| not_followed(&error, known.generation)),
            None => Err(missing(known.generation)),
        };
        let next = match next {
            Ok(next) => next,
            Err(failure) => {
                if self.refused.as_ref() != Some(&failure) {
                    tracing::error!(%failure, "trust");
                }
                self.refused = Some(failure);
                return None;
            }
        };
        self.refused = None;
        if next.generation == known.generation {
            return None;
        }
        let generation = next.generation;
        let revoked: Vec<HostId> = next.revoked().filter(|host| !known.is_revoked(*host)).collect();
        tracing::info!(generation, ?revoked, "trust");
        self.cell.set(next);
        let signed = signed.unwrap_or_default().to_vec();
        self.unkept = Some(Unkept { generation, signed: signed.clone(), due: None });
        Some(TrustChange { generation, signed })
    }

    /// A list was made durable, or was not. True when it is the one in force, which may be told of now.
    pub fn handle_kept(&mut self, now: Instant, generation: u64, result: Result<(), Failure>) -> bool {
        let Some(unkept) = self.unkept.as_mut().filter(|unkept| unkept.generation == generation) else {
            return false;
        };
        match result {
            Ok(()) => {
                self.unkept = None;
                true
            }
            Err(failure) => {
                tracing::error!(%failure, "the trust list is obeyed but not durable; tried again");
                unkept.due = Some(now.after_ms(RETRY_MS));
                false
            }
        }
    }

    /// When [`TrustKeeper::retry`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.unkept.as_ref()?.due
    }

    /// A list that is to be written once more: its generation and text.
    pub fn retry(&mut self, now: Instant) -> Option<(u64, Vec<u8>)> {
        let unkept = self.unkept.as_mut().filter(|unkept| unkept.due.is_some_and(|due| now >= due))?;
        unkept.due = None;
        Some((unkept.generation, unkept.signed.clone()))
    }

    /// What is wrong with what the store has, if anything is.
    #[must_use]
    pub fn finding(&self) -> Option<Finding> {
        let Failure { code, message, facts } = self.refused.clone()?;
        Some(Finding { code: code.to_string(), message, facts })
    }

    /// As `identity.reload` answers.
    #[must_use]
    pub fn reloaded(&self) -> IdentityReloaded {
        IdentityReloaded {
            host: self.identity.host(),
            not_after: Decimal(self.identity.not_after().0),
            generation: Decimal(self.cell.get().generation),
        }
    }

    /// As `identity.show` answers.
    #[must_use]
    pub fn shown(&self, peers: Vec<PeerShown>) -> IdentityShown {
        let trust = self.cell.get();
        IdentityShown {
            host: self.identity.host(),
            key: self.identity.kid().to_string(),
            not_after: Decimal(self.identity.not_after().0),
            generation: Decimal(trust.generation),
            durable: self.unkept.is_none(),
            transport: transport_kind(trust.transport),
            peers,
            findings: self.finding().into_iter().collect(),
        }
    }
}

/// As it crosses the control socket.
#[must_use]
pub fn transport_kind(transport: Transport) -> TransportKind {
    match transport {
        Transport::Tls => TransportKind::Tls,
        Transport::Auth => TransportKind::Auth,
        Transport::Clear => TransportKind::Clear,
    }
}

fn not_followed(error: &TrustError, known: u64) -> Failure {
    let (code, offered) = match error {
        TrustError::Older { offered, .. } => (Code::TRUST_OLDER, Some(*offered)),
        TrustError::Forked { generation } => (Code::TRUST_OLDER, Some(*generation)),
        _ => (Code::TRUST_REFUSED, None),
    };
    let failure = Failure::new(code, format!("{error}; generation {known} stays in force"));
    let failure = failure.with("generation", known.to_string());
    match offered {
        Some(offered) => failure.with("offered", offered.to_string()),
        None => failure,
    }
}

fn missing(known: u64) -> Failure {
    let message = format!("the store has no trust list; generation {known} stays in force");
    Failure::new(Code::TRUST_OLDER, message).with("generation", known.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const LIST: &[u8] = include_bytes!("../../weft-io/specimens/trust.json");
    const HOST: &[u8] = include_bytes!("../../weft-io/specimens/h1.pem");

    fn ids() -> (ClusterId, HostId) {
        let identity = Identity::from_pem(HOST).expect("a specimen");
        (identity.cluster(), identity.host())
    }

    fn put(state: &StateDir, name: &str, bytes: &[u8]) {
        let dir = state.path().join(IDENTITY_DIR);
        fs::create_dir_all(&dir).expect("made");
        fs::write(dir.join(name), bytes).expect("written");
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600)).expect("mode");
    }

    #[test]
    fn half_an_identity_or_another_hosts_is_refused_and_none_is_none() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state = StateDir::open(dir.path()).expect("free");
        let (cluster, host) = ids();
        let read = || IdentityFiles::read(&state, cluster, host);
        let refused = |what: &str| {
            let failure = read().expect_err(what);
            assert_eq!(failure.code, Code::STATE_FILE, "{what}");
            assert!(failure.message.contains(what), "{failure}");
        };
        assert!(read().expect("nothing is wrong").is_none());
        put(&state, TRUST_FILE, LIST);
        refused(HOST_PEM);
        put(&state, HOST_PEM, HOST);
        let files = read().expect("read").expect("there");
        assert!(!format!("{files:?}").contains("PRIVATE"), "{files:?}");
        assert_eq!(
            IdentityFiles::read(&state, cluster, HostId(7)).expect_err("of another host").code,
            Code::STATE_FILE
        );
        put(&state, TRUST_FILE, &LIST[..LIST.len() / 2]);
        refused(TRUST_FILE);
        fs::remove_file(dir.path().join(IDENTITY_DIR).join(TRUST_FILE)).expect("removed");
        refused(TRUST_FILE);
        put(&state, TRUST_FILE, LIST);
        let open = fs::Permissions::from_mode(0o644);
        fs::set_permissions(dir.path().join(IDENTITY_DIR).join(HOST_PEM), open).expect("mode");
        refused("0644");
    }

    #[test]
    fn what_the_store_lacks_or_spoils_is_told_and_not_followed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let state = StateDir::open(dir.path()).expect("free");
        put(&state, TRUST_FILE, LIST);
        put(&state, HOST_PEM, HOST);
        let (cluster, host) = ids();
        let files = IdentityFiles::read(&state, cluster, host).expect("read").expect("there");
        let mut keeper = TrustKeeper::new(files);
        let code = |keeper: &TrustKeeper| keeper.finding().map(|finding| finding.code);
        assert_eq!((keeper.offer(Some(LIST)), code(&keeper)), (None, None), "the same");
        assert_eq!(keeper.offer(None), None);
        assert_eq!(code(&keeper).as_deref(), Some("E-TRUST-02"));
        assert_eq!(keeper.offer(Some(b"{}")), None);
        assert_eq!(code(&keeper).as_deref(), Some("E-TRUST-01"));
        assert_eq!((keeper.offer(Some(LIST)), code(&keeper)), (None, None), "it is there again");
        assert_eq!(keeper.shown(Vec::new()).generation, Decimal(17));
        assert!(keeper.shown(Vec::new()).durable && keeper.poll_timeout().is_none());
    }
}
