//! One stored copy of a volume, as a machine: obeys promises, stamps before data, answers every request once.
//!
//! ```text
//! request ──check (epoch, session, ordinal, bounds)──▶ stamp needed? ──log──▶ disk ──▶ response
//! promise ──higher: the store's record──▶ remember ──▶ log ──▶ wait for all lower-epoch I/O ──▶ response
//! attach  ──remember at once──▶ wait for all I/O of lower ordinals ──▶ response
//! ```
//!
//! Must always hold:
//! * data requests execute only at exactly the promised (epoch, host, session), from the session's newest attachment
//!   (R1, I4), and none of a lower epoch is unfinished when a promise is answered (I5);
//! * the promised epoch rises only to what a read of the store, made after it was asked, shows to be the asker's; while
//!   the store is away, at most to [`EPOCH_JUMP_UNVERIFIED`] above the last epoch that a read has shown. What is asked
//!   and not verified yet changes nothing;
//! * nor does it rise faster than [`RISE_AT_ONCE`] an hour, whatever the store shows: any host can write a record near the
//!   end of its range, above which there is nothing to repair it to;
//! * a session is its host's: what another host says in its name is another session's, and gets nothing;
//! * a region's stamp is durable before data of that generation may reach the medium (R6, I8);
//! * a promise is answered when the regions are as large as those of its record (R26);
//! * nothing is cut that the newest promise's record has, or that the volume is about to grow by: a promise or a GROW
//!   takes a cut back and begins when what was under way of it has ended (R18);
//! * what the log or the disk refused is answered as refused, and nothing is assumed of it.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::durable::Durable;
use crate::ids::{Epoch, Generation, HostId, Instant, Ordinal, PoolId, PoolInc, Rid, SessionId, VolumeId};
use crate::images::ImageForm;
use crate::log::{LogRecord, ReplicaKey};
use crate::message::{
    Answer, Ask, Attach, Extent, Hole, MAX_DATA, Refusal, ReplicaView, Request, Response, Watermark,
};
use crate::mutants::{Broken, Mutation};
use crate::payload::{BLOCK, Payload};
use crate::record::{REGIONS_MAX, Record};

mod clones;
mod copies;
mod hashing;
mod images;
mod promise;

use clones::Cloning;
pub use clones::NotCloned;
use copies::Copies;
pub use copies::{CopyOf, CopyStep, NotCopied};
pub use images::{IMAGES_MAX, ImageOp};
use images::{Imaging, Look, Next, Snap};
pub use promise::{EPOCH_JUMP_UNVERIFIED, RISE_AT_ONCE};
use promise::{Rises, WaitingPromise, owner_host};

/// A page of a STAMPS answer has at most this many entries: it fits one frame.
pub const STAMPS_PAGE: usize = 4096;
/// Largest range of one KINDS request, in bytes.
pub const KINDS_MAX: u64 = 64 << 20;
/// Largest range of one HASH request, in bytes.
pub const HASH_MAX: u64 = 1 << 20;
/// What lies beyond the end of a volume that was shrunk is cut in pieces of this many bytes, from the end on: a promise
/// or a GROW waits for no more than one.
const CUT_PIECE: u64 = 1 << 30;
/// Unanswered requests of one attachment; more are refused as busy, so that memory stays bounded.
pub const REQUESTS_MAX: usize = 1024;
/// Sessions without an attachment whose highest ordinal is remembered.
const SESSIONS_REMEMBERED: usize = 32;

/// One attachment of a session to this replica, named by the caller; never reused within a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct AttachmentId(pub u64);

/// Names an action until its outcome is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Token(pub u64);

/// A session as its host is proven to be. One uuid that two hosts name is two sessions: uuids stand in the store, where
/// every host reads them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Party {
    /// The host, as its connection's identity proves it.
    pub host: HostId,
    /// The session.
    pub session: SessionId,
}

/// What the replica wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Append to the pool's log; tell [`Replica::handle_logged`] when durable.
    Log {
        /// Told back.
        token: Token,
        /// The record.
        record: LogRecord,
    },
    /// Run on the pool; tell [`Replica::handle_disk`].
    Disk {
        /// Told back.
        token: Token,
        /// What to do.
        op: DiskOp<P>,
    },
    /// Run on the pool; tell [`Replica::handle_disk`].
    Image {
        /// Told back.
        token: Token,
        /// What to do.
        op: ImageOp<P>,
    },
    /// Read the volume's record from the store, linearizably; tell [`Replica::handle_verified`].
    ReadStore {
        /// Told back.
        token: Token,
    },
    /// Send to an attachment.
    Reply {
        /// To whom.
        attachment: AttachmentId,
        /// What.
        response: Response<P>,
    },
}

/// What the replica asks of its pool.
#[derive(Clone, Debug, PartialEq)]
pub enum DiskOp<P> {
    /// Write whole blocks; complete when durable, if `durable`.
    Write {
        /// Byte offset.
        offset: u64,
        /// CRC32C per block.
        crcs: Vec<u32>,
        /// Data.
        data: P,
        /// On stable media before completion.
        durable: bool,
    },
    /// Make blocks holes, durably (R19).
    Zero {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Zero or absent.
        kind: Hole,
        /// Keep the space allocated.
        keep_space: bool,
    },
    /// Read whole blocks.
    Read {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Kinds of a range.
    Kinds {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Keyed hash per block.
    Hash {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The key.
        key: [u8; 16],
    },
    /// Make everything written so far durable.
    Flush,
    /// Make the sidecars of everything written so far durable (R22).
    Seal,
    /// Make everything from one size to a larger one absent, durably, whatever lies there, and the replica as large.
    Grow {
        /// From here on, in bytes.
        from: u64,
        /// New size in bytes, if the replica is not larger already.
        to: u64,
    },
    /// Make absent what lies beyond the volume's end, so that its space is free.
    Cut {
        /// From here on, in bytes.
        from: u64,
        /// Up to here.
        to: u64,
    },
}

/// What the pool answers.
#[derive(Clone, Debug, PartialEq)]
pub enum DiskDone<P> {
    /// `Write`, `Zero`, `Flush`, `Seal`, `Grow`, `Cut`; of images all but `Look` and the next two.
    Done,
    /// `Read`.
    Data(Vec<Extent<P>>),
    /// `Kinds`.
    Kinds(Vec<(u64, Option<Hole>)>),
    /// `Hash`.
    Hashes(Vec<[u8; 16]>),
    /// `CloneOut`: so many bytes of it, from its start on.
    Shared(u64),
    /// `Kept`: the file, if there is one.
    Kept(Option<Vec<u8>>),
}

/// Why the pool did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// No space left.
    NoSpace,
    /// The device failed.
    Io,
    /// A stored block fails its checksum.
    BitRot,
    /// Data did not match the CRCs that came with it.
    BadCrc,
    /// The pool can't have images.
    NoSnapshots,
}

/// What the store answered to [`Action::ReadStore`].
#[derive(Clone, Copy, Debug)]
pub enum Verified<'a> {
    /// The volume's record.
    Record(&'a Record),
    /// It has none that can be read.
    Gone,
    /// It is behind what this host has seen (R11).
    RolledBack,
    /// It did not answer.
    Away,
}

/// What a replica is made from.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// The pool it lives in.
    pub pool: PoolId,
    /// The pool's incarnation.
    pub pool_inc: PoolInc,
    /// Its host's watermark (R11).
    pub watermark: Watermark,
    /// Came back with another boot id or device generation, without clean stop (R8).
    pub lossy: bool,
    /// Acknowledge from the cache (`cached` mode) instead of stable media.
    pub cached: bool,
    /// How its pool takes images.
    pub takes: ImageForm,
    /// A broken rule, for the simulator.
    pub broken: Broken,
}

/// One replica.
#[derive(Debug)]
pub struct Replica<P> {
    config: ReplicaConfig,
    durable: Durable,
    /// Promised in memory; `durable.promised` follows when the log has it.
    promised: Epoch,
    session: SessionId,
    /// The host of that session; none before the first promise.
    host: Option<HostId>,
    promise_logged: bool,
    /// Stamps asked of the log, durable or not: what `Stamps` reports (a superset does no harm).
    asked: BTreeMap<u32, Generation>,
    attachments: BTreeMap<AttachmentId, Attachment>,
    ordinals: VecDeque<(Party, Ordinal)>,
    running: BTreeMap<Token, Running<P>>,
    waiting_promise: Option<WaitingPromise>,
    /// Larger than the promised record: to be cut to this size, in bytes.
    to_cut: Option<u64>,
    /// A piece of a cut at the disk, or its end at the log.
    cutting: Option<Cutting>,
    /// Promises that the store is read for; none changes anything before that.
    verifying: Vec<(Token, WaitingPromise)>,
    /// The highest epoch that a read of the store has shown to be its promiser's; none since the replica was started,
    /// which knows of no promise on its disk whether it was verified.
    verified: Option<Epoch>,
    unverified_promises: u64,
    rises: Rises,
    /// The highest that other hosts say they have seen of the store: for views, and nothing else.
    claimed: Watermark,
    waiting_attach: Vec<WaitingAttach>,
    /// What is under way for images.
    imaging: Imaging,
    copies: Copies<P>,
    cloning: BTreeMap<Token, Cloning>,
    /// Clones whose end nobody was told of.
    cloned: VecDeque<(ReplicaKey, Result<(), NotCloned>)>,
    actions: VecDeque<Action<P>>,
    next_token: u64,
    free_bytes: u64,
    /// A failed log or a failed disk: nothing more is executed (R2, after a failed flush nothing is trusted).
    failed: bool,
    quarantined: bool,
}

#[derive(Debug)]
struct Attachment {
    party: Party,
    ordinal: Ordinal,
    live: bool,
    unanswered: usize,
}

/// A request between its arrival and its answer.
#[derive(Debug)]
struct Running<P> {
    attachment: AttachmentId,
    tag: u32,
    epoch: Epoch,
    party: Party,
    ordinal: Ordinal,
    started: Instant,
    stage: Stage<P>,
}

#[derive(Debug)]
enum Stage<P> {
    /// Waits for stamps up to here; then this goes to the disk.
    Stamping { op: DiskOp<P>, regions: (u32, u32), generation: Generation },
    /// At the disk, changing blocks.
    Data,
    /// At the disk, changing nothing.
    Disk,
    /// At the disk, all of it to be made durable.
    Flush,
    /// At the disk for a seal; then the log.
    SealDisk(Generation),
    /// At the log, answered when durable.
    SealLog,
    /// At the disk for a grow; then the log.
    GrowDisk { from: u64, to: u64, generation: Generation },
    /// At the log, answered when durable.
    GrowLog { generation: Generation },
    /// Mutation R6 only: data is on the disk, the stamp is being logged.
    LateStamp,
    /// What it changes from here on is still to be preserved, up to there.
    Preserving { at: u64, end: u64, next: Next<P> },
    /// Waits for its turn.
    Snap(Snap),
    /// At the log or the disk.
    SnapActing(Snap),
    /// At the disk, part by part.
    Look(Look<P>),
}

impl<P> Stage<P> {
    /// Does the head change by it?
    fn changes(&self) -> bool {
        matches!(
            self,
            Stage::Stamping { .. }
                | Stage::Data
                | Stage::GrowDisk { .. }
                | Stage::GrowLog { .. }
                | Stage::LateStamp
                | Stage::Preserving { .. }
        )
    }

    /// Its generation, before it is at the disk.
    fn generation(&self) -> Option<Generation> {
        match self {
            Stage::Stamping { generation, .. }
            | Stage::GrowDisk { generation, .. }
            | Stage::GrowLog { generation } => Some(*generation),
            Stage::Preserving { next, .. } => Some(next.generation()),
            _ => None,
        }
    }
}

/// A part of a cut on its way.
#[derive(Clone, Copy, Debug)]
struct Cutting {
    token: Token,
    /// The replica is empty from here on, once a piece is done; `None`: at the log.
    down_to: Option<u64>,
}

#[derive(Debug)]
struct WaitingAttach {
    attachment: AttachmentId,
    tag: u32,
    party: Party,
    ordinal: Ordinal,
    started: Instant,
    detach: bool,
}

impl<P: Payload> Replica<P> {
    /// A replica from its durable state.
    #[must_use]
    pub fn new(config: ReplicaConfig, durable: Durable) -> Self {
        let imaging = Imaging::new(&durable.images);
        let mut replica = Replica {
            promised: durable.promised,
            session: durable.session,
            host: owner_host(&durable),
            promise_logged: true,
            config,
            durable,
            asked: BTreeMap::new(),
            attachments: BTreeMap::new(),
            ordinals: VecDeque::new(),
            running: BTreeMap::new(),
            waiting_promise: None,
            to_cut: None,
            cutting: None,
            verifying: Vec::new(),
            verified: None,
            unverified_promises: 0,
            rises: Rises::default(),
            claimed: Watermark::default(),
            waiting_attach: Vec::new(),
            imaging,
            copies: Copies::default(),
            cloning: BTreeMap::new(),
            cloned: VecDeque::new(),
            actions: VecDeque::new(),
            next_token: 0,
            free_bytes: 0,
            failed: false,
            quarantined: false,
        };
        replica.go_on_by_itself();
        replica
    }

    // ---- getters

    /// The volume.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.durable.volume
    }

    /// The replica's number.
    #[must_use]
    pub fn rid(&self) -> Rid {
        self.durable.rid
    }

    /// What is durable, for checkpoints.
    #[must_use]
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// True when no request is unfinished.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
            && self.waiting_promise.is_none()
            && self.verifying.is_empty()
            && self.cutting.is_none()
            && self.imaging.is_idle()
            && self.cloning.is_empty()
            && self.copies.is_empty()
    }

    /// True after a failed log or disk: the copy serves no more until it is opened anew.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// What it tells of itself to a session.
    #[must_use]
    pub fn view(&self, asker: Party) -> ReplicaView {
        let newest_asked = self.asked.values().copied().max().unwrap_or_default();
        ReplicaView {
            promised: self.promised,
            session: self.session,
            sealed: self.durable.sealed,
            newest: self.durable.rgm.iter().copied().max().unwrap_or_default().max(newest_asked),
            unsealed_regions: self.durable.unsealed_regions(),
            lossy: self.config.lossy && self.config.cached,
            size: self.durable.size,
            pool_inc: self.config.pool_inc,
            watermark: self.config.watermark.max(self.claimed),
            ordinal: self.highest_ordinal(asker),
        }
    }

    /// What it has promised, and to whom: none before the first promise. Durable only once its log has it.
    #[must_use]
    pub fn promised(&self) -> (Epoch, Option<Party>) {
        (self.promised, self.host.map(|host| Party { host, session: self.session }))
    }

    /// How many promises were given without a read of the store, because it was away.
    #[must_use]
    pub fn unverified_promises(&self) -> u64 {
        self.unverified_promises
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> alloc::string::String {
        alloc::format!(
            "{} promised={} sealed={} running={}{}{}",
            self.rid(),
            self.promised,
            self.durable.sealed,
            self.running.len(),
            if self.waiting_promise.is_some() { " promising" } else { "" },
            if self.failed { " failed" } else { "" }
        )
    }

    // ---- what happened

    /// The pool's free space changed.
    pub fn handle_free_bytes(&mut self, free: u64) {
        self.free_bytes = free;
        self.try_again();
    }

    /// The host's watermark rose.
    pub fn handle_watermark(&mut self, watermark: Watermark) {
        self.config.watermark = self.config.watermark.max(watermark);
    }

    /// The highest that other hosts say they have seen of the store, if any says more than its own host has. An open is told
    /// of it; nothing is refused here because of it.
    pub fn handle_claim(&mut self, highest: Option<Watermark>) {
        self.claimed = highest.filter(|w| w.cluster == self.config.watermark.cluster).unwrap_or_default();
    }

    /// The pool or its metadata is not to be trusted any more (R10, R24).
    pub fn handle_quarantine(&mut self) {
        self.quarantined = !self.config.broken.is(Mutation::QuarantinedServes);
    }

    /// An attachment's connection is gone. What it started goes on; its answers are dropped.
    pub fn handle_disconnect(&mut self, attachment: AttachmentId) {
        self.attachments.remove(&attachment);
        self.verifying.retain(|(_, w)| w.attachment != attachment);
        self.waiting_attach.retain(|w| w.attachment != attachment);
    }

    /// A request arrived on an attachment.
    pub fn handle_request(&mut self, now: Instant, attachment: AttachmentId, request: Request<P>) {
        let Request { tag, epoch, ask } = request;
        let refusal = match ask {
            Ask::Attach(attach) => self.attach(now, attachment, tag, &attach),
            ask => match self.admit(attachment, epoch, &ask) {
                Ok(()) => self.start(now, attachment, tag, epoch, ask),
                Err(refusal) => Err(refusal),
            },
        };
        if let Err(refusal) = refusal {
            self.reply(attachment, tag, now, now, Err(refusal));
        }
    }

    /// The log made the record of `token` durable, or refused it.
    pub fn handle_logged(
        &mut self,
        now: Instant,
        token: Token,
        record: LogRecord,
        outcome: Result<(), DiskError>,
    ) {
        if let Err(error) = outcome {
            self.log_refused(now, token, &record, error);
            return;
        }
        let before = self.durable.promised;
        self.durable.apply(&record);
        if self.cutting.is_some_and(|cutting| cutting.token == token) {
            self.cutting = None;
        }
        if let LogRecord::Sealed { .. } = &record {
            // A seal says that every member was flushed and equal: what was lost is not missed any more (R8).
            self.config.lossy = false;
        }
        if let LogRecord::Stamp { generation, regions } = &record {
            for region in regions {
                if self.asked.get(region).is_some_and(|asked| asked <= generation) {
                    self.asked.remove(region);
                }
            }
            self.start_stamped();
        }
        if let LogRecord::Image { image, .. } = &record {
            self.image_logged(now, token, *image, Ok(()));
        }
        self.promise_record_logged(token, before);
        if let Some(running) = self.running.get(&token) {
            match running.stage {
                Stage::SealLog | Stage::GrowLog { .. } | Stage::LateStamp => {
                    self.finish(now, token, Ok(Answer::Done));
                }
                _ => {}
            }
        }
        self.settle(now);
    }

    /// The pool finished the request of `token`.
    pub fn handle_disk(&mut self, now: Instant, token: Token, outcome: Result<DiskDone<P>, DiskError>) {
        if let Some(cutting) = self.cutting.take_if(|cutting| cutting.token == token) {
            return self.cut_done(now, cutting, outcome.is_ok());
        }
        let outcome = match self.clone_done(token, outcome) {
            Ok(()) => return,
            Err(outcome) => outcome,
        };
        let outcome = match self.copy_done(now, token, outcome) {
            Ok(()) => return,
            Err(outcome) => outcome,
        };
        let outcome = match self.image_done(now, token, outcome) {
            Ok(()) => return self.settle(now),
            Err(outcome) => outcome,
        };
        let Some(running) = self.running.get_mut(&token) else { return };
        match outcome {
            Err(error) => {
                let refusal = match error {
                    DiskError::NoSpace => Refusal::NoSpace,
                    DiskError::Io => Refusal::IoError,
                    DiskError::NoSnapshots => Refusal::NoSnapshots,
                    DiskError::BitRot => Refusal::BitRot,
                    DiskError::BadCrc => Refusal::BadCrc,
                };
                // A failed flush or seal is never retried on the same files: what the kernel dropped is unknown.
                if matches!(running.stage, Stage::Flush | Stage::SealDisk(_)) {
                    self.failed = !self.config.broken.is(Mutation::FailedFlushForgotten);
                }
                self.finish(now, token, Err(refusal));
            }
            Ok(done) => match running.stage {
                Stage::SealDisk(generation) => {
                    running.stage = Stage::SealLog;
                    self.actions.push_back(Action::Log { token, record: LogRecord::Sealed { generation } });
                }
                Stage::GrowDisk { from, to: size, generation } => {
                    running.stage = Stage::GrowLog { generation };
                    let record = self.grown(size, from, generation);
                    self.actions.push_back(Action::Log { token, record });
                }
                Stage::Stamping { generation, regions, .. } => {
                    // Only under mutation R6: the data went first.
                    running.stage = Stage::LateStamp;
                    let regions = (regions.0..=regions.1).collect();
                    self.actions
                        .push_back(Action::Log { token, record: LogRecord::Stamp { generation, regions } });
                }
                _ => {
                    let answer = match done {
                        DiskDone::Done | DiskDone::Shared(_) | DiskDone::Kept(_) => Answer::Done,
                        DiskDone::Data(extents) => Answer::Data(extents),
                        DiskDone::Kinds(kinds) => Answer::Kinds(kinds),
                        DiskDone::Hashes(hashes) => Answer::Hashes(hashes),
                    };
                    self.finish(now, token, Ok(answer));
                }
            },
        }
        self.settle(now);
    }

    // ---- what to do next

    /// The next action; drain after every call above.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    // ---- requests

    fn attach(&mut self, now: Instant, id: AttachmentId, tag: u32, attach: &Attach) -> Result<(), Refusal> {
        if attach.volume != self.volume() || attach.rid != self.rid() || attach.pool != self.config.pool {
            return Err(Refusal::NoReplica);
        }
        if self.quarantined {
            return Err(Refusal::Quarantined);
        }
        if self.failed {
            return Err(Refusal::IoError);
        }
        let known = self.config.watermark;
        if !self.config.broken.is(Mutation::NoWatermark)
            && (attach.watermark.cluster != known.cluster || attach.watermark.incarnation < known.incarnation)
        {
            return Err(Refusal::MetadataRollback);
        }
        let party = Party { host: attach.host, session: attach.session };
        if attach.session == self.session && self.host.is_some() && !self.is_promised_to(party) {
            return Err(Refusal::NotAttached);
        }
        if attach.ordinal <= self.highest_ordinal(party) || self.attachments.contains_key(&id) {
            return Err(Refusal::NotAttached);
        }
        self.remember_ordinal(party, attach.ordinal);
        let unbound = self.config.broken.is(Mutation::AttachUnbound);
        for other in self.attachments.values_mut() {
            if (other.party == party || unbound && other.party.session == party.session)
                && !self.config.broken.is(Mutation::DropKeepsAttachment)
                && !self.config.broken.is(Mutation::OldOrdinalsExecute)
            {
                other.live = false;
            }
        }
        let ordinal = attach.ordinal;
        let new = Attachment { party, ordinal, live: true, unanswered: 0 };
        self.attachments.insert(id, new);
        let detach = false;
        self.waiting_attach.push(WaitingAttach { attachment: id, tag, party, ordinal, started: now, detach });
        self.settle(now);
        Ok(())
    }

    /// May this attachment ask this at this epoch? (R1)
    fn admit(&self, id: AttachmentId, epoch: Epoch, ask: &Ask<P>) -> Result<(), Refusal> {
        let attachment = self.attachments.get(&id).filter(|a| a.live).ok_or(Refusal::NotAttached)?;
        if self.quarantined {
            return Err(Refusal::Quarantined);
        }
        if self.failed {
            return Err(Refusal::IoError);
        }
        if attachment.unanswered >= REQUESTS_MAX {
            return Err(Refusal::Busy);
        }
        let free = matches!(ask, Ask::Promise { .. } | Ask::Detach) || ask.is_of_images();
        if free || self.config.broken.is(Mutation::NoFence) {
            return Ok(());
        }
        let bound =
            self.is_promised_to(attachment.party) || self.config.broken.is(Mutation::PromiseToEpochAlone);
        if epoch != self.promised || !bound {
            return Err(Refusal::StaleEpoch);
        }
        // The promise is remembered but not durable, or lower epochs still drain: nothing of it runs yet.
        if !self.promise_logged || self.waiting_promise.is_some() {
            return Err(Refusal::Busy);
        }
        Ok(())
    }

    fn start(
        &mut self,
        now: Instant,
        id: AttachmentId,
        tag: u32,
        epoch: Epoch,
        ask: Ask<P>,
    ) -> Result<(), Refusal> {
        let op = match ask {
            Ask::SnapMake { .. }
            | Ask::SnapPrepare { .. }
            | Ask::SnapReady { .. }
            | Ask::SnapDrop { .. }
            | Ask::SnapDelete { .. }
            | Ask::SnapDestroy { .. } => {
                if let Some(snap) = Snap::of(ask) {
                    self.snap(now, id, tag, epoch, snap);
                }
                return Ok(());
            }
            Ask::SnapRead { id: image, offset, len } => {
                let found = (DiskDone::Data(Vec::new()), [0; 16]);
                return self.look(now, (id, tag, epoch), image, (offset, len, MAX_DATA), found);
            }
            Ask::SnapKinds { id: image, offset, len } => {
                let found = (DiskDone::Kinds(Vec::new()), [0; 16]);
                return self.look(now, (id, tag, epoch), image, (offset, len, KINDS_MAX), found);
            }
            Ask::SnapHash { id: image, offset, len, key } => {
                let found = (DiskDone::Hashes(Vec::new()), key);
                return self.look(now, (id, tag, epoch), image, (offset, len, HASH_MAX), found);
            }
            Ask::SnapChanged { id: image, since, offset, len, key } => {
                return self.compare(now, (id, tag, epoch), (image, since), (offset, len), key);
            }
            Ask::Images { from } => {
                let views = self.image_views(from);
                self.reply(id, tag, now, now, Ok(Answer::Images(views)));
                return Ok(());
            }
            Ask::Attach(_) => return Err(Refusal::NotAttached),
            Ask::Detach => {
                if let Some(a) = self.attachments.get_mut(&id) {
                    a.live = false;
                    let (party, ordinal) = (a.party, Ordinal(a.ordinal.0.saturating_add(1)));
                    // Answered when everything of this attachment has ended, as a newer attachment would be.
                    let (attachment, started, detach) = (id, now, true);
                    let w = WaitingAttach { attachment, tag, party, ordinal, started, detach };
                    self.waiting_attach.push(w);
                }
                self.settle(now);
                return Ok(());
            }
            Ask::Promise { record, watermark } => {
                return self.promise(now, id, tag, epoch, record, watermark);
            }
            Ask::Write { generation, offset, crcs, data, .. } => {
                self.check_range(offset, data.len() as u64, MAX_DATA)?;
                self.check_generation(generation, epoch)?;
                if crcs.len() as u64 != data.len() as u64 / BLOCK {
                    return Err(Refusal::OutOfBounds);
                }
                // Verified here, before anything is stored (4.10): what is on the disk has the session's CRC.
                if crate::payload::block_crcs(data.bytes()) != crcs {
                    return Err(Refusal::BadCrc);
                }
                let len = data.len() as u64;
                let durable = !self.config.cached;
                return self.write(
                    now,
                    id,
                    tag,
                    epoch,
                    generation,
                    (offset, len),
                    DiskOp::Write { offset, crcs, data, durable },
                );
            }
            Ask::Zero { generation, offset, len, kind, keep_space, .. } => {
                self.check_range(offset, len, u64::MAX)?;
                self.check_generation(generation, epoch)?;
                return self.write(
                    now,
                    id,
                    tag,
                    epoch,
                    generation,
                    (offset, len),
                    DiskOp::Zero { offset, len, kind, keep_space },
                );
            }
            Ask::Read { offset, len } => {
                self.check_range(offset, len, MAX_DATA)?;
                DiskOp::Read { offset, len }
            }
            Ask::Kinds { offset, len } => {
                self.check_range(offset, len, KINDS_MAX)?;
                DiskOp::Kinds { offset, len }
            }
            Ask::Hash { offset, len, key } => {
                self.check_range(offset, len, HASH_MAX)?;
                DiskOp::Hash { offset, len, key }
            }
            Ask::Flush => {
                self.run(now, id, tag, epoch, Stage::Flush, DiskOp::Flush);
                return Ok(());
            }
            Ask::Seal { generation } => {
                // Promised by the owner (R7); a peer that breaks it is refused, not believed.
                let in_flight =
                    self.running.values().any(|r| r.stage.generation().is_some_and(|g| g <= generation));
                if (generation.epoch() > epoch || in_flight) && !self.config.broken.is(Mutation::SealInFlight)
                {
                    return Err(Refusal::OutOfBounds);
                }
                if self.config.broken.is(Mutation::SealBeforeSidecar) {
                    let token = self.token();
                    self.track(now, token, id, tag, epoch, Stage::SealLog);
                    self.actions.push_back(Action::Log { token, record: LogRecord::Sealed { generation } });
                    return Ok(());
                }
                self.run(now, id, tag, epoch, Stage::SealDisk(generation), DiskOp::Seal);
                return Ok(());
            }
            Ask::Grow { generation, from, to } => {
                return self.grow(now, id, tag, epoch, generation, (from, to));
            }
            Ask::Stamps { above, from_region } => {
                let page = self.stamps_page(above, from_region);
                self.reply(id, tag, now, now, Ok(page));
                return Ok(());
            }
            Ask::Heartbeat => {
                // What waits for something else than the disk says nothing of it.
                let at_disk = |r: &&Running<P>| !matches!(r.stage, Stage::Snap(_) | Stage::Look(_));
                let oldest = self.running.values().filter(at_disk).map(|r| now.ms_since(r.started)).max();
                let oldest = oldest.unwrap_or(0);
                let alive = Answer::Alive {
                    oldest_io_ms: u32::try_from(oldest).unwrap_or(u32::MAX),
                    free_bytes: self.free_bytes,
                };
                self.reply(id, tag, now, now, Ok(alive));
                return Ok(());
            }
        };
        self.run(now, id, tag, epoch, Stage::Disk, op);
        Ok(())
    }

    /// From the record's size on, whatever this replica's is: an interrupted shrink may have left old data there.
    fn grow(
        &mut self,
        now: Instant,
        id: AttachmentId,
        tag: u32,
        epoch: Epoch,
        generation: Generation,
        (from, to): (u64, u64),
    ) -> Result<(), Refusal> {
        let whole = from.is_multiple_of(BLOCK) && to.is_multiple_of(BLOCK);
        if !whole
            || from >= to
            || from > self.durable.size
            || to.div_ceil(1 << self.durable.region_shift) > REGIONS_MAX
        {
            return Err(Refusal::OutOfBounds);
        }
        self.check_generation(generation, epoch)?;
        self.meet_barrier(now, generation)?;
        let broken = self.config.broken;
        if !broken.is(Mutation::CutAfterGrow) {
            self.to_cut = None;
            if self.cutting.is_some() {
                return Err(Refusal::Busy);
            }
        }
        if broken.is(Mutation::GrowBeforeAbsent) {
            let token = self.token();
            self.track(now, token, id, tag, epoch, Stage::GrowLog { generation });
            let record = self.grown(to, from, generation);
            self.actions.push_back(Action::Log { token, record });
            return Ok(());
        }
        let begin =
            if broken.is(Mutation::GrowFromOwnSize) { from.max(self.durable.size).min(to) } else { from };
        let op = DiskOp::Grow { from: begin, to };
        if self.must_preserve(begin, to - begin) {
            let next = Next::Grow { op, from, to, generation };
            self.preserve_first(now, (id, tag, epoch), (begin, to), next);
            return Ok(());
        }
        let stage = Stage::GrowDisk { from, to, generation };
        self.run(now, id, tag, epoch, stage, op);
        Ok(())
    }

    /// What the log says of a growth.
    fn grown(&self, size: u64, from: u64, generation: Generation) -> LogRecord {
        match self.config.broken.is(Mutation::GrowUnstamped) {
            true => LogRecord::Grow { size, from, generation: Generation::NEVER },
            false => LogRecord::Grow { size, from, generation },
        }
    }

    /// The next piece of a cut; not while a promise waits, which may know of no cut.
    fn go_on_cutting(&mut self) {
        let Some(to) = self.to_cut else { return };
        if self.cutting.is_some() || self.waiting_promise.is_some() || self.failed || self.quarantined {
            return;
        }
        if !self.durable.images.is_empty() && self.preserve_for_cut(to) || self.is_preparing() {
            return;
        }
        self.cut_piece(to, self.durable.size);
    }

    fn cut_piece(&mut self, to: u64, from_end: u64) {
        let token = self.token();
        let down_to = from_end.saturating_sub(CUT_PIECE).max(to);
        self.cutting = Some(Cutting { token, down_to: Some(down_to) });
        self.actions.push_back(Action::Disk { token, op: DiskOp::Cut { from: down_to, to: from_end } });
    }

    /// A piece of a cut has ended. What could not be made absent stays until the next promise.
    fn cut_done(&mut self, now: Instant, cutting: Cutting, done: bool) {
        if !done {
            self.to_cut = None;
        }
        if let (Some(to), Some(down_to)) = (self.to_cut, cutting.down_to)
            && self.waiting_promise.is_none()
        {
            if down_to > to {
                self.cut_piece(to, down_to);
            } else {
                let token = self.token();
                self.to_cut = None;
                self.cutting = Some(Cutting { token, down_to: None });
                self.actions.push_back(Action::Log { token, record: LogRecord::Cut { size: to } });
            }
        }
        self.settle(now);
    }

    fn check_range(&self, offset: u64, len: u64, max: u64) -> Result<(), Refusal> {
        let aligned = offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) && len > 0 && len <= max;
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.durable.size);
        if aligned && inside { Ok(()) } else { Err(Refusal::OutOfBounds) }
    }

    /// A write's generation is of an epoch that the session has held, and never below what is sealed (I29).
    fn check_generation(&self, generation: Generation, epoch: Epoch) -> Result<(), Refusal> {
        let legal = generation.epoch() <= epoch && generation > self.durable.sealed;
        if legal || self.config.broken.is(Mutation::NoFence) || self.config.broken.is(Mutation::SealInFlight)
        {
            Ok(())
        } else {
            Err(Refusal::OutOfBounds)
        }
    }

    /// Stamp first (R6): the regions whose stamp is older than the write's generation go to the log.
    fn write(
        &mut self,
        now: Instant,
        id: AttachmentId,
        tag: u32,
        epoch: Epoch,
        generation: Generation,
        (offset, len): (u64, u64),
        op: DiskOp<P>,
    ) -> Result<(), Refusal> {
        self.meet_barrier(now, generation)?;
        let regions = self.durable.regions_of(offset, len);
        let regions = (*regions.start(), *regions.end());
        if self.config.broken.is(Mutation::StampAfterData) {
            let stage = Stage::Stamping { op: op.clone(), regions, generation };
            self.run(now, id, tag, epoch, stage, op);
            return Ok(());
        }
        if self.must_preserve(offset, len) {
            if !self.is_preparing() {
                // The log says so while the disk is at what has to be preserved.
                self.ask_stamps(regions, generation);
            }
            let next = Next::Write { op, regions, generation };
            self.preserve_first(now, (id, tag, epoch), (offset, offset + len), next);
            return Ok(());
        }
        let token = self.token();
        self.track(now, token, id, tag, epoch, Stage::Data);
        self.stamp(token, op, regions, generation);
        Ok(())
    }

    /// What an image needs of this range goes there before it changes (R28).
    fn preserve_first(
        &mut self,
        now: Instant,
        (id, tag, epoch): (AttachmentId, u32, Epoch),
        (at, end): (u64, u64),
        next: Next<P>,
    ) {
        let token = self.token();
        self.track(now, token, id, tag, epoch, Stage::Preserving { at, end, next });
        self.imaging.writers.insert(token);
        self.go_on_images(now);
    }

    /// Stamps what has to be, then goes to the disk.
    fn stamp(&mut self, of: Token, op: DiskOp<P>, bounds: (u32, u32), generation: Generation) {
        if self.is_stamped(bounds, generation) {
            self.actions.push_back(Action::Disk { token: of, op });
            return;
        }
        self.ask_stamps(bounds, generation);
        if let Some(running) = self.running.get_mut(&of) {
            running.stage = Stage::Stamping { op, regions: bounds, generation };
        }
    }

    /// Stamps of which the log does not know yet.
    fn ask_stamps(&mut self, bounds: (u32, u32), generation: Generation) {
        let missing: Vec<u32> = (bounds.0..=bounds.1)
            .filter(|r| {
                self.stamp_of(*r) < generation && self.asked.get(r).is_none_or(|asked| *asked < generation)
            })
            .collect();
        if !missing.is_empty() {
            for region in &missing {
                self.asked.insert(*region, generation);
            }
            let token = self.token();
            self.actions
                .push_back(Action::Log { token, record: LogRecord::Stamp { generation, regions: missing } });
        }
    }

    fn stamp_of(&self, region: u32) -> Generation {
        self.durable.rgm.get(region as usize).copied().unwrap_or_default()
    }

    fn is_stamped(&self, (first, last): (u32, u32), generation: Generation) -> bool {
        (first..=last).all(|r| self.stamp_of(r) >= generation)
    }

    /// Writes whose stamps have become durable go to the disk.
    fn start_stamped(&mut self) {
        let ready: Vec<Token> = self
            .running
            .iter()
            .filter(|(_, r)| matches!(&r.stage, Stage::Stamping { regions, generation, .. } if self.is_stamped(*regions, *generation)))
            .map(|(token, _)| *token)
            .collect();
        for token in ready {
            let Some(running) = self.running.get_mut(&token) else { continue };
            if let Stage::Stamping { op, .. } = core::mem::replace(&mut running.stage, Stage::Data) {
                self.actions.push_back(Action::Disk { token, op });
            }
        }
    }

    fn stamps_page(&self, above: Generation, from_region: u32) -> Answer<P> {
        let mut stamps = Vec::new();
        let from = (from_region as usize).min(self.durable.rgm.len());
        for (i, stamp) in self.durable.rgm.iter().enumerate().skip(from) {
            let region = u32::try_from(i).expect("at most 2^20 regions");
            let stamp = (*stamp).max(self.asked.get(&region).copied().unwrap_or_default());
            if stamp > above {
                if stamps.len() == STAMPS_PAGE {
                    return Answer::Stamps { stamps, next: Some(region) };
                }
                stamps.push((region, stamp));
            }
        }
        Answer::Stamps { stamps, next: None }
    }

    // ---- bookkeeping

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    fn run(
        &mut self,
        now: Instant,
        id: AttachmentId,
        tag: u32,
        epoch: Epoch,
        stage: Stage<P>,
        op: DiskOp<P>,
    ) {
        let token = self.token();
        self.track(now, token, id, tag, epoch, stage);
        self.actions.push_back(Action::Disk { token, op });
    }

    fn track(
        &mut self,
        now: Instant,
        token: Token,
        id: AttachmentId,
        tag: u32,
        epoch: Epoch,
        stage: Stage<P>,
    ) {
        let attachment = self.attachments.get_mut(&id).expect("admitted a moment ago");
        attachment.unanswered += 1;
        let (party, ordinal) = (attachment.party, attachment.ordinal);
        self.running
            .insert(token, Running { attachment: id, tag, epoch, party, ordinal, started: now, stage });
    }

    fn finish(&mut self, now: Instant, token: Token, outcome: Result<Answer<P>, Refusal>) {
        let Some(running) = self.running.remove(&token) else { return };
        self.imaging.controls.remove(&token);
        self.imaging.writers.remove(&token);
        if let Some(a) = self.attachments.get_mut(&running.attachment) {
            a.unanswered -= 1;
        }
        self.reply(running.attachment, running.tag, running.started, now, outcome);
    }

    fn log_refused(&mut self, now: Instant, token: Token, record: &LogRecord, error: DiskError) {
        if error != DiskError::NoSpace {
            self.failed = true;
        }
        // It stays larger than it need be.
        self.cutting.take_if(|cutting| cutting.token == token);
        let refusal = if error == DiskError::NoSpace { Refusal::NoSpace } else { Refusal::IoError };
        if let LogRecord::Image { image, .. } = record {
            self.image_logged(now, token, *image, Err(error));
        }
        if let LogRecord::Stamp { generation, regions } = record {
            for region in regions {
                if self.asked.get(region) == Some(generation) {
                    self.asked.remove(region);
                }
            }
            let lost: Vec<Token> = self
                .running
                .iter()
                .filter(|(_, r)| match &r.stage {
                    Stage::Stamping { regions: (first, last), generation: g, .. } => {
                        g <= generation && regions.iter().any(|r| first <= r && r <= last)
                    }
                    _ => false,
                })
                .map(|(token, _)| *token)
                .collect();
            for token in lost {
                self.finish(now, token, Err(refusal));
            }
        }
        if self.running.contains_key(&token) {
            self.finish(now, token, Err(refusal));
        }
        self.promise_not_logged(now, token, refusal);
        self.settle(now);
    }

    /// Answers promises and attaches whose waits are over.
    fn settle(&mut self, now: Instant) {
        self.end_orphans(now);
        self.settle_promise(now);
        let mut i = 0;
        while i < self.waiting_attach.len() {
            let w = &self.waiting_attach[i];
            let (party, ordinal) = (w.party, w.ordinal);
            let lower = self.running.values().any(|r| r.party == party && r.ordinal < ordinal);
            if lower
                && !self.config.broken.is(Mutation::DropKeepsAttachment)
                && !self.config.broken.is(Mutation::AttachBeforeDrain)
            {
                i += 1;
                continue;
            }
            let w = self.waiting_attach.remove(i);
            let live = self.attachments.get(&w.attachment).is_some_and(|a| a.live);
            let outcome = match (w.detach, live) {
                (true, _) => Ok(Answer::Done),
                (false, true) => Ok(Answer::Attached(self.view(party))),
                (false, false) => Err(Refusal::NotAttached),
            };
            self.reply(w.attachment, w.tag, w.started, now, outcome);
        }
        self.go_on_cutting();
        self.go_on_images(now);
    }

    fn reply(
        &mut self,
        attachment: AttachmentId,
        tag: u32,
        started: Instant,
        now: Instant,
        outcome: Result<Answer<P>, Refusal>,
    ) {
        let service_us = u32::try_from(now.0.saturating_sub(started.0) / 1000).unwrap_or(u32::MAX);
        let response = Response { tag, epoch: self.promised, outcome, service_us };
        self.actions.push_back(Action::Reply { attachment, response });
    }

    /// Is this the host and session that the promised epoch is of? (R1)
    fn is_promised_to(&self, party: Party) -> bool {
        party.session == self.session
            && (self.host == Some(party.host) || self.config.broken.is(Mutation::AttachUnbound))
    }

    fn highest_ordinal(&self, party: Party) -> Ordinal {
        let unbound = self.config.broken.is(Mutation::AttachUnbound);
        let same = |p: Party| p == party || unbound && p.session == party.session;
        self.ordinals.iter().filter(|(p, _)| same(*p)).map(|(_, o)| *o).max().unwrap_or(Ordinal(0))
    }

    fn remember_ordinal(&mut self, party: Party, ordinal: Ordinal) {
        self.ordinals.retain(|(p, _)| *p != party);
        self.ordinals.push_back((party, ordinal));
        if self.ordinals.len() > SESSIONS_REMEMBERED {
            // The promised session's ordinal is never forgotten: only it can execute anything. Nor is that of a session
            // which is attached: it may be the next one, however many were attached since.
            let attached = |party: &Party| self.attachments.values().any(|a| a.party == *party);
            let kept = |p: &Party| self.is_promised_to(*p) || *p == party || attached(p);
            let oldest = self.ordinals.iter().position(|(p, _)| !kept(p));
            oldest.map(|oldest| self.ordinals.remove(oldest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ClusterId;
    use crate::payload::HeapPayload;

    const MARK: Watermark = Watermark { cluster: ClusterId(1), incarnation: 1, revision: 1 };

    fn empty() -> Replica<HeapPayload> {
        let (pool, pool_inc, broken) = (PoolId(1), PoolInc(1), Broken::default());
        let takes = ImageForm::Chained;
        let config =
            ReplicaConfig { pool, pool_inc, watermark: MARK, lossy: false, cached: false, takes, broken };
        Replica::new(config, Durable::new(VolumeId(1), Rid(0), 1 << 20, 20))
    }

    fn attach(replica: &mut Replica<HeapPayload>, id: u64, session: u128, ordinal: u64) -> bool {
        attach_from(replica, id, (1, session), ordinal)
    }

    fn attach_from(
        replica: &mut Replica<HeapPayload>,
        id: u64,
        (host, session): (u128, u128),
        ordinal: u64,
    ) -> bool {
        let attach = Attach {
            volume: VolumeId(1),
            rid: Rid(0),
            pool: PoolId(1),
            host: HostId(host),
            session: SessionId(session),
            ordinal: Ordinal(ordinal),
            watermark: MARK,
        };
        let request = Request { tag: 1, epoch: Epoch(0), ask: Ask::Attach(attach) };
        replica.handle_request(Instant(1), AttachmentId(id), request);
        let mut attached = false;
        while let Some(action) = replica.poll_action() {
            attached |= matches!(action, Action::Reply { response, .. } if response.outcome.is_ok());
        }
        attached
    }

    /// R1: an attachment that is there keeps its session's ordinal, however many other sessions come and go: an older
    /// connection of it must never take over. Found by the simulator: seed 1344744 of 4fbc85e.
    #[test]
    fn an_attached_session_keeps_its_ordinal_among_any_number_of_others() {
        let mut replica = empty();
        assert!(attach(&mut replica, 1, 1, 5));
        for other in 2..200 {
            assert!(attach(&mut replica, other, u128::from(other), 1));
            replica.handle_disconnect(AttachmentId(other));
        }
        assert!(!attach(&mut replica, 1000, 1, 4), "an older connection took over");
        assert_eq!(replica.view(Party { host: HostId(1), session: SessionId(1) }).ordinal, Ordinal(5));
        assert!(replica.ordinals.len() <= SESSIONS_REMEMBERED + 2, "they would grow without bound");
        assert!(attach(&mut replica, 1001, 1, 6));
    }

    /// One message of a host with a valid identity must not end the process that serves everybody's replicas.
    #[test]
    fn an_attachment_with_the_last_ordinal_is_detached_like_any_other() {
        let mut replica = empty();
        assert!(attach(&mut replica, 1, 1, u64::MAX));
        let detach = Request { tag: 2, epoch: Epoch(0), ask: Ask::Detach };
        replica.handle_request(Instant(2), AttachmentId(1), detach);
        let done = |a: &Action<_>| matches!(a, Action::Reply { response, .. } if response.outcome == Ok(Answer::Done));
        assert!(core::iter::from_fn(|| replica.poll_action()).any(|a| done(&a)));
        assert!(!attach(&mut replica, 2, 1, u64::MAX), "and its session has no later one");
    }

    /// R1: session uuids stand in the store. Another host that names one has a session of its own, and uses up nothing
    /// of the owner's.
    #[test]
    fn one_uuid_that_two_hosts_name_is_two_sessions() {
        let mut replica = empty();
        assert!(attach_from(&mut replica, 1, (7, 70), 1));
        assert!(attach_from(&mut replica, 2, (8, 70), u64::MAX));
        assert!(replica.attachments[&AttachmentId(1)].live, "the liar has ended the owner's attachment");
        assert!(attach_from(&mut replica, 3, (7, 70), 2), "the liar has used up the owner's ordinals");
        assert!(!replica.attachments[&AttachmentId(1)].live);
        assert!(replica.attachments[&AttachmentId(2)].live);
    }
}
