//! The volume's record in the store (protocol.md 4.2): one JSON value, each change one compare-and-swap.
//!
//! Must always hold:
//! * fields that this version does not know are kept when it writes;
//! * a record that asks for newer software is refused by name, never half understood;
//! * the in-sync set is never empty, and a tombstone has no owner (I2, I7).

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{
    Epoch, Generation, HostId, LayerMark, Nonce, PoolId, PoolInc, Rev, Rid, SessionId, SnapId, VolumeId,
};

/// The newest record format that this software reads. It writes the one that the record's marks need, so that software which
/// knows nothing of a mark opens no such volume: this one where the volume is a layer (R34).
pub const FORMAT: u32 = 4;
/// The format of a record whose head is deleted (R31).
pub const FORMAT_HEADLESS: u32 = 3;
/// The format of a record with the marker of a revert (R30).
pub const FORMAT_REVERTING: u32 = 2;
/// The format of a record without marks.
pub const FORMAT_PLAIN: u32 = 1;
/// The largest record in bytes of JSON.
pub const RECORD_MAX: usize = 8192;
/// The largest volume: 64 TiB.
pub const SIZE_MAX: u64 = 64 << 40;
/// The most regions of one volume (protocol.md 4.2): what a replica has memory for.
pub const REGIONS_MAX: u64 = 1 << 20;
/// The most replicas of one volume.
pub const REPLICAS_MAX: usize = 8;
/// The most bytes of JSON for all that only others write: fields of newer software, layers, lineage, free
/// texts. What is left of [`RECORD_MAX`] holds the longest that this software ever makes of the rest, so that no
/// session that opened a volume finds it too long to be changed.
pub const FOREIGN_MAX: usize = 4096;
/// The most lineage entries.
pub const LINEAGE_MAX: usize = 20;
/// How far `weft store repair` raises every epoch (R11): above what any replica can have promised meanwhile.
pub const REPAIR_EPOCH_JUMP: u64 = 1 << 20;
/// How far above what the copies keep a repair believes the store's own record: 128 repairs, or a change a second for four
/// years. Any host can write that record. Less than [`crate::replica::RISE_AT_ONCE`]: what a repair has written over, or
/// was led by, the copies must be able to promise.
pub const REPAIR_BELIEF: u64 = 1 << 27;
/// The highest epoch of a record. No volume gets there by changes; whoever reads it must be able to raise it without
/// looking.
pub const EPOCH_MAX: Epoch = Epoch(Epoch::MAX.0 / 2);
/// The highest value of what else is counted in the store: a record's rev, the incarnations of pools and of the store. A
/// change a second takes nine million years to get there, and whoever reads it must be able to raise it.
pub const COUNTER_MAX: u64 = 1 << 48;

/// A volume's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Format of this record.
    pub fmt: u32,
    /// Oldest format whose software may open the volume.
    pub min_reader: u32,
    /// The volume.
    pub vol: VolumeId,
    /// Size in bytes, whole blocks.
    #[serde(with = "decimal")]
    pub size: u64,
    /// Regions are `1 << region_shift` bytes.
    pub region_shift: u8,
    /// Single writer or register.
    pub mode: Mode,
    /// What the administrator wants.
    pub policy: Policy,
    /// +1 on every change of owner, in-sync set or acknowledgement mode.
    pub epoch: Epoch,
    /// +1 on every swap.
    pub rev: Rev,
    /// Next free replica number.
    pub next_rid: u32,
    /// When the volume was deleted, in Unix seconds as decimal text; of one whose head went before its snapshots, when that
    /// was.
    pub deleted: Option<String>,
    /// Token of the request that made the volume; creation is idempotent by it.
    pub created_by: String,
    /// Random per swap (R14).
    pub nonce: Nonce,
    /// Who may write.
    pub owner: Option<Owner>,
    /// Prepared handover target.
    pub next: Option<Owner>,
    /// Closed in order: all members sealed at `closed_gen` (I26).
    pub clean: bool,
    /// Where a clean close sealed.
    pub closed_gen: Generation,
    /// The replicas.
    pub replicas: Vec<ReplicaEntry>,
    /// Its snapshots, each with a key of its own.
    pub snaps: Snaps,
    /// Layer below, reserved.
    pub parent: Option<Value>,
    /// Forks of the volume's history.
    pub lineage: Vec<Value>,
    /// A steal whose read-lease wait is not over (R9).
    pub wait: bool,
    /// It is being taken back to a snapshot: whoever opens it finishes that before it serves (R30). Set and taken off by
    /// [`Record::mark`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverting: Option<Reverting>,
    /// Its head is deleted, and it lives on in its snapshots: no guest opens it (R31). Set and taken off by
    /// [`Record::mark_head`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// It is a layer: what is written to it is to be laid over another volume (R34). Set by [`Record::mark_layer`] alone,
    /// before the volume is opened for the first time, and never taken off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Layer>,
    /// Fields of newer writers, kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// The mark of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// What stands in sectors that nobody has written; never all zeroes.
    pub mark: LayerMark,
    /// Fields of newer writers, kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// The mark of a volume whose head is deleted while its snapshots live on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Since when, in Unix seconds as decimal text.
    pub deleted: String,
    /// What has become of what only the head has.
    pub data: HeadData,
    /// Fields of newer writers, kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// What has become of what only a deleted head has. It only ever goes on to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadData {
    /// All of it is there: the head can be restored.
    Kept,
    /// It is being given back.
    Releasing,
    /// It was given back.
    Released,
}

/// The marker of a revert: which snapshot the volume is being taken back to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reverting {
    /// The snapshot.
    pub snap: SnapId,
    /// The generation of its barrier: what is stamped above has changed since.
    #[serde(rename = "gen")]
    pub generation: Generation,
    /// Which attempt's images are its own.
    #[serde(with = "decimal")]
    pub attempt: u64,
    /// Since when, in Unix milliseconds as decimal text; for people.
    pub since: String,
    /// Fields of newer writers, kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// How a volume may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One owner.
    Excl,
    /// No owner, every block a register (4.17).
    Register,
}

/// What is wanted of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Wanted copies, 1 to 8.
    pub copies: u8,
    /// Fewest in-sync members under which writes complete, 1 to `copies`.
    pub min_isr: u8,
    /// When a write is acknowledged.
    pub ack: Ack,
    /// What a guest sees while the volume waits.
    pub on_loss: OnLoss,
    /// What copies must not share.
    pub spread: String,
    /// Fields of newer writers, kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// Acknowledgement mode (4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// On stable media at every in-sync member.
    Durable,
    /// In every in-sync member's kernel or device cache.
    Cached,
}

/// Policy while a volume waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// Requests wait.
    Pause,
    /// Requests fail.
    Error,
}

/// A session that owns, or will own, the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its host.
    pub node: HostId,
    /// The session.
    pub session: SessionId,
    /// No guest behind it: anybody may take the volume over.
    #[serde(default, skip_serializing_if = "is_false")]
    pub caretaker: bool,
    /// The session that began this ownership; none: this one. Kept by a guest's session that replaces exactly a guest's
    /// session of its own host whose process has ended (R32): as long as it is the same nobody else has owned the volume in
    /// between. It stands within the owner, so that software which does not know it drops it with every swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<SessionId>,
}

impl Owner {
    /// The session that began this ownership.
    #[must_use]
    pub fn first(&self) -> SessionId {
        self.first.unwrap_or(self.session)
    }
}

// Serde asks for a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !*value
}

/// What the record says of a volume's snapshots. Each change of a snapshot's key raises the record's `rev` in the same
/// transaction, so that whoever compares the record compares these keys, too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snaps {
    /// How many keys there are: also of those that are being deleted.
    pub count: u32,
    /// The one that was taken last, of those.
    pub newest: Option<SnapId>,
    /// Fields of newer writers, kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// One replica in the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaEntry {
    /// Its number.
    pub rid: Rid,
    /// Its host.
    pub node: HostId,
    /// Its pool.
    pub pool: PoolId,
    /// The pool's incarnation when last seen.
    pub pool_inc: PoolInc,
    /// What it counts for.
    pub state: ReplicaState,
    /// The generation up to and including which it holds every completed write; meaningful unless `INSYNC`.
    pub base: Generation,
    /// Why it is in this state, for people.
    pub reason: String,
    /// Since when, in Unix milliseconds as decimal text; for people.
    pub since: String,
    /// Fields of newer writers, kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// What a replica counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaState {
    /// Must acknowledge everything, may serve reads.
    #[serde(rename = "INSYNC")]
    InSync,
    /// Behind; has a base.
    #[serde(rename = "STALE")]
    Stale,
    /// Stale and being copied to; for people only.
    #[serde(rename = "JOINING")]
    Joining,
    /// On its way out.
    #[serde(rename = "REMOVING")]
    Removing,
    /// Content not trusted.
    #[serde(rename = "QUARANTINED")]
    Quarantined,
}

/// Why bytes are not a record that this software may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// Longer than [`RECORD_MAX`].
    TooLong(usize),
    /// Not JSON of the right shape.
    Malformed(String),
    /// Written by newer software: its `min_reader`.
    Newer(u32),
    /// A value that no writer may produce.
    Illegal(&'static str),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::TooLong(len) => write!(f, "the record has {len} bytes, the limit is {RECORD_MAX}"),
            RecordError::Malformed(why) => write!(f, "the record is malformed: {why}"),
            RecordError::Newer(min) => {
                write!(f, "the record needs software that reads format {min}, this one reads {FORMAT}")
            }
            RecordError::Illegal(what) => write!(f, "the record is illegal: {what}"),
        }
    }
}

impl Record {
    /// Parses and checks a record.
    pub fn parse(bytes: &[u8]) -> Result<Record, RecordError> {
        if bytes.len() > RECORD_MAX {
            return Err(RecordError::TooLong(bytes.len()));
        }
        /// Read first, so that a newer record is told apart from a broken one.
        #[derive(Deserialize)]
        struct Versions {
            min_reader: u32,
        }
        let malformed = |e: serde_json::Error| RecordError::Malformed(e.to_string());
        let versions: Versions = serde_json::from_slice(bytes).map_err(malformed)?;
        if versions.min_reader > FORMAT {
            return Err(RecordError::Newer(versions.min_reader));
        }
        let record: Record = serde_json::from_slice(bytes).map_err(malformed)?;
        record.check()?;
        record.check_counters()?;
        Ok(record)
    }

    /// What only a writer of nonsense, or a liar, makes untrue: nobody believes such a record.
    pub fn check_counters(&self) -> Result<(), RecordError> {
        let incarnations = self.replicas.iter().map(|r| r.pool_inc.0);
        if self.epoch > EPOCH_MAX || incarnations.chain([self.rev.0]).any(|count| count > COUNTER_MAX) {
            return Err(RecordError::Illegal("epoch, rev or pool_inc at the end of its range"));
        }
        Ok(())
    }

    /// The record as JSON.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record is always JSON")
    }

    /// What every writer must keep true.
    pub fn check(&self) -> Result<(), RecordError> {
        let illegal = |what| Err(RecordError::Illegal(what));
        if self.size == 0 || !self.size.is_multiple_of(4096) || self.size > SIZE_MAX {
            return illegal("size must be whole 4 KiB blocks, 4 KiB to 64 TiB");
        }
        if !(16..=32).contains(&self.region_shift) || self.regions() > REGIONS_MAX {
            return illegal("region_shift must give at most 2^20 regions of 64 KiB to 4 GiB");
        }
        if self.epoch > Epoch::MAX {
            return illegal("epoch above 2^40");
        }
        if self.replicas.len() > REPLICAS_MAX || self.lineage.len() > LINEAGE_MAX {
            return illegal("more than 8 replicas or 20 lineage entries");
        }
        if self.policy.copies == 0 || usize::from(self.policy.copies) > REPLICAS_MAX {
            return illegal("copies must be 1 to 8");
        }
        if self.policy.min_isr == 0 || self.policy.min_isr > self.policy.copies {
            return illegal("min_isr must be 1 to copies");
        }
        for (i, r) in self.replicas.iter().enumerate() {
            if r.rid.0 >= self.next_rid || self.replicas[..i].iter().any(|o| o.rid == r.rid) {
                return illegal("replica numbers must be unique and below next_rid");
            }
        }
        if self.mode == Mode::Excl && self.in_sync().next().is_none() {
            return illegal("no in-sync replica");
        }
        if self.foreign_len() > FOREIGN_MAX {
            return illegal("texts and fields of other software take more than 4 KiB");
        }
        if self.snaps.count == 0 && self.snaps.newest.is_some() {
            return illegal("a newest snapshot where there is none");
        }
        if self.owner.is_some() && self.deleted.is_some() {
            return illegal("a deleted volume has no owner");
        }
        if self.clean && self.owner.is_some() {
            return illegal("a cleanly closed volume has no owner");
        }
        if self.reverting.is_some() && self.min_reader < FORMAT_REVERTING {
            return illegal("older software would open a volume that is being taken back to a snapshot");
        }
        if self.head.is_some() {
            if self.min_reader < FORMAT_HEADLESS {
                return illegal("older software would open a volume whose head is deleted");
            }
            if self.owner.is_some_and(|owner| !owner.caretaker) || self.reverting.is_some() {
                return illegal("a volume whose head is deleted has no guest, and is not taken back");
            }
        }
        if let Some(layer) = &self.layer {
            if self.min_reader < FORMAT {
                return illegal("older software would open a layer");
            }
            if layer.mark == LayerMark(0) {
                return illegal("the mark of a layer is none");
            }
        }
        Ok(())
    }

    /// See [`FOREIGN_MAX`]; times and reasons count as far as they are longer than ours.
    fn foreign_len(&self) -> usize {
        let texts = [&self.created_by, &self.policy.spread].map(json_len).iter().sum::<usize>();
        let times = json_len(&self.deleted).saturating_sub(TIME_LEN);
        let head = self
            .head
            .as_ref()
            .map_or(0, |head| fields_len(&head.unknown) + json_len(&head.deleted).saturating_sub(TIME_LEN));
        let layers = fields_len(&self.snaps.unknown) + json_len(&self.parent) + json_len(&self.lineage);
        let reverting = self.reverting.as_ref().map_or(0, |reverting| {
            fields_len(&reverting.unknown) + json_len(&reverting.since).saturating_sub(TIME_LEN)
        });
        let layer = self.layer.as_ref().map_or(0, |layer| fields_len(&layer.unknown));
        let entries: usize = self
            .replicas
            .iter()
            .map(|r| {
                fields_len(&r.unknown)
                    + json_len(&r.reason).saturating_sub(REASON_LEN)
                    + json_len(&r.since).saturating_sub(TIME_LEN)
            })
            .sum();
        texts
            + times
            + layers
            + reverting
            + head
            + layer
            + entries
            + fields_len(&self.unknown)
            + fields_len(&self.policy.unknown)
    }

    /// Number of regions.
    #[must_use]
    pub fn regions(&self) -> u64 {
        self.size.div_ceil(1 << self.region_shift)
    }

    /// The members that count.
    pub fn in_sync(&self) -> impl Iterator<Item = &ReplicaEntry> {
        self.replicas.iter().filter(|r| r.state == ReplicaState::InSync)
    }

    /// One replica.
    #[must_use]
    pub fn replica(&self, rid: Rid) -> Option<&ReplicaEntry> {
        self.replicas.iter().find(|r| r.rid == rid)
    }

    /// One replica, to be changed.
    pub fn replica_mut(&mut self, rid: Rid) -> Option<&mut ReplicaEntry> {
        self.replicas.iter_mut().find(|r| r.rid == rid)
    }

    /// Sets the marker of a revert, or takes it off; the format follows.
    pub fn mark(&mut self, reverting: Option<Reverting>) {
        self.reverting = reverting;
        self.fit_format();
    }

    /// Sets the mark of a deleted head, or takes it off; the format follows.
    pub fn mark_head(&mut self, head: Option<Head>) {
        self.head = head;
        self.fit_format();
    }

    /// Makes a layer of a volume that nobody has opened yet; the format follows.
    pub fn mark_layer(&mut self, mark: LayerMark) {
        self.layer = Some(Layer { mark, unknown: BTreeMap::new() });
        self.fit_format();
    }

    /// Has nobody ever opened the volume? Then nothing was written to it. A clone begins above.
    #[must_use]
    pub fn is_unopened(&self) -> bool {
        self.epoch == Epoch(1) && self.owner.is_none() && self.closed_gen == Generation::NEVER
    }

    /// The lowest format whose software knows all of the marks. What newer software says of itself stays.
    fn fit_format(&mut self) {
        let needed = match (&self.layer, &self.head, &self.reverting) {
            (Some(_), ..) => FORMAT,
            (None, Some(_), _) => FORMAT_HEADLESS,
            (None, None, Some(_)) => FORMAT_REVERTING,
            (None, None, None) => FORMAT_PLAIN,
        };
        let has_marks = needed > FORMAT_PLAIN;
        for format in [&mut self.fmt, &mut self.min_reader] {
            *format = match *format {
                newer if newer > FORMAT => newer,
                known if has_marks || known > FORMAT_PLAIN => needed,
                plain => plain,
            };
        }
    }

    /// What has become of what only its deleted head has; none: its head is not deleted.
    #[must_use]
    pub fn head_data(&self) -> Option<HeadData> {
        self.head.as_ref().map(|head| head.data)
    }

    /// (epoch, rev): the order of records (4.2).
    #[must_use]
    pub fn version(&self) -> (Epoch, Rev) {
        (self.epoch, self.rev)
    }
}

/// A time as decimal text in JSON is never longer.
const TIME_LEN: usize = 24;
/// Nor is a reason that this software writes.
const REASON_LEN: usize = 120;

/// Bytes of a value as JSON.
fn json_len<T: Serialize>(value: &T) -> usize {
    serde_json::to_vec(value).expect("parts of a record are always JSON").len()
}

/// The same of fields within an object: none take nothing, so that a copy that a session adds counts nothing.
fn fields_len(fields: &BTreeMap<String, Value>) -> usize {
    json_len(fields).saturating_sub(2)
}

/// The region shift for a volume of `size` bytes: 1 MiB, raised so that there are at most 2^20 regions.
#[must_use]
pub fn region_shift_for(size: u64) -> u8 {
    let mut shift = 20;
    while size.div_ceil(1 << shift) > REGIONS_MAX {
        shift += 1;
    }
    shift
}

/// u64 as decimal text: JSON's numbers end at 2^53.
mod decimal {
    use alloc::string::String;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u64, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as release 0.1.0 writes it; kept so that later software goes on reading it.
    const SPECIMEN: &str = include_str!("../specimens/record-v1.json");

    #[test]
    fn the_specimen_of_format_1_is_read_and_written_back_with_fields_of_newer_software() {
        let record = Record::parse(SPECIMEN.as_bytes()).expect("specimen");
        assert_eq!(record.epoch, Epoch(7));
        assert_eq!(record.replicas.len(), 2);
        let again: Value = serde_json::from_slice(&record.to_bytes()).expect("JSON");
        let before: Value = serde_json::from_str(SPECIMEN).expect("JSON");
        assert_eq!(again, before, "an unknown field was lost");
    }

    /// A record with the marker of a revert, as release 0.1.0 writes it.
    const MARKED: &str = include_str!("../specimens/record-v2.json");

    #[test]
    fn the_specimen_of_format_2_is_read_and_is_one_of_format_1_without_its_marker() {
        let record = Record::parse(MARKED.as_bytes()).expect("specimen");
        let reverting = record.reverting.clone().expect("marked");
        assert_eq!((reverting.generation, reverting.attempt), (Generation(100_663_299), 6_291_457));
        let again: Value = serde_json::from_slice(&record.to_bytes()).expect("JSON");
        let before: Value = serde_json::from_str(MARKED).expect("JSON");
        assert_eq!(again, before, "an unknown field was lost");
        let mut plain = record.clone();
        plain.mark(None);
        assert_eq!((plain.fmt, plain.min_reader), (1, 1));
        assert!(!plain.to_bytes().windows(9).any(|word| word == b"reverting"), "older software reads it");
        plain.mark(Some(reverting.clone()));
        assert_eq!(plain, record);
        // What newer software says of itself stays.
        (plain.fmt, plain.min_reader) = (9, 1);
        plain.mark(None);
        assert_eq!((plain.fmt, plain.min_reader), (9, 1));
        // And software that knows no marker must not take it for one of its own.
        plain.reverting = Some(reverting);
        assert!(matches!(Record::parse(&plain.to_bytes()), Err(RecordError::Illegal(_))));
    }

    /// A record whose volume's head is deleted, as release 0.1.0 writes it.
    const HEADLESS: &str = include_str!("../specimens/record-v3.json");

    #[test]
    fn the_specimen_of_format_3_is_read_and_is_one_of_format_1_without_its_mark() {
        let record = Record::parse(HEADLESS.as_bytes()).expect("specimen");
        let head = record.head.clone().expect("marked");
        assert_eq!((head.deleted.as_str(), record.head_data()), ("1790000003", Some(HeadData::Releasing)));
        let again: Value = serde_json::from_slice(&record.to_bytes()).expect("JSON");
        let before: Value = serde_json::from_str(HEADLESS).expect("JSON");
        assert_eq!(again, before, "an unknown field was lost");
        let mut plain = record.clone();
        plain.mark_head(None);
        assert_eq!((plain.fmt, plain.min_reader), (1, 1));
        assert!(!plain.to_bytes().windows(6).any(|word| word == b"\"head\""), "older software reads it");
        let mut again = plain.clone();
        again.mark_head(Some(head.clone()));
        assert_eq!(again, record);
        // And software that knows no deleted head must not take it for one of its own, nor may a guest have it.
        let broken = |change: &dyn Fn(&mut Record)| {
            let mut record = record.clone();
            change(&mut record);
            matches!(Record::parse(&record.to_bytes()), Err(RecordError::Illegal(_)))
        };
        assert!(broken(&|r| (r.fmt, r.min_reader) = (2, 2)));
        let owner = Owner { node: HostId(1), session: SessionId(2), caretaker: true, first: None };
        assert!(!broken(&|r| r.owner = Some(owner)));
        assert!(broken(&|r| r.owner = Some(Owner { caretaker: false, ..owner })));
        let reverting = Record::parse(MARKED.as_bytes()).expect("specimen").reverting;
        assert!(broken(&|r| r.reverting.clone_from(&reverting)));
    }

    /// The record of a layer, as release 0.1.0 writes it.
    const LAYER: &str = include_str!("../specimens/record-v4.json");

    #[test]
    fn the_specimen_of_format_4_is_read_and_no_older_software_takes_it_for_one_of_its_own() {
        let record = Record::parse(LAYER.as_bytes()).expect("specimen");
        let layer = record.layer.clone().expect("marked");
        assert_eq!(layer.mark, LayerMark(0x77777777_8888_4999_aaaa_bbbbbbbbbbbb));
        let again: Value = serde_json::from_slice(&record.to_bytes()).expect("JSON");
        let before: Value = serde_json::from_str(LAYER).expect("JSON");
        assert_eq!(again, before, "an unknown field was lost");
        let broken = |change: &dyn Fn(&mut Record)| {
            let mut record = record.clone();
            change(&mut record);
            matches!(Record::parse(&record.to_bytes()), Err(RecordError::Illegal(_)))
        };
        assert!(broken(&|r| (r.fmt, r.min_reader) = (3, 3)));
        assert!(
            broken(&|r| r.layer = Some(Layer { mark: LayerMark(0), ..layer.clone() })),
            "zeroes are data"
        );
        // Its head may be deleted, and it stays what it is.
        let mut headless = record.clone();
        headless.snaps.count = 1;
        headless.mark_head(Some(Head {
            deleted: "77".into(),
            data: HeadData::Kept,
            unknown: BTreeMap::new(),
        }));
        assert_eq!((headless.fmt, headless.min_reader, headless.layer.is_some()), (4, 4, true));
        assert_eq!(Record::parse(&headless.to_bytes()), Ok(headless));
    }

    #[test]
    fn a_layer_is_made_of_a_volume_that_nobody_has_opened() {
        let mut record = Record::parse(SPECIMEN.as_bytes()).expect("specimen");
        (record.owner, record.epoch, record.closed_gen) = (None, Epoch(1), Generation::NEVER);
        assert!(record.is_unopened());
        record.mark_layer(LayerMark(7));
        assert_eq!((record.fmt, record.min_reader, record.is_unopened()), (4, 4, true));
        record.epoch = Epoch(2);
        assert!(!record.is_unopened(), "whoever opens it raises the epoch");
    }

    #[test]
    fn a_record_for_newer_software_is_refused_by_name() {
        let text = SPECIMEN.replace("\"min_reader\": 1", "\"min_reader\": 9");
        assert_eq!(Record::parse(text.as_bytes()), Err(RecordError::Newer(9)));
    }

    #[test]
    fn impossible_records_are_refused() {
        let good = Record::parse(SPECIMEN.as_bytes()).expect("specimen");
        let broken = |change: fn(&mut Record)| {
            let mut record = good.clone();
            change(&mut record);
            Record::parse(&record.to_bytes()).is_err()
        };
        assert!(broken(|r| r.size = 4097));
        assert!(broken(|r| r.epoch = Epoch::MAX), "it could not be raised");
        assert!(broken(|r| r.epoch.0 = EPOCH_MAX.0 + 1));
        for count in [COUNTER_MAX + 1, u64::MAX / 2, u64::MAX] {
            let mut record = good.clone();
            record.rev.0 = count;
            assert!(Record::parse(&record.to_bytes()).is_err(), "rev {count}");
            let mut record = good.clone();
            record.replicas[0].pool_inc.0 = count;
            assert!(Record::parse(&record.to_bytes()).is_err(), "pool_inc {count}");
        }
        let mut last = good.clone();
        (last.epoch, last.rev.0, last.replicas[0].pool_inc.0) = (EPOCH_MAX, COUNTER_MAX, COUNTER_MAX);
        assert_eq!(Record::parse(&last.to_bytes()), Ok(last));
        assert!(broken(|r| r.replicas.iter_mut().for_each(|e| e.state = ReplicaState::Stale)));
        assert!(broken(|r| r.replicas[1].rid = r.replicas[0].rid));
        assert!(broken(|r| r.policy.min_isr = 3));
        assert!(broken(|r| r.deleted = Some("1".into())));
        assert!(broken(|r| r.region_shift = 63));
        assert!(broken(|r| r.snaps.newest = Some(SnapId(1))), "none, and it is the newest");
        assert!(Record::parse(b"{}").is_err());
        assert!(Record::parse(&[b' '; RECORD_MAX + 1]).is_err());
    }

    #[test]
    fn whatever_a_session_makes_of_an_accepted_record_is_short_enough() {
        // A session that owns a volume must be able to write: demote, admit, add. The longest of everything.
        let mut longest = Record::parse(SPECIMEN.as_bytes()).expect("specimen");
        let owner = Owner {
            node: HostId(u128::MAX),
            session: SessionId(u128::MAX),
            caretaker: true,
            first: Some(SessionId(u128::MAX)),
        };
        (longest.owner, longest.next) = (Some(owner), Some(owner));
        (longest.epoch, longest.rev) = (Epoch::MAX, Rev(u64::MAX));
        (longest.size, longest.region_shift) = (SIZE_MAX, 26);
        longest.closed_gen = Generation(u64::MAX);
        longest.snaps = Snaps { count: u32::MAX, newest: Some(SnapId(u128::MAX)), ..Snaps::default() };
        longest.mark(Some(Reverting {
            snap: SnapId(u128::MAX),
            generation: Generation(u64::MAX),
            attempt: u64::MAX,
            since: "1".repeat(TIME_LEN - 2),
            unknown: BTreeMap::new(),
        }));
        longest.mark_layer(LayerMark(u128::MAX));
        longest.mark_head(Some(Head {
            deleted: "1".repeat(TIME_LEN - 2),
            data: HeadData::Releasing,
            unknown: BTreeMap::new(),
        }));
        longest.next_rid = u32::MAX;
        longest.unknown.clear();
        longest.policy.unknown.clear();
        longest.replicas.truncate(1);
        longest.replicas[0].state = ReplicaState::Quarantined;
        longest.replicas[0].pool_inc = PoolInc(u64::MAX);
        longest.replicas[0].base = Generation(u64::MAX);
        longest.replicas[0].reason = "r".repeat(REASON_LEN - 2);
        longest.replicas[0].since = "1".repeat(TIME_LEN - 2);
        for at in 1..8 {
            let mut entry = longest.replicas[0].clone();
            entry.rid = Rid(u32::MAX - at);
            longest.replicas.push(entry);
        }
        let room = FOREIGN_MAX - longest.foreign_len();
        assert!(longest.to_bytes().len() + room <= RECORD_MAX, "{} bytes", longest.to_bytes().len());
        // A copy more takes nothing of what others may write.
        let before = longest.foreign_len();
        longest.replicas.pop();
        assert_eq!(longest.foreign_len(), before);
        // And what others add is refused before it takes that room, however it is spelt.
        let text = SPECIMEN.trim_end().trim_end_matches('}');
        let long = alloc::format!("{text}, \"more\": \"{}\" }}", "x".repeat(FOREIGN_MAX));
        assert!(matches!(Record::parse(long.as_bytes()), Err(RecordError::Illegal(_))));
        let numbers = alloc::vec!["1e15"; 600].join(",");
        let swelling = alloc::format!("{text}, \"more\": [{numbers}] }}");
        assert!(matches!(Record::parse(swelling.as_bytes()), Err(RecordError::Illegal(_))));
    }

    #[test]
    fn regions_grow_with_the_volume() {
        assert_eq!(region_shift_for(4096), 20);
        assert_eq!(region_shift_for(1 << 40), 20);
        assert_eq!(region_shift_for((1 << 40) + 4096), 21);
        assert_eq!(region_shift_for(SIZE_MAX), 26);
    }
}
