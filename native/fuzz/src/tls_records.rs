//! Two ends of TLS with somebody on the path who alters, adds, repeats and drops bytes, and ends that hear only nonsense.
//!
//! The keys of each handshake are random; nothing that is judged here depends on them.
//!
//! Must always hold:
//! * what is read is the beginning of what was written, and nothing is before the peer is proven;
//! * a peer is proven as the host that it is, or not at all;
//! * an end that has failed takes nothing more, and seals nothing;
//! * nonsense is taken up to the bound of a handshake and no further, and what was not touched arrives whole.

use std::sync::{Arc, LazyLock};

use weft_io::identity::{Identity, Transport, TrustCell, WallTime};
use weft_io::mac::FrameMac;
use weft_io::tls::{HANDSHAKE_MAX, HandshakeError, Received, TlsConfigs, TlsCore, sealed_len};
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
            match end.receive(&mut wire) {
                Ok(Received { taken: 0, .. }) => break,
                Ok(received) => {
                    assert!(received.plain.is_empty(), "nonsense is not read");
                    wire.drain(..received.taken);
                    taken += received.taken;
                }
                Err(_) => {
                    assert!(end.receive(&mut wire).is_err(), "an end that has failed takes nothing");
                    input.take(usize::MAX);
                    break;
                }
            }
        }
        end.take_output(&mut out);
        assert!(end.proven().is_none(), "nonsense proves nobody");
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
    /// How many runs of records.
    said: usize,
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
                // Around the length of a record now and then.
                let len = if input.one_in(8) { 16_380 + input.below(10) } else { 1 + input.below(5000) };
                let text: Vec<u8> = (0..len).map(|i: usize| i.to_le_bytes()[0] ^ 0x77).collect();
                if proven.mode == Transport::Auth {
                    if way.said == 0 {
                        let mac = macs[from].get_or_insert(ends[from].frame_mac().expect("keys"));
                        way.written = text;
                        way.written.resize(len.max(HEADER_LEN), 0);
                        mac.seal(&mut way.written).expect("the first frame");
                        way.wire.extend_from_slice(&way.written);
                        way.said = 1;
                    }
                } else if way.said < 3 {
                    let (head, rest) = text.split_at(len.min(64));
                    let mut sealed = vec![0; sealed_len(len)];
                    // One that has failed says nothing.
                    if ends[from].seal(&[head, rest], &mut sealed) {
                        way.wire.extend_from_slice(&sealed);
                        way.written.extend_from_slice(&text);
                    }
                    way.said += 1;
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
                    let proven = ends[to].proven().is_some();
                    let received = match ends[to].receive(&mut way.wire[..shown]) {
                        Ok(received) => received,
                        Err(error) => {
                            assert!(ends[to].receive(&mut []).is_err(), "it takes nothing more");
                            assert!(!ends[to].seal(&[], &mut []), "and seals nothing");
                            way.failed = Some(error);
                            break;
                        }
                    };
                    assert!(received.plain.is_empty() || proven, "read before the proof");
                    way.read.extend_from_slice(&way.wire[received.plain]);
                    way.wire.drain(..received.taken);
                    shown -= received.taken;
                    moved |= received.taken > 0;
                    if received.taken == 0 {
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
