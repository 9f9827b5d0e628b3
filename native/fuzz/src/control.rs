//! Lines of the daemon's control socket.
//!
//! Must always hold: every line is a command or has one answer of one line, with its id if it had one, a code that
//! stands in docs/errors.md, and a length that its own length bounds.

use serde_json::{Value, json};
use weft_control::frame::{AnswerLine, E_LINE, E_METHOD, parse_line};
use weft_control::methods::Command;

use crate::input::Input;

/// First byte: the line itself, or a command with any parameters.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let line = if input.flag() { command(&mut input) } else { input.rest().to_vec() };
    let id = serde_json::from_slice::<Value>(&line).ok().and_then(|v| v.get("id").and_then(Value::as_u64));
    match parse_line(&line) {
        Ok(parsed) => {
            assert_eq!(Some(parsed.id), id);
            assert!(Command::NAMES.contains(&parsed.command.name()));
        }
        Err(answer) => {
            let AnswerLine::Error { id: told, error } = &answer else { panic!("{answer:?} to no command") };
            assert!(id.is_none() || told.is_none() || *told == id, "answered {told:?} to {id:?}");
            assert!([E_LINE, E_METHOD].contains(&error.code.as_str()), "{error:?}");
            let bytes = answer.to_bytes();
            assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert!(bytes.len() < 16 * line.len() + 1024, "{} bytes answer {}", bytes.len(), line.len());
            serde_json::from_slice::<AnswerLine>(&bytes).expect("an answer is read back");
        }
    }
}

const PARAMS: [&str; 24] = [
    "volume",
    "rid",
    "pool",
    "size",
    "region_shift",
    "record",
    "mode",
    "export",
    "caretaker",
    "old_stopped",
    "abandon",
    "cluster",
    "host",
    "name",
    "address",
    "endpoints",
    "path",
    "node",
    "records",
    "incarnation",
    "nbd",
    "replicas",
    "policy",
    "x",
];

fn command(input: &mut Input<'_>) -> Vec<u8> {
    let method = if input.one_in(16) {
        let len = usize::from(input.u8());
        String::from_utf8_lossy(input.take(len)).into_owned()
    } else {
        (*input.pick(Command::NAMES)).to_owned()
    };
    let mut params = json!({});
    for _ in 0..input.below(10) {
        params[*input.pick(&PARAMS)] = value(input, 3);
    }
    let params = if input.one_in(16) { value(input, 2) } else { params };
    let mut line = json!({ "id": input.number(), "method": method, "params": params });
    if input.one_in(16) {
        line[*input.pick(&["id", "method", "params", "more"])] = value(input, 2);
    }
    line.to_string().into_bytes()
}

fn value(input: &mut Input<'_>, depth: u8) -> Value {
    match input.u8() % 16 {
        0 => Value::Null,
        1 | 2 => Value::Bool(input.flag()),
        3 | 4 => Value::from(input.number()),
        5 => Value::from(input.number().to_string()),
        6 | 7 => {
            let id = u128::from(input.u8());
            Value::from(format!("00000000-0000-0000-0000-{id:012x}"))
        }
        8 => Value::from(*input.pick(&["closed", "steal", "/run/weft/a.sock", "http://127.0.0.1:7402", ""])),
        9 => {
            let len = usize::from(input.u8());
            Value::from(String::from_utf8_lossy(input.take(len)))
        }
        10 if depth > 0 => Value::Array((0..input.below(4)).map(|_| value(input, depth - 1)).collect()),
        11 | 12 if depth > 0 => {
            let mut object = json!({});
            for _ in 0..input.below(6) {
                object[*input.pick(&PARAMS)] = value(input, depth - 1);
            }
            object
        }
        13 => serde_json::from_str(crate::record::SPECIMEN).expect("the specimen"),
        _ => Value::from(-1),
    }
}
