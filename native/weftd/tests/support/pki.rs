//! Authorities and certificates for tests: hosts show those of one authority, members of the store those of another.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use weftd::store::StoreCredentials;

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
        self.sign(CertificateParams::default(), names)
    }

    /// One whose time was over long ago.
    pub(crate) fn issue_expired(&self, names: Vec<SanType>) -> (String, String) {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
        self.sign(params, names)
    }

    fn sign(&self, mut params: CertificateParams, names: Vec<SanType>) -> (String, String) {
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem())
    }
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
