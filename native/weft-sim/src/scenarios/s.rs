//! Plots S1 to S15 of docs/scenarios.md (store, time, metadata), as far as they concern built parts.

use crate::oracle::ABSENT;
use crate::scenarios::plots;
use crate::stage::{A, B, C, D, E, Play, R0, R1, Scene};
use weft_proto::record::{Record, ReplicaState};
use weft_proto::session::EndReason;

plots! {
    S1 => a_store_that_is_away_for_an_hour_is_not_missed,
    S2 => a_member_lost_while_the_store_is_away_pauses_the_volume_until_it_is_back,
    S3 => an_owner_on_the_stores_minority_side_goes_on,
    S6 => a_record_that_was_read_from_a_lagging_member_changes_nothing,
    S7 => a_witness_that_dies_after_a_member_is_not_missed,
    S8 => two_hosts_that_lost_each_other_do_not_take_turns,
    S9 => an_owner_that_sees_both_hosts_does_not_notice_that_they_lost_each_other,
    S10 => wall_clocks_that_jump_change_nothing,
    S11 => a_clock_that_runs_too_fast_costs_a_stale_read_at_worst,
    S15 => a_demoted_copy_knows_that_it_is_not_enough_for_a_repair,
    S15 => a_member_knows_of_every_copy_that_may_become_the_last_one,
}

const HOUR_MS: u64 = 3_600_000;

/// S1: the store is down for an hour and nothing else is wrong: writes, reads and seals go on; a member whose
/// connection breaks meanwhile is taken up again. Then the volume closes.
fn a_store_that_is_away_for_an_hour_is_not_missed(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 0);
    let sealed = stage.view(owner).sealed;
    stage.store_down();
    for minute in 0..60 {
        let value = stage.written(owner, minute % 48);
        assert_eq!(stage.read_now(owner, minute % 48), value);
        stage.run_for(HOUR_MS / 60);
        stage.reconnect(owner, if minute % 2 == 0 { R0 } else { R1 });
    }
    assert!(stage.view(owner).sealed > sealed);
    assert!(stage.view(owner).figures.stall_ms_max < 10, "{:?}", stage.view(owner).figures);
    assert_eq!((stage.view(owner).paused.as_deref(), stage.demotions(owner)), (None, 0));
    stage.store_back();
    stage.close(owner);
    assert!(stage.record().clean);
}

/// S2: the store is down and r1 dies: nothing can be decided. Writes wait, and reads once the lease has ended; both
/// go on by themselves.
fn a_member_lost_while_the_store_is_away_pauses_the_volume_until_it_is_back(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 1);
    stage.store_down();
    stage.kill(R1);
    let write = stage.write(owner, 2);
    stage.run_for(60_000);
    let read = stage.read(owner, 1);
    stage.run_for(60_000);
    assert!(stage.reply(write.id).is_none() && stage.reply(read).is_none());
    assert_eq!(stage.line(owner, R1), "in-sync acked=1 sent=2 window=0 [refused]");
    let why = stage.view(owner).paused.as_deref();
    assert_eq!(why, Some("waits for the store, to go on without r1"));
    stage.store_back();
    stage.run_until("the guest goes on", |s| s.done(write.id) && s.value(read) == Some(value));
    assert_eq!(stage.view(owner).paused, None);
    assert_eq!((stage.in_sync(), stage.demotions(owner)), (vec![R0], 1));
}

/// S3: the owner and all copies are cut off from the store's majority. I/O goes on; on the majority's side somebody
/// steals, reaches no copy, and waits.
fn an_owner_on_the_stores_minority_side_goes_on(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 1);
    stage.store_away(&[A, B, D]);
    for host in [A, B, D] {
        stage.cut(host, E);
    }
    let swaps = stage.swaps().len();
    let thief = stage.steal(E);
    for block in 0..48 {
        let value = stage.written(owner, block);
        stage.run_for(2500);
        assert_eq!(stage.read_now(owner, block), value);
    }
    assert_eq!((stage.swaps().len(), stage.owns(owner)), (swaps, true));
    assert_eq!(stage.view(thief).phase, "opening");
}

/// S7: two hosts and a witness; A dies, B goes on with the witness's help; then the witness dies: the store is down,
/// and nothing is noticed before the next fault. That one is waited out, since nobody can decide anything.
fn a_witness_that_dies_after_a_member_is_not_missed(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(B);
    stage.written(owner, 1);
    stage.power_off(R0);
    stage.written(owner, 2);
    assert_eq!(stage.in_sync(), [R1]);
    stage.store_down();
    for block in 3..40 {
        let value = stage.written(owner, block);
        stage.run_for(5000);
        assert_eq!(stage.read_now(owner, block), value);
    }
    assert_eq!(stage.view(owner).paused, None);
    stage.kill(R1);
    let write = stage.write(owner, 40);
    stage.run_for(60_000);
    assert!(stage.reply(write.id).is_none() && stage.view(owner).paused.is_some());
    stage.start(R1);
    stage.run_until("the guest goes on", |s| s.done(write.id));
    assert_eq!((stage.disk(R1, 40), stage.demotions(owner)), (write.value, 1));
}

/// S6: an opener reads a record of before the volume was opened, and claims it: the swap compares the revision.
fn a_record_that_was_read_from_a_lagging_member_changes_nothing(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let closed = stage.backup();
    let owner = stage.owner(D);
    let swaps = stage.swaps().len();
    stage.stale_read(closed);
    let other = stage.open(E);
    assert!(matches!(stage.over(other), EndReason::Busy { owner } if Some(owner) == stage.record().owner));
    assert_eq!(stage.swaps().len(), swaps);
    stage.written(owner, 0);
}

/// S8: two hosts with a copy each and a witness; the link between them is cut, both see the witness. The owner, on
/// A, takes r1 out; on B nobody can open, and nothing is changed by trying.
fn two_hosts_that_lost_each_other_do_not_take_turns(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(A);
    stage.written(owner, 1);
    stage.cut(A, B);
    let value = stage.written(owner, 1);
    assert_eq!((stage.in_sync(), stage.state(R1)), (vec![R0], Some(ReplicaState::Stale)));
    let swaps = stage.swaps().len();
    let thief = stage.steal(B);
    stage.run_for(120_000);
    assert_eq!(stage.view(thief).paused.as_deref(), Some("no in-sync member answers"));
    assert_eq!(stage.line(thief, R0), "in-sync acked=0 sent=0 window=0 [down]");
    assert_eq!((stage.swaps().len(), stage.owns(owner)), (swaps, true));
    assert_eq!(stage.read_now(owner, 1), value);
    stage.written(owner, 2);
    // Once healed the thief would take it over, as it was asked to; it is told to stop first.
    stage.vanish(thief);
    stage.heal();
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
}

/// S9: as S8, but the owner is on a third host: replicas never talk to each other.
fn an_owner_that_sees_both_hosts_does_not_notice_that_they_lost_each_other(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(C);
    stage.cut(A, B);
    let swaps = stage.swaps().len();
    for block in 0..20 {
        stage.written(owner, block);
        stage.run_for(500);
    }
    assert_eq!((stage.swaps().len(), stage.in_sync()), (swaps, vec![R0, R1]));
    assert!(stage.view(owner).figures.stall_ms_max < 10);
}

/// S10: the same plot on hosts whose wall clocks are an hour early, right and an hour late. Only `since` in the
/// record, which nobody decides by, may differ.
fn wall_clocks_that_jump_change_nothing(play: &Play) {
    let plays = [10 * HOUR_MS, 11 * HOUR_MS, 9 * HOUR_MS].map(|clock| {
        let mut stage = Scene::copies(2).stage(play);
        stage.set_wall_clock(D, clock);
        stage.set_wall_clock(E, 20 * HOUR_MS - clock);
        let owner = stage.owner(D);
        stage.written(owner, 1);
        stage.kill(R1);
        stage.written(owner, 2);
        stage.start(R1);
        let thief = stage.steal(E);
        let stolen = stage.written(thief, 3);
        stage.run_until("both are in sync", |s| s.in_sync() == [R0, R1]);
        let record = stage.record();
        let timeless = (record.epoch, record.rev, record.in_sync().count(), stolen, stage.now_ms());
        (timeless, record.replica(R1).expect("it is there").since.clone())
    });
    assert!(plays[0].0 == plays[1].0 && plays[1].0 == plays[2].0, "{plays:?}");
    assert!(plays[0].1 != plays[1].1, "the plot needs clocks that differ");
}

/// S11: the thief's clock runs 2 % fast, more than R9's margin, so that it waits less than the old owner's lease lasts.
/// The old owner may read what is no longer so, for some milliseconds; nothing that was acknowledged is lost, and its
/// writes change nothing. By clocks that are right it reads nothing stale.
fn a_clock_that_runs_too_fast_costs_a_stale_read_at_worst(play: &Play) {
    let mut stale = [0; 2];
    for (stale, thousandths) in stale.iter_mut().zip([0, 20]) {
        // When the thief comes, between two heartbeats of the owner, is what matters.
        for phase in 0..25 {
            let mut stage = Scene::copies(2).blocks(320).stage(play);
            stage.set_clock_rate(E, thousandths);
            let owner = stage.owner(D);
            stage.run_for(500 + 4 * phase);
            stage.store_away(&[D]);
            stage.cut(E, A);
            let thief = stage.steal(E);
            stage.run_until("the thief owns", |s| s.owns(thief));
            stage.cut(D, B);
            let refused = stage.write(owner, 310);
            let mut writes = vec![stage.write(thief, 300)];
            stage.run_for(1900);
            let mut reads = Vec::new();
            for block in 0..250 {
                writes.push(stage.write(thief, block));
                if block >= 2 && stage.done(writes[block as usize - 1].id) {
                    reads.push(stage.read(owner, block - 2));
                }
                stage.run_for(1);
            }
            *stale += reads.iter().filter(|id| stage.value(**id) == Some(ABSENT)).count();
            stage.store_back();
            stage.heal();
            assert!(matches!(stage.over(owner), EndReason::Fenced { .. }));
            assert!(stage.failure(refused.id).is_some(), "nobody who obeys the thief took it");
            stage.run_until("both are in sync", |s| s.in_sync() == [R0, R1]);
            for (block, write) in (0..250).zip(&writes[1..]) {
                assert!(stage.done(write.id), "block {block}");
                assert_eq!((stage.disk(R0, block), stage.disk(R1, block)), (write.value, write.value));
            }
        }
    }
    assert_eq!(stale[0], 0, "read after the thief's write, by clocks that are right");
    assert!((1..25 * 40).contains(&stale[1]), "the plot needs a read that is stale: {}", stale[1]);
}

/// S15: the store is lost right after r1 was taken out; of the copies of the record only r1's can be asked. It
/// names r0, which does not answer, so r0 may hold a later one: a repair without assent is refused.
fn a_demoted_copy_knows_that_it_is_not_enough_for_a_repair(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let lost = stage.backup();
    stage.written(owner, 1);
    stage.kill_silently(R1);
    stage.written(owner, 2);
    stage.vanish(owner);
    stage.restore(lost);
    stage.start(R1);
    stage.kill_silently(R0);
    let copy = Record::parse(&stage.durable(R1).record).expect("r1's copy of the record");
    assert_eq!(copy.in_sync().map(|e| e.rid).collect::<Vec<_>>(), [R0, R1], "r1 believes in itself");
    assert_eq!(stage.repair(false), Err(R0));
    // With r0 the later copy is found, and r1 is stale in it.
    stage.start(R0);
    stage.repair(false).expect("every member of the best copy answers");
    assert_eq!(stage.in_sync(), [R0]);
}

/// S15: a copy is added and admitted, and in that moment the only other one falls silent: it keeps the record that
/// it promised before. If the store is lost now, a repair that asks it alone has to learn that there is another copy.
fn a_member_knows_of_every_copy_that_may_become_the_last_one(play: &Play) {
    let mut stage = Scene::copies(1).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 0);
    stage.add(owner, R1, B);
    stage.run_until("the new copy is admitted", |s| s.in_sync() == [R0, R1]);
    let admitted = stage.record().epoch;
    let kept = Record::parse(&stage.durable(R0).record).expect("the record that r0 promised");
    assert!(kept.epoch < admitted, "r0 has not heard of the admission yet");
    assert!(kept.replica(R1).is_some(), "r0 knows of r1");
}
