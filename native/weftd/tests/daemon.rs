//! Whole daemons on loopback: processes, a store, pools on disk, guests that are stock NBD clients.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Etcd, PATIENCE, memory_dir};
use tempfile::TempDir;
use weft_proto::ids::VolumeId;
use weftd::clock::{random_u128, random_uuid};

const SIZE: u64 = 8 << 20;

/// A store and the hosts around it.
struct Cluster {
    etcd: Etcd,
    id: String,
    subnet: u8,
    dir: TempDir,
}

impl Cluster {
    fn start() -> Cluster {
        let etcd = Etcd::start();
        // Loopback has a /8: each test takes addresses of its own.
        let subnet = u8::try_from(random_u128() % 200).expect("below 200") + 20;
        let cluster = Cluster { etcd, id: uuid(), subnet, dir: memory_dir() };
        cluster.put("/weft/v1/store", &json!({ "cluster": cluster.id, "incarnation": "1" }));
        cluster
    }

    fn put(&self, key: &str, value: &Value) {
        let until = Instant::now() + PATIENCE;
        loop {
            let put = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &self.etcd.url, "put", key, &value.to_string()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if put.expect("etcdctl is installed").success() {
                return;
            }
            assert!(Instant::now() < until, "etcd takes no value");
        }
    }

    fn host(&self, number: u8) -> Host {
        let id = uuid();
        let address = format!("127.{}.{}.{number}", self.subnet, random_u128() % 250 + 1);
        self.put(&format!("/weft/v1/host/{id}"), &json!({ "id": id, "address": address }));
        let home = self.dir.path().join(number.to_string());
        for name in ["state", "run"] {
            std::fs::create_dir_all(home.join(name)).expect("made");
        }
        let file = json!({ "cluster": self.id, "host": id, "name": format!("h{number}"), "address": address,
            "etcd": [self.etcd.url] });
        std::fs::write(home.join("state/host.json"), file.to_string()).expect("written");
        let mut host = Host { number, id, home, process: None, pool: String::new() };
        host.start();
        host
    }
}

/// A host: its daemon's process and its directories.
struct Host {
    number: u8,
    id: String,
    home: PathBuf,
    process: Option<Child>,
    pool: String,
}

impl Host {
    fn start(&mut self) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.home.join("log")).expect("a log");
        // Hosts of one cluster may have different kernels.
        let driver = if self.number.is_multiple_of(2) { "libaio" } else { "io_uring" };
        let child = Command::new(env!("CARGO_BIN_EXE_weftd"))
            .args(["--driver", driver])
            .args(["--state-dir".as_ref(), self.home.join("state").as_os_str()])
            .args(["--run-dir".as_ref(), self.home.join("run").as_os_str()])
            .env("WEFT_LOG", "info")
            .stderr(log)
            .spawn();
        self.process = Some(child.expect("weftd"));
        self.client();
    }

    fn client(&self) -> Client {
        let path = self.home.join("run/weftd.sock");
        let until = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(2 * PATIENCE)).expect("set");
                    return Client {
                        reader: BufReader::new(stream.try_clone().expect("cloned")),
                        stream,
                        next: 0,
                    };
                }
                Err(e) => assert!(Instant::now() < until, "weftd does not listen: {e}\n{}", self.log()),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    /// The answer, which must be a result.
    fn ask(&self, method: &str, params: Value) -> Value {
        match self.try_ask(method, params) {
            Ok(result) => result,
            Err(error) => panic!("{method}: {error}\n{}", self.log()),
        }
    }

    fn try_ask(&self, method: &str, params: Value) -> Result<Value, Value> {
        self.client().ask(method, params)
    }

    /// Asks until `good`.
    fn ask_until(&self, method: &str, params: &Value, good: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + 2 * PATIENCE;
        let mut client = self.client();
        loop {
            let answer = client.ask(method, params.clone());
            match &answer {
                Ok(result) if good(result) => return result.clone(),
                other => assert!(Instant::now() < until, "{method}: {other:?}\n{}", self.log()),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn make_pool(&mut self) {
        let made = self.ask("pool.create", json!({ "path": self.home.join("pool") }));
        self.pool = made["pool"].as_str().expect("an id").to_owned();
        self.await_pool();
    }

    fn await_pool(&self) {
        self.ask_until("pool.list", &json!({}), |list| list["pools"][0]["state"] == "serving");
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            child.kill().expect("killed");
            child.wait().expect("gone");
        }
    }

    fn terminate(&mut self) {
        if let Some(mut child) = self.process.take() {
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
            let status = child.wait().expect("gone");
            assert!(status.success(), "{status}\n{}", self.log());
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Client {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    next: u64,
}

impl Client {
    fn ask(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        self.next += 1;
        let line = json!({ "id": self.next, "method": method, "params": params });
        self.stream.write_all(format!("{line}\n").as_bytes()).expect("sent");
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap_or_else(|e| panic!("{method}: {e}"));
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        assert_eq!(answer["id"], self.next);
        match answer.get("result") {
            Some(result) => Ok(result.clone()),
            None => Err(answer["error"].clone()),
        }
    }
}

fn uuid() -> String {
    VolumeId(random_uuid()).to_string()
}

/// A volume with one in-sync replica on each of `hosts`.
fn make_volume(hosts: &[&Host]) -> String {
    let volume = uuid();
    let mut replicas = Vec::new();
    for (rid, host) in hosts.iter().enumerate() {
        let ask = json!({ "volume": volume, "rid": rid, "pool": host.pool, "size": SIZE.to_string(), "region_shift": 20 });
        host.ask("replica.create", ask.clone());
        host.ask("replica.create", ask);
        replicas.push(
            json!({ "rid": rid, "node": host.id, "pool": host.pool, "pool_inc": "1", "state": "INSYNC",
            "base": "0", "reason": "made", "since": "0" }),
        );
    }
    let record = json!({ "fmt": 1, "min_reader": 1, "vol": volume, "size": SIZE.to_string(), "region_shift": 20,
        "mode": "excl", "policy": { "copies": hosts.len(), "min_isr": 1, "ack": "durable", "on_loss": "pause",
        "spread": "host" }, "epoch": "1", "rev": "1", "next_rid": hosts.len(), "deleted": null,
        "created_by": volume, "nonce": uuid(), "owner": null, "next": null, "clean": true, "closed_gen": "0",
        "replicas": replicas, "snaps": { "count": 0, "newest": null }, "parent": null, "lineage": [], "wait": false });
    hosts[0].ask("volume.create", json!({ "record": record }));
    hosts[0].ask("volume.create", json!({ "record": record }));
    volume
}

fn open(host: &Host, volume: &str, mode: &str) -> Result<PathBuf, Value> {
    let ask = json!({ "volume": volume, "mode": mode, "export": { "nbd": { "path": null } }, "caretaker": false,
        "old_stopped": false });
    let opened = host.try_ask("session.open", ask)?;
    Ok(PathBuf::from(opened["path"].as_str().expect("a path")))
}

fn close(host: &Host, volume: &str) {
    let closed = host.ask("session.close", json!({ "volume": volume, "abandon": false }));
    assert_eq!(closed["lost_writes"], 0);
}

fn nbd(socket: &Path, volume: &str) -> String {
    format!("nbd+unix:///{volume}?socket={}", socket.display())
}

fn copy(from: &str, to: &str) {
    let status = Command::new("nbdcopy").args([from, to]).status().expect("nbdcopy is installed");
    assert!(status.success(), "nbdcopy {from} {to}");
}

/// Random bytes in a file of the cluster's directory.
fn random_file(cluster: &Cluster, name: &str) -> PathBuf {
    let mut bytes = Vec::new();
    while bytes.len() < usize::try_from(SIZE).expect("fits") {
        bytes.extend_from_slice(&random_u128().to_le_bytes());
    }
    let path = cluster.dir.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    path
}

fn assert_same(cluster: &Cluster, host: &Host, socket: &Path, volume: &str, file: &Path) {
    let read = cluster.dir.path().join("read");
    copy(&nbd(socket, volume), read.to_str().expect("UTF-8"));
    let same = std::fs::read(&read).expect("read") == std::fs::read(file).expect("read");
    assert!(same, "other bytes come back\n{}", host.log());
}

/// `weftd debug` on the host's pool: whether it succeeded, and what it printed.
fn examine(host: &Host, what: &str) -> (bool, String) {
    let mut debug = Command::new(env!("CARGO_BIN_EXE_weftd"));
    let output = debug.args(["debug", what]).arg(host.home.join("pool")).output().expect("weftd");
    (output.status.success(), String::from_utf8(output.stdout).expect("UTF-8"))
}

/// The life of a volume on one host, with a stop and a kill in between: what was written is read.
#[test]
fn a_volume_lives_on_one_host_through_restarts() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let volume = make_volume(&[&host]);
    let file = random_file(&cluster, "a");
    let socket = open(&host, &volume, "closed").expect("opens");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    assert_same(&cluster, &host, &socket, &volume, &file);
    close(&host, &volume);
    assert!(!socket.exists());

    assert!(!examine(&host, "check").0, "a pool that is served is not looked into");
    host.terminate();
    assert!(examine(&host, "check").0, "a stopped pool is sound");
    let (_, dump) = examine(&host, "dump");
    let dump: Value = serde_json::from_str(&dump).expect("JSON");
    assert_eq!(dump["superblock"]["pool"], host.pool.as_str());
    assert_eq!((&dump["log"]["clean"], &dump["replicas"][0]["volume"]), (&json!(true), &json!(volume)));
    host.start();
    host.await_pool();
    let socket = open(&host, &volume, "closed").expect("opens after a stop");
    assert_same(&cluster, &host, &socket, &volume, &file);

    // Killed while open: the new process takes its own session back.
    host.kill();
    host.start();
    host.await_pool();
    let socket = open(&host, &volume, "closed").expect("opens after a kill");
    assert_same(&cluster, &host, &socket, &volume, &file);
    close(&host, &volume);
}

/// Three hosts, two copies: written on the host without one, read on another after a steal; the first is fenced.
#[test]
fn a_volume_is_attached_without_a_copy_and_stolen() {
    let cluster = Cluster::start();
    let mut hosts: Vec<Host> = (1..=3).map(|n| cluster.host(n)).collect();
    hosts[0].make_pool();
    hosts[1].make_pool();
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let file = random_file(&cluster, "a");
    let socket = open(&hosts[2], &volume, "closed").expect("opens");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));

    let busy = open(&hosts[0], &volume, "closed").expect_err("open elsewhere");
    assert_eq!(busy["code"], "E-VOL-12");
    assert_eq!(busy["facts"]["host"], hosts[2].id.as_str());
    let stolen = open(&hosts[0], &volume, "steal").expect("steals");
    assert_same(&cluster, &hosts[0], &stolen, &volume, &file);
    hosts[2].ask_until("session.show", &json!({ "volume": volume }), |s| s["phase"] == "ended");
    assert!(!socket.exists(), "the fenced session's socket is gone");
    let again = open(&hosts[2], &volume, "closed").expect_err("still open");
    assert_eq!(again["code"], "E-VOL-12");
    close(&hosts[0], &volume);
}

/// A member is killed under the owner: it is demoted and writes go on; when it returns it is resynced.
#[test]
fn a_killed_member_is_demoted_and_comes_back_in_sync() {
    let cluster = Cluster::start();
    let mut hosts: Vec<Host> = (1..=2).map(|n| cluster.host(n)).collect();
    for host in &mut hosts {
        host.make_pool();
    }
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    let first = random_file(&cluster, "a");
    copy(first.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    hosts[1].kill();
    let second = random_file(&cluster, "b");
    copy(second.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let show = json!({ "volume": volume });
    hosts[0].ask_until("session.show", &show, |s| s["members"][1]["state"] == "STALE");
    hosts[1].start();
    hosts[1].await_pool();
    hosts[0].ask_until("session.show", &show, |s| s["members"][1]["state"] == "INSYNC");
    // The other copy alone holds everything.
    close(&hosts[0], &volume);
    hosts[0].kill();
    let socket = open(&hosts[1], &volume, "closed").expect("opens without the first copy");
    assert_same(&cluster, &hosts[1], &socket, &volume, &second);
    close(&hosts[1], &volume);
}

/// Copies come and go while a caretaker holds the volume; what is taken out may be trashed, and nothing else.
#[test]
fn a_copy_is_added_removed_and_trashed() {
    let cluster = Cluster::start();
    let mut hosts: Vec<Host> = (1..=2).map(|n| cluster.host(n)).collect();
    for host in &mut hosts {
        host.make_pool();
    }
    let volume = make_volume(&[&hosts[0]]);
    let replica = json!({ "volume": volume, "rid": 1, "pool": hosts[1].pool });
    let ask = json!({ "volume": volume, "rid": 1, "pool": hosts[1].pool, "size": SIZE.to_string(), "region_shift": 20 });
    hosts[1].ask("replica.create", ask);
    let kept = hosts[1].ask("replica.trash", replica.clone());
    assert_eq!(kept["trashed"], false, "not made yet, rather than removed: {kept}");

    let caretaker = json!({ "volume": volume, "mode": "closed", "export": null, "caretaker": true, "old_stopped": false });
    hosts[0].ask("session.open", caretaker);
    hosts[0].ask(
        "replica.add",
        json!({ "volume": volume, "rid": 1, "node": hosts[1].id, "pool": hosts[1].pool }),
    );
    let show = json!({ "volume": volume });
    hosts[0].ask_until("session.show", &show, |s| s["members"][1]["state"] == "INSYNC");
    assert_eq!(hosts[1].ask("replica.trash", replica.clone())["trashed"], false, "the record names it");
    hosts[0].ask("replica.remove", json!({ "volume": volume, "rid": 1 }));
    let last =
        hosts[0].try_ask("replica.remove", json!({ "volume": volume, "rid": 0 })).expect_err("the last");
    assert_eq!(last["code"], "E-REPL-03");
    hosts[1].ask_until("replica.trash", &replica, |answer| answer["trashed"] == true);
    let trash = hosts[1].ask("trash.list", json!({}));
    assert_eq!(trash["items"][0]["volume"], volume.as_str());
    assert_eq!(hosts[1].ask("replica.list", json!({}))["replicas"], json!([]));
    assert_eq!(hosts[1].ask("trash.empty", json!({ "volume": null }))["removed"], 1);
    hosts[1].ask("pool.remove", json!({ "pool": hosts[1].pool }));
    let used = hosts[0].try_ask("pool.remove", json!({ "pool": hosts[0].pool })).expect_err("in use");
    assert_eq!(used["code"], "E-POOL-05");

    close(&hosts[0], &volume);
    hosts[0].ask("volume.delete", json!({ "volume": volume }));
    let trashed = hosts[0].ask("replica.trash", json!({ "volume": volume, "rid": 0, "pool": hosts[0].pool }));
    assert_eq!(trashed["trashed"], true, "{trashed}");
    hosts[0].ask("volume.restore", json!({ "volume": volume }));
    assert_eq!(hosts[0].ask("trash.restore", json!({ "volume": volume }))["rids"], json!([0]));
    hosts[0].ask_until("replica.list", &json!({}), |list| list["replicas"][0]["state"] == "serving");
    open(&hosts[0], &volume, "closed").expect("opens after its way through the trash");
    close(&hosts[0], &volume);
}
