//! Pools whose segments lie on volumes: a volume is played by a sparse file, which gives its space back as well.

use std::sync::Arc;

use super::*;
use crate::thin::STRIDE;
use crate::thin::tests::Played;

const CHUNK: u64 = 64 << 10;

pub(super) fn rig(path: &Path, played: &Played, kind: DriverKind) -> Rig {
    let store =
        |dir: &PoolDir| -> Arc<dyn crate::store::Store> { Arc::new(played.start(dir).expect("starts")) };
    Rig::over(&path.join("pool"), kind, PoolConfig::new(SPACE), |dir| dir.stored(store))
}

fn kinds(rig: &mut Rig, offset: u64, len: u64) -> Vec<(u64, Option<Hole>)> {
    match rig.disk(DiskOp::Kinds { offset, len }) {
        Ok(DiskDone::Kinds(kinds)) => kinds,
        other => panic!("{other:?}"),
    }
}

/// The replica's bytes, holes as zeroes.
fn bytes(rig: &mut Rig, offset: u64, len: u64) -> Vec<u8> {
    let Ok(DiskDone::Data(extents)) = rig.disk(DiskOp::Read { offset, len }) else { panic!("not read") };
    let flat = |extent: Extent<IoBuf>| match extent {
        Extent::Data { data, .. } => data.bytes().to_vec(),
        Extent::Hole { len, .. } => vec![0; usize::try_from(len).expect("short")],
    };
    extents.into_iter().flat_map(flat).collect()
}

/// Written across a segment's end, sealed, closed, opened again: it is there, at its place on the volume.
#[test]
fn segments_lie_one_behind_the_other_on_a_volume_each_with_its_sidecar() {
    for kind in [DriverKind::IoUring, DriverKind::Libaio] {
        let dir = TempDir::on_disk();
        let played = Played::new(&dir.path().join("lvm"));
        let mut rig = rig(dir.path(), &played, kind);
        rig.made(3 * SEGMENT);
        rig.write((SEGMENT - (32 << 10)) / BLOCK, &[7; 16]);
        let data = vec![7; 64 << 10];
        assert_eq!(rig.disk(DiskOp::Seal), Ok(DiskDone::Done));
        assert_eq!(bytes(&mut rig, SEGMENT - (32 << 10), 64 << 10), data);
        let [volume] = played.volumes().try_into().expect("one");
        let file = std::fs::File::open(dir.path().join("lvm").join(&volume)).expect("opened");
        let mut found = [0; 2];
        file.read_exact_at(&mut found[..1], SEGMENT - 1).expect("read");
        file.read_exact_at(&mut found[1..], STRIDE).expect("read");
        assert_eq!(found, [7, 7]);
        let mut kind_of_first = [0; 4];
        file.read_exact_at(&mut kind_of_first, STRIDE + SEGMENT + 4).expect("read");
        assert_eq!(&kind_of_first, b"DATA", "the second segment's sidecar");
        // Both sidecars and the data, to a chunk.
        assert!(played.used(&volume) <= 2 * (128 << 10) + 2 * CHUNK, "{}", played.used(&volume));

        rig.ok(PoolOp::CloseReplica { replica: KEY });
        rig.opened(3 * SEGMENT, &[]);
        assert_eq!(bytes(&mut rig, SEGMENT - (32 << 10), 64 << 10), data);
        let expected = vec![
            (SEGMENT - (32 << 10), Some(Hole::Absent)),
            (64 << 10, None),
            (2 * SEGMENT - (32 << 10), Some(Hole::Absent)),
        ];
        assert_eq!(kinds(&mut rig, 0, 3 * SEGMENT), expected);
    }
}

/// Every hole of a few blocks at every place of two chunks: what it covers is zero, what it doesn't is as it was, chunks
/// that it covers give their space back, and nothing takes space that had none.
#[test]
fn a_hole_is_precise_to_a_block_and_whole_chunks_give_their_space_back() {
    let dir = TempDir::on_disk();
    let played = Played::new(&dir.path().join("lvm"));
    let mut rig = rig(dir.path(), &played, DriverKind::IoUring);
    rig.made(SEGMENT);
    let whole = vec![9; 4 * (64 << 10)];
    for (lo, hi) in [(0, 1), (1, 17), (15, 16), (16, 32), (15, 33), (3, 61), (0, 64), (17, 31)] {
        rig.write(0, &[9; 64]);
        let [volume] = played.volumes().try_into().expect("one");
        let before = played.used(&volume);
        let (offset, len) = (lo * BLOCK, (hi - lo) * BLOCK);
        let zero = DiskOp::Zero { offset, len, kind: Hole::Zero, keep_space: false };
        assert_eq!(rig.disk(zero), Ok(DiskDone::Done));
        let mut expected = whole.clone();
        expected[usize::try_from(offset).expect("short")..][..usize::try_from(len).expect("short")].fill(0);
        assert_eq!(bytes(&mut rig, 0, 4 * CHUNK), expected, "{lo}..{hi}");
        let chunks = (hi / 16).saturating_sub(lo.div_ceil(16));
        assert_eq!(before - played.used(&volume), chunks * CHUNK, "{lo}..{hi}");
        // Where nothing was, there is nothing after it either.
        let far = DiskOp::Zero { offset: 1 << 20, len: 20 * BLOCK, kind: Hole::Zero, keep_space: false };
        let before = played.used(&volume);
        assert_eq!(rig.disk(far), Ok(DiskDone::Done));
        assert_eq!(played.used(&volume), before);
        let kept = DiskOp::Zero { offset, len, kind: Hole::Zero, keep_space: true };
        assert_eq!(rig.disk(kept), Ok(DiskDone::Done));
        assert_eq!(played.used(&volume) - before, chunks * CHUNK, "{lo}..{hi}, kept");
    }
}

#[test]
fn a_replica_grows_on_its_volume_and_goes_with_it() {
    let dir = TempDir::on_disk();
    let played = Played::new(&dir.path().join("lvm"));
    let mut rig = rig(dir.path(), &played, DriverKind::IoUring);
    rig.made(SEGMENT);
    rig.write(1, &[1]);
    assert_eq!(rig.disk(DiskOp::Grow { from: SEGMENT, to: 4 * SEGMENT }), Ok(DiskDone::Done));
    assert_eq!(rig.pool.used(KEY), None, "nobody has looked");
    rig.write(4 * SEGMENT / BLOCK - 1, &[2]);
    assert_eq!(bytes(&mut rig, 4 * SEGMENT - BLOCK, BLOCK), [2; 4096]);
    assert_eq!(
        rig.run(PoolOp::Space),
        Ok(PoolAnswer::Space { free: (16384 - 4000) * CHUNK, total: 16384 * CHUNK })
    );
    let [volume] = played.volumes().try_into().expect("one");
    assert_eq!(rig.pool.used(KEY), Some(played.used(&volume)));
    rig.ok(PoolOp::TrashReplica { replica: KEY, now_s: 5 });
    assert_eq!(played.volumes().len(), 1, "the trash keeps it");
    let Ok(PoolAnswer::Trash(entries)) = rig.run(PoolOp::ListTrash) else { panic!("not listed") };
    rig.ok(PoolOp::EmptyTrash { name: entries[0].name.clone() });
    assert_eq!(played.volumes().len(), 0);
    assert_eq!(rig.run(PoolOp::EmptyTrash { name: entries[0].name.clone() }), Err(PoolError::NoReplica));
}
