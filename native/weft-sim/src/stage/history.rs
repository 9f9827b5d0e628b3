//! What a play looked like, step by step, and how fast its links, disks and store were.
//!
//! Must always hold: telling changes nothing; play 0 has the plot's own delays, and every number plays the same
//! play again.

use std::cell::RefCell;
use std::fmt::{self, Display, Formatter};
use std::rc::Rc;

use super::{DISK_NS, MS, NET_NS, STORE_NS};
use crate::rng::Rng;
use weft_proto::ids::{HostId, Rid};
use weft_proto::mutants::Broken;

/// Guests' requests that are told one by one before the rest of a row is only counted.
const ROW: usize = 6;

/// One performance of a plot.
#[derive(Clone, Debug, Default)]
pub struct Play {
    number: u64,
    broken: Broken,
    told: Rc<RefCell<Told>>,
    /// Of which volume it tells, if there are several.
    of: &'static str,
}

#[derive(Debug, Default)]
struct Told {
    lines: Vec<String>,
    row: usize,
}

impl Told {
    fn end_row(&mut self) {
        if self.row > ROW {
            self.lines.push(format!("{:>14}… and {} more of guests", "", self.row - ROW));
        }
        self.row = 0;
    }
}

/// A host's letter, as plots call it.
pub(super) struct Host(pub(super) HostId);

impl Display for Host {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}", self.0.0)
    }
}

impl Play {
    /// A play with delays of its own; 0 has those that the plots were written with.
    #[must_use]
    pub fn new(number: u64) -> Play {
        Play::breaking(number, Broken::default())
    }

    /// The same with a rule broken, for the gate.
    #[must_use]
    pub fn breaking(number: u64, broken: Broken) -> Play {
        Play { number, broken, told: Rc::default(), of: "" }
    }

    /// The same play, as it tells of one of several volumes.
    pub(super) fn of(&self, volume: &'static str) -> Play {
        Play { of: volume, ..self.clone() }
    }

    /// The rule that is broken in it, if any.
    #[must_use]
    pub fn broken(&self) -> Broken {
        self.broken
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What happened so far.
    #[must_use]
    pub fn history(&self) -> Vec<String> {
        self.told.borrow_mut().end_row();
        self.told.borrow().lines.clone()
    }

    pub(super) fn tell(&self, now: u64, what: impl Display) {
        let mut told = self.told.borrow_mut();
        told.end_row();
        told.lines.push(self.line(now, what));
    }

    /// Something about one request of a guest: there may be thousands.
    pub(super) fn tell_guest(&self, now: u64, what: impl Display) {
        let mut told = self.told.borrow_mut();
        told.row += 1;
        if told.row <= ROW {
            told.lines.push(self.line(now, what));
        }
    }

    /// A stage begins: its clock begins anew.
    pub(super) fn tell_stage(&self, what: impl Display) {
        let mut told = self.told.borrow_mut();
        told.end_row();
        told.lines.push(format!("  {what}"));
    }

    /// One way between two hosts. A link keeps its delay, so that nothing on it overtakes.
    pub(super) fn net(&self, from: HostId, to: HostId) -> u64 {
        if from == to { 1000 } else { self.draw(NET_NS, [1, from.0 as u64, to.0 as u64]) }
    }

    /// A request of a replica's disk.
    pub(super) fn disk(&self, rid: Rid) -> u64 {
        self.draw(DISK_NS, [2, u64::from(rid.0), 0])
    }

    /// An append to a replica's log.
    pub(super) fn log(&self, rid: Rid) -> u64 {
        self.draw(DISK_NS, [3, u64::from(rid.0), 0])
    }

    /// A call to the store, both ways.
    pub(super) fn store(&self, host: HostId) -> u64 {
        self.draw(STORE_NS, [4, host.0 as u64, 0])
    }

    /// From half to one and a half of `mean`, the same for the same `what`.
    fn draw(&self, mean: u64, what: [u64; 3]) -> u64 {
        if self.number == 0 {
            return mean;
        }
        let seed = what.iter().fold(self.number, |all, n| Rng::new(all ^ n).number());
        mean / 2 + seed % mean
    }

    fn line(&self, now: u64, what: impl Display) -> String {
        let tenths = (now - 1_000_000 * MS) / (MS / 10);
        let of = if self.of.is_empty() { String::new() } else { format!("{}: ", self.of) };
        format!("{:>8}.{} ms  {of}{what}", tenths / 10, tenths % 10)
    }
}
