//! A volume whose head is deleted, on whole daemons: pools on XFS (which takes root), and a process that is killed in the middle.

use rustix::fs::statvfs;
use serde_json::{Value, json};

use super::reverts::caretaker;
use super::snapshots::{assert_snapshot, await_count, fill, of, taken};
use super::support::host::{Cluster, Host, SIZE, close, make_volume, open};

/// Bytes that the file system of the host's pool has left, by its own word.
fn free(host: &Host) -> u64 {
    let found = statvfs(host.pool_dir().as_path()).expect("a file system");
    found.f_bavail * found.f_frsize
}

/// The head had all its blocks for itself. Its snapshot is read as ever, on another host too; no guest opens the volume any more;
/// what only its head had goes, whatever dies meanwhile, and does not come back. Without its snapshot it is a deleted volume.
#[test]
fn a_volume_without_its_head_lives_on_in_its_snapshot() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let this = json!({ "volume": volume });
    let head = || -> Value { cluster.get(&format!("/weft/v1/vol/{volume}/state"))["head"].clone() };
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    let before = fill(&cluster, &socket, &volume, "before");
    let id = taken(&hosts[0], &volume, "one");
    fill(&cluster, &socket, &volume, "now");
    let keep = json!({ "volume": volume, "keep_snapshots": true });
    let used = hosts[1].try_ask("volume.delete", keep.clone()).expect_err("it is used");
    assert_eq!(used["code"], "E-VOL-12");
    close(&hosts[0], &volume);
    for _ in 0..2 {
        hosts[1].ask("volume.delete", keep.clone());
    }
    assert_eq!(head()["data"], "kept");
    for host in &hosts {
        for mode in ["closed", "steal"] {
            assert_eq!(open(host, &volume, mode).expect_err("no head")["code"], "E-VOL-19", "{}", host.log());
        }
        assert_snapshot(&cluster, host, &volume, &id, &before);
    }

    let had = free(&hosts[1]);
    caretaker(&hosts[0], &volume);
    hosts[0].ask("volume.release", this.clone());
    hosts[0].kill();
    assert_ne!(head()["data"], "kept");
    hosts[0].start();
    hosts[0].await_pool();
    caretaker(&hosts[0], &volume);
    hosts[0].ask_until("why", &this, |why| why["record"]["head"]["data"] == "released");
    close(&hosts[0], &volume);
    // It may say so somewhat later.
    hosts[1].ask_until("pool.list", &json!({}), |_| free(&hosts[1]) >= had + SIZE / 4 * 3);
    for host in &hosts {
        assert_snapshot(&cluster, host, &volume, &id, &before);
    }
    let gone = hosts[0].try_ask("volume.restore", this.clone()).expect_err("it is gone");
    assert_eq!(gone["code"], "E-VOL-20");

    caretaker(&hosts[0], &volume);
    hosts[0].ask("snapshot.delete", of(&volume, &id));
    await_count(&hosts[0], &volume, 0);
    close(&hosts[0], &volume);
    hosts[0].ask("volume.delete", this);
    let record = cluster.get(&format!("/weft/v1/vol/{volume}/state"));
    assert_eq!(record["deleted"], record["head"]["deleted"], "since its head is");
}
