//! The size of a volume (protocol.md 4.18, R18): growing while it is attached, shrinking while it is not, members that
//! are away meanwhile, owners that die in between.
//!
//! Three units of space; a write reaches all members at once (`core` has the rest). What is above the record's size
//! may hold anything on a replica: leftovers of a shrink, or of a growth whose owner died. Behind a switch members keep
//! the record that they promised to, and the store may be lost and rebuilt from what they keep (R25).
//!
//! Must always hold (the oracle):
//! - a member in sync is at least as large as the record says (I18, D13, D14);
//! - a unit below the record's size reads on every member what was last written, zero if nothing was since the volume
//!   grew over it (N18), and what a shrink did not cut is never lost;
//! - after a loss of the store no unit that was written is beyond the end, and the size is the one that was told last.

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
    /// R18: a replica makes absent what lies beyond its own size, not what lies beyond the record's.
    GrowFromOwnSize,
    /// R25: growing raises `rev` only.
    GrowKeepsEpoch,
    /// R25: shrinking raises `rev` only.
    ShrinkKeepsEpoch,
    /// R25: the asker is told as soon as the swap is done.
    ToldAtSwap,
    /// A cut that a replica has still to do is done after it has grown again.
    CutAfterGrow,
    /// Or after a promise to a record that does not ask for it.
    CutAfterPromise,
    /// A GROW that was answered before a promise counts after it.
    GrownAcrossEpochs,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Changes of the record altogether.
    pub changes: u8,
    /// Members keep records; the store may be lost, once.
    pub lost_store: bool,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

/// What a replica keeps of the record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
struct Kept {
    epoch: u8,
    rev: u8,
    size: u8,
    in_sync: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Replica {
    size: u8,
    kept: Kept,
    /// The record that it promised to is smaller than it is: it will cut itself to this size. 0: it won't.
    to_cut: u8,
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
    /// Only when the store may be lost: R25's epoch.
    epoch: u8,
    lost: bool,
    /// Oracle: the size that was told last, 0 if it has been changed since; what a shrink is about to cut.
    told: u8,
    shadow: [u8; UNITS],
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
        let from = if self.broken(Mutation::GrowFromOwnSize) { replica.size } else { from };
        replica.size = replica.size.max(to);
        if !self.broken(Mutation::CutAfterGrow) {
            replica.to_cut = 0;
        }
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
        replica.to_cut = 0;
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
                self.swapped(&mut next, Some(Mutation::ShrinkKeepsEpoch));
                if self.0.lost_store {
                    let cut = usize::from(to)..usize::from(state.size);
                    next.shadow[cut.clone()].copy_from_slice(&state.expected[cut]);
                }
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
            let to = if self.0.lost_store { replica.to_cut } else { state.size };
            let cuts = if self.0.lost_store { to != 0 } else { state.growing == 0 };
            if replica.size > to && cuts {
                let mut next = *state;
                Self::cut(&mut next.replicas[r], to);
                out.push((Event::new("r{0} is cut to the record's size", &[r]), next));
            }
            if state.growing != 0 && state.in_sync.has(r) && !state.grown.has(r) && self.obeys(state, r) {
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
                self.swapped(&mut next, Some(Mutation::GrowKeepsEpoch));
                out.push((Event::new("the volume has size {0} (CAS)", &[state.growing.into()]), next));
            }
            let mut next = *state;
            next.growing = 0;
            out.push((Event::new("the owner dies; another one opens", &[]).rare(4), next));
        }
    }

    /// A swap was done; of the size, if a mutation is named that would leave the epoch as it is.
    fn swapped(&self, next: &mut State, size: Option<Mutation>) {
        if !self.0.lost_store {
            return;
        }
        if !size.is_some_and(|keeps| self.broken(keeps)) {
            next.epoch += 1;
        }
        if !self.broken(Mutation::GrownAcrossEpochs) {
            next.grown = Mask::EMPTY;
        }
        if size.is_some() {
            next.told = if self.broken(Mutation::ToldAtSwap) { next.size } else { 0 };
        }
    }

    fn obeys(&self, state: &State, r: usize) -> bool {
        !self.0.lost_store || state.replicas[r].kept.epoch == state.epoch
    }

    fn all_obey(&self, state: &State) -> bool {
        state.in_sync.iter().all(|r| self.obeys(state, r))
    }

    fn record(state: &State) -> Kept {
        Kept { epoch: state.epoch, rev: state.changes, size: state.size, in_sync: state.in_sync.0 }
    }

    fn promise(&self, replica: &mut Replica, record: Kept) {
        replica.kept = record;
        if !self.broken(Mutation::CutAfterPromise) {
            replica.to_cut = 0;
        }
        if replica.size > record.size {
            replica.to_cut = record.size;
        }
    }

    /// Promises, the answer to who asked, and the loss of the store.
    fn records(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        let record = Self::record(state);
        for r in state.in_sync.iter().filter(|r| state.replicas[*r].kept < record) {
            let mut next = *state;
            self.promise(&mut next.replicas[r], record);
            out.push((Event::new("r{0} promises to, or is pushed, the record", &[r]), next));
        }
        if state.told == 0 && self.all_obey(state) {
            let mut next = *state;
            next.told = state.size;
            out.push((Event::new("who asked is TOLD the size {0}", &[state.size.into()]), next));
        }
        if state.lost {
            return Ok(());
        }
        let best = state.replicas.iter().map(|replica| replica.kept).max().unwrap_or_default();
        if state.told != 0 && best.size != state.told {
            let promise = "after a loss of the store the size is the one that was told";
            return Err(Violation { promise, observation: format!("it is {} again", best.size) });
        }
        let beyond = usize::from(best.size)..usize::from(state.size).max(best.size.into());
        if state.expected[beyond].iter().any(|unit| *unit != 0) {
            let promise = "after a loss of the store no unit that was written is beyond the end";
            return Err(Violation { promise, observation: format!("the size is {} again", best.size) });
        }
        let mut next = *state;
        next.lost = true;
        next.growing = 0;
        next.epoch += 1;
        next.size = best.size;
        next.in_sync = Mask(best.in_sync);
        for unit in 0..UNITS {
            if unit >= usize::from(best.size) {
                next.expected[unit] = 0;
            } else if unit >= usize::from(state.size) {
                next.expected[unit] = state.shadow[unit];
            }
        }
        out.push((Event::new("the store is LOST and rebuilt, size {0}", &[best.size.into()]), next));
        Ok(())
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
                self.swapped(&mut next, None);
                out.push((Event::new("r{0} is removed (CAS)", &[r]).counts(Counted::Removed), next));
            } else if !state.in_sync.has(r) && state.growing == 0 && self.all_obey(state) {
                let source = state.replicas[1 - r];
                let joiner = &mut next.replicas[r];
                if !self.broken(Mutation::JoinWithoutGrow) && joiner.size < state.size {
                    joiner.size = state.size;
                }
                if self.0.lost_store {
                    self.promise(joiner, Self::record(state));
                }
                for unit in source.changed.or(joiner.changed).iter() {
                    joiner.data[unit] = source.data[unit];
                }
                next.in_sync = state.in_sync.with(r);
                self.swapped(&mut next, None);
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
        let kept = Kept { epoch: 0, rev: 0, size: 2, in_sync: Mask::first(REPLICAS).0 };
        State {
            size: 2,
            in_sync: Mask::first(REPLICAS),
            changes: 0,
            replicas: [Replica { size: 2, kept, ..Replica::default() }; REPLICAS],
            growing: 0,
            grown: Mask::EMPTY,
            expected: [0; UNITS],
            written: 0,
            epoch: 0,
            lost: false,
            told: if self.0.lost_store { 2 } else { 0 },
            shadow: [0; UNITS],
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
            if state.written < 2 && self.all_obey(state) {
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
        if self.0.lost_store {
            self.records(state, out)?;
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
        ) + &state.replicas.map(|replica| format!(" keeps({})", replica.kept.size)).concat()
    }
}

const BOUNDS: Config = Config { changes: 6, lost_store: false, mutation: None };
const LOST: Config = Config { lost_store: true, changes: 4, ..BOUNDS };

broken_cases!(Size);

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    broken(
        "size-swap-before-grow",
        "D13 the record grows before the replicas",
        BOUNDS,
        Mutation::SwapBeforeGrow,
        Expected::Steps(2),
    ),
    broken(
        "size-cut-before-swap",
        "R18 replicas are cut before the swap",
        BOUNDS,
        Mutation::CutBeforeSwap,
        Expected::Steps(1),
    ),
    broken(
        "size-grow-keeps-old",
        "N18 growing leaves what a shrink left behind",
        BOUNDS,
        Mutation::GrowKeepsOld,
        Expected::Steps(6),
    ),
    broken(
        "size-join-without-grow",
        "D14 a stale replica joins at its old size",
        BOUNDS,
        Mutation::JoinWithoutGrow,
        Expected::Steps(5),
    ),
    broken(
        "size-grow-unstamped",
        "what growing made absent is not stamped",
        BOUNDS,
        Mutation::GrowUnstamped,
        Expected::Steps(7),
    ),
    broken(
        "size-sealed-while-growing",
        "R7 sealed while a growth is under way",
        BOUNDS,
        Mutation::SealedWhileGrowing,
        Expected::Steps(7),
    ),
    broken(
        "size-grow-from-own-size",
        "R18 growing begins at the replica's own size",
        BOUNDS,
        Mutation::GrowFromOwnSize,
        Expected::Steps(6),
    ),
    broken(
        "size-grow-keeps-epoch",
        "R25 growing does not raise the epoch",
        LOST,
        Mutation::GrowKeepsEpoch,
        Expected::Steps(5),
    ),
    broken(
        "size-shrink-keeps-epoch",
        "R25 shrinking does not raise the epoch",
        LOST,
        Mutation::ShrinkKeepsEpoch,
        Expected::Steps(2),
    ),
    broken(
        "size-told-at-swap",
        "R25 told before the members hold it",
        LOST,
        Mutation::ToldAtSwap,
        Expected::Steps(1),
    ),
    broken(
        "size-cut-after-grow",
        "R18 a pending cut is done after growing again",
        LOST,
        Mutation::CutAfterGrow,
        Expected::Steps(7),
    ),
    broken(
        "size-cut-after-promise",
        "R18 a pending cut is done after a promise that knows no cut",
        LOST,
        Mutation::CutAfterPromise,
        Expected::Steps(10),
    ),
    broken(
        "size-grown-across-epochs",
        "R18 a growth goes on over a promise that cuts",
        LOST,
        Mutation::GrownAcrossEpochs,
        Expected::Steps(6),
    ),
    Case {
        name: "size-lost-store",
        rule: "R18, R25, four changes, a store that is lost",
        setup: Setup::Size(LOST),
        max_states: 3_000_000,
        expected: Expected::Exhausted,
    },
    Case::small("size", "R18, D13, D14, N18, six changes", Setup::Size(BOUNDS), Expected::Exhausted),
];
