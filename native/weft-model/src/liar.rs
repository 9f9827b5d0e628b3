//! A host with a valid identity that lies: promises verified with the store, and attachments bound to their host
//! (protocol.md R1, R11).
//!
//! One volume, up to two replicas, two honest hosts with one session each, and a liar that may send any ATTACH, any PROMISE with
//! a record of its own making, and requests in anybody's session. The honest ones open, steal and reconfigure by swaps.
//! A replica reads the store before its promise rises; it may be cut off from it at times, and restart.
//!
//! Must always hold (the oracle), of a replica that never had to believe a promise while it was cut off from the store:
//! - it executes nothing of the liar, and refuses no attachment of an honest session because of it;
//! - the owner that the store names is never refused its promise: the volume is not bricked;
//!
//! and of every replica:
//! - its promise is at most [`Config::jump`] above what the store shows.

use crate::cases::{Case, Expected, Setup};
use crate::explore::{Event, Model, Violation};
use crate::mask::Mask;

const REPLICAS: usize = 2;
/// Two honest hosts; host i's session is session i.
const HONEST: usize = 2;
const LIAR: usize = 2;
const HOSTS: usize = 3;
const EPOCHS: usize = 5;

mutations! {
    /// A promise that is at most a jump above the last one is believed without a read of the store.
    NearJumpUnverified,
    /// The store's record must have the epoch or a later one; whom it names is not compared.
    VerifyEpochOnly,
    /// Attachments and promises are bound to the session alone: whoever names it is it.
    AttachUnbound,
    /// While the store is away, the jump counts from the last promise instead of the last one that was verified.
    JumpFromPromise,
    /// A replica that starts takes the promise on its disk for a verified one.
    StartBelieves,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Replicas, at most 2. The first session owns the volume and has the promise of each.
    pub replicas: usize,
    /// Honest swaps go up to this epoch.
    pub max_epoch: u8,
    /// How far above the last verified epoch a promise may go while the store is away: 16 in the code.
    pub jump: u8,
    /// Replicas may be cut off from the store, and restart.
    pub away: bool,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

/// A session, as a host names it: (host, session).
type Name = (u8, u8);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Replica {
    promised: u8,
    to: Name,
    /// The highest epoch that a read of the store has shown to be the promiser's; none since the last start.
    verified: Option<u8>,
    away: bool,
    /// Oracle: it believed a promise without a read.
    believed: bool,
    /// What each host has asked and is being verified: (epoch, session).
    asked: [Option<(u8, u8)>; HOSTS],
    /// Hosts with a live attachment in the session of each honest host.
    live: [Mask; HONEST],
    /// The liar has used up all ordinals of a session (only without binding).
    locked: Mask,
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    epoch: u8,
    /// Who owned the volume at each epoch; the last one owns it now.
    owners: [u8; EPOCHS + 1],
    replicas: [Replica; REPLICAS],
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Liar(pub Config);

type Out = Vec<(Event, State)>;

impl Liar {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    /// Is who asks the one that was promised?
    fn same(&self, replica: &Replica, name: Name) -> bool {
        replica.to == name || self.broken(Mutation::AttachUnbound) && replica.to.1 == name.1
    }

    /// PROMISE arrives. Answers whether it was refused for an epoch that is promised to somebody else, or a higher one.
    fn promise(&self, replica: &mut Replica, epoch: u8, name: Name) -> bool {
        if epoch < replica.promised || epoch == replica.promised && !self.same(replica, name) {
            return true;
        }
        if epoch == replica.promised {
            replica.to = name;
            return false;
        }
        if self.broken(Mutation::NearJumpUnverified) && epoch <= replica.promised + self.0.jump {
            (replica.promised, replica.to) = (epoch, name);
        } else {
            replica.asked[usize::from(name.0)] = Some((epoch, name.1));
        }
        false
    }

    /// The read that the promise waited for, or what it is without one.
    fn verify(&self, state: &State, r: usize, host: usize) -> Replica {
        let mut replica = state.replicas[r];
        let Some((epoch, session)) = replica.asked[host].take() else { return replica };
        let name = (index(host), session);
        if epoch <= replica.promised {
            return replica;
        }
        let owner = state.owners[usize::from(state.epoch)];
        let shown = match self.broken(Mutation::VerifyEpochOnly) {
            true => epoch <= state.epoch,
            // An owner's next swap may be there already.
            false => epoch <= state.epoch && name == (owner, owner),
        };
        let from = match self.broken(Mutation::JumpFromPromise) {
            true => Some(replica.promised),
            false => replica.verified,
        };
        let near = from.is_some_and(|from| epoch <= from + self.0.jump);
        if replica.away && near {
            replica.believed = true;
        } else if !replica.away && shown {
            replica.verified = Some(epoch);
        } else {
            return replica;
        }
        (replica.promised, replica.to) = (epoch, name);
        replica
    }

    fn swaps(&self, state: &State, out: &mut Out) {
        if state.epoch >= self.0.max_epoch {
            return;
        }
        for c in 0..HONEST {
            let mut next = *state;
            next.epoch += 1;
            next.owners[usize::from(next.epoch)] = index(c);
            let stays = usize::from(state.owners[usize::from(state.epoch)]) == c;
            let text = if stays { "s{0} reconfigures (CAS)" } else { "s{0} steals (CAS)" };
            out.push((Event::new(text, &[c]).rare(4), next));
        }
    }

    fn honest(&self, state: &State, r: usize, c: usize, out: &mut Out) -> Result<(), Violation> {
        let replica = &state.replicas[r];
        if replica.locked.has(c) {
            let promise = "an honest session is attached whatever others have sent";
            return Err(Violation { promise, observation: format!("r{r} refuses s{c}") });
        }
        if !replica.live[c].has(c) {
            let mut next = *state;
            next.replicas[r].live[c] = replica.live[c].with(c);
            out.push((Event::new("s{0} attaches to r{1}", &[c, r]), next));
            return Ok(());
        }
        for epoch in 1..=state.epoch {
            // An evicted owner's promise may still be on its way.
            if usize::from(state.owners[usize::from(epoch)]) != c {
                continue;
            }
            let mut next = *state;
            let refused = self.promise(&mut next.replicas[r], epoch, (index(c), index(c)));
            let owns = epoch == state.epoch;
            if refused && owns && !replica.believed {
                let promise = "the owner that the store names gets its promise";
                let observation = format!("r{r} has promised {} to {:?}", replica.promised, replica.to);
                return Err(Violation { promise, observation });
            }
            if next != *state {
                let event = Event::new("s{0} asks r{1} for epoch {2}", &[c, r, usize::from(epoch)]);
                out.push((event, next));
            }
        }
        Ok(())
    }

    fn liar(&self, state: &State, r: usize, out: &mut Out) -> Result<(), Violation> {
        let replica = &state.replicas[r];
        for s in 0..HONEST {
            let mut next = *state;
            if self.broken(Mutation::AttachUnbound) {
                // The newest attachment of the session: older ones execute nothing more.
                next.replicas[r].live[s] = Mask::one(LIAR);
                next.replicas[r].locked = replica.locked.with(s);
            } else if replica.to != (index(s), index(s)) {
                // Refused in the promised session; harmless in any other.
                next.replicas[r].live[s] = replica.live[s].with(LIAR);
            }
            if next != *state {
                out.push((Event::new("the LIAR attaches to r{1} in the session of s{0}", &[s, r]), next));
            }
        }
        for session in 0..HOSTS {
            let name = (index(LIAR), index(session));
            let attached = session == LIAR || replica.live[session].has(LIAR);
            let bound = replica.to == name || self.broken(Mutation::AttachUnbound);
            let promised = replica.promised > 0 && usize::from(replica.to.1) == session && bound;
            if attached && promised && !replica.believed {
                let promise = "a replica executes nothing of a host that the store does not name";
                let observation = format!("r{r} writes for the liar in session {session}");
                return Err(Violation { promise, observation });
            }
            for epoch in 1..=self.0.max_epoch + 2 * self.0.jump + 1 {
                if !attached {
                    continue;
                }
                let mut next = *state;
                self.promise(&mut next.replicas[r], epoch, name);
                if next != *state {
                    let text = "the LIAR asks r{0} for epoch {1}, in session {2}";
                    out.push((Event::new(text, &[r, usize::from(epoch), session]), next));
                }
            }
        }
        Ok(())
    }

    fn replica(&self, state: &State, r: usize, out: &mut Out) -> Result<(), Violation> {
        let replica = state.replicas[r];
        if replica.promised > state.epoch + self.0.jump {
            let promise = "a promise is never further above the store than one jump";
            let observation =
                format!("r{r} has promised {}, the store is at {}", replica.promised, state.epoch);
            return Err(Violation { promise, observation });
        }
        let mut edit = |text, numbers: &[usize], to: Replica| {
            let mut next = *state;
            next.replicas[r] = to;
            out.push((Event::new(text, numbers), next));
        };
        for host in (0..HOSTS).filter(|host| replica.asked[*host].is_some()) {
            let text = if replica.away {
                "r{0} can't verify what host {1} asked"
            } else {
                "r{0} verifies what host {1} asked"
            };
            edit(text, &[r, host], self.verify(state, r, host));
        }
        if self.0.away {
            let text = if replica.away { "r{0} reaches the store" } else { "r{0} is cut off from the store" };
            edit(text, &[r], Replica { away: !replica.away, ..replica });
            let verified = self.broken(Mutation::StartBelieves).then_some(replica.promised);
            let Replica { promised, to, away, believed, .. } = replica;
            let started = Replica { promised, to, verified, away, believed, ..Replica::default() };
            if started != replica {
                edit("r{0} restarts", &[r], started);
            }
        }
        Ok(())
    }
}

fn index(number: usize) -> u8 {
    u8::try_from(number).expect("three hosts")
}

impl Model for Liar {
    type State = State;
    type Step = Event;

    fn initial(&self) -> State {
        let mut replica = Replica { promised: 1, verified: Some(1), ..Replica::default() };
        replica.live[0] = Mask::one(0);
        State { epoch: 1, owners: [0; EPOCHS + 1], replicas: [replica; REPLICAS] }
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        self.swaps(state, out);
        for r in 0..self.0.replicas {
            self.replica(state, r, out)?;
            for c in 0..HONEST {
                self.honest(state, r, c, out)?;
            }
            self.liar(state, r, out)?;
        }
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        let owner = state.owners[usize::from(state.epoch)];
        let replicas = state.replicas.map(|r| {
            let Replica { promised, to: (host, session), verified, believed, .. } = r;
            format!("promised={promised} to h{host}/s{session} verified={verified:?} believed={believed}")
        });
        format!("record(E={} owner=s{owner}) {replicas:?}", state.epoch)
    }
}

const NEAR: Config = Config { replicas: 2, max_epoch: 3, jump: 2, away: false, mutation: None };
const AWAY: Config = Config { replicas: 1, away: true, ..NEAR };

broken_cases!(Liar);

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    broken(
        "near-jump-unverified",
        "R1 a promise a little above the last one is believed unread",
        NEAR,
        Mutation::NearJumpUnverified,
        Expected::Steps(1),
    ),
    broken(
        "verify-epoch-only",
        "R1 the read compares the epoch, not the owner",
        NEAR,
        Mutation::VerifyEpochOnly,
        Expected::Steps(3),
    ),
    broken(
        "attach-unbound",
        "R1 an attachment is bound to its session alone",
        NEAR,
        Mutation::AttachUnbound,
        Expected::Steps(1),
    ),
    broken(
        "jump-from-promise",
        "R1 the jump without the store counts from the last promise",
        AWAY,
        Mutation::JumpFromPromise,
        Expected::Steps(5),
    ),
    broken(
        "start-believes",
        "R1 a promise on the disk counts as verified after a start",
        AWAY,
        Mutation::StartBelieves,
        Expected::Steps(6),
    ),
    Case::small("promise-verified", "R1, R11 and a host that lies", Setup::Liar(NEAR), Expected::Exhausted),
    Case::small(
        "promise-verified-away",
        "the same, replicas that lose the store and restart",
        Setup::Liar(AWAY),
        Expected::Exhausted,
    ),
];
