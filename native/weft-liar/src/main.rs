//! `weft-liar`: a host of the cluster, by its own certificate, that lies to another host's data port.
//!
//! ```text
//! weft-liar --identity STATE/identity --to 10.77.0.12:7401 < target.json
//! {"label":"a promise far in the future","accepted":false}
//! ```
//!
//! Exit status 0: all lies were told and the truth was heard; 1: the truth was not heard, and so nothing is proven.

mod lies;
mod peer;

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use serde_json::json;
use weft_io::identity::{Identity, Trust, TrustCell};

use crate::lies::{LIES, Stage};

/// Lies to the data port of a host.
#[derive(Debug, Parser)]
#[command(name = "weft-liar", version, about)]
struct CommandLine {
    /// Holds host.pem and trust.json of the host that lies.
    #[arg(long)]
    identity: PathBuf,
    /// The port that is lied to.
    #[arg(long)]
    to: SocketAddr,
    /// Tells no lie: greets, says `ready`, and ends when the other side cuts the connection.
    #[arg(long)]
    hold: bool,
}

fn main() -> ExitCode {
    match run(&CommandLine::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(line: &CommandLine) -> Result<(), String> {
    let identity = Identity::load(&line.identity).map_err(|e| e.to_string())?;
    let signed = std::fs::read(line.identity.join("trust.json")).map_err(|e| e.to_string())?;
    let trust = Trust::open_first(&signed, identity.cluster()).map_err(|e| e.to_string())?;
    if line.hold {
        let trust = Arc::new(TrustCell::new(trust));
        return lies::hold(line.to, &identity, &trust).map_err(|ended| ended.to_string());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| e.to_string())?;
    let target = serde_json::from_str(&text).map_err(|e| format!("the target: {e}"))?;
    let mode = trust.transport;
    let stage = Stage { to: line.to, identity, trust: Arc::new(TrustCell::new(trust)), target };
    for lie in LIES.iter().filter(|lie| lie.mode.is_none_or(|only| only == mode)) {
        println!("{}", json!({ "label": lie.label, "accepted": lie.tell(&stage) }));
    }
    stage.truth().map_err(|ended| format!("the truth was not heard: {ended}"))
}
