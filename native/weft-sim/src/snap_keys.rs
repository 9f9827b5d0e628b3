//! The keys of snapshots in a simulated store, as weftd writes them and `weft store repair` makes them again.

use std::collections::BTreeMap;

use weft_proto::ids::{Rid, SnapId};
use weft_proto::images::{ImageState, Images};
use weft_proto::record::Snaps;
use weft_proto::session::{SnapChange, SnapData, SnapKnown, SnapState, SnapTaken};

/// A snapshot's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What its swap said.
    pub taken: SnapTaken,
    /// What members keep of it.
    pub note: Vec<u8>,
    /// Every listed member that was in sync has logged it (R27).
    pub logged: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// Whether it has its data.
    pub data: SnapData,
}

/// All keys of a volume.
pub type Keys = BTreeMap<SnapId, Key>;

/// The change of a key in the transaction that changed the record; an error if no session may ask for it. `note`: what
/// stands in the key of one that was taken.
pub fn change(keys: &mut Keys, change: SnapChange, note: Vec<u8>) -> Result<(), String> {
    let known = keys.get_mut(&change.id());
    match (change, known) {
        (SnapChange::Taken(taken), None) => {
            keys.insert(taken.id, Key { taken, note, logged: false, deleting: false, data: SnapData::Kept });
        }
        (SnapChange::Logged { .. }, Some(key)) => key.logged = true,
        (SnapChange::Deleting { .. }, Some(key)) => key.deleting = true,
        (SnapChange::Gone { id }, Some(key)) if key.deleting => drop(keys.remove(&id)),
        (SnapChange::Destroyed { .. }, Some(key)) if key.logged => key.data = SnapData::Going,
        (SnapChange::Emptied { .. }, Some(key)) if key.data == SnapData::Going => key.data = SnapData::Gone,
        (SnapChange::Changed { .. }, Some(_)) => {}
        (SnapChange::Added { rid, .. }, Some(key)) if key.logged && !key.deleting => {
            key.taken.members.retain(|member| *member != rid);
            key.taken.members.push(rid);
        }
        (change, _) => return Err(format!("a key that is not so is changed: {change:?}")),
    }
    Ok(())
}

/// The record counts the keys, and names one of them; an error if not.
pub fn agree(keys: &Keys, snaps: &Snaps) -> Result<(), String> {
    let newest = snaps.newest.is_none_or(|id| keys.contains_key(&id));
    if snaps.count as usize == keys.len() && newest {
        return Ok(());
    }
    Err(format!("the record says {snaps:?}, there are {} keys", keys.len()))
}

/// What weftd tells a session that has opened.
pub fn known(keys: &Keys) -> Vec<SnapKnown> {
    let known = |(id, key): (&SnapId, &Key)| SnapKnown {
        id: *id,
        attempt: key.taken.attempt,
        generation: key.taken.generation,
        state: match (key.deleting, key.logged) {
            (true, _) => SnapState::Deleting,
            (false, true) => SnapState::Logged,
            (false, false) => SnapState::Taken,
        },
        members: key.taken.members.clone(),
        note: key.note.clone(),
        data: key.data,
    };
    keys.iter().map(known).collect()
}

/// `weft store repair`: keys are made for what replicas have logged READY; being gone beats that. What the record says of
/// them then.
pub fn repair<'a>(keys: &mut Keys, told: impl Iterator<Item = (Rid, &'a Images)> + Clone) -> Snaps {
    for (rid, images) in told.clone() {
        for image in images.iter().filter(|image| image.state != ImageState::Prepared) {
            let taken = SnapTaken {
                id: image.id,
                attempt: image.attempt,
                generation: image.generation,
                epoch: image.epoch,
                incarnation: image.incarnation,
                size: image.size,
                region_shift: image.region_shift,
                members: Vec::new(),
            };
            let (logged, deleting, data) = (true, false, SnapData::Kept);
            let new = Key { taken, note: image.note.clone(), logged, deleting, data };
            let key = keys.entry(image.id).or_insert(new);
            key.deleting |= image.state == ImageState::Deleting;
            key.logged |= image.state == ImageState::Ready;
            if image.state == ImageState::Destroyed && key.data == SnapData::Kept {
                key.data = SnapData::Going;
            }
            if !key.taken.members.contains(&rid) {
                key.taken.members.push(rid);
            }
        }
    }
    for (_, images) in told {
        for (id, attempt) in images.gone() {
            if let Some(key) = keys.get_mut(&id).filter(|key| key.taken.attempt <= attempt) {
                key.deleting = true;
            }
        }
    }
    let newest = keys.values().max_by_key(|key| (key.taken.generation, key.taken.attempt));
    Snaps { count: keys.len() as u32, newest: newest.map(|key| key.taken.id), ..Snaps::default() }
}
