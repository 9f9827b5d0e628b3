//! Images of a replica on an XFS whose files share blocks, which takes root. Over both drivers: who reads the head while
//! it is shared differs.

use super::*;
use crate::testing::mounted_xfs;

pub(super) const A: SnapId = SnapId(0xa);
pub(super) const B: SnapId = SnapId(0xb);

/// Runs a test on an XFS of `mib` MiB, over each driver.
pub(super) fn on_xfs(mib: u64, test: impl Fn(&Path, DriverKind)) {
    for kind in [DriverKind::IoUring, DriverKind::Libaio] {
        let dir = TempDir::on_disk();
        test(&mounted_xfs(dir.path(), "xfs", mib, &[]), kind);
    }
}

fn image(image: SnapId, heir: Option<SnapId>, op: DiskOp<IoBuf>) -> PoolOp {
    PoolOp::Image { replica: KEY, image, heir, op }
}

impl Rig {
    pub(super) fn take(&mut self, image: SnapId) {
        self.ok(PoolOp::TakeImage { replica: KEY, image, slot_bytes: 8192 });
    }

    pub(super) fn preserve(&mut self, image: SnapId, first: u64, blocks: u64) -> Result<(), PoolError> {
        let (offset, len) = (first * BLOCK, blocks * BLOCK);
        let done = self.run(PoolOp::Preserve { replica: KEY, image, offset, len })?;
        assert_eq!(done, PoolAnswer::Disk(DiskDone::Done));
        Ok(())
    }

    fn look(&mut self, of: SnapId, op: DiskOp<IoBuf>) -> Result<DiskDone<IoBuf>, PoolError> {
        self.run(image(of, None, op)).map(|answer| match answer {
            PoolAnswer::Disk(done) => done,
            other => panic!("{other:?}"),
        })
    }

    /// Each block of an image as its fill, or its hole.
    pub(super) fn of_image(
        &mut self,
        of: SnapId,
        first: u64,
        blocks: u64,
    ) -> Result<Vec<Result<u8, Hole>>, PoolError> {
        let done = self.look(of, DiskOp::Read { offset: first * BLOCK, len: blocks * BLOCK })?;
        let DiskDone::Data(extents) = done else { panic!("{done:?}") };
        let mut found = Vec::new();
        for extent in extents {
            match extent {
                Extent::Hole { len, kind } => found.extend((0..len / BLOCK).map(|_| Err(kind))),
                Extent::Data { crcs, data } => {
                    assert_eq!(crcs, block_crcs(data.bytes()));
                    found.extend(data.bytes().chunks_exact(4096).map(|block| Ok(block[0])));
                }
            }
        }
        Ok(found)
    }

    pub(super) fn free(&mut self) -> u64 {
        match self.run(PoolOp::Space) {
            Ok(PoolAnswer::Space { free, .. }) => free,
            other => panic!("{other:?}"),
        }
    }
}

fn file(path: &Path, image: SnapId, name: &str) -> std::path::PathBuf {
    path.join(format!("images/{}.{}/{image}/{name}", KEY.volume, KEY.rid.0))
}

#[test]
fn an_image_keeps_what_the_head_held() {
    on_xfs(300, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(3 * SEGMENT);
        rig.write(16, &[1, 2, 3, 4]);
        rig.zero(18, 1, Hole::Zero);
        rig.write(16383, &[5, 6]);
        rig.take(A);
        rig.preserve(A, 16, 16).expect("preserved");
        rig.preserve(A, 16368, 32).expect("of two segments");
        rig.preserve(A, 2 * 16384, 16).expect("of a segment that has no file");
        let hash = DiskOp::Hash { offset: 16 * BLOCK, len: 16 * BLOCK, key: [7; 16] };
        let hashes = rig.disk(hash.clone());
        rig.write(16, &[91, 92, 93, 94]);
        rig.zero(19, 1, Hole::Absent);
        rig.write(16383, &[95, 96]);
        rig.write(2 * 16384, &[97]);
        rig.seal();

        let holds = |rig: &mut Rig| {
            let absent = Err(Hole::Absent);
            let zero = Err(Hole::Zero);
            let found = rig.of_image(A, 16, 5);
            assert_eq!(found, Ok(vec![Ok(1), Ok(2), zero, Ok(4), absent]));
            assert_eq!(rig.of_image(A, 16382, 4), Ok(vec![absent, Ok(5), Ok(6), absent]));
            assert_eq!(rig.of_image(A, 2 * 16384, 2), Ok(vec![absent, absent]));
            assert_eq!(rig.look(A, hash.clone()), hashes);
            let kinds = rig.look(A, DiskOp::Kinds { offset: 16 * BLOCK, len: 4 * BLOCK });
            let kinds_were = vec![(2 * BLOCK, None), (BLOCK, Some(Hole::Zero)), (BLOCK, None)];
            assert_eq!(kinds, Ok(DiskDone::Kinds(kinds_were)));
            // What nobody has put there is not taken for absent.
            let missing = PoolError::ImageDamaged { offset: 32 * BLOCK };
            assert_eq!(rig.of_image(A, 31, 2), Err(missing));
            assert_eq!(rig.look(A, DiskOp::Flush), Err(PoolError::OutOfBounds));
        };
        holds(&mut rig);
        assert_eq!(rig.read(16, 2), Ok(vec![Ok(91), Ok(92)]));
        // Images are there without their head, and after a restart.
        rig.ok(PoolOp::TrashReplica { replica: KEY, now_s: 5 });
        holds(&mut rig);
        rig.kill();
        let mut rig = Rig::open(path, kind);
        assert_eq!(rig.run(PoolOp::ListImages), Ok(PoolAnswer::Images(vec![(KEY, A)])));
        holds(&mut rig);
        rig.rest();
    });
}

#[test]
fn blocks_are_shared_until_one_of_the_two_is_written_over() {
    on_xfs(400, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(SEGMENT);
        for block in (0..16384).step_by(64) {
            rig.write(block, &[7; 64]);
        }
        rig.take(A);
        let before = rig.free();
        rig.preserve(A, 0, 16384).expect("64 MiB, in pieces");
        let used = before - rig.free();
        assert!(used < 2 << 20, "{used} bytes for 64 MiB that nothing has changed");
        rig.write(5, &[9; 64]);
        assert_eq!(rig.of_image(A, 4, 2), Ok(vec![Ok(7), Ok(7)]));
        assert_eq!(rig.read(4, 2), Ok(vec![Ok(7), Ok(9)]));
    });
}

/// R22, H23: what the head's checksums say of blocks in doubt is not what an image may say.
#[test]
fn blocks_in_doubt_are_looked_at_before_they_are_preserved() {
    on_xfs(300, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(SEGMENT);
        rig.write(3, &[1]);
        rig.seal();
        rig.write(3, &[2, 3]);
        rig.kill();
        let mut rig = Rig::open(path, kind);
        rig.opened(SEGMENT, &[0..SEGMENT]);
        rig.take(A);
        rig.preserve(A, 0, 16).expect("preserved");
        assert_eq!(rig.of_image(A, 2, 4), Ok(vec![Err(Hole::Absent), Ok(2), Ok(3), Err(Hole::Absent)]));
    });
}

/// R28: what was asked for before is in the image, what was asked for later is not, all of it under way together.
#[test]
fn a_preserve_keeps_its_place_among_writes() {
    on_xfs(300, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(SEGMENT);
        rig.take(A);
        let disk = |op| PoolOp::Disk { replica: KEY, op };
        let mut tokens = Vec::new();
        for round in 0..20u8 {
            let block = u64::from(round) * 256;
            tokens.push(rig.submit(disk(write(block, &[1]))));
            tokens.push(rig.submit(PoolOp::Preserve {
                replica: KEY,
                image: A,
                offset: block * BLOCK,
                len: 256 * BLOCK,
            }));
            tokens.push(rig.submit(disk(write(block, &[2]))));
        }
        while !tokens.is_empty() {
            let PoolEvent::Done { token, result } = rig.next() else { panic!("nothing fails") };
            assert!(result.is_ok(), "{result:?}");
            tokens.retain(|t| *t != token);
        }
        for round in 0..20 {
            assert_eq!(rig.of_image(A, round * 256, 2), Ok(vec![Ok(1), Err(Hole::Absent)]));
            assert_eq!(rig.read(round * 256, 1), Ok(vec![Ok(2)]));
        }
    });
}

/// Who waits for a flush of an image's segment shares it with all whose blocks were there when it began.
#[test]
fn preserves_of_a_segment_share_their_flushes() {
    on_xfs(300, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(SEGMENT);
        rig.write(0, &[1; 64]);
        rig.take(A);
        let preserve =
            |n: u64| PoolOp::Preserve { replica: KEY, image: A, offset: n * 2 * BLOCK, len: BLOCK };
        let mut tokens: Vec<u64> = (0..32).map(|n| rig.submit(preserve(n))).collect();
        while !tokens.is_empty() {
            let PoolEvent::Done { token, result } = rig.next() else { panic!("nothing fails") };
            assert!(result.is_ok(), "{result:?}");
            tokens.retain(|t| *t != token);
        }
        let flushes = rig.pool.figures().image_flushes;
        assert!((1..=16).contains(&flushes), "{flushes} flushes for 32 preserves");
    });
}

/// What was taken away holds nobody up, and what is known of the image is kept beside the log again.
#[test]
fn an_image_whose_directory_is_gone_is_damaged_and_stays_known() {
    on_xfs(300, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(2 * SEGMENT);
        rig.write(0, &[1; 32]);
        rig.take(A);
        rig.take(B);
        rig.preserve(A, 0, 16).expect("preserved");
        fs::remove_dir_all(file(path, A, "")).expect("removed");
        let lost = PoolError::ImageDamaged { offset: 0 };
        assert_eq!(rig.preserve(A, 0, 16), Err(lost.clone()));
        assert_eq!(rig.preserve(A, 16384, 16), Err(PoolError::ImageDamaged { offset: SEGMENT_BYTES }));
        let down = PoolOp::HandDown { replica: KEY, image: A, heir: B, segment: 0, blocks: vec![0..16] };
        assert_eq!(rig.run(down), Err(lost.clone()));
        for slot in [Slot::A, Slot::B] {
            let bytes = vec![7; 8192];
            rig.ok(PoolOp::WriteImage { replica: KEY, image: A, slot, bytes });
            let Ok(PoolAnswer::Bytes(read)) = rig.run(PoolOp::ReadImage { replica: KEY, image: A, slot })
            else {
                panic!("it is there");
            };
            assert_eq!(read.bytes()[..8192], [7; 8192]);
            fs::remove_file(file(path, A, slot.image_name())).expect("removed");
        }
        rig.ok(PoolOp::WriteImage { replica: KEY, image: A, slot: Slot::B, bytes: vec![8; 8192] });
        assert_eq!(rig.of_image(A, 0, 2), Err(lost));
        rig.preserve(A, 16, 16).expect("goes on");
        assert_eq!(rig.of_image(A, 16, 2), Ok(vec![Ok(1); 2]));
        assert!(rig.of_image(A, 0, 2).is_err());
    });
}

#[test]
fn an_image_hands_down_what_it_has_and_goes() {
    on_xfs(300, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(2 * SEGMENT);
        rig.write(0, &[1; 64]);
        rig.write(16384, &[2; 64]);
        rig.take(A);
        rig.take(B);
        rig.preserve(A, 0, 16).expect("preserved");
        rig.preserve(B, 16, 32).expect("preserved");
        rig.preserve(B, 16384, 16).expect("preserved");
        let hand = |segment, blocks| PoolOp::HandDown { replica: KEY, image: B, heir: A, segment, blocks };
        for again in 0..2 {
            // A has something there: blocks are shared.
            rig.ok(hand(0, vec![16..32, 32..48]));
            // A has nothing there: the file is A's from now on, which can be asked for twice.
            rig.ok(hand(1, Vec::new()));
            assert_eq!(rig.of_image(A, 0, 48), Ok(vec![Ok(1); 48]), "turn {again}");
            assert_eq!(rig.of_image(A, 16384, 16), Ok(vec![Ok(2); 16]), "turn {again}");
        }
        assert!(!file(path, B, "seg-000001").exists() && file(path, B, "seg-000000").exists());
        // Whoever looks for it at the old place finds it at the new one.
        let read = |op| image(B, Some(A), op);
        let found = rig.run(read(DiskOp::Read { offset: 16384 * BLOCK, len: BLOCK }));
        assert!(matches!(found, Ok(PoolAnswer::Disk(DiskDone::Data(_)))), "{found:?}");
        rig.ok(PoolOp::DropImage { replica: KEY, image: B });
        rig.ok(PoolOp::DropImage { replica: KEY, image: B });
        assert_eq!(rig.run(PoolOp::ListImages), Ok(PoolAnswer::Images(vec![(KEY, A)])));
        assert_eq!(rig.of_image(A, 0, 48), Ok(vec![Ok(1); 48]));
        // What is lost can't be handed down.
        let lost = PoolOp::HandDown { replica: KEY, image: A, heir: A, segment: 9, blocks: Vec::new() };
        let offset = 9 * SEGMENT;
        assert_eq!(rig.run(lost), Err(PoolError::ImageDamaged { offset }));
    });
}

/// What is kept of it is all that is left, and is written over by another try.
#[test]
fn an_image_is_emptied_and_its_hashes_stay() {
    on_xfs(300, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(2 * SEGMENT);
        rig.write(0, &[1; 64]);
        rig.write(16384, &[2; 64]);
        rig.take(A);
        rig.preserve(A, 0, 64).expect("preserved");
        rig.preserve(A, 16384, 64).expect("preserved");
        let kept = |rig: &mut Rig, image, segment| {
            let found = rig.run(PoolOp::KeptHashes { replica: KEY, image, segment });
            let Ok(PoolAnswer::Disk(DiskDone::Kept(bytes))) = found else { panic!("{found:?}") };
            bytes
        };
        assert_eq!((kept(&mut rig, A, 0), kept(&mut rig, B, 0)), (None, None));
        for bytes in [vec![1; 8192], vec![2; 4096]] {
            rig.ok(PoolOp::KeepHashes { replica: KEY, image: A, segment: 1, bytes: bytes.clone() });
            assert_eq!(kept(&mut rig, A, 1), Some(bytes));
        }
        let lost = rig.run(PoolOp::KeepHashes { replica: KEY, image: B, segment: 1, bytes: vec![1; 4096] });
        assert!(lost.is_err(), "{lost:?}: nothing is kept of what is not there");
        for _ in 0..2 {
            rig.ok(PoolOp::EmptyImage { replica: KEY, image: A });
            assert_eq!(rig.of_image(A, 0, 2), Err(PoolError::ImageDamaged { offset: 0 }));
            assert_eq!(kept(&mut rig, A, 1), Some(vec![2; 4096]));
        }
        assert!(file(path, A, "image.a").exists() && file(path, A, "hash-000001").exists());
        assert!(!file(path, A, "seg-000000").exists() && !file(path, A, "seg-000001").exists());
        rig.ok(PoolOp::EmptyImage { replica: KEY, image: B });
        rig.ok(PoolOp::DropImage { replica: KEY, image: A });
        assert_eq!(kept(&mut rig, A, 1), None);
    });
}

#[test]
fn an_image_is_there_whole_or_not_at_all() {
    on_xfs(300, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(SEGMENT);
        assert_eq!(rig.run(PoolOp::ListImages), Ok(PoolAnswer::Images(vec![])));
        rig.take(A);
        let take = PoolOp::TakeImage { replica: KEY, image: A, slot_bytes: 8192 };
        assert_eq!(rig.run(take), Err(PoolError::Exists));
        let half = file(path, B, "image.a");
        let half = half.parent().expect("a directory").with_extension("tmp");
        fs::create_dir(&half).expect("made");
        fs::write(half.join("image.a"), [1; 10]).expect("written");
        assert_eq!(rig.run(PoolOp::ListImages), Ok(PoolAnswer::Images(vec![(KEY, A)])));
        assert!(!half.exists(), "what an interrupted call left is removed");
        let slot = |slot, image| PoolOp::ReadImage { replica: KEY, image, slot };
        rig.ok(PoolOp::WriteImage { replica: KEY, image: A, slot: Slot::B, bytes: vec![3; 5000] });
        let Ok(PoolAnswer::Bytes(kept)) = rig.run(slot(Slot::B, A)) else { panic!("not kept") };
        assert_eq!((kept.len(), kept.bytes()[4999], kept.bytes()[5000]), (8192, 3, 0));
        let Ok(PoolAnswer::Bytes(kept)) = rig.run(slot(Slot::A, A)) else { panic!("not kept") };
        assert!(kept.bytes().iter().all(|byte| *byte == 0));
        assert_eq!(rig.run(slot(Slot::A, B)), Err(PoolError::Io(Errno(libc::ENOENT))));
        assert_eq!(rig.preserve(B, 0, 16), Err(PoolError::ImageDamaged { offset: 0 }));
        assert_eq!(rig.preserve(A, 16383, 2), Err(PoolError::OutOfBounds));
        // A failed one has not harmed the head.
        rig.write(0, &[1]);
        rig.preserve(A, 0, 16).expect("preserved");
    });
}

#[test]
fn what_an_images_files_have_lost_is_said_and_never_read_as_something_else() {
    on_xfs(300, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(2 * SEGMENT);
        rig.write(0, &[1; 32]);
        rig.write(16384, &[1; 32]);
        rig.take(A);
        rig.preserve(A, 0, 32).expect("preserved");
        rig.preserve(A, 16384, 32).expect("preserved");
        let name = file(path, A, "seg-000000");
        let rotten = OpenOptions::new().write(true).open(&name).expect("opened");
        rotten.write_all_at(&[0x55], 3 * BLOCK + 17).expect("rotten");
        assert_eq!(rig.of_image(A, 0, 8), Err(PoolError::BitRot { offset: 3 * BLOCK }));
        assert_eq!(rig.pool.figures().bit_rot, 1);
        assert!(rig.of_image(A, 0, 3).is_ok());
        rotten.set_len(SEGMENT_BYTES + 8).expect("cut");
        assert_eq!(rig.of_image(A, 0, 2), Err(PoolError::ImageDamaged { offset: BLOCK }));
        fs::remove_file(file(path, A, "seg-000001")).expect("removed");
        let offset = 16390 * BLOCK;
        assert_eq!(rig.of_image(A, 16390, 2), Err(PoolError::ImageDamaged { offset }));
        // The head does not depend on any of it.
        assert_eq!(rig.read(0, 4), Ok(vec![Ok(1); 4]));
    });
}

/// H21: what needs room says so, and what makes room needs none.
#[test]
fn images_of_a_full_pool_are_deleted() {
    on_xfs(300, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(8 * SEGMENT);
        rig.write(0, &[1; 64]);
        rig.write(16384, &[2; 64]);
        rig.take(A);
        rig.take(B);
        rig.preserve(B, 0, 64).expect("preserved");
        let mut block = 2 * 16384;
        let mut size = 64;
        while size > 0 {
            match rig.disk(write(block, &vec![3; size])) {
                Ok(_) => block += size as u64,
                Err(error) => {
                    assert_eq!(error, PoolError::NoSpace);
                    size /= 2;
                }
            }
        }
        let third = PoolOp::TakeImage { replica: KEY, image: SnapId(0xc), slot_bytes: 1 << 20 };
        assert_eq!(rig.run(third), Err(PoolError::NoSpace));
        assert_eq!(rig.run(PoolOp::ListImages), Ok(PoolAnswer::Images(vec![(KEY, A), (KEY, B)])));
        rig.ok(PoolOp::HandDown { replica: KEY, image: B, heir: A, segment: 0, blocks: Vec::new() });
        rig.ok(PoolOp::DropImage { replica: KEY, image: B });
        assert_eq!(rig.of_image(A, 0, 64), Ok(vec![Ok(1); 64]));
        assert_eq!(rig.read(0, 64), Ok(vec![Ok(1); 64]));
        rig.ok(PoolOp::DropImage { replica: KEY, image: A });
        rig.seal();
    });
}

#[test]
fn other_file_systems_refuse_and_say_why() {
    let (disk, memory) = (TempDir::on_disk(), TempDir::under(Path::new("/dev/shm")));
    for path in [disk.path(), memory.path()] {
        let mut rig = Rig::open(path, DriverKind::IoUring);
        rig.made(SEGMENT);
        let Ability::None(why) = rig.pool.probe().ability else { continue };
        let take = PoolOp::TakeImage { replica: KEY, image: A, slot_bytes: 4096 };
        assert_eq!(rig.run(take), Err(PoolError::NoSnapshots(why)));
        assert!(!path.join("images").exists());
    }
}
