//! A simulated disk with one replica's blocks: what the cache has, what stable media have, and a log.
//!
//! Must always hold: a completed durable write survives everything; an unfinished one may or may not have
//! happened after a crash; in cached mode an unflushed one may vanish when the power does.

use std::collections::BTreeMap;

use weft_proto::durable::Durable;
use weft_proto::images::Place;
use weft_proto::log::ReplicaKey;
use weft_proto::message::{Extent, Hole};
use weft_proto::payload::{BLOCK, HeapPayload, Payload, block_hash};
use weft_proto::replica::{DiskDone, DiskError, DiskOp, ImageOp};

use crate::images::ImageFiles;
use crate::oracle::{ABSENT, Value, ZERO};
use crate::rng::Rng;

/// One replica's blocks.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    cache: BTreeMap<u64, Value>,
    stable: BTreeMap<u64, Value>,
    images: ImageFiles<Value>,
    /// Replicas that are made of images of this one.
    clones: BTreeMap<ReplicaKey, BTreeMap<u64, Value>>,
}

/// The value that a block's bytes carry.
#[must_use]
pub fn value_of(block: &[u8]) -> Value {
    u64::from_le_bytes(block[..8].try_into().expect("8 of 4096 bytes"))
}

/// The bytes that carry a value.
#[must_use]
pub fn bytes_of(values: &[Value]) -> HeapPayload {
    let mut payload = HeapPayload::zeroed(values.len() * 4096);
    for (chunk, value) in payload.bytes_mut().chunks_exact_mut(4096).zip(values) {
        chunk[..8].copy_from_slice(&value.to_le_bytes());
    }
    payload
}

/// The range of a look at an image.
#[must_use]
pub fn looked_at(op: &DiskOp<HeapPayload>) -> (u64, u64) {
    match op {
        DiskOp::Read { offset, len } | DiskOp::Kinds { offset, len } | DiskOp::Hash { offset, len, .. } => {
            (*offset, *len)
        }
        other => panic!("no look: {other:?}"),
    }
}

impl Disk {
    /// What was shared with a replica in the making, which is one of its own from now on.
    pub fn take_clone(&mut self, to: ReplicaKey) -> Disk {
        let stable = self.clones.remove(&to).unwrap_or_default();
        Disk { cache: stable.clone(), stable, ..Disk::default() }
    }

    /// What the block holds now.
    #[must_use]
    pub fn value(&self, block: u64) -> Value {
        self.cache.get(&block).copied().unwrap_or(ABSENT)
    }

    fn set(&mut self, block: u64, value: Value, durable: bool) {
        self.cache.insert(block, value);
        if durable {
            self.stable.insert(block, value);
        }
    }

    /// Carries out a request.
    pub fn run(&mut self, op: &DiskOp<HeapPayload>) -> Result<DiskDone<HeapPayload>, DiskError> {
        let blocks = |offset: u64, len: u64| offset / BLOCK..(offset + len) / BLOCK;
        Ok(match op {
            DiskOp::Write { offset, data, durable, .. } => {
                for (i, chunk) in data.bytes().chunks_exact(4096).enumerate() {
                    self.set(offset / BLOCK + i as u64, value_of(chunk), *durable);
                }
                DiskDone::Done
            }
            DiskOp::Zero { offset, len, kind, .. } => {
                for block in blocks(*offset, *len) {
                    self.set(block, if *kind == Hole::Zero { ZERO } else { ABSENT }, true);
                }
                DiskDone::Done
            }
            DiskOp::Read { offset, len } => {
                let mut extents: Vec<Extent<HeapPayload>> = Vec::new();
                for block in blocks(*offset, *len) {
                    extents.push(match self.value(block) {
                        ABSENT => Extent::Hole { len: BLOCK, kind: Hole::Absent },
                        ZERO => Extent::Hole { len: BLOCK, kind: Hole::Zero },
                        value => {
                            let data = bytes_of(&[value]);
                            Extent::Data { crcs: weft_proto::payload::block_crcs(data.bytes()), data }
                        }
                    });
                }
                DiskDone::Data(extents)
            }
            DiskOp::Kinds { offset, len } => DiskDone::Kinds(
                blocks(*offset, *len)
                    .map(|b| match self.value(b) {
                        ABSENT => (BLOCK, Some(Hole::Absent)),
                        ZERO => (BLOCK, Some(Hole::Zero)),
                        _ => (BLOCK, None),
                    })
                    .collect(),
            ),
            DiskOp::Hash { offset, len, key } => {
                let hash = |value: Value| match value {
                    ABSENT => block_hash(key, &[]),
                    ZERO => block_hash(key, &[0; BLOCK as usize]),
                    value => block_hash(key, &value.to_le_bytes()),
                };
                DiskDone::Hashes(blocks(*offset, *len).map(|b| hash(self.value(b))).collect())
            }
            DiskOp::Flush => {
                self.stable.clone_from(&self.cache);
                DiskDone::Done
            }
            DiskOp::Seal => DiskDone::Done,
            DiskOp::Grow { from, to } | DiskOp::Cut { from, to } => {
                let range = blocks(*from, to - from);
                self.cache.retain(|block, _| !range.contains(block));
                self.stable.retain(|block, _| !range.contains(block));
                DiskDone::Done
            }
        })
    }

    /// The images' files.
    #[must_use]
    pub fn images(&self) -> &ImageFiles<Value> {
        &self.images
    }

    /// The pool is started: what was begun for images is removed.
    pub fn restart(&mut self) {
        self.images.restart();
    }

    /// Carries out a request for an image.
    pub fn run_image(&mut self, op: &ImageOp<HeapPayload>) -> Result<DiskDone<HeapPayload>, DiskError> {
        match op {
            ImageOp::Make { image, .. } => self.images.make(*image),
            ImageOp::Take { image } => {
                let head = self.cache.iter().map(|(block, value)| (*block, *value));
                if !self.images.take(*image, head, ABSENT) {
                    return Err(DiskError::Io);
                }
            }
            ImageOp::Preserve { image, offset, len } => {
                let cache = &self.cache;
                let head = |block: u64| cache.get(&block).copied().unwrap_or(ABSENT);
                if !self.images.preserve(*image, offset / BLOCK..(offset + len) / BLOCK, head) {
                    return Err(DiskError::Io);
                }
            }
            ImageOp::Look { image, heir, op } => {
                let (offset, len) = looked_at(op);
                let mut view = Disk::default();
                for block in offset / BLOCK..(offset + len) / BLOCK {
                    let value = self.images.look(*image, *heir, block).ok_or(DiskError::BitRot)?;
                    view.cache.insert(block, value);
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
            ImageOp::CopyBegin { image, .. } => self.images.begin_copy(*image),
            ImageOp::CopyFill { image, offset, extents } => {
                let (blocks, shared) = self.arrived(offset / BLOCK, extents);
                if !self.images.fill_copy(*image, blocks.into_iter()) {
                    return Err(DiskError::Io);
                }
                return Ok(DiskDone::Shared(shared));
            }
            ImageOp::CopySync { .. } => {}
            ImageOp::CopyPublish { image } => {
                if !self.images.publish_copy(image.id) {
                    return Err(DiskError::Io);
                }
            }
            ImageOp::CopyAbandon { image } => self.images.abandon_copy(*image),
            ImageOp::CloneOut { to, place, offset, len } => {
                for block in offset / BLOCK..(offset + len) / BLOCK {
                    let value = match *place {
                        Place::Head => self.value(block),
                        Place::Absent => ABSENT,
                        Place::Image { image, heir } => {
                            self.images.look(image, heir, block).ok_or(DiskError::BitRot)?
                        }
                    };
                    self.clones.entry(*to).or_default().insert(block, value);
                }
                return Ok(DiskDone::Shared(*len));
            }
        }
        Ok(DiskDone::Done)
    }

    /// Blocks that arrived for an image, and how many bytes of them are the head's own.
    fn arrived(&self, first: u64, extents: &[Extent<HeapPayload>]) -> (Vec<(u64, Value)>, u64) {
        let values = extents.iter().flat_map(|extent| match extent {
            Extent::Hole { len, kind } => {
                vec![if *kind == Hole::Zero { ZERO } else { ABSENT }; (len / BLOCK) as usize]
            }
            Extent::Data { data, .. } => data.bytes().chunks_exact(4096).map(value_of).collect(),
        });
        let blocks: Vec<(u64, Value)> = (first..).zip(values).collect();
        let same = blocks.iter().filter(|(at, value)| *value > ZERO && self.value(*at) == *value);
        let shared = same.count() as u64 * BLOCK;
        (blocks, shared)
    }

    /// Carries out a request and leaves what it changed in the cache.
    pub fn run_unflushed(&mut self, op: &DiskOp<HeapPayload>) -> Result<DiskDone<HeapPayload>, DiskError> {
        let stable = self.stable.clone();
        let done = self.run(op);
        self.stable = stable;
        done
    }

    /// The power goes, and everything that was not flushed with it.
    pub fn lose_cache(&mut self) {
        self.cache.clone_from(&self.stable);
    }

    /// The power goes: every block that was not flushed is the old or the new one.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        let changed: Vec<u64> =
            self.cache.keys().copied().filter(|b| self.cache.get(b) != self.stable.get(b)).collect();
        for block in changed {
            if rng.chance(70) {
                match self.stable.get(&block).copied() {
                    Some(old) => self.cache.insert(block, old),
                    None => self.cache.remove(&block),
                };
            }
            let now = self.value(block);
            self.stable.insert(block, now);
        }
    }
}

/// A replica as it lies on its host's disk.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Metadata, as the log has it.
    pub durable: Durable,
    /// Data.
    pub disk: Disk,
    /// The power was lost since the last clean stop.
    pub lossy: bool,
}
