//! Frames and bytes between two ends of one loop.

use core::time::Duration;
use std::io::Write;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use weft_proto::ids::{Epoch, Generation};
use weft_proto::message::{Answer, Ask, Extent, Hole, Request, Response};
use weft_proto::payload::{Payload, block_crcs};
use weft_proto::wire::{FrameKind, decode_request, decode_response, encode_request, encode_response};

use super::*;
use crate::driver::{AnyDriver, Driver, DriverConfig, DriverKind, Outcome, TokenSpace, open};
use crate::identity::tests::pki::{self, Ca, H1, H2, Leaf, NOW};
use crate::identity::{Kid, PeerRefusal, TrustCell};
use crate::testing::TempDir;
use crate::tls::TlsConfigs;
use weft_proto::ids::HostId;

const KINDS: [DriverKind; 2] = [DriverKind::IoUring, DriverKind::Libaio];

fn driver(kind: DriverKind) -> AnyDriver {
    open(Some(kind), DriverConfig { entries: 16, ..DriverConfig::default() }).expect("a driver")
}

fn config(space: u16) -> StreamConfig {
    StreamConfig::new(TokenSpace(space))
}

/// Two connected TCP sockets, the way the daemon makes them.
fn pair(driver: &mut AnyDriver) -> (Fd, Fd) {
    let (listener, address) = listen("127.0.0.1:0".parse().expect("address")).expect("listens");
    let caller = connect(address, None).expect("connects");
    driver.submit(1, Op::Accept { listener });
    driver.submit(2, Op::PollWrite { fd: caller.clone() });
    let mut done = Vec::new();
    while done.len() < 2 {
        driver.wait(Some(Duration::from_secs(10)), &mut done).expect("wait");
    }
    connected(&caller).expect("connected");
    let accepted = done.into_iter().find_map(|c| match c.result {
        Ok(Outcome::Accepted(fd)) => Some(Arc::new(fd)),
        _ => None,
    });
    let accepted: Fd = accepted.expect("accepted");
    set_up(&accepted).expect("set up");
    (caller, accepted)
}

/// One turn of a reactor's loop with two connections.
fn turn(driver: &mut AnyDriver, conns: [&mut Conn; 2]) {
    let mut done = Vec::new();
    let [a, b] = conns;
    for conn in [&mut *a, &mut *b] {
        while let Some((token, op)) = conn.poll_op() {
            driver.submit(token, op);
        }
    }
    driver.wait(Some(Duration::from_secs(10)), &mut done).expect("wait");
    for completion in done {
        if a.owns(completion.token) { &mut *a } else { &mut *b }.handle_completion(completion);
    }
}

/// What carries the frames in a test.
const MODES: [Option<&str>; 3] = [None, Some("auth"), Some("tls")];

/// Two hosts' ends of a connection, proven if there is anything to prove.
fn conns(driver: &mut AnyDriver, mode: Option<&str>, [first, second]: [StreamConfig; 2]) -> (Conn, Conn) {
    let (a, b) = pair(driver);
    let Some(transport) = mode else { return (Conn::new(a, first), Conn::new(b, second)) };
    let [caller, acceptor] = hosts(transport);
    let a = TlsStream::client(Conn::stream_of(a, first), &caller, first.send_bytes).expect("a client");
    let b = TlsStream::server(Conn::stream_of(b, second), &acceptor, second.send_bytes).expect("a server");
    let (mut a, mut b) = (Conn::secured(a), Conn::secured(b));
    let mut seen = [None, None];
    while seen.iter().any(Option::is_none) {
        turn(driver, [&mut a, &mut b]);
        for (seen, end) in seen.iter_mut().zip([&mut a, &mut b]) {
            *seen = seen.or(end.poll_handshake().expect("sound"));
        }
    }
    let seen = seen.map(|proven| proven.map(|proven| (proven.peer.host, proven.mode)));
    let mode = if transport == "auth" { Transport::Auth } else { Transport::Tls };
    assert_eq!(seen, [Some((H2, mode)), Some((H1, mode))]);
    (a, b)
}

/// H1, which calls, and H2; both on one list.
fn hosts(transport: &str) -> [TlsConfigs; 2] {
    let (ca, keys) = (Ca::new("weft"), [pki::key(), pki::key()]);
    let listed = [(H1, pki::kid(&keys[0])), (H2, pki::kid(&keys[1]))];
    let mut body = pki::body(1, &[ca.entry("active")], &listed);
    body["transport"] = transport.into();
    let trust = Arc::new(TrustCell::new(pki::open(&ca.sign(&body))));
    [(H1, &keys[0]), (H2, &keys[1])]
        .map(|(host, key)| TlsConfigs::with_clock(&ca.identity(key, &Leaf::of(host)), trust.clone(), || NOW))
}

fn write_request(tag: u32, blocks: usize) -> Request<IoBuf> {
    let fill = u8::try_from(tag % 251).expect("small");
    let data = IoBuf::copy_of(&vec![fill; blocks * 4096]);
    let ask = Ask::Write {
        generation: Generation(7),
        offset: u64::from(tag) * 4096,
        crcs: block_crcs(data.bytes()),
        data,
        copy: false,
    };
    Request { tag, epoch: Epoch(3), ask }
}

#[test]
fn sockets_are_set_up_by_us() {
    let mut driver = driver(DriverKind::IoUring);
    let (a, b) = pair(&mut driver);
    let available =
        std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").expect("list");
    let expected = CONGESTION.iter().find(|name| available.split_whitespace().any(|have| have == **name));
    for socket in [a, b] {
        assert_eq!(congestion_of(&socket).expect("asked"), *expected.expect("cubic or reno"));
        let option = |level, option| {
            let (mut value, mut len) = (0i32, 4);
            // SAFETY: four writable bytes.
            checked(unsafe {
                libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len)
            })
            .expect("asked");
            value
        };
        assert_eq!(option(libc::IPPROTO_TCP, libc::TCP_NODELAY), 1);
        assert_eq!(option(libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
        assert_eq!(option(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT), USER_TIMEOUT_MS);
    }
}

#[test]
fn a_connection_is_seen_to_come_from_the_address_it_was_given() {
    let mut driver = driver(DriverKind::IoUring);
    let (listener, address) = listen("127.0.0.1:0".parse().expect("address")).expect("listens");
    // The second one is nobody's here.
    for (from, seen) in [("127.9.8.7", "127.9.8.7"), ("192.0.2.1", "127.0.0.1"), ("::1", "127.0.0.1")] {
        let caller = connect(address, Some(from.parse().expect("address"))).expect("connects");
        driver.submit(1, Op::Accept { listener: listener.clone() });
        let mut done = Vec::new();
        while done.is_empty() {
            driver.wait(Some(Duration::from_secs(10)), &mut done).expect("wait");
        }
        let Ok(Outcome::Accepted(socket)) = done.remove(0).result else { panic!("not accepted") };
        assert_eq!(peer_address(&Arc::new(socket)).expect("asked").to_string(), seen, "{from}");
        drop(caller);
    }
}

#[test]
fn a_refused_connection_is_told() {
    for kind in KINDS {
        let mut driver = driver(kind);
        let (listener, address) = listen("127.0.0.1:0".parse().expect("address")).expect("listens");
        drop(listener);
        let Ok(socket) = connect(address, None) else { continue };
        driver.submit(1, Op::PollWrite { fd: socket.clone() });
        let mut done = Vec::new();
        while done.is_empty() {
            driver.wait(Some(Duration::from_secs(10)), &mut done).expect("wait");
        }
        assert_eq!(connected(&socket), Err(Errno(libc::ECONNREFUSED)));
    }
}

#[test]
fn many_frames_of_all_sizes_arrive_in_order() {
    for (kind, mode) in KINDS.into_iter().flat_map(|kind| MODES.map(|mode| (kind, mode))) {
        let mut driver = driver(kind);
        let (mut a, mut b) = conns(&mut driver, mode, [config(10), config(11)]);
        a.set_version(Version::V1);
        b.set_version(Version::V1);
        let total = 600;
        let (mut sent, mut received, mut answered) = (0, 0, 0);
        while answered < total {
            while sent < total && a.is_writable() {
                let request = match sent % 4 {
                    0 => Request { tag: sent, epoch: Epoch(3), ask: Ask::Flush },
                    1 => write_request(sent, 32),
                    _ => write_request(sent, 1),
                };
                let _ = a.queue(encode_request(Version::V1, 5, &request));
                sent += 1;
            }
            turn(&mut driver, [&mut a, &mut b]);
            while let Some(frame) = b.poll_frame().expect("sound") {
                assert_eq!(frame.header.kind(), FrameKind::Request);
                assert!(frame.data.is_aligned());
                let request = decode_request(&frame.header, &frame.meta, frame.data).expect("sound");
                assert_eq!(request.tag, received);
                let data = match request.ask {
                    Ask::Write { data, crcs, .. } => {
                        assert_eq!(block_crcs(data.bytes()), crcs);
                        vec![Extent::Data { crcs, data }, Extent::Hole { len: 4096, kind: Hole::Zero }]
                    }
                    other => {
                        assert_eq!(other, Ask::Flush);
                        vec![]
                    }
                };
                received += 1;
                let outcome = Ok(Answer::Data(data));
                let response = Response { tag: request.tag, epoch: Epoch(3), outcome, service_us: 1 };
                let _ = b.queue(encode_response(Version::V1, 5, &response));
            }
            while let Some(frame) = a.poll_frame().expect("sound") {
                let response = decode_response(&frame.header, &frame.meta, frame.data).expect("sound");
                assert_eq!(response.tag, answered);
                answered += 1;
            }
        }
        a.close();
        while b.ended().is_none() {
            turn(&mut driver, [&mut a, &mut b]);
        }
        assert_eq!(b.ended(), Some(StreamEnd::Closed));
    }
}

#[test]
fn a_peer_that_does_not_read_stops_the_queue_and_not_the_daemon() {
    for (kind, mode) in KINDS.into_iter().flat_map(|kind| MODES.map(|mode| (kind, mode))) {
        let mut driver = driver(kind);
        let small = StreamConfig { send_bytes: 256 * 1024, ..config(10) };
        let (mut a, mut b) = conns(&mut driver, mode, [small, config(11)]);
        a.set_version(Version::V1);
        b.set_version(Version::V1);
        b.pause(true);
        let mut sent = 0;
        // Until the kernel's buffers are full too, so that nothing more is taken.
        loop {
            while a.queue(encode_request(Version::V1, 5, &write_request(sent, 32))) == Pressure::Go {
                sent += 1;
            }
            sent += 1;
            while let Some((token, op)) = a.poll_op() {
                driver.submit(token, op);
            }
            let mut done = Vec::new();
            driver.wait(Some(Duration::from_millis(50)), &mut done).expect("wait");
            let stuck = done.is_empty();
            done.into_iter().for_each(|c| a.handle_completion(c));
            if stuck {
                break;
            }
        }
        assert!(!a.is_writable() && a.queued() >= 256 * 1024);
        b.pause(false);
        let mut received = 0;
        while received < sent {
            turn(&mut driver, [&mut a, &mut b]);
            while let Some(frame) = b.poll_frame().expect("sound") {
                let request = decode_request(&frame.header, &frame.meta, frame.data).expect("sound");
                assert_eq!(request, write_request(received, 32));
                received += 1;
            }
        }
        assert!(a.is_writable() && a.queued() == 0);
    }
}

#[test]
fn a_frame_of_another_version_than_agreed_ends_the_connection() {
    let mut driver = driver(DriverKind::IoUring);
    let (a, b) = pair(&mut driver);
    let (mut a, mut b) = (Conn::new(a, config(10)), Conn::new(b, config(11)));
    let request = encode_request(Version::V1, 5, &write_request(1, 1));
    // Nothing but HELLO is agreed yet.
    let _ = a.queue(request);
    let error = loop {
        turn(&mut driver, [&mut a, &mut b]);
        match b.poll_frame() {
            Ok(frame) => assert!(frame.is_none()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ConnError::Frame(FrameError::BadVersion { agreed: 0, .. })), "{error}");
    assert_eq!(b.ended(), Some(StreamEnd::Closed));
}

fn mac_keys() -> [u8; crate::mac::KEYS_LEN] {
    core::array::from_fn(|i| i.to_le_bytes()[0])
}

/// The bytes of sealed frames, as the caller's end sends them.
fn sealed_requests(mac: &mut FrameMac, tags: core::ops::Range<u32>) -> Vec<Vec<u8>> {
    let frame = |tag| {
        let mut frame = encode_request(Version::V1, 5, &write_request(tag, 1));
        mac.seal(&mut frame.head).expect("one of the first");
        let data = frame.data.iter().flat_map(|part| part.bytes().to_vec());
        frame.head.into_iter().chain(data).collect()
    };
    tags.map(frame).collect()
}

/// The tags of the requests that pass, and what ended the connection.
fn passed(frames: &[Vec<u8>]) -> (Vec<u32>, Option<ConnError>) {
    let (socket, _) = UnixStream::pair().expect("pair");
    let stream = Conn::stream_of(Arc::new(socket.into()), config(1));
    let mut conn = Conn::sealed(stream, FrameMac::new(&mac_keys(), false));
    conn.set_version(Version::V1);
    let (bytes, mut tags) = (frames.concat(), Vec::new());
    let mut rest = &bytes[..];
    while !rest.is_empty() && conn.ended().is_none() {
        feed(&mut conn, &mut rest, 1000);
        loop {
            match conn.poll_frame() {
                Ok(Some(frame)) => {
                    let request = decode_request(&frame.header, &frame.meta, frame.data).expect("sound");
                    tags.push(request.tag);
                }
                Ok(None) => break,
                Err(error) => {
                    assert!(conn.ended().is_some());
                    return (tags, Some(error));
                }
            }
        }
    }
    (tags, None)
}

#[test]
fn under_auth_only_what_the_peer_sealed_in_its_order_is_given() {
    let mut mac = FrameMac::new(&mac_keys(), true);
    let frames = sealed_requests(&mut mac, 0..4);
    let wrong = Some(ConnError::Mac(MacError::Wrong));
    assert_eq!(passed(&frames), (vec![0, 1, 2, 3], None));
    let [first, second, third, _] = &frames[..] else { unreachable!("four") };
    let of = |frames: &[&Vec<u8>]| passed(&frames.iter().map(|f| (*f).clone()).collect::<Vec<_>>());
    assert_eq!(of(&[first, first]), (vec![0], wrong.clone()), "replayed");
    assert_eq!(of(&[first, third, second]), (vec![0], wrong.clone()), "out of order");
    assert_eq!(of(&[second]), (vec![], wrong.clone()), "the first one dropped");
    let mut reflected = FrameMac::new(&mac_keys(), false);
    assert_eq!(passed(&sealed_requests(&mut reflected, 0..1)), (vec![], wrong.clone()), "reflected");
    let clear = encode_request::<IoBuf>(Version::V1, 5, &write_request(0, 1)).head;
    assert!(matches!(of(&[first, &clear, third]), (tags, Some(_)) if tags == [0]), "without a tag");
    for at in 0..HEADER_LEN + TAG_LEN + 4 {
        let mut flipped = frames.clone();
        flipped[1][at] ^= 1;
        // Also where the header's checksum is made right again.
        let crc = crc32c::crc32c(&flipped[1][..60]);
        if at < 60 {
            flipped[1][60..64].copy_from_slice(&crc.to_le_bytes());
        }
        let (tags, error) = passed(&flipped);
        assert_eq!(tags, [0], "byte {at}");
        assert!(error.is_some() || (8..16).contains(&at), "byte {at}: a length that waits for more");
    }
}

#[test]
fn a_refusal_is_told_to_both_ends() {
    for transport in ["auth", "tls"] {
        let mut driver = driver(DriverKind::IoUring);
        let (a, b) = pair(&mut driver);
        let ([caller, _], [_, acceptor]) = (hosts(transport), hosts(transport));
        let a = TlsStream::client(Conn::stream_of(a, config(10)), &caller, 1 << 20).expect("a client");
        let b = TlsStream::server(Conn::stream_of(b, config(11)), &acceptor, 1 << 20).expect("a server");
        let (mut a, mut b) = (Conn::secured(a), Conn::secured(b));
        let refused = |end: &mut Conn| end.poll_handshake().err();
        while refused(&mut a).is_none() || b.ended().is_none() {
            turn(&mut driver, [&mut a, &mut b]);
        }
        assert_eq!(refused(&mut a), Some(HandshakeError::Refused(PeerRefusal::Stranger)));
        assert!(matches!(refused(&mut b), Some(HandshakeError::Tls(text)) if text.contains("alert")));
        assert!(matches!(b.poll_frame(), Ok(None)));
    }
}

/// The caller is proven by itself first; that the acceptor does not want it comes later.
#[test]
fn a_caller_that_is_refused_after_its_own_proof_is_told() {
    for transport in ["auth", "tls"] {
        let mut driver = driver(DriverKind::IoUring);
        let (a, b) = pair(&mut driver);
        let (ca, key, listed) = (Ca::new("weft"), pki::key(), pki::key());
        let trust = |hosts: &[(HostId, Kid)]| {
            let mut body = pki::body(1, &[ca.entry("active")], hosts);
            body["transport"] = transport.into();
            Arc::new(TrustCell::new(pki::open(&ca.sign(&body))))
        };
        let caller = ca.identity(&key, &Leaf::of(H1));
        let caller = TlsConfigs::with_clock(&caller, trust(&[(H2, pki::kid(&listed))]), || NOW);
        let acceptor = ca.identity(&listed, &Leaf::of(H2));
        let acceptor = TlsConfigs::with_clock(&acceptor, trust(&[(H2, pki::kid(&listed))]), || NOW);
        let a = TlsStream::client(Conn::stream_of(a, config(10)), &caller, 1 << 20).expect("a client");
        let b = TlsStream::server(Conn::stream_of(b, config(11)), &acceptor, 1 << 20).expect("a server");
        let (mut a, mut b) = (Conn::secured(a), Conn::secured(b));
        let error = loop {
            turn(&mut driver, [&mut a, &mut b]);
            assert!(!matches!(b.poll_handshake(), Ok(Some(_))), "nobody is proven to it");
            if a.poll_handshake().expect("the acceptor is listed").is_some()
                && let Err(error) = a.poll_frame()
            {
                break error;
            }
        };
        let told = match &error {
            ConnError::RefusedUs => transport == "auth",
            ConnError::Tls(HandshakeError::Tls(text)) => transport == "tls" && text.contains("alert"),
            _ => false,
        };
        assert!(told, "{transport}: {error}");
    }
}

/// The next portion of a stream whose driver is the test.
fn feed(conn: &mut Conn, bytes: &mut &[u8], portion: usize) {
    let Some((token, mut op)) = conn.poll_op() else { return };
    let Op::Recv { buf, start, len, .. } = &mut op else { panic!("{op:?}") };
    let count = portion.min(*len).min(bytes.len());
    buf.bytes_mut()[*start..*start + count].copy_from_slice(&bytes[..count]);
    *bytes = &bytes[count..];
    conn.handle_completion(Completion { token, op, result: Ok(Outcome::Bytes(count)) });
}

fn lone_conn() -> Conn {
    let (socket, _) = UnixStream::pair().expect("pair");
    let mut conn = Conn::new(Arc::new(socket.into()), config(1));
    conn.set_version(Version::V1);
    conn
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_survive_any_portions(
        sizes in prop::collection::vec(0usize..33, 1..12),
        portions in prop::collection::vec(prop_oneof![1usize..200, 1000usize..70_000], 1..40),
    ) {
        let mut bytes = Vec::new();
        for (tag, blocks) in (0u32..).zip(&sizes) {
            let frame = match blocks {
                0 => encode_request::<IoBuf>(Version::V1, 5, &Request { tag, epoch: Epoch(3), ask: Ask::Flush }),
                blocks => encode_request(Version::V1, 5, &write_request(tag, *blocks)),
            };
            bytes.extend_from_slice(&frame.head);
            frame.data.iter().for_each(|data| bytes.extend_from_slice(data.bytes()));
        }
        let (mut conn, mut rest) = (lone_conn(), &bytes[..]);
        let mut got = 0;
        let mut portions = portions.iter().cycle();
        while got < sizes.len() {
            feed(&mut conn, &mut rest, *portions.next().expect("endless"));
            while let Some(frame) = conn.poll_frame().expect("sound") {
                let request = decode_request(&frame.header, &frame.meta, frame.data).expect("sound");
                let tag = u32::try_from(got).expect("small");
                prop_assert_eq!(request.tag, tag);
                if sizes[got] > 0 {
                    prop_assert_eq!(request, write_request(tag, sizes[got]));
                }
                got += 1;
            }
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn bytes_of_a_peer_never_panic(garbage in prop::collection::vec(any::<u8>(), 1..300), at in 0usize..300) {
        let frame = encode_request(Version::V1, 5, &write_request(1, 1));
        let mut bytes = frame.head;
        frame.data.iter().for_each(|data| bytes.extend_from_slice(data.bytes()));
        let at = at.min(bytes.len() - 1);
        let end = bytes.len().min(at + garbage.len());
        bytes[at..end].copy_from_slice(&garbage[..end - at]);
        let (mut conn, mut rest) = (lone_conn(), &bytes[..]);
        while !rest.is_empty() && conn.ended().is_none() {
            feed(&mut conn, &mut rest, 5000);
            match conn.poll_frame() {
                Ok(Some(frame)) => drop(decode_request(&frame.header, &frame.meta, frame.data)),
                Ok(None) => {}
                Err(_) => prop_assert!(conn.ended().is_some()),
            }
        }
    }
}

#[test]
fn a_byte_stream_over_a_unix_socket_carries_raw_bytes() {
    for kind in KINDS {
        let mut driver = driver(kind);
        let dir = TempDir::short();
        let path = dir.path().join("sock");
        drop(listen_unix(&path).expect("listens"));
        let listener = listen_unix(&path).expect("replaces what was left behind");
        let mut peer = UnixStream::connect(&path).expect("connects");
        driver.submit(1, Op::Accept { listener });
        let mut done = Vec::new();
        while done.is_empty() {
            driver.wait(Some(Duration::from_secs(10)), &mut done).expect("wait");
        }
        let Ok(Outcome::Accepted(socket)) = done.remove(0).result else { panic!("not accepted") };
        let mut stream = ByteStream::new(Arc::new(socket), config(3));
        let run = |stream: &mut ByteStream, driver: &mut AnyDriver| {
            while let Some((token, op)) = stream.poll_op() {
                driver.submit(token, op);
            }
            let mut done = Vec::new();
            driver.wait(Some(Duration::from_secs(10)), &mut done).expect("wait");
            done.into_iter().for_each(|c| stream.handle_completion(c));
        };
        let writer = std::thread::spawn(move || {
            peer.write_all(b"headsmall").expect("sent");
            peer.write_all(&[6; 100_000]).expect("sent");
            peer.write_all(b"tail").expect("sent");
            let mut echo = [0; 6];
            std::io::Read::read_exact(&mut peer, &mut echo).expect("received");
            echo
        });
        while stream.bytes().len() < 4 {
            run(&mut stream, &mut driver);
        }
        assert_eq!(&stream.bytes()[..4], b"head");
        stream.consume(4);
        for (len, first) in [(5, b's'), (100_000, 6)] {
            stream.begin_fill(len);
            let buf = loop {
                match stream.poll_filled() {
                    Some(buf) => break buf,
                    None => run(&mut stream, &mut driver),
                }
            };
            assert_eq!((buf.len(), buf.bytes()[0]), (len, first));
        }
        while stream.bytes() != b"tail" {
            run(&mut stream, &mut driver);
        }
        assert_eq!(stream.queue(Part::Bytes(b"abc".to_vec())), Pressure::Go);
        assert_eq!(stream.queue(Part::Buf(IoBuf::copy_of(b"def"))), Pressure::Go);
        while !stream.is_finished() {
            run(&mut stream, &mut driver);
        }
        assert_eq!((&writer.join().expect("no panic"), stream.ended()), (b"abcdef", Some(StreamEnd::Closed)));
    }
}
