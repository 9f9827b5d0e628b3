//! Who may begin a handshake now: a proof costs this host more than asking for one costs a stranger.
//!
//! Must always hold:
//! * what strangers have begun and not finished is bounded, all together and per address, as is how often they begin;
//! * strangers take nothing from the addresses where hosts of the cluster are;
//! * what is remembered of addresses is bounded by how many may begin in a second.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_proto::ids::Instant;

/// Connections of strangers' addresses that have not proven themselves yet.
const UNPROVEN_MAX: usize = 64;
/// The same of one address, also of a host's.
const UNPROVEN_PER_ADDRESS: usize = 8;
/// Handshakes a second of strangers' addresses together, and of one host's address.
const HANDSHAKES_PER_SECOND: u64 = 50;
/// Of one stranger's address.
const HANDSHAKES_PER_ADDRESS: u64 = 10;
/// Refusals a second that are told of one by one.
const SAYINGS_PER_SECOND: u64 = 20;

const SECOND: u64 = 1_000_000_000;

/// So many a second, and as many at once after a second of silence.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    /// When the last one that was let through would have come at an even pace.
    even: u64,
}

impl Rate {
    fn has(self, now: Instant, per_second: u64) -> bool {
        self.even.saturating_sub(now.0) <= SECOND - SECOND / per_second
    }

    fn take(&mut self, now: Instant, per_second: u64) -> bool {
        let has = self.has(now, per_second);
        if has {
            self.even = self.even.max(now.0) + SECOND / per_second;
        }
        has
    }
}

#[derive(Debug, Default)]
struct Visitor {
    unproven: usize,
    rate: Rate,
}

/// A connection that was let in to prove itself: to be given back by [`Doorkeeper::leave`].
#[derive(Debug)]
#[must_use]
pub(super) struct Visit {
    from: IpAddr,
    is_host: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Doorkeeper {
    visitors: BTreeMap<IpAddr, Visitor>,
    strangers: Rate,
    unproven: usize,
    sayings: Rate,
    unsaid: u32,
}

impl Doorkeeper {
    /// Whether a connection from there may begin a handshake; `is_host`: a host of the cluster is at that address.
    pub(super) fn admit(&mut self, now: Instant, from: IpAddr, is_host: bool) -> Option<Visit> {
        self.visitors.retain(|_, visitor| visitor.unproven > 0 || visitor.rate.even > now.0);
        let known = self.visitors.get(&from);
        let (unproven, mut rate) = known.map_or((0, Rate::default()), |v| (v.unproven, v.rate));
        if unproven >= UNPROVEN_PER_ADDRESS || (!is_host && self.unproven >= UNPROVEN_MAX) {
            return None;
        }
        let per_second = if is_host { HANDSHAKES_PER_SECOND } else { HANDSHAKES_PER_ADDRESS };
        let is_slow =
            rate.has(now, per_second) && (is_host || self.strangers.take(now, HANDSHAKES_PER_SECOND));
        if !is_slow {
            return None;
        }
        rate.take(now, per_second);
        self.visitors.insert(from, Visitor { unproven: unproven + 1, rate });
        self.unproven += usize::from(!is_host);
        Some(Visit { from, is_host })
    }

    /// It has proven itself, or it is gone.
    pub(super) fn leave(&mut self, visit: Visit) {
        self.unproven -= usize::from(!visit.is_host);
        if let Some(visitor) = self.visitors.get_mut(&visit.from) {
            visitor.unproven -= 1;
        }
    }

    /// Whether a refusal is told of now, and how many were not since the last that was.
    pub(super) fn say(&mut self, now: Instant) -> Option<u32> {
        if self.sayings.take(now, SAYINGS_PER_SECOND) {
            return Some(core::mem::take(&mut self.unsaid));
        }
        self.unsaid = self.unsaid.saturating_add(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    fn at(ms: u64) -> Instant {
        Instant(1).after_ms(ms)
    }

    #[test]
    fn one_address_begins_so_many_at_once_and_no_more_until_one_leaves() {
        let mut door = Doorkeeper::default();
        let mut inside: Vec<Visit> =
            (0..8).map(|_| door.admit(at(0), address(1), false).expect("let in")).collect();
        assert!(door.admit(at(0), address(1), false).is_none());
        assert!(door.admit(at(60_000), address(1), false).is_none(), "also later");
        door.leave(inside.pop().expect("one"));
        assert!(door.admit(at(60_000), address(1), false).is_some());
        assert!(door.admit(at(60_000), address(2), false).is_some());
    }

    #[test]
    fn one_stranger_begins_ten_a_second_and_a_host_fifty() {
        for (is_host, expected) in [(false, 10 + 30), (true, 50 + 150)] {
            let mut door = Doorkeeper::default();
            let mut admitted = 0;
            for ms in 0..=3000 {
                if let Some(visit) = door.admit(at(ms), address(1), is_host) {
                    admitted += 1;
                    door.leave(visit);
                }
            }
            assert!((expected - 2..=expected + 2).contains(&admitted), "{admitted} of {expected}");
        }
    }

    #[test]
    fn a_flood_from_everywhere_is_bounded_and_a_host_gets_in_meanwhile() {
        let mut door = Doorkeeper::default();
        let mut inside = Vec::new();
        for n in 0..100_000 {
            inside.extend(door.admit(at(u64::from(n) / 100), address(n), false));
        }
        assert_eq!(inside.len(), UNPROVEN_MAX);
        for _ in 0..UNPROVEN_PER_ADDRESS {
            inside.push(door.admit(at(1000), address(1_000_000), true).expect("a host"));
        }
        assert!(door.visitors.len() <= inside.len());
        inside.drain(..).for_each(|visit| door.leave(visit));
        assert_eq!(door.unproven, 0);
        // They come and go at once: the rate of all together holds.
        let mut admitted = 0;
        for n in 0..100_000 {
            if let Some(visit) = door.admit(at(5000 + u64::from(n) / 50), address(n), false) {
                admitted += 1;
                door.leave(visit);
            }
            assert!(door.visitors.len() <= 101, "{}", door.visitors.len());
        }
        assert!((140..=152).contains(&admitted), "{admitted} in two seconds");
    }

    #[test]
    fn refusals_that_are_not_told_of_are_counted() {
        let mut door = Doorkeeper::default();
        let said = (0..35).filter(|_| door.say(at(0)).is_some()).count();
        assert_eq!(said, 20);
        assert_eq!(door.say(at(1000)), Some(15));
        assert_eq!(door.say(at(1001)), Some(0));
    }
}
