//! Plots M1 to M26 of docs/scenarios.md (members), as far as they concern built parts.

use crate::oracle::ZERO;
use crate::scenarios::plots;
use crate::stage::{A, B, C, D, Fate, Play, R0, R1, R2, Scene, Stage, Who, guest_writes};
use weft_proto::ids::Rid;
use weft_proto::message::Ask;
use weft_proto::record::ReplicaState;
use weft_proto::replica::{DiskError, DiskOp};
use weft_proto::session::policy::TOO_FEW_IN_SYNC;
use weft_proto::session::{EndReason, Event};

plots! {
    M1 => a_member_that_restarts_within_a_second_is_not_demoted,
    M1 => a_member_that_refuses_connections_is_demoted_at_once,
    M2 => a_member_that_was_away_is_brought_what_was_written_and_nothing_else,
    M3 => a_member_that_was_away_while_the_owner_restarted_is_compared_by_region,
    M3 => a_copy_that_came_back_equal_tells_a_later_one_what_it_missed,
    M4 => a_stamp_without_its_data_costs_a_comparison_and_nothing_else,
    M6 => an_owner_that_dies_after_a_demotion_leaves_the_write_with_who_stayed,
    M8 => a_demotion_with_an_unknown_outcome_holds_every_write_until_it_is_known,
    M9 => members_that_fail_together_leave_by_one_swap,
    M9 => after_a_removal_everybody_who_remains_must_have_the_write,
    M10 => too_few_members_pause_the_volume_until_one_returns,
    M10 => a_min_isr_is_lowered_while_the_volume_waits_and_not_raised_above_its_copies,
    M11 => a_stale_copy_is_never_opened_in_place_of_the_last_good_one,
    M14 => a_joiner_that_dies_near_the_end_is_not_admitted,
    M15 => a_joiner_admitted_by_an_owner_that_never_knew_has_everything,
    M16 => an_admission_that_lost_against_a_steal_did_not_happen,
    M17 => a_join_whose_source_hangs_does_not_hold_a_guest_for_long,
    M17 => a_join_goes_on_from_another_member_when_its_source_is_lost,
    M17 => a_comparison_with_a_lost_joiner_counts_for_no_other,
    M17 => stamps_told_for_a_lost_joiner_count_for_no_other,
    M18 => a_member_that_comes_and_goes_costs_little,
    M20 => a_member_with_a_slow_disk_is_not_taken_for_a_dead_one,
    M21 => members_that_are_equally_slow_are_not_taken_out,
    M22 => an_owner_with_a_slow_card_takes_nobody_out,
    M23 => a_member_whose_disk_hangs_while_members_are_equalised_is_taken_out,
    M23 => a_read_that_hangs_in_a_disk_is_answered_by_another_member,
    M23 => a_member_whose_disk_hangs_is_taken_out_though_it_answers,
    M24 => a_member_that_hears_but_is_not_heard_is_as_good_as_dead,
    M25 => a_full_member_leaves_and_a_full_volume_waits,
    M26 => a_flush_that_failed_once_is_not_asked_again,
}

const BLOCK: u64 = 4096;

fn resynced(stage: &Stage, who: Who) -> u64 {
    stage.view(who).figures.resynced_bytes
}

fn equal(stage: &Stage, one: weft_proto::ids::Rid, two: weft_proto::ids::Rid, blocks: u64) {
    for block in 0..blocks {
        assert_eq!(stage.disk(one, block), stage.disk(two, block), "block {block}");
    }
}

/// M1: r1's daemon is killed under a write and back a second later, before anybody was refused there: the write is
/// sent again, the guest waited as long as the restart took.
fn a_member_that_restarts_within_a_second_is_not_demoted(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 0);
    stage.stall(R1);
    let write = stage.write(owner, 1);
    stage.run_for(10);
    stage.kill_silently(R1);
    stage.run_for(1000);
    stage.unstall(R1);
    stage.start(R1);
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    assert_eq!((stage.demotions(owner), stage.disk(R1, 1)), (0, write.value));
    assert!(stage.view(owner).figures.stall_ms_max < 1150);
    stage.run_for(50);
    assert_eq!(stage.line(owner, R1), "in-sync acked=2 sent=3 window=0");
}

/// M1, the other half (4.9): where nobody listens nobody is waited for. The guest waits for one swap.
fn a_member_that_refuses_connections_is_demoted_at_once(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    let write = stage.write(owner, 1);
    stage.run_for(10);
    assert!(stage.done(write.id));
    assert_eq!(stage.line(owner, R1), "stale acked=0 sent=1 window=0 [refused]");
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(stage.disk(R1, 1), write.value);
}

/// M2: r1 is gone for ten minutes and rejoins the same session: as many bytes are copied as were written.
fn a_member_that_was_away_is_brought_what_was_written_and_nothing_else(play: &Play) {
    let mut stage = Scene::copies(2).blocks(1600).stage(play);
    let owner = stage.owner(D);
    for block in (0..1600).step_by(16) {
        stage.written(owner, block);
    }
    stage.run_for(3000);
    stage.kill(R1);
    for i in 0..60 {
        stage.written(owner, i * 20);
        stage.written(owner, i * 20);
        stage.run_for(10_000);
    }
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(resynced(&stage, owner), 60 * BLOCK);
    assert_eq!(stage.view(owner).figures.changed_bytes, 60 * BLOCK);
    equal(&stage, R0, R1, 1600);
}

/// M3: r1 is gone, the owner restarts too, r1 rejoins: at most the regions that were touched are compared, and only
/// what differs is copied.
fn a_member_that_was_away_while_the_owner_restarted_is_compared_by_region(play: &Play) {
    let mut stage = Scene::copies(2).blocks(1600).stage(play);
    let owner = stage.owner(D);
    for block in (0..1600).step_by(16) {
        stage.written(owner, block);
    }
    stage.run_for(3000);
    stage.kill(R1);
    for block in [5, 6, 700, 1599] {
        stage.written(owner, block);
    }
    stage.run_for(3000);
    stage.vanish(owner);
    let next = stage.replace(D, owner);
    stage.serving(next);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(resynced(&stage, next), 4 * BLOCK);
    assert_eq!(stage.view(next).figures.hashed_bytes, 3 * 16 * BLOCK);
    equal(&stage, R0, R1, 1600);
}

/// M3, with three copies: a block is trimmed while r1 leaves, written while r2 leaves, and trimmed again. r1 is compared when it
/// returns, and has what it should have already. Then it is all that r2 has to go by: what r2 holds must not come back.
fn a_copy_that_came_back_equal_tells_a_later_one_what_it_missed(play: &Play) {
    let mut stage = Scene::copies(3).blocks(64).stage(play);
    let first = stage.owner(D);
    let trimmed = stage.discard(first, 3);
    stage.run_until("the block is trimmed", |s| s.done(trimmed));
    stage.run_for(3000);
    stage.kill(R1);
    let missed = stage.written(first, 3);
    stage.run_for(3000);
    stage.kill(R2);
    let trimmed = stage.discard(first, 3);
    stage.run_until("it is trimmed again", |s| s.done(trimmed) && s.in_sync() == [R0]);
    stage.run_for(3000);
    stage.vanish(first);
    let next = stage.replace(D, first);
    stage.serving(next);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    stage.run_for(3000);
    assert_eq!((stage.disk(R1, 3), stage.disk(R2, 3)), (ZERO, missed));
    stage.kill(R0);
    stage.written(next, 50);
    stage.start(R2);
    stage.run_until("r2 is in sync", |s| s.in_sync() == [R1, R2]);
    assert_eq!(stage.disk(R2, 3), ZERO);
    equal(&stage, R1, R2, 64);
}

/// M4: r1 crashes between a write's stamp and its data, which no other member got either.
fn a_stamp_without_its_data_costs_a_comparison_and_nothing_else(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let old = stage.written(owner, 3);
    stage.run_for(3000);
    stage.hold(owner, R0, guest_writes);
    stage.stall(R1);
    stage.write(owner, 3);
    stage.run_for(10);
    stage.vanish(owner);
    stage.kill(R1);
    stage.unstall(R1);
    assert!(stage.durable(R1).rgm[0] > stage.durable(R1).sealed, "the plot needs a stamp");
    stage.start(R1);
    let next = stage.steal(C);
    stage.serving(next);
    assert_eq!(stage.view(next).dirty_regions, 1);
    assert_eq!(stage.read_now(next, 3), old);
    stage.run_until("nothing may differ", |s| s.view(next).dirty_regions == 0);
    let figures = stage.view(next).figures;
    assert_eq!((figures.hashed_bytes, figures.reconciled_bytes), (16 * BLOCK, 0));
}

/// M6: the owner dies between the swap that takes r1 out and the completion of the write that waited for it.
fn an_owner_that_dies_after_a_demotion_leaves_the_write_with_who_stayed(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill_silently(R1);
    let write = stage.write(owner, 3);
    stage.run_until("r1 is taken out", |s| s.in_sync() == [R0]);
    assert!(!stage.done(write.id));
    stage.vanish(owner);
    let next = stage.steal(C);
    stage.serving(next);
    assert_eq!((stage.in_sync(), stage.read_now(next, 3)), (vec![R0], write.value));
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(stage.disk(R1, 3), write.value);
}

/// M8: the swap that takes r1 out is applied, its answer lost, and the store away for 8 s.
fn a_demotion_with_an_unknown_outcome_holds_every_write_until_it_is_known(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.next_swaps(&[Fate::AppliedUnknown]);
    stage.kill(R1);
    let epoch = stage.record().epoch;
    let write = stage.write(owner, 3);
    stage.run_until("the swap was made", |s| s.fates_left() == 0);
    stage.store_down();
    stage.run_for(8000);
    assert_eq!((stage.in_sync(), stage.done(write.id)), (vec![R0], false));
    assert_eq!(stage.disk(R0, 3), write.value);
    let why = stage.view(owner).paused.as_deref();
    assert_eq!(why, Some("waits for the store, to go on without r1"));
    stage.store_back();
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    assert_eq!((stage.record().epoch, stage.demotions(owner)), (epoch.next(), 1));
    assert!((8000..9000).contains(&stage.view(owner).figures.stall_ms_max));
}

/// M9: r0 and r1 lose power at once, r2 is left, and min_isr is 1.
fn members_that_fail_together_leave_by_one_swap(play: &Play) {
    let mut stage = Scene::copies(3).stage(play);
    let owner = stage.owner(D);
    let swaps = stage.swaps().len();
    stage.power_off(R0);
    stage.power_off(R1);
    let write = stage.write(owner, 3);
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    assert_eq!((stage.in_sync(), stage.swaps().len()), (vec![R2], swaps + 1));
    assert!(stage.told(owner, |e| matches!(e, Event::Demoted { rids, .. } if *rids == [R0, R1])));
    assert!(stage.view(owner).figures.stall_ms_max < 2000);
}

/// M9, with one loss only: r0 is taken out while r2 has not acknowledged; r1 alone is not enough.
fn after_a_removal_everybody_who_remains_must_have_the_write(play: &Play) {
    let mut stage = Scene::copies(3).stage(play);
    let owner = stage.owner(D);
    stage.hold(owner, R2, guest_writes);
    let write = stage.write(owner, 3);
    stage.run_for(5);
    stage.kill(R0);
    stage.run_until("r0 is taken out", |s| s.in_sync() == [R1, R2]);
    stage.run_for(500);
    assert!(!stage.done(write.id), "r2 is in sync and does not have it");
    stage.release(owner, R2);
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    assert_eq!((stage.disk(R1, 3), stage.disk(R2, 3)), (write.value, write.value));
}

/// M10: as M9 with min_isr 2: the volume waits, nobody is taken out; r1 returns, is in sync still, and the volume
/// goes on without r0.
fn too_few_members_pause_the_volume_until_one_returns(play: &Play) {
    let mut stage = Scene::copies(3).min_isr(2).stage(play);
    let owner = stage.owner(D);
    let swaps = stage.swaps().len();
    stage.power_off(R0);
    stage.power_off(R1);
    let write = stage.write(owner, 3);
    stage.run_for(20_000);
    assert_eq!(stage.view(owner).paused.as_deref(), Some("waits for 2 members"));
    assert_eq!((stage.swaps().len(), stage.done(write.id)), (swaps, false));
    stage.start(R1);
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    assert_eq!((stage.in_sync(), stage.view(owner).phase), (vec![R1, R2], "serving"));
    assert_eq!(stage.disk(R1, 3), write.value);
}

/// M10, too: writes need two of three copies, and two are gone: who asks for less has the volume go on without them, and can't
/// have more again before a copy is back.
fn a_min_isr_is_lowered_while_the_volume_waits_and_not_raised_above_its_copies(play: &Play) {
    let mut stage = Scene::copies(3).min_isr(2).stage(play);
    let owner = stage.owner(D);
    stage.power_off(R0);
    stage.power_off(R1);
    let write = stage.write(owner, 3);
    stage.run_for(5000);
    assert!(!stage.done(write.id) && stage.view(owner).paused.is_some());
    let epoch = stage.record().epoch;
    assert_eq!(stage.set_policy(owner, 3, 1), Ok(()));
    assert!(stage.record().epoch > epoch);
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    assert_eq!(stage.in_sync(), [R2]);
    assert_eq!(stage.set_policy(owner, 3, 2), Err(TOO_FEW_IN_SYNC));
    for (copies, min_isr) in [(3, 4), (0, 1), (9, 1), (1, 0)] {
        let refused = stage.set_policy(owner, copies, min_isr);
        assert!(refused.is_err_and(|why| why != TOO_FEW_IN_SYNC), "{copies} {min_isr}: {refused:?}");
    }
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R1, R2]);
    assert_eq!(stage.set_policy(owner, 2, 2), Ok(()));
    assert_eq!((stage.record().policy.copies, stage.record().policy.min_isr), (2, 2));
    stage.close(owner);
}

/// M11: r1 is stale and up, r0, the last in-sync copy, is away: whoever opens waits for r0, however long.
fn a_stale_copy_is_never_opened_in_place_of_the_last_good_one(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    let value = stage.written(owner, 3);
    stage.power_off(R0);
    stage.run_for(3000);
    stage.start(R1);
    stage.run_for(3000);
    assert_eq!(stage.view(owner).paused.as_deref(), Some("waits for r0: silent"));
    stage.vanish(owner);
    let swaps = stage.swaps().len();
    let next = stage.steal(C);
    stage.run_for(600_000);
    assert_eq!(stage.view(next).phase, "opening");
    assert_eq!(stage.view(next).paused.as_deref(), Some("no in-sync member answers"));
    assert_eq!(stage.line(next, R1), "stale acked=0 sent=0 window=0");
    assert_eq!((stage.in_sync(), stage.swaps().len()), (vec![R0], swaps));
    stage.start(R0);
    stage.serving(next);
    assert_eq!(stage.read_now(next, 3), value);
}

/// M14: the joiner dies with one block to go: its base is what it was, nobody admits it, and it begins anew.
fn a_joiner_that_dies_near_the_end_is_not_admitted(play: &Play) {
    let mut stage = Scene::copies(2).blocks(480).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 0);
    stage.run_for(3000);
    stage.kill(R1);
    for block in (0..480).step_by(5) {
        stage.written(owner, block);
    }
    let base = stage.record().replica(R1).expect("it is stale").base;
    let last = |ask: &Ask<_>| matches!(ask, Ask::Write { offset, copy: true, .. } if *offset == 475 * BLOCK);
    stage.hold(owner, R1, last);
    stage.start(R1);
    stage.run_until("the last block is on its way", |s| s.held(owner, R1) > 0);
    stage.run_for(100);
    assert!(stage.view(owner).resync.is_some_and(|r| r.copied == 95 * BLOCK && r.remaining == BLOCK));
    stage.kill(R1);
    stage.run_for(1000);
    let entry = stage.record().replica(R1).expect("it is stale");
    assert_eq!((entry.state, entry.base), (ReplicaState::Stale, base));
    stage.hold_no_more(owner, R1);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    equal(&stage, R0, R1, 480);
}

/// M15: the owner dies after the admission was applied and before it knows; r0 dies too.
fn a_joiner_admitted_by_an_owner_that_never_knew_has_everything(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    let values: Vec<u64> = (0..8).map(|block| stage.written(owner, block)).collect();
    stage.next_swaps(&[Fate::AppliedUnknown]);
    stage.start(R1);
    stage.run_until("the admission is applied", |s| s.in_sync() == [R0, R1]);
    let unsure = stage.write(owner, 9);
    stage.run_for(50);
    assert!(stage.done(unsure.id), "both have it");
    stage.vanish(owner);
    stage.kill(R0);
    let next = stage.steal(C);
    stage.serving(next);
    assert_eq!((0..8).map(|block| stage.read_now(next, block)).collect::<Vec<_>>(), values);
    assert_eq!(stage.read_now(next, 9), unsure.value);
}

/// M16: a thief's claim comes before the owner's admission: the replica stays stale, the new owner joins it.
fn an_admission_that_lost_against_a_steal_did_not_happen(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    let value = stage.written(owner, 3);
    stage.next_swaps(&[Fate::LateUnknown]);
    stage.start(R1);
    stage.run_until("the admission is on its way", |s| s.late() == 1);
    let thief = stage.steal(C);
    stage.run_until("the thief owns", |s| s.owns(thief));
    assert_eq!((stage.apply_late(), stage.in_sync()), (0, vec![R0]));
    assert!(matches!(stage.over(owner), EndReason::Fenced { .. }));
    stage.run_until("the thief has joined r1", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.disk(R1, 3), stage.read_now(thief, 3)), (value, value));
}

/// M17: r1 is copied to from r0, which dies half way; r2 has everything that r0 had.
fn a_join_goes_on_from_another_member_when_its_source_is_lost(play: &Play) {
    let mut stage = Scene::copies(3).blocks(480).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 0);
    stage.run_for(3000);
    stage.kill(R1);
    for block in 0..240 {
        stage.written(owner, block * 2);
    }
    stage.run_for(3000);
    stage.vanish(owner);
    let next = stage.replace(D, owner);
    stage.serving(next);
    let half = |ask: &Ask<_>| matches!(ask, Ask::Write { offset, copy: true, .. } if *offset >= 240 * BLOCK);
    stage.hold(next, R1, half);
    stage.start(R1);
    stage.run_until("half of it is copied", |s| s.held(next, R1) > 0);
    stage.run_for(50);
    stage.kill(R0);
    let during = stage.written(next, 7);
    assert_eq!(stage.line(next, R0), "stale acked=0 sent=1 window=0 [refused]");
    stage.release(next, R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R1, R2]);
    assert_eq!(stage.disk(R1, 7), during);
    equal(&stage, R1, R2, 480);
    assert!(stage.ran(R2).iter().any(|op| matches!(op, DiskOp::Hash { .. })), "r2 was a source");
}

/// M17, its source does not die but hangs, and answers heartbeats: the guest's write to the range that is read for the
/// joiner goes on, r0 is taken out for that write, and the join goes on from r2.
fn a_join_whose_source_hangs_does_not_hold_a_guest_for_long(play: &Play) {
    let mut stage = Scene::copies(3).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    stage.written(owner, 7);
    stage.stall(R0);
    stage.start(R1);
    stage.run_until("r0 is read from for r1", |s| {
        s.line(owner, R1).starts_with("joining") && s.at_disk(R0) > 0
    });
    let write = stage.write(owner, 7);
    let asked_at = stage.now_ms();
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    let waited = stage.now_ms() - asked_at;
    assert!(waited < 6000, "{waited} ms");
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R1, R2]);
    assert_eq!((stage.disk(R1, 7), stage.disk(R2, 7)), (write.value, write.value));
    stage.unstall(R0);
    stage.run_until("all are in sync", |s| s.in_sync() == [R0, R1, R2]);
    equal(&stage, R0, R2, 48);
}

/// M17: r1 is compared with a source that is slow to answer, and lost again; a new replica joins. What the source then
/// says of r1 says nothing of the new one. Found by the simulator: seed 1189400 of 86f6e7e.
fn a_comparison_with_a_lost_joiner_counts_for_no_other(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.run_for(3000);
    // Both have it, and its region's stamp is newer than the last seal: it will be compared.
    let value = stage.written(owner, 1);
    stage.kill(R1);
    stage.vanish(owner);
    let next = stage.replace(D, owner);
    stage.serving(next);
    stage.hold(next, R0, |ask| matches!(ask, Ask::Hash { .. }));
    stage.start(R1);
    stage.run_until("r1 is compared", |s| s.held(next, R0) > 0);
    stage.run_for(50);
    stage.kill(R1);
    stage.add(next, R2, C);
    let joins = |e: &Event| matches!(e, Event::ResyncStarted { rid: R2, .. });
    stage.run_until("the new replica joins", |s| s.told(next, joins));
    stage.run_for(50);
    stage.release(next, R0);
    stage.run_until("the new replica is in sync", |s| s.in_sync().contains(&R2));
    assert_eq!(stage.disk(R2, 1), value);
}

/// M17: r0 is asked what r1 lacks, and is slow to answer; r1 is lost again, and r2 joins, which lacks more. What r0 then says
/// of r1 is not all that r2 lacks. Found by the simulator: seed 2603046 of 9e4ee33.
fn stamps_told_for_a_lost_joiner_count_for_no_other(play: &Play) {
    let mut stage = Scene::copies(3).stage(play);
    let first = stage.owner(D);
    stage.kill(R2);
    let old = stage.written(first, 1);
    // Sealed at r0 and r1: only r2 lacks it.
    stage.close(first);
    let second = stage.owner(D);
    stage.kill(R1);
    let new = stage.written(second, 20);
    stage.vanish(second);
    let owner = stage.replace(D, second);
    stage.serving(owner);
    stage.hold(owner, R0, |ask| matches!(ask, Ask::Stamps { .. }));
    stage.start(R1);
    stage.run_until("r0 is asked what r1 lacks", |s| s.held(owner, R0) == 1);
    stage.kill(R1);
    stage.start(R2);
    stage.run_until("r0 is asked what r2 lacks", |s| s.held(owner, R0) == 2);
    // r2 has told its own.
    stage.run_for(50);
    stage.release(owner, R0);
    stage.run_until("r2 is in sync", |s| s.in_sync().contains(&R2));
    assert_eq!((stage.disk(R2, 1), stage.disk(R2, 20)), (old, new));
}

/// M23: r1 answers heartbeats, its disk does nothing: the oldest write that others have done decides.
fn a_member_whose_disk_hangs_is_taken_out_though_it_answers(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 3);
    stage.stall(R1);
    let write = stage.write(owner, 4);
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    let stall = stage.view(owner).figures.stall_ms_max;
    assert!((1500..1700).contains(&stall), "{stall} ms");
    let why = "a write hangs that others have done";
    assert!(
        stage.told(owner, |e| matches!(e, Event::Demoted { rids, reason } if *rids == [R1] && reason == why))
    );
    stage.unstall(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    equal(&stage, R0, R1, 48);
}

/// M23, with reads only: r0, from which the guest's host reads, hangs. The read is asked of r1, and so are those that
/// follow; r0 stays in sync, nothing shows that its disk is slower at writing.
fn a_read_that_hangs_in_a_disk_is_answered_by_another_member(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(A);
    let value = stage.written(owner, 3);
    stage.run_for(3000);
    stage.stall(R0);
    let asked_at = stage.now_ms();
    assert_eq!(stage.read_now(owner, 3), value);
    let waited = stage.now_ms() - asked_at;
    assert!((1400..2000).contains(&waited), "{waited} ms");
    for _ in 0..20 {
        let asked_at = stage.now_ms();
        assert_eq!(stage.read_now(owner, 3), value);
        assert!(stage.now_ms() - asked_at < 10, "it is asked of the hanging disk again");
    }
    assert_eq!((stage.demotions(owner), stage.in_sync()), (0, vec![R0, R1]));
    stage.unstall(R0);
    stage.run_for(1000);
    let before = stage.ran(R0).len();
    assert_eq!(stage.read_now(owner, 3), value);
    assert!(stage.ran(R0).len() > before, "the near copy is read from again");
}

/// M23, at an open: members are equalised, and one of them hangs in that. The guest's read of what may differ waits for
/// its removal, no longer.
fn a_member_whose_disk_hangs_while_members_are_equalised_is_taken_out(play: &Play) {
    for hangs in [R0, R1] {
        let mut stage = Scene::copies(2).stage(play);
        let owner = stage.owner(D);
        let old = stage.written(owner, 3);
        stage.run_for(3000);
        stage.hold(owner, R1, guest_writes);
        let torn = stage.write(owner, 3);
        stage.run_for(10);
        stage.vanish(owner);
        let next = stage.steal(C);
        stage.serving(next);
        stage.stall(hangs);
        let asked_at = stage.now_ms();
        let read = stage.read_now(next, 3);
        assert_eq!(read, if hangs == R0 { old } else { torn.value });
        // A thief waits for the old owner's lease as well.
        let waited = stage.now_ms() - asked_at;
        assert!(waited < 6000, "{waited} ms");
        assert_eq!(stage.in_sync(), [if hangs == R0 { R1 } else { R0 }]);
        stage.unstall(hangs);
        stage.run_until("both are in sync", |s| s.in_sync() == [R0, R1]);
        assert_eq!((stage.disk(R0, 3), stage.disk(R1, 3)), (read, read));
    }
}

/// M24: the owner reaches r1, r1 does not reach the owner: it executes what it is sent, is taken out like a dead
/// one, and its stamps bring it back.
fn a_member_that_hears_but_is_not_heard_is_as_good_as_dead(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 3);
    stage.cut_way(B, D);
    let write = stage.write(owner, 4);
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    let stall = stage.view(owner).figures.stall_ms_max;
    assert!((1400..1800).contains(&stall), "{stall} ms");
    assert_eq!((stage.in_sync(), stage.disk(R1, 4)), (vec![R0], write.value));
    assert!(stage.durable(R1).unsealed_regions() > 0);
    let newer = stage.written(owner, 4);
    stage.heal();
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(stage.disk(R1, 4), newer);
}

/// M25: r1's pool is full: it is taken out, for want of room. Then r0's is: the guest waits, and goes on when there
/// is room, without being told.
fn a_full_member_leaves_and_a_full_volume_waits(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 0);
    stage.fill(R1, true);
    stage.written(owner, 1);
    let full = |stage: &Stage, rid: Rid| {
        let at = stage.record().replica(rid).expect("it is in the record").clone();
        format!("pool {} of host {} is full", at.pool, at.node)
    };
    let why = full(&stage, R1);
    assert!(
        stage
            .told(owner, |e| matches!(e, Event::Demoted { rids, reason } if *rids == [R1] && *reason == why))
    );
    stage.fill(R0, true);
    let write = stage.write(owner, 2);
    stage.run_for(20_000);
    assert_eq!(stage.view(owner).paused, Some(format!("waits for r0: {}", full(&stage, R0))));
    assert!(stage.reply(write.id).is_none());
    stage.fill(R0, false);
    stage.run_until("the guest goes on", |s| s.done(write.id));
    assert_eq!((stage.in_sync(), stage.view(owner).phase), (vec![R0], "serving"));
    stage.fill(R1, false);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    equal(&stage, R0, R1, 48);
}

/// M18: r1 is gone for a moment every 20 s. Each time it is brought what it missed, and nothing else; the record
/// changes at most once in 10 s.
fn a_member_that_comes_and_goes_costs_little(play: &Play) {
    let mut stage = Scene::copies(2).blocks(480).stage(play);
    let owner = stage.owner(D);
    for block in 0..480 {
        stage.written(owner, block);
    }
    stage.run_for(3000);
    let swaps = stage.swaps().len();
    for round in 0..15 {
        stage.kill(R1);
        stage.written(owner, round);
        stage.start(R1);
        stage.run_for(20_000);
        assert_eq!(stage.in_sync(), [R0, R1]);
    }
    assert_eq!(resynced(&stage, owner), 15 * BLOCK);
    assert_eq!(stage.swaps().len() - swaps, 30);
}

/// M20, as far as it is built (nobody is taken out for being slow): a disk takes 200 ms for a request. It is not taken
/// for a dead one, writes wait for it and no longer, reads do not; and once it is as fast as the others, all is well.
fn a_member_with_a_slow_disk_is_not_taken_for_a_dead_one(play: &Play) {
    let mut stage = Scene::copies(3).blocks(480).stage(play);
    let owner = stage.owner(D);
    let early = stage.written(owner, 0);
    stage.slow_down(R1, 200);
    let mut writes = Vec::new();
    for block in 1..300 {
        writes.push(stage.write(owner, block));
        stage.run_for(100);
        let asked_at = stage.now_ms();
        assert_eq!(stage.read_now(owner, 0), early);
        assert!(stage.now_ms() - asked_at < 10, "a read waits for the slow one");
    }
    stage.run_until("all are acknowledged", |s| writes.iter().all(|w| s.done(w.id)));
    let stall = stage.view(owner).figures.stall_ms_max;
    assert!((200..420).contains(&stall), "{stall} ms");
    assert_eq!((stage.demotions(owner), stage.in_sync()), (0, vec![R0, R1, R2]));
    stage.slow_down(R1, 0);
    stage.run_for(1000);
    let last = stage.write(owner, 301);
    stage.run_for(5);
    assert!(stage.done(last.id), "fast again");
}

/// M21: no disk does anything for ten seconds, and all members answer heartbeats: nobody is slower than others.
fn members_that_are_equally_slow_are_not_taken_out(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.stall(R0);
    stage.stall(R1);
    let write = stage.write(owner, 3);
    stage.run_for(10_000);
    stage.unstall(R0);
    stage.unstall(R1);
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    assert_eq!((stage.demotions(owner), stage.in_sync()), (0, vec![R0, R1]));
}

/// M22, but for the alert: every message that the owner sends or gets takes 300 ms. All members are late alike, so
/// that it is not theirs: nobody is taken out, guests are served, if slowly, and the volume closes.
fn an_owner_with_a_slow_card_takes_nobody_out(play: &Play) {
    let mut stage = Scene::copies(3).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 0);
    stage.slow_card(D, 300);
    for block in 1..40 {
        let asked_at = stage.now_ms();
        let value = stage.written(owner, block);
        assert_eq!(stage.read_now(owner, block), value);
        assert!(stage.now_ms() - asked_at < 1400, "{} ms", stage.now_ms() - asked_at);
        stage.run_for(500);
    }
    assert_eq!((stage.demotions(owner), stage.in_sync()), (0, vec![R0, R1, R2]));
    assert_eq!(stage.view(owner).paused, None);
    stage.close(owner);
}

/// M26: r1's fdatasync fails, and would succeed if it were repeated, without what the first one lost. The member is
/// taken out, and its copy serves nothing before it was opened anew.
fn a_flush_that_failed_once_is_not_asked_again(play: &Play) {
    let mut stage = Scene::copies(2).cached().stage(play);
    let owner = stage.owner(A);
    let value = stage.written(owner, 3);
    stage.fail_once(R1, |op| matches!(op, DiskOp::Flush), DiskError::Io);
    let flush = stage.submit(owner, weft_proto::guest::GuestOp::Flush);
    stage.run_until("the flush is answered", |s| s.done(flush));
    assert_eq!(stage.in_sync(), [R0]);
    stage.run_for(30_000);
    assert_eq!(stage.in_sync(), [R0], "its files were not opened anew");
    assert!(!stage.ran(R1).iter().any(|op| matches!(op, DiskOp::Flush)));
    stage.kill(R1);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(stage.disk(R1, 3), value);
}
