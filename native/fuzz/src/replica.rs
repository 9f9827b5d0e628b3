//! Hostile sessions at a replica: decoded requests in any order with any epoch, ordinal, generation and range, while the
//! log and the disk answer when they like, or fail.
//!
//! Must always hold:
//! * every request is answered once, unless its connection is gone;
//! * I3: the promise never goes back, also not over a restart;
//! * I4: data is touched only for exactly the promised (epoch, host, session), from its newest attachment;
//! * I5: when a promise is answered nothing of a lower epoch is unfinished;
//! * I8: the stamp of a region is durable before the data is given to the disk;
//! * I18: nothing lies beyond the size; I29: no generation at or below a sealed one is written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weft_proto::durable::Durable;
use weft_proto::hashes::KEPT_MAX;
use weft_proto::ids::{
    ClusterId, Epoch, Generation, HostId, Instant, Ordinal, PoolId, PoolInc, Rid, SessionId, SnapId, VolumeId,
};
use weft_proto::images::{ImageForm, ImageState};
use weft_proto::log::LogRecord;
use weft_proto::message::{Answer, Ask, Extent, Hole, Request, Watermark};
use weft_proto::mutants::Broken;
use weft_proto::payload::{BLOCK, HeapPayload, Payload, block_crcs};
use weft_proto::record::{Owner, Record};
use weft_proto::replica::{
    Action, AttachmentId, DiskDone, DiskError, DiskOp, ImageOp, Party, Replica, ReplicaConfig, Token,
    Verified,
};

use crate::input::Input;
use crate::messages::{self, Known};
use crate::record::SPECIMEN;

const KNOWN: Known = Known { volume: VolumeId(1), pool: PoolId(2), cluster: ClusterId(3), size: 1 << 20 };
const SHIFT: u8 = 16;
/// Blocks of data in one plot: a kind of clock that its bytes can't outrun.
const STEPS_MAX: usize = 2000;

/// A request that was not answered yet.
#[derive(Clone, Copy, Debug)]
struct Sent {
    epoch: Epoch,
    session: Option<SessionId>,
    is_data: bool,
}

#[derive(Clone, Copy, Debug)]
struct Attached {
    party: Party,
    ordinal: Ordinal,
}

struct World {
    replica: Replica<HeapPayload>,
    now: Instant,
    connections: Vec<AttachmentId>,
    next_connection: u64,
    next_tag: u32,
    sent: BTreeMap<(AttachmentId, u32), Sent>,
    attached: BTreeMap<AttachmentId, Attached>,
    /// Each session's newest ordinal that was taken.
    newest: BTreeMap<Party, Ordinal>,
    log: VecDeque<(Token, LogRecord)>,
    disk: Vec<(Token, DiskOp<HeapPayload>)>,
    images: Vec<(Token, ImageOp<HeapPayload>)>,
    /// The last attempt for which room was asked.
    room: Option<(SnapId, u64)>,
    /// Of the last barrier.
    interval: u32,
    reads: Vec<Token>,
    /// The last promise that was asked for: mostly the store shows that it is its asker's.
    owned: Option<(Epoch, Party)>,
    promised: Epoch,
    broken_log: bool,
}

/// A replica's life among enemies.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(Durable::new(KNOWN.volume, Rid(1), KNOWN.size, SHIFT), input.flag());
    let mut steps = 0;
    while !input.is_done() && steps < STEPS_MAX {
        steps += 1;
        match input.u8() % 16 {
            0 if input.one_in(4) => world.restart(input.flag()),
            0 => world.disconnect(&mut input),
            1..=3 => world.open(&mut input),
            4..=9 => world.ask(&mut input),
            10..=12 => world.logged(&mut input),
            13 | 14 => world.disk_done(&mut input),
            _ => world.stored(&mut input),
        }
        world.now = world.now.after_ms(u64::from(input.u8() % 16));
    }
    world.end();
}

fn config(lossy: bool) -> ReplicaConfig {
    ReplicaConfig {
        pool: KNOWN.pool,
        pool_inc: PoolInc(1),
        watermark: Watermark { cluster: KNOWN.cluster, incarnation: 1, revision: 1 },
        lossy,
        cached: false,
        takes: if lossy { ImageForm::Whole } else { ImageForm::Chained },
        broken: Broken::default(),
    }
}

/// The record under which a session of a host asks for a promise at `epoch`.
fn record(epoch: Epoch, Party { host, session }: Party) -> Vec<u8> {
    let mut record = Record::parse(SPECIMEN.as_bytes()).expect("the specimen");
    record.vol = KNOWN.volume;
    record.size = KNOWN.size;
    record.epoch = Epoch(epoch.0.min(Epoch::MAX.0 / 2));
    record.owner = Some(Owner { node: host, session, caretaker: false, first: None });
    record.to_bytes()
}

impl World {
    fn new(durable: Durable, lossy: bool) -> World {
        let promised = durable.promised;
        World {
            replica: Replica::new(config(lossy), durable),
            now: Instant(1),
            connections: Vec::new(),
            next_connection: 1,
            next_tag: 1,
            sent: BTreeMap::new(),
            attached: BTreeMap::new(),
            newest: BTreeMap::new(),
            log: VecDeque::new(),
            disk: Vec::new(),
            images: Vec::new(),
            room: None,
            interval: 8,
            reads: Vec::new(),
            owned: None,
            promised,
            broken_log: false,
        }
    }

    /// The process was killed: what was not in the log is gone, what the disk has under way may happen.
    fn restart(&mut self, lossy: bool) {
        let durable = self.replica.durable().clone();
        assert!(durable.promised >= Epoch(0) && durable.promised <= self.promised, "I3");
        *self = World::new(durable, lossy);
    }

    fn connection(&mut self, input: &mut Input<'_>) -> AttachmentId {
        if self.connections.len() < 4 && (self.connections.is_empty() || input.one_in(4)) {
            let id = AttachmentId(self.next_connection);
            self.next_connection += 1;
            self.connections.push(id);
            return id;
        }
        *input.pick(&self.connections)
    }

    fn disconnect(&mut self, input: &mut Input<'_>) {
        let id = self.connection(input);
        self.connections.retain(|other| *other != id);
        self.attached.remove(&id);
        self.sent.retain(|(of, _), _| *of != id);
        self.replica.handle_disconnect(id);
        self.drain(None);
    }

    /// An attach or a promise that is nearly right: without those nothing deeper is reached.
    fn open(&mut self, input: &mut Input<'_>) {
        let id = self.connection(input);
        let mark =
            Watermark { cluster: KNOWN.cluster, incarnation: 1 + u64::from(input.one_in(16)), revision: 2 };
        let ask = if let Some(attached) = self.attached.get(&id).copied().filter(|_| !input.one_in(8)) {
            let epoch = Epoch(self.promised.0.saturating_add(u64::from(input.u8() % 4)));
            let epoch = if input.one_in(8) { messages::epoch(input) } else { epoch };
            let record = record(epoch, attached.party);
            self.owned = Some((Epoch(epoch.0.min(Epoch::MAX.0 / 2)), attached.party));
            return self.send(id, epoch, Ask::Promise { record, watermark: mark });
        } else {
            let session = SessionId(1 + u128::from(input.u8() % 3));
            // Mostly its own host; now and then another one that names it.
            let party = Party { host: HostId(if input.one_in(8) { 99 } else { session.0 }), session };
            let ordinal = self.newest.get(&party).map_or(0, |o| o.0).saturating_add(1);
            let mut attach = messages::attach(&mut Input::new(&[]), &KNOWN);
            (attach.session, attach.host) = (session, party.host);
            (attach.ordinal, attach.watermark) = (Ordinal(ordinal), mark);
            Ask::Attach(attach)
        };
        self.send(id, Epoch(0), ask);
    }

    fn ask(&mut self, input: &mut Input<'_>) {
        let id = self.connection(input);
        let epoch = if input.one_in(4) { messages::epoch(input) } else { self.promised };
        let mut ask = messages::ask(input, &KNOWN);
        // Generations are of the promised epoch, mostly.
        if let Ask::Write { generation, .. } | Ask::Zero { generation, .. } | Ask::Seal { generation } =
            &mut ask
            && !input.one_in(4)
            && epoch <= Epoch::MAX
        {
            *generation = Generation::new(epoch, generation.interval() % 8);
        }
        self.steer(input, epoch, &mut ask);
        self.send(id, epoch, ask);
    }

    /// What is asked of an image is mostly asked of the one for which there is room, after its barrier.
    fn steer(&mut self, input: &mut Input<'_>, at: Epoch, ask: &mut Ask<HeapPayload>) {
        if let Ask::Write { generation, .. } | Ask::Zero { generation, .. } = ask
            && at <= Epoch::MAX
            && !input.one_in(4)
        {
            *generation = Generation::new(at, self.interval + 1);
        }
        if let Ask::SnapMake { id, attempt } = ask {
            if !input.one_in(4) {
                *attempt = self.room.map_or(1, |(_, attempt)| attempt + 1);
            }
            self.room = Some((*id, *attempt));
            return;
        }
        let Some((of, made)) = self.room.filter(|_| !input.one_in(4)) else { return };
        match ask {
            Ask::SnapPrepare { id, attempt, generation, .. } if at <= Epoch::MAX => {
                self.interval += 1;
                (*id, *attempt, *generation) = (of, made, Generation::new(at, self.interval));
            }
            Ask::SnapReady { id, attempt, .. } | Ask::SnapDrop { id, attempt } => {
                (*id, *attempt) = (of, made)
            }
            Ask::SnapRead { id, .. }
            | Ask::SnapKinds { id, .. }
            | Ask::SnapHash { id, .. }
            | Ask::SnapChanged { id, .. } => *id = of,
            _ => {}
        }
    }

    fn send(&mut self, id: AttachmentId, epoch: Epoch, ask: Ask<HeapPayload>) {
        let tag = self.next_tag;
        self.next_tag += 1;
        let request = messages::carried_request(&Request { tag, epoch, ask });
        // Images are looked at without a promise.
        let is_data = !matches!(request.ask, Ask::Attach(_) | Ask::Detach | Ask::Promise { .. })
            && !request.ask.is_of_images();
        let session = self.attached.get(&id).map(|a| a.party.session);
        self.sent.insert((id, tag), Sent { epoch, session, is_data });
        let attach = match &request.ask {
            Ask::Attach(attach) => {
                let party = Party { host: attach.host, session: attach.session };
                Some(Attached { party, ordinal: attach.ordinal })
            }
            _ => None,
        };
        let before = self.replica.promised();
        self.replica.handle_request(self.now, id, request.clone());
        if matches!(request.ask, Ask::Detach) {
            self.attached.remove(&id);
        }
        let now_allowed = is_data.then_some((id, epoch, before, request));
        let refused = self.drain(now_allowed);
        if let Some(attached) = attach.filter(|_| !refused.contains(&tag)) {
            self.taken(id, attached);
        }
    }

    /// An attach that was not refused at once is in force, also before its answer (R1).
    fn taken(&mut self, id: AttachmentId, new: Attached) {
        for old in self.attached.values().filter(|old| old.party == new.party) {
            assert!(old.ordinal < new.ordinal, "R1: {new:?} was taken after {old:?}");
        }
        self.newest.insert(new.party, new.ordinal);
        self.attached.insert(id, new);
    }

    /// Takes what the replica wants, and gives the tags that it refused; `asked`: the data request that made it so, if
    /// one did.
    fn drain(
        &mut self,
        asked: Option<(AttachmentId, Epoch, (Epoch, Option<Party>), Request<HeapPayload>)>,
    ) -> BTreeSet<u32> {
        let mut executed = false;
        let mut refused = BTreeSet::new();
        while let Some(action) = self.replica.poll_action() {
            match action {
                Action::Log { token, record } => {
                    if let LogRecord::Stamp { generation, .. } = &record {
                        executed = true;
                        assert!(*generation > self.replica.durable().sealed, "I29: {generation} is sealed");
                    }
                    self.log.push_back((token, record));
                }
                Action::Disk { token, op } => {
                    executed = true;
                    self.check_op(&op);
                    self.disk.push((token, op));
                }
                Action::Image { token, op } => {
                    self.check_image_op(&op);
                    self.images.push((token, op));
                }
                Action::ReadStore { token } => self.reads.push(token),
                Action::Reply { attachment, response } => {
                    let response = messages::carried_response(&response);
                    let Some(sent) = self.sent.remove(&(attachment, response.tag)) else {
                        assert!(
                            !self.connections.contains(&attachment),
                            "a second answer to {} of {attachment:?}: {response:?}",
                            response.tag
                        );
                        continue;
                    };
                    if let Ok(Answer::Promised(view)) = &response.outcome {
                        self.promise_answered(view.promised, sent);
                    }
                    if response.outcome.is_err() {
                        refused.insert(response.tag);
                    }
                }
            }
        }
        if let Some((id, epoch, (promised, party), request)) = asked
            && executed
        {
            let attached = self.attached.get(&id);
            assert_eq!(epoch, promised, "I4: executed at another epoch than promised: {request:?}");
            let attached = attached.unwrap_or_else(|| panic!("I4: executed without attachment: {request:?}"));
            assert_eq!(Some(attached.party), party, "I4: executed for another session than promised");
            let newest = self.newest.get(&attached.party).copied();
            assert_eq!(Some(attached.ordinal), newest, "I4: executed for an older attachment: {request:?}");
        }
        let promised = self.replica.promised().0;
        assert!(
            promised >= self.promised || self.broken_log,
            "I3: promised {promised} after {}",
            self.promised
        );
        assert!(
            self.replica.durable().promised <= promised || self.broken_log,
            "I3: memory is behind the disk"
        );
        self.promised = promised;
        refused
    }

    fn promise_answered(&self, promised: Epoch, promise: Sent) {
        assert_eq!(self.replica.durable().promised, promised, "answered before it is durable");
        let lower =
            self.sent.values().find(|s| s.is_data && s.epoch < promised && s.session == promise.session);
        assert!(lower.is_none(), "I5: {lower:?} is unfinished at the promise of {promised}");
        for (_, op) in &self.disk {
            if let DiskOp::Write { .. } | DiskOp::Zero { .. } = op {
                // What is at the disk now was asked for at this very epoch: a promise that is repeated.
                assert!(promise.epoch == promised, "I5: {op:?} is under way at the promise of {promised}");
            }
        }
    }

    fn check_op(&self, op: &DiskOp<HeapPayload>) {
        let durable = self.replica.durable();
        let range = match op {
            DiskOp::Write { offset, data, crcs, .. } => {
                assert_eq!(&block_crcs(data.bytes()), crcs, "data with a wrong CRC goes to the disk");
                Some((*offset, data.len() as u64, true))
            }
            DiskOp::Zero { offset, len, .. } => Some((*offset, *len, true)),
            DiskOp::Read { offset, len }
            | DiskOp::Kinds { offset, len }
            | DiskOp::Hash { offset, len, .. } => Some((*offset, *len, false)),
            DiskOp::Flush | DiskOp::Seal | DiskOp::Grow { .. } | DiskOp::Cut { .. } => None,
        };
        let Some((offset, len, writes)) = range else { return };
        assert!(len > 0 && offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK));
        assert!(offset.checked_add(len).is_some_and(|end| end <= durable.size), "I18: {offset}+{len}");
        if writes {
            for region in durable.regions_of(offset, len) {
                let stamp = durable.rgm[usize::try_from(region).expect("32 bits")];
                assert!(
                    stamp > durable.sealed || stamp > Generation::NEVER,
                    "I8: region {region} has no stamp"
                );
            }
        }
    }

    fn check_image_op(&self, op: &ImageOp<HeapPayload>) {
        let images = &self.replica.durable().images;
        match op {
            ImageOp::Make { image, .. } | ImageOp::Drop { image } | ImageOp::Take { image } => {
                assert!(images.get(*image).is_none(), "{image} is there");
            }
            ImageOp::Preserve { image, offset, len } => {
                let of = images.get(*image).expect("of an image");
                assert!(of.state.keeps(), "into one that goes");
                assert!(*len > 0 && offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK));
                assert!(offset + len <= of.size.min(self.replica.durable().size), "{offset}+{len}");
            }
            ImageOp::Look { image, op, .. } => {
                assert!(images.get(*image).is_some(), "of an image");
                assert!(matches!(op, DiskOp::Read { .. } | DiskOp::Kinds { .. } | DiskOp::Hash { .. }));
            }
            ImageOp::HandDown { image, heir, .. } => {
                assert!(images.get(*image).is_some_and(|of| !of.state.keeps()));
                assert!(images.get(*heir).is_some_and(|of| of.state.keeps()));
            }
            ImageOp::Keep { image, bytes, .. } => {
                assert_eq!(images.get(*image).map(|of| of.state), Some(ImageState::Ready));
                assert!(bytes.len() <= KEPT_MAX, "{} bytes", bytes.len());
            }
            ImageOp::Kept { image, .. } => {
                assert_eq!(images.get(*image).map(|of| of.state), Some(ImageState::Destroyed));
            }
            ImageOp::Empty { image } => {
                let of = images.get(*image);
                assert!(of.is_none_or(|of| !of.state.keeps()), "{image} has its data");
            }
            ImageOp::CloneOut { .. } => panic!("nobody asked for a clone"),
            ImageOp::CopyBegin { .. }
            | ImageOp::CopyFill { .. }
            | ImageOp::CopySync { .. }
            | ImageOp::CopyPublish { .. }
            | ImageOp::CopyAbandon { .. } => panic!("nobody brings it a snapshot"),
        }
    }

    fn logged(&mut self, input: &mut Input<'_>) {
        // In order, as a log is; a few at once.
        for _ in 0..=input.u8() % 3 {
            let Some((token, record)) = self.log.pop_front() else { return };
            let outcome = match input.u8() {
                0..=247 => Ok(()),
                248..=252 => Err(DiskError::NoSpace),
                _ => Err(DiskError::Io),
            };
            self.broken_log |= outcome.is_err();
            self.replica.handle_logged(self.now, token, record, outcome);
            self.drain(None);
        }
    }

    fn image_done(&mut self, input: &mut Input<'_>) {
        let (token, op) = self.images.swap_remove(input.below(self.images.len()));
        let outcome = match input.u8() {
            248..=250 => Err(DiskError::NoSpace),
            251 | 252 => Err(DiskError::Io),
            253 => Err(DiskError::BitRot),
            254 | 255 => Err(DiskError::NoSnapshots),
            _ => Ok(looked(&op)),
        };
        self.replica.handle_disk(self.now, token, outcome);
        self.drain(None);
    }

    fn disk_done(&mut self, input: &mut Input<'_>) {
        if !self.images.is_empty() && input.flag() {
            return self.image_done(input);
        }
        if self.disk.is_empty() {
            return;
        }
        let (token, op) = self.disk.swap_remove(input.below(self.disk.len()));
        let outcome = match (input.u8(), &op) {
            (248..=250, _) => Err(DiskError::NoSpace),
            (251 | 252, _) => Err(DiskError::Io),
            (253 | 254, _) => Err(DiskError::BitRot),
            (255, _) => Err(DiskError::BadCrc),
            (_, DiskOp::Read { len, .. }) => {
                let data = HeapPayload::zeroed(usize::try_from(*len).expect("one message"));
                let crcs = block_crcs(data.bytes());
                Ok(DiskDone::Data(vec![Extent::Data { crcs, data }]))
            }
            (_, DiskOp::Kinds { len, .. }) => Ok(DiskDone::Kinds(vec![(*len, Some(Hole::Zero))])),
            (_, DiskOp::Hash { len, .. }) => {
                Ok(DiskDone::Hashes(vec![[7; 16]; usize::try_from(len / BLOCK).expect("few")]))
            }
            _ => Ok(DiskDone::Done),
        };
        self.replica.handle_disk(self.now, token, outcome);
        self.drain(None);
    }

    fn stored(&mut self, input: &mut Input<'_>) {
        let Some(token) = self.reads.pop() else {
            self.replica.handle_free_bytes(input.number());
            let incarnation = u64::from(input.u8() % 2);
            let mark = Watermark { cluster: KNOWN.cluster, incarnation, revision: input.number() };
            self.replica.handle_watermark(mark);
            return;
        };
        let mut record = Record::parse(SPECIMEN.as_bytes()).expect("the specimen");
        record.vol = KNOWN.volume;
        record.epoch = Epoch(input.number() % Epoch::MAX.0);
        if let Some((epoch, Party { host: node, session })) = self.owned.filter(|_| !input.one_in(4)) {
            (record.epoch, record.owner) =
                (epoch, Some(Owner { node, session, caretaker: false, first: None }));
        }
        let shown = match input.u8() % 16 {
            0 => Verified::Gone,
            1 => Verified::RolledBack,
            2 | 3 => Verified::Away,
            _ => Verified::Record(&record),
        };
        self.replica.handle_verified(self.now, token, shown);
        self.drain(None);
    }

    /// Log, disk and store answer everything: then every request has its answer.
    fn end(mut self) {
        for _ in 0..10_000 {
            if let Some((token, record)) = self.log.pop_front() {
                self.replica.handle_logged(self.now, token, record, Ok(()));
            } else if let Some((token, op)) = self.disk.pop() {
                let done = match op {
                    DiskOp::Read { .. } => DiskDone::Data(Vec::new()),
                    _ => DiskDone::Done,
                };
                self.replica.handle_disk(self.now, token, Ok(done));
            } else if let Some((token, op)) = self.images.pop() {
                self.replica.handle_disk(self.now, token, Ok(looked(&op)));
            } else if let Some(token) = self.reads.pop() {
                self.replica.handle_verified(self.now, token, Verified::Away);
            } else {
                break;
            }
            self.drain(None);
        }
        assert!(self.replica.is_idle(), "{}", self.replica.line());
        assert!(self.sent.is_empty(), "never answered: {:?}", self.sent);
        self.restart(false);
    }
}

/// What a pool finds, whatever was asked for.
fn looked(op: &ImageOp<HeapPayload>) -> DiskDone<HeapPayload> {
    match op {
        ImageOp::Look { op: DiskOp::Read { len, .. }, .. } => {
            DiskDone::Data(vec![Extent::Hole { len: *len, kind: Hole::Zero }])
        }
        ImageOp::Look { op: DiskOp::Kinds { len, .. }, .. } => {
            DiskDone::Kinds(vec![(*len, Some(Hole::Zero))])
        }
        ImageOp::Look { op: DiskOp::Hash { len, .. }, .. } => {
            DiskDone::Hashes(vec![[7; 16]; usize::try_from(len / BLOCK).expect("few")])
        }
        ImageOp::Kept { .. } => DiskDone::Kept(None),
        _ => DiskDone::Done,
    }
}
