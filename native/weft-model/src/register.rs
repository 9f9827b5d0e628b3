//! Register mode (protocol.md 4.17): one block as a multi-writer atomic register on a majority of configured replicas,
//! without an owner, and the change of its replicas.
//!
//! Writers ask a majority for its tags and store (highest counter + 1, writer) on a majority; readers store what they
//! return on a majority first, unless it was unanimous. A change of replicas: a swap that raises the epoch, promises
//! of a majority of the old ones (with their tags), the highest copied to a majority of the new ones, a swap that
//! makes them the configuration. Messages are delayed or lost, requests given up and started anew while their messages
//! are still under way, changes die half-way and others begin, a replica loses its disk.
//!
//! Must always hold (the oracle, I28): a read returns no older tag than what had completed, or had been returned, when
//! it began; a write's tag is above all of them; one tag stands for one value. Together: the block is linearisable.

use core::fmt::Write as _;

use crate::cases::{Case, Expected, SMALL, Setup, unbroken};
use crate::explore::{Counted, Event, Model, Violation};
use crate::mask::Mask;

const MAX_REPLICAS: usize = 4;
const MAX_CLIENTS: usize = 2;
/// The same, for tags.
const WRITERS: u8 = 2;
const MAX_CHANGES: usize = 2;
const MAX_COUNTER: usize = 4;

mutations! {
    /// A read returns what is on a minority without storing it.
    NoWriteBack,
    /// A write takes the next counter it knows, without asking.
    NoQuery,
    /// A majority of the replicas that can be reached, not of those configured.
    OneIsEnough,
    /// A replica that lost its disk goes on voting.
    LostVotes,
    /// A replica that lost its disk promises for the old configuration.
    LostPromises,
    /// A new disk votes as soon as the record names it, without a promise of the record's epoch.
    ReturnsWithoutPromise,
    /// A change names whatever disk a member has when it is made, not the one that was copied to.
    NamesLaterDisk,
    /// A change copies what it has read without promises.
    NoPromise,
    /// One promise is enough.
    PromiseOfOne,
    /// One copy is enough.
    CopyToOne,
    /// Answers of the old configuration count in the new one.
    AnswersAcrossChange,
    /// A writer forgets the counters it has used: a restart, or a request given up.
    CounterForgotten,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Replicas, at most 4; the first three are configured.
    pub replicas: usize,
    /// Hosts that read and write.
    pub clients: usize,
    /// Writes and reads altogether.
    pub writes: u8,
    /// Reads altogether.
    pub reads: u8,
    /// Requests that may be given up.
    pub given_up: u8,
    /// Changes of the configuration, at most 2.
    pub changes: usize,
    /// Disks that may be lost.
    pub losses: u8,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

/// Counter and writer in one number that orders as the pair does; 0: nothing written.
type Tag = u8;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Slot {
    tag: Tag,
    value: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Replica {
    promised: u8,
    slot: Slot,
    disk: Disk,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Disk {
    #[default]
    Votes,
    /// Not the one that the configuration names.
    Lost,
    /// The configuration names it; it has not promised the epoch in which it came.
    Returned,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Phase {
    #[default]
    Idle,
    Query,
    Store,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Client {
    phase: Phase,
    writes: bool,
    /// The value to be written.
    value: u8,
    /// The best that was answered; in `Store`, what is stored.
    slot: Slot,
    unanimous: bool,
    sent: Mask,
    answered: Mask,
    /// The configuration that it knows.
    epoch: u8,
    members: Mask,
    /// The highest counter that it has used.
    used: u8,
    /// A store that is still under way after its request has ended.
    stray: Slot,
    stray_sent: Mask,
    stray_epoch: u8,
    /// Oracle: what had completed when the request began.
    floor: Tag,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Promising,
    Copying,
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Change {
    stage: Stage,
    epoch: u8,
    from: Mask,
    to: Mask,
    /// Whose new disk it names.
    new_disks: Mask,
    slot: Slot,
    sent: Mask,
    answered: Mask,
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// The record: epoch, members, and the epoch at which they became the configuration.
    epoch: u8,
    members: Mask,
    since: u8,
    replicas: [Replica; MAX_REPLICAS],
    clients: [Client; MAX_CLIENTS],
    changes: [Change; MAX_CHANGES],
    writes: u8,
    reads: u8,
    given_up: u8,
    losses: u8,
    /// Oracle: the highest tag that completed or was returned, and the value that each tag stands for.
    done: Tag,
    values: [u8; MAX_COUNTER * MAX_CLIENTS + MAX_CLIENTS],
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Register(pub Config);

type Out = Vec<(Event, State)>;

impl Register {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    fn majority(&self, answered: Mask, members: Mask) -> bool {
        let got = answered.and(members).len();
        got * 2 > members.len() || (got > 0 && self.broken(Mutation::OneIsEnough))
    }

    fn votes(&self, replica: &Replica) -> bool {
        replica.disk == Disk::Votes || self.broken(Mutation::LostVotes)
    }

    fn begin(&self, state: &State, c: usize, writes: bool) -> State {
        let mut next = *state;
        let used = state.clients[c].used;
        let client = &mut next.clients[c];
        let query = !writes || !self.broken(Mutation::NoQuery);
        client.phase = if query { Phase::Query } else { Phase::Store };
        client.writes = writes;
        client.unanimous = true;
        client.sent = client.members;
        client.answered = Mask::EMPTY;
        client.slot = Slot::default();
        client.floor = state.done;
        if writes {
            next.writes += 1;
            client.value = next.writes;
            if !query {
                client.slot = Slot { tag: tag(used + 1, c), value: client.value };
                client.used = used + 1;
            }
        } else {
            next.reads += 1;
        }
        next
    }

    fn client(&self, state: &State, c: usize, out: &mut Out) -> Result<(), Violation> {
        let client = &state.clients[c];
        if client.phase == Phase::Idle {
            if state.writes < self.0.writes {
                out.push((Event::new("h{0} begins a write", &[c]), self.begin(state, c, true)));
            }
            if state.reads < self.0.reads {
                out.push((Event::new("h{0} begins a read", &[c]), self.begin(state, c, false)));
            }
            return Ok(());
        }
        for r in client.sent.iter() {
            let replica = &state.replicas[r];
            if client.epoch < replica.promised || !self.votes(replica) {
                continue; // refused: as if lost
            }
            let mut next = *state;
            let asker = &mut next.clients[c];
            asker.sent = client.sent.without(r);
            if client.phase == Phase::Query {
                asker.unanimous =
                    client.answered.is_empty() || (client.unanimous && client.slot.tag == replica.slot.tag);
                if replica.slot.tag > client.slot.tag {
                    asker.slot = replica.slot;
                }
                out.push((Event::new("r{1} tells h{0} its tag", &[c, r]), next));
            } else {
                store(&mut next.replicas[r], client.slot);
                out.push((Event::new("r{1} stores h{0}'s value", &[c, r]), next));
            }
            out.last_mut().expect("just pushed").1.clients[c].answered = client.answered.with(r);
        }
        if self.majority(client.answered, client.members) {
            if client.phase == Phase::Query {
                self.asked(state, c, out)?;
            } else {
                self.completed(state, c, out)?;
            }
        }
        if state.given_up < self.0.given_up {
            let mut next = *state;
            next.given_up += 1;
            self.end(&mut next, c);
            if self.broken(Mutation::CounterForgotten) {
                next.clients[c].used = 0;
            }
            out.push((Event::new("h{0} gives its request up", &[c]).rare(4), next));
        }
        Ok(())
    }

    fn asked(&self, state: &State, c: usize, out: &mut Out) -> Result<(), Violation> {
        let client = &state.clients[c];
        if !client.writes && (client.unanimous || self.broken(Mutation::NoWriteBack)) {
            return self.completed(state, c, out);
        }
        let mut next = *state;
        let asker = &mut next.clients[c];
        asker.phase = Phase::Store;
        asker.sent = client.members;
        asker.answered = Mask::EMPTY;
        if client.writes {
            let counter = (client.slot.tag / WRITERS).max(client.used) + 1;
            if usize::from(counter) > MAX_COUNTER {
                return Ok(());
            }
            asker.used = if self.broken(Mutation::CounterForgotten) { 0 } else { counter };
            asker.slot = Slot { tag: tag(counter, c), value: client.value };
        }
        out.push((Event::new("h{0} has asked a majority, stores", &[c]), next));
        Ok(())
    }

    fn completed(&self, state: &State, c: usize, out: &mut Out) -> Result<(), Violation> {
        let client = &state.clients[c];
        let slot = client.slot;
        let number = usize::from(slot.tag);
        let what = if client.writes { "write" } else { "read" };
        let observation = format!("h{c}'s {what} completes with value {} (tag {})", slot.value, slot.tag);
        if slot.tag < client.floor || (client.writes && slot.tag == client.floor) {
            let promise = "no request goes back behind what had completed when it began";
            return Err(Violation { promise, observation });
        }
        if slot.tag > 0 && state.values[number] != 0 && state.values[number] != slot.value {
            let promise = "one tag stands for one value";
            return Err(Violation { promise, observation });
        }
        let mut next = *state;
        next.done = state.done.max(slot.tag);
        next.values[number] = slot.value;
        self.end(&mut next, c);
        let counted = if client.writes { Counted::WriteAcked } else { Counted::ReadServed };
        let text = if client.writes { "h{0}'s write completes" } else { "h{0}'s read returns value {1}" };
        out.push((Event::new(text, &[c, slot.value.into()]).counts(counted), next));
        Ok(())
    }

    fn end(&self, next: &mut State, c: usize) {
        let client = next.clients[c];
        let mut idle = Client {
            epoch: client.epoch,
            members: client.members,
            used: client.used,
            stray: client.stray,
            stray_sent: client.stray_sent,
            stray_epoch: client.stray_epoch,
            ..Client::default()
        };
        if client.phase == Phase::Store && client.writes && !client.sent.is_empty() {
            idle.stray = client.slot;
            idle.stray_sent = client.sent;
            idle.stray_epoch = client.epoch;
        }
        next.clients[c] = idle;
    }

    /// A host reads the record again; requests begin anew in what it says, stores keep their tag.
    fn refresh(&self, state: &State, c: usize, out: &mut Out) {
        let client = &state.clients[c];
        if client.epoch == state.epoch || state.since != state.epoch {
            return;
        }
        let mut next = *state;
        let asker = &mut next.clients[c];
        asker.epoch = state.epoch;
        asker.members = state.members;
        if client.phase != Phase::Idle {
            asker.sent = state.members;
            if self.broken(Mutation::AnswersAcrossChange) {
                asker.sent = state.members.minus(client.answered);
            } else {
                asker.answered = Mask::EMPTY;
                asker.unanimous = true;
                if client.phase == Phase::Query {
                    asker.slot = Slot::default();
                }
            }
        }
        out.push((Event::new("h{0} reads the record: epoch {1}", &[c, state.epoch.into()]), next));
    }

    fn stray(&self, state: &State, c: usize, out: &mut Out) {
        let client = &state.clients[c];
        for r in client.stray_sent.iter() {
            if client.stray_epoch < state.replicas[r].promised || !self.votes(&state.replicas[r]) {
                continue;
            }
            let mut next = *state;
            store(&mut next.replicas[r], client.stray);
            next.clients[c].stray_sent = client.stray_sent.without(r);
            out.push((Event::new("r{1} stores an older value of h{0}, late", &[c, r]), next));
        }
    }

    fn change(&self, state: &State, k: usize, out: &mut Out) {
        let change = &state.changes[k];
        let current = state.epoch == change.epoch && state.since != state.epoch;
        match change.stage {
            Stage::Idle => {
                if k > 0 && state.changes[k - 1].stage == Stage::Idle {
                    return;
                }
                for to in self.next_members(state) {
                    let mut next = *state;
                    next.epoch += 1;
                    next.changes[k] = Change {
                        stage: Stage::Promising,
                        epoch: next.epoch,
                        from: state.members,
                        to,
                        new_disks: Self::lost(state),
                        sent: state.members,
                        ..Change::default()
                    };
                    let bits = usize::from(to.0);
                    out.push((Event::new("a change begins (CAS): members become {0} (bits)", &[bits]), next));
                }
            }
            Stage::Promising => {
                for r in change.sent.iter() {
                    let replica = &state.replicas[r];
                    let may = replica.disk == Disk::Votes || self.broken(Mutation::LostPromises);
                    if replica.promised >= change.epoch || !may {
                        continue;
                    }
                    let mut next = *state;
                    if !self.broken(Mutation::NoPromise) {
                        next.replicas[r].promised = change.epoch;
                    }
                    let asker = &mut next.changes[k];
                    asker.sent = change.sent.without(r);
                    asker.answered = change.answered.with(r);
                    if replica.slot.tag > change.slot.tag {
                        asker.slot = replica.slot;
                    }
                    out.push((
                        Event::new("r{0} promises epoch {1}, tells its tag", &[r, change.epoch.into()]),
                        next,
                    ));
                }
                let one = self.broken(Mutation::PromiseOfOne) && !change.answered.is_empty();
                if self.majority(change.answered, change.from) || one {
                    let mut next = *state;
                    next.changes[k].stage = Stage::Copying;
                    next.changes[k].sent = change.to;
                    next.changes[k].answered = Mask::EMPTY;
                    out.push((Event::new("the change copies", &[]), next));
                }
            }
            Stage::Copying => {
                for r in change.sent.iter() {
                    if state.replicas[r].promised > change.epoch {
                        continue;
                    }
                    let mut next = *state;
                    store(&mut next.replicas[r], change.slot);
                    next.changes[k].sent = change.sent.without(r);
                    next.changes[k].answered = change.answered.with(r);
                    out.push((Event::new("r{0} has the copy", &[r]), next));
                }
                let one = self.broken(Mutation::CopyToOne) && !change.answered.is_empty();
                if current && (self.majority(change.answered, change.to) || one) {
                    let mut next = *state;
                    next.members = change.to;
                    next.since = next.epoch;
                    next.changes[k] = Change { stage: Stage::Ended, ..Change::default() };
                    let later = self.broken(Mutation::NamesLaterDisk);
                    let named = if later { Self::lost(state) } else { change.new_disks };
                    let voting = self.broken(Mutation::ReturnsWithoutPromise);
                    for r in change.to.and(named).iter() {
                        next.replicas[r].disk = if voting { Disk::Votes } else { Disk::Returned };
                    }
                    out.push((Event::new("the change is made (CAS)", &[]).counts(Counted::Admitted), next));
                }
            }
            Stage::Ended => {}
        }
        if !current && !matches!(change.stage, Stage::Idle | Stage::Ended) {
            let mut next = *state;
            next.changes[k] = Change { stage: Stage::Ended, ..Change::default() };
            out.push((Event::new("an overtaken change ends", &[]), next));
        }
    }

    fn lost(state: &State) -> Mask {
        (0..MAX_REPLICAS).filter(|r| state.replicas[*r].disk == Disk::Lost).fold(Mask::EMPTY, Mask::with)
    }

    /// One member replaced by one that is not; or the same members with a new disk.
    fn next_members(&self, state: &State) -> Vec<Mask> {
        let all = Mask::first(self.0.replicas);
        let mut possible = Vec::new();
        for (out, into) in
            state.members.iter().flat_map(|out| all.minus(state.members).iter().map(move |into| (out, into)))
        {
            possible.push(state.members.without(out).with(into));
        }
        if !state.members.and(Self::lost(state)).is_empty() {
            possible.push(state.members);
        }
        possible
    }
}

fn tag(counter: u8, client: usize) -> Tag {
    counter * WRITERS + u8::try_from(client).expect("two clients")
}

fn store(replica: &mut Replica, slot: Slot) {
    if slot.tag > replica.slot.tag {
        replica.slot = slot;
    }
}

impl Model for Register {
    type State = State;
    type Step = Event;

    fn initial(&self) -> State {
        let members = Mask::first(3);
        let mut state = State {
            epoch: 1,
            members,
            since: 1,
            replicas: Default::default(),
            clients: Default::default(),
            changes: Default::default(),
            writes: 0,
            reads: 0,
            given_up: 0,
            losses: 0,
            done: 0,
            values: Default::default(),
        };
        for client in &mut state.clients {
            client.epoch = 1;
            client.members = members;
        }
        state
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        for c in 0..self.0.clients {
            self.client(state, c, out)?;
            self.refresh(state, c, out);
            self.stray(state, c, out);
        }
        for k in 0..self.0.changes {
            self.change(state, k, out);
        }
        for r in 0..self.0.replicas {
            if state.replicas[r].disk == Disk::Returned && state.since == state.epoch {
                let mut next = *state;
                next.replicas[r].disk = Disk::Votes;
                next.replicas[r].promised = state.epoch;
                out.push((Event::new("r{0} promises epoch {1} and votes", &[r, state.epoch.into()]), next));
            }
            if state.losses < self.0.losses && state.replicas[r].disk == Disk::Votes && state.members.has(r) {
                let mut next = *state;
                next.losses += 1;
                next.replicas[r] = Replica { disk: Disk::Lost, ..Replica::default() };
                out.push((Event::new("r{0} loses its disk", &[r]).rare(10), next));
            }
        }
        for (_, next) in out.iter_mut() {
            for client in &mut next.clients {
                if client.stray_sent.is_empty() {
                    client.stray = Slot::default();
                    client.stray_epoch = 0;
                }
            }
        }
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        let mut line = format!("record(E={} members={:04b})", state.epoch, state.members.0);
        for (r, replica) in state.replicas.iter().enumerate().take(self.0.replicas) {
            let lost = if replica.disk == Disk::Votes { "" } else { " lost" };
            let Slot { tag, value } = replica.slot;
            let _ = write!(line, " r{r}(E={} tag={tag} value={value}{lost})", replica.promised);
        }
        line
    }
}

const STEADY: Config = Config {
    replicas: 3,
    clients: 2,
    writes: 2,
    reads: 1,
    given_up: 1,
    changes: 0,
    losses: 0,
    mutation: None,
};
const CHANGING: Config = Config { replicas: 4, writes: 1, reads: 1, given_up: 0, changes: 1, ..STEADY };
const LOSING: Config = Config { replicas: 3, losses: 1, ..CHANGING };

broken_cases!(Register);

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    broken(
        "register-no-write-back",
        "4.17 a read returns what a minority has",
        Config { reads: 2, ..STEADY },
        Mutation::NoWriteBack,
        Expected::Steps(12),
    ),
    broken(
        "register-no-query",
        "4.17 a write does not ask for tags",
        STEADY,
        Mutation::NoQuery,
        Expected::Steps(7),
    ),
    broken(
        "register-one-is-enough",
        "4.17 a majority of the reachable, not of the configured",
        STEADY,
        Mutation::OneIsEnough,
        Expected::Steps(7),
    ),
    broken(
        "register-counter-forgotten",
        "a writer forgets the counters that it has used",
        Config { reads: 2, ..STEADY },
        Mutation::CounterForgotten,
        Expected::Steps(16),
    ),
    broken(
        "register-lost-votes",
        "D17 a replica that lost its disk votes",
        Config { changes: 0, ..LOSING },
        Mutation::LostVotes,
        Expected::Steps(11),
    ),
    broken(
        "register-lost-promises",
        "D17 a replica that lost its disk promises for the old configuration",
        LOSING,
        Mutation::LostPromises,
        Expected::Steps(20),
    ),
    broken(
        "register-returns-without-promise",
        "a new disk votes without a promise of its epoch",
        LOSING,
        Mutation::ReturnsWithoutPromise,
        Expected::Steps(18),
    ),
    broken(
        "register-names-later-disk",
        "a change names a disk that it has not copied to",
        Config { clients: 1, losses: 1, ..CHANGING },
        Mutation::NamesLaterDisk,
        Expected::Steps(20),
    ),
    broken(
        "register-no-promise",
        "4.17 a change copies without promises",
        CHANGING,
        Mutation::NoPromise,
        Expected::Steps(18),
    ),
    broken(
        "register-promise-of-one",
        "4.17 one promise is enough",
        CHANGING,
        Mutation::PromiseOfOne,
        Expected::Steps(17),
    ),
    broken(
        "register-copy-to-one",
        "4.17 one copy is enough",
        CHANGING,
        Mutation::CopyToOne,
        Expected::Steps(17),
    ),
    broken(
        "register-answers-across-change",
        "answers of the old configuration count in the new one",
        CHANGING,
        Mutation::AnswersAcrossChange,
        Expected::Steps(18),
    ),
    unbroken(
        "register",
        "4.17, two writers, one request given up",
        Setup::Register(STEADY),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "register-change",
        "4.17, a change of replicas",
        Setup::Register(CHANGING),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "register-lost-disk",
        "4.17, a lost disk and its return",
        Setup::Register(LOSING),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "register-change-and-loss",
        "4.17, one host, a change of replicas and a lost disk",
        Setup::Register(Config { clients: 1, losses: 1, ..CHANGING }),
        SMALL,
        Expected::Exhausted,
    ),
    unbroken(
        "register-two-changes",
        "4.17, one host, two changes, the first may die half-way",
        Setup::Register(Config { clients: 1, changes: 2, ..CHANGING }),
        500_000,
        Expected::Bounded,
    ),
    unbroken(
        "register-everything",
        "4.17, two hosts, two changes, a lost disk, a request given up",
        Setup::Register(Config { changes: 2, losses: 1, given_up: 1, writes: 2, ..CHANGING }),
        500_000,
        Expected::Bounded,
    ),
];
