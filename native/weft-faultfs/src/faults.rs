//! Which requests fail, wait or are slow.
//!
//! Must always hold: a request that waits holds no lock of anybody else's.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::Deserialize;

/// Kinds of requests that faults are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// READ.
    Read,
    /// WRITE, fallocate, a change of size.
    Write,
    /// fsync and fdatasync, of a file or a directory.
    Flush,
    /// Making, removing and renaming.
    Name,
    /// All of them.
    Any,
}

/// What happens to requests that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// They are answered with an error and do nothing.
    Fail(Errno),
    /// They wait so long, or until they are healed, and are then carried out.
    Wait(Option<Duration>),
}

/// A fault that was asked for.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which requests.
    pub what: What,
    /// Which files: a pattern on the path below the mount; none is all of them.
    pub path: Option<String>,
    /// How many requests yet; none is all of them.
    pub count: Option<u64>,
    /// What happens.
    pub effect: Effect,
}

/// What a request has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Go,
    /// Answer with this.
    Fail(Errno),
    /// Call [`Faults::wait`] with it on a thread of your own, then go on.
    Wait(Ticket),
}

/// Until when a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    until: Option<Instant>,
    healed: u64,
}

/// The faults in force.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    /// How often everything was healed.
    healed: u64,
    failed: u64,
    waiting: u64,
}

impl Faults {
    /// Adds a fault.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Takes all faults away; whoever waits goes on.
    pub fn heal(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.healed += 1;
        self.changed.notify_all();
    }

    /// Requests that were made to fail, and those that wait now.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.failed, state.waiting)
    }

    /// What happens to a request.
    #[must_use]
    pub fn judge(&self, what: What, path: &str) -> Verdict {
        let mut state = self.state();
        let now = Instant::now();
        let healed = state.healed;
        let mut ticket = None;
        let mut failure = None;
        for rule in &mut state.rules {
            let meant = rule.what == What::Any || rule.what == what;
            let here = rule.path.as_deref().is_none_or(|p| matches(p.as_bytes(), path.as_bytes()));
            if !meant || !here || rule.count == Some(0) {
                continue;
            }
            match rule.effect {
                // One failure is enough.
                Effect::Fail(_) if failure.is_some() => continue,
                Effect::Fail(errno) => failure = Some(errno),
                Effect::Wait(time) => {
                    let until = time.map(|t| now + t);
                    ticket = Some(match ticket {
                        // The longest wait counts; none is longest.
                        Some(Some(other)) => until.map(|u| u.max(other)),
                        Some(None) => None,
                        None => until,
                    });
                }
            }
            rule.count = rule.count.map(|n| n - 1);
        }
        state.rules.retain(|rule| rule.count != Some(0));
        match (failure, ticket) {
            (Some(errno), _) => {
                state.failed += 1;
                Verdict::Fail(errno)
            }
            (None, Some(until)) => {
                state.waiting += 1;
                Verdict::Wait(Ticket { until, healed })
            }
            (None, None) => Verdict::Go,
        }
    }

    /// Waits for a ticket's end.
    pub fn wait(&self, ticket: Ticket) {
        let mut state = self.state();
        while state.healed == ticket.healed {
            let left = ticket.until.map(|u| u.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.waiting -= 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a path matches a pattern of `*` (any bytes, slashes too) and `?` (one byte).
pub(crate) fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) if matches(rest, path) => true,
        (Some((b'*', _)), Some((_, later))) => matches(pattern, later),
        (Some((b'?', rest)), Some((_, later))) => matches(rest, later),
        (Some((p, rest)), Some((b, later))) => p == b && matches(rest, later),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(what: What, effect: Effect) -> Rule {
        Rule { what, path: None, count: None, effect }
    }

    #[test]
    fn a_pattern_matches_like_a_shells() {
        for (pattern, path) in [
            ("wal", "wal"),
            ("*/seg-*", "pool/replicas/x.1/seg-000001"),
            ("crc-00000?", "crc-000003"),
            ("*", ""),
        ] {
            assert!(matches(pattern.as_bytes(), path.as_bytes()), "{pattern} {path}");
        }
        for (pattern, path) in
            [("wal", "wall"), ("*/seg-*", "seg-1"), ("crc-00000?", "crc-000010"), ("?", "")]
        {
            assert!(!matches(pattern.as_bytes(), path.as_bytes()), "{pattern} {path}");
        }
    }

    #[test]
    fn a_fault_meets_so_many_requests_of_its_kind_and_path() {
        let faults = Faults::default();
        faults.add(Rule {
            path: Some("seg*".to_owned()),
            count: Some(2),
            ..rule(What::Write, Effect::Fail(Errno::NOSPC))
        });
        assert_eq!(faults.judge(What::Read, "seg-1"), Verdict::Go);
        assert_eq!(faults.judge(What::Write, "wal"), Verdict::Go);
        assert_eq!(faults.judge(What::Write, "seg-1"), Verdict::Fail(Errno::NOSPC));
        assert_eq!(faults.judge(What::Write, "seg-2"), Verdict::Fail(Errno::NOSPC));
        assert_eq!(faults.judge(What::Write, "seg-1"), Verdict::Go);
        assert_eq!(faults.counts(), (2, 0));
    }

    #[test]
    fn who_waits_goes_on_when_healed_or_when_the_time_is_over() {
        let faults = Faults::default();
        faults.add(rule(What::Any, Effect::Wait(None)));
        let Verdict::Wait(ticket) = faults.judge(What::Flush, "") else { panic!("it waits") };
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| faults.wait(ticket));
            assert_eq!(faults.counts(), (0, 1));
            faults.heal();
            waiter.join().expect("went on");
        });
        faults.add(rule(What::Read, Effect::Wait(Some(Duration::from_millis(20)))));
        let began = Instant::now();
        let Verdict::Wait(ticket) = faults.judge(What::Read, "") else { panic!("it waits") };
        faults.wait(ticket);
        assert!(began.elapsed() >= Duration::from_millis(20));
        assert_eq!(faults.counts(), (0, 0));
    }
}
