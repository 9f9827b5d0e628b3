//! `weftd`: command line, then the daemon (see the library).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use weftd::daemon::{self, DriverChoice, Options};
use weftd::debug;

/// The data daemon of weft.
#[derive(Debug, Parser)]
#[command(name = "weftd", version, about)]
struct CommandLine {
    /// Durable state of this host.
    #[arg(long, default_value = "/var/lib/weft")]
    state_dir: PathBuf,
    /// Sockets.
    #[arg(long, default_value = "/run/weft")]
    run_dir: PathBuf,
    /// How disks are driven.
    #[arg(long, value_enum, default_value_t = Driver::Auto)]
    driver: Driver,
    /// Read the boot id from this file instead of the kernel (several hosts on one machine).
    #[arg(long)]
    boot_id_file: Option<PathBuf>,
    /// Let the kernel write a core dump, and debuggers in: both show keys and guests' data.
    #[arg(long)]
    allow_core_dumps: bool,
    #[command(subcommand)]
    command: Option<Subcommands>,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Looks into a pool's directory that no daemon serves.
    #[command(subcommand)]
    Debug(DebugCommand),
}

#[derive(Debug, Subcommand)]
enum DebugCommand {
    /// Prints superblock, log and replicas as JSON.
    Dump {
        /// The pool's directory.
        path: PathBuf,
    },
    /// Says what is wrong, one line each; exit code 3 if anything is.
    Check {
        /// The pool's directory.
        path: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Driver {
    /// The best that the kernel has.
    Auto,
    /// io_uring.
    #[value(name = "io_uring")]
    IoUring,
    /// Linux AIO.
    Libaio,
}

/// Memory holds keys and guests' data: no core dump is written of it, and only root may look into it.
fn protect() -> rustix::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    if let Some(Subcommands::Debug(command)) = &line.command {
        return run_debug(command);
    }
    if !line.allow_core_dumps
        && let Err(errno) = protect()
    {
        eprintln!("weftd can't keep core dumps from being written: {errno}");
        return ExitCode::FAILURE;
    }
    weft_io::memory::keep_freed();
    weftd::log_to_stderr();
    let options = Options {
        state_dir: line.state_dir,
        run_dir: line.run_dir,
        driver: match line.driver {
            Driver::Auto => DriverChoice::Auto,
            Driver::IoUring => DriverChoice::IoUring,
            Driver::Libaio => DriverChoice::Libaio,
        },
        boot_id_file: line.boot_id_file,
    };
    match daemon::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run_debug(command: &DebugCommand) -> ExitCode {
    let (DebugCommand::Dump { path } | DebugCommand::Check { path }) = command;
    let report = match debug::examine(path) {
        Ok(report) => report,
        Err(failure) => {
            eprintln!("{failure}");
            return ExitCode::FAILURE;
        }
    };
    if matches!(command, DebugCommand::Dump { .. }) {
        println!("{:#}", report.dump);
    }
    for problem in &report.problems {
        eprintln!("{problem}");
    }
    if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) }
}
