//! Plots P1 to P6 of docs/scenarios.md (caches and power).

use crate::scenarios::plots;
use crate::stage::{
    B, C, D, Fate, Play, R0, R1, R2, Scene, Stage, Who, copies, flushes, guest_writes, reads,
};
use weft_proto::guest::{GuestError, GuestOp};
use weft_proto::message::Ask;
use weft_proto::payload::{BLOCK, HeapPayload, Payload};
use weft_proto::session::{EndReason, Event};

plots! {
    P1 => every_acknowledged_write_survives_the_loss_of_all_power,
    P2 => a_member_that_lost_its_cache_is_copied_to,
    P2 => a_joiner_that_lost_its_cache_while_its_admission_was_unknown_is_copied_to,
    P2 => a_rescue_ends_when_the_member_that_it_would_replace_is_back_without_its_cache,
    P2 => the_only_member_that_kept_its_cache_is_not_taken_out,
    P2 => a_member_that_may_not_be_taken_out_is_brought_what_it_lost,
    P2 => what_is_under_way_when_a_member_loses_its_cache_reaches_it_anew,
    P2 => what_a_member_lost_is_found_again_after_another_loss_and_by_the_next_owner,
    P3 => a_guest_is_told_when_every_cache_is_lost,
    P3 => a_guest_is_told_when_the_last_cache_is_lost_before_the_others_have_it,
    P3 => a_cache_that_was_lost_before_the_last_seal_is_not_missed,
    P4 => flushed_data_survives_the_loss_of_all_caches_and_copies_are_equal,
    P5 => a_member_whose_process_crashed_keeps_its_cache,
    P6 => a_member_that_was_shut_down_in_order_is_trusted,
    P8 => what_may_differ_is_found_again_after_a_crash_in_the_middle_of_equalising,
}

fn flush(stage: &mut Stage, who: Who) {
    let id = stage.submit(who, GuestOp::Flush);
    stage.run_until("a flush is answered", |s| s.done(id));
}

/// P1: durable mode; all hosts lose power under load, with one write on r0 only and one on r1 only.
fn every_acknowledged_write_survives_the_loss_of_all_power(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let values: Vec<u64> = (0..40).map(|block| stage.written(owner, block)).collect();
    stage.hold(owner, R1, guest_writes);
    stage.write(owner, 3);
    stage.run_for(5);
    stage.hold_no_more(owner, R1);
    stage.hold(owner, R0, guest_writes);
    stage.write(owner, 20);
    stage.run_for(5);
    stage.vanish(owner);
    for rid in [R0, R1] {
        stage.power_off(rid);
        stage.start(rid);
    }
    let next = stage.steal(C);
    stage.serving(next);
    assert_eq!(stage.view(next).dirty_regions, 3, "every region was written since the last seal");
    for (block, value) in (0..40).zip(values) {
        let read = stage.read_now(next, block);
        assert!(read == value || block == 3 || block == 20, "block {block} is lost");
        assert_eq!((stage.disk(R0, block), stage.disk(R1, block)), (read, read), "block {block}");
    }
    stage.run_until("nothing may differ", |s| s.view(next).dirty_regions == 0);
}

/// P2: cached mode; r1 loses power and is back within half a second, r0 and the owner are well. r1 acknowledged
/// what it no longer has: it is taken out with the last seal as its base, and brought everything since.
fn a_member_that_lost_its_cache_is_copied_to(play: &Play) {
    let mut stage = Scene::copies(2).cached().stage(play);
    let owner = stage.owner(D);
    let early = stage.written(owner, 1);
    stage.run_for(3000);
    let late = stage.written(owner, 2);
    stage.power_off(R1);
    assert_eq!((stage.disk(R1, 1), stage.disk(R1, 2)), (early, 0));
    stage.run_for(300);
    stage.start(R1);
    stage.run_until("r1 is taken out", |s| s.in_sync() == [R0]);
    let base = stage.record().replica(R1).expect("it is stale").base;
    assert_eq!(base, stage.view(owner).sealed);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.disk(R1, 1), stage.disk(R1, 2)), (early, late));
    assert_eq!(stage.view(owner).figures.resynced_bytes, 4096);
}

/// P2, R14: r1's admission was applied, which the owner does not know. r1 acknowledges a write, loses power and is back
/// before the owner learns that it was in sync: it is taken out all the same, and its hole is read by nobody.
fn a_joiner_that_lost_its_cache_while_its_admission_was_unknown_is_copied_to(play: &Play) {
    let mut stage = Scene::copies(2).cached().stage(play);
    let owner = stage.owner(B);
    stage.kill(R1);
    stage.written(owner, 1);
    stage.run_until("r1 is taken out", |s| s.in_sync() == [R0]);
    stage.next_swaps(&[Fate::AppliedUnknown]);
    stage.start(R1);
    stage.run_until("the admission is applied", |s| s.in_sync() == [R0, R1]);
    stage.store_down();
    let late = stage.written(owner, 2);
    stage.power_off(R1);
    assert_eq!(stage.disk(R1, 2), 0);
    stage.run_for(300);
    stage.start(R1);
    stage.run_for(1000);
    let taken_out = stage.demotions(owner);
    stage.store_back();
    stage.run_until("r1 is taken out again", |s| s.demotions(owner) > taken_out);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.disk(R1, 2), stage.read_now(owner, 2)), (late, late));
    stage.close(owner);
}

/// P2, N21: cached mode, min_isr 2; r0 has lost its cache and is silent when the volume is opened, so that r1 is copied to
/// from r2. Then r0 is back: it is brought what only r2 has, before anybody else is copied to or taken out.
fn a_rescue_ends_when_the_member_that_it_would_replace_is_back_without_its_cache(play: &Play) {
    let mut stage = Scene::copies(3).min_isr(2).cached().stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    stage.written(owner, 5);
    stage.run_for(3000);
    let late = stage.written(owner, 7);
    stage.power_off(R0);
    stage.vanish(owner);
    stage.start(R1);
    let next = stage.replace(D, owner);
    stage.hold(next, R1, copies);
    stage.run_until("r1 is copied to from r2", |s| s.held(next, R1) > 0);
    stage.start(R0);
    stage.serving(next);
    stage.kill(R2);
    stage.release(next, R1);
    stage.run_for(3000);
    assert_eq!(stage.in_sync(), [R0, R2], "r2 alone has the last write");
    stage.start(R2);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1, R2]);
    assert_eq!(stage.read_now(next, 7), late);
    assert_eq!([R0, R1, R2].map(|rid| stage.disk(rid, 7)), [late; 3]);
}

/// P2: cached mode, min_isr 2; r0 and r1 have lost their caches, and before they were brought what only r2 has, it is
/// killed. Two members would be enough, but not these two: the volume waits for r2 (R8).
fn the_only_member_that_kept_its_cache_is_not_taken_out(play: &Play) {
    let mut stage = Scene::copies(3).min_isr(2).cached().stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    stage.run_for(3000);
    let late = stage.written(owner, 7);
    stage.vanish(owner);
    for rid in [R0, R1] {
        stage.power_off(rid);
        stage.start(rid);
    }
    let next = stage.replace(D, owner);
    stage.serving(next);
    stage.kill(R2);
    stage.remove(next, R2);
    stage.run_for(3000);
    assert_eq!(stage.in_sync(), [R0, R1, R2]);
    stage.start(R2);
    assert_eq!(stage.read_now(next, 7), late);
    assert_eq!([R0, R1, R2].map(|rid| stage.disk(rid, 7)), [late; 3]);
}

/// P2, I30: cached mode, min_isr 2 of 2; r0 loses power after a seal. It may not be taken out: its session brings it what it
/// lost, from r1, while the guest waits, and everybody is sealed anew.
fn a_member_that_may_not_be_taken_out_is_brought_what_it_lost(play: &Play) {
    let mut stage = Scene::copies(2).min_isr(2).cached().stage(play);
    let owner = stage.owner(D);
    let early = stage.written(owner, 5);
    stage.run_for(3000);
    let sealed = stage.view(owner).sealed;
    let late = stage.written(owner, 7);
    stage.power_off(R0);
    assert_eq!((stage.disk(R0, 5), stage.disk(R0, 7)), (early, 0));
    stage.run_for(300);
    stage.start(R0);
    assert_eq!(stage.read_now(owner, 7), late);
    let next = stage.written(owner, 7);
    stage.run_until("it is sealed", |s| s.view(owner).sealed > sealed && s.view(owner).dirty_regions == 0);
    assert_eq!((stage.demotions(owner), stage.in_sync()), (0, vec![R0, R1]));
    assert_eq!([R0, R1].map(|rid| stage.disk(rid, 7)), [next; 2]);
    // The seal says that nothing is missed any more: r1 may lose its own cache now.
    stage.run_for(300);
    stage.power_off(R1);
    stage.start(R1);
    assert_eq!((stage.read_now(owner, 7), stage.ended(owner)), (next, None));
    stage.run_for(3000);
    stage.close(owner);
    assert_eq!([R0, R1].map(|rid| stage.disk(rid, 7)), [next; 2]);
}

/// P2: as before, with a write and a flush that r0 has acknowledged and r1 has not, and a small write whose block is still
/// to be read: r0 gets the write anew, the block's rest is read from r1, and the flush covers what r0 was brought.
fn what_is_under_way_when_a_member_loses_its_cache_reaches_it_anew(play: &Play) {
    let mut stage = Scene::copies(2).min_isr(2).cached().stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    stage.run_for(3000);
    let late = [7, 40].map(|block| stage.written(owner, block));
    stage.hold(owner, R0, reads);
    let mut data = HeapPayload::zeroed(512);
    data.bytes_mut().fill(0x77);
    let small = stage.submit(owner, GuestOp::Write { offset: 7 * BLOCK + 512, data, fua: false });
    stage.run_until("the block's rest is asked for", |s| s.held(owner, R0) > 0);
    stage.hold_no_more(owner, R0);
    stage.hold(owner, R0, flushes);
    stage.hold(owner, R1, |ask| guest_writes(ask) || flushes(ask));
    let write = stage.write(owner, 9);
    let flush = stage.submit(owner, GuestOp::Flush);
    stage.run_for(20);
    assert_eq!(stage.disk(R0, 9), write.value);
    stage.power_off(R0);
    stage.hold_no_more(owner, R0);
    stage.hold(owner, R0, copies);
    stage.start(R0);
    stage.run_until("r0 is copied to", |s| s.held(owner, R0) > 0);
    stage.release(owner, R1);
    stage.run_for(300);
    assert!(!stage.done(flush), "r0 lacks what the guest wrote before");
    stage.release(owner, R0);
    stage.run_until("all is answered", |s| s.done(small) && s.done(write.id) && s.done(flush));
    for rid in [R0, R1] {
        stage.power_off(rid);
        assert_eq!([7, 40, 9].map(|block| stage.disk(rid, block)), [late[0], late[1], write.value], "{rid}");
    }
}

/// P2: r0 loses its cache again while it is brought what it lost; then the owner dies. The next one sees that r0 lacks
/// something as long as no seal has been.
fn what_a_member_lost_is_found_again_after_another_loss_and_by_the_next_owner(play: &Play) {
    let mut stage = Scene::copies(2).min_isr(2).cached().stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    stage.run_for(3000);
    let late = [7, 40].map(|block| stage.written(owner, block));
    stage.power_off(R0);
    stage.hold(
        owner,
        R0,
        |ask| matches!(ask, Ask::Write { offset, copy: true, .. } if *offset == 40 * BLOCK),
    );
    stage.start(R0);
    stage.run_until("block 7 is brought", |s| s.disk(R0, 7) == late[0] && s.held(owner, R0) > 0);
    stage.power_off(R0);
    assert_eq!(stage.disk(R0, 7), 0);
    stage.start(R0);
    stage.run_until("block 7 is brought again", |s| s.disk(R0, 7) == late[0] && s.held(owner, R0) > 0);
    stage.vanish(owner);
    let next = stage.replace(C, owner);
    stage.serving(next);
    assert_eq!([7, 40].map(|block| stage.read_now(next, block)), late);
    stage.run_until("nothing may differ", |s| s.view(next).dirty_regions == 0);
    assert_eq!([R0, R1].map(|rid| [stage.disk(rid, 7), stage.disk(rid, 40)]), [late; 2]);
    stage.close(next);
}

/// P3: r0 has lost its cache and is not yet brought everything when r1 loses its own: nobody has what the guest wrote.
fn a_guest_is_told_when_the_last_cache_is_lost_before_the_others_have_it(play: &Play) {
    let mut stage = Scene::copies(2).min_isr(2).cached().stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    stage.power_off(R0);
    stage.hold(owner, R0, copies);
    stage.start(R0);
    stage.run_until("r0 is copied to", |s| s.held(owner, R0) > 0);
    stage.power_off(R1);
    let read = stage.read(owner, 5);
    stage.run_for(300);
    assert!(stage.reply(read).is_none());
    stage.start(R1);
    assert_eq!(stage.over(owner), EndReason::CachesLost);
    assert_eq!(stage.failure(read), Some(GuestError::Fenced));
}

/// P3: cached mode; both members lose power, the owner and its guest live on. What the guest believes to be
/// written is gone: it gets a device error instead of an old disk.
fn a_guest_is_told_when_every_cache_is_lost(play: &Play) {
    let mut stage = Scene::copies(2).cached().stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 1);
    for rid in [R0, R1] {
        stage.power_off(rid);
    }
    let read = stage.read(owner, 1);
    stage.run_for(3000);
    assert!(stage.reply(read).is_none());
    for rid in [R0, R1] {
        stage.start(rid);
    }
    assert_eq!(stage.over(owner), EndReason::CachesLost);
    assert_eq!(stage.failure(read), Some(GuestError::Fenced));
}

/// P3, one after the other: r1 lost its cache, was brought up to date and sealed; then r0 loses its own. Everything is on
/// r1, so that the guest goes on and r0 is copied to.
fn a_cache_that_was_lost_before_the_last_seal_is_not_missed(play: &Play) {
    let mut stage = Scene::copies(2).cached().stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 1);
    stage.power_off(R1);
    stage.run_for(300);
    stage.start(R1);
    stage.run_until("r1 is taken out", |s| s.in_sync() == [R0]);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    stage.run_for(3000);
    let late = stage.written(owner, 2);
    stage.power_off(R0);
    stage.run_for(300);
    stage.start(R0);
    stage.run_until("r0 is taken out", |s| s.in_sync() == [R1]);
    stage.run_until("r0 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.ended(owner), stage.read_now(owner, 2), stage.disk(R0, 2)), (None, late, late));
}

/// P4: cached mode; everybody loses power, the owner too. What was flushed is there, the rest may be gone, and the
/// copies agree on which.
fn flushed_data_survives_the_loss_of_all_caches_and_copies_are_equal(play: &Play) {
    let mut stage = Scene::copies(2).cached().stage(play);
    let owner = stage.owner(D);
    let flushed = stage.written(owner, 1);
    flush(&mut stage, owner);
    let unflushed = stage.written(owner, 2);
    stage.vanish(owner);
    // By chance r1's kernel had written everything back.
    stage.power_off(R0);
    stage.shut_down(R1);
    stage.power_off(R1);
    assert_eq!((stage.disk(R0, 2), stage.disk(R1, 2)), (0, unflushed), "the plot needs copies that differ");
    stage.start(R0);
    stage.start(R1);
    let next = stage.steal(C);
    stage.serving(next);
    assert_eq!(stage.read_now(next, 1), flushed);
    let read = stage.read_now(next, 2);
    assert!(read == 0 || read == unflushed);
    assert_eq!((stage.disk(R0, 2), stage.disk(R1, 2)), (read, read));
    assert_eq!(stage.in_sync(), [R0, R1]);
}

/// P5: cached mode; r1's process is killed, its kernel and its cache live on: not lossy, as M1.
fn a_member_whose_process_crashed_keeps_its_cache(play: &Play) {
    let mut stage = Scene::copies(2).cached().stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 1);
    stage.kill_after_io(R1);
    stage.start(R1);
    stage.run_for(3000);
    assert_eq!((stage.demotions(owner), stage.in_sync()), (0, vec![R0, R1]));
    assert_eq!((stage.disk(R1, 1), stage.read_now(owner, 1)), (value, value));
}

/// P6: cached mode; r0's host is rebooted in order while nobody has the volume open; its stop flushed everything.
fn a_member_that_was_shut_down_in_order_is_trusted(play: &Play) {
    let mut stage = Scene::copies(2).cached().stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 1);
    stage.vanish(owner);
    stage.shut_down(R0);
    stage.start(R0);
    let next = stage.steal(C);
    stage.serving(next);
    assert!(!stage.told(next, |e| matches!(e, Event::Demoted { .. })));
    assert_eq!((stage.in_sync(), stage.read_now(next, 1)), (vec![R0, R1], value));
}

/// P8: while the new owner equalises two regions, every host loses power; the next one finds all that is left.
fn what_may_differ_is_found_again_after_a_crash_in_the_middle_of_equalising(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let old = [stage.written(owner, 3), stage.written(owner, 20)];
    stage.run_for(3000);
    stage.hold(owner, R1, guest_writes);
    let torn = [stage.write(owner, 3), stage.write(owner, 20)];
    stage.run_for(5);
    stage.vanish(owner);
    let next = stage.replace(C, owner);
    for rid in [R0, R1] {
        stage.hold(
            next,
            rid,
            |ask| matches!(ask, Ask::Write { offset, copy: true, .. } if *offset == 20 * BLOCK),
        );
    }
    stage.serving(next);
    assert_eq!(stage.view(next).dirty_regions, 2);
    let seen = stage.read_now(next, 3);
    stage.vanish(next);
    for rid in [R0, R1] {
        stage.power_off(rid);
        stage.start(rid);
    }
    let last = stage.steal(D);
    stage.serving(last);
    assert!(stage.view(last).dirty_regions >= 1, "block 20 still differs");
    assert_eq!(stage.read_now(last, 3), seen);
    for (i, block) in [3, 20].into_iter().enumerate() {
        let read = stage.read_now(last, block);
        assert!(read == old[i] || read == torn[i].value);
        assert_eq!((stage.disk(R0, block), stage.disk(R1, block)), (read, read));
    }
}
