//! The store of the stage: swaps with a fate, outages, backups, repair.

use super::*;

impl Stage {
    /// The record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// A replica's state in the record.
    #[must_use]
    pub fn state(&self, rid: Rid) -> Option<ReplicaState> {
        self.record.replica(rid).map(|e| e.state)
    }

    /// The in-sync members by the record.
    #[must_use]
    pub fn in_sync(&self) -> Vec<Rid> {
        self.record.in_sync().map(|e| e.rid).collect()
    }

    /// Does the record name this session as the owner?
    #[must_use]
    pub fn owns(&self, who: Who) -> bool {
        self.record.owner.is_some_and(|o: Owner| o.session == self.id(who))
    }

    /// What becomes of the next swaps, one each; after them all are answered.
    pub fn next_swaps(&mut self, fates: &[Fate]) {
        self.play.tell(self.now, format_args!("the next swaps' fates: {}", told_fates(fates)));
        self.fates.extend(fates);
    }

    /// Swaps that were given a fate by the script and not yet made.
    #[must_use]
    pub fn fates_left(&self) -> usize {
        self.fates.len()
    }

    /// Swaps that are held back.
    #[must_use]
    pub fn late(&self) -> usize {
        self.late.len()
    }

    /// Applies the swaps that were held back, each if what it replaces still stands there.
    pub fn apply_late(&mut self) -> usize {
        self.play.tell(self.now, "swaps that were held back reach the store");
        let mut applied = 0;
        for (expect, base, record, snap) in std::mem::take(&mut self.late) {
            if self.replaces(expect, base) {
                self.apply(record, snap);
                applied += 1;
            }
        }
        applied
    }

    /// These hosts no longer reach the store.
    pub fn store_away(&mut self, hosts: &[HostId]) {
        self.play.tell(self.now, format_args!("no store for {}", told_hosts(hosts)));
        self.store_away.extend(hosts);
    }

    /// Nobody reaches the store.
    pub fn store_down(&mut self) {
        self.play.tell(self.now, "the store is away for everybody");
        self.store_away.extend(HOSTS);
    }

    /// The store answers these hosts that it surely did nothing, as one without a leader does.
    pub fn store_refuses(&mut self, hosts: &[HostId]) {
        self.play
            .tell(self.now, format_args!("the store refuses whatever is asked by {}", told_hosts(hosts)));
        self.store_refuses.extend(hosts);
    }

    /// Everybody reaches it again.
    pub fn store_back(&mut self) {
        self.play.tell(self.now, "the store is back for everybody");
        self.store_away.clear();
        self.store_refuses.clear();
    }

    /// Every record that was swapped in, in order.
    #[must_use]
    pub fn swaps(&self) -> &[Record] {
        &self.swaps
    }

    /// Calls that reached the store.
    #[must_use]
    pub fn store_calls(&self) -> u64 {
        self.calls
    }

    /// A copy of the store as it is.
    #[must_use]
    pub fn backup(&self) -> Backup {
        Backup { record: self.record.clone(), revision: self.revision, keys: self.keys.clone() }
    }

    /// The next read is answered from this old copy, as by a member that lags.
    pub fn stale_read(&mut self, backup: Backup) {
        self.play.tell(self.now, "the next read of the store is answered from an old copy");
        self.stale_read = Some(backup);
    }

    /// The store is put back.
    pub fn restore(&mut self, backup: Backup) {
        self.play.tell(self.now, format_args!("the store is put back to revision {}", backup.revision));
        self.judged = false;
        (self.record, self.revision, self.keys) = (backup.record, backup.revision, backup.keys);
    }

    /// A host reads something of the store, linearizably.
    pub fn host_reads_store(&mut self, host: HostId) {
        self.see(host, mark(self.incarnation, self.revision));
    }

    /// `weft store repair`: refuses, naming who is missing, unless every member that the best copy of the record
    /// calls in sync answers, or the operator assents.
    pub fn repair(&mut self, assent: bool) -> Result<(), Rid> {
        self.play.tell(self.now, format_args!("store repair{}", if assent { ", with assent" } else { "" }));
        let answering = || self.reps.values().filter(|r| r.machine.is_some());
        let copies = answering().filter_map(|r| Record::parse(&r.stored.durable.record).ok());
        let mut best = copies.max_by_key(Record::version).expect("a copy of the record");
        let missing = best.in_sync().map(|e| e.rid).find(|rid| self.reps[rid].machine.is_none());
        if let (Some(rid), false) = (missing, assent) {
            return Err(rid);
        }
        if !self.play.broken().is(Mutation::RepairWithoutJump) {
            best.epoch = Epoch(best.epoch.0 + REPAIR_EPOCH_JUMP);
        }
        best.rev.0 += 1;
        (best.owner, best.clean, best.nonce) = (None, false, Nonce(0xE1));
        best.snaps = self.repair_keys();
        self.incarnation += 1;
        self.revision += 1;
        self.record = best;
        Ok(())
    }

    /// An agent has the head of the volume deleted, which nobody has open, or brought back.
    pub fn mark_head(&mut self, deleted: bool) {
        self.play.tell(self.now, if deleted { "the head is deleted" } else { "the head is restored" });
        let mut record = self.record.clone();
        assert!(record.owner.is_none(), "it is open");
        (record.epoch, record.rev.0, record.nonce) =
            (record.epoch.next(), record.rev.0 + 1, Nonce(0xD0 + u128::from(record.rev.0)));
        let head = Head { deleted: "77".into(), data: HeadData::Kept, unknown: BTreeMap::new() };
        record.mark_head(deleted.then_some(head));
        self.apply(record, None);
    }

    /// Is what a swap replaces what stands there?
    pub(super) fn replaces(&self, expect: Revision, base: Nonce) -> bool {
        let same = self.record.nonce == base || self.play.broken().is(Mutation::SwapComparesRevision);
        expect == Revision(self.revision) && same
    }

    pub(super) fn apply(&mut self, record: Record, snap: Option<SnapChange>) {
        let old = &self.record;
        let changed =
            old.owner != record.owner || old.in_sync().map(|e| e.rid).ne(record.in_sync().map(|e| e.rid));
        assert!(!changed || record.epoch > old.epoch, "I1: {} after {}", record.epoch, old.epoch);
        record.check().expect("only legal records are swapped in");
        self.play.tell(self.now, told_record(&record));
        self.revision += 1;
        if record.size < self.record.size {
            let end = record.size / BLOCK;
            let verdict = self.oracle.cut(end);
            assert!(verdict.is_ok(), "{:?}\n{}", verdict.err(), self.describe());
        }
        if let (Some(was), None) = (&self.record.reverting, &record.reverting)
            && let Some(content) = self.reported.get(&was.snap)
        {
            // The marker comes off when all of it is back.
            let verdict = self.oracle.taken_back(content, self.now);
            assert!(verdict.is_ok(), "{:?}\n{}", verdict.err(), self.describe());
        }
        self.record = record.clone();
        self.swaps.push(record);
        if let Some(change) = snap {
            self.change_key(change);
        }
    }

    pub(super) fn store_call(&mut self, who: Who, call: StoreCall) {
        let host = self.acts[who.0].host;
        let seen = mark(self.incarnation, self.revision);
        let answer = |stage: &mut Stage, reply: StoreReply| {
            let watermark = match &reply {
                StoreReply::Unknown | StoreReply::Unavailable | StoreReply::RolledBack => None,
                _ => Some(mark(stage.incarnation, stage.revision)),
            };
            let wait =
                if reply == StoreReply::Unknown { STORE_PATIENCE_NS } else { stage.play.store(host) / 2 };
            stage.at(wait, Cue::StoreAnswer { who, reply, watermark });
        };
        if self.store_away.contains(&host) {
            return answer(self, StoreReply::Unknown);
        }
        if self.store_refuses.contains(&host) {
            return answer(self, StoreReply::Unavailable);
        }
        self.calls += 1;
        if seen < self.watermarks[&host] {
            return answer(self, StoreReply::RolledBack);
        }
        let revision = Revision(self.revision);
        match call {
            StoreCall::Get => {
                let reply = match self.stale_read.take() {
                    Some(old) => StoreReply::Record { record: old.record, revision: Revision(old.revision) },
                    None => StoreReply::Record { record: self.record.clone(), revision },
                };
                answer(self, reply);
            }
            StoreCall::Swap { expect, base, record, snap, grouped: _ } => {
                let fate = self.fates.pop_front().unwrap_or(Fate::Answered);
                let applies = self.replaces(expect, base);
                match fate {
                    Fate::Answered if applies => {
                        self.apply(record, snap);
                        answer(self, StoreReply::Swapped { revision: Revision(self.revision) });
                    }
                    Fate::Answered => {
                        answer(self, StoreReply::Conflict { record: self.record.clone(), revision });
                    }
                    Fate::AppliedUnknown => {
                        if applies {
                            self.apply(record, snap);
                        }
                        answer(self, StoreReply::Unknown);
                    }
                    Fate::LostUnknown => answer(self, StoreReply::Unknown),
                    Fate::LateUnknown => {
                        self.late.push((expect, base, record, snap));
                        answer(self, StoreReply::Unknown);
                    }
                    Fate::Refused => answer(self, StoreReply::Unavailable),
                }
            }
        }
    }
}

fn told_hosts(hosts: &[HostId]) -> String {
    hosts.iter().map(|h| Host(*h).to_string()).collect::<Vec<_>>().join(", ")
}

fn told_fates(fates: &[Fate]) -> String {
    match fates {
        [one] => format!("{one:?}"),
        [first, .., last] if first == last => format!("{} times {first:?}", fates.len()),
        _ => format!("{fates:?}"),
    }
}

fn told_record(record: &Record) -> String {
    let owner = record.owner.map_or_else(|| "nobody".into(), |o| format!("host {}", Host(o.node)));
    let members: Vec<String> =
        record.replicas.iter().map(|r| format!("{} {}", r.rid, told_state(r.state))).collect();
    format!("record: epoch {} owned by {owner}: {}", record.epoch, members.join(", "))
}

fn told_state(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::InSync => "in sync",
        ReplicaState::Stale => "stale",
        ReplicaState::Joining => "joining",
        ReplicaState::Removing => "leaves",
        ReplicaState::Quarantined => "quarantined",
    }
}
