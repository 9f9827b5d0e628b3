//! The holder between a guest and a weftd that a test plays: what it is sent, when, and what the guest is told.
//!
//! Every plot is about the same question: when may a request that was not answered be asked for again?

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_checker::nbd::{self, Command as Ask, REPLY_HEAD};

const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough to see that nothing comes, where nothing may.
const A_WHILE: Duration = Duration::from_millis(150);
const VOLUME: &str = "00000000-0000-0000-0000-00000000000a";
const FIRST: &str = "00000000-0000-0000-0000-0000000000f1";
const OTHER: &str = "00000000-0000-0000-0000-0000000000f2";
const SIZE: u64 = 1 << 20;
const EIO: u32 = 5;
const EAGAIN: u32 = 11;
const ESHUTDOWN: u32 = 108;

/// What weftd says of the volume.
#[derive(Clone, Copy, PartialEq)]
enum Says {
    Open,
    /// Somebody else has owned it.
    Taken,
    /// Trouble that passes.
    Waits,
}

struct Scene {
    dir: TempDir,
    holder: Child,
    says: Arc<Mutex<Says>>,
    /// Whose ownership the export is of.
    export: Export,
    guest_socket: PathBuf,
}

/// weftd's export: accepts who asks for the ownership that it is of.
struct Export {
    path: PathBuf,
    listener: Option<UnixListener>,
    /// Of the volume, in bytes.
    size: u64,
}

/// What the holder has connected to.
struct Server(UnixStream);

struct Guest(UnixStream);

fn ready(fd: impl std::os::fd::AsFd, patience: Duration) -> bool {
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    let wait = rustix::fs::Timespec {
        tv_sec: patience.as_secs().cast_signed(),
        tv_nsec: patience.subsec_nanos().into(),
    };
    rustix::event::poll(&mut fds, Some(&wait)).expect("polled") > 0
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().expect("a directory");
        let says = Arc::new(Mutex::new(Says::Open));
        let mut export = Export { path: dir.path().join("export.sock"), listener: None, size: SIZE };
        export.listen();
        let control = UnixListener::bind(dir.path().join("weftd.sock")).expect("bound");
        let (told, path) = (says.clone(), export.path.clone());
        std::thread::spawn(move || {
            for stream in control.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut line = String::new();
                let _ = BufReader::new(stream.try_clone().expect("cloned")).read_line(&mut line);
                if line.is_empty() {
                    // Whoever was to be connected has gone meanwhile.
                    continue;
                }
                let asked: Value = serde_json::from_str(&line).expect("JSON");
                assert_eq!(asked["method"], "session.continue");
                let error =
                    |code| json!({ "id": 1, "error": { "code": code, "message": "no", "facts": {} } });
                let answer = match *told.lock().expect("whole") {
                    Says::Open => {
                        json!({ "id": 1, "result": { "session": OTHER, "first": FIRST, "epoch": "7", "path": path } })
                    }
                    Says::Taken => error("E-VOL-21"),
                    Says::Waits => error("E-VOL-09"),
                };
                let _ = stream.write_all(format!("{answer}\n").as_bytes());
            }
        });
        let holder = Command::new(env!("CARGO_BIN_EXE_weft-holder"))
            .args(["--run-dir".as_ref(), dir.path().as_os_str()])
            .stderr(Stdio::null())
            .spawn()
            .expect("the holder");
        let guest_socket = dir.path().join("guest.sock");
        let scene = Scene { dir, holder, says, export, guest_socket };
        scene.ask("open", scene.offer()).expect("offered");
        scene
    }

    fn offer(&self) -> Value {
        json!({ "id": "v", "listen": self.guest_socket, "volume": VOLUME, "session": FIRST, "snapshot": null,
            "writable": true })
    }

    fn ask(&self, method: &str, params: Value) -> Result<Value, Value> {
        let until = Instant::now() + PATIENCE;
        let mut stream = loop {
            match UnixStream::connect(self.dir.path().join("holder.sock")) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            std::thread::yield_now();
        };
        let line = json!({ "id": 3, "method": method, "params": params });
        stream.write_all(format!("{line}\n").as_bytes()).expect("sent");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("answered");
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(answer["id"], 3);
        answer.get("result").cloned().ok_or_else(|| answer["error"].clone())
    }

    /// What is told of the offer, once it is `good`.
    fn told(&self, good: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let told = self.ask("list", json!({})).expect("a list")["entries"][0].clone();
            if good(&told) {
                return told;
            }
            assert!(Instant::now() < until, "{told}");
            std::thread::yield_now();
        }
    }

    fn says(&self, says: Says) {
        *self.says.lock().expect("whole") = says;
    }

    /// A guest, and the connection that the holder has made for it.
    fn guest(&self) -> (Guest, Server) {
        let (guest, server, size) = self.guest_told();
        assert_eq!(size, SIZE);
        (guest, server)
    }

    /// And the size that it was told.
    fn guest_told(&self) -> (Guest, Server, u64) {
        let socket = self.guest_socket.to_str().expect("UTF-8").to_owned();
        let greeted = std::thread::spawn(move || nbd::connect(&socket, "tapdisk_client", PATIENCE));
        let server = self.export.accept(FIRST);
        let (stream, export) = greeted.join().expect("no panic").expect("greeted");
        (Guest(stream), server, export.size)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Export {
    fn listen(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        self.listener = Some(UnixListener::bind(&self.path).expect("bound"));
    }

    /// Somebody connects and asks for this name; anybody who asks for another one is refused.
    fn accept(&self, name: &str) -> Server {
        let listener = self.listener.as_ref().expect("it listens");
        loop {
            assert!(ready(listener, PATIENCE), "nobody connects");
            let mut stream = listener.accept().expect("accepted").0;
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").expect("sent");
            let mut head = [0; 4 + 16 + 4];
            stream.read_exact(&mut head).expect("an option");
            let len = u32::from_be_bytes(head[20..].try_into().expect("four"));
            let mut rest = vec![0; len as usize + 2];
            stream.read_exact(&mut rest).expect("a name");
            let reply = |kind: u32, body: &[u8]| {
                let len = u32::try_from(body.len()).expect("short").to_be_bytes();
                [
                    &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
                    &7u32.to_be_bytes(),
                    &kind.to_be_bytes(),
                    &len,
                    body,
                ]
                .concat()
            };
            if &rest[..len as usize] != name.as_bytes() {
                stream.write_all(&reply((1 << 31) + 6, b"no such export")).expect("sent");
                continue;
            }
            let info = [&[0, 0][..], &self.size.to_be_bytes(), &[0, 13]].concat();
            stream.write_all(&reply(3, &info)).expect("sent");
            stream.write_all(&reply(1, &[])).expect("sent");
            return Server(stream);
        }
    }

    fn nobody_connects(&self) {
        assert!(!ready(self.listener.as_ref().expect("it listens"), A_WHILE), "somebody connects");
    }
}

impl Server {
    /// The next request: command, number, offset, and a write's first byte.
    fn request(&mut self) -> (u16, u64, u64, u8) {
        let mut head = [0; 28];
        self.0.read_exact(&mut head).expect("a request");
        let command = u16::from_be_bytes(head[6..8].try_into().expect("two"));
        let cookie = u64::from_be_bytes(head[8..16].try_into().expect("eight"));
        let offset = u64::from_be_bytes(head[16..24].try_into().expect("eight"));
        let len = u32::from_be_bytes(head[24..].try_into().expect("four"));
        let mut data = vec![0; if command == 1 { len as usize } else { 0 }];
        self.0.read_exact(&mut data).expect("its data");
        (command, cookie, offset, data.first().copied().unwrap_or(0))
    }

    /// The write that comes next, at this offset: its number, and its data.
    fn write_of(&mut self, offset: u64) -> (u64, Vec<u8>) {
        let mut head = [0; 28];
        self.0.read_exact(&mut head).expect("a request");
        assert_eq!((head[7], &head[16..24]), (1, &offset.to_be_bytes()[..]));
        let mut data = vec![0; u32::from_be_bytes(head[24..].try_into().expect("four")) as usize];
        self.0.read_exact(&mut data).expect("its data");
        (u64::from_be_bytes(head[8..16].try_into().expect("eight")), data)
    }

    fn reply(&mut self, cookie: u64, error: u32) {
        let head = [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat();
        self.0.write_all(&head).expect("sent");
    }

    fn nothing_comes(&self) {
        assert!(!ready(&self.0, A_WHILE), "something comes");
    }
}

impl Guest {
    fn write(&mut self, cookie: u64, offset: u64, with: u8) {
        self.0.write_all(&nbd::request(Ask::Write, false, cookie, offset, 4096)).expect("sent");
        self.0.write_all(&[with; 4096]).expect("sent");
    }

    fn answer(&mut self) -> (u32, u64) {
        let mut head = [0; REPLY_HEAD];
        self.0.read_exact(&mut head).expect("an answer");
        nbd::reply(&head).expect("a reply")
    }

    fn hears_nothing(&self) {
        assert!(!ready(&self.0, A_WHILE), "the guest is told something");
    }
}

/// What was sent and not answered is sent again when weftd is back with the same ownership, and answered once.
#[test]
fn what_was_not_answered_is_asked_for_again_in_the_same_ownership() {
    let mut scene = Scene::new();
    let (mut guest, mut server) = scene.guest();
    for (cookie, block) in [(11, 0), (12, 1), (13, 2)] {
        guest.write(cookie, block * 4096, 7);
    }
    let cookies: Vec<u64> = (0..3).map(|_| server.request().1).collect();
    server.reply(cookies[1], 0);
    assert_eq!(guest.answer(), (0, 12));
    scene.says(Says::Waits);
    scene.export.listener = None;
    drop(server);
    // What comes before the holder has seen that counts as sent.
    scene.told(|told| !told["waits_for"].is_null());
    guest.write(14, 4 * 4096, 9);
    scene.told(|told| told["unanswered"] == 3);
    guest.hears_nothing();
    scene.export.listen();
    scene.says(Says::Open);
    let mut server = scene.export.accept(FIRST);
    let mut again: Vec<(u16, u64, u64, u8)> = (0..3).map(|_| server.request()).collect();
    again.sort_by_key(|request| request.2);
    let of: Vec<(u64, u8)> = again.iter().map(|request| (request.2 / 4096, request.3)).collect();
    assert_eq!(of, [(0, 7), (2, 7), (4, 9)]);
    for (_, cookie, ..) in again {
        server.reply(cookie, 0);
    }
    let mut answered: Vec<(u32, u64)> = (0..3).map(|_| guest.answer()).collect();
    answered.sort_unstable();
    assert_eq!(answered, [(0, 11), (0, 13), (0, 14)]);
    let told = scene.told(|told| told["unanswered"] == 0);
    assert_eq!((&told["replayed"], &told["lost"]), (&json!("2"), &Value::Null));
}

/// Somebody else has owned the volume meanwhile: nothing is sent, the guest is told, and the next one is told too.
#[test]
fn nothing_is_repeated_after_somebody_else_has_owned_the_volume() {
    let mut scene = Scene::new();
    let (mut guest, mut server) = scene.guest();
    guest.write(11, 0, 7);
    server.request();
    scene.says(Says::Taken);
    drop(server);
    assert_eq!(guest.answer(), (ESHUTDOWN, 11));
    scene.export.nobody_connects();
    scene.told(|told| !told["lost"].is_null() && told["connected"] == false);
    assert_eq!(scene.ask("open", scene.offer()).expect_err("taken")["code"], "E-VOL-21");
    scene.export.listen();
}

/// weftd has the volume open, and its export is of another ownership: it knows nothing of the name that is asked for.
#[test]
fn nothing_is_repeated_into_an_export_of_another_ownership() {
    let mut scene = Scene::new();
    let (mut guest, mut server) = scene.guest();
    guest.write(11, 0, 7);
    server.request();
    scene.export.listen();
    drop(server);
    // What it serves from now on is another one's; whoever asks for the first is refused, time and again.
    let export =
        Export { path: scene.export.path.clone(), listener: scene.export.listener.take(), size: SIZE };
    let refusing = std::thread::spawn(move || export.accept(OTHER));
    scene.told(|told| told["waits_for"].as_str().is_some_and(|why| why.contains("no such export")));
    guest.hears_nothing();
    scene.says(Says::Taken);
    assert_eq!(guest.answer(), (ESHUTDOWN, 11));
    // Ends the thread that refuses.
    let path = scene.export.path.to_str().expect("UTF-8").to_owned();
    assert!(nbd::connect(&path, OTHER, PATIENCE).is_ok());
    assert!(refusing.join().is_ok());
}

/// Overlapping writes reach weftd one after the other, in the guest's order, also when they are repeated.
#[test]
fn overlapping_requests_keep_their_order() {
    let mut scene = Scene::new();
    let (mut guest, mut server) = scene.guest();
    guest.write(11, 0, 1);
    guest.write(12, 2048, 2);
    guest.write(13, 3 * 4096, 3);
    assert_eq!((server.request().2, server.request().2), (0, 3 * 4096));
    server.nothing_comes();
    scene.export.listen();
    drop(server);
    let mut server = scene.export.accept(FIRST);
    let first = server.request();
    assert_eq!((first.2, server.request().2), (0, 3 * 4096));
    server.nothing_comes();
    server.reply(first.1, 0);
    assert_eq!(guest.answer(), (0, 11));
    assert_eq!(server.request().3, 2);
}

/// Trouble that passes is not told; what waiting can't help is.
#[test]
fn a_guest_is_told_of_an_error_only_when_waiting_cannot_help() {
    let scene = Scene::new();
    let (mut guest, mut server) = scene.guest();
    guest.write(11, 0, 1);
    let (_, cookie, ..) = server.request();
    server.reply(cookie, EAGAIN);
    guest.hears_nothing();
    let (_, cookie, ..) = server.request();
    server.reply(cookie, EIO);
    assert_eq!(guest.answer(), (EIO, 11));
}

/// A session that ends says ESHUTDOWN; whether its ownership is over is for weftd to say of the record.
#[test]
fn an_ending_session_is_not_an_end_of_the_ownership() {
    let scene = Scene::new();
    let (mut guest, mut server) = scene.guest();
    guest.write(11, 0, 1);
    let (_, cookie, ..) = server.request();
    server.reply(cookie, ESHUTDOWN);
    guest.hears_nothing();
    // It reads and closes; before that nothing is sent on another connection.
    scene.export.nobody_connects();
    drop(server);
    let mut server = scene.export.accept(FIRST);
    let (_, cookie, _, with) = server.request();
    assert_eq!(with, 1);
    server.reply(cookie, 0);
    assert_eq!(guest.answer(), (0, 11));
}

/// A guest that is gone waits for nothing: what it had asked for is not repeated, and the next one's requests go only
/// when weftd has read the last of its connection.
#[test]
fn what_a_guest_that_is_gone_had_asked_for_is_forgotten() {
    let scene = Scene::new();
    let (mut guest, mut server) = scene.guest();
    guest.write(11, 0, 1);
    server.request();
    guest.write(12, 4096, 2);
    drop(guest);
    scene.told(|told| told["connected"] == false && told["unanswered"] == 0);
    let socket = scene.guest_socket.to_str().expect("UTF-8").to_owned();
    let next = std::thread::spawn(move || nbd::connect(&socket, "tapdisk_client", PATIENCE));
    scene.export.nobody_connects();
    // weftd reads what is left, sees the end, and closes.
    let mut rest = Vec::new();
    server.0.read_to_end(&mut rest).expect("read");
    drop(server);
    let mut server = scene.export.accept(FIRST);
    let mut guest = Guest(next.join().expect("no panic").expect("greeted").0);
    server.nothing_comes();
    guest.write(21, 0, 5);
    let (_, cookie, _, with) = server.request();
    assert_eq!(with, 5);
    server.reply(cookie, 0);
    assert_eq!(guest.answer(), (0, 21));
}

/// Closed while requests are unanswered: they never come again, whatever is offered next.
#[test]
fn nothing_outlives_its_entry() {
    let scene = Scene::new();
    let (mut guest, mut server) = scene.guest();
    guest.write(11, 0, 1);
    server.request();
    scene.ask("close", json!({ "id": "v" })).expect("closed");
    assert!(!scene.guest_socket.exists());
    assert_eq!(guest.0.read(&mut [0]).expect("cut"), 0);
    scene.ask("close", json!({ "id": "v" })).expect("done already");
    drop(server);
    scene.ask("open", scene.offer()).expect("offered anew");
    scene.ask("open", scene.offer()).expect("and again");
    let (_guest, server) = scene.guest();
    server.nothing_comes();
    let other = json!({ "id": "v", "listen": scene.guest_socket, "volume": VOLUME, "session": FIRST, "snapshot": null,
        "writable": false });
    assert_eq!(scene.ask("open", other).expect_err("in use")["code"], "E-HOLD-02");
}

/// Paused, nothing more is sent, and whoever asked is told when weftd has answered what it had.
#[test]
fn a_pause_ends_with_what_is_under_way() {
    let scene = Scene::new();
    let (mut guest, mut server) = scene.guest();
    guest.write(11, 0, 1);
    let (_, cookie, ..) = server.request();
    std::thread::scope(|threads| {
        let paused = threads.spawn(|| scene.ask("pause", json!({ "id": "v" })));
        scene.told(|told| told["paused"] == true);
        assert!(!paused.is_finished());
        guest.write(12, 4096, 2);
        server.nothing_comes();
        server.reply(cookie, 0);
        paused.join().expect("no panic").expect("paused");
    });
    assert_eq!(guest.answer(), (0, 11));
    server.nothing_comes();
    scene.ask("resume", json!({ "id": "v" })).expect("resumed");
    assert_eq!(server.request().3, 2);
}

/// A volume grows while a guest has it. Each tapdisk that opens anew is told what the first one was: it would refuse another
/// size and stay paused. Only when that is asked for the next one is told the new size, and the old one again after it.
#[test]
fn a_guest_that_comes_back_is_told_the_size_of_before() {
    let mut scene = Scene::new();
    let told = |scene: &Scene, size: u64| {
        let (guest, server, found) = scene.guest_told();
        assert_eq!(found, size);
        assert_eq!(scene.told(|told| told["connected"] == true)["told_size"], json!(size.to_string()));
        drop(guest);
        drop(server);
        scene.told(|told| told["connected"] == false);
    };
    let says = |scene: &Scene, size: &str| {
        scene.ask("tell_size", json!({ "id": "v", "size": size })).expect("noted");
    };
    assert_eq!(scene.told(|_| true)["told_size"], Value::Null);
    says(&scene, "before");
    told(&scene, SIZE);
    scene.export.size = 2 * SIZE;
    told(&scene, SIZE);
    says(&scene, "now");
    says(&scene, "now");
    told(&scene, 2 * SIZE);
    says(&scene, "before");
    told(&scene, SIZE);
    says(&scene, "now");
    told(&scene, 2 * SIZE);
    scene.export.size = 3 * SIZE;
    told(&scene, 2 * SIZE);
    // Another holder offers it again to the same guest: that one's word counts.
    scene.ask("close", json!({ "id": "v" })).expect("closed");
    scene.ask("open", scene.offer()).expect("offered");
    scene.ask("keep_size", json!({ "id": "v", "bytes": SIZE.to_string() })).expect("noted");
    told(&scene, SIZE);
}

/// Requests of many lengths, in one stream that is cut anywhere, and answers that are: every byte arrives where it belongs.
#[test]
fn long_and_short_requests_arrive_whole() {
    const LENGTHS: [u32; 8] = [200_000, 4096, 45_056, 1, 300_000, 16_384, 4095, 65_536];
    let scene = Scene::new();
    let (mut guest, mut server) = scene.guest();
    let byte = |cookie: u64, at: usize| {
        u8::try_from((at / 7 + usize::try_from(cookie).expect("small")) % 251).expect("below 251")
    };
    let data = |cookie: u64, len: u32| -> Vec<u8> { (0..len as usize).map(|at| byte(cookie, at)).collect() };
    let mut stream = Vec::new();
    for (cookie, len) in (1..).zip(LENGTHS) {
        stream.extend(nbd::request(Ask::Write, false, cookie, cookie * 8, len));
        stream.extend(data(cookie, len));
    }
    // They overlap, so one comes after the other.
    let mut sends = guest.0.try_clone().expect("cloned");
    let written = std::thread::spawn(move || {
        for (i, piece) in stream.chunks(70_001).enumerate() {
            sends.write_all(piece).expect("sent");
            // Now and then it is all there at once, now and then it is not.
            if i % 2 == 0 {
                std::thread::yield_now();
            }
        }
    });
    for (cookie, len) in (1..).zip(LENGTHS) {
        let (number, found) = server.write_of(cookie * 8);
        assert!(found == data(cookie, len), "write {cookie}");
        server.reply(number, 0);
        assert_eq!(guest.answer(), (0, cookie));
    }
    written.join().expect("sent");
    for (cookie, len) in (1..).zip(LENGTHS) {
        guest.0.write_all(&nbd::request(Ask::Read, false, cookie, 0, len)).expect("sent");
    }
    let asked: Vec<u64> = LENGTHS.iter().map(|_| server.request().1).collect();
    let mut answers = Vec::new();
    for ((cookie, len), number) in (1..).zip(LENGTHS).zip(asked) {
        let head = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &number.to_be_bytes()].concat();
        answers.extend(head);
        answers.extend(data(cookie, len));
    }
    let answered = std::thread::spawn(move || {
        for piece in answers.chunks(50_003) {
            server.0.write_all(piece).expect("sent");
        }
        server
    });
    for (cookie, len) in (1..).zip(LENGTHS) {
        assert_eq!(guest.answer(), (0, cookie));
        let mut found = vec![0; len as usize];
        guest.0.read_exact(&mut found).expect("data");
        assert!(found == data(cookie, len), "read {cookie}");
    }
    drop(answered.join().expect("sent"));
}

#[test]
fn nonsense_is_answered_and_changes_nothing() {
    let scene = Scene::new();
    for (method, params, code) in [
        ("opn", json!({}), "E-ARG-01"),
        ("open", json!({ "id": "x" }), "E-ARG-02"),
        ("pause", json!({ "id": "x" }), "E-HOLD-01"),
        ("close", json!({ "id": 7 }), "E-ARG-02"),
    ] {
        assert_eq!(scene.ask(method, params).expect_err("refused")["code"], code, "{method}");
    }
    let with = |member: &str, value: Value| {
        let mut offer = scene.offer();
        offer["id"] = json!("other");
        offer[member] = value;
        scene.ask("open", offer).expect_err("refused")["code"].clone()
    };
    assert_eq!(with("id", json!("")), "E-ARG-02");
    assert_eq!(with("session", Value::Null), "E-ARG-02");
    assert_eq!(with("snapshot", json!(OTHER)), "E-ARG-02");
    assert_eq!(with("listen", json!("not/absolute")), "E-HOST-08");
    assert_eq!(with("listen", json!(format!("/{}", "x".repeat(200)))), "E-HOST-08");
    let mut stream = UnixStream::connect(&scene.guest_socket).expect("connected");
    let greeted = scene.export.accept(FIRST);
    stream.write_all(&[0xff; 4096]).expect("sent");
    scene.told(|told| told["connected"] == false);
    drop(greeted);
    let (_guest, _server) = scene.guest();
}
