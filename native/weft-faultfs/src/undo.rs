//! What a file was when it was last flushed, as far as it differs from what it is now.
//!
//! Must always hold: a block or size that changes without being durable was noted here before.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry::Vacant;

use rustix::fd::AsFd;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstat, ftruncate, seek};
use rustix::io::{Errno, pread, pwrite};

use crate::store::Mixture;

/// Bytes that are kept or lost together.
pub(crate) const BLOCK: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub(crate) struct Undo {
    /// The durable size.
    size: u64,
    /// Durable content of changed blocks, filled up with zeroes; none is a hole.
    blocks: BTreeMap<u64, Option<Box<[u8; 4096]>>>,
}

/// What became of something that was volatile when the power went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) blocks_dropped: u64,
    pub(crate) blocks_kept: u64,
    pub(crate) sizes_dropped: u64,
    pub(crate) sizes_kept: u64,
}

impl Undo {
    /// Of a file whose present state is durable.
    pub(crate) fn of(file: impl AsFd) -> Result<Undo, Errno> {
        Ok(Undo { size: size_of(file)?, blocks: BTreeMap::new() })
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Notes what stands in a range that is about to change; `holes` says whether also a hole will change.
    pub(crate) fn note(&mut self, file: impl AsFd, start: u64, end: u64, holes: bool) -> Result<(), Errno> {
        let (first, last) = (start / BLOCK, end.div_ceil(BLOCK));
        let mut block = first;
        while block < last {
            let (data, data_end) = next_data(&file, block, last)?;
            if holes {
                for hole in block..data {
                    self.blocks.entry(hole).or_insert(None);
                }
            }
            for n in data..data_end {
                if let Vacant(place) = self.blocks.entry(n) {
                    let mut content = Box::new([0; 4096]);
                    read_up_to(&file, &mut *content, n * BLOCK)?;
                    place.insert(Some(content));
                }
            }
            block = data_end;
        }
        Ok(())
    }

    /// A range was written durably, and with it the size that it needs.
    pub(crate) fn durable(&mut self, start: u64, end: u64) {
        for block in start / BLOCK..end.div_ceil(BLOCK) {
            self.blocks.remove(&block);
        }
        self.size = self.size.max(end);
    }

    /// Puts the file back to what was durable, but for what the mixture keeps.
    pub(crate) fn restore(self, file: impl AsFd, mixture: &mut Mixture) -> Result<Fate, Errno> {
        let mut fate = Fate::default();
        let now = size_of(&file)?;
        let mut size = self.size;
        if now != self.size {
            if mixture.keeps() {
                size = now;
                fate.sizes_kept += 1;
            } else {
                fate.sizes_dropped += 1;
            }
        }
        for (block, content) in self.blocks {
            if mixture.keeps() {
                fate.blocks_kept += 1;
                continue;
            }
            fate.blocks_dropped += 1;
            match content {
                Some(content) => write_all(&file, &*content, block * BLOCK)?,
                None => {
                    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(&file, punch, block * BLOCK, BLOCK)?;
                }
            }
        }
        ftruncate(&file, size)?;
        Ok(fate)
    }
}

/// The next run of blocks with data at or after `block`, up to `last`; an empty run at `last` if there is none.
pub(crate) fn next_data(file: impl AsFd, block: u64, last: u64) -> Result<(u64, u64), Errno> {
    let data = match seek(&file, SeekFrom::Data(block * BLOCK)) {
        Ok(at) => at,
        Err(Errno::NXIO) => return Ok((last, last)),
        Err(errno) => return Err(errno),
    };
    let hole = seek(&file, SeekFrom::Hole(data))?;
    let begin = (data / BLOCK).clamp(block, last);
    Ok((begin, hole.div_ceil(BLOCK).clamp(begin, last)))
}

/// Bytes of a range that have no room on the disk yet.
pub(crate) fn room_wanted(file: impl AsFd, start: u64, end: u64) -> Result<u64, Errno> {
    let stat = fstat(&file)?;
    let (size, allocated) = (positive(stat.st_size), positive(stat.st_blocks) * 512);
    // Room that was reserved reads as a hole. A file of which all is reserved needs none within its size.
    let (mut block, last) = if allocated >= size && size > 0 {
        (start.max(size) / BLOCK, end.div_ceil(BLOCK))
    } else {
        (start / BLOCK, end.div_ceil(BLOCK))
    };
    let mut wanted = 0;
    while block < last {
        let (data, data_end) = next_data(&file, block, last)?;
        wanted += (data - block) * BLOCK;
        block = data_end;
    }
    Ok(wanted)
}

/// Reads as much as there is.
pub(crate) fn read_up_to(file: impl AsFd, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buf.len() {
        match pread(&file, &mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

pub(crate) fn write_all(file: impl AsFd, bytes: &[u8], offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match pwrite(&file, &bytes[done..], offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

pub(crate) fn size_of(file: impl AsFd) -> Result<u64, Errno> {
    Ok(positive(fstat(file)?.st_size))
}

/// Sizes and counts of a stat are signed, and never negative.
pub(crate) fn positive(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
