//! Snapshots that are offered for reading on this host, wherever their volumes are open.
//!
//! ```text
//! asked ─▶ the key that says so stands ─▶ record and snapshot are read ─▶ exported, until closed
//! ```
//!
//! Must always hold:
//! * the key stands before the snapshot is looked for: whoever wants to delete it sees one or the other;
//! * once it is exported, nothing here waits for the store.

use super::*;
use crate::clock::{random_uuid, unix_ms};
use crate::exports::Arrived;
use crate::sessions::OPEN_MS;
use crate::snapshots::{SnapKey, destroyed, no_snapshot, reader_key, snap_key, snaps_prefix};
use weft_control::types::{OpenSnapshot, OpenSnapshotList, SnapshotOpen, SnapshotOpened};
use weft_proto::ids::Ordinal;
use weft_proto::snap_reader::{OtherSnap, ReaderConfig, ReaderMember};

/// Before the store is asked again that did not answer.
const LOOK_AGAIN_MS: u64 = 200;

/// The record of a volume, as it was read.
pub(super) fn read_record(volume: VolumeId, entry: &store::Entry) -> Result<Record, Failure> {
    record_of(entry).map_err(|error| Failure::new(code_of(&error), format!("volume {volume}: {error}")))
}

/// The key of a snapshot, as it was read.
pub(super) fn read_key(volume: VolumeId, id: SnapId, entry: &store::Entry) -> Result<SnapKey, Failure> {
    let failed = |why| Failure::new(Code::BAD_RECORD, format!("snapshot {id} of volume {volume}: {why}"));
    SnapKey::of(entry).map_err(failed)
}

/// Who took a snapshot, or one of those that it may be compared with. One that has left the record has given up its images.
pub(super) fn members_of(
    record: &Record,
    host: HostId,
    key: &SnapKey,
    others: &[SnapKey],
) -> (Vec<ReaderMember>, Vec<OtherSnap>) {
    let rids = |key: &SnapKey| -> Vec<Rid> { key.members.iter().map(|member| member.rid).collect() };
    let took = rids(key);
    let others: Vec<OtherSnap> = others
        .iter()
        .map(|other| OtherSnap { snap: other.id, size: other.size.0, members: rids(other) })
        .collect();
    let all: BTreeSet<Rid> =
        took.iter().chain(others.iter().flat_map(|other| &other.members)).copied().collect();
    let member = |rid: Rid| {
        let entry = record.replica(rid)?;
        let (node, pool) = (entry.node, entry.pool);
        Some(ReaderMember { rid, node, pool, local: node == host, took: took.contains(&rid) })
    };
    (all.into_iter().filter_map(member).collect(), others)
}

/// A snapshot that is, or is to be, offered for reading here.
#[derive(Debug)]
pub(super) struct Reader {
    volume: VolumeId,
    path: PathBuf,
    /// The key in the store that says so.
    hold: StoreToken,
    /// Whoever waits until it can be read, and until when.
    opening: Option<(Vec<Answer>, Instant)>,
    /// When the store is asked again.
    look_due: Option<Instant>,
    /// None: not found yet.
    pub(super) machine: Option<SnapReader<IoBuf>>,
    /// The members as their links were last told.
    pub(super) links: BTreeMap<Rid, (HostId, PoolId, bool)>,
}

impl Reader {
    pub(super) fn poll_timeout(&self) -> impl Iterator<Item = Instant> + '_ {
        let machine = self.machine.as_ref().and_then(SnapReader::poll_timeout);
        let until = self.opening.as_ref().map(|(_, until)| *until);
        [machine, until, self.look_due].into_iter().flatten()
    }

    fn opened(&self) -> SnapshotOpened {
        SnapshotOpened { path: self.path.display().to_string() }
    }
}

impl Daemon {
    pub(super) fn open_snapshot(&mut self, now: Instant, ask: SnapshotOpen, answer: Answer) {
        let Some(host) = self.identity.as_ref().map(|identity| identity.host) else {
            return refuse(answer, not_configured());
        };
        let SnapshotOpen { volume, id, export } = ask;
        let path = match self.socket_path(&export, &id.to_string()) {
            Ok(path) => path,
            Err(failure) => return refuse(answer, failure),
        };
        if let Some(reader) = self.readers.get_mut(&id) {
            return match &mut reader.opening {
                _ if reader.volume != volume => refuse(answer, no_snapshot(volume, id)),
                Some((answers, _)) => answers.push(answer),
                None => tell(answer, &reader.opened()),
            };
        }
        if self.readers.len() >= SESSIONS_MAX {
            let message = format!("this host has {SESSIONS_MAX} snapshots open, the limit");
            return refuse(answer, Failure::new(Code::TOO_MANY_SESSIONS, message));
        }
        if self.stopping.is_some() {
            return refuse(answer, Failure::new(Code::STOPPING, "weftd is stopping"));
        }
        let hold = self.call(Caller::Hold(id));
        let value = json!({ "volume": volume, "since": unix_ms().to_string() }).to_string().into_bytes();
        self.store.send(StoreRequest::Hold { token: hold, key: reader_key(id, host), value });
        let opening = Some((vec![answer], now.after_ms(OPEN_MS)));
        let links = BTreeMap::new();
        self.readers.insert(id, Reader { volume, path, hold, opening, look_due: None, machine: None, links });
    }

    /// The key stands that says that a snapshot is open here.
    pub(super) fn handle_held(&mut self, token: StoreToken) {
        if let Some(Caller::Hold(id)) = self.calls.get(&token) {
            let id = *id;
            self.look_for_reader(id);
        }
    }

    fn look_for_reader(&mut self, id: SnapId) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        reader.look_due = None;
        let (volume, hold) = (reader.volume, reader.hold);
        let token = self.call(Caller::ReaderLook(id, hold));
        // The record, the snapshot and all others, with which it may be compared, at one moment.
        self.store.send(StoreRequest::List { token, prefix: format!("/weft/v1/vol/{volume}/s") });
    }

    pub(super) fn handle_reader_look(
        &mut self,
        now: Instant,
        id: SnapId,
        hold: StoreToken,
        result: Result<Snapshot, ReadError>,
    ) {
        let is_asked = |reader: &&mut Reader| reader.hold == hold && reader.machine.is_none();
        let Some(reader) = self.readers.get_mut(&id).filter(is_asked) else { return };
        let entries = match result {
            Ok(snapshot) => snapshot.entries,
            Err(ReadError::RolledBack(why)) => {
                return self.end_reader(now, id, &Failure::new(Code::STORE_ROLLED_BACK, why));
            }
            Err(ReadError::Away(_) | ReadError::Watermark(_)) => {
                reader.look_due = Some(now.after_ms(LOOK_AGAIN_MS));
                return;
            }
        };
        if let Err(failure) = self.begin_reading(now, id, &entries) {
            self.end_reader(now, id, &failure);
        }
    }

    fn begin_reading(
        &mut self,
        now: Instant,
        id: SnapId,
        entries: &[Option<store::Entry>],
    ) -> Result<(), Failure> {
        let Some(host) = self.identity.as_ref().map(|identity| identity.host) else { return Ok(()) };
        let Some(reader) = self.readers.get_mut(&id) else { return Ok(()) };
        let volume = reader.volume;
        let found = |wanted: &str| entries.iter().flatten().find(|entry| entry.key == wanted);
        let (Some(record), Some(key)) = (found(&record_key(volume)), found(&snap_key(volume, id))) else {
            return Err(no_snapshot(volume, id));
        };
        let record = read_record(volume, record)?;
        let key = read_key(volume, id, key)?;
        let age = |key: &SnapKey| (key.generation, key.attempt.0);
        let prefix = snaps_prefix(volume);
        let others = entries.iter().flatten().filter(|entry| entry.key.starts_with(&prefix));
        let older = |other: &SnapKey| other.is_there() && age(other) < age(&key);
        let mut others: Vec<SnapKey> =
            others.filter_map(|entry| SnapKey::of(entry).ok()).filter(older).collect();
        others.sort_by_key(age);
        let (members, others) = members_of(&record, host, &key, &others);
        if !key.is_there() || !members.iter().any(|member| member.took) {
            return Err(no_snapshot(volume, id));
        }
        if key.is_destroyed() {
            return Err(destroyed(&key));
        }
        let info = ExportInfo {
            name: id.to_string(),
            aliases: vec!["tapdisk_client".to_owned()],
            description: String::new(),
            size: key.size.0,
            read_only: true,
            multi_conn: true,
            since: others.iter().map(|other| other.snap).collect(),
        };
        self.exports.open(&mut self.driver, now, id.into(), &reader.path, info, None)?;
        let config = ReaderConfig {
            volume,
            snap: id,
            size: key.size.0,
            host,
            session: SessionId(random_uuid()),
            watermark: self.watermark.unwrap_or_default(),
            others,
            layer: record.layer.as_ref().map(|layer| layer.mark),
        };
        reader.machine = Some(SnapReader::new(config, &members, now));
        tracing::info!(%volume, snapshot = %id, "open for reading");
        if let Some((answers, _)) = reader.opening.take() {
            for answer in answers {
                let _ = answer.send(Ok(json!(reader.opened())));
            }
        }
        self.links_changed = true;
        Ok(())
    }

    /// A snapshot that could not be opened is not offered.
    fn end_reader(&mut self, now: Instant, id: SnapId, failure: &Failure) {
        let answers = self.readers.get_mut(&id).and_then(|reader| reader.opening.take());
        for answer in answers.map(|(answers, _)| answers).unwrap_or_default() {
            refuse(answer, failure.clone());
        }
        self.close_reader(now, id);
    }

    /// A snapshot is not offered any more; done nothing if it is not.
    pub(super) fn close_reader(&mut self, now: Instant, id: SnapId) {
        if let Some(machine) = self.readers.get_mut(&id).and_then(|reader| reader.machine.as_mut()) {
            machine.close();
            self.drain_reader(now, id);
        }
        let Some(reader) = self.readers.remove(&id) else { return };
        self.exports.close(&mut self.driver, now, id.into());
        for (rid, (node, ..)) in &reader.links {
            self.detach(id.into(), *rid, *node);
        }
        self.calls.remove(&reader.hold);
        self.store.send(StoreRequest::Release { token: reader.hold });
        let failure = Failure::new(
            Code::CHANGING,
            format!("snapshot {id} of volume {} was closed here", reader.volume),
        );
        for answer in reader.opening.map(|(answers, _)| answers).unwrap_or_default() {
            refuse(answer, failure.clone());
        }
        tracing::info!(volume = %reader.volume, snapshot = %id, "not open for reading any more");
        self.links_changed = true;
    }

    pub(super) fn close_readers(&mut self, now: Instant) {
        let open: Vec<SnapId> = self.readers.keys().copied().collect();
        for id in open {
            self.close_reader(now, id);
        }
    }

    pub(super) fn open_snapshots(&self) -> OpenSnapshotList {
        let open = self.readers.iter().filter(|(_, reader)| reader.machine.is_some());
        let snapshots = open.map(|(id, reader)| OpenSnapshot {
            volume: reader.volume,
            id: *id,
            path: reader.path.display().to_string(),
            clients: self.exports.clients_of((*id).into()),
        });
        OpenSnapshotList { snapshots: snapshots.collect() }
    }

    // ---- the machines

    /// A guest reads.
    pub(super) fn submit_to_reader(&mut self, now: Instant, id: SnapId, arrived: Arrived) {
        if let Some(machine) = self.readers.get_mut(&id).and_then(|reader| reader.machine.as_mut()) {
            machine.submit(now, arrived.request.id, &arrived.request.op);
            self.touched_readers.insert(id);
        }
    }

    pub(super) fn answer_reader(
        &mut self,
        now: Instant,
        id: SnapId,
        rid: Rid,
        ordinal: Ordinal,
        response: Response<IoBuf>,
    ) {
        if let Some(machine) = self.readers.get_mut(&id).and_then(|reader| reader.machine.as_mut()) {
            machine.handle_response(now, rid, ordinal, response);
            self.touched_readers.insert(id);
        }
    }

    pub(super) fn tell_reader_link(&mut self, now: Instant, id: SnapId, rid: Rid, is_up: bool) {
        if let Some(machine) = self.readers.get_mut(&id).and_then(|reader| reader.machine.as_mut()) {
            if is_up {
                machine.handle_link_up(now, rid);
            } else {
                machine.handle_link_down(now, rid);
            }
            self.touched_readers.insert(id);
        }
    }

    pub(super) fn handle_reader_host_down(&mut self, now: Instant, host: HostId) {
        for (id, reader) in &mut self.readers {
            let Some(machine) = &mut reader.machine else { continue };
            for (rid, (node, _, is_up)) in &mut reader.links {
                if *node == host && *is_up {
                    *is_up = false;
                    machine.handle_link_down(now, *rid);
                    self.touched_readers.insert(*id);
                }
            }
        }
    }

    pub(super) fn handle_reader_timeouts(&mut self, now: Instant) {
        let (mut late, mut look) = (Vec::new(), Vec::new());
        for (id, reader) in &mut self.readers {
            if let Some(machine) =
                reader.machine.as_mut().filter(|m| m.poll_timeout().is_some_and(|due| now >= due))
            {
                machine.handle_timeout(now);
                self.touched_readers.insert(*id);
            }
            if reader.opening.as_ref().is_some_and(|(_, until)| now >= *until) {
                late.push(*id);
            } else if reader.look_due.is_some_and(|due| now >= due) {
                look.push(*id);
            }
        }
        for id in look {
            self.look_for_reader(id);
        }
        for id in late {
            let why =
                self.store_reachable.2.clone().unwrap_or_else(|| "it did not answer in time".to_owned());
            let message = format!("snapshot {id} can't be opened while the store can't be reached: {why}");
            self.end_reader(now, id, &Failure::new(Code::STORE_AWAY, message));
        }
    }

    pub(super) fn drain_reader(&mut self, now: Instant, id: SnapId) {
        loop {
            let Some(reader) = self.readers.get_mut(&id) else { return };
            let volume = reader.volume;
            let Some(machine) = &mut reader.machine else { return };
            if let Some(transmit) = machine.poll_transmit() {
                self.route(now, id.into(), volume, transmit);
            } else if let Some((request, reply)) = machine.poll_reply() {
                self.exports.reply(&mut self.driver, now, request, reply);
            } else {
                return;
            }
        }
    }
}
