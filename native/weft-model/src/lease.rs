//! Read leases with time: protocol.md R9, the only rule that uses a clock.
//!
//! One block, R replicas, C sessions, each session on a host with a clock of its own. Time is a tick; a lease lives
//! `lease` ticks of the owner's clock, a thief waits `lease` ticks (and one more where clocks may drift) of its own.
//! Ages are kept instead of times, saturated at the lease, so that the state space is finite.
//!
//! What happens: heartbeats (request and answer delayed or lost), reads (sent, executed, answered, completed, each
//! with any delay), writes, steals at any moment, chains of steals, crashes, clean closes, a host's assertion that
//! its session has ended, demotions and admissions whose compare-and-swap is applied or not while the owner does not
//! know. A paused process needs no step of its own: any session may do nothing for any number of ticks.
//!
//! The handover (4.11) is part of it, because it is an exception of R9: the source sets `next`, stops, drains and gives
//! the destination a token; the destination takes over by a swap without a wait and without equalising anything. The
//! source may take it back by a swap of its own, die, or hand over again; others may steal in between.
//!
//! A host may be revoked: its sessions lose the store, and the replicas one by one, in any order, some never; then somebody
//! else fences what it owned, by a swap that leaves no owner and the mark `wait`, and another host opens.
//!
//! Left out, because `core` checks it: stamps, resync, reconciliation. A copy is one atomic step here, and so is
//! the equalising at an open.
//!
//! Must always hold (the oracle):
//! - *linearisable*: a read returns nothing older than what had completed, or had been returned by a read anywhere,
//!   when the guest asked for it;
//! - *strict* (switchable): nothing older than what has completed when the answer is given;
//! - no session of a revoked host owns the volume once it was fenced.

use core::fmt;

use crate::explore::{Counted, Happening, Model, Violation};
use crate::mask::Mask;

const MAX_REPLICAS: usize = 3;
const MAX_SESSIONS: usize = 3;
/// No owner; no joiner; no replica.
const NOBODY: u8 = 0xff;
/// The thief has no promise yet, so its wait has not begun.
const NOT_STARTED: u8 = 0xfe;

/// A part of R9 (or of the rules it leans on) taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A thief completes writes at once.
    NoWait,
    /// A thief waits only if a member of the record did not promise, and leaves no mark.
    WaitOnlyIfPromiseMissing,
    /// A thief serves reads before its wait is over: only completing writes waits.
    ReadsWhileWaiting,
    /// A steal does not set `wait` in the record; the thief itself waits.
    NoWaitMark,
    /// Whoever opens by an exception (closed, or known to be stopped) ignores `wait`.
    ExceptionIgnoresMark,
    /// A thief closes before its wait is over, and takes the mark away.
    CloseBeforeWait,
    /// The wait begins at the thief's compare-and-swap instead of its first promise.
    WaitFromCas,
    /// The wait has no margin for clocks of different speed.
    NoMargin,
    /// One member's heartbeat is enough for a read.
    LeaseAnyMember,
    /// The lease is checked when the read is sent, not when it completes.
    NoRecheck,
    /// The lease is checked when the read completes, not when it is sent.
    NoCheckAtSending,
    /// A lease counts from the arrival of the answer instead of the sending of the question.
    AgeFromAnswer,
    /// A joiner whose admission is unsettled is not asked for the lease.
    JoinerNotInLease,
    /// A member whose removal is unsettled is not asked for the lease any more.
    RemovedNotInLease,
    /// A member whose removal is unsettled is still read (R2's last sentence).
    ReadsRemoved,
    /// Answers given at an older epoch of the same session count for the lease.
    OlderEpochCounts,
    /// 4.11: the source gives its token while it still serves.
    TokenBeforeStop,
    /// 4.11: the source has stopped, but a write that not all members have is under way.
    TokenBeforeDrain,
    /// F12: being `next` is taken for having the token.
    NextIsEnough,
    /// F13, F14: a source that hears nothing goes on without a swap.
    SourceResumes,
    /// A token of an attempt that was taken back still counts: the swap compares `next`, not the token's epoch.
    StaleToken,
    /// R9: a thief hands over before its wait is over, and takes the mark away.
    HandoverBeforeWait,
    /// A fence by another host leaves the volume closed, without the mark `wait`.
    FenceWithoutWait,
    /// A revoked host's sessions are fenced while the store still takes its swaps.
    FenceBeforeCut,
}

impl Mutation {
    /// All of them, by name.
    pub const ALL: [(&'static str, Mutation); 24] = [
        ("lease-no-wait", Mutation::NoWait),
        ("lease-wait-only-if-promise-missing", Mutation::WaitOnlyIfPromiseMissing),
        ("lease-reads-while-waiting", Mutation::ReadsWhileWaiting),
        ("lease-no-wait-mark", Mutation::NoWaitMark),
        ("lease-exception-ignores-mark", Mutation::ExceptionIgnoresMark),
        ("lease-close-before-wait", Mutation::CloseBeforeWait),
        ("lease-wait-from-cas", Mutation::WaitFromCas),
        ("lease-no-margin", Mutation::NoMargin),
        ("lease-any-member", Mutation::LeaseAnyMember),
        ("lease-no-recheck", Mutation::NoRecheck),
        ("lease-no-check-at-sending", Mutation::NoCheckAtSending),
        ("lease-age-from-answer", Mutation::AgeFromAnswer),
        ("lease-joiner-not-asked", Mutation::JoinerNotInLease),
        ("lease-removed-not-asked", Mutation::RemovedNotInLease),
        ("lease-reads-removed", Mutation::ReadsRemoved),
        ("lease-older-epoch-counts", Mutation::OlderEpochCounts),
        ("handover-token-before-stop", Mutation::TokenBeforeStop),
        ("handover-token-before-drain", Mutation::TokenBeforeDrain),
        ("handover-next-is-enough", Mutation::NextIsEnough),
        ("handover-source-resumes", Mutation::SourceResumes),
        ("handover-stale-token", Mutation::StaleToken),
        ("handover-before-wait", Mutation::HandoverBeforeWait),
        ("fence-without-wait", Mutation::FenceWithoutWait),
        ("fence-before-cut", Mutation::FenceBeforeCut),
    ];
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Replicas, at most 3.
    pub replicas: usize,
    /// Sessions, at most 3. The first one is serving at the start, with fresh heartbeats.
    pub sessions: usize,
    /// Writes altogether.
    pub writes: u8,
    /// No compare-and-swap goes beyond this epoch.
    pub max_epoch: u8,
    /// In-sync members at the start, as bits; the others are stale.
    pub in_sync: u8,
    /// Ticks that a heartbeat is worth.
    pub lease: u8,
    /// Each host's clock may miss one tick.
    pub drift: bool,
    /// Owners demote and admit, with outcomes unknown for any time.
    pub reconfigure: bool,
    /// Sessions may close cleanly.
    pub closes: bool,
    /// A thief may rely on the assertion that the old session has ended.
    pub assertions: bool,
    /// Sessions send heartbeats; without, the first owner lives on the ones it has at the start.
    pub heartbeats: bool,
    /// Sessions may hand over.
    pub handover: bool,
    /// The sessions of the host that may be revoked, as bits; 0: none is.
    pub revocable: u8,
    /// Judge reads at their completion too.
    pub strict: bool,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            replicas: 2,
            sessions: 3,
            writes: 1,
            max_epoch: 6,
            in_sync: 0b11,
            lease: 2,
            drift: false,
            reconfigure: false,
            closes: true,
            assertions: true,
            heartbeats: true,
            handover: false,
            revocable: 0,
            strict: true,
            mutation: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Record {
    epoch: u8,
    owner: u8,
    next: u8,
    in_sync: Mask,
    wait: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Replica {
    promised: u8,
    to: u8,
    value: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Phase {
    #[default]
    Idle,
    Opening,
    Serving,
    /// Serves nothing any more, its closing CAS is on its way.
    Closing,
    /// Has given its token: serves nothing until the record says what became of it.
    Stopped,
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Beat {
    #[default]
    None,
    /// On its way to the replica, this many ticks after it was sent.
    Asked(u8),
    /// Executed, the answer is on its way.
    Answered(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Read {
    #[default]
    None,
    /// `floor`: the newest value completed or returned when the guest asked.
    Sent {
        to: u8,
        floor: u8,
    },
    Answered {
        value: u8,
        floor: u8,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Change {
    Demote(u8),
    Admit(u8),
    ClearWait,
    Close,
    Next(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Swap {
    #[default]
    None,
    /// The store may still apply it.
    Sent(Change),
    /// Applied, the session does not know.
    Applied(Change),
}

impl Swap {
    fn change(self) -> Option<Change> {
        match self {
            Swap::None => None,
            Swap::Sent(change) | Swap::Applied(change) => Some(change),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Session {
    phase: Phase,
    epoch: u8,
    in_sync: Mask,
    /// Promises on their way, and those that arrived (for this epoch).
    promising: Mask,
    promised: Mask,
    must_wait: bool,
    /// Ticks of this host's clock since the first promise.
    waited: u8,
    /// Ticks since the newest answered heartbeat was sent.
    age: [u8; MAX_REPLICAS],
    beats: [Beat; MAX_REPLICAS],
    read: Read,
    write: u8,
    writing: Mask,
    acked: Mask,
    joiner: u8,
    swap: Swap,
    /// Took over by a token: the members are known to be equal.
    handed: bool,
    /// This host's clock has missed its tick already.
    missed: bool,
}

const IDLE: Session = Session {
    phase: Phase::Idle,
    epoch: 0,
    in_sync: Mask::EMPTY,
    promising: Mask::EMPTY,
    promised: Mask::EMPTY,
    must_wait: false,
    waited: NOT_STARTED,
    age: [0; MAX_REPLICAS],
    beats: [Beat::None; MAX_REPLICAS],
    read: Read::None,
    write: 0,
    writing: Mask::EMPTY,
    acked: Mask::EMPTY,
    joiner: NOBODY,
    swap: Swap::None,
    handed: false,
    missed: false,
};

/// How far the revocation of a host is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Revocation {
    /// It is decided.
    decided: bool,
    /// The store takes nothing from that host any more.
    store_cut: bool,
    /// Replicas that take nothing from it any more.
    cut: Mask,
    /// The host owns nothing, says who revoked it.
    fenced: bool,
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    record: Record,
    replicas: [Replica; MAX_REPLICAS],
    sessions: [Session; MAX_SESSIONS],
    /// The epoch of the token that each session was given, on its way or there; 0: none.
    tokens: [u8; MAX_SESSIONS],
    revocation: Revocation,
    writes: u8,
    /// Oracle: the newest value that a write completed or a read returned.
    floor: u8,
}

/// What happens; the first number is the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Step {
    Tick,
    TickMissedBy(usize),
    Open(usize),
    Steal(usize),
    StealByAssertion(usize),
    Promise(usize, usize),
    GiveUpSilent(usize),
    Serve(usize, usize),
    BeatSent(usize, usize),
    BeatExecuted(usize, usize),
    BeatAnswered(usize, usize),
    ReadSent(usize, usize),
    ReadExecuted(usize, usize, u8),
    ReadRefused(usize, usize),
    ReadCompleted(usize, u8),
    ReadHeld(usize),
    WriteStarted(usize, u8),
    WriteExecuted(usize, usize),
    WriteCompleted(usize, u8),
    JoinerCopied(usize, usize),
    SwapSentDemote(usize, u8),
    SwapSentAdmit(usize, u8),
    SwapSentClearWait(usize),
    SwapSentClose(usize),
    SwapApplied(usize),
    SwapLearned(usize),
    SwapSentNext(usize, u8),
    TokenGiven(usize, u8),
    TakenOver(usize),
    TakenBack(usize),
    ResumedSilently(usize),
    ServeHanded(usize),
    Fenced(usize),
    Crashed(usize),
    Revoked,
    StoreCut,
    ReplicaCut(usize),
    FencedByOther,
    FenceDone,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Step::Tick => write!(f, "one tick passes"),
            Step::TickMissedBy(c) => write!(f, "one tick passes, s{c}'s clock misses it"),
            Step::Open(c) => write!(f, "s{c} opens the closed volume (CAS)"),
            Step::Steal(c) => write!(f, "s{c} steals (CAS)"),
            Step::StealByAssertion(c) => write!(f, "s{c} steals: owner known to be stopped (CAS)"),
            Step::Promise(c, r) => write!(f, "PROMISE s{c} -> r{r} arrives"),
            Step::GiveUpSilent(c) => write!(f, "s{c} demotes who did not promise (CAS)"),
            Step::Serve(c, r) => write!(f, "s{c} serves; members equalised from r{r}"),
            Step::BeatSent(c, r) => write!(f, "s{c} sends a heartbeat to r{r}"),
            Step::BeatExecuted(c, r) => write!(f, "r{r} answers the heartbeat of s{c}"),
            Step::BeatAnswered(c, r) => write!(f, "the answer of r{r} reaches s{c}"),
            Step::ReadSent(c, r) => write!(f, "guest reads: s{c} sends READ to r{r}"),
            Step::ReadExecuted(c, r, v) => write!(f, "r{r} executes READ of s{c}: value {v}"),
            Step::ReadRefused(c, r) => write!(f, "r{r} refuses READ of s{c}"),
            Step::ReadCompleted(c, v) => write!(f, "s{c} returns {v} to its guest"),
            Step::ReadHeld(c) => write!(f, "s{c} has no lease: the read is tried again later"),
            Step::WriteStarted(c, w) => write!(f, "s{c} sends WRITE {w}"),
            Step::WriteExecuted(c, r) => write!(f, "r{r} executes the WRITE of s{c}"),
            Step::WriteCompleted(c, w) => write!(f, "s{c} completes WRITE {w}"),
            Step::JoinerCopied(c, r) => {
                write!(f, "s{c} has copied everything to joiner r{r}; it is required")
            }
            Step::SwapSentDemote(c, r) => write!(f, "s{c} sends CAS: demote r{r}"),
            Step::SwapSentAdmit(c, r) => write!(f, "s{c} sends CAS: admit r{r}"),
            Step::SwapSentClearWait(c) => write!(f, "s{c} sends CAS: wait is over"),
            Step::SwapSentClose(c) => write!(f, "s{c} stops, sends CAS: closed"),
            Step::SwapApplied(c) => write!(f, "the store applies the CAS of s{c}"),
            Step::SwapLearned(c) => write!(f, "s{c} learns that its CAS succeeded"),
            Step::SwapSentNext(c, d) => write!(f, "s{c} sends CAS: next is s{d}"),
            Step::TokenGiven(c, d) => write!(f, "s{c} gives its token to s{d}"),
            Step::TakenOver(c) => write!(f, "s{c} takes over by its token (CAS)"),
            Step::TakenBack(c) => write!(f, "s{c} takes the handover back (CAS)"),
            Step::ResumedSilently(c) => write!(f, "s{c} hears nothing and goes on"),
            Step::ServeHanded(c) => write!(f, "s{c} serves; nothing to equalise"),
            Step::Fenced(c) => write!(f, "s{c} sees another owner and ends"),
            Step::Crashed(c) => write!(f, "s{c} dies"),
            Step::Revoked => write!(f, "the host is revoked"),
            Step::StoreCut => write!(f, "the store refuses the revoked host"),
            Step::ReplicaCut(r) => write!(f, "r{r} refuses the revoked host"),
            Step::FencedByOther => write!(f, "the revoked owner is fenced (CAS)"),
            Step::FenceDone => write!(f, "the revoked host owns nothing"),
        }
    }
}

impl Happening for Step {
    fn reluctance(&self) -> u32 {
        match self {
            // An evicted owner that has not noticed is what this model is about.
            Step::Fenced(_) | Step::Revoked => 40,
            Step::Crashed(_) => 12,
            Step::Steal(_) | Step::Open(_) | Step::SwapSentClose(_) => 8,
            Step::SwapSentNext(..) => 6,
            Step::Tick | Step::TickMissedBy(_) | Step::SwapSentDemote(..) => 4,
            _ => 1,
        }
    }

    fn counted(&self) -> Option<Counted> {
        match self {
            Step::WriteCompleted(..) => Some(Counted::WriteAcked),
            Step::ReadCompleted(..) => Some(Counted::ReadServed),
            Step::Serve(..) | Step::ServeHanded(_) => Some(Counted::Opened),
            Step::GiveUpSilent(_) | Step::SwapSentDemote(..) => Some(Counted::Removed),
            Step::SwapSentAdmit(..) => Some(Counted::Admitted),
            _ => None,
        }
    }
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Lease(pub Config);

type Out = Vec<(Step, State)>;

impl Lease {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    fn wait_ticks(&self) -> u8 {
        let margin = u8::from(self.0.drift && !self.broken(Mutation::NoMargin));
        self.0.lease + margin
    }

    fn wait_is_over(&self, session: &Session) -> bool {
        !session.must_wait || (session.waited != NOT_STARTED && session.waited >= self.wait_ticks())
    }

    /// R9: every in-sync member, and the joiner from before its admission is sent until that is settled.
    fn has_lease(&self, session: &Session) -> bool {
        let mut asked = session.in_sync;
        match session.swap.change() {
            Some(Change::Admit(r)) if !self.broken(Mutation::JoinerNotInLease) => {
                asked = asked.with(r.into())
            }
            Some(Change::Demote(r)) if self.broken(Mutation::RemovedNotInLease) => {
                asked = asked.without(r.into())
            }
            _ => {}
        }
        let fresh = |r: usize| session.age[r] < self.0.lease;
        if self.broken(Mutation::LeaseAnyMember) { asked.iter().any(fresh) } else { asked.iter().all(fresh) }
    }

    /// Members, and the joiner once it is required (R3): who must have a write before it completes.
    fn required(session: &Session) -> Mask {
        if session.joiner == NOBODY { session.in_sync } else { session.in_sync.with(session.joiner.into()) }
    }

    fn executes(state: &State, c: usize, r: usize) -> bool {
        let replica = state.replicas[r];
        replica.promised == state.sessions[c].epoch && usize::from(replica.to) == c
    }

    /// The session goes on at the record's epoch and asks everybody for a new promise.
    fn enter_epoch(&self, state: &mut State, c: usize) {
        let record = state.record;
        let session = &mut state.sessions[c];
        session.epoch = record.epoch;
        session.in_sync = record.in_sync;
        session.promising = record.in_sync;
        session.promised = Mask::EMPTY;
        session.joiner = NOBODY;
        if !self.broken(Mutation::OlderEpochCounts) {
            session.beats = [Beat::None; MAX_REPLICAS];
            session.age = [self.0.lease; MAX_REPLICAS];
        }
        if session.write != 0 {
            session.writing = session.in_sync.minus(session.acked);
        }
    }

    fn is_revocable(&self, c: usize) -> bool {
        Mask(self.0.revocable).has(c)
    }

    /// The store takes this session's swaps.
    fn reaches_store(&self, state: &State, c: usize) -> bool {
        !(state.revocation.store_cut && self.is_revocable(c))
    }

    /// Nothing passes between this session and the replica any more.
    fn is_cut(&self, state: &State, c: usize, r: usize) -> bool {
        state.revocation.cut.has(r) && self.is_revocable(c)
    }

    /// Decide; refuse and cut, in any order, some never; then fence what the host owns, and say so.
    fn revocation(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        let revocation = state.revocation;
        let owner = state.record.owner;
        let owns = owner != NOBODY && self.is_revocable(owner.into());
        if revocation.fenced && owns {
            let promise = "a revoked host owns nothing once it was fenced";
            return Err(Violation { promise, observation: format!("s{owner} is the owner") });
        }
        let mut step = |step, change: &dyn Fn(&mut State)| {
            let mut next = *state;
            change(&mut next);
            out.push((step, next));
        };
        if !revocation.decided {
            step(Step::Revoked, &|next| next.revocation.decided = true);
            return Ok(());
        }
        if !revocation.store_cut {
            step(Step::StoreCut, &|next| next.revocation.store_cut = true);
        }
        for r in Mask::first(self.0.replicas).minus(revocation.cut).iter() {
            step(Step::ReplicaCut(r), &|next| {
                next.revocation.cut = next.revocation.cut.with(r);
                for c in (0..self.0.sessions).filter(|c| self.is_revocable(*c)) {
                    let session = &mut next.sessions[c];
                    session.promising = session.promising.without(r);
                    session.writing = session.writing.without(r);
                    session.beats[r] = Beat::None;
                }
            });
        }
        if !revocation.store_cut && !self.broken(Mutation::FenceBeforeCut) || revocation.fenced {
            return Ok(());
        }
        if owns && state.record.epoch < self.0.max_epoch {
            let wait = !self.broken(Mutation::FenceWithoutWait);
            step(Step::FencedByOther, &|next| {
                next.record.epoch += 1;
                next.record.owner = NOBODY;
                next.record.next = NOBODY;
                next.record.wait = wait;
            });
        }
        if !owns {
            step(Step::FenceDone, &|next| next.revocation.fenced = true);
        }
        Ok(())
    }

    fn owner_changes(&self, state: &State, out: &mut Out) {
        for c in (0..self.0.sessions).filter(|c| self.reaches_store(state, *c)) {
            // Sessions are alike until one of them is named by `next`.
            let alike = !self.0.handover && self.0.revocable == 0;
            let first_idle = c == 0 || state.sessions[c - 1].phase != Phase::Idle || !alike;
            if state.sessions[c].phase != Phase::Idle || !first_idle || state.record.epoch >= self.0.max_epoch
            {
                continue;
            }
            let marked = state.record.wait && !self.broken(Mutation::ExceptionIgnoresMark);
            if state.record.owner == NOBODY {
                out.push((Step::Open(c), self.opened(state, c, marked)));
                continue;
            }
            let has_token = state.tokens[c] == state.record.epoch
                || (state.tokens[c] != 0 && self.broken(Mutation::StaleToken))
                || self.broken(Mutation::NextIsEnough);
            if state.record.next == index(c) && has_token {
                let mut next = self.opened(state, c, marked && !self.broken(Mutation::HandoverBeforeWait));
                next.sessions[c].handed = true;
                out.push((Step::TakenOver(c), next));
            }
            let always = !self.broken(Mutation::WaitOnlyIfPromiseMissing);
            out.push((Step::Steal(c), self.opened(state, c, always || state.record.wait)));
            let old = state.sessions[usize::from(state.record.owner)];
            if self.0.assertions && old.phase == Phase::Ended {
                out.push((Step::StealByAssertion(c), self.opened(state, c, marked)));
            }
        }
    }

    fn opened(&self, state: &State, c: usize, must_wait: bool) -> State {
        let mut next = *state;
        next.record.epoch += 1;
        next.record.owner = index(c);
        next.record.next = NOBODY;
        next.record.wait = must_wait && !self.broken(Mutation::NoWaitMark);
        next.sessions[c] = Session {
            phase: Phase::Opening,
            must_wait: must_wait && !self.broken(Mutation::NoWait),
            waited: if self.broken(Mutation::WaitFromCas) { 0 } else { NOT_STARTED },
            missed: state.sessions[c].missed,
            ..IDLE
        };
        self.enter_epoch(&mut next, c);
        next
    }

    fn deliveries(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        for r in (0..self.0.replicas).filter(|r| !self.is_cut(state, c, *r)) {
            if session.promising.has(r) {
                let mut next = *state;
                next.sessions[c].promising = session.promising.without(r);
                let replica = &mut next.replicas[r];
                let same = replica.promised == session.epoch && usize::from(replica.to) == c;
                if session.epoch > replica.promised || same {
                    replica.promised = session.epoch;
                    replica.to = index(c);
                    let thief = &mut next.sessions[c];
                    thief.promised = thief.promised.with(r);
                    if thief.waited == NOT_STARTED {
                        thief.waited = 0;
                    }
                }
                out.push((Step::Promise(c, r), next));
            }
            if session.writing.has(r) {
                let mut next = *state;
                next.sessions[c].writing = session.writing.without(r);
                if Self::executes(state, c, r) {
                    next.replicas[r].value = session.write;
                    next.sessions[c].acked = session.acked.with(r);
                }
                out.push((Step::WriteExecuted(c, r), next));
            }
            match session.beats[r] {
                Beat::None => {}
                Beat::Asked(age) => {
                    let mut next = *state;
                    let answers = Self::executes(state, c, r);
                    next.sessions[c].beats[r] = if answers { Beat::Answered(age) } else { Beat::None };
                    out.push((Step::BeatExecuted(c, r), next));
                }
                Beat::Answered(age) => {
                    let mut next = *state;
                    let age = if self.broken(Mutation::AgeFromAnswer) { 0 } else { age };
                    next.sessions[c].beats[r] = Beat::None;
                    next.sessions[c].age[r] = session.age[r].min(age);
                    out.push((Step::BeatAnswered(c, r), next));
                }
            }
        }
        if let Read::Sent { to, floor } = session.read {
            let r = usize::from(to);
            let mut next = *state;
            if Self::executes(state, c, r) && !self.is_cut(state, c, r) {
                let value = state.replicas[r].value;
                next.sessions[c].read = Read::Answered { value, floor };
                out.push((Step::ReadExecuted(c, r, value), next));
            } else {
                next.sessions[c].read = Read::None;
                out.push((Step::ReadRefused(c, r), next));
            }
        }
    }

    fn opening(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let current = state.record.owner == index(c)
            && state.record.epoch == session.epoch
            && self.reaches_store(state, c);
        let all = session.promised.contains(session.in_sync);
        let obeys = |r: usize| Self::executes(state, c, r) && !self.is_cut(state, c, r);
        let obeyed = all && session.in_sync.iter().all(obeys);
        if obeyed && session.handed {
            out.push((Step::ServeHanded(c), with(state, c, |s| s.phase = Phase::Serving)));
        } else if obeyed {
            for source in session.in_sync.iter() {
                let mut next = *state;
                for r in session.in_sync.iter() {
                    next.replicas[r].value = state.replicas[source].value;
                }
                next.sessions[c].phase = Phase::Serving;
                out.push((Step::Serve(c, source), next));
            }
        }
        if current && !all && !session.promised.is_empty() && state.record.epoch < self.0.max_epoch {
            let mut next = *state;
            next.record.epoch += 1;
            next.record.in_sync = session.in_sync.and(session.promised);
            if self.broken(Mutation::WaitOnlyIfPromiseMissing) {
                next.sessions[c].must_wait = true;
            }
            self.enter_epoch(&mut next, c);
            out.push((Step::GiveUpSilent(c), next));
        }
    }

    fn serving(&self, state: &State, c: usize, out: &mut Out) -> Result<(), Violation> {
        let session = &state.sessions[c];
        for r in Self::required(session).iter() {
            if self.0.heartbeats && session.beats[r] == Beat::None {
                out.push((Step::BeatSent(c, r), with(state, c, |s| s.beats[r] = Beat::Asked(0))));
            }
        }
        self.reads(state, c, out)?;
        self.writes(state, c, out);
        self.reconfigurations(state, c, out);
        if self.0.handover {
            self.hand_over(state, c, out);
        }
        Ok(())
    }

    /// 4.11: `next` by a swap, then stop, drain, and give the token.
    fn hand_over(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        if session.swap != Swap::None {
            return;
        }
        let compares = state.record.owner == index(c) && state.record.epoch == session.epoch;
        if !compares || state.record.next == NOBODY {
            for d in (0..self.0.sessions).filter(|d| state.sessions[*d].phase == Phase::Idle) {
                let swap = Swap::Sent(Change::Next(index(d)));
                out.push((Step::SwapSentNext(c, index(d)), with(state, c, |s| s.swap = swap)));
            }
            return;
        }
        let to = state.record.next;
        let drained = session.write == 0 || self.broken(Mutation::TokenBeforeDrain);
        let quiet = drained && session.read == Read::None;
        let may = !session.must_wait || self.broken(Mutation::HandoverBeforeWait);
        if may
            && (quiet || self.broken(Mutation::TokenBeforeStop))
            && state.tokens[usize::from(to)] != session.epoch
        {
            let mut next = *state;
            next.tokens[usize::from(to)] = session.epoch;
            if !self.broken(Mutation::TokenBeforeStop) {
                next.sessions[c].phase = Phase::Stopped;
            }
            out.push((Step::TokenGiven(c, to), next));
        }
    }

    fn stopped(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let compares = state.record.owner == index(c) && state.record.epoch == session.epoch;
        if compares && state.record.epoch < self.0.max_epoch && self.reaches_store(state, c) {
            let mut next = with(state, c, |s| s.phase = Phase::Serving);
            next.record.epoch += 1;
            next.record.next = NOBODY;
            self.enter_epoch(&mut next, c);
            out.push((Step::TakenBack(c), next));
        }
        if self.broken(Mutation::SourceResumes) {
            let next = with(state, c, |s| s.phase = Phase::Serving);
            out.push((Step::ResumedSilently(c), next));
        }
    }

    fn reads(&self, state: &State, c: usize, out: &mut Out) -> Result<(), Violation> {
        let session = &state.sessions[c];
        match session.read {
            Read::None => {
                // The range lock: a read waits for the writes in flight of its block.
                let unchecked = self.broken(Mutation::NoCheckAtSending);
                if session.write != 0 || !(unchecked || self.has_lease(session)) {
                    return Ok(());
                }
                // A member may hold an unacknowledged write of a session in between, which the first owner,
                // still with its lease, would not return after it.
                if !self.wait_is_over(session) && !self.broken(Mutation::ReadsWhileWaiting) {
                    return Ok(());
                }
                let mut readable = session.in_sync;
                if let Some(Change::Demote(r)) = session.swap.change()
                    && !self.broken(Mutation::ReadsRemoved)
                {
                    readable = readable.without(r.into());
                }
                for r in readable.iter() {
                    let read = Read::Sent { to: index(r), floor: state.floor };
                    out.push((Step::ReadSent(c, r), with(state, c, |s| s.read = read)));
                }
            }
            Read::Sent { .. } => {}
            Read::Answered { value, floor } => {
                if !self.broken(Mutation::NoRecheck) && !self.has_lease(session) {
                    out.push((Step::ReadHeld(c), with(state, c, |s| s.read = Read::None)));
                    return Ok(());
                }
                let observation = format!("s{c} returns {value} to its guest");
                if value < floor {
                    let promise =
                        "a read returns nothing older than what had completed when it was asked for";
                    return Err(Violation { promise, observation });
                }
                if self.0.strict && value < state.floor {
                    let promise = "a read returns nothing older than what has completed when it is answered";
                    return Err(Violation { promise, observation });
                }
                let mut next = with(state, c, |s| s.read = Read::None);
                next.floor = next.floor.max(value);
                out.push((Step::ReadCompleted(c, value), next));
            }
        }
        Ok(())
    }

    fn writes(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        if session.write == 0 && session.read == Read::None && state.writes < self.0.writes {
            let mut next = *state;
            next.writes += 1;
            let s = &mut next.sessions[c];
            s.write = next.writes;
            s.acked = Mask::EMPTY;
            s.writing = Self::required(s);
            out.push((Step::WriteStarted(c, next.writes), next));
        }
        if session.write != 0 && session.acked.contains(Self::required(session)) && self.wait_is_over(session)
        {
            let mut next = *state;
            next.floor = next.floor.max(session.write);
            next.sessions[c].write = 0;
            next.sessions[c].acked = Mask::EMPTY;
            out.push((Step::WriteCompleted(c, session.write), next));
        }
    }

    fn reconfigurations(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        if session.swap != Swap::None {
            return;
        }
        let room = state.record.epoch < self.0.max_epoch;
        let mut send = |step, change| out.push((step, with(state, c, |s| s.swap = Swap::Sent(change))));
        if session.must_wait && self.wait_is_over(session) {
            send(Step::SwapSentClearWait(c), Change::ClearWait);
        }
        if self.0.reconfigure && room {
            if session.in_sync.len() > 1 {
                for r in session.in_sync.iter() {
                    send(Step::SwapSentDemote(c, index(r)), Change::Demote(index(r)));
                }
            }
            if session.joiner != NOBODY {
                send(Step::SwapSentAdmit(c, session.joiner), Change::Admit(session.joiner));
            }
        }
        // A thief neither closes nor hands over before its wait is over and the mark is gone.
        let may_close = !session.must_wait || self.broken(Mutation::CloseBeforeWait);
        if self.0.closes && may_close && session.write == 0 && session.read == Read::None {
            let mut next = with(state, c, |s| s.swap = Swap::Sent(Change::Close));
            next.sessions[c].phase = Phase::Closing;
            out.push((Step::SwapSentClose(c), next));
        }
        if self.0.reconfigure && session.joiner == NOBODY && session.write == 0 {
            for r in Mask::first(self.0.replicas).minus(session.in_sync).iter() {
                // The joiner's promise and its copy in one step; the source must still obey this session.
                if self.is_cut(state, c, r) {
                    continue;
                }
                let reads = |r: &usize| Self::executes(state, c, *r) && !self.is_cut(state, c, *r);
                let source = session.in_sync.iter().find(reads);
                let replica = state.replicas[r];
                let promises = session.epoch > replica.promised || Self::executes(state, c, r);
                let Some(source) = source.filter(|_| promises) else { continue };
                let mut next = with(state, c, |s| s.joiner = index(r));
                next.replicas[r] =
                    Replica { promised: session.epoch, to: index(c), value: state.replicas[source].value };
                out.push((Step::JoinerCopied(c, r), next));
            }
        }
    }

    /// The store and the session's knowledge of it. A dead session's swap may still be applied.
    fn swaps(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let compares = state.record.owner == index(c)
            && state.record.epoch == session.epoch
            && self.reaches_store(state, c);
        match session.swap {
            Swap::Sent(change) if compares => {
                let mut next = *state;
                next.sessions[c].swap = Swap::Applied(change);
                let record = &mut next.record;
                match change {
                    Change::Demote(r) => record.in_sync = record.in_sync.without(r.into()),
                    Change::Admit(r) => record.in_sync = record.in_sync.with(r.into()),
                    Change::ClearWait => record.wait = false,
                    Change::Next(d) => record.next = d,
                    Change::Close => {
                        record.owner = NOBODY;
                        record.next = NOBODY;
                        record.wait &= !self.broken(Mutation::CloseBeforeWait);
                    }
                }
                record.epoch += u8::from(matches!(change, Change::Demote(_) | Change::Admit(_)));
                out.push((Step::SwapApplied(c), next));
            }
            Swap::Applied(change) if state.record.owner == index(c) && session.phase == Phase::Serving => {
                let mut next = *state;
                next.sessions[c].swap = Swap::None;
                match change {
                    Change::ClearWait => next.sessions[c].must_wait = false,
                    Change::Next(_) => {}
                    Change::Demote(_) | Change::Admit(_) | Change::Close => self.enter_epoch(&mut next, c),
                }
                out.push((Step::SwapLearned(c), next));
            }
            Swap::None | Swap::Sent(_) | Swap::Applied(_) => {}
        }
    }

    fn ticks(&self, state: &State, out: &mut Out) {
        let mut all = *state;
        for session in &mut all.sessions {
            self.advance(session);
        }
        if all == *state {
            return;
        }
        if self.0.drift {
            for c in 0..self.0.sessions {
                if state.sessions[c].missed || matches!(state.sessions[c].phase, Phase::Idle | Phase::Ended) {
                    continue;
                }
                let mut next = all;
                next.sessions[c] = state.sessions[c];
                next.sessions[c].missed = true;
                out.push((Step::TickMissedBy(c), next));
            }
        }
        out.push((Step::Tick, all));
    }

    fn advance(&self, session: &mut Session) {
        if matches!(session.phase, Phase::Idle | Phase::Ended) {
            return;
        }
        let lease = self.0.lease;
        if session.must_wait && session.waited < self.wait_ticks() {
            session.waited += 1;
        }
        for r in 0..self.0.replicas {
            session.age[r] = lease.min(session.age[r] + 1);
            session.beats[r] = match session.beats[r] {
                Beat::None => Beat::None,
                Beat::Asked(age) => Beat::Asked(lease.min(age + 1)),
                Beat::Answered(age) => Beat::Answered(lease.min(age + 1)),
            };
        }
    }

    /// Forgets what can't matter any more, so that equal futures are equal states.
    fn canonical(&self, state: &mut State) {
        for c in 0..self.0.sessions {
            for r in 0..self.0.replicas {
                let replica = state.replicas[r];
                let session = &mut state.sessions[c];
                if replica.promised > session.epoch {
                    session.promising = session.promising.without(r);
                    session.writing = session.writing.without(r);
                    if matches!(session.beats[r], Beat::Asked(_)) {
                        session.beats[r] = Beat::None;
                    }
                }
            }
            let session = &mut state.sessions[c];
            match session.phase {
                Phase::Ended => {
                    let alive = matches!(session.swap, Swap::Sent(_)) && state.record.epoch == session.epoch;
                    *session = Session {
                        phase: Phase::Ended,
                        epoch: session.epoch,
                        promising: session.promising,
                        writing: session.writing,
                        write: if session.writing.is_empty() { 0 } else { session.write },
                        swap: if alive { session.swap } else { Swap::None },
                        ..IDLE
                    };
                    if session.promising.is_empty() && session.writing.is_empty() && !alive {
                        session.epoch = 0;
                    }
                }
                Phase::Closing => {
                    session.age = [self.0.lease; MAX_REPLICAS];
                    session.beats = [Beat::None; MAX_REPLICAS];
                    if matches!(session.swap, Swap::Applied(_)) {
                        *session = Session { phase: Phase::Ended, promising: session.promising, ..IDLE };
                    }
                }
                Phase::Stopped if !self.broken(Mutation::SourceResumes) => {
                    session.age = [self.0.lease; MAX_REPLICAS];
                    session.beats = [Beat::None; MAX_REPLICAS];
                }
                Phase::Idle | Phase::Opening | Phase::Serving | Phase::Stopped => {}
            }
            let useless = state.tokens[c] < state.record.epoch && !self.broken(Mutation::StaleToken);
            if useless || state.sessions[c].phase != Phase::Idle {
                state.tokens[c] = 0;
            }
        }
    }
}

impl Model for Lease {
    type State = State;
    type Step = Step;

    fn initial(&self) -> State {
        let in_sync = Mask(self.0.in_sync).and(Mask::first(self.0.replicas));
        let mut state = State {
            record: Record { epoch: 1, owner: 0, next: NOBODY, in_sync, wait: false },
            replicas: [Replica::default(); MAX_REPLICAS],
            sessions: [IDLE; MAX_SESSIONS],
            tokens: [0; MAX_SESSIONS],
            revocation: Revocation::default(),
            writes: 0,
            floor: 0,
        };
        for r in in_sync.iter() {
            state.replicas[r].promised = 1;
        }
        state.sessions[0] = Session { phase: Phase::Serving, epoch: 1, in_sync, promised: in_sync, ..IDLE };
        state
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        if self.0.revocable != 0 {
            self.revocation(state, out)?;
        }
        self.owner_changes(state, out);
        for c in 0..self.0.sessions {
            let session = &state.sessions[c];
            if session.phase == Phase::Idle {
                continue;
            }
            self.deliveries(state, c, out);
            self.swaps(state, c, out);
            match session.phase {
                Phase::Opening => self.opening(state, c, out),
                Phase::Serving => self.serving(state, c, out)?,
                Phase::Stopped => self.stopped(state, c, out),
                Phase::Idle | Phase::Closing | Phase::Ended => {}
            }
            if session.phase != Phase::Ended {
                if state.record.owner != index(c) {
                    out.push((Step::Fenced(c), with(state, c, |s| s.phase = Phase::Ended)));
                } else {
                    out.push((Step::Crashed(c), with(state, c, |s| s.phase = Phase::Ended)));
                }
            }
        }
        self.ticks(state, out);
        for (_, next) in out.iter_mut() {
            self.canonical(next);
        }
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        use fmt::Write as _;
        let record = state.record;
        let mut line = format!(
            "record(E={} owner={} in-sync={:03b}{})",
            record.epoch,
            if record.owner == NOBODY { "none".into() } else { format!("s{}", record.owner) },
            record.in_sync.0,
            if record.wait { " wait" } else { "" }
        );
        let Revocation { decided, store_cut, cut, fenced } = state.revocation;
        if decided {
            let how = if store_cut { " store" } else { "" };
            let done = if fenced { " fenced" } else { "" };
            let _ = write!(line, " revoked(cut={:03b}{how}{done})", cut.0);
        }
        if record.next != NOBODY {
            let _ = write!(line, " next=s{}", record.next);
        }
        for (r, replica) in state.replicas.iter().enumerate().take(self.0.replicas) {
            let _ = write!(line, " r{r}(E={} to s{} value={})", replica.promised, replica.to, replica.value);
        }
        for (c, s) in state.sessions.iter().enumerate().take(self.0.sessions) {
            if s.phase == Phase::Idle {
                continue;
            }
            let _ = write!(line, " s{c}({:?}", s.phase);
            if s.phase != Phase::Ended {
                let _ = write!(
                    line,
                    " E={} in-sync={:03b} ages={:?}",
                    s.epoch,
                    s.in_sync.0,
                    &s.age[..self.0.replicas]
                );
                if s.must_wait {
                    let _ = write!(line, " {}", if self.wait_is_over(s) { "waited" } else { "waiting" });
                }
            }
            line.push(')');
        }
        line
    }
}

fn with(state: &State, c: usize, change: impl FnOnce(&mut Session)) -> State {
    let mut next = *state;
    change(&mut next.sessions[c]);
    next
}

fn index(number: usize) -> u8 {
    u8::try_from(number).expect("replicas and sessions are at most three")
}
