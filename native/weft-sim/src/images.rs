//! The files of a replica's images in a simulated pool (weft-io's `images`): what preserves have put there, block by block.
//!
//! Images that others' are copied into are filled under a name of their own, which no start keeps.
//!
//! Must always hold: what is put there is durable when it is answered; whoever looks where nothing was put is told that
//! the image is damaged, and gets nothing. A whole image has everything.

use std::collections::BTreeMap;
use std::ops::Range;

use weft_proto::ids::SnapId;
use weft_proto::images::SEGMENT_SHIFT;
use weft_proto::payload::BLOCK;

/// Blocks of a segment.
const SEGMENT: u64 = (1 << SEGMENT_SHIFT) / BLOCK;

/// See the module.
#[derive(Clone, Debug)]
pub struct ImageFiles<C> {
    files: BTreeMap<SnapId, BTreeMap<u64, C>>,
    /// What whole images have where nothing was ever written.
    rest: BTreeMap<SnapId, C>,
    /// Those that are filled.
    filling: BTreeMap<SnapId, BTreeMap<u64, C>>,
    /// Hashes of segments whose data was destroyed.
    kept: BTreeMap<(SnapId, u32), Vec<u8>>,
}

impl<C> Default for ImageFiles<C> {
    fn default() -> Self {
        ImageFiles {
            files: BTreeMap::new(),
            rest: BTreeMap::new(),
            filling: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }
}

impl<C: Clone> ImageFiles<C> {
    /// Makes an image's directory, if it is not there.
    pub fn make(&mut self, image: SnapId) {
        self.files.entry(image).or_default();
    }

    /// Makes it whole: these blocks, and `rest` in all others. False if there is no such image.
    pub fn take(&mut self, image: SnapId, head: impl Iterator<Item = (u64, C)>, rest: C) -> bool {
        let Some(file) = self.files.get_mut(&image) else { return false };
        *file = head.collect();
        self.rest.insert(image, rest);
        true
    }

    /// Puts blocks into it; false if there is no such image.
    pub fn preserve(&mut self, image: SnapId, blocks: Range<u64>, head: impl Fn(u64) -> C) -> bool {
        let Some(file) = self.files.get_mut(&image) else { return false };
        file.extend(blocks.map(|block| (block, head(block))));
        true
    }

    /// What it has in a block, or already its heir.
    #[must_use]
    pub fn look(&self, image: SnapId, heir: Option<SnapId>, block: u64) -> Option<C> {
        let of = |image: SnapId| {
            let file = self.files.get(&image)?;
            file.get(&block).or_else(|| self.rest.get(&image)).cloned()
        };
        of(image).or_else(|| heir.and_then(of))
    }

    /// Hands blocks of a segment down, or the whole file, which changes its image.
    pub fn hand_down(&mut self, image: SnapId, heir: SnapId, segment: u32, blocks: &[Range<u32>]) {
        let first = u64::from(segment) * SEGMENT;
        if blocks.is_empty() {
            let mut whole = self.files.get_mut(&image).map(|file| file.split_off(&first)).unwrap_or_default();
            let rest = whole.split_off(&(first + SEGMENT));
            if let Some(file) = self.files.get_mut(&image) {
                file.extend(rest);
            }
            if whole.is_empty() {
                // Repeated: the file has changed its image already.
                return;
            }
            let file = self.files.entry(heir).or_default();
            file.retain(|block, _| !(first..first + SEGMENT).contains(block));
            file.extend(whole);
            return;
        }
        let from = self.files.get(&image).cloned().unwrap_or_default();
        let file = self.files.entry(heir).or_default();
        for range in blocks {
            let range = first + u64::from(range.start)..first + u64::from(range.end);
            file.extend(from.range(range).map(|(block, content)| (*block, content.clone())));
        }
    }

    /// Begins one that is filled.
    pub fn begin_copy(&mut self, image: SnapId) {
        self.filling.insert(image, BTreeMap::new());
    }

    /// Puts blocks into it; false if it was not begun.
    pub fn fill_copy(&mut self, image: SnapId, blocks: impl Iterator<Item = (u64, C)>) -> bool {
        let Some(file) = self.filling.get_mut(&image) else { return false };
        file.extend(blocks);
        true
    }

    /// It becomes an image as every other; false if it was not begun.
    pub fn publish_copy(&mut self, image: SnapId) -> bool {
        let Some(file) = self.filling.remove(&image) else { return false };
        self.files.insert(image, file).is_none()
    }

    /// What was begun is removed.
    pub fn abandon_copy(&mut self, image: SnapId) {
        self.filling.remove(&image);
    }

    /// The pool is started: nothing that was begun is left.
    pub fn restart(&mut self) {
        self.filling.clear();
    }

    /// Keeps hashes of a segment beside it.
    pub fn keep(&mut self, image: SnapId, segment: u32, bytes: &[u8]) {
        self.kept.insert((image, segment), bytes.to_vec());
    }

    /// What is kept so.
    #[must_use]
    pub fn kept(&self, image: SnapId, segment: u32) -> Option<Vec<u8>> {
        self.kept.get(&(image, segment)).cloned()
    }

    /// Removes its data.
    pub fn empty(&mut self, image: SnapId) {
        if let Some(file) = self.files.get_mut(&image) {
            file.clear();
        }
        self.rest.remove(&image);
    }

    /// Removes an image's files.
    pub fn remove(&mut self, image: SnapId) {
        self.files.remove(&image);
        self.rest.remove(&image);
        self.kept.retain(|(of, _), _| *of != image);
    }

    /// Which there are.
    pub fn iter(&self) -> impl Iterator<Item = SnapId> + '_ {
        self.files.keys().copied()
    }
}
