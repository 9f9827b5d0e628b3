//! What the initiator and its peers say to each other: a head of 64 bytes, then the data if there is any.
//!
//! Must always hold: a 4 KiB write is 4,160 bytes and its answer 64, as with the real protocol.

pub(crate) const HEAD_LEN: usize = 64;
/// The longest piece of data in one message.
pub(crate) const MAX_DATA: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Verb {
    Write = 1,
    Read = 2,
    Done = 3,
    Failed = 4,
}

/// `len` is that of the data that follows, or for `Read` of the data that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) verb: Verb,
    pub(crate) tag: u32,
    pub(crate) len: u32,
    pub(crate) offset: u64,
}

impl Head {
    pub(crate) fn to_bytes(self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[0] = self.verb as u8;
        bytes[4..8].copy_from_slice(&self.tag.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(bytes: &[u8; HEAD_LEN]) -> Option<Head> {
        let verb = match bytes[0] {
            1 => Verb::Write,
            2 => Verb::Read,
            3 => Verb::Done,
            4 => Verb::Failed,
            _ => return None,
        };
        let head = Head {
            verb,
            tag: u32::from_le_bytes(*bytes[4..].first_chunk()?),
            len: u32::from_le_bytes(*bytes[8..].first_chunk()?),
            offset: u64::from_le_bytes(*bytes[16..].first_chunk()?),
        };
        (head.data_len() <= MAX_DATA && usize::try_from(head.len).ok()? <= MAX_DATA).then_some(head)
    }

    /// Bytes that follow the head.
    pub(crate) fn data_len(self) -> usize {
        match self.verb {
            Verb::Read | Verb::Failed => 0,
            Verb::Write | Verb::Done => usize::try_from(self.len).unwrap_or(usize::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        for verb in [Verb::Write, Verb::Read, Verb::Done, Verb::Failed] {
            let head = Head { verb, tag: 0xdead_beef, len: 4096, offset: 1 << 40 };
            assert_eq!(Head::parse(&head.to_bytes()), Some(head));
        }
    }

    #[test]
    fn nonsense_is_no_head() {
        assert_eq!(Head::parse(&[0; HEAD_LEN]), None);
        let long = Head { verb: Verb::Write, tag: 0, len: 1 << 21, offset: 0 };
        assert_eq!(Head::parse(&long.to_bytes()), None);
    }
}
