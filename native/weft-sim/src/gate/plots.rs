//! Which plots show which broken rule, and the plots that stand in no row of docs/scenarios.md: what each tells is what
//! its rule is for.

use weft_proto::durable::Durable;
use weft_proto::guest::GuestError;
use weft_proto::ids::{
    ClusterId, Epoch, Generation, HostId, Instant, Nonce, Ordinal, PoolId, PoolInc, Rid, SessionId, SnapId,
};
use weft_proto::images::ImageForm;
use weft_proto::message::{Answer, Ask, Attach, Refusal, Request, Watermark};
use weft_proto::mutants::Mutation;
use weft_proto::payload::{HeapPayload, Payload, block_crcs};
use weft_proto::record::{EPOCH_MAX, Owner, REPAIR_BELIEF, REPAIR_EPOCH_JUMP, Record, ReplicaState};
use weft_proto::replica::{
    Action, AttachmentId, DiskDone, DiskError, DiskOp, ImageOp, RISE_AT_ONCE, Replica, ReplicaConfig, Token,
    Verified,
};
use weft_proto::session::{EndReason, Event};
use weft_proto::superblock::{PoolAction, PoolStart, SEGMENT_BYTES, StoredPool, Superblock, SwapOutcome};

use crate::oracle::ABSENT;
use crate::scenarios::Plot;
use crate::stage::{
    A, B, C, D, E, Fate, Play, R0, R1, Scene, Stage, Who, guest_writes, hashes, promises, reads, seals,
};

/// The plots of a rule that no seed is needed for.
pub(super) const SHOWN_BY: &[(Mutation, &str)] = &[
    (Mutation::AnyPromiser, "a_promise_is_given_to_the_records_owner_only"),
    (Mutation::AttachUnbound, "nobody_is_attached_in_anothers_session"),
    (Mutation::UnverifiedJump, "a_promise_far_above_the_last_is_checked_with_the_store"),
    (Mutation::VerifyFarOnly, "a_promise_a_little_above_the_last_is_checked_with_the_store"),
    (Mutation::VerifyEpochOnly, "a_promise_is_given_to_whom_the_store_names_only"),
    (Mutation::RiseUnbounded, "no_promise_rises_to_where_no_changes_lead"),
    (Mutation::PromiseBeforeDrain, "a_write_that_hangs_in_a_disk_does_not_land_on_a_newer_one"),
    (Mutation::PromiseBeforeLog, "a_promise_is_in_the_log_before_it_counts"),
    (Mutation::AttachBeforeDrain, "an_attach_waits_for_what_came_before_it"),
    (Mutation::OldOrdinalsExecute, "requests_unread_in_an_old_connection_never_execute"),
    (Mutation::BelowMinIsr, "too_few_members_pause_the_volume_until_one_returns"),
    (Mutation::ForgetFailedWrite, "a_write_that_failed_is_still_brought_to_every_member"),
    (Mutation::AdmitBeforeBestEffort, "a_joiner_is_not_admitted_while_it_lacks_a_write"),
    (Mutation::EqualUnstamped, "a_copy_that_came_back_equal_tells_a_later_one_what_it_missed"),
    (Mutation::JoinIgnoresInFlight, "a_paused_write_does_not_block_its_own_rescue"),
    (Mutation::SealWhileDirty, "what_may_differ_is_not_sealed"),
    (Mutation::SealWhileGrowing, "a_volume_has_its_new_size_when_every_member_has_grown"),
    (Mutation::SealBelieved, "a_member_that_says_it_has_sealed_what_nobody_has_is_taken_out"),
    (Mutation::NoLease, "an_owner_that_is_cut_off_with_one_member_reads_nothing_stale"),
    (Mutation::NoWait, "an_owner_that_is_cut_off_with_one_member_reads_nothing_stale"),
    (Mutation::NoMargin, "a_clock_within_the_margin_costs_no_stale_read"),
    (Mutation::AnyMemberLease, "an_owner_that_is_cut_off_with_one_member_reads_nothing_stale"),
    (Mutation::RemovedNotAsked, "an_owner_that_is_cut_off_with_one_member_reads_nothing_stale"),
    (Mutation::NoWaitMark, "whoever_opens_during_a_thiefs_wait_waits_too"),
    (Mutation::ExceptionIgnoresMark, "whoever_opens_during_a_thiefs_wait_waits_too"),
    (Mutation::WaitOnlyIfMissing, "the_second_of_two_thieves_waits_as_well"),
    (Mutation::ReadWhileWaiting, "a_thief_answers_no_read_while_it_waits"),
    (Mutation::CloseBeforeWait, "a_thief_closes_after_its_wait"),
    (Mutation::WaitFromClaim, "a_thief_waits_from_the_first_promise_on"),
    (Mutation::LeaseFromAnswer, "a_late_answer_makes_no_lease"),
    (Mutation::JoinerNotAsked, "a_joiner_that_may_be_in_sync_is_asked_for_the_lease"),
    (Mutation::IntentIgnored, "a_disk_that_lags_by_one_start_of_another_is_quarantined"),
    (Mutation::IntentReplaced, "an_intent_is_used_until_its_swap_is_settled"),
    (Mutation::AnyIncarnation, "a_disk_that_was_put_back_is_quarantined"),
    (Mutation::RepairWithoutJump, "nobody_opens_on_a_store_that_was_put_back_before_it_is_repaired"),
    (Mutation::PromiseToEpochAlone, "an_epoch_is_promised_to_one_session_only"),
    (Mutation::ClaimIgnored, "nobody_opens_on_a_store_that_was_put_back_before_it_is_repaired"),
    (Mutation::PromiseBehind, "a_host_that_has_seen_more_than_a_session_looks_before_it_promises"),
    (Mutation::SwapComparesRevision, "a_claim_from_before_a_repair_is_not_put_over_the_repaired_record"),
    (Mutation::CompleteBeforeRepromise, "a_demoted_copy_knows_that_it_is_not_enough_for_a_repair"),
    (Mutation::LandAfterDeath, "what_a_killed_daemon_sent_to_its_disk_lands_on_nothing_newer"),
    (Mutation::NonceIgnored, "an_open_whose_answer_was_lost_goes_on_as_the_same_session"),
    (Mutation::ClaimBlind, "a_thief_that_reaches_only_the_store_fences_nobody"),
    (Mutation::GrowBeforeAbsent, "a_size_counts_when_its_new_part_is_absent"),
    (
        Mutation::GrowFromOwnSize,
        "what_a_shrink_left_at_a_copy_that_crashed_reads_as_zero_when_the_volume_grows",
    ),
    (
        Mutation::GrowUnstamped,
        "what_a_shrink_left_at_a_copy_that_was_away_reads_as_zero_when_the_volume_has_grown",
    ),
    (Mutation::SwapBeforeGrow, "a_volume_has_its_new_size_when_every_member_has_grown"),
    (Mutation::GrownAcrossEpochs, "a_growth_outlasts_the_loss_of_a_member"),
    (Mutation::JoinWithoutGrow, "io_past_the_old_end_reaches_a_copy_that_was_small"),
    (Mutation::CutBeforeSwap, "a_shrink_that_never_reached_the_store_costs_nothing"),
    (Mutation::CutAfterGrow, "a_growth_waits_for_a_cut_that_is_under_way"),
    (Mutation::CutAfterPromise, "a_promise_waits_for_a_cut_that_is_under_way"),
    (Mutation::CutOnAnyPromise, "what_has_grown_is_kept_when_a_connection_is_made_anew"),
    (Mutation::ZeroBeforeFlush, "a_trimmed_block_reads_as_zero_after_the_power_was_lost"),
    (Mutation::SealBeforeSidecar, "a_seal_counts_when_its_checksums_are_on_the_disk"),
    (Mutation::RescueWaits, "a_paused_write_does_not_block_its_own_rescue"),
    (Mutation::QuarantinedServes, "a_quarantined_member_is_taken_out"),
    (Mutation::GrowKeepsEpoch, "a_write_in_a_new_size_is_answered_when_no_loss_of_the_store_takes_it_back"),
    (Mutation::ShrinkKeepsEpoch, "a_size_that_was_told_outlives_the_store"),
    (Mutation::ToldAtSwap, "a_size_that_was_told_outlives_the_store"),
    (Mutation::PolicyKeepsEpoch, "a_repair_brings_back_the_min_isr_that_writes_completed_under"),
    (Mutation::DataBeforePreserve, "what_an_image_needs_is_preserved_before_it_changes"),
    (Mutation::PrepareBeforeDrain, "an_image_is_logged_when_nothing_changes_the_head"),
    (Mutation::OldGenerationAfterPrepare, "a_write_of_before_a_barrier_does_not_come_after_it"),
    (Mutation::PreserveIntoDeleted, "nothing_is_put_into_an_image_that_goes"),
    (Mutation::AttemptReplaced, "no_image_takes_the_place_of_an_earlier_attempts"),
    (Mutation::AttemptForgotten, "an_attempt_that_was_dropped_is_not_made_again"),
    (Mutation::PrepareBeforeCut, "an_image_is_not_logged_while_the_head_is_cut"),
    (Mutation::WriteWhilePreparing, "a_write_waits_for_an_image_that_is_at_the_log"),
    (Mutation::LoggedBeforeTaken, "an_image_is_logged_when_the_pool_has_taken_its_snapshot"),
    (Mutation::HeirDeleted, "an_image_stays_while_something_is_handed_down_to_it"),
    (Mutation::PreserveIntoDoomed, "no_more_is_put_into_an_image_that_is_to_go"),
    (Mutation::LookOnce, "what_was_handed_down_under_a_look_is_looked_for_again"),
    (Mutation::ChangedSinceNewer, "what_has_changed_between_snapshots_is_told_by_whoever_took_both"),
    (Mutation::ChangedWithinOlder, "what_a_volume_has_grown_by_has_changed_where_it_was_written"),
    (Mutation::DestroyUnhashed, "what_differs_from_a_snapshot_is_told_when_its_data_is_gone"),
    (Mutation::DestroyForgetsAway, "a_snapshots_data_goes_at_a_copy_that_was_away_once_it_is_back"),
    (Mutation::RevertUnmarked, "what_a_dead_owner_had_begun_to_bring_back_is_finished_by_the_next"),
    (Mutation::RevertMarkerKeepsEpoch, "a_store_that_is_lost_during_a_revert_knows_of_it"),
    (Mutation::RevertServesFirst, "an_owner_that_dies_at_any_step_of_a_revert_leaves_all_of_it_or_nothing"),
    (Mutation::RevertClearedByOne, "a_revert_is_over_when_every_member_has_it"),
    (Mutation::RevertClearKeepsEpoch, "a_revert_that_was_told_of_outlasts_the_store"),
    (Mutation::RevertToldAtSwap, "a_revert_that_was_told_of_outlasts_the_store"),
    (Mutation::RevertSealedPartly, "nothing_is_sealed_that_came_back_at_one_member_only"),
    (Mutation::RevertUnnoted, "a_member_that_was_away_during_a_revert_gets_what_came_back"),
    (Mutation::HeadOpened, "a_deleted_head_is_given_back_and_its_snapshot_stays"),
    (Mutation::HeadGoesUntold, "no_loss_of_the_store_makes_a_head_whole_of_which_a_part_is_gone"),
    (Mutation::HeadReleaseKeepsEpoch, "no_loss_of_the_store_makes_a_head_whole_of_which_a_part_is_gone"),
    (Mutation::ReplaceAny, "a_guest_that_came_in_before_a_take_over_keeps_its_volume"),
    (Mutation::FailedFlushForgotten, "a_flush_that_failed_once_is_not_asked_again"),
    (Mutation::OvertakenRead, "a_read_that_was_overtaken_shows_nothing_that_may_vanish"),
    (Mutation::CloseUnsealed, "a_clean_volume_is_sealed_on_every_member"),
    (Mutation::RepairFromBad, "copies_that_differ_are_told_and_never_written"),
    (Mutation::ScrubWithoutLock, "a_write_that_is_on_its_way_is_no_difference"),
    (Mutation::GroupGoesOn, "a_group_is_one_moment_of_its_volumes"),
    (Mutation::GroupTwoSwaps, "a_groups_transaction_is_applied_as_a_whole_or_not_at_all"),
    (Mutation::GroupWithoutOne, "one_volume_that_fails_leaves_nothing_of_its_group"),
    (Mutation::GroupSettlesAlone, "a_groups_transaction_is_applied_as_a_whole_or_not_at_all"),
    (Mutation::ChangedByCopy, "what_was_brought_says_nothing_of_what_has_changed"),
    (Mutation::SnapCopyUnlogged, "a_member_that_has_nothing_of_a_snapshot_is_not_listed"),
    (Mutation::SnapReportAtSwap, "a_snapshot_that_was_told_of_outlasts_the_store"),
    (Mutation::SnapResumeEarly, "a_snapshot_has_what_was_answered_and_nothing_that_was_asked_for_later"),
];

macro_rules! own {
    ($($rule:ident => $name:ident,)*) => {
        /// Plots of rules.
        pub(super) const OWN: &[Plot] = &[$(Plot {
            number: stringify!($rule),
            name: stringify!($name),
            run: $name,
        }),*];
    };
}

own! {
    R1 => a_promise_is_given_to_the_records_owner_only,
    R1 => nobody_is_attached_in_anothers_session,
    R1 => a_promise_far_above_the_last_is_checked_with_the_store,
    R1 => a_promise_a_little_above_the_last_is_checked_with_the_store,
    R1 => a_promise_is_given_to_whom_the_store_names_only,
    R1 => no_promise_rises_to_where_no_changes_lead,
    R1 => a_promise_is_in_the_log_before_it_counts,
    R1 => an_attach_waits_for_what_came_before_it,
    R2 => a_write_that_failed_is_still_brought_to_every_member,
    R3 => a_joiner_is_not_admitted_while_it_lacks_a_write,
    R5 => what_may_differ_is_not_sealed,
    R7 => a_member_that_says_it_has_sealed_what_nobody_has_is_taken_out,
    R9 => the_second_of_two_thieves_waits_as_well,
    R9 => a_thief_answers_no_read_while_it_waits,
    R9 => a_thief_closes_after_its_wait,
    R9 => a_thief_waits_from_the_first_promise_on,
    R9 => a_clock_within_the_margin_costs_no_stale_read,
    R9 => a_late_answer_makes_no_lease,
    R9 => a_joiner_that_may_be_in_sync_is_asked_for_the_lease,
    R10 => a_disk_that_lags_by_one_start_of_another_is_quarantined,
    R10 => an_intent_is_used_until_its_swap_is_settled,
    R10 => a_disk_that_was_put_back_is_quarantined,
    R11 => an_epoch_is_promised_to_one_session_only,
    R11 => a_host_that_has_seen_more_than_a_session_looks_before_it_promises,
    R13 => what_a_killed_daemon_sent_to_its_disk_lands_on_nothing_newer,
    R18 => a_size_counts_when_its_new_part_is_absent,
    R18 => a_growth_waits_for_a_cut_that_is_under_way,
    R18 => a_promise_waits_for_a_cut_that_is_under_way,
    R18 => what_has_grown_is_kept_when_a_connection_is_made_anew,
    R25 => a_write_in_a_new_size_is_answered_when_no_loss_of_the_store_takes_it_back,
    R25 => a_size_that_was_told_outlives_the_store,
    R22 => a_seal_counts_when_its_checksums_are_on_the_disk,
    R24 => a_quarantined_member_is_taken_out,
    R25 => a_repair_brings_back_the_min_isr_that_writes_completed_under,
    R28 => what_an_image_needs_is_preserved_before_it_changes,
    R28 => an_image_is_logged_when_nothing_changes_the_head,
    R28 => a_write_of_before_a_barrier_does_not_come_after_it,
    R28 => nothing_is_put_into_an_image_that_goes,
    R28 => no_image_takes_the_place_of_an_earlier_attempts,
    R28 => an_attempt_that_was_dropped_is_not_made_again,
    R28 => an_image_is_not_logged_while_the_head_is_cut,
    R28 => a_write_waits_for_an_image_that_is_at_the_log,
    R28 => an_image_is_logged_when_the_pool_has_taken_its_snapshot,
    R28 => an_image_stays_while_something_is_handed_down_to_it,
    R28 => no_more_is_put_into_an_image_that_is_to_go,
    R28 => what_was_handed_down_under_a_look_is_looked_for_again,
    R33 => a_guest_that_came_in_before_a_take_over_keeps_its_volume,
    I12 => a_read_that_was_overtaken_shows_nothing_that_may_vanish,
    I26 => a_clean_volume_is_sealed_on_every_member,
}

/// The block that the plots are about.
const BLOCK: u64 = 3;
const BLOCK_LEN: u64 = weft_proto::payload::BLOCK;

const SESSION: SessionId = SessionId(7);
const MARK: Watermark = Watermark { cluster: CLUSTER, incarnation: 1, revision: 1 };

/// A replica without a stage, to which `SESSION` has attached from host C; and the record that it is of.
fn replica(play: &Play) -> (Replica<HeapPayload>, Record) {
    replica_that_takes(play, ImageForm::Chained)
}

fn replica_that_takes(play: &Play, takes: ImageForm) -> (Replica<HeapPayload>, Record) {
    let record = Scene::copies(1).stage(play).record().clone();
    let (pool, pool_inc, broken) = (record.replicas[0].pool, PoolInc(1), play.broken());
    let config =
        ReplicaConfig { pool, pool_inc, watermark: MARK, lossy: false, cached: false, takes, broken };
    let durable = Durable::new(record.vol, R0, record.size, record.region_shift);
    let mut replica = Replica::new(config, durable);
    let attach = Attach {
        volume: record.vol,
        rid: R0,
        pool,
        host: C,
        session: SESSION,
        ordinal: Ordinal(1),
        watermark: MARK,
    };
    asked(&mut replica, Epoch(0), Ask::Attach(attach));
    (replica, record)
}

/// What a replica wants done for a request.
fn asked(
    replica: &mut Replica<HeapPayload>,
    epoch: Epoch,
    ask: Ask<HeapPayload>,
) -> Vec<Action<HeapPayload>> {
    replica.handle_request(Instant(1), AttachmentId(1), Request { tag: 1, epoch, ask });
    std::iter::from_fn(|| replica.poll_action()).collect()
}

/// The record at an epoch, with this host as the owner's.
fn owned(record: &Record, epoch: Epoch, node: HostId) -> Record {
    let owner = Some(Owner { node, session: SESSION, caretaker: false, first: None });
    Record { epoch, owner, ..record.clone() }
}

/// A promise asked for under that record.
fn promise(record: &Record, epoch: Epoch, node: HostId) -> Ask<HeapPayload> {
    Ask::Promise { record: owned(record, epoch, node).to_bytes(), watermark: MARK }
}

fn logs(actions: &[Action<HeapPayload>]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Log { .. })).count()
}

/// It promises epoch 2, and its log has that. What it wants then.
fn promised(replica: &mut Replica<HeapPayload>, record: &Record) -> Vec<Action<HeapPayload>> {
    let shown = owned(record, Epoch(2), C);
    let actions = asked(replica, Epoch(2), promise(record, Epoch(2), C));
    for action in verified(replica, actions, Verified::Record(&shown)) {
        if let Action::Log { token, record } = action {
            replica.handle_logged(Instant(2), token, record, Ok(()));
        }
    }
    assert_eq!(replica.durable().promised, Epoch(2));
    std::iter::from_fn(|| replica.poll_action()).collect()
}

/// What it wants done once the store has answered what it asked of it.
fn verified(
    replica: &mut Replica<HeapPayload>,
    mut actions: Vec<Action<HeapPayload>>,
    shown: Verified<'_>,
) -> Vec<Action<HeapPayload>> {
    let token = |action: &Action<HeapPayload>| match action {
        Action::ReadStore { token } => Some(*token),
        _ => None,
    };
    for token in actions.iter().filter_map(token).collect::<Vec<_>>() {
        replica.handle_verified(Instant(1), token, shown);
        actions.extend(std::iter::from_fn(|| replica.poll_action()));
    }
    actions
}

/// R1: host C asks under a record whose owner is on host D.
fn a_promise_is_given_to_the_records_owner_only(play: &Play) {
    let (mut replica, record) = replica(play);
    let actions = asked(&mut replica, Epoch(2), promise(&record, Epoch(2), D));
    let shown = owned(&record, Epoch(2), C);
    assert_eq!(logs(&verified(&mut replica, actions, Verified::Record(&shown))), 0);
}

/// R1: host C asks for epoch 3 under a record of its own making; the store has the volume at epoch 2.
fn a_promise_a_little_above_the_last_is_checked_with_the_store(play: &Play) {
    let (mut replica, record) = replica(play);
    promised(&mut replica, &record);
    let actions = asked(&mut replica, Epoch(3), promise(&record, Epoch(3), C));
    let shown = owned(&record, Epoch(2), C);
    assert_eq!(logs(&verified(&mut replica, actions, Verified::Record(&shown))), 0, "the volume is bricked");
}

/// R1: the store has the volume at epoch 3, of a session on host D; C asks for epochs 2 and 3 under records of its own
/// making. Promised to C at 3, D would look like the owner of a store that went back.
fn a_promise_is_given_to_whom_the_store_names_only(play: &Play) {
    for epoch in [Epoch(2), Epoch(3)] {
        let (mut replica, record) = replica(play);
        let actions = asked(&mut replica, epoch, promise(&record, epoch, C));
        let shown = owned(&record, Epoch(3), D);
        assert_eq!(logs(&verified(&mut replica, actions, Verified::Record(&shown))), 0, "{epoch} is C's");
    }
}

/// R1: host C has written a record near the end of its range into the store, and asks for the promise of it. What a repair
/// writes over it is promised at once, and its host's next session goes on from there.
fn no_promise_rises_to_where_no_changes_lead(play: &Play) {
    let (mut replica, record) = replica(play);
    promised(&mut replica, &record);
    for far in [Epoch(3 + RISE_AT_ONCE), Epoch(1 << 38), EPOCH_MAX] {
        let actions = asked(&mut replica, far, promise(&record, far, C));
        let shown = owned(&record, far, C);
        assert_eq!(logs(&verified(&mut replica, actions, Verified::Record(&shown))), 0, "{far} is promised");
    }
    // The furthest that a repair is led by a record that it believes.
    let repaired = Epoch(2 + REPAIR_BELIEF + REPAIR_EPOCH_JUMP);
    for epoch in [repaired, repaired.next()] {
        let actions = asked(&mut replica, epoch, promise(&record, epoch, C));
        let shown = owned(&record, epoch, C);
        assert_eq!(logs(&verified(&mut replica, actions, Verified::Record(&shown))), 1, "{epoch}");
    }
}

/// R1: host D names C's session, which stands in the store, with an ordinal above all. C comes back by another connection.
fn nobody_is_attached_in_anothers_session(play: &Play) {
    let (mut replica, record) = replica(play);
    promised(&mut replica, &record);
    let mut attaches = |id: u64, host: HostId, ordinal: u64| {
        let (volume, rid, pool) = (record.vol, R0, record.replicas[0].pool);
        let (session, ordinal, watermark) = (SESSION, Ordinal(ordinal), MARK);
        let ask = Ask::Attach(Attach { volume, rid, pool, host, session, ordinal, watermark });
        replica.handle_request(Instant(3), AttachmentId(id), Request { tag: 1, epoch: Epoch(0), ask });
        let replies = std::iter::from_fn(|| replica.poll_action());
        replies.filter(|a| matches!(a, Action::Reply { response, .. } if response.outcome.is_ok())).count()
            > 0
    };
    assert!(!attaches(2, D, u64::MAX), "D is attached in C's session");
    assert!(attaches(3, C, 2), "C is not attached in its own");
    let read = Request { tag: 2, epoch: Epoch(2), ask: Ask::Read { offset: 0, len: 4096 } };
    replica.handle_request(Instant(4), AttachmentId(2), read);
    let actions: Vec<_> = std::iter::from_fn(|| replica.poll_action()).collect();
    assert!(matches!(actions[..], [Action::Reply { .. }]), "D reads at C's epoch: {actions:?}");
}

/// R1: 98 epochs are more than a session could have come by within the life of a replica's attachment.
fn a_promise_far_above_the_last_is_checked_with_the_store(play: &Play) {
    let (mut replica, record) = replica(play);
    promised(&mut replica, &record);
    let actions = asked(&mut replica, Epoch(100), promise(&record, Epoch(100), C));
    assert!(matches!(actions[..], [Action::ReadStore { .. }]), "{actions:?}");
}

/// R11: epoch 2 is C's. A store that went back has made it D's a second time, and this host does not see that.
fn an_epoch_is_promised_to_one_session_only(play: &Play) {
    let (mut replica, record) = replica(play);
    promised(&mut replica, &record);
    let (session, owner) =
        (SessionId(8), Owner { node: D, session: SessionId(8), caretaker: false, first: None });
    let shown = Record { epoch: Epoch(2), owner: Some(owner), ..record.clone() };
    let mut ask = |tag: u32, epoch: Epoch, ask: Ask<HeapPayload>| {
        replica.handle_request(Instant(3), AttachmentId(2), Request { tag, epoch, ask });
        let actions: Vec<_> = std::iter::from_fn(|| replica.poll_action()).collect();
        logs(&verified(&mut replica, actions, Verified::Record(&shown)))
    };
    let (volume, rid, pool, ordinal) = (record.vol, R0, record.replicas[0].pool, Ordinal(1));
    let attach = Attach { volume, rid, pool, host: D, session, ordinal, watermark: MARK };
    ask(1, Epoch(0), Ask::Attach(attach));
    let promise = Ask::Promise { record: shown.to_bytes(), watermark: MARK };
    assert_eq!(ask(2, Epoch(2), promise), 0, "two sessions have the promise of one epoch");
}

/// R11: the store has gone back, and is away. Host C's session has read it since; this host had seen it further before.
fn a_host_that_has_seen_more_than_a_session_looks_before_it_promises(play: &Play) {
    for (further, given) in [(0, 1), (1, 0)] {
        let (mut replica, record) = replica(play);
        promised(&mut replica, &record);
        replica.handle_watermark(Watermark { revision: MARK.revision + further, ..MARK });
        let actions = asked(&mut replica, Epoch(3), promise(&record, Epoch(3), C));
        assert_eq!(
            logs(&verified(&mut replica, actions, Verified::Away)),
            given,
            "{further} revisions further"
        );
        assert_eq!(replica.unverified_promises(), given as u64);
    }
}

/// R18: an interrupted shrink may have left old data there.
fn a_size_counts_when_its_new_part_is_absent(play: &Play) {
    let (mut replica, record) = replica(play);
    promised(&mut replica, &record);
    let (from, generation) = (record.size, Generation::new(Epoch(2), 1));
    let actions = asked(&mut replica, Epoch(2), Ask::Grow { generation, from, to: 2 * from });
    assert!(matches!(actions[..], [Action::Disk { op: DiskOp::Grow { .. }, .. }]), "{actions:?}");
}

fn size_of(stage: &Stage, rid: Rid) -> u64 {
    stage.durable(rid).size / BLOCK_LEN
}

/// R18: r1 is still cutting itself when the volume is to grow again, and has done so before the store has the new size.
fn a_growth_waits_for_a_cut_that_is_under_way(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let caretaker = stage.caretaker(C);
    stage.stall(R1);
    stage.resized(caretaker, 32);
    stage.run_for(20);
    stage.unstall_new(R1);
    stage.store_away(&[C]);
    stage.resize(caretaker, 48);
    stage.run_for(500);
    stage.unstall(R1);
    stage.run_for(500);
    stage.store_back();
    stage.run_until("the volume has grown", |s| s.is_resized(caretaker, 48));
    assert_eq!((size_of(&stage, R0), size_of(&stage, R1)), (48, 48), "in sync, and smaller than the volume");
    let value = stage.written(caretaker, 40);
    assert_eq!((stage.disk(R0, 40), stage.disk(R1, 40)), (value, value));
}

/// R18: a promise that is asked for again within its epoch, since a connection was lost, is no reason to cut what has grown.
fn what_has_grown_is_kept_when_a_connection_is_made_anew(play: &Play) {
    let mut stage = Scene::copies(2).blocks(32).stage(play);
    let owner = stage.owner(D);
    stage.store_away(&[D]);
    stage.resize(owner, 48);
    stage.run_until("both have grown", |s| size_of(s, R0) == 48 && size_of(s, R1) == 48);
    stage.run_for(50);
    stage.reconnect(owner, R1);
    stage.run_for(500);
    stage.store_back();
    stage.run_until("the volume has another size", |s| s.is_resized(owner, 48));
    assert_eq!((size_of(&stage, R0), size_of(&stage, R1)), (48, 48), "in sync, and smaller than the volume");
}

/// R18: r1 is still cutting itself when it is lost; the volume grows without it, and r1 is to come back.
fn a_promise_waits_for_a_cut_that_is_under_way(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let caretaker = stage.caretaker(C);
    stage.stall(R1);
    stage.resized(caretaker, 32);
    stage.run_for(20);
    stage.unstall_new(R1);
    stage.cut(B, C);
    stage.run_until("r1 is taken out", |s| s.in_sync() == [R0]);
    stage.resized(caretaker, 48);
    stage.close(caretaker);
    let owner = stage.owner(D);
    let value = stage.written(owner, 40);
    stage.run_for(5000);
    stage.unstall(R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
    stage.run_for(50);
    assert_eq!((stage.disk(R1, 40), size_of(&stage, R1)), (value, 48), "the cut went on");
}

/// R25: no member holds the record with the new size yet; the store is lost, and rebuilt from what they hold.
fn a_write_in_a_new_size_is_answered_when_no_loss_of_the_store_takes_it_back(play: &Play) {
    let mut stage = Scene::copies(2).blocks(32).stage(play);
    let owner = stage.owner(D);
    for rid in [R0, R1] {
        stage.hold(owner, rid, promises);
    }
    stage.resize(owner, 48);
    stage.run_until("the record has grown", |s| s.record().size == 48 * BLOCK_LEN);
    stage.run_for(50);
    let write = stage.write(owner, 40);
    stage.run_for(500);
    let (told, done) = (stage.is_resized(owner, 48), stage.done(write.id));
    stage.vanish(owner);
    stage.repair(false).expect("both members answer");
    assert!(stage.record().size == 48 * BLOCK_LEN || !told && !done, "told: {told}, written: {done}");
}

/// R25: the same of a shrink, told before and after the members hold it.
fn a_size_that_was_told_outlives_the_store(play: &Play) {
    for held in [true, false] {
        let mut stage = Scene::copies(2).stage(play);
        let caretaker = stage.caretaker(C);
        for rid in [R0, R1].into_iter().filter(|_| held) {
            stage.hold(caretaker, rid, promises);
        }
        stage.resize(caretaker, 32);
        stage.run_until("the record has shrunk", |s| s.record().size == 32 * BLOCK_LEN);
        stage.run_for(500);
        let told = stage.is_resized(caretaker, 32);
        stage.vanish(caretaker);
        stage.repair(false).expect("both members answer");
        assert!(stage.record().size == 32 * BLOCK_LEN || !told, "it is larger again");
        assert!(told || held, "nobody is told");
    }
}

/// R22: r1's disk hangs when the volume is closed.
fn a_seal_counts_when_its_checksums_are_on_the_disk(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, BLOCK);
    let before = stage.durable(R1).sealed;
    stage.stall(R1);
    stage.begin_close(owner);
    stage.run_for(1000);
    assert_eq!(stage.durable(R1).sealed, before, "sealed, and what that makes authoritative is not written");
    stage.unstall(R1);
    stage.over(owner);
}

/// R1: r1's log hangs while a thief asks for promises.
fn a_promise_is_in_the_log_before_it_counts(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, BLOCK);
    stage.stall_all(R1);
    let thief = stage.steal(E);
    stage.serving(thief);
    let epoch = stage.record().epoch;
    for rid in stage.in_sync() {
        let promised = stage.durable(rid).promised;
        assert!(promised >= epoch, "{rid} is in sync at {epoch}, its log has {promised}");
    }
}

/// R1: a write hangs in r1's disk when the connection is made anew; the attach is answered when it has ended.
fn an_attach_waits_for_what_came_before_it(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.stall(R1);
    let write = stage.write(owner, BLOCK);
    stage.run_for(20);
    stage.reconnect(owner, R1);
    stage.run_for(200);
    assert!(stage.line(owner, R1).contains("attaching"), "{}", stage.line(owner, R1));
    stage.unstall(R1);
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
}

/// R2: the guest is told that its write failed while r1 is away; r1 gets it all the same when it is back.
fn a_write_that_failed_is_still_brought_to_every_member(play: &Play) {
    let mut stage = Scene::copies(2).min_isr(2).fail_on_loss().stage(play);
    let owner = stage.owner(D);
    stage.written(owner, BLOCK);
    stage.cut(D, B);
    let write = stage.write(owner, BLOCK);
    stage.run_until("the guest is told", |s| s.failure(write.id) == Some(GuestError::Waiting));
    stage.heal();
    stage.run_for(3000);
    assert_eq!(stage.in_sync(), [R0, R1]);
    assert_eq!(stage.disk(R0, BLOCK), stage.disk(R1, BLOCK), "members differ in what nobody sends again");
}

/// R3: while r1 is copied to, a write is acknowledged without it and stays unread in its socket.
fn a_joiner_is_not_admitted_while_it_lacks_a_write(play: &Play) {
    let mut stage = Scene::copies(2).blocks(4096).stage(play);
    let owner = stage.owner(D);
    stage.kill(R1);
    for i in 0..20 {
        stage.write_run(owner, i * 32, 32);
    }
    stage.run_for(3000);
    stage.hold(owner, R1, guest_writes);
    stage.start(R1);
    stage.run_until("r1 joins", |s| s.told(owner, |e| matches!(e, Event::ResyncStarted { .. })));
    let write = stage.write(owner, 2000);
    stage.run_for(1000);
    assert!(stage.done(write.id) && stage.held(owner, R1) > 0, "the plot needs a write that r1 lacks");
    assert_ne!(stage.state(R1), Some(ReplicaState::InSync), "admitted without a write that was acknowledged");
    stage.release(owner, R1);
    stage.run_until("r1 is in sync", |s| s.in_sync() == [R0, R1]);
}

/// R5: a write is on r0 only; the next owner may not compare, and is gone before it has: whoever comes then finds the
/// difference again.
fn what_may_differ_is_not_sealed(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let first = stage.owner(D);
    stage.written(first, BLOCK);
    stage.hold(first, R1, guest_writes);
    stage.write(first, BLOCK);
    stage.run_for(20);
    stage.vanish(first);
    let second = stage.steal(E);
    stage.hold(second, R0, hashes);
    stage.hold(second, R1, hashes);
    stage.serving(second);
    stage.run_for(300);
    stage.vanish(second);
    let third = stage.steal(A);
    stage.serving(third);
    stage.read_now(third, BLOCK);
    stage.run_for(1);
    stage.kill(R0);
    stage.read_now(third, BLOCK);
}

/// An owner beside r1 that nobody can tell it from: thieves reach r0 only.
fn owner_beside_r1(play: &Play) -> (Stage, Who) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(B);
    stage.written(owner, BLOCK);
    for host in [C, D, E] {
        stage.cut(B, host);
    }
    stage.run_for(300);
    (stage, owner)
}

/// Now the owner reaches only r1, and not the store. Its lease goes on for a while.
fn cut_off_with_r1(stage: &mut Stage) {
    stage.cut(B, A);
    stage.store_away(&[B]);
}

/// A thief that serves without r1 while the cut-off owner's lease goes on.
fn thief(stage: &mut Stage) -> Who {
    let thief = stage.steal(C);
    // It has a little patience for r1 before its claim.
    stage.run_for(250);
    cut_off_with_r1(stage);
    stage.serving(thief);
    thief
}

/// The old owner's guest goes on reading.
fn owner_reads(stage: &mut Stage, owner: Who, times: usize) {
    for _ in 0..times {
        stage.read(owner, BLOCK);
        stage.run_for(20);
    }
}

/// R9: all members promise the second thief, none is missing, and the first owner's lease is still good.
fn the_second_of_two_thieves_waits_as_well(play: &Play) {
    let (mut stage, owner) = owner_beside_r1(play);
    thief(&mut stage);
    let second = stage.steal(D);
    stage.serving(second);
    stage.written(second, BLOCK);
    owner_reads(&mut stage, owner, 3);
}

/// R9, docs/model.md finding 1: what a second thief's guest reads during its wait, the first owner must not contradict.
fn a_thief_answers_no_read_while_it_waits(play: &Play) {
    let (mut stage, owner) = owner_beside_r1(play);
    let first = thief(&mut stage);
    stage.write(first, BLOCK);
    stage.run_for(20);
    let second = stage.steal(D);
    stage.serving(second);
    stage.read(second, BLOCK);
    stage.run_for(20);
    owner_reads(&mut stage, owner, 3);
}

/// R9: a thief that closes at once and in order leaves a volume that is open to all without a wait.
fn a_thief_closes_after_its_wait(play: &Play) {
    let (mut stage, owner) = owner_beside_r1(play);
    let thief = thief(&mut stage);
    stage.close(thief);
    let next = stage.owner(D);
    stage.written(next, BLOCK);
    owner_reads(&mut stage, owner, 3);
}

/// R9: r0 reads the promise late, and obeys the old owner until then.
fn a_thief_waits_from_the_first_promise_on(play: &Play) {
    let (mut stage, owner) = owner_beside_r1(play);
    let thief = stage.steal(C);
    stage.hold(thief, R0, promises);
    stage.run_until("the thief owns", |s| s.owns(thief));
    stage.run_for(1000);
    cut_off_with_r1(&mut stage);
    stage.release(thief, R0);
    stage.serving(thief);
    let write = stage.write(thief, BLOCK);
    while !stage.done(write.id) {
        owner_reads(&mut stage, owner, 1);
    }
    owner_reads(&mut stage, owner, 3);
}

/// R9: the thief's clock runs 0.8 % fast. As S11, which has a clock beyond the margin.
fn a_clock_within_the_margin_costs_no_stale_read(play: &Play) {
    // When the thief comes, between two heartbeats of the owner, is what matters.
    for phase in 0..25 {
        let mut stage = Scene::copies(2).blocks(320).stage(play);
        stage.set_clock_rate(E, 8);
        let owner = stage.owner(D);
        stage.run_for(500 + 4 * phase);
        stage.store_away(&[D]);
        stage.cut(E, A);
        let thief = stage.steal(E);
        stage.run_until("the thief owns", |s| s.owns(thief));
        stage.cut(D, B);
        let mut last = stage.write(thief, 300);
        stage.run_for(1900);
        let mut reads = Vec::new();
        for block in 0..250 {
            if block > 0 && stage.done(last.id) {
                reads.push(stage.read(owner, block - 1));
            }
            last = stage.write(thief, block);
            stage.run_for(1);
        }
        let stale = reads.iter().filter(|id| stage.value(**id) == Some(ABSENT)).count();
        assert_eq!(stale, 0, "read after the thief's writes were acknowledged");
    }
}

/// R9: the owner is stopped while r0's answer to a heartbeat is on its way, for longer than a lease.
fn a_late_answer_makes_no_lease(play: &Play) {
    let (mut stage, owner) = owner_beside_r1(play);
    stage.run_until("a heartbeat is under way", |s| s.line(owner, R0).contains("window=1"));
    stage.freeze(B);
    stage.run_for(5);
    stage.cut(B, A);
    stage.store_away(&[B]);
    let thief = stage.steal(C);
    stage.serving(thief);
    stage.written(thief, BLOCK);
    stage.thaw(B);
    owner_reads(&mut stage, owner, 5);
}

/// R9: the store has admitted r1, the owner does not know it; a thief opens with r1 alone.
fn a_joiner_that_may_be_in_sync_is_asked_for_the_lease(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(A);
    stage.kill(R1);
    stage.written(owner, BLOCK);
    stage.next_swaps(&[Fate::AppliedUnknown]);
    stage.start(R1);
    stage.run_until("r1 is admitted", |s| s.in_sync() == [R0, R1]);
    for host in [B, C, D, E] {
        stage.cut(A, host);
    }
    stage.store_away(&[A]);
    let thief = stage.steal(C);
    stage.serving(thief);
    stage.written(thief, BLOCK);
    owner_reads(&mut stage, owner, 3);
}

const CLUSTER: ClusterId = ClusterId(0xC1);

fn disk(inc: u64, intent: Option<u128>) -> Superblock {
    Superblock {
        pool: PoolId(0xB0),
        cluster: CLUSTER,
        host: A,
        inc: PoolInc(inc),
        intent: intent.map(Nonce),
        segment_bytes: SEGMENT_BYTES,
        log_blocks: 4096,
        created: 1_790_000_000,
        counter: 1,
    }
}

fn start(play: &Play, superblock: Superblock, fresh: u128) -> PoolStart {
    PoolStart::new(superblock, CLUSTER, A, Nonce(fresh)).with_broken(play.broken())
}

fn stored(host: HostId, inc: u64, intent: u128) -> Option<StoredPool> {
    Some(StoredPool { host, inc: PoolInc(inc), intent: Some(Nonce(intent)) })
}

/// R10: a copy of the disk was started elsewhere since; this one has an intent of its own that was never sent.
fn a_disk_that_lags_by_one_start_of_another_is_quarantined(play: &Play) {
    let mut start = start(play, disk(3, Some(7)), 8);
    start.handle_store(stored(A, 4, 9));
    assert!(matches!(start.action(), PoolAction::Quarantine(_)), "{:?}", start.action());
}

/// R10: a disk is as it was two starts ago.
fn a_disk_that_was_put_back_is_quarantined(play: &Play) {
    let mut start = start(play, disk(3, None), 8);
    start.handle_store(stored(A, 5, 9));
    assert!(matches!(start.action(), PoolAction::Quarantine(_)), "{:?}", start.action());
}

/// R10, N14: a swap of unknown outcome reaches the store after the next start has begun: it was the same raise.
fn an_intent_is_used_until_its_swap_is_settled(play: &Play) {
    let mut first = start(play, disk(3, None), 7);
    first.handle_store(stored(A, 3, 1));
    first.handle_written();
    assert_eq!(first.action(), PoolAction::Swap { inc: PoolInc(4), intent: Nonce(7) });
    let mut second = start(play, *first.superblock(), 8);
    second.handle_store(stored(A, 3, 1));
    if let PoolAction::WriteSuperblock(_) = second.action() {
        second.handle_written();
    }
    second.handle_swap(SwapOutcome::Lost);
    second.handle_store(stored(A, 4, 7));
    assert!(!matches!(second.action(), PoolAction::Quarantine(_)), "{:?}", second.action());
}

/// R13: r1's daemon is killed with a write at its disk, comes back and gets a newer one. What a dead process sent has
/// ended before its pool's lock is free.
fn what_a_killed_daemon_sent_to_its_disk_lands_on_nothing_newer(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, BLOCK);
    stage.stall(R1);
    let write = stage.write(owner, BLOCK);
    stage.run_for(20);
    stage.kill(R1);
    stage.unstall_new(R1);
    stage.start(R1);
    stage.run_until("the write is acknowledged", |s| s.done(write.id));
    stage.run_for(1);
    stage.written(owner, BLOCK);
    stage.run_for(1);
    stage.unstall(R1);
    stage.kill(R0);
    stage.read_now(owner, BLOCK);
}

/// R24: r1's metadata is found damaged while it serves.
fn a_quarantined_member_is_taken_out(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, BLOCK);
    stage.quarantine(R1);
    stage.written(owner, BLOCK);
    stage.run_for(3000);
    assert_eq!(stage.in_sync(), [R0], "a quarantined copy counts");
}

/// R7: r1's host lies: its copy says that it has sealed the end of all time, or of the epoch that it is asked for. The owner
/// would have nothing above that to be sealed, and its process ends there, with every volume that it serves.
fn a_member_that_says_it_has_sealed_what_nobody_has_is_taken_out(play: &Play) {
    let claimed = Scene::copies(2).stage(play).record().epoch.next();
    let last = Generation::new(claimed, Generation::INTERVAL_MAX);
    for sealed in [Generation(u64::MAX), last, Generation::new(claimed, 1)] {
        let mut stage = Scene::copies(2).stage(play);
        stage.kill(R1);
        stage.lie_about_seals(R1, sealed);
        stage.start(R1);
        let owner = stage.owner(D);
        stage.written(owner, BLOCK);
        stage.run_for(5000);
        stage.written(owner, BLOCK);
        // It may be back by then, if its owner has sealed something above.
        let without = |record: &Record| record.in_sync().map(|entry| entry.rid).eq([R0]);
        assert!(stage.swaps().iter().any(without), "{sealed} is believed");
        assert!(stage.durable(R0).sealed > Generation::new(claimed, 0), "nothing is sealed any more");
    }
}

/// R25: writes shall need both copies from now on; one is acknowledged, the store is lost, and repaired from what the
/// copies keep.
fn a_repair_brings_back_the_min_isr_that_writes_completed_under(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    let lost = stage.backup();
    stage.written(owner, BLOCK);
    assert_eq!(stage.set_policy(owner, 2, 2), Ok(()));
    stage.written(owner, BLOCK);
    stage.vanish(owner);
    stage.restore(lost);
    stage.repair(false).expect("both members answer");
    assert_eq!(stage.record().policy.min_isr, 2);
}

/// R33: it was decided to take the volume from the owner on D; before the one who does is there E has it, by a steal, and
/// serves a guest. That guest keeps it.
fn a_guest_that_came_in_before_a_take_over_keeps_its_volume(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, 1);
    for host in [A, B] {
        stage.cut(C, host);
    }
    let late = stage.replace_only(C, owner);
    stage.run_for(200);
    let guest = stage.steal(E);
    stage.serving(guest);
    let value = stage.written(guest, 1);
    stage.heal();
    let EndReason::Busy { owner: found } = stage.over(late) else { panic!("{:?}", stage.ended(late)) };
    assert_eq!(Some(found), stage.record().owner);
    assert!(stage.owns(guest) && stage.read_now(guest, 1) == value);
    // It is asked anew, of whom it has found.
    let next = stage.replace_only(C, guest);
    stage.serving(next);
    assert_eq!(stage.read_now(next, 1), value);
}

/// I12: a read is on its way to r0 when a write to the same block begins, which only r0 gets before the owner and r0
/// are gone.
fn a_read_that_was_overtaken_shows_nothing_that_may_vanish(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, BLOCK);
    stage.run_for(1);
    stage.hold(owner, R0, reads);
    stage.hold(owner, R1, guest_writes);
    stage.read(owner, BLOCK);
    stage.write(owner, BLOCK);
    stage.run_for(20);
    assert_eq!((stage.held(owner, R0), stage.held(owner, R1)), (1, 1));
    stage.release(owner, R0);
    stage.run_for(20);
    stage.vanish(owner);
    stage.kill_silently(R0);
    let next = stage.steal(E);
    stage.serving(next);
    stage.read_now(next, BLOCK);
}

/// I26: r1 reads the seal late.
fn a_clean_volume_is_sealed_on_every_member(play: &Play) {
    let mut stage = Scene::copies(2).stage(play);
    let owner = stage.owner(D);
    stage.written(owner, BLOCK);
    stage.hold(owner, R1, seals);
    stage.begin_close(owner);
    stage.run_for(1000);
    assert!(!stage.record().clean, "clean, and r1 has sealed {}", stage.durable(R1).sealed);
    stage.release(owner, R1);
    stage.over(owner);
    assert!(stage.record().clean && stage.durable(R1).sealed >= stage.record().closed_gen);
}

// ---- R28: images of a replica, without a stage

const SNAP: SnapId = SnapId(0x51);

/// The first block, written in an interval.
fn write_in(interval: u32) -> Ask<HeapPayload> {
    write_at(0, interval)
}

fn write_at(offset: u64, interval: u32) -> Ask<HeapPayload> {
    let data = HeapPayload::zeroed(4096);
    let (generation, crcs) = (Generation::new(Epoch(2), interval), block_crcs(data.bytes()));
    Ask::Write { generation, offset, crcs, data, copy: false }
}

fn make(attempt: u64) -> Ask<HeapPayload> {
    Ask::SnapMake { id: SNAP, attempt }
}

fn prepare(attempt: u64, interval: u32) -> Ask<HeapPayload> {
    Ask::SnapPrepare { id: SNAP, attempt, generation: Generation::new(Epoch(2), interval), incarnation: 1 }
}

/// What comes of them, once log and disk have done all of it but what is to be left.
fn carried_out(
    replica: &mut Replica<HeapPayload>,
    mut actions: Vec<Action<HeapPayload>>,
    leave: fn(&Action<HeapPayload>) -> bool,
) -> (Vec<Result<Answer<HeapPayload>, Refusal>>, Vec<Action<HeapPayload>>) {
    let (mut answers, mut left) = (Vec::new(), Vec::new());
    while !actions.is_empty() {
        for action in std::mem::take(&mut actions) {
            match action {
                action if leave(&action) => left.push(action),
                Action::Log { token, record } => replica.handle_logged(Instant(3), token, record, Ok(())),
                Action::Disk { token, .. } | Action::Image { token, .. } => done(replica, token),
                Action::Reply { response, .. } => answers.push(response.outcome),
                Action::ReadStore { .. } => panic!("no promise is asked for"),
            }
        }
        actions.extend(std::iter::from_fn(|| replica.poll_action()));
    }
    (answers, left)
}

fn done(replica: &mut Replica<HeapPayload>, token: Token) {
    replica.handle_disk(Instant(3), token, Ok(DiskDone::Done));
}

fn preserves(action: &Action<HeapPayload>) -> bool {
    matches!(action, Action::Image { op: ImageOp::Preserve { .. }, .. })
}

fn changes_the_head(action: &Action<HeapPayload>) -> bool {
    matches!(action, Action::Disk { op: DiskOp::Write { .. }, .. })
}

/// A replica whose first block was written, and room for the image that the first attempt will take.
fn with_room(play: &Play) -> Replica<HeapPayload> {
    let (mut replica, record) = replica(play);
    promised(&mut replica, &record);
    for ask in [write_in(1), make(1)] {
        let actions = asked(&mut replica, Epoch(2), ask);
        assert_eq!(carried_out(&mut replica, actions, |_| false).0, [Ok(Answer::Done)]);
    }
    replica
}

/// An image was taken, and what it needs is on its way there.
fn with_image(play: &Play) -> (Replica<HeapPayload>, Vec<Action<HeapPayload>>) {
    let mut replica = with_room(play);
    let actions = asked(&mut replica, Epoch(2), prepare(1, 1));
    let (answers, left) = carried_out(&mut replica, actions, preserves);
    assert_eq!((answers, left.len()), (vec![Ok(Answer::Done)], 1));
    (replica, left)
}

/// R28: the block that is written to is on its way into the image.
fn what_an_image_needs_is_preserved_before_it_changes(play: &Play) {
    let (mut replica, preserve) = with_image(play);
    let actions = asked(&mut replica, Epoch(2), write_in(2));
    let (answers, changes) = carried_out(&mut replica, actions, changes_the_head);
    assert!(answers.is_empty() && changes.is_empty(), "before it is preserved: {changes:?}");
    let (answers, _) = carried_out(&mut replica, preserve, |_| false);
    assert_eq!(answers, [Ok(Answer::Done)]);
}

/// R28: a write is at the disk when PREPARE arrives.
fn an_image_is_logged_when_nothing_changes_the_head(play: &Play) {
    let mut replica = with_room(play);
    let written = asked(&mut replica, Epoch(2), write_in(1));
    assert!(matches!(written[..], [Action::Disk { op: DiskOp::Write { .. }, .. }]), "{written:?}");
    let prepared = asked(&mut replica, Epoch(2), prepare(1, 1));
    assert!(prepared.is_empty(), "while a write is under way: {prepared:?}");
    let (answers, _) = carried_out(&mut replica, written, |_| false);
    assert_eq!(answers, [Ok(Answer::Done), Ok(Answer::Done)]);
}

/// R28: a write of before the barrier was under way for long.
fn a_write_of_before_a_barrier_does_not_come_after_it(play: &Play) {
    let (mut replica, preserve) = with_image(play);
    carried_out(&mut replica, preserve, |_| false);
    let actions = asked(&mut replica, Epoch(2), write_in(1));
    assert_eq!(carried_out(&mut replica, actions, |_| false).0, [Err(Refusal::OldGeneration)]);
}

/// R28: the snapshot is deleted while what it needs is on its way into the image.
fn nothing_is_put_into_an_image_that_goes(play: &Play) {
    let (mut replica, preserve) = with_image(play);
    let actions = asked(&mut replica, Epoch(2), Ask::SnapDelete { id: SNAP });
    assert!(actions.is_empty(), "while something is put into it: {actions:?}");
    let (answers, _) = carried_out(&mut replica, preserve, |_| false);
    assert_eq!(answers, [Ok(Answer::Deleting)]);
    assert!(replica.durable().images.is_empty() && replica.is_idle());
}

/// R28: the session tries again. What the first attempt's image has may be what an older image reads.
fn no_image_takes_the_place_of_an_earlier_attempts(play: &Play) {
    let (mut replica, preserve) = with_image(play);
    carried_out(&mut replica, preserve, |_| false);
    let actions = asked(&mut replica, Epoch(2), make(2));
    let makes =
        |action: &Action<HeapPayload>| matches!(action, Action::Image { op: ImageOp::Make { .. }, .. });
    assert!(!actions.iter().any(makes), "while the earlier one's image is there: {actions:?}");
    assert_eq!(carried_out(&mut replica, actions, |_| false).0, [Ok(Answer::Done)]);
    assert!(replica.durable().images.is_empty());
}

/// R28: what was asked for the first attempt was under way for long, and is dropped meanwhile.
fn an_attempt_that_was_dropped_is_not_made_again(play: &Play) {
    let mut replica = with_room(play);
    for (ask, expected) in [
        (Ask::SnapDrop { id: SNAP, attempt: 1 }, Ok(Answer::Done)),
        (make(1), Err(Refusal::OldAttempt)),
        (prepare(1, 1), Err(Refusal::OldAttempt)),
        (make(2), Ok(Answer::Done)),
    ] {
        let actions = asked(&mut replica, Epoch(2), ask);
        assert_eq!(carried_out(&mut replica, actions, |_| false).0, [expected]);
    }
}

/// R28: a copy that is to be smaller is being cut when PREPARE arrives.
fn an_image_is_not_logged_while_the_head_is_cut(play: &Play) {
    let (mut replica, record) = replica(play);
    let cut = promised(&mut replica, &Record { size: record.size / 3, ..record });
    let cuts = |action: &Action<HeapPayload>| matches!(action, Action::Disk { op: DiskOp::Cut { .. }, .. });
    let (_, cut) = carried_out(&mut replica, cut, cuts);
    assert_eq!(cut.len(), 1);
    for ask in [make(1), prepare(1, 1)] {
        let actions = asked(&mut replica, Epoch(2), ask);
        carried_out(&mut replica, actions, |_| false);
    }
    assert!(replica.durable().images.is_empty(), "while it is cut");
    let (answers, _) = carried_out(&mut replica, cut, |_| false);
    assert_eq!((answers, replica.durable().images.len()), (vec![Ok(Answer::Done)], 1));
}

/// R28: the session goes on before the image is in this copy's log.
fn a_write_waits_for_an_image_that_is_at_the_log(play: &Play) {
    let mut replica = with_room(play);
    let prepared = asked(&mut replica, Epoch(2), prepare(1, 1));
    assert_eq!(logs(&prepared), 1);
    let actions = asked(&mut replica, Epoch(2), write_in(2));
    let (answers, changes) = carried_out(&mut replica, actions, changes_the_head);
    assert!(answers.is_empty() && changes.is_empty(), "while the image is at the log: {changes:?}");
    let (answers, _) = carried_out(&mut replica, prepared, |_| false);
    assert_eq!(answers, [Ok(Answer::Done), Ok(Answer::Done)]);
    assert!(replica.whole());
}

/// R28, a pool that takes snapshots by itself: what such a snapshot does not have nobody puts there later. So the log has
/// the image when the pool has its snapshot, and the head changes after both.
fn an_image_is_logged_when_the_pool_has_taken_its_snapshot(play: &Play) {
    let (mut replica, record) = replica_that_takes(play, ImageForm::Whole);
    promised(&mut replica, &record);
    for ask in [write_in(1), make(1)] {
        let actions = asked(&mut replica, Epoch(2), ask);
        assert_eq!(carried_out(&mut replica, actions, |_| false).0, [Ok(Answer::Done)]);
    }
    let prepared = asked(&mut replica, Epoch(2), prepare(1, 1));
    let takes =
        |action: &&Action<HeapPayload>| matches!(action, Action::Image { op: ImageOp::Take { .. }, .. });
    assert_eq!((logs(&prepared), prepared.iter().filter(takes).count()), (0, 1));
    let actions = asked(&mut replica, Epoch(2), write_in(2));
    let (answers, changes) = carried_out(&mut replica, actions, changes_the_head);
    assert!(answers.is_empty() && changes.is_empty(), "while the pool takes its snapshot: {changes:?}");
    let (answers, changes) = carried_out(&mut replica, prepared, changes_the_head);
    assert_eq!((answers, changes.len()), (vec![Ok(Answer::Done)], 1), "then the head changes");
    let image = replica.durable().images.get(SNAP).expect("it was logged");
    assert!(image.is_whole() && replica.whole());
}

/// An image that reads through a newer one, which is deleted: what it wants, all of that left over.
fn with_heir(play: &Play, look: bool) -> (Replica<HeapPayload>, [Vec<Action<HeapPayload>>; 2]) {
    let (mut replica, preserve) = with_image(play);
    for action in preserve {
        let Action::Image { token, .. } = action else { panic!("{action:?}") };
        replica.handle_disk(Instant(3), token, Err(DiskError::NoSpace));
    }
    let newer = SnapId(0x52);
    let (attempt, generation) = (1, Generation::new(Epoch(2), 2));
    for ask in [
        Ask::SnapReady { id: SNAP, attempt, note: vec![1] },
        Ask::SnapMake { id: newer, attempt },
        Ask::SnapPrepare { id: newer, attempt, generation, incarnation: 1 },
    ] {
        let actions = asked(&mut replica, Epoch(2), ask);
        assert_eq!(carried_out(&mut replica, actions, |_| false).0, [Ok(Answer::Done)]);
    }
    let looked = if look {
        asked(&mut replica, Epoch(0), Ask::SnapRead { id: SNAP, offset: 0, len: 4096 })
    } else {
        Vec::new()
    };
    let deleted = asked(&mut replica, Epoch(2), Ask::SnapDelete { id: newer });
    let hands =
        |action: &Action<HeapPayload>| matches!(action, Action::Image { op: ImageOp::HandDown { .. }, .. });
    let (answers, left) = carried_out(&mut replica, deleted, hands);
    assert_eq!((answers, left.len()), (vec![Ok(Answer::Deleting)], 1));
    (replica, [looked, left])
}

/// R28: the heir is deleted, too.
fn an_image_stays_while_something_is_handed_down_to_it(play: &Play) {
    let (mut replica, [_, hands]) = with_heir(play, false);
    let actions = asked(&mut replica, Epoch(2), Ask::SnapDelete { id: SNAP });
    assert!(actions.is_empty(), "while something is handed down to it: {actions:?}");
    let (answers, _) = carried_out(&mut replica, hands, |_| false);
    assert_eq!(answers, [Ok(Answer::Deleting)]);
    assert!(replica.durable().images.is_empty() && replica.is_idle());
}

/// R28: one region is on its way into an image that is deleted, when a write to another one comes.
fn no_more_is_put_into_an_image_that_is_to_go(play: &Play) {
    let mut replica = with_room(play);
    let last = 2 << 16;
    let actions = asked(&mut replica, Epoch(2), write_at(last, 1));
    assert_eq!(carried_out(&mut replica, actions, |_| false).0, [Ok(Answer::Done)]);
    let actions = asked(&mut replica, Epoch(2), prepare(1, 1));
    let (_, first) = carried_out(&mut replica, actions, preserves);
    assert_eq!(first.len(), 1);
    let mut actions = asked(&mut replica, Epoch(2), Ask::SnapDelete { id: SNAP });
    actions.extend(asked(&mut replica, Epoch(2), write_at(last, 2)));
    let (answers, more) = carried_out(&mut replica, actions, preserves);
    assert!(answers.is_empty() && more.is_empty(), "into an image that is to go: {more:?}");
    let (answers, _) = carried_out(&mut replica, first, |_| false);
    assert_eq!(answers.len(), 2, "{answers:?}");
    assert!(replica.durable().images.is_empty() && replica.is_idle());
}

/// R28: what a look was sent for is in another image by the time that the disk looks.
fn what_was_handed_down_under_a_look_is_looked_for_again(play: &Play) {
    let (mut replica, [looked, hands]) = with_heir(play, true);
    let of = |actions: &[Action<HeapPayload>]| match actions {
        [Action::Image { token, op: ImageOp::Look { image, .. } }] => (*token, *image),
        other => panic!("{other:?}"),
    };
    let (token, image) = of(&looked);
    assert_ne!(image, SNAP);
    carried_out(&mut replica, hands, |_| false);
    replica.handle_disk(Instant(3), token, Err(DiskError::BitRot));
    let again: Vec<_> = std::iter::from_fn(|| replica.poll_action()).collect();
    assert!(matches!(again[..], [Action::Image { .. }]), "{again:?}");
    assert_eq!(of(&again).1, SNAP);
}
