//! What a guest would have felt, per window between two marks.
//!
//! * `unanswered_ms`: the longest time that one request was without an answer;
//! * `silence_ms`: the longest time between two good answers, the time without a connection included, pauses that were
//!   commanded not;
//! * `stall_ms`: the larger of the two.
//!
//! Must always hold: a time counts with its whole length in every window that it touches (in a window that ends in the
//! middle of it, as much as has passed by then): a mark set during a stall hides nothing.

use serde::Serialize;

/// A window that is open.
#[derive(Clone, Debug)]
pub struct Window {
    name: String,
    from: u64,
    counts: Counts,
    unanswered_ns: u64,
    silence_ns: u64,
    latencies_ns: Vec<u64>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Writes acknowledged.
    pub writes: u64,
    /// Reads answered.
    pub reads: u64,
    /// Flushes answered.
    pub flushes: u64,
    /// Trims and writes of zeroes acknowledged.
    pub zeroes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Writes and zeroes of which nobody knows what became.
    pub unknown: u64,
    /// Connections lost or given up.
    pub lost_connections: u64,
}

/// A window's figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Its name: that of the mark it began with.
    pub name: String,
    /// When it began, in milliseconds of the run.
    pub from_ms: f64,
    /// When it ended.
    pub to_ms: f64,
    /// What was counted.
    #[serde(flatten)]
    pub counts: Counts,
    /// Requests without an answer at its end.
    pub outstanding: u64,
    /// See the module.
    pub stall_ms: f64,
    /// See the module.
    pub unanswered_ms: f64,
    /// See the module.
    pub silence_ms: f64,
    /// Of answered requests.
    pub p50_ms: f64,
    /// Of answered requests.
    pub p95_ms: f64,
    /// Of answered requests.
    pub max_ms: f64,
}

impl Window {
    /// Opens one.
    #[must_use]
    pub fn new(name: &str, from: u64) -> Window {
        Window {
            name: name.to_owned(),
            from,
            counts: Counts::default(),
            unanswered_ns: 0,
            silence_ns: 0,
            latencies_ns: Vec::new(),
        }
    }

    /// To count in.
    pub fn counts(&mut self) -> &mut Counts {
        &mut self.counts
    }

    /// A request was answered after so long.
    pub fn answered(&mut self, ns: u64) {
        self.latencies_ns.push(ns);
        self.unanswered(ns);
    }

    /// A request has been without an answer for so long.
    pub fn unanswered(&mut self, ns: u64) {
        self.unanswered_ns = self.unanswered_ns.max(ns);
    }

    /// There has been no good answer for so long.
    pub fn silent(&mut self, ns: u64) {
        self.silence_ns = self.silence_ns.max(ns);
    }

    /// Counts this one, which follows it, in as well.
    pub fn absorb(&mut self, later: &Window) {
        let (mine, theirs) = (&mut self.counts, &later.counts);
        mine.writes += theirs.writes;
        mine.reads += theirs.reads;
        mine.flushes += theirs.flushes;
        mine.zeroes += theirs.zeroes;
        mine.errors += theirs.errors;
        mine.unknown += theirs.unknown;
        mine.lost_connections += theirs.lost_connections;
        self.unanswered(later.unanswered_ns);
        self.silent(later.silence_ns);
        self.latencies_ns.extend(&later.latencies_ns);
    }

    /// How it stands at a moment of a run that began at `start`.
    #[must_use]
    pub fn figures(&self, start: u64, now: u64, outstanding: u64) -> Figures {
        let mut sorted = self.latencies_ns.clone();
        sorted.sort_unstable();
        let rank = |percent: usize| {
            let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(at).copied().map_or(0.0, ms)
        };
        Figures {
            name: self.name.clone(),
            from_ms: ms(self.from - start),
            to_ms: ms(now - start),
            counts: self.counts,
            outstanding,
            stall_ms: ms(self.unanswered_ns.max(self.silence_ns)),
            unanswered_ms: ms(self.unanswered_ns),
            silence_ms: ms(self.silence_ns),
            p50_ms: rank(50),
            p95_ms: rank(95),
            max_ms: rank(100),
        }
    }
}

/// Milliseconds with three digits.
#[must_use]
pub fn ms(ns: u64) -> f64 {
    (ns / 1000) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_ranks_and_longest_times() {
        let mut window = Window::new("fault", 1_000_000);
        for n in 1..=100 {
            window.answered(n * 1_000_000);
        }
        window.silent(250_000_000);
        window.counts().writes = 100;
        let mut all = Window::new("all", 0);
        all.absorb(&window);
        all.absorb(&Window::new("empty", 0));
        for w in [&window, &all] {
            let f = w.figures(0, 3_000_000, 2);
            assert_eq!((f.p50_ms, f.p95_ms, f.max_ms), (50.0, 95.0, 100.0));
            assert_eq!((f.stall_ms, f.unanswered_ms, f.silence_ms), (250.0, 100.0, 250.0));
            assert_eq!((f.counts.writes, f.outstanding, f.to_ms), (100, 2, 3.0));
        }
        assert_eq!(Window::new("empty", 0).figures(0, 0, 0).max_ms, 0.0);
    }
}
