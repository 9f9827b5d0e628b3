//! Images of replicas, as their pool keeps them: what the machine wants done, and the two files of each.
//!
//! Must always hold:
//! * what the log says of an image is in one of its files before the log forgets it; and that it was taken is there before
//!   a checkpoint of its replica is, since what that says of regions is of a later time (docs/adr/0020);
//! * what the log and the files don't name is removed before its replica serves again, and nothing else is;
//! * of a replica whose images can't be known nothing is believed: older ones read through newer ones (R24).

use weft_control::types::{GoneImage, ImageInfo, ImageState as ShownState, KeptImage, SnapshotNote};
use weft_proto::checkpoint::{ImageSlot, choose_image};
use weft_proto::ids::SnapId;
use weft_proto::images::{Image, ImageForm, ImageState};
use weft_proto::replica::ImageOp;

use super::*;

/// An image's two files, as far as they are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct ImageFiles {
    /// Of which attempt: another one's image has other files.
    attempt: u64,
    /// The newest one and its number; none was written yet.
    newest: Option<(Side, u64)>,
    /// The log has records from here on that the newest one has not.
    since: Option<u64>,
}

/// What was read of the images' files when a pool was opened.
pub(super) type LoadedImages = BTreeMap<(ReplicaKey, SnapId), [Option<IoBuf>; 2]>;

/// Has everything that was asked for been read?
pub(super) fn all_read<K>(loaded: &BTreeMap<K, [Option<IoBuf>; 2]>) -> bool {
    loaded.values().flatten().all(Option::is_some)
}

/// What the files of the images of one replica say, before the log.
#[derive(Debug, Default)]
pub(super) struct FoundImages {
    pub(super) images: Vec<Image>,
    pub(super) files: BTreeMap<SnapId, ImageFiles>,
    /// The log is behind which these are: nothing of it up to here is taken in again.
    pub(super) seqs: BTreeMap<SnapId, u64>,
    /// Neither file of these can be read.
    pub(super) damaged: BTreeMap<SnapId, String>,
}

/// An image that its replica has not logged READY.
#[derive(Clone, Copy, Debug)]
pub struct Unlogged {
    /// Of which snapshot.
    pub id: SnapId,
    /// Of which attempt at it.
    pub attempt: u64,
    /// The owner's epoch then.
    pub epoch: weft_proto::ids::Epoch,
    /// The store's incarnation then.
    pub incarnation: u64,
    /// It was brought here, and logged READY; whether its snapshot's key lists this copy is not known.
    pub ready: bool,
}

impl FoundImages {
    /// Is a record of the log news of this image? Its files lack it then; `behind`: the log that the replica's checkpoint has.
    pub(super) fn take_in(&mut self, (image, attempt): (SnapId, u64), seq: u64, behind: u64) -> bool {
        if self.seqs.get(&image).is_some_and(|known| seq <= *known) {
            return false;
        }
        let files = self.files.entry(image).or_insert_with(|| ImageFiles::new(attempt));
        if files.attempt < attempt {
            *files = ImageFiles::new(attempt);
        }
        if files.attempt == attempt {
            files.since = Some(behind + 1);
        }
        true
    }
}

impl Pools {
    /// What the copies of this host have of snapshots.
    #[must_use]
    pub fn images(&self) -> Vec<ImageInfo> {
        let slots = self.pools.values().flat_map(|pool| pool.replicas.iter().map(move |at| (pool, at)));
        let mut list: Vec<ImageInfo> =
            slots.flat_map(|(pool, (key, slot))| slot.images(pool.id, *key)).collect();
        list.sort_by_key(|image| (image.volume, image.rid));
        list
    }

    /// Volumes of which a copy here has images whose snapshots may never have come to be.
    #[must_use]
    pub fn volumes_with_unlogged_images(&self) -> BTreeSet<VolumeId> {
        let serving = self.pools.values().filter(|pool| pool.phase == Phase::Serving);
        let slots = serving.flat_map(|pool| &pool.replicas);
        slots.filter(|(_, slot)| slot.unlogged().next().is_some()).map(|(key, _)| key.volume).collect()
    }

    /// Lets those of a volume go that are surely of no use.
    pub fn drop_unlogged(&mut self, now: Instant, volume: VolumeId, is_over: impl Fn(&Unlogged) -> bool) {
        for pool in self.pools.values_mut().filter(|pool| pool.phase == Phase::Serving) {
            let keys: Vec<ReplicaKey> =
                pool.replicas.keys().filter(|key| key.volume == volume).copied().collect();
            for key in keys {
                let Some(slot) = pool.replicas.get_mut(&key).filter(|slot| slot.open) else { continue };
                let over: Vec<Unlogged> = slot.unlogged().filter(&is_over).collect();
                for image in over {
                    tracing::info!(pool = %pool.id, %volume, rid = %key.rid, image = %image.id, "an attempt that came to nothing");
                    if image.ready {
                        slot.machine.drop_copied(now, image.id, image.attempt);
                    } else {
                        slot.machine.drop_image(now, image.id, image.attempt);
                    }
                }
                pool.drive_replica(now, key, &mut self.out);
            }
        }
    }
}

impl Slotted {
    fn images(&self, pool: PoolId, key: ReplicaKey) -> impl Iterator<Item = ImageInfo> + '_ {
        let images = &self.machine.durable().images;
        images.iter().map(move |image| ImageInfo {
            volume: key.volume,
            rid: key.rid,
            pool,
            snap: image.id,
            state: shown(image.state),
            whole: images.is_whole(image.id),
            copied: !image.took(),
            destroyed: image.is_empty(),
            own_bytes: Decimal(image.own_bytes()),
            damaged: Decimal(self.machine.damaged_regions(image.id)),
        })
    }

    fn unlogged(&self) -> impl Iterator<Item = Unlogged> + '_ {
        let images = self.machine.durable().images.iter();
        let unlisted = |image: &Image| {
            image.state == ImageState::Ready && !image.took() && !self.listed.contains(&image.id)
        };
        images.filter(move |image| image.state == ImageState::Prepared || unlisted(image)).map(|image| {
            Unlogged {
                id: image.id,
                attempt: image.attempt,
                epoch: image.epoch,
                incarnation: image.incarnation,
                ready: image.state == ImageState::Ready,
            }
        })
    }

    /// An image of this replica whose files lack what the log had by then.
    fn unwritten(&self, through: u64) -> Option<(SnapId, ImageFiles)> {
        let images = &self.machine.durable().images;
        images.iter().find_map(|image| {
            let files = self.image_files.get(&image.id).filter(|files| files.attempt == image.attempt);
            match files {
                Some(files) if files.newest.is_some() && files.since.is_none_or(|since| since > through) => {
                    None
                }
                files => Some((image.id, files.copied().unwrap_or_else(|| ImageFiles::new(image.attempt)))),
            }
        })
    }

    /// The log up to here needs nobody but this replica's checkpoint and what the images' files have.
    pub(super) fn images_through(&self, log_seq: u64) -> u64 {
        let images = &self.machine.durable().images;
        let since = images.iter().filter_map(|image| self.image_files.get(&image.id)?.since).min();
        since.map_or(log_seq, |since| log_seq.min(since.saturating_sub(1)))
    }
}

impl ImageFiles {
    fn new(attempt: u64) -> ImageFiles {
        ImageFiles { attempt, newest: None, since: None }
    }

    /// Of an image that began with its first slot.
    pub(super) fn published(attempt: u64) -> ImageFiles {
        ImageFiles { attempt, newest: Some((Side::A, 1)), since: None }
    }
}

fn shown(state: ImageState) -> ShownState {
    match state {
        ImageState::Prepared => ShownState::Prepared,
        ImageState::Ready => ShownState::Ready,
        ImageState::Deleting => ShownState::Deleting,
        ImageState::Destroyed => ShownState::Destroyed,
    }
}

/// What a repair of the store is told of the images of a replica.
pub(super) fn kept_images(durable: &Durable) -> (Vec<KeptImage>, Vec<GoneImage>) {
    let kept = |image: &Image| KeptImage {
        snap: image.id,
        state: shown(image.state),
        attempt: Decimal(image.attempt),
        generation: image.generation,
        epoch: image.epoch,
        incarnation: Decimal(image.incarnation),
        size: Decimal(image.size),
        region_shift: image.region_shift,
        note: serde_json::from_slice::<SnapshotNote>(&image.note).ok(),
    };
    let gone = |(snap, attempt)| GoneImage { snap, attempt: Decimal(attempt) };
    (durable.images.iter().map(kept).collect(), durable.images.gone().map(gone).collect())
}

impl Pool {
    /// How its images come to have what they have.
    pub(super) fn takes(&self) -> ImageForm {
        match self.file.as_ref().map(|file| file.probe().ability) {
            Some(Ability::Thin) => ImageForm::Whole,
            Some(Ability::Reflink | Ability::None(_)) | None => ImageForm::Chained,
        }
    }

    /// Does what a replica's machine wants of an image.
    pub(super) fn submit_image(&mut self, key: ReplicaKey, token: Token, op: ImageOp<IoBuf>) {
        let replica = key;
        let dropped = if let ImageOp::Drop { image } = &op { Some(*image) } else { None };
        let op = match op {
            ImageOp::Make { image, slot_bytes } => PoolOp::TakeImage { replica, image, slot_bytes },
            ImageOp::Take { image } => PoolOp::TakeSnapshot { replica, image },
            ImageOp::Preserve { image, offset, len } => PoolOp::Preserve { replica, image, offset, len },
            ImageOp::Look { image, heir, op } => PoolOp::Image { replica, image, heir, op },
            ImageOp::HandDown { image, heir, segment, blocks } => {
                PoolOp::HandDown { replica, image, heir, segment, blocks }
            }
            ImageOp::Keep { image, segment, bytes } => PoolOp::KeepHashes { replica, image, segment, bytes },
            ImageOp::Kept { image, segment } => PoolOp::KeptHashes { replica, image, segment },
            ImageOp::Empty { image } => PoolOp::EmptyImage { replica, image },
            ImageOp::Drop { image } => PoolOp::DropImage { replica, image },
            ImageOp::CopyBegin { image, slot_bytes } => PoolOp::BeginCopy { replica, image, slot_bytes },
            ImageOp::CopyFill { image, offset, extents } => {
                PoolOp::FillCopy { replica, image, offset, extents }
            }
            ImageOp::CopySync { image, segment } => PoolOp::SyncCopy { replica, image, segment },
            ImageOp::CopyPublish { image } => return self.publish_copy(key, token, *image),
            ImageOp::CopyAbandon { image } => PoolOp::AbandonCopy { replica, image },
            ImageOp::CloneOut { to, place, offset, len } => {
                PoolOp::CloneOut { from: replica, place, to, offset, len }
            }
        };
        if let (Some(image), Some(slot)) = (dropped, self.replicas.get_mut(&key)) {
            slot.image_files.remove(&image);
        }
        let purpose = match &op {
            PoolOp::TakeImage { .. } => Purpose::MakeImage(key, token),
            _ => Purpose::Disk(key, token),
        };
        self.submit(purpose, op);
    }

    /// The log durably has a record of an image, behind this sequence.
    pub(super) fn note_image(&mut self, key: ReplicaKey, (image, attempt): (SnapId, u64), behind: u64) {
        let Some(slot) = self.replicas.get_mut(&key) else { return };
        let files = slot.image_files.entry(image).or_insert_with(|| ImageFiles::new(attempt));
        if files.attempt < attempt {
            *files = ImageFiles::new(attempt);
        }
        if files.attempt == attempt {
            files.since = Some(files.since.map_or(behind + 1, |since| since.min(behind + 1)));
        }
    }

    /// Begins to write the files of the next image of a replica that lack what the log had when its checkpoint was begun;
    /// false if there is none.
    pub(super) fn write_next_image(&mut self, key: ReplicaKey, through: u64) -> bool {
        let log_seq = self.log.as_ref().map_or(0, Log::durable_seq);
        let Some(slot) = self.replicas.get_mut(&key) else { return false };
        let Some((id, mut files)) = slot.unwritten(through) else { return false };
        let Some(image) = slot.machine.durable().images.get(id).cloned() else { return false };
        let (side, counter) = match files.newest {
            Some((side, counter)) => (side.other(), counter + 1),
            None => (Side::A, 1),
        };
        let before = files.since.take();
        slot.image_files.insert(id, files);
        let attempt = image.attempt;
        let bytes = ImageSlot { pool: self.id, replica: key, counter, log_seq, image }.encode();
        let op = PoolOp::WriteImage { replica: key, image: id, slot: slot_of(side), bytes };
        self.submit(Purpose::ImageSlot(WrittenSlot { key, image: id, attempt, side, counter, before }), op);
        true
    }

    /// An image's file was written, or could not be; false: its replica's checkpoint can't be made.
    pub(super) fn handle_image_written(&mut self, written: WrittenSlot, done: bool) -> bool {
        let WrittenSlot { key, image, attempt, side, counter, before } = written;
        let Some(slot) = self.replicas.get_mut(&key) else { return true };
        let there = slot.machine.durable().images.get(image).is_some_and(|image| image.attempt == attempt);
        let Some(files) = slot.image_files.get_mut(&image).filter(|files| there && files.attempt == attempt)
        else {
            // It went meanwhile.
            return true;
        };
        if done {
            files.newest = Some((side, counter));
        } else {
            files.since = [before, files.since].into_iter().flatten().min();
        }
        done
    }

    /// The images of a replica that goes to the trash go with it: its checkpoint says so, also to whoever brings it back.
    pub(super) fn without_images(mut durable: Durable) -> Durable {
        let images: Vec<(SnapId, u64)> =
            durable.images.iter().map(|image| (image.id, image.attempt)).collect();
        for (image, attempt) in images {
            durable.apply(&LogRecord::Image {
                image,
                attempt,
                change: weft_proto::images::ImageChange::Gone,
            });
        }
        durable
    }

    /// Removes images of a replica that nothing names.
    pub(super) fn drop_images(&mut self, key: ReplicaKey, images: impl IntoIterator<Item = SnapId>) {
        for image in images {
            if let Some(slot) = self.replicas.get_mut(&key) {
                slot.cleaning += 1;
            }
            tracing::info!(pool = %self.id, volume = %key.volume, rid = %key.rid, %image, "image removed");
            self.submit(Purpose::DropImage(key), PoolOp::DropImage { replica: key, image });
        }
    }

    /// Removes the images of replicas that are in the trash: of one that was being moved there when the process ended.
    pub(super) fn drop_images_of_trash(&mut self, entries: &[TrashEntry]) {
        let in_trash = |key: &ReplicaKey| entries.iter().any(|entry| entry.replica == *key);
        let orphans = std::mem::take(&mut self.orphans);
        let (gone, kept) = orphans.into_iter().partition(|(key, _)| in_trash(key));
        self.orphans = kept;
        for (key, image) in gone {
            self.drop_images(key, [image]);
        }
    }

    /// What the files of a replica's images say.
    pub(super) fn found_images(&self, key: ReplicaKey, loaded: &LoadedImages) -> FoundImages {
        let mut found = FoundImages::default();
        let of_replica = (key, SnapId(0))..=(key, SnapId(u128::MAX));
        for ((_, id), sides) in loaded.range(of_replica) {
            let [a, b] = [0, 1].map(|i| sides[i].as_ref().map_or(&[][..], |buf| buf.bytes()));
            match choose_image(a, b, self.id, key, *id) {
                Ok(None) => {}
                Ok(Some((side, slot))) => {
                    let newest = Some((side, slot.counter));
                    found.files.insert(*id, ImageFiles { attempt: slot.image.attempt, newest, since: None });
                    found.seqs.insert(*id, slot.log_seq);
                    found.images.push(slot.image);
                }
                Err(error) => {
                    found.damaged.insert(*id, error.to_string());
                }
            }
        }
        found
    }
}

/// A file of an image that is being written.
#[derive(Clone, Copy, Debug)]
pub(super) struct WrittenSlot {
    key: ReplicaKey,
    image: SnapId,
    attempt: u64,
    side: Side,
    counter: u64,
    /// [`ImageFiles::since`] before it was begun.
    before: Option<u64>,
}

impl WrittenSlot {
    pub(super) fn key(&self) -> ReplicaKey {
        self.key
    }
}
