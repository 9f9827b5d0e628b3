//! D19 on whole daemons: snapshots of several volumes at one moment, of all of them or of none.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::guests::Guest;
use super::snapshots::{TRIED, await_count, await_images, bytes_on, images, key, of, taken};
use super::support::host::{Client, Cluster, Host, close, make_volume, open, uuid};

const WRITE: u16 = 1;
const BLOCK: usize = 4096;
/// Blocks of each volume that the guest writes to, in turn.
const RING: u64 = 100;

/// Volumes and what their snapshots are to be called, of one group.
struct Wanted {
    group: String,
    name: String,
    volumes: Vec<(String, String)>,
}

impl Wanted {
    fn new(name: &str, volumes: &[String]) -> Wanted {
        let volumes = volumes.iter().map(|volume| (volume.clone(), uuid())).collect();
        Wanted { group: uuid(), name: name.to_owned(), volumes }
    }

    fn asking(&self) -> Value {
        let volumes: Vec<Value> = self.volumes.iter().map(|(volume, id)| of(volume, id)).collect();
        json!({ "group": self.group, "name": self.name, "created_by": "test", "volumes": volumes })
    }

    fn create(&self, host: &Host) -> Result<Value, Value> {
        let mut client = host.client();
        client.stream.set_read_timeout(Some(TRIED)).expect("set");
        client.ask("snapshot.create_group", self.asking())
    }

    /// Asks without waiting for the answer.
    fn begin(&self, host: &Host) -> Client {
        let mut client = host.client();
        client.stream.set_read_timeout(Some(TRIED)).expect("set");
        let line = json!({ "id": 1, "method": "snapshot.create_group", "params": self.asking() });
        client.stream.write_all(format!("{line}\n").as_bytes()).expect("sent");
        client
    }

    fn taken(&self, host: &Host) -> Value {
        self.create(host).unwrap_or_else(|error| panic!("{}: {error}\n{}", self.name, host.log()))
    }

    /// Of which of its volumes there is a key.
    fn keys(&self, cluster: &Cluster) -> Vec<bool> {
        let key = |volume: &str, id: &str| cluster.find(&format!("/weft/v1/vol/{volume}/snap/{id}"));
        self.volumes.iter().map(|(volume, id)| key(volume, id).is_some()).collect()
    }
}

fn answer(mut asked: Client) -> Result<Value, Value> {
    let mut line = String::new();
    asked.reader.read_line(&mut line).expect("an answer");
    let mut answer: Value = serde_json::from_str(&line).expect("JSON");
    if answer["error"].is_object() { Err(answer["error"].take()) } else { Ok(answer["result"].take()) }
}

/// A guest that writes a number to one volume after the other, each one when the last was answered: a moment of all of them
/// has every number up to one, and none above.
struct Chain {
    done: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Chain {
    fn start(sockets: &[PathBuf], first: u64) -> Chain {
        let (done, over) = (Arc::new(AtomicU64::new(first - 1)), Arc::new(AtomicBool::new(false)));
        let (sockets, told, stop) = (sockets.to_vec(), done.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            let mut guests: Vec<Guest> = sockets.iter().map(|socket| Guest::connect(socket)).collect();
            for number in first.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (of, block) = place(number, guests.len());
                let guest = &mut guests[of];
                guest.send(WRITE, number, block * BLOCK as u64, 4096);
                guest.0.write_all(&number.to_le_bytes().repeat(BLOCK / 8)).expect("sent");
                assert_eq!(guest.reply(), (number, 0));
                told.store(number, Ordering::SeqCst);
            }
        });
        Chain { done, over, thread }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Waits until so many more were answered.
    fn goes_on(&self, more: u64) -> u64 {
        let goal = self.done() + more;
        while self.done() < goal {
            assert!(!self.thread.is_finished(), "the guest has failed");
            std::thread::yield_now();
        }
        self.done()
    }

    fn end(self) -> u64 {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().expect("the guest");
        self.done.load(Ordering::SeqCst)
    }
}

/// Where a number is written, of so many volumes.
fn place(number: u64, volumes: usize) -> (usize, u64) {
    let volumes = volumes as u64;
    (usize::try_from(number % volumes).expect("few"), number / volumes % RING)
}

/// They are of one moment, which has all up to `floor` and none above `ceiling`; whoever reads them.
fn assert_moment(cluster: &Cluster, host: &Host, wanted: &Wanted, floor: u64, ceiling: u64) {
    let images: Vec<Vec<u8>> =
        wanted.volumes.iter().map(|(volume, id)| bytes_on(cluster, host, volume, id)).collect();
    let number = |of: usize, block: u64| {
        let at = usize::try_from(block).expect("small") * BLOCK;
        let data = &images[of][at..at + BLOCK];
        assert!(data.chunks_exact(8).all(|word| word == &data[..8]), "block {block} is torn");
        u64::from_le_bytes(data[..8].try_into().expect("eight"))
    };
    let all = || (0..images.len()).flat_map(|of| (0..RING).map(move |block| (of, block)));
    let last = all().map(|(of, block)| number(of, block)).max().expect("some");
    assert!((floor..=ceiling).contains(&last), "{last} of {floor} to {ceiling}\n{}", host.log());
    for (of, block) in all() {
        let newest = (1..=last).rev().find(|n| place(*n, images.len()) == (of, block)).unwrap_or(0);
        assert_eq!(number(of, block), newest, "volume {of}, block {block}, up to {last}\n{}", host.log());
    }
}

fn back(host: &Host, volume: &str) {
    let in_sync =
        |s: &Value| s["members"].as_array().is_some_and(|m| m.iter().all(|m| m["state"] == "INSYNC"));
    host.ask_until("session.show", &json!({ "volume": volume }), in_sync);
}

/// Three volumes under a guest's load, on three hosts; afterwards each is a snapshot as every other.
#[test]
fn a_group_of_three_volumes_is_one_moment() {
    let cluster = Cluster::start();
    let hosts = [cluster.xfs_host(1), cluster.xfs_host(2), cluster.xfs_host(3)];
    let [a, b, c] = &hosts;
    let volumes = [make_volume(&[a, b]), make_volume(&[a, b, c]), make_volume(&[c])];
    let early = Wanted::new("early", &volumes);
    let refused = early.create(a).expect_err("not open");
    assert_eq!((&refused["code"], &refused["facts"]["volume"]), (&json!("E-VOL-13"), &json!(volumes[0])));
    let sockets: Vec<PathBuf> =
        volumes.iter().map(|volume| open(a, volume, "closed").expect("opens")).collect();
    let chain = Chain::start(&sockets, 1);
    let mut groups = Vec::new();
    for round in 0..4 {
        let floor = chain.goes_on(60);
        let wanted = Wanted::new(&format!("s{round}"), &volumes);
        let told = wanted.taken(a);
        groups.push((wanted, told, floor, chain.done() + 1));
    }
    chain.goes_on(60);
    chain.end();
    for (wanted, told, floor, ceiling) in &groups {
        let snapshots = told["snapshots"].as_array().expect("a list").iter();
        let told_of = snapshots.map(|s| [&s["volume"], &s["id"], &s["members"]].map(Value::clone));
        let members = [json!([0, 1]), json!([0, 1, 2]), json!([0])];
        let expected = wanted.volumes.iter().zip(members);
        let expected = expected.map(|((volume, id), members)| [json!(volume), json!(id), members]);
        assert!(told_of.eq(expected), "{told}");
        for host in [a, c] {
            assert_moment(&cluster, host, wanted, *floor, *ceiling);
        }
        for (volume, id) in &wanted.volumes {
            let key = key(&cluster, volume, id);
            assert_eq!(key["group"], json!({ "id": wanted.group, "volumes": volumes }));
            assert_eq!((&key["name"], &key["logged"]), (&json!(wanted.name), &json!(true)));
            assert_eq!(key["created"], told["created"]);
        }
    }

    // Asked again; asked for what can't be.
    let (first, told, ..) = &groups[0];
    let again = first.taken(a);
    assert_eq!((&again["snapshots"], &again["held_ms"]), (&told["snapshots"], &json!("0")));
    let other = taken(a, &volumes[1], "mine");
    let name = Wanted::new("mine", &volumes);
    let refused = name.create(a).expect_err("a name twice");
    assert_eq!((&refused["code"], &refused["facts"]["volume"]), (&json!("E-SNAP-02"), &json!(volumes[1])));
    let twice = Wanted::new("twice", &[volumes[0].clone(), volumes[0].clone()]);
    for wanted in [twice, Wanted::new("none", &[]), Wanted::new("No", &volumes)] {
        assert_eq!(wanted.create(a).expect_err("no group")["code"], "E-ARG-02");
    }
    // One of them is deleted: the others stay, and the group is not taken anew.
    a.ask("snapshot.delete", of(&first.volumes[1].0, &first.volumes[1].1));
    await_count(a, &volumes[1], 4);
    let refused = first.create(a).expect_err("one is gone");
    assert_eq!((&refused["code"], &refused["facts"]["volume"]), (&json!("E-SNAP-09"), &json!(volumes[1])));
    assert_eq!(first.keys(&cluster), [true, false, true]);
    a.ask("snapshot.delete", of(&volumes[1], &other));
    await_count(a, &volumes[1], 3);
    for (index, count) in [(0, 4), (2, 4)] {
        await_count(a, &volumes[index], count);
    }
    for volume in &volumes {
        close(a, volume);
    }
}

/// A copy of one volume is killed, or stands still, while groups are taken: all of a group is there, with whoever is left, or
/// nothing of it.
#[test]
fn a_copy_that_dies_in_the_middle_of_a_group_leaves_all_of_it_or_nothing() {
    let cluster = Cluster::start();
    let owner = cluster.xfs_host(1);
    let mut member = cluster.xfs_host(2);
    let volumes = [make_volume(&[&owner]), make_volume(&[&owner, &member])];
    let sockets: Vec<PathBuf> =
        volumes.iter().map(|volume| open(&owner, volume, "closed").expect("opens")).collect();
    let mut first = 1;
    let mut there = 0;
    for (round, pause_ms) in [0, 5, 12, 25].into_iter().enumerate() {
        let chain = Chain::start(&sockets, first);
        let floor = chain.goes_on(40);
        let wanted = Wanted::new(&format!("s{round}"), &volumes);
        let asked = wanted.begin(&owner);
        std::thread::sleep(Duration::from_millis(pause_ms));
        member.kill();
        let outcome = answer(asked);
        let ceiling = chain.done() + 1;
        chain.goes_on(10);
        first = chain.end() + 1;
        let keys = wanted.keys(&cluster);
        assert_eq!(keys, [outcome.is_ok(); 2], "{pause_ms} ms: {outcome:?}\n{}", owner.log());
        there += u32::from(outcome.is_ok());
        member.start();
        member.await_pool();
        back(&owner, &volumes[1]);
        if outcome.is_ok() {
            assert_moment(&cluster, &owner, &wanted, floor, ceiling);
        }
    }
    assert!(there > 0, "they are taken without who has died\n{}", owner.log());
    for volume in &volumes {
        await_count(&owner, volume, there);
        close(&owner, volume);
    }
}

/// One volume can have no snapshots: the other one has none of the group either, and its guest goes on.
#[test]
fn a_volume_that_can_have_no_snapshot_leaves_none_of_its_group() {
    let cluster = Cluster::start();
    let (owner, mut plain) = (cluster.xfs_host(1), cluster.host(2));
    plain.make_pool();
    let volumes = [make_volume(&[&owner]), make_volume(&[&owner, &plain])];
    let sockets: Vec<PathBuf> =
        volumes.iter().map(|volume| open(&owner, volume, "closed").expect("opens")).collect();
    let chain = Chain::start(&sockets, 1);
    chain.goes_on(20);
    let wanted = Wanted::new("one", &volumes);
    let refused = wanted.create(&owner).expect_err("one is on another file system");
    assert_eq!((&refused["code"], &refused["facts"]["volume"]), (&json!("E-SNAP-01"), &json!(volumes[1])));
    assert_eq!(wanted.keys(&cluster), [false, false]);
    chain.goes_on(20);
    chain.end();
    await_images(&owner, 0);
    // Its names are free again.
    taken(&owner, &volumes[0], "one");
    for volume in &volumes {
        close(&owner, volume);
    }
}

/// The owner of both is killed while a group is taken, earlier or later; the store stands still meanwhile, or not. Whoever
/// comes next finds all of it or nothing, and takes it if it is asked for again.
#[test]
fn a_group_whose_owner_dies_is_there_as_a_whole_or_not_at_all() {
    let cluster = Cluster::start();
    let mut owner = cluster.xfs_host(1);
    let next = cluster.xfs_host(2);
    let volumes = [make_volume(&[&owner, &next]), make_volume(&[&owner, &next])];
    let mut first = 1;
    for (round, pause_ms) in [4, 10, 20, 40].into_iter().enumerate() {
        let open_both = |host: &Host| -> Vec<PathBuf> {
            let opened = |volume: &String| {
                open(host, volume, "steal").unwrap_or_else(|e| panic!("{e}\n{}", host.log()))
            };
            volumes.iter().map(opened).collect()
        };
        let chain = Chain::start(&open_both(&owner), first);
        chain.goes_on(20);
        let last = chain.end();
        let wanted = Wanted::new(&format!("s{round}"), &volumes);
        let _asked = wanted.begin(&owner);
        std::thread::sleep(Duration::from_millis(pause_ms));
        owner.kill();
        let sockets = open_both(&next);
        let keys = wanted.keys(&cluster);
        assert_eq!(keys[0], keys[1], "{pause_ms} ms\n{}", next.log());
        wanted.taken(&next);
        assert_eq!(wanted.keys(&cluster), [true, true]);
        let chain = Chain::start(&sockets, last + 1);
        chain.goes_on(20);
        first = chain.end() + 1;
        assert_moment(&cluster, &next, &wanted, last, last);
        owner.start();
        owner.await_pool();
        for volume in &volumes {
            back(&next, volume);
            close(&next, volume);
        }
    }
}

/// A store that does not answer keeps no guest from going on; when it answers again the group is there, or asked for again.
#[test]
fn guests_do_not_wait_for_the_store_that_a_group_waits_for() {
    let cluster = Cluster::start();
    let owner = cluster.xfs_host(1);
    let volumes = [make_volume(&[&owner]), make_volume(&[&owner])];
    let sockets: Vec<PathBuf> =
        volumes.iter().map(|volume| open(&owner, volume, "closed").expect("opens")).collect();
    let chain = Chain::start(&sockets, 1);
    let floor = chain.goes_on(20);
    cluster.etcd.halt(true);
    let wanted = Wanted::new("one", &volumes);
    let asked = wanted.begin(&owner);
    owner.ask_until("image.list", &json!({}), |list| list["images"].as_array().is_some_and(|i| i.len() == 2));
    chain.goes_on(100);
    assert!(images(&owner).iter().all(|(_, state)| state == "prepared"));
    cluster.etcd.halt(false);
    if answer(asked).is_err() {
        wanted.taken(&owner);
    }
    assert_eq!(wanted.keys(&cluster), [true, true]);
    let last = chain.end();
    assert_moment(&cluster, &owner, &wanted, floor, last);
    for volume in &volumes {
        close(&owner, volume);
    }
}
