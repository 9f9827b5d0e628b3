//! What must hold over the global state (protocol.md 4.21), each by a check of its own name.
//!
//! | | judged | where |
//! |-|-|-|
//! | I1, I2, I7, I14, I18, I29 | at each change of the record | [`World::judge_record`] |
//! | I3 | at each log record and each start of a process | `logged`, `start_replica` |
//! | I4 | whenever a replica starts something for a request | [`World::judge_start`] |
//! | I5 | whenever a replica answers a promise | [`World::judge_promised`] |
//! | I6, I27 | at each acknowledgement: every in-sync member has it, in durable mode on stable media | [`World::judge_acknowledged`] |
//! | I7 | at each acknowledgement: min_isr members are in sync | [`World::judge_answering`] |
//! | I8, I22 | whenever data lands on a disk: its region's stamp is durable and above the seal, its checksums are its own | [`World::judge_landed`] |
//! | I9 | whenever a replica has sealed | [`World::judge_seal`] |
//! | I10, I11 | at each change of the record, and at the end | [`World::judge_copies`] |
//! | I12, I13, I23 | by the oracle: at each read, at each loss of all caches and at the end | `crate::oracle` |
//! | I15 | whenever a read is sent | [`World::judge_sent`] |
//! | I16, I17, I32 | when a joiner is in sync by the record: nothing that was settled is missing on it; I6 thereafter | [`World::judge_admission`] |
//! | R32 | at each change of the record: an ownership is another one's only after a guest's session of the same host | [`World::judge_record`] |
//! | R33 | at each change of the record: who was to replace one owner has replaced that one, nobody's or a caretaker's | [`World::judge_record`] |
//! | R25 | a repair: no size that was told is another then, nothing that was answered is beyond the end | `judge_size` |
//! | I19 | when a pool would serve | `pool_step` |
//! | I20 | when a session begins to serve | [`World::judge_opened`] |
//! | I21 | when somebody is told of a snapshot; then at each report, at a repair and at the end: it stays as it was | [`World::judge_taken`], [`World::judge_reported`] |
//! | I24 | I6 and the oracle do, since a lossy member holds older values | |
//! | I26 | when the record is clean | [`World::judge_clean`] |
//! | D7, D15 | when a session says that copies differ; and after a scrub at the end: what one copy gives, all give | [`World::judge_divergent`], [`World::judge_scrubbed`] |
//! | I30 | at the end, first for a part of the cluster that suffices, then for all of it | `ending` |
//! | I31 | requests at a disk and of a guest, the record's size; steps of a run | `start_io`, [`World::judge_answering`], `Record::check`, `run_until` |
//!
//! Not judged here: I25 and I28 (lineages and register mode are not built), I33 (weftd trashes, its own
//! tests judge it).

use weft_proto::payload::block_crcs;
use weft_proto::record::Owner;

use super::*;

/// Requests of one guest, of all eras.
const REQUESTS_MAX: usize = 100;
/// Blocks of a region.
const REGION: usize = (1 << REGION_SHIFT) / BLOCK as usize;

impl World {
    /// Is this copy what the protocol may rely on? Not one whose disk is gone, is older than it says, or has lost what it
    /// acknowledged from its cache.
    pub(super) fn is_trusted(&self, rep: Id) -> bool {
        let r = &self.reps[rep];
        !(r.is_gone() || r.put_back || r.stored.lossy && self.plan.cached)
    }

    /// Blocks of the volume, by the record.
    pub(super) fn blocks(&self) -> usize {
        (self.store.record.size / BLOCK) as usize
    }

    fn trusted_in_sync(&self) -> Vec<Id> {
        let members = self.store.record.in_sync().filter_map(|e| self.rep_of(e.rid));
        members.filter(|rep| self.is_trusted(*rep)).collect()
    }

    /// Cached mode: when every in-sync cache is gone, unflushed writes may legally be.
    /// `opened`: a session has just become the owner.
    pub(super) fn era(&mut self, opened: bool) {
        let members: Vec<Id> = self.store.record.in_sync().filter_map(|e| self.rep_of(e.rid)).collect();
        let all_lossy = members.iter().all(|r| self.reps[*r].stored.lossy);
        // Members that were taken up after such a loss go on as lossy ones until the next seal. One more loss before it
        // may cost what they had since, and whoever opens then takes any of them for its source (R8).
        let lost_more = members.iter().any(|r| self.reps[*r].cache_went);
        if !self.plan.cached || !all_lossy || !(opened || lost_more) {
            return;
        }
        for member in &members {
            self.reps[*member].cache_went = false;
        }
        let held = self.held();
        let mut before = self.held_before.clone();
        for (half, values) in self.held_by(&self.coming()) {
            before.entry(half).or_default().extend(values);
        }
        self.note(|_| "every in-sync cache is lost".into());
        if let Err(what) = self.oracle.new_era(&held, &before, self.now) {
            self.fail(what);
        }
        for s in &mut self.sessions {
            // What was called before and is answered later belongs to no era.
            s.guests.retain(|_, asked| matches!(asked, Asked::Flush { .. }));
            s.stale_answers = true;
        }
    }

    /// What the in-sync members hold, per half block.
    pub(super) fn held(&self) -> BTreeMap<u64, Vec<Value>> {
        if !self.plan.cached {
            return BTreeMap::new();
        }
        let members: Vec<Id> = self.store.record.in_sync().filter_map(|e| self.rep_of(e.rid)).collect();
        self.held_by(&members)
    }

    fn held_by(&self, reps: &[Id]) -> BTreeMap<u64, Vec<Value>> {
        let value = |rep: Id, half: usize| self.reps[rep].stored.media.content(half / 2).0[half % 2];
        let values = |half| reps.iter().map(|rep| value(*rep, half)).collect();
        (0..2 * self.blocks()).map(|half| (half as u64, values(half))).collect()
    }

    /// Copies that a swap on its way to the store would bring in sync: such a one has everything that was answered, and
    /// its cache is not lost with the members' (R3, R14).
    fn coming(&self) -> Vec<Id> {
        let in_sync = |rid: Rid| self.store.record.in_sync().any(|e| e.rid == rid);
        let swaps = self.queue.values().filter_map(|event| match event {
            Event::LateSwap { record, .. } | Event::Store { call: StoreCall::Swap { record, .. }, .. } => {
                Some(record)
            }
            _ => None,
        });
        let rids: BTreeSet<Rid> =
            swaps.flat_map(Record::in_sync).map(|e| e.rid).filter(|rid| !in_sync(*rid)).collect();
        rids.into_iter().filter_map(|rid| self.rep_of(rid)).collect()
    }

    /// A guest's session that the writer has taken the volume from and was not to.
    fn replaced_other(&self, writer: SessionId, old: &Record) -> Option<SessionId> {
        let before = old.owner.filter(|o| !o.caretaker && o.session != writer)?.session;
        let only = self.sessions.iter().find(|s| s.id == writer)?.only?;
        (self.store.record.owner?.session == writer && before != only).then_some(before)
    }

    /// A record took the place of `old`; `writer` sent it.
    pub(super) fn judge_record(&mut self, writer: SessionId, old: &Record) {
        let new = &self.store.record;
        if self.store.rolled_back {
            return;
        }
        let states = |r: &Record| r.replicas.iter().map(|e| (e.rid, e.state)).collect::<Vec<_>>();
        let members = |r: &Record| r.in_sync().map(|e| e.rid).collect::<Vec<_>>();
        let (before, after) = (members(old), members(new));
        let changed = old.owner != new.owner || before != after || old.policy.ack != new.policy.ack;
        let what = if new.epoch < old.epoch {
            Some(format!("I1: epoch {} after {}", new.epoch, old.epoch))
        } else if changed && new.epoch == old.epoch {
            Some(format!("I1: owner, in-sync set or ack mode changed within epoch {}", old.epoch))
        } else if let Err(e) = new.check() {
            Some(format!("the store took a bad record: {e}"))
        } else if old.owner.is_none_or(|o| o.session != writer)
            && new.owner.is_none_or(|o| o.session != writer)
        {
            Some(format!("I2: {} changed the record of another owner", session_name(writer)))
        } else if old.owner.is_none_or(|o| o.session != writer) && states(old) != states(new) {
            Some(format!("I2: {} changed the copies before it owned the volume", session_name(writer)))
        } else if !is_first_of(old, new) {
            Some(format!("R32: {} goes on with an ownership that is not its own", session_name(writer)))
        } else if let Some(other) = self.replaced_other(writer, old) {
            Some(format!("R33: {} replaced {}", session_name(writer), session_name(other)))
        } else if after.is_empty() {
            Some("I7: no copy is in sync".into())
        } else if after.len() < before.len() && after.len() < usize::from(new.policy.min_isr) {
            Some(format!("I7: {} copies are left in sync, min_isr is {}", after.len(), new.policy.min_isr))
        } else if new.replicas.iter().any(|e| old.replica(e.rid).is_none() && e.rid.0 < old.next_rid) {
            Some("I29: a replica number was used again".into())
        } else {
            None
        };
        if let Some(what) = what {
            return self.fail(what);
        }
        let small = new.in_sync().find(|e| {
            let rep = self.rep_of(e.rid).map(|rep| &self.reps[rep]);
            rep.is_some_and(|r| !r.is_gone() && !r.put_back && r.stored.durable.size < new.size)
        });
        if let Some(rid) = small.map(|e| e.rid) {
            return self.fail(format!("I18: {rid} is smaller than the volume"));
        }
        let clean = new.clean;
        for rid in after.iter().filter(|rid| !before.contains(rid)) {
            self.judge_admission(*rid, &before);
        }
        self.judge_copies();
        if clean {
            self.judge_clean();
        }
    }

    /// I16: a joiner that is in sync by the record lacks nothing that anybody was told of.
    fn judge_admission(&mut self, rid: Rid, before: &[Rid]) {
        let Some(joiner) = self.rep_of(rid).filter(|rep| self.is_trusted(*rep)) else { return };
        let members: Vec<Id> =
            before.iter().filter_map(|r| self.rep_of(*r)).filter(|rep| self.is_trusted(*rep)).collect();
        let Some(first) = members.first().copied() else { return };
        for half in 0..2 * self.blocks() {
            let value = |rep: Id| self.reps[rep].stored.media.content(half / 2).0[half % 2];
            let (theirs, its) = (value(first), value(joiner));
            if its != theirs
                && members.iter().all(|m| value(*m) == theirs)
                && self.oracle.replaced(half as u64, its, theirs)
            {
                let name = self.oracle.name(half as u64);
                return self.fail(format!(
                    "I16: {rid} came in sync with value {its} in {name}, which {theirs} had replaced for good"
                ));
            }
        }
    }

    /// I10, I11: copies differ only where stamps say so.
    pub(super) fn judge_copies(&mut self) {
        if self.store.rolled_back {
            return;
        }
        let members = self.trusted_in_sync();
        let sealed = members.iter().map(|m| self.reps[*m].stored.durable.sealed).max().unwrap_or_default();
        let stale = self.store.record.replicas.iter().filter(|e| e.state == ReplicaState::Stale);
        let stale: Vec<(Id, Generation)> = stale
            .filter_map(|e| self.rep_of(e.rid).map(|rep| (rep, e.base)))
            .filter(|(rep, _)| !self.reps[*rep].is_gone() && !self.reps[*rep].put_back)
            .collect();
        let mut found = None;
        for (i, x) in members.iter().enumerate() {
            for y in &members[i + 1..] {
                found = found.or_else(|| self.difference(*x, *y, sealed).map(|b| ("I10", *x, *y, b, sealed)));
            }
            for (y, base) in &stale {
                found = found.or_else(|| self.difference(*x, *y, *base).map(|b| ("I11", *x, *y, b, *base)));
            }
        }
        if let Some((rule, x, y, block, above)) = found {
            let (a, b) = (self.reps[x].rid, self.reps[y].rid);
            let (va, vb) =
                (self.reps[x].stored.media.content(block).0, self.reps[y].stored.media.content(block).0);
            self.fail(format!(
                "{rule}: block {block} is {va:?} on {a} and {vb:?} on {b}, and neither has a stamp above {above} there"
            ));
        }
    }

    /// A block that differs although neither has a stamp above `above`.
    fn difference(&self, x: Id, y: Id, above: Generation) -> Option<usize> {
        let (x, y) = (&self.reps[x].stored, &self.reps[y].stored);
        let stamp =
            |of: &Stored, block: usize| of.durable.rgm.get(block / REGION).copied().unwrap_or_default();
        (0..self.blocks()).find(|block| {
            // What neither can give nobody sees before it is written again.
            x.media.content(*block) != y.media.content(*block)
                && !(x.media.is_bad(*block) && y.media.is_bad(*block))
                && stamp(x, *block) <= above
                && stamp(y, *block) <= above
        })
    }

    /// I9: a replica has sealed a generation: in-sync members are equal up to it.
    pub(super) fn judge_seal(&mut self, rep: Id, generation: Generation) {
        let members = self.trusted_in_sync();
        if self.store.rolled_back || !members.contains(&rep) {
            return;
        }
        let other = members.iter().find_map(|m| self.difference(rep, *m, generation).map(|b| (*m, b)));
        if let Some((m, block)) = other {
            let (a, b) = (self.reps[rep].rid, self.reps[m].rid);
            self.fail(format!("I9: {a} sealed {generation}, and block {block} differs from {b}"));
        }
    }

    /// D15: no fault that is drawn makes valid copies differ: whoever says that they do has looked while they were written.
    pub(super) fn judge_divergent(&mut self, session: Id, offset: u64) {
        if !self.store.rolled_back {
            self.fail(format!("D15: s{} finds that copies of block {} differ", session + 1, offset / BLOCK));
        }
    }

    /// D7: a scrub has ended, and nothing happened since: a block that one in-sync copy gives is given by all.
    pub(super) fn judge_scrubbed(&mut self) {
        let members = self.trusted_in_sync();
        let is_bad = |rep: &Id, block: usize| self.reps[*rep].stored.media.is_bad(block);
        for block in 0..(self.store.record.size / BLOCK) as usize {
            let bad = members.iter().copied().find(|rep| is_bad(rep, block));
            let good = members.iter().copied().find(|rep| !is_bad(rep, block));
            if let (Some(bad), Some(good)) = (bad, good) {
                let (bad, good) = (self.reps[bad].rid, self.reps[good].rid);
                return self
                    .fail(format!("D7: after a scrub {bad} can't give block {block}, which {good} has"));
            }
        }
    }

    /// I26: a closed volume is sealed and equal everywhere.
    fn judge_clean(&mut self) {
        let record = &self.store.record;
        if let Some(owner) = record.owner {
            return self.fail(format!("I26: clean with an owner, {}", session_name(owner.session)));
        }
        let closed = record.closed_gen;
        let members = self.trusted_in_sync();
        let behind = members.iter().find(|m| self.reps[**m].stored.durable.sealed < closed);
        if let Some(rid) = behind.map(|m| self.reps[*m].rid) {
            return self.fail(format!("I26: closed at {closed}, which {rid} has not sealed"));
        }
        for pair in members.windows(2) {
            let (x, y) = (&self.reps[pair[0]], &self.reps[pair[1]]);
            let (a, b) = (&x.stored.media, &y.stored.media);
            let both_bad = |block: usize| a.is_bad(block) && b.is_bad(block);
            let differs = (0..self.blocks()).find(|i| a.content(*i) != b.content(*i) && !both_bad(*i));
            if let Some(block) = differs {
                let (a, b) = (x.rid, y.rid);
                return self.fail(format!("I26: closed, and block {block} differs between {a} and {b}"));
            }
        }
    }

    /// I4: whatever a replica starts for a data request is of the promised epoch and session, on the newest attachment.
    pub(super) fn judge_start(&mut self, rep: Id) {
        let Some(((epoch, id), session, ordinal)) = self.executing else { return };
        let party = Party { host: host_id(self.sessions[session].host), session: id };
        let Some(view) = self.reps[rep].machine.as_ref().map(|m| m.view(party)) else { return };
        let rid = self.reps[rep].rid;
        if (view.promised, view.session) != (epoch, id) {
            self.fail(format!(
                "I4: {rid} promised {} to {}, and obeys {} at {epoch}",
                view.promised,
                session_name(view.session),
                session_name(id)
            ));
        } else if view.ordinal != ordinal {
            self.fail(format!("I4: {rid} obeys an attachment of {} that has ended", session_name(id)));
        }
    }

    /// I5: when a promise is answered, nothing of a lower epoch that changes data is under way. Nothing at all is, unless
    /// it was answered before: a promise whose answer was lost is asked for again among writes of its own epoch.
    pub(super) fn judge_promised(&mut self, rep: Id, session: SessionId) {
        let changes = |io: &Io| match io {
            Io::Disk { op, .. } => matches!(
                op,
                DiskOp::Write { .. } | DiskOp::Zero { .. } | DiskOp::Grow { .. } | DiskOp::Cut { .. }
            ),
            Io::Log { .. } | Io::Image { .. } => false,
        };
        let r = &mut self.reps[rep];
        let Some(promised) = r.machine.as_ref().map(|m| (m.promised().0, session)) else { return };
        let again = std::mem::replace(&mut r.answered, promised) == promised;
        if !again && r.pending.values().any(changes) {
            let rid = r.rid;
            self.fail(format!("I5: {rid} answers a promise with older writes on their way to its disk"));
        }
    }

    /// I15: reads go to members that are in sync.
    pub(super) fn judge_sent(&mut self, session: Id, to: Rid, ask: &Ask<HeapPayload>) {
        if !matches!(ask, Ask::Read { .. } | Ask::Kinds { .. }) {
            return;
        }
        let record = self.sessions[session].machine.as_ref().and_then(Session::record);
        let in_sync = |r: &Record| r.replica(to).is_some_and(|e| e.state == ReplicaState::InSync);
        if !record.is_some_and(in_sync) {
            self.fail(format!("I15: s{} reads {to}, which is not in sync", session + 1));
        }
    }

    /// I8, I22: data is on the disk.
    pub(super) fn judge_landed(&mut self, rep: Id, op: &DiskOp<HeapPayload>) {
        let (offset, len) = match op {
            DiskOp::Write { offset, data, crcs, .. } => {
                if *crcs != block_crcs(data.bytes()) {
                    let rid = self.reps[rep].rid;
                    return self
                        .fail(format!("I22: {rid} stores bytes that are not those of their checksums"));
                }
                (*offset, data.len() as u64)
            }
            DiskOp::Zero { offset, len, .. } => (*offset, *len),
            _ => return,
        };
        let durable = &self.reps[rep].stored.durable;
        let stamp = |region: u32| durable.rgm.get(region as usize).copied().unwrap_or_default();
        let bare = durable.regions_of(offset, len).find(|r| stamp(*r) <= durable.sealed);
        if let Some(region) = bare {
            let (rid, sealed) = (self.reps[rep].rid, durable.sealed);
            self.fail(format!(
                "I8: {rid} has data in region {region} whose stamp is not above its seal {sealed}"
            ));
        }
    }

    /// I7, I31: a guest's write is answered.
    pub(super) fn judge_answering(&mut self, session: Id) {
        let Some(m) = &self.sessions[session].machine else { return };
        let (pending, record) = (m.pending(), m.record());
        let enough = record.is_none_or(|r| r.in_sync().count() >= usize::from(r.policy.min_isr));
        if !enough {
            self.fail(format!("I7: s{} answers a write with fewer than min_isr copies in sync", session + 1));
        } else if pending > REQUESTS_MAX {
            self.fail(format!("I31: s{} has {pending} requests", session + 1));
        }
    }

    /// I6: what is acknowledged is at every member that is in sync by the record; in durable mode on stable media.
    pub(super) fn judge_acknowledged(&mut self, session: Id, half: u64, value: Value) {
        let record = &self.store.record;
        let owner = record.owner.is_some_and(|o| o.session == self.sessions[session].id);
        if !owner || self.sessions[session].machine.is_none() || self.store.rolled_back {
            return;
        }
        let (block, side) = ((half / 2) as usize, (half % 2) as usize);
        let missing = self.trusted_in_sync().into_iter().find(|rep| {
            let media = &self.reps[*rep].stored.media;
            let stable = self.plan.cached || media.stable(block).0[side] == value;
            media.content(block).0[side] != value || !stable
        });
        if let Some(rid) = missing.map(|rep| self.reps[rep].rid) {
            let name = self.oracle.name(half);
            self.fail(format!(
                "I6: {name} was acknowledged with value {value}, {rid} is in sync and does not have it"
            ));
        }
    }

    /// A session begins to serve: no member within its reach has promised more than the record says (I20).
    ///
    /// A rollback may take back the last epochs of an owner that has claimed and still gathers promises, and leave its
    /// claim. It serves by what its members promised to it (R1), and repair finds that at them (R11): only then may a
    /// promise be above the store's record, and only one to this very session, up to its own epoch.
    pub(super) fn judge_opened(&mut self, session: Id) {
        let s = &self.sessions[session];
        let record = &self.store.record;
        if record.owner.is_none_or(|o| o.session != s.id) || !self.plan.all_hosts_know {
            return;
        }
        let own_epoch = s.machine.as_ref().map_or(Epoch(0), Session::epoch);
        let taken_back = |d: &Durable| self.store.rolled_back && d.session == s.id && d.promised <= own_epoch;
        let higher = record.in_sync().map(|e| e.rid).find(|rid| {
            let linked = s.links.get(rid).is_some_and(|l| l.up);
            let rep = self.rep_of(*rid).filter(|rep| linked && self.reps[*rep].is_serving());
            let durable = rep.map(|rep| &self.reps[rep].stored.durable);
            durable.is_some_and(|d| d.promised > record.epoch && !taken_back(d))
        });
        if let Some(rid) = higher {
            let epoch = record.epoch;
            self.fail(format!("I20: s{} serves at {epoch}, {rid} has promised more", session + 1));
        }
    }

    /// A guest was told that a range can't be read: true only if a block of it is good on no member that is in sync, or the
    /// good ones refuse everything since a flush failed. An error is allowed then, a lie never.
    pub(super) fn judge_unreadable(&mut self, session: Id, first: u64, count: u64) {
        let record = self.sessions[session].machine.as_ref().and_then(Session::record);
        let members: Vec<Rid> = record.iter().flat_map(|r| r.in_sync()).map(|e| e.rid).collect();
        let good = |rid: &Rid, block: usize| {
            let rep = self.rep_of(*rid).map(|rep| &self.reps[rep]);
            let failed = |r: &Rep| r.failed_inc > 0 && self.now - r.failed_at < 10_000 * MS;
            rep.is_some_and(|r| !r.is_gone() && !failed(r) && !r.stored.media.was_bad(block))
        };
        let mut blocks = (first / 2) as usize..=((first + count - 1) / 2) as usize;
        let all_good = blocks.clone().all(|block| members.iter().any(|rid| good(rid, block)));
        let range = (*blocks.start(), *blocks.end());
        if all_good {
            let where_from = blocks.find_map(|b| members.iter().find(|rid| good(rid, b)).copied());
            let from = where_from.map(|rid| rid.to_string()).unwrap_or_default();
            self.fail(format!(
                "s{} tells its guest that blocks {} to {} can't be read; each is good on some member, {from} for one",
                session + 1,
                range.0,
                range.1
            ));
        } else {
            self.counts.unreadable += 1;
            self.note(|_| {
                format!("s{}: blocks {} to {} can't be read anywhere", session + 1, range.0, range.1)
            });
        }
    }
}

/// A session, for people.
pub(super) fn session_name(id: SessionId) -> String {
    match id.0.checked_sub(FIRST_SESSION) {
        Some(n) => format!("s{n}"),
        None => "nobody".into(),
    }
}

/// R32: a new owner began its ownership itself, or took over what a guest's session of its own host had.
fn is_first_of(old: &Record, new: &Record) -> bool {
    let Some(owner) = new.owner else { return true };
    let went_on = |before: Owner| {
        let same = before.session == owner.session;
        before.first() == owner.first()
            && (same || before.node == owner.node && !before.caretaker && !owner.caretaker)
    };
    owner.first() == owner.session || old.owner.is_some_and(went_on)
}
