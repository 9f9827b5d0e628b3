//! Plots D12 and D21 of docs/scenarios.md: snapshots that are brought to a copy which missed them.

use crate::oracle::Value;
use crate::scenarios::plots;
use crate::stage::{C, D, Fate, Play, R0, R1, Scene, Stage, Who, readies};

use weft_proto::message::Refusal;
use weft_proto::session::NotAdded;

plots! {
    D12 => what_is_brought_to_a_copy_that_was_away_outlasts_the_others,
    D12 => a_member_that_has_nothing_of_a_snapshot_is_not_listed,
    D12 => an_owner_that_dies_while_a_copy_is_listed_leaves_it_to_the_next_one,
    D12 => a_snapshot_that_is_deleted_while_it_is_brought_leaves_nothing,
    D12 => what_was_begun_is_not_taken_for_the_end_of_its_snapshot,
    D12 => what_was_brought_says_nothing_of_what_has_changed,
    D21 => a_volume_is_taken_back_to_what_its_last_copy_was_brought,
}

const S: u128 = 1;
const T: u128 = 2;

/// r1 is away while S is taken of r0, and back in sync; the volume is written over.
fn missed(play: &Play) -> (Stage, Who, Vec<Value>) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let first = stage.write_run(owner, 0, 40);
    stage.run_until("it is written", |s| s.done(first.id));
    stage.kill(R1);
    let over = stage.written(owner, 3);
    stage.snapshotted(owner, S);
    assert_eq!(stage.listed(S), [R0]);
    stage.written(owner, 20);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    // The owner hears of that, too.
    stage.run_for(50);
    let content = (0..40).map(|at| if at == 3 { over } else { first.value + at }).collect();
    (stage, owner, content)
}

/// What a replica has of a snapshot.
fn image(stage: &Stage, rid: weft_proto::ids::Rid, id: u128, blocks: usize) -> Vec<Value> {
    let image = stage.image(rid, id).expect("an image");
    image[..blocks].iter().map(|value| value.expect("whole")).collect()
}

/// D12: r1 gets all of S from r0, is listed, and r0 leaves for good. What S holds is there, whatever is written, after a restart and
/// after the store was lost; it goes when it is deleted.
fn what_is_brought_to_a_copy_that_was_away_outlasts_the_others(play: &Play) {
    let (mut stage, owner, content) = missed(play);
    stage.bring(R1, R0, S);
    assert_eq!((stage.listed(S), image(&stage, R1, S, 40)), (vec![R0], content.clone()));
    stage.add_copy(owner, S, R1);
    stage.run_until("it is listed", |s| s.copy_added(owner, S, R1) == Some(Ok(())));
    assert_eq!(stage.listed(S), [R0, R1]);
    let over = stage.write_run(owner, 0, 48);
    stage.run_until("all is written over", |s| s.done(over.id));
    stage.snapshotted(owner, T);
    stage.remove(owner, R0);
    stage.run_until("r0 is out", |s| s.in_sync() == [R1]);
    stage.kill(R0);
    stage.kill(R1);
    stage.start(R1);
    stage.written(owner, 5);
    stage.snapshots_hold();
    assert_eq!(image(&stage, R1, S, 40), content);
    stage.vanish(owner);
    stage.lose_store();
    stage.repair(true).expect("with assent");
    assert_eq!((stage.listed(S), stage.listed(T)), (vec![R1], vec![R1]));
    let next = stage.steal(C);
    stage.serving(next);
    stage.snapshots_hold();
    stage.delete_snapshot(next, S);
    stage.run_until("it is gone", |s| s.is_gone(next, S));
    assert_eq!(stage.images(R1), (1, 1));
    stage.snapshots_hold();
}

/// D12 (R27): r1 was asked for before anything was brought, then with a part of it: neither is listed.
fn a_member_that_has_nothing_of_a_snapshot_is_not_listed(play: &Play) {
    let (mut stage, owner, _) = missed(play);
    stage.add_copy(owner, S, R1);
    stage.run_until("it is refused", |s| s.copy_added(owner, S, R1).is_some());
    stage.snapshots_hold();
    assert_eq!(stage.copy_added(owner, S, R1), Some(Err(NotAdded::NoImage)));
    stage.begin_copy(R1, S);
    stage.fill_copy(R1, R0, S, 1);
    assert_eq!(stage.images(R1).0, 0, "nobody knows of a half one");
    // It dies with that, and nothing is left of it.
    stage.kill(R1);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.images(R1), stage.listed(S)), ((0, 0), vec![R0]));
    stage.bring(R1, R0, S);
    stage.close(owner);
}

/// D12: at each of the steps. The snapshot is as it was, and the next owner lists the copy.
fn an_owner_that_dies_while_a_copy_is_listed_leaves_it_to_the_next_one(play: &Play) {
    let steps: [fn(&mut Stage, Who); 4] = [
        // The member is asked to log it.
        |stage, owner| {
            stage.hold(owner, R1, readies);
            stage.add_copy(owner, S, R1);
            stage.run_for(20);
        },
        // It has logged it, and the owner knows nothing of that.
        |stage, owner| {
            stage.lose_answers(owner, R1, true);
            stage.add_copy(owner, S, R1);
            stage.run_for(20);
        },
        // The swap is on its way, and reaches the store when somebody else owns the volume.
        |stage, owner| {
            stage.next_swaps(&[Fate::LateUnknown; 4]);
            stage.add_copy(owner, S, R1);
            stage.run_until("the swap is sent", |s| s.late() > 0);
        },
        // It was applied, and nobody was told.
        |stage, owner| {
            stage.next_swaps(&[Fate::AppliedUnknown]);
            stage.add_copy(owner, S, R1);
            stage.run_until("it is in the store", |s| s.listed(S) == [R0, R1]);
        },
    ];
    for step in steps {
        let (mut stage, owner, content) = missed(play);
        stage.bring(R1, R0, S);
        step(&mut stage, owner);
        stage.vanish(owner);
        let next = stage.steal(C);
        stage.serving(next);
        stage.snapshots_hold();
        stage.add_copy(next, S, R1);
        stage.run_until("it is listed", |s| s.copy_added(next, S, R1) == Some(Ok(())));
        assert_eq!((stage.listed(S), image(&stage, R1, S, 40)), (vec![R0, R1], content));
        stage.snapshots_hold();
    }
}

/// D12 (R15): S is deleted while r1 is brought it, and when r1 has logged it and nobody has listed it. Nothing of it stays.
fn a_snapshot_that_is_deleted_while_it_is_brought_leaves_nothing(play: &Play) {
    let (mut stage, owner, _) = missed(play);
    stage.begin_copy(R1, S);
    stage.fill_copy(R1, R0, S, 1);
    stage.delete_snapshot(owner, S);
    stage.run_until("it is gone", |s| s.is_gone(owner, S));
    stage.give_up_copy(R1, S);
    assert_eq!(stage.images(R1), (0, 0));

    let (mut stage, owner, _) = missed(play);
    stage.bring(R1, R0, S);
    stage.next_swaps(&[Fate::LostUnknown; 8]);
    stage.add_copy(owner, S, R1);
    let ready = |s: &Stage| {
        s.durable(R1).images.iter().all(|image| image.state == weft_proto::images::ImageState::Ready)
    };
    stage.run_until("r1 has logged it", ready);
    stage.vanish(owner);
    stage.janitor(R1);
    stage.run_for(200);
    assert_eq!(stage.images(R1).0, 1, "its snapshot is there");
    let next = stage.steal(C);
    stage.serving(next);
    stage.delete_snapshot(next, S);
    stage.run_until("it is gone", |s| s.is_gone(next, S));
    assert_eq!(stage.images(R1).0, 1, "nobody has told r1");
    stage.janitor(R1);
    stage.run_until("it is gone there as well", |s| s.images(R1) == (0, 0));
    stage.close(next);
}

/// D12 (R15): r1 has given up what it was brought of S when the store is lost. That it is not there says nothing of S.
fn what_was_begun_is_not_taken_for_the_end_of_its_snapshot(play: &Play) {
    let (mut stage, owner, _) = missed(play);
    stage.begin_copy(R1, S);
    stage.fill_copy(R1, R0, S, 1);
    stage.give_up_copy(R1, S);
    stage.run_for(50);
    stage.vanish(owner);
    stage.lose_store();
    stage.repair(true).expect("with assent");
    assert!(stage.key(S).is_some_and(|key| !key.deleting) && stage.listed(S) == [R0]);
    let next = stage.steal(C);
    stage.serving(next);
    stage.snapshots_hold();
    stage.bring(R1, R0, S);
    stage.close(next);
}

/// D12 (R29; docs/model.md, finding 25): r1 got S from r0 and took T itself. What has changed between the two it does not know:
/// its stamps are of what it held, and it never held S.
fn what_was_brought_says_nothing_of_what_has_changed(play: &Play) {
    let (mut stage, owner, _) = missed(play);
    stage.bring(R1, R0, S);
    stage.add_copy(owner, S, R1);
    stage.run_until("it is listed", |s| s.copy_added(owner, S, R1) == Some(Ok(())));
    stage.snapshotted(owner, T);
    assert_eq!(stage.listed(T), [R0, R1]);
    assert_eq!(stage.changed(R0, T, S), Ok(vec![false, true, false]));
    assert_eq!(stage.changed(R1, T, S), Err(Refusal::NoSnapshot));
    assert_eq!(stage.changed(R1, S, T), Err(Refusal::NoSnapshot));
    stage.close(owner);
}

/// D21 (R30): r1 is the only copy that is left, and got S from r0. Its stamps say nothing of what has changed since: all of it is
/// brought back that is another.
fn a_volume_is_taken_back_to_what_its_last_copy_was_brought(play: &Play) {
    let (mut stage, owner, content) = missed(play);
    stage.bring(R1, R0, S);
    stage.add_copy(owner, S, R1);
    stage.run_until("it is listed", |s| s.copy_added(owner, S, R1) == Some(Ok(())));
    stage.written(owner, 9);
    stage.remove(owner, R0);
    stage.run_until("r0 is out", |s| s.in_sync() == [R1]);
    stage.kill(R0);
    stage.close(owner);
    let caretaker = stage.caretaker(C);
    stage.reverted(caretaker, S);
    let disk: Vec<Value> = (0..40).map(|block| stage.disk(R1, block)).collect();
    assert_eq!((disk, image(&stage, R1, S, 40)), (content.clone(), content));
    stage.snapshots_hold();
    stage.close(caretaker);
}
