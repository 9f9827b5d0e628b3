//! Bad input at every door of the daemon, and faults of what it stands on: real processes, a real store, real disks.
//!
//! Every plot ends in the same way: whoever sent nonsense has an answer with a code (or has lost its own connection),
//! everybody else is served as before, no byte of a volume has changed, and the daemon is the same process with about
//! the same memory.

#[path = "../support/mod.rs"]
mod support;

mod changed;
mod clones;
mod commands;
mod copies;
mod disks;
mod frames;
mod groups;
mod guests;
mod headless;
mod holder;
mod huge;
mod identity;
mod layers;
mod limits;
mod power;
mod records;
mod repairs;
mod reverts;
mod scenarios;
mod scrub;
mod snapshots;
mod space;
mod versions;
