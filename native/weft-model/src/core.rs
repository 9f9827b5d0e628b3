//! The replication core: epochs, stamps, seals, removal, rejoin, reconciliation, steals (protocol.md 4.4, 4.5,
//! 4.11, 4.13), with late compare-and-swaps (R14), best-effort writes to a joiner (R3), rescue (R23), cached mode
//! (R8), a change of the ack mode (4.18), resume of a partial fill (4.13), renewed intervals (R21), a store that goes
//! back or is rebuilt (R11, 4.15), a forced lineage (4.14) and damaged metadata (R24) as switches.
//!
//! One region of one or two blocks: stamps, the base and the set D are kept per region, data and range locks per
//! block, so that two writes of different blocks can be in flight while their region is joined, sealed or stolen.
//! A session may crash, be stolen from, or do nothing, at any point. A message is delivered at any later moment or
//! never; messages to one replica overtake each other freely. Executing a request and its answer's arrival are one
//! step (an answer that is lost is a request that was lost plus a request of somebody else that was not: the owner
//! can't tell them apart either, except after execution: there the crash or the removal before the step of
//! completing plays that part).
//!
//! Must always hold (the oracle):
//! - a read in a session that still is the owner returns a value that a linearisable disk may return: the newest
//!   acknowledged one or one that was in flight since; a value once returned rules out its rivals for ever;
//! - a write that a read or a later owner ruled out is never acknowledged, an acknowledged one is never lost;
//! - in-sync members are equal in every block without a write in flight.

use core::fmt;

use crate::explore::{Counted, Happening, Model, Violation};
use crate::mask::Mask;

const MAX_REPLICAS: usize = 3;
const MAX_SESSIONS: usize = 3;
const MAX_BLOCKS: usize = 2;
/// Values are bits of a byte in the oracle; 0 is what the blocks hold at the start.
const MAX_VALUES: usize = 8;
const NOBODY: u8 = 0xff;
/// Where `weft store repair` puts the epoch: stands for the jump of 2^20, beyond all that a lost record can name.
const REPAIRED_EPOCH: u8 = 20;

/// A rule taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// R4: the copy set is what the source stamped, without the joiner's own stamps.
    NoUnion,
    /// R4: a write in flight from before the join is in no stamp of the source yet and is not counted.
    JoinIgnoresInFlight,
    /// R5: reads are served before D is reconciled.
    ReadBeforeReconcile,
    /// R2: a write completes without a member that has not been removed yet.
    AckBeforeRemoval,
    /// R2: the base of a removed member is the current generation.
    BaseCurrent,
    /// R2, 4.5: after a removal a write completes without the acknowledgement of all who remain.
    AckWithoutAll,
    /// R3: a joiner is admitted before its acknowledgements are required.
    AdmitEarly,
    /// R3: the range is unlocked before the joiner has its best-effort write.
    UnlockEarly,
    /// R3, R1: dropping a join leaves its attachment alive.
    DropKeepsAttachment,
    /// R1: replicas don't compare the epoch.
    NoFence,
    /// R1, R11: a promise binds to the epoch, not to the session.
    PromiseBoundToEpoch,
    /// R6: data reach the medium before the stamp.
    StampAfterData,
    /// R7: sealed while a write of the interval is in flight.
    SealEarly,
    /// R7, cached: sealed without a flush.
    SealWithoutFlush,
    /// R8: a replica that lost its cache is trusted.
    TrustLossy,
    /// R11: hosts keep no watermark.
    NoWatermark,
    /// R11: a replica that handed its copy to a repair still takes promises of the lost history.
    RepairWithoutFence,
    /// R11: repair rebuilds the record without raising the epoch far enough.
    RepairWithoutJump,
    /// R14: a re-read that shows the old revision settles an unknown compare-and-swap.
    RereadSettles,
    /// R14, R2: a removal whose outcome is unknown counts as done.
    UnknownRemovalCounts,
    /// R17: sealing interval k drops the fine bitmap of k + 1 too.
    FineBitmapDropped,
    /// R23: admission before the joiner has the paused write.
    RescueAdmitEarly,
    /// 4.18: from cached to durable without a flush.
    AckWithoutFlush,
    /// 4.18: from cached to durable with a write in flight, whose cached acknowledgements count.
    AckInFlight,
    /// 4.18: acknowledged from the cache before the swap that says so.
    AckBeforeSwap,
    /// 4.13: a joiner keeps as its fill the generation of the copy, not of a seal.
    FillAtCopy,
    /// 4.13: a seal counts for a joiner that has not everything yet.
    FillEarly,
    /// 4.13, 4.14: a fill of the history that a force has ended still counts.
    FillSurvivesForce,
    /// R21: intervals begin anew within an epoch.
    IntervalWraps,
    /// 4.15: an owner goes on after its own swap without waiting for promises.
    RebuildWithoutWait,
    /// 4.15: a repair goes on whoever has not answered.
    RepairWithoutAssent,
    /// 4.15 by the letter: a repair waits only for those whom the best copy names in sync.
    RepairMembersOnly,
    /// 4.15: a replica is added by a swap that the members don't get to know of.
    AddKeepsEpoch,
    /// 4.14: bases of before the fork count after it.
    ForceKeepsBases,
    /// 4.14: the forced replica has not promised anything, so old requests still reach it.
    ForceWithoutFence,
    /// R24: a replica whose stamps are lost is used as before.
    QuarantineReused,
}

impl Mutation {
    /// All of them, by name.
    pub const ALL: [(&'static str, Mutation); 36] = [
        ("no-union", Mutation::NoUnion),
        ("join-ignores-in-flight", Mutation::JoinIgnoresInFlight),
        ("read-before-reconcile", Mutation::ReadBeforeReconcile),
        ("ack-before-removal", Mutation::AckBeforeRemoval),
        ("base-current", Mutation::BaseCurrent),
        ("ack-without-all", Mutation::AckWithoutAll),
        ("admit-early", Mutation::AdmitEarly),
        ("unlock-early", Mutation::UnlockEarly),
        ("drop-keeps-attachment", Mutation::DropKeepsAttachment),
        ("no-fence", Mutation::NoFence),
        ("promise-bound-to-epoch", Mutation::PromiseBoundToEpoch),
        ("stamp-after-data", Mutation::StampAfterData),
        ("seal-early", Mutation::SealEarly),
        ("seal-without-flush", Mutation::SealWithoutFlush),
        ("trust-lossy", Mutation::TrustLossy),
        ("no-watermark", Mutation::NoWatermark),
        ("repair-without-fence", Mutation::RepairWithoutFence),
        ("repair-without-jump", Mutation::RepairWithoutJump),
        ("reread-settles", Mutation::RereadSettles),
        ("unknown-removal-counts", Mutation::UnknownRemovalCounts),
        ("fine-bitmap-dropped", Mutation::FineBitmapDropped),
        ("rescue-admit-early", Mutation::RescueAdmitEarly),
        ("ack-mode-without-flush", Mutation::AckWithoutFlush),
        ("ack-mode-in-flight", Mutation::AckInFlight),
        ("ack-mode-before-swap", Mutation::AckBeforeSwap),
        ("fill-at-copy", Mutation::FillAtCopy),
        ("fill-early", Mutation::FillEarly),
        ("fill-survives-force", Mutation::FillSurvivesForce),
        ("interval-wraps", Mutation::IntervalWraps),
        ("rebuild-without-wait", Mutation::RebuildWithoutWait),
        ("repair-without-assent", Mutation::RepairWithoutAssent),
        ("repair-members-only", Mutation::RepairMembersOnly),
        ("add-keeps-epoch", Mutation::AddKeepsEpoch),
        ("force-keeps-bases", Mutation::ForceKeepsBases),
        ("force-without-fence", Mutation::ForceWithoutFence),
        ("quarantine-reused", Mutation::QuarantineReused),
    ];
}

/// How a store can go back, and who noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rollback {
    /// It can't.
    #[default]
    Never,
    /// Once, to an older record; hosts know only the revisions that they met in this volume's promises.
    HostsKnowThisVolume,
    /// Once; every host had read the store after the backup was taken. `weft store repair` may follow.
    EveryHostKnows,
    /// Once, for good; it is rebuilt from the copies of the replicas that answer (4.15).
    Lost,
}

/// R14: which outcomes stay unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LateSwaps {
    /// Every swap is answered at once.
    #[default]
    Never,
    /// Admissions may be applied at any later time.
    Admissions,
    /// Admissions and removals.
    All,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Replicas, at most 3.
    pub replicas: usize,
    /// Sessions, at most 3.
    pub sessions: usize,
    /// Blocks of the region, 1 or 2: as many writes can be in flight in a session.
    pub blocks: usize,
    /// Writes altogether, at most 6.
    pub writes: u8,
    /// No compare-and-swap goes beyond this epoch (counted anew after a repair).
    pub max_epoch: u8,
    /// In-sync members at the start, as bits; the others are stale with base 0.
    pub in_sync: u8,
    /// No removal leaves fewer.
    pub min_isr: usize,
    /// Acknowledged means cached at the replicas, guests flush.
    pub cached: bool,
    /// Cache losses altogether.
    pub cache_losses: u8,
    /// Changes of the ack mode altogether.
    pub ack_changes: u8,
    /// 4.13: a joiner that was dropped goes on from its last seal.
    pub resume_fill: bool,
    /// R21: an owner may raise the epoch to have intervals again.
    pub renew: bool,
    /// 4.18: replicas that are not in sync at the start are not in the record either, owners add them.
    pub adds: bool,
    /// 4.14: a stale replica may be promoted by force, once.
    pub force: bool,
    /// R24: the metadata of a replica may be damaged, once.
    pub damage: bool,
    /// Which compare-and-swaps of the owner may be applied late, their outcome unknown.
    pub late_swaps: LateSwaps,
    /// Writes to a joiner that has its copy need not be acknowledged until the join's last phase.
    pub best_effort: bool,
    /// R23: a paused write may be passed to a joiner; admit and demote in one swap.
    pub rescue: bool,
    /// R23: opening with fewer than `min_isr` members joins a new copy first.
    pub rescue_open: bool,
    /// 4.13: a member removed by this session is resynced by the exact blocks written since its seal.
    pub fine_bitmap: bool,
    /// The store may go back.
    pub rollback: Rollback,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
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
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Record {
    epoch: u8,
    owner: u8,
    in_sync: Mask,
    base: [u8; MAX_REPLICAS],
    /// The replicas that it names, in sync or not.
    named: Mask,
    cached: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Replica {
    promised: u8,
    to: u8,
    /// RGM of the one region.
    stamp: u8,
    sealed: u8,
    data: [u8; MAX_BLOCKS],
    /// What survives a loss of the cache.
    stable: [u8; MAX_BLOCKS],
    lossy: bool,
    /// The newest seal of which it had everything while it was a joiner.
    fill: u8,
    /// Its metadata are damaged.
    quarantined: bool,
    /// The highest revision of the store that this replica's host has met (epochs stand for revisions).
    watermark: u8,
    /// Members and bases of the record under which it promised, for a repair.
    copy_in_sync: Mask,
    copy_named: Mask,
    copy_base: [u8; MAX_REPLICAS],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Message {
    #[default]
    None,
    Write {
        epoch: u8,
        value: u8,
        generation: u8,
        cached: bool,
    },
    Copy {
        epoch: u8,
        value: u8,
        generation: u8,
    },
}

impl Message {
    fn epoch(self) -> u8 {
        match self {
            Message::None => 0,
            Message::Write { epoch, .. } | Message::Copy { epoch, .. } => epoch,
        }
    }
}

/// What is on its way from a session to one replica. 0 means nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Link {
    promise: u8,
    flush: u8,
    data: [Message; MAX_BLOCKS],
    /// Requests that a newer one has overtaken, or of an attachment that should have ended.
    stray: [Message; MAX_BLOCKS],
    seal: u8,
    seal_epoch: u8,
    /// The seal goes to a joiner, who keeps it as its fill.
    fills: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Phase {
    #[default]
    Idle,
    /// Waits for promises: at the open, and after each epoch change of its own.
    Promising,
    Reconciling,
    Open,
    /// R23 at an open with too few members.
    Rescuing,
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Write {
    /// 0: none in flight in this block.
    value: u8,
    acked: Mask,
    /// The guest has its answer; the range stays locked for the joiner's sake.
    answered: bool,
    /// Started after the roll: belongs to the second interval of the epoch.
    after_roll: bool,
    /// The joiner is a recipient.
    to_joiner: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Stage {
    #[default]
    Promising,
    Copying,
    BestEffort,
    Required,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Join {
    replica: u8,
    stage: Stage,
    todo: Mask,
    copying: Mask,
    /// R23: blocks whose paused write went to the joiner instead of a copy.
    passed: Mask,
}

const NO_JOIN: Join = Join {
    replica: NOBODY,
    stage: Stage::Promising,
    todo: Mask::EMPTY,
    copying: Mask::EMPTY,
    passed: Mask::EMPTY,
};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Flush {
    #[default]
    None,
    Guest,
    Seal,
    /// Before the change to durable.
    Durable,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Change {
    #[default]
    None,
    Admit(u8),
    Demote(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Session {
    phase: Phase,
    epoch: u8,
    in_sync: Mask,
    named: Mask,
    promised: Mask,
    interval: u8,
    sealed: u8,
    /// Serves, or served before its latest epoch change.
    opened: bool,
    /// Only when R5 is broken: D is not empty.
    unreconciled: bool,
    /// Acknowledges from the cache.
    cached: bool,
    flush: Flush,
    flushed: Mask,
    equalised: [Mask; MAX_BLOCKS],
    writes: [Write; MAX_BLOCKS],
    join: Join,
    /// Sent, outcome unknown to the session.
    unknown: Change,
    /// The same in the store's queue: compared with `swap_epoch`, carries `swap_base`.
    swap: Change,
    swap_epoch: u8,
    swap_base: u8,
    /// The fine bitmap: generation of the last write of each block, exact while this session lives.
    written: [u8; MAX_BLOCKS],
    /// The first generation that this session sealed; 0: none yet.
    first_seal: u8,
    links: [Link; MAX_REPLICAS],
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    record: Record,
    replicas: [Replica; MAX_REPLICAS],
    sessions: [Session; MAX_SESSIONS],
    losses: u8,
    ack_changes: u8,
    forced: bool,
    damaged: bool,
    writes: u8,
    /// Oracle, per block: values that a read may return now; and in cached mode after a loss of power.
    possible: [u8; MAX_BLOCKS],
    candidates: [u8; MAX_BLOCKS],
    /// Oracle, per value: what was possible before that write.
    before: [u8; MAX_VALUES],
    /// Oracle: writes that a read has shown not to have happened.
    refuted: u8,
    backup: Option<Record>,
    restored: bool,
    repaired: bool,
}

/// What happens: a kind, and the session, replica and block that it concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    what: What,
    session: u8,
    replica: u8,
    block: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    OpenSwap,
    PromiseArrives,
    ExcludeLossy,
    ExcludeSilent,
    Reconcile,
    Reconciled,
    ReconcileDrop,
    Serve,
    Resume,
    Fenced,
    WriteStart,
    WriteArrives,
    WriteArrivesNoStamp,
    StrayArrives,
    CopyArrives,
    WriteAck,
    WriteAckEarly,
    Read,
    Roll,
    SealDone,
    SealArrives,
    FlushStart,
    FlushArrives,
    FlushDone,
    Remove,
    JoinStart,
    JoinPlan,
    CopySent,
    JoinRequired,
    Admit,
    AdmitDemote,
    PassPaused,
    JoinAbort,
    SendAdmit,
    SendDemote,
    LateApplied,
    Settle,
    Adopt,
    RescueStart,
    RescuePlan,
    RescueSwap,
    CacheLoss,
    Crash,
    Backup,
    Restore,
    Repair,
    AckDurable,
    AckCached,
    Renew,
    Force,
    Damage,
    Replace,
    Add,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (c, r, b) = (self.session, self.replica, self.block);
        match self.what {
            What::OpenSwap => write!(f, "s{c} opens or steals (CAS)"),
            What::PromiseArrives => write!(f, "PROMISE s{c} -> r{r} arrives"),
            What::ExcludeLossy => write!(f, "s{c} removes lossy members (CAS)"),
            What::ExcludeSilent => write!(f, "s{c} removes members that did not promise (CAS)"),
            What::Reconcile => write!(f, "s{c} reconciles from r{r}"),
            What::Reconciled => write!(f, "s{c} has reconciled, serves"),
            What::ReconcileDrop => write!(f, "s{c} removes r{r} while reconciling (CAS)"),
            What::Serve => write!(f, "s{c} serves"),
            What::Resume => write!(f, "s{c} goes on at its new epoch"),
            What::Fenced => write!(f, "s{c} sees a newer record and ends"),
            What::WriteStart => write!(f, "s{c} starts a WRITE of block {b}"),
            What::WriteArrives => write!(f, "WRITE s{c} -> r{r} block {b} arrives"),
            What::WriteArrivesNoStamp => {
                write!(f, "WRITE s{c} -> r{r} block {b}: r{r} crashes before its stamp")
            }
            What::StrayArrives => write!(f, "an older request s{c} -> r{r} block {b} arrives late"),
            What::CopyArrives => write!(f, "COPY s{c} -> r{r} block {b} arrives"),
            What::WriteAck => write!(f, "s{c} ACKNOWLEDGES the write of block {b}"),
            What::WriteAckEarly => write!(f, "s{c} ACKNOWLEDGES the write of block {b} without a member"),
            What::Read => write!(f, "s{c} READS block {b} from r{r}"),
            What::Roll => write!(f, "s{c} rolls the interval"),
            What::SealDone => write!(f, "s{c} sends SEALED"),
            What::SealArrives => write!(f, "SEALED s{c} -> r{r} arrives"),
            What::FlushStart => write!(f, "s{c} sends FLUSH"),
            What::FlushArrives => write!(f, "FLUSH s{c} -> r{r} arrives"),
            What::FlushDone => write!(f, "s{c} has flushed"),
            What::Remove => write!(f, "s{c} removes r{r} (CAS)"),
            What::JoinStart => write!(f, "s{c} starts to join r{r}"),
            What::JoinPlan => write!(f, "s{c} decides what r{r} needs"),
            What::CopySent => write!(f, "s{c} sends COPY of block {b} to r{r}"),
            What::JoinRequired => write!(f, "s{c} requires the joiner's acknowledgements"),
            What::Admit => write!(f, "s{c} admits r{r} (CAS)"),
            What::AdmitDemote => write!(f, "s{c} admits the joiner and removes r{r} (one CAS)"),
            What::PassPaused => write!(f, "s{c} passes the paused write of block {b} to joiner r{r}"),
            What::JoinAbort => write!(f, "s{c} drops the join of r{r}"),
            What::SendAdmit => write!(f, "s{c} sends CAS: admit r{r}; outcome unknown"),
            What::SendDemote => write!(f, "s{c} sends CAS: demote r{r}; outcome unknown"),
            What::LateApplied => write!(f, "the store applies the CAS of s{c}"),
            What::Settle => write!(f, "s{c} settles it by a CAS of its own"),
            What::Adopt => write!(f, "s{c} finds its own CAS in the record"),
            What::RescueStart => write!(f, "s{c}, paused, starts to join r{r}"),
            What::RescuePlan => write!(f, "s{c} decides what r{r} needs"),
            What::RescueSwap => write!(f, "s{c} admits r{r} and removes the lost (one CAS)"),
            What::CacheLoss => write!(f, "r{r} LOSES its cache"),
            What::Crash => write!(f, "s{c} CRASHES"),
            What::Backup => write!(f, "a backup of the store is taken"),
            What::Restore => write!(f, "the store is RESTORED from the backup"),
            What::Repair => write!(f, "weft store repair"),
            What::AckDurable => write!(f, "s{c}: acknowledged means durable (CAS)"),
            What::AckCached => write!(f, "s{c}: acknowledged means cached (CAS)"),
            What::Renew => write!(f, "s{c} renews its intervals (CAS)"),
            What::Force => write!(f, "the operator FORCES r{r}"),
            What::Damage => write!(f, "r{r}'s metadata are DAMAGED"),
            What::Add => write!(f, "s{c} adds r{r} to the record (CAS)"),
            What::Replace => write!(f, "a new, empty replica in place of r{r}"),
        }
    }
}

const IDLE: Session = Session {
    phase: Phase::Idle,
    epoch: 0,
    in_sync: Mask::EMPTY,
    named: Mask::EMPTY,
    promised: Mask::EMPTY,
    interval: 0,
    sealed: 0,
    opened: false,
    unreconciled: false,
    cached: false,
    flush: Flush::None,
    flushed: Mask::EMPTY,
    equalised: [Mask::EMPTY; MAX_BLOCKS],
    writes: [Write { value: 0, acked: Mask::EMPTY, answered: false, after_roll: false, to_joiner: false };
        MAX_BLOCKS],
    join: NO_JOIN,
    unknown: Change::None,
    swap: Change::None,
    swap_epoch: 0,
    swap_base: 0,
    written: [0; MAX_BLOCKS],
    first_seal: 0,
    links: [Link {
        promise: 0,
        flush: 0,
        data: [Message::None; MAX_BLOCKS],
        stray: [Message::None; MAX_BLOCKS],
        seal: 0,
        seal_epoch: 0,
        fills: false,
    }; MAX_REPLICAS],
};

const FRESH: Replica = Replica {
    promised: 0,
    to: NOBODY,
    stamp: 0,
    sealed: 0,
    data: [0; MAX_BLOCKS],
    stable: [0; MAX_BLOCKS],
    lossy: false,
    fill: 0,
    quarantined: false,
    watermark: 0,
    copy_in_sync: Mask::EMPTY,
    copy_named: Mask::EMPTY,
    copy_base: [0; MAX_REPLICAS],
};

fn generation(epoch: u8, interval: u8) -> u8 {
    epoch * 2 + interval
}

fn index(number: usize) -> u8 {
    u8::try_from(number).expect("replicas, sessions and blocks are at most three")
}

impl Session {
    fn generation(&self) -> u8 {
        generation(self.epoch, self.interval)
    }

    fn write_message(&self, value: u8) -> Message {
        let (epoch, generation, cached) = (self.epoch, self.generation(), self.cached);
        Message::Write { epoch, value, generation, cached }
    }

    fn joiner(&self) -> Option<usize> {
        (self.join.replica != NOBODY).then_some(usize::from(self.join.replica))
    }

    fn writing(&self) -> bool {
        self.writes.iter().any(|write| write.value != 0)
    }

    fn send_promises(&mut self) {
        self.promised = Mask::EMPTY;
        for r in self.in_sync.iter() {
            self.links[r].promise = self.epoch;
        }
    }

    fn drop_join(&mut self) {
        self.join = NO_JOIN;
        for write in &mut self.writes {
            write.to_joiner = false;
        }
    }
}

impl Happening for Step {
    fn reluctance(&self) -> u32 {
        match self.what {
            What::Crash => 40,
            What::CacheLoss | What::Backup | What::Restore | What::Repair | What::Force | What::Damage => 20,
            What::JoinAbort | What::Renew | What::AckCached => 6,
            What::Remove | What::ExcludeSilent | What::SendDemote => 4,
            What::Fenced | What::OpenSwap => 3,
            _ => 1,
        }
    }

    fn counted(&self) -> Option<Counted> {
        match self.what {
            What::WriteAck => Some(Counted::WriteAcked),
            What::Read => Some(Counted::ReadServed),
            What::Serve | What::Reconciled => Some(Counted::Opened),
            What::Remove | What::ExcludeSilent | What::ExcludeLossy | What::ReconcileDrop => {
                Some(Counted::Removed)
            }
            What::Admit | What::AdmitDemote | What::RescueSwap => Some(Counted::Admitted),
            What::SealDone | What::FlushDone => Some(Counted::Sealed),
            _ => None,
        }
    }
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Core(pub Config);

type Out = Vec<(Step, State)>;

impl Core {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    fn blocks(&self) -> core::ops::Range<usize> {
        0..self.0.blocks
    }

    fn all_blocks(&self) -> Mask {
        Mask::first(self.0.blocks)
    }

    /// Whether the store would take one more swap from a host that follows R11.
    fn room(&self, state: &State) -> bool {
        let went_back = self.0.rollback == Rollback::EveryHostKnows && state.restored && !state.repaired;
        if went_back && !self.broken(Mutation::NoWatermark) {
            return false;
        }
        let limit = if state.repaired { self.last_epoch() + 3 } else { self.0.max_epoch };
        state.record.epoch < limit
    }

    fn last_epoch(&self) -> u8 {
        if self.broken(Mutation::RepairWithoutJump) { self.0.max_epoch } else { REPAIRED_EPOCH }
    }

    /// R1: the replica promised exactly this epoch to exactly this session.
    fn obeys(&self, state: &State, c: usize, r: usize, epoch: u8) -> bool {
        let replica = &state.replicas[r];
        let bound = usize::from(replica.to) == c || self.broken(Mutation::PromiseBoundToEpoch);
        replica.promised == epoch && bound && !replica.quarantined
    }

    fn executes(&self, state: &State, c: usize, r: usize, epoch: u8) -> bool {
        self.broken(Mutation::NoFence) || self.obeys(state, c, r, epoch)
    }

    /// The oracle's view of who is the owner.
    fn is_owner(&self, state: &State, c: usize) -> bool {
        let session = &state.sessions[c];
        if self.0.rollback == Rollback::Never {
            return usize::from(state.record.owner) == c;
        }
        // A store that went back can't say it; what the members promised can.
        session.in_sync.iter().all(|r| {
            let replica = &state.replicas[r];
            replica.promised == session.epoch && usize::from(replica.to) == c
        })
    }

    /// A compare-and-swap of this session would succeed.
    fn compares(&self, state: &State, c: usize) -> bool {
        // By value, not by the key's revision alone: a restored store counts its revisions a second time.
        state.record.epoch == state.sessions[c].epoch && usize::from(state.record.owner) == c
    }

    fn lossy(state: &State) -> Mask {
        (0..MAX_REPLICAS).filter(|r| state.replicas[*r].lossy).fold(Mask::EMPTY, Mask::with)
    }

    fn sealed_of(state: &State, members: Mask) -> u8 {
        members.iter().map(|r| state.replicas[r].sealed).max().unwrap_or(0)
    }

    /// The replicas that its record names.
    fn known(&self, session: &Session) -> Mask {
        if self.0.adds { session.named } else { Mask::first(self.0.replicas) }
    }

    /// Who must have the write of block `b` before the guest is answered (R2, R3).
    fn required(&self, session: &Session, b: usize) -> Mask {
        let mut required = session.in_sync;
        let join = &session.join;
        let counts = !self.0.best_effort || join.stage == Stage::Required;
        if let Some(j) = session.joiner()
            && session.writes[b].to_joiner
            && counts
        {
            required = required.with(j);
        }
        if let Change::Demote(r) = session.unknown
            && self.broken(Mutation::UnknownRemovalCounts)
        {
            required = required.without(r.into());
        }
        required
    }

    /// After a successful swap of its own: everybody promises anew.
    fn enter_epoch(next: &mut State, c: usize) {
        let record = next.record;
        let session = &mut next.sessions[c];
        session.phase = Phase::Promising;
        session.epoch = record.epoch;
        session.in_sync = record.in_sync;
        session.named = record.named;
        session.cached = record.cached;
        session.interval = 0;
        session.flush = Flush::None;
        session.flushed = Mask::EMPTY;
        session.equalised = [Mask::EMPTY; MAX_BLOCKS];
        session.unknown = Change::None;
        session.drop_join();
        for write in &mut session.writes {
            write.after_roll = false;
        }
        session.send_promises();
    }

    fn send(&self, session: &mut Session, r: usize, b: usize, message: Message) {
        let link = &mut session.links[r];
        let keeps = self.broken(Mutation::UnlockEarly) || self.broken(Mutation::DropKeepsAttachment);
        if keeps && link.stray[b] == Message::None && link.data[b] != message {
            link.stray[b] = link.data[b];
        }
        link.data[b] = message;
    }

    /// R1: ending an attachment ends its requests.
    fn detach(&self, session: &mut Session, r: usize) {
        if !self.broken(Mutation::DropKeepsAttachment) {
            session.links[r].data = [Message::None; MAX_BLOCKS];
            session.links[r].stray = [Message::None; MAX_BLOCKS];
        }
    }

    fn deliveries(&self, state: &State, c: usize, out: &mut Out) {
        for r in 0..self.0.replicas {
            let link = &state.sessions[c].links[r];
            let step = |what, b| Step { what, session: index(c), replica: index(r), block: index(b) };
            if link.promise != 0 {
                out.push((step(What::PromiseArrives, 0), self.promise_arrives(state, c, r)));
            }
            if link.flush != 0 {
                let mut next = *state;
                next.sessions[c].links[r].flush = 0;
                if self.executes(state, c, r, link.flush) && !state.replicas[r].lossy {
                    next.replicas[r].stable = state.replicas[r].data;
                    if link.flush == state.sessions[c].epoch {
                        next.sessions[c].flushed = state.sessions[c].flushed.with(r);
                    }
                }
                out.push((step(What::FlushArrives, 0), next));
            }
            if link.seal != 0 {
                let mut next = *state;
                next.sessions[c].links[r].seal = 0;
                next.sessions[c].links[r].seal_epoch = 0;
                next.sessions[c].links[r].fills = false;
                if self.executes(state, c, r, link.seal_epoch) && link.fills {
                    next.replicas[r].fill = state.replicas[r].fill.max(link.seal);
                } else if self.executes(state, c, r, link.seal_epoch) {
                    next.replicas[r].sealed = state.replicas[r].sealed.max(link.seal);
                }
                out.push((step(What::SealArrives, 0), next));
            }
            for b in self.blocks() {
                if link.data[b] != Message::None {
                    self.data_arrives(state, c, r, b, false, out);
                }
                if link.stray[b] != Message::None {
                    self.data_arrives(state, c, r, b, true, out);
                }
            }
        }
    }

    fn promise_arrives(&self, state: &State, c: usize, r: usize) -> State {
        let mut next = *state;
        let epoch = state.sessions[c].links[r].promise;
        next.sessions[c].links[r].promise = 0;
        let replica = &mut next.replicas[r];
        let same = usize::from(replica.to) == c || self.broken(Mutation::PromiseBoundToEpoch);
        let knows_better = replica.watermark > epoch && !self.broken(Mutation::NoWatermark);
        let newer = epoch > replica.promised || (epoch == replica.promised && same);
        if replica.quarantined {
            return next;
        }
        if (newer && !knows_better) || self.broken(Mutation::NoFence) {
            replica.promised = replica.promised.max(epoch);
            replica.to = index(c);
            if self.0.rollback != Rollback::Never {
                replica.watermark = replica.watermark.max(epoch);
                replica.copy_in_sync = state.sessions[c].in_sync;
                replica.copy_named = state.record.named;
                replica.copy_base = state.record.base;
            }
            if state.sessions[c].epoch == epoch {
                next.sessions[c].promised = state.sessions[c].promised.with(r);
            }
        }
        next
    }

    fn data_arrives(&self, state: &State, c: usize, r: usize, b: usize, stray: bool, out: &mut Out) {
        let session = &state.sessions[c];
        let link = &session.links[r];
        let message = if stray { link.stray[b] } else { link.data[b] };
        let mut next = *state;
        let slots = &mut next.sessions[c].links[r];
        if stray {
            slots.stray[b] = Message::None;
        } else {
            slots.data[b] = Message::None;
        }
        let executes = self.executes(state, c, r, message.epoch());
        let step = |what| Step { what, session: index(c), replica: index(r), block: index(b) };
        match message {
            Message::None => return,
            Message::Write { value, generation, cached, .. } => {
                if executes && !state.replicas[r].lossy {
                    let replica = &mut next.replicas[r];
                    replica.data[b] = value;
                    if !cached {
                        replica.stable[b] = value;
                    }
                    if self.broken(Mutation::StampAfterData) {
                        out.push((step(What::WriteArrivesNoStamp), next));
                    }
                    let replica = &mut next.replicas[r];
                    replica.stamp = replica.stamp.max(generation);
                    if session.writes[b].value == value && !stray {
                        next.sessions[c].writes[b].acked = session.writes[b].acked.with(r);
                    }
                }
            }
            Message::Copy { epoch, value, generation } => {
                if executes {
                    let replica = &mut next.replicas[r];
                    replica.data[b] = value;
                    replica.stable[b] = value;
                    replica.stamp = replica.stamp.max(generation);
                    if self.0.resume_fill && self.broken(Mutation::FillAtCopy) {
                        replica.fill = replica.fill.max(generation);
                    }
                    if session.epoch == epoch && !stray {
                        let session = &mut next.sessions[c];
                        session.equalised[b] = session.equalised[b].with(r);
                        if session.join.replica == index(r) {
                            session.join.copying = session.join.copying.without(b);
                        }
                    }
                }
            }
        }
        let what = match (stray, message) {
            (true, _) => What::StrayArrives,
            (false, Message::Copy { .. }) => What::CopyArrives,
            (false, _) => What::WriteArrives,
        };
        out.push((step(what), next));
    }

    fn world(&self, state: &State, out: &mut Out) {
        let step = |what, replica: usize| Step { what, session: 0, replica: index(replica), block: 0 };
        if self.0.damage {
            self.damage(state, out);
        }
        if self.0.force && !state.forced {
            self.force(state, out);
        }
        if state.losses < self.0.cache_losses {
            for r in 0..self.0.replicas {
                let mut next = *state;
                next.losses += 1;
                next.replicas[r].data = state.replicas[r].stable;
                next.replicas[r].lossy = state.record.cached && !self.broken(Mutation::TrustLossy);
                for session in &mut next.sessions {
                    session.links[r] = Link::default();
                }
                out.push((step(What::CacheLoss, r), next));
            }
        }
        if self.0.rollback == Rollback::Never {
            return;
        }
        if self.0.rollback == Rollback::Lost {
            let all = Mask::first(self.0.replicas);
            let answers = (1..=all.0).filter(|_| !state.repaired);
            answers.for_each(|some| self.repair(state, Mask(some), out));
            return;
        }
        match state.backup {
            None if !state.restored => {
                let mut next = *state;
                next.backup = Some(state.record);
                out.push((step(What::Backup, 0), next));
            }
            Some(backup) if backup.epoch < state.record.epoch => {
                let mut next = *state;
                next.backup = None;
                next.restored = true;
                next.record = backup;
                if self.0.rollback == Rollback::EveryHostKnows {
                    for replica in &mut next.replicas {
                        replica.watermark = replica.watermark.max(state.record.epoch);
                    }
                }
                out.push((step(What::Restore, 0), next));
            }
            None | Some(_) => {}
        }
        if state.restored && !state.repaired && self.0.rollback == Rollback::EveryHostKnows {
            self.repair(state, Mask::first(self.0.replicas), out);
        }
    }

    /// R24: what lost its stamps serves nothing any more; in its place comes a new rid on empty space.
    fn damage(&self, state: &State, out: &mut Out) {
        let step = |what, r: usize| Step { what, session: 0, replica: index(r), block: 0 };
        for r in 0..self.0.replicas {
            let mut next = *state;
            let replica = &mut next.replicas[r];
            if !state.damaged {
                replica.stamp = 0;
                replica.sealed = 0;
                replica.fill = 0;
                replica.quarantined = !self.broken(Mutation::QuarantineReused);
                next.damaged = true;
                out.push((step(What::Damage, r), next));
            } else if replica.quarantined && !state.record.in_sync.has(r) {
                *replica = FRESH;
                next.record.base[r] = 0;
                for session in &mut next.sessions {
                    session.links[r] = Link::default();
                }
                out.push((step(What::Replace, r), next));
            }
        }
    }

    /// 4.14: the last members in sync are gone, and so, on the operator's word, is every owner.
    fn force(&self, state: &State, out: &mut Out) {
        if state.sessions.iter().any(|s| !matches!(s.phase, Phase::Idle | Phase::Ended)) {
            return;
        }
        for r in Mask::first(self.0.replicas).minus(state.record.in_sync).iter() {
            let mut next = *state;
            let fork = state.record.base[r];
            next.forced = true;
            let record = &mut next.record;
            record.epoch += 1;
            record.owner = NOBODY;
            record.in_sync = Mask::one(r);
            for x in 0..self.0.replicas {
                let was = state.record.in_sync.has(x);
                record.base[x] = match (was, self.broken(Mutation::ForceKeepsBases)) {
                    (true, true) => state.replicas[x].sealed,
                    (true, false) => fork,
                    (false, true) => state.record.base[x],
                    (false, false) => state.record.base[x].min(fork),
                };
                if !self.broken(Mutation::FillSurvivesForce) {
                    // A fill names a seal of the history that ends here.
                    next.replicas[x].fill = 0;
                }
            }
            next.record.base[r] = 0;
            if !self.broken(Mutation::ForceWithoutFence) {
                next.replicas[r].promised = next.record.epoch;
                next.replicas[r].to = NOBODY;
            }
            for b in self.blocks() {
                // What is lost is lost by the operator's assent.
                next.possible[b] = 1 << state.replicas[r].data[b];
                next.candidates[b] = next.possible[b];
            }
            out.push((Step { what: What::Force, session: 0, replica: index(r), block: 0 }, next));
        }
    }

    /// R11: the copy with the highest epoch becomes the record, far above every promise.
    fn repair(&self, state: &State, answering: Mask, out: &mut Out) {
        let Some(best) = answering.iter().max_by_key(|r| state.replicas[*r].promised) else { return };
        let best = state.replicas[best];
        // 4.15: a later record may exist on a replica that is missing: it may have become the last member since.
        let needed = match self.0.mutation {
            Some(Mutation::RepairWithoutAssent) => Mask::EMPTY,
            Some(Mutation::RepairMembersOnly) => best.copy_in_sync,
            _ => best.copy_named,
        };
        if best.promised == 0 || !answering.contains(needed) {
            return;
        }
        let mut next = *state;
        next.restored = true;
        next.repaired = true;
        next.record = Record {
            epoch: if self.broken(Mutation::RepairWithoutJump) { best.promised } else { REPAIRED_EPOCH },
            owner: NOBODY,
            in_sync: best.copy_in_sync,
            base: best.copy_base,
            named: best.copy_named,
            cached: state.record.cached,
        };
        // Who hands over a copy refuses the lost history from then on: else an owner of it may still change members.
        let unfenced = self.broken(Mutation::RepairWithoutFence);
        for r in answering.iter() {
            next.replicas[r].watermark = if unfenced { 0 } else { next.record.epoch };
        }
        // A fill names the store's incarnation, and a repair raises that.
        next.replicas.iter_mut().for_each(|replica| replica.fill = 0);
        let step = Step { what: What::Repair, session: 0, replica: 0, block: 0 };
        out.push((step, next));
    }

    fn open(&self, state: &State, c: usize, out: &mut Out) {
        let in_turn = c == 0 || state.sessions[c - 1].phase != Phase::Idle;
        if !in_turn || !self.room(state) {
            return;
        }
        // R11, R16: HELLO before the swap. A member that is away can't object, one that answers can.
        let answers = |r: usize| {
            let replica = &state.replicas[r];
            let watermark = if self.broken(Mutation::NoWatermark) { 0 } else { replica.watermark };
            replica.promised.max(watermark) <= state.record.epoch
        };
        if self.0.rollback != Rollback::Never && !state.record.in_sync.iter().any(answers) {
            return;
        }
        let mut next = *state;
        next.record.epoch += 1;
        next.record.owner = index(c);
        Self::enter_epoch(&mut next, c);
        if state.record.cached {
            for b in self.blocks() {
                next.possible[b] |= next.candidates[b];
            }
        }
        out.push((Step { what: What::OpenSwap, session: index(c), replica: 0, block: 0 }, next));
    }

    fn promising(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let step = |what, r: usize| Step { what, session: index(c), replica: index(r), block: 0 };
        if session.opened && self.broken(Mutation::RebuildWithoutWait) {
            out.push((step(What::Resume, 0), self.resume(state, c)));
        } else if session.promised.contains(session.in_sync) {
            if session.opened {
                out.push((step(What::Resume, 0), self.resume(state, c)));
            } else {
                self.promised_at_open(state, c, out);
            }
        }
        let got = session.promised.and(session.in_sync);
        if got.is_empty() || got == session.in_sync {
            return;
        }
        if !self.compares(state, c) {
            out.push((step(What::Fenced, 0), ended(state, c)));
            return;
        }
        if self.room(state) && got.len() >= self.0.min_isr {
            let mut next = *state;
            let sealed = if session.opened { session.sealed } else { Self::sealed_of(state, got) };
            let base = if self.broken(Mutation::BaseCurrent) { session.generation() } else { sealed };
            for r in session.in_sync.minus(got).iter() {
                next.record.base[r] = base;
            }
            next.record.epoch += 1;
            next.record.in_sync = got;
            Self::enter_epoch(&mut next, c);
            out.push((step(What::ExcludeSilent, 0), next));
        }
        if self.0.rescue_open && !session.opened && got.len() == 1 && self.room(state) {
            for j in self.known(session).minus(session.in_sync).iter() {
                let mut next = *state;
                let rescuer = &mut next.sessions[c];
                rescuer.phase = Phase::Rescuing;
                rescuer.join = Join { replica: index(j), ..NO_JOIN };
                rescuer.in_sync = got;
                rescuer.promised = session.promised.without(j);
                rescuer.links[j].promise = session.epoch;
                out.push((step(What::RescueStart, j), next));
            }
        }
    }

    fn promised_at_open(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let step = |what, r: usize| Step { what, session: index(c), replica: index(r), block: 0 };
        let lossy = Self::lossy(state).and(session.in_sync);
        let good = session.in_sync.minus(lossy);
        if !lossy.is_empty() && !good.is_empty() {
            // R8: some are good, so the lossy ones are stale.
            if self.compares(state, c) && self.room(state) {
                let mut next = *state;
                for r in lossy.iter() {
                    next.record.base[r] = Self::sealed_of(state, good);
                }
                next.record.epoch += 1;
                next.record.in_sync = good;
                Self::enter_epoch(&mut next, c);
                out.push((step(What::ExcludeLossy, 0), next));
            }
            return;
        }
        if !session.in_sync.iter().all(|r| self.obeys(state, c, r, session.epoch)) {
            return;
        }
        let sealed = Self::sealed_of(state, session.in_sync);
        let dirty =
            session.in_sync.len() > 1 && session.in_sync.iter().any(|r| state.replicas[r].stamp > sealed);
        let mut next = *state;
        for r in session.in_sync.iter() {
            next.replicas[r].lossy = false;
        }
        next.sessions[c].sealed = sealed;
        if !dirty || self.broken(Mutation::ReadBeforeReconcile) {
            let opened = &mut next.sessions[c];
            opened.phase = Phase::Open;
            opened.opened = true;
            opened.unreconciled = dirty;
            out.push((step(What::Serve, 0), next));
            return;
        }
        next.sessions[c].phase = Phase::Reconciling;
        for source in session.in_sync.iter() {
            let mut next = next;
            if state.record.cached {
                next.replicas[source].stable = next.replicas[source].data;
            }
            for b in self.blocks() {
                next.sessions[c].equalised[b] = Mask::one(source);
                let value = state.replicas[source].data[b];
                let message =
                    Message::Copy { epoch: session.epoch, value, generation: generation(session.epoch, 0) };
                for r in session.in_sync.without(source).iter() {
                    self.send(&mut next.sessions[c], r, b, message);
                }
            }
            out.push((step(What::Reconcile, source), next));
        }
    }

    /// All promised the new epoch: writes in flight go again to those who have not acknowledged them.
    fn resume(&self, state: &State, c: usize) -> State {
        let mut next = *state;
        next.sessions[c].phase = Phase::Open;
        for b in self.blocks() {
            let session = &mut next.sessions[c];
            let write = session.writes[b];
            if write.value == 0 {
                continue;
            }
            if self.broken(Mutation::AckWithoutAll) {
                session.writes[b].acked = write.acked.or(session.in_sync);
                continue;
            }
            let generation = session.generation();
            let message = session.write_message(write.value);
            session.written[b] = generation;
            for r in session.in_sync.minus(write.acked).iter() {
                self.send(session, r, b, message);
            }
        }
        next
    }

    fn reconciling(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let step = |what, r: usize| Step { what, session: index(c), replica: index(r), block: 0 };
        if self.blocks().all(|b| session.equalised[b].contains(session.in_sync)) {
            let mut next = *state;
            let opened = &mut next.sessions[c];
            opened.phase = Phase::Open;
            opened.opened = true;
            opened.equalised = [Mask::EMPTY; MAX_BLOCKS];
            out.push((step(What::Reconciled, 0), next));
        }
        if session.in_sync.len() <= self.0.min_isr.max(1) {
            return;
        }
        if !self.compares(state, c) {
            out.push((step(What::Fenced, 0), ended(state, c)));
        } else if self.room(state) {
            for r in session.in_sync.iter() {
                let mut next = *state;
                next.record.epoch += 1;
                next.record.in_sync = session.in_sync.without(r);
                next.record.base[r] = session.sealed;
                Self::enter_epoch(&mut next, c);
                out.push((step(What::ReconcileDrop, r), next));
            }
        }
    }

    fn serving(&self, state: &State, c: usize, out: &mut Out) -> Result<(), Violation> {
        let session = &state.sessions[c];
        if self.0.late_swaps != LateSwaps::Never
            && usize::from(state.record.owner) == c
            && !self.compares(state, c)
        {
            let mut next = *state;
            Self::enter_epoch(&mut next, c);
            out.push((Step { what: What::Adopt, session: index(c), replica: 0, block: 0 }, next));
        }
        if session.flush == Flush::None {
            for b in self.blocks() {
                self.equal_at_rest(state, c, b)?;
                if session.writes[b].value == 0 {
                    self.start_write(state, c, b, out);
                    self.read(state, c, b, out)?;
                }
            }
        }
        for b in self.blocks() {
            self.answer(state, c, b, out)?;
        }
        self.seal_and_flush(state, c, out);
        self.renew_or_change(state, c, out);
        self.remove(state, c, out);
        self.join(state, c, out);
        if self.0.late_swaps != LateSwaps::Never {
            self.unknown_swaps(state, c, out);
        }
        Ok(())
    }

    fn equal_at_rest(&self, state: &State, c: usize, b: usize) -> Result<(), Violation> {
        let session = &state.sessions[c];
        let at_rest = self.is_owner(state, c)
            && session.writes[b].value == 0
            && !session.unreconciled
            && Self::lossy(state).and(session.in_sync).is_empty();
        let mut values = session.in_sync.iter().map(|r| state.replicas[r].data[b]);
        let first = values.next();
        if at_rest && values.any(|value| Some(value) != first) {
            let promise = "in-sync members are equal where no write is in flight";
            return Err(Violation { promise, observation: format!("members of s{c} differ in block {b}") });
        }
        Ok(())
    }

    fn start_write(&self, state: &State, c: usize, b: usize, out: &mut Out) {
        let session = &state.sessions[c];
        if state.writes >= self.0.writes || session.join.copying.has(b) {
            return;
        }
        let mut next = *state;
        next.writes += 1;
        let value = next.writes;
        next.before[usize::from(value)] = state.possible[b];
        next.possible[b] |= 1 << value;
        next.candidates[b] |= 1 << value;
        let copied = session.join.stage != Stage::Promising && !session.join.todo.has(b);
        let joiner = session.joiner().filter(|_| copied && !self.broken(Mutation::AdmitEarly));
        let generation = session.generation();
        let message = session.write_message(value);
        let writer = &mut next.sessions[c];
        writer.writes[b] = Write {
            value,
            acked: Mask::EMPTY,
            answered: false,
            after_roll: session.interval == 1,
            to_joiner: joiner.is_some(),
        };
        writer.written[b] = generation;
        for r in joiner.map_or(session.in_sync, |j| session.in_sync.with(j)).iter() {
            self.send(writer, r, b, message);
        }
        out.push((Step { what: What::WriteStart, session: index(c), replica: 0, block: index(b) }, next));
    }

    fn read(&self, state: &State, c: usize, b: usize, out: &mut Out) -> Result<(), Violation> {
        let session = &state.sessions[c];
        if !self.is_owner(state, c) {
            return Ok(()); // an evicted owner's reads are the business of `lease`
        }
        for r in session.in_sync.iter() {
            let unread = session.unknown == Change::Demote(index(r));
            if unread || state.replicas[r].lossy || !self.obeys(state, c, r, session.epoch) {
                continue;
            }
            let value = state.replicas[r].data[b];
            if state.possible[b] & (1 << value) == 0 {
                return Err(Violation {
                    promise: "a read returns a value that a linearisable disk may return",
                    observation: format!("s{c} reads block {b} from r{r}: value {value}"),
                });
            }
            if state.possible[b] == 1 << value {
                continue; // nothing new is learnt
            }
            let mut next = *state;
            for write in (1..=state.writes).filter(|write| *write != value) {
                let was_possible = state.possible[b] & (1 << write) != 0;
                if was_possible && state.before[usize::from(write)] & (1 << value) != 0 {
                    next.refuted |= 1 << write;
                }
            }
            next.possible[b] = 1 << value;
            if self.0.ack_changes > 0 && !state.record.cached {
                next.candidates[b] = next.possible[b];
            }
            out.push((
                Step { what: What::Read, session: index(c), replica: index(r), block: index(b) },
                next,
            ));
        }
        Ok(())
    }

    fn answer(&self, state: &State, c: usize, b: usize, out: &mut Out) -> Result<(), Violation> {
        let session = &state.sessions[c];
        let write = session.writes[b];
        if write.value == 0 || write.answered {
            return Ok(());
        }
        let step = |what| Step { what, session: index(c), replica: 0, block: index(b) };
        let owner = self.is_owner(state, c);
        let mut next = *state;
        let done = &mut next.sessions[c].writes[b];
        if write.to_joiner && !self.broken(Mutation::UnlockEarly) {
            done.answered = true; // canonical() unlocks once the joiner has it
        } else {
            *done = Write::default();
        }
        if write.acked.contains(self.required(session, b)) {
            if owner || !(self.0.cached || self.0.ack_changes > 0) {
                self.judge_answer(&mut next, c, b, write.value, owner)?;
            }
            out.push((step(What::WriteAck), next));
        } else if self.broken(Mutation::AckBeforeRemoval) && !write.acked.is_empty() {
            if owner {
                next.possible[b] = 1 << write.value;
            }
            out.push((step(What::WriteAckEarly), next));
        }
        Ok(())
    }

    fn judge_answer(
        &self,
        next: &mut State,
        c: usize,
        b: usize,
        value: u8,
        owner: bool,
    ) -> Result<(), Violation> {
        let observation = || format!("s{c} acknowledges write {value} of block {b}");
        if next.refuted & (1 << value) != 0 {
            let promise = "a write that a read has shown not to have happened is never acknowledged";
            return Err(Violation { promise, observation: observation() });
        }
        let before = next.before[usize::from(value)];
        if owner {
            next.possible[b] = 1 << value;
            if self.0.ack_changes > 0 && !next.record.cached {
                next.candidates[b] = next.possible[b];
            }
        } else if before.count_ones() == 1 && next.possible[b] & !before != 0 {
            next.possible[b] &= !before;
        } else if next.possible[b] == before {
            let promise = "an acknowledged write is never lost";
            return Err(Violation { promise, observation: observation() });
        }
        Ok(())
    }

    fn seal_and_flush(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let step = |what| Step { what, session: index(c), replica: 0, block: 0 };
        let idle = session.flush == Flush::None && !session.unreconciled && session.join.copying.is_empty();
        let first_done = session.writes.iter().all(|write| write.value == 0 || write.after_roll);
        let unsealed = session.sealed < generation(session.epoch, 0);
        if !session.cached || self.broken(Mutation::SealWithoutFlush) {
            if idle && session.interval == 0 && session.writing() && self.0.blocks > 1 {
                let mut next = *state;
                next.sessions[c].interval = 1;
                out.push((step(What::Roll), next));
            }
            if self.broken(Mutation::IntervalWraps) && idle && session.interval == 1 {
                let mut next = *state;
                next.sessions[c].interval = 0;
                out.push((step(What::Roll), next));
            }
            let early = self.broken(Mutation::SealEarly) && session.interval == 0 && session.writing();
            if (idle && first_done && unsealed) || early {
                out.push((step(What::SealDone), self.sealed(state, c)));
            }
        } else if idle && !session.writing() && unsealed && session.interval == 0 {
            out.push((step(What::FlushStart), self.flushing(state, c, Flush::Seal)));
        }
        if session.cached && idle && !session.writing() && state.candidates != state.possible {
            out.push((step(What::FlushStart), self.flushing(state, c, Flush::Guest)));
        }
        let flushed = session.flush != Flush::None && session.flushed.contains(self.flush_required(session));
        if flushed {
            if session.flush == Flush::Durable {
                self.make_durable(state, c, out);
                return;
            }
            let sealing = session.flush == Flush::Seal;
            let mut next = if sealing { self.sealed(state, c) } else { *state };
            next.sessions[c].flush = Flush::None;
            next.sessions[c].flushed = Mask::EMPTY;
            if self.is_owner(state, c) {
                next.candidates = next.possible;
            }
            out.push((step(What::FlushDone), next));
        }
    }

    /// R21 and 4.18: swaps of the owner that change no members.
    fn renew_or_change(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let step = |what| Step { what, session: index(c), replica: 0, block: 0 };
        let step_at = |what, r: usize| Step { what, session: index(c), replica: index(r), block: 0 };
        let settled = session.unknown == Change::None && session.swap == Change::None;
        let may = self.compares(state, c) && self.room(state) && session.flush == Flush::None && settled;
        if !may {
            return;
        }
        if self.0.renew && session.interval == 1 {
            let mut next = *state;
            next.record.epoch += 1;
            Self::enter_epoch(&mut next, c);
            out.push((step(What::Renew), next));
        }
        for r in Mask::first(self.0.replicas).minus(self.known(session)).iter() {
            let mut next = *state;
            next.record.named = state.record.named.with(r);
            if self.broken(Mutation::AddKeepsEpoch) {
                next.sessions[c].named = next.record.named;
            } else {
                next.record.epoch += 1;
                Self::enter_epoch(&mut next, c);
            }
            out.push((step_at(What::Add, r), next));
        }
        if state.ack_changes == self.0.ack_changes {
            return;
        }
        let idle = session.join.copying.is_empty() && !session.unreconciled;
        if !session.cached && self.broken(Mutation::AckBeforeSwap) {
            let mut next = *state;
            next.ack_changes += 1;
            next.sessions[c].cached = true;
            out.push((step(What::AckCached), next));
        } else if !session.cached {
            let mut next = *state;
            next.ack_changes += 1;
            next.record.epoch += 1;
            next.record.cached = true;
            Self::enter_epoch(&mut next, c);
            out.push((step(What::AckCached), next));
        } else if self.broken(Mutation::AckWithoutFlush) {
            self.make_durable(state, c, out);
        } else if idle && (!session.writing() || self.broken(Mutation::AckInFlight)) {
            // No write is in flight, none begins before the swap: acknowledgements from a cache must not count after.
            out.push((step(What::FlushStart), self.flushing(state, c, Flush::Durable)));
        }
    }

    fn make_durable(&self, state: &State, c: usize, out: &mut Out) {
        let step = |what| Step { what, session: index(c), replica: 0, block: 0 };
        if !self.compares(state, c) {
            out.push((step(What::Fenced), ended(state, c)));
        } else if self.room(state) {
            let mut next = *state;
            next.ack_changes += 1;
            next.record.epoch += 1;
            next.record.cached = false;
            next.candidates = next.possible;
            Self::enter_epoch(&mut next, c);
            out.push((step(What::AckDurable), next));
        }
    }

    fn flush_required(&self, session: &Session) -> Mask {
        match session.joiner() {
            Some(j) if session.join.stage == Stage::Required && !self.broken(Mutation::AdmitEarly) => {
                session.in_sync.with(j)
            }
            _ => session.in_sync,
        }
    }

    fn flushing(&self, state: &State, c: usize, flush: Flush) -> State {
        let mut next = *state;
        let required = self.flush_required(&state.sessions[c]);
        let session = &mut next.sessions[c];
        session.flush = flush;
        session.flushed = Mask::EMPTY;
        for r in required.iter() {
            session.links[r].flush = session.epoch;
        }
        next
    }

    fn sealed(&self, state: &State, c: usize) -> State {
        let mut next = *state;
        let session = &mut next.sessions[c];
        let sealed = generation(session.epoch, 0);
        session.interval = 1;
        session.sealed = sealed;
        if session.first_seal == 0 {
            session.first_seal = sealed;
        }
        if self.broken(Mutation::FineBitmapDropped) {
            session.written = [0; MAX_BLOCKS];
        }
        for r in session.in_sync.iter() {
            session.links[r].seal = sealed;
            session.links[r].seal_epoch = session.epoch;
        }
        let complete = matches!(session.join.stage, Stage::BestEffort | Stage::Required)
            || self.broken(Mutation::FillEarly);
        if let Some(j) = session.joiner().filter(|_| self.0.resume_fill && complete) {
            session.links[j].seal = sealed;
            session.links[j].seal_epoch = session.epoch;
            session.links[j].fills = true;
        }
        next
    }

    fn remove(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        if session.in_sync.len() <= self.0.min_isr.max(1) {
            return;
        }
        let step = |what, r: usize| Step { what, session: index(c), replica: index(r), block: 0 };
        let lossy = Self::lossy(state);
        for r in session.in_sync.iter() {
            let rest = session.in_sync.without(r);
            if state.record.cached && lossy.contains(rest) {
                continue; // R8: all that would remain have lost writes
            }
            if !self.compares(state, c) {
                out.push((step(What::Fenced, 0), ended(state, c)));
                return;
            }
            if self.room(state) {
                let mut next = *state;
                next.record.epoch += 1;
                next.record.in_sync = rest;
                next.record.base[r] =
                    if self.broken(Mutation::BaseCurrent) { session.generation() } else { session.sealed };
                Self::enter_epoch(&mut next, c);
                out.push((step(What::Remove, r), next));
            }
        }
    }

    fn join(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let step =
            |what, r: usize, b: usize| Step { what, session: index(c), replica: index(r), block: index(b) };
        let Some(j) = session.joiner() else {
            if session.flush != Flush::None {
                return;
            }
            for r in self.known(session).minus(session.in_sync).iter() {
                let mut next = *state;
                let owner = &mut next.sessions[c];
                self.detach(owner, r);
                owner.join = Join { replica: index(r), ..NO_JOIN };
                owner.promised = session.promised.without(r);
                owner.links[r].promise = session.epoch;
                out.push((step(What::JoinStart, r, 0), next));
            }
            return;
        };
        let lossy = Self::lossy(state);
        let serves = |r: &usize| !lossy.has(*r) && self.obeys(state, c, *r, session.epoch);
        if session.flush == Flush::None {
            self.join_progress(state, c, j, serves, out);
        }
        if session.flush == Flush::None && session.join.stage == Stage::Required && !lossy.has(j) {
            self.admit(state, c, j, out);
        }
        let abandoned = session.unknown == Change::None
            || (self.broken(Mutation::RereadSettles) && self.compares(state, c));
        if abandoned {
            let mut next = *state;
            let owner = &mut next.sessions[c];
            owner.unknown = Change::None;
            self.detach(owner, j);
            owner.drop_join();
            out.push((step(What::JoinAbort, j, 0), next));
        }
    }

    fn join_progress(
        &self,
        state: &State,
        c: usize,
        j: usize,
        serves: impl Fn(&usize) -> bool,
        out: &mut Out,
    ) {
        let session = &state.sessions[c];
        let join = session.join;
        let step = |what, b: usize| Step { what, session: index(c), replica: index(j), block: index(b) };
        let promised = session.promised.has(j) && self.obeys(state, c, j, session.epoch);
        if join.stage == Stage::Promising
            && promised
            && let Some(source) = session.in_sync.iter().find(&serves)
        {
            let mut next = *state;
            next.replicas[j].lossy = false; // what it lost is above its base, so it is copied or was never there
            next.sessions[c].join.stage = Stage::Copying;
            next.sessions[c].join.todo = self.copy_set(state, c, source, j);
            out.push((step(What::JoinPlan, 0), next));
        }
        if join.stage == Stage::Copying {
            for b in join.todo.iter() {
                let write = session.writes[b];
                // A copy after a passed write comes from a member that has that write (R23).
                let has_passed = |r: &usize| join.passed.iter().all(|b| session.writes[b].acked.has(*r));
                let source = session.in_sync.iter().find(|r| serves(r) && has_passed(r));
                if let Some(source) = source.filter(|_| write.value == 0) {
                    let mut next = *state;
                    let value = state.replicas[source].data[b];
                    let message =
                        Message::Copy { epoch: session.epoch, value, generation: session.generation() };
                    let owner = &mut next.sessions[c];
                    owner.join.todo = join.todo.without(b);
                    owner.join.copying = join.copying.with(b);
                    self.send(owner, j, b, message);
                    out.push((step(What::CopySent, b), next));
                }
                let some_has_it = session.in_sync.iter().any(|r| write.acked.has(r) && serves(&r));
                if self.0.rescue && write.value != 0 && !write.answered && some_has_it {
                    let mut next = *state;
                    let owner = &mut next.sessions[c];
                    owner.join.todo = join.todo.without(b);
                    owner.join.passed = join.passed.with(b);
                    owner.writes[b].to_joiner = true;
                    owner.writes[b].acked = write.acked.without(j);
                    let message = session.write_message(write.value);
                    self.send(owner, j, b, message);
                    out.push((step(What::PassPaused, b), next));
                }
            }
        }
        if join.stage == Stage::BestEffort {
            let link = &session.links[j];
            let settled =
                self.blocks().all(|b| link.data[b] == Message::None && link.stray[b] == Message::None);
            // A stray of an attachment that has ended is invisible to the owner.
            let settled = settled
                || (self.broken(Mutation::DropKeepsAttachment)
                    && link.data.iter().all(|m| *m == Message::None));
            if settled && !session.writing() {
                let mut next = *state;
                next.sessions[c].join.stage = Stage::Required;
                out.push((step(What::JoinRequired, 0), next));
            }
        }
    }

    /// R4, and the fine bitmap of 4.13 where this session itself sealed the base.
    fn copy_set(&self, state: &State, c: usize, source: usize, j: usize) -> Mask {
        let session = &state.sessions[c];
        let base = state.record.base[j].max(state.replicas[j].fill);
        let own = session.first_seal != 0 && base >= session.first_seal;
        let mut todo = if self.0.fine_bitmap && own {
            self.blocks().filter(|b| session.written[*b] > base).fold(Mask::EMPTY, Mask::with)
        } else {
            let union = state.replicas[j].stamp > base && !self.broken(Mutation::NoUnion);
            if state.replicas[source].stamp > base || union { self.all_blocks() } else { Mask::EMPTY }
        };
        for b in self.blocks() {
            if session.writes[b].value != 0 && !self.broken(Mutation::JoinIgnoresInFlight) {
                todo = todo.with(b);
            }
        }
        todo
    }

    fn admit(&self, state: &State, c: usize, j: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let step = |what, r: usize| Step { what, session: index(c), replica: index(r), block: 0 };
        let has_passed = session.join.passed.iter().all(|b| {
            let write = session.writes[b];
            write.value == 0 || !write.to_joiner || write.acked.has(j)
        });
        if !has_passed && !self.broken(Mutation::RescueAdmitEarly) {
            return;
        }
        if !self.compares(state, c) {
            out.push((step(What::Fenced, 0), ended(state, c)));
            return;
        }
        if !self.room(state) || session.unknown != Change::None || session.swap != Change::None {
            return;
        }
        let mut admitted = *state;
        admitted.record.epoch += 1;
        admitted.record.in_sync = session.in_sync.with(j);
        admitted.record.base[j] = 0;
        let mut next = admitted;
        Self::enter_epoch(&mut next, c);
        out.push((step(What::Admit, j), next));
        if self.0.rescue && session.in_sync.len() >= self.0.min_isr {
            for lost in session.in_sync.iter() {
                let mut next = admitted;
                next.record.in_sync = admitted.record.in_sync.without(lost);
                next.record.base[lost] = session.sealed;
                Self::enter_epoch(&mut next, c);
                out.push((step(What::AdmitDemote, lost), next));
            }
        }
    }

    fn unknown_swaps(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        if !self.compares(state, c) || !self.room(state) {
            return;
        }
        let step = |what, r: usize| Step { what, session: index(c), replica: index(r), block: 0 };
        if session.unknown == Change::None && session.swap == Change::None && session.flush == Flush::None {
            let mut send = |what, r: usize, change| {
                let mut next = *state;
                let owner = &mut next.sessions[c];
                owner.unknown = change;
                owner.swap = change;
                owner.swap_epoch = session.epoch;
                owner.swap_base = session.sealed;
                out.push((step(what, r), next));
            };
            if let Some(j) = session.joiner()
                && session.join.stage == Stage::Required
                && !state.replicas[j].lossy
            {
                send(What::SendAdmit, j, Change::Admit(index(j)));
            }
            let demotes = self.0.late_swaps == LateSwaps::All && session.joiner().is_none();
            if demotes && session.in_sync.len() > self.0.min_isr.max(1) {
                for r in session.in_sync.iter() {
                    send(What::SendDemote, r, Change::Demote(index(r)));
                }
            }
        }
        if session.unknown != Change::None {
            let mut next = *state;
            next.record.epoch += 1;
            Self::enter_epoch(&mut next, c);
            out.push((step(What::Settle, 0), next));
        }
    }

    /// The store applies a swap that was on its way, whatever became of its sender.
    fn late_swap(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        if session.swap == Change::None || session.swap_epoch != state.record.epoch || !self.room(state) {
            return;
        }
        let mut next = *state;
        next.record.epoch += 1;
        match session.swap {
            Change::None => {}
            Change::Admit(r) => {
                next.record.in_sync = state.record.in_sync.with(r.into());
                next.record.base[usize::from(r)] = 0;
            }
            Change::Demote(r) => {
                next.record.in_sync = state.record.in_sync.without(r.into());
                next.record.base[usize::from(r)] = session.swap_base;
            }
        }
        next.sessions[c].swap = Change::None;
        out.push((Step { what: What::LateApplied, session: index(c), replica: 0, block: 0 }, next));
    }

    /// R23 at an open: one member promised, too few to serve; a new copy first, then one swap.
    fn rescuing(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let Some(j) = session.joiner() else { return };
        let Some(source) = session.in_sync.iter().next() else { return };
        let step =
            |what, r: usize, b: usize| Step { what, session: index(c), replica: index(r), block: index(b) };
        let obeyed = self.obeys(state, c, j, session.epoch) && self.obeys(state, c, source, session.epoch);
        match session.join.stage {
            Stage::Promising if session.promised.has(j) && obeyed => {
                let mut next = *state;
                next.sessions[c].join.stage = Stage::Copying;
                next.sessions[c].join.todo = self.copy_set(state, c, source, j);
                out.push((step(What::RescuePlan, j, 0), next));
            }
            Stage::Copying if obeyed => {
                for b in session.join.todo.iter() {
                    let mut next = *state;
                    let generation = generation(session.epoch, 0);
                    let value = state.replicas[source].data[b];
                    let owner = &mut next.sessions[c];
                    owner.join.todo = session.join.todo.without(b);
                    owner.join.copying = session.join.copying.with(b);
                    self.send(owner, j, b, Message::Copy { epoch: session.epoch, value, generation });
                    out.push((step(What::CopySent, j, b), next));
                }
            }
            Stage::BestEffort | Stage::Required if self.compares(state, c) && self.room(state) => {
                let mut next = *state;
                let sealed = state.replicas[source].sealed;
                for lost in state.record.in_sync.minus(session.in_sync).iter() {
                    next.record.base[lost] = sealed;
                }
                next.record.epoch += 1;
                next.record.in_sync = session.in_sync.with(j);
                next.record.base[j] = 0;
                Self::enter_epoch(&mut next, c);
                out.push((step(What::RescueSwap, j, 0), next));
            }
            _ => {}
        }
        if !self.compares(state, c) {
            out.push((step(What::Fenced, 0, 0), ended(state, c)));
        }
    }

    /// What follows by itself, and forgetting what can't matter, so that equal futures are equal states.
    fn canonical(&self, state: &mut State) {
        for c in 0..self.0.sessions {
            let session = &mut state.sessions[c];
            if session.swap != Change::None && session.swap_epoch != state.record.epoch {
                session.swap = Change::None;
            }
            if session.swap == Change::None {
                session.swap_epoch = 0;
                session.swap_base = 0;
            }
            if session.phase == Phase::Ended {
                *session = Session {
                    phase: Phase::Ended,
                    links: session.links,
                    swap: session.swap,
                    swap_epoch: session.swap_epoch,
                    swap_base: session.swap_base,
                    ..IDLE
                };
            }
            let join = &mut session.join;
            if join.stage == Stage::Copying && join.todo.is_empty() && join.copying.is_empty() {
                join.stage = if self.0.best_effort { Stage::BestEffort } else { Stage::Required };
            }
            let joiner = session.joiner();
            for write in &mut session.writes {
                let has = joiner.is_none_or(|j| write.acked.has(j));
                if write.answered && (has || !write.to_joiner) {
                    *write = Write::default();
                }
            }
            if !self.0.fine_bitmap {
                session.written = [0; MAX_BLOCKS];
                session.first_seal = 0;
            }
            if !self.broken(Mutation::NoFence) {
                forget_fenced(&mut session.links, &state.replicas, session.phase == Phase::Ended);
            }
        }
    }
}

/// Requests below the replica's promise can only be refused.
fn forget_fenced(links: &mut [Link; MAX_REPLICAS], replicas: &[Replica; MAX_REPLICAS], ended: bool) {
    for (link, replica) in links.iter_mut().zip(replicas) {
        if link.promise < replica.promised || (ended && link.promise == replica.promised) {
            link.promise = 0;
        }
        if link.flush < replica.promised {
            link.flush = 0;
        }
        if link.seal_epoch < replica.promised {
            link.seal = 0;
            link.seal_epoch = 0;
            link.fills = false;
        }
        for message in link.data.iter_mut().chain(&mut link.stray) {
            if message.epoch() < replica.promised {
                *message = Message::None;
            }
        }
    }
}

fn ended(state: &State, c: usize) -> State {
    let mut next = *state;
    next.sessions[c].phase = Phase::Ended;
    next
}

impl Model for Core {
    type State = State;
    type Step = Step;

    fn initial(&self) -> State {
        let in_sync = Mask(self.0.in_sync).and(Mask::first(self.0.replicas));
        State {
            record: Record {
                epoch: 0,
                owner: NOBODY,
                in_sync,
                base: [0; MAX_REPLICAS],
                named: if self.0.adds { in_sync } else { Mask::first(self.0.replicas) },
                cached: self.0.cached,
            },
            replicas: [FRESH; MAX_REPLICAS],
            sessions: [IDLE; MAX_SESSIONS],
            losses: 0,
            ack_changes: 0,
            forced: false,
            damaged: false,
            writes: 0,
            possible: [1; MAX_BLOCKS],
            candidates: [1; MAX_BLOCKS],
            before: [0; MAX_VALUES],
            refuted: 0,
            backup: None,
            restored: false,
            repaired: false,
        }
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        self.world(state, out);
        for c in 0..self.0.sessions {
            self.deliveries(state, c, out);
            match state.sessions[c].phase {
                Phase::Idle => self.open(state, c, out),
                Phase::Promising => self.promising(state, c, out),
                Phase::Reconciling => self.reconciling(state, c, out),
                Phase::Open => self.serving(state, c, out)?,
                Phase::Rescuing => self.rescuing(state, c, out),
                Phase::Ended => {}
            }
            self.late_swap(state, c, out);
            if !matches!(state.sessions[c].phase, Phase::Idle | Phase::Ended) {
                let step = Step { what: What::Crash, session: index(c), replica: 0, block: 0 };
                out.push((step, ended(state, c)));
            }
        }
        for (_, next) in out.iter_mut() {
            self.canonical(next);
        }
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        use fmt::Write as _;
        let record = &state.record;
        let mut line = format!(
            "record(E={} owner={} in-sync={:03b} base={:?})",
            record.epoch,
            if record.owner == NOBODY { "none".into() } else { format!("s{}", record.owner) },
            record.in_sync.0,
            &record.base[..self.0.replicas]
        );
        for (r, replica) in state.replicas.iter().enumerate().take(self.0.replicas) {
            let _ = write!(
                line,
                " r{r}(E={} data={:?} stamp={} sealed={}{})",
                replica.promised,
                &replica.data[..self.0.blocks],
                replica.stamp,
                replica.sealed,
                if replica.lossy { " lossy" } else { "" }
            );
        }
        let _ = write!(line, " possible=");
        for b in self.blocks() {
            let values: Vec<u8> = (0..8).filter(|value| state.possible[b] & (1 << value) != 0).collect();
            let _ = write!(line, "{values:?}");
        }
        line
    }
}
