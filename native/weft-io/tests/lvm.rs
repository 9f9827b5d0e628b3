//! Pools on real thin volumes, in a guest of the lab (`npm run lab -- lvm`): /dev/ram0 is a blank disk, and whatever `lvm`
//! runs is ours. Made as root of that guest, one test after the other; anywhere else it touches nothing and fails.

use core::time::Duration;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use weft_io::buffer::IoBuf;
use weft_io::driver::{AnyDriver, Driver, DriverConfig, DriverKind, TokenSpace, open};
use weft_io::file_pool::{FilePool, PoolAnswer, PoolConfig, PoolError, PoolEvent, PoolOp};
use weft_io::pool_dir::PoolDir;
use weft_io::reflink::Ability;
use weft_proto::ids::{Rid, SnapId, VolumeId};
use weft_proto::log::ReplicaKey;
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::{Payload, block_crcs};
use weft_proto::replica::{DiskDone, DiskOp};

const DISK: &str = "/dev/ram0";
const VG: &str = "weft-12ab";
const CHUNK: u64 = 64 << 10;
const BLOCK: u64 = 4096;
const SEGMENT: u64 = 64 << 20;
const POOL: &str = "/mnt/weft-pool";

fn key(number: u32) -> ReplicaKey {
    ReplicaKey { volume: VolumeId(0x77), rid: Rid(number) }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).env("LVM_SYSTEM_DIR", "").output().expect(program);
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const CONFIG: &str = "devices { filter=[\"a|^/dev/ram0$|\", \"r|.*|\"] use_devicesfile=0 obtain_device_list_from_udev=0 hints=\"none\" } \
     activation { udev_sync=0 udev_rules=0 monitoring=0 error_when_full=1 } backup { backup=0 archive=0 }";

fn lvm(args: &[&str]) -> String {
    run("lvm", &[args, &["--config", CONFIG]].concat())
}

/// A VG with a pool's volumes, as the agent makes them.
struct Group;

impl Group {
    fn make(data_mib: u32, metadata_mib: u32) -> Group {
        let release = fs::read_to_string("/proc/cpuinfo").expect("read");
        assert!(release.contains("User Mode Linux"), "only in a guest of the lab: npm run lab -- lvm");
        lvm(&["vgcreate", "--yes", VG, DISK]);
        lvm(&["lvcreate", "--yes", "--wipesignatures", "y", "--size", "320m", "--name", "meta", VG]);
        let (data, metadata) = (format!("{data_mib}m"), format!("{metadata_mib}m"));
        let pool = [
            "lvcreate",
            "--yes",
            "--type",
            "thin-pool",
            "--name",
            "data",
            "--chunksize",
            "64k",
            "--zero",
            "y",
        ];
        lvm(&[
            &pool[..],
            &["--size", &data, "--poolmetadatasize", &metadata, "--poolmetadataspare", "n", VG],
        ]
        .concat());
        run("mkfs.xfs", &["-q", "-K", "/dev/mapper/weft--12ab-meta"]);
        fs::create_dir_all(POOL).expect("made");
        run("mount", &["/dev/mapper/weft--12ab-meta", POOL]);
        fs::write(Path::new(POOL).join("lvm-thin"), format!("{{\"vg\": \"{VG}\"}}")).expect("written");
        Group
    }

    /// Names and tags of replicas' volumes.
    fn volumes() -> Vec<(String, String)> {
        let said = lvm(&["lvs", "--noheadings", "--separator", "|", "--options", "lv_name,lv_tags", VG]);
        let row = |line: &str| line.trim().split_once('|').map(|(a, b)| (a.to_owned(), b.to_owned()));
        said.lines()
            .filter_map(row)
            .filter(|(name, _)| name.starts_with("r-") || name.starts_with("s-"))
            .collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(POOL).status();
        let remove = ["vgremove", "--yes", "--force", "--force", VG, "--config", CONFIG];
        let _ = Command::new("lvm").args(remove).env("LVM_SYSTEM_DIR", "").output();
        // What a test that failed has left open.
        let _ = Command::new("dmsetup").args(["remove_all", "--force"]).output();
        let _ = fs::remove_dir_all(format!("/dev/{VG}"));
        let _ = Command::new("wipefs").args(["--all", "--quiet", DISK]).status();
    }
}

/// The pool, served.
struct Rig {
    driver: AnyDriver,
    pool: FilePool,
    token: u64,
}

impl Rig {
    fn open(gated: bool) -> Rig {
        let path = Path::new(POOL);
        let mut driver = open(Some(DriverKind::Libaio), DriverConfig::default()).expect("a driver");
        let dir = if path.join("superblock").exists() {
            PoolDir::open_when_free(path, || ())
        } else {
            PoolDir::create(path, 1 << 20, b"x")
        };
        let dir = dir.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(dir.probe().ability, Ability::Thin);
        let mut config = PoolConfig::new(TokenSpace(1));
        config.gated = gated;
        let pool = FilePool::start(dir, config, &mut driver).expect("starts");
        Rig { driver, pool, token: 0 }
    }

    fn run(&mut self, op: PoolOp) -> Result<PoolAnswer, PoolError> {
        self.token += 1;
        self.pool.submit(self.token, op);
        let mut out = Vec::new();
        loop {
            self.pool.drive(&mut self.driver);
            match self.pool.poll_event() {
                Some(PoolEvent::Done { token, result }) if token == self.token => return result,
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            self.driver.wait(Some(Duration::from_secs(60)), &mut out).expect("waits");
            out.drain(..).for_each(|completion| self.pool.handle_completion(completion));
        }
    }

    fn ok(&mut self, op: PoolOp) {
        assert_eq!(self.run(op), Ok(PoolAnswer::Done));
    }

    fn disk(&mut self, op: DiskOp<IoBuf>) -> Result<DiskDone<IoBuf>, PoolError> {
        self.run(PoolOp::Disk { replica: key(1), op }).map(|answer| match answer {
            PoolAnswer::Disk(done) => done,
            other => panic!("{other:?}"),
        })
    }

    fn done(&mut self, op: DiskOp<IoBuf>) {
        assert_eq!(self.disk(op), Ok(DiskDone::Done));
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<DiskDone<IoBuf>, PoolError> {
        let data = IoBuf::copy_of(data);
        self.disk(DiskOp::Write { offset, crcs: block_crcs(data.bytes()), data, durable: true })
    }

    fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        match self.disk(DiskOp::Read { offset, len }) {
            Ok(DiskDone::Data(extents)) => flat(extents),
            other => panic!("{other:?}"),
        }
    }

    fn room_for(&mut self, image: SnapId) {
        self.ok(PoolOp::TakeImage { replica: key(1), image, slot_bytes: 8192 });
    }

    fn take(&mut self, image: SnapId) -> Result<(), PoolError> {
        let taken = self.run(PoolOp::TakeSnapshot { replica: key(1), image });
        taken.map(|answer| assert_eq!(answer, PoolAnswer::Disk(DiskDone::Done)))
    }

    /// What an image holds, holes as zeroes.
    fn of_image(&mut self, image: SnapId, offset: u64, len: u64) -> Vec<u8> {
        let op = DiskOp::Read { offset, len };
        match self.run(PoolOp::Image { replica: key(1), image, heir: None, op }) {
            Ok(PoolAnswer::Disk(DiskDone::Data(extents))) => flat(extents),
            other => panic!("{other:?}"),
        }
    }

    fn space(&mut self) -> (u64, u64) {
        match self.run(PoolOp::Space) {
            Ok(PoolAnswer::Space { free, total }) => (free, total),
            other => panic!("{other:?}"),
        }
    }

    /// Bytes of data that the thin pool has given out.
    fn used(&mut self) -> u64 {
        self.space();
        let status = run("dmsetup", &["status", "--target", "thin-pool", "weft--12ab-data-tpool"]);
        let data =
            status.split_whitespace().nth(5).and_then(|pair| pair.split_once('/')?.0.parse::<u64>().ok());
        data.unwrap_or_else(|| panic!("{status}")) * CHUNK
    }

    fn made(&mut self, size: u64) {
        self.ok(PoolOp::CreateReplica { replica: key(1), meta_bytes: 8192, thick: None });
        self.opened(size);
    }

    fn opened(&mut self, size: u64) {
        self.ok(PoolOp::OpenReplica { replica: key(1), size, unsealed: Vec::new() });
    }

    fn stop(mut self) {
        while !self.pool.is_idle() {
            self.driver.wait(Some(Duration::from_secs(60)), &mut Vec::new()).expect("waits");
            self.pool.drive(&mut self.driver);
        }
        self.pool.stop(&mut self.driver).expect("stopped");
    }
}

fn flat(extents: Vec<Extent<IoBuf>>) -> Vec<u8> {
    let bytes = |extent: Extent<IoBuf>| match extent {
        Extent::Data { data, .. } => data.bytes().to_vec(),
        Extent::Hole { len, .. } => vec![0; usize::try_from(len).expect("short")],
    };
    extents.into_iter().flat_map(bytes).collect()
}

fn hole(offset: u64, len: u64, keep_space: bool) -> DiskOp<IoBuf> {
    DiskOp::Zero { offset, len, kind: Hole::Zero, keep_space }
}

/// Bytes that differ from block to block.
fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len / 8).flat_map(|_| next().to_le_bytes()).collect()
}

#[test]
fn what_was_written_and_sealed_is_there_after_the_volumes_were_taken_down() {
    let _group = Group::make(150, 4);
    let mut rig = Rig::open(true);
    rig.made(3 * SEGMENT);
    let data = pattern(1, 256 << 10);
    let across = SEGMENT - (128 << 10);
    assert_eq!(rig.write(across, &data), Ok(DiskDone::Done));
    rig.done(DiskOp::Grow { from: 3 * SEGMENT, to: 6 * SEGMENT });
    assert_eq!(rig.write(6 * SEGMENT - BLOCK, &data[..4096]), Ok(DiskDone::Done));
    rig.done(DiskOp::Seal);
    rig.ok(PoolOp::CloseReplica { replica: key(1) });
    rig.stop();
    // As at a boot, but that nobody has activated more than what is mounted.
    run("umount", &[POOL]);
    lvm(&["vgchange", "--activate", "n", VG]);
    lvm(&["lvchange", "--activate", "y", &format!("{VG}/meta")]);
    run("mount", &["/dev/mapper/weft--12ab-meta", POOL]);
    let mut rig = Rig::open(true);
    rig.opened(6 * SEGMENT);
    assert_eq!(rig.read(across, 256 << 10), data);
    assert_eq!(rig.read(6 * SEGMENT - BLOCK, BLOCK), data[..4096]);
    let kinds = rig.disk(DiskOp::Kinds { offset: 0, len: 6 * SEGMENT });
    let expected = vec![
        (across, Some(Hole::Absent)),
        (256 << 10, None),
        (6 * SEGMENT - BLOCK - across - (256 << 10), Some(Hole::Absent)),
        (BLOCK, None),
    ];
    assert_eq!(kinds, Ok(DiskDone::Kinds(expected)));
    let used = rig.used();
    assert!(used > 0);
    assert_eq!(rig.pool.used(key(1)), Some(used));
    rig.ok(PoolOp::TrashReplica { replica: key(1), now_s: 9 });
    let Ok(PoolAnswer::Trash(entries)) = rig.run(PoolOp::ListTrash) else { panic!("not listed") };
    let before = rig.space().0;
    rig.ok(PoolOp::EmptyTrash { name: entries[0].name.clone() });
    assert_eq!(Group::volumes(), []);
    assert_eq!(rig.used(), 0);
    assert!(rig.space().0 >= before);
    rig.stop();
}

/// 60 holes at random places of 8 chunks, beside a copy in memory; and what whole chunks give back.
#[test]
fn holes_are_precise_to_a_block_and_whole_chunks_give_their_space_back() {
    let _group = Group::make(100, 4);
    let mut rig = Rig::open(true);
    rig.made(SEGMENT);
    let mut copy = pattern(2, 8 * CHUNK);
    assert_eq!(rig.write(0, &copy), Ok(DiskDone::Done));
    let full = rig.used();
    for round in 0..60 {
        let dice = pattern(100 + round, 24);
        let die = |at: usize, of: u64| u64::from_le_bytes(dice[8 * at..][..8].try_into().expect("8")) % of;
        let lo = die(0, 8 * 16);
        let len = 1 + die(1, (8 * 16 - lo).min(40));
        let (offset, len) = (lo * BLOCK, len * BLOCK);
        let range = usize::try_from(offset).expect("short")..usize::try_from(offset + len).expect("short");
        if die(2, 3) == 0 {
            let data = pattern(200 + round, len);
            assert_eq!(rig.write(offset, &data), Ok(DiskDone::Done));
            copy[range].copy_from_slice(&data);
        } else {
            rig.done(hole(offset, len, false));
            copy[range].fill(0);
        }
        assert!(rig.read(0, 8 * CHUNK) == copy, "round {round}: {lo} {len}");
    }
    rig.done(hole(0, 8 * CHUNK, false));
    assert_eq!(full - rig.used(), 8 * CHUNK);
    // Nothing was there: nothing is taken, at edges neither.
    let before = rig.used();
    rig.done(hole(9 * CHUNK + BLOCK, 3 * CHUNK, false));
    assert_eq!(rig.used(), before);
    rig.done(hole(9 * CHUNK, 3 * CHUNK, true));
    assert_eq!(rig.used() - before, 3 * CHUNK);
    rig.stop();
}

/// Not gated, so that the thin pool itself says that it is full: whoever was told that a write is done finds it, a seal needs
/// no space, a hole gives some, and the next write goes on.
#[test]
fn a_full_thin_pool_refuses_writes_and_still_seals_and_trims() {
    let _group = Group::make(40, 4);
    let mut rig = Rig::open(false);
    rig.made(4 * SEGMENT);
    // Two segments have their sidecars.
    assert_eq!(rig.write(SEGMENT, &pattern(3, BLOCK)), Ok(DiskDone::Done));
    let mut done = 0;
    let refused = loop {
        match rig.write(done * CHUNK, &pattern(done, CHUNK)) {
            Ok(_) => done += 1,
            Err(error) => break error,
        }
        assert!(done * CHUNK < 41 << 20, "it has taken more than it has");
    };
    assert_eq!(refused, PoolError::NoSpace);
    assert_eq!(rig.space().0, 0);
    // A segment without a sidecar can't be begun.
    assert_eq!(rig.write(3 * SEGMENT, &pattern(4, BLOCK)), Err(PoolError::NoSpace));
    // One that has its chunk can be written, and sealed.
    assert_eq!(rig.write(0, &pattern(0, CHUNK)), Ok(DiskDone::Done));
    rig.done(DiskOp::Seal);
    rig.done(hole(2 * CHUNK, 4 * CHUNK, false));
    assert!(rig.space().0 >= 4 * CHUNK);
    assert_eq!(rig.write(done * CHUNK, &pattern(done, CHUNK)), Ok(DiskDone::Done));
    rig.done(DiskOp::Seal);
    rig.ok(PoolOp::CloseReplica { replica: key(1) });
    rig.opened(4 * SEGMENT);
    for at in (0..=done).filter(|at| !(2..6).contains(at)) {
        assert!(rig.read(at * CHUNK, CHUNK) == pattern(at, CHUNK), "chunk {at}");
    }
    rig.stop();
}

/// 4 KiB in each chunk, which takes 64 KiB, and a look at the pool only after a refusal: the gate closes before the thin pool is full, and
/// opens again when holes have given space back.
#[test]
fn a_gated_pool_is_never_filled_up_however_small_the_writes() {
    let _group = Group::make(40, 16);
    let mut rig = Rig::open(true);
    rig.made(SEGMENT);
    let (free, total) = rig.space();
    assert!(free > total / 10 * 8, "{free} of {total}");
    let mut done = 0;
    loop {
        // What metadata takes is not proportional: the gate may have counted too much, which a look mends.
        if rig.write(done * CHUNK, &pattern(done, BLOCK)).is_err() {
            rig.space();
            if rig.write(done * CHUNK, &pattern(done, BLOCK)).is_err() {
                break;
            }
        }
        done += 1;
    }
    let (free, _) = rig.space();
    assert!(free >= total / 100 * 2 && free < total / 100 * 4, "{free} of {total} after {done}");
    assert_eq!(rig.write(done * CHUNK, &pattern(done, BLOCK)), Err(PoolError::NoSpace));
    rig.done(hole(0, done / 2 * CHUNK, false));
    rig.space();
    assert_eq!(rig.write(done * CHUNK, &pattern(done, BLOCK)), Ok(DiskDone::Done));
    for at in done / 2..=done {
        assert!(rig.read(at * CHUNK, BLOCK) == pattern(at, BLOCK), "chunk {at}");
    }
    rig.stop();
}

const A: SnapId = SnapId(0xa);
const B: SnapId = SnapId(0xb);

/// Two snapshots of a head that is written and trimmed beside a copy in memory; then the volumes are taken down and only
/// the pool's own are activated again; then a clone, and the end of each.
#[test]
fn snapshots_hold_what_the_head_held_whatever_becomes_of_it() {
    let _group = Group::make(150, 4);
    let mut rig = Rig::open(true);
    rig.made(3 * SEGMENT);
    let from = SEGMENT - 4 * CHUNK;
    let mut head = pattern(1, 8 * CHUNK);
    assert_eq!(rig.write(from, &head), Ok(DiskDone::Done));
    let mut held = Vec::new();
    for (round, image) in [A, B].into_iter().enumerate() {
        rig.room_for(image);
        // What nobody has sealed.
        let data = pattern(10 + round as u64, 3 * BLOCK);
        assert_eq!(rig.write(from + CHUNK + 2 * BLOCK, &data), Ok(DiskDone::Done));
        head[(CHUNK + 2 * BLOCK) as usize..][..data.len()].copy_from_slice(&data);
        rig.take(image).expect("taken");
        held.push((image, head.clone()));
        for n in 0..20 {
            let (at, data) = (pattern(100 + n, 8)[0] as u64 % 120 * BLOCK, pattern(30 + n, BLOCK));
            assert_eq!(rig.write(from + at, &data), Ok(DiskDone::Done));
            head[at as usize..][..data.len()].copy_from_slice(&data);
        }
        rig.done(hole(from + 2 * CHUNK + BLOCK, 3 * CHUNK, false));
        head[(2 * CHUNK + BLOCK) as usize..][..3 * CHUNK as usize].fill(0);
        rig.done(DiskOp::Seal);
    }
    let check = |rig: &mut Rig, held: &[(SnapId, Vec<u8>)]| {
        for (image, bytes) in held {
            assert!(rig.of_image(*image, from, 8 * CHUNK) == *bytes, "{image}");
            assert_eq!(rig.of_image(*image, 2 * SEGMENT, BLOCK), vec![0; 4096]);
        }
    };
    check(&mut rig, &held);
    rig.space();
    assert!(Group::volumes().iter().all(|(_, tags)| tags.is_empty()), "{:?}", Group::volumes());
    rig.ok(PoolOp::CloseReplica { replica: key(1) });
    rig.stop();
    run("umount", &[POOL]);
    lvm(&["vgchange", "--activate", "n", VG]);
    lvm(&["lvchange", "--activate", "y", &format!("{VG}/meta")]);
    run("mount", &["/dev/mapper/weft--12ab-meta", POOL]);
    let mut rig = Rig::open(true);
    let active = lvm(&["lvs", "--noheadings", "--options", "lv_name,lv_active", VG]);
    let images = active.lines().filter(|line| line.trim().starts_with("s-"));
    assert!(images.clone().count() == 2 && !images.clone().any(|line| line.contains("active")), "{active}");
    rig.opened(3 * SEGMENT);
    check(&mut rig, &held);
    assert!(rig.read(from, 8 * CHUNK) == head);

    let to = key(7);
    rig.ok(PoolOp::BeginClone { from: key(1), image: A, to, meta_bytes: 4096 });
    rig.ok(PoolOp::PublishClone { replica: to, checkpoint: vec![1; 4096] });
    rig.ok(PoolOp::DropImage { replica: key(1), image: A });
    let (_, of_a) = held.remove(0);
    check(&mut rig, &held);
    let before = rig.used();
    rig.ok(PoolOp::DropImage { replica: key(1), image: B });
    assert!(rig.used() < before, "what only it had is free");
    assert_eq!(rig.write(from, &pattern(77, CHUNK)), Ok(DiskDone::Done));
    rig.ok(PoolOp::TrashReplica { replica: key(1), now_s: 9 });
    let Ok(PoolAnswer::Trash(entries)) = rig.run(PoolOp::ListTrash) else { panic!("not listed") };
    rig.ok(PoolOp::EmptyTrash { name: entries[0].name.clone() });
    rig.space();
    assert_eq!(Group::volumes().len(), 1, "{:?}", Group::volumes());
    rig.ok(PoolOp::OpenReplica { replica: to, size: 3 * SEGMENT, unsealed: Vec::new() });
    let op = DiskOp::Read { offset: from, len: 8 * CHUNK };
    match rig.run(PoolOp::Disk { replica: to, op }) {
        Ok(PoolAnswer::Disk(DiskDone::Data(extents))) => assert!(flat(extents) == of_a),
        other => panic!("{other:?}"),
    }
    rig.stop();
}

/// Not gated: the thin pool itself is full of what was written over since a snapshot. Who was told that a write is done finds
/// it, what has its chunk is written and sealed, the image is whole, and its removal makes room.
#[test]
fn a_pool_that_is_full_of_snapshots_still_seals_and_goes_on_without_them() {
    let _group = Group::make(40, 4);
    let mut rig = Rig::open(false);
    rig.made(2 * SEGMENT);
    let chunks = 400;
    for at in 0..chunks {
        assert_eq!(rig.write(at * CHUNK, &pattern(at, CHUNK)), Ok(DiskDone::Done));
    }
    assert_eq!(rig.write(SEGMENT, &pattern(5, BLOCK)), Ok(DiskDone::Done));
    rig.room_for(A);
    rig.take(A).expect("taken");
    let mut done = 0;
    let refused = loop {
        match rig.write(done * CHUNK, &pattern(1000 + done, BLOCK)) {
            Ok(_) => done += 1,
            Err(error) => break error,
        }
        assert!(done < chunks, "it has taken more than it has");
    };
    assert_eq!((refused, rig.space().0), (PoolError::NoSpace, 0));
    // The second segment's sidecar is shared: nothing of it may be written.
    assert_eq!(rig.write(SEGMENT, &pattern(6, BLOCK)), Err(PoolError::NoSpace));
    assert_eq!(rig.write(BLOCK, &pattern(7, BLOCK)), Ok(DiskDone::Done));
    rig.done(DiskOp::Seal);
    assert_eq!(rig.write(2 * BLOCK, &pattern(8, BLOCK)), Ok(DiskDone::Done));
    rig.done(hole(CHUNK, CHUNK, false));
    rig.done(DiskOp::Seal);
    for at in 0..chunks {
        assert!(rig.of_image(A, at * CHUNK, CHUNK) == pattern(at, CHUNK), "chunk {at}");
    }
    assert_eq!(rig.of_image(A, SEGMENT, BLOCK), pattern(5, BLOCK));
    rig.ok(PoolOp::CloseReplica { replica: key(1) });
    rig.opened(2 * SEGMENT);
    rig.ok(PoolOp::DropImage { replica: key(1), image: A });
    assert_eq!(rig.write(SEGMENT, &pattern(6, BLOCK)), Ok(DiskDone::Done));
    for at in (0..chunks).filter(|at| *at != 1) {
        let mut expected = pattern(at, CHUNK);
        if at < done {
            expected[..4096].copy_from_slice(&pattern(1000 + at, BLOCK));
        }
        if at == 0 {
            expected[4096..8192].copy_from_slice(&pattern(7, BLOCK));
            expected[8192..12288].copy_from_slice(&pattern(8, BLOCK));
        }
        assert!(rig.read(at * CHUNK, CHUNK) == expected, "chunk {at}");
    }
    rig.stop();
}

/// 4 KiB over what a snapshot shares take 64 KiB, and metadata: the gate closes before either is full, however it was
/// written, and opens again when the snapshot has gone.
#[test]
fn a_gated_pool_is_never_filled_up_by_what_is_written_over_a_snapshot() {
    let _group = Group::make(40, 4);
    let mut rig = Rig::open(true);
    rig.made(SEGMENT);
    let chunks = 400;
    for at in 0..chunks {
        assert_eq!(rig.write(at * CHUNK, &pattern(at, CHUNK)), Ok(DiskDone::Done));
    }
    rig.room_for(A);
    rig.take(A).expect("taken");
    let (_, total) = rig.space();
    let mut done = 0;
    // All over the segment.
    let place = |n: u64| n * 149 % chunks * CHUNK;
    while done < chunks {
        if rig.write(place(done), &pattern(done, BLOCK)).is_err() {
            rig.space();
            if rig.write(place(done), &pattern(done, BLOCK)).is_err() {
                break;
            }
        }
        done += 1;
    }
    let (free, _) = rig.space();
    assert!(
        done < chunks && free >= total / 100 * 2 && free < total / 100 * 6,
        "{free} of {total} after {done}"
    );
    rig.done(DiskOp::Seal);
    rig.ok(PoolOp::DropImage { replica: key(1), image: A });
    rig.space();
    assert_eq!(rig.write(place(done), &pattern(done, BLOCK)), Ok(DiskDone::Done));
    for at in 0..=done {
        assert!(rig.read(place(at), BLOCK) == pattern(at, BLOCK), "chunk {at}");
    }
    rig.stop();
}

/// As weft's own commands.
const ALONE: &str = "devices { filter=[\"a|^/dev/ram0$|\", \"r|.*|\"] global_filter=[\"a|^/dev/ram0$|\", \"r|.*|\"] use_devicesfile=0 \
     obtain_device_list_from_udev=0 external_device_info_source=\"none\" hints=\"none\" scan_lvs=0 } \
     activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 } \
     global { use_lvmpolld=0 notify_dbus=0 } backup { backup=0 archive=0 }";

/// The bar: what a volume's writes wait for is not more than 1.3 × what LVM takes for a snapshot of it. In each round both are
/// taken of the same volume, with sidecars of three segments to be written back, in turns.
#[test]
fn the_pause_of_a_snapshot_is_little_more_than_lvms_own() {
    let _group = Group::make(150, 16);
    let mut rig = Rig::open(true);
    rig.made(3 * SEGMENT);
    for at in 0..96 {
        assert_eq!(rig.write(at * 2 * (SEGMENT / 64), &pattern(at, CHUNK)), Ok(DiskDone::Done));
    }
    let [(volume, _)] = Group::volumes().try_into().expect("one");
    let origin = format!("{VG}/{volume}");
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let (mut pauses, mut alone) = (Vec::new(), Vec::new());
    for round in 0..11_u64 {
        let image = SnapId(100 + u128::from(round));
        rig.room_for(image);
        for at in 0..12 {
            let offset = at % 3 * SEGMENT + (round * 12 + at) * BLOCK;
            assert_eq!(rig.write(offset, &pattern(at, BLOCK)), Ok(DiskDone::Done));
        }
        let begun = Instant::now();
        rig.take(image).expect("taken");
        pauses.push(begun.elapsed());
        let name = format!("alone-{round}");
        let args = [
            "lvcreate",
            "--yes",
            "--snapshot",
            "--setactivationskip",
            "y",
            "--addtag",
            "x",
            "--name",
            &name,
            &origin,
        ];
        let begun = Instant::now();
        run("lvm", &[&args[..], &["--config", ALONE]].concat());
        alone.push(begun.elapsed());
        lvm(&["lvremove", "--yes", &format!("{VG}/{name}")]);
        rig.ok(PoolOp::DropImage { replica: key(1), image });
    }
    let (pause, alone) = (median(pauses), median(alone));
    let ratio = pause.as_secs_f64() / alone.as_secs_f64();
    println!(
        "snapshot on LVM: writes wait for {} ms, lvcreate -s alone takes {} ms (medians of 11): {ratio:.2}",
        pause.as_millis(),
        alone.as_millis()
    );
    assert!(ratio <= 1.3, "{ratio:.2}");
    rig.stop();
}

/// Commands of `lvm` that are running, by their numbers.
fn commands() -> Vec<i32> {
    let is_ours =
        |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "lvm");
    let processes = fs::read_dir("/proc").expect("listed").flatten().map(|entry| entry.path());
    processes
        .filter(is_ours)
        .filter_map(|path| path.file_name().and_then(OsStr::to_str)?.parse().ok())
        .collect()
}

/// Replicas are made, grown, imaged, cloned and destroyed while commands are killed at random moments; then the pool is opened anew. Nothing
/// is left half made, and what lives has its volume.
#[test]
fn commands_that_are_killed_leave_nothing_half_made() {
    let _group = Group::make(100, 4);
    let mut killed = 0;
    for round in 0..6_u32 {
        let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let killer = {
            let (over, count) = (over.clone(), count.clone());
            thread::spawn(move || {
                let mut wait = u64::from(round) * 7 + 3;
                while !over.load(Ordering::Relaxed) && count.load(Ordering::Relaxed) < 6 {
                    let Some(pid) = commands().pop() else {
                        thread::sleep(Duration::from_millis(2));
                        continue;
                    };
                    thread::sleep(Duration::from_millis(wait));
                    wait = (wait * 31 + 17) % 190;
                    // SAFETY: no memory is passed.
                    if unsafe { libc::kill(pid, libc::SIGKILL) } == 0 {
                        count.fetch_add(1, Ordering::Relaxed);
                        // Some get through.
                        thread::sleep(Duration::from_millis(wait * 4));
                    }
                }
            })
        };
        let end = Instant::now() + Duration::from_secs(60);
        let path = Path::new(POOL);
        let mut rig = loop {
            // A start that fails is tried again, as weftd does.
            if let Ok(dir) = if path.join("superblock").exists() {
                PoolDir::open_when_free(path, || ())
            } else {
                PoolDir::create(path, 1 << 20, b"x")
            } {
                let mut driver = open(Some(DriverKind::Libaio), DriverConfig::default()).expect("a driver");
                let pool = FilePool::start(dir, PoolConfig::new(TokenSpace(1)), &mut driver).expect("starts");
                break Rig { driver, pool, token: 0 };
            }
            assert!(Instant::now() < end, "round {round}: it never opens");
        };
        let number = 10 + round;
        let made = rig.run(PoolOp::CreateReplica { replica: key(number), meta_bytes: 4096, thick: None });
        let opened = PoolOp::OpenReplica { replica: key(number), size: 5 * SEGMENT, unsealed: Vec::new() };
        let _ = rig.run(opened);
        let imaged = key(number);
        let _ = rig.run(PoolOp::TakeImage { replica: imaged, image: A, slot_bytes: 4096 });
        let _ = rig.run(PoolOp::TakeSnapshot { replica: imaged, image: A });
        let to = key(100 + number);
        let begun = rig.run(PoolOp::BeginClone { from: imaged, image: A, to, meta_bytes: 4096 });
        if begun.is_err() || round % 2 == 0 {
            let _ = rig.run(PoolOp::AbandonClone { replica: to });
        } else {
            let _ = rig.run(PoolOp::PublishClone { replica: to, checkpoint: vec![1; 4096] });
        }
        if round % 3 == 0 {
            let _ = rig.run(PoolOp::DropImage { replica: imaged, image: A });
        }
        let _ = rig.run(PoolOp::CloseReplica { replica: key(number) });
        let before = rig.run(PoolOp::TrashReplica { replica: key(number.saturating_sub(2)), now_s: 5 });
        if let Ok(PoolAnswer::Trash(entries)) = rig.run(PoolOp::ListTrash) {
            for entry in entries {
                let _ = rig.run(PoolOp::EmptyTrash { name: entry.name });
            }
        }
        over.store(true, Ordering::Relaxed);
        killer.join().expect("ended");
        rig.stop();
        killed += count.load(Ordering::Relaxed);

        let mut rig = Rig::open(true);
        let Ok(PoolAnswer::Replicas(living)) = rig.run(PoolOp::ListReplicas) else { panic!("not listed") };
        let Ok(PoolAnswer::Trash(trash)) = rig.run(PoolOp::ListTrash) else { panic!("not listed") };
        let volumes = Group::volumes();
        let of_images = volumes.iter().filter(|(name, _)| name.starts_with("s-")).count();
        assert_eq!(
            volumes.len() - of_images,
            living.len() + trash.len(),
            "round {round}: {made:?} {before:?} {volumes:?}"
        );
        let Ok(PoolAnswer::Images(images)) = rig.run(PoolOp::ListImages) else { panic!("not listed") };
        // Room that was made for one has a name, and perhaps no volume yet.
        assert!(of_images <= images.len(), "round {round}: {images:?} {volumes:?}");
        for (replica, image) in images {
            rig.ok(PoolOp::DropImage { replica, image });
        }
        let left = Group::volumes();
        assert!(!left.iter().any(|(name, _)| name.starts_with("s-")), "round {round}: {left:?}");
        assert!(volumes.iter().all(|(_, tags)| tags.is_empty()), "round {round}: {volumes:?}");
        for replica in living {
            rig.ok(PoolOp::OpenReplica { replica, size: 5 * SEGMENT, unsealed: Vec::new() });
            rig.ok(PoolOp::CloseReplica { replica });
        }
        rig.stop();
    }
    assert!(killed >= 6, "{killed} commands were killed");
}
