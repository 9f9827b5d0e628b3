//! Bytes of a guest as floor 0 sees them: opaque, cheap to clone, 4 KiB blocks.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use siphasher::sip128::SipHasher24;

/// The unit of checksums, stamps' data and everything that the protocol promises atomically equal: 4 KiB.
pub const BLOCK: u64 = 4096;

/// A private buffer (protocol.md R12): cloning shares it, and it never changes while shared.
pub trait Payload: Clone + fmt::Debug {
    /// A new buffer of `len` zero bytes.
    fn zeroed(len: usize) -> Self;
    /// Length in bytes.
    fn len(&self) -> usize;
    /// True when there is no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The bytes.
    fn bytes(&self) -> &[u8];
    /// The bytes, to be changed: a shared buffer is copied first.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// A view of `len` bytes from `start`; shares the buffer. Panics when out of range: a caller's bug.
    #[must_use]
    fn slice(&self, start: usize, len: usize) -> Self;
}

/// The keyed hash of a block's bytes, by which members compare it: SipHash-2-4 with 128 bits of result, the same on every
/// host of every release. Of a block without data it is that of no bytes.
#[must_use]
pub fn block_hash(key: &[u8; 16], bytes: &[u8]) -> [u8; 16] {
    SipHasher24::new_with_key(key).hash(bytes).as_bytes()
}

/// A payload on the heap, for the simulator and for tests.
///
/// Equal are those of equal bytes, whatever they are a slice of.
#[derive(Clone)]
pub struct HeapPayload {
    bytes: Arc<Vec<u8>>,
    start: usize,
    len: usize,
}

impl PartialEq for HeapPayload {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for HeapPayload {}

impl fmt::Debug for HeapPayload {
    /// Short: histories and failed assertions are read by people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes {:08x}", self.len, crc32c::crc32c(self.bytes()))
    }
}

impl From<Vec<u8>> for HeapPayload {
    fn from(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        HeapPayload { bytes: Arc::new(bytes), start: 0, len }
    }
}

impl Payload for HeapPayload {
    fn zeroed(len: usize) -> Self {
        alloc::vec![0u8; len].into()
    }
    fn len(&self) -> usize {
        self.len
    }
    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        if Arc::get_mut(&mut self.bytes).is_none() {
            *self = self.bytes().to_vec().into();
        }
        let range = self.start..self.start + self.len;
        &mut Arc::get_mut(&mut self.bytes).expect("just made unique")[range]
    }
    fn slice(&self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len, "slice {start}+{len} of {}", self.len);
        HeapPayload { bytes: self.bytes.clone(), start: self.start + start, len }
    }
}

/// CRC32C of each 4 KiB block of `bytes`, whose length is a multiple of [`BLOCK`].
#[must_use]
pub fn block_crcs(bytes: &[u8]) -> Vec<u32> {
    assert!((bytes.len() as u64).is_multiple_of(BLOCK), "{} bytes are not whole blocks", bytes.len());
    bytes.chunks_exact(4096).map(crc32c::crc32c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};

    #[test]
    fn payloads_are_equal_by_their_bytes() {
        let long: HeapPayload = vec![7; 8192].into();
        let block: HeapPayload = vec![7; 4096].into();
        assert_eq!(long.slice(4096, 4096), block);
        assert_ne!(long, block);
        assert_ne!(block, HeapPayload::zeroed(4096));
        assert!(format!("{long:?}").len() < 40, "who reads a failed assertion wants to see its end");
    }
}
