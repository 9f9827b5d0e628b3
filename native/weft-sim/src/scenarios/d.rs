//! Plots D1 to D9, D15 and D20 of docs/scenarios.md (data operations), as far as they concern built parts.

use crate::disk::bytes_of;
use crate::oracle::{ABSENT, ZERO};
use crate::scenarios::plots;
use crate::stage::{A, B, C, D, Play, R0, R1, R2, Scene, Stage, all_writes, grows, guest_writes, hashes};
use std::collections::BTreeMap;
use weft_proto::ids::Rid;

use weft_proto::guest::{GuestError, GuestOp};
use weft_proto::payload::{BLOCK, HeapPayload, Payload};
use weft_proto::replica::{DiskError, DiskOp};
use weft_proto::session::Event;

plots! {
    D1 => a_guest_that_changes_its_buffer_during_a_write_does_not_split_the_members,
    D2 => overlapping_writes_happen_in_one_order_on_all_members,
    D3 => small_writes_to_one_block_do_not_undo_each_other,
    D4 => a_write_over_a_border_that_was_torn_is_the_same_on_all,
    D6 => a_discard_during_a_resync_stays_a_hole,
    D7 => a_rotten_block_is_read_from_another_member,
    D7 => a_read_of_blocks_that_are_each_rotten_somewhere_is_put_together,
    D7 => a_small_write_beside_rot_takes_the_rest_of_its_block_from_another_member,
    D7 => a_rotten_block_of_what_may_differ_is_taken_from_who_has_it,
    D7 => a_rotten_block_is_brought_to_a_joiner_by_another_member,
    D7 => a_scrub_finds_what_nobody_reads_and_mends_it,
    D7 => a_scrub_mends_each_copy_from_one_that_has_the_block,
    D7 => a_block_of_holes_is_mended_as_a_hole,
    D7 => a_hole_is_no_other_block_than_zeroes,
    D7 => a_member_that_can_not_be_mended_is_taken_out_and_resynced,
    D7 => a_member_that_dies_while_it_is_mended_is_brought_the_block,
    D7 => an_owner_that_dies_while_it_mends_leaves_nothing_different,
    D7 => a_caretaker_scrubs_a_volume_that_nobody_uses,
    D7 => copies_that_differ_are_told_and_never_written,
    D8 => a_block_that_rots_at_the_only_good_copy_is_refused_alone,
    D8 => a_rotten_block_that_a_joiner_needs_waits_for_its_next_write,
    D8 => a_guest_is_told_of_a_rotten_block_while_it_is_rotten,
    D8 => a_scrub_tells_what_no_copy_has_and_goes_on,
    D9 => a_bit_that_flips_on_its_way_is_never_stored,
    D13 => a_growth_whose_owner_dies_before_the_record_has_grown_leaves_nothing_behind,
    D13 => a_volume_has_its_new_size_when_every_member_has_grown,
    D13 => a_growth_outlasts_the_loss_of_a_member,
    D13 => a_growth_waits_for_no_copy_that_is_being_brought_back,
    D13 => a_volume_grows_beyond_the_regions_that_it_was_made_with,
    D13 => regions_are_folded_when_none_of_them_may_differ,
    D14 => io_past_the_old_end_reaches_a_copy_that_was_small,
    D15 => a_scrub_among_writes_at_full_speed_finds_nothing,
    D15 => a_write_that_is_on_its_way_is_no_difference,
    D15 => a_guest_waits_for_no_look_that_hangs,
    D15 => a_scrub_keeps_to_its_rate_and_asks_nothing_of_holes,
    D20 => copies_come_and_go_while_a_guest_writes,
}

/// D1: the guest scribbles over the buffer after it submitted it, between the sendings to r0 and to r1.
fn a_guest_that_changes_its_buffer_during_a_write_does_not_split_the_members(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let mut buffer = bytes_of(&[4711]);
    stage.hold(owner, R1, guest_writes);
    let write = stage.submit(owner, GuestOp::Write { offset: 5 * BLOCK, data: buffer.clone(), fua: false });
    buffer.bytes_mut().fill(0xFF);
    stage.run_for(10);
    stage.release(owner, R1);
    stage.run_until("the write is acknowledged", |s| s.done(write));
    assert_eq!((stage.disk(R0, 5), stage.disk(R1, 5)), (4711, 4711));
}

/// D2: three writes that overlap are asked at once, and the links are differently slow.
fn overlapping_writes_happen_in_one_order_on_all_members(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.hold(owner, R1, guest_writes);
    let writes = [stage.write_run(owner, 5, 3), stage.write_run(owner, 6, 3), stage.write_run(owner, 4, 3)];
    stage.run_for(200);
    stage.release(owner, R1);
    stage.hold(owner, R0, guest_writes);
    stage.run_for(200);
    stage.release(owner, R0);
    stage.run_until("all are acknowledged", |s| writes.iter().all(|w| s.done(w.id)));
    let [a, b, c] = writes.map(|w| w.value);
    let held = |rid| (4..9).map(|block| stage.disk(rid, block)).collect::<Vec<_>>();
    assert_eq!(
        (held(R0), held(R1)),
        (vec![c, c + 1, c + 2, b + 1, b + 2], vec![c, c + 1, c + 2, b + 1, b + 2])
    );
    assert!(a < b);
}

/// D3: 32 writes of 512 bytes at once, four times over every sector of a block, the first sector's among them.
fn small_writes_to_one_block_do_not_undo_each_other(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 7);
    let mut last = 0;
    let writes: Vec<_> = (0..32u64)
        .map(|i| {
            let sector = (i * 5 + 3) % 8;
            let mut data = HeapPayload::zeroed(512);
            data.bytes_mut()[..8].copy_from_slice(&(9000 + i).to_le_bytes());
            if sector == 0 {
                last = 9000 + i;
            }
            stage.submit(owner, GuestOp::Write { offset: 7 * BLOCK + sector * 512, data, fua: false })
        })
        .collect();
    stage.run_until("all are acknowledged", |s| writes.iter().all(|id| s.done(*id)));
    assert!(last > 0);
    assert_eq!((stage.disk(R0, 7), stage.disk(R1, 7)), (last, last));
    let sizes = stage.ran(R1).iter().filter_map(|op| match op {
        DiskOp::Write { data, .. } => Some(data.len()),
        _ => None,
    });
    assert!(sizes.into_iter().all(|len| len == 4096), "members get whole blocks");
}

/// D4: a write of 256 KiB is cut into two messages and covers the borders of regions; the owner crashes when r0 has
/// both and r1 the second only. Every block is the old or the new one, and equal everywhere.
fn a_write_over_a_border_that_was_torn_is_the_same_on_all(play: &Play) {
    let mut stage = Scene::copies(2).blocks(96).stage(play);
    let owner = stage.owner(D);
    let old = stage.write_run(owner, 8, 64);
    stage.run_until("the old one is acknowledged", |s| s.done(old.id));
    stage.run_for(3000);
    stage.hold(owner, R1, |ask| {
        matches!(ask, weft_proto::message::Ask::Write { offset, copy: false, .. } if *offset == 8 * BLOCK)
    });
    let torn = stage.write_run(owner, 8, 64);
    stage.run_for(10);
    stage.vanish(owner);
    assert_eq!((stage.disk(R1, 10), stage.disk(R1, 70)), (old.value + 2, torn.value + 62));
    let next = stage.steal(C);
    stage.serving(next);
    stage.run_until("nothing may differ", |s| s.view(next).dirty_regions == 0);
    for block in 8..72 {
        let read = stage.read_now(next, block);
        assert!(read == old.value + block - 8 || read == torn.value + block - 8, "block {block}");
        assert_eq!((stage.disk(R0, block), stage.disk(R1, block)), (read, read), "block {block}");
    }
}

/// D6: a block is on its way to a joiner when the guest discards it: the discard waits for the copy, and the hole
/// is there on both; blocks that were never written stay absent.
fn a_discard_during_a_resync_stays_a_hole(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    for block in 0..32 {
        stage.written(owner, block);
    }
    stage.hold(owner, R1, all_writes);
    stage.start(R1);
    stage.run_until("copies are on their way", |s| s.held(owner, R1) > 0);
    let discard = stage.discard(owner, 3);
    stage.run_for(200);
    assert!(!stage.done(discard), "its range is being copied");
    stage.release(owner, R1);
    stage.run_until("both are in sync", |s| s.done(discard) && s.in_sync() == [R0, R1]);
    assert_eq!((stage.disk(R0, 3), stage.disk(R1, 3)), (ZERO, ZERO));
    for block in 0..48 {
        assert_eq!(stage.disk(R0, block), stage.disk(R1, block), "block {block}");
    }
    assert_eq!(stage.read_now(owner, 3), ZERO);
}

/// D9: a write arrives at r1 with a flipped bit: refused, sent again, and nobody is demoted for it.
fn a_bit_that_flips_on_its_way_is_never_stored(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.flip_a_bit(owner, R1);
    let write = stage.write(owner, 5);
    stage.run_for(5);
    assert!(!stage.done(write.id));
    assert!(!stage.ran(R1).iter().any(|op| matches!(op, DiskOp::Write { .. })), "it was stored");
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    assert_eq!((stage.disk(R1, 5), stage.demotions(owner)), (write.value, 0));
    assert_eq!(stage.line(owner, R1), "in-sync acked=1 sent=2 window=0");
}

/// D7: r0's stored block fails its checksum. The guest is given r1's, and so is r0.
fn a_rotten_block_is_read_from_another_member(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(A);
    let value = stage.written(owner, 5);
    stage.rot(R0, 5);
    assert_eq!(stage.read_now(owner, 5), value);
    stage.run_until("r0 has it again", |s| !s.is_rotten(R0, 5) && s.told(owner, mended));
    assert_eq!((stage.disk(R0, 5), stage.demotions(owner)), (value, 0));
    let figures = stage.view(owner).figures;
    assert_eq!((figures.rotten_blocks, figures.repaired_blocks, figures.lost_blocks), (1, 1, 0));
    assert_eq!(writes_to(&stage, R1, 5), 1, "what was good was written again");
    assert_eq!(stage.view(owner).scrub, None);
    stage.close(owner);
}

fn mended(event: &Event) -> bool {
    matches!(event, Event::Rotten { mended: true, .. })
}

/// How often a replica's disk wrote a block.
fn writes_to(stage: &Stage, rid: Rid, block: u64) -> usize {
    let writes = |op: &&DiskOp<HeapPayload>| match op {
        DiskOp::Write { offset, data, .. } => {
            (*offset..*offset + data.len() as u64).contains(&(block * BLOCK))
        }
        DiskOp::Zero { offset, len, .. } => (*offset..*offset + *len).contains(&(block * BLOCK)),
        _ => false,
    };
    stage.ran(rid).iter().filter(writes).count()
}

/// D7: nobody reads what rots. The scrub finds it on either member, and writes it from the other; nothing else.
fn a_scrub_finds_what_nobody_reads_and_mends_it(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(A);
    let values: Vec<_> = (0..40).map(|block| stage.written(owner, block)).collect();
    stage.rot(R0, 5);
    stage.rot(R0, 6);
    stage.rot(R1, 33);
    let written = |stage: &Stage| (0..40).map(|b| writes_to(stage, R0, b) + writes_to(stage, R1, b)).sum();
    let before: usize = written(&stage);
    stage.scrub(owner, None);
    let scrub = stage.scrubbed(owner);
    assert_eq!((scrub.done, scrub.total, scrub.compared), (48 * BLOCK, 48 * BLOCK, 40 * BLOCK));
    assert_eq!(scrub.members, [(R0, 2, 2), (R1, 1, 1)]);
    assert_eq!((scrub.rotten, scrub.repaired, scrub.divergent, scrub.lost), (3, 3, 0, 0));
    let after: usize = written(&stage);
    assert_eq!(after - before, 3, "the bad copies, and nothing else");
    for (block, value) in (0..40).zip(values) {
        assert_eq!((stage.disk(R0, block), stage.disk(R1, block)), (value, value), "block {block}");
        assert!(!stage.is_rotten(R0, block) && !stage.is_rotten(R1, block), "block {block}");
    }
    assert_eq!(stage.demotions(owner), 0);
    // Asked again: there is nothing left to find.
    stage.scrub(owner, None);
    let again = stage.scrubbed(owner);
    assert_eq!((again.rotten, again.compared), (0, 40 * BLOCK));
    stage.close(owner);
}

/// D7, three copies: each has lost another block, and one block is left on one of them only.
fn a_scrub_mends_each_copy_from_one_that_has_the_block(play: &Play) {
    let mut stage = Scene::copies(3).stage(play);
    let owner = stage.owner(D);
    let values: Vec<_> = (0..4).map(|block| stage.written(owner, block)).collect();
    for (rid, block) in [(R0, 0), (R1, 1), (R2, 2), (R0, 3), (R1, 3)] {
        stage.rot(rid, block);
    }
    stage.scrub(owner, None);
    let scrub = stage.scrubbed(owner);
    assert_eq!(scrub.members, [(R0, 2, 2), (R1, 2, 2), (R2, 1, 1)]);
    for (block, value) in (0..4).zip(values) {
        for rid in [R0, R1, R2] {
            assert_eq!((stage.disk(rid, block), stage.is_rotten(rid, block)), (value, false));
        }
    }
    stage.close(owner);
}

/// D7, the block was discarded; what r0 keeps of that is damaged. It is a hole again, not zeroes.
fn a_block_of_holes_is_mended_as_a_hole(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    stage.written(owner, 4);
    let discard = stage.discard(owner, 4);
    stage.run_until("it is discarded", |s| s.done(discard));
    stage.rot(R0, 4);
    let read = stage.read_run(owner, 4, 2);
    stage.run_until("the read is answered", |s| s.reply(read).is_some());
    stage.run_until("r0 has it again", |s| !s.is_rotten(R0, 4) && s.told(owner, mended));
    assert_eq!((stage.disk(R0, 4), stage.disk(R1, 4)), (ZERO, ZERO));
    let zeroes = |op: &&DiskOp<_>| matches!(op, DiskOp::Zero { offset, .. } if *offset == 4 * BLOCK);
    assert_eq!(stage.ran(R0).iter().filter(zeroes).count(), 2, "discarded, and mended");
}

/// D7: r1 holds for never written what the others hold for discarded. No guest sees that, and it is no difference; r2,
/// which has lost the block, is mended.
fn a_hole_is_no_other_block_than_zeroes(play: &Play) {
    let mut stage = Scene::copies(3).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    let discard = stage.discard(owner, 4);
    stage.run_until("it is discarded", |s| s.done(discard));
    stage.forge(R1, 4, ABSENT);
    stage.rot(R2, 4);
    stage.scrub(owner, None);
    let scrub = stage.scrubbed(owner);
    assert_eq!((scrub.divergent, scrub.members), (0, vec![(R2, 1, 1)]));
    assert_eq!((stage.disk(R0, 4), stage.disk(R2, 4), stage.is_rotten(R2, 4)), (ZERO, ZERO, false));
}

/// D7, r0's disk refuses the write that would mend it: what lies there now nobody knows, so it is not in sync.
fn a_member_that_can_not_be_mended_is_taken_out_and_resynced(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 5);
    stage.rot(R0, 5);
    stage.fail_once(R0, |op| matches!(op, DiskOp::Write { .. }), DiskError::Io);
    stage.scrub(owner, None);
    stage.run_until("r0 is taken out", |s| s.in_sync() == [R1]);
    assert_eq!(stage.read_now(owner, 5), value);
    stage.run_until("r0 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.disk(R0, 5), stage.is_rotten(R0, 5)), (value, false));
    let scrub = stage.scrubbed(owner);
    assert_eq!((scrub.members, scrub.lost), (vec![(R0, 1, 0)], 0));
    stage.close(owner);
}

/// D7, r0 dies with the mending write on its way to it, and guests go on; the join brings it the block.
fn a_member_that_dies_while_it_is_mended_is_brought_the_block(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 5);
    stage.rot(R0, 5);
    stage.hold(owner, R0, all_writes);
    stage.scrub(owner, None);
    stage.run_until("it is on its way", |s| s.held(owner, R0) == 1);
    let read = stage.read(owner, 5);
    let write = stage.write(owner, 5);
    stage.run_for(50);
    assert!(!stage.done(write.id), "its range is being mended");
    stage.kill(R0);
    stage.run_until("the guest goes on", |s| s.done(write.id) && s.reply(read).is_some());
    assert!(stage.value(read).is_some_and(|read| read == value || read == write.value));
    stage.hold_no_more(owner, R0);
    stage.start(R0);
    stage.run_until("r0 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.disk(R0, 5), stage.is_rotten(R0, 5)), (write.value, false));
    assert_eq!(stage.scrubbed(owner).members, [(R0, 1, 0)]);
    stage.close(owner);
}

/// D7, the owner dies in that moment; the next one finds the region stamped, and makes it equal.
fn an_owner_that_dies_while_it_mends_leaves_nothing_different(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 5);
    stage.run_for(3000);
    stage.rot(R0, 5);
    stage.slow_down(R0, 20);
    stage.scrub(owner, None);
    stage.run_until("it is being written", |s| s.durable(R0).rgm[0] > s.durable(R0).sealed);
    stage.vanish(owner);
    let next = stage.steal(C);
    stage.serving(next);
    stage.run_until("nothing may differ", |s| s.view(next).dirty_regions == 0);
    assert_eq!(stage.read_now(next, 5), value);
    stage.scrub(next, None);
    assert_eq!(stage.scrubbed(next).divergent, 0);
    assert_eq!((stage.disk(R0, 5), stage.is_rotten(R0, 5)), (value, false));
    stage.close(next);
}

/// D7, detached: a caretaker does it, and whoever wants to use the volume meanwhile takes it over.
fn a_caretaker_scrubs_a_volume_that_nobody_uses(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 5);
    stage.close(owner);
    stage.rot(R1, 5);
    let caretaker = stage.caretaker(C);
    stage.scrub(caretaker, None);
    assert_eq!(stage.scrubbed(caretaker).members, [(R1, 1, 1)]);
    stage.rot(R1, 5);
    stage.scrub(caretaker, Some(1000));
    stage.run_for(10);
    let next = stage.owner(D);
    assert_eq!(stage.scrub_of(caretaker).ended_ms, None, "it was in the middle of it");
    assert_eq!(stage.read_now(next, 5), value);
    stage.close(next);
}

/// D7 (4.10), and P7: r1's drive has lost a write and its checksum with it, both of a long time ago. Nobody can tell which copy is
/// right: it is told, and neither is touched. What rots then on r2 stays as it is.
fn copies_that_differ_are_told_and_never_written(play: &Play) {
    let mut stage = Scene::copies(3).stage(play);
    let owner = stage.owner(D);
    let values = [5, 6, 7].map(|block| stage.written(owner, block));
    stage.run_for(3000);
    stage.forge(R1, 5, 1_000_001);
    stage.forge(R1, 6, 1_000_002);
    stage.rot(R2, 6);
    let before = [R0, R1, R2].map(|rid| [5, 6, 7].map(|block| writes_to(&stage, rid, block)));
    stage.scrub(owner, None);
    let scrub = stage.scrubbed(owner);
    let after = [R0, R1, R2].map(|rid| [5, 6, 7].map(|block| writes_to(&stage, rid, block)));
    assert_eq!(after, before, "something was written");
    assert_eq!((stage.disk(R0, 5), stage.disk(R1, 5), stage.disk(R2, 5)), (values[0], 1_000_001, values[0]));
    assert_eq!((stage.disk(R0, 6), stage.disk(R1, 6)), (values[1], 1_000_002));
    assert_eq!((scrub.divergent, scrub.lost, scrub.members), (2, 0, vec![(R2, 1, 0)]));
    let told: Vec<u64> = stage
        .events(owner)
        .iter()
        .filter_map(|e| if let Event::Divergent { offset, .. } = e { Some(*offset) } else { None })
        .collect();
    assert_eq!(told, [5 * BLOCK, 6 * BLOCK]);
    assert_eq!(stage.view(owner).figures.divergent_blocks, 2);
}

/// D8, found by a scrub: a block that rots on every copy is told as lost; the others are mended, and guests are served.
fn a_scrub_tells_what_no_copy_has_and_goes_on(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let values: Vec<_> = (0..8).map(|block| stage.written(owner, block)).collect();
    for (rid, block) in [(R0, 3), (R1, 3), (R0, 4)] {
        stage.rot(rid, block);
    }
    stage.scrub(owner, None);
    let scrub = stage.scrubbed(owner);
    assert_eq!((scrub.members, scrub.lost), (vec![(R0, 2, 1), (R1, 1, 0)], 1));
    assert_eq!(stage.read_now(owner, 4), values[4]);
    let lost = stage.read(owner, 3);
    stage.run_until("the read is answered", |s| s.reply(lost).is_some());
    assert_eq!(stage.failure(lost), Some(GuestError::Unreadable));
    stage.run_for(1000);
    assert_eq!(stage.view(owner).figures.lost_blocks, 1, "counted once, however often it is asked for");
    let healed = stage.written(owner, 3);
    assert_eq!(stage.read_now(owner, 3), healed);
    stage.scrub(owner, None);
    assert_eq!(stage.scrubbed(owner).rotten, 0);
    stage.close(owner);
}

/// D15: two guests' worth of writes to every block, none of which ever finds the disks idle, and a scrub over all of it,
/// ten times: it comes to its end each time, finds nothing, and no write waits long for it.
fn a_scrub_among_writes_at_full_speed_finds_nothing(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    for rid in [R0, R1] {
        stage.slow_down(rid, 3);
    }
    for block in 0..48 {
        stage.written(owner, block);
    }
    let before = stage.view(owner).figures.stall_ms_max;
    let (mut last, mut steps) = (BTreeMap::new(), 0u64);
    for round in 0..10 {
        stage.scrub(owner, None);
        while stage.scrub_of(owner).ended_ms.is_none() {
            for block in [steps * 7 % 48, steps * 11 % 48] {
                last.insert(block, stage.write(owner, block));
            }
            stage.run_for(1);
            steps += 1;
            assert!(steps < 20_000, "round {round} does not end: {:?}", stage.scrub_of(owner));
        }
        let scrub = stage.scrubbed(owner);
        assert_eq!((scrub.rotten, scrub.divergent, scrub.lost), (0, 0, 0), "round {round}");
        assert_eq!((scrub.done, scrub.compared), (48 * BLOCK, 48 * BLOCK), "nothing is left out");
    }
    stage.run_until("the last is acknowledged", |s| last.values().all(|w| s.done(w.id)));
    for (block, write) in &last {
        assert_eq!((stage.disk(R0, *block), stage.disk(R1, *block)), (write.value, write.value));
    }
    let stall = stage.view(owner).figures.stall_ms_max;
    assert!(stall <= before + 100, "{stall} ms, {before} ms without");
    stage.close(owner);
}

/// D15: r0 has a write, r1 has not yet. That is no difference.
fn a_write_that_is_on_its_way_is_no_difference(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    for block in 0..48 {
        stage.written(owner, block);
    }
    stage.hold(owner, R1, guest_writes);
    let write = stage.write(owner, 5);
    stage.run_for(20);
    stage.scrub(owner, None);
    stage.run_for(20);
    stage.release(owner, R1);
    let scrub = stage.scrubbed(owner);
    assert_eq!((scrub.divergent, scrub.rotten, scrub.compared), (0, 0, 48 * BLOCK));
    assert!(stage.done(write.id));
}

/// D15: r1 does not answer what is compared. A guest's write into that range goes on after a moment; the scrub comes back
/// to it.
fn a_guest_waits_for_no_look_that_hangs(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 5);
    stage.hold(owner, R1, hashes);
    stage.scrub(owner, None);
    stage.run_until("it is being compared", |s| s.held(owner, R1) == 1);
    let asked = stage.now_ms();
    stage.read_now(owner, 5);
    assert!(stage.now_ms() - asked <= 5, "a read waits for what only looks");
    let (asked, write) = (stage.now_ms(), stage.write(owner, 5));
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    let waited = stage.now_ms() - asked;
    assert!(waited <= 105, "{waited} ms");
    assert_eq!((stage.scrub_of(owner).ended_ms, stage.demotions(owner)), (None, 0));
    stage.release(owner, R1);
    let scrub = stage.scrubbed(owner);
    assert_eq!((scrub.compared, scrub.divergent, scrub.rotten), (BLOCK, 0, 0));
    stage.close(owner);
}

/// D15: a scrub of 4 MiB of data in 96 MiB at 1 MiB a second takes four seconds less what it may catch up on, whatever else
/// lies between; at another rate from the middle on it takes less; stopped, it ends.
fn a_scrub_keeps_to_its_rate_and_asks_nothing_of_holes(play: &Play) {
    const MIB: u64 = 1 << 20;
    let mut stage = Scene::copies(2).blocks(96 * 256).stage(play);
    let owner = stage.owner(D);
    for first in [0, 80 * 256] {
        for part in 0..64 {
            let write = stage.write_run(owner, first + part * 8, 8);
            stage.run_until("a write is acknowledged", |s| s.done(write.id));
        }
    }
    stage.scrub(owner, Some(MIB));
    let began = stage.now_ms();
    let scrub = stage.scrubbed(owner);
    let took = stage.now_ms() - began;
    assert_eq!((scrub.compared, scrub.done), (4 * MIB, 96 * MIB));
    assert!((3600..4100).contains(&took), "{took} ms");
    let hashed = stage.ran(R1).iter().filter(|op| matches!(op, DiskOp::Hash { .. })).count();
    assert_eq!(hashed, 16, "256 KiB at a time, and only data");
    stage.scrub(owner, Some(MIB));
    let began = stage.now_ms();
    stage.run_for(1000);
    let done = stage.scrub_of(owner).compared;
    assert!((3 * MIB / 4..=5 * MIB / 4).contains(&done), "{done} bytes in a second");
    stage.scrub(owner, Some(16 * MIB));
    stage.scrubbed(owner);
    let took = stage.now_ms() - began;
    assert!(took < 1500, "{took} ms");
    stage.scrub(owner, Some(1));
    stage.run_for(100);
    stage.stop_scrub(owner);
    let scrub = stage.scrub_of(owner);
    assert!(scrub.ended_ms.is_some() && !scrub.complete && scrub.compared <= 2 * 256 * 1024, "{scrub:?}");
    stage.close(owner);
}

/// D7, two blocks that are read at once, each rotten on another member.
fn a_read_of_blocks_that_are_each_rotten_somewhere_is_put_together(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(A);
    let values = [stage.written(owner, 5), stage.written(owner, 6)];
    stage.rot(R0, 5);
    stage.rot(R1, 6);
    let read = stage.read_run(owner, 5, 2);
    stage.run_until("the read is answered", |s| s.reply(read).is_some());
    assert_eq!(stage.values(read), values);
    assert_eq!(stage.demotions(owner), 0);
}

/// D7, a sector is written into a block that is rotten on the near member: the rest of it is read from the other one,
/// and the near one is given the whole block.
fn a_small_write_beside_rot_takes_the_rest_of_its_block_from_another_member(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(A);
    let value = stage.written(owner, 5);
    stage.rot(R0, 5);
    let mut data = HeapPayload::zeroed(512);
    data.bytes_mut().fill(0x77);
    let write = stage.submit(owner, GuestOp::Write { offset: 5 * BLOCK + 512, data, fua: false });
    stage.run_until("the write is answered", |s| s.reply(write).is_some());
    assert!(stage.done(write), "{:?}", stage.failure(write));
    assert_eq!((stage.disk(R0, 5), stage.disk(R1, 5)), (value, value), "the block's first bytes");
    // What the guest met is looked at once more.
    stage.run_for(200);
    let read = stage.ran(R0).len();
    assert_eq!((stage.read_now(owner, 5), stage.ran(R0).len()), (value, read + 1), "r0 has it again");
}

/// D7, in a region that may differ: what is rotten on one member is taken from the other one, on whichever it is; what
/// is rotten on both stays an error, and is in nobody's way.
fn a_rotten_block_of_what_may_differ_is_taken_from_who_has_it(play: &Play) {
    for rots in [R0, R1] {
        let mut stage = Scene::copies(2).stage(play);
        let owner = stage.owner(D);
        let values = [3, 5, 6].map(|block| stage.written(owner, block));
        stage.run_for(3000);
        stage.hold(owner, R1, guest_writes);
        let torn = stage.write(owner, 3);
        stage.run_for(10);
        stage.vanish(owner);
        stage.rot(rots, 5);
        stage.rot(R0, 6);
        stage.rot(R1, 6);
        let next = stage.steal(C);
        stage.serving(next);
        stage.run_until("nothing may differ", |s| s.view(next).dirty_regions == 0);
        let read = stage.read_now(next, 3);
        assert!(read == torn.value || read == values[0]);
        assert_eq!((stage.disk(R0, 3), stage.disk(R1, 3)), (read, read));
        assert_eq!(stage.read_now(next, 5), values[1]);
        let healed = |op: &DiskOp<_>| matches!(op, DiskOp::Write { offset, .. } if *offset == 5 * BLOCK);
        assert_eq!(stage.ran(rots).iter().filter(|op| healed(op)).count(), 2, "written, and copied back");
        let lost = stage.read(next, 6);
        stage.run_until("the read is answered", |s| s.reply(lost).is_some());
        assert_eq!(stage.failure(lost), Some(GuestError::Unreadable));
        let again = stage.written(next, 6);
        assert_eq!((stage.read_now(next, 6), stage.demotions(next)), (again, 0));
    }
}

/// D7, in a resync: the joiner is brought what is rotten on one member from the other, on whichever it is.
fn a_rotten_block_is_brought_to_a_joiner_by_another_member(play: &Play) {
    for rots in [R0, R2] {
        let mut stage = Scene::copies(3).stage(play);
        let owner = stage.owner(D);
        stage.kill(R1);
        let values = [4, 5, 6].map(|block| stage.written(owner, block));
        stage.rot(rots, 5);
        stage.start(R1);
        stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1, R2]);
        assert_eq!([4, 5, 6].map(|block| stage.disk(R1, block)), values);
        assert_eq!(stage.demotions(owner), 1);
    }
}

/// D8: a block rots at r0 while r1 is stale. The guest is told of that block, whole blocks
/// around it are served, the stale copy is not read from, and a copy of what changed does not need the block: r1 comes
/// back in sync and has it.
fn a_block_that_rots_at_the_only_good_copy_is_refused_alone(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 5);
    stage.run_for(3000);
    stage.kill(R1);
    let newer = stage.written(owner, 6);
    stage.rot(R0, 5);
    stage.hold(owner, R1, all_writes);
    stage.start(R1);
    stage.run_until("r1 is copied to", |s| s.held(owner, R1) > 0);
    let read = stage.read(owner, 5);
    stage.run_until("the read is answered", |s| s.reply(read).is_some());
    assert_eq!(stage.failure(read), Some(GuestError::Unreadable));
    assert_eq!(stage.read_now(owner, 6), newer);
    assert!(!stage.ran(R1).iter().any(|op| matches!(op, DiskOp::Read { .. })), "a stale copy was read from");
    stage.release(owner, R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(stage.read_now(owner, 5), value);
}

/// D8, the block is one that r1 lacks: it can't be brought back in sync, is tried again in time, and guests go on. The
/// block's next write heals both.
fn a_rotten_block_that_a_joiner_needs_waits_for_its_next_write(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    stage.written(owner, 5);
    stage.rot(R0, 5);
    stage.start(R1);
    stage.run_for(10_000);
    assert_eq!(stage.in_sync(), [R0]);
    let asked = stage.ran(R1).len();
    assert!(asked < 1000, "{asked} requests in ten seconds");
    stage.written(owner, 30);
    let read = stage.read(owner, 5);
    stage.run_until("the read is answered", |s| s.reply(read).is_some());
    assert_eq!(stage.failure(read), Some(GuestError::Unreadable));
    let healed = stage.written(owner, 5);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.disk(R1, 5), stage.read_now(owner, 5)), (healed, healed));
}

/// D8, part of a long read waits for something else: the guest is told of the rotten block at once, not when the other
/// part is there and r1, back in sync, could give the block that was written again meanwhile.
fn a_guest_is_told_of_a_rotten_block_while_it_is_rotten(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    stage.written(owner, 40);
    stage.rot(R0, 40);
    stage.hold(owner, R0, guest_writes);
    let unread = stage.write(owner, 3);
    let read = stage.submit(owner, GuestOp::Read { offset: 0, len: 48 * BLOCK });
    stage.run_until("the guest is told of block 40", |s| s.reply(read).is_some());
    assert_eq!(stage.failure(read), Some(GuestError::Unreadable));
    assert!(!stage.done(unread.id));
    assert_eq!(stage.in_sync(), [R0]);
    stage.release(owner, R0);
    let healed = stage.written(owner, 40);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!(stage.read_now(owner, 40), healed);
    stage.close(owner);
}

fn size_of(stage: &Stage, rid: weft_proto::ids::Rid) -> u64 {
    stage.durable(rid).size / BLOCK
}

/// D13: both members have grown, and the owner dies before its swap. The next one knows of the old size only, its members
/// give back what they have grown by, and the volume grows for it.
fn a_growth_whose_owner_dies_before_the_record_has_grown_leaves_nothing_behind(play: &Play) {
    let mut stage = Scene::copies(2).blocks(32).stage(play);
    let owner = stage.owner(D);
    let value = stage.written(owner, 31);
    stage.store_away(&[D]);
    stage.resize(owner, 48);
    stage.run_until("both have grown", |s| size_of(s, R0) == 48 && size_of(s, R1) == 48);
    let beyond = stage.submit(owner, GuestOp::Read { offset: 40 * BLOCK, len: BLOCK });
    assert_eq!(stage.failure(beyond), Some(GuestError::OutOfRange), "the record says 32 blocks");
    stage.vanish(owner);
    stage.store_back();
    let next = stage.steal(C);
    stage.serving(next);
    assert_eq!(stage.record().size, 32 * BLOCK);
    stage.run_until("both are cut", |s| size_of(s, R0) == 32 && size_of(s, R1) == 32);
    stage.resized(next, 48);
    assert_eq!((stage.read_now(next, 31), stage.read_now(next, 32)), (value, ABSENT));
    let last = stage.written(next, 47);
    assert_eq!((stage.disk(R0, 47), stage.disk(R1, 47)), (last, last));
    stage.close(next);
}

/// D13: GROW hangs at r1 while guests go on, for longer than an interval lasts.
fn a_volume_has_its_new_size_when_every_member_has_grown(play: &Play) {
    let mut stage = Scene::copies(2).blocks(32).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 1);
    stage.hold(owner, R1, grows);
    stage.resize(owner, 48);
    stage.run_for(3000);
    stage.written(owner, 2);
    stage.run_for(3000);
    assert_eq!((stage.record().size, size_of(&stage, R0), size_of(&stage, R1)), (32 * BLOCK, 48, 32));
    stage.release(owner, R1);
    stage.run_until("the volume has another size", |s| s.is_resized(owner, 48));
    let last = stage.written(owner, 47);
    assert_eq!((stage.disk(R0, 47), stage.disk(R1, 47)), (last, last));
}

/// D13: r0 and r1 have grown, r2 falls silent. The promise without r2 shows them the old size, so they cut themselves, and
/// are asked to grow again.
fn a_growth_outlasts_the_loss_of_a_member(play: &Play) {
    let mut stage = Scene::copies(3).blocks(32).stage(play);
    let owner = stage.owner(D);
    stage.hold(owner, R2, grows);
    stage.resize(owner, 48);
    stage.run_until("two have grown", |s| size_of(s, R0) == 48 && size_of(s, R1) == 48);
    stage.kill(R2);
    stage.hold_no_more(owner, R2);
    stage.run_until("the volume has another size", |s| s.is_resized(owner, 48));
    stage.run_for(500);
    assert_eq!(stage.in_sync(), [R0, R1]);
    assert_eq!((size_of(&stage, R0), size_of(&stage, R1)), (48, 48), "in sync, and smaller than the volume");
    let last = stage.written(owner, 47);
    stage.start(R2);
    stage.run_until("r2 is in sync", |s| s.in_sync() == [R0, R1, R2]);
    assert_eq!((stage.disk(R2, 47), size_of(&stage, R2)), (last, 48));
}

/// D13: r1 is being copied to when the volume grows: it grows with the others. A copy that only begins to come back does
/// not hold the growth up, and is grown before anything is written to it.
fn a_growth_waits_for_no_copy_that_is_being_brought_back(play: &Play) {
    let mut stage = Scene::copies(2).blocks(32).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    stage.written(owner, 5);
    stage.hold(owner, R1, all_writes);
    stage.start(R1);
    stage.run_until("r1 is copied to", |s| s.held(owner, R1) > 0);
    stage.resized(owner, 40);
    assert_eq!((stage.in_sync(), size_of(&stage, R1)), (vec![R0], 40));
    let far = stage.write(owner, 39);
    stage.release(owner, R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1] && s.done(far.id));
    assert_eq!((stage.disk(R1, 39), stage.disk(R1, 5)), (stage.disk(R0, 39), stage.disk(R0, 5)));

    stage.kill(R1);
    stage.written(owner, 6);
    stage.hold(owner, R1, grows);
    stage.resized(owner, 44);
    stage.start(R1);
    stage.run_until("r1 is asked to grow", |s| s.held(owner, R1) > 0);
    stage.resized(owner, 48);
    let last = stage.written(owner, 47);
    stage.release(owner, R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    assert_eq!((stage.disk(R1, 47), size_of(&stage, R1)), (last, 48));
    stage.close(owner);
}

/// A volume with nearly as many regions as there may be, of 64 KiB each.
const MANY_BLOCKS: u64 = (1 << 24) - 16;

/// D13, R26: in the size to come there would be too many regions, so they become larger first. r1, which lacks a block of a
/// region that is folded with an older one, is away for all of that.
fn a_volume_grows_beyond_the_regions_that_it_was_made_with(play: &Play) {
    let mut stage = Scene::copies(2).blocks(MANY_BLOCKS).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 3);
    stage.written(owner, 19);
    stage.run_for(3000);
    stage.kill(R1);
    let missed = stage.written(owner, 19);
    stage.resized(owner, MANY_BLOCKS + 48);
    assert_eq!((stage.record().region_shift, stage.durable(R0).region_shift), (17, 17));
    let last = stage.written(owner, MANY_BLOCKS + 47);
    stage.close(owner);
    let next = stage.owner(C);
    let later = stage.written(next, 40);
    stage.start(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    let held = [19, MANY_BLOCKS + 47, 40].map(|block| stage.disk(R1, block));
    assert_eq!((held, stage.durable(R1).region_shift), ([missed, last, later], 17));
    stage.close(next);
}

/// D13, R26: the owner crashed, and what it wrote last may differ between the members: until it does not, regions stay.
fn regions_are_folded_when_none_of_them_may_differ(play: &Play) {
    let mut stage = Scene::copies(2).blocks(MANY_BLOCKS).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 3);
    stage.hold(owner, R1, guest_writes);
    stage.write(owner, 19);
    stage.run_for(10);
    stage.vanish(owner);
    let thief = stage.enter_holding(C, R1, hashes);
    stage.resize(thief, MANY_BLOCKS + 48);
    stage.run_for(1000);
    assert!(stage.view(thief).dirty_regions > 0 && stage.record().region_shift == 16);
    stage.release(thief, R1);
    stage.run_until("the volume has another size", |s| s.is_resized(thief, MANY_BLOCKS + 48));
    assert_eq!(stage.record().region_shift, 17);
    assert_eq!(stage.disk(R0, 19), stage.disk(R1, 19));
    let last = stage.written(thief, MANY_BLOCKS + 47);
    assert_eq!((stage.disk(R0, MANY_BLOCKS + 47), stage.disk(R1, MANY_BLOCKS + 47)), (last, last));
    stage.close(thief);
}

/// D14: r1 is away while the volume grows; the guest writes past the old end at once, and r1 comes back, smaller than the
/// volume: before and after a change of owner.
fn io_past_the_old_end_reaches_a_copy_that_was_small(play: &Play) {
    for anew in [false, true] {
        let mut stage = Scene::copies(2).blocks(32).stage(play);
        let mut owner = stage.owner(D);
        stage.written(owner, 1);
        stage.kill(R1);
        stage.written(owner, 2);
        stage.resize(owner, 48);
        stage.run_until("the record has grown", |s| s.record().size == 48 * BLOCK);
        stage.run_until("the session knows", |s| s.is_resized(owner, 48));
        let first = stage.written(owner, 40);
        if anew {
            stage.close(owner);
            owner = stage.owner(C);
        }
        let second = stage.written(owner, 41);
        assert_eq!(size_of(&stage, R1), 32);
        stage.start(R1);
        let third = stage.write(owner, 47);
        stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1] && s.done(third.id));
        assert_eq!(size_of(&stage, R1), 48);
        let held = [40, 41, 47].map(|block| stage.disk(R1, block));
        assert_eq!(held, [first, second, third.value], "another owner: {anew}");
        stage.close(owner);
    }
}

/// D20: a volume of one copy gets two more and gives two up, its first one among them, while its guest writes all the
/// time. No write waits for more than two swaps.
fn copies_come_and_go_while_a_guest_writes(play: &Play) {
    let mut stage = Scene::copies(1).stage(play);
    let owner = stage.owner(D);
    let mut last = BTreeMap::new();
    let mut steps = 0u64;
    let mut write_until = |stage: &mut Stage, done: fn(&Stage) -> bool| {
        while !done(stage) {
            let block = steps * 7 % 48;
            last.insert(block, stage.write(owner, block));
            stage.run_for(1);
            steps += 1;
            assert!(steps < 20_000, "awaited in vain: {:?}", stage.in_sync());
        }
    };
    stage.add(owner, R1, B);
    stage.add(owner, R2, C);
    write_until(&mut stage, |s| s.in_sync() == [R0, R1, R2]);
    stage.remove(owner, R1);
    stage.remove(owner, R0);
    write_until(&mut stage, |s| s.in_sync() == [R2]);
    assert!(stage.state(R0).is_none() && stage.state(R1).is_none());
    stage.run_until("the last is acknowledged", |s| last.values().all(|w| s.done(w.id)));
    for (block, write) in &last {
        assert_eq!(stage.disk(R2, *block), write.value, "block {block}");
    }
    // A swap takes 3 ms at most here.
    let stall = stage.view(owner).figures.stall_ms_max;
    assert!(stall <= 2 * 3 + 2, "{stall} ms");
    stage.close(owner);
}
