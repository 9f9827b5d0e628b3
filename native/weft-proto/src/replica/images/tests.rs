//! A replica with images over a pool that keeps the order of what overlaps and nothing else, that fails, and that dies.

use alloc::collections::VecDeque;
use alloc::vec;

use proptest::prelude::*;

use super::super::{Party, ReplicaConfig};
use super::*;
use crate::durable::Durable;
use crate::ids::{ClusterId, HostId, Ordinal, PoolId, PoolInc, Rid, SessionId, VolumeId};
use crate::images::SEGMENT_SHIFT;
use crate::message::{Attach, Request, Response, Watermark};
use crate::mutants::Broken;
use crate::payload::{HeapPayload, block_crcs};
use crate::record::{Owner, Record};
use crate::replica::{CopyOf, CopyStep, NotCloned, NotCopied};

const SHIFT: u8 = 24;
/// Two segments and a half of four regions each, the last region cut short.
const SIZE: u64 = (9 << SHIFT) + (1 << 20);
const MARK: Watermark = Watermark { cluster: ClusterId(1), incarnation: 1, revision: 1 };
const PARTY: Party = Party { host: HostId(7), session: SessionId(70) };
const EPOCH: Epoch = Epoch(3);
/// Snapshots from this one on were taken by others, and brought.
const BROUGHT: u128 = 200;
/// Blocks that are written to: the first and the last of each region.
const PLACES: u64 = 20;

fn place(n: u64) -> u64 {
    let (region, last) = (n / 2, n % 2 == 1);
    let end = ((region + 1) << SHIFT).min(SIZE);
    if last { end - BLOCK } else { region << SHIFT }
}

type Reply = Result<Answer<HeapPayload>, Refusal>;

#[derive(Clone, Debug)]
enum Job {
    Head(DiskOp<HeapPayload>),
    Image(ImageOp<HeapPayload>),
}

impl Job {
    /// What it touches of the head, and whether it changes it.
    fn touches(&self) -> Option<(u64, u64, bool)> {
        match self {
            Job::Head(DiskOp::Write { offset, data, .. }) => Some((*offset, data.len() as u64, true)),
            Job::Head(DiskOp::Zero { offset, len, .. }) => Some((*offset, *len, true)),
            Job::Head(DiskOp::Grow { from, to } | DiskOp::Cut { from, to }) => Some((*from, to - from, true)),
            Job::Head(
                DiskOp::Read { offset, len }
                | DiskOp::Kinds { offset, len }
                | DiskOp::Hash { offset, len, .. },
            )
            | Job::Image(
                ImageOp::Preserve { offset, len, .. }
                | ImageOp::CloneOut { place: Place::Head, offset, len, .. },
            ) => Some((*offset, *len, false)),
            Job::Image(ImageOp::CopyFill { offset, extents, .. }) => Some((*offset, len_of(extents), false)),
            _ => None,
        }
    }
}

/// What a look is to find: the block's value, of which image.
#[derive(Debug)]
enum Awaited {
    Write { at: u64, value: u64 },
    Look { of: SnapId, at: u64 },
    Changed { of: SnapId, since: SnapId, from: u64, to: u64 },
    Other,
}

/// A replica that is made of an image: what that one had when it was begun, and what was shared by now.
#[derive(Debug)]
struct Made {
    of: SnapId,
    expected: BTreeMap<u64, u64>,
    durable: Durable,
    shared: BTreeMap<u64, u64>,
}

struct Rig {
    replica: Replica<HeapPayload>,
    /// How its pool takes images.
    takes: ImageForm,
    /// As the log has it.
    durable: Durable,
    now: Instant,
    ordinal: u64,
    tag: u32,
    interval: u32,
    head: BTreeMap<u64, u64>,
    /// Values in images' files, and which regions of the smallest size their files have.
    files: BTreeMap<(SnapId, u64), Option<u64>>,
    dirs: BTreeSet<SnapId>,
    /// Images that are being filled: no start keeps them.
    filling: BTreeMap<SnapId, BTreeMap<u64, Option<u64>>>,
    /// Hashes that are kept, by image and segment.
    kept: BTreeMap<(SnapId, u32), Vec<u8>>,
    /// What comes of an attempt to put something into an image, or to hand it down from there.
    refuses: BTreeMap<SnapId, DiskError>,
    disk: Vec<(Token, Job)>,
    log: VecDeque<(Token, LogRecord)>,
    awaited: BTreeMap<u32, Awaited>,
    answered: BTreeMap<u32, Reply>,
    expected: BTreeMap<SnapId, BTreeMap<u64, u64>>,
    /// What those held whose data is to go, or has gone.
    destroyed: BTreeMap<SnapId, BTreeMap<u64, u64>>,
    taking: Option<(SnapId, BTreeMap<u64, u64>)>,
    /// What the head holds for whoever asks now: writes that were answered.
    acked: BTreeMap<u64, u64>,
    count: u64,
    clones: BTreeMap<ReplicaKey, Made>,
    /// Of how many the end was told, and of how many of those that they are whole.
    cloned: (u32, u32),
    /// Bytes of which hashes were asked.
    hashed: u64,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(Durable::new(VolumeId(1), Rid(0), SIZE, SHIFT))
    }

    fn with(mut durable: Durable) -> Rig {
        let mut record =
            Record::parse(include_bytes!("../../../specimens/record-v1.json")).expect("specimen");
        (record.vol, record.epoch) = (VolumeId(1), EPOCH);
        record.owner =
            Some(Owner { node: PARTY.host, session: PARTY.session, caretaker: false, first: None });
        let promise = LogRecord::Promise { epoch: EPOCH, session: PARTY.session, record: record.to_bytes() };
        durable.apply(&promise);
        let mut rig = Rig {
            replica: Replica::new(config(ImageForm::Chained), durable.clone()),
            takes: ImageForm::Chained,
            durable,
            now: Instant(1),
            ordinal: 0,
            tag: 0,
            interval: 1,
            head: BTreeMap::new(),
            files: BTreeMap::new(),
            dirs: BTreeSet::new(),
            filling: BTreeMap::new(),
            kept: BTreeMap::new(),
            refuses: BTreeMap::new(),
            disk: Vec::new(),
            log: VecDeque::new(),
            awaited: BTreeMap::new(),
            answered: BTreeMap::new(),
            expected: BTreeMap::new(),
            destroyed: BTreeMap::new(),
            taking: None,
            acked: BTreeMap::new(),
            count: 0,
            clones: BTreeMap::new(),
            cloned: (0, 0),
            hashed: 0,
        };
        rig.attach();
        rig
    }

    fn attach(&mut self) {
        self.ordinal += 1;
        let attach = Attach {
            volume: VolumeId(1),
            rid: Rid(0),
            pool: PoolId(1),
            host: PARTY.host,
            session: PARTY.session,
            ordinal: Ordinal(self.ordinal),
            watermark: MARK,
        };
        let tag = self.send(Ask::Attach(attach), Awaited::Other);
        assert!(matches!(self.answered[&tag], Ok(Answer::Attached(_))));
    }

    fn generation(&self) -> Generation {
        Generation::new(EPOCH, self.interval)
    }

    fn send(&mut self, ask: Ask<HeapPayload>, awaited: Awaited) -> u32 {
        self.tag += 1;
        self.now = self.now.after_ms(1);
        self.awaited.insert(self.tag, awaited);
        let epoch = if ask.is_of_images() { Epoch(0) } else { EPOCH };
        let request = Request { tag: self.tag, epoch, ask };
        self.replica.handle_request(self.now, AttachmentId(self.ordinal), request);
        self.drain();
        self.tag
    }

    fn drain(&mut self) {
        while let Some(action) = self.replica.poll_action() {
            match action {
                Action::Log { token, record } => {
                    if let LogRecord::Image { image, change: ImageChange::Prepared { .. }, .. } = &record {
                        // All of the interval has ended.
                        self.taking = Some((*image, self.acked.clone()));
                    }
                    self.log.push_back((token, record));
                }
                Action::Disk { token, op } => self.disk.push((token, Job::Head(op))),
                Action::Image { token, op } => self.disk.push((token, Job::Image(op))),
                Action::ReadStore { .. } => panic!("no promise is asked for"),
                Action::Reply { response, .. } => self.answer(response),
            }
        }
        while let Some((to, outcome)) = self.replica.poll_cloned() {
            let made = self.clones.remove(&to).expect("told once");
            self.cloned.0 += 1;
            match outcome {
                Ok(()) => {
                    self.cloned.1 += 1;
                    assert_eq!(made.shared, made.expected, "a clone of {}", made.of);
                    let sealed = made.durable.sealed;
                    for at in made.shared.keys() {
                        let region = usize::try_from(at >> SHIFT).expect("few");
                        assert_eq!(
                            made.durable.rgm[region], sealed,
                            "who joins is to get what is at {at:#x}"
                        );
                    }
                    assert!(made.durable.rgm.iter().all(|stamp| *stamp <= sealed));
                }
                Err(NotCloned::NoImage) => assert!(!self.expected.contains_key(&made.of), "{}", made.of),
                Err(NotCloned::Disk(error)) => assert_eq!(error, DiskError::NoSpace),
                Err(NotCloned::Ended) => panic!("nobody has given it up"),
            }
        }
    }

    /// Makes a replica of an image.
    fn clone_of(&mut self, of: SnapId) {
        self.count += 1;
        let to = ReplicaKey { volume: VolumeId(u128::from(self.count)), rid: Rid(5) };
        let durable = self.replica.clone_out(of, to);
        let Some(expected) = self.expected.get(&of).cloned() else {
            return assert_eq!(durable, Err(NotCloned::NoImage));
        };
        let durable = durable.expect("it is READY");
        assert_eq!((durable.volume, durable.rid, durable.promised), (to.volume, to.rid, Epoch(0)));
        self.clones.insert(to, Made { of, expected, durable, shared: BTreeMap::new() });
        self.drain();
    }

    fn answer(&mut self, Response { tag, outcome, .. }: Response<HeapPayload>) {
        match (self.awaited.remove(&tag).expect("one answer"), &outcome) {
            (Awaited::Write { at, value }, Ok(_)) => {
                self.acked.insert(at, value);
            }
            (Awaited::Look { of, at }, Ok(Answer::Data(extents))) => {
                let expected = self.expected.get(&of).map(|of| of.get(&at).copied().unwrap_or_default());
                // Looked at while it was being deleted: whatever it says.
                if let Some(expected) = expected {
                    assert_eq!(value_of(extents), expected, "block {at:#x} of {of}");
                }
            }
            (Awaited::Look { of, .. }, Err(refusal)) => {
                let gone = !self.expected.contains_key(&of) && *refusal == Refusal::NoSnapshot;
                assert!(gone || *refusal == Refusal::NotAttached, "{of}: {refusal:?}");
            }
            (Awaited::Changed { of, since, from, to }, Ok(Answer::Changed(bits))) => {
                assert!(of.0 < BROUGHT && since.0 < BROUGHT, "{of} since {since}: it did not take both");
                if let (Some(one), Some(other)) = (self.held(of), self.held(since)) {
                    assert_eq!(bits.len() as u64, (to - from).div_ceil(8 * CHANGED_GRAIN));
                    let differs = |at: &u64| one.get(at) != other.get(at);
                    for (n, at) in (from..to).step_by(1 << 16).enumerate() {
                        let expected = (0..PLACES)
                            .map(place)
                            .filter(|p| (at..at + CHANGED_GRAIN).contains(p))
                            .any(|p| differs(&p));
                        let bit = bits[n / 8] & 0x80 >> (n % 8) != 0;
                        assert_eq!(bit, expected, "{at:#x} of {of} since {since}");
                    }
                }
            }
            (Awaited::Changed { of, since, .. }, Err(refusal)) => {
                let gone = [of, since].iter().any(|id| id.0 >= BROUGHT || self.held(*id).is_none());
                assert!(
                    gone && *refusal == Refusal::NoSnapshot || *refusal == Refusal::NotAttached,
                    "{of} since {since}: {refusal:?}"
                );
            }
            (Awaited::Changed { .. }, other) => panic!("{other:?}"),
            _ => {}
        }
        self.answered.insert(tag, outcome);
    }

    // ---- what a session does

    fn is_busy(&self, from: u64, to: u64) -> bool {
        let busy =
            |awaited: &Awaited| matches!(awaited, Awaited::Write { at, .. } if (from..to).contains(at));
        self.awaited.values().any(busy)
    }

    fn write(&mut self, at: u64, interval: u32) -> u32 {
        if self.is_busy(at, at + BLOCK) {
            self.settle();
        }
        self.count += 1;
        let mut data = HeapPayload::zeroed(4096);
        data.bytes_mut()[..8].copy_from_slice(&self.count.to_le_bytes());
        let crcs = block_crcs(data.bytes());
        let generation = Generation::new(EPOCH, interval);
        let awaited = Awaited::Write { at, value: self.count };
        self.send(Ask::Write { generation, offset: at, crcs, data, copy: false }, awaited)
    }

    fn zero(&mut self, from: u64, to: u64) -> u32 {
        if self.is_busy(from, to) {
            self.settle();
        }
        let (generation, kind) = (self.generation(), Hole::Zero);
        let ask =
            Ask::Zero { generation, offset: from, len: to - from, kind, keep_space: false, copy: false };
        let tag = self.send(ask, Awaited::Other);
        self.settle();
        if self.answered[&tag] == Ok(Answer::Done) {
            self.acked.retain(|at, _| !(from..to).contains(at));
        }
        tag
    }

    fn control(&mut self, ask: Ask<HeapPayload>) -> Reply {
        let tag = self.send(ask, Awaited::Other);
        self.until(tag)
    }

    fn until(&mut self, tag: u32) -> Reply {
        for _ in 0..100_000 {
            if let Some(reply) = self.answered.get(&tag) {
                return reply.clone();
            }
            if !self.step(0, 0) {
                // What was stuck in a full pool goes on.
                self.replica.handle_free_bytes(1 << 40);
                self.drain();
                assert!(self.step(0, 0), "{tag} is never answered: {}", self.replica.line());
            }
        }
        panic!("{tag} takes for ever");
    }

    /// Everything that was asked for is answered; what goes on by itself goes on.
    fn settle(&mut self) {
        while let Some(tag) = self.awaited.keys().next().copied() {
            drop(self.until(tag));
        }
    }

    /// A whole barrier; where `late`, with a write that comes as soon as it may.
    fn take(&mut self, id: SnapId, attempt: u64, late: Option<u64>) -> Reply {
        let made = self.control(Ask::SnapMake { id, attempt });
        if made != Ok(Answer::Done) {
            return made;
        }
        let generation = self.generation();
        (self.interval, self.taking) = (self.interval + 1, None);
        let tag = self.send(Ask::SnapPrepare { id, attempt, generation, incarnation: 1 }, Awaited::Other);
        if let Some(late) = late {
            while self.taking.is_none() && !self.answered.contains_key(&tag) && self.step(0, 0) {}
            self.write(late, self.interval);
            // It has all the time that it wants.
            while self.step(0, 0)
                && self.log.iter().any(|(_, record)| !matches!(record, LogRecord::Image { .. }))
            {}
        }
        let taken = self.until(tag);
        if taken == Ok(Answer::Done) {
            let (of, taken) = self.taking.take().expect("it was logged");
            assert_eq!(of, id);
            self.expected.insert(id, taken);
            let note = vec![1, 2, 3];
            assert_eq!(self.control(Ask::SnapReady { id, attempt, note }), Ok(Answer::Done));
        }
        taken
    }

    fn delete(&mut self, id: SnapId) {
        if self.control(Ask::SnapDelete { id }) != Err(Refusal::NoSpace) {
            self.expected.remove(&id);
            self.destroyed.remove(&id);
        }
    }

    /// Brings a snapshot that others have, while whatever is under way goes on. `fails`: the pool is full at some moment of it.
    fn bring(&mut self, id: SnapId, attempt: u64, values: BTreeMap<u64, u64>, fails: bool) {
        // Older than all that this one took, or younger than most.
        let generation = match attempt % 2 {
            1 if self.interval > 1 => Generation::new(EPOCH, self.interval - 1),
            _ => Generation::new(Epoch(2), self.interval),
        };
        let of =
            CopyOf { id, attempt, generation, epoch: EPOCH, incarnation: 1, size: SIZE, region_shift: SHIFT };
        match self.replica.begin_copy(of) {
            Ok(()) => {}
            Err(why) => return assert_eq!(why, NotCopied::There, "{id}"),
        }
        assert_eq!(self.copied(id), CopyStep::Begun);
        for region in 0..SIZE.div_ceil(1 << SHIFT) {
            let (start, end) = (region << SHIFT, ((region + 1) << SHIFT).min(SIZE));
            let block = |at: u64| match values.get(&at) {
                Some(value) => {
                    let mut data = HeapPayload::zeroed(4096);
                    data.bytes_mut()[..8].copy_from_slice(&value.to_le_bytes());
                    Extent::Data { crcs: block_crcs(data.bytes()), data }
                }
                None => Extent::Hole { len: BLOCK, kind: Hole::Zero },
            };
            if values.range(start..end).next().is_none() {
                continue;
            }
            let middle = Extent::Hole { len: end - start - 2 * BLOCK, kind: Hole::Absent };
            self.replica.fill_copy(id, start, vec![block(start), middle, block(end - BLOCK)]);
            self.drain();
            if fails {
                while self.replica.is_copying(id) && self.step(0, 2) {}
            }
            let step = self.copied(id);
            if step == CopyStep::Failed(NotCopied::Disk(DiskError::NoSpace)) {
                assert!(fails && !self.dirs.contains(&id) && !self.filling.contains_key(&id));
                return;
            }
            assert_eq!(step, CopyStep::Filled { shared: 0 });
            assert!(self.durable.images.get(id).is_none(), "nobody knows of a half one");
        }
        self.replica.finish_copy(id);
        assert_eq!(self.copied(id), CopyStep::Whole);
        let ready = self.control(Ask::SnapReady { id, attempt, note: vec![4] });
        assert_eq!(ready, Ok(Answer::Done));
        self.expected.insert(id, values);
    }

    fn copied(&mut self, id: SnapId) -> CopyStep {
        self.drain();
        loop {
            if let Some((of, step)) = self.replica.poll_copied() {
                assert_eq!(of, id);
                return step;
            }
            if !self.step(0, 0) {
                self.replica.handle_free_bytes(1 << 40);
                self.drain();
                assert!(self.step(0, 0), "{id} goes no further: {}", self.replica.line());
            }
        }
    }

    /// What a snapshot held, whether it has its data or not.
    fn held(&self, id: SnapId) -> Option<&BTreeMap<u64, u64>> {
        self.expected.get(&id).or_else(|| self.destroyed.get(&id))
    }

    /// Asks that the data of an image go, once.
    fn destroy(&mut self, id: SnapId) -> Reply {
        let attempt = self.durable.images.get(id).map_or(0, |image| image.attempt);
        let reply = self.control(Ask::SnapDestroy { id, attempt, key: [5; 16] });
        assert!(matches!(reply, Ok(Answer::Done | Answer::Deleting)), "{reply:?}");
        if let Some(held) = self.expected.remove(&id) {
            self.destroyed.insert(id, held);
        }
        reply
    }

    // ---- what the pool does

    /// A job or a record is done: which one, by `pick`. False if nothing is to be done.
    fn step(&mut self, pick: usize, fails: u8) -> bool {
        let ready: Vec<usize> = (0..self.disk.len()).filter(|n| self.may_run(*n)).collect();
        let from = ready.len() + usize::from(!self.log.is_empty());
        if from == 0 {
            return false;
        }
        let Some(n) = ready.get(pick % from).copied() else {
            let (token, record) = self.log.pop_front().expect("there is one");
            let full = fails == 1 && matches!(record, LogRecord::Stamp { .. } | LogRecord::Image { .. });
            if !full {
                self.durable.apply(&record);
            }
            let outcome = if full { Err(DiskError::NoSpace) } else { Ok(()) };
            self.replica.handle_logged(self.now, token, record, outcome);
            self.drain();
            return true;
        };
        let (token, job) = self.disk.remove(n);
        let grows = matches!(
            job,
            Job::Head(DiskOp::Write { .. })
                | Job::Image(
                    ImageOp::Take { .. }
                        | ImageOp::Preserve { .. }
                        | ImageOp::HandDown { .. }
                        | ImageOp::CloneOut { .. }
                        | ImageOp::CopyFill { .. }
                        | ImageOp::Keep { .. }
                )
        );
        let outcome = if fails == 2 && grows { Err(DiskError::NoSpace) } else { self.run(&job) };
        self.replica.handle_disk(self.now, token, outcome);
        self.drain();
        true
    }

    fn may_run(&self, n: usize) -> bool {
        let Some((offset, len, changes)) = self.disk[n].1.touches() else { return true };
        self.disk[..n]
            .iter()
            .filter_map(|(_, earlier)| earlier.touches())
            .all(|(o, l, c)| o + l <= offset || offset + len <= o || !(c || changes))
    }

    fn run(&mut self, job: &Job) -> Result<DiskDone<HeapPayload>, DiskError> {
        let places = |offset: u64, len: u64| {
            (0..PLACES).map(place).filter(move |at| (offset..offset + len).contains(at))
        };
        if let Job::Image(ImageOp::Preserve { image, .. } | ImageOp::HandDown { image, .. }) = job
            && let Some(error) = self.refuses.get(image)
        {
            return Err(*error);
        }
        Ok(match job {
            Job::Head(DiskOp::Write { offset, data, .. }) => {
                self.head.insert(*offset, u64::from_le_bytes(data.bytes()[..8].try_into().expect("a block")));
                DiskDone::Done
            }
            Job::Head(DiskOp::Zero { offset, len, .. }) => {
                self.head.retain(|at, _| !(*offset..offset + len).contains(at));
                DiskDone::Done
            }
            Job::Head(DiskOp::Grow { from, to } | DiskOp::Cut { from, to }) => {
                self.head.retain(|at, _| !(*from..*to).contains(at));
                DiskDone::Done
            }
            Job::Head(DiskOp::Read { offset, len }) => {
                assert_eq!(*len, BLOCK);
                extents(self.head.get(offset).copied().unwrap_or_default())
            }
            Job::Head(DiskOp::Hash { offset, len, key }) => {
                self.hashed += len;
                let value = |at| self.head.get(&at).copied();
                DiskDone::Hashes(hashes(*offset, *len, key, |at| Ok(value(at)))?)
            }
            Job::Image(ImageOp::Look { image, heir, op: DiskOp::Hash { offset, len, key } }) => {
                self.hashed += len;
                let of = |of: SnapId, at: u64| self.files.get(&(of, at)).copied();
                let value = |at| {
                    let found = of(*image, at).or_else(|| heir.and_then(|heir| of(heir, at)));
                    found.ok_or(DiskError::BitRot)
                };
                DiskDone::Hashes(hashes(*offset, *len, key, value)?)
            }
            Job::Image(ImageOp::Make { image, slot_bytes }) => {
                assert!(*slot_bytes >= 4096);
                self.dirs.insert(*image);
                DiskDone::Done
            }
            Job::Image(ImageOp::Take { image }) => {
                assert!(self.dirs.contains(image) && self.durable.images.get(*image).is_none());
                let changes = |job: &Job| job.touches().is_some_and(|(_, _, changes)| changes);
                assert!(!self.disk.iter().any(|(_, job)| changes(job)), "the head changes meanwhile");
                for at in (0..PLACES).map(place) {
                    self.files.insert((*image, at), self.head.get(&at).copied());
                }
                DiskDone::Done
            }
            Job::Image(ImageOp::Preserve { image, offset, len }) => {
                assert!(self.dirs.contains(image) && *len > 0 && offset + len <= SIZE);
                assert_eq!(offset >> SEGMENT_SHIFT, (offset + len - 1) >> SEGMENT_SHIFT);
                for at in places(*offset, *len) {
                    self.files.insert((*image, at), self.head.get(&at).copied());
                }
                DiskDone::Done
            }
            Job::Image(ImageOp::Look { image, heir, op: DiskOp::Read { offset, len } }) => {
                assert_eq!(*len, BLOCK);
                let found =
                    [Some(*image), *heir].into_iter().flatten().find_map(|of| self.files.get(&(of, *offset)));
                let Some(found) = found else { return Err(DiskError::BitRot) };
                extents(found.unwrap_or_default())
            }
            Job::Image(ImageOp::HandDown { image, heir, segment, blocks }) => {
                let of = |at: u64| at >> SEGMENT_SHIFT == u64::from(*segment);
                let there = self.files.keys().any(|(whose, at)| whose == image && of(*at));
                // Done before, where there is none.
                if blocks.is_empty() && there {
                    self.files.retain(|(whose, at), _| whose != heir || !of(*at));
                }
                for at in (0..PLACES).map(place).filter(|at| of(*at)) {
                    let block = (at - (u64::from(*segment) << SEGMENT_SHIFT)) / BLOCK;
                    let named = blocks
                        .iter()
                        .any(|range| (u64::from(range.start)..u64::from(range.end)).contains(&block));
                    if blocks.is_empty() {
                        if let Some(value) = self.files.remove(&(*image, at)) {
                            self.files.insert((*heir, at), value);
                        }
                    } else if named {
                        let value = *self.files.get(&(*image, at)).expect("what is handed down is there");
                        self.files.insert((*heir, at), value);
                    }
                }
                DiskDone::Done
            }
            Job::Image(ImageOp::CloneOut { to, place: from, offset, len }) => {
                assert_eq!(offset >> SEGMENT_SHIFT, (offset + len - 1) >> SEGMENT_SHIFT);
                assert!(*len > 0 && offset + len <= SIZE, "{offset:#x}+{len:#x}");
                // Of the head a part at most, as in an aged one.
                let shared = if *from == Place::Head { (*len).min(1 << SHIFT) } else { *len };
                for at in places(*offset, shared) {
                    let value = match *from {
                        Place::Absent => panic!("nothing is there to share"),
                        Place::Head => self.head.get(&at).copied(),
                        Place::Image { image, heir } => {
                            let mut of = [Some(image), heir].into_iter().flatten();
                            let found = of.find_map(|of| self.files.get(&(of, at)).copied());
                            found.ok_or(DiskError::BitRot)?
                        }
                    };
                    let made = self.clones.get_mut(to).expect("it was begun");
                    if let Some(value) = value.filter(|value| *value != 0) {
                        made.shared.insert(at, value);
                    }
                }
                DiskDone::Shared(shared)
            }
            Job::Image(ImageOp::CopyBegin { image, slot_bytes }) => {
                assert!(*slot_bytes >= 4096 && !self.dirs.contains(image));
                self.filling.insert(*image, BTreeMap::new());
                DiskDone::Done
            }
            Job::Image(ImageOp::CopyFill { image, offset, extents }) => {
                let mut at = *offset;
                let file = self.filling.get_mut(image).expect("it was begun");
                for extent in extents {
                    let value = match extent {
                        Extent::Data { data, .. } => {
                            Some(u64::from_le_bytes(data.bytes()[..8].try_into().expect("a block")))
                        }
                        Extent::Hole { .. } => None,
                    };
                    let end = at + len_of(core::slice::from_ref(extent));
                    file.extend(places(at, end - at).map(|at| (at, value)));
                    at = end;
                }
                DiskDone::Shared(0)
            }
            Job::Image(ImageOp::CopySync { .. }) => DiskDone::Done,
            Job::Image(ImageOp::CopyPublish { image }) => {
                let file = self.filling.remove(&image.id).expect("it was begun");
                assert!(self.dirs.insert(image.id));
                self.files.extend(file.into_iter().map(|(at, value)| ((image.id, at), value)));
                // Its slot says so, whatever the log knows.
                self.durable.images.restore(vec![(**image).clone()]);
                DiskDone::Done
            }
            Job::Image(ImageOp::CopyAbandon { image }) => {
                self.filling.remove(image);
                DiskDone::Done
            }
            Job::Image(ImageOp::Keep { image, segment, bytes }) => {
                assert!(self.dirs.contains(image), "beside the image");
                self.kept.insert((*image, *segment), bytes.clone());
                DiskDone::Done
            }
            Job::Image(ImageOp::Kept { image, segment }) => {
                DiskDone::Kept(self.kept.get(&(*image, *segment)).cloned())
            }
            Job::Image(ImageOp::Empty { image }) => {
                self.files.retain(|(of, _), _| of != image);
                DiskDone::Done
            }
            Job::Image(ImageOp::Drop { image }) => {
                self.files.retain(|(of, _), _| of != image);
                self.kept.retain(|(of, _), _| of != image);
                self.dirs.remove(image);
                DiskDone::Done
            }
            other => panic!("{other:?}"),
        })
    }

    /// The process dies. Each job that was under way has happened or not; the log ends somewhere.
    fn die(&mut self, happened: u64) {
        let keep = usize::try_from(happened % (self.log.len() as u64 + 1)).expect("few");
        let records: Vec<_> = self.log.drain(..).take(keep).collect();
        records.iter().for_each(|(_, record)| self.durable.apply(record));
        let jobs: Vec<_> = self.disk.drain(..).collect();
        for (n, (_, job)) in jobs.into_iter().enumerate() {
            if happened >> (n % 60) & 1 == 1 {
                drop(self.run(&job));
            }
        }
        self.filling.clear();
        // What was asked for and not answered may be there or not.
        self.awaited.clear();
        self.clones.clear();
        self.taking = None;
        self.acked = self.head.clone();
        // A directory that no image of the log is in goes, as it does at a start.
        let known = |id: &SnapId| self.durable.images.get(*id).is_some();
        let unknown: Vec<SnapId> = self.dirs.iter().copied().filter(|id| !known(id)).collect();
        for image in unknown {
            drop(self.run(&Job::Image(ImageOp::Drop { image })));
        }
        let durable = &self.durable;
        self.expected.retain(|id, _| durable.images.get(*id).is_some_and(|of| of.state == ImageState::Ready));
        self.destroyed.retain(|id, _| durable.images.get(*id).is_some_and(|of| of.state.compares()));
        self.replica = Replica::new(config(self.takes), self.durable.clone());
        self.drain();
        self.attach();
    }

    fn look(&mut self, of: SnapId, at: u64) {
        let ask = Ask::SnapRead { id: of, offset: at, len: BLOCK };
        self.send(ask, Awaited::Look { of, at });
    }

    fn changed(&mut self, of: SnapId, since: SnapId, from: u64, to: u64) {
        let (offset, len, key) = (from, to - from, *b"sixteen bytes ok");
        self.send(
            Ask::SnapChanged { id: of, since, offset, len, key },
            Awaited::Changed { of, since, from, to },
        );
    }

    /// All of all images, one after the other.
    fn look_at_all(&mut self) {
        for of in self.expected.keys().copied().collect::<Vec<_>>() {
            for n in 0..PLACES {
                self.look(of, place(n));
            }
        }
        let held: Vec<SnapId> = self.expected.keys().chain(self.destroyed.keys()).copied().collect();
        for (n, of) in held.iter().copied().enumerate() {
            // With the next one, and the last one with the first.
            if let Some(since) = held.get(n + 1).or(held.first()).copied() {
                for from in (0..SIZE).step_by(64 << 20) {
                    self.changed(of, since, from, SIZE.min(from + CHANGED_MAX));
                }
            }
        }
        self.settle();
    }

    /// What goes on by itself comes to its end.
    fn rest(&mut self) {
        self.replica.handle_free_bytes(1 << 40);
        self.drain();
        for _ in 0..100_000 {
            if !self.step(0, 0) {
                break;
            }
        }
        assert!(self.replica.is_idle(), "{}", self.replica.line());
    }
}

fn config(takes: ImageForm) -> ReplicaConfig {
    let (pool, pool_inc, broken) = (PoolId(1), PoolInc(1), Broken::default());
    ReplicaConfig { pool, pool_inc, watermark: MARK, lossy: false, cached: false, takes, broken }
}

fn len_of(extents: &[Extent<HeapPayload>]) -> u64 {
    let len = |extent: &Extent<HeapPayload>| match extent {
        Extent::Data { data, .. } => data.len() as u64,
        Extent::Hole { len, .. } => *len,
    };
    extents.iter().map(len).sum()
}

fn extents(value: u64) -> DiskDone<HeapPayload> {
    if value == 0 {
        return DiskDone::Data(vec![Extent::Hole { len: BLOCK, kind: Hole::Zero }]);
    }
    let mut data = HeapPayload::zeroed(4096);
    data.bytes_mut()[..8].copy_from_slice(&value.to_le_bytes());
    DiskDone::Data(vec![Extent::Data { crcs: block_crcs(data.bytes()), data }])
}

/// Of blocks of which few have a value.
fn hashes(
    offset: u64,
    len: u64,
    key: &[u8; 16],
    value: impl Fn(u64) -> Result<Option<u64>, DiskError>,
) -> Result<Vec<[u8; 16]>, DiskError> {
    let (absent, zero) = (block_hash(key, &[]), block_hash(key, &[0; 4096]));
    let of = |at: u64| match (0..PLACES).any(|n| place(n) == at) {
        // Nothing else is ever written to; the two kinds of holes are the same.
        false => Ok(if (at / BLOCK).is_multiple_of(2) { absent } else { zero }),
        true => Ok(value(at)?.map_or(zero, |value| block_hash(key, &value.to_le_bytes()))),
    };
    (offset..offset + len).step_by(4096).map(of).collect()
}

fn value_of(found: &[Extent<HeapPayload>]) -> u64 {
    match found {
        [Extent::Hole { len: BLOCK, .. }] => 0,
        [Extent::Data { data, .. }] => u64::from_le_bytes(data.bytes()[..8].try_into().expect("a block")),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn images_read_as_the_head_was_whatever_is_written_deleted_failed_or_dies(
        steps in proptest::collection::vec((0..1000u32, any::<u64>()), 1..150), whole in any::<bool>()
    ) {
        let mut rig = Rig::new();
        if whole {
            rig.takes = ImageForm::Whole;
            rig.die(0);
        }
        let mut attempts = 0;
        for (kind, n) in steps {
            let known: Vec<SnapId> = rig.expected.keys().copied().collect();
            let one = known.get(usize::try_from(n % 64).expect("few") % known.len().max(1)).copied();
            match kind {
                0..300 => drop(rig.write(place(n % PLACES), rig.interval)),
                300..320 => {
                    let (a, b) = (place(n % PLACES), place(n / 64 % PLACES));
                    rig.zero(a.min(b), a.max(b) + BLOCK);
                }
                320..420 => {
                    attempts += 1;
                    let id = SnapId(u128::from(n % 8));
                    let there = rig.destroyed.contains_key(&id);
                    let late = (n & 64 != 0).then(|| place(n / 128 % PLACES));
                    let taken = rig.take(id, attempts, late);
                    let stands = taken == Err(Refusal::OldAttempt) && (there || rig.expected.contains_key(&id));
                    prop_assert!(stands || taken == Ok(Answer::Done), "{taken:?}");
                }
                420..440 => {
                    // One that comes to nothing.
                    attempts += 1;
                    let id = SnapId(100 + u128::from(n % 2));
                    rig.settle();
                    let made = rig.control(Ask::SnapMake { id, attempt: attempts });
                    prop_assert_eq!(made, Ok(Answer::Done));
                    let (attempt, generation) = (attempts, rig.generation());
                    rig.interval += 1;
                    if n & 8 == 0 {
                        let prepared = rig.control(Ask::SnapPrepare { id, attempt, generation, incarnation: 1 });
                        prop_assert_eq!(prepared, Ok(Answer::Done));
                    }
                    if n & 16 == 0 {
                        prop_assert_eq!(rig.control(Ask::SnapDrop { id, attempt }), Ok(Answer::Done));
                    }
                }
                440..490 => if let Some(id) = one { rig.delete(id) },
                490..500 => if let Some(id) = rig.destroyed.keys().next().copied() { rig.delete(id) },
                500..545 => if let Some(id) = one { rig.look(id, place(n % PLACES)) },
                545..560 => if let (Some(id), Some(since)) = (one, known.get(usize::try_from(n / 64 % 8).expect("few"))) {
                    let (from, to) = (place(n % 16), SIZE.min(place(n / 8 % PLACES) + BLOCK));
                    let from = from / CHANGED_GRAIN * CHANGED_GRAIN;
                    if (from + 1..=from + CHANGED_MAX).contains(&to) {
                        rig.changed(id, *since, from, to);
                    }
                },
                560..570 if rig.interval > 1 => {
                    // Left over from before a barrier.
                    if rig.expected.iter().any(|(id, _)| rig.durable.images.get(*id).is_some_and(|of| of.took() && of.generation.interval() + 1 == rig.interval)) {
                        let tag = rig.write(place(n % PLACES), rig.interval - 1);
                        prop_assert_eq!(&rig.answered[&tag], &Err(Refusal::OldGeneration));
                    }
                }
                570..585 => {
                    rig.settle();
                    if n & 1 << 40 == 0 {
                        rig.takes = [ImageForm::Chained, ImageForm::Whole][usize::from(n & 1 << 41 == 0)];
                    }
                    rig.die(n);
                }
                585..600 => drop(rig.step(usize::try_from(n % 97).expect("few"), 2)),
                600..605 => {
                    rig.replica.handle_free_bytes(n);
                    rig.drain();
                }
                605..620 => rig.look_at_all(),
                620..640 => if let Some(id) = one { rig.clone_of(id) },
                650..670 => {
                    attempts += 1;
                    let id = SnapId(BROUGHT + u128::from(n % 4));
                    // Of some of the blocks what the head holds, of others what it never held.
                    let value = |at: u64| match n >> (at % 19 + 4) & 3 {
                        0 => None,
                        1 => rig.acked.get(&at).copied(),
                        _ => Some(1 << 40 | at),
                    };
                    let values = (0..PLACES).map(place).filter_map(|at| Some((at, value(at)?))).collect();
                    rig.settle();
                    rig.bring(id, attempts, values, n & 12 == 0);
                }
                640..650 | 670..680 => if let Some(id) = one { drop(rig.destroy(id)) },
                _ => drop(rig.step(usize::try_from(n % 97).expect("few"), 0)),
            }
        }
        rig.settle();
        rig.look_at_all();
        rig.rest();
        for id in rig.destroyed.keys().copied().collect::<Vec<_>>() {
            while rig.destroy(id) != Ok(Answer::Done) {
                rig.rest();
            }
            rig.rest();
            let emptied = rig.durable.images.get(id).is_some_and(|of| of.state == ImageState::Destroyed);
            prop_assert!(!emptied || !rig.files.keys().any(|(of, _)| *of == id), "its data is gone");
        }
        rig.look_at_all();
        prop_assert!(rig.clones.is_empty(), "each was told of");
        prop_assert!(rig.replica.whole());
        prop_assert_eq!(rig.replica.durable(), &rig.durable);
        // Nothing of the head is needed any more.
        rig.head.clear();
        rig.look_at_all();
        for id in rig.durable.images.iter().map(|image| image.id).collect::<Vec<_>>() {
            rig.delete(id);
            rig.look_at_all();
        }
        rig.rest();
        rig.die(0);
        prop_assert!(rig.durable.images.is_empty() && rig.dirs.is_empty() && rig.files.is_empty());
        prop_assert!(rig.kept.is_empty());
    }
}

/// R29: the range is whole grains of the first image and not too long; both images have to be there, and to stay.
#[test]
fn what_differs_is_told_of_images_that_are_ready_only() {
    let mut rig = Rig::new();
    let (older, newer) = (SnapId(1), SnapId(2));
    rig.write(place(2), 1);
    rig.settle();
    assert_eq!(rig.take(older, 1, None), Ok(Answer::Done));
    rig.write(place(3), rig.interval);
    rig.settle();
    assert_eq!(rig.take(newer, 2, None), Ok(Answer::Done));
    let ask = |id, since, offset, len| Ask::SnapChanged { id, since, offset, len, key: [7; 16] };
    let mut asked = |id, since, offset, len| rig.control(ask(id, since, offset, len));
    let out = Err(Refusal::OutOfBounds);
    assert_eq!(asked(newer, older, 4096, 4096), out);
    assert_eq!(asked(newer, older, 0, 0), out);
    assert_eq!(asked(newer, older, 0, 4095), out);
    assert_eq!(asked(newer, older, 0, CHANGED_MAX + BLOCK), out);
    assert_eq!(asked(newer, older, SIZE - CHANGED_GRAIN, CHANGED_GRAIN + BLOCK), out);
    assert_eq!(asked(newer, older, 1 << 40, BLOCK), out);
    assert_eq!(asked(newer, SnapId(3), 0, BLOCK), Err(Refusal::NoSnapshot));
    assert_eq!(asked(SnapId(3), newer, 0, BLOCK), Err(Refusal::NoSnapshot));
    // The last block of the second region is in its last grain.
    let last = (2 << SHIFT) - CHANGED_GRAIN;
    for (id, since) in [(newer, older), (older, newer)] {
        assert_eq!(asked(id, since, last, 3 * CHANGED_GRAIN), Ok(Answer::Changed(vec![0x80])));
    }
    assert_eq!(asked(newer, newer, last, 9 * CHANGED_GRAIN), Ok(Answer::Changed(vec![0, 0])));
    rig.delete(older);
    assert_eq!(rig.control(ask(newer, older, 0, BLOCK)), Err(Refusal::NoSnapshot));
}

/// R29: images that have become whole share no place with any other; what was not stamped since is known to be the same.
#[test]
fn only_regions_that_were_written_since_are_looked_at() {
    let mut rig = Rig::new();
    for n in 0..PLACES {
        rig.write(place(n), 1);
    }
    rig.settle();
    let ids = [SnapId(1), SnapId(2), SnapId(3)];
    for (n, id) in (0..).zip(ids) {
        rig.write(place(2 * n), rig.interval);
        rig.settle();
        assert_eq!(rig.take(id, u64::from(rig.interval), None), Ok(Answer::Done));
        rig.rest();
        assert!(rig.replica.whole());
    }
    for (of, since, regions) in
        [(ids[2], ids[1], 1), (ids[1], ids[2], 1), (ids[2], ids[0], 2), (ids[2], ids[2], 0)]
    {
        rig.hashed = 0;
        rig.changed(of, since, 0, CHANGED_MAX);
        rig.settle();
        assert_eq!(rig.hashed, (2 * regions) << SHIFT, "{of} since {since}");
    }
}

/// Found by the fuzzer and by the simulator: room for an image that is at the log was taken away by the next owner's promise.
#[test]
fn room_for_an_image_that_is_at_the_log_stays_when_another_session_is_promised() {
    let mut rig = Rig::new();
    let (id, unused) = (SnapId(1), SnapId(2));
    rig.write(place(0), 1);
    rig.settle();
    for id in [id, unused] {
        assert_eq!(rig.control(Ask::SnapMake { id, attempt: 1 }), Ok(Answer::Done));
    }
    let generation = rig.generation();
    let tag = rig.send(Ask::SnapPrepare { id, attempt: 1, generation, incarnation: 1 }, Awaited::Other);
    rig.replica.end_controls(rig.now, true);
    assert_eq!(rig.until(tag), Ok(Answer::Done));
    rig.rest();
    assert!(rig.durable.images.get(id).is_some() && rig.replica.whole());
    assert_eq!(rig.dirs, BTreeSet::from([id]));
}

/// The pool does a long look in pieces, and a write that was preserved may be done between two of them.
#[test]
fn what_a_look_found_in_the_head_counts_only_while_it_lies_there() {
    let mut rig = Rig::new();
    rig.replica.imaging.ahead = 0;
    let (id, region) = (SnapId(1), 1 << SHIFT);
    rig.write(place(0), 1);
    rig.write(place(2), 1);
    rig.settle();
    assert_eq!(rig.control(Ask::SnapMake { id, attempt: 1 }), Ok(Answer::Done));
    let generation = rig.generation();
    rig.interval += 1;
    let prepared = rig.control(Ask::SnapPrepare { id, attempt: 1, generation, incarnation: 1 });
    assert_eq!(prepared, Ok(Answer::Done));
    // Nothing is preserved by itself.
    assert!(rig.step(0, 2));
    assert_eq!(rig.control(Ask::SnapReady { id, attempt: 1, note: vec![1] }), Ok(Answer::Done));

    let asked = rig.send(Ask::SnapKinds { id, offset: 0, len: 2 * region }, Awaited::Other);
    let (looks, found) = rig.disk.pop().expect("it is looked for");
    assert!(matches!(found, Job::Head(DiskOp::Kinds { offset: 0, len }) if len == 2 * region), "{found:?}");
    let written = rig.write(place(3), rig.interval);
    assert_eq!(rig.until(written), Ok(Answer::Done));
    let told = |rig: &mut Rig, token, kinds| {
        rig.replica.handle_disk(rig.now, token, Ok(DiskDone::Kinds(kinds)));
        rig.drain();
        rig.disk.pop()
    };
    let data = |len| vec![(len, None)];
    let (looks, found) = told(&mut rig, looks, data(2 * region)).expect("it is looked for again");
    assert!(matches!(found, Job::Head(DiskOp::Kinds { offset: 0, len }) if len == region), "{found:?}");
    let (looks, found) = told(&mut rig, looks, data(region)).expect("the rest is looked for elsewhere");
    let Job::Image(ImageOp::Look { image, op: DiskOp::Kinds { offset, len }, .. }) = found else {
        panic!("{found:?}")
    };
    assert_eq!((image, offset, len), (id, region, region));
    let old = vec![(BLOCK, None), (region - BLOCK, Some(Hole::Absent))];
    assert!(told(&mut rig, looks, old.clone()).is_none());
    assert_eq!(rig.answered[&asked], Ok(Answer::Kinds([data(region), old].concat())));
}

/// Finding 20 of docs/model.md: a deletion that is asked for in the middle ends the clone, which is told; nothing is made of what
/// goes. So does whoever gives it up, and a replica that is taken out of service.
#[test]
fn a_clone_ends_when_its_image_goes_when_it_is_given_up_and_when_its_source_is() {
    let mut rig = Rig::new();
    for n in 0..PLACES {
        rig.write(place(n), 1);
    }
    rig.settle();
    for id in [SnapId(1), SnapId(2)] {
        assert_eq!(rig.take(id, 1, None), Ok(Answer::Done));
    }
    rig.rest();
    rig.clone_of(SnapId(1));
    rig.clone_of(SnapId(7));
    rig.expected.remove(&SnapId(1));
    rig.send(Ask::SnapDelete { id: SnapId(1) }, Awaited::Other);
    // The log first.
    assert!(rig.disk.len() == 1 && rig.step(1, 0));
    rig.rest();
    assert_eq!((rig.cloned, rig.clones.len()), ((1, 0), 0));

    rig.clone_of(SnapId(2));
    rig.rest();
    assert_eq!(rig.cloned, (2, 1), "the other one is whole");

    let ends = |rig: &mut Rig, end: fn(&mut Rig, ReplicaKey)| {
        let to = ReplicaKey { volume: VolumeId(90), rid: Rid(0) };
        rig.replica.clone_out(SnapId(2), to).expect("it is READY");
        assert_eq!((rig.replica.clones(), rig.replica.is_idle()), (vec![to], false));
        rig.replica.give_up_clones(|other| other != to);
        end(rig, to);
        let Some(Action::Image { token, op: ImageOp::CloneOut { len, .. } }) = rig.replica.poll_action()
        else {
            panic!("a part is asked for")
        };
        assert_eq!(rig.replica.poll_cloned(), None, "it ends after what is at the pool");
        rig.replica.handle_disk(rig.now, token, Ok(DiskDone::Shared(len)));
        assert_eq!(rig.replica.poll_cloned(), Some((to, Err(NotCloned::Ended))));
        assert!(rig.replica.clones().is_empty());
    };
    ends(&mut rig, |rig, to| rig.replica.give_up_clones(|other| other == to));
    ends(&mut rig, |rig, _| rig.replica.handle_quarantine());
    let to = ReplicaKey { volume: VolumeId(91), rid: Rid(0) };
    assert_eq!(rig.replica.clone_out(SnapId(2), to), Err(NotCloned::Ended));
}

/// What a pool can't share is told, and nothing is assumed of it; "nothing was shared" is not "all of it".
#[test]
fn a_clone_whose_pool_refuses_is_told_so() {
    for (outcome, told) in [
        (Err(DiskError::NoSpace), DiskError::NoSpace),
        (Err(DiskError::BitRot), DiskError::BitRot),
        (Ok(DiskDone::Shared(0)), DiskError::Io),
        (Ok(DiskDone::Done), DiskError::Io),
    ] {
        let mut rig = Rig::new();
        rig.write(place(3), 1);
        rig.settle();
        assert_eq!(rig.take(SnapId(1), 1, None), Ok(Answer::Done));
        rig.rest();
        let to = ReplicaKey { volume: VolumeId(90), rid: Rid(0) };
        rig.replica.clone_out(SnapId(1), to).expect("it is READY");
        let Some(Action::Image { token, .. }) = rig.replica.poll_action() else {
            panic!("a part is asked for")
        };
        rig.replica.handle_disk(rig.now, token, outcome);
        assert_eq!(rig.replica.poll_cloned(), Some((to, Err(NotCloned::Disk(told)))));
        assert!(rig.replica.is_idle());
    }
}

/// A segment in few extents, all of which an image needs. What is preserved by itself is at its beginning.
fn with_a_segment() -> Rig {
    let mut rig = Rig::with(Durable::new(VolumeId(1), Rid(0), 64 << 20, 20));
    for region in 0..64 {
        rig.write(region << 20, 1);
    }
    rig.settle();
    assert_eq!(rig.take(SnapId(1), 1, None), Ok(Answer::Done));
    rig
}

/// What is put into an image at its end, in regions: from where, and how many.
fn waited_for(rig: &Rig) -> Vec<(u64, u64)> {
    let range = |(_, job): &(Token, Job)| match job {
        Job::Image(ImageOp::Preserve { offset, len, .. }) => Some((offset >> 20, len >> 20)),
        _ => None,
    };
    rig.disk.iter().filter_map(range).filter(|(first, _)| *first >= 32).collect()
}

/// The op that preserves from this region on is done.
fn preserved(rig: &mut Rig, first: u64, fails: u8) {
    let ready = (0..rig.disk.len()).filter(|n| rig.may_run(*n));
    let is_it = |n: &usize| matches!(&rig.disk[*n].1, Job::Image(ImageOp::Preserve { offset, .. }) if *offset == first << 20);
    let at = ready.enumerate().find(|(_, n)| is_it(n)).expect("it is at the disk").0;
    assert!(rig.step(at, fails));
}

/// Each op waits for those that write to the segment, and makes a flush: one a writer would be all that there is time for.
#[test]
fn writers_of_a_segment_share_the_ops_that_preserve_it() {
    let mut rig = with_a_segment();
    rig.replica.imaging.ahead = 0;
    let writes: Vec<u32> = (32..64).map(|region| rig.write(region << 20, 2)).collect();
    assert_eq!(waited_for(&rig), [(32, 1)]);
    let stamped = rig.log.iter().filter(|(_, record)| matches!(record, LogRecord::Stamp { .. })).count();
    assert_eq!(stamped, writes.len(), "the log need not wait for the disk");
    rig.now = rig.now.after_ms(30);
    preserved(&mut rig, 32, 0);
    assert_eq!(waited_for(&rig), [(33, 8), (41, 8), (49, 8), (57, 7)]);
    rig.settle();
    assert!(writes.iter().all(|tag| rig.answered[tag] == Ok(Answer::Done)));
    rig.rest();
}

/// Who writes here will write beside it: with few extents a whole segment costs one flush, and with many each region costs
/// milliseconds that a writer waits for.
#[test]
fn what_writers_will_come_to_is_preserved_with_what_they_wait_for_as_long_as_that_is_quick() {
    let mut rig = with_a_segment();
    let writes: Vec<u32> = [40, 44, 60].map(|region| rig.write(region << 20, 2)).into();
    assert_eq!(waited_for(&rig), [(40, 1 + AHEAD as u64)]);
    preserved(&mut rig, 40, 0);
    assert_eq!(rig.replica.imaging.ahead, 2 * AHEAD);
    assert_eq!(waited_for(&rig), [(49, 15)], "44 went with 40, and 60 takes the rest of the segment along");
    rig.now = rig.now.after_ms(AHEAD_SLOW_MS + 1);
    preserved(&mut rig, 49, 0);
    assert_eq!(rig.replica.imaging.ahead, AHEAD);
    for tag in writes {
        assert_eq!(rig.until(tag), Ok(Answer::Done));
    }
    rig.rest();
}

/// There is room for what a writer waits for, and none for what it might wait for next.
#[test]
fn a_writer_is_not_refused_for_what_nobody_waits_for() {
    let mut rig = with_a_segment();
    let write = rig.write(50 << 20, 2);
    preserved(&mut rig, 50, 2);
    assert_eq!(waited_for(&rig), [(50, 1)]);
    preserved(&mut rig, 50, 2);
    assert_eq!(rig.until(write), Err(Refusal::NoSpace), "nor for that");
    let again = rig.write(50 << 20, 2);
    assert_eq!(waited_for(&rig), [(50, 1)]);
    preserved(&mut rig, 50, 0);
    assert_eq!(rig.until(again), Ok(Answer::Done));
    rig.rest();
}

/// Somebody removed an image's files. What it had is lost, and said to be; nobody's writes wait for it, and it can be deleted.
#[test]
fn an_image_whose_files_are_gone_is_damaged_and_holds_up_nothing() {
    let mut rig = Rig::new();
    let at = place(3);
    let (older, newer) = (SnapId(1), SnapId(2));
    rig.write(at, 1);
    rig.settle();
    // The newer one gets what the older one would have got.
    for (id, error) in [(older, DiskError::NoSpace), (newer, DiskError::BitRot)] {
        rig.refuses = BTreeMap::from([(id, error)]);
        assert_eq!(rig.take(id, 1, None), Ok(Answer::Done));
    }
    let write = rig.write(at, rig.interval);
    assert_eq!(rig.until(write), Ok(Answer::Done));
    let read = |rig: &mut Rig, id| {
        let read = rig.send(Ask::SnapRead { id, offset: at, len: BLOCK }, Awaited::Other);
        rig.until(read)
    };
    for id in [older, newer] {
        assert_eq!(read(&mut rig, id), Err(Refusal::BitRot), "{id} says what it can't know");
    }
    rig.delete(newer);
    rig.rest();
    assert!(rig.durable.images.get(newer).is_none());
    assert_eq!(read(&mut rig, older), Err(Refusal::BitRot));
}
