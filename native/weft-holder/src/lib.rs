//! The holder: one small process per host, between guests whose disks fail for good when their server closes a connection
//! (tapdisk) and `weftd`, which may be killed, restarted or replaced at any time.
//!
//! ```text
//!  tapdisk ─ NBD ─▶ Connection ─▶ Held ─▶ Link ─ NBD ─▶ weftd's export of the session
//!  tapdisk ◀────── Connection ◀───────── Link ◀──────── (gone: Held keeps, asks weftd to open again, repeats)
//! ```
//!
//! When a request may be asked for again (docs/model.md, R32; docs/adr/0026):
//! * only while the client that made it is connected, and only if it was never answered;
//! * only into a session of the same ownership, which weftd proves by the volume's record each time that it opens, and by the
//!   name of the export each time that it is connected to: nobody else has owned the volume in between;
//! * never beside an earlier or later one that overlaps it, unless both only read: of those the earlier is answered first;
//! * never while an older connection to the same export may still be read by weftd: that one has ended before.
//!
//! Must always hold besides:
//! * a client is told of an error only when waiting can't help: its volume was taken (ESHUTDOWN), a block that no copy can
//!   give or a policy that wants errors (EIO), a range that isn't the volume's;
//! * what is held is bounded; at the limit the client's socket is not read;
//! * bytes of a client, of weftd or of whoever asks on the control socket never panic the process.
#![forbid(unsafe_code)]

pub mod control;
mod devices;
mod entry;
pub mod held;
mod link;
mod netlink;
mod upstream;
pub mod wire;
