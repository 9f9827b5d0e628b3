//! NBD clients that ask for what isn't there, leave in mid-sentence, or ask for more than they take.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use super::support::PATIENCE;
use super::support::host::{Cluster, SIZE, assert_same, close, copy, make_volume, nbd, open, random_file};

const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// A guest that has got through the negotiation and speaks in simple replies.
pub(super) struct Guest(pub(super) UnixStream);

impl Guest {
    pub(super) fn connect(socket: &Path) -> Guest {
        let mut stream = Guest::greeted(socket);
        stream.write_all(&3u32.to_be_bytes()).expect("sent");
        stream.write_all(&option(7, &[0; 6])).expect("sent");
        loop {
            let head: [u8; 20] = read(&mut stream);
            let kind = u32::from_be_bytes(head[12..16].try_into().expect("four bytes"));
            let len = u32::from_be_bytes(head[16..].try_into().expect("four bytes"));
            let mut rest = vec![0; usize::try_from(len).expect("short")];
            stream.read_exact(&mut rest).expect("the rest");
            match kind {
                1 => return Guest(stream),
                3 => {}
                other => panic!("refused: {other:#x}"),
            }
        }
    }

    /// Connected, and greeted by the server.
    fn greeted(socket: &Path) -> UnixStream {
        let mut stream = UnixStream::connect(socket).expect("connected");
        stream.set_read_timeout(Some(2 * PATIENCE)).expect("set");
        let greeting: [u8; 18] = read(&mut stream);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        stream
    }

    pub(super) fn send(&mut self, command: u16, cookie: u64, offset: u64, len: u32) {
        self.0.write_all(&request(command, cookie, offset, len)).expect("sent");
    }

    /// The next reply's cookie and error.
    pub(super) fn reply(&mut self) -> (u64, u32) {
        let head: [u8; 16] = read(&mut self.0);
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes(), "a simple reply");
        let error = u32::from_be_bytes(head[4..8].try_into().expect("four bytes"));
        (u64::from_be_bytes(head[8..].try_into().expect("eight bytes")), error)
    }
}

fn read<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap_or_else(|e| panic!("{N} bytes: {e}"));
    bytes
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).expect("short");
    [b"IHAVEOPT", &number.to_be_bytes()[..], &len.to_be_bytes()[..], data].concat()
}

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// The server has closed the connection; whatever it said before is read over.
fn assert_dropped(mut stream: UnixStream, what: &str) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(e) => panic!("{what}: still connected: {e}"),
    }
}

#[test]
fn a_range_that_is_not_the_volumes_is_refused_and_the_connection_goes_on() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let volume = make_volume(&[&host]);
    let socket = open(&host, &volume, "closed").expect("opens");
    let file = random_file(&cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let mut guest = Guest::connect(&socket);
    let mut cookie = 0;
    for (command, offset, len, error) in [
        (READ, SIZE, 4096, EINVAL),
        (READ, SIZE - 4096, 8192, EINVAL),
        (READ, u64::MAX, 4096, EINVAL),
        (READ, u64::MAX - 4095, 4096, EINVAL),
        (READ, 0, u32::MAX, EINVAL),
        (TRIM, SIZE - 4096, 8192, EINVAL),
        (TRIM, 0, u32::MAX, EINVAL),
        (TRIM, u64::MAX, u32::MAX, EINVAL),
        (WRITE_ZEROES, SIZE, 4096, ENOSPC),
        (WRITE_ZEROES, u64::MAX, u32::MAX, ENOSPC),
        (77, 0, 4096, EINVAL),
        (u16::MAX, 0, 0, EINVAL),
    ] {
        cookie += 1;
        guest.send(command, cookie, offset, len);
        assert_eq!(
            guest.reply(),
            (cookie, error),
            "command {command} at {offset}, {len} bytes\n{}",
            host.log()
        );
    }
    // A write beyond the end brings its bytes along.
    for (offset, len) in [(SIZE, 4096), (SIZE - 4096, 8192), (u64::MAX - 1, 4096)] {
        cookie += 1;
        guest.send(WRITE, cookie, offset, len);
        guest.0.write_all(&vec![0xee; usize::try_from(len).expect("short")]).expect("sent");
        assert_eq!(guest.reply(), (cookie, ENOSPC), "a write at {offset}");
    }
    guest.send(READ, 99, 0, 4096);
    assert_eq!(guest.reply(), (99, 0));
    let first: [u8; 4096] = read(&mut guest.0);
    assert_eq!(first[..], std::fs::read(&file).expect("read")[..4096]);
    host.assert_alive();
    assert_same(&cluster, &host, &socket, &volume, &file);
    close(&host, &volume);
}

/// Nonsense before and after the negotiation ends that connection; the next one is served.
#[test]
fn a_guest_that_does_not_speak_nbd_loses_its_connection_alone() {
    let cluster = Cluster::start();
    let mut host = cluster.host(2);
    host.make_pool();
    let volume = make_volume(&[&host]);
    let socket = open(&host, &volume, "closed").expect("opens");
    let mut neighbour = Guest::connect(&socket);
    let before = host.resident();

    let flags = 3u32.to_be_bytes();
    let too_long = [b"IHAVEOPT".as_slice(), &7u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
    let handshakes: [(&str, Vec<u8>); 5] = [
        ("client flags that don't exist", u32::MAX.to_be_bytes().to_vec()),
        ("an option without magic", [&flags[..], &[0xaa; 64]].concat()),
        ("an option of 4 GiB", [&flags[..], &too_long].concat()),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".to_vec()),
        ("an export that isn't here", [&flags[..], &option(1, b"another volume")].concat()),
    ];
    for (what, bytes) in handshakes {
        let mut stream = Guest::greeted(&socket);
        stream.write_all(&bytes).expect("sent");
        assert_dropped(stream, what);
    }
    for (what, bytes) in [
        ("a request without magic", vec![0x55; 28]),
        ("a write of 4 GiB", [request(WRITE, 1, 0, u32::MAX), vec![0; 1 << 20]].concat()),
    ] {
        let mut guest = Guest::connect(&socket);
        // The server may close before it has read everything.
        let _ = guest.0.write_all(&bytes);
        let _ = guest.0.shutdown(Shutdown::Write);
        assert_dropped(guest.0, what);
    }
    neighbour.send(READ, 1, 0, 4096);
    assert_eq!(neighbour.reply(), (1, 0));
    let _: [u8; 4096] = read(&mut neighbour.0);
    host.ask_until("session.show", &json!({ "volume": volume }), |s| s["clients"] == 1);
    let grown = host.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB more", grown >> 20);
    host.assert_alive();
    drop(neighbour);
    close(&host, &volume);
}

/// What a guest did not say to its end, it has not said: no part of it is written.
#[test]
fn a_guest_that_leaves_in_the_middle_of_a_write_has_written_nothing() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let volume = make_volume(&[&host]);
    let socket = open(&host, &volume, "closed").expect("opens");
    let file = random_file(&cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let whole = [request(WRITE, 1, 4096, 1 << 20), vec![0xee; 1 << 20]].concat();
    for cut in [1, 27, 28, 29, 28 + 4096, whole.len() / 2, whole.len() - 1] {
        let mut guest = Guest::connect(&socket);
        guest.0.write_all(&whole[..cut]).expect("sent");
        drop(guest);
    }
    // Gone with reads and flushes under way, whose answers nobody takes.
    for _ in 0..20 {
        let mut guest = Guest::connect(&socket);
        for cookie in 0..50 {
            guest.send(READ, cookie, 0, 1 << 20);
            guest.send(3, cookie, 0, 0);
        }
    }
    host.ask_until("session.show", &json!({ "volume": volume }), |s| s["clients"] == 0);
    assert_same(&cluster, &host, &socket, &volume, &file);
    host.assert_alive();
    close(&host, &volume);
}

/// 10,000 requests at once, from a guest that takes no answer until it can send nothing any more.
#[test]
fn ten_thousand_pipelined_requests_are_all_answered_and_cost_bounded_memory() {
    const REQUESTS: u64 = 10_000;
    const LEN: u32 = 32 << 10;
    for number in [1, 2] {
        let cluster = Cluster::start();
        let mut host = cluster.host(number);
        host.make_pool();
        let volume = make_volume(&[&host]);
        let socket = open(&host, &volume, "closed").expect("opens");
        let mut guest = Guest::connect(&socket);
        let before = host.resident();
        let sent = AtomicU64::new(0);
        let writes = |cookie: u64| cookie.is_multiple_of(4);
        std::thread::scope(|scope| {
            let mut out = guest.0.try_clone().expect("cloned");
            let sent = &sent;
            scope.spawn(move || {
                let data = vec![0x5a; usize::try_from(LEN).expect("short")];
                for cookie in 0..REQUESTS {
                    let offset = cookie * u64::from(LEN) % SIZE;
                    let command = if writes(cookie) { WRITE } else { READ };
                    out.write_all(&request(command, cookie, offset, LEN)).expect("sent");
                    if writes(cookie) {
                        out.write_all(&data).expect("sent");
                    }
                    sent.store(cookie + 1, Ordering::SeqCst);
                }
            });
            // The server stops to read: nothing has been sent for half a second.
            let mut most = 0;
            let mut seen = (0, std::time::Instant::now());
            while seen.1.elapsed() < Duration::from_millis(500) {
                let now = sent.load(Ordering::SeqCst);
                if now != seen.0 {
                    seen = (now, std::time::Instant::now());
                }
                most = most.max(host.resident());
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(seen.0 < REQUESTS, "the server reads on although nobody takes its answers");
            let mut answered = vec![false; usize::try_from(REQUESTS).expect("few")];
            let mut data = vec![0; usize::try_from(LEN).expect("short")];
            for count in 0..REQUESTS {
                let (cookie, error) = guest.reply();
                assert_eq!(error, 0, "request {cookie}");
                let twice = std::mem::replace(&mut answered[usize::try_from(cookie).expect("few")], true);
                assert!(!twice, "request {cookie} was answered twice");
                if !writes(cookie) {
                    guest.0.read_exact(&mut data).expect("data");
                }
                if count % 500 == 0 {
                    most = most.max(host.resident());
                }
            }
            // 64 MiB of unanswered bytes (docs/ARCHITECTURE.md, Memory), their answers, and what is kept for reuse.
            let grown = most.saturating_sub(before);
            assert!(grown < 192 << 20, "{} MiB more", grown >> 20);
        });
        drop(guest);
        host.assert_alive();
        close(&host, &volume);
    }
}

/// 64 guests of one volume are served, the next one waits until one of them leaves.
#[test]
fn one_guest_too_many_waits_for_another_to_leave() {
    let cluster = Cluster::start();
    let mut host = cluster.host(2);
    host.make_pool();
    let volume = make_volume(&[&host]);
    let socket = open(&host, &volume, "closed").expect("opens");
    let mut guests: Vec<Guest> = (0..64).map(|_| Guest::connect(&socket)).collect();
    let mut waiting = UnixStream::connect(&socket).expect("the kernel takes it");
    waiting.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    let mut greeting = [0; 18];
    assert!(waiting.read_exact(&mut greeting).is_err(), "it is not accepted yet");
    drop(guests.pop());
    waiting.set_read_timeout(Some(PATIENCE)).expect("set");
    waiting.read_exact(&mut greeting).expect("accepted now");
    host.assert_alive();
    close(&host, &volume);
}
