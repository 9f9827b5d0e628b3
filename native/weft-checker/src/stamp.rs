//! What stands in a block: who wrote it, for which block, in every sector, so that a mixture is seen as one.
//!
//! Must always hold: a block that reads as a stamp is whole, down to the last byte.

use std::fmt;

use crate::{BLOCK, Rng};

const SECTOR: usize = 512;
const MAGIC: &[u8; 8] = b"weftchk1";

/// What a block holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Nothing but zeroes.
    Zero,
    /// What one write of one run wrote.
    Stamp {
        /// The run.
        run: u64,
        /// The write.
        id: u64,
    },
    /// Something that nobody wrote in this way, in words.
    Other(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Zero => f.write_str("zeroes"),
            Value::Stamp { run, id } => write!(f, "{run:016x}:{id}"),
            Value::Other(text) => f.write_str(text),
        }
    }
}

impl Value {
    /// The reverse of `Display`, zeroes apart.
    #[must_use]
    pub fn parse(text: &str) -> Value {
        let stamp = text.split_once(':').and_then(|(run, id)| {
            let run = (run.len() == 16).then(|| u64::from_str_radix(run, 16).ok())??;
            Some(Value::Stamp { run, id: id.parse().ok()? })
        });
        stamp.unwrap_or_else(|| Value::Other(text.to_owned()))
    }

    /// Whether it is a mixture of several writes.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        matches!(self, Value::Other(text) if text.starts_with("torn"))
    }
}

/// Fills a block with the stamp of one write.
pub fn fill(block: &mut [u8], number: u64, run: u64, id: u64) {
    for (index, sector) in block.chunks_exact_mut(SECTOR).enumerate() {
        let mut filler = Rng(run ^ number.rotate_left(20) ^ id.rotate_left(40) ^ index as u64);
        for word in sector.chunks_exact_mut(8) {
            word.copy_from_slice(&filler.number().to_le_bytes());
        }
        sector[..8].copy_from_slice(MAGIC);
        sector[8..16].copy_from_slice(&run.to_le_bytes());
        sector[16..24].copy_from_slice(&number.to_le_bytes());
        sector[24..32].copy_from_slice(&id.to_le_bytes());
        sector[32..40].copy_from_slice(&(index as u64).to_le_bytes());
        let crc = crc32c::crc32c(&sector[..SECTOR - 4]);
        sector[SECTOR - 4..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// What a block holds that was read as this number.
#[must_use]
pub fn read(block: &[u8], number: u64) -> Value {
    if block.iter().all(|b| *b == 0) {
        return Value::Zero;
    }
    let sectors: Vec<Option<[u64; 4]>> = block.chunks_exact(SECTOR).map(sector).collect();
    match sectors[0] {
        Some([run, at, id, 0])
            if sectors.iter().zip(0..).all(|(s, index)| *s == Some([run, at, id, index])) =>
        {
            if at == number {
                Value::Stamp { run, id }
            } else {
                Value::Other(format!("misplaced: write {id} of block {at}"))
            }
        }
        _ if sectors.iter().any(Option::is_some) => {
            let part = |(sector, bytes): (&Option<[u64; 4]>, &[u8])| match sector {
                Some([_, at, id, index]) if *at == number => format!("{id}.{index}"),
                Some([_, at, id, index]) => format!("{id}.{index}@{at}"),
                None if bytes.iter().all(|b| *b == 0) => "0".to_owned(),
                None => "?".to_owned(),
            };
            let parts: Vec<_> = sectors.iter().zip(block.chunks_exact(SECTOR)).map(part).collect();
            Value::Other(format!("torn: sectors {}", parts.join(" ")))
        }
        _ => Value::Other(format!("foreign bytes {:08x}", crc32c::crc32c(block))),
    }
}

/// Run, block, write and index of a sound sector.
fn sector(bytes: &[u8]) -> Option<[u64; 4]> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let (content, crc) = bytes.split_at(SECTOR - 4);
    (bytes.starts_with(MAGIC) && crc == crc32c::crc32c(content).to_le_bytes())
        .then(|| Some([word(8)?, word(16)?, word(24)?, word(32)?]))?
}

const _: () = assert!(BLOCK.is_multiple_of(SECTOR));

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(number: u64, id: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        fill(&mut block, number, 7, id);
        block
    }

    #[test]
    fn a_whole_block_reads_as_its_stamp() {
        assert_eq!(read(&stamped(5, 9), 5), Value::Stamp { run: 7, id: 9 });
        assert_eq!(read(&vec![0; BLOCK], 5), Value::Zero);
        assert_eq!(Value::parse("0000000000000007:9"), Value::Stamp { run: 7, id: 9 });
        assert_eq!(
            Value::parse(&Value::Stamp { run: u64::MAX, id: 0 }.to_string()),
            Value::Stamp { run: u64::MAX, id: 0 }
        );
    }

    #[test]
    fn every_damage_is_seen() {
        let good = stamped(5, 9);
        for at in [0, 8, 100, 511, 2048, 4095] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(read(&bad, 5).is_torn(), "byte {at}");
        }
        let mut mixed = good.clone();
        mixed[1024..1536].copy_from_slice(&stamped(5, 10)[1024..1536]);
        assert_eq!(
            read(&mixed, 5),
            Value::Other("torn: sectors 9.0 9.1 10.2 9.3 9.4 9.5 9.6 9.7".to_owned())
        );
        let mut half = good.clone();
        half[2048..].fill(0);
        assert!(read(&half, 5).is_torn());
        let mut turned = good.clone();
        turned.rotate_left(512);
        assert!(read(&turned, 5).is_torn());
        assert_eq!(read(&good, 6), Value::Other("misplaced: write 9 of block 5".to_owned()));
        assert!(matches!(read(&vec![3; BLOCK], 5), Value::Other(text) if text.starts_with("foreign")));
    }
}
