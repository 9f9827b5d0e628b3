//! Plots D10 to D12, D20 and N20 of docs/scenarios.md: snapshots, while everything else goes on, and what is made of them.

use crate::oracle::{ABSENT, Value};
use crate::scenarios::plots;
use crate::stage::{
    A, C, D, Fate, Play, R0, R1, R2, Scene, Stage, Who, all_writes, guest_writes, hashes, makes, prepares,
    promises, readies,
};

use weft_proto::message::{Ask, Refusal};
use weft_proto::session::{Event, LAST_HOLDER, SnapData, SnapFailure};

plots! {
    D10 => a_snapshot_has_what_was_answered_and_nothing_that_was_asked_for_later,
    D10 => an_owner_that_dies_at_any_step_of_a_snapshot_leaves_all_of_it_or_nothing,
    D10 => an_image_that_is_being_logged_when_its_owner_changes_keeps_its_files,
    D10 => a_member_that_dies_while_it_takes_its_image_is_gone_on_without,
    D10 => a_member_that_loses_its_answer_is_asked_by_another_attempt,
    D10 => images_stay_as_they_are_while_the_volume_is_written_over,
    D10 => snapshots_are_deleted_in_any_order_and_none_of_the_others_changes,
    D10 => a_snapshot_is_deleted_while_one_of_its_copies_is_away,
    D10 => a_discard_that_has_begun_is_in_the_snapshot_in_part,
    D10 => a_pool_that_takes_snapshots_by_itself_has_all_of_one_or_nothing,
    D10 => what_has_changed_between_snapshots_is_told_by_whoever_took_both,
    D10 => what_a_volume_has_grown_by_has_changed_where_it_was_written,
    D10 => what_differs_from_a_snapshot_is_told_when_its_data_is_gone,
    D10 => a_snapshots_data_goes_at_a_copy_that_was_away_once_it_is_back,
    D11 => a_snapshot_whose_swap_is_unknown_is_there_or_leaves_nothing,
    D11 => guests_do_not_wait_for_the_store_that_a_snapshot_waits_for,
    D12 => a_snapshot_waits_until_the_members_are_equal,
    D12 => a_snapshot_during_a_join_is_of_the_members_alone,
    D12 => a_member_that_comes_back_keeps_the_images_that_it_had,
    D12 => a_value_that_nobody_acknowledged_changes_nothing_about_what_has_changed,
    D20 => copies_that_join_a_clone_get_what_its_snapshot_had,
    N20 => a_snapshot_that_was_told_of_outlasts_the_store,
    N20 => an_image_that_only_a_copy_which_was_away_has_logged_comes_back_with_it,
    N20 => what_was_deleted_does_not_come_back_with_the_store,
}

const S: u128 = 1;
const T: u128 = 2;
const U: u128 = 3;

/// What a replica has of a snapshot in these blocks.
fn image(stage: &Stage, rid: weft_proto::ids::Rid, id: u128, blocks: std::ops::Range<usize>) -> Vec<Value> {
    let image = stage.image(rid, id).expect("an image");
    image[blocks].iter().map(|value| value.expect("whole")).collect()
}

/// D10, nobody dies: writes before, at and after the barrier, one of them slow at r1, in two regions.
fn a_snapshot_has_what_was_answered_and_nothing_that_was_asked_for_later(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let old = [stage.written(owner, 3), stage.written(owner, 20)];
    stage.hold(owner, R1, guest_writes);
    let slow = stage.write(owner, 3);
    stage.run_for(5);
    stage.snapshot(owner, S);
    stage.run_for(100);
    assert!(stage.key(S).is_none(), "a write is on its way to r1");
    let later = [stage.write(owner, 3), stage.write(owner, 20)];
    stage.run_for(100);
    assert_eq!(stage.disk(R0, 20), old[1], "what came later waits");
    stage.release(owner, R1);
    stage.hold(owner, R1, prepares);
    stage.run_until("r0 has its image", |s| s.image(R0, S).is_some());
    stage.run_for(100);
    assert_eq!(stage.disk(R0, 20), old[1], "and for r1's image as well");
    stage.release(owner, R1);
    stage.run_until("the snapshot is told of", |s| s.is_taken(owner, S));
    stage.run_until("guests go on", |s| later.iter().all(|w| s.done(w.id)));
    for rid in [R0, R1] {
        assert_eq!(image(&stage, rid, S, 3..4), [slow.value]);
        assert_eq!(image(&stage, rid, S, 20..21), [old[1]]);
        assert_eq!((stage.disk(rid, 3), stage.disk(rid, 20)), (later[0].value, later[1].value));
    }
    assert_eq!(stage.listed(S), [R0, R1]);
    stage.close(owner);
}

/// D10: at each of the steps. Up to the swap nothing is left of it, and it can be asked for again; from the swap on it is
/// there, is logged and told of by the next owner, and has what the volume had at its barrier.
fn an_owner_that_dies_at_any_step_of_a_snapshot_leaves_all_of_it_or_nothing(play: &Play) {
    let steps: [fn(&mut Stage, Who); 9] = [
        // Members are asked to make room.
        |stage, owner| {
            stage.hold(owner, R1, makes);
            stage.snapshot(owner, S);
            stage.run_for(20);
        },
        // A write is awaited.
        |stage, owner| {
            stage.hold(owner, R1, guest_writes);
            stage.write(owner, 6);
            stage.snapshot(owner, S);
            stage.run_for(20);
        },
        // Prepared on one.
        |stage, owner| {
            stage.hold(owner, R1, prepares);
            stage.snapshot(owner, S);
            stage.run_until("r0 has its image", |s| s.image(R0, S).is_some());
        },
        // Prepared on both, of which the owner knows nothing.
        |stage, owner| {
            stage.hold(owner, R1, prepares);
            stage.snapshot(owner, S);
            stage.run_until("r0 has its image", |s| s.image(R0, S).is_some());
            stage.lose_answers(owner, R1, true);
            stage.release(owner, R1);
            stage.run_until("r1 has its image", |s| s.image(R1, S).is_some());
        },
        // The swap is on its way, and reaches the store when somebody else owns the volume.
        |stage, owner| {
            stage.next_swaps(&[Fate::LateUnknown; 4]);
            stage.snapshot(owner, S);
            stage.run_until("the swap is sent", |s| s.late() > 0);
        },
        // It was applied, and nobody was told.
        |stage, owner| {
            stage.next_swaps(&[Fate::AppliedUnknown]);
            stage.snapshot(owner, S);
            stage.run_until("it is in the store", |s| s.key(S).is_some());
        },
        // Logged on one.
        |stage, owner| {
            stage.hold(owner, R1, readies);
            stage.snapshot(owner, S);
            stage.run_until("it is in the store", |s| s.key(S).is_some());
            stage.run_for(20);
        },
        // Logged on both, and the key does not say so.
        |stage, owner| {
            stage.next_swaps(&[Fate::Answered, Fate::LostUnknown]);
            stage.snapshot(owner, S);
            stage.run_until("the second swap is lost", |s| s.fates_left() == 0);
        },
        // The key says so, and the asker was not told.
        |stage, owner| {
            stage.next_swaps(&[Fate::Answered, Fate::AppliedUnknown]);
            stage.snapshot(owner, S);
            stage.run_until("the key says so", |s| s.key(S).is_some_and(|key| key.logged));
        },
    ];
    for (step, until) in steps.into_iter().enumerate() {
        let mut stage = Scene::copies(2).stage(play);
        let owner = stage.owner(D);
        let old: Vec<Value> = [5, 30].map(|block| stage.written(owner, block)).into();
        until(&mut stage, owner);
        stage.vanish(owner);
        let next = stage.steal(C);
        stage.serving(next);
        stage.apply_late();
        let there = stage.key(S).is_some();
        assert_eq!(there, step >= 5, "step {step}");
        let newer = [stage.written(next, 5), stage.written(next, 30)];
        stage.run_for(1000);
        // The agent asks again, for the same id.
        if there {
            assert!(step == 8 || stage.is_taken(next, S), "step {step}: the next owner has it logged");
            stage.snapshotted(next, S);
        } else {
            // What is left of the attempt goes, once the store shows a later epoch.
            for rid in [R0, R1] {
                stage.janitor(rid);
            }
            stage.run_for(200);
            assert_eq!((stage.images(R0).0, stage.images(R1).0), (0, 0), "step {step}");
            stage.snapshotted(next, S);
        }
        let expected = if there { old } else { newer.to_vec() };
        stage.written(next, 5);
        for rid in [R0, R1] {
            let of = [image(&stage, rid, S, 5..6)[0], image(&stage, rid, S, 30..31)[0]];
            assert_eq!(of.as_slice(), expected, "step {step}, {rid}");
            // READY, and its key says so: no janitor touches it.
            stage.janitor(rid);
        }
        stage.run_for(200);
        stage.snapshots_hold();
    }
}

/// D10: PREPARE is on its way into r0's log when the owner dies and the next one is promised. The image is there from then
/// on, so the next write is preserved into it, until it is removed. Found by the simulator: seed 114995.
fn an_image_that_is_being_logged_when_its_owner_changes_keeps_its_files(play: &Play) {
    let mut stage = Scene::copies(1).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    stage.hold(owner, R0, prepares);
    stage.snapshot(owner, S);
    stage.run_until("PREPARE is on its way", |s| s.held(owner, R0) > 0);
    stage.stall_all(R0);
    stage.release(owner, R0);
    stage.run_for(10);
    stage.vanish(owner);
    let next = stage.steal(C);
    stage.run_for(1000);
    stage.unstall(R0);
    stage.serving(next);
    assert!(stage.image(R0, S).is_some(), "it was logged");
    stage.written(next, 5);
    assert_eq!(stage.demotions(next), 0);
    stage.janitor(R0);
    stage.run_for(200);
    assert_eq!(stage.images(R0), (0, 0));
    stage.snapshotted(next, S);
}

/// D10: r1 dies between PREPARE and its answer. It is taken out, and the next attempt is of r0 alone.
fn a_member_that_dies_while_it_takes_its_image_is_gone_on_without(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 5);
    stage.hold(owner, R1, prepares);
    stage.snapshot(owner, S);
    stage.run_until("r0 has its image", |s| s.image(R0, S).is_some());
    let first = stage.durable(R0).images.iter().next().map(|image| image.attempt);
    let waits = stage.write(owner, 5);
    stage.kill(R1);
    stage.run_until("it is told of", |s| s.is_taken(owner, S));
    stage.run_until("guests go on", |s| s.done(waits.id));
    assert_eq!(stage.listed(S), [R0]);
    assert!(stage.key(S).map(|key| key.taken.attempt) > first);
    assert!([vec![value], vec![waits.value]].contains(&image(&stage, R0, S, 5..6)));
    stage.hold_no_more(owner, R1);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    stage.snapshotted(owner, T);
    assert_eq!(stage.listed(T), [R0, R1]);
    // S is at r0 alone: r0 stays.
    stage.remove(owner, R0);
    let refused = Event::ChangeDone { rid: R0, outcome: Err(LAST_HOLDER) };
    stage.run_until("that is refused", |s| s.told(owner, |e| *e == refused));
}

/// D10, pools on LVM: guests wait for r1's pool, whose host dies meanwhile; nothing of it is left there, and r0 has all of
/// another attempt. What is taken then needs nothing of the head, and goes at once.
fn a_pool_that_takes_snapshots_by_itself_has_all_of_one_or_nothing(play: &Play) {
    let mut stage = Scene::copies(2).whole_images().stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 5);
    stage.hold(owner, R1, prepares);
    stage.snapshot(owner, S);
    stage.run_until("r0 has its image", |s| s.image(R0, S).is_some());
    let waits = stage.write(owner, 5);
    stage.stall_all(R1);
    stage.release(owner, R1);
    stage.run_for(50);
    assert_eq!(stage.disk(R0, 5), value, "guests wait for r1's pool");
    stage.kill(R1);
    stage.run_until("it is told of", |s| s.is_taken(owner, S));
    stage.run_until("guests go on", |s| s.done(waits.id));
    assert_eq!(stage.listed(S), [R0]);
    assert!([vec![value], vec![waits.value]].contains(&image(&stage, R0, S, 5..6)));
    stage.unstall(R1);
    stage.hold_no_more(owner, R1);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(stage.images(R1).0, 0);
    stage.snapshotted(owner, T);
    let later = stage.written(owner, 5);
    for rid in [R0, R1] {
        assert_eq!(image(&stage, rid, T, 5..6), [waits.value]);
        assert_eq!(stage.disk(rid, 5), later);
    }
    stage.close(owner);
}

/// D10: r1 has its image, its answer is lost with the connection: the image belongs to an attempt that came to nothing.
fn a_member_that_loses_its_answer_is_asked_by_another_attempt(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    stage.hold(owner, R0, prepares);
    stage.snapshot(owner, S);
    stage.run_until("r1 has its image", |s| s.image(R1, S).is_some());
    let first = stage.durable(R1).images.iter().next().map(|image| image.attempt);
    stage.reconnect(owner, R1);
    let newer = stage.written(owner, 5);
    stage.release(owner, R0);
    stage.run_until("it is told of", |s| s.is_taken(owner, S));
    for rid in [R0, R1] {
        assert_eq!(image(&stage, rid, S, 5..6), [newer], "what was written between the attempts");
        assert!(stage.durable(rid).images.iter().next().map(|image| image.attempt) > first);
    }
    stage.run_for(500);
    assert_eq!((stage.images(R0), stage.images(R1)), ((1, 1), (1, 1)), "nothing is left of the first");
}

/// D10: three of them, with writes, zeroes and discards between, in one region and in others; a replica restarts.
fn images_stay_as_they_are_while_the_volume_is_written_over(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let first = stage.write_run(owner, 0, 40);
    stage.run_until("it is written", |s| s.done(first.id));
    stage.snapshotted(owner, S);
    stage.written(owner, 3);
    stage.snapshotted(owner, T);
    let discard = stage.discard(owner, 3);
    let over = stage.write_run(owner, 10, 20);
    stage.run_until("all is done", |s| s.done(discard) && s.done(over.id));
    stage.snapshotted(owner, U);
    stage.kill(R1);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    let all = stage.write_run(owner, 0, 48);
    stage.run_until("all is written over", |s| s.done(all.id));
    for rid in [R0, R1] {
        let expected: Vec<Value> = (0..40).map(|n| first.value + n).chain([ABSENT; 8]).collect();
        assert_eq!(image(&stage, rid, S, 0..48), expected, "{rid}");
        assert_ne!(image(&stage, rid, T, 3..4), image(&stage, rid, U, 3..4));
    }
    stage.close(owner);
}

/// D10: the middle one goes first, then the newest, whose regions the oldest one reads.
fn snapshots_are_deleted_in_any_order_and_none_of_the_others_changes(play: &Play) {
    for order in [[T, U, S], [U, S, T], [S, T, U]] {
        let mut stage = Scene::copies(2).stage(play);
        let owner = stage.owner(D);
        for id in [S, T, U] {
            for block in [2, 18, 40] {
                stage.written(owner, block);
            }
            stage.snapshotted(owner, id);
        }
        stage.written(owner, 2);
        for id in order {
            stage.delete_snapshot(owner, id);
            stage.run_until("it is gone", |s| s.is_gone(owner, id));
            stage.written(owner, 18);
            stage.snapshots_hold();
        }
        assert_eq!((stage.images(R0), stage.images(R1)), ((0, 0), (0, 0)));
        assert_eq!((stage.record().snaps.count, stage.record().snaps.newest), (0, None));
        stage.close(owner);
    }
}

/// D10 (H19): the key says so until r1 has removed its image, too; the owner changes meanwhile.
fn a_snapshot_is_deleted_while_one_of_its_copies_is_away(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    stage.snapshotted(owner, S);
    stage.kill(R1);
    stage.run_until("r1 is taken out", |s| s.in_sync() == [R0]);
    stage.delete_snapshot(owner, S);
    stage.run_until("r0 has none", |s| s.images(R0) == (0, 0));
    stage.run_for(2000);
    assert!(stage.key(S).is_some_and(|key| key.deleting));
    stage.close(owner);
    let next = stage.owner(C);
    stage.run_for(1000);
    assert!(stage.key(S).is_some());
    stage.start(R1);
    stage.run_until("it is gone", |s| s.is_gone(next, S));
    assert_eq!((stage.images(R1), stage.key(S)), ((0, 0), None));
}

/// D10 (H22): a discard of three regions, of which r1 has read one when the snapshot is asked for. What has begun is
/// awaited; in the image are the old blocks or the discarded ones, on both alike.
fn a_discard_that_has_begun_is_in_the_snapshot_in_part(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let first = stage.write_run(owner, 0, 32);
    stage.run_until("it is written", |s| s.done(first.id));
    stage.hold(owner, R1, all_writes);
    let discards = [stage.discard(owner, 1), stage.discard(owner, 20)];
    stage.run_for(5);
    stage.snapshot(owner, S);
    stage.run_for(50);
    let later = stage.discard(owner, 9);
    stage.release(owner, R1);
    stage.run_until("all is done", |s| discards.iter().chain([&later]).all(|id| s.done(*id)));
    stage.run_until("it is told of", |s| s.is_taken(owner, S));
    assert_eq!(image(&stage, R0, S, 9..10), [first.value + 9], "what came later is not in it");
}

/// D11, for each thing that may have become of the swap. Guests write meanwhile.
fn a_snapshot_whose_swap_is_unknown_is_there_or_leaves_nothing(play: &Play) {
    for fate in [Fate::AppliedUnknown, Fate::LostUnknown, Fate::LateUnknown] {
        let mut stage = Scene::copies(2).stage(play);
        let owner = stage.owner(D);
        let old = stage.written(owner, 5);
        stage.next_swaps(&[fate, Fate::LostUnknown, fate]);
        stage.snapshot(owner, S);
        stage.run_until("the first swap is sent", |s| s.fates_left() < 3);
        let newer = stage.written(owner, 5);
        for rid in [R0, R1] {
            assert_eq!(image(&stage, rid, S, 5..6), [old], "{fate:?}");
        }
        stage.run_for(400);
        stage.apply_late();
        stage.run_until("it is told of", |s| s.is_taken(owner, S));
        assert_eq!(stage.disk(R0, 5), newer);
        for rid in [R0, R1] {
            assert_eq!(image(&stage, rid, S, 5..6), [old], "{fate:?}: it is the first attempt's");
            assert_eq!(stage.images(rid), (1, 1));
        }
        stage.close(owner);
    }
}

/// D11 (H7): the store is away from the moment on in which the images are there. Writes go on at once; whoever asked is
/// told that it is not known, and finds it when the store is back, or not at all.
fn guests_do_not_wait_for_the_store_that_a_snapshot_waits_for(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let old = stage.written(owner, 5);
    stage.store_down();
    stage.snapshot(owner, S);
    stage.run_until("the images are there", |s| s.image(R0, S).is_some() && s.image(R1, S).is_some());
    let before = stage.now_ms();
    let newer = stage.written(owner, 5);
    assert!(stage.now_ms() - before < 20, "{} ms", stage.now_ms() - before);
    stage.run_until("the asker is told", |s| s.snapshot_failed(owner, S).is_some());
    assert_eq!(stage.snapshot_failed(owner, S), Some(SnapFailure::Waits("the store".into())));
    stage.run_for(5000);
    assert!(stage.image(R0, S).is_some(), "nothing goes while it is not known");
    stage.store_back();
    stage.run_for(3000);
    match stage.key(S) {
        Some(_) => assert_eq!(image(&stage, R1, S, 5..6), [old]),
        None => assert_eq!((stage.images(R0), stage.images(R1)), ((0, 0), (0, 0))),
    }
    assert_eq!(stage.read_now(owner, 5), newer);
}

/// D12: the last owner died with a write at r1 alone. The next one is asked for a snapshot before it has made them equal.
fn a_snapshot_waits_until_the_members_are_equal(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let old = stage.written(owner, 5);
    stage.run_for(3000);
    stage.hold(owner, R0, guest_writes);
    let torn = stage.write(owner, 5);
    stage.run_for(10);
    stage.vanish(owner);
    assert_eq!((stage.disk(R0, 5), stage.disk(R1, 5)), (old, torn.value));
    // Its process is known to have ended: there is no wait besides.
    let next = stage.replace(C, owner);
    stage.hold(next, R0, hashes);
    stage.serving(next);
    stage.snapshot(next, S);
    stage.run_for(500);
    assert!(stage.view(next).dirty_regions > 0 && stage.image(R0, S).is_none());
    stage.release(next, R0);
    stage.run_until("it is told of", |s| s.is_taken(next, S));
    assert_eq!(image(&stage, R0, S, 5..6), image(&stage, R1, S, 5..6));
    assert_eq!(image(&stage, R0, S, 5..6), [stage.read_now(next, 5)]);
}

/// D12: r2 is being brought in when a snapshot is asked for. It is of r0 and r1; r2 comes in, is written to, and has the
/// next one.
fn a_snapshot_during_a_join_is_of_the_members_alone(play: &Play) {
    let mut stage = Scene::copies(3).stage(play);
    let owner = stage.owner(D);
    let first = stage.write_run(owner, 0, 32);
    stage.run_until("it is written", |s| s.done(first.id));
    stage.kill(R2);
    let over = stage.write_run(owner, 0, 32);
    stage.run_until("r2 is taken out", |s| s.done(over.id) && s.in_sync() == [R0, R1]);
    stage.start(R2);
    stage.hold(owner, R2, all_writes);
    stage.run_until("copies are on their way", |s| s.held(owner, R2) > 0);
    stage.snapshotted(owner, S);
    assert_eq!(stage.listed(S), [R0, R1]);
    assert_eq!((stage.image(R2, S), image(&stage, R1, S, 7..8)), (None, vec![over.value + 7]));
    stage.release(owner, R2);
    stage.run_until("r2 is in sync", |s| s.in_sync() == [R0, R1, R2]);
    stage.written(owner, 7);
    stage.snapshotted(owner, T);
    assert_eq!(stage.listed(T), [R0, R1, R2]);
    let all = stage.write_run(owner, 0, 48);
    stage.run_until("all is written over", |s| s.done(all.id));
}

/// D12 (H12): r1 has the image of S, was away, and is brought what it missed: that goes through its image first, like any
/// other write. It logs T, which it has missed to log.
fn a_member_that_comes_back_keeps_the_images_that_it_had(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let first = stage.write_run(owner, 0, 32);
    stage.run_until("it is written", |s| s.done(first.id));
    stage.snapshotted(owner, S);
    stage.written(owner, 3);
    stage.hold(owner, R1, readies);
    stage.snapshot(owner, T);
    stage.run_until("it is in the store", |s| s.key(T).is_some());
    stage.kill(R1);
    stage.hold_no_more(owner, R1);
    stage.run_until("it is told of without r1", |s| s.is_taken(owner, T));
    assert_eq!(stage.in_sync(), [R0]);
    let over = stage.write_run(owner, 0, 32);
    stage.run_until("it is written over", |s| s.done(over.id));
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    stage.run_for(500);
    assert_eq!(image(&stage, R1, S, 3..4), [first.value + 3]);
    let ready =
        |s: &Stage| s.durable(R1).images.iter().all(|i| i.state == weft_proto::images::ImageState::Ready);
    assert!(ready(&stage), "it could become the last one that has T");
    // Now that r1 has it, r0 may go.
    stage.remove(owner, R0);
    stage.run_until("r0 is out", |s| s.in_sync() == [R1]);
    stage.snapshots_hold();
}

/// D20: a clone of two copies, which lie on their disks as of the snapshot's generation, gets a third one and loses the first
/// two. What the third one has is what the snapshot had, by the stamps that the clone began with; what the source was made
/// of since is not in it, nor the other way round.
fn copies_that_join_a_clone_get_what_its_snapshot_had(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let old = [stage.written(owner, 3), stage.written(owner, 20)];
    stage.snapshotted(owner, S);
    // One in an image, one in the head.
    let new = stage.written(owner, 3);
    stage.snapshotted(owner, T);
    stage.written(owner, 4);
    let mut clone = stage.clone_of(S);
    for rid in [R0, R1] {
        assert_eq!((stage.disk(rid, 3), clone.disk(rid, 3), clone.disk(rid, 20)), (new, old[0], old[1]));
    }
    stage.close(owner);

    let owner = clone.owner(D);
    clone.add(owner, R2, C);
    clone.run_until("the third copy is in sync", |s| s.in_sync() == [R0, R1, R2]);
    let later = clone.written(owner, 4);
    for rid in [R0, R1] {
        clone.remove(owner, rid);
        clone.run_until("it is gone", |s| s.state(rid).is_none());
    }
    let found = [3, 20, 4].map(|block| clone.read_now(owner, block));
    assert_eq!(found, [old[0], old[1], later]);
    assert_eq!([3, 20, 4].map(|block| clone.disk(R2, block)), found);
    clone.snapshotted(owner, S);
    clone.written(owner, 3);
    assert_eq!(image(&clone, R2, S, 3..5), [old[0], later], "a snapshot of the clone");
    clone.close(owner);
}

/// D10 (R29): three snapshots; one block is written before each next one, one is written as it was, one is discarded that was
/// never written.
fn what_has_changed_between_snapshots_is_told_by_whoever_took_both(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let first = stage.write_run(owner, 0, 40);
    stage.run_until("it is written", |s| s.done(first.id));
    stage.snapshotted(owner, S);
    stage.written(owner, 20);
    let discard = stage.discard(owner, 45);
    stage.run_until("it is discarded", |s| s.done(discard));
    stage.snapshotted(owner, T);
    stage.written(owner, 3);
    stage.snapshotted(owner, U);
    stage.written(owner, 36);
    let told = |stage: &Stage, of, since, grains: [bool; 3]| {
        for rid in [R0, R1] {
            assert_eq!(stage.changed(rid, of, since), Ok(grains.to_vec()), "{of} since {since} at {rid}");
            assert_eq!(stage.changed(rid, since, of), Ok(grains.to_vec()), "{since} since {of} at {rid}");
        }
    };
    told(&stage, T, S, [false, true, false]);
    told(&stage, U, T, [true, false, false]);
    told(&stage, U, S, [true, true, false]);
    stage.snapshots_hold();
    // The middle one hands down what it had, and the others go on telling.
    stage.delete_snapshot(owner, T);
    stage.run_until("it is gone", |s| s.is_gone(owner, T));
    told(&stage, U, S, [true, true, false]);
    assert_eq!(stage.changed(R0, U, T), Err(Refusal::NoSnapshot));
    stage.close(owner);
}

/// D10 (R29): the volume grows between two snapshots, and is written to in its new part.
fn what_a_volume_has_grown_by_has_changed_where_it_was_written(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 3);
    stage.snapshotted(owner, S);
    stage.resized(owner, 96);
    stage.written(owner, 70);
    stage.snapshotted(owner, T);
    for rid in [R0, R1] {
        let told = stage.changed(rid, T, S);
        assert_eq!(told, Ok(vec![false, false, false, false, true, false]), "{rid}");
        assert_eq!(stage.changed(rid, S, T), Ok(vec![false; 3]), "{rid}: it ends where S ends");
    }
    stage.close(owner);
}

/// D10 (R29): the data of the middle one of three is destroyed, and the volume written to, before the last one is taken; then that
/// of the last one, too. The first one keeps what it had.
fn what_differs_from_a_snapshot_is_told_when_its_data_is_gone(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let first = stage.write_run(owner, 0, 40);
    stage.run_until("it is written", |s| s.done(first.id));
    stage.snapshotted(owner, S);
    stage.written(owner, 20);
    stage.snapshotted(owner, T);
    stage.destroy_snapshot(owner, T);
    stage.run_until("its data is gone", |s| s.is_emptied(T));
    stage.written(owner, 20);
    stage.written(owner, 3);
    let discard = stage.discard(owner, 45);
    stage.run_until("it is discarded", |s| s.done(discard));
    stage.snapshotted(owner, U);
    let told = |stage: &Stage| {
        for (of, since, grains) in
            [(T, S, [false, true, false]), (U, T, [true, true, false]), (U, S, [true, true, false])]
        {
            for rid in [R0, R1] {
                assert_eq!(stage.changed(rid, of, since), Ok(grains.to_vec()), "{of} since {since} at {rid}");
                assert_eq!(stage.changed(rid, since, of), Ok(grains.to_vec()), "{since} since {of} at {rid}");
            }
        }
        stage.snapshots_hold();
    };
    told(&stage);
    stage.destroy_snapshot(owner, U);
    stage.run_until("so is the last one's", |s| s.is_emptied(U));
    told(&stage);
    for id in [T, U] {
        stage.delete_snapshot(owner, id);
        stage.run_until("it is gone", |s| s.is_gone(owner, id));
    }
    assert_eq!((stage.images(R0), stage.images(R1)), ((1, 1), (1, 1)));
    stage.close(owner);
}

/// D10: r1 is away, the owner dies, and r0 in the middle of it. Nothing is lost before hashes of it are kept, and the key says that
/// the data goes until r1 has done it, too.
fn a_snapshots_data_goes_at_a_copy_that_was_away_once_it_is_back(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let first = stage.write_run(owner, 0, 40);
    stage.run_until("it is written", |s| s.done(first.id));
    stage.snapshotted(owner, S);
    stage.kill(R1);
    stage.written(owner, 20);
    stage.destroy_snapshot(owner, S);
    stage.run_until("nobody may read it", |s| s.key(S).is_some_and(|key| key.data != SnapData::Kept));
    stage.kill(R0);
    stage.vanish(owner);
    stage.start(R0);
    let next = stage.steal(C);
    stage.serving(next);
    stage.run_until("it is gone at r0", |s| s.durable(R0).images.iter().all(|image| image.is_empty()));
    stage.run_for(2000);
    assert!(!stage.is_emptied(S), "r1 has it still");
    stage.start(R1);
    stage.run_until("it is gone at r1", |s| s.is_emptied(S));
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    stage.snapshotted(next, T);
    for rid in [R0, R1] {
        assert_eq!(stage.changed(rid, T, S), Ok(vec![false, true, false]), "{rid}");
    }
    stage.snapshots_hold();
    stage.close(next);
}

/// D12 (R29; docs/model.md, finding 25): r1 is away with a value that nobody acknowledged. It did not take S, so it says nothing
/// about that, when it is back, whatever its disk holds; r0 does.
fn a_value_that_nobody_acknowledged_changes_nothing_about_what_has_changed(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 3);
    stage.hold(owner, R0, guest_writes);
    stage.write(owner, 20);
    stage.run_for(20);
    stage.vanish(owner);
    stage.kill(R1);
    let next = stage.steal(C);
    stage.serving(next);
    stage.snapshotted(next, S);
    stage.written(next, 36);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    stage.written(next, 20);
    stage.snapshotted(next, T);
    assert_eq!(stage.listed(T), [R0, R1]);
    assert_eq!(stage.changed(R0, T, S), Ok(vec![false, true, true]));
    assert_eq!(stage.changed(R1, T, S), Err(Refusal::NoSnapshot));
    stage.close(next);
}

/// N20: the store is lost with everything in it. Who answers the repair makes the keys again, janitors remove nothing,
/// and what was told of is there.
fn a_snapshot_that_was_told_of_outlasts_the_store(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(A);
    let old = stage.written(owner, 5);
    stage.snapshotted(owner, S);
    stage.written(owner, 5);
    // One more, of which the owner is told nothing before the store goes.
    stage.hold(owner, R0, readies);
    stage.hold(owner, R1, readies);
    stage.snapshot(owner, T);
    stage.run_until("it is in the store", |s| s.key(T).is_some());
    stage.run_for(50);
    stage.vanish(owner);
    stage.kill(R1);
    stage.lose_store();
    stage.repair(true).expect("with assent");
    assert_eq!(
        (stage.listed(S), stage.key(T)),
        (vec![R0], None),
        "nobody has logged T, and nobody was told of it"
    );
    stage.start(R1);
    for rid in [R0, R1] {
        stage.janitor(rid);
    }
    stage.run_for(200);
    assert_eq!((stage.images(R0).0, stage.images(R1).0), (2, 2), "images of before the repair stay for now");
    stage.repair(true).expect("r1 tells its own");
    let next = stage.steal(C);
    stage.serving(next);
    assert_eq!(stage.listed(S), [R0, R1]);
    stage.snapshots_hold();
    stage.written(next, 5);
    assert_eq!((image(&stage, R0, S, 5..6), image(&stage, R1, S, 5..6)), (vec![old], vec![old]));
    // The same id again: an attempt of another store never replaces an image of the last one, it gets one of its own.
    stage.snapshot(next, T);
    stage.run_for(25_000);
    stage.snapshots_hold();
}

/// N20 (finding 23): r0 has logged it, r1 has not, and r0 is away during the repair. It comes back with it.
fn an_image_that_only_a_copy_which_was_away_has_logged_comes_back_with_it(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    stage.hold(owner, R1, readies);
    stage.snapshot(owner, S);
    stage.run_until("r0 has logged it", |s| {
        s.durable(R0).images.iter().any(|i| i.state == weft_proto::images::ImageState::Ready)
    });
    stage.kill(R1);
    stage.run_until("it is told of", |s| s.is_taken(owner, S));
    stage.vanish(owner);
    stage.start(R1);
    stage.kill(R0);
    stage.lose_store();
    stage.repair(true).expect("with assent");
    assert_eq!(stage.key(S), None);
    stage.janitor(R1);
    stage.start(R0);
    stage.janitor(R0);
    stage.run_for(200);
    stage.repair(true).expect("r0 tells its own");
    assert_eq!(stage.listed(S), [R0]);
    stage.snapshots_hold();
}

/// N20: S was deleted, r0 has removed it, r1 has not heard of that when the store is lost.
fn what_was_deleted_does_not_come_back_with_the_store(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    stage.snapshotted(owner, S);
    stage.snapshotted(owner, T);
    stage.hold(owner, R1, |ask| matches!(ask, Ask::SnapDelete { .. }) || promises(ask));
    stage.delete_snapshot(owner, S);
    stage.run_until("r0 has removed it", |s| s.images(R0) == (1, 1));
    stage.vanish(owner);
    stage.lose_store();
    stage.repair(true).expect("with assent");
    assert!(stage.key(S).is_some_and(|key| key.deleting) && stage.key(T).is_some_and(|key| !key.deleting));
    let next = stage.steal(C);
    stage.serving(next);
    stage.run_until("it is gone", |s| s.is_gone(next, S));
    assert_eq!((stage.images(R0), stage.images(R1)), ((1, 1), (1, 1)));
    stage.snapshots_hold();
}
