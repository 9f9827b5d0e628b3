//! Copies that are made of a snapshot: the blocks are shared with a copy of the snapshot's volume in the same pool.
//!
//! ```text
//! begun ──▶ shared, part by part ──▶ published with its first checkpoint ──▶ opened ──▶ answered
//!   └──────────┴──────────────────────┴──▶ removed ──▶ refused
//! ```
//!
//! Must always hold:
//! * whoever asked is answered when the copy is there as a whole, or when nothing of it is left; what a crash leaves is one of
//!   the two;
//! * it begins with the image's stamps, sealed, so that who joins later gets what it has.

use weft_control::types::CloneFrom;
use weft_proto::ids::{Epoch, Generation};
use weft_proto::images::ImageState;
use weft_proto::replica::NotCloned;

use super::*;

/// A copy that is being made.
#[derive(Debug)]
pub(super) struct Making {
    from: ReplicaKey,
    snap: SnapId,
    answer: Answer,
    /// What it is to be, once it was begun.
    durable: Option<Box<Durable>>,
    /// Why it will not be: it is removed.
    failure: Option<Failure>,
}

fn lacks(from: &CloneFrom, pool: PoolId, why: &str) -> Failure {
    let CloneFrom { volume, snap, .. } = from;
    Failure::new(
        Code::SNAPSHOT_NOT_HERE,
        format!("snapshot {snap} of volume {volume}, in pool {pool}: {why}"),
    )
    .with("volume", volume.to_string())
    .with("snapshot", snap.to_string())
    .with("pool", pool.to_string())
}

impl Pools {
    /// Can this be the first record of a volume whose copies are here? It is above what they have, or stamps would be ahead of
    /// the volume's owners (docs/model.md, finding 26), and says that they are as of their image (H16).
    pub fn check_first(&self, record: Record) -> Result<Record, Failure> {
        let bad = |why: String| {
            Failure::new(Code::BAD_VALUE, format!("the first record of volume {}: {why}", record.vol))
        };
        let closed = record.closed_gen;
        if closed != Generation::NEVER && closed.epoch() >= record.epoch {
            return Err(bad(format!("closed_gen {closed} is not below epoch {}", record.epoch)));
        }
        for member in record.in_sync() {
            let key = ReplicaKey { volume: record.vol, rid: member.rid };
            let slot = self.pools.get(&member.pool).and_then(|pool| pool.replicas.get(&key));
            // One that was promised has a record: this is asked again.
            let Some(durable) = slot.map(|slot| slot.machine.durable()).filter(|d| d.promised == Epoch(0))
            else {
                continue;
            };
            if durable.sealed != closed {
                return Err(bad(format!(
                    "{} has what is sealed at {}, not at {closed}",
                    key.rid, durable.sealed
                )));
            }
        }
        Ok(record)
    }
}

impl Pool {
    /// Begins to make a copy of a snapshot.
    pub(super) fn begin_clone(&mut self, ask: &ReplicaCreate, from: &CloneFrom, answer: Answer) {
        let to = ReplicaKey { volume: ask.volume, rid: ask.rid };
        if ask.thick == Some(true) {
            let message = "a clone shares its blocks, so it can't have all of its own from the first moment";
            return refuse(answer, Failure::new(Code::BAD_VALUE, message));
        }
        if self.stopping != Stopping::No {
            return refuse(answer, Failure::new(Code::STOPPING, "weftd is stopping"));
        }
        let is_source = |(key, slot): &(&ReplicaKey, &Slotted)| {
            let image = slot.machine.durable().images.get(from.snap);
            key.volume == from.volume
                && from.rid.is_none_or(|rid| rid == key.rid)
                && slot.open
                && !slot.quarantined
                && !slot.machine.is_failed()
                && image.is_some_and(|image| image.state == ImageState::Ready)
        };
        let is_destroyed = |(key, slot): (&ReplicaKey, &Slotted)| {
            let image = slot.machine.durable().images.get(from.snap);
            key.volume == from.volume && image.is_some_and(|image| image.state == ImageState::Destroyed)
        };
        if self.replicas.iter().any(is_destroyed) {
            let message =
                format!("the data of snapshot {} of volume {} was destroyed", from.snap, from.volume);
            let failure = Failure::new(Code::SNAPSHOT_DESTROYED, message);
            let failure = failure.with("volume", from.volume.to_string());
            return refuse(answer, failure.with("snapshot", from.snap.to_string()));
        }
        let found = self.replicas.iter().find(is_source);
        let Some((source, image)) =
            found.and_then(|(key, slot)| Some((*key, slot.machine.durable().images.get(from.snap)?)))
        else {
            return refuse(answer, lacks(from, self.id, "no copy here has it, or none that is served"));
        };
        if (image.size, image.region_shift) != (ask.size.0, ask.region_shift) {
            let (size, shift) = (image.size, image.region_shift);
            let why = format!(
                "it has {size} bytes in regions of 2^{shift}, the clone is to have {} in 2^{}",
                ask.size, ask.region_shift
            );
            return refuse(answer, lacks(from, self.id, &why));
        }
        let meta_bytes = checkpoint_len(image.regions_len()) as u64;
        let making = Making { from: source, snap: from.snap, answer, durable: None, failure: None };
        self.clones.insert(to, making);
        self.submit(
            Purpose::CloneBegun(to),
            PoolOp::BeginClone { from: source, image: from.snap, to, meta_bytes },
        );
    }

    /// Its directory is there, or can't be made.
    pub(super) fn clone_begun(
        &mut self,
        now: Instant,
        to: ReplicaKey,
        result: Result<PoolAnswer, PoolError>,
        out: &mut VecDeque<PoolsOut>,
    ) {
        let Some((source, snap)) = self.clones.get(&to).map(|making| (making.from, making.snap)) else {
            return;
        };
        if let Err(error) = result {
            return self.abandon_clone(to, disk_failure(&error));
        }
        if self.stopping != Stopping::No {
            return self.clone_shared(to, Err(NotCloned::Ended));
        }
        let begun = match self.replicas.get_mut(&source) {
            Some(slot) => slot.machine.clone_out(snap, to),
            None => Err(NotCloned::Ended),
        };
        match begun {
            Ok(durable) => {
                if let Some(making) = self.clones.get_mut(&to) {
                    making.durable = Some(Box::new(durable));
                }
                self.drive_replica(now, source, out);
            }
            Err(why) => self.clone_shared(to, Err(why)),
        }
    }

    /// Everything that the image has was shared, or could not be.
    pub(super) fn clone_shared(&mut self, to: ReplicaKey, outcome: Result<(), NotCloned>) {
        let Some(making) = self.clones.get(&to) else { return };
        let (from, snap) =
            (CloneFrom { volume: making.from.volume, rid: None, snap: making.snap }, making.snap);
        let rid = making.from.rid;
        let ended = || {
            if self.stopping != Stopping::No {
                return Failure::new(Code::STOPPING, "weftd is stopping");
            }
            lacks(&from, self.id, "the copy that has it is not served any more")
        };
        let failure = match (outcome, &making.durable) {
            (Ok(()), Some(durable)) if self.phase == Phase::Serving => {
                let log_seq = self.log.as_ref().map_or(0, Log::durable_seq);
                let durable = (**durable).clone();
                let checkpoint = Checkpoint { pool: self.id, counter: 1, log_seq, durable }.encode();
                let op = PoolOp::PublishClone { replica: to, checkpoint };
                return self.submit(Purpose::ClonePublished { to, log_seq }, op);
            }
            (Ok(()), _) | (Err(NotCloned::Ended), _) => ended(),
            (Err(NotCloned::NoImage), _) => lacks(&from, self.id, "it is gone, or is being deleted"),
            (Err(NotCloned::Disk(DiskError::NoSpace)), _) => disk_failure(&PoolError::NoSpace),
            (Err(NotCloned::Disk(error)), _) => {
                let message = format!(
                    "what {rid} of volume {} has of snapshot {snap} can't be shared: {error:?}",
                    from.volume
                );
                Failure::new(Code::DISK_FAILED, message)
            }
        };
        self.abandon_clone(to, failure);
    }

    /// It is a copy as every other one, or could not be made one.
    pub(super) fn clone_published(
        &mut self,
        to: ReplicaKey,
        log_seq: u64,
        result: Result<PoolAnswer, PoolError>,
    ) {
        if let Err(error) = result {
            return self.abandon_clone(to, disk_failure(&error));
        }
        let Some(Making { durable: Some(durable), answer, .. }) = self.clones.remove(&to) else { return };
        if self.stopping != Stopping::No {
            return refuse(
                answer,
                Failure::new(Code::STOPPING, "weftd is stopping; the copy is there at its next start"),
            );
        }
        let op = PoolOp::OpenReplica { replica: to, size: durable.size, unsealed: Vec::new() };
        self.submit(Purpose::OpenCreated { durable, log_seq, answer }, op);
    }

    fn abandon_clone(&mut self, to: ReplicaKey, failure: Failure) {
        if let Some(making) = self.clones.get_mut(&to) {
            making.failure = Some(failure);
            self.submit(Purpose::CloneAbandoned(to), PoolOp::AbandonClone { replica: to });
        }
    }

    /// What was there of it is removed, or will be at the pool's next start.
    pub(super) fn clone_abandoned(&mut self, to: ReplicaKey, result: &Result<PoolAnswer, PoolError>) {
        if let Err(error) = result {
            tracing::error!(pool = %self.id, volume = %to.volume, rid = %to.rid, %error, "what was made of a clone was not removed");
        }
        if let Some(Making { answer, failure: Some(failure), .. }) = self.clones.remove(&to) {
            refuse(answer, failure);
        }
    }

    /// The pool stops: no clone is gone on with, nor any image that is brought.
    pub(super) fn give_up_clones(&mut self) {
        for slot in self.replicas.values_mut() {
            slot.machine.give_up_clones(|_| true);
            slot.machine.give_up_copies();
        }
    }

    /// Up to where the log must be kept for copies that have a checkpoint and are not served yet.
    pub(super) fn kept_for_new(&self) -> Option<u64> {
        let kept = |purpose: &Purpose| match purpose {
            Purpose::FirstCheckpoint { log_seq, .. }
            | Purpose::OpenCreated { log_seq, .. }
            | Purpose::ClonePublished { log_seq, .. } => Some(*log_seq),
            _ => None,
        };
        self.ops.values().filter_map(kept).min()
    }

    /// Is this copy being made?
    pub(super) fn is_making(&self, key: ReplicaKey) -> bool {
        let is = |durable: &Durable| (durable.volume, durable.rid) == (key.volume, key.rid);
        let makes = |purpose: &Purpose| match purpose {
            Purpose::Create { durable, .. }
            | Purpose::FirstCheckpoint { durable, .. }
            | Purpose::OpenCreated { durable, .. } => is(durable),
            _ => false,
        };
        self.clones.contains_key(&key) || self.ops.values().any(makes)
    }
}
