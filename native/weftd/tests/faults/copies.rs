//! Snapshots that are brought to a copy which missed them, on whole daemons: pools on XFS (which takes root), a process that is
//! killed in the middle.

use std::fs;
use std::io::Write as _;

use serde_json::{Value, json};

use super::guests::Guest;
use super::snapshots::{bytes_on, fill, taken};
use super::support::host::{Cluster, Host, close, make_volume, open, uuid};

const WRITE: u16 = 1;

fn fetch(host: &Host, volume: &str, id: &str, rid: u32) -> Value {
    let ask = json!({ "volume": volume, "id": id, "rid": rid });
    host.ask_until("snapshot.fetch", &ask, |told| told["state"] == "done")
}

fn refused(host: &Host, method: &str, ask: Value) -> Value {
    host.try_ask(method, ask.clone()).expect_err(&ask.to_string())["code"].clone()
}

fn in_sync(host: &Host, volume: &str) {
    let all = |s: &Value| s["members"].as_array().is_some_and(|m| m.iter().all(|m| m["state"] == "INSYNC"));
    host.ask_until("session.show", &json!({ "volume": volume }), all);
}

/// r1 is away while a snapshot is taken. Back in sync it gets all of it, most of it by sharing what it holds anyway; killed in
/// the middle it begins anew. Listed, it is the one that still has it when r0's host is gone.
#[test]
fn a_copy_that_was_away_gets_the_snapshot_that_it_missed() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    let before = fs::read(fill(&cluster, &socket, &volume, "before")).expect("read");
    hosts[1].kill();
    let mut guest = Guest::connect(&socket);
    let mut write = |block: u8| {
        let at = u64::from(block);
        guest.send(WRITE, at, at * 4096, 4096);
        guest.0.write_all(&[block; 4096]).expect("sent");
        assert_eq!(guest.reply(), (at, 0));
    };
    write(5);
    let id = taken(&hosts[0], &volume, "missed");
    write(6);
    hosts[1].start();
    hosts[1].await_pool();
    in_sync(&hosts[0], &volume);

    let of = |id: &str, rid: u32| json!({ "volume": volume, "id": id, "rid": rid });
    assert_eq!(refused(&hosts[1], "snapshot.fetch", of(&uuid(), 1)), "E-SNAP-09");
    assert_eq!(refused(&hosts[1], "snapshot.fetch", of(&id, 0)), "E-SNAP-21", "it is not on this host");
    assert_eq!(refused(&hosts[0], "snapshot.add_copy", of(&id, 1)), "E-SNAP-22");
    assert_eq!(refused(&hosts[1], "snapshot.add_copy", of(&id, 1)), "E-VOL-13");

    // Begun, and killed.
    assert_eq!(hosts[1].ask("snapshot.fetch", of(&id, 1))["state"], "running");
    hosts[1].kill();
    hosts[1].start();
    hosts[1].await_pool();
    let home = hosts[1].pool_dir().join(format!("images/{volume}.1"));
    let names = fs::read_dir(home).map_or_else(|_| Vec::new(), |all| all.flatten().collect());
    assert!(names.iter().all(|name| !name.file_name().to_string_lossy().ends_with(".tmp")), "{names:?}");
    in_sync(&hosts[0], &volume);
    let told = hosts[1].ask("snapshot.fetch", of(&id, 1));
    assert!(told["state"] == "running" || told["state"] == "done", "{told}");
    fetch(&hosts[1], &volume, &id, 1);
    let mine = |list: &Value| {
        list["images"].as_array().expect("a list").iter().find(|image| image["snap"] == id.as_str()).cloned()
    };
    let image = mine(&hosts[1].ask("image.list", json!({}))).expect("an image");
    assert_eq!(
        (&image["state"], &image["copied"], &image["whole"]),
        (&json!("prepared"), &json!(true), &json!(true))
    );

    for _ in 0..2 {
        hosts[0].ask("snapshot.add_copy", of(&id, 1));
    }
    let key = cluster.get(&format!("/weft/v1/vol/{volume}/snap/{id}"));
    let members: Vec<u64> = key["members"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|member| member["rid"].as_u64())
        .collect();
    assert_eq!(members, [0, 1]);
    // It goes on being what it was while the volume is written to; r1 says nothing of what has changed since.
    write(7);
    let later = taken(&hosts[0], &volume, "later");
    let asked =
        json!({ "volume": volume, "id": later, "since": id, "offset": "0", "len": u64::MAX.to_string() });
    assert_eq!(hosts[1].ask("snapshot.changed", asked)["exact"], true, "r0 is asked");
    drop(guest);
    close(&hosts[0], &volume);
    hosts[0].kill();
    hosts[1].kill();
    hosts[1].start();
    hosts[1].await_pool();
    let mut expected = before;
    expected[5 * 4096..6 * 4096].fill(5);
    assert!(bytes_on(&cluster, &hosts[1], &volume, &id) == expected, "{}", hosts[1].log());
}
