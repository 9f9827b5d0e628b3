//! Two ends in memory: the protocol alone, then with an end that is rustls's own, then streams over a driver that cuts
//! everything anywhere.

use std::io::{Read, Write};

use proptest::prelude::*;
use rustls::SupportedCipherSuite;
use rustls::server::ServerSessionMemoryCache;

use super::*;
use crate::driver::{Outcome, TokenSpace};
use crate::identity::tests::pki::{self, Ca, DAY, H1, H2, Leaf, NOW};
use crate::stream::StreamConfig;

/// Two hosts of a cluster, and their list.
struct Hosts {
    ca: Ca,
    h1: rcgen::KeyPair,
    h2: rcgen::KeyPair,
}

impl Hosts {
    fn new() -> Hosts {
        Hosts { ca: Ca::new("weft 2f4c9a66"), h1: pki::key(), h2: pki::key() }
    }

    fn trust(&self, transport: &str) -> Arc<TrustCell> {
        let hosts = [(H1, pki::kid(&self.h1)), (H2, pki::kid(&self.h2))];
        let mut body = pki::body(1, &[self.ca.entry("active")], &hosts);
        body["transport"] = transport.into();
        Arc::new(TrustCell::new(pki::open(&self.ca.sign(&body))))
    }

    /// H1, which calls.
    fn caller(&self, transport: &str) -> TlsConfigs {
        self.configs(&self.ca.identity(&self.h1, &Leaf::of(H1)), transport)
    }

    /// H2, which is called.
    fn acceptor(&self, transport: &str) -> TlsConfigs {
        self.configs(&self.ca.identity(&self.h2, &Leaf::of(H2)), transport)
    }

    fn configs(&self, identity: &Identity, transport: &str) -> TlsConfigs {
        TlsConfigs::with_clock(identity, self.trust(transport), || NOW)
    }
}

fn client(configs: &TlsConfigs) -> TlsCore {
    TlsCore::client(configs).expect("a client")
}

fn server(configs: &TlsConfigs) -> TlsCore {
    TlsCore::server(configs).expect("a server")
}

/// One direction's bytes, of which at most `step` more are shown at a time.
#[derive(Default)]
struct Wire {
    bytes: Vec<u8>,
    shown: usize,
}

impl Wire {
    fn deliver(&mut self, to: &mut TlsCore, step: usize) -> Result<bool, HandshakeError> {
        let before = self.shown;
        self.shown = (self.shown + step).min(self.bytes.len());
        let mut moved = self.shown > before;
        loop {
            let received = to.receive(&mut self.bytes[..self.shown])?;
            if received.taken == 0 {
                return Ok(moved);
            }
            moved = true;
            self.bytes.drain(..received.taken);
            self.shown -= received.taken;
        }
    }
}

/// Until nothing moves any more, or one of them ends it; each direction's wire as it was left.
fn shake(
    a: &mut TlsCore,
    b: &mut TlsCore,
    step: usize,
) -> (Result<(), HandshakeError>, Result<(), HandshakeError>, Wire, Wire) {
    let (mut to_b, mut to_a) = (Wire::default(), Wire::default());
    let (mut at_a, mut at_b) = (Ok(()), Ok(()));
    loop {
        a.take_output(&mut to_b.bytes);
        b.take_output(&mut to_a.bytes);
        let mut moved = false;
        for (end, wire, result) in [(&mut *b, &mut to_b, &mut at_b), (&mut *a, &mut to_a, &mut at_a)] {
            if result.is_ok() {
                match wire.deliver(end, step) {
                    Ok(more) => moved |= more,
                    Err(error) => {
                        *result = Err(error);
                        moved = true;
                    }
                }
            }
        }
        if !moved {
            return (at_a, at_b, to_b, to_a);
        }
    }
}

fn proven(a: &mut TlsCore, b: &mut TlsCore, step: usize) {
    let (at_a, at_b, ..) = shake(a, b, step);
    assert_eq!((at_a, at_b), (Ok(()), Ok(())));
    let seen = |core: &TlsCore| core.proven().map(|proven| proven.peer.host);
    assert_eq!((seen(a), seen(b)), (Some(H2), Some(H1)));
    assert_eq!(a.proven().map(|p| p.mode), b.proven().map(|p| p.mode));
}

/// All that can be read of these bytes, which are whole records.
fn read(core: &mut TlsCore, wire: &mut [u8]) -> Result<Vec<u8>, HandshakeError> {
    let (mut got, mut rest) = (Vec::new(), wire);
    loop {
        let received = core.receive(rest)?;
        got.extend_from_slice(&rest[received.plain]);
        if received.taken == 0 {
            assert!(rest.is_empty(), "{} bytes are no whole record", rest.len());
            return Ok(got);
        }
        rest = &mut rest[received.taken..];
    }
}

/// What it has to say, behind these bytes.
fn wire_of(core: &mut TlsCore, parts: &[&[u8]]) -> Vec<u8> {
    let mut wire = Vec::new();
    core.send(parts);
    core.take_output(&mut wire);
    wire
}

/// From one to the other, all at once.
fn carry(from: &mut TlsCore, to: &mut TlsCore, bytes: &[u8]) -> Vec<u8> {
    read(to, &mut wire_of(from, &[bytes])).expect("sound")
}

#[test]
fn both_are_proven_and_speak_however_the_bytes_arrive() {
    let stage = Hosts::new();
    for step in [1, 7, 300, usize::MAX / 2] {
        let (mut a, mut b) = (client(&stage.caller("tls")), server(&stage.acceptor("tls")));
        proven(&mut a, &mut b, step);
        assert_eq!(
            a.proven().map(|p| (p.mode, p.peer.not_after)),
            Some((Transport::Tls, WallTime(NOW.0 + 30 * DAY)))
        );
        for len in [1, 64, 4160, 131_136] {
            let text: Vec<u8> = (0..len).map(|i: usize| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
            assert_eq!(carry(&mut a, &mut b, &text), text);
            assert_eq!(carry(&mut b, &mut a, &text), text);
        }
        assert!(a.frame_mac().is_none());
    }
}

#[test]
fn auth_is_spoken_only_if_both_say_so() {
    let stage = Hosts::new();
    for (caller, acceptor, mode) in [
        ("auth", "auth", Transport::Auth),
        ("auth", "tls", Transport::Tls),
        ("tls", "auth", Transport::Tls),
        ("clear", "auth", Transport::Tls),
    ] {
        let (mut a, mut b) = (client(&stage.caller(caller)), server(&stage.acceptor(acceptor)));
        proven(&mut a, &mut b, 1000);
        assert_eq!(a.proven().map(|p| p.mode), Some(mode), "{caller} calls {acceptor}");
    }
}

#[test]
fn under_auth_clear_bytes_behind_the_handshake_are_untouched() {
    let stage = Hosts::new();
    for step in [1, usize::MAX / 2] {
        let (mut a, mut b) = (client(&stage.caller("auth")), server(&stage.acceptor("auth")));
        let (mut to_b, mut to_a) = (Wire::default(), Wire::default());
        // The caller sends its first frame right behind its last flight.
        let mut said = false;
        loop {
            a.take_output(&mut to_b.bytes);
            if a.proven().is_some() && !said {
                to_b.bytes.extend_from_slice(b"weft clear from the caller");
                said = true;
            }
            let moved = to_b.deliver(&mut b, step).expect("sound");
            b.take_output(&mut to_a.bytes);
            if !(to_a.deliver(&mut a, step).expect("sound") || moved) && said {
                break;
            }
        }
        assert_eq!(to_b.bytes, b"weft clear from the caller");
        assert!(to_a.bytes.is_empty(), "the acceptor has nothing behind its handshake");
        let (mut sealing, mut judging) = (a.frame_mac().expect("keys"), b.frame_mac().expect("keys"));
        let mut head = vec![7; 100];
        sealing.seal(&mut head).expect("sealed");
        let (header, rest) = head.split_first_chunk().expect("a header");
        assert_eq!(judging.open(header, &rest[..16], &rest[16..]), Ok(()));
        a.send(&[b"not under auth"]);
        let mut out = Vec::new();
        a.take_output(&mut out);
        assert!(out.is_empty());
    }
}

/// Who is refused by the acceptor hears of it by an alert, behind its own end of the handshake.
#[test]
fn a_peer_that_the_list_does_not_let_in_is_refused_on_either_side() {
    let stage = Hosts::new();
    let mut late = Leaf::of(H1);
    late.to = WallTime(NOW.0 - 1);
    let expired = PeerRefusal::Expired { host: H1, at: late.to, now: NOW };
    let other = Ca::new("weft 2f4c9a66");
    let cases = [
        (stage.ca.identity(&stage.h1, &late), expired, "CertificateExpired"),
        (stage.ca.identity(&pki::key(), &Leaf::of(H1)), PeerRefusal::NotListed, "AccessDenied"),
        (other.identity(&stage.h1, &Leaf::of(H1)), PeerRefusal::Stranger, "UnknownCA"),
    ];
    for (identity, refusal, alert) in cases {
        let bad = stage.configs(&identity, "tls");
        let (mut a, mut b) = (client(&bad), server(&stage.acceptor("tls")));
        let (at_a, at_b, ..) = shake(&mut a, &mut b, 1000);
        assert_eq!(at_b, Err(HandshakeError::Refused(refusal.clone())));
        assert!(matches!(&at_a, Err(HandshakeError::Tls(text)) if text.contains(alert)), "{at_a:?}");
        assert!(b.proven().is_none());
        assert_eq!(b.receive(&mut [22, 3, 3, 0, 1, 1]).map(drop), at_b, "and it stays so");
        // The same host, called by us.
        let (mut a, mut b) = (client(&stage.acceptor("tls")), server(&bad));
        let (at_a, at_b, ..) = shake(&mut a, &mut b, 1000);
        assert_eq!(at_a, Err(HandshakeError::Refused(refusal)));
        assert!(matches!(&at_b, Err(HandshakeError::Tls(text)) if text.contains(alert)), "{at_b:?}");
        assert!(a.proven().is_none() && b.proven().is_none());
    }
}

#[test]
fn a_revoked_peer_is_refused_from_the_next_handshake_on() {
    let stage = Hosts::new();
    let (caller, acceptor) = (stage.caller("tls"), stage.acceptor("tls"));
    let (mut a, mut b) = (client(&caller), server(&acceptor));
    proven(&mut a, &mut b, 1000);
    let hosts = [(H1, pki::kid(&stage.h1)), (H2, pki::kid(&stage.h2))];
    let mut body = pki::body(2, &[stage.ca.entry("active")], &hosts);
    pki::revoke(&mut body, H1, &[pki::kid(&stage.h1)]);
    let next = acceptor.trust.get().advance(&stage.ca.sign(&body)).expect("the next list");
    acceptor.trust.set(next);
    let (mut a, mut b) = (client(&caller), server(&acceptor));
    let (_, at_b, ..) = shake(&mut a, &mut b, 1000);
    assert!(matches!(at_b, Err(HandshakeError::Refused(PeerRefusal::Revoked { host: H1, .. }))), "{at_b:?}");
}

/// A caller of the test's own making.
fn odd_client(configs: &TlsConfigs, change: impl Fn(&mut ClientConfig)) -> TlsCore {
    let judge = configs.judge();
    let mut config = configs.client(judge.clone()).expect("a configuration");
    change(&mut config);
    let name = ServerName::try_from("h2.invalid").expect("a name");
    let tls = ClientConnection::new(Arc::new(config), name).expect("a client");
    TlsCore::over(tls.into(), judge, true)
}

#[test]
fn no_certificate_and_no_or_another_protocol_are_refused() {
    let stage = Hosts::new();
    let caller = stage.caller("tls");
    let nameless: Arc<dyn ResolvesClientCert> = Arc::new(Nobody);
    let cases: [(&str, TlsCore); 3] = [
        ("no certificate", odd_client(&caller, |c| c.client_auth_cert_resolver = nameless.clone())),
        ("no protocol", odd_client(&caller, |c| c.alpn_protocols.clear())),
        (
            "another protocol",
            odd_client(&caller, |c| c.alpn_protocols = vec![b"h2".to_vec(), b"weft-auth/1".to_vec()]),
        ),
    ];
    for (title, mut a) in cases {
        let mut b = server(&stage.acceptor("tls"));
        let (_, at_b, ..) = shake(&mut a, &mut b, 1000);
        assert!(matches!(at_b, Err(HandshakeError::Tls(_))), "{title}: {at_b:?}");
        assert!(b.proven().is_none(), "{title}");
    }
}

#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// A hello of TLS 1.2: the suite and curve of ours, but no supported_versions.
fn hello_of_tls12() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend_from_slice(&[9; 32]);
    body.extend_from_slice(&[0, 0, 4, 0xc0, 0x2b, 0x13, 0x01, 1, 0]);
    let extensions = [
        0, 10, 0, 4, 0, 2, 0, 23, // supported_groups: P-256
        0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ecdsa_secp256r1_sha256
        0, 16, 0, 9, 0, 7, 6, b'w', b'e', b'f', b't', b'/', b'1',
    ];
    body.extend_from_slice(&[0, u8::try_from(extensions.len()).expect("short")]);
    body.extend_from_slice(&extensions);
    let len = u8::try_from(body.len()).expect("short");
    [&[22, 3, 1, 0, len + 4, 1, 0, 0, len], &body[..]].concat()
}

#[test]
fn older_versions_and_what_is_no_tls_are_refused() {
    let stage = Hosts::new();
    let said = |bytes: &[u8]| {
        let mut b = server(&stage.acceptor("tls"));
        let result = b.receive(&mut bytes.to_vec()).map(|received| {
            assert!(received.plain.is_empty());
            received.taken
        });
        let mut out = Vec::new();
        b.take_output(&mut out);
        assert!(b.proven().is_none());
        (result, out)
    };
    let (result, alert) = said(&hello_of_tls12());
    assert!(
        matches!(&result, Err(HandshakeError::Tls(text)) if text.contains("Tls12") || text.contains("SupportedVersions")),
        "{result:?}"
    );
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 70], "protocol_version, fatal");
    let no_tls = Err(HandshakeError::Tls("the peer does not speak TLS".to_owned()));
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"weft\x01\0\0\0", b"SSH-2.0-x\r\n", &[0; 64], &[255; 64]] {
        assert_eq!(said(bytes).0, no_tls, "{bytes:?}");
    }
    assert_eq!(said(&[22, 3, 1, 0xff, 0xff]).0, Err(HandshakeError::TooLong));
    // Every header of a record by itself waits or is refused, and nothing panics.
    for kind in 20..=23u8 {
        for len in [0u8, 1, 2, 40] {
            let mut bytes = vec![kind, 3, 3, 0, len];
            bytes.resize(bytes.len() + usize::from(len), 0x5a);
            let _ = said(&bytes);
        }
    }
}

#[test]
fn a_handshake_without_end_is_too_long() {
    let stage = Hosts::new();
    let mut b = server(&stage.acceptor("tls"));
    // A client hello of 60 kB, in records of 1 kB.
    let mut record = vec![22, 3, 1, 4, 0];
    record.resize(RECORD_HEADER + 1024, 0);
    record[RECORD_HEADER..RECORD_HEADER + 4].copy_from_slice(&[1, 0, 0xea, 0x60]);
    let mut taken = 0;
    let error = loop {
        match b.receive(&mut record) {
            Ok(received) => taken += received.taken,
            Err(error) => break error,
        }
        assert!(taken <= HANDSHAKE_MAX);
    };
    assert_eq!(error, HandshakeError::TooLong);
}

#[test]
fn an_altered_record_ends_the_connection_and_both_are_told() {
    let stage = Hosts::new();
    let (mut a, mut b) = (client(&stage.caller("tls")), server(&stage.acceptor("tls")));
    proven(&mut a, &mut b, 1000);
    let mut wire = wire_of(&mut a, &[b"pay me"]);
    let right = wire.clone();
    let last = wire.len() - 1;
    wire[last] ^= 1;
    let refused = b.receive(&mut wire);
    assert!(matches!(&refused, Err(HandshakeError::Tls(text)) if text.contains("altered")), "{refused:?}");
    assert_eq!(b.receive(&mut right.clone()), refused, "nor the right one any more");
    let mut alert = wire_of(&mut b, &[b"nothing is said behind it"]);
    assert_eq!(alert.len(), sealed_len(2));
    let told = a.receive(&mut alert);
    assert!(matches!(&told, Err(HandshakeError::Tls(text)) if text.contains("BadRecordMac")), "{told:?}");
    assert_eq!(wire_of(&mut a, &[b"more"]), b"", "an alert is not answered");
}

#[test]
fn records_of_another_place_or_another_connection_are_not_taken() {
    let stage = Hosts::new();
    let pair = || {
        let (mut a, mut b) = (client(&stage.caller("tls")), server(&stage.acceptor("tls")));
        proven(&mut a, &mut b, 1000);
        (a, b)
    };
    let records = |a: &mut TlsCore| [b"one", b"two"].map(|text| wire_of(a, &[text]));
    let (mut a, mut b) = pair();
    let [one, two] = records(&mut a);
    assert_eq!(read(&mut b, &mut one.clone()), Ok(b"one".to_vec()));
    assert!(read(&mut b, &mut one.clone()).is_err(), "replayed");
    let (mut a, mut b) = pair();
    let [_, second] = records(&mut a);
    assert!(read(&mut b, &mut second.clone()).is_err(), "reordered, or one dropped");
    let (mut a, mut b) = pair();
    let [first, _] = records(&mut a);
    assert!(read(&mut a, &mut first.clone()).is_err(), "reflected");
    assert!(read(&mut b, &mut two.clone()).is_err(), "of another connection");
}

/// One key is good for so many records; long before, the connection asks to be followed.
#[test]
fn a_connection_wears_out_and_says_so_in_time() {
    let stage = Hosts::new();
    let (mut a, mut b) = (client(&stage.caller("tls")), server(&stage.acceptor("tls")));
    assert!(!a.is_worn());
    proven(&mut a, &mut b, 1000);
    skip_to(&mut a, &mut b, RECORDS_WORN - 1);
    assert!(!a.is_worn() && !b.is_worn());
    assert_eq!(carry(&mut a, &mut b, b"half"), b"half");
    assert!(a.is_worn() && b.is_worn(), "both ends count both ways");
    skip_to(&mut a, &mut b, RECORDS_MAX - 2);
    let two = vec![5; 16_385];
    assert_eq!(carry(&mut a, &mut b, &two), two);
    let mut room = [0; 40];
    let len = sealed_len(1);
    assert!(!a.seal(&[b"1"], &mut room[..len]));
    assert_eq!(room, [0; 40]);
    assert_eq!(
        carry(&mut b, &mut a, b"the other way is as good as before"),
        b"the other way is as good as before"
    );
    // A peer that goes on is not listened to.
    skip_to(&mut a, &mut b, 0);
    let mut wire = wire_of(&mut a, &[b"1"]);
    skip_to(&mut a, &mut b, RECORDS_MAX);
    let refused = b.receive(&mut wire);
    assert!(matches!(&refused, Err(HandshakeError::Tls(text)) if text.contains("good for")), "{refused:?}");
}

/// The next record from `a` to `b` has this number.
fn skip_to(a: &mut TlsCore, b: &mut TlsCore, number: u64) {
    let (Stage::Open(a), Stage::Open(b)) = (&mut a.stage, &mut b.stage) else { panic!("not open") };
    a.skip_to(b, number);
}

#[test]
fn nothing_is_read_or_sent_before_the_proof() {
    let stage = Hosts::new();
    let mut a = client(&stage.caller("tls"));
    let mut hello = Vec::new();
    a.take_output(&mut hello);
    a.send(&[b"early"]);
    let mut more = Vec::new();
    a.take_output(&mut more);
    assert!(more.is_empty());
    let at = |needle: &[u8]| hello.windows(needle.len()).any(|window| window == needle);
    assert!(at(ALPN_TLS) && !at(ALPN_AUTH) && !at(b"\0\x29"), "no pre-shared key is offered");
}

// ---- with rustls at the other end

const SUITES: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// One end of ours, and one that is rustls's from the first byte to the last, of this suite.
fn mixed(suite: SupportedCipherSuite, ours_calls: bool, tickets: usize) -> (TlsCore, Connection) {
    let stage = Hosts::new();
    let only = |mut configs: TlsConfigs| {
        configs.provider =
            Arc::new(CryptoProvider { cipher_suites: vec![suite], ..(*configs.provider).clone() });
        configs
    };
    let (caller, acceptor) = (only(stage.caller("tls")), only(stage.acceptor("tls")));
    let (mut ours, mut other) = if ours_calls {
        let mut config = acceptor.server(acceptor.judge()).expect("a configuration");
        config.send_tls13_tickets = tickets;
        config.session_storage = ServerSessionMemoryCache::new(8);
        let other = ServerConnection::new(Arc::new(config)).expect("a server");
        (client(&caller), Connection::from(other))
    } else {
        let config = caller.client(caller.judge()).expect("a configuration");
        let name = ServerName::try_from("h2.invalid").expect("a name");
        let other = ClientConnection::new(Arc::new(config), name).expect("a client");
        (server(&acceptor), Connection::from(other))
    };
    other.set_buffer_limit(None);
    while ours.proven().is_none() || other.is_handshaking() {
        let wire = wire_of(&mut ours, &[]);
        assert_eq!(hear(&mut other, &wire), Ok(Vec::new()));
        if ours.proven().is_none() {
            assert_eq!(read(&mut ours, &mut said(&mut other)), Ok(Vec::new()));
        }
    }
    assert_eq!(other.negotiated_cipher_suite(), Some(suite));
    (ours, other)
}

/// What rustls reads of these bytes.
fn hear(other: &mut Connection, mut bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    while !bytes.is_empty() {
        assert!(other.read_tls(&mut bytes).expect("it has room") > 0, "it takes nothing more");
        let waiting = other.process_new_packets()?.plaintext_bytes_to_read();
        let at = text.len();
        text.resize(at + waiting, 0);
        other.reader().read_exact(&mut text[at..]).expect("as many as it says");
    }
    Ok(text)
}

/// What rustls has to send.
fn said(other: &mut Connection) -> Vec<u8> {
    let mut wire = Vec::new();
    drain(other, &mut wire);
    wire
}

#[test]
fn rustls_reads_our_records_and_we_read_its_own_by_every_suite() {
    for (suite, ours_calls) in SUITES.into_iter().flat_map(|suite| [(suite, true), (suite, false)]) {
        let (mut ours, mut other) = mixed(suite, ours_calls, 0);
        for len in [1, 15, 16, 17, 4160, 16_383, 16_384, 16_385, 32_768, 131_136, 300_000] {
            let text: Vec<u8> = (0..len).map(|i: usize| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
            let (head, rest) = text.split_at(len / 3);
            let wire = wire_of(&mut ours, &[head, &[], rest]);
            assert_eq!(wire.len(), sealed_len(len));
            assert!(hear(&mut other, &wire).expect("sound") == text, "{suite:?}: {len} bytes of ours");
            other.writer().write_all(&text).expect("it has room");
            let mut wire = said(&mut other);
            assert_eq!(wire.len(), sealed_len(len), "it cuts them as we do");
            assert!(read(&mut ours, &mut wire).expect("sound") == text, "{suite:?}: {len} bytes of its own");
        }
    }
}

#[test]
fn alerts_pass_between_us_and_rustls_in_both_directions() {
    for (suite, ours_calls) in SUITES.into_iter().flat_map(|suite| [(suite, true), (suite, false)]) {
        // It sends a wrong record, and hears of it.
        let (mut ours, mut other) = mixed(suite, ours_calls, 0);
        other.writer().write_all(b"pay me").expect("it has room");
        let mut wire = said(&mut other);
        wire[7] ^= 1;
        assert!(read(&mut ours, &mut wire).is_err());
        let told = hear(&mut other, &wire_of(&mut ours, &[]));
        assert_eq!(told, Err(Error::AlertReceived(rustls::AlertDescription::BadRecordMac)));
        // So do we.
        let (mut ours, mut other) = mixed(suite, ours_calls, 0);
        let mut wire = wire_of(&mut ours, &[b"pay me"]);
        wire[7] ^= 1;
        assert_eq!(hear(&mut other, &wire), Err(Error::DecryptError));
        let told = read(&mut ours, &mut said(&mut other));
        assert!(matches!(&told, Err(HandshakeError::Tls(text)) if text.contains("BadRecordMac")), "{told:?}");
        // It takes its leave: what it said before is read, what comes behind is not.
        let (mut ours, mut other) = mixed(suite, ours_calls, 0);
        other.writer().write_all(b"so long").expect("it has room");
        let mut wire = said(&mut other);
        other.send_close_notify();
        assert_eq!(read(&mut ours, &mut wire), Ok(b"so long".to_vec()));
        let closed = Err(HandshakeError::Tls("the peer closed the connection".to_owned()));
        assert_eq!(read(&mut ours, &mut said(&mut other)), closed);
        assert_eq!(wire_of(&mut ours, &[b"more"]), b"");
    }
}

#[test]
fn a_handshake_that_goes_on_after_its_end_is_refused() {
    let refused = |ours: &mut TlsCore, other: &mut Connection, title: &str| {
        let mut wire = said(other);
        assert!(!wire.is_empty(), "{title}: rustls sends none");
        let result = read(ours, &mut wire);
        let over = |text: &str| text.contains("a handshake that is over");
        assert!(matches!(&result, Err(HandshakeError::Tls(text)) if over(text)), "{title}: {result:?}");
        let told = hear(other, &wire_of(ours, &[]));
        assert_eq!(told, Err(Error::AlertReceived(rustls::AlertDescription::UnexpectedMessage)), "{title}");
    };
    for ours_calls in [true, false] {
        let (mut ours, mut other) = mixed(SUITES[0], ours_calls, 0);
        other.refresh_traffic_keys().expect("after the handshake");
        refused(&mut ours, &mut other, "other keys");
    }
    let (mut ours, mut other) = mixed(SUITES[0], true, 2);
    refused(&mut ours, &mut other, "a ticket");
}

// ---- streams

/// Both ends of a connection and what is on the way, moved in pieces of at most `step` bytes.
struct Pipe {
    ends: [TlsStream; 2],
    /// To the first end, to the second.
    wires: [Vec<u8>; 2],
    receives: [Option<(u64, Op)>; 2],
    sends: [Option<(u64, Op)>; 2],
    step: usize,
}

/// What a kernel would hold: beyond it a send waits.
const WIRE_BYTES: usize = 100_000;

fn byte_stream(space: u16) -> ByteStream {
    let socket: Fd = Arc::new(std::fs::File::open("/dev/null").expect("/dev/null").into());
    ByteStream::new(socket, StreamConfig::new(TokenSpace(space)))
}

impl Pipe {
    fn new(caller: &TlsConfigs, acceptor: &TlsConfigs, step: usize) -> Pipe {
        let a = TlsStream::client(byte_stream(1), caller, 4 << 20).expect("a client");
        let b = TlsStream::server(byte_stream(2), acceptor, 4 << 20).expect("a server");
        Pipe {
            ends: [a, b],
            wires: [Vec::new(), Vec::new()],
            receives: [None, None],
            sends: [None, None],
            step,
        }
    }

    /// One turn; false when nothing moved.
    fn turn(&mut self) -> bool {
        let mut moved = false;
        for end in 0..2 {
            while let Some((token, op)) = self.ends[end].poll_op() {
                match op {
                    Op::Send { .. } => self.sends[end] = Some((token, op)),
                    op => self.receives[end] = Some((token, op)),
                }
            }
            if self.wires[1 - end].len() < WIRE_BYTES
                && let Some((token, Op::Send { socket, parts, skip })) = self.sends[end].take()
            {
                let bytes: Vec<u8> = parts.iter().flat_map(Part::bytes).copied().skip(skip).collect();
                let count = bytes.len().min(self.step);
                self.wires[1 - end].extend_from_slice(&bytes[..count]);
                let op = Op::Send { socket, parts, skip };
                let result = Ok(Outcome::Bytes(count));
                self.ends[end].handle_completion(Completion { token, op, result });
                moved = true;
            }
            if self.wires[end].is_empty() {
                continue;
            }
            let Some((token, Op::Recv { socket, mut buf, start, len })) = self.receives[end].take() else {
                continue;
            };
            let count = len.min(self.step).min(self.wires[end].len());
            buf.bytes_mut()[start..start + count].copy_from_slice(&self.wires[end][..count]);
            self.wires[end].drain(..count);
            let op = Op::Recv { socket, buf, start, len };
            self.ends[end].handle_completion(Completion { token, op, result: Ok(Outcome::Bytes(count)) });
            moved = true;
        }
        moved
    }

    fn settle(&mut self) {
        while self.turn() {}
    }

    /// The peer is gone, as its kernel tells.
    fn end_of(&mut self, end: usize) {
        let (token, op) = self.receives[end].take().expect("a receive");
        self.ends[end].handle_completion(Completion { token, op, result: Ok(Outcome::Bytes(0)) });
    }
}

/// A header of 64 bytes that says how long the data is, and the data.
fn frame(number: u8, data: usize) -> (Vec<u8>, IoBuf) {
    let mut head = vec![number; 64];
    head[..4].copy_from_slice(&u32::try_from(data).expect("short").to_le_bytes());
    let bytes: Vec<u8> = (0..data).map(|i| number ^ i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    (head, IoBuf::copy_of(&bytes))
}

/// The next frame, as a reader of frames asks for it.
fn next_frame(stream: &mut TlsStream, head: &mut Option<Vec<u8>>) -> Option<(Vec<u8>, IoBuf)> {
    if head.is_none() {
        stream.prepare(64);
        let bytes = stream.bytes().get(..64)?.to_vec();
        stream.consume(64);
        let data = u32::from_le_bytes(*bytes.first_chunk().expect("64 bytes"));
        stream.begin_fill(usize::try_from(data).expect("short"));
        *head = Some(bytes);
    }
    let data = stream.poll_filled()?;
    head.take().map(|head| (head, data))
}

#[test]
fn frames_pass_a_stream_however_it_is_cut() {
    let stage = Hosts::new();
    for step in [1, 97, 5000, usize::MAX] {
        let mut pipe = Pipe::new(&stage.caller("tls"), &stage.acceptor("tls"), step);
        let sizes: &[usize] = if step == 1 {
            &[0, 64, 4096]
        } else {
            &[0, 1, 4096, 131_072, 131_072, 512, 131_072, 16_384, 16_320]
        };
        let mut left = Vec::new();
        // Queued before the proof: it waits for it.
        for (number, size) in sizes.iter().enumerate() {
            let (head, data) = frame(number.to_le_bytes()[0], *size);
            let _ = pipe.ends[0].queue(Part::Bytes(head.clone()));
            let _ = pipe.ends[0].queue(Part::Buf(data.clone()));
            left.push((head, data));
        }
        let mut got = Vec::new();
        let mut head = None;
        loop {
            let moved = pipe.turn();
            let before = got.len();
            while let Some(frame) = next_frame(&mut pipe.ends[1], &mut head) {
                assert!(frame.1.is_aligned());
                got.push(frame);
            }
            if !moved && got.len() == before {
                break;
            }
        }
        assert_eq!(pipe.ends[1].poll_handshake().map(|p| p.map(|p| p.peer.host)), Ok(Some(H1)));
        assert_eq!(got.len(), left.len(), "step {step}");
        for (got, left) in got.iter().zip(&left) {
            assert!(got.0 == left.0 && got.1.bytes() == left.1.bytes(), "step {step}");
        }
        assert_eq!(pipe.ends[0].queued(), 0);
    }
}

#[test]
fn what_is_queued_is_bounded_and_drains() {
    let stage = Hosts::new();
    let mut pipe = Pipe::new(&stage.caller("tls"), &stage.acceptor("tls"), usize::MAX);
    pipe.settle();
    let data = IoBuf::copy_of(&vec![3; 1 << 20]);
    let mut count = 0;
    while pipe.ends[0].queue(Part::Buf(data.clone())) == Pressure::Go {
        count += 1;
        assert!(count < 5);
    }
    assert!(!pipe.ends[0].is_writable());
    // Nobody reads: it stands still with full buffers, and goes on when somebody does.
    pipe.settle();
    let stuck = pipe.ends[0].queued();
    assert!(stuck > 2 << 20, "{stuck} bytes still wait");
    let mut read = 0;
    loop {
        let moved = pipe.turn();
        pipe.ends[1].prepare(PLAIN_BYTES);
        let len = pipe.ends[1].bytes().len();
        pipe.ends[1].consume(len);
        read += len;
        if !moved && len == 0 {
            break;
        }
    }
    assert_eq!((read, pipe.ends[0].queued()), (4 << 20, 0));
    assert!(pipe.ends[0].is_writable());
}

#[test]
fn under_auth_the_streams_go_clear_behind_the_handshake() {
    let stage = Hosts::new();
    for step in [1, usize::MAX] {
        let mut pipe = Pipe::new(&stage.caller("auth"), &stage.acceptor("auth"), step);
        pipe.settle();
        for end in &pipe.ends {
            let proven = end.poll_handshake().expect("sound").expect("proven");
            assert_eq!(proven.mode, Transport::Auth);
        }
        assert!(pipe.receives.iter().all(Option::is_none), "nothing is received before it goes clear");
        let [a, b] = pipe.ends;
        let ((mut a, mut sealing), (mut b, mut judging)) = (a.into_auth(), b.into_auth());
        let mut head = vec![1; 80];
        sealing.seal(&mut head).expect("sealed");
        let _ = a.queue(Part::Bytes(head));
        let Some((_, Op::Send { parts, .. })) = a.poll_send() else { panic!("nothing to send") };
        let bytes: Vec<u8> = parts.iter().flat_map(Part::bytes).copied().collect();
        let Some((token, Op::Recv { socket, mut buf, start, len })) = b.poll_recv() else {
            panic!("no receive")
        };
        buf.bytes_mut()[start..start + bytes.len()].copy_from_slice(&bytes);
        let result = Ok(Outcome::Bytes(bytes.len()));
        b.handle_completion(Completion { token, op: Op::Recv { socket, buf, start, len }, result });
        let (header, rest) = b.bytes().split_first_chunk().expect("a header");
        assert_eq!(judging.open(header, &rest[..16], &rest[16..]), Ok(()));
    }
}

#[test]
fn a_refused_peer_is_told_and_the_stream_ends() {
    let stage = Hosts::new();
    let stranger = stage.configs(&stage.ca.identity(&pki::key(), &Leaf::of(H1)), "tls");
    let mut pipe = Pipe::new(&stranger, &stage.acceptor("tls"), usize::MAX);
    let _ = pipe.ends[0].queue(Part::Bytes(b"let me in".to_vec()));
    pipe.settle();
    let refused = HandshakeError::Refused(PeerRefusal::NotListed);
    assert_eq!(pipe.ends[1].poll_handshake(), Err(refused));
    assert_eq!(pipe.ends[1].ended(), Some(StreamEnd::Closed));
    assert!(pipe.ends[1].bytes().is_empty());
    pipe.ends[0].prepare(1);
    let told = pipe.ends[0].poll_handshake().err();
    assert!(matches!(&told, Some(HandshakeError::Tls(text)) if text.contains("AccessDenied")), "{told:?}");
    assert!(pipe.ends[0].ended().is_some());
}

#[test]
fn a_stream_that_is_cut_off_gives_what_had_arrived() {
    let stage = Hosts::new();
    let mut pipe = Pipe::new(&stage.caller("tls"), &stage.acceptor("tls"), usize::MAX);
    pipe.settle();
    let _ = pipe.ends[0].queue(Part::Bytes(b"whole".to_vec()));
    pipe.settle();
    assert!(pipe.receives[1].is_none(), "not while a record waits to be read");
    pipe.ends[1].prepare(100);
    pipe.settle();
    pipe.end_of(1);
    assert_eq!(pipe.ends[1].ended(), Some(StreamEnd::Closed));
    pipe.ends[1].prepare(100);
    assert_eq!(pipe.ends[1].bytes(), b"whole");
    // In the middle of a handshake: never proven.
    let mut pipe = Pipe::new(&stage.caller("tls"), &stage.acceptor("tls"), 100);
    for _ in 0..3 {
        pipe.turn();
    }
    while pipe.receives[1].is_none() {
        pipe.turn();
    }
    pipe.end_of(1);
    assert_eq!(pipe.ends[1].poll_handshake(), Ok(None));
    assert_eq!(pipe.ends[1].ended(), Some(StreamEnd::Closed));
    pipe.ends[0].close();
    assert_eq!((pipe.ends[0].ended(), pipe.ends[0].queued()), (Some(StreamEnd::Closed), 0));
}

/// Frames until nothing moves any more.
fn frames(pipe: &mut Pipe) -> Vec<(Vec<u8>, IoBuf)> {
    let (mut got, mut head) = (Vec::new(), None);
    loop {
        let moved = pipe.turn();
        let before = got.len();
        while let Some(frame) = next_frame(&mut pipe.ends[1], &mut head) {
            got.push(frame);
        }
        if !moved && got.len() == before {
            return got;
        }
    }
}

/// A stream on which three frames are under way, in one piece: 64 and 20000 bytes each.
fn three_under_way() -> (Pipe, Vec<(Vec<u8>, IoBuf)>) {
    let stage = Hosts::new();
    let mut pipe = Pipe::new(&stage.caller("tls"), &stage.acceptor("tls"), usize::MAX);
    pipe.settle();
    let sent: Vec<_> = (0..3).map(|number| frame(number, 20_000)).collect();
    for (head, data) in &sent {
        let _ = pipe.ends[0].queue(Part::Bytes(head.clone()));
        let _ = pipe.ends[0].queue(Part::Buf(data.clone()));
    }
    // Sent, and held up before the other end.
    let receive = pipe.receives[1].take();
    pipe.turn();
    assert_eq!(pipe.wires[1].len(), sealed_len(3 * 20_064));
    pipe.receives[1] = receive;
    (pipe, sent)
}

fn all_as_sent(got: &[(Vec<u8>, IoBuf)], sent: &[(Vec<u8>, IoBuf)]) {
    for (got, sent) in got.iter().zip(sent) {
        assert!(got.0 == sent.0 && got.1.bytes() == sent.1.bytes());
    }
}

/// Of what somebody on the path has altered, nothing is given to anybody; what came before it is.
#[test]
fn a_byte_altered_anywhere_ends_the_stream_at_its_record() {
    let record = sealed_len(16_384);
    for at in
        [0, 3, 4, 5, 6, 16_388, record - 1, record, record + 4, record + 900, 2 * record + 77, 3 * record + 9]
    {
        let (mut pipe, sent) = three_under_way();
        pipe.wires[1][at] ^= 1;
        let got = frames(&mut pipe);
        // Plaintext before the altered record, in frames.
        let whole = (at / record * 16_384) / 20_064;
        assert_eq!(got.len(), whole, "byte {at}");
        all_as_sent(&got, &sent);
        // A length that is shorter or longer is a wrong one as well.
        assert!(matches!(pipe.ends[1].poll_handshake(), Err(HandshakeError::Tls(_))), "byte {at}");
        assert_eq!(pipe.ends[1].ended(), Some(StreamEnd::Closed), "byte {at}: when its alert is sent");
        pipe.ends[0].prepare(1);
        let told = pipe.ends[0].poll_handshake().err();
        assert!(matches!(&told, Some(HandshakeError::Tls(text)) if text.contains("alert")), "{told:?}");
    }
}

/// The end of the stream at any place: what arrived whole is given, the rest is not, and it is no fault.
#[test]
fn a_stream_may_end_within_any_record() {
    let record = sealed_len(16_384);
    let all = sealed_len(3 * 20_064);
    for len in
        [0, 1, 4, 5, 6, record - 1, record, record + 1, 2 * record - 1, 2 * record, 3 * record + 50, all]
    {
        let (mut pipe, sent) = three_under_way();
        pipe.wires[1].truncate(len);
        let got = frames(&mut pipe);
        pipe.end_of(1);
        let plain = if len == all { 3 * 20_064 } else { len / record * 16_384 };
        assert_eq!(got.len(), plain / 20_064, "{len} bytes");
        all_as_sent(&got, &sent);
        assert!(next_frame(&mut pipe.ends[1], &mut None).is_none());
        assert!(pipe.ends[1].poll_handshake().is_ok(), "{len} bytes");
        assert_eq!(pipe.ends[1].ended(), Some(StreamEnd::Closed));
    }
}

/// A connection that nobody followed ends before its keys are worn out; what was sealed before arrives.
#[test]
fn a_stream_ends_by_itself_when_its_keys_are_worn_out() {
    let stage = Hosts::new();
    let mut pipe = Pipe::new(&stage.caller("tls"), &stage.acceptor("tls"), usize::MAX);
    pipe.settle();
    let [a, b] = &mut pipe.ends;
    skip_to(&mut a.core, &mut b.core, RECORDS_MAX - 1);
    let (head, data) = frame(1, 16_000);
    let _ = pipe.ends[0].queue(Part::Bytes(head));
    let _ = pipe.ends[0].queue(Part::Buf(data));
    assert_eq!(frames(&mut pipe).len(), 1);
    assert!(pipe.ends.iter().all(TlsStream::is_worn) && pipe.ends[0].ended().is_none());
    let _ = pipe.ends[0].queue(Part::Bytes(vec![1]));
    pipe.settle();
    assert_eq!(pipe.ends[0].ended(), Some(StreamEnd::Closed));
    assert!(pipe.ends[0].poll_handshake().is_ok(), "nobody's fault");
    assert_eq!(pipe.ends[0].queued(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_pass_a_stream_whatever_their_lengths_and_its_pieces(
        sizes in prop::collection::vec(prop_oneof![0usize..300, 16_200usize..16_500, 32_700usize..32_800], 1..8),
        steps in prop::collection::vec(prop_oneof![1usize..30, 1000usize..70_000], 1..20),
    ) {
        let stage = Hosts::new();
        let mut pipe = Pipe::new(&stage.caller("tls"), &stage.acceptor("tls"), usize::MAX);
        pipe.settle();
        let sent: Vec<_> = (0..).zip(&sizes).map(|(number, size)| frame(number, *size)).collect();
        for (head, data) in &sent {
            let _ = pipe.ends[0].queue(Part::Bytes(head.clone()));
            let _ = pipe.ends[0].queue(Part::Buf(data.clone()));
        }
        let (mut got, mut head) = (Vec::new(), None);
        for step in steps.iter().cycle() {
            pipe.step = *step;
            let moved = pipe.turn();
            while let Some(frame) = next_frame(&mut pipe.ends[1], &mut head) {
                got.push(frame);
            }
            if !moved {
                break;
            }
        }
        prop_assert_eq!(got.len(), sent.len());
        all_as_sent(&got, &sent);
        prop_assert!(pipe.ends[1].bytes().is_empty());
    }
}
