//! Lazy images (protocol.md 4.19, R28): a snapshot's image begins empty and reads what it does not have from the next
//! newer image, in the end from the head; what a write is about to change is preserved first.
//!
//! One replica of two regions, its head and up to three images, on a file system that clones ranges: every byte and every
//! name is in the page cache before it is durable, the log is durable at once. Writes touch a block of their own each, so
//! a region's content is the set of writes in it. The process dies (what the kernel has lands), the owner dies with it or
//! sends again, the power fails, the pool is full, a file loses what it had. Three kinds of images: taken here, which form
//! the chain; copied from another member (4.19's chain copies), which are there once they are whole: until then a copy is
//! filled region by region, from what the other member sends or, where the head holds the same, by sharing that; and whole
//! ones, a snapshot that the pool itself takes of the head, with everything in it. The last two stand alone. A clone of an image (a volume of
//! its own) reads through the image until it has a region itself.
//!
//! Must always hold (the oracle):
//! - an image reads what the head held at its PREPARE (a copied one: what was copied), whatever became of its neighbours;
//! - a clone reads what its image held;
//! - an image or clone is said to be damaged only if a file lost something, and then it is never served.

use core::fmt::Write as _;

use crate::cases::{Case, Expected, Setup, unbroken};
use crate::explore::{Counted, Event, Model, Violation};
use crate::mask::Mask;

const REGIONS: usize = 2;
const IMAGES: usize = 3;
const UNDER_WAY: usize = 2;
const HOLE: u8 = 0x80;
/// What a copied image holds: nothing that this replica's head ever had.
const COPIED: u8 = 0x40;

mutations! {
    /// R28: the stamp is logged before the region is preserved.
    StampFirst,
    /// R28: the clone is not durable when the log says that the region is preserved.
    CloneUnsynced,
    /// R28: another write of the region does not wait for the clone.
    DataWhileCloning,
    /// R28: a region that is in the image's file is taken for preserved.
    ExistsMeansDone,
    /// R28: what the file has counts, not what the log says.
    FileIsTheMap,
    /// 4.19: the replica executes writes of before the barrier after PREPARE.
    OldGenerationAfterPrepare,
    /// 4.19: PREPARE does not wait for what executes.
    PrepareBeforeDrain,
    /// Stamps are ahead of the owner's generations, as in a clone whose record begins at the first epoch.
    StampsAhead,
    /// A process that starts does not sync what the last one left in the page cache.
    StartWithoutSync,
    /// An image that has everything is skipped by older ones.
    WholeLeavesChain,
    /// Older images read through a copied one.
    CopiedInChain,
    /// Older images read through a whole one.
    WholeInChain,
    /// A write executes between the pool's snapshot of the head and the log's PREPARE.
    WriteWhileTaking,
    /// A copy is read while it is being filled.
    CopyReadHalf,
    /// A copy counts as whole before what was put there is durable.
    CopyUnsynced,
    /// A copy that was being filled when the process died is taken for a whole one.
    CopyKeptHalf,
    /// What a copy shares with the head is compared, and then shared, and writes don't wait in between.
    CopyUnlocked,
    /// A deleted image's regions are not handed down.
    DeleteWithoutHandDown,
    /// They count as handed down before that is durable.
    HandDownUnsynced,
    /// Writes preserve into the image that is being deleted.
    PreserveIntoDeleted,
    /// Files change their image before the log says that it is being deleted.
    RenameBeforeIntent,
    /// A file that has just been renamed is written to before its new name is durable.
    PreserveBeforeName,
    /// The head goes to the trash while images read from it.
    TrashBeforeWhole,
    /// An image is deleted while a clone reads through it.
    DeleteUnderClone,
    /// A clone gets its own copy of a region from the head, and writes to the head don't wait for it.
    CloneUnlocked,
}

/// The bounds of a run and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Writes altogether, at most 5.
    pub writes: u8,
    /// Images altogether, taken and copied, at most 3.
    pub images: u8,
    /// Deaths, losses of power, full pools and lost regions altogether.
    pub faults: u8,
    /// Images may be deleted, the head trashed.
    pub deletes: bool,
    /// Images may come from other members.
    pub copies: bool,
    /// The pool may take a snapshot of the head itself.
    pub wholes: bool,
    /// A write is preserved for whenever the map says so, stamped or not.
    pub by_map: bool,
    /// An image may be cloned.
    pub clones: bool,
    /// The rule that is broken.
    pub mutation: Option<Mutation>,
}

/// A region in a file: what the page cache has, and what is left without power.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Bytes {
    now: u8,
    durable: u8,
}

impl Bytes {
    fn of(value: u8) -> Bytes {
        Bytes { now: value, durable: value }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Kind {
    #[default]
    None,
    /// In the chain, readable.
    Taken,
    /// In the chain, goes as soon as older ones don't need it.
    Deleting,
    /// From another member, and not whole yet: nobody knows it.
    Filling,
    Copied,
    /// The pool's own snapshot.
    Whole,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Image {
    kind: Kind,
    /// The regions that it has, by the log.
    map: Mask,
    file: [Bytes; REGIONS],
    /// Oracle.
    expected: [u8; REGIONS],
}

const NO_IMAGE: Image = Image {
    kind: Kind::None,
    map: Mask::EMPTY,
    file: [Bytes { now: HOLE, durable: HOLE }; REGIONS],
    expected: [0; 2],
};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd)]
enum Stage {
    #[default]
    None,
    Wire,
    /// Waits for its region to be preserved and stamped.
    Waiting,
    Kernel,
    /// On the disk, not durable.
    Landed,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Request {
    write: u8,
    region: usize,
    generation: u8,
    stage: Stage,
}

/// A region on its way into an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd)]
enum Job {
    #[default]
    None,
    Cloning,
    Cloned,
    Synced,
}

/// A file whose name moves from the image that is being deleted to the next older one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd)]
enum Name {
    #[default]
    Old,
    New,
    Durable,
}

/// A volume made of an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct OfImage {
    of: Option<usize>,
    map: Mask,
    file: [Bytes; REGIONS],
    job: [Job; REGIONS],
    /// The job copies from the head.
    from_head: Mask,
    /// Oracle.
    expected: [u8; REGIONS],
}

impl OfImage {
    /// Whether it reads through its image.
    fn leans_on(&self, image: usize) -> bool {
        self.of == Some(image) && self.map != Mask::first(REGIONS)
    }
}

const NO_CLONE: OfImage = OfImage {
    of: None,
    map: Mask::EMPTY,
    file: NO_IMAGE.file,
    job: [Job::None; REGIONS],
    from_head: Mask::EMPTY,
    expected: [0; REGIONS],
};

/// The whole world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    head: [Bytes; REGIONS],
    stamp: [u8; REGIONS],
    trashed: bool,
    /// By age, the oldest first.
    images: [Image; IMAGES],
    /// The pool's own snapshot of the head, which no log tells of yet.
    taking: Option<[Bytes; REGIONS]>,
    clone: OfImage,
    /// What was preserved, from the head into an image.
    job: [Job; REGIONS],
    into: [usize; REGIONS],
    /// What is put into the image that is being filled.
    fill: [Job; REGIONS],
    /// What is handed down by clones, from the image that is being deleted to the next older one.
    hand: [Job; REGIONS],
    name: Name,
    /// The regions that had to be handed down when the deletion began.
    to_hand: Mask,
    /// The barrier that the replica knows.
    prepared: u8,
    /// The owner: its interval, and its requests.
    interval: u8,
    requests: [Request; UNDER_WAY],
    writes: u8,
    takes: u8,
    faults: u8,
    /// A file has lost a region.
    rotten: bool,
    /// Oracle: the store says that they are being deleted; nobody reads them any more.
    doomed: Mask,
}

/// The model: a configuration is all there is to it.
#[derive(Debug, Clone, Copy)]
pub struct Images(pub Config);

type Out = Vec<(Event, State)>;

enum Place {
    Image(usize),
    Head,
}

enum Read {
    Value(u8),
    Damaged,
}

impl Images {
    fn broken(&self, mutation: Mutation) -> bool {
        self.0.mutation == Some(mutation)
    }

    fn chained(&self, image: &Image) -> bool {
        match image.kind {
            Kind::Taken | Kind::Deleting => true,
            Kind::Copied => self.broken(Mutation::CopiedInChain),
            Kind::Whole => self.broken(Mutation::WholeInChain),
            Kind::Filling | Kind::None => false,
        }
    }

    /// Whether older images pass it by.
    fn skipped(&self, image: &Image) -> bool {
        image.map == Mask::first(REGIONS) && self.broken(Mutation::WholeLeavesChain)
    }

    fn has(&self, image: &Image, region: usize) -> bool {
        if self.broken(Mutation::FileIsTheMap) {
            image.file[region].now != HOLE
        } else {
            image.map.has(region)
        }
    }

    /// Where an image finds a region.
    fn place(&self, state: &State, at: usize, region: usize) -> Place {
        if matches!(state.images[at].kind, Kind::Filling | Kind::Copied | Kind::Whole) {
            return Place::Image(at);
        }
        let has = |(n, image): &(usize, &Image)| {
            self.chained(image) && self.has(image, region) && (*n == at || !self.skipped(image))
        };
        match state.images.iter().enumerate().skip(at).find(has) {
            Some((n, _)) => Place::Image(n),
            None => Place::Head,
        }
    }

    fn read(&self, state: &State, at: usize, region: usize) -> Read {
        let value = match self.place(state, at, region) {
            Place::Head if state.trashed => HOLE,
            Place::Head => state.head[region].now,
            Place::Image(n) => {
                let image = &state.images[n];
                match (image.kind, self.older(state, n), image.file[region].now) {
                    // Its file may have the name of the next older one by now.
                    (Kind::Deleting, Some(older), HOLE) => state.images[older].file[region].now,
                    (_, _, value) => value,
                }
            }
        };
        if value == HOLE { Read::Damaged } else { Read::Value(value) }
    }

    /// What a clone reads.
    fn read_clone(&self, state: &State, of: usize, region: usize) -> Read {
        let own = state.clone.file[region].now;
        match (state.clone.map.has(region), own) {
            (true, HOLE) => Read::Damaged,
            (true, value) => Read::Value(value),
            (false, _) => self.read(state, of, region),
        }
    }

    /// The image that what it has is handed down to.
    fn older(&self, state: &State, at: usize) -> Option<usize> {
        (0..at).rev().find(|n| state.images[*n].kind == Kind::Taken)
    }

    fn deleting(state: &State) -> Option<usize> {
        state.images.iter().position(|image| image.kind == Kind::Deleting)
    }

    /// The image that has to get a region before the head changes there.
    fn needs(&self, state: &State, region: usize) -> Option<usize> {
        let takes_in = |image: &Image| match image.kind {
            Kind::Taken => !self.skipped(image),
            Kind::Deleting => self.broken(Mutation::PreserveIntoDeleted),
            Kind::Copied => self.broken(Mutation::CopiedInChain),
            Kind::Whole => self.broken(Mutation::WholeInChain),
            Kind::Filling | Kind::None => false,
        };
        let newest = (0..IMAGES).rev().find(|n| takes_in(&state.images[*n]))?;
        let has = |image: &Image| self.chained(image) && !self.skipped(image) && self.has(image, region);
        (!state.images[newest..].iter().any(has)).then_some(newest)
    }

    fn owner(&self, state: &State, out: &mut Out) {
        if state.trashed {
            return;
        }
        let free = state.requests.iter().position(|request| request.stage == Stage::None);
        if let (Some(free), true) = (free, state.writes < self.0.writes) {
            for region in 0..REGIONS {
                let mut next = *state;
                next.requests[free] = Request {
                    write: 1 << state.writes,
                    region,
                    generation: state.interval,
                    stage: Stage::Wire,
                };
                next.writes += 1;
                out.push((
                    Event::new("the owner begins WRITE {0} of region {1}", &[next.writes.into(), region]),
                    next,
                ));
            }
        }
        // What is still on its way is what the owner did not count (a piece of a copy).
        let executes = state.requests.iter().any(|request| request.stage > Stage::Wire);
        let executes = executes && !self.broken(Mutation::PrepareBeforeDrain);
        let taken = state.taking.is_some() || !executes;
        if state.takes < self.0.images && taken {
            let mut next = *state;
            // R21: no roll without stamps.
            next.prepared =
                if state.stamp.contains(&state.interval) { state.interval } else { state.interval - 1 };
            next.interval = next.prepared + 1;
            let expected = state.head.map(|region| region.now);
            next.images[usize::from(state.takes)] = match next.taking.take() {
                Some(file) => Image { kind: Kind::Whole, map: Mask::first(REGIONS), file, expected },
                None => Image { kind: Kind::Taken, expected, ..NO_IMAGE },
            };
            next.takes += 1;
            out.push((
                Event::new("PREPARE of image {0} is logged", &[state.takes.into()]).counts(Counted::Sealed),
                next,
            ));
        }
        if state.takes < self.0.images && self.0.wholes && !executes && state.taking.is_none() {
            let mut next = *state;
            next.taking = Some(state.head);
            let image = state.takes.into();
            out.push((Event::new("the pool takes a snapshot of the head for image {0}", &[image]), next));
        }
        let filling = state.images.iter().any(|image| image.kind == Kind::Filling);
        if state.takes < self.0.images && self.0.copies && !filling {
            let mut next = *state;
            let mut expected = [COPIED; REGIONS];
            // The head was not written to there since the snapshot was taken.
            expected[0] = state.head[0].now;
            next.images[usize::from(state.takes)] = Image { kind: Kind::Filling, expected, ..NO_IMAGE };
            next.takes += 1;
            out.push((
                Event::new("image {0} is begun, to be copied from another member", &[state.takes.into()]),
                next,
            ));
        }
    }

    /// What another member has of a snapshot is put into an image of its own, which is there when all of it is.
    fn fills(&self, state: &State, out: &mut Out) {
        let Some(at) = state.images.iter().position(|image| image.kind == Kind::Filling) else { return };
        let image = &state.images[at];
        for region in (0..REGIONS).filter(|region| !image.map.has(*region)) {
            let mut next = *state;
            let bytes = &mut next.images[at].file[region];
            match state.fill[region] {
                Job::None => {
                    bytes.now = image.expected[region];
                    next.fill[region] = Job::Cloned;
                    out.push((
                        Event::new("what was sent is in region {0} of image {1}", &[region, at]),
                        next,
                    ));
                    let executes = |r: &Request| r.region == region && r.stage > Stage::Waiting;
                    let still = !state.requests.iter().any(executes) || self.broken(Mutation::CopyUnlocked);
                    if still && !state.trashed && state.head[region].now == image.expected[region] {
                        let mut next = *state;
                        next.fill[region] = Job::Cloning;
                        out.push((
                            Event::new("the head has the same in region {0} as was sent", &[region]),
                            next,
                        ));
                    }
                }
                Job::Cloning => {
                    bytes.now = state.head[region].now;
                    next.fill[region] = Job::Cloned;
                    out.push((Event::new("image {0} shares region {1} with the head", &[at, region]), next));
                }
                Job::Cloned if !self.broken(Mutation::CopyUnsynced) => {
                    bytes.durable = bytes.now;
                    next.fill[region] = Job::Synced;
                    out.push((Event::new("region {0} of image {1} is durable", &[region, at]), next));
                }
                Job::Cloned | Job::Synced => {
                    next.fill[region] = Job::None;
                    next.images[at].map = image.map.with(region);
                    out.push((Event::new("image {0} has region {1}", &[at, region]), next));
                }
            }
        }
        if image.map == Mask::first(REGIONS) {
            let mut next = *state;
            next.images[at].kind = Kind::Copied;
            out.push((Event::new("image {0} is whole, and there", &[at]), next));
        }
    }

    fn requests(&self, state: &State, out: &mut Out) {
        for (n, request) in state.requests.iter().enumerate() {
            let (region, write) = (request.region, usize::from(request.write));
            let mut next = *state;
            let stage = &mut next.requests[n].stage;
            let unstamped = state.stamp[region] < request.generation
                || (self.0.by_map && self.needs(state, region).is_some());
            let copied = state.clone.job[region] == Job::Cloning && state.clone.from_head.has(region);
            let copied = copied && !self.broken(Mutation::CloneUnlocked)
                || state.fill[region] == Job::Cloning && !self.broken(Mutation::CopyUnlocked);
            let taking = state.taking.is_some() && !self.broken(Mutation::WriteWhileTaking);
            let cloning = state.job[region] != Job::None
                && !(self.broken(Mutation::DataWhileCloning) && state.job[region] == Job::Cloning);
            match request.stage {
                Stage::None => {}
                Stage::Wire | Stage::Waiting if taking => {}
                Stage::Wire
                    if request.generation <= state.prepared
                        && !self.broken(Mutation::OldGenerationAfterPrepare) =>
                {
                    next.requests[n].generation = state.interval;
                    out.push((
                        Event::new("write {0} is refused, and sent again in this interval", &[write]),
                        next,
                    ));
                }
                Stage::Wire if unstamped || cloning || copied => {
                    *stage = Stage::Waiting;
                    if self.broken(Mutation::StampFirst) {
                        next.stamp[region] = request.generation;
                    }
                    out.push((
                        Event::new("write {0} arrives and waits for region {1}", &[write, region]),
                        next,
                    ));
                }
                Stage::Wire => {
                    *stage = Stage::Kernel;
                    out.push((Event::new("write {0} arrives and is given to the kernel", &[write]), next));
                }
                Stage::Waiting => {
                    let preserved = self.needs(state, region).is_none()
                        || (self.broken(Mutation::DataWhileCloning) && state.job[region] == Job::Cloning);
                    if preserved && !cloning && !copied {
                        *stage = Stage::Kernel;
                        next.stamp[region] = state.stamp[region].max(request.generation);
                        out.push((
                            Event::new("the stamp is logged, write {0} is given to the kernel", &[write]),
                            next,
                        ));
                    }
                }
                Stage::Kernel => {
                    *stage = Stage::Landed;
                    next.head[region].now |= request.write;
                    out.push((Event::new("write {0} lands", &[write]), next));
                }
                Stage::Landed => {
                    next.requests[n] = Request::default();
                    next.head[region].durable = state.head[region].now;
                    out.push((
                        Event::new("write {0} is durable and answered", &[write]).counts(Counted::WriteAcked),
                        next,
                    ));
                }
            }
        }
    }

    /// For a write that waits, or in the background.
    fn preserves(&self, state: &State, out: &mut Out) {
        for region in 0..REGIONS {
            let mut next = *state;
            let into = state.into[region];
            match state.job[region] {
                Job::None => {
                    let executes = |r: &Request| r.region == region && r.stage > Stage::Waiting;
                    let Some(into) = self.needs(state, region) else { continue };
                    let renamed = state.name == Name::New && !self.broken(Mutation::PreserveBeforeName);
                    if state.trashed || renamed || state.requests.iter().any(executes) {
                        continue;
                    }
                    let there = state.images[into].file[region].now != HOLE;
                    next.into[region] = into;
                    next.job[region] = if there && self.broken(Mutation::ExistsMeansDone) {
                        Job::Synced
                    } else {
                        Job::Cloning
                    };
                    out.push((Event::new("region {0} is preserved into image {1}", &[region, into]), next));
                }
                Job::Cloning => {
                    next.job[region] = Job::Cloned;
                    next.images[into].file[region].now = state.head[region].now;
                    out.push((Event::new("the kernel has cloned region {0}", &[region]), next));
                }
                Job::Cloned if !self.broken(Mutation::CloneUnsynced) => {
                    next.job[region] = Job::Synced;
                    let bytes = &mut next.images[into].file[region];
                    bytes.durable = bytes.now;
                    out.push((Event::new("the clone of region {0} is durable", &[region]), next));
                }
                Job::Cloned | Job::Synced => {
                    next.job[region] = Job::None;
                    next.into[region] = 0;
                    next.images[into].map = state.images[into].map.with(region);
                    out.push((Event::new("it is logged: image {0} has region {1}", &[into, region]), next));
                }
            }
        }
    }

    /// A clone begins with nothing and gets its regions by and by, with R28's care.
    fn clones(&self, state: &State, out: &mut Out) {
        let Some(of) = state.clone.of else {
            for (n, image) in state.images.iter().enumerate() {
                if self.0.clones && matches!(image.kind, Kind::Taken | Kind::Copied | Kind::Whole) {
                    let mut next = *state;
                    next.clone.of = Some(n);
                    next.clone.expected = image.expected;
                    out.push((Event::new("image {0} is cloned", &[n]), next));
                }
            }
            return;
        };
        for region in (0..REGIONS).filter(|region| !state.clone.map.has(*region)) {
            let mut next = *state;
            let clone = &mut next.clone;
            match state.clone.job[region] {
                Job::None => {
                    let from_head = matches!(self.place(state, of, region), Place::Head);
                    let executes = |r: &Request| r.region == region && r.stage > Stage::Waiting;
                    if from_head && (state.trashed || state.requests.iter().any(executes)) {
                        continue;
                    }
                    clone.job[region] = Job::Cloning;
                    if from_head {
                        clone.from_head = clone.from_head.with(region);
                    }
                    out.push((Event::new("the clone is to have region {0} itself", &[region]), next));
                }
                Job::Cloning => {
                    let value = if state.clone.from_head.has(region) {
                        state.head[region].now
                    } else {
                        match self.read(state, of, region) {
                            Read::Value(value) => value,
                            Read::Damaged => HOLE,
                        }
                    };
                    clone.job[region] = Job::Cloned;
                    clone.from_head = clone.from_head.without(region);
                    clone.file[region].now = value;
                    out.push((Event::new("the kernel has copied region {0} for the clone", &[region]), next));
                }
                Job::Cloned => {
                    clone.job[region] = Job::Synced;
                    clone.file[region].durable = clone.file[region].now;
                    out.push((Event::new("the clone's region {0} is durable", &[region]), next));
                }
                Job::Synced => {
                    clone.job[region] = Job::None;
                    clone.map = clone.map.with(region);
                    out.push((Event::new("it is logged: the clone has region {0}", &[region]), next));
                }
            }
        }
    }

    fn deletes(&self, state: &State, out: &mut Out) {
        if !self.0.deletes {
            return;
        }
        let busy = |at: usize| (0..REGIONS).any(|r| state.job[r] != Job::None && state.into[r] == at);
        let Some(at) = Self::deleting(state) else {
            for (n, image) in state.images.iter().enumerate() {
                let mut next = *state;
                if state.clone.leans_on(n) && !self.broken(Mutation::DeleteUnderClone) {
                    continue;
                }
                match image.kind {
                    Kind::Taken if !busy(n) || self.broken(Mutation::PreserveIntoDeleted) => {
                        next.images[n].kind = Kind::Deleting;
                        next.to_hand = image.map;
                        next.doomed = state.doomed.with(n);
                    }
                    Kind::Filling => {
                        next.images[n] = NO_IMAGE;
                        next.fill = Default::default();
                    }
                    Kind::Copied | Kind::Whole => next.images[n] = NO_IMAGE,
                    _ => continue,
                }
                out.push((Event::new("image {0} is to be deleted", &[n]), next));
            }
            self.trash(state, out);
            return;
        };
        let image = &state.images[at];
        let mut next = *state;
        let Some(older) = self.older(state, at) else {
            Self::gone(&mut next, at);
            out.push((Event::new("it is logged: image {0} is gone", &[at]), next));
            return;
        };
        let heir = &state.images[older];
        let missing = state.to_hand.minus(heir.map);
        for region in missing.iter().filter(|_| state.name == Name::Old && !busy(older)) {
            let mut next = *state;
            match state.hand[region] {
                Job::None | Job::Cloning => {
                    next.hand[region] = Job::Cloned;
                    next.images[older].file[region].now = image.file[region].now;
                    out.push((
                        Event::new("region {0} is cloned from image {1} to {2}", &[region, at, older]),
                        next,
                    ));
                }
                Job::Cloned if !self.broken(Mutation::HandDownUnsynced) => {
                    next.hand[region] = Job::Synced;
                    let bytes = &mut next.images[older].file[region];
                    bytes.durable = bytes.now;
                    out.push((Event::new("that clone of region {0} is durable", &[region]), next));
                }
                Job::Cloned | Job::Synced => {
                    next.hand[region] = Job::None;
                    next.images[older].map = heir.map.with(region);
                    out.push((Event::new("it is logged: image {0} has region {1}", &[older, region]), next));
                }
            }
        }
        // Nothing is in the heir's file: it is enough to rename the other one. Needs no room in a full pool.
        let idle = state.hand.iter().all(|job| *job == Job::None) && !busy(older);
        if heir.map.is_empty() && idle && !missing.is_empty() && state.name == Name::Old {
            let mut next = *state;
            Self::rename(&mut next, at, older);
            next.name = Name::New;
            out.push((
                Event::new("the file of image {0} is renamed to be that of image {1}", &[at, older]),
                next,
            ));
        }
        if state.name == Name::New {
            let mut next = *state;
            next.name = Name::Durable;
            out.push((Event::new("the new name is durable", &[]), next));
        }
        let all = missing.is_empty() || state.name == Name::Durable;
        if (all && idle) || self.broken(Mutation::DeleteWithoutHandDown) {
            if state.name == Name::Durable {
                next.images[older].map = heir.map.or(state.to_hand);
            }
            Self::gone(&mut next, at);
            out.push((Event::new("it is logged: image {0} is gone", &[at]), next));
        }
    }

    fn gone(next: &mut State, at: usize) {
        next.images[at] = NO_IMAGE;
        next.hand = Default::default();
        next.name = Name::Old;
        next.to_hand = Mask::EMPTY;
        for region in 0..REGIONS {
            if next.job[region] != Job::None && next.into[region] == at {
                next.job[region] = Job::None;
                next.into[region] = 0;
            }
        }
    }

    /// There or back.
    fn rename(next: &mut State, from: usize, to: usize) {
        next.images[to].file = next.images[from].file;
        next.images[from].file = NO_IMAGE.file;
    }

    fn trash(&self, state: &State, out: &mut Out) {
        let idle = state.requests.iter().all(|r| r.stage == Stage::None) && state.job == [Job::None; REGIONS];
        let whole = (0..REGIONS).all(|region| self.needs(state, region).is_none());
        if !state.trashed && idle && (whole || self.broken(Mutation::TrashBeforeWhole)) {
            let mut next = *state;
            next.trashed = true;
            out.push((Event::new("the head goes to the trash", &[]).rare(6), next));
        }
    }

    fn dies(&self, next: &mut State) {
        for request in next.requests.iter_mut().filter(|request| request.stage != Stage::None) {
            if request.stage == Stage::Kernel {
                next.head[request.region].now |= request.write;
            }
            request.stage = Stage::Wire;
        }
        // What no log names goes again.
        next.taking = None;
        next.job = Default::default();
        next.into = Default::default();
        next.hand = Default::default();
        next.clone.job = Default::default();
        next.clone.from_head = Mask::EMPTY;
        next.fill = Default::default();
        for image in next.images.iter_mut().filter(|image| image.kind == Kind::Filling) {
            if self.broken(Mutation::CopyKeptHalf) {
                image.kind = Kind::Copied;
            } else {
                *image = NO_IMAGE;
            }
        }
        if self.broken(Mutation::RenameBeforeIntent) {
            for image in next.images.iter_mut().filter(|image| image.kind == Kind::Deleting) {
                image.kind = Kind::Taken;
                next.to_hand = Mask::EMPTY;
                next.name = Name::Old;
            }
        }
    }

    fn steals(next: &mut State) {
        next.requests = Default::default();
        next.interval += 1;
    }

    fn faults(&self, state: &State, out: &mut Out) {
        if state.faults == self.0.faults {
            return;
        }
        let mut begun = *state;
        begun.faults += 1;
        let mut ends = vec![begun];
        for region in 0..REGIONS {
            // A clone that the kernel was asked for was made or not.
            if state.job[region] == Job::Cloning {
                let mut made = ends.clone();
                for end in &mut made {
                    end.images[state.into[region]].file[region].now = state.head[region].now;
                }
                ends.extend(made);
            }
        }
        for end in ends {
            let mut dead = end;
            self.dies(&mut dead);
            let mut started = dead;
            if !self.broken(Mutation::StartWithoutSync) {
                started.head.iter_mut().for_each(|bytes| bytes.durable = bytes.now);
            }
            out.push((Event::new("the process DIES and starts again", &[]).rare(6), started));
            Self::steals(&mut started);
            out.push((Event::new("the process DIES and starts again; another owner", &[]).rare(6), started));
            for mut dark in Self::without_power(&dead) {
                out.push((Event::new("the POWER fails", &[]).rare(6), dark));
                Self::steals(&mut dark);
                out.push((Event::new("the POWER fails; another owner", &[]).rare(6), dark));
            }
        }
        for region in 0..REGIONS {
            if state.job[region] == Job::Cloning || state.job[region] == Job::Cloned {
                let mut next = begun;
                next.job[region] = Job::None;
                next.into[region] = 0;
                for request in
                    next.requests.iter_mut().filter(|r| r.region == region && r.stage == Stage::Waiting)
                {
                    request.stage = Stage::Wire;
                }
                out.push((
                    Event::new("no room to preserve region {0}: its writes are refused", &[region]).rare(6),
                    next,
                ));
            }
            for (n, image) in state.images.iter().enumerate() {
                let is_here = matches!(image.kind, Kind::Taken | Kind::Whole);
                if image.map.has(region) && is_here && image.file[region] != Bytes::of(HOLE) {
                    let mut next = begun;
                    next.images[n].file[region] = Bytes::of(HOLE);
                    next.rotten = true;
                    out.push((
                        Event::new("the file of image {0} LOSES region {1}", &[n, region]).rare(6),
                        next,
                    ));
                }
            }
        }
    }

    /// Each thing that is not durable is kept or lost.
    fn without_power(dead: &State) -> Vec<State> {
        let mut ends = vec![*dead];
        if let (Name::New, Some(at)) = (dead.name, Self::deleting(dead)) {
            let mut back = *dead;
            back.name = Name::Old;
            ends[0].name = Name::Durable;
            if let Some(older) = (0..at).rev().find(|n| dead.images[*n].kind == Kind::Taken) {
                Self::rename(&mut back, older, at);
            }
            ends.push(back);
        }
        let places = (0..REGIONS).flat_map(|r| (0..=IMAGES + 1).map(move |n| (n, r)));
        for (n, region) in places {
            fn place(state: &mut State, n: usize, region: usize) -> &mut Bytes {
                match n {
                    IMAGES => &mut state.head[region],
                    n if n > IMAGES => &mut state.clone.file[region],
                    n => &mut state.images[n].file[region],
                }
            }
            let mut kept = Vec::new();
            for end in &mut ends {
                let bytes = *place(end, n, region);
                if bytes.now != bytes.durable {
                    let mut other = *end;
                    *place(&mut other, n, region) = Bytes::of(bytes.now);
                    kept.push(other);
                    *place(end, n, region) = Bytes::of(bytes.durable);
                }
            }
            ends.extend(kept);
        }
        ends
    }
}

impl Model for Images {
    type State = State;
    type Step = Event;

    fn initial(&self) -> State {
        State {
            head: [Bytes::of(0); REGIONS],
            stamp: [if self.broken(Mutation::StampsAhead) { 9 } else { 0 }; REGIONS],
            trashed: false,
            images: [NO_IMAGE; IMAGES],
            taking: None,
            clone: NO_CLONE,
            job: Default::default(),
            into: Default::default(),
            fill: Default::default(),
            hand: Default::default(),
            name: Name::Old,
            to_hand: Mask::EMPTY,
            prepared: 0,
            interval: 1,
            requests: Default::default(),
            writes: 0,
            takes: 0,
            faults: 0,
            rotten: false,
            doomed: Mask::EMPTY,
        }
    }

    fn successors(&self, state: &State, out: &mut Out) -> Result<(), Violation> {
        for (n, image) in state.images.iter().enumerate() {
            let half = image.kind == Kind::Filling && self.broken(Mutation::CopyReadHalf);
            let there = matches!(image.kind, Kind::Taken | Kind::Copied | Kind::Whole);
            if !there && !half || state.doomed.has(n) {
                continue;
            }
            for region in 0..REGIONS {
                let promise = match self.read(state, n, region) {
                    Read::Value(value) if value == image.expected[region] => continue,
                    Read::Damaged if state.rotten => continue,
                    Read::Value(_) => "an image reads what the head held at its PREPARE",
                    Read::Damaged => "an image is damaged only if a file has lost something",
                };
                return Err(Violation {
                    promise,
                    observation: format!("region {region} of image {n} is another"),
                });
            }
        }
        if let Some(of) = state.clone.of {
            for region in 0..REGIONS {
                match self.read_clone(state, of, region) {
                    Read::Value(value) if value == state.clone.expected[region] => {}
                    Read::Damaged if state.rotten => {}
                    _ => {
                        let promise = "a clone reads what its image held";
                        return Err(Violation {
                            promise,
                            observation: format!("region {region} is another"),
                        });
                    }
                }
            }
        }
        self.owner(state, out);
        self.requests(state, out);
        self.clones(state, out);
        self.preserves(state, out);
        self.fills(state, out);
        self.deletes(state, out);
        self.faults(state, out);
        Ok(())
    }

    fn describe(&self, state: &State) -> String {
        let bytes = |file: &[Bytes; REGIONS]| {
            file.map(|b| match b.now {
                HOLE => "-".to_string(),
                now if now == b.durable => format!("{now:x}"),
                now => format!("{now:x}?"),
            })
            .join(" ")
        };
        let mut line = format!("head({} stamps={:?})", bytes(&state.head), state.stamp);
        for (n, image) in state.images.iter().enumerate().filter(|(_, image)| image.kind != Kind::None) {
            let _ = write!(line, " {n}:{:?}({} map={:02b})", image.kind, bytes(&image.file), image.map.0);
        }
        let _ = write!(line, " interval={} jobs={:?}", state.interval, state.job);
        line
    }
}

const TWO: Config = Config {
    writes: 2,
    images: 2,
    faults: 1,
    deletes: false,
    copies: false,
    wholes: false,
    by_map: false,
    clones: false,
    mutation: None,
};
const DELETES: Config = Config { deletes: true, ..TWO };
const MAP: Config = Config { by_map: true, ..TWO };
const CLONES: Config = Config { clones: true, writes: 1, faults: 0, ..DELETES };
const CLONE: Config = Config { images: 1, faults: 1, ..CLONES };
const COPY: Config = Config { copies: true, images: 1, writes: 1, ..TWO };
const COPIES: Config = Config { copies: true, ..DELETES };
const WHOLE: Config = Config { wholes: true, ..DELETES };
const EVERYTHING: Config = Config { copies: true, clones: true, images: 3, writes: 3, faults: 3, ..DELETES };

broken_cases!(Image);

/// Every mutation's case, and the bounds of the unbroken runs.
pub const CASES: &[Case] = &[
    broken(
        "image-stamp-first",
        "R28 stamped before it is preserved",
        TWO,
        Mutation::StampFirst,
        Expected::Steps(6),
    ),
    broken(
        "image-clone-unsynced",
        "R28 logged before the clone is durable",
        TWO,
        Mutation::CloneUnsynced,
        Expected::Steps(5),
    ),
    broken(
        "image-data-while-cloning",
        "R28 a write passes the clone of its region",
        TWO,
        Mutation::DataWhileCloning,
        Expected::Steps(6),
    ),
    broken(
        "image-exists-means-done",
        "R28 what is in the file is taken for preserved",
        Config { faults: 2, ..TWO },
        Mutation::ExistsMeansDone,
        Expected::Steps(6),
    ),
    broken(
        "image-file-is-the-map",
        "R28 the file says what an image has",
        TWO,
        Mutation::FileIsTheMap,
        Expected::Steps(10),
    ),
    broken(
        "image-old-generation-after-prepare",
        "4.19 a write of before the barrier executes after it",
        TWO,
        Mutation::OldGenerationAfterPrepare,
        Expected::Steps(7),
    ),
    broken(
        "image-prepare-before-drain",
        "4.19 PREPARE while a write executes",
        TWO,
        Mutation::PrepareBeforeDrain,
        Expected::Steps(5),
    ),
    broken(
        "image-stamps-ahead",
        "R28 a clone's stamps are ahead of its epochs",
        TWO,
        Mutation::StampsAhead,
        Expected::Steps(4),
    ),
    broken(
        "image-old-generation-by-map",
        "the same, if the map decides what is preserved",
        MAP,
        Mutation::OldGenerationAfterPrepare,
        Expected::Exhausted,
    ),
    broken(
        "image-stamps-ahead-by-map",
        "the same, if the map decides what is preserved",
        MAP,
        Mutation::StampsAhead,
        Expected::Exhausted,
    ),
    broken(
        "image-start-without-sync",
        "a start leaves what it found in the page cache",
        Config { faults: 2, ..TWO },
        Mutation::StartWithoutSync,
        Expected::Steps(6),
    ),
    broken(
        "image-whole-leaves-chain",
        "older images skip one that has everything",
        TWO,
        Mutation::WholeLeavesChain,
        Expected::Steps(14),
    ),
    broken(
        "image-copied-in-chain",
        "older images read through a copied one",
        Config { copies: true, ..TWO },
        Mutation::CopiedInChain,
        Expected::Steps(9),
    ),
    broken(
        "image-copy-read-half",
        "4.19 a copy is read before it is whole",
        COPY,
        Mutation::CopyReadHalf,
        Expected::Steps(1),
    ),
    broken(
        "image-copy-unsynced",
        "4.19 a copy is whole before it is durable",
        COPY,
        Mutation::CopyUnsynced,
        Expected::Steps(7),
    ),
    broken(
        "image-copy-kept-half",
        "4.19 a start takes half a copy for a whole one",
        COPY,
        Mutation::CopyKeptHalf,
        Expected::Steps(2),
    ),
    broken(
        "image-whole-in-chain",
        "older images read through a whole one, which goes at once",
        WHOLE,
        Mutation::WholeInChain,
        Expected::Steps(5),
    ),
    broken(
        "image-write-while-taking",
        "a write executes between the pool's snapshot and the log's PREPARE",
        WHOLE,
        Mutation::WriteWhileTaking,
        Expected::Steps(6),
    ),
    broken(
        "image-copy-unlocked",
        "4.19 a copy shares what was written since it was compared",
        COPY,
        Mutation::CopyUnlocked,
        Expected::Steps(13),
    ),
    broken(
        "image-delete-without-hand-down",
        "deleted while an older image reads through it",
        DELETES,
        Mutation::DeleteWithoutHandDown,
        Expected::Steps(12),
    ),
    broken(
        "image-hand-down-unsynced",
        "handed down before that is durable",
        DELETES,
        Mutation::HandDownUnsynced,
        Expected::Steps(10),
    ),
    broken(
        "image-preserve-into-deleted",
        "a write preserves into the image that goes",
        DELETES,
        Mutation::PreserveIntoDeleted,
        Expected::Steps(12),
    ),
    broken(
        "image-rename-before-intent",
        "renamed before the log says that it goes",
        DELETES,
        Mutation::RenameBeforeIntent,
        Expected::Steps(9),
    ),
    broken(
        "image-preserve-before-name",
        "preserved into a file whose new name is not durable",
        DELETES,
        Mutation::PreserveBeforeName,
        Expected::Steps(13),
    ),
    broken(
        "image-trash-before-whole",
        "the head is trashed while an image reads from it",
        DELETES,
        Mutation::TrashBeforeWhole,
        Expected::Steps(2),
    ),
    broken(
        "image-delete-under-clone",
        "deleted while a clone reads through it",
        CLONES,
        Mutation::DeleteUnderClone,
        Expected::Steps(5),
    ),
    broken(
        "image-clone-unlocked",
        "a clone copies from the head while that is written",
        CLONE,
        Mutation::CloneUnlocked,
        Expected::Steps(14),
    ),
    unbroken(
        "image-clone-faults",
        "R28 with deletions, a clone and a fault",
        Setup::Image(CLONE),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "image-clones",
        "R28 with deletions and a clone",
        Setup::Image(CLONES),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "image",
        "R28: two writes, two images, two faults",
        Setup::Image(Config { faults: 2, ..TWO }),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "image-deletes",
        "R28 with deletions and the trash",
        Setup::Image(DELETES),
        2_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "image-copies",
        "R28 with deletions, two images, any of them copied",
        Setup::Image(COPIES),
        3_500_000,
        Expected::Exhausted,
    ),
    unbroken(
        "image-wholes",
        "R28 with deletions, images whole or in the chain",
        Setup::Image(WHOLE),
        3_000_000,
        Expected::Exhausted,
    ),
    unbroken(
        "image-everything",
        "R28: three writes, three images, three faults, deletions",
        Setup::Image(EVERYTHING),
        500_000,
        Expected::Bounded,
    ),
];
