//! A fuzzer's bytes as a source of choices.
//!
//! Must always hold: it never ends and never fails; after the last byte every choice is the first one, so that a
//! shorter input is a shorter plot.

use weft_proto::message::MAX_DATA;
use weft_proto::payload::BLOCK;

/// Takes choices off the front of a fuzzer's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of it.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { rest: bytes }
    }

    /// True when nothing is left.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is left, without taking it.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// At most `len` bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        head
    }

    /// Exactly `N` bytes, zeroes where there are none.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let head = self.take(N);
        out[..head.len()].copy_from_slice(head);
        out
    }

    /// Any byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// Any number of 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Any number of 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Any number of 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Any number of 128 bits.
    pub fn u128(&mut self) -> u128 {
        u128::from_le_bytes(self.array())
    }

    /// Yes or no.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// One in `n`, from one byte.
    pub fn one_in(&mut self, n: u8) -> bool {
        self.u8() % n == n - 1
    }

    /// Below `n`, which is not zero.
    pub fn below(&mut self, n: usize) -> usize {
        if n <= 256 { usize::from(self.u8()) % n } else { usize::from(self.u16()) % n }
    }

    /// One of these.
    pub fn pick<'b, T>(&mut self, of: &'b [T]) -> &'b T {
        &of[self.below(of.len())]
    }

    /// A number where mistakes live: small, near a power of two, near a limit of the formats, or any.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            kind @ 0..=127 => u64::from(kind),
            128..=159 => u64::from(self.u16()),
            160..=191 => (1u64 << (self.u8() % 64)).wrapping_add(u64::from(self.u8())).wrapping_sub(2),
            192..=207 => u64::MAX - u64::from(self.u8()),
            208..=223 => u64::from(self.u16()) * BLOCK,
            224..=231 => MAX_DATA.wrapping_sub(u64::from(self.u8())),
            _ => self.u64(),
        }
    }

    /// The same in 32 bits.
    pub fn number_u32(&mut self) -> u32 {
        let number = self.number();
        u32::try_from(number).unwrap_or(u32::MAX - u32::try_from(number & 0xff).unwrap_or(0))
    }
}
