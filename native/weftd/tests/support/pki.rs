//! Authorities and certificates for tests: hosts show those of one authority, members of the store those of another,
//! and one signed list says whose keys count.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType, SigningKey as _, date_time_ymd,
};
use serde_json::{Value, json};
use weftd::store::StoreCredentials;

/// From when to when a certificate is valid, in seconds from now.
pub(crate) type Validity = (i64, i64);
/// As hosts have it: 25 h back, 30 days ahead.
pub(crate) const SOUND: Validity = (-25 * 3600, 30 * 86_400);
/// Over for a day.
pub(crate) const EXPIRED: Validity = (-31 * 86_400, -86_400);
/// Begins tomorrow.
pub(crate) const EARLY: Validity = (86_400, 30 * 86_400);

/// An authority that is in no file.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for servers and clients, and its key.
    pub(crate) fn issue(&self, names: Vec<SanType>) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        (self.certify(&key, names, SOUND), key.serialize_pem())
    }

    /// One whose time was over long ago.
    pub(crate) fn issue_expired(&self, names: Vec<SanType>) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        (self.certify(&key, names, EXPIRED), key.serialize_pem())
    }

    /// A certificate of this key, in PEM.
    pub(crate) fn certify(&self, key: &KeyPair, names: Vec<SanType>, (from, to): Validity) -> String {
        let mut params = CertificateParams::default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        let at = |seconds: i64| {
            let at = Duration::from_secs(now.checked_add_signed(seconds).expect("a time"));
            date_time_ymd(1970, 1, 1) + at
        };
        (params.not_before, params.not_after) = (at(from), at(to));
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(key, &self.0).expect("a certificate").pem()
    }

    /// What a host's `host.pem` holds: the certificate, this authority's, the key.
    pub(crate) fn identity(&self, key: &KeyPair, name: &str, validity: Validity) -> String {
        let name = SanType::URI(name.try_into().expect("ASCII"));
        [self.certify(key, vec![name], validity), self.pem(), key.serialize_pem()].concat()
    }

    pub(crate) fn kid(&self) -> String {
        kid(self.0.key())
    }

    /// As a trust list names it.
    pub(crate) fn entry(&self, state: &str) -> Value {
        json!({ "kid": self.kid(), "pem": self.pem(), "state": state, "since": "2026-11-20T11:00:00Z" })
    }

    /// A signed trust list.
    pub(crate) fn sign(&self, body: &Value) -> String {
        let body = body.to_string();
        let signature = self.0.key().sign(&[b"weft trust v1\0", body.as_bytes()].concat()).expect("signed");
        json!({ "body": body, "by": self.kid(), "sig": STANDARD.encode(signature) }).to_string()
    }
}

/// A key's name in a trust list.
pub(crate) fn kid(key: &KeyPair) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, &key.subject_public_key_info());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The two authorities of a cluster.
pub(crate) struct Pki {
    pub(crate) hosts: Authority,
    pub(crate) store: Authority,
}

impl Pki {
    pub(crate) fn new() -> Pki {
        Pki { hosts: Authority::new("hosts"), store: Authority::new("store") }
    }

    /// What a host shows that has a valid certificate of `authority`, and believes this store.
    pub(crate) fn credentials(&self, authority: &Authority) -> StoreCredentials {
        self.shown(authority.issue(vec![host_name()]))
    }

    pub(crate) fn shown(&self, (certificate, key): (String, String)) -> StoreCredentials {
        StoreCredentials {
            authorities: self.store.pem().into_bytes(),
            certificate: certificate.into_bytes(),
            key: key.into_bytes(),
        }
    }

    /// The first trust list of a cluster: nobody is on it.
    pub(crate) fn list(&self, cluster: &str, transport: &str) -> Value {
        json!({
            "fmt": 1, "cluster": cluster, "generation": "1", "nonce": cluster, "transport": transport,
            "authorities": [self.hosts.entry("active")], "storeAuthorities": [self.store.entry("active")],
            "hosts": {}, "revoked": {}, "rotation": null,
        })
    }

    /// Files for etcd in `dir`, and the flags that name them.
    pub(crate) fn etcd_flags(&self, dir: &Path) -> Vec<String> {
        let (certificate, key) = self.store.issue(vec![SanType::IpAddress([127, 0, 0, 1].into())]);
        let write = |name: &str, text: &str| -> PathBuf {
            let path = dir.join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let own = write("etcd.pem", &format!("{certificate}{key}"));
        let clients = write("clients.pem", &format!("{}{}", self.hosts.pem(), self.store.pem()));
        let peers = write("peers.pem", &self.store.pem());
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        vec![
            flag("cert-file", &own),
            flag("key-file", &own),
            flag("trusted-ca-file", &clients),
            "--client-cert-auth".to_owned(),
            flag("peer-cert-file", &own),
            flag("peer-key-file", &own),
            flag("peer-trusted-ca-file", &peers),
            "--peer-client-cert-auth".to_owned(),
        ]
    }
}

/// Identities are names, never addresses.
pub(crate) fn host_name() -> SanType {
    SanType::URI("weft://c/host/h".try_into().expect("ASCII"))
}
