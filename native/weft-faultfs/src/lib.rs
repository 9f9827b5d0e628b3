//! A file system for tests that passes everything through to a directory and breaks on command: errors, stalls, a full
//! disk, flushes that flush nothing, and power cuts that take everything with them that was not flushed.
//!
//! ```text
//! weft-faultfs --backing DIR --mount DIR --control SOCK
//! ```
//!
//! What a power cut takes, and what not (a strict disk under a strict file system):
//! * a write is volatile until an fsync or fdatasync of its file, unless it came with `O_DSYNC` or `RWF_DSYNC`. With
//!   direct I/O such a write arrives as a WRITE whose flags hold `O_DSYNC`, and no FSYNC follows: it is durable when it
//!   is answered;
//! * a file's size, its holes and its zeroed ranges are volatile until the file is flushed;
//! * a name (made, removed, renamed) is volatile until its directory is flushed; a rename between two directories is
//!   durable when one of them is. Names that a durable one needs are durable with it;
//! * modes, owners and times are always durable: nobody here relies on them.
//!
//! Commands are JSON lines on a unix socket, one answer for each: see [`control::Command`].
//!
//! Must always hold:
//! * without a command it is a file system like any other;
//! * a request that is stalled keeps only itself waiting. (The kernel has locks of its own: fsync of a file waits for a
//!   blocking write of that file that is under way, and so does a write beyond the end. Asynchronous direct I/O, which
//!   is what pools do, holds neither up.)
//! * what was flushed is there after any number of power cuts.

pub mod control;
pub mod faults;
pub mod mount;
mod names;
pub mod store;
mod undo;
