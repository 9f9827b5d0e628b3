//! The size of a volume (protocol.md 4.18, R18): growing while it is attached, shrinking while it is not, members that
//! are away meanwhile, owners that die in between.
//!
//! Three units of space; a write reaches all members at once (`core` has the rest). What is above the record's size
//! may hold anything on a replica: leftovers of a shrink, or of a growth whose owner died.
//!
//! Must always hold (the oracle):
//! - a member in sync is at least as large as the record says (I18, D13, D14);
//! - a unit below the record's size reads on every member what was last written, zero if nothing was since the volume
//!   grew over it (N18), and what a shrink did not cut is never lost.

use crate::cases::{Case, Expected, Setup};
use crate::explore::{Counted, Event, Model, Violation};
use crate::mask::Mask;

const REPLICAS: usize = 2;
const UNITS: usize = 3;

mutations! {
    /// D13: the record's size is raised before the replicas have grown.
    SwapBeforeGrow,
    /// R18: replicas are cut before the swap that says so.
    CutBeforeSwap,
    /// R18, N18: growing does not make the new range absent.
    GrowKeepsOld,
    /// D14: a stale replica joins at the size that it has.
    JoinWithoutGrow,
    /// What growing made absent is not stamped: a replica that was away keeps what it has there.
    GrowUnstamped,
    /// R7: an interval is sealed while a growth is under way on some member.
    SealedWhileGrowing,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Changes of the record altogether.
    pub changes: u8,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Replica {
    size: u8,
    /// Whether a unit holds something; 0 is absent and reads as zero.
    data: [u8; UNITS],
    /// Units changed on this replica since the other was last in sync: its stamps above the other's base.
    changed: Mask,
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    size: u8,
    in_sync: Mask,
    changes: u8,
    replicas: [Replica; REPLICAS],
    /// A growth under way: the size, and who has grown.
    growing: u8,
    grown: Mask,
    /// Oracle: what each unit must read.
    expected: [u8; UNITS],
    /// The values that were written are numbered.
    written: u8,
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub Config);

type Out = Vec<(Event, State)>;

impl Size {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    /// GROW at one replica.
    fn grow(&self, replica: &mut Replica, from: u8, to: u8) {
        replica.size = replica.size.max(to);
        for unit in usize::from(from)..usize::from(to) {
            if !self.broken(Mutation::GrowKeepsOld) {
                replica.data[unit] = 0;
            }
            if !self.broken(Mutation::GrowUnstamped) {
                replica.changed = replica.changed.with(unit);
            }
        }
    }

    fn cut(replica: &mut Replica, to: u8) {
        replica.size = to;
        replica.data[usize::from(to)..].fill(0);
    }

    fn resizes(&self, state: &State, out: &mut Out) {
        let may = state.changes < self.0.changes;
        if may && state.growing == 0 {
            for to in state.size + 1..=3 {
                let mut next = *state;
                next.growing = to;
                next.grown = Mask::EMPTY;
                out.push((Event::new("the owner grows the volume to {0}", &[to.into()]), next));
            }
            for to in 1..state.size {
                let mut next = *state;
                next.changes += 1;
                next.size = to;
                next.expected[usize::from(to)..].fill(0);
                out.push((Event::new("the volume shrinks to {0} (CAS)", &[to.into()]), next));
                if self.broken(Mutation::CutBeforeSwap) {
                    let mut next = *state;
                    Self::cut(&mut next.replicas[0], to);
                    out.push((Event::new("r0 is cut to {0}, the CAS fails", &[to.into()]), next));
                }
            }
        }
        for (r, replica) in state.replicas.iter().enumerate() {
            if replica.size > state.size && state.growing == 0 {
                let mut next = *state;
                Self::cut(&mut next.replicas[r], state.size);
                out.push((Event::new("r{0} is cut to the record's size", &[r]), next));
            }
            if state.growing != 0 && state.in_sync.has(r) && !state.grown.has(r) {
                let mut next = *state;
                self.grow(&mut next.replicas[r], state.size, state.growing);
                next.grown = state.grown.with(r);
                out.push((Event::new("GROW reaches r{0}", &[r]), next));
            }
        }
        if state.growing != 0 {
            if may && (state.grown.contains(state.in_sync) || self.broken(Mutation::SwapBeforeGrow)) {
                let mut next = *state;
                next.changes += 1;
                next.size = state.growing;
                next.growing = 0;
                out.push((Event::new("the volume has size {0} (CAS)", &[state.growing.into()]), next));
            }
            let mut next = *state;
            next.growing = 0;
            out.push((Event::new("the owner dies; another one opens", &[]).rare(4), next));
        }
    }

    fn members(&self, state: &State, out: &mut Out) {
        if state.changes >= self.0.changes {
            return;
        }
        for r in 0..REPLICAS {
            let mut next = *state;
            next.changes += 1;
            if state.in_sync.has(r) && state.in_sync.len() > 1 {
                next.in_sync = state.in_sync.without(r);
                out.push((Event::new("r{0} is removed (CAS)", &[r]).counts(Counted::Removed), next));
            } else if !state.in_sync.has(r) && state.growing == 0 {
                let source = state.replicas[1 - r];
                let joiner = &mut next.replicas[r];
                if !self.broken(Mutation::JoinWithoutGrow) && joiner.size < state.size {
                    joiner.size = state.size;
                }
                for unit in source.changed.or(joiner.changed).iter() {
                    joiner.data[unit] = source.data[unit];
                }
                next.in_sync = state.in_sync.with(r);
                out.push((
                    Event::new("r{0} is resynced and admitted (CAS)", &[r]).counts(Counted::Admitted),
                    next,
                ));
            }
        }
    }
}

impl Model for Size {
    type State = State;
    type Step = Event;

    fn initial(&self) -> State {
        State {
            size: 2,
            in_sync: Mask::first(REPLICAS),
            changes: 0,
            replicas: [Replica { size: 2, ..Replica::default() }; REPLICAS],
            growing: 0,
            grown: Mask::EMPTY,
            expected: [0; UNITS],
            written: 0,
        }
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        for r in state.in_sync.iter() {
            let replica = state.replicas[r];
            if replica.size < state.size {
                let promise = "a member in sync is as large as the record says";
                return Err(Violation {
                    promise,
                    observation: format!("r{r} has {}, the record {}", replica.size, state.size),
                });
            }
            let below = usize::from(state.size);
            if replica.data[..below] != state.expected[..below] {
                let promise = "a unit reads what was last written, zero where the volume grew";
                return Err(Violation {
                    promise,
                    observation: format!("r{r} has {:?}", &replica.data[..below]),
                });
            }
        }
        for unit in 0..usize::from(state.size) {
            if state.written < 2 {
                let mut next = *state;
                next.written += 1;
                next.expected[unit] = next.written;
                for r in state.in_sync.iter() {
                    next.replicas[r].data[unit] = next.written;
                    next.replicas[r].changed = state.replicas[r].changed.with(unit);
                }
                out.push((
                    Event::new("the guest writes unit {0}", &[unit]).counts(Counted::WriteAcked),
                    next,
                ));
            }
        }
        self.resizes(state, out);
        self.members(state, out);
        for (_, next) in out.iter_mut() {
            // Sealed: all members have all of it, a growth too.
            let settled = next.growing == 0 || self.broken(Mutation::SealedWhileGrowing);
            if next.in_sync.len() == REPLICAS && settled {
                next.replicas.iter_mut().for_each(|replica| replica.changed = Mask::EMPTY);
            }
        }
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        let replicas = state.replicas.map(|replica| format!("size={} {:?}", replica.size, replica.data));
        format!(
            "record(size={} in-sync={:02b}) {replicas:?} expected={:?}",
            state.size, state.in_sync.0, state.expected
        )
    }
}

const BOUNDS: Config = Config { changes: 6, mutation: None };

const fn case(
    name: &'static str,
    rule: &'static str,
    mutation: Option<Mutation>,
    expected: Expected,
) -> Case {
    Case::small(name, rule, Setup::Size(Config { mutation, ..BOUNDS }), expected)
}

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    case(
        "size-swap-before-grow",
        "D13 the record grows before the replicas",
        Some(Mutation::SwapBeforeGrow),
        Expected::Steps(2),
    ),
    case(
        "size-cut-before-swap",
        "R18 replicas are cut before the swap",
        Some(Mutation::CutBeforeSwap),
        Expected::Steps(1),
    ),
    case(
        "size-grow-keeps-old",
        "N18 growing leaves what a shrink left behind",
        Some(Mutation::GrowKeepsOld),
        Expected::Steps(6),
    ),
    case(
        "size-join-without-grow",
        "D14 a stale replica joins at its old size",
        Some(Mutation::JoinWithoutGrow),
        Expected::Steps(5),
    ),
    case(
        "size-grow-unstamped",
        "what growing made absent is not stamped",
        Some(Mutation::GrowUnstamped),
        Expected::Steps(7),
    ),
    case(
        "size-sealed-while-growing",
        "R7 sealed while a growth is under way",
        Some(Mutation::SealedWhileGrowing),
        Expected::Steps(7),
    ),
    case("size", "R18, D13, D14, N18, six changes", None, Expected::Exhausted),
];
