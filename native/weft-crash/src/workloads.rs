//! What is done to a pool while everything is written down.
//!
//! Must always hold: a workload's steps are drawn from its seed, and nothing in it fails.

use weft_proto::ids::{Epoch, Rid, VolumeId};
use weft_proto::log::ReplicaKey;
use weft_proto::message::Hole;
use weft_proto::mutants::Broken;

use crate::disk::Disk;
use crate::host::{Around, Fact, Host};
use crate::judge::Expect;
use crate::rng::Rng;
use crate::run::{Trace, Workspace};
use crate::trace::Recorder;

const ONE: ReplicaKey = ReplicaKey { volume: VolumeId(0x11), rid: Rid(1) };
const TWO: ReplicaKey = ReplicaKey { volume: VolumeId(0x22), rid: Rid(4) };
const SEGMENT: u64 = 64 << 20;
const SEGMENT_BLOCKS: u64 = 16384;

/// A workload's name and what it does.
pub struct Workload {
    /// Its name.
    pub name: &'static str,
    play: fn(&mut Script<'_>) -> Result<(), String>,
}

impl core::fmt::Debug for Workload {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name)
    }
}

/// All workloads.
pub const ALL: &[Workload] = &[
    Workload { name: "pool-made-and-started", play: pool_made },
    Workload { name: "replicas-made-trashed-restored", play: trash },
    Workload { name: "stamps-data-seals", play: data },
    Workload { name: "holes", play: holes },
    Workload { name: "cached-and-flushed", play: cached },
    Workload { name: "log-turns-over", play: log },
    Workload { name: "log-full-of-two-replicas", play: two_replicas },
    Workload { name: "grown", play: grown },
    Workload { name: "killed-and-started-again", play: killed },
    Workload { name: "killed-while-made", play: killed_while_made },
    Workload { name: "killed-while-cached", play: killed_while_cached },
    Workload { name: "killed-at-random", play: killed_at_random },
];

struct Script<'a> {
    work: &'a mut Workspace,
    recorder: Recorder,
    host: Option<Host>,
    facts: Vec<(usize, Fact)>,
    around: Around,
    rng: Rng,
    epoch: u64,
    from: usize,
}

/// Plays a workload, in which a rule may be broken, and gives its trace.
pub fn record(work: &mut Workspace, workload: &Workload, seed: u64, broken: Broken) -> Result<Trace, String> {
    work.clear();
    let root = work.disk();
    let recorder = Recorder::below(&root);
    let base = Disk::default();
    let mut script = Script {
        work,
        recorder: recorder.clone(),
        host: None,
        facts: Vec::new(),
        around: Around { boot: 1, broken, ..Around::default() },
        rng: Rng::new(seed),
        epoch: 0,
        from: 0,
    };
    let played = (workload.play)(&mut script);
    let rest = script.host.take().map(Host::end);
    if let Some((driver, facts)) = rest {
        script.work.give_back(driver);
        script.facts.extend(facts);
    }
    played.map_err(|e| format!("{}: {e}", workload.name))?;
    let (facts, from, events, known) = (script.facts, script.from, recorder.events(), Expect::default());
    Ok(Trace { name: format!("{} (seed {seed})", workload.name), events, facts, base, known, from })
}

impl Script<'_> {
    /// Starts a process on the disk as it is.
    fn start(&mut self) -> Result<(), String> {
        self.begin()?;
        self.host().serving()
    }

    fn begin(&mut self) -> Result<(), String> {
        let (root, state) = (self.work.disk(), self.work.state());
        let driver = self.work.driver();
        let make = (!self.facts.iter().any(|(_, fact)| matches!(fact, Fact::Pool)), self.rng.number());
        match Host::start(&root, &state, &self.around, driver, Some(self.recorder.clone()), make) {
            Ok(host) => {
                self.host = Some(host);
                Ok(())
            }
            Err(failed) => {
                let (error, driver) = *failed;
                self.work.give_back(driver);
                Err(error)
            }
        }
    }

    fn host(&mut self) -> &mut Host {
        self.host.as_mut().expect("started")
    }

    /// The process dies, the machine runs on.
    fn kill(&mut self) {
        let (driver, facts, around) = self.host.take().expect("started").kill();
        self.work.give_back(driver);
        self.facts.extend(facts);
        self.around = around;
    }

    fn open(&mut self, key: ReplicaKey) -> Result<(), String> {
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        self.host().open(key, epoch)
    }

    /// A pool that serves: power cuts before are the first workload's subject.
    fn serving(&mut self) -> Result<(), String> {
        self.start()?;
        self.from = self.recorder.len();
        Ok(())
    }

    /// A replica with a session, likewise.
    fn ready(&mut self, key: ReplicaKey, size: u64) -> Result<(), String> {
        self.start()?;
        self.host().create(key, size)?;
        self.from = self.recorder.len();
        self.open(key)
    }

    fn some(&mut self, most: usize) {
        let steps = self.rng.index(most);
        self.host().run(steps);
    }
}

/// R10, R20: the directory, the log, the superblock, three starts.
fn pool_made(s: &mut Script<'_>) -> Result<(), String> {
    s.start()?;
    s.host().stop();
    s.kill();
    s.start()?;
    s.kill();
    s.start()
}

fn trash(s: &mut Script<'_>) -> Result<(), String> {
    s.serving()?;
    s.host().create(ONE, SEGMENT)?;
    s.open(ONE)?;
    s.host().write(ONE, 1, 3, 2);
    s.host().settle();
    s.host().create(TWO, 2 * SEGMENT)?;
    s.host().trash(ONE)?;
    s.host().restore(ONE)?;
    s.open(ONE)?;
    s.host().write(ONE, 1, 3, 1);
    s.host().settle();
    s.host().seal(ONE, 1);
    s.host().settle();
    s.host().trash(ONE)?;
    s.host().empty_trash(ONE)?;
    s.open(TWO)
}

/// R6, R7, R22: first touches, overwrites under way together, seals, two segments.
fn data(s: &mut Script<'_>) -> Result<(), String> {
    s.ready(ONE, 2 * SEGMENT)?;
    for interval in 1..4 {
        for (block, blocks) in [(2, 2), (300, 1), (3, 3), (SEGMENT_BLOCKS - 2, 4)] {
            s.host().write(ONE, interval, block, blocks);
            s.some(6);
        }
        s.host().settle();
        s.host().write(ONE, interval + 1, 3, 1);
        s.some(5);
        s.host().seal(ONE, interval);
        s.some(8);
        s.host().write(ONE, interval + 1, 4, 1);
        s.host().settle();
    }
    s.host().look(ONE, 2, 4)
}

/// R19, N8.
fn holes(s: &mut Script<'_>) -> Result<(), String> {
    s.ready(ONE, SEGMENT)?;
    s.host().write(ONE, 1, 0, 8);
    s.host().settle();
    s.host().zero(ONE, 1, 1, 2, Hole::Zero);
    s.some(6);
    s.host().zero(ONE, 1, 5, 2, Hole::Absent);
    s.host().write(ONE, 1, 4, 1);
    s.host().settle();
    s.host().seal(ONE, 1);
    s.host().settle();
    s.host().zero(ONE, 2, 0, 4, Hole::Absent);
    s.some(6);
    s.host().write(ONE, 2, 2, 1);
    s.host().settle();
    s.host().write(ONE, 2, 6, 1);
    s.host().zero(ONE, 2, 6, 1, Hole::Zero);
    s.host().settle();
    s.host().seal(ONE, 2);
    s.host().settle();
    Ok(())
}

/// P4: acknowledged from the cache, durable after a flush.
fn cached(s: &mut Script<'_>) -> Result<(), String> {
    s.start()?;
    s.host().cached();
    s.host().create(ONE, 2 * SEGMENT)?;
    s.from = s.recorder.len();
    s.open(ONE)?;
    for interval in 1..4 {
        s.host().write(ONE, interval, 2, 2);
        s.host().write(ONE, interval, 3, 1);
        s.host().settle();
        s.host().write(ONE, interval, SEGMENT_BLOCKS - 1, 2);
        s.some(8);
        s.host().flush(ONE);
        s.some(6);
        s.host().write(ONE, interval, 2, 1);
        s.host().settle();
        s.host().zero(ONE, interval, 4, 1, Hole::Zero);
        s.host().settle();
        s.host().flush(ONE);
        s.host().settle();
        s.host().seal(ONE, interval);
        s.host().settle();
    }
    Ok(())
}

/// R20: the ring turns over twice, checkpoints come and go; some batches have several blocks.
fn log(s: &mut Script<'_>) -> Result<(), String> {
    s.ready(ONE, SEGMENT)?;
    for round in 0..70 {
        s.open(ONE)?;
        if round % 9 == 0 {
            s.host().write(ONE, 1, round, 1);
            s.host().settle();
        }
        if round % 20 == 19 {
            s.host().seal(ONE, 1);
            s.host().settle();
        }
    }
    Ok(())
}

/// Records pile up while checkpoints of two replicas are written.
fn two_replicas(s: &mut Script<'_>) -> Result<(), String> {
    s.ready(ONE, SEGMENT)?;
    s.host().create(TWO, SEGMENT)?;
    s.open(TWO)?;
    for round in 0..40 {
        s.epoch += 1;
        let epoch = Epoch(s.epoch);
        let key = if round % 3 == 0 { TWO } else { ONE };
        s.host().attach(key)?;
        s.host().ask_promise(key, epoch);
        s.some(4);
        if round % 7 == 6 {
            s.host().settle();
            s.host().write(key, 1, round * 256, 1);
            s.some(3);
        }
    }
    s.host().settle();
    Ok(())
}

/// R18.
fn grown(s: &mut Script<'_>) -> Result<(), String> {
    s.ready(ONE, SEGMENT)?;
    s.host().write(ONE, 1, SEGMENT_BLOCKS - 1, 1);
    s.host().settle();
    s.host().grow(ONE, 1, SEGMENT, 2 * SEGMENT);
    s.some(6);
    s.host().write(ONE, 1, 7, 1);
    s.host().settle();
    s.host().write(ONE, 1, SEGMENT_BLOCKS, 1);
    s.host().settle();
    s.host().seal(ONE, 1);
    s.host().settle();
    Ok(())
}

/// What a killed process left in caches must not be built upon: the power may go after the next start.
fn killed(s: &mut Script<'_>) -> Result<(), String> {
    s.ready(ONE, 2 * SEGMENT)?;
    for round in 0..6u64 {
        s.host().write(ONE, 1, 2, 2);
        s.host().settle();
        s.host().write(ONE, 1, 3, 2);
        s.host().write(ONE, 2, 700 + round * 256, 1);
        s.some(5);
        s.host().seal(ONE, 1);
        s.some(4);
        s.kill();
        s.start()?;
        s.open(ONE)?;
        s.host().look(ONE, 2, 4)?;
        s.host().write(ONE, 1, 3, 1);
        s.host().settle();
        s.host().seal(ONE, 1);
        s.host().settle();
        s.host().look(ONE, 2, 4)?;
    }
    Ok(())
}

fn killed_while_made(s: &mut Script<'_>) -> Result<(), String> {
    for steps in 0..8 {
        s.begin()?;
        s.host().run(steps);
        s.kill();
    }
    s.start()?;
    for steps in 0..4 {
        let pending = s.host().ask_create(ONE, SEGMENT);
        s.host().run(steps);
        drop(pending);
        s.kill();
        s.start()?;
    }
    s.host().create(ONE, SEGMENT)?;
    s.open(ONE)?;
    s.host().write(ONE, 1, 0, 1);
    s.some(3);
    s.kill();
    s.start()?;
    s.open(ONE)?;
    s.host().write(ONE, 1, 0, 1);
    s.host().settle();
    Ok(())
}

fn killed_while_cached(s: &mut Script<'_>) -> Result<(), String> {
    s.start()?;
    s.host().cached();
    s.host().create(ONE, 2 * SEGMENT)?;
    s.from = s.recorder.len();
    s.open(ONE)?;
    for _ in 0..4 {
        s.host().write(ONE, 1, 2, 2);
        s.host().settle();
        s.host().write(ONE, 1, 3, 1);
        s.some(4);
        s.kill();
        s.start()?;
        s.host().cached();
        s.open(ONE)?;
        // The guest lives on: what it was told before the kill is what it flushes now.
        s.host().flush(ONE);
        s.host().settle();
        s.host().seal(ONE, 1);
        s.host().settle();
    }
    Ok(())
}

fn killed_at_random(s: &mut Script<'_>) -> Result<(), String> {
    s.ready(ONE, SEGMENT)?;
    for round in 0..12u64 {
        s.host().write(ONE, 1, round % 5, 1);
        s.some(4);
        s.host().write(ONE, 2, (round * 300) % 2000, 1);
        s.some(4);
        if s.rng.chance(40) {
            s.host().zero(ONE, 2, round % 5, 2, Hole::Zero);
            s.some(3);
        }
        s.host().seal(ONE, 1);
        s.some(6);
        s.kill();
        s.begin()?;
        s.some(10);
        if s.rng.chance(30) {
            s.kill();
            s.begin()?;
        }
        s.host().serving()?;
        s.open(ONE)?;
    }
    Ok(())
}
