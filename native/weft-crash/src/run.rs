//! Enumerates what power cuts leave of a trace, has weftd's own code recover each, and judges it.
//!
//! Must always hold: the same budget examines the same states each time.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use weft_proto::log::ReplicaKey;

use crate::disk::{Disk, Image, Unit, flush_of};
use crate::host::{Around, Fact, Host};
use crate::judge::{Expect, Seen, check, look, same};
use crate::rng::{Rng, mix};
use crate::trace::{Event, Recorder, SlowDriver};

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// States per crash point, beyond those that are few enough to be looked at in full.
    pub per_point: usize,
    /// So many whole versions together are looked at in full.
    pub exhaustive: u64,
    /// One state in so many is started again, without loss.
    pub again: u64,
    /// One state in so many has its recovery cut too.
    pub nested: u64,
    /// Of how many states per crash point within a recovery.
    pub nested_points: usize,
}

impl Budget {
    /// For every run of the tests.
    pub const SHORT: Budget =
        Budget { per_point: 24, exhaustive: 32, again: 4, nested: 40, nested_points: 6 };
    /// For finding one violation where there are many.
    pub const GATE: Budget =
        Budget { per_point: 8, exhaustive: 16, again: u64::MAX, nested: u64::MAX, nested_points: 0 };
    /// With this many states per crash point.
    #[must_use]
    pub fn of_states(states: usize) -> Budget {
        let exhaustive = (states as u64).next_power_of_two();
        Budget { per_point: states, exhaustive, again: 2, nested: 10, nested_points: states.div_ceil(4) }
    }
}

/// What has to be there after a power cut, by what became known before, and who looks for it.
pub trait Expectation: Clone + Default {
    /// Something that became known.
    type Fact: Clone + core::fmt::Debug;
    /// What every state is looked at for.
    type Asked;
    /// What was found.
    type Seen;

    /// Goes on by one fact.
    fn learn(&mut self, fact: &Self::Fact);

    /// What is to be looked at, when everything is known.
    fn asked(&self) -> Self::Asked;

    /// A number for what a recovery is told beside the disk: of two states with the same one only one is recovered.
    fn beside(&self) -> u64;

    /// Recovers the disk in the workspace and looks at it; `again` once more after another start. The number is for
    /// draws.
    fn recover(
        &self,
        work: &mut Workspace,
        asked: &Self::Asked,
        recorder: Option<Recorder>,
        draw: (u64, bool),
    ) -> Result<Found<Self>, String>;

    /// Is what was found allowed?
    fn check(&self, seen: &Self::Seen) -> Result<(), String>;
}

/// What a recovery found, and what became known by it.
#[derive(Debug)]
pub struct Found<E: Expectation> {
    /// What was found.
    pub seen: E::Seen,
    /// What became known, with the number of events before.
    pub facts: Vec<(usize, E::Fact)>,
}

impl Expectation for Expect {
    type Fact = Fact;
    type Asked = BTreeMap<ReplicaKey, Vec<(u64, u64)>>;
    type Seen = Seen;

    fn learn(&mut self, fact: &Fact) {
        Expect::learn(self, fact);
    }

    fn asked(&self) -> Self::Asked {
        self.touched()
    }

    fn beside(&self) -> u64 {
        let around = self.around();
        let revision = around.store.as_ref().map_or(0, |e| e.revision.0);
        [u64::from(self.pool), around.served.0, revision, around.log].into_iter().fold(0, mix)
    }

    fn recover(
        &self,
        work: &mut Workspace,
        touched: &Self::Asked,
        recorder: Option<Recorder>,
        (draw, again): (u64, bool),
    ) -> Result<Found<Expect>, String> {
        let (root, state, around) = (work.disk(), work.state(), self.around());
        let mut start = |around: &Around, recorder, make| {
            Host::start(&root, &state, around, work.driver(), recorder, make).map_err(|failed| {
                let (error, driver) = *failed;
                work.give_back(driver);
                error
            })
        };
        let mut host = start(&around, recorder, (!self.pool, draw))?;
        let seen = look(&mut host, touched);
        let after = host.around(2);
        let (driver, facts) = host.end();
        work.give_back(driver);
        if again {
            // What is wrong already is told as such.
            check(self, &seen)?;
            let mut start = |around: &Around, make| {
                Host::start(&root, &state, around, work.driver(), None, make).map_err(|failed| {
                    let (error, driver) = *failed;
                    work.give_back(driver);
                    format!("at the second start {error}")
                })
            };
            let mut host = start(&after, (false, draw + 1))?;
            let second = look(&mut host, touched);
            work.give_back(host.end().0);
            same(&seen, &second)?;
        }
        Ok(Found { seen, facts })
    }

    fn check(&self, seen: &Seen) -> Result<(), String> {
        check(self, seen)
    }
}

/// What was done and what became known meanwhile.
#[derive(Clone, Debug)]
pub struct Trace<E: Expectation = Expect> {
    /// Its workload.
    pub name: String,
    /// What happened to the disk.
    pub events: Vec<Event>,
    /// What became known, with the number of events before.
    pub facts: Vec<(usize, E::Fact)>,
    /// The disk before.
    pub base: Disk,
    /// What was known before.
    pub known: E,
    /// Power cuts before this event are another workload's subject.
    pub from: usize,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Traces.
    pub traces: u64,
    /// Events in them.
    pub events: u64,
    /// Moments at which the power was cut.
    pub points: u64,
    /// States that were judged: a state of the disk and what was known at its moment.
    pub judged: u64,
    /// Disks that were made and recovered.
    pub recovered: u64,
    /// Of those, in the middle of a recovery.
    pub nested: u64,
    /// Most things that one moment left undecided.
    pub widest: u64,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Tally) -> Tally {
        Tally {
            traces: self.traces + other.traces,
            events: self.events + other.events,
            points: self.points + other.points,
            judged: self.judged + other.judged,
            recovered: self.recovered + other.recovered,
            nested: self.nested + other.nested,
            widest: self.widest.max(other.widest),
        }
    }
}

/// A legal state that was not recovered as promised.
#[derive(Clone, Debug)]
pub struct Violation {
    /// In which workload's trace.
    pub trace: String,
    /// After how many events.
    pub point: usize,
    /// The last events before it.
    pub events: Vec<String>,
    /// What was decided for what was undecided.
    pub choice: Vec<u16>,
    /// What was on the disk.
    pub disk: String,
    /// What is wrong.
    pub what: String,
}

impl core::fmt::Display for Violation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        writeln!(f, "{}, power cut after event {}: {}", self.trace, self.point, self.what)?;
        for event in &self.events {
            writeln!(f, "    {event}")?;
        }
        writeln!(f, "  choice {:?}", self.choice)?;
        write!(f, "  disk: {}", self.disk)
    }
}

/// Directories in memory in which disks are made, and the driver that all hosts use in turn.
pub struct Workspace {
    top: PathBuf,
    driver: Option<SlowDriver>,
}

impl core::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Workspace({})", self.top.display())
    }
}

impl Default for Workspace {
    fn default() -> Workspace {
        Workspace::new()
    }
}

impl Workspace {
    /// A fresh one, in /dev/shm where there is one.
    #[must_use]
    pub fn new() -> Workspace {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let top = parent.join(format!("weft-crash-{}-{number}", std::process::id()));
        std::fs::create_dir_all(top.join("state")).expect("a work directory");
        std::fs::create_dir_all(top.join("disk")).expect("a work directory");
        let driver = SlowDriver::new(0, None).expect("libaio, for its waker");
        Workspace { top, driver: Some(driver) }
    }

    /// Where the disk is.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.top.join("disk")
    }

    /// Where the host keeps its state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.top.join("state")
    }

    /// Takes the driver out.
    pub fn driver(&mut self) -> SlowDriver {
        self.driver.take().expect("one host at a time")
    }

    /// Puts it back.
    pub fn give_back(&mut self, driver: SlowDriver) {
        self.driver = Some(driver);
    }

    /// An empty disk.
    pub fn clear(&self) {
        std::fs::remove_dir_all(self.disk()).expect("our own directory");
        std::fs::create_dir(self.disk()).expect("our own directory");
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.top);
    }
}

/// Looks at every crash point of a trace. With `lost`, as if the flushes of that class were not in the code.
pub fn examine<E: Expectation>(
    work: &mut Workspace,
    trace: &Trace<E>,
    budget: &Budget,
    lost: Option<&str>,
) -> Result<Tally, Box<Violation>> {
    Examiner { work, trace, budget, lost, depth: 0, seen: HashMap::new(), tally: Tally::default() }.run()
}

/// The classes of flushes in a trace.
#[must_use]
pub fn flushes<E: Expectation>(trace: &Trace<E>) -> BTreeMap<String, u64> {
    let mut disk = trace.base.clone();
    let mut classes = BTreeMap::new();
    for event in &trace.events {
        if let Some(class) = flush_of(&disk, event) {
            *classes.entry(class).or_default() += 1;
        }
        disk.advance(event, false);
    }
    classes
}

struct Examiner<'a, E: Expectation> {
    work: &'a mut Workspace,
    trace: &'a Trace<E>,
    budget: &'a Budget,
    lost: Option<&'a str>,
    depth: u32,
    /// What was found, by disk and what was known beside it.
    seen: HashMap<u64, Rc<E::Seen>>,
    tally: Tally,
}

impl<E: Expectation> Examiner<'_, E> {
    fn run(mut self) -> Result<Tally, Box<Violation>> {
        self.tally.traces = 1;
        self.tally.events = self.trace.events.len() as u64;
        // Every state is asked for all blocks that are ever touched.
        let mut all = self.trace.known.clone();
        self.trace.facts.iter().for_each(|(_, fact)| all.learn(fact));
        let asked = all.asked();

        let mut disk = self.trace.base.clone();
        let mut expect = self.trace.known.clone();
        let mut facts = self.trace.facts.iter().peekable();
        let mut judged: HashMap<u64, usize> = HashMap::new();
        let mut learned = 0;
        for point in 0..=self.trace.events.len() {
            if let Some(event) = point.checked_sub(1).map(|i| &self.trace.events[i]) {
                let lost = self.lost.is_some_and(|lost| flush_of(&disk, event).as_deref() == Some(lost));
                disk.advance(event, lost);
            }
            while let Some((_, fact)) = facts.next_if(|(at, _)| *at <= point) {
                expect.learn(fact);
                learned += 1;
            }
            if point < self.trace.from {
                continue;
            }
            let units = disk.units();
            self.tally.points += 1;
            self.tally.widest = self.tally.widest.max(units.len() as u64);
            let mut rng = Rng::new(mix(point as u64, u64::from(self.depth)));
            for choice in choices(&units, self.budget, self.depth, &mut rng) {
                let image = disk.image(&units, &choice);
                // Nothing new was learned since this disk was judged.
                if judged.insert(image.hash, learned) == Some(learned) {
                    continue;
                }
                self.tally.judged += 1;
                self.judge(&image, &expect, &asked).map_err(|what| {
                    let first = point.saturating_sub(12);
                    let line = |(i, event): (usize, &Event)| format!("{}: {}", first + i, told(&disk, event));
                    Box::new(Violation {
                        trace: self.trace.name.clone(),
                        point,
                        events: self.trace.events[first..point].iter().enumerate().map(line).collect(),
                        choice: choice.clone(),
                        disk: image.listing(),
                        what,
                    })
                })?;
            }
        }
        Ok(self.tally)
    }

    fn judge(&mut self, image: &Image, expect: &E, asked: &E::Asked) -> Result<(), String> {
        let key = mix(image.hash, expect.beside());
        if let Some(seen) = self.seen.get(&key) {
            return expect.check(seen);
        }
        self.tally.recovered += 1;
        if self.depth > 0 {
            self.tally.nested += 1;
        }
        let again = key.is_multiple_of(self.budget.again);
        let nested = self.depth == 0 && (key >> 20).is_multiple_of(self.budget.nested);

        self.work.clear();
        let root = self.work.disk();
        image.make(&root).map_err(|e| format!("the disk can't be made: {e}"))?;
        let recorder = nested.then(|| Recorder::below(&root));
        let base = match &recorder {
            Some(recorder) => Disk::of_image(image, &recorder.names()),
            None => Disk::default(),
        };
        let Found { seen, facts } = expect.recover(self.work, asked, recorder.clone(), (key, again))?;
        expect.check(&seen)?;
        self.seen.insert(key, Rc::new(seen));
        if let Some(recorder) = recorder {
            let name = format!("{}, recovered and cut again", self.trace.name);
            let known = expect.clone();
            let trace = Trace { name, events: recorder.events(), facts, base, known, from: 0 };
            let inner = Examiner {
                work: self.work,
                trace: &trace,
                budget: self.budget,
                lost: None,
                depth: 1,
                seen: HashMap::new(),
                tally: Tally::default(),
            };
            let tally = inner.run().map_err(|violation| violation.to_string())?;
            self.tally.recovered += tally.recovered;
            self.tally.nested += tally.recovered;
            self.tally.judged += tally.judged;
        }
        Ok(())
    }
}

/// Which decisions of a power cut to look at.
fn choices(units: &[Unit], budget: &Budget, depth: u32, rng: &mut Rng) -> Vec<Vec<u16>> {
    let old: Vec<u16> = vec![0; units.len()];
    let new: Vec<u16> = units.iter().map(|unit| unit.versions - 1).collect();
    let mut all: Vec<Vec<u16>> = vec![old.clone()];
    if units.is_empty() {
        return all;
    }
    let (limit, exhaustive) =
        if depth == 0 { (budget.per_point, budget.exhaustive) } else { (budget.nested_points, 4) };
    all.push(new.clone());
    let combinations = units.iter().try_fold(1u64, |n, unit| n.checked_mul(u64::from(unit.versions)));
    let few = combinations.is_some_and(|n| n <= exhaustive);
    let mut more: Vec<Vec<u16>> = Vec::new();
    if few {
        let mut choice = old.clone();
        'next: loop {
            for (digit, unit) in choice.iter_mut().zip(units) {
                *digit += 1;
                if *digit < unit.versions {
                    all.push(choice.clone());
                    continue 'next;
                }
                *digit = 0;
            }
            break;
        }
    } else {
        for (i, unit) in units.iter().enumerate() {
            for version in 0..unit.versions {
                for base in [&old, &new] {
                    let mut choice = base.clone();
                    choice[i] = version;
                    more.push(choice);
                }
            }
            // The first so many new, the rest old, and the other way around.
            for (head, tail) in [(&new, &old), (&old, &new)] {
                more.push(head[..i].iter().chain(&tail[i..]).copied().collect());
            }
        }
    }
    for (i, unit) in units.iter().enumerate() {
        for torn in 0..unit.torn {
            for base in [&old, &new] {
                let mut choice = base.clone();
                choice[i] = unit.versions + torn;
                more.push(choice);
            }
        }
    }
    // Seeded: what there are too many of is drawn from.
    while more.len() > limit {
        let at = rng.index(more.len());
        more.swap_remove(at);
    }
    if !few || units.iter().any(|unit| unit.torn > 0) {
        let room = limit.saturating_sub(more.len()).min(limit / 2) + limit / 4;
        for _ in 0..room {
            let draw = |unit: &Unit, rng: &mut Rng| {
                let options = unit.versions + if rng.chance(25) { unit.torn } else { 0 };
                u16::try_from(rng.index(usize::from(options))).expect("a few")
            };
            more.push(units.iter().map(|unit| draw(unit, rng)).collect());
        }
    }
    all.extend(more);
    all
}

fn told(disk: &Disk, event: &Event) -> String {
    use crate::trace::What;
    let what = |what: &What| match what {
        What::Write { node, offset, bytes, durable } => {
            let how = if *durable { "write durably" } else { "write" };
            format!("{how} {} {offset}+{}", disk.role(*node), bytes.len())
        }
        What::Truncate { node, len } => format!("truncate {} {len}", disk.role(*node)),
        What::Allocate { node, len } => format!("allocate {} {len}", disk.role(*node)),
        What::Zero { node, offset, len } => format!("zero {} {offset}+{len}", disk.role(*node)),
        What::Clone { from, from_offset, node, offset, len } => {
            format!("clone {} {from_offset}+{len} to {} {offset}", disk.role(*from), disk.role(*node))
        }
        What::Sync { node, .. } => format!("sync {}", disk.role(*node)),
        What::Make { dir, name, .. } => format!("make {}/{name}", disk.role(*dir)),
        What::Rename { from_dir, from, to_dir, to, .. } => {
            format!("rename {}/{from} {}/{to}", disk.role(*from_dir), disk.role(*to_dir))
        }
        What::Remove { dir, name } => format!("remove {}/{name}", disk.role(*dir)),
    };
    match event {
        Event::Did(did) => what(did),
        Event::Start(op, started) => format!("op {op} starts: {}", what(started)),
        Event::End(op) => format!("op {op} ends"),
        Event::Kill { dropped } => format!("the process is killed; lost: {dropped:?}"),
    }
}
