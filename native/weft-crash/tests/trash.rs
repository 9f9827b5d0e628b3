//! A replica that is to be trashed, and what may happen to it between the read of its tombstone and the rename.

use weft_crash::host::{Around, Host};
use weft_crash::run::Workspace;
use weft_proto::ids::{Epoch, Rid, VolumeId};
use weft_proto::log::ReplicaKey;

const ONE: ReplicaKey = ReplicaKey { volume: VolumeId(0x11), rid: Rid(1) };
const SIZE: u64 = 64 << 20;

/// N19: the tombstone was read; before the answer is there the volume is restored and opened, written to and perhaps
/// closed again. Nothing is trashed by it (R15); by a tombstone of after that, it is.
#[test]
fn a_tombstone_that_was_read_before_the_volume_was_opened_again_trashes_nothing() {
    let mut work = Workspace::new();
    let around = Around { boot: 1, ..Around::default() };
    let host = Host::start(&work.disk(), &work.state(), &around, work.driver(), None, (true, 1));
    let mut host = host.unwrap_or_else(|failed| panic!("{}", failed.0));
    host.serving().expect("serves");
    host.create(ONE, SIZE).expect("made");
    host.open(ONE, Epoch(1)).expect("promised");

    // It is open when the answer comes, with nothing under way.
    let kept = host.trash_late(ONE, |host| {
        host.open(ONE, Epoch(4))?;
        host.write(ONE, 1, 3, 2);
        host.settle();
        Ok(())
    });
    let why = kept.expect_err("it is in use");
    assert!(why.contains("epoch 2, rev 2) is not above the replica's (epoch 4, rev 4"), "{why}");
    // Its promise is on its way to the log.
    let kept = host.trash_late(ONE, |host| {
        host.attach(ONE)?;
        host.ask_promise(ONE, Epoch(8));
        Ok(())
    });
    let why = kept.expect_err("it is about to be in use");
    assert!(why.contains("under way"), "{why}");
    host.settle();
    // A write is on its way to the disk.
    let kept = host.trash_late(ONE, |host| {
        host.write(ONE, 1, 5, 1);
        Ok(())
    });
    assert!(kept.expect_err("it is written to").contains("under way"));
    host.settle();
    assert_eq!(host.trash_list(), Ok(vec![]));
    assert_eq!(host.replicas().len(), 1);
    let read = host.read(ONE, 3, 3).expect("read");
    assert!(read.iter().all(|found| found.sectors[0] != 0), "what was written is there: {read:?}");

    host.trash(ONE).expect("by a tombstone above its promise");
    assert_eq!(host.trash_list(), Ok(vec![(ONE.volume, ONE.rid)]));
    assert_eq!(host.replicas().len(), 0);
    work.give_back(host.end().0);
}
