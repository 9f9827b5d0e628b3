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

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weft_proto::durable::Durable;
use weft_proto::guest::{GuestError, GuestOp, GuestReply, RequestId};
use weft_proto::ids::{
    ClusterId, Epoch, Generation, HostId, Instant, Nonce, Ordinal, PoolId, PoolInc, Rev, Revision, Rid,
    SessionId, VolumeId,
};
use weft_proto::log::LogRecord;
use weft_proto::message::{Ask, Extent, Hole, Refusal, Request, Response, Watermark};
use weft_proto::mutants::Broken;
use weft_proto::payload::{BLOCK, HeapPayload, Payload};
use weft_proto::record::{
    Ack, Mode, OnLoss, Owner, Policy, REPAIR_EPOCH_JUMP, Record, ReplicaEntry, ReplicaState,
};
use weft_proto::replica::{Action, AttachmentId, DiskDone, DiskError, DiskOp, Replica, ReplicaConfig, Token};
use weft_proto::session::{
    EndReason, Event, OpenMode, Session, SessionConfig, SessionView, StoreCall, StoreReply, Timing,
};

use crate::disk::{Disk, Stored, bytes_of, value_of};
use crate::oracle::{ABSENT, Oracle, Value, ZERO};

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
}

impl Scene {
    /// A volume with so many copies, `R0` on host `A` and so on, all in sync and empty.
    #[must_use]
    pub fn copies(copies: u32) -> Scene {
        Scene { copies, min_isr: 1, cached: false, on_loss: OnLoss::Pause, blocks: 48, seed: 0 }
    }

    /// Fewest in-sync copies under which writes complete.
    #[must_use]
    pub fn min_isr(self, min_isr: u8) -> Scene {
        Scene { min_isr, ..self }
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
    pub fn stage(self) -> Stage {
        Stage::new(self)
    }
}

/// A session on the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who(usize);

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

/// Copies of a resync or a reconcile.
#[must_use]
pub fn copies(ask: &Ask<HeapPayload>) -> bool {
    matches!(ask, Ask::Write { copy: true, .. } | Ask::Zero { copy: true, .. })
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
    failing: Option<(fn(&DiskOp<HeapPayload>) -> bool, DiskError)>,
    full: bool,
    rotten: BTreeSet<u64>,
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
    corrupt: bool,
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
    now: u64,
    seq: u64,
    queue: BTreeMap<(u64, u64), Cue>,
    scene: Scene,
    reps: BTreeMap<Rid, Rep>,
    acts: Vec<Act>,
    cuts: BTreeSet<(HostId, HostId)>,
    frozen: BTreeMap<HostId, Vec<Cue>>,
    watermarks: BTreeMap<HostId, Watermark>,
    record: Record,
    revision: u64,
    incarnation: u64,
    store_away: BTreeSet<HostId>,
    fates: VecDeque<Fate>,
    late: Vec<(Revision, Nonce, Record)>,
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
}

impl Stage {
    fn new(scene: Scene) -> Stage {
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
            snaps: serde_json::json!({"count": 0, "newest": null}),
            parent: None,
            lineage: Vec::new(),
            wait: false,
            unknown: BTreeMap::new(),
        };
        let mut stage = Stage {
            now: 1_000_000 * MS,
            seq: 0,
            queue: BTreeMap::new(),
            scene,
            reps: BTreeMap::new(),
            acts: Vec::new(),
            cuts: BTreeSet::new(),
            frozen: BTreeMap::new(),
            watermarks: HOSTS.iter().map(|h| (*h, mark(1, 1))).collect(),
            record,
            revision: 1,
            incarnation: 1,
            store_away: BTreeSet::new(),
            fates: VecDeque::new(),
            late: Vec::new(),
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
        let now = Instant(self.now);
        match cue {
            Cue::Request { who, rid, inc, ordinal, request } => self.deliver(who, rid, inc, ordinal, request),
            Cue::Answer { who, rid, ordinal, link, response } => {
                let act = &mut self.acts[who.0];
                let current = act.links.get(&rid).is_some_and(|l| l.up && l.generation == link);
                if current && let Some(m) = &mut act.machine {
                    m.handle_response(now, rid, ordinal, response);
                    self.drain(who);
                }
            }
            Cue::Io { rid, inc, io } => self.io_done(rid, inc, io),
            Cue::Verified { rid, inc, token } => {
                let record = (!self.store_away.contains(&self.reps[&rid].host)).then(|| self.record.clone());
                let rep = self.reps.get_mut(&rid).expect("made");
                if rep.inc == inc
                    && let Some(m) = &mut rep.machine
                {
                    m.handle_verified(now, token, record.as_ref());
                    self.drain_replica(rid);
                }
            }
            Cue::Store { who, call } => self.store_call(who, call),
            Cue::StoreAnswer { who, reply, watermark } => {
                if let Some(w) = watermark {
                    self.see(self.acts[who.0].host, w);
                }
                if let Some(m) = &mut self.acts[who.0].machine {
                    m.handle_store(now, reply, watermark);
                    self.drain(who);
                }
            }
            Cue::Tick { who } => {
                self.acts[who.0].tick_at = u64::MAX;
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

    // ---- sessions

    /// Somebody opens a closed volume.
    pub fn open(&mut self, host: HostId) -> Who {
        self.enter(host, OpenMode::Closed, false)
    }

    /// Somebody steals it.
    pub fn steal(&mut self, host: HostId) -> Who {
        self.enter(host, OpenMode::Steal { old_stopped: None }, false)
    }

    /// Somebody takes it over from a session whose process is known to have ended.
    pub fn replace(&mut self, host: HostId, old: Who) -> Who {
        let old = self.id(old);
        self.enter(host, OpenMode::Steal { old_stopped: Some(old) }, false)
    }

    /// A session that comes to serve a closed volume.
    pub fn owner(&mut self, host: HostId) -> Who {
        let who = self.open(host);
        self.serving(who);
        who
    }

    fn id(&self, who: Who) -> SessionId {
        SessionId(0x5000 + who.0 as u128)
    }

    fn enter(&mut self, host: HostId, mode: OpenMode, caretaker: bool) -> Who {
        let who = Who(self.acts.len());
        let config = SessionConfig {
            volume: VOLUME,
            session: self.id(who),
            host,
            mode,
            caretaker,
            watermark: self.watermarks[&host],
            timing: Timing::default(),
            seed: (self.scene.seed << 32) + 1 + who.0 as u128,
            unix_ms_at_zero: self.wall_ms.get(&host).copied().unwrap_or(0),
            broken: Broken::default(),
        };
        let machine: Session<HeapPayload> = Session::new(config, Instant(self.now));
        let view = machine.view();
        let (links, events) = (BTreeMap::new(), Vec::new());
        self.acts.push(Act { host, machine: Some(machine), links, tick_at: u64::MAX, events, view });
        self.drain(who);
        self.at(MS, Cue::Relink { who, again: true });
        who
    }

    /// Plays until it serves.
    pub fn serving(&mut self, who: Who) {
        self.run_until("a session serves", |s| s.view(who).phase == "serving");
    }

    /// Plays until it is over, and tells why.
    pub fn over(&mut self, who: Who) -> EndReason {
        self.run_until("a session is over", |s| s.ended(who).is_some());
        self.ended(who).expect("awaited")
    }

    /// Closes it in order and plays until that is done.
    pub fn close(&mut self, who: Who) {
        let now = Instant(self.now);
        assert!(self.acts[who.0].machine.as_mut().is_some_and(|m| m.close(now)), "the close is refused");
        self.drain(who);
        assert_eq!(self.over(who), EndReason::Closed);
    }

    /// Its process is gone, at once and for ever.
    pub fn vanish(&mut self, who: Who) {
        self.acts[who.0].machine = None;
    }

    /// Asks for another copy, made durable on `host` before.
    pub fn add(&mut self, who: Who, rid: Rid, host: HostId) {
        self.make(rid, host);
        let now = Instant(self.now);
        if let Some(m) = &mut self.acts[who.0].machine {
            m.add_replica(now, rid, host, pool_of(host));
        }
        self.drain(who);
    }

    /// Asks that a copy leaves.
    pub fn remove(&mut self, who: Who, rid: Rid) {
        let now = Instant(self.now);
        if let Some(m) = &mut self.acts[who.0].machine {
            m.remove_replica(now, rid);
        }
        self.drain(who);
    }

    /// How it stands, or stood last.
    #[must_use]
    pub fn view(&self, who: Who) -> &SessionView {
        &self.acts[who.0].view
    }

    /// Its line about a replica.
    #[must_use]
    pub fn line(&self, who: Who, rid: Rid) -> &str {
        let members = &self.view(who).members;
        members.iter().find(|m| m.rid == rid).map_or("not in the record", |m| &m.line)
    }

    /// What it told so far.
    #[must_use]
    pub fn events(&self, who: Who) -> &[Event] {
        &self.acts[who.0].events
    }

    /// Did it tell something like this?
    #[must_use]
    pub fn told(&self, who: Who, what: impl Fn(&Event) -> bool) -> bool {
        self.events(who).iter().any(what)
    }

    /// How often it took members out.
    #[must_use]
    pub fn demotions(&self, who: Who) -> usize {
        self.events(who).iter().filter(|e| matches!(e, Event::Demoted { .. })).count()
    }

    /// Why it ended, if it did.
    #[must_use]
    pub fn ended(&self, who: Who) -> Option<EndReason> {
        self.events(who).iter().find_map(|e| match e {
            Event::Ended(reason) => Some(reason.clone()),
            _ => None,
        })
    }

    fn drain(&mut self, who: Who) {
        let host = self.acts[who.0].host;
        loop {
            let Some(m) = &mut self.acts[who.0].machine else { return };
            if let Some(t) = m.poll_transmit() {
                self.transmit(who, host, t.rid, t.ordinal, t.request);
            } else if let Some(call) = m.poll_store() {
                self.at(STORE_NS / 2, Cue::Store { who, call });
            } else if let Some((id, reply)) = m.poll_reply() {
                self.answered(who, id, reply);
            } else if let Some(event) = m.poll_event() {
                if let Event::Watermark(w) = event {
                    self.see(host, w);
                }
                self.acts[who.0].events.push(event);
            } else {
                break;
            }
        }
        let act = &mut self.acts[who.0];
        let Some(m) = &act.machine else { return };
        act.view = m.view();
        let (due, ended) = (m.poll_timeout(), m.is_ended());
        if let Some(at) = due
            && at.0 < act.tick_at
        {
            act.tick_at = at.0;
            let delay = at.0.saturating_sub(self.now);
            self.at(delay, Cue::Tick { who });
        }
        if ended {
            self.acts[who.0].machine = None;
        }
    }

    // ---- guests

    /// Asks anything.
    pub fn submit(&mut self, who: Who, op: GuestOp<HeapPayload>) -> RequestId {
        self.ask(who, op, Asked::Other)
    }

    fn ask(&mut self, who: Who, op: GuestOp<HeapPayload>, asked: Asked) -> RequestId {
        self.next_id += 1;
        let id = RequestId(self.next_id);
        self.asked.insert(id, asked);
        let now = Instant(self.now);
        match &mut self.acts[who.0].machine {
            Some(m) => m.submit(now, id, op),
            None => {
                self.replies.insert(id, (self.now, GuestReply::Failed(GuestError::Fenced)));
            }
        }
        self.drain(who);
        id
    }

    /// Writes a block.
    pub fn write(&mut self, who: Who, block: u64) -> Write {
        self.write_run(who, block, 1)
    }

    /// Writes several blocks at once.
    pub fn write_run(&mut self, who: Who, first: u64, count: u64) -> Write {
        let value = self.next_value;
        let values: Vec<Value> = (0..count).map(|i| value + i).collect();
        self.next_value += count;
        for (i, value) in values.iter().enumerate() {
            self.oracle.write_called(first + i as u64, *value, self.now);
        }
        let op = GuestOp::Write { offset: first * BLOCK, data: bytes_of(&values), fua: false };
        Write { id: self.ask(who, op, Asked::Write { first, values }), value }
    }

    /// Writes a block and plays until that is acknowledged.
    pub fn written(&mut self, who: Who, block: u64) -> Value {
        let write = self.write(who, block);
        self.run_until("a write is acknowledged", |s| s.done(write.id));
        write.value
    }

    /// Discards a block (once per block and stage).
    pub fn discard(&mut self, who: Who, block: u64) -> RequestId {
        self.oracle.write_called(block, ZERO, self.now);
        let op =
            GuestOp::Zero { offset: block * BLOCK, len: BLOCK, discard: true, keep_space: false, fua: false };
        self.ask(who, op, Asked::Write { first: block, values: vec![ZERO] })
    }

    /// Reads a block.
    pub fn read(&mut self, who: Who, block: u64) -> RequestId {
        let op = GuestOp::Read { offset: block * BLOCK, len: BLOCK };
        self.ask(who, op, Asked::Read { first: block, called: self.now })
    }

    /// Reads a block and plays until that is answered.
    pub fn read_now(&mut self, who: Who, block: u64) -> Value {
        let id = self.read(who, block);
        self.run_until("a read is answered", |s| s.answered_at_ms(id).is_some());
        self.value(id).expect("the read failed")
    }

    /// The answer, if there is one.
    #[must_use]
    pub fn reply(&self, id: RequestId) -> Option<&GuestReply<HeapPayload>> {
        self.replies.get(&id).map(|(_, reply)| reply)
    }

    /// Was it answered well?
    #[must_use]
    pub fn done(&self, id: RequestId) -> bool {
        matches!(self.reply(id), Some(GuestReply::Done))
    }

    /// How it failed, if it did.
    #[must_use]
    pub fn failure(&self, id: RequestId) -> Option<GuestError> {
        match self.reply(id) {
            Some(GuestReply::Failed(error)) => Some(*error),
            _ => None,
        }
    }

    /// What a read found in its first block.
    #[must_use]
    pub fn value(&self, id: RequestId) -> Option<Value> {
        match self.reply(id) {
            Some(GuestReply::Data(extents)) => values(extents).first().copied(),
            _ => None,
        }
    }

    /// When it was answered.
    #[must_use]
    pub fn answered_at_ms(&self, id: RequestId) -> Option<u64> {
        self.replies.get(&id).map(|(at, _)| at / MS - 1_000_000)
    }

    fn answered(&mut self, who: Who, id: RequestId, reply: GuestReply<HeapPayload>) {
        match (self.asked.remove(&id), &reply) {
            (Some(Asked::Write { first, values }), GuestReply::Done) => {
                for (i, value) in values.iter().enumerate() {
                    self.oracle.write_acked(first + i as u64, *value, self.now);
                    self.check_i6(who, first + i as u64, *value);
                }
            }
            (Some(Asked::Read { first, called }), GuestReply::Data(extents)) => {
                for (i, value) in values(extents).into_iter().enumerate() {
                    let seen = self.oracle.read(first + i as u64, value, called, self.now);
                    assert!(seen.is_ok() || !self.judged, "{seen:?}\n{}", self.describe());
                }
            }
            (Some(_), _) => {}
            (None, _) => panic!("request {id:?} was answered twice\n{}", self.describe()),
        }
        self.replies.insert(id, (self.now, reply));
    }

    /// I6: what is acknowledged is at every member that is in sync by the record.
    fn check_i6(&self, who: Who, block: u64, value: Value) {
        let owner = self.record.owner.map(|o| o.session);
        if owner != Some(self.id(who)) || !self.judged {
            return;
        }
        for entry in self.record.in_sync() {
            let rep = &self.reps[&entry.rid];
            let held = rep.stored.disk.value(block);
            assert!(
                rep.lost || held == value,
                "I6: block {block} was acknowledged with {value}, {} is in sync and has {held}\n{}",
                entry.rid,
                self.describe()
            );
        }
    }

    // ---- replicas and their disks

    fn make(&mut self, rid: Rid, host: HostId) {
        let durable = Durable::new(VOLUME, rid, self.scene.blocks * BLOCK, 16);
        let stored = Stored { durable, disk: Disk::default(), lossy: false };
        let rep = Rep {
            host,
            stored,
            machine: None,
            inc: 0,
            silent: false,
            lost: false,
            attachments: BTreeMap::new(),
            pending: BTreeMap::new(),
            data_stalled: false,
            log_stalled: false,
            failing: None,
            full: false,
            rotten: BTreeSet::new(),
            ran: Vec::new(),
        };
        self.reps.insert(rid, rep);
        self.start(rid);
    }

    fn rep(&mut self, rid: Rid) -> &mut Rep {
        self.reps.get_mut(&rid).expect("a replica on this stage")
    }

    /// The replica's daemon is up again.
    pub fn start(&mut self, rid: Rid) {
        let (watermark, cached) = (self.watermarks[&self.reps[&rid].host], self.scene.cached);
        let rep = self.rep(rid);
        assert!(rep.machine.is_none() && !rep.lost, "{rid} can't start");
        rep.inc += 1;
        rep.silent = false;
        rep.attachments.clear();
        let config = ReplicaConfig {
            pool: pool_of(rep.host),
            pool_inc: PoolInc(rep.inc),
            watermark,
            lossy: rep.stored.lossy,
            cached,
            broken: Broken::default(),
        };
        rep.machine = Some(Replica::new(config, rep.stored.durable.clone()));
        self.relink_soon();
    }

    /// Its daemon is killed: connections are refused, what was under way at its disk never happens (a stalled
    /// request does not, either: its pool's lock is held until it has, R13).
    pub fn kill(&mut self, rid: Rid) {
        let rep = self.rep(rid);
        rep.machine = None;
        rep.pending.clear();
        self.relink_soon();
    }

    /// As [`Stage::kill`], but somebody keeps its port: connections are neither refused nor accepted.
    pub fn kill_silently(&mut self, rid: Rid) {
        self.kill(rid);
        self.rep(rid).silent = true;
    }

    /// Its daemon is killed, but what was under way at its disk happens.
    pub fn kill_after_io(&mut self, rid: Rid) {
        let rep = self.rep(rid);
        rep.machine = None;
        for io in std::mem::take(&mut rep.pending).into_values() {
            match io {
                Io::Disk { op, .. } => drop(rep.stored.disk.run(&op)),
                Io::Log { record, .. } => rep.stored.durable.apply(&record),
            }
        }
        self.relink_soon();
    }

    /// Its host loses power: silence, and what was only in its caches is gone.
    pub fn power_off(&mut self, rid: Rid) {
        self.judged &= !self.scene.cached;
        let rep = self.rep(rid);
        rep.machine = None;
        rep.silent = true;
        rep.pending.clear();
        rep.stored.disk.lose_cache();
        rep.stored.lossy = true;
    }

    /// Its host is shut down in order: everything is flushed, connections are refused.
    pub fn shut_down(&mut self, rid: Rid) {
        let rep = self.rep(rid);
        rep.stored.disk.run(&DiskOp::Flush).expect("a flush");
        self.kill_after_io(rid);
    }

    /// Its disk is dead for good; its daemon says that there is no such replica.
    pub fn lose_disk(&mut self, rid: Rid) {
        let rep = self.rep(rid);
        (rep.machine, rep.lost) = (None, true);
        rep.pending.clear();
    }

    /// Its disk does not finish anything any more; its log goes on.
    pub fn stall(&mut self, rid: Rid) {
        self.rep(rid).data_stalled = true;
    }

    /// Neither its disk nor its log finish anything any more.
    pub fn stall_all(&mut self, rid: Rid) {
        let rep = self.rep(rid);
        (rep.data_stalled, rep.log_stalled) = (true, true);
    }

    /// Its disk goes on; what stuck happens now.
    pub fn unstall(&mut self, rid: Rid) {
        let rep = self.rep(rid);
        (rep.data_stalled, rep.log_stalled) = (false, false);
        let (inc, stuck) = (rep.inc, rep.pending.keys().copied().collect::<Vec<u64>>());
        for io in stuck {
            self.at(0, Cue::Io { rid, inc, io });
        }
    }

    /// The next disk request that is picked fails; the ones after it don't.
    pub fn fail_once(&mut self, rid: Rid, pick: fn(&DiskOp<HeapPayload>) -> bool, error: DiskError) {
        self.rep(rid).failing = Some((pick, error));
    }

    /// Its pool is full, or has room again: blocks that hold no data can't be written, its log goes on (R20).
    pub fn fill(&mut self, rid: Rid, full: bool) {
        self.rep(rid).full = full;
    }

    /// A block's stored checksum no longer fits its data, until it is written again.
    pub fn rot(&mut self, rid: Rid, block: u64) {
        self.rep(rid).rotten.insert(block);
    }

    /// What a replica's disk holds.
    #[must_use]
    pub fn disk(&self, rid: Rid, block: u64) -> Value {
        self.reps[&rid].stored.disk.value(block)
    }

    /// What a replica's log holds.
    #[must_use]
    pub fn durable(&self, rid: Rid) -> &Durable {
        &self.reps[&rid].stored.durable
    }

    /// What a replica's disk has carried out.
    #[must_use]
    pub fn ran(&self, rid: Rid) -> &[DiskOp<HeapPayload>] {
        &self.reps[&rid].ran
    }

    /// Requests that are at its disk or its log.
    #[must_use]
    pub fn at_disk(&self, rid: Rid) -> usize {
        self.reps[&rid].pending.len()
    }

    fn deliver(&mut self, who: Who, rid: Rid, inc: u64, ordinal: Ordinal, request: Request<HeapPayload>) {
        let (now, fresh) = (Instant(self.now), AttachmentId(self.next_id + 1));
        self.next_id += 1;
        let rep = self.rep(rid);
        if rep.inc != inc {
            return;
        }
        if rep.lost {
            let (tag, outcome) = (request.tag, Err(Refusal::NoReplica));
            let response = Response { tag, epoch: Epoch(0), outcome, service_us: 0 };
            return self.answer(who, rid, ordinal, response);
        }
        let attachment = *rep.attachments.entry((who, ordinal)).or_insert(fresh);
        if let Some(m) = &mut rep.machine {
            m.handle_request(now, attachment, request);
            self.drain_replica(rid);
        }
    }

    fn drain_replica(&mut self, rid: Rid) {
        loop {
            let rep = self.rep(rid);
            let inc = rep.inc;
            let Some(action) = rep.machine.as_mut().and_then(Replica::poll_action) else { return };
            match action {
                Action::Log { token, record } => self.start_io(rid, Io::Log { token, record }),
                Action::Disk { token, op } => self.start_io(rid, Io::Disk { token, op }),
                Action::ReadStore { token } => self.at(STORE_NS, Cue::Verified { rid, inc, token }),
                Action::Reply { attachment, response } => {
                    let found = rep.attachments.iter().find(|(_, a)| **a == attachment).map(|(k, _)| *k);
                    if let Some((who, ordinal)) = found {
                        self.answer(who, rid, ordinal, response);
                    }
                }
            }
        }
    }

    fn answer(&mut self, who: Who, rid: Rid, ordinal: Ordinal, response: Response<HeapPayload>) {
        let (from, to) = (self.reps[&rid].host, self.acts[who.0].host);
        let cut = self.cuts.contains(&(from, to));
        let link = self.acts[who.0].links.entry(rid).or_default();
        if cut || link.hold_answers {
            link.lost_something = true;
            return;
        }
        let link = link.generation;
        self.at(delay(from, to), Cue::Answer { who, rid, ordinal, link, response });
    }

    fn start_io(&mut self, rid: Rid, io: Io) {
        self.next_id += 1;
        let (io_id, rep) = (self.next_id, self.reps.get_mut(&rid).expect("made"));
        let inc = rep.inc;
        rep.pending.insert(io_id, io);
        self.at(DISK_NS, Cue::Io { rid, inc, io: io_id });
    }

    fn io_done(&mut self, rid: Rid, inc: u64, io: u64) {
        let now = Instant(self.now);
        let rep = self.rep(rid);
        let stalled = match rep.pending.get(&io) {
            Some(Io::Disk { .. }) => rep.data_stalled,
            Some(Io::Log { .. }) => rep.log_stalled,
            None => return,
        };
        if rep.inc != inc || stalled {
            return;
        }
        match rep.pending.remove(&io).expect("looked at a moment ago") {
            Io::Log { token, record } => {
                rep.stored.durable.apply(&record);
                if matches!(record, LogRecord::Sealed { .. }) {
                    rep.stored.lossy = false;
                }
                if let Some(m) = &mut rep.machine {
                    m.handle_logged(now, token, record, Ok(()));
                }
            }
            Io::Disk { token, op } => {
                let outcome = rep.run(&op);
                if let Some(m) = &mut rep.machine {
                    m.handle_disk(now, token, outcome);
                }
            }
        }
        self.drain_replica(rid);
    }

    // ---- the network

    /// Nothing that `from` sends reaches `to` any more; nobody is told.
    pub fn cut_way(&mut self, from: HostId, to: HostId) {
        self.cuts.insert((from, to));
    }

    /// Two hosts no longer reach each other.
    pub fn cut(&mut self, a: HostId, b: HostId) {
        self.cut_way(a, b);
        self.cut_way(b, a);
    }

    /// All hosts reach each other; connections that lost something are made anew.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.relink_soon();
    }

    /// Requests that are picked stay unread in the replica's socket, from now on.
    pub fn hold(&mut self, who: Who, rid: Rid, pick: Filter) {
        self.acts[who.0].links.entry(rid).or_default().hold = Some(pick);
    }

    /// How many are unread.
    #[must_use]
    pub fn held(&self, who: Who, rid: Rid) -> usize {
        self.acts[who.0].links.get(&rid).map_or(0, |l| l.held.len())
    }

    /// They are read now, in order, and no more are held.
    pub fn release(&mut self, who: Who, rid: Rid) {
        let link = self.acts[who.0].links.entry(rid).or_default();
        link.hold = None;
        for (inc, ordinal, request) in std::mem::take(&mut link.held) {
            self.at(0, Cue::Request { who, rid, inc, ordinal, request });
        }
    }

    /// No more are held; those that are, are not read yet.
    pub fn hold_no_more(&mut self, who: Who, rid: Rid) {
        self.acts[who.0].links.entry(rid).or_default().hold = None;
    }

    /// The replica's answers are lost, from now on or no more.
    pub fn lose_answers(&mut self, who: Who, rid: Rid, lose: bool) {
        self.acts[who.0].links.entry(rid).or_default().hold_answers = lose;
    }

    /// A bit of the next write to this replica flips on its way.
    pub fn flip_a_bit(&mut self, who: Who, rid: Rid) {
        self.acts[who.0].links.entry(rid).or_default().corrupt = true;
    }

    /// The connection breaks; a new one is made at once.
    pub fn reconnect(&mut self, who: Who, rid: Rid) {
        self.link_down(who, rid, false);
        self.link_up(who, rid);
    }

    fn transmit(
        &mut self,
        who: Who,
        from: HostId,
        rid: Rid,
        ordinal: Ordinal,
        mut request: Request<HeapPayload>,
    ) {
        let Some(rep) = self.reps.get(&rid) else { return };
        let (to, inc, gone) = (rep.host, rep.inc, rep.machine.is_none() && !rep.lost);
        let cut = self.cuts.contains(&(from, to));
        let link = self.acts[who.0].links.entry(rid).or_default();
        if !link.up {
            return;
        }
        if cut || gone {
            link.lost_something = true;
            return;
        }
        if link.corrupt
            && let Ask::Write { data, .. } = &mut request.ask
        {
            data.bytes_mut()[0] ^= 1;
            link.corrupt = false;
        }
        if link.hold.is_some_and(|pick| pick(&request.ask)) {
            link.held.push_back((inc, ordinal, request));
            return;
        }
        self.at(delay(from, to), Cue::Request { who, rid, inc, ordinal, request });
    }

    fn link_down(&mut self, who: Who, rid: Rid, refused: bool) {
        let link = self.acts[who.0].links.entry(rid).or_default();
        link.up = false;
        link.generation += 1;
        link.lost_something = false;
        if let Some(m) = &mut self.acts[who.0].machine {
            m.handle_link_down(Instant(self.now), rid, refused);
            self.drain(who);
        }
    }

    fn link_up(&mut self, who: Who, rid: Rid) {
        let inc = self.reps[&rid].inc;
        let link = self.acts[who.0].links.entry(rid).or_default();
        (link.up, link.inc) = (true, inc);
        if let Some(m) = &mut self.acts[who.0].machine {
            m.handle_link_up(Instant(self.now), rid);
            self.drain(who);
        }
    }

    fn relink_soon(&mut self) {
        for who in (0..self.acts.len()).map(Who) {
            if self.acts[who.0].machine.is_some() {
                self.at(MS / 2, Cue::Relink { who, again: false });
            }
        }
    }

    /// Makes connections that are wanted and possible, notices those that are broken.
    fn relink(&mut self, who: Who) {
        let host = self.acts[who.0].host;
        let Some(m) = &self.acts[who.0].machine else { return };
        let wanted: Vec<Rid> = m.wanted_links().map(|(rid, _, _)| rid).collect();
        for rid in wanted {
            let Some(rep) = self.reps.get(&rid) else { continue };
            let cut = self.cuts.contains(&(host, rep.host)) || self.cuts.contains(&(rep.host, host));
            let (gone, silent, inc) = (rep.machine.is_none() && !rep.lost, rep.silent, rep.inc);
            let link = self.acts[who.0].links.entry(rid).or_default();
            let broken = link.up && (gone || link.inc != inc || link.lost_something && !link.hold_answers);
            if cut || silent || self.frozen.contains_key(&self.reps[&rid].host) {
                continue;
            }
            if broken || gone {
                self.link_down(who, rid, gone);
            }
            if !gone && !self.acts[who.0].links[&rid].up {
                self.link_up(who, rid);
            }
        }
    }

    // ---- hosts

    /// A host is stopped, as by SIGSTOP; its clock goes on.
    pub fn freeze(&mut self, host: HostId) {
        self.frozen.entry(host).or_default();
    }

    /// It goes on, and finds everything that arrived meanwhile.
    pub fn thaw(&mut self, host: HostId) {
        for cue in self.frozen.remove(&host).unwrap_or_default() {
            self.at(0, cue);
        }
    }

    /// A host's wall clock, in Unix milliseconds, for sessions that open there from now on.
    pub fn set_wall_clock(&mut self, host: HostId, unix_ms: u64) {
        self.wall_ms.insert(host, unix_ms);
    }

    fn see(&mut self, host: HostId, watermark: Watermark) {
        let known = self.watermarks.get_mut(&host).expect("a host of the stage");
        *known = (*known).max(watermark);
        let known = *known;
        for rep in self.reps.values_mut().filter(|r| r.host == host) {
            if let Some(m) = &mut rep.machine {
                m.handle_watermark(known);
            }
        }
    }

    // ---- the store

    /// The record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// A replica's state in the record.
    #[must_use]
    pub fn state(&self, rid: Rid) -> Option<ReplicaState> {
        self.record.replica(rid).map(|e| e.state)
    }

    /// The in-sync members by the record.
    #[must_use]
    pub fn in_sync(&self) -> Vec<Rid> {
        self.record.in_sync().map(|e| e.rid).collect()
    }

    /// Does the record name this session as the owner?
    #[must_use]
    pub fn owns(&self, who: Who) -> bool {
        self.record.owner.is_some_and(|o: Owner| o.session == self.id(who))
    }

    /// What becomes of the next swaps, one each; after them all are answered.
    pub fn next_swaps(&mut self, fates: &[Fate]) {
        self.fates.extend(fates);
    }

    /// Swaps that were given a fate by the script and not yet made.
    #[must_use]
    pub fn fates_left(&self) -> usize {
        self.fates.len()
    }

    /// Swaps that are held back.
    #[must_use]
    pub fn late(&self) -> usize {
        self.late.len()
    }

    /// Applies the swaps that were held back, each if what it replaces still stands there.
    pub fn apply_late(&mut self) -> usize {
        let mut applied = 0;
        for (expect, base, record) in std::mem::take(&mut self.late) {
            if expect == Revision(self.revision) && self.record.nonce == base {
                self.apply(record);
                applied += 1;
            }
        }
        applied
    }

    /// These hosts no longer reach the store.
    pub fn store_away(&mut self, hosts: &[HostId]) {
        self.store_away.extend(hosts);
    }

    /// Nobody reaches the store.
    pub fn store_down(&mut self) {
        self.store_away.extend(HOSTS);
    }

    /// Everybody reaches it again.
    pub fn store_back(&mut self) {
        self.store_away.clear();
    }

    /// Every record that was swapped in, in order.
    #[must_use]
    pub fn swaps(&self) -> &[Record] {
        &self.swaps
    }

    /// Calls that reached the store.
    #[must_use]
    pub fn store_calls(&self) -> u64 {
        self.calls
    }

    /// A copy of the store as it is.
    #[must_use]
    pub fn backup(&self) -> Backup {
        Backup { record: self.record.clone(), revision: self.revision }
    }

    /// The next read is answered from this old copy, as by a member that lags.
    pub fn stale_read(&mut self, backup: Backup) {
        self.stale_read = Some(backup);
    }

    /// The store is put back.
    pub fn restore(&mut self, backup: Backup) {
        self.judged = false;
        (self.record, self.revision) = (backup.record, backup.revision);
    }

    /// A host reads something of the store, linearizably.
    pub fn host_reads_store(&mut self, host: HostId) {
        self.see(host, mark(self.incarnation, self.revision));
    }

    /// `weft store repair`: refuses, naming who is missing, unless every member that the best copy of the record
    /// calls in sync answers, or the operator assents.
    pub fn repair(&mut self, assent: bool) -> Result<(), Rid> {
        let answering = || self.reps.values().filter(|r| r.machine.is_some());
        let copies = answering().filter_map(|r| Record::parse(&r.stored.durable.record).ok());
        let mut best = copies.max_by_key(Record::version).expect("a copy of the record");
        let missing = best.in_sync().map(|e| e.rid).find(|rid| self.reps[rid].machine.is_none());
        if let (Some(rid), false) = (missing, assent) {
            return Err(rid);
        }
        best.epoch = Epoch(best.epoch.0 + REPAIR_EPOCH_JUMP);
        best.rev.0 += 1;
        (best.owner, best.clean, best.nonce) = (None, false, Nonce(0xE1));
        self.incarnation += 1;
        self.revision += 1;
        self.record = best;
        Ok(())
    }

    fn apply(&mut self, record: Record) {
        let old = &self.record;
        let changed =
            old.owner != record.owner || old.in_sync().map(|e| e.rid).ne(record.in_sync().map(|e| e.rid));
        assert!(!changed || record.epoch > old.epoch, "I1: {} after {}", record.epoch, old.epoch);
        record.check().expect("only legal records are swapped in");
        self.revision += 1;
        self.record = record.clone();
        self.swaps.push(record);
    }

    fn store_call(&mut self, who: Who, call: StoreCall) {
        let host = self.acts[who.0].host;
        let seen = mark(self.incarnation, self.revision);
        let answer = |stage: &mut Stage, reply: StoreReply| {
            let watermark = match &reply {
                StoreReply::Unknown | StoreReply::Unavailable | StoreReply::RolledBack => None,
                _ => Some(mark(stage.incarnation, stage.revision)),
            };
            let wait = if reply == StoreReply::Unknown { STORE_PATIENCE_NS } else { STORE_NS / 2 };
            stage.at(wait, Cue::StoreAnswer { who, reply, watermark });
        };
        if self.store_away.contains(&host) {
            return answer(self, StoreReply::Unknown);
        }
        self.calls += 1;
        if seen < self.watermarks[&host] {
            return answer(self, StoreReply::RolledBack);
        }
        let revision = Revision(self.revision);
        match call {
            StoreCall::Get => {
                let reply = match self.stale_read.take() {
                    Some(old) => StoreReply::Record { record: old.record, revision: Revision(old.revision) },
                    None => StoreReply::Record { record: self.record.clone(), revision },
                };
                answer(self, reply);
            }
            StoreCall::Swap { expect, base, record } => {
                let fate = self.fates.pop_front().unwrap_or(Fate::Answered);
                let applies = expect == revision && self.record.nonce == base;
                match fate {
                    Fate::Answered if applies => {
                        self.apply(record);
                        answer(self, StoreReply::Swapped { revision: Revision(self.revision) });
                    }
                    Fate::Answered => {
                        answer(self, StoreReply::Conflict { record: self.record.clone(), revision });
                    }
                    Fate::AppliedUnknown => {
                        if applies {
                            self.apply(record);
                        }
                        answer(self, StoreReply::Unknown);
                    }
                    Fate::LostUnknown => answer(self, StoreReply::Unknown),
                    Fate::LateUnknown => {
                        self.late.push((expect, base, record));
                        answer(self, StoreReply::Unknown);
                    }
                    Fate::Refused => answer(self, StoreReply::Unavailable),
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
        }
    }
}

impl Rep {
    fn run(&mut self, op: &DiskOp<HeapPayload>) -> Result<DiskDone<HeapPayload>, DiskError> {
        if let Some((_, error)) = self.failing.take_if(|(pick, _)| pick(op)) {
            return Err(error);
        }
        self.ran.push(op.clone());
        let (offset, len) = match op {
            DiskOp::Write { offset, data, .. } => (*offset, data.len() as u64),
            DiskOp::Zero { offset, len, .. }
            | DiskOp::Read { offset, len }
            | DiskOp::Kinds { offset, len }
            | DiskOp::Hash { offset, len, .. } => (*offset, *len),
            DiskOp::Flush | DiskOp::Seal | DiskOp::Grow { .. } => (0, 0),
        };
        let blocks = offset / BLOCK..(offset + len) / BLOCK;
        let empty = |block: u64| matches!(self.stored.disk.value(block), ABSENT | ZERO);
        if self.full && matches!(op, DiskOp::Write { .. }) && blocks.clone().any(empty) {
            return Err(DiskError::NoSpace);
        }
        match op {
            DiskOp::Write { .. } | DiskOp::Zero { .. } => self.rotten.retain(|b| !blocks.contains(b)),
            DiskOp::Read { .. } | DiskOp::Hash { .. }
                if self.rotten.range(blocks.clone()).next().is_some() =>
            {
                return Err(DiskError::BitRot);
            }
            _ => {}
        }
        self.stored.disk.run(op)
    }
}

fn mark(incarnation: u64, revision: u64) -> Watermark {
    Watermark { cluster: CLUSTER, incarnation, revision }
}

fn pool_of(host: HostId) -> PoolId {
    PoolId(0x2000 + host.0)
}

fn delay(from: HostId, to: HostId) -> u64 {
    if from == to { 1000 } else { NET_NS }
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
