//! The simulated world: hosts, disks, network, store and clocks around the real machines, in one thread.
//!
//! Must always hold: everything is drawn from the seed, in one order; two runs of a seed are the same run.

mod disk_io;
mod ending;
mod faults;
mod guests;
mod judge;
mod media;
mod net;
mod pools;
mod replicas;
mod sessions;
mod snapshots;
mod store;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weft_proto::durable::Durable;
use weft_proto::guest::{GuestOp, GuestReply, RequestId};
use weft_proto::ids::{
    ClusterId, Epoch, Generation, HostId, Instant, Nonce, Ordinal, PoolId, PoolInc, Rev, Revision, Rid,
    SessionId, SnapId, VolumeId,
};
use weft_proto::log::LogRecord;
use weft_proto::message::{Answer, Ask, Claim, Extent, Hole, Request, Response, Watermark};
use weft_proto::mutants::{Broken, Mutation};
use weft_proto::payload::{BLOCK, HeapPayload, Payload};
use weft_proto::record::{
    Ack, Mode, OnLoss, Policy, REPAIR_EPOCH_JUMP, Record, ReplicaEntry, ReplicaState, Snaps,
};
use weft_proto::replica::{
    Action, AttachmentId, DiskDone, DiskError, DiskOp, ImageOp, Party, Replica, ReplicaConfig, Token,
    Verified,
};
use weft_proto::session::{
    EndReason, Event as SessionEvent, OpenMode, Session, SessionConfig, SnapChange, StoreCall, StoreReply,
    Timing,
};
use weft_proto::superblock::{
    PoolAction, PoolRefusal, PoolStart, SEGMENT_BYTES, StoredPool, Superblock, SwapOutcome as PoolSwapOutcome,
};

use self::disk_io::written;
use self::judge::session_name;
use self::media::{BLOCKS, Bad, Interrupted, Media, bytes_of_halves, halves_of};
use self::net::in_turn;
use self::replicas::Stop;
use self::sessions::names;
use self::snapshots::Barriers;
use crate::oracle::{ABSENT, Oracle, Value, ZERO};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::snap_keys::Keys;

/// Small regions, so that a small volume has several.
const REGION_SHIFT: u8 = 16;
const SIZE: u64 = 48 * BLOCK;
const VOLUME: VolumeId = VolumeId(0xF00D);
const CLUSTER: ClusterId = ClusterId(0xC1);
const MS: u64 = 1_000_000;
/// More events than any legal run has: machines that ask each other in circles are a fault, too.
const STEPS_MAX: u64 = 400_000;
/// Sessions are numbered from here: s1 is the next one.
const FIRST_SESSION: u128 = 0x5000;
/// Lines of history that a failing seed shows.
const HISTORY_MAX: usize = 4000;
/// Requests at one disk: more would mean that some limit does not limit (I31).
const PENDING_MAX: usize = 1000;

type Id = usize;

enum Event {
    Deliver {
        rep: Id,
        inc: u64,
        session: Id,
        ordinal: Ordinal,
        request: Request<HeapPayload>,
    },
    Answer {
        session: Id,
        rid: Rid,
        ordinal: Ordinal,
        link: u64,
        response: Response<HeapPayload>,
    },
    Io {
        rep: Id,
        inc: u64,
        io: u64,
    },
    Verified {
        rep: Id,
        inc: u64,
        token: Token,
    },
    PoolRead {
        rep: Id,
        inc: u64,
    },
    PoolWritten {
        rep: Id,
        inc: u64,
    },
    PoolSwap {
        rep: Id,
        inc: u64,
    },
    PoolSwapped {
        rep: Id,
        inc: u64,
        outcome: PoolSwapOutcome,
    },
    PoolAgain {
        rep: Id,
        inc: u64,
    },
    LatePoolSwap {
        pool: PoolId,
        compared: (u64, Option<StoredPool>),
        stored: StoredPool,
    },
    Reopen {
        rep: Id,
        inc: u64,
    },
    SwapBack {
        rep: Id,
    },
    Space {
        rep: Id,
    },
    Store {
        session: Id,
        call: StoreCall,
    },
    StoreAnswer {
        session: Id,
        reply: StoreReply,
        watermark: Option<Watermark>,
    },
    LateSwap {
        writer: SessionId,
        expect: Revision,
        base: Nonce,
        record: Record,
        snap: Option<SnapChange>,
    },
    Keys {
        session: Id,
    },
    Seen {
        session: Id,
        revision: Revision,
    },
    Tick {
        session: Id,
    },
    Guest {
        session: Id,
    },
    LinkDown {
        session: Id,
        rid: Rid,
        refused: bool,
    },
    LinkUp {
        session: Id,
        rid: Rid,
    },
    Fault,
    Restart {
        rep: Id,
    },
    PowerOn {
        host: Id,
    },
    Open {
        host: Id,
        steal: bool,
    },
    /// A caretaker takes the volume over for this.
    Caretake {
        host: Id,
        task: Task,
    },
    Heal {
        from: Id,
        to: Id,
    },
    Hurry {
        from: Id,
        to: Id,
    },
    Repair,
    ReplaceLost,
}

enum Io {
    Image { token: Token, op: ImageOp<HeapPayload> },
    Disk { token: Token, op: DiskOp<HeapPayload> },
    Log { token: Token, record: LogRecord },
}

/// A replica in a pool of its own.
struct Rep {
    rid: Rid,
    host: Id,
    pool: PoolId,
    stored: Stored,
    machine: Option<Replica<HeapPayload>>,
    /// Counts processes; what was begun by an earlier one is not ours.
    inc: u64,
    attachments: BTreeMap<(Id, Ordinal), AttachmentId>,
    pending: BTreeMap<u64, Io>,
    /// When the log's newest write is done: it keeps its order.
    log_until: u64,
    stalled_until: u64,
    start: Option<Starting>,
    /// The disk is gone for good.
    lost: bool,
    /// The pool was found to be another, or an older one, than the store knows: it never serves again.
    quarantined: bool,
    /// Another host's disk is in its place.
    foreign: Option<Superblock>,
    /// An image to which the directory may be put back.
    image: Option<Box<Stored>>,
    /// It was put back: must never serve.
    put_back: bool,
    /// The highest promise that was ever durable, for I3.
    promised_max: Epoch,
    /// The process whose failed flush was seen, and when.
    failed_inc: u64,
    failed_at: u64,
    /// The process whose flush failed: its pool does nothing more for this replica.
    flush_failed: u64,
    /// Its cache went since the oracle's last era began.
    cache_went: bool,
    /// The last promise that it answered.
    answered: (Epoch, SessionId),
}

/// A pool that is on its way to serve (R10).
struct Starting {
    machine: PoolStart,
    /// Revision and value of the pool's key at the last read.
    read: (u64, Option<StoredPool>),
}

/// What lies on a pool's disk.
#[derive(Clone)]
struct Stored {
    /// Metadata, as the log has it.
    durable: Durable,
    /// Data.
    media: Media,
    /// The power was lost since the last clean stop.
    lossy: bool,
    superblock: Superblock,
    /// Records in the log.
    log_seq: u64,
}

impl Rep {
    /// Its content will never be of use again.
    fn is_gone(&self) -> bool {
        self.lost || self.quarantined
    }

    /// A process serves it.
    fn is_serving(&self) -> bool {
        self.machine.is_some() && !self.is_gone() && self.foreign.is_none()
    }
}

struct Host {
    paused_until: u64,
    watermark: Watermark,
    /// What others have told it of theirs (R11).
    claims: BTreeMap<Id, Watermark>,
    powered: bool,
    drift_ppm: i64,
    /// What the host keeps of its pools' logs outside of the pools (R10).
    logs: BTreeMap<PoolId, u64>,
    /// At which incarnation it served each of them last.
    served: BTreeMap<PoolId, PoolInc>,
}

enum Asked {
    /// From this half block on.
    Read {
        first: u64,
        count: u64,
        called: u64,
    },
    Write {
        first: u64,
        values: Vec<Value>,
    },
    Flush {
        called: u64,
    },
}

struct Sess {
    id: SessionId,
    host: Id,
    machine: Option<Session<HeapPayload>>,
    guests: BTreeMap<RequestId, Asked>,
    links: BTreeMap<Rid, Link>,
    tick_at: u64,
    started: bool,
    /// The only guest's session that it may replace (R33); none: it was told no such thing.
    only: Option<SessionId>,
    /// A caretaker's, which does this and goes.
    task: Option<Task>,
    /// Answers to requests of a past era are not judged.
    stale_answers: bool,
}

/// What a caretaker is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// The volume gets so many bytes.
    Shrink(u64),
    /// It is taken back to this snapshot.
    Revert(SnapId),
}

#[derive(Default)]
struct Link {
    up: bool,
    generation: u64,
    lost_something: bool,
    /// When the newest message of the connection arrives, there and back.
    there_until: u64,
    back_until: u64,
}

struct Store {
    record: Record,
    /// Of the record's key.
    record_revision: u64,
    /// Of the store.
    revision: u64,
    incarnation: u64,
    down_until: u64,
    backup: Option<Backup>,
    rolled_back: bool,
    repaired: bool,
    /// A repair was refused: a member that may have kept the latest record is gone.
    needs_assent: bool,
    /// Keys of pools with their revisions (R10).
    pools: Pools,
    /// Keys of snapshots.
    keys: Keys,
    /// The size that somebody was told last, since the last swap of another (R25).
    told: Option<u64>,
    /// What guests saw beyond the end that the last shrink made, and that end, until somebody is told of it.
    cut_off: Option<(u64, Oracle)>,
}

type Pools = BTreeMap<PoolId, (StoredPool, u64)>;

struct Backup {
    record: Record,
    revision: u64,
    pools: Pools,
    keys: Keys,
}

/// One run.
pub struct World {
    rng: Rng,
    plan: Plan,
    broken: Broken,
    now: u64,
    seq: u64,
    steps: u64,
    held_before: BTreeMap<u64, Vec<Value>>,
    /// Whose data request a replica has just been given.
    executing: Option<((Epoch, SessionId), Id, Ordinal)>,
    /// Hosts that must do alone, while they must.
    core: Option<BTreeSet<Id>>,
    slow: BTreeSet<(Id, Id)>,
    queue: BTreeMap<(u64, u64), Event>,
    store: Store,
    hosts: Vec<Host>,
    reps: Vec<Rep>,
    sessions: Vec<Sess>,
    cuts: BTreeSet<(Id, Id)>,
    oracle: Oracle,
    next_value: Value,
    next_request: u64,
    next_attachment: u64,
    next_io: u64,
    next_session: u128,
    zeroed: BTreeSet<u64>,
    barriers: Barriers,
    violation: Option<String>,
    faults_on: bool,
    /// The run's last act: the volume is closed, and stays so.
    closing: bool,
    history: VecDeque<String>,
    verbose: bool,
    /// What happened, for the summary.
    pub counts: Counts,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Sessions that came to serve.
    pub opens: u64,
    /// Members taken out.
    pub demotions: u64,
    /// Joiners brought in.
    pub admissions: u64,
    /// Changes of the volume's size that somebody was told of.
    pub resizes: u64,
    /// Snapshots that somebody was told of.
    pub snapshots: u64,
    /// Reverts that somebody was told of.
    pub reverts: u64,
    /// Sessions that were fenced.
    pub fenced: u64,
    /// Acknowledged blocks.
    pub acks: u64,
    /// Blocks read.
    pub reads: u64,
    /// Requests of guests that could not be carried out, since no copy of a block was good.
    pub unreadable: u64,
    /// Scrubs that came to their end.
    pub scrubs: u64,
    /// Blocks that were written again from another copy.
    pub mended: u64,
    /// Parts of the cluster that had to suffice at the end.
    pub cores: u64,
    /// Longest time until a part of the cluster that suffices served, in ms.
    pub serve_ms_max: u64,
    /// … until it answered a request.
    pub answer_ms_max: u64,
    /// … until whoever was behind there was in sync.
    pub resync_ms_max: u64,
}

impl Counts {
    /// Takes another run's in.
    pub fn add(&mut self, other: &Counts) {
        self.opens += other.opens;
        self.demotions += other.demotions;
        self.admissions += other.admissions;
        self.resizes += other.resizes;
        self.reverts += other.reverts;
        self.snapshots += other.snapshots;
        self.fenced += other.fenced;
        self.acks += other.acks;
        self.reads += other.reads;
        self.unreadable += other.unreadable;
        self.scrubs += other.scrubs;
        self.mended += other.mended;
        self.cores += other.cores;
        self.serve_ms_max = self.serve_ms_max.max(other.serve_ms_max);
        self.answer_ms_max = self.answer_ms_max.max(other.answer_ms_max);
        self.resync_ms_max = self.resync_ms_max.max(other.resync_ms_max);
    }

    /// For people.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "{} opens, {} demotions, {} admissions, {} resizes, {} snapshots, {} reverts, {} fenced sessions, {} blocks acknowledged, {} read, {} requests for blocks without a good copy; {} scrubs, {} blocks mended; {} parts did alone and served in {} ms, answered in {} ms, resynced in {} ms at most",
            self.opens,
            self.demotions,
            self.admissions,
            self.resizes,
            self.snapshots,
            self.reverts,
            self.fenced,
            self.acks,
            self.reads,
            self.unreadable,
            self.scrubs,
            self.mended,
            self.cores,
            self.serve_ms_max,
            self.answer_ms_max,
            self.resync_ms_max
        )
    }
}

fn host_id(host: Id) -> HostId {
    HostId(0x1000 + host as u128)
}

/// Of the replica with this index; hosts' first pools come first.
fn pool_id(rep: Id) -> PoolId {
    PoolId(0x2000 + rep as u128)
}

impl World {
    /// The world of a seed.
    #[must_use]
    pub fn new(seed: u64, lean: Option<Mutation>, broken: Broken, verbose: bool) -> World {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::draw(&mut rng, lean);
        if lean.is_none() {
            // From numbers of its own: what else the seed draws stays as it was.
            plan.draw_sizes(&mut Rng::new(!seed));
            plan.draw_snapshots(&mut Rng::new(seed.rotate_left(32)));
        }
        let entry = |i: usize| ReplicaEntry {
            rid: Rid(i as u32 + 1),
            node: host_id(i),
            pool: pool_id(i),
            pool_inc: PoolInc(0),
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
            size: plan.size * BLOCK,
            region_shift: REGION_SHIFT,
            mode: Mode::Excl,
            policy: Policy {
                copies: plan.copies as u8,
                min_isr: plan.min_isr,
                ack: if plan.cached { Ack::Cached } else { Ack::Durable },
                on_loss: OnLoss::Pause,
                spread: "host".into(),
                unknown: BTreeMap::new(),
            },
            epoch: Epoch(1),
            rev: Rev(1),
            next_rid: plan.copies as u32 + 1,
            deleted: None,
            created_by: "sim".into(),
            nonce: Nonce(1),
            owner: None,
            next: None,
            clean: false,
            closed_gen: Generation::NEVER,
            replicas: (0..plan.copies).map(entry).collect(),
            snaps: Snaps::default(),
            parent: None,
            lineage: Vec::new(),
            wait: false,
            reverting: None,
            head: None,
            layer: None,
            unknown: BTreeMap::new(),
        };
        let watermark = Watermark { cluster: CLUSTER, incarnation: 1, revision: 1 };
        let mut drift = || match plan.drift_ppm {
            0 => 0,
            most => most as i64 - rng.below(2 * most) as i64,
        };
        let hosts = (0..plan.hosts)
            .map(|_| Host {
                paused_until: 0,
                watermark,
                claims: BTreeMap::new(),
                powered: true,
                drift_ppm: drift(),
                logs: BTreeMap::new(),
                served: BTreeMap::new(),
            })
            .collect();
        let mut world = World {
            store: Store {
                record,
                record_revision: 1,
                revision: 1,
                incarnation: 1,
                down_until: 0,
                backup: None,
                rolled_back: false,
                repaired: false,
                needs_assent: false,
                pools: BTreeMap::new(),
                keys: BTreeMap::new(),
                told: None,
                cut_off: None,
            },
            hosts,
            reps: Vec::new(),
            sessions: Vec::new(),
            cuts: BTreeSet::new(),
            oracle: Oracle::of_halves(),
            executing: None,
            core: None,
            slow: BTreeSet::new(),
            next_value: 64,
            next_request: 0,
            next_attachment: 0,
            next_io: 0,
            next_session: FIRST_SESSION,
            zeroed: BTreeSet::new(),
            barriers: Barriers::default(),
            violation: None,
            faults_on: true,
            closing: false,
            history: VecDeque::new(),
            counts: Counts::default(),
            queue: BTreeMap::new(),
            now: 1000 * MS,
            seq: 0,
            steps: 0,
            held_before: BTreeMap::new(),
            rng,
            plan,
            broken,
            verbose,
        };
        for host in 0..world.plan.copies {
            let rid = Rid(host as u32 + 1);
            world.make_replica(rid, host);
        }
        world
    }

    /// Runs to the end; the error is the violation, with the end of the history.
    pub fn run(&mut self) -> Result<(), String> {
        let host = self.any_owner();
        self.at(0, Event::Open { host, steal: false });
        self.at(50 * MS, Event::Fault);
        let end = self.now + self.plan.fault_ms * MS;
        self.run_until(|w| w.now >= end)?;
        self.heal_core()?;
        self.heal_all();
        self.finish()
    }

    fn run_until(&mut self, done: impl Fn(&World) -> bool) -> Result<(), String> {
        while !done(self) {
            let Some(((time, _), event)) = self.queue.pop_first() else { return Ok(()) };
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err(self.report(&self.describe("the machines talk without end")));
            }
            self.now = self.now.max(time);
            self.step(event);
            if let Some(what) = self.violation.take() {
                return Err(self.report(&what));
            }
        }
        Ok(())
    }

    fn report(&self, what: &str) -> String {
        let mut text = format!("{what}\n  plan: {}\n", self.plan.line());
        if self.history.len() == HISTORY_MAX {
            text.push_str(&format!("  (the last {HISTORY_MAX} lines of the history)\n"));
        }
        for line in &self.history {
            text.push_str("  ");
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    fn note(&mut self, line: impl FnOnce(&World) -> String) {
        if self.verbose {
            let text = format!("{:>10.3} ms {}", self.now as f64 / 1e6 - 1000.0, line(self));
            self.history.push_back(text);
            if self.history.len() > HISTORY_MAX {
                self.history.pop_front();
            }
        }
    }

    /// Prints what happened.
    pub fn print_history(&self) {
        for line in &self.history {
            println!("{line}");
        }
    }

    fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.seq += 1;
        self.queue.insert((self.now + delay, self.seq), event);
    }

    /// A host's own clock: it runs a little fast or slow.
    fn clock(&self, host: Id) -> Instant {
        let drift = self.now as i64 / 1000 * self.hosts[host].drift_ppm / 1000;
        Instant(self.now.saturating_add_signed(drift))
    }

    /// How long until a host's clock shows this time.
    fn until_clock(&self, host: Id, at: Instant) -> u64 {
        let left = at.0.saturating_sub(self.clock(host).0);
        (left as i64 * 1_000_000 / (1_000_000 + self.hosts[host].drift_ppm)) as u64 + 1000
    }

    /// A host on which sessions may open.
    fn any_owner(&mut self) -> Id {
        let (owners, core) = (&self.plan.owners, &self.core);
        let may = |h: &Id| {
            (owners.is_empty() || owners.contains(h)) && core.as_ref().is_none_or(|core| core.contains(h))
        };
        let hosts: Vec<Id> = (0..self.plan.hosts).filter(may).collect();
        hosts[self.rng.index(hosts.len())]
    }

    /// A host that is stopped sees events when it goes on.
    fn deferred(&mut self, host: Id, event: Event) -> Option<Event> {
        let until = self.hosts[host].paused_until;
        if until <= self.now {
            return Some(event);
        }
        self.seq += 1;
        self.queue.insert((until, self.seq), event);
        None
    }

    fn step(&mut self, event: Event) {
        let host = match &event {
            Event::Deliver { rep, .. }
            | Event::Io { rep, .. }
            | Event::Verified { rep, .. }
            | Event::PoolRead { rep, .. }
            | Event::PoolWritten { rep, .. }
            | Event::PoolSwap { rep, .. }
            | Event::PoolSwapped { rep, .. } => Some(self.reps[*rep].host),
            Event::Answer { session, .. }
            | Event::StoreAnswer { session, .. }
            | Event::Tick { session }
            | Event::Guest { session }
            | Event::Seen { session, .. }
            | Event::LinkDown { session, .. }
            | Event::LinkUp { session, .. } => Some(self.sessions[*session].host),
            _ => None,
        };
        let event = match host {
            // The disk goes on while its process is stopped; its completion is seen later.
            Some(host) => match self.deferred(host, event) {
                Some(event) => event,
                None => return,
            },
            None => event,
        };
        let now = host.map_or(Instant(self.now), |host| self.clock(host));
        match event {
            Event::Deliver { rep, inc, session, ordinal, request } => {
                self.deliver(rep, inc, session, ordinal, request)
            }
            Event::Answer { session, rid, ordinal, link, response } => {
                let s = &self.sessions[session];
                let current = s.links.get(&rid).is_some_and(|l| l.up && l.generation == link);
                let (to, attached) = (s.host, matches!(response.outcome, Ok(Answer::Attached(_))));
                if let Some(rep) = self.rep_of(rid).filter(|_| current && attached) {
                    self.hello(self.reps[rep].host, to);
                }
                let s = &mut self.sessions[session];
                if current && let Some(m) = &mut s.machine {
                    m.handle_response(now, rid, ordinal, response);
                    self.drain_session(session);
                }
            }
            Event::Io { rep, inc, io } => self.io_done(rep, inc, io),
            Event::Verified { rep, inc, token } => {
                let host = self.reps[rep].host;
                let believed = self.sees_store(host);
                let record = self.store.record.clone();
                let shown = match believed {
                    Some(true) => Verified::Record(&record),
                    Some(false) => Verified::RolledBack,
                    None => Verified::Away,
                };
                if self.reps[rep].inc == inc
                    && let Some(m) = &mut self.reps[rep].machine
                {
                    m.handle_verified(now, token, shown);
                    self.drain_replica(rep);
                }
            }
            Event::Store { session, call } => self.store_call(session, call),
            Event::StoreAnswer { session, reply, watermark } => {
                let host = self.sessions[session].host;
                if let Some(w) = watermark {
                    self.hosts[host].watermark = self.hosts[host].watermark.max(w);
                }
                if let Some(m) = &mut self.sessions[session].machine {
                    m.handle_store(now, reply, watermark);
                    self.drain_session(session);
                }
            }
            Event::Keys { session } => self.read_keys(session),
            Event::LateSwap { writer, expect, base, record, snap } => {
                let taken = (0..self.plan.hosts).any(|host| self.reaches_store(host));
                // What the members had not applied is not in a backup.
                if taken
                    && !self.store.rolled_back
                    && self.store.revision_of() == expect
                    && self.store.record.nonce == base
                {
                    self.note(|_| "the store applies a late swap".into());
                    self.apply(writer, record, snap);
                }
            }
            Event::Seen { session, revision } => {
                if let Some(m) = &mut self.sessions[session].machine {
                    m.handle_record_seen(now, revision);
                    self.drain_session(session);
                }
            }
            Event::PoolRead { rep, inc } => self.pool_read(rep, inc),
            Event::PoolWritten { rep, inc } => self.pool_written(rep, inc),
            Event::PoolSwap { rep, inc } => self.pool_swap(rep, inc),
            Event::PoolSwapped { rep, inc, outcome } => self.pool_swapped(rep, inc, outcome),
            Event::PoolAgain { rep, inc } => self.pool_again(rep, inc),
            Event::LatePoolSwap { pool, compared, stored } => {
                if !self.store.rolled_back {
                    self.raise_pool(pool, compared, stored);
                }
            }
            Event::Reopen { rep, inc } => {
                if self.reps[rep].inc == inc {
                    self.stop_replica(rep, Stop::Kill);
                    self.start_replica(rep);
                }
            }
            Event::SwapBack { rep } => self.swap_back(rep),
            Event::Space { rep } => self.reps[rep].stored.media.full = false,
            Event::Tick { session } => {
                self.sessions[session].tick_at = u64::MAX;
                if let Some(m) = &mut self.sessions[session].machine {
                    m.handle_timeout(now);
                    self.drain_session(session);
                }
            }
            Event::Guest { session } => self.guest(session),
            Event::LinkDown { session, rid, refused } => {
                let s = &mut self.sessions[session];
                let link = s.links.entry(rid).or_default();
                link.up = false;
                link.generation += 1;
                link.lost_something = false;
                if let Some(m) = &mut s.machine {
                    m.handle_link_down(now, rid, refused);
                    self.drain_session(session);
                }
                self.drop_connection(session, rid);
            }
            Event::LinkUp { session, rid } => self.link_up(session, rid),
            Event::Fault => self.fault(),
            Event::Restart { rep } => self.start_replica(rep),
            Event::PowerOn { host } => self.power_on(host),
            Event::Open { host, steal } => self.open(host, steal, None),
            Event::Caretake { host, task } => self.open(host, true, Some(task)),
            Event::Heal { from, to } => {
                self.cuts.remove(&(from, to));
                self.relink_all();
            }
            Event::Hurry { from, to } => {
                self.slow.remove(&(from, to));
            }
            Event::Repair => self.repair(),
            Event::ReplaceLost => self.replace_lost(),
        }
    }
}
