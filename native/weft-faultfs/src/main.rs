//! `weft-faultfs`: mounts, says so, obeys its control socket, and unmounts when it is told to end.

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fuser::{Config, MountOption, SessionACL};
use rustix::mount::{UnmountFlags, unmount};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use weft_faultfs::control;
use weft_faultfs::mount::{Mount, Shared};

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
    let shared = Shared::open(&options.backing).map_err(|e| said("open", &options.backing, &e))?;
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|e| format!("signals: {e}"))?;
    match std::fs::remove_file(&options.control) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(said("remove", &options.control, &e));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&options.control).map_err(|e| said("listen at", &options.control, &e))?;
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("weft-faultfs".to_owned())];
    config.acl = SessionACL::All;
    config.n_threads = Some(4);
    config.clone_fd = true;
    let session = fuser::spawn_mount(Mount::new(shared.clone()), &options.mount, &config)
        .map_err(|e| said("mount at", &options.mount, &e))?;
    control::serve(listener, shared.clone());
    let ready = json!({ "ready": true, "mount": options.mount, "control": options.control });
    // Whoever doesn't read it doesn't need it.
    let _ = writeln!(std::io::stdout(), "{ready}");
    // Ends at the first one.
    let _ = signals.forever().next();
    let _ = std::fs::remove_file(&options.control);
    // A file that is still open must not keep it mounted.
    unmount(&options.mount, UnmountFlags::DETACH).map_err(|e| said("unmount", &options.mount, &e))?;
    if shared.store.is_powered() {
        shared.store.close();
    }
    // Requests that are stalled end with the process: to wait for the session's threads would be to wait for them.
    std::mem::forget(session);
    Ok(())
}
