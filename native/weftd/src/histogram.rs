//! How long a volume's guests waited, told in histograms.
//!
//! Must always hold:
//! * the bounds are the same in every release: histograms of different times and hosts can be added;
//! * what a volume's limits made a guest wait is never called a stall.

use std::collections::BTreeMap;

use weft_control::types::{Decimal, GuestWaits, Histogram as Told};
use weft_proto::guest::{GuestOp, GuestReply, RequestId};
use weft_proto::ids::Instant;

/// The first bound is 2^4 µs, the last one 2^26 µs.
const FIRST: u32 = 4;
const LAST: u32 = 26;
/// One for each bound, and one for what is above the last.
const BUCKETS: usize = 4 * (LAST - FIRST) as usize + 2;
/// A guest that waits so long notices.
const STALL_US: u64 = 100_000;

/// Durations, counted by their length: four bounds to each doubling from 16 µs on.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    sum_us: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: [0; BUCKETS], sum_us: 0 }
    }
}

impl Histogram {
    /// One more.
    pub fn count(&mut self, us: u64) {
        self.counts[Histogram::bucket(us)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// As it is told.
    #[must_use]
    pub fn told(&self) -> Told {
        let mut told = Told { sum_us: Decimal(self.sum_us), ..Told::default() };
        told.count = Decimal(self.counts.iter().sum());
        for (index, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            if let Some(bound) = Histogram::bound(index) {
                told.le_us.push(bound);
                told.counts.push(Decimal(*count));
            }
        }
        told
    }

    fn bucket(us: u64) -> usize {
        let below = us.saturating_sub(1).max(1);
        let power = below.ilog2();
        if power < FIRST {
            return 0;
        }
        if power >= LAST {
            return BUCKETS - 1;
        }
        let quarter = usize::try_from(below >> (power - 2) & 3).expect("below four");
        1 + 4 * (power - FIRST) as usize + quarter
    }

    /// None for what is above all bounds.
    fn bound(index: usize) -> Option<u32> {
        let Some(index) = u32::try_from(index).expect("there are few").checked_sub(1) else {
            return Some(1 << FIRST);
        };
        let power = FIRST + index / 4;
        (power < LAST).then(|| (5 + index % 4) << (power - 2))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Trim,
    Other,
}

/// A request that the session has.
#[derive(Clone, Copy, Debug)]
struct Open {
    kind: Kind,
    arrived: Instant,
    submitted: Instant,
}

/// What the guests of a volume waited for since its session was opened.
#[derive(Debug, Default)]
pub struct Waits {
    open: BTreeMap<RequestId, Open>,
    reads: Histogram,
    writes: Histogram,
    stalls: Histogram,
    limited: Histogram,
    trims: u64,
    gap_ms_max: u64,
    /// Since when nothing was answered that could have been.
    quiet_since: Instant,
}

impl Waits {
    /// A request goes to the session; it came to this host at `arrived`.
    pub fn begin<P>(&mut self, now: Instant, arrived: Instant, id: RequestId, op: &GuestOp<P>) {
        let kind = match op {
            GuestOp::Read { .. } => Kind::Read,
            GuestOp::Write { .. } => Kind::Write,
            GuestOp::Zero { .. } => Kind::Trim,
            GuestOp::Flush | GuestOp::Kinds { .. } | GuestOp::Changed { .. } => Kind::Other,
        };
        if now > arrived {
            self.limited.count(us_since(now, arrived));
        }
        if self.open.is_empty() {
            self.quiet_since = now;
        }
        self.open.insert(id, Open { kind, arrived, submitted: now });
    }

    /// Its answer.
    pub fn end<P>(&mut self, now: Instant, id: RequestId, reply: &GuestReply<P>) {
        let Some(open) = self.open.remove(&id) else { return };
        self.gap_ms_max = self.gap_ms_max.max(now.ms_since(self.quiet_since));
        self.quiet_since = now;
        let stalled = us_since(now, open.submitted);
        if stalled >= STALL_US {
            self.stalls.count(stalled);
        }
        if matches!(reply, GuestReply::Failed(_)) {
            return;
        }
        let seen = us_since(now, open.arrived);
        match open.kind {
            Kind::Read => self.reads.count(seen),
            Kind::Write => self.writes.count(seen),
            Kind::Trim => self.trims += 1,
            Kind::Other => {}
        }
    }

    /// Trims and zeroes that succeeded.
    #[must_use]
    pub fn trims(&self) -> u64 {
        self.trims
    }

    /// As they are told.
    #[must_use]
    pub fn told(&self, now: Instant) -> GuestWaits {
        let gap = if self.open.is_empty() { 0 } else { now.ms_since(self.quiet_since) };
        GuestWaits {
            reads: self.reads.told(),
            writes: self.writes.told(),
            stalls: self.stalls.told(),
            limited: self.limited.told(),
            gap_ms_max: Decimal(self.gap_ms_max.max(gap)),
        }
    }
}

fn us_since(now: Instant, earlier: Instant) -> u64 {
    now.0.saturating_sub(earlier.0) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_proto::guest::GuestError;
    use weft_proto::payload::HeapPayload;

    const MS: u64 = 1_000_000;

    type Op = GuestOp<HeapPayload>;
    type Reply = GuestReply<HeapPayload>;

    const READ: Op = GuestOp::Read { offset: 0, len: 4096 };
    const TRIM: Op = GuestOp::Zero { offset: 0, len: 4096, discard: true, keep_space: false, fua: false };

    #[test]
    fn bounds_are_what_they_always_were() {
        let bounds: Vec<u32> =
            (0..BUCKETS - 1).map(|index| Histogram::bound(index).expect("a bound")).collect();
        assert_eq!(bounds[..10], [16, 20, 24, 28, 32, 40, 48, 56, 64, 80]);
        assert_eq!(bounds[bounds.len() - 2..], [58_720_256, 67_108_864]);
        assert!(bounds.is_sorted_by(|a, b| a < b));
        assert_eq!(Histogram::bound(BUCKETS - 1), None);
    }

    proptest! {
        #[test]
        fn a_duration_is_counted_under_the_lowest_bound_that_it_does_not_exceed(
            us in prop_oneof![0..200u64, 0..100_000_000u64, any::<u64>()]
        ) {
            let lowest = (0..BUCKETS).find(|index| Histogram::bound(*index).is_none_or(|bound| us <= u64::from(bound)));
            prop_assert_eq!(Some(Histogram::bucket(us)), lowest);
        }

        #[test]
        fn what_is_told_adds_up(all in prop::collection::vec(0..200_000_000u64, 0..100)) {
            let mut histogram = Histogram::default();
            all.iter().for_each(|us| histogram.count(*us));
            let told = histogram.told();
            prop_assert_eq!((told.count, told.sum_us), (Decimal(all.len() as u64), Decimal(all.iter().sum())));
            let mut below = 0;
            for (bound, count) in told.le_us.iter().zip(&told.counts) {
                below += count.0;
                prop_assert!(count.0 > 0);
                prop_assert_eq!(below, all.iter().filter(|us| **us <= u64::from(*bound)).count() as u64);
            }
            let above = all.iter().filter(|us| **us > 1 << LAST).count() as u64;
            prop_assert_eq!(below + above, told.count.0);
        }
    }

    #[test]
    fn a_limit_is_in_what_the_guest_saw_and_is_no_stall() {
        let mut waits = Waits::default();
        waits.begin(Instant(5000 * MS), Instant(0), RequestId(1), &READ);
        waits.end(Instant(5001 * MS), RequestId(1), &Reply::Done);
        let told = waits.told(Instant(9000 * MS));
        assert_eq!((told.reads.le_us, told.reads.sum_us), (vec![5_242_880], Decimal(5_001_000)));
        assert_eq!((told.limited.le_us, told.limited.sum_us), (vec![5_242_880], Decimal(5_000_000)));
        assert_eq!((told.stalls.count, told.gap_ms_max), (Decimal(0), Decimal(1)));
    }

    #[test]
    fn a_stall_counts_whatever_it_is_that_waits_and_a_gap_also_before_its_end() {
        let mut waits = Waits::default();
        waits.begin(Instant(0), Instant(0), RequestId(1), &Op::Flush);
        waits.begin(Instant(0), Instant(0), RequestId(2), &TRIM);
        waits.begin(Instant(0), Instant(0), RequestId(3), &READ);
        assert_eq!(
            waits.told(Instant(700 * MS)).gap_ms_max,
            Decimal(700),
            "nothing has been answered for so long"
        );
        waits.end(Instant(900 * MS), RequestId(1), &Reply::Done);
        waits.end(Instant(1000 * MS), RequestId(2), &Reply::Done);
        waits.end(Instant(1099 * MS), RequestId(3), &Reply::Failed(GuestError::Waiting));
        let told = waits.told(Instant(60_000 * MS));
        assert_eq!(told.stalls.counts.iter().map(|count| count.0).sum::<u64>(), 3);
        assert_eq!((told.gap_ms_max, waits.trims()), (Decimal(900), 1));
        assert_eq!(told.reads.count, Decimal(0), "one that failed took no time");
    }

    /// Requests of whom nobody heard again, and answers to nobody.
    #[test]
    fn an_answer_counts_once() {
        let mut waits = Waits::default();
        waits.begin(Instant(0), Instant(0), RequestId(1), &READ);
        for _ in 0..2 {
            waits.end(Instant(MS), RequestId(1), &Reply::Done);
        }
        waits.end(Instant(MS), RequestId(2), &Reply::Done);
        assert_eq!(waits.told(Instant(MS)).reads.count, Decimal(1));
    }
}
