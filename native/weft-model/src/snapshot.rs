//! Snapshots (protocol.md 4.19): a write barrier over all members, PREPARE, one swap that makes the snapshot READY, and
//! the janitor that removes what became of attempts that did not (R15).
//!
//! One or two volumes of one guest, attached in one session (two: a group snapshot), one snapshot id, several attempts
//! at it. A replica's image is taken by the PREPARE that arrives; PREPAREs may arrive at any later time, swaps are
//! applied at any later time or never, owners crash and are stolen from, members leave and come back, the store may be
//! lost and rebuilt from the replicas' logs. Reconciling, copying and promising are each one step: `core` has them.
//! Behind switches, with one volume: the report to the asker (R27), images of attempts that came to nothing are dropped
//! by the live owner, the snapshot is deleted.
//!
//! Must always hold (the oracle):
//! - the images of a READY snapshot's members are equal, hold every write completed before the barrier and none
//!   submitted after it (I21), and in a group no write without those that had completed when it began;
//! - a group is READY in all volumes or in none (D19);
//! - an image that was READY is never removed or replaced (R15, N20), unless it is being deleted, or nobody was told of
//!   it and no log has it after a loss of the store;
//! - a snapshot that was reported is there after a loss of the store, if any member that had to log it answers (R27);
//! - what was deleted does not come back, neither as an image nor as a key.

use core::fmt::Write as _;

use crate::cases::{Case, Expected, SMALL, Setup, unbroken};
use crate::explore::{Counted, Event, Model, Violation};
use crate::mask::Mask;

const MAX_REPLICAS: usize = 3;
const MAX_SESSIONS: usize = 3;
const MAX_VOLUMES: usize = 2;
const MAX_WRITES: usize = 6;
const NOBODY: u8 = 0xff;

mutations! {
    /// The barrier does not wait for writes in flight.
    NoDrain,
    /// Writes go on before every member has answered PREPARE.
    ResumeEarly,
    /// D12: a snapshot is taken before the members are reconciled.
    BeforeReconcile,
    /// READY lists a member that has not answered.
    ListsSilent,
    /// A PREPARE finds an image of the same snapshot and takes it for its own.
    PrepareById,
    /// A PREPARE of an attempt that is over replaces the image of a newer one.
    PrepareGoesBack,
    /// R14: a new attempt begins while the swap of the last is unsettled.
    RetryUnsettled,
    /// R15: an image goes because the record does not name it.
    JanitorAbsence,
    /// R15: a record of the PREPARE's own epoch is new enough.
    JanitorSameEpoch,
    /// R15 by the letter: "never logged READY, PREPARE below a present record's epoch", whatever that record says.
    JanitorIgnoresRecord,
    /// R15: the incarnation of the store is not compared.
    JanitorOtherStore,
    /// A PREPARE replaces an image of before the store was lost.
    PrepareOverOtherStore,
    /// 4.19: the volumes of a group are stopped and prepared one after the other.
    GroupOneByOne,
    /// 4.19: a volume of a group goes on before the others are prepared.
    GroupGoesOn,
    /// D19: each volume of a group has its own swap.
    GroupTwoSwaps,
    /// R27: the asker is told as soon as the swap is done.
    ReportAtSwap,
    /// R27: one member that has logged READY is enough.
    ReportAtOneLog,
    /// R27: an image of before the store was lost goes as soon as the record does not name it.
    OldImageGoesAtOnce,
    /// The owner drops the images of an attempt whose swap is unsettled.
    DropUnsettled,
    /// A replica drops its image of the snapshot, of whatever attempt.
    DropById,
    /// Attempts without a write in between share their interval (R21), and so their name.
    AttemptByInterval,
    /// A PREPARE that was under way while the snapshot was deleted takes an image again.
    PrepareAfterGone,
    /// A replica remembers until the key is gone that it has removed its image, and refuses PREPAREs by that alone.
    GoneForgotten,
    /// A repair makes a snapshot READY that another replica has removed already.
    RepairIgnoresGone,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Replicas, at most 3.
    pub replicas: usize,
    /// Sessions, at most 3.
    pub sessions: usize,
    /// Volumes of the guest, 1 or 2.
    pub volumes: usize,
    /// Writes altogether, at most 6.
    pub writes: u8,
    /// No compare-and-swap goes beyond this epoch.
    pub max_epoch: u8,
    /// Attempts at the snapshot altogether.
    pub attempts: u8,
    /// Replicas remove what is of no use.
    pub janitor: bool,
    /// The store may be lost and rebuilt, once.
    pub lost_store: bool,
    /// Who asked is told; a repair is answered by some replicas first, by the others later.
    pub reports: bool,
    /// The owner drops the images of attempts that came to nothing.
    pub drops: bool,
    /// The snapshot is deleted.
    pub deletes: bool,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Ready {
    /// 0: no such key.
    attempt: u8,
    members: Mask,
    deleting: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Record {
    epoch: u8,
    owner: u8,
    incarnation: u8,
    in_sync: Mask,
    snap: [Ready; MAX_VOLUMES],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Image {
    /// The generation of its barrier; 0: none.
    attempt: u8,
    value: u8,
    epoch: u8,
    incarnation: u8,
    /// READY is in this replica's log.
    logged: bool,
}

/// What a replica's janitor has read from the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Seen {
    epoch: u8,
    incarnation: u8,
    attempt: [u8; MAX_VOLUMES],
    /// After a repair: every replica had told its log, or a day had passed.
    complete: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Replica {
    promised: u8,
    to: u8,
    data: [u8; MAX_VOLUMES],
    images: [Image; MAX_VOLUMES],
    seen: Seen,
    /// The highest attempt that this replica has prepared or dropped: PREPAREs up to it are refused.
    prepared: u8,
    /// ImageGone is in its log.
    gone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd)]
enum Phase {
    #[default]
    Idle,
    Promising,
    Unreconciled,
    Open,
    /// Stopped, waits for the answers of PREPARE.
    Preparing,
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Barrier {
    attempt: u8,
    /// PREPAREs on their way, and answered.
    sent: Mask,
    answered: Mask,
    /// Oracle: the newest completed and the newest submitted write at the barrier.
    floor: u8,
    ceiling: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Session {
    phase: Phase,
    reconciled: bool,
    epoch: u8,
    in_sync: Mask,
    promised: Mask,
    write: [u8; MAX_VOLUMES],
    sent: [Mask; MAX_VOLUMES],
    acked: [Mask; MAX_VOLUMES],
    barrier: [Barrier; MAX_VOLUMES],
    /// PREPAREs of an attempt that is over, still on their way.
    stray: [Barrier; MAX_VOLUMES],
    /// The swap that makes it READY: sent, its outcome unknown.
    swap: [Barrier; MAX_VOLUMES],
    /// DROPs on their way.
    drop: Barrier,
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    record: Record,
    replicas: [Replica; MAX_REPLICAS],
    sessions: [Session; MAX_SESSIONS],
    writes: u8,
    attempts: u8,
    /// Oracle: the newest completed write of each volume, and what had completed in the other when a write began.
    completed: [u8; MAX_VOLUMES],
    before: [u8; MAX_WRITES + 1],
    /// Oracle: what was READY, with its limits, and the values of its images.
    was_ready: [Ready; MAX_VOLUMES],
    value: [u8; MAX_VOLUMES],
    /// Oracle: the members that had to have logged it when the asker was told; it is being deleted; it is gone.
    reported: Mask,
    doomed: bool,
    deleted: bool,
    /// Replicas whose logs a repair has not been told yet.
    untold: Mask,
    /// The epoch and the writes of the last attempt, if attempts are named by their interval.
    last: [u8; 2],
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot(pub Config);

type Out = Vec<(Event, State)>;

fn index(number: usize) -> u8 {
    u8::try_from(number).expect("replicas, sessions and volumes are at most three")
}

impl Snapshot {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    fn room(&self, state: &State) -> bool {
        state.record.epoch < self.0.max_epoch
    }

    fn compares(state: &State, c: usize) -> bool {
        state.record.owner == index(c) && state.record.epoch == state.sessions[c].epoch
    }

    fn obeys(state: &State, c: usize, r: usize) -> bool {
        state.replicas[r].promised == state.sessions[c].epoch && state.replicas[r].to == index(c)
    }

    fn enter_epoch(next: &mut State, c: usize) {
        next.record.epoch += 1;
        let record = next.record;
        let session = &mut next.sessions[c];
        session.phase = Phase::Promising;
        session.epoch = record.epoch;
        session.in_sync = record.in_sync;
        session.promised = Mask::EMPTY;
        session.swap = Default::default();
    }

    fn open(&self, state: &State, c: usize, out: &mut Out) {
        let in_turn = c == 0 || state.sessions[c - 1].phase != Phase::Idle;
        if in_turn && self.room(state) {
            let mut next = *state;
            next.record.owner = index(c);
            Self::enter_epoch(&mut next, c);
            out.push((Event::new("s{0} opens or steals (CAS)", &[c]), next));
        }
    }

    fn promising(state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        for r in session.in_sync.minus(session.promised).iter() {
            if session.epoch > state.replicas[r].promised {
                let mut next = *state;
                next.replicas[r].promised = session.epoch;
                next.replicas[r].to = index(c);
                next.sessions[c].promised = session.promised.with(r);
                out.push((Event::new("PROMISE s{0} -> r{1} arrives", &[c, r]), next));
            }
        }
        if session.promised == session.in_sync {
            let mut next = *state;
            next.sessions[c].phase = if session.reconciled { Phase::Open } else { Phase::Unreconciled };
            out.push((Event::new("s{0} has all promises", &[c]), next));
        }
    }

    fn reconcile(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        if !session.in_sync.iter().all(|r| Self::obeys(state, c, r)) {
            return;
        }
        for source in session.in_sync.iter() {
            let mut next = *state;
            for r in session.in_sync.iter() {
                next.replicas[r].data = state.replicas[source].data;
            }
            next.sessions[c].phase = Phase::Open;
            next.sessions[c].reconciled = true;
            out.push((Event::new("s{0} reconciles from r{1}", &[c, source]).counts(Counted::Opened), next));
        }
        if self.broken(Mutation::BeforeReconcile) {
            self.barrier(state, c, out);
        }
    }

    fn writes(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        for v in 0..self.0.volumes {
            let barrier = session.barrier[v];
            let goes_on = self.broken(Mutation::ResumeEarly)
                || (self.broken(Mutation::GroupGoesOn) && barrier.answered.contains(session.in_sync));
            let stopped = session.phase == Phase::Preparing && barrier.attempt != 0 && !goes_on;
            if session.write[v] == 0 && !stopped && state.writes < self.0.writes {
                let mut next = *state;
                next.writes += 1;
                next.before[usize::from(next.writes)] = state.completed[1 - v];
                let writer = &mut next.sessions[c];
                writer.write[v] = next.writes;
                writer.sent[v] = session.in_sync;
                writer.acked[v] = Mask::EMPTY;
                out.push((
                    Event::new("s{0} starts WRITE {1} of volume {2}", &[c, next.writes.into(), v]),
                    next,
                ));
            }
            if session.write[v] != 0 && session.acked[v].contains(session.in_sync) {
                let mut next = *state;
                next.completed[v] = session.write[v];
                next.sessions[c].write[v] = 0;
                next.sessions[c].sent[v] = Mask::EMPTY;
                next.sessions[c].acked[v] = Mask::EMPTY;
                out.push((
                    Event::new("s{0} ACKNOWLEDGES WRITE {1}", &[c, session.write[v].into()])
                        .counts(Counted::WriteAcked),
                    next,
                ));
            }
        }
    }

    /// Stop, drain, roll, PREPARE to all members.
    fn barrier(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let unsettled = session.swap.iter().any(|swap| swap.attempt != 0);
        let done = state.record.snap[0].attempt != 0 || state.deleted;
        if state.attempts == self.0.attempts || done || (unsettled && !self.broken(Mutation::RetryUnsettled))
        {
            return;
        }
        let one_by_one = self.broken(Mutation::GroupOneByOne) || self.broken(Mutation::GroupGoesOn);
        let volumes = if one_by_one { 0..1 } else { 0..self.0.volumes };
        if volumes.clone().any(|v| session.write[v] != 0) && !self.broken(Mutation::NoDrain) {
            return;
        }
        let mut next = *state;
        let last = [session.epoch, state.writes + 1];
        if !(self.broken(Mutation::AttemptByInterval) && state.last == last) {
            next.attempts += 1;
        }
        if self.broken(Mutation::AttemptByInterval) {
            next.last = last;
        }
        next.sessions[c].phase = Phase::Preparing;
        for v in volumes {
            self.prepare(&mut next, c, v);
        }
        out.push((
            Event::new("s{0} has stopped and drained, sends PREPARE ({1})", &[c, next.attempts.into()]),
            next,
        ));
    }

    fn prepare(&self, next: &mut State, c: usize, v: usize) {
        let attempt = next.attempts;
        let floor = next.completed[v];
        let session = &mut next.sessions[c];
        let submitted = session.write[v];
        session.barrier[v] = Barrier {
            attempt,
            sent: session.in_sync,
            answered: Mask::EMPTY,
            floor,
            // What nobody was answered may be in it or not (a write of an owner that died).
            ceiling: if submitted == 0 { next.writes } else { submitted },
        };
    }

    fn preparing(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let v = self.0.volumes - 1;
        if session.barrier[v].attempt == 0 {
            // Only when volumes of a group are prepared one by one.
            if session.write[v] == 0 && session.barrier[0].answered.contains(session.in_sync) {
                let mut next = *state;
                self.prepare(&mut next, c, v);
                out.push((Event::new("s{0} stops volume {1} too, sends PREPARE", &[c, v]), next));
            }
            return;
        }
        let volumes = 0..self.0.volumes;
        let answered = |v: usize| session.barrier[v].answered;
        let enough = |v: usize| {
            answered(v).contains(session.in_sync)
                || (self.broken(Mutation::ListsSilent) && !answered(v).is_empty())
        };
        if volumes.clone().all(enough) {
            let mut next = *state;
            let owner = &mut next.sessions[c];
            for v in volumes {
                owner.swap[v] =
                    Barrier { answered: session.in_sync, sent: Mask::EMPTY, ..session.barrier[v] };
            }
            Self::go_on(owner);
            out.push((Event::new("s{0} sends CAS: READY; and goes on", &[c]), next));
        }
        let mut next = *state;
        if self.0.drops {
            let attempt = session.barrier[0].attempt;
            next.sessions[c].drop = Barrier { attempt, sent: session.in_sync, ..Barrier::default() };
        }
        Self::go_on(&mut next.sessions[c]);
        out.push((Event::new("s{0} gives the attempt up and goes on", &[c]), next));
    }

    fn go_on(session: &mut Session) {
        session.phase = if session.reconciled { Phase::Open } else { Phase::Unreconciled };
        for (stray, barrier) in session.stray.iter_mut().zip(&mut session.barrier) {
            if !barrier.sent.is_empty() {
                *stray = Barrier { answered: Mask::EMPTY, floor: 0, ceiling: 0, ..*barrier };
            }
            *barrier = Barrier::default();
        }
    }

    fn deliveries(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        for (r, v) in (0..self.0.replicas).flat_map(|r| (0..self.0.volumes).map(move |v| (r, v))) {
            let obeys = Self::obeys(state, c, r);
            if session.sent[v].has(r) && obeys {
                let mut next = *state;
                next.replicas[r].data[v] = session.write[v];
                next.sessions[c].sent[v] = session.sent[v].without(r);
                next.sessions[c].acked[v] = session.acked[v].with(r);
                out.push((
                    Event::new("WRITE {1} s{0} -> r{2} arrives", &[c, session.write[v].into(), r]),
                    next,
                ));
            }
            for (barrier, late) in [(session.barrier[v], false), (session.stray[v], true)] {
                if !barrier.sent.has(r) || !obeys {
                    continue;
                }
                let mut next = *state;
                let taken = self.take_image(state, c, r, v, barrier.attempt, &mut next);
                let owner = &mut next.sessions[c];
                if late {
                    owner.stray[v].sent = barrier.sent.without(r);
                } else {
                    owner.barrier[v].sent = barrier.sent.without(r);
                    if taken {
                        owner.barrier[v].answered = barrier.answered.with(r);
                    }
                }
                let text = "PREPARE ({1}) s{0} -> r{2} arrives";
                out.push((Event::new(text, &[c, barrier.attempt.into(), r]), next));
            }
        }
    }

    /// The owner, whose attempt came to nothing, drops its images.
    fn drops(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        if self.broken(Mutation::DropUnsettled)
            && session.phase == Phase::Open
            && session.swap[0].attempt != 0
        {
            let mut next = *state;
            let Barrier { attempt, answered, .. } = session.swap[0];
            next.sessions[c].drop = Barrier { attempt, sent: answered, ..Barrier::default() };
            out.push((Event::new("s{0} hears nothing of its CAS and drops the images", &[c]), next));
        }
        for r in session.drop.sent.iter().filter(|r| Self::obeys(state, c, *r)) {
            let mut next = *state;
            let attempt = session.drop.attempt;
            next.sessions[c].drop.sent = session.drop.sent.without(r);
            let image = state.replicas[r].images[0];
            let meant = image.attempt == attempt || self.broken(Mutation::DropById);
            if meant && !image.logged {
                next.replicas[r].images[0] = Image::default();
            }
            next.replicas[r].prepared = state.replicas[r].prepared.max(attempt);
            out.push((Event::new("DROP ({1}) s{0} -> r{2} arrives", &[c, attempt.into(), r]), next));
        }
    }

    /// R27: what the asker is told; and DELETING, which is what the asker of a deletion is told.
    fn answers(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        let ready = state.record.snap[0];
        if ready.attempt == 0 || ready.deleting || !Self::compares(state, c) {
            return;
        }
        let obliged = ready.members.and(session.in_sync);
        let logged = |r: &usize| state.replicas[*r].images[0].logged;
        let enough = match self.0.mutation {
            Some(Mutation::ReportAtSwap) => true,
            Some(Mutation::ReportAtOneLog) => obliged.iter().any(|r| logged(&r)),
            _ => obliged.iter().all(|r| logged(&r)),
        };
        if self.0.reports && state.reported.is_empty() && !obliged.is_empty() && enough {
            let mut next = *state;
            next.reported = obliged;
            out.push((Event::new("s{0} REPORTS the snapshot", &[c]), next));
        }
        if self.0.deletes {
            let mut next = *state;
            next.record.snap[0].deleting = true;
            next.doomed = true;
            out.push((Event::new("s{0} marks the snapshot DELETING (CAS)", &[c]), next));
        }
    }

    /// Replicas remove what is DELETING and log it; when all listed have, the key goes.
    fn deletes(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        let listed = state.was_ready[0].members;
        if state.deleted {
            let back = listed.iter().find(|r| state.replicas[*r].images[0].attempt != 0);
            if let Some(r) = back {
                let promise = "what was deleted does not come back";
                return Err(Violation { promise, observation: format!("r{r} has an image of it again") });
            }
            if state.record.snap[0].attempt != 0 {
                let promise = "what was deleted does not come back";
                return Err(Violation { promise, observation: "its key is there again".into() });
            }
            return Ok(());
        }
        let key = state.record.snap[0];
        let ready = key.attempt != 0 && !key.deleting && state.untold.is_empty();
        if let Some(r) = key.members.iter().find(|r| ready && state.replicas[*r].gone) {
            let promise = "a READY snapshot's members have it";
            return Err(Violation { promise, observation: format!("r{r} has removed it") });
        }
        if !key.deleting {
            return Ok(());
        }
        for r in key.members.iter().filter(|r| !state.replicas[*r].gone) {
            let mut next = *state;
            next.replicas[r].gone = true;
            next.replicas[r].images[0] = Image::default();
            out.push((Event::new("r{0} removes its image: DELETING", &[r]), next));
        }
        if key.members.iter().all(|r| state.replicas[r].gone) {
            let mut next = *state;
            next.record.snap[0] = Ready::default();
            next.deleted = true;
            if self.broken(Mutation::GoneForgotten) {
                next.replicas.iter_mut().for_each(|replica| replica.gone = false);
            }
            out.push((Event::new("all have removed it, the key goes (CAS)", &[]), next));
        }
        Ok(())
    }

    /// Whether the replica answers that it has the image of this attempt.
    fn take_image(&self, state: &State, c: usize, r: usize, v: usize, attempt: u8, next: &mut State) -> bool {
        let image = state.replicas[r].images[v];
        let incarnation = state.record.incarnation;
        if image.attempt != 0 && self.broken(Mutation::PrepareById) {
            return true;
        }
        let goes_back = image.attempt > attempt && !self.broken(Mutation::PrepareGoesBack);
        let other_store = image.attempt != 0
            && image.incarnation != incarnation
            && !self.broken(Mutation::PrepareOverOtherStore);
        if image.attempt == attempt {
            return true;
        }
        let replica = &state.replicas[r];
        let over = match self.0.mutation {
            Some(Mutation::PrepareAfterGone) => false,
            Some(Mutation::GoneForgotten) => replica.gone,
            _ => attempt <= replica.prepared,
        };
        if image.logged || goes_back || other_store || over {
            return false;
        }
        if self.0.drops || self.0.deletes {
            next.replicas[r].prepared = replica.prepared.max(attempt);
        }
        next.replicas[r].images[v] = Image {
            attempt,
            value: state.replicas[r].data[v],
            epoch: state.sessions[c].epoch,
            incarnation,
            logged: false,
        };
        true
    }

    fn store(&self, state: &State, c: usize, out: &mut Out) -> Result<(), Violation> {
        let session = &state.sessions[c];
        let sent = |v: &usize| session.swap[*v].attempt != 0;
        if !(0..self.0.volumes).any(|v| sent(&v)) || !Self::compares(state, c) {
            return Ok(());
        }
        let mut parts: Vec<Vec<usize>> = vec![(0..self.0.volumes).filter(sent).collect()];
        if self.broken(Mutation::GroupTwoSwaps) {
            parts = (0..self.0.volumes).filter(sent).map(|v| vec![v]).collect();
        }
        for part in parts {
            let mut next = *state;
            for v in part {
                let swap = session.swap[v];
                if state.record.snap[v].attempt == 0 {
                    self.judge(state, v, swap)?;
                    let ready = Ready { attempt: swap.attempt, members: swap.answered, deleting: false };
                    next.record.snap[v] = ready;
                    next.was_ready[v] = ready;
                    next.value[v] = self.image_of(state, v, swap.answered);
                }
                next.sessions[c].swap[v] = Barrier::default();
            }
            self.judge_group(&next)?;
            out.push((
                Event::new("the store applies the CAS of s{0}: READY", &[c]).counts(Counted::Sealed),
                next,
            ));
        }
        if session.phase < Phase::Ended {
            let mut next = *state;
            next.sessions[c].swap = Default::default();
            if self.0.drops && state.record.snap[0].attempt == 0 {
                let Barrier { attempt, answered, .. } = session.swap[0];
                next.sessions[c].drop = Barrier { attempt, sent: answered, ..Barrier::default() };
            }
            let gone = Event::new("s{0} settles it by a CAS of its own: not READY", &[c]);
            let half = (0..self.0.volumes).any(|v| state.record.snap[v].attempt != 0);
            if half {
                let promise = "a group is READY in all volumes or in none";
                let observation = "one volume is READY, the other will never be".into();
                return Err(Violation { promise, observation });
            }
            out.push((gone, next));
        }
        Ok(())
    }

    fn image_of(&self, state: &State, v: usize, members: Mask) -> u8 {
        members.iter().next().map_or(0, |r| state.replicas[r].images[v].value)
    }

    fn judge(&self, state: &State, v: usize, swap: Barrier) -> Result<(), Violation> {
        let promise =
            "a READY snapshot has what had completed at its barrier, and nothing later, on all members";
        for r in swap.answered.iter() {
            let image = state.replicas[r].images[v];
            let observation = if image.attempt == 0 {
                format!("r{r} is listed and has no image of volume {v}")
            } else if image.value < swap.floor || image.value > swap.ceiling {
                format!("the image of volume {v} on r{r} holds write {}", image.value)
            } else if image.value != self.image_of(state, v, swap.answered) {
                format!("the images of volume {v} differ")
            } else {
                continue;
            };
            return Err(Violation { promise, observation });
        }
        Ok(())
    }

    fn judge_group(&self, next: &State) -> Result<(), Violation> {
        if self.0.volumes < 2 || next.was_ready.iter().any(|ready| ready.attempt == 0) {
            return Ok(());
        }
        for v in 0..2 {
            let value = usize::from(next.value[v]);
            if next.before[value] > next.value[1 - v] {
                let promise = "a group has no write without those that had completed when it began";
                let observation = format!(
                    "volume {v} has write {value}, volume {} only write {}",
                    1 - v,
                    next.value[1 - v]
                );
                return Err(Violation { promise, observation });
            }
        }
        Ok(())
    }

    /// A removal, and a member that comes back with everything copied.
    fn members(&self, state: &State, c: usize, out: &mut Out) {
        let session = &state.sessions[c];
        if !Self::compares(state, c) || !self.room(state) {
            return;
        }
        for r in 0..self.0.replicas {
            let mut next = *state;
            if session.in_sync.has(r) {
                next.record.in_sync = session.in_sync.without(r);
                if next.record.in_sync.is_empty() {
                    continue;
                }
                Self::enter_epoch(&mut next, c);
                out.push((
                    Event::new("s{0} removes r{1} (CAS)", &[c, r]).counts(Counted::Removed).rare(4),
                    next,
                ));
            } else if session.write.iter().all(|write| *write == 0) {
                let Some(source) = session.in_sync.iter().find(|s| Self::obeys(state, c, *s)) else {
                    continue;
                };
                if state.replicas[r].promised > session.epoch {
                    continue;
                }
                next.replicas[r].data = state.replicas[source].data;
                next.record.in_sync = session.in_sync.with(r);
                Self::enter_epoch(&mut next, c);
                out.push((Event::new("s{0} has joined r{1} (CAS)", &[c, r]).counts(Counted::Admitted), next));
            }
        }
    }

    /// The owner pushes READY, the replica logs it; and R15's removal, between whose read and deed anything may happen.
    fn replicas(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        for (r, v) in (0..self.0.replicas).flat_map(|r| (0..self.0.volumes).map(move |v| (r, v))) {
            let replica = &state.replicas[r];
            let image = replica.images[v];
            let ready = state.record.snap[v];
            let was = state.was_ready[v];
            // Nobody was told of it and no log has it: nobody misses it.
            let known = !self.0.reports
                || ready.attempt != 0
                || !state.reported.is_empty()
                || state.replicas.iter().any(|replica| replica.images[v].logged);
            let kept = was.attempt != 0 && was.members.has(r) && !state.doomed && known;
            if kept && image.attempt != was.attempt {
                let promise = "an image that was READY is never removed or replaced";
                let observation =
                    format!("r{r} has attempt {} of volume {v}, not {}", image.attempt, was.attempt);
                return Err(Violation { promise, observation });
            }
            let owned = state.record.owner != NOBODY
                && state.sessions[usize::from(state.record.owner)].phase == Phase::Open;
            let pushed = owned && ready.attempt != 0 && !ready.deleting;
            if pushed && ready.attempt == image.attempt && !image.logged {
                let mut next = *state;
                next.replicas[r].images[v].logged = true;
                out.push((Event::new("r{0} logs READY of volume {1}", &[r, v]), next));
            }
            if self.0.janitor && image.attempt != 0 && !image.logged && self.may_remove(replica, v) {
                let mut next = *state;
                next.replicas[r].images[v] = Image::default();
                out.push((Event::new("r{0} removes its image of volume {1}", &[r, v]), next));
            }
        }
        for r in (0..self.0.replicas).filter(|_| self.0.janitor) {
            let record = &state.record;
            let attempt = record.snap.map(|ready| ready.attempt);
            let complete = self.0.reports && state.untold.is_empty();
            let seen = Seen { epoch: record.epoch, incarnation: record.incarnation, attempt, complete };
            if state.replicas[r].seen != seen
                && state.replicas[r].images.iter().any(|image| image.attempt != 0)
            {
                let mut next = *state;
                next.replicas[r].seen = seen;
                out.push((Event::new("r{0}'s janitor reads the record", &[r]), next));
            }
        }
        Ok(())
    }

    fn may_remove(&self, replica: &Replica, v: usize) -> bool {
        let (image, seen) = (replica.images[v], replica.seen);
        if seen.epoch == 0 {
            return false;
        }
        let named = seen.attempt[v] == image.attempt;
        let newer = seen.epoch > image.epoch;
        let same_store = seen.incarnation == image.incarnation;
        match self.0.mutation {
            Some(Mutation::JanitorAbsence) => !named,
            Some(Mutation::JanitorSameEpoch) => !named && seen.epoch >= image.epoch && same_store,
            Some(Mutation::JanitorIgnoresRecord) => newer && same_store,
            Some(Mutation::JanitorOtherStore) => !named && newer,
            Some(Mutation::OldImageGoesAtOnce) => !named && newer,
            _ => !named && newer && (same_store || seen.complete),
        }
    }

    /// R11: the record is rebuilt, above every promise; a snapshot's key only if a replica has logged READY.
    fn lose_store(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        if !self.0.lost_store {
            return Ok(());
        }
        let all = Mask::first(self.0.replicas);
        if state.record.incarnation != 1 {
            for r in state.untold.iter() {
                let mut next = *state;
                self.told(state, &mut next, Mask::one(r));
                out.push((Event::new("r{0} tells its log too", &[r]), next));
            }
            return Ok(());
        }
        let mut next = *state;
        next.record.incarnation = 2;
        next.record.owner = NOBODY;
        next.record.epoch += 1;
        next.record.snap = Default::default();
        for session in &mut next.sessions {
            if session.phase != Phase::Idle {
                *session = Session { phase: Phase::Ended, ..Session::default() };
            }
        }
        next.untold = all;
        if !self.0.reports {
            self.told(state, &mut next, all);
            out.push((Event::new("the store is lost and rebuilt from the replicas' logs", &[]), next));
            return Ok(());
        }
        // A true member has to be among those who answer (4.15).
        for answer in (1..=all.0).map(Mask).filter(|answer| !answer.and(state.record.in_sync).is_empty()) {
            let mut next = next;
            self.told(state, &mut next, answer);
            if !state.reported.and(answer).is_empty() && !state.doomed && next.record.snap[0].attempt == 0 {
                let promise = "a snapshot that was reported is there after a loss of the store";
                let observation = format!("{:03b} answered, none has logged it", answer.0);
                return Err(Violation { promise, observation });
            }
            let text = "the store is lost and rebuilt; not all tell their logs at once (without: {0})";
            out.push((Event::new(text, &[usize::from(all.minus(answer).0)]), next));
        }
        Ok(())
    }

    fn told(&self, state: &State, next: &mut State, who: Mask) {
        next.untold = next.untold.minus(who);
        for v in 0..self.0.volumes {
            let heard = Mask::first(self.0.replicas).minus(next.untold);
            let logged = |r: usize| state.replicas[r].images[v].logged;
            if heard.iter().any(logged) && next.record.snap[v].attempt == 0 {
                next.record.snap[v] = Ready { deleting: false, ..state.was_ready[v] };
            }
            let gone = heard.iter().any(|r| state.replicas[r].gone);
            if gone && next.record.snap[v].attempt != 0 && !self.broken(Mutation::RepairIgnoresGone) {
                next.record.snap[v].deleting = true;
            }
            if self.0.reports && next.untold.is_empty() && next.record.snap[v].attempt == 0 {
                // Nobody was told of it.
                next.was_ready[v] = Ready::default();
            }
        }
    }

    fn canonical(&self, state: &mut State) {
        for c in 0..self.0.sessions {
            let session = &mut state.sessions[c];
            if session.phase == Phase::Ended {
                let Session { epoch, swap, write, sent, drop, .. } = *session;
                let mut stray = session.stray;
                for (stray, barrier) in stray.iter_mut().zip(&session.barrier) {
                    if !barrier.sent.is_empty() {
                        *stray = Barrier { answered: Mask::EMPTY, floor: 0, ceiling: 0, ..*barrier };
                    }
                }
                *session = Session {
                    phase: Phase::Ended,
                    epoch,
                    swap,
                    write,
                    sent,
                    stray,
                    drop,
                    ..Session::default()
                };
                if state.record.epoch != epoch {
                    session.swap = Default::default();
                }
            }
            let fenced = |r: &usize| state.replicas[*r].promised > session.epoch;
            let fenced = (0..self.0.replicas).filter(fenced).fold(Mask::EMPTY, Mask::with);
            session.drop.sent = session.drop.sent.minus(fenced);
            if session.drop.sent.is_empty() {
                session.drop = Barrier::default();
            }
            for v in 0..self.0.volumes {
                session.sent[v] = session.sent[v].minus(fenced);
                session.stray[v].sent = session.stray[v].sent.minus(fenced);
                session.barrier[v].sent = session.barrier[v].sent.minus(fenced);
                if session.stray[v].sent.is_empty() {
                    session.stray[v] = Barrier::default();
                }
                if session.phase == Phase::Ended && session.sent[v].is_empty() {
                    session.write[v] = 0;
                }
            }
        }
    }
}

impl Model for Snapshot {
    type State = State;
    type Step = Event;

    fn initial(&self) -> State {
        let in_sync = Mask::first(self.0.replicas);
        State {
            record: Record { epoch: 0, owner: NOBODY, incarnation: 1, in_sync, snap: Default::default() },
            replicas: Default::default(),
            sessions: Default::default(),
            writes: 0,
            attempts: 0,
            completed: [0; MAX_VOLUMES],
            before: [0; MAX_WRITES + 1],
            was_ready: Default::default(),
            value: [0; MAX_VOLUMES],
            reported: Mask::EMPTY,
            doomed: false,
            deleted: false,
            untold: Mask::EMPTY,
            last: [0; 2],
        }
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        self.replicas(state, out)?;
        self.lose_store(state, out)?;
        self.deletes(state, out)?;
        for c in 0..self.0.sessions {
            self.deliveries(state, c, out);
            self.store(state, c, out)?;
            self.drops(state, c, out);
            match state.sessions[c].phase {
                Phase::Idle => self.open(state, c, out),
                Phase::Promising => Self::promising(state, c, out),
                Phase::Unreconciled => self.reconcile(state, c, out),
                Phase::Open => {
                    self.writes(state, c, out);
                    self.members(state, c, out);
                    self.barrier(state, c, out);
                    self.answers(state, c, out);
                }
                Phase::Preparing => {
                    self.writes(state, c, out);
                    self.preparing(state, c, out);
                }
                Phase::Ended => {}
            }
            if !matches!(state.sessions[c].phase, Phase::Idle | Phase::Ended) {
                let mut next = *state;
                next.sessions[c].phase = Phase::Ended;
                out.push((Event::new("s{0} CRASHES or is fenced", &[c]).rare(20), next));
            }
        }
        for (_, next) in out.iter_mut() {
            self.canonical(next);
        }
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        let record = &state.record;
        let mut line = format!("record(E={} in-sync={:03b}", record.epoch, record.in_sync.0);
        for (v, ready) in record.snap.iter().enumerate().filter(|(_, ready)| ready.attempt != 0) {
            let _ = write!(line, " READY{v}({} on {:03b})", ready.attempt, ready.members.0);
        }
        line.push(')');
        for (r, replica) in state.replicas.iter().enumerate().take(self.0.replicas) {
            let _ = write!(line, " r{r}(E={} data={:?}", replica.promised, &replica.data[..self.0.volumes]);
            for image in replica.images.iter().filter(|image| image.attempt != 0) {
                let _ = write!(line, " image({})={}", image.attempt, image.value);
            }
            line.push(')');
        }
        line
    }
}

const ONE: Config = Config {
    replicas: 2,
    sessions: 2,
    volumes: 1,
    writes: 2,
    max_epoch: 3,
    attempts: 2,
    janitor: false,
    lost_store: false,
    reports: false,
    drops: false,
    deletes: false,
    mutation: None,
};
const JANITOR: Config = Config { janitor: true, writes: 1, ..ONE };
const LOST: Config = Config { lost_store: true, ..JANITOR };
const REPORTS: Config = Config { reports: true, attempts: 1, ..LOST };
const DROPS: Config = Config { drops: true, writes: 1, ..ONE };
const DELETES: Config = Config { deletes: true, writes: 0, ..ONE };
const LOST_AND_DELETED: Config = Config { deletes: true, ..REPORTS };
const EVERYTHING: Config = Config {
    replicas: 3,
    sessions: 3,
    writes: 4,
    max_epoch: 8,
    attempts: 4,
    drops: true,
    ..LOST_AND_DELETED
};
const GROUP: Config = Config { volumes: 2, sessions: 1, max_epoch: 1, attempts: 1, ..ONE };

broken_cases!(Snapshot);

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    broken(
        "snapshot-no-drain",
        "4.19 writes in flight at the barrier",
        ONE,
        Mutation::NoDrain,
        Expected::Steps(11),
    ),
    broken(
        "snapshot-resume-early",
        "4.19 writes go on before all have prepared",
        ONE,
        Mutation::ResumeEarly,
        Expected::Steps(11),
    ),
    broken(
        "snapshot-before-reconcile",
        "D12 members are not reconciled yet",
        ONE,
        Mutation::BeforeReconcile,
        Expected::Steps(15),
    ),
    broken(
        "snapshot-lists-silent",
        "4.19 READY lists a member that has not answered",
        ONE,
        Mutation::ListsSilent,
        Expected::Steps(8),
    ),
    broken(
        "snapshot-prepare-by-id",
        "a PREPARE takes an older attempt's image for its own",
        ONE,
        Mutation::PrepareById,
        Expected::Steps(13),
    ),
    broken(
        "snapshot-prepare-goes-back",
        "a PREPARE of an attempt that is over replaces a newer image",
        ONE,
        Mutation::PrepareGoesBack,
        Expected::Steps(13),
    ),
    broken(
        "snapshot-retry-unsettled",
        "R14 a new attempt while the last swap is unsettled",
        ONE,
        Mutation::RetryUnsettled,
        Expected::Steps(12),
    ),
    broken(
        "snapshot-janitor-absence",
        "R15 an image goes because the record does not name it",
        JANITOR,
        Mutation::JanitorAbsence,
        Expected::Steps(11),
    ),
    broken(
        "snapshot-janitor-same-epoch",
        "R15 a record of the PREPARE's own epoch is enough",
        JANITOR,
        Mutation::JanitorSameEpoch,
        Expected::Steps(11),
    ),
    broken(
        "snapshot-janitor-ignores-record",
        "R15 by the letter: a newer record, whatever it names",
        JANITOR,
        Mutation::JanitorIgnoresRecord,
        Expected::Steps(13),
    ),
    broken(
        "snapshot-janitor-other-store",
        "N20 the store's incarnation is not compared",
        LOST,
        Mutation::JanitorOtherStore,
        Expected::Steps(13),
    ),
    broken(
        "snapshot-prepare-over-other-store",
        "a PREPARE replaces an image of before the store was lost",
        LOST,
        Mutation::PrepareOverOtherStore,
        Expected::Steps(18),
    ),
    broken(
        "snapshot-group-one-by-one",
        "4.19 a group is stopped and prepared volume by volume: enough",
        GROUP,
        Mutation::GroupOneByOne,
        Expected::Exhausted,
    ),
    broken(
        "snapshot-group-goes-on",
        "4.19 a volume of a group goes on before the others are prepared",
        GROUP,
        Mutation::GroupGoesOn,
        Expected::Steps(20),
    ),
    broken(
        "snapshot-group-two-swaps",
        "D19 each volume of a group has its own swap",
        GROUP,
        Mutation::GroupTwoSwaps,
        Expected::Steps(12),
    ),
    broken(
        "snapshot-report-at-swap",
        "R27 reported before anybody has logged it",
        REPORTS,
        Mutation::ReportAtSwap,
        Expected::Steps(11),
    ),
    broken(
        "snapshot-report-at-one-log",
        "R27 reported when one has logged it",
        REPORTS,
        Mutation::ReportAtOneLog,
        Expected::Steps(12),
    ),
    broken(
        "snapshot-old-image-goes-at-once",
        "R27 an older store's image goes at once",
        REPORTS,
        Mutation::OldImageGoesAtOnce,
        Expected::Steps(14),
    ),
    broken(
        "snapshot-drop-unsettled",
        "R14 images dropped while the swap is unsettled",
        DROPS,
        Mutation::DropUnsettled,
        Expected::Steps(11),
    ),
    broken(
        "snapshot-drop-by-id",
        "a DROP meets another attempt's image",
        DROPS,
        Mutation::DropById,
        Expected::Steps(12),
    ),
    broken(
        "snapshot-attempt-by-interval",
        "R21 two attempts of one interval have one name",
        DROPS,
        Mutation::AttemptByInterval,
        Expected::Steps(12),
    ),
    broken(
        "snapshot-prepare-after-gone",
        "a PREPARE of before the deletion takes an image",
        DELETES,
        Mutation::PrepareAfterGone,
        Expected::Steps(17),
    ),
    broken(
        "snapshot-gone-forgotten",
        "the same, refused only until the key is gone",
        DELETES,
        Mutation::GoneForgotten,
        Expected::Steps(17),
    ),
    broken(
        "snapshot-repair-ignores-gone",
        "a repair makes READY what another has removed",
        LOST_AND_DELETED,
        Mutation::RepairIgnoresGone,
        Expected::Steps(14),
    ),
    unbroken(
        "snapshot-reports",
        "R27, a store that is lost and rebuilt",
        Setup::Snapshot(REPORTS),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "snapshot-drops",
        "4.19, attempts that came to nothing are dropped",
        Setup::Snapshot(DROPS),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken("snapshot-deletes", "4.19, deleted", Setup::Snapshot(DELETES), 3_000_000, Expected::Exhausted),
    unbroken(
        "snapshot-deletes-lost-store",
        "R27, deleted, a store that is lost and rebuilt",
        Setup::Snapshot(LOST_AND_DELETED),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "snapshot-everything",
        "4.19, R27: three replicas, four attempts, a store that is lost",
        Setup::Snapshot(EVERYTHING),
        500_000,
        Expected::Bounded,
    ),
    unbroken(
        "snapshot",
        "4.19, two attempts, two owners",
        Setup::Snapshot(ONE),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "snapshot-janitor",
        "4.19 with R15's janitor",
        Setup::Snapshot(Config { attempts: 1, ..JANITOR }),
        SMALL,
        Expected::Exhausted,
    ),
    unbroken(
        "snapshot-lost-store",
        "4.19 with R15, a store that is lost and rebuilt",
        Setup::Snapshot(LOST),
        500_000,
        Expected::Bounded,
    ),
    unbroken(
        "snapshot-group",
        "4.19, two volumes of one guest",
        Setup::Snapshot(Config { sessions: 2, max_epoch: 2, ..GROUP }),
        SMALL,
        Expected::Exhausted,
    ),
];
