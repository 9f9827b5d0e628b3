//! The floor that benchmarks divide by: the same sockets and the same durable disk write as a replicated write,
//! and nothing in between: no epochs, no stamps, no checksums, no in-sync set. Not for data that anybody wants.
//!
//! ```text
//!  weft-floor run ──────────┐ 64 B + data         ┌─▶ weft-floor serve ─▶ pwritev2(RWF_DSYNC), O_DIRECT
//!  fio ─ unix ─ weft-floor nbd ──── TCP ──────────┴─▶ weft-floor serve ─▶ …
//! ```
//!
//! Must always hold: a write is answered only when every peer has it on stable media.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use weft_io::driver::DriverKind;

mod fan_out;
mod frame;
mod front;
mod run;
mod serve;

const USAGE: &str = "\
weft-floor serve --listen ADDR:PORT --file PATH --size BYTES [--driver auto|io_uring|libaio]
    A peer: keeps the file, which it fills with zeroes when it makes it.
weft-floor run --peer ADDR:PORT [--peer ...] --rw randwrite|randread --depth N --seconds N --size BYTES
    Asks the peers for 4 KiB at a time and prints one line of JSON: {\"iops\":..,\"p50_us\":..,\"min_us\":..}
weft-floor nbd --socket PATH --peer ADDR:PORT [--peer ...] --size BYTES
    Offers the same over NBD.
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let result = Options::parse(words).and_then(|mut options| {
        let end = match command.as_str() {
            "serve" => serve::serve(&serve::Config {
                listen: options.one("listen")?,
                file: options.one("file")?.into(),
                size: options.number("size")?,
                driver: match options.one_or("driver", "auto")?.as_str() {
                    "auto" => None,
                    "io_uring" => Some(DriverKind::IoUring),
                    "libaio" => Some(DriverKind::Libaio),
                    other => return Err(format!("--driver is auto, io_uring or libaio, not {other}")),
                },
            }),
            "run" => run::run(&run::Config {
                peers: options.many("peer")?,
                is_write: match options.one("rw")?.as_str() {
                    "randwrite" => true,
                    "randread" => false,
                    other => return Err(format!("--rw is randwrite or randread, not {other}")),
                },
                depth: options.number("depth")?,
                seconds: options.number("seconds")?,
                size: options.number("size")?,
            }),
            "nbd" => front::serve(&front::Config {
                socket: options.one("socket")?.into(),
                peers: options.many("peer")?,
                size: options.number("size")?,
            }),
            _ => return Err(USAGE.into()),
        };
        end.map_err(|error| format!("weft-floor {command}: {error}"))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{}", sentence.trim_end());
            ExitCode::FAILURE
        }
    }
}

/// `--name value` pairs, each of which must be asked for.
struct Options(Vec<(String, String)>);

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut pairs = Vec::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or(USAGE)?;
            pairs.push((name.to_string(), words.next().ok_or(USAGE)?));
        }
        Ok(Options(pairs))
    }

    fn many(&mut self, name: &str) -> Result<Vec<String>, String> {
        let found = self.0.extract_if(.., |(key, _)| key == name).map(|(_, value)| value).collect::<Vec<_>>();
        if found.is_empty() { Err(format!("--{name} is missing\n{USAGE}")) } else { Ok(found) }
    }

    fn one(&mut self, name: &str) -> Result<String, String> {
        let mut found = self.many(name)?;
        found.pop().ok_or_else(|| format!("--{name} is missing"))
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<T, String> {
        let text = self.one(name)?;
        text.parse().map_err(|_| format!("--{name} is a number, not {text}"))
    }

    fn one_or(&mut self, name: &str, default: &str) -> Result<String, String> {
        if self.0.iter().any(|(key, _)| key == name) { self.one(name) } else { Ok(default.into()) }
    }
}
