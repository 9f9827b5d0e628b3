//! The snapshots of the volume as its session knows them (protocol.md 4.19): which there are, who has to log them, and
//! who has to delete them. `barrier` takes new ones.
//!
//! ```text
//! (barrier) ──▶ Taken ──every listed member that is in sync has logged it──▶ Logged ──▶ told (R27)
//!                 └──────────────────── asked for ───────────────────────────┴──▶ Deleting ──▶ gone
//!                                                       every listed member has removed its image, or left the record
//!                                     Logged ──data is to go──▶ … ──▶ every listed member keeps hashes of it alone
//! ```
//!
//! Must always hold:
//! * each change is a swap of the record, with the change of the snapshot's key in the same transaction;
//! * whoever asked for a snapshot is told of it when every listed member that is in sync has logged it, and there is
//!   one: then no loss of the store takes it back (R27);
//! * a key that says DELETING goes when no listed member that is left has an image, however long that takes;
//! * a listed member that was away logs it when it is back: else it could become the only one, and say nothing;
//! * that its data is to go stands in its key before any member begins, so that nobody begins to read it meanwhile;
//! * the last replica that has logged a snapshot is not taken out of the record.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::copies::{Adding, NotAdded};
use super::peer::Purpose;
use super::store::Intent;
use super::{Event, Session};
use crate::hashes::volume_key;
use crate::ids::{Epoch, Generation, Instant, Rid, SnapId};
use crate::message::{Ask, Refusal};
use crate::mutants::Mutation;
use crate::payload::Payload;
use crate::record::{Record, ReplicaState};

/// Refused: nobody else has an image of some snapshot.
pub const LAST_HOLDER: &str = "no other copy has what a snapshot needs";
/// Requests for snapshots that are there which are under way at once.
const ASKED_MAX: usize = 32;
/// Until a member is asked again that has not done it.
const AGAIN_MS: u64 = 500;

/// What a swap does to a snapshot's key, in the same transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapChange {
    /// The key is made: READY, and not logged.
    Taken(SnapTaken),
    /// `logged` becomes true.
    Logged {
        /// Which one's.
        id: SnapId,
    },
    /// Its state becomes DELETING.
    Deleting {
        /// Which one's.
        id: SnapId,
    },
    /// The key is removed.
    Gone {
        /// Which one's.
        id: SnapId,
    },
    /// Its data is to go, and nobody may read it from now on.
    Destroyed {
        /// Which one's.
        id: SnapId,
    },
    /// Its data is gone at every listed member.
    Emptied {
        /// Which one's.
        id: SnapId,
    },
    /// What the caller wants; see [`super::Session::change_snapshot`].
    Changed {
        /// Which one's.
        id: SnapId,
    },
    /// Another member has it, too.
    Added {
        /// Which one's.
        id: SnapId,
        /// Who: it has logged it.
        rid: Rid,
    },
}

/// A snapshot that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapTaken {
    /// Which one.
    pub id: SnapId,
    /// Which attempt's images are its own.
    pub attempt: u64,
    /// The barrier's generation: it has every write up to it, and none above.
    pub generation: Generation,
    /// The record's epoch, then and in this swap.
    pub epoch: Epoch,
    /// The store's incarnation then.
    pub incarnation: u64,
    /// The volume's size then, in bytes.
    pub size: u64,
    /// Regions were `1 << region_shift` bytes then.
    pub region_shift: u8,
    /// Who has an image.
    pub members: Vec<Rid>,
}

/// How far a snapshot is, by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapState {
    /// It stands in the store; who asked was not told yet, and nobody is shown it (R27).
    Taken,
    /// It is there.
    Logged,
    /// It is being deleted.
    Deleting,
}

/// Whether a snapshot has its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapData {
    /// It does.
    #[default]
    Kept,
    /// It is to go: hashes of it are kept instead.
    Going,
    /// It is gone.
    Gone,
}

/// A snapshot's key, as far as the session has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapKnown {
    /// Which one.
    pub id: SnapId,
    /// Which attempt's images are its own.
    pub attempt: u64,
    /// The barrier's generation.
    pub generation: Generation,
    /// How far it is.
    pub state: SnapState,
    /// Who has an image.
    pub members: Vec<Rid>,
    /// What members are to keep of it, if it is not logged yet, so that a repair can make the key again.
    pub note: Vec<u8>,
    /// Whether it has its data.
    pub data: SnapData,
}

/// Why there is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapFailure {
    /// The volume waited for this, longer than a snapshot is tried for.
    Waits(String),
    /// This copy's pool can't keep images.
    CannotBe {
        /// Which copy's.
        rid: Rid,
    },
    /// This copy's pool has no room.
    NoSpace {
        /// Which copy's.
        rid: Rid,
    },
    /// The volume is being closed.
    Closing,
    /// The volume's head is deleted.
    HeadDeleted,
    /// This copy did not answer.
    Silent {
        /// Which copy.
        rid: Rid,
    },
}

/// A step at one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SnapStep {
    Make,
    Prepare,
    Ready,
    Drop,
    Delete,
    /// READY, of one that is not listed yet.
    Add,
    Destroy,
}

/// What a member is asked for a snapshot: which step, of which attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SnapWork {
    pub(super) step: SnapStep,
    pub(super) id: SnapId,
    pub(super) attempt: u64,
}

/// A snapshot that stands in the store.
#[derive(Debug)]
struct Snap {
    attempt: u64,
    generation: Generation,
    state: SnapState,
    members: Vec<Rid>,
    note: Vec<u8>,
    data: SnapData,
    /// Who has logged it, or removed its image.
    done: Vec<Rid>,
    /// Who keeps nothing but hashes of it.
    emptied: Vec<Rid>,
    /// Who says that it has no image of it.
    without: Vec<Rid>,
    sent: Vec<Rid>,
    /// Nobody is asked before this.
    hold: Option<Instant>,
    /// How long writes were held for it.
    held_ms: u64,
    /// Somebody waits for it, until then.
    asked: Option<Instant>,
}

/// An image of an attempt that came to nothing, to be dropped.
#[derive(Debug)]
struct Dropped {
    rid: Rid,
    id: SnapId,
    attempt: u64,
    sent: bool,
    hold: Option<Instant>,
}

/// What the session knows of the volume's snapshots.
#[derive(Debug, Default)]
pub(super) struct Snaps {
    /// The keys were read.
    told: bool,
    all: BTreeMap<SnapId, Snap>,
    /// Those for which some member may have something to do.
    unfinished: Vec<SnapId>,
    /// The change of one of those that is due.
    due: Option<SnapChange>,
    /// They are looked at now, or at this time: there may be a thousand.
    look: bool,
    look_at: Option<Instant>,
    dropped: Vec<Dropped>,
    /// Changes that were asked for: `Deleting`, `Destroyed`, `Changed` and `Added`.
    pub(super) changes: alloc::collections::VecDeque<SnapChange>,
    /// Members that are to be listed.
    pub(super) adding: Vec<Adding>,
}

impl Snaps {
    pub(super) fn are_told(&self) -> bool {
        self.told
    }

    /// What is known of it, if it stands in the store: how far it is, its attempt and its generation.
    pub(super) fn known(&self, id: SnapId) -> Option<(SnapState, u64, Generation)> {
        self.all.get(&id).map(|snap| (snap.state, snap.attempt, snap.generation))
    }

    /// May what it holds still be read?
    pub(super) fn has_data(&self, id: SnapId) -> bool {
        self.all.get(&id).is_some_and(|snap| snap.data == SnapData::Kept)
    }

    /// How far it is, if it stands in the store.
    pub(super) fn state_of(&self, id: SnapId) -> Option<SnapState> {
        self.all.get(&id).map(|snap| snap.state)
    }

    /// How far it is, which attempt's images are its own, and whether this member is listed and has said nothing else.
    pub(super) fn list_of(&self, id: SnapId, rid: Rid) -> Option<(SnapState, u64, bool)> {
        let listed = |snap: &Snap| snap.members.contains(&rid) && !snap.without.contains(&rid);
        self.all.get(&id).map(|snap| (snap.state, snap.attempt, listed(snap)))
    }

    /// What members are to keep of it.
    pub(super) fn note_of(&self, id: SnapId) -> Vec<u8> {
        self.all.get(&id).map(|snap| snap.note.clone()).unwrap_or_default()
    }

    fn insert(&mut self, id: SnapId, snap: Snap) {
        self.unfinished.retain(|other| *other != id);
        self.unfinished.push(id);
        self.all.insert(id, snap);
        self.look = true;
    }
}

impl SnapKnown {
    fn snap(self, held_ms: u64, asked: Option<Instant>) -> Snap {
        Snap {
            attempt: self.attempt,
            generation: self.generation,
            state: self.state,
            members: self.members,
            note: self.note,
            data: self.data,
            done: Vec::new(),
            emptied: Vec::new(),
            without: Vec::new(),
            sent: Vec::new(),
            hold: None,
            held_ms,
            asked,
        }
    }
}

impl<P: Payload> Session<P> {
    pub(super) fn snaps_known(&mut self, known: Vec<SnapKnown>) {
        (self.snaps.told, self.snaps.look) = (true, true);
        for known in known {
            if !self.snaps.all.contains_key(&known.id) {
                self.snaps.insert(known.id, known.snap(0, None));
            }
        }
    }

    /// It stands in the store: its swap is known to have been applied.
    pub(super) fn snap_taken(
        &mut self,
        taken: &SnapTaken,
        note: Vec<u8>,
        held_ms: u64,
        asked: Option<Instant>,
    ) {
        let SnapTaken { id, attempt, generation, .. } = *taken;
        let (state, members) = (SnapState::Taken, taken.members.clone());
        let known = SnapKnown { id, attempt, generation, state, members, note, data: SnapData::Kept };
        self.snaps.insert(id, known.snap(held_ms, asked));
        if self.config.broken.is(Mutation::SnapReportAtSwap) {
            self.tell_taken(id);
        }
    }

    fn tell_taken(&mut self, id: SnapId) {
        let Some(snap) = self.snaps.all.get_mut(&id) else { return };
        snap.asked = None;
        let (generation, members, held_ms) = (snap.generation, snap.members.clone(), snap.held_ms);
        self.events.push_back(Event::SnapshotTaken { id, generation, members, held_ms });
    }

    /// Somebody asks for a snapshot that is there, or on its way.
    pub(super) fn snap_asked_again(&mut self, id: SnapId, until: Instant) {
        match self.snaps.all.get_mut(&id).map(|snap| (snap.state, snap)) {
            Some((SnapState::Taken, snap)) => snap.asked = Some(until),
            Some((SnapState::Logged, _)) => self.tell_taken(id),
            Some((SnapState::Deleting, _)) => {
                let why = SnapFailure::Waits("its deletion".to_string());
                self.events.push_back(Event::SnapshotFailed { id, why });
            }
            None => {}
        }
    }

    /// Does somebody wait for a snapshot to be logged, or for a change of one?
    pub(super) fn snaps_awaited(&self) -> bool {
        let awaited = |id: &SnapId| self.snaps.all.get(id).is_some_and(|snap| snap.asked.is_some());
        !self.snaps.changes.is_empty() && self.snaps.told || self.snaps.unfinished.iter().any(awaited)
    }

    // ---- asking the members

    /// The record has changed, or what members say.
    pub(super) fn look_at_snaps(&mut self) {
        self.snaps.look = true;
    }

    /// Has each member that is there log what is taken, remove what is deleted, and drop what came to nothing.
    pub(super) fn drive_snaps(&mut self, now: Instant) {
        self.drive_adding(now);
        if !self.snaps.look && self.snaps.look_at.is_some_and(|at| now < at) {
            return;
        }
        (self.snaps.look, self.snaps.look_at) = (false, Some(self.next_tick));
        let record = self.record.as_ref().expect("known by now");
        self.snaps.dropped.retain(|d| record.replica(d.rid).is_some());
        let (epoch, peers) = (record.epoch, &self.peers);
        let obeys = |rid: Rid| peers.get(&rid).is_some_and(|p| p.obeys(epoch) && p.bad.is_none());
        let mut asks = Vec::new();
        for d in self.snaps.dropped.iter_mut().filter(|d| !d.sent) {
            if obeys(d.rid) && d.hold.is_none_or(|at| now >= at) {
                d.sent = true;
                let Dropped { rid, id, attempt, .. } = *d;
                asks.push((
                    rid,
                    Ask::SnapDrop { id, attempt },
                    SnapWork { step: SnapStep::Drop, id, attempt },
                ));
            }
        }
        let mut room = ASKED_MAX;
        let mut unfinished = core::mem::take(&mut self.snaps.unfinished);
        unfinished.retain(|id| {
            let Some(snap) = self.snaps.all.get_mut(id) else { return false };
            let stays = |rid: &&Rid| !snap.has_done(**rid) && record.replica(**rid).is_some();
            // Of one whose data goes it is still to be said that all have done it.
            let over = snap.state == SnapState::Logged && snap.data != SnapData::Going;
            if over && !snap.members.iter().any(|rid| stays(&rid)) {
                return false;
            }
            room = room.saturating_sub(snap.sent.len());
            if snap.hold.is_some_and(|at| now < at) {
                return true;
            }
            let (id, attempt) = (*id, snap.attempt);
            for rid in snap.members.clone() {
                if room == 0 || snap.has_done(rid) || snap.sent.contains(&rid) || !obeys(rid) {
                    continue;
                }
                room -= 1;
                snap.sent.push(rid);
                let (step, ask) = match snap.state {
                    SnapState::Deleting => (SnapStep::Delete, Ask::SnapDelete { id }),
                    _ if snap.is_over(rid) => {
                        let key = volume_key(record.vol, &record.created_by);
                        (SnapStep::Destroy, Ask::SnapDestroy { id, attempt, key })
                    }
                    _ => (SnapStep::Ready, Ask::SnapReady { id, attempt, note: snap.note.clone() }),
                };
                asks.push((rid, ask, SnapWork { step, id, attempt }));
            }
            true
        });
        self.snaps.unfinished = unfinished;
        for (rid, ask, work) in asks {
            self.send(now, rid, Purpose::Snap(work), ask);
        }
        self.give_up_waiting(now);
        self.snaps.due = self.snaps.unfinished.iter().find_map(|id| self.snap_due(*id));
    }

    /// Who asked is not made to wait for ever; the snapshot stands in the store all the same.
    fn give_up_waiting(&mut self, now: Instant) {
        for id in &self.snaps.unfinished {
            let Some(snap) = self.snaps.all.get_mut(id) else { continue };
            if snap.asked.take_if(|until| now >= *until).is_some() {
                let late = snap.members.iter().find(|rid| !snap.is_over(**rid));
                let why = match late {
                    Some(rid) => SnapFailure::Silent { rid: *rid },
                    None if snap.done.is_empty() => {
                        SnapFailure::Waits("a copy that has its image".to_string())
                    }
                    None => SnapFailure::Waits("the store".to_string()),
                };
                self.events.push_back(Event::SnapshotFailed { id: *id, why });
            }
        }
    }

    /// A member has done a step; `gone`: or, of a deletion, has begun it.
    pub(super) fn snap_done(&mut self, now: Instant, rid: Rid, work: SnapWork, gone: bool) {
        let SnapWork { step, id, attempt } = work;
        match step {
            SnapStep::Make | SnapStep::Prepare => self.barrier_done(now, rid, work),
            SnapStep::Drop => self.snaps.dropped.retain(|d| (d.rid, d.id, d.attempt) != (rid, id, attempt)),
            SnapStep::Add => self.adding_asked(now, rid, id, Ok(())),
            SnapStep::Ready | SnapStep::Delete | SnapStep::Destroy => {
                let Some(snap) = self.snaps.all.get_mut(&id).filter(|snap| snap.awaits(step)) else { return };
                snap.sent.retain(|r| *r != rid);
                if gone {
                    snap.steps_done(step).push(rid);
                    (self.snaps.look, self.progressed) = (true, true);
                } else {
                    snap.hold = Some(now.after_ms(AGAIN_MS));
                }
            }
        }
    }

    /// A member has refused a step, or its answer is lost.
    pub(super) fn snap_undone(&mut self, now: Instant, rid: Rid, work: SnapWork, why: Option<Refusal>) {
        let SnapWork { step, id, attempt } = work;
        let hold = Some(now.after_ms(self.config.timing.heartbeat_ms));
        match step {
            SnapStep::Make | SnapStep::Prepare => self.barrier_undone(now, rid, work, why),
            SnapStep::Add => self.adding_asked(now, rid, id, Err(why)),
            SnapStep::Drop => {
                // Whatever it refuses for good, it has no such image.
                let done =
                    !matches!(why, None | Some(Refusal::Busy | Refusal::StaleEpoch | Refusal::NotAttached));
                let is = |d: &Dropped| (d.rid, d.id, d.attempt) == (rid, id, attempt);
                self.snaps.dropped.retain(|d| !(done && is(d)));
                for d in self.snaps.dropped.iter_mut().filter(|d| is(d)) {
                    (d.sent, d.hold) = (false, hold);
                }
            }
            SnapStep::Ready | SnapStep::Delete | SnapStep::Destroy => {
                let Some(snap) = self.snaps.all.get_mut(&id).filter(|snap| snap.awaits(step)) else { return };
                snap.sent.retain(|r| *r != rid);
                snap.hold = hold;
                if why == Some(Refusal::NoSnapshot) {
                    match step {
                        SnapStep::Ready => snap.without.push(rid),
                        _ => snap.steps_done(step).push(rid),
                    }
                    snap.hold = None;
                    (self.snaps.look, self.progressed) = (true, true);
                }
            }
        }
    }

    /// The images of an attempt go, at these members: its swap is surely not applied, and never will be (R14).
    pub(super) fn drop_images(&mut self, members: &[Rid], id: SnapId, attempt: u64) {
        for rid in members {
            let known = |d: &Dropped| (d.rid, d.id, d.attempt) == (*rid, id, attempt);
            if !self.snaps.dropped.iter().any(known) {
                self.snaps.dropped.push(Dropped { rid: *rid, id, attempt, sent: false, hold: None });
            }
        }
    }

    // ---- the store

    /// The swap that is due of those that change a snapshot's key, if any.
    pub(super) fn propose_snap_change(&mut self, now: Instant) -> bool {
        if !self.snaps.told {
            return false;
        }
        let due = self.snaps.due.as_ref().and_then(|change| self.snap_due(change.id()));
        if let Some(change) = due {
            self.propose(now, Intent::Snap(change));
            return true;
        }
        let Some(change) = self.snaps.changes.front().cloned() else { return false };
        let id = change.id();
        let gives_up = matches!(change, SnapChange::Deleting { .. } | SnapChange::Destroyed { .. });
        if gives_up && self.reverts_to(id) {
            // What is asked for after it waits as well: the revert ends, or another snapshot takes this one's place.
            return false;
        }
        match (self.snaps.state_of(id), &change) {
            (state, SnapChange::Added { rid, .. })
                if state != Some(SnapState::Logged) || !self.snaps.has_data(id) =>
            {
                self.not_added(id, *rid, NotAdded::NoSnapshot);
            }
            (_, SnapChange::Added { rid, .. }) if self.rec().replica(*rid).is_none() => {
                self.not_added(id, *rid, NotAdded::NotInSync);
            }
            (None, _) => self.events.push_back(Event::SnapshotGone { id }),
            (Some(SnapState::Deleting), SnapChange::Destroyed { .. }) => {
                self.events.push_back(Event::SnapshotDestroyed { id });
            }
            (Some(SnapState::Deleting), SnapChange::Deleting { .. }) => {
                self.events.push_back(Event::SnapshotDeleting { id });
            }
            _ => {
                self.propose(now, Intent::Snap(change));
                return true;
            }
        }
        self.snaps.changes.pop_front();
        self.progressed = true;
        false
    }

    fn snap_due(&self, id: SnapId) -> Option<SnapChange> {
        let snap = self.snaps.all.get(&id)?;
        match snap.state {
            SnapState::Taken => self.is_logged(snap).then_some(SnapChange::Logged { id }),
            SnapState::Deleting => self.is_gone(snap).then_some(SnapChange::Gone { id }),
            SnapState::Logged => self.is_emptied(snap).then_some(SnapChange::Emptied { id }),
        }
    }

    /// R27: every member that is in sync, and was listed, has logged it, and there is one.
    fn is_logged(&self, snap: &Snap) -> bool {
        let mut holders = self.in_sync();
        holders.retain(|rid| snap.members.contains(rid) && !snap.without.contains(rid));
        !holders.is_empty() && holders.iter().all(|rid| snap.done.contains(rid))
    }

    /// Its data is to go, and is gone at every listed member that has not left the record.
    fn is_emptied(&self, snap: &Snap) -> bool {
        let away = |rid: &Rid| self.config.broken.is(Mutation::DestroyForgetsAway) && !self.obeys(*rid);
        let left = |rid: &Rid| snap.has_done(*rid) || self.rec().replica(*rid).is_none() || away(rid);
        snap.data == SnapData::Going && snap.members.iter().all(left)
    }

    /// Every listed member has removed its image, or has left the record.
    fn is_gone(&self, snap: &Snap) -> bool {
        snap.members.iter().all(|rid| snap.done.contains(rid) || self.rec().replica(*rid).is_none())
    }

    /// What a change makes of the record's own words.
    pub(super) fn count_snaps(&self, change: &SnapChange, record: &mut Record) {
        match change {
            SnapChange::Taken(taken) => {
                record.snaps.count = record.snaps.count.saturating_add(1);
                record.snaps.newest = Some(taken.id);
            }
            SnapChange::Gone { id } => {
                record.snaps.count = record.snaps.count.saturating_sub(1);
                if record.snaps.newest == Some(*id) || record.snaps.count == 0 {
                    let left = self.snaps.all.iter().filter(|(other, _)| *other != id);
                    let newest = left.max_by_key(|(_, snap)| (snap.generation, snap.attempt));
                    record.snaps.newest = newest.map(|(id, _)| *id).filter(|_| record.snaps.count > 0);
                }
            }
            SnapChange::Logged { .. }
            | SnapChange::Deleting { .. }
            | SnapChange::Destroyed { .. }
            | SnapChange::Emptied { .. }
            | SnapChange::Changed { .. }
            | SnapChange::Added { .. } => {}
        }
    }

    /// A swap of a key other than a new one is known to have been applied.
    pub(super) fn snap_changed(&mut self, change: &SnapChange) {
        let id = change.id();
        if self.snaps.changes.front() == Some(change) {
            self.snaps.changes.pop_front();
        }
        match change {
            SnapChange::Taken(_) => {}
            SnapChange::Logged { .. } => {
                if let Some(snap) = self.snaps.all.get_mut(&id) {
                    snap.state = SnapState::Logged;
                }
                self.tell_taken(id);
            }
            SnapChange::Deleting { .. } => {
                if let Some(mut snap) = self.snaps.all.remove(&id) {
                    if snap.asked.take().is_some() {
                        let why = SnapFailure::Waits("its deletion".to_string());
                        self.events.push_back(Event::SnapshotFailed { id, why });
                    }
                    snap.state = SnapState::Deleting;
                    (snap.done, snap.without, snap.sent, snap.hold) =
                        (Vec::new(), Vec::new(), Vec::new(), None);
                    self.snaps.insert(id, snap);
                }
                self.events.push_back(Event::SnapshotDeleting { id });
            }
            SnapChange::Destroyed { .. } | SnapChange::Emptied { .. } => {
                if let Some(mut snap) = self.snaps.all.remove(&id) {
                    snap.data = match change {
                        SnapChange::Destroyed { .. } if snap.data == SnapData::Kept => SnapData::Going,
                        SnapChange::Emptied { .. } => SnapData::Gone,
                        _ => snap.data,
                    };
                    self.snaps.insert(id, snap);
                }
                self.events.push_back(Event::SnapshotDestroyed { id });
            }
            SnapChange::Gone { .. } => {
                self.snaps.unfinished.retain(|other| *other != id);
                self.snaps.all.remove(&id);
                self.events.push_back(Event::SnapshotGone { id });
            }
            SnapChange::Changed { .. } => self.events.push_back(Event::SnapshotChanged { id }),
            SnapChange::Added { rid, .. } => {
                if let Some(snap) = self.snaps.all.get_mut(&id) {
                    if !snap.members.contains(rid) {
                        snap.members.push(*rid);
                    }
                    snap.without.retain(|other| other != rid);
                    if !snap.done.contains(rid) && !self.config.broken.is(Mutation::SnapCopyUnlogged) {
                        snap.done.push(*rid);
                    }
                }
                self.added(id, *rid);
            }
        }
        (self.snaps.look, self.progressed) = (true, true);
    }

    // ---- who is needed

    /// Would a snapshot be without an image if this replica left the record? None: not known yet.
    pub(super) fn holds_last_image(&self, rid: Rid) -> Option<bool> {
        if self.rec().snaps.count > 0 && !self.snaps.told {
            return None;
        }
        let mut waits = false;
        for snap in self.snaps.all.values() {
            if snap.state == SnapState::Deleting
                || !snap.members.contains(&rid)
                || snap.without.contains(&rid)
            {
                continue;
            }
            let stays = |other: &&Rid| {
                let out = |s| matches!(s, ReplicaState::Removing | ReplicaState::Quarantined);
                **other != rid && self.rec().replica(**other).is_some_and(|e| !out(e.state))
            };
            let others: Vec<Rid> = snap.members.iter().filter(stays).copied().collect();
            if others.iter().any(|other| snap.done.contains(other)) {
                continue;
            }
            // One that is there has yet to say that it has logged it.
            if !others.iter().any(|other| self.obeys(*other) && !snap.is_over(*other)) {
                return Some(true);
            }
            waits = true;
        }
        (!waits).then_some(false)
    }

    pub(super) fn forget_snaps(&mut self) {
        self.snaps = Snaps::default();
    }
}

impl SnapChange {
    /// Which snapshot's key.
    #[must_use]
    pub fn id(&self) -> SnapId {
        match self {
            SnapChange::Taken(taken) => taken.id,
            SnapChange::Logged { id }
            | SnapChange::Deleting { id }
            | SnapChange::Gone { id }
            | SnapChange::Destroyed { id }
            | SnapChange::Emptied { id }
            | SnapChange::Changed { id }
            | SnapChange::Added { id, .. } => *id,
        }
    }
}

impl Snap {
    /// Is this step still what it waits for?
    fn awaits(&self, step: SnapStep) -> bool {
        match self.state {
            SnapState::Taken => step == SnapStep::Ready,
            SnapState::Logged => {
                step == SnapStep::Ready || step == SnapStep::Destroy && self.data == SnapData::Going
            }
            SnapState::Deleting => step == SnapStep::Delete,
        }
    }

    /// Who has done this step, or has nothing to do it for.
    fn steps_done(&mut self, step: SnapStep) -> &mut Vec<Rid> {
        if step == SnapStep::Destroy { &mut self.emptied } else { &mut self.done }
    }

    /// Has this member nothing to do any more, nor its data to destroy?
    fn has_done(&self, rid: Rid) -> bool {
        let keeps = self.state == SnapState::Logged
            && self.data == SnapData::Going
            && self.done.contains(&rid)
            && !self.emptied.contains(&rid);
        self.is_over(rid) && !keeps
    }

    /// Has this member logged it, or removed it?
    fn is_over(&self, rid: Rid) -> bool {
        self.done.contains(&rid) || self.without.contains(&rid)
    }
}
