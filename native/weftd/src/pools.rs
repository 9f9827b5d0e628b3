//! The pools of this host and the replicas in them.
//!
//! ```text
//! opening ─▶ waiting for the lock (R13) ─▶ starting (R10) ─▶ recovering ─▶ serving
//!    └──────────────┴────────────────────────┴─────────────────┴─▶ quarantined, failed
//! ```
//!
//! Must always hold:
//! * a pool serves only after its start raised its incarnation in the store, and only that pool waits for its lock;
//! * a replica's log record is reported durable when the pool's log says so, and never otherwise;
//! * a replica is trashed only by [`may_trash`], against a linearizable read, with no attachment in between (R15);
//! * nothing leaves the trash for good before [`may_empty`] has seen such a read;
//! * what a log or checkpoint can't prove sound is quarantined, never an empty replica (R24);
//! * a pool that was opened tells a repair of the store what its replicas keep, whether it serves or not, and is only
//!   read for that: nothing is written before its start has settled its incarnation.

mod clones;
mod copies;
mod images;
mod log;
mod opening;
mod room;
mod start;
mod telling;
mod trash;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_control::types::{
    Decimal, KeptPool, KeptRecord, KeptRecords, PoolInfo, PoolState, RecordJson, ReplicaCreate, ReplicaInfo,
    ReplicaState, TrashItem,
};
use weft_io::buffer::IoBuf;
use weft_io::driver::{Completion, Driver, TokenSpace};
use weft_io::file_pool::{FilePool, PoolAnswer, PoolConfig, PoolError, PoolEvent, PoolOp, Slot};
use weft_io::pool_dir::{OpenError, PoolDir, TrashEntry};
use weft_io::reflink::Ability;
use weft_proto::checkpoint::{self, Checkpoint, Side, checkpoint_len};
use weft_proto::durable::Durable;
use weft_proto::ids::{ClusterId, HostId, Instant, Nonce, PoolId, PoolInc, Rid, SnapId, VolumeId};
use weft_proto::log::{
    AppendError, LOG_BLOCK, Log, LogExpectation, LogPlace, LogRecord, LogToken, LogWriteFailed, Recorded,
    Recovered, ReplicaKey, recover,
};
use weft_proto::message::{Ask, Refusal, Request, Response, Watermark};
use weft_proto::mutants::{Broken, Mutation};
use weft_proto::payload::Payload as _;
use weft_proto::record::{COUNTER_MAX, Record};
use weft_proto::replica::{
    Action, AttachmentId, CopyStep, DiskDone, DiskError, Replica, ReplicaConfig, Token, Verified,
};
use weft_proto::superblock::{
    PoolAction, PoolRefusal, PoolStart, SEGMENT_BYTES, SUPERBLOCK_LEN, StoredPool, Superblock,
    SwapOutcome as StartSwap,
};
use weft_proto::wire::PoolLog;

use crate::clock::{random_u128, random_uuid, unix_seconds};
use crate::errors::{Code, Failure};
use crate::mail::{Answer, Mail, Mailbox};
use crate::records::{EmptiedBy, code_of, may_empty, may_trash, record_of};
use crate::state::StateDir;
use crate::store::{Entry, ReadError, SwapOutcome};
use crate::tokens::Part;

pub use images::Unlogged;

use images::{ImageFiles, LoadedImages, WrittenSlot, all_read, kept_images};

/// Blocks of a new pool's log: 16 MiB, some 100,000 stamps between two checkpoints.
const LOG_BLOCKS: u64 = 4096;
/// A superblock's content within the pool's file; the rest of its 4 KiB is zero.
const SUPERBLOCK_CONTENT: usize = 1024;
/// Between two looks at a pool's space.
const SPACE_MS: u64 = 2000;
/// Between two tries of a store call that failed.
const RETRY_MS: u64 = 200;
/// How long the trash keeps.
const TRASH_KEEP_S: u64 = 24 * 3600;
/// Between two looks for what is too old in the trash.
const TRASH_LOOK_MS: u64 = 600_000;
/// The file of the state directory that keeps how far each pool's log is durable, outside of the pool (R10).
pub const LOGS_FILE: &str = "pool-logs.json";
/// Between two writes of it: what it says may lag, never lead.
const LOGS_MS: u64 = 5000;
/// The file beside it that keeps at which incarnation each pool was served last (R10). It may lag, never lead.
pub const STARTS_FILE: &str = "pool-starts.json";
/// Between two looks at the store for a pool of which that knows less than the disk: it may be repaired.
const STORE_BEHIND_MS: u64 = 2000;
/// How long a repair of the store waits for pools that are being opened or read.
const TELL_MS: u64 = 10_000;
/// The kernel takes no longer path.
const PATH_MAX: usize = 4095;
/// The file of the state directory that names this host's pools.
const POOLS_FILE: &str = "pools.json";

/// The key of a pool.
#[must_use]
pub fn pool_key(pool: PoolId) -> String {
    format!("/weft/v1/pool/{pool}")
}

/// Who serves: needed before any pool starts.
#[derive(Clone, Copy, Debug)]
pub struct PoolOwner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The host.
    pub host: HostId,
    /// The kernel's boot id.
    pub boot_id: u128,
}

/// A call to the store that the pools want made.
#[derive(Clone, Debug, PartialEq)]
pub enum PoolsCall {
    /// Reads a pool's key; tell [`Pools::handle_pool_read`].
    ReadPool(PoolId),
    /// Swaps a pool's key; tell [`Pools::handle_pool_swap`].
    SwapPool {
        /// The pool.
        pool: PoolId,
        /// What was there; none: must not exist.
        expected: Option<Entry>,
        /// The new value; none deletes.
        value: Option<Vec<u8>>,
    },
    /// Reads a volume's record for a replica's machine; tell [`Pools::handle_verified`].
    Verify(ReplicaKey, Token),
    /// Reads a volume's record before a replica is trashed; tell [`Pools::handle_trash_read`].
    Trash(ReplicaKey),
    /// Reads a volume's record before its replicas in the trash are destroyed; tell [`Pools::handle_emptying_read`].
    Emptying {
        /// Which look through the trash asks.
        job: u64,
        /// The volume.
        volume: VolumeId,
    },
}

/// What comes out of the pools.
#[derive(Debug)]
pub enum PoolsOut {
    /// A replica answers an attachment.
    Reply(AttachmentId, Response<IoBuf>),
    /// The store is wanted.
    Call(PoolsCall),
    /// A pool's state changed.
    Changed(PoolId),
    /// What became of an image that a copy gets later.
    Copied(ReplicaKey, SnapId, CopyStep),
    /// The new content of a file of the state directory, to be written by a thread that may block.
    Keep(&'static str, Value),
}

/// A pool's directory after its blocking open or creation.
#[derive(Debug)]
pub struct OpenedPool {
    /// Where.
    pub path: PathBuf,
    /// The directory, or why not. [`OpenError::Locked`] is told once and then waited out.
    pub result: Result<PoolDir, OpenError>,
}

/// An entry of `pools.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KnownPool {
    pool: PoolId,
    path: PathBuf,
}

/// All pools of this host.
#[derive(Debug)]
pub struct Pools {
    state: Arc<StateDir>,
    mailbox: Mailbox,
    owner: Option<PoolOwner>,
    watermark: Watermark,
    /// The highest that other hosts say they have seen of the store (R11).
    claim: Option<Watermark>,
    pools: BTreeMap<PoolId, Pool>,
    /// Pools under creation, by path, with who asked.
    creating: BTreeMap<PathBuf, Vec<Answer>>,
    trash_jobs: BTreeMap<u64, TrashJob>,
    next_job: u64,
    next_space: u16,
    out: VecDeque<PoolsOut>,
    saved: Vec<KnownPool>,
    /// How far each pool's log is durable, as kept.
    kept_logs: BTreeMap<PoolId, Decimal>,
    logs_due: Instant,
    /// At which incarnation each pool was served last, as kept.
    kept_starts: BTreeMap<PoolId, PoolInc>,
    /// Who wants to know what the replicas keep, and until when pools that are being read are waited for.
    asked: Vec<(Answer, Instant)>,
    trash_due: Instant,
    /// The store is behind the watermark: the trash is not emptied (R15).
    rolled_back: bool,
    broken: Broken,
}

#[derive(Debug)]
struct Pool {
    id: PoolId,
    path: PathBuf,
    phase: Phase,
    file: Option<FilePool>,
    space: TokenSpace,
    start: Option<PoolStart>,
    /// The pool's key as last read.
    stored: Option<Entry>,
    /// What the swap under way would make of it.
    swapping: Option<Vec<u8>>,
    inc: PoolInc,
    /// The superblock's incarnation before this start.
    inc_before: PoolInc,
    /// The superblock, once it was read.
    disk: Option<Superblock>,
    /// At which incarnation this host served it last, as it has kept.
    served: PoolInc,
    /// Quarantined since the store knows less than the disk, or nothing sensible: looked at again.
    store_behind: bool,
    /// A look at what it holds while it does not serve.
    look: Option<Look>,
    log: Option<Log>,
    known_durable: u64,
    broken: Broken,
    replicas: BTreeMap<ReplicaKey, Slotted>,
    /// Checkpoint files of replicas that are being read in.
    loading: BTreeMap<ReplicaKey, [Option<IoBuf>; 2]>,
    /// The same of images; none: which there are is not known yet.
    loading_images: Option<LoadedImages>,
    /// Images of which there is no replica.
    orphans: Vec<(ReplicaKey, SnapId)>,
    /// Directories of replicas whose creation was interrupted: never promised to anyone.
    unfinished: Vec<ReplicaKey>,
    /// The log as read, until every checkpoint is there too.
    recovering_log: Option<IoBuf>,
    ops: BTreeMap<u64, Purpose>,
    next_op: u64,
    log_waiters: VecDeque<(LogToken, ReplicaKey, Option<Token>, LogRecord)>,
    /// Records that found the log full.
    log_full: VecDeque<(ReplicaKey, Option<Token>, LogRecord)>,
    checkpointing: Option<VecDeque<ReplicaKey>>,
    /// Images of the first of them are written with what was in the log by then.
    images_through: Option<u64>,
    /// Copies that are being made of a snapshot.
    clones: BTreeMap<ReplicaKey, clones::Making>,
    /// Replicas between the question whether they may go and the answer, or on their way.
    trashing: BTreeMap<ReplicaKey, Trashing>,
    removing: Option<Answer>,
    free: u64,
    total: u64,
    /// [`Pool::rot`] as it was told last.
    rot_told: (u64, u64),
    space_due: Instant,
    room: room::RoomKept,
    retry_due: Option<Instant>,
    stopping: Stopping,
    /// Removed from this host.
    retired: bool,
    /// Who removed it is answered when its files are closed: what it lies on can be taken away then.
    closing: Option<Answer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    WaitingLock,
    Starting,
    Recovering,
    Serving,
    Quarantined(String),
    Failed(String),
}

/// How far a pool that does not serve was read for a repair of the store.
#[derive(Debug)]
enum Look {
    Log,
    List(IoBuf),
    Images(IoBuf, Vec<ReplicaKey>),
    Files(IoBuf, BTreeMap<ReplicaKey, [Option<IoBuf>; 2]>, LoadedImages),
    /// The records that its replicas keep, or why they can't be known.
    Done(Result<Vec<KeptRecord>, String>),
}

/// What a look asked for.
#[derive(Clone, Copy, Debug)]
enum LookStep {
    Log,
    List,
    Images,
    Checkpoint(ReplicaKey, Side),
    Image(ReplicaKey, SnapId, Side),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    No,
    /// Replicas say "stopped cleanly", then checkpoints, then the log does.
    Marking,
    Done,
}

#[derive(Debug)]
struct Slotted {
    machine: Replica<IoBuf>,
    /// The newest checkpoint's side, number and place in the log.
    side: Side,
    counter: u64,
    log_seq: u64,
    open: bool,
    quarantined: bool,
    image_files: BTreeMap<SnapId, ImageFiles>,
    /// Snapshots with which the store was seen to list it.
    listed: BTreeSet<SnapId>,
    /// Files that nothing names are being removed: so many ops.
    cleaning: usize,
}

#[derive(Debug)]
struct Trashing {
    answer: Answer,
    /// Taken out of service, to be put back if the disk refuses.
    taken: Option<Slotted>,
}

/// Why an op of the pool's file was asked for.
#[derive(Debug)]
enum Purpose {
    Superblock,
    Look(LookStep),
    ReadLog,
    List,
    ReadCheckpoint(ReplicaKey, Side),
    Images,
    ReadImage(ReplicaKey, SnapId, Side),
    ImageSlot(WrittenSlot),
    DropImage(ReplicaKey),
    MakeImage(ReplicaKey, Token),
    Open(ReplicaKey),
    Disk(ReplicaKey, Token),
    Log(u64),
    Checkpoint { key: ReplicaKey, side: Side, counter: u64, log_seq: u64 },
    Space,
    Create { durable: Box<Durable>, answer: Answer },
    FirstCheckpoint { durable: Box<Durable>, log_seq: u64, answer: Answer },
    OpenCreated { durable: Box<Durable>, log_seq: u64, answer: Answer },
    TrashCheckpoint(ReplicaKey),
    Trash(ReplicaKey),
    CopyPublished { key: ReplicaKey, token: Token, image: SnapId, attempt: u64 },
    CloneBegun(ReplicaKey),
    ClonePublished { to: ReplicaKey, log_seq: u64 },
    CloneAbandoned(ReplicaKey),
    ListTrash { job: u64 },
    RestoreTrash { job: u64, key: ReplicaKey },
    EmptyTrash { job: u64, rid: Rid },
}

/// A command that concerns the trash of all pools.
#[derive(Debug)]
struct TrashJob {
    kind: TrashKind,
    /// None: nobody asked.
    answer: Option<Answer>,
    /// Ops and reads of the store that have not ended.
    waiting: usize,
    entries: Vec<(PoolId, TrashEntry)>,
    done: Vec<Rid>,
    error: Option<Failure>,
    /// The lists are there, ops on entries are under way.
    acting: bool,
}

#[derive(Clone, Copy, Debug)]
enum TrashKind {
    Tell,
    Restore(VolumeId),
    Empty(Option<VolumeId>),
    Expire,
    /// For the sake of a pool that is nearly full.
    Room(PoolId),
}

impl TrashKind {
    /// Is an entry of the trash one that this is about?
    fn concerns(self, entry: &TrashEntry, now_s: u64) -> bool {
        match self {
            TrashKind::Tell | TrashKind::Empty(None) | TrashKind::Room(_) => true,
            TrashKind::Restore(volume) | TrashKind::Empty(Some(volume)) => volume == entry.replica.volume,
            TrashKind::Expire => entry.since_s.saturating_add(TRASH_KEEP_S) < now_s,
        }
    }
}

impl Pools {
    /// The pools that this host knows; none starts before [`Pools::configure`].
    pub fn new(state: Arc<StateDir>, mailbox: Mailbox) -> Result<Pools, Failure> {
        let saved: Vec<KnownPool> = state.read_json(POOLS_FILE)?.unwrap_or_default();
        let kept_logs = state.read_json(LOGS_FILE)?.unwrap_or_default();
        let kept_starts = state.read_json(STARTS_FILE)?.unwrap_or_default();
        Ok(Pools {
            kept_logs,
            kept_starts,
            asked: Vec::new(),
            logs_due: Instant(0),
            state,
            mailbox,
            owner: None,
            watermark: Watermark::default(),
            claim: None,
            pools: BTreeMap::new(),
            creating: BTreeMap::new(),
            trash_jobs: BTreeMap::new(),
            next_job: 0,
            next_space: 0,
            trash_due: Instant(0),
            rolled_back: false,
            broken: Broken::default(),
            out: VecDeque::new(),
            saved,
        })
    }

    /// With a rule broken, before anything is configured; no build of the daemon can break one.
    pub fn set_broken(&mut self, broken: Broken) {
        self.broken = broken;
    }

    /// Starts every known pool for this cluster and host.
    pub fn configure(&mut self, owner: PoolOwner, watermark: Watermark) {
        if self.owner.is_some() {
            return;
        }
        self.owner = Some(owner);
        self.watermark = watermark;
        for known in self.saved.clone() {
            self.add(known.pool, known.path.clone(), Phase::Opening);
            opening::open_in_background(known.path, self.mailbox.clone());
        }
    }

    /// The host's watermark rose (R11).
    pub fn handle_watermark(&mut self, watermark: Watermark) {
        self.watermark = watermark;
        for slot in self.pools.values_mut().flat_map(|p| p.replicas.values_mut()) {
            slot.machine.handle_watermark(watermark);
        }
    }

    /// The highest of what others say is another one now: whoever opens is told.
    pub fn handle_claim(&mut self, claim: Option<Watermark>) {
        self.claim = claim;
        for slot in self.pools.values_mut().flat_map(|p| p.replicas.values_mut()) {
            slot.machine.handle_claim(claim);
        }
    }

    fn add(&mut self, id: PoolId, path: PathBuf, phase: Phase) {
        let index = self.next_space;
        self.next_space += 1;
        let space =
            Part::Pool.space(u8::try_from(index).expect("fewer than 256 pools are opened by one process"));
        let mut pool = Pool::new(id, path, phase, space);
        pool.broken = self.broken;
        pool.known_durable = self.kept_logs.get(&id).map_or(0, |seq| seq.0);
        pool.served = self.kept_starts.get(&id).copied().unwrap_or_default();
        self.pools.entry(id).or_insert(pool);
    }

    // ---- commands

    /// Every pool.
    #[must_use]
    pub fn list(&self) -> Vec<PoolInfo> {
        self.pools.values().filter(|p| !p.retired).map(Pool::info).collect()
    }

    /// One pool.
    #[must_use]
    pub fn info(&self, id: PoolId) -> Option<PoolInfo> {
        self.pools.get(&id).map(Pool::info)
    }

    /// Every replica.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaInfo> {
        let all = self.pools.values().flat_map(|p| p.replicas.iter().map(move |(key, slot)| (p, key, slot)));
        let mut list: Vec<_> = all.map(|(pool, key, slot)| slot.info(pool, *key)).collect();
        list.sort_by_key(|r| (r.volume, r.rid));
        list
    }

    /// Makes a replica durable. Idempotent.
    pub fn create_replica(&mut self, ask: ReplicaCreate, answer: Answer) {
        let key = ReplicaKey { volume: ask.volume, rid: ask.rid };
        let pool = match self.serving(ask.pool) {
            Ok(pool) => pool,
            Err(failure) => return refuse(answer, failure),
        };
        let sane = ask.size.0 > 0
            && ask.size.0.is_multiple_of(4096)
            && ask.size.0 <= weft_proto::record::SIZE_MAX
            && (16..=32).contains(&ask.region_shift)
            && ask.size.0.div_ceil(1 << ask.region_shift) <= 1 << 20;
        if !sane {
            let message =
                format!("a replica of {} bytes in regions of 2^{} bytes", ask.size, ask.region_shift);
            return refuse(answer, Failure::new(Code::BAD_VALUE, message));
        }
        if let Some(slot) = pool.replicas.get(&key) {
            let there = slot.machine.durable();
            let thin = ask.thick == Some(true) && !pool.is_thick(key);
            if there.size >= ask.size.0 && there.region_shift == ask.region_shift && !thin {
                let _ = answer.send(Ok(json!({})));
            } else {
                let how = if thin { "thin, " } else { "" };
                let message =
                    format!("{} of volume {} is there, {how}with {} bytes", key.rid, key.volume, there.size);
                refuse(answer, Failure::new(Code::REPLICA_EXISTS, message));
            }
            return;
        }
        // It may take its time, and asking twice must not begin anew below it.
        if pool.is_making(key) {
            return refuse(answer, Failure::new(Code::CHANGING, "the copy is being made"));
        }
        if let Some(from) = &ask.from {
            return pool.begin_clone(&ask, from, answer);
        }
        let durable = Box::new(Durable::new(key.volume, key.rid, ask.size.0, ask.region_shift));
        if let Some(at) = pool.unfinished.iter().position(|k| *k == key) {
            pool.unfinished.remove(at);
            return pool.first_checkpoint(durable, answer);
        }
        let meta_bytes = checkpoint_len(durable.rgm.len()) as u64;
        let thick = (ask.thick == Some(true)).then_some(ask.size.0);
        let op = PoolOp::CreateReplica { replica: key, meta_bytes, thick };
        pool.submit(Purpose::Create { durable, answer }, op);
    }

    /// Forgets an empty pool; its directory stays.
    pub fn remove(&mut self, id: PoolId, answer: Answer) {
        let Some(pool) = self.pools.get_mut(&id) else { return refuse(answer, no_pool(id)) };
        if !pool.replicas.is_empty() || !pool.loading.is_empty() || !pool.trashing.is_empty() {
            let count = pool.replicas.len();
            let failure = Failure::new(Code::POOL_IN_USE, format!("{count} replicas live in pool {id}"));
            return refuse(answer, failure.with("replicas", count));
        }
        if pool.phase != Phase::Serving || pool.removing.is_some() {
            return refuse(answer, pool.not_serving());
        }
        pool.removing = Some(answer);
        let expected = pool.stored.clone();
        self.out.push_back(PoolsOut::Call(PoolsCall::SwapPool { pool: id, expected, value: None }));
    }

    fn finish_remove(&mut self, id: PoolId, outcome: &SwapOutcome, answer: Answer) {
        match outcome {
            SwapOutcome::Done { .. } => {}
            SwapOutcome::Failed { .. } => {
                let message = format!("the store's entry of pool {id} has changed; try again");
                return refuse(answer, Failure::new(Code::POOL_NOT_SERVING, message));
            }
            SwapOutcome::Unknown(why) => {
                return refuse(answer, Failure::new(Code::OUTCOME_UNKNOWN, why.clone()));
            }
            SwapOutcome::Away(why) => return refuse(answer, Failure::new(Code::STORE_AWAY, why.clone())),
            SwapOutcome::RolledBack(why) => {
                return refuse(answer, Failure::new(Code::STORE_ROLLED_BACK, why.clone()));
            }
        }
        self.saved.retain(|k| k.pool != id);
        if let Err(failure) = self.state.write_json(POOLS_FILE, &self.saved) {
            return refuse(answer, failure);
        }
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.phase = Phase::Failed("removed from this host".to_owned());
            pool.retired = true;
            pool.closing = Some(answer);
        }
    }

    /// Closes the files of pools that were removed, once nothing is under way in them any more.
    fn close_removed(&mut self, driver: &mut impl Driver) {
        for pool in self.pools.values_mut().filter(|p| p.closing.is_some()) {
            if pool.file.as_ref().is_some_and(|file| !file.is_idle()) {
                continue;
            }
            if let Some(Err(error)) = pool.file.take().map(|file| file.stop(driver)) {
                tracing::warn!(pool = %pool.id, %error, "its lock is free when the kernel has let go of it");
            }
            if let Some(answer) = pool.closing.take() {
                let _ = answer.send(Ok(json!({})));
            }
        }
    }

    /// The store is, or is no longer, behind the watermark.
    pub fn set_rolled_back(&mut self, rolled_back: bool) {
        self.rolled_back = rolled_back;
    }

    fn serving(&mut self, id: PoolId) -> Result<&mut Pool, Failure> {
        let pool = self.pools.get_mut(&id).filter(|p| !p.retired).ok_or_else(|| no_pool(id))?;
        if pool.phase == Phase::Serving { Ok(pool) } else { Err(pool.not_serving()) }
    }

    /// How far each log is known durable, for HELLO (R10).
    #[must_use]
    pub fn logs(&self) -> Vec<PoolLog> {
        let serving = self.pools.values().filter(|p| p.phase == Phase::Serving);
        let log = |p: &Pool| {
            let durable_seq = p.log.as_ref()?.durable_seq();
            Some(PoolLog { pool: p.id, inc: p.inc, durable_seq })
        };
        serving.filter_map(log).collect()
    }

    // ---- attachments

    /// True when a replica in this pool can be attached to.
    #[must_use]
    pub fn is_serving(&self, id: PoolId) -> bool {
        self.pools.get(&id).is_some_and(|p| p.phase == Phase::Serving)
    }

    /// A request of an attachment for a replica; refused when there is nobody to answer it.
    pub fn handle_request(
        &mut self,
        now: Instant,
        pool: PoolId,
        key: ReplicaKey,
        attachment: AttachmentId,
        request: Request<IoBuf>,
    ) -> Result<(), Refusal> {
        let pool = self.pools.get_mut(&pool).filter(|p| !p.retired).ok_or(Refusal::NoReplica)?;
        match pool.phase {
            Phase::Serving => {}
            Phase::Quarantined(_) => return Err(Refusal::Quarantined),
            Phase::Failed(_) => return Err(Refusal::IoError),
            Phase::Opening | Phase::WaitingLock | Phase::Starting | Phase::Recovering => {
                return Err(Refusal::Busy);
            }
        }
        if pool.loading.contains_key(&key) {
            return Err(Refusal::Busy);
        }
        let slot = pool.replicas.get_mut(&key).ok_or(Refusal::NoReplica)?;
        if (!slot.open || slot.cleaning > 0) && !slot.quarantined {
            return Err(Refusal::Busy);
        }
        if matches!(request.ask, Ask::Attach(_)) {
            slot.machine.handle_claim(self.claim);
        }
        slot.machine.handle_request(now, attachment, request);
        pool.drive_replica(now, key, &mut self.out);
        Ok(())
    }

    /// An attachment's connection is gone.
    pub fn handle_disconnect(&mut self, pool: PoolId, key: ReplicaKey, attachment: AttachmentId) {
        if let Some(slot) = self.pools.get_mut(&pool).and_then(|p| p.replicas.get_mut(&key)) {
            slot.machine.handle_disconnect(attachment);
        }
    }

    /// The store answered [`PoolsCall::Verify`].
    pub fn handle_verified(
        &mut self,
        now: Instant,
        key: ReplicaKey,
        token: Token,
        result: &Result<Option<Entry>, ReadError>,
    ) {
        let record = match result {
            Ok(Some(entry)) => record_of(entry).ok(),
            _ => None,
        };
        let shown = match (&record, result) {
            (Some(record), _) => Verified::Record(record),
            (None, Ok(_)) => Verified::Gone,
            (None, Err(ReadError::RolledBack(_))) => Verified::RolledBack,
            (None, Err(ReadError::Away(_) | ReadError::Watermark(_))) => Verified::Away,
        };
        for pool in self.pools.values_mut() {
            if let Some(slot) = pool.replicas.get_mut(&key) {
                let before = slot.machine.unverified_promises();
                slot.machine.handle_verified(now, token, shown);
                if slot.machine.unverified_promises() > before {
                    tracing::warn!(volume = %key.volume, rid = %key.rid, "promised while the store is away, unverified");
                }
                pool.drive_replica(now, key, &mut self.out);
            }
        }
    }

    // ---- the loop

    /// A driver's completion of [`Part::Pool`].
    pub fn handle_completion(&mut self, done: Completion) {
        for pool in self.pools.values_mut() {
            if let Some(file) = pool.file.as_mut().filter(|f| f.owns(done.token)) {
                return file.handle_completion(done);
            }
        }
    }

    /// Gives the driver what the pools want, and takes what the pools have done.
    pub fn drive(&mut self, driver: &mut impl Driver, now: Instant) {
        let ids: Vec<PoolId> = self.pools.keys().copied().collect();
        for id in ids {
            while let Some(event) = self.pools.get_mut(&id).and_then(|pool| pool.drive(driver)) {
                self.handle_event(now, id, event);
            }
        }
        self.close_removed(driver);
        self.drive_room(now);
        self.drive_asked(now);
    }

    /// What happened for others.
    pub fn poll(&mut self) -> Option<PoolsOut> {
        self.out.pop_front()
    }

    /// When [`Pools::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let pools = self.pools.values().flat_map(|p| {
            let space = (p.phase == Phase::Serving).then_some(p.space_due);
            [space, p.retry_due].into_iter().flatten()
        });
        let ours = [self.trash_due, self.logs_due].into_iter().filter(|_| !self.pools.is_empty());
        pools.chain(ours).chain(self.asked.iter().map(|(_, until)| *until)).min()
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut retry = Vec::new();
        for pool in self.pools.values_mut() {
            if pool.phase == Phase::Serving && now >= pool.space_due {
                pool.space_due = now.after_ms(SPACE_MS);
                pool.submit(Purpose::Space, PoolOp::Space);
            }
            if pool.retry_due.is_some_and(|due| now >= due) {
                pool.retry_due = None;
                retry.push(pool.id);
                if let (true, None, Some(disk), Some(owner)) =
                    (pool.store_behind, &pool.start, pool.disk, self.owner)
                {
                    let fresh = Nonce(random_u128());
                    pool.start = Some(PoolStart::new(disk, owner.cluster, owner.host, fresh));
                }
            }
        }
        for id in retry {
            self.drive_start(id);
        }
        if now >= self.trash_due && !self.pools.is_empty() {
            self.trash_due = now.after_ms(TRASH_LOOK_MS);
            self.begin_trash(TrashKind::Expire, None);
        }
        if now >= self.logs_due {
            self.logs_due = now.after_ms(LOGS_MS);
            self.keep_logs();
        }
    }

    /// Marks every replica as stopped cleanly and writes checkpoints; done when [`Pools::is_stopped`].
    pub fn stop(&mut self, now: Instant) {
        for pool in self.pools.values_mut() {
            pool.stop(now, &mut self.out);
        }
    }

    /// True when nothing is under way in any pool any more.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.pools.values().all(|p| match &p.file {
            Some(file) if p.phase == Phase::Serving => p.stopping == Stopping::Done && file.is_idle(),
            _ => true,
        })
    }

    /// Gives the locks of stopped pools back: the kernel would keep them for a moment after the process.
    pub fn release(&mut self, driver: &mut impl Driver) {
        for pool in self.pools.values_mut() {
            if let Some(file) = pool.file.take_if(|file| file.is_idle())
                && let Err(error) = file.stop(driver)
            {
                tracing::warn!(pool = %pool.id, %error, "its lock is free when the kernel has let go of it");
            }
        }
    }

    fn handle_event(&mut self, now: Instant, id: PoolId, event: PoolEvent) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        let (token, result) = match event {
            PoolEvent::Done { token, result } => (token, result),
            PoolEvent::ReplicaFailed { replica, errno } => {
                tracing::error!(pool = %id, volume = %replica.volume, rid = %replica.rid, %errno, "flush failed");
                return;
            }
        };
        let Some(purpose) = pool.ops.remove(&token) else { return };
        match purpose {
            Purpose::Superblock => match (result, &mut pool.start) {
                (Ok(_), Some(start)) => {
                    start.handle_written();
                    self.drive_start(id);
                }
                (Err(error), _) => self.fail(id, format!("its superblock can't be written: {error}")),
                (Ok(_), None) => {}
            },
            Purpose::Look(step) => pool.handle_look(step, result),
            Purpose::ReadLog => match result {
                Ok(PoolAnswer::Bytes(bytes)) => {
                    pool.recovering_log = Some(bytes);
                    pool.submit(Purpose::List, PoolOp::ListReplicas);
                }
                other => self.fail(id, format!("its log can't be read: {}", said(&other))),
            },
            Purpose::List => match result {
                Ok(PoolAnswer::Replicas(keys)) => {
                    for key in keys {
                        pool.load(key);
                    }
                    pool.loading_images = None;
                    pool.submit(Purpose::Images, PoolOp::ListImages);
                }
                other => self.fail(id, format!("its replicas can't be listed: {}", said(&other))),
            },
            Purpose::Images => match result {
                Ok(PoolAnswer::Images(images)) => {
                    pool.load_images(images);
                    self.try_recover(now, id);
                }
                other => self.fail(id, format!("its images can't be listed: {}", said(&other))),
            },
            Purpose::ReadImage(key, image, side) => {
                let bytes = read_or_nothing(result);
                let sides = pool.loading_images.as_mut().and_then(|all| all.get_mut(&(key, image)));
                if let Some(sides) = sides {
                    sides[side as usize] = Some(bytes);
                }
                self.try_recover(now, id);
            }
            Purpose::ImageSlot(written) => {
                if let Err(error) = &result {
                    let key = written.key();
                    tracing::error!(pool = %id, volume = %key.volume, rid = %key.rid, %error, "an image's state can't be written");
                }
                pool.handle_image_slot(now, written, result.is_ok(), &mut self.out);
            }
            Purpose::DropImage(key) => {
                if let Err(error) = &result {
                    tracing::error!(pool = %id, volume = %key.volume, rid = %key.rid, %error, "an image was not removed");
                }
                if let Some(slot) = pool.replicas.get_mut(&key) {
                    slot.cleaning = slot.cleaning.saturating_sub(1);
                }
            }
            Purpose::ReadCheckpoint(key, side) => {
                let bytes = match result {
                    Ok(PoolAnswer::Bytes(bytes)) => bytes,
                    // An unreadable file is one that proves nothing: the other may.
                    other => {
                        let why = said(&other);
                        tracing::warn!(pool = %id, volume = %key.volume, rid = %key.rid, why, "checkpoint unreadable");
                        IoBuf::copy_of(&[])
                    }
                };
                if let Some(sides) = pool.loading.get_mut(&key) {
                    sides[side as usize] = Some(bytes);
                }
                self.try_recover(now, id);
            }
            Purpose::Open(key) => {
                if let Some(slot) = pool.replicas.get_mut(&key) {
                    match result {
                        Ok(_) => slot.open = true,
                        Err(error) => {
                            tracing::error!(pool = %id, volume = %key.volume, rid = %key.rid, %error, "not opened");
                            slot.machine.handle_quarantine();
                            slot.quarantined = true;
                        }
                    }
                    // What it has to go on with by itself.
                    pool.drive_replica(now, key, &mut self.out);
                    self.out.push_back(PoolsOut::Changed(id));
                }
            }
            Purpose::MakeImage(key, token) => {
                let outcome = match result {
                    Ok(_) | Err(PoolError::Exists) => Ok(DiskDone::Done),
                    Err(error) => Err(error.disk_error()),
                };
                if let Some(slot) = pool.replicas.get_mut(&key) {
                    slot.machine.handle_disk(now, token, outcome);
                    pool.drive_replica(now, key, &mut self.out);
                }
            }
            Purpose::Disk(key, token) => {
                let outcome = match result {
                    Ok(PoolAnswer::Disk(done)) => Ok(done),
                    Ok(_) => Ok(DiskDone::Done),
                    Err(error) => Err(error.disk_error()),
                };
                if let Some(slot) = pool.replicas.get_mut(&key) {
                    slot.machine.handle_disk(now, token, outcome);
                    pool.drive_replica(now, key, &mut self.out);
                }
            }
            Purpose::Log(batch) => {
                if let Err(error) = &result {
                    tracing::error!(pool = %id, %error, "the pool's log can't be written");
                }
                pool.handle_log_written(now, batch, result.is_ok(), &mut self.out);
            }
            Purpose::Checkpoint { key, side, counter, log_seq } => {
                pool.handle_checkpoint(now, key, (side, counter, log_seq), result.is_ok(), &mut self.out);
            }
            Purpose::Space => {
                match result {
                    Ok(PoolAnswer::Space { free, total }) => {
                        let rot = pool.rot();
                        if pool.total == 0 || rot != pool.rot_told {
                            // From now on copies can be placed here: whoever waits for that is told. And of rot, now and then.
                            pool.rot_told = rot;
                            self.out.push_back(PoolsOut::Changed(id));
                        }
                        (pool.free, pool.total) = (free, total);
                        let keys: Vec<ReplicaKey> = pool.replicas.keys().copied().collect();
                        for key in keys {
                            if let Some(slot) = pool.replicas.get_mut(&key) {
                                slot.machine.handle_free_bytes(free);
                            }
                            pool.drive_replica(now, key, &mut self.out);
                        }
                    }
                    // What is written to files without a name is lost at the next start.
                    other => self.fail(id, format!("its directory is not where it was: {}", said(&other))),
                }
            }
            Purpose::Create { durable, answer } => match result {
                Ok(_) => pool.first_checkpoint(durable, answer),
                Err(error) => refuse(answer, disk_failure(&error)),
            },
            Purpose::FirstCheckpoint { durable, log_seq, answer } => match result {
                Ok(_) => {
                    let replica = ReplicaKey { volume: durable.volume, rid: durable.rid };
                    let op = PoolOp::OpenReplica { replica, size: durable.size, unsealed: Vec::new() };
                    pool.submit(Purpose::OpenCreated { durable, log_seq, answer }, op);
                }
                Err(error) => {
                    pool.unfinished.push(ReplicaKey { volume: durable.volume, rid: durable.rid });
                    refuse(answer, disk_failure(&error));
                }
            },
            Purpose::OpenCreated { durable, log_seq, answer } => match result {
                Ok(_) => {
                    let key = ReplicaKey { volume: durable.volume, rid: durable.rid };
                    let mut slot =
                        pool.slot(*durable, (Side::A, 1, log_seq), self.watermark, self.owner.as_ref());
                    slot.open = true;
                    pool.replicas.insert(key, slot);
                    pool.append_identity(now, key, self.owner.as_ref());
                    pool.drive_log();
                    let _ = answer.send(Ok(json!({})));
                    self.out.push_back(PoolsOut::Changed(id));
                }
                Err(error) => refuse(answer, disk_failure(&error)),
            },
            Purpose::CopyPublished { key, token, image, attempt } => {
                pool.copy_published(now, (key, token), (image, attempt), result);
                pool.drive_replica(now, key, &mut self.out);
            }
            Purpose::CloneBegun(to) => pool.clone_begun(now, to, result, &mut self.out),
            Purpose::ClonePublished { to, log_seq } => pool.clone_published(to, log_seq, result),
            Purpose::CloneAbandoned(to) => pool.clone_abandoned(to, &result),
            Purpose::TrashCheckpoint(key) => match result {
                Ok(_) => {
                    let now_s = unix_seconds();
                    pool.submit(Purpose::Trash(key), PoolOp::TrashReplica { replica: key, now_s });
                }
                Err(error) => pool.put_back(key, &error),
            },
            Purpose::Trash(key) => match result {
                Ok(_) => {
                    if let Some(trashing) = pool.trashing.remove(&key) {
                        tracing::info!(pool = %id, volume = %key.volume, rid = %key.rid, "replica moved to the trash");
                        let images = trashing.taken.map(|slot| slot.machine.durable().images.clone());
                        pool.drop_images(key, images.unwrap_or_default().iter().map(|image| image.id));
                        let _ = trashing.answer.send(Ok(json!({ "trashed": true, "reason": null })));
                    }
                    self.out.push_back(PoolsOut::Changed(id));
                }
                Err(error) => pool.put_back(key, &error),
            },
            Purpose::ListTrash { job } => {
                if let Some(job) = self.trash_jobs.get_mut(&job) {
                    job.waiting -= 1;
                    match result {
                        Ok(PoolAnswer::Trash(entries)) => {
                            pool.drop_images_of_trash(&entries);
                            job.entries.extend(entries.into_iter().map(|e| (id, e)))
                        }
                        Ok(_) => {}
                        Err(error) => job.error = Some(disk_failure(&error)),
                    }
                }
                self.drive_trash(job);
            }
            Purpose::RestoreTrash { job, key } => {
                if let Some(job) = self.trash_jobs.get_mut(&job) {
                    job.waiting -= 1;
                    match result {
                        Ok(_) => {
                            job.done.push(key.rid);
                            pool.load(key);
                        }
                        Err(error) => job.error = Some(disk_failure(&error)),
                    }
                }
                self.drive_trash(job);
            }
            Purpose::EmptyTrash { job, rid } => {
                if let Some(job) = self.trash_jobs.get_mut(&job) {
                    job.waiting -= 1;
                    match result {
                        Ok(_) => job.done.push(rid),
                        Err(error) => job.error = Some(disk_failure(&error)),
                    }
                }
                self.drive_trash(job);
            }
        }
    }

    fn fail(&mut self, id: PoolId, why: String) {
        if let Some(pool) = self.pools.get_mut(&id) {
            tracing::error!(pool = %id, why, "pool failed");
            pool.start = None;
            pool.phase = Phase::Failed(why);
            self.out.push_back(PoolsOut::Changed(id));
        }
    }
}

impl Pool {
    fn new(id: PoolId, path: PathBuf, phase: Phase, space: TokenSpace) -> Pool {
        Pool {
            id,
            path,
            phase,
            file: None,
            space,
            start: None,
            stored: None,
            swapping: None,
            inc: PoolInc(0),
            inc_before: PoolInc(0),
            disk: None,
            served: PoolInc(0),
            store_behind: false,
            look: None,
            log: None,
            known_durable: 0,
            broken: Broken::default(),
            replicas: BTreeMap::new(),
            loading: BTreeMap::new(),
            loading_images: Some(LoadedImages::new()),
            orphans: Vec::new(),
            unfinished: Vec::new(),
            recovering_log: None,
            ops: BTreeMap::new(),
            next_op: 0,
            log_waiters: VecDeque::new(),
            log_full: VecDeque::new(),
            checkpointing: None,
            images_through: None,
            clones: BTreeMap::new(),
            trashing: BTreeMap::new(),
            removing: None,
            free: 0,
            total: 0,
            rot_told: (0, 0),
            space_due: Instant(0),
            room: room::RoomKept::default(),
            retry_due: None,
            stopping: Stopping::No,
            retired: false,
            closing: None,
        }
    }

    /// Its path could not be opened, as while the device that belongs there is not mounted.
    fn is_missing(&self) -> bool {
        matches!(self.phase, Phase::Failed(_)) && self.file.is_none() && !self.retired
    }

    fn info(&self) -> PoolInfo {
        let (state, reason) = match &self.phase {
            Phase::Opening | Phase::Starting | Phase::Recovering => (PoolState::Starting, None),
            Phase::WaitingLock => (
                PoolState::WaitingLock,
                Some("waiting for the pool's lock: I/O of an earlier process has not ended".into()),
            ),
            Phase::Serving => (PoolState::Serving, None),
            Phase::Quarantined(why) => (PoolState::Quarantined, Some(why.clone())),
            Phase::Failed(why) => (PoolState::Failed, Some(why.clone())),
        };
        let rot = self.rot();
        PoolInfo {
            pool: self.id,
            path: self.path.display().to_string(),
            state,
            reason,
            inc: self.inc,
            free: Decimal(self.free),
            total: Decimal(self.total),
            room: self.room_info(),
            replicas: u32::try_from(self.replicas.len()).unwrap_or(u32::MAX),
            bit_rot: Decimal(rot.0),
            bit_rot_left: Decimal(rot.1),
            no_snapshots: match self.file.as_ref().map(|file| file.probe().ability) {
                Some(Ability::None(why)) => Some(why.to_string()),
                Some(Ability::Reflink | Ability::Thin) | None => None,
            },
        }
    }

    /// Blocks that were found rotten, and those of them that still are.
    fn rot(&self) -> (u64, u64) {
        self.file.as_ref().map_or((0, 0), |file| {
            let figures = file.figures();
            (figures.bit_rot, figures.bit_rot_left)
        })
    }

    fn not_serving(&self) -> Failure {
        let info = self.info();
        let reason = info.reason.unwrap_or_else(|| "it is being started".to_owned());
        let code = match info.state {
            PoolState::Quarantined => Code::POOL_QUARANTINED,
            _ => Code::POOL_NOT_SERVING,
        };
        Failure::new(code, format!("pool {} does not serve: {reason}", self.id))
            .with("pool", self.id.to_string())
    }

    /// Quarantines a pool whose disk nothing speaks against; false when it was already. The store is looked at again.
    fn quarantine_behind(&mut self, why: String) -> bool {
        let again = self.phase == Phase::Quarantined(why.clone());
        self.store_behind = true;
        if !again {
            self.quarantine(why);
        }
        !again
    }

    fn quarantine(&mut self, why: String) {
        tracing::error!(pool = %self.id, why, "pool quarantined");
        for slot in self.replicas.values_mut() {
            slot.machine.handle_quarantine();
            slot.quarantined = true;
        }
        self.phase = Phase::Quarantined(why);
    }

    fn submit(&mut self, purpose: Purpose, op: PoolOp) {
        let token = self.next_op;
        self.next_op += 1;
        self.ops.insert(token, purpose);
        self.file.as_mut().expect("ops are submitted to an open pool only").submit(token, op);
    }

    /// Exchanges ops and completions with the driver; the next thing that happened.
    fn drive(&mut self, driver: &mut impl Driver) -> Option<PoolEvent> {
        let file = self.file.as_mut()?;
        file.drive(driver);
        file.poll_event()
    }

    fn stop(&mut self, now: Instant, out: &mut VecDeque<PoolsOut>) {
        if self.phase != Phase::Serving || self.stopping != Stopping::No {
            return;
        }
        self.stopping = Stopping::Marking;
        self.give_up_clones();
        let keys: Vec<ReplicaKey> =
            self.replicas.iter().filter(|(_, s)| !s.quarantined).map(|(k, _)| *k).collect();
        for key in keys {
            let boot_id = self.replicas.get(&key).map_or(0, |s| s.machine.durable().boot_id);
            let identity = LogRecord::Identity { boot_id, device_generation: 0, clean_stop: true };
            self.append(now, key, None, identity);
        }
        self.drive_log();
        self.drive_stop(now, out);
    }

    /// The log's "stopped cleanly" comes last, when nothing else is on its way.
    fn drive_stop(&mut self, _now: Instant, _out: &mut VecDeque<PoolsOut>) {
        if self.stopping != Stopping::Marking || self.checkpointing.is_some() || !self.log_waiters.is_empty()
        {
            return;
        }
        if let Some(log) = &mut self.log {
            self.stopping = Stopping::Done;
            // A log without space for it is merely not known to be clean.
            if log.append_clean().is_ok() {
                self.drive_log();
            }
        }
    }
}

impl Slotted {
    fn info(&self, pool: &Pool, key: ReplicaKey) -> ReplicaInfo {
        let durable = self.machine.durable();
        let state = if self.quarantined {
            ReplicaState::Quarantined
        } else if self.machine.is_failed() {
            ReplicaState::Failed
        } else if durable.promised.0 == 0 {
            ReplicaState::Fresh
        } else {
            ReplicaState::Serving
        };
        ReplicaInfo {
            volume: key.volume,
            rid: key.rid,
            pool: pool.id,
            promised: durable.promised,
            sealed: Decimal(durable.sealed.0),
            size: Decimal(durable.size),
            used: pool.file.as_ref().and_then(|file| file.used(key)).map(Decimal),
            thick: pool.is_thick(key),
            state,
            unverified_promises: Decimal(self.machine.unverified_promises()),
        }
    }
}

/// What the files of a pool say together.
#[derive(Debug, Default)]
struct ReadBack {
    found: BTreeMap<ReplicaKey, (Side, Checkpoint)>,
    damaged: Vec<(ReplicaKey, String)>,
    /// Directories of replicas whose creation was interrupted.
    unfinished: Vec<ReplicaKey>,
    recovered: Option<Recovered>,
    /// Of the images of each replica that was found.
    image_files: BTreeMap<ReplicaKey, BTreeMap<SnapId, ImageFiles>>,
    /// Directories of images that nothing names.
    leftovers: Vec<(ReplicaKey, SnapId)>,
    /// Images of which nothing but the name is left.
    lost: Vec<(ReplicaKey, SnapId)>,
}

/// A record whose checksum is right and that no writer made: nothing of such a log is believed (R24).
pub(crate) fn impossible(entry: &Recorded) -> String {
    let (ReplicaKey { volume, rid }, seq) = (entry.key, entry.seq);
    format!("log sequence {seq}: {rid} of volume {volume} can't have that size")
}

/// An unreadable file is one that proves nothing: the other may.
fn read_or_nothing(result: Result<PoolAnswer, PoolError>) -> IoBuf {
    match result {
        Ok(PoolAnswer::Bytes(bytes)) => bytes,
        _ => IoBuf::copy_of(&[]),
    }
}

fn slot_of(side: Side) -> Slot {
    match side {
        Side::A => Slot::A,
        Side::B => Slot::B,
    }
}

/// The superblock in the content that the pool's file keeps.
pub fn read_superblock(content: &[u8]) -> Result<Superblock, String> {
    let mut bytes = content.to_vec();
    bytes.resize(SUPERBLOCK_LEN, 0);
    Superblock::decode(&bytes).map_err(|e| e.to_string())
}

/// A pool's key.
pub(crate) fn stored_pool(entry: &Entry) -> Result<StoredPool, String> {
    #[derive(Deserialize)]
    struct Stored {
        node: HostId,
        inc: PoolInc,
        intent: Option<Nonce>,
    }
    let stored: Stored = serde_json::from_slice(&entry.value).map_err(|e| e.to_string())?;
    if stored.inc.0 > COUNTER_MAX {
        return Err(format!("incarnation {} is at the end of its range", stored.inc));
    }
    Ok(StoredPool { host: stored.node, inc: stored.inc, intent: stored.intent })
}

/// Answers with a failure; whoever asked may be gone.
pub fn refuse(answer: Answer, failure: Failure) {
    let _ = answer.send(Err(failure.into_body()));
}

fn refuse_all(answers: Vec<Answer>, failure: &Failure) {
    for answer in answers {
        refuse(answer, failure.clone());
    }
}

fn no_pool(id: PoolId) -> Failure {
    Failure::new(Code::NO_SUCH, format!("no pool {id} on this host")).with("pool", id.to_string())
}

/// The answer to whatever needs a cluster.
#[must_use]
pub fn not_configured() -> Failure {
    Failure::new(Code::NOT_CONFIGURED, "this host is not in a cluster yet")
}

fn disk_failure(error: &PoolError) -> Failure {
    let code = match error {
        PoolError::NoSpace => Code::NO_SPACE,
        PoolError::Exists => Code::REPLICA_EXISTS,
        PoolError::NoReplica => Code::NO_SUCH,
        _ => Code::DISK_FAILED,
    };
    Failure::new(code, error.to_string())
}

fn said(result: &Result<PoolAnswer, PoolError>) -> String {
    match result {
        Ok(_) => "an answer to another question".to_owned(),
        Err(error) => error.to_string(),
    }
}
