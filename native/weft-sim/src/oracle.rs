//! What guests saw, and whether a single disk could have answered so.
//!
//! No two writes that may be seen at one time have the same value, so linearizability of a block is decided exactly: the
//! operations on one value form a zone, from the earliest answer to the latest call; values are consistent iff forward zones don't
//! overlap, no backward zone lies within a forward one, and nothing is read before it was written (Gibbons and
//! Korach, "Testing shared memories", 1997).
//!
//! Must always hold:
//! * a write that was never answered may have happened at any later time, or never; one that was read has happened;
//! * a value is written again only once nobody may see it any more and no read is under way that could have seen it
//!   ([`Oracle::repeatable`]): what holds it later was written by the later write. So faults show that compare blocks and
//!   find them equal, though they were others meanwhile.

use std::collections::BTreeMap;

/// The value of a block: which write, or a hole.
pub type Value = u64;
/// Never written.
pub const ABSENT: Value = 0;
/// The block's one discard.
pub const ZERO: Value = 1;

/// From here on: clusters of values that were written again since.
const RETIRED: Value = 1 << 63;

#[derive(Clone, Debug)]
struct Cluster {
    value: Value,
    write_call: i64,
    first_answer: i64,
    last_call: i64,
    is_read: bool,
    is_acked: bool,
    /// When the write itself was answered; `i64::MAX` if it was not.
    acked_at: i64,
}

/// The history of all blocks.
#[derive(Default)]
pub struct Oracle {
    blocks: BTreeMap<u64, BTreeMap<Value, Cluster>>,
    /// Per block: call times of writes that a completed flush covers (cached mode), the latest one.
    flushed: BTreeMap<u64, i64>,
    /// What is counted as a block here is half of one.
    halves: bool,
    /// Answered reads, for the summary.
    pub reads: u64,
    /// Answered writes, for the summary.
    pub acks: u64,
}

impl Oracle {
    /// One whose blocks are half blocks: of a torn write each half is judged by itself.
    #[must_use]
    pub fn of_halves() -> Oracle {
        Oracle { halves: true, ..Oracle::default() }
    }

    /// A block, for people.
    #[must_use]
    pub fn name(&self, block: u64) -> String {
        match (self.halves, block % 2) {
            (false, _) => format!("block {block}"),
            (true, 0) => format!("block {}, first half", block / 2),
            (true, _) => format!("block {}, second half", block / 2),
        }
    }

    /// Was `newer` acknowledged or read, and `older` surely overwritten by it? (Then nobody may see `older` again.)
    #[must_use]
    pub fn replaced(&self, block: u64, older: Value, newer: Value) -> bool {
        let Some(values) = self.blocks.get(&block) else { return false };
        let (Some(old), Some(new)) = (values.get(&older), values.get(&newer)) else { return false };
        let settled = new.is_acked || new.is_read;
        settled && old.first_answer < new.write_call && old.write_call < new.write_call
    }

    /// What a block may hold at this moment: whatever was written by now, unless something that was completed by now came
    /// after it.
    #[must_use]
    pub fn allowed(&self, block: u64, now: u64) -> Vec<Value> {
        let now = i64::try_from(now).expect("short");
        let Some(values) = self.blocks.get(&block) else { return vec![ABSENT] };
        let live = |c: &&Cluster| c.write_call <= now;
        let replaced = |old: &Cluster| {
            values.values().filter(live).any(|new| {
                let settled = (new.is_acked || new.is_read) && new.first_answer <= now;
                settled && old.first_answer < new.write_call && old.write_call < new.write_call
            })
        };
        values.iter().filter(|(_, c)| live(c) && !replaced(c)).map(|(value, _)| *value).collect()
    }

    fn cluster(&mut self, block: u64, value: Value) -> Option<&mut Cluster> {
        let values = self.blocks.entry(block).or_insert_with(|| {
            let initial = Cluster {
                value: ABSENT,
                write_call: i64::MIN,
                first_answer: i64::MIN,
                last_call: i64::MIN,
                is_read: false,
                is_acked: true,
                acked_at: i64::MIN,
            };
            BTreeMap::from([(ABSENT, initial)])
        });
        values.get_mut(&value)
    }

    /// Values of a block that may be written to it once more, the newest first, if no read of it is under way: each was
    /// acknowledged, and surely overwritten by what somebody was told of.
    pub fn repeatable(&self, block: u64) -> impl Iterator<Item = Value> {
        let values =
            self.blocks.get(&block).into_iter().flat_map(|values| values.range(ZERO + 1..RETIRED).rev());
        let acked = values.filter(|(_, c)| c.is_acked).map(|(value, _)| *value);
        acked.filter(move |old| {
            let newer = self.blocks.get(&block).into_iter().flat_map(BTreeMap::keys);
            newer.into_iter().any(|new| self.replaced(block, *old, *new))
        })
    }

    /// A write of `value` to `block` was called.
    pub fn write_called(&mut self, block: u64, value: Value, now: u64) {
        let _ = self.cluster(block, ABSENT);
        let at = i64::try_from(now).expect("simulated time is short");
        let values = self.blocks.get_mut(&block).expect("made above");
        if let Some(earlier) = values.remove(&value) {
            let name = values.last_key_value().map_or(RETIRED, |(last, _)| RETIRED.max(last + 1));
            values.insert(name, earlier);
        }
        let cluster = Cluster {
            value,
            write_call: at,
            first_answer: i64::MAX,
            last_call: at,
            is_read: false,
            is_acked: false,
            acked_at: i64::MAX,
        };
        values.insert(value, cluster);
    }

    /// It was acknowledged.
    pub fn write_acked(&mut self, block: u64, value: Value, now: u64) {
        self.acks += 1;
        if let Some(c) = self.cluster(block, value) {
            let at = i64::try_from(now).expect("short");
            c.first_answer = c.first_answer.min(at);
            c.is_acked = true;
            c.acked_at = at;
        }
    }

    /// A read of `block` called at `called` returned `value`.
    pub fn read(&mut self, block: u64, value: Value, called: u64, now: u64) -> Result<(), String> {
        self.reads += 1;
        let (called, now) = (i64::try_from(called).expect("short"), i64::try_from(now).expect("short"));
        let name = self.name(block);
        let Some(c) = self.cluster(block, value) else {
            return Err(format!("{name}: read value {value} that nobody wrote there"));
        };
        if now < c.write_call {
            return Err(format!("{name}: value {value} was read before it was written"));
        }
        c.is_read = true;
        c.first_answer = c.first_answer.min(now);
        c.last_call = c.last_call.max(called);
        Ok(())
    }

    /// A flush that was called at `called` was answered: what was acknowledged before is on stable media.
    pub fn flushed(&mut self, called: u64) {
        let called = i64::try_from(called).expect("short");
        for (block, values) in &self.blocks {
            let covered = values.values().filter(|c| c.acked_at <= called).map(|c| c.write_call).max();
            if let Some(call) = covered {
                let floor = self.flushed.entry(*block).or_insert(i64::MIN);
                *floor = (*floor).max(call);
            }
        }
    }

    /// Every in-sync cache is lost (cached mode): what was not flushed may be gone. The history so far must be
    /// consistent; a new one begins with what the disks hold, none of which may be older than what was flushed.
    /// What the caches held just `before` may still come from a copy that was under way.
    pub fn new_era(
        &mut self,
        held: &BTreeMap<u64, Vec<Value>>,
        before: &BTreeMap<u64, Vec<Value>>,
        now: u64,
    ) -> Result<(), String> {
        self.check()?;
        for (block, candidates) in held {
            let floor = self.flushed.get(block).copied().unwrap_or(i64::MIN);
            let Some(values) = self.blocks.get(block) else { continue };
            for value in candidates {
                let acked_at = values.get(value).map_or(i64::MIN, |c| c.acked_at);
                if acked_at < floor {
                    return Err(format!(
                        "{}: after the power loss it holds value {value}, older than what was flushed",
                        self.name(*block)
                    ));
                }
            }
        }
        let known = std::mem::take(&mut self.blocks);
        self.flushed.clear();
        for (block, values) in known {
            let _ = self.cluster(block, ABSENT);
            // What was under way may still happen.
            for (value, _) in values.iter().filter(|(v, c)| **v != ABSENT && !c.is_acked) {
                self.write_called(block, *value, now);
            }
            for value in held.get(&block).into_iter().chain(before.get(&block)).flatten() {
                if *value != ABSENT {
                    self.write_called(block, *value, now);
                }
            }
        }
        Ok(())
    }

    /// The volume ends at this block now: what was beyond is judged, and forgotten. Should it grow again, nothing was ever
    /// written there.
    pub fn cut(&mut self, end: u64) -> Result<Oracle, String> {
        self.check()?;
        let (blocks, flushed) = (self.blocks.split_off(&end), self.flushed.split_off(&end));
        Ok(Oracle { blocks, flushed, ..Oracle::default() })
    }

    /// The volume was taken back to this content, from its first block on: what was so far is judged, and nobody may see
    /// anything of it again.
    pub fn taken_back(&mut self, content: &[Value], now: u64) -> Result<(), String> {
        self.check()?;
        self.blocks.clear();
        self.flushed.clear();
        for (block, value) in (0..).zip(content) {
            if *value == ABSENT {
                let _ = self.cluster(block, ABSENT);
            } else {
                self.write_called(block, *value, now);
                self.write_acked(block, *value, now);
            }
        }
        Ok(())
    }

    /// It was not cut after all.
    pub fn uncut(&mut self, beyond: Oracle) {
        self.blocks.extend(beyond.blocks);
        self.flushed.extend(beyond.flushed);
    }

    /// A block from here on that somebody was told of.
    #[must_use]
    pub fn told_beyond(&self, end: u64) -> Option<u64> {
        let told = |values: &BTreeMap<Value, Cluster>| {
            values.iter().any(|(value, c)| *value != ABSENT && (c.is_acked || c.is_read))
        };
        self.blocks.range(end..).find(|(_, values)| told(values)).map(|(block, _)| *block)
    }

    /// Is there an order of all operations that one disk could have carried out?
    pub fn check(&self) -> Result<(), String> {
        for (block, values) in &self.blocks {
            let live: Vec<(Value, &Cluster)> =
                values.values().filter(|c| c.is_read || c.is_acked).map(|c| (c.value, c)).collect();
            let mut forward: Vec<(i64, i64, Value)> = Vec::new();
            let mut backward: Vec<(i64, i64, Value)> = Vec::new();
            for (value, c) in live {
                if c.first_answer < c.last_call {
                    forward.push((c.first_answer, c.last_call, value));
                } else {
                    backward.push((c.last_call, c.first_answer, value));
                }
            }
            forward.sort_unstable();
            for pair in forward.windows(2) {
                if pair[1].0 < pair[0].1 {
                    return Err(format!(
                        "{}: value {} was seen from {} to {} and value {} from {} to {}: one of them came back",
                        self.name(*block),
                        pair[0].2,
                        time(pair[0].0),
                        time(pair[0].1),
                        pair[1].2,
                        time(pair[1].0),
                        time(pair[1].1)
                    ));
                }
            }
            for (low, high, value) in backward {
                if let Some((from, to, other)) =
                    forward.iter().find(|(from, to, _)| *from < low && high < *to)
                {
                    return Err(format!(
                        "{}: value {value}, written between {} and {}, is lost: value {other} was seen at {} and again at {}",
                        self.name(*block),
                        time(low),
                        time(high),
                        time(*from),
                        time(*to)
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Simulated time, for people; a run begins at 1000 ms.
fn time(ns: i64) -> String {
    match ns {
        i64::MIN => "the beginning".into(),
        i64::MAX => "never".into(),
        _ => format!("{:.3} ms", (ns - 1_000_000_000) as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_acknowledged_write_is_found() {
        let mut o = Oracle::default();
        o.write_called(7, 10, 1);
        o.write_acked(7, 10, 2);
        o.write_called(7, 11, 3);
        o.write_acked(7, 11, 4);
        o.read(7, 10, 5, 6).expect("was written");
        assert!(o.check().is_err());
    }

    #[test]
    fn an_unanswered_write_may_appear_late_but_not_vanish_again() {
        let mut o = Oracle::default();
        o.write_called(7, 10, 1);
        o.write_acked(7, 10, 2);
        o.write_called(7, 11, 3);
        o.read(7, 10, 5, 6).expect("still there");
        o.read(7, 11, 7, 8).expect("late");
        assert!(o.check().is_ok());
        o.read(7, 10, 9, 10).expect("was written");
        assert!(o.check().is_err());
    }

    #[test]
    fn a_block_may_hold_what_nothing_has_surely_replaced() {
        let mut o = Oracle::default();
        assert_eq!(o.allowed(7, 1), [ABSENT]);
        o.write_called(7, 10, 2);
        assert_eq!(o.allowed(7, 3), [ABSENT, 10]);
        o.write_acked(7, 10, 4);
        assert_eq!(o.allowed(7, 5), [10]);
        o.write_called(7, 11, 6);
        o.write_called(7, 12, 7);
        o.write_acked(7, 12, 8);
        assert_eq!(o.allowed(7, 9), [11, 12], "in either order");
    }

    #[test]
    fn a_value_that_is_written_again_is_another_writes() {
        let mut o = Oracle::default();
        for (value, at) in [(10, 1), (11, 3)] {
            o.write_called(7, value, at);
            assert_eq!(o.repeatable(7).count(), 0, "somebody may see it yet");
            o.write_acked(7, value, at + 1);
        }
        assert_eq!(o.repeatable(7).collect::<Vec<_>>(), [10]);
        o.write_called(7, 10, 5);
        assert_eq!(o.allowed(7, 6), [10, 11], "it was called");
        o.write_acked(7, 10, 6);
        assert_eq!(o.allowed(7, 7), [10]);
        o.read(7, 10, 7, 8).expect("was written");
        assert!(o.check().is_ok());
        o.read(7, 11, 9, 10).expect("was written");
        let lost = o.check().expect_err("what was overwritten came back");
        assert!(lost.contains("value 10") && lost.contains("value 11"), "{lost}");
    }

    #[test]
    fn reads_of_what_nobody_wrote_are_found_at_once() {
        let mut o = Oracle::default();
        o.write_called(7, 10, 1);
        assert!(o.read(7, 99, 2, 3).is_err());
        assert!(o.read(7, ABSENT, 2, 3).is_ok());
    }
}
