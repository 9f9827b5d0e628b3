//! Records as the store has them: any bytes, and records with any value anywhere.
//!
//! Must always hold:
//! * what is accepted is written back, fits, and is read again as the same record;
//! * a session can open whatever was accepted, and everything that it then writes is a record again.

use serde_json::Value;
use weft_proto::ids::{Generation, HostId, Nonce, Rid, SessionId};
use weft_proto::record::{
    COUNTER_MAX, EPOCH_MAX, Owner, RECORD_MAX, Record, RecordError, ReplicaState, region_shift_for,
};

use crate::input::Input;

/// The record of release 0.1.0 that `weft-proto` keeps.
pub(crate) const SPECIMEN: &str = include_str!("../../weft-proto/specimens/record-v1.json");
/// The same of a volume that is being taken back to a snapshot.
const MARKED: &str = include_str!("../../weft-proto/specimens/record-v2.json");
/// The same of a volume that lives on in its snapshots.
const HEADLESS: &str = include_str!("../../weft-proto/specimens/record-v3.json");
/// The same of a volume that is a layer.
const LAYER: &str = include_str!("../../weft-proto/specimens/record-v4.json");

/// First byte: the bytes themselves, or changes to a good record.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let text = if input.flag() { changed(&mut input) } else { input.rest().to_vec() };
    match Record::parse(&text) {
        Ok(record) => accepted(&record),
        Err(error @ RecordError::TooLong(_)) => assert!(!error.to_string().is_empty()),
        Err(error) => assert!(error.to_string().len() < 2 * RECORD_MAX),
    }
}

/// A record with some values replaced.
pub fn changed(input: &mut Input<'_>) -> Vec<u8> {
    let specimen = match input.one_in(8) {
        true if input.flag() => {
            if input.flag() {
                LAYER
            } else {
                HEADLESS
            }
        }
        true => MARKED,
        false => SPECIMEN,
    };
    let mut record: Value = serde_json::from_str(specimen).expect("the specimen");
    for _ in 0..input.below(6) {
        let value = any(input, 2);
        let fields = record.as_object_mut().expect("an object");
        let name = fields.keys().nth(input.below(fields.len())).expect("a key").clone();
        match (fields.get_mut(&name), input.u8() % 8) {
            (_, 0) => drop(fields.remove(&name)),
            (_, 1) => drop(fields.insert("more".into(), value)),
            (Some(Value::Object(inner)), _) => {
                let name = inner.keys().nth(input.below(inner.len().max(1))).cloned();
                inner.insert(name.unwrap_or_default(), value);
            }
            (Some(Value::Array(items)), 2) if !items.is_empty() => {
                items.push(items[0].clone());
            }
            (Some(Value::Array(items)), _) if !items.is_empty() => {
                let at = input.below(items.len());
                if let Value::Object(inner) = &mut items[at] {
                    let name = inner.keys().nth(input.below(inner.len().max(1))).cloned();
                    inner.insert(name.unwrap_or_default(), value);
                }
            }
            _ => drop(fields.insert(name, value)),
        }
    }
    let mut text = record.to_string().into_bytes();
    if input.one_in(8) {
        // As long as a record may be, with room for a little or for nothing.
        let room = RECORD_MAX.saturating_sub(text.len() + 20 + input.below(600));
        text.pop();
        text.extend_from_slice(b",\"longer\":\"");
        text.resize(text.len() + room, b'x');
        text.extend_from_slice(b"\"}");
    }
    if input.one_in(8) {
        let number = input.pick(&["1e15", "1E300", "-0", "1e-300", "123456789012345678901234567890"]);
        let more = format!(",\"numbers\":[{}]}}", vec![*number; 1 + input.below(400)].join(","));
        text.pop();
        text.extend_from_slice(more.as_bytes());
    }
    text
}

fn any(input: &mut Input<'_>, depth: u8) -> Value {
    match input.u8() % 12 {
        0 => Value::Null,
        1 => Value::Bool(input.flag()),
        2..=4 => Value::from(input.number()),
        5..=7 => Value::from(input.number().to_string()),
        8 => Value::from(format!("{:032x}", input.u128())),
        9 => {
            let len = usize::from(input.u8());
            Value::from(String::from_utf8_lossy(input.take(len)))
        }
        10 if depth > 0 => Value::Array((0..input.below(4)).map(|_| any(input, depth - 1)).collect()),
        11 if depth > 0 => {
            let names = ["count", "node", "session", "a", "__proto__"];
            (0..input.below(4)).map(|at| (names[at].to_owned(), any(input, depth - 1))).collect()
        }
        _ => Value::from(*input.pick(&["INSYNC", "STALE", "REMOVING", "excl", "register", "cached"])),
    }
}

fn accepted(record: &Record) {
    fits(record);
    assert!(record.regions() <= 1 << 20 && region_shift_for(record.size) <= 26);
    assert_ne!(record.epoch.next(), record.epoch);
    // The longest that a session makes of it: every field that a session writes, as long as it gets.
    let mut grown = record.clone();
    let owner = Owner {
        node: HostId(u128::MAX),
        session: SessionId(u128::MAX),
        caretaker: true,
        first: Some(SessionId(u128::MAX)),
    };
    grown.owner = grown.deleted.is_none().then_some(owner);
    grown.clean = false;
    grown.next = None;
    grown.nonce = Nonce(u128::MAX);
    (grown.epoch, grown.rev.0) = (EPOCH_MAX, COUNTER_MAX);
    grown.closed_gen = Generation(u64::MAX);
    let template = grown.replicas.first().cloned();
    while let Some(mut entry) = template.clone().filter(|_| grown.replicas.len() < 8) {
        if grown.next_rid == u32::MAX {
            break;
        }
        entry.rid = Rid(grown.next_rid);
        entry.state = ReplicaState::Stale;
        entry.unknown.clear();
        grown.next_rid += 1;
        grown.replicas.push(entry);
    }
    for entry in &mut grown.replicas {
        entry.pool_inc.0 = COUNTER_MAX;
        entry.base = Generation(u64::MAX);
        entry.since = "18446744073709551615".into();
        entry.reason = "an attempt to write what the longest of our reasons says, and more".into();
    }
    fits(&grown);
}

/// Written, it is a record that others read, and that a promise, a checkpoint and the log can carry.
fn fits(record: &Record) {
    let text = record.to_bytes();
    assert!(text.len() <= RECORD_MAX, "a record of {} bytes was accepted or made", text.len());
    assert_eq!(Record::parse(&text).as_ref(), Ok(record), "a record is read as another one");
}
