//! Pools that are not what they were: damaged, rolled back, somebody else's, gone, or served twice.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::guests::Guest;
use super::support::PATIENCE;
use super::support::host::{
    Cluster, Host, assert_same, close, copy, examine_dir, make_volume, nbd, open, random_file,
};

const BLOCK: usize = 4096;
/// magic, crc, sequence: see `weft_proto::log`.
const LOG_MAGIC: &[u8] = b"wlog";

/// One pool of a host, with a volume in it.
struct Pool {
    id: String,
    path: PathBuf,
    volume: String,
}

impl Pool {
    fn make(cluster: &Cluster, host: &mut Host, name: &str, file: &Path) -> Pool {
        let path = host.home.join(name);
        let made = host.ask("pool.create", json!({ "path": path }));
        host.pool = made["pool"].as_str().expect("an id").to_owned();
        host.pool_until(|p| p["state"] == "serving");
        let volume = make_volume(&[host]);
        let socket = open(host, &volume, "closed").expect("opens");
        copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
        assert_same(cluster, host, &socket, &volume, file);
        Pool { id: host.pool.clone(), path, volume }
    }

    fn write(&self, name: &str, at: u64, bytes: &[u8]) {
        let file = fs::File::options().write(true).open(self.path.join(name)).expect("there");
        file.write_all_at(bytes, at).expect("written");
    }

    fn flip(&self, name: &str, at: u64) {
        let mut byte = [0];
        fs::File::open(self.path.join(name)).expect("there").read_exact_at(&mut byte, at).expect("read");
        self.write(name, at, &[byte[0] ^ 0x10]);
    }

    /// Offsets of the log's blocks that were written, by their sequence.
    fn log_blocks(&self) -> Vec<u64> {
        let wal = fs::read(self.path.join("wal")).expect("read");
        let sequence = |b: &[u8]| u64::from_le_bytes(b[8..16].try_into().expect("eight bytes"));
        let mut found: Vec<(u64, u64)> = wal
            .chunks_exact(BLOCK)
            .enumerate()
            .filter(|(_, block)| block.starts_with(LOG_MAGIC))
            .map(|(i, block)| (sequence(block), (i * BLOCK) as u64))
            .collect();
        found.sort_unstable();
        assert!(found.len() > 3, "the plot needs a log: {}", found.len());
        found.into_iter().map(|(_, at)| at).collect()
    }

    fn info(&self, host: &Host) -> Value {
        let list = host.ask("pool.list", json!({}));
        let ours = list["pools"].as_array().and_then(|p| p.iter().find(|p| p["pool"] == self.id.as_str()));
        ours.cloned().unwrap_or_else(|| panic!("no pool {}: {list}", self.id))
    }
}

type Damage = (&'static str, fn(&Pool, &Pool), &'static str, &'static str);

/// What is done to a pool (the second one is another pool of the same host), how it is then, and a part of the reason.
const DAMAGES: &[Damage] = &[
    ("nothing", |_, _| (), "serving", ""),
    ("a flipped bit in one superblock", |p, _| p.flip("superblock", 100), "serving", ""),
    (
        "a flipped bit in both superblocks",
        |p, _| {
            p.flip("superblock", 100);
            p.flip("superblock", 4096 + 100);
        },
        "quarantined",
        "both copies of the superblock are damaged",
    ),
    ("half a superblock", |p, _| cut(&p.path.join("superblock"), 4096 + 700), "serving", ""),
    ("an empty superblock", |p, _| cut(&p.path.join("superblock"), 0), "quarantined", "are damaged"),
    (
        "no superblock",
        |p, _| fs::remove_file(p.path.join("superblock")).expect("removed"),
        "failed",
        "the directory holds no pool",
    ),
    (
        "another pool's superblock",
        |p, other| take_over(p, other, "superblock"),
        "quarantined",
        "its directory holds pool",
    ),
    (
        "a flipped bit in the log",
        |p, _| {
            let blocks = p.log_blocks();
            p.flip("wal", blocks[blocks.len() / 2] + 70);
        },
        "quarantined",
        "was durable",
    ),
    (
        "a hole in the log",
        |p, _| {
            let blocks = p.log_blocks();
            p.write("wal", blocks[blocks.len() / 2], &[0; BLOCK]);
        },
        "quarantined",
        "missing, although sequence",
    ),
    (
        "an older block in the log",
        |p, _| {
            let wal = fs::read(p.path.join("wal")).expect("read");
            let blocks = p.log_blocks();
            let old = usize::try_from(blocks[1]).expect("small");
            p.write("wal", blocks[blocks.len() / 2], &wal[old..old + BLOCK]);
        },
        "quarantined",
        "can't have been written",
    ),
    (
        "a torn tail of the log",
        |p, _| {
            let wal = fs::read(p.path.join("wal")).expect("read");
            let last = *p.log_blocks().last().expect("some");
            let from = usize::try_from(last).expect("small");
            // One sector of the new block, and what was there before.
            let torn = [&wal[from..from + 512], &[0x77; BLOCK - 512]].concat();
            p.write("wal", last + BLOCK as u64, &torn);
        },
        "serving",
        "",
    ),
    ("another pool's log", |p, other| take_over(p, other, "wal"), "quarantined", "belongs to pool"),
    ("half a log", |p, _| cut(&p.path.join("wal"), 8 << 20), "quarantined", "its log has 8388608 bytes"),
    ("no log", |p, _| fs::remove_file(p.path.join("wal")).expect("removed"), "failed", "No such file"),
    ("no directory", |p, _| fs::remove_dir_all(&p.path).expect("removed"), "failed", "No such file"),
    (
        "a flipped bit in the checkpoint",
        |p, _| {
            let replica =
                fs::read_dir(p.path.join("replicas")).expect("listed").next().expect("one").expect("read");
            let name = replica.path().join("meta.a");
            p.flip(name.to_str().expect("UTF-8"), 40);
        },
        "serving",
        "replica",
    ),
];

fn take_over(pool: &Pool, other: &Pool, name: &str) {
    fs::copy(other.path.join(name), pool.path.join(name)).expect("copied");
}

fn cut(path: &Path, len: u64) {
    fs::File::options().write(true).open(path).expect("there").set_len(len).expect("cut");
}

/// A host is killed, and each of its pools comes back different. What can't be proven sound is not served and named;
/// the rest serves every byte.
#[test]
fn each_damaged_pool_is_refused_with_its_reason_and_the_others_serve() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    let file = random_file(&cluster, "a");
    let other = Pool::make(&cluster, &mut host, "other", &file);
    let name = |i: usize| format!("pool{i}");
    let pools: Vec<Pool> =
        (0..DAMAGES.len()).map(|i| Pool::make(&cluster, &mut host, &name(i), &file)).collect();
    host.kill();
    for (pool, (_, damage, ..)) in pools.iter().zip(DAMAGES) {
        damage(pool, &other);
    }
    for (pool, (what, _, state, reason)) in pools.iter().zip(DAMAGES) {
        let said = examine_dir(&pool.path);
        assert_eq!(said.is_empty(), *state == "serving" && reason.is_empty(), "offline: {what}: {said}");
    }
    host.start();
    let settled = |list: &Value| {
        list["pools"].as_array().is_some_and(|all| all.iter().all(|p| p["state"] != "starting"))
    };
    host.ask_until("pool.list", &json!({}), settled);
    for (pool, (what, _, state, reason)) in pools.iter().zip(DAMAGES) {
        let info = pool.info(&host);
        assert_eq!(info["state"], *state, "{what}: {info}\n{}", host.log());
        // A copy that is not believed tells a repair of the store nothing, not even that it has promised nothing (4.15).
        let told = host.ask("replica.records", json!({}));
        let ours = told["records"].as_array().is_some_and(|r| r.iter().any(|r| r["volume"] == pool.volume));
        assert_eq!(ours, *state == "serving" && reason.is_empty(), "told to a repair: {what}");
        let listed = told["pools"].as_array().and_then(|p| p.iter().find(|p| p["pool"] == pool.id.as_str()));
        assert_eq!(listed.expect("named")["tells"], *state == "serving", "{what}: {told}");
        let create =
            json!({ "volume": pool.id, "rid": 1, "pool": pool.id, "size": "4096", "region_shift": 20 });
        let trash = json!({ "volume": pool.volume, "rid": 0, "pool": pool.id });
        if *state == "serving" && reason.is_empty() {
            let socket = open(&host, &pool.volume, "closed").unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_same(&cluster, &host, &socket, &pool.volume, &file);
        } else if *state == "serving" {
            let list = host.ask("replica.list", json!({}));
            let ours =
                list["replicas"].as_array().and_then(|r| r.iter().find(|r| r["pool"] == pool.id.as_str()));
            assert_eq!(ours.expect("listed")["state"], "quarantined", "{what}: {list}");
            assert_eq!(host.ask("replica.trash", trash)["trashed"], false, "{what}");
        } else {
            let said = info["reason"].as_str().unwrap_or_default();
            assert!(said.contains(reason), "{what}: {said:?}");
            let code = if *state == "quarantined" { "E-POOL-03" } else { "E-POOL-07" };
            for (method, params) in [("replica.create", create), ("replica.trash", trash)] {
                let error = host.try_ask(method, params).expect_err(what);
                assert_eq!(error["code"], code, "{what}: {method}: {error}");
            }
        }
    }
    // Nothing is made of what is not there: not an empty replica, not an open volume.
    let waits = open(&host, &pools[8].volume, "closed").expect_err("its only copy is not trusted");
    assert_eq!(waits["code"], "E-VOL-09", "{waits}");
    let socket = open(&host, &other.volume, "closed").expect("opens");
    assert_same(&cluster, &host, &socket, &other.volume, &file);
    host.assert_alive();
}

fn copy_tree(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
    assert!(copied.success());
}

fn restore(host: &Host, backup: &Path) {
    fs::remove_dir_all(host.home.join("pool")).expect("removed");
    copy_tree(backup, &host.home.join("pool"));
}

/// Somebody restores a pool's directory from a backup. From an earlier start of the daemon, the incarnation tells; from
/// the same start, the host's own note of how far the log was durable does (R10). Neither copy is served: an owner
/// elsewhere would take it for one that has everything.
#[test]
fn a_pool_restored_from_an_earlier_moment_is_quarantined() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let volume = make_volume(&[&host]);
    let [first, second] = ["a", "b"].map(|name| random_file(&cluster, name));
    let write = |host: &Host, file: &Path| {
        let socket = open(host, &volume, "closed").expect("opens");
        copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
        close(host, &volume);
    };
    write(&host, &first);
    host.kill();
    let [earlier_start, earlier_moment, newest] =
        ["1", "2", "3"].map(|n| cluster.dir.path().join(format!("backup{n}")));
    copy_tree(&host.home.join("pool"), &earlier_start);
    host.start();
    host.await_pool();
    write(&host, &second);
    // A copy of a pool that is served and has nothing to write.
    copy_tree(&host.home.join("pool"), &earlier_moment);
    let kept = || -> u64 {
        let text = fs::read_to_string(host.home.join("state/pool-logs.json")).unwrap_or_default();
        let logs: Value = serde_json::from_str(&text).unwrap_or_default();
        logs[&host.pool].as_str().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    // Two notes, so that the second was begun after the last write.
    for _ in 0..2 {
        let before = kept();
        write(&host, &first);
        let until = Instant::now() + PATIENCE;
        while kept() <= before {
            assert!(Instant::now() < until, "how far the log is is not noted: {before}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    host.kill();
    copy_tree(&host.home.join("pool"), &newest);

    restore(&host, &earlier_start);
    host.start();
    let pool = host.pool_until(|p| p["state"] == "quarantined");
    assert!(pool["reason"].as_str().is_some_and(|r| r.contains("rolled back, swapped or copied")), "{pool}");
    host.kill();
    restore(&host, &earlier_moment);
    host.start();
    let pool = host.pool_until(|p| p["state"] == "quarantined");
    let reason = pool["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("the log ends here") || reason.contains("was durable"), "{pool}");
    let waits = open(&host, &volume, "closed").expect_err("its only copy is not trusted");
    assert_eq!(waits["code"], "E-VOL-09", "{waits}");
    host.assert_alive();
}

/// Another host's pool: its disk was moved here, or its directory copied.
#[test]
fn another_hosts_pool_is_not_taken_up() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.host(1), cluster.host(2)];
    hosts.iter_mut().for_each(|host| host.make_pool());
    let [first, second] = &mut hosts;
    let clone = second.home.join("clone");
    first.kill();
    copy_tree(&first.home.join("pool"), &clone);
    first.start();
    first.await_pool();
    let refused = second.try_ask("pool.create", json!({ "path": clone })).expect_err("another host's");
    assert_eq!(refused["code"], "E-POOL-02", "{refused}");
    // Put into the place of its own one.
    second.kill();
    restore(second, &clone);
    second.start();
    let pool = second.pool_until(|p| p["state"] == "quarantined");
    assert!(pool["reason"].as_str().is_some_and(|r| r.contains("its directory holds pool")), "{pool}");
    assert_eq!(first.pool_info()["state"], "serving");
}

/// The directory is moved away or deleted under the daemon: files without a name take writes that nobody finds again.
#[test]
fn a_pool_whose_directory_vanishes_fails_and_its_copies_are_taken_out() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.host(1), cluster.host(2)];
    hosts.iter_mut().for_each(|host| host.make_pool());
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let alone = make_volume(&[&hosts[0]]);
    let show = json!({ "volume": volume });
    let socket = open(&hosts[1], &volume, "closed").expect("opens");
    let [first, second] = ["a", "b"].map(|name| random_file(&cluster, name));
    copy(first.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let lonely = open(&hosts[0], &alone, "closed").expect("opens");
    copy(first.to_str().expect("UTF-8"), &nbd(&lonely, &alone));
    let (here, away) = (hosts[0].home.join("pool"), hosts[0].home.join("elsewhere"));
    fs::rename(&here, &away).expect("moved");
    let pool = hosts[0].pool_until(|p| p["state"] == "failed");
    assert!(pool["reason"].as_str().is_some_and(|r| r.contains("not where it was")), "{pool}");
    let ask =
        json!({ "volume": volume, "rid": 9, "pool": hosts[0].pool, "size": "4096", "region_shift": 20 });
    assert_eq!(hosts[0].try_ask("replica.create", ask).expect_err("failed")["code"], "E-POOL-07");

    // With another copy the guest goes on; without one it waits, and is told nothing false.
    copy(second.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    hosts[1].ask_until("session.show", &show, |s| s["members"][0]["state"] == "STALE");
    let mut guest = Guest::connect(&lonely);
    guest.send(6, 1, 0, 4096);
    hosts[0].ask_until("session.show", &json!({ "volume": alone }), |s| s["phase"] == "paused");
    let why = hosts[0].ask("why", json!({ "volume": alone }));
    assert!(why["findings"].to_string().contains("E-POOL-07"), "{why}");

    hosts[0].kill();
    fs::rename(&away, &here).expect("moved back");
    hosts[0].start();
    hosts[0].await_pool();
    hosts[1].ask_until("session.show", &show, |s| s["members"][0]["state"] == "INSYNC");
    assert_same(&cluster, &hosts[1], &socket, &volume, &second);
    let lonely = open(&hosts[0], &alone, "closed").expect("opens");
    copy(&nbd(&lonely, &alone), cluster.dir.path().join("c").to_str().expect("UTF-8"));
    let read = fs::read(cluster.dir.path().join("c")).expect("read");
    assert_eq!(
        read[4096..],
        fs::read(&first).expect("read")[4096..],
        "what was acknowledged before is there"
    );
}

/// N3's shape: a daemon is started while another process still holds the pool. Only that pool waits, and says for
/// what; when the lock is free, it serves at once.
#[test]
fn a_second_daemon_on_a_pool_waits_for_the_lock_and_serves_when_the_first_is_gone() {
    let cluster = Cluster::start();
    let [mut first, elsewhere] = [1, 2].map(|n| cluster.host(n));
    first.make_pool();
    let volume = make_volume(&[&first]);
    let file = random_file(&cluster, "a");
    let socket = open(&first, &volume, "closed").expect("opens");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    // The same host once more, from a copy of its state directory: nothing but the pool's lock keeps them apart.
    let home = cluster.dir.path().join("again");
    fs::create_dir_all(home.join("run")).expect("made");
    copy_tree(&first.home.join("state"), &home.join("state"));
    let mut second = Host {
        number: 1,
        id: first.id.clone(),
        address: first.address.clone(),
        home,
        process: None,
        pool: first.pool.clone(),
        room_mib: None,
        is_xfs: false,
        boot: None,
        key: first.key.clone(),
    };
    second.start();
    let pool = second.pool_until(|p| p["state"] == "waiting_lock");
    assert!(pool["reason"].as_str().is_some_and(|r| r.contains("lock")), "{pool}");
    let free = second.ask("pool.create", json!({ "path": second.home.join("pool") }))["pool"].clone();
    second.ask_until("pool.list", &json!({}), |list| {
        list["pools"]
            .as_array()
            .is_some_and(|all| all.iter().any(|p| p["pool"] == free && p["state"] == "serving"))
    });
    let create =
        json!({ "volume": volume, "rid": 5, "pool": first.pool, "size": "4096", "region_shift": 20 });
    assert_eq!(second.try_ask("replica.create", create).expect_err("waits")["code"], "E-POOL-07");
    assert_same(&cluster, &first, &socket, &volume, &file);

    let killed = Instant::now();
    first.kill();
    let pool = second.pool_until(|p| p["state"] == "serving");
    assert_eq!(pool["inc"], "2", "{pool}");
    assert!(killed.elapsed() < PATIENCE, "{:?}", killed.elapsed());
    let socket = open(&second, &volume, "closed").expect("opens");
    assert_same(&cluster, &second, &socket, &volume, &file);
    close(&second, &volume);
    // The data port was the first one's, too.
    let socket = open(&elsewhere, &volume, "closed").expect("reaches the second");
    assert_same(&cluster, &elsewhere, &socket, &volume, &file);
    close(&elsewhere, &volume);
}

/// A second daemon on the same state directory would be a second voice of the same host.
#[test]
fn a_second_daemon_on_a_state_directory_refuses_to_start() {
    let cluster = Cluster::start();
    let first = cluster.host(1);
    for (state, run) in [("state", "elsewhere"), ("elsewhere", "run")] {
        let started = Command::new(env!("CARGO_BIN_EXE_weftd"))
            .args(["--state-dir".as_ref(), first.home.join(state).as_os_str()])
            .args(["--run-dir".as_ref(), first.home.join(run).as_os_str()])
            .output()
            .expect("weftd");
        let said = String::from_utf8_lossy(&started.stderr).into_owned();
        assert!(!started.status.success() && said.contains("E-HOST-05"), "{said}");
        assert!(
            said.contains(&first.home.join(if state == "state" { state } else { run }).display().to_string())
        );
    }
    first.assert_alive();
}

/// The host's own files: each is named when it can't be understood, and none is taken for empty.
#[test]
fn damaged_files_of_the_state_directory_are_named_and_not_invented_anew() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    host.kill();
    for name in ["host.json", "watermark.json", "pools.json", "pool-logs.json", "pool-starts.json"] {
        let path = host.home.join("state").join(name);
        let sound = fs::read(&path).ok();
        for content in [&b""[..], b"{", b"\xff\xfe", b"[1, 2", b"{\"cluster\":7}"] {
            if name == "pool-logs.json" && content == b"{\"cluster\":7}" {
                continue;
            }
            fs::write(&path, content).expect("written");
            host.spawn();
            let status = host.process.take().expect("spawned").wait().expect("ended");
            let log = host.log();
            let said = log.lines().last().unwrap_or_default();
            assert!(!status.success() && said.contains("E-HOST-06") && said.contains(name), "{name}: {said}");
            assert_eq!(fs::read(&path).expect("there"), content, "{name} is left as it was");
        }
        match sound {
            Some(sound) => fs::write(&path, sound).expect("written"),
            None => fs::remove_file(&path).expect("removed"),
        }
    }
    host.start();
    host.await_pool();
}
