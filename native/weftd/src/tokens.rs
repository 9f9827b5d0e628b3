//! The completions' tokens: who asked the driver for what.
//!
//! Must always hold: a token names one part of the daemon, and within it one connection or file.

use weft_io::driver::TokenSpace;

/// Which part of the daemon a completion belongs to: the token's highest byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Exports: listeners and clients of guests.
    Export,
    /// Connections to and from other hosts.
    Link,
    /// A pool's disk I/O.
    Pool,
}

const PART_SHIFT: u32 = 56;
const WHAT_SHIFT: u32 = 48;

impl Part {
    const ALL: [Part; 3] = [Part::Export, Part::Link, Part::Pool];

    /// A token of this part: `what` is done, for the part's number `index` (below 2^48).
    #[must_use]
    pub fn token(self, what: u8, index: u64) -> u64 {
        assert!(index < 1 << WHAT_SHIFT, "index {index} does not fit into a token");
        ((self as u64 + 1) << PART_SHIFT) | (u64::from(what) << WHAT_SHIFT) | index
    }

    /// The tokens of one of this part's `what`, as weft-io knows them.
    #[must_use]
    pub fn space(self, what: u8) -> TokenSpace {
        TokenSpace(u16::from_be_bytes([self as u8 + 1, what]))
    }

    /// A part's token taken apart: (part, what, index); none for tokens of nobody.
    #[must_use]
    pub fn of(token: u64) -> Option<(Part, u8, u64)> {
        let [part, what, ..] = token.to_be_bytes();
        let part = *Part::ALL.get(usize::from(part).checked_sub(1)?)?;
        Some((part, what, token & ((1 << WHAT_SHIFT) - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_apart_as_it_was_put_together() {
        for part in Part::ALL {
            assert_eq!(Part::of(part.token(255, (1 << 48) - 1)), Some((part, 255, (1 << 48) - 1)));
            assert_eq!(Part::of(part.token(0, 0)), Some((part, 0, 0)));
        }
        assert_eq!(Part::of(0), None);
        assert_eq!(Part::of(u64::MAX), None);
    }
}
