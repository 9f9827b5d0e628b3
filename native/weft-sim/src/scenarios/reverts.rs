//! Plots D21 of docs/scenarios.md: a volume is taken back to a snapshot in place, whoever is lost meanwhile.

use crate::oracle::{ABSENT, Value};
use crate::scenarios::plots;
use crate::stage::{C, D, Fate, Play, R0, R1, Scene, Stage, Who, copies, promises, seals};

use weft_proto::message::{Ask, Refusal};
use weft_proto::payload::{BLOCK, HeapPayload};
use weft_proto::record::ReplicaState;
use weft_proto::replica::{DiskError, DiskOp};
use weft_proto::session::{Event, RevertFailure};

plots! {
    D21 => a_volume_is_taken_back_to_a_snapshot_and_later_ones_stay,
    D21 => an_owner_that_dies_at_any_step_of_a_revert_leaves_all_of_it_or_nothing,
    D21 => what_a_dead_owner_had_begun_to_bring_back_is_finished_by_the_next,
    D21 => a_store_that_is_lost_during_a_revert_knows_of_it,
    D21 => a_revert_that_was_told_of_outlasts_the_store,
    D21 => a_revert_is_over_when_every_member_has_it,
    D21 => a_member_without_the_image_is_left_out_and_comes_back,
    D21 => a_member_that_was_away_during_a_revert_gets_what_came_back,
    D21 => a_member_that_dies_during_a_revert_is_gone_on_without,
    D21 => a_revert_waits_for_a_pool_that_is_full,
    D21 => what_one_image_can_not_give_comes_from_another,
    D21 => what_no_member_in_sync_can_give_comes_from_one_that_is_not,
    D21 => nothing_is_sealed_that_came_back_at_one_member_only,
    D21 => a_revert_to_what_no_image_can_give_waits_and_says_so,
    D21 => another_snapshot_takes_the_place_of_the_one_that_a_volume_is_taken_back_to,
    D21 => a_volume_is_not_taken_back_where_that_can_not_be,
}

const S: u128 = 1;
const T: u128 = 2;

/// In three regions: one that is written over, one that is discarded, one that is new.
const BLOCKS: [u64; 4] = [3, 5, 20, 36];

fn looks(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Images { .. })
}

fn stamps(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Stamps { .. })
}

fn image_hashes(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::SnapHash { .. })
}

/// A volume with S, changed since, that nobody has: what S has of [`BLOCKS`], and what the volume has.
fn changed(stage: &mut Stage) -> ([Value; 4], [Value; 4]) {
    let owner = stage.owner(D);
    let [over, same, gone] = [3, 5, 20].map(|block| stage.written(owner, block));
    stage.snapshotted(owner, S);
    let newer = stage.written(owner, 3);
    let discard = stage.discard(owner, 20);
    stage.run_until("it is discarded", |s| s.done(discard));
    let new = stage.written(owner, 36);
    let zero = stage.read_now(owner, 20);
    stage.close(owner);
    ([over, same, gone, ABSENT], [newer, same, zero, new])
}

fn disks(stage: &Stage, rid: weft_proto::ids::Rid) -> [Value; 4] {
    BLOCKS.map(|block| stage.disk(rid, block))
}

/// What a guest reads; what was never written reads as any hole does.
fn read(stage: &mut Stage, who: Who) -> [Value; 4] {
    BLOCKS.map(|block| stage.read_now(who, block))
}

/// D21, nobody dies: to the older of two, to the newer one again, and to one that is deleted afterwards.
fn a_volume_is_taken_back_to_a_snapshot_and_later_ones_stay(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (old, new) = changed(&mut stage);
    let owner = stage.owner(D);
    stage.snapshotted(owner, T);
    stage.written(owner, 3);
    stage.close(owner);
    let caretaker = stage.caretaker(C);
    let epoch = stage.record().epoch;
    stage.reverted(caretaker, S);
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (old, old));
    assert_eq!((stage.record().epoch.0, stage.record().fmt, stage.reverting()), (epoch.0 + 2, 1, None));
    stage.snapshots_hold();
    stage.reverted(caretaker, T);
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (new, new));
    stage.reverted(caretaker, S);
    stage.delete_snapshot(caretaker, S);
    stage.run_until("it is deleted", |s| s.is_gone(caretaker, S));
    stage.snapshots_hold();
    stage.close(caretaker);
    let owner = stage.owner(D);
    assert_eq!(read(&mut stage, owner), old);
    let value = stage.written(owner, 3);
    assert_eq!((stage.disk(R0, 3), stage.disk(R1, 3)), (value, value));
    stage.close(owner);
}

/// D21: at each of the steps. Before the record says so nothing has changed; from then on whoever opens the volume, here a
/// guest, finds all of the snapshot, and is answered nothing before.
fn an_owner_that_dies_at_any_step_of_a_revert_leaves_all_of_it_or_nothing(play: &Play) {
    let marked = |stage: &mut Stage, owner: Who| {
        stage.revert(owner, S);
        stage.run_until("the record says so", |s| s.reverting().is_some());
    };
    let steps: [&dyn Fn(&mut Stage, Who); 11] = [
        // Members are asked what they have.
        &|stage, owner| {
            stage.hold(owner, R1, looks);
            stage.revert(owner, S);
            stage.run_for(20);
        },
        // The swap is on its way, and reaches the store when somebody else owns the volume.
        &|stage, owner| {
            stage.next_swaps(&[Fate::LateUnknown; 4]);
            stage.revert(owner, S);
            stage.run_until("the swap is sent", |s| s.late() > 0);
        },
        // It was applied, and nobody was told.
        &|stage, owner| {
            stage.next_swaps(&[Fate::AppliedUnknown]);
            marked(stage, owner);
        },
        // One member holds the record.
        &|stage, owner| {
            stage.hold(owner, R1, promises);
            marked(stage, owner);
            stage.run_for(50);
        },
        // Members are asked what has changed.
        &|stage, owner| {
            stage.hold(owner, R1, stamps);
            marked(stage, owner);
            stage.run_for(50);
        },
        // What is there is compared.
        &|stage, owner| {
            stage.hold(owner, R0, image_hashes);
            stage.hold(owner, R1, image_hashes);
            marked(stage, owner);
            stage.run_for(50);
        },
        // It came back at one member.
        &|stage, owner| {
            stage.hold(owner, R1, copies);
            marked(stage, owner);
            stage.run_until("r0 has it", |s| s.disk(R0, 36) == ABSENT && s.ran(R0).len() > 4);
            stage.run_for(20);
        },
        // At both, and it is not sealed.
        &|stage, owner| {
            stage.hold(owner, R0, seals);
            stage.hold(owner, R1, seals);
            stage.next_swaps(&[Fate::Answered, Fate::LostUnknown, Fate::LostUnknown, Fate::LostUnknown]);
            marked(stage, owner);
            stage.run_until("both have it", |s| s.disk(R0, 36) == ABSENT && s.disk(R1, 36) == ABSENT);
            stage.run_for(20);
        },
        // The swap that takes the marker off comes late.
        &|stage, owner| {
            stage.next_swaps(&[Fate::Answered, Fate::LateUnknown, Fate::LateUnknown, Fate::LateUnknown]);
            marked(stage, owner);
            stage.run_until("the swap is sent", |s| s.late() > 0);
        },
        // It was applied, and nobody was told.
        &|stage, owner| {
            stage.next_swaps(&[Fate::Answered, Fate::AppliedUnknown]);
            marked(stage, owner);
            stage.run_until("the marker is off", |s| s.reverting().is_none());
        },
        // One member holds the record without it.
        &|stage, owner| {
            marked(stage, owner);
            stage.hold(owner, R1, promises);
            stage.run_for(1);
            stage.release(owner, R1);
            stage.hold(owner, R1, seals);
            stage.run_until("the marker is off", |s| s.reverting().is_none());
        },
    ];
    for (step, until) in steps.into_iter().enumerate() {
        let mut stage = Scene::copies(2).stage(play);
        let (old, new) = changed(&mut stage);
        let owner = stage.caretaker(C);
        until(&mut stage, owner);
        assert!(!stage.is_reverted(owner, S), "step {step}");
        stage.vanish(owner);
        let begun = step >= 2;
        assert_eq!(stage.reverting().is_some(), (2..9).contains(&step), "step {step}");
        let next = stage.steal(D);
        let early = stage.read(next, 3);
        stage.serving(next);
        stage.apply_late();
        stage.run_until("what was asked early is answered", |s| s.answered_at_ms(early).is_some());
        let expected = if begun { old } else { new };
        assert_eq!(stage.value(early), Some(expected[0]), "step {step}: a guest was answered too early");
        assert_eq!(read(&mut stage, next), expected, "step {step}");
        assert_eq!((disks(&stage, R0), disks(&stage, R1)), (expected, expected), "step {step}");
        assert_eq!((stage.reverting(), stage.record().min_reader), (None, 1), "step {step}");
        let value = stage.written(next, 3);
        stage.run_for(2000);
        assert_eq!((stage.disk(R0, 3), stage.disk(R1, 3)), (value, value), "step {step}");
        stage.snapshots_hold();
        stage.close(next);
    }
}

/// D21: a third of it came back at both members.
fn what_a_dead_owner_had_begun_to_bring_back_is_finished_by_the_next(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (old, _) = changed(&mut stage);
    let owner = stage.caretaker(C);
    for rid in [R0, R1] {
        stage.hold(owner, rid, |ask| matches!(ask, Ask::SnapHash { offset, .. } if *offset > 0));
    }
    stage.revert(owner, S);
    stage.run_until("a third is back", |s| [R0, R1].iter().all(|rid| s.disk(*rid, 3) == old[0]));
    stage.run_for(20);
    stage.vanish(owner);
    let next = stage.steal(D);
    stage.serving(next);
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (old, old), "neither what it was nor the snapshot");
}

/// D21 (R25): the store is lost when one member has something back. The other one's record says as well that it is to be
/// finished.
fn a_store_that_is_lost_during_a_revert_knows_of_it(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (old, _) = changed(&mut stage);
    let owner = stage.caretaker(C);
    stage.hold(owner, R1, copies);
    stage.revert(owner, S);
    stage.run_until("r0 has it", |s| s.disk(R0, 36) == ABSENT);
    stage.vanish(owner);
    stage.lose_store();
    stage.kill(R0);
    stage.repair(true).expect("with assent");
    assert_eq!(stage.reverting(), Some(S), "nobody would finish it");
    stage.start(R0);
    let next = stage.steal(D);
    stage.serving(next);
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (old, old));
    assert_eq!(stage.reverting(), None);
}

/// D21 (R25; docs/model.md, finding 27): who is told may delete the snapshot, and then nothing is left to be finished.
fn a_revert_that_was_told_of_outlasts_the_store(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (old, _) = changed(&mut stage);
    let owner = stage.caretaker(C);
    stage.hold(owner, R1, seals);
    stage.hold(owner, R0, seals);
    stage.revert(owner, S);
    stage.run_until("the record says so", |s| s.reverting().is_some());
    // It goes when the revert is over, not before.
    stage.delete_snapshot(owner, S);
    stage.run_until("both have promised", |s| {
        [R0, R1].iter().all(|rid| s.durable(*rid).promised == s.record().epoch)
    });
    stage.hold(owner, R0, promises);
    stage.hold(owner, R1, promises);
    stage.run_until("the marker is off", |s| s.reverting().is_none());
    stage.run_for(300);
    assert!(!stage.is_reverted(owner, S), "no member holds the record without the marker");
    assert!(stage.key(S).is_some_and(|key| !key.deleting), "it may yet be needed");
    stage.release(owner, R0);
    stage.release(owner, R1);
    stage.run_until("it is told of", |s| s.is_reverted(owner, S));
    stage.run_until("the snapshot is gone", |s| s.is_gone(owner, S));
    stage.vanish(owner);
    stage.lose_store();
    stage.repair(true).expect("with assent");
    assert_eq!(stage.reverting(), None, "the marker is back, the snapshot is gone");
    let next = stage.steal(D);
    stage.serving(next);
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (old, old));
}

/// D21: r1 lacks what came back.
fn a_revert_is_over_when_every_member_has_it(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (old, new) = changed(&mut stage);
    let owner = stage.caretaker(C);
    stage.hold(owner, R1, copies);
    stage.revert(owner, S);
    stage.run_until("r0 has it", |s| disks(s, R0) == old);
    stage.run_for(700);
    assert_eq!((disks(&stage, R1), stage.reverting()), (new, Some(S)));
    assert_eq!(stage.view(owner).phase, "paused");
    let view = stage.view(owner).revert.clone().expect("under way");
    assert!(view.total > Some(view.done), "{view:?}");
    stage.release(owner, R1);
    stage.run_until("it is told of", |s| s.is_reverted(owner, S));
    assert_eq!((disks(&stage, R1), stage.view(owner).revert.is_none()), (old, true));
}

/// D21: r1 was away when S was taken. It is stale while the volume is taken back, and gets what the others have; with
/// min_isr 2 nothing begins.
fn a_member_without_the_image_is_left_out_and_comes_back(play: &Play) {
    for min_isr in [1, 2] {
        let mut stage = Scene::copies(2).stage(play);
        let owner = stage.owner(D);
        let value = stage.written(owner, 3);
        stage.kill(R1);
        stage.run_until("r1 is taken out", |s| s.in_sync() == [R0]);
        stage.snapshotted(owner, S);
        stage.start(R1);
        stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
        let newer = stage.written(owner, 3);
        assert_eq!(stage.set_policy(owner, 2, min_isr), Ok(()));
        stage.close(owner);
        let caretaker = stage.caretaker(C);
        stage.revert(caretaker, S);
        if min_isr == 2 {
            stage.run_until("it is refused", |s| s.revert_failed(caretaker).is_some());
            assert_eq!(stage.revert_failed(caretaker), Some(RevertFailure::TooFew { have: 1 }));
            assert_eq!((stage.reverting(), stage.in_sync()), (None, vec![R0, R1]));
            assert_eq!(stage.disk(R0, 3), newer);
            continue;
        }
        stage.run_until("the record says so", |s| s.reverting().is_some());
        assert_eq!(stage.state(R1), Some(ReplicaState::Stale));
        stage.run_until("it is told of", |s| s.is_reverted(caretaker, S));
        stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
        assert_eq!((stage.disk(R0, 3), stage.disk(R1, 3)), (value, value));
        stage.close(caretaker);
    }
}

/// D21 (4.13): what came back while r1 was away is in the owner's own bitmaps, by which r1 is brought what it lacks.
fn a_member_that_was_away_during_a_revert_gets_what_came_back(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (old, new) = changed(&mut stage);
    let owner = stage.owner(D);
    stage.snapshotted(owner, T);
    stage.close(owner);
    let caretaker = stage.caretaker(C);
    stage.reverted(caretaker, S);
    stage.run_for(3000);
    stage.kill(R1);
    stage.run_until("r1 is taken out", |s| s.in_sync() == [R0]);
    stage.reverted(caretaker, T);
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (new, old));
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(disks(&stage, R1), new);
    stage.close(caretaker);
}

/// D21: r1 dies in the middle, and comes back when it is over, not before.
fn a_member_that_dies_during_a_revert_is_gone_on_without(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (old, _) = changed(&mut stage);
    let owner = stage.caretaker(C);
    stage.hold(owner, R1, copies);
    stage.revert(owner, S);
    stage.run_until("r0 has it", |s| disks(s, R0) == old);
    stage.kill(R1);
    stage.hold_no_more(owner, R1);
    stage.hold(owner, R0, seals);
    stage.run_until("r1 is taken out", |s| s.in_sync() == [R0]);
    stage.start(R1);
    stage.run_until("it is told of", |s| s.is_reverted(owner, S));
    let marked = |record: &weft_proto::record::Record| record.reverting.is_some();
    let swaps = stage.swaps().iter().filter(|record| marked(record));
    assert!(swaps.skip_while(|r| r.in_sync().count() == 2).all(|r| r.in_sync().count() == 1));
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(disks(&stage, R1), old);
    stage.hold_no_more(owner, R0);
    stage.close(owner);
}

/// D21: as a write does.
fn a_revert_waits_for_a_pool_that_is_full(play: &Play) {
    let mut stage = Scene::copies(2).min_isr(2).stage(play);
    let (old, _) = changed(&mut stage);
    let owner = stage.caretaker(C);
    stage.fill(R1, true);
    stage.revert(owner, S);
    stage.run_for(5000);
    assert_eq!(stage.reverting(), Some(S));
    let told = stage.view(owner).paused.clone().unwrap_or_default();
    assert!(told.starts_with("takes the volume back to snapshot") && told.contains("is full"), "{told}");
    stage.fill(R1, false);
    stage.run_until("it is told of", |s| s.is_reverted(owner, S));
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (old, old));
}

/// D21: r0's image is lost, and a block of r1's head; then r1 once can't give a range, of which it has every block.
fn what_one_image_can_not_give_comes_from_another(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (old, _) = changed(&mut stage);
    stage.rot(R1, 5);
    stage.lose_image(R0, S);
    let owner = stage.caretaker(C);
    stage.refuse_once(owner, R1, image_hashes, Refusal::BitRot);
    stage.reverted(owner, S);
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (old, old));
    assert!(!stage.is_rotten(R1, 5), "it was written again");
}

/// D21: r1 is not in sync any more, and its image is as good as it ever was; r0's is lost.
fn what_no_member_in_sync_can_give_comes_from_one_that_is_not(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (old, _) = changed(&mut stage);
    stage.kill(R1);
    stage.lose_image(R0, S);
    let owner = stage.caretaker(C);
    assert_eq!(stage.in_sync(), [R0]);
    stage.revert(owner, S);
    stage.run_for(3000);
    assert_eq!(stage.reverting(), Some(S));
    stage.start(R1);
    stage.run_until("it is told of", |s| s.is_reverted(owner, S));
    assert_eq!(disks(&stage, R0), old);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(disks(&stage, R1), old);
    stage.close(owner);
}

/// D21 (R7, I9): a block came back at r0, and r1 could not write it. It is not sealed: with r1 taken out, its base would say
/// that r1 has it. Found by the simulator: seed 6005762.
fn nothing_is_sealed_that_came_back_at_one_member_only(play: &Play) {
    let mut stage = Scene::copies(2).min_isr(2).stage(play);
    let (old, _) = changed(&mut stage);
    let owner = stage.caretaker(C);
    stage.fail_once(R1, |op| matches!(op, DiskOp::Write { .. }), DiskError::Io);
    stage.revert(owner, S);
    stage.run_until("r0 has it", |s| s.disk(R0, 3) == old[0]);
    for rid in [R0, R1] {
        stage.hold(owner, rid, image_hashes);
    }
    stage.run_for(5000);
    assert_ne!(stage.disk(R1, 3), old[0]);
    let marked = stage.record().epoch;
    assert!(stage.durable(R0).sealed.epoch() < marked, "sealed {}", stage.durable(R0).sealed);
    assert_eq!(stage.set_policy(owner, 2, 1), Ok(()));
    stage.kill(R1);
    stage.hold_no_more(owner, R0);
    stage.hold_no_more(owner, R1);
    stage.run_until("it is told of", |s| s.is_reverted(owner, S));
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(disks(&stage, R1), old);
    stage.close(owner);
}

/// D21: it says so, and answers no guest. Another snapshot is there all the same.
fn a_revert_to_what_no_image_can_give_waits_and_says_so(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (_, new) = changed(&mut stage);
    let owner = stage.owner(D);
    stage.snapshotted(owner, T);
    stage.written(owner, 20);
    stage.close(owner);
    for rid in [R0, R1] {
        stage.lose_image(rid, S);
    }
    let caretaker = stage.caretaker(C);
    stage.revert(caretaker, S);
    stage.run_for(5000);
    let told = stage.view(caretaker).paused.clone().unwrap_or_default();
    assert!(told.contains("no copy can give what the snapshot has at byte"), "{told}");
    assert_eq!((stage.reverting(), stage.demotions(caretaker)), (Some(S), 0));
    stage.reverted(caretaker, T);
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (new, new));
    stage.close(caretaker);
}

/// D21: S can't be brought back for now; T is asked for instead.
fn another_snapshot_takes_the_place_of_the_one_that_a_volume_is_taken_back_to(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (_, new) = changed(&mut stage);
    let owner = stage.owner(D);
    stage.snapshotted(owner, T);
    stage.written(owner, 20);
    stage.close(owner);
    let caretaker = stage.caretaker(C);
    stage.hold(caretaker, R1, copies);
    stage.revert(caretaker, S);
    stage.run_until("r0 has some of S", |s| s.disk(R0, 36) == ABSENT);
    stage.revert(caretaker, T);
    stage.run_for(100);
    stage.release(caretaker, R1);
    stage.run_until("T is told of", |s| s.is_reverted(caretaker, T));
    let replaced = stage.told(
        caretaker,
        |e| matches!(e, Event::Reverted { id, outcome: Err(RevertFailure::Replaced) } if id.0 == S),
    );
    assert!(replaced && !stage.is_reverted(caretaker, S));
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (new, new));
}

/// D21: a guest has it; there is no such snapshot; it has another size. Nothing of the record changes.
fn a_volume_is_not_taken_back_where_that_can_not_be(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let (_, new) = changed(&mut stage);
    let refused = |stage: &mut Stage, who: Who, id: u128| {
        let before = stage.events(who).len();
        stage.revert(who, id);
        stage.run_until("it is refused", |s| {
            s.events(who)[before..].iter().any(|e| matches!(e, Event::Reverted { .. }))
        });
        stage.revert_failed(who).expect("refused")
    };
    let owner = stage.owner(D);
    assert_eq!(refused(&mut stage, owner, S), RevertFailure::Attached);
    stage.resized(owner, 64);
    stage.close(owner);
    let caretaker = stage.caretaker(C);
    assert_eq!(refused(&mut stage, caretaker, T), RevertFailure::NoSnapshot);
    assert_eq!(refused(&mut stage, caretaker, S), RevertFailure::Size { snapshot: 48 * BLOCK });
    assert!(stage.swaps().iter().all(|record| record.reverting.is_none()));
    assert_eq!((disks(&stage, R0), disks(&stage, R1)), (new, new));
    stage.close(caretaker);
}
