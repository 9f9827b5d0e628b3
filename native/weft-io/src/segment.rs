//! One open segment of a replica: who works on which blocks, and what has to be made durable.
//!
//! Must always hold:
//! * of two overlapping pieces of which one writes, the one that came first ends before the other starts;
//! * a piece that waits is not overtaken by a later one that overlaps it;
//! * whoever asks for durability is told after a flush that *started* after he asked.

use std::collections::VecDeque;

use crate::driver::Errno;
use crate::sidecar::Sidecar;
use crate::store::Place;

/// A stretch of blocks `lo..hi` of a segment that a job works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) job: u64,
    pub(crate) segment: u32,
    pub(crate) lo: u32,
    pub(crate) hi: u32,
    /// Changes the blocks, or what is known of them.
    pub(crate) exclusive: bool,
}

impl Piece {
    fn conflicts(&self, other: &Piece) -> bool {
        (self.exclusive || other.exclusive) && self.lo < other.hi && other.lo < self.hi
    }
}

/// Who waits for durability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// A piece that goes on after it.
    Piece(Piece),
    /// A job that counts it.
    Job(u64),
    /// Nobody: it is done for its own sake.
    Nobody,
}

/// Flushes in turn: those who ask while one runs wait for the next.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    pub(crate) running: bool,
    now: Vec<Waiter>,
    next: Vec<Waiter>,
    /// Writes of this round that have not ended.
    pub(crate) writes: usize,
    pub(crate) error: Option<Errno>,
}

impl Rounds {
    pub(crate) fn ask(&mut self, waiter: Waiter) {
        self.next.push(waiter);
    }

    /// True if a round starts now.
    pub(crate) fn start(&mut self) -> bool {
        if self.running || self.next.is_empty() {
            return false;
        }
        self.now = core::mem::take(&mut self.next);
        self.running = true;
        true
    }

    /// The round is over: whom to tell.
    pub(crate) fn end(&mut self) -> Vec<Waiter> {
        self.running = false;
        core::mem::take(&mut self.now)
    }

    /// There will be no other round: whom to tell, those who wait for the next included.
    pub(crate) fn end_all(&mut self) -> Vec<Waiter> {
        let mut all = self.end();
        all.append(&mut self.next);
        all
    }

    pub(crate) fn is_idle(&self) -> bool {
        !self.running && self.next.is_empty()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Segment {
    /// Data and sidecar; none while they are being opened.
    pub(crate) files: Option<(Place, Place)>,
    pub(crate) sidecar: Sidecar,
    held: Vec<Piece>,
    waiting: VecDeque<Piece>,
    /// Writes that asked for no durability have ended since the last flush began.
    pub(crate) unsynced: bool,
    pub(crate) data_rounds: Rounds,
    pub(crate) side_rounds: Rounds,
    /// Higher is later.
    pub(crate) used: u64,
}

impl Segment {
    /// True if the piece may start; otherwise it waits.
    pub(crate) fn enter(&mut self, piece: Piece) -> bool {
        let blocked = self.files.is_none()
            || self.held.iter().any(|other| other.conflicts(&piece))
            || self.waiting.iter().any(|other| other.conflicts(&piece));
        if blocked {
            self.waiting.push_back(piece);
        } else {
            self.held.push(piece);
        }
        !blocked
    }

    /// The piece has ended.
    pub(crate) fn leave(&mut self, piece: &Piece) {
        let place = self.held.iter().position(|held| held == piece);
        self.held.swap_remove(place.expect("a piece that ends has started"));
    }

    /// The next waiting piece that may start, which then has.
    pub(crate) fn next_startable(&mut self) -> Option<Piece> {
        self.files.as_ref()?;
        let free = |at: usize, piece: &Piece| {
            !self.held.iter().any(|other| other.conflicts(piece))
                && !self.waiting.iter().take(at).any(|other| other.conflicts(piece))
        };
        let at = self.waiting.iter().enumerate().position(|(at, piece)| free(at, piece))?;
        let piece = self.waiting.remove(at)?;
        self.held.push(piece);
        Some(piece)
    }

    /// The files could not be opened: all who waited.
    pub(crate) fn give_up(self) -> VecDeque<Piece> {
        self.waiting
    }

    /// Nothing works on it or waits for it; it may still have dirty pages.
    pub(crate) fn is_idle(&self) -> bool {
        self.files.is_some()
            && self.held.is_empty()
            && self.waiting.is_empty()
            && self.data_rounds.is_idle()
            && self.side_rounds.is_idle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(job: u64, lo: u32, hi: u32, exclusive: bool) -> Piece {
        Piece { job, segment: 0, lo, hi, exclusive }
    }

    #[test]
    fn overlapping_pieces_run_in_order_and_others_at_once() {
        let file = std::sync::Arc::new(std::fs::File::open("/dev/null").expect("opened").into());
        let place = Place { file, base: 0 };
        let mut segment = Segment { files: Some((place.clone(), place)), ..Segment::default() };
        let (write, read, late) = (piece(1, 0, 4, true), piece(2, 2, 6, false), piece(3, 5, 8, true));
        assert!(segment.enter(write));
        assert!(!segment.enter(read), "the write comes first");
        assert!(!segment.enter(late), "the waiting read is not overtaken");
        assert!(segment.enter(piece(4, 8, 9, true)) && segment.enter(piece(5, 9, 12, false)));
        assert!(segment.enter(piece(6, 10, 12, false)), "reads share");
        assert_eq!(segment.next_startable(), None);
        segment.leave(&write);
        assert_eq!(segment.next_startable(), Some(read));
        assert_eq!(segment.next_startable(), None);
        segment.leave(&read);
        assert_eq!(segment.next_startable(), Some(late));
    }

    #[test]
    fn who_asks_during_a_round_waits_for_the_next() {
        let mut rounds = Rounds::default();
        assert!(!rounds.start());
        rounds.ask(Waiter::Job(1));
        assert!(rounds.start());
        rounds.ask(Waiter::Job(2));
        assert!(!rounds.start() && !rounds.is_idle());
        assert_eq!(rounds.end(), vec![Waiter::Job(1)]);
        assert!(rounds.start());
        assert_eq!((rounds.end(), rounds.is_idle()), (vec![Waiter::Job(2)], true));
    }
}
