//! What is kept of an image whose data was destroyed (protocol.md 4.19): a keyed hash of each 64 KiB that it held, by which it
//! is still told what differs from it. A file of its own for each segment in which anything was ever written: so one that is not
//! there tells of damage, and never of holes.
//!
//! ```text
//!  0 magic u32        4 crc u32 (bytes 8 to the end)  8 version u32      12 rid u32
//! 16 volume u128     32 pool u128                    48 image u128      64 attempt u64
//! 72 segment u32     76 hashes u32                   80 key of the hashes, 16 bytes
//! 96 two bits a grain, the lowest of each byte first: 0 it read as zeroes, 1 it has a hash, 2 it could not be read; 256 bytes
//! 352 the hashes in order, 16 bytes each; zero to a full block
//! ```
//!
//! Must always hold:
//! * what was never written, zeroed or trimmed has no hash, and differs from nothing that reads as zeroes;
//! * a hash is of what a reader saw: two grains have the same one under one key if and only if they read the same;
//! * a file that is torn, rotten, another image's or of newer software is told apart, never believed.

use alloc::vec::Vec;
use core::fmt;

use crate::bytes::{Put, Reader, Short, as_len, len_u32};
use crate::ids::{PoolId, Rid, SnapId, VolumeId};
use crate::images::SEGMENT_SHIFT;
use crate::log::ReplicaKey;
use crate::message::CHANGED_GRAIN;
use crate::payload::{BLOCK, block_hash};

const MAGIC: u32 = u32::from_le_bytes(*b"whsh");
const VERSION: u32 = 1;
const HEAD: usize = 96;
const BLOCK_LEN: usize = 4096;
const GRAIN_LEN: usize = 65_536;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK && GRAIN_LEN as u64 == CHANGED_GRAIN);
/// Grains of a segment.
pub const GRAINS: usize = (1 << SEGMENT_SHIFT) / GRAIN_LEN;
const HASHES_AT: usize = HEAD + GRAINS / 4;
/// The longest file, in bytes.
pub const KEPT_MAX: usize = (HASHES_AT + 16 * GRAINS).next_multiple_of(BLOCK_LEN);
/// Blocks of a grain.
const BLOCKS: usize = GRAIN_LEN / BLOCK_LEN;

/// What an image held in one grain of 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// It read as zeroes, written or not.
    Zero,
    /// The hash of what it held.
    Hash([u8; 16]),
    /// It could not be read.
    Unknown,
}

/// What is kept of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptHashes {
    /// The pool it lies in.
    pub pool: PoolId,
    /// The replica that the image was taken of.
    pub replica: ReplicaKey,
    /// Of which image.
    pub image: SnapId,
    /// Of which attempt at it.
    pub attempt: u64,
    /// Which segment.
    pub segment: u32,
    /// Key of the hashes.
    pub key: [u8; 16],
    /// One for each grain of the segment.
    pub grains: Vec<Grain>,
}

/// Why bytes are not what is kept of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptError {
    /// Too short, or something else.
    NotHashes,
    /// Torn or rotten.
    BadChecksum,
    /// Of newer software: its version.
    NewerVersion(u32),
    /// Of another image, attempt, replica, pool or segment.
    Foreign,
}

impl fmt::Display for KeptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeptError::NotHashes => f.write_str("no hashes of a segment"),
            KeptError::BadChecksum => f.write_str("hashes of a segment with a wrong checksum"),
            KeptError::NewerVersion(version) => {
                write!(f, "hashes of a segment in version {version}, known is {VERSION}")
            }
            KeptError::Foreign => f.write_str("hashes of another segment"),
        }
    }
}

impl From<Short> for KeptError {
    fn from(_: Short) -> KeptError {
        KeptError::NotHashes
    }
}

/// The key of all hashes that copies of a volume keep: the same at each of them and for ever, of nothing but what each copy
/// has of the volume's record, and not to be known by a guest.
#[must_use]
pub fn volume_key(volume: VolumeId, created_by: &str) -> [u8; 16] {
    block_hash(&volume.0.to_le_bytes(), created_by.as_bytes())
}

/// Makes grains of the hashes of their blocks under one key, in order, from the start of a grain on. What is past the last
/// block was never written.
#[must_use]
pub fn grains_of(key: &[u8; 16], blocks: &[[u8; 16]]) -> Vec<Grain> {
    let (absent, zero) = (block_hash(key, &[]), block_hash(key, &[0; BLOCK_LEN]));
    let grain = |blocks: &[[u8; 16]]| {
        let data = |hash: &[u8; 16]| *hash != absent && *hash != zero;
        if !blocks.iter().any(data) {
            return Grain::Zero;
        }
        let mut all = Vec::with_capacity(16 * BLOCKS);
        for n in 0..BLOCKS {
            all.put(blocks.get(n).filter(|hash| data(hash)).unwrap_or(&zero));
        }
        Grain::Hash(block_hash(key, &all))
    };
    blocks.chunks(BLOCKS).map(grain).collect()
}

impl KeptHashes {
    /// The file's content, whole blocks. Panics on more grains than a segment has: a bug.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.grains.len() <= GRAINS, "{} grains, a segment has {GRAINS}", self.grains.len());
        let hashes: Vec<&[u8; 16]> = self
            .grains
            .iter()
            .filter_map(|grain| if let Grain::Hash(hash) = grain { Some(hash) } else { None })
            .collect();
        let mut out = Vec::with_capacity(HASHES_AT + 16 * hashes.len());
        out.u32(MAGIC);
        out.u32(0);
        out.u32(VERSION);
        out.u32(self.replica.rid.0);
        out.u128(self.replica.volume.0);
        out.u128(self.pool.0);
        out.u128(self.image.0);
        out.u64(self.attempt);
        out.u32(self.segment);
        out.u32(len_u32(hashes.len()));
        out.put(&self.key);
        out.resize(HASHES_AT, 0);
        for (n, grain) in self.grains.iter().enumerate() {
            let bits = match grain {
                Grain::Zero => 0,
                Grain::Hash(_) => 1,
                Grain::Unknown => 2,
            };
            out[HEAD + n / 4] |= bits << (n % 4 * 2);
        }
        hashes.iter().for_each(|hash| out.put(*hash));
        out.resize(out.len().next_multiple_of(BLOCK_LEN), 0);
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads what is kept of a segment of an image: `pool`, whose, which image, attempt and segment.
    pub fn decode(
        bytes: &[u8],
        pool: PoolId,
        replica: ReplicaKey,
        (image, attempt): (SnapId, u64),
        segment: u32,
    ) -> Result<KeptHashes, KeptError> {
        if bytes.len() > KEPT_MAX {
            return Err(KeptError::NotHashes);
        }
        let mut r = Reader::new(bytes);
        if r.u32()? != MAGIC {
            return Err(KeptError::NotHashes);
        }
        if r.u32()? != crc32c::crc32c(r.rest()) {
            return Err(KeptError::BadChecksum);
        }
        let version = r.u32()?;
        if version > VERSION {
            return Err(KeptError::NewerVersion(version));
        }
        let rid = Rid(r.u32()?);
        let found = (VolumeId(r.u128()?), rid, PoolId(r.u128()?), SnapId(r.u128()?), r.u64()?, r.u32()?);
        if found != (replica.volume, replica.rid, pool, image, attempt, segment) {
            return Err(KeptError::Foreign);
        }
        let (count, key) = (as_len(r.u32()?), r.array()?);
        let bits = r.take(GRAINS / 4)?;
        let mut grains = Vec::with_capacity(GRAINS);
        for n in 0..GRAINS {
            grains.push(match bits[n / 4] >> (n % 4 * 2) & 3 {
                0 => Grain::Zero,
                1 => Grain::Hash(r.array()?),
                2 => Grain::Unknown,
                _ => return Err(KeptError::NotHashes),
            });
        }
        if version == 0 || grains.iter().filter(|grain| matches!(grain, Grain::Hash(_))).count() != count {
            return Err(KeptError::NotHashes);
        }
        Ok(KeptHashes { pool, replica, image, attempt, segment, key, grains })
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::bytes::hex;

    const POOL: PoolId = PoolId(0xb0);
    const KEY: ReplicaKey = ReplicaKey { volume: VolumeId(0x11), rid: Rid(2) };
    const OF: (SnapId, u64) = (SnapId(0x51), 7 << 20 | 1);

    fn kept(grains: Vec<Grain>) -> KeptHashes {
        let (image, attempt) = OF;
        let key = *b"sixteen bytes ok";
        KeptHashes { pool: POOL, replica: KEY, image, attempt, segment: 3, key, grains }
    }

    fn some() -> KeptHashes {
        let mut grains = vec![Grain::Zero; GRAINS];
        grains[1] = Grain::Hash([0xa1; 16]);
        grains[6] = Grain::Unknown;
        grains[1023] = Grain::Hash([0xa2; 16]);
        kept(grains)
    }

    fn decode(bytes: &[u8]) -> Result<KeptHashes, KeptError> {
        KeptHashes::decode(bytes, POOL, KEY, OF, 3)
    }

    #[test]
    fn hashes_of_a_segment_have_the_bytes_they_were_released_with() {
        let bytes = some().encode();
        assert_eq!(bytes.len(), 4096);
        let parts = [
            ("head".to_string(), bytes[..HEAD].to_vec()),
            ("grains-and-hashes".to_string(), bytes[HEAD..HASHES_AT + 32].to_vec()),
        ];
        assert!(bytes[HASHES_AT + 32..].iter().all(|byte| *byte == 0));
        hex::assert_specimens(include_str!("../specimens/hashes-v1.txt"), &parts);
        assert_eq!(decode(&bytes), Ok(some()));
    }

    #[test]
    fn a_file_that_is_another_ones_torn_or_of_newer_software_is_not_taken() {
        let bytes = some().encode();
        for (n, wrong) in [
            KeptHashes::decode(&bytes, PoolId(1), KEY, OF, 3),
            KeptHashes::decode(&bytes, POOL, ReplicaKey { rid: Rid(3), ..KEY }, OF, 3),
            KeptHashes::decode(&bytes, POOL, KEY, (OF.0, 1), 3),
            KeptHashes::decode(&bytes, POOL, KEY, (SnapId(1), OF.1), 3),
            KeptHashes::decode(&bytes, POOL, KEY, OF, 4),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(wrong, Err(KeptError::Foreign), "{n}");
        }
        for bit in (0..bytes.len() * 8).step_by(7) {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
        let mut newer = bytes.clone();
        newer[8] = 2;
        let crc = crc32c::crc32c(&newer[8..]);
        newer[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&newer), Err(KeptError::NewerVersion(2)));
        assert_eq!(decode(&bytes[..HEAD]), Err(KeptError::BadChecksum));
        assert_eq!(decode(&[]), Err(KeptError::NotHashes));
    }

    /// A grain is what a reader sees: never written, zeroed and past the end are one.
    #[test]
    fn grains_are_equal_exactly_if_they_read_the_same() {
        let key = [9; 16];
        let (absent, zero) = (block_hash(&key, &[]), block_hash(&key, &[0; 4096]));
        let data = |byte: u8| block_hash(&key, &[byte; 4096]);
        assert_eq!(grains_of(&key, &[absent, zero, absent]), [Grain::Zero]);
        let short = grains_of(&key, &[data(1)]);
        let mut long = vec![zero; BLOCKS];
        long[0] = data(1);
        assert_eq!(grains_of(&key, &long), short);
        long[15] = absent;
        assert_eq!(grains_of(&key, &long), short);
        long.swap(0, 1);
        assert_ne!(grains_of(&key, &long), short, "at another place");
        long.extend([data(2)]);
        assert_eq!(grains_of(&key, &long).len(), 2);
        assert_ne!(volume_key(VolumeId(1), "a"), volume_key(VolumeId(2), "a"));
        assert_ne!(volume_key(VolumeId(1), "a"), volume_key(VolumeId(1), "b"));
    }

    proptest! {
        #[test]
        fn any_hashes_are_read_back_equal(kinds in proptest::collection::vec((0..3u8, any::<[u8; 16]>()), GRAINS)) {
            let grain = |(kind, hash): (u8, [u8; 16])| match kind {
                0 => Grain::Zero,
                1 => Grain::Hash(hash),
                _ => Grain::Unknown,
            };
            let all = kept(kinds.into_iter().map(grain).collect());
            let bytes = all.encode();
            prop_assert!(bytes.len() <= KEPT_MAX && bytes.len().is_multiple_of(4096));
            prop_assert_eq!(decode(&bytes), Ok(all));
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 8..9000)) {
            bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[8..]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            let _ = decode(&bytes);
        }
    }
}
