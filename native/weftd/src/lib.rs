//! The data daemon: one process per host that holds the host's pools and replicas, opens sessions and exports
//! them to guests.
//!
//! Threads: the *reactor* (the process's first thread) owns every machine, disk and connection; *store* speaks to
//! etcd; *control* serves the control socket. They talk by channels only, and a message to the reactor wakes it.
//!
//! Must always hold:
//! * bytes of a peer, a disk, a guest, a client or the store never panic the daemon;
//! * nothing that blocks (a file system's metadata, a store's answer) runs on the reactor's thread while guests
//!   have sessions;
//! * one daemon per state directory, held by its lock for as long as the process lives.
#![forbid(unsafe_code)]

pub mod claims;
pub mod clock;
pub mod control;
pub mod daemon;
pub mod debug;
pub mod errors;
pub mod exports;
pub mod histogram;
pub mod lays;
pub mod limiter;
pub mod links;
pub mod mail;
pub mod notify;
pub mod pools;
pub mod records;
pub mod reverts;
pub mod seat;
pub mod sessions;
pub mod snapshots;
pub mod state;
pub mod store;
pub mod tokens;
pub mod trust;

/// Logs to standard error: what `WEFT_LOG` names (`weftd=debug`), else everything from `info` on. Journals add the
/// time, terminals want it.
pub fn log_to_stderr() {
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
