//! One replica's blocks on a disk of the world: what the device holds, what of it survives a power cut, what of it
//! can't be read, and what the pool (weft-io's `FilePool`) makes of that.
//!
//! Must always hold:
//! * a completed durable write survives everything but damage; an unfinished one leaves each block old, new or, when the
//!   power goes, torn in the middle; what was not flushed may vanish block by block;
//! * damage is seen, never served: the pool's checksums are the authority for a block that was written, looked at or
//!   sealed by this process, or sealed before it. For others ("in doubt": written after the last seal and before a
//!   restart) no checksum is, there or in a real pool (protocol.md 4.10): a wrong content is put right when a block comes
//!   into doubt, since nobody promises to find it; an unreadable one stays unreadable.

use weft_proto::ids::SnapId;
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::{BLOCK, HeapPayload, Payload, block_crcs, block_hash};
use weft_proto::replica::{DiskDone, DiskError, DiskOp, ImageOp};

use super::SIZE;
use crate::disk::looked_at;
use crate::images::ImageFiles;
use crate::oracle::{ABSENT, Value, ZERO};
use crate::rng::Rng;

/// Blocks of the volume; one bit each.
pub(super) const BLOCKS: usize = (SIZE / BLOCK) as usize;
const _: () = assert!(BLOCKS <= 64);

/// What a block holds: a value in each half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Content(pub(super) [Value; 2]);

impl Content {
    pub(super) fn whole(value: Value) -> Content {
        Content([value, value])
    }

    /// The first half of one, the second of the other.
    fn torn(first: Content, second: Content) -> Content {
        Content([first.0[0], second.0[1]])
    }

    fn hole(self) -> Option<Hole> {
        match self.0 {
            [ABSENT, ABSENT] => Some(Hole::Absent),
            [ZERO, ZERO] => Some(Hole::Zero),
            _ => None,
        }
    }
}

const HALF: usize = BLOCK as usize / 2;

/// The bytes that carry values, one for each half of a block.
pub(super) fn bytes_of_halves(values: &[Value]) -> HeapPayload {
    let mut payload = HeapPayload::zeroed(values.len() * HALF);
    for (chunk, value) in payload.bytes_mut().chunks_exact_mut(HALF).zip(values) {
        chunk[..8].copy_from_slice(&value.to_le_bytes());
    }
    payload
}

/// The values that bytes carry, one for each half of a block.
pub(super) fn halves_of(bytes: &[u8]) -> impl Iterator<Item = Value> + '_ {
    bytes.chunks_exact(HALF).map(|c| Value::from_le_bytes(c[..8].try_into().expect("8 of 2048 bytes")))
}

fn contents_of(bytes: &[u8]) -> impl Iterator<Item = Content> + '_ {
    bytes.chunks_exact(2 * HALF).map(|block| {
        let mut halves = halves_of(block);
        Content([halves.next().expect("two"), halves.next().expect("two")])
    })
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// The device can't read it.
    Unreadable,
    /// The device gives something else; its checksum does not match.
    Wrong,
    /// It was unreadable when it was sealed: its checksum says so from then on.
    Damaged,
}

/// What a disk does of a request when it is interrupted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupted {
    /// The process died: each block is old or new.
    Process,
    /// The power went, or the device failed: a block may be torn as well.
    Device,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Media {
    cache: [Content; BLOCKS],
    stable: [Content; BLOCKS],
    bad: [Option<Bad>; BLOCKS],
    doubt: u64,
    /// Blocks that the pool could not give at some time.
    ever_bad: u64,
    /// No space is left: nothing is written, holes can still be made (R20).
    pub(super) full: bool,
    /// Shared with the head when it was put there: what was wrong with a block is wrong there, too.
    images: ImageFiles<(Content, Option<Bad>)>,
}

impl Default for Media {
    fn default() -> Media {
        let empty = [Content::default(); BLOCKS];
        Media {
            cache: empty,
            stable: empty,
            bad: [None; BLOCKS],
            doubt: 0,
            ever_bad: 0,
            full: false,
            images: ImageFiles::default(),
        }
    }
}

fn blocks(offset: u64, len: u64) -> core::ops::Range<usize> {
    (offset / BLOCK) as usize..((offset + len) / BLOCK) as usize
}

impl Media {
    /// What the block holds, as if the device had no fault.
    pub(super) fn content(&self, block: usize) -> Content {
        self.cache[block]
    }

    /// What of it a power cut would leave.
    pub(super) fn stable(&self, block: usize) -> Content {
        self.stable[block]
    }

    /// Can the pool not give it?
    pub(super) fn is_bad(&self, block: usize) -> bool {
        self.bad[block].is_some()
    }

    /// Could the pool not give it at some time? What was asked then may be answered now.
    pub(super) fn was_bad(&self, block: usize) -> bool {
        self.ever_bad & (1 << block) != 0
    }

    /// Number of blocks that the pool can't give.
    pub(super) fn bad_blocks(&self) -> usize {
        self.bad.iter().flatten().count()
    }

    fn set(&mut self, block: usize, content: Content, durable: bool) {
        self.cache[block] = content;
        self.bad[block] = None;
        self.doubt &= !(1 << block);
        if durable {
            self.stable[block] = content;
        }
    }

    /// The pool looks at a block's data.
    fn look(&mut self, block: usize) -> Result<Content, DiskError> {
        match self.bad[block] {
            Some(Bad::Unreadable) if self.cache[block].hole().is_none() => Err(DiskError::Io),
            Some(Bad::Wrong | Bad::Damaged) => Err(DiskError::BitRot),
            _ => {
                self.doubt &= !(1 << block);
                Ok(self.cache[block])
            }
        }
    }

    /// Carries out a request.
    pub(super) fn run(&mut self, op: &DiskOp<HeapPayload>) -> Result<DiskDone<HeapPayload>, DiskError> {
        Ok(match op {
            DiskOp::Write { .. } if self.full => return Err(DiskError::NoSpace),
            DiskOp::Write { offset, data, durable, .. } => {
                for (i, content) in contents_of(data.bytes()).enumerate() {
                    self.set((offset / BLOCK) as usize + i, content, *durable);
                }
                DiskDone::Done
            }
            DiskOp::Zero { offset, len, kind, .. } => {
                for block in blocks(*offset, *len) {
                    let value = if *kind == Hole::Zero { ZERO } else { ABSENT };
                    self.set(block, Content::whole(value), true);
                }
                DiskDone::Done
            }
            DiskOp::Read { offset, len } => {
                let mut extents: Vec<Extent<HeapPayload>> = Vec::new();
                for block in blocks(*offset, *len) {
                    let content = self.look(block)?;
                    extents.push(match content.hole() {
                        Some(kind) => Extent::Hole { len: BLOCK, kind },
                        None => {
                            let data = bytes_of_halves(&content.0);
                            Extent::Data { crcs: block_crcs(data.bytes()), data }
                        }
                    });
                }
                DiskDone::Data(extents)
            }
            DiskOp::Kinds { offset, len } => {
                DiskDone::Kinds(blocks(*offset, *len).map(|b| (BLOCK, self.cache[b].hole())).collect())
            }
            DiskOp::Hash { offset, len, key } => {
                let mut hashes = Vec::new();
                for block in blocks(*offset, *len) {
                    let content = self.look(block)?;
                    let [first, second] = content.0.map(Value::to_le_bytes);
                    hashes.push(match content.hole() {
                        Some(Hole::Absent) => block_hash(key, &[]),
                        Some(Hole::Zero) => block_hash(key, &[0; BLOCK as usize]),
                        None => block_hash(key, &[first, second].concat()),
                    });
                }
                DiskDone::Hashes(hashes)
            }
            DiskOp::Flush => {
                self.stable = self.cache;
                DiskDone::Done
            }
            DiskOp::Seal => {
                // What nobody looked at is looked at by the seal; what can't be read is entered as that. Data that was not
                // flushed is not flushed here: the rules must hold with a disk that does no more than it has to.
                for (block, bad) in self.bad.iter_mut().enumerate() {
                    if *bad == Some(Bad::Unreadable) && self.doubt & (1 << block) != 0 {
                        *bad = Some(Bad::Damaged);
                    }
                }
                self.doubt = 0;
                DiskDone::Done
            }
            DiskOp::Grow { from, to } | DiskOp::Cut { from, to } => {
                for block in blocks(*from, to.saturating_sub(*from)) {
                    self.set(block, Content::default(), true);
                }
                DiskDone::Done
            }
        })
    }

    /// Carries out a request for an image.
    pub(super) fn run_image(
        &mut self,
        op: &ImageOp<HeapPayload>,
    ) -> Result<DiskDone<HeapPayload>, DiskError> {
        match op {
            ImageOp::Make { .. } | ImageOp::Take { .. } | ImageOp::Preserve { .. } if self.full => {
                return Err(DiskError::NoSpace);
            }
            ImageOp::Make { image, .. } => self.images.make(*image),
            ImageOp::Take { image } => {
                let head = (0..BLOCKS).map(|block| (block as u64, (self.cache[block], self.bad[block])));
                if !self.images.take(*image, head, (Content::default(), None)) {
                    return Err(DiskError::Io);
                }
                // It has what is on the medium: all of it is, first.
                self.stable = self.cache;
                self.doubt = 0;
            }
            ImageOp::Preserve { image, offset, len } => {
                let (cache, bad) = (&self.cache, &self.bad);
                let head = |block: u64| (cache[block as usize], bad[block as usize]);
                if !self.images.preserve(*image, offset / BLOCK..(offset + len) / BLOCK, head) {
                    return Err(DiskError::Io);
                }
                // What is put there is synced, and shared with the head.
                for block in blocks(*offset, *len) {
                    self.stable[block] = self.cache[block];
                }
            }
            ImageOp::Look { image, heir, op } => {
                let (offset, len) = looked_at(op);
                let mut view = Media::default();
                for block in blocks(offset, len) {
                    let found = self.images.look(*image, *heir, block as u64).ok_or(DiskError::BitRot)?;
                    (view.cache[block], view.bad[block]) = found;
                }
                return view.run(op);
            }
            ImageOp::HandDown { image, heir, segment, blocks } => {
                self.images.hand_down(*image, *heir, *segment, blocks);
            }
            ImageOp::Keep { image, segment, bytes } => self.images.keep(*image, *segment, bytes),
            ImageOp::Kept { image, segment } => {
                return Ok(DiskDone::Kept(self.images.kept(*image, *segment)));
            }
            ImageOp::Empty { image } => self.images.empty(*image),
            ImageOp::Drop { image } => self.images.remove(*image),
            // Nobody asks for one here; plots of the stage do.
            ImageOp::CloneOut { .. }
            | ImageOp::CopyBegin { .. }
            | ImageOp::CopyFill { .. }
            | ImageOp::CopySync { .. }
            | ImageOp::CopyPublish { .. }
            | ImageOp::CopyAbandon { .. } => return Err(DiskError::NoSnapshots),
        }
        Ok(DiskDone::Done)
    }

    /// A request for an image that never ended: it happened or not, a preserve in part. What the log does not know of means
    /// nothing.
    pub(super) fn interrupt_image(&mut self, op: &ImageOp<HeapPayload>, rng: &mut Rng) {
        if let ImageOp::Preserve { image, offset, len } = op
            && rng.chance(30)
        {
            let part = ImageOp::Preserve { image: *image, offset: *offset, len: len / BLOCK / 2 * BLOCK };
            drop(self.run_image(&part));
        } else if rng.chance(50) {
            drop(self.run_image(op));
        }
    }

    /// What an image has in a block: none if it has lost it; `true` if it can't be read.
    pub(super) fn image_content(
        &self,
        image: SnapId,
        heir: Option<SnapId>,
        block: usize,
    ) -> Option<(Content, bool)> {
        self.images.look(image, heir, block as u64).map(|(content, bad)| (content, bad.is_some()))
    }

    /// A request that never ended: of a write any part may have happened.
    pub(super) fn interrupt(&mut self, op: &DiskOp<HeapPayload>, by: Interrupted, rng: &mut Rng) {
        match op {
            DiskOp::Write { offset, data, durable, .. } if !self.full => {
                for (i, new) in contents_of(data.bytes()).enumerate() {
                    let block = (offset / BLOCK) as usize + i;
                    let old = self.cache[block];
                    let content = match rng.below(10) {
                        0..4 => new,
                        4 if by == Interrupted::Device => Content::torn(new, old),
                        5 if by == Interrupted::Device => Content::torn(old, new),
                        _ => continue,
                    };
                    self.set(block, content, *durable);
                    self.doubt |= 1 << block;
                }
            }
            DiskOp::Zero { .. } if rng.chance(50) => drop(self.run(op)),
            // Block by block, in any order.
            DiskOp::Grow { from, to } | DiskOp::Cut { from, to } => {
                for block in blocks(*from, to.saturating_sub(*from)) {
                    if rng.chance(50) {
                        self.set(block, Content::default(), true);
                    }
                }
            }
            _ => {}
        }
    }

    /// The device writes a block, says so, and it went to another place: neither place holds what the pool expects.
    /// `false` if the request is none that this can happen to.
    pub(super) fn misdirect(&mut self, op: &DiskOp<HeapPayload>, place: usize) -> bool {
        let DiskOp::Write { offset, data, durable: true, .. } = op else { return false };
        let meant = (offset / BLOCK) as usize;
        if data.len() as u64 != BLOCK || place == meant || self.full || self.cache[place].hole().is_some() {
            return false;
        }
        if self.doubt & (1 << place) != 0 {
            return false;
        }
        self.run(op).expect("space was looked for");
        self.bad[meant] = Some(Bad::Wrong);
        self.bad[place] = Some(Bad::Wrong);
        self.ever_bad |= 1 << meant | 1 << place;
        true
    }

    /// A block goes bad; `false` if it holds no data or its checksum is no authority.
    pub(super) fn spoil(&mut self, block: usize, bad: Bad) -> bool {
        let possible = self.cache[block].hole().is_none()
            && self.bad[block].is_none()
            && self.cache[block] == self.stable[block]
            && (bad == Bad::Unreadable || self.doubt & (1 << block) == 0);
        if possible {
            self.bad[block] = Some(bad);
            self.ever_bad |= 1 << block;
        }
        possible
    }

    /// The process that served it is gone; blocks of the regions in `unsealed` (a bit each block) are in doubt.
    pub(super) fn reopen(&mut self, unsealed: u64) {
        self.doubt = unsealed;
        for (block, bad) in self.bad.iter_mut().enumerate() {
            if unsealed & (1 << block) != 0 && matches!(bad, Some(Bad::Wrong)) {
                *bad = None;
            }
        }
    }

    /// The power goes: every block that was not flushed is the old, the new, or half of each.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) {
        for block in 0..BLOCKS {
            let (old, new) = (self.stable[block], self.cache[block]);
            if old == new {
                continue;
            }
            self.cache[block] = match rng.below(10) {
                0..6 => old,
                6 => Content::torn(new, old),
                _ => new,
            };
            self.stable[block] = self.cache[block];
            self.doubt |= 1 << block;
        }
    }

    /// Everything that was written is on stable media: a stop in order.
    pub(super) fn flush(&mut self) {
        self.stable = self.cache;
    }
}
