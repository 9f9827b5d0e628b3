//! The pool's metadata log (protocol.md 4.3, R20): a preallocated ring of 4 KiB blocks, written in batches.
//!
//! Must always hold:
//! * block `seq` stands at position `seq % blocks`; a batch is written only after the one before is durable, so
//!   what a crash can tear is the last batch alone, whichever of its blocks reached the disk in whichever order;
//! * a batch counts as a whole: a record is durable when every block of its batch is;
//! * a block is overwritten only when a *durable* block says that it is no longer needed (`first`), so that
//!   recovery never has to guess where the log starts;
//! * a missing block at or below a sequence known durable is damage and never taken for a torn tail (M29);
//! * after a failed write nothing more is written: the log is poisoned until the pool is opened again.
//!
//! ```text
//! block:  0 magic u32    4 crc u32 (bytes 8..4096)   8 seq u64        16 pool u128     32 inc u64
//!        40 durable u64 48 first u64                56 index u16     58 count u16     60 payload_len u16
//!        62 version u16 64 payload (at most 4032 bytes; a record may go on in the next block of its batch)
//! record: len u32 (of the rest), kind u8, volume u128, rid u32, fields
//! ```

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::bytes::{Put, Reader, Short, as_len, len_u32};
use crate::ids::{Epoch, Generation, PoolId, PoolInc, Rid, SessionId, SnapId, VolumeId};
use crate::images::{ImageChange, ImageForm};
use crate::message::NOTE_MAX;
use crate::record::{RECORD_MAX, REGIONS_MAX};

/// Bytes of a block: what a disk writes at once, or tears.
pub const LOG_BLOCK: usize = 4096;
/// Fewest blocks of a ring: below, the reserve would not hold one batch.
pub const MIN_LOG_BLOCKS: u64 = 64;
/// Most blocks of a ring (4 GiB).
pub const MAX_LOG_BLOCKS: u64 = 1 << 20;
/// Most blocks of one batch.
pub const MAX_BATCH_BLOCKS: u64 = 16;

const MAGIC: u32 = u32::from_le_bytes(*b"wlog");
const VERSION: u16 = 1;
const BLOCK_HEADER: usize = 64;
const BLOCK_PAYLOAD: usize = LOG_BLOCK - BLOCK_HEADER;
const BATCH_PAYLOAD: usize = BLOCK_PAYLOAD * 16;
const _: () = assert!(MAX_BATCH_BLOCKS == 16);
/// Regions of one stamp record; more are split, so that any record fits into a batch.
const STAMP_REGIONS: usize = 4000;

/// Whose record it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplicaKey {
    /// The volume.
    pub volume: VolumeId,
    /// The replica's number.
    pub rid: Rid,
}

/// One change of a replica's durable state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    /// The replica was made.
    Create {
        /// Size in bytes.
        size: u64,
        /// Regions are `1 << region_shift` bytes.
        region_shift: u8,
    },
    /// A promise.
    Promise {
        /// The epoch.
        epoch: Epoch,
        /// The session.
        session: SessionId,
        /// The record as JSON.
        record: Vec<u8>,
    },
    /// Regions stamped.
    Stamp {
        /// With this generation.
        generation: Generation,
        /// These regions.
        regions: Vec<u32>,
    },
    /// A generation sealed.
    Sealed {
        /// Which.
        generation: Generation,
    },
    /// The size raised, and the regions from the record's size on stamped: what lies there is absent (R18).
    Grow {
        /// New size in bytes.
        size: u64,
        /// From here on it was made absent; at most `size`.
        from: u64,
        /// The stamp of that.
        generation: Generation,
    },
    /// Regions made larger, each as new as the newest of those that it is made of (R26).
    Fold {
        /// From now on they are `1 << region_shift` bytes.
        region_shift: u8,
    },
    /// The size lowered to that of the promised record: what lay beyond is absent (R18).
    Cut {
        /// New size in bytes.
        size: u64,
    },
    /// The machine that serves it.
    Identity {
        /// The kernel's boot id.
        boot_id: u128,
        /// The device's generation.
        device_generation: u64,
        /// Everything was flushed before the stop.
        clean_stop: bool,
    },
    /// The replica went to the trash.
    Trashed,
    /// An image of the replica was taken, or is another now; see [`Images`](crate::images::Images).
    Image {
        /// Which.
        image: SnapId,
        /// Of which attempt at it.
        attempt: u64,
        /// What became of it.
        change: ImageChange,
    },
}

impl LogRecord {
    /// Grows with what a guest writes: it leaves the reserve to what makes room again (R20).
    fn leaves_reserve(&self) -> bool {
        let image =
            |change: &ImageChange| matches!(change, ImageChange::Prepared { .. } | ImageChange::Has { .. });
        match self {
            LogRecord::Stamp { .. } => true,
            LogRecord::Image { change, .. } => image(change),
            _ => false,
        }
    }
}

/// Where a log lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPlace {
    /// The pool, named in every block.
    pub pool: PoolId,
    /// The pool's incarnation of this start: above any that wrote to the ring before (R10).
    pub inc: PoolInc,
    /// Blocks of the ring, from [`MIN_LOG_BLOCKS`] to [`MAX_LOG_BLOCKS`]; never changes in a pool's life.
    pub blocks: u64,
}

/// Names an appended record; later records have higher tokens. Means nothing after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogToken(pub u64);

/// Why a record was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// No space that this kind of record may take: wait for a checkpoint, then ask again.
    Full,
    /// A write failed: the pool has to be opened again.
    Poisoned,
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AppendError::Full => "the pool's log is full until the next checkpoint",
            AppendError::Poisoned => "a write to the pool's log failed",
        })
    }
}

impl core::error::Error for AppendError {}

/// The disk did not confirm a write; what it left behind is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogWriteFailed;

/// Whole blocks to be written durably (FUA, or followed by a flush), then reported to [`Log::handle_written`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogWrite {
    /// To be given back. A batch that passes the ring's end comes as two writes of the same number.
    pub batch: u64,
    /// Where, in blocks from the ring's start.
    pub position_blocks: u64,
    /// What: a multiple of [`LOG_BLOCK`].
    pub bytes: Vec<u8>,
    /// Sequences of these blocks: first, and one past the last.
    pub seqs: (u64, u64),
}

/// The log of one pool, from its start to its end or its first failed write.
#[derive(Debug)]
pub struct Log {
    place: LogPlace,
    /// Of the next block that is written.
    next_seq: u64,
    /// Highest sequence known durable; always the end of a batch.
    durable_seq: u64,
    /// Lowest sequence that recovery needs.
    first: u64,
    /// `first` as some durable block names it: only blocks below may be overwritten.
    reusable: u64,
    /// Last sequences of the durable batches at or above `first`.
    ends: VecDeque<u64>,
    /// Batches that wait for the one in flight; appended to at the back.
    drafts: VecDeque<Draft>,
    in_flight: Option<InFlight>,
    /// Pieces of the batch in flight that were not polled yet.
    writes: VecDeque<LogWrite>,
    batches: u64,
    last_token: u64,
    durable_token: u64,
    reported_token: u64,
    poisoned: bool,
}

#[derive(Debug, Default)]
struct Draft {
    payload: Vec<u8>,
    last_token: u64,
}

impl Draft {
    fn blocks(&self) -> u64 {
        blocks_of(self.payload.len())
    }
}

/// Blocks of a batch; one that only says where the log starts has no payload and still one block.
fn blocks_of(payload_len: usize) -> u64 {
    payload_len.div_ceil(BLOCK_PAYLOAD).max(1) as u64
}

#[derive(Debug)]
struct InFlight {
    batch: u64,
    last_seq: u64,
    last_token: u64,
    first: u64,
    unconfirmed: usize,
}

impl Log {
    /// The log of a pool that was read by [`recover`]; a new pool's ring is all zero and recovers to nothing.
    #[must_use]
    pub fn new(place: LogPlace, recovered: &Recovered) -> Log {
        assert!(
            (MIN_LOG_BLOCKS..=MAX_LOG_BLOCKS).contains(&place.blocks),
            "ring of {} blocks, allowed are {MIN_LOG_BLOCKS} to {MAX_LOG_BLOCKS}",
            place.blocks
        );
        let mut drafts = VecDeque::new();
        if recovered.first_seq > recovered.reusable {
            // The block that said where the log starts was torn; until one says so durably, no space is free.
            drafts.push_back(Draft::default());
        }
        Log {
            place,
            next_seq: recovered.next_seq,
            durable_seq: recovered.next_seq - 1,
            first: recovered.first_seq,
            reusable: recovered.reusable,
            ends: recovered.ends.iter().copied().collect(),
            drafts,
            in_flight: None,
            writes: VecDeque::new(),
            batches: 0,
            last_token: 0,
            durable_token: 0,
            reported_token: 0,
            poisoned: false,
        }
    }

    /// Highest sequence known durable. A checkpoint that holds the effect of every record reported durable so far
    /// names this one.
    #[must_use]
    pub fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    /// Records up to this one are durable.
    #[must_use]
    pub fn durable_token(&self) -> LogToken {
        LogToken(self.durable_token)
    }

    /// A write failed; nothing is appended or written any more.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Nothing waits and nothing is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.drafts.is_empty() && self.in_flight.is_none()
    }

    /// Half of the ring is needed by recovery: write checkpoints, then [`Log::trim_to`].
    #[must_use]
    pub fn needs_checkpoint(&self) -> bool {
        (self.next_seq + self.queued_blocks() - self.first) * 2 >= self.place.blocks
    }

    /// Blocks that stamps leave free for what ends an overload: promises, seals, trims (R20).
    #[must_use]
    pub fn reserve_blocks(&self) -> u64 {
        (self.place.blocks / 4).max(16)
    }

    /// Appends a record to the next batch. Stamps find the log full before its reserve begins.
    pub fn append(&mut self, key: ReplicaKey, record: &LogRecord) -> Result<LogToken, AppendError> {
        let leave = if record.leaves_reserve() { self.reserve_blocks() } else { 1 };
        self.append_leaving(leave, key, record)
    }

    /// Appends a record that a trim waits for: its stamps may take half of the reserve, since only a trim makes
    /// space in a full pool (R20).
    pub fn append_for_trim(&mut self, key: ReplicaKey, record: &LogRecord) -> Result<LogToken, AppendError> {
        let leave = if record.leaves_reserve() { self.reserve_blocks() / 2 } else { 1 };
        self.append_leaving(leave, key, record)
    }

    /// Appends the pool's "stopped cleanly", for [`Recovered::clean`] of the next start.
    pub fn append_clean(&mut self) -> Result<LogToken, AppendError> {
        let mut entry = Vec::new();
        entry.u32(1);
        entry.put(&[KIND_CLEAN]);
        self.append_entries(1, &[entry])
    }

    fn append_leaving(
        &mut self,
        leave: u64,
        key: ReplicaKey,
        record: &LogRecord,
    ) -> Result<LogToken, AppendError> {
        match record {
            LogRecord::Stamp { generation, regions } if regions.len() > STAMP_REGIONS => {
                let part = |regions: &[u32]| {
                    encode_entry(
                        key,
                        &LogRecord::Stamp { generation: *generation, regions: regions.to_vec() },
                    )
                };
                let entries: Vec<_> = regions.chunks(STAMP_REGIONS).map(part).collect();
                self.append_entries(leave, &entries)
            }
            LogRecord::Image { image, attempt, change: ImageChange::Has { regions } }
                if regions.len() > STAMP_REGIONS =>
            {
                let part = |regions: &[u32]| {
                    let change = ImageChange::Has { regions: regions.to_vec() };
                    encode_entry(key, &LogRecord::Image { image: *image, attempt: *attempt, change })
                };
                let entries: Vec<_> = regions.chunks(STAMP_REGIONS).map(part).collect();
                self.append_entries(leave, &entries)
            }
            _ => self.append_entries(leave, &[encode_entry(key, record)]),
        }
    }

    /// All of `entries` or none, under one token.
    fn append_entries(&mut self, leave: u64, entries: &[Vec<u8>]) -> Result<LogToken, AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned);
        }
        // Count first, as the batches would come out.
        let mut added = 0;
        let mut last = self.drafts.back().map(|d| d.payload.len());
        for entry in entries {
            let before = last.map_or(0, blocks_of);
            match last {
                Some(len) if len + entry.len() <= BATCH_PAYLOAD => {
                    added += blocks_of(len + entry.len()) - before;
                    last = Some(len + entry.len());
                }
                _ => {
                    added += blocks_of(entry.len());
                    last = Some(entry.len());
                }
            }
        }
        if self.free_blocks() < added + leave {
            return Err(AppendError::Full);
        }
        self.last_token += 1;
        for entry in entries {
            match self.drafts.back_mut() {
                Some(draft) if draft.payload.len() + entry.len() <= BATCH_PAYLOAD => draft.payload.put(entry),
                _ => self.drafts.push_back(Draft { payload: entry.clone(), last_token: 0 }),
            }
        }
        // Only the batch that ends a record makes its token durable.
        self.drafts.back_mut().expect("at least one entry").last_token = self.last_token;
        Ok(LogToken(self.last_token))
    }

    /// Everything up to and including sequence `through` is in durable checkpoints. The space becomes free when
    /// the next batch, which says so, is durable.
    pub fn trim_to(&mut self, through: u64) {
        assert!(through <= self.durable_seq, "trim to {through}, durable is {}", self.durable_seq);
        let before = self.first;
        while let Some(end) = self.ends.front().copied().filter(|end| *end <= through) {
            self.ends.pop_front();
            self.first = end + 1;
        }
        if self.first > before && self.drafts.is_empty() && !self.poisoned {
            self.drafts.push_back(Draft { payload: Vec::new(), last_token: self.last_token });
        }
    }

    /// What to write next. While a batch is in flight everything appended gathers for the next one.
    pub fn poll_write(&mut self) -> Option<LogWrite> {
        if self.poisoned {
            return None;
        }
        if self.in_flight.is_none() {
            let draft = self.drafts.pop_front()?;
            self.start_batch(&draft);
        }
        self.writes.pop_front()
    }

    fn start_batch(&mut self, draft: &Draft) {
        let count = draft.blocks();
        let (first_seq, end_seq) = (self.next_seq, self.next_seq + count);
        assert!(
            end_seq - self.reusable <= self.place.blocks,
            "block {} would overwrite one that is needed: {} are needed from",
            end_seq - 1,
            self.reusable
        );
        self.next_seq = end_seq;
        self.batches += 1;
        let mut bytes = vec![0u8; usize::try_from(count).expect("at most 16") * LOG_BLOCK];
        let mut parts = draft.payload.chunks(BLOCK_PAYLOAD);
        for (index, block) in bytes.chunks_exact_mut(LOG_BLOCK).enumerate() {
            let header = BlockHeader {
                seq: first_seq + index as u64,
                pool: self.place.pool,
                inc: self.place.inc,
                durable: self.durable_seq,
                first: self.first,
                index: u16::try_from(index).expect("at most 16"),
                count: u16::try_from(count).expect("at most 16"),
            };
            header.encode(parts.next().unwrap_or(&[]), block);
        }
        let ring = self.place.blocks;
        let until_end = (ring - first_seq % ring).min(count);
        let tail = bytes.split_off(usize::try_from(until_end).expect("at most 16") * LOG_BLOCK);
        let (batch, middle) = (self.batches, first_seq + until_end);
        self.writes.push_back(LogWrite {
            batch,
            position_blocks: first_seq % ring,
            bytes,
            seqs: (first_seq, middle),
        });
        if !tail.is_empty() {
            self.writes.push_back(LogWrite {
                batch,
                position_blocks: 0,
                bytes: tail,
                seqs: (middle, end_seq),
            });
        }
        self.in_flight = Some(InFlight {
            batch,
            last_seq: end_seq - 1,
            last_token: draft.last_token,
            first: self.first,
            unconfirmed: self.writes.len(),
        });
    }

    /// A write of [`Log::poll_write`] ended: durable, or failed. A failure is never retried: the kernel may have
    /// dropped the data and would report a second attempt as good (protocol.md 4.7, M26).
    pub fn handle_written(&mut self, batch: u64, result: Result<(), LogWriteFailed>) {
        if self.poisoned {
            return;
        }
        if result.is_err() {
            self.poisoned = true;
            return;
        }
        let done = match &mut self.in_flight {
            Some(flight) if flight.batch == batch => {
                assert!(flight.unconfirmed > self.writes.len(), "a write of batch {batch} ended twice");
                flight.unconfirmed -= 1;
                flight.unconfirmed == 0
            }
            other => panic!("batch {batch} ended, in flight is {other:?}"),
        };
        if done && let Some(flight) = self.in_flight.take() {
            self.durable_seq = flight.last_seq;
            self.durable_token = self.durable_token.max(flight.last_token);
            self.reusable = flight.first;
            self.ends.push_back(flight.last_seq);
        }
    }

    /// The highest token that became durable since the last time, if one did: all up to it are durable.
    pub fn poll_durable(&mut self) -> Option<LogToken> {
        if self.reported_token == self.durable_token {
            return None;
        }
        self.reported_token = self.durable_token;
        Some(LogToken(self.durable_token))
    }

    fn queued_blocks(&self) -> u64 {
        self.drafts.iter().map(Draft::blocks).sum()
    }

    fn free_blocks(&self) -> u64 {
        self.place.blocks.saturating_sub(self.next_seq + self.queued_blocks() - self.reusable)
    }
}

struct BlockHeader {
    seq: u64,
    pool: PoolId,
    inc: PoolInc,
    durable: u64,
    first: u64,
    index: u16,
    count: u16,
}

impl BlockHeader {
    fn encode(&self, payload: &[u8], block: &mut [u8]) {
        let mut out = Vec::with_capacity(LOG_BLOCK);
        out.u64(self.seq);
        out.u128(self.pool.0);
        out.u64(self.inc.0);
        out.u64(self.durable);
        out.u64(self.first);
        out.u16(self.index);
        out.u16(self.count);
        out.u16(u16::try_from(payload.len()).expect("at most 4032"));
        out.u16(VERSION);
        out.put(payload);
        out.resize(LOG_BLOCK - 8, 0);
        block[..4].copy_from_slice(&MAGIC.to_le_bytes());
        block[4..8].copy_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        block[8..].copy_from_slice(&out);
    }
}

/// A block whose checksum is right.
struct Block<'a> {
    header: BlockHeader,
    version: u16,
    payload: Option<&'a [u8]>,
}

/// `None`: torn, rotten or never written.
fn decode_block(bytes: &[u8]) -> Option<Block<'_>> {
    let mut r = Reader::new(bytes);
    if r.u32().ok()? != MAGIC || r.u32().ok()? != crc32c::crc32c(bytes.get(8..)?) {
        return None;
    }
    let header = BlockHeader {
        seq: r.u64().ok()?,
        pool: PoolId(r.u128().ok()?),
        inc: PoolInc(r.u64().ok()?),
        durable: r.u64().ok()?,
        first: r.u64().ok()?,
        index: r.u16().ok()?,
        count: r.u16().ok()?,
    };
    let payload_len = r.u16().ok()?;
    let version = r.u16().ok()?;
    let payload = r.take(usize::from(payload_len)).ok();
    Some(Block { header, version, payload })
}

const KIND_CREATE: u8 = 1;
const KIND_PROMISE: u8 = 2;
const KIND_STAMP: u8 = 3;
const KIND_SEALED: u8 = 4;
const KIND_GROW: u8 = 5;
const KIND_IDENTITY: u8 = 6;
const KIND_TRASHED: u8 = 7;
const KIND_CUT: u8 = 8;
const KIND_FOLD: u8 = 9;
const KIND_IMAGE: u8 = 16;
const KIND_CLEAN: u8 = 255;

const IMAGE_PREPARED: u8 = 1;
const IMAGE_READY: u8 = 2;
const IMAGE_HAS: u8 = 3;
const IMAGE_DELETING: u8 = 4;
const IMAGE_GONE: u8 = 5;
const IMAGE_PREPARED_WHOLE: u8 = 6;
const IMAGE_DESTROYED: u8 = 8;
const IMAGE_EMPTIED: u8 = 9;

fn encode_entry(key: ReplicaKey, record: &LogRecord) -> Vec<u8> {
    let mut body = Vec::new();
    body.put(&[match record {
        LogRecord::Create { .. } => KIND_CREATE,
        LogRecord::Promise { .. } => KIND_PROMISE,
        LogRecord::Stamp { .. } => KIND_STAMP,
        LogRecord::Sealed { .. } => KIND_SEALED,
        LogRecord::Grow { .. } => KIND_GROW,
        LogRecord::Identity { .. } => KIND_IDENTITY,
        LogRecord::Trashed => KIND_TRASHED,
        LogRecord::Cut { .. } => KIND_CUT,
        LogRecord::Fold { .. } => KIND_FOLD,
        LogRecord::Image { .. } => KIND_IMAGE,
    }]);
    body.u128(key.volume.0);
    body.u32(key.rid.0);
    match record {
        LogRecord::Create { size, region_shift } => {
            body.u64(*size);
            body.put(&[*region_shift]);
        }
        LogRecord::Promise { epoch, session, record } => {
            assert!(record.len() <= RECORD_MAX, "record of {} bytes, limit {RECORD_MAX}", record.len());
            body.u64(epoch.0);
            body.u128(session.0);
            body.put(record);
        }
        LogRecord::Stamp { generation, regions } => {
            body.u64(generation.0);
            for region in regions {
                body.u32(*region);
            }
        }
        LogRecord::Sealed { generation } => body.u64(generation.0),
        LogRecord::Grow { size, from, generation } => {
            body.u64(*size);
            body.u64(*from);
            body.u64(generation.0);
        }
        LogRecord::Cut { size } => body.u64(*size),
        LogRecord::Fold { region_shift } => body.put(&[*region_shift]),
        LogRecord::Identity { boot_id, device_generation, clean_stop } => {
            body.u128(*boot_id);
            body.u64(*device_generation);
            body.put(&[u8::from(*clean_stop)]);
        }
        LogRecord::Trashed => {}
        LogRecord::Image { image, attempt, change } => {
            body.u128(image.0);
            body.u64(*attempt);
            match change {
                ImageChange::Prepared { generation, epoch, incarnation, form } => {
                    body.put(&[match form {
                        ImageForm::Chained => IMAGE_PREPARED,
                        ImageForm::Whole => IMAGE_PREPARED_WHOLE,
                        ImageForm::Copied => unreachable!("what is copied begins with its slot"),
                    }]);
                    body.u64(generation.0);
                    body.u64(epoch.0);
                    body.u64(*incarnation);
                }
                ImageChange::Ready { note } => {
                    body.put(&[IMAGE_READY]);
                    body.put(note);
                }
                ImageChange::Has { regions } => {
                    body.put(&[IMAGE_HAS]);
                    regions.iter().for_each(|region| body.u32(*region));
                }
                ImageChange::Deleting => body.put(&[IMAGE_DELETING]),
                ImageChange::Gone => body.put(&[IMAGE_GONE]),
                ImageChange::Destroyed => body.put(&[IMAGE_DESTROYED]),
                ImageChange::Emptied => body.put(&[IMAGE_EMPTIED]),
            }
        }
    }
    let mut entry = Vec::with_capacity(body.len() + 4);
    entry.u32(len_u32(body.len()));
    entry.put(&body);
    entry
}

/// The next record of a batch; `None` is the pool's "stopped cleanly".
fn decode_entry(r: &mut Reader<'_>) -> Result<Option<(ReplicaKey, LogRecord)>, Short> {
    let len = as_len(r.u32()?);
    let mut body = Reader::new(r.take(len)?);
    let kind = body.u8()?;
    if kind == KIND_CLEAN {
        return if body.is_done() { Ok(None) } else { Err(Short) };
    }
    let key = ReplicaKey { volume: VolumeId(body.u128()?), rid: Rid(body.u32()?) };
    let record = match kind {
        KIND_CREATE => {
            let (size, region_shift) = (body.u64()?, body.u8()?);
            if !(12..=62).contains(&region_shift) || size.div_ceil(1 << region_shift) > REGIONS_MAX {
                return Err(Short);
            }
            LogRecord::Create { size, region_shift }
        }
        KIND_PROMISE => {
            let (epoch, session) = (Epoch(body.u64()?), SessionId(body.u128()?));
            let record = body.take(body.rest().len())?.to_vec();
            if epoch > Epoch::MAX || record.len() > RECORD_MAX {
                return Err(Short);
            }
            LogRecord::Promise { epoch, session, record }
        }
        KIND_STAMP => {
            let generation = Generation(body.u64()?);
            let mut regions = Vec::with_capacity(body.rest().len() / 4);
            while !body.is_done() {
                regions.push(body.u32()?);
            }
            LogRecord::Stamp { generation, regions }
        }
        KIND_SEALED => LogRecord::Sealed { generation: Generation(body.u64()?) },
        KIND_GROW => {
            let (size, from, generation) = (body.u64()?, body.u64()?, Generation(body.u64()?));
            if from > size {
                return Err(Short);
            }
            LogRecord::Grow { size, from, generation }
        }
        KIND_CUT => LogRecord::Cut { size: body.u64()? },
        KIND_FOLD => match body.u8()? {
            region_shift @ 12..=62 => LogRecord::Fold { region_shift },
            _ => return Err(Short),
        },
        KIND_IDENTITY => LogRecord::Identity {
            boot_id: body.u128()?,
            device_generation: body.u64()?,
            clean_stop: match body.u8()? {
                0 => false,
                1 => true,
                _ => return Err(Short),
            },
        },
        KIND_TRASHED => LogRecord::Trashed,
        KIND_IMAGE => {
            let (image, attempt) = (SnapId(body.u128()?), body.u64()?);
            let change = match body.u8()? {
                kind @ (IMAGE_PREPARED | IMAGE_PREPARED_WHOLE) => ImageChange::Prepared {
                    generation: Generation(body.u64()?),
                    epoch: Epoch(body.u64()?),
                    incarnation: body.u64()?,
                    form: if kind == IMAGE_PREPARED { ImageForm::Chained } else { ImageForm::Whole },
                },
                IMAGE_READY if body.rest().len() > NOTE_MAX => return Err(Short),
                IMAGE_READY => ImageChange::Ready { note: body.take(body.rest().len())?.to_vec() },
                IMAGE_HAS => {
                    let mut regions = Vec::with_capacity(body.rest().len() / 4);
                    while !body.is_done() {
                        regions.push(body.u32()?);
                    }
                    if regions.iter().any(|region| u64::from(*region) >= REGIONS_MAX) {
                        return Err(Short);
                    }
                    ImageChange::Has { regions }
                }
                IMAGE_DELETING => ImageChange::Deleting,
                IMAGE_GONE => ImageChange::Gone,
                IMAGE_DESTROYED => ImageChange::Destroyed,
                IMAGE_EMPTIED => ImageChange::Emptied,
                _ => return Err(Short),
            };
            LogRecord::Image { image, attempt, change }
        }
        _ => return Err(Short),
    };
    if body.is_done() { Ok(Some((key, record))) } else { Err(Short) }
}

/// What the starting pool knows about its log from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogExpectation {
    /// The pool.
    pub pool: PoolId,
    /// The highest incarnation that can have written to the ring: the superblock's before this start's raise.
    pub inc: PoolInc,
    /// First sequence that no checkpoint includes; at least 1. With several replicas: of the oldest checkpoint.
    pub from_seq: u64,
    /// Last sequence known durable, as the host keeps it outside of the pool (R10); 0 if it knows none.
    pub known_durable: u64,
}

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Last sequence of its batch: a checkpoint includes the record if it names this sequence or a higher one.
    pub seq: u64,
    /// Whose.
    pub key: ReplicaKey,
    /// What.
    pub record: LogRecord,
}

/// A log as it was found. It was read, but perhaps only from a cache: sync the ring's file before acting on it,
/// because blocks written from now on call all of it durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// In the order in which they were appended.
    pub records: Vec<Recorded>,
    /// Of the next block; `next_seq - 1` is the last durable one.
    pub next_seq: u64,
    /// The last batch was incomplete and is gone; nobody was told that it was durable.
    pub truncated_tail: bool,
    /// The last thing in the log is "stopped cleanly".
    pub clean: bool,
    first_seq: u64,
    reusable: u64,
    ends: Vec<u64>,
}

/// Why a log can't be trusted; the pool's replicas are quarantined (R24).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogDamage {
    /// Block of the ring.
    pub position_blocks: u64,
    /// Sequence that should be there.
    pub seq: u64,
    /// What is wrong with it.
    pub reason: LogDamageReason,
}

/// Kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogDamageReason {
    /// A block that was durable is unreadable or older than it should be.
    Hole {
        /// Highest sequence known durable.
        durable: u64,
    },
    /// The whole log ends before a sequence known durable: rolled back, emptied or swapped.
    Behind {
        /// Highest sequence known durable.
        durable: u64,
    },
    /// The block belongs to another pool.
    OtherPool(PoolId),
    /// The block was written by a later incarnation than the superblock knows.
    NewerIncarnation(PoolInc),
    /// The block stands where it can't have been written.
    Misplaced,
    /// Written by newer software.
    NewerVersion(u16),
    /// The checksum is right and the content is not a log's.
    Malformed,
}

impl fmt::Display for LogDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log block {} (sequence {}): ", self.position_blocks, self.seq)?;
        match self.reason {
            LogDamageReason::Hole { durable } => {
                write!(f, "missing, although sequence {durable} was durable")
            }
            LogDamageReason::Behind { durable } => {
                write!(f, "the log ends here, although sequence {durable} was durable")
            }
            LogDamageReason::OtherPool(pool) => write!(f, "belongs to pool {pool}"),
            LogDamageReason::NewerIncarnation(inc) => {
                write!(f, "written by incarnation {inc}, later than the superblock's")
            }
            LogDamageReason::Misplaced => f.write_str("stands where it can't have been written"),
            LogDamageReason::NewerVersion(version) => {
                write!(f, "has format version {version}, known is {VERSION}")
            }
            LogDamageReason::Malformed => f.write_str("checksum is right, content is malformed"),
        }
    }
}

impl core::error::Error for LogDamage {}

/// Reads a whole ring. The torn tail of the last batch is cut off; anything else that is missing is damage.
pub fn recover(ring: &[u8], expect: &LogExpectation) -> Result<Recovered, LogDamage> {
    let blocks = (ring.len() / LOG_BLOCK) as u64;
    assert!((MIN_LOG_BLOCKS..=MAX_LOG_BLOCKS).contains(&blocks), "ring of {blocks} blocks");
    let mut found = Vec::with_capacity(ring.len() / LOG_BLOCK);
    let (mut highest, mut durable, mut first) = (0, 0, 1);
    for (position, bytes) in ring.chunks_exact(LOG_BLOCK).enumerate() {
        let Some(block) = decode_block(bytes) else {
            found.push(None);
            continue;
        };
        check_block(&block, position as u64, blocks, expect)?;
        highest = highest.max(block.header.seq);
        durable = durable.max(block.header.durable);
        first = first.max(block.header.first);
        found.push(Some(block));
    }
    let start = first.max(expect.from_seq);
    // Checkpoints hold durable records only, so what lies before the start was durable.
    let durable = durable.max(start - 1).max(expect.known_durable);
    let damage = |seq: u64, reason| LogDamage { position_blocks: seq % blocks, seq, reason };
    if highest < durable {
        return Err(damage(highest + 1, LogDamageReason::Behind { durable }));
    }

    let at = |seq: u64| {
        let position = usize::try_from(seq % blocks).expect("below 2^20");
        found[position].as_ref().filter(|block| block.header.seq == seq)
    };
    let mut recovered = Recovered {
        records: Vec::new(),
        next_seq: start,
        truncated_tail: false,
        clean: false,
        first_seq: start,
        reusable: 1,
        ends: Vec::new(),
    };
    let mut inc = PoolInc(0);
    let mut payload = Vec::new();
    while recovered.next_seq < start + blocks {
        let batch_seq = recovered.next_seq;
        let missing =
            |seq| if seq <= durable { Err(damage(seq, LogDamageReason::Hole { durable })) } else { Ok(()) };
        // A block of an older incarnation behind a newer one is what a torn batch left there. (Such a block is never
        // the first of its batch as long as one batch is in flight; the comparison of incarnations stands guard.)
        let Some(head) = at(batch_seq).filter(|b| b.header.index == 0 && b.header.inc >= inc) else {
            missing(batch_seq)?;
            break;
        };
        payload.clear();
        let mut gap = None;
        for index in 0..head.header.count {
            let seq = batch_seq + u64::from(index);
            let part = at(seq).filter(|b| same_batch(&b.header, &head.header) && b.header.index == index);
            let Some(part) = part else {
                gap = Some(seq);
                break;
            };
            payload.extend_from_slice(part.payload.ok_or(damage(seq, LogDamageReason::Malformed))?);
        }
        if let Some(seq) = gap {
            missing(seq)?;
            missing(batch_seq)?;
            break;
        }
        let end = batch_seq + u64::from(head.header.count) - 1;
        let mut r = Reader::new(&payload);
        while !r.is_done() {
            match decode_entry(&mut r).map_err(|Short| damage(batch_seq, LogDamageReason::Malformed))? {
                Some((key, record)) => {
                    recovered.records.push(Recorded { seq: end, key, record });
                    recovered.clean = false;
                }
                None => recovered.clean = true,
            }
        }
        inc = head.header.inc;
        recovered.ends.push(end);
        recovered.next_seq = end + 1;
    }
    // A torn block may be gone after the next write, and what it said with it.
    let kept = found.iter().flatten().filter(|block| block.header.seq < recovered.next_seq);
    let named = kept.map(|block| block.header.first).max().unwrap_or(1);
    // The block before the next one was written when there was room for it and for one more, as a durable block said:
    // so it is also where no block that says so is left, because rot took what recovery does not need.
    let room_for_two = (recovered.next_seq + 1).saturating_sub(blocks);
    recovered.reusable = named.max(room_for_two);
    // Whatever a batch in flight left behind lies in the blocks that follow.
    recovered.truncated_tail = (recovered.next_seq..recovered.next_seq + MAX_BATCH_BLOCKS).any(|seq| {
        let position = usize::try_from(seq % blocks).expect("below 2^20");
        let bytes = &ring[position * LOG_BLOCK..(position + 1) * LOG_BLOCK];
        match &found[position] {
            Some(block) => block.header.seq == seq,
            None => bytes.iter().any(|byte| *byte != 0),
        }
    });
    recovered.clean &= !recovered.truncated_tail;
    Ok(recovered)
}

/// A sound block is the right pool's, of a known incarnation, in its place.
fn check_block(
    block: &Block<'_>,
    position: u64,
    blocks: u64,
    expect: &LogExpectation,
) -> Result<(), LogDamage> {
    let header = &block.header;
    let reason = if header.pool != expect.pool {
        LogDamageReason::OtherPool(header.pool)
    } else if block.version > VERSION {
        LogDamageReason::NewerVersion(block.version)
    } else if header.inc > expect.inc {
        LogDamageReason::NewerIncarnation(header.inc)
    } else if header.seq % blocks != position || header.seq > u64::MAX / 2 {
        LogDamageReason::Misplaced
    } else if header.index >= header.count
        || u64::from(header.count) > MAX_BATCH_BLOCKS
        || header.durable >= header.seq
        || header.first == 0
        || header.first > header.durable + 1
        || block.version == 0
    {
        LogDamageReason::Malformed
    } else {
        return Ok(());
    };
    Err(LogDamage { position_blocks: position, seq: header.seq, reason })
}

/// Made by the same call to write: an older incarnation may have left blocks of a batch of the same shape.
fn same_batch(a: &BlockHeader, b: &BlockHeader) -> bool {
    a.inc == b.inc && a.count == b.count && a.durable == b.durable && a.first == b.first
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};

    use proptest::prelude::*;

    use super::*;
    use crate::bytes::hex;

    const POOL: PoolId = PoolId(0xb0);
    const KEY: ReplicaKey = ReplicaKey { volume: VolumeId(0x11), rid: Rid(2) };
    const BLOCKS: u64 = 64;

    fn place(inc: u64) -> LogPlace {
        LogPlace { pool: POOL, inc: PoolInc(inc), blocks: BLOCKS }
    }

    fn expecting(inc: u64, from_seq: u64, known_durable: u64) -> LogExpectation {
        LogExpectation { pool: POOL, inc: PoolInc(inc), from_seq, known_durable }
    }

    fn empty_ring() -> Vec<u8> {
        vec![0; 64 * LOG_BLOCK]
    }

    fn start(ring: &[u8], inc: u64) -> Log {
        let recovered = recover(ring, &expecting(inc - 1, 1, 0)).expect("a sound ring");
        Log::new(place(inc), &recovered)
    }

    /// A record that carries a number to be recognised by; `kilobytes` up to 8.
    fn numbered(number: u64, kilobytes: usize) -> LogRecord {
        let record = vec![number.to_le_bytes()[0]; kilobytes * 1024];
        LogRecord::Promise { epoch: Epoch(number), session: SessionId(1), record }
    }

    fn number_of(record: &LogRecord) -> u64 {
        match record {
            LogRecord::Promise { epoch, .. } => epoch.0,
            LogRecord::Stamp { generation, .. } => generation.0,
            other => panic!("not a numbered record: {other:?}"),
        }
    }

    fn numbers(recovered: &Recovered) -> Vec<u64> {
        recovered.records.iter().map(|r| number_of(&r.record)).collect()
    }

    fn apply(ring: &mut [u8], write: &LogWrite) {
        let at = usize::try_from(write.position_blocks).expect("small") * LOG_BLOCK;
        ring[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
    }

    /// Writes everything that waits.
    fn commit(log: &mut Log, ring: &mut [u8]) {
        while let Some(write) = log.poll_write() {
            apply(ring, &write);
            log.handle_written(write.batch, Ok(()));
        }
    }

    fn in_flight(log: &mut Log) -> Vec<LogWrite> {
        core::iter::from_fn(|| log.poll_write()).collect()
    }

    /// What one block of a write may be after a crash.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Old,
        New,
        Torn,
    }

    const FATES: [Fate; 3] = [Fate::Old, Fate::New, Fate::Torn];

    /// Each block of the writes ends as `fate` says: the disk reorders blocks and tears them.
    fn crash(ring: &mut [u8], writes: &[LogWrite], mut fate: impl FnMut() -> Fate) {
        for write in writes {
            for (i, new) in write.bytes.chunks_exact(LOG_BLOCK).enumerate() {
                let at = (usize::try_from(write.position_blocks).expect("small") + i) * LOG_BLOCK;
                let len = match fate() {
                    Fate::Old => 0,
                    Fate::New => LOG_BLOCK,
                    Fate::Torn => 512,
                };
                ring[at..at + len].copy_from_slice(&new[..len]);
            }
        }
    }

    fn every_record() -> Vec<LogRecord> {
        let generation = Generation::new(Epoch(7), 2);
        vec![
            LogRecord::Create { size: 1 << 30, region_shift: 20 },
            LogRecord::Promise {
                epoch: Epoch(7),
                session: SessionId(0x5e55),
                record: br#"{"fmt":1}"#.to_vec(),
            },
            LogRecord::Stamp { generation, regions: vec![0, 77, 1023] },
            LogRecord::Sealed { generation },
            LogRecord::Grow { size: 1 << 31, from: 1 << 30, generation },
            LogRecord::Identity { boot_id: 0xb007, device_generation: 3, clean_stop: true },
            LogRecord::Trashed,
            LogRecord::Cut { size: 1 << 30 },
            LogRecord::Fold { region_shift: 21 },
        ]
    }

    #[test]
    fn a_log_goes_on_when_no_block_is_left_that_says_how_much_of_it_is_free() {
        // Everything durable is in checkpoints; its blocks rot, unread. Then a batch is torn: its last block stays.
        let mut ring = empty_ring();
        let mut log = start(&ring, 1);
        for number in 1..=80 {
            log.append(KEY, &numbered(number, 1)).expect("space");
            commit(&mut log, &mut ring);
            log.trim_to(log.durable_seq());
            commit(&mut log, &mut ring);
        }
        let from_seq = log.durable_seq() + 1;
        ring.fill(0);
        log.append(KEY, &numbered(81, 8)).expect("space");
        let writes = in_flight(&mut log);
        let mut fates = vec![Fate::New, Fate::Old, Fate::Old];
        crash(&mut ring, &writes, || fates.pop().unwrap_or(Fate::New));
        let recovered =
            recover(&ring, &expecting(1, from_seq, 0)).expect("nothing that is needed is missing");
        assert_eq!(numbers(&recovered), [0u64; 0]);
        let mut log = Log::new(place(2), &recovered);
        commit(&mut log, &mut ring);
        log.append(KEY, &numbered(82, 1)).expect("a ring with room");
        commit(&mut log, &mut ring);
        let again = recover(&ring, &expecting(2, from_seq, 0)).expect("sound");
        assert_eq!(numbers(&again), [82]);
    }

    #[test]
    fn records_of_images_have_the_bytes_they_were_released_with() {
        let generation = Generation::new(Epoch(7), 2);
        let prepared = |form| ImageChange::Prepared { generation, epoch: Epoch(7), incarnation: 3, form };
        let changes = [
            prepared(ImageForm::Chained),
            ImageChange::Ready { note: b"{}".to_vec() },
            ImageChange::Has { regions: vec![0, 77] },
            ImageChange::Deleting,
            ImageChange::Gone,
            prepared(ImageForm::Whole),
            ImageChange::Destroyed,
            ImageChange::Emptied,
        ];
        let record = |change| LogRecord::Image { image: SnapId(0x51), attempt: 2, change };
        let records = changes.map(record);
        let entries = records
            .iter()
            .zip(1..)
            .map(|(record, n)| (alloc::format!("image-{n}"), encode_entry(KEY, record)));
        let entries: Vec<(String, Vec<u8>)> = entries.collect();
        hex::assert_specimens(include_str!("../specimens/log-images-v1.txt"), &entries);
        for (record, (_, bytes)) in records.into_iter().zip(entries) {
            assert_eq!(decode_entry(&mut Reader::new(&bytes)), Ok(Some((KEY, record))));
        }
    }

    #[test]
    fn log_version_1_has_the_bytes_it_was_released_with() {
        let mut ring = empty_ring();
        let mut log = start(&ring, 1);
        for record in every_record() {
            log.append(KEY, &record).expect("an empty log");
        }
        log.append_clean().expect("an empty log");
        commit(&mut log, &mut ring);
        let used = ring[LOG_BLOCK..].iter().rposition(|b| *b != 0).expect("one block") + 1;
        assert!(used < LOG_BLOCK);
        let specimens: [(String, Vec<u8>); 1] = [("block-1".to_string(), ring[LOG_BLOCK..][..used].to_vec())];
        hex::assert_specimens(include_str!("../specimens/log-v1.txt"), &specimens);

        let recovered = recover(&ring, &expecting(1, 1, 1)).expect("sound");
        let records: Vec<_> = recovered.records.iter().map(|r| r.record.clone()).collect();
        assert_eq!(records, every_record());
        assert!(recovered.records.iter().all(|r| r.key == KEY && r.seq == 1));
        assert!(recovered.clean && !recovered.truncated_tail);
        assert_eq!(recovered.next_seq, 2);
    }

    #[test]
    fn records_appended_during_a_write_share_the_next_one() {
        let mut ring = empty_ring();
        let mut log = start(&ring, 1);
        let first = log.append(KEY, &numbered(1, 0)).expect("space");
        let write = log.poll_write().expect("a batch");
        let rest: Vec<_> = (2..50).map(|n| log.append(KEY, &numbered(n, 0)).expect("space")).collect();
        assert_eq!(log.poll_write(), None, "one batch in flight");
        assert_eq!(log.poll_durable(), None);
        apply(&mut ring, &write);
        log.handle_written(write.batch, Ok(()));
        assert_eq!(log.poll_durable(), Some(first));
        let write = log.poll_write().expect("all that gathered");
        assert_eq!(write.seqs, (2, 3));
        log.handle_written(write.batch, Ok(()));
        assert_eq!(log.poll_durable(), rest.last().copied());
        assert_eq!(log.poll_durable(), None);
        assert!(log.is_idle());
    }

    #[test]
    fn a_batch_across_the_rings_end_is_durable_when_both_writes_are() {
        let mut ring = empty_ring();
        let mut log = start(&ring, 1);
        for number in 1..=20 {
            log.append(KEY, &numbered(number, 6)).expect("space");
            commit(&mut log, &mut ring);
            log.trim_to(log.durable_seq());
            commit(&mut log, &mut ring);
        }
        // Records of two blocks, each followed by one block that names the start: after at most three laps one of
        // them lies across the end.
        let mut number = 20;
        let writes = loop {
            number += 1;
            let token = log.append(KEY, &numbered(number, 6)).expect("space");
            let writes = in_flight(&mut log);
            if writes.len() == 2 {
                assert_eq!(writes[1].position_blocks, 0);
                log.handle_written(writes[0].batch, Ok(()));
                assert!(log.durable_token() < token);
                log.handle_written(writes[1].batch, Ok(()));
                assert_eq!(log.durable_token(), token);
                break writes;
            }
            writes.iter().for_each(|w| {
                apply(&mut ring, w);
                log.handle_written(w.batch, Ok(()));
            });
            log.trim_to(log.durable_seq());
            commit(&mut log, &mut ring);
        };
        // Half of it on disk is a torn tail; all of it is a record.
        apply(&mut ring, &writes[1]);
        let recovered = recover(&ring, &expecting(1, 1, 0)).expect("a torn tail is no damage");
        assert!(recovered.truncated_tail && !numbers(&recovered).contains(&number));
        apply(&mut ring, &writes[0]);
        let recovered = recover(&ring, &expecting(1, 1, 0)).expect("sound");
        assert_eq!(numbers(&recovered).last(), Some(&number));
    }

    #[test]
    fn a_stamp_of_every_region_is_split_and_durable_under_one_token() {
        let mut ring = vec![0; 2048 * LOG_BLOCK];
        let mut log = Log::new(
            LogPlace { blocks: 2048, ..place(1) },
            &recover(&ring, &expecting(0, 1, 0)).expect("empty"),
        );
        let regions: Vec<u32> = (0..1 << 20).collect();
        let stamp = LogRecord::Stamp { generation: Generation(5), regions: regions.clone() };
        let token = log.append(KEY, &stamp).expect("space");
        let mut polled = None;
        while let Some(write) = log.poll_write() {
            assert!(log.poll_durable().is_none(), "before its last batch");
            apply(&mut ring, &write);
            log.handle_written(write.batch, Ok(()));
            polled = Some(write);
        }
        assert!(polled.is_some());
        assert_eq!(log.poll_durable(), Some(token));
        let recovered = recover(&ring, &expecting(1, 1, 0)).expect("sound");
        let mut found = Vec::new();
        for recorded in recovered.records {
            let LogRecord::Stamp { generation: Generation(5), regions } = recorded.record else {
                panic!("only stamps were written");
            };
            found.extend(regions);
        }
        assert_eq!(found, regions);
    }

    #[test]
    fn a_full_log_still_takes_trims_promises_and_the_checkpoint_that_empties_it() {
        // R20, N9: the log must never be what keeps an overload from ending.
        let mut ring = empty_ring();
        let mut log = start(&ring, 1);
        let stamp = LogRecord::Stamp { generation: Generation(1), regions: vec![7; 900] };
        let fill =
            |log: &mut Log, ring: &mut [u8], append: &dyn Fn(&mut Log) -> Result<LogToken, AppendError>| {
                let mut taken = 0;
                while append(log).is_ok() {
                    commit(log, ring);
                    taken += 1;
                }
                taken
            };
        assert!(!log.needs_checkpoint());
        assert_eq!(fill(&mut log, &mut ring, &|log| log.append(KEY, &stamp)), 48);
        assert!(log.needs_checkpoint());
        assert_eq!(log.append(KEY, &stamp), Err(AppendError::Full));
        assert_eq!(fill(&mut log, &mut ring, &|log| log.append_for_trim(KEY, &stamp)), 8);
        assert_eq!(fill(&mut log, &mut ring, &|log| log.append(KEY, &numbered(9, 3))), 7);
        assert_eq!(log.append(KEY, &numbered(9, 3)), Err(AppendError::Full));

        // A crash tears the block that frees the ring: the next start still can free it.
        log.trim_to(log.durable_seq());
        assert!(!log.needs_checkpoint());
        assert_eq!(
            log.append(KEY, &stamp),
            Err(AppendError::Full),
            "not free before a durable block says so"
        );
        let from_seq = log.durable_seq() + 1;
        let writes = in_flight(&mut log);
        assert_eq!(writes.iter().map(|w| w.bytes.len()).sum::<usize>(), LOG_BLOCK);
        apply(&mut ring, &writes[0]);
        ring[usize::try_from(writes[0].position_blocks).expect("small") * LOG_BLOCK + 48] ^= 0xff;
        let recovered = recover(&ring, &expecting(1, from_seq, 0)).expect("sound");
        assert!(recovered.records.is_empty() && recovered.truncated_tail);
        let mut log = Log::new(place(2), &recovered);
        commit(&mut log, &mut ring);
        assert_eq!(fill(&mut log, &mut ring, &|log| log.append(KEY, &stamp)), 47);
    }

    #[test]
    fn a_failed_write_ends_the_log() {
        // M26: after EIO the second attempt succeeds on Linux, and the data is gone.
        let mut log = start(&empty_ring(), 1);
        log.append(KEY, &numbered(1, 0)).expect("space");
        let write = log.poll_write().expect("a batch");
        log.append(KEY, &numbered(2, 0)).expect("space");
        log.handle_written(write.batch, Err(LogWriteFailed));
        assert!(log.is_poisoned());
        assert_eq!(log.poll_write(), None);
        assert_eq!(log.poll_durable(), None);
        assert_eq!(log.append(KEY, &numbered(3, 0)), Err(AppendError::Poisoned));
    }

    #[test]
    fn every_way_to_tear_two_batches_of_the_same_shape_recovers_to_whole_batches() {
        // M29, M30: a torn batch of incarnation 1, then one of the same shape by incarnation 2, torn as well.
        // Blocks that the first left behind must never complete the second.
        let fates = |n: usize| [FATES[n % 3], FATES[n / 3 % 3], FATES[n / 9 % 3], FATES[n / 27 % 3]];
        let mut base = empty_ring();
        let mut log = start(&base, 1);
        log.append(KEY, &numbered(1, 0)).expect("space");
        commit(&mut log, &mut base);
        log.append(KEY, &numbered(2, 8)).expect("space");
        log.append(KEY, &numbered(3, 6)).expect("space");
        let writes = in_flight(&mut log);
        assert_eq!(writes[0].seqs, (2, 6), "four blocks");
        for first in 0..81 {
            let mut ring = base.clone();
            let mut fate = fates(first).into_iter();
            crash(&mut ring, &writes, || fate.next().expect("four blocks"));
            let recovered = recover(&ring, &expecting(1, 1, 1)).expect("a torn tail is no damage");
            let whole = fates(first).iter().all(|f| matches!(f, Fate::New));
            let expected: &[u64] = if whole { &[1, 2, 3] } else { &[1] };
            assert_eq!(numbers(&recovered), expected, "{:?}", fates(first));
            let untouched = fates(first).iter().all(|f| matches!(f, Fate::Old));
            assert_eq!(recovered.truncated_tail, !whole && !untouched, "{:?}", fates(first));

            let mut log = Log::new(place(2), &recovered);
            log.append(KEY, &numbered(12, 8)).expect("space");
            log.append(KEY, &numbered(13, 6)).expect("space");
            let writes = in_flight(&mut log);
            for second in 0..81 {
                let mut ring = ring.clone();
                let mut fate = fates(second).into_iter();
                crash(&mut ring, &writes, || fate.next().expect("four blocks"));
                let again = recover(&ring, &expecting(2, 1, 1)).expect("a torn tail is no damage");
                let mut expected = expected.to_vec();
                if fates(second).iter().all(|f| matches!(f, Fate::New)) {
                    expected.extend([12, 13]);
                }
                assert_eq!(numbers(&again), expected, "{:?} then {:?}", fates(first), fates(second));
            }
        }
    }

    /// Ten durable batches of one block each.
    fn ten_blocks() -> Vec<u8> {
        let mut ring = empty_ring();
        let mut log = start(&ring, 1);
        for number in 1..=10 {
            log.append(KEY, &numbered(number, 3)).expect("space");
            commit(&mut log, &mut ring);
        }
        ring
    }

    #[test]
    fn a_flipped_bit_below_what_was_durable_is_damage_and_above_it_a_torn_tail() {
        let ring = ten_blocks();
        for seq in 1..=10u64 {
            let at = usize::try_from(seq).expect("small") * LOG_BLOCK;
            for bit in (0..LOG_BLOCK * 8).step_by(97) {
                let mut bad = ring.clone();
                bad[at + bit / 8] ^= 1 << (bit % 8);
                let reason = LogDamageReason::Hole { durable: if seq == 10 { 10 } else { 9 } };
                let expected = LogDamage { position_blocks: seq, seq, reason };
                if seq < 10 {
                    assert_eq!(recover(&bad, &expecting(1, 1, 0)), Err(expected));
                    continue;
                }
                // Nothing later vouches for the last block, so only the host's own note tells (R10).
                let recovered = recover(&bad, &expecting(1, 1, 9)).expect("torn tail");
                assert!(recovered.truncated_tail && recovered.next_seq == 10);
                let reason = LogDamageReason::Behind { durable: 10 };
                assert_eq!(recover(&bad, &expecting(1, 1, 10)), Err(LogDamage { reason, ..expected }));
            }
        }
    }

    #[test]
    fn logs_of_other_pools_other_times_and_other_versions_are_damage() {
        let ring = ten_blocks();
        let reason = |ring: &[u8], expect: LogExpectation| recover(ring, &expect).expect_err("damage").reason;
        let other = LogExpectation { pool: PoolId(1), ..expecting(1, 1, 0) };
        assert_eq!(reason(&ring, other), LogDamageReason::OtherPool(POOL));
        assert_eq!(reason(&ring, expecting(0, 1, 0)), LogDamageReason::NewerIncarnation(PoolInc(1)));
        // Emptied, or rolled back: checkpoints include up to 20, or the host has seen 11.
        assert_eq!(reason(&empty_ring(), expecting(1, 21, 0)), LogDamageReason::Behind { durable: 20 });
        assert_eq!(reason(&ring, expecting(1, 21, 0)), LogDamageReason::Behind { durable: 20 });
        assert_eq!(reason(&ring, expecting(1, 1, 11)), LogDamageReason::Behind { durable: 11 });
        let huge = expecting(1, u64::MAX, u64::MAX);
        assert!(matches!(reason(&ring, huge), LogDamageReason::Behind { .. }));
        // A misdirected write: block 3 also stands at 30.
        let mut moved = ring.clone();
        moved.copy_within(3 * LOG_BLOCK..4 * LOG_BLOCK, 30 * LOG_BLOCK);
        assert_eq!(reason(&moved, expecting(1, 1, 0)), LogDamageReason::Misplaced);
        let forged = |change: &dyn Fn(&mut [u8])| {
            let mut bad = ring.clone();
            let block = &mut bad[10 * LOG_BLOCK..11 * LOG_BLOCK];
            change(block);
            let crc = crc32c::crc32c(&block[8..]);
            block[4..8].copy_from_slice(&crc.to_le_bytes());
            recover(&bad, &expecting(1, 1, 0)).expect_err("damage").reason
        };
        assert_eq!(forged(&|b| b[62] = 2), LogDamageReason::NewerVersion(2));
        assert_eq!(forged(&|b| b[58] = 0), LogDamageReason::Malformed, "a batch of no blocks");
        assert_eq!(forged(&|b| b[61] = 0xff), LogDamageReason::Malformed, "a payload longer than the block");
        assert_eq!(forged(&|b| b[68] = 99), LogDamageReason::Malformed, "an unknown kind of record");
        assert_eq!(forged(&|b| b[64] = 1), LogDamageReason::Malformed, "a record shorter than it needs");
    }

    #[test]
    fn a_lost_write_in_the_middle_is_damage() {
        let mut ring = ten_blocks();
        ring[5 * LOG_BLOCK..6 * LOG_BLOCK].fill(0);
        let reason = LogDamageReason::Hole { durable: 9 };
        assert_eq!(
            recover(&ring, &expecting(1, 1, 0)),
            Err(LogDamage { position_blocks: 5, seq: 5, reason })
        );
        // Checkpoints that include it make it irrelevant.
        assert_eq!(numbers(&recover(&ring, &expecting(1, 6, 0)).expect("sound")), [6, 7, 8, 9, 10]);
    }

    /// A ring of which only a few blocks are free: batches of one block each, all durable.
    fn nearly_full(batches: u64) -> (Vec<u8>, Log) {
        let mut ring = empty_ring();
        let mut log = start(&ring, 1);
        for number in 1..=batches {
            log.append(KEY, &numbered(number, 3)).expect("space");
            commit(&mut log, &mut ring);
        }
        (ring, log)
    }

    #[test]
    fn a_trim_during_a_write_frees_nothing_that_the_written_block_still_names() {
        // The block in flight was made before the trim. Would its end free the space, then a torn overwrite of
        // block 1 would leave a newest block that says "needed from 1": a good log read as damaged.
        let (mut ring, mut log) = nearly_full(62);
        log.append(KEY, &numbered(63, 3)).expect("space");
        let write = log.poll_write().expect("a batch");
        log.trim_to(40);
        apply(&mut ring, &write);
        log.handle_written(write.batch, Ok(()));
        assert_eq!(log.append(KEY, &numbered(64, 8)), Err(AppendError::Full));
        commit(&mut log, &mut ring);
        log.append(KEY, &numbered(64, 8)).expect("the block that says so is durable");
        let writes = in_flight(&mut log);
        crash(&mut ring, &writes, || Fate::Torn);
        let recovered = recover(&ring, &expecting(1, 1, 64)).expect("a torn tail is no damage");
        assert_eq!(numbers(&recovered), (41..=63).collect::<Vec<_>>());
    }

    #[test]
    fn a_trim_named_by_a_torn_batch_frees_nothing_before_it_is_named_again() {
        // The first block of two survives a crash and names 41; the next write destroys it.
        let (mut ring, mut log) = nearly_full(61);
        log.append(KEY, &numbered(62, 6)).expect("space");
        log.trim_to(40);
        let writes = in_flight(&mut log);
        assert_eq!(writes[0].seqs, (62, 64));
        let mut fates = [Fate::New, Fate::Old].into_iter();
        crash(&mut ring, &writes, || fates.next().expect("two blocks"));
        let recovered = recover(&ring, &expecting(1, 1, 61)).expect("a torn tail is no damage");
        assert_eq!(numbers(&recovered), (41..=61).collect::<Vec<_>>());
        let mut log = Log::new(place(2), &recovered);
        assert_eq!(log.append(KEY, &numbered(62, 8)), Err(AppendError::Full));
        let writes = in_flight(&mut log);
        crash(&mut ring, &writes, || Fate::Torn);
        let block = usize::try_from(writes[0].position_blocks).expect("small") * LOG_BLOCK;
        ring[block + 48] ^= 0xff;
        let recovered = recover(&ring, &expecting(2, 1, 61)).expect("nothing was overwritten yet");
        assert_eq!(numbers(&recovered), (1..=61).collect::<Vec<_>>());
    }

    #[test]
    fn records_of_images_come_back_and_leave_room_for_those_that_end_one() {
        let mut ring = empty_ring();
        let mut log = start(&ring, 1);
        let image = |change| LogRecord::Image { image: SnapId(7), attempt: 2, change };
        let generation = Generation::new(Epoch(5), 3);
        let prepared = |form| ImageChange::Prepared { generation, epoch: Epoch(5), incarnation: 4, form };
        let first = prepared(ImageForm::Chained);
        let many: Vec<u32> = (0..9000).collect();
        let ready = ImageChange::Ready { note: b"{}".to_vec() };
        let changes = [first, ready, ImageChange::Has { regions: many.clone() }];
        let write = |log: &mut Log, ring: &mut Vec<u8>| {
            while let Some(write) = log.poll_write() {
                apply(ring, &write);
                log.handle_written(write.batch, Ok(()));
            }
        };
        for change in &changes {
            log.append(KEY, &image(change.clone())).expect("room");
        }
        write(&mut log, &mut ring);
        let has = image(ImageChange::Has { regions: many[..900].to_vec() });
        while log.append(KEY, &has).is_ok() {
            write(&mut log, &mut ring);
        }
        let last = [ImageChange::Destroyed, ImageChange::Emptied, ImageChange::Deleting, ImageChange::Gone];
        for change in &last {
            log.append(KEY, &image(change.clone())).expect("the reserve is theirs");
        }
        write(&mut log, &mut ring);

        let recovered = recover(&ring, &expecting(1, 1, 0)).expect("sound");
        let records: Vec<_> = recovered.records.into_iter().map(|recorded| recorded.record).collect();
        assert_eq!(records[..2], [image(changes[0].clone()), image(changes[1].clone())]);
        let parts = records[2..5].iter().flat_map(|part| match part {
            LogRecord::Image { change: ImageChange::Has { regions }, .. } => regions.clone(),
            other => panic!("{other:?}"),
        });
        assert_eq!(parts.collect::<Vec<_>>(), many, "more than fit into a record");
        assert!(records[5..records.len() - 4].iter().all(|record| *record == has));
        assert_eq!(records[records.len() - 4..], last.map(image));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Append { kilobytes: usize },
        Stamp { regions: usize, trim: bool },
        Write,
        Checkpoint,
        Crash { fates: u64, from_first: bool },
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..=8).prop_map(|kilobytes| Step::Append { kilobytes }),
            3 => (1usize..3000, any::<bool>()).prop_map(|(regions, trim)| Step::Stamp { regions, trim }),
            6 => Just(Step::Write),
            2 => Just(Step::Checkpoint),
            1 => (any::<u64>(), any::<bool>()).prop_map(|(fates, from_first)| Step::Crash { fates, from_first }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// The dumb model: a list of numbers, of which a crash may only take those nobody was told are durable.
        #[test]
        fn no_history_of_crashes_loses_a_durable_record_or_invents_one(
            steps in proptest::collection::vec(any_step(), 1..200),
        ) {
            let mut ring = empty_ring();
            let mut inc = 1;
            let mut log = start(&ring, inc);
            let mut flight: VecDeque<LogWrite> = VecDeque::new();
            // Numbers of all records; of those durable and those in checkpoints; tokens of this start.
            let (mut last, mut durable, mut included) = (0u64, 0u64, 0u64);
            let mut tokens: Vec<(LogToken, u64)> = Vec::new();
            let mut from_seq = 1;
            for step in steps {
                match step {
                    Step::Append { .. } | Step::Stamp { .. } => {
                        let appended = match step {
                            Step::Append { kilobytes } => log.append(KEY, &numbered(last + 1, kilobytes)),
                            Step::Stamp { regions, trim } => {
                                let regions = vec![3; regions];
                                let stamp = LogRecord::Stamp { generation: Generation(last + 1), regions };
                                if trim { log.append_for_trim(KEY, &stamp) } else { log.append(KEY, &stamp) }
                            }
                            _ => unreachable!("the arm's two kinds"),
                        };
                        match appended {
                            Ok(token) => {
                                last += 1;
                                tokens.push((token, last));
                            }
                            Err(error) => {
                                prop_assert_eq!(error, AppendError::Full);
                                prop_assert!(log.needs_checkpoint() || included < durable || !log.is_idle());
                            }
                        }
                    }
                    Step::Write => {
                        flight.extend(core::iter::from_fn(|| log.poll_write()));
                        if let Some(write) = flight.pop_front() {
                            apply(&mut ring, &write);
                            log.handle_written(write.batch, Ok(()));
                        }
                        if let Some(token) = log.poll_durable() {
                            durable = tokens.iter().rfind(|(t, _)| *t <= token).expect("ours").1;
                        }
                    }
                    Step::Checkpoint => {
                        included = durable;
                        from_seq = log.durable_seq() + 1;
                        log.trim_to(log.durable_seq());
                    }
                    Step::Crash { mut fates, from_first } => {
                        let known_durable = log.durable_seq();
                        flight.extend(core::iter::from_fn(|| log.poll_write()));
                        crash(&mut ring, flight.make_contiguous(), || {
                            fates = fates.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                            FATES[(fates % 3) as usize]
                        });
                        flight.clear();
                        let expect = if from_first {
                            expecting(inc, 1, 0)
                        } else {
                            expecting(inc, from_seq, known_durable)
                        };
                        let recovered = recover(&ring, &expect);
                        prop_assert!(recovered.is_ok(), "{:?}", recovered);
                        let recovered = recovered.expect("checked");
                        let found = numbers(&recovered);
                        let first = found.first().copied().unwrap_or(durable + 1);
                        prop_assert!(first <= included + 1, "record {} is lost", included + 1);
                        prop_assert!(found.windows(2).all(|w| w[1] == w[0] + 1 || w[1] == w[0]));
                        let found_last = found.last().copied().unwrap_or(included);
                        prop_assert!(
                            (durable..=last).contains(&found_last),
                            "found up to {found_last}, durable {durable}, appended {last}"
                        );
                        (last, durable) = (found_last, found_last);
                        inc += 1;
                        log = Log::new(place(inc), &recovered);
                        tokens = vec![(LogToken(0), last)];
                    }
                }
            }
        }

        #[test]
        fn any_bytes_recover_or_are_damage_without_a_panic(
            garbage in proptest::collection::vec(any::<u8>(), 0..600), at in 0usize..10, sums in any::<bool>(),
        ) {
            let mut ring = ten_blocks();
            let block = &mut ring[at * LOG_BLOCK..(at + 1) * LOG_BLOCK];
            block[8..8 + garbage.len()].copy_from_slice(&garbage);
            if sums {
                let crc = crc32c::crc32c(&block[8..]);
                block[..4].copy_from_slice(&MAGIC.to_le_bytes());
                block[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = recover(&ring, &expecting(1, 1, 0));
        }

        /// Behind a right header, the records of a block are as untrusted as any.
        #[test]
        fn any_payload_behind_a_right_header_recovers_or_is_damage(
            payload in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..9, len in 0u32..300,
        ) {
            let mut ring = ten_blocks();
            let header = BlockHeader {
                seq: 11, pool: POOL, inc: PoolInc(1), durable: 10, first: 1, index: 0, count: 1,
            };
            let mut entry = Vec::new();
            entry.u32(len);
            entry.put(&[kind]);
            entry.put(&payload);
            header.encode(&entry, &mut ring[11 * LOG_BLOCK..12 * LOG_BLOCK]);
            match recover(&ring, &expecting(1, 1, 0)) {
                Ok(recovered) => prop_assert_eq!(recovered.next_seq, 12),
                Err(damage) => prop_assert_eq!(damage.reason, LogDamageReason::Malformed),
            }
        }
    }
}
