//! How much the guests of one volume may ask for: requests wait here, before a session hears of them.
//!
//! ```text
//!  clients ─ admit ─▶ Limiter ─ poll ─▶ session
//!                     │ one queue a client; transfers and zeroes apart
//!                     └ buckets: requests/s, bytes/s, zeroes
//! ```
//!
//! A bucket fills at its rate, up to its burst. A request goes when its bucket holds what it costs, or is full: what
//! costs more than the bucket can hold leaves a debt. Clients take turns, request by request, and nobody is passed while
//! its turn waits for a bucket that all share: a large request is never starved by small ones.
//!
//! Discards may come in storms, which must not stand in the way of reads and writes (protocol.md 4.8): they have a bucket
//! of their own, also where a volume has no limits, and transfers pass those that wait for it. While nothing else is
//! asked of the volume they go as they come.
//!
//! Must always hold:
//! * in any time t not more than `rate × t + burst` goes, where a burst is at least one request;
//! * a flush is never held, and nothing that the session has is ever waited for because of a limit: to the session a
//!   limited guest looks like one that asks for little;
//! * requests of one client go in the order of their arrival, but that flushes pass all, and transfers pass zeroes (and
//!   zeroes transfers) that they don't overlap;
//! * a change of the limits counts for what waits already.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use weft_control::types::{Decimal, VolumeLimits};
use weft_proto::guest::GuestOp;
use weft_proto::ids::Instant;
use weft_proto::payload::Payload;

use crate::errors::{Code, Failure};

/// Parts of a token: a rate times nanoseconds is a whole number of them.
const SCALE: i128 = 1_000_000_000;
/// What a bucket can hold at least, in milliseconds of its rate: the reactor may wake that late and the rate still be
/// reached.
const SLACK_MS: u64 = 20;
const IOPS_MAX: u32 = 1_000_000_000;
const BPS_MIN: u64 = 4096;
const BPS_MAX: u64 = 1 << 50;
const BURST_MAX_S: u32 = 60;
/// Bytes zeroed in a second while other requests come: 32 of the session's pieces of 64 MiB.
const ZERO_RATE: u64 = 32 * (64 << 20);
/// The least that a zeroing costs, in bytes: a small one is as much work as a small durable write.
const ZERO_LEAST: u64 = 1 << 20;
/// For so long after a transfer zeroes make room for the next one.
const BUSY_MS: u64 = 1_000;

/// Limits of a volume that make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits(VolumeLimits);

impl TryFrom<VolumeLimits> for Limits {
    type Error = Failure;

    fn try_from(told: VolumeLimits) -> Result<Limits, Failure> {
        let refuse = |field: &str, message: String| {
            Err(Failure::new(Code::BAD_VALUE, message).with("field", field.to_owned()))
        };
        let VolumeLimits { iops, bps, burst_s } = told;
        if iops.is_none() && bps.is_none() {
            let message = "limits name a number of requests a second, or of bytes, or both";
            return refuse("limits", message.to_owned());
        }
        if let Some(iops) = iops
            && !(1..=IOPS_MAX).contains(&iops)
        {
            return refuse("iops", format!("{iops} requests a second: the limit is from 1 to {IOPS_MAX}"));
        }
        if let Some(Decimal(bps)) = bps
            && !(BPS_MIN..=BPS_MAX).contains(&bps)
        {
            return refuse("bps", format!("{bps} bytes a second: the limit is from {BPS_MIN} to {BPS_MAX}"));
        }
        if burst_s > BURST_MAX_S {
            let message = format!("a burst of {burst_s} s: it is at most {BURST_MAX_S} s of the rates");
            return refuse("burst_s", message);
        }
        Ok(Limits(told))
    }
}

impl From<Limits> for VolumeLimits {
    fn from(Limits(told): Limits) -> VolumeLimits {
        told
    }
}

/// What a request costs, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    cost: Cost,
    start: u64,
    end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    Nothing,
    Transfer(u64),
    Zero(u64),
}

impl Ask {
    /// Of a guest's request.
    #[must_use]
    pub fn of<P: Payload>(op: &GuestOp<P>) -> Ask {
        let (cost, offset, len) = match op {
            GuestOp::Read { offset, len } => (Cost::Transfer(*len), *offset, *len),
            GuestOp::Write { offset, data, .. } => {
                let len = data.len() as u64;
                (Cost::Transfer(len), *offset, len)
            }
            GuestOp::Kinds { offset, len } | GuestOp::Changed { offset, len, .. } => {
                (Cost::Transfer(0), *offset, *len)
            }
            GuestOp::Zero { offset, len, .. } => (Cost::Zero((*len).max(ZERO_LEAST)), *offset, *len),
            GuestOp::Flush => (Cost::Nothing, 0, 0),
        };
        Ask { cost, start: offset, end: offset.saturating_add(len) }
    }

    fn overlaps(&self, other: &Ask) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Tokens that come at a rate.
#[derive(Debug)]
struct Bucket {
    /// Tokens a second.
    rate: u64,
    /// Tokens that it can hold.
    burst: u64,
    /// What it holds, in parts; below zero it is in debt.
    level: i128,
    at: Instant,
}

impl Bucket {
    fn full(now: Instant, rate: u64, burst: u64) -> Bucket {
        Bucket { rate, burst, level: i128::from(burst) * SCALE, at: now }
    }

    fn limited(now: Instant, rate: u64, burst_s: u32) -> Bucket {
        Bucket::full(now, rate, Bucket::burst_of(rate, burst_s))
    }

    fn burst_of(rate: u64, burst_s: u32) -> u64 {
        (rate * u64::from(burst_s)).max(rate * SLACK_MS / 1000).max(1)
    }

    fn refill(&mut self, now: Instant) {
        let came = i128::from(self.rate) * i128::from(now.0.saturating_sub(self.at.0));
        self.level = (self.level + came).min(i128::from(self.burst) * SCALE);
        self.at = self.at.max(now);
    }

    /// When it will hold so many tokens, or be full. None: now.
    fn wait(&mut self, now: Instant, cost: u64) -> Option<Instant> {
        self.refill(now);
        let missing = i128::from(cost.min(self.burst)) * SCALE - self.level;
        let missing = u128::try_from(missing).ok().filter(|missing| *missing > 0)?;
        let ns = missing.div_ceil(u128::from(self.rate));
        Some(Instant(now.0.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))))
    }

    fn take(&mut self, cost: u64) {
        self.level -= i128::from(cost) * SCALE;
    }

    /// A debt is paid in no more time than before, and in less where more comes. A larger burst is there at once: else who
    /// waits for a full bucket would wait longer after a raise.
    fn change(&mut self, now: Instant, rate: u64, burst_s: u32) {
        self.refill(now);
        if self.level < 0 && rate < self.rate {
            self.level = self.level * i128::from(rate) / i128::from(self.rate);
        }
        let before = std::mem::replace(&mut self.burst, Bucket::burst_of(rate, burst_s));
        self.rate = rate;
        // Where it is smaller now, the next refill spills what does not fit.
        self.level += i128::from(self.burst.saturating_sub(before)) * SCALE;
    }
}

/// Why a request does not go yet.
#[derive(Clone, Copy, Debug)]
enum Wait {
    /// Nothing goes before then.
    All(Instant),
    /// No zeroing goes before then.
    Zeroes(Instant),
}

#[derive(Debug)]
struct Buckets {
    iops: Option<Bucket>,
    bps: Option<Bucket>,
    zeroes: Bucket,
    /// Until then zeroes are held to their rate.
    busy_until: Instant,
}

impl Buckets {
    fn take(&mut self, now: Instant, cost: Cost) -> Result<(), Wait> {
        let (bytes, zeroed) = match cost {
            Cost::Nothing => return Ok(()),
            Cost::Transfer(bytes) => (bytes, None),
            Cost::Zero(bytes) => (0, Some(bytes).filter(|_| now < self.busy_until)),
        };
        if let Some(until) = zeroed.and_then(|bytes| self.zeroes.wait(now, bytes)) {
            return Err(Wait::Zeroes(until.min(self.busy_until)));
        }
        let requests = self.iops.as_mut().and_then(|bucket| bucket.wait(now, 1));
        let transferred = self.bps.as_mut().and_then(|bucket| bucket.wait(now, bytes));
        if let Some(until) = requests.max(transferred) {
            return Err(Wait::All(until));
        }
        if let Some(bucket) = &mut self.iops {
            bucket.take(1);
        }
        if let Some(bucket) = &mut self.bps {
            bucket.take(bytes);
        }
        match (cost, zeroed) {
            (_, Some(bytes)) => self.zeroes.take(bytes),
            (Cost::Transfer(_), None) => self.busy_until = now.after_ms(BUSY_MS),
            _ => {}
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Held<R> {
    /// Requests of a volume are numbered as they come.
    number: u64,
    ask: Ask,
    request: R,
}

/// What one client waits for, each queue in order of arrival.
#[derive(Debug)]
struct Queues<R> {
    transfers: VecDeque<Held<R>>,
    zeroes: VecDeque<Held<R>>,
}

impl<R> Queues<R> {
    /// Both queues, the one with the older head first.
    fn in_order(&self) -> [bool; 2] {
        let number = |queue: &VecDeque<Held<R>>| queue.front().map_or(u64::MAX, |held| held.number);
        let zeroes_first = number(&self.zeroes) < number(&self.transfers);
        [zeroes_first, !zeroes_first]
    }

    fn queue(&mut self, zeroes: bool) -> &mut VecDeque<Held<R>> {
        if zeroes { &mut self.zeroes } else { &mut self.transfers }
    }

    /// The oldest of a queue, if nothing older of the other one overlaps it.
    fn head(&self, zeroes: bool) -> Option<&Ask> {
        let (queue, other) =
            if zeroes { (&self.zeroes, &self.transfers) } else { (&self.transfers, &self.zeroes) };
        let head = queue.front()?;
        let mut older = other.iter().take_while(|held| held.number < head.number);
        (!older.any(|held| held.ask.overlaps(&head.ask))).then_some(&head.ask)
    }

    fn len(&self) -> usize {
        self.transfers.len() + self.zeroes.len()
    }
}

/// The requests of one volume's clients, and how many of them may go.
#[derive(Debug)]
pub struct Limiter<R> {
    buckets: Buckets,
    /// By client; only of those who wait.
    clients: BTreeMap<u32, Queues<R>>,
    /// Whose request went last: the next client is asked first.
    turn: u32,
    held: usize,
    next: u64,
    /// When to look again, while anything is held.
    due: Option<Instant>,
}

impl<R> Limiter<R> {
    /// With nothing used up.
    #[must_use]
    pub fn new(now: Instant, limits: Option<Limits>) -> Limiter<R> {
        let zeroes = Bucket::full(now, ZERO_RATE, ZERO_RATE);
        let buckets = Buckets { iops: None, bps: None, zeroes, busy_until: Instant::default() };
        let mut limiter = Limiter { buckets, clients: BTreeMap::new(), turn: 0, held: 0, next: 0, due: None };
        limiter.set(now, limits);
        limiter
    }

    /// Other limits from now on.
    pub fn set(&mut self, now: Instant, limits: Option<Limits>) {
        let VolumeLimits { iops, bps, burst_s } =
            limits.map_or(VolumeLimits { iops: None, bps: None, burst_s: 0 }, VolumeLimits::from);
        let change = |bucket: &mut Option<Bucket>, rate: Option<u64>| match (&mut *bucket, rate) {
            (Some(bucket), Some(rate)) => bucket.change(now, rate, burst_s),
            (_, rate) => *bucket = rate.map(|rate| Bucket::limited(now, rate, burst_s)),
        };
        change(&mut self.buckets.iops, iops.map(u64::from));
        change(&mut self.buckets.bps, bps.map(|Decimal(bps)| bps));
        self.due = (self.held > 0).then_some(now);
    }

    /// A client's request, given back if it may go at once.
    pub fn admit(&mut self, now: Instant, client: u32, ask: Ask, request: R) -> Option<R> {
        if ask.cost == Cost::Nothing || self.held == 0 && self.buckets.take(now, ask.cost).is_ok() {
            return Some(request);
        }
        let queues = self
            .clients
            .entry(client)
            .or_insert_with(|| Queues { transfers: VecDeque::new(), zeroes: VecDeque::new() });
        let number = self.next;
        self.next += 1;
        queues.queue(matches!(ask.cost, Cost::Zero(_))).push_back(Held { number, ask, request });
        self.held += 1;
        self.due = Some(now);
        None
    }

    /// The next request that may go.
    pub fn poll(&mut self, now: Instant) -> Option<R> {
        self.due = None;
        let mut client = self.turn;
        for _ in 0..self.clients.len() {
            let after = self.clients.range((Excluded(client), Unbounded)).next();
            client = *after.or_else(|| self.clients.iter().next())?.0;
            let queues = self.clients.get_mut(&client)?;
            for zeroes in queues.in_order() {
                let Some(ask) = queues.head(zeroes) else { continue };
                match self.buckets.take(now, ask.cost) {
                    Ok(()) => {
                        let held = queues.queue(zeroes).pop_front()?;
                        if queues.len() == 0 {
                            self.clients.remove(&client);
                        }
                        self.turn = client;
                        self.held -= 1;
                        self.due = (self.held > 0).then_some(now);
                        return Some(held.request);
                    }
                    Err(Wait::Zeroes(until)) => self.due = self.due.into_iter().chain([until]).min(),
                    Err(Wait::All(until)) => {
                        self.due = self.due.into_iter().chain([until]).min();
                        return None;
                    }
                }
            }
        }
        None
    }

    /// When [`poll`](Self::poll) is to be asked again.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Requests that wait.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// A client has gone, and what it waited for with it.
    pub fn forget(&mut self, client: u32) {
        if let Some(queues) = self.clients.remove(&client) {
            self.held -= queues.len();
            // Others may have waited for its turn.
            self.due = (self.held > 0).then_some(Instant::default());
        }
    }

    /// Everything that waits, in order of arrival, whatever it costs.
    pub fn release(&mut self) -> impl Iterator<Item = R> + use<R> {
        let queues = std::mem::take(&mut self.clients).into_values();
        let mut all: Vec<Held<R>> = queues.flat_map(|q| q.transfers.into_iter().chain(q.zeroes)).collect();
        all.sort_unstable_by_key(|held| held.number);
        self.held = 0;
        self.due = None;
        all.into_iter().map(|held| held.request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_proto::payload::HeapPayload;

    type Op = GuestOp<HeapPayload>;

    const MIB: u64 = 1 << 20;
    const SECOND: u64 = 1_000_000_000;

    fn limits(iops: Option<u32>, bps: Option<u64>, burst_s: u32) -> Option<Limits> {
        let told = VolumeLimits { iops, bps: bps.map(Decimal), burst_s };
        (iops.is_some() || bps.is_some()).then(|| Limits::try_from(told).expect("they make sense"))
    }

    fn read(offset: u64, len: u64) -> Op {
        GuestOp::Read { offset, len }
    }

    fn zero(offset: u64, len: u64) -> Op {
        GuestOp::Zero { offset, len, discard: true, keep_space: false, fua: false }
    }

    /// A limiter, its time, and what it let go.
    struct World {
        limiter: Limiter<usize>,
        now: Instant,
        /// In order of arrival: of whom, and what.
        asked: Vec<(u32, Ask)>,
        went: Vec<(Instant, usize)>,
    }

    impl World {
        fn new(limits: Option<Limits>) -> World {
            let now = Instant(5 * SECOND);
            World { limiter: Limiter::new(now, limits), now, asked: Vec::new(), went: Vec::new() }
        }

        fn ask(&mut self, client: u32, op: &Op) -> usize {
            let (number, ask) = (self.asked.len(), Ask::of(op));
            self.asked.push((client, ask));
            if let Some(number) = self.limiter.admit(self.now, client, ask, number) {
                self.went.push((self.now, number));
            }
            self.poll();
            number
        }

        /// As its owner asks it: when it is due only.
        fn poll(&mut self) {
            while self.limiter.poll_timeout().is_some_and(|due| due <= self.now)
                && let Some(number) = self.limiter.poll(self.now)
            {
                self.went.push((self.now, number));
            }
            assert_eq!(
                self.limiter.held() > 0,
                self.limiter.poll_timeout().is_some(),
                "who waits is looked after"
            );
        }

        fn set(&mut self, limits: Option<Limits>) {
            self.limiter.set(self.now, limits);
            self.poll();
        }

        /// Time passes; the limiter is woken whenever it wants to be.
        fn pass(&mut self, ns: u64) {
            let until = Instant(self.now.0 + ns);
            while let Some(due) = self.limiter.poll_timeout().filter(|due| *due <= until) {
                self.now = self.now.max(due);
                self.poll();
            }
            self.now = until;
        }

        fn has_gone(&self, number: usize) -> bool {
            self.went.iter().any(|(_, n)| *n == number)
        }

        /// Until nothing waits.
        fn drain(&mut self) {
            let mut wakes = 0;
            while let Some(due) = self.limiter.poll_timeout() {
                self.now = self.now.max(due);
                self.poll();
                wakes += 1;
                assert!(wakes <= 4 * self.asked.len(), "{} requests wait for ever", self.limiter.held());
            }
            assert_eq!(self.went.len(), self.asked.len());
        }
    }

    #[test]
    fn limits_that_make_no_sense_are_refused_by_name() {
        let told = |iops, bps: Option<u64>, burst_s| VolumeLimits { iops, bps: bps.map(Decimal), burst_s };
        for (field, wrong) in [
            ("limits", told(None, None, 1)),
            ("iops", told(Some(0), None, 1)),
            ("iops", told(Some(1_000_000_001), None, 1)),
            ("bps", told(Some(1), Some(4095), 1)),
            ("bps", told(None, Some(u64::MAX), 1)),
            ("burst_s", told(Some(1), None, 61)),
            ("burst_s", told(Some(1), None, u32::MAX)),
        ] {
            let failure = Limits::try_from(wrong).expect_err("refused");
            assert_eq!(
                (failure.code, &failure.facts["field"]),
                (Code::BAD_VALUE, &field.into()),
                "{wrong:?}"
            );
        }
        for right in
            [told(Some(1), None, 0), told(Some(1_000_000_000), Some(1 << 50), 60), told(None, Some(4096), 60)]
        {
            assert_eq!(VolumeLimits::from(Limits::try_from(right).expect("taken")), right);
        }
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut world = World::new(limits(Some(100), None, 1));
        for block in 0..1000 {
            world.ask(1, &read(block * 4096, 4096));
        }
        assert_eq!(world.went.len(), 100);
        let start = world.now;
        world.drain();
        let late = |n: usize| world.went[n].0.0 - start.0;
        assert_eq!((late(100), late(101), late(999)), (SECOND / 100, 2 * SECOND / 100, 9 * SECOND));
    }

    #[test]
    fn bytes_are_limited_beside_requests_and_a_large_request_waits_for_a_full_bucket() {
        let mut world = World::new(limits(Some(1000), Some(MIB), 2));
        let small = world.ask(1, &read(0, MIB));
        assert!(world.has_gone(small));
        let large = world.ask(1, &read(0, 32 * MIB));
        let next = world.ask(1, &read(0, 4096));
        world.pass(SECOND - 1);
        assert!(!world.has_gone(large), "one of two MiB is there");
        world.pass(1);
        assert!(world.has_gone(large), "the bucket is full");
        assert!(!world.has_gone(next));
        // The debt of 30 MiB, and what it costs itself.
        world.pass(30 * SECOND);
        assert!(!world.has_gone(next));
        world.pass(SECOND / 256);
        assert!(world.has_gone(next));
    }

    #[test]
    fn a_flush_is_never_held() {
        let mut world = World::new(limits(Some(1), Some(65_536), 0));
        for _ in 0..10 {
            world.ask(1, &read(0, MIB));
        }
        let flush = world.ask(1, &GuestOp::Flush);
        assert!(world.has_gone(flush));
        assert_eq!(world.went.len(), 2);
    }

    /// Raised, lowered or lifted: what waits already waits by the new limits.
    #[test]
    fn a_change_counts_for_what_waits() {
        let mut world = World::new(limits(Some(1), None, 0));
        for block in 0..50 {
            world.ask(1, &read(block * 4096, 4096));
        }
        world.pass(2 * SECOND);
        assert_eq!(world.went.len(), 3);
        world.set(limits(Some(10), None, 0));
        world.pass(SECOND);
        assert_eq!(world.went.len(), 13);
        world.set(limits(Some(2), None, 0));
        world.pass(SECOND);
        assert_eq!(world.went.len(), 15);
        world.set(limits(Some(2), None, 5));
        assert_eq!(world.went.len(), 24, "a larger burst is there at once");
        world.set(None);
        assert_eq!(world.went.len(), 50, "all of them at once");
    }

    /// What was saved up under a high limit does not outlive it, and a debt made under it is paid in no more time.
    #[test]
    fn a_lower_limit_starts_with_its_own_burst() {
        let mut world = World::new(limits(Some(10_000), None, 60));
        world.set(limits(Some(10), None, 1));
        for block in 0..100 {
            world.ask(1, &read(block * 4096, 4096));
        }
        assert_eq!(world.went.len(), 10);

        let mut world = World::new(limits(None, Some(100 * MIB), 0));
        world.ask(1, &read(0, 32 * MIB));
        let next = world.ask(1, &read(0, 4096));
        world.set(limits(None, Some(65_536), 0));
        world.pass(SECOND);
        assert!(world.has_gone(next), "0.3 s of debt are 0.3 s of debt");
    }

    #[test]
    fn clients_take_turns() {
        let mut world = World::new(limits(Some(10), None, 0));
        for block in 0..1000 {
            world.ask(1, &read(block * 4096, 4096));
        }
        let other: Vec<usize> = (0..3).map(|block| world.ask(2, &read(block * 4096, 4096))).collect();
        world.pass(SECOND * 6 / 10);
        assert!(other.iter().all(|number| world.has_gone(*number)), "every second one is the other client's");
    }

    #[test]
    fn small_requests_of_others_do_not_starve_a_large_one() {
        let mut world = World::new(limits(None, Some(MIB), 1));
        world.ask(1, &read(0, MIB));
        let large = world.ask(1, &read(0, 8 * MIB));
        for block in 0..10_000 {
            world.ask(2, &read(block * 4096, 4096));
        }
        world.pass(SECOND + SECOND / 100);
        assert!(world.has_gone(large));
    }

    #[test]
    fn who_goes_leaves_nothing_behind_and_makes_room() {
        let mut world = World::new(limits(None, Some(MIB), 1));
        world.ask(1, &read(0, MIB));
        world.ask(1, &read(0, MIB));
        let other = world.ask(2, &read(0, 4096));
        world.pass(SECOND / 100);
        assert!(!world.has_gone(other), "it is the first one's turn");
        world.limiter.forget(1);
        assert_eq!(world.limiter.held(), 1);
        world.poll();
        assert!(world.has_gone(other));
    }

    #[test]
    fn a_release_is_in_order_of_arrival() {
        let mut world = World::new(limits(Some(1), None, 0));
        for number in 0..20 {
            let op = if number % 3 == 0 { zero(0, 4096) } else { read(0, 4096) };
            world.ask(number % 4, &op);
        }
        assert!(world.limiter.release().eq(1..20));
        assert_eq!((world.limiter.held(), world.limiter.poll_timeout()), (0, None));
    }

    /// `fstrim` beside a database: its discards wait, the database does not notice. Alone it is as fast as it can be.
    #[test]
    fn a_storm_of_discards_makes_room_for_transfers_only() {
        let mut world = World::new(None);
        for piece in 0..1000 {
            world.ask(1, &zero(piece * 64 * MIB, 64 * MIB));
        }
        assert_eq!(world.went.len(), 1000, "nobody is disturbed");
        let far = 1 << 40;
        world.ask(1, &read(far, 4096));
        for piece in 0..1000 {
            world.ask(1, &zero(piece * 64 * MIB, 64 * MIB));
        }
        assert_eq!(world.went.len(), 1033, "the burst: 2 GiB");
        for _ in 0..20 {
            world.pass(SECOND / 10);
            let number = world.ask(1, &read(far, 4096));
            assert!(world.has_gone(number), "a read passes those that wait");
        }
        assert_eq!(world.went.len(), 1053 + 64, "32 in a second");
        let overlapping = world.ask(1, &read(990 * 64 * MIB, 4096));
        let behind = world.ask(1, &read(far, 4096));
        world.pass(SECOND / 2);
        assert!(!world.has_gone(overlapping) && !world.has_gone(behind), "what it reads is being discarded");
        world.pass(SECOND / 2);
        assert_eq!(world.went.len(), world.asked.len(), "after a second without transfers");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Pass(u64),
        /// Woken only at the end of it.
        Sleep(u64),
        Ask(u32, Op),
        Set(Option<Limits>),
    }

    fn any_limits() -> impl Strategy<Value = Option<Limits>> {
        let iops = prop::option::of(prop_oneof![1..20u32, 20..5000u32, Just(IOPS_MAX)]);
        let bps = prop::option::of(prop_oneof![65_536..4 * MIB, 4 * MIB..1 << 30, Just(BPS_MAX)]);
        (iops, bps, 0..3u32).prop_map(|(iops, bps, burst_s)| limits(iops, bps, burst_s))
    }

    fn any_op() -> impl Strategy<Value = Op> {
        let range = (0..64u64, prop_oneof![1..16u64, 16..8192u64]);
        (0..8u8, range).prop_map(|(kind, (block, blocks))| {
            let (offset, len) = (block * 4096, blocks * 4096);
            match kind {
                0 => GuestOp::Flush,
                1 => GuestOp::Kinds { offset, len },
                2 | 3 => zero(offset * 64, len * 64),
                _ => read(offset, len),
            }
        })
    }

    fn any_steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..SECOND).prop_map(Step::Pass),
            1 => (0..SECOND).prop_map(Step::Sleep),
            12 => (0..4u32, any_op()).prop_map(|(client, op)| Step::Ask(client, op)),
            1 => any_limits().prop_map(Step::Set),
        ];
        prop::collection::vec(step, 1..150)
    }

    /// Plays; answers from which time on which limits held, and how many had gone before.
    fn play(first: Option<Limits>, steps: Vec<Step>) -> (World, Vec<(Option<Limits>, usize)>) {
        let mut world = World::new(first);
        let mut periods = vec![(first, 0)];
        for step in steps {
            match step {
                Step::Pass(ns) => world.pass(ns),
                Step::Sleep(ns) => {
                    world.now.0 += ns;
                    world.poll();
                }
                Step::Ask(client, op) => {
                    world.ask(client, &op);
                }
                Step::Set(limits) => {
                    periods.push((limits, world.went.len()));
                    world.set(limits);
                }
            }
        }
        world.drain();
        (world, periods)
    }

    fn requests(ask: &Ask) -> u64 {
        u64::from(ask.cost != Cost::Nothing)
    }

    fn bytes(ask: &Ask) -> u64 {
        if let Cost::Transfer(bytes) = ask.cost { bytes } else { 0 }
    }

    proptest! {
        /// Whatever is asked, however late the limiter is woken, and after every change of the limits anew.
        #[test]
        fn in_no_time_more_goes_than_its_share_and_one_burst(first in any_limits(), steps in any_steps()) {
            let (world, periods) = play(first, steps);
            for (index, (limits, from)) in periods.iter().enumerate() {
                let until = periods.get(index + 1).map_or(world.went.len(), |(_, until)| *until);
                let went = &world.went[*from..until];
                let Some(Limits(VolumeLimits { iops, bps, burst_s })) = *limits else { continue };
                let rates: [(Option<u64>, fn(&Ask) -> u64); 2] =
                    [(iops.map(u64::from), requests), (bps.map(|bps| bps.0), bytes)];
                for (rate, cost) in rates {
                    let Some(rate) = rate else { continue };
                    let cost = |number: usize| cost(&world.asked[number].1);
                    for (first, (start, _)) in went.iter().enumerate() {
                        let (mut sum, mut largest) = (0, 0);
                        for (at, number) in &went[first..] {
                            sum += cost(*number);
                            largest = largest.max(cost(*number));
                            let burst = Bucket::burst_of(rate, burst_s).max(largest);
                            let share = u128::from(rate) * u128::from(at.0 - start.0);
                            let most = share + u128::from(burst) * 1_000_000_000;
                            prop_assert!(
                                u128::from(sum) * 1_000_000_000 <= most,
                                "{sum} in {} ns at {rate} a second with a burst of {burst}", at.0 - start.0
                            );
                        }
                    }
                }
            }
        }

        #[test]
        fn a_client_is_served_in_the_order_in_which_it_asks(first in any_limits(), steps in any_steps()) {
            let (world, _) = play(first, steps);
            let mut place = vec![0; world.asked.len()];
            for (index, (_, number)) in world.went.iter().enumerate() {
                place[*number] = index;
            }
            let is_zero = |ask: &Ask| matches!(ask.cost, Cost::Zero(_));
            for (later, (client, ask)) in world.asked.iter().enumerate() {
                for (earlier, (other, before)) in world.asked[..later].iter().enumerate() {
                    let ordered = is_zero(ask) == is_zero(before) || ask.overlaps(before);
                    let free = [ask, before].iter().any(|ask| ask.cost == Cost::Nothing);
                    if client == other && ordered && !free {
                        prop_assert!(place[earlier] < place[later], "{before:?} before {ask:?}");
                    }
                }
            }
        }

        /// Whatever was asked before: with the limits lifted everything goes at that moment, but zeroes, and what overlaps
        /// one that was asked for before it.
        #[test]
        fn without_limits_no_transfer_waits(first in any_limits(), steps in any_steps()) {
            let mut world = World::new(first);
            for step in steps {
                match step {
                    Step::Pass(ns) | Step::Sleep(ns) => world.pass(ns),
                    Step::Ask(client, op) => {
                        world.ask(client, &op);
                    }
                    Step::Set(limits) => world.set(limits),
                }
            }
            let queues = world.limiter.clients.values();
            let oldest_zero = queues.filter_map(|q| q.zeroes.front()).map(|held| held.number).min();
            world.set(None);
            let queues = world.limiter.clients.values();
            for transfer in queues.flat_map(|q| &q.transfers) {
                prop_assert!(oldest_zero.is_some_and(|zero| zero < transfer.number));
            }
            world.drain();
        }

        /// More of everything makes nobody wait longer.
        #[test]
        fn a_raise_never_delays(steps in any_steps(), iops in 1..100u32, bps in 65_536..MIB, more in 1..50u32) {
            let mut world = World::new(limits(Some(iops), Some(bps), 0));
            for step in steps {
                match step {
                    Step::Pass(ns) | Step::Sleep(ns) => world.pass(ns),
                    Step::Ask(client, op) => {
                        world.ask(client, &op);
                    }
                    Step::Set(_) => {}
                }
            }
            let (due, gone) = (world.limiter.poll_timeout(), world.went.len());
            world.set(limits(Some(iops * more), Some(bps * u64::from(more)), 0));
            prop_assert!(world.went.len() > gone || world.limiter.poll_timeout() <= due);
        }
    }
}
