//! A pool that fills up: at 95 % it says so, from 98 % on what may need room is refused before the file system refuses it,
//! and at 100 % (R20, N9) nothing is lost either: writes wait and never fail; what makes room, and what moves the volume
//! elsewhere, needs none.

use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::time::Duration;

use serde_json::json;

use super::guests::Guest;
use super::support::host::{
    Cluster, Host, SIZE, assert_same, close, copy, make_volume, make_volume_named, nbd, open, random_file,
    uuid,
};

const WRITE: u16 = 1;
const TRIM: u16 = 4;
const MIB: u64 = 1 << 20;

/// Takes all but so many bytes of the file system under a host's pool.
fn leave(host: &Host, bytes: u64) {
    let stat = rustix::fs::statvfs(host.pool_dir().as_path()).expect("looked");
    let taken = stat.f_bavail * stat.f_frsize - bytes;
    let ballast = fs::File::options().create(true).append(true).open(host.pool_dir().join("ballast"));
    let mode = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(ballast.expect("made"), mode, 0, taken).expect("allocated");
}

fn total(host: &Host) -> u64 {
    let stat = rustix::fs::statvfs(host.pool_dir().as_path()).expect("looked");
    stat.f_blocks * stat.f_frsize
}

fn number(value: &serde_json::Value) -> u64 {
    value.as_str().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{value} is no number"))
}

/// Fills the file system under a host's pool to its last byte.
fn fill(host: &Host) {
    let mut ballast =
        fs::File::options().create(true).append(true).open(host.pool_dir().join("ballast")).expect("made");
    for piece in [64 << 10, 4096, 1] {
        while ballast.write(&vec![0x55; piece]).is_ok() {}
    }
}

fn make_room(host: &Host) {
    fs::remove_file(host.pool_dir().join("ballast")).expect("removed");
}

fn write(guest: &mut Guest, cookie: u64, offset: u64, byte: u8) {
    guest.send(WRITE, cookie, offset, 64 << 10);
    guest.0.write_all(&[byte; 64 << 10]).expect("sent");
}

/// The volume is paused, and says where there is no room.
fn await_pause(host: &Host, volume: &str) {
    let why = format!("waits for r0: pool {} of host {} is full", host.pool, host.id);
    let paused = |s: &serde_json::Value| s["phase"] == "paused" && s["paused_reason"] == why.as_str();
    host.ask_until("session.show", &json!({ "volume": volume }), paused);
}

/// The guest has an answer to each of these writes.
fn await_replies(guest: &mut Guest, of: Range<u64>) {
    let mut cookies: Vec<u64> = of
        .clone()
        .map(|_| {
            let (cookie, error) = guest.reply();
            assert_eq!(error, 0, "write {cookie} failed");
            cookie
        })
        .collect();
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(of));
}

/// The guest sends in a moment four times what fits. The pool stays below 98 %, the volume is paused and says which pool
/// of which host is full; its guest reads and trims, and a trim of too little changes nothing. With more room it goes on by
/// itself, below 97 %, and every byte is there.
#[test]
fn a_guest_cannot_write_past_the_mark_and_goes_on_when_there_is_room() {
    for number_of_host in [1, 2] {
        let cluster = Cluster::start();
        let host = cluster.small_host(number_of_host, 100);
        let volume = make_volume(&[&host]);
        let socket = open(&host, &volume, "closed").expect("opens");
        let whole = random_file(&cluster, "a");
        let mut file = fs::read(&whole).expect("read");
        let percent = total(&host) / 100;
        host.pool_until(|p| p["room"] == "plenty");
        leave(&host, 4 * percent);
        host.pool_until(|p| p["room"] == "low");

        let mut guest = Guest::connect(&socket);
        let pieces: Vec<(u64, &[u8])> = (0..).zip(file.chunks_exact(64 << 10)).collect();
        for written in [&pieces[..2], &pieces[2..]] {
            for (cookie, piece) in written {
                guest.send(WRITE, *cookie, cookie << 16, 64 << 10);
                guest.0.write_all(piece).expect("sent");
            }
            if written.len() == 2 {
                await_replies(&mut guest, 0..2);
            }
        }
        await_pause(&host, &volume);
        let shown = host.pool_until(|p| p["room"] == "full" && number(&p["free"]) < 3 * percent);
        assert!(
            number(&shown["free"]) >= 2 * percent,
            "{shown}: {percent} bytes are a percent\n{}",
            host.log()
        );
        assert!(host.log().contains("the pool is full (98 %)"), "{}", host.log());

        let mut second = Guest::connect(&socket);
        second.send(TRIM, 1000, 0, 128 << 10);
        assert_eq!(second.reply(), (1000, 0), "a trim needs no room\n{}", host.log());
        let free = number(&shown["free"]);
        let shown = host.pool_until(|p| number(&p["free"]) > free);
        assert_eq!(shown["room"], "full", "{shown}");
        await_pause(&host, &volume);

        make_room(&host);
        await_replies(&mut guest, 2..SIZE >> 16);
        host.ask_until("session.show", &json!({ "volume": volume }), |s| s["phase"] == "serving");
        host.pool_until(|p| p["room"] == "plenty");
        file[..128 << 10].fill(0);
        fs::write(&whole, &file).expect("written");
        drop((guest, second));
        assert_same(&cluster, &host, &socket, &volume, &whole);
        close(&host, &volume);
    }
}

/// What nobody can ask back goes first: the copy of a volume that has its copies elsewhere. That of a deleted volume stays,
/// which can be restored; and no write has waited.
#[test]
fn a_pool_that_fills_up_empties_its_trash_of_what_nobody_can_ask_back() {
    let cluster = Cluster::start();
    let small = cluster.small_host(1, 100);
    let mut large = cluster.host(2);
    large.make_pool();
    let [moved, deleted] = [make_volume(&[&small, &large]), make_volume(&[&small])];
    let file = random_file(&cluster, "a");
    for (host, volume) in [(&large, &moved), (&small, &deleted)] {
        let socket = open(host, volume, "closed").expect("opens");
        copy(file.to_str().expect("UTF-8"), &nbd(&socket, volume));
        if *volume == moved {
            host.ask("replica.remove", json!({ "volume": volume, "rid": 0 }));
        }
        close(host, volume);
    }
    small.ask("volume.delete", json!({ "volume": deleted }));
    let trash = |volume: &str| json!({ "volume": volume, "rid": 0, "pool": small.pool });
    for volume in [&deleted, &moved] {
        small.ask_until("replica.trash", &trash(volume), |answer| answer["trashed"] == true);
    }
    let percent = total(&small) / 100;
    leave(&small, 5 * percent / 2);
    let rest = small.ask_until("trash.list", &json!({}), |trash| {
        trash["items"].as_array().is_some_and(|items| items.len() == 1)
    });
    assert_eq!(rest["items"][0]["volume"], deleted.as_str(), "{rest}\n{}", small.log());
    small.pool_until(|p| number(&p["free"]) > 2 * percent + SIZE / 2);
    assert!(!small.log().contains("the pool is full"), "{}", small.log());
    small.ask("trash.restore", json!({ "volume": deleted }));
}

/// The only copy is full. The guest waits; a trim of another guest makes room, and what waited goes on. Filled once
/// more, the room comes from outside.
#[test]
fn writes_to_a_full_pool_wait_and_go_on_when_there_is_room() {
    for number in [1, 2] {
        let cluster = Cluster::start();
        let host = cluster.small_host(number, 40);
        let volume = make_volume(&[&host]);
        let socket = open(&host, &volume, "closed").expect("opens");
        let mut file = fs::read(random_file(&cluster, "a")).expect("read");
        let half = cluster.dir.path().join("half");
        let unwritten = usize::try_from(SIZE / 2).expect("fits");
        fs::write(&half, &file[..unwritten]).expect("written");
        copy(half.to_str().expect("UTF-8"), &nbd(&socket, &volume));
        file[unwritten..].fill(0);
        fill(&host);

        let mut guest = Guest::connect(&socket);
        write(&mut guest, 1, SIZE / 2, 0xaa);
        guest.0.set_read_timeout(Some(Duration::from_secs(3))).expect("set");
        let early = std::io::Read::read(&mut guest.0, &mut [0; 16]);
        assert!(early.is_err(), "answered although there is no room: {early:?}\n{}", host.log());
        guest.0.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        await_pause(&host, &volume);
        let error =
            host.try_ask("session.close", json!({ "volume": volume, "abandon": false })).expect_err("paused");
        assert_eq!(error["code"], "E-VOL-10", "{error}");
        let create = json!({ "volume": cluster.id, "rid": 1, "pool": host.pool, "size": SIZE.to_string(), "region_shift": 20 });
        assert_eq!(host.try_ask("replica.create", create).expect_err("full")["code"], "E-POOL-06");

        let mut second = Guest::connect(&socket);
        // Of the 40 MiB below 97 %.
        second.send(TRIM, 2, MIB, u32::try_from(2 * MIB).expect("fits"));
        assert_eq!(second.reply(), (2, 0), "a trim needs no room\n{}", host.log());
        assert_eq!(guest.reply(), (1, 0), "the write goes on\n{}", host.log());
        let at = usize::try_from(MIB).expect("fits");
        file[at..3 * at].fill(0);
        file[unwritten..unwritten + (64 << 10)].fill(0xaa);

        fill(&host);
        write(&mut guest, 3, SIZE / 2 + MIB, 0xbb);
        await_pause(&host, &volume);
        make_room(&host);
        assert_eq!(guest.reply(), (3, 0), "the write goes on\n{}", host.log());
        let at = unwritten + at;
        file[at..at + (64 << 10)].fill(0xbb);
        let whole = cluster.dir.path().join("whole");
        fs::write(&whole, &file).expect("written");
        host.ask_until("session.show", &json!({ "volume": volume }), |s| s["phase"] == "serving");
        drop((guest, second));
        assert_same(&cluster, &host, &socket, &volume, &whole);
        close(&host, &volume);
    }
}

/// The only copy is full and its owner halts: another host takes the volume over, reads it, and closes it.
#[test]
fn a_volume_in_a_full_pool_is_stolen_and_closed() {
    let cluster = Cluster::start();
    let keeper = cluster.small_host(1, 40);
    let [owner, thief] = [cluster.host(2), cluster.host(3)];
    let volume = make_volume(&[&keeper]);
    let file = random_file(&cluster, "a");
    let socket = open(&owner, &volume, "closed").expect("opens");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    fill(&keeper);
    let socket = open(&thief, &volume, "steal").expect("steals");
    assert_same(&cluster, &thief, &socket, &volume, &file);
    close(&thief, &volume);
    let socket = open(&thief, &volume, "closed").expect("opens again");
    assert_same(&cluster, &thief, &socket, &volume, &file);
    close(&thief, &volume);
    keeper.assert_alive();
}

/// One of two copies is full: it is taken out, the guest goes on with the other, and it comes back when there is room.
#[test]
fn a_copy_in_a_full_pool_is_demoted_and_comes_back() {
    let cluster = Cluster::start();
    let small = cluster.small_host(1, 40);
    let mut large = cluster.host(2);
    large.make_pool();
    let volume = make_volume(&[&small, &large]);
    let show = json!({ "volume": volume });
    let socket = open(&large, &volume, "closed").expect("opens");
    fill(&small);
    let file = random_file(&cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    large.ask_until("session.show", &show, |s| s["members"][0]["state"] == "STALE");
    assert_same(&cluster, &large, &socket, &volume, &file);
    make_room(&small);
    large.ask_until("session.show", &show, |s| s["members"][0]["state"] == "INSYNC");
    close(&large, &volume);
    large.kill();
    let socket = open(&small, &volume, "closed").expect("opens without the other copy");
    assert_same(&cluster, &small, &socket, &volume, &file);
    close(&small, &volume);
}

/// What a copy takes is told as it is, after writes, a trim and a restart.
#[test]
fn what_a_copy_takes_of_its_pool_is_told_and_a_trim_gives_it_back() {
    let cluster = Cluster::start();
    let mut host = cluster.host(1);
    host.make_pool();
    let volume = make_volume(&[&host]);
    let used = |host: &Host, least: u64, most: u64| {
        let ours = |list: &serde_json::Value| {
            list["replicas"]
                .as_array()
                .and_then(|all| all.iter().find(|r| r["volume"] == volume.as_str()).cloned())
        };
        let good = |list: &serde_json::Value| {
            ours(list).is_some_and(|r| !r["used"].is_null() && (least..=most).contains(&number(&r["used"])))
        };
        host.ask_until("replica.list", &json!({}), good);
    };
    used(&host, 0, 0);
    let socket = open(&host, &volume, "closed").expect("opens");
    copy(random_file(&cluster, "a").to_str().expect("UTF-8"), &nbd(&socket, &volume));
    used(&host, SIZE, SIZE + 256 * 1024);
    let mut guest = Guest::connect(&socket);
    guest.send(TRIM, 1, MIB, u32::try_from(SIZE / 2).expect("fits"));
    assert_eq!(guest.reply(), (1, 0));
    used(&host, SIZE / 2, SIZE / 2 + 256 * 1024);
    drop(guest);
    close(&host, &volume);
    host.kill();
    host.start();
    host.await_pool();
    used(&host, SIZE / 2, SIZE / 2 + 256 * 1024);
}

/// A thick volume has its room from the first moment on: the pool fills up beside it, and its guest writes, trims and writes
/// again everywhere. A copy that is added is reserved, too, and one that doesn't fit is refused and leaves nothing.
#[test]
fn a_thick_volume_is_written_in_a_full_pool_and_its_new_copies_are_reserved() {
    let cluster = Cluster::start();
    let host = cluster.small_host(1, 140);
    let mut other = cluster.host(2);
    other.make_pool();
    let volume = uuid();
    let create = |host: &Host, rid: u32, size: u64| {
        let ask = json!({ "volume": volume, "rid": rid, "pool": host.pool, "size": size.to_string(),
            "region_shift": 20, "thick": true });
        host.try_ask("replica.create", ask)
    };
    let before = number(&host.pool_info()["free"]);
    assert_eq!(create(&host, 0, 1 << 30).expect_err("too large")["code"], "E-POOL-06");
    host.pool_until(|p| number(&p["free"]) >= before);
    create(&host, 0, SIZE).expect("made");
    create(&host, 0, SIZE).expect("it is there");
    // The record does not say that it is thick: each copy knows.
    assert_eq!(make_volume_named(&[&host], &volume, SIZE, 20), volume);
    let reserved = |host: &Host| {
        let list = host.ask_until("replica.list", &json!({}), |list| !list["replicas"][0]["used"].is_null());
        assert_eq!(list["replicas"][0]["thick"], true, "{list}");
        number(&list["replicas"][0]["used"])
    };
    let used = reserved(&host);
    assert!((SIZE..SIZE + (1 << 20)).contains(&used), "{used}");
    let socket = open(&host, &volume, "closed").expect("opens");
    fill(&host);
    host.pool_until(|p| p["room"] == "full");

    let file = random_file(&cluster, "a");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let mut guest = Guest::connect(&socket);
    guest.send(TRIM, 1, MIB, u32::try_from(MIB).expect("fits"));
    assert_eq!(guest.reply(), (1, 0));
    assert_eq!(reserved(&host), used, "a trim leaves it its room");
    copy(file.to_str().expect("UTF-8"), &nbd(&socket, &volume));
    let grow = json!({ "volume": volume, "size": (2 * SIZE).to_string(), "lose": false });
    assert_eq!(host.try_ask("volume.resize", grow).expect_err("no room")["code"], "E-POOL-06");

    create(&other, 1, SIZE).expect("made");
    assert!((SIZE..SIZE + (1 << 20)).contains(&reserved(&other)));
    host.ask("replica.add", json!({ "volume": volume, "rid": 1, "node": other.id, "pool": other.pool }));
    let show = json!({ "volume": volume });
    host.ask_until("session.show", &show, |s| s["members"][1]["state"] == "INSYNC");
    assert_same(&cluster, &host, &socket, &volume, &file);
    drop(guest);
    close(&host, &volume);
}
