//! `weft-holder`: command line, limits of the process, then the control socket (see the library).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Open files: two sockets of each of a thousand entries, and those of the control socket.
const OPEN_FILES: u64 = 8192;

/// Keeps guests' requests while weftd is away. Ends with its guests' disks: it is stopped when no guest runs.
#[derive(Debug, Parser)]
#[command(name = "weft-holder", version, about)]
struct CommandLine {
    /// Where weftd's sockets are, and this one's.
    #[arg(long, default_value = "/run/weft")]
    run_dir: PathBuf,
    /// Let the kernel write a core dump, and debuggers in: both show guests' data.
    #[arg(long)]
    allow_core_dumps: bool,
}

/// Memory holds guests' data: no core dump is written of it.
fn protect() -> rustix::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// As many open files as may be, up to what is needed.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(errno) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })
    {
        tracing::warn!(%errno, "the limit of open files stays");
    }
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();
    if !line.allow_core_dumps
        && let Err(errno) = protect()
    {
        eprintln!("weft-holder can't keep core dumps from being written: {errno}");
        return ExitCode::FAILURE;
    }
    raise_open_files();
    // When it goes, every guest's disk of this host goes: the kernel is to look for memory elsewhere.
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!(%error, "the kernel may end this process when memory is short");
    }
    weft_io::memory::keep_freed();
    let run_dir = match std::fs::create_dir_all(&line.run_dir).and_then(|()| line.run_dir.canonicalize()) {
        Ok(path) => path,
        Err(error) => {
            eprintln!("{}: {error}", line.run_dir.display());
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime without threads needs only an epoll descriptor");
    let served = tokio::task::LocalSet::new().block_on(&runtime, async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let until = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        weft_holder::control::serve(&run_dir, until).await
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-holder: {error}");
            ExitCode::FAILURE
        }
    }
}
