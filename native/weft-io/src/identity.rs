//! Who this host is, whom it trusts, and whether a peer is who it says.
//!
//! Everything comes from files and bytes that were handed in: the host's combined PEM, and the signed trust list that the
//! store and every host keep. Nobody asks the store here, so that a host that is cut off can still judge.
//!
//! **A peer is proven by all of**: TLS's proof of key; a certificate that parses, with exactly one name of the form
//! `weft://CLUSTER/host/HOST`; our cluster in it; a key that is on the list for that host; a host and key that are not
//! revoked; one step to an authority of the list; both directions of use; the clock within its validity.
//! [`Trust::judge`] checks all but the first, in this order, and the first that does not hold names the refusal:
//! parses ([`PeerRefusal::BadChain`]) · name ([`PeerRefusal::Stranger`]) · cluster ([`PeerRefusal::OtherCluster`]) · key not
//! revoked ([`PeerRefusal::Revoked`]) · purpose ([`PeerRefusal::BadChain`]) · authority ([`PeerRefusal::Stranger`]) · host not
//! revoked · key listed ([`PeerRefusal::NotListed`]) · validity. The order is the same in every language that judges;
//! `specimens/peers` holds both to it.
//!
//! Must always hold:
//! * a list is followed only if an authority of the list before it signed it, and never back to a lower generation;
//! * a chain alone never suffices: who stole an authority's key can sign, but is not on the list;
//! * keys are never printed, and what was read from a file is wiped.

use core::fmt;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};
use serde::Deserialize;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter};
use weft_proto::ids::{ClusterId, HostId};
use zeroize::{Zeroize, Zeroizing};

/// Longest signed list that is looked at. 512 hosts need a quarter of it.
pub const MAX_SIGNED: usize = 1 << 20;
/// Most authorities in a list: two during a rotation, and room.
pub const MAX_AUTHORITIES: usize = 8;
/// Most certificates in a peer's chain; one and its authority are sent.
pub const MAX_CHAIN: usize = 4;
/// The file in the identity directory: leaf, its authority, the key.
pub const HOST_PEM: &str = "host.pem";

const LIST_KIND: &str = "weft trust v1\0";
const EKU_SERVER: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const EKU_CLIENT: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// A time of the wall clock: whole seconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub u64);

impl WallTime {
    /// What this host's clock says.
    #[must_use]
    pub fn now() -> WallTime {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        WallTime(since.map_or(0, |since| since.as_secs()))
    }

    pub(crate) fn unix(self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(self.0))
    }
}

/// ISO 8601, UTC: `2026-11-21T12:00:00Z`.
impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut days, seconds) = (self.0 / 86_400, self.0 % 86_400);
        // 400 years always have as many days; from there on by years, then by months.
        let mut year = 1970 + 400 * (days / 146_097);
        days %= 146_097;
        let is_leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        while days >= 365 + u64::from(is_leap(year)) {
            days -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let mut month = 1;
        for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
    }
}

/// A key by the SHA-256 of its SPKI (DER); shown as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kid(pub [u8; 32]);

impl Kid {
    fn of(spki: &[u8]) -> Kid {
        let digest = ring::digest::digest(&ring::digest::SHA256, spki);
        Kid(*digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
    }

    /// From exactly 64 lower-case digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Kid> {
        let digits = text.as_bytes().as_chunks::<2>();
        let lower = text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
        if text.len() != 64 || !lower {
            return None;
        }
        let mut kid = [0; 32];
        for (byte, pair) in kid.iter_mut().zip(digits.0) {
            *byte = u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Kid(kid))
    }
}

impl fmt::Display for Kid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Kid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How hosts speak to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TLS 1.3, everything encrypted.
    Tls,
    /// The same handshake, then clear frames with a MAC ([`crate::mac`]).
    Auth,
    /// Nothing: only in builds with the feature `insecure-clear`.
    Clear,
}

/// What a certificate says, without who signed it.
struct Facts {
    kid: Kid,
    not_before: WallTime,
    not_after: WallTime,
}

impl Facts {
    fn of(leaf: &EndEntityCert<'_>) -> Option<Facts> {
        // webpki tells the ends of the validity only as the reason of a refusal.
        let refusal = |seconds| {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            leaf.verify_for_usage(&[], &[], &[], time, AnyPurpose, None, None).err()
        };
        let Some(webpki::Error::CertNotValidYet { not_before, .. }) = refusal(0) else { return None };
        let Some(webpki::Error::CertExpired { not_after, .. }) = refusal(u64::MAX) else { return None };
        Some(Facts {
            kid: Kid::of(leaf.subject_public_key_info().as_ref()),
            not_before: WallTime(not_before.as_secs()),
            not_after: WallTime(not_after.as_secs()),
        })
    }
}

/// The one name of a host's certificate, if it is of the exact form.
fn name_of(leaf: &EndEntityCert<'_>) -> Option<(ClusterId, HostId)> {
    let mut uris = leaf.valid_uri_names();
    let (Some(uri), None, None) = (uris.next(), uris.next(), leaf.valid_dns_names().next()) else {
        return None;
    };
    let (cluster, host) = uri.strip_prefix("weft://")?.split_once("/host/")?;
    let name: (ClusterId, HostId) = (cluster.parse().ok()?, host.parse().ok()?);
    // Ids may be written in several ways; a name in one.
    (uri == host_uri(name.0, name.1)).then_some(name)
}

/// The name in a host's certificate.
#[must_use]
pub fn host_uri(cluster: ClusterId, host: HostId) -> String {
    format!("weft://{cluster}/host/{host}")
}

struct AnyPurpose;

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// A host both calls and is called.
struct BothWays;

impl ExtendedKeyUsageValidator for BothWays {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let (mut server, mut client) = (false, false);
        for purpose in purposes {
            let purpose = purpose?;
            server |= purpose == KeyPurposeId::new(EKU_SERVER);
            client |= purpose == KeyPurposeId::new(EKU_CLIENT);
        }
        if server && client { Ok(()) } else { Err(webpki::Error::EmptyEkuExtension) }
    }
}

/// This host's key and certificate.
#[derive(Clone)]
pub struct Identity {
    cluster: ClusterId,
    host: HostId,
    kid: Kid,
    not_after: WallTime,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("host", &self.host)
            .field("kid", &self.kid)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads [`HOST_PEM`] in the identity directory as [`Identity::read_pem`] does. Blocks.
    pub fn load(dir: &Path) -> io::Result<Identity> {
        let pem = Identity::read_pem(dir)?;
        let path = dir.join(HOST_PEM);
        Identity::from_pem(&pem)
            .map_err(|what| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display())))
    }

    /// The bytes of [`HOST_PEM`] in the identity directory, for [`Identity::from_pem`]. Refuses a file that group or
    /// others can read or write. Blocks.
    pub fn read_pem(dir: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
        let path = dir.join(HOST_PEM);
        let mode = std::fs::metadata(&path)?.permissions().mode();
        if mode & 0o077 != 0 {
            let text = format!("{} is open to others (mode {:04o})", path.display(), mode & 0o7777);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(Zeroizing::new(std::fs::read(&path)?))
    }

    /// From a combined PEM: the leaf, then the authority that signed it, and the key (PKCS#8, P-256) anywhere. The error
    /// says what is wrong, for a person; an expired certificate is no error, since it can be renewed.
    pub fn from_pem(pem: &[u8]) -> Result<Identity, &'static str> {
        let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let chain = chain.map_err(|_| "not PEM")?;
        if chain.len() > MAX_CHAIN {
            return Err("too many certificates");
        }
        let mut key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| "no private key")?;
        let signer = any_ecdsa_type(&key);
        key.zeroize();
        let signer = signer.map_err(|_| "the private key is no ECDSA key")?;
        let p256 = signer.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).is_some();
        if signer.algorithm() != SignatureAlgorithm::ECDSA || !p256 {
            return Err("the private key is not on P-256");
        }
        let certified = CertifiedKey::new(chain, signer);
        certified.keys_match().map_err(|_| "certificate and private key are not a pair")?;
        let der = certified.cert.first().ok_or("no certificate")?;
        let leaf = EndEntityCert::try_from(der).map_err(|_| "the certificate can't be read")?;
        let (cluster, host) = name_of(&leaf).ok_or("the certificate names no host")?;
        let facts = Facts::of(&leaf).ok_or("the certificate can't be read")?;
        let (kid, not_after) = (facts.kid, facts.not_after);
        Ok(Identity { cluster, host, kid, not_after, certified: Arc::new(certified) })
    }

    /// The cluster that its certificate names.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The host that its certificate names.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.host
    }

    /// Its key.
    #[must_use]
    pub fn kid(&self) -> Kid {
        self.kid
    }

    /// The last second at which its certificate is valid.
    #[must_use]
    pub fn not_after(&self) -> WallTime {
        self.not_after
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    /// What it shows to peers, as [`Trust::judge`] takes it: its certificate (DER), then the authority's.
    #[must_use]
    pub fn chain(&self) -> Vec<&[u8]> {
        self.certified.cert.iter().map(AsRef::as_ref).collect()
    }
}

/// A proven peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which host it is.
    pub host: HostId,
    /// By which of its keys.
    pub kid: Kid,
    /// Which authority signed its certificate.
    pub issuer: Kid,
    /// The last second at which its certificate is valid.
    pub not_after: WallTime,
}

/// Why a peer is not let in. Never shown to the peer but by TLS's alerts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerRefusal {
    /// Not a host's certificate, or of an authority that is not on the list.
    Stranger,
    /// It names another cluster.
    OtherCluster,
    /// A sound certificate for a key that is not on the list for its host.
    NotListed,
    /// The host or its key was revoked.
    Revoked {
        /// The host that was.
        host: HostId,
        /// When, as the list says (ISO 8601).
        at: String,
    },
    /// Sound but for the time.
    Expired {
        /// Who it would be.
        host: HostId,
        /// Its last second.
        at: WallTime,
        /// What this host's clock says.
        now: WallTime,
    },
    /// Sound but for the time.
    NotYetValid {
        /// Who it would be.
        host: HostId,
        /// Its first second.
        at: WallTime,
        /// What this host's clock says.
        now: WallTime,
    },
    /// A certificate that can't be read, or is not for this use.
    BadChain,
}

impl fmt::Display for PeerRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerRefusal::Stranger => f.write_str("its certificate is of no authority of this cluster"),
            PeerRefusal::OtherCluster => f.write_str("its certificate names another cluster"),
            PeerRefusal::NotListed => f.write_str("its key is not on the list for its host"),
            PeerRefusal::Revoked { host, at } => write!(f, "host {host} was revoked at {at}"),
            PeerRefusal::Expired { host, at, now } => {
                write!(f, "the certificate of host {host} ended at {at}, this host's clock says {now}")
            }
            PeerRefusal::NotYetValid { host, at, now } => {
                write!(f, "the certificate of host {host} begins at {at}, this host's clock says {now}")
            }
            PeerRefusal::BadChain => f.write_str("its certificate can't be read or is not for this use"),
        }
    }
}

/// Why a list is not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustError {
    /// Longer than [`MAX_SIGNED`].
    TooLong,
    /// Not what a list looks like; what is wrong.
    Malformed(&'static str),
    /// Signed by nobody who may sign the next list.
    UnknownSigner,
    /// The signature is not that of the authority it names.
    BadSignature,
    /// It is the list of another cluster.
    OtherCluster,
    /// Its generation is lower than what is known: a restored store, or an old list put back.
    Older {
        /// The generation in force.
        known: u64,
        /// The one that was offered.
        offered: u64,
    },
    /// Two different lists of one generation.
    Forked {
        /// That generation.
        generation: u64,
    },
    /// It takes back a revocation: what was revoked once is in every later list.
    TakesBack {
        /// Whose.
        host: HostId,
    },
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrustError::TooLong => f.write_str("the trust list is too long"),
            TrustError::Malformed(what) => write!(f, "the trust list is malformed: {what}"),
            TrustError::UnknownSigner => f.write_str("the trust list is signed by no authority known here"),
            TrustError::BadSignature => f.write_str("the trust list's signature is wrong"),
            TrustError::OtherCluster => f.write_str("the trust list is of another cluster"),
            TrustError::Older { known, offered } => {
                write!(f, "the trust list has generation {offered}, this host knows {known}")
            }
            TrustError::Forked { generation } => {
                write!(f, "there are two trust lists of generation {generation}")
            }
            TrustError::TakesBack { host } => {
                write!(f, "the trust list takes back the revocation of host {host}")
            }
        }
    }
}

#[derive(Deserialize)]
struct Signed {
    body: String,
    by: String,
    sig: String,
}

#[derive(Deserialize)]
struct Body {
    fmt: u32,
    cluster: String,
    generation: String,
    transport: String,
    authorities: Vec<BodyAuthority>,
    #[serde(rename = "storeAuthorities")]
    store_authorities: Vec<BodyAuthority>,
    hosts: BTreeMap<String, BodyHost>,
    revoked: BTreeMap<String, BodyRevoked>,
}

#[derive(Deserialize)]
struct BodyAuthority {
    kid: String,
    pem: String,
    state: String,
}

#[derive(Deserialize)]
struct BodyHost {
    keys: Vec<BodyKey>,
}

#[derive(Deserialize)]
struct BodyKey {
    kid: String,
}

#[derive(Deserialize)]
struct BodyRevoked {
    at: String,
    keys: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AuthorityState {
    Active,
    Incoming,
    Outgoing,
}

#[derive(Clone, Debug)]
struct Authority {
    kid: Kid,
    state: AuthorityState,
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
}

#[derive(Clone, Debug)]
struct Revoked {
    at: String,
    keys: Vec<Kid>,
}

/// A list that was accepted: authorities, each host's keys, and who was revoked.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Rises with each change.
    pub generation: u64,
    /// How hosts are to speak to each other.
    pub transport: Transport,
    cluster: ClusterId,
    authorities: Vec<Authority>,
    store_authorities: Vec<String>,
    hosts: BTreeMap<HostId, Vec<Kid>>,
    revoked: BTreeMap<HostId, Revoked>,
    body: String,
}

impl Trust {
    /// The list that this host kept for itself (its file, or what it was given when it joined): any authority in it may
    /// have signed it, also one on its way out.
    pub fn open_first(signed: &[u8], cluster: ClusterId) -> Result<Trust, TrustError> {
        let signed = envelope(signed)?;
        let trust = Trust::read(&signed.body)?;
        if trust.cluster != cluster {
            return Err(TrustError::OtherCluster);
        }
        trust.verify(&signed, |_| true)?;
        Ok(trust)
    }

    /// The next list, if it is one: signed by an authority that is active or incoming in this one, with a higher
    /// generation. The same list again gives the same; anything else is refused and this list stays in force.
    ///
    /// An incoming authority counts in every phase of a rotation: a host that missed the list which begins to issue, the
    /// last one that the old authority signs, has to take the next one.
    pub fn advance(&self, signed: &[u8]) -> Result<Trust, TrustError> {
        let signed = envelope(signed)?;
        if signed.body == self.body {
            return Ok(self.clone());
        }
        self.verify(&signed, |state| match state {
            AuthorityState::Active | AuthorityState::Incoming => true,
            AuthorityState::Outgoing => false,
        })?;
        let next = Trust::read(&signed.body)?;
        if next.cluster != self.cluster {
            return Err(TrustError::OtherCluster);
        }
        match next.generation.cmp(&self.generation) {
            core::cmp::Ordering::Less => {
                Err(TrustError::Older { known: self.generation, offered: next.generation })
            }
            core::cmp::Ordering::Equal => Err(TrustError::Forked { generation: self.generation }),
            core::cmp::Ordering::Greater => match self.revocation_missing(&next) {
                Some(host) => Err(TrustError::TakesBack { host }),
                None => Ok(next),
            },
        }
    }

    fn revocation_missing(&self, next: &Trust) -> Option<HostId> {
        let stays = |(host, entry): &(&HostId, &Revoked)| {
            next.revoked.get(host).is_some_and(|still| entry.keys.iter().all(|key| still.keys.contains(key)))
        };
        self.revoked.iter().find(|entry| !stays(entry)).map(|(host, _)| *host)
    }

    fn verify(&self, signed: &Signed, may: impl Fn(AuthorityState) -> bool) -> Result<(), TrustError> {
        let by = Kid::parse(&signed.by).ok_or(TrustError::Malformed("by"))?;
        let signer = self.authorities.iter().find(|a| a.kid == by && may(a.state));
        let signer = signer.ok_or(TrustError::UnknownSigner)?;
        let signature = STANDARD.decode(&signed.sig).map_err(|_| TrustError::Malformed("sig"))?;
        let message = [LIST_KIND.as_bytes(), signed.body.as_bytes()].concat();
        let certificate = EndEntityCert::try_from(&signer.der).map_err(|_| TrustError::UnknownSigner)?;
        let verified = certificate.verify_signature(webpki::ring::ECDSA_P256_SHA256, &message, &signature);
        verified.map_err(|_| TrustError::BadSignature)
    }

    fn read(body: &str) -> Result<Trust, TrustError> {
        let bad = TrustError::Malformed;
        let read: Body = serde_json::from_str(body).map_err(|_| bad("body"))?;
        if read.fmt != 1 {
            return Err(bad("fmt"));
        }
        let transport = match read.transport.as_str() {
            "tls" => Transport::Tls,
            "auth" => Transport::Auth,
            "clear" => Transport::Clear,
            _ => return Err(bad("transport")),
        };
        let generation: u64 = read.generation.parse().map_err(|_| bad("generation"))?;
        if generation.to_string() != read.generation {
            return Err(bad("generation"));
        }
        if read.authorities.is_empty() || read.authorities.len() > MAX_AUTHORITIES {
            return Err(bad("authorities"));
        }
        if read.store_authorities.len() > MAX_AUTHORITIES {
            return Err(bad("store authorities"));
        }
        let authorities: Result<_, _> = read.authorities.iter().map(authority).collect();
        for entry in &read.store_authorities {
            authority(entry)?;
        }
        let store_authorities = read.store_authorities.into_iter().map(|entry| entry.pem).collect();
        let mut hosts = BTreeMap::new();
        for (host, entry) in &read.hosts {
            let keys = entry.keys.iter().map(|key| Kid::parse(&key.kid));
            let keys: Option<Vec<Kid>> = keys.collect();
            hosts.insert(id(host).ok_or(bad("host"))?, keys.ok_or(bad("key"))?);
        }
        let mut revoked = BTreeMap::new();
        for (host, entry) in read.revoked {
            let keys: Option<Vec<Kid>> = entry.keys.iter().map(|key| Kid::parse(key)).collect();
            let entry = Revoked { at: entry.at, keys: keys.ok_or(bad("revoked key"))? };
            revoked.insert(id(&host).ok_or(bad("revoked host"))?, entry);
        }
        Ok(Trust {
            generation,
            transport,
            cluster: read.cluster.parse().map_err(|_| bad("cluster"))?,
            authorities: authorities?,
            store_authorities,
            hosts,
            revoked,
            body: body.to_owned(),
        })
    }

    /// Whose list it is.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The authorities that sign certificates of the store's members, in PEM, one after the other.
    #[must_use]
    pub fn store_authorities(&self) -> String {
        let lines = |pem: &String| format!("{}\n", pem.trim_end());
        self.store_authorities.iter().map(lines).collect()
    }

    /// Hosts that nothing is listened to of any more, in the order of their ids.
    pub fn revoked(&self) -> impl Iterator<Item = HostId> + '_ {
        self.revoked.keys().copied()
    }

    /// True if certificates of this authority are believed.
    #[must_use]
    pub fn has_authority(&self, kid: Kid) -> bool {
        self.authorities.iter().any(|authority| authority.kid == kid)
    }

    /// True if nothing of this host is listened to any more.
    #[must_use]
    pub fn is_revoked(&self, host: HostId) -> bool {
        self.revoked.contains_key(&host)
    }

    /// True if a key of this host is on the list, and the host is not revoked.
    #[must_use]
    pub fn has_host(&self, host: HostId) -> bool {
        !self.is_revoked(host) && self.hosts.get(&host).is_some_and(|keys| !keys.is_empty())
    }

    /// True if this key is on the list for this host and neither is revoked: a connection that was proven by it may stay.
    #[must_use]
    pub fn lists(&self, host: HostId, kid: Kid) -> bool {
        !self.is_revoked(host)
            && self.revoked_key(kid).is_none()
            && self.hosts.get(&host).is_some_and(|keys| keys.contains(&kid))
    }

    fn revoked_key(&self, kid: Kid) -> Option<(HostId, &Revoked)> {
        let entry = self.revoked.iter().find(|(_, entry)| entry.keys.contains(&kid));
        entry.map(|(host, entry)| (*host, entry))
    }

    /// Whether these certificates (DER, the leaf first) are a host of this cluster. What a proven peer may do is decided
    /// elsewhere. See the module for the order of refusals.
    pub fn judge(&self, chain: &[&[u8]], now: WallTime) -> Result<Peer, PeerRefusal> {
        let (Some(leaf), true) = (chain.first(), chain.len() <= MAX_CHAIN) else {
            return Err(PeerRefusal::BadChain);
        };
        let der = CertificateDer::from(*leaf);
        let leaf = EndEntityCert::try_from(&der).map_err(|_| PeerRefusal::BadChain)?;
        let facts = Facts::of(&leaf).ok_or(PeerRefusal::BadChain)?;
        let (cluster, host) = name_of(&leaf).ok_or(PeerRefusal::Stranger)?;
        if cluster != self.cluster {
            return Err(PeerRefusal::OtherCluster);
        }
        if let Some((host, entry)) = self.revoked_key(facts.kid) {
            return Err(PeerRefusal::Revoked { host, at: entry.at.clone() });
        }
        let issuer = self.issuer(&leaf, facts.not_before)?;
        if let Some(entry) = self.revoked.get(&host) {
            return Err(PeerRefusal::Revoked { host, at: entry.at.clone() });
        }
        if !self.lists(host, facts.kid) {
            return Err(PeerRefusal::NotListed);
        }
        if now < facts.not_before {
            return Err(PeerRefusal::NotYetValid { host, at: facts.not_before, now });
        }
        if now > facts.not_after {
            return Err(PeerRefusal::Expired { host, at: facts.not_after, now });
        }
        Ok(Peer { host, kid: facts.kid, issuer, not_after: facts.not_after })
    }

    /// The authority that signed, looked at within the certificate's validity: the clock is judged last, so that what is
    /// merely expired is told apart from a stranger.
    fn issuer(&self, leaf: &EndEntityCert<'_>, within: WallTime) -> Result<Kid, PeerRefusal> {
        let algorithms = [webpki::ring::ECDSA_P256_SHA256];
        for authority in &self.authorities {
            let anchors = core::slice::from_ref(&authority.anchor);
            match leaf.verify_for_usage(&algorithms, anchors, &[], within.unix(), BothWays, None, None) {
                Ok(_) => return Ok(authority.kid),
                Err(
                    webpki::Error::UnknownIssuer
                    | webpki::Error::InvalidSignatureForPublicKey
                    | webpki::Error::UnsupportedSignatureAlgorithmContext(_)
                    | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_),
                ) => {}
                Err(_) => return Err(PeerRefusal::BadChain),
            }
        }
        Err(PeerRefusal::Stranger)
    }
}

fn envelope(signed: &[u8]) -> Result<Signed, TrustError> {
    if signed.len() > MAX_SIGNED {
        return Err(TrustError::TooLong);
    }
    serde_json::from_slice(signed).map_err(|_| TrustError::Malformed("not a signed list"))
}

/// An id in its one written form.
fn id(text: &str) -> Option<HostId> {
    text.parse().ok().filter(|id: &HostId| id.to_string() == text)
}

fn authority(entry: &BodyAuthority) -> Result<Authority, TrustError> {
    let bad = TrustError::Malformed("authority");
    let der = CertificateDer::from_pem_slice(entry.pem.as_bytes()).map_err(|_| bad.clone())?;
    let kid = {
        let certificate = EndEntityCert::try_from(&der).map_err(|_| bad.clone())?;
        Kid::of(certificate.subject_public_key_info().as_ref())
    };
    let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|_| bad.clone())?.to_owned();
    let state = match entry.state.as_str() {
        "active" => AuthorityState::Active,
        "incoming" => AuthorityState::Incoming,
        "outgoing" => AuthorityState::Outgoing,
        _ => return Err(bad),
    };
    if Kid::parse(&entry.kid) != Some(kid) {
        return Err(TrustError::Malformed("an authority's key is not the one it is named by"));
    }
    Ok(Authority { kid, state, der, anchor })
}

/// The list in force, shared by those who judge and who brings the next one.
#[derive(Debug)]
pub struct TrustCell(RwLock<Arc<Trust>>);

impl TrustCell {
    /// Begins with this list.
    #[must_use]
    pub fn new(trust: Trust) -> TrustCell {
        TrustCell(RwLock::new(Arc::new(trust)))
    }

    /// The list in force.
    #[must_use]
    pub fn get(&self) -> Arc<Trust> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on this one: what [`Trust::advance`] gave.
    pub fn set(&self, trust: Trust) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(trust);
    }
}

#[cfg(test)]
pub(crate) mod tests;
