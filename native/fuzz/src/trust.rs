//! Signed trust lists from the store or a file, and certificates from peers.
//!
//! Must always hold:
//! * without the authority's key nothing but the list that it signed is ever followed;
//! * whatever an authority signs, the generation in force never falls, and one generation has one list;
//! * a peer is let in only by the very certificate that was issued, while it is valid.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use weft_io::identity::{PeerRefusal, Trust, TrustError, WallTime};
use weft_proto::ids::ClusterId;

use crate::input::Input;

const LIST: &[u8] = include_bytes!("../../weft-io/specimens/trust.json");
pub(crate) const HOST: &[u8] = include_bytes!("../../weft-io/specimens/h1.pem");
const KEY: &[u8] = include_bytes!("../../weft-io/specimens/authority-key.pem");
/// As `specimens/` has it.
const CLUSTER: ClusterId = ClusterId(0x2f4c_9a66_3a0e_4ad0_9a83_5c2d_58b3_f9f1);
const GENERATION: u64 = 17;
const FROM: u64 = 1_795_262_400 - 25 * 3600;
const TO: u64 = 1_795_262_400 + 30 * 86_400;

struct Known {
    trust: Trust,
    envelope: Value,
    body: Value,
    leaf: Vec<u8>,
    key: EcdsaKeyPair,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let envelope: Value = serde_json::from_slice(LIST).expect("JSON");
    let der = PrivatePkcs8KeyDer::from_pem_slice(KEY).expect("a key");
    let (algorithm, random) = (&ECDSA_P256_SHA256_ASN1_SIGNING, SystemRandom::new());
    Known {
        trust: Trust::open_first(LIST, CLUSTER).expect("a list"),
        body: serde_json::from_str(envelope["body"].as_str().expect("text")).expect("JSON"),
        envelope,
        leaf: CertificateDer::from_pem_slice(HOST).expect("a certificate").to_vec(),
        key: EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der(), &random).expect("a P-256 key"),
    }
});

/// The known list with another transport.
pub(crate) fn list_of(transport: &str) -> Trust {
    let mut body = KNOWN.body.clone();
    body["transport"] = json!(transport);
    Trust::open_first(&sign(&body.to_string()), CLUSTER).expect("a list")
}

/// What the authority says.
fn sign(body: &str) -> Vec<u8> {
    let message = [b"weft trust v1\0", body.as_bytes()].concat();
    let signature = KNOWN.key.sign(&SystemRandom::new(), &message).expect("signed");
    let sig = STANDARD.encode(signature.as_ref());
    json!({ "body": body, "by": KNOWN.envelope["by"], "sig": sig }).to_string().into_bytes()
}

/// First byte: any bytes, the known list altered, another one that is really signed, or a peer's certificate.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.u8() % 4 {
        0 => forged(input.rest()),
        1 => forged(&altered(LIST.to_vec(), &mut input)),
        2 => signed(&mut input),
        _ => peer(&mut input),
    }
}

/// Nobody signed this: it is refused, or still the known list.
fn forged(list: &[u8]) {
    if let Ok(trust) = Trust::open_first(list, CLUSTER) {
        assert_eq!(trust.generation, GENERATION, "a forged list is kept");
        assert!(trust.judge(&[&KNOWN.leaf], WallTime(FROM)).is_ok());
    }
    if let Ok(trust) = KNOWN.trust.advance(list) {
        assert_eq!(trust.generation, GENERATION, "a forged list is followed");
    }
}

/// A bit, a byte, a cut or a piece of the input in it.
fn altered(mut bytes: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    for _ in 0..=input.below(3) {
        let at = usize::from(input.u16()) % bytes.len().max(1);
        match input.u8() % 4 {
            0 if at < bytes.len() => bytes[at] ^= 1 << (input.u8() % 8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at.min(bytes.len()), input.u8()),
            _ => {
                let len = usize::from(input.u8());
                bytes.splice(at..(at + len).min(bytes.len()), input.take(len).iter().copied());
            }
        }
    }
    bytes
}

/// The authority signs whatever the input makes of the body.
fn signed(input: &mut Input<'_>) {
    let mut body = KNOWN.body.clone();
    for _ in 0..input.below(4) {
        let fields =
            ["fmt", "cluster", "generation", "transport", "authorities", "hosts", "revoked", "rotation", "x"];
        let field = *input.pick(&fields);
        body[field] = match input.u8() % 8 {
            0 => Value::Null,
            1 => json!(input.number()),
            2 | 3 => json!(input.number().to_string()),
            4 => json!(input.pick(&["tls", "auth", "clear", "issue", "active", "incoming", "outgoing"])),
            5 => json!({ String::from_utf8_lossy(input.take(36)): { "keys": [], "at": "" } }),
            6 => json!({ "phase": "issue" }),
            _ => {
                let state = *input.pick(&["active", "incoming", "outgoing"]);
                let mut authorities = KNOWN.body["authorities"].clone();
                authorities[0]["state"] = json!(state);
                authorities
            }
        };
    }
    let mut body = body.to_string();
    if input.one_in(8) {
        body = String::from_utf8_lossy(&altered(body.into_bytes(), input)).into_owned();
    }
    let list = sign(&body);
    let first = Trust::open_first(&list, CLUSTER);
    let next = KNOWN.trust.advance(&list);
    let same = KNOWN.envelope["body"] == json!(body);
    match &next {
        Ok(next) => {
            assert!(first.is_ok(), "followed, but not to be read again");
            assert!(same || next.generation > GENERATION, "generation {} is followed", next.generation);
            assert_eq!(next.cluster(), CLUSTER);
            let again = next.advance(&list).expect("the same again");
            assert_eq!(again.generation, next.generation);
            if !same {
                let back = next.advance(LIST).err();
                let unknown = Some(TrustError::UnknownSigner);
                let older = TrustError::Older { known: next.generation, offered: GENERATION };
                assert!(back == unknown || back == Some(older), "{back:?}");
            }
            let verdict = next.judge(&[&KNOWN.leaf], WallTime(FROM));
            if let Ok(peer) = &verdict {
                assert!(next.lists(peer.host, peer.kid) && !next.is_revoked(peer.host));
            }
        }
        Err(TrustError::Older { offered, .. }) => assert!(*offered < GENERATION),
        Err(TrustError::Forked { generation }) => assert_eq!(*generation, GENERATION),
        Err(TrustError::BadSignature) => panic!("signed, and not verified"),
        Err(_) => {}
    }
}

fn peer(input: &mut Input<'_>) {
    let now = if input.flag() { WallTime(FROM + u64::from(input.u32())) } else { WallTime(input.number()) };
    let leaf = if input.one_in(4) {
        input.rest().to_vec()
    } else if input.flag() {
        altered(KNOWN.leaf.clone(), input)
    } else {
        KNOWN.leaf.clone()
    };
    let valid = (FROM..=TO).contains(&now.0);
    let verdict = KNOWN.trust.judge(&[&leaf], now);
    if leaf == KNOWN.leaf {
        match verdict {
            Ok(peer) => assert!(valid && peer.not_after == WallTime(TO)),
            Err(PeerRefusal::Expired { at, .. }) => assert!(now > at && at == WallTime(TO)),
            Err(PeerRefusal::NotYetValid { at, .. }) => assert!(now < at && at == WallTime(FROM)),
            Err(other) => panic!("{other:?} of a sound certificate"),
        }
    } else {
        let refusal = verdict.expect_err("a certificate that nobody issued");
        assert!(
            matches!(refusal, PeerRefusal::Stranger | PeerRefusal::OtherCluster | PeerRefusal::BadChain),
            "{refusal:?} of a certificate that nobody issued"
        );
    }
}
