//! What a replica keeps durably beside its data (protocol.md 4.3): made from a checkpoint, changed by log records.
//!
//! Must always hold:
//! * `promised` never decreases (I3), nor does the stamp of a region that the replica has (I8): applying the log again
//!   from any earlier record on changes nothing;
//! * a stamp or a seal that is not in the log does not exist.

use alloc::vec::Vec;

use crate::ids::{Epoch, Generation, Rid, SessionId, VolumeId};
use crate::images::{Image, Images};
use crate::log::LogRecord;
use crate::record::REGIONS_MAX;

/// The durable state of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    /// The volume.
    pub volume: VolumeId,
    /// The replica's number.
    pub rid: Rid,
    /// Size in bytes.
    pub size: u64,
    /// Regions are `1 << region_shift` bytes.
    pub region_shift: u8,
    /// The promised epoch.
    pub promised: Epoch,
    /// The session that was promised.
    pub session: SessionId,
    /// The record under which it was promised, as JSON; empty before the first promise.
    pub record: Vec<u8>,
    /// Highest generation that an owner declared sealed.
    pub sealed: Generation,
    /// Region → generation of the last interval in which it was written (the region generation map).
    pub rgm: Vec<Generation>,
    /// The kernel's boot id at the last start.
    pub boot_id: u128,
    /// The device's generation at the last start.
    pub device_generation: u64,
    /// The last stop flushed everything.
    pub clean_stop: bool,
    /// Its images; each has a file of its own beside the checkpoint.
    pub images: Images,
}

impl Durable {
    /// A replica that was never promised to anyone.
    #[must_use]
    pub fn new(volume: VolumeId, rid: Rid, size: u64, region_shift: u8) -> Durable {
        let mut durable = Durable {
            volume,
            rid,
            size: 0,
            region_shift,
            promised: Epoch(0),
            session: SessionId(0),
            record: Vec::new(),
            sealed: Generation::NEVER,
            rgm: Vec::new(),
            boot_id: 0,
            device_generation: 0,
            clean_stop: false,
            images: Images::default(),
        };
        durable.grow(size);
        durable
    }

    /// A replica that was never promised to anyone and has what an image has: all of it as of the image's generation, and
    /// sealed.
    #[must_use]
    pub fn of_image(volume: VolumeId, rid: Rid, image: &Image) -> Durable {
        let mut durable = Durable::new(volume, rid, image.size, image.region_shift);
        let regions = image.written.iter().filter(|region| (*region as usize) < durable.rgm.len()).collect();
        durable.apply(&LogRecord::Stamp { generation: image.generation, regions });
        durable.apply(&LogRecord::Sealed { generation: image.generation });
        durable
    }

    /// What a checkpoint of the replica is made of: all but what images have, of which it has the names.
    #[must_use]
    pub fn without_images(&self) -> Durable {
        let images = self.images.names();
        Durable {
            volume: self.volume,
            rid: self.rid,
            size: self.size,
            region_shift: self.region_shift,
            promised: self.promised,
            session: self.session,
            record: self.record.clone(),
            sealed: self.sealed,
            rgm: self.rgm.clone(),
            boot_id: self.boot_id,
            device_generation: self.device_generation,
            clean_stop: self.clean_stop,
            images,
        }
    }

    /// Can this record of the log be this replica's? What a disk kept has the right checksums and may still say what
    /// no writer says: a size with more regions than a replica has memory for.
    #[must_use]
    pub fn admits(&self, record: &LogRecord) -> bool {
        match record {
            LogRecord::Create { size, .. } | LogRecord::Grow { size, .. } => {
                size.div_ceil(1 << self.region_shift) <= REGIONS_MAX
            }
            _ => true,
        }
    }

    /// Takes in one record of the log.
    pub fn apply(&mut self, record: &LogRecord) {
        match record {
            LogRecord::Create { size, .. } => self.grow(*size),
            LogRecord::Grow { size, from, generation } => {
                self.grow(*size);
                if from < size {
                    let regions = self.regions_of(*from, size - from);
                    for stamp in &mut self.rgm[*regions.start() as usize..=*regions.end() as usize] {
                        *stamp = (*stamp).max(*generation);
                    }
                }
            }
            LogRecord::Cut { size } => self.cut(*size),
            LogRecord::Fold { region_shift } => {
                while self.region_shift < *region_shift {
                    self.rgm =
                        self.rgm.chunks(2).map(|of| of.iter().copied().max().unwrap_or_default()).collect();
                    self.region_shift += 1;
                }
            }
            LogRecord::Promise { epoch, session, record } => {
                if *epoch >= self.promised {
                    self.promised = *epoch;
                    self.session = *session;
                    self.record = record.clone();
                }
            }
            LogRecord::Stamp { generation, regions } => {
                for region in regions {
                    if let Some(stamp) = self.rgm.get_mut(*region as usize) {
                        *stamp = (*stamp).max(*generation);
                    }
                }
            }
            LogRecord::Sealed { generation } => self.sealed = self.sealed.max(*generation),
            LogRecord::Identity { boot_id, device_generation, clean_stop } => {
                self.boot_id = *boot_id;
                self.device_generation = *device_generation;
                self.clean_stop = *clean_stop;
            }
            LogRecord::Image { image, attempt, change } => {
                let shape = (self.size, self.region_shift);
                self.images.apply((*image, *attempt), change, shape, &self.rgm);
            }
            LogRecord::Trashed => {}
        }
    }

    fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
        let regions = usize::try_from(self.regions_len()).expect("at most 2^20 regions");
        if self.rgm.len() < regions {
            self.rgm.resize(regions, Generation::NEVER);
        }
    }

    fn cut(&mut self, size: u64) {
        self.size = self.size.min(size);
        let regions = usize::try_from(self.regions_len()).expect("at most 2^20 regions");
        self.rgm.truncate(regions);
    }

    fn regions_len(&self) -> u64 {
        self.size.div_ceil(1 << self.region_shift)
    }

    /// The regions that a byte range touches.
    #[must_use]
    pub fn regions_of(&self, offset: u64, len: u64) -> core::ops::RangeInclusive<u32> {
        let last = (offset + len.max(1) - 1) >> self.region_shift;
        let region = |r: u64| u32::try_from(r).expect("at most 2^20 regions");
        region(offset >> self.region_shift)..=region(last)
    }

    /// Is what is at this byte known to be the same in two of its images (R29)? Then up to which byte it is. Both read it at the
    /// same place, or both have it and nothing has stamped its region above `since`, the older one's generation.
    #[must_use]
    pub fn unchanged(&self, of: &Image, with: &Image, since: Generation, at: u64) -> Option<u64> {
        if let Some((true, stop)) = self.images.is_shared(of.id, with.id, at) {
            return Some(stop);
        }
        let region = at >> self.region_shift;
        let stop = ((region + 1) << self.region_shift).min(of.size).min(with.size);
        let stamp = *self.rgm.get(usize::try_from(region).ok()?)?;
        // A region without a stamp has been cut off since, or is absent in both.
        (at < stop && stamp != Generation::NEVER && stamp <= since).then_some(stop)
    }

    /// Number of regions stamped above `sealed`.
    #[must_use]
    pub fn unsealed_regions(&self) -> u32 {
        u32::try_from(self.rgm.iter().filter(|g| **g > self.sealed).count()).expect("at most 2^20 regions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R26: a region that is made of two is as new as the newer one.
    #[test]
    fn regions_are_folded_by_the_newest_stamp() {
        let mut durable = Durable::new(VolumeId(1), Rid(1), (5 << 16) + 4096, 16);
        for (region, stamp) in [(0, 3), (1, 9), (4, 2), (5, 7)] {
            durable.apply(&LogRecord::Stamp { generation: Generation(stamp), regions: alloc::vec![region] });
        }
        let stamps = |durable: &Durable| durable.rgm.iter().map(|g| g.0).collect::<Vec<_>>();
        for _ in 0..2 {
            durable.apply(&LogRecord::Fold { region_shift: 17 });
            assert_eq!((durable.region_shift, stamps(&durable)), (17, [9, 0, 7].to_vec()));
        }
        durable.apply(&LogRecord::Fold { region_shift: 20 });
        assert_eq!((durable.region_shift, stamps(&durable)), (20, [9].to_vec()));
        durable.apply(&LogRecord::Fold { region_shift: 16 });
        assert_eq!(durable.region_shift, 20, "regions never become smaller");
    }

    #[test]
    fn a_size_that_no_writer_asks_for_is_not_admitted() {
        // Its log block has a right checksum; taken in, it would ask for more memory than there is.
        let durable = Durable::new(VolumeId(1), Rid(1), 1 << 20, 20);
        let grow = |size| LogRecord::Grow { size, from: 1 << 20, generation: Generation(7) };
        assert!(durable.admits(&grow(1 << 40)));
        assert!(!durable.admits(&grow((1 << 40) + 1)));
        assert!(!durable.admits(&LogRecord::Create { size: u64::MAX, region_shift: 20 }));
        assert!(durable.admits(&LogRecord::Trashed));
    }

    /// R18: what GROW made absent is stamped, also where the replica was larger than the record already.
    #[test]
    fn a_growth_stamps_from_the_records_size_on_and_a_cut_forgets_stamps_with_the_regions() {
        let mut durable = Durable::new(VolumeId(1), Rid(1), 8 << 16, 16);
        let stamps = |durable: &Durable| durable.rgm.iter().map(|g| g.0).collect::<Vec<_>>();
        durable.apply(&LogRecord::Stamp { generation: Generation(9), regions: alloc::vec![5] });
        // The record has five regions and a half.
        let grow = LogRecord::Grow { size: 10 << 16, from: (5 << 16) + (1 << 15), generation: Generation(7) };
        for _ in 0..2 {
            durable.apply(&grow);
            assert_eq!(stamps(&durable), [0, 0, 0, 0, 0, 9, 7, 7, 7, 7]);
            assert_eq!(durable.size, 10 << 16);
        }
        for _ in 0..2 {
            durable.apply(&LogRecord::Cut { size: (6 << 16) + 4096 });
            assert_eq!((durable.size, stamps(&durable)), ((6 << 16) + 4096, [0, 0, 0, 0, 0, 9, 7].to_vec()));
        }
        durable.apply(&LogRecord::Cut { size: 8 << 16 });
        assert_eq!(durable.size, (6 << 16) + 4096, "a cut makes nothing larger");
        // A part of the log is applied again: the same comes of it.
        let before = durable.clone();
        durable.apply(&grow);
        durable.apply(&LogRecord::Cut { size: (6 << 16) + 4096 });
        assert_eq!(durable, before);
    }
}
