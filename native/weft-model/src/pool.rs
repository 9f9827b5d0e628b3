//! The incarnations of a pool (protocol.md R10): superblock, intent, swap, superblock; processes that die anywhere in
//! between, swaps of unknown outcome that are applied at any later time, a disk that is put back or cloned.
//!
//! Must always hold (the oracle):
//! - a disk that was put back, or copied from an older one, never serves (M27), unless nothing was served since; when
//!   the host's own note of the log is lost too, unless what was put back is of the current incarnation;
//! - a disk that nobody touched is never quarantined (N14).

use core::fmt::Write as _;

use crate::cases::{Case, Expected, Setup};
use crate::explore::{Counted, Event, Model, Violation};

const MAX_SWAPS: usize = 3;

mutations! {
    /// N14: a start writes a new intent over one whose swap is not settled.
    IntentReplaced,
    /// "One behind" is accepted whatever the intent.
    BehindWithoutIntent,
    /// A start that finds its intent applied goes on without completing it first.
    IntentNotCompleted,
    /// A pool serves before its superblock has the new incarnation.
    ServesBeforeSuperblock,
    /// The swap keeps no nonce: an intent on the disk is believed at the store's own incarnation.
    IntentUsedTwice,
    /// The swap does not compare the incarnation it raises.
    BlindSwap,
    /// R10: the last durable log sequence is not compared.
    SequenceIgnored,
    /// R10: the host notes the log's sequence some time after it has acknowledged what is in it.
    NoteLags,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Starts of the process altogether.
    pub starts: u8,
    /// Times that the disk's content is put back to an older one.
    pub put_back: u8,
    /// The host keeps its note of the log's sequence.
    pub notes: bool,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Disk {
    inc: u8,
    /// The intent's nonce; 0: none.
    intent: u8,
    /// The last record of the log.
    sequence: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Phase {
    #[default]
    Down,
    Reading,
    Intending,
    Swapping,
    /// Writes the superblock; then reads again, for the raise belonged to an earlier start.
    Completing,
    /// Writes the superblock; then serves.
    Raised,
    Serving,
    Quarantined,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Swap {
    /// 0: none.
    nonce: u8,
    from: u8,
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct State {
    inc: u8,
    nonce: u8,
    disk: Disk,
    backup: Option<Disk>,
    phase: Phase,
    /// The nonce of this start, of the newest one.
    fresh: u8,
    starts: u8,
    put_back: u8,
    /// Swaps that the store may still apply.
    swaps: [Swap; MAX_SWAPS],
    /// What the host keeps outside the pool: the highest sequence known durable.
    host_sequence: u8,
    /// Oracle: the disk lacks something that it once had, after something was served.
    tampered: bool,
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Pool(pub Config);

type Out = Vec<(Event, State)>;

impl Pool {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    /// The store was read.
    fn read(&self, state: &State) -> (Event, State) {
        let mut next = *state;
        let disk = state.disk;
        let applied = disk.intent != 0 && state.nonce == disk.intent;
        let rolled_back = disk.sequence < state.host_sequence && !self.broken(Mutation::SequenceIgnored);
        let believed = applied && !self.broken(Mutation::IntentUsedTwice);
        next.phase = if rolled_back {
            Phase::Quarantined
        } else if disk.inc == state.inc && disk.intent == 0 {
            next.disk.intent = state.fresh;
            Phase::Intending
        } else if disk.inc == state.inc && believed {
            Phase::Quarantined // its raise is in the store already: the disk was altered
        } else if disk.inc == state.inc && self.broken(Mutation::IntentReplaced) {
            next.disk.intent = state.fresh;
            Phase::Intending
        } else if disk.inc == state.inc {
            Phase::Swapping
        } else if disk.inc + 1 == state.inc && self.broken(Mutation::IntentNotCompleted) && applied {
            next.disk.intent = state.fresh;
            Phase::Intending
        } else if disk.inc + 1 == state.inc && (applied || self.broken(Mutation::BehindWithoutIntent)) {
            Phase::Completing
        } else {
            Phase::Quarantined
        };
        (Event::new("it reads the store: incarnation {0}", &[state.inc.into()]), next)
    }

    fn process(&self, state: &State, out: &mut Out) {
        let mut next = *state;
        match state.phase {
            Phase::Down if state.starts < self.0.starts => {
                next.starts += 1;
                next.fresh = state.starts + 1;
                next.phase = Phase::Reading;
                out.push((Event::new("the process starts", &[]), next));
            }
            Phase::Reading => out.push(self.read(state)),
            Phase::Intending => {
                // `disk` holds what is being written; a crash before it is durable is the crash step of `Reading`.
                next.phase = Phase::Swapping;
                out.push((
                    Event::new("the intent {0} is in the superblock", &[state.disk.intent.into()]),
                    next,
                ));
            }
            Phase::Swapping => {
                let swap = Swap { nonce: state.disk.intent, from: state.disk.inc };
                if let Some(free) = state.swaps.iter().position(|s| s.nonce == 0)
                    && !state.swaps.contains(&swap)
                {
                    next.swaps[free] = swap;
                    out.push((
                        Event::new(
                            "it sends CAS {0} -> {0} + 1, intent {1}",
                            &[swap.from.into(), swap.nonce.into()],
                        ),
                        next,
                    ));
                }
                if state.nonce == state.disk.intent && state.inc == state.disk.inc + 1 {
                    let mut next = *state;
                    let early = self.broken(Mutation::ServesBeforeSuperblock);
                    next.phase = if early { Phase::Serving } else { Phase::Raised };
                    out.push((Event::new("it learns that its CAS was applied", &[]), next));
                }
            }
            Phase::Completing | Phase::Raised => {
                next.disk.inc = state.disk.inc + 1;
                next.disk.intent = 0;
                let serves = state.phase == Phase::Raised;
                next.phase = if serves { Phase::Serving } else { Phase::Reading };
                let event = Event::new("the superblock has incarnation {0}", &[next.disk.inc.into()]);
                out.push((if serves { event.counts(Counted::Opened) } else { event }, next));
            }
            Phase::Serving if state.disk.sequence < 2 => {
                next.disk.sequence += 1;
                if self.broken(Mutation::NoteLags) {
                    out.push((Event::new("it serves, and logs", &[]), next));
                }
                next.host_sequence = if self.0.notes { next.disk.sequence } else { 0 };
                out.push((Event::new("it serves, logs, and the host notes how far", &[]), next));
            }
            Phase::Down | Phase::Serving | Phase::Quarantined => {}
        }
        if !matches!(state.phase, Phase::Down | Phase::Quarantined) {
            let mut next = *state;
            next.phase = Phase::Down;
            out.push((Event::new("the process DIES", &[]).rare(4), next));
        }
    }
}

impl Model for Pool {
    type State = State;
    type Step = Event;

    fn initial(&self) -> State {
        State::default()
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        if state.phase == Phase::Quarantined && !state.tampered && state.put_back == 0 {
            let promise = "a disk that nobody touched is never quarantined";
            return Err(Violation {
                promise,
                observation: format!("{:?}, store at {}", state.disk, state.inc),
            });
        }
        if state.phase == Phase::Serving && state.tampered {
            let promise = "a disk that was put back never serves";
            return Err(Violation { promise, observation: format!("{:?} serves", state.disk) });
        }
        self.process(state, out);
        for (at, swap) in state.swaps.iter().enumerate().filter(|(_, swap)| swap.nonce != 0) {
            let mut next = *state;
            next.swaps[at] = Swap::default();
            if swap.from == state.inc || self.broken(Mutation::BlindSwap) {
                next.inc += 1;
                next.nonce = swap.nonce;
                out.push((
                    Event::new("the store applies the CAS with intent {0}", &[swap.nonce.into()]),
                    next,
                ));
            } else {
                out.push((
                    Event::new("the store refuses the CAS with intent {0}", &[swap.nonce.into()]),
                    next,
                ));
            }
        }
        if state.put_back < self.0.put_back && state.backup.is_none() {
            let mut next = *state;
            next.backup = Some(state.disk);
            out.push((Event::new("the disk's content is kept elsewhere", &[]), next));
        }
        if let Some(backup) = state.backup.filter(|_| state.phase == Phase::Down) {
            let mut next = *state;
            next.put_back += 1;
            next.backup = None;
            let applied = backup.inc + 1 == state.inc && backup.intent == state.nonce;
            let current = backup.inc == state.inc || applied;
            next.tampered |= backup.sequence < state.disk.sequence && (self.0.notes || !current);
            next.disk = backup;
            out.push((Event::new("the disk's content is PUT BACK", &[]), next));
        }
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        let mut line =
            format!("store(inc={} intent={}) {:?} {:?}", state.inc, state.nonce, state.phase, state.disk);
        for swap in state.swaps.iter().filter(|swap| swap.nonce != 0) {
            let _ = write!(line, " CAS({} -> {}, intent {})", swap.from, swap.from + 1, swap.nonce);
        }
        line
    }
}

const STARTS: Config = Config { starts: 4, put_back: 0, notes: true, mutation: None };
const PUT_BACK: Config = Config { put_back: 1, ..STARTS };
const NO_NOTE: Config = Config { notes: false, ..PUT_BACK };

broken_cases!(Pool);

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    broken(
        "pool-intent-replaced",
        "N14 a new intent over one whose swap is unsettled",
        STARTS,
        Mutation::IntentReplaced,
        Expected::Steps(11),
    ),
    broken(
        "pool-behind-without-intent",
        "R10 one behind is accepted whatever the intent",
        NO_NOTE,
        Mutation::BehindWithoutIntent,
        Expected::Steps(20),
    ),
    broken(
        "pool-intent-not-completed",
        "R10 a new intent before the last raise is completed",
        STARTS,
        Mutation::IntentNotCompleted,
        Expected::Steps(11),
    ),
    broken(
        "pool-serves-before-superblock",
        "R10 serves before its superblock is written: completed by the next start",
        NO_NOTE,
        Mutation::ServesBeforeSuperblock,
        Expected::Exhausted,
    ),
    broken(
        "pool-intent-used-twice",
        "R10 an intent that was used already is believed: only an altered disk has one",
        NO_NOTE,
        Mutation::IntentUsedTwice,
        Expected::Exhausted,
    ),
    broken(
        "pool-blind-swap",
        "R10 the swap does not compare",
        STARTS,
        Mutation::BlindSwap,
        Expected::Steps(10),
    ),
    broken(
        "pool-note-lags",
        "R10 the host notes the log's sequence too late",
        PUT_BACK,
        Mutation::NoteLags,
        Expected::Steps(18),
    ),
    broken(
        "pool-sequence-ignored",
        "R10 the last log sequence is not compared",
        PUT_BACK,
        Mutation::SequenceIgnored,
        Expected::Steps(18),
    ),
    Case::small("pool", "R10, four starts", Setup::Pool(STARTS), Expected::Exhausted),
    Case::small("pool-put-back", "R10, a disk that is put back", Setup::Pool(PUT_BACK), Expected::Exhausted),
    Case::small(
        "pool-no-note",
        "R10, a disk that is put back, the host's note lost",
        Setup::Pool(NO_NOTE),
        Expected::Exhausted,
    ),
];
