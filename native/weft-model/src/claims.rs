//! What hosts tell each other of the store (protocol.md R11), when one of them lies.
//!
//! Honest hosts and a liar. A host's own watermark comes from its own reads; what others say in HELLO of theirs are claims,
//! kept apart: as long as one is above what a fresh read shows, that host opens nothing. Whoever opens asks another host's
//! replica, whose answer names the highest of that host's watermark and claims; it is used for that open alone. A claim
//! ends when its host says less, or is revoked. The store advances, and may go back once.
//!
//! Must always hold (the oracle):
//! - an open on a store that went back is refused if the opener, or the host that it asks, has seen more or was told so by
//!   the honest host that has;
//! - on a store that did not go back, nothing refuses an open while no host was told a lie last, nor once the liar was
//!   revoked everywhere;
//! - a host's own watermark is never above what the store has shown to anybody.

use crate::cases::{Case, Expected, Setup};
use crate::explore::{Event, Model, Violation};

const HONEST: usize = 4;
const LIAR: usize = HONEST;
const HOSTS: usize = HONEST + 1;
/// What a liar says: above everything.
const FAR: u8 = 99;

mutations! {
    /// By the letter of before: each side keeps the higher one as its own.
    Adopted,
    /// A claim outlives the revocation of who made it.
    OutlivesRevocation,
    /// A host tells others the highest claim that it knows of as its own word.
    Relayed,
    /// Claims refuse nothing.
    Ignored,
    /// A claim refuses opens although it has sunk.
    NeverSinks,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Honest hosts, at most 4.
    pub hosts: usize,
    /// Revisions of the store.
    pub revisions: u8,
    /// The liar lies.
    pub lies: bool,
    /// The store may go back, once.
    pub goes_back: bool,
    /// Judge by what came to a host through any number of others, too.
    pub through_others: bool,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Host {
    own: u8,
    claims: [u8; HOSTS],
    /// It knows of the revocation.
    revoked: bool,
    /// Oracle: the liar's last word to it was a lie.
    lied_to: bool,
    /// Oracle: what an honest host has told it of its own reads, and its own reads.
    told: u8,
    /// Oracle: the same, and what came to those hosts in the same way.
    gossip: u8,
}

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct State {
    revision: u8,
    /// The highest one that it ever had.
    peak: u8,
    went_back: bool,
    revoked: bool,
    hosts: [Host; HONEST],
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Claims(pub Config);

type Out = Vec<(Event, State)>;

impl Claims {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    /// A host's statement reaches another one.
    fn hear(&self, host: &mut Host, from: usize, says: u8) {
        if self.broken(Mutation::Adopted) {
            host.own = host.own.max(says);
            return;
        }
        let kept = if self.broken(Mutation::NeverSinks) { host.claims[from] } else { 0 };
        // What a host has seen itself is no claim any more.
        host.claims[from] = if says > host.own { says.max(kept) } else { kept };
    }

    fn refuses(&self, state: &State, h: usize) -> bool {
        let host = &state.hosts[h];
        let claimed = host.claims.iter().any(|claim| *claim > state.revision);
        host.own > state.revision || claimed && !self.broken(Mutation::Ignored)
    }

    /// An open at one host that asks a replica of another.
    fn judge(&self, state: &State, h: usize, asked: usize) -> Result<(), Violation> {
        let (host, other) = (&state.hosts[h], &state.hosts[asked]);
        let refused = self.refuses(state, h) || self.refuses(state, asked);
        let observation = format!("h{h} opens by h{asked}: {host:?} {other:?}, store {}", state.revision);
        if host.own > state.peak {
            let promise = "a host's own watermark is one that the store has shown";
            return Err(Violation { promise, observation });
        }
        let known = match self.0.through_others {
            true => host.gossip.max(other.gossip),
            false => host.told.max(other.told),
        };
        if state.went_back && !refused && known > state.revision {
            let promise = "an open is refused on a store that is behind what an honest host has told";
            return Err(Violation { promise, observation });
        }
        let honest = &state.hosts[..self.0.hosts];
        let lied_to = honest.iter().any(|host| host.lied_to);
        if !state.went_back && !lied_to && refused {
            let promise = "a claim ends when its host says less";
            return Err(Violation { promise, observation });
        }
        let all_know = honest.iter().all(|host| host.revoked);
        if !state.went_back && all_know && refused {
            let promise = "a claim does not outlive its host's revocation";
            return Err(Violation { promise, observation });
        }
        Ok(())
    }

    fn tells(&self, state: &State, h: usize, out: &mut Out) {
        let mut hello = |text, from: usize, change: &dyn Fn(&mut Host)| {
            let mut next = *state;
            change(&mut next.hosts[h]);
            if next != *state {
                out.push((Event::new(text, &[from, h]), next));
            }
        };
        for other in (0..self.0.hosts).filter(|other| *other != h) {
            let honest = state.hosts[other];
            let mut says = honest.own;
            if self.broken(Mutation::Relayed) {
                says = honest.claims.iter().copied().fold(says, u8::max);
            }
            hello("HELLO of h{0} reaches h{1}", other, &|host| {
                self.hear(host, other, says);
                host.told = host.told.max(honest.own);
                host.gossip = host.gossip.max(honest.gossip);
            });
        }
        if self.0.lies && !state.hosts[h].revoked {
            hello("HELLO of the LIAR reaches h{1}: far ahead", LIAR, &|host| {
                self.hear(host, LIAR, FAR);
                host.lied_to = true;
            });
            hello("HELLO of the LIAR reaches h{1}: nothing", LIAR, &|host| {
                self.hear(host, LIAR, 0);
                host.lied_to = false;
            });
        }
        if state.revoked {
            hello("h{1} hears of the revocation", LIAR, &|host| {
                host.revoked = true;
                if !self.broken(Mutation::OutlivesRevocation) {
                    host.claims[LIAR] = 0;
                }
            });
        }
    }
}

impl Model for Claims {
    type State = State;
    type Step = Event;

    fn initial(&self) -> State {
        State { revision: 1, peak: 1, ..State::default() }
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        for h in 0..self.0.hosts {
            for asked in (0..self.0.hosts).filter(|asked| *asked != h) {
                self.judge(state, h, asked)?;
            }
        }
        let mut step = |text, numbers: &[usize], change: &dyn Fn(&mut State)| {
            let mut next = *state;
            change(&mut next);
            if next != *state {
                out.push((Event::new(text, numbers), next));
            }
        };
        if state.revision < self.0.revisions {
            step("the store advances", &[], &|next| {
                next.revision += 1;
                next.peak = next.peak.max(next.revision);
            });
        }
        for back in 1..state.revision {
            if self.0.goes_back && !state.went_back {
                step("the store GOES BACK to {0}", &[usize::from(back)], &|next| {
                    (next.revision, next.went_back) = (back, true);
                });
            }
        }
        if self.0.lies && !state.revoked {
            step("the liar is revoked", &[], &|next| next.revoked = true);
        }
        for h in 0..self.0.hosts {
            // A read that shows less than the host's own watermark is refused.
            if state.hosts[h].own <= state.revision {
                step("h{0} reads the store", &[h], &|next| {
                    let host = &mut next.hosts[h];
                    host.own = state.revision;
                    host.told = host.told.max(state.revision);
                    host.gossip = host.gossip.max(state.revision);
                    let keeps = self.broken(Mutation::NeverSinks);
                    let seen = |claim: &&mut u8| **claim <= state.revision && !keeps;
                    host.claims.iter_mut().filter(seen).for_each(|claim| *claim = 0);
                });
            }
        }
        for h in 0..self.0.hosts {
            self.tells(state, h, out);
        }
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        let line = |host: &Host| format!("own={} claims={:?}", host.own, host.claims);
        let hosts: Vec<String> = state.hosts[..self.0.hosts].iter().map(line).collect();
        format!("store={} peak={} revoked={} {hosts:?}", state.revision, state.peak, state.revoked)
    }
}

const HONEST_ONLY: Config =
    Config { hosts: 3, revisions: 4, lies: false, goes_back: true, through_others: false, mutation: None };
const LYING: Config = Config { lies: true, revisions: 3, ..HONEST_ONLY };
const CHAIN: Config = Config { through_others: true, ..HONEST_ONLY };

broken_cases!(Claims);

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    broken(
        "claims-adopted",
        "R11 by the letter of before: each side keeps the higher watermark",
        LYING,
        Mutation::Adopted,
        Expected::Steps(1),
    ),
    broken(
        "claims-outlive",
        "R11 a claim is kept when its host is revoked",
        LYING,
        Mutation::OutlivesRevocation,
        Expected::Steps(5),
    ),
    broken(
        "claims-relayed",
        "R11 a host says as its own what it was told",
        LYING,
        Mutation::Relayed,
        Expected::Steps(3),
    ),
    broken(
        "claims-ignored",
        "R11 what others have seen refuses nothing",
        HONEST_ONLY,
        Mutation::Ignored,
        Expected::Steps(4),
    ),
    broken(
        "claims-never-sink",
        "R11 a claim stays although the store has shown it, or its host says less",
        LYING,
        Mutation::NeverSinks,
        Expected::Steps(2),
    ),
    Case::small(
        "claims-through-others",
        "R11 what came to the host that is asked through another one",
        Setup::Claims(Config { hosts: 4, revisions: 2, ..CHAIN }),
        Expected::Steps(5),
    ),
    Case::small(
        "claims",
        "R11 with claims, three honest hosts, each may tell what it was told",
        Setup::Claims(CHAIN),
        Expected::Exhausted,
    ),
    Case::small(
        "claims-liar",
        "R11 with claims and a host that lies",
        Setup::Claims(LYING),
        Expected::Exhausted,
    ),
];
