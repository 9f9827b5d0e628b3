//! A deleted head: the volume lives on in its snapshots, and what only its head has is given back (docs/model.md R31).
//!
//! ```text
//! Kept ──asked: swap (epoch + 1)──▶ Releasing ──all have promised──▶ trimmed, piece by piece ──all answered: swap──▶ Released
//!   └──restored──▶ a volume as before           └──who opens it next goes on, from the beginning
//! ```
//!
//! Must always hold:
//! * only a caretaker opens such a volume; it gets no snapshot, no other size, and is not taken back to one: what it had is not
//!   to be read or written by anybody;
//! * nothing of the head goes before every in-sync member durably holds the record that says so: no repair of the store makes
//!   a head restorable of which a part is gone;
//! * what goes is trimmed as a guest would: preserved for the snapshots first (R28), stamped (R6), at every recipient.

use alloc::vec::Vec;

use super::ops::{OpId, OpKind};
use super::store::Intent;
use super::{Change, Event, Phase, Session};
use crate::ids::Instant;
use crate::message::Hole;
use crate::mutants::Mutation;
use crate::payload::Payload;
use crate::record::HeadData;

/// Trimmed at a time: a whole segment, so that its file goes at once.
const PIECE: u64 = 64 << 20;
/// Pieces under way at once.
const PIECES_MAX: usize = 4;

/// Refused: the volume has one.
pub const NOT_DELETED: &str = "its head is not deleted";
/// Refused: it has none.
pub const DELETED: &str = "its head is deleted";
/// Refused: the session ends.
pub const CLOSING: &str = "the volume is being closed";

/// How far the giving back is, in this session.
#[derive(Debug, Default)]
pub(super) struct Release {
    /// What lies below was trimmed, or is being.
    at: u64,
    open: Vec<OpId>,
}

impl<P: Payload> Session<P> {
    /// Is the volume's head deleted, as far as is known? Guests get nothing of such a volume (docs/model.md, R31).
    #[must_use]
    pub fn is_headless(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.head.is_some())
    }

    /// The swap after which what the head has may go, or why it can't be.
    pub(super) fn propose_release(&mut self, now: Instant) {
        match self.rec().head_data() {
            None => self.release_answered(Err(NOT_DELETED)),
            Some(HeadData::Kept) if !matches!(self.phase, Phase::Serving) => {
                self.release_answered(Err(CLOSING));
            }
            Some(HeadData::Kept) => self.propose(now, Intent::Head(HeadData::Releasing)),
            Some(HeadData::Releasing | HeadData::Released) => self.release_answered(Ok(())),
        }
    }

    fn release_answered(&mut self, outcome: Result<(), &'static str>) {
        self.change.pop_front();
        self.events.push_back(Event::HeadReleasing { outcome });
        self.progressed = true;
    }

    /// The swap is known to have been applied.
    pub(super) fn head_swapped(&mut self, now: Instant, data: HeadData) {
        match data {
            HeadData::Releasing if matches!(self.change.front(), Some(Change::Release)) => {
                self.release_answered(Ok(()));
            }
            HeadData::Kept | HeadData::Releasing => {}
            HeadData::Released => self.events.push_back(Event::HeadReleased),
        }
        self.demoted(now);
    }

    /// Trims what the record says is to go.
    pub(super) fn drive_release(&mut self, now: Instant) {
        if self.rec().head_data() != Some(HeadData::Releasing) {
            return self.release = None;
        }
        let told = self.everyone_obeys() || self.config.broken.is(Mutation::HeadGoesUntold);
        if !matches!(self.phase, Phase::Serving) || !told || !self.steal_wait_over(now) {
            return;
        }
        let size = self.rec().size;
        let mut release = self.release.take().unwrap_or_default();
        release.open.retain(|op| self.is_open(*op));
        while release.open.len() < PIECES_MAX && release.at < size {
            let end = size.min((release.at / PIECE + 1) * PIECE);
            let kind = OpKind::Zero { kind: Hole::Absent, keep_space: false };
            release.open.push(self.queue_op(now, None, release.at, end, kind));
            release.at = end;
        }
        self.release = Some(release);
    }

    /// The swap that says that all of it is gone, once it is.
    pub(super) fn propose_released(&mut self, now: Instant) -> bool {
        let size = self.rec().size;
        let over = |release: &Release| release.at >= size && release.open.iter().all(|op| !self.is_open(*op));
        if !matches!(self.phase, Phase::Serving) || !self.release.as_ref().is_some_and(over) {
            return false;
        }
        self.propose(now, Intent::Head(HeadData::Released));
        true
    }
}
