//! The store is lost and rebuilt from what the disks keep (4.15, R10, R11), with daemons that were started meanwhile.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::support::Etcd;
use super::support::host::{
    Cluster, Host, assert_same, close, copy, make_volume, nbd, open, random_file, uuid,
};

fn copy_tree(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
    assert!(copied.success());
}

fn put_back(host: &Host, image: &Path) {
    std::fs::remove_dir_all(host.home.join("pool")).expect("removed");
    copy_tree(image, &host.home.join("pool"));
}

fn pool_key(host: &Host) -> String {
    format!("/weft/v1/pool/{}", host.pool)
}

/// What a host tells of its own pool.
fn pool_of<'a>(told: &'a Value, host: &Host) -> &'a Value {
    let pools = told["pools"].as_array().expect("a list");
    pools.iter().find(|p| p["pool"] == host.pool.as_str()).unwrap_or_else(|| panic!("its pool: {told}"))
}

/// A volume on a host, with data that only its disk and the file have.
fn filled(cluster: &Cluster, host: &Host) -> (String, PathBuf) {
    let volume = make_volume(&[host]);
    let file = random_file(cluster, &volume);
    let socket = open(host, &volume, "closed").expect("opens");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    close(host, &volume);
    (volume, file)
}

fn assert_holds(cluster: &Cluster, host: &Host, volume: &str, file: &Path) {
    let socket = open(host, volume, "steal").unwrap_or_else(|e| panic!("{e}\n{}", host.log()));
    assert_same(cluster, host, &socket, volume, file);
    close(host, volume);
}

/// The pool as an agent tells it to whoever repairs, if nobody knows of more.
fn raised(host: &Host, told: &Value) -> Value {
    let pool = pool_of(told, host);
    let higher = |a: &Value, b: &Value| -> String {
        let number = |v: &Value| -> u64 { v.as_str().and_then(|n| n.parse().ok()).expect("a number") };
        number(a).max(number(b)).to_string()
    };
    json!({ "pool": host.pool, "node": host.id, "path": pool["path"], "inc": higher(&pool["inc"], &pool["served"]) })
}

fn records(told: &Value) -> Vec<Value> {
    told["records"].as_array().expect("a list").iter().map(|r| r["record"].clone()).collect()
}

/// A store without what the one before held, marked as `weft store restore` does.
fn lose_store(cluster: &mut Cluster) {
    cluster.etcd = Etcd::start();
    cluster.put("/weft/v1/store", &json!({ "cluster": cluster.id, "incarnation": "0" }));
}

fn tell_endpoints(cluster: &Cluster, host: &Host) {
    host.ask("store.endpoints", json!({ "endpoints": [cluster.etcd.url] }));
    cluster.say_address(&host.id, &host.address);
}

/// The daemon starts while there is no store. Its pool can't serve, and tells all the same what it keeps: records,
/// also those that the log holds and no checkpoint does, and at which incarnation its disk is. Nothing on the disk
/// changes for that. After the repair, which puts its key into a store that never heard of it, it serves.
#[test]
fn a_pool_that_waits_for_the_store_tells_a_repair_what_it_keeps() {
    let mut cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let (volume, file) = filled(&cluster, &host);
    let before = host.ask("replica.records", json!({}));
    assert_eq!(pool_of(&before, &host)["tells"], true);
    host.kill();

    lose_store(&mut cluster);
    host.start();
    host.pool_until(|p| p["state"] == "starting" && p["inc"] == "1");
    tell_endpoints(&cluster, &host);
    let image = cluster.dir.path().join("image");
    copy_tree(&host.home.join("pool"), &image);
    let told = host.ask("replica.records", json!({}));
    assert_eq!(told["records"], before["records"], "{told}");
    let pool = pool_of(&told, &host);
    assert_eq!((&pool["tells"], &pool["inc"], &pool["reason"]), (&json!(true), &json!("1"), &json!(null)));
    let changed =
        Command::new("diff").arg("-r").arg(&image).arg(host.home.join("pool")).output().expect("diff");
    assert!(changed.status.success(), "read and nothing else: {}", String::from_utf8_lossy(&changed.stdout));
    assert_eq!(host.pool_info()["state"], "starting", "nothing is served before the repair");
    assert_eq!(host.try_ask("session.open", opening(&volume)).expect_err("not yet")["code"], "E-STORE-02");

    let pools = [raised(&host, &told)];
    host.ask("store.repair_apply", json!({ "records": records(&told), "pools": pools, "incarnation": "3" }));
    host.await_pool();
    assert_eq!(cluster.get(&pool_key(&host))["inc"], "2");
    assert_eq!(host.pool_info()["inc"], "2");
    assert_holds(&cluster, &host, &volume, &file);
}

fn opening(volume: &str) -> Value {
    json!({ "volume": volume, "mode": "closed", "export": null, "caretaker": false, "old_stopped": false })
}

/// While another process holds the lock, what is on the disk may change yet: such a pool tells nothing.
#[test]
fn a_pool_that_waits_for_its_lock_tells_nothing() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let (volume, _) = filled(&cluster, &host);
    host.kill();
    let lock = std::fs::File::open(host.home.join("pool/lock")).expect("a lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("held");
    host.start();
    host.pool_until(|p| p["state"] == "waiting_lock");
    let told = host.ask("replica.records", json!({}));
    assert_eq!(told["records"], json!([]), "{told}");
    let pool = pool_of(&told, &host);
    assert_eq!((&pool["tells"], &pool["inc"]), (&json!(false), &json!(null)), "{told}");
    assert!(pool["reason"].as_str().is_some_and(|r| r.contains("lock")), "{told}");
    drop(lock);
    host.await_pool();
    let told = host.ask("replica.records", json!({}));
    assert_eq!(
        (&told["records"][0]["volume"], &pool_of(&told, &host)["tells"]),
        (&json!(volume), &json!(true))
    );
}

/// A backup of the store that is older than the pool's last starts: its key there is behind the disk, which is sound. A
/// repair raises the key, and the pool serves without a further start of its daemon, also one that was quarantined
/// before since the store was repaired without it.
#[test]
fn a_pool_of_which_the_backup_knows_too_little_serves_after_the_repair() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let (volume, file) = filled(&cluster, &host);
    let backup = cluster.get(&pool_key(&host));
    for _ in 0..2 {
        host.kill();
        host.start();
        host.await_pool();
    }
    cluster.put("/weft/v1/store", &json!({ "cluster": cluster.id, "incarnation": "0" }));
    cluster.put(&pool_key(&host), &backup);
    host.kill();
    host.start();
    let waiting = host.ask_until("replica.records", &json!({}), |told| told["pools"][0]["tells"] == true);
    assert_eq!((&pool_of(&waiting, &host)["inc"], &backup["inc"]), (&json!("3"), &json!("1")));

    // Somebody repaired without a word on pools.
    host.ask("store.repair_apply", json!({ "records": records(&waiting), "incarnation": "3" }));
    let pool = host.pool_until(|p| p["state"] == "quarantined");
    assert!(pool["reason"].as_str().is_some_and(|r| r.contains("the store went back")), "{pool}");
    // Nothing speaks against its disk: it is the store that knows less.
    let told = host.ask("replica.records", json!({}));
    assert_eq!((&pool_of(&told, &host)["tells"], &told["records"]), (&json!(true), &waiting["records"]));
    let pools = [raised(&host, &told)];
    host.ask("store.repair_apply", json!({ "records": records(&told), "pools": pools, "incarnation": "4" }));
    host.await_pool();
    let key = cluster.get(&pool_key(&host));
    assert_eq!((&key["inc"], &key["node"], &key["path"]), (&json!("4"), &json!(host.id), &backup["path"]));
    assert_holds(&cluster, &host, &volume, &file);
}

/// A repair never lowers a key, nor takes a pool from the host that has it.
#[test]
fn a_repair_raises_keys_of_pools_and_does_nothing_else_to_them() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    host.kill();
    host.start();
    host.await_pool();
    let key = cluster.get(&pool_key(&host));
    let repair = |inc: &str, node: &str, incarnation: &str| {
        let pool = json!({ "pool": host.pool, "node": node, "path": "/elsewhere", "inc": inc });
        let repair = json!({ "records": [], "pools": [pool], "incarnation": incarnation });
        host.ask("store.repair_apply", repair);
        cluster.get(&pool_key(&host))
    };
    for (inc, incarnation) in [("0", "2"), ("1", "3"), ("2", "4")] {
        assert_eq!(repair(inc, &host.id, incarnation), key, "raised to {inc}");
    }
    assert_eq!(repair("9", &uuid(), "5"), key, "another host's");
    let raised = repair("9", &host.id, "6");
    assert_eq!((&raised["inc"], &raised["intent"]), (&json!("9"), &json!(null)));
    assert_eq!(raised["boot_id"], key["boot_id"], "what else stands there stays");
    let huge = json!({ "pool": host.pool, "node": host.id, "path": "/p", "inc": "-1" });
    let refused =
        host.try_ask("store.repair_apply", json!({ "records": [], "pools": [huge], "incarnation": "7" }));
    assert_eq!(refused.expect_err("no number")["code"], "E-ARG-02");
}

/// R10 across a loss of the store: the disk was put back to an earlier start, and the store that would know is gone, its
/// backup as old as the disk. The host's own note of its starts tells, before the repair and, by the raised key, after
/// it. Its records are told, since nobody else may know of the volume; but not as the latest.
#[test]
fn a_disk_that_was_put_back_is_found_out_though_the_store_is_as_old() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let (volume, file) = filled(&cluster, &host);
    let backup = cluster.get(&pool_key(&host));
    host.kill();
    let image = cluster.dir.path().join("image");
    copy_tree(&host.home.join("pool"), &image);
    host.start();
    host.await_pool();
    // It keeps nothing of the log yet: the incarnation alone has to tell.
    let notes = host.home.join("state/pool-starts.json");
    let noted = || std::fs::read_to_string(&notes).unwrap_or_default().contains("\"2\"");
    host.ask_until("pool.list", &json!({}), |_| noted());
    host.kill();
    let _ = std::fs::remove_file(host.home.join("state/pool-logs.json"));
    let newest = cluster.dir.path().join("newest");
    copy_tree(&host.home.join("pool"), &newest);
    put_back(&host, &image);
    cluster.put("/weft/v1/store", &json!({ "cluster": cluster.id, "incarnation": "0" }));
    cluster.put(&pool_key(&host), &backup);

    host.start();
    let pool = host.pool_until(|p| p["state"] == "quarantined");
    assert!(pool["reason"].as_str().is_some_and(|r| r.contains("rolled back, swapped or copied")), "{pool}");
    let told = host.ask("replica.records", json!({}));
    let pool = pool_of(&told, &host);
    let said = (&pool["tells"], &pool["inc"], &pool["served"]);
    assert_eq!(said, (&json!(false), &json!("1"), &json!("2")), "{told}");
    assert_eq!(told["records"][0]["volume"], volume.as_str(), "{told}");
    let pools = [raised(&host, &told)];
    host.ask("store.repair_apply", json!({ "records": records(&told), "pools": pools, "incarnation": "3" }));
    assert_eq!(cluster.get(&pool_key(&host))["inc"], "2");
    // Also a host whose notes were put back with the disk: the store knows again.
    host.kill();
    std::fs::remove_file(&notes).expect("a note");
    host.start();
    let pool = host.pool_until(|p| p["state"] == "quarantined");
    assert!(pool["reason"].as_str().is_some_and(|r| r.contains("the store at 2")), "{pool}");
    assert_eq!(open(&host, &volume, "steal").expect_err("not trusted")["code"], "E-VOL-09");
    // The right disk is back.
    host.kill();
    put_back(&host, &newest);
    host.start();
    host.await_pool();
    assert_holds(&cluster, &host, &volume, &file);
}

/// A disk whose log is damaged tells nothing, whatever its pool waits for.
#[test]
fn a_damaged_pool_that_waits_for_the_store_tells_nothing() {
    let mut cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    filled(&cluster, &host);
    host.kill();
    let wal = host.home.join("pool/wal");
    let mut bytes = std::fs::read(&wal).expect("read");
    let blocks: Vec<usize> =
        (0..bytes.len()).step_by(4096).filter(|at| bytes[*at..*at + 4] != [0; 4]).collect();
    bytes[blocks[blocks.len() / 2] + 70] ^= 0x10;
    std::fs::write(&wal, bytes).expect("written");
    lose_store(&mut cluster);
    host.start();
    tell_endpoints(&cluster, &host);
    let told = host.ask("replica.records", json!({}));
    let pool = pool_of(&told, &host);
    assert_eq!((&told["records"], &pool["tells"]), (&json!([]), &json!(false)), "{told}");
    assert!(pool["reason"].as_str().is_some_and(|r| r.contains("was durable")), "{told}");
    assert_eq!(host.pool_info()["state"], "starting");
}

/// Any host can write the keys of volumes, pools and the store. What one has written near the end of its range is not
/// believed, costs no other volume anything, and is written over by a repair.
#[test]
fn a_record_near_the_end_of_its_range_is_mended_by_a_repair() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let (volume, file) = filled(&cluster, &host);
    let (other, others_file) = filled(&cluster, &host);
    let key = format!("/weft/v1/vol/{volume}/state");
    let liar = json!({ "node": uuid(), "session": uuid() });
    let far = (1u64 << 38).to_string();
    let lies = [
        (json!({ "epoch": far }), "E-STORE-02"),
        (json!({ "epoch": far, "owner": liar, "clean": false }), "E-STORE-02"),
        (json!({ "epoch": ((1u64 << 39) - 1).to_string() }), "E-STORE-07"),
        (json!({ "epoch": ((1u64 << 40) - 1).to_string() }), "E-STORE-07"),
        (json!({ "rev": (1u64 << 48).to_string() }), "E-STORE-07"),
        (json!({ "rev": (u64::MAX / 2).to_string() }), "E-STORE-07"),
        (json!({ "rev": u64::MAX.to_string() }), "E-STORE-07"),
    ];
    for (incarnation, (lie, code)) in (2..).zip(lies) {
        let mut record = cluster.get(&key);
        for (field, value) in lie.as_object().expect("fields") {
            record[field] = value.clone();
        }
        cluster.put(&key, &record);
        let refused = open(&host, &volume, "steal").expect_err("not believed");
        assert_eq!(refused["code"], code, "{lie}: {refused}");
        host.assert_alive();
        assert_holds(&cluster, &host, &other, &others_file);
        let told = host.ask("replica.records", json!({}));
        let repair =
            json!({ "records": records(&told), "pools": [], "incarnation": incarnation.to_string() });
        host.ask("store.repair_apply", repair);
        assert_holds(&cluster, &host, &volume, &file);
    }
}

#[test]
fn a_stores_incarnation_near_the_end_of_its_range_is_mended_by_a_repair() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let (volume, file) = filled(&cluster, &host);
    let (far, last) = ((1u64 << 47).to_string(), u64::MAX.to_string());
    for (repaired, lie) in [("3", &far), ("5", &last)] {
        cluster.put("/weft/v1/store", &json!({ "cluster": cluster.id, "incarnation": lie }));
        let refused = open(&host, &volume, "closed").expect_err("not believed");
        assert_eq!(refused["code"], "E-STORE-02", "{refused}");
        // Also a daemon that is started meanwhile looks no further, and it is asked what it keeps.
        host.kill();
        host.start();
        host.pool_until(|p| p["state"] == "starting");
        let told = host.ask_until("replica.records", &json!({}), |told| told["pools"][0]["tells"] == true);
        let pools = [raised(&host, &told)];
        let repair = json!({ "records": records(&told), "pools": pools, "incarnation": repaired });
        host.ask("store.repair_apply", repair);
        assert_eq!(cluster.get("/weft/v1/store")["incarnation"], repaired);
        host.await_pool();
        assert_holds(&cluster, &host, &volume, &file);
    }
}

#[test]
fn a_pools_incarnation_near_the_end_of_its_range_is_mended_by_a_repair() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let (volume, file) = filled(&cluster, &host);
    let (far, last) = ((1u64 << 47).to_string(), u64::MAX.to_string());
    for (repaired, lie, words) in [("2", &far, "no starts have led there"), ("3", &last, "end of its range")]
    {
        let mut key = cluster.get(&pool_key(&host));
        key["inc"] = json!(lie);
        cluster.put(&pool_key(&host), &key);
        host.kill();
        host.start();
        let pool = host.pool_until(|p| p["state"] == "quarantined");
        assert!(pool["reason"].as_str().is_some_and(|r| r.contains(words)), "{pool}");
        let told = host.ask("replica.records", json!({}));
        assert_eq!(pool_of(&told, &host)["tells"], true, "nothing speaks against its disk: {told}");
        let pools = [raised(&host, &told)];
        let repair = json!({ "records": records(&told), "pools": pools, "incarnation": repaired });
        host.ask("store.repair_apply", repair);
        host.await_pool();
        assert_holds(&cluster, &host, &volume, &file);
    }
}
