//! The reactor: one thread, one loop, that owns every machine and moves messages between them.
//!
//! ```text
//!  guests ─ Exports ─┐                       ┌─ Pools ─ replicas, logs, disks
//!                    ├─ sessions ─ (router) ─┤
//!  control, store ───┘                       └─ Links ─ other hosts
//! ```
//!
//! Must always hold:
//! * the loop waits at one place only, and after each wake everything that can move has moved;
//! * a request reaches a replica of this host without a socket, and otherwise exactly as it would over one;
//! * what one volume, pool, client or peer does wrong ends with that volume, pool, client or peer.

mod comparisons;
mod continuing;
mod fetches;
mod groups;
mod lays;
mod readers;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_control::methods::Command;
use weft_control::types::{
    self, Decimal, Event as ControlEvent, Export, Finding, Hello as HelloAnswer, ImageList, LinkList,
    LinkState, PoolList, PoolState, RecordJson, ReplicaList, SessionLimit, SessionList, SessionOpen,
    SessionStatus, SnapshotChanged, SnapshotFetch, SnapshotRef, StoreStatus, TrustChanged, WatermarkInfo,
    Why,
};
use weft_export::nbd::ExportInfo;
use weft_io::buffer::IoBuf;
use weft_io::driver::{self, AnyDriver, Completion, Driver, DriverConfig, DriverKind};
use weft_proto::ids::{GroupId, HostId, Instant, PoolId, Rid, SessionId, SnapId, VolumeId};
use weft_proto::log::ReplicaKey;
use weft_proto::message::{Response, Watermark};
use weft_proto::record::Record;
use weft_proto::replica::{AttachmentId, Token};
use weft_proto::session::policy::PolicyChange;
use weft_proto::session::{EndReason, Event, LAST_HOLDER, SnapChange, StoreCall, Transmit};
use weft_proto::snap_reader::SnapReader;
use weft_proto::wire::{Hello, MAX_FRAME, Version};

use crate::claims::{CLAIMS_FILE, Claims};
use crate::clock::{now, random_u128};
use crate::control::{self, EventSender, SOCKET_PATH_MAX};
use crate::errors::{Code, Failure};
use crate::exports::Exports;
use crate::lays::is_ours;
use crate::limiter::Limits;
use crate::links::{CLEAR, DATA_PORT, Links, LinksOut};
use crate::mail::{Answer, ControlRequest, Mail, Mailbox};
use crate::notify;
use crate::pools::{PoolOwner, Pools, PoolsCall, PoolsOut, not_configured, pool_key, refuse};
use crate::records::{RecordChange, code_of, record_key, record_of};
use crate::seat::Seat;
use crate::sessions::{Asked, Opening, Slot, read_reply, swap_reply, taken};
use crate::snapshots::Wish;
use crate::state::{HostFile, StateDir, boot_id, raise_open_files};
use crate::store::{
    self, Expected, KeySwap, ReadError, Snapshot, StoreHandle, StoreReply, StoreRequest, StoreToken,
    SwapOutcome, Was, WatchEvent,
};
use crate::tokens::Part;
use crate::trust::{IdentityFiles, TRUST_KEY, TrustChange, TrustKeeper};

use comparisons::Comparisons;
use fetches::Fetches;
use lays::Lays;
use readers::Reader;

/// Sessions of one host (architecture.md, Limits).
const SESSIONS_MAX: usize = 500;
/// How long sessions and pools may take to end after SIGTERM.
const STOP_MS: u64 = 10_000;
/// Where the hosts of the cluster stand in the store.
const HOSTS_PREFIX: &str = "/weft/v1/host/";

/// How the daemon is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Durable state.
    pub state_dir: PathBuf,
    /// Sockets.
    pub run_dir: PathBuf,
    /// How disks are driven.
    pub driver: DriverChoice,
    /// Where to read the boot id instead of the kernel.
    pub boot_id_file: Option<PathBuf>,
}

/// Which driver is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverChoice {
    /// The best that works here.
    Auto,
    /// io_uring.
    IoUring,
    /// libaio.
    Libaio,
}

/// Who asked the store.
#[derive(Debug)]
enum Caller {
    /// A session's read.
    SessionGet(VolumeId, SessionId),
    /// A session's swap.
    SessionSwap(VolumeId, SessionId),
    /// Swaps of several sessions, of one group.
    GroupSwap(Vec<(VolumeId, SessionId)>),
    /// A session's watch.
    SessionWatch(VolumeId, SessionId),
    /// An open that wants to know the record first.
    Open(Opening),
    PoolRead(PoolId),
    PoolSwap(PoolId),
    Verify(ReplicaKey, Token),
    Trash(ReplicaKey),
    Emptying {
        job: u64,
        volume: VolumeId,
    },
    /// Somebody who wants the records for a repair.
    Records {
        answer: Answer,
        /// Asked once more: the connection was to the store that is no more.
        again: bool,
    },
    /// Nobody: what the read shows of the store is all.
    Look,
    Hosts,
    Trust,
    Why(VolumeId, Answer),
    /// A session that has opened, which wants to know the volume's snapshots.
    Snaps(VolumeId, SessionId),
    /// Who has a snapshot open that is to be deleted.
    Readers(SnapshotRef, bool, Answer),
    /// The key that says that a snapshot is open here.
    Hold(SnapId),
    /// A snapshot that is to be opened here, under that key.
    ReaderLook(SnapId, StoreToken),
    /// What differs between two snapshots.
    Compare(SnapshotChanged, Answer),
    /// A snapshot that is to be brought to a copy here.
    Fetch(SnapshotFetch, Answer),
    /// Images that may have been left behind.
    Janitor(VolumeId),
}

/// An attachment to a replica of this host.
#[derive(Clone, Copy, Debug)]
struct Local {
    seat: Seat,
    key: ReplicaKey,
    ordinal: weft_proto::ids::Ordinal,
    pool: PoolId,
}

struct Daemon {
    driver: AnyDriver,
    mail: Receiver<Mail>,
    state: Arc<StateDir>,
    run_dir: PathBuf,
    boot_id_file: Option<PathBuf>,
    store: StoreHandle,
    events: EventSender,
    process: u64,
    identity: Option<HostFile>,
    /// None on a host without certificate: then nothing of it is proven to anybody.
    trust: Option<TrustKeeper>,
    watermark: Option<Watermark>,
    claims: Claims,
    /// Who asked for the records that replicas keep, and the watermark that must be durable first.
    records_asked: Vec<(Watermark, Answer)>,
    store_reachable: (bool, Instant, Option<String>),
    rolled_back: bool,
    calls: BTreeMap<StoreToken, Caller>,
    next_call: u64,
    sessions: BTreeMap<VolumeId, Slot>,
    opening: BTreeSet<VolumeId>,
    exports: Exports,
    pools: Pools,
    links: Option<Links>,
    locals: BTreeMap<AttachmentId, Local>,
    by_local: BTreeMap<(Seat, Rid), AttachmentId>,
    next_local: u64,
    responses: VecDeque<(Seat, Rid, weft_proto::ids::Ordinal, Response<IoBuf>)>,
    /// Sessions to be drained of what they want.
    touched: BTreeSet<VolumeId>,
    /// Snapshots of several volumes that were asked for.
    groups: BTreeMap<GroupId, groups::Group>,
    /// Snapshots that are offered for reading here.
    readers: BTreeMap<SnapId, Reader>,
    /// The same of readers.
    touched_readers: BTreeSet<SnapId>,
    /// Snapshots that are being compared here.
    comparisons: Comparisons,
    /// The snapshot that is brought to a copy here.
    fetches: Fetches,
    /// Layers that are laid over other volumes here.
    lays: Lays,
    /// When images are looked for that nobody needs.
    janitor_due: Instant,
    /// The store's incarnation, and since when this process has seen it.
    incarnation_since: (u64, Instant),
    links_changed: bool,
    stopping: Option<Instant>,
    pools_stopping: bool,
}

/// Runs the daemon until SIGTERM.
pub fn run(options: Options) -> Result<(), Failure> {
    raise_open_files()?;
    let state = Arc::new(StateDir::open(&options.state_dir)?);
    let kind = match options.driver {
        DriverChoice::Auto => None,
        DriverChoice::IoUring => Some(DriverKind::IoUring),
        DriverChoice::Libaio => Some(DriverKind::Libaio),
    };
    let driver = driver::open(kind, DriverConfig::default())
        .map_err(|e| Failure::new(Code::PROCESS_LIMIT, format!("no way to drive disks: {e}")))?;
    let waker = driver.waker();
    let (mailbox, mail) = Mailbox::new(Arc::new(move || waker.wake()));
    let store = store::spawn(state.clone(), mailbox.clone())?;
    let pools = Pools::new(state.clone(), mailbox.clone())?;
    let events = control::spawn(&options.run_dir.join("weftd.sock"), mailbox)?;
    let at = now();
    let mut daemon = Daemon {
        driver,
        mail,
        watermark: state.read_watermark()?,
        claims: Claims::read(&state)?,
        records_asked: Vec::new(),
        state,
        run_dir: options.run_dir,
        boot_id_file: options.boot_id_file,
        store,
        events,
        process: u64::try_from(random_u128() >> 64).unwrap_or(1),
        identity: None,
        trust: None,
        store_reachable: (false, at, None),
        rolled_back: false,
        calls: BTreeMap::new(),
        next_call: 0,
        sessions: BTreeMap::new(),
        opening: BTreeSet::new(),
        exports: Exports::default(),
        pools,
        links: None,
        locals: BTreeMap::new(),
        by_local: BTreeMap::new(),
        next_local: 0,
        responses: VecDeque::new(),
        touched: BTreeSet::new(),
        groups: BTreeMap::new(),
        readers: BTreeMap::new(),
        touched_readers: BTreeSet::new(),
        comparisons: Comparisons::default(),
        fetches: Fetches::default(),
        lays: Lays::default(),
        janitor_due: at,
        incarnation_since: (0, at),
        links_changed: false,
        stopping: None,
        pools_stopping: false,
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), driver = %daemon.driver.kind(), "weftd");
    if let Some(host) = daemon.state.read_host()? {
        daemon.configure(host)?;
    }
    notify::ready(std::env::var_os("NOTIFY_SOCKET"));
    let mut completions = Vec::new();
    while daemon.drive(&mut completions)? {}
    daemon.pools.release(&mut daemon.driver);
    tracing::info!("weftd has stopped");
    Ok(())
}

impl Daemon {
    /// One turn of the loop; false when the daemon is done.
    fn drive(&mut self, completions: &mut Vec<Completion>) -> Result<bool, Failure> {
        let timeout = self.poll_timeout().map(|due| Duration::from_nanos(due.0.saturating_sub(now().0)));
        self.driver
            .wait(timeout, completions)
            .map_err(|e| Failure::new(Code::DISK_FAILED, format!("the driver failed: {e}")))?;
        let now = now();
        for done in completions.drain(..) {
            self.handle_completion(now, done);
        }
        while let Ok(mail) = self.mail.try_recv() {
            self.handle_mail(now, mail);
        }
        self.handle_timeouts(now);
        self.settle(now);
        Ok(!self.is_stopped(now))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let sessions = self.sessions.values().flat_map(|s| {
            let until = s.opening.as_ref().map(|(_, until)| *until);
            [s.machine.poll_timeout(), until, s.snapshots.poll_timeout()].into_iter().flatten()
        });
        let sessions = sessions.chain(self.snapshots_timeout()).chain(self.groups_timeout());
        let links = self.links.as_ref().and_then(Links::poll_timeout);
        let trust = self.trust.as_ref().and_then(TrustKeeper::poll_timeout);
        let others = links.into_iter().chain(self.pools.poll_timeout()).chain(trust).chain(self.stopping);
        sessions.chain(self.exports.poll_timeout()).chain(others).min()
    }

    fn handle_completion(&mut self, now: Instant, done: Completion) {
        match Part::of(done.token) {
            Some((Part::Export, what, index)) => {
                self.exports.handle_completion(&mut self.driver, now, what, index, done);
            }
            Some((Part::Pool, ..)) => self.pools.handle_completion(done),
            Some((Part::Link, ..)) | None => {
                if let Some(links) = &mut self.links {
                    links.handle_completion(&mut self.driver, now, done);
                }
            }
        }
    }

    fn handle_timeouts(&mut self, now: Instant) {
        let mut late = Vec::new();
        for (volume, slot) in &mut self.sessions {
            if slot.machine.poll_timeout().is_some_and(|due| now >= due) {
                slot.machine.handle_timeout(now);
                self.touched.insert(*volume);
            }
            if slot.opening.as_ref().is_some_and(|(_, until)| now >= *until) {
                late.push(*volume);
            }
        }
        for volume in late {
            self.give_up_opening(now, volume);
        }
        self.handle_snapshot_timeouts(now);
        self.handle_group_timeouts(now);
        self.pools.handle_timeout(now);
        if let Some((generation, signed)) = self.trust.as_mut().and_then(|trust| trust.retry(now)) {
            self.store.send(StoreRequest::KeepTrust { generation, signed });
        }
        if let Some(links) = &mut self.links {
            links.handle_timeout(&mut self.driver, now);
        }
    }

    /// Moves everything that can move.
    fn settle(&mut self, now: Instant) {
        loop {
            let mut moved = self.submit_requests(now);
            while let Some((seat, rid, ordinal, response)) = self.responses.pop_front() {
                moved = true;
                self.handle_response(now, seat, rid, ordinal, response);
            }
            while let Some(out) = self.links.as_mut().and_then(Links::poll) {
                moved = true;
                self.handle_link(now, out);
            }
            self.pools.drive(&mut self.driver, now);
            while let Some(out) = self.pools.poll() {
                moved = true;
                self.handle_pool(now, out);
            }
            if std::mem::take(&mut self.links_changed) {
                self.update_links(now);
                moved = true;
            }
            while let Some(volume) = self.touched.pop_first() {
                moved = true;
                self.drain_session(now, volume);
            }
            while let Some(snap) = self.touched_readers.pop_first() {
                moved = true;
                self.drain_reader(now, snap);
            }
            while let Some(number) = self.comparisons.take_touched() {
                moved = true;
                self.drain_comparison(now, number);
            }
            if self.fetches.take_touched() {
                moved = true;
                self.drain_fetch(now);
            }
            if !moved {
                break;
            }
        }
        // What the last round gave the pools goes to the driver before it waits.
        self.pools.drive(&mut self.driver, now);
    }

    // ---- sessions

    /// Gives the sessions what their guests ask for; true if there was anything.
    fn submit_requests(&mut self, now: Instant) -> bool {
        let mut moved = false;
        while let Some((seat, request)) = self.exports.poll_request(now) {
            moved = true;
            match seat {
                Seat::Session(volume) => {
                    if let Some(slot) = self.sessions.get_mut(&volume) {
                        slot.submit(now, request);
                        self.touched.insert(volume);
                    }
                }
                Seat::Reader(snap) => self.submit_to_reader(now, snap, request),
                // It is no export.
                Seat::Comparison(_) | Seat::Fetch(_) => {}
            }
        }
        moved
    }

    /// Before a session is told to end: what its guests asked for is its to drain or to count as lost, also what waits
    /// for a limit.
    fn release_requests(&mut self, now: Instant, volume: VolumeId) {
        self.exports.release(volume.into());
        self.submit_requests(now);
    }

    fn drain_session(&mut self, now: Instant, volume: VolumeId) {
        loop {
            let Some(slot) = self.sessions.get_mut(&volume) else { return };
            if let Some(transmit) = slot.machine.poll_transmit() {
                self.route(now, volume.into(), volume, transmit);
            } else if let Some((id, reply)) = slot.poll_reply(now) {
                if is_ours(id) {
                    self.handle_laid(now, volume, id, reply);
                } else {
                    self.exports.reply(&mut self.driver, now, id, reply);
                }
            } else if let Some(event) = slot.machine.poll_event() {
                // Before the store is asked: a watermark among them is what its answer is judged by (R11).
                self.handle_session_event(now, volume, event);
            } else if let Some(call) = slot.machine.poll_store() {
                let session = slot.machine.id();
                let key = record_key(volume);
                match call {
                    StoreCall::Get => {
                        let token = self.call(Caller::SessionGet(volume, session));
                        self.store.send(StoreRequest::Read { token, keys: vec![key] });
                    }
                    StoreCall::Swap { expect, base, record, snap, grouped } => {
                        let grouped = snap.as_ref().filter(|_| grouped).map(SnapChange::id);
                        let beside = snap.map(|change| slot.snapshots.beside(&record, &change));
                        let beside = beside.into_iter().flatten().collect();
                        if let Some(snap) = grouped {
                            let expected = Expected { revision: expect, was: Was::Nonce(base) };
                            let swap = KeySwap { key, expected, value: record.to_bytes(), beside };
                            self.collect_swap(now, volume, snap, swap);
                            continue;
                        }
                        let token = self.call(Caller::SessionSwap(volume, session));
                        let value = Some(record.to_bytes());
                        let expected = Some(Expected { revision: expect, was: Was::Nonce(base) });
                        self.store.send(StoreRequest::Swap { token, key, expected, value, beside });
                    }
                }
            } else {
                break;
            }
        }
        self.look_at_groups(now, volume);
        let Some(slot) = self.sessions.get(&volume) else { return };
        let wanted = slot.machine.wanted_links();
        let known = slot.links.iter().map(|(rid, (node, pool, _))| (*rid, *node, *pool));
        if !wanted.eq(known) {
            self.links_changed = true;
        }
    }

    /// A replica answers.
    fn handle_response(
        &mut self,
        now: Instant,
        seat: Seat,
        rid: Rid,
        ordinal: weft_proto::ids::Ordinal,
        response: Response<IoBuf>,
    ) {
        match seat {
            Seat::Session(volume) => {
                if let Some(slot) = self.sessions.get_mut(&volume) {
                    slot.machine.handle_response(now, rid, ordinal, response);
                    self.touched.insert(volume);
                }
            }
            Seat::Reader(snap) => self.answer_reader(now, snap, rid, ordinal, response),
            Seat::Comparison(number) => self.comparisons.answer(now, number, rid, ordinal, response),
            Seat::Fetch(number) => self.fetches.answer(now, number, rid, ordinal, response),
        }
    }

    /// Carries a request to its replica.
    fn route(&mut self, now: Instant, seat: Seat, volume: VolumeId, transmit: Transmit<IoBuf>) {
        let Transmit { rid, node, pool, ordinal, request } = transmit;
        if self.identity.as_ref().is_none_or(|i| i.host != node) {
            if let Some(links) = &mut self.links {
                links.send(&mut self.driver, node, seat, rid, ordinal, &request);
            }
            return;
        }
        let key = ReplicaKey { volume, rid };
        let attachment = match self.by_local.get(&(seat, rid)).copied() {
            Some(id) if self.locals.get(&id).is_some_and(|l| l.ordinal == ordinal) => id,
            before => {
                if let Some(before) = before {
                    self.end_local(before);
                }
                let id = AttachmentId(self.next_local);
                self.next_local += 1;
                self.locals.insert(id, Local { seat, key, ordinal, pool });
                self.by_local.insert((seat, rid), id);
                id
            }
        };
        let (tag, epoch) = (request.tag, request.epoch);
        if let Err(refusal) = self.pools.handle_request(now, pool, key, attachment, request) {
            let response = Response { tag, epoch, outcome: Err(refusal), service_us: 0 };
            self.responses.push_back((seat, rid, ordinal, response));
        }
    }

    fn end_local(&mut self, id: AttachmentId) {
        if let Some(local) = self.locals.remove(&id) {
            self.by_local.remove(&(local.seat, local.key.rid));
            self.pools.handle_disconnect(local.pool, local.key, id);
        }
    }

    /// Tells sessions which of their members can be reached, and the links which hosts are wanted.
    fn update_links(&mut self, now: Instant) {
        let Some(identity) = &self.identity else { return };
        let ours = identity.host;
        let mut hosts = BTreeSet::new();
        let mut changes = LinkChanges::default();
        let (pools, links) = (&self.pools, self.links.as_ref());
        let mut is_up = |node: HostId, pool: PoolId| {
            if node == ours {
                return pools.is_serving(pool);
            }
            hosts.insert(node);
            links.is_some_and(|l| l.is_up(node))
        };
        for (volume, slot) in &mut self.sessions {
            changes.look((*volume).into(), slot.machine.wanted_links(), &mut slot.links, &mut is_up);
        }
        for (snap, reader) in &mut self.readers {
            changes.look(
                (*snap).into(),
                reader.machine.iter().flat_map(SnapReader::wanted_links),
                &mut reader.links,
                &mut is_up,
            );
        }
        for (number, comparison) in self.comparisons.iter_mut() {
            let seat = Seat::Comparison(number);
            changes.look(seat, comparison.machine.wanted_links(), &mut comparison.links, &mut is_up);
        }
        if let Some(fetch) = self.fetches.now_mut() {
            let wanted = fetch.machine.iter().flat_map(|machine| machine.wanted_links());
            changes.look(fetch.seat(), wanted, &mut fetch.links, &mut is_up);
        }
        let LinkChanges { told, dropped } = changes;
        for (seat, rid, node) in dropped {
            self.detach(seat, rid, node);
        }
        for (seat, rid, is_up) in told {
            match seat {
                Seat::Session(volume) => {
                    let Some(slot) = self.sessions.get_mut(&volume) else { continue };
                    if is_up {
                        slot.machine.handle_link_up(now, rid);
                    } else {
                        slot.machine.handle_link_down(now, rid, false);
                    }
                    self.touched.insert(volume);
                }
                Seat::Reader(snap) => self.tell_reader_link(now, snap, rid, is_up),
                Seat::Comparison(number) => self.comparisons.tell_link(now, number, rid, is_up),
                Seat::Fetch(number) => self.fetches.tell_link(now, number, rid, is_up),
            }
        }
        if let Some(links) = &mut self.links {
            links.want(&mut self.driver, now, &hosts);
        }
    }

    fn detach(&mut self, seat: Seat, rid: Rid, node: HostId) {
        if let Some(id) = self.by_local.get(&(seat, rid)).copied() {
            self.end_local(id);
        }
        if let Some(links) = &mut self.links {
            links.forget(&mut self.driver, node, seat, rid);
        }
    }

    fn handle_session_event(&mut self, now: Instant, volume: VolumeId, event: Event) {
        let Some(slot) = self.sessions.get_mut(&volume) else { return };
        match event {
            Event::Opened { epoch } => {
                tracing::info!(%volume, %epoch, session = %slot.machine.id(), caretaker = slot.caretaker, "opened");
                self.begin_export(now, volume);
                self.read_snapshots(now, volume);
            }
            Event::Paused { reason } => tracing::warn!(%volume, reason, "paused"),
            Event::Resumed => tracing::info!(%volume, "goes on"),
            Event::Demoted { rids, reason } => tracing::warn!(%volume, ?rids, reason, "demoted"),
            Event::ResyncStarted { rid, bytes } => {
                slot.resync_since = Some((rid, now));
                tracing::info!(%volume, %rid, bytes, "resync");
            }
            Event::Admitted { rid, copied } => tracing::info!(%volume, %rid, copied, "in sync"),
            Event::JoinAbandoned { rid, reason } => tracing::warn!(%volume, %rid, reason, "resync given up"),
            Event::RecordChanged => {
                if let Some(size) = slot.machine.record().map(|r| r.size) {
                    self.exports.set_size(volume.into(), size);
                }
            }
            Event::ChangeDone { rid, outcome } => {
                for answer in slot.changes.remove(&rid).unwrap_or_default() {
                    match outcome {
                        Ok(()) => {
                            let _ = answer.send(Ok(json!({})));
                        }
                        Err(why) => {
                            let code = match why {
                                "too few in-sync copies would be left" => Code::LAST_COPY,
                                LAST_HOLDER => Code::SNAPSHOT_LAST_HOLDER,
                                "a volume has at most 8 replicas" => Code::TOO_MANY_REPLICAS,
                                _ => Code::REPLICA_EXISTS,
                            };
                            let message = format!("{rid} of volume {volume}: {why}");
                            refuse(answer, Failure::new(code, message).with("volume", volume.to_string()));
                        }
                    }
                }
            }
            Event::Resized { size, outcome } => {
                tracing::info!(%volume, size, ?outcome, "resized");
                slot.answer_resize(size, outcome);
            }
            Event::Reverting { id, done, total } => {
                tracing::debug!(%volume, snapshot = %id, done, total, "is being taken back");
            }
            Event::Reverted { id, outcome } => {
                tracing::info!(%volume, snapshot = %id, ?outcome, "taken back to a snapshot");
                slot.reverts.handle(&slot.machine, id, &outcome);
            }
            Event::PolicySet { outcome } => {
                tracing::info!(%volume, ?outcome, "another policy");
                slot.answer_policy(outcome);
            }
            Event::HeadReleasing { outcome } => {
                tracing::info!(%volume, ?outcome, "what its deleted head has goes");
                slot.answer_release(outcome);
            }
            Event::HeadReleased => tracing::info!(%volume, "what its deleted head had is gone"),
            // A disk that fails as a whole has a million of these: the figures tell.
            Event::Rotten { offset, rids, mended } => {
                if slot.may_tell_rot() {
                    tracing::warn!(%volume, offset, ?rids, mended, "a block could not be read, or its checksum is wrong");
                }
                return;
            }
            Event::Divergent { offset, rids } => {
                if slot.may_tell_rot() {
                    tracing::error!(%volume, offset, ?rids, "copies differ, and each one's checksums are right: none is written");
                }
                return;
            }
            Event::ScrubEnded { complete } => {
                let figures = slot.machine.view().figures;
                let (rotten, repaired) = (figures.rotten_blocks, figures.repaired_blocks);
                let (divergent, lost) = (figures.divergent_blocks, figures.lost_blocks);
                tracing::info!(%volume, complete, rotten, repaired, divergent, lost, "scrub ended; found since the open");
            }
            event @ (Event::SnapshotTaken { .. }
            | Event::SnapshotFailed { .. }
            | Event::SnapshotDeleting { .. }
            | Event::SnapshotGone { .. }
            | Event::SnapshotDestroyed { .. }
            | Event::SnapshotChanged { .. }
            | Event::SnapshotCopyAdded { .. }) => {
                slot.handle_snapshot_event(event.clone());
                self.tell_groups(now, volume, &event);
            }
            Event::Ended(reason) => {
                tracing::info!(%volume, ?reason, "ended");
                return self.end_session(now, volume, &reason);
            }
        }
        self.tell_session(now, volume);
    }

    /// A session is over: its export, attachments and watch go before anybody is told. One that ended against the
    /// wish of whoever opened it stays to be looked at, until it is closed or opened anew.
    fn end_session(&mut self, now: Instant, volume: VolumeId, reason: &EndReason) {
        self.exports.close(&mut self.driver, now, volume.into());
        let Some(slot) = self.sessions.get_mut(&volume) else { return };
        slot.path = None;
        let wished = matches!(reason, EndReason::Closed | EndReason::Abandoned { .. });
        let stays = !wished && slot.opening.is_none();
        let members: Vec<(Rid, HostId)> = slot.links.iter().map(|(rid, (node, ..))| (*rid, *node)).collect();
        slot.links.clear();
        let session = slot.machine.id();
        for (rid, node) in members {
            self.detach(volume.into(), rid, node);
        }
        self.unwatch(volume, session);
        if let Some(slot) = self.sessions.get_mut(&volume) {
            slot.ended = Some(reason.clone());
        }
        self.tell_session(now, volume);
        if let Some(slot) = self.sessions.get_mut(&volume) {
            slot.answer_ended(reason);
        }
        if !stays {
            self.sessions.remove(&volume);
        }
        self.end_in_groups(now, volume);
        self.end_lays(volume, reason);
        self.links_changed = true;
    }

    fn session_status(&self, now: Instant, volume: VolumeId) -> Option<SessionStatus> {
        let slot = self.sessions.get(&volume)?;
        let seat = volume.into();
        let clients = (self.exports.clients_of(seat), self.exports.seen_of(seat));
        Some(slot.status(now, clients, self.exports.held(seat)))
    }

    fn tell_session(&mut self, now: Instant, volume: VolumeId) {
        if self.events.is_wanted()
            && let Some(status) = self.session_status(now, volume)
        {
            self.events.send(ControlEvent::Session(status));
        }
    }

    /// The session serves: its export, if one is wanted, then its asker's answer.
    fn begin_export(&mut self, now: Instant, volume: VolumeId) {
        let Some(slot) = self.sessions.get_mut(&volume) else { return };
        if let (Some(path), None) = (slot.export.clone(), &slot.path) {
            let info = ExportInfo {
                name: volume.to_string(),
                // Whoever has requests of an earlier session of this ownership asks for that one by name: where another
                // one has begun there is none of it (R32).
                aliases: vec!["tapdisk_client".to_owned(), slot.first().to_string()],
                description: String::new(),
                size: slot.machine.record().map_or(0, |r| r.size),
                read_only: false,
                multi_conn: true,
                since: Vec::new(),
            };
            match self.exports.open(&mut self.driver, now, volume.into(), &path, info, slot.limits) {
                Ok(()) => slot.path = Some(path),
                Err(failure) => {
                    tracing::error!(%volume, %failure, "export failed");
                    if let Some((answer, _)) = slot.opening.take() {
                        refuse(answer, failure);
                    }
                    if !slot.machine.close(now) {
                        slot.machine.abandon(now);
                    }
                    self.touched.insert(volume);
                    return;
                }
            }
        }
        if let Some((answer, _)) = slot.opening.take() {
            let _ = answer.send(Ok(json!(slot.opened())));
        }
    }

    fn give_up_opening(&mut self, now: Instant, volume: VolumeId) {
        let Some(slot) = self.sessions.get_mut(&volume) else { return };
        let Some((answer, _)) = slot.opening.take() else { return };
        let reason = slot.machine.view().paused.unwrap_or_else(|| "no member has answered".to_owned());
        let failure = Failure::new(Code::WAITING, format!("volume {volume} can't be opened yet: {reason}"));
        refuse(answer, failure.with("volume", volume.to_string()).with("reason", reason));
        slot.machine.abandon(now);
        self.touched.insert(volume);
    }

    // ---- links and pools

    fn handle_link(&mut self, now: Instant, out: LinksOut) {
        match out {
            LinksOut::Up(_) => self.links_changed = true,
            LinksOut::Down { host, refused } => {
                for (volume, slot) in &mut self.sessions {
                    for (rid, (node, _, is_up)) in &mut slot.links {
                        if *node == host && (*is_up || refused) {
                            *is_up = false;
                            slot.machine.handle_link_down(now, *rid, refused);
                            self.touched.insert(*volume);
                        }
                    }
                }
                self.handle_reader_host_down(now, host);
                self.comparisons.handle_host_down(now, host);
                self.fetches.handle_host_down(now, host);
            }
            LinksOut::Response { seat, rid, ordinal, response } => {
                self.handle_response(now, seat, rid, ordinal, response);
            }
            LinksOut::Request { attachment, pool, key, request } => {
                let (tag, epoch) = (request.tag, request.epoch);
                if let Err(refusal) = self.pools.handle_request(now, pool, key, attachment, request)
                    && let Some(links) = &mut self.links
                {
                    let response = Response { tag, epoch, outcome: Err(refusal), service_us: 0 };
                    links.reply(&mut self.driver, attachment, &response);
                }
            }
            LinksOut::Gone { attachment, pool, key } => self.pools.handle_disconnect(pool, key, attachment),
            LinksOut::Refused(refused) => self.events.send(ControlEvent::PeerRefused(refused)),
            // Heard a moment before the list changed, it is nobody's any more.
            LinksOut::Claim(claim)
                if self.trust.as_ref().is_some_and(|trust| !trust.cell().get().has_host(claim.host)) => {}
            LinksOut::Claim(claim) => {
                let Some(cluster) = self.identity.as_ref().map(|i| i.cluster) else { return };
                let own = self.watermark.unwrap_or(Watermark { cluster, ..Watermark::default() });
                if self.claims.hear(claim.host, claim.watermark, own) {
                    self.claims_changed(now);
                    // What it says is this host's own as soon as a read has shown it.
                    let token = self.call(Caller::Look);
                    self.store.send(StoreRequest::Read { token, keys: Vec::new() });
                }
            }
        }
    }

    fn handle_pool(&mut self, now: Instant, out: PoolsOut) {
        match out {
            PoolsOut::Reply(attachment, response) => {
                if Links::is_remote(attachment) {
                    if let Some(links) = &mut self.links {
                        links.reply(&mut self.driver, attachment, &response);
                    }
                } else if let Some(local) = self.locals.get(&attachment) {
                    self.responses.push_back((local.seat, local.key.rid, local.ordinal, response));
                }
            }
            PoolsOut::Call(call) => self.call_for_pools(call),
            PoolsOut::Copied(key, snap, step) => self.handle_copied(now, key, snap, step),
            PoolsOut::Keep(name, value) => self.store.send(StoreRequest::KeepFile { name, value }),
            PoolsOut::Changed(id) => {
                self.links_changed = true;
                // It may serve now, and have images that were left behind.
                self.janitor_due = Instant(0);
                let watermark = self.watermark.unwrap_or_default();
                if let Some(links) = &mut self.links {
                    links.set_hello(watermark, self.pools.logs());
                }
                if let Some(info) = self.pools.info(id) {
                    self.events.send(ControlEvent::Pool(info));
                }
            }
        }
    }

    fn call_for_pools(&mut self, call: PoolsCall) {
        match call {
            PoolsCall::ReadPool(pool) => {
                let token = self.call(Caller::PoolRead(pool));
                self.store.send(StoreRequest::Read { token, keys: vec![pool_key(pool)] });
            }
            PoolsCall::SwapPool { pool, expected, value } => {
                let token = self.call(Caller::PoolSwap(pool));
                let expected = expected.as_ref().map(Expected::from);
                let (key, beside) = (pool_key(pool), Vec::new());
                self.store.send(StoreRequest::Swap { token, key, expected, value, beside });
            }
            PoolsCall::Verify(key, at) => {
                let token = self.call(Caller::Verify(key, at));
                self.store.send(StoreRequest::Read { token, keys: vec![record_key(key.volume)] });
            }
            PoolsCall::Trash(key) => {
                let token = self.call(Caller::Trash(key));
                self.store.send(StoreRequest::Read { token, keys: vec![record_key(key.volume)] });
            }
            PoolsCall::Emptying { job, volume } => {
                let token = self.call(Caller::Emptying { job, volume });
                self.store.send(StoreRequest::Read { token, keys: vec![record_key(volume)] });
            }
        }
    }

    // ---- the store

    fn call(&mut self, caller: Caller) -> StoreToken {
        let token = StoreToken(self.next_call);
        self.next_call += 1;
        self.calls.insert(token, caller);
        token
    }

    fn unwatch(&mut self, volume: VolumeId, session: SessionId) {
        let watch =
            |caller: &Caller| matches!(caller, Caller::SessionWatch(v, s) if (*v, *s) == (volume, session));
        let tokens: Vec<StoreToken> = self.calls.iter().filter(|(_, c)| watch(c)).map(|(t, _)| *t).collect();
        for token in tokens {
            self.calls.remove(&token);
            self.store.send(StoreRequest::Unwatch { token });
        }
    }

    fn handle_store(&mut self, now: Instant, reply: StoreReply) {
        match reply {
            StoreReply::Read { token, result } => {
                self.set_rolled_back(matches!(result, Err(ReadError::RolledBack(_))), result.is_ok());
                if let Some(caller) = self.calls.remove(&token) {
                    self.handle_read(now, caller, result);
                }
            }
            StoreReply::Swapped { token, outcome } => {
                self.set_rolled_back(
                    matches!(outcome, SwapOutcome::RolledBack(_)),
                    matches!(outcome, SwapOutcome::Done { .. }),
                );
                match self.calls.remove(&token) {
                    Some(Caller::SessionSwap(volume, session)) => {
                        if let Some(slot) = self.session(volume, session) {
                            slot.machine.handle_store(now, swap_reply(outcome), None);
                            self.touched.insert(volume);
                        }
                    }
                    Some(Caller::PoolSwap(pool)) => self.pools.handle_pool_swap(now, pool, outcome),
                    _ => {}
                }
            }
            StoreReply::SwappedAll { token, outcomes } => {
                let back = |outcome: &SwapOutcome| matches!(outcome, SwapOutcome::RolledBack(_));
                let done = |outcome: &SwapOutcome| matches!(outcome, SwapOutcome::Done { .. });
                self.set_rolled_back(outcomes.iter().any(back), outcomes.iter().any(done));
                if let Some(Caller::GroupSwap(whose)) = self.calls.remove(&token) {
                    self.handle_group_swapped(now, whose, outcomes);
                }
            }
            StoreReply::Held { token } => self.handle_held(token),
            StoreReply::Watched { token, event } => self.handle_watched(now, token, event),
            StoreReply::Reachable { reachable, error } => {
                tracing::info!(reachable, error, "store");
                self.store_reachable = (reachable, now, error);
                self.events.send(ControlEvent::Store(self.store_status(now)));
            }
            StoreReply::TrustKept { generation, result } => {
                if self.trust.as_mut().is_some_and(|trust| trust.handle_kept(now, generation, result)) {
                    let generation = Decimal(generation);
                    self.events.send(ControlEvent::Trust(TrustChanged { generation }));
                }
            }
            StoreReply::Watermark(watermark) => {
                self.watermark = Some(watermark);
                if self.incarnation_since.0 != watermark.incarnation {
                    self.incarnation_since = (watermark.incarnation, now);
                }
                self.pools.handle_watermark(watermark);
                self.sessions.values_mut().for_each(|slot| slot.machine.handle_watermark(watermark));
                self.readers
                    .values_mut()
                    .filter_map(|reader| reader.machine.as_mut())
                    .for_each(|machine| machine.handle_watermark(watermark));
                self.comparisons.iter_mut().for_each(|(_, of)| of.machine.handle_watermark(watermark));
                self.fetches.handle_watermark(watermark);
                if self.claims.handle_own(watermark) {
                    self.claims_changed(now);
                }
                let logs = self.pools.logs();
                if let Some(links) = &mut self.links {
                    links.set_hello(watermark, logs);
                }
                let asked = std::mem::take(&mut self.records_asked);
                for (fence, answer) in asked {
                    if watermark < fence {
                        self.records_asked.push((fence, answer));
                    } else {
                        self.pools.tell_records(now, answer);
                    }
                }
            }
        }
    }

    /// Others say something else of the store now, or nothing: kept, told to whoever opens, here or from elsewhere.
    fn claims_changed(&mut self, now: Instant) {
        let (name, value) = (CLAIMS_FILE, self.claims.kept());
        self.store.send(StoreRequest::KeepFile { name, value });
        let highest = self.claims.highest();
        self.pools.handle_claim(highest.map(|claim| claim.watermark));
        if let Some(claim) = highest {
            tracing::warn!(host = %claim.host, watermark = ?claim.watermark, "says that the store was further than it looks from here");
            for (volume, slot) in &mut self.sessions {
                slot.machine.handle_claim(now, claim);
                self.touched.insert(*volume);
            }
        }
    }

    /// A list is in force: what hosts that it doesn't have said of the store counts no more.
    fn judge_claims(&mut self, now: Instant) {
        let Some(list) = self.trust.as_ref().map(|trust| trust.cell().get()) else { return };
        if self.claims.handle_trust(|host| list.has_host(host)) {
            self.claims_changed(now);
        }
    }

    /// The records for a repair of the store, which is looked at first: whoever has not asked it since it went back
    /// believes in it still.
    fn records_for_repair(&mut self, answer: Answer, again: bool) {
        if self.identity.is_none() {
            return refuse(answer, not_configured());
        }
        let token = self.call(Caller::Records { answer, again });
        self.store.send(StoreRequest::Read { token, keys: Vec::new() });
    }

    /// Tells the records to a repair. While the store is not believed, this host first durably raises the
    /// incarnation that it obeys: an owner of before, whose promise is still on its way, is refused from then on, so
    /// that no record younger than the answer can come to be here (R11; `weft-model`, case repair-without-fence).
    fn tell_records(&mut self, now: Instant, answer: Answer) {
        // Revision 0 is a fence's, which an earlier question of the same repair has set: it holds still.
        match self.watermark.filter(|known| self.rolled_back && known.revision > 0) {
            None => self.pools.tell_records(now, answer),
            Some(known) => {
                let Some(incarnation) = known.incarnation.checked_add(1) else {
                    let message = "this host's watermark.json says that no incarnation is above the store's";
                    return refuse(answer, Failure::new(Code::STATE_FILE, message));
                };
                let fence = Watermark { incarnation, revision: 0, ..known };
                self.records_asked.push((fence, answer));
                self.store.send(StoreRequest::Raise(fence));
            }
        }
    }

    fn set_rolled_back(&mut self, rolled_back: bool, believed: bool) {
        if rolled_back != self.rolled_back && (rolled_back || believed) {
            self.rolled_back = rolled_back;
            self.pools.set_rolled_back(rolled_back);
            if rolled_back {
                tracing::error!(
                    "the store has gone back: nothing opens and nothing is trashed until it is repaired"
                );
            }
        }
    }

    fn session(&mut self, volume: VolumeId, session: SessionId) -> Option<&mut Slot> {
        self.sessions.get_mut(&volume).filter(|s| s.machine.id() == session)
    }

    fn handle_read(&mut self, now: Instant, caller: Caller, result: Result<Snapshot, ReadError>) {
        match caller {
            Caller::Snaps(volume, session) => {
                return self.handle_snapshots_read(now, volume, session, result);
            }
            Caller::Readers(wanted, stays, answer) => {
                return self.handle_readers_read(now, (wanted, stays), answer, result);
            }
            Caller::ReaderLook(snap, hold) => return self.handle_reader_look(now, snap, hold, result),
            Caller::Janitor(volume) => return self.handle_janitor_read(now, volume, result),
            Caller::Compare(ask, answer) => return self.handle_compare_read(now, &ask, answer, result),
            Caller::Fetch(ask, answer) => return self.handle_fetch_read(now, &ask, answer, result),
            _ => {}
        }
        let watermark = result.as_ref().ok().map(|s| s.watermark);
        let entry = result.map(|s| s.entries.into_iter().next().flatten());
        match caller {
            Caller::SessionGet(volume, session) => {
                if let Some(slot) = self.session(volume, session) {
                    slot.machine.handle_store(now, read_reply(entry), watermark);
                    self.touched.insert(volume);
                }
            }
            Caller::Open(opening) => self.open_with(now, opening, entry),
            Caller::PoolRead(pool) => self.pools.handle_pool_read(now, pool, entry),
            Caller::Verify(key, token) => self.pools.handle_verified(now, key, token, &entry),
            Caller::Trash(key) => self.pools.handle_trash_read(key, entry),
            Caller::Emptying { job, volume } => self.pools.handle_emptying_read(job, volume, &entry),
            Caller::Records { answer, again } => match entry {
                Err(ReadError::Away(_)) if !again => self.records_for_repair(answer, true),
                Err(ReadError::Away(why) | ReadError::Watermark(why)) if !self.rolled_back => {
                    refuse(answer, Failure::new(Code::STORE_AWAY, why));
                }
                _ => self.tell_records(now, answer),
            },
            Caller::Why(volume, answer) => {
                let record = entry.ok().flatten().and_then(|e| serde_json::from_slice(&e.value).ok());
                let _ = answer.send(Ok(json!(self.why(now, volume, record))));
            }
            Caller::Look
            | Caller::Snaps(..)
            | Caller::Readers(..)
            | Caller::Hold(_)
            | Caller::ReaderLook(..)
            | Caller::Compare(..)
            | Caller::Fetch(..)
            | Caller::Janitor(_)
            | Caller::SessionSwap(..)
            | Caller::GroupSwap(_)
            | Caller::SessionWatch(..)
            | Caller::PoolSwap(_)
            | Caller::Hosts
            | Caller::Trust => {}
        }
    }

    fn handle_watched(&mut self, now: Instant, token: StoreToken, event: WatchEvent) {
        match self.calls.get(&token) {
            Some(Caller::SessionWatch(volume, session)) => {
                let (volume, session) = (*volume, *session);
                let revision = match &event {
                    WatchEvent::Now(entries) => entries.first().map(|e| e.revision),
                    WatchEvent::Put(entry) => Some(entry.revision),
                    WatchEvent::Deleted(_) | WatchEvent::Cut => None,
                };
                if let (Some(revision), Some(slot)) = (revision, self.session(volume, session)) {
                    slot.machine.handle_record_seen(now, revision);
                    self.touched.insert(volume);
                }
            }
            Some(Caller::Hosts) => match event {
                WatchEvent::Now(entries) => {
                    for entry in entries {
                        self.learn_host(now, &entry.key, Some(&entry.value));
                    }
                }
                WatchEvent::Put(entry) => self.learn_host(now, &entry.key, Some(&entry.value)),
                WatchEvent::Deleted(key) => self.learn_host(now, &key, None),
                WatchEvent::Cut => {}
            },
            Some(Caller::Trust) => match event {
                WatchEvent::Now(entries) => {
                    self.offer_trust(now, entries.first().map(|entry| entry.value.as_slice()));
                }
                WatchEvent::Put(entry) => self.offer_trust(now, Some(&entry.value)),
                WatchEvent::Deleted(_) => self.offer_trust(now, None),
                WatchEvent::Cut => {}
            },
            _ => {}
        }
    }

    fn learn_host(&mut self, now: Instant, key: &str, value: Option<&[u8]>) {
        #[derive(Deserialize)]
        struct HostEntry {
            address: String,
        }
        let Some(Ok(host)) = key.strip_prefix(HOSTS_PREFIX).map(str::parse::<HostId>) else { return };
        let address = match value {
            None => None,
            Some(value) => {
                match serde_json::from_slice::<HostEntry>(value).map(|e| e.address.parse::<IpAddr>()) {
                    Ok(Ok(address)) => Some(address),
                    _ => {
                        tracing::warn!(key, "a host's entry has no address that can be understood");
                        return;
                    }
                }
            }
        };
        if let Some(links) = &mut self.links {
            links.set_address(&mut self.driver, now, host, address);
        }
    }

    // ---- identity and trust

    /// What stands in the store as the list of whom to trust.
    fn offer_trust(&mut self, now: Instant, signed: Option<&[u8]>) {
        let Some(trust) = &mut self.trust else { return };
        let Some(TrustChange { generation, signed }) = trust.offer(signed) else { return };
        let credentials = trust.credentials();
        if let Some(links) = &mut self.links {
            links.handle_trust(&mut self.driver, now);
        }
        self.judge_claims(now);
        self.store.send(StoreRequest::KeepTrust { generation, signed });
        self.store.send(StoreRequest::Credentials(Some(credentials)));
    }

    /// The identity directory was read: at first, and whenever its certificate was renewed.
    fn take_identity(&mut self, now: Instant, files: IdentityFiles) {
        let mut is_newer = false;
        match &mut self.trust {
            Some(trust) => is_newer = trust.renew(files),
            None => self.trust = Some(TrustKeeper::new(files)),
        }
        let Some(trust) = &self.trust else { return };
        let identity = trust.identity();
        tracing::info!(key = %identity.kid(), not_after = %identity.not_after(), "identity");
        if let Some(links) = &mut self.links {
            links.set_identity(&mut self.driver, now, trust.secured());
        }
        self.store.send(StoreRequest::Credentials(Some(trust.credentials())));
        let generation = Decimal(trust.cell().get().generation);
        if is_newer {
            self.events.send(ControlEvent::Trust(TrustChanged { generation }));
            if let Some(links) = &mut self.links {
                links.handle_trust(&mut self.driver, now);
            }
        }
        // Also at the start: the list may have changed after the claims were kept.
        self.judge_claims(now);
    }

    /// The agent has heard which list is in force, at least: whom that list believes to be the store may be asked. By an older one
    /// it may be somebody who was revoked.
    fn confirm_store(&mut self, generation: Option<u64>) -> Result<(), Failure> {
        if self.identity.is_none() {
            return Err(not_configured());
        }
        let known = self.trust.as_ref().map_or(u64::MAX, |trust| trust.cell().get().generation);
        if let Some(generation) = generation.filter(|generation| known < *generation) {
            let message = format!("the trust list in force is {known}, the store is known by {generation}");
            let failure = Failure::new(Code::TRUST_OLDER, message).with("generation", known.to_string());
            return Err(failure.with("wanted", generation.to_string()));
        }
        self.store.send(StoreRequest::Confirm(generation.is_some()));
        Ok(())
    }

    fn watch_trust(&mut self) {
        let token = self.call(Caller::Trust);
        self.store.send(StoreRequest::Watch { token, key: TRUST_KEY.to_owned(), prefix: false });
    }

    fn handle_identity(
        &mut self,
        now: Instant,
        files: Result<Option<IdentityFiles>, Failure>,
        answer: Option<Answer>,
    ) {
        let result = match files {
            Ok(Some(files)) => {
                let is_first = self.trust.is_none();
                self.take_identity(now, files);
                if is_first {
                    self.watch_trust();
                }
                Ok(())
            }
            Ok(None) if answer.is_none() => Ok(()),
            Ok(None) => Err(no_identity()),
            Err(failure) => {
                tracing::error!(%failure, "the identity stays as it was");
                Err(failure)
            }
        };
        let Some(answer) = answer else { return };
        match (result, &self.trust) {
            (Ok(()), Some(trust)) => tell(answer, &trust.reloaded()),
            (Ok(()), None) => refuse(answer, no_identity()),
            (Err(failure), _) => refuse(answer, failure),
        }
    }

    // ---- mail

    fn handle_mail(&mut self, now: Instant, mail: Mail) {
        match mail {
            Mail::Store(reply) => self.handle_store(now, reply),
            Mail::Pool(opened) => self.pools.handle_opened(&mut self.driver, now, opened),
            Mail::Control(request) => self.handle_command(now, request),
            Mail::Identity(files, answer) => self.handle_identity(now, *files, answer),
            Mail::Stop => self.stop(now),
        }
    }

    fn stop(&mut self, now: Instant) {
        if self.stopping.is_some() {
            return;
        }
        tracing::info!(sessions = self.sessions.len(), "stopping");
        self.stopping = Some(now.after_ms(STOP_MS));
        self.close_readers(now);
        self.end_comparisons();
        self.sessions.keys().for_each(|volume| self.exports.release((*volume).into()));
        self.submit_requests(now);
        let held = self.sessions.iter().filter(|(_, slot)| slot.held).map(|(volume, _)| *volume);
        for volume in held.collect::<Vec<_>>() {
            self.exports.cut(&mut self.driver, now, volume.into());
        }
        for (volume, slot) in &mut self.sessions {
            // Whose requests somebody holds goes on in the next process, which takes it over from this one (R32). What waits
            // for a member can't be drained: the next open reconciles it.
            if slot.held || !slot.machine.close(now) {
                slot.machine.abandon(now);
            }
            self.touched.insert(*volume);
        }
    }

    fn is_stopped(&mut self, now: Instant) -> bool {
        let Some(until) = self.stopping else { return false };
        let late = now >= until;
        let ended = self.sessions.values().all(|s| s.machine.is_ended());
        if (ended || late) && !self.pools_stopping {
            self.pools_stopping = true;
            self.pools.stop(now);
            self.settle(now);
        }
        if late {
            tracing::warn!("not everything has ended in time");
        }
        late || (self.pools_stopping && self.pools.is_stopped())
    }

    fn configure(&mut self, host: HostFile) -> Result<(), Failure> {
        let address: IpAddr = host.address.parse().map_err(|_| {
            let message = format!("{:?} is not an IP address", host.address);
            Failure::new(Code::BAD_VALUE, message).with("address", host.address.clone())
        })?;
        if let Some(known) = &self.identity {
            if (known.cluster, known.host) != (host.cluster, host.host) {
                let message =
                    format!("this host is host {} of cluster {} already", known.host, known.cluster);
                return Err(Failure::new(Code::OTHER_CLUSTER, message));
            }
            if known.address != host.address {
                let message = format!("the address is {} already; restart weftd to change it", known.address);
                return Err(Failure::new(Code::OTHER_CLUSTER, message));
            }
            self.store.send(StoreRequest::Connect { cluster: host.cluster, endpoints: host.etcd.clone() });
            self.store.send(StoreRequest::ReadIdentity { host: host.host, answer: None });
            self.identity = Some(host);
            return Ok(());
        }
        if let Some(watermark) = self.watermark
            && watermark.cluster != host.cluster
        {
            let message = format!("this host has followed the store of cluster {}", watermark.cluster);
            return Err(Failure::new(Code::OTHER_CLUSTER, message));
        }
        // Nobody is served yet: the reactor may wait for these few files.
        let files = IdentityFiles::read(&self.state, host.cluster, host.host)?;
        if files.is_none() && !CLEAR {
            return Err(Failure::new(Code::NO_IDENTITY, "this host is in a cluster and has no identity"));
        }
        let file = self.boot_id_file.clone().or_else(|| host.boot_id_file.clone());
        let boot_id = boot_id(file.as_deref())?;
        let watermark = self.watermark.unwrap_or(Watermark { cluster: host.cluster, ..Watermark::default() });
        let mut links = Links::new(Hello {
            wire_min: Version::OLDEST.number(),
            wire_max: Version::NEWEST.number(),
            cluster: host.cluster,
            host: host.host,
            process: self.process,
            features: 0,
            max_frame: u32::try_from(MAX_FRAME).expect("a frame's length fits"),
            slots: 1024,
            heartbeat_ms: 100,
            trailer_len: 0,
            watermark,
            pools: Vec::new(),
        });
        // Not an accepted connection is looked at before the identity is in place, in this turn of the loop.
        links.listen(&mut self.driver, now(), SocketAddr::new(address, DATA_PORT))?;
        self.links = Some(links);
        if let Some(files) = files {
            self.take_identity(now(), files);
        }
        self.store.send(StoreRequest::Connect { cluster: host.cluster, endpoints: host.etcd.clone() });
        if self.trust.is_some() {
            self.watch_trust();
        }
        let token = self.call(Caller::Hosts);
        self.store.send(StoreRequest::Watch { token, key: HOSTS_PREFIX.to_owned(), prefix: true });
        self.pools.configure(PoolOwner { cluster: host.cluster, host: host.host, boot_id }, watermark);
        tracing::info!(host = %host.host, name = host.name, cluster = %host.cluster, %address, "configured");
        self.identity = Some(host);
        Ok(())
    }

    // ---- commands

    fn handle_command(&mut self, now: Instant, request: ControlRequest) {
        let ControlRequest { command, answer } = request;
        if self.stopping.is_some() {
            return refuse(answer, Failure::new(Code::STOPPING, "weftd is stopping"));
        }
        match command {
            Command::Hello(_) => tell(answer, &self.hello()),
            Command::Configure(c) => {
                let result = self.reconfigure(HostFile::from(c));
                match result {
                    Ok(()) => tell(answer, &json!({})),
                    Err(failure) => refuse(answer, failure),
                }
            }
            Command::StoreEndpoints(e) => {
                let Some(host) = &mut self.identity else { return refuse(answer, not_configured()) };
                host.etcd = e.endpoints;
                let endpoints = host.etcd.clone();
                self.store.send(StoreRequest::Connect { cluster: host.cluster, endpoints });
                tell(answer, &json!({}));
            }
            Command::StoreConfirm(c) => match self.confirm_store(c.generation.map(|Decimal(g)| g)) {
                Ok(()) => tell(answer, &json!({})),
                Err(failure) => refuse(answer, failure),
            },
            Command::StoreShow(_) => tell(answer, &self.store_status(now)),
            Command::StoreRepairApply(repair) => {
                let parsed: Result<Vec<Record>, Failure> = repair.records.iter().map(parse_record).collect();
                match parsed {
                    Ok(records) => {
                        let (pools, snaps, incarnation) = (repair.pools, repair.snaps, repair.incarnation.0);
                        self.change(RecordChange::Repair { records, pools, snaps, incarnation }, answer);
                    }
                    Err(failure) => refuse(answer, failure),
                }
            }
            Command::PoolCreate(p) => self.pools.create(PathBuf::from(p.path), answer),
            Command::PoolList(_) => tell(answer, &PoolList { pools: self.pools.list() }),
            Command::PoolRemove(p) => self.pools.remove(p.pool, answer),
            Command::ReplicaCreate(r) => self.pools.create_replica(r, answer),
            Command::ReplicaTrash(r) => {
                self.pools.trash_replica(r.pool, ReplicaKey { volume: r.volume, rid: r.rid }, answer);
            }
            Command::ReplicaList(_) => tell(answer, &ReplicaList { replicas: self.pools.replicas() }),
            Command::ReplicaRecords(_) => self.records_for_repair(answer, false),
            Command::ReplicaAdd(r) => {
                if r.rid.0 == u32::MAX {
                    let message = format!("{} leaves no number for a later replica", r.rid);
                    return refuse(answer, Failure::new(Code::BAD_VALUE, message));
                }
                if let Some((slot, answer)) = self.open_slot(r.volume, answer) {
                    slot.changes.entry(r.rid).or_default().push(answer);
                    slot.machine.add_replica(now, r.rid, r.node, r.pool);
                    self.touched.insert(r.volume);
                }
            }
            Command::ReplicaRemove(r) => {
                if let Some((slot, answer)) = self.open_slot(r.volume, answer) {
                    slot.changes.entry(r.rid).or_default().push(answer);
                    slot.machine.remove_replica(now, r.rid);
                    self.touched.insert(r.volume);
                }
            }
            Command::ScrubStart(s) => {
                if s.rate == Some(Decimal(0)) {
                    let message = "a scrub of 0 bytes a second never ends";
                    return refuse(answer, Failure::new(Code::BAD_VALUE, message));
                }
                if let Some((slot, answer)) = self.open_slot(s.volume, answer) {
                    if !slot.machine.scrub(now, s.rate.map(|rate| rate.0)) {
                        return refuse(answer, changing(s.volume));
                    }
                    tell(answer, &json!({}));
                    self.tell_session(now, s.volume);
                    self.touched.insert(s.volume);
                }
            }
            Command::ScrubStop(v) => {
                if let Some((slot, answer)) = self.open_slot(v.volume, answer) {
                    slot.machine.stop_scrub(now);
                    tell(answer, &json!({}));
                    self.touched.insert(v.volume);
                }
            }
            Command::TrashList(_) => self.pools.list_trash(answer),
            Command::TrashRestore(v) => self.pools.restore_trash(v.volume, answer),
            Command::TrashEmpty(e) => self.pools.empty_trash(e.volume, answer),
            Command::VolumeCreate(v) => match parse_record(&v.record).and_then(|r| self.pools.check_first(r))
            {
                Ok(record) => self.change(RecordChange::Create(Box::new(record)), answer),
                Err(failure) => refuse(answer, failure),
            },
            Command::VolumeDelete(v) => {
                let (volume, keep_snapshots) = (v.volume, v.keep_snapshots);
                self.change(RecordChange::Delete { volume, keep_snapshots }, answer);
            }
            Command::VolumeLayer(v) => self.change(RecordChange::Layer(v.volume), answer),
            Command::VolumeRestore(v) => self.change(RecordChange::Restore(v.volume), answer),
            Command::VolumeFence(f) => {
                self.change(RecordChange::Fence { volume: f.volume, host: f.host }, answer);
            }
            Command::VolumeResize(r) => {
                if let Some((slot, answer)) = self.open_slot(r.volume, answer) {
                    slot.resize(now, r.size.0, r.lose, answer);
                    self.touched.insert(r.volume);
                }
            }
            Command::VolumeRevert(r) => {
                if let Some((slot, answer)) = self.open_slot(r.volume, answer) {
                    if let Some(failure) = slot.snapshots.without_data(r.snapshot) {
                        return refuse(answer, failure);
                    }
                    slot.reverts.ask(now, &mut slot.machine, r.snapshot, answer);
                    self.touched.insert(r.volume);
                }
            }
            Command::VolumeRelease(v) => {
                if let Some((slot, answer)) = self.open_slot(v.volume, answer) {
                    slot.releases.push_back(answer);
                    slot.machine.release_head(now);
                    self.touched.insert(v.volume);
                }
            }
            Command::VolumePolicy(p) => {
                if let Some((slot, answer)) = self.open_slot(p.volume, answer) {
                    slot.policies.push_back(answer);
                    let (copies, min_isr, spread) = (p.copies, p.min_isr, p.spread);
                    slot.machine.set_policy(now, PolicyChange { copies, min_isr, spread });
                    self.touched.insert(p.volume);
                }
            }
            Command::SessionOpen(open) => self.open(now, open, answer),
            Command::SessionContinue(wanted) => self.continue_session(now, wanted, answer),
            Command::SessionClose(close) => self.close(now, close.volume, close.abandon, answer),
            Command::SessionLay(ask) => self.lay(now, ask, answer),
            Command::SessionList(_) => {
                let sessions = self.sessions.keys().filter_map(|volume| self.session_status(now, *volume));
                tell(answer, &SessionList { sessions: sessions.collect() });
            }
            Command::SessionShow(v) => {
                // One that has ended in this turn says why.
                self.drain_session(now, v.volume);
                match self.session_status(now, v.volume) {
                    Some(status) => tell(answer, &status),
                    None => refuse(answer, not_open(v.volume)),
                }
            }
            Command::SessionLimit(limit) => self.limit(now, limit, answer),
            Command::LinkList(_) => {
                let links = self.links.as_ref().map_or_else(Vec::new, |l| l.list(now));
                tell(answer, &LinkList { links });
            }
            Command::Why(v) => {
                if self.identity.is_none() {
                    return refuse(answer, not_configured());
                }
                let token = self.call(Caller::Why(v.volume, answer));
                self.store.send(StoreRequest::Read { token, keys: vec![record_key(v.volume)] });
            }
            Command::IdentityReload(_) => match self.identity.as_ref().map(|identity| identity.host) {
                Some(host) => self.store.send(StoreRequest::ReadIdentity { host, answer: Some(answer) }),
                None => refuse(answer, not_configured()),
            },
            Command::IdentityShow(_) => match &self.trust {
                Some(trust) => {
                    tell(answer, &trust.shown(self.links.as_ref().map_or_else(Vec::new, Links::peers)))
                }
                None => refuse(answer, no_identity()),
            },
            Command::SnapshotCreate(ask) => {
                self.wish(now, ask.volume, Wish::Create(ask), answer);
            }
            Command::SnapshotCreateGroup(ask) => self.create_group(now, ask, answer),
            Command::SnapshotDelete(wanted) => self.give_up_snapshot(wanted, false, answer),
            Command::SnapshotDestroyData(wanted) => self.give_up_snapshot(wanted, true, answer),
            Command::SnapshotProtect(p) => self.wish(now, p.volume, Wish::Protect(p.id, p.protected), answer),
            Command::SnapshotRename(r) => self.wish(now, r.volume, Wish::Rename(r.id, r.name), answer),
            Command::SnapshotFetch(ask) => self.fetch_snapshot(ask, answer),
            Command::SnapshotAddCopy(ask) => self.add_snapshot_copy(now, ask, answer),
            Command::SnapshotOpen(ask) => self.open_snapshot(now, ask, answer),
            Command::SnapshotClose(wanted) => {
                self.close_reader(now, wanted.id);
                tell(answer, &json!({}));
            }
            Command::SnapshotOpenList(_) => tell(answer, &self.open_snapshots()),
            Command::SnapshotChanged(ask) => self.compare_snapshots(ask, answer),
            Command::ImageList(_) => tell(answer, &ImageList { images: self.pools.images() }),
            // The control thread answers it.
            Command::Events(_) => tell(answer, &json!({})),
        }
    }

    fn hello(&self) -> HelloAnswer {
        HelloAnswer {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wire_min: u16::from(Version::OLDEST.number()),
            wire_max: u16::from(Version::NEWEST.number()),
            cluster: self.identity.as_ref().map(|i| i.cluster),
            host: self.identity.as_ref().map(|i| i.host),
            incarnation: Decimal(self.process),
            pid: std::process::id(),
            driver: match self.driver.kind() {
                DriverKind::IoUring => types::Driver::IoUring,
                DriverKind::Libaio => types::Driver::Libaio,
            },
            features: if CLEAR { vec!["insecure-clear".to_owned()] } else { Vec::new() },
        }
    }

    /// Takes and keeps what `configure` was told. What only the file says stays: where the boot id is, and the agent's
    /// own fields.
    fn reconfigure(&mut self, told: HostFile) -> Result<(), Failure> {
        let before = self.state.read_host()?;
        let host = match &before {
            Some(HostFile { boot_id_file, other, .. }) => {
                HostFile { boot_id_file: boot_id_file.clone(), other: other.clone(), ..told }
            }
            None => told,
        };
        self.configure(host.clone())?;
        if before.as_ref() != Some(&host) { self.state.write_host(&host) } else { Ok(()) }
    }

    fn change(&mut self, change: RecordChange, answer: Answer) {
        if self.identity.is_none() {
            return refuse(answer, not_configured());
        }
        self.store.send(StoreRequest::Change { change, answer });
    }

    fn store_status(&self, now: Instant) -> StoreStatus {
        let (reachable, since, error) = &self.store_reachable;
        StoreStatus {
            reachable: *reachable,
            since_ms: Decimal(now.ms_since(*since)),
            last_error: error.clone(),
            rolled_back: self.rolled_back,
            watermark: self.watermark.map(|w| WatermarkInfo {
                cluster: w.cluster,
                incarnation: Decimal(w.incarnation),
                revision: Decimal(w.revision),
            }),
            claims: self.claims.shown(),
        }
    }

    fn open_slot(&mut self, volume: VolumeId, answer: Answer) -> Option<(&mut Slot, Answer)> {
        match self.sessions.get_mut(&volume).filter(|s| !s.machine.is_ended()) {
            Some(slot) => Some((slot, answer)),
            None => {
                refuse(answer, not_open(volume));
                None
            }
        }
    }

    fn open(&mut self, now: Instant, open: SessionOpen, answer: Answer) {
        if self.identity.is_none() {
            return refuse(answer, not_configured());
        }
        let export = match &open.export {
            None => None,
            Some(export) => match self.socket_path(export, &open.volume.to_string()) {
                Ok(path) => Some(path),
                Err(failure) => return refuse(answer, failure),
            },
        };
        let limits = match open.limits.map(Limits::try_from).transpose() {
            Ok(limits) => limits,
            Err(failure) => return refuse(answer, failure),
        };
        if self.opening.contains(&open.volume) {
            return refuse(answer, changing(open.volume));
        }
        if let Some(slot) = self.sessions.get_mut(&open.volume) {
            if slot.machine.is_ended() {
                // Perhaps in this very turn: its export goes first, and who closed it is answered.
                self.drain_session(now, open.volume);
                self.sessions.remove(&open.volume);
            } else if slot.caretaker && !open.caretaker {
                // A guest goes before a caretaker, whose work the new session takes over.
                slot.machine.abandon(now);
                self.drain_session(now, open.volume);
                self.sessions.remove(&open.volume);
            } else if slot.opening.is_some() || !slot.closing.is_empty() {
                return refuse(answer, changing(open.volume));
            } else {
                // Asked again, perhaps after its asker was restarted.
                tell(answer, &slot.opened());
                return self.set_limits(now, open.volume, limits);
            }
        }
        if self.sessions.len() + self.opening.len() >= SESSIONS_MAX {
            let message = format!("this host has {SESSIONS_MAX} volumes open, the limit");
            return refuse(answer, Failure::new(Code::TOO_MANY_SESSIONS, message));
        }
        let SessionOpen { volume, mode, caretaker, old_stopped, expected, .. } = open;
        self.opening.insert(volume);
        let token = self.call(Caller::Open(Opening {
            volume,
            mode: Asked::Mode(mode, expected),
            export,
            caretaker,
            old_stopped,
            limits,
            answer,
        }));
        self.store.send(StoreRequest::Read { token, keys: vec![record_key(volume)] });
    }

    /// Where to offer what has this name.
    fn socket_path(&self, export: &Export, name: &str) -> Result<PathBuf, Failure> {
        let Export::Nbd(nbd) = export;
        let path = match &nbd.path {
            Some(path) => PathBuf::from(path),
            None => self.run_dir.join("nbd").join(format!("{name}.sock")),
        };
        let bytes = path.as_os_str().as_encoded_bytes();
        if !path.is_absolute() || bytes.len() > SOCKET_PATH_MAX || bytes.contains(&0) {
            let message =
                format!("{} is no absolute path of at most {SOCKET_PATH_MAX} bytes", path.display());
            return Err(Failure::new(Code::BAD_VALUE, message));
        }
        Ok(path)
    }

    fn open_with(&mut self, now: Instant, opening: Opening, entry: Result<Option<store::Entry>, ReadError>) {
        let (volume, asked) = (opening.volume, opening.mode);
        self.opening.remove(&volume);
        let failure = match entry {
            Ok(Some(entry)) => match record_of(&entry) {
                Ok(record) => {
                    let Some(host) = self.identity.as_ref().map(|i| i.host) else { return };
                    let watermark = self.watermark.unwrap_or_default();
                    let mut slot = match (Slot::open(opening, &record, host, watermark, now), asked) {
                        (Ok(slot), _) => slot,
                        (Err(answer), Asked::Continue(session)) => {
                            return refuse(answer, taken(volume, session, record.owner));
                        }
                        (Err(_), Asked::Mode(..)) => unreachable!("only an ownership can be over"),
                    };
                    if let Some(claim) = self.claims.highest() {
                        slot.machine.handle_claim(now, claim);
                    }
                    let session = slot.machine.id();
                    self.sessions.insert(volume, slot);
                    let token = self.call(Caller::SessionWatch(volume, session));
                    self.store.send(StoreRequest::Watch { token, key: record_key(volume), prefix: false });
                    self.touched.insert(volume);
                    return;
                }
                Err(error) => Failure::new(code_of(&error), format!("volume {volume}: {error}")),
            },
            Ok(None) => Failure::new(Code::NO_SUCH, format!("no volume {volume} in the store")),
            Err(ReadError::Away(why) | ReadError::Watermark(why)) => Failure::new(Code::STORE_AWAY, why),
            Err(ReadError::RolledBack(why)) => Failure::new(Code::STORE_ROLLED_BACK, why),
        };
        refuse(opening.answer, failure.with("volume", volume.to_string()));
    }

    fn limit(&mut self, now: Instant, limit: SessionLimit, answer: Answer) {
        let limits = match limit.limits.map(Limits::try_from).transpose() {
            Ok(limits) => limits,
            Err(failure) => return refuse(answer, failure),
        };
        if let Some((_, answer)) = self.open_slot(limit.volume, answer) {
            self.set_limits(now, limit.volume, limits);
            tell(answer, &json!({}));
        }
    }

    fn set_limits(&mut self, now: Instant, volume: VolumeId, limits: Option<Limits>) {
        let Some(slot) = self.sessions.get_mut(&volume) else { return };
        if std::mem::replace(&mut slot.limits, limits) == limits {
            return;
        }
        tracing::info!(%volume, ?limits, "limits");
        self.exports.set_limits(now, volume.into(), limits);
        self.tell_session(now, volume);
    }

    fn close(&mut self, now: Instant, volume: VolumeId, abandon: bool, answer: Answer) {
        let Some(slot) = self.sessions.get_mut(&volume) else { return refuse(answer, not_open(volume)) };
        if slot.machine.is_ended() {
            self.drain_session(now, volume);
            self.sessions.remove(&volume);
            return tell(answer, &json!({ "lost_writes": 0 }));
        }
        // One that is paused may refuse to close: then its guests go on as slowly as before.
        if abandon || slot.machine.view().phase == "serving" {
            self.release_requests(now, volume);
        }
        let Some(slot) = self.sessions.get_mut(&volume) else { return };
        if abandon {
            slot.closing.push(answer);
            slot.machine.abandon(now);
        } else if slot.machine.close(now) {
            slot.closing.push(answer);
        } else {
            let view = slot.machine.view();
            let reason = view.paused.unwrap_or_else(|| "it waits for a member".to_owned());
            let message = format!("volume {volume} is paused: {reason}; {} requests wait", view.pending);
            let failure = Failure::new(Code::PAUSED, message);
            refuse(answer, failure.with("volume", volume.to_string()).with("pending", view.pending));
        }
        self.touched.insert(volume);
    }

    fn why(&self, now: Instant, volume: VolumeId, record: Option<Value>) -> Why {
        let session = self.session_status(now, volume);
        let replicas: Vec<_> = self.pools.replicas().into_iter().filter(|r| r.volume == volume).collect();
        let pools = self.pools.list().into_iter().filter(|p| replicas.iter().any(|r| r.pool == p.pool));
        let pools: Vec<_> = pools.collect();
        let members: BTreeSet<HostId> =
            session.iter().flat_map(|s| s.members.iter().map(|m| m.node)).collect();
        let links = self.links.as_ref().map_or_else(Vec::new, |l| l.list(now));
        let links: Vec<_> = links.into_iter().filter(|l| members.contains(&l.host)).collect();
        let store = self.store_status(now);
        let mut findings = Vec::new();
        let mut find = |code: &str, message: String| {
            findings.push(Finding { code: code.to_owned(), message, facts: BTreeMap::new() });
        };
        if store.rolled_back {
            find(Code::STORE_ROLLED_BACK.as_str(), "the store has gone back: it must be repaired".to_owned());
        }
        if !store.reachable {
            let why = store.last_error.clone().unwrap_or_default();
            find(Code::STORE_AWAY.as_str(), format!("the store can't be reached: {why}"));
        }
        let distrust = self.trust.as_ref().and_then(TrustKeeper::finding);
        if let Some(reason) = session.as_ref().and_then(|s| s.paused_reason.clone()) {
            find(Code::WAITING.as_str(), reason);
        }
        for link in links.iter().filter(|l| l.state != LinkState::Connected) {
            let why = link.reason.clone().unwrap_or_else(|| "not connected yet".to_owned());
            let code = link.code.as_deref().unwrap_or(Code::WAITING.as_str());
            find(code, format!("host {} at {}: {why}", link.host, link.address));
        }
        for pool in pools.iter().filter(|p| p.state != PoolState::Serving) {
            let why = pool.reason.clone().unwrap_or_else(|| "it is being started".to_owned());
            find(Code::POOL_NOT_SERVING.as_str(), format!("pool {}: {why}", pool.pool));
        }
        findings.extend(distrust);
        let record = record.map(RecordJson);
        Why { volume, record, session, replicas, pools, links, store, findings }
    }
}

/// What is told of links that have changed.
#[derive(Default)]
struct LinkChanges {
    told: Vec<(Seat, Rid, bool)>,
    dropped: Vec<(Seat, Rid, HostId)>,
}

impl LinkChanges {
    /// What has changed of one that speaks with members: `links` are those that it was told of.
    fn look(
        &mut self,
        seat: Seat,
        wanted: impl Iterator<Item = (Rid, HostId, PoolId)>,
        links: &mut BTreeMap<Rid, (HostId, PoolId, bool)>,
        is_up: &mut impl FnMut(HostId, PoolId) -> bool,
    ) {
        let wanted: BTreeMap<Rid, (HostId, PoolId)> =
            wanted.map(|(rid, node, pool)| (rid, (node, pool))).collect();
        links.retain(|rid, (node, pool, _)| {
            let same = wanted.get(rid) == Some(&(*node, *pool));
            if !same {
                self.dropped.push((seat, *rid, *node));
            }
            same
        });
        for (rid, (node, pool)) in wanted {
            let is_up = is_up(node, pool);
            let link = links.entry(rid).or_insert((node, pool, false));
            if link.2 != is_up {
                link.2 = is_up;
                self.told.push((seat, rid, is_up));
            }
        }
    }
}

fn tell(answer: Answer, value: &impl Serialize) {
    // A client that has gone needs no answer.
    let _ = answer.send(Ok(serde_json::to_value(value).unwrap_or(Value::Null)));
}

fn parse_record(record: &RecordJson) -> Result<Record, Failure> {
    let bytes = serde_json::to_vec(&record.0).unwrap_or_default();
    Record::parse(&bytes).map_err(|e| Failure::new(Code::BAD_VALUE, e.to_string()))
}

fn not_open(volume: VolumeId) -> Failure {
    Failure::new(Code::NOT_OPEN, format!("volume {volume} is not open on this host"))
        .with("volume", volume.to_string())
}

fn no_identity() -> Failure {
    Failure::new(Code::NO_IDENTITY, "this host has no identity yet: no certificate and no trust list")
}

fn changing(volume: VolumeId) -> Failure {
    Failure::new(Code::CHANGING, format!("volume {volume} is being opened or closed here"))
        .with("volume", volume.to_string())
}
