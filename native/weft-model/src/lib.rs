//! Explicit-state checkers of the replication protocol (docs/model.md says what is checked and what that proves).
//!
//! Must always hold:
//! - every rule that the protocol claims to need has a mutation here that drops it, and a test that finds the
//!   counter-example (a checker that finds nothing when a rule is broken proves nothing when none is);
//! - the unbroken models are clean within the bounds that the tests name;
//! - nothing here is imported by the daemon: the models share the protocol's words with it, no code.

#![forbid(unsafe_code)]

pub mod cases;
pub mod core;
pub mod explore;
pub mod lease;
mod mask;
