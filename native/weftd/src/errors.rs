//! What a command is answered when it is not done.
//!
//! Must always hold: a code, once given out, never changes its meaning, and each stands in docs/errors.md.

use std::fmt;

use serde_json::Value;
use weft_control::types::{ErrorBody, Facts};

/// A code of docs/errors.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Code(&'static str);

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal;)+) => {
        impl Code {
            $($(#[doc = $doc])+ pub const $name: Code = Code($code);)+

            /// Every code that this daemon gives.
            pub const ALL: &'static [Code] = &[$(Code::$name),+];
        }
    };
}

codes! {
    /// No such volume, pool, replica or session.
    NO_SUCH = "E-ARG-01";
    /// A value can't be understood.
    BAD_VALUE = "E-ARG-02";
    /// The volume exists already.
    VOLUME_EXISTS = "E-VOL-01";
    /// A size that no volume can have.
    VOLUME_SIZE = "E-VOL-02";
    /// Too many sessions.
    TOO_MANY_SESSIONS = "E-VOL-04";
    /// No copy with every completed write can be reached.
    WAITING = "E-VOL-09";
    /// The volume is paused: a close would drop writes.
    PAUSED = "E-VOL-10";
    /// The volume is deleted.
    DELETED = "E-VOL-11";
    /// The volume is open elsewhere.
    OPEN_ELSEWHERE = "E-VOL-12";
    /// The volume is not open here.
    NOT_OPEN = "E-VOL-13";
    /// The volume is being opened or closed here.
    CHANGING = "E-VOL-14";
    /// A shrink that was not said to be meant.
    WOULD_LOSE = "E-VOL-15";
    /// The volume's head is deleted: it lives on in its snapshots.
    HEAD_DELETED = "E-VOL-19";
    /// What a deleted head had goes, or is gone.
    HEAD_GONE = "E-VOL-20";
    /// Somebody else has owned the volume in between.
    TAKEN = "E-VOL-21";
    /// A layer was not laid over its volume to the end.
    LAY_CUT = "E-VOL-22";
    /// The volume is no layer, or can't become one.
    NO_LAYER = "E-VOL-23";
    /// A copy of the volume lies where it can have no snapshots.
    SNAPSHOT_CANNOT_BE = "E-SNAP-01";
    /// The volume has a snapshot of that name.
    SNAPSHOT_EXISTS = "E-SNAP-02";
    /// The volume waits for something, so that no snapshot can be taken.
    SNAPSHOT_WAITS = "E-SNAP-03";
    /// The snapshot is in use.
    SNAPSHOT_OPEN = "E-SNAP-04";
    /// The snapshot is protected.
    SNAPSHOT_PROTECTED = "E-SNAP-05";
    /// The limit of snapshots.
    SNAPSHOTS_MAX = "E-SNAP-06";
    /// No other copy has what a snapshot needs.
    SNAPSHOT_LAST_HOLDER = "E-SNAP-07";
    /// A copy has no room for a snapshot.
    SNAPSHOT_NO_SPACE = "E-SNAP-08";
    /// No such snapshot.
    NO_SNAPSHOT = "E-SNAP-09";
    /// The volume has snapshots.
    HAS_SNAPSHOTS = "E-SNAP-10";
    /// The snapshot that a clone is to be made of is not in that pool.
    SNAPSHOT_NOT_HERE = "E-SNAP-12";
    /// A volume has not the size of the snapshot that it is to be taken back to.
    REVERT_SIZE = "E-SNAP-15";
    /// The snapshot's data was destroyed.
    SNAPSHOT_DESTROYED = "E-SNAP-18";
    /// No copy says what has changed between two snapshots.
    CHANGED_UNKNOWN = "E-SNAP-16";
    /// Too few copies have the snapshot that a volume is to be taken back to.
    REVERT_TOO_FEW = "E-SNAP-19";
    /// A volume is being taken back to another snapshot.
    REVERT_REPLACED = "E-SNAP-20";
    /// A snapshot can't be brought to a copy now.
    SNAPSHOT_NOT_BROUGHT = "E-SNAP-21";
    /// A copy that can't be listed with a snapshot.
    SNAPSHOT_NOT_WHOLE = "E-SNAP-22";
    /// There is a copy of that number already.
    REPLICA_EXISTS = "E-REPL-02";
    /// It would leave too few in-sync copies.
    LAST_COPY = "E-REPL-03";
    /// The limit of copies.
    TOO_MANY_REPLICAS = "E-REPL-04";
    /// A copy that was to go is one that its volume's record names.
    STILL_NAMED = "E-REPL-05";
    /// No pool can be made there.
    POOL_PATH = "E-POOL-01";
    /// The directory is not empty.
    POOL_NOT_EMPTY = "E-POOL-02";
    /// The pool is quarantined.
    POOL_QUARANTINED = "E-POOL-03";
    /// Replicas live in the pool.
    POOL_IN_USE = "E-POOL-05";
    /// No space.
    NO_SPACE = "E-POOL-06";
    /// The pool does not serve yet.
    POOL_NOT_SERVING = "E-POOL-07";
    /// The host is another cluster's member already.
    OTHER_CLUSTER = "E-HOST-04";
    /// Another daemon uses the state or run directory.
    STATE_LOCKED = "E-HOST-05";
    /// A file of the state directory can't be read or written.
    STATE_FILE = "E-HOST-06";
    /// A limit of the process is too low.
    PROCESS_LIMIT = "E-HOST-07";
    /// A socket can't be made.
    SOCKET = "E-HOST-08";
    /// The daemon has not been made part of a cluster yet.
    NOT_CONFIGURED = "E-AGENT-03";
    /// The store can't be reached.
    STORE_AWAY = "E-STORE-01";
    /// The store has gone back in time.
    STORE_ROLLED_BACK = "E-STORE-02";
    /// A change's outcome is not known yet.
    OUTCOME_UNKNOWN = "E-STORE-06";
    /// A record in the store can't be used.
    BAD_RECORD = "E-STORE-07";
    /// A record in the store is newer than this software.
    NEWER_RECORD = "E-STORE-13";
    /// A peer has no identity of this cluster, or breaks the protocol.
    PEER_UNKNOWN = "E-NET-01";
    /// A peer's key is not on the trust list.
    PEER_NOT_LISTED = "E-NET-02";
    /// A peer was revoked.
    PEER_REVOKED = "E-NET-03";
    /// A peer's certificate has ended.
    PEER_EXPIRED = "E-NET-04";
    /// A peer's certificate has not begun.
    CLOCKS_DIFFER = "E-NET-05";
    /// A frame's MAC is wrong.
    FRAME_MAC = "E-NET-06";
    /// A peer wants another transport.
    OTHER_TRANSPORT = "E-NET-08";
    /// A trust list that nobody who may sign has signed, or that is none.
    TRUST_REFUSED = "E-TRUST-01";
    /// The store's trust list is older than this host's.
    TRUST_OLDER = "E-TRUST-02";
    /// This host has no identity yet.
    NO_IDENTITY = "E-TRUST-03";
    /// Another host says that the store has gone back, this host's own read does not show it.
    STORE_DOUBTED = "E-TRUST-04";
    /// The disk failed.
    DISK_FAILED = "E-DISK-01";
    /// The session ended before the command was done.
    SESSION_ENDED = "E-SESS-01";
    /// The daemon is stopping.
    STOPPING = "E-SESS-02";
}

impl Code {
    /// As it stands in docs/errors.md.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Why something was not done: a code, a sentence for a person, and the facts of the sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The code.
    pub code: Code,
    /// The sentence.
    pub message: String,
    /// The facts.
    pub facts: Facts,
}

impl Failure {
    /// A failure without facts.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), facts: Facts::new() }
    }

    /// The same with one more fact.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    /// As it crosses the control socket.
    #[must_use]
    pub fn into_body(self) -> ErrorBody {
        ErrorBody { code: self.code.to_string(), message: self.message, facts: self.facts }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_stands_in_the_table_and_once_here() {
        let table = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors.md"))
            .expect("docs/errors.md");
        for (i, code) in Code::ALL.iter().enumerate() {
            assert!(table.contains(&format!("\n| {code} |")), "{code} is missing in docs/errors.md");
            assert!(!Code::ALL[..i].contains(code), "{code} is given out twice");
        }
    }
}
