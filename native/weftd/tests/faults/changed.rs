//! What has changed between snapshots, asked of whole daemons on XFS, and of what they export.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::guests::Guest;
use super::snapshots::{bytes_on, fill, read_on, taken};
use super::support::host::{Cluster, Host, SIZE, close, make_volume, nbd, open, uuid};

const WRITE: u16 = 1;
const WRITE_ZEROES: u16 = 6;
const BLOCK: usize = 4096;
const GRAIN: u64 = 64 * 1024;

fn asking(volume: &str, id: &str, since: &str, offset: u64, len: u64) -> Value {
    let (offset, len) = (offset.to_string(), len.to_string());
    json!({ "volume": volume, "id": id, "since": since, "offset": offset, "len": len })
}

/// The grains of the whole volume that a host says have changed, and whether it is sure.
fn changed(host: &Host, volume: &str, id: &str, since: &str) -> (Vec<u64>, bool) {
    let told = host.ask("snapshot.changed", asking(volume, id, since, 0, u64::MAX));
    assert_eq!((&told["offset"], &told["len"]), (&json!("0"), &json!(SIZE.to_string())), "all of it");
    (grains(&told), told["exact"] == true)
}

fn grains(told: &Value) -> Vec<u64> {
    assert_eq!(told["grain"], GRAIN);
    let bits = STANDARD.decode(told["bitmap"].as_str().expect("text")).expect("base64");
    let first = told["offset"].as_str().expect("text").parse::<u64>().expect("a number") / GRAIN;
    let set = |n: &u64| bits[usize::try_from(n / 8).expect("few")] & 0x80 >> (n % 8) != 0;
    (0..8 * bits.len() as u64).filter(set).map(|n| first + n).collect()
}

/// What differs in truth.
fn differs(a: &[u8], b: &[u8]) -> Vec<u64> {
    let size = usize::try_from(GRAIN).expect("small");
    let grains = (0..).zip(a.chunks(size).zip(b.chunks(size)));
    grains.filter(|(_, (a, b))| a != b).map(|(n, _)| n).collect()
}

fn write(guest: &mut Guest, block: u64, bytes: &[u8]) {
    guest.send(WRITE, block, block * BLOCK as u64, 4096);
    guest.0.write_all(bytes).expect("sent");
    assert_eq!(guest.reply(), (block, 0));
}

/// The grains that `nbdinfo` shows as changed in a metadata context of an export.
fn mapped(socket: &Path, id: &str, context: &str, word: &str) -> Result<Vec<u64>, String> {
    let mut nbdinfo = Command::new("nbdinfo");
    let output = nbdinfo.arg(format!("--map={context}")).arg(nbd(socket, id)).output().expect("nbdinfo runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let rows = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let dirty = rows.filter(|row| row[2..].contains(&word));
    Ok(dirty.flat_map(|row| number(row[0]) / GRAIN..(number(row[0]) + number(row[1])) / GRAIN).collect())
}

/// Three snapshots of two copies; blocks are written, written as they were, and zeroed in between. Each host says what has
/// changed, the one without a copy as well, and so does what it exports; also with one copy gone.
#[test]
fn what_has_changed_is_told_by_every_host_and_its_exports() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let third = cluster.host(3);
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let socket = open(&third, &volume, "closed").expect("opens");
    let before = fs::read(fill(&cluster, &socket, &volume, "before")).expect("read");
    let a = taken(&third, &volume, "a");
    let mut guest = Guest::connect(&socket);
    write(&mut guest, 20, &[7; BLOCK]);
    write(&mut guest, 100, &before[100 * BLOCK..][..BLOCK]);
    guest.send(WRITE_ZEROES, 1, 33 * GRAIN, 65536);
    assert_eq!(guest.reply(), (1, 0));
    let b = taken(&third, &volume, "b");
    write(&mut guest, 2047, &[8; BLOCK]);
    write(&mut guest, 33 * 16, &[0; BLOCK]);
    let c = taken(&third, &volume, "c");
    write(&mut guest, 500, &[9; BLOCK]);
    let content = |id: &str| bytes_on(&cluster, &third, &volume, id);
    let (in_a, in_b, in_c) = (content(&a), content(&b), content(&c));
    for (id, since, expected, truth) in [
        (&b, &a, vec![1, 33], differs(&in_a, &in_b)),
        (&c, &b, vec![127], differs(&in_b, &in_c)),
        (&c, &a, vec![1, 33, 127], differs(&in_a, &in_c)),
        (&a, &c, vec![1, 33, 127], differs(&in_a, &in_c)),
        (&b, &b, vec![], vec![]),
    ] {
        assert_eq!(truth, expected);
        for host in [&third, &hosts[0], &hosts[1]] {
            assert_eq!(changed(host, &volume, id, since), (expected.clone(), true), "{}", host.log());
        }
    }
    // A part of it.
    let part = third.ask("snapshot.changed", asking(&volume, &c, &a, 32 * GRAIN, GRAIN + 1));
    assert_eq!(
        (&part["offset"], &part["len"]),
        (&json!((32 * GRAIN).to_string()), &json!((GRAIN + 1).to_string()))
    );
    assert_eq!((grains(&part), &part["bitmap"]), (vec![33], &json!("QA==")));

    let export = read_on(&third, &volume, &c).expect("opens");
    let names = |since: &str| {
        [
            (format!("weft:changed-since:{since}"), "1"),
            (format!("qemu:dirty-bitmap:weft-since-{since}"), "dirty"),
        ]
    };
    for (since, expected) in [(&a, vec![1, 33, 127]), (&b, vec![127])] {
        for (context, word) in names(since) {
            assert_eq!(mapped(&export, &c, &context, word), Ok(expected.clone()), "{context}");
        }
    }
    third.ask("snapshot.close", json!({ "volume": volume, "id": c }));
    let export = read_on(&third, &volume, &a).expect("opens");
    for (context, word) in names(&b) {
        mapped(&export, &a, &context, word).expect_err("b is younger");
    }
    third.ask("snapshot.close", json!({ "volume": volume, "id": a }));

    for (ask, code) in [
        (asking(&volume, &c, &a, 1, GRAIN), "E-ARG-02"),
        (asking(&volume, &c, &a, 0, 0), "E-ARG-02"),
        (asking(&volume, &c, &a, SIZE, 1), "E-ARG-02"),
        (asking(&volume, &c, &uuid(), 0, GRAIN), "E-SNAP-09"),
        (asking(&volume, &uuid(), &a, 0, GRAIN), "E-SNAP-09"),
        (asking(&uuid(), &c, &a, 0, GRAIN), "E-SNAP-09"),
    ] {
        assert_eq!(
            third.try_ask("snapshot.changed", ask.clone()).expect_err("refused")["code"],
            code,
            "{ask}"
        );
    }
    drop(guest);
    close(&third, &volume);
    hosts[0].kill();
    assert_eq!(changed(&third, &volume, &c, &a), (vec![1, 33, 127], true));
}

/// The data of the newest of two snapshots is destroyed while a host is away that has a copy; another one is killed in the middle.
/// Nobody reads it from then on, what differs is told as before, and the copy that was away does it when it is back.
#[test]
fn what_has_changed_is_told_of_snapshots_whose_data_is_gone() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let third = cluster.host(3);
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let socket = open(&third, &volume, "closed").expect("opens");
    fill(&cluster, &socket, &volume, "before");
    let a = taken(&third, &volume, "a");
    let mut guest = Guest::connect(&socket);
    write(&mut guest, 20, &[7; BLOCK]);
    let b = taken(&third, &volume, "b");
    hosts[1].kill();
    write(&mut guest, 100, &[8; BLOCK]);
    let of_b = json!({ "volume": volume, "id": b });
    let export = read_on(&third, &volume, &b).expect("opens");
    assert!(export.exists());
    let refused = third.try_ask("snapshot.destroy_data", of_b.clone()).expect_err("it is open");
    assert_eq!(refused["code"], "E-SNAP-04");
    third.ask("snapshot.close", of_b.clone());
    third.ask_until("snapshot.open_list", &json!({}), |list| list["snapshots"] == json!([]));
    let given_up = || third.try_ask("snapshot.destroy_data", of_b.clone());
    let mut outcome = given_up();
    while outcome.as_ref().is_err_and(|error| error["code"] == "E-SNAP-04") {
        // The key that says it is open goes a moment later.
        outcome = given_up();
    }
    outcome.expect("nobody has it open");
    hosts[0].kill();
    hosts[0].start();
    hosts[0].await_pool();
    let refused = read_on(&third, &volume, &b).expect_err("its data is gone");
    assert_eq!(refused["code"], "E-SNAP-18");
    let gone = |host: &Host| {
        let of = |image: &Value| image["snap"] == json!(b) && image["destroyed"] == true;
        let told = |list: &Value| list["images"].as_array().is_some_and(|images| images.iter().any(of));
        host.ask_until("image.list", &json!({}), told);
    };
    gone(&hosts[0]);
    hosts[1].start();
    hosts[1].await_pool();
    gone(&hosts[1]);
    let in_sync =
        |s: &Value| s["members"].as_array().is_some_and(|m| m.iter().all(|m| m["state"] == "INSYNC"));
    third.ask_until("session.show", &json!({ "volume": volume }), in_sync);
    write(&mut guest, 2047, &[8; BLOCK]);
    let c = taken(&third, &volume, "c");
    for host in [&third, &hosts[0], &hosts[1]] {
        assert_eq!(changed(host, &volume, &c, &b), (vec![6, 127], true), "{}", host.log());
        assert_eq!(changed(host, &volume, &b, &a), (vec![1], true), "{}", host.log());
    }
    third.ask("snapshot.delete", of_b);
    drop(guest);
    close(&third, &volume);
}

/// One snapshot is taken without r1, the next one without r0: no copy took both. What is data in either counts.
#[test]
fn where_no_copy_took_both_all_data_counts_as_changed() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let third = cluster.host(3);
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let socket = open(&third, &volume, "closed").expect("opens");
    let mut guest = Guest::connect(&socket);
    write(&mut guest, 20, &[7; BLOCK]);
    write(&mut guest, 40, &[7; BLOCK]);
    let mut snapshots = Vec::new();
    for (away, name) in [(1, "a"), (0, "b")] {
        hosts[away].kill();
        write(&mut guest, 60, name.as_bytes().repeat(BLOCK).as_slice());
        snapshots.push(taken(&third, &volume, name));
        hosts[away].start();
        hosts[away].await_pool();
        let in_sync =
            |s: &Value| s["members"].as_array().is_some_and(|m| m.iter().all(|m| m["state"] == "INSYNC"));
        third.ask_until("session.show", &json!({ "volume": volume }), in_sync);
    }
    assert_eq!(changed(&third, &volume, &snapshots[1], &snapshots[0]), (vec![1, 2, 3], false));
    drop(guest);
    close(&third, &volume);
}
