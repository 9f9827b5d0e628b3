//! Crash enumeration: weftd's own pools play workloads over a disk whose every write and flush is written down; then
//! every state that a power cut may leave is made, recovered by the same code, and judged (protocol.md 4.21, P1, P4,
//! M30, N8; the idea is that of ALICE and CrashMonkey).
//!
//! ```text
//! workload ─▶ weftd's pools ─▶ weft-io's door and driver ─▶ trace
//! trace, cut anywhere ─▶ legal states of the disk ─▶ weftd's pools again ─▶ judge
//! ```
//!
//! Must always hold: an oracle that sees nothing is found out: without any one class of flushes some state is a
//! violation, or the class is listed with the reason why it is not needed.
#![forbid(unsafe_code)]

pub mod disk;
pub mod gate;
pub mod host;
pub mod judge;
pub mod races;
pub mod rng;
pub mod run;
pub mod snapshots;
pub mod trace;
pub mod workloads;
