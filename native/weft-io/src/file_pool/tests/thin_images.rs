//! Images of replicas on thin volumes, where a snapshot of a volume is played by a copy of its file.

use super::images::{A, B};
use super::thin::rig;
use super::*;
use crate::thin::tests::Played;

const TO: ReplicaKey = ReplicaKey { volume: VolumeId(0x99), rid: Rid(0) };

fn made(path: &Path, kind: DriverKind) -> (Played, Rig) {
    let played = Played::new(&path.join("lvm"));
    let mut rig = rig(path, &played, kind);
    assert_eq!(rig.pool.probe().ability, Ability::Thin);
    rig.made(3 * SEGMENT);
    (played, rig)
}

impl Rig {
    fn snapshot(&mut self, image: SnapId) -> Result<(), PoolError> {
        self.take(image);
        self.run(PoolOp::TakeSnapshot { replica: KEY, image })
            .map(|answer| assert_eq!(answer, PoolAnswer::Disk(DiskDone::Done)))
    }
}

/// Across a segment's end, and in one that the replica does not have; nobody sealed before.
#[test]
fn a_snapshot_has_all_that_the_head_held_and_is_read_after_a_boot() {
    for kind in [DriverKind::IoUring, DriverKind::Libaio] {
        let dir = TempDir::on_disk();
        let (played, mut rig) = made(dir.path(), kind);
        rig.write(16, &[1, 2, 3, 4]);
        rig.zero(18, 1, Hole::Zero);
        rig.write(16383, &[5, 6]);
        rig.snapshot(A).expect("taken");
        assert_eq!(played.active().len(), 1, "nobody has read it");
        rig.write(16, &[91, 92, 93, 94]);
        rig.write(16383, &[95, 96]);
        rig.write(2 * 16384, &[97]);
        rig.snapshot(B).expect("taken");
        rig.write(16, &[7]);
        let holds = |rig: &mut Rig| {
            let (absent, zero) = (Err(Hole::Absent), Err(Hole::Zero));
            assert_eq!(rig.of_image(A, 15, 6), Ok(vec![absent, Ok(1), Ok(2), zero, Ok(4), absent]));
            assert_eq!(rig.of_image(A, 16382, 4), Ok(vec![absent, Ok(5), Ok(6), absent]));
            assert_eq!(rig.of_image(A, 2 * 16384, 2), Ok(vec![absent, absent]));
            assert_eq!(rig.of_image(B, 16, 4), Ok(vec![Ok(91), Ok(92), Ok(93), Ok(94)]));
            assert_eq!(rig.of_image(B, 2 * 16384, 2), Ok(vec![Ok(97), absent]));
            assert_eq!(rig.of_image(SnapId(0xc), 0, 1), Err(PoolError::ImageDamaged { offset: 0 }));
        };
        holds(&mut rig);
        assert_eq!(played.tags(), 2, "there was no time to take them away");
        assert!(matches!(rig.run(PoolOp::Space), Ok(PoolAnswer::Space { .. })));
        assert_eq!(played.tags(), 0);
        // Without its head, and after a boot.
        rig.ok(PoolOp::TrashReplica { replica: KEY, now_s: 5 });
        holds(&mut rig);
        rig.kill();
        played.boots();
        let mut rig = super::thin::rig(dir.path(), &played, kind);
        assert_eq!(played.active().len(), 1, "images' volumes are left alone");
        assert_eq!(rig.run(PoolOp::ListImages), Ok(PoolAnswer::Images(vec![(KEY, A), (KEY, B)])));
        holds(&mut rig);
        rig.ok(PoolOp::DropImage { replica: KEY, image: A });
        rig.ok(PoolOp::DropImage { replica: KEY, image: A });
        assert_eq!(rig.run(PoolOp::ListImages), Ok(PoolAnswer::Images(vec![(KEY, B)])));
        assert_eq!(rig.of_image(B, 16, 1), Ok(vec![Ok(91)]));
        assert_eq!(rig.of_image(A, 16, 1), Err(PoolError::ImageDamaged { offset: 16 * BLOCK }));
        rig.ok(PoolOp::DropImage { replica: KEY, image: B });
        assert_eq!((played.volumes().len(), played.tags()), (1, 0), "the head's, in the trash");
        rig.rest();
    }
}

/// R22: what a killed process has left in doubt is looked at before, and is right in the image for good.
#[test]
fn what_is_in_doubt_is_settled_before_a_snapshot_is_taken() {
    let dir = TempDir::on_disk();
    let (played, mut rig) = made(dir.path(), DriverKind::IoUring);
    rig.write(3, &[1, 2]);
    rig.seal();
    // Their entries are of before.
    rig.write(3, &[8]);
    rig.write(5, &[9]);
    rig.kill();
    let mut rig = super::thin::rig(dir.path(), &played, DriverKind::IoUring);
    rig.opened(3 * SEGMENT, &[0..SEGMENT]);
    rig.snapshot(A).expect("taken");
    rig.write(3, &[70, 71, 72]);
    assert_eq!(rig.of_image(A, 3, 3), Ok(vec![Ok(8), Ok(2), Ok(9)]));
    rig.rest();
}

/// A command fails at each step: no image, the head goes on, and the next one is taken.
#[test]
fn a_snapshot_that_could_not_be_taken_leaves_the_head_as_it_was() {
    let dir = TempDir::on_disk();
    let (played, mut rig) = made(dir.path(), DriverKind::IoUring);
    rig.write(3, &[1]);
    played.fails(0);
    assert!(matches!(rig.snapshot(A), Err(PoolError::Io(_))));
    rig.write(3, &[2]);
    rig.ok(PoolOp::DropImage { replica: KEY, image: A });
    assert_eq!(played.volumes().len(), 1);
    rig.snapshot(A).expect("taken");
    rig.write(3, &[3]);
    assert_eq!(rig.of_image(A, 3, 1), Ok(vec![Ok(2)]));
    // It can't be removed: that is said, and done the next time.
    played.fails(0);
    assert!(rig.run(PoolOp::DropImage { replica: KEY, image: A }).is_err());
    assert_eq!(rig.of_image(A, 3, 1), Ok(vec![Ok(2)]));
    rig.ok(PoolOp::DropImage { replica: KEY, image: A });
    assert_eq!((played.volumes().len(), played.tags()), (1, 0));
    assert_eq!(
        rig.run(PoolOp::TakeSnapshot { replica: KEY, image: A }),
        Err(PoolError::Io(Errno(libc::ENOENT)))
    );
    rig.rest();
}

/// What it says of segments that the replica had decides what is absent: it is believed as a whole or not at all.
#[test]
fn a_list_of_segments_that_was_changed_is_damage() {
    let dir = TempDir::on_disk();
    let (_, mut rig) = made(dir.path(), DriverKind::IoUring);
    rig.write(3, &[1]);
    rig.snapshot(A).expect("taken");
    let list = dir.path().join(format!("pool/images/{}.{}/{A}/segments", KEY.volume, KEY.rid.0));
    let bytes = fs::read(&list).expect("there");
    let mut bad = bytes.clone();
    bad[12] ^= 1;
    fs::write(&list, &bad).expect("written");
    assert_eq!(rig.of_image(A, 3, 1), Err(PoolError::ImageDamaged { offset: 3 * BLOCK }));
    fs::write(&list, &bytes).expect("mended");
    assert_eq!(rig.of_image(A, 3, 1), Ok(vec![Ok(1)]));
    rig.rest();
}

/// 3 % are left, 1 % above the mark. Blocks that have their chunks are written as long as nobody shares them; after a
/// snapshot the first write of a chunk takes one, and one of its segment two for the sidecar.
#[test]
fn what_is_written_over_after_a_snapshot_needs_room() {
    let dir = TempDir::on_disk();
    let (played, mut rig) = made(dir.path(), DriverKind::IoUring);
    for chunk in 0..180 {
        rig.write(chunk * 16, &[1; 16]);
    }
    // Of 16384 chunks; so many are left above the mark.
    let leaves = |rig: &mut Rig, chunks: u64| {
        played.fills(0, 16384 - 163 * 2 - 2 - chunks);
        assert!(matches!(rig.run(PoolOp::Space), Ok(PoolAnswer::Space { .. })));
    };
    leaves(&mut rig, 0);
    rig.write(0, &[2; 64]);
    leaves(&mut rig, 170);
    rig.snapshot(A).expect("taken");
    // The sidecar, the chunk, and what two blocks of metadata are worth: 32 chunks, twice.
    rig.write(0, &[3]);
    rig.write(1, &[3; 15]);
    assert_eq!(rig.pool.figures().refused_room, 0);
    let mut done = 0;
    let refused = loop {
        match rig.disk(write(16 * (1 + done), &[4])) {
            Ok(_) => done += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, PoolError::NoSpace);
    // 2 + 32 for the sidecar, 32 for the first 8 MiB, one for the first chunk; then 32 again for the next 8 MiB.
    assert!((100..140).contains(&done), "{done}");
    // What is its own again goes on, and is sealed; a hole of whole chunks does, too.
    rig.write(16, &[5; 16]);
    rig.seal();
    rig.zero(0, 32, Hole::Zero);
    // A hole with edges that are shared needs room for them.
    let edges = zero(16 * 150 + 1, 30, Hole::Zero);
    assert_eq!(rig.disk(edges), Err(PoolError::NoSpace));
    assert_eq!(rig.of_image(A, 0, 2), Ok(vec![Ok(2), Ok(2)]));
    assert_eq!(rig.read(16 * 150, 2), Ok(vec![Ok(1), Ok(1)]));
    leaves(&mut rig, 1000);
    rig.zero(16 * 150 + 1, 30, Hole::Zero);
    rig.rest();
}

/// All of it, from the first moment; what happens to either is nothing to the other one.
#[test]
fn a_clone_is_a_snapshot_of_the_images_volume() {
    let dir = TempDir::on_disk();
    let (played, mut rig) = made(dir.path(), DriverKind::IoUring);
    rig.write(16, &[1, 2]);
    rig.write(2 * 16384 + 5, &[3]);
    rig.snapshot(A).expect("taken");
    rig.write(16, &[9]);
    let begin = || PoolOp::BeginClone { from: KEY, image: A, to: TO, meta_bytes: 4096 };
    rig.ok(begin());
    // One that was given up, and one that a killed process has left.
    rig.ok(PoolOp::AbandonClone { replica: TO });
    assert_eq!(played.volumes().len(), 2);
    rig.ok(begin());
    rig.kill();
    let mut rig = super::thin::rig(dir.path(), &played, DriverKind::IoUring);
    assert_eq!((played.volumes().len(), played.tags()), (2, 0));
    rig.opened(3 * SEGMENT, &[]);
    rig.ok(begin());
    let place = Place::Image { image: A, heir: None };
    let out = PoolOp::CloneOut { from: KEY, place, to: TO, offset: 0, len: SEGMENT };
    assert_eq!(rig.run(out), Ok(PoolAnswer::Disk(DiskDone::Shared(SEGMENT))));
    // Another command's failure leaves it alone.
    played.fails(0);
    assert!(rig.run(PoolOp::DropImage { replica: KEY, image: A }).is_err());
    assert!(matches!(rig.run(PoolOp::Space), Ok(PoolAnswer::Space { .. })));
    let mut checkpoint = vec![0; 4096];
    checkpoint[0] = 7;
    rig.ok(PoolOp::PublishClone { replica: TO, checkpoint });
    assert_eq!(rig.run(begin()), Err(PoolError::Exists));
    rig.ok(PoolOp::DropImage { replica: KEY, image: A });
    rig.ok(PoolOp::CloseReplica { replica: KEY });
    let size = 3 * SEGMENT;
    rig.ok(PoolOp::OpenReplica { replica: TO, size, unsealed: Vec::new() });
    let read = |rig: &mut Rig, first: u64| {
        let op = DiskOp::Read { offset: first * BLOCK, len: BLOCK };
        match rig.run(PoolOp::Disk { replica: TO, op }) {
            Ok(PoolAnswer::Disk(DiskDone::Data(extents))) => match &extents[..] {
                [Extent::Data { data, .. }] => Ok(data.bytes()[0]),
                [Extent::Hole { kind, .. }] => Err(*kind),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    };
    let found = [16, 17, 18, 16384, 2 * 16384 + 5].map(|block| read(&mut rig, block));
    assert_eq!(found, [Ok(1), Ok(2), Err(Hole::Absent), Err(Hole::Absent), Ok(3)]);
    assert!(matches!(rig.run(PoolOp::Space), Ok(PoolAnswer::Space { .. })));
    assert_eq!((played.volumes().len(), played.tags(), played.active().len()), (2, 0, 2));
    rig.rest();
}
