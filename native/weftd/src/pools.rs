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
use weft_proto::checkpoint::{self, Checkpoint, Side, checkpoint_len};
use weft_proto::durable::Durable;
use weft_proto::ids::{ClusterId, HostId, Instant, Nonce, PoolId, PoolInc, Rid, VolumeId};
use weft_proto::log::{
    AppendError, LOG_BLOCK, Log, LogExpectation, LogPlace, LogRecord, LogToken, LogWriteFailed, Recorded,
    Recovered, ReplicaKey, recover,
};
use weft_proto::message::{Ask, Refusal, Request, Response, Watermark};
use weft_proto::mutants::{Broken, Mutation};
use weft_proto::payload::Payload as _;
use weft_proto::record::{COUNTER_MAX, Record};
use weft_proto::replica::{
    Action, AttachmentId, DiskDone, DiskError, Replica, ReplicaConfig, Token, Verified,
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
    /// Replicas between the question whether they may go and the answer, or on their way.
    trashing: BTreeMap<ReplicaKey, Trashing>,
    removing: Option<Answer>,
    free: u64,
    total: u64,
    space_due: Instant,
    retry_due: Option<Instant>,
    stopping: Stopping,
    /// Removed from this host; locked until the process ends.
    retired: bool,
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
    Checkpoints(IoBuf, BTreeMap<ReplicaKey, [Option<IoBuf>; 2]>),
    /// The records that its replicas keep, or why they can't be known.
    Done(Result<Vec<KeptRecord>, String>),
}

/// What a look asked for.
#[derive(Clone, Copy, Debug)]
enum LookStep {
    Log,
    List,
    Checkpoint(ReplicaKey, Side),
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
}

impl TrashKind {
    /// Is an entry of the trash one that this is about?
    fn concerns(self, entry: &TrashEntry, now_s: u64) -> bool {
        match self {
            TrashKind::Tell | TrashKind::Empty(None) => true,
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
            open_in_background(known.path, self.mailbox.clone());
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

    // ---- opening

    /// Makes a pool at `path`, or takes up one of this host that is there.
    pub fn create(&mut self, path: PathBuf, answer: Answer) {
        let Some(owner) = self.owner else { return refuse(answer, not_configured()) };
        let length = path.as_os_str().len();
        if !path.is_absolute() || length > PATH_MAX {
            let start: String = path.display().to_string().chars().take(64).collect();
            let message =
                format!("{start:?} ({length} bytes) is no absolute path of at most {PATH_MAX} bytes");
            return refuse(answer, Failure::new(Code::BAD_VALUE, message));
        }
        if let Some(pool) = self.pools.values().find(|p| p.path == path) {
            let _ = answer.send(Ok(json!(pool.info())));
            return;
        }
        if self.next_space > 200 {
            return refuse(
                answer,
                Failure::new(Code::POOL_PATH, "this host has opened 200 pools since weftd started"),
            );
        }
        let asked = self.creating.entry(path.clone()).or_default();
        asked.push(answer);
        if asked.len() == 1 {
            create_in_background(path, owner, self.mailbox.clone());
        }
    }

    /// The blocking open or creation of a pool has ended.
    pub fn handle_opened(&mut self, driver: &mut impl Driver, now: Instant, opened: OpenedPool) {
        let OpenedPool { path, result } = opened;
        let Some(owner) = self.owner else { return };
        let asked = self.creating.remove(&path).unwrap_or_default();
        let known = self.pools.values().find(|p| p.path == path).map(|p| p.id);
        match result {
            Ok(dir) => {
                let superblock = read_superblock(dir.superblock());
                let id = match (&superblock, known) {
                    (Ok(s), None) => s.pool,
                    (_, Some(id)) => id,
                    (Err(why), None) => {
                        let failure = Failure::new(Code::POOL_PATH, format!("{}: {why}", path.display()));
                        return refuse_all(asked, &failure);
                    }
                };
                if known.is_none() {
                    if self.pools.contains_key(&id) {
                        let message =
                            format!("{} holds pool {id}, which is served elsewhere here", path.display());
                        return refuse_all(asked, &Failure::new(Code::POOL_NOT_EMPTY, message));
                    }
                    self.add(id, path.clone(), Phase::Opening);
                    self.saved.push(KnownPool { pool: id, path: path.clone() });
                    if let Err(failure) = self.state.write_json(POOLS_FILE, &self.saved) {
                        self.pools.remove(&id);
                        self.saved.pop();
                        return refuse_all(asked, &failure);
                    }
                }
                let Some(pool) = self.pools.get_mut(&id) else { return };
                pool.begin(driver, now, dir, superblock, owner);
                let info = json!(pool.info());
                for answer in asked {
                    let _ = answer.send(Ok(info.clone()));
                }
                self.out.push_back(PoolsOut::Changed(id));
                self.drive_start(id);
            }
            Err(error) => {
                let code = match error {
                    OpenError::NotEmpty(_) => Code::POOL_NOT_EMPTY,
                    _ => Code::POOL_PATH,
                };
                let failure = Failure::new(code, format!("{}: {error}", path.display()))
                    .with("path", path.display().to_string());
                refuse_all(asked, &failure);
                if let Some(pool) = known.and_then(|id| self.pools.get_mut(&id)) {
                    pool.phase = match error {
                        OpenError::Locked => Phase::WaitingLock,
                        OpenError::BadSuperblock => Phase::Quarantined(error.to_string()),
                        _ => Phase::Failed(error.to_string()),
                    };
                    tracing::warn!(pool = %pool.id, path = %path.display(), %error, "pool does not serve");
                    self.out.push_back(PoolsOut::Changed(pool.id));
                }
            }
        }
    }

    fn drive_start(&mut self, id: PoolId) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        let Some(start) = &pool.start else { return };
        let action = start.action();
        if pool.store_behind && !matches!(action, PoolAction::ReadStore | PoolAction::Quarantine(_)) {
            tracing::info!(pool = %id, "the store knows the pool again");
            pool.store_behind = false;
            pool.phase = Phase::Starting;
            self.out.push_back(PoolsOut::Changed(id));
        }
        match action {
            PoolAction::ReadStore => self.out.push_back(PoolsOut::Call(PoolsCall::ReadPool(id))),
            PoolAction::WriteSuperblock(superblock) => {
                let mut content = superblock.encode();
                content.truncate(SUPERBLOCK_CONTENT);
                pool.submit(Purpose::Superblock, PoolOp::WriteSuperblock { content });
            }
            PoolAction::Swap { inc, intent } => {
                let value = pool.store_value(inc, intent, self.owner.as_ref());
                let expected = pool.stored.clone();
                pool.swapping = Some(value.clone());
                self.out.push_back(PoolsOut::Call(PoolsCall::SwapPool {
                    pool: id,
                    expected,
                    value: Some(value),
                }));
            }
            PoolAction::Serve(inc) => {
                pool.inc = inc;
                pool.start = None;
                pool.look = None;
                self.kept_starts.insert(id, inc);
                self.out.push_back(PoolsOut::Keep(STARTS_FILE, json!(self.kept_starts)));
                pool.phase = Phase::Recovering;
                pool.submit(Purpose::ReadLog, PoolOp::ReadLog);
            }
            PoolAction::Quarantine(reason) => {
                pool.disk = Some(*start.superblock());
                pool.start = None;
                if !matches!(
                    reason,
                    PoolRefusal::Unknown { .. }
                        | PoolRefusal::StoreBehind { .. }
                        | PoolRefusal::Unreachable { .. }
                ) {
                    pool.store_behind = false;
                    pool.quarantine(reason.to_string());
                    self.out.push_back(PoolsOut::Changed(id));
                } else if pool.quarantine_behind(reason.to_string()) {
                    self.out.push_back(PoolsOut::Changed(id));
                }
            }
        }
    }

    /// The store answered [`PoolsCall::ReadPool`].
    pub fn handle_pool_read(&mut self, now: Instant, id: PoolId, result: Result<Option<Entry>, ReadError>) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        if pool.start.is_none() {
            return;
        }
        match result {
            Ok(entry) => {
                let stored = match entry.as_ref().map(stored_pool).transpose() {
                    Ok(stored) => stored,
                    Err(why) => {
                        pool.disk = pool.start.take().map(|start| *start.superblock());
                        let why = format!("the store's entry of the pool can't be understood: {why}");
                        if pool.quarantine_behind(why) {
                            self.out.push_back(PoolsOut::Changed(id));
                        }
                        pool.retry_due = Some(now.after_ms(STORE_BEHIND_MS));
                        return;
                    }
                };
                pool.stored = entry;
                if let Some(start) = &mut pool.start {
                    start.handle_store(stored);
                }
                self.drive_start(id);
                // The store may be repaired, or corrected.
                if let Some(pool) = self.pools.get_mut(&id).filter(|p| p.store_behind) {
                    pool.retry_due = Some(now.after_ms(STORE_BEHIND_MS));
                }
            }
            // A store that went back decides nothing; it may be repaired.
            Err(error) => {
                tracing::debug!(pool = %id, ?error, "the pool waits for the store");
                pool.retry_due = Some(now.after_ms(RETRY_MS));
            }
        }
    }

    /// The store answered [`PoolsCall::SwapPool`].
    pub fn handle_pool_swap(&mut self, now: Instant, id: PoolId, outcome: SwapOutcome) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        if let Some(answer) = pool.removing.take() {
            return self.finish_remove(id, &outcome, answer);
        }
        let Some(start) = &mut pool.start else { return };
        match outcome {
            SwapOutcome::Done { revision } => {
                let value = pool.swapping.take().unwrap_or_default();
                pool.stored = Some(Entry { key: pool_key(id), value, revision });
                start.handle_swap(StartSwap::Done);
            }
            SwapOutcome::Failed { .. } => start.handle_swap(StartSwap::Lost),
            SwapOutcome::Unknown(_) => {
                start.handle_swap(StartSwap::Unknown);
                pool.retry_due = Some(now.after_ms(RETRY_MS));
                return;
            }
            // Not sent: the same swap is still to be made.
            SwapOutcome::Away(_) | SwapOutcome::RolledBack(_) => {
                pool.retry_due = Some(now.after_ms(RETRY_MS));
                return;
            }
        }
        self.drive_start(id);
    }

    // ---- commands

    /// Every pool.
    #[must_use]
    pub fn list(&self) -> Vec<PoolInfo> {
        self.pools.values().map(Pool::info).collect()
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

    /// Tells what the replicas keep, for a repair of the store (4.15), when pools that don't serve were read.
    pub fn tell_records(&mut self, now: Instant, answer: Answer) {
        if self.asked.is_empty() {
            // What was read for an earlier repair is as it was, but an error may be over.
            for pool in self.pools.values_mut() {
                pool.look.take_if(|look| matches!(look, Look::Done(_)));
            }
        }
        self.asked.push((answer, now.after_ms(TELL_MS)));
        self.drive_asked(now);
    }

    /// Reads what has to be read, and answers when that is done or has taken too long.
    fn drive_asked(&mut self, now: Instant) {
        if self.asked.is_empty() {
            return;
        }
        let Some(owner) = self.owner else { return };
        let mut waits = false;
        for pool in self.pools.values_mut().filter(|p| !p.retired) {
            waits |= pool.is_being_read(owner);
        }
        for (answer, until) in std::mem::take(&mut self.asked) {
            if waits && now < until {
                self.asked.push((answer, until));
            } else {
                let _ = answer.send(Ok(json!(self.kept_records(owner))));
            }
        }
    }

    /// The records that the replicas keep, as far as they were read.
    fn kept_records(&self, owner: PoolOwner) -> KeptRecords {
        let pools = || self.pools.values().filter(|p| !p.retired);
        let mut records: Vec<KeptRecord> = pools().flat_map(Pool::kept_records).collect();
        records.sort_by_key(|r| (r.volume, r.rid));
        KeptRecords { records, pools: pools().map(|pool| pool.kept(owner)).collect() }
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
            if there.size >= ask.size.0 && there.region_shift == ask.region_shift {
                let _ = answer.send(Ok(json!({})));
            } else {
                let message =
                    format!("{} of volume {} is there with {} bytes", key.rid, key.volume, there.size);
                refuse(answer, Failure::new(Code::REPLICA_EXISTS, message));
            }
            return;
        }
        let durable = Box::new(Durable::new(key.volume, key.rid, ask.size.0, ask.region_shift));
        if let Some(at) = pool.unfinished.iter().position(|k| *k == key) {
            pool.unfinished.remove(at);
            return pool.first_checkpoint(durable, answer);
        }
        let meta_bytes = checkpoint_len(durable.rgm.len()) as u64;
        pool.submit(Purpose::Create { durable, answer }, PoolOp::CreateReplica { replica: key, meta_bytes });
    }

    /// Asks whether a replica may go, then lets it go.
    pub fn trash_replica(&mut self, pool: PoolId, key: ReplicaKey, answer: Answer) {
        let pool = match self.serving(pool) {
            Ok(pool) => pool,
            Err(failure) => return refuse(answer, failure),
        };
        if !pool.replicas.contains_key(&key) {
            let reason = format!("no {} of volume {} in pool {}", key.rid, key.volume, pool.id);
            let _ = answer.send(Ok(json!({ "trashed": false, "reason": reason })));
            return;
        }
        if pool.trashing.contains_key(&key) {
            return refuse(answer, Failure::new(Code::CHANGING, "the replica is being looked at already"));
        }
        pool.trashing.insert(key, Trashing { answer, taken: None });
        self.out.push_back(PoolsOut::Call(PoolsCall::Trash(key)));
    }

    /// The store answered [`PoolsCall::Trash`]: decides, and takes the replica out of service in the same moment.
    pub fn handle_trash_read(&mut self, key: ReplicaKey, result: Result<Option<Entry>, ReadError>) {
        let broken = self.broken;
        let Some(pool) = self.pools.values_mut().find(|p| p.trashing.contains_key(&key)) else { return };
        let Some(trashing) = pool.trashing.remove(&key) else { return };
        let stay = |answer: Answer, reason: String| {
            let _ = answer.send(Ok(json!({ "trashed": false, "reason": reason })));
        };
        let entry = match result {
            Ok(entry) => entry,
            Err(ReadError::Away(why) | ReadError::Watermark(why)) => {
                return refuse(trashing.answer, Failure::new(Code::STORE_AWAY, why));
            }
            Err(ReadError::RolledBack(why)) => {
                return refuse(trashing.answer, Failure::new(Code::STORE_ROLLED_BACK, why));
            }
        };
        let present = match entry.as_ref().map(record_of).transpose() {
            Ok(present) => present,
            Err(error) => return stay(trashing.answer, error.to_string()),
        };
        let Some(slot) = pool.replicas.get(&key) else {
            return stay(trashing.answer, "the replica is gone".to_owned());
        };
        if !slot.machine.is_idle() {
            return stay(trashing.answer, "the replica has requests under way".to_owned());
        }
        let kept = slot.machine.durable();
        let kept = match kept.record.is_empty() {
            true => Ok(None),
            false => Record::parse(&kept.record).map(Some),
        };
        let verdict = match kept {
            _ if present.is_none() && broken.is(Mutation::AbsenceDeletes) => Ok(()),
            Ok(_) if broken.is(Mutation::TombstoneOfThePast) => may_trash(None, present.as_ref(), key.rid),
            Ok(kept) => may_trash(kept.as_ref(), present.as_ref(), key.rid),
            Err(error) => Err(format!("the record that the replica keeps: {error}")),
        };
        if let Err(reason) = verdict {
            return stay(trashing.answer, reason);
        }
        let Some(slot) = pool.replicas.remove(&key) else { return };
        // What the log holds of it must be in its checkpoint: the log forgets, the trash does not.
        let (side, bytes) = pool.encode_checkpoint(&slot);
        pool.trashing.insert(key, Trashing { answer: trashing.answer, taken: Some(slot) });
        pool.submit(
            Purpose::TrashCheckpoint(key),
            PoolOp::WriteCheckpoint { replica: key, slot: slot_of(side), bytes },
        );
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
            // It stays locked until the process ends; it is not served any more.
            pool.phase = Phase::Failed("removed from this host".to_owned());
            pool.retired = true;
        }
        let _ = answer.send(Ok(json!({})));
    }

    /// What is in the trash of every serving pool.
    pub fn list_trash(&mut self, answer: Answer) {
        self.begin_trash(TrashKind::Tell, Some(answer));
    }

    /// Takes a volume's replicas out of the trash.
    pub fn restore_trash(&mut self, volume: VolumeId, answer: Answer) {
        self.begin_trash(TrashKind::Restore(volume), Some(answer));
    }

    /// Removes what is in the trash for good: one volume's replicas, or all.
    pub fn empty_trash(&mut self, volume: Option<VolumeId>, answer: Answer) {
        if self.rolled_back {
            let message = "the store has gone back: the trash may hold the only copies";
            return refuse(answer, Failure::new(Code::STORE_ROLLED_BACK, message));
        }
        self.begin_trash(TrashKind::Empty(volume), Some(answer));
    }

    fn begin_trash(&mut self, kind: TrashKind, answer: Option<Answer>) {
        let id = self.next_job;
        self.next_job += 1;
        let mut waiting = 0;
        for pool in self.pools.values_mut().filter(|p| p.phase == Phase::Serving) {
            pool.submit(Purpose::ListTrash { job: id }, PoolOp::ListTrash);
            waiting += 1;
        }
        let entries = Vec::new();
        let job = TrashJob { kind, answer, waiting, entries, done: Vec::new(), error: None, acting: false };
        self.trash_jobs.insert(id, job);
        self.drive_trash(id);
    }

    fn drive_trash(&mut self, id: u64) {
        let Some(job) = self.trash_jobs.get_mut(&id).filter(|j| j.waiting == 0) else { return };
        if !job.acting {
            job.acting = true;
            let now = unix_seconds();
            job.entries.retain(|(_, entry)| job.kind.concerns(entry, now));
            match job.kind {
                TrashKind::Tell => {}
                TrashKind::Restore(_) => {
                    for (pool, entry) in &job.entries {
                        let Some(pool) = self.pools.get_mut(pool) else { continue };
                        let (name, key) = (entry.name.clone(), entry.replica);
                        pool.submit(Purpose::RestoreTrash { job: id, key }, PoolOp::RestoreTrash { name });
                        job.waiting += 1;
                    }
                }
                TrashKind::Empty(_) | TrashKind::Expire => {
                    let volumes: BTreeSet<VolumeId> =
                        job.entries.iter().map(|(_, entry)| entry.replica.volume).collect();
                    for volume in volumes {
                        self.out.push_back(PoolsOut::Call(PoolsCall::Emptying { job: id, volume }));
                        job.waiting += 1;
                    }
                }
            }
            if job.waiting > 0 {
                return;
            }
        }
        let Some(job) = self.trash_jobs.remove(&id) else { return };
        let Some(answer) = job.answer else { return };
        if let Some(error) = job.error {
            return refuse(answer, error);
        }
        let result = match job.kind {
            TrashKind::Tell => {
                let item = |(pool, entry): &(PoolId, TrashEntry)| TrashItem {
                    volume: entry.replica.volume,
                    rid: entry.replica.rid,
                    pool: *pool,
                    since: Decimal(entry.since_s),
                };
                let mut items: Vec<TrashItem> = job.entries.iter().map(item).collect();
                items.sort_by_key(|i| (i.volume, i.rid));
                json!({ "items": items })
            }
            TrashKind::Restore(_) => json!({ "rids": job.done }),
            TrashKind::Empty(_) | TrashKind::Expire => json!({ "removed": job.done.len() }),
        };
        let _ = answer.send(Ok(result));
    }

    /// The store answered [`PoolsCall::Emptying`]: destroys what the volume's record does not need.
    pub fn handle_emptying_read(
        &mut self,
        id: u64,
        volume: VolumeId,
        result: &Result<Option<Entry>, ReadError>,
    ) {
        let Some(job) = self.trash_jobs.get_mut(&id) else { return };
        job.waiting -= 1;
        let by = match job.kind {
            TrashKind::Empty(_) => EmptiedBy::Operator,
            TrashKind::Expire | TrashKind::Tell | TrashKind::Restore(_) => EmptiedBy::Age,
        };
        let record = match result {
            Ok(entry) => entry.as_ref().map(record_of).transpose().map_err(|error| {
                Failure::new(code_of(&error), format!("the record of volume {volume}: {error}"))
            }),
            Err(ReadError::Away(why) | ReadError::Watermark(why)) => {
                Err(Failure::new(Code::STORE_AWAY, why.clone()))
            }
            Err(ReadError::RolledBack(why)) => Err(Failure::new(Code::STORE_ROLLED_BACK, why.clone())),
        };
        for (pool, entry) in job.entries.iter().filter(|(_, entry)| entry.replica.volume == volume) {
            let Some(pool) = self.pools.get_mut(pool) else { continue };
            let (name, rid) = (entry.name.clone(), entry.replica.rid);
            let verdict = record.as_ref().map_err(Clone::clone).and_then(|record| {
                may_empty(record.as_ref(), rid, by).map_err(|why| {
                    Failure::new(
                        Code::STILL_NAMED,
                        format!("{rid} of volume {volume} stays in the trash: {why}"),
                    )
                    .with("volume", volume.to_string())
                    .with("rid", rid.0)
                })
            });
            match verdict {
                Ok(()) => {
                    tracing::info!(pool = %pool.id, name, "removed from the trash for good");
                    pool.submit(Purpose::EmptyTrash { job: id, rid }, PoolOp::EmptyTrash { name });
                    job.waiting += 1;
                }
                Err(failure) => {
                    tracing::info!(pool = %pool.id, name, why = failure.message, "kept in the trash");
                    job.error = Some(failure);
                }
            }
        }
        self.drive_trash(id);
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
        if !slot.open && !slot.quarantined {
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

    /// Has each log's durable sequence kept, if it has grown.
    fn keep_logs(&mut self) {
        let mut changed = false;
        for (id, pool) in &self.pools {
            let Some(seq) = pool.log.as_ref().map(Log::durable_seq) else { continue };
            let kept = self.kept_logs.entry(*id).or_default();
            if seq > kept.0 {
                *kept = Decimal(seq);
                changed = true;
            }
        }
        if changed {
            self.out.push_back(PoolsOut::Keep(LOGS_FILE, json!(self.kept_logs)));
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
                    self.try_recover(now, id);
                }
                other => self.fail(id, format!("its replicas can't be listed: {}", said(&other))),
            },
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
                    self.out.push_back(PoolsOut::Changed(id));
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
                        if pool.total == 0 {
                            // From now on copies can be placed here: whoever waits for that is told.
                            self.out.push_back(PoolsOut::Changed(id));
                        }
                        (pool.free, pool.total) = (free, total);
                        for slot in pool.replicas.values_mut() {
                            slot.machine.handle_free_bytes(free);
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

    /// Goes on when all that was asked for has been read: at the pool's start with the log, later (restored from
    /// the trash) without, since what the log held of a trashed replica is in its checkpoint.
    fn try_recover(&mut self, now: Instant, id: PoolId) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        if pool.loading.values().any(|sides| sides.iter().any(Option::is_none)) {
            return;
        }
        let loaded = std::mem::take(&mut pool.loading);
        let log = pool.recovering_log.take();
        let result = pool.recover(now, loaded, log, self.watermark, self.owner.as_ref());
        match result {
            Ok(()) => {
                if pool.phase == Phase::Recovering {
                    pool.phase = Phase::Serving;
                    pool.space_due = now;
                    // What became too old while it was not served.
                    self.trash_due = now;
                    tracing::info!(pool = %id, inc = %pool.inc, replicas = pool.replicas.len(), "pool serves");
                }
            }
            Err(why) => pool.quarantine(why),
        }
        let keys: Vec<ReplicaKey> = pool.replicas.keys().copied().collect();
        for key in keys {
            pool.drive_replica(now, key, &mut self.out);
        }
        self.out.push_back(PoolsOut::Changed(id));
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
            unfinished: Vec::new(),
            recovering_log: None,
            ops: BTreeMap::new(),
            next_op: 0,
            log_waiters: VecDeque::new(),
            log_full: VecDeque::new(),
            checkpointing: None,
            trashing: BTreeMap::new(),
            removing: None,
            free: 0,
            total: 0,
            space_due: Instant(0),
            retry_due: None,
            stopping: Stopping::No,
            retired: false,
        }
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
        PoolInfo {
            pool: self.id,
            path: self.path.display().to_string(),
            state,
            reason,
            inc: self.inc,
            free: Decimal(self.free),
            total: Decimal(self.total),
            replicas: u32::try_from(self.replicas.len()).unwrap_or(u32::MAX),
        }
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

    // ---- start

    fn begin(
        &mut self,
        driver: &mut impl Driver,
        now: Instant,
        dir: PoolDir,
        superblock: Result<Superblock, String>,
        owner: PoolOwner,
    ) {
        let superblock = match superblock {
            Ok(superblock) => superblock,
            Err(why) => return self.quarantine(why),
        };
        if superblock.pool != self.id {
            return self.quarantine(format!("its directory holds pool {}", superblock.pool));
        }
        self.disk = Some(superblock);
        if superblock.log_blocks * LOG_BLOCK as u64 != dir.wal_bytes() {
            return self.quarantine(format!(
                "its log has {} bytes, its superblock says {} blocks",
                dir.wal_bytes(),
                superblock.log_blocks
            ));
        }
        match FilePool::start(dir, PoolConfig::new(self.space), driver) {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                self.phase = Phase::Failed(error.to_string());
                return;
            }
        }
        self.phase = Phase::Starting;
        self.space_due = now;
        self.inc_before = superblock.inc;
        self.inc = superblock.inc;
        if self.is_own(owner) && superblock.inc < self.served {
            // Also when the store does not know better: it may have been restored from a backup (R11).
            let why = format!(
                "the disk is at incarnation {}, this host has served it at {}: the disk was rolled back, swapped or copied",
                superblock.inc, self.served
            );
            return self.quarantine(why);
        }
        self.start = Some(PoolStart::new(superblock, owner.cluster, owner.host, Nonce(random_u128())));
    }

    /// The pool's key with a raised incarnation; what others wrote into it is kept.
    fn store_value(&self, inc: PoolInc, intent: Nonce, owner: Option<&PoolOwner>) -> Vec<u8> {
        let present = self.stored.as_ref().and_then(|e| serde_json::from_slice::<Value>(&e.value).ok());
        let mut value = present.filter(Value::is_object).unwrap_or_else(|| json!({}));
        value["id"] = json!(self.id);
        value["node"] = json!(owner.map(|o| o.host));
        value["inc"] = json!(inc);
        value["intent"] = json!(intent);
        value["boot_id"] = json!(owner.map(|o| HostId(o.boot_id)));
        value["path"] = json!(self.path.display().to_string());
        value["kind"] = json!("dir");
        serde_json::to_vec(&value).expect("a value is always JSON")
    }

    fn load(&mut self, key: ReplicaKey) {
        self.loading.insert(key, [None, None]);
        for (side, slot) in [(Side::A, Slot::A), (Side::B, Slot::B)] {
            self.submit(Purpose::ReadCheckpoint(key, side), PoolOp::ReadCheckpoint { replica: key, slot });
        }
    }

    fn recover(
        &mut self,
        now: Instant,
        loaded: BTreeMap<ReplicaKey, [Option<IoBuf>; 2]>,
        log: Option<IoBuf>,
        watermark: Watermark,
        owner: Option<&PoolOwner>,
    ) -> Result<(), String> {
        let ReadBack { found, damaged, unfinished, recovered } = self.read_back(&loaded, log.as_ref())?;
        self.unfinished.extend(unfinished);
        if let (Some(ring), Some(recovered)) = (log, recovered) {
            let blocks = (ring.len() / LOG_BLOCK) as u64;
            self.log = Some(Log::new(LogPlace { pool: self.id, inc: self.inc, blocks }, &recovered));
        }
        for (key, why) in damaged {
            tracing::error!(pool = %self.id, volume = %key.volume, rid = %key.rid, why, "replica quarantined");
            let place = (Side::A, 0, self.log.as_ref().map_or(0, Log::durable_seq));
            let mut slot = self.slot(Durable::new(key.volume, key.rid, 4096, 20), place, watermark, owner);
            slot.machine.handle_quarantine();
            slot.quarantined = true;
            self.replicas.insert(key, slot);
        }
        for (key, (side, checkpoint)) in found {
            let durable = checkpoint.durable;
            let op =
                PoolOp::OpenReplica { replica: key, size: durable.size, unsealed: unsealed_ranges(&durable) };
            let slot = self.slot(durable, (side, checkpoint.counter, checkpoint.log_seq), watermark, owner);
            self.replicas.insert(key, slot);
            self.submit(Purpose::Open(key), op);
            self.append_identity(now, key, owner);
        }
        self.drive_log();
        Ok(())
    }

    /// What checkpoints and the log say together; nothing is changed anywhere.
    fn read_back(
        &self,
        loaded: &BTreeMap<ReplicaKey, [Option<IoBuf>; 2]>,
        log: Option<&IoBuf>,
    ) -> Result<ReadBack, String> {
        let mut read = ReadBack::default();
        for (key, sides) in loaded {
            let [a, b] = [0, 1].map(|i| sides[i].as_ref().map_or(&[][..], |buf| buf.bytes()));
            match checkpoint::choose(a, b, self.id, *key) {
                Ok(chosen) => {
                    read.found.insert(*key, chosen);
                }
                // Its creation never got to the first checkpoint: nobody was told that it exists.
                Err(_) if a.iter().chain(b).all(|byte| *byte == 0) => read.unfinished.push(*key),
                Err(error) => read.damaged.push((*key, error.to_string())),
            }
        }
        let Some(ring) = log else { return Ok(read) };
        let from_seq = read.found.values().map(|(_, c)| c.log_seq + 1).min().unwrap_or(1);
        let expect = LogExpectation {
            pool: self.id,
            inc: self.inc_before,
            from_seq,
            known_durable: self.known_durable,
        };
        let recovered = recover(ring.bytes(), &expect).map_err(|damage| damage.to_string())?;
        for entry in &recovered.records {
            if let Some((_, checkpoint)) = read.found.get_mut(&entry.key)
                && entry.seq > checkpoint.log_seq
            {
                if !checkpoint.durable.admits(&entry.record) {
                    return Err(impossible(entry));
                }
                checkpoint.durable.apply(&entry.record);
            }
        }
        read.recovered = Some(recovered);
        Ok(read)
    }

    // ---- what it tells a repair of the store

    /// Is the disk this pool's, and this host's?
    fn is_own(&self, owner: PoolOwner) -> bool {
        self.disk.is_some_and(|d| d.pool == self.id && d.cluster == owner.cluster && d.host == owner.host)
    }

    /// Was it opened, and does it not serve: what it holds is on its disk only, and nobody changes it?
    fn is_at_rest(&self) -> bool {
        self.file.is_some()
            && self.log.is_none()
            && matches!(self.phase, Phase::Starting | Phase::Quarantined(_))
    }

    /// Begins to read a pool that does not serve; true while that, or what must come before it, is under way.
    fn is_being_read(&mut self, owner: PoolOwner) -> bool {
        match self.phase {
            Phase::Opening | Phase::Recovering => true,
            Phase::Starting | Phase::Quarantined(_) => {
                // Another cluster's volumes are not this one's to rebuild.
                if !self.is_at_rest() || self.disk.is_none_or(|d| d.cluster != owner.cluster) {
                    return false;
                }
                if self.look.is_none() {
                    self.look = Some(Look::Log);
                    self.submit(Purpose::Look(LookStep::Log), PoolOp::ReadLog);
                }
                !matches!(self.look, Some(Look::Done(_)))
            }
            Phase::WaitingLock | Phase::Serving | Phase::Failed(_) => false,
        }
    }

    /// An answer to what [`Pool::is_being_read`] asked for.
    fn handle_look(&mut self, step: LookStep, result: Result<PoolAnswer, PoolError>) {
        if !self.is_at_rest() {
            // It serves by now, and tells by itself.
            self.look = None;
            return;
        }
        let next = match (self.look.take(), step, result) {
            (Some(Look::Log), LookStep::Log, Ok(PoolAnswer::Bytes(log))) => {
                self.submit(Purpose::Look(LookStep::List), PoolOp::ListReplicas);
                Look::List(log)
            }
            (Some(Look::List(log)), LookStep::List, Ok(PoolAnswer::Replicas(keys))) => {
                for key in &keys {
                    for (side, slot) in [(Side::A, Slot::A), (Side::B, Slot::B)] {
                        let step = LookStep::Checkpoint(*key, side);
                        let op = PoolOp::ReadCheckpoint { replica: *key, slot };
                        self.submit(Purpose::Look(step), op);
                    }
                }
                Look::Checkpoints(log, keys.into_iter().map(|key| (key, [None, None])).collect())
            }
            (Some(Look::Checkpoints(log, mut loaded)), LookStep::Checkpoint(key, side), result) => {
                if let Some(sides) = loaded.get_mut(&key) {
                    // An unreadable file is one that proves nothing: the other may.
                    sides[side as usize] = Some(match result {
                        Ok(PoolAnswer::Bytes(bytes)) => bytes,
                        _ => IoBuf::copy_of(&[]),
                    });
                }
                Look::Checkpoints(log, loaded)
            }
            (_, _, other) => Look::Done(Err(format!("it can't be read: {}", said(&other)))),
        };
        self.look = Some(match next {
            Look::Checkpoints(log, loaded) if loaded.values().flatten().all(Option::is_some) => {
                Look::Done(self.looked(&log, &loaded))
            }
            next => next,
        });
    }

    fn looked(
        &self,
        log: &IoBuf,
        loaded: &BTreeMap<ReplicaKey, [Option<IoBuf>; 2]>,
    ) -> Result<Vec<KeptRecord>, String> {
        let read = self.read_back(loaded, Some(log))?;
        Ok(read
            .found
            .iter()
            .map(|(key, (_, checkpoint))| self.kept_record(*key, &checkpoint.durable))
            .collect())
    }

    fn kept_record(&self, key: ReplicaKey, durable: &Durable) -> KeptRecord {
        let record = serde_json::from_slice::<Value>(&durable.record).ok().map(RecordJson);
        KeptRecord { volume: key.volume, rid: key.rid, pool: self.id, promised: durable.promised, record }
    }

    /// The records that its replicas keep, as far as they were read.
    fn kept_records(&self) -> Vec<KeptRecord> {
        if let Some(Look::Done(looked)) = &self.look {
            return looked.clone().unwrap_or_default();
        }
        // One whose metadata can't be read tells nothing, which is another thing than having promised nothing yet.
        let unread = |slot: &Slotted| slot.quarantined && slot.machine.durable().record.is_empty();
        let told = self.replicas.iter().filter(|(_, slot)| !unread(slot));
        told.map(|(key, slot)| self.kept_record(*key, slot.machine.durable())).collect()
    }

    /// The pool for a repair.
    fn kept(&self, owner: PoolOwner) -> KeptPool {
        let on_disk = self.start.as_ref().map_or(self.inc, |start| start.superblock().inc);
        let (tells, reason) = match (&self.phase, &self.look) {
            (_, Some(Look::Done(Err(why)))) => (false, Some(why.clone())),
            (Phase::Quarantined(why), Some(Look::Done(Ok(_)))) => (self.store_behind, Some(why.clone())),
            (_, Some(Look::Done(Ok(_)))) => (true, None),
            // What it took up when it began to serve is in memory.
            (Phase::Serving, _) => (true, None),
            (Phase::Failed(why), _) => (self.log.is_some(), Some(why.clone())),
            (Phase::Quarantined(why), _) => (false, Some(why.clone())),
            (Phase::WaitingLock, _) => (false, self.info().reason),
            (Phase::Opening | Phase::Starting | Phase::Recovering, _) => {
                (false, Some("it is still being opened or read".to_owned()))
            }
        };
        KeptPool {
            pool: self.id,
            path: self.path.display().to_string(),
            inc: self.is_own(owner).then_some(on_disk),
            served: self.served.max(if self.phase == Phase::Serving { self.inc } else { PoolInc(0) }),
            tells: tells && self.is_own(owner),
            reason,
        }
    }

    /// A replica that lost its cache keeps its old identity, so that it says so after a further restart too; what
    /// is written to it from now on does not make the rest whole.
    fn slot(
        &self,
        mut durable: Durable,
        (side, counter, log_seq): (Side, u64, u64),
        watermark: Watermark,
        owner: Option<&PoolOwner>,
    ) -> Slotted {
        let boot_id = owner.map_or(0, |o| o.boot_id);
        let lossy = durable.boot_id != 0 && durable.boot_id != boot_id && !durable.clean_stop;
        if !lossy {
            durable.apply(&LogRecord::Identity { boot_id, device_generation: 0, clean_stop: false });
        }
        let record = Record::parse(&durable.record).ok();
        let config = ReplicaConfig {
            pool: self.id,
            pool_inc: self.inc,
            watermark,
            lossy,
            cached: record.is_some_and(|r| r.policy.ack == weft_proto::record::Ack::Cached),
            broken: self.broken,
        };
        let mut machine = Replica::new(config, durable);
        machine.handle_free_bytes(self.free);
        Slotted { machine, side, counter, log_seq, open: false, quarantined: false }
    }

    /// Logs what [`Pool::slot`] made of a replica's identity.
    fn append_identity(&mut self, now: Instant, key: ReplicaKey, owner: Option<&PoolOwner>) {
        let Some(slot) = self.replicas.get(&key) else { return };
        let durable = slot.machine.durable();
        if owner.is_some_and(|o| o.boot_id == durable.boot_id) {
            let boot_id = durable.boot_id;
            let identity = LogRecord::Identity { boot_id, device_generation: 0, clean_stop: false };
            self.append(now, key, None, identity);
        }
    }

    fn first_checkpoint(&mut self, durable: Box<Durable>, answer: Answer) {
        let log_seq = self.log.as_ref().map_or(0, Log::durable_seq);
        let checkpoint = Checkpoint { pool: self.id, counter: 1, log_seq, durable: (*durable).clone() };
        let replica = ReplicaKey { volume: durable.volume, rid: durable.rid };
        let op = PoolOp::WriteCheckpoint { replica, slot: Slot::A, bytes: checkpoint.encode() };
        self.submit(Purpose::FirstCheckpoint { durable, log_seq, answer }, op);
    }

    /// The next checkpoint of a replica: its other side, its bytes.
    fn encode_checkpoint(&self, slot: &Slotted) -> (Side, Vec<u8>) {
        let log_seq = self.log.as_ref().map_or(0, Log::durable_seq);
        let durable = slot.machine.durable().clone();
        let checkpoint = Checkpoint { pool: self.id, counter: slot.counter + 1, log_seq, durable };
        (slot.side.other(), checkpoint.encode())
    }

    fn put_back(&mut self, key: ReplicaKey, error: &PoolError) {
        if let Some(Trashing { answer, taken }) = self.trashing.remove(&key) {
            if let Some(slot) = taken {
                self.replicas.insert(key, slot);
            }
            refuse(answer, disk_failure(error));
        }
    }

    // ---- replicas and the log

    /// Does what a replica's machine wants.
    fn drive_replica(&mut self, now: Instant, key: ReplicaKey, out: &mut VecDeque<PoolsOut>) {
        while let Some(action) = self.replicas.get_mut(&key).and_then(|slot| slot.machine.poll_action()) {
            match action {
                Action::Log { token, record } => self.append(now, key, Some(token), record),
                Action::Disk { token, op } => {
                    self.submit(Purpose::Disk(key, token), PoolOp::Disk { replica: key, op });
                }
                Action::ReadStore { token } => out.push_back(PoolsOut::Call(PoolsCall::Verify(key, token))),
                Action::Reply { attachment, response } => {
                    out.push_back(PoolsOut::Reply(attachment, response))
                }
            }
        }
        self.drive_log();
    }

    /// Appends a replica's record; without token nobody waits for it.
    fn append(&mut self, now: Instant, key: ReplicaKey, token: Option<Token>, record: LogRecord) {
        let Some(log) = &mut self.log else { return };
        match (log.append(key, &record), token) {
            (Ok(at), token) => self.log_waiters.push_back((at, key, token, record)),
            (Err(AppendError::Full), token) => {
                self.log_full.push_back((key, token, record));
                self.begin_checkpoints();
            }
            (Err(AppendError::Poisoned), Some(token)) => {
                if let Some(slot) = self.replicas.get_mut(&key) {
                    slot.machine.handle_logged(now, token, record, Err(DiskError::Io));
                }
            }
            (Err(AppendError::Poisoned), None) => {}
        }
    }

    fn drive_log(&mut self) {
        while let Some(write) = self.log.as_mut().and_then(Log::poll_write) {
            let offset = write.position_blocks * LOG_BLOCK as u64;
            let data = IoBuf::copy_of(&write.bytes);
            self.submit(Purpose::Log(write.batch), PoolOp::WriteLog { offset, data });
        }
        if self.log.as_ref().is_some_and(Log::needs_checkpoint) {
            self.begin_checkpoints();
        }
    }

    fn handle_log_written(&mut self, now: Instant, batch: u64, done: bool, out: &mut VecDeque<PoolsOut>) {
        let Some(log) = &mut self.log else { return };
        log.handle_written(batch, if done { Ok(()) } else { Err(LogWriteFailed) });
        let durable = log.poll_durable();
        let poisoned = log.is_poisoned();
        let mut told = Vec::new();
        while let Some((at, ..)) = self.log_waiters.front() {
            let outcome = if durable.is_some_and(|durable| *at <= durable) {
                Ok(())
            } else if poisoned {
                Err(DiskError::Io)
            } else {
                break;
            };
            let Some((_, key, token, record)) = self.log_waiters.pop_front() else { break };
            told.push((key, token, record, outcome));
        }
        if poisoned {
            self.phase = Phase::Failed("a write to its log failed".to_owned());
            out.push_back(PoolsOut::Changed(self.id));
            let full = std::mem::take(&mut self.log_full);
            told.extend(
                full.into_iter().map(|(key, token, record)| (key, token, record, Err(DiskError::Io))),
            );
        }
        for (key, token, record, outcome) in told {
            if let (Some(slot), Some(token)) = (self.replicas.get_mut(&key), token) {
                slot.machine.handle_logged(now, token, record, outcome);
                self.drive_replica(now, key, out);
            }
        }
        self.drive_log();
        self.drive_stop(now, out);
    }

    /// Checkpoints of all replicas, one after the other, so that the log may forget.
    fn begin_checkpoints(&mut self) {
        if self.checkpointing.is_none() && !self.log.as_ref().is_none_or(Log::is_poisoned) {
            self.checkpointing = Some(self.replicas.keys().copied().collect());
            if self.broken.is(Mutation::ForgetWithoutCheckpoint) {
                self.checkpointing = Some(VecDeque::new());
                self.replicas.values_mut().for_each(|slot| slot.log_seq = u64::MAX);
            }
            self.next_checkpoint();
        }
    }

    fn next_checkpoint(&mut self) {
        let Some(queue) = &mut self.checkpointing else { return };
        while let Some(key) = queue.pop_front() {
            let Some(slot) = self.replicas.get(&key).filter(|s| !s.quarantined) else { continue };
            let log_seq = self.log.as_ref().map_or(0, Log::durable_seq);
            let counter = slot.counter + 1;
            let (side, bytes) = self.encode_checkpoint(slot);
            let op = PoolOp::WriteCheckpoint { replica: key, slot: slot_of(side), bytes };
            return self.submit(Purpose::Checkpoint { key, side, counter, log_seq }, op);
        }
        self.checkpointing = None;
        if let Some(log) = &mut self.log {
            let kept = self.replicas.values().filter(|s| !s.quarantined).map(|s| s.log_seq).min();
            log.trim_to(kept.unwrap_or(log.durable_seq()).min(log.durable_seq()));
        }
        self.drive_log();
    }

    fn handle_checkpoint(
        &mut self,
        now: Instant,
        key: ReplicaKey,
        (side, counter, log_seq): (Side, u64, u64),
        done: bool,
        out: &mut VecDeque<PoolsOut>,
    ) {
        if let Some(slot) = self.replicas.get_mut(&key).filter(|_| done) {
            (slot.side, slot.counter, slot.log_seq) = (side, counter, log_seq);
        }
        self.next_checkpoint();
        if self.checkpointing.is_none() {
            for (key, token, record) in std::mem::take(&mut self.log_full) {
                self.append(now, key, token, record);
            }
            self.drive_log();
        }
        self.drive_stop(now, out);
    }

    fn stop(&mut self, now: Instant, out: &mut VecDeque<PoolsOut>) {
        if self.phase != Phase::Serving || self.stopping != Stopping::No {
            return;
        }
        self.stopping = Stopping::Marking;
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
}

/// A record whose checksum is right and that no writer made: nothing of such a log is believed (R24).
pub(crate) fn impossible(entry: &Recorded) -> String {
    let (ReplicaKey { volume, rid }, seq) = (entry.key, entry.seq);
    format!("log sequence {seq}: {rid} of volume {volume} can't have that size")
}

/// The byte ranges of the regions stamped above what is sealed, adjoining ones joined.
fn unsealed_ranges(durable: &Durable) -> Vec<std::ops::Range<u64>> {
    let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
    for (region, _) in durable.rgm.iter().enumerate().filter(|(_, g)| **g > durable.sealed) {
        let start = (region as u64) << durable.region_shift;
        let end = (start + (1 << durable.region_shift)).min(durable.size);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
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

/// Opens a pool on a thread of its own, waiting for its lock for as long as it takes (R13).
fn open_in_background(path: PathBuf, mailbox: Mailbox) {
    spawn_opening(path, mailbox, |path, told| {
        told(PoolDir::open_when_free(path, || told(Err(OpenError::Locked))));
    });
}

fn create_in_background(path: PathBuf, owner: PoolOwner, mailbox: Mailbox) {
    spawn_opening(path, mailbox, move |path, told| {
        let superblock = Superblock {
            pool: PoolId(random_uuid()),
            cluster: owner.cluster,
            host: owner.host,
            inc: PoolInc(0),
            intent: None,
            segment_bytes: SEGMENT_BYTES,
            log_blocks: LOG_BLOCKS,
            created: unix_seconds(),
            counter: 1,
        };
        let mut content = superblock.encode();
        content.truncate(SUPERBLOCK_CONTENT);
        let made = PoolDir::create(path, LOG_BLOCKS * LOG_BLOCK as u64, &content);
        match made {
            // A pool of this host that weftd does not know any more is taken up again.
            Err(OpenError::NotEmpty(name)) => match PoolDir::open(path) {
                Ok(dir) if read_superblock(dir.superblock()).is_ok_and(|s| s.host == owner.host) => {
                    told(Ok(dir))
                }
                _ => told(Err(OpenError::NotEmpty(name))),
            },
            made => told(made),
        }
    });
}

fn spawn_opening(
    path: PathBuf,
    mailbox: Mailbox,
    job: impl FnOnce(&Path, &dyn Fn(Result<PoolDir, OpenError>)) + Send + 'static,
) {
    let failed = mailbox.clone();
    let at = path.clone();
    let thread = std::thread::Builder::new().name("pool-open".to_owned()).spawn(move || {
        job(&path, &|result| mailbox.send(Mail::Pool(OpenedPool { path: path.clone(), result })));
    });
    if let Err(error) = thread {
        tracing::error!(%error, path = %at.display(), "no thread to open the pool");
        failed.send(Mail::Pool(OpenedPool {
            path: at,
            result: Err(OpenError::Unsupported("thread left to open it")),
        }));
    }
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
