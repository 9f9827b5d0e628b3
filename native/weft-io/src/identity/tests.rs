//! Lists, peers, and the specimens that every language judges alike.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::testing::TempDir;

/// Authorities, certificates and lists, made by rcgen.
pub(crate) mod pki {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SigningKey,
    };
    use serde_json::{Value, json};
    use weft_proto::ids::{ClusterId, HostId};

    use crate::identity::{Identity, Kid, Trust, WallTime, host_uri};

    pub(crate) const CLUSTER: ClusterId = ClusterId(0x2f4c_9a66_3a0e_4ad0_9a83_5c2d_58b3_f9f1);
    pub(crate) const H1: HostId = HostId(0x0b52_a3f6_3a0e_4ad0_9a83_5c2d_58b3_0001);
    pub(crate) const H2: HostId = HostId(0x0b52_a3f6_3a0e_4ad0_9a83_5c2d_58b3_0002);
    /// 21 November 2026, noon.
    pub(crate) const NOW: WallTime = WallTime(1_795_262_400);
    pub(crate) const HOUR: u64 = 3600;
    pub(crate) const DAY: u64 = 24 * HOUR;

    /// rcgen's time, whose type it does not name.
    macro_rules! time {
        ($at:expr) => {
            rcgen::date_time_ymd(1970, 1, 1) + core::time::Duration::from_secs($at.0)
        };
    }

    pub(crate) fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
    }

    pub(crate) fn kid(key: &KeyPair) -> Kid {
        Kid::of(&key.subject_public_key_info())
    }

    /// What a certificate says; the default is a sound host's.
    pub(crate) struct Leaf {
        pub(crate) names: Vec<SanType>,
        pub(crate) from: WallTime,
        pub(crate) to: WallTime,
        pub(crate) purposes: Vec<ExtendedKeyUsagePurpose>,
        pub(crate) is_ca: bool,
    }

    impl Leaf {
        pub(crate) fn of(host: HostId) -> Leaf {
            Leaf::named(&[&host_uri(CLUSTER, host)])
        }

        pub(crate) fn named(uris: &[&str]) -> Leaf {
            Leaf {
                names: uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect(),
                from: WallTime(NOW.0 - 25 * HOUR),
                to: WallTime(NOW.0 + 30 * DAY),
                purposes: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
                is_ca: false,
            }
        }
    }

    pub(crate) struct Ca {
        pub(crate) key: KeyPair,
        pub(crate) pem: String,
        params: CertificateParams,
    }

    impl Ca {
        pub(crate) fn new(name: &str) -> Ca {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.distinguished_name.push(DnType::CommonName, name);
            (params.not_before, params.not_after) =
                (time!(WallTime(NOW.0 - 25 * HOUR)), time!(WallTime(NOW.0 + 3650 * DAY)));
            let key = key();
            let pem = params.self_signed(&key).expect("an authority").pem();
            Ca { key, pem, params }
        }

        pub(crate) fn kid(&self) -> Kid {
            kid(&self.key)
        }

        /// As DER, and the same as PEM.
        pub(crate) fn issue(&self, key: &KeyPair, leaf: &Leaf) -> (Vec<u8>, String) {
            let mut params = CertificateParams::default();
            params.subject_alt_names.clone_from(&leaf.names);
            params.distinguished_name.push(DnType::CommonName, "host");
            (params.not_before, params.not_after) = (time!(leaf.from), time!(leaf.to));
            params.extended_key_usages.clone_from(&leaf.purposes);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            if leaf.is_ca {
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            }
            let issuer = Issuer::from_params(&self.params, &self.key);
            let certificate = params.signed_by(key, &issuer).expect("a certificate");
            (certificate.der().to_vec(), certificate.pem())
        }

        pub(crate) fn identity_pem(&self, key: &KeyPair, leaf: &Leaf) -> String {
            [self.issue(key, leaf).1, self.pem.clone(), key.serialize_pem()].concat()
        }

        pub(crate) fn identity(&self, key: &KeyPair, leaf: &Leaf) -> Identity {
            Identity::from_pem(self.identity_pem(key, leaf).as_bytes()).expect("an identity")
        }

        pub(crate) fn entry(&self, state: &str) -> Value {
            json!({ "kid": self.kid().to_string(), "pem": self.pem, "state": state, "since": "2026-11-20T11:00:00Z" })
        }

        pub(crate) fn sign(&self, body: &Value) -> Vec<u8> {
            self.sign_as(body, "weft trust v1\0")
        }

        pub(crate) fn sign_as(&self, body: &Value, kind: &str) -> Vec<u8> {
            let body = body.to_string();
            let signature = self.key.sign(&[kind.as_bytes(), body.as_bytes()].concat()).expect("signed");
            let signed =
                json!({ "body": body, "by": self.kid().to_string(), "sig": STANDARD.encode(signature) });
            signed.to_string().into_bytes()
        }
    }

    /// The body of a list with these hosts' keys.
    pub(crate) fn body(generation: u64, authorities: &[Value], hosts: &[(HostId, Kid)]) -> Value {
        let mut list = json!({
            "fmt": 1, "cluster": CLUSTER.to_string(), "generation": generation.to_string(),
            "nonce": "6f2b8a4e-0000-4000-8000-000000000001", "transport": "tls",
            "authorities": authorities, "storeAuthorities": [], "hosts": {}, "revoked": {}, "rotation": null,
        });
        for (host, kid) in hosts {
            list["hosts"][host.to_string()] = json!({
                "name": "h", "certs": [], "held": [],
                "keys": [{ "kid": kid.to_string(), "since": "2026-11-20T11:00:00Z" }],
            });
        }
        list
    }

    pub(crate) fn revoke(body: &mut Value, host: HostId, keys: &[Kid]) {
        let keys: Vec<String> = keys.iter().map(Kid::to_string).collect();
        body["revoked"][host.to_string()] = json!({ "name": "h", "at": "2026-11-21T10:00:00Z", "by": "root@h1", "keys": keys, "serials": [] });
    }

    pub(crate) fn open(signed: &[u8]) -> Trust {
        Trust::open_first(signed, CLUSTER).expect("a list")
    }
}

use pki::{CLUSTER, Ca, DAY, H1, H2, HOUR, Leaf, NOW};

/// Two hosts under one authority.
struct Stage {
    ca: Ca,
    h1: rcgen::KeyPair,
    h2: rcgen::KeyPair,
}

impl Stage {
    fn new() -> Stage {
        Stage { ca: Ca::new("weft 2f4c9a66"), h1: pki::key(), h2: pki::key() }
    }

    fn body(&self, generation: u64) -> Value {
        let hosts = [(H1, pki::kid(&self.h1)), (H2, pki::kid(&self.h2))];
        pki::body(generation, &[self.ca.entry("active")], &hosts)
    }

    fn trust(&self, generation: u64) -> Trust {
        pki::open(&self.ca.sign(&self.body(generation)))
    }
}

#[test]
fn a_higher_list_by_the_active_authority_is_followed() {
    let stage = Stage::new();
    let trust = stage.trust(17);
    let mut body = stage.body(18);
    pki::revoke(&mut body, H2, &[]);
    let next = trust.advance(&stage.ca.sign(&body)).expect("followed");
    assert_eq!((next.generation, next.transport, next.cluster()), (18, Transport::Tls, CLUSTER));
    assert!(next.is_revoked(H2) && !next.is_revoked(H1) && !trust.is_revoked(H2));
}

#[test]
fn a_lower_list_is_refused_and_an_equal_one_must_be_the_same() {
    let stage = Stage::new();
    let trust = stage.trust(17);
    let older = trust.advance(&stage.ca.sign(&stage.body(16)));
    assert_eq!(older.err(), Some(TrustError::Older { known: 17, offered: 16 }));
    let same = trust.advance(&stage.ca.sign(&stage.body(17))).expect("the same, signed again");
    assert_eq!(same.generation, 17);
    let mut other = stage.body(17);
    other["transport"] = json!("clear");
    let forked = trust.advance(&stage.ca.sign(&other));
    assert_eq!(forked.err(), Some(TrustError::Forked { generation: 17 }));
}

#[test]
fn a_list_that_takes_back_a_revocation_is_refused() {
    let stage = Stage::new();
    let mut body = stage.body(17);
    pki::revoke(&mut body, H2, &[pki::kid(&stage.h2)]);
    let trust = pki::open(&stage.ca.sign(&body));
    assert_eq!(trust.revoked().collect::<Vec<_>>(), [H2]);
    let taken_back = Some(TrustError::TakesBack { host: H2 });
    assert_eq!(trust.advance(&stage.ca.sign(&stage.body(18))).err(), taken_back);
    let mut without_its_key = stage.body(18);
    pki::revoke(&mut without_its_key, H2, &[]);
    assert_eq!(trust.advance(&stage.ca.sign(&without_its_key)).err(), taken_back);
    body["generation"] = json!("18");
    assert_eq!(trust.advance(&stage.ca.sign(&body)).map(|trust| trust.generation), Ok(18));
}

#[test]
fn the_authorities_of_the_store_are_told_as_they_stand_in_the_list() {
    let stage = Stage::new();
    let store = [Ca::new("weft store"), Ca::new("weft store")];
    let mut body = stage.body(17);
    body["storeAuthorities"] = json!([store[0].entry("active"), store[1].entry("incoming")]);
    let told = pki::open(&stage.ca.sign(&body)).store_authorities();
    let there: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(told.as_bytes()).collect();
    let expected: Result<Vec<_>, _> =
        store.iter().map(|ca| CertificateDer::from_pem_slice(ca.pem.as_bytes())).collect();
    assert_eq!(there.expect("PEM"), expected.expect("PEM"));
    body["storeAuthorities"][0]["pem"] = json!("-----BEGIN");
    let spoilt = Trust::open_first(&stage.ca.sign(&body), CLUSTER);
    assert_eq!(spoilt.err(), Some(TrustError::Malformed("authority")));
}

#[test]
fn a_time_is_shown_as_a_date() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (68_255_999, "1972-02-29T23:59:59Z"),
        (951_868_800, "2000-03-01T00:00:00Z"),
        (NOW.0, "2026-11-21T12:00:00Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
    ] {
        assert_eq!(WallTime(seconds).to_string(), text);
    }
}

#[test]
fn a_list_by_a_stranger_a_leaf_or_nobody_is_refused() {
    let stage = Stage::new();
    let trust = stage.trust(17);
    let stranger = Ca::new("weft 2f4c9a66");
    let refused = |signed: &[u8]| trust.advance(signed).err();
    assert_eq!(refused(&stranger.sign(&stage.body(18))), Some(TrustError::UnknownSigner));
    let mut by_another: Value = serde_json::from_slice(&stranger.sign(&stage.body(18))).expect("JSON");
    by_another["by"] = json!(stage.ca.kid().to_string());
    assert_eq!(refused(by_another.to_string().as_bytes()), Some(TrustError::BadSignature));
    // Another kind of signed thing is no list.
    let token = stage.ca.sign_as(&stage.body(18), "weft join-token v1\0");
    assert_eq!(refused(&token), Some(TrustError::BadSignature));
    let mut longer: Value = serde_json::from_slice(&stage.ca.sign(&stage.body(18))).expect("JSON");
    longer["body"] = json!(format!("{} ", longer["body"].as_str().expect("text")));
    assert_eq!(refused(longer.to_string().as_bytes()), Some(TrustError::BadSignature));
    assert_eq!(refused(&vec![b' '; MAX_SIGNED + 1]), Some(TrustError::TooLong));
    let foreign = Trust::open_first(&stage.ca.sign(&stage.body(1)), ClusterId(9));
    assert_eq!(foreign.err(), Some(TrustError::OtherCluster));
}

#[test]
fn an_incoming_authority_signs_and_an_outgoing_one_never() {
    let stage = Stage::new();
    let next_ca = Ca::new("weft 2f4c9a66");
    let hosts = [(H1, pki::kid(&stage.h1))];
    let body = |generation, states: [&str; 2], phase: &str| {
        let authorities = [stage.ca.entry(states[0]), next_ca.entry(states[1])];
        let mut body = pki::body(generation, &authorities, &hosts);
        body["rotation"] =
            json!({ "id": "x", "phase": phase, "why": "asked", "since": "2026-11-21T10:00:00Z" });
        body
    };
    let announced = pki::open(&stage.ca.sign(&body(2, ["active", "incoming"], "announce")));
    // It missed the list in between, which the old one signed.
    let behind = announced.advance(&next_ca.sign(&body(4, ["outgoing", "active"], "issue"))).expect("by A2");
    assert_eq!(behind.generation, 4);
    let issuing =
        announced.advance(&stage.ca.sign(&body(3, ["active", "incoming"], "issue"))).expect("by A1");
    let turned = issuing.advance(&next_ca.sign(&body(4, ["outgoing", "active"], "issue"))).expect("by A2");
    let late = turned.advance(&stage.ca.sign(&body(5, ["active", "outgoing"], "drop")));
    assert_eq!(late.err(), Some(TrustError::UnknownSigner));
    // The last list that the old one signed is read again after a restart, and heard again from the store.
    let last = stage.ca.sign(&body(4, ["outgoing", "active"], "issue"));
    let reread = pki::open(&last);
    assert_eq!(reread.advance(&last).expect("the same").generation, 4);
}

#[test]
fn a_malformed_list_is_refused_by_name() {
    let stage = Stage::new();
    let cases: [(&str, fn(&mut Value), &str); 9] = [
        ("fmt", |b| b["fmt"] = json!(2), "fmt"),
        ("transport", |b| b["transport"] = json!("rot13"), "transport"),
        ("generation", |b| b["generation"] = json!("017"), "generation"),
        ("generation", |b| b["generation"] = json!("-1"), "generation"),
        ("authorities", |b| b["authorities"] = json!([]), "authorities"),
        ("state", |b| b["authorities"][0]["state"] = json!("retired"), "authority"),
        ("pem", |b| b["authorities"][0]["pem"] = json!("-----BEGIN"), "authority"),
        ("kid", |b| b["hosts"][H1.to_string()]["keys"][0]["kid"] = json!("AB"), "key"),
        ("host", |b| b["hosts"][H1.to_string().to_uppercase()] = json!({ "keys": [] }), "host"),
    ];
    for (title, spoil, what) in cases {
        let mut body = stage.body(1);
        spoil(&mut body);
        let refused = Trust::open_first(&stage.ca.sign(&body), CLUSTER);
        assert_eq!(refused.err(), Some(TrustError::Malformed(what)), "{title}");
    }
    let other = Ca::new("other");
    let mut body = stage.body(1);
    body["authorities"][0]["pem"] = json!(other.pem);
    let refused = Trust::open_first(&stage.ca.sign(&body), CLUSTER);
    let what = "an authority's key is not the one it is named by";
    assert_eq!(refused.err(), Some(TrustError::Malformed(what)));
    for text in ["", "[]", "{}", "null", "{\"body\":\"{}\",\"by\":\"\",\"sig\":\"\"}"] {
        assert!(
            matches!(Trust::open_first(text.as_bytes(), CLUSTER), Err(TrustError::Malformed(_))),
            "{text}"
        );
    }
}

#[test]
fn an_identity_is_read_from_its_file_and_only_from_a_closed_one() {
    let stage = Stage::new();
    let dir = TempDir::on_disk();
    let path = dir.path().join(HOST_PEM);
    fs::write(&path, stage.ca.identity_pem(&stage.h1, &Leaf::of(H1))).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("mode");
    let open = Identity::load(dir.path()).err().map(|error| error.kind());
    assert_eq!(open, Some(io::ErrorKind::PermissionDenied));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
    let identity = Identity::load(dir.path()).expect("an identity");
    assert_eq!((identity.host(), identity.cluster()), (H1, CLUSTER));
    assert_eq!((identity.kid(), identity.not_after()), (pki::kid(&stage.h1), WallTime(NOW.0 + 30 * DAY)));
    assert!(!format!("{identity:?}").contains("key:"), "{identity:?}");
    assert_eq!(
        Identity::load(&dir.path().join("none")).err().map(|e| e.kind()),
        Some(io::ErrorKind::NotFound)
    );
}

#[test]
fn a_pem_that_is_no_identity_says_what_is_wrong() {
    let stage = Stage::new();
    let (leaf, key) = (stage.ca.issue(&stage.h1, &Leaf::of(H1)).1, stage.h1.serialize_pem());
    let nameless = stage.ca.issue(&stage.h1, &Leaf::named(&[])).1;
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    let cases = [
        (String::new(), "no private key"),
        (leaf.clone(), "no private key"),
        (key.clone(), "no certificate"),
        ([leaf.as_str(), &stage.h2.serialize_pem()].concat(), "certificate and private key are not a pair"),
        ([nameless.as_str(), &key].concat(), "the certificate names no host"),
        ([leaf.as_str(), &p384.serialize_pem()].concat(), "the private key is not on P-256"),
        ([leaf.repeat(5).as_str(), &key].concat(), "too many certificates"),
        ([&leaf[..leaf.len() / 2], "\n", &key].concat(), "not PEM"),
    ];
    for (pem, what) in cases {
        let said = Identity::from_pem(pem.as_bytes()).err();
        assert!(said.is_some(), "{what}: taken");
        if what != "not PEM" && what != "no certificate" {
            assert_eq!(said, Some(what));
        }
    }
}

#[test]
fn a_key_is_named_by_64_lower_case_digits() {
    let kid = Kid(core::array::from_fn(|i| i.to_le_bytes()[0] * 7));
    assert_eq!(Kid::parse(&kid.to_string()), Some(kid));
    for bad in ["", "0", &"A".repeat(64), &"g".repeat(64), &"0".repeat(65), &"é".repeat(32)] {
        assert_eq!(Kid::parse(bad), None, "{bad}");
    }
}

// ---- specimens

fn specimens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("specimens")
}

/// A verdict as every language writes it.
fn shown(verdict: &Result<Peer, PeerRefusal>) -> Value {
    let ms = |time: &WallTime| time.0 * 1000;
    match verdict {
        Ok(peer) => json!({ "kind": "ok", "host": peer.host, "notAfterMs": ms(&peer.not_after) }),
        Err(PeerRefusal::Stranger) => json!({ "kind": "stranger" }),
        Err(PeerRefusal::OtherCluster) => json!({ "kind": "other-cluster" }),
        Err(PeerRefusal::NotListed) => json!({ "kind": "not-listed" }),
        Err(PeerRefusal::BadChain) => json!({ "kind": "bad-chain" }),
        Err(PeerRefusal::Revoked { host, at }) => json!({ "kind": "revoked", "host": host, "at": at }),
        Err(PeerRefusal::Expired { host, at, now }) => {
            json!({ "kind": "expired", "host": host, "limitMs": ms(at), "nowMs": ms(now) })
        }
        Err(PeerRefusal::NotYetValid { host, at, now }) => {
            json!({ "kind": "not-yet-valid", "host": host, "limitMs": ms(at), "nowMs": ms(now) })
        }
    }
}

/// `{cluster, chain: [base64 DER, leaf first], trust: Signed, nowMs, verdict}` in `specimens/peers/NAME.json`. With
/// WEFT_WRITE_SPECIMENS in the environment they are made anew, keys and all.
#[test]
fn specimens_are_judged_as_they_say() {
    if std::env::var_os("WEFT_WRITE_SPECIMENS").is_some() {
        write_specimens();
    }
    let mut kinds = std::collections::BTreeSet::new();
    let mut count = 0;
    for entry in fs::read_dir(specimens().join("peers")).expect("specimens") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("a specimen");
        let specimen: Value = serde_json::from_str(&text).expect("JSON");
        let cluster = specimen["cluster"].as_str().expect("a cluster").parse().expect("an id");
        let trust = Trust::open_first(specimen["trust"].to_string().as_bytes(), cluster).expect("a list");
        let chain = specimen["chain"].as_array().expect("a chain").iter();
        let chain: Vec<Vec<u8>> =
            chain.map(|der| STANDARD.decode(der.as_str().expect("text")).expect("base64")).collect();
        let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
        let now = WallTime(specimen["nowMs"].as_u64().expect("a time") / 1000);
        assert_eq!(shown(&trust.judge(&chain, now)), specimen["verdict"], "{}", path.display());
        kinds.insert(specimen["verdict"]["kind"].to_string());
        count += 1;
    }
    assert!(count >= 25 && kinds.len() == 8, "{count} specimens of {kinds:?}");
}

/// What the fuzz doors and benchmarks take: two hosts, their list, and the authority's key, which guards nothing.
#[test]
fn the_specimens_of_identities_are_sound() {
    let list = fs::read(specimens().join("trust.json")).expect("a list");
    let trust = Trust::open_first(&list, CLUSTER).expect("sound");
    for (name, host) in [("h1.pem", H1), ("h2.pem", H2)] {
        let pem = fs::read(specimens().join(name)).expect("an identity");
        let identity = Identity::from_pem(&pem).expect("sound");
        assert_eq!(identity.host(), host);
        assert_eq!(trust.judge(&identity.chain(), NOW).map(|peer| peer.host), Ok(host));
    }
}

fn write_specimens() {
    let (stage, other, another_cluster) = (Stage::new(), Ca::new("weft 2f4c9a66"), Ca::new("weft 00000009"));
    let (ca, h1, h2) = (&stage.ca, &stage.h1, &stage.h2);
    let old = pki::key();
    let mut body = stage.body(17);
    let plain = ca.sign(&body);
    fs::create_dir_all(specimens().join("peers")).expect("a directory");
    let keep = |name: &str, bytes: &[u8]| fs::write(specimens().join(name), bytes).expect("written");
    keep("trust.json", &[plain.as_slice(), b"\n"].concat());
    keep("authority-key.pem", ca.key.serialize_pem().as_bytes());
    keep("h1.pem", ca.identity_pem(h1, &Leaf::of(H1)).as_bytes());
    keep("h2.pem", ca.identity_pem(h2, &Leaf::of(H2)).as_bytes());

    pki::revoke(&mut body, H2, &[pki::kid(h2), pki::kid(&old)]);
    let revoked = ca.sign(&body);
    let mut by_name = stage.body(17);
    pki::revoke(&mut by_name, H2, &[]);
    let by_name = ca.sign(&by_name);
    let mut two = stage.body(18);
    two["authorities"] = json!([other.entry("active"), ca.entry("outgoing")]);
    let two = other.sign(&two);
    let ok = Leaf::of(H1);
    let uri = host_uri(CLUSTER, H1);
    let with = |change: fn(&mut Leaf)| {
        let mut leaf = Leaf::of(H1);
        change(&mut leaf);
        leaf
    };
    let issue = |leaf: &Leaf| ca.issue(h1, leaf).0;
    let named = |names: &[&str]| ca.issue(h1, &Leaf::named(names)).0;
    let second = |seconds: i64| WallTime(NOW.0.checked_add_signed(seconds).expect("a time"));
    let [begin, end] = [ok.from, ok.to];
    let cut = |mut der: Vec<u8>| {
        der.truncate(der.len() - 20);
        der
    };
    let flipped = |mut der: Vec<u8>| {
        let last = der.len() - 3;
        der[last] ^= 1;
        der
    };
    let cases: Vec<(&str, Vec<u8>, &[u8], WallTime)> = vec![
        ("ok", issue(&ok), &plain, NOW),
        ("ok-first-second", issue(&ok), &plain, begin),
        ("ok-last-second", issue(&ok), &plain, end),
        ("ok-by-the-outgoing-authority", issue(&ok), &two, NOW),
        ("ok-by-the-new-authority", other.issue(h1, &ok).0, &two, NOW),
        ("expired-by-a-second", issue(&ok), &plain, WallTime(end.0 + 1)),
        ("expired-by-a-year", issue(&ok), &plain, second(365 * 86_400)),
        ("not-yet-valid", issue(&ok), &plain, WallTime(begin.0 - 1)),
        ("not-listed-minted-with-the-authority-key", ca.issue(&pki::key(), &ok).0, &plain, NOW),
        ("not-listed-key-of-another-host", ca.issue(h2, &ok).0, &plain, NOW),
        ("not-listed-and-expired", ca.issue(&pki::key(), &ok).0, &plain, second(365 * 86_400)),
        ("not-listed-unknown-host", named(&[&host_uri(CLUSTER, HostId(7))]), &plain, NOW),
        ("revoked-host-and-key", ca.issue(h2, &Leaf::of(H2)).0, &revoked, NOW),
        ("revoked-host-by-name-only", ca.issue(h2, &Leaf::of(H2)).0, &by_name, NOW),
        ("revoked-and-expired", ca.issue(h2, &Leaf::of(H2)).0, &revoked, second(365 * 86_400)),
        ("revoked-key-under-another-host", ca.issue(&old, &ok).0, &revoked, NOW),
        ("revoked-key-by-another-authority", other.issue(h2, &Leaf::of(H2)).0, &revoked, NOW),
        ("stranger-same-name-of-authority", other.issue(h1, &ok).0, &plain, NOW),
        ("stranger-other-authority", another_cluster.issue(h1, &ok).0, &plain, NOW),
        ("stranger-flipped-signature", flipped(issue(&ok)), &plain, NOW),
        ("stranger-no-name", named(&[]), &plain, NOW),
        ("stranger-two-names", named(&[&uri, &host_uri(CLUSTER, H2)]), &plain, NOW),
        ("stranger-the-same-name-twice", named(&[&uri, &uri]), &plain, NOW),
        ("stranger-upper-case", named(&[&uri.replace("2f4c", "2F4C")]), &plain, NOW),
        ("stranger-without-hyphens", named(&[&uri.replace('-', "")]), &plain, NOW),
        ("stranger-more-path", named(&[&format!("{uri}/x")]), &plain, NOW),
        ("stranger-trailing-nul", named(&[&format!("{uri}%00")]), &plain, NOW),
        ("stranger-other-scheme", named(&[&uri.replace("weft:", "spiffe:")]), &plain, NOW),
        ("stranger-a-joining-host", named(&[&format!("weft://join/{H1}")]), &plain, NOW),
        (
            "stranger-a-dns-name-too",
            issue(&with(|leaf| leaf.names.push(rcgen::SanType::DnsName("h1".try_into().expect("ASCII"))))),
            &plain,
            NOW,
        ),
        ("other-cluster", named(&[&host_uri(ClusterId(9), H1)]), &plain, NOW),
        (
            "other-cluster-of-its-authority",
            another_cluster.issue(h1, &Leaf::named(&[&host_uri(ClusterId(9), H1)])).0,
            &plain,
            NOW,
        ),
        ("bad-chain-server-only", issue(&with(|leaf| drop(leaf.purposes.pop()))), &plain, NOW),
        ("bad-chain-client-only", issue(&with(|leaf| drop(leaf.purposes.remove(0)))), &plain, NOW),
        ("bad-chain-no-purpose", issue(&with(|leaf| leaf.purposes.clear())), &plain, NOW),
        ("bad-chain-an-authority-as-host", issue(&with(|leaf| leaf.is_ca = true)), &plain, NOW),
        ("bad-chain-cut", cut(issue(&ok)), &plain, NOW),
        ("bad-chain-empty", Vec::new(), &plain, NOW),
    ];
    let authority = CertificateDer::from_pem_slice(ca.pem.as_bytes()).expect("DER");
    for (name, leaf, trust, now) in cases {
        let chain: Vec<&[u8]> = vec![&leaf, &authority];
        let verdict = shown(&Trust::open_first(trust, CLUSTER).expect("a list").judge(&chain, now));
        let kind = verdict["kind"].as_str().expect("a kind");
        assert!(name.starts_with(kind), "{name} is {kind}");
        let specimen = json!({
            "cluster": CLUSTER, "chain": chain.iter().map(|der| STANDARD.encode(der)).collect::<Vec<_>>(),
            "trust": serde_json::from_slice::<Value>(trust).expect("JSON"), "nowMs": now.0 * 1000,
            "verdict": verdict,
        });
        keep(&format!("peers/{name}.json"), format!("{specimen}\n").as_bytes());
    }
}

#[test]
fn a_chain_of_no_or_too_many_certificates_is_bad() {
    let stage = Stage::new();
    let trust = stage.trust(1);
    let leaf = stage.ca.issue(&stage.h1, &Leaf::of(H1)).0;
    assert!(trust.judge(&[&leaf], NOW).is_ok(), "the authority need not be sent");
    assert_eq!(trust.judge(&[], NOW), Err(PeerRefusal::BadChain));
    assert_eq!(trust.judge(&[&leaf[..]; MAX_CHAIN + 1], NOW), Err(PeerRefusal::BadChain));
    assert!(trust.lists(H1, pki::kid(&stage.h1)) && !trust.lists(H2, pki::kid(&stage.h1)));
    let late = PeerRefusal::Expired { host: H1, at: WallTime(NOW.0 - HOUR), now: NOW };
    let mut ended = Leaf::of(H1);
    ended.to = WallTime(NOW.0 - HOUR);
    assert_eq!(trust.judge(&[&stage.ca.issue(&stage.h1, &ended).0], NOW), Err(late));
}
