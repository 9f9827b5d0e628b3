//! Plots D22 of docs/scenarios.md: the head of a volume is deleted, which lives on in its snapshots.

use crate::oracle::{ABSENT, Value};
use crate::scenarios::plots;
use crate::stage::{C, D, E, Play, R0, R1, Scene, Stage, promises};

use weft_proto::ids::Rid;
use weft_proto::message::Ask;
use weft_proto::payload::HeapPayload;
use weft_proto::record::HeadData;
use weft_proto::session::EndReason;

plots! {
    D22 => a_deleted_head_is_given_back_and_its_snapshot_stays,
    D22 => no_loss_of_the_store_makes_a_head_whole_of_which_a_part_is_gone,
    D22 => a_deleted_head_that_comes_back_is_what_it_was,
}

const S: u128 = 1;

/// One that is written over after the snapshot, one that is not, and one that is new.
const BLOCKS: [u64; 3] = [3, 20, 36];

fn zeroes(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Zero { .. })
}

/// A volume with S, written to since, whose head is deleted; and what that has of [`BLOCKS`].
fn headless(stage: &mut Stage) -> [Value; 3] {
    let owner = stage.owner(D);
    let [_, same] = [3, 20].map(|block| stage.written(owner, block));
    stage.snapshotted(owner, S);
    let [newer, new] = [3, 36].map(|block| stage.written(owner, block));
    stage.close(owner);
    stage.mark_head(true);
    [newer, same, new]
}

fn disks(stage: &Stage, rid: Rid) -> [Value; 3] {
    BLOCKS.map(|block| stage.disk(rid, block))
}

fn head_is(stage: &Stage, data: HeadData) -> bool {
    stage.record().head_data() == Some(data)
}

/// D22: no guest opens it, at any time. The caretaker dies with a half of it, the next one goes on; r1 is away for that, and
/// lacks nothing afterwards that the head had.
fn a_deleted_head_is_given_back_and_its_snapshot_stays(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let head = headless(&mut stage);
    let refused = |stage: &mut Stage| {
        let guest = stage.steal(E);
        assert_eq!(stage.over(guest), EndReason::HeadDeleted);
    };
    refused(&mut stage);
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (head, head));
    let caretaker = stage.caretaker(C);
    stage.hold(caretaker, R1, zeroes);
    stage.release_head(caretaker);
    stage.run_until("r0 has nothing of it", |s| disks(s, R0) == [ABSENT; 3]);
    stage.run_for(50);
    assert!(head_is(&stage, HeadData::Releasing) && disks(&stage, R1) == head);
    stage.snapshots_hold();
    stage.vanish(caretaker);
    refused(&mut stage);
    stage.kill(R1);
    let next = stage.caretaker(D);
    stage.run_until("all of it is given back", |s| head_is(s, HeadData::Released));
    assert_eq!(stage.in_sync(), [R0]);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), ([ABSENT; 3], [ABSENT; 3]));
    stage.snapshots_hold();
    refused(&mut stage);
    stage.delete_snapshot(next, S);
    stage.run_until("the snapshot is gone", |s| s.is_gone(next, S));
    stage.close(next);
    assert_eq!(stage.record().snaps.count, 0);
}

/// D22: r1 has not heard that it goes; so all of it is there still, whatever record a repair finds. Once it has, no record that
/// a repair finds says that the head is whole.
fn no_loss_of_the_store_makes_a_head_whole_of_which_a_part_is_gone(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let head = headless(&mut stage);
    let caretaker = stage.caretaker(C);
    stage.hold(caretaker, R1, promises);
    stage.release_head(caretaker);
    stage.run_until("the record says so", |s| head_is(s, HeadData::Releasing));
    stage.run_for(300);
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (head, head), "r1 may be all that a repair hears");
    stage.hold(caretaker, R1, zeroes);
    stage.release(caretaker, R1);
    stage.run_until("r0 has nothing of it", |s| disks(s, R0) == [ABSENT; 3]);
    stage.kill(R0);
    stage.vanish(caretaker);
    stage.lose_store();
    stage.repair(true).expect("with assent");
    assert!(head_is(&stage, HeadData::Releasing), "{:?}", stage.record().head);
}

/// D22: restored before anything of it went, it is what it was: its guest goes on.
fn a_deleted_head_that_comes_back_is_what_it_was(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let head = headless(&mut stage);
    let caretaker = stage.caretaker(C);
    stage.run_for(3000);
    stage.close(caretaker);
    stage.mark_head(false);
    assert_eq!((stage.record().fmt, stage.record().min_reader), (1, 1));
    let owner = stage.owner(D);
    assert_eq!(BLOCKS.map(|block| stage.read_now(owner, block)), head);
    stage.written(owner, 3);
    stage.snapshots_hold();
    stage.close(owner);
}
