//! Little-endian bytes read with distrust and written without surprises, for the wire, the log, the checkpoint
//! and the superblock.
//!
//! Must always hold: a reader never panics and never allocates more than the bytes that are really there; a
//! value that does not fit is an error and not a truncation.

use alloc::vec::Vec;

/// The bytes ended before the value did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short;

/// Reads values off the front of a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Short> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Short)?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Short)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Short> {
        self.array::<1>().map(|b| b[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128, Short> {
        self.array().map(u128::from_le_bytes)
    }

    /// What was not read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn is_done(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Appends values to a vector.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn u128(&mut self, value: u128) {
        self.put(&value.to_le_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// A length as u32; longer is a bug of ours, since every limit here is far below.
pub(crate) fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("lengths here are bounded far below 4 GiB")
}

/// A u32 as a length: `usize` has at least 32 bits on every platform weft runs on.
pub(crate) fn as_len(value: u32) -> usize {
    usize::try_from(value).expect("usize has at least 32 bits")
}

/// Hexadecimal text of test specimens.
#[cfg(test)]
pub(crate) mod hex {
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;

    pub(crate) fn encode(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Compares `name hex` lines with the specimen file of a release; on a difference the message holds the
    /// text that the file would need, for a *new* format version.
    pub(crate) fn assert_specimens(file: &str, frames: &[(String, Vec<u8>)]) {
        let mut text = String::new();
        for (name, bytes) in frames {
            text += &format!("{name} {}\n", encode(bytes));
        }
        let kept: String = file.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
        assert!(kept == text, "the bytes of a released format changed; they would now be:\n{text}");
    }
}
