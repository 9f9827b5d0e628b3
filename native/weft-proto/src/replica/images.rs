//! What a replica does for its images while it serves (protocol.md 4.19, R28): takes them, keeps what they need before the head
//! changes, lets them go, and looks at them. Which image has what is [`Images`](crate::images::Images)' matter.
//!
//! ```text
//! make ──directory──▶ prepare ──every change of an older interval has ended──▶ (the pool's own snapshot) ──▶ log ──▶ answer
//! write ──does an image need the region?──▶ preserve ──▶ log ──▶ stamp ──▶ disk
//! look ──where is it now?──▶ disk, part by part; compare ──not at one place?──▶ look at both
//! drop, delete ──nothing is put there any more──▶ log ──▶ answer; hand down ──▶ log … gone ──▶ log ──▶ files removed
//! destroy ──hashes of all of it are kept (`hashing`)──▶ as a deletion, but what is kept stays
//! ```
//!
//! Must always hold:
//! * before the head changes anywhere, the log has that the newest image that stays has what was there, if it needs it;
//! * an image is in the log when nothing executes that changes the head, and what comes later of its interval or an older
//!   one is refused;
//! * where the pool takes snapshots by itself, nothing changes the head from that one on until the log has the image;
//! * no image is taken in place of another one: room is made for an attempt first, and what an earlier one left goes before;
//!   no attempt is taken at or below one that was seen;
//! * nothing is put into an image that is to go, nor into a segment that changes its image as a whole;
//! * what goes on by itself is one op at a time, gives way to whoever waits, and rests after a failure;
//! * what a look found in the head counts only if it lies there still when it is told.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::Range;

use super::hashing::HashWork;
use super::{Action, AttachmentId, DiskDone, DiskError, DiskOp, HASH_MAX, NotCopied, Replica, Stage, Token};
use crate::checkpoint::image_slot_len;
use crate::durable::Durable;
use crate::hashes::{Grain, KeptHashes, grains_of};
use crate::ids::{Epoch, Generation, Instant, PoolId, SnapId};
use crate::images::{HandDown, Image, ImageChange, ImageForm, ImageState, Images, Place, SEGMENT_SHIFT};
use crate::log::{LogRecord, ReplicaKey};
use crate::message::{
    Answer, Ask, CHANGED_GRAIN, CHANGED_MAX, Extent, Hole, IMAGES_PAGE, ImageView, NOTE_MAX, Refusal,
};
use crate::mutants::{Broken, Mutation};
use crate::payload::{BLOCK, Payload, block_hash};

/// Images of a replica, and room for such: more are refused as busy.
pub const IMAGES_MAX: usize = 2048;
/// Attempts that are remembered each by its snapshot; of older ones only the highest is.
const SEEN_MAX: usize = 4096;
/// Damaged regions that are remembered, of all images of a replica: further ones are not counted.
const DAMAGED_MAX: usize = 65_536;
/// Regions that are preserved by one op, unless it may look further ahead: who waits for the last one waits for all of them.
const RUN_REGIONS: usize = 8;
/// Regions that nobody waits for yet and that go with those that somebody waits for: at most, and in the beginning.
const AHEAD_MAX: usize = 64;
const AHEAD: usize = 8;
/// An op that took no longer may have had twice as many of them, one that took longer than the other had too many: whoever
/// waits waits for them all, and in a segment of many extents each takes milliseconds (adr/0020).
const AHEAD_QUICK_MS: u64 = 20;
const AHEAD_SLOW_MS: u64 = 60;
/// Ops by which regions of one segment are preserved at a time.
const RUNS: usize = 32;

/// What the replica asks of its pool for its images.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageOp<P> {
    /// Make an image's directory, durably; done, too, if there is one.
    Make {
        /// Which.
        image: SnapId,
        /// Length of each of its two slots.
        slot_bytes: u64,
    },
    /// Take the pool's own snapshot of the head for an image that was made: what is known of each block is on the disk first,
    /// then the snapshot is, durably. Nothing that changes the head is under way.
    Take {
        /// Which.
        image: SnapId,
    },
    /// Put what the head has here into an image, durably. What overlaps it and comes later waits. `BitRot`: the image's
    /// files were taken away.
    Preserve {
        /// Which.
        image: SnapId,
        /// Byte offset.
        offset: u64,
        /// Length in bytes, within one segment.
        len: u64,
    },
    /// Look at what an image has.
    Look {
        /// Which.
        image: SnapId,
        /// Where it may be by now, while it is handed down.
        heir: Option<SnapId>,
        /// A `Read`, `Kinds` or `Hash`.
        op: DiskOp<P>,
    },
    /// Hand a segment down, durably. `BitRot`: there is none any more.
    HandDown {
        /// From this image.
        image: SnapId,
        /// To this one.
        heir: SnapId,
        /// Which segment.
        segment: u32,
        /// Which blocks of it; none: the whole file, which becomes the heir's.
        blocks: Vec<Range<u32>>,
    },
    /// Keep hashes of a segment of an image beside it, durably; what is kept of that segment already is written over.
    Keep {
        /// Which.
        image: SnapId,
        /// Which segment.
        segment: u32,
        /// The file ([`crate::hashes`]).
        bytes: Vec<u8>,
    },
    /// Give what is kept so. Answered with [`DiskDone::Kept`].
    Kept {
        /// Which.
        image: SnapId,
        /// Which segment.
        segment: u32,
    },
    /// Remove an image's data for good, and nothing else of it; fine if there is none.
    Empty {
        /// Which.
        image: SnapId,
    },
    /// Remove an image's files for good.
    Drop {
        /// Which.
        image: SnapId,
    },
    /// Begin an image of a snapshot that others have, under a name that no start of the pool keeps. What an earlier try left goes.
    CopyBegin {
        /// Which.
        image: SnapId,
        /// Length of each of its two slots.
        slot_bytes: u64,
    },
    /// Put these blocks there, all in one segment, not durably. Where the head holds the same it is shared; what overlaps these
    /// in the head and comes later waits for that. Answered by how many bytes were shared.
    CopyFill {
        /// Which.
        image: SnapId,
        /// Byte offset.
        offset: u64,
        /// What goes there.
        extents: Vec<Extent<P>>,
    },
    /// Make durable what was put into a segment of it.
    CopySync {
        /// Which.
        image: SnapId,
        /// Which segment.
        segment: u32,
    },
    /// Make all of it durable, this as its slot as well, and give it its name.
    CopyPublish {
        /// What it is from then on.
        image: Box<Image>,
    },
    /// Remove what was begun. Fine if there is nothing.
    CopyAbandon {
        /// Which.
        image: SnapId,
    },
    /// Share what is there with a replica in the making, not durably. What overlaps it in the head and comes later waits.
    /// Answered by how much was shared: it may be less.
    CloneOut {
        /// The replica in the making.
        to: ReplicaKey,
        /// The head, or an image's files.
        place: Place,
        /// Byte offset.
        offset: u64,
        /// Length in bytes, within one segment.
        len: u64,
    },
}

/// What was asked about an image by whoever is promised.
#[derive(Clone, Debug)]
pub(super) enum Snap {
    Make { id: SnapId, attempt: u64 },
    Prepare { id: SnapId, attempt: u64, generation: Generation, incarnation: u64 },
    Ready { id: SnapId, attempt: u64, note: Vec<u8> },
    Drop { id: SnapId, attempt: u64 },
    Delete { id: SnapId },
    Destroy { id: SnapId, attempt: u64, key: [u8; 16] },
}

impl Snap {
    pub(super) fn of<P>(ask: Ask<P>) -> Option<Snap> {
        Some(match ask {
            Ask::SnapMake { id, attempt } => Snap::Make { id, attempt },
            Ask::SnapPrepare { id, attempt, generation, incarnation } => {
                Snap::Prepare { id, attempt, generation, incarnation }
            }
            Ask::SnapReady { id, attempt, note } => Snap::Ready { id, attempt, note },
            Ask::SnapDrop { id, attempt } => Snap::Drop { id, attempt },
            Ask::SnapDelete { id } => Snap::Delete { id },
            Ask::SnapDestroy { id, attempt, key } => Snap::Destroy { id, attempt, key },
            _ => return None,
        })
    }

    fn id(&self) -> SnapId {
        match self {
            Snap::Make { id, .. }
            | Snap::Prepare { id, .. }
            | Snap::Ready { id, .. }
            | Snap::Drop { id, .. }
            | Snap::Delete { id }
            | Snap::Destroy { id, .. } => *id,
        }
    }
}

/// What a request does when what it changes is preserved.
#[derive(Debug)]
pub(super) enum Next<P> {
    Write { op: DiskOp<P>, regions: (u32, u32), generation: Generation },
    Grow { op: DiskOp<P>, from: u64, to: u64, generation: Generation },
}

impl<P> Next<P> {
    pub(super) fn generation(&self) -> Generation {
        match self {
            Next::Write { generation, .. } | Next::Grow { generation, .. } => *generation,
        }
    }
}

/// A look at an image, part by part: each is asked for where it is at that moment.
#[derive(Debug)]
pub(super) struct Look<P> {
    image: SnapId,
    /// Of which attempt: another one's is another image.
    attempt: u64,
    at: u64,
    end: u64,
    /// The part that is at the disk, and where it was.
    part: (u64, Option<Place>),
    found: DiskDone<P>,
    /// What is kept of it, if its data was destroyed and it is compared.
    grains: Option<Vec<Grain>>,
    key: [u8; 16],
    /// `key` is that of hashes that are kept.
    keyed: bool,
    /// What it is a part of.
    comparison: Option<Comparison>,
}

impl<P> Look<P> {
    /// Takes in what is kept of the segment of this part.
    fn take_kept(
        &mut self,
        bytes: Option<&[u8]>,
        written: bool,
        pool: PoolId,
        replica: ReplicaKey,
    ) -> Result<(), Refusal> {
        let (start, stop) = (self.at, self.part.0);
        let segment = u32::try_from(segment_of(start)).expect("volumes end at 64 TiB");
        let of = (self.image, self.attempt);
        let kept = match bytes {
            // Somebody has taken the file away.
            None if written => return Err(Refusal::BitRot),
            None => None,
            Some(bytes) => match KeptHashes::decode(bytes, pool, replica, of, segment) {
                Ok(kept) => Some(kept),
                Err(_) => return Err(Refusal::BitRot),
            },
        };
        if let Some(kept) = kept.as_ref().filter(|_| self.comparison.is_some()) {
            // Hashes of two keys tell nothing.
            if self.keyed && self.key != kept.key {
                return Err(Refusal::NoSnapshot);
            }
            (self.key, self.keyed) = (kept.key, true);
        }
        let first = u64::from(segment) << SEGMENT_SHIFT;
        let grain = |at: u64| {
            let n = usize::try_from((at - first) / CHANGED_GRAIN).expect("within a segment");
            kept.as_ref().map_or(Grain::Zero, |kept| kept.grains[n])
        };
        let mut at = start;
        while at < stop {
            let end = ((at / CHANGED_GRAIN + 1) * CHANGED_GRAIN).min(stop);
            match (&mut self.grains, &mut self.found) {
                (Some(grains), _) => grains.push(grain(at)),
                (None, DiskDone::Kinds(kinds)) => {
                    kinds.push((end - at, (grain(at) == Grain::Zero).then_some(Hole::Zero)));
                }
                _ => return Err(Refusal::IoError),
            }
            at = end;
        }
        Ok(())
    }
}

/// Two images that are compared, piece by piece: where they are not read at the same place, each is looked at (R29). Of one
/// whose data was destroyed hashes are looked at, and of the other one the same are made.
#[derive(Debug)]
struct Comparison {
    /// With their attempts.
    of: [(SnapId, u64); 2],
    start: u64,
    end: u64,
    /// The piece that is being looked at.
    piece: Range<u64>,
    /// What the first of them that was looked at has there, when the other one is looked at.
    first: Option<Seen>,
    /// What has been found.
    bits: Vec<u8>,
}

/// What an image has in a piece.
#[derive(Debug)]
enum Seen {
    /// A hash for each block.
    Blocks(Vec<[u8; 16]>),
    /// What is kept of each grain, whose data is gone.
    Grains(Vec<Grain>),
}

impl Seen {
    fn grains(self, key: &[u8; 16]) -> Vec<Grain> {
        match self {
            Seen::Blocks(hashes) => grains_of(key, &hashes),
            Seen::Grains(grains) => grains,
        }
    }
}

impl Comparison {
    /// What to look at next, now that what was to be looked at has been. None at the end; refused if one of the images has gone.
    fn next(
        &mut self,
        durable: &Durable,
        found: Seen,
        key: &[u8; 16],
        broken: Broken,
    ) -> Result<Option<((SnapId, u64), Range<u64>)>, Refusal> {
        let [first, second] = self.of;
        // Of one that is to go nothing is kept any more: what it reads may be anything.
        let there = |(id, attempt): (SnapId, u64)| {
            let of = durable.images.get(id);
            of.filter(|of| of.attempt == attempt && of.state.compares())
        };
        let (Some(of_first), Some(of_second)) = (there(first), there(second)) else {
            return Err(Refusal::NoSnapshot);
        };
        let destroyed = [of_first, of_second].map(|of| of.state == ImageState::Destroyed);
        // Hashes first: they say by which key the others are to be made.
        let order = if destroyed[1] && !destroyed[0] {
            [(second, of_second), (first, of_first)]
        } else {
            [(first, of_first), (second, of_second)]
        };
        let clipped = |of: &Image, piece: &Range<u64>| piece.start..piece.end.min(of.size.max(piece.start));
        if !self.piece.is_empty() {
            let Some(before) = self.first.take() else {
                self.first = Some(found);
                let (next, of) = order[1];
                return Ok(Some((next, clipped(of, &self.piece))));
            };
            if matches!((&before, &found), (Seen::Blocks(_), Seen::Grains(_))) {
                // Destroyed in between: the piece is looked at again, as it is to be now.
                self.piece.end = self.piece.start;
            } else if !broken.is(Mutation::ChangedWithinOlder) || self.piece.start < of_first.size {
                self.note(before, found, key)?;
            }
        }
        let since = match broken.is(Mutation::ChangedSinceNewer) {
            false => of_first.generation.min(of_second.generation),
            true => of_first.generation.max(of_second.generation),
        };
        let differs = |at: u64| match durable.unchanged(of_first, of_second, since, at) {
            Some(stop) => (false, stop),
            None => (true, (at / CHANGED_GRAIN + 1) * CHANGED_GRAIN),
        };
        let mut at = self.piece.end;
        while at < self.end {
            let (changed, stop) = differs(at);
            if !changed {
                at = stop;
                continue;
            }
            // Hashes are of whole grains.
            let start = if destroyed == [false; 2] { at } else { at / CHANGED_GRAIN * CHANGED_GRAIN };
            let most = self.end.min(start + HASH_MAX);
            while let (true, stop) = differs(at)
                && at < most
            {
                at = stop.min(most);
            }
            self.piece = start..at;
            let (next, of) = order[0];
            return Ok(Some((next, clipped(of, &self.piece))));
        }
        Ok(None)
    }

    /// Takes in what the two have in a piece. What one has nothing of is absent there; what is absent reads as zeroes. Refused
    /// if it is not known here.
    fn note(&mut self, one: Seen, other: Seen, key: &[u8; 16]) -> Result<(), Refusal> {
        let len = self.piece.end - self.piece.start;
        let (one, other) = match (one, other) {
            (Seen::Blocks(one), Seen::Blocks(other)) => {
                let (absent, zero) = (block_hash(key, &[]), block_hash(key, &[0; 4096]));
                let of = |hashes: &[[u8; 16]], n: usize| match hashes.get(n) {
                    Some(hash) if *hash != absent => *hash,
                    _ => zero,
                };
                let blocks = usize::try_from(len / BLOCK).expect("one piece");
                for n in (0..blocks).filter(|n| of(&one, *n) != of(&other, *n)) {
                    self.set(self.piece.start + n as u64 * BLOCK);
                }
                return Ok(());
            }
            (one, other) => (one.grains(key), other.grains(key)),
        };
        for n in 0..usize::try_from(len.div_ceil(CHANGED_GRAIN)).expect("one piece") {
            let of = |grains: &[Grain]| grains.get(n).copied().unwrap_or(Grain::Zero);
            match (of(&one), of(&other)) {
                // It has rotted before: another copy may know.
                (Grain::Unknown, _) | (_, Grain::Unknown) => return Err(Refusal::BitRot),
                (one, other) if one != other => self.set(self.piece.start + n as u64 * CHANGED_GRAIN),
                _ => {}
            }
        }
        Ok(())
    }

    fn set(&mut self, at: u64) {
        let bit = usize::try_from((at - self.start) / CHANGED_GRAIN).expect("within the bitmap");
        self.bits[bit / 8] |= 0x80 >> (bit % 8);
    }
}

/// Regions of one segment on their way into an image.
#[derive(Debug)]
struct Preserve {
    image: SnapId,
    attempt: u64,
    segment: u64,
    regions: Vec<u32>,
    by: By,
    /// It is there, and at the log.
    logging: bool,
}

/// Why something is preserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Nobody asked for it.
    Itself,
    /// A cut waits for it.
    Cut,
    /// Writers wait for some of it, since then; so many of its regions nobody waited for.
    Writers { since: Instant, ahead: usize },
}

/// A step of a deletion on its way.
#[derive(Debug)]
enum Handing {
    Disk { heir: (SnapId, u64), segment: u32, whole: bool, regions: Vec<u32> },
    Has { heir: (SnapId, u64), segment: u32, whole: bool },
    Gone,
    Empty,
}

/// What is under way for images.
#[derive(Debug, Default)]
pub(super) struct Imaging {
    /// The highest attempt at each snapshot that was prepared or dropped here.
    seen: BTreeMap<SnapId, u64>,
    forgotten: u64,
    /// Room for an image, and for which attempt.
    made: BTreeMap<SnapId, u64>,
    /// Nothing of this generation or an older one is executed any more.
    barrier: Generation,
    /// Requests in [`Stage::Snap`] and [`Stage::SnapActing`].
    pub(super) controls: BTreeSet<Token>,
    /// Requests in [`Stage::Preserving`].
    pub(super) writers: BTreeSet<Token>,
    preserves: BTreeMap<Token, Preserve>,
    /// So many regions that nobody waits for go with those that somebody waits for.
    ahead: usize,
    /// To be deleted, which the log does not say yet.
    pub(super) doomed: BTreeSet<SnapId>,
    dooming: BTreeMap<Token, SnapId>,
    handing: Option<(Token, Handing)>,
    to_drop: BTreeSet<SnapId>,
    dropping: Option<(Token, SnapId)>,
    /// Those of the doomed that stay, without their data.
    pub(super) destroying: BTreeSet<SnapId>,
    /// Their data is nobody's any more.
    to_empty: BTreeSet<SnapId>,
    /// Regions of images in which something could not be read, as far as is known.
    damaged: BTreeMap<SnapId, BTreeSet<u32>>,
    pub(super) hashing: HashWork,
    /// Below this byte nothing is left to preserve by itself.
    from: u64,
    /// What went on by itself has failed: it is tried again when the pool's space is looked at.
    resting: bool,
    /// As that, of deletions: they need no space, mostly, and make some.
    stuck: bool,
}

impl Imaging {
    pub(super) fn new(images: &Images) -> Imaging {
        let taken = images.iter().filter(|image| image.took());
        let barrier = taken.map(|image| image.generation).max().unwrap_or_default();
        // Whether that was done before the process ended nobody has noted.
        let to_empty = images.iter().filter(|image| image.is_empty()).map(|image| image.id).collect();
        Imaging { barrier, ahead: AHEAD, to_empty, ..Imaging::default() }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.preserves.is_empty()
            && self.dooming.is_empty()
            && self.handing.is_none()
            && self.dropping.is_none()
            && self.hashing.is_idle()
    }

    fn raise(&mut self, id: SnapId, attempt: u64) {
        let seen = self.seen.entry(id).or_default();
        *seen = attempt.max(*seen);
        if self.seen.len() > SEEN_MAX
            && let Some((lowest, attempt)) = self.seen.iter().min_by_key(|(_, attempt)| **attempt)
        {
            let (lowest, attempt) = (*lowest, *attempt);
            self.forgotten = attempt.max(self.forgotten);
            self.seen.remove(&lowest);
        }
    }

    /// Something of an image can't be read here.
    fn note_damage(&mut self, image: SnapId, region: u32) {
        if self.damaged.values().map(BTreeSet::len).sum::<usize>() < DAMAGED_MAX {
            self.damaged.entry(image).or_default().insert(region);
        }
    }

    fn is_preserving(&self, image: SnapId, region: u32) -> bool {
        self.preserves.values().any(|p| p.image == image && p.regions.contains(&region))
    }

    /// Is the disk at regions of this segment that somebody waits for?
    fn is_gathering(&self, image: SnapId, segment: u64) -> bool {
        self.preserves
            .values()
            .any(|p| (p.image, p.segment) == (image, segment) && p.by != By::Itself && !p.logging)
    }

    /// What an op that writers waited for says of how far to look ahead.
    fn pace(&mut self, now: Instant, by: By) {
        let By::Writers { since, ahead } = by else { return };
        let took_ms = now.ms_since(since);
        if took_ms > AHEAD_SLOW_MS {
            self.ahead /= 2;
        } else if took_ms <= AHEAD_QUICK_MS && ahead >= self.ahead {
            self.ahead = (2 * self.ahead).clamp(1, AHEAD_MAX);
        }
    }

    /// Is a whole segment handed down to it?
    fn is_moving(&self, image: SnapId, segment: u64) -> bool {
        match &self.handing {
            Some((
                _,
                Handing::Disk { heir, segment: of, whole: true, .. }
                | Handing::Has { heir, segment: of, whole: true },
            )) => (heir.0, u64::from(*of)) == (image, segment),
            _ => false,
        }
    }
}

/// What comes of a control request now.
enum Turn<P> {
    Wait,
    Answer(Result<Answer<P>, Refusal>),
    Log(u64, ImageChange),
    Disk(ImageOp<P>),
}

fn refusal_of(error: DiskError) -> Refusal {
    match error {
        DiskError::NoSpace => Refusal::NoSpace,
        DiskError::NoSnapshots => Refusal::NoSnapshots,
        DiskError::Io | DiskError::BitRot | DiskError::BadCrc => Refusal::IoError,
    }
}

pub(super) fn segment_of(offset: u64) -> u64 {
    offset >> SEGMENT_SHIFT
}

pub(super) fn segment_end(offset: u64) -> u64 {
    (segment_of(offset) + 1) << SEGMENT_SHIFT
}

impl<P: Payload> Replica<P> {
    /// Does no image need anything of the head any more? Only then may it go to the trash.
    #[must_use]
    pub fn whole(&self) -> bool {
        self.durable.images.missing_from(0).is_none()
    }

    /// Regions of an image in which something could not be read since this machine was made.
    #[must_use]
    pub fn damaged_regions(&self, id: SnapId) -> u64 {
        self.imaging.damaged.get(&id).map_or(0, |regions| regions.len() as u64)
    }

    /// What an image had is gone; of one of which nobody knows what that was, everything ([`Images::lose_missing`]).
    pub fn note_lost(&mut self, id: SnapId) {
        let regions: Vec<u32> = self.durable.images.get(id).map(Image::own_regions).unwrap_or_default();
        regions.into_iter().for_each(|region| self.imaging.note_damage(id, region));
    }

    /// The image of exactly this attempt goes, if it was never READY: the store is known not to name it, and never will
    /// (R15). False if there is none, or it is not to go by this.
    pub fn drop_image(&mut self, now: Instant, id: SnapId, attempt: u64) -> bool {
        let of = self.durable.images.get(id).filter(|of| of.attempt == attempt);
        if of.is_none_or(|of| of.state != ImageState::Prepared) {
            return false;
        }
        self.imaging.doomed.insert(id);
        self.settle(now);
        true
    }

    /// The image of exactly this attempt, which was copied, goes: the store is known to have no such snapshot any more (R15).
    /// False if there is none, or the replica took it itself: that goes when it is told to.
    pub fn drop_copied(&mut self, now: Instant, id: SnapId, attempt: u64) -> bool {
        let of = self.durable.images.get(id).filter(|of| of.attempt == attempt && !of.took());
        if of.is_none_or(|of| of.state == ImageState::Deleting) {
            return false;
        }
        self.imaging.doomed.insert(id);
        self.settle(now);
        true
    }

    // ---- the barrier

    /// A change of the head of this generation arrives. One that comes before an image of a later interval is taken was
    /// overtaken; one that comes after says that the barrier was given up.
    pub(super) fn meet_barrier(&mut self, now: Instant, generation: Generation) -> Result<(), Refusal> {
        let mut barrier = self.imaging.barrier;
        let mut given_up = Vec::new();
        for token in &self.imaging.controls {
            match self.running.get(token).map(|running| &running.stage) {
                Some(Stage::Snap(Snap::Prepare { generation: g, .. })) if generation > *g => {
                    given_up.push(*token);
                }
                Some(
                    Stage::Snap(Snap::Prepare { generation: g, .. })
                    | Stage::SnapActing(Snap::Prepare { generation: g, .. }),
                ) => barrier = barrier.max(*g),
                _ => {}
            }
        }
        let broken = self.config.broken;
        let unfenced = broken.is(Mutation::NoFence) || broken.is(Mutation::OldGenerationAfterPrepare);
        if generation <= barrier && !unfenced {
            return Err(Refusal::OldGeneration);
        }
        given_up.into_iter().for_each(|token| self.finish(now, token, Err(Refusal::Busy)));
        Ok(())
    }

    /// An image is at the log: what changes the head waits for what that says.
    pub(super) fn is_preparing(&self) -> bool {
        let preparing = |token| {
            let stage = self.running.get(token).map(|running| &running.stage);
            matches!(stage, Some(Stage::SnapActing(Snap::Prepare { .. })))
        };
        self.imaging.controls.iter().any(preparing)
    }

    /// Does anything execute that changes the head?
    fn is_changing(&self) -> bool {
        if self.config.broken.is(Mutation::PrepareBeforeDrain) {
            return false;
        }
        self.cutting.is_some() && !self.config.broken.is(Mutation::PrepareBeforeCut)
            || self.running.values().any(|running| running.stage.changes())
    }

    /// Has something of the head in this range to be preserved before it changes?
    pub(super) fn must_preserve(&self, offset: u64, len: u64) -> bool {
        let none = self.durable.images.is_empty() && self.imaging.controls.is_empty();
        if none || self.config.broken.is(Mutation::DataBeforePreserve) {
            return false;
        }
        self.is_preparing() && !self.config.broken.is(Mutation::WriteWhilePreparing)
            || self
                .durable
                .images
                .missing_from(offset)
                .is_some_and(|missing| missing < offset.saturating_add(len))
    }

    // ---- what is asked of whoever is promised

    pub(super) fn snap(&mut self, now: Instant, id: AttachmentId, tag: u32, epoch: Epoch, snap: Snap) {
        let token = self.token();
        self.track(now, token, id, tag, epoch, Stage::Snap(snap));
        self.imaging.controls.insert(token);
        self.settle(now);
    }

    /// A promise is accepted: nobody waits for an answer of before it any more.
    pub(super) fn end_controls(&mut self, now: Instant, other_party: bool) {
        let waits = |token: &Token| matches!(self.running.get(token).map(|r| &r.stage), Some(Stage::Snap(_)));
        let waiting: Vec<Token> = self.imaging.controls.iter().copied().filter(waits).collect();
        waiting.into_iter().for_each(|token| self.finish(now, token, Err(Refusal::Busy)));
        if other_party {
            // One of them may be on its way into the log: then the image is there, and needs its files.
            let made = core::mem::take(&mut self.imaging.made);
            let (acted_on, made): (BTreeMap<_, _>, BTreeMap<_, _>) =
                made.into_iter().partition(|(id, _)| self.is_acted_on(*id));
            let images = &self.durable.images;
            let unused = made.into_keys().filter(|id| images.get(*id).is_none());
            self.imaging.to_drop.extend(unused);
            self.imaging.made = acted_on;
        }
    }

    /// Control requests of attachments that have ended wait for nothing.
    pub(super) fn end_orphans(&mut self, now: Instant) {
        let orphan = |token: &Token| {
            self.running.get(token).is_some_and(|running| {
                matches!(running.stage, Stage::Snap(_))
                    && self.attachments.get(&running.attachment).is_none_or(|a| !a.live)
            })
        };
        let orphans: Vec<Token> = self.imaging.controls.iter().copied().filter(orphan).collect();
        orphans.into_iter().for_each(|token| self.finish(now, token, Err(Refusal::NotAttached)));
    }

    fn turn(&mut self, now: Instant, token: Token) {
        let Some(running) = self.running.get(&token) else { return };
        let Stage::Snap(snap) = &running.stage else { return };
        let (snap, epoch) = (snap.clone(), running.epoch);
        let id = snap.id();
        let action = match self.next_of(&snap, epoch) {
            Turn::Wait => return,
            Turn::Answer(outcome) => return self.finish(now, token, outcome),
            Turn::Log(attempt, change) => {
                Action::Log { token, record: LogRecord::Image { image: id, attempt, change } }
            }
            Turn::Disk(op) => Action::Image { token, op },
        };
        let late = matches!((&snap, &action), (Snap::Prepare { .. }, Action::Log { .. }));
        if let Some(running) = self.running.get_mut(&token) {
            running.stage = Stage::SnapActing(snap);
        }
        self.actions.push_back(action);
        if late && self.config.broken.is(Mutation::LoggedBeforeTaken) {
            let token = self.token();
            self.actions.push_back(Action::Image { token, op: ImageOp::Take { image: id } });
        }
    }

    /// The highest attempt at a snapshot that was seen here.
    fn highest_attempt(&self, id: SnapId) -> u64 {
        if self.config.broken.is(Mutation::AttemptForgotten) {
            return 0;
        }
        let images = &self.durable.images;
        let there = images.get(id).map_or(0, |image| image.attempt);
        let gone = images.gone().find(|(of, _)| *of == id).map_or(0, |(_, attempt)| attempt);
        let seen = self.imaging.seen.get(&id).copied().unwrap_or(self.imaging.forgotten);
        seen.max(there).max(gone)
    }

    pub(super) fn is_acted_on(&self, id: SnapId) -> bool {
        let acting = |token| matches!(self.running.get(token).map(|r| &r.stage), Some(Stage::SnapActing(of)) if of.id() == id);
        self.imaging.controls.iter().any(acting)
    }

    fn next_of(&mut self, snap: &Snap, epoch: Epoch) -> Turn<P> {
        use ImageState::{Deleting, Destroyed, Prepared, Ready};
        let refuse = |refusal| Turn::Answer(Err(refusal));
        let done = Turn::Answer(Ok(Answer::Done));
        let id = snap.id();
        if self.is_acted_on(id) {
            return Turn::Wait;
        }
        let image = self.durable.images.get(id).map(|image| (image.attempt, image.state, image.generation));
        let made = self.imaging.made.get(&id).copied();
        match snap {
            Snap::Make { .. } | Snap::Prepare { .. } if self.durable.region_shift > SEGMENT_SHIFT => {
                refuse(Refusal::NoSnapshots)
            }
            Snap::Make { attempt, .. } => match image {
                Some((of, Prepared | Ready | Destroyed, _)) if of == *attempt => done,
                _ if made == Some(*attempt) => done,
                _ if *attempt <= self.highest_attempt(id) => refuse(Refusal::OldAttempt),
                Some((_, Ready | Destroyed, _)) => refuse(Refusal::OldAttempt),
                Some((_, Prepared, _)) if !self.config.broken.is(Mutation::AttemptReplaced) => {
                    self.imaging.doomed.insert(id);
                    Turn::Wait
                }
                Some((_, Deleting, _)) => Turn::Wait,
                _ if self.imaging.to_drop.contains(&id) => Turn::Wait,
                _ if self.copies.has(id) => refuse(Refusal::Busy),
                _ if self.images_len() >= IMAGES_MAX => refuse(Refusal::Busy),
                _ => {
                    let regions = image_slot_len(self.durable.rgm.len());
                    Turn::Disk(ImageOp::Make { image: id, slot_bytes: regions as u64 })
                }
            },
            Snap::Prepare { attempt, generation, incarnation, .. } => {
                if image.is_some_and(|(of, state, g)| (of, g) == (*attempt, *generation) && state != Deleting)
                {
                    return done;
                }
                if *attempt <= self.highest_attempt(id) {
                    return refuse(Refusal::OldAttempt);
                }
                if made != Some(*attempt) {
                    return refuse(Refusal::NoSnapshot);
                }
                if generation.epoch() > epoch {
                    return refuse(Refusal::OutOfBounds);
                }
                if *generation <= self.imaging.barrier {
                    return refuse(Refusal::OldGeneration);
                }
                if self.is_preparing() || self.is_changing() {
                    return Turn::Wait;
                }
                // Stamps ahead of the barrier are not this session's.
                let newest = self.durable.rgm.iter().chain(self.asked.values()).max();
                if newest.is_some_and(|newest| newest > generation) {
                    return refuse(Refusal::OldGeneration);
                }
                if self.config.takes == ImageForm::Chained
                    || self.config.broken.is(Mutation::LoggedBeforeTaken)
                {
                    return Turn::Log(*attempt, self.prepared(*generation, epoch, *incarnation));
                }
                Turn::Disk(ImageOp::Take { image: id })
            }
            Snap::Ready { attempt, note, .. } => match image {
                _ if note.len() > NOTE_MAX => refuse(Refusal::OutOfBounds),
                Some((of, Ready | Destroyed, _)) if of == *attempt => done,
                Some((of, Prepared, _)) if of == *attempt && !self.imaging.doomed.contains(&id) => {
                    Turn::Log(*attempt, ImageChange::Ready { note: note.clone() })
                }
                _ => refuse(Refusal::NoSnapshot),
            },
            Snap::Drop { attempt, .. } => {
                self.imaging.raise(id, *attempt);
                if made.is_some_and(|made| made <= *attempt) {
                    self.unmake(id);
                }
                match image {
                    Some((of, Prepared, _)) if of == *attempt => {
                        self.imaging.doomed.insert(id);
                        Turn::Wait
                    }
                    // It stands in the store: whoever says that it never will is mistaken.
                    Some((of, Ready | Destroyed, _)) if of == *attempt => refuse(Refusal::OldAttempt),
                    _ => done,
                }
            }
            Snap::Delete { .. } => match image {
                Some((_, Deleting, _)) => Turn::Answer(Ok(Answer::Deleting)),
                Some((attempt, ..)) => {
                    self.imaging.raise(id, attempt);
                    self.imaging.destroying.remove(&id);
                    self.imaging.doomed.insert(id);
                    Turn::Wait
                }
                None => {
                    self.end_copy(id, NotCopied::Deleted);
                    self.unmake(id);
                    done
                }
            },
            Snap::Destroy { attempt, key, .. } => match image {
                Some((of, Destroyed, _)) if of == *attempt => done,
                // The pool's own snapshot goes as a whole, with the snapshot: there is little room beside it for hashes.
                Some((of, Ready, _)) if of == *attempt && self.is_the_pools(id) => done,
                Some((of, Ready, _)) if of == *attempt => {
                    self.imaging.hashing.want(id, *attempt, *key);
                    Turn::Answer(Ok(Answer::Deleting))
                }
                // It is to be logged first, so that a repair can name it.
                Some((of, Prepared, _)) if of == *attempt => refuse(Refusal::Busy),
                _ => refuse(Refusal::NoSnapshot),
            },
        }
    }

    fn prepared(&self, generation: Generation, epoch: Epoch, incarnation: u64) -> ImageChange {
        ImageChange::Prepared { generation, epoch, incarnation, form: self.config.takes }
    }

    /// The pool has taken its snapshot of the head for an image, or not.
    fn taken(&mut self, now: Instant, token: Token, outcome: Result<(), DiskError>) {
        let Some(running) = self.running.get(&token) else { return };
        let (epoch, Stage::SnapActing(Snap::Prepare { id, attempt, generation, incarnation })) =
            (running.epoch, &running.stage)
        else {
            return;
        };
        let (image, attempt) = (*id, *attempt);
        let change = self.prepared(*generation, epoch, *incarnation);
        if let Err(error) = outcome {
            // Something may be there: another attempt begins with nothing.
            self.unmake(image);
            return self.finish(now, token, Err(refusal_of(error)));
        }
        let record = LogRecord::Image { image, attempt, change };
        self.actions.push_back(Action::Log { token, record });
    }

    /// Images and what may become some.
    pub(super) fn images_len(&self) -> usize {
        self.durable.images.len() + self.imaging.made.len() + self.copies.len()
    }

    /// Is there an image of this snapshot, room for one, or what is left of one?
    pub(super) fn is_imaging(&self, id: SnapId) -> bool {
        self.durable.images.get(id).is_some()
            || self.imaging.made.contains_key(&id)
            || self.imaging.to_drop.contains(&id)
            || self.is_acted_on(id)
    }

    /// A copy has become an image. One that is `unwanted` by now is removed, and the log says nothing of it: that it is gone
    /// would be said of its snapshot (R15).
    pub(super) fn copied_is_there(&mut self, image: Image, unwanted: bool) {
        if unwanted {
            self.imaging.to_drop.insert(image.id);
        } else {
            self.imaging.raise(image.id, image.attempt);
            self.durable.images.put_copied(image);
        }
    }

    fn is_the_pools(&self, id: SnapId) -> bool {
        self.durable.images.get(id).is_some_and(|image| image.form == ImageForm::Whole)
    }

    fn unmake(&mut self, id: SnapId) {
        if self.imaging.made.remove(&id).is_some() && self.durable.images.get(id).is_none() {
            self.imaging.to_drop.insert(id);
        }
    }

    // ---- what the log and the disk answer

    /// The log has, or has not, a record of an image.
    pub(super) fn image_logged(
        &mut self,
        now: Instant,
        token: Token,
        image: SnapId,
        outcome: Result<(), DiskError>,
    ) {
        let refusal = outcome.err().map(refusal_of);
        if let Some(preserve) = self.imaging.preserves.remove(&token) {
            if let Some(refusal) = refusal {
                self.not_preserved(now, &preserve, refusal);
            }
            return;
        }
        if self.imaging.dooming.remove(&token).is_some() {
            self.imaging.doomed.remove(&image);
            self.imaging.destroying.remove(&image);
            self.imaging.from = 0;
            if self.durable.images.get(image).is_some_and(Image::is_empty) {
                self.imaging.to_empty.insert(image);
            }
            if let Some(refusal) = refusal {
                self.not_doomed(now, image, refusal);
            }
            return;
        }
        if let Some((_, handing)) = self.imaging.handing.take_if(|(of, _)| *of == token) {
            match (handing, refusal) {
                (_, Some(_)) => self.imaging.stuck = true,
                (Handing::Gone, None) => {
                    self.imaging.damaged.remove(&image);
                    self.imaging.to_drop.insert(image);
                    self.imaging.to_empty.remove(&image);
                }
                (Handing::Empty, None) => {
                    self.imaging.to_empty.insert(image);
                }
                _ => {}
            }
            return;
        }
        let Some(running) = self.running.get(&token) else { return };
        let Stage::SnapActing(snap) = &running.stage else { return };
        if refusal.is_none()
            && let Snap::Prepare { attempt, generation, .. } = *snap
        {
            self.imaging.made.remove(&image);
            self.imaging.raise(image, attempt);
            self.imaging.barrier = generation.max(self.imaging.barrier);
            (self.imaging.from, self.imaging.resting) = (0, false);
        }
        if refusal.is_some()
            && matches!(snap, Snap::Prepare { .. })
            && self.config.takes != ImageForm::Chained
        {
            self.unmake(image);
        }
        self.finish(now, token, refusal.map_or(Ok(Answer::Done), Err));
    }

    /// The pool has done something for an image, or not. False if `token` is none of that.
    pub(super) fn image_done(
        &mut self,
        now: Instant,
        token: Token,
        outcome: Result<DiskDone<P>, DiskError>,
    ) -> Result<(), Result<DiskDone<P>, DiskError>> {
        if let Some(preserve) = self.imaging.preserves.get_mut(&token) {
            match outcome {
                // Nothing can be put there any more: what should be there is damage, said at each look at it. Writes go on.
                Ok(_) | Err(DiskError::BitRot) => {
                    let by = preserve.by;
                    preserve.logging = true;
                    let lost = outcome.is_err().then(|| (preserve.image, preserve.regions.clone()));
                    let change = ImageChange::Has { regions: preserve.regions.clone() };
                    let (image, attempt) = (preserve.image, preserve.attempt);
                    let record = LogRecord::Image { image, attempt, change };
                    self.actions.push_back(Action::Log { token, record });
                    self.imaging.pace(now, by);
                    for (image, region) in
                        lost.into_iter().flat_map(|(image, of)| of.into_iter().map(move |r| (image, r)))
                    {
                        self.imaging.note_damage(image, region);
                    }
                }
                Err(error) => {
                    if let Some(preserve) = self.imaging.preserves.remove(&token) {
                        match preserve.by {
                            // Perhaps what nobody waits for was too much: those that wait ask for theirs alone.
                            By::Writers { ahead: 1.., .. } => self.imaging.ahead = 0,
                            _ => self.not_preserved(now, &preserve, refusal_of(error)),
                        }
                    }
                }
            }
            return Ok(());
        }
        if let Some((_, handing)) = self.imaging.handing.take_if(|(of, _)| *of == token) {
            match (handing, outcome) {
                // What is not there any more makes the heir as damaged as it is itself.
                (Handing::Disk { heir, segment, whole, regions }, Ok(_) | Err(DiskError::BitRot)) => {
                    let change = ImageChange::Has { regions };
                    let record = LogRecord::Image { image: heir.0, attempt: heir.1, change };
                    self.imaging.handing = Some((token, Handing::Has { heir, segment, whole }));
                    self.actions.push_back(Action::Log { token, record });
                }
                _ => self.imaging.stuck = true,
            }
            return Ok(());
        }
        if let Some((_, image)) = self.imaging.dropping.take_if(|(of, _)| *of == token) {
            // What could not be removed is found at the next start.
            self.imaging.to_drop.remove(&image);
            self.imaging.to_empty.remove(&image);
            return Ok(());
        }
        let outcome = match self.hash_done(token, outcome) {
            Ok(()) => return Ok(()),
            Err(outcome) => outcome,
        };
        match self.running.get_mut(&token).map(|running| &mut running.stage) {
            Some(Stage::SnapActing(Snap::Prepare { .. })) => {
                self.taken(now, token, outcome.map(drop));
                Ok(())
            }
            Some(Stage::SnapActing(snap)) => {
                if let (Snap::Make { id, attempt }, Ok(_)) = (snap, &outcome) {
                    self.imaging.made.insert(*id, *attempt);
                }
                self.finish(now, token, outcome.map(|_| Answer::Done).map_err(refusal_of));
                Ok(())
            }
            Some(Stage::Look(_)) => {
                self.looked(now, token, outcome);
                Ok(())
            }
            _ => Err(outcome),
        }
    }

    /// Those that wait for these regions are refused, alone (R28).
    fn not_preserved(&mut self, now: Instant, preserve: &Preserve, refusal: Refusal) {
        if preserve.by == By::Itself {
            self.imaging.resting = true;
        }
        let lost = |token: &Token| {
            let Some(Stage::Preserving { at, end, .. }) = self.running.get(token).map(|r| &r.stage) else {
                return false;
            };
            self.lacks(*at, segment_end(*at).min(*end) - at, preserve)
        };
        let lost: Vec<Token> = self.imaging.writers.iter().copied().filter(lost).collect();
        lost.into_iter().for_each(|token| self.finish(now, token, Err(refusal)));
        if let Some(to) = self.to_cut
            && self.lacks(to, self.durable.size.saturating_sub(to), preserve)
        {
            self.to_cut = None;
        }
    }

    fn lacks(&self, offset: u64, len: u64, preserve: &Preserve) -> bool {
        let needs = self.durable.images.needs(offset, len);
        needs.is_some_and(|(image, regions)| {
            image == preserve.image && regions.iter().any(|region| preserve.regions.contains(region))
        })
    }

    /// An image could not be logged as one that is to go: whoever waits for that is told.
    fn not_doomed(&mut self, now: Instant, image: SnapId, refusal: Refusal) {
        let waits = |token: &Token| {
            let stage = self.running.get(token).map(|r| &r.stage);
            matches!(stage, Some(Stage::Snap(snap)) if snap.id() == image)
        };
        let waiting: Vec<Token> = self.imaging.controls.iter().copied().filter(waits).collect();
        waiting.into_iter().for_each(|token| self.finish(now, token, Err(refusal)));
    }

    // ---- what goes on

    /// What can be answered is; what can begin does.
    pub(super) fn go_on_images(&mut self, now: Instant) {
        // The end of one may be what another one waits for.
        let mut before = 0;
        while before != self.imaging.controls.len() {
            before = self.imaging.controls.len();
            for token in self.imaging.controls.clone() {
                self.turn(now, token);
            }
        }
        for token in self.imaging.writers.clone() {
            self.preserve_for(token);
        }
        self.preserve_what_waits(now);
        self.go_on_by_itself();
    }

    /// The pool's space was looked at: what has failed may work now.
    pub(super) fn try_again(&mut self) {
        (self.imaging.resting, self.imaging.stuck) = (false, false);
        self.imaging.hashing.wake();
        self.go_on_by_itself();
    }

    pub(super) fn go_on_by_itself(&mut self) {
        if self.failed || self.quarantined {
            return;
        }
        self.doom();
        self.hand_down();
        if self.imaging.dropping.is_none()
            && let Some(image) = self.imaging.to_drop.first().copied()
        {
            let token = self.token();
            self.imaging.dropping = Some((token, image));
            self.actions.push_back(Action::Image { token, op: ImageOp::Drop { image } });
        }
        if self.imaging.dropping.is_none()
            && let Some(image) = self.imaging.to_empty.first().copied()
        {
            let token = self.token();
            self.imaging.dropping = Some((token, image));
            self.actions.push_back(Action::Image { token, op: ImageOp::Empty { image } });
        }
        self.hash_by_itself();
        self.preserve_by_itself();
    }

    /// It is logged that an image is to go, once nothing is on its way into it.
    pub(super) fn doom(&mut self) {
        for image in self.imaging.doomed.clone() {
            let state = self.durable.images.get(image).map(|of| (of.attempt, of.state));
            let destroys = self.imaging.destroying.contains(&image);
            let change = match state {
                Some((_, ImageState::Ready)) if destroys => ImageChange::Destroyed,
                Some((_, ImageState::Prepared | ImageState::Ready | ImageState::Destroyed)) if !destroys => {
                    ImageChange::Deleting
                }
                _ => {
                    self.imaging.doomed.remove(&image);
                    self.imaging.destroying.remove(&image);
                    continue;
                }
            };
            let Some((attempt, _)) = state else { continue };
            let gets = match &self.imaging.handing {
                Some((_, Handing::Disk { heir, .. } | Handing::Has { heir, .. })) => {
                    heir.0 == image && !self.config.broken.is(Mutation::HeirDeleted)
                }
                _ => false,
            };
            let filled = self.imaging.preserves.values().any(|p| p.image == image)
                && !self.config.broken.is(Mutation::PreserveIntoDeleted);
            let logged = self.imaging.dooming.values().any(|of| *of == image);
            if gets || filled || logged || self.is_acted_on(image) {
                continue;
            }
            let token = self.token();
            self.imaging.dooming.insert(token, image);
            let record = LogRecord::Image { image, attempt, change };
            self.actions.push_back(Action::Log { token, record });
        }
    }

    /// The next step of a deletion.
    fn hand_down(&mut self) {
        if self.imaging.handing.is_some() || self.imaging.stuck {
            return;
        }
        match self.durable.images.hand_down() {
            None => {}
            Some(end @ (HandDown::Gone(image) | HandDown::Empty(image))) => {
                let Some(attempt) = self.durable.images.get(image).map(|of| of.attempt) else { return };
                let (handing, change) = match end {
                    HandDown::Empty(_) => (Handing::Empty, ImageChange::Emptied),
                    _ => (Handing::Gone, ImageChange::Gone),
                };
                let token = self.token();
                self.imaging.handing = Some((token, handing));
                let record = LogRecord::Image { image, attempt, change };
                self.actions.push_back(Action::Log { token, record });
            }
            Some(HandDown::Segment { image, heir, segment, whole, regions }) => {
                let filled = |p: &Preserve| (p.image, p.segment) == (heir, u64::from(segment));
                if self.imaging.doomed.contains(&heir) || whole && self.imaging.preserves.values().any(filled)
                {
                    return;
                }
                let Some(of) = self.durable.images.get(heir) else { return };
                let blocks = |region: &u32| {
                    let (offset, len) = of.range(*region);
                    let block = |offset: u64| {
                        let within = (offset - (u64::from(segment) << SEGMENT_SHIFT)) / BLOCK;
                        u32::try_from(within).expect("within a segment")
                    };
                    block(offset)..block(offset + len)
                };
                let blocks = if whole { Vec::new() } else { regions.iter().map(blocks).collect() };
                let (token, attempt) = (Token(self.next_token + 1), of.attempt);
                self.next_token += 1;
                let handing = Handing::Disk { heir: (heir, attempt), segment, whole, regions };
                self.imaging.handing = Some((token, handing));
                let op = ImageOp::HandDown { image, heir, segment, blocks };
                self.actions.push_back(Action::Image { token, op });
            }
        }
    }

    /// What the newest image still needs of the head, piece by piece, while nobody waits for anything of the kind.
    fn preserve_by_itself(&mut self) {
        let imaging = &self.imaging;
        let busy = imaging.resting
            || !imaging.writers.is_empty()
            || !imaging.controls.is_empty()
            || imaging.preserves.values().any(|p| p.by == By::Itself);
        if busy || imaging.from == u64::MAX {
            return;
        }
        let Some(offset) = self.durable.images.missing_from(imaging.from) else {
            self.imaging.from = u64::MAX;
            return;
        };
        self.imaging.from = offset;
        let Some((image, regions)) = self.durable.images.needs(offset, segment_end(offset) - offset) else {
            return;
        };
        if self.is_closed(image, segment_of(offset)) {
            return;
        }
        if let Some(run) = self.runs(image, &regions).into_iter().next() {
            self.preserve(image, run, By::Itself);
        }
    }

    /// May nothing be put there now?
    fn is_closed(&self, image: SnapId, segment: u64) -> bool {
        let doomed = self.imaging.doomed.contains(&image);
        self.imaging.is_moving(image, segment)
            || doomed && !self.config.broken.is(Mutation::PreserveIntoDoomed)
    }

    /// Regions that are not on their way yet, in runs.
    fn runs(&self, image: SnapId, regions: &[u32]) -> Vec<Vec<u32>> {
        let longest = self.imaging.ahead + RUN_REGIONS;
        let mut runs: Vec<Vec<u32>> = Vec::new();
        for region in regions.iter().copied().filter(|region| !self.imaging.is_preserving(image, *region)) {
            match runs.last_mut() {
                Some(run) if run.len() < longest && run.last().is_some_and(|last| last + 1 == region) => {
                    run.push(region);
                }
                _ => runs.push(Vec::from([region])),
            }
        }
        runs
    }

    /// Regions of one segment, one after the other, are put into an image.
    fn preserve(&mut self, image: SnapId, regions: Vec<u32>, by: By) {
        let (Some(of), Some(first), Some(last)) =
            (self.durable.images.get(image), regions.first(), regions.last())
        else {
            return;
        };
        let (offset, (start, len)) = (of.range(*first).0, of.range(*last));
        let len = (start + len).min(self.durable.size).saturating_sub(offset);
        let (attempt, segment) = (of.attempt, segment_of(offset));
        let token = self.token();
        let preserve = Preserve { image, attempt, segment, regions, by, logging: false };
        self.imaging.preserves.insert(token, preserve);
        self.actions.push_back(Action::Image { token, op: ImageOp::Preserve { image, offset, len } });
    }

    /// What a segment's writers wait for is put into the image that needs it, all of it at once, and some of what they will
    /// come to: each op waits for those that write there, and makes a flush. Who comes while the disk is at it goes with the
    /// next ones.
    fn preserve_waited(&mut self, now: Instant, image: SnapId, segment: u64, wanted: &BTreeSet<u32>) {
        if self.is_closed(image, segment) || self.imaging.is_gathering(image, segment) {
            return;
        }
        let needs = self.durable.images.needs(segment << SEGMENT_SHIFT, 1 << SEGMENT_SHIFT);
        let from = wanted.first().copied().unwrap_or_default();
        let mut others: Vec<u32> = needs.into_iter().flat_map(|(_, all)| all).collect();
        others.retain(|region| !wanted.contains(region) && !self.imaging.is_preserving(image, *region));
        let first = others.partition_point(|region| *region < from);
        others.rotate_left(first);
        others.truncate(self.imaging.ahead);
        others.extend(wanted);
        others.sort_unstable();
        for run in self.runs(image, &others).into_iter().take(RUNS) {
            let ahead = run.iter().filter(|region| !wanted.contains(region)).count();
            self.preserve(image, run, By::Writers { since: now, ahead });
        }
    }

    fn preserve_what_waits(&mut self, now: Instant) {
        if self.imaging.writers.is_empty() || self.is_preparing() {
            return;
        }
        let mut wanted: BTreeMap<(SnapId, u64), BTreeSet<u32>> = BTreeMap::new();
        for token in &self.imaging.writers {
            let Some(Stage::Preserving { at, end, .. }) = self.running.get(token).map(|r| &r.stage) else {
                continue;
            };
            if let Some((image, regions)) = self.durable.images.needs(*at, segment_end(*at).min(*end) - at) {
                wanted.entry((image, segment_of(*at))).or_default().extend(regions);
            }
        }
        for ((image, segment), regions) in wanted {
            self.preserve_waited(now, image, segment, &regions);
        }
    }

    /// Has a cut to wait before it begins? What it needs is asked for.
    pub(super) fn preserve_for_cut(&mut self, to: u64) -> bool {
        if self.is_preparing() {
            return true;
        }
        let missing = self.durable.images.missing_from(to).filter(|missing| *missing < self.durable.size);
        let needs = missing.and_then(|at| Some((at, self.durable.images.needs(at, segment_end(at) - at)?)));
        let Some((at, (image, regions))) = needs else { return false };
        let segment = segment_of(at);
        if !self.is_closed(image, segment) && !self.imaging.is_gathering(image, segment) {
            for run in self.runs(image, &regions).into_iter().take(RUNS) {
                self.preserve(image, run, By::Cut);
            }
        }
        true
    }

    /// A request goes on once nothing of what it changes is needed.
    fn preserve_for(&mut self, token: Token) {
        loop {
            let Some(running) = self.running.get_mut(&token) else { return };
            let Stage::Preserving { at, end, .. } = &mut running.stage else { return };
            let (from, end) = (*at, *end);
            if from < end {
                let stop = segment_end(from).min(end);
                if self.is_preparing() || self.durable.images.needs(from, stop - from).is_some() {
                    return;
                }
                if let Some(Stage::Preserving { at, .. }) = self.running.get_mut(&token).map(|r| &mut r.stage)
                {
                    *at = stop;
                }
                continue;
            }
            self.imaging.writers.remove(&token);
            let Stage::Preserving { next, .. } = core::mem::replace(&mut running.stage, Stage::Data) else {
                return;
            };
            match next {
                Next::Write { op, regions, generation } => self.stamp(token, op, regions, generation),
                Next::Grow { op, from, to, generation } => {
                    running.stage = Stage::GrowDisk { from, to, generation };
                    self.actions.push_back(Action::Disk { token, op });
                }
            }
            return;
        }
    }

    // ---- looks

    /// Which images there are, in the order of ids.
    pub(super) fn image_views(&self, from: SnapId) -> Vec<ImageView> {
        let images = &self.durable.images;
        let mut found: Vec<_> = images.iter().filter(|image| image.id >= from).collect();
        found.sort_by_key(|image| image.id);
        found.truncate(IMAGES_PAGE);
        let view = |image: &crate::images::Image| ImageView {
            id: image.id,
            attempt: image.attempt,
            generation: image.generation,
            state: image.state,
            whole: images.is_whole(image.id),
            copied: !image.took(),
            size: image.size,
        };
        found.into_iter().map(view).collect()
    }

    /// Looks at an image that is READY; `found`: nothing, of the kind that is asked for.
    pub(super) fn look(
        &mut self,
        now: Instant,
        (id, tag, epoch): (AttachmentId, u32, Epoch),
        image: SnapId,
        (offset, len, most): (u64, u64, u64),
        (found, key): (DiskDone<P>, [u8; 16]),
    ) -> Result<(), Refusal> {
        // Of one whose data was destroyed it is known where there was any.
        let kinds = matches!(found, DiskDone::Kinds(_));
        let may = |of: &&Image| of.state == ImageState::Ready || kinds && of.state.compares();
        let of = self.durable.images.get(image).filter(may);
        let (size, attempt) = of.map(|of| (of.size, of.attempt)).ok_or(Refusal::NoSnapshot)?;
        let whole = offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) && len > 0 && len <= most;
        let end = offset.checked_add(len).filter(|end| whole && *end <= size).ok_or(Refusal::OutOfBounds)?;
        let part = (offset, None);
        let (grains, keyed, comparison) = (None, false, None);
        let look = Look { image, attempt, at: offset, end, part, found, grains, key, keyed, comparison };
        let token = self.token();
        self.track(now, token, id, tag, epoch, Stage::Look(look));
        self.go_on_looking(now, token);
        Ok(())
    }

    /// Compares two images that are READY.
    pub(super) fn compare(
        &mut self,
        now: Instant,
        (id, tag, epoch): (AttachmentId, u32, Epoch),
        (image, since): (SnapId, SnapId),
        (offset, len): (u64, u64),
        key: [u8; 16],
    ) -> Result<(), Refusal> {
        let ready = |id: SnapId| {
            // What was copied says nothing of this replica's own stamps, nor of what it shares with others (R29).
            let took = |of: &&Image| of.took() || self.config.broken.is(Mutation::ChangedByCopy);
            let of = self.durable.images.get(id).filter(|of| of.state.compares()).filter(took);
            of.map(|of| (of.attempt, of.size)).ok_or(Refusal::NoSnapshot)
        };
        let ((attempt, size), (since_attempt, _)) = (ready(image)?, ready(since)?);
        let whole = offset.is_multiple_of(CHANGED_GRAIN) && len.is_multiple_of(BLOCK);
        let fits = whole && (1..=CHANGED_MAX).contains(&len);
        let end = offset.checked_add(len).filter(|end| fits && *end <= size).ok_or(Refusal::OutOfBounds)?;
        let bytes = usize::try_from(len.div_ceil(8 * CHANGED_GRAIN)).expect("a small bitmap");
        let of = [(since, since_attempt), (image, attempt)];
        let (piece, bits) = (offset..offset, alloc::vec![0; bytes]);
        let comparison = Some(Comparison { of, start: offset, end, piece, first: None, bits });
        // There is nothing to look at before the first piece.
        let (part, found) = ((offset, None), DiskDone::Hashes(Vec::new()));
        let (grains, keyed) = (None, false);
        let look =
            Look { image, attempt, at: offset, end: offset, part, found, grains, key, keyed, comparison };
        let token = self.token();
        self.track(now, token, id, tag, epoch, Stage::Look(look));
        self.go_on_looking(now, token);
        Ok(())
    }

    fn go_on_looking(&mut self, now: Instant, token: Token) {
        while self.look_on(now, token) {}
    }

    /// True if there is more to look at, and nothing is awaited.
    fn look_on(&mut self, now: Instant, token: Token) -> bool {
        let broken = self.config.broken;
        let Some(running) = self.running.get_mut(&token) else { return false };
        let live = self.attachments.get(&running.attachment).is_some_and(|a| a.live);
        let Stage::Look(look) = &mut running.stage else { return false };
        // Nothing is kept any more for one that goes: what it reads then may be anything.
        let (compared, kinds) = (look.comparison.is_some(), matches!(look.found, DiskDone::Kinds(_)));
        let may = |of: &&Image| {
            of.attempt == look.attempt
                && (of.state == ImageState::Ready || (compared || kinds) && of.state.compares())
        };
        let Some(of) = self.durable.images.get(look.image).filter(may).filter(|_| live) else {
            let refusal = if live { Refusal::NoSnapshot } else { Refusal::NotAttached };
            self.finish(now, token, Err(refusal));
            return false;
        };
        let destroyed = of.state == ImageState::Destroyed;
        if let Some(comparison) = &look.comparison
            && destroyed
            && look.grains.is_none()
        {
            // From here on of its hashes, and all of them: it may have been destroyed since the look began.
            (look.grains, look.found) = (Some(Vec::new()), DiskDone::Hashes(Vec::new()));
            look.at = comparison.piece.start.min(look.end);
        }
        let region = |at: u64| u32::try_from(at >> of.region_shift).expect("within the image");
        if destroyed && look.at < look.end {
            look.part = (segment_end(look.at).min(look.end), None);
            let segment = u32::try_from(segment_of(look.at)).expect("volumes end at 64 TiB");
            let op = ImageOp::Kept { image: look.image, segment };
            self.actions.push_back(Action::Image { token, op });
            return false;
        }
        while look.at < look.end {
            let place = self.durable.images.place(look.image, region(look.at));
            // As far as it is in one place.
            let mut stop = look.at;
            while stop < look.end && self.durable.images.place(look.image, region(stop)) == place {
                let (start, len) = of.range(region(stop));
                stop = (start + len).min(look.end);
            }
            let (offset, len) = (look.at, stop - look.at);
            let op = match &look.found {
                DiskDone::Kinds(_) => DiskOp::Kinds { offset, len },
                DiskDone::Hashes(_) => DiskOp::Hash { offset, len, key: look.key },
                DiskDone::Data(_) | DiskDone::Done | DiskDone::Shared(_) | DiskDone::Kept(_) => {
                    DiskOp::Read { offset, len }
                }
            };
            look.part = (stop, place);
            let action = match place {
                None | Some(Place::Absent) => {
                    match &mut look.found {
                        DiskDone::Kinds(kinds) => kinds.push((len, Some(Hole::Absent))),
                        DiskDone::Hashes(hashes) => {
                            hashes.extend((0..len / BLOCK).map(|_| block_hash(&look.key, &[])));
                        }
                        DiskDone::Data(extents) => extents.push(Extent::Hole { len, kind: Hole::Absent }),
                        DiskDone::Done | DiskDone::Shared(_) | DiskDone::Kept(_) => {}
                    }
                    look.at = stop;
                    continue;
                }
                Some(Place::Head) => Action::Disk { token, op },
                Some(Place::Image { image, heir }) => {
                    Action::Image { token, op: ImageOp::Look { image, heir, op } }
                }
            };
            self.actions.push_back(action);
            return false;
        }
        let answer = match (core::mem::replace(&mut look.found, DiskDone::Done), &mut look.comparison) {
            (DiskDone::Hashes(found), Some(comparison)) => {
                let found = look.grains.take().map_or(Seen::Blocks(found), Seen::Grains);
                match comparison.next(&self.durable, found, &look.key, broken) {
                    Ok(Some(((image, attempt), piece))) => {
                        (look.image, look.attempt) = (image, attempt);
                        (look.at, look.end) = (piece.start, piece.end);
                        look.found = DiskDone::Hashes(Vec::new());
                        return true;
                    }
                    Ok(None) => Ok(Answer::Changed(core::mem::take(&mut comparison.bits))),
                    Err(refusal) => Err(refusal),
                }
            }
            (DiskDone::Done | DiskDone::Shared(_) | DiskDone::Kept(_), _) => Ok(Answer::Done),
            (DiskDone::Data(extents), _) => Ok(Answer::Data(extents)),
            (DiskDone::Kinds(kinds), _) => Ok(Answer::Kinds(kinds)),
            (DiskDone::Hashes(hashes), None) => Ok(Answer::Hashes(hashes)),
        };
        self.finish(now, token, answer);
        false
    }

    fn looked(&mut self, now: Instant, token: Token, outcome: Result<DiskDone<P>, DiskError>) {
        let Some(Stage::Look(look)) = self.running.get_mut(&token).map(|running| &mut running.stage) else {
            return;
        };
        let images = &self.durable.images;
        let shift = images.get(look.image).map_or(SEGMENT_SHIFT, |of| of.region_shift);
        let place = |region: u64| images.place(look.image, u32::try_from(region).expect("within the image"));
        let mut regions = (look.at >> shift)..=((look.part.0 - 1) >> shift);
        let moved = !regions.all(|region| place(region) == look.part.1);
        match (outcome, &mut look.found) {
            // The pool does a long look in pieces: between two of them the head may have changed, once it was preserved.
            (Ok(_), _) if moved && look.part.1 == Some(Place::Head) => return self.go_on_looking(now, token),
            (Ok(DiskDone::Data(found)), DiskDone::Data(all)) => all.extend(found),
            (Ok(DiskDone::Kinds(found)), DiskDone::Kinds(all)) => all.extend(found),
            (Ok(DiskDone::Hashes(found)), DiskDone::Hashes(all)) => all.extend(found),
            (Ok(DiskDone::Kept(bytes)), _) => {
                let key = ReplicaKey { volume: self.durable.volume, rid: self.durable.rid };
                let written = images.get(look.image).and_then(|of| of.written_from(look.at));
                let written = written.is_some_and(|(start, _)| start < look.part.0);
                if let Err(refusal) = look.take_kept(bytes.as_deref(), written, self.config.pool, key) {
                    return self.finish(now, token, Err(refusal));
                }
            }
            (Ok(_), _) => return self.finish(now, token, Err(Refusal::IoError)),
            // Looked for where it was: it may have been handed down meanwhile.
            (Err(_), _) if moved && !self.config.broken.is(Mutation::LookOnce) => {
                return self.go_on_looking(now, token);
            }
            (Err(error), _) => {
                let refusal = if error == DiskError::BitRot { Refusal::BitRot } else { refusal_of(error) };
                if error == DiskError::BitRot {
                    let (image, at) = (look.image, look.at >> shift);
                    self.imaging.note_damage(image, u32::try_from(at).expect("within the image"));
                }
                return self.finish(now, token, Err(refusal));
            }
        }
        look.at = look.part.0;
        self.go_on_looking(now, token);
    }
}

#[cfg(test)]
mod tests;
