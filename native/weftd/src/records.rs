//! Changes of records that need no session: made, deleted, restored, fenced, repaired; and who may be trashed.
//!
//! Must always hold:
//! * each change is one compare-and-swap on the record's key, tried again only with the same nonce until its
//!   outcome is known (protocol.md R14);
//! * a record with an owner is changed by that owner alone, until its host is revoked and fenced; a tombstone needs
//!   `owner = null`;
//! * nothing is trashed because something is absent (R15).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};
use weft_control::types::{RepairPool, RepairSnapshot, VolumeFenced};
use weft_proto::ids::{Epoch, HostId, LayerMark, Nonce, PoolInc, Rev, Revision, Rid, VolumeId};
use weft_proto::record::{
    COUNTER_MAX, EPOCH_MAX, Head, HeadData, REPAIR_BELIEF, REPAIR_EPOCH_JUMP, Record, RecordError, Snaps,
};
use weft_proto::superblock::POOL_RISE_MAX;

use crate::clock::{random_u128, unix_seconds};
use crate::errors::{Code, Failure};
use crate::pools::{pool_key, stored_pool};
use crate::snapshots::repair::{RepairedSnaps, repaired_snaps};
use crate::snapshots::snaps_prefix;
use crate::store::{Entry, Expected, ReadError, Store, SwapOutcome};

/// How long a change is tried before its asker is told that the store is away.
const PATIENCE: Duration = Duration::from_secs(5);
/// A transaction of the store takes no more than 128 operations.
const KEYS_AT_ONCE: usize = 100;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// The key of a volume's record.
#[must_use]
pub fn record_key(volume: VolumeId) -> String {
    format!("/weft/v1/vol/{volume}/state")
}

/// The record under a volume's key; another volume's would lead to the wrong data.
pub fn record_of(entry: &Entry) -> Result<Record, RecordError> {
    let record = Record::parse(&entry.value)?;
    if entry.key == record_key(record.vol) {
        Ok(record)
    } else {
        Err(RecordError::Illegal("it is another volume's"))
    }
}

/// The code of a record that can't be used.
#[must_use]
pub fn code_of(error: &RecordError) -> Code {
    match error {
        RecordError::Newer(_) => Code::NEWER_RECORD,
        RecordError::TooLong(_) | RecordError::Malformed(_) | RecordError::Illegal(_) => Code::BAD_RECORD,
    }
}

/// A change of records.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordChange {
    /// Makes the record; one with the same `created_by` is taken for an earlier try.
    Create(Box<Record>),
    /// Marks it deleted.
    Delete {
        /// Which volume.
        volume: VolumeId,
        /// Its head alone, where it has snapshots.
        keep_snapshots: bool,
    },
    /// Takes the mark away.
    Restore(VolumeId),
    /// Makes a layer of it, before anybody opens it.
    Layer(VolumeId),
    /// Takes the ownership from a host that was revoked.
    Fence {
        /// Of which volume.
        volume: VolumeId,
        /// From whom.
        host: HostId,
    },
    /// Writes records that were kept by replicas into a lost or restored store, and what is known of pools, then raises
    /// its incarnation.
    Repair {
        /// The best record of each volume.
        records: Vec<Record>,
        /// The incarnation below which no disk is believed, of each pool.
        pools: Vec<RepairPool>,
        /// The snapshots that replicas have logged.
        snaps: Vec<RepairSnapshot>,
        /// The new incarnation.
        incarnation: u64,
    },
}

impl Store {
    /// Makes a change; the answer is the method's.
    pub(crate) async fn change(&self, change: RecordChange) -> Result<serde_json::Value, Failure> {
        let until = Instant::now() + PATIENCE;
        match change {
            RecordChange::Create(record) => self.create(&record, until).await,
            RecordChange::Delete { volume, keep_snapshots } => {
                let deleted = unix_seconds().to_string();
                self.alter(volume, until, |record| match record.snaps.count {
                    count if count > 0 && keep_snapshots => mark_head_deleted(record, &deleted),
                    _ => mark_deleted(record, &deleted),
                })
                .await?;
                Ok(json!({}))
            }
            RecordChange::Restore(volume) => {
                self.alter(volume, until, mark_restored).await?;
                Ok(json!({}))
            }
            RecordChange::Layer(volume) => {
                let mark = LayerMark(random_u128());
                self.alter(volume, until, |record| mark_layer(record, mark)).await?;
                Ok(json!({}))
            }
            RecordChange::Fence { volume, host } => {
                let (record, fenced) = self.alter(volume, until, |record| Ok(fence(record, host))).await?;
                Ok(json!(VolumeFenced { epoch: record.epoch, fenced }))
            }
            RecordChange::Repair { records, pools, snaps, incarnation } => {
                self.repair(records, &pools, &snaps, incarnation, until).await
            }
        }
    }

    async fn create(&self, record: &Record, until: Instant) -> Result<serde_json::Value, Failure> {
        let key = record_key(record.vol);
        match self.swap_until_known(&key, None, record.to_bytes(), until).await? {
            Ok(_) => Ok(json!({})),
            Err(None) => Err(Failure::new(Code::OUTCOME_UNKNOWN, "the record was made and is gone again")),
            Err(Some(there)) => {
                let there = parse(&there)?;
                if there.created_by == record.created_by {
                    return Ok(json!({}));
                }
                let message = format!("volume {} exists, made by another request", record.vol);
                Err(Failure::new(Code::VOLUME_EXISTS, message).with("volume", record.vol.to_string()))
            }
        }
    }

    /// Reads, changes and swaps until it is done or `change` refuses. `change` answers whether there is anything
    /// to write; so does this, with the record as it is then.
    async fn alter(
        &self,
        volume: VolumeId,
        until: Instant,
        change: impl Fn(&mut Record) -> Result<bool, Failure>,
    ) -> Result<(Record, bool), Failure> {
        let key = record_key(volume);
        let mut entry = self.read_until(&key, until).await?.ok_or_else(|| no_record(volume))?;
        loop {
            let mut record = parse(&entry)?;
            if !change(&mut record)? {
                return Ok((record, false));
            }
            record.nonce = Nonce(random_u128());
            record
                .check()
                .and_then(|()| record.check_counters())
                .map_err(|e| Failure::new(Code::BAD_RECORD, e.to_string()))?;
            match self.swap_until_known(&key, Some(&entry), record.to_bytes(), until).await? {
                Ok(_) => return Ok((record, true)),
                Err(current) => entry = current.ok_or_else(|| no_record(volume))?,
            }
        }
    }

    async fn read_until(&self, key: &str, until: Instant) -> Result<Option<Entry>, Failure> {
        loop {
            match self.read(vec![key.to_owned()]).await {
                Ok(snapshot) => return Ok(snapshot.entries.into_iter().next().flatten()),
                Err(ReadError::RolledBack(why)) => return Err(Failure::new(Code::STORE_ROLLED_BACK, why)),
                Err(ReadError::Watermark(why)) => return Err(Failure::new(Code::STATE_FILE, why)),
                Err(ReadError::Away(why)) if Instant::now() > until => return Err(away(&why)),
                Err(ReadError::Away(_)) => sleep(PAUSE).await,
            }
        }
    }

    /// The inner result: the new revision, or what is there instead.
    async fn swap_until_known(
        &self,
        key: &str,
        there: Option<&Entry>,
        value: Vec<u8>,
        until: Instant,
    ) -> Result<Result<Revision, Option<Entry>>, Failure> {
        let mut sent = false;
        loop {
            match self.swap(key.to_owned(), there.map(Expected::from), Some(value.clone()), &[]).await {
                SwapOutcome::Done { revision } => return Ok(Ok(revision)),
                SwapOutcome::Failed { current } => return Ok(Err(current)),
                SwapOutcome::RolledBack(why) => return Err(Failure::new(Code::STORE_ROLLED_BACK, why)),
                SwapOutcome::Away(why) if Instant::now() > until && !sent => return Err(away(&why)),
                SwapOutcome::Unknown(why) | SwapOutcome::Away(why) if Instant::now() > until => {
                    let message = format!("whether the change was made is not known: {why}");
                    return Err(Failure::new(Code::OUTCOME_UNKNOWN, message).with("cause", why));
                }
                SwapOutcome::Unknown(_) => sent = true,
                SwapOutcome::Away(_) => {}
            }
            sleep(PAUSE).await;
        }
    }

    async fn repair(
        &self,
        records: Vec<Record>,
        pools: &[RepairPool],
        snaps: &[RepairSnapshot],
        incarnation: u64,
        until: Instant,
    ) -> Result<serde_json::Value, Failure> {
        let (mut written, mut kept) = (0u32, 0u32);
        for best in records {
            let key = record_key(best.vol);
            loop {
                let there = self.read_unchecked(&key).await.map_err(|why| away(&why))?;
                let present = match there.as_ref().map(record_of).transpose() {
                    Ok(present) => present,
                    // Newer software knows better than this one what stands there.
                    Err(error @ RecordError::Newer(_)) => {
                        return Err(Failure::new(code_of(&error), format!("{key}: {error}")).with("key", key));
                    }
                    Err(_) => None,
                };
                let keys = self.list_unchecked(&snaps_prefix(best.vol)).await.map_err(|why| away(&why))?;
                let keys = repaired_snaps(best.vol, snaps, &keys);
                let raised = repaired(best.clone(), present.as_ref());
                let Some(mut record) = raised.or_else(|| recounted(present, &keys)) else {
                    kept += 1;
                    break;
                };
                record.snaps = Snaps { count: keys.count(), newest: keys.newest(), ..record.snaps };
                record.nonce = Nonce(random_u128());
                // Nobody believes this store before it is repaired; the last of them stand and fall with the record.
                let mut changed = keys.changed();
                while changed.len() > KEYS_AT_ONCE {
                    let rest = changed.split_off(KEYS_AT_ONCE);
                    self.put_unchecked(&changed).await.map_err(|why| away(&why))?;
                    changed = rest;
                }
                match self.swap_unchecked(&key, there, Some(record.to_bytes()), &changed).await {
                    SwapOutcome::Done { .. } => {
                        written += 1;
                        break;
                    }
                    SwapOutcome::Failed { .. } => {}
                    SwapOutcome::Unknown(why) | SwapOutcome::Away(why) | SwapOutcome::RolledBack(why) => {
                        if Instant::now() > until {
                            return Err(away(&why));
                        }
                        sleep(PAUSE).await;
                    }
                }
            }
        }
        for pool in pools {
            self.repair_pool(pool, until).await?;
        }
        // Last: from now on hosts believe this store.
        match self.set_incarnation(incarnation).await {
            SwapOutcome::Done { .. } => Ok(json!({ "written": written, "kept": kept })),
            SwapOutcome::Failed { .. } => {
                let message =
                    format!("the store's incarnation is above {incarnation} already, or another cluster's");
                Err(Failure::new(Code::STORE_ROLLED_BACK, message)
                    .with("incarnation", incarnation.to_string()))
            }
            SwapOutcome::Unknown(why) | SwapOutcome::Away(why) | SwapOutcome::RolledBack(why) => {
                Err(away(&why))
            }
        }
    }

    async fn repair_pool(&self, told: &RepairPool, until: Instant) -> Result<(), Failure> {
        let key = pool_key(told.pool);
        loop {
            let there = self.read_unchecked(&key).await.map_err(|why| away(&why))?;
            let Some(value) = repaired_pool(told, there.as_ref()) else { return Ok(()) };
            match self.swap_unchecked(&key, there, Some(value), &[]).await {
                SwapOutcome::Done { .. } => {
                    tracing::info!(pool = %told.pool, inc = %told.inc, "the pool's key was raised");
                    return Ok(());
                }
                SwapOutcome::Failed { .. } => {}
                SwapOutcome::Unknown(why) | SwapOutcome::Away(why) | SwapOutcome::RolledBack(why) => {
                    if Instant::now() > until {
                        return Err(away(&why));
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// The pool's key that a repair writes, or none if the store's is as high. It is only ever raised: a disk that is
/// behind anything known of it stays behind (R10; docs/adr/0012). No intent: the swap that a start has under way, with a
/// nonce on its disk, compared what stood in the store before, and is made anew.
fn repaired_pool(told: &RepairPool, there: Option<&Entry>) -> Option<Vec<u8>> {
    let present = there.map(stored_pool);
    // One that no starts lead to is a liar's, and is written over.
    let as_high = |inc: PoolInc| inc >= told.inc && inc.0 - told.inc.0 <= POOL_RISE_MAX;
    if present.is_some_and(|p| p.is_ok_and(|p| as_high(p.inc) || p.host != told.node)) {
        return None;
    }
    let value = there.and_then(|e| serde_json::from_slice::<serde_json::Value>(&e.value).ok());
    let mut value = value.filter(serde_json::Value::is_object).unwrap_or_else(|| json!({}));
    value["id"] = json!(told.pool);
    value["node"] = json!(told.node);
    value["inc"] = json!(told.inc);
    value["intent"] = json!(null);
    value["path"] = json!(told.path);
    value["kind"] = json!("dir");
    Some(serde_json::to_vec(&value).expect("a value is always JSON"))
}

/// The record that a repair writes for `best`, or none if the store's is as good: an earlier run's. The store's is not
/// looked at when no changes since `best` can have led to it: it is a liar's.
fn repaired(mut best: Record, present: Option<&Record>) -> Option<Record> {
    let present = present.filter(|p| p.epoch.0 <= best.epoch.0.saturating_add(REPAIR_BELIEF));
    let raised = best.epoch.0.saturating_add(REPAIR_EPOCH_JUMP);
    if present.is_some_and(|p| p.epoch.0 >= raised) {
        return None;
    }
    // A record that the restored store still has may be the younger one.
    if let Some(present) = present
        && present.version() > best.version()
    {
        best = present.clone();
    }
    best.epoch = Epoch(best.epoch.0.saturating_add(REPAIR_EPOCH_JUMP).min(EPOCH_MAX.0));
    // Below the higher epoch any rev is new.
    best.rev = if best.rev.0 < COUNTER_MAX / 2 { Rev(best.rev.0 + 1) } else { Rev(1) };
    best.owner = None;
    best.next = None;
    best.clean = false;
    // The session that owned the volume may still be reading (R9).
    best.wait = true;
    Some(best)
}

/// The record with other snapshots, for one that an earlier run has written. Whoever owns the volume by now changes it alone.
fn recounted(present: Option<Record>, keys: &RepairedSnaps) -> Option<Record> {
    let mut record = present.filter(|present| present.owner.is_none() && keys.is_changed())?;
    record.rev = Rev(record.rev.0 + 1);
    Some(record)
}

fn mark_deleted(record: &mut Record, deleted: &str) -> Result<bool, Failure> {
    if record.deleted.is_some() {
        return Ok(false);
    }
    refuse_open(record, "deleted")?;
    let count = record.snaps.count;
    if count > 0 {
        let message = format!("volume {} has {count} snapshots: delete them first", record.vol);
        let failure = Failure::new(Code::HAS_SNAPSHOTS, message).with("volume", record.vol.to_string());
        return Err(failure.with("snapshots", count));
    }
    raise(record);
    // What was deleted before its snapshots has rested since then.
    record.deleted = Some(record.head.as_ref().map_or(deleted, |head| &head.deleted).to_owned());
    Ok(true)
}

/// The volume lives on in its snapshots, and no guest opens it (docs/model.md R31).
fn mark_head_deleted(record: &mut Record, deleted: &str) -> Result<bool, Failure> {
    if record.deleted.is_some() || record.head.is_some() {
        return Ok(false);
    }
    refuse_open(record, "deleted")?;
    if record.reverting.is_some() {
        let message =
            format!("volume {} is being taken back to a snapshot; its head is not deleted", record.vol);
        return Err(Failure::new(Code::CHANGING, message).with("volume", record.vol.to_string()));
    }
    raise(record);
    let (deleted, unknown) = (deleted.to_owned(), BTreeMap::new());
    record.mark_head(Some(Head { deleted, data: HeadData::Kept, unknown }));
    Ok(true)
}

fn mark_restored(record: &mut Record) -> Result<bool, Failure> {
    if record.deleted.is_none() && record.head.is_none() {
        return Ok(false);
    }
    if record.head_data().is_some_and(|data| data != HeadData::Kept) {
        let message = format!("what only the head of volume {} had is given back", record.vol);
        return Err(Failure::new(Code::HEAD_GONE, message).with("volume", record.vol.to_string()));
    }
    refuse_open(record, "restored")?;
    raise(record);
    record.deleted = None;
    record.mark_head(None);
    Ok(true)
}

/// What was written before could not be told by sectors any more (docs/model.md R34).
fn mark_layer(record: &mut Record, mark: LayerMark) -> Result<bool, Failure> {
    if record.layer.is_some() {
        return Ok(false);
    }
    if record.deleted.is_some() || record.head.is_some() || !record.is_unopened() {
        let message =
            format!("volume {} was opened before, or is deleted: it can't become a layer", record.vol);
        return Err(Failure::new(Code::NO_LAYER, message).with("volume", record.vol.to_string()));
    }
    // Nothing else is what it was by this: no session has the volume, so the epoch stays, and nobody has opened it still.
    record.rev = Rev(record.rev.0 + 1);
    record.mark_layer(mark);
    Ok(true)
}

fn refuse_open(record: &Record, what: &str) -> Result<(), Failure> {
    let Some(owner) = record.owner else { return Ok(()) };
    let message = format!("volume {} is open on host {}; not {what}", record.vol, owner.node);
    Err(Failure::new(Code::OPEN_ELSEWHERE, message)
        .with("volume", record.vol.to_string())
        .with("host", owner.node.to_string())
        .with("session", owner.session.to_string()))
}

/// As a steal does it, for an owner that will not hear of it: whoever opens next waits for the lease that it may still
/// have (R9; `weft-model`, case fence-without-wait).
fn fence(record: &mut Record, host: HostId) -> bool {
    if record.owner.is_none_or(|owner| owner.node != host) {
        return false;
    }
    raise(record);
    record.owner = None;
    record.wait = true;
    true
}

fn raise(record: &mut Record) {
    record.epoch = record.epoch.next();
    record.rev = Rev(record.rev.0 + 1);
    // A handover that was prepared under the lower epoch must not go on.
    record.next = None;
}

/// May a replica that keeps `kept` go to the trash, now that the store shows `present`? Else why not, as a
/// sentence (R15).
pub fn may_trash(kept: Option<&Record>, present: Option<&Record>, rid: Rid) -> Result<(), String> {
    let Some(present) = present else {
        return Err("the store has no record of the volume: absence deletes nothing".to_owned());
    };
    if let Some(kept) = kept
        && present.version() <= kept.version()
    {
        let (epoch, rev) = present.version();
        let (kept_epoch, kept_rev) = kept.version();
        return Err(format!(
            "the store's record (epoch {epoch}, rev {rev}) is not above the replica's (epoch {kept_epoch}, rev {kept_rev})"
        ));
    }
    if present.deleted.is_some() {
        return match present.snaps.count {
            0 => Ok(()),
            count => Err(format!("the deleted volume has {count} snapshots, which need their images")),
        };
    }
    if present.replica(rid).is_some() {
        return Err(format!("the volume's record names {rid}"));
    }
    if present.next_rid <= rid.0 {
        return Err(format!(
            "the record's next replica is r{}: {rid} was never taken out of it",
            present.next_rid
        ));
    }
    Ok(())
}

/// Who wants a replica in the trash destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmptiedBy {
    /// Nobody: its time is over.
    Age,
    /// An operator said so.
    Operator,
    /// The pool is nearly full.
    Room,
}

/// May a replica in the trash be destroyed, now that the store shows `present`? Else why not, as a sentence
/// (docs/model.md, finding 14).
///
/// Age alone proves nothing: the volume may have been restored while this host was off, and the copy in the trash is
/// then one that the record counts on. Absence proves nothing either (R15): a store that lost its data, or a repair
/// that has not come to this volume yet, looks the same, and the trash may hold what the repair needs. An operator who
/// asks has decided that; but no word of theirs destroys a copy that a living record names.
pub fn may_empty(present: Option<&Record>, rid: Rid, by: EmptiedBy) -> Result<(), String> {
    match present {
        None if by == EmptiedBy::Operator => Ok(()),
        None => Err("the store has no record of the volume: absence deletes nothing".to_owned()),
        Some(record) if record.deleted.is_some() && by == EmptiedBy::Room => {
            Err("the volume can be restored still".to_owned())
        }
        Some(record) if record.deleted.is_some() => Ok(()),
        Some(record) if record.replica(rid).is_some() => {
            Err(format!("the volume is not deleted, and its record names {rid}"))
        }
        Some(_) => Ok(()),
    }
}

fn parse(entry: &Entry) -> Result<Record, Failure> {
    record_of(entry)
        .map_err(|e| Failure::new(code_of(&e), format!("{}: {e}", entry.key)).with("key", entry.key.as_str()))
}

fn no_record(volume: VolumeId) -> Failure {
    Failure::new(Code::NO_SUCH, format!("no volume {volume} in the store")).with("volume", volume.to_string())
}

fn away(why: &str) -> Failure {
    Failure::new(Code::STORE_AWAY, format!("the store can't be reached: {why}")).with("cause", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::ids::{PoolId, SessionId};
    use weft_proto::record::{Owner, Snaps};

    fn record() -> Record {
        let text = include_bytes!("../../weft-proto/specimens/record-v1.json");
        let mut record = Record::parse(text).expect("specimen");
        record.owner = None;
        record
    }

    #[test]
    fn a_deleted_volume_has_a_higher_epoch_and_comes_back_with_a_higher_one() {
        let mut r = record();
        let before = r.version();
        assert_eq!(mark_deleted(&mut r, "77"), Ok(true));
        assert!(r.version() > before && r.deleted.as_deref() == Some("77"));
        assert_eq!(mark_deleted(&mut r, "78"), Ok(false), "deleted already");
        let deleted = r.version();
        assert_eq!(mark_restored(&mut r), Ok(true));
        assert!(r.version() > deleted && r.deleted.is_none());
        assert_eq!(mark_restored(&mut r), Ok(false));
    }

    #[test]
    fn a_fence_takes_the_volume_from_that_host_alone_and_leaves_a_wait() {
        let mut r = record();
        assert!(!fence(&mut r, HostId(1)), "nobody owns it");
        r.owner = Some(Owner { node: HostId(1), session: SessionId(2), caretaker: false, first: None });
        let before = r.version();
        assert!(!fence(&mut r, HostId(2)) && r.version() == before, "another host owns it");
        assert!(fence(&mut r, HostId(1)));
        assert_eq!((r.owner, r.next, r.wait, r.clean), (None, None, true, false));
        assert_eq!((r.epoch, r.rev), (before.0.next(), Rev(before.1.0 + 1)));
    }

    #[test]
    fn a_volume_that_is_open_is_not_deleted() {
        let mut r = record();
        r.owner = Some(Owner { node: HostId(1), session: SessionId(2), caretaker: false, first: None });
        assert_eq!(mark_deleted(&mut r, "77").expect_err("open").code, Code::OPEN_ELSEWHERE);
    }

    #[test]
    fn a_volume_whose_head_is_deleted_lives_on_in_its_snapshots() {
        let mut r = record();
        r.snaps.count = 2;
        let before = r.version();
        assert_eq!(mark_head_deleted(&mut r, "77"), Ok(true));
        assert!(r.version() > before && r.deleted.is_none() && r.check().is_ok());
        assert_eq!((r.fmt, r.min_reader, r.head_data()), (3, 3, Some(HeadData::Kept)));
        assert_eq!(mark_head_deleted(&mut r, "78"), Ok(false), "asked again");
        assert_eq!(mark_deleted(&mut r, "78").expect_err("it has snapshots").code, Code::HAS_SNAPSHOTS);
        // Its copies are the snapshots' copies.
        let rid = r.replicas[0].rid;
        assert!(
            may_trash(Some(&record()), Some(&r), rid).is_err()
                && may_empty(Some(&r), rid, EmptiedBy::Age).is_err()
        );
        // Brought back, older software may open it.
        let mut restored = r.clone();
        assert_eq!(mark_restored(&mut restored), Ok(true));
        assert!(restored.version() > r.version() && restored.head.is_none());
        assert_eq!((restored.fmt, restored.min_reader), (1, 1));
        // The last snapshot goes: what rested with them rests on, and no longer.
        r.snaps = Snaps::default();
        let mut gone = r.clone();
        assert_eq!(mark_deleted(&mut gone, "99"), Ok(true));
        assert!(gone.deleted.as_deref() == Some("77") && gone.check().is_ok());
        assert_eq!(mark_restored(&mut gone), Ok(true));
        assert!(gone.deleted.is_none() && gone.head.is_none());
        // What has begun to go doesn't come back.
        for data in [HeadData::Releasing, HeadData::Released] {
            let mut r = r.clone();
            r.mark_head(r.head.clone().map(|head| Head { data, ..head }));
            assert_eq!(mark_restored(&mut r).expect_err("it goes").code, Code::HEAD_GONE);
            assert_eq!(mark_deleted(&mut r, "99"), Ok(true));
            assert_eq!(mark_restored(&mut r).expect_err("it is gone").code, Code::HEAD_GONE);
        }
    }

    #[test]
    fn the_head_of_a_volume_that_is_used_is_not_deleted() {
        let caretaker = Some(Owner { node: HostId(1), session: SessionId(2), caretaker: true, first: None });
        let mut r = record();
        r.owner = caretaker;
        assert_eq!(mark_head_deleted(&mut r, "77").expect_err("open").code, Code::OPEN_ELSEWHERE);
        r.owner = None;
        assert_eq!(mark_head_deleted(&mut r, "77"), Ok(true));
        r.owner = caretaker;
        assert_eq!(mark_restored(&mut r).expect_err("open").code, Code::OPEN_ELSEWHERE);
        let marked = include_bytes!("../../weft-proto/specimens/record-v2.json");
        let mut reverting = Record::parse(marked).expect("specimen");
        reverting.owner = None;
        assert_eq!(mark_head_deleted(&mut reverting, "77").expect_err("begun").code, Code::CHANGING);
    }

    #[test]
    fn a_volume_that_has_snapshots_is_not_deleted() {
        let mut r = record();
        r.snaps.count = 2;
        let before = r.clone();
        let failure = mark_deleted(&mut r, "77").expect_err("it has two");
        assert_eq!((failure.code, &failure.facts["snapshots"]), (Code::HAS_SNAPSHOTS, &json!(2)));
        assert_eq!(r, before);
    }

    #[test]
    fn only_a_present_younger_record_lets_a_replica_be_trashed() {
        let kept = record();
        let rid = kept.replicas[0].rid;
        let mut without = kept.clone();
        without.replicas.retain(|r| r.rid != rid);
        without.rev = Rev(kept.rev.0 + 1);
        assert_eq!(may_trash(Some(&kept), Some(&without), rid), Ok(()));
        assert_eq!(may_trash(None, Some(&without), rid), Ok(()));
        assert!(may_trash(Some(&kept), None, rid).is_err(), "N5: the store lost its data");
        assert!(may_trash(Some(&kept), Some(&kept), rid).is_err(), "it is named there");
        let mut older = without.clone();
        older.rev = kept.rev;
        assert!(may_trash(Some(&kept), Some(&older), rid).is_err(), "S16: a store that went back");
        let mut never = without.clone();
        never.next_rid = rid.0;
        assert!(may_trash(None, Some(&never), rid).is_err(), "not made yet, rather than removed");
        let mut deleted = kept.clone();
        assert_eq!(mark_deleted(&mut deleted, "77"), Ok(true));
        assert_eq!(may_trash(Some(&kept), Some(&deleted), rid), Ok(()));
        let mut with_snapshots = deleted.clone();
        with_snapshots.snaps.count = 1;
        assert!(may_trash(Some(&kept), Some(&with_snapshots), rid).is_err(), "images go with the copy");
        let mut restored = deleted.clone();
        assert_eq!(mark_restored(&mut restored), Ok(true));
        assert!(may_trash(Some(&kept), Some(&restored), rid).is_err(), "N19: restored in between");
    }

    #[test]
    fn the_trash_keeps_what_a_living_record_names() {
        let living = record();
        let rid = living.replicas[0].rid;
        let mut deleted = living.clone();
        assert_eq!(mark_deleted(&mut deleted, "77"), Ok(true));
        let mut without = living.clone();
        without.replicas.retain(|r| r.rid != rid);
        for by in [EmptiedBy::Age, EmptiedBy::Operator] {
            assert_eq!(may_empty(Some(&deleted), rid, by), Ok(()));
            assert_eq!(may_empty(Some(&without), rid, by), Ok(()));
            assert!(may_empty(Some(&living), rid, by).is_err(), "restored meanwhile");
        }
        assert!(may_empty(None, rid, EmptiedBy::Age).is_err(), "N5: the store lost its data");
        assert_eq!(may_empty(None, rid, EmptiedBy::Operator), Ok(()));
        // For room only what nobody can ask back: not a deleted volume, which can be restored.
        assert_eq!(may_empty(Some(&without), rid, EmptiedBy::Room), Ok(()));
        for kept in [Some(&deleted), Some(&living), None] {
            assert!(may_empty(kept, rid, EmptiedBy::Room).is_err(), "{kept:?}");
        }
    }

    #[test]
    fn a_repair_jumps_each_epoch_once() {
        let mut best = record();
        best.owner = Some(Owner { node: HostId(1), session: SessionId(2), caretaker: false, first: None });
        best.clean = false;
        let first = repaired(best.clone(), None).expect("to be written");
        assert_eq!(first.epoch.0, best.epoch.0 + REPAIR_EPOCH_JUMP);
        assert!(first.owner.is_none() && first.wait && first.check().is_ok());
        assert_eq!(repaired(best.clone(), Some(&first)), None, "an earlier run wrote it");
        let mut younger = best.clone();
        younger.rev = Rev(best.rev.0 + 5);
        younger.next_rid += 1;
        let merged = repaired(best, Some(&younger)).expect("to be written");
        assert_eq!(merged.next_rid, younger.next_rid, "the store's own record was younger");
    }

    /// Any host can write a record near the end of its range into the store: it neither leads a repair nor stands in its
    /// way, and what the repair writes leaves room for changes.
    #[test]
    fn a_repair_writes_over_what_no_changes_can_have_led_to() {
        let best = record();
        let with = |epoch: u64, rev: u64| {
            let mut liars = best.clone();
            (liars.epoch, liars.rev) = (Epoch(epoch), Rev(rev));
            liars
        };
        for epoch in [best.epoch.0 + REPAIR_BELIEF + 1, 1 << 38, EPOCH_MAX.0] {
            let written = repaired(best.clone(), Some(&with(epoch, 1))).expect("to be written");
            assert_eq!(written.epoch.0, best.epoch.0 + REPAIR_EPOCH_JUMP, "over {epoch}");
        }
        let followed = best.epoch.0 + REPAIR_BELIEF;
        assert_eq!(
            repaired(best.clone(), Some(&with(followed, 1))),
            None,
            "years of changes may have led there"
        );
        for rev in [COUNTER_MAX, COUNTER_MAX / 2] {
            let written = repaired(with(best.epoch.0, rev), None).expect("to be written");
            assert!(written.rev == Rev(1) && written.version() > (best.epoch, Rev(rev)));
            let written = repaired(best.clone(), Some(&with(best.epoch.0, rev))).expect("to be written");
            assert!(written.rev == Rev(1) && written.check_counters().is_ok());
        }
    }

    #[test]
    fn a_repair_writes_over_a_pools_key_that_no_starts_can_have_led_to() {
        let (pool, node) = (PoolId(1), HostId(2));
        let told = RepairPool { pool, node, inc: PoolInc(7), path: "/p".to_owned() };
        let there = |inc: &str| {
            let value = json!({ "node": node, "inc": inc, "intent": null }).to_string().into_bytes();
            Entry { key: pool_key(pool), value, revision: Revision(3) }
        };
        let written = |inc: &str| {
            let value = repaired_pool(&told, Some(&there(inc)))?;
            Some(serde_json::from_slice::<serde_json::Value>(&value).expect("JSON")["inc"].clone())
        };
        for kept in [7, 8, 7 + POOL_RISE_MAX] {
            assert_eq!(written(&kept.to_string()), None, "{kept}");
        }
        for liars in [8 + POOL_RISE_MAX, COUNTER_MAX, u64::MAX] {
            assert_eq!(written(&liars.to_string()), Some(json!("7")), "{liars}");
        }
        assert_eq!(written("6"), Some(json!("7")));
    }
}
