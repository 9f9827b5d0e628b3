//! The data port: frames that are cut, too long, random, out of turn, of somebody else, or of the past.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::json;
use weft_io::buffer::IoBuf;
use weft_io::mac::TAG_LEN;
use weft_proto::ids::{ClusterId, Epoch, HostId, Ordinal};
use weft_proto::message::{Answer, Ask, Refusal, Request, Response, Watermark};
use weft_proto::payload::Payload as _;
use weft_proto::wire::{
    EncodedFrame, FrameKind, HEADER_LEN, Header, Hello, MAX_FRAME, MAX_PAYLOAD, Version, decode_request,
    decode_response, encode_hello, encode_request, encode_response,
};
use weftd::clock::random_u128;
use weftd::links::DATA_PORT;

use super::support::PATIENCE;
use super::support::host::{
    Cluster, Host, assert_same, close, copy, host_uri, make_volume, nbd, open, random_file,
};
use super::support::line::{Calling, Line};
use super::support::pki::SOUND;

/// A volume whose only copy is on one host and whose guest is on another: what a stranger does to the data port
/// between them must not be felt.
struct Stage {
    cluster: Cluster,
    keeper: Host,
    owner: Host,
    relay: Relay,
    transport: Option<&'static str>,
}

impl Stage {
    /// Where what the owner says can be read on its way, and the others' frames have a MAC too.
    fn set() -> Stage {
        Stage::set_with(Some("auth"))
    }

    /// `transport`: none is in clear.
    fn set_with(transport: Option<&'static str>) -> Stage {
        let cluster = transport.map_or_else(Cluster::start, Cluster::trusted);
        let mut keeper = cluster.host(1);
        let owner = cluster.host(2);
        keeper.make_pool();
        let relay = Relay::start(&cluster, &keeper.address);
        cluster.say_address(&keeper.id, &relay.address);
        Stage { cluster, keeper, owner, relay, transport }
    }

    fn hello(&self) -> Hello {
        Hello {
            wire_min: Version::OLDEST.number(),
            wire_max: Version::NEWEST.number(),
            cluster: self.cluster.id.parse::<ClusterId>().expect("an id"),
            host: self.owner.id.parse::<HostId>().expect("an id"),
            process: 1,
            features: 0,
            max_frame: u32::try_from(MAX_FRAME).expect("fits"),
            slots: 1024,
            heartbeat_ms: 100,
            trailer_len: 0,
            watermark: Watermark::default(),
            pools: Vec::new(),
        }
    }

    /// As the owner calls, with its certificate: who has none is heard of elsewhere. Tried again where too many have just
    /// called.
    fn call(&self) -> Line {
        let pem = self.cluster.pki.as_ref().map_or_else(String::new, |pki| {
            pki.hosts.identity(&self.owner.key, &host_uri(&self.cluster.id, &self.owner.id), SOUND)
        });
        let calling = Calling { pem, transport: self.transport, alpn: None };
        let until = Instant::now() + PATIENCE;
        loop {
            match calling.call(&self.keeper.address, Some(&self.owner.address)) {
                Ok(line) => return line,
                Err(e) => assert!(Instant::now() < until, "{e}\n{}", self.keeper.log()),
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Sends bytes as a peer; the daemon must close the connection, also while it stays open at this end.
    fn assert_refused(&self, bytes: &[u8], what: &str) {
        let mut line = self.call();
        // It may close before it has read everything.
        let _ = line.send(bytes);
        assert!(line.is_closed(), "{what}: still connected\n{}", self.keeper.log());
    }
}

/// Passes everything on between the owner and the keeper, and remembers what the owner said on each connection.
struct Relay {
    address: String,
    said: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Relay {
    fn start(cluster: &Cluster, target: &str) -> Relay {
        let address = format!("127.{}.251.{}", cluster.subnet, random_u128() % 250 + 1);
        let listener = TcpListener::bind((address.as_str(), DATA_PORT)).expect("a loopback address");
        let said: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (all, target) = (said.clone(), target.to_owned());
        std::thread::spawn(move || {
            while let Ok((owner, _)) = listener.accept() {
                let Ok(keeper) = TcpStream::connect((target.as_str(), DATA_PORT)) else { continue };
                let index = {
                    let mut all = all.lock().expect("whole");
                    all.push(Vec::new());
                    all.len() - 1
                };
                let (back, forth) = (owner.try_clone().expect("cloned"), keeper.try_clone().expect("cloned"));
                let all = all.clone();
                std::thread::spawn(move || pass(&keeper, &back, |_| ()));
                std::thread::spawn(move || {
                    pass(&owner, &forth, |bytes| all.lock().expect("whole")[index].extend_from_slice(bytes));
                });
            }
        });
        Relay { address, said }
    }

    /// What the owner said on its latest connection, frame by frame, without the handshake and tags of `auth`.
    fn frames(&self) -> Vec<Vec<u8>> {
        let said = self.said.lock().expect("whole");
        let mut rest = said.last().expect("it called").as_slice();
        let mut tag_len = 0;
        while let Some(record) = rest.first_chunk::<5>().filter(|record| (20..=23).contains(&record[0])) {
            tag_len = TAG_LEN;
            rest = rest.get(5 + usize::from(u16::from_be_bytes([record[3], record[4]]))..).unwrap_or(&[]);
        }
        let mut frames = Vec::new();
        while let Some(head) = rest.get(..HEADER_LEN) {
            let len = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
            let end = HEADER_LEN + tag_len + usize::try_from(len).expect("short");
            let Some(payload) = rest.get(HEADER_LEN + tag_len..end) else { break };
            frames.push([head, payload].concat());
            rest = &rest[end..];
        }
        frames
    }
}

pub(crate) fn pass(mut from: &TcpStream, mut to: &TcpStream, mut look: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 65536];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        look(&buffer[..n]);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

pub(crate) fn bytes_of(frame: &EncodedFrame<IoBuf>) -> Vec<u8> {
    let mut bytes = frame.head.clone();
    frame.data.iter().for_each(|part| bytes.extend_from_slice(part.bytes()));
    bytes
}

/// Makes both checksums of a frame right again, as far as its lengths make sense.
pub(crate) fn seal(frame: &mut [u8]) {
    let meta_len = u32::from_le_bytes(frame[12..16].try_into().expect("four bytes")) as usize;
    if let Some(meta) = frame.get(HEADER_LEN..HEADER_LEN + meta_len) {
        let crc = crc32c::crc32c(meta);
        frame[56..60].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32c::crc32c(&frame[..60]);
    frame[60..64].copy_from_slice(&crc.to_le_bytes());
}

/// Numbers that can be had again: xorshift from a seed that a failure shows.
struct Numbers(u64);

impl Numbers {
    fn new() -> Numbers {
        let seed = u64::try_from(random_u128() >> 64).expect("fits") | 1;
        println!("seed {seed}");
        Numbers(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }
}

#[test]
fn a_peer_that_breaks_the_protocol_loses_its_connection_and_nobody_else_does() {
    for transport in [None, Some("auth"), Some("tls")] {
        break_the_protocol(&Stage::set_with(transport));
    }
}

fn break_the_protocol(stage: &Stage) {
    let volume = make_volume(&[&stage.keeper]);
    let socket = open(&stage.owner, &volume, "closed").expect("opens");
    let file = random_file(&stage.cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let show = json!({ "volume": volume });
    let epoch = stage.owner.ask("session.show", show.clone())["epoch"].clone();
    let before = stage.keeper.resident();

    let hello = encode_hello(&stage.hello());
    let ask = Request { tag: 1, epoch: Epoch(1), ask: Ask::Heartbeat };
    let request = encode_request::<IoBuf>(Version::V1, 7, &ask).head;
    let response =
        Response { tag: 1, epoch: Epoch(1), outcome: Err(weft_proto::message::Refusal::Busy), service_us: 0 };
    let response = encode_response::<IoBuf>(Version::V1, 7, &response).head;
    let after_hello = |frame: &[u8]| [hello.as_slice(), frame].concat();

    let mut numbers = Numbers::new();
    for len in [1, 63, 64, 65, 4096, 300_000] {
        let noise: Vec<u8> = (0..len).map(|_| numbers.next().to_le_bytes()[0]).collect();
        if len >= HEADER_LEN {
            stage.assert_refused(&noise, "noise instead of a hello");
            stage.assert_refused(&after_hello(&noise), "noise after a hello");
        } else {
            // Less than a header, and nothing more: silence.
            stage.assert_refused(&noise, "the beginning of noise");
        }
    }
    stage.assert_refused(&[], "silence");
    stage.assert_refused(&hello[..hello.len() - 1], "a hello without its last byte");
    stage.assert_refused(&request, "a request before hello");
    stage.assert_refused(&after_hello(&hello), "a second hello");
    stage.assert_refused(&after_hello(&response), "a response to no request");
    for (what, wrong) in [
        ("another cluster's", Hello { cluster: ClusterId(5), ..stage.hello() }),
        ("a later version's", Hello { wire_min: 9, wire_max: 9, ..stage.hello() }),
        ("one with versions the wrong way round", Hello { wire_min: 9, wire_max: 1, ..stage.hello() }),
        ("one with a trailer", Hello { trailer_len: 16, ..stage.hello() }),
    ] {
        stage.assert_refused(&encode_hello(&wrong), what);
    }
    for byte in 0..HEADER_LEN {
        let mut flipped = request.clone();
        flipped[byte] ^= 1 << numbers.below(8);
        stage.assert_refused(&after_hello(&flipped), &format!("a bit flipped in byte {byte}"));
    }
    // Lengths that no frame has, with checksums that are right.
    let beyond = u32::try_from(MAX_PAYLOAD).expect("fits") + 1;
    for (payload, meta) in
        [(beyond, 0), (u32::MAX, 0), (u32::MAX, u32::MAX), (0, 1), (65537, 65537), (4097, 0)]
    {
        let mut long = request.clone();
        long[8..12].copy_from_slice(&payload.to_le_bytes());
        long[12..16].copy_from_slice(&meta.to_le_bytes());
        seal(&mut long);
        stage.assert_refused(&after_hello(&long), &format!("{payload} bytes, {meta} of them meta"));
    }
    // Somebody else's name in an attachment, which is not to be read on its way under TLS.
    if stage.transport != Some("tls") {
        let attach = stage.relay.frames().into_iter().find_map(attach_of).expect("the owner attached");
        let stranger = Request {
            ask: match attach.ask.clone() {
                Ask::Attach(attach) => {
                    Ask::Attach(weft_proto::message::Attach { host: HostId(77), ..attach })
                }
                other => unreachable!("{other:?}"),
            },
            ..attach
        };
        let stranger = encode_request::<IoBuf>(Version::V1, 1, &stranger).head;
        stage.assert_refused(&after_hello(&stranger), "an attachment in another host's name");
    }

    stage.keeper.assert_alive();
    let session = stage.owner.ask("session.show", show);
    assert_eq!(
        (&session["epoch"], &session["phase"]),
        (&epoch, &json!("serving")),
        "the copy was never missed"
    );
    let grown = stage.keeper.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB more", grown >> 20);
    assert_same(&stage.cluster, &stage.owner, &socket, &volume, &file);
    close(&stage.owner, &volume);
}

fn attach_of(frame: Vec<u8>) -> Option<Request<IoBuf>> {
    request_of(&frame).filter(|r| matches!(r.ask, Ask::Attach(_)))
}

fn request_of(frame: &[u8]) -> Option<Request<IoBuf>> {
    let header = Header::parse(frame[..HEADER_LEN].try_into().expect("a header"), Version::V1).ok()?;
    let (meta, data) = frame[HEADER_LEN..].split_at(header.meta_len());
    decode_request(&header, meta, IoBuf::copy_of(data)).ok()
}

/// 400 peers announce the longest frame there is, send half of it and wait. They are held, within bounds, and the
/// owner's connection is as good as before.
#[test]
fn peers_that_stop_in_the_middle_of_a_frame_cost_bounded_memory() {
    // As many as TLS lets begin in a few seconds, and as many as there may be.
    for (transport, peers) in [(None, 400), (Some("tls"), 200)] {
        stop_in_the_middle(&Stage::set_with(transport), peers);
    }
}

fn stop_in_the_middle(stage: &Stage, peers: usize) {
    let volume = make_volume(&[&stage.keeper]);
    let socket = open(&stage.owner, &volume, "closed").expect("opens");
    let file = random_file(&stage.cluster, "a");
    let before = stage.keeper.resident();
    let hello = encode_hello(&stage.hello());
    let ask = Request { tag: 1, epoch: Epoch(1), ask: Ask::Heartbeat };
    let mut long = encode_request::<IoBuf>(Version::V1, 7, &ask).head;
    // A write of 128 KiB.
    long[5] = 0x13;
    long[8..12].copy_from_slice(&(128u32 << 10).to_le_bytes());
    long[12..16].copy_from_slice(&0u32.to_le_bytes());
    long.truncate(HEADER_LEN);
    seal(&mut long);
    long.resize(HEADER_LEN + (64 << 10), 0xaa);
    let peers: Vec<Line> = (0..peers)
        .map(|_| {
            let mut line = stage.call();
            line.send(&hello).expect("sent");
            line.send(&long).expect("sent");
            line
        })
        .collect();
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    assert_same(&stage.cluster, &stage.owner, &socket, &volume, &file);
    let grown = stage.keeper.resident().saturating_sub(before);
    assert!(grown < 160 << 20, "{} MiB more for {} peers", grown >> 20, peers.len());
    drop(peers);
    stage.keeper.assert_alive();
    // They called in the owner's name, so its own connection was among those that made room for them.
    let shown = json!({ "volume": volume });
    stage.owner.ask_until("session.show", &shown, |session| session["phase"] == "serving");
    close(&stage.owner, &volume);
}

/// Everything that an owner said is said again by somebody who listened: while its session lives, and after it has
/// ended and another has written something else. Nothing is written twice, and nobody is taken out (R1).
#[test]
fn a_replayed_connection_changes_nothing() {
    let stage = Stage::set();
    let volume = make_volume(&[&stage.keeper]);
    let socket = open(&stage.owner, &volume, "closed").expect("opens");
    let [first, second] = ["a", "b"].map(|name| random_file(&stage.cluster, name));
    copy(first.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let frames = stage.relay.frames();
    let writes =
        frames.iter().filter_map(|f| request_of(f)).filter(|r| matches!(r.ask, Ask::Write { .. })).count();
    assert!(writes >= 8, "the plot needs writes: {writes}");
    let recorded = frames.concat();
    let replay = || {
        let mut line = stage.call();
        let mut answers = line.socket().try_clone().expect("cloned");
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            let _ = answers.read_to_end(&mut all);
            all.len()
        });
        // Twice on one connection cannot be: the second hello ends it.
        let _ = line.send(&recorded);
        line.end_of_sending();
        reader.join().expect("read")
    };

    copy(second.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let show = json!({ "volume": volume });
    let epoch = stage.owner.ask("session.show", show.clone())["epoch"].clone();
    assert!(replay() > HEADER_LEN * writes, "each request is answered: refused");
    assert_same(&stage.cluster, &stage.owner, &socket, &volume, &second);
    let session = stage.owner.ask("session.show", show.clone());
    assert_eq!((&session["epoch"], &session["phase"]), (&epoch, &json!("serving")));

    close(&stage.owner, &volume);
    replay();
    let socket = open(&stage.owner, &volume, "closed").expect("opens");
    assert_same(&stage.cluster, &stage.owner, &socket, &volume, &second);
    copy(first.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    copy(second.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    replay();
    assert_same(&stage.cluster, &stage.owner, &socket, &volume, &second);
    stage.keeper.assert_alive();
    close(&stage.owner, &volume);
}

/// Frames with right checksums and wrong fields, from a peer that may attach: they may do harm to the one volume whose
/// session they stand for, but not to another one, and not to the daemon.
#[test]
fn sound_frames_with_senseless_fields_do_not_end_the_daemon() {
    let stage = Stage::set();
    let [victim, volume] = [make_volume(&[&stage.keeper]), make_volume(&[&stage.keeper])];
    let file = random_file(&stage.cluster, "a");
    let socket = open(&stage.owner, &victim, "closed").expect("opens");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &victim));
    let qemu = ["discard 0 1M", "write -z 1M 64k", "read 0 64k", "flush", "map"];
    let mut qemu_io = std::process::Command::new("qemu-io");
    qemu_io.args(["-f", "raw"]).args(qemu.iter().flat_map(|c| ["-c", c])).arg(nbd(&socket, &victim));
    assert!(qemu_io.output().expect("qemu-io is installed").status.success());
    close(&stage.owner, &victim);
    let said: Vec<(u32, Request<IoBuf>)> = stage
        .relay
        .frames()
        .iter()
        .filter_map(|f| Some((u32::from_le_bytes(f[20..24].try_into().ok()?), request_of(f)?)))
        .collect();
    let begun = said.iter().position(|(_, r)| matches!(r.ask, Ask::Write { .. })).expect("a write");
    // How a session begins, then one of each kind of request.
    let mut kinds = said[..begun].to_vec();
    for (handle, request) in &said[begun..] {
        let kind = std::mem::discriminant(&request.ask);
        if kinds.iter().filter(|(_, r)| std::mem::discriminant(&r.ask) == kind).count() < 3 {
            kinds.push((*handle, request.clone()));
        }
    }
    let socket = open(&stage.owner, &volume, "closed").expect("opens");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let before = stage.keeper.resident();

    let hello = encode_hello(&stage.hello());
    let mut numbers = Numbers::new();
    let odd =
        [0, 1, 4095, 4096, 8 << 20, (8 << 20) + 1, 1 << 40, u64::from(u32::MAX), u64::MAX - 4095, u64::MAX];
    let until = Instant::now() + std::time::Duration::from_secs(6);
    for round in 0..400_u64 {
        if Instant::now() > until {
            break;
        }
        let mut line = stage.call();
        let mut bytes = hello.clone();
        let wrong = numbers.below(kinds.len());
        for (i, (handle, request)) in kinds.iter().enumerate() {
            let mut request = request.clone();
            if let Ask::Attach(attach) = &mut request.ask {
                attach.ordinal = Ordinal(1_000_000 + round);
            }
            let mut frame = bytes_of(&encode_request(Version::V1, *handle, &request));
            if i == wrong || numbers.below(12) == 0 {
                let value = odd[numbers.below(odd.len())].to_le_bytes();
                match numbers.below(8) {
                    0 => {
                        frame[5] = [0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x18, 0x19, 0x1a, 0x1b, 0x1c]
                            [numbers.below(12)]
                    }
                    1 => frame[7] = value[0] | 1 << numbers.below(8),
                    2 => frame[16..24].copy_from_slice(&value),
                    3 => frame[24..32].copy_from_slice(&value),
                    4 => frame[32..40].copy_from_slice(&value),
                    5 => frame[40..48].copy_from_slice(&value),
                    6 => frame[48..56].copy_from_slice(&value),
                    _ if frame.len() > HEADER_LEN => {
                        let at = HEADER_LEN + numbers.below(frame.len() - HEADER_LEN);
                        frame[at] ^= 1 << numbers.below(8);
                    }
                    _ => {}
                }
                seal(&mut frame);
            }
            bytes.extend_from_slice(&frame);
        }
        let mut answers = line.socket().try_clone().expect("cloned");
        let reader = std::thread::spawn(move || {
            let _ = std::io::copy(&mut answers, &mut std::io::sink());
        });
        let _ = line.send(&bytes);
        line.end_of_sending();
        reader.join().expect("read");
        if round % 50 == 0 {
            stage.keeper.assert_alive();
        }
    }
    stage.keeper.assert_alive();
    let grown = stage.keeper.resident().saturating_sub(before);
    assert!(grown < 96 << 20, "{} MiB more", grown >> 20);
    assert_same(&stage.cluster, &stage.owner, &socket, &volume, &file);
    close(&stage.owner, &volume);
    let why = stage.owner.ask("why", json!({ "volume": victim }));
    assert_eq!(why["volume"], victim.as_str());
}

/// One attachment of a peer that says what it likes.
struct Peer {
    line: Line,
    tag: u32,
}

impl Peer {
    fn ask(&mut self, epoch: Epoch, ask: Ask<IoBuf>) -> Result<Answer<IoBuf>, Refusal> {
        self.tag += 1;
        let frame = encode_request(Version::V1, 7, &Request { tag: self.tag, epoch, ask });
        self.line.send(&bytes_of(&frame)).expect("sent");
        loop {
            let (head, payload) = self.line.frame().expect("an answer");
            let Ok(header) = Header::parse(&head, Version::V1) else { continue };
            if header.kind() == FrameKind::Response && header.tag == self.tag {
                let (meta, data) = payload.split_at(header.meta_len());
                let response = decode_response(&header, meta, IoBuf::copy_of(data)).expect("sound");
                return response.outcome;
            }
        }
    }
}

/// R11: what a host says of the store is no truth. It stops the opens of a host that hears it, by its name, until it says
/// less; it never becomes that host's own watermark, whatever restarts in between.
#[test]
fn a_host_that_lies_about_the_store_stops_opens_until_it_says_less() {
    let mut stage = Stage::set();
    let [open_before, volume] = [make_volume(&[&stage.keeper]), make_volume(&[&stage.keeper])];
    let socket = open(&stage.keeper, &open_before, "closed").expect("opens");
    let file = random_file(&stage.cluster, "a");
    let says = |stage: &Stage, incarnation: u64| {
        let mut hello = stage.hello();
        let revision = incarnation;
        hello.watermark = Watermark { cluster: hello.cluster, incarnation, revision };
        let mut line = stage.call();
        line.send(&encode_hello(&hello)).expect("sent");
        let claimed = |s: &serde_json::Value| {
            s["claims"].as_array().map_or(0, Vec::len) == usize::from(incarnation > 1)
        };
        (stage.keeper.ask_until("store.show", &json!({}), claimed), line)
    };
    let (shown, _line) = says(&stage, u64::MAX);
    assert_eq!(shown["claims"][0]["host"], stage.owner.id.as_str(), "{shown}");
    assert_eq!((&shown["watermark"]["incarnation"], &shown["rolled_back"]), (&json!("1"), &json!(false)));
    let refused = open(&stage.keeper, &volume, "closed").expect_err("refused");
    assert_eq!((&refused["code"], &refused["facts"]["host"]), (&json!("E-TRUST-04"), &json!(stage.owner.id)));
    assert!(
        stage.cluster.get(&format!("/weft/v1/vol/{volume}/state"))["owner"].is_null(),
        "nothing was claimed"
    );
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &open_before));
    close(&stage.keeper, &open_before);

    stage.keeper.kill();
    stage.keeper.start();
    stage.keeper.await_pool();
    let refused = open(&stage.keeper, &volume, "closed").expect_err("refused after a restart as well");
    assert_eq!(refused["code"], "E-TRUST-04", "{refused}");
    says(&stage, 1);
    open(&stage.keeper, &volume, "closed").expect("opens");
    close(&stage.keeper, &volume);
}

/// R11: a host that has told its records to a repair obeys no session of the store's past, whatever is on its way, also
/// when its daemon was restarted. A promise that it still took could make a record that the repair never hears of
/// (docs/model.md, finding 2; `weft-model`, case repair-without-fence).
#[test]
fn a_promise_of_before_a_repair_is_refused_once_the_records_were_told() {
    let mut stage = Stage::set();
    let volume = make_volume(&[&stage.keeper]);
    open(&stage.owner, &volume, "closed").expect("opens");
    let said: Vec<Request<IoBuf>> = stage.relay.frames().iter().filter_map(|f| request_of(f)).collect();
    let attach = said.iter().find_map(|r| match &r.ask {
        Ask::Attach(attach) => Some(attach.clone()),
        _ => None,
    });
    let promise = said.iter().find_map(|r| match &r.ask {
        Ask::Promise { record, watermark } => Some((r.epoch, record.clone(), *watermark)),
        _ => None,
    });
    let (attach, (epoch, record, watermark)) = (attach.expect("attached"), promise.expect("promised"));
    assert_eq!(watermark.incarnation, 1);
    close(&stage.owner, &volume);
    // The session's next records. The store shows the first of them, so that it is promised; of the second, the store that
    // is put back will know nothing.
    let next = |later: u64| {
        let mut record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
        let rev = record["rev"].as_str().and_then(|rev| rev.parse::<u64>().ok()).expect("a number");
        record["epoch"] = json!((epoch.0 + later).to_string());
        record["rev"] = json!((rev + later).to_string());
        record
    };
    let promise = |later: u64| {
        let record = next(later).to_string().into_bytes();
        (Epoch(epoch.0 + later), Ask::Promise { record, watermark })
    };
    let hello = encode_hello(&stage.hello());
    let call = |stage: &Stage, ordinal: u64| {
        let mut line = stage.call();
        line.send(&hello).expect("sent");
        let mut peer = Peer { line, tag: 0 };
        let ask = Ask::Attach(weft_proto::message::Attach { ordinal: Ordinal(ordinal), ..attach.clone() });
        let answer = peer.ask(epoch, ask);
        (peer, answer)
    };
    let promised = |host: &Host| host.ask("replica.records", json!({}))["records"][0]["promised"].clone();
    let (mut peer, answer) = call(&stage, 1_000_000);
    assert!(matches!(answer, Ok(Answer::Attached(_))), "{answer:?}");
    let (later, ask) = promise(1);
    assert_eq!(peer.ask(later, ask.clone()), Err(Refusal::MetadataRollback), "the store knows nothing of it");
    stage.cluster.put(&format!("/weft/v1/vol/{volume}/state"), &next(1));
    assert!(matches!(peer.ask(later, ask), Ok(Answer::Promised(_))), "in peace it is obeyed");

    // The host has asked its store nothing since that was put back.
    let identity = |incarnation| json!({ "cluster": stage.cluster.id, "incarnation": incarnation });
    stage.cluster.put("/weft/v1/store", &identity("0"));
    let told = stage.keeper.ask("replica.records", json!({}));
    assert_eq!(told["records"][0]["promised"], json!((epoch.0 + 1).to_string()));
    let (later, ask) = promise(2);
    assert_eq!(peer.ask(later, ask), Err(Refusal::MetadataRollback), "{}", stage.keeper.log());

    // Nothing but what the host has written down speaks against the store that comes up now.
    stage.cluster.put("/weft/v1/store", &identity("1"));
    stage.keeper.kill();
    stage.keeper.start();
    let shown = stage.keeper.ask_until("store.show", &json!({}), |s| s["reachable"] == true);
    assert_eq!(shown["watermark"]["incarnation"], "2", "{shown}");
    stage.keeper.ask_until("store.show", &json!({}), |s| s["rolled_back"] == true);
    let (_, answer) = call(&stage, 1_000_001);
    assert_eq!(answer, Err(Refusal::Busy), "its pools wait for the repair");
    let repair = json!({ "records": [told["records"][0]["record"]], "incarnation": "3" });
    stage.keeper.ask("store.repair_apply", repair);
    stage.keeper.await_pool();
    let (_, answer) = call(&stage, 1_000_002);
    assert_eq!(answer, Err(Refusal::MetadataRollback), "{}", stage.keeper.log());
    assert_eq!(
        promised(&stage.keeper),
        json!((epoch.0 + 1).to_string()),
        "no record is younger than what was told"
    );
    open(&stage.owner, &volume, "steal").expect("opens in the repaired store");
    close(&stage.owner, &volume);
}
