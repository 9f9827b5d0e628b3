//! The keys of a volume's snapshots after a repair of the store, from what its replicas have logged (protocol.md R15, R27).
//!
//! Must always hold:
//! * a snapshot that a replica has logged READY has a key again, unless one says that it goes or is gone: that beats READY;
//! * what the store still says of a snapshot stays.

use std::collections::{BTreeMap, BTreeSet};

use weft_control::types::{ImageState, RepairSnapshot};
use weft_proto::ids::{GroupId, Nonce, SnapId, VolumeId};

use super::{FORMAT, FORMAT_KEPT, KeyData, KeyState, SnapGroupKey, SnapKey, snap_key};
use crate::store::{Beside, Entry};

/// See the module.
#[derive(Debug, Default)]
pub struct RepairedSnaps {
    keys: BTreeMap<SnapId, SnapKey>,
    /// Those that are not what the store has.
    changed: BTreeSet<SnapId>,
    /// Keys that can't be understood: newer software's.
    others: u32,
}

/// The keys that a repair makes of what it is told, and of those that the store has.
#[must_use]
pub fn repaired_snaps(volume: VolumeId, told_of_all: &[RepairSnapshot], there: &[Entry]) -> RepairedSnaps {
    let mut repaired = RepairedSnaps::default();
    for entry in there {
        match SnapKey::of(entry) {
            Ok(key) => {
                repaired.keys.insert(key.id, key);
            }
            Err(_) => repaired.others += 1,
        }
    }
    for told in told_of_all.iter().filter(|told| told.volume == volume) {
        repaired.take_in(told, |group| volumes_of(told_of_all, group));
    }
    repaired
}

/// The volumes of which somebody has a snapshot of this group.
fn volumes_of(told: &[RepairSnapshot], group: GroupId) -> Vec<VolumeId> {
    let is_of =
        |told: &&RepairSnapshot| told.image.note.as_ref().is_some_and(|note| note.group == Some(group));
    let volumes: BTreeSet<VolumeId> = told.iter().filter(is_of).map(|told| told.volume).collect();
    volumes.into_iter().collect()
}

impl RepairedSnaps {
    fn take_in(&mut self, told: &RepairSnapshot, volumes: impl Fn(GroupId) -> Vec<VolumeId>) {
        let image = &told.image;
        let state = match image.state {
            // Nobody was told of it (R27).
            ImageState::Prepared => return,
            ImageState::Ready | ImageState::Destroyed => KeyState::Ready,
            ImageState::Deleting => KeyState::Deleting,
        };
        // It may have been begun at one copy alone: all do it, or find that they have.
        let data = if image.state == ImageState::Destroyed { KeyData::Destroying } else { KeyData::Kept };
        if let Some(key) = self.keys.get_mut(&image.snap) {
            if state == KeyState::Deleting && key.state == KeyState::Ready && image.attempt >= key.attempt {
                key.state = KeyState::Deleting;
                self.changed.insert(image.snap);
            }
            if data != KeyData::Kept && key.data == KeyData::Kept && image.attempt >= key.attempt {
                (key.data, key.fmt) = (data, FORMAT);
                self.changed.insert(image.snap);
            }
            return;
        }
        let Some(note) = &image.note else { return };
        let key = SnapKey {
            fmt: if data == KeyData::Kept { FORMAT_KEPT } else { FORMAT },
            id: image.snap,
            vol: told.volume,
            name: note.name.clone(),
            generation: image.generation,
            attempt: image.attempt,
            epoch: image.epoch,
            incarnation: image.incarnation,
            size: image.size,
            region_shift: image.region_shift,
            state,
            data,
            logged: true,
            members: told.members.clone(),
            created: note.created,
            created_by: note.created_by.clone(),
            group: note.group.map(|id| SnapGroupKey { id, volumes: volumes(id), unknown: BTreeMap::new() }),
            protected: false,
            pins: Vec::new(),
            nonce: Nonce(0),
            unknown: BTreeMap::new(),
        };
        self.keys.insert(image.snap, key);
        self.changed.insert(image.snap);
    }

    /// Is any not what the store has?
    #[must_use]
    pub fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.others.saturating_add(u32::try_from(self.keys.len()).unwrap_or(u32::MAX))
    }

    /// The one that was taken last.
    #[must_use]
    pub fn newest(&self) -> Option<SnapId> {
        self.keys.values().max_by_key(|key| (key.generation, key.attempt)).map(|key| key.id)
    }

    /// What is to be written.
    #[must_use]
    pub fn changed(&self) -> Vec<Beside> {
        let changed = self.changed.iter().filter_map(|id| self.keys.get(id));
        changed.map(|key| Beside { key: snap_key(key.vol, key.id), value: Some(key.to_bytes()) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_control::types::{Decimal, KeptImage, SnapshotMember, SnapshotNote};
    use weft_proto::ids::{Epoch, Generation, HostId, PoolId, Revision, Rid};

    const VOLUME: VolumeId = VolumeId(7);

    fn told(snap: u128, state: ImageState, attempt: u64) -> RepairSnapshot {
        let (name, created_by) = (format!("s{snap}"), "me".to_owned());
        let note = SnapshotNote { name, created: Decimal(5), created_by, group: None };
        let image = KeptImage {
            snap: SnapId(snap),
            state,
            attempt: Decimal(attempt),
            generation: Generation::new(Epoch(3), u32::try_from(attempt).expect("small")),
            epoch: Epoch(3),
            incarnation: Decimal(1),
            size: Decimal(1 << 20),
            region_shift: 20,
            note: Some(note),
        };
        let members = vec![SnapshotMember { rid: Rid(1), node: HostId(2), pool: PoolId(3) }];
        RepairSnapshot { volume: VOLUME, image, members }
    }

    fn entries(repaired: &RepairedSnaps) -> Vec<Entry> {
        let entry = |beside: Beside| Entry {
            key: beside.key,
            value: beside.value.expect("it is put"),
            revision: Revision(1),
        };
        repaired.changed().into_iter().map(entry).collect()
    }

    #[test]
    fn what_was_logged_ready_has_a_key_again_and_what_is_there_stays() {
        let all =
            [told(1, ImageState::Ready, 1), told(2, ImageState::Ready, 2), told(3, ImageState::Prepared, 3)];
        let first = repaired_snaps(VOLUME, &all, &[]);
        assert_eq!((first.count(), first.newest()), (2, Some(SnapId(2))), "nobody was told of the third");
        assert!(first.keys.values().all(SnapKey::is_there));
        let again = repaired_snaps(VOLUME, &all, &entries(&first));
        assert!(!again.is_changed() && again.count() == 2);
        assert_eq!(repaired_snaps(VolumeId(8), &all, &[]).count(), 0, "another volume's");
    }

    #[test]
    fn what_was_taken_in_a_group_says_so_again() {
        let mut all = [1, 2, 3].map(|snap| told(snap, ImageState::Ready, 1));
        (all[1].volume, all[2].volume) = (VolumeId(8), VolumeId(9));
        for told in &mut all[..2] {
            told.image.note.as_mut().expect("noted").group = Some(GroupId(5));
        }
        let groups = [7, 8, 9].map(|volume| {
            let repaired = repaired_snaps(VolumeId(volume), &all, &[]);
            repaired.keys.values().next().expect("one").group.clone().map(|group| (group.id, group.volumes))
        });
        let group = Some((GroupId(5), vec![VolumeId(7), VolumeId(8)]));
        assert_eq!(groups, [group.clone(), group, None]);
    }

    /// `weft-model`, case snapshot-repair-ignores-gone.
    #[test]
    fn gone_beats_ready_but_not_that_of_a_later_attempt() {
        let ready = repaired_snaps(VOLUME, &[told(1, ImageState::Ready, 2)], &[]);
        for (attempt, state) in [(1, KeyState::Ready), (2, KeyState::Deleting), (3, KeyState::Deleting)] {
            let gone = told(1, ImageState::Deleting, attempt);
            let repaired = repaired_snaps(VOLUME, &[gone], &entries(&ready));
            assert_eq!(repaired.keys[&SnapId(1)].state, state, "{attempt}");
            assert_eq!(repaired.is_changed(), state == KeyState::Deleting);
        }
        let deleted = repaired_snaps(VOLUME, &[told(1, ImageState::Deleting, 2)], &[]);
        let back = repaired_snaps(VOLUME, &[told(1, ImageState::Ready, 2)], &entries(&deleted));
        assert_eq!(back.keys[&SnapId(1)].state, KeyState::Deleting, "whoever comes later changes nothing");
    }
}
