//! A host around weftd's own pools: the slow driver below, a store that always answers, and a session that asks.
//!
//! Must always hold: everything that was asked and answered is in `facts` with the length of the trace at that moment.

use core::time::Duration;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use serde_json::Value;
use tokio::sync::oneshot;
use weft_control::types::{Decimal, ErrorBody, PoolState, ReplicaCreate, ReplicaInfo};
use weft_io::buffer::IoBuf;
use weft_io::files::Files;
use weft_io::pool_dir::{OpenError, PoolDir};
use weft_proto::ids::{
    ClusterId, Epoch, Generation, HostId, Instant, Nonce, Ordinal, PoolId, PoolInc, Rev, Revision, Rid,
    SessionId, VolumeId,
};
use weft_proto::log::{LOG_BLOCK, MIN_LOG_BLOCKS, ReplicaKey};
use weft_proto::message::{Answer, Ask, Attach, Extent, Hole, Refusal, Request, Response, Watermark};
use weft_proto::mutants::Broken;
use weft_proto::payload::{Payload, block_crcs};
use weft_proto::record::{Ack, Mode, OnLoss, Owner, Policy, Record, ReplicaEntry, ReplicaState, Snaps};
use weft_proto::replica::AttachmentId;
use weft_proto::superblock::{SEGMENT_BYTES, Superblock};
use weftd::mail::{Mail, Mailbox};
use weftd::pools::{LOGS_FILE, OpenedPool, PoolOwner, Pools, PoolsCall, PoolsOut, STARTS_FILE};
use weftd::records::record_key;
use weftd::state::StateDir;
use weftd::store::{Entry, SwapOutcome};

use crate::trace::{Recorder, Silent, SlowDriver};

/// The pool of all runs.
pub const POOL: PoolId = PoolId(0xb0);
const CLUSTER: ClusterId = ClusterId(0xc1);
const HOST: HostId = HostId(0xa0);
/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Regions of the workloads' volumes.
pub const REGION_SHIFT: u8 = 20;

/// What became known to somebody outside of the pool.
#[derive(Clone, Debug)]
pub enum Fact {
    /// The pool was made.
    Pool,
    /// The host keeps that the pool was served at this incarnation.
    Served(PoolInc),
    /// A replica is to be made.
    CreateAsked(ReplicaKey, u64),
    /// It was.
    Created(ReplicaKey),
    /// A replica is to go to the trash.
    TrashAsked(ReplicaKey),
    /// It went.
    Trashed(ReplicaKey),
    /// It is to come back.
    RestoreAsked(ReplicaKey),
    /// It did.
    Restored(ReplicaKey),
    /// The trash is to be emptied.
    EmptyAsked(ReplicaKey),
    /// It was.
    Emptied(ReplicaKey),
    /// A promise was asked for.
    PromiseAsked(ReplicaKey, Epoch, SessionId),
    /// It was given.
    Promised(ReplicaKey, Epoch),
    /// Blocks are to become this.
    WriteAsked(ReplicaKey, Written),
    /// They have.
    Written(ReplicaKey, u64),
    /// Everything answered is to be durable.
    FlushAsked(ReplicaKey, u64),
    /// It is.
    Flushed(ReplicaKey, u64),
    /// A generation is to be sealed.
    SealAsked(ReplicaKey, Generation),
    /// It is.
    Sealed(ReplicaKey, Generation),
    /// The size is to be raised.
    GrowAsked(ReplicaKey, u64),
    /// It is.
    Grown(ReplicaKey, u64),
    /// A guest has seen this in a block.
    Seen(ReplicaKey, u64, u64),
    /// The store holds this of the pool.
    Store(Option<Entry>),
    /// The host knows that the log is durable up to here.
    Log(u64),
    /// The process was killed, the machine runs on.
    Killed,
}

/// One write: what each of its blocks becomes.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its number.
    pub id: u64,
    /// First block.
    pub block: u64,
    /// A tag each; 0 is zeroes.
    pub tags: Vec<u64>,
    /// Under which generation.
    pub generation: Generation,
    /// Durable when answered.
    pub durable: bool,
}

/// A block's bytes with this tag.
#[must_use]
pub fn filled(tag: u64) -> Vec<u8> {
    tag.to_le_bytes().repeat(512)
}

/// What a host is started from beside its disk.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// The pool's key in the store.
    pub store: Option<Entry>,
    /// What the host keeps of the log.
    pub log: u64,
    /// At which incarnation it has kept that the pool was served.
    pub served: PoolInc,
    /// The kernel's boot id.
    pub boot: u128,
    /// Requests and sessions so far, of earlier processes too: no number is used twice.
    pub asked: u64,
    /// The rule that this process breaks, if any.
    pub broken: Broken,
}

/// How a replica is spoken to.
#[derive(Clone, Debug)]
struct Session {
    attachment: AttachmentId,
    session: SessionId,
    epoch: Epoch,
    /// The replica's size when it was attached: a record with a smaller one would have it cut (R18).
    size: u64,
}

/// See the module.
pub struct Host {
    pools: Pools,
    /// Takes mail of threads that open what is not there.
    _mail: Receiver<Mail>,
    driver: SlowDriver,
    recorder: Option<Recorder>,
    /// What became known, with the trace's length then.
    pub facts: Vec<(usize, Fact)>,
    now: Instant,
    store: Option<Entry>,
    revision: u64,
    log: u64,
    served: PoolInc,
    /// What the store says of a volume that is asked for before its replica is trashed.
    trash_record: Option<Record>,
    /// A read of it whose answer is on its way, if such answers are held.
    held_read: Option<Option<ReplicaKey>>,
    sessions: BTreeMap<ReplicaKey, Session>,
    next: u64,
    replies: BTreeMap<(AttachmentId, u32), Result<Answer<IoBuf>, Refusal>>,
    /// What is known when a reply comes.
    awaited: BTreeMap<(AttachmentId, u32), Fact>,
    cached: bool,
    broken: Broken,
}

/// Answers that come by channel.
pub type Pending = oneshot::Receiver<Result<Value, ErrorBody>>;

fn pool_path(root: &Path) -> PathBuf {
    root.join("pool")
}

fn content() -> Vec<u8> {
    let superblock = Superblock {
        pool: POOL,
        cluster: CLUSTER,
        host: HOST,
        inc: PoolInc(0),
        intent: None,
        segment_bytes: SEGMENT_BYTES,
        log_blocks: MIN_LOG_BLOCKS,
        created: 1_790_000_000,
        counter: 1,
    };
    let mut content = superblock.encode();
    content.truncate(1024);
    content
}

/// As weftd makes a pool: makes it, or takes up the one that is there.
fn create_dir(files: &Files, root: &Path) -> Result<PoolDir, OpenError> {
    let path = pool_path(root);
    match PoolDir::create_through(files, &path, MIN_LOG_BLOCKS * LOG_BLOCK as u64, &content()) {
        Err(OpenError::NotEmpty(_)) => PoolDir::open_through(files, &path),
        made => made,
    }
}

impl Host {
    /// Starts weftd's pools on the disk below `root`. With `make` the pool may not be there yet, and is then made.
    /// An error is what an operator would be told.
    pub fn start(
        root: &Path,
        state: &Path,
        around: &Around,
        mut driver: SlowDriver,
        recorder: Option<Recorder>,
        (make, seed): (bool, u64),
    ) -> Result<Host, Box<(String, SlowDriver)>> {
        driver.reset(seed, recorder.clone());
        if let Some(recorder) = &recorder {
            recorder.starting(!make);
        }
        let files = match &recorder {
            Some(recorder) => Files::recorded(Arc::new(recorder.clone())),
            None => Files::recorded(Arc::new(Silent)),
        };
        let opened =
            if make { create_dir(&files, root) } else { PoolDir::open_through(&files, &pool_path(root)) };
        let dir = match opened {
            Ok(dir) => dir,
            Err(error) => return Err(Box::new((format!("the pool does not open: {error}"), driver))),
        };
        let nowhere = state.join("nowhere");
        let write = |name: &str, value: Value| {
            std::fs::write(state.join(name), value.to_string()).expect("the state directory takes files");
        };
        write("pools.json", serde_json::json!([{ "pool": POOL, "path": nowhere }]));
        write(LOGS_FILE, serde_json::json!({ POOL.to_string(): Decimal(around.log) }));
        write(STARTS_FILE, serde_json::json!({ POOL.to_string(): around.served }));
        let (mailbox, mail) = Mailbox::new(Arc::new(|| {}));
        let state = Arc::new(StateDir::open(state).expect("a state directory"));
        let mut pools = Pools::new(state, mailbox).expect("its files are sound");
        let owner = PoolOwner { cluster: CLUSTER, host: HOST, boot_id: around.boot };
        pools.set_broken(around.broken);
        pools.configure(owner, watermark());
        let mut host = Host {
            pools,
            _mail: mail,
            driver,
            recorder,
            facts: Vec::new(),
            now: Instant(1_000_000),
            store: around.store.clone(),
            revision: around.store.as_ref().map_or(0, |e| e.revision.0),
            log: around.log,
            served: around.served,
            trash_record: None,
            held_read: None,
            sessions: BTreeMap::new(),
            next: around.asked,
            replies: BTreeMap::new(),
            awaited: BTreeMap::new(),
            cached: false,
            broken: around.broken,
        };
        host.pools.handle_opened(&mut host.driver, host.now, OpenedPool { path: nowhere, result: Ok(dir) });
        host.fact(Fact::Pool);
        Ok(host)
    }

    /// Runs until the pool serves; an error is its reason not to.
    pub fn serving(&mut self) -> Result<(), String> {
        self.settle();
        if let Some(recorder) = &self.recorder {
            recorder.starting(false);
        }
        let info = self.pools.info(POOL).ok_or("the pool is not known")?;
        match info.state {
            PoolState::Serving => Ok(()),
            state => Err(format!("the pool is {state:?}: {}", info.reason.unwrap_or_default())),
        }
    }

    /// What the pool lists.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaInfo> {
        self.pools.replicas()
    }

    /// The store's entry and the log's durable sequence as they are now.
    #[must_use]
    pub fn around(&self, boot: u128) -> Around {
        let Host { store, log, served, next, broken, .. } = self;
        Around { store: store.clone(), log: *log, served: *served, boot, asked: *next, broken: *broken }
    }

    /// Writes and their acknowledgements are of the cached mode from the next promise on.
    pub fn cached(&mut self) {
        self.cached = true;
    }

    fn fact(&mut self, fact: Fact) {
        let at = self.recorder.as_ref().map_or(0, Recorder::len);
        self.facts.push((at, fact));
    }

    /// One step; false when there is nothing to do.
    pub fn step(&mut self) -> bool {
        let mut progress = false;
        self.pools.drive(&mut self.driver, self.now);
        while let Some(out) = self.pools.poll() {
            progress = true;
            match out {
                PoolsOut::Reply(attachment, response) => self.on_reply(attachment, response),
                PoolsOut::Call(call) => self.on_call(call),
                PoolsOut::Keep(STARTS_FILE, value) => {
                    let kept = value.get(POOL.to_string()).cloned().unwrap_or_default();
                    self.served = serde_json::from_value(kept).expect("an incarnation");
                    self.fact(Fact::Served(self.served));
                }
                PoolsOut::Changed(_) | PoolsOut::Copied(..) | PoolsOut::Keep(..) => {}
            }
        }
        self.pools.drive(&mut self.driver, self.now);
        if let Some(durable) = self.pools.logs().first().map(|log| log.durable_seq)
            && durable > self.log
        {
            self.log = durable;
            self.fact(Fact::Log(durable));
        }
        if progress {
            return true;
        }
        let mut done = Vec::new();
        weft_io::driver::Driver::wait(&mut self.driver, Some(Duration::ZERO), &mut done)
            .expect("never waits");
        progress = !done.is_empty();
        for completion in done {
            self.pools.handle_completion(completion);
        }
        progress
    }

    /// Some steps.
    pub fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            if !self.step() {
                return;
            }
        }
    }

    /// Steps until nothing is to be done.
    pub fn settle(&mut self) {
        while self.step() {}
    }

    fn on_reply(&mut self, attachment: AttachmentId, response: Response<IoBuf>) {
        let key = (attachment, response.tag);
        if response.outcome.is_ok()
            && let Some(fact) = self.awaited.remove(&key)
        {
            self.fact(fact);
        }
        self.replies.insert(key, response.outcome);
    }

    fn on_call(&mut self, call: PoolsCall) {
        match call {
            PoolsCall::ReadPool(id) => self.pools.handle_pool_read(self.now, id, Ok(self.store.clone())),
            PoolsCall::SwapPool { pool, expected, value } => {
                let same = expected.as_ref().map(|e| e.revision) == self.store.as_ref().map(|e| e.revision);
                let outcome = if same {
                    self.revision += 1;
                    let revision = Revision(self.revision);
                    self.store = value.map(|value| Entry { key: "pool".to_owned(), value, revision });
                    self.fact(Fact::Store(self.store.clone()));
                    SwapOutcome::Done { revision }
                } else {
                    SwapOutcome::Failed { current: self.store.clone() }
                };
                self.pools.handle_pool_swap(self.now, pool, outcome);
            }
            PoolsCall::Verify(key, token) => {
                // Whoever asks here is whom the store names.
                let entry = self.sessions.get(&key).map(|asker| {
                    let value = self.record(key, asker.epoch, asker.session).to_bytes();
                    Entry { key: record_key(key.volume), value, revision: Revision(self.revision) }
                });
                self.pools.handle_verified(self.now, key, token, &Ok(entry));
            }
            PoolsCall::Trash(key) => {
                let entry = self.record_entry(key.volume);
                match &mut self.held_read {
                    Some(held) => *held = Some(key),
                    None => self.pools.handle_trash_read(key, Ok(entry)),
                }
            }
            PoolsCall::Emptying { job, volume } => {
                let entry = self.record_entry(volume);
                self.pools.handle_emptying_read(job, volume, &Ok(entry));
            }
        }
    }

    /// A volume's record as the store has it, if the workload made one.
    fn record_entry(&self, volume: VolumeId) -> Option<Entry> {
        let value = self.trash_record.as_ref()?.to_bytes();
        let key = record_key(volume);
        Some(Entry { key, value, revision: Revision(self.revision) })
    }

    fn answer(&mut self, mut pending: Pending) -> Result<Value, String> {
        self.settle();
        match pending.try_recv() {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(error.message),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Asks for a replica.
    pub fn ask_create(&mut self, key: ReplicaKey, size: u64) -> Pending {
        self.fact(Fact::CreateAsked(key, size));
        let (answer, pending) = oneshot::channel();
        let ask = ReplicaCreate {
            volume: key.volume,
            rid: key.rid,
            pool: POOL,
            size: Decimal(size),
            region_shift: REGION_SHIFT,
            thick: None,
            from: None,
        };
        self.pools.create_replica(ask, answer);
        pending
    }

    /// Makes a replica.
    pub fn create(&mut self, key: ReplicaKey, size: u64) -> Result<(), String> {
        let pending = self.ask_create(key, size);
        self.answer(pending)?;
        self.fact(Fact::Created(key));
        Ok(())
    }

    /// Asks for a replica to be put into the trash.
    pub fn ask_trash(&mut self, key: ReplicaKey) -> Pending {
        let epoch = self.sessions.get(&key).map_or(Epoch(1), |s| s.epoch);
        let mut record = self.record(key, Epoch(epoch.0 + 1), SessionId(0));
        record.owner = None;
        record.deleted = Some("1790000000".to_owned());
        self.trash_record = Some(record);
        self.fact(Fact::TrashAsked(key));
        let (answer, pending) = oneshot::channel();
        self.pools.trash_replica(POOL, key, answer);
        pending
    }

    /// Puts a replica into the trash.
    pub fn trash(&mut self, key: ReplicaKey) -> Result<(), String> {
        let pending = self.ask_trash(key);
        self.trashed(key, pending)
    }

    /// Has a replica's tombstone read, and keeps the answer on its way while `meanwhile` happens.
    pub fn trash_late(
        &mut self,
        key: ReplicaKey,
        meanwhile: impl FnOnce(&mut Host) -> Result<(), String>,
    ) -> Result<(), String> {
        self.held_read = Some(None);
        let pending = self.ask_trash(key);
        self.settle();
        let read = self.record_entry(key.volume);
        let key = self.held_read.take().flatten().ok_or("the store was not asked")?;
        meanwhile(self)?;
        self.pools.handle_trash_read(key, Ok(read));
        self.trashed(key, pending)
    }

    /// Asks for a replica to be put into the trash, while the store has no record of its volume.
    pub fn trash_of_nothing(&mut self, key: ReplicaKey) -> Result<(), String> {
        let pending = self.ask_trash(key);
        self.trash_record = None;
        self.trashed(key, pending)
    }

    fn trashed(&mut self, key: ReplicaKey, pending: Pending) -> Result<(), String> {
        let value = self.answer(pending)?;
        if value["trashed"] != true {
            return Err(value.to_string());
        }
        self.fact(Fact::Trashed(key));
        Ok(())
    }

    /// Takes a replica out of the trash.
    pub fn restore(&mut self, key: ReplicaKey) -> Result<(), String> {
        self.fact(Fact::RestoreAsked(key));
        let (answer, pending) = oneshot::channel();
        self.pools.restore_trash(key.volume, answer);
        self.answer(pending)?;
        self.fact(Fact::Restored(key));
        Ok(())
    }

    /// Removes a replica from the trash for good.
    pub fn empty_trash(&mut self, key: ReplicaKey) -> Result<(), String> {
        self.fact(Fact::EmptyAsked(key));
        let (answer, pending) = oneshot::channel();
        self.pools.empty_trash(Some(key.volume), answer);
        self.answer(pending)?;
        self.fact(Fact::Emptied(key));
        Ok(())
    }

    /// What lies in the trash.
    pub fn trash_list(&mut self) -> Result<Vec<(VolumeId, Rid)>, String> {
        let (answer, pending) = oneshot::channel();
        self.pools.list_trash(answer);
        let value = self.answer(pending)?;
        let items = value["items"].as_array().cloned().unwrap_or_default();
        let item = |item: &Value| {
            let volume = item["volume"].as_str()?.parse().ok()?;
            Some((volume, Rid(u32::try_from(item["rid"].as_u64()?).ok()?)))
        };
        Ok(items.iter().filter_map(item).collect())
    }

    fn record(&self, key: ReplicaKey, epoch: Epoch, session: SessionId) -> Record {
        let replica = ReplicaEntry {
            rid: key.rid,
            node: HOST,
            pool: POOL,
            pool_inc: PoolInc(1),
            state: ReplicaState::InSync,
            base: Generation::NEVER,
            reason: String::new(),
            since: "0".to_owned(),
            unknown: BTreeMap::new(),
        };
        Record {
            fmt: 1,
            min_reader: 1,
            vol: key.volume,
            size: self.sessions.get(&key).map_or(1 << 26, |session| session.size),
            region_shift: REGION_SHIFT,
            mode: Mode::Excl,
            policy: Policy {
                copies: 1,
                min_isr: 1,
                ack: if self.cached { Ack::Cached } else { Ack::Durable },
                on_loss: OnLoss::Pause,
                spread: "host".to_owned(),
                unknown: BTreeMap::new(),
            },
            epoch,
            rev: Rev(epoch.0),
            next_rid: key.rid.0 + 1,
            deleted: None,
            // Every third record is long: its batch has several blocks.
            created_by: "x".repeat(if epoch.0.is_multiple_of(3) { 3900 } else { 10 }),
            nonce: Nonce(1),
            owner: Some(Owner { node: HOST, session, caretaker: false, first: None }),
            next: None,
            clean: false,
            closed_gen: Generation::NEVER,
            replicas: vec![replica],
            snaps: Snaps::default(),
            parent: None,
            lineage: Vec::new(),
            wait: false,
            reverting: None,
            head: None,
            layer: None,
            unknown: BTreeMap::new(),
        }
    }

    fn ask(
        &mut self,
        key: ReplicaKey,
        epoch: Epoch,
        ask: Ask<IoBuf>,
        fact: Option<Fact>,
    ) -> (AttachmentId, u32) {
        let attachment = self.sessions[&key].attachment;
        self.next += 1;
        let tag = u32::try_from(self.next).expect("few requests");
        if let Some(fact) = fact {
            self.awaited.insert((attachment, tag), fact);
        }
        let request = Request { tag, epoch, ask };
        if let Err(refusal) = self.pools.handle_request(self.now, POOL, key, attachment, request) {
            self.replies.insert((attachment, tag), Err(refusal));
        }
        (attachment, tag)
    }

    fn reply(&mut self, asked: (AttachmentId, u32)) -> Result<Answer<IoBuf>, String> {
        self.settle();
        match self.replies.remove(&asked) {
            Some(outcome) => outcome.map_err(|refusal| format!("refused: {refusal:?}")),
            None => Err("not answered".to_owned()),
        }
    }

    /// Attaches a fresh session to a replica; tells what the replica says of itself.
    pub fn attach(&mut self, key: ReplicaKey) -> Result<weft_proto::message::ReplicaView, String> {
        self.next += 1;
        let attachment = AttachmentId(self.next);
        let session = SessionId(0x5e55_0000 + u128::from(self.next) + (self.now.0 as u128) * 0x1_0000_0000);
        self.sessions.insert(key, Session { attachment, session, epoch: Epoch(0), size: 0 });
        let attach = Attach {
            volume: key.volume,
            rid: key.rid,
            pool: POOL,
            host: HOST,
            session,
            ordinal: Ordinal(1),
            watermark: watermark(),
        };
        let asked = self.ask(key, Epoch(0), Ask::Attach(attach), None);
        match self.reply(asked)? {
            Answer::Attached(view) => {
                self.sessions.get_mut(&key).expect("just attached").size = view.size;
                Ok(view)
            }
            other => Err(format!("{other:?}")),
        }
    }

    /// Asks for a promise.
    pub fn ask_promise(&mut self, key: ReplicaKey, epoch: Epoch) -> (AttachmentId, u32) {
        let session = self.sessions[&key].session;
        let record = self.record(key, epoch, session).to_bytes();
        self.sessions.get_mut(&key).expect("attached").epoch = epoch;
        self.fact(Fact::PromiseAsked(key, epoch, session));
        let ask = Ask::Promise { record, watermark: watermark() };
        self.ask(key, epoch, ask, Some(Fact::Promised(key, epoch)))
    }

    /// Attaches and has it promised.
    pub fn open(&mut self, key: ReplicaKey, epoch: Epoch) -> Result<(), String> {
        self.attach(key)?;
        let asked = self.ask_promise(key, epoch);
        self.reply(asked).map(drop)
    }

    fn epoch(&self, key: ReplicaKey) -> Epoch {
        self.sessions[&key].epoch
    }

    /// Asks for a write of tagged blocks; its number.
    pub fn write(&mut self, key: ReplicaKey, interval: u32, block: u64, blocks: u64) -> u64 {
        self.next += 1;
        let id = self.next;
        let tags: Vec<u64> = (0..blocks).map(|i| (id << 16) | (i + 1)).collect();
        let data: Vec<u8> = tags.iter().flat_map(|tag| filled(*tag)).collect();
        let generation = Generation::new(self.epoch(key), interval);
        let written = Written { id, block, tags, generation, durable: !self.cached };
        self.fact(Fact::WriteAsked(key, written));
        let ask = Ask::Write {
            generation,
            offset: block * BLOCK,
            crcs: block_crcs(&data),
            data: IoBuf::copy_of(&data),
            copy: false,
        };
        self.ask(key, self.epoch(key), ask, Some(Fact::Written(key, id)));
        id
    }

    /// Asks for zeroes.
    pub fn zero(&mut self, key: ReplicaKey, interval: u32, block: u64, blocks: u64, kind: Hole) -> u64 {
        self.next += 1;
        let id = self.next;
        let generation = Generation::new(self.epoch(key), interval);
        let tags = vec![0; usize::try_from(blocks).expect("few")];
        self.fact(Fact::WriteAsked(key, Written { id, block, tags, generation, durable: true }));
        let ask = Ask::Zero {
            generation,
            offset: block * BLOCK,
            len: blocks * BLOCK,
            kind,
            keep_space: id.is_multiple_of(2),
            copy: false,
        };
        self.ask(key, self.epoch(key), ask, Some(Fact::Written(key, id)));
        id
    }

    /// Asks for a flush.
    pub fn flush(&mut self, key: ReplicaKey) {
        self.next += 1;
        let id = self.next;
        self.fact(Fact::FlushAsked(key, id));
        self.ask(key, self.epoch(key), Ask::Flush, Some(Fact::Flushed(key, id)));
    }

    /// Asks for a seal.
    pub fn seal(&mut self, key: ReplicaKey, interval: u32) {
        let generation = Generation::new(self.epoch(key), interval);
        self.fact(Fact::SealAsked(key, generation));
        self.ask(key, self.epoch(key), Ask::Seal { generation }, Some(Fact::Sealed(key, generation)));
    }

    /// Asks for a larger size than the record has.
    pub fn grow(&mut self, key: ReplicaKey, interval: u32, from: u64, to: u64) {
        self.fact(Fact::GrowAsked(key, to));
        let generation = Generation::new(self.epoch(key), interval);
        self.ask(key, self.epoch(key), Ask::Grow { generation, from, to }, Some(Fact::Grown(key, to)));
    }

    /// Every region's stamp.
    pub fn stamps(&mut self, key: ReplicaKey) -> Result<BTreeMap<u32, Generation>, String> {
        let ask = Ask::Stamps { above: Generation::NEVER, from_region: 0 };
        let asked = self.ask(key, self.epoch(key), ask, None);
        match self.reply(asked)? {
            Answer::Stamps { stamps, next: None } => Ok(stamps.into_iter().collect()),
            other => Err(format!("{other:?}")),
        }
    }

    /// Each block as its eight sectors' tags (see [`sectors`]), and whether it is a hole.
    pub fn read(&mut self, key: ReplicaKey, block: u64, blocks: u64) -> Result<Vec<Found>, String> {
        let ask = Ask::Read { offset: block * BLOCK, len: blocks * BLOCK };
        let asked = self.ask(key, self.epoch(key), ask, None);
        let extents = match self.reply(asked)? {
            Answer::Data(extents) => extents,
            other => return Err(format!("{other:?}")),
        };
        let mut found = Vec::new();
        for extent in extents {
            match extent {
                Extent::Hole { len, kind } => {
                    found.extend((0..len / BLOCK).map(|_| Found { sectors: [0; 8], hole: Some(kind) }));
                }
                Extent::Data { crcs, data } => {
                    if crcs != block_crcs(data.bytes()) {
                        return Err("a read's checksums are not its data's".to_owned());
                    }
                    let blocks = data.bytes().chunks_exact(4096);
                    found.extend(blocks.map(|block| Found { sectors: sectors(block), hole: None }));
                }
            }
        }
        Ok(found)
    }

    /// A guest looks at blocks and remembers what it saw.
    pub fn look(&mut self, key: ReplicaKey, block: u64, blocks: u64) -> Result<(), String> {
        for (block, found) in (block..).zip(self.read(key, block, blocks)?) {
            if found.sectors.iter().all(|tag| *tag == found.sectors[0]) {
                self.fact(Fact::Seen(key, block, found.sectors[0]));
            }
        }
        Ok(())
    }

    /// Stops as weftd does when it is told to.
    pub fn stop(&mut self) {
        self.pools.stop(self.now);
        self.settle();
    }

    /// The process dies; what it asked of the kernel may have been done. The driver is for the next one.
    pub fn kill(mut self) -> (SlowDriver, Vec<(usize, Fact)>, Around) {
        self.driver.kill();
        self.fact(Fact::Killed);
        let around = self.around(1);
        (self.driver, self.facts, around)
    }

    /// The process ends with nothing under way, or its disk does not matter any more.
    pub fn end(mut self) -> (SlowDriver, Vec<(usize, Fact)>) {
        self.driver.reset(0, None);
        (self.driver, self.facts)
    }
}

/// A block as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The tag of each sector; [`MIXED`] for one that nobody wrote.
    pub sectors: [u64; 8],
    /// Not data.
    pub hole: Option<Hole>,
}

/// No tag.
pub const MIXED: u64 = u64::MAX;

fn sectors(block: &[u8]) -> [u64; 8] {
    let mut tags = [0; 8];
    for (tag, sector) in tags.iter_mut().zip(block.chunks_exact(512)) {
        let first = &sector[..8];
        let even = sector.chunks_exact(8).all(|word| word == first);
        *tag = if even { u64::from_le_bytes(first.try_into().expect("eight bytes")) } else { MIXED };
    }
    tags
}

fn watermark() -> Watermark {
    Watermark { cluster: CLUSTER, incarnation: 1, revision: 1 }
}
