//! One line of the control socket each way.
//!
//! Must always hold: a line that is no command still gets an answer, with its `id` if it had one.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::methods::{BadCommand, Command};
use crate::types::{ErrorBody, Event, Facts};

/// The longest line a client may send, in bytes: a store's worth of records (`store.repair_apply`) fits.
pub const LINE_MAX: usize = 16 * 1024 * 1024;

/// A line was no JSON object of a command's shape, or longer than [`LINE_MAX`].
pub const E_LINE: &str = "E-ARG-02";
/// There is no such method.
pub const E_METHOD: &str = "E-ARG-01";

/// A parsed line.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandLine {
    /// Chosen by the client, repeated in the answer.
    pub id: u64,
    /// What it asks.
    pub command: Command,
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AnswerLine {
    /// It was done.
    Result {
        /// The command's.
        id: u64,
        /// The method's answer.
        result: Value,
    },
    /// It was not.
    Error {
        /// The command's, or null when the line had none.
        id: Option<u64>,
        /// Why.
        error: ErrorBody,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCommand {
    id: u64,
    method: String,
    params: Option<Value>,
}

#[derive(Deserialize)]
struct OnlyId {
    id: u64,
}

/// Parses one line, or says what to answer instead.
pub fn parse_line(line: &[u8]) -> Result<CommandLine, AnswerLine> {
    parse_line_of(line, Command::parse).map(|(id, command)| CommandLine { id, command })
}

/// The same for a socket with other commands: the line's id, and its command.
pub fn parse_line_of<C>(
    line: &[u8],
    parse: impl FnOnce(&str, Option<Value>) -> Result<C, BadCommand>,
) -> Result<(u64, C), AnswerLine> {
    let raw: RawCommand = serde_json::from_slice(line).map_err(|e| AnswerLine::Error {
        id: serde_json::from_slice::<OnlyId>(line).ok().map(|only| only.id),
        error: error(
            E_LINE,
            format!("expected a line {{\"id\":…,\"method\":…,\"params\":{{…}}}}, found: {e}"),
            &[],
        ),
    })?;
    match parse(&raw.method, raw.params) {
        Ok(command) => Ok((raw.id, command)),
        Err(BadCommand::NoMethod { method, near }) => Err(AnswerLine::Error {
            id: Some(raw.id),
            error: error(
                E_METHOD,
                format!("no method {method:?}; did you mean {near:?}?"),
                &[("method", method.as_str()), ("near", near)],
            ),
        }),
        Err(BadCommand::Params { method, wrong }) => Err(AnswerLine::Error {
            id: Some(raw.id),
            error: error(
                E_LINE,
                format!("parameters of {method}: {wrong}"),
                &[("method", method), ("wrong", wrong.as_str())],
            ),
        }),
    }
}

/// The answer to a line that was too long to be read.
#[must_use]
pub fn too_long() -> AnswerLine {
    AnswerLine::Error {
        id: None,
        error: error(E_LINE, format!("a line is at most {LINE_MAX} bytes; this connection is closed"), &[]),
    }
}

impl AnswerLine {
    /// The line's bytes, with its newline.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        line_of(self)
    }
}

/// An event's bytes, with its newline.
#[must_use]
pub fn event_to_bytes(event: &Event) -> Vec<u8> {
    line_of(event)
}

fn line_of<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("these types have string keys and finite numbers");
    bytes.push(b'\n');
    bytes
}

fn error(code: &str, message: String, facts: &[(&str, &str)]) -> ErrorBody {
    let facts: Facts = facts.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
    ErrorBody { code: code.to_owned(), message, facts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Nothing;

    fn refusal(line: &[u8]) -> (Option<u64>, String) {
        match parse_line(line).expect_err("not a command") {
            AnswerLine::Error { id, error } => (id, error.code),
            AnswerLine::Result { .. } => unreachable!("a refusal is no result"),
        }
    }

    #[test]
    fn a_line_becomes_a_command() {
        let line = parse_line(br#"{"id":7,"method":"hello","params":{}}"#).expect("a command");
        assert_eq!(line, CommandLine { id: 7, command: Command::Hello(Nothing {}) });
    }

    #[test]
    fn each_kind_of_bad_line_is_told_with_its_id_if_it_had_one() {
        assert_eq!(refusal(b"\xff\xfe{"), (None, E_LINE.to_owned()));
        assert_eq!(refusal(b"[]"), (None, E_LINE.to_owned()));
        assert_eq!(refusal(br#"{"id":3}"#), (Some(3), E_LINE.to_owned()));
        assert_eq!(refusal(br#"{"id":-1,"method":"hello"}"#), (None, E_LINE.to_owned()));
        assert_eq!(refusal(br#"{"id":4,"method":"helo"}"#), (Some(4), E_METHOD.to_owned()));
        assert_eq!(refusal(br#"{"id":5,"method":"hello","params":{"a":1}}"#), (Some(5), E_LINE.to_owned()));
        let deep = [br#"{"id":1,"method":"#.as_slice(), &b"[".repeat(100_000)].concat();
        assert_eq!(refusal(&deep), (None, E_LINE.to_owned()));
    }

    #[test]
    fn answers_are_one_line_each() {
        let done = AnswerLine::Result { id: 1, result: serde_json::json!({"text": "a\nb"}) };
        assert_eq!(done.to_bytes(), b"{\"id\":1,\"result\":{\"text\":\"a\\nb\"}}\n");
        let bytes = too_long().to_bytes();
        assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), 1);
        assert_eq!(serde_json::from_slice::<AnswerLine>(&bytes).expect("reads back"), too_long());
    }
}
