//! Guests' requests: how a session's volume looks to a hypervisor.
//!
//! Must always hold:
//! * a guest's bytes are parsed before they are trusted and never panic;
//! * guest data is copied once, into a private buffer, before anything else looks at it (protocol.md R12);
//! * no socket, file, thread or clock is named here: the daemon owns them and moves the bytes.
#![forbid(unsafe_code)]

pub mod nbd;
