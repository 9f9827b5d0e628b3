//! Images that a member got later (protocol.md 4.19): a member that was away when a snapshot was taken, or came after it,
//! has all of it from others by now, and is put on the snapshot's list.
//!
//! ```text
//! asked ──▶ the member logs READY ──▶ swap: members += rid ──▶ told
//!              └──▶ it has not all of it, is not in sync, is silent ──▶ told why not
//! ```
//!
//! Must always hold:
//! * a member is listed once it has logged READY, not before: a repair of the store makes the list from what is logged, and
//!   whoever is listed may be the last one that has the image (R27, R15);
//! * a snapshot that is not there yet, or goes, gets no more members.

use super::peer::Purpose;
use super::snaps::{SnapChange, SnapState, SnapStep, SnapWork, Snaps};
use super::{Event, Session};
use crate::ids::{Instant, Rid, SnapId};
use crate::message::{Ask, Refusal};
use crate::mutants::Mutation;
use crate::payload::Payload;

/// So long a member is asked.
const ASK_MS: u64 = 10_000;

/// Why a member is not on a snapshot's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdded {
    /// The volume has no such snapshot, or it is not there yet, or being deleted.
    NoSnapshot,
    /// That member has not all of it.
    NoImage,
    /// The record has no such member that is in sync.
    NotInSync,
    /// It could not log it, or did not answer.
    Silent,
}

/// A member that is to be listed.
#[derive(Debug)]
pub(super) struct Adding {
    id: SnapId,
    rid: Rid,
    until: Instant,
    sent: bool,
    hold: Option<Instant>,
    /// It has logged READY: the swap is asked for.
    logged: bool,
}

impl<P: Payload> Session<P> {
    /// Puts a member that has all of a snapshot on its list. Answered by [`Event::SnapshotCopyAdded`], unless the session ends
    /// before; done if it is listed.
    pub fn add_snapshot_copy(&mut self, now: Instant, id: SnapId, rid: Rid) {
        let known = |adding: &Adding| (adding.id, adding.rid) == (id, rid);
        if !self.snaps.adding.iter().any(known) {
            let until = now.after_ms(ASK_MS);
            self.snaps.adding.push(Adding { id, rid, until, sent: false, hold: None, logged: false });
        }
        self.maintain(now);
    }

    /// Has each member that is to be listed log READY; who has is listed by a swap.
    pub(super) fn drive_adding(&mut self, now: Instant) {
        if self.snaps.adding.is_empty() || !self.snaps.are_told() {
            return;
        }
        let in_sync = self.in_sync();
        for mut adding in core::mem::take(&mut self.snaps.adding) {
            let (id, rid) = (adding.id, adding.rid);
            let snap = self.snaps.list_of(id, rid);
            let ends = match snap {
                Some((SnapState::Logged, _, has)) if has => Some(Ok(())),
                Some((SnapState::Logged, ..)) if adding.logged => None,
                Some((SnapState::Logged, ..)) if !in_sync.contains(&rid) => Some(Err(NotAdded::NotInSync)),
                Some((SnapState::Logged, ..)) => (now >= adding.until).then_some(Err(NotAdded::Silent)),
                _ => Some(Err(NotAdded::NoSnapshot)),
            };
            if let Some(outcome) = ends {
                self.events.push_back(Event::SnapshotCopyAdded { id, rid, outcome });
                continue;
            }
            let due = !adding.sent && !adding.logged && adding.hold.is_none_or(|at| now >= at);
            if let Some((_, attempt, _)) = snap.filter(|_| due) {
                if self.config.broken.is(Mutation::SnapCopyUnlogged) {
                    adding.logged = true;
                    self.snaps.changes.push_back(SnapChange::Added { id, rid });
                } else if self.obeys(rid) {
                    adding.sent = true;
                    let note = self.snaps.note_of(id);
                    let work = SnapWork { step: SnapStep::Add, id, attempt };
                    self.send(now, rid, Purpose::Snap(work), Ask::SnapReady { id, attempt, note });
                }
            }
            self.snaps.adding.push(adding);
        }
    }

    /// A member that is to be listed has logged READY; or not, for this reason or none.
    pub(super) fn adding_asked(
        &mut self,
        now: Instant,
        rid: Rid,
        id: SnapId,
        outcome: Result<(), Option<Refusal>>,
    ) {
        let hold = now.after_ms(self.config.timing.heartbeat_ms);
        let Some(at) = self.snaps.adding.iter().position(|a| (a.id, a.rid) == (id, rid) && a.sent) else {
            return;
        };
        match outcome {
            Ok(()) => {
                let adding = &mut self.snaps.adding[at];
                (adding.sent, adding.logged) = (false, true);
                self.snaps.changes.push_back(SnapChange::Added { id, rid });
            }
            Err(Some(Refusal::NoSnapshot | Refusal::OutOfBounds)) => {
                self.snaps.adding.remove(at);
                let outcome = Err(NotAdded::NoImage);
                self.events.push_back(Event::SnapshotCopyAdded { id, rid, outcome });
            }
            Err(_) => {
                let adding = &mut self.snaps.adding[at];
                (adding.sent, adding.hold) = (false, Some(hold));
            }
        }
        self.progressed = true;
    }

    /// The swap that lists it can't be made any more: the record, or its snapshot, is another one by now.
    pub(super) fn not_added(&mut self, id: SnapId, rid: Rid, why: NotAdded) {
        self.snaps.end_adding(id, rid);
        self.events.push_back(Event::SnapshotCopyAdded { id, rid, outcome: Err(why) });
    }

    /// It is listed.
    pub(super) fn added(&mut self, id: SnapId, rid: Rid) {
        self.snaps.end_adding(id, rid);
        self.events.push_back(Event::SnapshotCopyAdded { id, rid, outcome: Ok(()) });
    }
}

impl Snaps {
    fn end_adding(&mut self, id: SnapId, rid: Rid) {
        self.adding.retain(|adding| (adding.id, adding.rid) != (id, rid));
    }
}
