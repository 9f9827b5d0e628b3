//! The judge is shown bad histories, good ones that look bad, and every small history there is chance for.

use proptest::prelude::*;

use super::*;

fn stamp(id: u64) -> Value {
    if id == 0 { Value::Zero } else { Value::Stamp { run: 1, id } }
}

fn write(call: u64, ret: u64, id: u64) -> Op {
    Op { call, ret: Some(ret), act: Act::Write(stamp(id)) }
}

fn unknown(call: u64, id: u64) -> Op {
    Op { call, ret: None, act: Act::Write(stamp(id)) }
}

fn read(call: u64, ret: u64, id: u64) -> Op {
    Op { call, ret: Some(ret), act: Act::Read(stamp(id)) }
}

fn good(ops: &[Op]) {
    assert_eq!(block(&Value::Zero, ops), Ok(()));
    assert!(brute_force(&Value::Zero, ops));
}

/// Finds the fault in this request, and says this.
fn bad(ops: &[Op], at: usize, says: &str) {
    let fault = block(&Value::Zero, ops).expect_err("bad");
    assert_eq!(fault.op, at, "{}", fault.what);
    assert!(fault.what.contains(says), "{}", fault.what);
    assert!(!brute_force(&Value::Zero, ops));
}

/// Is there an order at all? Tries all of them.
fn brute_force(initial: &Value, ops: &[Op]) -> bool {
    fn go(value: &Value, ops: &[Op], left: u32) -> bool {
        let open = |i: usize| left & (1 << i) != 0;
        if (0..ops.len()).all(|i| !open(i) || ops[i].ret.is_none()) {
            return true;
        }
        (0..ops.len()).filter(|i| open(*i)).any(|i| {
            // Nobody who returned before this one was asked for may come after it.
            let first = (0..ops.len()).all(|j| !open(j) || ops[j].ret.is_none_or(|ret| ret >= ops[i].call));
            first
                && match &ops[i].act {
                    Act::Write(new) => go(new, ops, left & !(1 << i)),
                    Act::Read(seen) => seen == value && go(value, ops, left & !(1 << i)),
                }
        })
    }
    go(initial, ops, (1 << ops.len()) - 1)
}

#[test]
fn a_stale_read_is_found() {
    bad(&[write(1, 2, 1), write(3, 4, 2), read(5, 6, 1)], 2, "can only have held 0000000000000001:2");
    bad(&[write(1, 2, 1), read(3, 4, 0)], 1, "read zeroes");
    // Two reads that do not agree on the order of two writes under way.
    bad(&[write(1, 9, 1), write(1, 9, 2), read(2, 3, 1), read(4, 5, 2), read(6, 7, 1)], 4, "read");
}

#[test]
fn a_lost_acknowledged_write_is_found_and_counted() {
    let ops = [write(1, 2, 1), write(3, 4, 2), write(5, 6, 3), read(10, 11, 1)];
    bad(&ops, 3, "0000000000000001:3");
    assert_eq!(lost(&Value::Zero, &ops), [2]);
    // Both of two at the same time are gone.
    assert_eq!(lost(&Value::Zero, &[write(1, 4, 1), write(2, 5, 2), read(10, 11, 0)]), [0, 1]);
    // A zero that was acknowledged is a write like any other.
    assert_eq!(lost(&Value::Zero, &[write(1, 2, 1), write(3, 4, 0), read(10, 11, 1)]), [1]);
    // What nobody wrote stands for nothing.
    let torn = Op { call: 9, ret: Some(10), act: Act::Read(Value::Other("torn: x".into())) };
    assert_eq!(lost(&Value::Zero, &[write(1, 2, 1), torn]), [0]);
    // Stale once, but there at last: not linear, not lost.
    assert!(lost(&Value::Zero, &[write(1, 2, 1), read(3, 4, 0), read(5, 6, 1)]).is_empty());
    // An unknown write may come this late.
    assert!(lost(&Value::Zero, &[unknown(1, 1), write(3, 4, 2), read(5, 6, 1)]).is_empty());
    assert!(lost(&Value::Zero, &[write(1, 2, 1), unknown(3, 0), read(5, 6, 0)]).is_empty());
}

#[test]
fn a_resurrection_is_found() {
    // An unknown write takes effect once, not twice.
    bad(&[unknown(1, 1), read(2, 3, 1), write(4, 5, 2), read(6, 7, 2), read(8, 9, 1)], 4, "1:1");
    bad(&[write(1, 2, 1), write(3, 9, 2), read(4, 5, 2), read(6, 7, 1)], 3, "1:2");
    // So does an unknown zero.
    bad(&[write(1, 2, 1), unknown(3, 0), read(4, 5, 0), write(6, 7, 2), read(8, 9, 0)], 4, "zeroes");
}

#[test]
fn a_read_of_what_was_never_written_is_found() {
    bad(&[write(1, 2, 1), read(3, 4, 7)], 1, "nobody wrote: 0000000000000001:7");
    // Or not yet.
    bad(&[read(1, 2, 1), write(3, 4, 1)], 0, "read");
    let torn = Op { call: 3, ret: Some(4), act: Act::Read(Value::Other("torn: sectors 1.0 2.1".into())) };
    bad(&[write(1, 2, 1), torn], 1, "torn");
}

#[test]
fn what_a_disk_may_do_is_good() {
    good(&[]);
    good(&[read(1, 2, 0), write(3, 4, 1), read(5, 6, 1)]);
    // Under way: before or after.
    good(&[write(1, 9, 1), read(2, 3, 0), read(4, 5, 1)]);
    good(&[write(1, 9, 1), write(1, 9, 2), read(2, 3, 2), read(10, 11, 1)]);
    // An unknown write that never came, one that came at once, one that came after others.
    good(&[unknown(1, 1), read(2, 3, 0), write(4, 5, 2), read(6, 7, 2)]);
    good(&[unknown(1, 1), read(2, 3, 1), write(4, 5, 2), read(6, 7, 2)]);
    good(&[unknown(1, 1), write(4, 5, 2), read(6, 7, 2), read(8, 9, 1), read(10, 11, 1)]);
    // Zeroes from two sources.
    good(&[
        write(1, 2, 1),
        write(3, 9, 0),
        write(3, 9, 0),
        read(4, 5, 0),
        write(6, 7, 2),
        read(8, 9, 2),
        read(10, 11, 0),
    ]);
    // A read that began before the write it does not see has returned.
    good(&[write(1, 2, 1), read(3, 10, 1), write(4, 5, 2), read(6, 7, 2)]);
    let initial = Value::Other("foreign bytes 1".into());
    let seen = Op { call: 1, ret: Some(2), act: Act::Read(initial.clone()) };
    assert_eq!(block(&initial, &[seen]), Ok(()));
}

#[test]
fn whole_histories_are_counted_and_offenders_told() {
    let head = crate::history::Head { weft_checker: 1, run: "1".into(), first_block: 0, blocks: 3, seed: 0 };
    let lines = vec![
        Line::Initial { block: 0, values: vec![Value::Zero; 3] },
        Line::Write { call: 1, ret: Some(2), block: 0, count: 2, id: 1 },
        Line::Write { call: 3, ret: None, block: 1, count: 2, id: 2 },
        Line::Read { call: 5, ret: 6, block: 0, values: vec![stamp(1), stamp(2), stamp(2)] },
    ];
    let history = History { head, run: 1, lines, end: 9 };
    let all = histories(std::slice::from_ref(&history), &[]);
    assert!(all.is_good(), "{all:?}");
    assert_eq!((all.ops, all.reads, all.writes, all.unknown), (7, 3, 2, 2));
    let last = [(0, Value::Zero), (1, stamp(2)), (2, Value::Other("torn: x".into()))];
    let all = histories(&[history], &last);
    assert_eq!((all.lost_acks, all.nonlinear, all.torn), (1, 2, 1));
    assert_eq!(all.blocks.iter().map(|b| b.block).collect::<Vec<_>>(), [0, 2]);
    assert!(all.blocks[0].what.contains("acknowledged write(s) gone"), "{all:?}");
    assert!(all.blocks[0].ops.iter().any(|op| op == "0.000..0.000 ms write 0000000000000001:1"), "{all:?}");
}

#[test]
fn a_long_history_is_judged_at_once() {
    // A hundred thousand requests, eight at a time, zeroes among them, some unknown for ever.
    let (mut ops, mut rng, mut value) = (Vec::new(), crate::Rng(1), 0);
    for n in 0..100_000 {
        let (call, ret) = (n * 10 - n * 10 % 80, n * 10 + 85);
        ops.push(match rng.below(100) {
            0..45 => {
                value = n + 1;
                write(n * 10, n * 10 + 5, value)
            }
            45..48 => {
                value = 0;
                write(n * 10, n * 10 + 5, 0)
            }
            48..49 if n < 2000 => unknown(n * 10, if rng.below(4) == 0 { 0 } else { n + 1 }),
            _ => read(call.max(n * 10), ret, value),
        });
    }
    let outcome = block(&Value::Zero, &ops);
    // Reads end late: some see a value that was overwritten since, which is good.
    assert_eq!(outcome, Ok(()));
}

/// Requests at random; reads see what was written, most of them.
fn small_history() -> impl Strategy<Value = Vec<Op>> {
    let op = (0u64..12, 1u64..6, 0u8..10, 0u64..6);
    prop::collection::vec(op, 1..8).prop_map(|raw| {
        let mut next = 0;
        raw.into_iter()
            .map(|(call, len, kind, value)| {
                let mut fresh = || {
                    next += 1;
                    next
                };
                match kind {
                    0..3 => write(call, call + len, fresh()),
                    3 => unknown(call, fresh()),
                    4 => write(call, call + len, 0),
                    5 => unknown(call, 0),
                    _ => read(call, call + len, value.min(4)),
                }
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_judge_agrees_with_the_trial_of_all_orders(ops in small_history(), initial in 0u64..2) {
        // A first value that a write has, too, would not be unique.
        let initial = if initial == 0 { Value::Zero } else { Value::Other("first".into()) };
        prop_assert_eq!(block(&initial, &ops).is_ok(), brute_force(&initial, &ops));
    }

    #[test]
    fn what_is_lost_is_not_linear(ops in small_history()) {
        if !lost(&Value::Zero, &ops).is_empty() {
            prop_assert!(block(&Value::Zero, &ops).is_err());
        }
    }
}
