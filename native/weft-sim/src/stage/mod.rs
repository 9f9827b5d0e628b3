//! A small world whose plot is written by hand: the real machines, with links, disks, store and clock that do what
//! the script says. Scenario tests (docs/scenarios.md) are played here.
//!
//! ```text
//! Scene::copies(2).stage() ─▶ open / steal ─▶ write, read, hold, cut, kill, stall, … ─▶ run_for(ms) ─▶ assert
//! ```
//!
//! Must always hold:
//! * nothing is random: the same script gives the same run, and what the script does not touch works at once;
//! * every guest request is judged: an acknowledged write is at every member that the record calls in sync (I6),
//!   and at the end one disk could have answered as the guests saw it (unless caches were lost, or the store was
//!   put back).

mod guests;
mod history;
mod network;
mod pair;
mod replicas;
mod sessions;
mod snapshots;
mod store;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::{self, Display, Formatter};

use weft_proto::durable::Durable;
use weft_proto::guest::{GuestError, GuestOp, GuestReply, RequestId};
use weft_proto::ids::{
    ClusterId, Epoch, Generation, HostId, Instant, Nonce, Ordinal, PoolId, PoolInc, Rev, Revision, Rid,
    SessionId, SnapId, VolumeId,
};
use weft_proto::images::ImageForm;
use weft_proto::log::LogRecord;
use weft_proto::message::{Answer, Ask, Extent, Hole, Refusal, Request, Response, Watermark};
use weft_proto::mutants::Mutation;
use weft_proto::payload::{BLOCK, HeapPayload, Payload};
use weft_proto::record::{
    Ack, Head, HeadData, Mode, OnLoss, Owner, Policy, REPAIR_EPOCH_JUMP, Record, ReplicaEntry, ReplicaState,
    Snaps,
};
use weft_proto::replica::{
    Action, AttachmentId, DiskDone, DiskError, DiskOp, ImageOp, Replica, ReplicaConfig, Token, Verified,
};
use weft_proto::session::{
    EndReason, Event, OpenMode, ScrubView, Session, SessionConfig, SessionView, SnapChange, StoreCall,
    StoreReply, Timing,
};

use crate::disk::{Disk, Stored, bytes_of, value_of};
use crate::oracle::{ABSENT, Oracle, Value, ZERO};
use crate::snap_keys::Keys;

use self::history::Host;
pub use self::history::Play;
pub use self::pair::Pair;
pub use self::snapshots::Image;

/// Host of `R0`.
pub const A: HostId = HostId(0xA);
/// Host of `R1`.
pub const B: HostId = HostId(0xB);
/// Host of `R2`.
pub const C: HostId = HostId(0xC);
/// A host without a copy at the start.
pub const D: HostId = HostId(0xD);
/// Another one.
pub const E: HostId = HostId(0xE);
/// The first copy.
pub const R0: Rid = Rid(0);
/// The second copy.
pub const R1: Rid = Rid(1);
/// The third copy.
pub const R2: Rid = Rid(2);

const HOSTS: [HostId; 5] = [A, B, C, D, E];
const VOLUME: VolumeId = VolumeId(0xF00D);
const CLUSTER: ClusterId = ClusterId(0xC1);
const MS: u64 = 1_000_000;
/// One way between hosts.
const NET_NS: u64 = 100_000;
/// A disk request or a log append.
const DISK_NS: u64 = 150_000;
/// A call to the store, both ways.
const STORE_NS: u64 = 2 * MS;
/// Until a call that the store does not answer is given up.
const STORE_PATIENCE_NS: u64 = 300 * MS;
/// Between two looks at broken connections.
const RELINK_NS: u64 = 50 * MS;
/// [`Stage::run_until`] gives up after so much simulated time.
const PATIENCE_MS: u64 = 60_000;

/// What the stage looks like before the first act.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    copies: u32,
    min_isr: u8,
    cached: bool,
    on_loss: OnLoss,
    blocks: u64,
    seed: u128,
    takes: ImageForm,
}

impl Scene {
    /// A volume with so many copies, `R0` on host `A` and so on, all in sync and empty.
    #[must_use]
    pub fn copies(copies: u32) -> Scene {
        let takes = ImageForm::Chained;
        Scene { copies, min_isr: 1, cached: false, on_loss: OnLoss::Pause, blocks: 48, seed: 0, takes }
    }

    /// Fewest in-sync copies under which writes complete.
    #[must_use]
    pub fn min_isr(self, min_isr: u8) -> Scene {
        Scene { min_isr, ..self }
    }

    /// Pools take snapshots of their replicas by themselves.
    #[must_use]
    pub fn whole_images(self) -> Scene {
        Scene { takes: ImageForm::Whole, ..self }
    }

    /// Writes are acknowledged from caches.
    #[must_use]
    pub fn cached(self) -> Scene {
        Scene { cached: true, ..self }
    }

    /// Guests are told when the volume waits.
    #[must_use]
    pub fn fail_on_loss(self) -> Scene {
        Scene { on_loss: OnLoss::Error, ..self }
    }

    /// Size of the volume in 4 KiB blocks; 16 of them are a region.
    #[must_use]
    pub fn blocks(self, blocks: u64) -> Scene {
        Scene { blocks, ..self }
    }

    /// What the sessions' own randomness (nonces, which of several equal members is a source) is made from.
    #[must_use]
    pub fn seed(self, seed: u128) -> Scene {
        Scene { seed, ..self }
    }

    /// The stage, with nobody on it.
    #[must_use]
    pub fn stage(self, play: &Play) -> Stage {
        Stage::new(self, play)
    }
}

impl Display for Scene {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Scene { copies, min_isr, cached, blocks, .. } = self;
        let cache = if *cached { "cached" } else { "durable" };
        write!(f, "a stage: {copies} copies of {blocks} blocks, min_isr {min_isr}, {cached}", cached = cache)
    }
}

/// A session on the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who(usize);

impl Display for Who {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "session {}", self.0)
    }
}

/// A guest's write and the value that it wrote (the first of several blocks'; the next has the next value).
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// The request.
    pub id: RequestId,
    /// The value.
    pub value: Value,
}

/// What becomes of a swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Answered as it is.
    Answered,
    /// Applied if it can be; the answer is lost.
    AppliedUnknown,
    /// Not applied, ever; the answer is lost.
    LostUnknown,
    /// Not applied before [`Stage::apply_late`]; the answer is lost.
    LateUnknown,
    /// Surely not applied, and told so.
    Refused,
}

/// A backup of the store.
#[derive(Clone, Debug)]
pub struct Backup {
    record: Record,
    revision: u64,
    keys: Keys,
}

impl Backup {
    /// The revision that the record had.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision(self.revision)
    }
}

/// Picks requests.
pub type Filter = fn(&Ask<HeapPayload>) -> bool;

/// Picks answers.
pub type AnswerFilter = fn(&Answer<HeapPayload>) -> bool;

/// Every request.
#[must_use]
pub fn any(_: &Ask<HeapPayload>) -> bool {
    true
}

/// Writes of guests, no copies.
#[must_use]
pub fn guest_writes(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Write { copy: false, .. })
}

/// Writes of guests and copies.
#[must_use]
pub fn all_writes(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Write { .. } | Ask::Zero { .. })
}

/// Comparisons by hash.
#[must_use]
pub fn hashes(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Hash { .. })
}

/// Flushes of what is in a cache.
#[must_use]
pub fn flushes(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Flush)
}

/// Promises asked for.
#[must_use]
pub fn promises(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Promise { .. })
}

/// Reads of data.
#[must_use]
pub fn reads(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Read { .. })
}

/// Seals.
#[must_use]
pub fn seals(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Seal { .. })
}

/// Growths of a volume.
#[must_use]
pub fn grows(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Grow { .. })
}

/// Copies of a resync or a reconcile.
#[must_use]
pub fn copies(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Write { copy: true, .. } | Ask::Zero { copy: true, .. })
}

/// Room for an image of a snapshot.
#[must_use]
pub fn makes(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::SnapMake { .. })
}

/// Images that are to be taken.
#[must_use]
pub fn prepares(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::SnapPrepare { .. })
}

/// Images whose snapshot stands in the store.
#[must_use]
pub fn readies(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::SnapReady { .. })
}

enum Cue {
    Request {
        who: Who,
        rid: Rid,
        inc: u64,
        ordinal: Ordinal,
        request: Request<HeapPayload>,
    },
    Answer {
        who: Who,
        rid: Rid,
        ordinal: Ordinal,
        link: u64,
        response: Response<HeapPayload>,
    },
    Io {
        rid: Rid,
        inc: u64,
        io: u64,
    },
    Verified {
        rid: Rid,
        inc: u64,
        token: Token,
    },
    Store {
        who: Who,
        call: StoreCall,
    },
    StoreAnswer {
        who: Who,
        reply: StoreReply,
        watermark: Option<Watermark>,
    },
    Tick {
        who: Who,
    },
    /// `again`: one of a chain that lasts as long as its session.
    Relink {
        who: Who,
        again: bool,
    },
}

enum Io {
    Image { token: Token, op: ImageOp<HeapPayload> },
    Disk { token: Token, op: DiskOp<HeapPayload> },
    Log { token: Token, record: LogRecord },
}

struct Rep {
    host: HostId,
    stored: Stored,
    machine: Option<Replica<HeapPayload>>,
    inc: u64,
    silent: bool,
    lost: bool,
    attachments: BTreeMap<(Who, Ordinal), AttachmentId>,
    pending: BTreeMap<u64, Io>,
    data_stalled: bool,
    log_stalled: bool,
    /// What each request of its disk takes longer than others'.
    slower: u64,
    failing: Option<(fn(&DiskOp<HeapPayload>) -> bool, DiskError)>,
    full: bool,
    rotten: BTreeSet<u64>,
    /// What a killed daemon had sent to its disk and what lands all the same, under a broken R13.
    ghosts: Vec<DiskOp<HeapPayload>>,
    ran: Vec<DiskOp<HeapPayload>>,
}

#[derive(Default)]
struct Link {
    up: bool,
    generation: u64,
    inc: u64,
    lost_something: bool,
    hold: Option<Filter>,
    held: VecDeque<(u64, Ordinal, Request<HeapPayload>)>,
    hold_answers: bool,
    delay: Option<AnswerFilter>,
    delayed: Vec<(Ordinal, u64, Response<HeapPayload>)>,
    corrupt: bool,
    refuse: Option<(Filter, Refusal)>,
}

struct Act {
    host: HostId,
    machine: Option<Session<HeapPayload>>,
    links: BTreeMap<Rid, Link>,
    tick_at: u64,
    events: Vec<Event>,
    view: SessionView,
}

enum Asked {
    Read { first: u64, called: u64 },
    Write { first: u64, values: Vec<Value> },
    Other,
}

/// The stage.
pub struct Stage {
    play: Play,
    now: u64,
    seq: u64,
    queue: BTreeMap<(u64, u64), Cue>,
    scene: Scene,
    reps: BTreeMap<Rid, Rep>,
    acts: Vec<Act>,
    cuts: BTreeSet<(HostId, HostId)>,
    /// What a host's network card adds to each message, one way.
    cards: BTreeMap<HostId, u64>,
    frozen: BTreeMap<HostId, Vec<Cue>>,
    watermarks: BTreeMap<HostId, Watermark>,
    record: Record,
    revision: u64,
    incarnation: u64,
    store_away: BTreeSet<HostId>,
    store_refuses: BTreeSet<HostId>,
    fates: VecDeque<Fate>,
    /// The keys of snapshots, as weftd writes them.
    keys: Keys,
    /// What is put into the keys of those that were asked for.
    notes: BTreeMap<SnapId, Vec<u8>>,
    /// For each attempt, what each block may have held when its PREPARE was sent.
    barriers: BTreeMap<(SnapId, u64), Vec<Vec<Value>>>,
    /// What somebody was told of, with what was in it.
    reported: BTreeMap<SnapId, Vec<Value>>,
    /// What those held whose data was destroyed since: what differs from them is told.
    destroyed: BTreeMap<SnapId, Vec<Value>>,
    late: Vec<(Revision, Nonce, Record, Option<SnapChange>)>,
    /// Swaps that wait for those of another volume.
    grouped: VecDeque<(Who, StoreCall)>,
    stale_read: Option<Backup>,
    swaps: Vec<Record>,
    calls: u64,
    oracle: Oracle,
    judged: bool,
    asked: BTreeMap<RequestId, Asked>,
    replies: BTreeMap<RequestId, (u64, GuestReply<HeapPayload>)>,
    next_value: Value,
    next_id: u64,
    wall_ms: BTreeMap<HostId, u64>,
    /// How many thousandths each clock is too fast.
    rates: BTreeMap<HostId, u64>,
    lying: bool,
}

impl Stage {
    fn new(scene: Scene, play: &Play) -> Stage {
        play.tell_stage(scene);
        let entry = |i: u32| ReplicaEntry {
            rid: Rid(i),
            node: HOSTS[i as usize],
            pool: pool_of(HOSTS[i as usize]),
            pool_inc: PoolInc(1),
            state: ReplicaState::InSync,
            base: Generation::NEVER,
            reason: "created".into(),
            since: "0".into(),
            unknown: BTreeMap::new(),
        };
        let record = Record {
            fmt: 1,
            min_reader: 1,
            vol: VOLUME,
            size: scene.blocks * BLOCK,
            region_shift: 16,
            mode: Mode::Excl,
            policy: Policy {
                copies: scene.copies as u8,
                min_isr: scene.min_isr,
                ack: if scene.cached { Ack::Cached } else { Ack::Durable },
                on_loss: scene.on_loss,
                spread: "host".into(),
                unknown: BTreeMap::new(),
            },
            epoch: Epoch(1),
            rev: Rev(1),
            next_rid: scene.copies,
            deleted: None,
            created_by: "stage".into(),
            nonce: Nonce(1),
            owner: None,
            next: None,
            clean: false,
            closed_gen: Generation::NEVER,
            replicas: (0..scene.copies).map(entry).collect(),
            snaps: Snaps::default(),
            parent: None,
            lineage: Vec::new(),
            wait: false,
            reverting: None,
            head: None,
            layer: None,
            unknown: BTreeMap::new(),
        };
        let mut stage = Stage {
            play: play.clone(),
            now: 1_000_000 * MS,
            seq: 0,
            queue: BTreeMap::new(),
            scene,
            reps: BTreeMap::new(),
            acts: Vec::new(),
            cuts: BTreeSet::new(),
            cards: BTreeMap::new(),
            frozen: BTreeMap::new(),
            watermarks: HOSTS.iter().map(|h| (*h, mark(1, 1))).collect(),
            record,
            revision: 1,
            incarnation: 1,
            store_away: BTreeSet::new(),
            store_refuses: BTreeSet::new(),
            fates: VecDeque::new(),
            keys: BTreeMap::new(),
            notes: BTreeMap::new(),
            barriers: BTreeMap::new(),
            reported: BTreeMap::new(),
            destroyed: BTreeMap::new(),
            late: Vec::new(),
            grouped: VecDeque::new(),
            stale_read: None,
            swaps: Vec::new(),
            calls: 0,
            oracle: Oracle::default(),
            judged: true,
            asked: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_value: 64,
            next_id: 0,
            wall_ms: BTreeMap::new(),
            rates: BTreeMap::new(),
            lying: false,
        };
        for i in 0..scene.copies {
            stage.make(Rid(i), HOSTS[i as usize]);
        }
        stage
    }

    // ---- time

    /// Plays for so many milliseconds.
    pub fn run_for(&mut self, ms: u64) {
        let end = self.now + ms * MS;
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Plays until this is so; fails, telling `what` was awaited and how things stand, after a minute of plot.
    pub fn run_until(&mut self, what: &str, done: impl Fn(&Stage) -> bool) {
        let end = self.now + PATIENCE_MS * MS;
        while !done(self) {
            let next = self.queue.first_key_value().map(|((at, _), _)| *at);
            assert!(next.is_some_and(|at| at <= end), "awaited in vain: {what}\n{}", self.describe());
            self.step();
        }
    }

    /// Milliseconds of plot so far.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now / MS - 1_000_000
    }

    /// What a host's clock shows.
    fn clock(&self, host: HostId) -> Instant {
        let (zero, rate) = (1_000_000 * MS, self.rates.get(&host).copied().unwrap_or(0));
        Instant(zero + (self.now - zero) / 1000 * (1000 + rate) + (self.now - zero) % 1000)
    }

    fn at(&mut self, delay: u64, cue: Cue) {
        self.seq += 1;
        self.queue.insert((self.now + delay, self.seq), cue);
    }

    fn step(&mut self) {
        let Some(((time, _), cue)) = self.queue.pop_first() else { return };
        self.now = self.now.max(time);
        let host = match &cue {
            Cue::Request { rid, .. } | Cue::Io { rid, .. } | Cue::Verified { rid, .. } => self.reps[rid].host,
            Cue::Answer { who, .. }
            | Cue::StoreAnswer { who, .. }
            | Cue::Tick { who }
            | Cue::Relink { who, .. }
            | Cue::Store { who, .. } => self.acts[who.0].host,
        };
        if let Some(backlog) = self.frozen.get_mut(&host)
            && !matches!(cue, Cue::Store { .. })
        {
            backlog.push(cue);
            return;
        }
        self.play(cue);
    }

    fn play(&mut self, cue: Cue) {
        match cue {
            Cue::Request { who, rid, inc, ordinal, request } => self.deliver(who, rid, inc, ordinal, request),
            Cue::Answer { who, rid, ordinal, link, response } => {
                let now = self.clock(self.acts[who.0].host);
                let act = &mut self.acts[who.0];
                let current = act.links.get(&rid).is_some_and(|l| l.up && l.generation == link);
                if current && let Some(m) = &mut act.machine {
                    m.handle_response(now, rid, ordinal, response);
                    self.drain(who);
                }
            }
            Cue::Io { rid, inc, io } => self.io_done(rid, inc, io),
            Cue::Verified { rid, inc, token } => {
                let (host, record) = (self.reps[&rid].host, self.record.clone());
                let now = self.clock(host);
                let seen = mark(self.incarnation, self.revision);
                let shown = if self.store_away.contains(&host) || self.store_refuses.contains(&host) {
                    Verified::Away
                } else if seen < self.watermarks[&host] {
                    Verified::RolledBack
                } else {
                    self.see(host, seen);
                    Verified::Record(&record)
                };
                let rep = self.reps.get_mut(&rid).expect("made");
                if rep.inc == inc
                    && let Some(m) = &mut rep.machine
                {
                    m.handle_verified(now, token, shown);
                    self.drain_replica(rid);
                }
            }
            Cue::Store { who, call } => self.store_call(who, call),
            Cue::StoreAnswer { who, reply, watermark } => {
                if let Some(w) = watermark {
                    self.see(self.acts[who.0].host, w);
                }
                let now = self.clock(self.acts[who.0].host);
                if let Some(m) = &mut self.acts[who.0].machine {
                    m.handle_store(now, reply, watermark);
                    self.drain(who);
                }
            }
            Cue::Tick { who } => {
                self.acts[who.0].tick_at = u64::MAX;
                let now = self.clock(self.acts[who.0].host);
                if let Some(m) = &mut self.acts[who.0].machine {
                    m.handle_timeout(now);
                    self.drain(who);
                }
            }
            Cue::Relink { who, again } => {
                self.relink(who);
                if again && self.acts[who.0].machine.is_some() {
                    self.at(RELINK_NS, Cue::Relink { who, again });
                }
            }
        }
    }

    fn describe(&self) -> String {
        let mut text = format!("at {} ms", self.now_ms());
        for (i, act) in self.acts.iter().enumerate() {
            let alive = if act.machine.is_some() { "" } else { " (gone)" };
            text.push_str(&format!("\n  session {i} on {:x}{alive}: {:?}", act.host.0, act.view));
            text.push_str(&format!("\n    {:?}", act.events));
        }
        for (rid, rep) in &self.reps {
            let line = rep.machine.as_ref().map_or_else(|| format!("{rid} is not running"), Replica::line);
            text.push_str(&format!("\n  {line}"));
        }
        text.push_str(&format!("\n  revision {} record {:?}", self.revision, self.record));
        text
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.judged {
            let verdict = self.oracle.check();
            assert!(verdict.is_ok(), "{}\n{}", verdict.unwrap_err(), self.describe());
            self.judge_reported();
        }
    }
}

fn mark(incarnation: u64, revision: u64) -> Watermark {
    Watermark { cluster: CLUSTER, incarnation, revision }
}

fn pool_of(host: HostId) -> PoolId {
    PoolId(0x2000 + host.0)
}

fn values(extents: &[Extent<HeapPayload>]) -> Vec<Value> {
    let mut all = Vec::new();
    for extent in extents {
        match extent {
            Extent::Data { data, .. } => all.extend(data.bytes().chunks_exact(4096).map(value_of)),
            Extent::Hole { len, kind } => {
                let value = if *kind == Hole::Zero { ZERO } else { ABSENT };
                all.extend((0..len / BLOCK).map(|_| value));
            }
        }
    }
    all
}
