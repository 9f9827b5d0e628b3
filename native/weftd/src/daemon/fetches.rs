//! Snapshots that are brought to copies of this host which lack them (protocol.md 4.19).
//!
//! ```text
//! asked ─▶ record and snapshot are read ─▶ begun at the copy ─▶ read from members that have it ─▶ put there ─▶ … ─▶ whole
//! ```
//!
//! Must always hold:
//! * one at a time: guests need the network and the disks;
//! * what was begun ends: with an image that has everything, or with nothing of it;
//! * whoever asked is answered once, and why it came to nothing is told to whoever asks next.

use super::readers::{members_of, read_key, read_record};
use super::*;
use crate::clock::random_uuid;
use crate::snapshots::{SnapKey, destroyed, no_snapshot, snap_key};
use weft_control::types::{FetchState, SnapshotAddCopy, SnapshotFetch, SnapshotFetched};
use weft_proto::ids::Ordinal;
use weft_proto::images::ImageState;
use weft_proto::replica::{CopyOf, CopyStep, DiskError, NotCopied};
use weft_proto::snap_copy::{CopyWant, NotBrought, SnapCopy};
use weft_proto::snap_reader::{ReaderConfig, ReaderMember};

/// Bytes a second, as a scrub's.
const RATE: u64 = 32 << 20;
/// Between two looks at whether the copy is still there.
const LOOK_MS: u64 = 1000;

/// What is brought, and why the last one was not.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    now: Option<Fetch>,
    failed: Option<(SnapshotFetch, Failure)>,
    next: u64,
    touched: bool,
}

/// A snapshot on its way.
#[derive(Debug)]
pub(super) struct Fetch {
    number: u64,
    ask: SnapshotFetch,
    config: ReaderConfig,
    region_shift: u8,
    members: Vec<ReaderMember>,
    /// None: it is being begun.
    pub(super) machine: Option<SnapCopy<IoBuf>>,
    /// The members as their links were last told.
    pub(super) links: BTreeMap<Rid, (HostId, PoolId, bool)>,
    shared: u64,
    look_due: Instant,
    /// Why it is given up.
    failure: Option<Failure>,
}

impl Fetch {
    pub(super) fn seat(&self) -> Seat {
        Seat::Fetch(self.number)
    }

    fn key(&self) -> ReplicaKey {
        ReplicaKey { volume: self.ask.volume, rid: self.ask.rid }
    }

    fn told(&self) -> SnapshotFetched {
        SnapshotFetched {
            state: FetchState::Running,
            done_bytes: Decimal(self.machine.as_ref().map_or(0, SnapCopy::done_bytes)),
            total_bytes: Decimal(self.config.size),
            shared_bytes: Decimal(self.shared),
        }
    }
}

impl Fetches {
    pub(super) fn now_mut(&mut self) -> Option<&mut Fetch> {
        self.now.as_mut()
    }

    pub(super) fn take_touched(&mut self) -> bool {
        std::mem::take(&mut self.touched)
    }

    pub(super) fn poll_timeout(&self) -> impl Iterator<Item = Instant> + '_ {
        let machine = |fetch: &Fetch| fetch.machine.as_ref().and_then(SnapCopy::poll_timeout);
        self.now.iter().flat_map(move |fetch| machine(fetch).into_iter().chain([fetch.look_due]))
    }

    fn machine(&mut self, number: u64) -> Option<&mut SnapCopy<IoBuf>> {
        let fetch = self.now.as_mut().filter(|fetch| fetch.number == number)?;
        self.touched = true;
        fetch.machine.as_mut()
    }

    /// A copy answers.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        number: u64,
        rid: Rid,
        ordinal: Ordinal,
        response: Response<IoBuf>,
    ) {
        if let Some(machine) = self.machine(number) {
            machine.handle_response(now, rid, ordinal, response);
        }
    }

    pub(super) fn tell_link(&mut self, now: Instant, number: u64, rid: Rid, is_up: bool) {
        match self.machine(number) {
            Some(machine) if is_up => machine.handle_link_up(now, rid),
            Some(machine) => machine.handle_link_down(now, rid),
            None => {}
        }
    }

    pub(super) fn handle_host_down(&mut self, now: Instant, host: HostId) {
        let Some(Fetch { machine: Some(machine), links, .. }) = &mut self.now else { return };
        for (rid, (node, _, is_up)) in links {
            if *node == host && *is_up {
                *is_up = false;
                machine.handle_link_down(now, *rid);
                self.touched = true;
            }
        }
    }

    pub(super) fn handle_watermark(&mut self, seen: weft_proto::message::Watermark) {
        if let Some(Fetch { machine: Some(machine), .. }) = &mut self.now {
            machine.handle_watermark(seen);
        }
    }
}

fn not_brought(ask: &SnapshotFetch, why: &str) -> Failure {
    let SnapshotFetch { volume, id, rid } = ask;
    let message =
        format!("snapshot {id} of volume {volume} can't be brought to its copy {rid} here now: {why}");
    let failure = Failure::new(Code::SNAPSHOT_NOT_BROUGHT, message).with("volume", volume.to_string());
    failure.with("snapshot", id.to_string()).with("rid", rid.0).with("why", why)
}

fn failure_of(ask: &SnapshotFetch, why: NotCopied) -> Failure {
    let pool = |code, what: &str| {
        let SnapshotFetch { volume, id, rid } = ask;
        let message =
            format!("snapshot {id} of volume {volume} was not brought to its copy {rid} here: {what}");
        let failure = Failure::new(code, message).with("volume", volume.to_string());
        failure.with("snapshot", id.to_string()).with("rid", rid.0)
    };
    match why {
        NotCopied::Deleted => no_snapshot(ask.volume, ask.id),
        NotCopied::There => not_brought(ask, "an earlier image of it has not gone yet"),
        NotCopied::OutOfBounds => not_brought(ask, "its regions are larger than an image's may be"),
        NotCopied::Full => not_brought(ask, "the copy has as many images as it may"),
        NotCopied::Ended => not_brought(ask, "the copy is not served here, or its pool stops"),
        NotCopied::Disk(DiskError::NoSpace) => pool(Code::SNAPSHOT_NO_SPACE, "its pool is full"),
        NotCopied::Disk(DiskError::NoSnapshots) => {
            pool(Code::SNAPSHOT_CANNOT_BE, "its pool can't keep snapshots that are brought")
        }
        NotCopied::Disk(_) => pool(Code::DISK_FAILED, "its pool's disk failed"),
    }
}

impl Daemon {
    pub(super) fn fetch_snapshot(&mut self, ask: SnapshotFetch, answer: Answer) {
        if let Some(fetch) = &self.fetches.now {
            return match fetch.ask == ask {
                true => tell(answer, &fetch.told()),
                false => refuse(answer, busy(&ask, &fetch.ask)),
            };
        }
        if let Some((_, failure)) = self.fetches.failed.take_if(|(of, _)| *of == ask) {
            return refuse(answer, failure);
        }
        let token = self.call(Caller::Fetch(ask, answer));
        let keys = vec![record_key(ask.volume), snap_key(ask.volume, ask.id)];
        self.store.send(StoreRequest::Read { token, keys });
    }

    pub(super) fn handle_fetch_read(
        &mut self,
        now: Instant,
        ask: &SnapshotFetch,
        answer: Answer,
        result: Result<Snapshot, ReadError>,
    ) {
        let begun = match result {
            Ok(snapshot) => self.begin_fetch(now, ask, &snapshot.entries),
            Err(ReadError::RolledBack(why)) => Err(Failure::new(Code::STORE_ROLLED_BACK, why)),
            Err(ReadError::Away(why) | ReadError::Watermark(why)) => Err(Failure::new(Code::STORE_AWAY, why)),
        };
        match begun {
            Ok(told) => tell(answer, &told),
            Err(failure) => refuse(answer, failure),
        }
    }

    fn begin_fetch(
        &mut self,
        now: Instant,
        ask: &SnapshotFetch,
        entries: &[Option<store::Entry>],
    ) -> Result<SnapshotFetched, Failure> {
        let Some(host) = self.identity.as_ref().map(|identity| identity.host) else {
            return Err(not_configured());
        };
        if self.stopping.is_some() {
            return Err(Failure::new(Code::STOPPING, "weftd is stopping"));
        }
        let SnapshotFetch { volume, id, rid } = *ask;
        let [Some(record), Some(key)] = entries else { return Err(no_snapshot(volume, id)) };
        let record = read_record(volume, record)?;
        let key: SnapKey = read_key(volume, id, key)?;
        if !key.is_there() {
            return Err(no_snapshot(volume, id));
        }
        if key.is_destroyed() {
            return Err(destroyed(&key));
        }
        if record.replica(rid).is_none_or(|entry| entry.node != host) {
            return Err(not_brought(ask, "the volume's record names no such copy on this host"));
        }
        let replica = ReplicaKey { volume, rid };
        match self.pools.image_of(replica, id) {
            Some((attempt, ImageState::Prepared | ImageState::Ready)) if attempt == key.attempt.0 => {
                let (state, size) = (FetchState::Done, key.size);
                return Ok(SnapshotFetched {
                    state,
                    done_bytes: size,
                    total_bytes: size,
                    shared_bytes: Decimal(0),
                });
            }
            Some(_) => return Err(failure_of(ask, NotCopied::There)),
            None => {}
        }
        if let Some(fetch) = &self.fetches.now {
            return if fetch.ask == *ask { Ok(fetch.told()) } else { Err(busy(ask, &fetch.ask)) };
        }
        let (mut members, _) = members_of(&record, host, &key, &[]);
        members.retain(|member| member.rid != rid && member.took);
        if members.is_empty() {
            return Err(not_brought(ask, "no other copy of the volume has it"));
        }
        let of = CopyOf {
            id,
            attempt: key.attempt.0,
            generation: key.generation,
            epoch: key.epoch,
            incarnation: key.incarnation.0,
            size: key.size.0,
            region_shift: key.region_shift,
        };
        self.pools.begin_copy(now, replica, of).map_err(|why| failure_of(ask, why))?;
        tracing::info!(%volume, snapshot = %id, %rid, "a snapshot is brought here");
        let config = ReaderConfig {
            volume,
            snap: id,
            size: key.size.0,
            host,
            session: SessionId(random_uuid()),
            watermark: self.watermark.unwrap_or_default(),
            others: Vec::new(),
            layer: None,
        };
        self.fetches.next += 1;
        let fetch = Fetch {
            number: self.fetches.next,
            ask: *ask,
            config,
            region_shift: key.region_shift,
            members,
            machine: None,
            links: BTreeMap::new(),
            shared: 0,
            look_due: now.after_ms(LOOK_MS),
            failure: None,
        };
        let told = fetch.told();
        self.fetches.now = Some(fetch);
        Ok(told)
    }

    /// The copy says how far it is.
    pub(super) fn handle_copied(&mut self, now: Instant, key: ReplicaKey, snap: SnapId, step: CopyStep) {
        let is = |fetch: &&mut Fetch| fetch.key() == key && fetch.ask.id == snap;
        let Some(fetch) = self.fetches.now.as_mut().filter(is) else {
            // Nobody waits for it any more: whoever asks next finds it there, or begins anew.
            return self.pools.give_up_copy(now, key, snap);
        };
        match step {
            CopyStep::Begun => {
                let shape = (fetch.region_shift, RATE);
                fetch.machine = Some(SnapCopy::new(fetch.config.clone(), shape, &fetch.members, now));
                self.links_changed = true;
            }
            CopyStep::Filled { shared } => {
                fetch.shared += shared;
                if let Some(machine) = &mut fetch.machine {
                    machine.handle_taken(now);
                }
            }
            CopyStep::Whole => return self.end_fetch(None),
            CopyStep::Failed(why) => {
                let failure = fetch.failure.take().unwrap_or_else(|| failure_of(&fetch.ask, why));
                return self.end_fetch(Some(failure));
            }
        }
        self.fetches.touched = true;
    }

    pub(super) fn drain_fetch(&mut self, now: Instant) {
        loop {
            let Some(fetch) = &mut self.fetches.now else { return };
            let (seat, key, snap) = (fetch.seat(), fetch.key(), fetch.ask.id);
            let Some(machine) = &mut fetch.machine else { return };
            if let Some(transmit) = machine.poll_transmit() {
                self.route(now, seat, key.volume, transmit);
                continue;
            }
            match machine.poll_want() {
                Some(CopyWant::Take { offset, extents }) => {
                    self.pools.fill_copy(now, key, snap, (offset, extents));
                }
                Some(CopyWant::Whole) => self.pools.finish_copy(now, key, snap),
                Some(CopyWant::Failed(why)) => {
                    let why = match why {
                        NotBrought::Unreadable => "each copy that has it refused some of it",
                        NotBrought::Unreached => "no copy that has it answered in time",
                    };
                    fetch.failure = Some(not_brought(&fetch.ask, why));
                    self.pools.give_up_copy(now, key, snap);
                }
                None => return,
            }
        }
    }

    pub(super) fn handle_fetch_timeouts(&mut self, now: Instant) {
        let Some(fetch) = &mut self.fetches.now else { return };
        if let Some(machine) =
            fetch.machine.as_mut().filter(|m| m.poll_timeout().is_some_and(|due| now >= due))
        {
            machine.handle_timeout(now);
            self.fetches.touched = true;
        }
        if now < fetch.look_due {
            return;
        }
        fetch.look_due = now.after_ms(LOOK_MS);
        if !self.pools.is_copying(fetch.key(), fetch.ask.id) {
            // The copy went to the trash, or its pool failed.
            let failure = failure_of(&fetch.ask, NotCopied::Ended);
            self.end_fetch(Some(failure));
        }
    }

    fn end_fetch(&mut self, failure: Option<Failure>) {
        let Some(fetch) = self.fetches.now.take() else { return };
        for (rid, (node, ..)) in &fetch.links {
            self.detach(fetch.seat(), *rid, *node);
        }
        self.links_changed = true;
        if let Some(failure) = failure {
            tracing::warn!(volume = %fetch.ask.volume, snapshot = %fetch.ask.id, rid = %fetch.ask.rid, why = failure.message, "a snapshot was not brought here");
            self.fetches.failed = Some((fetch.ask, failure));
        }
    }

    // ---- the list

    pub(super) fn add_snapshot_copy(&mut self, now: Instant, ask: SnapshotAddCopy, answer: Answer) {
        self.wish(now, ask.volume, Wish::AddCopy(ask.id, ask.rid), answer);
    }
}

fn busy(ask: &SnapshotFetch, with: &SnapshotFetch) -> Failure {
    let why = format!("snapshot {} of volume {} is being brought here, one at a time", with.id, with.volume);
    not_brought(ask, &why).with("busy_with", with.id.to_string())
}
