//! Pools on the disk here (with O_DIRECT) and in memory, over both drivers.

#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges are what the pool takes")]

use core::time::Duration;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use weft_proto::ids::{Rid, VolumeId};
use weft_proto::message::Extent;
use weft_proto::payload::block_crcs;

use siphasher::sip128::SipHasher24;

use super::*;
use crate::driver::{AnyDriver, DriverConfig, DriverKind, open};
use crate::pool_dir::{FileSystem, OpenError};
use crate::reflink::{Ability, NoSnapshots};
use crate::sidecar::SEGMENT_BYTES;
use crate::testing::{TempDir, mounted_ext4, mounted_xfs, unmounted};

mod clones;
mod fill;
mod images;
mod killed;
mod room;
mod thin;
mod thin_images;

const SEGMENT: u64 = SEGMENT_BYTES;
const KEY: ReplicaKey = ReplicaKey { volume: VolumeId(0x1234_5678), rid: Rid(1) };
const SPACE: TokenSpace = TokenSpace(7);

/// A pool with its driver; ops are done one at a time unless a test says otherwise.
struct Rig {
    driver: AnyDriver,
    pool: FilePool,
    token: u64,
}

type Done = Result<PoolAnswer, PoolError>;

impl Rig {
    fn open(path: &Path, kind: DriverKind) -> Rig {
        Rig::with(path, kind, PoolConfig::new(SPACE))
    }

    fn with(path: &Path, kind: DriverKind, config: PoolConfig) -> Rig {
        Rig::over(path, kind, config, |dir| dir)
    }

    fn over(
        path: &Path,
        kind: DriverKind,
        config: PoolConfig,
        adapt: impl FnOnce(PoolDir) -> PoolDir,
    ) -> Rig {
        let mut driver = open(Some(kind), DriverConfig::default()).expect("a driver");
        // The kernel takes a ring down after its owner has let go of it, and the lock with it.
        if let Ok(lock) = OpenOptions::new().write(true).open(path.join("lock")) {
            lock.lock().expect("flocked");
        }
        let dir = match PoolDir::open(path) {
            Err(OpenError::NotAPool | OpenError::Io { .. }) => {
                PoolDir::create(path, 1 << 20, b"hello").expect("created")
            }
            other => other.expect("opened"),
        };
        let pool = FilePool::start(adapt(dir), config, &mut driver).expect("started");
        Rig { driver, pool, token: 0 }
    }

    fn submit(&mut self, op: PoolOp) -> u64 {
        self.token += 1;
        self.pool.submit(self.token, op);
        self.token
    }

    /// Runs until an op has ended.
    fn done(&mut self, token: u64) -> Done {
        loop {
            match self.next() {
                PoolEvent::Done { token: t, result } if t == token => return result,
                PoolEvent::Done { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Until nothing is under way any more, also of what nobody asked for.
    fn rest(&mut self) {
        let mut out = Vec::new();
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            self.pool.drive(&mut self.driver);
            while self.pool.poll_event().is_some() {}
            if self.pool.is_idle() {
                return;
            }
            assert!(Instant::now() < until, "something never ends");
            self.driver.wait(Some(Duration::from_secs(1)), &mut out).expect("wait");
            out.drain(..).for_each(|c| self.pool.handle_completion(c));
        }
    }

    fn next(&mut self) -> PoolEvent {
        let mut out = Vec::new();
        loop {
            self.pool.drive(&mut self.driver);
            if let Some(event) = self.pool.poll_event() {
                return event;
            }
            self.driver.wait(Some(Duration::from_secs(20)), &mut out).expect("wait");
            out.drain(..).for_each(|c| self.pool.handle_completion(c));
        }
    }

    fn run(&mut self, op: PoolOp) -> Done {
        let token = self.submit(op);
        self.done(token)
    }

    fn ok(&mut self, op: PoolOp) {
        assert_eq!(self.run(op), Ok(PoolAnswer::Done));
    }

    fn disk(&mut self, op: DiskOp<IoBuf>) -> Result<DiskDone<IoBuf>, PoolError> {
        self.run(PoolOp::Disk { replica: KEY, op }).map(|answer| match answer {
            PoolAnswer::Disk(done) => done,
            other => panic!("{other:?}"),
        })
    }

    fn made(&mut self, size: u64) {
        self.ok(PoolOp::CreateReplica { replica: KEY, meta_bytes: 8192, thick: None });
        self.opened(size, &[]);
    }

    fn opened(&mut self, size: u64, unsealed: &[Range<u64>]) {
        let unsealed = unsealed.to_vec();
        self.ok(PoolOp::OpenReplica { replica: KEY, size, unsealed });
    }

    fn write(&mut self, block: u64, bytes: &[u8]) {
        assert_eq!(self.disk(write(block, bytes)), Ok(DiskDone::Done));
    }

    /// Each block's content: `None` for a hole of this kind.
    fn read(&mut self, first: u64, blocks: u64) -> Result<Vec<Result<u8, Hole>>, PoolError> {
        let done = self.disk(DiskOp::Read { offset: first * BLOCK, len: blocks * BLOCK })?;
        let DiskDone::Data(extents) = done else { panic!("{done:?}") };
        let mut all = Vec::new();
        for extent in extents {
            match extent {
                Extent::Hole { len, kind } => all.extend((0..len / BLOCK).map(|_| Err(kind))),
                Extent::Data { crcs, data } => {
                    assert_eq!(crcs, block_crcs(data.bytes()));
                    all.extend(data.bytes().chunks_exact(BLOCK_LEN).map(|block| {
                        assert!(block.iter().all(|b| *b == block[0]), "torn");
                        Ok(block[0])
                    }));
                }
            }
        }
        assert_eq!(all.len() as u64, blocks);
        Ok(all)
    }

    fn kinds(&mut self, first: u64, blocks: u64) -> Vec<(u64, Option<Hole>)> {
        match self.disk(DiskOp::Kinds { offset: first * BLOCK, len: blocks * BLOCK }) {
            Ok(DiskDone::Kinds(kinds)) => kinds.into_iter().map(|(len, kind)| (len / BLOCK, kind)).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn zero(&mut self, first: u64, blocks: u64, kind: Hole) {
        assert_eq!(self.disk(zero(first, blocks, kind)), Ok(DiskDone::Done));
    }

    fn seal(&mut self) {
        assert_eq!(self.disk(DiskOp::Seal), Ok(DiskDone::Done));
    }

    /// As after kill -9: what was not written is gone. Waits until the driver has let go of the lock.
    fn kill(self) {
        let lock = self.pool.dir.lock.clone();
        drop(self);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&lock));
        let again = fs::File::open(path).expect("opened");
        drop(lock);
        again.lock().expect("flocked");
    }
}

fn write(block: u64, bytes: &[u8]) -> DiskOp<IoBuf> {
    let data: Vec<u8> = bytes.iter().flat_map(|b| [*b; BLOCK_LEN]).collect();
    DiskOp::Write {
        offset: block * BLOCK,
        crcs: block_crcs(&data),
        data: IoBuf::copy_of(&data),
        durable: true,
    }
}

fn zero(first: u64, blocks: u64, kind: Hole) -> DiskOp<IoBuf> {
    DiskOp::Zero { offset: first * BLOCK, len: blocks * BLOCK, kind, keep_space: false }
}

/// Each test in four worlds.
fn everywhere(test: impl Fn(&Path, DriverKind)) {
    for kind in [DriverKind::IoUring, DriverKind::Libaio] {
        let disk = TempDir::on_disk();
        test(disk.path(), kind);
        let memory = TempDir::under(Path::new("/dev/shm"));
        test(memory.path(), kind);
    }
}

fn segment_file(pool: &Path, name: &str) -> fs::File {
    let path = pool.join("replicas").join(pool_dir::replica_name(KEY)).join(name);
    OpenOptions::new().read(true).write(true).open(path).expect("opened")
}

#[test]
fn what_was_written_is_read_with_kinds_and_checksums() {
    everywhere(|path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(3 * SEGMENT);
        assert_eq!(rig.kinds(0, 100), vec![(100, Some(Hole::Absent))]);
        rig.write(3, &[7, 8]);
        // Across two segments.
        rig.write(16383, &[1, 2]);
        rig.zero(4, 2, Hole::Zero);
        let (absent, zero) = (Err(Hole::Absent), Err(Hole::Zero));
        assert_eq!(rig.read(2, 5), Ok(vec![absent, Ok(7), zero, zero, absent]));
        assert_eq!(rig.read(16382, 4), Ok(vec![absent, Ok(1), Ok(2), absent]));
        assert_eq!(rig.kinds(3, 3), vec![(1, None), (2, Some(Hole::Zero))]);
        rig.zero(3, 1, Hole::Absent);
        assert_eq!(rig.read(3, 1), Ok(vec![absent]));
        for op in [
            DiskOp::Read { offset: 3 * SEGMENT, len: BLOCK },
            DiskOp::Read { offset: 0, len: 0 },
            DiskOp::Read { offset: 512, len: BLOCK },
            DiskOp::Read { offset: u64::MAX - 4095, len: BLOCK },
        ] {
            assert_eq!(rig.disk(op), Err(PoolError::OutOfBounds));
        }
        assert_eq!(rig.run(PoolOp::CloseReplica { replica: KEY }), Ok(PoolAnswer::Done));
        assert_eq!(rig.disk(DiskOp::Flush), Err(PoolError::NoReplica));
        rig.rest();
    });
}

#[test]
fn the_probe_tells_what_the_file_system_can() {
    let (disk, memory) = (TempDir::on_disk(), TempDir::under(Path::new("/dev/shm")));
    let dir = PoolDir::create(disk.path(), 4096, b"").expect("created");
    let Probe { direct, file_system, .. } = dir.probe();
    assert!(direct && matches!(file_system, FileSystem::Ext4 | FileSystem::Xfs | FileSystem::Btrfs));
    let dir = PoolDir::create(memory.path(), 4096, b"").expect("created");
    assert_eq!(dir.probe().file_system, FileSystem::Tmpfs);
    let Ability::None(why) = dir.probe().ability else { panic!("memory shares nothing") };
    assert!(why.to_string().starts_with("the pool lies on tmpfs, and only on XFS"), "{why}");
}

#[test]
fn volumes_can_have_snapshots_on_an_xfs_that_shares_blocks() {
    let dir = TempDir::on_disk();
    let ability = |name: &str, options: &[&str]| {
        let mount = mounted_xfs(dir.path(), name, 300, options);
        PoolDir::create(&mount, 4096, b"").expect("created").probe().ability
    };
    assert_eq!(ability("with", &[]), Ability::Reflink);
    assert_eq!(ability("without", &["-m", "reflink=0"]), Ability::None(NoSnapshots::XfsWithout));
    // As it is found at every start.
    assert_eq!(PoolDir::open(&dir.path().join("with")).expect("opened").probe().ability, Ability::Reflink);
}

#[test]
fn a_second_pool_on_the_directory_is_refused_until_the_first_is_gone() {
    everywhere(|path, kind| {
        let mut rig = Rig::open(path, kind);
        assert_eq!(PoolDir::open(path).err(), Some(OpenError::Locked));
        assert!(matches!(PoolDir::create(path, 4096, b""), Err(OpenError::NotEmpty(_))));
        rig.pool.stop(&mut rig.driver).expect("stopped");
        drop(rig.driver);
        // The ring gives the lock back in its own time.
        let lock = fs::File::open(path.join("lock")).expect("opened");
        lock.lock().expect("flocked");
        drop(lock);
        assert_eq!(PoolDir::open(path).expect("opened").superblock(), b"hello");
    });
}

/// protocol.md R13: the wait is in the kernel, and said before it begins.
#[test]
fn who_waits_for_a_pool_gets_it_when_its_lock_is_free() {
    everywhere(|path, kind| {
        let mut rig = Rig::open(path, kind);
        let (says, said) = std::sync::mpsc::channel();
        let (waits, at) = (says.clone(), path.to_owned());
        let waiting = std::thread::spawn(move || {
            let opened = PoolDir::open_when_free(&at, || waits.send("waits").expect("heard"));
            says.send("opened").expect("heard");
            opened
        });
        assert_eq!(said.recv(), Ok("waits"));
        assert!(said.try_recv().is_err(), "the lock is held");
        rig.pool.stop(&mut rig.driver).expect("stopped");
        drop(rig.driver);
        assert_eq!(waiting.join().expect("no panic").expect("opened").superblock(), b"hello");
        assert_eq!(said.recv(), Ok("opened"));
        let free = PoolDir::open_when_free(path, || panic!("nobody holds it"));
        assert_eq!(free.expect("opened").superblock(), b"hello");
    });
}

#[test]
fn a_foreign_directory_is_refused_and_an_unfinished_pool_is_finished() {
    let dir = TempDir::on_disk();
    fs::write(dir.path().join("letter"), b"dear").expect("written");
    let error = PoolDir::create(dir.path(), 4096, b"").expect_err("refused");
    assert_eq!(error, OpenError::NotEmpty("letter".to_owned()));
    assert_eq!(PoolDir::open(dir.path()).err(), Some(OpenError::NotAPool));
    assert!(fs::read(dir.path().join("letter")).is_ok());
    fs::remove_file(dir.path().join("letter")).expect("removed");
    // As left by a crash in the middle of it.
    for name in ["lock", "wal", "superblock.tmp", "probe.tmp"] {
        fs::write(dir.path().join(name), [1; 9000]).expect("written");
    }
    fs::create_dir(dir.path().join("trash")).expect("made");
    let pool = PoolDir::create(dir.path(), 8192, b"new").expect("created");
    assert_eq!((pool.superblock(), pool.wal_bytes()), (&b"new"[..], 8192));
    assert!(pool.read_wal().expect("read").bytes().iter().all(|b| *b == 0));
}

#[test]
fn one_copy_of_the_superblock_may_rot() {
    let dir = TempDir::on_disk();
    let mut pool = PoolDir::create(dir.path(), 4096, b"one").expect("created");
    pool.write_superblock(b"two").expect("written");
    drop(pool);
    let file = OpenOptions::new().write(true).open(dir.path().join("superblock")).expect("opened");
    file.write_all_at(&[0xff; 100], 30).expect("written");
    let mut pool = PoolDir::open(dir.path()).expect("opened");
    assert_eq!(pool.superblock(), b"two");
    pool.write_superblock(b"three").expect("written");
    drop(pool);
    file.write_all_at(&[0xff; 100], 4096 + 30).expect("written");
    let pool = PoolDir::open(dir.path()).expect("opened");
    assert_eq!(pool.superblock(), b"three");
    drop(pool);
    file.write_all_at(&[0xff; 100], 30).expect("written");
    assert_eq!(PoolDir::open(dir.path()).err(), Some(OpenError::BadSuperblock));
}

/// What is written and synced, by name.
#[derive(Debug, Default)]
struct Notes(std::sync::Mutex<Vec<String>>);

impl crate::files::Journal for Notes {
    fn starts(&self, change: &crate::files::Change<'_>) -> u64 {
        use crate::files::Change;
        let name = |file: &crate::driver::Fd| {
            let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
            let path = fs::read_link(link).expect("an open file has a path");
            path.file_name().expect("a name").to_string_lossy().into_owned()
        };
        let note = match *change {
            Change::Sync { file } => format!("sync {}", name(file)),
            Change::Write { file, offset, .. } => format!("write {} at {offset}", name(file)),
            _ => return 0,
        };
        self.0.lock().expect("one thread").push(note);
        0
    }

    fn ended(&self, _number: u64, _done: bool, _made: Option<&crate::driver::Fd>) {}
}

#[test]
fn what_a_start_finds_is_durable_before_it_is_acted_upon() {
    // A killed process leaves in the kernel what no power cut would spare; weft-crash shows what becomes of that.
    let dir = TempDir::on_disk();
    let path = dir.path().join("pool");
    let mut rig = Rig::open(&path, DriverKind::IoUring);
    rig.made(3 * SEGMENT);
    rig.write(0, &[1]);
    rig.write(2 * 16384, &[2]);
    rig.kill();
    let notes = std::sync::Arc::new(Notes::default());
    let take = || core::mem::take(&mut *notes.0.lock().expect("one thread"));
    let files = crate::files::Files::recorded(notes.clone());
    let pool = PoolDir::open_through(&files, &path).expect("opened");
    let above = path.parent().and_then(Path::file_name).expect("a name").to_string_lossy().into_owned();
    let above = format!("sync {above}");
    assert_eq!(take(), ["sync pool", &above, "sync superblock", "sync wal", "sync replicas", "sync trash"]);
    let mut driver = open(Some(DriverKind::IoUring), DriverConfig::default()).expect("a driver");
    let pool = FilePool::start(pool, PoolConfig::new(SPACE), &mut driver).expect("started");
    let mut rig = Rig { driver, pool, token: 0 };
    let read = PoolOp::ReadCheckpoint { replica: KEY, slot: Slot::B };
    assert!(rig.run(read).is_ok());
    // Only the last segment may hold what was not flushed.
    rig.opened(3 * SEGMENT, &[2 * SEGMENT..2 * SEGMENT + BLOCK]);
    let replica = format!("sync {}", pool_dir::replica_name(KEY));
    assert_eq!(take(), ["sync meta.b", &replica, "sync seg-000002", "sync crc-000002"]);
}

#[test]
fn the_newest_copy_of_the_superblock_is_written_last() {
    // A crash may have left the other one torn: until that is whole again the newest is all there is.
    let dir = TempDir::on_disk();
    drop(PoolDir::create(dir.path(), 4096, b"one").expect("created"));
    let file = OpenOptions::new().write(true).open(dir.path().join("superblock")).expect("opened");
    let notes = std::sync::Arc::new(Notes::default());
    for (damaged, order) in [(4096, [4096, 0]), (0, [0, 4096])] {
        file.write_all_at(&[0xff; 100], damaged + 30).expect("written");
        let files = crate::files::Files::recorded(notes.clone());
        let mut pool = PoolDir::open_through(&files, dir.path()).expect("opened");
        notes.0.lock().expect("one thread").clear();
        pool.write_superblock(b"two").expect("written");
        let expected = order.map(|at| [format!("write superblock at {at}"), "sync superblock".to_owned()]);
        assert_eq!(*notes.0.lock().expect("one thread"), expected.concat());
    }
}

#[test]
fn a_sealed_block_that_rots_is_refused_and_an_unsealed_one_is_what_it_is() {
    // protocol.md 4.10, R22: the checksum is authoritative below the replica's own sealed generation only.
    everywhere(|path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(SEGMENT);
        rig.write(0, &[1, 2, 3, 4]);
        rig.zero(4, 1, Hole::Zero);
        rig.seal();
        rig.write(8, &[9]);
        rig.kill();
        // Blocks 1, 4 and 6 change behind the pool's back; the kind of block 8 was never written back.
        let data = segment_file(path, "seg-000000");
        for block in [1, 4, 6] {
            data.write_all_at(&[0x55; BLOCK_LEN], block * BLOCK).expect("written");
        }
        data.sync_all().expect("synced");
        let mut rig = Rig::open(path, kind);
        rig.opened(SEGMENT, &[8 * BLOCK..10 * BLOCK]);
        assert_eq!(rig.read(0, 2), Err(PoolError::BitRot { offset: BLOCK }));
        let hash = DiskOp::Hash { offset: 0, len: 2 * BLOCK, key: [1; 16] };
        assert_eq!(rig.disk(hash), Err(PoolError::BitRot { offset: BLOCK }));
        // Counted once, however often it is asked for.
        let figures = |rig: &Rig| (rig.pool.figures().bit_rot, rig.pool.figures().bit_rot_left);
        assert_eq!(figures(&rig), (1, 1));
        let (absent, zero) = (Err(Hole::Absent), Err(Hole::Zero));
        assert_eq!(rig.read(2, 8), Ok(vec![Ok(3), Ok(4), zero, absent, absent, absent, Ok(9), absent]));
        // Repaired in place.
        rig.write(1, &[2]);
        assert_eq!(rig.read(0, 2), Ok(vec![Ok(1), Ok(2)]));
        assert_eq!(figures(&rig), (1, 0));
        data.write_all_at(&[0x56; BLOCK_LEN], BLOCK).expect("written");
        assert_eq!(rig.read(0, 2), Err(PoolError::BitRot { offset: BLOCK }));
        assert_eq!(figures(&rig), (2, 1), "it has rotted again");
        rig.zero(1, 1, Hole::Zero);
        assert_eq!(figures(&rig), (2, 0));
        rig.write(1, &[2]);
        rig.seal();
        rig.kill();
        // All of it in doubt: whatever the data says.
        data.write_all_at(&[0x66; BLOCK_LEN], 2 * BLOCK).expect("written");
        data.sync_all().expect("synced");
        let mut rig = Rig::open(path, kind);
        rig.opened(SEGMENT, &[0..SEGMENT]);
        let all = [Ok(1), Ok(2), Ok(0x66), Ok(4), Ok(0x55), absent, Ok(0x55), absent, Ok(9), absent];
        assert_eq!(
            rig.kinds(4, 4),
            vec![(1, None), (1, Some(Hole::Absent)), (1, None), (1, Some(Hole::Absent))]
        );
        assert_eq!(rig.read(0, 10), Ok(all.to_vec()));
        // A seal makes what was found authoritative, also where nobody looked.
        rig.seal();
        rig.kill();
        let mut rig = Rig::open(path, kind);
        rig.opened(SEGMENT, &[]);
        assert_eq!(rig.read(0, 10), Ok(all.to_vec()));
    });
}

#[test]
fn a_seal_looks_at_blocks_in_doubt_that_nobody_touched() {
    everywhere(|path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(SEGMENT);
        rig.write(100, &[1]);
        rig.seal();
        rig.write(100, &[2]);
        rig.kill();
        let mut rig = Rig::open(path, kind);
        rig.opened(SEGMENT, &[0..SEGMENT]);
        rig.seal();
        rig.kill();
        let mut rig = Rig::open(path, kind);
        rig.opened(SEGMENT, &[]);
        assert_eq!(rig.read(100, 1), Ok(vec![Ok(2)]));
    });
}

#[test]
fn a_file_that_was_taken_away_is_damage_and_an_interrupted_creation_is_not() {
    let dir = TempDir::on_disk();
    let mut rig = Rig::open(dir.path(), DriverKind::IoUring);
    rig.made(2 * SEGMENT);
    rig.write(0, &[1]);
    rig.seal();
    rig.kill();
    let replica = dir.path().join("replicas").join(pool_dir::replica_name(KEY));
    fs::rename(replica.join("crc-000000"), replica.join("away")).expect("moved");
    // Empty files, as a crash leaves them.
    fs::write(replica.join("crc-000001"), []).expect("made");
    let mut rig = Rig::open(dir.path(), DriverKind::IoUring);
    rig.opened(2 * SEGMENT, &[]);
    assert_eq!(rig.read(0, 1), Err(PoolError::Damaged { segment: 0 }));
    assert_eq!(rig.read(16384, 1), Ok(vec![Err(Hole::Absent)]));
    rig.write(16384, &[5]);
    rig.kill();
    fs::rename(replica.join("away"), replica.join("crc-000000")).expect("moved");
    fs::rename(replica.join("seg-000000"), replica.join("away")).expect("moved");
    let mut rig = Rig::open(dir.path(), DriverKind::IoUring);
    rig.opened(2 * SEGMENT, &[]);
    assert_eq!(rig.read(0, 1), Err(PoolError::Damaged { segment: 0 }));
}

#[test]
fn few_open_segments_serve_many() {
    everywhere(|path, kind| {
        let config = PoolConfig { open_segments: 2, ..PoolConfig::new(SPACE) };
        let mut rig = Rig::with(path, kind, config);
        rig.made(12 * SEGMENT);
        let tokens: Vec<u64> = (0..12u8)
            .map(|i| rig.submit(PoolOp::Disk { replica: KEY, op: write(u64::from(i) * 16384, &[i + 1]) }))
            .collect();
        let mut ended = Vec::new();
        while ended.len() < tokens.len() {
            match rig.next() {
                PoolEvent::Done { token, result } => {
                    assert_eq!(result, Ok(PoolAnswer::Disk(DiskDone::Done)));
                    ended.push(token);
                }
                other => panic!("{other:?}"),
            }
        }
        ended.sort_unstable();
        assert_eq!(ended, tokens);
        rig.seal();
        assert!(rig.pool.open_segments() <= 3, "{} open", rig.pool.open_segments());
        for i in 0..12u8 {
            assert_eq!(rig.read(u64::from(i) * 16384, 1), Ok(vec![Ok(i + 1)]));
        }
        assert!(rig.pool.figures().segments_opened >= 12 + 9, "they were closed and opened again");
    });
}

#[test]
fn overlapping_ops_happen_in_the_order_of_their_submission() {
    everywhere(|path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(SEGMENT);
        let mut last = 0;
        for i in 1..=20u8 {
            rig.submit(PoolOp::Disk { replica: KEY, op: write(u64::from(i % 3), &[i; 4]) });
            rig.submit(PoolOp::Disk { replica: KEY, op: zero(1, 1, Hole::Zero) });
            last = rig.submit(PoolOp::Disk { replica: KEY, op: write(2, &[i]) });
        }
        assert_eq!(rig.done(last), Ok(PoolAnswer::Disk(DiskDone::Done)));
        assert_eq!(rig.read(0, 4), Ok(vec![Ok(18), Err(Hole::Zero), Ok(20), Ok(20)]));
    });
}

#[test]
fn hashes_are_equal_exactly_when_the_content_is() {
    everywhere(|path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(2 * SEGMENT);
        rig.write(0, &[1, 1, 2, 0]);
        rig.zero(4, 1, Hole::Zero);
        let mut hashes = |key: u8| {
            let op = DiskOp::Hash { offset: 0, len: 6 * BLOCK, key: [key; 16] };
            match rig.disk(op) {
                Ok(DiskDone::Hashes(hashes)) => hashes,
                other => panic!("{other:?}"),
            }
        };
        let (h, other) = (hashes(1), hashes(2));
        assert_eq!(h.len(), 6);
        assert!(h[0] == h[1] && h[0] != h[2] && h[3] == h[4] && h[4] != h[5] && h[0] != other[0]);
        // The same on every host of every release: two members compare them. SipHash-2-4-128.
        let specimen = SipHasher24::new_with_key(&[1; 16]).hash(&[1; 4096]).as_bytes();
        assert_eq!(h[0], specimen);
        let op = DiskOp::Hash { offset: SEGMENT, len: BLOCK, key: [1; 16] };
        assert_eq!(rig.disk(op), Ok(DiskDone::Hashes(vec![h[5]])));
    });
}

#[test]
fn a_grown_part_is_absent_whatever_lay_there() {
    // R18: an interrupted shrink leaves old data behind.
    everywhere(|path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(3 * SEGMENT);
        rig.write(10, &[1, 2]);
        rig.write(16384 * 2, &[3]);
        rig.seal();
        rig.ok(PoolOp::CloseReplica { replica: KEY });
        rig.opened(11 * BLOCK, &[]);
        assert_eq!(rig.read(11, 1), Err(PoolError::OutOfBounds));
        assert_eq!(rig.disk(DiskOp::Grow { from: 11 * BLOCK, to: 3 * SEGMENT }), Ok(DiskDone::Done));
        rig.kill();
        let mut rig = Rig::open(path, kind);
        rig.opened(3 * SEGMENT, &[]);
        assert_eq!(rig.read(10, 2), Ok(vec![Ok(1), Err(Hole::Absent)]));
        assert_eq!(rig.read(16384 * 2, 1), Ok(vec![Err(Hole::Absent)]));
    });
}

#[test]
fn a_growth_makes_absent_what_lies_above_the_volumes_end_on_a_larger_replica_and_a_cut_frees_it() {
    use std::os::unix::fs::MetadataExt;
    everywhere(|path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(3 * SEGMENT);
        rig.write(10, &[1, 2, 3]);
        rig.write(16384 * 2, &[4; 64]);
        rig.seal();
        // R18: the record ends after block 10, this replica missed the cut.
        assert_eq!(rig.disk(DiskOp::Grow { from: 11 * BLOCK, to: 2 * SEGMENT }), Ok(DiskDone::Done));
        assert_eq!(rig.read(10, 3), Ok(vec![Ok(1), Err(Hole::Absent), Err(Hole::Absent)]));
        assert_eq!(rig.read(16384 * 2, 1), Ok(vec![Ok(4)]), "not asked for");
        let used = || segment_file(path, "seg-000002").metadata().expect("stat").blocks();
        let before = used();
        assert_eq!(rig.disk(DiskOp::Cut { from: SEGMENT, to: 3 * SEGMENT }), Ok(DiskDone::Done));
        assert!(used() < before, "{} blocks of {before}", used());
        rig.kill();
        let mut rig = Rig::open(path, kind);
        rig.opened(3 * SEGMENT, &[]);
        // What was cut is read by nobody before it has been grown over.
        assert_eq!(rig.disk(DiskOp::Grow { from: SEGMENT, to: 3 * SEGMENT }), Ok(DiskDone::Done));
        rig.kill();
        let mut rig = Rig::open(path, kind);
        rig.opened(3 * SEGMENT, &[]);
        assert_eq!(rig.read(16384 * 2, 1), Ok(vec![Err(Hole::Absent)]));
        assert_eq!(rig.disk(DiskOp::Cut { from: SEGMENT, to: 4 * SEGMENT }), Err(PoolError::OutOfBounds));
    });
}

#[test]
fn a_huge_zero_can_be_cancelled_between_its_pieces() {
    let dir = TempDir::on_disk();
    let mut rig = Rig::open(dir.path(), DriverKind::Libaio);
    rig.made(1000 * SEGMENT);
    rig.write(0, &[1]);
    let huge = rig.submit(PoolOp::Disk { replica: KEY, op: zero(0, 1000 * 16384, Hole::Zero) });
    rig.submit(PoolOp::Cancel { target: huge });
    assert_eq!(rig.done(huge), Err(PoolError::Cancelled));
    assert!(rig.pool.open_segments() <= 4);
    assert_eq!(rig.read(0, 1), Ok(vec![Err(Hole::Zero)]));
    // A hole that was never written costs nothing at all.
    rig.zero(10 * 16384, 900 * 16384, Hole::Absent);
    assert!(rig.pool.open_segments() <= 4);
}

#[test]
fn keep_space_zeroes_without_giving_blocks_back() {
    everywhere(|path, kind| {
        use std::os::unix::fs::MetadataExt;
        let mut rig = Rig::open(path, kind);
        rig.made(SEGMENT);
        rig.write(0, &[1; 64]);
        let blocks = || segment_file(path, "seg-000000").metadata().expect("stat").blocks();
        let before = blocks();
        let op = DiskOp::Zero { offset: 0, len: 32 * BLOCK, kind: Hole::Zero, keep_space: true };
        assert_eq!(rig.disk(op), Ok(DiskDone::Done));
        assert_eq!(blocks(), before);
        assert_eq!(rig.read(31, 2), Ok(vec![Err(Hole::Zero), Ok(1)]));
        rig.zero(0, 64, Hole::Zero);
        assert!(blocks() < before);
        rig.kill();
        // In doubt, the data must read as zero too.
        let mut rig = Rig::open(path, kind);
        rig.opened(SEGMENT, &[0..SEGMENT]);
        let all = rig.read(0, 64).expect("read");
        assert!(all.iter().all(|block| matches!(block, Err(_) | Ok(0))), "{all:?}");
    });
}

#[test]
fn a_failed_fdatasync_ends_the_replica_and_is_not_repeated() {
    let dir = TempDir::on_disk();
    let mut rig = Rig::open(dir.path(), DriverKind::IoUring);
    rig.made(SEGMENT);
    let DiskOp::Write { offset, crcs, data, .. } = write(0, &[1]) else { unreachable!() };
    rig.disk(DiskOp::Write { offset, crcs, data, durable: false }).expect("written");
    let tokens =
        [DiskOp::Flush, DiskOp::Flush, DiskOp::Seal].map(|op| rig.submit(PoolOp::Disk { replica: KEY, op }));
    // The disk's answer, made up here: the pool can't tell.
    let mut syncs = 0;
    while let Some((token, op)) = rig.pool.poll_op() {
        let result = if matches!(op, Op::Fdatasync { .. }) {
            syncs += 1;
            Err(Errno(libc::EIO))
        } else {
            Ok(Outcome::Bytes(BLOCK_LEN))
        };
        rig.pool.handle_completion(Completion { token, op, result });
    }
    assert_eq!(syncs, 1);
    let errno = Errno(libc::EIO);
    assert_eq!(rig.pool.poll_event(), Some(PoolEvent::ReplicaFailed { replica: KEY, errno }));
    for token in tokens {
        assert_eq!(rig.done(token), Err(PoolError::ReplicaFailed));
    }
    assert_eq!(rig.read(0, 1), Err(PoolError::ReplicaFailed));
    rig.ok(PoolOp::CloseReplica { replica: KEY });
    rig.rest();
}

#[test]
fn a_failed_or_short_write_is_told_and_its_blocks_are_in_doubt() {
    let dir = TempDir::on_disk();
    let mut rig = Rig::open(dir.path(), DriverKind::IoUring);
    rig.made(SEGMENT);
    rig.write(0, &[1, 2, 3]);
    rig.seal();
    let answer = |rig: &mut Rig, answers: &[Result<usize, i32>]| {
        let token = rig.submit(PoolOp::Disk { replica: KEY, op: write(0, &[7, 8, 9]) });
        for result in answers {
            let (token, op) = rig.pool.poll_op().expect("a write");
            let result = result.map(Outcome::Bytes).map_err(Errno);
            rig.pool.handle_completion(Completion { token, op, result });
        }
        rig.done(token)
    };
    assert_eq!(answer(&mut rig, &[Err(libc::ENOSPC)]), Err(PoolError::NoSpace));
    assert_eq!(answer(&mut rig, &[Ok(4096), Err(libc::ENOSPC)]), Err(PoolError::NoSpace));
    assert_eq!(answer(&mut rig, &[Ok(4096), Ok(0)]), Err(PoolError::NoSpace));
    assert_eq!(answer(&mut rig, &[Err(libc::EIO)]), Err(PoolError::Io(Errno(libc::EIO))));
    // As if one block had reached the disk.
    segment_file(dir.path(), "seg-000000").write_all_at(&[7; BLOCK_LEN], 0).expect("written");
    assert_eq!(rig.read(0, 3), Ok(vec![Ok(7), Ok(2), Ok(3)]));
    // Short, and then the rest.
    let token = rig.submit(PoolOp::Disk { replica: KEY, op: write(0, &[7, 8, 9]) });
    let (t, op) = rig.pool.poll_op().expect("a write");
    rig.pool.handle_completion(Completion { token: t, op, result: Ok(Outcome::Bytes(4096 + 512)) });
    assert_eq!(rig.done(token), Ok(PoolAnswer::Disk(DiskDone::Done)));
    segment_file(dir.path(), "seg-000000").write_all_at(&[7; BLOCK_LEN], 0).expect("written");
    assert_eq!(rig.read(0, 3), Ok(vec![Ok(7), Ok(8), Ok(9)]));
}

#[test]
fn log_checkpoints_superblock_and_trash_come_back() {
    everywhere(|path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(SEGMENT);
        rig.write(5, &[5]);
        rig.ok(PoolOp::WriteLog { offset: 8192, data: IoBuf::copy_of(&[3; 4096]) });
        let beyond = PoolOp::WriteLog { offset: 1 << 20, data: IoBuf::copy_of(&[3; 4096]) };
        assert_eq!(rig.run(beyond), Err(PoolError::OutOfBounds));
        rig.ok(PoolOp::WriteCheckpoint { replica: KEY, slot: Slot::B, bytes: b"point".to_vec() });
        rig.ok(PoolOp::WriteSuperblock { content: b"again".to_vec() });
        assert_eq!(rig.run(PoolOp::ListReplicas), Ok(PoolAnswer::Replicas(vec![KEY])));
        let again = PoolOp::CreateReplica { replica: KEY, meta_bytes: 4096, thick: None };
        assert_eq!(rig.run(again), Err(PoolError::Exists));
        let Ok(PoolAnswer::Space { free, total }) = rig.run(PoolOp::Space) else { panic!("no space") };
        assert!(0 < free && free <= total);
        rig.kill();

        let mut rig = Rig::open(path, kind);
        assert_eq!(rig.pool.dir().superblock(), b"again");
        let Ok(PoolAnswer::Bytes(log)) = rig.run(PoolOp::ReadLog) else { panic!("no log") };
        assert_eq!((log.len(), log.bytes()[8191], log.bytes()[8192]), (1 << 20, 0, 3));
        let read = PoolOp::ReadCheckpoint { replica: KEY, slot: Slot::B };
        let Ok(PoolAnswer::Bytes(meta)) = rig.run(read) else { panic!("no checkpoint") };
        assert_eq!((meta.len(), &meta.bytes()[..6]), (8192, &b"point\0"[..]));

        rig.opened(SEGMENT, &[0..SEGMENT]);
        rig.ok(PoolOp::TrashReplica { replica: KEY, now_s: 1234 });
        assert_eq!(rig.run(PoolOp::ListReplicas), Ok(PoolAnswer::Replicas(vec![])));
        assert_eq!(rig.disk(DiskOp::Flush), Err(PoolError::NoReplica));
        let missing = PoolOp::ReadCheckpoint { replica: KEY, slot: Slot::A };
        assert_eq!(rig.run(missing), Err(PoolError::NoReplica));
        let Ok(PoolAnswer::Trash(trash)) = rig.run(PoolOp::ListTrash) else { panic!("no trash") };
        assert_eq!((trash.len(), trash[0].replica, trash[0].since_s), (1, KEY, 1234));
        rig.ok(PoolOp::RestoreTrash { name: trash[0].name.clone() });
        rig.opened(SEGMENT, &[0..SEGMENT]);
        assert_eq!(rig.read(5, 1), Ok(vec![Ok(5)]));
        rig.ok(PoolOp::TrashReplica { replica: KEY, now_s: 1235 });
        let Ok(PoolAnswer::Trash(trash)) = rig.run(PoolOp::ListTrash) else { panic!("no trash") };
        rig.ok(PoolOp::EmptyTrash { name: trash[0].name.clone() });
        for name in ["../replicas", &trash[0].name] {
            let gone = PoolOp::EmptyTrash { name: name.to_owned() };
            assert_eq!(rig.run(gone), Err(PoolError::NoReplica));
        }
        assert_eq!(rig.run(PoolOp::ListTrash), Ok(PoolAnswer::Trash(vec![])));
    });
}

#[test]
fn a_pool_that_vanished_is_an_error() {
    let dir = TempDir::on_disk();
    let path = dir.path().join("pool");
    let mut rig = Rig::open(&path, DriverKind::IoUring);
    rig.made(2 * SEGMENT);
    rig.write(0, &[1]);
    fs::remove_dir_all(&path).expect("removed");
    assert!(matches!(rig.run(PoolOp::Space), Err(PoolError::Io(_))));
    assert!(matches!(rig.disk(write(16384, &[1])), Err(PoolError::Io(_))));
    let create =
        PoolOp::CreateReplica { replica: ReplicaKey { rid: Rid(2), ..KEY }, meta_bytes: 4096, thick: None };
    assert!(matches!(rig.run(create), Err(PoolError::Io(_))));
    assert!(matches!(PoolDir::open(&path), Err(OpenError::Io { .. })));
}

#[test]
fn a_full_file_system_is_no_space_and_can_still_be_trimmed_and_sealed() {
    // protocol.md R20, N9. In a mount namespace of this test's thread, so that nothing is left behind.
    let dir = TempDir::on_disk();
    let mount = mounted_ext4(dir.path(), "full", 24);
    let config = PoolConfig { gated: false, ..PoolConfig::new(SPACE) };
    let mut rig = Rig::with(&mount, DriverKind::IoUring, config);
    rig.made(4 * SEGMENT);
    let mut written = 0;
    let full = loop {
        match rig.disk(write(written, &[1; 64])) {
            Ok(_) => written += 64,
            Err(error) => break error,
        }
    };
    assert_eq!(full, PoolError::NoSpace);
    assert!(written > 1000, "{written} blocks fitted");
    while rig.disk(write(written, &[1])).is_ok() {
        written += 1;
    }
    assert_eq!(rig.disk(write(16384, &[1])), Err(PoolError::NoSpace));
    assert_eq!(rig.read(16384, 1), Ok(vec![Err(Hole::Absent)]));
    let create = PoolOp::CreateReplica {
        replica: ReplicaKey { rid: Rid(2), ..KEY },
        meta_bytes: 1 << 20,
        thick: None,
    };
    assert_eq!(rig.run(create), Err(PoolError::NoSpace));
    // The log, what was allocated before, the sidecars and trim all still work.
    rig.ok(PoolOp::WriteLog { offset: 0, data: IoBuf::zeroed(4096) });
    rig.ok(PoolOp::WriteCheckpoint { replica: KEY, slot: Slot::A, bytes: vec![1; 8192] });
    rig.write(0, &[2]);
    rig.seal();
    rig.zero(0, 512, Hole::Zero);
    rig.write(written, &[3]);
    rig.seal();
    assert_eq!(rig.read(511, 2), Ok(vec![Err(Hole::Zero), Ok(1)]));
    rig.ok(PoolOp::CloseReplica { replica: KEY });
    rig.kill();
    unmounted(&mount);
}

mod model {
    //! The pool against a dumb one: an array of blocks.

    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 2 * 16384;

    /// What a block may be. After a restart an unsealed hole may be of either kind, or zero data.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Block {
        Data(u8),
        Hole(Hole),
        ZeroSomehow,
    }

    impl Block {
        fn allows(self, found: Result<u8, Hole>) -> bool {
            match (self, found) {
                (Block::Data(a), Ok(b)) => a == b,
                (Block::Hole(a), Err(b)) => a == b,
                (Block::ZeroSomehow, found) => matches!(found, Ok(0) | Err(_)),
                // A block of zero data whose kind was lost is a hole.
                (Block::Hole(_), Ok(_)) | (Block::Data(_), Err(_)) => false,
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>, bool),
        Zero(u64, u64, Hole, bool),
        Read(u64, u64),
        Kinds(u64, u64),
        Seal,
        Flush,
        /// Kill and open again.
        Restart,
        /// Close and open again in the same process.
        Close,
    }

    /// Places near the segments' border and the start, so that ranges meet.
    fn place() -> impl Strategy<Value = u64> {
        prop_oneof![0..24u64, 16384 - 12..16384 + 12u64]
    }

    fn step() -> impl Strategy<Value = Step> {
        let hole = prop_oneof![Just(Hole::Zero), Just(Hole::Absent)];
        prop_oneof![
            4 => (place(), prop::collection::vec(0..4u8, 1..6), any::<bool>())
                .prop_map(|(at, bytes, durable)| Step::Write(at, bytes, durable)),
            2 => (place(), 1..9u64, hole, any::<bool>()).prop_map(|(at, n, kind, keep)| Step::Zero(at, n, kind, keep)),
            4 => (place(), 1..24u64).prop_map(|(at, n)| Step::Read(at, n)),
            1 => (place(), 1..24u64).prop_map(|(at, n)| Step::Kinds(at, n)),
            1 => Just(Step::Seal),
            1 => Just(Step::Flush),
            1 => Just(Step::Restart),
            1 => Just(Step::Close),
        ]
    }

    fn play(path: &Path, kind: DriverKind, direct: bool, steps: Vec<Step>) {
        let config = PoolConfig { open_segments: 1, ..PoolConfig::new(SPACE) };
        let adapt: fn(PoolDir) -> PoolDir = if direct { |dir| dir } else { PoolDir::without_direct };
        let mut rig = Rig::over(path, kind, config, adapt);
        rig.made(BLOCKS * BLOCK);
        let mut model = vec![Block::Hole(Hole::Absent); usize::try_from(BLOCKS).expect("small")];
        let mut unsealed: Vec<u64> = Vec::new();
        let slice = |at: u64, n: u64| {
            let at = usize::try_from(at).expect("small");
            at..at + usize::try_from(n).expect("small")
        };
        for step in steps {
            match step {
                Step::Write(at, bytes, durable) => {
                    let DiskOp::Write { offset, crcs, data, .. } = write(at, &bytes) else { unreachable!() };
                    // Every other one from an unaligned place in a larger buffer, as from a socket.
                    let data = if bytes.len() % 2 == 0 {
                        let mut whole = vec![0; 64];
                        whole.extend_from_slice(data.bytes());
                        IoBuf::copy_of(&whole).slice(64, data.len())
                    } else {
                        data
                    };
                    assert_eq!(rig.disk(DiskOp::Write { offset, crcs, data, durable }), Ok(DiskDone::Done));
                    for (block, byte) in (at..).zip(bytes) {
                        model[slice(block, 1)][0] = Block::Data(byte);
                        unsealed.push(block);
                    }
                }
                Step::Zero(at, n, kind, keep_space) => {
                    let op = DiskOp::Zero { offset: at * BLOCK, len: n * BLOCK, kind, keep_space };
                    assert_eq!(rig.disk(op), Ok(DiskDone::Done));
                    model[slice(at, n)].fill(Block::Hole(kind));
                    unsealed.extend(at..at + n);
                }
                Step::Read(at, n) => {
                    let found = rig.read(at, n).expect("read");
                    for (expected, found) in model[slice(at, n)].iter_mut().zip(found) {
                        assert!(expected.allows(found), "{expected:?}, found {found:?}");
                        // Once told it stays so.
                        *expected = found.map_or_else(Block::Hole, Block::Data);
                    }
                }
                Step::Kinds(at, n) => {
                    let mut found =
                        rig.kinds(at, n).into_iter().flat_map(|(n, kind)| (0..n).map(move |_| kind));
                    for expected in &model[slice(at, n)] {
                        let found = found.next().expect("all blocks");
                        let fits = match expected {
                            Block::Data(_) => found.is_none(),
                            Block::Hole(kind) => found == Some(*kind),
                            Block::ZeroSomehow => true,
                        };
                        assert!(fits, "{expected:?}, found {found:?}");
                    }
                    assert_eq!(found.next(), None);
                }
                Step::Seal => {
                    rig.seal();
                    unsealed.clear();
                }
                Step::Flush => assert_eq!(rig.disk(DiskOp::Flush), Ok(DiskDone::Done)),
                Step::Restart | Step::Close => {
                    if matches!(step, Step::Restart) {
                        rig.kill();
                        rig = Rig::over(path, kind, config, adapt);
                    } else {
                        rig.ok(PoolOp::CloseReplica { replica: KEY });
                    }
                    for block in &unsealed {
                        let known = &mut model[slice(*block, 1)][0];
                        if matches!(known, Block::Hole(_) | Block::Data(0)) {
                            *known = Block::ZeroSomehow;
                        }
                    }
                    // A region's worth around each, as stamps are.
                    let ranges: Vec<_> =
                        unsealed.iter().map(|b| b / 4 * 4 * BLOCK..(b / 4 + 1) * 4 * BLOCK).collect();
                    rig.opened(BLOCKS * BLOCK, &ranges);
                }
            }
        }
        assert!(rig.pool.open_segments() <= 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_pool_is_an_array_of_blocks(steps in prop::collection::vec(step(), 1..40), libaio: bool, direct: bool) {
            let dir = TempDir::under(Path::new("/dev/shm"));
            let kind = if libaio { DriverKind::Libaio } else { DriverKind::IoUring };
            play(dir.path(), kind, direct, steps);
        }
    }
}
