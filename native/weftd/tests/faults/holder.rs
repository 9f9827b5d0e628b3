//! Guests behind a holder, whose daemon dies under them (docs/model.md, R32).

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use weft_checker::judge;
use weft_checker::load::{self, Ending};
use weft_checker::nbd::{self as client, Command, REPLY_HEAD};
use weft_checker::{history, stamp};

use super::support::PATIENCE;
use super::support::host::{Cluster, Host, SIZE, close, make_volume, open};

const ESHUTDOWN: u32 = 108;

/// The holder of a host, on a thread of the test; it ends with the process.
struct Holder {
    socket: PathBuf,
}

impl Holder {
    fn start(host: &Host) -> Holder {
        let run = host.home.join("run").canonicalize().expect("it is there");
        let socket = run.join("holder.sock");
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let served = weft_holder::control::serve(&run, std::future::pending());
            tokio::task::LocalSet::new().block_on(&runtime, served).expect("served");
        });
        Holder { socket }
    }

    fn ask(&self, method: &str, params: Value) -> Result<Value, Value> {
        let until = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            std::thread::yield_now();
        };
        let reader = std::io::BufReader::new(stream.try_clone().expect("cloned"));
        super::support::host::Client { stream, reader, next: 0 }.ask(method, params)
    }

    /// Offers a volume that is open on the host; where.
    fn offer(&self, host: &Host, volume: &str) -> PathBuf {
        let session = host.ask("session.show", json!({ "volume": volume }))["session"].clone();
        let listen = host.home.join("run/guest.sock");
        let offer = json!({ "id": "v", "listen": listen, "volume": volume, "session": session, "snapshot": null,
            "writable": true });
        self.ask("open", offer).expect("offered");
        listen
    }

    fn entry(&self) -> Value {
        self.ask("list", json!({})).expect("a list")["entries"][0].clone()
    }
}

/// One block through a connection of its own.
fn write(stream: &mut UnixStream, with: u64) {
    use std::io::Write as _;
    let mut block = [0; 4096];
    stamp::fill(&mut block, 0, 1, with);
    stream.write_all(&client::request(Command::Write, false, with, 0, 4096)).expect("sent");
    stream.write_all(&block).expect("sent");
}

fn answer(stream: &mut UnixStream) -> (u32, u64) {
    use std::io::Read as _;
    let mut head = [0; REPLY_HEAD];
    stream.read_exact(&mut head).expect("an answer");
    client::reply(&head).expect("a reply")
}

fn connect(socket: &Path, name: &str) -> UnixStream {
    client::connect(socket.to_str().expect("UTF-8"), name, 2 * PATIENCE).expect("connected").0
}

fn first_block(socket: &Path, volume: &str) -> stamp::Value {
    client::read_blocks(&mut connect(socket, volume), 0, 1).expect("read").remove(0)
}

/// A guest reads and writes for seconds while its host's daemon is killed twice and restarted in order once. It never
/// hears of it: no error, no connection lost, and what it reads is what it wrote.
#[test]
fn a_guest_does_not_notice_that_its_daemon_died() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let volume = make_volume(&[&host]);
    let export = open(&host, &volume, "closed").expect("opens");
    let holder = Holder::start(&host);
    let socket = holder.offer(&host, &volume);
    let path = cluster.dir.path().join("history");
    let options = load::Options {
        sockets: vec![socket.display().to_string()],
        export: "tapdisk_client".to_owned(),
        first_block: 0,
        blocks: SIZE / 4096,
        depth: 32,
        connections: 1,
        seed: 1,
        history: path.clone(),
        time: Some(Duration::from_secs(6)),
        reconnect: false,
        rate: None,
    };
    let load = std::thread::spawn(move || load::run(options));
    for death in ["killed", "stopped", "killed"] {
        host.ask_until("session.list", &json!({}), |list| {
            let writes =
                list["sessions"][0]["figures"]["writes"].as_str().and_then(|n| n.parse::<u64>().ok());
            writes.is_some_and(|writes| writes > 300)
        });
        if death == "killed" {
            host.kill();
        } else {
            host.terminate();
        }
        host.start();
    }
    assert_eq!(load.join().expect("no panic"), Ok(Ending::Done), "{}", host.log());
    let entry = holder.entry();
    assert_eq!((&entry["lost"], &entry["unanswered"]), (&Value::Null, &json!(0)), "{entry}");
    assert_ne!(entry["replayed"], "0", "{entry}");
    let text = std::fs::read_to_string(&path).expect("a history");
    let unknown = text.lines().filter(|line| line.contains(",null,")).count();
    assert_eq!(unknown, 0, "each request was answered, and none with an error");
    let mut stream = connect(&export, &volume);
    let values = client::read_blocks(&mut stream, 0, SIZE / 4096).expect("read");
    let last: Vec<(u64, stamp::Value)> = (0..).zip(values).collect();
    let verdict = judge::histories(&[history::read(&path).expect("read")], &last);
    assert!(verdict.is_good(), "{verdict:?}");
}

/// A write that this host's daemon had and did not answer; then another host takes the volume, writes the same block and
/// closes. The write is never done: the guest is told so, and the other host's is what stays, also when this host opens
/// the volume anew.
#[test]
fn a_write_is_not_repeated_after_another_host_has_had_the_volume() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.host(1), cluster.host(2)];
    hosts.iter_mut().for_each(Host::make_pool);
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    open(&hosts[0], &volume, "closed").expect("opens");
    let holder = Holder::start(&hosts[0]);
    let socket = holder.offer(&hosts[0], &volume);
    let mut guest = connect(&socket, "tapdisk_client");
    write(&mut guest, 1);
    assert_eq!(answer(&mut guest), (0, 1));
    // The daemon has it in its socket, or half done, when it dies.
    let pid = Pid::from_child(hosts[0].process.as_ref().expect("it runs"));
    kill_process(pid, Signal::STOP).expect("stopped");
    write(&mut guest, 2);
    let until = Instant::now() + PATIENCE;
    while holder.entry()["unanswered"] != 1 {
        assert!(Instant::now() < until, "{}", holder.entry());
    }
    hosts[0].kill();
    let taken = open(&hosts[1], &volume, "steal").expect("takes");
    let mut other = connect(&taken, &volume);
    write(&mut other, 3);
    assert_eq!(answer(&mut other), (0, 3));
    drop(other);
    let is_third = |value: &stamp::Value| matches!(value, stamp::Value::Stamp { id: 3, .. });
    close(&hosts[1], &volume);
    hosts[0].start();
    assert_eq!(answer(&mut guest), (ESHUTDOWN, 2), "{}", hosts[0].log());
    let entry = holder.entry();
    assert!(entry["lost"].as_str().is_some_and(|why| why.starts_with("E-VOL-21")), "{entry}");
    hosts[0].await_pool();
    // The guest is still there, and its holder; the volume is another ownership's.
    let anew = open(&hosts[0], &volume, "closed").expect("opens");
    let found = first_block(&anew, &volume);
    assert!(is_third(&found), "{found:?}");
}
