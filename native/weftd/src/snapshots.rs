//! The snapshots of a volume that is open here: their keys in the store, and who asked for what of them.
//!
//! ```text
//! command ─▶ Snapshots ─▶ session ─ swap of the record ─▶ Snapshots::beside ─▶ the snapshot's key, in one transaction
//!                ▲            └──────── event ───────▶ Snapshots ─▶ answer
//! ```
//!
//! Must always hold:
//! * a snapshot's key is made, changed and removed by the session that owns its volume alone, with the record that this
//!   session swaps: so the keys that were read when it had opened are all there are;
//! * two snapshots of a volume that stay have different names;
//! * whoever asked is answered once, also when the session ends instead.

pub mod repair;

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_control::types::{
    Decimal, SnapshotCreate, SnapshotCreateGroup, SnapshotCreated, SnapshotMember, SnapshotNote, SnapshotRef,
};
use weft_io::buffer::IoBuf;
use weft_proto::ids::{Epoch, Generation, GroupId, HostId, Instant, Nonce, Rid, SnapId, VolumeId};
use weft_proto::message::NOTE_MAX;
use weft_proto::record::Record;
use weft_proto::session::{
    NotAdded, Session, SnapChange, SnapData, SnapFailure, SnapKnown, SnapState, SnapTaken,
};

use crate::clock::{random_u128, unix_ms};
use crate::errors::{Code, Failure};
use crate::mail::Answer;
use crate::pools::refuse;
use crate::sessions::head_deleted;
use crate::store::{Beside, Entry};

/// The newest format of a snapshot's key that this software reads, and writes where the data was destroyed: older software
/// would offer it for reading.
const FORMAT: u32 = 2;
/// The format of all others.
const FORMAT_KEPT: u32 = 1;
/// Snapshots of one volume (architecture.md, Limits).
pub const SNAPSHOTS_MAX: usize = 1000;
/// The same with those that are being deleted: a host that is away for a week keeps their keys.
const KEYS_MAX: usize = 2000;
/// The longest name, as that of a volume.
const NAME_MAX: usize = 63;
/// The longest word for who asks, in bytes.
const CREATED_BY_MAX: usize = 128;
/// Before the keys are read again that could not be read.
const READ_AGAIN_MS: u64 = 200;

/// What the keys of a volume's snapshots begin with.
#[must_use]
pub fn snaps_prefix(volume: VolumeId) -> String {
    format!("/weft/v1/vol/{volume}/snap/")
}

/// The key of a snapshot.
#[must_use]
pub fn snap_key(volume: VolumeId, id: SnapId) -> String {
    format!("{}{id}", snaps_prefix(volume))
}

/// What the keys of hosts that have a snapshot open for reading begin with.
#[must_use]
pub fn readers_prefix(id: SnapId) -> String {
    format!("/weft/v1/snap-open/{id}/")
}

/// The key that says that a host has a snapshot open for reading.
#[must_use]
pub fn reader_key(id: SnapId, host: HostId) -> String {
    format!("{}{host}", readers_prefix(id))
}

/// A snapshot's key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapKey {
    /// Its format.
    pub fmt: u32,
    /// The snapshot.
    pub id: SnapId,
    /// Of which volume.
    pub vol: VolumeId,
    /// How people call it.
    pub name: String,
    /// The barrier's generation.
    #[serde(rename = "gen")]
    pub generation: Generation,
    /// Which attempt's images are its own.
    pub attempt: Decimal,
    /// The record's epoch then.
    pub epoch: Epoch,
    /// The store's incarnation then.
    pub incarnation: Decimal,
    /// In bytes.
    pub size: Decimal,
    /// Regions were `1 << region_shift` bytes.
    pub region_shift: u8,
    /// Whether it stays.
    pub state: KeyState,
    /// Whether it has its data.
    #[serde(default, skip_serializing_if = "KeyData::is_kept")]
    pub data: KeyData,
    /// Those that had to have logged it (R27): else nobody is shown it.
    pub logged: bool,
    /// Who took it.
    pub members: Vec<SnapshotMember>,
    /// When it was asked for, in milliseconds since 1970.
    pub created: Decimal,
    /// By whom.
    pub created_by: String,
    /// With which others it was taken.
    pub group: Option<SnapGroupKey>,
    /// It is not deleted.
    pub protected: bool,
    /// Who needs it.
    pub pins: Vec<Value>,
    /// Random, of each value.
    pub nonce: Nonce,
    /// Fields of newer writers, kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// With which others a snapshot was taken, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapGroupKey {
    /// The group.
    pub id: GroupId,
    /// The volumes of which there was one, this one's too.
    pub volumes: Vec<VolumeId>,
    /// Fields of newer writers, kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// Whether a snapshot stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyState {
    /// It does.
    #[serde(rename = "READY")]
    Ready,
    /// It goes; its key goes when all images are gone.
    #[serde(rename = "DELETING")]
    Deleting,
}

/// Whether a snapshot has its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyData {
    /// It does.
    #[default]
    Kept,
    /// It has none for anybody; some copy has yet to let it go.
    Destroying,
    /// It is gone: copies keep hashes of it.
    Destroyed,
}

impl KeyData {
    // Serde asks for a reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_kept(&self) -> bool {
        *self == KeyData::Kept
    }
}

impl SnapKey {
    /// The snapshot under a key of this volume; another one's would lead to the wrong data.
    pub fn of(entry: &Entry) -> Result<SnapKey, String> {
        let key: SnapKey = serde_json::from_slice(&entry.value).map_err(|e| e.to_string())?;
        if key.fmt > FORMAT {
            return Err(format!("it has format {}, known is {FORMAT}", key.fmt));
        }
        if entry.key != snap_key(key.vol, key.id) {
            return Err("it is another snapshot's".to_owned());
        }
        Ok(key)
    }

    /// May it be read, and shown to people?
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.state == KeyState::Ready && self.logged
    }

    /// Was its data destroyed? Then nobody reads it, and it is told what differs from it.
    #[must_use]
    pub fn is_destroyed(&self) -> bool {
        !self.data.is_kept()
    }

    /// As it stands in the store, with a nonce of its own.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let key = SnapKey { nonce: Nonce(random_u128()), ..self.clone() };
        serde_json::to_vec(&key).expect("a key is always JSON")
    }

    fn note(&self) -> Vec<u8> {
        note(&self.name, self.created, &self.created_by, self.group.as_ref().map(|group| group.id))
    }

    fn known(&self) -> SnapKnown {
        SnapKnown {
            id: self.id,
            attempt: self.attempt.0,
            generation: self.generation,
            state: match (self.state, self.logged) {
                (KeyState::Deleting, _) => SnapState::Deleting,
                (KeyState::Ready, true) => SnapState::Logged,
                (KeyState::Ready, false) => SnapState::Taken,
            },
            members: self.members.iter().map(|member| member.rid).collect(),
            note: self.note(),
            data: match self.data {
                KeyData::Kept => SnapData::Kept,
                KeyData::Destroying => SnapData::Going,
                KeyData::Destroyed => SnapData::Gone,
            },
        }
    }
}

fn note(name: &str, created: Decimal, created_by: &str, group: Option<GroupId>) -> Vec<u8> {
    let note = SnapshotNote { name: name.to_owned(), created, created_by: created_by.to_owned(), group };
    serde_json::to_vec(&note).expect("a note is always JSON")
}

/// A snapshot that was asked for and is not there yet.
#[derive(Debug)]
struct Ask {
    name: String,
    created: Decimal,
    created_by: String,
    /// It is one of a group, which has its own answers, and keeps the ask until it is over.
    group: Option<SnapGroupKey>,
    answers: Vec<Answer>,
}

/// A change of a key that was asked for.
#[derive(Debug)]
struct Edit {
    id: SnapId,
    change: Change,
    answer: Answer,
}

#[derive(Debug)]
enum Change {
    Protect(bool),
    Rename(String),
}

/// A command that waits until the keys are read.
#[derive(Debug)]
enum Waiting {
    Create(SnapshotCreate, Answer),
    Delete(SnapId, Answer),
    Destroy(SnapId, Answer),
    Edit(Edit),
    AddCopy(SnapId, Rid, Answer),
}

/// What was asked of the snapshots of a volume, once the daemon has looked at what it has to look at first.
#[derive(Debug)]
pub enum Wish {
    /// To take one.
    Create(SnapshotCreate),
    /// To delete one.
    Delete(SnapId),
    /// To destroy the data of one.
    Destroy(SnapId),
    /// To protect one, or no more.
    Protect(SnapId, bool),
    /// To give one another name.
    Rename(SnapId, String),
    /// To list a copy that has got all of one.
    AddCopy(SnapId, Rid),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Snapshots {
    /// None: not read yet.
    keys: Option<BTreeMap<SnapId, SnapKey>>,
    /// What a swap that was sent makes of a key.
    staged: BTreeMap<SnapId, SnapKey>,
    asks: BTreeMap<SnapId, Ask>,
    deletes: BTreeMap<SnapId, Vec<Answer>>,
    destroys: BTreeMap<SnapId, Vec<Answer>>,
    edits: VecDeque<Edit>,
    adds: BTreeMap<(SnapId, Rid), Vec<Answer>>,
    waiting: Vec<Waiting>,
    /// When to read the keys again.
    read_due: Option<Instant>,
}

impl Snapshots {
    // ---- the keys

    /// The keys could not be read: tried again then.
    pub fn handle_away(&mut self, now: Instant) {
        self.read_due = Some(now.after_ms(READ_AGAIN_MS));
    }

    /// When the keys are to be read again.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.read_due
    }

    /// True once when the keys are to be read again.
    pub fn take_due(&mut self, now: Instant) -> bool {
        self.read_due.take_if(|due| now >= *due).is_some()
    }

    /// The keys as they were read after the session had opened.
    pub fn handle_read(&mut self, now: Instant, machine: &mut Session<IoBuf>, entries: &[Entry]) {
        if self.keys.is_some() {
            return;
        }
        let mut keys = BTreeMap::new();
        for entry in entries {
            match SnapKey::of(entry) {
                Ok(key) => {
                    keys.insert(key.id, key);
                }
                Err(why) => tracing::error!(key = entry.key, why, "a snapshot's key is left alone"),
            }
        }
        machine.know_snapshots(now, keys.values().map(SnapKey::known).collect());
        self.keys = Some(keys);
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::Create(ask, answer) => self.create(now, machine, ask, answer),
                Waiting::Delete(id, answer) => self.delete(now, machine, id, answer),
                Waiting::Destroy(id, answer) => self.destroy(now, machine, id, answer),
                Waiting::Edit(edit) => self.edit(now, machine, edit),
                Waiting::AddCopy(id, rid, answer) => self.add_copy(now, machine, (id, rid), answer),
            }
        }
    }

    /// What becomes of a snapshot's key with the swap of this record.
    pub fn beside(&mut self, record: &Record, change: &SnapChange) -> Option<Beside> {
        let (volume, id) = (record.vol, change.id());
        let there =
            self.keys.as_ref().and_then(|keys| keys.get(&id)).or_else(|| self.staged.get(&id)).cloned();
        let value = match change {
            SnapChange::Gone { .. } => return Some(Beside { key: snap_key(volume, id), value: None }),
            SnapChange::Taken(taken) => self.taken(record, taken)?,
            SnapChange::Logged { .. } => SnapKey { logged: true, ..there? },
            SnapChange::Deleting { .. } => SnapKey { state: KeyState::Deleting, ..there? },
            SnapChange::Destroyed { .. } => {
                let there = there?;
                let data = if there.is_destroyed() { there.data } else { KeyData::Destroying };
                SnapKey { data, fmt: FORMAT, ..there }
            }
            SnapChange::Emptied { .. } => SnapKey { data: KeyData::Destroyed, fmt: FORMAT, ..there? },
            SnapChange::Changed { .. } => {
                let there = there?;
                match self.edits.iter().find(|edit| edit.id == id).map(|edit| &edit.change) {
                    Some(Change::Protect(protected)) => SnapKey { protected: *protected, ..there },
                    Some(Change::Rename(name)) => SnapKey { name: name.clone(), ..there },
                    None => there,
                }
            }
            SnapChange::Added { rid, .. } => {
                let mut there = there?;
                let entry = record.replica(*rid)?;
                if there.members.iter().all(|member| member.rid != *rid) {
                    there.members.push(SnapshotMember { rid: *rid, node: entry.node, pool: entry.pool });
                }
                there
            }
        };
        let bytes = value.to_bytes();
        self.staged.insert(id, value);
        Some(Beside { key: snap_key(volume, id), value: Some(bytes) })
    }

    fn taken(&self, record: &Record, taken: &SnapTaken) -> Option<SnapKey> {
        let (ask, before) = (self.asks.get(&taken.id), self.staged.get(&taken.id));
        let (name, created, created_by, group) = match (ask, before) {
            (Some(ask), _) => (&ask.name, ask.created, &ask.created_by, &ask.group),
            // Who asked has had an answer: its outcome was not known.
            (None, Some(before)) => (&before.name, before.created, &before.created_by, &before.group),
            (None, None) => return None,
        };
        let (name, created_by, group) = (name.clone(), created_by.clone(), group.clone());
        let member = |rid: &Rid| {
            let entry = record.replica(*rid)?;
            Some(SnapshotMember { rid: *rid, node: entry.node, pool: entry.pool })
        };
        Some(SnapKey {
            fmt: FORMAT_KEPT,
            id: taken.id,
            vol: record.vol,
            name,
            generation: taken.generation,
            attempt: Decimal(taken.attempt),
            epoch: taken.epoch,
            incarnation: Decimal(taken.incarnation),
            size: Decimal(taken.size),
            region_shift: taken.region_shift,
            state: KeyState::Ready,
            data: KeyData::Kept,
            logged: false,
            members: taken.members.iter().filter_map(member).collect(),
            created,
            created_by,
            group,
            protected: false,
            pins: Vec::new(),
            nonce: Nonce(0),
            unknown: BTreeMap::new(),
        })
    }

    // ---- commands

    /// Does what is wished, or has it wait until the keys are read.
    pub fn handle_wish(&mut self, now: Instant, machine: &mut Session<IoBuf>, wish: Wish, answer: Answer) {
        match wish {
            Wish::Create(ask) => self.create(now, machine, ask, answer),
            Wish::Delete(id) => self.delete(now, machine, id, answer),
            Wish::Destroy(id) => self.destroy(now, machine, id, answer),
            Wish::Protect(id, protected) => {
                self.edit(now, machine, Edit { id, change: Change::Protect(protected), answer });
            }
            Wish::Rename(id, name) => {
                self.edit(now, machine, Edit { id, change: Change::Rename(name), answer });
            }
            Wish::AddCopy(id, rid) => self.add_copy(now, machine, (id, rid), answer),
        }
    }

    fn create(&mut self, now: Instant, machine: &mut Session<IoBuf>, ask: SnapshotCreate, answer: Answer) {
        let volume = machine.volume();
        let created = Decimal(unix_ms());
        let bytes = match check_note(&ask.name, created, &ask.created_by, None) {
            Ok(bytes) => bytes,
            Err(failure) => return refuse(answer, failure),
        };
        let Some(keys) = &self.keys else { return self.waiting.push(Waiting::Create(ask, answer)) };
        if let Some(before) = self.asks.get_mut(&ask.id) {
            return before.answers.push(answer);
        }
        match keys.get(&ask.id) {
            Some(key) if key.is_there() => {
                let _ = answer.send(Ok(json!(created_of(key))));
                return;
            }
            Some(key) if key.state == KeyState::Deleting => return refuse(answer, going(volume, ask.id)),
            // An earlier session took it: it is told when it is logged.
            Some(_) => {}
            None => {
                if let Err(failure) = self.check_room(volume, &ask.name, ask.id) {
                    return refuse(answer, failure);
                }
            }
        }
        let SnapshotCreate { id, name, created_by, .. } = ask;
        let answers = vec![answer];
        self.asks.insert(id, Ask { name, created, created_by, group: None, answers });
        machine.snapshot(now, id, bytes);
    }

    // ---- of groups

    /// Why what this one held can't be had any more, if that was destroyed, as far as is known here.
    #[must_use]
    pub fn without_data(&self, id: SnapId) -> Option<Failure> {
        self.keys.as_ref()?.get(&id).filter(|key| key.is_destroyed()).map(destroyed)
    }

    /// Are the keys read?
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.keys.is_some()
    }

    /// Is one of a group there (`Some`), or may it be taken?
    pub fn check_grouped(
        &self,
        volume: VolumeId,
        id: SnapId,
        name: &str,
    ) -> Result<Option<&SnapKey>, Failure> {
        match self.keys.as_ref().and_then(|keys| keys.get(&id)) {
            Some(key) if key.state == KeyState::Deleting => Err(going(volume, id)),
            Some(key) => Ok(Some(key)),
            None => self.check_room(volume, name, id).map(|()| None),
        }
    }

    /// One of a group is asked for.
    pub fn ask_grouped(
        &mut self,
        now: Instant,
        machine: &mut Session<IoBuf>,
        id: SnapId,
        (ask, group, created, until): (&SnapshotCreateGroup, SnapGroupKey, Decimal, Instant),
    ) {
        let (name, created_by) = (ask.name.clone(), ask.created_by.clone());
        let bytes = note(&name, created, &created_by, Some(group.id));
        self.asks.insert(id, Ask { name, created, created_by, group: Some(group), answers: Vec::new() });
        machine.snapshot_in_group(now, id, bytes, until);
    }

    /// Its group comes to nothing.
    pub fn forget_grouped(&mut self, id: SnapId, failure: &Failure) {
        for answer in self.asks.remove(&id).map(|ask| ask.answers).unwrap_or_default() {
            refuse(answer, failure.clone());
        }
    }

    /// A snapshot that was taken.
    #[must_use]
    pub fn created(&self, id: SnapId) -> Option<SnapshotCreated> {
        self.keys.as_ref()?.get(&id).map(created_of)
    }

    // ---- names

    /// May the volume have another snapshot, of that name?
    fn check_room(&self, volume: VolumeId, name: &str, id: SnapId) -> Result<(), Failure> {
        let keys = || self.keys.iter().flat_map(BTreeMap::values);
        let all = keys().count() + self.asks.len();
        let stay = keys().filter(|key| key.state == KeyState::Ready).count() + self.asks.len();
        if stay >= SNAPSHOTS_MAX || all >= KEYS_MAX {
            let message = format!(
                "volume {volume} has {stay} snapshots and {} that are being deleted; the limits are {SNAPSHOTS_MAX} and {KEYS_MAX} in all",
                all - stay
            );
            let failure = Failure::new(Code::SNAPSHOTS_MAX, message);
            return Err(failure.with("volume", volume.to_string()));
        }
        self.check_free(volume, name, id)
    }

    fn delete(&mut self, now: Instant, machine: &mut Session<IoBuf>, id: SnapId, answer: Answer) {
        let volume = machine.volume();
        let Some(keys) = &self.keys else { return self.waiting.push(Waiting::Delete(id, answer)) };
        let Some(key) = keys.get(&id) else { return refuse(answer, no_snapshot(volume, id)) };
        if key.state == KeyState::Deleting {
            let _ = answer.send(Ok(json!({})));
            return;
        }
        if let Err(failure) = check_unused(key) {
            return refuse(answer, failure);
        }
        if crate::reverts::needs(machine.record(), id) {
            let message = format!("volume {volume} is being taken back to snapshot {:?}", key.name);
            return refuse(answer, about(key, Failure::new(Code::SNAPSHOT_OPEN, message)));
        }
        let answers = self.deletes.entry(id).or_default();
        answers.push(answer);
        if answers.len() == 1 {
            machine.delete_snapshot(now, id);
        }
    }

    fn destroy(&mut self, now: Instant, machine: &mut Session<IoBuf>, id: SnapId, answer: Answer) {
        let volume = machine.volume();
        let Some(keys) = &self.keys else { return self.waiting.push(Waiting::Destroy(id, answer)) };
        let Some(key) = keys.get(&id).filter(|key| key.is_there()) else {
            return refuse(answer, no_snapshot(volume, id));
        };
        if key.is_destroyed() {
            let _ = answer.send(Ok(json!({})));
            return;
        }
        if let Err(failure) = check_unused(key) {
            return refuse(answer, failure);
        }
        if crate::reverts::needs(machine.record(), id) {
            let message = format!("volume {volume} is being taken back to snapshot {:?}", key.name);
            return refuse(answer, about(key, Failure::new(Code::SNAPSHOT_OPEN, message)));
        }
        let answers = self.destroys.entry(id).or_default();
        answers.push(answer);
        if answers.len() == 1 {
            machine.destroy_snapshot(now, id);
        }
    }

    fn edit(&mut self, now: Instant, machine: &mut Session<IoBuf>, edit: Edit) {
        let volume = machine.volume();
        let Some(keys) = &self.keys else { return self.waiting.push(Waiting::Edit(edit)) };
        let Some(key) = keys.get(&edit.id).filter(|key| key.is_there()) else {
            return refuse(edit.answer, no_snapshot(volume, edit.id));
        };
        let checked = match &edit.change {
            Change::Rename(name) => check_name(name).and_then(|()| self.check_free(volume, name, key.id)),
            Change::Protect(_) => Ok(()),
        };
        if let Err(failure) = checked {
            return refuse(edit.answer, failure);
        }
        let id = edit.id;
        self.edits.push_back(edit);
        machine.change_snapshot(now, id);
    }

    fn add_copy(
        &mut self,
        now: Instant,
        machine: &mut Session<IoBuf>,
        (id, rid): (SnapId, Rid),
        answer: Answer,
    ) {
        let volume = machine.volume();
        let Some(keys) = &self.keys else { return self.waiting.push(Waiting::AddCopy(id, rid, answer)) };
        if !keys.get(&id).is_some_and(SnapKey::is_there) {
            return refuse(answer, no_snapshot(volume, id));
        }
        if let Some(failure) = self.without_data(id) {
            return refuse(answer, failure);
        }
        self.adds.entry((id, rid)).or_default().push(answer);
        machine.add_snapshot_copy(now, id, rid);
    }

    /// Is this name free, for this snapshot?
    fn check_free(&self, volume: VolumeId, name: &str, own: SnapId) -> Result<(), Failure> {
        let keys = self.keys.iter().flat_map(BTreeMap::values).filter(|key| key.state == KeyState::Ready);
        let names = keys.map(|key| (key.id, &key.name));
        let asked = self.asks.iter().map(|(id, ask)| (*id, &ask.name));
        let to_come = self.edits.iter().filter_map(|edit| match &edit.change {
            Change::Rename(name) => Some((edit.id, name)),
            Change::Protect(_) => None,
        });
        let taken = names.chain(asked).chain(to_come).find(|(id, other)| *id != own && *other == name);
        let Some((id, _)) = taken else { return Ok(()) };
        let message = format!("volume {volume} has a snapshot {name:?} already");
        let failure = Failure::new(Code::SNAPSHOT_EXISTS, message).with("volume", volume.to_string());
        Err(failure.with("name", name).with("snapshot", id.to_string()))
    }

    // ---- events

    /// It is there for good.
    pub fn handle_taken(&mut self, id: SnapId, held_ms: u64) {
        if let (Some(keys), Some(key)) = (&mut self.keys, self.staged.remove(&id)) {
            keys.insert(id, key);
        }
        let Some(ask) = self.asks.remove(&id) else { return };
        let Some(key) = self.keys.as_ref().and_then(|keys| keys.get(&id)) else { return };
        let created = SnapshotCreated { held_ms: Decimal(held_ms), ..created_of(key) };
        for answer in ask.answers {
            let _ = answer.send(Ok(json!(created)));
        }
    }

    /// It is not there.
    pub fn handle_failed(&mut self, id: SnapId, failure: &Failure) {
        if self.asks.get(&id).is_some_and(|ask| ask.group.is_some()) {
            // Its group may try it again.
            return;
        }
        for answer in self.asks.remove(&id).map(|ask| ask.answers).unwrap_or_default() {
            refuse(answer, failure.clone());
        }
    }

    /// Its key says that it goes.
    pub fn handle_deleting(&mut self, id: SnapId) {
        if let (Some(keys), Some(key)) = (&mut self.keys, self.staged.remove(&id)) {
            keys.insert(id, key);
        }
        for answer in self.deletes.remove(&id).unwrap_or_default() {
            let _ = answer.send(Ok(json!({})));
        }
    }

    /// Its key says that its data goes, or is gone.
    pub fn handle_destroyed(&mut self, id: SnapId) {
        if let (Some(keys), Some(key)) = (&mut self.keys, self.staged.remove(&id)) {
            keys.insert(id, key);
        }
        for answer in self.destroys.remove(&id).unwrap_or_default() {
            let _ = answer.send(Ok(json!({})));
        }
    }

    /// Its key is gone.
    pub fn handle_gone(&mut self, volume: VolumeId, id: SnapId) {
        self.staged.remove(&id);
        self.keys.as_mut().map(|keys| keys.remove(&id));
        for answer in self.deletes.remove(&id).unwrap_or_default() {
            let _ = answer.send(Ok(json!({})));
        }
        for answer in self.destroys.remove(&id).unwrap_or_default() {
            refuse(answer, no_snapshot(volume, id));
        }
        for edit in std::mem::take(&mut self.edits) {
            match edit.id == id {
                true => refuse(edit.answer, no_snapshot(volume, id)),
                false => self.edits.push_back(edit),
            }
        }
    }

    /// Its key is what the first of its changes makes of it.
    pub fn handle_changed(&mut self, id: SnapId) {
        if let (Some(keys), Some(key)) = (&mut self.keys, self.staged.remove(&id)) {
            keys.insert(id, key);
        }
        if let Some(edit) =
            self.edits.iter().position(|edit| edit.id == id).and_then(|at| self.edits.remove(at))
        {
            let _ = edit.answer.send(Ok(json!({})));
        }
    }

    /// A copy is listed, or why it is not.
    pub fn handle_copy_added(
        &mut self,
        volume: VolumeId,
        id: SnapId,
        rid: Rid,
        outcome: Result<(), NotAdded>,
    ) {
        let lists = |key: &SnapKey| key.members.iter().any(|member| member.rid == rid);
        let listed = self.keys.as_ref().and_then(|keys| keys.get(&id)).is_some_and(lists);
        // One that was listed before has made no swap: what is staged is another change's.
        if outcome.is_ok()
            && !listed
            && let (Some(keys), Some(key)) = (&mut self.keys, self.staged.remove(&id))
        {
            keys.insert(id, key);
        }
        for answer in self.adds.remove(&(id, rid)).unwrap_or_default() {
            match outcome {
                Ok(()) => {
                    let _ = answer.send(Ok(json!({})));
                }
                Err(why) => refuse(answer, not_listed(volume, id, rid, why)),
            }
        }
    }

    /// The session has ended: whoever still waits is told why.
    pub fn handle_ended(&mut self, failure: &Failure) {
        let asks = std::mem::take(&mut self.asks).into_values().flat_map(|ask| ask.answers);
        let deletes = std::mem::take(&mut self.deletes).into_values().flatten();
        let destroys = std::mem::take(&mut self.destroys).into_values().flatten();
        let deletes = deletes.chain(destroys);
        let edits = std::mem::take(&mut self.edits).into_iter().map(|edit| edit.answer);
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|waiting| match waiting {
            Waiting::Create(_, answer)
            | Waiting::Delete(_, answer)
            | Waiting::Destroy(_, answer)
            | Waiting::AddCopy(.., answer) => answer,
            Waiting::Edit(edit) => edit.answer,
        });
        let adds = std::mem::take(&mut self.adds).into_values().flatten();
        for answer in asks.chain(deletes).chain(edits).chain(adds).chain(waiting) {
            refuse(answer, failure.clone());
        }
        self.read_due = None;
    }
}

fn created_of(key: &SnapKey) -> SnapshotCreated {
    SnapshotCreated {
        id: key.id,
        generation: key.generation,
        members: key.members.iter().map(|member| member.rid).collect(),
        created: key.created,
        held_ms: Decimal(0),
    }
}

/// Why there is no snapshot, for whoever asked for it.
#[must_use]
pub fn failure_of(record: Option<&Record>, volume: VolumeId, why: &SnapFailure) -> Failure {
    let of = |failure: Failure, rid: Rid| {
        let failure = failure.with("rid", rid.0);
        match record.and_then(|record| record.replica(rid)) {
            Some(entry) => failure.with("node", entry.node.to_string()).with("pool", entry.pool.to_string()),
            None => failure,
        }
    };
    let failure = match why {
        SnapFailure::Waits(what) => {
            let message = format!("no snapshot of volume {volume} was taken: it waits for {what}");
            Failure::new(Code::SNAPSHOT_WAITS, message).with("for", what.as_str())
        }
        SnapFailure::Silent { rid } => {
            let message = format!("no snapshot of volume {volume} was taken: {rid} did not answer in time");
            of(Failure::new(Code::SNAPSHOT_WAITS, message).with("for", rid.to_string()), *rid)
        }
        SnapFailure::CannotBe { rid } => {
            let message =
                format!("volume {volume} can't have snapshots: the pool of its copy {rid} can't keep any");
            of(Failure::new(Code::SNAPSHOT_CANNOT_BE, message), *rid)
        }
        SnapFailure::NoSpace { rid } => {
            let message =
                format!("no snapshot of volume {volume} was taken: the pool of its copy {rid} is full");
            of(Failure::new(Code::SNAPSHOT_NO_SPACE, message), *rid)
        }
        SnapFailure::HeadDeleted => head_deleted(volume),
        SnapFailure::Closing => Failure::new(Code::CHANGING, format!("volume {volume} is being closed here")),
    };
    failure.with("volume", volume.to_string())
}

/// What members are to keep of a snapshot that is asked for in these words, if they are fit.
pub fn check_note(
    name: &str,
    created: Decimal,
    created_by: &str,
    group: Option<GroupId>,
) -> Result<Vec<u8>, Failure> {
    check_name(name)?;
    let bytes = note(name, created, created_by, group);
    if created_by.len() > CREATED_BY_MAX || bytes.len() > NOTE_MAX {
        let message =
            format!("who asks is named with {} bytes, the limit is {CREATED_BY_MAX}", created_by.len());
        return Err(Failure::new(Code::BAD_VALUE, message));
    }
    Ok(bytes)
}

fn check_name(name: &str) -> Result<(), Failure> {
    let is_fine = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins && name.len() <= NAME_MAX && name.bytes().all(is_fine) && name.parse::<SnapId>().is_err() {
        return Ok(());
    }
    let start: String = name.chars().take(NAME_MAX + 1).collect();
    let message = format!(
        "{start:?} can't be a snapshot's name: 1 to {NAME_MAX} characters a-z 0-9 . _ -, the first one a letter or digit, and no identifier"
    );
    Err(Failure::new(Code::BAD_VALUE, message))
}

/// May what it holds go?
fn check_unused(key: &SnapKey) -> Result<(), Failure> {
    let of = |what| format!("snapshot {:?} of volume {} is {what}", key.name, key.vol);
    if key.protected {
        return Err(about(key, Failure::new(Code::SNAPSHOT_PROTECTED, of("protected"))));
    }
    match key.pins.is_empty() {
        true => Ok(()),
        false => Err(about(key, Failure::new(Code::SNAPSHOT_OPEN, of("in use")))),
    }
}

/// The answer to whoever wants to read a snapshot whose data was destroyed.
#[must_use]
pub fn destroyed(key: &SnapKey) -> Failure {
    let message = format!(
        "the data of snapshot {:?} of volume {} was destroyed: it can only be told what has changed since it, or until it",
        key.name, key.vol
    );
    about(key, Failure::new(Code::SNAPSHOT_DESTROYED, message))
}

fn about(key: &SnapKey, failure: Failure) -> Failure {
    failure
        .with("volume", key.vol.to_string())
        .with("snapshot", key.id.to_string())
        .with("name", key.name.as_str())
}

/// The answer to whatever needs a snapshot that is there.
#[must_use]
pub fn no_snapshot(volume: VolumeId, id: SnapId) -> Failure {
    let failure = Failure::new(Code::NO_SNAPSHOT, format!("volume {volume} has no snapshot {id}"));
    failure.with("volume", volume.to_string()).with("snapshot", id.to_string())
}

/// Why a copy is not on a snapshot's list.
fn not_listed(volume: VolumeId, id: SnapId, rid: Rid, why: NotAdded) -> Failure {
    let why = match why {
        NotAdded::NoSnapshot => return no_snapshot(volume, id),
        NotAdded::NoImage => "it has not all of it",
        NotAdded::NotInSync => "the volume's record names no such copy that is in sync",
        NotAdded::Silent => "it did not answer in time",
    };
    let message = format!("copy {rid} of volume {volume} can't be listed with snapshot {id}: {why}");
    let failure = Failure::new(Code::SNAPSHOT_NOT_WHOLE, message).with("volume", volume.to_string());
    failure.with("snapshot", id.to_string()).with("rid", rid.0)
}

fn going(volume: VolumeId, id: SnapId) -> Failure {
    let failure =
        Failure::new(Code::NO_SNAPSHOT, format!("snapshot {id} of volume {volume} is being deleted"));
    failure.with("volume", volume.to_string()).with("snapshot", id.to_string())
}

/// The answer to whoever wants to delete a snapshot that hosts have open.
#[must_use]
pub fn open_on(volume: VolumeId, wanted: SnapshotRef, hosts: &[String]) -> Failure {
    let message =
        format!("snapshot {} of volume {volume} is open for reading on {}", wanted.id, hosts.join(", "));
    let failure = Failure::new(Code::SNAPSHOT_OPEN, message).with("volume", volume.to_string());
    failure.with("snapshot", wanted.id.to_string()).with("hosts", hosts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use weft_control::types::ErrorBody;
    use weft_proto::ids::{Revision, SessionId};
    use weft_proto::message::Watermark;
    use weft_proto::mutants::Broken;
    use weft_proto::session::{OpenMode, SessionConfig, Timing};

    const VOLUME: VolumeId = VolumeId(7);
    const NOW: Instant = Instant(1);

    fn machine() -> Session<IoBuf> {
        let config = SessionConfig {
            volume: VOLUME,
            session: SessionId(1),
            host: HostId(1),
            mode: OpenMode::Closed,
            caretaker: false,
            watermark: Watermark::default(),
            timing: Timing::default(),
            seed: 1,
            unix_ms_at_zero: 0,
            broken: Broken::default(),
        };
        Session::new(config, NOW)
    }

    fn entry(id: u128, name: &str, state: KeyState) -> Entry {
        let key = SnapKey {
            fmt: FORMAT_KEPT,
            id: SnapId(id),
            vol: VOLUME,
            name: name.to_owned(),
            generation: Generation::new(Epoch(2), 1),
            attempt: Decimal(1),
            epoch: Epoch(2),
            incarnation: Decimal(1),
            size: Decimal(4096),
            region_shift: 20,
            state,
            data: KeyData::Kept,
            logged: true,
            members: Vec::new(),
            created: Decimal(5),
            created_by: String::new(),
            group: None,
            protected: false,
            pins: Vec::new(),
            nonce: Nonce(0),
            unknown: BTreeMap::new(),
        };
        Entry { key: snap_key(VOLUME, key.id), value: key.to_bytes(), revision: Revision(1) }
    }

    type Waits = oneshot::Receiver<Result<Value, ErrorBody>>;

    fn create(snapshots: &mut Snapshots, machine: &mut Session<IoBuf>, id: u128, name: &str) -> Waits {
        let (answer, waits) = oneshot::channel();
        let (name, created_by) = (name.to_owned(), "me".to_owned());
        let ask = SnapshotCreate { volume: VOLUME, id: SnapId(id), name, created_by };
        snapshots.handle_wish(NOW, machine, Wish::Create(ask), answer);
        waits
    }

    /// The code of a refusal; none while it is under way.
    fn refused(waits: &mut Waits) -> Option<String> {
        waits.try_recv().ok().and_then(Result::err).map(|error| error.code)
    }

    #[test]
    fn a_volume_has_a_thousand_snapshots_and_those_that_go_count_apart() {
        let (mut snapshots, mut machine) = (Snapshots::default(), machine());
        let mut early = create(&mut snapshots, &mut machine, 5000, "early");
        let ready = (0..999).map(|n| entry(n, &format!("s{n}"), KeyState::Ready));
        let going = (999..1500).map(|n| entry(n, &format!("s{n}"), KeyState::Deleting));
        snapshots.handle_read(NOW, &mut machine, &ready.chain(going).collect::<Vec<_>>());
        assert_eq!(
            refused(&mut early),
            None,
            "it was asked for before the keys were read, and is the last one"
        );
        assert_eq!(
            refused(&mut create(&mut snapshots, &mut machine, 5001, "more")).as_deref(),
            Some("E-SNAP-06")
        );
        snapshots.handle_failed(SnapId(5000), &Failure::new(Code::SNAPSHOT_WAITS, "a test"));
        assert_eq!(refused(&mut early).as_deref(), Some("E-SNAP-03"));
        assert_eq!(refused(&mut create(&mut snapshots, &mut machine, 5002, "again")), None);
    }

    #[test]
    fn a_name_is_taken_by_what_stays_and_by_what_is_asked_for() {
        let (mut snapshots, mut machine) = (Snapshots::default(), machine());
        let keys = [entry(1, "stays", KeyState::Ready), entry(2, "goes", KeyState::Deleting)];
        snapshots.handle_read(NOW, &mut machine, &keys);
        assert_eq!(
            refused(&mut create(&mut snapshots, &mut machine, 3, "stays")).as_deref(),
            Some("E-SNAP-02")
        );
        let mut first = create(&mut snapshots, &mut machine, 4, "goes");
        assert_eq!(refused(&mut first), None, "whoever has the name is leaving");
        assert_eq!(
            refused(&mut create(&mut snapshots, &mut machine, 5, "goes")).as_deref(),
            Some("E-SNAP-02")
        );
        assert_eq!(refused(&mut create(&mut snapshots, &mut machine, 4, "goes")), None, "the same one again");
        let there = create(&mut snapshots, &mut machine, 1, "stays").try_recv().expect("at once");
        assert_eq!(there.expect("as it is")["held_ms"], "0");
        assert_eq!(
            refused(&mut create(&mut snapshots, &mut machine, 2, "other")).as_deref(),
            Some("E-SNAP-09")
        );
        snapshots.handle_ended(&Failure::new(Code::SESSION_ENDED, "a test"));
        assert_eq!(refused(&mut first).as_deref(), Some("E-SESS-01"));
    }

    #[test]
    fn a_key_that_is_another_snapshots_or_of_newer_software_is_none() {
        let sound = entry(1, "a", KeyState::Ready);
        assert!(SnapKey::of(&sound).is_ok());
        let moved = Entry { key: snap_key(VolumeId(8), SnapId(1)), ..sound.clone() };
        assert!(SnapKey::of(&moved).is_err());
        let text = String::from_utf8(sound.value.clone()).expect("text");
        let newer = Entry { value: text.replace("\"fmt\":1", "\"fmt\":3").into_bytes(), ..sound };
        assert!(SnapKey::of(&newer).is_err());
    }
}
