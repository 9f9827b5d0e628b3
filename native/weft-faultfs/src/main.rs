//! `weft-faultfs`: mounts, says so, obeys its control socket, and unmounts when it is told to end.

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use weft_faultfs::control;
use weft_faultfs::mount::Mounted;

/// A pass-through file system with faults on command, for tests.
#[derive(Parser)]
struct Options {
    /// The directory that holds the files.
    #[arg(long)]
    backing: PathBuf,
    /// Where it is mounted.
    #[arg(long)]
    mount: PathBuf,
    /// The socket for commands (JSON lines).
    #[arg(long)]
    control: PathBuf,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-faultfs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let said = |what: &str, path: &PathBuf, error: &dyn std::fmt::Display| {
        format!("{what} {}: {error}", path.display())
    };
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|e| format!("signals: {e}"))?;
    match std::fs::remove_file(&options.control) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(said("remove", &options.control, &e));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&options.control).map_err(|e| said("listen at", &options.control, &e))?;
    let mounted = Mounted::new(&options.backing, &options.mount)
        .map_err(|e| said("mount", &options.backing, &format!("at {}: {e}", options.mount.display())))?;
    control::serve(listener, mounted.shared().clone());
    let ready = json!({ "ready": true, "mount": options.mount, "control": options.control });
    // Whoever doesn't read it doesn't need it.
    let _ = writeln!(std::io::stdout(), "{ready}");
    // Ends at the first one.
    let _ = signals.forever().next();
    let _ = std::fs::remove_file(&options.control);
    Ok(())
}
