//! Named cases: for every rule its mutation, the bounds under which its counter-example is found, and how long the
//! shortest one is; and the bounds under which the unbroken models are run.
//!
//! Must always hold:
//! - every mutation of every model has a case here (a test says so);
//! - `steps` is exact: a change of a model that makes a trace longer or shorter is looked at before it is accepted.

use crate::core::{self, LateSwaps, Rollback};
use crate::explore::{Report, Walks, search, walk};
use crate::{cbt, claims, disk, image, lease, liar, pool, register, revert, size, snapshot, trash};

/// States within which a short counter-example is found.
pub(crate) const SMALL: usize = 1_000_000;

/// A model with its bounds.
#[derive(Debug, Clone, Copy)]
pub enum Setup {
    /// The replication core.
    Core(core::Config),
    /// Read leases and the handover.
    Lease(lease::Config),
    /// Snapshots.
    Snapshot(snapshot::Config),
    /// Register mode.
    Register(register::Config),
    /// Incarnations of a pool.
    Pool(pool::Config),
    /// The trash.
    Trash(trash::Config),
    /// The size of a volume.
    Size(size::Config),
    /// A replica's disk.
    Disk(disk::Config),
    /// A replica's lazy images.
    Image(image::Config),
    /// Changed blocks, clones, folds.
    Cbt(cbt::Config),
    /// A volume taken back to a snapshot.
    Revert(revert::Config),
    /// A host that lies.
    Liar(liar::Config),
    /// What hosts tell each other of the store.
    Claims(claims::Config),
}

/// Binds the model of a setup, whatever its type.
macro_rules! with_model {
    ($setup:expr, $model:ident => $does:expr) => {
        match $setup {
            Setup::Core(config) => {
                let $model = core::Core(config);
                $does
            }
            Setup::Lease(config) => {
                let $model = lease::Lease(config);
                $does
            }
            Setup::Snapshot(config) => {
                let $model = snapshot::Snapshot(config);
                $does
            }
            Setup::Register(config) => {
                let $model = register::Register(config);
                $does
            }
            Setup::Pool(config) => {
                let $model = pool::Pool(config);
                $does
            }
            Setup::Trash(config) => {
                let $model = trash::Trash(config);
                $does
            }
            Setup::Size(config) => {
                let $model = size::Size(config);
                $does
            }
            Setup::Disk(config) => {
                let $model = disk::Disk(config);
                $does
            }
            Setup::Image(config) => {
                let $model = image::Images(config);
                $does
            }
            Setup::Cbt(config) => {
                let $model = cbt::Cbt(config);
                $does
            }
            Setup::Revert(config) => {
                let $model = revert::Revert(config);
                $does
            }
            Setup::Liar(config) => {
                let $model = liar::Liar(config);
                $does
            }
            Setup::Claims(config) => {
                let $model = claims::Claims(config);
                $does
            }
        }
    };
}

impl Setup {
    /// The model's name on the command line.
    #[must_use]
    pub fn model(&self) -> &'static str {
        match self {
            Setup::Core(_) => "core",
            Setup::Lease(_) => "lease",
            Setup::Snapshot(_) => "snapshot",
            Setup::Disk(_) => "disk",
            Setup::Image(_) => "image",
            Setup::Cbt(_) => "cbt",
            Setup::Revert(_) => "revert",
            Setup::Liar(_) => "liar",
            Setup::Claims(_) => "claims",
            Setup::Size(_) => "size",
            Setup::Trash(_) => "trash",
            Setup::Pool(_) => "pool",
            Setup::Register(_) => "register",
        }
    }

    /// The rule that is broken, as its model calls it.
    #[must_use]
    pub fn mutation(&self) -> Option<String> {
        with_model!(*self, model => model.0.mutation.map(|mutation| format!("{mutation:?}")))
    }

    /// Breadth-first search.
    #[must_use]
    pub fn search(&self, max_states: usize) -> Report {
        with_model!(*self, model => search(&model, max_states))
    }

    /// Random walks.
    #[must_use]
    pub fn walk(&self, walks: Walks) -> Report {
        with_model!(*self, model => walk(&model, walks))
    }

    /// Whether the bounds make sense.
    ///
    /// # Errors
    /// A sentence for the person who gave them.
    pub fn check(&self) -> Result<(), String> {
        let (replicas, sessions, in_sync) = match self {
            Setup::Core(config) => {
                if config.blocks == 0 {
                    return Err("at least one block".into());
                }
                (config.replicas, config.sessions, config.in_sync)
            }
            Setup::Lease(config) => (config.replicas, config.sessions, config.in_sync),
            // Their bounds are those of their cases.
            _ => return Ok(()),
        };
        let members = (0..replicas).any(|r| in_sync & (1 << r) != 0);
        if replicas == 0 || sessions == 0 || !members {
            return Err("at least one replica in sync and one session".into());
        }
        Ok(())
    }
}

/// What a run of a case must end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// A counter-example whose shortest trace has this many steps.
    Steps(usize),
    /// Nothing, in all states.
    Exhausted,
    /// Nothing within the bound.
    Bounded,
    /// Too deep for a search: walks of 60 steps from this seed meet a counter-example of so many steps.
    Walked(u64, usize),
}

/// A named case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The mutation's name, or the name of an unbroken run.
    pub name: &'static str,
    /// The rule, in a few words.
    pub rule: &'static str,
    /// Model and bounds.
    pub setup: Setup,
    /// The search stops here.
    pub max_states: usize,
    /// How it must end.
    pub expected: Expected,
}

impl Case {
    /// The search of at most so many states, or the walks, that the case stands for.
    #[must_use]
    pub fn run(&self, max_states: usize) -> Report {
        match self.expected {
            Expected::Walked(seed, _) => self.setup.walk(Walks { count: 60_000, length: 60, seed }),
            Expected::Steps(_) | Expected::Exhausted | Expected::Bounded => self.setup.search(max_states),
        }
    }
}

const CORE: core::Config = core::Config {
    replicas: 2,
    sessions: 2,
    blocks: 1,
    writes: 2,
    max_epoch: 5,
    in_sync: 0b111,
    min_isr: 1,
    cached: false,
    cache_losses: 0,
    ack_changes: 0,
    resume_fill: false,
    renew: false,
    adds: false,
    force: false,
    damage: false,
    late_swaps: LateSwaps::Never,
    best_effort: false,
    rescue: false,
    rescue_open: false,
    fine_bitmap: false,
    rollback: Rollback::Never,
    mutation: None,
};

const CACHED: core::Config = core::Config { cached: true, cache_losses: 1, writes: 1, ..CORE };
const RESCUE: core::Config = core::Config { rescue: true, min_isr: 2, in_sync: 0b011, replicas: 3, ..CORE };
const BEST_EFFORT: core::Config = core::Config { best_effort: true, sessions: 1, writes: 3, ..CORE };
const LATE: core::Config = core::Config { late_swaps: LateSwaps::All, ..CORE };
const LATE_ADMISSION: core::Config = core::Config { late_swaps: LateSwaps::Admissions, ..CORE };
const RESTORED: core::Config = core::Config { rollback: Rollback::EveryHostKnows, ..CORE };
const RESTORED_UNKNOWN: core::Config = core::Config { rollback: Rollback::HostsKnowThisVolume, ..CORE };
const TWO_BLOCKS: core::Config = core::Config { blocks: 2, ..CORE };
const ACK: core::Config =
    core::Config { ack_changes: 1, cached: true, cache_losses: 2, writes: 1, sessions: 2, ..CORE };
const FILL: core::Config = core::Config { resume_fill: true, ..CORE };
const FORCE: core::Config = core::Config { force: true, ..CORE };
const REBUILT: core::Config = core::Config { rollback: Rollback::Lost, writes: 1, max_epoch: 4, ..CORE };
const FINE: core::Config = core::Config { fine_bitmap: true, ..TWO_BLOCKS };

/// The first owner lives on the heartbeats it has: enough for most counter-examples, and small.
const LEASE: lease::Config = lease::Config {
    replicas: 2,
    sessions: 2,
    writes: 1,
    max_epoch: 5,
    in_sync: 0b11,
    lease: 2,
    drift: false,
    reconfigure: false,
    closes: false,
    assertions: false,
    heartbeats: false,
    handover: false,
    revocable: 0,
    strict: false,
    mutation: None,
};

const BEATING: lease::Config = lease::Config { heartbeats: true, ..LEASE };
const CHAIN: lease::Config = lease::Config { sessions: 3, ..LEASE };
const REVOKED: lease::Config = lease::Config { revocable: 0b101, strict: true, ..CHAIN };
const HANDOVER: lease::Config = lease::Config { handover: true, strict: true, ..LEASE };

impl Case {
    /// A case whose states are few, one that breaks a rule most of the time.
    pub(crate) const fn small(
        name: &'static str,
        rule: &'static str,
        setup: Setup,
        expected: Expected,
    ) -> Case {
        Case { name, rule, setup, max_states: SMALL, expected }
    }
}

const fn broken(
    name: &'static str,
    rule: &'static str,
    config: core::Config,
    mutation: core::Mutation,
    max_states: usize,
    steps: usize,
) -> Case {
    let setup = Setup::Core(core::Config { mutation: Some(mutation), ..config });
    Case { name, rule, setup, max_states, expected: Expected::Steps(steps) }
}

const fn broken_lease(
    name: &'static str,
    rule: &'static str,
    config: lease::Config,
    mutation: lease::Mutation,
    max_states: usize,
    expected: Expected,
) -> Case {
    let setup = Setup::Lease(lease::Config { mutation: Some(mutation), ..config });
    Case { name, rule, setup, max_states, expected }
}

/// A case with every rule in force.
pub(crate) const fn unbroken(
    name: &'static str,
    rule: &'static str,
    setup: Setup,
    max_states: usize,
    expected: Expected,
) -> Case {
    Case { name, rule, setup, max_states, expected }
}

/// All cases of all models.
pub fn all() -> impl Iterator<Item = &'static Case> {
    let small = [snapshot::CASES, register::CASES, pool::CASES, trash::CASES, size::CASES, disk::CASES];
    let lied_to = [liar::CASES, claims::CASES];
    let life = [image::CASES, cbt::CASES, revert::CASES];
    CASES.iter().chain(small.into_iter().chain(lied_to).chain(life).flatten())
}

/// Cases of core and lease: first the table of protocol.md 4.12, then what came after it, then R9, then the unbroken runs.
pub const CASES: &[Case] = &[
    // The table of 4.12.
    broken("no-union", "R4 source stamps only", CORE, core::Mutation::NoUnion, SMALL, 17),
    broken(
        "read-before-reconcile",
        "R5 read before reconcile",
        CORE,
        core::Mutation::ReadBeforeReconcile,
        100_000,
        11,
    ),
    broken(
        "ack-before-removal",
        "R2 complete before CAS",
        CORE,
        core::Mutation::AckBeforeRemoval,
        100_000,
        7,
    ),
    broken("admit-early", "R3 admit early", CORE, core::Mutation::AdmitEarly, 500_000, 15),
    broken("no-fence", "R1 no fence", CORE, core::Mutation::NoFence, 100_000, 10),
    broken("base-current", "R2 base := current generation", CORE, core::Mutation::BaseCurrent, SMALL, 17),
    broken("stamp-after-data", "R6 stamp after data", CORE, core::Mutation::StampAfterData, 100_000, 10),
    broken("seal-early", "R7 seal with a write in flight", CORE, core::Mutation::SealEarly, 100_000, 12),
    broken(
        "ack-without-all",
        "R2 ack without all remaining members after a removal",
        CORE,
        core::Mutation::AckWithoutAll,
        100_000,
        9,
    ),
    broken("trust-lossy", "R8 trust a lossy member", CACHED, core::Mutation::TrustLossy, 100_000, 9),
    broken(
        "seal-without-flush",
        "R7 cached: sealed without flush",
        core::Config { max_epoch: 4, ..CACHED },
        core::Mutation::SealWithoutFlush,
        4_000_000,
        20,
    ),
    broken(
        "reread-settles",
        "R14 a re-read settles an unknown CAS",
        LATE_ADMISSION,
        core::Mutation::RereadSettles,
        1_500_000,
        18,
    ),
    broken(
        "promise-bound-to-epoch",
        "R11 promise bound to the epoch alone",
        RESTORED_UNKNOWN,
        core::Mutation::PromiseBoundToEpoch,
        300_000,
        12,
    ),
    broken("no-watermark", "R11 without watermark", RESTORED, core::Mutation::NoWatermark, 1_500_000, 15),
    broken(
        "drop-keeps-attachment",
        "R3 a dropped join leaves its attachment alive",
        BEST_EFFORT,
        core::Mutation::DropKeepsAttachment,
        SMALL,
        26,
    ),
    broken(
        "rescue-admit-early",
        "R23 admission before the joiner has the paused write",
        core::Config { max_epoch: 3, ..RESCUE },
        core::Mutation::RescueAdmitEarly,
        1_500_000,
        21,
    ),
    broken(
        "unlock-early",
        "R3 range unlocked before the joiner's best-effort write is done",
        BEST_EFFORT,
        core::Mutation::UnlockEarly,
        500_000,
        21,
    ),
    // Rules that the table does not have.
    broken(
        "join-ignores-in-flight",
        "R4 a write in flight from before the join is not in the copy set",
        CORE,
        core::Mutation::JoinIgnoresInFlight,
        500_000,
        15,
    ),
    broken(
        "unknown-removal-counts",
        "R14 a removal of unknown outcome counts as done",
        LATE,
        core::Mutation::UnknownRemovalCounts,
        100_000,
        8,
    ),
    broken(
        "fine-bitmap-dropped",
        "R17 sealing k drops the fine bitmap of k + 1",
        core::Config { sessions: 1, ..FINE },
        core::Mutation::FineBitmapDropped,
        SMALL,
        19,
    ),
    broken(
        "repair-without-jump",
        "R11 repair does not raise the epoch",
        RESTORED,
        core::Mutation::RepairWithoutJump,
        1_500_000,
        16,
    ),
    broken(
        "repair-without-fence",
        "R11 a replica that gave its copy to a repair still promises to the lost history",
        RESTORED,
        core::Mutation::RepairWithoutFence,
        1_500_000,
        16,
    ),
    // Change of the ack mode.
    broken(
        "ack-mode-without-flush",
        "4.18 from cached to durable without a flush",
        ACK,
        core::Mutation::AckWithoutFlush,
        SMALL,
        12,
    ),
    broken(
        "ack-mode-in-flight",
        "4.18 cached acknowledgements of a write in flight count after the change",
        ACK,
        core::Mutation::AckInFlight,
        SMALL,
        14,
    ),
    broken(
        "ack-mode-before-swap",
        "4.18 acknowledged from the cache before the swap",
        core::Config { cached: false, ..ACK },
        core::Mutation::AckBeforeSwap,
        SMALL,
        10,
    ),
    // Partial fills.
    broken(
        "fill-at-copy",
        "4.13 a fill is dated by its copy, not by a seal",
        core::Config { sessions: 1, in_sync: 0b001, ..FILL },
        core::Mutation::FillAtCopy,
        1_500_000,
        22,
    ),
    broken(
        "fill-early",
        "4.13 a seal dates the fill of a joiner that has not everything",
        FILL,
        core::Mutation::FillEarly,
        1_500_000,
        17,
    ),
    Case {
        name: "fill-survives-force",
        rule: "4.13, 4.14 a fill of the history that a force has ended still counts",
        setup: Setup::Core(core::Config {
            replicas: 3,
            in_sync: 0b001,
            writes: 1,
            resume_fill: true,
            mutation: Some(core::Mutation::FillSurvivesForce),
            ..FORCE
        }),
        max_states: SMALL,
        expected: Expected::Walked(2, 36),
    },
    broken(
        "interval-wraps",
        "R21 intervals begin anew within an epoch",
        core::Config { renew: true, ..CORE },
        core::Mutation::IntervalWraps,
        SMALL,
        13,
    ),
    // Rebuild of the store.
    broken(
        "rebuild-without-wait",
        "4.15 an owner goes on without the promises to its new record",
        REBUILT,
        core::Mutation::RebuildWithoutWait,
        SMALL,
        15,
    ),
    broken(
        "repair-without-assent",
        "S15 a repair goes on whoever has not answered",
        REBUILT,
        core::Mutation::RepairWithoutAssent,
        SMALL,
        16,
    ),
    broken(
        "repair-members-only",
        "4.15 by the letter: a repair waits only for those named in sync",
        core::Config { in_sync: 0b001, ..REBUILT },
        core::Mutation::RepairMembersOnly,
        SMALL,
        18,
    ),
    broken(
        "add-keeps-epoch",
        "4.15 members don't get to know of a replica that is added",
        core::Config { in_sync: 0b001, adds: true, ..REBUILT },
        core::Mutation::AddKeepsEpoch,
        SMALL,
        19,
    ),
    // Lineage and quarantine.
    broken(
        "force-keeps-bases",
        "4.14 bases of before the fork count after it",
        core::Config { writes: 1, in_sync: 0b001, max_epoch: 4, ..FORCE },
        core::Mutation::ForceKeepsBases,
        1_500_000,
        20,
    ),
    broken(
        "force-without-fence",
        "4.14 the forced replica still obeys the old owner",
        FORCE,
        core::Mutation::ForceWithoutFence,
        1_500_000,
        12,
    ),
    broken(
        "quarantine-reused",
        "R24 a replica that lost its stamps is used as before",
        core::Config { damage: true, ..CORE },
        core::Mutation::QuarantineReused,
        SMALL,
        11,
    ),
    // R9.
    broken_lease(
        "lease-no-wait",
        "R9 no wait at all",
        LEASE,
        lease::Mutation::NoWait,
        100_000,
        Expected::Steps(10),
    ),
    broken_lease(
        "lease-wait-only-if-promise-missing",
        "R9 wait only if a promise is missing: a chain of two steals",
        CHAIN,
        lease::Mutation::WaitOnlyIfPromiseMissing,
        500_000,
        Expected::Steps(11),
    ),
    broken_lease(
        "lease-wait-only-if-missing-demotion",
        "R9 wait only if a promise is missing: a demotion of unknown outcome is covered by R2's last sentence",
        lease::Config { reconfigure: true, ..LEASE },
        lease::Mutation::WaitOnlyIfPromiseMissing,
        500_000,
        Expected::Exhausted,
    ),
    broken_lease(
        "lease-reads-while-waiting",
        "R9 reads are served before the wait is over",
        lease::Config { heartbeats: true, lease: 1, max_epoch: 4, ..CHAIN },
        lease::Mutation::ReadsWhileWaiting,
        4_000_000,
        Expected::Steps(18),
    ),
    broken_lease(
        "lease-no-wait-mark",
        "R9 a steal does not set wait in the record",
        lease::Config { assertions: true, ..CHAIN },
        lease::Mutation::NoWaitMark,
        500_000,
        Expected::Steps(12),
    ),
    broken_lease(
        "lease-exception-ignores-mark",
        "R9 an exception overrides the mark",
        lease::Config { assertions: true, ..CHAIN },
        lease::Mutation::ExceptionIgnoresMark,
        500_000,
        Expected::Steps(12),
    ),
    broken_lease(
        "lease-close-before-wait",
        "R9 a thief closes before its wait is over",
        lease::Config { closes: true, ..CHAIN },
        lease::Mutation::CloseBeforeWait,
        500_000,
        Expected::Steps(15),
    ),
    broken_lease(
        "lease-wait-from-cas",
        "R9 the wait counts from the CAS",
        BEATING,
        lease::Mutation::WaitFromCas,
        1_500_000,
        Expected::Steps(18),
    ),
    broken_lease(
        "lease-no-margin",
        "R9 no margin for clocks of different speed",
        lease::Config { drift: true, ..LEASE },
        lease::Mutation::NoMargin,
        100_000,
        Expected::Steps(12),
    ),
    broken_lease(
        "lease-any-member",
        "R9 a lease from one member is enough",
        BEATING,
        lease::Mutation::LeaseAnyMember,
        SMALL,
        Expected::Steps(15),
    ),
    broken_lease(
        "lease-no-recheck",
        "R9 not checked at completion (judged at completion)",
        lease::Config { strict: true, ..LEASE },
        lease::Mutation::NoRecheck,
        100_000,
        Expected::Steps(12),
    ),
    broken_lease(
        "lease-no-recheck-linearisable",
        "R9 not checked at completion, but once the guest had asked: still linearisable",
        LEASE,
        lease::Mutation::NoRecheck,
        100_000,
        Expected::Exhausted,
    ),
    broken_lease(
        "lease-no-check-at-sending",
        "R9 checked at completion only: enough, also judged at completion",
        lease::Config { strict: true, ..LEASE },
        lease::Mutation::NoCheckAtSending,
        500_000,
        Expected::Exhausted,
    ),
    broken_lease(
        "lease-age-from-answer",
        "R9 a heartbeat counts from its answer",
        BEATING,
        lease::Mutation::AgeFromAnswer,
        1_500_000,
        Expected::Steps(18),
    ),
    broken_lease(
        "lease-joiner-not-asked",
        "R9 a joiner of unsettled admission gives no lease",
        lease::Config { reconfigure: true, in_sync: 0b01, lease: 1, max_epoch: 4, ..BEATING },
        lease::Mutation::JoinerNotInLease,
        3_000_000,
        Expected::Steps(17),
    ),
    broken_lease(
        "lease-removed-not-asked",
        "R9 a member of unsettled removal gives no lease",
        lease::Config { reconfigure: true, lease: 1, max_epoch: 3, ..BEATING },
        lease::Mutation::RemovedNotInLease,
        3_000_000,
        Expected::Steps(15),
    ),
    broken_lease(
        "lease-reads-removed",
        "R2 a member of unsettled removal is read: harmless under the rest of R9",
        lease::Config { reconfigure: true, strict: true, ..LEASE },
        lease::Mutation::ReadsRemoved,
        SMALL,
        Expected::Exhausted,
    ),
    broken_lease(
        "lease-older-epoch-counts",
        "R9 answers of an older epoch of the same session count: nothing found",
        lease::Config { reconfigure: true, strict: true, lease: 1, max_epoch: 4, ..BEATING },
        lease::Mutation::OlderEpochCounts,
        1_500_000,
        Expected::Bounded,
    ),
    // The handover.
    broken_lease(
        "handover-token-before-stop",
        "4.11 the token is given while the source still serves",
        HANDOVER,
        lease::Mutation::TokenBeforeStop,
        500_000,
        Expected::Steps(14),
    ),
    broken_lease(
        "handover-token-before-drain",
        "4.11 the token is given with a write under way",
        lease::Config { heartbeats: true, lease: 1, max_epoch: 2, ..HANDOVER },
        lease::Mutation::TokenBeforeDrain,
        500_000,
        Expected::Steps(21),
    ),
    broken_lease(
        "handover-next-is-enough",
        "F12 being next is taken for having the token",
        HANDOVER,
        lease::Mutation::NextIsEnough,
        500_000,
        Expected::Steps(12),
    ),
    broken_lease(
        "handover-source-resumes",
        "F13, F14 a source that hears nothing goes on without a swap",
        HANDOVER,
        lease::Mutation::SourceResumes,
        500_000,
        Expected::Steps(15),
    ),
    broken_lease(
        "handover-stale-token",
        "a token that was taken back still counts",
        lease::Config { replicas: 1, in_sync: 0b01, heartbeats: true, lease: 1, max_epoch: 3, ..HANDOVER },
        lease::Mutation::StaleToken,
        500_000,
        Expected::Steps(19),
    ),
    broken_lease(
        "handover-before-wait",
        "R9 a thief hands over before its wait is over",
        lease::Config { sessions: 3, ..HANDOVER },
        lease::Mutation::HandoverBeforeWait,
        1_500_000,
        Expected::Steps(17),
    ),
    // Unbroken.
    unbroken(
        "core",
        "all rules of the core",
        Setup::Core(core::Config { max_epoch: 4, ..CORE }),
        1_200_000,
        Expected::Bounded,
    ),
    unbroken(
        "core-small",
        "all rules, one write, three epochs",
        Setup::Core(core::Config { writes: 1, max_epoch: 3, ..CORE }),
        2_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "core-two-blocks",
        "two blocks, two writes in flight",
        Setup::Core(TWO_BLOCKS),
        1_200_000,
        Expected::Bounded,
    ),
    unbroken(
        "core-three-replicas",
        "three replicas",
        Setup::Core(core::Config { replicas: 3, ..TWO_BLOCKS }),
        SMALL,
        Expected::Bounded,
    ),
    unbroken("core-late", "R14", Setup::Core(LATE), SMALL, Expected::Bounded),
    unbroken("core-best-effort", "R3", Setup::Core(BEST_EFFORT), SMALL, Expected::Exhausted),
    unbroken("core-rescue", "R23", Setup::Core(RESCUE), SMALL, Expected::Bounded),
    unbroken(
        "core-rescue-open",
        "R23 at an open",
        Setup::Core(core::Config { rescue_open: true, blocks: 2, ..RESCUE }),
        SMALL,
        Expected::Bounded,
    ),
    unbroken("core-cached", "R8", Setup::Core(CACHED), SMALL, Expected::Bounded),
    unbroken("core-fine-bitmap", "R17 and 4.13", Setup::Core(FINE), SMALL, Expected::Bounded),
    unbroken(
        "core-ack-mode",
        "4.18 changes of the ack mode",
        Setup::Core(core::Config { ack_changes: 2, ..ACK }),
        400_000,
        Expected::Bounded,
    ),
    unbroken("core-fill", "4.13 resume of a fill", Setup::Core(FILL), 400_000, Expected::Bounded),
    unbroken(
        "core-renew",
        "R21",
        Setup::Core(core::Config { renew: true, ..TWO_BLOCKS }),
        400_000,
        Expected::Bounded,
    ),
    unbroken(
        "core-rebuild",
        "4.15 a store rebuilt from those who answer",
        Setup::Core(core::Config { adds: true, in_sync: 0b001, ..REBUILT }),
        400_000,
        Expected::Bounded,
    ),
    unbroken("core-force", "4.14", Setup::Core(FORCE), 400_000, Expected::Bounded),
    unbroken(
        "core-damage",
        "R24",
        Setup::Core(core::Config { damage: true, ..CORE }),
        400_000,
        Expected::Bounded,
    ),
    unbroken("core-restored", "R11 with repair", Setup::Core(RESTORED), 1_200_000, Expected::Bounded),
    // A hole, kept here so that nobody forgets it: docs/model.md, finding 3.
    Case {
        name: "core-restored-unknown",
        rule: "R11, all rules in force, but nobody who is asked has met the lost revisions",
        setup: Setup::Core(RESTORED_UNKNOWN),
        max_states: 1_500_000,
        expected: Expected::Steps(15),
    },
    unbroken(
        "lease",
        "R9, two hosts, everything",
        Setup::Lease(lease::Config { strict: true, drift: true, closes: true, assertions: true, ..BEATING }),
        1_500_000,
        Expected::Bounded,
    ),
    unbroken(
        "handover",
        "4.11 handovers, taken back, repeated, stolen from; two hosts",
        Setup::Lease(lease::Config { closes: true, assertions: true, ..HANDOVER }),
        1_500_000,
        Expected::Exhausted,
    ),
    unbroken(
        "handover-beating",
        "4.11 and R9 with heartbeats, three epochs",
        Setup::Lease(lease::Config { heartbeats: true, lease: 1, max_epoch: 3, ..HANDOVER }),
        700_000,
        Expected::Bounded,
    ),
    unbroken(
        "handover-chain",
        "4.11 chains of steals and handovers, three hosts",
        Setup::Lease(lease::Config { sessions: 3, closes: true, assertions: true, ..HANDOVER }),
        800_000,
        Expected::Bounded,
    ),
    unbroken(
        "lease-small",
        "R9, two hosts, no reconfiguration, no drift, three epochs",
        Setup::Lease(lease::Config {
            strict: true,
            lease: 1,
            max_epoch: 3,
            closes: true,
            assertions: true,
            ..BEATING
        }),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "lease-chain",
        "R9, chains of steals without heartbeats",
        Setup::Lease(lease::Config { strict: true, closes: true, assertions: true, ..CHAIN }),
        1_500_000,
        Expected::Exhausted,
    ),
    broken_lease(
        "fence-without-wait",
        "R9 a fence by another host leaves no wait",
        REVOKED,
        lease::Mutation::FenceWithoutWait,
        1_000_000,
        Expected::Steps(13),
    ),
    broken_lease(
        "fence-before-cut",
        "a revoked host is fenced while the store still takes its swaps",
        REVOKED,
        lease::Mutation::FenceBeforeCut,
        1_000_000,
        Expected::Steps(4),
    ),
    unbroken(
        "fence-by-other",
        "R9 and a host that is revoked and fenced by another",
        Setup::Lease(lease::Config { lease: 1, max_epoch: 4, closes: true, assertions: true, ..REVOKED }),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "fence-by-other-handover",
        "the same with heartbeats and handovers",
        Setup::Lease(lease::Config { lease: 1, max_epoch: 4, heartbeats: true, handover: true, ..REVOKED }),
        700_000,
        Expected::Bounded,
    ),
    unbroken(
        "lease-reconfigure",
        "R9 with demotions and admissions of unknown outcome, chains of steals",
        Setup::Lease(lease::Config {
            strict: true,
            reconfigure: true,
            closes: true,
            assertions: true,
            heartbeats: true,
            ..CHAIN
        }),
        1_500_000,
        Expected::Bounded,
    ),
];

/// The case of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Case> {
    all().find(|case| case.name == name)
}
