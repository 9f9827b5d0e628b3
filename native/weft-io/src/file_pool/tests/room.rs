//! Small file systems that fill up: the gate closes before they are full, by what was granted alone, and opens again.

use super::*;

/// Bytes that the file system still has, of so many.
fn space(rig: &mut Rig) -> (u64, u64) {
    match rig.run(PoolOp::Space) {
        Ok(PoolAnswer::Space { free, total }) => (free, total),
        other => panic!("{other:?}"),
    }
}

/// Takes all but so many percent.
fn ballast(mount: &Path, rest_percent: u64) {
    let dir = PoolDir::open(mount).or_else(|_| PoolDir::create(mount, 1 << 20, b"hello")).expect("a pool");
    let (free, total) = dir.space;
    let file = fs::File::create(mount.join("ballast")).expect("made");
    let len = libc::off_t::try_from(free - total / 100 * rest_percent).expect("fits");
    // SAFETY: no memory is passed.
    let done = unsafe { libc::posix_fallocate(std::os::fd::AsRawFd::as_raw_fd(&file), 0, len) };
    assert_eq!(done, 0, "no room for the ballast");
}

/// Writes 256 KiB at a time, without a look, until one is refused; how many blocks are there then.
fn filled(rig: &mut Rig) -> u64 {
    let mut written = 0;
    loop {
        match rig.disk(write(written, &[7; 64])) {
            Ok(_) => written += 64,
            Err(error) => {
                assert_eq!(error, PoolError::NoSpace);
                return written;
            }
        }
    }
}

#[test]
fn writes_are_refused_before_the_file_system_is_full_and_go_on_when_there_is_room() {
    for (kind, gated) in
        [(DriverKind::IoUring, true), (DriverKind::Libaio, true), (DriverKind::Libaio, false)]
    {
        let dir = TempDir::on_disk();
        let mount = mounted_ext4(dir.path(), "small", 200);
        ballast(&mount, 10);
        let mut rig = Rig::with(&mount, kind, PoolConfig { gated, ..PoolConfig::new(SPACE) });
        rig.made(4 * SEGMENT);
        let written = filled(&mut rig);
        let (free, total) = space(&mut rig);
        if !gated {
            assert!(free < total / 200, "without the gate it is the file system that refuses: {free}");
            rig.kill();
            unmounted_when_free(&mount);
            continue;
        }
        assert!(free >= total / 100 * 2, "{free} of {total} bytes are left");
        assert!(free < total / 100 * 4, "refused with {free} of {total} bytes left");
        assert_eq!((rig.pool.fill(), rig.pool.figures().refused_room), (Fill::Full, 1));
        assert!(rig.pool.take_wants_look() && !rig.pool.take_wants_look());

        // What needs no room goes on; what does is refused, a new segment's files and a new replica among it.
        rig.write(1, &[8; 3]);
        rig.ok(PoolOp::WriteLog { offset: 0, data: IoBuf::zeroed(4096) });
        rig.ok(PoolOp::WriteCheckpoint { replica: KEY, slot: Slot::A, bytes: vec![1; 8192] });
        rig.seal();
        let keep = DiskOp::Zero { offset: written * BLOCK, len: BLOCK, kind: Hole::Zero, keep_space: true };
        for op in [write(written, &[1]), write(written - 1, &[1; 2]), keep, write(3 * 16384, &[1])] {
            assert_eq!(rig.disk(op), Err(PoolError::NoSpace));
        }
        assert!(
            !mount
                .join("replicas")
                .read_dir()
                .expect("listed")
                .any(|entry| { entry.expect("an entry").path().join("seg-000003").exists() })
        );
        let create = PoolOp::CreateReplica {
            replica: ReplicaKey { rid: Rid(2), ..KEY },
            meta_bytes: 8192,
            thick: None,
        };
        assert_eq!(rig.run(create), Err(PoolError::NoSpace));
        assert_eq!(rig.read(written, 1), Ok(vec![Err(Hole::Absent)]));

        // A little room is not enough, more is; and a look has to show it.
        let percent = total / 100 / BLOCK;
        rig.zero(0, percent / 4, Hole::Absent);
        space(&mut rig);
        assert_eq!((rig.pool.fill(), rig.disk(write(0, &[1]))), (Fill::Full, Err(PoolError::NoSpace)));
        rig.zero(percent, 2 * percent, Hole::Absent);
        assert_eq!(rig.disk(write(0, &[1])), Err(PoolError::NoSpace), "nobody has looked");
        space(&mut rig);
        assert_eq!(rig.pool.fill(), Fill::Low);
        rig.write(written, &[1; 64]);
        rig.seal();
        rig.ok(PoolOp::CloseReplica { replica: KEY });
        rig.kill();
        unmounted_when_free(&mount);
    }
}

/// What a preserve and the write after it may need is asked for, too: the block is shared by then.
#[test]
fn a_full_pool_takes_no_images_and_gives_them_back() {
    let dir = TempDir::on_disk();
    let mount = mounted_xfs(dir.path(), "small", 320, &[]);
    ballast(&mount, 10);
    let mut rig = Rig::open(&mount, DriverKind::IoUring);
    let image = SnapId(5);
    let preserve = |at: u64| PoolOp::Preserve { replica: KEY, image, offset: at << 20, len: 1 << 20 };
    rig.made(4 * SEGMENT);
    for at in 0..2 {
        rig.write(at * 256, &[1; 256]);
    }
    rig.ok(PoolOp::TakeImage { replica: KEY, image, slot_bytes: 8192 });
    assert_eq!(rig.run(preserve(0)), Ok(PoolAnswer::Disk(DiskDone::Done)));
    let mut written = 512;
    while rig.disk(write(written, &[7; 64])).is_ok() {
        written += 64;
    }
    assert_eq!(rig.pool.fill(), Fill::Full);
    assert_eq!(rig.run(preserve(1)), Err(PoolError::NoSpace));
    assert_eq!(rig.disk(write(0, &[2])), Err(PoolError::NoSpace), "its block is the image's, too");
    let another = PoolOp::TakeImage { replica: KEY, image: SnapId(6), slot_bytes: 8192 };
    assert_eq!(rig.run(another), Err(PoolError::NoSpace));
    rig.ok(PoolOp::DropImage { replica: KEY, image });
    rig.zero(512, written - 512, Hole::Absent);
    space(&mut rig);
    rig.write(0, &[2]);
    rig.ok(PoolOp::CloseReplica { replica: KEY });
    rig.kill();
    unmounted_when_free(&mount);
}

/// Who holds the lock's file lets go of it a moment after the end.
fn unmounted_when_free(mount: &Path) {
    if let Ok(lock) = OpenOptions::new().write(true).open(mount.join("lock")) {
        lock.lock().expect("flocked");
    }
    unmounted(mount);
}

impl Rig {
    /// What the pool says that the replica takes, once it has counted.
    fn used(&mut self) -> u64 {
        loop {
            match self.pool.used(KEY) {
                Some(used) => return used,
                // Another call ends; counts come in between.
                None => drop(space(self)),
            }
        }
    }
}

/// The same by a walk.
fn walked(pool: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let dir = pool.join("replicas").join(pool_dir::replica_name(KEY));
    let files = dir.read_dir().expect("listed").map(|entry| entry.expect("an entry"));
    let segments = files.filter(|file| !file.file_name().to_string_lossy().starts_with("meta"));
    segments.map(|file| file.metadata().expect("stat").blocks() * 512).sum()
}

#[test]
fn what_a_replica_takes_is_known_without_a_walk() {
    everywhere(|path, kind| {
        let config = PoolConfig { open_segments: 2, ..PoolConfig::new(SPACE) };
        let mut rig = Rig::with(path, kind, config);
        rig.made(12 * SEGMENT);
        assert_eq!(rig.used(), 0);
        for segment in 0..12 {
            rig.write(segment * 16384, &[1; 64]);
            assert_eq!(rig.used(), walked(path), "segment {segment}");
        }
        let full = rig.used();
        assert!(full >= 12 * (64 * BLOCK + SIDECAR_BYTES as u64), "{full}");
        assert_eq!(rig.pool.used(ReplicaKey { rid: Rid(7), ..KEY }), None);
        for segment in 3..9 {
            rig.zero(segment * 16384, 16384, Hole::Absent);
        }
        assert_eq!(rig.used(), walked(path));
        assert_eq!(rig.used(), full - 6 * 64 * BLOCK, "a trim gives them back");
        rig.seal();
        rig.kill();
        // Written to while it is being counted.
        let mut rig = Rig::with(path, kind, config);
        rig.opened(12 * SEGMENT, &[]);
        for segment in [5, 0, 11, 6, 1, 5] {
            rig.write(segment * 16384 + 100, &[2; 8]);
        }
        assert_eq!(rig.used(), walked(path));
    });
}

/// Its blocks are its own from the first moment on: trims and zeroes leave them, a full pool takes its writes, and what it
/// grows by is reserved or refused, with nothing left behind.
#[test]
fn a_thick_replica_has_its_blocks_and_keeps_them() {
    for kind in [DriverKind::IoUring, DriverKind::Libaio] {
        for file_system in ["ext4", "xfs"] {
            let dir = TempDir::on_disk();
            let mount = match file_system {
                "ext4" => mounted_ext4(dir.path(), "small", 400),
                _ => mounted_xfs(dir.path(), "small", 400, &[]),
            };
            let mut rig = Rig::open(&mount, kind);
            let thick = |rid: u32, size: u64| PoolOp::CreateReplica {
                replica: ReplicaKey { rid: Rid(rid), ..KEY },
                meta_bytes: 8192,
                thick: Some(size),
            };
            let (free, _) = space(&mut rig);
            assert_eq!(rig.run(thick(2, 8 * SEGMENT)), Err(PoolError::NoSpace));
            assert_eq!(space(&mut rig).0, free, "what was begun is gone");
            let size = 2 * SEGMENT + SEGMENT / 2;
            rig.ok(thick(1, size));
            rig.opened(size, &[]);
            let reserved = rig.used();
            let sidecars = 3 * SIDECAR_BYTES as u64;
            assert!((size + sidecars..size + sidecars + (1 << 20)).contains(&reserved), "{reserved}");
            assert!(rig.pool.is_thick(KEY) && walked(&mount) == reserved);

            rig.write(0, &[1; 256]);
            rig.zero(0, 128, Hole::Absent);
            rig.zero(64, 128, Hole::Zero);
            let read = rig.read(0, 256).expect("read");
            assert!(read[..64].iter().all(|b| *b == Err(Hole::Absent)) && read[192..] == [Ok(1); 64]);
            assert!(read[64..192].iter().all(|b| *b == Err(Hole::Zero)));
            assert_eq!(rig.used(), reserved, "trimmed blocks stay its own");

            // Half a segment was there of the last one.
            let grow = |from: u64, to: u64| DiskOp::Grow { from, to };
            assert_eq!(rig.disk(grow(size, 3 * SEGMENT)), Ok(DiskDone::Done));
            assert_eq!(rig.used(), walked(&mount));
            assert!((reserved + SEGMENT / 2..reserved + SEGMENT / 2 + (1 << 20)).contains(&rig.used()));
            assert_eq!(rig.disk(grow(3 * SEGMENT, 9 * SEGMENT)), Err(PoolError::NoSpace));
            assert_eq!(rig.disk(write(3 * 16384, &[1])), Err(PoolError::OutOfBounds), "it has not grown");

            // A thin one takes what is left.
            let thin = ReplicaKey { rid: Rid(9), ..KEY };
            rig.ok(PoolOp::CreateReplica { replica: thin, meta_bytes: 8192, thick: None });
            rig.ok(PoolOp::OpenReplica { replica: thin, size: 8 * SEGMENT, unsealed: Vec::new() });
            for block in (0..).step_by(256) {
                let op = PoolOp::Disk { replica: thin, op: write(block, &[3; 256]) };
                if rig.run(op) == Err(PoolError::NoSpace) {
                    break;
                }
            }
            assert_eq!(rig.pool.fill(), Fill::Full);
            for segment in 0..3 {
                rig.write(segment * 16384 + 8000, &[4; 256]);
            }
            let keep = DiskOp::Zero { offset: 0, len: 1 << 20, kind: Hole::Zero, keep_space: true };
            assert_eq!(rig.disk(keep), Ok(DiskDone::Done));
            assert_eq!(rig.read(16384 + 8000, 1), Ok(vec![Ok(4)]));
            for replica in [KEY, thin] {
                rig.ok(PoolOp::CloseReplica { replica });
            }
            rig.kill();

            let mut rig = Rig::open(&mount, kind);
            rig.opened(3 * SEGMENT, &[]);
            assert!(rig.pool.is_thick(KEY) && rig.used() == walked(&mount));
            rig.ok(PoolOp::CloseReplica { replica: KEY });
            rig.kill();
            unmounted_when_free(&mount);
        }
    }
}
