//! The room in a pool's file system, and who may still take some of it.
//!
//! ```text
//! plenty ──95 %──▶ low ──98 %, or it would be passed──▶ full ──below 97 %──▶ low ──below 94 %──▶ plenty
//! ```
//!
//! Must always hold:
//! * what was granted is counted until a look has shown it that began after it had ended: what happens between two looks
//!   can't pass the mark;
//! * what gives room back, and what the log, a checkpoint, a seal or a deletion needs, is never asked about here: the last
//!   2 % are theirs (R20).

use std::collections::BTreeMap;

use weft_proto::log::ReplicaKey;

/// From here on somebody should make room, in percent of the file system.
pub const LOW_PERCENT: u64 = 95;
/// Nothing that may need room passes this.
pub const FULL_PERCENT: u64 = 98;
/// A full pool goes on below this.
pub const GO_ON_PERCENT: u64 = 97;
/// A low one is no longer low below this.
const PLENTY_PERCENT: u64 = 94;

/// How full a pool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// Nobody has to do anything.
    #[default]
    Plenty,
    /// At 95 % or above.
    Low,
    /// At 98 %, and not yet below 97 % again: what may need room is refused.
    Full,
}

/// Who takes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Taker {
    /// A job's piece at this block.
    Piece(u64, u64),
    /// A segment that gets its files.
    Segment(ReplicaKey, u32),
    /// An op of the caller.
    Op(u64),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Room {
    /// False: whoever asks gets it.
    gated: bool,
    free: u64,
    total: u64,
    taken: BTreeMap<Taker, u64>,
    /// The sum of `taken`.
    flying: u64,
    /// Taken by what has ended since the look under way began, or since the last one.
    landed: u64,
    /// Taken by what had ended before the look under way began.
    before: u64,
    looking: Option<u64>,
    wants_look: bool,
    fill: Fill,
    refused: u64,
}

impl Room {
    pub(super) fn new(gated: bool, (free, total): (u64, u64)) -> Room {
        let mut room = Room {
            gated,
            free,
            total,
            taken: BTreeMap::new(),
            flying: 0,
            landed: 0,
            before: 0,
            looking: None,
            wants_look: false,
            fill: Fill::Plenty,
            refused: 0,
        };
        room.judge();
        room
    }

    /// May so many bytes be taken? They are counted until [`Room::end`].
    pub(super) fn take(&mut self, taker: Taker, bytes: u64) -> bool {
        if bytes == 0 || !self.gated || self.total == 0 {
            return true;
        }
        let granted = self.reserve(taker, bytes);
        if !granted {
            // The count may be above the truth, as where a shared block is written twice.
            self.wants_look |= self.fill != Fill::Full;
            self.fill = Fill::Full;
        }
        granted
    }

    /// The same for somebody whose wish says nothing about others': the pool is not full because of it.
    pub(super) fn reserve(&mut self, taker: Taker, bytes: u64) -> bool {
        if !self.gated || self.total == 0 {
            return true;
        }
        let left = self.free.saturating_sub(self.flying + self.landed + self.before);
        if self.fill == Fill::Full || left < bytes.saturating_add(self.part(100 - FULL_PERCENT)) {
            self.refused += 1;
            return false;
        }
        self.flying += bytes;
        *self.taken.entry(taker).or_default() += bytes;
        true
    }

    /// Who took room is done, however it ended.
    pub(super) fn end(&mut self, taker: Taker) {
        if let Some(bytes) = self.taken.remove(&taker) {
            self.flying -= bytes;
            self.landed += bytes;
        }
    }

    /// A look at the file system begins.
    pub(super) fn look_begins(&mut self, token: u64) {
        if self.looking.is_none() {
            self.looking = Some(token);
            self.before = core::mem::take(&mut self.landed);
        }
    }

    /// What it has found.
    pub(super) fn looked(&mut self, token: u64, found: Option<(u64, u64)>) {
        if self.looking != Some(token) {
            return;
        }
        self.looking = None;
        let before = core::mem::take(&mut self.before);
        match found {
            Some(found) => {
                (self.free, self.total) = found;
                self.judge();
            }
            None => self.landed += before,
        }
    }

    /// The file system itself has refused: unless that was a quota, the pool is full.
    pub(super) fn met_the_end(&mut self) {
        self.wants_look |= self.fill != Fill::Full;
        if self.gated && self.total > 0 && self.free <= self.part(100 - GO_ON_PERCENT) {
            self.fill = Fill::Full;
        }
    }

    pub(super) fn fill(&self) -> Fill {
        self.fill
    }

    /// How often room was refused.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    /// Is a look wanted before the next one is due? Said once.
    pub(super) fn take_wants_look(&mut self) -> bool {
        core::mem::take(&mut self.wants_look)
    }

    fn judge(&mut self) {
        let at_least = |percent: u64| self.total > 0 && self.free <= self.part(100 - percent);
        self.fill = if at_least(FULL_PERCENT) || self.fill == Fill::Full && at_least(GO_ON_PERCENT) {
            Fill::Full
        } else if at_least(LOW_PERCENT) || self.fill != Fill::Plenty && at_least(PLENTY_PERCENT) {
            Fill::Low
        } else {
            Fill::Plenty
        };
    }

    fn part(&self, percent: u64) -> u64 {
        self.total / 100 * percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: u64 = 1000 << 20;
    const PERCENT: u64 = TOTAL / 100;

    fn room(free_percent: u64) -> Room {
        Room::new(true, (free_percent * PERCENT, TOTAL))
    }

    fn look(room: &mut Room, token: u64, free: u64) -> Fill {
        room.look_begins(token);
        room.looked(token, Some((free, TOTAL)));
        room.fill()
    }

    #[test]
    fn low_and_full_begin_and_end_at_different_marks() {
        let mut room = room(6);
        assert_eq!(room.fill(), Fill::Plenty);
        let fills = [5, 6, 7, 5, 2, 3, 1, 3, 4, 6, 3, 2, 100];
        let found =
            fills.map(|percent| look(&mut room, percent, percent * PERCENT + u64::from(percent == 7)));
        use Fill::{Full, Low, Plenty};
        assert_eq!(found, [Low, Low, Plenty, Low, Full, Full, Full, Full, Low, Low, Low, Full, Plenty]);
    }

    /// 4 % are free: between two looks 2 % may be taken, no more, whether that has ended or not.
    #[test]
    fn what_is_taken_between_two_looks_cannot_pass_the_mark() {
        let mut room = room(4);
        assert_eq!(room.fill(), Fill::Low);
        let piece = PERCENT / 4;
        for op in 0..8 {
            assert!(room.take(Taker::Op(op), piece), "{op}: {room:?}");
            if op % 2 == 0 {
                room.end(Taker::Op(op));
            }
        }
        assert!(!room.take(Taker::Op(8), 4096), "{room:?}");
        assert!(room.take(Taker::Op(9), 0), "what takes nothing goes on");
        assert_eq!((room.fill(), room.refused()), (Fill::Full, 1));
        assert!(room.take_wants_look() && !room.take_wants_look());
    }

    /// A look shows what had ended before it began; what ended while it was made may be missing in it.
    #[test]
    fn what_a_look_may_have_missed_is_still_counted_after_it() {
        let mut room = room(4);
        assert!(room.take(Taker::Op(1), PERCENT) && room.take(Taker::Op(2), PERCENT / 2));
        room.end(Taker::Op(1));
        room.look_begins(10);
        room.end(Taker::Op(2));
        assert!(!room.take(Taker::Op(3), PERCENT), "counted while the look is made: {room:?}");
        room.looked(11, Some((TOTAL, TOTAL)));
        assert!(!room.take(Taker::Op(3), PERCENT), "not the look that counts");
        room.looked(10, Some((4 * PERCENT, TOTAL)));
        assert!(room.take(Taker::Op(3), PERCENT), "the first is in what was found: {room:?}");
        assert!(room.take(Taker::Op(4), PERCENT / 2));
        assert!(!room.take(Taker::Op(5), 4096), "the second is not: {room:?}");
        room.look_begins(12);
        room.looked(12, None);
        assert!(!room.take(Taker::Op(5), 4096), "a look that failed shows nothing: {room:?}");
    }

    #[test]
    fn a_quota_that_is_exhausted_makes_no_pool_full() {
        let mut room = room(50);
        room.met_the_end();
        assert_eq!(room.fill(), Fill::Plenty);
        let mut room = self::room(3);
        room.met_the_end();
        assert_eq!(room.fill(), Fill::Full);
    }

    #[test]
    fn a_wish_for_more_than_there_is_makes_no_pool_full() {
        let mut room = room(50);
        assert!(!room.reserve(Taker::Op(1), 49 * PERCENT) && room.reserve(Taker::Op(2), 48 * PERCENT));
        assert_eq!(room.fill(), Fill::Plenty);
        assert!(!room.take(Taker::Piece(1, 0), 4096));
        assert_eq!(room.fill(), Fill::Full, "a guest's does");
    }

    #[test]
    fn without_a_gate_everything_is_granted() {
        let mut room = Room::new(false, (0, TOTAL));
        assert!(room.take(Taker::Op(1), TOTAL));
        let mut unknown = Room::new(true, (0, 0));
        assert!(unknown.take(Taker::Op(1), TOTAL) && unknown.fill() == Fill::Plenty);
    }
}
