//! `weft-checker`: writes and reads through NBD and keeps a history; judges a history.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use weft_checker::history::{self, History};
use weft_checker::load::{self, Ending};
use weft_checker::stamp::Value;
use weft_checker::{judge, nbd};

/// Load with a memory: is what was acknowledged there, and could a single disk have answered like this?
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes, reads, and keeps a history. Commands on stdin and answers on stdout are JSON lines.
    Run(RunOptions),
    /// Judges histories. Exit status 1 if something is wrong.
    Verify(VerifyOptions),
}

#[derive(Args)]
struct RunOptions {
    /// The NBD server's socket; several are tried one after the other.
    #[arg(long, required = true)]
    socket: Vec<String>,
    /// The export's name.
    #[arg(long, default_value = "")]
    export: String,
    /// How many blocks of 4 KiB are used.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    blocks: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..1 << 40))]
    first_block: u64,
    /// Requests under way at once.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// Connections that share them.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Where choices come from.
    #[arg(long)]
    seed: u64,
    /// The history's file.
    #[arg(long)]
    history: PathBuf,
    /// How long.
    #[arg(long, required_unless_present = "until_stdin_closes")]
    seconds: Option<u64>,
    /// Until stdin ends or says so.
    #[arg(long, conflicts_with = "seconds")]
    until_stdin_closes: bool,
    /// Connects again when the connection is lost.
    #[arg(long)]
    reconnect: bool,
    /// Requests a second at most.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
}

#[derive(Args)]
struct VerifyOptions {
    /// A history; those of one volume and boot can be judged together, the oldest first.
    #[arg(long, required = true)]
    history: Vec<PathBuf>,
    /// Reads all blocks now, too.
    #[arg(long = "final", requires = "socket")]
    last: bool,
    /// The NBD server's socket for that.
    #[arg(long)]
    socket: Option<String>,
    /// The export's name.
    #[arg(long, default_value = "")]
    export: String,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(options) => run(options),
        Command::Verify(options) => verify(&options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("weft-checker: {error}");
        ExitCode::from(2)
    })
}

fn run(options: RunOptions) -> Result<ExitCode, String> {
    let ending = load::run(load::Options {
        sockets: options.socket,
        export: options.export,
        first_block: options.first_block,
        blocks: options.blocks,
        depth: options.depth.into(),
        connections: options.connections.into(),
        seed: options.seed,
        history: options.history,
        time: options.seconds.map(Duration::from_secs),
        reconnect: options.reconnect,
        rate: options.rate,
    })?;
    Ok(match ending {
        Ending::Done => ExitCode::SUCCESS,
        Ending::ConnectionLost => ExitCode::from(3),
    })
}

fn verify(options: &VerifyOptions) -> Result<ExitCode, String> {
    let histories = options.history.iter().map(|path| history::read(path)).collect::<Result<Vec<_>, _>>()?;
    let last = match &options.socket {
        Some(socket) if options.last => last_reads(&histories, socket, &options.export)?,
        _ => Vec::new(),
    };
    let verdict = judge::histories(&histories, &last);
    let _ = writeln!(std::io::stdout(), "{}", json!(verdict));
    Ok(if verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn last_reads(histories: &[History], socket: &str, export: &str) -> Result<Vec<(u64, Value)>, String> {
    let said = |e: std::io::Error| format!("{socket}: {e}");
    let (mut stream, _) = nbd::connect(socket, export, Duration::from_secs(30)).map_err(said)?;
    let mut reads = Vec::new();
    for History { head, .. } in histories {
        let values = nbd::read_blocks(&mut stream, head.first_block, head.blocks).map_err(said)?;
        reads.extend((head.first_block..).zip(values));
    }
    Ok(reads)
}
