//! Hostile bytes at every door of the native code: one function per door, that libFuzzer, the tests and a person with a
//! finding call alike (`npm run fuzz`, `cargo test -p weft-fuzz`).
//!
//! Must always hold:
//! * a target judges: it has invariants of its own and does not only wait for a crash;
//! * a target is a function of its bytes: no clock, no randomness, nothing left from the call before;
//! * every input that ever showed a fault stays in `corpus/` and is replayed by the tests.
#![forbid(unsafe_code)]

pub mod canary;
pub mod checkpoint;
pub mod control;
pub mod holder;
pub mod input;
pub mod log;
pub mod mac_frames;
pub mod messages;
pub mod nbd;
pub mod record;
pub mod replica;
pub mod session;
pub mod snap_reader;
pub mod stream;
pub mod superblock;
pub mod tls_records;
pub mod trust;
pub mod wire;

/// The doors, by the names of their folders in `corpus/` and of their programs.
pub const TARGETS: [(&str, fn(&[u8])); 15] = [
    ("checkpoint", checkpoint::run),
    ("control", control::run),
    ("holder", holder::run),
    ("log", log::run),
    ("mac_frames", mac_frames::run),
    ("nbd", nbd::run),
    ("record", record::run),
    ("replica", replica::run),
    ("session", session::run),
    ("snap_reader", snap_reader::run),
    ("stream", stream::run),
    ("superblock", superblock::run),
    ("tls_records", tls_records::run),
    ("trust", trust::run),
    ("wire", wire::run),
];
