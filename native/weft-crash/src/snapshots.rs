//! A replica with images: the pool of weft-io, the log and the chain of images of weft-proto, and between them no more than
//! the order that R28 asks for. What it plays, and what must be there after a power cut.
//!
//! Must always hold: an image reads what the head held when it was taken, from the moment its taking was answered until
//! its deletion is asked for, whatever is written, deleted, killed or cut off in between; so does the head. A replica that is
//! made of an image has what that one had, as a whole, or is not there.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use weft_io::buffer::IoBuf;
use weft_io::driver::{Driver as _, TokenSpace};
use weft_io::file_pool::{FilePool, PoolAnswer, PoolConfig, PoolError, PoolEvent, PoolOp, Slot};
use weft_io::files::Files;
use weft_io::pool_dir::PoolDir;
use weft_proto::durable::Durable;
use weft_proto::ids::{Epoch, Generation, PoolId, PoolInc, Rid, SnapId, VolumeId};
use weft_proto::images::{HandDown, ImageChange, ImageForm, Images, Place};
use weft_proto::log::{LOG_BLOCK, Log, LogExpectation, LogPlace, LogRecord, ReplicaKey, recover};
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::{Payload, block_crcs};
use weft_proto::replica::{DiskDone, DiskOp};

use crate::disk::Disk;
use crate::host::{BLOCK, filled};
use crate::rng::Rng;
use crate::run::{Expectation, Found, Trace, Workspace};
use crate::trace::{Recorder, Silent, SlowDriver};

const KEY: ReplicaKey = ReplicaKey { volume: VolumeId(0x11), rid: Rid(1) };
const POOL: PoolId = PoolId(0xb0);
const SIZE: u64 = 2 << 26;
/// Small, so that there are many regions in a segment.
const SHIFT: u8 = 16;
const REGION_BLOCKS: u64 = 16;
const SEGMENT_BLOCKS: u64 = 16384;
/// So many that no checkpoint is needed.
const LOG_BLOCKS: u64 = 256;
const EPOCH: Epoch = Epoch(1);

/// What became known to whoever asks a replica.
#[derive(Clone, Debug)]
pub enum Fact {
    /// The pool and the replica are there.
    Ready,
    /// A block is to become this; 0 is zeroes.
    WriteAsked(u64, u64),
    /// It has.
    Written(u64, u64),
    /// An image is to be taken.
    TakeAsked(SnapId),
    /// It was.
    Taken(SnapId),
    /// Something is to be kept of an image.
    KeepAsked(SnapId, u64),
    /// It was.
    Kept(SnapId, u64),
    /// An image is to be deleted: nobody reads it any more.
    DeleteAsked(SnapId),
    /// The head went to the trash.
    TrashAsked,
    /// A replica is to be made of an image.
    CloneAsked(ReplicaKey, SnapId),
    /// It was.
    Cloned(ReplicaKey),
    /// The process was killed, the machine runs on.
    Killed,
    /// So many processes have served the pool.
    Started(u64),
}

/// Where the pool lies, and who watches.
type Seat = (SlowDriver, Vec<(usize, Fact)>);

/// See the module.
struct Keeper {
    pool: FilePool,
    driver: SlowDriver,
    recorder: Option<Recorder>,
    facts: Vec<(usize, Fact)>,
    log: Log,
    durable: Durable,
    images: Images,
    token: u64,
    done: BTreeMap<u64, Result<PoolAnswer, PoolError>>,
    /// What is known when an op ends.
    awaited: BTreeMap<u64, Fact>,
    open: bool,
    /// Replicas that were made of images.
    clones: Vec<ReplicaKey>,
    /// Steps until the process dies.
    fuse: Option<usize>,
}

/// Why something was not done.
#[derive(Debug)]
enum Stop {
    /// The process is to die here.
    Killed,
    Failed(String),
}

impl core::fmt::Display for Stop {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Stop::Killed => f.write_str("the process is killed"),
            Stop::Failed(what) => f.write_str(what),
        }
    }
}

impl From<String> for Stop {
    fn from(what: String) -> Stop {
        Stop::Failed(what)
    }
}

impl Keeper {
    /// Serves the pool below `root`, of which `starts` processes have served before; makes it if it is not there.
    fn start(
        root: &Path,
        mut driver: SlowDriver,
        recorder: Option<Recorder>,
        (ready, starts, seed): (bool, u64, u64),
    ) -> Result<Keeper, Box<(String, SlowDriver)>> {
        driver.reset(seed, recorder.clone());
        if let Some(recorder) = &recorder {
            recorder.starting(ready);
        }
        let files = match &recorder {
            Some(recorder) => Files::recorded(Arc::new(recorder.clone())),
            None => Files::recorded(Arc::new(Silent)),
        };
        let path = root.join("pool");
        let opened = if ready {
            PoolDir::open_through(&files, &path)
        } else {
            PoolDir::create_through(&files, &path, LOG_BLOCKS * LOG_BLOCK as u64, b"images")
        };
        let dir = match opened {
            Ok(dir) => dir,
            Err(error) => return Err(Box::new((format!("the pool does not open: {error}"), driver))),
        };
        let pool = FilePool::start(dir, PoolConfig::new(TokenSpace(1)), &mut driver);
        let place = LogPlace { pool: POOL, inc: PoolInc(starts + 1), blocks: LOG_BLOCKS };
        let empty = vec![0; LOG_BLOCK * usize::try_from(LOG_BLOCKS).expect("few")];
        let expect = LogExpectation { pool: POOL, inc: PoolInc(starts), from_seq: 1, known_durable: 0 };
        let nothing = recover(&empty, &expect).expect("an empty ring");
        let mut keeper = Keeper {
            pool: pool.expect("a pool"),
            driver,
            facts: Vec::new(),
            log: Log::new(place, &nothing),
            durable: Durable::new(KEY.volume, KEY.rid, SIZE, SHIFT),
            images: Images::default(),
            token: 0,
            done: BTreeMap::new(),
            awaited: BTreeMap::new(),
            open: false,
            clones: Vec::new(),
            fuse: None,
            recorder,
        };
        match keeper.take_up(ready, place, &expect) {
            Ok(()) => Ok(keeper),
            Err(stop) => Err(Box::new((format!("it does not start: {stop}"), keeper.end().0))),
        }
    }

    fn take_up(&mut self, ready: bool, place: LogPlace, expect: &LogExpectation) -> Result<(), Stop> {
        let ring = self.run(PoolOp::ReadLog)?;
        let PoolAnswer::Bytes(ring) = ring else { return Err(format!("{ring:?}").into()) };
        if ring.len() as u64 != LOG_BLOCKS * LOG_BLOCK as u64 {
            return Err(format!("a log of {} bytes", ring.len()).into());
        }
        let recovered = recover(ring.bytes(), expect).map_err(|damage| damage.to_string())?;
        self.log = Log::new(place, &recovered);
        for recorded in &recovered.records {
            self.apply(&recorded.record);
        }
        self.fact(Fact::Started(place.inc.0));
        let PoolAnswer::Images(found) = self.run(PoolOp::ListImages)? else {
            return Err("no list of images".to_owned().into());
        };
        if let Some(recorder) = &self.recorder {
            recorder.starting(false);
        }
        // What the log does not know was never taken, or is gone.
        for (replica, image) in found {
            if self.images.get(image).is_none() {
                self.run(PoolOp::DropImage { replica, image })?;
            }
        }
        if !ready {
            self.run(PoolOp::CreateReplica { replica: KEY, meta_bytes: 4096, thick: None })?;
        }
        let PoolAnswer::Replicas(here) = self.run(PoolOp::ListReplicas)? else {
            return Err("no list of replicas".to_owned().into());
        };
        if here.contains(&KEY) {
            let unsealed = |region: u64| (region << SHIFT)..((region + 1) << SHIFT);
            let regions = (0..).zip(&self.durable.rgm).filter(|(_, stamp)| **stamp > self.durable.sealed);
            let unsealed = regions.map(|(region, _)| unsealed(region)).collect();
            self.run(PoolOp::OpenReplica { replica: KEY, size: SIZE, unsealed })?;
            self.open = true;
        }
        for replica in here.into_iter().filter(|replica| *replica != KEY) {
            self.run(PoolOp::OpenReplica { replica, size: SIZE, unsealed: Vec::new() })?;
            self.clones.push(replica);
        }
        if !ready {
            self.fact(Fact::Ready);
        }
        Ok(())
    }

    fn fact(&mut self, fact: Fact) {
        let at = self.recorder.as_ref().map_or(0, Recorder::len);
        self.facts.push((at, fact));
    }

    fn apply(&mut self, record: &LogRecord) {
        self.durable.apply(record);
        if let LogRecord::Image { image, attempt, change } = record {
            self.images.apply((*image, *attempt), change, (SIZE, SHIFT), &self.durable.rgm);
        }
    }

    fn submit(&mut self, op: PoolOp) -> u64 {
        self.token += 1;
        self.pool.submit(self.token, op);
        self.token
    }

    /// One step of the pool and its driver; false when nothing is to be done.
    fn step(&mut self) -> Result<bool, Stop> {
        if let Some(steps) = &mut self.fuse {
            *steps = steps.checked_sub(1).ok_or(Stop::Killed)?;
        }
        let mut progress = false;
        self.pool.drive(&mut self.driver);
        while let Some(event) = self.pool.poll_event() {
            progress = true;
            let PoolEvent::Done { token, result } = event else { return Err(format!("{event:?}").into()) };
            if let (Some(fact), Ok(_)) = (self.awaited.remove(&token), &result) {
                self.fact(fact);
            }
            self.done.insert(token, result);
        }
        let mut completions = Vec::new();
        self.driver.wait(Some(Duration::ZERO), &mut completions).expect("never waits");
        for completion in completions {
            progress = true;
            self.pool.handle_completion(completion);
        }
        Ok(progress)
    }

    fn settle(&mut self) -> Result<(), Stop> {
        while self.step()? {}
        Ok(())
    }

    fn run(&mut self, op: PoolOp) -> Result<PoolAnswer, Stop> {
        let token = self.submit(op);
        while !self.done.contains_key(&token) {
            self.step()?;
        }
        let told = self.done.remove(&token).expect("just looked");
        told.map_err(|error| Stop::Failed(error.to_string()))
    }

    /// Durable when this returns.
    fn log(&mut self, records: &[LogRecord]) -> Result<(), Stop> {
        for record in records {
            self.log.append(KEY, record).map_err(|error| error.to_string())?;
        }
        while let Some(write) = self.log.poll_write() {
            let (offset, data) = (write.position_blocks * LOG_BLOCK as u64, IoBuf::copy_of(&write.bytes));
            self.run(PoolOp::WriteLog { offset, data })?;
            self.log.handle_written(write.batch, Ok(()));
        }
        records.iter().for_each(|record| self.apply(record));
        Ok(())
    }

    fn log_image(&mut self, image: SnapId, change: ImageChange) -> Result<(), Stop> {
        self.log(&[LogRecord::Image { image, attempt: 1, change }])
    }

    /// R28: what images need of a range is put there, durably, and then logged.
    fn preserve(&mut self, offset: u64, len: u64) -> Result<(), Stop> {
        let Some((image, regions)) = self.images.needs(offset, len) else { return Ok(()) };
        for region in &regions {
            let (offset, len) = self.images.get(image).expect("it needs them").range(*region);
            self.run(PoolOp::Preserve { replica: KEY, image, offset, len })?;
        }
        self.log_image(image, ImageChange::Has { regions })
    }

    /// Writes a block, or makes it a hole; its end is waited for by [`Keeper::settle`].
    fn write(&mut self, block: u64, tag: u64, interval: u32) -> Result<(), Stop> {
        self.fact(Fact::WriteAsked(block, tag));
        let offset = block * BLOCK;
        self.preserve(offset, BLOCK)?;
        let region = u32::try_from(offset >> SHIFT).expect("small volumes");
        let generation = Generation::new(EPOCH, interval);
        if self.durable.rgm[region as usize] < generation {
            self.log(&[LogRecord::Stamp { generation, regions: vec![region] }])?;
        }
        let op = if tag == 0 {
            DiskOp::Zero { offset, len: BLOCK, kind: Hole::Zero, keep_space: false }
        } else {
            let data = IoBuf::copy_of(&filled(tag));
            DiskOp::Write { offset, crcs: block_crcs(data.bytes()), data, durable: true }
        };
        let token = self.submit(PoolOp::Disk { replica: KEY, op });
        self.awaited.insert(token, Fact::Written(block, tag));
        Ok(())
    }

    fn seal(&mut self, interval: u32) -> Result<(), Stop> {
        self.settle()?;
        self.run(PoolOp::Disk { replica: KEY, op: DiskOp::Seal })?;
        self.log(&[LogRecord::Sealed { generation: Generation::new(EPOCH, interval) }])
    }

    /// Takes an image when nothing executes.
    fn take(&mut self, image: SnapId, interval: u32) -> Result<(), Stop> {
        self.settle()?;
        self.fact(Fact::TakeAsked(image));
        self.run(PoolOp::TakeImage { replica: KEY, image, slot_bytes: 8192 })?;
        let generation = Generation::new(EPOCH, interval);
        let form = ImageForm::Chained;
        self.log_image(image, ImageChange::Prepared { generation, epoch: EPOCH, incarnation: 1, form })?;
        self.fact(Fact::Taken(image));
        Ok(())
    }

    /// Keeps a number in one of an image's two files.
    fn keep(&mut self, image: SnapId, number: u64) -> Result<(), Stop> {
        self.fact(Fact::KeepAsked(image, number));
        let slot = if number.is_multiple_of(2) { Slot::A } else { Slot::B };
        self.run(PoolOp::WriteImage { replica: KEY, image, slot, bytes: filled(number) })?;
        self.fact(Fact::Kept(image, number));
        Ok(())
    }

    fn delete(&mut self, image: SnapId) -> Result<(), Stop> {
        self.fact(Fact::DeleteAsked(image));
        self.log_image(image, ImageChange::Deleting)
    }

    /// Makes a replica of an image.
    fn clone_out(&mut self, image: SnapId, to: ReplicaKey) -> Result<(), Stop> {
        self.settle()?;
        self.fact(Fact::CloneAsked(to, image));
        self.run(PoolOp::BeginClone { from: KEY, image, to, meta_bytes: 4096 })?;
        for region in 0..u32::try_from(SIZE >> SHIFT).expect("few") {
            let place = self.images.place(image, region).expect("a region of it");
            let (offset, len) = (u64::from(region) << SHIFT, 1 << SHIFT);
            if place != Place::Absent {
                self.run(PoolOp::CloneOut { from: KEY, place, to, offset, len })?;
            }
        }
        self.run(PoolOp::PublishClone { replica: to, checkpoint: checkpoint_of(to) })?;
        self.run(PoolOp::OpenReplica { replica: to, size: SIZE, unsealed: Vec::new() })?;
        self.clones.push(to);
        self.fact(Fact::Cloned(to));
        Ok(())
    }

    /// One step of a deletion; false when there is none to do.
    fn hand_down(&mut self) -> Result<bool, Stop> {
        match self.images.hand_down() {
            None => return Ok(false),
            Some(HandDown::Gone(image)) => {
                self.log_image(image, ImageChange::Gone)?;
                self.run(PoolOp::DropImage { replica: KEY, image })?;
            }
            Some(HandDown::Empty(image)) => {
                self.log_image(image, ImageChange::Emptied)?;
                self.run(PoolOp::EmptyImage { replica: KEY, image })?;
            }
            Some(HandDown::Segment { image, heir, segment, whole, regions }) => {
                let first = u64::from(segment) * SEGMENT_BLOCKS;
                let range = |region: &u32| {
                    let lo = u64::from(*region) * REGION_BLOCKS - first;
                    let block = |block: u64| u32::try_from(block).expect("within a segment");
                    block(lo)..block(lo + REGION_BLOCKS)
                };
                let blocks = if whole { Vec::new() } else { regions.iter().map(range).collect() };
                self.run(PoolOp::HandDown { replica: KEY, image, heir, segment, blocks })?;
                self.log_image(heir, ImageChange::Has { regions })?;
            }
        }
        Ok(true)
    }

    /// A block's tag, of the head or of an image.
    fn read(&mut self, of: Option<SnapId>, block: u64) -> Result<u64, Stop> {
        let (offset, len) = (block * BLOCK, BLOCK);
        let head = PoolOp::Disk { replica: KEY, op: DiskOp::Read { offset, len } };
        let region = u32::try_from(offset >> SHIFT).expect("small volumes");
        let op = match of.map(|image| self.images.place(image, region).expect("a region of it")) {
            None | Some(Place::Head) => head,
            Some(Place::Absent) => return Ok(0),
            Some(Place::Image { image, heir }) => {
                PoolOp::Image { replica: KEY, image, heir, op: DiskOp::Read { offset, len } }
            }
        };
        self.tag_by(op)
    }

    /// A block's tag, of a replica that was made of an image.
    fn read_clone(&mut self, replica: ReplicaKey, block: u64) -> Result<u64, Stop> {
        let op = DiskOp::Read { offset: block * BLOCK, len: BLOCK };
        self.tag_by(PoolOp::Disk { replica, op })
    }

    fn tag_by(&mut self, op: PoolOp) -> Result<u64, Stop> {
        let PoolAnswer::Disk(DiskDone::Data(extents)) = self.run(op)? else {
            return Err("a read gives data".to_owned().into());
        };
        match &extents[..] {
            [Extent::Hole { .. }] => Ok(0),
            [Extent::Data { crcs, data }] if *crcs == block_crcs(data.bytes()) => {
                Ok(u64::from_le_bytes(data.bytes()[..8].try_into().expect("a block")))
            }
            other => Err(format!("{other:?}").into()),
        }
    }

    /// The number that was kept of an image: the higher of the two.
    fn kept(&mut self, image: SnapId) -> Result<u64, Stop> {
        let mut kept = 0;
        for slot in [Slot::A, Slot::B] {
            let PoolAnswer::Bytes(bytes) = self.run(PoolOp::ReadImage { replica: KEY, image, slot })? else {
                return Err("a file gives bytes".to_owned().into());
            };
            // One that has lost its length holds nothing, as one that was never written.
            let Some(block) = bytes.bytes().get(..4096) else { continue };
            let number = u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
            if block == filled(number) {
                kept = number.max(kept);
            }
        }
        Ok(kept)
    }

    /// The process dies; what it asked of the kernel may have been done.
    fn kill(mut self) -> Seat {
        self.driver.kill();
        self.fact(Fact::Killed);
        (self.driver, self.facts)
    }

    fn end(mut self) -> Seat {
        self.driver.reset(0, None);
        (self.driver, self.facts)
    }
}

/// What stands in the first checkpoint of a replica that is made of an image.
fn checkpoint_of(to: ReplicaKey) -> Vec<u8> {
    filled(u64::try_from(to.volume.0).expect("small numbers"))
}

#[derive(Clone, Debug, Default)]
struct Expected {
    /// What each block held when it was taken.
    content: BTreeMap<u64, u64>,
    taken: bool,
    kept: BTreeSet<u64>,
    least_kept: u64,
}

/// Everything that is known at one moment.
#[derive(Clone, Debug, Default)]
pub struct Known {
    ready: bool,
    starts: u64,
    trashed: bool,
    /// What each block has been asked to be since the last that was answered, which comes first.
    blocks: BTreeMap<u64, Vec<u64>>,
    images: BTreeMap<SnapId, Expected>,
    /// What replicas that are made of images have, and whether they are there.
    clones: BTreeMap<ReplicaKey, (BTreeMap<u64, u64>, bool)>,
}

/// What was found of a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    head: BTreeMap<u64, u64>,
    images: BTreeMap<SnapId, (BTreeMap<u64, u64>, u64)>,
    clones: BTreeMap<ReplicaKey, BTreeMap<u64, u64>>,
}

impl Expectation for Known {
    type Fact = Fact;
    type Asked = Vec<u64>;
    type Seen = Seen;

    fn learn(&mut self, fact: &Fact) {
        match fact {
            Fact::Ready => self.ready = true,
            Fact::Started(starts) => self.starts = *starts,
            Fact::Killed => {}
            Fact::WriteAsked(block, tag) => {
                self.blocks.entry(*block).or_insert_with(|| vec![0]).push(*tag);
            }
            Fact::Written(block, tag) => {
                let versions = self.blocks.get_mut(block).expect("asked for before");
                let at = versions.iter().rposition(|version| version == tag).expect("asked for before");
                versions.drain(..at);
            }
            Fact::TakeAsked(image) => {
                // Nothing was under way; what a killed process left may be there or not.
                let sure = self.blocks.iter().filter(|(_, versions)| versions.len() == 1);
                let content = sure.map(|(block, versions)| (*block, versions[0])).collect();
                self.images.insert(*image, Expected { content, ..Expected::default() });
            }
            Fact::Taken(image) => {
                self.images.get_mut(image).expect("asked for before").taken = true;
            }
            Fact::KeepAsked(image, number) => {
                self.images.get_mut(image).expect("taken before").kept.insert(*number);
            }
            Fact::Kept(image, number) => {
                self.images.get_mut(image).expect("taken before").least_kept = *number;
            }
            Fact::DeleteAsked(image) => drop(self.images.remove(image)),
            Fact::TrashAsked => self.trashed = true,
            Fact::CloneAsked(to, image) => {
                let content = self.images.get(image).expect("taken before").content.clone();
                self.clones.insert(*to, (content, false));
            }
            Fact::Cloned(to) => self.clones.get_mut(to).expect("asked for before").1 = true,
        }
    }

    fn asked(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }

    fn beside(&self) -> u64 {
        self.starts * 4 + u64::from(self.ready) * 2 + u64::from(self.trashed)
    }

    fn recover(
        &self,
        work: &mut Workspace,
        blocks: &Vec<u64>,
        recorder: Option<Recorder>,
        (draw, again): (u64, bool),
    ) -> Result<Found<Known>, String> {
        let root = work.disk();
        let start = |driver, recorder, starts, draw| {
            Keeper::start(&root, driver, recorder, (self.ready, starts, draw))
        };
        let mut seen: Option<Seen> = None;
        let mut facts = Vec::new();
        for turn in 0..=u64::from(again) {
            let recorder = recorder.clone().filter(|_| turn == 0);
            let mut keeper = match start(work.driver(), recorder, self.starts + turn, draw + turn) {
                Ok(keeper) => keeper,
                Err(failed) => {
                    let (what, driver) = *failed;
                    work.give_back(driver);
                    return Err(what);
                }
            };
            let looked = self.look(&mut keeper, blocks, turn == u64::from(again));
            let (driver, told) = keeper.end();
            work.give_back(driver);
            let looked = looked.map_err(|stop| format!("start {turn}: {stop}"))?;
            if let Some(first) = &seen {
                if *first != looked {
                    return Err(format!("first {first:?}, then {looked:?}"));
                }
            } else {
                facts = told;
            }
            seen = Some(looked);
        }
        Ok(Found { seen: seen.expect("looked at once"), facts })
    }

    fn check(&self, seen: &Seen) -> Result<(), String> {
        for (block, versions) in self.blocks.iter().filter(|_| !self.trashed) {
            let found = seen.head.get(block).copied().unwrap_or_default();
            if !versions.contains(&found) {
                return Err(format!("block {block} of the head: found {found:x}, allowed {versions:x?}"));
            }
        }
        for (clone, found) in &seen.clones {
            let volume = clone.volume;
            let (content, _) =
                self.clones.get(clone).ok_or_else(|| format!("nobody has asked for {volume}"))?;
            for (block, tag) in found {
                let wanted = content.get(block).copied();
                let unsure = self.blocks.contains_key(block) && wanted.is_none();
                if !unsure && *tag != wanted.unwrap_or_default() {
                    let wanted = wanted.unwrap_or_default();
                    return Err(format!(
                        "block {block} of clone {volume}: found {tag:x}, image had {wanted:x}"
                    ));
                }
            }
        }
        let lost = |(clone, (_, made)): &(&ReplicaKey, &(_, bool))| *made && !seen.clones.contains_key(clone);
        if let Some((clone, _)) = self.clones.iter().find(lost) {
            return Err(format!("clone {} is not there", clone.volume));
        }
        for (image, expected) in &self.images {
            let Some((found, kept)) = seen.images.get(image) else {
                if expected.taken {
                    return Err(format!("image {image} is not there"));
                }
                continue;
            };
            for (block, tag) in found {
                let wanted = expected.content.get(block).copied();
                let unsure = self.blocks.contains_key(block) && wanted.is_none();
                if !unsure && *tag != wanted.unwrap_or_default() {
                    let wanted = wanted.unwrap_or_default();
                    return Err(format!("block {block} of image {image}: found {tag:x}, held {wanted:x}"));
                }
            }
            if *kept < expected.least_kept || *kept > 0 && !expected.kept.contains(kept) {
                return Err(format!(
                    "of image {image} {kept} was kept, had answered {}",
                    expected.least_kept
                ));
            }
        }
        Ok(())
    }
}

impl Known {
    /// Everything that can be seen. At last, and in between, what comes next is done: writes everywhere, deletions.
    fn look(&self, keeper: &mut Keeper, blocks: &[u64], last: bool) -> Result<Seen, Stop> {
        let mut seen = Seen::default();
        if keeper.open {
            for block in blocks {
                seen.head.insert(*block, keeper.read(None, *block)?);
            }
        }
        let staying = |keeper: &Keeper| -> Vec<SnapId> {
            let staying = keeper.images.iter().filter(|image| image.state.keeps());
            staying.map(|image| image.id).collect()
        };
        let images = |keeper: &mut Keeper| {
            let mut images = BTreeMap::new();
            for image in staying(keeper) {
                let mut content = BTreeMap::new();
                for block in blocks {
                    content.insert(*block, keeper.read(Some(image), *block)?);
                }
                images.insert(image, (content, keeper.kept(image)?));
            }
            Ok::<_, Stop>(images)
        };
        seen.images = images(keeper)?;
        for clone in keeper.clones.clone() {
            let mut content = BTreeMap::new();
            for block in blocks {
                content.insert(*block, keeper.read_clone(clone, *block)?);
            }
            let slot = Slot::A;
            let checkpoint = keeper.run(PoolOp::ReadCheckpoint { replica: clone, slot })?;
            let PoolAnswer::Bytes(checkpoint) = checkpoint else {
                return Err(format!("{checkpoint:?}").into());
            };
            if checkpoint.bytes() != checkpoint_of(clone) {
                return Err(format!("clone {} has no checkpoint", clone.volume).into());
            }
            seen.clones.insert(clone, content);
        }
        if !last {
            return Ok(seen);
        }
        if keeper.open {
            for block in blocks.iter().step_by(2) {
                keeper.write(*block, 0xffff_0000 + block, 900)?;
            }
            keeper.settle()?;
        }
        let after = images(keeper)?;
        if after != seen.images {
            return Err(
                format!("after further writes images read {after:?}, before {:?}", seen.images).into()
            );
        }
        while keeper.hand_down()? {}
        let after = images(keeper)?;
        if after != seen.images {
            return Err(format!("after deletions images read {after:?}, before {:?}", seen.images).into());
        }
        Ok(seen)
    }
}

/// A workload's name and what it does.
pub struct Workload {
    /// Its name.
    pub name: &'static str,
    play: fn(&mut Script<'_>) -> Result<(), Stop>,
}

impl core::fmt::Debug for Workload {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name)
    }
}

/// All workloads.
pub const ALL: &[Workload] = &[
    Workload { name: "images-taken-and-written-over", play: taken },
    Workload { name: "images-deleted-in-any-order", play: deleted },
    Workload { name: "images-killed-while-preserved", play: killed },
    Workload { name: "images-without-head", play: trashed },
    Workload { name: "images-cloned", play: cloned },
];

struct Script<'a> {
    work: &'a mut Workspace,
    recorder: Recorder,
    keeper: Option<Keeper>,
    facts: Vec<(usize, Fact)>,
    starts: u64,
    rng: Rng,
    tag: u64,
    from: usize,
}

/// Plays a workload and gives its trace.
pub fn record(work: &mut Workspace, workload: &Workload, seed: u64) -> Result<Trace<Known>, String> {
    work.clear();
    let recorder = Recorder::below(&work.disk());
    let mut script = Script {
        work,
        recorder: recorder.clone(),
        keeper: None,
        facts: Vec::new(),
        starts: 0,
        rng: Rng::new(seed),
        tag: 0,
        from: 0,
    };
    let played = script.start(false).map_err(Stop::Failed).and_then(|()| {
        script.from = script.recorder.len();
        (workload.play)(&mut script)
    });
    if let Some((driver, facts)) = script.keeper.take().map(Keeper::end) {
        script.work.give_back(driver);
        script.facts.extend(facts);
    }
    played.map_err(|stop| format!("{}: {stop}", workload.name))?;
    let (facts, from, events) = (script.facts, script.from, recorder.events());
    let name = format!("{} (seed {seed})", workload.name);
    Ok(Trace { name, events, facts, base: Disk::default(), known: Known::default(), from })
}

impl Script<'_> {
    fn start(&mut self, ready: bool) -> Result<(), String> {
        let (root, driver) = (self.work.disk(), self.work.driver());
        let how = (ready, self.starts, self.rng.number());
        self.starts += 1;
        match Keeper::start(&root, driver, Some(self.recorder.clone()), how) {
            Ok(keeper) => self.keeper = Some(keeper),
            Err(failed) => {
                let (what, driver) = *failed;
                self.work.give_back(driver);
                return Err(what);
            }
        }
        Ok(())
    }

    fn keeper(&mut self) -> &mut Keeper {
        self.keeper.as_mut().expect("started")
    }

    /// The process dies and another one takes up the pool.
    fn kill(&mut self) -> Result<(), Stop> {
        let (driver, facts) = self.keeper.take().expect("started").kill();
        self.work.give_back(driver);
        self.facts.extend(facts);
        self.start(true).map_err(Stop::Failed)
    }

    /// Some blocks, of three regions in two segments, become others.
    fn write_some(&mut self, interval: u32) -> Result<(), Stop> {
        for block in [1, 3, REGION_BLOCKS + 2, SEGMENT_BLOCKS + 5] {
            if self.rng.chance(70) {
                self.tag += 1;
                let tag = if self.rng.chance(15) { 0 } else { self.tag };
                self.keeper().write(block, tag, interval)?;
            }
        }
        self.keeper().settle()
    }
}

/// R28: what was there before each write is in the newest image, or in the head.
fn taken(s: &mut Script<'_>) -> Result<(), Stop> {
    s.write_some(1)?;
    for n in 1..4u32 {
        s.keeper().take(SnapId(n.into()), n)?;
        s.keeper().keep(SnapId(n.into()), u64::from(n))?;
        s.write_some(n + 1)?;
        if n == 2 {
            s.keeper().seal(n)?;
        }
        s.write_some(n + 1)?;
    }
    // In the background.
    s.keeper().preserve(0, SIZE)?;
    s.keeper().keep(SnapId(3), 4)?;
    s.keeper().log_image(SnapId(3), ImageChange::Ready { note: Vec::new() })
}

/// Findings 20, 21: whole files change their name, or blocks are shared; writes go on meanwhile.
fn deleted(s: &mut Script<'_>) -> Result<(), Stop> {
    let both = [1, SEGMENT_BLOCKS + 5];
    let (older, newer) = (SnapId(100), SnapId(101));
    for (n, image) in (0u32..).zip([None, Some(older), Some(newer)]) {
        if let Some(image) = image {
            s.keeper().take(image, n)?;
        }
        for block in both.into_iter().filter(|_| image != Some(older)) {
            s.tag += 1;
            let tag = s.tag;
            s.keeper().write(block, tag, n + 1)?;
        }
        s.keeper().settle()?;
    }
    // The newer one has everything, the older one nothing.
    s.keeper().delete(newer)?;
    while s.keeper().hand_down()? {
        s.tag += 1;
        let tag = s.tag;
        s.keeper().write(3, tag, 3)?;
        s.keeper().settle()?;
    }
    let mut there = vec![older];
    s.write_some(3)?;
    for n in 1..6u32 {
        s.keeper().take(SnapId(n.into()), n)?;
        there.push(SnapId(n.into()));
        s.write_some(n + 1)?;
        if n > 2 {
            let image = there.remove(s.rng.index(there.len()));
            s.keeper().delete(image)?;
            while s.keeper().hand_down()? {
                if s.rng.chance(40) {
                    s.write_some(n + 1)?;
                }
            }
        }
    }
    while let Some(image) = there.pop() {
        s.keeper().delete(image)?;
        while s.keeper().hand_down()? {}
        s.write_some(7)?;
    }
    Ok(())
}

/// A process that was killed has put things into images that no log tells of.
fn killed(s: &mut Script<'_>) -> Result<(), Stop> {
    s.write_some(1)?;
    for n in 1..7u32 {
        let image = SnapId(n.into());
        s.keeper().fuse = Some(s.rng.index(60));
        let played = s.keeper().take(image, n).and_then(|()| s.write_some(n + 1)).and_then(|()| {
            if n > 2 {
                s.keeper().delete(SnapId(u128::from(n) - 2))?;
                while s.keeper().hand_down()? {}
            }
            Ok(())
        });
        match played {
            Err(Stop::Killed) | Ok(()) => s.kill()?,
            failed => return failed,
        }
        s.write_some(n + 1)?;
        while s.keeper().hand_down()? {}
    }
    Ok(())
}

/// H17: the head goes to the trash when no image leans on it; what they have stays readable.
fn trashed(s: &mut Script<'_>) -> Result<(), Stop> {
    s.write_some(1)?;
    for n in 1..3u32 {
        s.keeper().take(SnapId(n.into()), n)?;
        s.write_some(n + 1)?;
    }
    s.keeper().preserve(0, SIZE)?;
    if s.keeper().images.needs(0, SIZE).is_some() {
        return Err("an image still leans on the head".to_owned().into());
    }
    s.keeper().fact(Fact::TrashAsked);
    s.keeper().run(PoolOp::TrashReplica { replica: KEY, now_s: 1 })?;
    s.keeper().open = false;
    s.keeper().delete(SnapId(2))?;
    while s.keeper().hand_down()? {}
    s.kill()
}

/// A replica is made of an image that reads through others and the head, while writes go on; some makings are killed in the
/// middle, and nothing is left of those.
fn cloned(s: &mut Script<'_>) -> Result<(), Stop> {
    let to = |n: u32| ReplicaKey { volume: VolumeId(0x100 + u128::from(n)), rid: Rid(0) };
    s.write_some(1)?;
    for n in 1..3u32 {
        s.keeper().take(SnapId(n.into()), n)?;
        s.write_some(n + 1)?;
    }
    s.keeper().clone_out(SnapId(1), to(1))?;
    for n in 2..4u32 {
        s.keeper().fuse = Some(s.rng.index(50));
        match s.keeper().clone_out(SnapId(2), to(n)) {
            Err(Stop::Killed) | Ok(()) => s.kill()?,
            failed => return failed,
        }
    }
    s.keeper().delete(SnapId(1))?;
    while s.keeper().hand_down()? {}
    s.write_some(5)
}
