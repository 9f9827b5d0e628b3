//! The protocol's rules, broken: those of protocol.md 4.12 and those that were added since. Each in turn must be
//! caught by the simulator or by weft-crash; docs/mutations.md lists them all, and what can't be broken here.
//!
//! Must always hold: without the feature `mutants` every question is answered "no" at compile time.

/// One rule, broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// R1: replicas do not compare epochs.
    NoFence,
    /// R1: a promise is given although the record names another owner than who asks.
    AnyPromiser,
    /// R1: an attachment and a promise are bound to the session alone: whoever names it is it.
    AttachUnbound,
    /// R1: a promise far above the last one is given without the replica's own read of the store.
    UnverifiedJump,
    /// R1: only a promise far above the last one is given after a read of the store.
    VerifyFarOnly,
    /// R1: the read has to show the epoch or a later one, whomever it names as the owner.
    VerifyEpochOnly,
    /// R1: a promise rises as far as the store shows, though no changes can have led there.
    RiseUnbounded,
    /// R1: a promise is answered while I/O of a lower epoch is under way.
    PromiseBeforeDrain,
    /// R1: a promise is answered before the log has it.
    PromiseBeforeLog,
    /// R1: an attach is answered while I/O of a lower ordinal is under way.
    AttachBeforeDrain,
    /// R1: requests of an older attachment, unread in a buffer until then, still execute.
    OldOrdinalsExecute,
    /// R2: a write completes before the swap that removes a silent member.
    CompleteBeforeSwap,
    /// R2: a removed member's base is the current generation instead of the last sealed one.
    BaseCurrent,
    /// R2: after a removal a write completes without every remaining member.
    CompleteWithoutRemaining,
    /// R2: members are taken out although fewer than min_isr are left.
    BelowMinIsr,
    /// R2: a write that was answered with an error is forgotten.
    ForgetFailedWrite,
    /// R3: a joiner is admitted although its acknowledgements were never required.
    AdmitEarly,
    /// R3: dropping a join leaves its attachment alive.
    DropKeepsAttachment,
    /// R3: a range is unlocked before a joiner's best-effort write is done.
    EarlyUnlock,
    /// R3: admission does not wait for what was answered without the joiner.
    AdmitBeforeBestEffort,
    /// R4: the resync set ignores the target's own stamps.
    ResyncWithoutUnion,
    /// R4: a joiner gets no stamp of what it was compared by and had already.
    EqualUnstamped,
    /// R4: what was on its way when a join began is neither sent to the joiner nor copied (docs/model.md, finding
    /// 4).
    JoinIgnoresInFlight,
    /// R5: blocks are read before they are reconciled.
    ReadBeforeReconcile,
    /// R5: an interval is sealed while members may differ.
    SealWhileDirty,
    /// R6: data reaches the disk before the stamp.
    StampAfterData,
    /// R7: an interval is sealed with a write in flight.
    SealInFlight,
    /// R7, cached mode: sealed without a flush.
    SealWithoutFlush,
    /// R7: an interval is sealed while a growth is under way on some member.
    SealWhileGrowing,
    /// R7: a member is believed to have sealed what nobody can have sealed yet.
    SealBelieved,
    /// R8: a member that lost its cache is trusted.
    TrustLossy,
    /// R8: a session goes on although every member lost its cache.
    OutliveCaches,
    /// R8: members are equalised from one that lost its cache.
    LossySource,
    /// R9: reads are answered without a lease.
    NoLease,
    /// R9: a thief does not wait.
    NoWait,
    /// R9: a thief waits only if a promise is missing.
    WaitOnlyIfMissing,
    /// R9: a thief answers reads while it waits (docs/model.md, finding 1).
    ReadWhileWaiting,
    /// R9: a steal does not leave its wait in the record.
    NoWaitMark,
    /// R9: who need not wait for the last owner does not wait for the one before, either.
    ExceptionIgnoresMark,
    /// R9: a thief closes before its wait is over.
    CloseBeforeWait,
    /// R9: the wait counts from the claim, not from the first promise.
    WaitFromClaim,
    /// R9: no margin for clocks that differ.
    NoMargin,
    /// R9: the heartbeat of one member is enough.
    AnyMemberLease,
    /// R9: a heartbeat counts from its answer, not from its question.
    LeaseFromAnswer,
    /// R9: a joiner whose admission is unsettled is not asked.
    JoinerNotAsked,
    /// R9: a member whose removal is unsettled is not asked.
    RemovedNotAsked,
    /// R10: a disk one start behind the store is taken for this host's own unfinished start, whatever its intent.
    IntentIgnored,
    /// R10: an intent whose swap is unsettled is replaced by a new one.
    IntentReplaced,
    /// R10: a disk serves whatever its incarnation.
    AnyIncarnation,
    /// R11: a promise is bound to the epoch alone, not to the session.
    PromiseToEpochAlone,
    /// R11: no watermark, and repair does not raise epochs.
    NoWatermark,
    /// R11: repair does not raise epochs.
    RepairWithoutJump,
    /// R11: a promise above the record is taken for a rollback without another read of the store.
    RollbackUnread,
    /// R11: while the store is away, a promise is given to a session that has seen less of it than this host.
    PromiseBehind,
    /// R11: an open goes on although another host says that it has seen more of the store than a read shows.
    ClaimIgnored,
    /// R11: a swap compares the revision alone, which a restored store counts anew (docs/model.md, finding 3).
    SwapComparesRevision,
    /// R11, 4.15: after a removal writes complete before the remaining members hold the new record.
    CompleteBeforeRepromise,
    /// R13: what a killed process had sent to its disk lands after the next one has begun.
    LandAfterDeath,
    /// R14: a re-read that shows the old revision settles an unknown swap.
    RereadSettles,
    /// R14: a swap of unknown outcome counts as one that was not applied.
    UnknownIsFailed,
    /// R14: a removal of unknown outcome counts as done.
    UnknownRemovalCounts,
    /// R14: a session does not look for its own nonce.
    NonceIgnored,
    /// R16: a volume is claimed before any in-sync member has answered.
    ClaimBlind,
    /// R17: sealing an interval drops the bitmap of the next one, too.
    DropAllBitmaps,
    /// R17: bitmaps are dropped although a stale member's base lies below them.
    DropNeededBitmaps,
    /// R18: a grown size is logged before the new part is absent.
    GrowBeforeAbsent,
    /// R18: a replica makes absent what lies beyond its own size, not what lies beyond the record's.
    GrowFromOwnSize,
    /// R18: what growing made absent is not stamped: a replica that was away keeps what it has there.
    GrowUnstamped,
    /// R18, D13: the record's size is raised before the replicas have grown.
    SwapBeforeGrow,
    /// R18: a GROW that was answered before a promise counts after it.
    GrownAcrossEpochs,
    /// R18, D14: a joiner comes in at the size that it has.
    JoinWithoutGrow,
    /// R18: replicas are cut before the swap that says so.
    CutBeforeSwap,
    /// R18: a cut that a replica has begun goes on after it has grown again.
    CutAfterGrow,
    /// R18: or after a promise to a record that knows of no cut.
    CutAfterPromise,
    /// R18: a promise that is asked for again cuts what has grown since it was given.
    CutOnAnyPromise,
    /// R19: a discard is acknowledged before it is durable.
    ZeroBeforeFlush,
    /// R21: intervals begin anew within an epoch.
    IntervalsWrap,
    /// R22: a seal is logged before the checksums that it makes authoritative are on the disk.
    SealBeforeSidecar,
    /// R23: admission does not wait for the joiner's acknowledgement of a paused write.
    AdmitBeforePausedWrite,
    /// R23: a join waits for a write that waits for a lost member.
    RescueWaits,
    /// R24: a quarantined replica goes on serving.
    QuarantinedServes,
    /// R25: growing raises `rev` only.
    GrowKeepsEpoch,
    /// R25: shrinking raises `rev` only.
    ShrinkKeepsEpoch,
    /// R25: the asker is told as soon as the swap is done.
    ToldAtSwap,
    /// R25: another min_isr raises `rev` only.
    PolicyKeepsEpoch,
    /// R28: data reaches the disk before what it changes is in the image that needs it.
    DataBeforePreserve,
    /// R28: an image is logged while a write of its interval is under way.
    PrepareBeforeDrain,
    /// R28: a write of before the barrier is executed after an image was taken.
    OldGenerationAfterPrepare,
    /// R28: an image is logged as one that goes while something is put into it (docs/model.md, finding 20).
    PreserveIntoDeleted,
    /// R28: room is made for an attempt while the image of an earlier one is there.
    AttemptReplaced,
    /// R28: what attempts at a snapshot were dropped is not remembered (docs/model.md, finding 22).
    AttemptForgotten,
    /// R28: an image is logged while the head is being cut.
    PrepareBeforeCut,
    /// R28: the head changes while an image is at the log.
    WriteWhilePreparing,
    /// R28: the log has an image before the pool has taken its snapshot of the head.
    LoggedBeforeTaken,
    /// R28: an image is logged as one that goes while a segment is handed down to it.
    HeirDeleted,
    /// R28: more is put into an image that is to go as soon as what is on its way there has ended.
    PreserveIntoDoomed,
    /// R28: a look is not asked for again where what it looks for was handed down meanwhile.
    LookOnce,
    /// R29: what was not stamped since the newer of two images was taken counts as unchanged between them.
    ChangedSinceNewer,
    /// R29: what is past the end of the older of two images counts as unchanged.
    ChangedWithinOlder,
    /// R29: what has changed is told by a member that got an image of either from others.
    ChangedByCopy,
    /// R29: the data of an image goes before hashes of it are kept.
    DestroyUnhashed,
    /// R29: the data of a snapshot counts as destroyed at a member that is away.
    DestroyForgetsAway,
    /// R30: nothing in the record says that the volume is being taken back to a snapshot.
    RevertUnmarked,
    /// R30: the marker of a revert is set within the epoch.
    RevertMarkerKeepsEpoch,
    /// R30: whoever opens a volume that is being taken back serves it first.
    RevertServesFirst,
    /// R30: what one member has brought back counts as brought back.
    RevertClearedByOne,
    /// R30: the marker comes off within the epoch.
    RevertClearKeepsEpoch,
    /// R30: whoever asked for a revert is told as soon as the swap is done.
    RevertToldAtSwap,
    /// R30, R7: what has come back at some members only is sealed.
    RevertSealedPartly,
    /// R30, 4.13: what is brought back does not count as written while a member is away.
    RevertUnnoted,
    /// R31: a guest opens a volume whose head is deleted.
    HeadOpened,
    /// R31: what only a deleted head has goes before every member knows that it may.
    HeadGoesUntold,
    /// R31: the record says within the epoch that what only a deleted head has goes.
    HeadReleaseKeepsEpoch,
    /// I21: PREPARE is sent while writes of the interval are on their way.
    SnapNoDrain,
    /// I21: writes go on before every member has its image.
    SnapResumeEarly,
    /// D12: a snapshot is taken before the members are made equal.
    SnapBeforeReconcile,
    /// I21: a snapshot lists a member that has not taken its image.
    SnapListsSilent,
    /// R14: an attempt follows one whose swap is unsettled.
    SnapRetryUnsettled,
    /// R14: images are dropped while the swap of their attempt is unsettled.
    SnapDropUnsettled,
    /// R27: whoever asked is told as soon as the swap is done.
    SnapReportAtSwap,
    /// 4.19: a member is put on a snapshot's list before it has logged that it has all of it.
    SnapCopyUnlogged,
    /// D19: a volume of a group goes on as soon as it can.
    GroupGoesOn,
    /// D19: each volume of a group has a transaction of its own.
    GroupTwoSwaps,
    /// D19: a group goes on without the volume that fails.
    GroupWithoutOne,
    /// D19, R14: a swap of a group's that is unsettled is sent again alone.
    GroupSettlesAlone,
    /// R32: whoever takes a volume from a guest goes on with that guest's ownership.
    AnyOwnerContinues,
    /// R33: whoever was to replace one owner replaces any.
    ReplaceAny,
    /// M26: after a failed flush the member goes on.
    FailedFlushForgotten,
    /// I1: a close changes the owner within the epoch.
    CloseKeepsEpoch,
    /// I12: a read that a write overtook is answered with what it brought (docs/adr/0007).
    OvertakenRead,
    /// I15: a joiner serves reads.
    ReadFromJoiner,
    /// I26: a close does not wait until every member has logged its seal.
    CloseUnsealed,
    /// I29: an added replica does not use its number up.
    ReuseReplicaNumber,
    /// D2: overlapping writes are under way at once.
    NoRangeLock,
    /// D15: copies are compared while writes to them are under way.
    ScrubWithoutLock,
    /// 4.10: of copies that differ, each with a right checksum, one is taken for the truth.
    RepairFromBad,
    /// R15: a record that is not there lets a replica be trashed.
    AbsenceDeletes,
    /// R15: a tombstone is not compared with the record that the replica keeps.
    TombstoneOfThePast,
    /// R20, 4.3: the log forgets records that no checkpoint holds.
    ForgetWithoutCheckpoint,
}

impl Mutation {
    /// Every mutation with the name that `--mutation` takes, in the order of the rules.
    pub const ALL: [(Mutation, &'static str); 136] = [
        (Mutation::NoFence, "r1-no-fence"),
        (Mutation::AnyPromiser, "r1-any-promiser"),
        (Mutation::AttachUnbound, "r1-attach-unbound"),
        (Mutation::UnverifiedJump, "r1-unverified-jump"),
        (Mutation::VerifyFarOnly, "r1-verify-far-only"),
        (Mutation::VerifyEpochOnly, "r1-verify-epoch-only"),
        (Mutation::RiseUnbounded, "r1-rise-unbounded"),
        (Mutation::PromiseBeforeDrain, "r1-promise-before-drain"),
        (Mutation::PromiseBeforeLog, "r1-promise-before-log"),
        (Mutation::AttachBeforeDrain, "r1-attach-before-drain"),
        (Mutation::OldOrdinalsExecute, "r1-old-ordinals-execute"),
        (Mutation::CompleteBeforeSwap, "r2-complete-before-swap"),
        (Mutation::BaseCurrent, "r2-base-current"),
        (Mutation::CompleteWithoutRemaining, "r2-complete-without-remaining"),
        (Mutation::BelowMinIsr, "r2-below-min-isr"),
        (Mutation::ForgetFailedWrite, "r2-forget-failed-write"),
        (Mutation::AdmitEarly, "r3-admit-early"),
        (Mutation::DropKeepsAttachment, "r3-drop-keeps-attachment"),
        (Mutation::EarlyUnlock, "r3-early-unlock"),
        (Mutation::AdmitBeforeBestEffort, "r3-admit-before-best-effort"),
        (Mutation::ResyncWithoutUnion, "r4-resync-without-union"),
        (Mutation::EqualUnstamped, "r4-equal-unstamped"),
        (Mutation::JoinIgnoresInFlight, "r4-join-ignores-in-flight"),
        (Mutation::ReadBeforeReconcile, "r5-read-before-reconcile"),
        (Mutation::SealWhileDirty, "r5-seal-while-dirty"),
        (Mutation::StampAfterData, "r6-stamp-after-data"),
        (Mutation::SealInFlight, "r7-seal-in-flight"),
        (Mutation::SealWithoutFlush, "r7-seal-without-flush"),
        (Mutation::SealWhileGrowing, "r7-seal-while-growing"),
        (Mutation::SealBelieved, "r7-seal-believed"),
        (Mutation::TrustLossy, "r8-trust-lossy"),
        (Mutation::OutliveCaches, "r8-outlive-caches"),
        (Mutation::LossySource, "r8-lossy-source"),
        (Mutation::NoLease, "r9-no-lease"),
        (Mutation::NoWait, "r9-no-wait"),
        (Mutation::WaitOnlyIfMissing, "r9-wait-only-if-missing"),
        (Mutation::ReadWhileWaiting, "r9-read-while-waiting"),
        (Mutation::NoWaitMark, "r9-no-wait-mark"),
        (Mutation::ExceptionIgnoresMark, "r9-exception-ignores-mark"),
        (Mutation::CloseBeforeWait, "r9-close-before-wait"),
        (Mutation::WaitFromClaim, "r9-wait-from-claim"),
        (Mutation::NoMargin, "r9-no-margin"),
        (Mutation::AnyMemberLease, "r9-any-member"),
        (Mutation::LeaseFromAnswer, "r9-age-from-answer"),
        (Mutation::JoinerNotAsked, "r9-joiner-not-asked"),
        (Mutation::RemovedNotAsked, "r9-removed-not-asked"),
        (Mutation::IntentIgnored, "r10-intent-ignored"),
        (Mutation::IntentReplaced, "r10-intent-replaced"),
        (Mutation::AnyIncarnation, "r10-any-incarnation"),
        (Mutation::PromiseToEpochAlone, "r11-promise-to-epoch-alone"),
        (Mutation::NoWatermark, "r11-no-watermark"),
        (Mutation::RepairWithoutJump, "r11-repair-without-jump"),
        (Mutation::RollbackUnread, "r11-rollback-unread"),
        (Mutation::PromiseBehind, "r11-promise-behind"),
        (Mutation::ClaimIgnored, "r11-claim-ignored"),
        (Mutation::SwapComparesRevision, "r11-swap-compares-revision"),
        (Mutation::CompleteBeforeRepromise, "r11-complete-before-repromise"),
        (Mutation::LandAfterDeath, "r13-land-after-death"),
        (Mutation::RereadSettles, "r14-reread-settles"),
        (Mutation::UnknownIsFailed, "r14-unknown-is-failed"),
        (Mutation::UnknownRemovalCounts, "r14-unknown-removal-counts"),
        (Mutation::NonceIgnored, "r14-nonce-ignored"),
        (Mutation::SnapRetryUnsettled, "r14-snap-retry-unsettled"),
        (Mutation::SnapDropUnsettled, "r14-snap-drop-unsettled"),
        (Mutation::ClaimBlind, "r16-claim-blind"),
        (Mutation::DropAllBitmaps, "r17-drop-all-bitmaps"),
        (Mutation::DropNeededBitmaps, "r17-drop-needed-bitmaps"),
        (Mutation::GrowBeforeAbsent, "r18-grow-before-absent"),
        (Mutation::GrowFromOwnSize, "r18-grow-from-own-size"),
        (Mutation::GrowUnstamped, "r18-grow-unstamped"),
        (Mutation::SwapBeforeGrow, "r18-swap-before-grow"),
        (Mutation::GrownAcrossEpochs, "r18-grown-across-epochs"),
        (Mutation::JoinWithoutGrow, "r18-join-without-grow"),
        (Mutation::CutBeforeSwap, "r18-cut-before-swap"),
        (Mutation::CutAfterGrow, "r18-cut-after-grow"),
        (Mutation::CutAfterPromise, "r18-cut-after-promise"),
        (Mutation::CutOnAnyPromise, "r18-cut-on-any-promise"),
        (Mutation::ZeroBeforeFlush, "r19-zero-before-flush"),
        (Mutation::IntervalsWrap, "r21-intervals-wrap"),
        (Mutation::SealBeforeSidecar, "r22-seal-before-sidecar"),
        (Mutation::AdmitBeforePausedWrite, "r23-admit-before-paused-write"),
        (Mutation::RescueWaits, "r23-rescue-waits"),
        (Mutation::QuarantinedServes, "r24-quarantined-serves"),
        (Mutation::GrowKeepsEpoch, "r25-grow-keeps-epoch"),
        (Mutation::ShrinkKeepsEpoch, "r25-shrink-keeps-epoch"),
        (Mutation::ToldAtSwap, "r25-told-at-swap"),
        (Mutation::PolicyKeepsEpoch, "r25-policy-keeps-epoch"),
        (Mutation::SnapReportAtSwap, "r27-report-at-swap"),
        (Mutation::SnapCopyUnlogged, "r27-copy-unlogged"),
        (Mutation::DataBeforePreserve, "r28-data-before-preserve"),
        (Mutation::PrepareBeforeDrain, "r28-prepare-before-drain"),
        (Mutation::OldGenerationAfterPrepare, "r28-old-generation-after-prepare"),
        (Mutation::PreserveIntoDeleted, "r28-preserve-into-deleted"),
        (Mutation::AttemptReplaced, "r28-attempt-replaced"),
        (Mutation::AttemptForgotten, "r28-attempt-forgotten"),
        (Mutation::PrepareBeforeCut, "r28-prepare-before-cut"),
        (Mutation::WriteWhilePreparing, "r28-write-while-preparing"),
        (Mutation::LoggedBeforeTaken, "r28-logged-before-taken"),
        (Mutation::HeirDeleted, "r28-heir-deleted"),
        (Mutation::PreserveIntoDoomed, "r28-preserve-into-doomed"),
        (Mutation::LookOnce, "r28-look-once"),
        (Mutation::ChangedSinceNewer, "r29-since-newer"),
        (Mutation::ChangedWithinOlder, "r29-within-older"),
        (Mutation::ChangedByCopy, "r29-changed-by-copy"),
        (Mutation::DestroyUnhashed, "r29-destroy-unhashed"),
        (Mutation::DestroyForgetsAway, "r29-destroy-forgets-away"),
        (Mutation::RevertUnmarked, "r30-unmarked"),
        (Mutation::RevertMarkerKeepsEpoch, "r30-marker-keeps-epoch"),
        (Mutation::RevertServesFirst, "r30-serves-first"),
        (Mutation::RevertClearedByOne, "r30-cleared-by-one"),
        (Mutation::RevertClearKeepsEpoch, "r30-clear-keeps-epoch"),
        (Mutation::RevertToldAtSwap, "r30-told-at-swap"),
        (Mutation::RevertSealedPartly, "r30-sealed-in-part"),
        (Mutation::RevertUnnoted, "r30-unnoted"),
        (Mutation::HeadOpened, "r31-opened"),
        (Mutation::HeadGoesUntold, "r31-goes-untold"),
        (Mutation::HeadReleaseKeepsEpoch, "r31-release-keeps-epoch"),
        (Mutation::AnyOwnerContinues, "r32-any-owner-continues"),
        (Mutation::ReplaceAny, "r33-replaces-any"),
        (Mutation::FailedFlushForgotten, "m26-failed-flush-forgotten"),
        (Mutation::CloseKeepsEpoch, "i1-close-keeps-epoch"),
        (Mutation::OvertakenRead, "i12-overtaken-read"),
        (Mutation::ReadFromJoiner, "i15-read-from-joiner"),
        (Mutation::SnapNoDrain, "i21-no-drain"),
        (Mutation::SnapResumeEarly, "i21-resume-early"),
        (Mutation::SnapListsSilent, "i21-lists-silent"),
        (Mutation::CloseUnsealed, "i26-close-unsealed"),
        (Mutation::ReuseReplicaNumber, "i29-reuse-replica-number"),
        (Mutation::NoRangeLock, "d2-no-range-lock"),
        (Mutation::RepairFromBad, "d7-repair-from-bad"),
        (Mutation::SnapBeforeReconcile, "d12-before-reconcile"),
        (Mutation::ScrubWithoutLock, "d15-scrub-without-lock"),
        (Mutation::GroupGoesOn, "d19-goes-on"),
        (Mutation::GroupTwoSwaps, "d19-two-swaps"),
        (Mutation::GroupWithoutOne, "d19-without-one"),
        (Mutation::GroupSettlesAlone, "d19-settles-alone"),
    ];

    /// What weft-crash breaks: rules of what a pool keeps, in the daemon's own code.
    pub const OF_POOLS: [(Mutation, &'static str); 6] = [
        (Mutation::PromiseBeforeLog, "r1-promise-before-log"),
        (Mutation::StampAfterData, "r6-stamp-after-data"),
        (Mutation::AbsenceDeletes, "r15-absence-deletes"),
        (Mutation::TombstoneOfThePast, "r15-tombstone-of-the-past"),
        (Mutation::ForgetWithoutCheckpoint, "r20-forget-without-checkpoint"),
        (Mutation::SealBeforeSidecar, "r22-seal-before-sidecar"),
    ];
}

/// The rule that is broken in this machine, if any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Broken {
    #[cfg(feature = "mutants")]
    rule: Option<Mutation>,
}

impl Broken {
    /// Breaks one rule.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn rule(rule: Option<Mutation>) -> Broken {
        Broken { rule }
    }

    /// Is this rule broken here?
    #[must_use]
    #[cfg(feature = "mutants")]
    pub fn is(self, mutation: Mutation) -> bool {
        self.rule == Some(mutation)
    }

    /// Is this rule broken here? Never, in a build without the feature.
    #[must_use]
    #[cfg(not(feature = "mutants"))]
    pub fn is(self, _mutation: Mutation) -> bool {
        false
    }
}
