//! Volumes that are made of a snapshot, on whole daemons: pools on XFS (which takes root), processes that are killed in the
//! middle.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::guests::Guest;
use super::support::host::{
    Cluster, Host, SIZE, assert_same, close, copy, make_regions_of, nbd, open, random_file, uuid,
};

const SHIFT: u8 = 16;
const WRITE: u16 = 1;

fn taken(cluster: &Cluster, host: &Host, volume: &str, name: &str) -> Value {
    let id = uuid();
    let ask = json!({ "volume": volume, "id": id, "name": name, "created_by": "test" });
    host.ask("snapshot.create", ask);
    cluster.get(&format!("/weft/v1/vol/{volume}/snap/{id}"))
}

fn fill(cluster: &Cluster, socket: &Path, volume: &str, name: &str) -> PathBuf {
    let file = random_file(cluster, name);
    copy(file.to_str().expect("UTF-8"), &nbd(socket, volume));
    file
}

fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value}"))
}

/// The snapshot, by its key.
struct Source<'a> {
    volume: &'a str,
    key: &'a Value,
}

impl Source<'_> {
    fn ask(&self, host: &Host, clone: &str, rid: usize) -> Value {
        json!({ "volume": clone, "rid": rid, "pool": host.pool, "size": self.key["size"], "region_shift": SHIFT,
            "from": { "volume": self.volume, "rid": null, "snap": self.key["id"] } })
    }

    /// The clone's first record.
    fn record(&self, hosts: &[&Host], clone: &str) -> Value {
        let place = |(rid, host): (usize, &&Host)| {
            json!({ "rid": rid, "node": host.id, "pool": host.pool, "pool_inc": "1", "state": "INSYNC", "base": "0",
                "reason": "made", "since": "0" })
        };
        let replicas: Vec<Value> = hosts.iter().enumerate().map(place).collect();
        json!({ "fmt": 1, "min_reader": 1, "vol": clone, "size": self.key["size"], "region_shift": SHIFT, "mode": "excl",
            "policy": { "copies": hosts.len(), "min_isr": 1, "ack": "durable", "on_loss": "pause", "spread": "host" },
            "epoch": (number(&self.key["epoch"]) + 1).to_string(), "rev": "1", "next_rid": hosts.len(), "deleted": null,
            "created_by": clone, "nonce": uuid(), "owner": null, "next": null, "clean": true,
            "closed_gen": self.key["gen"], "replicas": replicas, "snaps": { "count": 0, "newest": null },
            "parent": null, "lineage": [], "wait": false })
    }

    fn make(&self, hosts: &[&Host]) -> String {
        let clone = uuid();
        for (rid, host) in hosts.iter().enumerate() {
            for _ in 0..2 {
                host.try_ask("replica.create", self.ask(host, &clone, rid))
                    .unwrap_or_else(|error| panic!("{error}\n{}", host.log()));
            }
        }
        hosts[0].ask("volume.create", json!({ "record": self.record(hosts, &clone) }));
        clone
    }
}

fn refused(host: &Host, method: &str, params: Value) -> Value {
    host.try_ask(method, params.clone()).expect_err(&params.to_string())["code"].clone()
}

/// Two copies, each made in its own pool. The clone goes its own way, gets a third copy where nothing has the snapshot (its
/// stamps say what it holds), and does not notice that the snapshot and the volume that it was of go.
#[test]
fn a_clone_has_what_the_snapshot_has_and_needs_nothing_of_it() {
    let cluster = Cluster::start();
    let hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let mut third = cluster.host(3);
    third.make_pool();
    let volume = make_regions_of(&[&hosts[0], &hosts[1]], SIZE, SHIFT);
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    let before = fill(&cluster, &socket, &volume, "before");
    let key = taken(&cluster, &hosts[0], &volume, "one");
    // Some of it is in the head yet.
    let mut guest = Guest::connect(&socket);
    for region in [0u64, 3, 100] {
        guest.send(WRITE, region, region << SHIFT, 4096);
        guest.0.write_all(&[7; 4096]).expect("sent");
        assert_eq!(guest.reply(), (region, 0));
    }
    drop(guest);
    let source = Source { volume: &volume, key: &key };

    let nobody = uuid();
    let with = |mut ask: Value, name: &str, value: Value| {
        ask[name] = value;
        ask
    };
    let good = source.ask(&hosts[0], &nobody, 0);
    let of = |snap: &str, rid: Value| json!({ "volume": volume, "rid": rid, "snap": snap });
    let snap = key["id"].as_str().expect("text");
    for (ask, code) in [
        (with(good.clone(), "from", of(&nobody, Value::Null)), "E-SNAP-12"),
        (with(good.clone(), "from", of(snap, json!(1))), "E-SNAP-12"),
        (with(good.clone(), "size", json!((SIZE * 2).to_string())), "E-SNAP-12"),
        (with(good.clone(), "region_shift", json!(20)), "E-SNAP-12"),
        (with(good.clone(), "thick", json!(true)), "E-ARG-02"),
    ] {
        assert_eq!(refused(&hosts[0], "replica.create", ask), code);
    }
    assert_eq!(refused(&third, "replica.create", source.ask(&third, &nobody, 0)), "E-SNAP-12");

    let clone = source.make(&[&hosts[0], &hosts[1]]);
    let record = source.record(&[&hosts[0], &hosts[1]], &clone);
    let other = uuid();
    hosts[0].ask("replica.create", source.ask(&hosts[0], &other, 0));
    let first = with(source.record(&[&hosts[0]], &other), "vol", json!(other));
    for (name, value) in [("closed_gen", json!("0")), ("epoch", key["epoch"].clone())] {
        let record = with(first.clone(), name, value);
        assert_eq!(refused(&hosts[0], "volume.create", json!({ "record": record })), "E-ARG-02", "{name}");
    }

    let of_clone = open(&hosts[0], &clone, "closed").expect("opens");
    assert_same(&cluster, &hosts[0], &of_clone, &clone, &before);
    hosts[0].ask("volume.create", json!({ "record": record }));
    let now = fill(&cluster, &socket, &volume, "now");
    assert_same(&cluster, &hosts[0], &of_clone, &clone, &before);

    // A third copy, of which everything is asked then.
    third.ask(
        "replica.create",
        json!({ "volume": clone, "rid": 2, "pool": third.pool, "size": SIZE.to_string(), "region_shift": SHIFT }),
    );
    hosts[0].ask("replica.add", json!({ "volume": clone, "rid": 2, "node": third.id, "pool": third.pool }));
    let in_sync =
        |s: &Value| s["members"].as_array().is_some_and(|m| m.len() == 3 && m[2]["state"] == "INSYNC");
    hosts[0].ask_until("session.show", &json!({ "volume": clone }), in_sync);
    for rid in [0, 1] {
        hosts[0].ask("replica.remove", json!({ "volume": clone, "rid": rid }));
    }
    assert_same(&cluster, &hosts[0], &of_clone, &clone, &before);
    close(&hosts[0], &clone);

    // Another one, of which nothing is left but itself.
    let second = source.make(&[&hosts[1]]);
    hosts[0].ask("snapshot.delete", json!({ "volume": volume, "id": key["id"] }));
    hosts[0].ask_until("why", &json!({ "volume": volume }), |w| w["record"]["snaps"]["count"] == 0);
    assert_same(&cluster, &hosts[0], &socket, &volume, &now);
    close(&hosts[0], &volume);
    hosts[0].ask("volume.delete", json!({ "volume": volume }));
    for (rid, host) in hosts.iter().enumerate() {
        let trash = json!({ "volume": volume, "rid": rid, "pool": host.pool });
        host.ask_until("replica.trash", &trash, |answer| answer["trashed"] == true);
        host.ask("trash.empty", json!({ "volume": volume }));
    }
    let socket = open(&hosts[1], &second, "closed").expect("opens");
    assert_same(&cluster, &hosts[1], &socket, &second, &before);
    fill(&cluster, &socket, &second, "again");
    close(&hosts[1], &second);
}

/// Killed or stopped at any moment while it is made: nothing of it is there then, or all of it.
#[test]
fn a_clone_whose_making_ends_in_the_middle_is_there_as_a_whole_or_not_at_all() {
    let cluster = Cluster::start();
    let mut host = cluster.xfs_host(1);
    let volume = make_regions_of(&[&host], SIZE, SHIFT);
    let socket = open(&host, &volume, "closed").expect("opens");
    let before = fill(&cluster, &socket, &volume, "before");
    let key = taken(&cluster, &host, &volume, "one");
    close(&host, &volume);
    let source = Source { volume: &volume, key: &key };
    for (round, ms) in [0u64, 1, 3, 6, 10, 20].into_iter().enumerate() {
        let clone = uuid();
        let mut client = host.client();
        let ask = json!({ "id": 1, "method": "replica.create", "params": source.ask(&host, &clone, 0) });
        client.stream.write_all(format!("{ask}\n").as_bytes()).expect("sent");
        // Not waited for: any moment will do.
        std::thread::sleep(Duration::from_millis(ms));
        if round % 2 == 0 {
            host.kill()
        } else {
            host.terminate()
        }
        host.start();
        host.await_pool();
        let names = fs::read_dir(host.pool_dir().join("replicas")).expect("read");
        let names: Vec<String> =
            names.map(|entry| entry.expect("read").file_name().into_string().expect("UTF-8")).collect();
        assert!(!names.iter().any(|name| name.ends_with(".tmp")), "{names:?}");
        let list = host.ask("replica.list", json!({}));
        let there =
            list["replicas"].as_array().expect("a list").iter().any(|r| r["volume"] == clone.as_str());
        assert_eq!(there, names.iter().any(|name| name.starts_with(&clone)), "{names:?} {list}");
        host.ask("replica.create", source.ask(&host, &clone, 0));
        host.ask("volume.create", json!({ "record": source.record(&[&host], &clone) }));
        let socket = open(&host, &clone, "closed").unwrap_or_else(|error| panic!("{error}\n{}", host.log()));
        assert_same(&cluster, &host, &socket, &clone, &before);
        close(&host, &clone);
    }
}
