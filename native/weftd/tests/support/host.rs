//! Whole daemons on loopback: processes, a store, pools on disk, guests that are stock NBD clients.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rcgen::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_proto::ids::VolumeId;
use weftd::clock::{random_u128, random_uuid};
use weftd::trust::{IDENTITY_DIR, TRUST_FILE, TRUST_KEY};

use super::pki::{self, Pki, SOUND, Validity};
use super::{Etcd, PATIENCE, memory_dir};

/// Bytes of a volume in these tests.
pub(crate) const SIZE: u64 = 8 << 20;
/// The smallest XFS, in MiB.
const XFS_MIB: u32 = 300;

/// A store and the hosts around it.
pub(crate) struct Cluster {
    pub(crate) etcd: Etcd,
    pub(crate) id: String,
    pub(crate) subnet: u8,
    pub(crate) dir: TempDir,
    /// None: everything is said in clear.
    pub(crate) pki: Option<Pki>,
    /// The body of the trust list that the store has.
    pub(crate) trust: RefCell<Value>,
}

impl Cluster {
    pub(crate) fn start() -> Cluster {
        Cluster::found(Etcd::start(), None, "clear")
    }

    /// Whose hosts have identities; `transport` as the trust list says it.
    pub(crate) fn trusted(transport: &str) -> Cluster {
        let pki = Pki::new();
        Cluster::found(Etcd::start_tls(&pki), Some(pki), transport)
    }

    fn found(etcd: Etcd, pki: Option<Pki>, transport: &str) -> Cluster {
        // Loopback has a /8: each test takes addresses of its own.
        let subnet = u8::try_from(random_u128() % 200).expect("below 200") + 20;
        let id = uuid();
        let trust = RefCell::new(pki.as_ref().map_or(Value::Null, |pki| pki.list(&id, transport)));
        let cluster = Cluster { etcd, id, subnet, dir: memory_dir(), pki, trust };
        cluster.put("/weft/v1/store", &json!({ "cluster": cluster.id, "incarnation": "1" }));
        cluster
    }

    pub(crate) fn put(&self, key: &str, value: &Value) {
        self.put_text(key, &value.to_string());
    }

    pub(crate) fn put_text(&self, key: &str, value: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut etcdctl = self.etcd.etcdctl();
            let put =
                etcdctl.args(["put", "--", key, value]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            if put.expect("etcdctl is installed").success() {
                return;
            }
            assert!(Instant::now() < until, "etcd takes no value");
        }
    }

    pub(crate) fn delete(&self, key: &str) {
        let output = self.etcd.etcdctl().args(["del", key]).output().expect("etcdctl is installed");
        assert_eq!(output.stdout, b"1\n", "{key}: {output:?}");
    }

    /// The value of a key; it must exist.
    pub(crate) fn get(&self, key: &str) -> Value {
        self.find(key).unwrap_or_else(|| panic!("there is no {key}"))
    }

    /// The key's value, if it is there.
    pub(crate) fn find(&self, key: &str) -> Option<Value> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut etcdctl = self.etcd.etcdctl();
            let got =
                etcdctl.args(["get", "--print-value-only", key]).output().expect("etcdctl is installed");
            if got.status.success() {
                let parsed = || serde_json::from_slice(&got.stdout).unwrap_or_else(|e| panic!("{key}: {e}"));
                return (!got.stdout.is_empty()).then(parsed);
            }
            assert!(Instant::now() < until, "etcd answers nothing");
        }
    }

    pub(crate) fn host(&self, number: u8) -> Host {
        self.host_until(number, SOUND)
    }

    /// A host whose certificate is valid from then to then.
    pub(crate) fn host_until(&self, number: u8, validity: Validity) -> Host {
        let id = uuid();
        let address = format!("127.{}.{}.{number}", self.subnet, random_u128() % 250 + 1);
        self.say_address(&id, &address);
        let home = self.dir.path().join(number.to_string());
        for name in ["state", "run"] {
            std::fs::create_dir_all(home.join(name)).expect("made");
        }
        let file = json!({ "cluster": self.id, "host": id, "name": format!("h{number}"), "address": address,
            "etcd": [self.etcd.url] });
        std::fs::write(home.join("state/host.json"), file.to_string()).expect("written");
        let key = Rc::new(KeyPair::generate().expect("a key"));
        if let Some(pki) = &self.pki {
            self.admit(&id, &key);
            let name = host_uri(&self.id, &id);
            write_identity(&home, pki, &pki.hosts.identity(&key, &name, validity), &self.trust.borrow());
        }
        let (pool, room_mib, boot) = (String::new(), None, None);
        let mut host =
            Host { number, id, address, home, process: None, pool, room_mib, is_xfs: false, boot, key };
        host.start();
        host
    }

    /// A host whose pool has so many MiB of room.
    pub(crate) fn small_host(&self, number: u8, room_mib: u32) -> Host {
        let mut host = self.host(number);
        host.kill();
        host.room_mib = Some(room_mib);
        std::fs::create_dir_all(host.home.join("pool")).expect("made");
        host.start();
        host.make_pool();
        host
    }

    /// A host whose pool lies on an XFS of its own, which takes root: there it can keep snapshots.
    pub(crate) fn xfs_host(&self, number: u8) -> Host {
        let mut host = self.host(number);
        host.kill();
        (host.room_mib, host.is_xfs) = (Some(XFS_MIB), true);
        std::fs::create_dir_all(host.home.join("pool")).expect("made");
        host.start();
        host.make_pool();
        host
    }

    /// A host's key is on the list from now on.
    pub(crate) fn admit(&self, id: &str, key: &KeyPair) {
        self.change_trust(|list| {
            list["hosts"][id] = json!({ "name": "h", "certs": [], "held": [],
                "keys": [{ "kid": pki::kid(key), "since": "2026-11-20T11:00:00Z" }] });
        });
    }

    /// Nothing of this host is listened to from now on.
    pub(crate) fn revoke(&self, host: &Host) {
        self.change_trust(|list| {
            list["hosts"].as_object_mut().expect("a map").remove(&host.id);
            list["revoked"][&host.id] = json!({ "name": "h", "at": "2026-11-21T10:00:00Z", "by": "root@h1",
                "keys": [pki::kid(&host.key)], "serials": [] });
        });
    }

    /// Puts the next list into the store, signed; its generation.
    pub(crate) fn change_trust(&self, change: impl FnOnce(&mut Value)) -> u64 {
        let pki = self.pki.as_ref().expect("hosts with identities");
        let mut list = self.trust.borrow_mut();
        let generation =
            list["generation"].as_str().and_then(|g| g.parse::<u64>().ok()).expect("a number") + 1;
        list["generation"] = json!(generation.to_string());
        change(&mut list);
        self.put_text(TRUST_KEY, &pki.hosts.sign(&list));
        generation
    }

    /// Where the other hosts find one.
    pub(crate) fn say_address(&self, id: &str, address: &str) {
        self.put(&format!("/weft/v1/host/{id}"), &json!({ "id": id, "address": address }));
    }
}

/// A host: its daemon's process and its directories.
pub(crate) struct Host {
    pub(crate) number: u8,
    pub(crate) id: String,
    pub(crate) address: String,
    pub(crate) home: PathBuf,
    pub(crate) process: Option<Child>,
    pub(crate) pool: String,
    /// The pool's directory is a file system of its own, of so many MiB, which nobody sees but the process.
    pub(crate) room_mib: Option<u32>,
    /// It is an XFS, and the next process finds what was in it; else it ends with the process.
    pub(crate) is_xfs: bool,
    /// Which boot of the machine it is, if not the real one.
    pub(crate) boot: Option<u64>,
    /// The key of its identity, where it has one.
    pub(crate) key: Rc<KeyPair>,
}

impl Host {
    /// Starts the daemon, and says as its agent that the store is the cluster's.
    pub(crate) fn start(&mut self) {
        self.spawn();
        // Refused where it is in no cluster yet.
        let _ = self.try_ask("store.confirm", json!({ "generation": "0" }));
    }

    /// Starts the daemon, which may not come up.
    pub(crate) fn spawn(&mut self) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.home.join("log")).expect("a log");
        // Hosts of one cluster may have different kernels.
        let driver = if self.number.is_multiple_of(2) { "libaio" } else { "io_uring" };
        let weftd = env!("CARGO_BIN_EXE_weftd");
        let mut command = Command::new(if self.room_mib.is_some() { "unshare" } else { weftd });
        if let Some(mib) = self.room_mib {
            if !rustix::process::geteuid().is_root() {
                command.arg("--map-root-user");
            }
            // ext4 where loop devices may be had, memory elsewhere. The kernel may still be busy with ending the mount of
            // the process before.
            let script = if self.is_xfs {
                format!(
                    "[ -e \"$0.img\" ] || {{ truncate -s {mib}M \"$0.img\" && mkfs.xfs -q \"$0.img\"; }} && \
                     for _ in $(seq 100); do mount -o loop \"$0.img\" \"$0\" && exec \"$@\"; sleep 0.1; done; exit 1"
                )
            } else {
                format!(
                    "(truncate -s {mib}M \"$0.img\" && mkfs.ext4 -q -F -m 0 \"$0.img\" && mount -o loop \"$0.img\" \"$0\") \
                     2>/dev/null || mount -t tmpfs -o size={mib}m none \"$0\" && exec \"$@\""
                )
            };
            command.args(["--mount", "sh", "-c", &script]).arg(self.home.join("pool")).arg(weftd);
        }
        if let Some(boot) = self.boot {
            let file = self.home.join("boot-id");
            std::fs::write(&file, format!("{boot:08x}-0000-4000-8000-000000000000\n")).expect("written");
            command.arg("--boot-id-file").arg(file);
        }
        if !rustix::process::geteuid().is_root() {
            // Its /proc/PID/root is looked into.
            command.arg("--allow-core-dumps");
        }
        let child = command
            .args(["--driver", driver])
            .args(["--state-dir".as_ref(), self.home.join("state").as_os_str()])
            .args(["--run-dir".as_ref(), self.home.join("run").as_os_str()])
            .env("WEFT_LOG", "info")
            .stderr(log)
            .spawn();
        self.process = Some(child.expect("weftd"));
    }

    pub(crate) fn client(&self) -> Client {
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

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    /// The answer, which must be a result.
    pub(crate) fn ask(&self, method: &str, params: Value) -> Value {
        match self.try_ask(method, params) {
            Ok(result) => result,
            Err(error) => panic!("{method}: {error}\n{}", self.log()),
        }
    }

    pub(crate) fn try_ask(&self, method: &str, params: Value) -> Result<Value, Value> {
        self.client().ask(method, params)
    }

    /// Asks until `good`.
    pub(crate) fn ask_until(&self, method: &str, params: &Value, good: impl Fn(&Value) -> bool) -> Value {
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

    pub(crate) fn make_pool(&mut self) {
        let made = self.ask("pool.create", json!({ "path": self.home.join("pool") }));
        self.pool = made["pool"].as_str().expect("an id").to_owned();
        self.await_pool();
    }

    /// The pool's directory as the daemon sees it.
    pub(crate) fn pool_dir(&self) -> PathBuf {
        let pool = self.home.join("pool");
        match (&self.process, self.room_mib) {
            (Some(process), Some(_)) => {
                let pool = pool.strip_prefix("/").expect("absolute");
                PathBuf::from(format!("/proc/{}/root", process.id())).join(pool)
            }
            _ => pool,
        }
    }

    /// Bytes of memory that the daemon has now.
    pub(crate) fn resident(&self) -> u64 {
        let pid = self.process.as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a line");
        1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    }

    /// One more answer from the same process: it lives, and answers this client like any other.
    pub(crate) fn assert_alive(&self) {
        let pid = self.process.as_ref().expect("it runs").id();
        assert_eq!(self.ask("hello", json!({}))["pid"], pid, "{}", self.log());
    }

    /// What `pool.list` says of the pool.
    pub(crate) fn pool_info(&self) -> Value {
        self.pool_until(|_| true)
    }

    /// Waits until what `pool.list` says of the pool is `good`.
    pub(crate) fn pool_until(&self, good: impl Fn(&Value) -> bool) -> Value {
        let ours = |list: &Value| {
            list["pools"].as_array().and_then(|p| p.iter().find(|p| p["pool"] == self.pool.as_str()).cloned())
        };
        let list = self.ask_until("pool.list", &json!({}), |list| ours(list).is_some_and(|p| good(&p)));
        ours(&list).expect("it was there")
    }

    pub(crate) fn await_pool(&self) {
        self.ask_until("pool.list", &json!({}), |list| list["pools"][0]["state"] == "serving");
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            child.kill().expect("killed");
            child.wait().expect("gone");
        }
    }

    pub(crate) fn terminate(&mut self) {
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

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) reader: BufReader<UnixStream>,
    pub(crate) next: u64,
}

impl Client {
    pub(crate) fn ask(&mut self, method: &str, params: Value) -> Result<Value, Value> {
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

/// The name in a host's certificate.
pub(crate) fn host_uri(cluster: &str, host: &str) -> String {
    format!("weft://{cluster}/host/{host}")
}

/// A host's identity directory.
pub(crate) fn write_identity(home: &Path, pki: &Pki, pem: &str, list: &Value) {
    let dir = home.join("state").join(IDENTITY_DIR);
    std::fs::create_dir_all(&dir).expect("made");
    for (name, text) in [("host.pem", pem), (TRUST_FILE, &pki.hosts.sign(list))] {
        // As a renewal does it: nobody reads half of it.
        let beside = dir.join("beside");
        std::fs::write(&beside, text).expect("written");
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).expect("mode");
        std::fs::rename(&beside, dir.join(name)).expect("renamed");
    }
}

pub(crate) fn uuid() -> String {
    VolumeId(random_uuid()).to_string()
}

/// A volume with one in-sync replica on each of `hosts`.
pub(crate) fn make_volume(hosts: &[&Host]) -> String {
    make_volume_of(hosts, SIZE)
}

/// The same with so many bytes, at most 1 TiB.
pub(crate) fn make_volume_of(hosts: &[&Host], size: u64) -> String {
    make_regions_of(hosts, size, 20)
}

/// The same with regions of so many bytes, as a power of two.
pub(crate) fn make_regions_of(hosts: &[&Host], size: u64, region_shift: u8) -> String {
    make_volume_named(hosts, &uuid(), size, region_shift)
}

/// The same; its replicas may be there.
pub(crate) fn make_volume_named(hosts: &[&Host], volume: &str, size: u64, region_shift: u8) -> String {
    let mut replicas = Vec::new();
    for (rid, host) in hosts.iter().enumerate() {
        let ask = json!({ "volume": volume, "rid": rid, "pool": host.pool, "size": size.to_string(), "region_shift": region_shift });
        host.ask("replica.create", ask.clone());
        host.ask("replica.create", ask);
        replicas.push(
            json!({ "rid": rid, "node": host.id, "pool": host.pool, "pool_inc": "1", "state": "INSYNC",
            "base": "0", "reason": "made", "since": "0" }),
        );
    }
    let record = json!({ "fmt": 1, "min_reader": 1, "vol": volume, "size": size.to_string(), "region_shift": region_shift,
        "mode": "excl", "policy": { "copies": hosts.len(), "min_isr": 1, "ack": "durable", "on_loss": "pause",
        "spread": "host" }, "epoch": "1", "rev": "1", "next_rid": hosts.len(), "deleted": null,
        "created_by": volume, "nonce": uuid(), "owner": null, "next": null, "clean": true, "closed_gen": "0",
        "replicas": replicas, "snaps": { "count": 0, "newest": null }, "parent": null, "lineage": [], "wait": false });
    hosts[0].ask("volume.create", json!({ "record": record }));
    hosts[0].ask("volume.create", json!({ "record": record }));
    volume.to_owned()
}

pub(crate) fn open(host: &Host, volume: &str, mode: &str) -> Result<PathBuf, Value> {
    let ask = json!({ "volume": volume, "mode": mode, "export": { "nbd": { "path": null } }, "caretaker": false,
        "old_stopped": false });
    let opened = host.try_ask("session.open", ask)?;
    Ok(PathBuf::from(opened["path"].as_str().expect("a path")))
}

pub(crate) fn close(host: &Host, volume: &str) {
    let closed = host.ask("session.close", json!({ "volume": volume, "abandon": false }));
    assert_eq!(closed["lost_writes"], 0);
}

pub(crate) fn nbd(socket: &Path, volume: &str) -> String {
    format!("nbd+unix:///{volume}?socket={}", socket.display())
}

pub(crate) fn copy(from: &str, to: &str) {
    let status = Command::new("nbdcopy").args([from, to]).status().expect("nbdcopy is installed");
    assert!(status.success(), "nbdcopy {from} {to}");
}

/// Random bytes in a file of the cluster's directory.
pub(crate) fn random_file(cluster: &Cluster, name: &str) -> PathBuf {
    let mut bytes = Vec::new();
    while bytes.len() < usize::try_from(SIZE).expect("fits") {
        bytes.extend_from_slice(&random_u128().to_le_bytes());
    }
    let path = cluster.dir.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    path
}

pub(crate) fn assert_same(cluster: &Cluster, host: &Host, socket: &Path, volume: &str, file: &Path) {
    let read = cluster.dir.path().join("read");
    copy(&nbd(socket, volume), read.to_str().expect("UTF-8"));
    let same = std::fs::read(&read).expect("read") == std::fs::read(file).expect("read");
    assert!(same, "other bytes come back\n{}", host.log());
}

/// `weftd debug` on a pool's directory, once it is free: the kernel lets go of its lock a moment after the process has
/// gone (R13).
fn debug(what: &str, path: &Path) -> Output {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut debug = Command::new(env!("CARGO_BIN_EXE_weftd"));
        let output = debug.args(["debug", what]).arg(path).output().expect("weftd");
        let is_held = String::from_utf8_lossy(&output.stderr).contains("E-HOST-05");
        if !is_held || Instant::now() > until {
            return output;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `weftd debug` on the host's pool: whether it succeeded, and what it printed.
pub(crate) fn examine(host: &Host, what: &str) -> (bool, String) {
    let output = debug(what, &host.home.join("pool"));
    (output.status.success(), String::from_utf8(output.stdout).expect("UTF-8"))
}

/// What `weftd debug` finds wrong with a pool's directory.
pub(crate) fn examine_dir(path: &Path) -> String {
    let output = debug("check", path);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    said
}
