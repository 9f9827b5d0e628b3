//! Plots N1 to N21 of docs/scenarios.md, as far as the protocol machines decide them.

use crate::disk::value_of;
use crate::oracle::{ABSENT, ZERO};
use crate::scenarios::plots;
use crate::stage::{
    A, B, C, D, E, Fate, Play, R0, R1, R2, Scene, all_writes, flushes, guest_writes, promises,
};
use weft_proto::ids::Epoch;
use weft_proto::payload::{BLOCK, HeapPayload, Payload as _};
use weft_proto::record::{REPAIR_EPOCH_JUMP, ReplicaState};
use weft_proto::replica::DiskOp;
use weft_proto::session::{EndReason, Event};

plots! {
    N1 => a_joiner_stays_required_until_its_admission_is_settled,
    N1 => a_read_that_fails_takes_no_admission_back,
    N2 => nobody_opens_on_a_store_that_was_put_back_before_it_is_repaired,
    N2 => a_claim_from_before_a_repair_is_not_put_over_the_repaired_record,
    N4 => a_copy_that_hangs_in_a_joiners_disk_holds_its_range_for_a_moment_only,
    N4 => a_range_is_locked_until_the_joiner_has_the_older_write,
    N4 => a_range_is_given_back_when_the_joiner_was_dropped,
    N6 => a_thief_that_reaches_only_the_store_fences_nobody,
    N7 => requests_unread_in_an_old_connection_never_execute,
    N8 => a_trimmed_block_reads_as_zero_after_the_power_was_lost,
    N9 => a_volume_in_full_pools_is_trimmed_stolen_and_goes_on_without_a_member,
    N10 => a_paused_write_does_not_block_its_own_rescue,
    N11 => writes_that_ran_on_while_an_interval_sealed_are_copied_to_who_left_at_that_seal,
    N12 => a_join_survives_the_loss_of_another_member,
    N12 => a_flush_that_a_new_epoch_refused_is_asked_of_the_joiner_again,
    N12 => a_joiner_that_waited_for_its_turn_is_not_silent,
    N13 => a_write_stuck_in_a_joiner_never_executes_after_its_join_was_dropped,
    N15 => whoever_opens_during_a_thiefs_wait_waits_too,
    N16 => a_thief_that_read_just_before_an_admission_is_not_told_of_a_rollback,
    N17 => a_host_that_was_off_accepts_the_repaired_store,
    N18 => what_a_shrink_left_at_a_copy_that_crashed_reads_as_zero_when_the_volume_grows,
    N18 => what_a_shrink_left_at_a_copy_that_was_away_reads_as_zero_when_the_volume_has_grown,
    N18 => a_shrink_that_never_reached_the_store_costs_nothing,
    N21 => a_volume_with_too_few_copies_opens_paused_and_is_rescued,
    N21 => a_growth_that_waits_for_a_dead_copy_does_not_hold_up_the_new_one,
}

/// N1: the admission's answer is lost and the store shows the old record; the joiner is cut off, the store
/// applies the swap later, and the next owner finds the joiner only. Nothing acknowledged may be missing there.
fn a_joiner_stays_required_until_its_admission_is_settled(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let first = stage.written(owner, 0);
    stage.kill(R1);
    let second = stage.written(owner, 1);
    stage.next_swaps(&[Fate::LateUnknown]);
    stage.next_swaps(&[Fate::LostUnknown; 100]);
    stage.start(R1);
    stage.run_until("the admission is sent", |s| s.late() == 1);
    stage.cut(D, B);
    let third = stage.write(owner, 2);
    stage.run_for(8000);
    assert!(!stage.done(third.id), "acknowledged without a joiner that may be in sync");
    assert_eq!(stage.in_sync(), [R0]);

    assert_eq!(stage.apply_late(), 1);
    assert_eq!(stage.in_sync(), [R0, R1]);
    stage.vanish(owner);
    stage.kill(R0);
    stage.heal();
    let next = stage.steal(C);
    stage.serving(next);
    assert_eq!(stage.in_sync(), [R1]);
    assert_eq!((stage.read_now(next, 0), stage.read_now(next, 1)), (first, second));
}

/// N1, the admission was applied and its answer lost; a thief that reaches the joiner only steals, and the owner, which
/// asks the store what that means, is told that nothing was done. That is said of the question, not of the admission:
/// the joiner stays required, out of reach though it is. Found by the simulator: seed 107994.
fn a_read_that_fails_takes_no_admission_back(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    stage.written(owner, 1);
    stage.next_swaps(&[Fate::AppliedUnknown]);
    stage.start(R1);
    stage.run_until("the admission is applied", |s| s.in_sync() == [R0, R1]);
    stage.store_refuses(&[D]);
    stage.cut(C, A);
    let thief = stage.steal(C);
    stage.serving(thief);
    stage.cut(D, B);
    let write = stage.write(owner, 2);
    stage.run_for(10_000);
    assert_eq!(stage.in_sync(), [R1]);
    assert!(stage.reply(write.id).is_none(), "acknowledged without a joiner that is in sync");
    stage.store_back();
    assert!(matches!(stage.over(owner), EndReason::Fenced { .. }));
    stage.heal();
    stage.run_until("both copies are in sync", |s| s.in_sync() == [R0, R1]);
}

/// N2: the store is restored from a backup taken before the last steal, both owners live, and the replica that
/// promised the thief is away. Watermarks refuse everybody; repair raises the epochs over all promises.
fn nobody_opens_on_a_store_that_was_put_back_before_it_is_repaired(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let old = stage.owner(D);
    stage.written(old, 0);
    let backup = stage.backup();
    stage.cut(D, B);
    stage.store_away(&[D]);
    stage.cut(C, A);
    let thief = stage.steal(C);
    stage.serving(thief);
    stage.written(thief, 1);
    stage.host_reads_store(A);
    let before = stage.record().epoch;
    stage.restore(backup);
    stage.store_back();
    stage.kill_silently(R1);

    let writes = [stage.write(old, 2), stage.write(thief, 2)];
    stage.run_for(5000);
    assert!(!writes.iter().any(|w| stage.done(w.id)), "a write completed under a record of the past");
    let third = stage.steal(E);
    let why = stage.over(third);
    assert!(matches!(why, EndReason::Claimed(claim) if claim.host == A), "r0's host has seen more: {why:?}");
    assert!(stage.record().epoch < before);

    stage.start(R1);
    stage.heal();
    stage.repair(false).expect("every member of the best copy answers");
    assert_eq!(stage.record().epoch, Epoch(before.0 + REPAIR_EPOCH_JUMP));
    let next = stage.steal(E);
    stage.serving(next);
    stage.written(next, 3);
    stage.run_for(3000);
    assert!(stage.ended(old).is_some() && stage.ended(thief).is_some(), "old owners go on");
}

/// N2, R14: a claim's outcome is unknown; the store is put back and repaired, and the repaired record happens to
/// stand at the revision that the claim compares. It is another record: the claim fails, and the session takes it
/// up. Found by the simulator: seed 1053710 of 9926c9e.
fn a_claim_from_before_a_repair_is_not_put_over_the_repaired_record(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let backup = stage.backup();
    let first = stage.owner(D);
    stage.written(first, 0);
    stage.vanish(first);
    stage.next_swaps(&[Fate::LostUnknown]);
    let thief = stage.steal(E);
    stage.run_until("the claim was made", |s| s.fates_left() == 0);
    let compared = stage.backup();
    stage.restore(backup);
    stage.repair(false).expect("both members answer");
    assert_eq!(stage.backup().revision(), compared.revision());
    stage.serving(thief);
    assert!(stage.view(thief).epoch > Epoch(REPAIR_EPOCH_JUMP), "{}", stage.view(thief).epoch);
}

/// N4: a best-effort write to a joiner is slower than a newer one to the same block would be.
fn a_range_is_locked_until_the_joiner_has_the_older_write(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    stage.written(owner, 40);
    stage.hold(owner, R1, all_writes);
    stage.start(R1);
    stage.run_until("the joiner is copied to", |s| s.held(owner, R1) > 0);
    let older = stage.written(owner, 5);
    let newer = stage.write(owner, 5);
    stage.run_for(500);
    assert!(!stage.done(newer.id), "it may overtake the older one on its way to the joiner");
    assert_eq!((stage.disk(R0, 5), stage.line(owner, R1)), (older, "joining acked=0 sent=2 window=17"));
    stage.release(owner, R1);
    stage.run_until("both copies are in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.disk(R0, 5), stage.disk(R1, 5)), (newer.value, newer.value));
}

/// N4: as above, but the older write never arrives: the join is dropped, the newer write goes on without it, and
/// the older one finds its attachment ended when it is read at last.
fn a_range_is_given_back_when_the_joiner_was_dropped(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    stage.written(owner, 40);
    stage.hold(owner, R1, all_writes);
    stage.start(R1);
    stage.run_until("the joiner is copied to", |s| s.held(owner, R1) > 0);
    stage.written(owner, 5);
    let newer = stage.write(owner, 5);
    stage.run_until("the newer write is acknowledged", |s| s.done(newer.id));
    assert!(stage.told(owner, |e| matches!(e, Event::JoinAbandoned { rid: R1, .. })));
    stage.release(owner, R1);
    stage.run_until("both copies are in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(stage.disk(R1, 5), newer.value);
}

/// N4: no write of a guest but a copy hangs in the joiner's disk, which answers heartbeats. A guest's write to that
/// range waits until the joiner is dropped for it, no longer.
fn a_copy_that_hangs_in_a_joiners_disk_holds_its_range_for_a_moment_only(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    stage.written(owner, 5);
    stage.start(R1);
    stage.stall(R1);
    stage.run_until("r1 joins", |s| s.view(owner).resync.is_some());
    stage.run_for(20);
    let write = stage.write(owner, 5);
    stage.run_for(100);
    assert!(!stage.done(write.id), "its range is being copied");
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    let stall = stage.view(owner).figures.stall_ms_max;
    assert!((1400..2000).contains(&stall), "{stall} ms");
    assert!(stage.told(owner, |e| matches!(e, Event::JoinAbandoned { rid: R1, .. })));
    stage.run_for(10_000);
    stage.unstall(R1);
    stage.run_until("both copies are in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(stage.disk(R1, 5), write.value);
}

/// N6: a host with a link to the witness only steals: it is refused before its swap.
fn a_thief_that_reaches_only_the_store_fences_nobody(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 0);
    let swaps = stage.swaps().len();
    stage.cut(E, A);
    stage.cut(E, B);
    let thief = stage.steal(E);
    stage.run_for(10_000);
    assert_eq!(stage.view(thief).paused.as_deref(), Some("no in-sync member answers"));
    stage.written(owner, 1);
    assert!(stage.owns(owner));
    assert_eq!(stage.swaps().len(), swaps);
}

/// N7: the session reconnects while a write of the old connection is unread in the replica's socket; it is read
/// after a newer write of the same block was acknowledged.
fn requests_unread_in_an_old_connection_never_execute(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.hold(owner, R0, guest_writes);
    let older = stage.write(owner, 7);
    stage.run_for(10);
    assert_eq!(stage.held(owner, R0), 1);
    stage.hold_no_more(owner, R0);
    stage.reconnect(owner, R0);
    stage.run_until("the older write is acknowledged", |s| s.done(older.id));
    let newer = stage.written(owner, 7);
    stage.release(owner, R0);
    stage.run_for(100);
    assert_eq!((stage.disk(R0, 7), stage.read_now(owner, 7)), (newer, newer));
    assert_eq!(stage.demotions(owner), 0);
}

/// N8: a discard is acknowledged from a volatile cache's volume, then every host loses its power.
fn a_trimmed_block_reads_as_zero_after_the_power_was_lost(play: &Play) {
    let mut stage = Scene::copies(2).cached().stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 3);
    stage.run_for(3000);
    let trim = stage.discard(owner, 3);
    stage.run_until("the discard is acknowledged", |s| s.done(trim));
    stage.vanish(owner);
    stage.power_off(R0);
    stage.power_off(R1);
    stage.start(R0);
    stage.start(R1);
    let next = stage.steal(D);
    stage.serving(next);
    assert_eq!(stage.read_now(next, 3), ZERO);
}

/// N9: both pools are full to the last byte: a trim, a steal and a demotion all work. (What makes them work, the
/// preallocated log, is tested where files are: weft-io's file_pool and weftd's space.)
fn a_volume_in_full_pools_is_trimmed_stolen_and_goes_on_without_a_member(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 1);
    stage.written(owner, 2);
    stage.fill(R0, true);
    stage.fill(R1, true);
    let trim = stage.discard(owner, 2);
    stage.run_until("the trim is acknowledged", |s| s.done(trim));
    let thief = stage.steal(C);
    stage.serving(thief);
    stage.kill(R1);
    assert_eq!(stage.read_now(thief, 1), value);
    assert_eq!(stage.in_sync(), [R0]);
    let rewritten = stage.written(thief, 1);
    assert_eq!((stage.disk(R0, 1), stage.disk(R0, 2)), (rewritten, ZERO));
    stage.close(thief);
}

/// N10: two copies, min_isr 2, one disk dead for good: the guest's write waits. A third host gives a new copy;
/// the join passes the paused write, and one swap brings the new copy in and takes the dead one out.
fn a_paused_write_does_not_block_its_own_rescue(play: &Play) {
    let mut stage = Scene::copies(2).min_isr(2).stage(play);
    let owner = stage.owner(D);
    let before = stage.written(owner, 1);
    stage.lose_disk(R1);
    let paused = stage.write(owner, 2);
    stage.run_for(5000);
    assert_eq!(stage.view(owner).paused.as_deref(), Some("waits for r1: refused: NoReplica"));
    assert!(!stage.done(paused.id));

    stage.hold(owner, R2, guest_writes);
    stage.add(owner, R2, C);
    stage.run_for(1000);
    assert!(stage.held(owner, R2) > 0 && stage.in_sync() == [R0, R1], "admitted without the paused write");
    stage.release(owner, R2);
    stage.run_until("the paused write completes", |s| s.done(paused.id));
    assert_eq!(stage.in_sync(), [R0, R2]);
    assert_eq!((stage.disk(R2, 1), stage.disk(R2, 2)), (before, paused.value));
    let both = |r: &weft_proto::record::Record| {
        let state = |rid| r.replica(rid).map(|e| e.state);
        state(R1) == Some(ReplicaState::InSync) && state(R2) == Some(ReplicaState::InSync)
    };
    assert!(!stage.swaps().iter().any(both), "admission and removal are one swap");
    assert_eq!(stage.view(owner).phase, "serving");
}

/// N11: a write of interval k hangs at r1 for a while, writes of k+1 run on; k seals, its bitmap goes; then r1 is
/// lost with base k. Its copy set when it returns holds what was written in k+1, before and after it left.
fn writes_that_ran_on_while_an_interval_sealed_are_copied_to_who_left_at_that_seal(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 0);
    stage.run_for(3000);
    stage.hold(owner, R1, guest_writes);
    let slow = stage.write(owner, 1);
    stage.run_for(1250);
    stage.hold_no_more(owner, R1);
    let with = stage.written(owner, 20);
    assert!(!stage.done(slow.id));
    let sealed = stage.view(owner).sealed;
    stage.release(owner, R1);
    stage.run_until("the older interval is sealed", |s| s.view(owner).sealed > sealed);
    stage.kill(R1);
    let without = stage.written(owner, 40);
    stage.start(R1);
    stage.run_until("both copies are in sync", |s| s.in_sync() == [R0, R1]);
    assert!(stage.told(owner, |e| *e == Event::ResyncStarted { rid: R1, bytes: 8192 }));
    assert_eq!((stage.disk(R1, 20), stage.disk(R1, 40)), (with, without));
}

/// N12: the owner demotes r1 while r2 joins. The epoch changes under the join; nothing hangs.
fn a_join_survives_the_loss_of_another_member(play: &Play) {
    let mut stage = Scene::copies(3).stage(play);
    let owner = stage.owner(D);
    stage.kill(R2);
    let early = stage.written(owner, 4);
    stage.hold(owner, R2, all_writes);
    stage.start(R2);
    stage.run_until("r2 is copied to", |s| s.held(owner, R2) > 0);
    stage.kill(R1);
    let late = stage.written(owner, 30);
    assert_eq!(stage.in_sync(), [R0]);
    assert_eq!(stage.line(owner, R1), "stale acked=1 sent=2 window=0 [refused]");
    stage.release(owner, R2);
    stage.run_until("r2 is in sync", |s| s.in_sync() == [R0, R2]);
    assert_eq!((stage.disk(R2, 4), stage.disk(R2, 30)), (early, late));
    stage.start(R1);
    stage.run_until("all copies are in sync", |s| s.in_sync() == [R0, R1, R2]);
    stage.close(owner);
}

/// N12, cached mode: r2 has everything and is asked to flush it when r1 is taken out, so that it refuses the flush as
/// one of the past. Found by the simulator: seed 111844.
fn a_flush_that_a_new_epoch_refused_is_asked_of_the_joiner_again(play: &Play) {
    let mut stage = Scene::copies(3).cached().stage(play);
    let owner = stage.owner(D);
    stage.kill(R2);
    let value = stage.written(owner, 4);
    stage.hold(owner, R2, flushes);
    stage.start(R2);
    stage.run_until("r2 is asked to flush", |s| s.held(owner, R2) > 0);
    stage.kill(R1);
    stage.written(owner, 30);
    assert_eq!(stage.in_sync(), [R0]);
    stage.run_for(20);
    stage.release(owner, R2);
    stage.run_until("r2 is in sync", |s| s.in_sync() == [R0, R2]);
    assert_eq!(stage.disk(R2, 4), value);
    assert!(!stage.told(owner, |e| matches!(e, Event::JoinAbandoned { .. })));
}

/// N12, a stale copy is there for seconds before it can join, since a swap's outcome is unknown: it was sent no
/// heartbeats, so that it is not called silent for having answered none. Found by the simulator: seed 114.
fn a_joiner_that_waited_for_its_turn_is_not_silent(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    stage.written(owner, 1);
    stage.next_swaps(&[Fate::AppliedUnknown]);
    stage.add(owner, R2, C);
    stage.run_until("r2 is added", |s| s.state(R2).is_some());
    stage.store_down();
    stage.start(R1);
    stage.run_for(5000);
    stage.hold(owner, R1, promises);
    stage.store_back();
    stage.run_until("r1 is asked to join", |s| s.held(owner, R1) > 0);
    stage.run_for(300);
    stage.release(owner, R1);
    stage.run_until("all copies are in sync", |s| s.in_sync() == [R0, R1, R2]);
    assert!(!stage.told(owner, |e| matches!(e, Event::JoinAbandoned { .. })), "{:?}", stage.events(owner));
}

/// N13: one best-effort write is unread in the joiner's socket and one hangs in its disk; the join is dropped and
/// begins anew over the same connection, after newer writes to both blocks.
fn a_write_stuck_in_a_joiner_never_executes_after_its_join_was_dropped(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    stage.written(owner, 40);
    stage.stall(R1);
    stage.start(R1);
    stage.run_until("r1 joins", |s| s.line(owner, R1).starts_with("joining"));
    let in_disk = stage.written(owner, 5);
    stage.run_for(20);
    stage.hold(owner, R1, guest_writes);
    let unread = stage.written(owner, 6);
    let newer = [stage.write(owner, 5), stage.write(owner, 6)];
    stage.run_until("the join is dropped", |s| s.told(owner, |e| matches!(e, Event::JoinAbandoned { .. })));
    stage.run_until("newer writes go on", |s| newer.iter().all(|w| s.done(w.id)));
    stage.unstall(R1);
    stage.run_for(50);
    stage.release(owner, R1);
    stage.run_until("both copies are in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.disk(R1, 5), stage.disk(R1, 6)), (newer[0].value, newer[1].value));
    let landed = |block: u64| {
        let at = |op: &DiskOp<HeapPayload>| match op {
            DiskOp::Write { offset, data, .. } => {
                let first = block.checked_sub(offset / BLOCK)? as usize * 4096;
                Some(value_of(data.bytes().get(first..first + 4096)?))
            }
            _ => None,
        };
        stage.ran(R1).iter().filter_map(at).collect::<Vec<_>>()
    };
    assert_eq!(landed(5).first(), Some(&in_disk), "the plot needs one that was in the disk");
    assert!(landed(5)[1..].iter().all(|v| *v == newer[0].value), "{:?}", landed(5));
    assert!(!landed(6).contains(&unread), "it was read after its attachment had ended, and was executed");
}

/// N15: the owner is cut off from the store and from r1, but still reads from r0. A thief that reaches r1 only is
/// gone before its wait is over; the next one knows that the thief has ended, and waits all the same.
fn whoever_opens_during_a_thiefs_wait_waits_too(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let old = stage.written(owner, 9);
    stage.run_for(500);
    stage.cut(D, B);
    stage.store_away(&[D]);
    for host in [C, E] {
        stage.cut(host, A);
    }
    let cut_at = stage.now_ms();
    let thief = stage.steal(C);
    stage.run_until("the thief owns", |s| s.owns(thief));
    stage.vanish(thief);
    assert!(stage.record().wait);
    let second = stage.replace(E, thief);
    stage.run_until("the second owns", |s| s.owns(second));
    let owned_at = stage.now_ms();
    let write = stage.write(second, 9);
    let mut last_read = 0;
    while !stage.done(write.id) {
        let read = stage.read(owner, 9);
        stage.run_for(20);
        if let Some(value) = stage.value(read) {
            assert_eq!(value, old);
            last_read = stage.now_ms();
        }
        assert!(stage.now_ms() < cut_at + 10_000, "the second thief's write hangs");
    }
    assert!(last_read > cut_at, "the plot needs an owner that still reads");
    let done = stage.answered_at_ms(write.id).expect("done");
    assert!(done >= owned_at + 2000 && last_read < done, "{last_read} {owned_at} {done}");
    assert!(!stage.told(owner, |e| matches!(e, Event::Demoted { .. })));
}

/// N16: between the thief's read and its contact the owner admits a joiner: replicas have promised more than the
/// record that was read shows. A race: read again, and taken over.
fn a_thief_that_read_just_before_an_admission_is_not_told_of_a_rollback(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    let value = stage.written(owner, 2);
    let before = stage.backup();
    stage.start(R1);
    stage.run_until("r1 is admitted", |s| s.in_sync() == [R0, R1]);
    stage.run_for(50);
    stage.stale_read(before);
    let thief = stage.steal(E);
    stage.serving(thief);
    assert_eq!(stage.read_now(thief, 2), value);
    assert!(matches!(stage.over(owner), EndReason::Fenced { .. }));
}

/// N17: the store is put back and repaired while r1's host is off. Its promise is below the jump, its watermark
/// below the new incarnation: it obeys, and is copied to.
fn a_host_that_was_off_accepts_the_repaired_store(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let backup = stage.backup();
    let owner = stage.owner(D);
    stage.written(owner, 0);
    stage.power_off(R1);
    let value = stage.written(owner, 1);
    stage.vanish(owner);
    stage.restore(backup);
    stage.repair(false).expect("the best copy names r0 only");
    let next = stage.steal(E);
    stage.serving(next);
    stage.start(R1);
    stage.run_until("r1 is in sync again", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.disk(R1, 1), stage.read_now(next, 1)), (value, value));
    assert!(stage.durable(R1).promised > Epoch(REPAIR_EPOCH_JUMP));
}

/// N18: r1 crashes while it cuts itself, and has its old size when the volume grows again.
fn what_a_shrink_left_at_a_copy_that_crashed_reads_as_zero_when_the_volume_grows(play: &Play) {
    let mut stage = Scene::copies(2).min_isr(2).stage(play);
    let owner = stage.owner(D);
    let (low, high) = (stage.written(owner, 5), stage.written(owner, 40));
    stage.close(owner);
    let caretaker = stage.caretaker(C);
    stage.stall(R1);
    stage.resized(caretaker, 32);
    stage.run_until("r0 has cut itself", |s| s.durable(R0).size == 32 * BLOCK);
    assert_eq!((stage.disk(R0, 40), stage.disk(R1, 40)), (ABSENT, high));
    stage.kill(R1);
    stage.unstall(R1);
    stage.start(R1);
    stage.resized(caretaker, 48);
    assert_eq!(stage.in_sync(), [R0, R1]);
    assert_eq!((stage.disk(R1, 5), stage.disk(R1, 40)), (low, ABSENT), "the old data came back");
    stage.close(caretaker);
    let owner = stage.owner(D);
    assert_eq!(stage.read_now(owner, 40), ABSENT);
    assert_eq!(stage.read_now(owner, 5), low);
    stage.close(owner);
}

/// N18: r1 misses the shrink, and then the growth; who brings it back is the same session, or the next one.
fn what_a_shrink_left_at_a_copy_that_was_away_reads_as_zero_when_the_volume_has_grown(play: &Play) {
    for anew in [false, true] {
        let mut stage = Scene::copies(2).stage(play);
        let owner = stage.owner(D);
        stage.written(owner, 5);
        stage.close(owner);
        let mut caretaker = stage.caretaker(C);
        let high = stage.written(caretaker, 40);
        stage.run_for(3000);
        stage.kill(R1);
        stage.resized(caretaker, 32);
        assert_eq!((stage.in_sync(), stage.disk(R1, 40)), (vec![R0], high));
        stage.resized(caretaker, 48);
        if anew {
            stage.close(caretaker);
            caretaker = stage.owner(D);
        }
        stage.start(R1);
        stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
        assert_eq!((stage.disk(R0, 40), stage.disk(R1, 40)), (ABSENT, ABSENT), "another session: {anew}");
        let value = stage.written(caretaker, 41);
        assert_eq!(stage.disk(R1, 41), value);
        stage.close(caretaker);
    }
}

/// N18: nothing is cut before the record says so.
fn a_shrink_that_never_reached_the_store_costs_nothing(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let high = stage.written(owner, 40);
    stage.close(owner);
    let caretaker = stage.caretaker(C);
    stage.store_refuses(&[C]);
    stage.resize(caretaker, 32);
    stage.run_for(1000);
    stage.vanish(caretaker);
    stage.store_back();
    let owner = stage.steal(D);
    stage.serving(owner);
    assert_eq!((stage.record().size, stage.read_now(owner, 40)), (48 * BLOCK, high));
}

/// N21: min_isr 2, one disk dead for good, and the owner's host reboots: it opens paused, joins a new copy, and
/// only then serves.
fn a_volume_with_too_few_copies_opens_paused_and_is_rescued(play: &Play) {
    let mut stage = Scene::copies(2).min_isr(2).stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 1);
    stage.lose_disk(R1);
    stage.vanish(owner);
    let next = stage.replace(D, owner);
    let write = stage.write(next, 2);
    let read = stage.read(next, 1);
    stage.run_for(10_000);
    assert!(stage.owns(next) && stage.view(next).phase == "opening");
    assert_eq!(stage.view(next).paused.as_deref(), Some("fewer in-sync members than min_isr"));
    assert_eq!(stage.line(next, R1), "in-sync acked=0 sent=0 window=0 [attaching] [NoReplica]");
    assert!(stage.reply(write.id).is_none() && stage.reply(read).is_none());

    stage.add(next, R2, C);
    stage.serving(next);
    assert_eq!(stage.in_sync(), [R0, R2]);
    stage.run_until("the guest goes on", |s| s.done(write.id) && s.value(read) == Some(value));
    assert_eq!((stage.disk(R2, 1), stage.disk(R2, 2)), (value, write.value));
}

/// N21, and the same without the reboot: before the new copy was given the volume was asked to grow, which waits for the
/// dead copy that the new one replaces. Found by the simulator: seed 3757448 of ca386ea.
fn a_growth_that_waits_for_a_dead_copy_does_not_hold_up_the_new_one(play: &Play) {
    for reopened in [false, true] {
        let mut stage = Scene::copies(2).min_isr(2).blocks(16).stage(play);
        let owner = stage.owner(D);
        let value = stage.written(owner, 1);
        stage.lose_disk(R1);
        let next = if reopened {
            stage.vanish(owner);
            stage.replace(D, owner)
        } else {
            owner
        };
        let write = stage.write(next, 2);
        stage.resize(next, 32);
        stage.run_for(10_000);
        assert!(!stage.done(write.id) && !stage.is_resized(next, 32));

        stage.add(next, R2, C);
        stage.run_until("the guest goes on", |s| s.done(write.id));
        assert_eq!(stage.in_sync(), [R0, R2]);
        stage.run_until("the volume has grown", |s| s.is_resized(next, 32));
        assert_eq!((stage.disk(R2, 1), stage.disk(R2, 2)), (value, write.value));
    }
}
