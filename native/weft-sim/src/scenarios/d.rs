//! Plots D1 to D9 of docs/scenarios.md (data operations), as far as they concern built parts.

use crate::disk::bytes_of;
use crate::oracle::{ABSENT, ZERO};
use crate::scenarios::plots;
use crate::stage::{A, B, C, D, Play, R0, R1, R2, Scene, Stage, all_writes, grows, guest_writes, hashes};
use std::collections::BTreeMap;

use weft_proto::guest::{GuestError, GuestOp};
use weft_proto::payload::{BLOCK, HeapPayload, Payload};
use weft_proto::replica::DiskOp;

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
    D8 => a_block_that_rots_at_the_only_good_copy_is_refused_alone,
    D8 => a_rotten_block_that_a_joiner_needs_waits_for_its_next_write,
    D8 => a_guest_is_told_of_a_rotten_block_while_it_is_rotten,
    D9 => a_bit_that_flips_on_its_way_is_never_stored,
    D13 => a_growth_whose_owner_dies_before_the_record_has_grown_leaves_nothing_behind,
    D13 => a_volume_has_its_new_size_when_every_member_has_grown,
    D13 => a_growth_outlasts_the_loss_of_a_member,
    D13 => a_growth_waits_for_no_copy_that_is_being_brought_back,
    D13 => a_volume_grows_beyond_the_regions_that_it_was_made_with,
    D13 => regions_are_folded_when_none_of_them_may_differ,
    D14 => io_past_the_old_end_reaches_a_copy_that_was_small,
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

/// D7, its first half (repair in place comes with scrub): r0's stored block fails its checksum.
fn a_rotten_block_is_read_from_another_member(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(A);
    let value = stage.written(owner, 5);
    stage.rot(R0, 5);
    assert_eq!(stage.read_now(owner, 5), value);
    assert_eq!(stage.demotions(owner), 0);
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

/// D8, as far as there is no scrub: a block rots at r0 while r1 is stale. The guest is told of that block, whole blocks
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
