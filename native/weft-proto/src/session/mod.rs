//! One attach of one volume on one host, as a machine: the owner, the only writer, the sequencer of
//! overlapping requests.
//!
//! ```text
//! Reading ─▶ Contacting ─▶ Claiming ─▶ Gathering ─▶ Stamping ─▶ Serving ─▶ Closing ─▶ Ended
//!  record     a member       swap       promises     what may     guest      seal,
//!  is read    answers(R16)   owner:=me  of members   differ (R5)  I/O        swap
//! ```
//!
//! Must always hold:
//! * a write completes only when every in-sync member of the record that is *known* to be current, and every
//!   joiner whose admission was ever asked for, has acknowledged it (R2, R3, R14);
//! * a swap with unknown outcome changes nothing that the stricter of both outcomes forbids (I32);
//! * a range stays locked until every recipient of a write has answered or its attachment has ended (R3);
//! * reads go to in-sync members only, and only while every one of them has lately said that it obeys us (R9).
//!
//! Driving it: call `handle_*` for what happened, `submit`/`close`/… for what is wanted, then drain
//! [`Session::poll_transmit`], [`Session::poll_store`], [`Session::poll_reply`] and [`Session::poll_event`];
//! call [`Session::handle_timeout`] at [`Session::poll_timeout`].

mod barrier;
mod copies;
mod copy;
pub mod head;
mod join;
mod open;
mod ops;
mod peer;
pub mod policy;
mod revert;
mod scrub;
mod serve;
pub mod size;
mod snaps;
mod store;
#[cfg(test)]
mod tests;
mod view;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use crate::block_set::BlockSet;
use crate::guest::{GuestOp, GuestReply, RequestId};
use crate::ids::{
    Epoch, Generation, HostId, Instant, Nonce, Ordinal, PoolId, Revision, Rid, SessionId, SnapId, VolumeId,
};
use crate::message::{Claim, Request, Response, Watermark};
use crate::mutants::Broken;
use crate::payload::Payload;
use crate::record::{Owner, Record, RecordError, Reverting};
use crate::snap_group::GroupStep;

pub use copies::NotAdded;
pub use copy::PieceId;
pub use ops::OpId;
pub(crate) use ops::{clip_data, clip_kinds, verified};
pub use revert::{RevertFailure, RevertView};
pub use scrub::ScrubView;
pub use snaps::{LAST_HOLDER, SnapChange, SnapData, SnapFailure, SnapKnown, SnapState, SnapTaken};
pub use view::{MemberView, ResyncView, SessionView};

use barrier::{Barrier, SnapAsk};
use copy::{Damaged, Piece};
use head::Release;
use join::Join;
use ops::{GuestRequest, Op};
use peer::Peer;
use policy::PolicyChange;
use revert::Revert;
use scrub::Scrubber;
use size::Growing;
use snaps::Snaps;
use store::Attempt;

/// How long things may take, in milliseconds (operations.md, "Failover").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between heartbeats.
    pub heartbeat_ms: u64,
    /// Silence after which a member serves no reads.
    pub suspect_ms: u64,
    /// Silence after which a member is demoted.
    pub dead_ms: u64,
    /// How long a heartbeat's answer allows reads (R9).
    pub lease_ms: u64,
    /// How long a thief completes no write: the lease and 1 % for clocks that differ.
    pub lease_wait_ms: u64,
    /// Longest interval between rolls.
    pub roll_ms: u64,
    /// Roll after so much quiet.
    pub idle_roll_ms: u64,
    /// Under load, an interval is at least so long …
    pub busy_roll_ms: u64,
    /// … and has so many writes for each 1 MiB that it stamped: then a roll's new stamps cost little beside them, and
    /// a member that goes away lacks little more than what it missed (M2).
    pub writes_per_stamp: u64,
    /// From this interval of an epoch on a new epoch is asked for: intervals never wrap (R21).
    pub renew_interval: u32,
    /// Before a store call or an attach is tried again.
    pub retry_ms: u64,
    /// Before a failed join is tried again; doubles up to 32 times.
    pub rejoin_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            heartbeat_ms: 100,
            suspect_ms: 500,
            dead_ms: 1500,
            lease_ms: 2000,
            lease_wait_ms: 2020,
            roll_ms: 60_000,
            idle_roll_ms: 1000,
            busy_roll_ms: 1000,
            writes_per_stamp: 8,
            renew_interval: 1 << 23,
            retry_ms: 200,
            rejoin_ms: 300,
        }
    }
}

/// May a recorded owner be replaced?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Only a closed volume, or one that a caretaker holds.
    Closed,
    /// Whoever owns it. `old_stopped`: the caller asserts that the process of exactly this session has ended,
    /// so that no read lease of it can be alive (R9).
    Steal {
        /// The session that is known to have ended, if any.
        old_stopped: Option<SessionId>,
    },
    /// As [`OpenMode::Closed`], or from exactly this session, whatever comes between the decision and the swap (R33).
    Replace {
        /// The session that it was decided to replace.
        session: SessionId,
        /// The caller asserts that its process has ended (R9).
        ended: bool,
    },
    /// Only from exactly this session of the same host, whose process has ended: requests that it did not answer are
    /// repeated (R32).
    Continue {
        /// That session.
        session: SessionId,
    },
}

impl OpenMode {
    /// May a guest's session be replaced that is the recorded owner?
    fn may_replace(self, owner: SessionId) -> bool {
        match self {
            OpenMode::Closed => false,
            OpenMode::Steal { .. } => true,
            OpenMode::Replace { session, .. } | OpenMode::Continue { session } => owner == session,
        }
    }

    /// Has the process of this session ended, as whoever opens asserts?
    fn has_ended(self, session: SessionId) -> bool {
        match self {
            OpenMode::Closed => false,
            OpenMode::Steal { old_stopped } => old_stopped == Some(session),
            OpenMode::Replace { session: old, ended } => ended && old == session,
            OpenMode::Continue { session: ended } => ended == session,
        }
    }
}

/// What a session is made from.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The volume.
    pub volume: VolumeId,
    /// This session: fresh per process and open, never reused (R14).
    pub session: SessionId,
    /// This host.
    pub host: HostId,
    /// How to open.
    pub mode: OpenMode,
    /// No guest: reconcile, resync, change; anybody may take the volume over.
    pub caretaker: bool,
    /// This host's watermark (R11).
    pub watermark: Watermark,
    /// Times.
    pub timing: Timing,
    /// Randomness, fresh per session: nonces and hash keys are made from it.
    pub seed: u128,
    /// Unix time in milliseconds at `Instant(0)`, for the record's `since` (people read it, no rule does).
    pub unix_ms_at_zero: u64,
    /// A broken rule, for the simulator.
    pub broken: Broken,
}

/// A request to a replica. The caller carries it to `node` on the attachment (`rid`, `ordinal`).
#[derive(Clone, Debug, PartialEq)]
pub struct Transmit<P> {
    /// To which replica.
    pub rid: Rid,
    /// Where it lives.
    pub node: HostId,
    /// In which pool.
    pub pool: PoolId,
    /// On which attachment; a new one begins with an attach request.
    pub ordinal: Ordinal,
    /// The request.
    pub request: Request<P>,
}

/// A call to the store; one at a time.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreCall {
    /// A linearizable read of the record.
    Get,
    /// Write `record` iff what stands there is the record with the nonce `base` at the revision `expect`; read it in
    /// the same transaction if not. A store that was put back counts its revisions anew, so neither is enough (R11).
    Swap {
        /// The revision to compare.
        expect: Revision,
        /// The nonce of the record that is replaced.
        base: Nonce,
        /// The new record.
        record: Record,
        /// What becomes of a snapshot's key in the same transaction.
        snap: Option<SnapChange>,
        /// The snapshot is one of a group: this is applied with the swaps of all the others, in one transaction, or it is
        /// answered with `Unavailable`.
        grouped: bool,
    },
}

/// What the store said.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreReply {
    /// To a get.
    Record {
        /// The record.
        record: Record,
        /// Its revision.
        revision: Revision,
    },
    /// To a swap: applied.
    Swapped {
        /// The record's revision.
        revision: Revision,
    },
    /// To a swap: not applied now; an earlier try of the same may have been.
    Conflict {
        /// The record as it is.
        record: Record,
        /// Its revision.
        revision: Revision,
    },
    /// There is no such record.
    Missing,
    /// There is one, but not for this software.
    Unusable(RecordError),
    /// Not known whether it was, or will be, applied.
    Unknown,
    /// Surely not applied, and never will be.
    Unavailable,
    /// The store is behind this host's watermark (R11).
    RolledBack,
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Closed as asked.
    Closed,
    /// Given up as asked, with so many guest writes unanswered.
    Abandoned {
        /// Unanswered writes.
        lost_writes: u64,
    },
    /// Another session owns the volume.
    Fenced {
        /// Who, if anyone.
        owner: Option<Owner>,
    },
    /// Another session owned the volume when this one asked.
    Busy {
        /// Who.
        owner: Owner,
    },
    /// The volume does not exist or was deleted.
    Missing,
    /// Its head is deleted, and it lives on in its snapshots: only a caretaker opens it (R31).
    HeadDeleted,
    /// The record can't be used by this software.
    Unusable(RecordError),
    /// The store shows less than replicas or this host have seen: nobody opens until `weft store repair` (R11).
    MetadataRollback,
    /// Another host says that the store has gone back, and a read here does not show it (R11): nothing is opened.
    Claimed(Claim),
    /// Every in-sync member lost its cache while the session lived (R8): its guest must not go on.
    CachesLost,
    /// A mode that this software does not serve.
    Unsupported(&'static str),
}

/// Something that the daemon logs, counts or acts upon.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The session owns the volume and serves.
    Opened {
        /// At this epoch.
        epoch: Epoch,
    },
    /// Requests wait.
    Paused {
        /// For what.
        reason: String,
    },
    /// Requests go on.
    Resumed,
    /// Members were taken out of the in-sync set.
    Demoted {
        /// Which.
        rids: Vec<Rid>,
        /// Why.
        reason: String,
    },
    /// A resync began.
    ResyncStarted {
        /// Of which replica.
        rid: Rid,
        /// Bytes that may differ.
        bytes: u64,
    },
    /// A replica joined the in-sync set.
    Admitted {
        /// Which.
        rid: Rid,
        /// Bytes that were copied to it.
        copied: u64,
    },
    /// A join was given up; it is tried again.
    JoinAbandoned {
        /// Of which replica.
        rid: Rid,
        /// Why.
        reason: String,
    },
    /// The record changed.
    RecordChanged,
    /// The answer to [`Session::add_replica`] or [`Session::remove_replica`].
    ChangeDone {
        /// Of which replica.
        rid: Rid,
        /// Done, or why not.
        outcome: Result<(), &'static str>,
    },
    /// The answer to [`Session::resize`].
    Resized {
        /// The size that was asked for, in bytes.
        size: u64,
        /// Done and held durably by every in-sync member (R25), or why not.
        outcome: Result<(), &'static str>,
    },
    /// The answer to [`Session::set_policy`].
    PolicySet {
        /// Done, or why not.
        outcome: Result<(), &'static str>,
    },
    /// The answer to [`Session::release_head`].
    HeadReleasing {
        /// The record says so, or why not.
        outcome: Result<(), &'static str>,
    },
    /// What only the deleted head had is gone at every member, and the record says so.
    HeadReleased,
    /// The volume is being taken back to a snapshot: once a second.
    Reverting {
        /// To which.
        id: SnapId,
        /// So many bytes are as they were then …
        done: u64,
        /// … of so many that have to be looked at; none while it is not known which.
        total: Option<u64>,
    },
    /// The answer to [`Session::revert`], and the end of a revert that was found under way when the session opened.
    Reverted {
        /// To which snapshot.
        id: SnapId,
        /// So many bytes were written, and every in-sync member holds the record without the marker durably (R30); or why
        /// not.
        outcome: Result<u64, RevertFailure>,
    },
    /// The answer to [`Session::snapshot`]: it is there for good, every listed member that is in sync has logged it (R27).
    /// Also of one that an earlier session took and did not get logged.
    SnapshotTaken {
        /// Which one.
        id: SnapId,
        /// The barrier's generation.
        generation: Generation,
        /// Who has an image.
        members: Vec<Rid>,
        /// How long writes were held for it, in milliseconds; 0 if this session did not take it.
        held_ms: u64,
    },
    /// Or why it is not there. It may come to be there all the same if the store did not answer: ask again.
    SnapshotFailed {
        /// Which one.
        id: SnapId,
        /// Why.
        why: SnapFailure,
    },
    /// The answer to [`Session::delete_snapshot`]: its key says so.
    SnapshotDeleting {
        /// Which one.
        id: SnapId,
    },
    /// Its key is gone, and every image.
    SnapshotGone {
        /// Which one.
        id: SnapId,
    },
    /// The answer to [`Session::destroy_snapshot`]: its key says so. Once more when its data is gone at every copy.
    SnapshotDestroyed {
        /// Which one.
        id: SnapId,
    },
    /// The answer to [`Session::change_snapshot`]: the swap is applied.
    SnapshotChanged {
        /// Which one.
        id: SnapId,
    },
    /// The answer to [`Session::add_snapshot_copy`].
    SnapshotCopyAdded {
        /// Which one.
        id: SnapId,
        /// Which member.
        rid: Rid,
        /// It is listed, or why it is not.
        outcome: Result<(), NotAdded>,
    },
    /// Members could not give a block.
    Rotten {
        /// Its byte offset.
        offset: u64,
        /// Which members.
        rids: Vec<Rid>,
        /// All of them have it again, from another one.
        mended: bool,
    },
    /// Copies of a block differ, and each one's checksum is right: nothing was written.
    Divergent {
        /// Its byte offset.
        offset: u64,
        /// Who was asked for it.
        rids: Vec<Rid>,
    },
    /// A scrub is over.
    ScrubEnded {
        /// Everything was looked at; else it was stopped.
        complete: bool,
    },
    /// The session is over; nothing follows.
    Ended(EndReason),
}

/// Figures of a session, all since it opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Guest reads answered.
    pub reads: u64,
    /// Guest writes, discards and zeroes answered.
    pub writes: u64,
    /// Longest time between a guest write's arrival and its answer, in milliseconds.
    pub stall_ms_max: u64,
    /// Guest requests that failed because the session was fenced.
    pub fenced: u64,
    /// Bytes copied to joiners.
    pub resynced_bytes: u64,
    /// Bytes that had changed while joiners were away, as the owner's bitmaps know it.
    pub changed_bytes: u64,
    /// Bytes compared by hash for resync or reconcile.
    pub hashed_bytes: u64,
    /// Bytes equalised after an open (R5).
    pub reconciled_bytes: u64,
    /// Bytes whose copies scrubs have compared.
    pub scrubbed_bytes: u64,
    /// Blocks that a copy could not give, each copy counted.
    pub rotten_blocks: u64,
    /// Those of them that were written again from another copy.
    pub repaired_blocks: u64,
    /// Blocks whose copies are all valid, and differ.
    pub divergent_blocks: u64,
    /// Blocks that no copy could give.
    pub lost_blocks: u64,
}

/// Where the session is.
#[derive(Debug)]
enum Phase {
    Reading,
    Contacting { since: Instant },
    Claiming,
    Gathering { since: Instant },
    Stamping(open::Stamping),
    Serving,
    Closing(serve::Closing),
    Ended,
}

/// A change that the agent asked for.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    Add {
        rid: Rid,
        node: HostId,
        pool: PoolId,
    },
    Remove {
        rid: Rid,
    },
    Resize {
        size: u64,
        lose: bool,
    },
    Policy(PolicyChange),
    /// What only the deleted head has shall go.
    Release,
    /// Refused if it could not be begun by then.
    Revert {
        id: SnapId,
        until: Instant,
    },
}

/// The session machine.
#[derive(Debug)]
pub struct Session<P> {
    config: SessionConfig,
    phase: Phase,
    /// Gathers again what may differ, as at an open: a member lost its cache, and this is where it goes on after (R8).
    back: Option<Phase>,
    record: Option<Record>,
    revision: Revision,
    watermark: Watermark,
    random: u128,

    // The store.
    attempts: Vec<Attempt>,
    store_busy: bool,
    /// The call under way is a swap.
    swapping: bool,
    store_retry: Option<Instant>,
    get_wanted: bool,
    /// Highest (epoch) that a replica told us it promised to someone else, and whether a read followed.
    rollback_suspect: Option<Epoch>,
    /// The suspicion that the read under way was sent after: only that one can it confirm (R11).
    suspect_asked: Option<Epoch>,
    /// The highest that another host says it has seen of the store, to be looked up before the claim (R11).
    told: Option<Claim>,
    /// The same of the read under way.
    told_asked: Option<Claim>,

    // Members.
    peers: BTreeMap<Rid, Peer>,
    first_promise: Option<Instant>,
    steal_wait: bool,
    first_epoch: Epoch,
    paused: Option<String>,
    paused_since: Option<Instant>,
    change: VecDeque<Change>,
    /// The growth that is under way.
    growing: Option<Growing>,
    /// By this session: the generation of the GROW, and the record's size before it.
    growths: Vec<(Generation, u64)>,
    /// A resize that was done, to be told when every member holds the record.
    telling: Option<u64>,

    /// The revert that is to be begun, or that the record says is under way.
    revert: Option<Revert>,
    /// One that was done, with the bytes that were written, to be told when every member holds the record.
    reverted: Option<(SnapId, u64)>,
    /// The marker that the record has not, under a broken rule.
    unmarked: Option<Reverting>,

    /// What only the deleted head has goes.
    release: Option<Release>,

    // Snapshots.
    snaps: Snaps,
    /// Those that were asked for, the one that is being taken first.
    asks: VecDeque<SnapAsk>,
    barrier: Option<Barrier>,
    /// It holds no writes any more: those that wait are looked at.
    released: bool,
    /// Attempts in this epoch.
    snap_count: u64,

    // Intervals and seals.
    interval: u32,
    rolled: Instant,
    last_write: Instant,
    /// Writes of the current interval.
    interval_writes: u64,
    sealed: Generation,
    roll_now: bool,
    bitmaps: BTreeMap<Generation, BlockSet>,

    // Work.
    ops: BTreeMap<OpId, Op<P>>,
    waiting: VecDeque<OpId>,
    locks: BTreeMap<u64, (u64, ops::Lock)>,
    guests: BTreeMap<RequestId, GuestRequest<P>>,
    pieces: BTreeMap<PieceId, Piece>,
    /// After a piece failed: no new one before this.
    copy_hold: Instant,
    /// Regions that may differ between members (R5): what of them is still to be equalised, once begun.
    dirty: BTreeMap<u32, Option<BlockSet>>,
    dirty_wanted: VecDeque<u32>,
    /// The member to reconcile from.
    trusted: Option<Rid>,
    /// No other one will do: the others lost what they had in their caches (R8).
    trusted_only: bool,
    /// Blocks that a member could not give for a copy, since its attachment: copied to it without a look, and from
    /// another one.
    unreadable: BTreeMap<Rid, BlockSet>,
    /// What its image of the snapshot that the volume is taken back to could not give, since its attachment.
    damaged: BTreeMap<Rid, Damaged>,
    /// Where that happened a piece is one block long, so that it is known which.
    singly: BlockSet,
    scrubber: Scrubber,
    join: Option<Join>,
    rejoin: BTreeMap<Rid, (Instant, u32)>,
    /// Members whose silence or whose overdue write was seen at the last tick.
    stalled: BTreeMap<Rid, &'static str>,
    last_tick: Instant,
    /// An interval that was rolled away and is to be sealed, and the flush before that in cached mode.
    seal_next: Option<(Generation, Option<OpId>)>,
    seal_acks: (Generation, Vec<Rid>),
    /// A stamp was written since the last roll.
    stamped: bool,
    /// Something freed what others may wait for; looked at again at the end of `maintain`.
    progressed: bool,
    next_id: u64,

    // What comes out.
    transmits: VecDeque<Transmit<P>>,
    store_calls: VecDeque<StoreCall>,
    replies: VecDeque<(RequestId, GuestReply<P>)>,
    events: VecDeque<Event>,
    next_tick: Instant,
    figures: Figures,
}

impl<P: Payload> Session<P> {
    /// A session that begins to open its volume.
    #[must_use]
    pub fn new(config: SessionConfig, now: Instant) -> Self {
        let mut session = Session {
            watermark: config.watermark,
            random: config.seed,
            phase: Phase::Reading,
            back: None,
            record: None,
            revision: Revision(0),
            attempts: Vec::new(),
            store_busy: false,
            swapping: false,
            store_retry: None,
            get_wanted: true,
            rollback_suspect: None,
            suspect_asked: None,
            told: None,
            told_asked: None,
            peers: BTreeMap::new(),
            first_promise: None,
            steal_wait: false,
            first_epoch: Epoch(0),
            paused: None,
            paused_since: None,
            change: VecDeque::new(),
            growing: None,
            growths: Vec::new(),
            telling: None,
            revert: None,
            reverted: None,
            unmarked: None,
            release: None,
            snaps: Snaps::default(),
            asks: VecDeque::new(),
            barrier: None,
            released: false,
            snap_count: 0,
            interval: 0,
            rolled: now,
            last_write: now,
            interval_writes: 0,
            sealed: Generation::NEVER,
            roll_now: false,
            bitmaps: BTreeMap::new(),
            ops: BTreeMap::new(),
            waiting: VecDeque::new(),
            locks: BTreeMap::new(),
            guests: BTreeMap::new(),
            pieces: BTreeMap::new(),
            copy_hold: now,
            dirty: BTreeMap::new(),
            dirty_wanted: VecDeque::new(),
            trusted: None,
            trusted_only: false,
            unreadable: BTreeMap::new(),
            damaged: BTreeMap::new(),
            singly: BlockSet::default(),
            scrubber: Scrubber::default(),
            join: None,
            rejoin: BTreeMap::new(),
            stalled: BTreeMap::new(),
            last_tick: now,
            seal_next: None,
            seal_acks: (Generation::NEVER, Vec::new()),
            stamped: false,
            progressed: false,
            next_id: 0,
            transmits: VecDeque::new(),
            store_calls: VecDeque::new(),
            replies: VecDeque::new(),
            events: VecDeque::new(),
            next_tick: now,
            figures: Figures::default(),
            config,
        };
        session.maintain(now);
        session
    }

    // ---- getters

    /// Its volume.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.config.volume
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.config.session
    }

    /// The record as this session knows it.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// True once guest requests are served (or wait for a member).
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Closing(_)) || self.back.is_some() && !self.is_ended()
    }

    /// True when the session is over.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Unanswered guest requests.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.guests.len()
    }

    /// The epoch that it holds; 0 before the claim.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        if self.owns() { self.record.as_ref().map_or(Epoch(0), |r| r.epoch) } else { Epoch(0) }
    }

    // ---- what happened

    /// The connection to a replica's host is up; the session attaches.
    pub fn handle_link_up(&mut self, now: Instant, rid: Rid) {
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.link_up(now);
        }
        self.maintain(now);
    }

    /// The connection to a replica's host is gone. `refused`: a new one was refused, nobody listens there.
    pub fn handle_link_down(&mut self, now: Instant, rid: Rid, refused: bool) {
        self.drop_attachment(rid);
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.link_down(now, refused);
        }
        self.maintain(now);
    }

    /// A replica answered on an attachment.
    pub fn handle_response(&mut self, now: Instant, rid: Rid, ordinal: Ordinal, response: Response<P>) {
        self.take_response(now, rid, ordinal, response);
        self.maintain(now);
    }

    /// The store answered the last call. `watermark`: how far the store was seen to be by that answer.
    pub fn handle_store(&mut self, now: Instant, reply: StoreReply, watermark: Option<Watermark>) {
        if let Some(seen) = watermark {
            self.handle_watermark(seen);
        }
        self.take_store_reply(now, reply, watermark);
        self.maintain(now);
    }

    /// A watch showed a record; a hint, never the outcome of anything.
    pub fn handle_record_seen(&mut self, now: Instant, revision: Revision) {
        if revision > self.revision && !self.is_ended() {
            self.get_wanted = true;
        }
        self.maintain(now);
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.next_tick {
            self.next_tick = now.after_ms(self.config.timing.heartbeat_ms);
            self.tick(now);
        }
        self.maintain(now);
    }

    /// This host has seen the store further.
    pub fn handle_watermark(&mut self, seen: Watermark) {
        self.watermark = self.watermark.max(seen);
    }

    /// Another host says that it has seen more of the store than this one: nothing is opened before a read here has shown
    /// as much. An open volume goes on.
    pub fn handle_claim(&mut self, now: Instant, claim: Claim) {
        self.heed(claim);
        self.maintain(now);
    }

    // ---- what the caller wants

    /// A guest's request; answered once through [`Session::poll_reply`].
    pub fn submit(&mut self, now: Instant, id: RequestId, op: GuestOp<P>) {
        self.accept(now, id, op);
        self.maintain(now);
    }

    /// Reads whole blocks as they lie on the copies, answered like any read. Of a layer with its mark, which no guest is shown:
    /// for who lays it over another volume (docs/model.md R34).
    pub fn read_as_it_lies(&mut self, now: Instant, id: RequestId, offset: u64, len: u64) {
        self.accept_read(now, id, offset, len);
        self.maintain(now);
    }

    /// Ends the session in order: drain, seal, swap. Refused (false) while the volume waits for a member: what
    /// the guest wrote would hang in the air; see [`Session::abandon`].
    #[must_use]
    pub fn close(&mut self, now: Instant) -> bool {
        let accepted = self.begin_close(now);
        self.maintain(now);
        accepted
    }

    /// Ends the session at once; unanswered writes may or may not have happened. Members are reconciled by the
    /// next open.
    pub fn abandon(&mut self, now: Instant) {
        let lost_writes = self.guests.values().filter(|g| g.is_write()).count() as u64;
        self.end(EndReason::Abandoned { lost_writes });
        self.maintain(now);
    }

    /// Adds a replica, made durable on its host, as a stale one with base 0; it is then resynced.
    pub fn add_replica(&mut self, now: Instant, rid: Rid, node: HostId, pool: PoolId) {
        self.change.push_back(Change::Add { rid, node, pool });
        self.maintain(now);
    }

    /// Takes a replica out of the record.
    pub fn remove_replica(&mut self, now: Instant, rid: Rid) {
        self.change.push_back(Change::Remove { rid });
        self.maintain(now);
    }

    /// Changes the volume's size, in bytes: larger at any time, smaller only in a caretaker's session and if it may `lose`
    /// what lies beyond. Answered by [`Event::Resized`], in the order of asking, unless the session ends before.
    pub fn resize(&mut self, now: Instant, size: u64, lose: bool) {
        self.change.push_back(Change::Resize { size, lose });
        self.maintain(now);
    }

    /// Changes what is wanted of the volume. Answered by [`Event::PolicySet`], unless the session ends before; several in
    /// the order in which they were asked for.
    pub fn set_policy(&mut self, now: Instant, wanted: PolicyChange) {
        self.change.push_back(Change::Policy(wanted));
        self.maintain(now);
    }

    /// Takes the volume back to a snapshot, in place: in a caretaker's session only, so that no guest has the volume. What
    /// was written since is lost, unless a later snapshot has it. Answered by [`Event::Reverted`], unless the session ends
    /// before; once the record says that it is under way, whoever opens the volume finishes it before anything else. Asked
    /// for while the same is under way it is answered with that one; while another one is, it takes that one's place.
    pub fn revert(&mut self, now: Instant, id: SnapId) {
        self.revert_asked(now, id);
        self.maintain(now);
    }

    /// Gives back what only the deleted head has: it can't be restored any more then. Answered by [`Event::HeadReleasing`] when
    /// the record says so, in the order of asking; [`Event::HeadReleased`] follows when all of it is gone, of this session or of
    /// one that opens the volume later.
    pub fn release_head(&mut self, now: Instant) {
        self.change.push_back(Change::Release);
        self.maintain(now);
    }

    /// The snapshots that the volume has by the store, read after [`Event::Opened`]: nobody else changes them then. What
    /// earlier sessions left unfinished goes on; before this no snapshot is taken or deleted.
    pub fn know_snapshots(&mut self, now: Instant, known: Vec<SnapKnown>) {
        self.snaps_known(known);
        self.maintain(now);
    }

    /// Takes a snapshot: what was answered before this is in it, nothing that is asked for after the answer. `note`, at
    /// most [`NOTE_MAX`](crate::message::NOTE_MAX) bytes, is kept by the members. Answered by [`Event::SnapshotTaken`] or
    /// [`Event::SnapshotFailed`], at the latest after 20 s, unless the session ends before.
    pub fn snapshot(&mut self, now: Instant, id: SnapId, note: Vec<u8>) {
        self.snapshot_asked(now, id, note);
        self.maintain(now);
    }

    /// Takes a snapshot as one of a group, tried once, until then: it is driven by a
    /// [`SnapGroup`](crate::snap_group::SnapGroup), which wants to know of each [`Session::snapshot_step`].
    pub fn snapshot_in_group(&mut self, now: Instant, id: SnapId, note: Vec<u8>, until: Instant) {
        self.asked_until(id, note, until, true);
        self.maintain(now);
    }

    /// How far a snapshot of a group is.
    #[must_use]
    pub fn snapshot_step(&self, id: SnapId) -> Option<GroupStep> {
        self.barrier_step(id)
    }

    /// All of a snapshot's group have come so far: it goes on.
    pub fn pass_snapshot(&mut self, now: Instant, id: SnapId, step: GroupStep) {
        self.barrier_passes(id, step);
        self.maintain(now);
    }

    /// The group of a snapshot comes to nothing: so does this one, without an event, unless its swap was sent.
    pub fn drop_snapshot(&mut self, now: Instant, id: SnapId) {
        self.barrier_dropped(id);
        self.maintain(now);
    }

    /// Deletes a snapshot. Answered by [`Event::SnapshotDeleting`] when its key says so, then by [`Event::SnapshotGone`]
    /// when no copy of the record has an image any more, or at once if there is none; unless the session ends before.
    pub fn delete_snapshot(&mut self, now: Instant, id: SnapId) {
        self.snaps.changes.push_back(SnapChange::Deleting { id });
        self.maintain(now);
    }

    /// Destroys the data of a snapshot, of which hashes are kept. Answered by [`Event::SnapshotDestroyed`] when its key says so;
    /// the copies do it then, each as soon as it is there.
    pub fn destroy_snapshot(&mut self, now: Instant, id: SnapId) {
        self.snaps.changes.push_back(SnapChange::Destroyed { id });
        self.maintain(now);
    }

    /// Makes the swap with which the caller changes a snapshot's key: its name, its protection. What it is to be is the
    /// caller's; this makes sure that nobody else has changed the record or a key meanwhile. Answered by
    /// [`Event::SnapshotChanged`], or by [`Event::SnapshotGone`] if there is none; unless the session ends before.
    pub fn change_snapshot(&mut self, now: Instant, id: SnapId) {
        self.snaps.changes.push_back(SnapChange::Changed { id });
        self.maintain(now);
    }

    // ---- what to do next

    /// The next request to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit<P>> {
        self.transmits.pop_front()
    }

    /// The next call to the store; answer it with [`Session::handle_store`].
    pub fn poll_store(&mut self) -> Option<StoreCall> {
        self.store_calls.pop_front()
    }

    /// The next answer to a guest.
    pub fn poll_reply(&mut self) -> Option<(RequestId, GuestReply<P>)> {
        self.replies.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Session::handle_timeout`] is due; `None` when the session is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_ended() {
            return None;
        }
        let scrub = self.scrub_wakes().filter(|_| matches!(self.phase, Phase::Serving));
        Some(scrub.map_or(self.next_tick, |at| at.min(self.next_tick)))
    }

    /// Every replica to which a connection is wanted, with its host and pool.
    pub fn wanted_links(&self) -> impl Iterator<Item = (Rid, HostId, PoolId)> + '_ {
        self.peers.iter().filter(|_| !self.is_ended()).map(|(rid, p)| (*rid, p.node, p.pool))
    }

    // ---- shared by the parts

    /// Makes what must be true, true again, after anything happened. Loops until nothing changes.
    fn maintain(&mut self, now: Instant) {
        let mut passes = 0;
        loop {
            passes += 1;
            assert!(passes < 10_000, "the session does not come to rest: {:?}", self.view());
            let before = self.progress_mark();
            self.progressed = false;
            match self.phase {
                Phase::Ended => return self.drain_ended(),
                Phase::Reading => {}
                Phase::Claiming => self.claim_again(now),
                Phase::Contacting { .. } => self.contact(now),
                Phase::Gathering { .. } | Phase::Stamping(_) => self.gather(now),
                Phase::Serving | Phase::Closing(_) => self.serve(now),
            }
            self.drive_store(now);
            self.attach_peers(now);
            if self.progress_mark() == before && !self.progressed {
                break;
            }
        }
    }

    /// Changes whenever a pass of `maintain` did something that another pass could build upon.
    fn progress_mark(&self) -> (usize, usize, usize, u64, core::mem::Discriminant<Phase>) {
        (
            self.events.len(),
            self.store_calls.len(),
            self.replies.len(),
            self.next_id + self.transmits.len() as u64,
            core::mem::discriminant(&self.phase),
        )
    }

    fn owns(&self) -> bool {
        matches!(
            self.phase,
            Phase::Gathering { .. } | Phase::Stamping(_) | Phase::Serving | Phase::Closing(_)
        )
    }

    fn rec(&self) -> &Record {
        self.record.as_ref().expect("a record is known in every phase after Reading")
    }

    fn in_sync(&self) -> Vec<Rid> {
        self.record.iter().flat_map(|r| r.in_sync().map(|e| e.rid)).collect()
    }

    fn generation(&self) -> Generation {
        Generation::new(self.rec().epoch, self.interval)
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// A 128-bit number that differs at every call, from the seed (splitmix64 twice).
    #[allow(clippy::cast_possible_truncation)] // Mixing folds the upper half in first.
    fn fresh_random(&mut self) -> u128 {
        let mut half = || {
            self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
            let mut z = (self.random ^ (self.random >> 64)) as u64;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            u128::from(z ^ (z >> 31))
        };
        (half() << 64) | half()
    }

    fn fresh_nonce(&mut self) -> Nonce {
        Nonce(self.fresh_random())
    }

    fn heed(&mut self, claim: Claim) {
        if matches!(self.phase, Phase::Reading | Phase::Contacting { .. }) && claim.watermark > self.watermark
        {
            self.told = self.told.max(Some(claim));
            self.get_wanted = true;
        }
    }

    fn end(&mut self, reason: EndReason) {
        if self.is_ended() {
            return;
        }
        self.phase = Phase::Ended;
        self.drain_ended();
        self.events.push_back(Event::Ended(reason));
    }

    /// Every guest request of an ended session fails; nothing is sent any more.
    fn drain_ended(&mut self) {
        use crate::guest::GuestError;
        while let Some((id, _)) = self.guests.pop_first() {
            self.figures.fenced += 1;
            self.replies.push_back((id, GuestReply::Failed(GuestError::Fenced)));
        }
        self.ops.clear();
        self.waiting.clear();
        self.locks.clear();
        self.pieces.clear();
        self.scrub_is_over();
        self.join = None;
        (self.growing, self.telling) = (None, None);
        (self.revert, self.reverted, self.release) = (None, None, None);
        self.forget_barrier();
        self.store_calls.clear();
        self.transmits.clear();
    }
}
