//! The broken rules of protocol.md 4.12: each switched on in turn must be caught by the simulator.
//!
//! Must always hold: without the feature `mutants` every question is answered "no" at compile time.

/// One rule, broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// R4: the resync set ignores the target's own stamps.
    ResyncWithoutUnion,
    /// R5: blocks are read before they are reconciled.
    ReadBeforeReconcile,
    /// R2: a write completes before the swap that removes a silent member.
    CompleteBeforeSwap,
    /// R3: a joiner is admitted although its acknowledgements were never required.
    AdmitEarly,
    /// R1: replicas do not compare epochs.
    NoFence,
    /// R2: a removed member's base is the current generation instead of the last sealed one.
    BaseCurrent,
    /// R6: data reaches the disk before the stamp.
    StampAfterData,
    /// R7: an interval is sealed with a write in flight.
    SealInFlight,
    /// After a removal a write completes without every remaining member.
    CompleteWithoutRemaining,
    /// R8: a member that lost its cache is trusted.
    TrustLossy,
    /// R7, cached mode: sealed without a flush.
    SealWithoutFlush,
    /// R14: a re-read that shows the old revision settles an unknown swap.
    RereadSettles,
    /// R11: a promise is bound to the epoch alone, not to the session.
    PromiseToEpochAlone,
    /// R11: no watermark, and repair does not raise epochs.
    NoWatermark,
    /// R3: dropping a join leaves its attachment alive.
    DropKeepsAttachment,
    /// R23: admission does not wait for the joiner's acknowledgement of a paused write.
    AdmitBeforePausedWrite,
    /// R3: a range is unlocked before a joiner's best-effort write is done.
    EarlyUnlock,
}

impl Mutation {
    /// Every mutation with the name that `--mutation` takes.
    pub const ALL: [(Mutation, &'static str); 17] = [
        (Mutation::ResyncWithoutUnion, "r4-resync-without-union"),
        (Mutation::ReadBeforeReconcile, "r5-read-before-reconcile"),
        (Mutation::CompleteBeforeSwap, "r2-complete-before-swap"),
        (Mutation::AdmitEarly, "r3-admit-early"),
        (Mutation::NoFence, "r1-no-fence"),
        (Mutation::BaseCurrent, "r2-base-current"),
        (Mutation::StampAfterData, "r6-stamp-after-data"),
        (Mutation::SealInFlight, "r7-seal-in-flight"),
        (Mutation::CompleteWithoutRemaining, "r2-complete-without-remaining"),
        (Mutation::TrustLossy, "r8-trust-lossy"),
        (Mutation::SealWithoutFlush, "r7-seal-without-flush"),
        (Mutation::RereadSettles, "r14-reread-settles"),
        (Mutation::PromiseToEpochAlone, "r11-promise-to-epoch-alone"),
        (Mutation::NoWatermark, "r11-no-watermark"),
        (Mutation::DropKeepsAttachment, "r3-drop-keeps-attachment"),
        (Mutation::AdmitBeforePausedWrite, "r23-admit-before-paused-write"),
        (Mutation::EarlyUnlock, "r3-early-unlock"),
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
