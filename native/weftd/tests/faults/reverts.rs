//! Volumes that are taken back to a snapshot in place, on whole daemons: pools on XFS (which takes root).

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::snapshots::{TRIED, fill, of, taken};
use super::support::host::{Client, Cluster, Host, assert_same, close, make_volume, open};

/// A session without a guest, of a volume that nobody has.
pub(super) fn caretaker(host: &Host, volume: &str) {
    let ask = json!({ "volume": volume, "mode": "closed", "export": null, "caretaker": true, "old_stopped": false });
    host.ask("session.open", ask);
}

/// Asks for a revert without waiting for the answer.
fn begin(host: &Host, volume: &str, id: &str) -> Client {
    let mut client = host.client();
    client.stream.set_read_timeout(Some(TRIED)).expect("set");
    let params = json!({ "volume": volume, "snapshot": id });
    let line = json!({ "id": 1, "method": "volume.revert", "params": params });
    client.stream.write_all(format!("{line}\n").as_bytes()).expect("sent");
    client
}

fn marked(cluster: &Cluster, volume: &str) -> Value {
    cluster.get(&format!("/weft/v1/vol/{volume}/state"))["reverting"].clone()
}

/// Whoever takes a volume back is killed in the middle: whoever opens it next finds all of the snapshot, and what is
/// written afterwards stays; before the record said so, nothing has changed. Nobody does it under a guest, nor deletes the
/// snapshot meanwhile.
#[test]
fn a_volume_is_taken_back_whoever_is_killed_meanwhile() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let socket = open(&hosts[1], &volume, "closed").expect("opens");
    let before = fill(&cluster, &socket, &volume, "before");
    let id = taken(&hosts[1], &volume, "one");
    let mut now = fill(&cluster, &socket, &volume, "now");
    let revert = json!({ "volume": volume, "snapshot": id });
    let refused = hosts[1].try_ask("volume.revert", revert.clone()).expect_err("a guest has it");
    assert_eq!((&refused["code"], &refused["facts"]["host"]), (&json!("E-VOL-12"), &json!(hosts[1].id)));
    for wait_ms in [0, 25] {
        close(&hosts[1], &volume);
        caretaker(&hosts[0], &volume);
        let asked = begin(&hosts[0], &volume, &id);
        let until = Instant::now() + TRIED;
        while marked(&cluster, &volume).is_null() && Instant::now() < until {
            let done = hosts[0].ask("why", json!({ "volume": volume }))["record"]["rev"].clone();
            assert!(done.is_string(), "{done}");
            if hosts[0].log().contains("taken back to a snapshot") {
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(wait_ms));
        hosts[0].kill();
        drop(asked);
        hosts[0].start();
        hosts[0].await_pool();
        let socket = open(&hosts[1], &volume, "steal").unwrap_or_else(|e| panic!("{e}\n{}", hosts[1].log()));
        assert_same(&cluster, &hosts[1], &socket, &volume, &before);
        assert!(marked(&cluster, &volume).is_null());
        now = fill(&cluster, &socket, &volume, "now");
        let back = |s: &Value| s["members"][0]["state"] == "INSYNC";
        hosts[1].ask_until("session.show", &json!({ "volume": volume }), back);
    }
    assert_same(&cluster, &hosts[1], &socket, &volume, &now);
    close(&hosts[1], &volume);

    // Nobody is killed: it is answered when it is done, and the snapshot may go.
    caretaker(&hosts[0], &volume);
    let mut client = hosts[0].client();
    client.stream.set_read_timeout(Some(TRIED)).expect("set");
    let done = client.ask("volume.revert", revert).unwrap_or_else(|e| panic!("{e}\n{}", hosts[0].log()));
    let size = fs::metadata(&before).expect("there").len();
    assert_eq!((&done["snapshot"], &done["bytes"]), (&json!(id), &json!(size.to_string())));
    let nothing = json!({ "volume": volume, "snapshot": super::support::host::uuid() });
    let none = hosts[0].try_ask("volume.revert", nothing).expect_err("no such snapshot");
    assert_eq!(none["code"], "E-SNAP-09");
    hosts[0].ask("snapshot.delete", of(&volume, &id));
    close(&hosts[0], &volume);
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    assert_same(&cluster, &hosts[0], &socket, &volume, &before);
    close(&hosts[0], &volume);
}
