//! Two ends in memory: the protocol alone, then streams over a driver that cuts everything anywhere.

use rustls::Tls13CipherSuite;
use rustls::crypto::CryptoProvider;

use super::*;
use crate::driver::{Outcome, TokenSpace};
use crate::identity::tests::pki::{self, Ca, DAY, H1, H2, Leaf, NOW};
use crate::stream::StreamConfig;

/// Two hosts of a cluster, and their list.
struct Stage {
    ca: Ca,
    h1: rcgen::KeyPair,
    h2: rcgen::KeyPair,
}

impl Stage {
    fn new() -> Stage {
        Stage { ca: Ca::new("weft 2f4c9a66"), h1: pki::key(), h2: pki::key() }
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
            let count = to.receive(&self.bytes[..self.shown])?;
            if count == 0 {
                return Ok(moved);
            }
            moved = true;
            self.bytes.drain(..count);
            self.shown -= count;
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

/// From one to the other, all at once.
fn carry(from: &mut TlsCore, to: &mut TlsCore, bytes: &[u8]) -> Vec<u8> {
    let (mut wire, mut got, mut buf) = (Vec::new(), Vec::new(), vec![0; 20_000]);
    from.send(&[bytes]);
    from.take_output(&mut wire);
    let mut rest = &wire[..];
    loop {
        let taken = to.receive(rest).expect("sound");
        rest = &rest[taken..];
        let read = to.read(&mut buf);
        got.extend_from_slice(&buf[..read]);
        if taken == 0 && read == 0 {
            assert!(rest.is_empty());
            return got;
        }
    }
}

#[test]
fn both_are_proven_and_speak_however_the_bytes_arrive() {
    let stage = Stage::new();
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
    let stage = Stage::new();
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
    let stage = Stage::new();
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
    let stage = Stage::new();
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
        assert_eq!(b.receive(&[22, 3, 3, 0, 1, 1]), at_b.map(|()| 0), "and it stays so");
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
    let stage = Stage::new();
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
    let stage = Stage::new();
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
    let stage = Stage::new();
    let said = |bytes: &[u8]| {
        let mut b = server(&stage.acceptor("tls"));
        let result = b.receive(bytes);
        let mut out = Vec::new();
        b.take_output(&mut out);
        assert!(b.proven().is_none() && b.read(&mut [0; 10]) == 0);
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
    let stage = Stage::new();
    let mut b = server(&stage.acceptor("tls"));
    // A client hello of 60 kB, in records of 1 kB.
    let mut record = vec![22, 3, 1, 4, 0];
    record.resize(RECORD_HEADER + 1024, 0);
    record[RECORD_HEADER..RECORD_HEADER + 4].copy_from_slice(&[1, 0, 0xea, 0x60]);
    let mut taken = 0;
    let error = loop {
        match b.receive(&record) {
            Ok(count) => taken += count,
            Err(error) => break error,
        }
        assert!(taken <= HANDSHAKE_MAX);
    };
    assert_eq!(error, HandshakeError::TooLong);
}

#[test]
fn an_altered_record_ends_the_connection() {
    let stage = Stage::new();
    let (mut a, mut b) = (client(&stage.caller("tls")), server(&stage.acceptor("tls")));
    proven(&mut a, &mut b, 1000);
    let mut wire = Vec::new();
    a.send(&[b"pay me"]);
    a.take_output(&mut wire);
    let last = wire.len() - 1;
    wire[last] ^= 1;
    let result = b.receive(&wire);
    assert!(matches!(result, Err(HandshakeError::Tls(_))), "{result:?}");
    assert_eq!(b.read(&mut [0; 10]), 0);
    let mut alert = Vec::new();
    b.take_output(&mut alert);
    assert!(!alert.is_empty(), "the peer is told");
}

/// The keys change before AES-GCM's limit of records, unasked, in both directions.
#[test]
fn keys_are_renewed_before_their_limit() {
    let stage = Stage::new();
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().expect("one of TLS 1.3");
    let mut common = rustls::CipherSuiteCommon { confidentiality_limit: 8, ..suite.common };
    common.suite = suite.common.suite;
    let short: &'static Tls13CipherSuite = Box::leak(Box::new(Tls13CipherSuite {
        common,
        hkdf_provider: suite.hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: suite.quic,
    }));
    let limited = |mut configs: TlsConfigs| {
        let provider = CryptoProvider { cipher_suites: vec![short.into()], ..(*configs.provider).clone() };
        configs.provider = Arc::new(provider);
        configs
    };
    let mut a = client(&limited(stage.caller("tls")));
    let mut b = server(&limited(stage.acceptor("tls")));
    proven(&mut a, &mut b, 1000);
    for round in 0..100u8 {
        let text = vec![round; 200];
        assert_eq!(carry(&mut a, &mut b, &text), text, "round {round}");
        assert_eq!(carry(&mut b, &mut a, &text), text, "round {round}");
    }
}

#[test]
fn nothing_is_read_or_sent_before_the_proof() {
    let stage = Stage::new();
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
    let stage = Stage::new();
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
    let stage = Stage::new();
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
    let stage = Stage::new();
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
    let stage = Stage::new();
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
    let stage = Stage::new();
    let mut pipe = Pipe::new(&stage.caller("tls"), &stage.acceptor("tls"), usize::MAX);
    pipe.settle();
    let _ = pipe.ends[0].queue(Part::Bytes(b"whole".to_vec()));
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
