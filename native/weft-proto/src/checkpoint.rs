//! A replica's durable state as a whole (protocol.md 4.3, R20): written in turn to `meta.a` and `meta.b`, so that
//! one of them is always sound.
//!
//! Must always hold:
//! * the file that is written is never the one that [`choose`] would take; both have their full length from the
//!   replica's making on;
//! * a checkpoint includes every record of the log up to `log_seq`, which was durable when it was made;
//! * a torn or rotten file is seen as such (CRC of the head, CRC of the whole) and both being so is an error, never
//!   an empty replica (R24);
//! * images are kept in the same way, each in two files of its own (`image.a`, `image.b`). Before a checkpoint of the
//!   replica passes a record of an image, a slot of that image holds what the record says: a record that is taken in
//!   after it takes the replica's stamps for those of its own time.
//!
//! ```text
//!  0 magic u32        4 head_crc u32 (bytes 8..176)   8 version u32     12 rid u32
//! 16 volume u128     32 pool u128                    48 counter u64     56 log_seq u64
//! 64 size u64        72 promised u64                 80 session u128    96 sealed u64
//! 104 boot_id u128   120 device_generation u64      128 regions u32    132 record_len u32
//! 136 region_shift u8 137 clean_stop u8 138 zero     140 gone u32 144 named u32 148 zero   168 body_crc u32   172 zero
//! 176 record (JSON, at most 8192 bytes), zero up to 8368; then one u64 stamp per region; then of each image that
//!     is gone id u128, attempt u64; then of each that it names (version 2: where it names none the version is 1) id u128,
//!     attempt u64, generation u64, epoch u64, incarnation u64, size u64, region_shift u8, form u8, state u8, empty u8, zero u32;
//!     zero to a full block
//!
//! a slot of an image:
//!  0 magic u32        4 head_crc u32 (bytes 8..144)   8 version u32     12 rid u32
//! 16 volume u128     32 pool u128                    48 image u128     64 counter u64
//! 72 log_seq u64     80 attempt u64                  88 generation u64 96 epoch u64
//! 104 incarnation u64 112 size u64                  120 regions u32   124 note_len u32
//! 128 region_shift u8 129 state u8 130 form u8 131 zero 136 body_crc u32  140 zero
//! 144 note (at most 512 bytes), zero up to 656; then a bit a region, in words of 64: which it has; then in the same
//!     way: which had been written to; zero to a full block
//! ```
//!
//! The slot of an image in the chain has version 1, in which byte 130 is zero. Others have version 2: software that knows
//! the chain alone would let older images read through them.

use alloc::vec::Vec;
use core::fmt;

use crate::bytes::{Put, Reader, Short, as_len, len_u32};
use crate::durable::Durable;
use crate::ids::{Epoch, Generation, PoolId, Rid, SessionId, SnapId, VolumeId};
use crate::images::{GONE_MAX, Image, ImageForm, ImageState, Images, NAMED_MAX, NamedImage, Regions};
use crate::log::ReplicaKey;
use crate::message::NOTE_MAX;
use crate::record::RECORD_MAX;

const MAGIC: u32 = u32::from_le_bytes(*b"wchk");
const VERSION: u32 = 2;
const HEAD: usize = 176;
const STAMPS_AT: usize = HEAD + RECORD_MAX;
const GONE_LEN: usize = 24;
const NAMED_LEN: usize = 64;
const IMAGE_MAGIC: u32 = u32::from_le_bytes(*b"wimg");
/// Of an image's slot: 1 but where only newer software knows what it says.
const IMAGE_VERSION: u32 = 2;
const IMAGE_HEAD: usize = 144;
const BITS_AT: usize = IMAGE_HEAD + NOTE_MAX;
const BLOCK: usize = 4096;
/// Most regions of a volume (protocol.md 4.2).
const MAX_REGIONS: u64 = 1 << 20;

/// The largest file that [`Checkpoint::encode`] makes, in bytes.
pub const CHECKPOINT_MAX: usize = content_len(1 << 20, GONE_MAX, NAMED_MAX);

/// One replica's state at one place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The pool it lives in.
    pub pool: PoolId,
    /// +1 with every checkpoint of this replica; the higher one is newer.
    pub counter: u64,
    /// Every record up to this log sequence is included.
    pub log_seq: u64,
    /// The state.
    pub durable: Durable,
}

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `meta.a`
    A,
    /// `meta.b`
    B,
}

impl Side {
    /// The file's name in the replica's directory.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Side::A => "meta.a",
            Side::B => "meta.b",
        }
    }

    /// The file's name in an image's directory.
    #[must_use]
    pub fn image_file_name(self) -> &'static str {
        match self {
            Side::A => "image.a",
            Side::B => "image.b",
        }
    }

    /// The one that is written next when this one is the newest.
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// Why bytes are not a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointError {
    /// Shorter than its content, or no checkpoint at all.
    NotACheckpoint,
    /// A checksum does not match: torn, or bit rot.
    BadChecksum,
    /// Written by newer software.
    NewerVersion(u32),
    /// The checksums are right and the content can't be.
    Malformed,
    /// Of another pool or replica: a file that was moved here.
    Foreign,
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckpointError::NotACheckpoint => f.write_str("not a checkpoint"),
            CheckpointError::BadChecksum => f.write_str("checkpoint does not match its checksum"),
            CheckpointError::NewerVersion(found) => {
                write!(f, "checkpoint has format version {found}, newer than this software knows")
            }
            CheckpointError::Malformed => {
                f.write_str("checkpoint's checksum is right, its content is malformed")
            }
            CheckpointError::Foreign => f.write_str("checkpoint belongs to another pool or replica"),
        }
    }
}

impl core::error::Error for CheckpointError {}

impl From<Short> for CheckpointError {
    fn from(_: Short) -> CheckpointError {
        CheckpointError::NotACheckpoint
    }
}

/// No file can be taken: the replica is quarantined (R24).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCheckpoint {
    /// What is wrong with `meta.a`; `None`: sound, but `meta.b` is of newer software and may be later.
    pub a: Option<CheckpointError>,
    /// What is wrong with `meta.b`; `None`: sound, but `meta.a` is of newer software and may be later.
    pub b: Option<CheckpointError>,
}

impl fmt::Display for NoCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no usable checkpoint:")?;
        for (side, error) in [(Side::A, self.a), (Side::B, self.b)] {
            write!(f, " {}: ", side.file_name())?;
            match error {
                Some(error) => write!(f, "{error};")?,
                None => f.write_str("sound, perhaps outdated;")?,
            }
        }
        Ok(())
    }
}

impl core::error::Error for NoCheckpoint {}

/// Bytes of the checkpoint of a replica with this many regions: what to preallocate for each file (R20).
#[must_use]
pub fn checkpoint_len(regions: usize) -> usize {
    content_len(regions, GONE_MAX, NAMED_MAX)
}

const fn content_len(regions: usize, gone: usize, named: usize) -> usize {
    (STAMPS_AT + 8 * regions + GONE_LEN * gone + NAMED_LEN * named).next_multiple_of(BLOCK)
}

/// Enters the checksums of head and body.
fn seal<const HEAD_LEN: usize>(out: &mut [u8]) {
    let body_crc = crc32c::crc32c(&out[HEAD_LEN..]);
    out[HEAD_LEN - 8..HEAD_LEN - 4].copy_from_slice(&body_crc.to_le_bytes());
    let head_crc = crc32c::crc32c(&out[8..HEAD_LEN]);
    out[4..8].copy_from_slice(&head_crc.to_le_bytes());
}

/// A sound head of a version that this software reads, from behind that version on.
fn open<const HEAD_LEN: usize>(
    bytes: &[u8],
    magic: u32,
    known: u32,
) -> Result<(Reader<'_>, u32), CheckpointError> {
    let head = bytes.get(..HEAD_LEN).ok_or(CheckpointError::NotACheckpoint)?;
    let mut r = Reader::new(head);
    if r.u32()? != magic {
        return Err(CheckpointError::NotACheckpoint);
    }
    if r.u32()? != crc32c::crc32c(&head[8..]) {
        return Err(CheckpointError::BadChecksum);
    }
    let version = r.u32()?;
    if version > known {
        return Err(CheckpointError::NewerVersion(version));
    }
    Ok((r, version))
}

fn regions_fit(regions: u32, size: u64, region_shift: u8) -> bool {
    (12..=62).contains(&region_shift)
        && u64::from(regions) == size.div_ceil(1 << region_shift)
        && u64::from(regions) <= MAX_REGIONS
}

impl Checkpoint {
    /// The file's content, whole blocks. Panics on a state that can't exist: a bug.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let d = &self.durable;
        assert!(d.record.len() <= RECORD_MAX, "record of {} bytes, limit {RECORD_MAX}", d.record.len());
        assert!(d.rgm.len() as u64 <= MAX_REGIONS, "{} regions, limit {MAX_REGIONS}", d.rgm.len());
        let gone = d.images.gone();
        let named = d.images.named();
        let len = content_len(d.rgm.len(), gone.len(), named.len());
        let mut out = Vec::with_capacity(len);
        out.u32(MAGIC);
        out.u32(0);
        out.u32(if named.is_empty() { 1 } else { VERSION });
        out.u32(d.rid.0);
        out.u128(d.volume.0);
        out.u128(self.pool.0);
        out.u64(self.counter);
        out.u64(self.log_seq);
        out.u64(d.size);
        out.u64(d.promised.0);
        out.u128(d.session.0);
        out.u64(d.sealed.0);
        out.u128(d.boot_id);
        out.u64(d.device_generation);
        out.u32(len_u32(d.rgm.len()));
        out.u32(len_u32(d.record.len()));
        out.put(&[d.region_shift, u8::from(d.clean_stop), 0, 0]);
        out.u32(len_u32(gone.len()));
        out.u32(len_u32(named.len()));
        out.resize(HEAD, 0);
        out.put(&d.record);
        out.resize(STAMPS_AT, 0);
        for stamp in &d.rgm {
            out.u64(stamp.0);
        }
        for (id, attempt) in gone {
            out.u128(id.0);
            out.u64(attempt);
        }
        for image in named {
            put_named(&mut out, image);
        }
        out.resize(len, 0);
        seal::<HEAD>(&mut out);
        out
    }

    /// Reads a file of replica `key` in `pool`. Bytes behind the content are ignored: a file is as long as its
    /// longest checkpoint was.
    pub fn decode(bytes: &[u8], pool: PoolId, key: ReplicaKey) -> Result<Checkpoint, CheckpointError> {
        let (mut r, version) = open::<HEAD>(bytes, MAGIC, VERSION)?;
        let rid = Rid(r.u32()?);
        let volume = VolumeId(r.u128()?);
        let found_pool = PoolId(r.u128()?);
        let (counter, log_seq, size) = (r.u64()?, r.u64()?, r.u64()?);
        let promised = Epoch(r.u64()?);
        let session = SessionId(r.u128()?);
        let sealed = Generation(r.u64()?);
        let boot_id = r.u128()?;
        let device_generation = r.u64()?;
        let regions = r.u32()?;
        let record_len = as_len(r.u32()?);
        let (region_shift, clean_stop) = (r.u8()?, r.u8()?);
        r.take(2)?;
        let gone = as_len(r.u32()?);
        let named = as_len(r.u32()?);
        r.take(20)?;
        let body_crc = r.u32()?;
        let regions_fit = regions_fit(regions, size, region_shift);
        let sequences_fit = log_seq <= u64::MAX / 2 && counter < u64::MAX && promised <= Epoch::MAX;
        let named_fit = named <= NAMED_MAX && (named > 0) == (version > 1);
        let counts_fit = record_len <= RECORD_MAX && gone <= GONE_MAX && named_fit;
        if version == 0 || !regions_fit || !sequences_fit || !counts_fit || clean_stop > 1 {
            return Err(CheckpointError::Malformed);
        }
        let regions = as_len(regions);
        let body =
            bytes.get(HEAD..content_len(regions, gone, named)).ok_or(CheckpointError::NotACheckpoint)?;
        if crc32c::crc32c(body) != body_crc {
            return Err(CheckpointError::BadChecksum);
        }
        if found_pool != pool || (ReplicaKey { volume, rid }) != key {
            return Err(CheckpointError::Foreign);
        }
        let mut r = Reader::new(body);
        let record = r.take(RECORD_MAX)?[..record_len].to_vec();
        let mut rgm = Vec::with_capacity(regions);
        for _ in 0..regions {
            rgm.push(Generation(r.u64()?));
        }
        let mut images = Images::default();
        for _ in 0..gone {
            images.remember_gone(SnapId(r.u128()?), r.u64()?);
        }
        if images.gone().len() != gone {
            return Err(CheckpointError::Malformed);
        }
        let mut names = Vec::with_capacity(named);
        for _ in 0..named {
            names.push(take_named(&mut r)?);
        }
        images.set_named(names);
        let durable = Durable {
            volume,
            rid,
            size,
            region_shift,
            promised,
            session,
            record,
            sealed,
            rgm,
            boot_id,
            device_generation,
            clean_stop: clean_stop == 1,
            images,
        };
        Ok(Checkpoint { pool: found_pool, counter, log_seq, durable })
    }
}

fn put_named(out: &mut Vec<u8>, image: &NamedImage) {
    out.u128(image.id.0);
    out.u64(image.attempt);
    out.u64(image.generation.0);
    out.u64(image.epoch.0);
    out.u64(image.incarnation);
    out.u64(image.size);
    out.put(&[image.region_shift, form_byte(image.form), state_byte(image.state), u8::from(image.empty)]);
    out.u32(0);
}

fn take_named(r: &mut Reader<'_>) -> Result<NamedImage, CheckpointError> {
    let (id, attempt) = (SnapId(r.u128()?), r.u64()?);
    let (generation, epoch) = (Generation(r.u64()?), Epoch(r.u64()?));
    let (incarnation, size) = (r.u64()?, r.u64()?);
    let (region_shift, form, state, empty) = (r.u8()?, r.u8()?, r.u8()?, r.u8()?);
    r.u32()?;
    let regions = if (12..=62).contains(&region_shift) { size.div_ceil(1 << region_shift) } else { u64::MAX };
    let (form, state) = (
        form_of(form).ok_or(CheckpointError::Malformed)?,
        state_of(state).ok_or(CheckpointError::Malformed)?,
    );
    if regions > MAX_REGIONS || empty > 1 || empty == 1 && state != ImageState::Destroyed {
        return Err(CheckpointError::Malformed);
    }
    let empty = empty == 1;
    Ok(NamedImage { id, attempt, generation, epoch, incarnation, size, region_shift, form, state, empty })
}

fn form_byte(form: ImageForm) -> u8 {
    match form {
        ImageForm::Chained => 0,
        ImageForm::Whole => 1,
        ImageForm::Copied => 2,
    }
}

fn form_of(byte: u8) -> Option<ImageForm> {
    [ImageForm::Chained, ImageForm::Whole, ImageForm::Copied]
        .into_iter()
        .find(|form| form_byte(*form) == byte)
}

fn state_byte(state: ImageState) -> u8 {
    match state {
        ImageState::Prepared => 0,
        ImageState::Ready => 1,
        ImageState::Deleting => 2,
        ImageState::Destroyed => 3,
    }
}

fn state_of(byte: u8) -> Option<ImageState> {
    [ImageState::Prepared, ImageState::Ready, ImageState::Deleting, ImageState::Destroyed]
        .into_iter()
        .find(|state| state_byte(*state) == byte)
}

/// The newest sound one of the two files and where it stands; the next goes to the other side. Beside a file of
/// newer software a sound one is not taken: it may be the older state, and the log between the two may be gone.
pub fn choose(a: &[u8], b: &[u8], pool: PoolId, key: ReplicaKey) -> Result<(Side, Checkpoint), NoCheckpoint> {
    newest(Checkpoint::decode(a, pool, key), Checkpoint::decode(b, pool, key), |of| of.counter)
}

/// See [`choose`].
fn newest<T>(
    a: Result<T, CheckpointError>,
    b: Result<T, CheckpointError>,
    counter: impl Fn(&T) -> u64,
) -> Result<(Side, T), NoCheckpoint> {
    let newer = |error| matches!(error, CheckpointError::NewerVersion(_));
    match (a, b) {
        (Ok(a), Ok(b)) if counter(&b) > counter(&a) => Ok((Side::B, b)),
        (Ok(a), Ok(_)) => Ok((Side::A, a)),
        (Ok(_), Err(b)) if newer(b) => Err(NoCheckpoint { a: None, b: Some(b) }),
        (Err(a), Ok(_)) if newer(a) => Err(NoCheckpoint { a: Some(a), b: None }),
        (Ok(a), Err(_)) => Ok((Side::A, a)),
        (Err(_), Ok(b)) => Ok((Side::B, b)),
        (Err(a), Err(b)) => Err(NoCheckpoint { a: Some(a), b: Some(b) }),
    }
}

/// One image's state at one place in the log, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSlot {
    /// The pool it lies in.
    pub pool: PoolId,
    /// The replica it was taken of.
    pub replica: ReplicaKey,
    /// +1 with every slot of this image that is written; the higher one is newer.
    pub counter: u64,
    /// Every record of the image up to this log sequence is included.
    pub log_seq: u64,
    /// The state.
    pub image: Image,
}

/// Bytes of each of the two files of an image with this many regions.
#[must_use]
pub const fn image_slot_len(regions: usize) -> usize {
    (BITS_AT + 2 * 8 * regions.div_ceil(64)).next_multiple_of(BLOCK)
}

impl ImageSlot {
    /// The file's content, whole blocks. Panics on a state that can't exist: a bug.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let image = &self.image;
        let regions = image.regions_len();
        assert!(image.note.len() <= NOTE_MAX, "note of {} bytes, limit {NOTE_MAX}", image.note.len());
        assert!(regions as u64 <= MAX_REGIONS, "{regions} regions, limit {MAX_REGIONS}");
        let mut out = Vec::with_capacity(image_slot_len(regions));
        out.u32(IMAGE_MAGIC);
        out.u32(0);
        let form = form_byte(image.form);
        let plain = form == 0 && image.state != ImageState::Destroyed;
        out.u32(if plain { 1 } else { IMAGE_VERSION });
        out.u32(self.replica.rid.0);
        out.u128(self.replica.volume.0);
        out.u128(self.pool.0);
        out.u128(image.id.0);
        out.u64(self.counter);
        out.u64(self.log_seq);
        out.u64(image.attempt);
        out.u64(image.generation.0);
        out.u64(image.epoch.0);
        out.u64(image.incarnation);
        out.u64(image.size);
        out.u32(len_u32(regions));
        out.u32(len_u32(image.note.len()));
        let state = state_byte(image.state);
        out.put(&[image.region_shift, state, form]);
        out.resize(IMAGE_HEAD, 0);
        out.put(&image.note);
        out.resize(BITS_AT, 0);
        for bits in [&image.has, &image.written] {
            for word in 0..regions.div_ceil(64) {
                out.u64(bits.0.get(word).copied().unwrap_or_default());
            }
        }
        out.resize(image_slot_len(regions), 0);
        seal::<IMAGE_HEAD>(&mut out);
        out
    }

    /// Reads a file of the image `id` of replica `key` in `pool`. Bytes behind the content are ignored.
    pub fn decode(
        bytes: &[u8],
        pool: PoolId,
        key: ReplicaKey,
        id: SnapId,
    ) -> Result<ImageSlot, CheckpointError> {
        let (mut r, version) = open::<IMAGE_HEAD>(bytes, IMAGE_MAGIC, IMAGE_VERSION)?;
        let rid = Rid(r.u32()?);
        let volume = VolumeId(r.u128()?);
        let (found_pool, found_id) = (PoolId(r.u128()?), SnapId(r.u128()?));
        let (counter, log_seq, attempt) = (r.u64()?, r.u64()?, r.u64()?);
        let (generation, epoch) = (Generation(r.u64()?), Epoch(r.u64()?));
        let (incarnation, size) = (r.u64()?, r.u64()?);
        let (regions, note_len) = (r.u32()?, as_len(r.u32()?));
        let (region_shift, state, form) = (r.u8()?, r.u8()?, r.u8()?);
        r.take(5)?;
        let body_crc = r.u32()?;
        let regions_fit = regions_fit(regions, size, region_shift);
        let sequences_fit = log_seq <= u64::MAX / 2 && counter < u64::MAX;
        let state = state_of(state).filter(|state| version > 1 || *state != ImageState::Destroyed);
        let state = state.ok_or(CheckpointError::Malformed)?;
        let form = match (version, form) {
            (1, 0) => ImageForm::Chained,
            (2, 0) if state == ImageState::Destroyed => ImageForm::Chained,
            (2, 1) => ImageForm::Whole,
            (2, 2) => ImageForm::Copied,
            _ => return Err(CheckpointError::Malformed),
        };
        if !regions_fit || !sequences_fit || note_len > NOTE_MAX {
            return Err(CheckpointError::Malformed);
        }
        let regions = as_len(regions);
        let body = bytes.get(IMAGE_HEAD..image_slot_len(regions)).ok_or(CheckpointError::NotACheckpoint)?;
        if crc32c::crc32c(body) != body_crc {
            return Err(CheckpointError::BadChecksum);
        }
        let replica = ReplicaKey { volume, rid };
        if (found_pool, replica, found_id) != (pool, key, id) {
            return Err(CheckpointError::Foreign);
        }
        let mut r = Reader::new(body);
        let note = r.take(NOTE_MAX)?[..note_len].to_vec();
        let mut bits = || -> Result<Regions, CheckpointError> {
            let mut words = Vec::with_capacity(regions.div_ceil(64));
            for _ in 0..regions.div_ceil(64) {
                words.push(r.u64()?);
            }
            // A region beyond the last one is none.
            let beyond = u32::try_from(regions % 64).expect("below 64");
            if beyond != 0 && words.last().is_some_and(|word| word >> beyond != 0) {
                return Err(CheckpointError::Malformed);
            }
            Ok(Regions(words))
        };
        let (has, written) = (bits()?, bits()?);
        let image = Image {
            id,
            attempt,
            generation,
            epoch,
            incarnation,
            size,
            region_shift,
            form,
            state,
            note,
            has,
            written,
        };
        Ok(ImageSlot { pool, replica, counter, log_seq, image })
    }
}

/// The newest sound one of an image's two files and where it stands, as [`choose`]. None: neither was ever written, so
/// that the log has all that there is to know. After an error it still may: an image that the log says was taken needs no
/// slot; any other one that is not known makes the replica one that is not to be trusted (R24), for older images read
/// through it.
pub fn choose_image(
    a: &[u8],
    b: &[u8],
    pool: PoolId,
    key: ReplicaKey,
    id: SnapId,
) -> Result<Option<(Side, ImageSlot)>, NoCheckpoint> {
    let (read_a, read_b) = (ImageSlot::decode(a, pool, key, id), ImageSlot::decode(b, pool, key, id));
    if read_a.is_err() && read_b.is_err() && a.iter().chain(b).all(|byte| *byte == 0) {
        return Ok(None);
    }
    newest(read_a, read_b, |of| of.counter).map(Some)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::bytes::hex;
    use crate::images::ImageChange;
    use crate::log::LogRecord;

    const POOL: PoolId = PoolId(0xb0);
    const KEY: ReplicaKey = ReplicaKey { volume: VolumeId(0x11), rid: Rid(2) };

    fn some(counter: u64) -> Checkpoint {
        let mut durable = Durable::new(KEY.volume, KEY.rid, 5 << 20, 20);
        let generation = Generation::new(Epoch(7), 2);
        let promise = LogRecord::Promise {
            epoch: Epoch(7),
            session: SessionId(0x5e55),
            record: br#"{"fmt":1}"#.to_vec(),
        };
        durable.apply(&promise);
        durable.apply(&LogRecord::Stamp { generation, regions: vec![0, 4] });
        durable.apply(&LogRecord::Sealed { generation: Generation::new(Epoch(7), 1) });
        durable.apply(&LogRecord::Identity { boot_id: 0xb007, device_generation: 3, clean_stop: true });
        Checkpoint { pool: POOL, counter, log_seq: 100 + counter, durable }
    }

    fn some_gone(count: usize) -> Images {
        let mut images = Images::default();
        for n in 0..count as u64 {
            images.apply((SnapId(u128::from(n)), n + 1), &ImageChange::Gone, (0, 20), &[]);
        }
        images
    }

    fn some_slot(counter: u64) -> ImageSlot {
        slot_as(ImageForm::Chained, counter)
    }

    fn slot_as(form: ImageForm, counter: u64) -> ImageSlot {
        let mut images = Images::default();
        let generation = Generation::new(Epoch(7), 2);
        let stamps = [generation, Generation::NEVER, generation, Generation::NEVER, generation];
        let changes = [
            ImageChange::Prepared { generation, epoch: Epoch(7), incarnation: 3, form },
            ImageChange::Ready { note: br#"{"name":"n"}"#.to_vec() },
            ImageChange::Has { regions: vec![0, 4] },
        ];
        for change in &changes {
            images.apply((SnapId(0x51), 7 << 20 | 1), change, (5 << 20, 20), &stamps);
        }
        let image = images.iter().next().expect("prepared").clone();
        ImageSlot { pool: POOL, replica: KEY, counter, log_seq: 100 + counter, image }
    }

    #[test]
    fn a_slot_of_an_image_has_the_bytes_it_was_released_with() {
        let bytes = some_slot(1).encode();
        assert_eq!(bytes.len(), image_slot_len(5));
        let parts = [
            ("image-head".to_string(), bytes[..IMAGE_HEAD].to_vec()),
            ("image-note-and-bits".to_string(), bytes[IMAGE_HEAD..BITS_AT + 16].to_vec()),
        ];
        assert!(bytes[BITS_AT + 16..].iter().all(|b| *b == 0));
        hex::assert_specimens(include_str!("../specimens/image-v1.txt"), &parts);
        assert_eq!(ImageSlot::decode(&bytes, POOL, KEY, SnapId(0x51)), Ok(some_slot(1)));
    }

    /// Software that knows the chain alone refuses it, and does not let older images read through it.
    #[test]
    fn a_slot_of_a_whole_image_has_a_version_of_its_own() {
        let bytes = slot_as(ImageForm::Whole, 1).encode();
        let parts = [
            ("image-head".to_string(), bytes[..IMAGE_HEAD].to_vec()),
            ("image-note-and-bits".to_string(), bytes[IMAGE_HEAD..BITS_AT + 16].to_vec()),
        ];
        hex::assert_specimens(include_str!("../specimens/image-v2.txt"), &parts);
        let read = ImageSlot::decode(&bytes, POOL, KEY, SnapId(0x51)).expect("sound");
        assert!(read.image.is_whole() && read.encode() == bytes);
        for (version, form) in [(0, 0), (1, 1), (2, 0), (2, 9)] {
            let mut other = bytes.clone();
            (other[8], other[130]) = (version, form);
            let crc = crc32c::crc32c(&other[8..IMAGE_HEAD]);
            other[4..8].copy_from_slice(&crc.to_le_bytes());
            let read = ImageSlot::decode(&other, POOL, KEY, SnapId(0x51));
            assert_eq!(read, Err(CheckpointError::Malformed), "version {version}, form {form}");
        }
    }

    /// Older software would take it for one that can be read.
    #[test]
    fn a_slot_of_an_image_whose_data_was_destroyed_is_of_version_2() {
        let mut slot = some_slot(1);
        slot.image.state = ImageState::Destroyed;
        let bytes = slot.encode();
        let parts = [("image-head-destroyed".to_string(), bytes[..IMAGE_HEAD].to_vec())];
        hex::assert_specimens(include_str!("../specimens/image-destroyed-v2.txt"), &parts);
        assert_eq!(ImageSlot::decode(&bytes, POOL, KEY, SnapId(0x51)), Ok(slot));
    }

    #[test]
    fn a_slot_of_a_copied_image_says_so() {
        let bytes = slot_as(ImageForm::Copied, 1).encode();
        let parts = [
            ("image-head".to_string(), bytes[..IMAGE_HEAD].to_vec()),
            ("image-note-and-bits".to_string(), bytes[IMAGE_HEAD..BITS_AT + 16].to_vec()),
        ];
        hex::assert_specimens(include_str!("../specimens/image-copied-v2.txt"), &parts);
        let read = ImageSlot::decode(&bytes, POOL, KEY, SnapId(0x51)).expect("sound");
        assert!(read.image.is_whole() && !read.image.took() && read.encode() == bytes);
    }

    #[test]
    fn the_newest_sound_slot_of_an_image_is_taken_and_none_where_none_was_written() {
        let (old, new) = (some_slot(1).encode(), some_slot(2).encode());
        let choose = |a: &[u8], b: &[u8]| choose_image(a, b, POOL, KEY, SnapId(0x51));
        assert_eq!(choose(&old, &new), Ok(Some((Side::B, some_slot(2)))));
        assert_eq!(choose(&new, &old), Ok(Some((Side::A, some_slot(2)))));
        let empty = vec![0; old.len()];
        assert_eq!(choose(&empty, &old), Ok(Some((Side::B, some_slot(1)))));
        assert_eq!(choose(&empty, &empty), Ok(None));
        // Torn at its first writing, or rotten: not for this module to tell.
        let mut bad = old.clone();
        bad[BITS_AT] ^= 1;
        assert!(choose(&empty, &bad).is_err() && choose(&bad, &bad).is_err());
        let mut newer = new;
        newer[8] = u8::try_from(IMAGE_VERSION + 1).expect("small");
        let crc = crc32c::crc32c(&newer[8..IMAGE_HEAD]);
        newer[4..8].copy_from_slice(&crc.to_le_bytes());
        assert!(choose(&old, &newer).is_err(), "an older state must not win over a newer one");
        assert_eq!(Side::A.image_file_name(), "image.a");
        let foreign = Err(CheckpointError::Foreign);
        assert_eq!(ImageSlot::decode(&old, POOL, KEY, SnapId(0x52)), foreign);
        assert_eq!(ImageSlot::decode(&old, PoolId(1), KEY, SnapId(0x51)), foreign);
        let other = ReplicaKey { rid: Rid(3), ..KEY };
        assert_eq!(ImageSlot::decode(&old, POOL, other, SnapId(0x51)), foreign);
    }

    #[test]
    fn any_flipped_bit_of_a_slot_is_seen() {
        let bytes = some_slot(1).encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ImageSlot::decode(&bad, POOL, KEY, SnapId(0x51)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn checkpoint_version_1_has_the_bytes_it_was_released_with() {
        let bytes = some(1).encode();
        assert_eq!(bytes.len(), content_len(5, 0, 0));
        assert!(bytes.len() <= checkpoint_len(5));
        // The zeroes between the record and the stamps and behind them are left out of the file.
        let parts = [
            ("head-and-record".to_string(), bytes[..HEAD + 9].to_vec()),
            ("stamps".to_string(), bytes[STAMPS_AT..STAMPS_AT + 40].to_vec()),
        ];
        assert!(bytes[HEAD + 9..STAMPS_AT].iter().chain(&bytes[STAMPS_AT + 40..]).all(|b| *b == 0));
        hex::assert_specimens(include_str!("../specimens/checkpoint-v1.txt"), &parts);
        assert_eq!(Checkpoint::decode(&bytes, POOL, KEY), Ok(some(1)));
    }

    /// R24: older software would take an image that vanished for one that never was.
    #[test]
    fn a_checkpoint_that_names_images_has_the_bytes_of_version_2() {
        let mut checkpoint = some(1);
        let mut images = checkpoint.durable.images.clone();
        let mut slot = some_slot(1).image;
        slot.state = ImageState::Destroyed;
        images.restore(alloc::vec![
            some_slot(1).image,
            Image { id: SnapId(0x52), has: Regions::default(), ..slot }
        ]);
        checkpoint.durable.images = images;
        checkpoint.durable = checkpoint.durable.without_images();
        let bytes = checkpoint.encode();
        let names = STAMPS_AT + 40;
        let parts = [
            ("head".to_string(), bytes[..HEAD].to_vec()),
            ("names".to_string(), bytes[names..names + 2 * NAMED_LEN].to_vec()),
        ];
        hex::assert_specimens(include_str!("../specimens/checkpoint-v2.txt"), &parts);
        assert_eq!(Checkpoint::decode(&bytes, POOL, KEY), Ok(checkpoint.clone()));
        for (at, byte) in [(names + 56, 11), (names + 58, 9), (names + 59, 2)] {
            let mut bad = bytes.clone();
            bad[at] = byte;
            seal::<HEAD>(&mut bad);
            assert_eq!(Checkpoint::decode(&bad, POOL, KEY), Err(CheckpointError::Malformed), "{at}");
        }
        assert_eq!(checkpoint.durable.images.lose_missing(), [SnapId(0x51), SnapId(0x52)]);
    }

    #[test]
    fn the_newest_sound_file_is_taken_and_the_other_written_next() {
        let (old, new) = (some(1).encode(), some(2).encode());
        assert_eq!(choose(&old, &new, POOL, KEY), Ok((Side::B, some(2))));
        assert_eq!(choose(&new, &old, POOL, KEY), Ok((Side::A, some(2))));
        assert_eq!(Side::A.other().file_name(), "meta.b");
        assert_eq!(Side::B.other().file_name(), "meta.a");
    }

    #[test]
    fn a_crash_while_one_file_is_written_leaves_the_other() {
        // M30: the write is torn at any block, in any order; zero-filled preallocation is what stood there first.
        let (old, new) = (some(1).encode(), some(3).encode());
        for before in [vec![0u8; old.len()], some(2).encode()] {
            let blocks = new.len() / BLOCK;
            for written in 0..1u32 << blocks {
                let mut torn = before.clone();
                for block in (0..blocks).filter(|block| written & (1 << block) != 0) {
                    torn[block * BLOCK..(block + 1) * BLOCK].copy_from_slice(&new[block * BLOCK..][..BLOCK]);
                }
                let (_, chosen) = choose(&old, &torn, POOL, KEY).expect("the other file is sound");
                assert!([1, 2, 3].contains(&chosen.counter));
                assert_eq!(chosen, some(chosen.counter));
            }
        }
    }

    #[test]
    fn two_bad_files_are_an_error_and_never_an_empty_replica() {
        let mut bad = some(1).encode();
        bad[STAMPS_AT] ^= 1;
        let error =
            NoCheckpoint { a: Some(CheckpointError::BadChecksum), b: Some(CheckpointError::NotACheckpoint) };
        assert_eq!(choose(&bad, &vec![0; bad.len()], POOL, KEY), Err(error));
        assert_eq!(choose(&bad, &[], POOL, KEY), Err(error));
    }

    #[test]
    fn a_file_of_another_replica_or_of_newer_software_is_not_taken() {
        let bytes = some(1).encode();
        let other = ReplicaKey { rid: Rid(3), ..KEY };
        assert_eq!(Checkpoint::decode(&bytes, POOL, other), Err(CheckpointError::Foreign));
        assert_eq!(Checkpoint::decode(&bytes, PoolId(1), KEY), Err(CheckpointError::Foreign));
        let mut newer = some(2).encode();
        newer[8] = 3;
        let crc = crc32c::crc32c(&newer[8..HEAD]);
        newer[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Checkpoint::decode(&newer, POOL, KEY), Err(CheckpointError::NewerVersion(3)));
        assert!(choose(&bytes, &newer, POOL, KEY).is_err(), "an older state must not win over a newer one");
    }

    #[test]
    fn any_flipped_bit_is_seen() {
        let bytes = some(1).encode();
        for bit in (0..HEAD * 8).chain((HEAD * 8..bytes.len() * 8).step_by(61)) {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Checkpoint::decode(&bad, POOL, KEY).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_state_is_read_back_equal(
            stamps in proptest::collection::vec(any::<u64>(), 0..300), numbers in any::<[u32; 5]>(),
            record in proptest::collection::vec(any::<u8>(), 0..=RECORD_MAX), ids in any::<[u128; 2]>(),
            clean_stop in any::<bool>(), shift in 16u8..=32, gone in 0u8..9,
        ) {
            let [counter, log_seq, epoch, sealed, device] = numbers.map(u64::from);
            let size = (stamps.len() as u64) << shift;
            let durable = Durable {
                volume: KEY.volume, rid: KEY.rid, size, region_shift: shift, promised: Epoch(epoch),
                session: SessionId(ids[0]), record, sealed: Generation(sealed),
                rgm: stamps.into_iter().map(Generation).collect(), boot_id: ids[1], device_generation: device,
                clean_stop, images: some_gone(usize::from(gone)),
            };
            let checkpoint = Checkpoint { pool: POOL, counter, log_seq, durable };
            let mut bytes = checkpoint.encode();
            prop_assert!(bytes.len().is_multiple_of(BLOCK));
            bytes.extend_from_slice(b"left from a longer checkpoint");
            prop_assert_eq!(Checkpoint::decode(&bytes, POOL, KEY), Ok(checkpoint));
        }

        /// A head with a right checksum and any fields: refused or read, never a panic or a huge allocation.
        #[test]
        fn any_head_is_read_or_refused(head in proptest::collection::vec(any::<u8>(), HEAD), len in 0usize..9000) {
            let mut bytes = head;
            bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
            bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
            bytes[136] = 12 + bytes[136] % 51;
            let crc = crc32c::crc32c(&bytes[8..]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            bytes.resize(len, 0);
            prop_assert!(Checkpoint::decode(&bytes, POOL, KEY).is_err());
        }

        #[test]
        fn any_slot_of_an_image_is_read_back_equal(
            bits in proptest::collection::vec(any::<[u64; 2]>(), 0..40), numbers in any::<[u64; 6]>(),
            note in proptest::collection::vec(any::<u8>(), 0..=NOTE_MAX), id in any::<u128>(), state in 0usize..3,
            shift in 16u8..=32, form in 0usize..3,
        ) {
            let [counter, log_seq, attempt, generation, epoch, incarnation] = numbers;
            let (has, written) = bits.iter().map(|[has, written]| (*has, *written)).unzip();
            let states =
                [ImageState::Prepared, ImageState::Ready, ImageState::Deleting, ImageState::Destroyed];
            let image = Image {
                id: SnapId(id), attempt, generation: Generation(generation), epoch: Epoch(epoch), incarnation,
                size: (bits.len() as u64 * 64) << shift, region_shift: shift, state: states[state], note,
                form: [ImageForm::Chained, ImageForm::Whole, ImageForm::Copied][form],
                has: Regions(has), written: Regions(written),
            };
            let slot = ImageSlot { pool: POOL, replica: KEY, counter: counter / 2, log_seq: log_seq / 4, image };
            let mut bytes = slot.encode();
            prop_assert_eq!(bytes.len(), image_slot_len(bits.len() * 64));
            bytes.extend_from_slice(b"left from before");
            prop_assert_eq!(ImageSlot::decode(&bytes, POOL, KEY, SnapId(id)), Ok(slot));
        }

        #[test]
        fn any_head_of_a_slot_is_read_or_refused(
            head in proptest::collection::vec(any::<u8>(), IMAGE_HEAD), len in 0usize..9000,
        ) {
            let mut bytes = head;
            bytes[..4].copy_from_slice(&IMAGE_MAGIC.to_le_bytes());
            let version = 1 + u32::from(bytes[8]) % 2;
            bytes[8..12].copy_from_slice(&version.to_le_bytes());
            bytes[128] = 12 + bytes[128] % 51;
            let crc = crc32c::crc32c(&bytes[8..]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            bytes.resize(len, 0);
            prop_assert!(ImageSlot::decode(&bytes, POOL, KEY, SnapId(0)).is_err());
        }
    }
}
