//! The history's file: a head, then one JSON array a line, then `["end",T]`.
//!
//! ```text
//! {"weft_checker":1,"run":"00f3…","first_block":0,"blocks":256,"seed":7}
//! ["i",BLOCK,[VALUE,…]]                        what stood there before the first write
//! ["w",CALL,RETURN|null,BLOCK,COUNT,ID]        a write; without a return it is unknown
//! ["z",CALL,RETURN|null,BLOCK,COUNT]           zeroes, written or by a trim
//! ["r",CALL,RETURN,BLOCK,[VALUE,…]]            a read that was answered
//! ["m",T,"name"]                               a mark
//! ```
//! A VALUE is 0 for zeroes, the ID of a write of this run, or a text: `RUN:ID` of another run, or what is wrong.
//!
//! Must always hold: what was asked for and may have taken effect is in the file before its `end`.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::stamp::Value;

/// The first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Head {
    /// The format's version: 1.
    pub weft_checker: u32,
    /// The run's number, in hexadecimal.
    pub run: String,
    /// The first block that the run used.
    pub first_block: u64,
    /// How many.
    pub blocks: u64,
    /// What its choices came from.
    pub seed: u64,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// What stood in these blocks at the start.
    Initial {
        /// The first block.
        block: u64,
        /// What stood there and after it.
        values: Vec<Value>,
    },
    /// A write of the run's own.
    Write {
        /// When it was asked for.
        call: u64,
        /// When it was acknowledged.
        ret: Option<u64>,
        /// The first block.
        block: u64,
        /// How many.
        count: u64,
        /// Its number in the run.
        id: u64,
    },
    /// Zeroes.
    Zero {
        /// When they were asked for.
        call: u64,
        /// When they were acknowledged.
        ret: Option<u64>,
        /// The first block.
        block: u64,
        /// How many.
        count: u64,
    },
    /// A read that was answered.
    Read {
        /// When it was asked for.
        call: u64,
        /// When it was answered.
        ret: u64,
        /// The first block.
        block: u64,
        /// What was read there and after it.
        values: Vec<Value>,
    },
    /// A mark.
    Mark {
        /// When.
        at: u64,
        /// Its name.
        name: String,
    },
}

/// Writes a history.
#[derive(Debug)]
pub struct Writer {
    file: BufWriter<File>,
    run: u64,
}

impl Writer {
    /// Begins a file.
    pub fn create(path: &Path, head: &Head, run: u64) -> io::Result<Writer> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        writeln!(file, "{}", serde_json::to_string(head)?)?;
        Ok(Writer { file, run })
    }

    /// Adds a line.
    pub fn push(&mut self, line: &Line) -> io::Result<()> {
        let values = |values: &[Value]| values.iter().map(|v| json_of(v, self.run)).collect::<Vec<_>>();
        let json = match line {
            Line::Initial { block, values: v } => json!(["i", block, values(v)]),
            Line::Write { call, ret, block, count, id } => json!(["w", call, ret, block, count, id]),
            Line::Zero { call, ret, block, count } => json!(["z", call, ret, block, count]),
            Line::Read { call, ret, block, values: v } => json!(["r", call, ret, block, values(v)]),
            Line::Mark { at, name } => json!(["m", at, name]),
        };
        writeln!(self.file, "{json}")
    }

    /// Says that it is complete.
    pub fn end(mut self, at: u64) -> io::Result<()> {
        writeln!(self.file, "{}", json!(["end", at]))?;
        self.file.flush()
    }
}

fn json_of(value: &Value, run: u64) -> Json {
    match value {
        Value::Zero => json!(0),
        Value::Stamp { run: theirs, id } if *theirs == run => json!(id),
        other => json!(other.to_string()),
    }
}

/// A history that was read.
#[derive(Clone, Debug)]
pub struct History {
    /// Its head.
    pub head: Head,
    /// The run's number.
    pub run: u64,
    /// Its lines.
    pub lines: Vec<Line>,
    /// When it ended.
    pub end: u64,
}

/// Reads a file; a sentence if it is not a complete history.
pub fn read(path: &Path) -> Result<History, String> {
    let said = |what: &str| format!("{}: {what}", path.display());
    let file = File::open(path).map_err(|e| said(&e.to_string()))?;
    let mut lines = BufReader::with_capacity(1 << 20, file).lines();
    let first = lines.next().ok_or_else(|| said("is empty"))?.map_err(|e| said(&e.to_string()))?;
    let head: Head = serde_json::from_str(&first).map_err(|e| said(&format!("line 1: {e}")))?;
    if head.weft_checker != 1 {
        return Err(said(&format!("has format {}, this program knows 1", head.weft_checker)));
    }
    let run = u64::from_str_radix(&head.run, 16).map_err(|e| said(&format!("line 1: run: {e}")))?;
    let (mut parsed, mut end) = (Vec::new(), None);
    for (line, number) in lines.zip(2..) {
        let line = line.map_err(|e| said(&e.to_string()))?;
        let json: Vec<Json> =
            serde_json::from_str(&line).map_err(|e| said(&format!("line {number}: {e}")))?;
        match parse(&json, run) {
            Some(Parsed::Line(line)) => parsed.push(line),
            Some(Parsed::End(at)) => end = Some(at),
            None => return Err(said(&format!("line {number} is not understood: {line}"))),
        }
    }
    let end = end.ok_or_else(|| said("is not complete: whoever wrote it did not end in order"))?;
    Ok(History { head, run, lines: parsed, end })
}

enum Parsed {
    Line(Line),
    End(u64),
}

fn parse(json: &[Json], run: u64) -> Option<Parsed> {
    let (kind, rest) = json.split_first()?;
    let number = |at: usize| rest.get(at)?.as_u64();
    // None is no number at all; Some(None) is null.
    let maybe = |at: usize| match rest.get(at)? {
        Json::Null => Some(None),
        other => other.as_u64().map(Some),
    };
    let value = |v: &Json| match v {
        Json::String(text) => Some(Value::parse(text)),
        other => other.as_u64().map(|id| if id == 0 { Value::Zero } else { Value::Stamp { run, id } }),
    };
    let values = |at: usize| rest.get(at)?.as_array()?.iter().map(value).collect::<Option<Vec<_>>>();
    Some(Parsed::Line(match kind.as_str()? {
        "i" => Line::Initial { block: number(0)?, values: values(1)? },
        "w" => Line::Write {
            call: number(0)?,
            ret: maybe(1)?,
            block: number(2)?,
            count: number(3)?,
            id: number(4)?,
        },
        "z" => Line::Zero { call: number(0)?, ret: maybe(1)?, block: number(2)?, count: number(3)? },
        "r" => Line::Read { call: number(0)?, ret: number(1)?, block: number(2)?, values: values(3)? },
        "m" => Line::Mark { at: number(0)?, name: rest.get(1)?.as_str()?.to_owned() },
        "end" => return Some(Parsed::End(number(0)?)),
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_is_incomplete_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("h");
        let head =
            Head { weft_checker: 1, run: "00000000000000ff".into(), first_block: 0, blocks: 4, seed: 1 };
        let other = Value::Stamp { run: 3, id: 8 };
        let lines = [
            Line::Initial { block: 0, values: vec![Value::Zero, other, Value::Other("torn: x".into())] },
            Line::Write { call: 1, ret: Some(4), block: 2, count: 1, id: 1 },
            Line::Write { call: 1, ret: None, block: 2, count: 2, id: 2 },
            Line::Zero { call: 2, ret: None, block: 0, count: 1 },
            Line::Read { call: 5, ret: 6, block: 2, values: vec![Value::Stamp { run: 255, id: 2 }] },
            Line::Mark { at: 7, name: "a \"mark\"".into() },
        ];
        let mut writer = Writer::create(&path, &head, 255).expect("created");
        for line in &lines {
            writer.push(line).expect("written");
        }
        drop(writer);
        assert!(read(&path).expect_err("no end").contains("not complete"));
        let mut writer = Writer::create(&path, &head, 255).expect("created");
        for line in &lines {
            writer.push(line).expect("written");
        }
        writer.end(9).expect("ended");
        let history = read(&path).expect("complete");
        assert_eq!((history.lines.as_slice(), history.end, history.run), (&lines[..], 9, 255));
    }
}
