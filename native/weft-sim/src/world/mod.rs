//! The simulated world: hosts, disks, network, store and clocks around the real machines, in one thread.
//!
//! Must always hold: everything is drawn from the seed, in one order; two runs of a seed are the same run.

mod disk_io;
mod ending;
mod faults;
mod guests;
mod judge;
mod net;
mod replicas;
mod sessions;
mod store;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weft_proto::durable::Durable;
use weft_proto::guest::{GuestOp, GuestReply, RequestId};
use weft_proto::ids::{
    ClusterId, Epoch, Generation, HostId, Instant, Nonce, Ordinal, PoolId, PoolInc, Rev, Revision, Rid,
    SessionId, VolumeId,
};
use weft_proto::log::LogRecord;
use weft_proto::message::{Extent, Hole, Request, Response, Watermark};
use weft_proto::mutants::{Broken, Mutation};
use weft_proto::payload::{BLOCK, HeapPayload, Payload};
use weft_proto::record::{Ack, Mode, OnLoss, Policy, REPAIR_EPOCH_JUMP, Record, ReplicaEntry, ReplicaState};
use weft_proto::replica::{Action, AttachmentId, DiskDone, DiskOp, Replica, ReplicaConfig, Token};
use weft_proto::session::{
    EndReason, Event as SessionEvent, OpenMode, Session, SessionConfig, StoreCall, StoreReply, Timing,
};

use crate::disk::{Disk, Stored, bytes_of, value_of};
use crate::oracle::{ABSENT, Oracle, Value, ZERO};
use crate::plan::Plan;
use crate::rng::Rng;

/// Small regions, so that a small volume has several.
const REGION_SHIFT: u8 = 16;
const SIZE: u64 = 48 * BLOCK;
const VOLUME: VolumeId = VolumeId(0xF00D);
const CLUSTER: ClusterId = ClusterId(0xC1);
const MS: u64 = 1_000_000;
/// After the faults: until everything must be served, and until every copy must be in sync again.
const LIVENESS_MS: u64 = 60_000;
/// More events than any legal run has: machines that ask each other in circles are a fault, too.
const STEPS_MAX: u64 = 400_000;

type Id = usize;

enum Event {
    Deliver { rep: Id, inc: u64, session: Id, ordinal: Ordinal, request: Request<HeapPayload> },
    Answer { session: Id, rid: Rid, ordinal: Ordinal, link: u64, response: Response<HeapPayload> },
    Io { rep: Id, inc: u64, io: u64 },
    Verified { rep: Id, inc: u64, token: Token },
    Store { session: Id, call: StoreCall },
    StoreAnswer { session: Id, reply: StoreReply, watermark: Option<Watermark> },
    LateSwap { expect: Revision, base: Nonce, record: Record },
    Tick { session: Id },
    Guest { session: Id },
    LinkDown { session: Id, rid: Rid, refused: bool },
    LinkUp { session: Id, rid: Rid },
    Fault,
    Restart { rep: Id },
    Open { host: Id, steal: bool },
    Heal { from: Id, to: Id },
    Repair,
    ReplaceLost,
}

enum Io {
    Disk { token: Token, op: DiskOp<HeapPayload> },
    Log { token: Token, record: LogRecord },
}

struct Rep {
    rid: Rid,
    host: Id,
    stored: Stored,
    machine: Option<Replica<HeapPayload>>,
    inc: u64,
    attachments: BTreeMap<(Id, Ordinal), AttachmentId>,
    pending: BTreeMap<u64, Io>,
    stalled_until: u64,
    lost: bool,
    /// Its cache went since the oracle's last era began.
    cache_went: bool,
}

struct Host {
    paused_until: u64,
    watermark: Watermark,
}

enum Asked {
    Read { first: u64, called: u64 },
    Write { first: u64, values: Vec<Value> },
    Flush { called: u64 },
}

struct Sess {
    host: Id,
    machine: Option<Session<HeapPayload>>,
    guests: BTreeMap<RequestId, Asked>,
    links: BTreeMap<Rid, Link>,
    tick_at: u64,
    started: bool,
    /// Answers to requests of a past era are not judged.
    stale_answers: bool,
}

#[derive(Default)]
struct Link {
    up: bool,
    generation: u64,
    lost_something: bool,
}

struct Store {
    record: Record,
    revision: u64,
    incarnation: u64,
    down_until: u64,
    backup: Option<(Record, u64)>,
    rolled_back: bool,
    repaired: bool,
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
    violation: Option<String>,
    faults_on: bool,
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
    /// Sessions that were fenced.
    pub fenced: u64,
    /// Acknowledged blocks.
    pub acks: u64,
    /// Blocks read.
    pub reads: u64,
}

fn host_id(host: Id) -> HostId {
    HostId(0x1000 + host as u128)
}

fn pool_id(host: Id) -> PoolId {
    PoolId(0x2000 + host as u128)
}

impl World {
    /// The world of a seed.
    #[must_use]
    pub fn new(seed: u64, lean: Option<Mutation>, broken: Broken, verbose: bool) -> World {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng, lean);
        let entry = |i: usize| ReplicaEntry {
            rid: Rid(i as u32 + 1),
            node: host_id(i),
            pool: pool_id(i),
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
            size: SIZE,
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
            snaps: serde_json::json!({"count": 0, "newest": null}),
            parent: None,
            lineage: Vec::new(),
            wait: false,
            unknown: BTreeMap::new(),
        };
        let watermark = Watermark { cluster: CLUSTER, incarnation: 1, revision: 1 };
        let mut world = World {
            store: Store {
                record,
                revision: 1,
                incarnation: 1,
                down_until: 0,
                backup: None,
                rolled_back: false,
                repaired: false,
            },
            hosts: (0..plan.hosts).map(|_| Host { paused_until: 0, watermark }).collect(),
            reps: Vec::new(),
            sessions: Vec::new(),
            cuts: BTreeSet::new(),
            oracle: Oracle::default(),
            next_value: 64,
            next_request: 0,
            next_attachment: 0,
            next_io: 0,
            next_session: 0x5000,
            zeroed: BTreeSet::new(),
            violation: None,
            faults_on: true,
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
        let host = self.rng.index(self.plan.hosts);
        self.at(0, Event::Open { host, steal: false });
        self.at(50 * MS, Event::Fault);
        let end = self.now + self.plan.fault_ms * MS;
        self.run_until(|w| w.now >= end)?;
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
        let mut text = format!("{what}\n  plan: {:?}\n", self.plan);
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
            if self.history.len() > 4000 {
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
            Event::Deliver { rep, .. } | Event::Io { rep, .. } | Event::Verified { rep, .. } => {
                Some(self.reps[*rep].host)
            }
            Event::Answer { session, .. }
            | Event::StoreAnswer { session, .. }
            | Event::Tick { session }
            | Event::Guest { session }
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
        let now = Instant(self.now);
        match event {
            Event::Deliver { rep, inc, session, ordinal, request } => {
                self.deliver(rep, inc, session, ordinal, request)
            }
            Event::Answer { session, rid, ordinal, link, response } => {
                let s = &mut self.sessions[session];
                let current = s.links.get(&rid).is_some_and(|l| l.up && l.generation == link);
                if current && let Some(m) = &mut s.machine {
                    m.handle_response(now, rid, ordinal, response);
                    self.drain_session(session);
                }
            }
            Event::Io { rep, inc, io } => self.io_done(rep, inc, io),
            Event::Verified { rep, inc, token } => {
                let reachable = self.store.down_until <= self.now;
                let record = reachable.then(|| self.store.record.clone());
                if self.reps[rep].inc == inc
                    && let Some(m) = &mut self.reps[rep].machine
                {
                    m.handle_verified(now, token, record.as_ref());
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
            Event::LateSwap { expect, base, record } => {
                if self.store.revision_of() == expect && self.store.record.nonce == base {
                    self.note(|_| "the store applies a late swap".into());
                    self.apply(record);
                }
            }
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
            Event::Open { host, steal } => self.open(host, steal),
            Event::Heal { from, to } => {
                self.cuts.remove(&(from, to));
                self.relink_all();
            }
            Event::Repair => self.repair(),
            Event::ReplaceLost => self.replace_lost(),
        }
    }
}
