//! The program, mounted: what survives a power cut and what does not, stalls, errors, a full disk. These tests run as
//! root and need /dev/fuse.

mod support;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, fallocate, flock, seek};
use rustix::io::Errno;
use serde_json::json;
use support::{Rig, block};

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.expect_err("fails").raw_os_error()
}

/// A file of so many durable blocks of ones, with a durable name.
fn durable_file(rig: &Rig, name: &str, blocks: usize) -> File {
    let file = rig.create(name);
    file.write_all_at(&vec![1; blocks * 4096], 0).expect("written");
    file.sync_all().expect("flushed");
    rig.sync_dir("");
    file
}

fn firsts(file: &File, blocks: usize) -> Vec<u8> {
    let mut all = vec![0; blocks * 4096];
    let n = file.read_at(&mut all, 0).expect("read");
    all[..n].chunks(4096).map(|b| b[0]).collect()
}

#[test]
fn a_flushed_write_survives_a_power_cut_and_another_does_not() {
    let rig = Rig::start();
    let file = durable_file(&rig, "f", 4);
    file.write_all_at(&block(2), 0).expect("written");
    file.sync_data().expect("flushed");
    file.write_all_at(&block(3), 4096).expect("written");
    // Beyond its end, and only a part of a block.
    file.write_all_at(&block(4), 5 * 4096).expect("written");
    file.write_all_at(&[5], 2 * 4096 + 7).expect("written");
    assert_eq!(rig.ask(json!({ "op": "stats" }))["volatile"], json!({ "blocks": 3, "sizes": 1, "names": 0 }));
    let cut = rig.ask(json!({ "op": "power_cut" }));
    assert_eq!(cut["dropped"], json!({ "blocks": 3, "sizes": 1, "names": 0 }));
    assert_eq!(errno(file.read_at(&mut [0], 0)), Some(5));
    assert_eq!(errno(File::open(rig.path("f"))), Some(5));
    rig.ask(json!({ "op": "power_on" }));
    assert_eq!(firsts(&file, 9), [2, 1, 1, 1]);
    let mut byte = [0];
    file.read_exact_at(&mut byte, 2 * 4096 + 7).expect("read");
    assert_eq!((byte[0], file.metadata().expect("stat").len()), (1, 4 * 4096));
}

#[test]
fn what_is_lied_about_is_volatile_whatever_it_was_called() {
    let rig = Rig::start();
    let (lied, honest) = (durable_file(&rig, "f", 3), durable_file(&rig, "g", 2));
    rig.ask(json!({ "op": "lie", "path": "f" }));
    let synchronous = File::options().write(true).custom_flags(0o10000).open(rig.path("f")).expect("opened");
    synchronous.write_all_at(&block(2), 0).expect("written");
    for file in [&lied, &honest] {
        file.write_all_at(&block(3), 4096).expect("written");
        file.sync_data().expect("flushed");
    }
    assert_eq!(firsts(&lied, 3), [2, 3, 1]);
    rig.power_cycle(json!({}));
    assert_eq!((firsts(&lied, 3), firsts(&honest, 2)), (vec![1, 1, 1], vec![1, 3]));
    // The truth again: what is flushed now is durable.
    lied.write_all_at(&block(4), 0).expect("written");
    lied.sync_data().expect("flushed");
    rig.power_cycle(json!({}));
    assert_eq!(firsts(&lied, 3), [4, 1, 1]);
}

#[test]
fn a_write_that_asks_for_it_is_durable_without_a_flush() {
    // The pool's way (RWF_DSYNC, with and without O_DIRECT) comes as a flag of the write; so does O_DSYNC of the file.
    let rig = Rig::start();
    let file = durable_file(&rig, "f", 4);
    let synchronous = File::options().write(true).custom_flags(0o10000).open(rig.path("f")).expect("opened");
    synchronous.write_all_at(&block(2), 0).expect("written");
    file.write_all_at(&block(3), 4096).expect("written");
    // Over a block that is volatile, and beyond the end.
    file.write_all_at(&block(4), 2 * 4096).expect("written");
    synchronous.write_all_at(&block(5), 2 * 4096).expect("written");
    synchronous.write_all_at(&block(6), 5 * 4096).expect("written");
    assert_eq!(rig.ask(json!({ "op": "stats" }))["requests"]["durable_write"], 3);
    rig.power_cycle(json!({}));
    assert_eq!(firsts(&file, 9), [2, 1, 5, 1, 0, 6]);
}

#[test]
fn holes_zeroes_and_sizes_are_volatile_too() {
    let rig = Rig::start();
    let punched = durable_file(&rig, "punched", 8);
    let zeroed = durable_file(&rig, "zeroed", 8);
    let cut = durable_file(&rig, "cut", 8);
    let filled = durable_file(&rig, "filled", 8);
    fallocate(&filled, PUNCH, 4096, 4096).expect("punched");
    filled.sync_data().expect("flushed");
    fallocate(&punched, PUNCH, 4096, 2 * 4096).expect("punched");
    fallocate(&punched, PUNCH, 5 * 4096 + 100, 50).expect("punched");
    fallocate(&zeroed, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 0, 4096).expect("zeroed");
    fallocate(&zeroed, FallocateFlags::empty(), 0, 64 * 4096).expect("reserved");
    cut.set_len(10).expect("cut");
    cut.set_len(3 * 4096).expect("grown");
    filled.write_all_at(&block(9), 4096).expect("written");
    assert_eq!(firsts(&punched, 3), [1, 0, 0]);
    assert_eq!(seek(&punched, SeekFrom::Data(4096)), Ok(3 * 4096), "a hole is seen");
    assert_eq!(zeroed.metadata().expect("stat").len(), 64 * 4096);
    rig.power_cycle(json!({}));
    for (name, file) in [("punched", &punched), ("zeroed", &zeroed), ("cut", &cut)] {
        let mut all = vec![0; 9 * 4096];
        assert_eq!(file.read_at(&mut all, 0).expect("read"), 8 * 4096, "{name}");
        assert!(all[..8 * 4096].iter().all(|b| *b == 1), "{name}");
    }
    assert_eq!(seek(&filled, SeekFrom::Hole(0)), Ok(4096), "what was a hole is one again");
    // Flushed, it stays.
    fallocate(&punched, PUNCH, 0, 4096).expect("punched");
    punched.sync_data().expect("flushed");
    rig.power_cycle(json!({}));
    assert_eq!(firsts(&punched, 2), [0, 1]);
}

#[test]
fn a_name_is_volatile_until_its_directory_is_flushed() {
    let rig = Rig::start();
    for name in ["kept", "replaced", "removed"] {
        let file = rig.create(name);
        file.write_all_at(name.as_bytes(), 0).expect("written");
        file.sync_all().expect("flushed");
    }
    fs::create_dir(rig.path("dir")).expect("made");
    rig.sync_dir("");
    let unflushed = || {
        fs::rename(rig.path("kept"), rig.path("replaced")).expect("renamed");
        fs::remove_file(rig.path("removed")).expect("removed");
        fs::create_dir(rig.path("dir/new")).expect("made");
        let inner = rig.create("dir/new/inner");
        inner.sync_all().expect("flushed");
        rig.sync_dir("dir/new");
        fs::rename(rig.path("dir/new"), rig.path("moved")).expect("renamed");
    };
    unflushed();
    assert_eq!(rig.names(""), ["dir", "moved", "replaced"]);
    rig.power_cycle(json!({}));
    assert_eq!(rig.names(""), ["dir", "kept", "removed", "replaced"]);
    assert_eq!(rig.names("dir"), Vec::<String>::new());
    assert_eq!(fs::read(rig.path("replaced")).expect("read"), b"replaced");
    unflushed();
    // One of the two directories is enough for a rename between them, and brings what that needs.
    rig.sync_dir("");
    rig.power_cycle(json!({}));
    assert_eq!(rig.names(""), ["dir", "moved", "replaced"]);
    assert_eq!(rig.names("moved"), ["inner"]);
    assert_eq!(fs::read(rig.path("replaced")).expect("read"), b"kept");
}

#[test]
fn a_cut_keeps_a_mixture_that_its_seed_chooses() {
    let rig = Rig::start();
    let mut seen = Vec::new();
    for seed in [1, 1, 2] {
        let file = durable_file(&rig, "f", 64);
        file.write_all_at(&vec![2; 64 * 4096], 0).expect("written");
        let cut = rig.power_cycle(json!({ "keep": 50, "seed": seed }));
        let content = firsts(&file, 64);
        let kept = content.iter().filter(|b| **b == 2).count();
        assert_eq!(cut["kept"]["blocks"], kept);
        assert!((10..55).contains(&kept), "{kept} of 64");
        seen.push(content);
        fs::remove_file(rig.path("f")).expect("removed");
        rig.sync_dir("");
    }
    assert_eq!(seen[0], seen[1]);
    assert_ne!(seen[0], seen[2]);
}

#[test]
fn a_stalled_write_keeps_only_itself() {
    let rig = Rig::start();
    let file = durable_file(&rig, "f", 2);
    let other = durable_file(&rig, "g", 2);
    rig.ask(json!({ "op": "stall", "what": "write", "ms": null, "path": "f", "count": 1 }));
    std::thread::scope(|scope| {
        let stalled = scope.spawn(|| file.write_all_at(&block(2), 0));
        rig.until(|stats| stats["stalled_now"] == 1);
        // The same file and others, all the while.
        file.write_all_at(&block(3), 4096).expect("written");
        assert_eq!(firsts(&file, 2), [1, 3]);
        other.write_all_at(&block(4), 0).expect("written");
        other.sync_data().expect("flushed");
        fs::read_dir(rig.path("")).expect("listed");
        assert!(!stalled.is_finished());
        rig.ask(json!({ "op": "heal" }));
        stalled.join().expect("joined").expect("written");
    });
    assert_eq!(firsts(&file, 2), [2, 3]);
    // A time of its own, and flushes.
    rig.ask(json!({ "op": "stall", "what": "flush", "ms": 80 }));
    let began = Instant::now();
    file.sync_data().expect("flushed");
    assert!(began.elapsed() >= Duration::from_millis(80));
    rig.ask(json!({ "op": "heal" }));
    rig.ask(json!({ "op": "slow", "ms": 30 }));
    let began = Instant::now();
    assert_eq!(firsts(&file, 2), [2, 3]);
    assert!(began.elapsed() >= Duration::from_millis(30));
}

#[test]
fn who_is_stalled_when_the_power_goes_fails_and_has_done_nothing() {
    let rig = Rig::start();
    let file = durable_file(&rig, "f", 1);
    rig.ask(json!({ "op": "stall", "what": "any", "ms": null }));
    std::thread::scope(|scope| {
        let stalled = scope.spawn(|| file.write_all_at(&block(2), 0));
        rig.until(|stats| stats["stalled_now"] == 1);
        rig.ask(json!({ "op": "power_cut" }));
        assert_eq!(errno(stalled.join().expect("joined")), Some(5));
    });
    rig.ask(json!({ "op": "power_on" }));
    assert_eq!(firsts(&file, 1), [1]);
}

#[test]
fn errors_come_as_often_as_asked_for() {
    let rig = Rig::start();
    let file = durable_file(&rig, "f", 1);
    rig.ask(json!({ "op": "fail", "what": "write", "errno": "EIO", "count": 2 }));
    assert_eq!(errno(file.write_all_at(&block(2), 0)), Some(5));
    assert_eq!(errno(file.set_len(0)), Some(5));
    file.write_all_at(&block(2), 0).expect("written");
    rig.ask(json!({ "op": "fail", "what": "flush", "errno": "ENOSPC", "count": 1 }));
    assert_eq!(errno(file.sync_data()), Some(28));
    rig.ask(json!({ "op": "fail", "what": "read", "errno": "EIO", "path": "g*" }));
    assert_eq!(firsts(&file, 1), [2]);
    rig.ask(json!({ "op": "fail", "what": "name", "errno": "EROFS" }));
    assert_eq!(errno(fs::remove_file(rig.path("f"))), Some(30));
    rig.ask(json!({ "op": "heal" }));
    fs::remove_file(rig.path("f")).expect("removed");
    assert_eq!(rig.try_ask(json!({ "op": "fail", "what": "read", "errno": "EWHAT" }))["ok"], false);
    assert_eq!(rig.try_ask(json!({ "op": "nonsense" }))["ok"], false);
}

#[test]
fn a_full_disk_takes_what_has_its_room_and_nothing_else() {
    let rig = Rig::start();
    let file = durable_file(&rig, "f", 4);
    let reserved = rig.create("reserved");
    fallocate(&reserved, FallocateFlags::empty(), 0, 16 * 4096).expect("reserved");
    rig.ask(json!({ "op": "full", "bytes": 2 * 4096 }));
    assert_eq!(rustix::fs::statvfs(rig.path("")).expect("statvfs").f_bavail, 2);
    file.write_all_at(&vec![2; 4 * 4096], 0).expect("over what is there");
    reserved.write_all_at(&vec![2; 16 * 4096], 0).expect("into what was reserved");
    file.write_all_at(&vec![3; 2 * 4096], 8 * 4096).expect("the last room");
    assert_eq!(errno(file.write_all_at(&block(4), 20 * 4096)), Some(28));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 1 << 20, 4096), Err(Errno::NOSPC));
    fallocate(&file, PUNCH, 0, 4096).expect("punched");
    file.write_all_at(&block(4), 20 * 4096).expect("into the room that became free");
    assert_eq!(errno(file.write_all_at(&block(4), 30 * 4096)), Some(28));
    rig.ask(json!({ "op": "heal" }));
    file.write_all_at(&block(4), 30 * 4096).expect("written");
}

#[test]
fn a_lock_is_held_against_others_and_ends_with_its_file() {
    let rig = Rig::start();
    let first = rig.create("lock");
    let second = File::open(rig.path("lock")).expect("opened");
    flock(first.as_fd(), FlockOperation::LockExclusive).expect("locked");
    assert_eq!(flock(second.as_fd(), FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
    drop(first);
    // A process that another test is just starting has the file open, too, until its program begins.
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match flock(second.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::yield_now(),
            taken => break taken.expect("locked"),
        }
    }
}
