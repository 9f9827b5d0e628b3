//! Two ends of TLS with somebody on the path who alters, adds, repeats and drops bytes, and ends that hear only nonsense.
//!
//! The keys of each handshake are random; nothing that is judged here depends on them.
//!
//! Must always hold:
//! * what is read is the beginning of what was written, and nothing is before the peer is proven;
//! * a peer is proven as the host that it is, or not at all;
//! * nonsense is taken up to the bound of a handshake and no further, and what was not touched arrives whole.

use std::sync::{Arc, LazyLock};

use weft_io::identity::{Identity, Transport, TrustCell, WallTime};
use weft_io::mac::FrameMac;
use weft_io::tls::{HANDSHAKE_MAX, HandshakeError, TlsConfigs, TlsCore};
use weft_proto::wire::HEADER_LEN;

use crate::input::Input;
use crate::trust::{HOST, list_of};

const OTHER_HOST: &[u8] = include_bytes!("../../weft-io/specimens/h2.pem");

/// Caller and acceptor, under `tls` and under `auth`.
static HOSTS: LazyLock<[[TlsConfigs; 2]; 2]> = LazyLock::new(|| {
    let identities = [HOST, OTHER_HOST].map(|pem| Identity::from_pem(pem).expect("an identity"));
    ["tls", "auth"].map(|transport| {
        let trust = Arc::new(TrustCell::new(list_of(transport)));
        [0, 1].map(|i| TlsConfigs::with_clock(&identities[i], trust.clone(), || WallTime(1_795_262_400)))
    })
});

/// First byte: nonsense to one end, or a connection with somebody on the path.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mode = input.u8();
    let configs = &HOSTS[usize::from(mode >> 1 & 1)];
    if mode & 1 == 0 { nonsense(&mut input, configs) } else { connection(&mut input, configs) }
}

fn ends(configs: &[TlsConfigs; 2]) -> [TlsCore; 2] {
    let [caller, acceptor] = configs;
    [TlsCore::client(caller).expect("a client"), TlsCore::server(acceptor).expect("a server")]
}

fn nonsense(input: &mut Input<'_>, configs: &[TlsConfigs; 2]) {
    let mut end = match (input.flag(), ends(configs)) {
        (true, [caller, _]) => caller,
        (false, [_, acceptor]) => acceptor,
    };
    let (mut wire, mut taken, mut out) = (Vec::new(), 0, Vec::new());
    while !input.is_done() {
        let len = usize::from(input.u16()) % 2000;
        if input.flag() {
            let kind = 20 + input.u8() % 4;
            wire.extend_from_slice(&[kind, 3, 3]);
            wire.extend_from_slice(&u16::try_from(len).expect("below 2000").to_be_bytes());
        }
        wire.extend_from_slice(input.take(len));
        loop {
            match end.receive(&wire) {
                Ok(0) => break,
                Ok(count) => {
                    wire.drain(..count);
                    taken += count;
                }
                Err(_) => {
                    assert!(end.receive(&wire).is_err(), "an end that has failed takes nothing");
                    input.take(usize::MAX);
                    break;
                }
            }
        }
        end.take_output(&mut out);
        assert!(end.proven().is_none() && end.read(&mut [0; 64]) == 0, "nonsense proves nobody");
        assert!(taken <= HANDSHAKE_MAX && out.len() <= HANDSHAKE_MAX);
    }
}

/// What goes one way.
#[derive(Default)]
struct Way {
    wire: Vec<u8>,
    /// What was written to be encrypted, or sent in clear behind the handshake.
    written: Vec<u8>,
    read: Vec<u8>,
    said: bool,
    failed: Option<HandshakeError>,
}

fn connection(input: &mut Input<'_>, configs: &[TlsConfigs; 2]) {
    let mut ends = ends(configs);
    let hosts = configs_hosts();
    let mut ways = [Way::default(), Way::default()]; // to the acceptor, to the caller
    let mut touched = false;
    let mut macs: [Option<FrameMac>; 2] = [None, None];
    for _ in 0..40 {
        let mut moved = false;
        for from in 0..2 {
            let to = 1 - from;
            let way = &mut ways[from];
            let before = way.wire.len();
            ends[from].take_output(&mut way.wire);
            if let Some(proven) = ends[from].proven() {
                assert_eq!(proven.peer.host, hosts[to], "another host is proven");
                if !way.said {
                    way.said = true;
                    let len = 1 + input.below(5000);
                    way.written = (0..len).map(|i: usize| i.to_le_bytes()[0] ^ 0x77).collect();
                    if proven.mode == Transport::Auth {
                        let mac = macs[from].get_or_insert(ends[from].frame_mac().expect("keys"));
                        way.written.resize(len.max(HEADER_LEN), 0);
                        mac.seal(&mut way.written).expect("the first frame");
                        way.wire.extend_from_slice(&way.written);
                    } else {
                        let (head, rest) = way.written.split_at(len.min(64));
                        ends[from].send(&[head, rest]);
                        ends[from].take_output(&mut way.wire);
                    }
                }
            }
            if way.wire.len() > before && input.one_in(8) {
                touched |= touch(&mut way.wire, before, input);
            }
            moved |= way.wire.len() != before;
            // Delivered whole, or in small pieces.
            let step = if input.one_in(4) { 1 + input.below(40) } else { way.wire.len() };
            let mut shown = 0;
            while way.failed.is_none() && shown < way.wire.len() {
                shown = (shown + step.max(1)).min(way.wire.len());
                loop {
                    let count = match ends[to].receive(&way.wire[..shown]) {
                        Ok(count) => count,
                        Err(error) => {
                            way.failed = Some(error);
                            break;
                        }
                    };
                    way.wire.drain(..count);
                    shown -= count;
                    moved |= count > 0;
                    let mut buf = [0; 700];
                    let read = ends[to].read(&mut buf);
                    assert!(read == 0 || ends[to].proven().is_some(), "read before the proof");
                    way.read.extend_from_slice(&buf[..read]);
                    if count == 0 && read == 0 {
                        break;
                    }
                }
            }
        }
        if !moved {
            break;
        }
    }
    for from in 0..2 {
        let (way, to) = (&ways[from], &ends[1 - from]);
        assert!(way.written.starts_with(&way.read), "read what was not written");
        if touched {
            continue;
        }
        assert_eq!(way.failed, None, "nobody touched it");
        let mode = to.proven().expect("nobody touched it").mode;
        if mode == Transport::Auth {
            assert_eq!(way.wire, way.written, "the clear bytes are untouched");
            let mut mac = macs[1 - from].take().expect("keys");
            let (header, rest) = way.wire.split_first_chunk().expect("a header");
            assert_eq!(mac.open(header, &rest[..16], &rest[16..]), Ok(()));
        } else {
            assert!(way.read == way.written, "{} of {} bytes arrived", way.read.len(), way.written.len());
        }
    }
}

fn configs_hosts() -> [weft_proto::ids::HostId; 2] {
    static IDS: LazyLock<[weft_proto::ids::HostId; 2]> =
        LazyLock::new(|| [HOST, OTHER_HOST].map(|pem| Identity::from_pem(pem).expect("an identity").host()));
    *IDS
}

/// Does something to what was just sent; true if it is not what it was.
fn touch(wire: &mut Vec<u8>, from: usize, input: &mut Input<'_>) -> bool {
    let before = wire.clone();
    let at = from + usize::from(input.u16()) % (wire.len() - from);
    match input.u8() % 6 {
        0 => wire[at] ^= 1 << (input.u8() % 8),
        1 => wire.truncate(at),
        2 => wire.insert(at, input.u8()),
        3 => drop(wire.remove(at)),
        4 => {
            let again = wire[from..].to_vec();
            wire.extend_from_slice(&again);
        }
        _ => {
            let len = usize::from(input.u8());
            wire.splice(at..at, input.take(len).iter().copied());
        }
    }
    *wire != before
}
