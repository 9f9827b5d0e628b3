//! Which images a replica has, and what is in each (protocol.md 4.19, R28; docs/model.md, `image` and findings 18 to 26):
//! made and changed by records of the log, and asked by whoever moves the bytes.
//!
//! Images are taken with nothing in them. They form a chain by age: what one lacks is in the next newer one that has it,
//! in the end in the head. Before the head changes somewhere, the newest image that stays gets what was there, unless
//! somebody has it. When one goes, the next older one gets what it had. So it does when the data of one is destroyed, which
//! stays without any: what differs from it is told by hashes then.
//!
//! Whole images stand outside the chain: they have all of their snapshot from the moment on in which the log knows them, and
//! nobody else reads through them. They change nothing of what others need, and go at once.
//!
//! Must always hold:
//! * what an image has is what records in the log say, neither what lies in a file nor what stamps suggest;
//! * nothing is put into an image that is being deleted, and nobody older stops reading from it before it is gone;
//! * a region that was never stamped when an image was taken is absent in it, and in all older ones: no file tells of it;
//! * a record of one attempt does nothing to the image of another one, so that a part of the log can be taken in again.
//!
//! Regions are of the image's own size, as the head's was then: later ones are never finer (R26).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::ids::{Epoch, Generation, SnapId};

/// Regions and segments: bytes of a segment's file.
pub const SEGMENT_SHIFT: u8 = 26;
/// So many of its newest images a checkpoint of a replica names: more than a volume has snapshots.
pub const NAMED_MAX: usize = 1024;
/// Of so many images that are gone a replica remembers which they were.
pub const GONE_MAX: usize = 1024;

/// What a record of the log says of one attempt's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageChange {
    /// It was taken: PREPARE. From then on nothing of its generation or an older one is executed.
    Prepared {
        /// The generation of the barrier.
        generation: Generation,
        /// The owner's epoch.
        epoch: Epoch,
        /// The store's incarnation.
        incarnation: u64,
        /// How it has what it has.
        form: ImageForm,
    },
    /// Its snapshot stands in the store.
    Ready {
        /// What the store says of it.
        note: Vec<u8>,
    },
    /// It has these regions, durably.
    Has {
        /// In its own numbers.
        regions: Vec<u32>,
    },
    /// It is to go; older ones still read from it.
    Deleting,
    /// Nobody reads from it any more.
    Gone,
    /// Hashes of all that it holds are kept, durably: its data is to go, and it stays (see [`crate::hashes`]).
    Destroyed,
    /// Its data goes: nobody reads from it any more.
    Emptied,
}

/// How an image comes to have what its snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageForm {
    /// It begins with nothing and stands in the chain.
    Chained,
    /// It has everything: the pool's own snapshot of the head.
    Whole,
    /// It has everything, and got it from other members: it says nothing of what this replica held.
    Copied,
}

/// How far an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageState {
    /// Taken.
    Prepared,
    /// Named by the store.
    Ready,
    /// Serves older images only.
    Deleting,
    /// As that, and what is left in the end are hashes of what it held.
    Destroyed,
}

impl ImageState {
    /// Does it have its data, and get what the head loses? Nothing is put into any other one.
    #[must_use]
    pub fn keeps(self) -> bool {
        matches!(self, ImageState::Prepared | ImageState::Ready)
    }

    /// Can be told what differs from it (R29)?
    #[must_use]
    pub fn compares(self) -> bool {
        matches!(self, ImageState::Ready | ImageState::Destroyed)
    }
}

/// A set of regions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Regions(pub(crate) Vec<u64>);

impl Regions {
    fn has(&self, region: u32) -> bool {
        self.0.get(region as usize / 64).is_some_and(|word| word & (1 << (region % 64)) != 0)
    }

    pub(crate) fn add(&mut self, region: u32) {
        let word = region as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (region % 64);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        let bits = |(n, word): (usize, &u64)| {
            let (first, word) = (u32::try_from(n * 64).expect("at most 2^20 regions"), *word);
            (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| first + bit)
        };
        self.0.iter().enumerate().flat_map(bits)
    }
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Of which snapshot.
    pub id: SnapId,
    /// Of which attempt at it.
    pub attempt: u64,
    /// The barrier's generation.
    pub generation: Generation,
    /// The owner's epoch then.
    pub epoch: Epoch,
    /// The store's incarnation then.
    pub incarnation: u64,
    /// Size in bytes.
    pub size: u64,
    /// Regions are `1 << region_shift` bytes.
    pub region_shift: u8,
    /// In the chain or not.
    pub form: ImageForm,
    /// How far it is.
    pub state: ImageState,
    /// What the store says of the snapshot, for a repair; empty before it is READY here.
    pub note: Vec<u8>,
    pub(crate) has: Regions,
    /// Regions that had been stamped.
    pub(crate) written: Regions,
}

impl Image {
    /// This replica took it itself, and has not got it from others (R29, R30).
    #[must_use]
    pub fn took(&self) -> bool {
        self.form != ImageForm::Copied
    }

    /// It stands outside the chain and has everything itself.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.form != ImageForm::Chained
    }

    /// It stands in the chain, and gets what others hand down and the head gives up.
    fn takes_in(&self) -> bool {
        !self.is_whole() && self.state.keeps()
    }

    /// Its regions that a range of bytes touches.
    fn regions_of(&self, offset: u64, len: u64) -> core::ops::Range<u32> {
        let end = (offset + len).min(self.size).div_ceil(1 << self.region_shift);
        let region = |region: u64| u32::try_from(region).expect("at most 2^20 regions");
        let first = (offset >> self.region_shift).min(end);
        region(first)..region(end)
    }

    /// Number of its regions.
    #[must_use]
    pub fn regions_len(&self) -> usize {
        usize::try_from(self.size.div_ceil(1 << self.region_shift)).expect("at most 2^20 regions")
    }

    /// Every region of it that was ever written is in its own files.
    fn is_complete(&self) -> bool {
        if self.is_whole() {
            return true;
        }
        let has = |n: usize| self.has.0.get(n).copied().unwrap_or_default();
        self.written.0.iter().enumerate().all(|(n, written)| written & !has(n) == 0)
    }

    /// Is there something to be done for it before its data goes?
    fn is_going(&self) -> bool {
        match self.state {
            ImageState::Deleting => true,
            ImageState::Destroyed => self.has.0.iter().any(|word| *word != 0),
            ImageState::Prepared | ImageState::Ready => false,
        }
    }

    /// The regions that are in files of its own.
    pub(crate) fn own_regions(&self) -> Vec<u32> {
        if self.is_whole() { self.written.iter().collect() } else { self.has.iter().collect() }
    }

    /// Bytes of the regions that are in files of its own.
    #[must_use]
    pub fn own_bytes(&self) -> u64 {
        let regions = match self.is_whole() {
            true if self.state == ImageState::Destroyed => return 0,
            true => &self.written,
            false => &self.has,
        };
        let count: u64 = regions.0.iter().map(|word| u64::from(word.count_ones())).sum();
        (count << self.region_shift).min(self.size)
    }

    /// Its data is gone: nothing but hashes of it is left here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state == ImageState::Destroyed && !self.is_going()
    }

    /// The first byte from here on of a region that was ever written to, and where that region ends; none: there is none.
    #[must_use]
    pub fn written_from(&self, offset: u64) -> Option<(u64, u64)> {
        let first = usize::try_from(offset >> self.region_shift).ok()?;
        let words = self.written.0.iter().enumerate().skip(first / 64);
        let mut found = words.filter_map(|(n, word)| {
            let from = if n == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
            let bit = (word & from).trailing_zeros();
            (bit < 64).then(|| n as u64 * 64 + u64::from(bit))
        });
        let start = found.next()? << self.region_shift;
        let end = (start + (1 << self.region_shift)).min(self.size);
        // The last region may be cut short.
        let from = start.max(offset);
        (from < end).then_some((from, end))
    }

    /// Where a region begins, in bytes.
    fn start(&self, region: u32) -> u64 {
        u64::from(region) << self.region_shift
    }

    /// The range of one of its regions, in bytes: the last one may be shorter.
    #[must_use]
    pub fn range(&self, region: u32) -> (u64, u64) {
        let start = self.start(region);
        (start, (self.size - start).min(1 << self.region_shift))
    }

    /// Whether it has what is at this byte, for itself and for older ones.
    fn has_at(&self, offset: u64) -> bool {
        !self.is_whole()
            && offset < self.size
            && self.has.has(u32::try_from(offset >> self.region_shift).expect("a region"))
    }
}

/// Where a region of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the head.
    Head,
    /// In an image's file.
    Image {
        /// Whose.
        image: SnapId,
        /// Or already whose, while that one is being deleted.
        heir: Option<SnapId>,
    },
    /// Nowhere: it was never written to.
    Absent,
}

/// What has to happen next so that a deleted image can go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandDown {
    /// A segment is handed down; then it is logged that the heir has these regions.
    Segment {
        /// From this image.
        image: SnapId,
        /// To this one.
        heir: SnapId,
        /// Which segment.
        segment: u32,
        /// The heir has nothing in that segment and gets the whole file. Until that is logged nothing is put there.
        whole: bool,
        /// Which regions, in the heir's numbers.
        regions: Vec<u32>,
    },
    /// Nobody reads from it: it is logged as gone, then its files are removed.
    Gone(SnapId),
    /// Nobody reads its data: it is logged as empty, then that is removed.
    Empty(SnapId),
}

/// What a checkpoint of a replica says of one of its images, in case that nothing else does any more (R24).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedImage {
    /// Of which snapshot.
    pub id: SnapId,
    /// Of which attempt at it.
    pub attempt: u64,
    /// The barrier's generation.
    pub generation: Generation,
    /// The owner's epoch then.
    pub epoch: Epoch,
    /// The store's incarnation then.
    pub incarnation: u64,
    /// Size in bytes.
    pub size: u64,
    /// Regions are `1 << region_shift` bytes.
    pub region_shift: u8,
    /// How it comes to have what its snapshot holds.
    pub form: ImageForm,
    /// How far it is.
    pub state: ImageState,
    /// Its data is gone.
    pub empty: bool,
}

impl NamedImage {
    fn of(image: &Image) -> NamedImage {
        let Image { id, attempt, generation, epoch, incarnation, size, region_shift, form, state, .. } =
            *image;
        let empty = image.is_empty();
        NamedImage { id, attempt, generation, epoch, incarnation, size, region_shift, form, state, empty }
    }

    /// The image, of which nobody knows what it had. So it is said to have had everything: what its files still hold is verified
    /// when it is read, and all else is damage, for older ones that would read through it as well.
    fn lost(&self) -> Image {
        let NamedImage {
            id,
            attempt,
            generation,
            epoch,
            incarnation,
            size,
            region_shift,
            form,
            state,
            empty,
        } = *self;
        let regions = size.div_ceil(1 << region_shift);
        let mut written = Regions::default();
        (0..u32::try_from(regions).expect("at most 2^20 regions")).for_each(|region| written.add(region));
        let has = if empty { Regions::default() } else { written.clone() };
        let note = Vec::new();
        Image {
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
        }
    }
}

/// All images of a replica that were taken by itself, by age.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    list: Vec<Image>,
    gone: VecDeque<(SnapId, u64)>,
    /// By the checkpoint that this was read from, or is to be written into.
    named: Vec<NamedImage>,
}

impl Images {
    /// The oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Image> {
        self.list.iter()
    }

    /// The image of a snapshot.
    #[must_use]
    pub fn get(&self, id: SnapId) -> Option<&Image> {
        self.list.iter().find(|image| image.id == id)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Attempts whose images are gone, the last one at the end: a repair of the store makes no snapshot of them.
    pub fn gone(&self) -> impl ExactSizeIterator<Item = (SnapId, u64)> {
        self.gone.iter().copied()
    }

    /// Only what a checkpoint of the replica is made of: the newest ones' names, and which are gone.
    #[must_use]
    pub(crate) fn names(&self) -> Images {
        let named = self.list.iter().rev().take(NAMED_MAX).rev().map(NamedImage::of).collect();
        Images { list: Vec::new(), gone: self.gone.clone(), named }
    }

    /// What the checkpoint says that this was read from.
    pub(crate) fn named(&self) -> &[NamedImage] {
        &self.named
    }

    pub(crate) fn set_named(&mut self, named: Vec<NamedImage>) {
        self.named = named;
    }

    /// Everything that was kept beside the log, and the log, have been taken in: those that the checkpoint names, and of which
    /// nothing is known, are damaged, as is what older ones read through them. Which those are.
    pub fn lose_missing(&mut self) -> Vec<SnapId> {
        let named = core::mem::take(&mut self.named);
        let gone =
            |of: &NamedImage| self.gone.iter().any(|(id, attempt)| *id == of.id && *attempt >= of.attempt);
        let known = |of: &NamedImage| self.get(of.id).is_some_and(|image| image.attempt >= of.attempt);
        let lost: Vec<NamedImage> = named.into_iter().filter(|of| !gone(of) && !known(of)).collect();
        for of in &lost {
            self.list.retain(|image| image.id != of.id);
            self.insert(of.lost());
        }
        lost.iter().map(|of| of.id).collect()
    }

    /// As they were kept beside the log, before what the log says since.
    pub fn restore(&mut self, images: Vec<Image>) {
        images.into_iter().for_each(|image| self.insert(image));
    }

    /// As it was kept beside the log.
    pub(crate) fn remember_gone(&mut self, id: SnapId, attempt: u64) {
        self.gone.retain(|(of, _)| *of != id);
        self.gone.push_back((id, attempt));
        if self.gone.len() > GONE_MAX {
            self.gone.pop_front();
        }
    }

    /// One that was copied is there, all of it, durably. No record of the log says so: its slot does.
    pub(crate) fn put_copied(&mut self, image: Image) {
        assert!(!image.took() && self.get(image.id).is_none(), "one image of snapshot {}", image.id);
        self.insert(image);
    }

    /// By age: barriers end intervals, so that each has a generation of its own.
    fn insert(&mut self, image: Image) {
        let older = |other: &Image| (other.generation, other.attempt) <= (image.generation, image.attempt);
        let at = self.list.iter().rposition(older).map_or(0, |at| at + 1);
        self.list.insert(at, image);
    }

    /// Takes in one record of the log. `size`, `region_shift` and `stamps` are the head's at that record. A record that
    /// was taken in before changes nothing.
    pub fn apply(
        &mut self,
        (id, attempt): (SnapId, u64),
        change: &ImageChange,
        (size, region_shift): (u64, u8),
        stamps: &[Generation],
    ) {
        if let ImageChange::Prepared { generation, epoch, incarnation, form } = change {
            if self.get(id).is_some_and(|image| image.attempt >= attempt) {
                return;
            }
            self.list.retain(|image| image.id != id);
            let mut written = Regions::default();
            for (region, _) in (0..).zip(stamps).filter(|(_, stamp)| **stamp != Generation::NEVER) {
                written.add(region);
            }
            self.insert(Image {
                id,
                attempt,
                generation: *generation,
                epoch: *epoch,
                incarnation: *incarnation,
                size,
                region_shift,
                form: *form,
                state: ImageState::Prepared,
                note: Vec::new(),
                has: Regions::default(),
                written,
            });
            return;
        }
        if *change == ImageChange::Gone {
            self.list.retain(|image| (image.id, image.attempt) != (id, attempt));
            return self.remember_gone(id, attempt);
        }
        let of = |image: &&mut Image| (image.id, image.attempt) == (id, attempt);
        let Some(image) = self.list.iter_mut().find(of) else { return };
        match change {
            ImageChange::Prepared { .. } | ImageChange::Gone => {}
            ImageChange::Ready { note } if image.state == ImageState::Prepared => {
                image.state = ImageState::Ready;
                image.note.clone_from(note);
            }
            ImageChange::Ready { .. } => {}
            ImageChange::Has { .. } if image.is_whole() => {}
            ImageChange::Has { regions } => {
                let end = image.regions_len();
                let there = |region: &&u32| (**region as usize) < end;
                regions.iter().filter(there).for_each(|region| image.has.add(*region));
            }
            ImageChange::Deleting => image.state = ImageState::Deleting,
            ImageChange::Destroyed if image.state == ImageState::Ready => image.state = ImageState::Destroyed,
            ImageChange::Emptied if image.state == ImageState::Destroyed => image.has = Regions::default(),
            ImageChange::Destroyed | ImageChange::Emptied => {}
        }
    }

    fn index(&self, id: SnapId) -> Option<usize> {
        self.list.iter().position(|image| image.id == id)
    }

    /// The next older one that stays.
    fn heir(&self, at: usize) -> Option<&Image> {
        self.list[..at].iter().rev().find(|image| image.takes_in())
    }

    /// Where a region of an image is; none if it has no such image or region. To be asked for again at every look.
    #[must_use]
    pub fn place(&self, id: SnapId, region: u32) -> Option<Place> {
        let at = self.index(id)?;
        let image = &self.list[at];
        let offset = image.start(region);
        if offset >= image.size {
            return None;
        }
        if !image.written.has(region) {
            return Some(Place::Absent);
        }
        if image.is_whole() {
            return Some(Place::Image { image: id, heir: None });
        }
        let found = (at..self.list.len()).find(|n| self.list[*n].has_at(offset));
        Some(found.map_or(Place::Head, |n| {
            let going = !self.list[n].state.keeps();
            let heir = self.heir(n).filter(|_| going).map(|heir| heir.id);
            Place::Image { image: self.list[n].id, heir }
        }))
    }

    /// Do two images read what is at this byte at the same place (R29)? Then it is the same for ever, for none of them changes.
    /// And up to which byte that holds. None if one of them is not there. Past its end an image is absent. One whose data was
    /// destroyed reads nowhere any more: the head may have changed since without a place to say so.
    #[must_use]
    pub fn is_shared(&self, of: SnapId, with: SnapId, offset: u64) -> Option<(bool, u64)> {
        let at = |image: &Image| {
            let region = u32::try_from(offset >> image.region_shift).expect("volumes end at 64 TiB");
            let stop = (u64::from(region) + 1) << image.region_shift;
            match self.place(image.id, region).filter(|_| offset < image.size) {
                Some(place) => (place, stop.min(image.size)),
                None => (Place::Absent, stop),
            }
        };
        let (of, with) = (self.get(of)?, self.get(with)?);
        let ((place, stop), (other, end)) = (at(of), at(with));
        let read =
            [of, with].iter().all(|image| image.state != ImageState::Destroyed) || place == Place::Absent;
        Some((place == other && read, stop.min(end)))
    }

    /// Which image has to get which of its regions before the head changes in this range (R28).
    #[must_use]
    pub fn needs(&self, offset: u64, len: u64) -> Option<(SnapId, Vec<u32>)> {
        let newest = self.list.iter().rposition(Image::takes_in)?;
        let image = &self.list[newest];
        let missing = |region: &u32| {
            let start = image.start(*region);
            image.written.has(*region) && !self.list[newest..].iter().any(|image| image.has_at(start))
        };
        let regions: Vec<u32> = image.regions_of(offset, len).filter(missing).collect();
        (!regions.is_empty()).then_some((image.id, regions))
    }

    /// The first byte from here on that the newest image that stays has to get before the head changes there, or goes.
    #[must_use]
    pub fn missing_from(&self, offset: u64) -> Option<u64> {
        let newest = self.list.iter().rposition(Image::takes_in)?;
        let image = &self.list[newest];
        let first = usize::try_from(offset >> image.region_shift).ok()?;
        let words = image.written.0.iter().enumerate().skip(first / 64);
        let lacks = words.filter_map(|(n, written)| {
            let has = image.has.0.get(n).copied().unwrap_or_default();
            let from = if n == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
            let lacks = written & !has & from;
            (lacks != 0).then_some((n, lacks))
        });
        let bits = lacks.flat_map(|(n, lacks)| {
            let first = u64::try_from(n * 64).expect("at most 2^20 regions");
            (0..64).filter(move |bit| lacks & (1 << bit) != 0).map(move |bit| first + bit)
        });
        let mut starts = bits.map(|region| region << image.region_shift);
        starts.find(|start| !self.list[newest..].iter().any(|image| image.has_at(*start)))
    }

    /// It is known to need nothing of the head: neither does any other one of this replica, or it has all of it itself.
    #[must_use]
    pub fn is_whole(&self, id: SnapId) -> bool {
        self.missing_from(0).is_none() || self.get(id).is_some_and(Image::is_complete)
    }

    /// What is to be done for a deleted image; none if there is none.
    #[must_use]
    pub fn hand_down(&self) -> Option<HandDown> {
        let at = self.list.iter().position(Image::is_going)?;
        let image = &self.list[at];
        let end = match image.state {
            ImageState::Destroyed => HandDown::Empty(image.id),
            _ => HandDown::Gone(image.id),
        };
        let Some(heir) = self.heir(at).filter(|_| !image.is_whole()) else { return Some(end) };
        let wanted = |region: &u32| heir.written.has(*region) && !heir.has.has(*region);
        let of_heir = |region: u32| {
            let (start, len) = image.range(region);
            heir.regions_of(start, len)
        };
        let Some(first) = image.has.iter().flat_map(of_heir).find(wanted) else { return Some(end) };
        let segment = u32::try_from(heir.start(first) >> SEGMENT_SHIFT).expect("volumes end at 64 TiB");
        let here = heir.regions_of(u64::from(segment) << SEGMENT_SHIFT, 1 << SEGMENT_SHIFT);
        let whole = !here.clone().any(|region| heir.has.has(region));
        let regions = here.filter(|region| wanted(region) && image.has_at(heir.start(*region))).collect();
        Some(HandDown::Segment { image: image.id, heir: heir.id, segment, whole, regions })
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    const SHIFT: u8 = 24;
    /// Three segments of four regions, the last one half.
    const SIZE: u64 = (10 << SHIFT) + (1 << 20);
    const REGIONS: u32 = 11;

    fn prepared() -> ImageChange {
        prepared_as(ImageForm::Chained)
    }

    fn prepared_as(form: ImageForm) -> ImageChange {
        let generation = Generation::new(Epoch(3), 1);
        ImageChange::Prepared { generation, epoch: Epoch(3), incarnation: 1, form }
    }

    /// A replica whose regions hold a number each, 0 where nothing was written.
    #[derive(Default)]
    struct Dumb {
        images: Images,
        head: Vec<u64>,
        stamps: Vec<Generation>,
        /// What lies in images' files.
        files: BTreeMap<(SnapId, u32), u64>,
        expected: BTreeMap<SnapId, Vec<u64>>,
        count: u64,
    }

    impl Dumb {
        fn new() -> Dumb {
            let regions = REGIONS as usize;
            Dumb { head: vec![0; regions], stamps: vec![Generation::NEVER; regions], ..Dumb::default() }
        }

        fn log(&mut self, id: SnapId, change: &ImageChange) {
            let attempt = self.images.get(id).map_or(1, |image| image.attempt);
            self.log_of((id, attempt), change);
        }

        fn log_of(&mut self, of: (SnapId, u64), change: &ImageChange) {
            self.images.apply(of, change, (SIZE, SHIFT), &self.stamps);
            let before = self.images.clone();
            self.images.apply(of, change, (SIZE, SHIFT), &self.stamps);
            assert_eq!(before, self.images, "a record that is taken in again changes nothing");
        }

        fn take(&mut self) {
            self.take_as(ImageForm::Chained);
        }

        fn take_as(&mut self, form: ImageForm) {
            self.count += 1;
            let id = SnapId(self.count.into());
            // What the pool's own snapshot has, also where nobody ever looks.
            for region in (0..REGIONS).filter(|_| form == ImageForm::Whole) {
                self.files.insert((id, region), self.head[region as usize]);
            }
            self.log(id, &prepared_as(form));
            self.expected.insert(id, self.head.clone());
        }

        fn preserve(&mut self, offset: u64, len: u64) {
            if let Some((id, regions)) = self.images.needs(offset, len) {
                for region in &regions {
                    self.files.insert((id, *region), self.head[*region as usize]);
                }
                self.log(id, &ImageChange::Has { regions });
            }
        }

        fn write(&mut self, region: u32) {
            let start = u64::from(region) << SHIFT;
            self.preserve(start + 4096, 4096.min(SIZE - start));
            self.count += 1;
            self.head[region as usize] = self.count;
            self.stamps[region as usize] = Generation::new(Epoch(3), 2);
        }

        fn delete(&mut self, which: usize) {
            let staying: Vec<_> = self.expected.keys().copied().collect();
            if let Some(id) = staying.get(which % staying.len().max(1)) {
                self.log(*id, &ImageChange::Deleting);
                self.expected.remove(id);
            }
        }

        fn destroy(&mut self, which: usize) {
            let staying: Vec<_> = self.expected.keys().copied().collect();
            if let Some(id) = staying.get(which % staying.len().max(1)) {
                self.log(*id, &ImageChange::Ready { note: vec![] });
                self.log(*id, &ImageChange::Destroyed);
                self.expected.remove(id);
            }
        }

        fn hand_down(&mut self) {
            match self.images.hand_down() {
                None => {}
                Some(HandDown::Empty(id)) => {
                    self.log(id, &ImageChange::Emptied);
                    self.files.retain(|(of, _), _| *of != id);
                }
                Some(HandDown::Gone(id)) => {
                    self.log(id, &ImageChange::Gone);
                    self.files.retain(|(of, _), _| *of != id);
                }
                Some(HandDown::Segment { image, heir, segment, whole, regions }) => {
                    assert!(!regions.is_empty());
                    let here = |region: u32| region / 4 == segment;
                    assert!(regions.iter().all(|region| here(*region)));
                    if whole {
                        self.files.retain(|(of, region), _| *of != heir || !here(*region));
                        for region in (0..REGIONS).filter(|region| here(*region)) {
                            if let Some(value) = self.files.remove(&(image, region)) {
                                self.files.insert((heir, region), value);
                            }
                        }
                    } else {
                        for region in &regions {
                            self.files.insert((heir, *region), self.files[&(image, *region)]);
                        }
                    }
                    // Between the two everybody still reads what is right.
                    self.check();
                    self.log(heir, &ImageChange::Has { regions });
                }
            }
        }

        fn check(&self) {
            for (id, expected) in &self.expected {
                for region in 0..REGIONS {
                    let found = match self.images.place(*id, region).expect("it has that region") {
                        Place::Absent => 0,
                        Place::Head => self.head[region as usize],
                        Place::Image { image, heir } => {
                            let own = self.files.get(&(image, region));
                            let heirs = heir.and_then(|heir| self.files.get(&(heir, region)));
                            *own.or(heirs).expect("it is in a file")
                        }
                    };
                    assert_eq!(found, expected[region as usize], "region {region} of {id}");
                }
                assert_eq!(self.images.place(*id, REGIONS), None);
            }
            self.check_shared();
            let bytes = (0..REGIONS).map(|region| u64::from(region) << SHIFT);
            for from in bytes.clone() {
                let missing = bytes.clone().find(|at| *at >= from && self.images.needs(*at, 4096).is_some());
                assert_eq!(self.images.missing_from(from), missing);
            }
            for id in self.expected.keys().filter(|id| self.images.is_whole(**id)) {
                let head = |region| self.images.place(*id, region) == Some(Place::Head);
                assert!(!(0..REGIONS).any(head), "{id} is not whole");
            }
        }
    }

    impl Dumb {
        /// R29, from both sides: what is read at one place is the same, and what nobody wrote to meanwhile, nor kept, is
        /// read at one place.
        fn check_shared(&self) {
            for (of, one) in &self.expected {
                for (with, other) in &self.expected {
                    for region in 0..REGIONS {
                        let at = u64::from(region) << SHIFT;
                        let stop = (at + (1 << SHIFT)).min(SIZE);
                        let (shared, end) = self.images.is_shared(*of, *with, at).expect("both are there");
                        assert_eq!(end, stop);
                        let same = one[region as usize] == other[region as usize];
                        assert!(same || !shared, "region {region} of {of} and {with}");
                        let whole = |id: SnapId| self.images.get(id).is_some_and(Image::is_whole);
                        let kept = self.images.iter().any(|image| image.has_at(at));
                        let kept = kept || of != with && (whole(*of) || whole(*with));
                        assert!(shared || !same || kept, "region {region} of {of} and {with}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn images_read_what_the_head_held_in_any_order_of_writes_and_deletions(
            steps in proptest::collection::vec((0..100u32, 0..REGIONS), 1..120)
        ) {
            let mut dumb = Dumb::new();
            for (kind, region) in steps {
                match kind {
                    0..45 => dumb.write(region),
                    45..55 => dumb.take(),
                    55..60 => dumb.take_as(ImageForm::Whole),
                    60..68 => dumb.preserve(0, u64::from(region + 1) << SHIFT),
                    68..76 => dumb.delete(region as usize),
                    76..80 => dumb.destroy(region as usize),
                    _ => dumb.hand_down(),
                }
                dumb.check();
            }
            let destroyed = |of: &&Image| of.state == ImageState::Destroyed;
            for id in dumb.images.iter().filter(destroyed).map(|of| of.id).collect::<Vec<_>>() {
                dumb.log(id, &ImageChange::Deleting);
            }
            while dumb.images.iter().next().is_some() {
                dumb.delete(1);
                while dumb.images.hand_down().is_some() {
                    dumb.hand_down();
                    dumb.check();
                }
            }
            prop_assert!(dumb.files.is_empty() && dumb.images.is_empty());
        }
    }

    #[test]
    fn an_image_gets_a_region_once_and_only_if_it_was_ever_written() {
        let mut dumb = Dumb::new();
        dumb.write(2);
        dumb.take();
        let start = 2 << SHIFT;
        assert_eq!(dumb.images.needs(0, SIZE), Some((SnapId(2), vec![2])));
        assert_eq!(dumb.images.needs(start, 4096), Some((SnapId(2), vec![2])));
        assert_eq!(dumb.images.needs(3 << SHIFT, 4096), None, "absent, which no file has to tell");
        assert_eq!(dumb.images.place(SnapId(2), 2), Some(Place::Head));
        assert_eq!(dumb.images.place(SnapId(2), 3), Some(Place::Absent));
        dumb.write(2);
        dumb.write(3);
        assert_eq!(dumb.images.needs(0, SIZE), None);
        let own = Place::Image { image: SnapId(2), heir: None };
        assert_eq!(dumb.images.place(SnapId(2), 2), Some(own));
        assert_eq!(dumb.images.place(SnapId(2), 3), Some(Place::Absent));
    }

    /// docs/model.md, finding 19: an image that has everything is still where older ones find what was written since.
    #[test]
    fn older_images_read_through_one_that_has_everything() {
        let mut dumb = Dumb::new();
        dumb.write(1);
        dumb.take();
        dumb.take();
        dumb.preserve(0, SIZE);
        dumb.write(1);
        let newer = Place::Image { image: SnapId(3), heir: None };
        assert_eq!(dumb.images.place(SnapId(2), 1), Some(newer));
        // Finding 20: while that one is being deleted its file may be the heir's already.
        dumb.delete(1);
        let moving = Place::Image { image: SnapId(3), heir: Some(SnapId(2)) };
        assert_eq!(dumb.images.place(SnapId(2), 1), Some(moving));
        let regions = vec![1];
        let (image, heir) = (SnapId(3), SnapId(2));
        let step = HandDown::Segment { image, heir, segment: 0, whole: true, regions };
        assert_eq!(dumb.images.hand_down(), Some(step));
    }

    /// docs/model.md, `image-whole-in-chain` and `image-write-while-taking`: it lies outside the chain.
    #[test]
    fn a_whole_image_has_everything_itself_and_nobody_reads_through_it() {
        let mut dumb = Dumb::new();
        (1..4).for_each(|region| dumb.write(region));
        dumb.take();
        dumb.write(1);
        dumb.take_as(ImageForm::Whole);
        let (older, whole) = (SnapId(4), SnapId(6));
        let of = |id: SnapId| Place::Image { image: id, heir: None };
        for (region, place) in [(0, Place::Absent), (1, of(whole)), (3, of(whole))] {
            assert_eq!(dumb.images.place(whole, region), Some(place), "region {region}");
        }
        assert_eq!(dumb.images.place(older, 2), Some(Place::Head), "older ones pass it by");
        // The head changes: the older one gets what was there, the whole one needs nothing.
        assert_eq!(dumb.images.needs(0, SIZE), Some((older, vec![2, 3])));
        assert!(dumb.images.is_whole(whole) && !dumb.images.is_whole(older));
        dumb.write(2);
        dumb.log(whole, &ImageChange::Has { regions: vec![0] });
        assert_eq!(dumb.images.place(whole, 0), Some(Place::Absent), "nothing is ever put there");
        assert_eq!(dumb.images.is_shared(older, whole, 3 << SHIFT), Some((false, 4 << SHIFT)));
        dumb.check();
        // The older one goes: the whole one is not its heir, nor is it that one's.
        dumb.take();
        dumb.delete(0);
        assert_eq!(dumb.images.hand_down(), Some(HandDown::Gone(older)));
        dumb.hand_down();
        dumb.delete(0);
        assert_eq!(dumb.images.hand_down(), Some(HandDown::Gone(whole)));
        dumb.hand_down();
        dumb.check();
        assert_eq!(dumb.images.len(), 1);
    }

    /// A head of which only whole images are left goes to the trash at once.
    #[test]
    fn whole_images_need_nothing_of_the_head() {
        let mut dumb = Dumb::new();
        dumb.write(1);
        dumb.take_as(ImageForm::Whole);
        assert_eq!((dumb.images.missing_from(0), dumb.images.needs(0, SIZE)), (None, None));
        dumb.write(1);
        dumb.check();
    }

    #[test]
    fn a_later_attempt_takes_the_place_of_an_earlier_one_and_not_the_other_way_around() {
        let mut dumb = Dumb::new();
        dumb.write(1);
        dumb.log_of((SnapId(9), 2), &prepared());
        dumb.write(1);
        dumb.log_of((SnapId(9), 1), &prepared());
        assert_eq!(dumb.images.needs(0, SIZE), None, "it has what was written over");
        dumb.log_of((SnapId(9), 3), &prepared());
        assert_eq!(dumb.images.needs(0, SIZE), Some((SnapId(9), vec![1])));
        for (attempt, change) in [(2, ImageChange::Deleting), (1, ImageChange::Gone)] {
            dumb.log_of((SnapId(9), attempt), &change);
        }
        dumb.log_of((SnapId(9), 3), &ImageChange::Ready { note: vec![7] });
        let image = dumb.images.get(SnapId(9)).expect("prepared");
        assert_eq!((image.state, &image.note[..]), (ImageState::Ready, &[7][..]));
        assert_eq!(dumb.images.iter().count(), 1);
    }

    /// R29: the older one has itself what was written in between; what was written later both read from the newer one.
    #[test]
    fn two_images_share_what_was_not_written_between_them() {
        let mut dumb = Dumb::new();
        (1..5).for_each(|region| dumb.write(region));
        dumb.take();
        dumb.write(1);
        dumb.take();
        dumb.write(2);
        let [older, newer] = [SnapId(5), SnapId(7)];
        let shared = |dumb: &Dumb, region: u64| dumb.images.is_shared(older, newer, region << SHIFT);
        let end = |region: u64| (region + 1) << SHIFT;
        for (region, same) in [(0, true), (1, false), (2, true), (3, true)] {
            assert_eq!(shared(&dumb, region), Some((same, end(region))), "region {region}");
        }
        // One in between goes, and hands down what it had.
        dumb.take();
        dumb.write(3);
        dumb.take();
        let last = SnapId(dumb.count.into());
        dumb.delete(2);
        while dumb.images.hand_down().is_some() {
            dumb.hand_down();
        }
        for (region, same) in [(1, true), (2, false), (3, false), (4, true)] {
            let found = dumb.images.is_shared(last, newer, region << SHIFT);
            assert_eq!(found, Some((same, end(region))), "region {region}");
        }
        assert_eq!(dumb.images.is_shared(SnapId(8), newer, 0), None);
    }

    /// What is past the end of an image is absent there, whatever the other one has.
    #[test]
    fn an_image_shares_nothing_past_its_end_but_what_was_never_written() {
        let stamped = [Generation::new(Epoch(1), 1); 4];
        let size = (1 << SHIFT) + 8192;
        let mut images = Images::default();
        images.apply((SnapId(1), 1), &prepared(), (size, SHIFT), &stamped[..2]);
        let unstamped = [stamped[0], stamped[0], Generation::NEVER, stamped[0]];
        images.apply((SnapId(2), 1), &prepared(), (4 << SHIFT, SHIFT), &unstamped);
        let region = 1 << SHIFT;
        for (offset, found) in [
            (0, (true, region)),
            (region + 4096, (true, size)),
            (size, (false, 2 * region)),
            (2 * region, (true, 3 * region)),
            (3 * region, (false, 4 * region)),
        ] {
            assert_eq!(images.is_shared(SnapId(1), SnapId(2), offset), Some(found), "{offset:#x}");
            assert_eq!(images.is_shared(SnapId(2), SnapId(1), offset), Some(found), "{offset:#x}");
        }
    }

    /// R24: what a checkpoint names, and nobody knows any more, had everything: older ones do not read past it.
    #[test]
    fn an_image_of_which_only_its_name_is_left_is_damaged_and_hides_what_is_behind_it() {
        let mut images = Images::default();
        let stamps = alloc::vec![Generation::new(Epoch(1), 1); REGIONS as usize];
        for n in 4..7 {
            let (generation, form) = (Generation::new(Epoch(3), n), ImageForm::Chained);
            let change = ImageChange::Prepared { generation, epoch: Epoch(3), incarnation: 1, form };
            images.apply((SnapId(n.into()), 1), &change, (SIZE, SHIFT), &stamps);
        }
        let (older, lost, newer) = (SnapId(4), SnapId(5), SnapId(6));
        let mut kept = images.names();
        assert_eq!((kept.len(), kept.named().len()), (0, 3));
        let found = |id| images.get(id).expect("taken").clone();
        kept.restore(alloc::vec![found(older), found(newer)]);
        let mut forgotten = kept.clone();
        assert_eq!((kept.lose_missing(), kept.lose_missing()), (vec![lost], vec![]));
        let image = kept.get(lost).expect("it is named");
        assert_eq!((image.attempt, image.size, image.state), (1, SIZE, ImageState::Prepared));
        let damage = Place::Image { image: lost, heir: None };
        for region in 1..4 {
            assert_eq!(kept.place(older, region), Some(damage));
            assert_eq!(kept.place(newer, region), Some(Place::Head));
        }
        let order: Vec<SnapId> = kept.iter().map(|image| image.id).collect();
        assert_eq!(order, [older, lost, newer]);
        // The log says that it is gone: so it is.
        forgotten.apply((lost, 1), &ImageChange::Gone, (SIZE, SHIFT), &[]);
        assert_eq!(forgotten.lose_missing(), vec![]);
        assert_eq!(forgotten.place(older, 1), Some(Place::Head));
    }

    /// H29: the head's regions have become larger since the older image was taken.
    #[test]
    fn regions_that_were_folded_since_cover_several_of_an_older_image() {
        let stamped = [Generation::new(Epoch(1), 1); 8];
        let mut images = Images::default();
        images.apply((SnapId(1), 1), &prepared(), (8 << SHIFT, SHIFT), &stamped);
        images.apply((SnapId(2), 1), &prepared(), (8 << SHIFT, SHIFT + 1), &stamped[..4]);
        assert_eq!(images.needs(3 << SHIFT, 4096), Some((SnapId(2), vec![1])));
        images.apply((SnapId(2), 1), &ImageChange::Has { regions: vec![1] }, (0, 0), &[]);
        for region in [2, 3] {
            let newer = Place::Image { image: SnapId(2), heir: None };
            assert_eq!(images.place(SnapId(1), region), Some(newer));
        }
        images.apply((SnapId(2), 1), &ImageChange::Deleting, (0, 0), &[]);
        let (image, heir, regions) = (SnapId(2), SnapId(1), vec![2, 3]);
        let step = HandDown::Segment { image, heir, segment: 0, whole: true, regions };
        assert_eq!(images.hand_down(), Some(step));
        // The head is to change over a large region: the older one, which stays, gets what nobody has.
        assert_eq!(images.needs(0, 4 << SHIFT), Some((SnapId(1), vec![0, 1])));
    }
}
