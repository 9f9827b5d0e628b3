//! The replication protocol of weft, sans-I/O: machines that are told what happened and asked what to do next.
//!
//! Must always hold:
//! * nothing here names a clock, socket, file, thread or source of randomness; they arrive as arguments;
//! * bytes of a peer, a disk or a store are parsed before they are trusted and never panic;
//! * invariants (I1..I33 of protocol.md 4.21) are asserted in release builds too.
//!
//! The machines' methods come in four kinds: getters; `handle_*(now, …)` for what happened; verbs for what the
//! caller wants; `poll_*` for what to do next. After any of the first three, drain the `poll_*`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod block_set;
mod bytes;
pub mod checkpoint;
pub mod durable;
pub mod guest;
pub mod hashes;
pub mod ids;
pub mod images;
pub mod layer;
pub mod log;
pub mod message;
pub mod mutants;
pub mod payload;
pub mod record;
pub mod replica;
pub mod session;
pub mod snap_copy;
pub mod snap_group;
pub mod snap_reader;
pub mod superblock;
pub mod wire;
