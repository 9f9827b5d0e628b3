//! A volume that is taken back to a snapshot in place (R30): a marker in the record, REVERT to every member, a seal, and
//! a swap that takes the marker off.
//!
//! Two replicas of two regions, one owner after the other; a caretaker reverts while no guest has the volume. Owners
//! die at any point, members leave and come back by their stamps, one may lack the image, the store may be lost and
//! rebuilt from the records that members promised to, the snapshot is deleted afterwards. Reconciling, resync and
//! writes are one step each, but for a write whose owner dies: `core` has them.
//!
//! Must always hold (the oracle):
//! - who opens the volume reads all of what it was or all of the snapshot, and the snapshot once somebody was told so;
//! - members in sync hold the same and what was written last;
//! - a revert that has to be finished can be.

use core::fmt::Write as _;

use crate::cases::{Case, Expected, Setup, unbroken};
use crate::explore::{Counted, Event, Model, Violation};
use crate::mask::Mask;

const REPLICAS: usize = 2;
const REGIONS: usize = 2;
/// The snapshot: what it holds, and its generation.
const CONTENT: [u8; REGIONS] = [0; REGIONS];
const TAKEN_AT: u8 = 1;

mutations! {
    /// R30: nothing in the record says that a revert is under way.
    Unmarked,
    /// R30: what REVERT brings back is not stamped.
    Unstamped,
    /// R30: a member without the image stays in sync.
    KeepsMemberWithoutImage,
    /// R30: who finds the marker serves first and reverts later.
    ServesFirst,
    /// R30: the marker goes when one member has all of it.
    ClearedByOne,
    /// The marker's swap does not raise the epoch.
    MarkerKeepsEpoch,
    /// The swap that takes it off does not.
    ClearKeepsEpoch,
    /// The asker is told, and may delete the snapshot, before the members hold a record without the marker.
    ToldAtSwap,
    /// Each member brings back what its own stamps call changed since.
    OwnStamps,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Writes altogether.
    pub writes: u8,
    /// Removals and admissions altogether.
    pub changes: u8,
    /// Owners that end, altogether.
    pub ends: u8,
    /// r1 was not there when the snapshot was taken.
    pub missed: bool,
    /// Nor then, but it got the image from r0 later.
    pub copied: bool,
    /// The store may be lost, once.
    pub lost_store: bool,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

/// The record, and what a replica keeps of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Record {
    epoch: u8,
    in_sync: Mask,
    base: [u8; REPLICAS],
    reverting: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Replica {
    data: [u8; REGIONS],
    stamps: [u8; REGIONS],
    kept: Record,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Phase {
    #[default]
    Detached,
    Opening,
    Reconciled,
    Serving,
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    record: Record,
    replicas: [Replica; REPLICAS],
    interval: u8,
    sealed: u8,
    phase: Phase,
    /// This owner is reverting; the regions that members have brought back for it.
    active: bool,
    done: [Mask; REPLICAS],
    begun: bool,
    cleared: bool,
    told: bool,
    /// The snapshot was deleted.
    deleted: bool,
    torn: bool,
    writes: u8,
    changes: u8,
    ends: u8,
    lost: bool,
    /// Oracle: what is to be read, or else, while a revert is under way, the snapshot.
    expected: [u8; REGIONS],
    either: bool,
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Revert(pub Config);

type Out = Vec<(Event, State)>;

impl Revert {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    fn has_image(&self, r: usize) -> bool {
        r == 0 || !self.0.missed
    }

    /// R29: asked of members that took the snapshot themselves.
    fn changed(&self, state: &State, region: usize) -> bool {
        let mut took =
            state.record.in_sync.iter().filter(|r| *r == 0 || !(self.0.missed || self.0.copied)).peekable();
        took.peek().is_none() || took.any(|r| state.replicas[r].stamps[region] > TAKEN_AT)
    }

    fn obeys(state: &State, r: usize) -> bool {
        state.replicas[r].kept.epoch == state.record.epoch
    }

    fn all_obey(state: &State) -> bool {
        state.record.in_sync.iter().all(|r| Self::obeys(state, r))
    }

    fn new_epoch(next: &mut State) {
        next.record.epoch += 1;
        next.interval += 1;
    }

    fn copy(target: &mut Replica, region: usize, value: u8, generation: u8) {
        if target.data[region] != value {
            target.data[region] = value;
            target.stamps[region] = generation;
        }
    }

    fn opens(&self, state: &State, out: &mut Out) {
        if state.phase == Phase::Detached {
            let mut next = *state;
            Self::new_epoch(&mut next);
            next.phase = Phase::Opening;
            next.active = state.record.reverting;
            next.done = Default::default();
            out.push((Event::new("an owner opens (CAS)", &[]), next));
            return;
        }
        for r in state.record.in_sync.iter().filter(|r| !Self::obeys(state, *r)) {
            let mut next = *state;
            next.replicas[r].kept = state.record;
            out.push((Event::new("r{0} promises", &[r]), next));
        }
        if state.phase == Phase::Opening && Self::all_obey(state) {
            for source in state.record.in_sync.iter() {
                let mut next = *state;
                next.phase = Phase::Reconciled;
                next.torn = false;
                for region in 0..REGIONS {
                    let above = |r: usize| state.replicas[r].stamps[region] > state.sealed;
                    if !state.record.in_sync.iter().any(above) {
                        continue;
                    }
                    let value = state.replicas[source].data[region];
                    for r in state.record.in_sync.iter() {
                        Self::copy(&mut next.replicas[r], region, value, state.interval);
                    }
                    if state.torn {
                        next.expected[region] = value;
                    }
                }
                out.push((Event::new("it reconciles from r{0}", &[source]), next));
            }
        }
        if state.ends < self.0.ends {
            let mut next = *state;
            next.ends += 1;
            next.phase = Phase::Detached;
            next.active = false;
            next.done = Default::default();
            out.push((Event::new("the owner ENDS", &[]).rare(6), next));
        }
    }

    fn reverts(&self, state: &State, out: &mut Out) {
        if state.phase == Phase::Reconciled && !state.active && !state.begun && Self::all_obey(state) {
            let mut next = *state;
            let with =
                state.record.in_sync.iter().filter(|r| self.has_image(*r)).fold(Mask::EMPTY, Mask::with);
            if with.is_empty() {
                return;
            }
            if !self.broken(Mutation::KeepsMemberWithoutImage) {
                for r in state.record.in_sync.minus(with).iter() {
                    next.record.base[r] = state.sealed;
                }
                next.record.in_sync = with;
            }
            next.record.reverting = !self.broken(Mutation::Unmarked);
            next.begun = true;
            next.active = true;
            next.either = true;
            if self.broken(Mutation::MarkerKeepsEpoch) {
                next.interval += 1;
            } else {
                Self::new_epoch(&mut next);
            }
            out.push((Event::new("it marks the record: reverting (CAS)", &[]), next));
        }
        if !state.active || !(state.phase == Phase::Reconciled || state.phase == Phase::Serving) {
            return;
        }
        for r in state.record.in_sync.iter().filter(|r| Self::obeys(state, *r)) {
            for region in (0..REGIONS).filter(|region| !state.done[r].has(*region)) {
                let mut next = *state;
                next.done[r] = state.done[r].with(region);
                let replica = &mut next.replicas[r];
                let own = replica.stamps[region] > TAKEN_AT;
                let changed =
                    if self.broken(Mutation::OwnStamps) { own } else { self.changed(state, region) };
                if self.has_image(r) && changed {
                    replica.data[region] = CONTENT[region];
                    if !self.broken(Mutation::Unstamped) {
                        replica.stamps[region] = state.interval;
                    }
                }
                out.push((Event::new("REVERT of region {0} reaches r{1}", &[region, r]), next));
            }
        }
        let whole = |r: usize| state.done[r] == Mask::first(REGIONS);
        let all = state.record.in_sync.iter().all(whole);
        let one = state.record.in_sync.iter().any(whole) && self.broken(Mutation::ClearedByOne);
        if (all || one) && Self::all_obey(state) {
            let mut next = *state;
            next.sealed = state.interval;
            next.record.reverting = false;
            next.active = false;
            next.cleared = true;
            next.done = Default::default();
            if self.broken(Mutation::ClearKeepsEpoch) {
                next.interval += 1;
            } else {
                Self::new_epoch(&mut next);
            }
            out.push((
                Event::new("sealed; it takes the marker off (CAS)", &[]).counts(Counted::Sealed),
                next,
            ));
        }
    }

    fn asker(&self, state: &State, out: &mut Out) {
        let held = Self::all_obey(state) || self.broken(Mutation::ToldAtSwap);
        if state.cleared && !state.told && held && state.phase == Phase::Reconciled {
            let mut next = *state;
            next.told = true;
            if state.either {
                next.either = false;
                next.expected = CONTENT;
            }
            out.push((Event::new("who asked is TOLD", &[]), next));
        }
        if state.told && !state.deleted {
            let mut next = *state;
            next.deleted = true;
            out.push((Event::new("the snapshot is deleted", &[]), next));
        }
    }

    fn serves(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        let may = !state.active || self.broken(Mutation::ServesFirst);
        if state.phase == Phase::Reconciled && may && Self::all_obey(state) {
            let mut next = *state;
            next.phase = Phase::Serving;
            if let (true, Some(r)) = (state.either, state.record.in_sync.iter().next()) {
                let data = state.replicas[r].data;
                if data != state.expected && data != CONTENT {
                    let promise = "a volume is what it was, or all of the snapshot";
                    return Err(Violation { promise, observation: format!("it reads {data:?}") });
                }
                next.either = false;
                next.expected = data;
            }
            out.push((Event::new("the owner serves", &[]).counts(Counted::Opened), next));
        }
        if state.phase != Phase::Serving {
            return Ok(());
        }
        if let Some(r) = state.record.in_sync.iter().find(|r| state.replicas[*r].data != state.expected) {
            let promise = "members in sync hold what was written last";
            return Err(Violation { promise, observation: format!("r{r} has {:?}", state.replicas[r].data) });
        }
        if !Self::all_obey(state) {
            return Ok(());
        }
        for region in (0..REGIONS).filter(|_| state.writes < self.0.writes) {
            let mut next = *state;
            next.writes += 1;
            let reach = |next: &mut State, r: usize| {
                next.replicas[r].data[region] = next.writes;
                next.replicas[r].stamps[region] = state.interval;
            };
            let mut whole = next;
            state.record.in_sync.iter().for_each(|r| reach(&mut whole, r));
            whole.expected[region] = whole.writes;
            let text = "WRITE {0} of region {1}";
            out.push((Event::new(text, &[next.writes.into(), region]).counts(Counted::WriteAcked), whole));
            if state.ends < self.0.ends && state.record.in_sync.len() > 1 {
                for r in state.record.in_sync.iter() {
                    let mut torn = next;
                    reach(&mut torn, r);
                    torn.ends += 1;
                    torn.torn = true;
                    torn.phase = Phase::Detached;
                    let text = "WRITE {0} of region {1} reaches r{2} only, the owner ENDS";
                    out.push((Event::new(text, &[next.writes.into(), region, r]).rare(6), torn));
                }
            }
        }
        if state.sealed < state.interval && state.replicas.iter().any(|r| r.stamps.contains(&state.interval))
        {
            let mut next = *state;
            next.sealed = state.interval;
            next.interval += 1;
            out.push((Event::new("interval {0} is sealed", &[next.sealed.into()]), next));
        }
        Ok(())
    }

    fn members(&self, state: &State, out: &mut Out) {
        let serves = state.phase == Phase::Serving;
        if state.changes == self.0.changes || !(serves || state.phase == Phase::Reconciled) {
            return;
        }
        for r in 0..REPLICAS {
            let mut next = *state;
            next.changes += 1;
            Self::new_epoch(&mut next);
            if state.record.in_sync.has(r) && state.record.in_sync.len() > 1 {
                next.record.in_sync = state.record.in_sync.without(r);
                next.record.base[r] = state.sealed;
                out.push((Event::new("r{0} is removed (CAS)", &[r]).counts(Counted::Removed), next));
            } else if !state.record.in_sync.has(r) && serves && Self::all_obey(state) {
                let source = state.replicas[1 - r];
                for region in 0..REGIONS {
                    let joiner = &mut next.replicas[r];
                    if source.stamps[region].max(joiner.stamps[region]) > state.record.base[r] {
                        Self::copy(joiner, region, source.data[region], state.interval);
                    }
                }
                next.record.in_sync = state.record.in_sync.with(r);
                next.record.base[r] = 0;
                out.push((
                    Event::new("r{0} is resynced and admitted (CAS)", &[r]).counts(Counted::Admitted),
                    next,
                ));
            }
        }
    }

    fn lose_store(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        if !self.0.lost_store || state.lost {
            return Ok(());
        }
        let best = state.replicas.iter().map(|replica| replica.kept).max_by_key(|kept| kept.epoch);
        let mut next = *state;
        next.lost = true;
        next.record = Record { epoch: state.record.epoch + 1, ..best.unwrap_or_default() };
        next.interval += 1;
        next.phase = Phase::Detached;
        next.active = false;
        next.done = Default::default();
        if next.record.reverting && state.deleted {
            let promise = "a revert that has to be finished can be";
            return Err(Violation {
                promise,
                observation: "the marker is back, the snapshot is gone".into(),
            });
        }
        out.push((Event::new("the store is LOST and rebuilt", &[]), next));
        Ok(())
    }
}

impl Model for Revert {
    type State = State;
    type Step = Event;

    fn initial(&self) -> State {
        let record = Record { epoch: 1, in_sync: Mask::first(REPLICAS), ..Record::default() };
        // Each region was written after the snapshot.
        let mut expected = [7, 8];
        let mut replicas = [Replica { data: expected, stamps: [2, 2], kept: record }; REPLICAS];
        if self.0.copied {
            // r1 was away with a write of nobody's; it was written again after the snapshot, so that r1 came back with
            // what it should have, and its stamp of before.
            expected = [7, CONTENT[1]];
            replicas[0] = Replica { data: expected, stamps: [2, 1], kept: record };
            replicas[1] = Replica { data: expected, stamps: [1, 1], kept: record };
        }
        State {
            record,
            replicas,
            interval: 3,
            sealed: 2,
            phase: Phase::Detached,
            active: false,
            done: Default::default(),
            begun: false,
            cleared: false,
            told: false,
            deleted: false,
            torn: false,
            writes: 0,
            changes: 0,
            ends: 0,
            lost: false,
            expected,
            either: false,
        }
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        self.opens(state, out);
        self.reverts(state, out);
        self.asker(state, out);
        self.serves(state, out)?;
        self.members(state, out);
        self.lose_store(state, out)
    }

    fn describe(&self, state: &State) -> String {
        let record = &state.record;
        let mut line = format!(
            "record(E={} in-sync={:02b} base={:?}{}) {:?} interval={} sealed={}",
            record.epoch,
            record.in_sync.0,
            record.base,
            if record.reverting { " REVERTING" } else { "" },
            state.phase,
            state.interval,
            state.sealed
        );
        for replica in &state.replicas {
            let mark = if replica.kept.reverting { " marker" } else { "" };
            let _ = write!(
                line,
                " ({:?} stamps={:?} E={}{mark})",
                replica.data, replica.stamps, replica.kept.epoch
            );
        }
        line
    }
}

const REVERT: Config = Config {
    writes: 1,
    changes: 2,
    ends: 2,
    missed: false,
    copied: false,
    lost_store: false,
    mutation: None,
};
const MISSED: Config = Config { missed: true, ..REVERT };
const COPIED: Config = Config { copied: true, ..REVERT };
const LOST: Config = Config { lost_store: true, ends: 1, changes: 1, ..REVERT };

broken_cases!(Revert);

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    broken(
        "revert-unmarked",
        "R30 an owner dies, nothing says what it did",
        REVERT,
        Mutation::Unmarked,
        Expected::Steps(12),
    ),
    broken(
        "revert-unstamped",
        "R30 a member that comes back is not told",
        REVERT,
        Mutation::Unstamped,
        Expected::Steps(13),
    ),
    broken(
        "revert-keeps-member-without-image",
        "R30 a member that can't revert stays in sync",
        MISSED,
        Mutation::KeepsMemberWithoutImage,
        Expected::Steps(13),
    ),
    broken(
        "revert-serves-first",
        "R30 served before it is finished",
        REVERT,
        Mutation::ServesFirst,
        Expected::Steps(8),
    ),
    broken(
        "revert-cleared-by-one",
        "R30 the marker goes when one member has it",
        REVERT,
        Mutation::ClearedByOne,
        Expected::Steps(13),
    ),
    broken(
        "revert-own-stamps",
        "R29, R30 each member by its own stamps",
        COPIED,
        Mutation::OwnStamps,
        Expected::Steps(13),
    ),
    broken(
        "revert-marker-keeps-epoch",
        "R25, R30 the members don't know of the marker",
        LOST,
        Mutation::MarkerKeepsEpoch,
        Expected::Steps(11),
    ),
    broken(
        "revert-clear-keeps-epoch",
        "R25, R30 the members don't know that it is gone",
        LOST,
        Mutation::ClearKeepsEpoch,
        Expected::Steps(12),
    ),
    broken(
        "revert-told-at-swap",
        "R25, R30 told before the members know",
        LOST,
        Mutation::ToldAtSwap,
        Expected::Steps(12),
    ),
    unbroken(
        "revert",
        "R30: two changes, two owners that end",
        Setup::Revert(REVERT),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "revert-missed",
        "R30, a member that missed the snapshot",
        Setup::Revert(MISSED),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "revert-copied",
        "R30, a member that got the image from the other",
        Setup::Revert(COPIED),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "revert-missed-lost-store",
        "R30, both",
        Setup::Revert(Config { missed: true, ..LOST }),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "revert-lost-store",
        "R30, a store that is lost",
        Setup::Revert(LOST),
        3_000_000,
        Expected::Exhausted,
    ),
];
