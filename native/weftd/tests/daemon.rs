//! Whole daemons on loopback: processes, a store, pools on disk, guests that are stock NBD clients.

mod support;

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::PATIENCE;
use support::host::{
    Cluster, Host, SIZE, assert_same, close, copy, examine, make_volume, nbd, open, random_file,
};

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

/// Plot: a volume is closed, and in the same moments it is opened anew, as a caretaker does for one that needs care. Whoever
/// closed it is told that it is closed, and its socket is gone.
#[test]
fn who_closes_a_volume_is_told_so_while_it_is_opened_anew() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let host = &host;
    let volume = make_volume(&[host]);
    let caretaker = json!({
        "volume": volume, "mode": "closed", "export": null, "caretaker": true, "old_stopped": false, "limits": null,
    });
    let closing = json!({ "volume": volume, "abandon": false });
    for round in 0..40 {
        let socket = open(host, &volume, "closed").expect("opens");
        let (mut client, asked) = (host.client(), closing.clone());
        let closing_it = std::thread::spawn(move || client.ask("session.close", asked));
        while !closing_it.is_finished() {
            let _ = host.try_ask("session.open", caretaker.clone());
        }
        let closed = closing_it.join().expect("no panic");
        assert!(closed.is_ok(), "round {round}: {closed:?}");
        assert!(!socket.exists(), "round {round}");
        // What the last of the others began.
        host.ask_until("session.list", &json!({}), |list| {
            let _ = host.try_ask("session.close", closing.clone());
            list["sessions"].as_array().is_some_and(Vec::is_empty)
        });
    }
}

/// Only an XFS that shares blocks can hold snapshots; a pool elsewhere says so before anybody asks for one.
#[test]
fn a_pool_says_why_its_volumes_can_have_no_snapshots() {
    let cluster = Cluster::start();
    let host = cluster.host(1);
    let path = format!("/dev/shm/weftd-snapshots-{}", std::process::id());
    host.ask("pool.create", json!({ "path": path }));
    let list = host.ask_until("pool.list", &json!({}), |list| list["pools"][0]["state"] == "serving");
    std::fs::remove_dir_all(path).expect("removed");
    let why = list["pools"][0]["no_snapshots"].as_str().expect("a reason");
    assert!(why.starts_with("the pool lies on tmpfs, and only on XFS"), "{why}");
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

/// What `nbdinfo` says of an export's size.
fn size_of(socket: &Path, volume: &str) -> u64 {
    let said = Command::new("nbdinfo").arg("--size").arg(nbd(socket, volume)).output().expect("nbdinfo runs");
    let text = String::from_utf8(said.stdout).expect("UTF-8");
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?}"))
}

/// A file of so many times [`SIZE`], the first part of which is `like`.
fn larger(cluster: &Cluster, name: &str, times: usize, like: &Path) -> PathBuf {
    let mut bytes = std::fs::read(like).expect("read");
    for part in 1..times {
        bytes.extend(std::fs::read(random_file(cluster, &format!("{name}-{part}"))).expect("read"));
    }
    let path = cluster.dir.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    path
}

/// A volume grows under its guest, with both copies and with one; who was away comes back as large as the others. It
/// shrinks under a caretaker, and what it grows by then is empty.
#[test]
fn a_volume_grows_under_its_guest_and_shrinks_when_it_has_none() {
    let cluster = Cluster::start();
    let mut hosts: Vec<Host> = (1..=2).map(|n| cluster.host(n)).collect();
    for host in &mut hosts {
        host.make_pool();
    }
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let resize = |host: &Host, size: u64, lose: bool| {
        host.try_ask("volume.resize", json!({ "volume": volume, "size": size.to_string(), "lose": lose }))
    };
    let epoch = |answer: &Value| answer["epoch"].as_str().and_then(|e| e.parse::<u64>().ok()).expect("one");
    assert_eq!(resize(&hosts[0], 2 * SIZE, false).expect_err("it is not open")["code"], "E-VOL-13");
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    let first = random_file(&cluster, "a");
    copy(first.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    for (size, code) in [
        (0, "E-VOL-02"),
        (SIZE + 1, "E-ARG-02"),
        ((64 << 40) + 4096, "E-VOL-02"),
        (u64::MAX - 4095, "E-VOL-02"),
        (SIZE - 4096, "E-VOL-12"),
    ] {
        assert_eq!(resize(&hosts[0], size, true).expect_err("refused")["code"], code, "{size}");
    }
    assert_eq!(size_of(&socket, &volume), SIZE);

    let grown = resize(&hosts[0], 2 * SIZE, false).expect("grows");
    assert_eq!(grown["size"], (2 * SIZE).to_string());
    let again = resize(&hosts[0], 2 * SIZE, false).expect("is done");
    assert_eq!(again, grown, "asked again");
    assert_eq!(size_of(&socket, &volume), 2 * SIZE);
    let second = larger(&cluster, "b", 2, &first);
    copy(second.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    assert_same(&cluster, &hosts[0], &socket, &volume, &second);

    // A guest writes past the old end while the other copy is away.
    hosts[1].kill();
    let alone = resize(&hosts[0], 3 * SIZE, false).expect("grows without the other copy");
    assert!(epoch(&alone) > epoch(&grown), "{alone} after {grown}");
    let third = larger(&cluster, "c", 3, &first);
    copy(third.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    hosts[1].start();
    hosts[1].await_pool();
    let show = json!({ "volume": volume });
    hosts[0].ask_until("session.show", &show, |s| s["members"][1]["state"] == "INSYNC");
    assert_eq!(
        hosts[1].ask("replica.list", json!({}))["replicas"][0]["size"],
        (3 * SIZE).to_string(),
        "in sync, and smaller"
    );
    close(&hosts[0], &volume);
    hosts[0].kill();
    let socket = open(&hosts[1], &volume, "closed").expect("opens without the first copy");
    assert_same(&cluster, &hosts[1], &socket, &volume, &third);
    close(&hosts[1], &volume);
    hosts[0].start();
    hosts[0].await_pool();

    let caretaker = json!({ "volume": volume, "mode": "closed", "export": null, "caretaker": true, "old_stopped": false });
    hosts[1].ask("session.open", caretaker);
    hosts[1].ask_until("session.show", &show, |s| s["members"][0]["state"] == "INSYNC");
    let refused = resize(&hosts[1], SIZE, false).expect_err("nobody said that it may lose anything");
    assert_eq!(
        (&refused["code"], &refused["facts"]["size"]),
        (&json!("E-VOL-15"), &json!((3 * SIZE).to_string()))
    );
    let shrunk = resize(&hosts[1], SIZE, true).expect("shrinks");
    assert_eq!(shrunk["size"], SIZE.to_string());
    for host in &hosts {
        host.ask_until("replica.list", &json!({}), |list| list["replicas"][0]["size"] == shrunk["size"]);
    }
    close(&hosts[1], &volume);
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    assert_eq!(size_of(&socket, &volume), SIZE);
    assert_same(&cluster, &hosts[0], &socket, &volume, &first);
    resize(&hosts[0], 2 * SIZE, false).expect("grows again");
    let empty = cluster.dir.path().join("empty");
    let mut bytes = std::fs::read(&first).expect("read");
    bytes.resize(usize::try_from(2 * SIZE).expect("fits"), 0);
    std::fs::write(&empty, bytes).expect("written");
    assert_same(&cluster, &hosts[0], &socket, &volume, &empty);
    close(&hosts[0], &volume);
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
    let policy = |min_isr: u8| json!({ "volume": volume, "copies": 2, "min_isr": min_isr, "spread": "rack" });
    hosts[0].ask("volume.policy", policy(2));
    let record = cluster.get(&format!("/weft/v1/vol/{volume}/state"));
    assert_eq!((&record["policy"]["min_isr"], &record["policy"]["spread"]), (&json!(2), &json!("rack")));
    let needed = hosts[0]
        .try_ask("replica.remove", json!({ "volume": volume, "rid": 1 }))
        .expect_err("writes need it");
    assert_eq!(needed["code"], "E-REPL-03");
    hosts[0].ask("volume.policy", policy(1));
    hosts[0].ask("volume.policy", policy(1));
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

/// A pool's directory is missing when weftd starts, as while its device is not mounted; when it is there again the pool is
/// asked for, and serves what it held. What lies where nothing should is left alone. Removed, it holds no file open, so
/// that the device can be unmounted.
#[test]
fn a_pool_that_was_missing_is_taken_up_and_a_removed_one_is_let_go() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let (there, away) = (host.home.join("pool"), host.home.join("away"));
    host.terminate();
    std::fs::rename(&there, &away).expect("moved");
    std::fs::create_dir(&there).expect("a mount point with nothing on it");
    host.start();
    let failed = host.pool_until(|p| p["state"] == "failed");
    assert!(failed["reason"].as_str().is_some_and(|r| r.contains("no pool")), "{failed}");
    let create = json!({ "path": there });
    let refused = host.try_ask("pool.create", create.clone()).expect_err("still nothing there");
    assert_eq!(refused["code"], "E-POOL-01", "{refused}");
    assert_eq!(std::fs::read_dir(&there).expect("listed").count(), 0, "nothing was made in its place");

    std::fs::remove_dir(&there).expect("removed");
    std::fs::rename(&away, &there).expect("moved back");
    assert_eq!(host.ask("pool.create", create)["pool"], host.pool.as_str());
    host.await_pool();
    let volume = make_volume(&[&host]);
    open(&host, &volume, "closed").expect("opens");
    close(&host, &volume);
    host.ask("volume.delete", json!({ "volume": volume }));
    let replica = json!({ "volume": volume, "rid": 0, "pool": host.pool });
    assert_eq!(host.ask("replica.trash", replica)["trashed"], true);

    let held = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", host.process.as_ref().expect("it runs").id()));
        let links = fds.expect("listed").filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links.filter(|link| link.starts_with(&there)).count()
    };
    assert!(held() > 0, "a pool that serves has files open");
    host.ask("pool.remove", json!({ "pool": host.pool }));
    let until = Instant::now() + PATIENCE;
    while held() > 0 {
        assert!(Instant::now() < until, "the removed pool's files are still open");
        std::thread::yield_now();
    }
    assert_eq!(host.ask("pool.list", json!({}))["pools"], json!([]));
}

/// A host is revoked while it has a volume open: another one takes the volume from it, and a third may open it, after the
/// time for which the first may still answer reads (R9).
#[test]
fn a_volume_is_taken_from_a_host_and_opens_elsewhere_after_its_lease() {
    let cluster = Cluster::start();
    let mut hosts: Vec<Host> = (1..=2).map(|n| cluster.host(n)).collect();
    for host in &mut hosts {
        host.make_pool();
    }
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let key = format!("/weft/v1/vol/{volume}/state");
    let fence = |from: &Host| hosts[1].ask("volume.fence", json!({ "volume": volume, "host": from.id }));
    assert_eq!(fence(&hosts[0])["fenced"], false, "nobody has it open");
    open(&hosts[0], &volume, "closed").expect("opens");
    assert_eq!(fence(&hosts[1])["fenced"], false, "it is another host's");
    let before = cluster.get(&key);
    let fenced = fence(&hosts[0]);
    let epoch = |value: &serde_json::Value| value["epoch"].as_str().and_then(|e| e.parse::<u64>().ok());
    assert_eq!(fenced["fenced"], true, "{fenced}");
    assert_eq!(epoch(&fenced), epoch(&before).map(|e| e + 1), "{fenced}");
    let after = cluster.get(&key);
    assert_eq!((&after["owner"], &after["wait"]), (&json!(null), &json!(true)), "{after}");
    assert_eq!(fence(&hosts[0])["fenced"], false, "it has it no more");
    hosts[0].ask_until("session.show", &json!({ "volume": volume }), |s| s["phase"] == "ended");
    let began = std::time::Instant::now();
    let socket = open(&hosts[1], &volume, "closed").expect("opens");
    let file = random_file(&cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    assert!(began.elapsed().as_millis() >= 2000, "it did not wait for the lease of the host that was fenced");
    close(&hosts[1], &volume);
}

/// What is in the trash for more than a day goes, but not by its age alone: the volume may have been restored while
/// this host was off, and its copy is then one that counts (docs/model.md, finding 14).
#[test]
fn the_trash_keeps_the_copy_of_a_volume_that_was_restored_while_its_host_was_off() {
    let cluster = Cluster::start();
    let mut hosts: Vec<Host> = (1..=2).map(|n| cluster.host(n)).collect();
    for host in &mut hosts {
        host.make_pool();
    }
    let volumes = [(); 4].map(|()| make_volume(&[&hosts[0], &hosts[1]]));
    let [restored, deleted, gone, recent] = &volumes;
    let file = random_file(&cluster, "a");
    let socket = open(&hosts[0], restored, "closed").expect("opens");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, restored));
    close(&hosts[0], restored);
    for volume in &volumes {
        hosts[0].ask("volume.delete", json!({ "volume": volume }));
        let trashed =
            hosts[1].ask("replica.trash", json!({ "volume": volume, "rid": 1, "pool": hosts[1].pool }));
        assert_eq!(trashed["trashed"], true, "{trashed}");
    }
    hosts[1].terminate();
    hosts[0].ask("volume.restore", json!({ "volume": restored }));
    cluster.delete(&format!("/weft/v1/vol/{gone}/state"));
    let trash = hosts[1].home.join("pool/trash");
    for volume in [restored, deleted, gone] {
        let mut names = std::fs::read_dir(&trash).expect("read").map(|e| e.expect("read").file_name());
        let name = names.find(|n| n.to_str().is_some_and(|n| n.starts_with(volume))).expect("in the trash");
        let (replica, since) = name.to_str().and_then(|n| n.rsplit_once('.')).expect("a name and a time");
        let since = since.parse::<u64>().expect("a time") - 25 * 3600;
        std::fs::rename(trash.join(&name), trash.join(format!("{replica}.{since}"))).expect("renamed");
    }

    hosts[1].start();
    hosts[1].await_pool();
    let left = |list: &Value| {
        let items = list["items"].as_array().expect("a list").iter();
        items.map(|i| i["volume"].as_str().expect("an id").to_owned()).collect::<BTreeSet<String>>()
    };
    let list = hosts[1].ask_until("trash.list", &json!({}), |list| !left(list).contains(deleted));
    assert_eq!(left(&list), [restored, gone, recent].map(String::clone).into());
    let until = Instant::now() + PATIENCE;
    while hosts[1].log().matches("kept in the trash").count() < 2 {
        assert!(Instant::now() < until, "it says what it keeps\n{}", hosts[1].log());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(hosts[1].log().contains("absence deletes nothing"), "{}", hosts[1].log());

    // An operator who asks decides, but not against a living record, and not behind a store that went back.
    let empty = |volume: &str| hosts[1].try_ask("trash.empty", json!({ "volume": volume }));
    assert_eq!(empty(restored).expect_err("it counts")["code"], "E-REPL-05");
    let identity = cluster.get("/weft/v1/store");
    cluster.put("/weft/v1/store", &json!({ "cluster": cluster.id, "incarnation": "0" }));
    assert_eq!(empty(gone).expect_err("may be needed")["code"], "E-STORE-02");
    cluster.put("/weft/v1/store", &identity);
    hosts[1].ask("why", json!({ "volume": restored }));
    assert_eq!(empty(gone).expect("nobody names it")["removed"], 1);
    assert_eq!(empty(recent).expect("deleted")["removed"], 1);
    assert_eq!(left(&hosts[1].ask("trash.list", json!({}))), [restored.clone()].into());

    assert_eq!(hosts[1].ask("trash.restore", json!({ "volume": restored }))["rids"], json!([1]));
    hosts[1].ask_until("replica.list", &json!({}), |list| list["replicas"][0]["state"] == "serving");
    hosts[0].kill();
    let socket = open(&hosts[1], restored, "closed").expect("opens from the copy that was kept");
    assert_same(&cluster, &hosts[1], &socket, restored, &file);
    close(&hosts[1], restored);
}

/// Its memory holds keys and guests' data: not even an abort writes it to a disk.
#[test]
fn a_daemon_leaves_no_core_dump() {
    let home = tempfile::tempdir().expect("temporary directory");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_weftd"))
        .args([
            "--driver".as_ref(),
            "libaio".as_ref(),
            "--state-dir".as_ref(),
            home.path().join("s").as_os_str(),
        ])
        .args(["--run-dir".as_ref(), home.path().join("r").as_os_str()])
        .stderr(Stdio::null())
        .spawn()
        .expect("weftd");
    let until = Instant::now() + PATIENCE;
    while UnixStream::connect(home.path().join("r/weftd.sock")).is_err() {
        assert!(Instant::now() < until, "weftd does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.id())).expect("it runs");
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a line");
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"]);
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::ABORT).expect("signalled");
    let status = daemon.wait().expect("ended");
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
}
