//! Snapshots on whole daemons: pools on XFS (which takes root), guests that write at full speed, processes that are killed
//! in the middle.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::guests::Guest;
use super::support::host::{
    Client, Cluster, Host, SIZE, assert_same, close, copy, make_regions_of, make_volume, nbd, open,
    random_file, uuid,
};

const READ: u16 = 0;
const WRITE: u16 = 1;
const BLOCK: usize = 4096;
const BLOCKS: usize = 2048;

/// A snapshot is tried for 20 s before who asks is told that there is none.
pub(super) const TRIED: Duration = Duration::from_secs(40);

fn asking(volume: &str, id: &str, name: &str) -> Value {
    json!({ "volume": volume, "id": id, "name": name, "created_by": "test" })
}

fn create(host: &Host, volume: &str, id: &str, name: &str) -> Result<Value, Value> {
    let mut client = host.client();
    client.stream.set_read_timeout(Some(TRIED)).expect("set");
    client.ask("snapshot.create", asking(volume, id, name))
}

/// Asks without waiting for the answer.
fn begin(host: &Host, volume: &str, id: &str, name: &str) -> Client {
    let mut client = host.client();
    client.stream.set_read_timeout(Some(TRIED)).expect("set");
    let line = json!({ "id": 1, "method": "snapshot.create", "params": asking(volume, id, name) });
    client.stream.write_all(format!("{line}\n").as_bytes()).expect("sent");
    client
}

pub(super) fn taken(host: &Host, volume: &str, name: &str) -> String {
    let id = uuid();
    create(host, volume, &id, name).unwrap_or_else(|error| panic!("{name}: {error}\n{}", host.log()));
    id
}

pub(super) fn of(volume: &str, id: &str) -> Value {
    json!({ "volume": volume, "id": id })
}

pub(super) fn read_on(host: &Host, volume: &str, id: &str) -> Result<PathBuf, Value> {
    let ask = json!({ "volume": volume, "id": id, "export": { "nbd": { "path": null } } });
    let opened = host.try_ask("snapshot.open", ask.clone())?;
    assert_eq!(host.ask("snapshot.open", ask), opened, "asked again");
    Ok(PathBuf::from(opened["path"].as_str().expect("a path")))
}

/// The snapshot as this host reads it, whose own copy it asks first.
pub(super) fn bytes_on(cluster: &Cluster, host: &Host, volume: &str, id: &str) -> Vec<u8> {
    let socket = read_on(host, volume, id).unwrap_or_else(|error| panic!("{error}\n{}", host.log()));
    let file = cluster.dir.path().join("of-a-snapshot");
    copy(&nbd(&socket, id), file.to_str().expect("UTF-8"));
    host.ask("snapshot.close", of(volume, id));
    fs::read(file).expect("read")
}

pub(super) fn assert_snapshot(cluster: &Cluster, host: &Host, volume: &str, id: &str, file: &Path) {
    let same = bytes_on(cluster, host, volume, id) == fs::read(file).expect("read");
    assert!(same, "the snapshot is another one\n{}", host.log());
}

pub(super) fn fill(cluster: &Cluster, socket: &Path, volume: &str, name: &str) -> PathBuf {
    let file = random_file(cluster, name);
    copy(file.to_str().expect("UTF-8"), &nbd(socket, volume));
    file
}

pub(super) fn key(cluster: &Cluster, volume: &str, id: &str) -> Value {
    cluster.get(&format!("/weft/v1/vol/{volume}/snap/{id}"))
}

/// Waits until the volume has so many snapshots, those that go counted.
pub(super) fn await_count(host: &Host, volume: &str, count: u32) {
    let shown = |why: &Value| why["record"]["snaps"]["count"] == count;
    host.ask_until("why", &json!({ "volume": volume }), shown);
}

/// What the host's copy has of snapshots, as (snapshot, state).
pub(super) fn images(host: &Host) -> Vec<(String, String)> {
    let list = host.ask("image.list", json!({}));
    let images = list["images"].as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    images.map(|image| (text(&image["snap"]), text(&image["state"]))).collect()
}

pub(super) fn await_images(host: &Host, count: usize) {
    host.ask_until("image.list", &json!({}), |l| l["images"].as_array().is_some_and(|i| i.len() == count));
}

/// Two copies, read from a third host that has none: what was there when the snapshot was taken, whatever is written
/// since; until it is deleted, which nobody does while it is open somewhere.
#[test]
fn a_snapshot_is_what_was_there_on_every_host_until_it_is_deleted() {
    let cluster = Cluster::start();
    let hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let third = cluster.host(3);
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let not_open = create(&hosts[0], &volume, &uuid(), "early").expect_err("not open");
    assert_eq!(not_open["code"], "E-VOL-13");
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    let before = fill(&cluster, &socket, &volume, "before");
    let id = uuid();
    let created =
        create(&hosts[0], &volume, &id, "one").unwrap_or_else(|e| panic!("{e}\n{}", hosts[0].log()));
    assert_eq!((&created["id"], &created["members"]), (&json!(id), &json!([0, 1])), "{created}");
    let again = create(&hosts[0], &volume, &id, "one").expect("the same");
    assert_eq!((&again["generation"], &again["held_ms"]), (&created["generation"], &json!("0")));
    let now = fill(&cluster, &socket, &volume, "now");

    let there = key(&cluster, &volume, &id);
    assert_eq!(
        (&there["state"], &there["logged"], &there["name"]),
        (&json!("READY"), &json!(true), &json!("one"))
    );
    assert_eq!(there["members"][1], json!({ "rid": 1, "node": hosts[1].id, "pool": hosts[1].pool }));
    for host in [&third, &hosts[1], &hosts[0]] {
        assert_snapshot(&cluster, host, &volume, &id, &before);
    }
    assert_same(&cluster, &hosts[0], &socket, &volume, &now);
    for host in &hosts {
        assert_eq!(images(host), [(id.clone(), "ready".to_owned())]);
    }

    // Nobody writes to it.
    let reader = read_on(&third, &volume, &id).expect("opens");
    let mut guest = Guest::connect(&reader);
    guest.send(WRITE, 1, 0, 4096);
    guest.0.write_all(&[7; 4096]).expect("sent");
    assert_eq!(guest.reply(), (1, 1), "EPERM");
    let listed = third.ask("snapshot.open_list", json!({}));
    assert_eq!((&listed["snapshots"][0]["id"], &listed["snapshots"][0]["clients"]), (&json!(id), &json!(1)));

    let taken_name = create(&hosts[0], &volume, &uuid(), "one").expect_err("a name twice");
    assert_eq!((&taken_name["code"], &taken_name["facts"]["snapshot"]), (&json!("E-SNAP-02"), &json!(id)));
    for name in ["", "Two", "-a", "a b", &"a".repeat(64), &uuid()] {
        assert_eq!(
            create(&hosts[0], &volume, &uuid(), name).expect_err("no name")["code"],
            "E-ARG-02",
            "{name}"
        );
    }
    let in_use = hosts[0].try_ask("snapshot.delete", of(&volume, &id)).expect_err("open on the third host");
    assert_eq!((&in_use["code"], &in_use["facts"]["hosts"]), (&json!("E-SNAP-04"), &json!([third.id])));
    drop(guest);
    third.ask("snapshot.close", of(&volume, &id));
    hosts[0].ask("snapshot.protect", json!({ "volume": volume, "id": id, "protected": true }));
    assert_eq!(
        hosts[0].try_ask("snapshot.delete", of(&volume, &id)).expect_err("protected")["code"],
        "E-SNAP-05"
    );
    hosts[0].ask("snapshot.protect", json!({ "volume": volume, "id": id, "protected": false }));
    hosts[0].ask("snapshot.rename", json!({ "volume": volume, "id": id, "name": "two" }));
    assert_eq!(key(&cluster, &volume, &id)["name"], "two");
    let other = taken(&hosts[0], &volume, "one");
    let rename = json!({ "volume": volume, "id": id, "name": "one" });
    assert_eq!(hosts[0].try_ask("snapshot.rename", rename).expect_err("taken")["code"], "E-SNAP-02");

    close(&hosts[0], &volume);
    let refused = hosts[0].try_ask("volume.delete", json!({ "volume": volume })).expect_err("it has two");
    assert_eq!((&refused["code"], &refused["facts"]["snapshots"]), (&json!("E-SNAP-10"), &json!(2)));
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    for id in [&id, &other] {
        hosts[0].ask("snapshot.delete", of(&volume, id));
    }
    await_count(&hosts[0], &volume, 0);
    for host in &hosts {
        await_images(host, 0);
    }
    let gone = hosts[0].try_ask("snapshot.delete", of(&volume, &id)).expect_err("gone");
    assert_eq!(gone["code"], "E-SNAP-09");
    assert_eq!(read_on(&third, &volume, &id).expect_err("gone")["code"], "E-SNAP-09");
    assert_same(&cluster, &hosts[0], &socket, &volume, &now);
    close(&hosts[0], &volume);
    hosts[0].ask("volume.delete", json!({ "volume": volume }));
}

/// Where a copy lies on another file system, nothing is begun, and the guest does not notice.
#[test]
fn a_volume_with_a_copy_elsewhere_than_on_xfs_has_no_snapshots() {
    let cluster = Cluster::start();
    let able = cluster.xfs_host(1);
    let mut other = cluster.host(2);
    other.make_pool();
    let volume = make_volume(&[&able, &other]);
    let socket = open(&able, &volume, "closed").expect("opens");
    let file = fill(&cluster, &socket, &volume, "a");
    let refused = create(&able, &volume, &uuid(), "one").expect_err("not there");
    assert_eq!((&refused["code"], &refused["facts"]["rid"]), (&json!("E-SNAP-01"), &json!(1)), "{refused}");
    assert_eq!(refused["facts"]["pool"], other.pool.as_str());
    assert_same(&cluster, &able, &socket, &volume, &file);
    await_images(&able, 0);
    close(&able, &volume);
}

/// Several snapshots with writes in between; killed and stopped in between as well, and so much is written to the pool's
/// log that it forgets: each is what it was, also when others are deleted, whichever first.
#[test]
fn snapshots_outlive_processes_and_go_in_any_order() {
    for number in [1, 2] {
        let cluster = Cluster::start();
        let mut host = cluster.xfs_host(number);
        let volume = make_regions_of(&[&host], SIZE, 16);
        let mut socket = open(&host, &volume, "closed").expect("opens");
        let mut bytes = fs::read(fill(&cluster, &socket, &volume, "a")).expect("read");
        let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
        for round in 0..18u8 {
            kept.push((taken(&host, &volume, &format!("s{round}")), bytes.clone()));
            // Each region's first write: a record of the log.
            let mut guest = Guest::connect(&socket);
            for region in 0..128usize {
                let at = region * (1 << 16) + usize::from(round) * BLOCK % (1 << 16);
                guest.send(WRITE, region as u64, at as u64, 4096);
                guest.0.write_all(&[round + 1; BLOCK]).expect("sent");
                assert_eq!(guest.reply(), (region as u64, 0), "{}", host.log());
                bytes[at..at + BLOCK].fill(round + 1);
            }
            drop(guest);
            match round {
                5 | 17 => {
                    host.kill();
                    host.start();
                    host.await_pool();
                    socket = open(&host, &volume, "closed").expect("opens after a kill");
                }
                11 => {
                    close(&host, &volume);
                    host.terminate();
                    host.start();
                    host.await_pool();
                    socket = open(&host, &volume, "closed").expect("opens after a stop");
                }
                _ => {}
            }
        }
        for (id, was) in &kept {
            assert!(bytes_on(&cluster, &host, &volume, id) == *was, "{id}\n{}", host.log());
        }
        // The process sees it, whichever that is by then.
        let first = kept[0].0.clone();
        let slot_of = |host: &Host, name: &str| {
            host.pool_dir().join("images").join(format!("{volume}.0")).join(&first).join(name)
        };
        let image = slot_of(&host, "image.a");
        let slot = fs::read(&image).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
        assert!(
            slot.iter().any(|byte| *byte != 0),
            "the log has not forgotten anything yet: the plot is too short"
        );
        for (nth, victim) in [9, 0, 15, 3, 4, 2].into_iter().enumerate() {
            let (id, _) = kept.remove(victim.min(kept.len() - 1).max(1));
            host.ask("snapshot.delete", of(&volume, &id));
            if nth == 2 {
                host.kill();
                host.start();
                host.await_pool();
                socket = open(&host, &volume, "closed").expect("opens");
            }
        }
        await_count(&host, &volume, u32::try_from(kept.len()).expect("few"));
        await_images(&host, kept.len());
        for (id, was) in &kept {
            assert!(bytes_on(&cluster, &host, &volume, id) == *was, "{id}\n{}", host.log());
        }
        let whole = cluster.dir.path().join("whole");
        fs::write(&whole, &bytes).expect("written");
        assert_same(&cluster, &host, &socket, &volume, &whole);
        close(&host, &volume);

        // What both files of an image have lost is not guessed, nor what one had whose directory is gone: the copy's checkpoint
        // names both (R24). They are damaged; the copy is not, and what needs none of them is as it was.
        for name in ["image.a", "image.b"] {
            fs::write(slot_of(&host, name), [0x55; BLOCK]).expect("damaged");
        }
        let (last, _) = kept.pop().expect("several are left");
        let has = |image: &Value| image["snap"] == json!(last) && image["own_bytes"] != "0";
        let told = |list: &Value| list["images"].as_array().is_some_and(|images| images.iter().any(has));
        host.ask_until("image.list", &json!({}), told);
        let gone = host.pool_dir().join("images").join(format!("{volume}.0")).join(&last);
        fs::remove_dir_all(gone).expect("removed");
        host.kill();
        host.start();
        host.await_pool();
        let list = host.ask("replica.list", json!({}));
        assert_ne!(list["replicas"][0]["state"], "quarantined", "{list}\n{}", host.log());
        let images = host.ask("image.list", json!({}));
        for image in images["images"].as_array().expect("a list") {
            let lost = [&first, &last].iter().any(|id| image["snap"] == json!(id));
            assert_eq!(image["damaged"] != "0", lost, "{image}\n{}", host.log());
        }
        let socket = open(&host, &volume, "closed").expect("opens");
        assert_same(&cluster, &host, &socket, &volume, &whole);
        close(&host, &volume);
    }
}

/// R24: somebody removes a snapshot's directory while the host runs. That snapshot is damaged and says so at each read; the
/// guest writes on, and the copy serves after a restart.
#[test]
fn a_snapshot_whose_files_are_gone_is_damaged_alone() {
    let cluster = Cluster::start();
    let mut host = cluster.xfs_host(1);
    let volume = make_regions_of(&[&host], SIZE, 16);
    let socket = open(&host, &volume, "closed").expect("opens");
    fill(&cluster, &socket, &volume, "a");
    let id = taken(&host, &volume, "s");
    let dir = host.pool_dir().join("images").join(format!("{volume}.0")).join(&id);
    fs::remove_dir_all(dir).expect("removed");
    let new = fill(&cluster, &socket, &volume, "b");
    let assert_lost = |host: &Host| {
        let socket = read_on(host, &volume, &id).unwrap_or_else(|error| panic!("{error}\n{}", host.log()));
        let mut reader = Guest::connect(&socket);
        reader.send(READ, 1, 0, 4096);
        let (_, error) = reader.reply();
        assert_ne!(error, 0, "what was there is not known\n{}", host.log());
        host.ask("snapshot.close", of(&volume, &id));
    };
    assert_lost(&host);
    close(&host, &volume);
    for kills in [true, false] {
        if kills {
            host.kill();
        } else {
            host.terminate();
        }
        host.start();
        host.await_pool();
        let list = host.ask("replica.list", json!({}));
        assert_ne!(list["replicas"][0]["state"], "quarantined", "{list}\n{}", host.log());
        let socket = open(&host, &volume, "closed").expect("opens after a start");
        assert_same(&cluster, &host, &socket, &volume, &new);
        assert_lost(&host);
        close(&host, &volume);
    }
    open(&host, &volume, "closed").expect("opens");
    host.ask("snapshot.delete", of(&volume, &id));
    await_count(&host, &volume, 0);
    await_images(&host, 0);
    close(&host, &volume);
}

/// A guest that writes one block after the other as fast as it can, each with a number of its own. What it was answered
/// before a snapshot was asked for is in the snapshot; what it sent after the answer is not; and both copies took the same.
#[test]
fn a_snapshot_under_full_load_is_one_moment_of_every_copy() {
    let cluster = Cluster::start();
    let hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    let (sent, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    let writer = {
        let (socket, sent, done, over) = (socket.clone(), sent.clone(), done.clone(), over.clone());
        std::thread::spawn(move || {
            const DEPTH: u64 = 16;
            let mut guest = Guest::connect(&socket);
            let mut first = 1;
            while !over.load(Ordering::SeqCst) {
                // In rounds of so many at a time: within one, any may come before any other.
                for number in first..first + DEPTH {
                    sent.store(number, Ordering::SeqCst);
                    let at = number * 37 % BLOCKS as u64 * BLOCK as u64;
                    guest.send(WRITE, number, at, 4096);
                    guest.0.write_all(&number.to_le_bytes().repeat(BLOCK / 8)).expect("sent");
                }
                for _ in 0..DEPTH {
                    assert_eq!(guest.reply().1, 0);
                }
                first += DEPTH;
                done.store(first - 1, Ordering::SeqCst);
            }
        })
    };
    let mut snapshots = Vec::new();
    for round in 0..8 {
        let goal = done.load(Ordering::SeqCst) + 200;
        while done.load(Ordering::SeqCst) < goal {
            std::thread::yield_now();
        }
        let floor = done.load(Ordering::SeqCst);
        let id = taken(&hosts[0], &volume, &format!("s{round}"));
        snapshots.push((id, floor, sent.load(Ordering::SeqCst)));
    }
    over.store(true, Ordering::SeqCst);
    writer.join().expect("the guest");
    for (id, floor, ceiling) in &snapshots {
        let bytes = bytes_on(&cluster, &hosts[0], &volume, id);
        assert!(bytes == bytes_on(&cluster, &hosts[1], &volume, id), "the copies differ\n{}", hosts[1].log());
        for (block, data) in bytes.chunks_exact(BLOCK).enumerate() {
            let number = u64::from_le_bytes(data[..8].try_into().expect("eight"));
            assert!(data.chunks_exact(8).all(|word| word == &data[..8]), "block {block} is torn");
            assert!(number <= *ceiling, "block {block} has {number}, sent after {ceiling}");
            let newest = (1..=*floor).rev().find(|n| n * 37 % BLOCKS as u64 == block as u64).unwrap_or(0);
            assert!(number >= newest, "block {block} has {number}, {newest} was answered before");
        }
    }
    close(&hosts[0], &volume);
}

/// D10: the owner is killed while a snapshot is taken, earlier or later. Whoever asks again with the same identifier gets
/// it, and no copy keeps anything else.
#[test]
fn a_snapshot_whose_owner_dies_is_taken_by_who_comes_next() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let mut kept = Vec::new();
    for (round, pause_ms) in [0, 4, 8, 12, 16, 24, 40].into_iter().enumerate() {
        let (first, second) = hosts.split_at_mut(1);
        let (owner, next) = (&mut first[0], &second[0]);
        let socket = open(owner, &volume, "steal").unwrap_or_else(|e| panic!("{e}\n{}", owner.log()));
        let file = fs::read(fill(&cluster, &socket, &volume, "a")).expect("read");
        let (id, name) = (uuid(), format!("s{round}"));
        let _asked = begin(owner, &volume, &id, &name);
        std::thread::sleep(Duration::from_millis(pause_ms));
        owner.kill();
        let socket = open(next, &volume, "steal").unwrap_or_else(|e| panic!("{e}\n{}", next.log()));
        create(next, &volume, &id, &name).unwrap_or_else(|e| panic!("{pause_ms} ms: {e}\n{}", next.log()));
        kept.push((id, file));
        copy(&nbd(&socket, &volume), "null:");
        owner.start();
        owner.await_pool();
        let in_sync =
            |s: &Value| s["members"].as_array().is_some_and(|m| m.iter().all(|m| m["state"] == "INSYNC"));
        next.ask_until("session.show", &json!({ "volume": volume }), in_sync);
        for (id, file) in &kept {
            assert!(bytes_on(&cluster, next, &volume, id) == *file, "{pause_ms} ms\n{}", next.log());
        }
        close(next, &volume);
    }
    // What came to nothing has gone, also where the owner died.
    for host in &hosts {
        host.ask_until("image.list", &json!({}), |list| {
            list["images"]
                .as_array()
                .is_some_and(|images| images.iter().all(|image| image["state"] == "ready"))
        });
    }
}

/// R15: the owner is killed while the store does not answer, so that copies have images of which nobody will ever know.
/// They stay for as long as that owner's epoch does, and go with the next one.
#[test]
fn images_of_an_attempt_that_came_to_nothing_go_with_its_epoch() {
    let cluster = Cluster::start();
    let mut hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    let file = fill(&cluster, &socket, &volume, "a");
    let id = uuid();
    cluster.etcd.halt(true);
    let _asked = begin(&hosts[0], &volume, &id, "one");
    let prepared = vec![(id.clone(), "prepared".to_owned())];
    hosts[1].ask_until("image.list", &json!({}), |list| list["images"][0]["state"] == "prepared");
    hosts[0].kill();
    cluster.etcd.halt(false);
    let restart = |host: &mut Host| {
        host.kill();
        host.start();
        host.await_pool();
    };
    restart(&mut hosts[1]);
    hosts[1].ask("why", json!({ "volume": volume }));
    assert_eq!(images(&hosts[1]), prepared, "the owner may still be there\n{}", hosts[1].log());

    let socket =
        open(&hosts[1], &volume, "steal").unwrap_or_else(|error| panic!("{error}\n{}", hosts[1].log()));
    assert_same(&cluster, &hosts[1], &socket, &volume, &file);
    close(&hosts[1], &volume);
    for host in &mut hosts {
        restart(host);
        await_images(host, 0);
    }
    let socket = open(&hosts[1], &volume, "closed").expect("opens");
    let id = taken(&hosts[1], &volume, "one");
    assert_snapshot(&cluster, &hosts[1], &volume, &id, &file);
    assert_same(&cluster, &hosts[1], &socket, &volume, &file);
    close(&hosts[1], &volume);
}

/// A copy's process is killed while snapshots are taken: they are taken with whoever is left, or not, and the answer says
/// which; with the copy back, all that were told of are there.
#[test]
fn a_copy_that_dies_in_the_middle_does_not_keep_snapshots_from_being_taken() {
    let cluster = Cluster::start();
    let owner = cluster.xfs_host(1);
    let mut member = cluster.xfs_host(2);
    let volume = make_volume(&[&owner, &member]);
    let socket = open(&owner, &volume, "closed").expect("opens");
    let mut kept = Vec::new();
    for round in 0..3 {
        let file = fs::read(fill(&cluster, &socket, &volume, "a")).expect("read");
        let id = uuid();
        let name = format!("s{round}");
        let mut asked = begin(&owner, &volume, &id, &name);
        std::thread::sleep(Duration::from_millis(5 * round));
        member.kill();
        let mut answer = String::new();
        asked.reader.read_line(&mut answer).expect("an answer");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let created = &answer["result"];
        assert!(created.is_object(), "{answer}\n{}", owner.log());
        kept.push((id, file, created["members"].clone()));
        // Deleted while the copy is away: it learns of it when it is back.
        let late = taken(&owner, &volume, &format!("t{round}"));
        owner.ask("snapshot.delete", of(&volume, &late));
        member.start();
        member.await_pool();
        let back = |s: &Value| s["members"][1]["state"] == "INSYNC";
        owner.ask_until("session.show", &json!({ "volume": volume }), back);
    }
    await_count(&owner, &volume, 3);
    for (id, file, members) in &kept {
        assert!(bytes_on(&cluster, &owner, &volume, id) == *file, "{id}\n{}", owner.log());
        assert!(members.as_array().is_some_and(|m| m.contains(&json!(0))), "{members}");
    }
    close(&owner, &volume);
}

/// Fills the file system under a host's pool to its last byte.
fn leave_no_room(host: &Host) {
    let ballast = host.pool_dir().join("ballast");
    let mut file = fs::File::options().create(true).append(true).open(ballast).expect("made");
    for piece in [1 << 20, 64 << 10, 4096, 1] {
        while file.write(&vec![0x55; piece]).is_ok() {}
    }
}

/// A full pool: a snapshot is refused and says whose pool it is; those that are there can be read, and deleted without any
/// room.
#[test]
fn a_full_pool_refuses_snapshots_and_deletes_them() {
    let cluster = Cluster::start();
    let host = cluster.xfs_host(1);
    let volume = make_volume(&[&host]);
    let socket = open(&host, &volume, "closed").expect("opens");
    let before = fill(&cluster, &socket, &volume, "before");
    let id = taken(&host, &volume, "one");
    let now = fill(&cluster, &socket, &volume, "now");
    leave_no_room(&host);
    let refused = create(&host, &volume, &uuid(), "two").expect_err("no room");
    assert_eq!(
        (&refused["code"], &refused["facts"]["rid"]),
        (&json!("E-SNAP-08"), &json!(0)),
        "{refused}\n{}",
        host.log()
    );
    assert_snapshot(&cluster, &host, &volume, &id, &before);
    host.ask("snapshot.delete", of(&volume, &id));
    await_images(&host, 0);
    fs::remove_file(host.pool_dir().join("ballast")).expect("removed");
    host.ask_until("session.show", &json!({ "volume": volume }), |s| s["phase"] == "serving");
    assert_same(&cluster, &host, &socket, &volume, &now);
    close(&host, &volume);
}

/// A copy that leaves the record takes its images along; the last one that a snapshot has does not leave.
#[test]
fn a_copy_that_goes_takes_its_images_along_unless_it_has_the_last_one() {
    let cluster = Cluster::start();
    let hosts = [cluster.xfs_host(1), cluster.xfs_host(2)];
    let volume = make_volume(&[&hosts[0], &hosts[1]]);
    let socket = open(&hosts[0], &volume, "closed").expect("opens");
    let file = fill(&cluster, &socket, &volume, "a");
    let id = taken(&hosts[0], &volume, "one");
    let remove = |rid: u32| hosts[0].try_ask("replica.remove", json!({ "volume": volume, "rid": rid }));
    remove(1).unwrap_or_else(|error| panic!("{error}\n{}", hosts[0].log()));
    let trash = json!({ "volume": volume, "rid": 1, "pool": hosts[1].pool });
    let trashed = hosts[1].ask_until("replica.trash", &trash, |t| t["trashed"] == true);
    assert_eq!(trashed["reason"], json!(null));
    await_images(&hosts[1], 0);
    let pool = hosts[1].pool_dir().join("images");
    let left = || {
        fs::read_dir(&pool)
            .expect("there")
            .flatten()
            .flat_map(|d| fs::read_dir(d.path()).expect("a directory"))
    };
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while left().count() > 0 {
        assert!(std::time::Instant::now() < until, "an image is left");
    }
    fill(&cluster, &socket, &volume, "b");
    assert_snapshot(&cluster, &hosts[0], &volume, &id, &file);

    // Another copy joins; it has no image.
    let make = json!({ "volume": volume, "rid": 2, "pool": hosts[1].pool, "size": SIZE.to_string(), "region_shift": 20 });
    hosts[1].ask("replica.create", make);
    hosts[0].ask(
        "replica.add",
        json!({ "volume": volume, "rid": 2, "node": hosts[1].id, "pool": hosts[1].pool }),
    );
    hosts[0]
        .ask_until("session.show", &json!({ "volume": volume }), |s| s["members"][1]["state"] == "INSYNC");
    assert_eq!(remove(0).expect_err("the last one")["code"], "E-SNAP-07");
    hosts[0].ask("snapshot.delete", of(&volume, &id));
    await_count(&hosts[0], &volume, 0);
    remove(0).unwrap_or_else(|error| panic!("{error}\n{}", hosts[0].log()));
    close(&hosts[0], &volume);
}

/// N20: the store is lost. What copies have logged has its key again, by their notes, and is what it was; what one of them
/// says is gone does not come back.
#[test]
fn snapshots_are_named_again_after_the_store_was_lost() {
    let mut cluster = Cluster::start();
    let mut host = cluster.xfs_host(1);
    let volume = make_volume(&[&host]);
    let socket = open(&host, &volume, "closed").expect("opens");
    let file = fill(&cluster, &socket, &volume, "a");
    let id = taken(&host, &volume, "one");
    let gone = taken(&host, &volume, "two");
    fill(&cluster, &socket, &volume, "b");
    host.ask("snapshot.delete", of(&volume, &gone));
    await_count(&host, &volume, 1);
    host.kill();
    cluster.etcd = super::support::Etcd::start();
    cluster.put("/weft/v1/store", &json!({ "cluster": cluster.id, "incarnation": "0" }));
    host.start();
    host.ask("store.endpoints", json!({ "endpoints": [cluster.etcd.url] }));
    cluster.say_address(&host.id, &host.address);
    host.pool_until(|pool| pool["state"] == "starting");
    let told = host.ask("replica.records", json!({}));
    let kept = &told["records"][0];
    let image = kept["images"].as_array().expect("a list").iter().find(|image| image["snap"] == id.as_str());
    let image = image.unwrap_or_else(|| panic!("{told}"));
    assert_eq!((&image["state"], &image["note"]["name"]), (&json!("ready"), &json!("one")));
    assert!(
        kept["gone"].as_array().is_some_and(|all| all.iter().any(|of| of["snap"] == gone.as_str())),
        "{kept}"
    );
    let members = json!([{ "rid": 0, "node": host.id, "pool": host.pool }]);
    let pool = json!({ "pool": host.pool, "node": host.id, "path": told["pools"][0]["path"], "inc": told["pools"][0]["inc"] });
    let repair = json!({ "incarnation": "3", "records": [kept["record"]], "pools": [pool],
        "snaps": [{ "volume": volume, "image": image, "members": members }] });
    host.ask("store.repair_apply", repair);
    host.await_pool();
    let there = key(&cluster, &volume, &id);
    assert_eq!(
        (&there["name"], &there["state"], &there["logged"]),
        (&json!("one"), &json!("READY"), &json!(true))
    );
    open(&host, &volume, "steal").unwrap_or_else(|error| panic!("{error}\n{}", host.log()));
    await_count(&host, &volume, 1);
    assert_snapshot(&cluster, &host, &volume, &id, &file);
    taken(&host, &volume, "three");
    assert_eq!(create(&host, &volume, &uuid(), "one").expect_err("its name")["code"], "E-SNAP-02");
    host.ask("snapshot.delete", of(&volume, &id));
    await_count(&host, &volume, 1);
    close(&host, &volume);
}
