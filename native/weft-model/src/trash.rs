//! The way of a replica to the trash and out of it (protocol.md R15): tombstones, removals, restored volumes, reads of
//! the record that are old when the replica goes, stores that are empty or went back.
//!
//! One volume, two replicas on two hosts. A host reads the record, and at any later moment, judged by what the replica
//! itself keeps at that moment, moves it to the trash; a day later the trash is emptied.
//!
//! Must always hold (the oracle):
//! - a replica that the living volume's record names is never destroyed, and is not even in the trash once an owner
//!   has had its promise under a later record than the one that was read (N19);
//! - nothing goes because a record or a store is absent (N5, I33).

use crate::cases::{Case, Expected, Setup};
use crate::explore::{Event, Model, Violation};
use crate::mask::Mask;

const REPLICAS: usize = 2;

mutations! {
    /// N5: a store without the record stands for a deleted volume.
    AbsenceDeletes,
    /// N19: judged when the record was read, not when the replica goes.
    JudgedAtReading,
    /// A record that does not name the replica is enough, whatever its version.
    OlderRecordDeletes,
    /// `next_rid` is not compared: a replica that is made before the record names it.
    UnnamedDeletes,
    /// By the letter: the trash is emptied after a day, without another look at the record.
    EmptiedUnseen,
    /// The trash is emptied after a look at the record, without a swap that takes the replica out of it.
    EmptiedWithoutSwap,
    /// The trash is emptied while the store is behind the watermark.
    EmptiedBehindWatermark,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Changes of the record altogether.
    pub changes: u8,
    /// The store may be lost or go back, once; it is repaired later.
    pub store_lost: bool,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Record {
    /// Rises with every change; 0: there is no such record.
    version: u8,
    deleted: bool,
    named: Mask,
    next_rid: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Place {
    #[default]
    Nowhere,
    Serving,
    Trash,
    Destroyed,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Replica {
    place: Place,
    /// The version of the record under which it promised; 0: never.
    kept: u8,
    /// What its host has read, and whether that was found to be enough.
    seen: Option<Record>,
    found: bool,
    /// In the trash for a day.
    old: bool,
    /// Oracle: it went although nothing said so.
    wrongly: bool,
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct State {
    record: Record,
    /// What the store had before it was lost.
    before: Option<Record>,
    lost: bool,
    replicas: [Replica; REPLICAS],
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Trash(pub Config);

type Out = Vec<(Event, State)>;

impl Trash {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    /// R15, by a record that was read and what the replica keeps.
    fn may_go(&self, seen: Record, r: usize, kept: u8) -> bool {
        if seen.version == 0 {
            return self.broken(Mutation::AbsenceDeletes);
        }
        let above = seen.version > kept || self.broken(Mutation::OlderRecordDeletes);
        let was_named = usize::from(seen.next_rid) > r || self.broken(Mutation::UnnamedDeletes);
        above && was_named && (seen.deleted || !seen.named.has(r))
    }

    fn changes(&self, state: &State, out: &mut Out) {
        let record = state.record;
        if record.version == 0 || record.version > self.0.changes || state.before.is_some() {
            return;
        }
        let mut change = |text, numbers: &[usize], edit: &dyn Fn(&mut State)| {
            let mut next = *state;
            next.record.version += 1;
            edit(&mut next);
            out.push((Event::new(text, numbers), next));
        };
        if record.deleted {
            change("the volume is restored (CAS)", &[], &|next| next.record.deleted = false);
            return;
        }
        change("the volume is deleted (CAS)", &[], &|next| next.record.deleted = true);
        for r in 0..REPLICAS {
            let serving = state.replicas[r].place == Place::Serving;
            if record.named.has(r) && serving {
                change("the volume is opened, r{0} promises", &[r], &|next| {
                    next.replicas[r].kept = next.record.version;
                });
            }
            if record.named.has(r) && record.named.len() > 1 {
                change("r{0} is removed (CAS)", &[r], &|next| next.record.named = record.named.without(r));
            }
            if !record.named.has(r) && serving && usize::from(record.next_rid) <= r {
                change("r{0} is added (CAS)", &[r], &|next| {
                    next.record.named = record.named.with(r);
                    next.record.next_rid = u8::try_from(r + 1).expect("two replicas");
                });
            }
        }
    }

    fn hosts(&self, state: &State, out: &mut Out) {
        let behind = state.before.is_some();
        for (r, replica) in state.replicas.iter().enumerate() {
            let mut edit = |text, edit: &dyn Fn(&mut Replica)| {
                let mut next = *state;
                edit(&mut next.replicas[r]);
                out.push((Event::new(text, &[r]), next));
            };
            if replica.place == Place::Nowhere {
                edit("r{0} is made, before the record names it", &|to| to.place = Place::Serving);
            }
            if replica.seen != Some(state.record) && replica.place != Place::Destroyed {
                let found = self.may_go(state.record, r, replica.kept);
                edit("r{0}'s host reads the record", &|to| {
                    to.seen = Some(state.record);
                    to.found = found;
                });
            }
            let Some(seen) = replica.seen else { continue };
            let goes = match self.broken(Mutation::JudgedAtReading) {
                true => replica.found,
                false => self.may_go(seen, r, replica.kept),
            };
            if replica.place == Place::Serving && goes {
                let actual = state.before.unwrap_or(state.record);
                let named = actual.version != 0 && !actual.deleted && actual.named.has(r);
                // What never promised is empty: a tombstone of before is no loss.
                let never = replica.kept == 0;
                let known = if never { !seen.deleted } else { replica.kept >= seen.version };
                edit("r{0} goes to the trash", &|to| {
                    to.place = Place::Trash;
                    to.wrongly = named && known;
                });
            }
            if replica.place != Place::Trash {
                continue;
            }
            if !replica.old {
                edit("r{0} is a day in the trash", &|to| to.old = true);
            }
            let wanted = state.record.version != 0 && !state.record.deleted && state.record.named.has(r);
            if wanted {
                edit("r{0} is taken out of the trash", &|to| {
                    *to = Replica { place: Place::Serving, kept: to.kept, ..Replica::default() };
                });
            }
            let allowed = replica.old && (!behind || self.broken(Mutation::EmptiedBehindWatermark));
            let looked = self.may_go(state.record, r, replica.kept);
            let out_of_record = !state.record.named.has(r) || self.broken(Mutation::EmptiedWithoutSwap);
            if allowed && ((looked && out_of_record) || self.broken(Mutation::EmptiedUnseen)) {
                edit("r{0} is removed from the trash for good", &|to| to.place = Place::Destroyed);
            }
            if allowed && looked && state.record.named.has(r) {
                // A volume that is restored afterwards does not name what is not there any more.
                let mut next = *state;
                next.record.version += 1;
                next.record.named = state.record.named.without(r);
                out.push((Event::new("r{0} is taken out of the record for good (CAS)", &[r]), next));
            }
        }
    }
}

impl Model for Trash {
    type State = State;
    type Step = Event;

    fn initial(&self) -> State {
        let mut state = State {
            record: Record { version: 1, deleted: false, named: Mask::one(0), next_rid: 1 },
            ..State::default()
        };
        state.replicas[0] = Replica { place: Place::Serving, kept: 1, ..Replica::default() };
        state
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        let record = state.before.unwrap_or(state.record);
        for (r, replica) in state.replicas.iter().enumerate() {
            let named = record.version != 0 && !record.deleted && record.named.has(r);
            let observation = format!("r{r}: {replica:?}, record {record:?}");
            if replica.place == Place::Destroyed && named {
                let promise = "a replica that the record names is never destroyed";
                return Err(Violation { promise, observation });
            }
            if replica.wrongly {
                let promise =
                    "a replica does not go for less than a record above the one it keeps, that takes it out";
                return Err(Violation { promise, observation });
            }
        }
        self.changes(state, out);
        self.hosts(state, out);
        if self.0.store_lost && !state.lost {
            for back in [Record::default(), Record { deleted: true, version: 2, ..state.record }] {
                let mut next = *state;
                next.lost = true;
                next.before = Some(state.record);
                next.record = back;
                if back.version < state.record.version {
                    let text = if back.version == 0 {
                        "the store is LOST"
                    } else {
                        "the store GOES BACK to a deletion"
                    };
                    out.push((Event::new(text, &[]).rare(10), next));
                }
            }
        }
        if let Some(before) = state.before {
            let mut next = *state;
            next.before = None;
            next.record = before;
            // R11: the jump of the epoch. What was read before it counts for nothing.
            next.record.version += 1;
            next.replicas.iter_mut().for_each(|replica| {
                replica.seen = None;
                replica.found = false;
            });
            out.push((Event::new("the store is repaired", &[]), next));
        }
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        let Record { version, deleted, named, .. } = state.record;
        let places = state.replicas.map(|replica| format!("{:?} kept={}", replica.place, replica.kept));
        format!("record(version={version} deleted={deleted} named={:02b}) {places:?}", named.0)
    }
}

const LIVING: Config = Config { changes: 5, store_lost: false, mutation: None };
const LOST: Config = Config { store_lost: true, ..LIVING };

broken_cases!(Trash);

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    broken(
        "trash-absence",
        "N5 an absent record deletes",
        LOST,
        Mutation::AbsenceDeletes,
        Expected::Steps(3),
    ),
    broken(
        "trash-judged-at-reading",
        "N19 judged by what the replica kept when the record was read",
        LIVING,
        Mutation::JudgedAtReading,
        Expected::Steps(5),
    ),
    broken(
        "trash-older-record",
        "R15 a record that is not above the replica's own",
        LOST,
        Mutation::OlderRecordDeletes,
        Expected::Steps(5),
    ),
    broken(
        "trash-unnamed",
        "R15 next_rid is not compared",
        LIVING,
        Mutation::UnnamedDeletes,
        Expected::Steps(4),
    ),
    broken(
        "trash-emptied-unseen",
        "R15 by the letter: the trash is emptied after a day",
        LIVING,
        Mutation::EmptiedUnseen,
        Expected::Steps(6),
    ),
    broken(
        "trash-emptied-without-swap",
        "the trash is emptied after a look at the record, without a swap",
        LIVING,
        Mutation::EmptiedWithoutSwap,
        Expected::Steps(6),
    ),
    broken(
        "trash-emptied-behind-watermark",
        "R15 the trash is emptied while the store is behind",
        LOST,
        Mutation::EmptiedBehindWatermark,
        Expected::Steps(8),
    ),
    Case::small("trash", "R15, five changes of the record", Setup::Trash(LIVING), Expected::Exhausted),
    Case::small(
        "trash-lost-store",
        "R15 and a store that is lost or goes back",
        Setup::Trash(LOST),
        Expected::Exhausted,
    ),
];
