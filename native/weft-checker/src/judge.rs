//! The judgement: is there, for every block, an order of its requests that a single disk could have had?
//!
//! A block's history is walked through in time with the set of all states that the disk can be in: the value, and which
//! of the requests under way have taken effect already. A request takes effect as late as it can: when it returns, or
//! when a read returns that saw it. What decides such a moment:
//! * a read under way takes effect as soon as the value is the one that it returns: that costs nothing;
//! * when a write takes effect, others under way that nobody reads any more take effect just before it, unseen. That
//!   costs nothing either, so there is nothing to choose: written values are unique, and the walk needs one state;
//! * only zeroes are written more than once. Of those under way, the one that must end first is as good as any; how many
//!   of them pass unseen is tried out, so there are a few states at most.
//!
//! Must always hold: a history is good here exactly if one of all possible orders explains it (`brute_force` in the tests).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::history::{History, Line};
use crate::stamp::Value;

/// What a request did to a block, or saw of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// It wrote this.
    Write(Value),
    /// It read this.
    Read(Value),
}

/// One request to one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// When it was asked for.
    pub call: u64,
    /// When it was answered; never if it is unknown. A read is always answered.
    pub ret: Option<u64>,
    /// What it did.
    pub act: Act,
}

/// Why a block's history can't be that of a disk: the request that has no place in it, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Index of the request.
    pub op: usize,
    /// Others that it contradicts.
    pub against: Vec<usize>,
    /// What is wrong.
    pub what: String,
}

/// Judges one block that held `initial` before any of its requests.
pub fn block(initial: &Value, ops: &[Op]) -> Result<(), Fault> {
    Walk::new(initial, ops)?.run()
}

/// A state that the disk can be in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    value: usize,
    /// Requests under way that have taken effect.
    done: BTreeSet<usize>,
}

/// Zeroes, as a number of a value.
const ZERO: usize = 0;

struct Walk<'a> {
    ops: &'a [Op],
    /// Per request: the number of its value.
    values: Vec<usize>,
    /// Per value: who wrote it, when the last of its reads was asked for, and when the last one was answered.
    writer: Vec<Option<usize>>,
    last_read: Vec<u64>,
    last_seen: Vec<Option<u64>>,
    initial: usize,
}

impl<'a> Walk<'a> {
    fn new(initial: &Value, ops: &'a [Op]) -> Result<Walk<'a>, Fault> {
        let mut numbers: HashMap<&Value, usize> = HashMap::from([(&Value::Zero, ZERO)]);
        let mut number = |value| {
            let next = numbers.len();
            *numbers.entry(value).or_insert(next)
        };
        let initial = number(initial);
        let values: Vec<usize> = ops
            .iter()
            .map(|op| match &op.act {
                Act::Write(value) | Act::Read(value) => number(value),
            })
            .collect();
        let mut walk = Walk {
            ops,
            writer: vec![None; numbers.len()],
            last_read: vec![0; numbers.len()],
            last_seen: vec![None; numbers.len()],
            values,
            initial,
        };
        for (i, op) in ops.iter().enumerate() {
            let value = walk.values[i];
            match op.act {
                Act::Write(_) if value == ZERO => {}
                Act::Write(_) => {
                    if let Some(other) = walk.writer[value].replace(i) {
                        return Err(walk.fault(i, [other], "two writes wrote the same bytes".to_owned()));
                    }
                }
                Act::Read(_) => {
                    walk.last_read[value] = walk.last_read[value].max(op.call);
                    walk.last_seen[value] = walk.last_seen[value].max(op.ret);
                }
            }
        }
        for (i, op) in ops.iter().enumerate() {
            if let Act::Read(value) = &op.act {
                let n = walk.values[i];
                if n != initial && n != ZERO && walk.writer[n].is_none() {
                    return Err(walk.fault(i, [], format!("read what nobody wrote: {value}")));
                }
            }
        }
        Ok(walk)
    }

    fn run(&self) -> Result<(), Fault> {
        // Calls before returns of the same moment: they may have overlapped.
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * self.ops.len());
        for (i, op) in self.ops.iter().enumerate() {
            let unread = self.last_seen[self.values[i]] < Some(op.call);
            // An unknown write that nobody saw explains nothing: it is left out.
            if op.ret.is_none() && unread {
                continue;
            }
            events.push((op.call, false, i));
            events.extend(op.ret.map(|ret| (ret, true, i)));
        }
        events.sort_unstable();
        let mut states = BTreeSet::from([State { value: self.initial, done: BTreeSet::new() }]);
        let mut pending: BTreeSet<usize> = BTreeSet::new();
        for (now, is_return, i) in events {
            let mut next = BTreeSet::new();
            if is_return {
                for state in &states {
                    self.returned(state, i, now, &pending, &mut next);
                }
                pending.remove(&i);
                if next.is_empty() {
                    return Err(self.explain(&states, i));
                }
            } else {
                pending.insert(i);
                next.extend(states.into_iter().map(|mut state| {
                    if self.is_read(i) && self.values[i] == state.value {
                        state.done.insert(i);
                    }
                    state
                }));
            }
            states = next;
        }
        Ok(())
    }

    fn is_read(&self, i: usize) -> bool {
        matches!(self.ops[i].act, Act::Read(_))
    }

    /// All states after a request returned that was still under way in `state`.
    fn returned(
        &self,
        state: &State,
        i: usize,
        now: u64,
        pending: &BTreeSet<usize>,
        next: &mut BTreeSet<State>,
    ) {
        if state.done.contains(&i) {
            let mut state = state.clone();
            state.done.remove(&i);
            next.insert(state);
            return;
        }
        let open = |w: &usize| !self.is_read(*w) && !state.done.contains(w);
        let mut zeroes: Vec<usize> =
            pending.iter().copied().filter(|w| open(w) && self.values[*w] == ZERO).collect();
        zeroes.sort_by_key(|w| self.ops[*w].ret.unwrap_or(u64::MAX));
        // Who takes effect now, as the last.
        let last = if !self.is_read(i) {
            i
        } else if self.values[i] == ZERO {
            let Some(first) = zeroes.first() else { return };
            *first
        } else {
            match self.writer[self.values[i]] {
                Some(w) if pending.contains(&w) && open(&w) => w,
                _ => return,
            }
        };
        zeroes.retain(|w| *w != last);
        // Who takes effect just before that and is not seen by anybody who asks later.
        let unseen = |w: &usize| {
            open(w) && *w != last && self.values[*w] != ZERO && self.last_read[self.values[*w]] <= now
        };
        let hidden: Vec<usize> = pending.iter().copied().filter(unseen).collect();
        for count in 0..=zeroes.len() {
            let mut after = State { value: self.values[last], done: state.done.clone() };
            let writes = hidden.iter().chain(&zeroes[..count]).chain([&last]);
            let mut passed = BTreeSet::new();
            for w in writes {
                after.done.insert(*w);
                passed.insert(self.values[*w]);
            }
            let saw = pending.iter().filter(|r| self.is_read(**r) && passed.contains(&self.values[**r]));
            after.done.extend(saw);
            if after.done.remove(&i) {
                next.insert(after);
            }
        }
    }

    fn fault(&self, op: usize, against: impl IntoIterator<Item = usize>, what: String) -> Fault {
        Fault { op, against: against.into_iter().collect(), what }
    }

    /// A sentence for the request that no state explains.
    fn explain(&self, states: &BTreeSet<State>, i: usize) -> Fault {
        let name = |n: usize| match self.writer[n] {
            Some(w) => match &self.ops[w].act {
                Act::Write(value) | Act::Read(value) => value.to_string(),
            },
            None if n == ZERO => "zeroes".to_owned(),
            None => "what stood there at first".to_owned(),
        };
        let possible: BTreeSet<usize> = states.iter().map(|s| s.value).collect();
        let held: Vec<String> = possible.iter().map(|n| name(*n)).collect();
        let mut against: Vec<usize> = self.writer[self.values[i]].into_iter().collect();
        against.extend(possible.iter().filter_map(|n| self.writer[*n]));
        let what = format!(
            "read {}, where the block can only have held {}",
            name(self.values[i]),
            held.join(" or ")
        );
        self.fault(i, against, what)
    }
}

/// Acknowledged writes that the last read of their block shows to be gone: what it saw is older, or nobody wrote it.
#[must_use]
pub fn lost(initial: &Value, ops: &[Op]) -> Vec<usize> {
    let reads = ops.iter().filter_map(|op| match &op.act {
        Act::Read(value) => Some((op.call, op.ret?, value)),
        Act::Write(_) => None,
    });
    let Some((asked, answered, seen)) = reads.max_by_key(|(call, ..)| *call) else { return Vec::new() };
    // The latest moment at which what was seen may have been written.
    let mut origin = None;
    for op in ops {
        if op.act == Act::Write(seen.clone()) && op.call <= answered {
            origin = origin.max(Some(op.ret.unwrap_or(u64::MAX)));
        }
    }
    let origin = if initial == seen { origin.or(Some(0)) } else { origin };
    let is_newer = |op: &Op| {
        let acknowledged = op.ret.is_some_and(|ret| ret < asked);
        matches!(op.act, Act::Write(_)) && acknowledged && origin.is_none_or(|o| o < op.call)
    };
    let gone: Vec<usize> = (0..ops.len()).filter(|i| is_newer(&ops[*i])).collect();
    // Those that an even later one of them overwrote were not there to be lost.
    let newest = gone.iter().map(|i| ops[*i].call).max();
    gone.into_iter().filter(|i| ops[*i].ret >= newest).collect()
}

/// The judgement of whole histories.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Requests, each as often as it has blocks.
    pub ops: u64,
    /// Of them reads.
    pub reads: u64,
    /// Of them writes that were acknowledged.
    pub writes: u64,
    /// Of them writes that may or may not have taken effect.
    pub unknown: u64,
    /// Acknowledged writes that are gone.
    pub lost_acks: u64,
    /// Blocks with a history that no disk can have.
    pub nonlinear: u64,
    /// Reads of a mixture.
    pub torn: u64,
    /// The first few blocks with something wrong.
    pub blocks: Vec<Offender>,
}

impl Verdict {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.lost_acks == 0 && self.nonlinear == 0 && self.torn == 0
    }
}

/// A block with something wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Offender {
    /// Its number.
    pub block: u64,
    /// What is wrong.
    pub what: String,
    /// The requests that show it.
    pub ops: Vec<String>,
}

/// Blocks that a verdict tells of.
const OFFENDERS_MAX: usize = 8;

/// Judges histories of one volume together, the final reads among them, in the order in which they were run.
#[must_use]
pub fn histories(histories: &[History], last_reads: &[(u64, Value)]) -> Verdict {
    let mut blocks: BTreeMap<u64, (Option<Value>, Vec<Op>)> = BTreeMap::new();
    let mut end = 0;
    for history in histories {
        end = end.max(history.end);
        for line in &history.lines {
            collect(&mut blocks, line, history.run);
        }
    }
    for (block, value) in last_reads {
        let op = Op { call: end + 1, ret: Some(end + 2), act: Act::Read(value.clone()) };
        blocks.entry(*block).or_default().1.push(op);
    }
    let mut verdict = Verdict {
        ops: 0,
        reads: 0,
        writes: 0,
        unknown: 0,
        lost_acks: 0,
        nonlinear: 0,
        torn: 0,
        blocks: Vec::new(),
    };
    for (number, (initial, ops)) in &blocks {
        let initial = initial.clone().unwrap_or(Value::Zero);
        for op in ops {
            verdict.ops += 1;
            match (&op.act, op.ret) {
                (Act::Read(value), _) => {
                    verdict.reads += 1;
                    verdict.torn += u64::from(value.is_torn() && *value != initial);
                }
                (Act::Write(_), Some(_)) => verdict.writes += 1,
                (Act::Write(_), None) => verdict.unknown += 1,
            }
        }
        let gone = lost(&initial, ops);
        verdict.lost_acks += gone.len() as u64;
        let fault = block(&initial, ops).err();
        verdict.nonlinear += u64::from(fault.is_some());
        if verdict.blocks.len() < OFFENDERS_MAX && (fault.is_some() || !gone.is_empty()) {
            verdict.blocks.push(offender(*number, &initial, ops, fault, &gone));
        }
    }
    verdict
}

fn collect(blocks: &mut BTreeMap<u64, (Option<Value>, Vec<Op>)>, line: &Line, run: u64) {
    let mut push =
        |block: u64, call, ret, act| blocks.entry(block).or_default().1.push(Op { call, ret, act });
    match line {
        Line::Initial { block, values } => {
            for (value, number) in values.iter().zip(*block..) {
                let known = &mut blocks.entry(number).or_default().0;
                // What a later history found is the outcome of an earlier one: that is judged by its reads.
                if known.is_none() {
                    *known = Some(value.clone());
                }
            }
        }
        Line::Write { call, ret, block, count, id } => {
            for number in *block..*block + count {
                push(number, *call, *ret, Act::Write(Value::Stamp { run, id: *id }));
            }
        }
        Line::Zero { call, ret, block, count } => {
            for number in *block..*block + count {
                push(number, *call, *ret, Act::Write(Value::Zero));
            }
        }
        Line::Read { call, ret, block, values } => {
            for (value, number) in values.iter().zip(*block..) {
                push(number, *call, Some(*ret), Act::Read(value.clone()));
            }
        }
        Line::Mark { .. } => {}
    }
}

fn offender(number: u64, initial: &Value, ops: &[Op], fault: Option<Fault>, gone: &[usize]) -> Offender {
    let mut shown: BTreeSet<usize> = gone.iter().copied().collect();
    let mut what = Vec::new();
    if let Some(fault) = fault {
        // And what was under way at the same time.
        let (call, ret) = (ops[fault.op].call, ops[fault.op].ret.unwrap_or(u64::MAX));
        let overlaps = |op: &Op| op.call <= ret && op.ret.unwrap_or(u64::MAX) >= call;
        shown.extend((0..ops.len()).filter(|i| overlaps(&ops[*i])).take(16));
        shown.extend(fault.against);
        shown.insert(fault.op);
        what.push(fault.what);
    }
    if !gone.is_empty() {
        what.push(format!("{} acknowledged write(s) gone", gone.len()));
    }
    let mut shown: Vec<&Op> = shown.into_iter().map(|i| &ops[i]).collect();
    shown.sort_by_key(|op| op.call);
    let ms = |ns: u64| format!("{:.3}", ns as f64 / 1e6);
    let tell = |op: &&Op| {
        let (verb, value) = match &op.act {
            Act::Write(value) => ("write", value),
            Act::Read(value) => ("read", value),
        };
        let end = op.ret.map_or("unknown".to_owned(), ms);
        format!("{}..{end} ms {verb} {value}", ms(op.call))
    };
    let mut told = vec![format!("at first {initial}")];
    told.extend(shown.iter().map(tell));
    Offender { block: number, what: what.join("; "), ops: told }
}

#[cfg(test)]
mod tests;
