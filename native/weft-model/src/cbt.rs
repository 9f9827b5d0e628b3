//! Changed blocks between two snapshots (R29), clones that go on from an image's stamps, and regions that are folded when
//! a volume has become too large for its region size (R26): three uses of stamps that are not a resync.
//!
//! Two replicas, two blocks; a region is one block, after the fold both. A write reaches all members at once, or one and
//! its owner dies; the next one reconciles by the stamps above `sealed`. Members leave with the sealed generation as
//! their base and come back with what either side has stamped above it; what is equal already is not written (so it is
//! not stamped). `core` has all of that in its small steps. A run follows the volume until it has two snapshots, or is
//! left for a clone of the first.
//!
//! Must always hold (the oracle):
//! - members in sync hold what was written last, also in a clone, also those that joined it;
//! - a block that differs between two snapshots is said to have changed, whichever member is asked;
//! - a member that has both finds, by comparing them, exactly what differs.

use core::fmt::Write as _;

use crate::cases::{Case, Expected, Setup, unbroken};
use crate::explore::{Counted, Event, Model, Violation};
use crate::mask::Mask;

const REPLICAS: usize = 2;
const BLOCKS: usize = 2;

mutations! {
    /// 4.19 by the letter: the minimum over the members in sync.
    MinOverInSync,
    /// R29: a member that got its image from another one is asked.
    CopiedCounts,
    /// R4: what a resync writes is not stamped.
    CopyUnstamped,
    /// A clone begins with empty stamps.
    CloneUnstamped,
    /// A clone's record begins at the first epoch.
    CloneEpochOne,
    /// R26: a folded region has the older of its stamps.
    FoldMin,
    /// R26: a replica joins with stamps of before the fold.
    JoinUnfolded,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Writes altogether.
    pub writes: u8,
    /// Blocks that are written, 1 or 2.
    pub blocks: usize,
    /// Removals and admissions altogether.
    pub changes: u8,
    /// Owners that die in the middle of a write.
    pub deaths: u8,
    /// The volume may be left for a clone of its first snapshot.
    pub clone: bool,
    /// Regions may be folded.
    pub fold: bool,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Replica {
    data: [u8; BLOCKS],
    stamps: [u8; BLOCKS],
    folded: bool,
    /// What it is known to have, while it is not in sync.
    base: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Taken {
    /// 0: not taken.
    generation: u8,
    listed: Mask,
    /// Of these, who got it from another member.
    copied: Mask,
    /// The replicas as they were.
    images: [Replica; REPLICAS],
    /// Oracle.
    content: [u8; BLOCKS],
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    replicas: [Replica; REPLICAS],
    in_sync: Mask,
    folded: bool,
    interval: u8,
    sealed: u8,
    snapshots: [Taken; 2],
    /// An owner died in the middle of a write.
    torn: bool,
    cloned: bool,
    writes: u8,
    changes: u8,
    deaths: u8,
    /// Oracle: what was written last.
    expected: [u8; BLOCKS],
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Cbt(pub Config);

type Out = Vec<(Event, State)>;

impl Replica {
    fn region(&self, block: usize) -> usize {
        if self.folded { 0 } else { block }
    }

    /// R6.
    fn write(&mut self, block: usize, value: u8, generation: u8) {
        self.data[block] = value;
        let stamp = &mut self.stamps[self.region(block)];
        *stamp = generation.max(*stamp);
    }

    fn fold(&mut self, min: bool) {
        if !self.folded {
            let [a, b] = self.stamps;
            self.stamps = [if min { a.min(b) } else { a.max(b) }, 0];
            self.folded = true;
        }
    }
}

impl Cbt {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    /// The stamp of a block in what a replica answers to STAMPS, as a session that knows the record's regions reads it.
    fn stamp(replica: &Replica, folded: bool, block: usize) -> u8 {
        replica.stamps[if folded { 0 } else { block }]
    }

    fn stamped(&self, state: &State) -> bool {
        state.in_sync.iter().any(|r| state.replicas[r].stamps.contains(&state.interval))
    }

    fn copy(&self, target: &mut Replica, block: usize, value: u8, generation: u8) {
        if target.data[block] == value {
            return;
        }
        if self.broken(Mutation::CopyUnstamped) {
            target.data[block] = value;
        } else {
            target.write(block, value, generation);
        }
    }

    fn writes(&self, state: &State, out: &mut Out) {
        if state.writes == self.0.writes {
            return;
        }
        for block in 0..self.0.blocks {
            for value in (1..=2).filter(|value| *value != state.expected[block]) {
                let mut next = *state;
                next.writes += 1;
                for r in state.in_sync.iter() {
                    next.replicas[r].write(block, value, state.interval);
                }
                next.expected[block] = value;
                let numbers = [value.into(), block];
                out.push((
                    Event::new("{0} is written to block {1}", &numbers).counts(Counted::WriteAcked),
                    next,
                ));
                if state.deaths == self.0.deaths || state.in_sync.len() == 1 {
                    continue;
                }
                for r in state.in_sync.iter() {
                    let mut next = *state;
                    next.writes += 1;
                    next.deaths += 1;
                    next.torn = true;
                    next.replicas[r].write(block, value, state.interval);
                    let text = "{0} is written to block {1} of r{2} only, the owner DIES";
                    out.push((Event::new(text, &[value.into(), block, r]).rare(6), next));
                }
            }
        }
    }

    fn reconcile(&self, state: &State, out: &mut Out) {
        for source in state.in_sync.iter() {
            let mut next = *state;
            next.torn = false;
            next.interval += 1;
            for block in 0..BLOCKS {
                let stamp = |r: usize| Self::stamp(&state.replicas[r], state.folded, block);
                if state.in_sync.iter().any(|r| stamp(r) > state.sealed) {
                    let value = state.replicas[source].data[block];
                    next.expected[block] = value;
                    for r in state.in_sync.iter() {
                        self.copy(&mut next.replicas[r], block, value, next.interval);
                    }
                }
            }
            out.push((
                Event::new("another owner reconciles from r{0}", &[source]).counts(Counted::Opened),
                next,
            ));
        }
    }

    fn members(&self, state: &State, out: &mut Out) {
        if state.changes == self.0.changes {
            return;
        }
        for r in 0..REPLICAS {
            let mut next = *state;
            next.changes += 1;
            next.interval += 1;
            if state.in_sync.has(r) && state.in_sync.len() > 1 {
                next.in_sync = state.in_sync.without(r);
                next.replicas[r].base = state.sealed;
                // With one member there is nothing to reconcile.
                next.torn = false;
                next.expected = state.replicas[1 - r].data;
                out.push((Event::new("r{0} is removed (CAS)", &[r]).counts(Counted::Removed), next));
            } else if !state.in_sync.has(r) && !state.torn {
                let source = state.replicas[1 - r];
                let joiner = &mut next.replicas[r];
                if state.folded && !self.broken(Mutation::JoinUnfolded) {
                    joiner.fold(self.broken(Mutation::FoldMin));
                }
                let before = *joiner;
                for block in 0..BLOCKS {
                    let stamp = |replica: &Replica| Self::stamp(replica, state.folded, block);
                    if stamp(&source).max(stamp(&before)) > before.base {
                        self.copy(joiner, block, source.data[block], state.interval);
                    }
                }
                joiner.base = 0;
                next.in_sync = state.in_sync.with(r);
                out.push((
                    Event::new("r{0} is resynced and admitted (CAS)", &[r]).counts(Counted::Admitted),
                    next,
                ));
            }
        }
    }

    fn snapshot(&self, state: &State, out: &mut Out) {
        let Some(free) = state.snapshots.iter().position(|taken| taken.generation == 0) else { return };
        let mut next = *state;
        // R21: no roll without stamps.
        let generation = if self.stamped(state) { state.interval } else { state.interval - 1 };
        next.interval = generation + 1;
        next.snapshots[free] = Taken {
            generation,
            listed: state.in_sync,
            copied: Mask::EMPTY,
            images: state.replicas,
            content: state.expected,
        };
        out.push((Event::new("snapshot {0} is taken", &[free]).counts(Counted::Sealed), next));
    }

    /// A member that missed the first snapshot gets its image (and stamps) from one that has it.
    fn chain_copy(&self, state: &State, out: &mut Out) {
        let taken = &state.snapshots[0];
        let Some(source) = taken.listed.iter().next() else { return };
        for r in state.in_sync.minus(taken.listed).iter() {
            let mut next = *state;
            let taken = &mut next.snapshots[0];
            taken.listed = taken.listed.with(r);
            taken.copied = taken.copied.with(r);
            taken.images[r] = taken.images[source];
            out.push((Event::new("r{0} gets its image of snapshot 0 from r{1}", &[r, source]), next));
        }
    }

    /// The clone's copies are made of images; where there is none, an empty one that can only join.
    fn clone(&self, state: &State, out: &mut Out) {
        let of = state.snapshots[0];
        if !self.0.clone || state.cloned || of.generation == 0 {
            return;
        }
        let mut next = *state;
        next.cloned = true;
        next.in_sync = of.listed;
        next.expected = of.content;
        next.snapshots = Default::default();
        next.folded = of.images[of.listed.iter().next().unwrap_or(0)].folded;
        next.interval = if self.broken(Mutation::CloneEpochOne) { 2 } else { of.generation + 1 };
        next.sealed = next.interval - 1;
        for r in 0..REPLICAS {
            next.replicas[r] = Replica { folded: next.folded, ..Replica::default() };
            if of.listed.has(r) {
                next.replicas[r] = of.images[r];
                if self.broken(Mutation::CloneUnstamped) {
                    next.replicas[r].stamps = [0; BLOCKS];
                }
            }
        }
        out.push((Event::new("from here on: a clone of snapshot 0", &[]), next));
    }

    fn fold(&self, state: &State, out: &mut Out) {
        if !self.0.fold || state.folded {
            return;
        }
        let mut next = *state;
        next.folded = true;
        next.interval += 1;
        for r in state.in_sync.iter() {
            next.replicas[r].fold(self.broken(Mutation::FoldMin));
        }
        out.push((Event::new("two regions become one (CAS), the members promise", &[]), next));
    }

    /// What a member of the newer snapshot says of a block.
    fn said(newer: &Taken, older: &Taken, r: usize, block: usize) -> bool {
        let image = &newer.images[r];
        image.stamps[image.region(block)] > older.generation
    }

    fn judge(&self, state: &State) -> Result<(), Violation> {
        for r in state.in_sync.iter().filter(|_| !state.torn) {
            let data = state.replicas[r].data;
            if data != state.expected {
                let promise = "a member in sync holds what was written last";
                return Err(Violation { promise, observation: format!("r{r} has {data:?}") });
            }
        }
        let [older, newer] = &state.snapshots;
        for block in (0..BLOCKS).filter(|_| newer.generation != 0) {
            let differs = older.content[block] != newer.content[block];
            let found = |r: usize| older.images[r].data[block] != newer.images[r].data[block];
            if let Some(r) = newer.listed.and(older.listed).iter().find(|r| found(*r) != differs) {
                let promise = "a member that has both snapshots finds exactly what differs";
                return Err(Violation { promise, observation: format!("block {block} at r{r}") });
            }
            if !differs {
                continue;
            }
            let asked = match self.0.mutation {
                Some(Mutation::MinOverInSync) => newer.listed,
                Some(Mutation::CopiedCounts) => newer.listed.and(older.listed),
                _ => newer.listed.and(older.listed).minus(older.copied),
            };
            let says = |r: usize| Self::said(newer, older, r, block);
            if !asked.iter().all(says) {
                let promise = "a block that differs between two snapshots is said to have changed";
                return Err(Violation {
                    promise,
                    observation: format!("block {block} is said to be the same"),
                });
            }
        }
        Ok(())
    }
}

impl Model for Cbt {
    type State = State;
    type Step = Event;

    fn initial(&self) -> State {
        State {
            replicas: Default::default(),
            in_sync: Mask::first(REPLICAS),
            folded: false,
            interval: 1,
            sealed: 0,
            snapshots: Default::default(),
            torn: false,
            cloned: false,
            writes: 0,
            changes: 0,
            deaths: 0,
            expected: [0; BLOCKS],
        }
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        self.judge(state)?;
        if state.snapshots[1].generation != 0 {
            return Ok(());
        }
        self.members(state, out);
        if state.torn {
            self.reconcile(state, out);
            return Ok(());
        }
        self.writes(state, out);
        self.snapshot(state, out);
        self.chain_copy(state, out);
        self.clone(state, out);
        self.fold(state, out);
        if self.stamped(state) || state.sealed < state.interval - 1 {
            let mut next = *state;
            next.interval += u8::from(self.stamped(state));
            next.sealed = next.interval - 1;
            out.push((
                Event::new("interval {0} is sealed", &[next.sealed.into()]).counts(Counted::Sealed),
                next,
            ));
        }
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        let mut line = format!(
            "in-sync={:02b} interval={} sealed={} must be {:?}",
            state.in_sync.0, state.interval, state.sealed, state.expected
        );
        for replica in &state.replicas {
            let _ = write!(line, " ({:?} stamps={:?} base={})", replica.data, replica.stamps, replica.base);
        }
        for taken in state.snapshots.iter().filter(|taken| taken.generation != 0) {
            let _ = write!(line, " snapshot({} on {:02b})", taken.generation, taken.listed.0);
        }
        line
    }
}

const CBT: Config =
    Config { writes: 3, blocks: 1, changes: 3, deaths: 1, clone: false, fold: false, mutation: None };
const CLONE: Config = Config { clone: true, changes: 2, ..CBT };
const FOLD: Config = Config { fold: true, blocks: 2, writes: 2, ..CBT };

broken_cases!(Cbt);

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    broken(
        "cbt-min-over-in-sync",
        "4.19 by the letter: the minimum over the members",
        CBT,
        Mutation::MinOverInSync,
        Expected::Steps(6),
    ),
    broken(
        "cbt-copied-counts",
        "R29 a member that got the older image from another",
        CBT,
        Mutation::CopiedCounts,
        Expected::Steps(7),
    ),
    broken(
        "cbt-copy-unstamped",
        "R4, R6 what a resync writes is not stamped",
        CBT,
        Mutation::CopyUnstamped,
        Expected::Steps(5),
    ),
    broken(
        "cbt-clone-unstamped",
        "a clone begins with empty stamps",
        CLONE,
        Mutation::CloneUnstamped,
        Expected::Steps(5),
    ),
    broken(
        "cbt-clone-epoch-one",
        "a clone begins at the first epoch",
        CLONE,
        Mutation::CloneEpochOne,
        Expected::Exhausted,
    ),
    broken(
        "cbt-fold-min",
        "R26 a folded region has the older stamp",
        FOLD,
        Mutation::FoldMin,
        Expected::Steps(4),
    ),
    broken(
        "cbt-join-unfolded",
        "R26 a replica joins with stamps of before the fold",
        FOLD,
        Mutation::JoinUnfolded,
        Expected::Steps(4),
    ),
    unbroken(
        "cbt",
        "R29: three writes, three changes, a death",
        Setup::Cbt(CBT),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken("cbt-clone", "R29 in a volume and its clone", Setup::Cbt(CLONE), 3_000_000, Expected::Exhausted),
    unbroken("cbt-fold", "R26, R29", Setup::Cbt(FOLD), 3_000_000, Expected::Exhausted),
];
