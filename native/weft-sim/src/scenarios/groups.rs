//! Plots of D19 of docs/scenarios.md: snapshots of two volumes at one moment.

use crate::scenarios::plots;
use crate::stage::{
    C, D, Fate, Filter, Pair, Play, R0, R1, Scene, guest_writes, makes, prepares, readies, seals,
};

use weft_proto::message::Refusal;
use weft_proto::session::{EndReason, Event, SnapFailure};

plots! {
    D19 => a_group_is_one_moment_of_its_volumes,
    D19 => a_group_waits_for_the_volume_that_is_late_and_guests_do_not,
    D19 => one_volume_that_fails_leaves_nothing_of_its_group,
    D19 => a_member_that_dies_in_the_middle_of_a_group_is_gone_on_without,
    D19 => a_write_that_hangs_in_one_volume_holds_the_guests_of_the_others_for_a_second_at_most,
    D19 => a_groups_transaction_is_applied_as_a_whole_or_not_at_all,
    D19 => a_volume_that_is_stolen_in_the_middle_takes_its_group_along,
    D19 => a_process_that_dies_at_any_step_of_a_group_leaves_all_of_it_or_nothing,
    D19 => groups_follow_each_other_and_each_snapshot_is_deleted_on_its_own,
}

const S: u128 = 1;
const T: u128 = 2;

/// Two volumes whose guest has written some to each, one write after the other, and goes on.
fn busy(play: &Play) -> Pair {
    let mut pair = Scene::copies(2).pair(play);
    pair.chain(true);
    pair.run_until("some is written", |p| p.answered(1) >= 30);
    pair
}

/// A snapshot is asked for, and r1 of the second volume alone has not been asked for its image.
fn half_imaged(play: &Play) -> Pair {
    let mut pair = busy(play);
    let (log, owner) = pair.of(1);
    log.hold(owner, R1, prepares);
    pair.snapshot(S);
    pair.run_until("the others have their images", |p| {
        p.look(1).0.image(R0, S).is_some() && p.look(0).0.image(R1, S).is_some()
    });
    pair
}

/// The guest goes on in both volumes.
fn goes_on(pair: &mut Pair) {
    let before = [pair.answered(0), pair.answered(1)];
    pair.run_until("guests go on", |p| (0..2).all(|i| p.answered(i) > before[i] + 2));
}

/// Nothing is left of what was tried, anywhere.
fn nothing_left(pair: &mut Pair) {
    pair.run_for(500);
    for index in 0..2 {
        let (stage, _) = pair.look(index);
        assert_eq!((stage.images(R0), stage.images(R1)), ((0, 0), (0, 0)), "volume {index}");
        assert_eq!(stage.record().snaps.count, 0);
    }
}

/// D19, nobody fails: r1 of the second volume is slow at each step in turn. No image is taken before both volumes stand
/// still, none goes on before both have theirs; the judge compares what is in them.
fn a_group_is_one_moment_of_its_volumes(play: &Play) {
    for (step, begun) in [(makes as Filter, false), (guest_writes, true), (prepares, true)] {
        let mut pair = busy(play);
        let (log, owner) = pair.of(1);
        log.hold(owner, R1, step);
        pair.run_for(20);
        pair.snapshot(S);
        if !begun {
            goes_on(&mut pair);
        }
        pair.run_for(300);
        let (log, owner) = pair.of(1);
        log.release(owner, R1);
        pair.run_until("it is told of", |p| p.outcome() == Some(&Ok(())));
        goes_on(&mut pair);
        for index in 0..2 {
            assert_eq!(pair.look(index).0.listed(S), [R0, R1]);
            pair.look(index).0.snapshots_hold();
        }
    }
}

/// D19: the second volume's r1 has not taken its image. The first one, whose images are there, waits: what its guest
/// wrote now could be followed by a write to the second one that is in its image.
fn a_group_waits_for_the_volume_that_is_late_and_guests_do_not(play: &Play) {
    let mut pair = Scene::copies(2).pair(play);
    pair.write(0, 1);
    pair.run_for(50);
    let (log, owner) = pair.of(1);
    log.hold(owner, R1, prepares);
    pair.snapshot(S);
    pair.run_until("one has its images", |p| {
        let (data, _) = p.look(0);
        data.image(R0, S).is_some() && data.image(R1, S).is_some()
    });
    pair.run_for(20);
    pair.write(0, 2);
    pair.run_for(200);
    assert_eq!((pair.answered(0), pair.keys(S)), (1, [false, false]), "it waits for the other volume");
    let (log, owner) = pair.of(1);
    log.release(owner, R1);
    pair.run_until("it is told of", |p| p.outcome() == Some(&Ok(())));
    assert_eq!(pair.answered(0), 2);
    // A store that is away keeps no guest from going on.
    for index in 0..2 {
        let (stage, _) = pair.of(index);
        stage.store_away(&[D]);
    }
    pair.next_commits(&[Fate::LostUnknown]);
    pair.snapshot(T);
    pair.chain(true);
    pair.run_until("guests go on", |p| p.answered(0) > 40 && p.answered(1) > 40);
    pair.chain(false);
    assert!(pair.longest_ms(0) < 300 && pair.longest_ms(1) < 300);
    pair.run_for(1000);
    assert_eq!((pair.outcome(), pair.keys(T)), (None, [false, false]));
    for index in 0..2 {
        let (stage, _) = pair.of(index);
        stage.store_back();
    }
    pair.run_until("it is tried again", |p| p.outcome() == Some(&Ok(())));
}

/// D19: a copy of the second volume refuses PREPARE, or can have no images at all, or its pool is full. Nothing is left of
/// any, guests go on; a refusal that passes is tried again, three times.
fn one_volume_that_fails_leaves_nothing_of_its_group(play: &Play) {
    let passing = SnapFailure::Waits("r1: IoError".into());
    let (cannot, full) = (SnapFailure::CannotBe { rid: R1 }, SnapFailure::NoSpace { rid: R1 });
    for (step, refusal, why) in [
        (prepares as Filter, Refusal::IoError, None),
        (prepares, Refusal::NoSpace, Some(&full)),
        (makes, Refusal::NoSnapshots, Some(&cannot)),
        (makes, Refusal::NoSpace, Some(&full)),
    ] {
        let mut pair = busy(play);
        let (log, owner) = pair.of(1);
        log.refuse_once(owner, R1, step, refusal);
        pair.snapshot(S);
        match why {
            Some(why) => {
                pair.run_until("it has failed", |p| p.outcome().is_some());
                assert_eq!(pair.outcome(), Some(&Err((1, why.clone()))));
                nothing_left(&mut pair);
            }
            None => {
                let failed = |e: &Event| matches!(e, Event::SnapshotFailed { why, .. } if *why == passing);
                pair.run_until("one has failed", |p| p.look(1).0.told(p.look(1).1, failed));
                nothing_left(&mut pair);
                assert!(pair.outcome().is_none(), "it is tried again");
            }
        }
        goes_on(&mut pair);
        assert!(pair.longest_ms(0) < 1000, "{}", pair.longest_ms(0));
        if why.is_some() {
            pair.snapshot(S);
        }
        pair.run_until("it is told of", |p| p.outcome() == Some(&Ok(())));
    }
}

/// D19: r1 of the second volume dies while it takes its image. That attempt comes to nothing in both volumes; the next one
/// is of r0 alone there.
fn a_member_that_dies_in_the_middle_of_a_group_is_gone_on_without(play: &Play) {
    let mut pair = half_imaged(play);
    let first = pair.look(0).0.durable(R0).images.iter().next().map(|image| image.attempt);
    pair.of(1).0.kill(R1);
    pair.run_until("it is told of", |p| p.outcome() == Some(&Ok(())));
    assert_eq!((pair.look(0).0.listed(S), pair.look(1).0.listed(S)), (vec![R0, R1], vec![R0]));
    assert!(pair.look(0).0.key(S).map(|key| key.taken.attempt) > first);
    goes_on(&mut pair);
    let (log, owner) = pair.of(1);
    log.hold_no_more(owner, R1);
    log.start(R1);
    pair.run_until("r1 is in sync", |p| p.look(1).0.in_sync() == [R0, R1]);
    pair.snapshotted(T);
    assert_eq!(pair.look(1).0.listed(T), [R0, R1]);
}

/// D19: a write to the second volume does not end. Both volumes hold new writes for a second, then go on, three times.
fn a_write_that_hangs_in_one_volume_holds_the_guests_of_the_others_for_a_second_at_most(play: &Play) {
    let mut pair = busy(play);
    pair.chain(false);
    pair.run_for(100);
    let (log, owner) = pair.of(1);
    // Both, so that nobody is taken out for it.
    log.hold(owner, R0, guest_writes);
    log.hold(owner, R1, guest_writes);
    pair.write(1, 7);
    pair.run_for(10);
    pair.snapshot(S);
    let before = pair.answered(0);
    for block in 0..12 {
        pair.run_for(500);
        pair.write(0, block);
    }
    pair.run_for(1500);
    assert_eq!(pair.answered(0), before + 12);
    assert!(pair.longest_ms(0) <= 1150, "{}", pair.longest_ms(0));
    pair.run_until("it has failed", |p| p.outcome().is_some());
    assert!(matches!(pair.outcome(), Some(Err((1, _)))), "{:?}", pair.outcome());
    let (log, owner) = pair.of(1);
    log.release(owner, R0);
    log.release(owner, R1);
    pair.run_for(100);
    nothing_left(&mut pair);
    pair.snapshotted(T);
}

/// D19 (R14): its answer is lost, applied or not, or it is refused; it reaches the store after it was settled. The store of
/// the second volume's session does not answer at first: whatever the first one does alone is not half a group.
fn a_groups_transaction_is_applied_as_a_whole_or_not_at_all(play: &Play) {
    for (fate, tries, there) in [
        (Fate::AppliedUnknown, 1, true),
        (Fate::LostUnknown, 1, true),
        (Fate::LostUnknown, 3, false),
        (Fate::LateUnknown, 3, false),
        (Fate::Refused, 1, true),
        (Fate::Refused, 3, false),
        (Fate::Answered, 1, true),
    ] {
        let mut pair = busy(play);
        pair.next_commits(&vec![fate; tries]);
        pair.of(1).0.next_swaps(&[Fate::LostUnknown; 3]);
        pair.snapshot(S);
        pair.run_until("it has ended", |p| p.outcome().is_some());
        assert_eq!(pair.outcome().is_some_and(Result::is_ok), there, "{fate:?}: {:?}", pair.outcome());
        goes_on(&mut pair);
        pair.run_for(1000);
        assert_eq!(pair.keys(S), [there; 2], "{fate:?}");
        pair.apply_late();
        assert_eq!((pair.late(), pair.keys(S)), (0, [there; 2]), "{fate:?}");
        if !there {
            nothing_left(&mut pair);
            pair.snapshotted(S);
        }
    }
}

/// D19: another host owns the first volume when the transaction reaches the store.
fn a_volume_that_is_stolen_in_the_middle_takes_its_group_along(play: &Play) {
    let mut pair = half_imaged(play);
    pair.chain(false);
    let thief = pair.steal(0, C);
    pair.run_until("it is stolen", |p| p.look(0).0.view(thief).phase == "serving");
    let (log, owner) = pair.of(1);
    log.release(owner, R1);
    pair.run_until("it has failed", |p| p.outcome().is_some());
    assert!(matches!(pair.outcome(), Some(Err((0, _)))), "{:?}", pair.outcome());
    assert!(matches!(pair.look(0).0.ended(pair.look(0).1), Some(EndReason::Fenced { .. })));
    pair.run_for(500);
    let (data, _) = pair.of(0);
    data.janitor(R0);
    data.janitor(R1);
    nothing_left(&mut pair);
    let (log, owner) = pair.of(1);
    assert!(log.owns(owner));
    log.written(owner, 3);
}

/// D19: the process that has both open is killed, and another host steals both. Up to the transaction nothing is there;
/// from then on all of it, which the next owners have logged.
fn a_process_that_dies_at_any_step_of_a_group_leaves_all_of_it_or_nothing(play: &Play) {
    let steps: [fn(&mut Pair); 7] = [
        |pair| {
            let (log, owner) = pair.of(1);
            log.hold(owner, R1, makes);
            pair.snapshot(S);
            pair.run_for(20);
        },
        |pair| {
            let (log, owner) = pair.of(1);
            log.hold(owner, R1, prepares);
            pair.snapshot(S);
            pair.run_until("r0 has its image", |p| p.look(1).0.image(R0, S).is_some());
        },
        |pair| {
            pair.next_commits(&[Fate::LateUnknown]);
            pair.snapshot(S);
            pair.run_until("the transaction is sent", |p| p.late() > 0);
        },
        |pair| {
            pair.next_commits(&[Fate::AppliedUnknown]);
            pair.snapshot(S);
            pair.run_until("it is in the store", |p| p.keys(S)[0]);
        },
        |pair| {
            let (log, owner) = pair.of(1);
            log.hold(owner, R1, readies);
            pair.snapshot(S);
            pair.run_until("one is logged", |p| p.look(0).0.key(S).is_some_and(|key| key.logged));
        },
        |pair| {
            pair.of(0).0.next_swaps(&[Fate::LostUnknown; 2]);
            pair.snapshot(S);
            pair.run_until("the other one is logged", |p| p.look(1).0.key(S).is_some_and(|key| key.logged));
        },
        |pair| pair.snapshotted(S),
    ];
    for (step, until) in steps.into_iter().enumerate() {
        let mut pair = busy(play);
        until(&mut pair);
        pair.stolen_from_the_dead(C);
        pair.apply_late();
        assert_eq!(pair.keys(S), [step >= 3; 2], "step {step}");
        pair.run_for(1500);
        if step >= 3 {
            for index in 0..2 {
                let (stage, _) = pair.look(index);
                assert!(stage.key(S).is_some_and(|key| key.logged), "step {step}, volume {index}");
                stage.snapshots_hold();
            }
            continue;
        }
        for index in 0..2 {
            let (stage, _) = pair.of(index);
            stage.janitor(R0);
            stage.janitor(R1);
        }
        nothing_left(&mut pair);
    }
}

/// D19: two groups and a snapshot of one volume alone between them; then one of a group goes, and the others stay.
fn groups_follow_each_other_and_each_snapshot_is_deleted_on_its_own(play: &Play) {
    let mut pair = busy(play);
    pair.snapshotted(S);
    goes_on(&mut pair);
    let (data, owner) = pair.of(0);
    data.hold(owner, R1, seals);
    data.snapshot(owner, 9);
    pair.snapshot(T);
    pair.run_for(200);
    let (data, owner) = pair.of(0);
    data.release(owner, R1);
    pair.run_until("both are told of", |p| {
        p.look(0).0.is_taken(p.look(0).1, 9) && p.outcome() == Some(&Ok(()))
    });
    assert_ne!(pair.image(0, S), pair.image(0, T));
    pair.chain(false);
    pair.run_for(100);
    let (data, owner) = pair.of(0);
    data.delete_snapshot(owner, S);
    data.run_until("it is gone", |s| s.is_gone(owner, S));
    let (log, owner) = pair.look(1);
    assert!(log.key(S).is_some() && log.is_taken(owner, S));
    log.snapshots_hold();
}
