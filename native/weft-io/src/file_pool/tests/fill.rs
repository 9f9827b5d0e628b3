//! Images that are filled with what others have of a snapshot, on an XFS whose files share blocks, which takes root.

use super::images::{A, B, on_xfs};
use super::*;

const SEGMENT_OF_BLOCKS: u64 = 16384;

fn extents(blocks: &[Result<u8, Hole>]) -> Vec<Extent<IoBuf>> {
    let extent = |block: &Result<u8, Hole>| match block {
        Ok(fill) => {
            let data = IoBuf::copy_of(&[*fill; 4096]);
            Extent::Data { crcs: block_crcs(data.bytes()), data }
        }
        Err(kind) => Extent::Hole { len: BLOCK, kind: *kind },
    };
    blocks.iter().map(extent).collect()
}

impl Rig {
    fn begin_copy(&mut self, image: SnapId) -> Result<PoolAnswer, PoolError> {
        self.run(PoolOp::BeginCopy { replica: KEY, image, slot_bytes: 8192 })
    }

    /// How many blocks are shared with the head.
    fn fill(&mut self, image: SnapId, first: u64, blocks: &[Result<u8, Hole>]) -> Result<u64, PoolError> {
        let (offset, extents) = (first * BLOCK, extents(blocks));
        match self.run(PoolOp::FillCopy { replica: KEY, image, offset, extents })? {
            PoolAnswer::Disk(DiskDone::Shared(bytes)) => Ok(bytes / BLOCK),
            other => panic!("{other:?}"),
        }
    }

    fn publish(&mut self, image: SnapId) {
        self.ok(PoolOp::PublishCopy { replica: KEY, image, slot: vec![0xee; 4096] });
    }
}

/// What arrives is there, shared where the head holds just that; nothing of it is an image before all of it is durable and named.
#[test]
fn an_image_is_filled_with_what_arrives_and_shares_what_the_head_holds() {
    on_xfs(400, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(3 * SEGMENT);
        for block in (0..2048).step_by(64) {
            rig.write(block, &[7; 64]);
        }
        rig.write(SEGMENT_OF_BLOCKS, &[5, 6]);
        rig.begin_copy(A).expect("begun");
        let before = rig.free();
        let (zero, absent) = (Err(Hole::Zero), Err(Hole::Absent));
        let mut blocks = vec![Ok(7); 256];
        (blocks[3], blocks[4], blocks[5], blocks[200]) = (Ok(8), zero, absent, Ok(9));
        assert_eq!(rig.fill(A, 0, &blocks), Ok(252));
        for first in (256..2048).step_by(256) {
            assert_eq!(rig.fill(A, first, &[Ok(7); 256]), Ok(256));
        }
        rig.ok(PoolOp::SyncCopy { replica: KEY, image: A, segment: 0 });
        let used = before - rig.free();
        assert!(used < 2 << 20, "{used} bytes for 8 MiB that are shared");
        assert_eq!(rig.fill(A, SEGMENT_OF_BLOCKS, &[Ok(5), Ok(5)]), Ok(1));
        assert_eq!(rig.fill(A, 2 * SEGMENT_OF_BLOCKS, &[Ok(1)]), Ok(0), "the head has no such segment");
        for (first, blocks) in [(SEGMENT_OF_BLOCKS - 1, 2), (0, 0)] {
            assert_eq!(rig.fill(A, first, &vec![Ok(1); blocks]), Err(PoolError::OutOfBounds));
        }
        assert_eq!(
            rig.run(PoolOp::ListImages),
            Ok(PoolAnswer::Images(Vec::new())),
            "not yet, and nobody has it any more"
        );
        // That was what a start does: it is begun anew.
        assert!(rig.fill(A, 0, &blocks).is_err());
        rig.begin_copy(A).expect("begun");
        assert_eq!(rig.fill(A, 0, &blocks), Ok(252));
        // What is written to the head now changes nothing of it.
        rig.write(0, &[1; 64]);
        assert_eq!(rig.fill(A, SEGMENT_OF_BLOCKS, &[Ok(5), Ok(6)]), Ok(2));
        rig.write(SEGMENT_OF_BLOCKS, &[2, 2]);
        rig.publish(A);
        assert_eq!(rig.begin_copy(A), Err(PoolError::Exists));
        let holds = |rig: &mut Rig| {
            assert_eq!(rig.of_image(A, 0, 256), Ok(blocks.clone()));
            assert_eq!(rig.of_image(A, SEGMENT_OF_BLOCKS, 2), Ok(vec![Ok(5), Ok(6)]));
            assert_eq!(rig.of_image(A, 256, 1), Err(PoolError::ImageDamaged { offset: 256 * BLOCK }));
        };
        holds(&mut rig);
        rig.begin_copy(B).expect("begun");
        rig.ok(PoolOp::AbandonCopy { replica: KEY, image: B });
        rig.ok(PoolOp::AbandonCopy { replica: KEY, image: B });
        rig.seal();
        rig.kill();
        let mut rig = Rig::open(path, kind);
        assert_eq!(rig.run(PoolOp::ListImages), Ok(PoolAnswer::Images(vec![(KEY, A)])));
        let Ok(PoolAnswer::Bytes(slot)) =
            rig.run(PoolOp::ReadImage { replica: KEY, image: A, slot: Slot::A })
        else {
            panic!("its slot")
        };
        assert_eq!(slot.bytes()[..4096], [0xee; 4096]);
        holds(&mut rig);
        rig.rest();
    });
}

/// docs/model.md, `image-copy-unlocked`: a write that was asked for while blocks were compared comes after they are shared.
#[test]
fn a_write_waits_until_what_was_compared_is_shared() {
    on_xfs(300, |path, kind| {
        let mut rig = Rig::open(path, kind);
        rig.made(SEGMENT);
        rig.begin_copy(A).expect("begun");
        let disk = |op| PoolOp::Disk { replica: KEY, op };
        let mut tokens = Vec::new();
        for round in 0..20u64 {
            let block = round * 256;
            tokens.push(rig.submit(disk(write(block, &[3; 64]))));
            let (offset, extents) = (block * BLOCK, extents(&[Ok(3); 64]));
            tokens.push(rig.submit(PoolOp::FillCopy { replica: KEY, image: A, offset, extents }));
            tokens.push(rig.submit(disk(write(block, &[4; 64]))));
        }
        while !tokens.is_empty() {
            let PoolEvent::Done { token, result } = rig.next() else { panic!("nothing fails") };
            match result {
                Ok(PoolAnswer::Disk(DiskDone::Shared(len))) => assert_eq!(len, 64 * BLOCK, "all of it"),
                other => assert!(other.is_ok(), "{other:?}"),
            }
            tokens.retain(|other| *other != token);
        }
        rig.publish(A);
        for round in 0..20u64 {
            assert_eq!(rig.of_image(A, round * 256, 64), Ok(vec![Ok(3); 64]));
            assert_eq!(rig.read(round * 256, 64), Ok(vec![Ok(4); 64]));
        }
        rig.rest();
    });
}
