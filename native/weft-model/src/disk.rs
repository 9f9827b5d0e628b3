//! One replica between its connections and its disk: I/O of a dead process (protocol.md R13), the drain before a
//! promise and an attachment, requests left unread in an old connection (R1), discards (R19), checksums (R22).
//!
//! One block. The process gives requests to the kernel, where they land in any order and at any later time, also when
//! the process is gone. Owners write one after the other (the range lock), send again what was not answered, and are
//! stolen from; the process dies and comes back, the power fails.
//!
//! Must always hold (the oracle):
//! - what was acknowledged, or what the disk held when a promise was given, stays until the owner writes again (I5);
//! - a sound block whose region is sealed has a checksum that fits (no false alarm of bit rot).

use crate::cases::{Case, Expected, SMALL, Setup};
use crate::explore::{Counted, Event, Model, Violation};

const MAX_QUEUE: usize = 3;
const MAX_EPOCHS: usize = 8;

mutations! {
    /// R13: a process starts while requests of the dead one are in the kernel.
    StartBeforeDrain,
    /// R1: a promise is given while I/O of lower epochs is under way.
    PromiseBeforeDrain,
    /// R1: an attachment is answered while I/O of a lower ordinal is under way.
    AttachBeforeDrain,
    /// N7: a request of a lower ordinal executes.
    OldOrdinalExecutes,
    /// R19: a discard is acknowledged before it is durable.
    DiscardWithoutSync,
    /// R22: SEALED is logged before the checksums are durable.
    SealBeforeChecksum,
    /// 4.10: a process that starts takes the checksums of unsealed regions as it finds them.
    ChecksumNotRenewed,
    /// R22: checksums count as soon as the owner has sealed, not this replica.
    OwnersSealCounts,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Writes and discards altogether.
    pub writes: u8,
    /// Deaths of the process, losses of power, steals and broken connections altogether.
    pub faults: u8,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Request {
    /// The number of the write; 0: no request.
    write: u8,
    epoch: u8,
    ordinal: u8,
    /// The run of the process that gave it to the kernel.
    run: u8,
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct State {
    /// On the disk now, and after a loss of power.
    data: u8,
    durable: u8,
    /// The checksum of which write the process has, and has on the disk.
    checksum: u8,
    checksum_durable: u8,
    sealed: bool,
    owner_sealed: bool,
    /// In the kernel; and in a connection, not read yet.
    kernel: [Request; MAX_QUEUE],
    wire: [Request; MAX_QUEUE],
    running: bool,
    run: u8,
    promised: u8,
    /// The highest ordinal of each session; there is one session an epoch here.
    attached: [u8; MAX_EPOCHS],
    /// The owner: its epoch, whether that was promised, its attachment, and whether that was answered.
    epoch: u8,
    has_promise: bool,
    ordinal: u8,
    has_attachment: bool,
    /// The owner's write, not acknowledged yet; 0: none.
    writing: u8,
    /// The write has to be sent (again).
    unsent: bool,
    writes: u8,
    faults: u8,
    /// Oracle: what the disk must hold, while the owner does not write.
    settled: Option<u8>,
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Disk(pub Config);

type Out = Vec<(Event, State)>;

/// Even writes are discards.
fn is_discard(write: u8) -> bool {
    write.is_multiple_of(2)
}

impl Disk {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    /// A process knows only its own requests; the pool's lock (R13) knows all.
    fn drained(state: &State, older: impl Fn(&Request) -> bool) -> bool {
        let own = |request: &&Request| request.write != 0 && request.run == state.run;
        !state.kernel.iter().filter(own).any(older)
    }

    /// R22: whether a checksum that does not fit is bit rot.
    fn counts(&self, state: &State) -> bool {
        state.sealed || (state.owner_sealed && self.broken(Mutation::OwnersSealCounts))
    }

    fn owner(&self, state: &State, out: &mut Out) {
        let mut next = *state;
        if !state.has_attachment {
            let ordinal = state.ordinal;
            let drained =
                Self::drained(state, |request| request.epoch == state.epoch && request.ordinal < ordinal);
            if state.running && (drained || self.broken(Mutation::AttachBeforeDrain)) {
                next.has_attachment = true;
                next.attached[usize::from(state.epoch)] = ordinal;
                next.unsent = state.writing != 0;
                out.push((Event::new("attachment {0} is answered", &[ordinal.into()]), next));
            }
            return;
        }
        if !state.has_promise {
            let drained = Self::drained(state, |request| request.epoch < state.epoch);
            if state.running && (drained || self.broken(Mutation::PromiseBeforeDrain)) {
                next.has_promise = true;
                next.promised = state.epoch;
                next.settled = Some(state.data);
                out.push((Event::new("epoch {0} is promised", &[state.epoch.into()]), next));
            }
            return;
        }
        if state.writing == 0 && state.writes < self.0.writes {
            next.writes += 1;
            next.writing = next.writes;
            next.unsent = true;
            next.settled = None;
            next.sealed = false;
            next.owner_sealed = false;
            let text = if is_discard(next.writes) {
                "the owner begins DISCARD {0}"
            } else {
                "the owner begins WRITE {0}"
            };
            out.push((Event::new(text, &[next.writes.into()]), next));
        }
        let mut next = *state;
        if let Some(free) = state.wire.iter().position(|request| request.write == 0)
            && state.unsent
        {
            next.unsent = false;
            next.wire[free] =
                Request { write: state.writing, epoch: state.epoch, ordinal: state.ordinal, run: 0 };
            out.push((Event::new("it is sent on attachment {0}", &[state.ordinal.into()]), next));
        }
        if state.writing == 0 && !state.owner_sealed && state.writes > 0 {
            let mut next = *state;
            next.owner_sealed = true;
            out.push((Event::new("the owner seals", &[]), next));
        }
    }

    fn process(&self, state: &State, out: &mut Out) {
        if !state.running {
            let drained = state.kernel.iter().all(|request| request.write == 0)
                || self.broken(Mutation::StartBeforeDrain);
            if drained {
                let mut next = *state;
                next.running = true;
                next.run += 1;
                if !self.counts(state) && !self.broken(Mutation::ChecksumNotRenewed) {
                    next.checksum = state.data;
                }
                out.push((Event::new("the process starts", &[]), next));
            }
            return;
        }
        for (at, request) in state.wire.iter().enumerate().filter(|(_, request)| request.write != 0) {
            let mut next = *state;
            next.wire[at] = Request::default();
            let old = self.broken(Mutation::OldOrdinalExecutes)
                || request.ordinal == state.attached[usize::from(request.epoch)];
            let free = state.kernel.iter().position(|slot| slot.write == 0);
            if let (true, true, Some(free)) = (request.epoch == state.promised, old, free) {
                next.kernel[free] = Request { run: state.run, ..*request };
                out.push((Event::new("request {0} is given to the kernel", &[request.write.into()]), next));
            } else {
                out.push((Event::new("request {0} is refused", &[request.write.into()]), next));
            }
        }
        if state.owner_sealed && !state.sealed {
            let mut next = *state;
            next.sealed = true;
            if !self.broken(Mutation::SealBeforeChecksum) {
                next.checksum_durable = state.checksum;
            }
            out.push((Event::new("the replica logs SEALED", &[]), next));
        }
        if state.checksum_durable != state.checksum {
            let mut next = *state;
            next.checksum_durable = state.checksum;
            out.push((Event::new("the checksum is written back", &[]), next));
        }
    }

    fn kernel(&self, state: &State, out: &mut Out) {
        for (at, request) in state.kernel.iter().enumerate().filter(|(_, request)| request.write != 0) {
            let mut next = *state;
            next.kernel[at] = Request::default();
            next.data = request.write;
            if !is_discard(request.write) || !self.broken(Mutation::DiscardWithoutSync) {
                next.durable = request.write;
            }
            if state.running {
                next.checksum = request.write;
                let current = request.epoch == state.epoch && request.ordinal == state.ordinal;
                if current && state.has_attachment && state.writing == request.write {
                    next.writing = 0;
                    next.settled = Some(request.write);
                }
            }
            out.push((
                Event::new("request {0} lands on the disk", &[request.write.into()])
                    .counts(Counted::WriteAcked),
                next,
            ));
        }
    }

    fn faults(&self, state: &State, out: &mut Out) {
        if state.faults == self.0.faults {
            return;
        }
        let mut fault = |text, edit: &dyn Fn(&mut State)| {
            let mut next = *state;
            next.faults += 1;
            edit(&mut next);
            out.push((Event::new(text, &[]).rare(6), next));
        };
        let attach = |next: &mut State| {
            next.ordinal += 1;
            next.has_attachment = false;
        };
        if state.running {
            // The kernel keeps what it has; what was unread in a connection is gone with the process.
            let dies = |next: &mut State| {
                next.running = false;
                next.wire = Default::default();
                next.checksum = next.checksum_durable;
                attach(next);
            };
            fault("the process DIES", &dies);
            fault("the POWER fails", &|next| {
                dies(next);
                next.kernel = Default::default();
                next.data = next.durable;
                next.checksum = next.checksum_durable;
            });
        }
        fault("the connection breaks", &attach);
        fault("another session STEALS", &|next| {
            next.epoch += 1;
            next.ordinal = 0;
            next.has_promise = false;
            next.has_attachment = false;
            next.writing = 0;
            next.unsent = false;
            next.settled = None;
        });
    }
}

impl Model for Disk {
    type State = State;
    type Step = Event;

    fn initial(&self) -> State {
        State { running: true, epoch: 1, ..State::default() }
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        if state.settled.is_some_and(|settled| settled != state.data) {
            let promise = "what was acknowledged or promised stays until the owner writes again";
            let observation = format!("the disk holds {}, not {:?}", state.data, state.settled);
            return Err(Violation { promise, observation });
        }
        let counts = self.counts(state);
        if state.running && counts && state.checksum != state.data && !is_discard(state.data) {
            let promise = "a sound block of a sealed region has a checksum that fits";
            let observation =
                format!("write {} is there, the checksum is that of {}", state.data, state.checksum);
            return Err(Violation { promise, observation });
        }
        self.owner(state, out);
        self.process(state, out);
        self.kernel(state, out);
        self.faults(state, out);
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        let under_way: Vec<_> = state.kernel.iter().filter(|r| r.write != 0).map(|r| r.write).collect();
        format!(
            "disk={} durable={} kernel={under_way:?} running={} promised={} owner(E={} attachment {} writes {})",
            state.data,
            state.durable,
            state.running,
            state.promised,
            state.epoch,
            state.ordinal,
            state.writing
        )
    }
}

const BOUNDS: Config = Config { writes: 3, faults: 2, mutation: None };

broken_cases!(Disk);

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    broken(
        "disk-start-before-drain",
        "R13 a process starts beside the ghost of the last",
        BOUNDS,
        Mutation::StartBeforeDrain,
        Expected::Steps(11),
    ),
    broken(
        "disk-promise-before-drain",
        "R1, F6 a promise while older I/O is under way",
        BOUNDS,
        Mutation::PromiseBeforeDrain,
        Expected::Steps(9),
    ),
    broken(
        "disk-attach-before-drain",
        "R1, F10 an attachment while older I/O is under way",
        BOUNDS,
        Mutation::AttachBeforeDrain,
        Expected::Steps(15),
    ),
    broken(
        "disk-old-ordinal-executes",
        "N7 an unread request of an old attachment executes",
        BOUNDS,
        Mutation::OldOrdinalExecutes,
        Expected::Steps(15),
    ),
    broken(
        "disk-discard-without-sync",
        "R19, N8 a discard is acknowledged from the cache",
        BOUNDS,
        Mutation::DiscardWithoutSync,
        Expected::Steps(11),
    ),
    broken(
        "disk-seal-before-checksum",
        "R22 SEALED before the checksums are durable",
        BOUNDS,
        Mutation::SealBeforeChecksum,
        Expected::Steps(10),
    ),
    broken(
        "disk-checksum-not-renewed",
        "4.10 checksums of unsealed regions are not computed anew at a start",
        BOUNDS,
        Mutation::ChecksumNotRenewed,
        Expected::Steps(10),
    ),
    broken(
        "disk-owners-seal-counts",
        "R22 checksums count by the owner's seal",
        BOUNDS,
        Mutation::OwnersSealCounts,
        Expected::Steps(9),
    ),
    Case {
        name: "disk",
        rule: "R1, R13, R19, R22: four writes, four faults",
        setup: Setup::Disk(Config { writes: 4, faults: 4, ..BOUNDS }),
        max_states: SMALL,
        expected: Expected::Exhausted,
    },
];
