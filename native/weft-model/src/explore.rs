//! The explorer that all models share: breadth-first search with a hashed visited set, and random walks.
//!
//! Must always hold:
//! - a reported trace is real: it is found again by replaying the steps from the initial state, one by one;
//! - breadth-first search meets a violation by a shortest trace;
//! - the same model, bound and seed give the same result on every machine.
//!
//! The visited set keeps 64-bit hashes, not states: a collision would hide a state (about 1 in 10^6 for a run of
//! five million states). Parents are kept as (state number, position among its successors), six bytes a state.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// One thing that happens.
pub trait Happening: Copy + fmt::Display {
    /// A step is taken by a random walk only once in so many times that it is drawn, so that rare things
    /// (crashes, fencing) do not end every walk at once.
    fn reluctance(&self) -> u32 {
        1
    }

    /// The name under which a step is counted, if it is: what a run that found nothing has at least exercised.
    fn counted(&self) -> Option<Counted> {
        None
    }
}

/// A closed system: an initial state and all that may happen next.
pub trait Model {
    /// Everything that decides the future, in canonical form: equal futures should be equal states.
    type State: Clone + Eq + Hash;
    /// One thing that happens; printed as one line of a trace.
    type Step: Happening;

    /// Where every run begins.
    fn initial(&self) -> Self::State;

    /// Pushes each possible step with the state it leads to.
    ///
    /// # Errors
    /// A violation: this state, or an observation that is possible in it, breaks a promise of the protocol.
    fn successors(
        &self,
        state: &Self::State,
        out: &mut Vec<(Self::Step, Self::State)>,
    ) -> Result<(), Violation>;

    /// The state in one line, beside each step of a printed trace.
    fn describe(&self, state: &Self::State) -> String;
}

/// A step of a small model: a sentence in which `{0}`, `{1}` and `{2}` stand for numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    text: &'static str,
    numbers: [usize; 3],
    rare: u32,
    counted: Option<Counted>,
}

impl Event {
    /// The sentence with its numbers.
    #[must_use]
    pub fn new(text: &'static str, numbers: &[usize]) -> Event {
        let number = |at: usize| numbers.get(at).copied().unwrap_or(0);
        Event { text, numbers: [number(0), number(1), number(2)], rare: 1, counted: None }
    }

    /// Drawn by a walk only once in so many times.
    #[must_use]
    pub fn rare(self, times: u32) -> Event {
        Event { rare: times, ..self }
    }

    /// Counted under this name.
    #[must_use]
    pub fn counts(self, counted: Counted) -> Event {
        Event { counted: Some(counted), ..self }
    }
}

impl Happening for Event {
    fn reluctance(&self) -> u32 {
        self.rare
    }

    fn counted(&self) -> Option<Counted> {
        self.counted
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.numbers.map(|number| number.to_string());
        // `pad`, so that traces can line up what follows.
        f.pad(&self.text.replace("{0}", &a).replace("{1}", &b).replace("{2}", &c))
    }
}

/// A promise of the protocol, broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub promise: &'static str,
    /// The observation that shows it.
    pub observation: String,
}

/// What is counted in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// A write answered to the guest.
    WriteAcked,
    /// A read answered to the guest.
    ReadServed,
    /// A session that began to serve.
    Opened,
    /// A member removed from the in-sync set.
    Removed,
    /// A joiner admitted to the in-sync set.
    Admitted,
    /// A seal or a completed flush.
    Sealed,
}

/// How often each counted step was taken or generated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes answered.
    pub writes_acked: u64,
    /// Reads answered.
    pub reads_served: u64,
    /// Sessions that began to serve.
    pub opened: u64,
    /// Members removed.
    pub removed: u64,
    /// Joiners admitted.
    pub admitted: u64,
    /// Seals and flushes.
    pub sealed: u64,
}

impl Counts {
    fn add(&mut self, counted: Counted) {
        match counted {
            Counted::WriteAcked => self.writes_acked += 1,
            Counted::ReadServed => self.reads_served += 1,
            Counted::Opened => self.opened += 1,
            Counted::Removed => self.removed += 1,
            Counted::Admitted => self.admitted += 1,
            Counted::Sealed => self.sealed += 1,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "acks {} reads {} opens {} removals {} admissions {} seals {}",
            self.writes_acked, self.reads_served, self.opened, self.removed, self.admitted, self.sealed
        )
    }
}

/// One line of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceLine {
    /// What happened.
    pub step: String,
    /// The state after it.
    pub state: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every reachable state was seen, none violates.
    Exhausted,
    /// The bound was reached, nothing found so far: evidence, not proof.
    Bounded,
    /// A counter-example.
    Violated {
        /// What is broken and by which observation.
        violation: Violation,
        /// The way there. From breadth-first search it is a shortest one.
        trace: Vec<TraceLine>,
    },
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// States seen (breadth-first) or steps taken (walks).
    pub visited: u64,
    /// What was exercised.
    pub counts: Counts,
}

impl Report {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !matches!(self.outcome, Outcome::Violated { .. })
    }

    /// Steps of the counter-example, up to the state in which the violation is observed.
    #[must_use]
    pub fn trace_len(&self) -> Option<usize> {
        match &self.outcome {
            Outcome::Violated { trace, .. } => Some(trace.len()),
            Outcome::Exhausted | Outcome::Bounded => None,
        }
    }
}

/// Collects bytes into words, then multiplies and rotates: the states are many small fields.
#[derive(Default)]
struct StateHasher {
    mixed: u64,
    word: u64,
    bits: u32,
}

impl StateHasher {
    fn mix(&mut self, word: u64) {
        self.mixed = (self.mixed.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for StateHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.word = (self.word << 8) | u64::from(byte);
        self.bits += 8;
        if self.bits == 64 {
            let word = self.word;
            self.mix(word);
            self.word = 0;
            self.bits = 0;
        }
    }

    /// Discriminants of enums come as `isize` and fit a byte.
    fn write_isize(&mut self, value: isize) {
        self.write_u8(value.to_le_bytes()[0]);
    }

    fn finish(&self) -> u64 {
        let mut last = StateHasher { mixed: self.mixed, ..StateHasher::default() };
        last.mix(self.word);
        let mut x = last.mixed;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

/// The keys of the visited set are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, _: &[u8]) {
        unreachable!("the visited set holds u64 only");
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

fn fingerprint<S: Hash>(state: &S) -> u64 {
    let mut hasher = StateHasher::default();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Breadth-first search until a violation, exhaustion, or `max_states` distinct states.
pub fn search<M: Model>(model: &M, max_states: usize) -> Report {
    let mut visited: HashSet<u64, BuildHasherDefault<Identity>> = HashSet::default();
    let mut parents: Vec<(u32, u16)> = vec![(0, 0)];
    let mut frontier = VecDeque::new();
    let mut counts = Counts::default();
    let mut out = Vec::new();

    let initial = model.initial();
    visited.insert(fingerprint(&initial));
    frontier.push_back((initial, 0u32));

    while let Some((state, number)) = frontier.pop_front() {
        out.clear();
        if let Err(violation) = model.successors(&state, &mut out) {
            let trace = replay(model, &path_to(&parents, number));
            return Report {
                outcome: Outcome::Violated { violation, trace },
                visited: parents.len() as u64,
                counts,
            };
        }
        for (position, (step, next)) in out.drain(..).enumerate() {
            if !visited.insert(fingerprint(&next)) {
                continue;
            }
            if let Some(counted) = step.counted() {
                counts.add(counted);
            }
            let child = u32::try_from(parents.len()).expect("fewer than 2^32 states");
            let position = u16::try_from(position).expect("fewer than 2^16 successors");
            parents.push((number, position));
            frontier.push_back((next, child));
        }
        if parents.len() >= max_states {
            return Report { outcome: Outcome::Bounded, visited: parents.len() as u64, counts };
        }
    }
    Report { outcome: Outcome::Exhausted, visited: parents.len() as u64, counts }
}

fn path_to(parents: &[(u32, u16)], mut number: u32) -> Vec<u16> {
    let mut path = Vec::new();
    while number != 0 {
        let (parent, position) = parents[number as usize];
        path.push(position);
        number = parent;
    }
    path.reverse();
    path
}

fn replay<M: Model>(model: &M, path: &[u16]) -> Vec<TraceLine> {
    let mut state = model.initial();
    let mut lines = Vec::with_capacity(path.len());
    for position in path {
        let mut out = Vec::new();
        model.successors(&state, &mut out).expect("a violation ends a path, it is never inside one");
        let (step, next) = out.swap_remove(usize::from(*position));
        lines.push(TraceLine { step: step.to_string(), state: model.describe(&next) });
        state = next;
    }
    lines
}

/// How to walk.
#[derive(Debug, Clone, Copy)]
pub struct Walks {
    /// How many walks.
    pub count: u64,
    /// Steps of each walk, unless it ends by itself.
    pub length: usize,
    /// The seed; walk `i` of a seed is the same whatever the count.
    pub seed: u64,
}

/// Random walks: deeper than search can go, and not exhaustive.
pub fn walk<M: Model>(model: &M, walks: Walks) -> Report {
    let mut counts = Counts::default();
    let mut visited = 0;
    let mut out = Vec::new();
    for number in 0..walks.count {
        let mut random = Random::new(walks.seed, number);
        let mut state = model.initial();
        let mut path = Vec::with_capacity(walks.length);
        for _ in 0..walks.length {
            out.clear();
            if let Err(violation) = model.successors(&state, &mut out) {
                let trace = replay(model, &path);
                return Report { outcome: Outcome::Violated { violation, trace }, visited, counts };
            }
            if out.is_empty() {
                break;
            }
            let position = draw(&out, &mut random);
            let (step, next) = out.swap_remove(position);
            if let Some(counted) = step.counted() {
                counts.add(counted);
            }
            path.push(u16::try_from(position).expect("fewer than 2^16 successors"));
            state = next;
            visited += 1;
        }
    }
    Report { outcome: Outcome::Bounded, visited, counts }
}

/// Draws a step, up to six times when reluctant ones come up.
fn draw<S: Happening, T>(out: &[(S, T)], random: &mut Random) -> usize {
    let mut position = 0;
    for _ in 0..6 {
        position = random.below(out.len());
        let reluctance = out[position].0.reluctance();
        if reluctance <= 1 || random.below(reluctance as usize) == 0 {
            break;
        }
    }
    position
}

/// Xorshift: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mixed = fingerprint(&[seed, stream]);
        Random(if mixed == 0 { 1 } else { mixed })
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let bound = bound as u64;
        usize::try_from(self.0 % bound).expect("smaller than a usize")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts up by one or two; 7 is forbidden.
    struct Stairs {
        forbidden: u8,
    }

    impl Happening for u8 {}

    impl Model for Stairs {
        type State = u8;
        type Step = u8;
        fn initial(&self) -> u8 {
            0
        }
        fn successors(&self, state: &u8, out: &mut Vec<(u8, u8)>) -> Result<(), Violation> {
            if *state == self.forbidden {
                return Err(Violation { promise: "never there", observation: state.to_string() });
            }
            if *state < 10 {
                out.extend([(1, state + 1), (2, state + 2)]);
            }
            Ok(())
        }
        fn describe(&self, state: &u8) -> String {
            state.to_string()
        }
    }

    #[test]
    fn search_finds_a_shortest_trace() {
        let report = search(&Stairs { forbidden: 7 }, 1000);
        assert_eq!(report.trace_len(), Some(4));
    }

    #[test]
    fn search_says_whether_it_saw_everything() {
        assert_eq!(search(&Stairs { forbidden: 99 }, 1000).outcome, Outcome::Exhausted);
        assert_eq!(search(&Stairs { forbidden: 99 }, 5).outcome, Outcome::Bounded);
    }

    #[test]
    fn walks_of_one_seed_are_the_same_twice() {
        let walks = Walks { count: 20, length: 12, seed: 3 };
        let first = walk(&Stairs { forbidden: 7 }, walks);
        assert!(!first.is_clean());
        assert_eq!(first, walk(&Stairs { forbidden: 7 }, walks));
    }
}
