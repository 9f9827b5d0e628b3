//! What `auth` and `tls` cost beside `clear`, for one frame from a buffer here to a buffer there over a loopback socket:
//!
//! ```text
//! cargo run --release -p weft-io --example transports
//! ```
//!
//! One thread does both sides, so a figure is the CPU of both hosts together. The three take turns in each round, and the
//! best round of each counts: what else runs on the machine moves the figures, the ratios less.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use weft_io::identity::{Identity, Trust, TrustCell, WallTime};
use weft_io::mac::{FrameMac, TAG_LEN};
use weft_io::tls::{TlsConfigs, TlsCore, sealed_len};
use weft_proto::ids::ClusterId;
use weft_proto::wire::HEADER_LEN;

const LIST: &[u8] = include_bytes!("../specimens/trust.json");
const CALLER: &[u8] = include_bytes!("../specimens/h1.pem");
const ACCEPTOR: &[u8] = include_bytes!("../specimens/h2.pem");
const CLUSTER: ClusterId = ClusterId(0x2f4c_9a66_3a0e_4ad0_9a83_5c2d_58b3_f9f1);
const ROUNDS: u32 = 7;

/// Two ends of a TCP connection; nothing blocks.
struct Link {
    from: TcpStream,
    to: TcpStream,
    arrived: Vec<u8>,
}

impl Link {
    fn new() -> std::io::Result<Link> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let from = TcpStream::connect(listener.local_addr()?)?;
        let (to, _) = listener.accept()?;
        for end in [&from, &to] {
            end.set_nonblocking(true)?;
            end.set_nodelay(true)?;
        }
        Ok(Link { from, to, arrived: vec![0; 256 * 1024] })
    }

    /// All of it, to the other end.
    fn carry(&mut self, head: &[u8], data: &[u8]) -> std::io::Result<&mut [u8]> {
        let whole = head.len() + data.len();
        let (mut sent, mut got) = (0, 0);
        while got < whole {
            if sent < whole {
                let head = head.get(sent..).unwrap_or(&[]);
                let data = &data[(sent + head.len()).saturating_sub(whole - data.len())..];
                sent += tried(self.from.write_vectored(&[IoSlice::new(head), IoSlice::new(data)]))?;
            }
            got += tried(self.to.read(&mut self.arrived[got..]))?;
        }
        Ok(&mut self.arrived[..whole])
    }
}

fn tried(result: std::io::Result<usize>) -> std::io::Result<usize> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

fn proven() -> [TlsCore; 2] {
    let trust = Arc::new(TrustCell::new(Trust::open_first(LIST, CLUSTER).expect("a list")));
    let configs = [CALLER, ACCEPTOR].map(|pem| {
        let identity = Identity::from_pem(pem).expect("an identity");
        TlsConfigs::with_clock(&identity, trust.clone(), || WallTime(1_795_262_400))
    });
    let mut caller = TlsCore::client(&configs[0]).expect("a caller");
    let mut acceptor = TlsCore::server(&configs[1]).expect("an acceptor");
    while acceptor.proven().is_none() {
        give(&mut caller, &mut acceptor);
        give(&mut acceptor, &mut caller);
    }
    [caller, acceptor]
}

fn give(from: &mut TlsCore, to: &mut TlsCore) {
    let mut wire = Vec::new();
    from.take_output(&mut wire);
    let mut rest = &mut wire[..];
    while let count @ 1.. = to.receive(rest).expect("sound").taken {
        rest = &mut rest[count..];
    }
}

fn main() -> std::io::Result<()> {
    println!("{:>8}  {:<6} {:>9}  {:>6}", "bytes", "", "us", "clear=1");
    for (data_len, meta_len, frames) in [(4096, 4, 20_000u32), (128 * 1024, 128, 2000)] {
        let head = vec![7u8; HEADER_LEN + meta_len];
        let data = vec![3u8; data_len];
        let mut there = vec![0u8; data_len];
        let mut link = Link::new()?;
        let keys = [9; 64];
        let (mut sealing, mut judging) = (FrameMac::new(&keys, true), FrameMac::new(&keys, false));
        let [mut caller, mut acceptor] = proven();
        let mut wire = vec![0; sealed_len(head.len() + data_len)];
        let mut best = [f64::MAX; 3];
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for _ in 0..frames {
                let arrived = link.carry(&head, &data)?;
                there.copy_from_slice(&arrived[head.len()..]);
            }
            best[0] = best[0].min(start.elapsed().as_secs_f64());

            let start = Instant::now();
            for _ in 0..frames {
                let mut head = head.clone();
                sealing.seal(&mut head).expect("sealed");
                let arrived = link.carry(&head, &data)?;
                let (header, rest) = arrived.split_first_chunk().expect("a header");
                let (meta, data) = rest[TAG_LEN..].split_at(meta_len);
                judging.open(header, &rest[..TAG_LEN], meta).expect("the right tag");
                there.copy_from_slice(data);
            }
            best[1] = best[1].min(start.elapsed().as_secs_f64());

            let start = Instant::now();
            for _ in 0..frames {
                assert!(caller.seal(&[&head, &data], &mut wire), "the keys are good for more");
                let mut rest = link.carry(&wire, &[])?;
                let (mut skip, mut at) = (head.len(), 0);
                while at < data_len {
                    let received = acceptor.receive(rest).expect("sound");
                    let plain = &rest[received.plain];
                    let (_, plain) = plain.split_at(core::mem::take(&mut skip));
                    there[at..at + plain.len()].copy_from_slice(plain);
                    at += plain.len();
                    rest = &mut rest[received.taken..];
                }
            }
            best[2] = best[2].min(start.elapsed().as_secs_f64());
        }
        assert_eq!(there, data);
        for (name, seconds) in ["clear", "auth", "tls"].into_iter().zip(best) {
            let us = seconds * 1e6 / f64::from(frames);
            println!("{:>8}  {name:<6} {us:>9.2}  {:>6.3}", head.len() + data_len, seconds / best[0]);
        }
    }
    Ok(())
}
