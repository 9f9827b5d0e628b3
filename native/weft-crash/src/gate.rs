//! All workloads, and what becomes of them without each class of flushes, and with each rule of a pool broken.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use weft_proto::mutants::{Broken, Mutation};

use crate::races;
use crate::run::{Budget, Tally, Trace, Violation, Workspace, examine, flushes};
use crate::snapshots;
use crate::workloads::{ALL, record};

/// What one of the workloads left.
#[derive(Debug)]
pub enum Recording {
    /// Weftd's pools.
    Pools(Trace),
    /// A replica with images.
    Images(Trace<snapshots::Known>),
}

impl Recording {
    fn examine(
        &self,
        work: &mut Workspace,
        budget: &Budget,
        lost: Option<&str>,
    ) -> Result<Tally, Box<Violation>> {
        match self {
            Recording::Pools(trace) => examine(work, trace, budget, lost),
            Recording::Images(trace) => examine(work, trace, budget, lost),
        }
    }

    fn flushes(&self) -> BTreeMap<String, u64> {
        match self {
            Recording::Pools(trace) => flushes(trace),
            Recording::Images(trace) => flushes(trace),
        }
    }
}

type Play = Box<dyn Fn(&mut Workspace, u64) -> Result<Recording, String> + Sync>;

/// Every workload of either kind.
fn all() -> Vec<(&'static str, Play)> {
    let pools = ALL.iter().map(|workload| {
        let play: Play =
            Box::new(|work, seed| record(work, workload, seed, Broken::default()).map(Recording::Pools));
        (workload.name, play)
    });
    let images = snapshots::ALL.iter().map(|workload| {
        let play: Play =
            Box::new(|work, seed| snapshots::record(work, workload, seed).map(Recording::Images));
        (workload.name, play)
    });
    pools.chain(images).collect()
}

/// One workload with what was found.
#[derive(Debug)]
pub struct Outcome {
    /// Which workload.
    pub name: &'static str,
    /// How much was looked at, or what is wrong.
    pub result: Result<Tally, String>,
    /// The flushes in its trace, by class.
    pub flushes: BTreeMap<String, u64>,
    /// The trace, for what comes after.
    pub trace: Option<Recording>,
}

/// Does `job` for each number below `count`, on as many threads as there are cores.
fn spread<T: Send>(count: usize, job: impl Fn(&mut Workspace, usize) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut work = Workspace::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let result = job(&mut work, number);
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert(number, result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// Records and examines every workload whose name contains `only`.
#[must_use]
pub fn workloads(seed: u64, budget: &Budget, only: &str) -> Vec<Outcome> {
    let chosen: Vec<_> = all().into_iter().filter(|(name, _)| name.contains(only)).collect();
    spread(chosen.len(), |work, number| {
        let (name, play) = &chosen[number];
        let trace = match play(work, seed) {
            Ok(trace) => trace,
            Err(what) => return Outcome { name, result: Err(what), flushes: BTreeMap::new(), trace: None },
        };
        let result = trace.examine(work, budget, None).map_err(|violation| violation.to_string());
        Outcome { name, result, flushes: trace.flushes(), trace: Some(trace) }
    })
}

/// What was found without one class of flushes.
#[derive(Debug)]
pub struct Missed {
    /// The class.
    pub class: String,
    /// How often it stands in the traces.
    pub count: u64,
    /// The first violation, if any was found.
    pub violation: Option<Box<Violation>>,
}

/// Leaves out each class of flushes in turn.
#[must_use]
pub fn without_flushes(outcomes: &[Outcome]) -> Vec<Missed> {
    let mut classes: BTreeMap<&str, u64> = BTreeMap::new();
    for (class, count) in outcomes.iter().flat_map(|o| &o.flushes) {
        *classes.entry(class).or_default() += count;
    }
    let classes: Vec<_> = classes.into_iter().collect();
    spread(classes.len(), |work, number| {
        let (class, count) = classes[number];
        let has = |outcome: &&Outcome| outcome.flushes.contains_key(class);
        let traces = outcomes.iter().filter(has).filter_map(|o| o.trace.as_ref());
        let violation = traces.into_iter().find_map(|t| t.examine(work, &Budget::GATE, Some(class)).err());
        Missed { class: class.to_owned(), count, violation }
    })
}

/// What a broken rule did.
#[derive(Debug)]
pub struct Shown {
    /// The rule's name.
    pub name: &'static str,
    /// Where it was found and what is wrong, in a line; none if it was not.
    pub by: Option<String>,
}

/// Breaks each rule of a pool in turn. What shows it holds with the rule in force: see [`workloads`] and [`races::ALL`].
#[must_use]
pub fn with_broken_rules(rule: fn(Mutation) -> Broken, seed: u64) -> Vec<Shown> {
    spread(Mutation::OF_POOLS.len(), |work, number| {
        let (mutation, name) = Mutation::OF_POOLS[number];
        let broken = rule(mutation);
        let cut = ALL.iter().find_map(|workload| {
            let found = match record(work, workload, seed, broken) {
                Ok(trace) => examine(work, &trace, &Budget::GATE, None).err()?,
                Err(what) => return Some(what),
            };
            Some(format!("{}: {}", found.trace, found.what))
        });
        let by = cut.or_else(|| {
            races::ALL.iter().find_map(|(race, play)| {
                work.clear();
                play(work, broken).err().map(|what| format!("{race}: {what}"))
            })
        });
        Shown { name, by }
    })
}
