//! Snapshots of several volumes at one moment, whose sessions are all here.
//!
//! ```text
//! command ─▶ Group ─▶ SnapGroup ⇄ sessions ─ each one's swap ─▶ Group ─ all in one transaction ─▶ each one's answer
//! ```
//!
//! Must always hold:
//! * a swap that goes with others is kept until all of them are here, and is then sent with them, or answered with "surely
//!   not applied";
//! * whoever asked is answered once, also when a session ends instead.

use weft_control::types::{SnapshotCreateGroup, SnapshotGroup, SnapshotOfGroup};
use weft_proto::ids::{GroupId, SnapId};
use weft_proto::mutants::Broken;
use weft_proto::session::{SnapFailure, StoreReply as MachineReply};
use weft_proto::snap_group::{GroupAction, SnapGroup};

use super::*;
use crate::clock::unix_ms;
use crate::snapshots::{SnapGroupKey, check_note, failure_of, no_snapshot};

/// Volumes of a group: a transaction of etcd has 128 steps, and two for each volume.
const VOLUMES_MAX: usize = 30;
/// How long it is tried, as a single snapshot is.
const TRIED_MS: u64 = 20_000;

/// A group that was asked for and is not there yet.
#[derive(Debug)]
pub(super) struct Group {
    ask: SnapshotCreateGroup,
    created: Decimal,
    until: Instant,
    /// None: some session has yet to know its snapshots.
    machine: Option<SnapGroup>,
    /// Each volume's swap, with the session that has sent it.
    swaps: BTreeMap<VolumeId, (SessionId, KeySwap)>,
    held_ms: u64,
    answers: Vec<Answer>,
}

impl Group {
    fn snapshot_of(&self, volume: VolumeId) -> Option<SnapId> {
        self.ask.volumes.iter().find(|wanted| wanted.volume == volume).map(|wanted| wanted.id)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.machine.as_ref().map_or(Some(self.until), SnapGroup::poll_timeout)
    }
}

impl Daemon {
    pub(super) fn create_group(&mut self, now: Instant, ask: SnapshotCreateGroup, answer: Answer) {
        if let Some(group) = self.groups.get_mut(&ask.group) {
            return group.answers.push(answer);
        }
        let created = Decimal(unix_ms());
        let volumes: BTreeSet<VolumeId> = ask.volumes.iter().map(|wanted| wanted.volume).collect();
        if volumes.is_empty() || volumes.len() > VOLUMES_MAX || volumes.len() < ask.volumes.len() {
            let message = format!(
                "a group is of 1 to {VOLUMES_MAX} volumes, each named once; named are {}, {} different ones",
                ask.volumes.len(),
                volumes.len()
            );
            return refuse(answer, Failure::new(Code::BAD_VALUE, message));
        }
        if let Err(failure) = check_note(&ask.name, created, &ask.created_by, Some(ask.group)) {
            return refuse(answer, failure);
        }
        let (until, id) = (now.after_ms(TRIED_MS), ask.group);
        let (swaps, answers) = (BTreeMap::new(), vec![answer]);
        self.groups.insert(id, Group { ask, created, until, machine: None, swaps, held_ms: 0, answers });
        self.begin_group(now, id);
    }

    /// Begins as soon as all sessions know their snapshots.
    fn begin_group(&mut self, now: Instant, id: GroupId) {
        let Some(group) = self.groups.get(&id).filter(|group| group.machine.is_none()) else { return };
        let ask = group.ask.clone();
        let (mut told, mut untold, mut missing) = (false, false, None);
        let mut are_read = true;
        for SnapshotRef { volume, id: snap } in &ask.volumes {
            let Some(slot) = self.sessions.get(volume).filter(|slot| !slot.machine.is_ended()) else {
                return self.fail_group(id, not_open(*volume));
            };
            are_read &= slot.snapshots.is_read();
            match slot.snapshots.check_grouped(*volume, *snap, &ask.name) {
                Ok(Some(key)) if key.is_there() => told = true,
                Ok(Some(_)) => untold = true,
                Ok(None) => missing = Some(no_snapshot(*volume, *snap)),
                Err(failure) => return self.fail_group(id, failure),
            }
        }
        if !are_read {
            return;
        }
        match missing {
            // Taken once, and one of them was deleted since.
            Some(failure) if told || untold => return self.fail_group(id, failure),
            None if !untold => return self.tell_group(id),
            _ => {}
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        let volumes = ask.volumes.iter().map(|wanted| wanted.volume);
        group.machine = Some(SnapGroup::new(volumes, group.until, Broken::default()));
        self.drive_group(now, id);
    }

    // ---- what happened

    fn groups_of(&self, volume: VolumeId) -> Vec<GroupId> {
        let is_of = |(_, group): &(&GroupId, &Group)| group.snapshot_of(volume).is_some();
        self.groups.iter().filter(is_of).map(|(id, _)| *id).collect()
    }

    fn group_with(&self, volume: VolumeId, snap: SnapId) -> Option<GroupId> {
        let is_it = |(_, group): &(&GroupId, &Group)| group.snapshot_of(volume) == Some(snap);
        self.groups.iter().find(is_it).map(|(id, _)| *id)
    }

    /// Something has happened to a volume's session.
    pub(super) fn look_at_groups(&mut self, now: Instant, volume: VolumeId) {
        for id in self.groups_of(volume) {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let Some(snap) = group.snapshot_of(volume) else { continue };
            let Some(machine) = &mut group.machine else {
                self.begin_group(now, id);
                continue;
            };
            let slot = self.sessions.get(&volume);
            machine.handle_step(now, volume, slot.and_then(|slot| slot.machine.snapshot_step(snap)));
            self.drive_group(now, id);
        }
    }

    /// A session tells of a snapshot: it may be one of a group.
    pub(super) fn tell_groups(&mut self, now: Instant, volume: VolumeId, event: &Event) {
        let (Event::SnapshotTaken { id: snap, .. } | Event::SnapshotFailed { id: snap, .. }) = event else {
            return;
        };
        let Some(id) = self.group_with(volume, *snap) else { return };
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(machine) = &mut group.machine else { return };
        match event {
            Event::SnapshotTaken { held_ms, .. } => {
                group.held_ms = group.held_ms.max(*held_ms);
                machine.handle_taken(now, volume);
            }
            Event::SnapshotFailed { why, .. } => machine.handle_failed(now, volume, why.clone()),
            _ => {}
        }
        self.drive_group(now, id);
    }

    /// A session has ended.
    pub(super) fn end_in_groups(&mut self, now: Instant, volume: VolumeId) {
        for id in self.groups_of(volume) {
            match self.groups.get_mut(&id).and_then(|group| group.machine.as_mut()) {
                Some(machine) => machine.handle_ended(now, volume),
                None => self.fail_group(id, not_open(volume)),
            }
            self.drive_group(now, id);
        }
    }

    /// A session has sent a swap that goes with those of others.
    pub(super) fn collect_swap(&mut self, now: Instant, volume: VolumeId, snap: SnapId, swap: KeySwap) {
        let Some(session) = self.sessions.get(&volume).map(|slot| slot.machine.id()) else { return };
        let group = self.group_with(volume, snap).and_then(|id| Some((id, self.groups.get_mut(&id)?)));
        let Some((id, group)) = group else {
            // Its group was given up a moment ago.
            return self.answer_swap(now, volume, session, MachineReply::Unavailable);
        };
        group.swaps.insert(volume, (session, swap));
        if let Some(machine) = &mut group.machine {
            machine.handle_swap(volume);
        }
        self.drive_group(now, id);
    }

    pub(super) fn handle_group_swapped(
        &mut self,
        now: Instant,
        whose: Vec<(VolumeId, SessionId)>,
        outcomes: Vec<SwapOutcome>,
    ) {
        for ((volume, session), outcome) in whose.into_iter().zip(outcomes) {
            self.answer_swap(now, volume, session, swap_reply(outcome));
        }
    }

    fn answer_swap(&mut self, now: Instant, volume: VolumeId, session: SessionId, reply: MachineReply) {
        if let Some(slot) = self.session(volume, session) {
            slot.machine.handle_store(now, reply, None);
            self.touched.insert(volume);
        }
    }

    // ---- time

    pub(super) fn groups_timeout(&self) -> impl Iterator<Item = Instant> + '_ {
        self.groups.values().filter_map(Group::poll_timeout)
    }

    pub(super) fn handle_group_timeouts(&mut self, now: Instant) {
        let is_due = |group: &Group| group.poll_timeout().is_some_and(|due| now >= due);
        let due: Vec<GroupId> =
            self.groups.iter().filter(|(_, group)| is_due(group)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if let Some(machine) = &mut group.machine {
                machine.handle_timeout(now);
                self.drive_group(now, id);
                continue;
            }
            let unread = |wanted: &&SnapshotRef| {
                self.sessions.get(&wanted.volume).is_none_or(|slot| !slot.snapshots.is_read())
            };
            let late = self.groups[&id].ask.volumes.iter().find(unread).map(|wanted| wanted.volume);
            let why = SnapFailure::Waits("the list of its snapshots".to_owned());
            self.fail_group(id, failure_of(None, late.unwrap_or_default(), &why));
        }
    }

    // ---- what to do

    fn drive_group(&mut self, now: Instant, id: GroupId) {
        while let Some(group) = self.groups.get_mut(&id) {
            let Some(action) = group.machine.as_mut().and_then(SnapGroup::poll_action) else { return };
            self.act_for_group(now, id, action);
        }
    }

    fn act_for_group(&mut self, now: Instant, id: GroupId, action: GroupAction) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        tracing::debug!(group = %id, ?action, "a group of snapshots");
        match action {
            GroupAction::Ask(volume) => {
                let Some(snap) = group.snapshot_of(volume) else { return };
                let volumes = group.ask.volumes.iter().map(|wanted| wanted.volume).collect();
                let key = SnapGroupKey { id, volumes, unknown: BTreeMap::new() };
                if let Some(slot) = self.sessions.get_mut(&volume) {
                    let ask = (&group.ask, key, group.created, group.until);
                    slot.snapshots.ask_grouped(now, &mut slot.machine, snap, ask);
                    self.touched.insert(volume);
                }
            }
            GroupAction::Pass(volume, step) => {
                let Some(snap) = group.snapshot_of(volume) else { return };
                if let Some(slot) = self.sessions.get_mut(&volume) {
                    slot.machine.pass_snapshot(now, snap, step);
                    self.touched.insert(volume);
                }
            }
            GroupAction::Drop(volume) => {
                let Some(snap) = group.snapshot_of(volume) else { return };
                if let Some(slot) = self.sessions.get_mut(&volume) {
                    slot.machine.drop_snapshot(now, snap);
                    self.touched.insert(volume);
                }
            }
            GroupAction::Refuse(volume) => {
                if let Some((session, _)) = group.swaps.remove(&volume) {
                    self.answer_swap(now, volume, session, MachineReply::Unavailable);
                }
            }
            GroupAction::Commit(volumes) => {
                let (mut whose, mut swaps) = (Vec::new(), Vec::new());
                for volume in volumes {
                    if let Some((session, swap)) = group.swaps.remove(&volume) {
                        whose.push((volume, session));
                        swaps.push(swap);
                    }
                }
                let token = self.call(Caller::GroupSwap(whose));
                self.store.send(StoreRequest::SwapAll { token, swaps });
            }
            GroupAction::Taken => self.tell_group(id),
            GroupAction::Failed { volume, why } => {
                let record = self.sessions.get(&volume).and_then(|slot| slot.machine.record());
                self.fail_group(id, failure_of(record, volume, &why));
            }
        }
    }

    fn tell_group(&mut self, id: GroupId) {
        let Some(group) = self.groups.remove(&id) else { return };
        let mut created = group.created;
        let mut snapshots = Vec::new();
        for SnapshotRef { volume, id: snap } in &group.ask.volumes {
            let told = self.sessions.get(volume).and_then(|slot| slot.snapshots.created(*snap));
            let Some(told) = told else { return refuse_all(group.answers, &no_snapshot(*volume, *snap)) };
            created = told.created;
            let (generation, members) = (told.generation, told.members);
            snapshots.push(SnapshotOfGroup { volume: *volume, id: *snap, generation, members });
        }
        tracing::info!(group = %id, volumes = snapshots.len(), held_ms = group.held_ms, "group of snapshots");
        let told = SnapshotGroup { group: id, created, held_ms: Decimal(group.held_ms), snapshots };
        for answer in group.answers {
            tell(answer, &told);
        }
    }

    fn fail_group(&mut self, id: GroupId, failure: Failure) {
        let Some(group) = self.groups.remove(&id) else { return };
        tracing::warn!(group = %id, %failure, "no group of snapshots");
        for SnapshotRef { volume, id: snap } in &group.ask.volumes {
            if let Some(slot) = self.sessions.get_mut(volume) {
                slot.snapshots.forget_grouped(*snap, &failure);
            }
        }
        refuse_all(group.answers, &failure);
    }
}

fn refuse_all(answers: Vec<Answer>, failure: &Failure) {
    for answer in answers {
        refuse(answer, failure.clone());
    }
}
