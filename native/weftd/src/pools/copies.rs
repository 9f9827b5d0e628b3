//! Images that copies of this host get of snapshots which they missed (protocol.md 4.19): what is brought is put there, and
//! when all of it is durable the image is one as every other.
//!
//! Must always hold: an image's slot is written under its temporary name, with the log behind it at which it begins; so what
//! the log says of an earlier image of that snapshot is not taken in for this one.

use weft_proto::checkpoint::ImageSlot;
use weft_proto::ids::SnapId;
use weft_proto::images::{Image, ImageForm, ImageState};
use weft_proto::message::Extent;
use weft_proto::replica::{CopyOf, CopyStep, NotCopied};

use super::images::ImageFiles;
use super::*;

impl Pools {
    fn slot_of(&mut self, key: ReplicaKey) -> Option<(&mut Pool, &mut VecDeque<PoolsOut>)> {
        let serves = |pool: &&mut Pool| pool.phase == Phase::Serving && pool.replicas.contains_key(&key);
        let pool = self.pools.values_mut().find(serves)?;
        Some((pool, &mut self.out))
    }

    /// What does this to the copy's machine, and then what comes of it.
    fn with_copy<T>(
        &mut self,
        now: Instant,
        key: ReplicaKey,
        what: impl FnOnce(&mut Replica<IoBuf>) -> T,
    ) -> Option<T> {
        let (pool, out) = self.slot_of(key)?;
        let slot = pool.replicas.get_mut(&key).filter(|slot| slot.open && !slot.quarantined)?;
        let done = what(&mut slot.machine);
        pool.drive_replica(now, key, out);
        Some(done)
    }

    /// Which image a copy has of a snapshot: of which attempt, and how far. None: none, or no such copy is served here.
    #[must_use]
    pub fn image_of(&self, key: ReplicaKey, snap: SnapId) -> Option<(u64, ImageState)> {
        let slots = self.pools.values().filter(|pool| pool.phase == Phase::Serving);
        let slot = slots.filter_map(|pool| pool.replicas.get(&key)).find(|slot| slot.open)?;
        slot.machine.durable().images.get(snap).map(|image| (image.attempt, image.state))
    }

    /// Begins an image of a snapshot that others have. [`PoolsOut::Copied`] tells of what becomes of it.
    pub fn begin_copy(&mut self, now: Instant, key: ReplicaKey, of: CopyOf) -> Result<(), NotCopied> {
        if self.slot_of(key).is_some_and(|(pool, _)| pool.stopping != Stopping::No) {
            return Err(NotCopied::Ended);
        }
        self.with_copy(now, key, |machine| machine.begin_copy(of)).unwrap_or(Err(NotCopied::Ended))
    }

    /// Puts the next blocks into it.
    pub fn fill_copy(
        &mut self,
        now: Instant,
        key: ReplicaKey,
        snap: SnapId,
        (offset, extents): (u64, Vec<Extent<IoBuf>>),
    ) {
        self.with_copy(now, key, |machine| machine.fill_copy(snap, offset, extents));
    }

    /// All was put there.
    pub fn finish_copy(&mut self, now: Instant, key: ReplicaKey, snap: SnapId) {
        self.with_copy(now, key, |machine| machine.finish_copy(snap));
    }

    /// It is not wanted any more.
    pub fn give_up_copy(&mut self, now: Instant, key: ReplicaKey, snap: SnapId) {
        self.with_copy(now, key, |machine| machine.give_up_copy(snap));
    }

    /// Is it still under way? A copy that went to the trash tells nothing.
    #[must_use]
    pub fn is_copying(&self, key: ReplicaKey, snap: SnapId) -> bool {
        let slots = self.pools.values().filter_map(|pool| pool.replicas.get(&key));
        slots.into_iter().any(|slot| slot.machine.is_copying(snap))
    }

    /// The store lists these members with a snapshot: what deletes it is told to them, and nobody has to look for theirs.
    pub fn note_listed(&mut self, volume: VolumeId, snap: SnapId, members: &[Rid]) {
        for rid in members {
            if let Some((pool, _)) = self.slot_of(ReplicaKey { volume, rid: *rid })
                && let Some(slot) = pool.replicas.get_mut(&ReplicaKey { volume, rid: *rid })
            {
                slot.listed.insert(snap);
            }
        }
    }
}

impl Pool {
    /// What was filled becomes an image: its first slot, and what is known of its files.
    pub(super) fn publish_copy(&mut self, key: ReplicaKey, token: Token, image: Image) {
        let (id, attempt) = (image.id, image.attempt);
        debug_assert_eq!(image.form, ImageForm::Copied);
        let log_seq = self.log.as_ref().map_or(0, Log::durable_seq);
        let slot = ImageSlot { pool: self.id, replica: key, counter: 1, log_seq, image }.encode();
        self.submit(
            Purpose::CopyPublished { key, token, image: id, attempt },
            PoolOp::PublishCopy { replica: key, image: id, slot },
        );
    }

    pub(super) fn copy_published(
        &mut self,
        now: Instant,
        (key, token): (ReplicaKey, Token),
        (image, attempt): (SnapId, u64),
        result: Result<PoolAnswer, PoolError>,
    ) {
        let Some(slot) = self.replicas.get_mut(&key) else { return };
        if result.is_ok() {
            slot.image_files.insert(image, ImageFiles::published(attempt));
        }
        let outcome = result.map(|_| DiskDone::Done).map_err(|error| error.disk_error());
        slot.machine.handle_disk(now, token, outcome);
    }

    /// Tells of the copies of one replica.
    pub(super) fn tell_copies(&mut self, key: ReplicaKey, out: &mut VecDeque<PoolsOut>) {
        let Some(slot) = self.replicas.get_mut(&key) else { return };
        while let Some((snap, step)) = slot.machine.poll_copied() {
            if step == CopyStep::Whole {
                tracing::info!(pool = %self.id, volume = %key.volume, rid = %key.rid, image = %snap, "image brought");
            }
            out.push_back(PoolsOut::Copied(key, snap, step));
        }
    }
}
